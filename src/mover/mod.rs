//! Effects of the phases, and the loop that drives a move from phase to phase. Every piece of work
//! commits together with the phase or progress it leads to, so that a crash at any point resumes.

pub mod canary;
pub mod citus;
pub mod cutover;
mod foreign;
mod health;
pub mod measure;
mod mirror;
mod phases;
mod prepared;
pub mod recover;
pub mod short_lock;
mod verified;

pub use foreign::is_away;

use crate::catalog::moves::{self, MoveRow};
use crate::engine::{self, Engine};
use crate::pg::bgworker::Failure;
use crate::pg::report::PgResult;
use crate::pg::{bgworker, guc};
use foreshard_core::phase::{Event, Phase};
use pgrx::prelude::*;

/// What a piece of work came to.
pub enum Outcome {
    /// The work and the next phase are committed.
    Advanced,
    /// Progress is committed, or nothing could be done yet: come again after so many ms.
    Again(i64),
    /// Nothing to do for a long while: the keeper will start a carrier again.
    Rest,
    /// The phase must be left for this reason.
    Leave(Event),
}

/// Errors in a row after which a move gives up.
const MAX_ERRORS: u32 = 3;
/// Longest pause between attempts, ms.
const MAX_BACKOFF_MS: i64 = 5_000;

/// Drives one move until it has ended or is gone.
pub fn drive(move_id: i64) {
    let mut errors = 0;
    let mut attempts = 0;
    loop {
        bgworker::wait(0);
        let row = match bgworker::transaction(|| claim_and_load(move_id)) {
            Ok(Some(row)) if !row.finished => row,
            Ok(_) => return,
            Err(report) => {
                // The tables are gone: so is the extension.
                pgrx::log!("foreshard: move {move_id} ends: {}", report.line);
                return;
            }
        };
        let engine = engine::of(&row);
        // What it has done stays; the keeper starts a carrier again when it is resumed.
        if row.paused && !row.cancel_requested && row.phase.is_reversible() {
            canary::close_routes(move_id);
            return;
        }
        if is_held(row.phase) {
            bgworker::wait(100);
            continue;
        }
        bgworker::show_activity(Some(&format!(
            "{} {move_id} of slot {}: {}",
            row.what(),
            row.slot_id,
            row.phase.as_str()
        )));
        let step = if row.cancel_requested && row.phase.is_reversible() && !is_cleanup(row.phase) {
            Ok(Outcome::Leave(Event::CancelRequested))
        } else {
            phases::perform(engine, &row, attempts)
        };
        match step {
            Ok(Outcome::Advanced) => {
                errors = 0;
                attempts = 0;
            }
            Ok(Outcome::Again(pause_ms)) => {
                errors = 0;
                attempts += 1;
                bgworker::wait(pause_ms);
            }
            Ok(Outcome::Rest) => return,
            Ok(Outcome::Leave(event)) => {
                errors = 0;
                attempts = 0;
                leave(engine, &row, event);
            }
            Err(report) => {
                attempts += 1;
                errors = after_error(engine, &row, &report, attempts, errors);
            }
        }
    }
}

/// The move, None when it is gone or another carrier's. Claimed again every time: owners' code that runs
/// in this session could have let go of the lock.
fn claim_and_load(move_id: i64) -> PgResult<Option<MoveRow>> {
    if moves::claim(move_id)? { moves::load(move_id) } else { Ok(None) }
}

fn is_cleanup(phase: Phase) -> bool {
    matches!(phase, Phase::Revert | Phase::RevertFailed)
}

fn is_held(phase: Phase) -> bool {
    guc::HOLD_AT_PHASE.get().is_some_and(|held| held.to_bytes() == phase.as_str().as_bytes())
}

fn leave(engine: &dyn Engine, row: &MoveRow, event: Event) {
    // First of all: no read may be sent to a copy that is about not to be kept equal.
    canary::close_routes(row.move_id);
    if let Err(report) = bgworker::transaction(|| moves::advance(row, event, engine.capabilities())) {
        pgrx::log!("foreshard: move {}: {}", row.move_id, report.line);
        bgworker::wait(MAX_BACKOFF_MS);
    }
}

/// Whether trying again may help without anybody doing anything.
fn is_transient(failure: &Failure) -> bool {
    use PgSqlErrorCode as C;
    // A catalog row that somebody else changed first has no SQLSTATE of its own.
    failure.line.starts_with("tuple concurrently")
        || foreign::is_away(failure)
        || matches!(
            failure.code,
            C::ERRCODE_LOCK_NOT_AVAILABLE
                | C::ERRCODE_T_R_SERIALIZATION_FAILURE
                | C::ERRCODE_T_R_DEADLOCK_DETECTED
                | C::ERRCODE_QUERY_CANCELED
                | C::ERRCODE_OBJECT_IN_USE
        )
}

/// Notes the error, pauses, and gives up where that leads back to a clean state. Returns the errors in
/// a row so far.
fn after_error(engine: &dyn Engine, row: &MoveRow, failure: &Failure, attempts: u32, errors: u32) -> u32 {
    let line = failure.line.as_str();
    let _ = bgworker::transaction(|| moves::note(row.move_id, None, Some(line), None));
    if is_transient(failure) {
        bgworker::wait(short_lock::backoff_ms(attempts));
        return errors;
    }
    pgrx::log!("foreshard: move {} in phase {}: {line}", row.move_id, row.phase.as_str());
    let hopeless = matches!(
        failure.code,
        PgSqlErrorCode::ERRCODE_DISK_FULL | PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
    );
    let errors = errors + 1;
    if row.phase.is_reversible() && !is_cleanup(row.phase) && (hopeless || errors >= MAX_ERRORS) {
        leave(engine, row, Event::FatalError);
        return 0;
    }
    bgworker::wait((200_i64 << errors.min(5)).min(MAX_BACKOFF_MS));
    errors
}
