//! The local engine: shards are tablespaces of this server, a copy changes places by swapping storage.

use super::{Engine, Side, Visit, wants_canary};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{place, preflight};
use crate::pg::digest::{self, Key};
use crate::pg::report::PgResult;
use crate::pg::{disk, guc, lock, storage};
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;
use serde_json::Value;
use std::collections::HashSet;
use std::time::Instant;

/// See the module.
pub struct Local;

impl Engine for Local {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            mirror: true,
            canary: wants_canary(),
            watch: guc::ROLLBACK_WINDOW.get() > 0,
            prepare: false,
        }
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        place::wait_turn(row.move_id)?;
        let mut reasons = Vec::new();
        if partitions.is_empty() {
            reasons.push("no_partition: the slot has no partition any more".to_string());
        }
        let mut bytes = 0;
        for partition in partitions {
            reasons.extend(preflight::against_move(*partition)?);
            bytes += crate::catalog::relation::bytes(*partition)?;
        }
        reasons.extend(disk::shortage(&row.tablespace, bytes, guc::MIN_FREE_DISK.get()));
        Ok(reasons)
    }

    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<bool> {
        for partition in partitions {
            shadow::create(row.move_id, *partition, &row.tablespace)?;
        }
        Ok(true)
    }

    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool> {
        let Some((heap, index)) = shadow::next_unbuilt(row.move_id)? else {
            return Ok(false);
        };
        let begun = Instant::now();
        storage::build_index(heap, index);
        shadow::set_built(row.move_id, index, begun.elapsed().as_secs_f64())?;
        Ok(true)
    }

    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()> {
        relations.iter().try_for_each(|relation| shadow::set_mirroring(row.move_id, relation, mirroring))
    }

    fn each_row(
        &self,
        _row: &MoveRow,
        relation: &RelationRow,
        stored: &[i16],
        skip: &HashSet<Vec<u8>>,
        visit: &mut Visit,
    ) -> PgResult<usize> {
        let key = Key { columns: &relation.key, skip };
        digest::each_row(relation.source, &key, stored, &mut |row| visit(Side::Source, 0, row))?;
        digest::each_row(relation.shadow, &key, stored, &mut |row| visit(Side::Copy, 0, row))?;
        Ok(1)
    }

    fn hold_rest(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
        let shadows: Vec<pg_sys::Oid> = relations.iter().map(|r| r.shadow).collect();
        if !lock::try_lock_all(&shadows, lock::ACCESS_EXCLUSIVE) {
            return Ok(false);
        }
        for relation in relations {
            if !lock::try_lock_all(&shadow::swapped_with(row.move_id, relation)?, lock::ACCESS_EXCLUSIVE) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fits(&self, row: &MoveRow, relation: &RelationRow) -> PgResult<bool> {
        shadow::fits(row.move_id, relation.source, relation.shadow, true)
    }

    fn swap(&self, row: &MoveRow, relations: &[RelationRow], keep_mirror: bool) -> PgResult<()> {
        for relation in relations {
            storage::promote_predicate_locks(relation.source, relation.shadow);
            if !keep_mirror {
                self.remove_capture(relation)?;
            }
            for (source_index, shadow_index) in shadow::index_pairs(row.move_id, relation.source)? {
                storage::swap_storage(source_index, shadow_index)?;
            }
            storage::swap_storage(relation.source, relation.shadow)?;
            if keep_mirror {
                // The same trigger mirrors the other way now: the shadow has the old storage.
                shadow::set_fingerprint(row.move_id, relation)?;
            }
        }
        Ok(())
    }

    fn place(&self, row: &MoveRow, shard: i32) -> PgResult<Value> {
        moves::place_slot(row, shard)?;
        Ok(Value::Null)
    }

    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()> {
        if shadow::trigger_exists(relation.trigger)? {
            storage::drop_trigger(relation.trigger);
        }
        Ok(())
    }

    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()> {
        shadow::drop_all(row.move_id)
    }
}
