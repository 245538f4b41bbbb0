//! Splits that are built ahead, merges, and ways back.

mod common;

use common::ledger::{self, Ledger};
use common::placed::{assert_located, expect_code, layout};
use common::{Server, options};
use foreshard_test::Result;

fn start(name: &str, rows: u64) -> Result<(Server, Ledger)> {
    let mut server = Server::start(&options(name).set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, rows)?;
    server.query(
        "SELECT foreshard.distribute('acc', 'id', 2); SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    let ledger = Ledger::start(&server, rows, 3);
    Ok((server, ledger))
}

fn wait_state(server: &mut Server, move_id: &str, state: &str) -> Result<()> {
    server.wait_query(&format!("SELECT state FROM foreshard.progress_moves WHERE move_id = {move_id}"), state)
}

/// What was built ahead outlives a crash, stays equal, and only has to be switched over to.
#[test]
fn a_prepared_split_is_a_switchover() -> Result<()> {
    let (mut server, ledger) = start("prepared", 6_000)?;
    let slots = server.slots("acc")?;
    let prepare = format!("SELECT foreshard.prepare_split({}, to_shard_b => 'sb')", slots[0]);
    let move_id = server.query(&prepare)?;
    wait_state(&mut server, &move_id, "prepared")?;
    server
        .wait_query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard carrier'", "0")?;
    ledger.work(100)?;
    assert_eq!(layout(&mut server, "acc")?.lines().count(), 2, "nothing has changed yet");
    // Bounded, and not to be had twice.
    let mut c = server.cluster.connect("postgres")?;
    expect_code(c.exec(&prepare), "55006");
    server.set(&[("foreshard.max_prepared_splits", "1")])?;
    let error = expect_code(c.exec(&format!("SELECT foreshard.prepare_split({})", slots[1])), "53400");
    assert!(error.hint.is_some(), "{error}");
    // A crash keeps it.
    server.cluster.kill9_postmaster()?;
    server.cluster.start_again()?;
    wait_state(&mut server, &move_id, "prepared")?;
    ledger.work(60)?;
    let mut c = server.cluster.connect("postgres")?;
    let error = expect_code(
        c.exec(&format!("SELECT foreshard.split_slot({}, to_shard_b => 'sa')", slots[0])),
        "55006",
    );
    assert!(error.hint.is_some_and(|hint| hint.contains("cancel_move")));
    assert_eq!(server.query(&format!("SELECT foreshard.split_slot({})", slots[0]))?, move_id);
    server.wait_end(&move_id, "done")?;
    let copies = server.query(&format!(
        "SELECT count(*) FROM foreshard.history WHERE move_id = {move_id} AND event = 'phase' AND detail->>'to' = 'copy'"
    ))?;
    assert_eq!(copies, "1", "copies made for one split");
    ledger.work(60)?;
    ledger.assert_equal(&mut server)?;
    assert_eq!(layout(&mut server, "acc")?.lines().count(), 3);
    for table in ["acc", "note"] {
        assert_located(&mut server, table, "id")?;
    }
    server.assert_settled()?;
    // A table that is altered meanwhile has its parts built again.
    let move_id = server.query(&format!("SELECT foreshard.prepare_split({})", slots[1]))?;
    wait_state(&mut server, &move_id, "prepared")?;
    server.query("ALTER TABLE acc ADD COLUMN later int DEFAULT 7")?;
    assert_eq!(server.query(&format!("SELECT foreshard.split_slot({})", slots[1]))?, move_id);
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query("SELECT count(*) FROM acc WHERE later IS DISTINCT FROM 7")?, "0");
    ledger.work(60)?;
    ledger.assert_equal(&mut server)?;
    server.assert_settled()?;
    // Discarded by hand, and after its time.
    let move_id = server.query(&format!("SELECT foreshard.prepare_split({})", slots[0]))?;
    wait_state(&mut server, &move_id, "prepared")?;
    assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    server.wait_end(&move_id, "cancelled")?;
    server.assert_settled()?;
    server.set(&[("foreshard.prepared_split_lifetime", "1s")])?;
    let move_id = server.query(&format!("SELECT foreshard.prepare_split({})", slots[0]))?;
    server.wait_end(&move_id, "cancelled")?;
    let why = server
        .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
    assert!(why.contains("prepared_split_lifetime"), "{why}");
    ledger.finish();
    server.assert_settled()
}

/// The halves of the first slot that was split: (kept, new).
fn halves(server: &mut Server) -> Result<(String, String)> {
    let pair = server.query(
        "SELECT a.slot_id, b.slot_id FROM foreshard.slot a JOIN foreshard.slot b ON a.group_id = b.group_id AND a.modulus = b.modulus \
           AND b.remainder = a.remainder + a.modulus / 2 WHERE a.modulus > 2 ORDER BY 1 LIMIT 1",
    )?;
    let (a, b) = pair.split_once('|').unwrap_or_default();
    Ok((a.to_string(), b.to_string()))
}

/// Two slots become one under writers, whoever is killed in whatever phase.
#[test]
fn merged_whatever_happens() -> Result<()> {
    let (mut server, ledger) = start("merge", 4_000)?;
    let slot = server.slots("acc")?[0].clone();
    let before = layout(&mut server, "acc")?;
    for (round, phase) in
        ["capture", "copy", "index", "mirror", "cutover", "retire", "none"].iter().enumerate()
    {
        let move_id = server.split_slot(&slot)?;
        server.wait_end(&move_id, "done")?;
        let (a, b) = halves(&mut server)?;
        assert_eq!(a, slot, "the first half keeps the id");
        server.hold(Some(phase))?;
        let merge = if round % 2 == 0 { format!("{a}, {b}, 'sa'") } else { format!("{b}, {a}, 'sa'") };
        let move_id = server.query(&format!("SELECT foreshard.merge_slots({merge})"))?;
        if *phase != "none" {
            server.wait_phase(&move_id, phase)?;
            let mut c = server.cluster.connect("postgres")?;
            if *phase != "retire" {
                expect_code(c.exec(&format!("SELECT foreshard.move_slot({b}, 'sa')")), "55006");
                expect_code(c.exec(&format!("SELECT foreshard.split_slot({a})")), "55006");
            }
            ledger.work(40)?;
            if round % 2 == 0 {
                server.cluster.kill9_postmaster()?;
                server.cluster.start_again()?;
            } else if let Some(pid) = server.carrier()? {
                let _ = server.cluster.kill9(pid);
            }
            server.hold(None)?;
        }
        server.wait_end(&move_id, "done")?;
        ledger.work(20)?;
        ledger.assert_equal(&mut server)?;
        assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "note")?);
        let slots = layout(&mut server, "acc")?.lines().count();
        assert_eq!(slots, before.lines().count(), "slots after a merge held in {phase}");
        server.assert_settled()?;
    }
    for table in ["acc", "note"] {
        assert_located(&mut server, table, "id")?;
    }
    // Cancelled: they stay two, and either may be used again.
    let move_id = server.split_slot(&slot)?;
    server.wait_end(&move_id, "done")?;
    let (a, b) = halves(&mut server)?;
    server.hold(Some("verify"))?;
    let move_id = server.query(&format!("SELECT foreshard.merge_slots({a}, {b})"))?;
    server.wait_phase(&move_id, "verify")?;
    assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    server.hold(None)?;
    server.wait_end(&move_id, "cancelled")?;
    server.assert_settled()?;
    server.move_and_wait(&b)?;
    ledger.finish();
    server.assert_settled()
}

/// Within the window a split is undone by its old storage, which every later write has reached.
#[test]
fn a_split_has_a_way_back() -> Result<()> {
    let (mut server, ledger) = start("way-back", 4_000)?;
    server.set(&[("foreshard.rollback_window", "600s")])?;
    // Values in dropped columns, columns that old rows lack, values that are toasted.
    server.query(
        "ALTER TABLE acc ADD COLUMN gone text DEFAULT 'g'; UPDATE acc SET gone = repeat('y', 100) WHERE id % 5 = 0; ALTER TABLE acc DROP COLUMN gone; \
         ALTER TABLE acc ADD COLUMN later int DEFAULT 7, ADD COLUMN big text; ALTER TABLE acc ALTER big SET STORAGE external; \
         UPDATE acc SET big = repeat('x', 5000) WHERE id % 50 = 0",
    )?;
    let slot = server.slots("acc")?[0].clone();
    let before = layout(&mut server, "acc")?;
    let held = "SELECT max((detail->>'held_us')::int) FROM foreshard.history WHERE event = 'cutover'";
    for crash in [false, true] {
        let move_id = server.split_slot(&slot)?;
        server.wait_end(&move_id, "done")?;
        assert_eq!(layout(&mut server, "acc")?.lines().count(), 3);
        println!("held for {} us", server.query(held)?);
        let way =
            server.query(&format!("SELECT move_id FROM foreshard.move WHERE way_back_of = {move_id}"))?;
        wait_state(&mut server, &way, "prepared")?;
        ledger.work(100)?;
        if crash {
            server.cluster.kill9_postmaster()?;
            server.cluster.start_again()?;
            ledger.work(50)?;
        }
        server.query("UPDATE acc SET big = repeat('z', 6000), later = 8 WHERE id % 100 = 0")?;
        assert_eq!(server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?, "t");
        server.wait_end(&way, "done")?;
        let copies = server.query(&format!(
            "SELECT count(*) FROM foreshard.history WHERE move_id = {way} AND detail->>'to' = 'copy'"
        ))?;
        assert_eq!(copies, "0", "nothing is copied on the way back");
        ledger.work(50)?;
        ledger.assert_equal(&mut server)?;
        assert_eq!(layout(&mut server, "acc")?, before);
        assert_eq!(
            server.query(
                "SELECT bool_and(CASE WHEN id % 100 = 0 THEN big = repeat('z', 6000) AND later = 8 WHEN id % 50 = 0 THEN big = repeat('x', 5000) \
                 ELSE later = 7 AND big IS NULL END) FROM acc"
            )?,
            "t"
        );
        server.query("UPDATE acc SET big = CASE WHEN id % 50 = 0 THEN repeat('x', 5000) END, later = 7")?;
        server.assert_settled()?;
    }
    // Too late; altered.
    let move_id = server.split_slot(&slot)?;
    server.wait_end(&move_id, "done")?;
    let way = server.query(&format!("SELECT move_id FROM foreshard.move WHERE way_back_of = {move_id}"))?;
    server.query("ALTER TABLE acc ADD COLUMN newest int")?;
    server.set(&[("foreshard.rollback_window", "1s")])?;
    server.wait_end(&way, "cancelled")?;
    let error = server.fails(&format!("SELECT foreshard.rollback_move({move_id})"))?;
    assert_eq!(error.sqlstate, "0A000", "{error}");
    ledger.work(20)?;
    ledger.finish();
    server.assert_settled()
}
