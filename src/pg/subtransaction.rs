//! Work inside a user's transaction that may fail without harm to it.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::sync::OnceLock;

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
    run_telling(work, |_| {})
}

/// The same; a failure's message is handed on.
pub fn run_telling(work: impl FnOnce(), tell: impl FnOnce(&str)) -> Ended {
    let snapped = || {
        // SAFETY: the snapshot is popped again.
        unsafe {
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            work();
            pg_sys::PopActiveSnapshot();
        }
    };
    attempt(snapped, tell)
}

/// The same without a snapshot of its own; what `work` allocates lives as long as if its caller had.
pub fn run_here(work: impl FnOnce()) -> Ended {
    // SAFETY: the context of the caller outlives a subtransaction.
    let context = unsafe { pg_sys::CurrentMemoryContext };
    let here = || {
        // SAFETY: as above.
        unsafe { pg_sys::MemoryContextSwitchTo(context) };
        work();
    };
    attempt(here, |_| {})
}

fn attempt(work: impl FnOnce(), tell: impl FnOnce(&str)) -> Ended {
    let said = OnceLock::new();
    // SAFETY: context and owner are those of before.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        before
    };
    let ended = PgTryBuilder::new(AssertUnwindSafe(|| {
        work();
        // SAFETY: the subtransaction is in progress.
        unsafe { pg_sys::ReleaseCurrentSubTransaction() };
        Ended::Well
    }))
    .catch_others(|caught| {
        use pg_sys::panic::CaughtError::{ErrorReport, PostgresError, RustPanic};
        // SAFETY: the subtransaction is in progress or aborted.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        let (PostgresError(report) | ErrorReport(report) | RustPanic { ereport: report, .. }) = &caught;
        pgrx::debug1!("foreshard: given up inside a statement: {}", report.message());
        let _ = said.set(report.message().to_string());
        Ended::Failed(report.sql_error_code())
    })
    .execute();
    // SAFETY: what a subtransaction changed for its own time.
    unsafe {
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    if let Some(said) = said.get() {
        tell(said);
    }
    ended
}

/// Runs `work` in a subtransaction; when it fails, runs `after` outside of what was undone, and the error goes on.
pub fn run_or<R>(work: impl FnOnce() -> R, after: fn()) -> R {
    // SAFETY: context and owner are those of before.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(before.0);
        before
    };
    let result = PgTryBuilder::new(AssertUnwindSafe(|| {
        let result = work();
        // SAFETY: the subtransaction is in progress.
        unsafe { pg_sys::ReleaseCurrentSubTransaction() };
        result
    }))
    .catch_others(move |caught| {
        // SAFETY: the subtransaction is in progress or aborted; what comes next is its parent's.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        after();
        caught.rethrow()
    })
    .execute();
    // SAFETY: what a subtransaction changed for its own time.
    unsafe {
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    result
}

/// Runs `work`, which takes no time worth mentioning, without being cancelled meanwhile: who asked for that gets it as soon
/// as something else looks. An error of `work` must stay in it.
pub fn uncancelled<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: counters of this process; an ERROR sets them to 0, so the old value is set, not counted down to.
    unsafe {
        let before = pg_sys::QueryCancelHoldoffCount;
        pg_sys::QueryCancelHoldoffCount = before + 1;
        let result = work();
        pg_sys::QueryCancelHoldoffCount = before;
        result
    }
}
