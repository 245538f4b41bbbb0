//! A Citus cluster that is adopted: what is refused where there is none, what is taken over and observed, what Citus is told
//! when it rebalances, and moves by Citus with all that may come between.
//!
//! Citus is in no registry that everybody can reach: where `pg_available_extensions` does not list it, these tests say so and pass.

mod common;

use common::citus::{ELSEWHERE, MOVE_ARGUMENTS, SHARDS, World, skipped, wait_for_citus};
use common::{Server, options};
use foreshard_test::Result;

#[test]
fn without_a_cluster_it_says_why() -> Result<()> {
    let mut server = Server::start(&options("citus-none"))?;
    let listed = server.query("SELECT count(*) FROM pg_available_extensions WHERE name = 'citus'")? != "0";
    let expected = if listed { "55000" } else { "0A000" };
    for call in
        ["add_node('shop', engine => 'citus')", "register_citus_strategy()", "unregister_citus_strategy()"]
    {
        let error = server.fails(&format!("SELECT foreshard.{call}"))?;
        assert_eq!(error.sqlstate, expected, "{error}");
        assert!(error.hint.is_some(), "{error}");
    }
    for (call, code) in [
        ("add_node('shop', 'some_server', engine => 'citus')", "22023"),
        ("add_node('shop', engine => 'oracle')", "22023"),
        ("add_node('shop')", "22023"),
        ("add_node(NULL, engine => 'citus')", "22023"),
        ("add_node(repeat('x', 60), engine => 'citus')", "22023"),
        ("drop_node('shop')", "42704"),
        ("register_citus_strategy(default_threshold => -1)", "22023"),
    ] {
        let error = server.fails(&format!("SELECT foreshard.{call}"))?;
        assert_eq!(error.sqlstate, code, "{call}: {error}");
    }
    // What Citus would ask is answered all the same.
    let asked = "SELECT foreshard.citus_shard_cost(1), foreshard.citus_node_capacity(1), foreshard.citus_shard_allowed(1, 1)";
    assert_eq!(server.query(asked)?, "1|1|t");
    Ok(())
}

#[test]
fn a_cluster_is_taken_over_as_it_is() -> Result<()> {
    if skipped("a_cluster_is_taken_over_as_it_is")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-adopt")?;
    let here = &mut world.here;
    assert_eq!(
        here.query(
            "SELECT count(*), bool_and(state = 'up'), bool_and(engine = 'citus') FROM foreshard.nodes"
        )?,
        "2|t|t"
    );
    assert_eq!(here.query("SELECT count(*), sum(slots) FROM foreshard.shards")?, format!("2|{}", SHARDS + 2));
    let tables = "SELECT \"table\"::text, count(*), count(DISTINCT slot_id) FROM foreshard.slots GROUP BY 1 ORDER BY 1";
    assert_eq!(here.query(tables)?, format!("item|{SHARDS}|{SHARDS}\nlone|2|2\ntenant|{SHARDS}|{SHARDS}"));
    assert_eq!(
        here.query("SELECT count(*), count(DISTINCT group_id) FROM foreshard.heat_map")?,
        format!("{}|2", SHARDS + 2)
    );
    assert_eq!(here.query(ELSEWHERE)?, "0");
    assert_eq!(here.fails("SELECT foreshard.add_node('other', engine => 'citus')")?.sqlstate, "42710");
    assert_eq!(
        here.fails("SELECT foreshard.add_shard('x', node => (SELECT node FROM foreshard.nodes LIMIT 1))")?
            .sqlstate,
        "0A000"
    );

    // What its nodes count arrives, at the slot of the key.
    let hot = "SELECT slot_id FROM foreshard.slots WHERE citus_shard = get_shard_id_for_distribution_column('tenant', 7)";
    let hot = here.query(hot)?;
    let load = "DO $$ BEGIN FOR n IN 1 .. 400 LOOP PERFORM v FROM tenant WHERE id = 7; END LOOP; END $$";
    let hottest =
        "SELECT slot_id FROM foreshard.heat_map WHERE reads_per_s > 5 ORDER BY reads_per_s DESC LIMIT 1";
    for attempt in 0.. {
        here.query(load)?;
        if here.query(hottest)? == hot {
            break;
        }
        assert!(attempt < 100, "{}", here.log_tail());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(here.query("SELECT bool_and(bytes > 0) FROM foreshard.slots")?, "t");
    assert_eq!(
        here.query("SELECT count(*) FROM foreshard.slot_heat WHERE heat < 0 OR reads_per_s < 0")?,
        "0"
    );

    let place = format!(
        "SELECT foreshard.get_shard_location('tenant', 7) = shard FROM foreshard.slots WHERE slot_id = {hot} LIMIT 1"
    );
    assert_eq!(here.query(&place)?, "t");
    let told = here.query("SELECT foreshard.explain_placement('tenant', 7)")?;
    assert!(told.contains("shop_"), "{told}");

    // What somebody changes in Citus is followed: a move, a table that joins, one that goes.
    let slot = world.slot_on(0)?;
    let to = world.shard(1)?;
    world.here.query(&format!(
        "SELECT citus_move_shard_placement({}, shard_transfer_mode := 'block_writes'); \
         CREATE TABLE third (id bigint, n int); SELECT create_distributed_table('third', 'id', colocate_with := 'tenant'); DROP TABLE lone",
        MOVE_ARGUMENTS.replace("SLOT", &slot).replace("SHARD", &to)
    ))?;
    world.here.wait_query(
        tables,
        &format!("item|{SHARDS}|{SHARDS}\ntenant|{SHARDS}|{SHARDS}\nthird|{SHARDS}|{SHARDS}"),
    )?;
    world.here.wait_query(ELSEWHERE, "0")?;
    assert_eq!(world.shard_of(&slot)?, to);
    let told = format!(
        "SELECT detail->>'to' FROM foreshard.history WHERE event = 'citus_moved' AND slot_id = {slot}"
    );
    assert_eq!(world.here.query(&told)?, to);
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.heat_map WHERE reads_per_s < 0")?, "0");

    // Forgetting it changes nothing there.
    world.here.query("SELECT foreshard.drop_node('shop')")?;
    let left = "SELECT (SELECT count(*) FROM foreshard.nodes), (SELECT count(*) FROM foreshard.shards), (SELECT count(*) FROM foreshard.slots), \
                (SELECT count(*) FROM foreshard.colocation_group)";
    assert_eq!(world.here.query(left)?, "0|0|0|0");
    assert_eq!(world.rows()?, "1000|0");
    // And the extension takes its strategies along.
    world.here.query(
        "SELECT foreshard.register_citus_strategy('ours'); SET citus.enable_ddl_propagation = off; DROP EXTENSION foreshard; \
         RESET citus.enable_ddl_propagation",
    )?;
    assert_eq!(world.here.query("SELECT count(*) FROM pg_dist_rebalance_strategy WHERE name = 'ours'")?, "0");
    Ok(())
}

#[test]
fn citus_rebalances_by_forecast_peaks() -> Result<()> {
    if skipped("citus_rebalances_by_forecast_peaks")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-strategy")?;
    // What has no size yet is not recommended.
    world.here.wait_query("SELECT bool_and(bytes IS NOT NULL) FROM foreshard.slots", "t")?;
    world.here.set(&[("foreshard.observe", "off"), ("citus.background_task_queue_interval", "1s")])?;
    let (first, second) = (world.shard(0)?, world.shard(1)?);
    let here = &mut world.here;
    here.query("SELECT foreshard.register_citus_strategy()")?;
    assert_eq!(here.fails("SELECT foreshard.register_citus_strategy()")?.sqlstate, "42710");
    let steps = |strategy: &str| {
        format!(
            "SELECT count(*) FROM get_rebalance_table_shards_plan('tenant', rebalance_strategy := '{strategy}')"
        )
    };
    // Nothing is known: shards are balanced by number, and so they are.
    assert_eq!(here.query(&steps("foreshard"))?, "0");
    here.query(&format!(
        "INSERT INTO foreshard.slot_heat (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, heat) \
         SELECT s.slot_id, now(), 0, 0, 0, 0, 0, 0, 0, CASE h.shard_name WHEN '{first}' THEN 100 ELSE 1 END \
         FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) ON CONFLICT (slot_id) DO UPDATE SET heat = excluded.heat; \
         DELETE FROM foreshard.forecast"
    ))?;
    assert_eq!(here.query(&steps("by_shard_count"))?, "0");
    // Foreshard's own planner sees the same, and recommends moves between nodes.
    here.query(
        "UPDATE foreshard.slot_heat SET hot_buckets = 5; DELETE FROM foreshard.heat_history; \
         INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 60, t.slot_id, to_timestamp(g * 60), 1, 1, 1, t.heat * (0.97 + 0.06 * random()) \
         FROM foreshard.slot_heat t, LATERAL (SELECT extract(epoch FROM now())::int8 / 60 AS now) n, generate_series(now - 200, now - 1) g",
    )?;
    let said = "SELECT count(*) > 0, bool_and(from_shard = 'FIRST' AND to_shard = 'SECOND') FROM foreshard.recommend() WHERE action = 'move'";
    let said = said.replace("FIRST", &first).replace("SECOND", &second);
    assert_eq!(here.query(&said)?, "t|t", "{}", here.query("SELECT r FROM foreshard.recommend() r")?);
    // A forecast counts more than the present.
    let cost = "SELECT foreshard.citus_shard_cost(min(citus_shard)) FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass AND shard = ";
    let before: f64 = here.query(&format!("{cost}'{second}'"))?.parse().unwrap_or(-1.0);
    here.query(&format!(
        "INSERT INTO foreshard.forecast (slot_id, at, cost_units_per_s, interval_level, model, history_buckets, made_at) \
         SELECT min(slot_id), now() + interval '1 hour', 50, 0.9, 'test', 1, now() FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass AND shard = '{second}'"
    ))?;
    let after: f64 = here.query(&format!("{cost}'{second}'"))?.parse().unwrap_or(-1.0);
    assert!(before < 3.0 && after > 50.0, "{before} {after}");
    here.query("DELETE FROM foreshard.forecast")?;

    here.query("SELECT citus_rebalance_start(rebalance_strategy := 'foreshard', shard_transfer_mode := 'block_writes')")?;
    // Whoever moves shards is not fought.
    let refused = here.fails(&format!(
        "SELECT foreshard.move_slot(min(slot_id), '{second}') FROM foreshard.slots WHERE shard = '{first}'"
    ))?;
    assert_eq!(refused.sqlstate, "55006", "{refused}");
    here.query("SELECT citus_rebalance_wait()")?;
    let spread = "SELECT string_agg(DISTINCT c.n::text, ' ') FROM (SELECT p.groupid, count(*) FILTER (WHERE t.heat = 100) AS n FROM foreshard.citus_shard s \
         JOIN foreshard.slot_heat t USING (slot_id) JOIN pg_dist_placement p ON p.shardid = s.citus_shard WHERE s.table_oid = 'tenant'::regclass GROUP BY 1) c";
    assert_eq!(here.query(spread)?, "2", "hot slots of every node");

    // Nothing goes to a shard that is drained, and everything leaves it.
    here.query(&format!("UPDATE foreshard.shard SET draining = true WHERE shard_name = '{second}'"))?;
    here.query("SELECT citus_rebalance_start(rebalance_strategy := 'foreshard', shard_transfer_mode := 'block_writes', drain_only := true)")?;
    here.query("SELECT citus_rebalance_wait()")?;
    let left = format!(
        "SELECT count(*) FROM pg_dist_placement p JOIN foreshard.citus_shard s ON s.citus_shard = p.shardid JOIN pg_dist_node d USING (groupid) \
         JOIN foreshard.nodes n ON n.citus_node = d.nodeid WHERE n.node = '{second}'"
    );
    assert_eq!(here.query(&left)?, "0");
    here.query("SELECT foreshard.unregister_citus_strategy()")?;
    assert_eq!(here.query("SELECT count(*) FROM pg_dist_rebalance_strategy WHERE name = 'foreshard'")?, "0");
    assert_eq!(world.rows()?, "1000|0");
    Ok(())
}

#[test]
fn citus_carries_slots_for_us() -> Result<()> {
    if skipped("citus_carries_slots_for_us")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-move")?;
    let (first, second) = (world.shard(0)?, world.shard(1)?);
    let slot = world.slot_on(0)?;
    let file = format!("SELECT foreshard.move_slot({slot}, '{second}')");

    // There and, within the window, back.
    world.here.set(&[("foreshard.rollback_window", "600")])?;
    let there = world.here.query(&file)?;
    world.here.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {there}"), "watch")?;
    assert_eq!(world.shard_of(&slot)?, second);
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    let told = format!("SELECT bytes_done > 0, state FROM foreshard.progress_moves WHERE move_id = {there}");
    assert_eq!(world.here.query(&told)?, "t|watching");
    assert_eq!(world.here.query(&format!("SELECT foreshard.rollback_move({there})"))?, "t");
    world.here.wait_end(&there, "cancelled")?;
    assert_eq!(world.shard_of(&slot)?, first);
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    world.here.set(&[("foreshard.rollback_window", "0")])?;

    // Somebody moves shards: nothing is filed, and what was filed before waits for it.
    let mut other = world.here.cluster.connect("postgres")?;
    let by_hand = format!(
        "BEGIN; SELECT citus_move_shard_placement({}, shard_transfer_mode := 'block_writes')",
        MOVE_ARGUMENTS.replace("SLOT", &world.slot_on(1)?).replace("SHARD", &first)
    );
    world.here.hold(Some("preflight"))?;
    let waits = world.here.query(&file)?;
    world.here.wait_phase(&waits, "preflight")?;
    other.exec(&by_hand)?;
    world.here.hold(None)?;
    let why = format!(
        "SELECT waiting_for LIKE 'others that move shards%' FROM foreshard.progress_moves WHERE move_id = {waits}"
    );
    world.here.wait_query(&why, "t")?;
    let another = world.slot_on(1)?;
    let refused = world.here.fails(&format!("SELECT foreshard.move_slot({another}, '{first}')"))?;
    assert_eq!(refused.sqlstate, "55006", "{refused}");
    world.here.wait_query("SELECT others_move IS NOT NULL FROM foreshard.citus_clusters", "t")?;
    other.exec("ROLLBACK")?;
    world.here.wait_end(&waits, "done")?;
    assert_eq!(world.shard_of(&slot)?, second);

    // Cancelled while Citus waits for a writer; and made all the same when its carrier is killed there.
    let back = format!("SELECT foreshard.move_slot({slot}, '{first}')");
    let writer = format!(
        "BEGIN; UPDATE tenant SET v = v + 1 WHERE id = (SELECT min(g) FROM generate_series(1, 1000) g WHERE get_shard_id_for_distribution_column('tenant', g) \
         = (SELECT min(citus_shard) FROM foreshard.slots WHERE slot_id = {slot} AND \"table\" = 'tenant'::regclass))"
    );
    other.exec(&writer)?;
    let stopped = world.here.query(&back)?;
    let carrier = world.here.wait_phase(&stopped, "copy")?;
    wait_for_citus(&mut world.here, carrier)?;
    assert_eq!(world.here.query(&format!("SELECT foreshard.cancel_move({stopped})"))?, "t");
    world.here.wait_end(&stopped, "cancelled")?;
    other.exec("COMMIT")?;
    assert_eq!(world.shard_of(&slot)?, second);
    assert_eq!(world.rows()?, "1000|1");

    other.exec(&writer)?;
    let killed = world.here.query(&back)?;
    let carrier = world.here.wait_phase(&killed, "copy")?;
    wait_for_citus(&mut world.here, carrier)?;
    world.here.cluster.kill9(carrier)?;
    drop(other);
    world.here.wait_end(&killed, "done")?;
    assert_eq!(world.shard_of(&slot)?, first);
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    assert_eq!(world.rows()?, "1000|1", "what the killed writer had not committed");

    sick_nodes_are_left_alone(&mut world, &first, &second)
}

fn sick_nodes_are_left_alone(world: &mut World, first: &str, second: &str) -> Result<()> {
    // Neither kind of slot goes where the other is.
    let mine = world.here.query(
        "SET citus.enable_ddl_propagation = off; CREATE TABLE mine (id bigint PRIMARY KEY); \
         SELECT foreshard.add_shard('own'); SELECT foreshard.distribute('mine', 'id', 2, shards => '{own}'); \
         RESET citus.enable_ddl_propagation; SELECT min(slot_id) FROM foreshard.slots WHERE \"table\" = 'mine'::regclass",
    )?;
    let mine = mine.lines().last().unwrap_or_default().to_string();
    let slot = world.slot_on_shard(first)?;
    assert_eq!(
        world.here.fails(&format!("SELECT foreshard.move_slot({mine}, '{first}')"))?.sqlstate,
        "0A000"
    );
    assert_eq!(world.here.fails(&format!("SELECT foreshard.move_slot({slot}, 'own')"))?.sqlstate, "0A000");
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.layout_problems")?, "0");

    // A worker that is away is found, the other is heard all the same, and nothing goes there.
    world.workers[1].cluster.stop(foreshard_test::StopMode::Immediate)?;
    let state = format!("SELECT state FROM foreshard.nodes WHERE node = '{second}'");
    world.here.wait_query(&state, "down")?;
    let heard = format!(
        "SELECT count(*) FROM foreshard.citus_shard WHERE node_name = '{first}' AND collected_at > now() - interval '5 s'"
    );
    assert_ne!(world.here.query(&heard)?, "0");
    assert_eq!(
        world.here.fails(&format!("SELECT foreshard.move_slot({slot}, '{second}')"))?.sqlstate,
        "08006"
    );
    let asked = format!(
        "SELECT foreshard.citus_shard_allowed(min(citus_shard), (SELECT citus_node FROM foreshard.nodes WHERE node = '{second}')) \
         FROM foreshard.slots WHERE slot_id = {slot}"
    );
    assert_eq!(world.here.query(&asked)?, "f");
    world.workers[1].cluster.start_again()?;
    world.here.wait_query(&state, "up")?;
    assert_eq!(world.here.query(&asked)?, "t");

    // And a node is emptied like any shard.
    let filed: i64 =
        world.here.query(&format!("SELECT foreshard.drain_shard('{second}')"))?.parse().unwrap_or(0);
    assert!(filed >= 1, "{filed}");
    world.here.wait_query("SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    assert_eq!(
        world.here.query(&format!("SELECT slots FROM foreshard.shards WHERE shard = '{second}'"))?,
        "0"
    );
    Ok(())
}
