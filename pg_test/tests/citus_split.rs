//! Slots of Citus that are divided: on request, for one key, and by somebody else.

mod common;

use common::Server;
use common::citus::{ELSEWHERE, SHARDS, World, skipped};
use foreshard_test::Result;

/// Slots of the tenants.
const SLOTS: &str =
    "SELECT count(DISTINCT slot_id) FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass";

/// Gives a slot a past: a bucket half an hour ago.
fn remember(here: &mut Server, slot: &str) -> Result<()> {
    here.query(&format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, cost_units_per_s) \
         VALUES (60, {slot}, date_trunc('minute', now()) - interval '30 min', 100, 10)"
    ))?;
    Ok(())
}

/// That bucket, as slots have it now.
fn past(here: &mut Server, slots: &str) -> Result<String> {
    here.query(&format!(
        "SELECT string_agg(round(reads_per_s)::text, ' ' ORDER BY slot_id) FROM foreshard.heat_history \
         WHERE resolution_s = 60 AND slot_id IN ({slots}) AND bucket_at < now() - interval '20 min'"
    ))
}

#[test]
fn slots_are_split_and_keys_isolated_on_request() -> Result<()> {
    if skipped("slots_are_split_and_keys_isolated_on_request")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-split")?;
    let (first, second) = (world.shard(0)?, world.shard(1)?);
    let slot = world.slot_on(0)?;
    remember(&mut world.here, &slot)?;
    for (call, code) in [
        (format!("prepare_split({slot})"), "0A000"),
        (format!("split_slot({slot}, 'nowhere')"), "42704"),
        (format!("merge_slots({slot}, {slot} + 4)"), "0A000"),
    ] {
        let refused = world.here.fails(&format!("SELECT foreshard.{call}"))?;
        assert_eq!(refused.sqlstate, code, "{call}: {refused}");
    }
    let split = format!("SELECT foreshard.split_slot({slot}, to_shard_b => '{second}')");
    let split = world.here.query(&split)?;
    world.here.wait_end(&split, "done")?;
    assert_eq!(world.here.query(SLOTS)?, (SHARDS + 1).to_string());
    let other = format!("SELECT slot_id FROM foreshard.move_part WHERE move_id = {split} AND part = 1");
    let other = world.here.query(&other)?;
    assert_eq!(world.shard_of(&slot)?, first);
    assert_eq!(world.shard_of(&other)?, second);
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    assert_eq!(world.rows()?, "1000|0");
    // Halves of the hashes, and of the past.
    assert_eq!(past(&mut world.here, &format!("{slot}, {other}"))?, "50 50");
    let halves = format!(
        "SELECT a.hash_to + 1 = b.hash_from, a.modulus, b.remainder = a.remainder + 1 FROM foreshard.slot a, foreshard.slot b \
         WHERE a.slot_id = {slot} AND b.slot_id = {other}"
    );
    assert_eq!(world.here.query(&halves)?, format!("t|{}|t", SHARDS + 1));
    let back = world.here.fails(&format!("SELECT foreshard.rollback_move({split})"))?;
    assert_eq!(back.sqlstate, "0A000", "{back}");

    // A key by itself, on the other node, in one copy.
    let from = world.here.query("SELECT foreshard.get_shard_location('tenant', 7)")?;
    let to = if from == first { &second } else { &first };
    let alone = format!("SELECT foreshard.isolate_key('tenant', 7, '{to}')");
    let isolated = world.here.query(&alone)?;
    world.here.wait_end(&isolated, "done")?;
    assert_eq!(&world.here.query("SELECT foreshard.get_shard_location('tenant', 7)")?, to);
    let hash = "SELECT s.hash_from = s.hash_to, s.hash_from = worker_hash(7::bigint) FROM foreshard.slot s JOIN foreshard.citus_shard t USING (slot_id) \
                WHERE t.citus_shard = get_shard_id_for_distribution_column('tenant', 7)";
    assert_eq!(world.here.query(hash)?, "t|t");
    assert_eq!(world.here.query(&alone)?, "", "it is by itself already");
    let refused = world.here.fails(
        "SELECT foreshard.split_slot(slot_id) FROM foreshard.citus_shard WHERE citus_shard = get_shard_id_for_distribution_column('tenant', 7)",
    )?;
    assert_eq!(refused.sqlstate, "0A000", "{refused}");
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    assert_eq!(world.rows()?, "1000|0");
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.heat_map WHERE reads_per_s < 0")?, "0");
    Ok(())
}

#[test]
fn splits_by_others_keep_the_past() -> Result<()> {
    if skipped("splits_by_others_keep_the_past")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-divided")?;
    let second = world.shard(1)?;
    let slot = world.slot_on(0)?;
    remember(&mut world.here, &slot)?;
    // What was to become of the whole is not to become of a part.
    world.here.hold(Some("preflight"))?;
    let waits = world.here.query(&format!("SELECT foreshard.move_slot({slot}, '{second}')"))?;
    world.here.wait_phase(&waits, "preflight")?;
    let quarter = world.here.query(&format!(
        "SELECT format('%s, ARRAY[''%s''], ARRAY[%s, %s]', d.shardid, \
             d.shardminvalue::int8 + (d.shardmaxvalue::int8 - d.shardminvalue::int8 + 1) / 4 - 1, n.citus_node, n.citus_node) \
         FROM pg_dist_shard d JOIN foreshard.citus_shard t ON t.citus_shard = d.shardid JOIN foreshard.nodes n ON n.node = t.node_name \
         WHERE t.slot_id = {slot} AND t.table_oid = 'tenant'::regclass"
    ))?;
    world.here.query(&format!("SELECT citus_split_shard_by_split_points({quarter}, 'block_writes')"))?;
    world.here.wait_query(SLOTS, &(SHARDS + 1).to_string())?;
    let made = format!(
        "SELECT jsonb_array_length(detail->'slots') FROM foreshard.history WHERE event = 'citus_split' AND slot_id = {slot}"
    );
    assert_eq!(world.here.query(&made)?, "2");
    let both = format!(
        "SELECT v::bigint FROM foreshard.history, jsonb_array_elements_text(detail->'slots') v WHERE event = 'citus_split' AND slot_id = {slot}"
    );
    assert_eq!(past(&mut world.here, &both)?, "25 75");
    world.here.hold(None)?;
    world.here.wait_end(&waits, "cancelled")?;
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    assert_eq!(world.rows()?, "1000|0");
    a_tenant_that_is_the_load_is_told(&mut world.here)
}

fn a_tenant_that_is_the_load_is_told(here: &mut Server) -> Result<()> {
    here.wait_query("SELECT bool_and(bytes IS NOT NULL) FROM foreshard.slots", "t")?;
    here.set(&[("foreshard.observe", "off")])?;
    here.wait_query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard citus'", "0")?;
    let hot = "(SELECT slot_id FROM foreshard.citus_shard WHERE citus_shard = get_shard_id_for_distribution_column('tenant', 7))";
    here.query(&format!(
        "UPDATE foreshard.slot SET last_moved_at = NULL; DELETE FROM foreshard.heat_history; DELETE FROM foreshard.citus_tenant; \
         INSERT INTO foreshard.slot_heat (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, heat, hot_buckets, access_score) \
         SELECT slot_id, now(), 0, 0, 0, 0, 0, 0, 0, CASE slot_id WHEN {hot} THEN 1000 ELSE 10 END, 5, 0 FROM foreshard.slot \
         ON CONFLICT (slot_id) DO UPDATE SET heat = excluded.heat, hot_buckets = 5, access_score = 0; \
         INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 60, t.slot_id, to_timestamp(g * 60), 1, 1, 1, t.heat * (0.97 + 0.06 * random()) \
         FROM foreshard.slot_heat t, LATERAL (SELECT extract(epoch FROM now())::int8 / 60 AS now) n, generate_series(now - 200, now - 1) g; \
         INSERT INTO foreshard.citus_tenant (group_id, tenant, node_name, slot_id, hash, queries, observed_at) \
         SELECT s.group_id, '7', t.node_name, s.slot_id, worker_hash(7::bigint), 6000, now() FROM foreshard.slot s JOIN foreshard.citus_shard t USING (slot_id) \
         WHERE t.citus_shard = get_shard_id_for_distribution_column('tenant', 7)"
    ))?;
    let told =
        format!("SELECT refusal FROM foreshard.recommend() WHERE action = 'isolate' AND slot_id = {hot}");
    assert_eq!(
        here.query(&told)?,
        "irreversible",
        "{}",
        here.query("SELECT r FROM foreshard.recommend() r")?
    );
    Ok(())
}
