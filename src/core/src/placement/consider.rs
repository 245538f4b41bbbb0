//! What speaks for and against every place of one segment: the planner's reasons, for a person who asks.

use super::greedy::{blocked, cost, drain_target, ends, growth, least_benefit, overloaded, relief};
use super::state::State;
use super::{Link, PlacementError, PlanOptions, RefusalReason, Segment, Shard, check};

/// Why a shard is no place for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// It is being emptied.
    Draining,
    /// It does not take segments of this class.
    WrongClass,
    /// It would be beyond its capacity (drains only).
    NoCapacity,
    /// It would be no cooler than the present shard is.
    TooHot,
    /// The peaks of the two shards together would be no lower.
    NoGain,
    /// It would help, but less than the move costs or less than the minimum.
    LowBenefit,
    /// It would help enough, did accesses not wait for its node.
    RoundTrip,
}

impl Unfit {
    /// The machine-readable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::WrongClass => "wrong_class",
            Self::NoCapacity => "no_capacity",
            Self::TooHot => "too_hot",
            Self::NoGain => "no_gain",
            Self::LowBenefit => "low_benefit",
            Self::RoundTrip => "round_trip",
        }
    }
}

/// A shard that a segment could go to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The shard.
    pub shard: i32,
    /// Reduction of the objective (see [`super`]), cost units/s; below 0 when it gets worse.
    pub gain: f64,
    /// Share of the sampled futures in which the move pays; 0 without futures.
    pub confidence: f64,
    /// Forecast peak of the shard with the segment, cost units/s.
    pub peak_after: f64,
    /// What accesses to it cost more there because they wait for a node (part of the gain), cost units/s.
    pub farther: f64,
    /// Why not; None: the planner may take it.
    pub unfit: Option<Unfit>,
}

/// A segment and everything that was considered for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Consideration {
    /// Forecast peak of its shard / the shard's fair share; 1 is perfect.
    pub relative: f64,
    /// Forecast peak of its shard, cost units/s.
    pub peak: f64,
    /// The same without the segment.
    pub peak_without: f64,
    /// What moving it costs, cost units.
    pub cost: f64,
    /// The least gain for which it is moved, cost units/s.
    pub least_gain: f64,
    /// Its shard is so much above its fair share that the planner looks for relief.
    pub overloaded: bool,
    /// Why it may not move, whatever the gain.
    pub blocked: Option<RefusalReason>,
    /// All other shards, those that gain most first.
    pub candidates: Vec<Candidate>,
}

/// Considers every shard for one segment, given the present placement of all; None: there is no such segment.
///
/// # Errors
/// [`PlacementError`] when the problem is malformed or too large.
pub fn consider(
    shards: &[Shard],
    segments: &[Segment],
    links: &[Link],
    options: &PlanOptions,
    segment: i64,
) -> Result<Option<Consideration>, PlacementError> {
    check::problem(shards, segments)?;
    check::options(options)?;
    let Some(index) = segments.iter().position(|known| known.id == segment) else { return Ok(None) };
    let state = State::new(shards, segments, links);
    let from = state.shard_of(index);
    let others = (0..shards.len()).filter(|shard| *shard != from);
    let mut candidates: Vec<Candidate> = others.map(|to| candidate(&state, options, index, to)).collect();
    candidates.sort_by(|a, b| {
        (a.unfit.is_some().cmp(&b.unfit.is_some()))
            .then(b.gain.total_cmp(&a.gain))
            .then(a.shard.cmp(&b.shard))
    });
    let drains = state.is_draining(from);
    Ok(Some(Consideration {
        relative: state.relative(from),
        peak: state.peak(from),
        peak_without: state.peak_without(index),
        cost: cost(&state, options, index),
        least_gain: least_benefit(&state, options, index),
        overloaded: overloaded(&state, options, from),
        // A drain moves what is cooling down or unknown all the same.
        blocked: if drains { None } else { blocked(&state, options, index) },
        candidates,
    }))
}

fn candidate(state: &State, options: &PlanOptions, segment: usize, to: usize) -> Candidate {
    let from = state.shard_of(segment);
    let peak = state.peak_with(to, segment);
    let (relieved, farther) = (
        relief(state, segment) - growth(state, to, peak) + state.joined(segment, to),
        state.farther(segment, to),
    );
    let gain = relieved - farther;
    let confidence = state.segments.get(segment).map_or(0.0, |moved| {
        let least = cost(state, options, segment) / options.payback_s;
        state.futures.confidence(moved, ends(state, segment, to), least)
    });
    let shard = state.shards.get(to).map_or(0, |shard| shard.id);
    let unfit = if state.is_draining(to) {
        Some(Unfit::Draining)
    } else if !state.accepts(to, segment) {
        Some(Unfit::WrongClass)
    } else if state.is_draining(from) {
        (peak > state.capacity(to) && drain_target(state, segment) != Some(to)).then_some(Unfit::NoCapacity)
    } else {
        unfit_to_balance(state, options, segment, (to, peak, gain), relieved)
    };
    Candidate { shard, gain, confidence, peak_after: peak, farther, unfit }
}

/// As the planner judges a target when it balances; `relieved` is the gain if nobody waited for its node.
fn unfit_to_balance(
    state: &State,
    options: &PlanOptions,
    segment: usize,
    (to, peak, gain): (usize, f64, f64),
    relieved: f64,
) -> Option<Unfit> {
    let from = state.shard_of(segment);
    let before = state.peak(from) / state.capacity(from);
    let too_hot = peak > state.peak(to) && peak / state.capacity(to) >= before * (1.0 - 1e-9);
    let least = least_benefit(state, options, segment);
    let enough = |gain: f64| gain > 1e-9 * state.mean_load && gain >= least;
    if !too_hot && enough(relieved) && !enough(gain) {
        return Some(Unfit::RoundTrip);
    }
    if gain <= 1e-9 * state.mean_load {
        return Some(Unfit::NoGain);
    }
    if too_hot {
        return Some(Unfit::TooHot);
    }
    (gain < least).then_some(Unfit::LowBenefit)
}
