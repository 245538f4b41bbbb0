//! When to begin: a move must be over before the overload it prevents, and should run while little else does.
//!
//! The schedule of P-Store (Taft et al., SIGMOD 2018) turned to single moves: from the last step back, each
//! must end before its own deadline and before the latest start of the next; within that window it begins in
//! the last bucket that is about as quiet as the quietest one. Waiting is worth while only when there is such a
//! valley, because a later forecast knows more; without one the step begins at once.

use super::state::State;
use super::{PlacementError, Plan, PlanOptions, Segment, Shard, check, known};

/// A bucket counts as quiet when its load is within this share of the quietest.
const QUIET: f64 = 0.05;
/// There is a valley when the quietest bucket is this share below the busiest of the window.
const VALLEY: f64 = 0.10;

/// How fast moves are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Length of a lead, s.
    pub lead_s: u32,
    /// Bytes per second of a move, as measured, above 0.
    pub bytes_per_s: f64,
    /// What a move takes whatever its size: waits, verification, canary ([`fixed_s`]); s.
    pub fixed_s: f64,
    /// Moves at the same time, at least 1.
    pub concurrent: usize,
    /// By how much a move may take longer than that; 1.5 plans for half as much again.
    pub margin: f64,
    /// Bytes of a copy that go to or come from a node in one round trip, above 0.
    pub batch_bytes: f64,
    /// Round trips of a move whatever its size.
    pub round_trips: f64,
}

impl Pace {
    /// How long a move of `bytes` may take, s, between shards whose round trips are so long together, ms.
    pub fn duration_s(&self, bytes: u64, round_trip_ms: f64) -> f64 {
        let round_trips = self.round_trips + bytes as f64 / self.batch_bytes.max(1.0);
        let waits_s = round_trips * known(round_trip_ms) / 1e3;
        (self.fixed_s + bytes as f64 / self.bytes_per_s.max(1.0) + waits_s) * self.margin.max(1.0)
    }
}

/// Who copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// foreshard: so many steps of a canary come before the cutover.
    Here {
        /// Steps of the canary.
        canary_steps: usize,
    },
    /// Citus: there is no canary.
    ByCitus {
        /// How statements fare is measured before it begins, so that the move can be judged afterwards.
        is_watched: bool,
    },
}

/// What a move takes whatever its size, s: so much beside the canary, of which every step takes a dwell, as what is measured before
/// a move by Citus does.
pub fn fixed_s(carried: Carried, overhead_s: f64, dwell_s: f64) -> f64 {
    let dwells = match carried {
        Carried::Here { canary_steps } => canary_steps,
        Carried::ByCitus { is_watched } => usize::from(is_watched),
    };
    overhead_s + dwells as f64 * dwell_s
}

/// Why a step begins when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Start {
    /// The overload is there: at once.
    Overloaded,
    /// There is no time to lose, or no bucket before the overload is quieter than the others: at once.
    NoValley,
    /// In the last valley that leaves time enough before the overload.
    Valley,
    /// Nothing presses: in the first of the quietest buckets.
    Quiet,
    /// No bucket in which it could begin is open.
    Closed,
}

impl Start {
    /// The machine-readable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::NoValley => "no_valley",
            Self::Valley => "valley",
            Self::Quiet => "quiet",
            Self::Closed => "closed",
        }
    }
}

/// When a step begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// The lead in which to begin, from 0.
    pub lead: usize,
    /// The first lead in which its shard is overloaded without it (but with the steps before it).
    pub overload_lead: Option<usize>,
    /// How long it may take, s.
    pub duration_s: f64,
    /// Why then.
    pub start: Start,
}

/// When to begin the steps of a plan, one [`Timing`] for each.
///
/// `open[l]` says whether a step may begin in lead `l` (the off-peak window); leads beyond it are open.
///
/// # Errors
/// [`PlacementError`] when the problem is malformed or too large.
pub fn schedule(
    shards: &[Shard],
    segments: &[Segment],
    plan: &Plan,
    options: &PlanOptions,
    pace: &Pace,
    open: &[bool],
) -> Result<Vec<Timing>, PlacementError> {
    check::problem(shards, segments)?;
    let works = works(State::new(shards, segments, &[]), plan, options, pace);
    let lead_s = f64::from(pace.lead_s.max(1));
    // Backwards: the latest start of each.
    let mut latest_s = vec![0.0_f64; works.len()];
    let mut next_s = f64::INFINITY;
    for (index, work) in works.iter().enumerate().rev() {
        let end_s = next_s.min(work.overload_lead.unwrap_or(work.load.len()) as f64 * lead_s);
        next_s = end_s - work.duration_s / pace.concurrent.max(1) as f64;
        latest_s[index] = end_s - work.duration_s;
    }
    // Forwards: the quietest start that is left.
    let mut free_s = 0.0_f64;
    let mut timings = Vec::with_capacity(works.len());
    for (work, latest_s) in works.iter().zip(latest_s) {
        let first = (free_s / lead_s) as usize;
        let last = if latest_s > 0.0 { ((latest_s / lead_s) as usize).max(first) } else { first };
        let timing = work.begin(first, last, open, lead_s);
        free_s = free_s.max(timing.lead as f64 * lead_s) + work.duration_s / pace.concurrent.max(1) as f64;
        timings.push(timing);
    }
    Ok(timings)
}

/// A step as the schedule sees it.
struct Work {
    duration_s: f64,
    overload_lead: Option<usize>,
    /// Load of the two shards together per lead, before the step.
    load: Vec<f64>,
}

fn works(mut state: State, plan: &Plan, options: &PlanOptions, pace: &Pace) -> Vec<Work> {
    let place = |id: i32| state.shards.iter().position(|shard| shard.id == id).unwrap_or(0);
    let ends: Vec<(usize, usize, usize)> = plan
        .steps
        .iter()
        .map(|step| {
            let segment = state.segments.iter().position(|segment| segment.id == step.segment).unwrap_or(0);
            (segment, place(step.from), place(step.to))
        })
        .collect();
    ends.into_iter()
        .map(|(segment, from, to)| {
            let limit = state.capacity(from) * state.fair * (1.0 + options.imbalance_high);
            let drains = state.is_draining(from);
            let overload_lead = state.load(from).iter().position(|load| !drains && *load > limit);
            let load = state.load(from).iter().zip(state.load(to)).map(|(a, b)| a + b).collect();
            let bytes = state.segments.get(segment).map_or(0, |segment| segment.bytes);
            state.apply(segment, to);
            let round_trip = |at: usize| state.shards.get(at).map_or(0.0, |shard| known(shard.round_trip_ms));
            let duration_s = pace.duration_s(bytes, round_trip(from) + round_trip(to));
            Work { duration_s, overload_lead, load }
        })
        .collect()
}

impl Work {
    /// Begins between the leads `first` and `last`.
    fn begin(&self, first: usize, last: usize, open: &[bool], lead_s: f64) -> Timing {
        let timing = |lead, start| Timing {
            lead,
            overload_lead: self.overload_lead,
            duration_s: self.duration_s,
            start,
        };
        let is_open = |lead: &usize| open.get(*lead).copied().unwrap_or(true);
        let last = last.min(self.load.len().saturating_sub(1)).max(first);
        let leads: Vec<usize> = (first..=last).filter(is_open).collect();
        let Some(earliest) = leads.first().copied() else {
            return timing(first, Start::Closed);
        };
        if self.overload_lead == Some(0) {
            return timing(earliest, Start::Overloaded);
        }
        let busy = |lead: &usize| self.busy(*lead, lead_s);
        let least = leads.iter().map(busy).fold(f64::INFINITY, f64::min);
        let most = leads.iter().map(busy).fold(0.0, f64::max);
        let quiet = |lead: &&usize| busy(lead) <= least * (1.0 + QUIET);
        if least > most * (1.0 - VALLEY) {
            let start = if self.overload_lead.is_some() { Start::NoValley } else { Start::Quiet };
            return timing(earliest, start);
        }
        let (lead, start) = match self.overload_lead {
            Some(_) => (leads.iter().rev().find(quiet), Start::Valley),
            // Not the last: tomorrow's valley would always be later than today's.
            None => (leads.iter().find(quiet), Start::Quiet),
        };
        timing(lead.copied().unwrap_or(earliest), start)
    }

    /// Mean load of both shards while the move runs from `lead` on, cost units/s.
    fn busy(&self, lead: usize, lead_s: f64) -> f64 {
        let leads = ((self.duration_s / lead_s).ceil() as usize).max(1);
        let during = self.load.iter().skip(lead).take(leads);
        let count = during.len().max(1);
        during.sum::<f64>() / count as f64
    }
}
