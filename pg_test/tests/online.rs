//! distribute and undistribute(…, online => true): a table that is in use becomes a managed one, and an ordinary one again;
//! nobody waits long, nothing is lost.

mod common;

use common::ledger::{self, Ledger};
use common::placed::{assert_located, expect_code, layout};
use common::{Server, options};
use foreshard_test::{Client, Result, SqlError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    for table in ledger::TABLES {
        assert_located(&mut server, table, "id")?;
    }
    server.query("CREATE TABLE late (id bigint PRIMARY KEY); SELECT foreshard.distribute('late', 'id', colocate_with => 'acc')")?;
    assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "late")?);
    let mut c = server.cluster.connect("postgres")?;
    let error = expect_code(c.exec("SELECT foreshard.undistribute('acc', online => true)"), "0A000");
    assert!(error.detail.is_some_and(|detail| detail.contains("colocated: public.late")));
    server.query("SELECT foreshard.undistribute('late')")?;
    let mut waits = Waits::start(&server)?;
    for table in ["note", "acc"] {
        ledger.work(50)?;
        let slots = server.slots(table)?.len();
        if table == "acc" {
            prepared.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
        }
        let move_id = server.undistribute(table)?;
        if table == "acc" {
            ledger.work(50)?;
            prepared.exec_prepared("by_key", &[Some("17")])?;
            prepared.exec("COMMIT")?;
        }
        let held_us = server.wait_undistributed(&move_id)?;
        let verdict = if held_us <= MOST_HELD_MS * 1000 { "PASS" } else { "MISSED" };
        let held_ms = held_us as f64 / 1e3;
        println!(
            "{table}: {slots} slots, undistributed, locks held {held_ms:.1} ms (bar: {MOST_HELD_MS} ms) {verdict}"
        );
        ledger.work(100)?;
        ledger.assert_equal(&mut server)?;
        prepared.exec_prepared("by_key", &[Some("17")])?;
        assert_eq!(
            server.query(&format!("SELECT relkind FROM pg_class WHERE oid = '{table}'::regclass"))?,
            "r"
        );
        server.assert_clean()?;
    }
    println!("longest wait of a reader of acc: {:.1} ms", waits.longest_ms()?);
    ledger.finish();
    assert_eq!(server.query("SELECT count(*) FROM foreshard.slot")?, "0");
    server.assert_clean()
}

/// Longest time for which the last lock may be held on a machine that does nothing else, ms; printed.
const MOST_HELD_MS: u64 = 50;

/// Looks a row of `acc` up again and again.
struct Waits {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::result::Result<f64, SqlError>>>,
}

impl Waits {
    fn start(server: &Server) -> Result<Waits> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = server.cluster.connect("postgres")?;
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            client.prepare("get", "SELECT v FROM acc WHERE id = $1")?;
            let mut longest_ms = 0.0_f64;
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                client.exec_prepared("get", &[Some("23")])?;
                longest_ms = longest_ms.max(begun.elapsed().as_secs_f64() * 1e3);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(longest_ms)
        });
        Ok(Waits { stop, thread: Some(thread) })
    }

    fn longest_ms(&mut self) -> Result<f64> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().and_then(|thread| thread.join().ok());
        Ok(ended.expect("a reader")?)
    }
}

/// The slots of a group, of whatever moduli, get another table's rows; the group is held still meanwhile.
#[test]
fn a_table_in_use_joins_a_group() -> Result<()> {
    let mut server = Server::start(&options("online-join").set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, 6_000)?;
    server.query("SELECT foreshard.distribute('acc', 'id', 4)")?;
    let slots = server.slots("acc")?;
    let split = server.split_slot(&slots[1])?;
    server.wait_end(&split, "done")?;
    let ledger = Ledger::start(&server, 6_000, 3);
    let mut c = server.cluster.connect("postgres")?;
    let join = "SELECT foreshard.distribute('note', 'id', colocate_with => 'acc', online => true)";
    expect_code(c.exec(&join.replace("'id',", "'v',")), "0A000");
    expect_code(c.exec(&join.replace("'id',", "'id', 4,")), "22023");
    let newest = "SELECT max(move_id) FROM foreshard.move WHERE kind = 'join' AND partner_of IS NULL";
    server.hold(Some("catch_up"))?;
    assert_eq!(server.query(join)?, "5");
    let first = server.query(newest)?;
    server.wait_phase(&first, "catch_up")?;
    expect_code(c.exec(&format!("SELECT foreshard.split_slot({})", slots[0])), "55006");
    expect_code(c.exec("SELECT foreshard.undistribute('acc')"), "55006");
    server.query(&format!("SELECT foreshard.cancel_move({first})"))?;
    server.hold(None)?;
    server.wait_end(&first, "cancelled")?;
    assert_eq!(layout(&mut server, "note")?.lines().count(), 1);
    // A table that has come to it meanwhile joins with it.
    server.query(
        "CREATE TABLE extra (id bigint PRIMARY KEY, v text); SELECT foreshard.distribute('extra', 'id', colocate_with => 'note'); \
         INSERT INTO extra SELECT g, g FROM generate_series(1, 500) g",
    )?;
    server.query(join)?;
    let second = server.query(newest)?;
    let held_us = server.wait_undistributed(&second)?;
    println!("note: joined 5 slots, locks held {:.1} ms", held_us as f64 / 1e3);
    ledger.work(100)?;
    ledger.assert_equal(&mut server)?;
    assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "note")?);
    assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "extra")?);
    for table in ledger::TABLES.into_iter().chain(["extra"]) {
        assert_located(&mut server, table, "id")?;
    }
    assert_eq!(server.query("SELECT count(*) FROM extra")?, "500");
    assert_eq!(server.query("SELECT count(*) FROM foreshard.colocation_group")?, "1");
    assert_eq!(server.query("SELECT count(*) FROM foreshard.slot")?, "5");
    server.assert_settled()?;
    // They move together.
    server.move_and_wait(&slots[0])?;
    ledger.work(50)?;
    ledger.assert_equal(&mut server)?;
    ledger.finish();
    server.assert_settled()
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
    // The only partition becomes the table, as it is.
    let partition = server.query("SELECT DISTINCT tableoid::oid FROM t")?;
    server.query("SELECT foreshard.undistribute('t', online => true)")?;
    assert_eq!(
        server.query("SELECT oid, relkind FROM pg_class WHERE oid = 't'::regclass")?,
        format!("{partition}|r")
    );
    assert_eq!(server.query("SELECT count(*) FROM t")?, "2000");
    let held = "SELECT round((detail->>'held_us')::numeric / 1000, 1) FROM foreshard.history WHERE event = 'undistribute'";
    println!("t: one slot, released, locks held {} ms", server.query(held)?);
    server.assert_clean()?;
    let second = distribute(&mut server, "t", 8)?;
    server.wait_end(&second, "done")?;
    assert_eq!(server.query("SELECT count(*), count(DISTINCT tableoid) FROM t")?, "2000|8");
    assert_eq!(server.query("SELECT slot_count FROM foreshard.colocation_group")?, "8");
    assert_located(&mut server, "t", "id")?;
    expect_code(c.exec("SELECT foreshard.distribute('t', 'id', 4, online => true)"), "55000");
    server.assert_settled()?;
    undistributed_whatever_happens(&mut server, &mut c)
}

/// Cancelled, it leaves the slots as they were; killed, it goes on.
fn undistributed_whatever_happens(server: &mut Server, c: &mut Client) -> Result<()> {
    let before = layout(server, "t")?;
    server.hold(Some("mirror"))?;
    let cancelled = server.undistribute("t")?;
    server.wait_phase(&cancelled, "mirror")?;
    let seen =
        format!("SELECT kind, state, rows_done FROM foreshard.progress_moves WHERE move_id = {cancelled}");
    assert_eq!(server.query(&seen)?, "undistribute|running|2000");
    expect_code(c.exec("SELECT foreshard.undistribute('t', online => true)"), "55006");
    let slot = server.slots("t")?[3].clone();
    expect_code(c.exec(&format!("SELECT foreshard.split_slot({slot})")), "55006");
    // Who reads the last partition keeps capture on some only: it ends on four at a time.
    let last = server.query("SELECT tgrelid::regclass FROM pg_trigger WHERE tgname LIKE 'foreshard\\_capture%' ORDER BY tgrelid DESC LIMIT 1")?;
    c.exec(&format!("BEGIN; SELECT count(*) FROM {last}"))?;
    server.query(&format!("SELECT foreshard.cancel_move({cancelled})"))?;
    server.hold(None)?;
    server.wait_query("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'foreshard\\_capture%'", "4")?;
    c.exec("COMMIT")?;
    server.wait_end(&cancelled, "cancelled")?;
    assert_eq!(layout(server, "t")?, before);
    server.assert_settled()?;
    server.query("UPDATE t SET v = v || '!'")?;
    // What hinders it is named, in whatever phase it comes.
    server.hold(Some("cutover"))?;
    let hindered = server.undistribute("t")?;
    server.wait_phase(&hindered, "cutover")?;
    server.query("CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t")?;
    server.hold(None)?;
    server.wait_end(&hindered, "failed")?;
    let why = server
        .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {hindered}"))?;
    assert!(why.contains("materialized_view: public.m"), "{why}");
    let error = expect_code(c.exec("SELECT foreshard.undistribute('t', online => true)"), "0A000");
    assert!(error.detail.is_some_and(|detail| detail.contains("materialized_view: public.m")));
    server.query("DROP MATERIALIZED VIEW m")?;
    assert_eq!(layout(server, "t")?, before);
    server.assert_settled()?;
    for phase in ["capture", "mirror"] {
        server.hold(Some(phase))?;
        let move_id = server.undistribute("t")?;
        let pid = server.wait_phase(&move_id, phase)?;
        server.query("UPDATE t SET v = v || '?' WHERE id % 7 = 0")?;
        let _ = server.cluster.kill9(pid);
        server.hold(Some("retire"))?;
        server.wait_phase(&move_id, "retire")?;
        assert_eq!(server.query("SELECT relkind FROM pg_class WHERE oid = 't'::regclass")?, "r");
        server.query("UPDATE t SET v = v || '.' WHERE id % 11 = 0")?;
        server.cluster.kill9_postmaster()?;
        server.cluster.start_again()?;
        server.hold(None)?;
        server.wait_undistributed(&move_id)?;
        let rows = "SELECT count(*), count(DISTINCT id), count(*) FILTER (WHERE v LIKE '%!%'), count(*) FILTER (WHERE v LIKE '%?%'), \
             count(*) FILTER (WHERE v LIKE '%.%') FROM t";
        assert_eq!(server.query(rows)?, "2000|2000|2000|285|181", "{phase}");
        assert_eq!(server.query("SELECT count(*) FROM foreshard.slot")?, "0");
        server.assert_clean()?;
        server.query("SELECT foreshard.distribute('t', 'id', 8)")?;
    }
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
