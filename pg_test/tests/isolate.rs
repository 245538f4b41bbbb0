//! Chosen keys get partitions of their own and go home again, without anybody noticing.

mod common;

use common::ledger::{self, Ledger};
use common::placed::{assert_located, expect_code};
use common::snapshots;
use common::{Random, SPLIT_PHASES, Server, options};
use foreshard_test::{Client, Result, in_turn};

/// Every key that has a partition of its own, with its shard, as foreshard and as PostgreSQL have it.
fn placed(server: &mut Server, table: &str) -> Result<String> {
    server.query(&format!(
        "SELECT string_agg(format('%s%s@%s', k.key, CASE WHEN k.isolated THEN '!' END, k.shard), ' ' ORDER BY k.key::bigint) \
         FROM foreshard.placed_keys('{table}') k JOIN foreshard.slots s ON s.slot_id = k.slot_id AND s.\"table\" = '{table}'::regclass \
         JOIN pg_class c ON c.oid = s.partition WHERE pg_get_expr(c.relpartbound, c.oid) ~ ('[('' ]' || k.key || '[)'']') AND s.shard = k.shard"
    ))
}

/// A server with two colocated tables of two slots, one on each shard, and clients that write them.
fn start(name: &str, rows: u64) -> Result<(Server, Ledger)> {
    let mut server = Server::start(&options(name).set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, rows)?;
    server.query(
        "CREATE INDEX ON acc (left(v, 8)); SELECT foreshard.distribute('acc', 'id', 2); \
         SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    let slot = server.slots("acc")?[1].clone();
    server.move_and_wait(&slot)?;
    let ledger = Ledger::start(&server, rows, 3);
    Ok((server, ledger))
}

fn check(server: &mut Server, ledger: &Ledger, expected: &str) -> Result<()> {
    server.wait_moves()?;
    ledger.work(30)?;
    ledger.assert_equal(server)?;
    for table in ["acc", "note"] {
        assert_eq!(placed(server, table)?, expected, "chosen keys of {table}");
        assert_located(server, table, "id")?;
    }
    server.assert_settled()
}

#[test]
fn nobody_notices() -> Result<()> {
    let (mut server, ledger) = start("isolate", 6_000)?;
    let shard = server.query("SELECT foreshard.get_shard_location('acc', 17)")?;
    // A generic plan knows nothing of the keys to come.
    let mut prepared = server.cluster.connect("postgres")?;
    prepared.exec("SET plan_cache_mode = force_generic_plan; SET jit = off")?;
    prepared.prepare("by_key", "SELECT count(*) FROM acc WHERE id = $1")?;
    prepared.exec_prepared("by_key", &[Some("17")])?;
    assert_ne!(server.query("SELECT foreshard.isolate_key('acc', 17)")?, "");
    check(&mut server, &ledger, &format!("17!@{shard}"))?;
    prepared.exec_prepared("by_key", &[Some("17")])?;
    assert_eq!(server.query("SELECT foreshard.isolate_key('acc', 17) IS NULL")?, "t", "it is so already");
    // Its slot is one like any other: it can be elsewhere.
    let slot = server.query("SELECT slot_id FROM foreshard.placed_keys('acc')")?;
    server.move_and_wait(&slot)?;
    let other = if shard == "sa" { "sb" } else { "sa" };
    check(&mut server, &ledger, &format!("17!@{other}"))?;
    assert_eq!(server.query("SELECT foreshard.get_shard_location('note', 17)")?, other);
    // Many keys, changes, and the way home, for both slots at once.
    server.query(
        "SELECT foreshard.place_keys('note', jsonb_object_agg(g, 'sa')) FROM generate_series(100, 109) g",
    )?;
    let at = |server: &mut Server| -> Result<String> {
        let sql = "SELECT string_agg(key || '@' || shard, ' ' ORDER BY key::int) FROM foreshard.placed_keys('acc') WHERE NOT isolated";
        server.query(sql)
    };
    server.wait_moves()?;
    let first = at(&mut server)?;
    assert!(first.contains("@sa") && !first.contains("@sb") && first.split(' ').count() < 10, "{first}");
    let key = first.split('@').next().unwrap_or_default().to_string();
    server.query(&format!("SELECT foreshard.place_keys('acc', '{{\"{key}\": null, \"5\": \"sa\", \"6\": \"sb\", \"7\": \"sa\", \"8\": \"sb\"}}', whole => false)"))?;
    server.wait_moves()?;
    let second = at(&mut server)?;
    assert!(
        !second.contains(&format!("{key}@")) && second.split(' ').count() >= 5,
        "{first} became {second}"
    );
    let all = format!("17!@{other} {second}");
    let mut all: Vec<&str> = all.split(' ').collect();
    all.sort_by_key(|entry| entry.split(['!', '@']).next().and_then(|key| key.parse::<i64>().ok()));
    check(&mut server, &ledger, &all.join(" "))?;
    // One partition is looked at for one key, and only the slot's for others.
    let plan = server.query("EXPLAIN (COSTS off) SELECT * FROM acc WHERE id = 17")?;
    assert_eq!(plan.matches(" on acc_").count(), 1, "{plan}");
    server.query("SELECT foreshard.place_keys('acc', '{}')")?;
    check(&mut server, &ledger, &format!("17!@{other}"))?;
    server.query("SELECT foreshard.unisolate_key('note', '17'::text)")?;
    check(&mut server, &ledger, "")?;
    let held = "SELECT max((detail->>'held_us')::int) FROM foreshard.history WHERE event = 'cutover'";
    println!("locks were held for at most {} us", server.query(held)?);
    let shape = "SELECT count(*), bool_and(relkind = 'r') FROM pg_partition_tree('acc') JOIN pg_class ON oid = relid WHERE level > 0";
    assert_eq!(server.query(shape)?, "2|t", "it is as it was");
    ledger.finish();
    server.query("SELECT foreshard.isolate_key('acc', 17)")?;
    server.wait_moves()?;
    server.query("SELECT foreshard.undistribute('note'); SELECT foreshard.undistribute('acc')")?;
    server.assert_clean()
}

#[test]
fn killed_in_every_phase() -> Result<()> {
    let (mut server, ledger) = start("isolate-crash", 3_000)?;
    let mut random = Random::new(11);
    for (round, phase) in in_turn(&SPLIT_PHASES) {
        println!("killed in {phase}");
        server.hold(Some(phase))?;
        let keys: Vec<String> = (0..6)
            .map(|_| {
                format!("\"{}\": \"s{}\"", random.below(300), if random.below(2) == 0 { 'a' } else { 'b' })
            })
            .collect();
        let moves = server
            .query(&format!("SELECT unnest(foreshard.place_keys('acc', '{{{}}}'))", keys.join(", ")))?;
        let move_id = moves.lines().next().unwrap_or_default().to_string();
        let pid = server.wait_phase(&move_id, phase)?;
        ledger.work(30)?;
        // Rounds are odd or even by the version.
        if round / 2 % 2 == 1 {
            let _ = server.cluster.kill9(pid);
        } else {
            server.cluster.kill9_postmaster()?;
            server.cluster.start_again()?;
        }
        if round / 2 == 1 {
            server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?;
            server.hold(None)?;
            server.wait_end(&move_id, "cancelled")?;
            server.query("DELETE FROM foreshard.move WHERE phase = 'cancelled'")?;
        }
        server.hold(None)?;
        server.wait_moves()?;
        ledger.work(20)?;
        ledger.assert_equal(&mut server)?;
        assert_located(&mut server, "acc", "id")?;
        assert_eq!(placed(&mut server, "acc")?, placed(&mut server, "note")?);
    }
    ledger.finish();
    server.assert_settled()
}

#[test]
fn what_cannot_be_says_why() -> Result<()> {
    let mut server = Server::start(&options("isolate-refuse").set("foreshard.max_leaves", "6"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g FROM generate_series(1, 100) g; SELECT foreshard.distribute('t', 'id', 2); \
         CREATE TABLE nokey (id bigint, v text); SELECT foreshard.distribute('nokey', 'id', 1); \
         CREATE TABLE odd (id xid NOT NULL); SELECT foreshard.distribute('odd', 'id', 1); CREATE TABLE plain (id int)",
    )?;
    let mut c = server.cluster.connect("postgres")?;
    let error = expect_code(c.exec("SELECT foreshard.isolate_key('nokey', 1)"), "0A000");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("no_identity_index")) && error.hint.is_some());
    let error = expect_code(c.exec("SELECT foreshard.isolate_key('odd', '5'::xid)"), "0A000");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("no_order")), "{error}");
    c.exec("CREATE TABLE inbound (t_id bigint REFERENCES t)")?;
    let error = expect_code(c.exec("SELECT foreshard.isolate_key('t', 1)"), "0A000");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("inbound_foreign_key")), "{error}");
    c.exec("DROP TABLE inbound")?;
    expect_code(c.exec("SELECT foreshard.isolate_key('plain', 1)"), "55000");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', NULL::int)"), "22023");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 'one'::text)"), "22P02");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 1, 'nowhere')"), "42704");
    expect_code(c.exec("SELECT foreshard.unisolate_key('t', 1)"), "22023");
    expect_code(c.exec("SELECT foreshard.place_keys('t', '[]')"), "22023");
    expect_code(c.exec("SELECT foreshard.place_keys('t', '{\"1\": 5}')"), "22023");
    expect_code(c.exec("SELECT foreshard.isolate_keys('t', '{1,2,3,4,5}')"), "53400");
    let long = "SELECT foreshard.place_keys('t', jsonb_object_agg(g, 'sa') || jsonb_object_agg(-g, 'sb')) FROM generate_series(1, 20000) g";
    expect_code(c.exec(long), "53400");
    c.exec("CREATE ROLE stranger; GRANT USAGE ON SCHEMA foreshard TO stranger; GRANT EXECUTE ON FUNCTION foreshard.place_keys TO stranger; SET ROLE stranger")?;
    expect_code(c.exec("SELECT foreshard.place_keys('t', '{}')"), "42501");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 1)"), "42501");
    c.exec("RESET ROLE")?;
    c.exec("SELECT foreshard.isolate_key('t', 1)")?;
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 1)"), "55006");
    server.wait_moves()?;
    // What has chosen keys is not split, nor are they.
    for slot in c
        .exec("SELECT unnest(ARRAY[slot_id, home_slot_id]) FROM foreshard.slot WHERE isolated")?
        .to_text()
        .lines()
    {
        let error = expect_code(c.exec(&format!("SELECT foreshard.split_slot({slot})")), "0A000");
        assert!(error.detail.as_deref().is_some_and(|d| d.contains("chosen_keys")), "{error}");
    }
    expect_code(c.exec("SELECT foreshard.place_keys('t', '{\"1\": \"sa\"}')"), "22023");
    let here = c.query_one("SELECT shard FROM foreshard.placed_keys('t')")?;
    let there = if here == "sa" { "sb" } else { "sa" };
    let error = expect_code(c.exec(&format!("SELECT foreshard.isolate_key('t', 1, '{there}')")), "22023");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("move_slot")), "{error}");
    c.exec("CREATE TABLE late (id bigint PRIMARY KEY)")?;
    expect_code(c.exec("SELECT foreshard.distribute('late', 'id', colocate_with => 't')"), "0A000");
    server.assert_settled()
}

/// The bound of a partition has to fit into a row of the catalog: more keys than that have several lists.
#[test]
fn more_keys_than_a_list_holds() -> Result<()> {
    let mut server = Server::start(&options("isolate-many"))?;
    server.query(
        "CREATE TABLE t (id text PRIMARY KEY); INSERT INTO t SELECT md5(g::text) FROM generate_series(1, 2000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let mut c = server.cluster.connect("postgres")?;
    let place = |c: &mut Client, keys: &str, shard: &str| {
        c.exec(&format!("SELECT foreshard.place_keys('t', jsonb_object_agg(md5(g::text), {shard}), false) FROM generate_series({keys}) g"))
    };
    let lists = "SELECT count(*) || ' ' || count(DISTINCT slot_id) || ' ' || (SELECT count(*) FROM t) FROM foreshard.placed_keys('t')";
    let other = c.query_one(
        "SELECT shard FROM foreshard.shards WHERE shard <> ALL (SELECT shard FROM foreshard.slots) LIMIT 1",
    )?;
    place(&mut c, "1, 900", &format!("'{other}'::text"))?;
    server.wait_moves()?;
    let found = c.query_one(lists)?;
    let mut numbers = found.split(' ').map(|number| number.parse::<usize>().unwrap_or(0));
    let (keys, made, rows) = (numbers.next(), numbers.next().unwrap_or(0), numbers.next());
    assert_eq!((keys, rows), (Some(900), Some(2000)));
    assert!((6..=10).contains(&made), "lists well filled: {made}");
    assert_located(&mut server, "t", "id")?;
    // The next one finds room.
    place(&mut c, "901, 902", &format!("'{other}'::text"))?;
    server.wait_moves()?;
    assert_eq!(c.query_one(lists)?, format!("902 {made} 2000"));
    // Numbers are short, and where they stood in the statement is not.
    c.exec(
        "CREATE TABLE n (id bigint PRIMARY KEY); INSERT INTO n SELECT g FROM generate_series(1, 2000) g; SELECT foreshard.distribute('n', 'id', 1)",
    )?;
    c.exec(
        "SELECT foreshard.place_keys('n', (SELECT jsonb_object_agg(g * 17, s.shard) FROM generate_series(1, 1500) g)) \
         FROM foreshard.shards s WHERE s.shard <> ALL (SELECT shard FROM foreshard.slots WHERE \"table\" = 'n'::regclass) AND s.shard IN ('sa', 'sb') LIMIT 1",
    )?;
    server.wait_moves()?;
    let lists_of_n = "SELECT count(*) || ' ' || (count(DISTINCT slot_id) BETWEEN 2 AND 4) || ' ' || (SELECT count(*) FROM n) FROM foreshard.placed_keys('n')";
    assert_eq!(c.query_one(lists_of_n)?, "1500 true 2000");
    let long = "SELECT foreshard.isolate_key('t', (SELECT string_agg(md5(g::text), '') FROM generate_series(1, 400) g))";
    let error = expect_code(c.exec(long), "54000");
    assert!(error.detail.is_some() && error.hint.is_some());
    place(&mut c, "1, 902", "NULL::text")?;
    server.wait_moves()?;
    assert_eq!(c.query_one(lists)?, "0 0 2000");
    server.assert_settled()
}

/// What somebody changes by hand about the lists of a slot, and what hangs on the table between, is not lost.
#[test]
fn nothing_is_lost_on_the_way_home() -> Result<()> {
    // Nobody looks at the layout but where that is wanted.
    let mut server = Server::start(&options("isolate-by-hand").set("foreshard.bucket", "3600"))?;
    server.query(
        "CREATE ROLE stranger; CREATE TABLE t (id numeric PRIMARY KEY, v text); CREATE TABLE u (id numeric PRIMARY KEY); \
         INSERT INTO t SELECT g FROM generate_series(1, 200) g; SELECT foreshard.distribute('t', 'id', 2); SELECT foreshard.distribute('u', 'id', colocate_with => 't')",
    )?;
    let mut c = server.cluster.connect("postgres")?;
    let reason = |c: &mut Client, sql: &str, word: &str| {
        let error = expect_code(c.exec(sql), "0A000");
        assert!(error.detail.as_deref().is_some_and(|d| d.contains(word)) && error.hint.is_some(), "{error}");
    };
    let leaf = c.query_one("SELECT tableoid::regclass FROM t WHERE id = 1")?;
    let slot =
        c.query_one(&format!("SELECT slot_id FROM foreshard.slots WHERE partition = '{leaf}'::regclass"))?;
    // What is unique in one partition alone would not be in two.
    c.exec(&format!("CREATE UNIQUE INDEX alone ON {leaf} (v) WHERE v > 'x'"))?;
    reason(&mut c, &format!("SELECT foreshard.split_slot({slot})"), "own_unique_index: public.alone");
    reason(&mut c, "SELECT foreshard.isolate_key('t', 1)", "own_unique_index: public.alone");
    c.exec("DROP INDEX alone")?;
    // The past is divided as the present is: 80 of 100 are the key's.
    c.exec(&format!(
        "INSERT INTO foreshard.slot_heat (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, access_score) \
             VALUES ({slot}, now(), 0, 0, 0, 0, 0, 0, 0, 100) ON CONFLICT (slot_id) DO UPDATE SET access_score = 100; \
         INSERT INTO foreshard.hot_key SELECT group_id, 1, 't', {slot}, '1', false, 80, 80, 80, 80, now() FROM foreshard.colocation_group; \
         INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) VALUES (3600, {slot}, now() - interval '5 h', 100)"
    ))?;
    c.exec("SELECT foreshard.isolate_key('t', 1)")?;
    server.wait_moves()?;
    let past = "SELECT string_agg(round(cost_units_per_s::numeric, 3)::text, ' ' ORDER BY slot_id) FROM foreshard.heat_history WHERE resolution_s = 3600";
    assert_eq!(server.query(past)?, "20.000 80.000");
    // Another text of the same key.
    assert_eq!(c.query_one("SELECT foreshard.isolate_key('t', 1.00) IS NULL")?, "t", "it is so already");
    // A list that was attached by hand.
    let branch = c.query_one(&format!(
        "SELECT branch FROM foreshard.slot_partition WHERE slot_id = {slot} AND table_oid = 't'::regclass"
    ))?;

    let keys = c.query_one(&format!("SELECT string_agg(id::text, ' ') FROM (SELECT id FROM t JOIN foreshard.slots s ON s.partition = t.tableoid WHERE s.slot_id = {slot} LIMIT 3) q"))?;
    let keys: Vec<&str> = keys.split(' ').collect();
    let by_hand = |c: &mut Client, table: &str, name: &str, key: &str| -> Result<()> {
        let below = c.query_one(&format!("SELECT branch FROM foreshard.slot_partition WHERE slot_id = {slot} AND table_oid = '{table}'::regclass"))?;
        c.exec(&format!(
            "CREATE TABLE {name} (LIKE {table} INCLUDING ALL); DELETE FROM {table} WHERE id = {key}; \
             ALTER TABLE {below} ATTACH PARTITION {name} FOR VALUES IN ({key}); INSERT INTO {table} VALUES ({key})"
        ))?;
        Ok(())
    };
    by_hand(&mut c, "t", "by_hand", keys[0])?;
    by_hand(&mut c, "u", "of_u", keys[1])?;
    reason(&mut c, "SELECT foreshard.unisolate_key('t', 1)", "unknown_partition: public.by_hand");
    server.set(&[("foreshard.bucket", "1")])?;
    server.wait_query("SELECT count(*) FROM foreshard.history WHERE event = 'attached'", "2")?;
    server.set(&[("foreshard.bucket", "3600")])?;
    assert_eq!(
        server.query("SELECT string_agg(key, ' ' ORDER BY key) FROM foreshard.placed_keys('t')")?,
        format!("1 {}", keys[0])
    );
    reason(&mut c, &format!("SELECT foreshard.isolate_key('t', {})", keys[1]), "listed_already");
    c.exec("SELECT foreshard.unisolate_key('t', 1.0)")?;
    server.wait_moves()?;
    assert_eq!(
        server.query("SELECT count(*), count(*) FILTER (WHERE tableoid = 'by_hand'::regclass) FROM t")?,
        "200|1"
    );
    // What a list alone has would be lost when it is made anew.
    c.exec("GRANT SELECT ON by_hand TO stranger")?;
    reason(&mut c, "SELECT foreshard.place_keys('t', '{}')", "different: privileges");
    c.exec("REVOKE SELECT ON by_hand FROM stranger")?;
    // What hangs on the table between is not lost with it.
    c.exec(&format!(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TRIGGER own BEFORE INSERT ON {branch} FOR EACH ROW EXECUTE FUNCTION f(); DROP TABLE of_u"
    ))?;
    reason(&mut c, "SELECT foreshard.place_keys('t', '{}')", "own_trigger: own");
    c.exec(&format!("DROP TRIGGER own ON {branch}; GRANT SELECT ON {branch} TO stranger; COMMENT ON TABLE {branch} IS 'mine'"))?;
    c.exec("SELECT foreshard.place_keys('t', '{}')")?;
    server.wait_moves()?;
    assert_eq!(server.query("SELECT count(*), count(DISTINCT tableoid) FROM t")?, "200|2");
    let kept = format!(
        "SELECT relkind, has_table_privilege('stranger', oid, 'SELECT'), obj_description(oid) FROM pg_class WHERE oid = '{leaf}'::regclass"
    );
    assert_eq!(server.query(&kept)?, "r|t|mine");
    // A list that is dropped leaves nothing that stands in the way for good.
    c.exec("SELECT foreshard.isolate_key('t', 1)")?;
    server.wait_moves()?;
    let lists =
        "SELECT string_agg(format('DROP TABLE %s', partition), ';') FROM foreshard.slots WHERE isolated";
    let drop = c.query_one(lists)?;
    c.exec(&drop)?;
    server.set(&[("foreshard.bucket", "1")])?;
    server.wait_query("SELECT count(*) FROM foreshard.slot WHERE home_slot_id IS NOT NULL", "0")?;
    reason(&mut c, &format!("SELECT foreshard.split_slot({slot})"), "has_table_between");
    for change in ["SELECT foreshard.isolate_key('t', 1)", "SELECT foreshard.unisolate_key('t', 1)"] {
        c.exec(change)?;
        server.wait_moves()?;
    }
    let move_id = server.split_slot(&slot)?;
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query("SELECT count(*), count(DISTINCT tableoid) FROM t")?, "199|3");
    server.assert_settled()
}

/// Files the isolation of a key of `t`; the move.
fn isolate(server: &mut Server, key: u32) -> Result<String> {
    server.query(&format!("SELECT foreshard.isolate_keys('t', ARRAY['{key}'])"))?;
    server.query("SELECT max(move_id) FROM foreshard.move")
}

#[test]
fn old_snapshots_see_every_row() -> Result<()> {
    snapshots::old_snapshots_see_every_row("isolate-mvcc", |server| isolate(server, 1002))
}

#[test]
fn serializable_stays_serializable() -> Result<()> {
    snapshots::serializable_stays_serializable("isolate-ssi", |server| isolate(server, 17))
}
