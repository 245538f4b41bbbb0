//! What the keeper learns from samples: trigger costs and their predictions, unit costs, hot keys and
//! co-access; that it outlives keepers and servers, and goes with what it is about.

mod support;

use foreshard_test::load::{Load, Session};
use foreshard_test::process::signal;
use foreshard_test::{Client, Cluster, ClusterOptions, Result, SqlError};
use std::time::{Duration, Instant};
use support::{PATIENCE, Random, cluster, database, keeper, wait_for, wait_watched};

fn options(name: &str) -> ClusterOptions {
    ClusterOptions::new(name)
        .set("foreshard.bucket", "1s")
        .set("foreshard.plan_interval", "3600s")
        .set("foreshard.heat_half_life", "10s")
        .set("foreshard.statement_sample_interval", "1")
        .set("foreshard.trigger_sample_interval", "1")
        .set("foreshard.key_sample_interval", "1")
        .set("foreshard.observe_budget", "100")
}

/// A table whose trigger works in proportion to the length of a column, and a table that refers to it.
const TABLES: &str = "\
CREATE TABLE item (id bigint PRIMARY KEY, body text, n int DEFAULT 0); \
CREATE TABLE line (item_id bigint REFERENCES item, no int, PRIMARY KEY (item_id, no)); \
CREATE TABLE audit (id bigint, length int); \
INSERT INTO item SELECT g, 'x' FROM generate_series(1, 1000) g; ANALYZE item; \
CREATE FUNCTION work() RETURNS trigger LANGUAGE plpgsql AS $$ \
DECLARE digest text := ''; \
BEGIN \
    FOR i IN 1 .. length(NEW.body) / 4 LOOP digest := md5(digest); END LOOP; \
    INSERT INTO audit VALUES (NEW.id, length(digest)); \
    IF NEW.n < 0 THEN RAISE EXCEPTION 'negative'; END IF; \
    RETURN NEW; \
END $$";

/// A database with both tables, distributed, and the trigger.
fn working_database(cluster: &Cluster, name: &str) -> Result<Client> {
    let mut c = database(cluster, name)?;
    c.exec(TABLES)?;
    c.exec("SELECT foreshard.distribute('item', 'id', 4)")?;
    c.exec("SELECT foreshard.distribute('line', 'item_id', colocate_with => 'item')")?;
    c.exec(
        "CREATE TRIGGER work BEFORE INSERT OR UPDATE OF body, n ON item FOR EACH ROW EXECUTE FUNCTION work()",
    )?;
    wait_watched(&mut c, 10)?;
    Ok(c)
}

/// Updates `count` items, the bodies of which have 0 to 4000 characters.
fn update(c: &mut Client, count: u32) -> Result<()> {
    c.exec(&format!(
        "DO $$ BEGIN FOR i IN 1 .. {count} LOOP \
             EXECUTE 'UPDATE item SET body = repeat(''x'', $1) WHERE id = $2' USING (i * 37 % 41) * 100, 1 + i % 1000; \
         END LOOP; END $$"
    ))?;
    Ok(())
}

const CALLS: &str = "SELECT calls FROM foreshard.stat_triggers WHERE trigger = 'work' AND event = 'UPDATE'";

/// Prediction for an update that writes a body of `length` characters.
fn predicted(c: &mut Client, length: u32) -> Result<f64> {
    let sql = format!(
        "SELECT cost_units FROM foreshard.predict_cost('item', 'UPDATE', pg_column_size(ROW(1::bigint, repeat('x', {length}), 0)), 3, 1) WHERE trigger IS NULL"
    );
    Ok(c.query_one(&sql)?.parse().unwrap_or(f64::NAN))
}

#[test]
fn triggers_are_learnt_and_remembered() -> Result<()> {
    let mut cluster = cluster(&options("triggers"))?;
    let mut c = working_database(&cluster, "d")?;
    update(&mut c, 600)?;
    wait_for(&mut c, CALLS, "600")?;
    wait_for(
        &mut c,
        "SELECT model FROM foreshard.stat_triggers WHERE trigger = 'work' AND event = 'UPDATE'",
        "linear",
    )?;
    let sound = "SELECT * FROM foreshard.stat_triggers WHERE trigger = 'work' AND NOT (\"table\" = 'item'::regclass AND function = 'work'::regproc \
        AND level = 'ROW' AND timing = 'BEFORE' AND failed_calls = 0 AND sampled_calls BETWEEN 100 AND calls AND cpu_us > 0 \
        AND cpu_us_inclusive >= cpu_us AND elapsed_us >= cpu_us * 0.5 AND total_cpu_us_inclusive > cpu_us * 100 AND wal_bytes > 0 AND blocks_hit > 0 \
        AND sees = 'all' AND samples >= 8 AND relative_error < 1 AND coverage BETWEEN 0 AND 1)";
    let odd = c.exec(sound)?;
    assert!(odd.is_empty(), "{}", odd.to_text());
    let (small, large) = (predicted(&mut c, 100)?, predicted(&mut c, 4000)?);
    println!("predicted {small} for 100 characters, {large} for 4000");
    assert!(large > small * 3.0, "predicted {small} for 100 characters, {large} for 4000");
    a_row_is_its_size(&mut c)?;
    failures_and_dependencies(&mut c)?;
    foreign_keys_are_one_trigger(&mut c)?;
    one_partition_has_a_trigger(&mut c)?;
    keepers_and_crashes(&mut cluster, c)
}

/// The JSON form knows the size of the row it describes.
fn a_row_is_its_size(c: &mut Client) -> Result<()> {
    let odd = c.exec(
        "SELECT * FROM generate_series(0, 4000, 500) g, \
             LATERAL (SELECT cost_units AS size_says FROM foreshard.predict_cost('item', 'UPDATE', pg_column_size(ROW(7::bigint, repeat('x', g), 0)), 3) \
                      WHERE trigger IS NULL) a, \
             LATERAL (SELECT cost_units AS row_says FROM foreshard.predict_cost('item', 'UPDATE', \
                          jsonb_build_object('id', 7, 'body', repeat('x', g), 'n', 0)) WHERE trigger IS NULL) b \
         WHERE size_says IS DISTINCT FROM row_says",
    )?;
    assert!(odd.is_empty(), "{}", odd.to_text());
    let ten = "SELECT round((a.cost_units / b.cost_units)::numeric, 6) FROM foreshard.predict_cost('item', 'UPDATE', 500, statement_rows => 1) b, \
               foreshard.predict_cost('item', 'UPDATE', 500, statement_rows => 10) a WHERE a.trigger = 'work' AND b.trigger = 'work'";
    assert!(c.query_one(ten)?.parse::<f64>().is_ok_and(|ratio| ratio > 5.0), "ten rows cost more than one");
    Ok(())
}

fn failures_and_dependencies(c: &mut Client) -> Result<()> {
    support::expect_error(c, "P0001", "UPDATE item SET n = -1 WHERE id = 1")?;
    wait_for(
        c,
        "SELECT failed_calls FROM foreshard.stat_triggers WHERE trigger = 'work' AND event = 'UPDATE'",
        "1",
    )?;
    let edge = "SELECT writes FROM foreshard.observed_dependency WHERE function_oid = 'work'::regproc AND relation_oid = 'audit'::regclass";
    wait_for(c, edge, "t")?;
    c.exec("UPDATE item SET n = 1 WHERE id = 1")?;
    wait_for(c, CALLS, "602")
}

/// Every partition's check has a name of its own; they are told as the table's.
fn foreign_keys_are_one_trigger(c: &mut Client) -> Result<()> {
    c.exec("INSERT INTO line SELECT g, 1 FROM generate_series(1, 400) g")?;
    c.exec("DO $$ BEGIN FOR i IN 1 .. 100 LOOP INSERT INTO line VALUES (i, 2); END LOOP; END $$")?;
    let told = "SELECT count(*) FROM foreshard.stat_triggers s JOIN pg_trigger t ON t.tgname = s.trigger AND t.tgrelid = s.\"table\" \
                WHERE s.\"table\" = 'line'::regclass AND s.event = 'INSERT' AND s.sees = 'elapsed, blocks, wal' AND cpu_us IS NULL \
                AND elapsed_us > 0 AND calls >= 500 AND model IS NOT NULL";
    if let Err(error) = wait_for(c, told, "1") {
        let rows = c.exec("SELECT * FROM foreshard.stat_triggers WHERE \"table\" = 'line'::regclass")?;
        return Err(foreshard_test::Error::new(format!("{error} There is:\n{}", rows.to_text()), ""));
    }
    assert_eq!(
        c.query_one(
            "SELECT count(*) FROM foreshard.stat_triggers WHERE \"table\" = 'line'::regclass AND event = 'INSERT'"
        )?,
        "1"
    );
    let stands_in = "SELECT cost_units > 0 AND cpu_us IS NULL AND note LIKE 'elapsed%' FROM foreshard.predict_cost('line', 'INSERT', 40) WHERE trigger IS NOT NULL";
    assert_eq!(c.query_one(stands_in)?, "t");
    Ok(())
}

/// A trigger that only one of four partitions has is predicted for its rows, and for a quarter of any; and nothing is learnt of a
/// table that is not to be observed.
fn one_partition_has_a_trigger(c: &mut Client) -> Result<()> {
    c.exec(
        "CREATE TABLE part (id bigint PRIMARY KEY, n int); SELECT foreshard.distribute('part', 'id', 4); \
         CREATE FUNCTION only_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; \
         DO $$ BEGIN EXECUTE (SELECT format('CREATE TRIGGER only_here BEFORE INSERT ON %s FOR EACH ROW EXECUTE FUNCTION only_here()', min(partition::oid)::regclass) \
             FROM foreshard.slots WHERE \"table\" = 'part'::regclass); END $$",
    )?;
    wait_watched(c, 15)?;
    c.exec("INSERT INTO part SELECT g, 1 FROM generate_series(1, 4000) g")?;
    let calls = "SELECT calls FROM foreshard.stat_triggers WHERE trigger = 'only_here'";
    let here = "SELECT count(*) FROM part WHERE tableoid = (SELECT min(partition::oid) FROM foreshard.slots WHERE \"table\" = 'part'::regclass)";
    let rows = c.query_one(here)?;
    wait_for(c, calls, &rows)?;
    let of_any = "SELECT round(calls) || ' ' || (cost_units > 0) || ' ' || note FROM foreshard.predict_cost('part', 'INSERT', 40, statement_rows => 100) \
                  WHERE trigger = 'only_here'";
    wait_for(c, of_any, "25 true 25.0 % of the partitions have it, and as many rows")?;
    let of_rows = "SELECT count(*) FILTER (WHERE coalesce(calls = 1, false) <> (t.tableoid = (SELECT min(partition::oid) FROM foreshard.slots \
                       WHERE \"table\" = 'part'::regclass))) FROM (SELECT tableoid, to_jsonb(part) AS row FROM part WHERE id <= 40) t \
                   LEFT JOIN LATERAL foreshard.predict_cost('part', 'INSERT', t.row) p ON p.trigger = 'only_here'";
    assert_eq!(c.query_one(of_rows)?, "0");

    c.exec("SELECT foreshard.configure('part', 'observe', 'off')")?;
    // The keeper tells everybody with its next look, a second later at most.
    std::thread::sleep(Duration::from_millis(2_500));
    c.exec("INSERT INTO part SELECT g, 1 FROM generate_series(4001, 8000) g")?;
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(c.query_one(calls)?, rows, "nobody watches");
    c.exec("DROP TABLE part; DROP FUNCTION only_here()").map(drop)?;
    wait_watched(c, 10)
}

/// Totals and models survive the keeper, a crash and a restart, and go with the trigger.
fn keepers_and_crashes(cluster: &mut Cluster, mut c: Client) -> Result<()> {
    let before = predicted(&mut c, 2000)?;
    let pid = keeper(&mut c)?;
    signal(pid, libc::SIGTERM);
    update(&mut c, 50)?;
    wait_for(&mut c, CALLS, "652")?;
    // Bookkeeping commits asynchronously; a second later it is on disk.
    std::thread::sleep(Duration::from_millis(1500));
    cluster.kill9(keeper(&mut c)?)?;
    cluster.wait_ready(PATIENCE)?;
    let mut c = cluster.connect("d")?;
    assert_eq!(c.query_one(CALLS)?, "652");
    keeper(&mut c)?;
    wait_watched(&mut c, 10)?;
    update(&mut c, 30)?;
    wait_for(&mut c, CALLS, "682")?;
    std::thread::sleep(Duration::from_millis(1500));
    drop(c);
    cluster.restart()?;
    let mut c = cluster.connect("d")?;
    keeper(&mut c)?;
    wait_watched(&mut c, 10)?;
    update(&mut c, 20)?;
    wait_for(&mut c, CALLS, "702")?;
    let after = predicted(&mut c, 2000)?;
    assert!(after > before / 2.0 && after < before * 2.0, "{before} before, {after} after");
    a_costlier_function_is_learnt(&mut c)?;
    c.exec("DROP TRIGGER work ON item; DROP FUNCTION work()")?;
    // The keeper cleans up once a minute, and when it starts.
    signal(keeper(&mut c)?, libc::SIGTERM);
    wait_for(&mut c, "SELECT count(*) FROM foreshard.stat_triggers WHERE trigger = 'work'", "0")?;
    wait_for(
        &mut c,
        "SELECT count(*) FROM foreshard.observed_dependency WHERE relation_oid = 'audit'::regclass",
        "0",
    )
}

/// Two hundred measured calls of the new function are enough, whatever the old one took.
fn a_costlier_function_is_learnt(c: &mut Client) -> Result<()> {
    let before = predicted(c, 2000)?;
    let body = "FOR i IN 1 .. length(NEW.body) / 4 LOOP";
    let costlier = TABLES.replace(body, "FOR i IN 1 .. length(NEW.body) * 2 LOOP");
    let function = costlier.split("CREATE FUNCTION").nth(1).unwrap_or_default();
    assert_ne!(costlier, TABLES);
    c.exec(&format!("CREATE OR REPLACE FUNCTION {function}"))?;
    let total = "SELECT total_cpu_us_inclusive / 1000 FROM foreshard.stat_triggers WHERE trigger = 'work' AND event = 'UPDATE'";
    let number = |c: &mut Client| -> Result<f64> { Ok(c.query_one(total)?.parse().unwrap_or(f64::NAN)) };
    let spent = number(c)?;
    update(c, 200)?;
    wait_for(c, CALLS, "902")?;
    // Bodies of 0 to 4000 characters: 2000 on average.
    let (mean, after) = ((number(c)? - spent) / 200.0, predicted(c, 2000)?);
    println!("predicted {before} before, {after} after, where calls took {mean} on average");
    assert!(mean > before * 4.0, "{before} before, {mean} after is no test");
    assert!(after > mean * 0.75 && after < mean * 1.35, "predicted {after}, while calls take {mean}");
    Ok(())
}

/// Reads and writes one item most of the time, with a line of it in the same transaction.
struct Favourite(Random);

impl Session for Favourite {
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        client.exec("SET enable_seqscan = off")?;
        client.prepare("i", "SELECT n FROM item WHERE id = $1")?;
        client.prepare("u", "UPDATE item SET n = n + 1 WHERE id = $1")
    }

    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        let key = if self.0.below(4) == 0 { 1 + self.0.below(1000) } else { 7 };
        let other = if key == 7 { 8 } else { key };
        client.exec("BEGIN")?;
        client.exec_prepared("u", &[Some(&key.to_string())])?;
        client.exec_prepared("i", &[Some(&other.to_string())])?;
        client.exec("COMMIT").map(drop)
    }
}

/// The slots of two items, the smaller first; they must differ.
fn slots_of(c: &mut Client, a: u32, b: u32) -> Result<(i64, i64)> {
    let slot = |c: &mut Client, id: u32| -> Result<i64> {
        Ok(support::slot_of_key(c, "item", &id.to_string())?.parse().unwrap_or(0))
    };
    let (a, b) = (slot(c, a)?, slot(c, b)?);
    assert_ne!(a, b, "the test needs keys of different slots");
    Ok((a.min(b), a.max(b)))
}

#[test]
fn keys_pairs_and_unit_costs() -> Result<()> {
    let options =
        options("keys").set("foreshard.hot_slot_threshold", "20").set("foreshard.sample_buffer", "128");
    let mut cluster = cluster(&options)?;
    let mut c = working_database(&cluster, "d")?;
    let (a, b) = slots_of(&mut c, 7, 8)?;
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.hot_keys")?, "0", "cold slots give no keys");
    let sessions = vec![Favourite(Random(1)), Favourite(Random(2))];
    let load = Load::start(&cluster.conninfo("d"), 200.0, "load", sessions)?;
    let hottest = "SELECT string_agg(key, ',' ORDER BY key) FROM (SELECT key FROM foreshard.hot_keys ORDER BY accesses_per_s DESC LIMIT 2) k";
    wait_for(&mut c, hottest, "7,8")?;
    std::thread::sleep(Duration::from_secs(6));
    let pair = format!(
        "SELECT weight > 50 AND share BETWEEN 0.5 AND 1 AND lift > 1 FROM foreshard.co_access WHERE slot_a = {a} AND slot_b = {b}"
    );
    wait_for(&mut c, &pair, "t")?;
    let odd = c.exec(
        "SELECT * FROM foreshard.hot_keys WHERE NOT (lower <= accesses_per_s AND accesses_per_s <= upper AND NOT truncated \
         AND slot_id = (SELECT slot_id FROM foreshard.slots s, item i WHERE i.id = key::int AND s.partition = i.tableoid))",
    )?;
    assert!(odd.is_empty(), "{}", odd.to_text());
    let rate = c.query_one("SELECT accesses_per_s FROM foreshard.hot_keys WHERE key = '7'")?;
    let rate: f64 = rate.parse().unwrap_or(0.0);
    assert!((40.0..220.0).contains(&rate), "about 150 accesses per second of key 7 are seen as {rate}");
    let known = "SELECT bool_and(cpu_ms_per_s > 0 AND wal_bytes_per_s > 0 AND trigger_cost_per_s > 0 AND cost_units_per_s > trigger_cost_per_s \
                 AND access_score > 0 AND heat > 0) FROM foreshard.heat_map";
    wait_for(&mut c, known, "t")?;
    assert_eq!(load.error_texts().len(), 0, "{:?}", load.error_texts());
    drop(load);
    rings_are_read_in_time(&mut c)?;
    what_was_measured_survives(&mut cluster, c)
}

/// A thousand samples a second go through a ring of 128: the keeper reads it as often as that takes.
fn rings_are_read_in_time(c: &mut Client) -> Result<()> {
    let area = |column: &str| {
        format!("SELECT {column} FROM foreshard.stat_foreshard WHERE area = 'trigger samples'")
    };
    let number = |text: String| text.parse::<i64>().unwrap_or(-1);
    std::thread::sleep(Duration::from_millis(2_200));
    let (written, lost) = (number(c.query_one(&area("written"))?), number(c.query_one(&area("lost"))?));
    let begun = Instant::now();
    update(c, 6_000)?;
    let took = begun.elapsed();
    std::thread::sleep(Duration::from_millis(2_200));
    let written = number(c.query_one(&area("written"))?) - written;
    let lost = number(c.query_one(&area("lost"))?) - lost;
    println!("{written} samples in {took:?}, {lost} of them lost");
    let kept_by_the_second = 128 * (took.as_secs() as i64 + 2);
    assert!(
        written >= 6_000 && written > 2 * kept_by_the_second,
        "{written} samples in {took:?} prove nothing"
    );
    assert!(lost < written / 4, "{lost} of {written} samples were overwritten before they were read");
    Ok(())
}

fn what_was_measured_survives(cluster: &mut Cluster, mut c: Client) -> Result<()> {
    // Idle slots are known to be idle at a known price.
    wait_for(
        &mut c,
        "SELECT count(*) FROM foreshard.heat_map WHERE wal_bytes_per_s = 0 AND trigger_cost_per_s = 0",
        "4",
    )?;
    wait_for(
        &mut c,
        "SELECT count(*) FROM foreshard.slot_cost WHERE write_cpu_ms > 0 AND trigger_calls > 0",
        "4",
    )?;
    std::thread::sleep(Duration::from_millis(1500));
    cluster.kill9(keeper(&mut c)?)?;
    cluster.wait_ready(PATIENCE)?;
    let mut c = cluster.connect("d")?;
    keeper(&mut c)?;
    c.exec("TRUNCATE foreshard.heat_history")?;
    wait_for(
        &mut c,
        "SELECT count(DISTINCT slot_id) FROM foreshard.heat_history WHERE wal_bytes_per_s = 0 AND trigger_cost_per_s = 0",
        "4",
    )?;
    c.exec("DROP TABLE line, item")?;
    wait_watched(&mut c, 0)?;
    for what in ["hot_key", "coaccess", "slot_cost", "trigger_profile"] {
        wait_for(&mut c, &format!("SELECT count(*) FROM foreshard.{what}"), "0")?;
    }
    Ok(())
}

/// Types of which the test looks up one of a list.
const IN_ARRAYS: [&str; 10] =
    ["int", "text", "varchar(50)", "name", "uuid", "numeric", "timestamptz", "date", "float8", "inet"];

#[test]
fn keys_of_every_type_are_shown() -> Result<()> {
    let cluster = cluster(&options("types").set("foreshard.hot_slot_threshold", "0"))?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE DOMAIN code AS text CHECK (length(VALUE) > 1)",
    )?;
    let long = "ä".repeat(40);
    let types = [
        ("smallint", "-7", "-7"),
        ("int", "-42", "-42"),
        ("bigint", "4611686018427387904", "4611686018427387904"),
        ("text", "it''s", "it's"),
        ("varchar(50)", "ü", "ü"),
        ("name", "a name", "a name"),
        ("uuid", "0b0cd7f0-5b4e-4c8e-9d2a-6a1d2f1b7a11", "0b0cd7f0-5b4e-4c8e-9d2a-6a1d2f1b7a11"),
        ("numeric", "-12345678901234567890.5", "-12345678901234567890.5"),
        ("timestamptz", "2024-02-29 12:00+00", "2024-02-29 12:00:00+00"),
        ("date", "-infinity", "-infinity"),
        ("mood", "so so", "so so"),
        ("code", "xy", "xy"),
        ("boolean", "true", "t"),
        ("float8", "0.1", "0.1"),
        ("inet", "10.0.0.1", "10.0.0.1"),
    ];
    c.exec("SET timezone = 'UTC'; ALTER DATABASE d SET timezone = 'UTC'")?;
    for (number, (of, _, _)) in types.iter().enumerate() {
        c.exec(&format!("CREATE TABLE k{number} (note text, key {of} PRIMARY KEY)"))?;
        c.exec(&format!("SELECT foreshard.distribute('k{number}', 'key', 2)"))?;
    }
    for (table, of) in [("longer", "text"), ("batch", "int")] {
        c.exec(&format!("CREATE TABLE {table} (key {of} PRIMARY KEY)"))?;
        c.exec(&format!("SELECT foreshard.distribute('{table}', 'key', 2)"))?;
    }
    wait_watched(&mut c, 3 * (types.len() as u32 + 2))?;
    c.exec("SET enable_seqscan = off")?;
    for (number, (of, literal, _)) in types.iter().enumerate() {
        let value = format!("'{literal}'::{of}");
        let value = if IN_ARRAYS.contains(of) { format!("ANY (ARRAY[{value}, {value}])") } else { value };
        for _ in 0..5 {
            c.exec(&format!("SELECT * FROM k{number} WHERE key = {value}"))?;
        }
    }
    // Of a long list no key is hidden by its place.
    let list: Vec<String> = (1..=64).map(|key| key.to_string()).collect();
    for _ in 0..60 {
        c.exec(&format!("SELECT * FROM batch WHERE key = ANY ('{{{}}}'::int[])", list.join(",")))?;
    }
    wait_for(&mut c, "SELECT count(*) FROM foreshard.hot_keys WHERE \"table\" = 'batch'::regclass", "64")?;
    c.exec(&format!("SELECT * FROM longer WHERE key = '{long}'"))?;
    for (number, (of, _, text)) in types.iter().enumerate() {
        let sql = format!(
            "SELECT string_agg(key, '|') FROM foreshard.hot_keys WHERE \"table\" = 'k{number}'::regclass AND NOT truncated"
        );
        wait_for(&mut c, &sql, text)
            .map_err(|error| foreshard_test::Error::new(format!("{of}: {error}"), ""))?;
    }
    wait_for(
        &mut c,
        "SELECT key FROM foreshard.hot_keys WHERE \"table\" = 'longer'::regclass AND truncated",
        &format!("{}…", "ä".repeat(24)),
    )
}

/// The outer row of a nested loop is gone when its statement has run: its value is not read, unless it was copied.
#[test]
fn keys_of_outer_rows_are_not_read() -> Result<()> {
    let cluster = cluster(&options("outer").set("foreshard.hot_slot_threshold", "0"))?;
    let mut c = database(&cluster, "d")?;
    for of in ["text", "int"] {
        c.exec(&format!("CREATE TABLE w_{of} (key {of} PRIMARY KEY, n int DEFAULT 1)"))?;
        c.exec(&format!("INSERT INTO w_{of} SELECT g::{of} FROM generate_series(1, 3000) g"))?;
        c.exec(&format!("SELECT foreshard.distribute('w_{of}', 'key', 2)"))?;
    }
    wait_watched(&mut c, 6)?;
    c.exec("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off")?;
    c.exec("SET plan_cache_mode = force_generic_plan")?;
    for of in ["text", "int"] {
        let rows = format!("(SELECT (g % 3000 + 1)::{of} AS k FROM generate_series(1, 400) g OFFSET 0) q");
        for _ in 0..20 {
            let joined = c.query_one(&format!("SELECT sum(n) FROM {rows} JOIN w_{of} w ON w.key = q.k"))?;
            assert_eq!(joined, "400");
        }
    }
    let keys = |of: &str| {
        format!("SELECT count(*) > 0 FROM foreshard.hot_keys WHERE \"table\" = 'w_{of}'::regclass")
    };
    wait_for(&mut c, &keys("int"), "t")?;
    assert_eq!(c.query_one(&keys("text"))?, "f");
    // A parameter of the statement stays.
    c.prepare("get", "SELECT n FROM w_text WHERE key = $1")?;
    for _ in 0..20 {
        c.exec_prepared("get", &[Some("17")])?;
    }
    wait_for(&mut c, "SELECT key FROM foreshard.hot_keys WHERE \"table\" = 'w_text'::regclass", "17")?;
    keys_of_scans_without_an_index(&mut c)
}

/// A table that is small or has no index on its key is looked through: the condition says what for.
fn keys_of_scans_without_an_index(c: &mut Client) -> Result<()> {
    c.exec("CREATE TABLE plain (key bigint NOT NULL, v varchar(9), n int)")?;
    c.exec("INSERT INTO plain SELECT g, g, g FROM generate_series(1, 300) g")?;
    c.exec("SELECT foreshard.distribute('plain', 'key', 2)")?;
    c.exec("CREATE TABLE worded (v varchar(9) NOT NULL, n int)")?;
    c.exec("INSERT INTO worded SELECT g, g FROM generate_series(1, 300) g")?;
    c.exec("SELECT foreshard.distribute('worded', 'v', 2)")?;
    wait_watched(c, 12)?;
    c.exec("SET enable_seqscan = on")?;
    c.prepare("scan", "SELECT n FROM plain WHERE key = $1")?;
    for _ in 0..5 {
        c.exec_prepared("scan", &[Some("41")])?;
        c.exec("SELECT n FROM plain WHERE n > 0 AND 42 = key; UPDATE worded SET n = n + 1 WHERE v = '43'")?;
        // Neither of these names a key that all rows have.
        c.exec("SELECT n FROM plain WHERE key = 44 OR n = 44; SELECT n FROM plain WHERE n = 45 AND key > 0")?;
        // Rows that are written name theirs.
        c.exec("INSERT INTO plain VALUES (51, 'a', 1), (52, 'b', 2), (53, 'c', 3)")?;
    }
    let keys = "SELECT string_agg(key, ',' ORDER BY key) FROM foreshard.hot_keys WHERE \"table\" IN ('plain'::regclass, 'worded'::regclass)";
    wait_for(c, keys, "41,42,43,51,52,53")
}
