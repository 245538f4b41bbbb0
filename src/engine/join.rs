//! Joins: a split of a table's only slot into slots that there are already, those of the group that it joins;
//! docs/decisions/0008.

use super::{Engine, Split, Visit};
use crate::catalog::moves::MoveRow;
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{child, join, split};
use crate::pg::lock;
use crate::pg::report::PgResult;
use foreshard_core::phase::{Capabilities, Phase};
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::collections::HashSet;

/// See the module.
pub struct Join;

/// What is the same for both.
const SPLIT: Split = Split { prepare: false };

impl Engine for Join {
    fn capabilities(&self) -> Capabilities {
        // The table has not had any slots, so nothing is known of any.
        Capabilities { canary: false, ..SPLIT.capabilities() }
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        SPLIT.preflight(row, partitions)
    }

    /// As for a split, which has a way back when it has two parts.
    fn prepare(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()> {
        let parts = split::parts(row.move_id)?;
        lock::lock_all(partitions, lock::ACCESS_SHARE);
        partitions.iter().try_for_each(|partition| child::create(row.move_id, *partition, &parts))
    }

    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<bool> {
        SPLIT.install(row, partitions)
    }

    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool> {
        SPLIT.build_next_index(row)
    }

    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()> {
        SPLIT.set_mirroring(row, relations, mirroring)
    }

    fn each_row(
        &self,
        row: &MoveRow,
        relation: &RelationRow,
        stored: &[i16],
        skip: &HashSet<Vec<u8>>,
        visit: &mut Visit,
    ) -> PgResult<usize> {
        SPLIT.each_row(row, relation, stored, skip, visit)
    }

    fn verified(&self, row: &MoveRow, rows: &[u64]) -> PgResult<()> {
        SPLIT.verified(row, rows)
    }

    fn rehearse(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<()> {
        SPLIT.rehearse(row, relations)
    }

    fn held_first(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<pg_sys::Oid>> {
        SPLIT.held_first(row, relations)
    }

    fn in_the_way(&self, relations: &[RelationRow]) -> PgResult<Option<String>> {
        SPLIT.in_the_way(relations)
    }

    fn hold_rest(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
        SPLIT.hold_rest(row, relations)
    }

    fn fits(&self, row: &MoveRow, relation: &RelationRow) -> PgResult<bool> {
        SPLIT.fits(row, relation)
    }

    fn lacks_index(&self, relation: &RelationRow) -> PgResult<Option<String>> {
        SPLIT.lacks_index(relation)
    }

    fn swap(&self, row: &MoveRow, relations: &[RelationRow], keep_mirror: bool) -> PgResult<()> {
        SPLIT.swap(row, relations, keep_mirror)
    }

    fn place(&self, row: &MoveRow, _shard: i32) -> PgResult<Value> {
        let part = |part: &split::Part| {
            json!({"slot_id": part.slot_id, "modulus": part.modulus, "remainder": part.remainder,
                   "shard_id": part.shard_id, "rows": part.rows})
        };
        Ok(join::place(row.move_id, row.slot_id)?.iter().map(part).collect())
    }

    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()> {
        SPLIT.remove_capture(relation)
    }

    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()> {
        if row.phase == Phase::Retire {
            return join::settle(row.move_id, row.slot_id);
        }
        shadow::drop_all(row.move_id)
    }
}
