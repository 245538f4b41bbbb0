//! Who asks for a plan reads what the keeper foresaw, not the history of every slot, and is told the same.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result, wait_until};
use std::time::Instant;
use support::{PATIENCE, cluster, database, wait_for};

/// Slots, each with a week of five minutes.
const SLOTS: u32 = 96;
const BUCKETS: u32 = 2_016;

/// A day's rhythm, a little noise, and more load on the slots of shard a than it can bear.
fn history() -> String {
    format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 300, s.slot_id, pg_catalog.to_timestamp(h * 300), 1, 1, 1, \
             CASE a.shard_name WHEN 'a' THEN 30 ELSE 2 END * (1.2 + sin(h * 2 * pi() / 288)) * (0.97 + 0.06 * random()) \
         FROM foreshard.slot s JOIN foreshard.shard a USING (shard_id), LATERAL (SELECT extract(epoch FROM now())::int8 / 300 AS now) t, \
             generate_series(now - {BUCKETS}, now - 1) h"
    )
}

/// Rows of the history that a statement of this transaction has read.
const READ: &str = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_all_tables WHERE relid = 'foreshard.heat_history'::regclass";

/// Runs a statement in a transaction, in a session of its own (which has counted nothing yet); what it says, and
/// how many rows of the history it reads.
fn counted(cluster: &Cluster, begin: &str, sql: &str) -> Result<(String, u64)> {
    let mut client = cluster.connect("d")?;
    client.exec(begin)?;
    let begun = Instant::now();
    let said = client.exec(sql)?.to_text();
    let ms = begun.elapsed().as_millis();
    let read = client.query_one(READ)?.parse().unwrap_or(u64::MAX);
    client.exec("ROLLBACK")?;
    println!("{sql:.60}: {ms} ms, {read} rows of the history");
    Ok((said, read))
}

/// What differs between the plan that the keeper stored and one that is asked for.
const DIFFERENCES: &str = "WITH stored AS (SELECT action, slot_id, from_shard::text, to_shard::text, confidence, benefit, bytes, imbalance_before, \
         imbalance_after, reason, refusal, advice FROM foreshard.recommendations WHERE action = 'move'), \
     asked AS (SELECT action, slot_id, from_shard, to_shard, confidence, benefit, bytes, imbalance_before, imbalance_after, reason, refusal, advice \
         FROM foreshard.recommend() WHERE action = 'move') \
     SELECT (SELECT count(*) FROM (SELECT * FROM stored EXCEPT SELECT * FROM asked) q) || ' ' || (SELECT count(*) FROM (SELECT * FROM asked EXCEPT SELECT * FROM stored) q) \
         || ' ' || (SELECT count(*) > 0 FROM asked)";

fn start() -> Result<(Cluster, Client)> {
    let settings = ClusterOptions::new("foreseen")
        .set("foreshard.forecast_horizon", "1h")
        .set("foreshard.plan_interval", "2s")
        .set("foreshard.bucket", "10s")
        .set("foreshard.merge_threshold", "0")
        .set("foreshard.split_threshold", "100");
    let cluster = cluster(&settings)?;
    let mut client = database(&cluster, "d")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY)")?;
    client
        .exec(&format!("SELECT foreshard.distribute('t', 'id', {SLOTS}, shards => ARRAY['a', 'b', 'c'])"))?;
    client.exec(&history())?;
    client.exec("ANALYZE foreshard.heat_history")?;
    wait_for(&mut client, "SELECT count(*) FROM foreshard.load_curve", &SLOTS.to_string())?;
    Ok((cluster, client))
}

#[test]
fn sessions_plan_with_what_the_keeper_foresaw() -> Result<()> {
    let (cluster, mut client) = start()?;
    // A bucket may end between, or the keeper be late on a busy machine: then the history is read, and the plan is another one.
    let mut last = (String::new(), 0);
    let same = wait_until("both plans are the same", PATIENCE, || {
        last = counted(&cluster, "BEGIN ISOLATION LEVEL REPEATABLE READ", DIFFERENCES)?;
        Ok(last.0 == "0 0 true" && last.1 < 100)
    });
    assert!(same.is_ok(), "{last:?}");
    // All but what the time that passes makes too old.
    let all = u64::from(SLOTS * BUCKETS) * 9 / 10;
    let (_, read) =
        counted(&cluster, "BEGIN", "SELECT count(*) FROM foreshard.predict_shard_assignment('30 min')")?;
    assert!(read >= all, "{read}: of another horizon the keeper knows nothing");
    // What users tell, and what slots become, is listened to at once.
    for changed in [
        "INSERT INTO foreshard.event (kind, starts_at, ends_at, factor) VALUES ('sale', now() + interval '10 min', now() + interval '40 min', 5)",
        "INSERT INTO foreshard.regressor SELECT 'degrees', NULL, now() + h * interval '5 min', h FROM generate_series(0, 20) h",
        "UPDATE foreshard.slot SET last_moved_at = now() WHERE slot_id = (SELECT min(slot_id) FROM foreshard.slot)",
        "DELETE FROM foreshard.forecast WHERE slot_id = (SELECT min(slot_id) FROM foreshard.forecast)",
    ] {
        let (_, read) =
            counted(&cluster, &format!("BEGIN; {changed}"), "SELECT count(*) FROM foreshard.recommend()")?;
        assert!(read >= all, "{read} after {changed}");
    }
    // Curves and forecasts are of the same slots.
    let fits = "SELECT count(*) FROM foreshard.load_curve c FULL JOIN (SELECT DISTINCT slot_id FROM foreshard.forecast) f USING (slot_id) \
        WHERE c.slot_id IS NULL OR f.slot_id IS NULL";
    wait_for(&mut client, fits, "0")?;
    // Who stops planning is not asked any more.
    client.exec("ALTER SYSTEM SET foreshard.observe = off")?;
    client.exec("SELECT pg_reload_conf()")?;
    wait_until("the keeper's plan is too old", PATIENCE, || {
        Ok(counted(&cluster, "BEGIN", "SELECT count(*) FROM foreshard.recommend()")?.1 >= all)
    })
}
