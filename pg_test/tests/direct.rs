//! Look-ups by one key are planned for the partition that has it: same answers, same rights, same errors as without,
//! for every type of key, below lists of chosen keys, and while the partitions change.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use support::{cluster, database, expect_error, wait_for, wait_for_move};

/// Types of keys, and an expression of one for a number g.
const TYPES: [(&str, &str); 13] = [
    ("smallint", "g::smallint"),
    ("int", "g * 7919"),
    ("bigint", "g * 1000000007::bigint"),
    ("text", "md5(g::text)"),
    ("text COLLATE \"C\"", "'k ' || g"),
    ("varchar(40)", "md5(g::text)"),
    ("bpchar(12)", "left(md5(g::text), 5)"),
    ("uuid", "md5(g::text)::uuid"),
    ("numeric", "g / 8.0"),
    ("timestamptz", "'2026-01-01'::timestamptz + g * interval '1 hour'"),
    ("bytea", "decode(md5(g::text), 'hex')"),
    ("positive", "g"),
    ("inet", "'10.0.0.0'::inet + g"),
];
/// Keys of each.
const KEYS: usize = 150;

fn start(name: &str) -> Result<(Cluster, Client)> {
    let cluster = cluster(&ClusterOptions::new(name).set("foreshard.bucket", "1s"))?;
    let client = database(&cluster, "d")?;
    Ok((cluster, client))
}

/// Waits until backends know every leaf and table: only what is watched is planned directly.
fn wait_for_watch(client: &mut Client) -> Result<()> {
    wait_for(client, "SELECT count(*) > 0 AND bool_and(observed_at IS NOT NULL) FROM foreshard.heat_map", "t")
}

/// The answer of a statement, the same with and without.
fn both(client: &mut Client, sql: &str) -> Result<String> {
    let mut answer = |on: &str| -> Result<String> {
        client.exec(&format!("SET foreshard.direct_lookups = {on}"))?;
        Ok(match client.exec(sql) {
            Ok(rows) => rows.to_text(),
            Err(error) => format!("{} {}", error.sqlstate, error.message),
        })
    };
    let (without, with) = (answer("off")?, answer("on")?);
    assert_eq!(without, with, "{sql}");
    Ok(with)
}

#[test]
fn every_type_finds_its_keys() -> Result<()> {
    let (_cluster, mut client) = start("direct-types")?;
    client.exec("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")?;
    for (number, (name, key)) in TYPES.iter().enumerate() {
        client.exec(&format!(
            "CREATE TABLE t{number} (k {name} PRIMARY KEY, n int); \
             INSERT INTO t{number} SELECT {key}, g FROM generate_series(1, {KEYS}) g; SELECT foreshard.distribute('t{number}', 'k', 4)"
        ))?;
    }
    wait_for_watch(&mut client)?;
    for (number, (name, _)) in TYPES.iter().enumerate() {
        let keys = client.exec(&format!("SELECT k FROM t{number} ORDER BY n"))?;
        client.prepare(
            &format!("look{number}"),
            &format!("SELECT n, tableoid::regclass FROM t{number} WHERE k = $1"),
        )?;
        for row in 0..keys.len() {
            let found = client.exec_prepared(&format!("look{number}"), &[keys.get(row, 0)])?;
            assert_eq!(found.get(0, 0), Some((row + 1).to_string().as_str()), "{name}");
        }
        let literal = format!(
            "SELECT string_agg(foreshard_test.ask(format('SELECT n FROM t{number} WHERE %L = k AND n > 0', k)), ',' ORDER BY n) FROM t{number}"
        );
        client.exec(
            "CREATE SCHEMA IF NOT EXISTS foreshard_test; CREATE OR REPLACE FUNCTION foreshard_test.ask(q text) RETURNS text LANGUAGE plpgsql AS \
             $$ DECLARE r text; BEGIN EXECUTE q INTO r; RETURN coalesce(r, 'none'); END $$",
        )?;
        let all = both(&mut client, &literal)?;
        assert!(all.starts_with("1,2,3,") && !all.contains("none"), "{name}: {all}");
    }
    // Integers of other types, also such as are none of the key's.
    for sql in [
        "SELECT n FROM t0 WHERE k = 5::bigint",
        "SELECT n FROM t0 WHERE k = 70000",
        "SELECT n FROM t1 WHERE k = 5 * 7919::bigint",
        "SELECT n FROM t1 WHERE k = 99999999999",
        "SELECT n FROM t2 WHERE k = 1000000007",
        "SELECT n FROM t2 WHERE k = 7::smallint",
        "SELECT n FROM t8 WHERE k = 0.5000",
        "SELECT n FROM t8 WHERE k = 1",
        "SELECT n FROM t6 WHERE k = (SELECT left(md5('3'), 5) || '   ')::bpchar",
        "SELECT n FROM t3 WHERE k = md5('3') COLLATE \"C\"",
        "SELECT n FROM t2 WHERE k = NULL",
        "SELECT n FROM t2 WHERE k = 1000000007 AND k = 2000000014",
        "SELECT n FROM t2 WHERE k = 1000000007 OR n = 2",
    ] {
        both(&mut client, sql)?;
    }
    Ok(())
}

#[test]
fn every_form_of_select_gives_the_same() -> Result<()> {
    let (cluster, mut client) = start("direct-forms")?;
    client.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, gone int, v text, n int DEFAULT 1); \
         INSERT INTO t SELECT g, 0, 'v' || g, g % 3 FROM generate_series(1, 500) g; \
         ALTER TABLE t DROP COLUMN gone; \
         SELECT foreshard.distribute('t', 'id', 4); \
         CREATE VIEW seen AS SELECT id, v FROM t WHERE n < 3; \
         CREATE FUNCTION by_sql(bigint) RETURNS text LANGUAGE sql AS 'SELECT v FROM t WHERE id = $1'; \
         CREATE FUNCTION by_plpgsql(i bigint) RETURNS text LANGUAGE plpgsql AS $$ DECLARE r text; BEGIN SELECT v INTO r FROM t WHERE id = i; RETURN r; END $$",
    )?;
    wait_for_watch(&mut client)?;
    let place = client.query_one("SELECT foreshard.isolate_key('t', 7::bigint)")?;
    wait_for_move(&mut client, &place, "done")?;
    wait_for_watch(&mut client)?;
    for id in [7, 8, 499, 777] {
        for sql in [
            format!("SELECT * FROM t WHERE id = {id}"),
            format!("SELECT t FROM t WHERE id = {id}"),
            format!("SELECT row_to_json(t), count(*) OVER () FROM t WHERE {id} = id"),
            format!("SELECT tableoid::regclass, ctid, xmin FROM t WHERE id = {id} AND v LIKE 'v%'"),
            format!("SELECT count(*), sum(n) FROM t WHERE id = {id}"),
            format!(
                "SELECT n, count(*) FROM t WHERE id = {id} GROUP BY n HAVING count(*) > 0 ORDER BY 1 LIMIT 5"
            ),
            format!("SELECT DISTINCT v FROM t a WHERE a.id = {id} AND random() < 2"),
            format!("SELECT v FROM t WHERE id = {id} FOR UPDATE"),
            format!("SELECT v FROM ONLY t WHERE id = {id}"),
            format!("SELECT * FROM seen WHERE id = {id}"),
            format!("WITH x AS (SELECT * FROM t WHERE id = {id}) SELECT * FROM x"),
            format!("SELECT v FROM t WHERE id = {id} UNION ALL SELECT v FROM t WHERE id = 8"),
            format!("SELECT v, (SELECT max(v) FROM t b WHERE b.id = t.id) FROM t WHERE id = {id}"),
            format!("SELECT by_sql({id}), by_plpgsql({id}), by_plpgsql({id}), by_sql(8)"),
            format!("SELECT v FROM t TABLESAMPLE BERNOULLI (100) WHERE id = {id}"),
            format!("EXPLAIN (VERBOSE, COSTS OFF) SELECT v, n FROM t WHERE id = {id}"),
            format!("SELECT wrong FROM t WHERE id = {id}"),
            format!("SELECT 1 / (n - n) FROM t WHERE id = {id}"),
        ] {
            both(&mut client, &sql)?;
        }
    }
    computed_columns(&mut client)?;
    rights(&cluster, &mut client)
}

/// A column that is computed when it is read is computed as the table says, whatever a partition says (since 18).
fn computed_columns(client: &mut Client) -> Result<()> {
    if client.query_one("SELECT current_setting('server_version_num')::int < 180000")? == "t" {
        return Ok(());
    }
    client.exec(
        "CREATE TABLE c (id bigint PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) VIRTUAL); \
         INSERT INTO c SELECT g, g FROM generate_series(1, 50) g; SELECT foreshard.distribute('c', 'id', 2); \
         DO $$ BEGIN EXECUTE (SELECT string_agg(format('ALTER TABLE %s ALTER COLUMN twice SET EXPRESSION AS (n * 3)', relid::regclass), ';') \
             FROM pg_partition_tree('c') WHERE isleaf); END $$",
    )?;
    wait_for_watch(client)?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    both(client, "SELECT twice FROM c WHERE id = 8")?;
    both(client, "SELECT id FROM c WHERE id = 8 AND twice = 16")?;
    Ok(())
}

/// Who may read the table may look up in it, and nobody else.
fn rights(cluster: &Cluster, client: &mut Client) -> Result<()> {
    client.exec(
        "CREATE ROLE reader LOGIN; CREATE ROLE half LOGIN; CREATE ROLE below LOGIN; GRANT SELECT ON t TO reader; GRANT SELECT (id, n) ON t TO half; \
         DO $$ BEGIN EXECUTE (SELECT string_agg(format('GRANT SELECT ON %s TO below', relid::regclass), ';') FROM pg_partition_tree('t') WHERE level > 0); END $$",
    )?;
    let look = "SELECT v FROM t WHERE id = 8";
    let as_role = |role: &str| -> Result<Client> {
        let conninfo = format!("{} user={role}", cluster.conninfo("d"));
        Ok(Client::connect(&conninfo)?)
    };
    let mut reader = as_role("reader")?;
    assert_eq!(both(&mut reader, look)?, "v8");
    assert_eq!(both(&mut reader, "SELECT v FROM t WHERE id = 7")?, "v7");
    // What the planner expects of other conditions does not depend on rights on the partition.
    both(&mut reader, "EXPLAIN SELECT v FROM t WHERE id = 8 AND v LIKE 'v4%' AND n::numeric > 1.5")?;
    let mut half = as_role("half")?;
    assert_eq!(both(&mut half, "SELECT n FROM t WHERE id = 8")?, "2");
    assert!(both(&mut half, look)?.starts_with("42501 permission denied for table t"));
    let mut below = as_role("below")?;
    assert!(both(&mut below, look)?.starts_with("42501 permission denied for table t"));
    // A plan that is kept is checked when it is used.
    reader.prepare("kept", look)?;
    assert_eq!(reader.exec_prepared("kept", &[])?.to_text(), "v8");
    client.exec("REVOKE SELECT ON t FROM reader")?;
    assert!(reader.exec_prepared("kept", &[]).is_err_and(|error| error.sqlstate == "42501"));
    client.exec("GRANT SELECT ON t TO reader; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (n <> 2)")?;
    assert_eq!(reader.exec_prepared("kept", &[])?.to_text(), "");
    assert_eq!(both(&mut reader, look)?, "");
    assert_eq!(both(&mut reader, "SELECT v FROM t WHERE id = 7")?, "v7");
    client.exec("ALTER TABLE t DISABLE ROW LEVEL SECURITY")?;
    Ok(())
}

#[test]
fn kept_plans_follow_the_partitions() -> Result<()> {
    let (_cluster, mut client) = start("direct-kept")?;
    client.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 500) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    wait_for_watch(&mut client)?;
    let slot = client.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    client.prepare("constant", "SELECT v FROM t WHERE id = 8")?;
    client.prepare("parameter", "SELECT v FROM t WHERE id = $1")?;
    let check = |client: &mut Client| -> Result<()> {
        wait_for_watch(client)?;
        for _ in 0..7 {
            assert_eq!(client.exec_prepared("constant", &[])?.to_text(), "v8");
            for id in ["8", "9", "10", "11"] {
                assert_eq!(client.exec_prepared("parameter", &[Some(id)])?.to_text(), format!("v{id}"));
            }
        }
        Ok(())
    };
    check(&mut client)?;
    for step in [
        format!(
            "SELECT foreshard.move_slot({slot}, (SELECT min(shard) FROM foreshard.shards WHERE shard <> (SELECT shard FROM foreshard.slots WHERE slot_id = {slot})))"
        ),
        format!("SELECT foreshard.split_slot({slot})"),
        "SELECT foreshard.isolate_key('t', 8::bigint)".to_string(),
        "SELECT foreshard.isolate_key('t', 9::bigint)".to_string(),
        "SELECT foreshard.unisolate_key('t', 8::bigint)".to_string(),
    ] {
        let id = client.query_one(&step)?;
        wait_for_move(&mut client, &id, "done")?;
        client.exec("UPDATE t SET v = v WHERE id IN (8, 9)")?;
        check(&mut client)?;
    }
    // By hand, and back.
    let leaf = client.query_one("SELECT tableoid::regclass FROM t WHERE id = 10")?;
    let bound = client.query_one(&format!(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = '{leaf}'::regclass"
    ))?;
    let parent = client.query_one(&format!(
        "SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = '{leaf}'::regclass"
    ))?;
    client.exec(&format!("ALTER TABLE {parent} DETACH PARTITION {leaf}"))?;
    assert_eq!(client.exec_prepared("parameter", &[Some("10")])?.to_text(), "");
    assert_eq!(both(&mut client, "SELECT v FROM t WHERE id = 10")?, "");
    client.exec(&format!("ALTER TABLE {parent} ATTACH PARTITION {leaf} {bound}"))?;
    assert_eq!(both(&mut client, "SELECT v FROM t WHERE id = 10")?, "v10");
    // A partition whose columns have other numbers.
    client.exec(&format!(
        "ALTER TABLE {parent} DETACH PARTITION {leaf}; CREATE TABLE mixed (v text, id bigint PRIMARY KEY); INSERT INTO mixed (id, v) SELECT id, v FROM {leaf}; \
         ALTER TABLE {parent} ATTACH PARTITION mixed {bound}"
    ))?;
    assert_eq!(both(&mut client, "SELECT id, v, tableoid::regclass FROM t WHERE id = 10")?, "10|v10|mixed");
    expect_error(&mut client, "22P02", "SELECT v FROM t WHERE id = 'x'")?;
    Ok(())
}
