//! Moves to, from and between nodes: one of the two copies at least is a table of another server, behind a foreign
//! table of contrib postgres_fdw. The carrier alone writes the copy; it replays the log of changes, and does the rest
//! of it while writers wait for a moment. docs/decisions/0019 has the reasons.

use super::Engine;
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::remote::{self, against, copy, index, make, reap, swap};
use crate::catalog::shadow::{self, RelationRow};
use crate::pg::report::{PgResult, internal, unsupported};
use crate::pg::{disk, guc, lock};
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;
use serde_json::Value;

/// See the module.
pub struct Foreign;

impl Engine for Foreign {
    fn capabilities(&self) -> Capabilities {
        // A commit that fails on a node fails the transaction: no user's may depend on a copy that way.
        Capabilities { mirror: false, canary: false, watch: guc::ROLLBACK_WINDOW.get() > 0, prepare: false }
    }

    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
        against::refuse_unique(row.slot_id)?;
        let mut reasons = Vec::new();
        if partitions.is_empty() {
            reasons.push("no_partition: the slot has no partition any more".to_string());
        }
        let to = remote::node_of_shard(row.to_shard)?.map(|(node, _)| node);
        let from = remote::node_of_shard(row.from_shard)?.map(|(node, _)| node);
        let nodes: Vec<_> = to.iter().chain(&from).collect();
        reasons.extend(against::mixed_owners(partitions)?);
        for partition in partitions {
            reasons.extend(against::against(*partition, &nodes)?);
        }
        // A node is asked only when nothing else speaks against the move: the right to ask it may be what is missing.
        if !reasons.is_empty() {
            return Ok(reasons);
        }
        if let Some(to) = &to {
            for partition in partitions {
                reasons.extend(against::other_order(*partition, to)?);
            }
        } else {
            let bytes = partitions.iter().try_fold(0, |sum, p| copy::bytes(*p).map(|bytes| sum + bytes))?;
            reasons.extend(disk::shortage(&row.tablespace, bytes, guc::MIN_FREE_DISK.get()));
        }
        Ok(reasons)
    }

    /// Registers what is to be made on a node, so that it is known before it is there.
    fn prepare(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()> {
        remote::set_dressed(partitions, true)?;
        let Some((node, _)) = remote::node_of_shard(row.to_shard)? else { return Ok(()) };
        for partition in partitions {
            let shape = remote::shape(*partition)?;
            remote::register(row.move_id, &node, &shape)?;
        }
        Ok(())
    }

    /// Makes the copies and begins to log changes, as far as that has not been done; partitions that are here are
    /// locked against writers.
    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<bool> {
        for relation in shadow::relations(row.move_id)? {
            let mut pair = copy::pair(&relation)?;
            match pair.source.link(pair.shape.owner)? {
                Some((link, remote)) => {
                    make::capture(&link, remote, &pair.shape, guc::MAX_LOCK_TIME.get())?;
                    make::changes_here(remote, &pair.shape)?;
                }
                None => {
                    (pair.log, pair.trigger) =
                        make::capture_here(row.move_id, pair.source.relation, &pair.shape.key)?;
                }
            }
            pair.note_file(row.move_id)?;
            swap::set_blocks(row.move_id, pair.source.relation, pair.blocks()?)?;
            swap::set_fingerprint(row.move_id, &pair)?;
        }
        Ok(shadow::relations(row.move_id)?.len() == partitions.len())
    }

    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool> {
        for relation in shadow::relations(row.move_id)? {
            let pair = copy::pair(&relation)?;
            if index::build_next(&pair, &row.tablespace)? {
                return Ok(true);
            }
            let lock_ms = self.capabilities().watch.then(|| guc::MAX_LOCK_TIME.get());
            index::finish(&pair, lock_ms)?;
        }
        Ok(false)
    }

    fn held_first(&self, _row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<pg_sys::Oid>> {
        let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
        let (mut held, _) = crate::catalog::child::around(&sources)?;
        held.extend(sources);
        Ok(held)
    }

    fn hold_rest(&self, _row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
        let mut own: Vec<pg_sys::Oid> =
            relations.iter().flat_map(|r| std::iter::once(r.shadow).chain(r.twin)).collect();
        own.sort_by_key(|oid| oid.to_u32());
        Ok(lock::try_lock_all(&own, lock::ACCESS_EXCLUSIVE))
    }

    fn fits(&self, _row: &MoveRow, relation: &RelationRow) -> PgResult<bool> {
        if !shadow::exists(relation.source)? || !shadow::exists(relation.shadow)? {
            return Ok(false);
        }
        Ok(copy::pair(relation)?.fingerprint()?.as_deref() == Some(relation.fingerprint.as_str()))
    }

    fn swap(&self, row: &MoveRow, relations: &[RelationRow], keep: bool) -> PgResult<()> {
        for relation in relations {
            swap::exchange(row.move_id, &copy::pair(relation)?, relation.twin, keep)?;
        }
        Ok(())
    }

    fn place(&self, row: &MoveRow, shard: i32) -> PgResult<Value> {
        moves::place_slot(row, shard)?;
        Ok(Value::Null)
    }

    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()> {
        super::Local.remove_capture(relation)
    }

    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()> {
        reap::drop_copies(row.move_id)
    }

    fn set_mirroring(&self, _row: &MoveRow, _relations: &[RelationRow], _mirroring: bool) -> PgResult<()> {
        Err(internal("copies on nodes are not mirrored"))
    }

    fn each_row(
        &self,
        _row: &MoveRow,
        _relation: &RelationRow,
        _stored: &[i16],
        _skip: &std::collections::HashSet<Vec<u8>>,
        _visit: &mut super::Visit,
    ) -> PgResult<usize> {
        Err(unsupported("copies on nodes are compared where they are"))
    }
}
