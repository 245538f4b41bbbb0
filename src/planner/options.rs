//! What the settings say to the planner.

use crate::catalog::decision;
use crate::pg::guc;
use crate::pg::report::PgResult;
use foreshard_core::placement::{Carried, Pace, PlanOptions, fixed_s};

/// Bytes per second of a move before any was measured.
const USUAL_RATE: f64 = 20e6;
/// What a move takes beside its bytes and the canary, s.
const OVERHEAD_S: f64 = 5.0;
/// By how much a move may take longer than expected.
const MARGIN: f64 = 1.5;

/// Bytes of a copy that cross to a node in one round trip: a batch of a thousand rows of usual length.
const BATCH_BYTES: f64 = 200_000.0;
/// Round trips of a move whatever its size: what is made, asked and locked there, verification and cutover.
const ROUND_TRIPS: f64 = 100.0;

/// A round trip as plans know it: the nearest power of two, ms, so that nodes that are about equally far are equally far, whatever the last
/// health check measured.
pub fn round_trip_ms(measured: Option<f64>) -> f64 {
    measured.filter(|ms| ms.is_finite() && *ms > 0.0).map_or(0.0, |ms| ms.log2().round().exp2())
}

/// The planner's options as the settings say.
pub fn plan_options(horizon_s: i32) -> PlanOptions {
    PlanOptions {
        imbalance_high: guc::IMBALANCE_HIGH.get(),
        imbalance_low: guc::IMBALANCE_LOW.get().min(guc::IMBALANCE_HIGH.get()),
        min_hot_buckets: guc::HOT_BUCKETS.get().max(0) as u32,
        move_cost_per_mib: guc::MOVE_COST_PER_MB.get(),
        payback_s: f64::from(horizon_s),
        foresight: match guc::FORESIGHT.get() {
            never if never <= 0.0 => f64::INFINITY,
            share => share,
        },
        ..PlanOptions::default()
    }
}

/// How fast moves are, of slots of Citus or of others.
pub fn pace(lead_s: i32, is_citus: bool) -> PgResult<Pace> {
    let steps = guc::CANARY_STEPS.get().map_or(0, |steps| steps.to_string_lossy().matches(',').count() + 1);
    let carried = if is_citus {
        Carried::ByCitus { is_watched: guc::ROLLBACK_WINDOW.get() > 0 && guc::MAX_SLOWDOWN.get() > 0.0 }
    } else {
        Carried::Here { canary_steps: steps }
    };
    Ok(Pace {
        lead_s: lead_s.max(1) as u32,
        bytes_per_s: decision::move_rate()?.unwrap_or(USUAL_RATE),
        fixed_s: fixed_s(carried, OVERHEAD_S, f64::from(guc::CANARY_DWELL.get()) / 1e3),
        // Citus makes one after the other.
        concurrent: if is_citus { 1 } else { guc::MAX_CONCURRENT_MOVES.get().max(1) as usize },
        margin: MARGIN,
        batch_bytes: BATCH_BYTES,
        round_trips: ROUND_TRIPS,
    })
}
