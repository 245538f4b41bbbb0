//! The work of every phase but the cutover.

use super::verified::{Compared, compare};
use super::{Outcome, canary, cutover, foreign, health, measure, mirror, prepared, short_lock};
use crate::catalog::copy;
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{merge, progress, split};
use crate::engine::Engine;
use crate::pg::bgworker::{WorkResult, transaction};
use crate::pg::local::Local;
use crate::pg::report::{PgResult, busy, error, refuse};
use crate::pg::route::MoveRoutes;
use crate::pg::{bgworker, guc, lock, spi, storage};
use foreshard_core::pace::Round;
use foreshard_core::phase::{Event, Phase};
use pgrx::pg_sys;
use pgrx::prelude::PgSqlErrorCode;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Log entries that may be pending when catch-up hands over to verification.
const CAUGHT_UP_KEYS: i64 = 2_000;
/// How many times longer than a replay took the rest after it may be, and how long at most, ms.
const MOST_REST: i64 = 4;
const MOST_REST_MS: i64 = 1_000;
/// What is cut off an old file at once, before it is dropped.
pub(super) const SHORTEN_BYTES: i64 = 64 << 20;
/// How long commits have the disk to themselves between two cuts.
const SHORTEN_PAUSE_MS: i64 = 10;
/// A PostgreSQL block, as all packaged servers are built.
const BLOCK_KIB: i32 = (pg_sys::BLCKSZ / 1024) as i32;

/// Does one piece of the row's phase.
pub fn perform(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    if row.is_foreign {
        return foreign::perform(row, attempt);
    }
    match row.phase {
        Phase::Preflight => preflight(engine, row, attempt),
        Phase::Capture => capture(engine, row, attempt),
        Phase::Copy => copy_chunk(engine, row),
        Phase::Index => index(engine, row),
        Phase::CatchUp => catch_up(engine, row, attempt),
        Phase::Mirror => mirror::install(engine, row, attempt),
        Phase::Verify => verify(engine, row),
        Phase::Cutover => cutover::attempt(engine, row, attempt),
        Phase::Watch => cutover::watch(engine, row, attempt),
        Phase::Retire | Phase::Revert | Phase::RevertFailed => {
            clean(engine, row, attempt, Some(Event::Completed))
        }
        Phase::Prepared => prepared::look(engine, row),
        Phase::Canary => canary::step(engine, row, attempt),
        Phase::Done | Phase::Cancelled | Phase::Failed => Ok(Outcome::Again(0)),
    }
}

/// Cleans up what an earlier attempt left, then checks whether the slot can be moved at all.
fn preflight(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    if !transaction(|| shadow::relations(row.move_id))?.is_empty() {
        return clean(engine, row, attempt, None);
    }
    transaction(|| {
        let partitions = engine.partitions(row)?;
        let reasons = engine.preflight(row, &partitions)?;
        if row.is_merge() {
            merge::refuse(row.slot_id, &reasons)?;
        } else if row.undistributes {
            refuse(
                "the table cannot be undistributed online",
                &reasons,
                "Cure every reason named and try again.",
            )?;
        } else if row.is_split {
            split::refuse(row.slot_id, &reasons)?;
        } else {
            let hint = "Cure every reason named (a table without a key needs a primary key) and move the slot again.";
            refuse(format!("slot {} cannot be moved", row.slot_id), &reasons, hint)?;
        }
        engine.prepare(row, &partitions)?;
        moves::advance(row, Event::Completed, engine.capabilities())?;
        Ok(Outcome::Advanced)
    })
}

/// Installs capture and shadows under SHARE ROW EXCLUSIVE: when it is granted, no writer is under way,
/// and every later one is logged. Partitions of different keys may begin one after the other.
fn capture(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    let partitions = transaction(|| engine.partitions(row))?;
    let (next, last) = transaction(|| next_to_capture(engine, row, &partitions))?;
    let done = transaction(|| {
        // With an id assigned, every statement under the lock takes a snapshot of its own.
        let _ = lock::current_xid();
        // Nobody waits for the disk, or a standby, behind the lock. What a crash takes of this is done again.
        spi::set_local("synchronous_commit", "off")?;
        if !short_lock::try_lock(&next, lock::SHARE_ROW_EXCLUSIVE, attempt)? {
            return Ok(mirror::Attempt::Blocked);
        }
        if engine.partitions(row)? != partitions {
            return Err(busy("the partitions of the slot changed"));
        }
        if !engine.install(row, &next)? {
            return Ok(mirror::Attempt::Leave(Event::SourceChanged));
        }
        if last {
            moves::advance(row, Event::Completed, engine.capabilities())?;
        }
        Ok(mirror::Attempt::Done)
    })?;
    match done {
        mirror::Attempt::Done => {
            // Files have an owner that a crash does not take before they are filled.
            bgworker::flush_commit();
            return Ok(Outcome::Advanced);
        }
        mirror::Attempt::Leave(event) => return Ok(Outcome::Leave(event)),
        mirror::Attempt::Blocked => {}
    }
    short_lock::report_blocked(row.move_id, &next, attempt)?;
    Ok(Outcome::Again(short_lock::backoff_ms(attempt)))
}

/// The partitions to capture next, under one lock, and whether they are the last ones.
fn next_to_capture(
    engine: &dyn Engine,
    row: &MoveRow,
    partitions: &[pg_sys::Oid],
) -> PgResult<(Vec<pg_sys::Oid>, bool)> {
    if engine.at_once() >= partitions.len() {
        return Ok((partitions.to_vec(), true));
    }
    let relations = shadow::relations(row.move_id)?;
    let open = relations.iter().filter(|relation| relation.trigger == pg_sys::InvalidOid);
    let mut open: Vec<pg_sys::Oid> = open.map(|relation| relation.source).collect();
    let last = open.len() <= engine.at_once();
    open.truncate(engine.at_once());
    Ok((open, last))
}

/// Whether a source is still what it was at capture; holds ACCESS SHARE from then on, so that it stays
/// so for this transaction.
pub fn is_unchanged(relation: &RelationRow) -> PgResult<bool> {
    if !shadow::exists(relation.source)? {
        return Err(error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            format!("partition {} was dropped while it moved", relation.source.to_u32()),
        ));
    }
    lock::lock_all(&[relation.source], lock::ACCESS_SHARE);
    looks_unchanged(relation)
}

/// The same without a lock: it may change at any time.
pub fn looks_unchanged(relation: &RelationRow) -> PgResult<bool> {
    let now = shadow::fingerprint(relation.source, relation.trigger, relation.log)?;
    Ok(now.as_deref() == Some(relation.fingerprint.as_str()))
}

/// Copies the next chunk of blocks, throttled, with its progress.
fn copy_chunk(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Outcome> {
    let begun = Instant::now();
    if let Some(pause_ms) = health::held_back(row)? {
        return Ok(Outcome::Again(pause_ms));
    }
    let chunk_blocks = i64::from(guc::COPY_CHUNK.get() / BLOCK_KIB).max(1);
    let (mut copied_blocks, mut copied_rows) = (0, 0);
    let outcome = transaction(|| {
        // A lost chunk is copied again; no need to wait for the disk at every one.
        spi::set_local("synchronous_commit", "off")?;
        let relations = shadow::relations(row.move_id)?;
        canary::time_statements(row, &relations)?;
        let Some(relation) = relations.iter().find(|r| r.blocks_done < r.blocks_total) else {
            moves::advance(row, Event::Completed, engine.capabilities())?;
            return Ok(Outcome::Advanced);
        };
        if !is_unchanged(relation)? {
            return Ok(Outcome::Leave(Event::SourceChanged));
        }
        spi::set_local("track_counts", "off")?;
        let last = (relation.blocks_done + chunk_blocks).min(relation.blocks_total);
        let filled = copy::plan(relation)?.chunk(relation.blocks_done, last, relation.shadow_blocks)?;
        copy::set_progress(row.move_id, relation.source, last, &filled)?;
        moves::waits_no_more(row.move_id)?;
        (copied_blocks, copied_rows) = (last - relation.blocks_done, filled.rows as i64);
        Ok(Outcome::Again(0))
    })?;
    if copied_blocks > 0 {
        return Ok(Outcome::Again(rest_ms(copied_blocks * i64::from(BLOCK_KIB), copied_rows, begun)));
    }
    Ok(outcome)
}

/// How long to rest after so many KiB and rows since `begun`, so that neither goes over its rate, ms.
pub fn rest_ms(kib: i64, rows: i64, begun: Instant) -> i64 {
    let due = |done: i64, per_s: i32| if per_s > 0 { done * 1000 / i64::from(per_s) } else { 0 };
    let due_ms = due(kib, guc::COPY_RATE.get()).max(due(rows, guc::COPY_ROWS.get()));
    (due_ms - begun.elapsed().as_millis() as i64).max(0)
}

/// The same after so many rows were replayed.
pub fn rest_of_replay_ms(row: &MoveRow, rows: i64, begun: Instant) -> WorkResult<i64> {
    let row_bytes = transaction(|| copy::row_bytes(row.move_id))?;
    let rest = rest_ms((rows as f64 * row_bytes / 1024.0) as i64, rows, begun);
    // Never so long that more is logged meanwhile than was replayed.
    Ok(rest.min(MOST_REST * begun.elapsed().as_millis() as i64).min(MOST_REST_MS))
}

/// Builds the next index, or ends the phase. The source is looked at in a transaction of its own: a
/// lock on it for as long as a build takes would queue somebody's DDL, and everybody behind that.
fn index(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Outcome> {
    let unchanged = transaction(|| {
        for relation in shadow::relations(row.move_id)? {
            if !is_unchanged(&relation)? {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    if !unchanged {
        return Ok(Outcome::Leave(Event::SourceChanged));
    }
    transaction(|| {
        if engine.build_next_index(row)? {
            return Ok(Outcome::Again(0));
        }
        moves::advance(row, Event::Completed, engine.capabilities())?;
        progress::set_pending(row.move_id, pending(row)?, None)?;
        Ok(Outcome::Advanced)
    })
}

/// The partitions of a move.
pub(super) fn sources(row: &MoveRow) -> WorkResult<Vec<pg_sys::Oid>> {
    transaction(|| Ok(shadow::relations(row.move_id)?.iter().map(|r| r.source).collect()))
}

/// One replay of everything logged by now, under one snapshot. None: the source changed. Gives way (55006) to whoever
/// waits for a source, all of which are locked meanwhile.
fn replay(row: &MoveRow) -> WorkResult<Option<i64>> {
    let sources = sources(row)?;
    bgworker::transaction_repeatable_read(&sources, || {
        let mut replayed = 0;
        for relation in shadow::relations(row.move_id)? {
            lock::give_way()?;
            if !is_unchanged(&relation)? {
                return Ok(None);
            }
            spi::set_local("track_counts", "off")?;
            replayed += copy::plan(&relation)?.replay()? as i64;
        }
        moves::set_last_replay(row.move_id, true)?;
        Ok(Some(replayed))
    })
}

/// Entries that wait in the logs.
fn pending(row: &MoveRow) -> PgResult<i64> {
    shadow::relations(row.move_id)?.iter().try_fold(0, |sum, r| Ok(sum + copy::plan(r)?.pending(i64::MAX)?))
}

/// Says when it will have caught up at the pace of the last replay, after which it rests.
fn note_round(row: &MoveRow, replayed: i64, spent: Duration, rest_ms: i64) -> WorkResult<()> {
    let (spent_s, rest_s) = (spent.as_secs_f64().max(1e-3), rest_ms as f64 / 1e3);
    transaction(|| {
        let pending = pending(row)?;
        // By the end of the rest, and after that every round lasts as long.
        let by_then = (pending as f64 * (1.0 + rest_s / spent_s)) as u64;
        let round = Round { drained: replayed as u64, seconds: spent_s + rest_s, pending: by_then };
        let eta_s = round.eta_s(CAUGHT_UP_KEYS as u64).map(|eta_s| eta_s + rest_s);
        progress::set_pending(row.move_id, pending, eta_s)
    })
}

/// How often a carrier takes out what was replayed. Cutting the end off may wait for writers for seconds, in which more is logged.
const MOST_VACUUMS: u32 = 6;
static VACUUMS: Local<u32> = Local::new(0);

/// Takes what was replayed out of long logs: new entries go to their beginnings then, and their ends are cut off. Writers are not
/// held up by that, as they are while somebody who holds their lock looks through what a long copy left.
fn vacuum_logs(row: &MoveRow) -> WorkResult<()> {
    if VACUUMS.get() >= MOST_VACUUMS {
        return Ok(());
    }
    let long = transaction(|| {
        let mut names = Vec::new();
        for relation in shadow::relations(row.move_id)? {
            if copy::has_long_file(relation.log)? {
                names.push(crate::catalog::name_of(relation.log)?);
            }
        }
        Ok(names)
    })?;
    VACUUMS.set(VACUUMS.get() + u32::from(!long.is_empty()));
    long.iter().try_for_each(|log| bgworker::command(&format!("VACUUM {log}")))
}

fn catch_up(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    if let Some(outcome) = mirror::demote(engine, row, attempt)? {
        return Ok(outcome);
    }
    if let Some(pause_ms) = health::held_back(row)? {
        transaction(|| progress::forget_eta(row.move_id))?;
        return Ok(Outcome::Again(pause_ms));
    }
    let begun = Instant::now();
    let Some(replayed) = replay(row)? else {
        return Ok(Outcome::Leave(Event::SourceChanged));
    };
    vacuum_logs(row)?;
    if replayed > CAUGHT_UP_KEYS {
        let spent = begun.elapsed();
        let rest_ms = rest_of_replay_ms(row, replayed, begun)?;
        note_round(row, replayed, spent, rest_ms)?;
        return Ok(Outcome::Again(rest_ms));
    }
    transaction(|| {
        // Writers wait for the log until this has committed.
        spi::set_local("synchronous_commit", "off")?;
        for relation in shadow::relations(row.move_id)? {
            copy::plan(&relation)?.compact_log(relation.log)?;
        }
        Ok(())
    })?;
    transaction(|| {
        moves::advance(row, Event::Completed, engine.capabilities())?;
        Ok(Outcome::Advanced)
    })
}

/// Vacuums the shadow, so that index-only scans of the new copy need not visit the heap, then compares both
/// copies and moves on.
fn verify(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Outcome> {
    measure::keep(row, !engine.capabilities().canary)?;
    let shadows = transaction(|| {
        let relations = shadow::relations(row.move_id)?;
        let mut shadows: Vec<pg_sys::Oid> = relations.iter().map(|relation| relation.shadow).collect();
        shadows.sort_by_key(|shadow| shadow.to_u32());
        shadows.dedup();
        shadows.into_iter().map(crate::catalog::name_of).collect::<PgResult<Vec<_>>>()
    })?;
    // A swap leaves the partition's statistics alone; the parts of a split have none yet.
    let options = if row.replaces() { "TRUNCATE off, ANALYZE" } else { "TRUNCATE off" };
    for shadow in shadows.into_iter().collect::<BTreeSet<String>>() {
        bgworker::command(&format!("VACUUM ({options}) {shadow}"))?;
    }
    Ok(match compare(engine, row)? {
        Compared::Equal => {
            transaction(|| moves::advance(row, Event::Completed, engine.capabilities()))?;
            Outcome::Advanced
        }
        Compared::Different => Outcome::Advanced,
        Compared::Leave(event) => Outcome::Leave(event),
    })
}

/// Ends capture, then drops the shadows and, with `then`, moves on. Two transactions, so that nothing is
/// waited for while the partition is locked.
fn clean(engine: &dyn Engine, row: &MoveRow, attempt: u32, then: Option<Event>) -> WorkResult<Outcome> {
    if let Some(routes) = MoveRoutes::of(row.move_id) {
        routes.remove();
    }
    let (mut locked, mut more) = (Vec::new(), false);
    let captured = transaction(|| {
        let mut captured = Vec::new();
        for relation in shadow::relations(row.move_id)? {
            if shadow::trigger_exists(relation.trigger)? {
                captured.push(relation);
            }
        }
        more = captured.len() > engine.at_once();
        captured.truncate(engine.at_once());
        locked = captured.iter().map(|r| r.source).collect();
        Ok(captured)
    })?;
    if !captured.is_empty() {
        let done = transaction(|| {
            spi::set_local("synchronous_commit", "off")?;
            if !short_lock::try_lock(&locked, lock::ACCESS_EXCLUSIVE, attempt)? {
                return Ok(false);
            }
            for relation in &captured {
                engine.remove_capture(relation)?;
            }
            Ok(true)
        })?;
        if !done {
            short_lock::report_blocked(row.move_id, &locked, attempt)?;
            return Ok(Outcome::Again(short_lock::backoff_ms(attempt)));
        }
        if more {
            return Ok(Outcome::Again(0));
        }
    }
    let shortened = transaction(|| {
        let long = shadow::longer_than(row.move_id, SHORTEN_BYTES)?;
        Ok(long.into_iter().any(|relation| storage::shorten(relation, SHORTEN_BYTES)))
    })?;
    if shortened {
        return Ok(Outcome::Again(SHORTEN_PAUSE_MS));
    }
    transaction(|| {
        // Toast tables that get their names back are locked until this has committed.
        spi::set_local("synchronous_commit", "off")?;
        if row.phase == Phase::Retire {
            engine.settle(row)?;
        }
        engine.drop_shadows(row)?;
        if let Some(event) = then {
            moves::advance(row, event, engine.capabilities())?;
        }
        Ok(Outcome::Advanced)
    })
}
