//! The way back from what was recommended.

use super::reshard::{require_slot_owner, wake_keeper};
use crate::catalog::act::{self, Act};
use crate::catalog::wish::Placing;
use crate::catalog::{merge, moves, record_event, split, wayback};
use crate::pg::report::{PgResult, bad_argument, busy, unknown, wrong_state};
use crate::pg::{security, shmem};
use pgrx::prelude::*;
use serde_json::{Map, Value, json};

/// Takes back what was done upon a recommendation: a move under way is cancelled, one whose old copy is still kept
/// swaps back, one that is over is followed by a move back; halves are merged, merged slots split, and keys go where
/// they were. For a day the slot is then left to persons. Returns the
/// id of the move that brings the slot back.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn undo_recommendation(recommendation_id: Option<i64>) -> PgResult<i64> {
    let Some(recommendation_id) = recommendation_id else {
        return Err(bad_argument("recommendation_id must not be NULL"));
    };
    shmem::require_preloaded()?;
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
    act::set_undone(act.move_id)?;
    let detail =
        json!({"recommendation_id": recommendation_id, "undone_move": act.move_id, "requested_by": user});
    record_event("undo", Some(undoing), Some(act.slot_id), detail)?;
    wake_keeper();
    Ok(undoing)
}

/// Brings back what was changed otherwise than by a move: keys go where they were, halves become one again, and one
/// two. The move that does.
fn undo_change(recommendation_id: i64, act: &Act, user: &str) -> PgResult<i64> {
    let Act { move_id, slot_id, other_slot, former, .. } = act;
    let undoing = match (act.kind.as_str(), other_slot, former) {
        ("split", Some(_), _) if wayback::request(*move_id)? => *move_id,
        ("split", Some(other), _) => merge::file(*slot_id, *other, None, user)?,
        ("merge", ..) => split::file(*slot_id, &[None, None], user, false)?,
        ("place", _, Some(Value::Object(former))) => {
            let tables = moves::tables_of_slot(*slot_id)?;
            let (table, _) = tables.first().ok_or_else(|| wrong_state("the slot has no table any more"))?;
            let mut placing = Placing::of(*table)?;
            placing.restore(former)?;
            let filed = placing.file(user, json!({"undo": recommendation_id}))?;
            filed.first().copied().ok_or_else(|| {
                wrong_state(format!("recommendation {recommendation_id} cannot be undone"))
                    .set_detail("Its keys are where they were before.")
            })?
        }
        _ => return Err(wrong_state(format!("recommendation {recommendation_id} cannot be undone"))),
    };
    if undoing != *move_id {
        act::set_reason(undoing, &format!("recommendation {recommendation_id} was undone"))?;
    }
    Ok(undoing)
}

/// Begins whatever brings the slot back; the move that does.
fn undo(recommendation_id: i64, act: &Act, user: &str) -> PgResult<i64> {
    let nothing_to_undo = |detail: String| {
        Err(wrong_state(format!("recommendation {recommendation_id} cannot be undone")).set_detail(detail))
    };
    let Act { move_id, slot_id, from, to, now_on, .. } = act;
    if act.undone {
        return nothing_to_undo(format!("It was undone before; slot {slot_id} is on shard \"{now_on}\"."));
    }
    if !act.finished {
        let asked = match act.phase.as_str() {
            "watch" => moves::request_rollback(*move_id)?,
            "retire" => false,
            _ => moves::request_cancel(*move_id)?,
        };
        return if asked {
            Ok(*move_id)
        } else {
            Err(busy(format!("move {move_id} of recommendation {recommendation_id} is about to end"))
                .set_hint("Try again in a moment."))
        };
    }
    if act.phase != "done" {
        return nothing_to_undo(format!(
            "Its move {move_id} ended as {}: slot {slot_id} stayed where it was.",
            act.phase
        ));
    }
    if act.kind != "move" {
        return undo_change(recommendation_id, act, user);
    }
    if act.split_since {
        return nothing_to_undo(format!(
            "Slot {slot_id} has been split since; only a part of it could be moved back."
        ));
    }
    if now_on != to {
        return nothing_to_undo(format!(
            "Slot {slot_id} has been moved since, from shard \"{to}\" to \"{now_on}\"."
        ));
    }
    let mut map = Map::new();
    map.insert(slot_id.to_string(), Value::String(from.clone()));
    let (_, filed) = moves::file_map(&map, None, user)?;
    let undoing = filed.first().copied().ok_or_else(|| crate::pg::report::internal("no move id"))?;
    act::set_reason(undoing, &format!("recommendation {recommendation_id} was undone"))?;
    Ok(undoing)
}
