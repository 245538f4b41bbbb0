//! Whether production is well enough for more copying and replaying: replicas, WAL, old snapshots, latency.

use crate::catalog::moves::{self, MoveRow};
use crate::catalog::waiting;
use crate::pg::bgworker::{self, WorkResult, transaction};
use crate::pg::guc;
use crate::pg::local::LocalBox;
use crate::pg::report::PgResult;
use crate::pg::route;
use foreshard_core::latency::Counts;

/// Pause before the next look while production is not well, ms.
const HELD_BACK_MS: i64 = 250;
/// Rates and latencies are taken over at least so long, s.
const WINDOW_S: f64 = 1.0;
/// Statements that a latency is taken of.
const LEAST_STATEMENTS: u64 = 50;

/// What was known at the beginning of the present window.
struct Window {
    since_s: f64,
    wal_bytes: f64,
    statements: Counts,
    /// What the last whole window said.
    verdict: Option<String>,
}

static WINDOW: LocalBox<Window> = LocalBox::new();

/// How long to wait before the next look, and says why in the progress view; None: go on.
pub fn held_back(row: &MoveRow) -> WorkResult<Option<i64>> {
    transaction(|| {
        let who = reason()?;
        match &who {
            Some(_) => moves::note(row.move_id, who.as_deref(), None, None)?,
            None => moves::waits_no_more(row.move_id)?,
        }
        Ok(who.map(|_| HELD_BACK_MS))
    })
}

fn reason() -> PgResult<Option<String>> {
    let lag_kib = i64::from(guc::MAX_REPLICA_LAG.get());
    if lag_kib > 0
        && let Some(who) = waiting::lagging_replica(lag_kib * 1024)?
    {
        return Ok(Some(who));
    }
    let age = i64::from(guc::MAX_XMIN_AGE.get());
    if age > 0
        && let Some(who) = waiting::oldest_xmin(age)?
    {
        return Ok(Some(who));
    }
    if guc::MAX_WAL_RATE.get() == 0 && guc::MAX_P99.get() == 0 {
        return Ok(None);
    }
    let (now_s, wal_bytes, statements) = (bgworker::now_s(), waiting::wal_bytes()?, route::statements());
    let begin = || Window { since_s: now_s, wal_bytes, statements: statements.clone(), verdict: None };
    Ok(WINDOW.with(begin, |window| judge(window, now_s, wal_bytes, &statements)).flatten())
}

/// A new verdict at the end of every window; until then the last one holds.
fn judge(window: &mut Window, now_s: f64, wal_bytes: f64, statements: &Counts) -> Option<String> {
    let elapsed_s = now_s - window.since_s;
    if elapsed_s >= WINDOW_S {
        let wal_kib_s = (wal_bytes - window.wal_bytes) / elapsed_s / 1024.0;
        let fresh = statements.since(&window.statements);
        let p99_ms = fresh.quantile_ms(0.99).filter(|_| fresh.total() >= LEAST_STATEMENTS);
        let (rate_limit, p99_limit) = (f64::from(guc::MAX_WAL_RATE.get()), f64::from(guc::MAX_P99.get()));
        window.verdict = if rate_limit > 0.0 && wal_kib_s > rate_limit {
            Some(format!("the server writes {wal_kib_s:.0} kB of WAL per second"))
        } else {
            let slow = p99_ms.filter(|ms| p99_limit > 0.0 && *ms > p99_limit);
            slow.map(|ms| format!("the 99th percentile of statements is {ms:.1} ms"))
        };
        (window.since_s, window.wal_bytes, window.statements) = (now_s, wal_bytes, statements.clone());
    }
    window.verdict.clone()
}
