//! A physical standby is promoted while moves stand in their phases: all of them end there.

mod common;

use common::standby::Standby;
use common::{PATIENCE, Server, options};
use foreshard_test::{Client, Result, StopMode, wait_until};

const ROWS: &str = "SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM t";

fn phases(server: &mut Server) -> Result<String> {
    server.query("SELECT string_agg(phase, ' ' ORDER BY move_id) FROM foreshard.move")
}

/// One move is copying, one is about to be verified, one has a canary and one is watched.
#[test]
fn moves_in_every_phase_go_on() -> Result<()> {
    let options = options("promoted")
        .set("foreshard.copy_chunk", "64kB")
        .set("foreshard.max_concurrent_moves", "4")
        .set("foreshard.rollback_window", "600");
    let mut server = Server::start(&options)?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, repeat(md5(g::text), 1 + g % 40) FROM generate_series(1, 4000) g; \
         SELECT foreshard.distribute('t', 'id', 4)",
    )?;
    let slots = server.slots("t")?;
    let mut standby = Standby::start(&server.cluster)?;
    let watched = server.move_slot(&slots[0])?;
    server.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {watched}"), "watch")?;
    server.hold(Some("verify"))?;
    let canary = server.move_slot(&slots[1])?;
    server.query(&format!("SELECT foreshard.set_route_weight({canary}, 0.5)"))?;
    server.hold(None)?;
    let weighs = format!("SELECT phase || weight FROM foreshard.progress_moves WHERE move_id = {canary}");
    server.wait_query(&weighs, "canary0.5")?;
    server.hold(Some("verify"))?;
    let verified = server.move_slot(&slots[2])?;
    server.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {verified}"), "verify")?;
    server.set(&[("foreshard.copy_rate", "32kB")])?;
    let copied = server.move_slot(&slots[3])?;
    let blocks = format!("SELECT sum(blocks_done) > 0 FROM foreshard.move_relation WHERE move_id = {copied}");
    server.wait_query(&blocks, "t")?;
    // Rows of all slots, before and behind what has been copied.
    server.query("UPDATE t SET v = v || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 50 = 0; INSERT INTO t SELECT g, 'new' FROM generate_series(5001, 5200) g")?;
    let expected = server.query(ROWS)?;
    assert_eq!(phases(&mut server)?, "watch canary verify copy");
    standby.wait_replayed(&mut server)?;
    let mut client = standby.connect()?;
    assert_eq!(client.query_one(ROWS)?, expected, "rows on the standby");

    server.cluster.stop(StopMode::Immediate)?;
    client.exec("SELECT pg_promote()")?;
    for statement in [
        "ALTER SYSTEM SET foreshard.hold_at_phase = ''",
        "ALTER SYSTEM SET foreshard.copy_rate = 0",
        "SELECT pg_reload_conf()",
    ] {
        client.exec(statement)?;
    }
    // The canary of the one goes on as it was told, and so does the watch of the other: both mirror.
    wait_phase(&mut client, &canary, "canary")?;
    client.exec("UPDATE t SET v = v || '?' WHERE id % 7 = 0")?;
    let expected = client.query_one(ROWS)?;
    client.exec(&format!(
        "SELECT foreshard.set_route_weight({canary}, NULL), foreshard.rollback_move({watched})"
    ))?;
    wait_phase(&mut client, &watched, "cancelled")?;
    client.exec("ALTER SYSTEM SET foreshard.rollback_window = 0")?;
    client.exec("SELECT pg_reload_conf()")?;
    for move_id in [&canary, &verified, &copied] {
        wait_phase(&mut client, move_id, "done")?;
    }
    assert_eq!(client.query_one(ROWS)?, expected, "rows on the new primary");
    let left = "SELECT count(*) FROM pg_class WHERE relname ~ '^(shadow|capture)_'";
    assert_eq!(client.query_one(left)?, "0");
    let shards = "SELECT count(DISTINCT shard) FROM foreshard.slots";
    assert_eq!(client.query_one(shards)?, "2");
    for index in client
        .exec("SELECT indexrelid FROM pg_index JOIN foreshard.slots ON partition = indrelid")?
        .to_text()
        .lines()
    {
        client.exec(&format!("SELECT bt_index_check({index}, true)"))?;
    }
    Ok(())
}

fn wait_phase(client: &mut Client, move_id: &str, phase: &str) -> Result<()> {
    let sql = format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}");
    wait_until(&format!("move {move_id} is in {phase} on the new primary"), PATIENCE, || {
        Ok(client.query_one(&sql)? == phase)
    })
}
