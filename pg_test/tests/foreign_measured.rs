//! What the foreshard of a node of postgres_fdw measures, beside one that has none.

mod common;

use common::nodes::World;
use foreshard_test::Result;
use std::time::Duration;

/// The nodes that are asked for what they have measured.
const MEASURING: &str = "SELECT count(*) FROM foreshard.measuring_node WHERE measures";
/// What people are told about them.
const PROBLEMS: &str =
    "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'what its foreshard measures%'";
const FUNCTION: &str = "FUNCTION foreshard.observe_shards(bigint[], oid[], double precision)";
/// Every statement is measured.
const ALL: [(&str, &str); 2] =
    [("foreshard.statement_sample_interval", "1"), ("foreshard.observe_budget", "100")];
/// What a scan is taken to cost beside itself would hide what the node measures and what the usual unit costs say.
const SCANS_ALONE: (&str, &str) = ("foreshard.remote_scan_cost", "0");
/// Rows that are read and written in a round.
const ROUND: u32 = 200;

/// A table of one slot on a shard.
fn table_on(world: &mut World, table: &str, shard: &str) -> Result<()> {
    world.here.query(&format!(
        "CREATE TABLE {table} (id bigint PRIMARY KEY, v text NOT NULL); \
         INSERT INTO {table} SELECT g, md5(g::text) FROM generate_series(1, 5000) g; \
         SELECT foreshard.distribute('{table}', 'id', 1, shards => '{{sa}}', remote => true)"
    ))?;
    let slot = world.here.slots(table)?[0].clone();
    let move_id = world.move_to(&slot, shard)?;
    world.here.wait_end(&move_id, "done")
}

/// Asks questions that take a ms of the node or more, and writes.
fn work(world: &mut World, table: &str) -> Result<()> {
    world.here.query(&format!(
        "DO $$ BEGIN FOR n IN 1 .. {ROUND} LOOP \
             PERFORM id FROM {table} WHERE id = n AND length(md5(repeat(v, 40000))) = 32; \
             UPDATE {table} SET v = v WHERE id = n; \
         END LOOP; END $$"
    ))?;
    Ok(())
}

fn number(world: &mut World, sql: &str) -> Result<f64> {
    Ok(world.here.query(sql)?.parse().unwrap_or(f64::NAN))
}

/// CPU that one scan of a table was reckoned at lately, ms.
fn per_scan(world: &mut World, table: &str) -> Result<f64> {
    number(
        world,
        &format!(
            "SELECT coalesce(sum(h.cpu_ms_per_s) / nullif(sum(h.reads_per_s), 0), 0) FROM foreshard.load_history h \
             JOIN foreshard.slot_partition p USING (slot_id) \
             WHERE p.table_oid = '{table}'::regclass AND h.resolution_s = 1 AND h.bucket_at > clock_timestamp() - interval '5 s'"
        ),
    )
}

#[test]
fn costs_are_those_of_the_node() -> Result<()> {
    let mut world = World::with_nodes("fdw-measured")?;
    world.there.set_and_reload(&ALL)?;
    world.here.set(&ALL)?;
    world.here.cluster.set_and_reload(&[SCANS_ALONE])?;
    world.there.connect("postgres")?.exec("CREATE EXTENSION foreshard")?;
    table_on(&mut world, "told", "on_n1")?;
    table_on(&mut world, "mute", "on_n2")?;
    world.here.wait_query(MEASURING, "1")?;
    world.here.wait_query("SELECT count(*) FROM foreshard.remote_table WHERE measured IS NOT NULL", "1")?;
    // The keeper has seen it, too.
    std::thread::sleep(Duration::from_secs(3));
    let mut rounds = 0;
    let costs = "SELECT count(*) FROM foreshard.slot_costs WHERE \"table\" = 'told'::regclass AND read_cpu_ms > 0.1 AND rows_written > 0";
    let (known, unknown) = loop {
        work(&mut world, "told")?;
        work(&mut world, "mute")?;
        rounds += 1;
        let found = (per_scan(&mut world, "told")?, per_scan(&mut world, "mute")?);
        let is_told = found.1 > 0.0 && found.0 >= 5.0 * found.1 && world.here.query(costs)? == "1";
        if is_told || rounds >= 60 {
            break found;
        }
        std::thread::sleep(Duration::from_millis(300));
    };
    assert!(unknown > 0.0 && known >= 5.0 * unknown, "{known} ms a scan, without foreshard {unknown} ms");
    assert_eq!(world.here.query(costs)?, "1");
    // Of the other node the usual unit costs count, and what its statements take here is no cost of it.
    assert!(unknown < 0.1, "{unknown} ms");
    let nothing = "SELECT count(*) FROM foreshard.slot_costs WHERE \"table\" = 'mute'::regclass";
    assert_eq!(world.here.query(nothing)?, "0");
    // Every row that was written there was measured once: there, not here as well.
    let written = "SELECT measured_statements * rows_written FROM foreshard.slot_costs WHERE \"table\" = 'told'::regclass";
    let written = number(&mut world, written)?;
    assert!(
        written > 0.0 && written <= f64::from(rounds * ROUND) * 1.02,
        "{written} rows in {rounds} rounds"
    );
    assert_eq!(world.here.query(PROBLEMS)?, "0");

    // Nodes that are asked every second say something new in every bucket.
    let slot = world.here.slots("told")?[0].clone();
    let told = format!(
        "SELECT count(*) >= 8 FROM foreshard.load_history WHERE slot_id = {slot} AND resolution_s = 1 AND reads_per_s IS NOT NULL \
           AND bucket_at > clock_timestamp() - interval '11 s'"
    );
    world.here.wait_query(&told, "t")?;

    // It fails: asked again without, and the counters count.
    world.there.connect("postgres")?.exec(&format!(
        "ALTER EXTENSION foreshard DROP {FUNCTION}; ALTER {FUNCTION} RENAME TO other; \
         CREATE {FUNCTION} RETURNS jsonb LANGUAGE plpgsql AS $$ BEGIN RAISE 'out of order'; END $$; \
         ALTER EXTENSION foreshard ADD {FUNCTION}"
    ))?;
    world.here.wait_query(&format!("{PROBLEMS} AND detail LIKE '%out of order%'"), "1")?;
    world.here.wait_query(
        "SELECT bool_and(r.collected_at > m.failed_at + interval '2 s') FROM foreshard.remote_table r JOIN foreshard.measuring_node m USING (node_name) WHERE r.node_name = 'n1'",
        "t",
    )?;
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.history WHERE event = 'node_down'")?, "0");

    // By the clock and in the life of the server that is the node.
    let life = "SELECT max(counted_since) FROM foreshard.remote_table WHERE abs(counted_at - extract(epoch FROM now())) < 60";
    let before = world.here.query(life)?;
    assert_ne!(before, "");
    world.there.restart()?;
    world.here.wait_query(&format!("SELECT ({life}) > {before}"), "t")?;
    let absurd = "SELECT count(*) FROM foreshard.heat_history WHERE reads_per_s < 0 OR reads_per_s > 100000";
    assert_eq!(world.here.query(absurd)?, "0");
    // Without the extension there is nothing to be told of.
    world.there.connect("postgres")?.exec("DROP EXTENSION foreshard")?;
    world.here.wait_query("SELECT count(*) FROM foreshard.measuring_node WHERE version IS NOT NULL", "0")?;
    world.here.wait_query(PROBLEMS, "0")
}

#[test]
fn who_may_not_ask_is_told_what_to_grant() -> Result<()> {
    let mut world = World::start("fdw-measured-rights")?;
    let mut there = world.there.connect("postgres")?;
    there.exec("CREATE EXTENSION foreshard; CREATE ROLE \"Asks\" LOGIN; GRANT CREATE, USAGE ON SCHEMA public TO \"Asks\"")?;
    world.here.query(
        "ALTER USER MAPPING FOR postgres SERVER s_n1 OPTIONS (SET user 'Asks'); SELECT foreshard.add_node('n1', 's_n1')",
    )?;
    let told = format!(
        "{PROBLEMS} AND detail LIKE '%its role Asks may not execute%' AND hint LIKE '%GRANT EXECUTE ON FUNCTION foreshard.observe\\_shards TO \"Asks\"%'"
    );
    world.here.wait_query(&told, "1")?;
    assert_eq!(world.here.query(MEASURING)?, "0");
    // Nor may it use the schema: nothing fails by that.
    there.exec("REVOKE USAGE ON SCHEMA foreshard FROM PUBLIC; GRANT EXECUTE ON FUNCTION foreshard.observe_shards TO \"Asks\"")?;
    let since = world.here.query("SELECT clock_timestamp()")?;
    let checked = format!("SELECT checked_at > '{since}'::timestamptz + interval '2 s' FROM foreshard.nodes");
    world.here.wait_query(&checked, "t")?;
    assert_eq!(world.here.query(&told)?, "1");
    there.exec("GRANT USAGE ON SCHEMA foreshard TO \"Asks\"")?;
    world.here.wait_query(MEASURING, "1")?;
    world.here.wait_query(PROBLEMS, "0")?;
    // What is not there any more is not asked for, whoever was asked before.
    there.exec("REVOKE EXECUTE ON FUNCTION foreshard.observe_shards FROM \"Asks\"")?;
    world.here.wait_query(MEASURING, "0")?;
    let up = "SELECT state, failures, last_error IS NULL FROM foreshard.nodes";
    assert_eq!(world.here.query(up)?, "up|0|t");
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.history WHERE event = 'node_down'")?, "0");
    Ok(())
}

#[test]
fn moving_is_no_load_of_what_was_moved() -> Result<()> {
    let mut world = World::with_nodes("fdw-measured-moves")?;
    // Slow enough to be asked about while it is being filled, and chunk by chunk, as sessions tell what they count once a second.
    world.here.set(&[
        ("foreshard.rollback_window", "0"),
        ("foreshard.copy_rate", "300kB"),
        ("foreshard.copy_chunk", "64kB"),
    ])?;
    table_on(&mut world, "still", "on_n2")?;
    let slot = world.here.slots("still")?[0].clone();
    for shard in ["on_n1", "on_n2", "on_n1", "on_n2", "on_n1", "on_n2"] {
        let move_id = world.move_to(&slot, shard)?;
        world.here.wait_end(&move_id, "done")?;
        let swapped =
            world.here.query(&format!("SELECT swapped_at FROM foreshard.move WHERE move_id = {move_id}"))?;
        let since = format!(
            "FROM foreshard.load_history WHERE slot_id = {slot} AND resolution_s = 1 AND bucket_at > '{swapped}'::timestamptz"
        );
        world.here.wait_query(&format!("SELECT count(reads_per_s) >= 2 {since}"), "t")?;
        let most =
            format!("SELECT coalesce(max(reads_per_s + writes_per_s + cost_units_per_s), 0) < 1 {since}");
        assert_eq!(world.here.query(&most)?, "t", "on {shard}");
    }
    Ok(())
}
