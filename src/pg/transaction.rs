//! The transaction that a statement runs in.

use super::report::{PgResult, unsupported};
use pgrx::pg_sys;

/// Whether the transaction sees what others commit meanwhile: it is READ COMMITTED.
pub fn sees_commits() -> bool {
    // SAFETY: a variable of the transaction's.
    unsafe { pg_sys::XactIsoLevel < pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// 0A000 unless the transaction sees what others commit: whoever waits for a lock and then reads must see
/// everything that was committed before the lock was granted. `what` is a whole sentence.
pub fn require_read_committed(what: &str) -> PgResult<()> {
    if sees_commits() {
        return Ok(());
    }
    Err(unsupported(what)
        .set_detail("Its snapshot may be older than rows that were committed before the table was locked.")
        .set_hint("SET TRANSACTION ISOLATION LEVEL READ COMMITTED;"))
}
