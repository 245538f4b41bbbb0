//! The end of a managed table: one copy of all its partitions, which in the end is the table. A merge of all slots but for
//! the exchange, after which there is no slot any more; docs/decisions/0008.

use super::{Engine, Merge, Split, Visit};
use crate::catalog::moves::MoveRow;
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{child, preflight, relation, release, remains, whole};
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::{disk, guc, lock};
use foreshard_core::phase::{Capabilities, Phase};
use pgrx::pg_sys;
use serde_json::Value;
use std::collections::HashSet;

/// See the module.
pub struct Undistribute;

/// What is the same for all that replaces partitions.
const SPLIT: Split = Split { prepare: false };
/// What copies several partitions into one table.
const MERGE: Merge = Merge { prepare: false, canary: false };
/// Partitions whose changes begin to be logged, or mirrored, under one lock: some milliseconds each.
const AT_ONCE: usize = 4;

/// The managed table.
fn table_of(relations: &[RelationRow]) -> PgResult<pg_sys::Oid> {
    let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
    let (parents, _) = child::around(&sources)?;
    match parents.as_slice() {
        [table] => Ok(*table),
        _ => Err(wrong_state("the partitions belong to one table no more")),
    }
}

impl Engine for Undistribute {
    fn capabilities(&self) -> Capabilities {
        MERGE.capabilities()
    }

    fn at_once(&self) -> usize {
        AT_ONCE
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        let mut reasons = release::reasons(release::table_of(row.slot_id)?)?;
        let bytes = partitions.iter().try_fold(0, |sum, p| Ok(sum + relation::bytes(*p)?))?;
        reasons.extend(disk::shortage(&row.tablespace, bytes, guc::MIN_FREE_DISK.get()));
        Ok(reasons)
    }

    fn prepare(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()> {
        MERGE.prepare(row, partitions)
    }

    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<bool> {
        let relations = shadow::relations(row.move_id)?;
        let sources = relations.iter().map(|relation| relation.source);
        if !sources.eq(shadow::partitions_of_move(row.move_id, row.slot_id)?) {
            return Ok(false);
        }
        for relation in relations.iter().filter(|relation| partitions.contains(&relation.source)) {
            if !child::capture(row.move_id, relation)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool> {
        MERGE.build_next_index(row)
    }

    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()> {
        MERGE.set_mirroring(row, relations, mirroring)
    }

    fn each_row(
        &self,
        row: &MoveRow,
        relation: &RelationRow,
        stored: &[i16],
        skip: &HashSet<Vec<u8>>,
        visit: &mut Visit,
    ) -> PgResult<usize> {
        MERGE.each_row(row, relation, stored, skip, visit)
    }

    fn verified(&self, row: &MoveRow, rows: &[u64]) -> PgResult<()> {
        MERGE.verified(row, rows)
    }

    fn rehearse(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<()> {
        child::rehearse()?;
        remains::rehearse()?;
        release::rehearse(row.move_id, relations)
    }

    /// The table and all that has to do with it. Who has a partition by the table holds the table.
    fn held_first(&self, _row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<pg_sys::Oid>> {
        Ok(preflight::around(table_of(relations)?)?.0)
    }

    fn in_the_way(&self, relations: &[RelationRow]) -> PgResult<Option<String>> {
        SPLIT.in_the_way(relations)
    }

    fn hold_rest(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
        let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
        // As for a split: what a serializable transaction has read goes away.
        if lock::is_predicate_locked(&sources)? {
            return Ok(false);
        }
        let sequences = preflight::own_sequences(table_of(relations)?)?;
        let own = relations.iter().take(1).flat_map(|r| [r.shadow].into_iter().chain(r.twin));
        let own: Vec<pg_sys::Oid> = own.chain(remains::touched(row.move_id)?).collect();
        if !(lock::try_lock_all(&sequences, lock::SHARE_ROW_EXCLUSIVE)
            && lock::try_lock_all(&own, lock::ACCESS_EXCLUSIVE))
        {
            return Ok(false);
        }
        // Only autovacuum is at them, or somebody who names them: both are waited for, bounded as every wait is now.
        lock::lock_all(&sources, lock::ACCESS_EXCLUSIVE);
        Ok(true)
    }

    fn fits(&self, row: &MoveRow, relation: &RelationRow) -> PgResult<bool> {
        if !SPLIT.fits(row, relation)? {
            return Ok(false);
        }
        let first = whole::first_source(row.move_id, relation.shadow)?;
        if first == relation.source {
            return Ok(!release::is_hindered(relation)?);
        }
        Ok(whole::unlike(first, relation.source)?.is_empty())
    }

    fn swap(&self, row: &MoveRow, relations: &[RelationRow], _keep_mirror: bool) -> PgResult<()> {
        remains::keep_storage(row.move_id)?;
        release::replace(row.move_id, relations)?;
        release::note(row.move_id, row.slot_id, relations)
    }

    fn place(&self, _row: &MoveRow, _shard: i32) -> PgResult<Value> {
        Ok(Value::Null)
    }

    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()> {
        MERGE.remove_capture(relation)
    }

    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()> {
        shadow::drop_all(row.move_id)?;
        if row.phase == Phase::Retire { release::forget(row.slot_id) } else { Ok(()) }
    }
}
