//! Slots on other servers, by contrib postgres_fdw: what is refused and why, moves in every direction under writers,
//! nodes that are away.

mod common;

use common::ledger::Ledger;
use common::nodes::{ROWS, World};
use common::placed::expect_code;
use foreshard_test::Result;

#[test]
fn what_cannot_be_says_why() -> Result<()> {
    let mut world = World::start("fdw-refuse")?;
    let mut c = world.here.cluster.connect("postgres")?;
    c.exec(
        "CREATE FOREIGN DATA WRAPPER other; CREATE SERVER s_other FOREIGN DATA WRAPPER other; \
         CREATE SERVER s_away FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '/nowhere', connect_timeout '2'); \
         CREATE USER MAPPING FOR postgres SERVER s_away OPTIONS (user 'postgres'); \
         CREATE SERVER s_unmapped FOREIGN DATA WRAPPER postgres_fdw",
    )?;
    for (server, schema, code) in [
        ("nowhere", "public", "42704"),
        ("s_other", "public", "0A000"),
        ("s_unmapped", "public", "42704"),
        ("s_away", "public", "08001"),
        ("s_n1", "nowhere", "42704"),
    ] {
        let error =
            expect_code(c.exec(&format!("SELECT foreshard.add_node('x', '{server}', '{schema}')")), code);
        assert!(!error.message.contains("password"), "{error}");
    }
    expect_code(c.exec("SELECT foreshard.add_node('local', 's_n1')"), "22023");
    // Tables that are made there have to be reached, too.
    world
        .there
        .connect("postgres")?
        .exec("CREATE ROLE maker LOGIN; CREATE SCHEMA walled; GRANT CREATE ON SCHEMA walled TO maker")?;
    c.exec("ALTER USER MAPPING FOR postgres SERVER s_n1 OPTIONS (SET user 'maker')")?;
    let error = expect_code(c.exec("SELECT foreshard.add_node('x', 's_n1', 'walled')"), "42501");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("USAGE")), "{error}");
    c.exec("ALTER USER MAPPING FOR postgres SERVER s_n1 OPTIONS (SET user 'postgres')")?;
    c.exec("SELECT foreshard.add_node('n1', 's_n1')")?;
    expect_code(c.exec("SELECT foreshard.add_node('n1', 's_n2')"), "42710");
    expect_code(c.exec("SELECT foreshard.add_node('again', 's_n1')"), "42710");
    let said = c.query_one("SELECT (state, round_trip_ms > 0, abs(clock_offset_ms) < 1000, remote_version >= 150000) FROM foreshard.nodes")?;
    assert_eq!(said, "(up,t,t,t)");
    expect_code(c.exec("SELECT foreshard.add_shard('s', node => 'nowhere')"), "42704");
    expect_code(c.exec("SELECT foreshard.add_shard('s', 'nospace', node => 'n1')"), "42704");
    c.exec("SELECT foreshard.add_shard('away', node => 'n1')")?;
    let error = expect_code(c.exec("SELECT foreshard.drop_node('n1')"), "55006");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("shard away")), "{error}");
    c.exec("CREATE TABLE t (id bigint PRIMARY KEY); SELECT foreshard.distribute('t', 'id', 2)")?;
    let slot = world.here.slots("t")?[0].clone();
    let error = expect_code(c.exec(&format!("SELECT foreshard.move_slot({slot}, 'away')")), "0A000");
    assert!(
        error.hint.as_deref().is_some_and(|h| h.contains("Citus") && h.contains("remote => true")),
        "{error}"
    );
    for call in [
        format!("foreshard.split_slot({slot}, to_shard_b => 'away')"),
        "foreshard.distribute('u', 'id', shards => '{away}')".to_string(),
    ] {
        c.exec("CREATE TABLE IF NOT EXISTS u (id bigint PRIMARY KEY)")?;
        expect_code(c.exec(&format!("SELECT {call}")), "0A000");
    }
    c.exec("CREATE TABLE kid (id bigint PRIMARY KEY, u_id bigint REFERENCES u)")?;
    for table in ["u", "kid"] {
        let error = expect_code(
            c.exec(&format!("SELECT foreshard.distribute('{table}', 'id', remote => true)")),
            "0A000",
        );
        assert!(error.detail.as_deref().is_some_and(|d| d.contains("foreign_key")), "{error}");
    }
    // What speaks against a table is told by the move.
    c.exec(
        "CREATE TABLE v (id bigint PRIMARY KEY, w int); SELECT foreshard.distribute('v', 'id', 1, remote => true, shards => '{sa}'); \
         CREATE ROLE reader LOGIN; GRANT SELECT ON v TO reader",
    )?;
    let slot = world.here.slots("v")?[0].clone();
    let move_id = world.move_to(&slot, "away")?;
    world.here.wait_end(&move_id, "failed")?;
    let why = world
        .here
        .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
    assert!(why.contains("no_user_mapping: reader"), "{why}");
    c.exec("SELECT foreshard.drop_shard('away'); SELECT foreshard.drop_node('n1')")?;
    world.assert_nothing_left()
}

#[test]
fn slots_travel_under_writers() -> Result<()> {
    let mut world = World::with_nodes("fdw-travel")?;
    world.tables(2)?;
    let ledger = Ledger::start_plain(&world.here, ROWS, 3);
    let slots = world.here.slots("acc")?;
    for (slot, shard) in [
        (&slots[0], "on_n1"),
        (&slots[1], "on_n2"),
        (&slots[0], "on_n2"),
        (&slots[1], "sa"),
        (&slots[0], "sb"),
    ] {
        let move_id = world.move_to(slot, shard)?;
        world.here.wait_end(&move_id, "done")?;
        assert_eq!(world.shard_of(slot)?, shard);
        ledger.work(60)?;
        ledger.assert_equal(&mut world.here)?;
        world.assert_nothing_left()?;
        let held = world.here.query(&format!(
            "SELECT detail->>'held_us', detail->>'writers_held_us', detail->>'attempts' FROM foreshard.history WHERE event = 'cutover' AND move_id = {move_id}"
        ))?;
        println!("to {shard}: held|writers|attempts {held}");
    }
    ledger.finish();
    let names =
        world.here.query("SELECT string_agg(partition::text, ' ' ORDER BY 1) FROM foreshard.slots")?;
    assert_eq!(names.matches("acc_s").count(), 2, "{names}");
    world.here.assert_settled()
}

#[test]
fn a_slot_on_a_node_is_guarded_and_comes_back() -> Result<()> {
    let mut world = World::with_nodes("fdw-back")?;
    world.tables(2)?;
    world.here.query("CREATE TABLE seen (id bigint, op text); \
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.seen VALUES (NEW.id, TG_OP); RETURN NULL; END'; \
         CREATE TRIGGER see AFTER INSERT OR UPDATE ON acc FOR EACH ROW EXECUTE FUNCTION see()")?;
    let slots = world.here.slots("acc")?;
    let move_id = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    // Triggers fire as before; the node refuses a row that belongs to another slot.
    let mut c = world.here.cluster.connect("postgres")?;
    let there = "SELECT id FROM acc WHERE tableoid = (SELECT partition FROM foreshard.remote_tables WHERE partition::text LIKE 'acc%') ORDER BY 1 LIMIT 1";
    let id = c.query_one(there)?;
    c.exec(&format!("UPDATE acc SET v = 'x' WHERE id = {id}"))?;
    assert_eq!(c.query_one(&format!("SELECT count(*) FROM seen WHERE id = {id}"))?, "1");
    let elsewhere = c.query_one("SELECT id FROM acc WHERE tableoid <> (SELECT partition FROM foreshard.remote_tables WHERE partition::text LIKE 'acc%') ORDER BY 1 LIMIT 1")?;
    expect_code(c.exec(&format!("UPDATE acc SET id = -{elsewhere} - 1000000 + {elsewhere} WHERE id = {id} AND false; UPDATE acc SET id = {elsewhere} WHERE id = {id}")), "23514");
    expect_code(c.exec(&format!("INSERT INTO acc VALUES ({id}, 'twice')")), "23505");
    let plan =
        c.query_one(&format!("EXPLAIN (VERBOSE, COSTS off, FORMAT json) SELECT * FROM acc WHERE id = {id}"))?;
    assert!(
        plan.contains("Foreign Scan") && plan.contains("Remote SQL") && plan.contains("WHERE ((id"),
        "{plan}"
    );
    // Heat and size of a remote slot are known.
    world.here.wait_query("SELECT bool_and(rows > 0 AND bytes > 0) FROM foreshard.remote_tables", "t")?;
    world.here.wait_query(
        &format!("SELECT bool_and(bytes > 0) FROM foreshard.slots WHERE slot_id = {}", slots[0]),
        "t",
    )?;
    // The way back, in both directions, with what was written since.
    world.here.set(&[("foreshard.rollback_window", "600")])?;
    for (slot, to, back) in [(&slots[0], "sa", "on_n1"), (&slots[1], "on_n2", "")] {
        let home = world.shard_of(slot)?;
        let move_id = world.move_to(slot, to)?;
        world
            .here
            .wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"), "watch")?;
        c.exec("INSERT INTO acc SELECT g, 'late' FROM generate_series(900001, 900200) g; UPDATE acc SET v = v || '!' WHERE id < 300; DELETE FROM acc WHERE id BETWEEN 400 AND 450")?;
        let before = c.query_one("SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM acc")?;
        world.here.query(&format!("SELECT foreshard.rollback_move({move_id})"))?;
        world.here.wait_end(&move_id, "cancelled")?;
        assert_eq!(world.shard_of(slot)?, if back.is_empty() { home } else { back.to_string() });
        assert_eq!(c.query_one("SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM acc")?, before);
        world.assert_nothing_left()?;
        c.exec("DELETE FROM acc WHERE id > 900000")?;
    }
    world.here.set(&[("foreshard.rollback_window", "0")])?;
    // TRUNCATE, on the node, is no loss: the copy begins anew.
    world.here.hold(Some("cutover"))?;
    let move_id = world.move_to(&slots[0], "sb")?;
    world.here.wait_phase(&move_id, "cutover")?;
    c.exec("TRUNCATE acc; INSERT INTO acc SELECT g, 'new' || g FROM generate_series(1, 500) g")?;
    world.here.hold(None)?;
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(c.query_one("SELECT count(*) FROM acc WHERE v LIKE 'new%'")?, "500");
    assert_eq!(c.query_one("SELECT count(*) FROM acc")?, "500");
    world.assert_nothing_left()
}

#[test]
fn a_node_that_is_away() -> Result<()> {
    let mut world = World::with_nodes("fdw-away")?;
    world.tables(2)?;
    let slots = world.here.slots("acc")?;
    let move_id = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    world.there.kill9_postmaster()?;
    world.here.wait_query("SELECT string_agg(state, ' ') FROM foreshard.nodes", "down down")?;
    let error = world.here.fails(&format!("SELECT foreshard.move_slot({}, 'on_n1')", slots[1]))?;
    assert_eq!(error.sqlstate, "08006", "{error}");
    assert!(error.hint.is_some(), "{error}");
    // What is here goes on; what is there fails at once.
    let mut c = world.here.cluster.connect("postgres")?;
    let id = c
        .query_one("SELECT id FROM ONLY acc_s1 LIMIT 1")
        .or_else(|_| c.query_one("SELECT id FROM ONLY acc_s0 LIMIT 1"))?;
    c.exec(&format!("UPDATE acc SET v = 'here' WHERE id = {id}"))?;
    let begun = std::time::Instant::now();
    let error = world.here.fails("SELECT count(*) FROM acc")?;
    assert!(error.sqlstate.starts_with("08"), "{error}");
    assert!(begun.elapsed().as_secs() < 2);
    world.there.start_again()?;
    world.here.wait_query("SELECT string_agg(state, ' ') FROM foreshard.nodes", "up up")?;
    assert_eq!(c.query_one("SELECT count(*) FROM acc")?, ROWS.to_string());
    // A cancelled move leaves nothing, even if the node was away when it was cancelled.
    world.here.hold(Some("catch_up"))?;
    let move_id = world.move_to(&slots[1], "on_n2")?;
    world.here.wait_phase(&move_id, "catch_up")?;
    world.there.kill9_postmaster()?;
    world.here.query(&format!("SELECT foreshard.cancel_move({move_id})"))?;
    world.here.hold(None)?;
    world.here.wait_end(&move_id, "cancelled")?;
    assert_ne!(world.here.query("SELECT count(*) FROM foreshard.remote_tables WHERE orphan")?, "0");
    world.there.start_again()?;
    world.assert_nothing_left()?;
    // Emptied for maintenance.
    assert_eq!(world.here.query("SELECT foreshard.drain_shard('on_n1')")?, "1");
    world.here.wait_query("SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    assert_eq!(world.here.query("SELECT count(*) FROM foreshard.slots WHERE shard = 'on_n1'")?, "0");
    assert_eq!(c.query_one("SELECT count(*) FROM acc")?, ROWS.to_string());
    world.here.query("SELECT foreshard.drop_shard('on_n1')")?;
    world.assert_nothing_left()
}
