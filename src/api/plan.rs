//! What foreshard would do.

use crate::catalog::decision::bytes_of;
use crate::pg::report::bad_argument;
use crate::pg::{guc, security};
use crate::planner;
use pgrx::JsonB;
use pgrx::datum::Interval;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

const MAX_HORIZON_S: i128 = 604_800;

/// Plans now and shows every step and every refusal; changes nothing.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn recommend() -> Result<
    TableIterator<
        'static,
        (
            name!(action, String),
            name!(slot_id, i64),
            name!(from_shard, Option<String>),
            name!(to_shard, Option<String>),
            name!(confidence, Option<f64>),
            name!(benefit, Option<f64>),
            name!(bytes, Option<i64>),
            name!(imbalance_before, Option<f64>),
            name!(imbalance_after, Option<f64>),
            name!(reason, Option<String>),
            name!(refusal, Option<String>),
            name!(advice, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let _owner = security::as_extension_owner()?;
    let decision = planner::decide(guc::FORECAST_HORIZON.get())?;
    let mut rows = Vec::new();
    for (step, verdict) in decision.plan.steps.iter().zip(&decision.verdicts) {
        let refusal = verdict.refusal;
        rows.push((
            "move".to_string(),
            step.segment,
            Some(decision.shard_name(step.from)),
            Some(decision.shard_name(step.to)),
            Some(verdict.stated),
            Some(step.benefit),
            bytes_of(step.segment, &decision.slots),
            Some(step.peak_before),
            Some(step.peak_after),
            Some(step.reason.clone()),
            refusal.map(|r| r.0.to_string()),
            refusal.map(|r| r.1.to_string()),
        ));
    }
    for refusal in &decision.plan.refusals {
        let shard = decision
            .slots
            .iter()
            .find(|s| s.slot_id == refusal.segment)
            .map(|s| decision.shard_name(s.shard_id));
        rows.push((
            "none".to_string(),
            refusal.segment,
            shard,
            None,
            None,
            None,
            bytes_of(refusal.segment, &decision.slots),
            None,
            None,
            None,
            Some(refusal.reason.as_str().to_string()),
            Some(refusal.reason.advice().to_string()),
        ));
    }
    for division in &decision.divisions {
        let shard = decision
            .slots
            .iter()
            .find(|s| s.slot_id == division.slot_id)
            .map(|s| decision.shard_name(s.shard_id));
        let (refusal, _) = decision.said_of(division);
        rows.push((
            division.action.as_str().to_string(),
            division.slot_id,
            shard,
            None,
            None,
            None,
            bytes_of(division.slot_id, &decision.slots),
            None,
            None,
            Some(division.reason.clone()),
            refusal.map(|r| r.0.to_string()),
            refusal.map(|r| r.1.to_string()),
        ));
    }
    Ok(TableIterator::new(rows))
}

/// The map of moves that balances the forecast over the horizon, with the least confidence among them and the
/// confidence of each slot; empty maps and NULL when nothing is worth moving. Feeds request_resharding().
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn predict_shard_assignment(
    horizon: default!(Option<Interval>, "NULL"),
) -> Result<
    TableIterator<
        'static,
        (name!(shard_assignment_map, JsonB), name!(confidence, Option<f64>), name!(confidences, JsonB)),
    >,
    ErrorReport,
> {
    let horizon_s = match horizon {
        None => guc::FORECAST_HORIZON.get(),
        Some(interval) => {
            let seconds = interval.as_micros() / 1_000_000;
            if !(1..=MAX_HORIZON_S).contains(&seconds) {
                return Err(bad_argument("horizon must be between 1 second and 7 days"));
            }
            seconds as i32
        }
    };
    let _owner = security::as_extension_owner()?;
    let wanted = planner::decide(horizon_s)?.confident();
    let json = |map| JsonB(serde_json::Value::Object(map));
    Ok(TableIterator::once((json(wanted.map), wanted.least, json(wanted.confidences))))
}
