//! Slots whose node is lost get the old copy back that is kept of them: everything up to `complete_to`, after somebody said that the rest
//! may go; and what the node has alone is dropped by nobody but its user.

mod common;

use common::nodes::{ROWS, World};
use common::placed::expect_code;
use foreshard_test::{Client, Result, wait_until};
use std::time::Duration;

const SUM: &str = "SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM acc";

/// A slot that has moved to n1 a while ago, with an old copy that has everything but one update. (The move, the sum of all rows without
/// that update, the row that it changed.)
fn moved_and_written(world: &mut World, slot: &str) -> Result<(String, String, String)> {
    world.here.set(&[("foreshard.rollback_window", "600")])?;
    let move_id = world.move_to(slot, "on_n1")?;
    world.here.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"), "watch")?;
    let there = "SELECT min(id) FROM acc WHERE tableoid = (SELECT partition FROM foreshard.retained_copies WHERE \"table\" = 'acc'::regclass)";
    let id = world.here.query(there)?;
    world
        .here
        .query("UPDATE acc SET v = v || '!' WHERE id <= 300; DELETE FROM acc WHERE id BETWEEN 400 AND 450")?;
    // As if half a minute had passed.
    world.here.query(&format!(
        "UPDATE foreshard.move SET swapped_at = swapped_at - interval '1 min', checked_at = NULL WHERE move_id = {move_id}"
    ))?;
    let of = |column: &str| {
        format!("SELECT {column} FROM foreshard.retained_copies WHERE \"table\" = 'acc'::regclass")
    };
    let (now, kept) = (world.here.query(&of("partition"))?, world.here.query(&of("retained_copy"))?);
    let now = world.here.query(&SUM.replace("FROM acc", &format!("FROM {now}")))?;
    world.here.wait_query(&SUM.replace("FROM acc", &format!("FROM {kept}")), &now)?;
    let sum = world.here.query(SUM)?;
    world.here.query(&format!("UPDATE acc SET v = 'last' WHERE id = {id}"))?;
    Ok((move_id, sum, id))
}

/// Recovers a slot, as soon as no worker is at its move.
fn recover(client: &mut Client, slot: &str) -> Result<()> {
    wait_until("the slot is recovered", Duration::from_secs(20), || {
        match client.exec(&format!("SELECT foreshard.recover_slot({slot}, accept_loss => true)")) {
            Ok(_) => Ok(true),
            Err(error) if error.sqlstate == "55006" => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
}

/// What is kept of a table on the lost node, as foreign tables here.
const LOST: &str = "SELECT r.partition::regclass FROM foreshard.remote_table r WHERE r.lost_from IS NOT NULL AND r.table_oid = ";

#[test]
fn a_lost_slot_gets_its_old_copy_back() -> Result<()> {
    let mut world = World::with_nodes("recover")?;
    world.tables(2)?;
    let slot = world.here.slots("acc")?[0].clone();
    let home = world.shard_of(&slot)?;
    let (move_id, sum, id) = moved_and_written(&mut world, &slot)?;
    let mut c = world.here.cluster.connect("postgres")?;
    let call = format!("SELECT foreshard.recover_slot({slot}");
    // Nobody loses anything while the node answers, or by accident.
    let error = expect_code(c.exec(&format!("{call}, accept_loss => true)")), "55000");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("rollback_move")), "{error}");
    world.there.kill9_postmaster()?;
    world.here.wait_query("SELECT bool_and(state = 'down') FROM foreshard.nodes", "t")?;
    let error = expect_code(c.exec(&format!("{call})")), "55000");
    let detail = error.detail.clone().unwrap_or_default();
    assert!(detail.contains("everything that was committed by") && detail.contains("s later"), "{error}");
    expect_code(c.exec("SELECT foreshard.recover_slot(NULL, true)"), "22023");
    expect_code(c.exec("SELECT foreshard.recover_slot(999999, true)"), "42704");
    c.exec("CREATE ROLE stranger; GRANT USAGE ON SCHEMA foreshard TO stranger; SET ROLE stranger")?;
    expect_code(c.exec(&format!("{call}, true)")), "42501");
    c.exec("RESET ROLE; GRANT EXECUTE ON FUNCTION foreshard.recover_slot TO stranger; SET ROLE stranger")?;
    expect_code(c.exec(&format!("{call}, true)")), "42501");
    c.exec("RESET ROLE")?;
    // All of it is one transaction.
    wait_until("it is undone with its transaction", Duration::from_secs(20), || {
        c.exec("BEGIN")?;
        let done = c.exec(&format!("{call}, true)"));
        c.exec("ROLLBACK")?;
        Ok(done.is_ok())
    })?;
    assert_eq!(world.shard_of(&slot)?, "on_n1");
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.retained_copies WHERE node_state = 'down'")?, "2");
    c.take_notices();
    recover(&mut c, &slot)?;
    let told = c.take_notices().join("; ");
    assert!(told.contains("has everything that was committed by") && told.contains("_lost_"), "{told}");

    // The rows up to complete_to are there, and can be written.
    assert_eq!(world.here.query(SUM)?, sum);
    assert_eq!(world.shard_of(&slot)?, home);
    assert_eq!(world.here.phase(&move_id)?, "cancelled");
    world.here.query(&format!("UPDATE acc SET v = 'new' WHERE id = {id}; INSERT INTO acc SELECT g, 'again' FROM generate_series(400, 450) g"))?;
    assert_eq!(world.here.query("SELECT count(*) FROM acc")?, ROWS.to_string());
    assert_eq!(world.here.query("SELECT count(*) FROM note")?, ROWS.to_string());
    let event = format!(
        "SELECT detail->>'node', (detail->>'between_s')::float8 >= 0, jsonb_array_length(detail->'left') FROM foreshard.history WHERE event = 'recover' AND move_id = {move_id}"
    );
    assert_eq!(world.here.query(&event)?, "n1|t|2");
    let told =
        "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'its slot was recovered without it%'";
    assert_eq!(world.here.query(told)?, "2");

    // The node comes back, and keeps what it alone may have, with the log of it.
    world.there.start_again()?;
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    std::thread::sleep(Duration::from_millis(3_500));
    let lost = world.here.query(&format!("{LOST} 'acc'::regclass"))?;
    assert_eq!(world.here.query(&format!("SELECT v FROM {lost} WHERE id = {id}"))?, "last");
    let log = world.here.query("SELECT 'foreshard_log_' || remote_id FROM foreshard.remote_table WHERE lost_from IS NOT NULL AND table_oid = 'acc'::regclass")?;
    assert_ne!(world.there.connect("postgres")?.query_one(&format!("SELECT count(*) FROM {log}"))?, "0");
    assert_eq!(world.here.query(told)?, "2");
    expect_code(c.exec("SELECT foreshard.drop_node('n1')"), "55006");
    // The slot may go there again.
    world.here.set(&[("foreshard.rollback_window", "0")])?;
    let again = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&again, "done")?;
    assert_eq!(world.here.query(&format!("SELECT v FROM acc WHERE id = {id}"))?, "new");
    // It goes when its user lets it go.
    let other = world.here.query(&format!("{LOST} 'note'::regclass"))?;
    world.here.query(&format!("DROP FOREIGN TABLE {lost}, {other}"))?;
    world.here.wait_query("SELECT count(*) FROM foreshard.remote_table WHERE lost_from IS NOT NULL", "0")?;
    assert_eq!(world.here.query(told)?, "0");
    world.assert_nothing_left()
}

/// The old copy is on another node, which answers.
#[test]
fn an_old_copy_on_another_node_takes_the_place() -> Result<()> {
    let mut world = World::with_nodes("recover-other")?;
    world.tables(1)?;
    let slot = world.here.slots("acc")?[0].clone();
    let move_id = world.move_to(&slot, "on_n2")?;
    world.here.wait_end(&move_id, "done")?;
    let (_, sum, id) = moved_and_written(&mut world, &slot)?;
    let host = format!("{}", world.there.socket_dir().display());
    world.here.query("ALTER SERVER s_n1 OPTIONS (SET host '/nowhere')")?;
    world.here.wait_query("SELECT string_agg(state, ' ' ORDER BY node) FROM foreshard.nodes", "down up")?;
    let mut c = world.here.cluster.connect("postgres")?;
    recover(&mut c, &slot)?;
    assert_eq!(world.shard_of(&slot)?, "on_n2");
    assert_eq!(world.here.query(SUM)?, sum);
    world.here.query(&format!("UPDATE acc SET v = 'new' WHERE id = {id}"))?;
    world.here.query(&format!("ALTER SERVER s_n1 OPTIONS (SET host '{host}')"))?;
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    let lost = world.here.query(&format!("{LOST} 'acc'::regclass"))?;
    let other = world.here.query(&format!("{LOST} 'note'::regclass"))?;
    assert_eq!(world.here.query(&format!("SELECT v FROM {lost} WHERE id = {id}"))?, "last");
    world.here.query(&format!("DROP FOREIGN TABLE {lost}, {other}"))?;
    world.here.set(&[("foreshard.rollback_window", "0")])?;
    world.assert_nothing_left()
}
