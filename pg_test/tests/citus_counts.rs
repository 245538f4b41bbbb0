//! What nodes of a Citus cluster are asked, and what their answers count for.

mod common;

use common::citus::{World, skipped};
use foreshard_test::Result;

#[test]
fn a_locked_shard_makes_no_node_sick() -> Result<()> {
    if skipped("a_locked_shard_makes_no_node_sick")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-counts")?;
    let second = world.shard(1)?;
    let here = &mut world.here;
    let shard = here.query(&format!(
        "SELECT min(citus_shard) FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass AND shard = '{second}'"
    ))?;
    let known = format!("SELECT bytes > 0 FROM foreshard.slots WHERE citus_shard = {shard}");
    here.wait_query(&known, "t")?;
    // As VACUUM FULL has it.
    let mut full = world.workers[1].cluster.connect("postgres")?;
    full.exec("SET citus.enable_manual_changes_to_shards = on")?;
    full.exec(&format!("BEGIN; LOCK TABLE tenant_{shard} IN ACCESS EXCLUSIVE MODE"))?;
    let since = here.query("SELECT clock_timestamp()")?;
    let heard = format!(
        "SELECT collected_at > '{since}'::timestamptz + interval '3 s' FROM foreshard.citus_shard WHERE citus_shard = {shard}"
    );
    here.wait_query(&heard, "t")?;
    assert_eq!(here.query("SELECT count(*) FROM foreshard.history WHERE event = 'node_down'")?, "0");
    assert_eq!(here.query(&known)?, "t", "the size that it had");
    full.exec("COMMIT")?;

    // What counts by its own clock is known, and another life of the server counts anew.
    let life = format!("SELECT counted_since FROM foreshard.citus_shard WHERE citus_shard = {shard}");
    let before = here.query(&life)?;
    assert_eq!(
        here.query(
            "SELECT bool_and(abs(counted_at - extract(epoch FROM now())) < 60) FROM foreshard.citus_shard"
        )?,
        "t"
    );
    drop(full);
    world.workers[1].cluster.restart()?;
    world.here.wait_query(&format!("SELECT ({life}) <> {before}"), "t")?;
    assert_eq!(
        world.here.query(
            "SELECT count(*) FROM foreshard.heat_history WHERE reads_per_s < 0 OR reads_per_s > 100000"
        )?,
        "0"
    );
    Ok(())
}
