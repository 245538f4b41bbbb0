//! Work inside a user's transaction that may fail without harm to it.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// What it did is part of the transaction.
    Well,
    /// Nothing of it is left.
    Failed(PgSqlErrorCode),
}

/// Runs `work` in a subtransaction with a snapshot (values may be fetched from toast, expressions evaluated).
/// Inside a transaction, not in parallel mode.
pub fn run(work: impl FnOnce()) -> Ended {
    // SAFETY: context and owner are those of before.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        before
    };
    let ended = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: the snapshot is popped again.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            work();
            pg_sys::PopActiveSnapshot();
            pg_sys::ReleaseCurrentSubTransaction();
        }
        Ended::Well
    }))
    .catch_others(|caught| {
        use pg_sys::panic::CaughtError::{ErrorReport, PostgresError, RustPanic};
        // SAFETY: the subtransaction is in progress or aborted.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        let (PostgresError(report) | ErrorReport(report) | RustPanic { ereport: report, .. }) = &caught;
        pgrx::debug1!("foreshard: given up inside a statement: {}", report.message());
        Ended::Failed(report.sql_error_code())
    })
    .execute();
    // SAFETY: what a subtransaction changed for its own time.
    unsafe {
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    ended
}
