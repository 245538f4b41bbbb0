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
    locked(row, attempt, |relations| {
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
            moves::set_last_replay(row.move_id, 0)?;
        }
        engine.set_mirroring(row, relations, true)?;
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
    let mirrors = transaction(|| is_mirroring(&shadow::relations(row.move_id)?))?;
    if !mirrors {
        return Ok(None);
    }
    locked(row, attempt, |relations| {
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
    let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
    let outcome = transaction(|| {
        // With an id assigned, every statement under the lock takes a snapshot of its own.
        let _ = lock::current_xid();
        spi::set_local("synchronous_commit", "off")?;
        if short_lock::try_lock(&sources, lock::SHARE_ROW_EXCLUSIVE, attempt)? {
            work(&relations)
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
