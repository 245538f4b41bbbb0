//! From a log of changes to a mirror, and back. Both happen under SHARE ROW EXCLUSIVE: no writer is under
//! way when it is granted, and every later one does what the trigger then says.

use super::phases::is_unchanged;
use super::{Outcome, canary, short_lock};
use crate::catalog::copy;
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::shadow::{self, RelationRow};
use crate::engine::Engine;
use crate::pg::bgworker::{WorkResult, transaction};
use crate::pg::report::PgResult;
use crate::pg::{guc, lock, spi};
use foreshard_core::phase::Event;
use pgrx::pg_sys;

/// What came of an attempt under the lock.
pub(super) enum Attempt {
    /// The work is done.
    Done,
    /// The locks were not to be had.
    Blocked,
    /// The phase must be left.
    Leave(Event),
}

/// Replays the bounded rest of the log under the lock and turns capture into a mirror.
pub fn install(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    let (next, last) = transaction(|| some(engine, row, false))?;
    locked_some(row, attempt, &next, |relations| {
        let limit = i64::from(guc::CUTOVER_MAX_KEYS.get());
        let mut replayed = 0;
        for relation in relations {
            if !is_unchanged(relation)? {
                return Ok(Attempt::Leave(Event::SourceChanged));
            }
            let plan = copy::plan(relation)?;
            match plan.pending(limit + 1)? {
                0 => {}
                pending if pending > limit => return Ok(Attempt::Leave(Event::BacklogTooLarge)),
                _ => replayed += plan.replay_few()?,
            }
        }
        // Rows replayed here must not be shown to older snapshots, as those of earlier replays.
        if replayed > 0 {
            moves::set_last_replay(row.move_id, true)?;
        }
        engine.set_mirroring(row, relations, true)?;
        if !last {
            return Ok(Attempt::Done);
        }
        // Closed ones: from now on it is known how statements fare. The parts of a split are other tables.
        if !row.replaces() {
            canary::make_routes(row, relations)?;
        }
        moves::advance(row, Event::Completed, engine.capabilities())?;
        Ok(Attempt::Done)
    })
}

/// Turns a mirror back into capture, so that the carrier may write the shadow again; None: it is capture.
pub fn demote(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Option<Outcome>> {
    canary::close_routes(row.move_id);
    let (next, _) = transaction(|| some(engine, row, true))?;
    if next.is_empty() {
        return Ok(None);
    }
    locked_some(row, attempt, &next, |relations| {
        for relation in relations {
            if !is_unchanged(relation)? {
                return Ok(Attempt::Leave(Event::SourceChanged));
            }
        }
        engine.set_mirroring(row, relations, false)?;
        Ok(Attempt::Done)
    })
    .map(Some)
}

/// The relations to treat next under one lock, of those that mirror, or do not, and whether they are the last ones.
/// Their keys are different ones, so some may mirror while others are still logged.
fn some(engine: &dyn Engine, row: &MoveRow, mirroring: bool) -> PgResult<(Vec<RelationRow>, bool)> {
    let mut found = Vec::new();
    for relation in shadow::relations(row.move_id)? {
        if shadow::is_mirroring(relation.trigger)? == mirroring {
            found.push(relation);
        }
    }
    let last = found.len() <= engine.at_once();
    found.truncate(engine.at_once());
    Ok((found, last))
}

/// Whether changes of any of these are mirrored.
pub fn is_mirroring(relations: &[RelationRow]) -> PgResult<bool> {
    for relation in relations {
        if shadow::is_mirroring(relation.trigger)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Does `work` under SHARE ROW EXCLUSIVE on every partition of a move.
pub(super) fn locked(
    row: &MoveRow,
    attempt: u32,
    work: impl FnOnce(&[RelationRow]) -> PgResult<Attempt>,
) -> WorkResult<Outcome> {
    let relations = transaction(|| shadow::relations(row.move_id))?;
    locked_some(row, attempt, &relations, work)
}

/// The same on some of them.
fn locked_some(
    row: &MoveRow,
    attempt: u32,
    relations: &[RelationRow],
    work: impl FnOnce(&[RelationRow]) -> PgResult<Attempt>,
) -> WorkResult<Outcome> {
    let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
    let outcome = transaction(|| {
        // With an id assigned, every statement under the lock takes a snapshot of its own.
        let _ = lock::current_xid();
        spi::set_local("synchronous_commit", "off")?;
        if short_lock::try_lock(&sources, lock::SHARE_ROW_EXCLUSIVE, attempt)? {
            work(relations)
        } else {
            Ok(Attempt::Blocked)
        }
    })?;
    Ok(match outcome {
        Attempt::Done => Outcome::Advanced,
        Attempt::Leave(event) => Outcome::Leave(event),
        Attempt::Blocked => {
            short_lock::report_blocked(row.move_id, &sources, attempt)?;
            Outcome::Again(short_lock::backoff_ms(attempt))
        }
    })
}
