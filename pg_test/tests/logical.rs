//! Logical decoding and replication while slots move: users of a published table can write, subscribers
//! get every change once, and nobody ever sees a shadow.

mod common;

use common::ledger::{self, Ledger};
use common::{Server, options};
use foreshard_test::{Result, wait_until};

const ROWS: u64 = 4000;

fn start(name: &str) -> Result<Server> {
    let wal = options(name).set("wal_level", "logical").set("foreshard.copy_chunk", "64kB");
    let mut server = Server::start(&wal)?;
    ledger::create(&mut server, ROWS)?;
    server.query(
        "SELECT foreshard.distribute('acc', 'id', 2); \
         SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    Ok(server)
}

/// Moves and splits every slot, with a pause in the phases in which both copies are written.
fn move_all(server: &mut Server, ledger: &Ledger) -> Result<()> {
    for slot in server.slots("acc")? {
        for (phase, splits) in [("copy", false), ("cutover", false), ("copy", true), ("cutover", true)] {
            server.hold(Some(phase))?;
            let move_id = if splits { server.split_slot(&slot)? } else { server.move_slot(&slot)? };
            server.wait_phase(&move_id, phase)?;
            ledger.work(150)?;
            server.hold(None)?;
            server.wait_end(&move_id, "done")?;
            ledger.work(100)?;
        }
    }
    Ok(())
}

#[test]
fn a_subscriber_gets_everything() -> Result<()> {
    let mut server = start("subscriber")?;
    server.query("CREATE DATABASE sub")?;
    let mut sub = server.cluster.connect("sub")?;
    for table in ledger::TABLES {
        sub.exec(&format!("CREATE TABLE {table} (id bigint PRIMARY KEY, v text NOT NULL)"))?;
    }
    server.query("CREATE PUBLICATION p FOR TABLE acc, note WITH (publish_via_partition_root = true)")?;
    server.query("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")?;
    sub.exec(&format!(
        "CREATE SUBSCRIPTION s CONNECTION '{}' PUBLICATION p WITH (create_slot = false, slot_name = 's')",
        server.cluster.conninfo("postgres")
    ))?;
    let synced = "SELECT count(*) FROM pg_subscription_rel WHERE srsubstate = 'r'";
    wait_until("the tables are copied", common::PATIENCE, || Ok(sub.query_one(synced)? == "2"))?;

    let ledger = Ledger::start(&server, ROWS, 3);
    move_all(&mut server, &ledger)?;
    ledger.assert_equal(&mut server)?;
    ledger.finish();
    for table in ledger::TABLES {
        let rows =
            format!("SELECT count(*) || ' ' || sum(hashtextextended(id || v, 0)::numeric) FROM {table}");
        let expected = server.query(&rows)?;
        let same = wait_until(&format!("{table} is the same"), common::PATIENCE, || {
            Ok(sub.query_one(&rows)? == expected)
        });
        assert!(
            same.is_ok(),
            "{table}: {expected} published, {} subscribed\n{}",
            sub.query_one(&rows)?,
            server.log_tail()
        );
    }
    sub.exec("ALTER SUBSCRIPTION s DISABLE")?;
    sub.exec("ALTER SUBSCRIPTION s SET (slot_name = NONE)")?;
    sub.exec("DROP SUBSCRIPTION s")?;
    wait_until("the slot is free", common::PATIENCE, || {
        Ok(server.query("SELECT active FROM pg_replication_slots WHERE slot_name = 's'")? == "f")
    })?;
    server.query("SELECT pg_drop_replication_slot('s')")?;
    server.assert_settled()
}

/// With every table published, updates need a replica identity: ours must have one, and decoding must
/// not show what is ours.
#[test]
fn publishing_all_tables_shows_no_shadow() -> Result<()> {
    let mut server = start("publish-all")?;
    // Versions that restrict output plugins name the setting; elsewhere nothing is to be done.
    let restricted =
        server.query("SELECT count(*) FROM pg_settings WHERE name = 'output_plugin_libraries'")?;
    if restricted == "1" {
        server.set(&[("output_plugin_libraries", "test_decoding, pgoutput")])?;
    }
    server.query("CREATE PUBLICATION everything FOR ALL TABLES WITH (publish_via_partition_root = true)")?;
    server.query("SELECT pg_create_logical_replication_slot('d', 'test_decoding')")?;
    let ledger = Ledger::start(&server, ROWS, 2);
    move_all(&mut server, &ledger)?;
    ledger.assert_equal(&mut server)?;
    ledger.finish();
    let tables = "SELECT string_agg(DISTINCT substring(data FROM '^table ([^:]*):'), ',') \
                  FROM pg_logical_slot_peek_changes('d', NULL, NULL) WHERE data ~ '^table [^:]*(shadow_|capture_|split_|pg_temp_|pg_toast)'";
    assert_eq!(server.query(tables)?, "", "foreign tables in the stream");
    // A value stored out of line must be decoded whole from the new storage.
    server.query("SELECT count(*) FROM pg_logical_slot_get_changes('d', NULL, NULL)")?;
    server.query(
        "INSERT INTO acc SELECT 77000000 + g, (SELECT string_agg(md5(g || ' ' || i), '') FROM generate_series(1, 200) i) \
         FROM generate_series(1, 10) g",
    )?;
    let whole = "SELECT count(*) FROM pg_logical_slot_get_changes('d', NULL, NULL) \
                 WHERE data LIKE '%INSERT%' AND data !~ 'unchanged-toast-datum' AND length(data) > 6400";
    assert_eq!(server.query(whole)?, "10", "decoded values");
    server.query("SELECT pg_drop_replication_slot('d')")?;
    server.assert_settled()
}
