//! Engines: how the copies of a slot come to be and change places. One trait; `local` moves between
//! tablespaces of this server, `split` replaces a slot by several, `place` gives keys of one partitions of their
//! own, `join` gives a table the slots of a group, `undistribute` makes one ordinary table of all slots, `foreign` moves to, from and between other servers by postgres_fdw. What Citus
//! moves needs none of this: see `mover/citus.rs`.

mod foreign;
mod join;
mod local;
mod merge;
mod place;
mod split;
mod undistribute;

pub use foreign::Foreign;
pub use join::Join;
pub use local::Local;
pub use merge::Merge;
pub use place::Place;
pub use split::Split;
pub use undistribute::Undistribute;

use crate::catalog::moves::MoveRow;
use crate::catalog::shadow::{self, RelationRow};
use crate::pg::digest::{self, Row};
use crate::pg::guc;
use crate::pg::report::{PgResult, busy};
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;
use serde_json::Value;
use std::collections::HashSet;

/// Most keys that a comparison leaves out because they changed while it began.
pub const MAX_SKIPPED_KEYS: usize = 200_000;

/// Which of two copies a row is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The source.
    Source,
    /// The copy.
    Copy,
}

/// What a comparison does with a row: its side, the part that it belongs to, and its hashes.
pub type Visit<'a> = dyn FnMut(Side, usize, &Row) + 'a;

/// What the mover asks of an engine. Every call runs inside the caller's transaction and is atomic
/// with the phase stored there.
pub trait Engine {
    /// Which phases it has.
    fn capabilities(&self) -> Capabilities;
    /// The partitions that it copies, ascending.
    fn partitions(&self, row: &MoveRow) -> PgResult<Vec<pg_sys::Oid>> {
        shadow::partitions_of_move(row.move_id, row.slot_id)
    }
    /// Reasons against moving these partitions to the row's tablespace; empty: none.
    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>>;
    /// Makes what can be made before anybody is locked out.
    fn prepare(&self, _row: &MoveRow, _partitions: &[pg_sys::Oid]) -> PgResult<()> {
        Ok(())
    }
    /// Partitions that begin to be captured, or mirrored, under one lock, so that nobody waits for the work on all.
    fn at_once(&self) -> usize {
        usize::MAX
    }
    /// Creates shadow, shadow indexes, log and capture trigger, as far as they are not there; the partitions
    /// are locked. False: they are not what was prepared for.
    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<bool>;
    /// Fills the next shadow index; false when all are built.
    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool>;
    /// Makes capture a mirror, or a mirror capture again; the partitions are locked against writers.
    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()>;
    /// Visits the rows of both copies of a partition by the transaction's snapshot, without the keys in `skip`; how many
    /// parts there are. The rows of a part must be the same on both sides.
    fn each_row(
        &self,
        row: &MoveRow,
        relation: &RelationRow,
        stored: &[i16],
        skip: &HashSet<Vec<u8>>,
        visit: &mut Visit,
    ) -> PgResult<usize>;
    /// All were equal, with so many rows in each part.
    fn verified(&self, _row: &MoveRow, _rows: &[u64]) -> PgResult<()> {
        Ok(())
    }
    /// Runs, without any effect, what the exchange will run under its locks, so that it is planned by then.
    fn rehearse(&self, _row: &MoveRow, _relations: &[RelationRow]) -> PgResult<()> {
        Ok(())
    }
    /// The relations that users hold, in the order in which they lock them: nobody may be at them while the
    /// copies change places.
    fn held_first(&self, _row: &MoveRow, relations: &[RelationRow]) -> PgResult<Vec<pg_sys::Oid>> {
        Ok(relations.iter().map(|r| r.source).collect())
    }
    /// Who would make the locks useless, in words: it is asked before any is taken, and again by [`hold_rest`](Self::hold_rest).
    fn in_the_way(&self, _relations: &[RelationRow]) -> PgResult<Option<String>> {
        Ok(None)
    }
    /// Locks everything else that the exchange touches, without queueing; false: not now.
    fn hold_rest(&self, row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool>;
    /// Whether source and copy still fit together.
    fn fits(&self, row: &MoveRow, relation: &RelationRow) -> PgResult<bool>;
    /// An index of the table that a source, and so its copy, does not have, in words.
    fn lacks_index(&self, _relation: &RelationRow) -> PgResult<Option<String>> {
        Ok(None)
    }
    /// Exchanges source and shadow; everything is locked. `keep_mirror`: what is written from
    /// now on is mirrored into the old storage; otherwise capture ends.
    fn swap(&self, row: &MoveRow, relations: &[RelationRow], keep_mirror: bool) -> PgResult<()>;
    /// Notes where the slot is now; for the history.
    fn place(&self, row: &MoveRow, shard: i32) -> PgResult<Value>;
    /// Why what waits, built ahead, takes more room than may be taken; None: it does not.
    fn keeps_too_much(&self, _row: &MoveRow) -> PgResult<Option<String>> {
        Ok(None)
    }
    /// Ends capture on one partition; it is locked.
    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()>;
    /// Drops shadows and logs.
    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()>;
    /// The last work of a move that has succeeded, once; no user is locked out.
    fn settle(&self, _row: &MoveRow) -> PgResult<()> {
        Ok(())
    }
}

/// Whether reads are to be sent to a copy before the cutover. A list of steps that cannot be read is told by the phase itself.
fn wants_canary() -> bool {
    guc::CANARY_STEPS.get().is_some_and(|steps| !steps.to_bytes().trim_ascii().is_empty())
}

/// What a comparison of several sources with their copies leaves out: `skip`, and every key that the log of one of them
/// has.
///
/// # Errors
/// 55006 when those are too many.
fn skip_logged(skip: &HashSet<Vec<u8>>, sources: &[&RelationRow]) -> PgResult<HashSet<Vec<u8>>> {
    let mut all = skip.clone();
    for source in sources {
        let logged = digest::logged_keys(source.log, source.key.len(), MAX_SKIPPED_KEYS)?;
        all.extend(logged.ok_or_else(|| busy("too many keys changed while the copies were compared"))?);
    }
    Ok(all)
}

/// The engine of a move.
pub fn of(row: &MoveRow) -> &'static dyn Engine {
    if row.is_foreign {
        return &Foreign;
    }
    if row.is_place {
        return &Place;
    }
    if row.joins {
        return &Join;
    }
    if row.undistributes {
        return &Undistribute;
    }
    match (row.is_split, row.is_merge(), row.prepare) {
        (true, _, true) => &Split { prepare: true },
        (true, _, false) => &Split { prepare: false },
        // Who undoes a split wants it undone.
        (_, true, true) => &Merge { prepare: true, canary: false },
        (_, true, false) if row.way_back_of.is_some() => &Merge { prepare: false, canary: false },
        (_, true, false) => &Merge { prepare: false, canary: true },
        (false, false, _) => &Local,
    }
}
