//! The canary: reads of a moving slot run on its copy, whatever the plan, and give what they gave; what must not
//! be routed is not; a copy that differs, fails or serves worse is never swapped in, or swapped back.

mod common;

use common::{Server, options};
use foreshard_test::{Client, Error, Result, wait_until};
use std::time::{Duration, Instant};

/// `t` is managed, `w` colocated with it; the schema `twin` holds the same rows in ordinary tables.
const SETUP: &str = "
    CREATE TABLE t (id bigint PRIMARY KEY, v text, gone int, n int NOT NULL);
    ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
    INSERT INTO t SELECT g, repeat('v' || g, g % 5 * 300), g, g % 100 FROM generate_series(1, 6000) g;
    ALTER TABLE t DROP COLUMN gone;
    ALTER TABLE t ADD COLUMN late text DEFAULT 'late';
    CREATE INDEX t_n ON t (n);
    CREATE INDEX t_v ON t (md5(v)) WHERE n > 10;
    CREATE SCHEMA twin; CREATE TABLE twin.t AS TABLE t;
    CREATE TABLE w (t_id bigint PRIMARY KEY, m int);
    INSERT INTO w SELECT g, g % 9 FROM generate_series(1, 6000) g; CREATE TABLE twin.w AS TABLE w;
    SELECT foreshard.distribute('t', 'id', 4);
    SELECT foreshard.distribute('w', 't_id', colocate_with => 't');
    VACUUM ANALYZE t; VACUUM ANALYZE w; ANALYZE twin.t; ANALYZE twin.w;";

struct Site {
    server: Server,
    slot: String,
}

impl Site {
    fn new(name: &str) -> Result<Site> {
        let options = options(name).set("foreshard.canary_steps", "50").set("foreshard.canary_dwell", "300");
        let mut server = Server::start(&options)?;
        for statement in SETUP.split_inclusive(';') {
            server.query(statement)?;
        }
        let slot = server.slots("t")?[0].clone();
        Ok(Site { server, slot })
    }

    /// A move whose copy serves this share of the reads.
    fn routed(&mut self, weight: &str) -> Result<String> {
        self.server.hold(Some("verify"))?;
        let move_id = self.server.move_slot(&self.slot)?;
        self.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, {weight})"))?;
        self.server.hold(None)?;
        self.weighs(&move_id, weight)?;
        Ok(move_id)
    }

    fn weighs(&mut self, move_id: &str, weight: &str) -> Result<()> {
        self.server.wait_query(
            &format!("SELECT phase || weight FROM foreshard.progress_moves WHERE move_id = {move_id}"),
            &format!("canary{weight}"),
        )
    }

    /// Lets the canary go on by itself.
    fn finish(&mut self, move_id: &str) -> Result<()> {
        self.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
        self.server.wait_end(move_id, "done")?;
        self.server.assert_settled()
    }

    fn client(&self) -> Result<Client> {
        Ok(self.server.cluster.connect("postgres")?)
    }

    /// A key of the slot.
    fn key(&mut self, n: usize) -> Result<String> {
        let partition = self.partition()?;
        self.server.query(&format!("SELECT id FROM {partition} ORDER BY id OFFSET {n} LIMIT 1"))
    }

    fn partition(&mut self) -> Result<String> {
        let slot = &self.slot;
        self.server.query(&format!(
            "SELECT partition FROM foreshard.slots WHERE slot_id = {slot} AND \"table\" = 't'::regclass"
        ))
    }
}

fn last_line(client: &mut Client, sql: &str) -> Result<String> {
    Ok(client.exec(sql)?.to_text())
}

fn in_twin(client: &mut Client, sql: &str) -> Result<String> {
    client.exec("SET search_path = twin")?;
    let found = last_line(client, sql)?;
    client.exec("RESET search_path")?;
    Ok(found)
}

fn plan(client: &mut Client, sql: &str) -> Result<String> {
    Ok(client.exec(&format!("EXPLAIN (COSTS off) {sql}"))?.to_text())
}

/// (settings, query, a word of its plan); KEY stands for a key of the slot.
const READS: [(&str, &str, &str); 16] = [
    ("", "SELECT id, v, late FROM t WHERE id = KEY", "Index Scan"),
    (
        "SET enable_indexscan = off; SET enable_bitmapscan = off",
        "SELECT sum(n), count(v), max(late) FROM t ",
        "Seq Scan",
    ),
    ("SET enable_seqscan = off", "SELECT count(*) FROM t WHERE id > 0", "Index Only Scan"),
    (
        "SET enable_seqscan = off; SET enable_indexscan = off",
        "SELECT md5(string_agg(v, '' ORDER BY id)) FROM t WHERE n = 7 OR id < 60",
        "BitmapOr",
    ),
    ("SET enable_seqscan = off", "SELECT count(*) FROM t WHERE md5(v) > '7' AND n > 10", "shadow"),
    ("", "SELECT md5(string_agg(q::text, ',' ORDER BY id)) FROM t AS q", "shadow"),
    (
        "SET enable_partitionwise_join = on; SET enable_hashjoin = off; SET enable_nestloop = off",
        "SELECT sum(t.n * w.m) FROM t , w WHERE t.id = w.t_id",
        "Merge Join",
    ),
    (
        "SET enable_partitionwise_join = on; SET enable_mergejoin = off; SET enable_nestloop = off",
        "SELECT sum(t.n * w.m) FROM t , w WHERE t.id = w.t_id",
        "Hash Join",
    ),
    (
        "SET enable_hashjoin = off; SET enable_mergejoin = off",
        "SELECT sum(t.n * w.m) FROM t , w WHERE t.id = w.t_id AND w.m = 3",
        "Nested Loop",
    ),
    (
        "SET enable_memoize = off; SET enable_hashjoin = off; SET enable_mergejoin = off",
        "SELECT count(*) FROM generate_series(1, 500) g LEFT JOIN t ON t.id = g.g WHERE t.n > 3",
        "shadow",
    ),
    ("", "SELECT count(*) FROM w WHERE EXISTS (SELECT FROM t WHERE t.id = w.t_id AND t.n < 5)", "shadow"),
    ("", "SELECT (SELECT t.v FROM t WHERE t.id = KEY), count(*) FROM w ", "InitPlan"),
    (
        "",
        "WITH q AS MATERIALIZED (SELECT * FROM t WHERE n < 50) SELECT sum(q.n), count(*) FROM q JOIN w ON w.t_id = q.id",
        "CTE",
    ),
    (
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 3",
        "SELECT sum(n), count(DISTINCT id), max(md5(v)) FROM t ",
        "Gather",
    ),
    (
        "SET enable_seqscan = off; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_index_scan_size = 0; SET min_parallel_table_scan_size = 0",
        "SELECT count(*), sum(n) FROM t WHERE n BETWEEN 20 AND 60",
        "shadow",
    ),
    (
        "",
        "SELECT id, n, row_number() OVER (PARTITION BY n ORDER BY id) FROM t WHERE n < 3 ORDER BY n, id LIMIT 20",
        "shadow",
    ),
];

#[test]
fn every_kind_of_plan_reads_the_copy() -> Result<()> {
    let mut site = Site::new("canary-plans")?;
    let key = site.key(3)?;
    let mut before = site.client()?;
    before.prepare("generic", "SELECT v FROM t WHERE id = $1")?;
    before.exec("SET plan_cache_mode = force_generic_plan")?;
    before.exec_prepared("generic", &[Some(&key)])?;
    let move_id = site.routed("1")?;
    for (settings, sql, word) in READS {
        let mut client = site.client()?;
        client.exec(settings)?;
        let sql = sql.replace("KEY", &key);
        let shown = plan(&mut client, &sql)?;
        assert!(shown.contains("shadow_") && shown.contains(word), "{sql}:\n{shown}");
        // The leaves of the other slots are read as ever.
        let (routed, expected) = (last_line(&mut client, &sql)?, in_twin(&mut client, &sql)?);
        assert_eq!(routed, expected, "{sql}");
        let analyzed = client.exec(&format!("EXPLAIN (ANALYZE, COSTS off) {sql}"))?.to_text();
        assert!(analyzed.contains("shadow_"), "{analyzed}");
    }
    // Some are made again on the other copy.
    for _ in 0..200 {
        before.exec_prepared("generic", &[Some(&key)])?;
    }
    // A generic plan that was made before the move: it is chosen at execution.
    let wanted = site.server.query(&format!("SELECT v FROM twin.t WHERE id = {key}"))?;
    for mode in ["force_generic_plan", "force_custom_plan"] {
        before.exec(&format!("SET plan_cache_mode = {mode}"))?;
        assert_eq!(before.exec_prepared("generic", &[Some(&key)])?.to_text(), wanted, "{mode}");
        let shown = last_line(&mut before, &format!("EXPLAIN EXECUTE generic({key})"))?;
        assert!(shown.contains("shadow_"), "{mode}: {shown}");
    }
    // Statements inside functions, and a cursor that outlives the canary's weight.
    before.exec(
        "CREATE FUNCTION f(k bigint) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT v FROM t WHERE id = k); END $$",
    )?;
    assert_eq!(before.query_one(&format!("SELECT f({key})"))?, wanted);
    before.exec("BEGIN; DECLARE c CURSOR FOR SELECT id, n FROM t ; FETCH 10 FROM c")?;
    site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, 0)"))?;
    site.weighs(&move_id, "0")?;
    assert!(!plan(&mut site.client()?, "SELECT * FROM t ")?.contains("shadow_"));
    assert_eq!(before.exec("FETCH ALL FROM c")?.len(), 5990);
    before.exec("COMMIT")?;
    let routed = "SELECT (detail ->> 'reads')::int > 30 AND (detail ->> 'compared')::int > 0 \
                  AND detail ->> 'differed' = '0' FROM foreshard.history WHERE event = 'canary' AND detail ? 'routed'";
    site.finish(&move_id)?;
    assert_eq!(site.server.query(routed)?, "t");
    Ok(())
}

#[test]
fn what_must_not_be_routed_is_not() -> Result<()> {
    let mut site = Site::new("canary-not")?;
    let key = site.key(5)?;
    let leaf = site.partition()?;
    let mut old = site.client()?;
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM twin.t")?;
    site.server.hold(Some("verify"))?;
    let move_id = site.server.move_slot(&site.slot)?;
    site.server.wait_phase(&move_id, "verify")?;
    site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, 1)"))?;
    site.server.hold(None)?;
    site.weighs(&move_id, "1")?;
    let row = format!("SELECT v, n FROM t WHERE id = {key}");
    let mut client = site.client()?;
    assert!(plan(&mut client, &row)?.contains("shadow_"));
    // A snapshot that is older than what the carrier wrote sees the copy without it.
    assert!(!plan(&mut old, &row)?.contains("shadow_"), "old snapshot");
    assert_eq!(old.query_one("SELECT count(*) FROM t ")?, "6000");
    old.exec("COMMIT")?;
    for sql in [
        format!("{row} FOR UPDATE"),
        format!("{row} FOR KEY SHARE"),
        format!("SELECT * FROM {leaf} WHERE id = {key}"),
        format!("SELECT t.*, q.n FROM t JOIN {leaf} q ON q.id = t.id WHERE t.id = {key}"),
        format!("SELECT ctid FROM t WHERE id = {key}"),
        format!("SELECT n FROM t WHERE id = {key} AND tableoid > 0"),
        format!("SELECT xmin, v FROM t WHERE id = {key}"),
        "SELECT count(*) FROM t TABLESAMPLE SYSTEM (50)".to_string(),
        format!("UPDATE t SET n = n WHERE id = {key}"),
        format!("WITH q AS (DELETE FROM t WHERE id = 0 RETURNING n) SELECT * FROM q, t WHERE t.id = {key}"),
    ] {
        assert!(!plan(&mut client, &sql)?.contains("shadow_"), "{sql}");
    }
    client.exec("BEGIN; DECLARE c CURSOR FOR SELECT * FROM t ; FETCH 5 FROM c; UPDATE t SET n = n WHERE CURRENT OF c; ROLLBACK")?;
    client.exec("BEGIN ISOLATION LEVEL SERIALIZABLE")?;
    assert!(!plan(&mut client, &row)?.contains("shadow_"), "serializable");
    client.exec("ROLLBACK; BEGIN")?;
    assert!(plan(&mut client, &row)?.contains("shadow_"), "nothing written yet");
    client.exec(&format!("UPDATE t SET n = 4711 WHERE id = {key}"))?;
    assert!(!plan(&mut client, &row)?.contains("shadow_"), "written");
    assert_eq!(client.query_one(&format!("SELECT n FROM t WHERE id = {key}"))?, "4711", "its own change");
    client.exec("COMMIT")?;
    assert!(plan(&mut client, &row)?.contains("shadow_"), "committed");
    assert_eq!(client.query_one(&format!("SELECT n FROM t WHERE id = {key}"))?, "4711", "mirrored");
    site.finish(&move_id)
}

/// DDL that changes what the partition is: nobody reads what the copy still has.
#[test]
fn ddl_closes_the_route_at_once() -> Result<()> {
    let mut site = Site::new("canary-ddl")?;
    for (ddl, sql, wanted) in [
        ("ALTER TABLE t ADD COLUMN extra int DEFAULT 5", "SELECT sum(extra) FROM t ", "30000"),
        ("ALTER TABLE t ALTER COLUMN n TYPE bigint", "SELECT sum(n) FROM t ", "297000"),
        ("ALTER TABLE t DROP COLUMN late", "SELECT count(*) FROM t WHERE n >= 0", "6000"),
        ("ALTER TABLE t_s0 DISABLE TRIGGER ALL; UPDATE t SET n = 7", "SELECT sum(n) FROM t ", "42000"),
        ("TRUNCATE t", "SELECT count(*) FROM t ", "0"),
    ] {
        let move_id = site.routed("1")?;
        let mut client = site.client()?;
        client.exec(ddl)?;
        for _ in 0..20 {
            assert_eq!(client.query_one(sql)?, wanted, "{ddl}");
        }
        site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
        site.server.wait_end(&move_id, "done")?;
        assert_eq!(client.query_one(sql)?, wanted, "after {ddl}");
    }
    site.server.assert_clean()
}

/// Readers under half a weight while writers keep a sum: every snapshot sees it, whichever copy it reads.
#[test]
fn every_snapshot_is_consistent() -> Result<()> {
    let mut site = Site::new("canary-sum")?;
    site.server.query("UPDATE t SET n = 100")?;
    let move_id = site.routed("0.5")?;
    let until = Instant::now() + Duration::from_secs(8);
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let mut client = site.client()?;
            Ok(std::thread::spawn(move || -> Result<u64> {
                let mut done = 0;
                while Instant::now() < until {
                    if number % 2 == 0 {
                        transfer(&mut client, number * 7919 + done)?;
                    } else {
                        check_sum(&mut client, number == 3)?;
                    }
                    done += 1;
                }
                Ok(done)
            }))
        })
        .collect::<Result<_>>()?;
    // The canary takes its own steps while everybody goes on.
    std::thread::sleep(Duration::from_secs(6));
    site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
    for thread in threads {
        let done = thread.join().map_err(|_| Error::new("A client failed.", ""))??;
        assert!(done > 20, "{done} rounds");
    }
    site.server.wait_end(&move_id, "done")?;
    let summary = "SELECT (detail->>'reads')::int > 50 AND (detail->'stayed'->>'statements')::int > 50 \
                     AND (detail->>'compared')::int > 5 AND detail->>'differed' = '0' \
                   FROM foreshard.history WHERE event = 'canary' AND detail ? 'compared'";
    assert_eq!(site.server.query(summary)?, "t");
    site.server.assert_settled()
}

/// Moves one between two rows, checking that it reads what it wrote.
fn transfer(client: &mut Client, seed: u64) -> Result<()> {
    let (a, b) = (seed * 31 % 6000 + 1, seed * 17 % 6000 + 1);
    let (first, second) = (a.min(b), a.max(b));
    if first == second {
        return Ok(());
    }
    client.exec(&format!("BEGIN; UPDATE t SET n = n - 1 WHERE id = {first}"))?;
    let n = client.query_one(&format!("UPDATE t SET n = n + 1 WHERE id = {second} RETURNING n"))?;
    client.exec("COMMIT")?;
    let now: i64 = client.query_one(&format!("SELECT n FROM t WHERE id = {second}"))?.parse().unwrap_or(-1);
    // The other writer may have been there in between.
    assert!((now - n.parse::<i64>().unwrap_or(0)).abs() <= 50, "{now} after writing {n}");
    Ok(())
}

fn check_sum(client: &mut Client, repeatable: bool) -> Result<()> {
    if repeatable {
        client.exec("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    }
    for settings in ["SET enable_seqscan = on", "SET enable_seqscan = off"] {
        client.exec(settings)?;
        assert_eq!(client.query_one("SELECT sum(n) FROM t WHERE id > 0")?, "600000");
        client.exec("SELECT v FROM t WHERE n = 100 AND id < 300; SELECT n FROM t WHERE id = 17")?;
    }
    if repeatable {
        client.exec("COMMIT")?;
    }
    Ok(())
}

/// A row of the copy that is changed, missing or too many is found by the reads that go there or could.
#[test]
fn a_difference_ends_the_move() -> Result<()> {
    let mut site = Site::new("canary-differs")?;
    let key = site.key(9)?;
    for (n, damage) in [
        format!("UPDATE SHADOW SET v = v || 'x' WHERE id = {key}"),
        format!("DELETE FROM SHADOW WHERE id = {key}"),
        format!("INSERT INTO SHADOW SELECT 999999, v, n FROM SHADOW WHERE id = {key}"),
    ]
    .iter()
    .enumerate()
    {
        let move_id = site.routed("0.5")?;
        let partition = site.partition()?;
        let shadow = site.server.query(&format!(
            "SELECT shadow::regclass FROM foreshard.move_relation WHERE move_id = {move_id} AND source = '{partition}'::regclass"
        ))?;
        site.server.query(&damage.replace("SHADOW", &shadow))?;
        let mut client = site.client()?;
        client.prepare("get", "SELECT v FROM t WHERE id = $1")?;
        // An extra row is met by a look-up of what is around it.
        client.exec("SET enable_seqscan = off; SET jit = off")?;
        let nearby = "SELECT id FROM t WHERE n = (SELECT n FROM twin.t WHERE id = $1)";
        client.prepare("near", nearby)?;
        wait_until("the difference is found", Duration::from_secs(20), || {
            for _ in 0..50 {
                client.exec_prepared(if n == 2 { "near" } else { "get" }, &[Some(&key)])?;
            }
            let sql = format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}");
            Ok(site.server.query(&sql)? == "t")
        })?;
        assert_eq!(site.server.phase(&move_id)?, "failed", "{damage}");
        let named = format!(
            "SELECT count(*) FROM foreshard.history WHERE event = 'mismatch' AND move_id = {move_id} AND detail::text ~ '{}'",
            if n == 2 { "999999" } else { &key }
        );
        assert_eq!(site.server.query(&named)?, "1", "{damage}");
        assert_eq!(site.server.query("SELECT count(*) FROM (TABLE t EXCEPT TABLE twin.t) q")?, "0");
        site.server.assert_settled()?;
    }
    Ok(())
}

/// Whoever cannot mirror closes the route before it commits: the next read sees what was committed.
#[test]
fn who_cannot_mirror_closes_the_route() -> Result<()> {
    let mut site = Site::new("canary-closed")?;
    let key = site.key(11)?;
    let move_id = site.routed("1")?;
    let kind = |from: char, to: char| {
        format!(
            "UPDATE pg_class SET relkind = '{to}' WHERE relkind = '{from}' AND oid IN \
               (SELECT shadow_index FROM foreshard.move_index WHERE move_id = {move_id})"
        )
    };
    site.server.query(&kind('i', 'S'))?;
    let mut client = site.client()?;
    client.exec(&format!("UPDATE t SET n = 77 WHERE id = {key}"))?;
    site.server.query(&kind('S', 'i'))?;
    for _ in 0..50 {
        assert_eq!(client.query_one(&format!("SELECT n FROM t WHERE id = {key}"))?, "77");
    }
    site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
    site.server.wait_end(&move_id, "done")?;
    let stepped_back = format!(
        "SELECT count(*) > 0 FROM foreshard.history WHERE move_id = {move_id} AND detail ->> 'from' = 'canary' AND detail ->> 'to' = 'catch_up'"
    );
    assert_eq!(site.server.query(&stepped_back)?, "t");
    site.server.assert_settled()
}

/// Looks keys of the slot and others up until told otherwise; a statement takes as long as the table `slow` says.
fn reads(site: &mut Site, until: impl Fn(&mut Server) -> Result<bool>) -> Result<()> {
    let mut client = site.client()?;
    client.prepare("on", "SELECT v, delay('slot') FROM t WHERE id = $1")?;
    client.prepare("off", "SELECT m, delay('others') FROM twin.w WHERE t_id = $1")?;
    let key = site.key(20)?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        for _ in 0..40 {
            client.exec_prepared("on", &[Some(&key)])?;
            client.exec_prepared("off", &[Some(&key)])?;
        }
        if until(&mut site.server)? {
            return Ok(());
        }
    }
    Err(Error::new("Nothing happened for 30 s.", ""))
}

/// Statements on the slot become slower after the swap: it is undone. The whole machine becomes slower: it is not.
#[test]
fn a_regression_swaps_back() -> Result<()> {
    let mut site = Site::new("canary-regression")?;
    site.server.set(&[("foreshard.rollback_window", "600")])?;
    site.server.query(
        "CREATE INDEX ON twin.w (t_id); CREATE TABLE slow (what text, s float8); INSERT INTO slow VALUES ('slot', 0.0002), ('others', 0.0002); \
         CREATE FUNCTION delay(w text) RETURNS void LANGUAGE sql VOLATILE AS 'SELECT pg_sleep(s) FROM slow WHERE what = w'",
    )?;
    for (slow, undone) in [("what <> ''", false), ("what = 'slot'", true)] {
        site.server.query("UPDATE slow SET s = 0.0002")?;
        let move_id = site.routed("0")?;
        let begun = Instant::now();
        reads(&mut site, |_| Ok(begun.elapsed() > Duration::from_secs(2)))?;
        site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
        site.server
            .wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"), "watch")?;
        site.server.query(&format!("UPDATE slow SET s = 0.004 WHERE {slow}"))?;
        if undone {
            let ended = format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}");
            reads(&mut site, |server| Ok(server.query(&ended)? == "t"))?;
            assert_eq!(site.server.phase(&move_id)?, "cancelled");
            let why = format!(
                "SELECT detail ->> 'reason' FROM foreshard.history WHERE event = 'regression' AND move_id = {move_id}"
            );
            let why = site.server.query(&why)?;
            assert!(why.contains("slower than before the move"), "{why}");
        } else {
            let begun = Instant::now();
            reads(&mut site, |_| Ok(begun.elapsed() > Duration::from_secs(5)))?;
            assert_eq!(site.server.phase(&move_id)?, "watch", "everybody is slower");
            site.server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?;
            site.server.wait_end(&move_id, "cancelled")?;
        }
        assert_eq!(site.server.query("SELECT count(*) FROM (TABLE t EXCEPT TABLE twin.t) q")?, "0");
    }
    site.server.assert_settled()
}

#[test]
fn weights_are_checked() -> Result<()> {
    let mut site = Site::new("canary-weights")?;
    for bad in ["1.01", "-0.1", "'NaN'"] {
        assert_eq!(
            site.server.fails(&format!("SELECT foreshard.set_route_weight(1, {bad})"))?.sqlstate,
            "22023"
        );
    }
    assert_eq!(site.server.fails("SELECT foreshard.set_route_weight(999, 0.5)")?.sqlstate, "42704");
    let error = site.server.fails("ALTER SYSTEM SET foreshard.canary_steps = '5, x'")?;
    assert!(error.sqlstate == "22023" && error.to_string().contains("\"x\""), "{error}");
    let move_id = site.server.move_slot(&site.slot)?;
    site.server.wait_end(&move_id, "done")?;
    assert_eq!(site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, 0.5)"))?, "f");
    site.server.assert_settled()
}
