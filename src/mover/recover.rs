//! A slot whose node does not answer gets its old copy back: in one transaction of a user's session, which asks no node.

use super::short_lock;
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::remote::retained::{self, Kept};
use crate::catalog::remote::{behind, reap, swap};
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{act, node, record_event, waiting};
use crate::engine::{Engine, Foreign};
use crate::pg::lock;
use crate::pg::report::{PgResult, busy, internal, notice, unknown, wrong_state};
use foreshard_core::phase::{Event, Phase};
use pgrx::pg_sys;
use serde_json::json;

/// Exchanges a slot on a node that is down for its old copy, if `accept_loss`; the move that kept the copy ends as one that was
/// rolled back. Returns its id.
///
/// # Errors
/// 42704 no such slot; 55000 its node answers, no copy is kept, its table was altered, or the loss is not accepted; 08006 the copy is on
/// a node that is down, too; 55006 a carrier or an older snapshot is in the way.
pub fn recover(slot_id: i64, accept_loss: bool, user: &str) -> PgResult<i64> {
    let kept = kept(slot_id)?;
    if !accept_loss {
        return Err(wrong_state(format!("recovering slot {slot_id} may lose what was committed to it last"))
            .set_detail(kept.loss())
            .set_hint(format!(
                "If the node is lost for good: SELECT foreshard.recover_slot({slot_id}, accept_loss => true)."
            )));
    }
    let move_id = kept.move_id;
    if !moves::claim_for_transaction(move_id)? {
        return Err(busy(format!("a worker is at move {move_id} of slot {slot_id}"))
            .set_hint("Try again in a moment: it lets go when it finds that the node does not answer."));
    }
    // From here on whatever is read is what has been committed by now.
    let _ = lock::current_xid();
    let row = moves::load(move_id)?.ok_or_else(|| internal("the move is gone"))?;
    let relations = shadow::relations(move_id)?;
    wait_for_no_snapshot(&row, &relations)?;
    short_lock::lock_in_session(&locked(&row, &relations)?, lock::ACCESS_EXCLUSIVE, &[])?;
    // The node may have come back, and the move have gone on, before we had the move and its tables.
    let kept = self::kept(slot_id)?;
    let row = moves::load(move_id)?.ok_or_else(|| internal("the move is gone"))?;
    if kept.move_id != move_id || row.phase != Phase::Watch || row.finished {
        return Err(busy(format!("slot {slot_id} is being moved")).set_hint("Try again in a moment."));
    }
    node::require_up(row.from_shard)?;
    let left = exchange(&row, &relations)?;
    notice(&format!("{} What is on the node stays behind {}.", kept.loss(), left.join(", ")));
    let detail = json!({
        "node": kept.held_by, "copy_on": kept.retained_on, "complete_to": kept.complete_to, "down_since": kept.down_since,
        "between_s": kept.between_s, "left": left, "requested_by": user,
    });
    record_event("recover", Some(move_id), Some(slot_id), detail)?;
    end(row)?;
    Ok(move_id)
}

/// The copy that can take the slot's place.
fn kept(slot_id: i64) -> PgResult<Kept> {
    match (retained::holder(slot_id)?, retained::of_slot(slot_id)?) {
        (None, _) => Err(unknown(format!("slot {slot_id} does not exist")).set_hint("See the view foreshard.slots.")),
        (Some((node, false)), _) => Err(wrong_state(format!("slot {slot_id} is not on a node that is down"))
            .set_detail(format!("It is on node \"{node}\"."))
            .set_hint("foreshard.rollback_move() goes back to an old copy that is kept, foreshard.move_slot() moves the slot; neither loses anything.")),
        (Some((node, true)), None) => Err(wrong_state(format!("no old copy of slot {slot_id} is kept"))
            .set_detail(format!("All of its rows are on node \"{node}\", which does not answer."))
            .set_hint("Bring the node back, or a backup or a standby of it under the same foreign server.")),
        (Some(_), Some(kept)) => Ok(kept),
    }
}

/// Rows that came home since the swap carry ids of the carrier's transactions, which older snapshots do not see.
fn wait_for_no_snapshot(row: &MoveRow, relations: &[RelationRow]) -> PgResult<()> {
    for relation in relations {
        if behind(relation.shadow)?.is_some() {
            return Ok(());
        }
    }
    let Some(xid) = moves::last_replay(row.move_id)? else { return Ok(()) };
    if lock::older_snapshots(xid as u32, false).is_empty() {
        return Ok(());
    }
    let who = waiting::oldest_snapshots()?.unwrap_or_else(|| "somebody".to_string());
    Err(busy(format!("a transaction is older than what came last into the old copy of slot {}", row.slot_id))
        .set_detail(format!("It would not see those rows: {who}."))
        .set_hint("Wait until it has ended, or end it with pg_terminate_backend()."))
}

/// Everything that the exchange changes, in the order in which moves lock it.
fn locked(row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<pg_sys::Oid>> {
    let mut all = Foreign.held_first(row, relations)?;
    let mut own: Vec<pg_sys::Oid> =
        relations.iter().flat_map(|one| std::iter::once(one.shadow).chain(one.twin)).collect();
    own.sort_by_key(|oid| oid.to_u32());
    all.extend(own);
    Ok(all)
}

/// Puts the copies in place and clears away here what the move needed; what is over the lost node stays. Its names.
fn exchange(row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<String>> {
    for relation in relations {
        if !Foreign.fits(row, relation)? {
            return Err(wrong_state(format!(
                "the old copy of slot {} does not fit its table any more",
                row.slot_id
            ))
            .set_detail("The table was altered since the slot moved, or a trigger, policy or the like was made on the partition alone.")
            .set_hint("Undo that, or read the copy under its name: see foreshard.retained_copies."));
        }
    }
    retained::note_lost(row.move_id)?;
    Foreign.swap(row, relations, false)?;
    Foreign.place(row, row.from_shard)?;
    let mut left = Vec::new();
    let turned = shadow::relations(row.move_id)?;
    for relation in &turned {
        left.extend(swap::set_aside(relation.source, relation.shadow)?);
    }
    Foreign.drop_shadows(row)?;
    turned.iter().try_for_each(|relation| reap::name_indexes(relation.source))?;
    Ok(left)
}

/// The move has been rolled back, and nothing of it is left to be cleared away.
fn end(mut row: MoveRow) -> PgResult<()> {
    for event in [Event::RollbackRequested, Event::Completed] {
        row.phase = moves::advance(&row, event, Foreign.capabilities())?;
    }
    act::taken_back(row.move_id, row.move_id)
}
