//! Moves survive kill -9 of the carrier and of the whole server in every phase: they go on or revert,
//! no committed row is lost, nothing is left behind.

mod common;

use common::ledger::{self, Ledger};
use common::{PHASES, Random, SPLIT_PHASES, Server, options};
use foreshard_test::{Result, in_turn};

const ROWS: u64 = 12_000;

#[derive(Clone, Copy, Debug)]
enum Victim {
    Carrier,
    Postmaster,
}

/// A server with two colocated, distributed tables that clients are writing to.
fn start(name: &str) -> Result<(Server, Ledger)> {
    let mut server = Server::start(&options(name).set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, ROWS)?;
    // A slow expression makes index builds long enough to be interrupted.
    server.query(
        "CREATE FUNCTION slow(v text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS \
           $$ BEGIN FOR i IN 1..1000 LOOP END LOOP; RETURN left(v, 8); END $$; \
         CREATE INDEX acc_slow_idx ON acc (slow(v)); \
         CREATE INDEX acc_gin_idx ON acc USING gin (to_tsvector('simple', v)); \
         CREATE INDEX note_partial_idx ON note (left(v, 20)) WHERE id % 3 = 0; \
         SELECT foreshard.distribute('acc', 'id', 2); \
         SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    let ledger = Ledger::start(&server, ROWS, 3);
    Ok((server, ledger))
}

fn kill(server: &mut Server, victim: Victim) -> Result<()> {
    match victim {
        Victim::Carrier => {
            if let Some(pid) = server.carrier()? {
                // It may just have finished by itself.
                let _ = server.cluster.kill9(pid);
            }
            Ok(())
        }
        Victim::Postmaster => {
            server.cluster.kill9_postmaster()?;
            server.cluster.start_again()
        }
    }
}

/// Crashes a move that is held in a phase; it must still stand there afterwards and then finish.
fn crash_in_phase(
    server: &mut Server,
    ledger: &Ledger,
    slot: &str,
    phase: &str,
    victim: Victim,
) -> Result<()> {
    server.hold(Some(phase))?;
    let move_id = server.move_slot(slot)?;
    server.wait_phase(&move_id, phase)?;
    ledger.work(60)?;
    kill(server, victim)?;
    assert_eq!(server.phase(&move_id)?, phase, "after the crash");
    ledger.work(30)?;
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    ledger.assert_equal(server)?;
    server.assert_settled()
}

fn crash_everywhere(name: &str, victim: Victim) -> Result<()> {
    let (mut server, ledger) = start(name)?;
    let slots = server.slots("acc")?;
    for (round, phase) in in_turn(&PHASES) {
        println!("{victim:?} killed in {phase}");
        crash_in_phase(&mut server, &ledger, &slots[round % slots.len()], phase, victim)?;
    }
    ledger.finish();
    Ok(())
}

#[test]
fn carrier_killed_in_every_phase() -> Result<()> {
    crash_everywhere("crash-carrier", Victim::Carrier)
}

#[test]
fn postmaster_killed_in_every_phase() -> Result<()> {
    crash_everywhere("crash-postmaster", Victim::Postmaster)
}

/// As [`crash_in_phase`], for a split of any slot.
fn crash_in_split(
    server: &mut Server,
    ledger: &Ledger,
    random: &mut Random,
    phase: &str,
    victim: Victim,
) -> Result<()> {
    let slots = server.slots("acc")?;
    let slot = &slots[random.below(slots.len() as u64) as usize];
    server.hold(Some(phase))?;
    let move_id = server.split_slot(slot)?;
    server.wait_phase(&move_id, phase)?;
    ledger.work(60)?;
    kill(server, victim)?;
    assert_eq!(server.phase(&move_id)?, phase, "after the crash");
    ledger.work(30)?;
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.slots("acc")?.len(), slots.len() + 1, "slots after a split");
    assert_eq!(server.slots("note")?, server.slots("acc")?, "colocated tables");
    ledger.assert_equal(server)?;
    server.assert_settled()
}

fn crash_splits(name: &str, victim: Victim) -> Result<()> {
    let (mut server, ledger) = start(name)?;
    let mut random = Random::new(7);
    for (_, phase) in in_turn(&SPLIT_PHASES) {
        println!("{victim:?} killed in {phase} of a split");
        crash_in_split(&mut server, &ledger, &mut random, phase, victim)?;
    }
    // And at any time, once the empty files of the copies have their owners.
    for (_, _) in in_turn(&[(); 6]) {
        let slots = server.slots("acc")?;
        let slot = slots[random.below(slots.len() as u64) as usize].clone();
        let phase = SPLIT_PHASES[1 + random.below(7) as usize];
        server.hold(Some(phase))?;
        let move_id = server.split_slot(&slot)?;
        server.wait_phase(&move_id, phase)?;
        server.hold(None)?;
        random.nap(120);
        let at = server.phase(&move_id)?;
        kill(&mut server, victim)?;
        println!("{victim:?} killed in {at}");
        server.wait_end(&move_id, "done")?;
        ledger.assert_equal(&mut server)?;
        server.assert_settled()?;
    }
    ledger.finish();
    Ok(())
}

#[test]
fn carrier_killed_in_every_phase_of_a_split() -> Result<()> {
    crash_splits("crash-split-carrier", Victim::Carrier)
}

#[test]
fn postmaster_killed_in_every_phase_of_a_split() -> Result<()> {
    crash_splits("crash-split-postmaster", Victim::Postmaster)
}

#[test]
fn split_cancelled_in_every_phase() -> Result<()> {
    let (mut server, ledger) = start("cancel-split")?;
    let slots = server.slots("acc")?;
    for (round, phase) in in_turn(&SPLIT_PHASES) {
        println!("split cancelled in {phase}");
        server.hold(Some(phase))?;
        let move_id = server.split_slot(&slots[round % 2])?;
        server.wait_phase(&move_id, phase)?;
        let asked = server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?;
        if round % 3 == 2 {
            kill(&mut server, Victim::Carrier)?;
        }
        server.hold(None)?;
        let too_late = *phase == "retire";
        assert_eq!(asked, if too_late { "f" } else { "t" }, "cancel in {phase}");
        server.wait_end(&move_id, if too_late { "done" } else { "cancelled" })?;
        assert_eq!(server.slots("acc")?.len(), slots.len() + usize::from(too_late));
        ledger.work(20)?;
        ledger.assert_equal(&mut server)?;
        server.assert_settled()?;
    }
    ledger.finish();
    Ok(())
}

/// Kills in the middle of a copy, not at its edges; what was copied is not copied again.
fn crash_in_copy(server: &mut Server, ledger: &Ledger, slot: &str, victim: Victim) -> Result<()> {
    server.set(&[("foreshard.copy_rate", "300")])?;
    let move_id = server.move_slot(slot)?;
    let done = format!(
        "SELECT coalesce(sum(blocks_done), 0) > 8 FROM foreshard.move_relation WHERE move_id = {move_id}"
    );
    server.wait_query(&done, "t")?;
    let before: i64 = server.query(&blocks_done(&move_id))?.parse().unwrap_or(0);
    kill(server, victim)?;
    let after: i64 = server.query(&blocks_done(&move_id))?.parse().unwrap_or(0);
    assert!(after >= before - 16, "{before} blocks were copied, after the crash {after}");
    assert_eq!(server.phase(&move_id)?, "copy");
    ledger.work(20)?;
    server.set(&[("foreshard.copy_rate", "0")])?;
    server.wait_end(&move_id, "done")?;
    ledger.assert_equal(server)?;
    server.assert_settled()
}

/// A chunk that fails has stored rows that look committed: the next one must cut them off, or they are there twice.
#[test]
fn what_a_failed_chunk_stored_is_gone() -> Result<()> {
    // Rows of many lengths leave room on the pages of earlier chunks.
    let mut server = Server::start(&options("crash-chunk").set("foreshard.copy_chunk", "48MB"))?;
    server.query(
        "CREATE TABLE wide (id bigint PRIMARY KEY, v text); ALTER TABLE wide ALTER COLUMN v SET STORAGE plain; \
         INSERT INTO wide SELECT g, repeat('x', (g * 7919 % 1800)::int) FROM generate_series(1, 200000) g; SELECT foreshard.distribute('wide', 'id', 1)",
    )?;
    // What recovery has to read is the copy alone.
    server.query("CHECKPOINT")?;
    let slot = server.slots("wide")?[0].clone();
    let move_id = server.move_slot(&slot)?;
    let stored = format!(
        "SELECT coalesce(max(blocks_done) > 0 AND pg_relation_size(max(shadow)) / 8192 > max(shadow_blocks) + 200, false) \
         FROM foreshard.move_relation WHERE move_id = {move_id}"
    );
    let mut cut_off = 0;
    for victim in [Victim::Carrier, Victim::Postmaster, Victim::Carrier] {
        server.wait_query(&stored, "t")?;
        kill(&mut server, victim)?;
        cut_off += usize::from(server.query(&stored)? == "t");
    }
    assert!(cut_off > 0, "every chunk was committed before its carrier was killed");
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query("SELECT count(*) || ' ' || count(DISTINCT id) FROM wide")?, "200000 200000");
    server.assert_settled()
}

fn blocks_done(move_id: &str) -> String {
    format!("SELECT sum(blocks_done) FROM foreshard.move_relation WHERE move_id = {move_id}")
}

/// Kills at a random time after a move left a phase, whatever it is doing then.
fn crash_at_random(server: &mut Server, ledger: &Ledger, slot: &str, random: &mut Random) -> Result<()> {
    let phase = PHASES[1 + random.below(6) as usize];
    let victim = if random.below(2) == 0 { Victim::Carrier } else { Victim::Postmaster };
    server.hold(Some(phase))?;
    let move_id = server.move_slot(slot)?;
    server.wait_phase(&move_id, phase)?;
    server.hold(None)?;
    random.nap(if phase == "index" { 250 } else { 120 });
    let at = server.phase(&move_id)?;
    kill(server, victim)?;
    println!("{victim:?} killed some time after {phase}, in {at}");
    server.wait_end(&move_id, "done")?;
    ledger.assert_equal(server)?;
    server.assert_settled()
}

#[test]
fn killed_in_the_middle() -> Result<()> {
    let (mut server, ledger) = start("crash-middle")?;
    let slots = server.slots("acc")?;
    crash_in_copy(&mut server, &ledger, &slots[0], Victim::Carrier)?;
    crash_in_copy(&mut server, &ledger, &slots[1], Victim::Postmaster)?;
    let seed = std::env::var("FORESHARD_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let rounds = std::env::var("FORESHARD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let mut random = Random::new(seed);
    for round in 0..rounds {
        crash_at_random(&mut server, &ledger, &slots[round % 2], &mut random)?;
    }
    ledger.finish();
    Ok(())
}

/// Cancelling in a phase leaves the slot where it was; after the cutover it is too late.
fn cancel_in_phase(server: &mut Server, slot: &str, phase: &str, crash: bool) -> Result<()> {
    let shard = format!("SELECT shard_id FROM foreshard.slot WHERE slot_id = {slot}");
    let before = server.query(&shard)?;
    server.hold(Some(phase))?;
    let move_id = server.move_slot(slot)?;
    server.wait_phase(&move_id, phase)?;
    let asked = server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?;
    if crash {
        kill(server, Victim::Carrier)?;
    }
    server.hold(None)?;
    if phase == "retire" {
        assert_eq!(asked, "f", "cancelled after the cutover");
        return server.wait_end(&move_id, "done");
    }
    assert_eq!(asked, "t", "cancel in {phase}");
    server.wait_end(&move_id, "cancelled")?;
    let state =
        server.query(&format!("SELECT state FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
    assert_eq!(state, "cancelled");
    assert_eq!(server.query(&shard)?, before, "the slot's shard after a cancel in {phase}");
    Ok(())
}

#[test]
fn cancelled_in_every_phase() -> Result<()> {
    let (mut server, ledger) = start("cancel")?;
    let slots = server.slots("acc")?;
    for (round, phase) in in_turn(&PHASES) {
        println!("cancelled in {phase}");
        cancel_in_phase(&mut server, &slots[round % 2], phase, round % 3 == 2)?;
        ledger.work(20)?;
        ledger.assert_equal(&mut server)?;
        server.assert_settled()?;
    }
    ledger.finish();
    Ok(())
}

/// Rows of every form, written page by page past shared memory while checkpoints begin and carrier and server are
/// killed, are the same, frozen, and take no more room than the table's own setting asks for.
#[test]
fn pages_of_every_form_survive() -> Result<()> {
    const CONTENT: &str = "SELECT count(*) || ' ' || md5(string_agg(f::text, '|' ORDER BY id)) FROM forms f";
    let mut server = Server::start(&options("crash-pages").set("foreshard.copy_chunk", "1MB"))?;
    server.query(
        "CREATE TABLE forms (id int PRIMARY KEY, gone text, short text, plain text, long text, far text, late text) WITH (fillfactor = 60); \
         ALTER TABLE forms ALTER plain SET STORAGE plain, ALTER far SET STORAGE external; \
         INSERT INTO forms SELECT g, 'x', nullif(repeat('s', g % 9), ''), CASE WHEN g % 500 = 0 THEN repeat('p', 7900) WHEN g % 3 = 0 THEN repeat('p', g % 700) END, \
             CASE WHEN g % 100 = 0 THEN (SELECT string_agg(md5((g * i)::text), '') FROM generate_series(1, 60) i) END FROM generate_series(1, 60000) g; \
         ALTER TABLE forms DROP gone, ADD known int NOT NULL DEFAULT 7, ADD doubled int GENERATED ALWAYS AS (id * 2) STORED; \
         UPDATE forms SET late = 'l' || id WHERE id % 7 = 0; CREATE TABLE twin (LIKE forms) WITH (fillfactor = 60); \
         INSERT INTO twin SELECT * FROM forms; SELECT foreshard.distribute('forms', 'id', 1)",
    )?;
    // Long values first out of line, then nowhere: the copy is frozen only without them.
    for (far, frozen) in [(true, false), (false, true)] {
        let set = if far { "repeat('f', 3000)" } else { "NULL" };
        server.query(&format!(
            "UPDATE forms SET far = {set}, long = {} WHERE id % 1000 = 1",
            if far { "long" } else { "NULL" }
        ))?;
        if !far {
            server.query("UPDATE forms SET long = NULL WHERE long IS NOT NULL")?;
        }
        let content = server.query(CONTENT)?;
        let slot = server.slots("forms")?[0].clone();
        for victim in [Victim::Carrier, Victim::Postmaster] {
            let move_id = server.move_slot(&slot)?;
            let begun =
                format!("SELECT blocks_done > 0 FROM foreshard.move_relation WHERE move_id = {move_id}");
            server.wait_query(&begun, "t")?;
            server.query("CHECKPOINT")?;
            kill(&mut server, victim)?;
            server.query("CHECKPOINT")?;
            server.wait_end(&move_id, "done")?;
            assert_eq!(server.query(CONTENT)?, content, "far: {far}, {victim:?}");
            server.assert_settled()?;
        }
        let pages = "SELECT bool_and(all_visible AND all_frozen) FROM foreshard.slots s, pg_visibility_map(s.partition) WHERE s.\"table\" = 'forms'::regclass";
        assert_eq!(server.query(pages)?, if frozen { "t" } else { "f" }, "frozen, far: {far}");
    }
    let ratio = "SELECT round(pg_relation_size(s.partition)::numeric / pg_relation_size('twin'), 1) FROM foreshard.slots s WHERE s.\"table\" = 'forms'::regclass";
    assert_eq!(server.query(ratio)?, "1.0", "room taken to room that an insertion takes");
    Ok(())
}
