//! Moves: by map, by hand, and their end.

use crate::catalog::citus::{moving, splitting};
use crate::catalog::moves;
use crate::catalog::standing::{self, Standing};
use crate::catalog::{act, colocation, merge, record_event, split, wayback};
use crate::pg::report::{PgResult, bad_argument, unknown, unsupported, wrong_state};
use crate::pg::types::JsonText;
use crate::pg::{guc, security, shmem, transaction};
use crate::planner;
use pgrx::prelude::*;
use serde_json::{Map, Value, json};

/// Every slot's tables must belong to the current user.
pub(super) fn require_slot_owner(slot_id: i64) -> PgResult<()> {
    let as_owner = security::as_extension_owner()?;
    let tables = moves::tables_of_slot(slot_id)?;
    drop(as_owner);
    for (table, name) in tables {
        security::require_owner(table, &name)?;
    }
    Ok(())
}

/// What is filed says where slots are now; an older snapshot may show them where they were.
pub(super) fn require_read_committed() -> PgResult<()> {
    transaction::require_read_committed(
        "slots can be moved or divided anew only in transactions of isolation level READ COMMITTED",
    )
}

fn file(map: &Map<String, Value>, confidence: Option<f64>) -> PgResult<(i64, Vec<i64>)> {
    shmem::require_preloaded()?;
    require_read_committed()?;
    for key in map.keys() {
        if let Ok(slot_id) = key.parse() {
            require_slot_owner(slot_id)?;
        }
    }
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    let filed = moves::file_map(map, confidence, &user)?;
    colocation::require_create(&user, &filed.1)?;
    wake_keeper();
    Ok(filed)
}

/// The keeper looks for work once a second; a commit need not wait for that.
pub(super) fn wake_keeper() {
    let database = crate::pg::bgworker::database();
    pgrx::register_xact_callback(pgrx::PgXactCallbackEvent::Commit, move || {
        if let Some(keeper) = shmem::with_entry(database, |entry| entry.keeper) {
            shmem::wake(keeper);
        }
    });
}

/// Slots of tables in mode `off` are moved by hand only.
fn require_not_off(map: &Map<String, Value>) -> PgResult<()> {
    let _owner = security::as_extension_owner()?;
    let asked: Vec<i64> = map.keys().filter_map(|key| key.parse().ok()).collect();
    match planner::first_off(&asked)? {
        None => Ok(()),
        Some(slot_id) => Err(wrong_state(format!("slot {slot_id} belongs to a table in mode off"))
            .set_detail("In mode off foreshard observes and forecasts only.")
            .set_hint("Change it with foreshard.configure(table, 'mode', 'advise'), or move the slot by hand with foreshard.move_slot().")),
    }
}

/// Files the moves of a whole map `{"<slot_id>": "<shard>"}`, if the confidence suffices and every entry
/// is valid. Returns the request's id.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn request_resharding(confidence_score: f64, shard_assignment_map: JsonText) -> PgResult<i64> {
    if !(0.0..=1.0).contains(&confidence_score) {
        return Err(bad_argument("confidence_score must be between 0 and 1"));
    }
    let least = guc::MIN_CONFIDENCE.get();
    if confidence_score < least {
        return Err(wrong_state(format!(
            "confidence {confidence_score} is below foreshard.min_confidence ({least})"
        ))
        .set_hint("Wait for more history, or move single slots with foreshard.move_slot()."));
    }
    let Value::Object(map) = shard_assignment_map.parse()? else {
        return Err(bad_argument("shard_assignment_map must be an object")
            .set_hint("The map has the form {\"<slot_id>\": \"<shard>\"}."));
    };
    require_not_off(&map)?;
    Ok(file(&map, Some(confidence_score))?.0)
}

/// Moves one slot to a shard, online; to its own shard when it lies in another tablespace than that. Returns the move's id.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn move_slot(slot_id: i64, to_shard: &str) -> PgResult<i64> {
    let mut map = Map::new();
    map.insert(slot_id.to_string(), Value::String(to_shard.to_string()));
    let (_, moves) = file(&map, None)?;
    moves.first().copied().ok_or_else(|| crate::pg::report::internal("no move id"))
}

/// Splits one slot into two, online: (m, r) becomes (2m, r), which keeps the slot's id, and (2m, r + m). Each goes
/// to the shard named, else it stays where the slot is. Returns the move's id. A slot of Citus is divided into the halves of its
/// hashes, for good.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn split_slot(
    slot_id: Option<i64>,
    to_shard_a: default!(Option<&str>, "NULL"),
    to_shard_b: default!(Option<&str>, "NULL"),
) -> PgResult<i64> {
    file_split(slot_id, &[to_shard_a, to_shard_b], false)
}

/// Builds the two parts of a slot ahead and keeps them equal to it, until `split_slot()` makes them the slot's,
/// `cancel_move()` discards them, or `foreshard.prepared_split_lifetime` is over. Returns the move's id.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn prepare_split(
    slot_id: Option<i64>,
    to_shard_a: default!(Option<&str>, "NULL"),
    to_shard_b: default!(Option<&str>, "NULL"),
) -> PgResult<i64> {
    file_split(slot_id, &[to_shard_a, to_shard_b], true)
}

fn file_split(slot_id: Option<i64>, targets: &[Option<&str>], prepare: bool) -> PgResult<i64> {
    let Some(slot_id) = slot_id else { return Err(bad_argument("slot_id must not be NULL")) };
    shmem::require_preloaded()?;
    require_read_committed()?;
    require_slot_owner(slot_id)?;
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    let move_id = split::file(slot_id, targets, &user, prepare)?;
    colocation::require_create(&user, &[move_id])?;
    wake_keeper();
    Ok(move_id)
}

/// Merges the two slots of a split, online: (2m, r) and (2m, r + m) become (m, r), which keeps the id of the one with
/// the smaller remainder. It goes to the shard named, else to that of `slot_a`. Returns the move's id.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn merge_slots(
    slot_a: Option<i64>,
    slot_b: Option<i64>,
    to_shard: default!(Option<&str>, "NULL"),
) -> PgResult<i64> {
    let (Some(slot_a), Some(slot_b)) = (slot_a, slot_b) else {
        return Err(bad_argument("slot_a and slot_b must not be NULL"));
    };
    shmem::require_preloaded()?;
    require_read_committed()?;
    require_slot_owner(slot_a)?;
    require_slot_owner(slot_b)?;
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    let move_id = merge::file(slot_a, slot_b, to_shard, &user)?;
    colocation::require_create(&user, &[move_id])?;
    wake_keeper();
    Ok(move_id)
}

/// A move whose tables belong to the current user.
fn own_move(move_id: i64) -> PgResult<Standing> {
    let as_owner = security::as_extension_owner()?;
    let found = standing::standing(move_id)?;
    drop(as_owner);
    let Some(standing) = found else {
        return Err(unknown(format!("move {move_id} does not exist")));
    };
    require_slot_owner(standing.slot_id)?;
    Ok(standing)
}

/// Stops a move and removes its copy; the slot stays where it is. False when it has already ended or
/// passed the cutover. After the cutover it stops the way back of a move by Citus, which is a copy, too.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn cancel_move(move_id: i64) -> PgResult<bool> {
    let standing = own_move(move_id)?;
    if standing.finished || standing.phase != "watch" {
        return cancel(move_id, &standing);
    }
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    let called_off = moving::call_off(move_id)?;
    if called_off {
        record_event("called_off", Some(move_id), Some(standing.slot_id), json!({"requested_by": user}))?;
    }
    wake_keeper();
    Ok(called_off)
}

fn cancel(move_id: i64, standing: &Standing) -> PgResult<bool> {
    if standing.finished || standing.phase == "retire" || standing.phase == "watch" {
        return Ok(false);
    }
    let _owner = security::as_extension_owner()?;
    let asked = moves::request_cancel(move_id)?;
    if asked {
        act::taken_back(move_id, move_id)?;
    }
    wake_keeper();
    Ok(asked)
}

/// Brings a slot back to where it was before a move: before the cutover the move is cancelled, after it the
/// copies change places again, as long as the old one is kept (`foreshard.rollback_window`). False when it is
/// too late.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn rollback_move(move_id: i64) -> PgResult<bool> {
    let standing = own_move(move_id)?;
    let _owner = security::as_extension_owner()?;
    if standing.is_split_for_good {
        if splitting::range_of(standing.slot_id)?.is_some() {
            return Err(unsupported(format!("move {move_id} cannot be rolled back"))
                .set_detail("Citus has divided the shards of its slot, and brings none together again.")
                .set_hint("Move the parts where they belong with foreshard.move_slot()."));
        }
        if request_way_back(move_id)? {
            return Ok(true);
        }
        return Err(unsupported(format!("move {move_id} cannot be rolled back any more"))
            .set_detail("Its slot has become another, and the partition that it was is no longer kept.")
            .set_hint("Merge two halves with foreshard.merge_slots(), split what was merged with foreshard.split_slot(), bring chosen keys home with foreshard.place_keys()."));
    }
    let asked = moves::request_rollback(move_id)?;
    if asked {
        act::taken_back(move_id, move_id)?;
    }
    wake_keeper();
    // The swap of a split may have come first.
    if asked || cancel(move_id, &own_move(move_id)?)? { Ok(true) } else { request_way_back(move_id) }
}

/// Asks for the way back of a split that is over; false when there is none.
fn request_way_back(move_id: i64) -> PgResult<bool> {
    let Some(merge) = wayback::request(move_id)? else { return Ok(false) };
    act::taken_back(move_id, merge)?;
    wake_keeper();
    Ok(true)
}

/// Sends a share (0 to 1) of the reads of a moving slot to its copy, once the canary has begun, and holds the
/// move there; NULL lets the canary take its own steps again. False when the move has passed its cutover.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn set_route_weight(move_id: Option<i64>, weight: Option<f64>) -> PgResult<Option<bool>> {
    let Some(move_id) = move_id else { return Ok(None) };
    if weight.is_some_and(|weight| !(0.0..=1.0).contains(&weight)) {
        return Err(bad_argument("weight must be between 0 and 1"));
    }
    own_move(move_id)?;
    let _owner = security::as_extension_owner()?;
    moves::request_weight(move_id, weight).map(Some)
}

fn set_paused(move_id: i64, paused: bool) -> PgResult<bool> {
    own_move(move_id)?;
    let _owner = security::as_extension_owner()?;
    if paused {
        moving::require_pausable(move_id)?;
    }
    let changed = moves::set_paused(move_id, paused)?;
    wake_keeper();
    Ok(changed)
}

/// Holds a move up where it stands; changes go on being logged or mirrored. False when it has passed its
/// cutover or is paused already. What Citus is at cannot be held up (55000), only what has not begun.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn pause_move(move_id: i64) -> PgResult<bool> {
    set_paused(move_id, true)
}

/// Lets a paused move go on. False when it is not paused.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn resume_move(move_id: i64) -> PgResult<bool> {
    set_paused(move_id, false)
}
