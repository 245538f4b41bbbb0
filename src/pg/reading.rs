//! Somebody else's query inside a user's transaction: read-only, for a limited time, and undone whatever came of it.

use super::compat;
use super::local::Local;
use super::report::{PgResult, PgSqlErrorCode};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReportable;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caught {
    /// The time was over.
    pub timed_out: bool,
    /// SQLSTATE, five characters.
    pub sqlstate: String,
    /// The primary message.
    pub message: String,
}

/// Our time-out, once it is registered.
static TIMEOUT: Local<Option<u32>> = Local::new(None);
/// It went off.
static EXPIRED: AtomicBool = AtomicBool::new(false);

/// # Safety
/// A handler of a time-out: runs inside a signal handler.
unsafe extern "C-unwind" fn expire() {
    EXPIRED.store(true, Ordering::Relaxed);
    compat::cancel_own_statement();
}

/// The time-out, stopped when it goes.
struct Alarm(u32);

impl Alarm {
    fn set(limit_ms: i32) -> Alarm {
        let id = TIMEOUT.get().unwrap_or_else(|| {
            let id = compat::register_timeout(expire);
            TIMEOUT.set(Some(id));
            id
        });
        EXPIRED.store(false, Ordering::Relaxed);
        compat::enable_timeout(id, limit_ms.max(1));
        Alarm(id)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        compat::disable_timeout(self.0);
        if !std::thread::panicking() && EXPIRED.swap(false, Ordering::Relaxed) {
            // SAFETY: it went off after the last look at interrupts; nobody is to be cancelled any more.
            unsafe { pg_sys::QueryCancelPending = 0 };
        }
    }
}

/// Runs `work` in a read-only subtransaction that is rolled back in any case: locks, settings and temporary tables
/// of the query go as well. What belongs to the whole transaction is not caught: a cancel by the user or by
/// statement_timeout, serialization failures and deadlocks.
///
/// # Errors
/// What the query failed with.
pub fn look<T>(limit_ms: Option<i32>, work: impl FnOnce() -> PgResult<T>) -> Result<T, Caught> {
    // SAFETY: context and owner are those of before; the read-only flag is part of the subtransaction's state.
    let (context, owner) = unsafe {
        let before = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::XactReadOnly = true;
        pg_sys::MemoryContextSwitchTo(before.0);
        before
    };
    let restore = move || {
        // SAFETY: what a subtransaction changed for its own time.
        unsafe {
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::CurrentResourceOwner = owner;
        }
    };
    PgTryBuilder::new(AssertUnwindSafe(|| {
        let result = {
            let _alarm = limit_ms.map(Alarm::set);
            // An error that was returned is caught below like one that was raised.
            work().unwrap_or_report()
        };
        // SAFETY: the subtransaction is in progress, everything opened in it is closed.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        restore();
        Ok(result)
    }))
    .catch_others(move |error| {
        // SAFETY: the subtransaction is in progress or aborted.
        unsafe { pg_sys::RollbackAndReleaseCurrentSubTransaction() };
        restore();
        use pg_sys::panic::CaughtError::{ErrorReport, PostgresError};
        let (PostgresError(report) | ErrorReport(report)) = &error else { error.rethrow() };
        let code = report.sql_error_code();
        let cancelled = code == PgSqlErrorCode::ERRCODE_QUERY_CANCELED;
        let timed_out = cancelled && EXPIRED.swap(false, Ordering::Relaxed);
        let sqlstate = sqlstate(code);
        if (cancelled && !timed_out) || sqlstate.starts_with("40") {
            error.rethrow();
        }
        Err(Caught { timed_out, sqlstate, message: report.message().to_owned() })
    })
    .execute()
}

/// Runs `work` for a limited time; then it is cancelled (57014).
pub fn within<T>(limit_ms: i32, work: impl FnOnce() -> PgResult<T>) -> PgResult<T> {
    let _alarm = Alarm::set(limit_ms);
    work()
}

/// The five characters of a code.
pub fn sqlstate(code: PgSqlErrorCode) -> String {
    let packed = code as i32;
    (0..5).map(|place| char::from((((packed >> (6 * place)) & 0x3F) as u8) + b'0')).collect()
}

/// The code of five characters.
pub fn code_of(sqlstate: &str) -> PgSqlErrorCode {
    let packed =
        sqlstate.bytes().take(5).enumerate().fold(0_i32, |packed, (place, c)| {
            packed | (i32::from(c.wrapping_sub(b'0') & 0x3F) << (6 * place))
        });
    PgSqlErrorCode::from(packed as isize)
}
