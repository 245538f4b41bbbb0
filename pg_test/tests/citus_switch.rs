//! What happens to writers, and to moves by Citus, when something stands in the way of Citus' switch.

mod common;

use common::citus::{World, skipped};
use foreshard_test::{Client, Result};
use std::time::{Duration, Instant};

/// The lock that Citus, under its own tests' setting, waits for before it switches over.
const GATE: &str = "44000, 55152";

/// Moves that wait for it.
const AT_THE_GATE: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND classid = 44000 AND objsubid = 2";

/// Two tenants of a slot.
fn tenants(world: &mut World, slot: &str) -> Result<(String, String)> {
    let found = world.here.query(&format!(
        "SELECT min(g), max(g) FROM generate_series(1, 1000) g WHERE get_shard_id_for_distribution_column('tenant', g) \
         = (SELECT min(citus_shard) FROM foreshard.slots WHERE slot_id = {slot} AND \"table\" = 'tenant'::regclass)"
    ))?;
    let (one, other) = found.split_once('|').unwrap_or_default();
    Ok((one.to_string(), other.to_string()))
}

fn write(tenant: &str) -> String {
    format!("UPDATE tenant SET v = v + 1 WHERE id = {tenant}")
}

/// Files a move and brings it before its switch, lets `writer` begin a transaction that writes to the slot, and lets the move go
/// on; its id.
fn meet(world: &mut World, slot: &str, to: &str, writer: &mut Client, tenant: &str) -> Result<String> {
    let mut gate = world.here.cluster.connect("postgres")?;
    gate.exec(&format!("SELECT pg_advisory_lock({GATE})"))?;
    let id = world.here.query(&format!("SELECT foreshard.move_slot({slot}, '{to}')"))?;
    world.here.wait_query(AT_THE_GATE, "1")?;
    writer.exec("BEGIN")?;
    writer.exec(&write(tenant))?;
    gate.exec(&format!("SELECT pg_advisory_unlock({GATE})"))?;
    Ok(id)
}

#[test]
fn writers_do_not_queue_without_a_bound() -> Result<()> {
    if skipped("writers_do_not_queue_without_a_bound")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-switch")?;
    world.here.set(&[("citus.running_under_citus_test_suite", "on")])?;
    let (first, second) = (world.shard(0)?, world.shard(1)?);
    let slot = world.slot_on(0)?;
    let (one, other) = tenants(&mut world, &slot)?;
    let mut behind = world.here.cluster.connect("postgres")?;

    // One writer is idle in its transaction here, or on a node: whoever comes after it waits, but not for it.
    let nodes = [
        (world.here.cluster.connect("postgres")?, second.as_str(), 12),
        (world.workers[1].cluster.connect("postgres")?, first.as_str(), 30),
    ];
    for (mut idle, to, most_s) in nodes {
        let id = meet(&mut world, &slot, to, &mut idle, &one)?;
        let switches = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objsubid IN (4, 8) AND mode = 'ExclusiveLock' \
             AND pid IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'foreshard carrier')";
        world.here.wait_query(switches, "t")?;
        let begun = Instant::now();
        behind.exec(&write(&other))?;
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(most_s), "{waited:?}\n{}", world.here.log_tail());
        let told = format!(
            "SELECT gave_way, phase, finished, last_error LIKE '%gave way to writers%' FROM foreshard.move WHERE move_id = {id}"
        );
        assert_eq!(world.here.query(&told)?, "1|copy|f|t");
        idle.exec("COMMIT")?;
        // It rests, and then it is made.
        world.here.wait_end(&id, "done")?;
        assert_eq!(world.shard_of(&slot)?, to);
    }
    assert_eq!(world.rows()?, "1000|4");
    Ok(())
}

#[test]
fn what_citus_is_not_at_is_taken_back() -> Result<()> {
    if skipped("what_citus_is_not_at_is_taken_back")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-waits")?;
    world
        .here
        .set(&[("citus.running_under_citus_test_suite", "on"), ("foreshard.max_concurrent_moves", "2")])?;
    let (first, second) = (world.shard(0)?, world.shard(1)?);
    let slot = world.slot_on(0)?;
    let other = world.here.query(&format!(
        "SELECT max(slot_id) FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass AND shard = '{first}'"
    ))?;
    let mut gate = world.here.cluster.connect("postgres")?;
    gate.exec(&format!("SELECT pg_advisory_lock({GATE})"))?;
    let here = &mut world.here;
    let carried = here.query(&format!("SELECT foreshard.move_slot({slot}, '{second}')"))?;
    here.wait_query(AT_THE_GATE, "1")?;

    // What Citus is at cannot be held up.
    let refused = here.fails(&format!("SELECT foreshard.pause_move({carried})"))?;
    assert_eq!(refused.sqlstate, "55000", "{refused}");

    // What waits for it has not begun, so that the mode takes it back; what Citus is at goes on.
    let waits = here.query(&format!("SELECT foreshard.move_slot({other}, '{second}')"))?;
    let why = format!(
        "SELECT phase, waiting_for FROM foreshard.progress_moves WHERE move_id = {waits} AND started_at IS NULL"
    );
    here.wait_query(&why, "preflight|another move of the cluster")?;
    here.query(&format!(
        "UPDATE foreshard.move SET phase = 'copy', started_at = now() WHERE move_id = {waits}; \
         UPDATE foreshard.resharding_request SET requested_by = 'foreshard'; UPDATE foreshard.move SET recommendation_id = 1"
    ))?;
    here.wait_end(&waits, "cancelled")?;
    let told =
        format!("SELECT finished, cancel_requested, phase FROM foreshard.move WHERE move_id = {carried}");
    assert_eq!(here.query(&told)?, "f|f|copy");
    gate.exec(&format!("SELECT pg_advisory_unlock({GATE})"))?;
    here.wait_end(&carried, "done")?;

    // Who else moves shards is known also where nobody watches loads.
    here.set(&[("foreshard.observe", "off")])?;
    here.query("UPDATE foreshard.citus_cluster SET others_move = 'somebody'")?;
    here.wait_query("SELECT others_move IS NULL FROM foreshard.citus_clusters", "t")
}

#[test]
fn the_coordinator_may_hold_shards() -> Result<()> {
    if skipped("the_coordinator_may_hold_shards")? {
        return Ok(());
    }
    let mut world = World::start("citus-holds")?;
    let here = &mut world.here;
    here.query(
        "SELECT citus_set_node_property((SELECT nodename FROM pg_dist_node WHERE groupid = 0), (SELECT nodeport FROM pg_dist_node WHERE groupid = 0), \
             'shouldhaveshards', true)",
    )?;
    here.query("SELECT foreshard.add_node('shop', engine => 'citus')")?;
    let own = here.query("SELECT 'shop_' || nodeid FROM pg_dist_node WHERE groupid = 0")?;
    let slot = here.query(&format!(
        "SELECT min(slot_id) FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass AND shard <> '{own}'"
    ))?;
    let from = world.shard_of(&slot)?;
    // There, and back from here: nothing that Citus makes here waits for the transaction that it is made in.
    for to in [own, from] {
        let id = world.here.query(&format!("SELECT foreshard.move_slot({slot}, '{to}')"))?;
        world.here.wait_end(&id, "done")?;
        assert_eq!(world.shard_of(&slot)?, to);
    }
    assert_eq!(world.rows()?, "1000|0");
    Ok(())
}
