//! Short locks on user tables: tried without queueing; only after several failures queued, for less
//! than half of `foreshard.max_lock_time`, and never behind a holder that is already older than that.

use crate::catalog::{moves, waiting};
use crate::pg::bgworker::WorkResult;
use crate::pg::report::{PgResult, PgSqlErrorCode, error, notice};
use crate::pg::subtransaction::{self, Ended};
use crate::pg::{bgworker, guc, lock, security, spi};
use pgrx::{PgLogLevel, pg_sys};

/// Attempts without queueing before one that queues.
const POLITE_ATTEMPTS: u32 = 4;
/// An attempt that queues: where others wait for us already, and would be asked to wait for nothing.
pub const QUEUEING: u32 = POLITE_ATTEMPTS - 1;

/// Takes `mode` on all relations in the current transaction; false: not now, end the transaction.
/// A queued attempt may also raise 55P03.
pub fn try_lock(relations: &[pg_sys::Oid], mode: i32, attempt: u32) -> PgResult<bool> {
    let wait_ms = (guc::MAX_LOCK_TIME.get() / 2 / relations.len().max(1) as i32).max(1);
    // Bounds every wait of the transaction from here on: those below, and any other lock that is taken
    // while this one is held (a catalog row somebody else is changing, for example). Autovacuum yields
    // when a waiter's deadlock check finds it in the way; let that be soon.
    spi::set_local("deadlock_timeout", &format!("{}ms", (wait_ms / 2).max(1)))?;
    spi::set_local("lock_timeout", &format!("{wait_ms}ms"))?;
    if lock::try_lock_all(relations, mode) {
        return Ok(true);
    }
    if attempt % POLITE_ATTEMPTS != POLITE_ATTEMPTS - 1 {
        return Ok(false);
    }
    let bound_ms = f64::from(guc::MAX_LOCK_TIME.get());
    if waiting::oldest_holder_ms(relations)?.is_some_and(|age| age > bound_ms) {
        return Ok(false);
    }
    lock::lock_all(relations, mode);
    Ok(true)
}

/// Says in the progress view who is in the way, and counts the attempt.
pub fn report_blocked(move_id: i64, relations: &[pg_sys::Oid], attempt: u32) -> WorkResult<()> {
    bgworker::transaction(|| {
        moves::count_lock_attempt(move_id)?;
        if attempt.is_multiple_of(POLITE_ATTEMPTS) {
            let who = waiting::blockers(relations)?;
            moves::note(move_id, who.as_deref(), None, None)?;
        }
        Ok(())
    })
}

/// Pause before the next attempt, ms: short at first, because on a busy table the gap between two
/// writers is short; longer when somebody sits on the table.
pub fn backoff_ms(attempt: u32) -> i64 {
    match attempt {
        0..=31 => 5 + i64::from(attempt),
        32..=127 => 100,
        _ => 500,
    }
}

/// Pause between attempts of a user's session, ms.
const SESSION_PAUSE_MS: f64 = 20.0;
/// Attempts of a user's session between two notices of who is in the way.
const NOTICE_ATTEMPTS: u32 = 64;

/// Takes `mode` on `relations` and SHARE ROW EXCLUSIVE on `others` for a user's statement, as [`try_lock`]
/// does it, until it has them all: between attempts it holds none. Returns the session's lock_timeout, which bounds every further wait of the transaction until it is set again.
///
/// # Errors
/// What cancels a statement.
pub fn lock_in_session(relations: &[pg_sys::Oid], mode: i32, others: &[pg_sys::Oid]) -> PgResult<String> {
    let theirs = spi::one::<String>("SELECT pg_catalog.current_setting('lock_timeout')", &[])?;
    for attempt in 0_u32.. {
        if try_in_session(relations, mode, others, attempt)? {
            break;
        }
        if attempt % NOTICE_ATTEMPTS == NOTICE_ATTEMPTS - 1 {
            let _guard = security::as_extension_owner()?;
            let all: Vec<pg_sys::Oid> = relations.iter().chain(others).copied().collect();
            if let Some(who) = waiting::blockers(&all)? {
                notice(&format!("waiting for {who}"));
            }
        }
        spi::run("SELECT pg_catalog.pg_sleep($1 / 1000)", &[SESSION_PAUSE_MS.into()])?;
    }
    spi::set_local("lock_timeout", &format!("{}ms", (guc::MAX_LOCK_TIME.get() / 2).max(1)))?;
    Ok(theirs.unwrap_or_default())
}

/// One attempt, in a subtransaction: whoever does not get every lock gives back those it has.
fn try_in_session(
    relations: &[pg_sys::Oid],
    mode: i32,
    others: &[pg_sys::Oid],
    attempt: u32,
) -> PgResult<bool> {
    let _guard = security::as_extension_owner()?;
    let mut failed = None;
    let ended = subtransaction::run(|| {
        let locked = try_lock(relations, mode, attempt)
            .map(|locked| locked && lock::try_lock_all(others, lock::SHARE_ROW_EXCLUSIVE));
        match locked {
            Ok(true) => {}
            Ok(false) => {
                error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "not now").report(PgLogLevel::ERROR);
            }
            Err(report) => failed = Some(report),
        }
    });
    match (ended, failed) {
        (_, Some(report)) => Err(report),
        (Ended::Well, None) => Ok(true),
        (
            Ended::Failed(
                PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE | PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED,
            ),
            None,
        ) => Ok(false),
        (Ended::Failed(code), None) => {
            Err(error(code, "canceling statement while it waited for a lock on the table"))
        }
    }
}
