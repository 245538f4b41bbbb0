//! Placements of chosen keys: the partitions of a slot become a DEFAULT partition and lists of keys, or one
//! partition again. A split but for the parts and for what is exchanged: docs/decisions/0014 has the reasons.

use super::{Engine, Side, Split, Visit, skip_logged};
use crate::catalog::moves::MoveRow;
use crate::catalog::shadow::RelationRow;
use crate::catalog::{child, guest, place, relation, remains, split, wish};
use crate::pg::digest::{self, Key, Row};
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::{PgResult, internal};
use crate::pg::{disk, guc, lock};
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::collections::HashSet;

/// What locks and fits is the same for both.
const SPLIT: Split = Split { prepare: false };

/// See the module.
pub struct Place;

impl Engine for Place {
    fn capabilities(&self) -> Capabilities {
        SPLIT.capabilities()
    }

    fn partitions(&self, row: &MoveRow) -> PgResult<Vec<pg_sys::Oid>> {
        place::sources(row.move_id)
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        place::wait_turn(row.move_id)?;
        place::refuse(row.slot_id, &wish::reasons(row.move_id, row.slot_id)?)?;
        let bytes = partitions.iter().try_fold(0, |sum, p| Ok(sum + relation::bytes(*p)?))?;
        let parts = split::parts(row.move_id)?;
        let spaces: HashSet<&str> = parts.iter().map(|part| part.tablespace.as_str()).collect();
        // All parts may be on one tablespace, and all rows in one part.
        let short = |space| disk::shortage(space, bytes, guc::MIN_FREE_DISK.get());
        Ok(spaces.into_iter().filter_map(short).collect())
    }

    fn prepare(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()> {
        let parts = split::parts(row.move_id)?;
        // As they are now, they stay until the copies are like them.
        lock::lock_all(partitions, lock::ACCESS_SHARE);
        guest::families(row.move_id)?.iter().try_for_each(|family| guest::create(row.move_id, family, &parts))
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

    /// Keys go from any partition of a slot to any copy: so all of them are compared together, with the one
    /// that the copies were made like.
    fn each_row(
        &self,
        row: &MoveRow,
        relation: &RelationRow,
        stored: &[i16],
        skip: &HashSet<Vec<u8>>,
        visit: &mut Visit,
    ) -> PgResult<usize> {
        let copies = child::children(row.move_id, relation.source)?;
        if copies.is_empty() {
            return Ok(split::parts(row.move_id)?.len());
        }
        let siblings = place::siblings(row.move_id, relation.shadow)?;
        let skip = skip_logged(skip, &siblings.iter().collect::<Vec<_>>())?;
        let key = Key { columns: &relation.key, skip: &skip };
        let mut router = Router::of_any(relation.shadow, Lifetime::Statement)?;
        let attribute = child::key_attribute(relation)?;
        let parts = router.partitions().iter().map(|copy| copies.iter().position(|child| child == copy));
        let parts: Vec<usize> =
            parts.map(|part| part.ok_or_else(|| internal("a copy of no part"))).collect::<PgResult<_>>()?;
        let mut source = |copy: usize, row: &Row| {
            if let Some(part) = parts.get(copy) {
                visit(Side::Source, *part, row);
            }
        };
        for sibling in &siblings {
            digest::each_row_of_parts(sibling.source, &key, stored, attribute, &mut router, &mut source)?;
        }
        for (part, copy) in copies.iter().enumerate() {
            digest::each_row(*copy, &key, stored, &mut |row| visit(Side::Copy, part, row))?;
        }
        Ok(copies.len())
    }

    fn verified(&self, row: &MoveRow, rows: &[u64]) -> PgResult<()> {
        SPLIT.verified(row, rows)
    }

    fn rehearse(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<()> {
        SPLIT.rehearse(row, relations)
    }

    fn held_first(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<pg_sys::Oid>> {
        let mut held = place::parents_of(row.move_id)?;
        held.extend(relations.iter().map(|r| r.source));
        Ok(held)
    }

    fn in_the_way(&self, relations: &[RelationRow]) -> PgResult<Option<String>> {
        SPLIT.in_the_way(relations)
    }

    fn hold_rest(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
        SPLIT.hold_rest(row, relations)
    }

    /// What its partitions have in common is looked at when it is the turn of the first of them.
    fn fits(&self, row: &MoveRow, relation: &RelationRow) -> PgResult<bool> {
        Ok(SPLIT.fits(row, relation)?
            && (relation.twin.is_none() || guest::fit(row.move_id, relation.source)?))
    }

    fn lacks_index(&self, relation: &RelationRow) -> PgResult<Option<String>> {
        SPLIT.lacks_index(relation)
    }

    fn swap(&self, row: &MoveRow, _relations: &[RelationRow], _keep_mirror: bool) -> PgResult<()> {
        let parts = split::parts(row.move_id)?;
        remains::keep_storage(row.move_id)?;
        let families = guest::families(row.move_id)?;
        let exchanged = families.iter().map(|family| guest::exchange(row.move_id, family, &parts));
        let branches = exchanged.collect::<PgResult<Vec<_>>>()?;
        let parts = place::place(row.move_id, row.slot_id)?;
        for (family, branch) in families.iter().zip(branches) {
            place::register(row.move_id, family, branch)?;
        }
        place::divide(row.move_id, row.slot_id, &parts)
    }

    fn place(&self, row: &MoveRow, _shard: i32) -> PgResult<Value> {
        let part = |part: &split::Part| {
            json!({"slot_id": part.slot_id, "keys": part.keys.as_ref().map(Vec::len),
                   "isolated": part.isolated, "shard_id": part.shard_id, "rows": part.rows})
        };
        Ok(split::parts(row.move_id)?.iter().map(part).collect())
    }

    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()> {
        SPLIT.remove_capture(relation)
    }

    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()> {
        SPLIT.drop_shadows(row)
    }

    fn settle(&self, row: &MoveRow) -> PgResult<()> {
        place::settle(row.move_id, row.slot_id)
    }
}
