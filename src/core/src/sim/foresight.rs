//! The real chain as a policy: forecast, plan, schedule, earn trust, act.

use std::collections::VecDeque;

use super::{Order, Policy, View};
use crate::calibration::{Calibration, Judged, NOTED, permission};
use crate::coverage::{self, Coverage, as_it_was, mix_in_days_seen, to_be_replaced};
use crate::forecast::{ForecastOptions, Forecaster, Series, fit};
use crate::placement::{
    ANY, Hold, Pace, PlanOptions, Realised, Segment, Shard, Start, Step, outcome, plan_linked, schedule,
};
use crate::present::{Loaded, Presence};

/// Length of a bucket of the history, s.
const BUCKET_S: u32 = 3_600;
/// Leads of a plan, buckets.
const LEADS: usize = 24;
/// Sampled futures.
const FUTURES: u64 = 48;
/// Buckets after which a model is fitted again.
const REFIT_AFTER: usize = 24;
const REFIT_CHANGED_AFTER: usize = 12;
/// Buckets after a move in which its slot rests.
const COOLDOWN: usize = 12;
/// Steps of lower confidence are not taken.
const MIN_CONFIDENCE: f64 = 0.7;
/// Buckets before the end of the warm-up from which plans are made, so that outcomes are known.
const ADVISE: usize = 72;

/// Nominal coverage of the intervals.
const LEVEL: f64 = 0.9;

/// What the plans stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// Forecasts.
    Forecasts,
    /// The forecasts of other slots, half a day off: all of them wrong.
    Sabotaged,
    /// The future itself.
    Oracle,
}

/// A step whose outcome is not known yet.
struct Open {
    bucket: usize,
    slot: usize,
    raw: f64,
    stated: f64,
    stay: Vec<usize>,
    there: Vec<usize>,
    capacities: [f64; 3],
    least_gain: f64,
    drains: bool,
    foreseen: bool,
}

/// What is known of a slot's coming load.
struct Foreseen {
    curve: Vec<f64>,
    futures: Vec<Vec<f64>>,
    /// Intervals.
    bounds: Vec<(f64, f64)>,
}

/// What was forecast for a bucket.
struct Due {
    bucket: usize,
    slot: usize,
    mean: f64,
    bounds: (f64, f64),
}

struct Kept {
    model: Box<dyn Forecaster>,
    since_fit: usize,
}

/// foreshard's own policy.
pub struct Foreshard {
    knowledge: Knowledge,
    options: PlanOptions,
    history: Vec<Vec<Option<f64>>>,
    models: Vec<Option<Kept>>,
    hot_buckets: Vec<u32>,
    pending: VecDeque<Order>,
    open: Vec<Open>,
    due: Vec<Due>,
    coverage: Vec<Coverage>,
    calibration: Calibration,
}

impl Foreshard {
    /// With this much knowledge of what comes, and these options of the planner.
    pub fn new(knowledge: Knowledge, options: PlanOptions) -> Self {
        Self {
            knowledge,
            options,
            history: Vec::new(),
            models: Vec::new(),
            hot_buckets: Vec::new(),
            pending: VecDeque::new(),
            open: Vec::new(),
            due: Vec::new(),
            coverage: Vec::new(),
            calibration: Calibration::default(),
        }
    }

    /// What became of its recommendations.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// The bucket that has just ended.
    fn learn(&mut self, view: &View, ticks: usize) {
        let slots = view.place.len();
        self.history.resize(slots, Vec::new());
        self.models.resize_with(slots, || None);
        let loads: Vec<f64> = (0..slots).map(|slot| view.recent(slot, ticks)).collect();
        for (slot, load) in loads.iter().enumerate() {
            self.history[slot].push(Some(*load));
            if let Some(kept) = &mut self.models[slot] {
                kept.model.extend(&[Some(*load)]);
                kept.since_fit += 1;
            }
        }
        self.hot_buckets.resize(view.shards.len(), 0);
        let mut sums = vec![0.0; view.shards.len()];
        view.place.iter().zip(&loads).for_each(|(shard, load)| sums[*shard] += load);
        let capacity: f64 = view.shards.iter().filter(|s| !s.draining && !s.lost).map(|s| s.capacity).sum();
        let all: f64 = sums.iter().sum();
        let limit = all / capacity.max(1e-9) * (1.0 + self.options.imbalance_high);
        let matters = all >= self.options.min_load;
        for (shard, hot) in self.hot_buckets.iter_mut().enumerate() {
            let over =
                view.shards[shard].draining || matters && sums[shard] / view.shards[shard].capacity > limit;
            *hot = if over { *hot + 1 } else { 0 };
        }
    }

    /// Curve and futures of a slot from the present bucket on.
    fn foresee(&mut self, view: &View, slot: usize) -> Option<Foreseen> {
        if self.knowledge == Knowledge::Oracle {
            let ticks = (BUCKET_S / view.scene.trace.tick_s).max(1) as usize;
            let bucket = |lead: usize| {
                let begin = view.now + lead * ticks;
                // The worst tick: an oracle knows what a mean hides.
                let ticks = begin..(begin + ticks).min(view.scene.trace.ticks());
                ticks.map(|tick| f64::from(view.scene.trace.at(tick)[slot])).fold(0.0, f64::max)
            };
            let curve: Vec<f64> = (0..LEADS).map(bucket).collect();
            return Some(Foreseen { futures: vec![curve.clone(); 4], curve, bounds: Vec::new() });
        }
        let history = &self.history[slot];
        let refit = match &self.models[slot] {
            Some(kept) => {
                kept.since_fit >= REFIT_AFTER
                    || kept.model.has_changed() && kept.since_fit >= REFIT_CHANGED_AFTER
            }
            None => true,
        };
        if refit {
            let series = Series {
                start_s: 0,
                step_s: BUCKET_S,
                values: history.clone(),
                events: Vec::new(),
                regressors: Vec::new(),
            };
            let model = fit(&series, &ForecastOptions::default()).ok()?;
            self.models[slot] = Some(Kept { model, since_fit: 0 });
        }
        let model = &self.models[slot].as_ref()?.model;
        let points = model.forecast(LEADS);
        let mut futures: Vec<_> = (0..FUTURES).map(|seed| model.sample_path(LEADS, seed)).collect();
        mix_in_days_seen(&mut futures, history, LEADS);
        Some(Foreseen {
            curve: points.iter().map(|point| point.mean).collect(),
            futures,
            bounds: points.iter().map(|point| (point.lower, point.upper)).collect(),
        })
    }

    fn segments(&mut self, view: &View, ticks: usize) -> Vec<Segment> {
        let slots = view.place.len();
        let mut foreseen: Vec<_> = (0..slots).map(|slot| self.foresee(view, slot)).collect();
        if self.knowledge == Knowledge::Sabotaged {
            foreseen.rotate_right(slots / 3 + 1);
            let half = |curve: &mut Vec<f64>| curve.rotate_right(LEADS / 2);
            for foreseen in foreseen.iter_mut().flatten() {
                half(&mut foreseen.curve);
                foreseen.futures.iter_mut().for_each(half);
                foreseen.bounds.rotate_right(LEADS / 2);
            }
        }
        self.follow(&mut foreseen);
        let segments = foreseen.into_iter().enumerate().map(|(slot, known)| {
            let shard = view.moving[slot].unwrap_or(view.place[slot]);
            let rests = view.moved_at[slot].is_some_and(|at| view.now < at + COOLDOWN * ticks);
            let hold = match (&known, view.moving[slot], rests) {
                (_, Some(_), _) => Hold::InFlight,
                (None, ..) => Hold::InsufficientHistory,
                (_, _, true) => Hold::Cooldown,
                _ => Hold::Free,
            };
            let (curve, futures) = match known {
                Some(known) => (known.curve, known.futures),
                None => (vec![view.recent(slot, ticks); LEADS], Vec::new()),
            };
            Segment {
                id: slot as i64,
                shard: shard as i32,
                bytes: view.scene.bytes[slot],
                curve,
                futures,
                hold,
                hot_buckets: self.hot_buckets[shard],
                class: ANY,
                wait_cost: 0.0,
            }
        });
        segments.collect()
    }

    /// Compares earlier forecasts with what came, notes the new ones, and puts what was seen in the place of those that are
    /// not relied on.
    fn follow(&mut self, foreseen: &mut [Option<Foreseen>]) {
        if self.knowledge == Knowledge::Oracle {
            return;
        }
        let bucket = self.history.first().map_or(0, Vec::len);
        self.coverage.resize(foreseen.len(), Coverage::default());
        let (history, coverages) = (&self.history, &mut self.coverage);
        self.due.retain(|due| {
            let Some(Some(value)) = history[due.slot].get(due.bucket) else { return true };
            coverages[due.slot].observe((due.bounds.0..=due.bounds.1).contains(value));
            let day_before = due.bucket.checked_sub(LEADS).and_then(|bucket| history[due.slot].get(bucket));
            if let Some(Some(naive)) = day_before {
                coverages[due.slot].compare((value - due.mean).abs(), (value - naive).abs());
            }
            false
        });
        let mean = |foreseen: &Option<Foreseen>| {
            foreseen.as_ref().map_or(0.0, |known| known.curve.iter().sum::<f64>() / LEADS as f64)
        };
        let segments: Vec<_> = foreseen.iter().map(mean).zip(coverages.iter().copied()).collect();
        let replaced = to_be_replaced(&segments, LEVEL);
        for (slot, foreseen) in foreseen.iter_mut().enumerate() {
            let Some(foreseen) = foreseen else { continue };
            let due = coverage::LEADS.into_iter().filter_map(|lead| {
                let (mean, bounds) = (*foreseen.curve.get(lead - 1)?, *foreseen.bounds.get(lead - 1)?);
                Some(Due { bucket: bucket + lead - 1, slot, mean, bounds })
            });
            self.due.extend(due);
            if replaced[slot]
                && let Some((curve, futures)) = as_it_was(&self.history[slot], LEADS, LEADS, FUTURES as usize)
            {
                (foreseen.curve, foreseen.futures) = (curve, futures);
            }
        }
    }

    /// Judges what was recommended a day ago.
    fn settle(&mut self, bucket: usize) {
        let due = |open: &Open| open.bucket + LEADS <= bucket;
        let (ended, open) = std::mem::take(&mut self.open).into_iter().partition(due);
        self.open = open;
        for open in Vec::<Open>::into_iter(ended) {
            let history = &self.history;
            let sum = |slots: &mut dyn Iterator<Item = usize>| -> Vec<f64> {
                let mut sum = vec![0.0; LEADS];
                for slot in slots {
                    let values = history[slot].iter().skip(open.bucket).take(LEADS);
                    values.zip(&mut sum).for_each(|(value, sum)| *sum += value.unwrap_or(0.0));
                }
                sum
            };
            let [from_capacity, to_capacity, capacity] = open.capacities;
            let realised = Realised {
                moved: sum(&mut std::iter::once(open.slot)),
                stay: sum(&mut open.stay.iter().copied()),
                there: sum(&mut open.there.iter().copied()),
                total: sum(&mut (0..history.len())),
                from_capacity,
                to_capacity,
                capacity,
                drains: open.drains,
                joined: 0.0,
                least_gain: open.least_gain,
            };
            let paid = outcome(&realised).paid;
            let Open { raw, stated, foreseen, drains, .. } = open;
            if !drains {
                self.calibration.observe(Judged { raw, stated, foreseen, paid });
            }
        }
    }

    /// Notes a step, to be judged when its day is over.
    fn note(&mut self, view: &View, bucket: usize, step: &Step, place: &[usize]) {
        let (slot, from, to) = (step.segment as usize, step.from as usize, step.to as usize);
        if self.open.iter().any(|open| open.slot == slot && open.foreseen == step.foreseen) {
            return;
        }
        let on = |shard: usize| {
            (0..place.len()).filter(|other| *other != slot && place[*other] == shard).collect()
        };
        let up = view.shards.iter().filter(|shard| !shard.draining && !shard.lost);
        let mib = view.scene.bytes[slot] as f64 / 1_048_576.0;
        self.open.push(Open {
            bucket,
            slot,
            raw: step.confidence,
            stated: self.calibration.stated(step.confidence),
            stay: on(from),
            there: on(to),
            capacities: [
                view.shards[from].capacity,
                view.shards[to].capacity,
                up.map(|shard| shard.capacity).sum(),
            ],
            least_gain: mib * self.options.move_cost_per_mib / self.options.payback_s,
            drains: view.shards[from].draining,
            foreseen: step.foreseen,
        });
    }

    fn plan(&mut self, view: &View, ticks: usize) {
        let bucket = self.history.first().map_or(0, Vec::len);
        let segments = self.segments(view, ticks);
        let shards: Vec<Shard> = (0..)
            .zip(view.shards)
            .filter(|(_, shard)| !shard.lost)
            .map(|(id, shard)| Shard {
                id,
                capacity: shard.capacity,
                draining: shard.draining,
                accepts: ANY,
                round_trip_ms: 0.0,
            })
            .collect();
        let Ok(plan) = plan_linked(&shards, &segments, &view.scene.links, &self.options) else { return };
        let moves = &view.scene.moves;
        let pace = Pace {
            lead_s: BUCKET_S,
            bytes_per_s: moves.bytes_per_s,
            fixed_s: moves.fixed_s,
            concurrent: moves.concurrent,
            margin: 1.5,
            batch_bytes: f64::INFINITY,
            round_trips: 0.0,
        };
        let Ok(timings) = schedule(&shards, &segments, &plan, &self.options, &pace, &[]) else { return };
        self.pending.clear();
        let mut place: Vec<usize> = segments.iter().map(|segment| segment.shard as usize).collect();
        for step in &plan.steps {
            if self.knowledge != Knowledge::Oracle && step.confidence >= NOTED {
                self.note(view, bucket, step, &place);
            }
            place[step.segment as usize] = step.to as usize;
        }
        let mut presence = self.presence(view, &segments, ticks);
        let taken = plan.independent(|index, step| {
            let timing = &timings[index];
            let now = timing.lead == 0 && timing.start != Start::Closed;
            let takes = view.acts && now && self.may_take(step, &presence);
            if takes {
                presence.take(step);
            }
            takes
        });
        let steps = taken.into_iter().map(|index| &plan.steps[index]);
        self.pending.extend(steps.map(|step| Order { slot: step.segment as usize, to: step.to as usize }));
    }

    fn presence(&self, view: &View, segments: &[Segment], ticks: usize) -> Presence {
        let loaded = segments.iter().zip(0..).map(|(segment, slot)| {
            let coverage = self.coverage.get(slot).copied().unwrap_or_default();
            Loaded::new(segment, view.recent(slot, ticks), coverage)
        });
        let shards = (0..).zip(view.shards).map(|(id, shard)| (id, shard.capacity, shard.draining));
        Presence::new(loaded, shards, LEVEL)
    }

    /// Whether the step may be taken without anybody being asked.
    fn may_take(&self, step: &Step, presence: &Presence) -> bool {
        self.knowledge == Knowledge::Oracle
            || permission(&self.calibration, step, presence.of(step), MIN_CONFIDENCE)
    }
}

impl Policy for Foreshard {
    fn name(&self) -> &str {
        match self.knowledge {
            Knowledge::Forecasts => "foreshard",
            Knowledge::Sabotaged => "sabotaged",
            Knowledge::Oracle => "oracle",
        }
    }

    fn decide(&mut self, view: &View) -> Vec<Order> {
        let ticks = (BUCKET_S / view.scene.trace.tick_s).max(1) as usize;
        if view.now.is_multiple_of(ticks) {
            self.learn(view, ticks);
            let bucket = self.history.first().map_or(0, Vec::len);
            self.settle(bucket);
            if view.now + ADVISE * ticks >= view.scene.warm_up_ticks {
                self.plan(view, ticks);
            }
        }
        let count = view.free_moves().min(self.pending.len());
        let orders = self.pending.drain(..count).filter(|order| view.is_target(order.to));
        orders.collect()
    }
}
