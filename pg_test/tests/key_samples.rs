//! Keys are sampled only where they were looked up, and only from memory that is still there.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use std::time::Duration;
use support::{cluster, database, keeper, wait_for, wait_watched};

/// A cluster that samples every key of slots with more than so many accesses per second.
fn sampling(name: &str, threshold: &str) -> Result<(Cluster, Client)> {
    let options = ClusterOptions::new(name)
        .set("foreshard.bucket", "1s")
        .set("foreshard.plan_interval", "3600s")
        .set("foreshard.hot_slot_threshold", threshold)
        .set("foreshard.key_sample_interval", "1")
        .set("foreshard.observe_budget", "100");
    let cluster = cluster(&options)?;
    let client = database(&cluster, "d")?;
    Ok((cluster, client))
}

/// A function in SQL that returns a set, and is not read to its end, ends when the rows of the statement around it are gone,
/// and with them what its parameters point to.
#[test]
fn keys_of_abandoned_functions_are_left_alone() -> Result<()> {
    let (cluster, mut c) = sampling("keylast", "0")?;
    c.exec(
        "CREATE TABLE t (k uuid, n int, PRIMARY KEY (k, n)); \
         INSERT INTO t SELECT md5(g::text)::uuid, 1 FROM generate_series(1, 60000) g; \
         SELECT foreshard.distribute('t', 'k', 4); \
         CREATE TABLE ids AS SELECT k, random() AS r FROM t; ANALYZE; \
         CREATE FUNCTION f(uuid) RETURNS SETOF int LANGUAGE sql STABLE AS 'SELECT n FROM t WHERE k = $1'",
    )?;
    wait_watched(&mut c, 5)?;
    let key = c.query_one("SELECT k FROM ids LIMIT 1")?;
    let looked_up = format!("SELECT count(*) FROM t WHERE k = '{key}'");
    wait_for(&mut c, &format!("SELECT ({looked_up}) = 1 AND EXISTS (SELECT FROM foreshard.hot_keys)"), "t")?;
    for _ in 0..20 {
        let mut fresh = cluster.connect("d")?;
        fresh.exec("SET work_mem = '64MB'; SET plan_cache_mode = force_generic_plan")?;
        fresh.exec("SELECT f(k) FROM (SELECT k, r FROM ids ORDER BY r OFFSET 0) s LIMIT 1")?;
        fresh.exec("SELECT * FROM (SELECT k FROM ids LIMIT 20) i, LATERAL (SELECT f(i.k) LIMIT 1) l")?;
        fresh.exec(&looked_up)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let nobodys =
        "SELECT count(*) FROM foreshard.hot_keys h WHERE NOT EXISTS (SELECT FROM ids WHERE k::text = h.key)";
    assert_eq!(c.query_one(nobodys)?, "0");
    Ok(())
}

/// EXPLAIN looks nothing up, and a parallel worker looks up what its leader does.
#[test]
fn a_statement_gives_its_keys_once() -> Result<()> {
    let (_cluster, mut c) = sampling("keyonce", "0")?;
    c.exec(
        "CREATE TABLE e (id int PRIMARY KEY, v text); INSERT INTO e SELECT g, repeat('x', 100) FROM generate_series(1, 40000) g; \
         SELECT foreshard.distribute('e', 'id', 2); ALTER TABLE e ADD COLUMN w int; ANALYZE; \
         SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off",
    )?;
    wait_watched(&mut c, 3)?;
    wait_for(
        &mut c,
        "SELECT (SELECT count(*) FROM e WHERE id = 7) = 1 AND EXISTS (SELECT FROM foreshard.hot_keys WHERE key = '7')",
        "t",
    )?;
    for _ in 0..30 {
        c.exec("EXPLAIN SELECT * FROM e WHERE id = 44")?;
        c.exec("SELECT * FROM e WHERE id = 45 AND current_date < '2001-01-01'::date")?;
    }
    c.exec(
        "SET max_parallel_workers_per_gather = 2; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; \
         SET parallel_tuple_cost = 0; SET debug_parallel_query = off",
    )
    .or_else(|_| {
        c.exec(
            "SET max_parallel_workers_per_gather = 2; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0",
        )
    })?;
    let plan = c.exec("EXPLAIN (COSTS off) SELECT count(*) FROM e WHERE id = 46")?.to_text();
    assert!(plan.contains("Parallel Seq Scan"), "{plan}");
    for _ in 0..60 {
        c.exec("SELECT count(*) FROM e WHERE id = 46")?;
    }
    c.exec("SET max_parallel_workers_per_gather = 0")?;
    for _ in 0..60 {
        c.exec("SELECT count(*) FROM e WHERE id = 47")?;
    }
    wait_for(&mut c, "SELECT EXISTS (SELECT FROM foreshard.hot_keys WHERE key = '47')", "t")?;
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.hot_keys WHERE key IN ('44', '45')")?, "0");
    let of = |key: u32| format!("(SELECT access_score FROM foreshard.hot_keys WHERE key = '{key}')");
    let more = format!("SELECT {} / {}", of(46), of(47));
    let more: f64 = c.query_one(&more)?.parse().unwrap_or(f64::NAN);
    assert!((0.8..1.25).contains(&more), "keys of parallel scans count {more} times");
    Ok(())
}

/// Workers connect as the bootstrap superuser; whoever exempts his own sessions does not end all watching.
#[test]
fn a_roles_setting_is_not_the_keepers() -> Result<()> {
    let (cluster, mut c) = sampling("keyrole", "50")?;
    c.exec("CREATE TABLE t (id int PRIMARY KEY); SELECT foreshard.distribute('t', 'id', 2)")?;
    wait_watched(&mut c, 3)?;
    c.exec("ALTER ROLE postgres SET foreshard.observe = off")?;
    let old = keeper(&mut c)?;
    c.exec(&format!("SELECT pg_terminate_backend({old})"))?;
    let anew = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard keeper' AND datname = 'd' AND pid <> {old}"
    );
    wait_for(&mut c, &anew, "1")?;
    let since = c.query_one("SELECT clock_timestamp()")?;
    let read = format!(
        "SELECT count(*) > 0 FROM foreshard.heat_history WHERE bucket_at > '{since}' AND writes_per_s > 0"
    );
    let mut next = 0;
    foreshard_test::wait_until("the table is watched", support::PATIENCE, || {
        next += 1;
        c.exec(&format!("INSERT INTO t VALUES ({next})"))?;
        Ok(c.query_one(&read)? == "t")
    })?;
    assert!(cluster.log_contents().contains("Workers of foreshard take no setting of a role"));
    // What is set for the database is.
    c.exec("ALTER ROLE postgres RESET foreshard.observe; ALTER DATABASE d SET foreshard.observe = off")?;
    let old = keeper(&mut c)?;
    c.exec(&format!("SELECT pg_terminate_backend({old})"))?;
    wait_for(
        &mut c,
        "SELECT count(*) FROM foreshard.heat_history WHERE bucket_at > clock_timestamp() - interval '3 s'",
        "0",
    )
}
