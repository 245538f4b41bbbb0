//! Engines: how the copies of a slot come to be and change places. One trait; `local` moves between
//! tablespaces of this server. postgres_fdw and Citus follow behind the same trait.

mod local;

pub use local::Local;

use crate::catalog::moves::MoveRow;
use crate::catalog::shadow::RelationRow;
use crate::pg::report::PgResult;
use foreshard_core::phase::Capabilities;
use pgrx::pg_sys;

/// What the mover asks of an engine. Every call runs inside the caller's transaction and is atomic
/// with the phase stored there.
pub trait Engine {
    /// Which phases it has.
    fn capabilities(&self) -> Capabilities;
    /// Reasons against moving these partitions to the row's tablespace; empty: none.
    fn preflight(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>>;
    /// Creates shadow, shadow indexes, log and capture trigger; the partitions are locked.
    fn install(&self, row: &MoveRow, partitions: &[pg_sys::Oid]) -> PgResult<()>;
    /// Fills the next shadow index; false when all are built.
    fn build_next_index(&self, row: &MoveRow) -> PgResult<bool>;
    /// Makes capture a mirror, or a mirror capture again; the partitions are locked against writers.
    fn set_mirroring(&self, row: &MoveRow, relations: &[RelationRow], mirroring: bool) -> PgResult<()>;
    /// Exchanges the storage of source and shadow; everything is locked. `keep_mirror`: what is written from
    /// now on is mirrored into the old storage; otherwise capture ends.
    fn swap(&self, row: &MoveRow, relations: &[RelationRow], keep_mirror: bool) -> PgResult<()>;
    /// Ends capture on one partition; it is locked.
    fn remove_capture(&self, relation: &RelationRow) -> PgResult<()>;
    /// Drops shadows and logs.
    fn drop_shadows(&self, row: &MoveRow) -> PgResult<()>;
}
