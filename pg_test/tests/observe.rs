//! Observe → forecast → recommend → move: heat history, roll-up, forecasts, plans and their effect,
//! with buckets of one second.

mod support;

use foreshard_test::load::{Load, Session};
use foreshard_test::{Client, Cluster, ClusterOptions, Result, SqlError, wait_until};
use std::time::Duration;
use support::{PATIENCE, Random, cluster, database, wait_for};

/// Statements per second of a workload.
const RATE: f64 = 400.0;

fn options(name: &str) -> ClusterOptions {
    ClusterOptions::new(name)
        .set("foreshard.bucket", "1s")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.forecast_horizon", "10s")
        .set("foreshard.heat_half_life", "4s")
        .set("foreshard.hot_buckets", "2")
        .set("foreshard.cooldown", "0")
        .set("foreshard.scan_cost", "1")
}

/// Creates a managed table `t` with a hundred rows per slot; returns the keys of every slot, by remainder.
fn managed_table(client: &mut Client, slots: usize, shards: &str) -> Result<Vec<Vec<String>>> {
    client.exec("CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0)")?;
    client.exec(&format!("INSERT INTO t SELECT g FROM generate_series(1, {}) g", slots * 100))?;
    client.exec(&format!("SELECT foreshard.distribute('t', 'id', {slots}, shards => {shards})"))?;
    let rows = client.exec(
        "SELECT s.remainder, t.id FROM t JOIN foreshard.slots s ON s.partition = t.tableoid ORDER BY 1, 2",
    )?;
    let mut keys = vec![Vec::new(); slots];
    for row in 0..rows.len() {
        if let (Some(slot), Some(key)) = (rows.parse::<usize>(row, "remainder"), rows.field(row, "id")) {
            keys[slot].push(key.to_string());
        }
    }
    Ok(keys)
}

/// Four reads to one update, on slots drawn by weight.
struct Skewed {
    random: Random,
    keys: Vec<Vec<String>>,
    weights: Vec<u64>,
}

impl Skewed {
    fn key(&mut self) -> String {
        let mut left = self.random.below(self.weights.iter().sum());
        let slot = self.weights.iter().position(|weight| {
            let hit = left < *weight;
            left = left.saturating_sub(*weight);
            hit
        });
        let keys = &self.keys[slot.unwrap_or(0)];
        keys[self.random.below(keys.len() as u64) as usize].clone()
    }
}

impl Session for Skewed {
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        client.prepare("r", "SELECT n FROM t WHERE id = $1")?;
        client.prepare("w", "UPDATE t SET n = n + 1 WHERE id = $1")
    }

    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        let statement = if self.random.below(5) == 0 { "w" } else { "r" };
        let key = self.key();
        client.exec_prepared(statement, &[Some(&key)]).map(drop)
    }
}

fn start_load(cluster: &Cluster, database: &str, keys: &[Vec<String>], weights: &[u64]) -> Result<Load> {
    let session = |seed| Skewed { random: Random(seed), keys: keys.to_vec(), weights: weights.to_vec() };
    Load::start(&cluster.conninfo(database), RATE, "load", vec![session(1), session(2)])
}

/// Average of a column of the finest history of each slot over its last `seconds`, by remainder.
fn recent(client: &mut Client, column: &str, seconds: u32) -> Result<Vec<f64>> {
    let rows = client.exec(&format!(
        "SELECT coalesce(avg(h.{column}), 0) AS v FROM foreshard.slot s LEFT JOIN foreshard.heat_history h \
           ON h.slot_id = s.slot_id AND h.resolution_s = 1 AND h.bucket_at >= now() - interval '{seconds} s' \
         GROUP BY s.remainder ORDER BY s.remainder"
    ))?;
    Ok((0..rows.len()).filter_map(|row| rows.parse(row, "v")).collect())
}

/// Highest load of a shard over the mean of all shards, over the last `seconds`.
fn imbalance(client: &mut Client, seconds: u32) -> Result<f64> {
    let text = client.query_one(&format!(
        "SELECT max(load) / avg(load) FROM (SELECT h.shard_id, coalesce(sum(q.cost), 0) AS load FROM foreshard.shard h \
         LEFT JOIN foreshard.slot s USING (shard_id) LEFT JOIN (SELECT slot_id, avg(cost_units_per_s) AS cost \
           FROM foreshard.heat_history WHERE resolution_s = 1 AND bucket_at >= now() - interval '{seconds} s' GROUP BY 1) q \
         USING (slot_id) GROUP BY 1) l"
    ))?;
    Ok(text.parse().unwrap_or(f64::NAN))
}

/// Sets a setting for the whole cluster and waits until the keeper has it.
fn set(cluster: &mut Cluster, name: &str, value: &str) -> Result<()> {
    cluster.set_and_reload(&[(name, value)])?;
    std::thread::sleep(Duration::from_millis(300));
    Ok(())
}

#[test]
fn heat_follows_the_workload() -> Result<()> {
    // Unit costs near the truth, so that it does not matter how many samples a slot has given yet.
    let options = options("heat").set("foreshard.scan_cost", "0.02");
    let mut cluster = cluster(&options)?;
    let mut c = database(&cluster, "d")?;
    let keys = managed_table(&mut c, 8, "NULL")?;
    // Before there is history there is no forecast, and nothing is known rather than 0.
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.forecasts")?, "0");
    wait_for(&mut c, "SELECT count(*) FROM foreshard.heat_map WHERE observed_at IS NOT NULL", "8")?;
    let weights = [1, 1, 1, 9, 1, 1, 1, 1];
    let load = start_load(&cluster, "d", &keys, &weights)?;
    std::thread::sleep(Duration::from_secs(9));
    let reads = recent(&mut c, "reads_per_s", 6)?;
    let writes = recent(&mut c, "writes_per_s", 6)?;
    let costs = recent(&mut c, "cost_units_per_s", 6)?;
    // One bucket's share may be NULL or odd: sessions report their counters once a second, as buckets are.
    let hot = "SELECT remainder = 3 AND share BETWEEN 0.4 AND 0.7 FROM foreshard.heat_map ORDER BY heat DESC NULLS LAST LIMIT 1";
    wait_for(&mut c, hot, "t")?;
    drop(load);
    let total = weights.iter().sum::<u64>() as f64;
    for (slot, weight) in weights.iter().enumerate() {
        let wanted = RATE * *weight as f64 / total;
        let near = |got: f64, wanted: f64| got > wanted * 0.6 && got < wanted * 1.5;
        assert!(near(reads[slot], wanted), "reads/s of slot {slot}: {reads:?}, wanted {wanted}");
        assert!(near(writes[slot], wanted / 5.0) || *weight == 1, "writes/s of slot {slot}: {writes:?}");
    }
    let share = costs[3] / costs.iter().sum::<f64>();
    assert!((0.45..0.67).contains(&share), "the hot slot's share is {share}, wanted {}", 9.0 / total);
    let bad = c.exec(
        "SELECT * FROM foreshard.forecasts WHERE lower IS NULL OR upper IS NULL OR NOT (0 <= lower AND lower <= cost_units_per_s \
         AND cost_units_per_s <= upper) OR interval_level <> 0.9 OR at < made_at - interval '2 s' OR model = ''",
    )?;
    assert!(bad.is_empty(), "{}", bad.to_text());
    assert_eq!(
        c.query_one("SELECT count(DISTINCT slot_id), count(*) >= 8 * 5 FROM foreshard.forecasts")?,
        "8"
    );
    late_counters_are_spread(&cluster, &mut c)?;
    a_reset_is_unknown(&mut c)?;
    nothing_is_written_when_off(&mut cluster, &mut c)
}

/// A session reports what a transaction wrote when it ends: that is no burst.
fn late_counters_are_spread(cluster: &Cluster, c: &mut Client) -> Result<()> {
    wait_for(c, "SELECT count(*) FROM foreshard.heat_map WHERE reads_per_s = 0 AND writes_per_s = 0", "8")?;
    let mut writer = cluster.connect("d")?;
    let begun = c.query_one("SELECT clock_timestamp()")?;
    writer.exec("BEGIN")?;
    for _ in 0..5 {
        writer.exec("UPDATE t SET n = n + 1; UPDATE t SET n = n - 1")?;
        std::thread::sleep(Duration::from_secs(1));
    }
    writer.exec("COMMIT")?;
    // Two updates of a hundred rows of each slot, five times.
    // On a busy machine the keeper reads late, and a reading stands for all the time since the one before.
    let readings = format!(
        "(SELECT slot_id, writes_per_s AS rate, extract(epoch FROM bucket_at - lag(bucket_at) OVER (PARTITION BY slot_id ORDER BY bucket_at)) AS s \
          FROM foreshard.heat_history WHERE resolution_s = 1 AND writes_per_s IS NOT NULL AND bucket_at > '{begun}'::timestamptz - interval '2 s') r"
    );
    wait_for(c, &format!("SELECT coalesce(sum(rate * s), 0) >= 8000 * 0.98 FROM {readings}"), "t")?;
    let spread = c.exec(&format!(
        "SELECT slot_id, max(rate), sum(rate * s) FROM {readings} GROUP BY 1 \
         HAVING max(rate) > 500 OR sum(s) FILTER (WHERE rate > 50) < 4 OR sum(rate * s) NOT BETWEEN 700 AND 1350"
    ))?;
    assert!(spread.is_empty(), "a burst that never was:\n{}", spread.to_text());
    Ok(())
}

fn a_reset_is_unknown(c: &mut Client) -> Result<()> {
    let known = "SELECT count(*) FROM foreshard.heat_history WHERE bucket_at > now() - interval '3 s' AND cost_units_per_s IS NULL";
    wait_for(c, known, "0")?;
    // Only this database's counters, as crash recovery or a DBA would.
    c.exec("SELECT pg_stat_reset()")?;
    wait_for(
        c,
        "SELECT count(*) FROM foreshard.heat_history WHERE cost_units_per_s IS NULL AND bucket_at > now() - interval '5 s'",
        "8",
    )?;
    let zero = c.query_one(
        "SELECT count(*) FROM foreshard.heat_history WHERE cost_units_per_s IS NULL AND (reads_per_s IS NOT NULL \
         OR writes_per_s IS NOT NULL OR blocks_per_s IS NOT NULL)",
    )?;
    assert_eq!(zero, "0");
    // Afterwards the slots are idle, and that is known.
    wait_for(c, "SELECT count(*) FROM foreshard.heat_map WHERE reads_per_s = 0", "8")
}

fn nothing_is_written_when_off(cluster: &mut Cluster, c: &mut Client) -> Result<()> {
    set(cluster, "foreshard.observe", "off")?;
    let state = "SELECT count(*), max(bucket_at), (SELECT max(observed_at) FROM foreshard.heat_map), \
                 (SELECT max(made_at) FROM foreshard.forecasts) FROM foreshard.heat_history";
    std::thread::sleep(Duration::from_millis(1_200));
    let before = c.exec(state)?.to_text();
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(before, c.exec(state)?.to_text());
    set(cluster, "foreshard.observe", "on")?;
    wait_until("observation goes on", PATIENCE, || Ok(c.exec(state)?.to_text() != before))
}

#[test]
fn history_is_rolled_up_and_expires() -> Result<()> {
    let mut cluster = cluster(&options("rollup").set("foreshard.observe", "off"))?;
    let mut c = database(&cluster, "d")?;
    managed_table(&mut c, 2, "NULL")?;
    // Two hours ago, aligned to the hour: one hour of seconds. Slot 1's load is the minute's number,
    // every other second unknown; slot 2's minutes 5 to 9 are unknown.
    c.exec(
        "INSERT INTO foreshard.heat_history SELECT 1, s, date_trunc('hour', now()) - interval '2 h' + g * interval '1 s', \
             CASE WHEN g % 2 = 0 THEN g / 60 END, CASE WHEN s = 2 AND g BETWEEN 300 AND 599 THEN NULL ELSE 7 END, 1, \
             CASE WHEN s = 2 AND g BETWEEN 300 AND 599 THEN NULL ELSE g / 60 END \
         FROM generate_series(0, 3599) g, (VALUES (1), (2)) v (s)",
    )?;
    c.exec(
        "INSERT INTO foreshard.heat_history SELECT r, 1, now() - keep * interval '2 s', 1, 1, 1, 1 \
         FROM (VALUES (1, 7200), (60, 172800), (300, 1209600), (3600, 34560000), (7, 7200), (7, 3500)) v (r, keep)",
    )?;
    c.exec("INSERT INTO foreshard.journal (at, event) VALUES (now() - interval '91 days', 'old'), (now() - interval '89 days', 'young')")?;
    set(&mut cluster, "foreshard.observe", "on")?;
    let hour = "date_trunc('hour', now()) - interval '2 h'";
    let count = |r: u32| {
        format!(
            "SELECT count(*) FROM foreshard.heat_history WHERE resolution_s = {r} AND bucket_at >= {hour} AND bucket_at < {hour} + interval '1 h'"
        )
    };
    wait_for(&mut c, &count(3600), "2")?;
    assert_eq!(c.query_one(&count(60))?, "120");
    assert_eq!(c.query_one(&count(300))?, "24");
    let wrong = c.exec(&format!(
        "SELECT * FROM foreshard.heat_history h, LATERAL (SELECT extract(epoch FROM bucket_at - ({hour}))::int / 60 AS minute) m \
         WHERE resolution_s = 60 AND bucket_at >= {hour} AND bucket_at < {hour} + interval '1 h' AND \
           (cost_units_per_s, writes_per_s, reads_per_s, blocks_per_s) IS DISTINCT FROM \
           (CASE WHEN slot_id = 1 OR minute NOT BETWEEN 5 AND 9 THEN minute::float8 END, \
            CASE WHEN slot_id = 1 OR minute NOT BETWEEN 5 AND 9 THEN 7::float8 END, minute::float8, 1::float8)"
    ))?;
    assert!(wrong.is_empty(), "{}", wrong.to_text());
    // Five minutes: the second five of slot 2 are unknown, the hour's average leaves them out.
    let coarse = c.exec(&format!(
        "SELECT coalesce(cost_units_per_s::text, 'unknown') FROM foreshard.heat_history WHERE resolution_s = 300 AND slot_id = 2 \
         AND bucket_at >= {hour} AND bucket_at < {hour} + interval '20 min' ORDER BY bucket_at"
    ))?;
    assert_eq!(coarse.to_text(), "2\nunknown\n12\n17");
    let hours = c.exec(&format!(
        "SELECT round(cost_units_per_s::numeric, 6) FROM foreshard.heat_history WHERE resolution_s = 3600 AND bucket_at = {hour} ORDER BY slot_id"
    ))?;
    assert_eq!(hours.to_text(), "29.500000\n31.545455");
    expiry(&mut c)
}

fn expiry(c: &mut Client) -> Result<()> {
    // A keeper cleans up when it starts, and then once a minute.
    c.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'foreshard keeper%' AND datname = 'd'")?;
    let old = "SELECT count(*) FROM foreshard.heat_history WHERE bucket_at < now() - CASE resolution_s WHEN 60 THEN interval '172800 s' \
               WHEN 300 THEN interval '1209600 s' WHEN 3600 THEN interval '34560000 s' ELSE interval '7200 s' END - interval '1 s'";
    wait_for(c, old, "0")?;
    wait_for(c, "SELECT count(*) FROM foreshard.heat_history WHERE resolution_s = 7", "1")?;
    assert_eq!(
        c.query_one("SELECT string_agg(event, ',') FROM foreshard.history WHERE event IN ('old', 'young')")?,
        "young"
    );
    Ok(())
}

/// A plan to move several slots off the one shard that has them all. What is said beyond that, of slots that the plan has placed already
/// by uncertain loads, is not to be done now.
fn check_recommendations(c: &mut Client) -> Result<()> {
    let ready = "SELECT count(*) > 2 FROM foreshard.recommend() WHERE action = 'move' AND confidence >= 0.7";
    wait_for(c, ready, "t")?;
    let bad = c.exec(
        "SELECT * FROM foreshard.recommend() WHERE action = 'move' AND (from_shard <> 'a' AND refusal IS NULL OR to_shard NOT IN ('b', 'c') \
         OR confidence NOT BETWEEN 0 AND 1 OR benefit <= 0 OR bytes <= 0 OR imbalance_after >= imbalance_before OR reason = '' \
         OR refusal = 'low_confidence' AND confidence >= 0.7 OR refusal IN ('scheduled', 'depends', 'untrusted_foresight') AND confidence < 0.7)",
    )?;
    assert!(bad.is_empty(), "{}", bad.to_text());
    wait_for(
        c,
        "SELECT count(*) > 2 FROM foreshard.recommendations WHERE action = 'move' AND from_shard = 'a'",
        "t",
    )?;
    // Every slot of the map has a confidence of its own; the one of the map is the least of them.
    let own = "SELECT count(*) > 0 AND bool_and(p.confidences ? key) AND min(p.confidence) = min((p.confidences->>key)::float8) \
        AND min((p.confidences->>key)::float8) >= 0.7 FROM foreshard.predict_shard_assignment() p, jsonb_object_keys(p.shard_assignment_map) key";
    wait_for(c, own, "t")?;
    // A dry run: a transaction that writes nothing needs no id.
    c.exec("BEGIN; SELECT * FROM foreshard.recommend(); SELECT * FROM foreshard.predict_shard_assignment('20 s')")?;
    assert_eq!(c.query_one("SELECT pg_current_xact_id_if_assigned() IS NULL")?, "t");
    c.exec("ROLLBACK")?;
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.move")?, "0", "advise does not act");
    Ok(())
}

/// Why a hot slot stays is a word that a machine can read.
fn check_refusals(cluster: &mut Cluster, c: &mut Client) -> Result<()> {
    set(cluster, "foreshard.hot_buckets", "1000")?;
    set(cluster, "foreshard.foresight", "0")?;
    let words = "SELECT string_agg(DISTINCT refusal, ',') FROM foreshard.recommend() WHERE action = 'none' AND advice <> '' AND to_shard IS NULL";
    wait_for(c, words, "not_hot_long_enough")?;
    wait_for(
        c,
        "SELECT string_agg(DISTINCT refusal, ',') FROM foreshard.recommendations WHERE action = 'none'",
        "not_hot_long_enough",
    )?;
    assert_eq!(c.exec("SELECT * FROM foreshard.predict_shard_assignment()")?.to_text(), "{}||{}");
    set(cluster, "foreshard.foresight", "0.5")?;
    set(cluster, "foreshard.hot_buckets", "2")
}

/// Asks for the assignment that foreshard believes in, and waits until it is there.
fn follow_prediction(c: &mut Client) -> Result<()> {
    let request = "SELECT foreshard.request_resharding(p.confidence, p.shard_assignment_map) \
                   FROM foreshard.predict_shard_assignment() p WHERE p.confidence IS NOT NULL";
    let mut id = String::new();
    wait_until("a confident assignment", PATIENCE, || {
        id = c.query_one(request)?;
        Ok(!id.is_empty())
    })?;
    let progress =
        format!("SELECT finished FROM foreshard.monitor_resharding_progress() WHERE request_id = {id}");
    wait_for(c, &progress, "t")?;
    let row = c.exec(&format!("SELECT moves = done AS all_done, failed, percent FROM foreshard.monitor_resharding_progress() WHERE request_id = {id}"))?;
    assert_eq!(row.to_text(), "t|0|100.0");
    Ok(())
}

#[test]
fn recommended_moves_help() -> Result<()> {
    let mut cluster = cluster(&options("loop"))?;
    let mut c = database(&cluster, "d")?;
    let keys = managed_table(&mut c, 12, "ARRAY['a']")?;
    let load = start_load(&cluster, "d", &keys, &[3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1])?;
    check_recommendations(&mut c)?;
    check_refusals(&mut cluster, &mut c)?;
    let before = imbalance(&mut c, 4)?;
    // What is asked for is what is confident by then; the rest is, a little later.
    let mut after = before;
    for _ in 0..3 {
        follow_prediction(&mut c)?;
        std::thread::sleep(Duration::from_secs(6));
        after = imbalance(&mut c, 5)?;
        if after < 1.6 {
            break;
        }
    }
    let lost = c.query_one("SELECT count(*) FROM t")?;
    let errors = load.error_texts();
    drop(load);
    println!("imbalance {before:.2} before, {after:.2} after");
    assert!(before > 2.9 && after < 1.6, "imbalance {before:.2} before, {after:.2} after");
    assert_eq!((lost.as_str(), errors.len()), ("1200", 0), "{errors:?}");
    Ok(())
}

#[test]
fn auto_mode_acts_by_itself() -> Result<()> {
    let cluster = cluster(&options("auto").set("foreshard.mode", "auto"))?;
    let mut c = database(&cluster, "d")?;
    let keys = managed_table(&mut c, 6, "ARRAY['a']")?;
    let load = start_load(&cluster, "d", &keys, &[1; 6])?;
    wait_for(&mut c, "SELECT count(*) > 0 FROM foreshard.move WHERE phase = 'done'", "t")?;
    wait_for(&mut c, "SELECT count(DISTINCT shard_id) FROM foreshard.slot", "3")?;
    drop(load);
    assert_eq!(
        c.query_one("SELECT string_agg(DISTINCT requested_by, ',') FROM foreshard.resharding_request")?,
        "foreshard"
    );
    assert_eq!(c.query_one("SELECT min(confidence) >= 0.7 FROM foreshard.resharding_request")?, "t");
    assert_eq!(
        c.query_one("SELECT count(*) FROM foreshard.move WHERE phase IN ('failed', 'cancelled')")?,
        "0"
    );
    Ok(())
}
