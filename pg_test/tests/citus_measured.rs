//! What the foreshard of one node of a Citus cluster measures, beside one that has none.

mod common;

use common::citus::{World, skipped};
use foreshard_test::Result;
use std::time::Duration;

/// The nodes that are asked for what they have measured.
const MEASURING: &str = "SELECT count(*) FROM foreshard.measuring_node WHERE measures";

/// Updates every tenant.
fn write(world: &mut World) -> Result<()> {
    world.here.query("DO $$ BEGIN FOR n IN 1 .. 200 LOOP UPDATE tenant SET v = v + 1 WHERE id = n; PERFORM v FROM tenant WHERE id = n; END LOOP; END $$")?;
    Ok(())
}

/// Writes until a query says so.
fn write_until(world: &mut World, sql: &str, expected: &str) -> Result<()> {
    for _ in 0..60 {
        write(world)?;
        if world.here.query(sql)? == expected {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(world.here.query(sql)?, expected, "{sql}\n{}", world.here.log_tail());
    Ok(())
}

#[test]
fn costs_and_triggers_come_from_the_node_that_measures() -> Result<()> {
    if skipped("costs_and_triggers_come_from_the_node_that_measures")? {
        return Ok(());
    }
    let mut world = World::measuring("citus-measured")?;
    for statement in [
        "SET citus.enable_unsafe_triggers = on",
        "CREATE FUNCTION work() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM sum(g) FROM generate_series(1, 2000) g; RETURN NEW; END $$",
        "CREATE TRIGGER work BEFORE UPDATE ON tenant FOR EACH ROW EXECUTE FUNCTION work()",
        "RESET citus.enable_unsafe_triggers",
    ] {
        world.here.query(statement)?;
    }
    world.here.wait_query(MEASURING, "1")?;
    let first = world.shard(0)?;
    // Of the slots on the first node it is known what statements cost, of the others not.
    write_until(
        &mut world,
        &format!(
            "SELECT count(*) > 0 AND bool_and(shard = '{first}') AND bool_and(trigger_call_cost_units > 0) FROM foreshard.slot_costs WHERE \"table\" = 'tenant'::regclass AND rows_written > 0"
        ),
        "t",
    )?;
    // One trigger, whatever it is called on shards.
    let told = "SELECT \"table\", trigger, function, event, level, timing, calls > 0, cpu_us > 0 FROM foreshard.stat_triggers WHERE NOT trigger LIKE 'RI%'";
    assert_eq!(world.here.query(told)?, "tenant|work|work()|UPDATE|ROW|BEFORE|t|t");
    // Calls are exact once the shards are watched.
    let calls = "SELECT calls FROM foreshard.stat_triggers WHERE trigger = 'work'";
    std::thread::sleep(Duration::from_secs(3));
    let before: i64 = world.here.query(calls)?.parse().unwrap_or(-1);
    write(&mut world)?;
    let there: i64 = world
        .here
        .query(&format!(
            "SELECT count(*) FROM generate_series(1, 200) g WHERE foreshard.get_shard_location('tenant', g::bigint) = '{first}'"
        ))?
        .parse()
        .unwrap_or(-1);
    world.here.wait_query(calls, &(before + there).to_string())?;
    // Triggers are part of the load where they are measured.
    write_until(
        &mut world,
        &format!("SELECT bool_or(trigger_cost_per_s > 0) FROM foreshard.heat_map WHERE shard = '{first}'"),
        "t",
    )?;
    let problems = "SELECT count(*) FROM foreshard.check() WHERE problem LIKE '%foreshard measures%'";
    assert_eq!(world.here.query(problems)?, "0");
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.history WHERE event = 'node_down'")?, "0");
    Ok(())
}

#[test]
fn a_foreshard_that_is_another_one_makes_no_node_sick() -> Result<()> {
    if skipped("a_foreshard_that_is_another_one_makes_no_node_sick")? {
        return Ok(());
    }
    let mut world = World::measuring("citus-other")?;
    // On a node without foreshard somebody else's function is never run.
    world.workers[1].query(
        "SET citus.enable_ddl_propagation = off; CREATE SCHEMA foreshard; CREATE TABLE foreshard.ran (n int); \
         CREATE FUNCTION foreshard.observe_shards(bigint[], oid[], double precision) RETURNS jsonb LANGUAGE sql AS \
             'INSERT INTO foreshard.ran VALUES (1); SELECT NULL::jsonb'; RESET citus.enable_ddl_propagation",
    )?;
    world.here.wait_query(MEASURING, "1")?;
    let problems = "SELECT detail FROM foreshard.check() WHERE problem LIKE 'what its foreshard measures%'";
    assert_eq!(world.here.query(problems)?, "");
    // A version that has no such function: its counters count, and somebody is told.
    let function = "FUNCTION foreshard.observe_shards(bigint[], oid[], double precision)";
    let drop = format!(
        "SET citus.enable_ddl_propagation = off; ALTER EXTENSION foreshard DROP {function}; ALTER {function} RENAME TO other"
    );
    world.workers[0].query(&drop)?;
    world.here.wait_query(&problems.replace("detail", "detail LIKE '%no function%'"), "t")?;
    world.here.wait_query(MEASURING, "0")?;
    // It fails: asked again without.
    world.workers[0].query(
        "CREATE FUNCTION foreshard.observe_shards(bigint[], oid[], double precision) RETURNS jsonb LANGUAGE plpgsql AS \
             $$ BEGIN RAISE 'out of order'; END $$; \
         ALTER EXTENSION foreshard ADD FUNCTION foreshard.observe_shards(bigint[], oid[], double precision)",
    )?;
    world.here.wait_query(&problems.replace("detail", "detail LIKE '%out of order%'"), "t")?;
    let fresh =
        "SELECT bool_and(collected_at > clock_timestamp() - interval '10 s') FROM foreshard.citus_shard";
    world.here.wait_query(fresh, "t")?;
    // None at all any more.
    world.workers[0].query("DROP EXTENSION foreshard")?;
    world.here.wait_query("SELECT count(*) FROM foreshard.measuring_node WHERE version IS NOT NULL", "0")?;
    world.here.wait_query(
        "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'what its foreshard measures%'",
        "0",
    )?;
    world.here.wait_query(fresh, "t")?;
    assert_eq!(world.workers[1].query("SELECT count(*) FROM foreshard.ran")?, "0");
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.history WHERE event = 'node_down'")?, "0");
    Ok(())
}
