//! Merges: one copy of the partitions of two slots, which in the end takes their place. The same as a split but for
//! who is copied into whom; docs/decisions/0015 has the reasons.

use super::{Engine, Local, Side, Split, Visit, skip_logged, wants_canary};
use crate::catalog::moves::MoveRow;
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{child, merge, relation, remains, split, whole};
use crate::pg::digest::{self, Key};
use crate::pg::report::{PgResult, internal};
use crate::pg::{disk, guc, lock};
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::collections::HashSet;

/// See the module.
pub struct Merge {
    /// It waits, ready, until the cutover is asked for.
    pub prepare: bool,
    /// Reads are sent to the copy before the cutover.
    pub canary: bool,
}

/// What locks and fits is the same for both.
const SPLIT: Split = Split { prepare: false };

impl Engine for Merge {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mirror: true,
            canary: self.canary && wants_canary(),
            watch: false,
            prepare: self.prepare,
        }
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        let mut reasons = merge::reasons(row.slot_id, row.other_slot.unwrap_or_default())?;
        let bytes = partitions.iter().try_fold(0, |sum, p| Ok(sum + relation::bytes(*p)?))?;
        reasons.extend(disk::shortage(&row.tablespace, bytes, guc::MIN_FREE_DISK.get()));
        Ok(reasons)
    }

    fn prepare(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()> {
        let parts = split::parts(row.move_id)?;
        let part = parts.first().ok_or_else(|| internal("a merge without a result"))?;
        lock::lock_all(partitions, lock::ACCESS_SHARE);
        whole::by_table(partitions)?.iter().try_for_each(|sources| whole::create(row.move_id, sources, part))
    }

    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<bool> {
        SPLIT.install(row, partitions)
    }

    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool> {
        SPLIT.build_next_index(row)
    }

    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()> {
        Local.set_mirroring(row, relations, mirroring)
    }

    /// The copy is compared with all sources at once, when it is the turn of the first of them.
    fn each_row(
        &self,
        row: &MoveRow,
        relation: &RelationRow,
        stored: &[i16],
        skip: &HashSet<Vec<u8>>,
        visit: &mut Visit,
    ) -> PgResult<usize> {
        let all = shadow::relations(row.move_id)?;
        let sources: Vec<&RelationRow> = all.iter().filter(|r| r.shadow == relation.shadow).collect();
        if sources.first().is_none_or(|first| first.source != relation.source) {
            return Ok(0);
        }
        let skip = skip_logged(skip, &sources)?;
        for each in &sources {
            let key = Key { columns: &each.key, skip: &skip };
            digest::each_row(each.source, &key, stored, &mut |row| visit(Side::Source, 0, row))?;
        }
        let key = Key { columns: &relation.key, skip: &skip };
        digest::each_row(relation.shadow, &key, stored, &mut |row| visit(Side::Copy, 0, row))?;
        Ok(1)
    }

    fn verified(&self, row: &MoveRow, rows: &[u64]) -> PgResult<()> {
        split::set_rows(row.move_id, rows)
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

    /// The copy is made like the first of its sources: the others must still be like that one.
    fn fits(&self, row: &MoveRow, relation: &RelationRow) -> PgResult<bool> {
        if !SPLIT.fits(row, relation)? {
            return Ok(false);
        }
        let all = shadow::relations(row.move_id)?;
        let first = all.iter().find(|r| r.shadow == relation.shadow).map_or(relation.source, |r| r.source);
        Ok(first == relation.source || whole::unlike(first, relation.source)?.is_empty())
    }

    fn lacks_index(&self, relation: &RelationRow) -> PgResult<Option<String>> {
        SPLIT.lacks_index(relation)
    }

    fn swap(&self, row: &MoveRow, relations: &[RelationRow], _keep_mirror: bool) -> PgResult<()> {
        let parts = split::parts(row.move_id)?;
        remains::keep_storage(row.move_id)?;
        let mut done: Vec<pg_sys::Oid> = Vec::new();
        for relation in relations {
            if !done.contains(&relation.shadow) {
                done.push(relation.shadow);
                let sources: Vec<&RelationRow> =
                    relations.iter().filter(|r| r.shadow == relation.shadow).collect();
                child::exchange(row.move_id, &sources, &parts)?;
            }
        }
        Ok(())
    }

    fn place(&self, row: &MoveRow, _shard: i32) -> PgResult<Value> {
        let other = row.other_slot.ok_or_else(|| internal("a merge of one slot"))?;
        merge::place(row.move_id, row.slot_id, other)?;
        let parts = split::parts(row.move_id)?;
        Ok(parts
            .iter()
            .map(|part| {
                json!({"slot_id": row.slot_id, "merged": other, "modulus": part.modulus, "remainder": part.remainder,
                       "shard_id": part.shard_id, "rows": part.rows})
            })
            .collect())
    }

    fn keeps_too_much(&self, row: &MoveRow) -> PgResult<Option<String>> {
        Ok(disk::shortage(&row.tablespace, 0, guc::MIN_FREE_DISK.get()))
    }

    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()> {
        Local.remove_capture(relation)
    }

    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()> {
        shadow::drop_all(row.move_id)
    }

    fn settle(&self, row: &MoveRow) -> PgResult<()> {
        let Some(other) = row.other_slot else { return Ok(()) };
        merge::add_past(row.slot_id, other)
    }
}
