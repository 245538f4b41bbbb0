//! The planner: which segments to move, in which order, and why not the others.
//!
//! It works on load *curves*, so that segments whose peaks complement each other may share a shard.
//! Words: the **peak** of a shard is the maximum over the leads of its summed curves; its
//! **utilisation** is load / capacity; the **fair** utilisation is the peak of the whole cluster's
//! summed curve / the capacity of all shards that are not draining: no placement can have a lower
//! peak, and it does not depend on the placement. **Imbalance** is the highest utilisation peak of
//! any shard / the fair utilisation: 1 is perfect.
//!
//! The objective, in cost units/s: the sum over the shards of what their peak exceeds their fair
//! share by, plus the weight of the links between segments on different shards, plus what it costs that accesses wait for
//! round trips, plus, for every segment left on a draining shard, twice its peak plus one, the weight of all its links and what
//! the farthest shard would add to its waits.

mod check;
mod consider;
mod futures;
mod greedy;
mod realised;
mod refusal;
mod state;
mod timing;
mod yardstick;

use std::fmt;

pub use consider::{Candidate, Consideration, Unfit, consider};
pub use realised::{Outcome, Realised, outcome};
pub use refusal::{Refusal, RefusalReason};
pub use state::shared_capacities;
pub use timing::{Carried, Pace, Start, Timing, fixed_s, schedule};
pub use yardstick::{Yardstick, best_assignment};

/// The most shards of a problem.
pub const MAX_SHARDS: usize = 1_024;
/// The most segments of a problem.
pub const MAX_SEGMENTS: usize = 131_072;
/// The most leads of a curve.
pub const MAX_LEADS: usize = 1_024;
/// The most sampled futures that are looked at; more are ignored.
pub const MAX_FUTURES: usize = 256;

/// A place for segments.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// Identifier.
    pub id: i32,
    /// What it can carry, cost units per second, above 0.
    pub capacity: f64,
    /// Whether it is to be emptied; nothing moves to it.
    pub draining: bool,
    /// The classes of segments that may move to it, one bit each; [`ANY`] takes all.
    pub accepts: u64,
    /// How long an access waits for its node, ms; 0 on this server. What is no number above 0 counts as 0.
    pub round_trip_ms: f64,
}

/// Every class of segments.
pub const ANY: u64 = u64::MAX;

/// Why a segment must stay where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// It may move.
    Free,
    /// It moved a short while ago (a drain moves it all the same).
    Cooldown,
    /// It is moving: its load counts where `shard` says.
    InFlight,
    /// Its load is not known well enough (a drain moves it all the same).
    InsufficientHistory,
    /// It is one hot key, known to be unsplittable (a drain moves it all the same).
    Unsplittable,
    /// A person pinned it.
    Pinned,
    /// Its table is not to be planned for.
    Off,
}

/// What is placed: a slot, an isolated key, or a graph node.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Identifier.
    pub id: i64,
    /// The shard it is on.
    pub shard: i32,
    /// Its size, bytes.
    pub bytes: u64,
    /// Forecast mean load per lead, cost units per second; the same length for all segments.
    pub curve: Vec<f64>,
    /// Sampled futures, each as long as `curve`; may be empty. Future `k` of all segments is one
    /// joint future.
    pub futures: Vec<Vec<f64>>,
    /// Whether it may move.
    pub hold: Hold,
    /// Consecutive buckets in which its shard was overloaded.
    pub hot_buckets: u32,
    /// Its classes, one bit each: it may move to shards that accept one of them.
    pub class: u64,
    /// What every millisecond that its accesses wait for a node costs, cost units per second: accesses per second times what is
    /// charged for one. What is no number above 0 counts as 0.
    pub wait_cost: f64,
}

/// Two segments that are used together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// One.
    pub a: i64,
    /// The other.
    pub b: i64,
    /// What it costs that they are on different shards, cost units per second; links that are not a finite
    /// number above 0, or of segments that are not there, are left out.
    pub weight: f64,
}

/// The planner's restraint.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanOptions {
    /// Act when the imbalance exceeds 1 + this; default 0.20.
    pub imbalance_high: f64,
    /// Stop when the imbalance is below 1 + this; default 0.10, at most `imbalance_high`.
    pub imbalance_low: f64,
    /// Move a segment only if its shard was overloaded for so many buckets; default 3.
    pub min_hot_buckets: u32,
    /// The smallest benefit of a step, as a fraction of the fair load of a mean shard; default 0.02.
    pub min_benefit_fraction: f64,
    /// What moving one MiB costs, cost units; default 10.
    pub move_cost_per_mib: f64,
    /// The time in which a step's benefit must pay its cost, seconds; default 3600.
    pub payback_s: f64,
    /// The most steps of a plan; default 64.
    pub max_steps: usize,
    /// Below this total load (peak of the cluster, cost units/s) nothing is worth moving; default
    /// 10.
    pub min_load: f64,
    /// A segment whose peak is above this share of the fair load of a mean shard is not moved but
    /// reported, to be split or isolated first, unless its shard would be above this share without it,
    /// too; default 0.8.
    pub unmovable_share: f64,
    /// A shard that has not been overloaded for `min_hot_buckets` is acted upon if it will be in at least
    /// this share of the sampled futures; default 0.5, above 1: never.
    pub foresight: f64,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            imbalance_high: 0.20,
            imbalance_low: 0.10,
            min_hot_buckets: 3,
            min_benefit_fraction: 0.02,
            move_cost_per_mib: 10.0,
            payback_s: 3_600.0,
            max_steps: 64,
            min_load: 10.0,
            unmovable_share: 0.8,
            foresight: 0.5,
        }
    }
}

/// One recommended move. It improves on its own, given the steps before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The segment to move.
    pub segment: i64,
    /// The shard it leaves.
    pub from: i32,
    /// The shard it goes to.
    pub to: i32,
    /// Reduction of the objective, cost units/s, above 0.
    pub benefit: f64,
    /// Share of the sampled futures in which the step pays, 0..=1; 0 when there are none.
    pub confidence: f64,
    /// Its shard is not overloaded yet.
    pub foreseen: bool,
    /// Imbalance before the step.
    pub peak_before: f64,
    /// Imbalance after the step.
    pub peak_after: f64,
    /// Why, in words for a person.
    pub reason: String,
}

/// What to do, in order, and what not to.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The moves; any prefix may be applied alone and is never worse than none.
    pub steps: Vec<Step>,
    /// Segments that matter on shards that stay overloaded or undrained, ordered by identifier.
    pub refusals: Vec<Refusal>,
    /// Imbalance before the plan; 1 is perfect, and is also what a cluster without load has.
    pub imbalance_before: f64,
    /// Imbalance after all steps.
    pub imbalance_after: f64,
}

impl Plan {
    /// Positions of the steps that may be taken when only some are wanted: a step counts on the ones before it,
    /// so once one is left out, so are all later ones that share a shard with it.
    pub fn independent(&self, mut wanted: impl FnMut(usize, &Step) -> bool) -> Vec<usize> {
        let mut uncertain: Vec<i32> = Vec::new();
        let mut taken = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            let counts_on_others = uncertain.contains(&step.from) || uncertain.contains(&step.to);
            if !counts_on_others && wanted(index, step) {
                taken.push(index);
            } else {
                uncertain.extend([step.from, step.to]);
            }
        }
        taken
    }
}

/// Why a problem is not one.
#[derive(Clone, Debug, PartialEq)]
pub enum PlacementError {
    /// There is no shard.
    NoShards,
    /// The capacity of a shard is not a finite number above 0.
    BadCapacity {
        /// The shard.
        shard: i32,
    },
    /// A shard is listed twice.
    DuplicateShard {
        /// The shard.
        shard: i32,
    },
    /// A segment is listed twice.
    DuplicateSegment {
        /// The segment.
        segment: i64,
    },
    /// A segment is on a shard that is not listed.
    UnknownShard {
        /// The segment.
        segment: i64,
        /// The shard.
        shard: i32,
    },
    /// A curve or future has another length than the others, is empty, or has a value that is not
    /// a finite number of at least 0.
    BadCurve {
        /// The segment.
        segment: i64,
    },
    /// An option is out of its range.
    BadOption {
        /// Its name.
        name: &'static str,
    },
    /// The problem exceeds a limit of this module.
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

/// What accesses to a segment cost more on one shard than on another because they wait longer for its node, cost units/s; below 0:
/// so much less, and exactly 0 between shards of equal round trips.
pub fn farther(segment: &Segment, from: &Shard, to: &Shard) -> f64 {
    known(segment.wait_cost) * (known(to.round_trip_ms) - known(from.round_trip_ms))
}

/// The upper bound keeps products and sums finite.
fn known(value: f64) -> f64 {
    if (0.0..=1e100).contains(&value) { value } else { 0.0 }
}

impl fmt::Display for PlacementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoShards => write!(f, "there is no shard"),
            Self::BadCapacity { shard } => {
                write!(f, "capacity of shard {shard} must be a positive number")
            }
            Self::DuplicateShard { shard } => write!(f, "shard {shard} is listed twice"),
            Self::DuplicateSegment { segment } => write!(f, "segment {segment} is listed twice"),
            Self::UnknownShard { segment, shard } => {
                write!(f, "segment {segment} is on unknown shard {shard}")
            }
            Self::BadCurve { segment } => write!(f, "load curve of segment {segment} is bad"),
            Self::BadOption { name } => write!(f, "option {name} is out of range"),
            Self::TooLarge { what, limit } => write!(f, "more than {limit} {what}"),
        }
    }
}

impl std::error::Error for PlacementError {}

/// Plans moves: drains first, then, off the hottest shard each time, the move with the highest net benefit (the
/// best of a few differently restrained runs is the plan), then those that only bring together what is linked.
///
/// Balancing starts when the imbalance exceeds `1 + imbalance_high` and stops below
/// `1 + imbalance_low`. Every step lowers the objective (see the module) on its own, never raises
/// the higher utilisation of the two shards involved, and pays for its bytes within `payback_s`;
/// drain steps must only fit the target's capacity, and need no history, heat or benefit. Steps for the links'
/// sake leave their target below `1 + imbalance_low`.
///
/// The confidence of a step is the share of the joint futures in which it, applied after the steps
/// before it, lowers what the peaks of the two shards exceed their fair share (of that future) by,
/// by enough to pay its cost, and leaves no more load above it in all; for a drain step, in which the target stays within its capacity. It
/// is 0 when a segment on either shard has no futures.
///
/// # Errors
/// [`PlacementError`] when the problem is malformed or too large.
pub fn plan(shards: &[Shard], segments: &[Segment], options: &PlanOptions) -> Result<Plan, PlacementError> {
    plan_linked(shards, segments, &[], options)
}

/// The same with segments that are used together.
///
/// # Errors
/// [`PlacementError`] when the problem is malformed or too large.
pub fn plan_linked(
    shards: &[Shard],
    segments: &[Segment],
    links: &[Link],
    options: &PlanOptions,
) -> Result<Plan, PlacementError> {
    check::problem(shards, segments)?;
    check::options(options)?;
    Ok(greedy::plan(shards, segments, links, options))
}

/// The objective of the present placement, cost units/s; see the module.
///
/// # Errors
/// [`PlacementError`] when the problem is malformed or too large.
pub fn objective(shards: &[Shard], segments: &[Segment], links: &[Link]) -> Result<f64, PlacementError> {
    check::problem(shards, segments)?;
    Ok(state::State::new(shards, segments, links).objective())
}

/// The imbalance of the present placement; 1 is perfect.
///
/// # Errors
/// [`PlacementError`] when the problem is malformed or too large.
pub fn imbalance(shards: &[Shard], segments: &[Segment]) -> Result<f64, PlacementError> {
    check::problem(shards, segments)?;
    Ok(state::State::new(shards, segments, &[]).imbalance())
}
