//! The swap. Until it commits, the source is authoritative; afterwards the former shadow's storage is.
//!
//! Without a mirror the last changes are replayed by the carrier, so a copied row carries the carrier's
//! transaction id. Snapshots older than that must not read it: outside any lock we wait until none is
//! left, and under the lock we prefer an empty log. Only when a slot is written so often that its log
//! is never empty, a bounded rest is replayed under the lock, and then snapshots that were taken before
//! are waited out under the same bound.

use super::phases::{is_unchanged, replay};
use super::{Outcome, short_lock};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{copy, record_event};
use crate::engine::Engine;
use crate::pg::bgworker::{WorkResult, transaction};
use crate::pg::report::{PgResult, busy};
use crate::pg::{bgworker, guc, lock, spi};
use foreshard_core::phase::Event;
use pgrx::pg_sys;
use serde_json::json;
use std::time::{Duration, Instant};

/// A verification older than this is made again, s.
const FRESH_S: f64 = 60.0;
/// Attempts that insist on an empty log.
const EMPTY_LOG_ATTEMPTS: u32 = 12;
/// Longest wait for older snapshots before the log is looked at again, ms.
const SNAPSHOT_WAIT_MS: u128 = 1_000;

/// One attempt: replay, wait out old snapshots, lock, swap.
pub fn attempt(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    if row.verified_age_s.is_none_or(|age| age > FRESH_S) {
        return Ok(Outcome::Leave(Event::BacklogTooLarge));
    }
    // While the snapshots older than the last replay live, another replay would only start the wait
    // again; unless too much has come together for the rest that the lock allows.
    let waiting_anyway = attempt > 0 && !older_snapshots(row)?.is_empty();
    let pending = pending(row)?;
    if (pending > 0 && !waiting_anyway || pending > i64::from(guc::CUTOVER_MAX_KEYS.get()))
        && replay(row)?.is_none()
    {
        return Ok(Outcome::Leave(Event::SourceChanged));
    }
    if !old_snapshots_are_gone(row)? {
        return Ok(Outcome::Again(20));
    }
    let relations = transaction(|| shadow::relations(row.move_id))?;
    let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
    match transaction(|| swap_locked(engine, row, &relations, &sources, attempt))? {
        Swap::Done => Ok(Outcome::Advanced),
        Swap::Changed => Ok(Outcome::Leave(Event::SourceChanged)),
        Swap::NotEmpty => Ok(Outcome::Again(1)),
        Swap::Blocked => {
            short_lock::report_blocked(row.move_id, &sources, attempt)?;
            Ok(Outcome::Again(short_lock::backoff_ms(attempt)))
        }
    }
}

fn pending(row: &MoveRow) -> WorkResult<i64> {
    let limit = i64::from(guc::CUTOVER_MAX_KEYS.get()) + 1;
    transaction(|| {
        let mut pending = 0;
        for relation in shadow::relations(row.move_id)? {
            if !is_unchanged(&relation)? {
                return Ok(1);
            }
            pending += copy::plan(&relation)?.pending(limit)?;
        }
        Ok(pending)
    })
}

/// Waits, without a lock, until no snapshot is left that may not see the last replay; names the
/// holders and gives up after a while, so that the log does not grow meanwhile.
fn old_snapshots_are_gone(row: &MoveRow) -> WorkResult<bool> {
    let begun = Instant::now();
    let mut waiting = older_snapshots(row)?;
    while !waiting.is_empty() {
        if begun.elapsed().as_millis() > SNAPSHOT_WAIT_MS {
            transaction(|| {
                let who = moves::oldest_snapshots()?;
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

/// Who holds a snapshot that may not see the last replay.
fn older_snapshots(row: &MoveRow) -> WorkResult<Vec<pg_sys::VirtualTransactionId>> {
    let xid = transaction(|| moves::last_replay(row.move_id))?;
    Ok(xid.map(|xid| lock::older_snapshots(xid as u32)).unwrap_or_default())
}

enum Swap {
    Done,
    Blocked,
    Changed,
    NotEmpty,
}

/// Everything under ACCESS EXCLUSIVE. Whatever is not `Done` ends this transaction at once.
fn swap_locked(
    engine: &dyn Engine,
    row: &MoveRow,
    relations: &[RelationRow],
    sources: &[pg_sys::Oid],
    attempt: u32,
) -> PgResult<Swap> {
    // With an id assigned, every statement below takes a fresh snapshot.
    let xid = lock::current_xid();
    spi::set_local("synchronous_commit", "off")?;
    let shadows: Vec<pg_sys::Oid> = relations.iter().map(|r| r.shadow).collect();
    if !lock::try_lock_all(&shadows, lock::ACCESS_EXCLUSIVE)
        || !short_lock::try_lock(sources, lock::ACCESS_EXCLUSIVE, attempt)?
    {
        return Ok(Swap::Blocked);
    }
    let held = Instant::now();
    for relation in relations {
        if !lock::try_lock_all(&shadow::swapped_with(row.move_id, relation)?, lock::ACCESS_EXCLUSIVE) {
            return Ok(Swap::Blocked);
        }
    }
    let limit = i64::from(guc::CUTOVER_MAX_KEYS.get());
    let mut replayed = 0;
    for relation in relations {
        let plan = copy::plan(relation)?;
        let pending = plan.pending(limit + 1)?;
        if pending > limit || (pending > 0 && attempt < EMPTY_LOG_ATTEMPTS) {
            return Ok(if pending > limit * 20 { Swap::Blocked } else { Swap::NotEmpty });
        }
        if !is_unchanged(relation)? || !shadow::fits(row.move_id, relation)? {
            return Ok(Swap::Changed);
        }
        if pending > 0 {
            replayed += plan.replay_few()?;
        }
    }
    if replayed > 0 {
        wait_out_snapshots(xid, sources, held)?;
    }
    engine.swap(row, relations)?;
    moves::place_slot(row)?;
    let detail =
        json!({"held_us": held.elapsed().as_micros() as u64, "replayed": replayed, "attempts": attempt + 1});
    record_event("cutover", Some(row.move_id), Some(row.slot_id), detail)?;
    moves::advance(row, Event::Completed, engine.capabilities())?;
    Ok(Swap::Done)
}

/// Under the lock: snapshots that cannot see what this transaction replayed must end first. Backends
/// that wait for our own lock are left out.
fn wait_out_snapshots(xid: u32, sources: &[pg_sys::Oid], held: Instant) -> PgResult<()> {
    let budget = Duration::from_millis(guc::MAX_LOCK_TIME.get().max(1) as u64 / 2);
    let mut waiting = lock::not_waiting_for(lock::older_snapshots(xid), sources)?;
    loop {
        waiting.retain(|vxid| !lock::has_ended(vxid));
        if waiting.is_empty() {
            return Ok(());
        }
        if held.elapsed() > budget {
            return Err(busy("older snapshots are in use"));
        }
        std::thread::sleep(Duration::from_micros(200));
        waiting = lock::not_waiting_for(waiting, sources)?;
    }
}
