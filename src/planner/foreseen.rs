//! What the keeper foresaw in its last plan. Whoever asks for a plan plans with that as long as a plan of the keeper would know
//! nothing else, so that both say the same, and reads a row per slot instead of one per slot and bucket.

use super::reliance::Reliance;
use super::{Curve, Decision, Foresight, MAX_HISTORY, candidates};
use crate::catalog::foresight::{self, Last, Loads, Stamp};
use crate::catalog::{decision, heat};
use crate::pg::report::PgResult;
use crate::pg::{bgworker, guc};
use foreshard_core::forecast::ForecastOptions;
use std::collections::{BTreeMap, HashSet};

/// Intervals of planning after which a keeper that has not planned again is not planning any more.
const PATIENCE_PLANS: f64 = 2.0;
/// A plan itself takes some time, s.
const PLAN_TAKES_S: f64 = 1.0;

/// The end of the last bucket, s since 1970.
fn end_s(now_s: f64, lead_s: i32) -> i64 {
    let step = i64::from(lead_s.max(1));
    (now_s as i64).div_euclid(step) * step
}

/// The beginning of what is read of the past, s since 1970.
fn since_s(end_s: i64, lead_s: i32) -> i64 {
    end_s - i64::from(lead_s) * MAX_HISTORY as i64
}

/// What a plan of the keeper is about to be made from; None in a session. Before it is read: what changes meanwhile then
/// makes sessions read it themselves.
pub(super) fn stamp(
    horizon_s: i32,
    lead_s: i32,
    now_s: f64,
    options: &ForecastOptions,
) -> PgResult<Option<Stamp>> {
    if !bgworker::is_ours() {
        return Ok(None);
    }
    let end_s = end_s(now_s, lead_s);
    Ok(Some(Stamp {
        horizon_s,
        season_s: options.season_s as i32,
        lead_s,
        end_s,
        layout: heat::layout(lead_s)?,
        told: foresight::told(since_s(end_s, lead_s))?,
    }))
}

/// What the keeper foresaw; None: it has not yet, or what it is to be made from is not what it was.
pub(super) fn last(horizon_s: i32, options: &ForecastOptions) -> PgResult<Option<Foresight>> {
    let Some(last) = foresight::last()? else { return Ok(None) };
    if !is_of_now(&last, horizon_s, options)? {
        return Ok(None);
    }
    let forecasts = decision::forecasts(options.interval_level)?;
    let known: HashSet<i64> = forecasts.iter().map(|forecast| forecast.slot_id).collect();
    let mut curves = BTreeMap::new();
    for loads in foresight::loads(&last)? {
        let curve = curve_of(&loads).filter(|_| known.contains(&loads.slot_id));
        let Some(curve) = curve else { return Ok(None) };
        curves.insert(loads.slot_id, curve);
    }
    if curves.is_empty() {
        return Ok(None);
    }
    let lead_s = last.stamp.lead_s;
    Ok(Some(Foresight { forecasts, curves, reliance: Reliance::read(lead_s)?, lead_s, stamp: None }))
}

/// Whether the keeper is at it, and would begin with nothing else now.
fn is_of_now(last: &Last, horizon_s: i32, options: &ForecastOptions) -> PgResult<bool> {
    let stamp = &last.stamp;
    let patience_s = PATIENCE_PLANS * f64::from(guc::PLAN_INTERVAL.get()) + PLAN_TAKES_S;
    // The bucket that has just ended is known to the keeper's next plan.
    let behind_s = end_s(bgworker::now_s(), stamp.lead_s) - stamp.end_s;
    let is_new =
        (0.0..=patience_s).contains(&last.age_s) && (0..=i64::from(stamp.lead_s)).contains(&behind_s);
    let is_asked = stamp.horizon_s == horizon_s
        && stamp.season_s == options.season_s as i32
        && candidates(horizon_s).contains(&stamp.lead_s);
    Ok(is_new
        && is_asked
        && heat::layout(stamp.lead_s)? == stamp.layout
        && foresight::told(since_s(stamp.end_s, stamp.lead_s))? == stamp.told)
}

fn curve_of(loads: &Loads) -> Option<Curve> {
    let mut curves = loads.loads.chunks_exact(loads.leads.max(1)).map(<[f64]>::to_vec);
    Some(Curve { mean: curves.next()?, futures: curves.collect() })
}

/// Stores what the keeper foresaw for its plan.
pub(super) fn store(decision: &Decision) -> PgResult<()> {
    let Some(stamp) = &decision.stamp else { return Ok(()) };
    let known: HashSet<i64> = decision.forecasts.iter().map(|forecast| forecast.slot_id).collect();
    // Slots without a forecast count with what they carry now, which is looked at again.
    let segments = decision.pools.iter().flat_map(|pool| &pool.segments);
    let all: Vec<Loads> = segments
        .filter(|segment| known.contains(&segment.id))
        .map(|segment| Loads {
            slot_id: segment.id,
            leads: segment.curve.len(),
            loads: segment.curve.iter().chain(segment.futures.iter().flatten()).copied().collect(),
        })
        .collect();
    foresight::store(stamp, &all)
}
