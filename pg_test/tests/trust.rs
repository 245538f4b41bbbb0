//! The auto mode and a peak that is hours away: it waits until its foresight is trusted, acts before the peak,
//! and is not trusted any longer once what it recommended did not pay.

mod support;

use foreshard_test::{ClusterOptions, Result};
use support::{cluster, database, wait_for};

/// Every slot has 10 cost units/s, those on shard a 100 from six to nine hours from now, every day for four weeks.
const HISTORY: &str = "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
    SELECT 3600, s.slot_id, pg_catalog.to_timestamp(h * 3600), 1, 1, 1, \
        CASE WHEN s.shard_id = a.shard_id AND (h - now) % 24 + 24 * (((h - now) % 24 < 0)::int) BETWEEN 6 AND 9 THEN 100 ELSE 10 END * (0.97 + 0.06 * random()) \
    FROM foreshard.slot s, foreshard.shard a, LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, \
        generate_series(now - 28 * 24, now - 1) h WHERE a.shard_name = 'a'";

/// Steps off shard a and what is said of them.
const FORESEEN: &str = "SELECT count(*) FROM foreshard.recommendations WHERE action = 'move' AND from_shard = 'a' AND foreseen \
    AND confidence >= 0.7 AND timing = 'no_valley' AND start_at < now() + interval '1 min' \
    AND overload_at BETWEEN now() + interval '4 h' AND now() + interval '7 h'";

#[test]
fn foresight_acts_before_the_peak_once_it_is_trusted() -> Result<()> {
    let settings = ClusterOptions::new("trust")
        .set("foreshard.forecast_horizon", "1d")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.bucket", "1s")
        .set("foreshard.cooldown", "0")
        .set("foreshard.mode", "auto");
    let cluster = cluster(&settings)?;
    let mut client = database(&cluster, "d")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 16, shards => ARRAY['a', 'b'])")?;
    // A trace of load, unevenly spread over three shards, is no overload.
    wait_for(&mut client, "SELECT count(*) FROM foreshard.slot_heat", "16")?;
    client.exec("SELECT count(*) FROM t")?;
    wait_for(&mut client, "SELECT bool_and(heat > 0) FROM foreshard.slot_heat", "t")?;
    client.exec(HISTORY)?;

    // Seen, said, and not acted upon: nobody knows yet how good the forecasts are.
    wait_for(&mut client, &format!("SELECT ({FORESEEN} AND refusal = 'untrusted_foresight') > 0"), "t")?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.move")?, "0");
    let noted = "SELECT count(*) > 0 FROM foreshard.outcome WHERE judged_at IS NULL AND due_at > now() + interval '23 h'";
    assert_eq!(client.query_one(noted)?, "t", "what is recommended will be judged");

    // As if forecasts had missed what came: a dozen steps that paid are not enough.
    client.exec(
        "INSERT INTO foreshard.forecast_error (slot_id, lead, resolution_s, buckets, weight, error, covered, scaled_error, naive_error, last_at) \
         SELECT slot_id, 1, 3600, 20, 20, 1, 8, 1, 1, now() FROM foreshard.slot",
    )?;
    client.exec(
        "INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, from_capacity, to_capacity, \
             capacity, least_gain, drains, foreseen, resolution_s, made_at, due_at, judged_at, paid) \
         SELECT group_id, 0, 1, 2, 0.95, 0.95, '{}', '{}', 1, 1, 1, 0, false, true, 3600, now(), now(), now(), true \
         FROM foreshard.colocation_group, generate_series(1, 12)",
    )?;
    let since = client.query_one("SELECT now() + interval '1 s'")?;
    let unreliable = format!(
        "SELECT count(*) > 0 AND min(made_at) > '{since}' AND bool_and(refusal IS NOT NULL) AND bool_or(refusal = 'untrusted_foresight') \
         FROM foreshard.recommendations WHERE action = 'move' AND foreseen"
    );
    wait_for(&mut client, &unreliable, "t")?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.move")?, "0");
    client.exec("UPDATE foreshard.forecast_error SET covered = weight * 0.9")?;
    wait_for(&mut client, "SELECT count(*) > 1 FROM foreshard.move WHERE phase = 'done'", "t")?;
    let ahead = "SELECT bool_and(finished_at < now() + interval '4 h') AND bool_and(f.shard_name = 'a') FROM foreshard.move m \
        JOIN foreshard.shard f ON f.shard_id = m.from_shard WHERE m.phase = 'done'";
    assert_eq!(client.query_one(ahead)?, "t");
    wait_for(&mut client, &format!("SELECT ({FORESEEN}) = 0"), "t")?;

    // What did not pay: slots that were to go where the peak then was.
    client.exec(
        "INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, from_capacity, to_capacity, \
             capacity, least_gain, drains, foreseen, resolution_s, made_at, due_at) \
         SELECT q.group_id, q.slot_id, 2, 1, 0.95, 0.95, '{}', h.hot, 1000, 1000, 2000, 0.1, false, true, 3600, \
             now() - interval '26 h', now() - interval '2 h' \
         FROM (SELECT * FROM foreshard.slot s WHERE NOT EXISTS (SELECT FROM foreshard.outcome o WHERE o.slot_id = s.slot_id AND judged_at IS NULL)) q, \
             LATERAL (SELECT array_agg(slot_id) AS hot FROM (SELECT slot_id FROM foreshard.heat_history WHERE resolution_s = 3600 \
                 GROUP BY 1 HAVING max(cost_units_per_s) > 50) p WHERE p.slot_id <> q.slot_id) h",
    )?;
    wait_for(&mut client, "SELECT DISTINCT trust FROM foreshard.calibration", "withdrawn")?;
    assert_eq!(
        client.query_one("SELECT detail->>'trust' FROM foreshard.history WHERE event = 'trust' ORDER BY event_id DESC LIMIT 1")?,
        "withdrawn"
    );
    assert_eq!(client.query_one("SELECT bool_or(paid IS FALSE AND gain < 0) FROM foreshard.outcome")?, "t");

    // Of steps that were taken the history says what was expected and what came.
    client.exec(
        "UPDATE foreshard.move SET created_at = created_at - interval '25 h'; \
         UPDATE foreshard.outcome o SET made_at = now() - interval '26 h', due_at = now() - interval '2 h' \
         WHERE judged_at IS NULL AND EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = o.slot_id AND m.to_shard = o.to_shard)",
    )?;
    let judged = "SELECT count(*) > 0 AND bool_and(detail ? 'gain' AND detail ? 'paid' AND (detail->>'confidence')::float8 > 0) \
        FROM foreshard.history h JOIN foreshard.move m USING (move_id) WHERE h.event = 'judged' AND h.slot_id = m.slot_id";
    wait_for(&mut client, judged, "t")?;
    Ok(())
}
