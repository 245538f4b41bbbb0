//! Which reads of a slot that is divided anew read its copies: look-ups by one key that is known before they begin, in any
//! plan, and nobody ever gets another answer.

mod common;

use common::halves::{Site, answer, in_twin, plan};
use foreshard_test::{Client, Error, Result};

/// (settings, query): :A and :C are keys of the first copy, :B of the second; all may be read there.
const ROUTED: [(&str, &str); 15] = [
    ("", "SELECT id, v, late FROM t WHERE id = :A"),
    ("", "SELECT v FROM t WHERE :A::int = id AND n >= 0"),
    ("SET foreshard.direct_lookups = off", "SELECT v FROM t WHERE id = :A"),
    (
        "SET foreshard.direct_lookups = off; SET enable_partition_pruning = off",
        "SELECT v FROM t WHERE id = :A",
    ),
    ("SET enable_seqscan = off", "SELECT count(*) FROM t WHERE id = :A"),
    (
        "SET enable_indexscan = off; SET enable_indexonlyscan = off",
        "SELECT v FROM t WHERE id = :A AND n < 100",
    ),
    (
        "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off",
        "SELECT v FROM t WHERE id = :A",
    ),
    ("", "SELECT n, id FROM t WHERE n = (SELECT n FROM twin.t WHERE id = :A) AND id = :A"),
    ("", "SELECT t.v, w.m FROM t JOIN w ON w.t_id = t.id WHERE t.id = :A"),
    ("", "SELECT a.v, b.v FROM t a, t b WHERE a.id = :A AND b.id = :B"),
    ("", "SELECT (SELECT v FROM t WHERE id = :B), v FROM t WHERE id = :A"),
    ("", "SELECT sum(n) FROM t WHERE id IN (:A, :C)"),
    ("", "SELECT v FROM t WHERE id = :A AND id IN (:A, :B)"),
    ("", "SELECT v FROM t WHERE id = :A UNION ALL SELECT v FROM t WHERE id = :B"),
    ("", "SELECT g, t.v FROM generate_series(1, 3) g JOIN t ON t.id = :A"),
];

/// What is not bound to a key, or to keys of one copy, or not before it begins.
const STAYS: [(&str, &str); 14] = [
    ("", "SELECT count(*), sum(n) FROM t"),
    ("", "SELECT sum(n) FROM t WHERE id IN (:A, :B)"),
    ("", "SELECT sum(n) FROM t WHERE id = :A OR n = 5"),
    ("", "SELECT sum(n) FROM t WHERE id <> :A"),
    ("", "SELECT sum(n) FROM t WHERE id BETWEEN :A AND :A"),
    ("", "SELECT v FROM t WHERE id::text = ':A'"),
    ("", "SELECT v FROM t WHERE id = :A + (random() * 0)::int"),
    ("", "SELECT v FROM t WHERE id = NULL"),
    ("", "SELECT v FROM t WHERE id = (SELECT :A)"),
    (
        "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_memoize = off; SET enable_seqscan = off",
        "SELECT count(*), sum(t.n) FROM generate_series(1, 300) g JOIN t ON t.id = g",
    ),
    (
        "SET enable_hashjoin = off; SET enable_mergejoin = off",
        "SELECT sum(t.n) FROM w JOIN t ON t.id = w.t_id WHERE w.m = 3",
    ),
    ("", "SELECT g, (SELECT v FROM t WHERE id = g) FROM generate_series(1, 50) g"),
    ("", "SELECT v FROM t WHERE id = :A FOR SHARE"),
    ("", "SELECT tableoid = 0, v FROM t WHERE id = :A"),
];

#[test]
fn look_ups_read_the_copy_that_has_the_key() -> Result<()> {
    let mut site = Site::new("canary-halves")?;
    let mut client = site.client()?;
    client.exec("SET jit = off; SET plan_cache_mode = force_generic_plan")?;
    // A plan made before the split, for all keys.
    client.prepare("old", "SELECT n FROM t WHERE id = $1")?;
    client.exec_prepared("old", &[Some("1")])?;
    let move_id = site.split("1")?;
    let copies = site.copies(&move_id, "t")?;
    let [(first, own), (second, other)] = copies.as_slice() else { panic!("two copies: {copies:?}") };
    let (a, b, c) = (own[0].to_string(), other[0].to_string(), own[1].to_string());
    let fill = |sql: &str| sql.replace(":A", &a).replace(":B", &b).replace(":C", &c);
    for (settings, sql) in ROUTED {
        let mut client = site.client()?;
        client.exec("SET jit = off")?;
        client.exec(settings)?;
        let sql = fill(sql);
        let shown = plan(&mut client, &sql)?;
        let wants_second = sql.contains(&format!("id = {b}"));
        assert!(shown.contains(first.trim_start_matches("foreshard.")), "{sql}:\n{shown}");
        assert_eq!(shown.contains(second.trim_start_matches("foreshard.")), wants_second, "{sql}:\n{shown}");
        let (found, wanted) = (answer(&mut client, &sql)?, in_twin(&mut client, &sql)?);
        assert_eq!(found, wanted, "{sql}");
    }
    for (settings, sql) in STAYS {
        let mut client = site.client()?;
        client.exec("SET jit = off")?;
        client.exec(settings)?;
        let sql = fill(sql);
        let shown = plan(&mut client, &sql)?;
        assert!(!shown.contains("split_"), "{sql}:\n{shown}");
        let (found, wanted) = (answer(&mut client, &sql)?, in_twin(&mut client, &sql)?);
        assert_eq!(found, wanted, "{sql}");
    }
    prepared(&mut site, &mut client, [&a, &b, &c], [first, second])?;
    cursors(&mut site, &a)?;
    // Counts are noted at the next look of the carrier.
    site.server.wait_query(
        &format!(
            "SELECT reads_routed > 100 AND reads_unroutable > 20 AND reads_stayed = 0 FROM foreshard.progress_moves \
             WHERE move_id = {move_id}"
        ),
        "t",
    )?;
    site.finish(&move_id)?;
    let summary = site.server.query(
        "SELECT (detail ->> 'reads')::int > 100 AND (detail ->> 'compared')::int > 3 AND detail ->> 'differed' = '0' \
                AND (detail ->> 'unroutable')::int > 20 FROM foreshard.history WHERE event = 'canary' AND detail ? 'routed'",
    )?;
    assert_eq!(summary, "t");
    lists_and_merges(&mut site)
}

/// Parameters: whatever the plan, each execution reads the copy that has its own key.
fn prepared(
    site: &mut Site,
    client: &mut Client,
    [a, b, c]: [&str; 3],
    [first, second]: [&String; 2],
) -> Result<()> {
    let bare = |name: &str| name.trim_start_matches("foreshard.").to_string();
    let (first, second) = (bare(first), bare(second));
    client.prepare("two", "SELECT v FROM t WHERE id = $1 AND id = $2")?;
    client.prepare("list", "SELECT sum(n), count(*) FROM t WHERE id = ANY ($1::bigint[])")?;
    client.prepare("small", "SELECT n FROM t WHERE id = $1::int")?;
    client.prepare("sum", "SELECT n FROM t WHERE id = $1::bigint + 0")?;
    // By an index that is not asked for the key: it finds rows of both halves.
    client.prepare("other", "SELECT n FROM t WHERE id = $1 AND n = $2")?;
    let by_other = client.exec(&format!("EXPLAIN SELECT n FROM t WHERE id = {a} AND n = {a}"))?.to_text();
    assert!(by_other.contains("Index Only Scan") && by_other.contains("Filter: (id ="), "{by_other}");
    client.exec("PREPARE shown (bigint) AS SELECT n FROM t WHERE id = $1")?;
    client.exec("PREPARE listed (bigint[]) AS SELECT n FROM t WHERE id = ANY ($1)")?;
    client.exec(
        "CREATE OR REPLACE FUNCTION walk() RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE s bigint := 0; x int; r record; BEGIN \
           FOR k IN 1..400 LOOP SELECT n INTO x FROM t WHERE id = k; s := s + x; END LOOP; \
           FOR k IN 1..50 LOOP FOR r IN SELECT n FROM t WHERE id = k LOOP s := s + r.n; END LOOP; END LOOP; RETURN s; END $$; \
         CREATE OR REPLACE FUNCTION by_sql(bigint) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT n FROM t WHERE id = $1 LIMIT 1'",
    )?;
    let total = site
        .server
        .query("SELECT sum(n) FILTER (WHERE id <= 400) + sum(n) FILTER (WHERE id <= 50) FROM twin.t")?;
    for mode in ["force_generic_plan", "force_custom_plan", "auto"] {
        client.exec(&format!("SET plan_cache_mode = {mode}"))?;
        for key in 1..=60_i64 {
            let key = key.to_string();
            let wanted = site.server.query(&format!("SELECT n FROM twin.t WHERE id = {key}"))?;
            for statement in ["old", "small", "sum"] {
                let found = client.exec_prepared(statement, &[Some(&key)])?.to_text();
                assert_eq!(found, wanted, "{statement} {key} {mode}");
            }
            let found = client.exec_prepared("other", &[Some(&key), Some(&wanted)])?.to_text();
            assert_eq!(found, wanted, "by another index: {key} {mode}");
            assert_eq!(client.query_one(&format!("SELECT by_sql({key})"))?, wanted);
        }
        assert_eq!(client.exec_prepared("old", &[None])?.len(), 0, "NULL");
        assert_eq!(client.exec_prepared("two", &[Some(a), Some(b)])?.len(), 0);
        assert_eq!(client.exec_prepared("two", &[Some(a), Some(a)])?.len(), 1);
        for keys in [format!("{{{a},{b},{c},NULL,{a}}}"), format!("{{{a},{c}}}"), "{}".to_string()] {
            let wanted = site
                .server
                .query(&format!("SELECT sum(n), count(*) FROM twin.t WHERE id = ANY ('{keys}')"))?;
            assert_eq!(client.exec_prepared("list", &[Some(&keys)])?.to_text(), wanted, "{keys} {mode}");
        }
        assert_eq!(client.query_one("SELECT walk()")?, total, "{mode}");
        let mut shown = |sql: &str| Ok::<_, Error>(client.exec(&format!("EXPLAIN {sql}"))?.to_text());
        for (key, mine, other) in [(a, &first, &second), (b, &second, &first)] {
            let shown = shown(&format!("EXECUTE shown({key})"))?;
            assert!(shown.contains(mine) && !shown.contains(other), "{mode}: {shown}");
        }
        let one = shown(&format!("EXECUTE listed('{{{a},{c}}}')"))?;
        let both = shown(&format!("EXECUTE listed('{{{a},{b}}}')"))?;
        assert!(one.contains(&first) && !both.contains("split_"), "{mode}: {one}\n{both}");
        assert!(!shown("EXECUTE shown(NULL)")?.contains("split_"));
    }
    Ok(())
}

/// A cursor may be named by WHERE CURRENT OF, which looks for the partition in it: it stays.
fn cursors(site: &mut Site, key: &str) -> Result<()> {
    let mut client = site.client()?;
    // Of a pruned plan PostgreSQL itself would say no.
    client.exec("SET foreshard.direct_lookups = off; SET enable_partition_pruning = off")?;
    client.exec(&format!("BEGIN; DECLARE c CURSOR FOR SELECT * FROM t WHERE id = {key}; FETCH c"))?;
    client.exec("UPDATE t SET n = n WHERE CURRENT OF c; ROLLBACK; RESET ALL")?;
    client.exec(&format!(
        "BEGIN; DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT n FROM t WHERE id = {key}; COMMIT"
    ))?;
    assert_eq!(client.exec("FETCH ALL FROM c")?.len(), 1);
    Ok(())
}

/// Keys that get a list of their own, and two slots that become one.
fn lists_and_merges(site: &mut Site) -> Result<()> {
    let mut client = site.client()?;
    let halves = site.server.query("SELECT slot_id FROM foreshard.slots WHERE modulus = 4 AND \"table\" = 't'::regclass ORDER BY remainder")?;
    let halves: Vec<&str> = halves.lines().collect();
    let move_id = site.routed(&format!("SELECT foreshard.merge_slots({}, {})", halves[0], halves[1]), "1")?;
    let source = site.server.query(
        "SELECT string_agg(id::text, ' ') FROM (SELECT id FROM t WHERE foreshard.get_shard_location('t', id) IS NOT NULL ORDER BY id LIMIT 12) q",
    )?;
    let mut routed = 0;
    for key in source.split(' ') {
        for sql in [
            format!("SELECT v FROM t WHERE id = {key}"),
            format!("SELECT sum(n) FROM t WHERE id IN ({key}, 77, 78)"),
            format!("SELECT a.v, b.v FROM t a, t b WHERE a.id = {key} AND b.id = 80"),
        ] {
            routed += usize::from(plan(&mut client, &sql)?.contains("split_"));
            assert_eq!(answer(&mut client, &sql)?, in_twin(&mut client, &sql)?, "{sql}");
        }
    }
    assert!(routed > 5, "{routed} look-ups read the copy of the merge");
    client.exec("SET foreshard.direct_lookups = off; SET enable_partition_pruning = off")?;
    for key in source.split(' ') {
        // Both sources are asked for the key, one of them has it, and the copy must not answer twice.
        assert_eq!(client.exec(&format!("SELECT v FROM t WHERE id = {key}"))?.len(), 1, "{key}");
    }
    assert_eq!(client.query_one("SELECT count(*) FROM t")?, "3000");
    site.finish(&move_id)?;
    client.exec("RESET ALL")?;
    for key in [5, 6] {
        let move_id = site.routed(&format!("SELECT foreshard.isolate_key('t', {key}::bigint)"), "1")?;
        let copies = site.copies(&move_id, "t")?;
        let shown = plan(&mut client, &format!("SELECT v FROM t WHERE id = {key}"))?;
        let list = copies
            .iter()
            .find(|(_, keys)| keys.contains(&key))
            .map(|(name, _)| name.clone())
            .unwrap_or_default();
        assert!(shown.contains(list.trim_start_matches("foreshard.")), "{list}: {shown}");
        for pruning in ["on", "off"] {
            client.exec(&format!(
                "SET enable_partition_pruning = {pruning}; SET foreshard.direct_lookups = {pruning}"
            ))?;
            for key in 1..=20 {
                for sql in [
                    format!("SELECT v FROM t WHERE id = {key}"),
                    format!("SELECT sum(n), count(*) FROM t WHERE id IN ({key}, 5, 6)"),
                ] {
                    assert_eq!(answer(&mut client, &sql)?, in_twin(&mut client, &sql)?, "{sql}");
                }
            }
        }
        site.finish(&move_id)?;
    }
    Ok(())
}
