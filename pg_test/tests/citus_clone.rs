//! A clone of a coordinator has its catalogs, but its nodes know the other server: it moves nothing.

mod common;

use common::PATIENCE;
use common::citus::{World, skipped};
use common::standby::Standby;
use foreshard_test::{Result, wait_until};

#[test]
fn a_clone_of_the_coordinator_moves_nothing() -> Result<()> {
    if skipped("a_clone_of_the_coordinator_moves_nothing")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-clone")?;
    // What Citus itself would do in a clone is not what is looked at.
    world.here.set(&[("citus.recover_2pc_interval", "-1"), ("citus.defer_shard_delete_interval", "-1")])?;
    let (slot, second) = (world.slot_on(0)?, world.shard(1)?);
    let mut standby = Standby::start(&world.here.cluster)?;
    standby.wait_replayed(&mut world.here)?;
    let mut clone = standby.connect()?;
    clone.exec("SELECT pg_promote()")?;

    let file = format!("SELECT foreshard.move_slot({slot}, '{second}')");
    let there = clone.query_one(&file)?;
    let told = format!(
        "SELECT waiting_for LIKE '%takes another server for the coordinator%' FROM foreshard.progress_moves WHERE move_id = {there}"
    );
    wait_until("the clone knows that it is one", PATIENCE, || Ok(clone.query_one(&told)? == "t"))?;
    assert_eq!(clone.query_one("SELECT not_ours IS NOT NULL FROM foreshard.citus_clusters")?, "t");

    // The one that the nodes know goes on.
    let here = world.here.query(&file)?;
    world.here.wait_end(&here, "done")?;
    assert_eq!(world.shard_of(&slot)?, second);
    assert_eq!(world.here.query("SELECT not_ours IS NULL FROM foreshard.citus_clusters")?, "t");
    let phase = format!("SELECT phase FROM foreshard.move WHERE move_id = {there}");
    assert_eq!(clone.query_one(&phase)?, "preflight");
    assert_eq!(world.rows()?, "1000|0");
    Ok(())
}
