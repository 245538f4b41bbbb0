//! From observed rows to decisions: load history → forecasts → load curves → plan. Reads through
//! `catalog`, thinks in `core`, writes nothing.

mod busy;
mod curves;
pub mod divisions;
mod explain;
mod foreseen;
pub mod gatherings;
mod links;
mod models;
mod modes;
mod options;
mod past;
mod pools;
mod reliance;
mod scene;
mod trust;
mod window;

use crate::catalog::colocation::ShardRow;
use crate::catalog::{colocation, decision, forecast_error, foresight, heat, node};
use crate::pg::guc::Mode;
use crate::pg::report::PgResult;
use crate::pg::{bgworker, guc};
use divisions::{Action, Division};
use foreshard_core::calibration::{Calibration, Present, Trust, permission, relieves_distress};
use foreshard_core::forecast::ForecastOptions;
use foreshard_core::placement::{
    ANY, Hold, Link, Plan, PlanOptions, RefusalReason, Segment, Shard, Start, Step, Timing,
};
use foreshard_core::present::{Loaded, Presence};
use options::{pace, plan_options, round_trip_ms};
use past::Past;
use pools::{CITUS, Pool};
use reliance::Reliance;
use std::collections::{BTreeMap, HashMap};
use window::Opening;

pub use busy::Busy;
pub use curves::CurvePoint;
pub use explain::{Explanation, explain};
pub use modes::{Modes, first_off};
pub use past::remembered;
pub use window::is_open;

/// Most leads a forecast has: enough to shape a curve, few enough to store for thousands of slots.
const MAX_LEADS: i32 = 24;
/// The same at the coarsest resolution: a week of hours.
const MAX_COARSE_LEADS: i32 = 168;
/// Fewest sampled futures per slot: long ones are fewer, so that they take no more memory than short ones by much.
const LEAST_FUTURES: u64 = 16;
/// Most buckets of history a fit reads per slot (four weeks of hours, a day of two-minute buckets).
const MAX_HISTORY: usize = 2016;
/// Longest rest of a slot whose moves fail, s, unless the setting is longer.
const MAX_REST_S: f64 = 86_400.0;
/// Sampled futures per slot, behind every confidence.
const FUTURES: u64 = 64;
/// Forecasts are reproducible: the seed depends on nothing but the sample, and what slots did together they do
/// together in a sampled future.
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
    /// What is said of each step.
    pub verdicts: Vec<decision::Verdict>,
    /// What shall become of slots that are too hot, or too cold, as they are.
    pub divisions: Vec<divisions::Division>,
    /// Length of a lead, s.
    pub lead_s: i32,
    /// Places of slots in `slots`.
    row_of: HashMap<i64, usize>,
    options: PlanOptions,
    pools: Vec<Pool>,
    presence: Presence,
    /// What outcomes say, by colocation group.
    calibrations: HashMap<i32, Calibration>,
    links: Vec<Link>,
    modes: Modes,
    made_s: f64,
    opening: Opening,
    stamp: Option<foresight::Stamp>,
}

/// Something to keep up with what came, with its name.
pub type Book = (&'static str, fn() -> PgResult<()>);

/// Compares earlier forecasts, and earlier steps, with the loads that came since; each a transaction of its own, because a
/// plan can do without.
pub const BOOKS: [Book; 2] = [("errors of forecasts", forecast_error::settle), ("outcomes", trust::settle)];

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

/// Leads that cover the horizon, or as many of them as are made.
fn leads(horizon_s: i32, resolution_s: i32) -> usize {
    let is_coarsest = resolutions().last() == Some(&resolution_s);
    let most = if is_coarsest { MAX_COARSE_LEADS } else { MAX_LEADS };
    (horizon_s / resolution_s.max(1)).clamp(1, most) as usize
}

/// Sampled futures of so many leads.
fn futures(leads: usize) -> u64 {
    (FUTURES * MAX_LEADS as u64 / leads.max(1) as u64).clamp(LEAST_FUTURES, FUTURES)
}

struct Curve {
    mean: Vec<f64>,
    futures: Vec<Vec<f64>>,
}

/// What is known of the loads to come.
#[derive(Default)]
struct Foresight {
    forecasts: Vec<decision::SlotForecast>,
    curves: BTreeMap<i64, Curve>,
    reliance: Reliance,
    /// Length of a lead, s.
    lead_s: i32,
    /// What it was made from, in the keeper.
    stamp: Option<foresight::Stamp>,
}

/// Forecasts every slot over the horizon with the coarsest candidate resolution that has history. Curves to plan by are
/// those of the forecasts that are relied on, and what was seen of the others. A session takes over what the keeper foresaw.
fn forecast_all(horizon_s: i32, options: &ForecastOptions) -> PgResult<Foresight> {
    if !bgworker::is_ours()
        && let Some(known) = foreseen::last(horizon_s, options)?
    {
        return Ok(known);
    }
    let now_s = bgworker::now_s();
    let mut known = Foresight { lead_s: guc::BUCKET.get(), ..Foresight::default() };
    let candidates = candidates(horizon_s);
    for (at, resolution_s) in candidates.iter().copied().enumerate() {
        known.lead_s = resolution_s;
        let leads = leads(horizon_s, resolution_s);
        let seeds: Vec<u64> = (0..futures(leads)).map(|k| SEED ^ k).collect();
        let stamp = foreseen::stamp(horizon_s, resolution_s, now_s, options)?;
        let past = Past::read(resolution_s, now_s, horizon_s)?;
        let all = &past.all;
        models::each(all, &past.changed, options, |slot_id, model| {
            let points = model.forecast(leads);
            known.curves.insert(
                slot_id,
                Curve {
                    mean: points.iter().map(|p| p.mean).collect(),
                    futures: model.sample_paths(leads, &seeds),
                },
            );
            known.forecasts.push(decision::SlotForecast {
                slot_id,
                points,
                model: model.name(),
                history_buckets: model.history_buckets() as i32,
                mae: model.mae(),
            });
        });
        if !known.forecasts.is_empty() {
            (known.reliance, known.stamp) = (Reliance::read(resolution_s)?, stamp);
            let step_s = i64::from(resolution_s);
            let end_s = (now_s as i64).div_euclid(step_s) * step_s;
            known.reliance.correct(&mut known.curves, all, end_s, options);
            past.keep();
            Past::keep_only(&candidates[..=at]);
            break;
        }
        past.keep();
    }
    Ok(known)
}

/// Classes of slots: those that stay on this server, and those whose tables may be on others.
const STAYS: u64 = 1;
const MAY_LEAVE: u64 = 2;

/// What the planner takes a shard for: one whose node is down, or takes none, takes nothing.
fn place_of(shard: &ShardRow, sick: &[i32]) -> Shard {
    let accepts = match (sick.contains(&shard.shard_id) || !shard.takes, shard.is_local()) {
        (true, _) => 0,
        (false, true) => ANY & !CITUS,
        (false, false) if shard.is_citus => CITUS,
        (false, false) => MAY_LEAVE,
    };
    let round_trip_ms = round_trip_ms(shard.round_trip_ms);
    Shard { id: shard.shard_id, capacity: shard.capacity, draining: shard.draining, accepts, round_trip_ms }
}

/// How long a slot rests after a move: what failed time and again is not tried all the time. A move in the future was one by a clock that
/// was wrong.
fn rest_s(failures: i64) -> f64 {
    let doubled = 2_f64.powi(failures.clamp(1, 20) as i32 - 1);
    let cooldown_s = f64::from(guc::COOLDOWN.get());
    (cooldown_s * doubled).min(cooldown_s.max(MAX_REST_S))
}

fn segments(
    slots: &[decision::SlotRow],
    mut curves: BTreeMap<i64, Curve>,
    modes: &Modes,
    sick: &[i32],
) -> Vec<Segment> {
    let leads = curves.values().map(|c| c.mean.len()).max().unwrap_or(1);
    slots
        .iter()
        .map(|slot| {
            let curve = curves.remove(&slot.slot_id);
            let hold = if slot.moving || sick.contains(&slot.shard_id) {
                Hold::InFlight
            } else if modes.of(slot.group_id) == Mode::Off {
                Hold::Off
            } else if curve.is_none() || slot.bytes.is_none() {
                // What a move costs goes by its size.
                Hold::InsufficientHistory
            } else if slot.rested_s.is_some_and(|s| (0.0..rest_s(slot.failures)).contains(&s)) {
                Hold::Cooldown
            } else {
                Hold::Free
            };
            // Of what cannot be foreseen, what is there now counts; nothing is certain of it, so that it has no futures.
            let curve = curve.unwrap_or_else(|| Curve { mean: vec![slot.heat; leads], futures: Vec::new() });
            Segment {
                id: slot.slot_id,
                shard: slot.planned_shard(),
                bytes: slot.bytes.unwrap_or(0).max(0) as u64,
                curve: curve.mean,
                futures: curve.futures,
                hold,
                hot_buckets: slot.hot_buckets.max(0) as u32,
                class: match (slot.is_citus, slot.may_leave_server) {
                    (true, _) => CITUS,
                    (false, true) => MAY_LEAVE,
                    (false, false) => STAYS,
                },
                wait_cost: slot.accesses_per_s * guc::WAIT_COST.get(),
            }
        })
        .collect()
}

/// What slots and shards are at now.
fn presence(slots: &[decision::SlotRow], pools: &[Pool], reliance: &Reliance, level: f64) -> Presence {
    let heat: HashMap<i64, f64> = slots.iter().map(|slot| (slot.slot_id, slot.heat)).collect();
    let loaded = pools.iter().flat_map(|pool| &pool.segments).map(|segment| {
        let load = heat.get(&segment.id).copied().unwrap_or(0.0);
        Loaded::new(segment, load, reliance.of(segment.id))
    });
    let places = pools.iter().flat_map(|pool| &pool.places);
    Presence::new(loaded, places.map(|shard| (shard.id, shard.capacity, shard.draining)), level)
}

/// Forecasts and plans now.
pub fn decide(horizon_s: i32) -> PgResult<Decision> {
    let season_s = guc::SEASON.get().max(1) as u32;
    let forecast = ForecastOptions { season_s, max_history: MAX_HISTORY, ..ForecastOptions::default() };
    let interval_level = forecast.interval_level;
    let slots = decision::slots()?;
    let shards = colocation::shards()?;
    let Foresight { forecasts, curves, reliance, lead_s, stamp } = forecast_all(horizon_s, &forecast)?;
    let sick = node::sick_shards()?;
    let places: Vec<Shard> = shards.iter().map(|shard| place_of(shard, &sick)).collect();
    let (modes, links) = (Modes::read()?, links::links()?);
    let (segments, options) = (segments(&slots, curves, &modes, &sick), plan_options(horizon_s));
    let leads = segments.first().map_or(1, |segment| segment.curve.len());
    let citus: Vec<i32> = shards.iter().filter(|shard| shard.is_citus).map(|shard| shard.shard_id).collect();
    let pools = pools::split(places, segments, &citus);
    let mut plan = pools::plan(&pools, &links, &options)?;
    let made_s = bgworker::now_s();
    let opening = window::opening(made_s, lead_s, leads);
    let mut divisions = Vec::new();
    for pool in &pools {
        divisions.extend(divisions::decide(&slots, pool, (&modes, &opening.leads))?);
    }
    // The planner's general word about a slot that is too hot gives way to the particular one.
    plan.refusals.retain(|refusal| {
        refusal.reason != RefusalReason::UnsplittableKey
            || divisions.iter().all(|division| division.slot_id != refusal.segment)
    });
    let presence = presence(&slots, &pools, &reliance, interval_level);
    let row_of = slots.iter().enumerate().map(|(at, slot)| (slot.slot_id, at)).collect();
    let mut decision = Decision {
        row_of,
        forecasts,
        interval_level,
        slots,
        shards,
        plan,
        verdicts: Vec::new(),
        lead_s,
        options,
        presence,
        calibrations: trust::calibrations()?,
        pools,
        links,
        modes,
        divisions,
        made_s,
        opening,
        stamp,
    };
    if !decision.plan.steps.is_empty() {
        decision.verdicts = decision.judge()?;
    }
    Ok(decision)
}

/// When every step begins by itself, and when inside the hours that are left for moves.
struct Times {
    free: Vec<Timing>,
    bound: Vec<Timing>,
}

impl Decision {
    fn times(&self) -> PgResult<Times> {
        let paces = [pace(self.lead_s, true)?, pace(self.lead_s, false)?];
        let open = &self.opening.leads;
        let within = |open: &[bool]| pools::times(&self.pools, &self.plan, &self.options, &paces, open);
        let free = within(&[])?;
        let bound = if open.is_empty() { free.clone() } else { within(open)? };
        Ok(Times { free, bound })
    }

    fn places(&self) -> impl Iterator<Item = &Shard> {
        self.pools.iter().flat_map(|pool| &pool.places)
    }

    fn slot(&self, slot_id: i64) -> Option<&decision::SlotRow> {
        self.row_of.get(&slot_id).and_then(|at| self.slots.get(*at))
    }

    /// What is said of each step: the confidence to state, when to begin, and why it is not taken now.
    fn judge(&self) -> PgResult<Vec<decision::Verdict>> {
        let times = self.times()?;
        let (unknown, least) = (Calibration::default(), guc::MIN_CONFIDENCE.get());
        let mut presence = self.presence.clone();
        let mut presents: HashMap<usize, Present> = HashMap::new();
        let calibration = |step: &Step| {
            self.slot(step.segment).and_then(|slot| self.calibrations.get(&slot.group_id)).unwrap_or(&unknown)
        };
        let undone = |step: &Step| self.slot(step.segment).is_some_and(|slot| slot.undone);
        // A shard in distress waits for no hour of the day.
        let timing = |index: usize, present: Present| {
            let bound = !relieves_distress(present);
            if bound { times.bound.get(index) } else { times.free.get(index) }.copied()
        };
        let is_now = |timing: Timing| timing.lead == 0 && timing.start != Start::Closed;
        let may = |step: &Step, present: Present| permission(calibration(step), step, present, least);
        let taken = self.plan.independent(|index, step| {
            let present = presence.of(step);
            presents.insert(index, present);
            let takes = timing(index, present).is_some_and(is_now) && may(step, present) && !undone(step);
            if takes {
                presence.take(step);
            }
            takes
        });
        let shut = times.bound != times.free;
        let verdict = |(index, step): (usize, &Step)| {
            let present = presents.get(&index).copied().unwrap_or_else(|| presence.of(step));
            let timing = timing(index, present)?;
            let stated = calibration(step).stated(step.confidence);
            let outside = shut && times.free.get(index).is_some_and(|free| free.lead < timing.lead);
            let refusal = match (taken.contains(&index), stated >= least, is_now(timing)) {
                (true, ..) => None,
                _ if undone(step) => Some(decision::UNDONE),
                (_, false, _) => Some(decision::LOW_CONFIDENCE),
                (_, _, false) if outside || timing.start == Start::Closed => Some(decision::OUTSIDE_WINDOW),
                (_, _, false) => Some(decision::SCHEDULED),
                _ if may(step, present) => Some(decision::DEPENDS),
                _ => Some(decision::UNTRUSTED),
            };
            let start_s = match timing.start {
                Start::Closed => self.opening.opens_in_s,
                _ => Some(f64::from(self.lead_s) * timing.lead as f64),
            };
            let urgent = relieves_distress(present);
            Some(decision::Verdict { stated, urgent, timing, start_s, refusal })
        };
        Ok(self.plan.steps.iter().enumerate().filter_map(verdict).collect())
    }

    /// Name of a shard.
    pub fn shard_name(&self, shard_id: i32) -> String {
        self.shards.iter().find(|s| s.shard_id == shard_id).map(|s| s.name.clone()).unwrap_or_default()
    }

    /// What is said of a division.
    pub fn said_of(&self, one: &Division) -> divisions::Said {
        let Some(slot) = self.slot(one.slot_id) else { return (None, None) };
        let other = match one.action {
            Action::Merge { other } => self.slot(other),
            _ => None,
        };
        let drains = self.presence.drains(slot.shard_id);
        let refusal = match one.action {
            Action::Not(_) => one.action.refusal(),
            _ if slot.undone || other.is_some_and(|other| other.undone) => Some(decision::UNDONE),
            _ if slot.is_citus => Some(decision::IRREVERSIBLE),
            Action::Merge { .. }
                if drains && other.is_some_and(|other| self.presence.drains(other.shard_id)) =>
            {
                Some(decision::DRAINING)
            }
            _ if self.is_doubted(one, slot) => Some(decision::UNTRUSTED),
            Action::Merge { .. } => None,
            _ if drains => Some(decision::DRAINING),
            // Copies are made in a lead that is open anyway, if there is one before they are needed.
            Action::Prepare { at, .. } | Action::Isolate { at, .. } if at > 0 => return (None, None),
            _ => None,
        };
        match refusal {
            None if !self.is_urgent(one, slot) => self.said_of_hours(),
            refusal => (refusal, None),
        }
    }

    /// Whether it is done for what is foreseen, although that did not come true lately.
    fn is_doubted(&self, one: &Division, slot: &decision::SlotRow) -> bool {
        let foreseen = match one.action {
            Action::Prepare { .. } | Action::Merge { .. } => true,
            Action::Isolate { over, .. } => over > 0,
            _ => false,
        };
        foreseen && self.calibrations.get(&slot.group_id).is_some_and(|own| own.trust() == Trust::Withdrawn)
    }

    /// What is said of everything that has to wait for the hours that are left for moves.
    fn said_of_hours(&self) -> divisions::Said {
        if self.opening.leads.first() == Some(&false) {
            (Some(decision::OUTSIDE_WINDOW), self.opening.opens_in_s.filter(|opens_s| *opens_s > 0.0))
        } else {
            (None, None)
        }
    }

    /// Whether a slot is to be divided on a shard in distress, and the part that goes elsewhere would help. The halves of one that
    /// is prepared lie where they were built.
    fn is_urgent(&self, one: &Division, slot: &decision::SlotRow) -> bool {
        let own = self.pools.iter().filter(|pool| !pool.is_citus).flat_map(|pool| &pool.places);
        let others = own.filter(|shard| shard.id != slot.shard_id && !shard.draining);
        let least = others.map(|shard| self.presence.used(shard.id, slot.heat / 2.0)).reduce(f64::min);
        let drains = self.presence.drains(slot.shard_id);
        let from = self.presence.used(slot.shard_id, 0.0);
        let present = |to_after: f64| Present { from, to_after, drains, foreseeable: false, has_odds: false };
        let least = one.to_shard.map(|to| self.presence.used(to, slot.heat / 2.0)).or(least);
        let divides = matches!(one.action, Action::Split | Action::Isolate { over: 0, .. });
        divides
            && (one.to_shard.is_some() || slot.moving)
            && least.is_some_and(|least| relieves_distress(present(least)))
    }

    /// Stores forecasts and recommendations, and notes the steps whose outcome will be looked at.
    pub fn store(&self) -> PgResult<()> {
        decision::store_forecasts(&self.forecasts, self.interval_level)?;
        foreseen::store(self)?;
        forecast_error::note(&self.forecasts, self.lead_s)?;
        decision::store_plan(&self.plan, &self.slots, &self.verdicts, self.lead_s)?;
        let said: Vec<divisions::Said> = self.divisions.iter().map(|one| self.said_of(one)).collect();
        divisions::store(&self.divisions, &said, &self.slots, self.lead_s)?;
        let stated: Vec<f64> = self.verdicts.iter().map(|verdict| verdict.stated).collect();
        for pool in &self.pools {
            let (at, plan) = pool.steps(&self.plan);
            let stated: Vec<f64> = at.iter().filter_map(|at| stated.get(*at).copied()).collect();
            let pool = (pool, self.links.as_slice());
            trust::note(&plan, &self.slots, pool, &stated, &self.options, self.lead_s)?;
        }
        Ok(())
    }
}
