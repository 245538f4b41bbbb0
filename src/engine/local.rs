//! The local engine: shards are tablespaces of this server, a copy changes places by swapping storage.

use super::Engine;
use crate::catalog::moves::MoveRow;
use crate::catalog::preflight;
use crate::catalog::shadow::{self, RelationRow};
use crate::pg::disk;
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::storage;
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;

/// See the module.
pub struct Local;

impl Engine for Local {
    fn capabilities(&self) -> Capabilities {
        // A list that cannot be read is told by the phase itself.
        let canary = guc::CANARY_STEPS.get().is_some_and(|steps| !steps.to_bytes().trim_ascii().is_empty());
        Capabilities { mirror: true, canary, watch: guc::ROLLBACK_WINDOW.get() > 0 }
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        let mut reasons = Vec::new();
        if partitions.is_empty() {
            reasons.push("no_partition: the slot has no partition any more".to_string());
        }
        let mut bytes = 0;
        for partition in partitions {
            reasons.extend(preflight::against_move(*partition)?);
            bytes += crate::catalog::relation::bytes(*partition)?;
        }
        if let Some(space) = disk::space_of_tablespace(&row.tablespace) {
            let reserve = space.total_bytes / 100 * guc::MIN_FREE_DISK.get().max(0) as u64;
            let needed = bytes.max(0) as u64 + reserve;
            if space.free_bytes < needed {
                reasons.push(format!(
                    "disk_space: tablespace \"{}\" has {} MB free, the copy needs {} MB ({} % kept free included)",
                    row.tablespace,
                    space.free_bytes >> 20,
                    needed >> 20,
                    guc::MIN_FREE_DISK.get()
                ));
            }
        }
        Ok(reasons)
    }

    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()> {
        for partition in partitions {
            shadow::create(row.move_id, *partition, &row.tablespace)?;
        }
        Ok(())
    }

    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool> {
        let Some((heap, index)) = shadow::next_unbuilt(row.move_id)? else {
            return Ok(false);
        };
        storage::build_index(heap, index);
        shadow::set_built(row.move_id, index)?;
        Ok(true)
    }

    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()> {
        relations.iter().try_for_each(|relation| shadow::set_mirroring(row.move_id, relation, mirroring))
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
