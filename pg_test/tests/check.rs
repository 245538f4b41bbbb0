//! What check() and status() tell of a keeper that does not read, and of storage that is not as it should be; and that what they
//! say cures it.

mod common;
#[path = "packages/exporter.rs"]
#[allow(dead_code, reason = "one query of it is run here")]
mod exporter;

use common::sources::connect_as;
use common::standby::Standby;
use common::{PATIENCE, Server, options};
use exporter::collector;
use foreshard_test::{Result, wait_until};
use std::time::Duration;

const UNREAD: &str = "SELECT string_agg(detail || ' ' || hint, '') FROM foreshard.check() WHERE problem = 'the keeper does not read the loads of slots'";

#[test]
fn a_keeper_that_does_not_read_is_told() -> Result<()> {
    let mut server = Server::start(&options("unread"))?;
    server
        .query("CREATE TABLE t (id bigint PRIMARY KEY, v text); SELECT foreshard.distribute('t', 'id', 2)")?;
    server.wait_query("SELECT count(*) FROM foreshard.heat_map WHERE observed_at IS NOT NULL", "2")?;
    assert_eq!(server.query(UNREAD)?, "");
    assert_eq!(server.query("SELECT overdue FROM foreshard.last_reading")?, "f");
    // It hangs, and what it read last is an hour old.
    let mut locker = server.cluster.connect("postgres")?;
    locker.exec(
        "BEGIN; LOCK TABLE foreshard.slot_heat IN EXCLUSIVE MODE; \
         UPDATE foreshard.slot_heat SET observed_at = observed_at - interval '1 hour'",
    )?;
    let mut told = String::new();
    wait_until("the keeper that hangs is told", PATIENCE, || {
        told = locker.query_one(UNREAD)?;
        Ok(told.contains("waits for a lock: relation"))
    })?;
    let keeper = server.query("SELECT keeper_pid FROM foreshard.worker_states()")?;
    for hint in [format!("pg_blocking_pids({keeper})"), format!("pg_terminate_backend({keeper})")] {
        assert!(told.contains(&hint), "{hint} is not in {told}");
    }
    let status = locker.exec("SELECT * FROM foreshard.status()")?.to_text();
    assert!(status.contains("NOT READ since"), "{status}");
    // Where nobody is to read, nobody is missed.
    locker.exec("SET LOCAL foreshard.observe = off")?;
    assert_eq!(locker.query_one(UNREAD)?, "");
    locker.exec("ROLLBACK")?;
    server.wait_query(UNREAD, "")?;
    server.wait_query("SELECT age < interval '1 min' AND NOT overdue FROM foreshard.last_reading", "t")?;
    nothing_is_missed_on_a_standby(&mut server)
}

/// However old the last reading is.
fn nothing_is_missed_on_a_standby(server: &mut Server) -> Result<()> {
    let mut standby = Standby::start(&server.cluster)?;
    server.set(&[("foreshard.observe", "off")])?;
    std::thread::sleep(Duration::from_secs(2));
    server.query("UPDATE foreshard.slot_heat SET observed_at = observed_at - interval '1 hour'")?;
    standby.wait_replayed(server)?;
    let mut there = standby.connect()?;
    let old = "SELECT age > interval '50 min', overdue, current_setting('foreshard.observe') FROM foreshard.last_reading";
    assert_eq!(there.exec(old)?.to_text(), "t|f|on");
    assert_eq!(there.query_one("SELECT count(*) FROM foreshard.check() WHERE object = 'worker'")?, "0");
    // The alert asks whether the metric is 0.
    let workers = collector()?.queries.get("workers").cloned().unwrap_or_default();
    assert_eq!(there.exec(&workers)?.to_text(), "1|||0");
    assert_eq!(server.query(&workers)?, "1|1|1|0");
    Ok(())
}

#[test]
fn toast_tables_without_their_own_names_are_told() -> Result<()> {
    let mut server = Server::start(&options("toast-name"))?;
    server
        .query("CREATE TABLE t (id bigint PRIMARY KEY, v text); SELECT foreshard.distribute('t', 'id', 2)")?;
    let mut user = server.cluster.connect("postgres")?;
    user.exec("BEGIN")?;
    let partition = user.query_one(
        "INSERT INTO t SELECT 1, string_agg(md5(g::text), '') FROM generate_series(1, 1000) g RETURNING tableoid::regclass",
    )?;
    // What a move leaves that finds the toast table in use, as it is here.
    server.query(&format!(
        "UPDATE pg_class c SET relname = CASE c.relkind WHEN 'i' THEN 'pg_toast_1_index' ELSE 'pg_toast_1' END FROM pg_class p \
         WHERE p.oid = '{partition}'::regclass AND \
               (c.oid = p.reltoastrelid OR c.oid = (SELECT indexrelid FROM pg_index WHERE indrelid = p.reltoastrelid))"
    ))?;
    let named = "SELECT string_agg(object || ': ' || detail, ',') FROM foreshard.check() WHERE problem LIKE 'its toast table %'";
    let told = server.query(named)?;
    assert!(told.contains(&partition) && told.contains("pg_toast.pg_toast_1 instead of pg_toast_"), "{told}");
    // A keeper that has just begun tries at once.
    user.exec("COMMIT")?;
    server.query("SELECT pg_terminate_backend(keeper_pid) FROM foreshard.worker_states()")?;
    server.wait_query(named, "")?;
    server.assert_settled()
}

#[test]
fn storage_elsewhere_is_brought_home_online() -> Result<()> {
    let mut server = Server::start(&options("elsewhere"))?;
    server.query(
        "CREATE ROLE proprietor LOGIN; GRANT CREATE ON SCHEMA public TO proprietor; \
         CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 500) g; \
         ALTER TABLE t OWNER TO proprietor; SELECT foreshard.distribute('t', 'id', 2); \
         GRANT EXECUTE ON FUNCTION foreshard.move_slot TO proprietor",
    )?;
    let rows = "SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM t";
    let before = server.query(rows)?;
    let slot = server.slots("t")?[0].clone();
    let of = |column: &str| format!("SELECT {column} FROM foreshard.slots WHERE slot_id = {slot}");
    let (partition, shard) = (server.query(&of("partition"))?, server.query(&of("shard"))?);
    let home = format!("SELECT foreshard.move_slot({slot}, '{shard}');");
    assert_eq!(server.fails(&home)?.sqlstate, "22023", "it is at home");
    server.query(&format!("ALTER TABLE {partition} SET TABLESPACE pg_default"))?;
    let hint =
        server.query("SELECT hint FROM foreshard.check() WHERE problem = 'storage is not on the shard'")?;
    assert!(hint.contains(&home) && hint.contains("keeps everybody out"), "{hint}");
    // Tables lie where their owners may create, also when a slot stays on its shard.
    let mut proprietor = connect_as(&server.cluster, "proprietor")?;
    let refused = proprietor.exec(&home).err().map(|error| error.sqlstate);
    assert_eq!(refused.as_deref(), Some("42501"));
    server.query(&format!("GRANT CREATE ON TABLESPACE {shard} TO proprietor"))?;
    let move_id = proprietor.query_one(&home)?;
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.layout_problems")?, "0");
    assert_eq!(server.query(&of("shard"))?, shard);
    assert_eq!(server.query(rows)?, before);
    server.assert_settled()
}
