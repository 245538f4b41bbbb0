//! What measured statements and triggers cost is charged to the slots that caused it: many kinds of plans and of
//! statements, each with a truth that is known by other means.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use std::time::Duration;
use support::{cluster, database, wait_for, wait_watched};

fn options(name: &str) -> ClusterOptions {
    ClusterOptions::new(name)
        .set("foreshard.bucket", "1s")
        .set("foreshard.plan_interval", "3600s")
        .set("foreshard.statement_sample_interval", "1")
        .set("foreshard.trigger_sample_interval", "1")
        .set("foreshard.key_sample_interval", "1")
        .set("foreshard.hot_slot_threshold", "1e9")
        .set("foreshard.observe_budget", "100")
        .set("track_functions", "all")
        .set("autovacuum", "off")
        .set("jit", "off")
}

/// Slots of every table.
const SLOTS: usize = 4;

/// Tables of one layout, with their rows. `many` has few keys with many rows each.
const TABLES: &str = "\
CREATE TABLE probe (id bigint PRIMARY KEY, v int); INSERT INTO probe SELECT g, g FROM generate_series(1, 4000) g; \
CREATE TABLE skew (LIKE probe INCLUDING ALL); CREATE TABLE cte (LIKE probe INCLUDING ALL); \
CREATE TABLE one (LIKE probe INCLUDING ALL); CREATE TABLE two (LIKE probe INCLUDING ALL); \
CREATE TABLE moved (LIKE probe INCLUDING ALL); INSERT INTO moved TABLE probe; \
CREATE TABLE little (LIKE probe INCLUDING ALL); INSERT INTO little SELECT g, g FROM generate_series(1, 100) g; \
CREATE TABLE stated (LIKE probe INCLUDING ALL); CREATE TABLE before (LIKE probe INCLUDING ALL); \
CREATE TABLE vain (LIKE probe INCLUDING ALL); CREATE TABLE caught (LIKE probe INCLUDING ALL); \
CREATE TABLE read (LIKE probe INCLUDING ALL); INSERT INTO read SELECT g, g FROM generate_series(1, 40000) g; \
CREATE TABLE spared (LIKE probe INCLUDING ALL); INSERT INTO spared TABLE read; \
CREATE TABLE joined (LIKE probe INCLUDING ALL); INSERT INTO joined TABLE read; \
CREATE TABLE partner (LIKE probe INCLUDING ALL); INSERT INTO partner TABLE read; \
CREATE TABLE many (id bigint NOT NULL, v int); INSERT INTO many SELECT g % 8, g FROM generate_series(1, 80000) g; \
CREATE TABLE parent (LIKE probe INCLUDING ALL); INSERT INTO parent TABLE probe; \
CREATE TABLE child (parent_id bigint REFERENCES parent ON DELETE CASCADE, no int, PRIMARY KEY (parent_id, no)); \
INSERT INTO child SELECT p, n FROM generate_series(1, 12) p, generate_series(1, 400) n; \
CREATE TABLE plain AS SELECT g AS id, g AS v FROM generate_series(1, 60000) g; \
CREATE FUNCTION burn() RETURNS trigger LANGUAGE plpgsql AS $$ \
DECLARE x bigint := 0; BEGIN FOR i IN 1 .. TG_ARGV[0]::int LOOP x := x + i % 7; END LOOP; RETURN NEW; END $$; \
CREATE FUNCTION suppress() RETURNS trigger LANGUAGE plpgsql AS $$ \
BEGIN IF NEW.v = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$; \
CREATE FUNCTION catch() RETURNS trigger LANGUAGE plpgsql AS $$ \
BEGIN PERFORM 1 / (NEW.v - NEW.v); RETURN NEW; EXCEPTION WHEN division_by_zero THEN RETURN NULL; END $$";

const MANAGED: [&str; 16] = [
    "caught", "probe", "skew", "cte", "one", "two", "moved", "little", "stated", "before", "vain", "read",
    "spared", "joined", "many", "parent",
];

/// A database with all of that.
fn prepared(cluster: &Cluster) -> Result<Client> {
    let mut c = database(cluster, "d")?;
    c.exec(TABLES)?;
    for table in MANAGED {
        c.exec(&format!("SELECT foreshard.distribute('{table}', 'id', {SLOTS})"))?;
    }
    c.exec("SELECT foreshard.distribute('partner', 'id', colocate_with => 'joined')")?;
    c.exec("SELECT foreshard.distribute('child', 'parent_id', colocate_with => 'parent')")?;
    c.exec(
        "CREATE TRIGGER stated AFTER INSERT ON stated FOR EACH STATEMENT EXECUTE FUNCTION burn('20000'); \
         CREATE TRIGGER skew AFTER INSERT ON skew FOR EACH ROW EXECUTE FUNCTION burn('6000'); \
         CREATE TRIGGER vain BEFORE INSERT ON vain FOR EACH ROW EXECUTE FUNCTION suppress(); \
         CREATE TRIGGER caught AFTER INSERT ON caught FOR EACH ROW EXECUTE FUNCTION catch(); \
         CREATE TRIGGER before BEFORE INSERT ON before FOR EACH ROW EXECUTE FUNCTION burn('1'); ANALYZE",
    )?;
    wait_watched(&mut c, (MANAGED.len() as u32 + 2) * (SLOTS as u32 + 1))?;
    Ok(c)
}

/// Keys by the remainder of their slot, the same for all of these tables.
fn keys(c: &mut Client) -> Result<Vec<Vec<i64>>> {
    let rows = c.exec(
        "SET foreshard.observe = off; SELECT s.remainder, p.id FROM probe p JOIN foreshard.slots s ON s.partition = p.tableoid ORDER BY 1, 2",
    )?;
    c.exec("RESET foreshard.observe")?;
    let mut keys = vec![Vec::new(); SLOTS];
    for row in 0..rows.len() {
        if let (Some(slot), Some(key)) = (rows.parse::<usize>(row, "remainder"), rows.parse(row, "id")) {
            keys[slot].push(key);
        }
    }
    Ok(keys)
}

fn number(c: &mut Client, sql: &str) -> Result<f64> {
    Ok(c.query_one(sql)?.parse().unwrap_or(f64::NAN))
}

/// What was measured of the slots of a table, by remainder.
fn measured(c: &mut Client, table: &str, column: &str) -> Result<Vec<f64>> {
    let rows = c.exec(&format!(
        "SELECT coalesce(sum(m.{column}), 0) AS v FROM foreshard.slots s LEFT JOIN foreshard.slot_cost m \
           ON m.slot_id = s.slot_id AND m.table_oid = '{table}'::regclass \
         WHERE s.\"table\" = '{table}'::regclass GROUP BY s.remainder ORDER BY s.remainder"
    ))?;
    Ok((0..rows.len()).filter_map(|row| rows.parse(row, "v")).collect())
}

/// What heat says of the slots of a table since a moment, all buckets together, by remainder.
fn heat(c: &mut Client, table: &str, column: &str, since: &str) -> Result<Vec<f64>> {
    let rows = c.exec(&format!(
        "SELECT coalesce(sum(h.{column}), 0) AS v FROM foreshard.slots s LEFT JOIN foreshard.heat_history h \
           ON h.slot_id = s.slot_id AND h.resolution_s = 1 AND h.bucket_at > '{since}'::timestamptz \
         WHERE s.\"table\" = '{table}'::regclass GROUP BY s.remainder ORDER BY s.remainder"
    ))?;
    Ok((0..rows.len()).filter_map(|row| rows.parse(row, "v")).collect())
}

fn list(keys: &[i64]) -> String {
    keys.iter().map(|key| format!("({key})")).collect::<Vec<_>>().join(", ")
}

#[track_caller]
fn near(what: &str, got: f64, truth: f64, share: f64) {
    println!("{what}: {got:.3}, in truth {truth:.3}");
    assert!((got - truth).abs() <= truth.abs() * share, "{what}: {got}, in truth {truth}");
}

/// Processor time of a connection's backend, ms.
fn cpu_ms(client: &Client) -> f64 {
    let text =
        std::fs::read_to_string(format!("/proc/{}/schedstat", client.backend_pid())).unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e6
}

#[test]
fn costs_go_where_they_are_caused() -> Result<()> {
    let cluster = cluster(&options("attribution"))?;
    let mut c = prepared(&cluster)?;
    let keys = keys(&mut c)?;
    rows_are_written(&mut c, &keys)?;
    let alien_ms = other_work(&mut c)?;
    // Time that is not CPU, and blocks that are no table's.
    c.exec("SELECT pg_sleep(0.05) FROM little WHERE id <= 8")?;
    c.exec("SET work_mem = '64kB'; SELECT count(*) FROM (SELECT * FROM read ORDER BY v OFFSET 0) q; RESET work_mem")?;
    statement_triggers(&mut c, &keys)?;
    built_in_triggers(&mut c)?;
    what_errors_and_cursors_leave(&mut c)?;
    a_session_is_left_alone(&cluster, &mut c)?;
    c.exec("INSERT INTO before SELECT g, g FROM generate_series(1, 500) g")?;
    c.exec("INSERT INTO caught SELECT g, g FROM generate_series(1, 200) g")?;
    heat_is_true(&mut c, &keys)?;
    // Sums are stored every ten seconds.
    wait_for(&mut c, "SELECT count(*) > 0 FROM foreshard.slot_cost WHERE table_oid = 'many'::regclass", "t")?;
    rows_were_written(&mut c)?;
    near("time slept", measured(&mut c, "little", "elapsed_ms")?.iter().sum(), 400.0, 0.25);
    let temporary: f64 = measured(&mut c, "read", "temp_blocks")?.iter().sum();
    assert!(temporary > 100.0, "{temporary} temporary blocks of a sort on disk");
    let shown = "SELECT bool_and(elapsed_ms > 0 AND rows_written > 0 AND wal_bytes > 0 AND blocks_dirtied > 0) FROM foreshard.slot_costs \
        WHERE \"table\" = 'two'::regclass AND rows_written > 0";
    assert_eq!(c.query_one(shown)?, "t");
    let own_ms: f64 = measured(&mut c, "little", "read_cpu_ms")?.iter().sum();
    assert!(own_ms > 0.0 && own_ms < alien_ms * 0.25, "{own_ms} of {alien_ms} ms that others took");
    statement_triggers_were_charged(&mut c)?;
    built_in_triggers_were_charged(&mut c)?;
    let spared: f64 = measured(&mut c, "spared", "read_cpu_ms")?.iter().sum();
    assert_eq!(spared, 0.0, "workers of a statement that is not measured measure nothing");
    let rows = |of: &str| {
        format!("SELECT mean_statement_rows FROM foreshard.trigger_profile WHERE trigger_name = '{of}'")
    };
    wait_for(&mut c, &rows("before"), "1")?;
    // An error that a call caught has not ended the statement around it.
    wait_for(&mut c, &rows("caught"), "200")
}

/// Statements whose rows go to several leaves, tables or nodes of a plan.
fn rows_are_written(c: &mut Client, keys: &[Vec<i64>]) -> Result<()> {
    c.exec(&format!("INSERT INTO one SELECT k, 1 FROM (VALUES {}) v (k)", list(&keys[0][..90])))?;
    c.exec(&format!(
        "INSERT INTO two SELECT k, 1 FROM (VALUES {}, {}) v (k)",
        list(&keys[0][..180]),
        list(&keys[2][..20])
    ))?;
    c.exec(&format!(
        "WITH d AS (INSERT INTO cte SELECT k, 1 FROM (VALUES {}) v (k) RETURNING 1) SELECT count(*) FROM d",
        list(&keys[1][..70])
    ))?;
    // Two nodes, each with rows of its own.
    c.exec(&format!(
        "WITH d AS (INSERT INTO cte SELECT k, 2 FROM (VALUES {}) v (k) RETURNING 1) \
         INSERT INTO one SELECT k, 2 FROM (VALUES {}) v (k)",
        list(&keys[3][..30]),
        list(&keys[1][..10])
    ))?;
    // Rows that a trigger suppresses are not written: all of a statement's, and some.
    c.exec(&format!("INSERT INTO vain SELECT k, 0 FROM (VALUES {}) v (k)", list(&keys[0][..60])))?;
    c.exec(&format!(
        "INSERT INTO vain SELECT k, CASE WHEN k = ANY ('{{{}}}') THEN 0 ELSE 1 END FROM (VALUES {}) v (k)",
        keys[2][20..50].iter().map(i64::to_string).collect::<Vec<_>>().join(","),
        list(&keys[2][..50])
    ))?;
    // From slot 0 to slot 1 and to slot 0 itself, which is no move.
    let (from, to) = (keys[0][3], keys[1][2] + 1_000_000);
    let to = (to..).find(|key| slot_of(c, *key).is_ok_and(|slot| slot == 1)).unwrap_or(to);
    c.exec(&format!("UPDATE moved SET id = {to} WHERE id = {from}"))?;
    c.exec(&format!("UPDATE moved SET v = 0 WHERE id IN ({}, {})", keys[2][0], keys[2][1]))?;
    Ok(())
}

/// Remainder of the slot that a key belongs to.
fn slot_of(c: &mut Client, key: i64) -> Result<usize> {
    c.exec(&format!("BEGIN; SET LOCAL foreshard.observe = off; INSERT INTO probe VALUES ({key}, 0)"))?;
    let slot = c.query_one(&format!(
        "SELECT s.remainder FROM probe p JOIN foreshard.slots s ON s.partition = p.tableoid WHERE p.id = {key}"
    ))?;
    c.exec("ROLLBACK")?;
    Ok(slot.parse().unwrap_or(usize::MAX))
}

fn rows_were_written(c: &mut Client) -> Result<()> {
    for (table, truth) in [
        ("one", [90.0, 10.0, 0.0, 0.0]),
        ("two", [180.0, 0.0, 20.0, 0.0]),
        ("cte", [0.0, 70.0, 0.0, 30.0]),
        ("moved", [1.0, 1.0, 2.0, 0.0]),
        ("vain", [0.0, 0.0, 20.0, 0.0]),
    ] {
        let rows = measured(c, table, "rows_written")?;
        let alike = rows.iter().zip(truth).all(|(got, truth)| (got - truth).abs() <= truth * 0.01);
        assert!(alike, "rows written to {table}: {rows:?}, in truth {truth:?}");
    }
    let wal = measured(c, "two", "wal_bytes")?;
    near("WAL of a ninth of the rows", wal[2] / wal[0], 1.0 / 9.0, 0.01);
    Ok(())
}

/// Statements that do nearly everything elsewhere; what they took, ms of CPU.
fn other_work(c: &mut Client) -> Result<f64> {
    let sql = "SELECT (SELECT v FROM little WHERE id = 5), (SELECT count(*) FROM plain WHERE v % 7 = 3)";
    c.exec(sql)?;
    let before = cpu_ms(c);
    (0..20).try_for_each(|_| c.exec(sql).map(drop))?;
    Ok(cpu_ms(c) - before)
}

/// Thirty statements, each with eight rows, half of them in slot 0.
fn statement_triggers(c: &mut Client, keys: &[Vec<i64>]) -> Result<()> {
    for i in 0..30 {
        let values =
            [&keys[0][4 * i..4 * i + 4], &keys[1][2 * i..2 * i + 2], &keys[2][i..=i], &keys[3][i..=i]];
        c.exec(&format!("INSERT INTO stated SELECT k, 1 FROM (VALUES {}) v (k)", list(&values.concat())))?;
    }
    Ok(())
}

fn statement_triggers_were_charged(c: &mut Client) -> Result<()> {
    let truth = "SELECT total_cpu_us_inclusive / 1000 FROM foreshard.stat_triggers WHERE trigger = 'stated' AND level = 'STATEMENT'";
    let truth = number(c, truth)?;
    let costs = measured(c, "stated", "trigger_cost_units")?;
    near("cost of a statement's trigger", costs.iter().sum(), truth, 0.05);
    near("share of the slot with half of the rows", costs[0] / truth, 0.5, 0.1);
    near("calls, one for each statement", measured(c, "stated", "trigger_calls")?[2], 30.0, 0.01);
    Ok(())
}

/// One statement in ten is measured, and stands for the others; a cascade is charged where it deletes.
fn built_in_triggers(c: &mut Client) -> Result<()> {
    c.exec(
        "SET foreshard.statement_sample_interval = 10; \
         DO $$ BEGIN FOR i IN 1 .. 2000 LOOP INSERT INTO child VALUES (1000 + i % 500, 1000 + i); END LOOP; END $$; \
         RESET foreshard.statement_sample_interval",
    )?;
    (1..=10).try_for_each(|id| c.exec(&format!("DELETE FROM parent WHERE id = {id}")).map(drop))?;
    Ok(())
}

fn built_in_triggers_were_charged(c: &mut Client) -> Result<()> {
    let calls =
        "SELECT calls FROM foreshard.stat_triggers WHERE \"table\" = 'child'::regclass AND event = 'INSERT'";
    near("calls of a foreign key's check", number(c, calls)?, 2000.0, 0.35);
    let calls: f64 = measured(c, "child", "trigger_calls")?.iter().sum();
    near("of which slots are charged", calls, 2000.0, 0.35);
    let cascade = "SELECT sum(elapsed_us * calls) / 1000 FROM foreshard.stat_triggers WHERE \"table\" = 'parent'::regclass AND event = 'DELETE'";
    let cascade_ms = number(c, cascade)?;
    let own_ms: f64 = measured(c, "parent", "trigger_cost_units")?.iter().sum();
    assert!(
        own_ms > 0.0 && own_ms < cascade_ms * 0.7,
        "{own_ms} of {cascade_ms} ms, most of it of other slots"
    );
    Ok(())
}

/// Statements that failed and were caught are forgotten; an open cursor makes no workers measure.
fn what_errors_and_cursors_leave(c: &mut Client) -> Result<()> {
    c.exec(
        "DO $$ BEGIN FOR i IN 1 .. 40 LOOP \
             BEGIN PERFORM 1 / (v - v) FROM little WHERE id = i; EXCEPTION WHEN division_by_zero THEN NULL; END; \
         END LOOP; END $$",
    )?;
    let left = "SELECT dropped FROM foreshard.stat_foreshard WHERE area = 'measured statements'";
    assert_eq!(c.query_one(left)?, "0");
    c.exec("BEGIN; DECLARE open CURSOR FOR SELECT * FROM little; FETCH open")?;
    c.exec("SET LOCAL foreshard.statement_sample_interval = 1000000")?;
    c.exec(
        "SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0; \
         SET LOCAL enable_indexonlyscan = off",
    )?;
    let plan =
        c.exec("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) SELECT count(*) FROM spared WHERE v % 3 = 1")?;
    assert!(plan.to_text().contains("Workers Launched"), "{}", plan.to_text());
    (0..3).try_for_each(|_| c.exec("SELECT count(*) FROM spared WHERE v % 3 = 1").map(drop))?;
    c.exec("COMMIT")?;
    Ok(())
}

/// The switch of one session: what it does is neither counted nor measured, and it takes the right to say so.
fn a_session_is_left_alone(cluster: &Cluster, c: &mut Client) -> Result<()> {
    let mut other = cluster.connect("d")?;
    other.exec("SET foreshard.observe = off")?;
    (1..=20).try_for_each(|id| {
        other.exec(&format!("INSERT INTO before VALUES ({}, 1)", 10_000 + id)).map(drop)
    })?;
    c.exec("INSERT INTO before VALUES (20000, 1)")?;
    let calls = "SELECT calls FROM foreshard.stat_triggers WHERE trigger = 'before'";
    wait_for(c, calls, "1")?;
    other.exec("RESET foreshard.observe; INSERT INTO before VALUES (20001, 1)")?;
    wait_for(c, calls, "2")?;
    other.exec("CREATE ROLE nobody; SET ROLE nobody")?;
    support::expect_error(&mut other, "42501", "SET foreshard.observe = off")?;
    Ok(())
}

/// A table, the statements on it, and how many of them.
type Plan = (&'static str, &'static str, &'static str, u32);

const PLANS: [Plan; 3] = [
    // Long enough that starting workers is little of it.
    ("read", "SELECT count(*) FROM read WHERE md5(md5(v::text)) > 'a'", "Gather", 10),
    (
        "joined",
        "SELECT count(*) FROM joined j JOIN partner p ON p.id = j.id WHERE j.v + p.v > 1",
        "Hash Join",
        20,
    ),
    ("many", "EXECUTE pruned (5)", "Subplans Removed", 80),
];

/// Loads of slots are what their statements took, by the kernel: of a parallel, a partitionwise, a run-time pruned plan and of
/// an INSERT that writes to one slot nine times as much as to another.
fn heat_is_true(c: &mut Client, keys: &[Vec<i64>]) -> Result<()> {
    c.exec(
        "PREPARE pruned (bigint) AS SELECT sum(v) FROM many WHERE id = $1; SET plan_cache_mode = force_generic_plan; \
         SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; \
         SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off; SET enable_mergejoin = off; \
         SET enable_partitionwise_join = on; SET foreshard.direct_lookups = off",
    )?;
    for (table, sql, node, _) in PLANS {
        workers(c, table)?;
        let plan = c.exec(&format!("EXPLAIN (COSTS OFF) {sql}"))?.to_text();
        assert!(plan.contains(node), "{plan}");
    }
    // Let the keeper learn what a row costs first: before that it is a guess.
    run_plans(c)?;
    let mut insert = Inserts { keys, next: 0, wal_bytes: 0.0 };
    insert.some(c)?;
    c.exec("SELECT pg_stat_force_next_flush()")?;
    std::thread::sleep(Duration::from_millis(2_300));
    let since = c.query_one("SELECT clock_timestamp()")?;
    // That this is true of CPU time is tested where triggers are.
    let trigger_ms =
        "SELECT total_cpu_us_inclusive / 1000 FROM foreshard.stat_triggers WHERE trigger = 'skew'";
    let trigger_before = number(c, trigger_ms)?;
    insert.wal_bytes = 0.0;
    let truths = run_plans(c)?;
    insert.some(c)?;
    c.exec("SELECT pg_stat_force_next_flush()")?;
    std::thread::sleep(Duration::from_millis(2_300));
    for ((table, _, _, _), truth) in PLANS.into_iter().zip(&truths) {
        near(
            &format!("CPU of {table}, ms"),
            heat(c, table, "cpu_ms_per_s", &since)?.iter().sum(),
            *truth,
            0.4,
        );
    }
    let pruned = heat(c, "many", "cpu_ms_per_s", &since)?;
    let most = pruned.iter().copied().fold(0.0, f64::max);
    near("CPU of the slot that was looked at", most, pruned.iter().sum(), 0.001);
    let wal = heat(c, "skew", "wal_bytes_per_s", &since)?;
    near("WAL of all slots", wal.iter().sum(), insert.wal_bytes, 0.1);
    near("WAL of the busy slot", wal[0], insert.wal_bytes * 0.9, 0.1);
    let triggers = heat(c, "skew", "trigger_cost_per_s", &since)?;
    let truth = number(c, trigger_ms)? - trigger_before;
    near("triggers of all slots", triggers.iter().sum(), truth, 0.25);
    near("triggers of the busy slot", triggers[0], truth * 0.9, 0.25);
    Ok(())
}

/// Plans get workers where they are to be parallel.
fn workers(c: &mut Client, table: &str) -> Result<()> {
    let workers = if table == "read" { 2 } else { 0 };
    c.exec(&format!("SET max_parallel_workers_per_gather = {workers}"))?;
    Ok(())
}

/// Runs every plan; what each took, ms of CPU. What workers take is not the backend's: the parallel one also runs without
/// them and without being measured, which takes as much and is counted, too.
fn run_plans(c: &mut Client) -> Result<Vec<f64>> {
    let mut truths = Vec::new();
    for (table, sql, _, times) in PLANS {
        let parallel = table == "read";
        c.exec("SET max_parallel_workers_per_gather = 0")?;
        if parallel {
            c.exec("SET foreshard.observe = off")?;
        }
        let before = cpu_ms(c);
        (0..times).try_for_each(|_| c.exec(sql).map(drop))?;
        let took = cpu_ms(c) - before;
        if parallel {
            c.exec("RESET foreshard.observe")?;
            workers(c, table)?;
            (0..times).try_for_each(|_| c.exec(sql).map(drop))?;
        }
        truths.push(if parallel { 2.0 * took } else { took });
    }
    c.exec("SELECT pg_stat_force_next_flush()")?;
    Ok(truths)
}

/// Statements of a hundred rows, ninety of them in slot 0.
struct Inserts<'a> {
    keys: &'a [Vec<i64>],
    next: usize,
    wal_bytes: f64,
}

impl Inserts<'_> {
    fn some(&mut self, c: &mut Client) -> Result<()> {
        for _ in 0..5 {
            let (hot, cold) = (self.next * 90, self.next * 10);
            let rows = [&self.keys[0][hot..hot + 90], &self.keys[3][cold..cold + 10]].concat();
            self.next += 1;
            let plan = c.exec(&format!(
                "EXPLAIN (ANALYZE, WAL, COSTS OFF, TIMING OFF) INSERT INTO skew SELECT k, 1 FROM (VALUES {}) v (k)",
                list(&rows)
            ))?;
            let text = plan.to_text();
            let bytes = text.split("bytes=").nth(1).and_then(|rest| rest.split_whitespace().next());
            self.wal_bytes += bytes.and_then(|bytes| bytes.parse::<f64>().ok()).unwrap_or(f64::NAN);
        }
        Ok(())
    }
}

/// Every statement of a sampled transaction beyond the sixty-fourth, and the transactions after it.
#[test]
fn long_transactions_say_what_they_touched() -> Result<()> {
    let cluster = cluster(&options("long-transactions"))?;
    let mut c = database(&cluster, "d")?;
    c.exec("CREATE TABLE probe (id bigint PRIMARY KEY, v int); INSERT INTO probe SELECT g, g FROM generate_series(1, 4000) g")?;
    c.exec(&format!("SELECT foreshard.distribute('probe', 'id', {SLOTS})"))?;
    wait_watched(&mut c, SLOTS as u32 + 1)?;
    let keys = keys(&mut c)?;
    let (a, b, other) = (keys[0][0], keys[1][0], keys[2][0]);
    for _ in 0..3 {
        c.exec("BEGIN")?;
        for _ in 0..50 {
            c.exec(&format!("UPDATE probe SET v = v + 1 WHERE id = {a}"))?;
            c.exec(&format!("UPDATE probe SET v = v + 1 WHERE id = {b}"))?;
        }
        c.exec("COMMIT")?;
        c.exec(&format!("UPDATE probe SET v = v + 1 WHERE id = {other}"))?;
    }
    let slot = |c: &mut Client, key: i64| support::slot_of_key(c, "probe", &key.to_string());
    c.exec("SET foreshard.observe = off")?;
    let (a, b, other) = (slot(&mut c, a)?, slot(&mut c, b)?, slot(&mut c, other)?);
    let pairs = format!(
        "SELECT string_agg(round(weight)::text, ',') FROM foreshard.co_access \
         WHERE {a} IN (slot_a, slot_b) AND {b} IN (slot_a, slot_b)"
    );
    wait_for(&mut c, &pairs, "3")?;
    let wrong = format!("SELECT count(*) FROM foreshard.co_access WHERE {other} IN (slot_a, slot_b)");
    assert_eq!(c.query_one(&wrong)?, "0", "used alone");
    Ok(())
}
