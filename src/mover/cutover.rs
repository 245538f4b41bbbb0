//! The swap. Until it commits, the source is authoritative; afterwards the former shadow's storage is.
//!
//! Both copies are kept equal by the mirror, so nothing is left to do under the lock but to look that it is
//! so. Rows that the carrier copied or replayed before carry its own transaction id: snapshots older than
//! that must not read them, so we wait, outside any lock, until none is left.

use super::phases::{SHORTEN_BYTES, is_unchanged, looks_unchanged};
use super::verified::{Compared, compare};
use super::{Outcome, canary, measure, short_lock};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{copy, record_event, remains, waiting};
use crate::engine::Engine;
use crate::pg::bgworker::{WorkResult, transaction};
use crate::pg::report::PgResult;
use crate::pg::route::MoveRoutes;
use crate::pg::{bgworker, guc, invalidation, lock, spi};
use foreshard_core::phase::Event;
use pgrx::pg_sys;
use serde_json::json;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A verification older than this is made again, s.
const FRESH_S: f64 = 60.0;
/// Longest wait for older snapshots before the log is looked at again, ms.
const SNAPSHOT_WAIT_MS: u128 = 1_000;

/// How often is looked whether somebody is still in the way who would make a lock useless, ms.
const IN_THE_WAY_MS: i64 = 100;
/// How often replicas are looked at; they tell of their snapshots every wal_receiver_status_interval.
const REPLICA_WAIT_MS: i64 = 500;
/// How long replicas are waited for.
const REPLICA_PATIENCE: Duration = Duration::from_secs(60);

/// Attempts to find many relations unchanged since they were looked at, before they are looked at under the lock.
const PATIENT_ATTEMPTS: u32 = 32;

/// One attempt: wait out old snapshots, lock, swap.
pub fn attempt(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    if attempt == 0 {
        measure::keep(row, true)?;
        if row.replaces() {
            transaction(|| remains::make(row.move_id, &shadow::relations(row.move_id)?, SHORTEN_BYTES))?;
        }
    }
    if row.verified_age_s.is_none_or(|age| age > FRESH_S) {
        return Ok(match compare(engine, row)? {
            Compared::Equal => Outcome::Again(0),
            Compared::Different => Outcome::Advanced,
            Compared::Leave(event) => Outcome::Leave(event),
        });
    }
    if !old_snapshots_are_gone(row)? {
        return Ok(Outcome::Again(20));
    }
    if let Some(who) = replica_snapshots(row)? {
        transaction(|| moves::note(row.move_id, Some(&who), None, None))?;
        return Ok(Outcome::Again(REPLICA_WAIT_MS));
    }
    if let Some(what) = in_the_way(engine, row)? {
        transaction(|| moves::note(row.move_id, Some(&what), None, None))?;
        return Ok(Outcome::Again(IN_THE_WAY_MS));
    }
    swap(engine, row, attempt, Direction::There)
}

/// After the swap: until the window has passed, a rollback is a swap back.
pub fn watch(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    // A cancel that the swap overtook counts as well.
    if row.rollback_requested || row.cancel_requested {
        return swap(engine, row, attempt, Direction::Back);
    }
    if let Some(event) = transaction(|| way_back_lost(&shadow::relations(row.move_id)?))? {
        transaction(|| moves::note(row.move_id, None, Some(NO_WAY_BACK), None))?;
        return Ok(Outcome::Leave(event));
    }
    let window_s = f64::from(guc::ROLLBACK_WINDOW.get());
    if row.watched_age_s.is_none_or(|age| age >= window_s) {
        // The keeper comes first as a rule.
        if measure::resume(row)? {
            return Ok(Outcome::Rest);
        }
        measure::record(row)?;
        return Ok(Outcome::Leave(Event::Completed));
    }
    Ok(Outcome::Rest)
}

/// What is said then.
const NO_WAY_BACK: &str = "there is no way back: the table was altered, or a change could not be mirrored";

/// Why the copies can no longer be exchanged, if so.
pub(super) fn way_back_lost(relations: &[RelationRow]) -> PgResult<Option<Event>> {
    lost(relations, is_unchanged)
}

/// Whether it seems so, by a look that takes no lock on users' tables.
pub fn seems_kept_in_vain(relations: &[RelationRow]) -> PgResult<bool> {
    Ok(lost(relations, looks_unchanged)?.is_some())
}

fn lost(
    relations: &[RelationRow],
    unchanged: impl Fn(&RelationRow) -> PgResult<bool>,
) -> PgResult<Option<Event>> {
    for relation in relations {
        if !unchanged(relation)? {
            return Ok(Some(Event::SourceChanged));
        }
        if !shadow::is_mirroring(relation.trigger)? || copy::have_entries(&[relation.log])? {
            return Ok(Some(Event::FatalError));
        }
    }
    Ok(None)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    There,
    Back,
}

fn swap(engine: &dyn Engine, row: &MoveRow, attempt: u32, direction: Direction) -> WorkResult<Outcome> {
    let relations = transaction(|| shadow::relations(row.move_id))?;
    let first = transaction(|| engine.held_first(row, &relations))?;
    match transaction(|| swap_locked(engine, row, &relations, &first, attempt, direction))? {
        Swap::Done => {
            if let Some(stats) = MoveRoutes::of(row.move_id).and_then(|routes| routes.stats()) {
                stats.swapped.store(u32::from(direction == Direction::There), Ordering::Relaxed);
            }
            canary::close_routes(row.move_id);
            Ok(Outcome::Advanced)
        }
        Swap::Leave(event) => {
            if direction == Direction::Back {
                transaction(|| moves::note(row.move_id, None, Some(NO_WAY_BACK), None))?;
            }
            Ok(Outcome::Leave(event))
        }
        Swap::Blocked => {
            let shadows = relations.iter().map(|r| r.shadow);
            let both: Vec<pg_sys::Oid> = first.iter().copied().chain(shadows).collect();
            short_lock::report_blocked(row.move_id, &both, attempt)?;
            Ok(Outcome::Again(short_lock::backoff_ms(attempt)))
        }
    }
}

/// Waits, without a lock, until no snapshot is left that may not see the last replay; names the
/// holders and gives up after a while, so that the log does not grow meanwhile.
fn old_snapshots_are_gone(row: &MoveRow) -> WorkResult<bool> {
    let begun = Instant::now();
    let mut waiting = older_snapshots(row)?;
    while !waiting.is_empty() {
        if begun.elapsed().as_millis() > SNAPSHOT_WAIT_MS {
            transaction(|| {
                let who = waiting::oldest_snapshots()?;
                moves::note(row.move_id, who.as_deref(), None, None)
            })?;
            return Ok(false);
        }
        bgworker::wait(2);
        let now = older_snapshots(row)?;
        waiting.retain(|old| {
            now.iter().any(|new| crate::pg::compat::vxid_text(new) == crate::pg::compat::vxid_text(old))
        });
    }
    Ok(true)
}

thread_local! {
    /// The move whose cutover waits for a replica, and since when.
    static ASKED: Cell<Option<(i64, Instant)>> = const { Cell::new(None) };
}

/// Which replica has a snapshot that may not see the last replay; None as well when it has been waited for long enough. What replicas
/// tell is held back by old transactions of other databases, too, and by prepared ones, so it may stay so for ever.
fn replica_snapshots(row: &MoveRow) -> WorkResult<Option<String>> {
    let who = transaction(|| {
        let xid = moves::last_replay(row.move_id)?;
        xid.filter(|_| guc::WAIT_FOR_REPLICAS.get()).map_or(Ok(None), waiting::replica_snapshots)
    })?;
    let since =
        ASKED.get().filter(|(move_id, _)| *move_id == row.move_id).map_or_else(Instant::now, |(_, at)| at);
    ASKED.set(who.as_ref().map(|_| (row.move_id, since)));
    Ok(who.filter(|_| since.elapsed() < REPLICA_PATIENCE))
}

/// Who holds a snapshot that may not see the last replay.
fn older_snapshots(row: &MoveRow) -> WorkResult<Vec<pg_sys::VirtualTransactionId>> {
    let xid = transaction(|| moves::last_replay(row.move_id))?;
    Ok(xid.map(|xid| lock::older_snapshots(xid as u32, false)).unwrap_or_default())
}

/// What has to go before a lock is of any use, in words. A way back waits for what would make any other change begin anew: it would
/// be lost.
fn in_the_way(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Option<String>> {
    transaction(|| {
        let relations = shadow::relations(row.move_id)?;
        for relation in relations.iter().filter(|_| row.way_back_of.is_some()) {
            if let Some(lacking) = engine.lacks_index(relation)? {
                return Ok(Some(lacking));
            }
        }
        engine.in_the_way(&relations)
    })
}

enum Swap {
    Done,
    Blocked,
    Leave(Event),
}

/// What keeps sources and copies from being exchanged, if so: they do not fit together any more, or the table has an index that they
/// lack.
fn misfit(engine: &dyn Engine, row: &MoveRow, relations: &[RelationRow]) -> PgResult<Option<Swap>> {
    for relation in relations {
        if !engine.fits(row, relation)? {
            return Ok(Some(Swap::Leave(Event::SourceChanged)));
        }
        if engine.lacks_index(relation)?.is_some() {
            let is_way_back = row.way_back_of.is_some();
            return Ok(Some(if is_way_back { Swap::Blocked } else { Swap::Leave(Event::SourceChanged) }));
        }
    }
    Ok(None)
}

/// Whether every source looks as it did when its changes began to be mirrored.
pub(super) fn look_unchanged(relations: &[RelationRow]) -> PgResult<bool> {
    for relation in relations {
        if !(looks_unchanged(relation)? && shadow::is_mirroring(relation.trigger)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether somebody could not mirror what it changed.
fn backlog(relations: &[RelationRow]) -> PgResult<Option<Event>> {
    let logs: Vec<pg_sys::Oid> = relations.iter().map(|relation| relation.log).collect();
    Ok(copy::have_entries(&logs)?.then_some(Event::FatalError))
}

/// Everything under ACCESS EXCLUSIVE. Whatever is not `Done` ends this transaction at once.
fn swap_locked(
    engine: &dyn Engine,
    row: &MoveRow,
    relations: &[RelationRow],
    first: &[pg_sys::Oid],
    attempt: u32,
    direction: Direction,
) -> PgResult<Swap> {
    // With an id assigned, every statement below takes a fresh snapshot.
    let _ = lock::current_xid();
    spi::set_local("synchronous_commit", "off")?;
    invalidation::watch(shadow::defining(row.move_id, first)?);
    let generation = invalidation::generation();
    // Without the lock first: it is not taken for nothing, and what was read once is read faster under it.
    let stop = misfit(engine, row, relations)?;
    if stop.is_some() || !look_unchanged(relations)? {
        return Ok(stop.unwrap_or(Swap::Leave(Event::SourceChanged)));
    }
    // Under the lock every statement counts: those that come for each table are planned once, most of them before.
    let _plans = spi::KeptPlans::begin()?;
    engine.rehearse(row, relations)?;
    // What users hold first: who commits holds it and then asks for the shadow, to mirror.
    if !short_lock::try_lock(first, lock::ACCESS_EXCLUSIVE, attempt)? {
        return Ok(Swap::Blocked);
    }
    let held = Instant::now();
    if !engine.hold_rest(row, relations)? {
        return Ok(Swap::Blocked);
    }
    // The locks brought every message of changes; without one everything is as it was a moment ago.
    let same = invalidation::generation() == generation;
    // Of many it takes too long under a lock: autovacuum may have been at one of them.
    if !same && relations.len() > engine.at_once() && attempt < PATIENT_ATTEMPTS {
        return Ok(Swap::Blocked);
    }
    if !same && let Some(stop) = misfit(engine, row, relations)? {
        return Ok(stop);
    }
    // Before the swap a mirror that had to give up can catch up again.
    let lost = if same { backlog(relations)? } else { way_back_lost(relations)? };
    if let Some(event) = lost {
        let backlog = event == Event::FatalError && direction == Direction::There;
        return Ok(Swap::Leave(if backlog { Event::BacklogTooLarge } else { event }));
    }
    let (what, shard, keep_mirror, event) = match direction {
        Direction::There => ("cutover", row.to_shard, engine.capabilities().watch, Event::Completed),
        Direction::Back => ("rollback", row.from_shard, false, Event::RollbackRequested),
    };
    engine.swap(row, relations, keep_mirror)?;
    let placed = engine.place(row, shard)?;
    let mut detail = json!({"held_us": held.elapsed().as_micros() as u64, "attempts": attempt + 1});
    if !placed.is_null() {
        detail["parts"] = placed;
    }
    record_event(what, Some(row.move_id), Some(row.slot_id), detail)?;
    moves::advance(row, event, engine.capabilities())?;
    Ok(Swap::Done)
}
