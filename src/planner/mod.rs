//! From observed rows to decisions: load history → forecasts → load curves → plan. Reads through
//! `catalog`, thinks in `core`, writes nothing.

mod models;

use crate::catalog::{colocation, decision, event, heat};
use crate::pg::report::{PgResult, internal};
use crate::pg::{bgworker, guc};
use foreshard_core::forecast::{ForecastOptions, Series};
use foreshard_core::placement::{Hold, Plan, PlanOptions, Segment, Shard, plan};
use std::collections::BTreeMap;

/// Most leads a forecast has: enough to shape a curve, few enough to store for thousands of slots.
const MAX_LEADS: i32 = 24;
/// Most buckets of history a fit reads per slot (four weeks of hours, a day of two-minute buckets).
const MAX_HISTORY: usize = 2016;
/// Sampled futures per slot, behind every confidence.
const FUTURES: u64 = 64;
/// Forecasts are reproducible: the seed depends on nothing but slot and sample.
const SEED: u64 = 0x5EED_F02E;

/// What one round of thinking came to.
pub struct Decision {
    /// Forecast per slot; slots with too little history have none.
    pub forecasts: Vec<decision::SlotForecast>,
    /// Nominal coverage of the intervals.
    pub interval_level: f64,
    /// Slots as they were.
    pub slots: Vec<decision::SlotRow>,
    /// Shards as they were.
    pub shards: Vec<colocation::ShardRow>,
    /// Steps and refusals.
    pub plan: Plan,
}

/// Resolutions of the history from fine to coarse, seconds.
fn resolutions() -> Vec<i32> {
    let bucket = guc::BUCKET.get();
    std::iter::once(bucket).chain(heat::ROLL_UPS_S.into_iter().filter(|r| *r > bucket)).collect()
}

/// The finest resolution that covers the horizon in [`MAX_LEADS`] leads, and finer ones to fall back to
/// while the history is young.
fn candidates(horizon_s: i32) -> Vec<i32> {
    let all = resolutions();
    let wanted = all.iter().position(|r| horizon_s <= r * MAX_LEADS).unwrap_or(all.len() - 1);
    all[..=wanted].iter().rev().copied().collect()
}

/// Complete buckets of every slot at one resolution, gaps as None, with the special events until the horizon.
fn series(resolution_s: i32, now_s: f64, horizon_s: i32) -> PgResult<BTreeMap<i64, Series>> {
    let step = i64::from(resolution_s);
    // The bucket under way is left out: it is not complete.
    let end = (now_s / resolution_s as f64).floor() as i64 * step;
    let since = end - step * MAX_HISTORY as i64;
    let mut all: BTreeMap<i64, Series> = BTreeMap::new();
    for (slot_id, at_s, cost) in heat::history(resolution_s, since as f64)? {
        let at_s = at_s.div_euclid(step) * step;
        if at_s >= end {
            continue;
        }
        let entry = all.entry(slot_id).or_insert_with(|| Series {
            start_s: at_s,
            step_s: resolution_s as u32,
            values: Vec::new(),
            events: Vec::new(),
        });
        let index = ((at_s - entry.start_s) / step).max(0) as usize;
        if index < MAX_HISTORY + 1 {
            entry.values.resize(index + 1, None);
            entry.values[index] = cost;
        }
    }
    let mut events = event::by_slot(since as f64, now_s + f64::from(horizon_s))?;
    for (slot_id, series) in &mut all {
        series.events = events.remove(slot_id).unwrap_or_default();
    }
    Ok(all)
}

struct Curve {
    mean: Vec<f64>,
    futures: Vec<Vec<f64>>,
}

/// Forecasts every slot over the horizon with the coarsest candidate resolution that has history.
fn forecast_all(
    horizon_s: i32,
    options: &ForecastOptions,
) -> PgResult<(Vec<decision::SlotForecast>, BTreeMap<i64, Curve>, i32)> {
    let now_s = bgworker::now_s();
    let mut forecasts = Vec::new();
    let mut curves = BTreeMap::new();
    let mut used = guc::BUCKET.get();
    for resolution_s in candidates(horizon_s) {
        used = resolution_s;
        let leads = (horizon_s / resolution_s).clamp(1, MAX_LEADS) as usize;
        models::each(&series(resolution_s, now_s, horizon_s)?, options, |slot_id, model| {
            let points = model.forecast(leads);
            curves.insert(
                slot_id,
                Curve {
                    mean: points.iter().map(|p| p.mean).collect(),
                    futures: (0..FUTURES)
                        .map(|k| model.sample_path(leads, SEED ^ (slot_id as u64).rotate_left(20) ^ k))
                        .collect(),
                },
            );
            forecasts.push(decision::SlotForecast {
                slot_id,
                points,
                model: model.name(),
                history_buckets: model.history_buckets() as i32,
                mae: model.mae(),
            });
        });
        if !forecasts.is_empty() {
            break;
        }
    }
    Ok((forecasts, curves, used))
}

fn segments(slots: &[decision::SlotRow], mut curves: BTreeMap<i64, Curve>) -> Vec<Segment> {
    let leads = curves.values().map(|c| c.mean.len()).max().unwrap_or(1);
    slots
        .iter()
        .map(|slot| {
            let curve = curves.remove(&slot.slot_id);
            let hold = if slot.moving {
                Hold::InFlight
            } else if curve.is_none() {
                Hold::InsufficientHistory
            } else if slot.rested_s.is_some_and(|s| s < f64::from(guc::COOLDOWN.get())) {
                Hold::Cooldown
            } else {
                Hold::Free
            };
            let curve = curve.unwrap_or_else(|| Curve { mean: vec![0.0; leads], futures: Vec::new() });
            Segment {
                id: slot.slot_id,
                shard: slot.shard_id,
                bytes: slot.bytes.max(0) as u64,
                curve: curve.mean,
                futures: curve.futures,
                hold,
                hot_buckets: slot.hot_buckets.max(0) as u32,
            }
        })
        .collect()
}

/// The planner's options as the settings say.
fn plan_options(horizon_s: i32) -> PlanOptions {
    PlanOptions {
        imbalance_high: guc::IMBALANCE_HIGH.get(),
        imbalance_low: guc::IMBALANCE_LOW.get().min(guc::IMBALANCE_HIGH.get()),
        min_hot_buckets: guc::HOT_BUCKETS.get().max(0) as u32,
        move_cost_per_mib: guc::MOVE_COST_PER_MB.get(),
        payback_s: f64::from(horizon_s),
        ..PlanOptions::default()
    }
}

/// Forecasts and plans now.
pub fn decide(horizon_s: i32) -> PgResult<Decision> {
    let options = ForecastOptions { max_history: MAX_HISTORY, ..ForecastOptions::default() };
    let interval_level = options.interval_level;
    let slots = decision::slots()?;
    let shards = colocation::shards()?;
    let (forecasts, curves, _resolution_s) = forecast_all(horizon_s, &options)?;
    let places: Vec<Shard> =
        shards.iter().map(|s| Shard { id: s.shard_id, capacity: s.capacity, draining: s.draining }).collect();
    let plan = plan(&places, &segments(&slots, curves), &plan_options(horizon_s)).map_err(internal)?;
    Ok(Decision { forecasts, interval_level, slots, shards, plan })
}

impl Decision {
    /// Name of a shard.
    pub fn shard_name(&self, shard_id: i32) -> String {
        self.shards.iter().find(|s| s.shard_id == shard_id).map(|s| s.name.clone()).unwrap_or_default()
    }

    /// How many of the steps may be taken at `min_confidence`: steps build on each other, so the first
    /// that falls short ends them.
    pub fn confident_steps(&self, min_confidence: f64) -> usize {
        self.plan.steps.iter().take_while(|s| s.confidence >= min_confidence).count()
    }

    /// The steps as `{"slot": "shard"}` with the least confidence among them, restricted to steps of at
    /// least `min_confidence`.
    pub fn assignment(
        &self,
        min_confidence: f64,
    ) -> (serde_json::Map<String, serde_json::Value>, Option<f64>) {
        let mut map = serde_json::Map::new();
        let mut least: Option<f64> = None;
        for step in &self.plan.steps[..self.confident_steps(min_confidence)] {
            map.insert(step.segment.to_string(), self.shard_name(step.to).into());
            least = Some(least.map_or(step.confidence, |c| c.min(step.confidence)));
        }
        (map, least)
    }
}
