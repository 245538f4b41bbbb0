//! What a step was worth, once the loads it was planned for have come.

use super::state::{above, peak};

/// The loads that really came over the time a step was planned for: one value per bucket, cost units/s, all of
/// the same length.
#[derive(Clone, Debug, PartialEq)]
pub struct Realised {
    /// Of the segment to move.
    pub moved: Vec<f64>,
    /// Of the others on the shard it was to leave.
    pub stay: Vec<f64>,
    /// Of those on the shard it was to go to.
    pub there: Vec<f64>,
    /// Of all segments.
    pub total: Vec<f64>,
    /// Capacity of the shard it was to leave, cost units/s.
    pub from_capacity: f64,
    /// Capacity of the shard it was to go to, cost units/s.
    pub to_capacity: f64,
    /// Capacity of all shards that share the load ([`super::shared_capacities`]), cost units/s.
    pub capacity: f64,
    /// The first shard was to be emptied.
    pub drains: bool,
    /// What the step saves of the links across shards, cost units/s.
    pub joined: f64,
    /// The least benefit that pays for the move, cost units/s.
    pub least_gain: f64,
}

/// What a step was worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Reduction of what the peaks of the two shards exceed their fair share by, cost units/s.
    pub gain: f64,
    /// Whether that paid for the move, and the two were above it for no more load in all, because a lower peak at the cost of a
    /// longer one relieves nobody (unless what it saved of the links pays alone); for a drain, whether the target stayed within its capacity.
    pub paid: bool,
}

/// Judges a step by what came, as its confidence judged it by every sampled future (see [`super::plan`]),
/// whether it was carried out or not: the load of a segment does not depend on where it is.
pub fn outcome(realised: &Realised) -> Outcome {
    let Realised { moved, stay, there, .. } = realised;
    let with = |base: &[f64]| peak(base.iter().zip(moved).map(|(base, moved)| base + moved));
    let without = |base: &[f64]| peak(base.iter().copied());
    let fair = without(&realised.total) / realised.capacity.max(f64::MIN_POSITIVE);
    let excess = |peak: f64, capacity: f64| (peak - capacity * fair).max(0.0);
    let relief = excess(with(stay), realised.from_capacity) - excess(without(stay), realised.from_capacity);
    let growth = excess(with(there), realised.to_capacity) - excess(without(there), realised.to_capacity);
    let gain = relief - growth + realised.joined;
    let sum = |base: &[f64], share: f64, capacity: f64| {
        above(base.iter().zip(moved).map(|(base, moved)| base + share * moved), capacity * fair)
    };
    let before = sum(stay, 1.0, realised.from_capacity) + sum(there, 0.0, realised.to_capacity);
    let after = sum(stay, 0.0, realised.from_capacity) + sum(there, 1.0, realised.to_capacity);
    let paid = if realised.drains {
        with(there) <= realised.to_capacity
    } else {
        let joins = realised.joined > 0.0 && realised.joined >= realised.least_gain;
        gain > 0.0 && gain >= realised.least_gain && (joins || after <= before)
    };
    Outcome { gain, paid }
}
