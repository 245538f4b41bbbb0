//! The way back from what was recommended.

use super::reshard::{require_read_committed, require_slot_owner, wake_keeper};
use crate::catalog::act::{self, Act};
use crate::catalog::split::{self, Part};
use crate::catalog::wish::Placing;
use crate::catalog::{colocation, merge, moves, record_event, wayback};
use crate::pg::report::{PgResult, bad_argument, busy, internal, unknown, unsupported, wrong_state};
use crate::pg::{security, shmem};
use pgrx::prelude::*;
use serde_json::{Map, Value, json};

/// Takes back what was done upon a recommendation: a move under way is cancelled, one whose old copy is still kept
/// swaps back, one that is over is followed by a move back; a split by a merge and a merge by a split, and keys go where
/// they were. For a day the slot is then left to persons. Returns the id of the move that brings the slot back.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn undo_recommendation(recommendation_id: Option<i64>) -> PgResult<i64> {
    let Some(recommendation_id) = recommendation_id else {
        return Err(bad_argument("recommendation_id must not be NULL"));
    };
    shmem::require_preloaded()?;
    require_read_committed()?;
    let as_owner = security::as_extension_owner()?;
    let found = act::of(recommendation_id)?;
    drop(as_owner);
    let Some(act) = found else {
        return Err(unknown(format!("no move was made upon recommendation {recommendation_id}"))
            .set_hint("The history shows, under the event auto, which recommendations were acted upon."));
    };
    require_slot_owner(act.slot_id)?;
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    let undoing = undo(recommendation_id, &act, &user)?;
    act::set_undone(act.move_id, undoing)?;
    let detail =
        json!({"recommendation_id": recommendation_id, "undone_move": act.move_id, "requested_by": user});
    record_event("undo", Some(undoing), Some(act.slot_id), detail)?;
    wake_keeper();
    Ok(undoing)
}

/// Begins whatever brings the slot back; the move that does.
fn undo(recommendation_id: i64, act: &Act, user: &str) -> PgResult<i64> {
    let nothing_to_undo = |detail: String| {
        Err(wrong_state(format!("recommendation {recommendation_id} cannot be undone")).set_detail(detail))
    };
    let Act { move_id, slot_id, now_on, to, .. } = act;
    if act.undone {
        return nothing_to_undo(format!("It was undone before; slot {slot_id} is on shard \"{now_on}\"."));
    }
    if !act.finished
        && let Some(undoing) = stop(act)?
    {
        return Ok(undoing);
    }
    if !act.finished {
        return Err(busy(format!("move {move_id} of recommendation {recommendation_id} is about to end"))
            .set_hint("Try again in a moment."));
    }
    if act.phase != "done" {
        return nothing_to_undo(format!(
            "Its move {move_id} ended as {}: slot {slot_id} stayed where it was.",
            act.phase
        ));
    }
    if act.kind == "split"
        && let Some(merge) = wayback::request(*move_id)?
    {
        return Ok(merge);
    }
    if act.changed_since {
        return nothing_to_undo(match act.kind.as_str() {
            "move" => {
                format!("Slot {slot_id} has been split or merged since, or keys of it have been placed.")
            }
            kind => format!("What {kind} {move_id} made of slot {slot_id} has been changed since."),
        });
    }
    // Keys are brought back from wherever they are.
    if act.kind != "place" && now_on != to {
        return nothing_to_undo(format!(
            "Slot {slot_id} has been moved since, from shard \"{to}\" to \"{now_on}\"."
        ));
    }
    let undoing = file_back(recommendation_id, act, user)?;
    colocation::require_create(user, &[undoing])?;
    act::set_reason(undoing, &format!("recommendation {recommendation_id} was undone"))?;
    Ok(undoing)
}

/// Stops what has not ended yet: it is cancelled, or goes back; the move that does, None when it is too late.
fn stop(act: &Act) -> PgResult<Option<i64>> {
    let itself = |asked: bool| asked.then_some(act.move_id);
    match (act.kind.as_str(), act.phase.as_str()) {
        (_, "watch") => moves::request_rollback(act.move_id).map(itself),
        ("split", "retire") => wayback::request(act.move_id),
        (_, "retire") => Ok(None),
        _ => moves::request_cancel(act.move_id).map(itself),
    }
}

/// Files the move, merge, split or placement that makes undone what has ended; its id.
fn file_back(recommendation_id: i64, act: &Act, user: &str) -> PgResult<i64> {
    match act.kind.as_str() {
        "move" => {
            let mut map = Map::new();
            map.insert(act.slot_id.to_string(), Value::String(act.from.clone()));
            let (_, filed) = moves::file_map(&map, None, user)?;
            filed.first().copied().ok_or_else(|| internal("no move id"))
        }
        "split" => match split::parts(act.move_id)?.as_slice() {
            [Part { slot_id: Some(a), .. }, Part { slot_id: Some(b), .. }] => {
                merge::file(*a, *b, Some(&act.from), user)
            }
            _ => Err(unsupported("only splits into two can be undone")),
        },
        "merge" => split::file(act.slot_id, &[Some(&act.from), act.other_from.as_deref()], user, false),
        "place" => place_back(recommendation_id, act, user),
        kind => Err(unsupported(format!("move {} is a {kind}, which has no way back", act.move_id))),
    }
}

/// Files the placement that brings keys where they were; its move.
fn place_back(recommendation_id: i64, act: &Act, user: &str) -> PgResult<i64> {
    let Some(Value::Object(former)) = &act.former else {
        return Err(unsupported(format!("where the keys of placement {} were is not known", act.move_id))
            .set_hint("See foreshard.unisolate_key() and foreshard.place_keys()."));
    };
    let tables = moves::tables_of_slot(act.slot_id)?;
    let (table, _) = tables.first().ok_or_else(|| wrong_state("the slot has no table any more"))?;
    let mut placing = Placing::of(*table)?;
    placing.restore(former)?;
    let filed = placing.file(user, json!({"undo": recommendation_id}))?;
    filed.first().copied().ok_or_else(|| {
        wrong_state(format!("recommendation {recommendation_id} cannot be undone"))
            .set_detail("Its keys are where they were before.")
    })
}
