//! Splits: the copies of a partition are tables of their own, one per part, which in the end take its place.
//! docs/decisions/0011 has the reasons.

use super::{Engine, Local, Side, Visit, wants_canary};
use crate::catalog::child;
use crate::catalog::moves::MoveRow;
use crate::catalog::relation;
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{remains, split, waiting, wayback};
use crate::pg::digest::{self, Key, Row};
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::{PgResult, internal};
use crate::pg::{disk, guc, lock};
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::collections::HashSet;

/// See the module.
pub struct Split {
    /// It waits, ready, until the cutover is asked for.
    pub prepare: bool,
}

impl Engine for Split {
    fn capabilities(&self) -> Capabilities {
        // The parts have other oids than the partition: no swap goes back.
        Capabilities { mirror: true, canary: wants_canary(), watch: false, prepare: self.prepare }
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        let mut reasons = split::reasons(row.slot_id)?;
        let bytes = partitions.iter().try_fold(0, |sum, p| Ok(sum + relation::bytes(*p)?))?;
        let parts = split::parts(row.move_id)?;
        let spaces: HashSet<&str> = parts.iter().map(|part| part.tablespace.as_str()).collect();
        // All parts may be on one tablespace, and all rows in one part.
        reasons.extend(
            spaces.into_iter().filter_map(|space| disk::shortage(space, bytes, guc::MIN_FREE_DISK.get())),
        );
        Ok(reasons)
    }

    fn prepare(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()> {
        let parts = split::parts(row.move_id)?;
        // As it is now, it stays until the copies are like it.
        lock::lock_all(partitions, lock::ACCESS_SHARE);
        // Only two halves can be merged again.
        let way_back = guc::ROLLBACK_WINDOW.get() > 0 && parts.len() == 2;
        for partition in partitions {
            child::create(row.move_id, *partition, &parts)?;
            if way_back {
                wayback::create(row.move_id, *partition, &parts)?;
            }
        }
        Ok(())
    }

    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<bool> {
        let relations = shadow::relations(row.move_id)?;
        if !relations.iter().map(|relation| relation.source).eq(partitions.iter().copied()) {
            return Ok(false);
        }
        for relation in &relations {
            if !child::capture(row.move_id, relation)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool> {
        if Local.build_next_index(row)? {
            return Ok(true);
        }
        child::dress(row.move_id)?;
        Ok(false)
    }

    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()> {
        Local.set_mirroring(row, relations, mirroring)
    }

    fn each_row(
        &self,
        _row: &MoveRow,
        relation: &RelationRow,
        stored: &[i16],
        skip: &HashSet<Vec<u8>>,
        visit: &mut Visit,
    ) -> PgResult<usize> {
        let mut router = Router::of(relation.shadow, Lifetime::Statement)?;
        let attribute = child::key_attribute(relation)?;
        let key = Key { columns: &relation.key, skip };
        let mut source = |part: usize, row: &Row| visit(Side::Source, part, row);
        digest::each_row_of_parts(relation.source, &key, stored, attribute, &mut router, &mut source)?;
        for (part, copy) in router.partitions().iter().enumerate() {
            digest::each_row(*copy, &key, stored, &mut |row| visit(Side::Copy, part, row))?;
        }
        Ok(router.partitions().len())
    }

    fn verified(&self, row: &MoveRow, rows: &[u64]) -> PgResult<()> {
        split::set_rows(row.move_id, rows)
    }

    fn rehearse(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<()> {
        child::rehearse()?;
        remains::rehearse()?;
        // What is read of the copies is read again under the lock, from warm caches.
        for relation in relations {
            child::children(row.move_id, relation.source)?;
            wayback::touched(row.move_id, relation.source)?;
        }
        Ok(())
    }

    fn held_first(&self, _row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<pg_sys::Oid>> {
        let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
        let (mut held, _) = child::around(&sources)?;
        held.extend(sources);
        Ok(held)
    }

    fn in_the_way(&self, relations: &[RelationRow]) -> PgResult<Option<String>> {
        let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
        waiting::serializable_readers(&sources)
    }

    fn hold_rest(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
        let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
        // A serializable transaction that has read the partition must learn of later writers; the server keeps
        // what it read by relation, and that one goes away.
        if lock::is_predicate_locked(&sources)? {
            return Ok(false);
        }
        let (_, referenced) = child::around(&sources)?;
        if !lock::try_lock_all(&referenced, lock::SHARE_ROW_EXCLUSIVE) {
            return Ok(false);
        }
        let mut own = Vec::new();
        for relation in relations {
            own.push(relation.shadow);
            own.extend(child::children(row.move_id, relation.source)?);
            own.extend(relation.twin);
            own.extend(wayback::touched(row.move_id, relation.source)?);
        }
        own.extend(remains::touched(row.move_id)?);
        Ok(lock::try_lock_all(&own, lock::ACCESS_EXCLUSIVE))
    }

    fn fits(&self, row: &MoveRow, relation: &RelationRow) -> PgResult<bool> {
        child::fits(row.move_id, relation)
    }

    fn lacks_index(&self, relation: &RelationRow) -> PgResult<Option<String>> {
        Ok(split::against_indexes(relation.source)?.into_iter().next())
    }

    fn swap(&self, row: &MoveRow, relations: &[RelationRow], _keep_mirror: bool) -> PgResult<()> {
        let parts = split::parts(row.move_id)?;
        remains::keep_storage(row.move_id)?;
        for relation in relations {
            wayback::keep_storage(row.move_id, relation.source)?;
            child::exchange(row.move_id, &[relation], &parts)?;
        }
        Ok(())
    }

    fn place(&self, row: &MoveRow, shard: i32) -> PgResult<Value> {
        if shard != row.to_shard {
            return Err(internal("a split has no way back"));
        }
        let parts = split::place(row.move_id, row.slot_id)?;
        wayback::begin(row, &shadow::relations(row.move_id)?, &parts)?;
        let shares = split::shares(&parts);
        let part = |(part, share): (&split::Part, f64)| {
            json!({"slot_id": part.slot_id, "modulus": part.modulus, "remainder": part.remainder,
                   "shard_id": part.shard_id, "rows": part.rows, "share": share})
        };
        Ok(parts.iter().zip(shares).map(part).collect())
    }

    fn keeps_too_much(&self, row: &MoveRow) -> PgResult<Option<String>> {
        let parts = split::parts(row.move_id)?;
        let short = |part: &split::Part| disk::shortage(&part.tablespace, 0, guc::MIN_FREE_DISK.get());
        Ok(parts.iter().find_map(short))
    }

    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()> {
        Local.remove_capture(relation)
    }

    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()> {
        shadow::drop_all(row.move_id)
    }

    fn settle(&self, row: &MoveRow) -> PgResult<()> {
        split::divide_past(row.move_id, row.slot_id)
    }
}
