//! After a swap: whether statements fare worse on the new copy than before, so that the swap is undone.

use crate::catalog::{moves, record_event};
use crate::mover::canary::latencies;
use crate::pg::bgworker::{WorkResult, transaction};
use crate::pg::guc;
use crate::pg::route::{self, MoveRoutes};
use foreshard_core::latency::{fails_more, slowdown};
use foreshard_core::shared::{Arm, RouteStats};
use serde_json::json;

/// Looks at every move whose old copy is kept, and asks for a rollback where statements on the slot have become
/// slower (or fail more often) than before and than the other statements explain.
pub fn look() -> WorkResult<()> {
    if !route::any() {
        return Ok(());
    }
    route::keep_only(&transaction(moves::unfinished)?);
    let ratio = guc::MAX_SLOWDOWN.get();
    if ratio <= 0.0 {
        return Ok(());
    }
    for (move_id, slot_id) in transaction(moves::watched)? {
        let Some(stats) = MoveRoutes::of(move_id).and_then(|routes| routes.stats()) else { continue };
        let Some(why) = regression(stats, ratio) else { continue };
        transaction(|| {
            let fared = |arm| latencies(&stats.arm(arm).read());
            let detail = json!({
                "reason": why, "before": fared(Arm::Before), "after": fared(Arm::After),
                "others_before": fared(Arm::OthersBefore), "others_after": fared(Arm::OthersAfter),
            });
            record_event("regression", Some(move_id), Some(slot_id), detail)?;
            moves::note(move_id, None, Some(&why), None)?;
            moves::request_rollback(move_id).map(drop)
        })?;
    }
    Ok(())
}

/// Why the swap should be undone, if so.
fn regression(stats: &RouteStats, ratio: f64) -> Option<String> {
    let read = |arm| stats.arm(arm).read();
    let (before, after) = (read(Arm::Before), read(Arm::After));
    if fails_more(&before, &after) {
        return Some("statements on the slot fail more often than before the move".to_string());
    }
    let (then, now) = (read(Arm::OthersBefore), read(Arm::OthersAfter));
    let slower = slowdown(&before, &after, ratio, Some((&then, &now)))?;
    let what = if slower.quantile > 0.5 { "99th percentile" } else { "median" };
    Some(format!(
        "statements on the slot are slower than before the move: {what} of {:.3} ms against {:.3} ms",
        slower.test_ms, slower.base_ms
    ))
}
