//! Partitions that came home from a node while writers waited whose snapshots are older than the rows (docs/decisions/0019).
//!
//! Such a row has the id of the carrier's transaction that replayed it. A snapshot that does not see the last of them would miss some, so
//! a statement that reads the partition by one is refused (40001). What reads a table by a transaction's snapshot comes by the
//! executor or is COPY TO; the rest (indexes, checks of constraints, ANALYZE, logical replication) takes the newest rows or a snapshot of its own.
//!
//! A barrier is raised before the partition gets its place, and stays until no older snapshot is left: then it keeps nobody out. So it
//! does no harm when nothing came of the exchange, and whoever raised it may die.

use super::glance::GLANCE;
use super::report::{PgSqlErrorCode, error};
use super::{bgworker, lock, region, shmem};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// Whether any partition of any database is kept from older snapshots: the first thing that a statement looks at. Who raised it has
/// committed its exchange, and let go of its locks, since: so whoever can read the partition sees it.
#[inline]
pub(super) fn any() -> bool {
    GLANCE.gates.get().any_barrier()
}

fn key_of(partition: pg_sys::Oid) -> u64 {
    region::segment_key(bgworker::database(), partition.to_u32())
}

/// Keeps a partition of this database from snapshots that do not see a committed transaction. False: there is no room for that.
pub fn raise(partition: pg_sys::Oid, xid: u32) -> bool {
    let Some(region) = region::get() else { return false };
    shmem::with(|_| region.barriers().raise(key_of(partition), xid)) == Some(true)
}

/// Lowers what no snapshot is too old for any more: of this worker's database, or of all when it has none. Outside a transaction: its
/// own snapshot is not looked at.
pub fn tidy() {
    let Some(region) = region::get().filter(|_| any()) else { return };
    let database = bgworker::database();
    for (key, xid) in region.barriers().all() {
        let concerns_us = database == 0 || (key >> 32) as u32 == database;
        if concerns_us && lock::older_snapshots(xid, database == 0).is_empty() {
            shmem::with(|_| region.barriers().lower(key, xid));
        }
    }
}

/// Whether a snapshot would miss rows of a relation.
///
/// # Safety
/// `snapshot` must be null or valid.
unsafe fn misses(relation: pg_sys::Oid, snapshot: pg_sys::Snapshot) -> bool {
    let Some(xid) = region::get().and_then(|region| region.barriers().before(key_of(relation))) else {
        return false;
    };
    // SAFETY: as promised by the caller; what may be in progress by a snapshot of this kind is in it.
    unsafe {
        !snapshot.is_null()
            && (*snapshot).snapshot_type == pg_sys::SnapshotType::SNAPSHOT_MVCC
            && pg_sys::XidInMVCCSnapshot(pg_sys::TransactionId::from_inner(xid), snapshot)
    }
}

/// A statement begins, its relations are locked: refuses it when its snapshot would miss rows. Parallel workers have their leader's.
///
/// # Safety
/// `query` must be valid and not started yet. Called by the executor's hook before the original, which holds plain data only:
/// an ERROR passes it.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn begins(query: *mut pg_sys::QueryDesc, eflags: i32) {
    // SAFETY: a variable of this process, -1 except in parallel workers.
    let is_worker = unsafe { pg_sys::ParallelWorkerNumber } >= 0;
    let only_explains = eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 != 0;
    if is_worker || only_explains {
        return;
    }
    // SAFETY: as promised by the caller; a list of oids, those of partitions that the planner left included.
    let missed = unsafe {
        let relations = (*(*query).plannedstmt).relationOids;
        let count = if relations.is_null() { 0 } else { (*relations).length.max(0) as usize };
        (0..count)
            .map(|at| (*(*relations).elements.add(at)).oid_value)
            .find(|relation| misses(*relation, (*query).snapshot))
    };
    if let Some(partition) = missed {
        came_later(partition).report(PgLogLevel::ERROR);
    }
}

/// A command begins: COPY TO of a table reads it by the active snapshot, past the executor.
///
/// # Safety
/// `statement` must be null or a parse tree node, in a running transaction. Called as [`begins`].
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn copies(statement: *mut pg_sys::Node) {
    // SAFETY: the node is read as the struct its tag names; the name is looked up and the table locked as COPY does it next; it says
    // itself what is not there.
    let missed = unsafe {
        if statement.is_null() || (*statement).type_ != pg_sys::NodeTag::T_CopyStmt {
            return;
        }
        let copy = &*statement.cast::<pg_sys::CopyStmt>();
        if copy.is_from || copy.relation.is_null() || !pg_sys::ActiveSnapshotSet() {
            return;
        }
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        let table = pg_sys::RangeVarGetRelidExtended(
            copy.relation,
            lock::ACCESS_SHARE,
            flags,
            None,
            std::ptr::null_mut(),
        );
        misses(table, pg_sys::GetActiveSnapshot()).then_some(table)
    };
    if let Some(partition) = missed {
        came_later(partition).report(PgLogLevel::ERROR);
    }
}

/// 40001: a partition's rows are newer than a snapshot.
fn came_later(partition: pg_sys::Oid) -> ErrorReport {
    // SAFETY: a look-up in a running transaction; what is found is this call's own copy, null when it is gone.
    let name = unsafe {
        let found = pg_sys::get_rel_name(partition);
        if found.is_null() {
            partition.to_u32().to_string()
        } else {
            std::ffi::CStr::from_ptr(found).to_string_lossy().into_owned()
        }
    };
    error(
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!("could not serialize access to partition \"{name}\""),
    )
    .set_detail(
        "Its slot came to this server after the snapshot was taken, which does not see all of its rows.",
    )
    .set_hint("The transaction might succeed if retried.")
}
