//! Plans know how far nodes are: the nearer one is preferred, one that statements would wait for too long is refused in words, and
//! predictions say what is not in them.

mod support;

use foreshard_test::{Client, ClusterOptions, Result};
use support::{cluster, database, wait_for};

/// What is said of both nodes for a slot of shard a, the better one first.
fn considered(client: &mut Client) -> Result<String> {
    let sql = "SELECT string_agg(x.value->>'shard' || ':' || coalesce(x.value->>'refusal', 'fits'), ' ' ORDER BY x.ordinality) \
        FROM jsonb_array_elements(foreshard.explain_placement_json('t', 1::bigint)->'considered') WITH ORDINALITY x WHERE x.value->>'shard' IN ('near', 'far')";
    Ok(client.query_one(sql)?)
}

#[test]
fn round_trips_are_charged() -> Result<()> {
    // No health check measures anything else, and nobody overwrites the loads.
    let cluster = cluster(
        &ClusterOptions::new("round-trips")
            .set("foreshard.forecast_horizon", "1d")
            .set("foreshard.cooldown", "0")
            .set("foreshard.node_check_interval", "0")
            .set("foreshard.observe", "off"),
    )?;
    let mut client = database(&cluster, "d")?;
    client.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY); SELECT foreshard.distribute('t', 'id', 16, remote => true, shards => '{a}'); \
         UPDATE foreshard.shard SET draining = true WHERE shard_name IN ('b', 'c'); \
         INSERT INTO foreshard.node (node_name, server_name, remote_schema, checked_as, round_trip_ms) \
             VALUES ('n_far', 's_far', 'public', current_user, 8.3), ('n_near', 's_near', 'public', current_user, 0.24); \
         INSERT INTO foreshard.shard (shard_name, node_name, tablespace_name, capacity) \
             VALUES ('far', 'n_far', 'pg_default', 1000), ('near', 'n_near', 'pg_default', 1000); \
         INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
             SELECT 3600, s.slot_id, to_timestamp(h * 3600), 1, 1, 1, 60 * (0.97 + 0.06 * random()) \
             FROM foreshard.slot s, LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, generate_series(now - 28 * 24, now - 1) h; \
         INSERT INTO foreshard.slot_heat (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, heat, hot_buckets, access_score) \
             SELECT slot_id, now(), 0, 0, 0, 0, 0, 0, 0, 60, 9, 20 FROM foreshard.slot",
    )?;
    assert_eq!(considered(&mut client)?, "near:fits far:fits");
    let text = client.query_one("SELECT foreshard.explain_placement('t', 1::bigint)")?;
    for said in ["a round trip of 8.30 ms away", "(3.2 lost to waiting for its node)"] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    // 2,000 accesses per second would wait for 16 s in every second.
    client.exec("UPDATE foreshard.slot_heat SET access_score = 2000")?;
    assert_eq!(considered(&mut client)?, "near:fits far:round_trip");
    client.exec("UPDATE foreshard.node SET round_trip_ms = 64")?;
    let json = "SELECT foreshard.explain_placement_json('t', 1::bigint) #>> '{verdict,refusal}'";
    assert_eq!(client.query_one(json)?, "round_trip");
    let text = client.query_one("SELECT foreshard.explain_placement('t', 1::bigint)")?;
    assert!(text.contains("It stays") && text.contains("foreshard.wait_cost"), "{text}");
    client.exec("ALTER SYSTEM SET foreshard.wait_cost = 0")?;
    client.exec("SELECT pg_reload_conf()")?;
    wait_for(&mut client, "SHOW foreshard.wait_cost", "0")?;
    assert!(!considered(&mut client)?.contains("round_trip"));

    // Triggers cost what they cost; what a statement waits for besides is named.
    let note =
        "SELECT coalesce(note, '') FROM foreshard.predict_cost('t', 'insert', 100) WHERE trigger IS NULL";
    assert!(!client.query_one(note)?.contains("round trips"));
    client.exec(
        "UPDATE foreshard.slot SET shard_id = (SELECT shard_id FROM foreshard.shard WHERE shard_name = 'far') \
         WHERE slot_id = (SELECT min(slot_id) FROM foreshard.slot)",
    )?;
    let said = client.query_one(note)?;
    assert!(said.contains("1 of 16 partitions are on nodes") && said.contains("64.00 ms"), "{said}");
    Ok(())
}
