//! Moves that are under way: their load counts where they go, and they hold up only what has to do with the same shards.

mod support;

use foreshard_test::{Client, ClusterOptions, Result};
use support::{cluster, database, wait_for};

/// Four weeks of hours: 50 cost units/s of every slot of t on shard a, at any time.
const HISTORY: &str = "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
    SELECT 3600, s.slot_id, pg_catalog.to_timestamp(h * 3600), 1, 1, 1, 50 * (0.99 + 0.02 * random()) \
    FROM foreshard.slots s, LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, generate_series(now - 28 * 24, now - 1) h \
    WHERE s.\"table\" = 't'::regclass";

/// As if a dozen steps had paid.
const TRUST: &str = "INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, from_capacity, to_capacity, \
         capacity, least_gain, drains, foreseen, resolution_s, made_at, due_at, judged_at, paid) \
     SELECT group_id, 0, 1, 2, 0.95, 0.95, '{}', '{}', 1, 1, 1, 0, false, true, 3600, now(), now(), now(), true \
     FROM foreshard.colocation_group, generate_series(1, 12)";

/// Slots of shard a that are recommended to go.
const WANTED: &str = "SELECT count(*) FROM foreshard.recommendations WHERE action = 'move' AND from_shard = 'a' AND to_shard = 'b'";

fn number(client: &mut Client, query: &str) -> Result<i64> {
    Ok(client.query_one(query)?.parse().unwrap_or(-1))
}

#[test]
fn moves_under_way_count_where_they_go_and_hold_up_only_what_they_touch() -> Result<()> {
    let settings = ClusterOptions::new("underway")
        .set("foreshard.forecast_horizon", "1d")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.bucket", "1s")
        .set("foreshard.cooldown", "0")
        .set("foreshard.merge_threshold", "0")
        .set("foreshard.split_threshold", "100");
    let mut cluster = cluster(&settings)?;
    let mut client = database(&cluster, "d")?;
    client.exec("SELECT foreshard.drop_shard('c')")?;
    // Swapped moves keep their way back for as long as this test lasts, and the first one is held before its copy.
    cluster.set_and_reload(&[("foreshard.rollback_window", "1h"), ("foreshard.hold_at_phase", "copy")])?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 8, shards => ARRAY['a'])")?;
    client.exec(HISTORY)?;
    wait_for(&mut client, WANTED, "4")?;

    let slot = number(&mut client, "SELECT min(slot_id) FROM foreshard.slot")?;
    let held = number(&mut client, &format!("SELECT foreshard.move_slot({slot}, 'b')"))?;
    let phase = format!("SELECT phase FROM foreshard.move WHERE move_id = {held}");
    wait_for(&mut client, &phase, "copy")?;
    // One of the four is on its way: three are left, not four others.
    client.exec("SELECT pg_sleep(2.5)")?;
    assert_eq!(client.query_one(WANTED)?, "3");
    let told = client.query_one(
        "SELECT max(forecast) FILTER (WHERE shard = 'b') > 40 AND max(forecast) FILTER (WHERE shard = 'a') < 370 FROM foreshard.recommend_curves()",
    )?;
    assert_eq!(told, "t", "its load is where it will be");

    // Trusted and in mode auto, but with a move on the same shards: the others wait for it.
    client.exec(TRUST)?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'auto')")?;
    client.exec("SELECT pg_sleep(2.5)")?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.move")?, "1");

    // Paused by a person it goes nowhere: it counts where it is, and holds up nobody.
    client.exec(&format!("SELECT foreshard.pause_move({held})"))?;
    cluster.set_and_reload(&[("foreshard.hold_at_phase", "")])?;
    let swapped = "SELECT count(*) FROM foreshard.move WHERE phase = 'watch'";
    wait_for(&mut client, swapped, "4")?;
    assert_eq!(client.query_one(&phase)?, "copy");

    // Nor do those that only keep a way back.
    client.exec("SELECT foreshard.drain_shard('a')")?;
    wait_for(&mut client, swapped, "7")?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.slots WHERE shard = 'a'")?, "1");
    Ok(())
}

/// What foreshard filed by itself and what waits for a carrier is taken back when it may not be done any more.
#[test]
fn what_has_not_begun_is_withdrawn() -> Result<()> {
    let settings = ClusterOptions::new("withdrawn")
        .set("foreshard.forecast_horizon", "1d")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.bucket", "1s")
        .set("foreshard.cooldown", "0")
        .set("foreshard.max_concurrent_moves", "1")
        .set("foreshard.merge_threshold", "0")
        .set("foreshard.split_threshold", "100");
    let mut cluster = cluster(&settings)?;
    let mut client = database(&cluster, "d")?;
    client.exec("SELECT foreshard.add_shard('d')")?;
    cluster.set_and_reload(&[("foreshard.hold_at_phase", "copy")])?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY); CREATE TABLE u (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 8, shards => ARRAY['a'])")?;
    client.exec("SELECT foreshard.distribute('u', 'id', 1, shards => ARRAY['c'])")?;
    client.exec("SELECT foreshard.configure('u', 'mode', 'off')")?;
    client.exec(HISTORY)?;
    client.exec(TRUST)?;
    client.exec("UPDATE foreshard.shard SET capacity = 0.001 WHERE shard_name IN ('c', 'd')")?;
    // The only carrier there may be is at something else.
    let mine = client.query_one(
        "SELECT foreshard.move_slot(min(slot_id), 'd') FROM foreshard.slots WHERE \"table\" = 'u'::regclass",
    )?;
    wait_for(&mut client, &format!("SELECT phase FROM foreshard.move WHERE move_id = {mine}"), "copy")?;
    let waiting = "SELECT count(*) > 0 FROM foreshard.progress_moves WHERE state = 'waiting' AND requested_by = 'foreshard' AND phase = 'preflight'";
    let withdrawn = |client: &mut Client, why: &str| -> Result<()> {
        wait_for(
            client,
            "SELECT count(*) FROM foreshard.progress_moves WHERE state = 'waiting' AND requested_by = 'foreshard'",
            "0",
        )?;
        let told = client.query_one("SELECT DISTINCT detail ->> 'reason' FROM foreshard.history WHERE event = 'withdrawn' ORDER BY 1 DESC LIMIT 1")?;
        assert!(told.contains(why), "{told}");
        Ok(())
    };
    client.exec("SELECT foreshard.configure('t', 'mode', 'auto')")?;
    wait_for(&mut client, waiting, "t")?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'advise')")?;
    withdrawn(&mut client, "no longer auto")?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'auto')")?;
    wait_for(&mut client, waiting, "t")?;
    let closed = client.query_one(
        "SELECT to_char(now() + interval '3 h', 'HH24:MI-') || to_char(now() + interval '4 h', 'HH24:MI')",
    )?;
    cluster.set_and_reload(&[("foreshard.move_window", &closed)])?;
    wait_for(
        &mut client,
        "SELECT count(*) > 0 FROM foreshard.history WHERE event = 'withdrawn' AND detail ->> 'reason' LIKE '%hours%'",
        "t",
    )?;
    wait_for(&mut client, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "1")?;
    // What a person asked for goes on.
    assert_eq!(
        client.query_one(&format!(
            "SELECT finished OR cancel_requested FROM foreshard.move WHERE move_id = {mine}"
        ))?,
        "f"
    );
    Ok(())
}
