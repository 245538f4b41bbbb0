//! Moves and splits of slots of a Citus cluster: Citus copies, catches up and switches, in one statement. Around it are the checks
//! before, attempts, the clean-up of what is broken off, and the way back, which a split has not: Citus merges nothing.
//!
//! The phases are those of all moves; the ones between the copy and the watch are Citus' own business. Writers wait from Citus' switch
//! to the end of its transaction, so nothing else is done in that one: what it did is read off Citus' catalog afterwards, also by a
//! carrier that comes after one that was killed in between.

use super::{MAX_BACKOFF_MS, MAX_ERRORS, claim_and_load, is_held, is_transient, measure};
use crate::catalog::citus::identity::{self, Coordinator};
use crate::catalog::citus::{layout, moving, splitting};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::{node, record_event};
use crate::pg::bgworker::{self, Failure, WorkResult, transaction};
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::{guc, reading};
use foreshard_core::citus::{MOST_GIVEN_WAY, REST_S};
use foreshard_core::phase::{Capabilities, Event, Phase};
use pgrx::prelude::*;
use serde_json::json;

/// Longest pause before it is looked at again whether somebody wants to end a move that measures, ms.
const LOOK_MS: i64 = 250;

/// What a move waits for that is not the first.
const ANOTHER: &str = "another move of the cluster";

/// What a step came to.
enum Step {
    /// The phase has changed.
    On,
    /// Come again after so many ms.
    Again(i64),
    /// Nothing could be done yet: another carrier comes again, and others come first.
    Later(String),
    /// This server must not do it now; the move rests for a while.
    Forbidden(String),
    /// Nothing to do for a long while.
    Rest,
}

/// Drives one move until it has ended or is gone.
pub fn drive(move_id: i64) {
    loop {
        bgworker::wait(0);
        let row = match transaction(|| claim_and_load(move_id)) {
            Ok(Some(row)) if !row.finished => row,
            Ok(_) => return,
            Err(report) => return pgrx::log!("foreshard: move {move_id} ends: {}", report.line),
        };
        if !row.cancel_requested && (row.rests || row.paused && row.phase.is_reversible()) {
            return;
        }
        if is_held(row.phase) {
            bgworker::wait(100);
            continue;
        }
        let phase = row.phase.as_str();
        bgworker::show_activity(Some(&format!("move {move_id} of slot {} by Citus: {phase}", row.slot_id)));
        match step(row) {
            Ok(Step::On) => {}
            Ok(Step::Again(pause_ms)) => bgworker::wait(pause_ms.min(LOOK_MS)),
            Ok(Step::Rest) => return,
            Ok(Step::Later(why)) => {
                let _ = transaction(|| moves::note(move_id, Some(&why), None, None));
                return;
            }
            Ok(Step::Forbidden(why)) => {
                let _ = transaction(|| moving::rest(move_id, &why, REST_S));
                return;
            }
            Err(failure) if after_error(move_id, &failure) => {}
            Err(_) => return,
        }
    }
}

/// A move of Citus' has neither mirror nor canary; it can be moved back while it is watched, a split cannot.
fn capabilities(row: &MoveRow) -> Capabilities {
    let watch = guc::ROLLBACK_WINDOW.get() > 0 && !row.is_split;
    Capabilities { mirror: false, canary: false, watch, prepare: false }
}

/// Goes on through phases in which nothing is to be done, as one transaction's part.
fn pass(mut row: MoveRow, until: &[Phase]) -> PgResult<()> {
    while !until.contains(&row.phase) {
        row.phase = moves::advance(&row, Event::Completed, capabilities(&row))?;
    }
    Ok(())
}

fn step(row: MoveRow) -> WorkResult<Step> {
    let cleans = matches!(row.phase, Phase::Revert | Phase::RevertFailed);
    // Whoever carried it was killed before it could say so; or somebody else has done it.
    if row.phase == Phase::Copy && transaction(|| is_made(&row))? {
        return arrive(row);
    }
    if row.cancel_requested && row.phase.is_reversible() && !cleans {
        return leave(&row, Event::CancelRequested);
    }
    match row.phase {
        Phase::Preflight => preflight(row),
        Phase::Watch => watch(row),
        Phase::Revert | Phase::RevertFailed => {
            clean_up();
            end(&row)
        }
        Phase::Retire => end(&row),
        Phase::Done | Phase::Cancelled | Phase::Failed => Ok(Step::Rest),
        _ => carry(row),
    }
}

/// Whether Citus has done what it was asked for.
fn is_made(row: &MoveRow) -> PgResult<bool> {
    if row.is_split { splitting::is_done(row.move_id) } else { moving::is_on(row.slot_id, row.to_shard) }
}

fn leave(row: &MoveRow, event: Event) -> WorkResult<Step> {
    transaction(|| moves::advance(row, event, capabilities(row))).map(|_| Step::On)
}

fn end(row: &MoveRow) -> WorkResult<Step> {
    leave(row, Event::Completed)
}

/// Why it cannot begin now, though it may later; None: it can.
fn obstacle(row: &MoveRow) -> PgResult<Option<String>> {
    let sick = node::sick_shards()?;
    let parts = splitting::pieces(row.move_id)?.into_iter().map(|piece| piece.shard_id);
    if parts.chain([row.from_shard, row.to_shard]).any(|shard| sick.contains(&shard)) {
        return Ok(Some("a node that does not answer".to_string()));
    }
    if let Some(who) = moving::others()? {
        return Ok(Some(format!("others that move shards of the cluster: {who}")));
    }
    // Whoever takes its turn later asks again; this one has not begun, and may be taken back.
    Ok((!moving::take_turn()?).then(|| ANOTHER.to_string()))
}

/// Why this server must not touch the cluster now; None: its nodes take it for their coordinator.
fn forbidden() -> Option<String> {
    let why = match transaction(identity::ask) {
        Ok(Coordinator::Ours) => None,
        Ok(Coordinator::Another(why) | Coordinator::Unknown(why)) => Some(why),
        Err(failure) => Some(format!("nodes did not say who coordinates them: {}", failure.line)),
    };
    let _ = transaction(|| identity::note(why.as_deref()));
    why
}

/// What comes before anything that Citus is to do; None: nothing.
fn hindrance(row: &MoveRow) -> WorkResult<Option<Step>> {
    match transaction(|| obstacle(row))? {
        Some(why) => Ok(Some(Step::Later(why))),
        None => Ok(forbidden().map(Step::Forbidden)),
    }
}

fn preflight(row: MoveRow) -> WorkResult<Step> {
    let watches = capabilities(&row).watch;
    if let Some(left_ms) = measure::left_ms(&row).filter(|_| watches) {
        return Ok(Step::Again(left_ms));
    }
    if let Some(step) = hindrance(&row)? {
        measure::forget(&row);
        return Ok(step);
    }
    transaction(|| {
        layout::follow()?;
        if row.is_split {
            splitting::check(row.move_id, row.slot_id)?;
        } else {
            moving::check(row.slot_id, row.to_shard)?;
        }
        if !moving::is_on(row.slot_id, row.from_shard)? {
            return Err(wrong_state(format!("slot {} is no longer where it was", row.slot_id))
                .set_detail("Somebody else has moved it since."));
        }
        if watches && let Some(wait_ms) = measure::before_copy(&row)? {
            return Ok(Step::Again(wait_ms));
        }
        pass(row, &[Phase::Copy])?;
        Ok(Step::On)
    })
}

/// Has Citus move or divide the shards.
fn carry(row: MoveRow) -> WorkResult<Step> {
    // Somebody may have begun to move shards while this one waited.
    if let Some(step) = hindrance(&row)? {
        return Ok(step);
    }
    let step = if row.is_split {
        in_turn(|| splitting::carry(row.move_id, row.slot_id))?
    } else {
        in_turn(|| moving::carry(row.slot_id, row.from_shard, row.to_shard))?
    };
    match step {
        Step::On => arrive(row),
        step => Ok(step),
    }
}

/// One statement of Citus', in a transaction in which nothing else is done.
fn in_turn(carry: impl FnOnce() -> PgResult<()>) -> WorkResult<Step> {
    transaction(|| {
        if !moving::take_turn()? {
            return Ok(Step::Later(ANOTHER.to_string()));
        }
        carry()?;
        Ok(Step::On)
    })
}

/// The shards are what and where they should be: notes it, and goes on.
fn arrive(row: MoveRow) -> WorkResult<Step> {
    transaction(|| {
        layout::follow()?;
        if row.is_split {
            splitting::set_swapped(row.move_id)?;
        } else {
            moving::set_swapped(row.move_id)?;
        }
        pass(row, &[Phase::Watch, Phase::Retire])?;
        Ok(Step::On)
    })
}

/// Whether somebody wants a move back that was made; a cancel that the switch overtook counts as well.
fn goes_back(row: &MoveRow) -> bool {
    row.rollback_requested || row.cancel_requested
}

/// The way back stands open for `foreshard.rollback_window`: the same move, the other way round.
fn watch(row: MoveRow) -> WorkResult<Step> {
    if !goes_back(&row) {
        if row.watched_age_s.is_some_and(|age_s| age_s < f64::from(guc::ROLLBACK_WINDOW.get())) {
            return Ok(Step::Rest);
        }
        measure::record(&row)?;
        return end(&row);
    }
    if let Some(step) = hindrance(&row)? {
        return Ok(step);
    }
    if transaction(|| moving::is_on(row.slot_id, row.to_shard))?
        && let later @ Step::Later(_) = in_turn(|| moving::carry(row.slot_id, row.to_shard, row.from_shard))?
    {
        return Ok(later);
    }
    transaction(|| {
        layout::follow()?;
        if !moving::is_on(row.slot_id, row.from_shard)? {
            moves::note(row.move_id, None, Some("somebody else has moved the slot since"), None)?;
            moves::advance(&row, Event::SourceChanged, capabilities(&row))?;
            return Ok(Step::On);
        }
        record_event("moved_back", Some(row.move_id), Some(row.slot_id), json!({"engine": "citus"}))?;
        moves::advance(&row, Event::RollbackRequested, capabilities(&row))?;
        Ok(Step::On)
    })
}

/// What a move that was broken off has left on the nodes; Citus also looks for that by itself from time to time.
fn clean_up() {
    if let Some(why) = forbidden() {
        return pgrx::log!("foreshard: nothing is cleaned up: {why}");
    }
    match transaction(moving::clean_up) {
        Ok(None) => {}
        Ok(Some(why)) | Err(Failure { line: why, .. }) => pgrx::log!("foreshard: clean-up of Citus: {why}"),
    }
}

/// The move as it is; None: it is gone, or cannot be read.
fn load(move_id: i64) -> Option<MoveRow> {
    transaction(|| claim_and_load(move_id)).ok().flatten()
}

/// Notes the error, cleans up, pauses, and gives up what has failed too often: before the move it fails, and a way back leaves the slot
/// where it is. False: another carrier comes.
fn after_error(move_id: i64, failure: &Failure) -> bool {
    let line = failure.line.as_str();
    // Who interrupted it because writers waited has said so.
    if load(move_id).is_none_or(|row| !row.rests) {
        let _ = transaction(|| moves::note(move_id, None, Some(line), None));
    }
    pgrx::log!("foreshard: move {move_id}: {line}");
    clean_up();
    let Some(row) = load(move_id) else { return true };
    let is_called_off = row.phase == Phase::Watch && !goes_back(&row);
    if is_called_off || row.cancel_requested && row.phase.is_reversible() {
        return true;
    }
    if row.rests && row.gave_way < MOST_GIVEN_WAY {
        return false;
    }
    // Kept with the move: one that also has to wait for others goes from carrier to carrier.
    let Ok(errors) = transaction(|| moving::count_error(move_id)) else {
        bgworker::wait(MAX_BACKOFF_MS);
        return false;
    };
    let limit = if is_transient(failure) || failure.code == PgSqlErrorCode::ERRCODE_INTERNAL_ERROR {
        MAX_ERRORS * 2
    } else {
        MAX_ERRORS
    };
    let hopeless = row.rests
        || matches!(
            failure.code,
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED
                | PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE
                | PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE
        );
    if !hopeless && errors < limit {
        bgworker::wait((200_i64 << errors.min(5)).min(MAX_BACKOFF_MS));
        return true;
    }
    let detail = json!({
        "sqlstate": reading::sqlstate(failure.code), "reason": line, "errors": errors, "way_back": row.phase == Phase::Watch,
    });
    let given_up = transaction(|| {
        record_event("gave_up", Some(move_id), Some(row.slot_id), detail)?;
        moves::advance(&row, Event::FatalError, capabilities(&row))
    });
    if let Err(report) = given_up {
        // Nothing leads on from what only clears away; it is tried again, but not all the time.
        pgrx::log!("foreshard: move {move_id}: {}", report.line);
        bgworker::wait(MAX_BACKOFF_MS);
        return false;
    }
    true
}
