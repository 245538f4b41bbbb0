//! distribute(…, online => true): a table that is in use becomes a managed one; nobody waits long, nothing is lost.

mod common;

use common::ledger::{self, Ledger};
use common::placed::{assert_located, expect_code, layout};
use common::{Server, options};
use foreshard_test::Result;
use std::time::Instant;

fn distribute(server: &mut Server, table: &str, slots: u32) -> Result<String> {
    let begun = Instant::now();
    server.query(&format!("SELECT foreshard.distribute('{table}', 'id', {slots}, online => true)"))?;
    println!("{table}: adopted in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    server.query(&format!(
        "SELECT max(m.move_id) FROM foreshard.move m JOIN foreshard.slots s USING (slot_id) WHERE s.\"table\" = '{table}'::regclass"
    ))
}

#[test]
fn a_table_in_use_is_distributed() -> Result<()> {
    let mut server = Server::start(&options("online").set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, 12_000)?;
    let ledger = Ledger::start(&server, 12_000, 4);
    let mut prepared = server.cluster.connect("postgres")?;
    prepared.prepare("by_key", "SELECT count(*) FROM acc WHERE id = $1")?;
    prepared.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    for (table, slots) in [("acc", 32), ("note", 5)] {
        ledger.work(50)?;
        let move_id = distribute(&mut server, table, slots)?;
        if table == "acc" {
            prepared.exec_prepared("by_key", &[Some("17")])?;
            prepared.exec("COMMIT")?;
        }
        server.wait_end(&move_id, "done")?;
        let held = server.query(&format!(
            "SELECT string_agg(event || ' ' || (detail->>'held_us'), ', ') FROM foreshard.history \
             WHERE event = 'distribute' AND detail->>'table' = 'public.{table}' OR event = 'cutover' AND move_id = {move_id}"
        ))?;
        println!("{table}: {slots} slots, locks held, us: {held}");
        ledger.assert_equal(&mut server)?;
        server.assert_settled()?;
        assert_eq!(layout(&mut server, table)?.lines().count() as u32, slots);
        prepared.exec_prepared("by_key", &[Some("17")])?;
    }
    ledger.work(100)?;
    ledger.assert_equal(&mut server)?;
    ledger.finish();
    for table in ledger::TABLES {
        assert_located(&mut server, table, "id")?;
    }
    server.query("CREATE TABLE late (id bigint PRIMARY KEY); SELECT foreshard.distribute('late', 'id', colocate_with => 'acc')")?;
    assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "late")?);
    server.query("SELECT foreshard.undistribute('late'); SELECT foreshard.undistribute('note'); SELECT foreshard.undistribute('acc')")?;
    server.assert_clean()
}

#[test]
fn a_cancelled_one_can_be_taken_up_again() -> Result<()> {
    let mut server = Server::start(&options("online-cancel"))?;
    server.query("CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g, g FROM generate_series(1, 2000) g")?;
    server.hold(Some("catch_up"))?;
    let first = distribute(&mut server, "t", 4)?;
    server.wait_phase(&first, "catch_up")?;
    let mut c = server.cluster.connect("postgres")?;
    expect_code(c.exec("SELECT foreshard.distribute('t', 'id', 4, online => true)"), "55006");
    server.query(&format!("SELECT foreshard.cancel_move({first})"))?;
    server.hold(None)?;
    server.wait_end(&first, "cancelled")?;
    assert_eq!(server.query("SELECT count(*), count(DISTINCT tableoid) FROM t")?, "2000|1");
    assert_located(&mut server, "t", "id")?;
    let error = expect_code(c.exec("SELECT foreshard.distribute('t', 'v', 4, online => true)"), "55000");
    assert!(error.message.contains("by \"id\""), "{error}");
    let second = distribute(&mut server, "t", 8)?;
    server.wait_end(&second, "done")?;
    assert_eq!(server.query("SELECT count(*), count(DISTINCT tableoid) FROM t")?, "2000|8");
    assert_eq!(server.query("SELECT slot_count FROM foreshard.colocation_group")?, "8");
    assert_located(&mut server, "t", "id")?;
    expect_code(c.exec("SELECT foreshard.distribute('t', 'id', 4, online => true)"), "55000");
    server.assert_settled()
}

#[test]
fn what_cannot_be_done_online_says_why() -> Result<()> {
    let mut server = Server::start(&options("online-refuse"))?;
    server.query("CREATE TABLE t (id bigint PRIMARY KEY, v text)")?;
    let mut c = server.cluster.connect("postgres")?;
    let distribute = "SELECT foreshard.distribute('t', 'id', 4, online => true)";
    for (make, word, unmake) in [
        (
            "CREATE TABLE child (t_id bigint REFERENCES t)",
            "inbound_foreign_key: child_t_id_fkey of public.child",
            "DROP TABLE child",
        ),
        ("CREATE PUBLICATION p FOR TABLE t", "publication: p", "DROP PUBLICATION p"),
        (
            "ALTER TABLE t ADD CONSTRAINT late CHECK (v <> 'x') NOT VALID",
            "not_validated: constraint late",
            "ALTER TABLE t DROP CONSTRAINT late",
        ),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "no_identity_index", "ALTER TABLE t ADD PRIMARY KEY (id)"),
    ] {
        c.exec(make)?;
        let error = expect_code(c.exec(distribute), "0A000");
        assert!(error.detail.as_deref().is_some_and(|d| d.contains(word)) && error.hint.is_some(), "{error}");
        c.exec(unmake)?;
    }
    // A snapshot that is older than the lock would miss what was committed before it was granted.
    c.exec("CREATE TABLE old (id bigint PRIMARY KEY); SELECT foreshard.distribute('old', 'id', 2)")?;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        for sql in
            [distribute, "SELECT foreshard.distribute('t', 'id', 4)", "SELECT foreshard.undistribute('old')"]
        {
            let error = expect_code(c.exec(&format!("BEGIN ISOLATION LEVEL {level}; {sql}")), "0A000");
            assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("READ COMMITTED")), "{error}");
            c.exec("ROLLBACK")?;
        }
    }
    c.exec("SELECT foreshard.undistribute('old'); DROP TABLE old")?;
    // Everything that it locks is waited for in the same way, not the table alone.
    c.exec(
        "CREATE TABLE region (id int PRIMARY KEY); ALTER TABLE t ADD COLUMN r int REFERENCES region, ADD COLUMN n serial, \
             ADD COLUMN i int GENERATED BY DEFAULT AS IDENTITY; \
         CREATE FUNCTION rows(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'; CREATE TABLE namer (n bigint DEFAULT rows('t'))",
    )?;
    let mut busy = server.cluster.connect("postgres")?;
    for held in ["SELECT nextval('t_n_seq')", "SELECT nextval('t_i_seq')", "TABLE region", "TABLE namer"] {
        busy.exec(&format!("BEGIN; {held}"))?;
        let error = expect_code(c.exec(&format!("SET statement_timeout = '700ms'; {distribute}")), "57014");
        assert!(error.message.contains("cancel"), "{held}: {error}");
        busy.exec("COMMIT")?;
    }
    c.exec(&format!("RESET statement_timeout; BEGIN; {distribute}; ROLLBACK"))?;
    // Who waits for somebody's open transaction holds up nobody, and can be cancelled.
    let mut open = server.cluster.connect("postgres")?;
    open.exec("BEGIN; INSERT INTO t VALUES (1, 'a')")?;
    let error = expect_code(c.exec(&format!("SET statement_timeout = '1500ms'; {distribute}")), "57014");
    assert!(error.message.contains("cancel"), "{error}");
    open.exec("COMMIT")?;
    c.exec("RESET statement_timeout; SET lock_timeout = '77s'")?;
    c.exec(&format!("BEGIN; {distribute}"))?;
    assert_eq!(c.query_one("SHOW lock_timeout")?, "77s");
    c.exec("ROLLBACK")?;
    assert_eq!(server.query("SELECT relkind FROM pg_class WHERE oid = 't'::regclass")?, "r");
    server.assert_clean()
}
