//! Who holds a table on its node: whom to wait for before anybody waits for us.

use super::{LOOK_MS, Outcome, shadow, short_lock};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::remote::copy;
use crate::pg::bgworker::{Failure, WorkResult, transaction};
use crate::pg::report::{PgResult, PgSqlErrorCode};
use crate::pg::wire::Bound;
use pgrx::pg_sys;

/// Least pause before looking again who holds a table there, ms.
const LOOK_AGAIN_MS: i64 = 50;

/// Whether an error only says that somebody holds a lock, here or on a node, for longer than we wait, or (who has read the table and now
/// waits for us to write to it) for as long as we do.
pub fn is_blocked(failure: &Failure) -> bool {
    use PgSqlErrorCode::{ERRCODE_LOCK_NOT_AVAILABLE, ERRCODE_T_R_DEADLOCK_DETECTED};
    matches!(failure.code, ERRCODE_LOCK_NOT_AVAILABLE | ERRCODE_T_R_DEADLOCK_DETECTED)
}

fn in_the_way(row: &MoveRow, writers: bool) -> PgResult<Option<String>> {
    for relation in shadow::relations(row.move_id)? {
        if let Some(who) = copy::pair(&relation)?.in_the_way(writers)? {
            return Ok(Some(who));
        }
    }
    Ok(None)
}

/// Looks, before anything is locked here, whether somebody holds a source on its node for long, autovacuum for example:
/// writers are not to wait for that. Some: it is waited for.
pub fn outlast(row: &MoveRow, attempt: u32) -> WorkResult<Option<Outcome>> {
    let _bound = Bound::set(LOOK_MS);
    transaction(|| {
        let who = in_the_way(row, false)?;
        if who.is_some() {
            moves::note(row.move_id, who.as_deref(), None, None)?;
        }
        Ok(who.map(|_| Outcome::Again(short_lock::backoff_ms(attempt).max(LOOK_AGAIN_MS))))
    })
}

/// A lock was not to be had here or there: says who has it, and when to come again.
pub fn report(row: &MoveRow, held: &[pg_sys::Oid], attempt: u32) -> WorkResult<Outcome> {
    short_lock::report_blocked(row.move_id, held, attempt)?;
    let _bound = Bound::set(LOOK_MS);
    transaction(|| match in_the_way(row, true)? {
        Some(who) => moves::note(row.move_id, Some(&who), None, None),
        None => Ok(()),
    })?;
    Ok(Outcome::Again(short_lock::backoff_ms(attempt)))
}
