//! Short locks on user tables: tried without queueing; only after several failures queued, for less
//! than half of `foreshard.max_lock_time`, and never behind a holder that is already older than that.

use crate::catalog::{moves, waiting};
use crate::pg::bgworker::WorkResult;
use crate::pg::report::PgResult;
use crate::pg::{bgworker, guc, lock, spi};
use pgrx::pg_sys;

/// Attempts without queueing before one that queues.
const POLITE_ATTEMPTS: u32 = 4;

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
