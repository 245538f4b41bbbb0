//! A small simulated cluster: observe, forecast, plan, apply, tick after tick.
//!
//! It exists to ask of the whole chain what no unit test can: does it converge, and does it keep
//! still? Everything is deterministic in [`SimOptions::seed`]. A tick is one bucket; a move takes
//! one tick, in which it is in flight, and is followed by a cool-down.

use std::collections::VecDeque;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::forecast::{self, ForecastOptions, Series};
use crate::placement::{self, Hold, PlacementError, PlanOptions, Segment, Shard, Step};

/// The cluster to simulate.
#[derive(Clone, Debug, PartialEq)]
pub struct SimOptions {
    /// Seed of noise, gaps and futures.
    pub seed: u64,
    /// True mean load of each slot by hour of day, cost units/s; 24 values each.
    pub curves: Vec<Vec<f64>>,
    /// Shard (index) each slot starts on; must be below `capacities.len()`.
    pub start: Vec<usize>,
    /// Capacity of each shard, cost units/s.
    pub capacities: Vec<f64>,
    /// Standard deviation of a bucket's noise, as a fraction of its mean.
    pub noise: f64,
    /// Probability that a bucket is unknown.
    pub gaps: f64,
    /// Size of every slot, bytes.
    pub slot_bytes: u64,
    /// Leads to forecast, hours.
    pub leads: usize,
    /// Sampled futures per slot.
    pub futures: usize,
    /// Ticks in which loads are only observed.
    pub warm_up_ticks: u64,
    /// Ticks after a move in which its slot may not move again.
    pub cooldown_ticks: u64,
    /// The most moves in flight.
    pub max_moves: usize,
    /// Steps of lower confidence are not applied.
    pub min_confidence: f64,
    /// Restraint of the planner.
    pub plan: PlanOptions,
}

/// What a tick left behind.
#[derive(Clone, Debug, PartialEq)]
pub struct TickReport {
    /// Imbalance of the true curves under the placement after the tick; 1 is perfect.
    pub imbalance: f64,
    /// Moves begun in the tick.
    pub moves: usize,
    /// True load share of each shard after the tick (of its summed daily load).
    pub shares: Vec<f64>,
}

/// The simulated cluster.
#[derive(Clone, Debug)]
pub struct Sim {
    options: SimOptions,
    rng: ChaCha8Rng,
    place: Vec<usize>,
    history: Vec<Vec<Option<f64>>>,
    hot_ticks: Vec<u32>,
    /// Approved steps that have not begun; a plan is carried out to its end.
    pending: VecDeque<Step>,
    in_flight: Vec<(usize, usize)>,
    moved_at: Vec<Option<u64>>,
    tick: u64,
}

/// Length of a bucket.
const STEP_S: u32 = 3_600;

impl Sim {
    /// A cluster without history.
    pub fn new(options: SimOptions) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            place: options.start.clone(),
            history: vec![Vec::new(); options.curves.len()],
            hot_ticks: vec![0; options.capacities.len()],
            pending: VecDeque::new(),
            in_flight: Vec::new(),
            moved_at: vec![None; options.curves.len()],
            tick: 0,
            options,
        }
    }

    /// One bucket: moves in flight arrive, loads are observed, a plan is made and begun.
    ///
    /// # Errors
    /// [`PlacementError`] when the options describe no valid cluster.
    pub fn tick(&mut self) -> Result<TickReport, PlacementError> {
        for (slot, to) in std::mem::take(&mut self.in_flight) {
            set(&mut self.place, slot, to);
            set(&mut self.moved_at, slot, Some(self.tick));
        }
        self.observe();
        let moves = self.plan()?;
        self.tick += 1;
        let truth = self.truth();
        Ok(TickReport {
            imbalance: placement::imbalance(&self.shards(), &truth)?,
            moves,
            shares: self.shares(),
        })
    }

    fn observe(&mut self) {
        let hour = (self.tick % 24) as usize;
        let mut loads = vec![0.0; self.options.capacities.len()];
        for (slot, curve) in self.options.curves.iter().enumerate() {
            let mean = curve.get(hour).copied().unwrap_or(0.0);
            let value = (mean * (1.0 + self.options.noise * normal(&mut self.rng))).max(0.0);
            let known = self.rng.random::<f64>() >= self.options.gaps;
            if let Some(history) = self.history.get_mut(slot) {
                history.push(known.then_some(value));
            }
            let shard = self.place.get(slot).copied().unwrap_or(0);
            if let Some(load) = loads.get_mut(shard) {
                *load += value;
            }
        }
        let capacity: f64 = self.options.capacities.iter().sum();
        let fair = loads.iter().sum::<f64>() / capacity;
        let limit = fair * (1.0 + self.options.plan.imbalance_high);
        let each = self.hot_ticks.iter_mut().zip(loads.iter().zip(&self.options.capacities));
        for (hot, (load, capacity)) in each {
            *hot = if load / capacity > limit { hot.saturating_add(1) } else { 0 };
        }
    }

    fn plan(&mut self) -> Result<usize, PlacementError> {
        if self.pending.is_empty() && self.tick >= self.options.warm_up_ticks {
            let segments: Vec<Segment> =
                (0..self.options.curves.len()).map(|slot| self.segment(slot)).collect();
            let plan = placement::plan(&self.shards(), &segments, &self.options.plan)?;
            // A later step counts on the earlier ones, so the first that is not approved ends it.
            let sure = |step: &Step| step.confidence >= self.options.min_confidence;
            self.pending = plan.steps.into_iter().take_while(sure).collect();
        }
        while self.in_flight.len() < self.options.max_moves
            && let Some(step) = self.pending.pop_front()
        {
            if let (Ok(slot), Ok(to)) = (usize::try_from(step.segment), usize::try_from(step.to)) {
                self.in_flight.push((slot, to));
            }
        }
        Ok(self.in_flight.len())
    }

    fn segment(&self, slot: usize) -> Segment {
        let values = self.history.get(slot).cloned().unwrap_or_default();
        let last = values.iter().rev().flatten().next().copied().unwrap_or(0.0);
        let series = Series { start_s: 0, step_s: STEP_S, values, events: Vec::new() };
        let leads = self.options.leads;
        let (curve, futures, known) = match forecast::fit(&series, &ForecastOptions::default()) {
            Ok(model) => {
                let curve = model.forecast(leads).iter().map(|point| point.mean).collect();
                let seeds = (0..self.options.futures as u64).map(|k| self.tick << 16 | k);
                (curve, seeds.map(|seed| model.sample_path(leads, seed)).collect(), true)
            }
            Err(_) => (vec![last; leads], Vec::new(), false),
        };
        let shard = self.place.get(slot).copied().unwrap_or(0);
        let moved_at = self.moved_at.get(slot).copied().flatten();
        let resting = moved_at.is_some_and(|at| self.tick < at + self.options.cooldown_ticks);
        Segment {
            id: i64::try_from(slot).unwrap_or(i64::MAX),
            shard: i32::try_from(shard).unwrap_or(i32::MAX),
            bytes: self.options.slot_bytes,
            curve,
            futures,
            hold: match (known, resting) {
                (false, _) => Hold::InsufficientHistory,
                (true, true) => Hold::Cooldown,
                (true, false) => Hold::Free,
            },
            hot_buckets: self.hot_ticks.get(shard).copied().unwrap_or(0),
        }
    }

    fn shards(&self) -> Vec<Shard> {
        let capacities = (0..).zip(&self.options.capacities);
        capacities.map(|(id, capacity)| Shard { id, capacity: *capacity, draining: false }).collect()
    }

    fn truth(&self) -> Vec<Segment> {
        let slots = (0..).zip(self.place.iter().zip(&self.options.curves));
        slots
            .map(|(id, (shard, curve))| Segment {
                id,
                shard: i32::try_from(*shard).unwrap_or(i32::MAX),
                bytes: 0,
                curve: curve.clone(),
                futures: Vec::new(),
                hold: Hold::Free,
                hot_buckets: 0,
            })
            .collect()
    }

    fn shares(&self) -> Vec<f64> {
        let mut shares = vec![0.0; self.options.capacities.len()];
        let mut total = 0.0;
        for (shard, curve) in self.place.iter().zip(&self.options.curves) {
            let load: f64 = curve.iter().sum();
            total += load;
            if let Some(share) = shares.get_mut(*shard) {
                *share += load;
            }
        }
        shares.iter().map(|share| if total > 0.0 { share / total } else { 0.0 }).collect()
    }
}

fn set<T>(values: &mut [T], index: usize, value: T) {
    if let Some(place) = values.get_mut(index) {
        *place = value;
    }
}

/// A standard normal draw (Box, Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The thrashing of a shard's load share over time: 0 for a monotone series.
///
/// With `u` and `d` the total upward and downward variation, `alpha = (min / max)^0.8` of them and
/// `alpha * (u + d) + (1 - alpha) * min(u, d)`, divided by the range of the series. The definition
/// is that of the project's `facts.md`.
pub fn thrash(shares: &[f64]) -> f64 {
    let (mut up, mut down) = (0.0_f64, 0.0_f64);
    for (previous, next) in shares.iter().zip(shares.iter().skip(1)) {
        up += (next - previous).max(0.0);
        down += (previous - next).max(0.0);
    }
    let low = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let high = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let most = up.max(down);
    if most <= 0.0 || high <= low {
        return 0.0;
    }
    let least = up.min(down);
    let alpha = (least / most).powf(0.8);
    (alpha * (up + down) + (1.0 - alpha) * least) / (high - low)
}
