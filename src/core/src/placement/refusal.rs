//! Why hot segments stay where they are.

use std::fmt;

use super::greedy::{Verdict, blocked, drain_target, overloaded, verdict_anywhere};
use super::state::State;
use super::{Hold, PlanOptions};

/// Why a hot segment is not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// Too hot to be moved whole: wherever it goes is the next hot shard.
    UnsplittableKey,
    /// Its load is not known well enough.
    InsufficientHistory,
    /// No shard could take it and be better off than the shard it is on.
    NoTargetCapacity,
    /// It moved a short while ago.
    Cooldown,
    /// It is moving.
    InFlight,
    /// Moving it would help, but less than it costs or less than the minimum.
    LowBenefit,
    /// Moving it would relieve its shard, but its accesses would wait so much for the node that it does not pay.
    RoundTrip,
    /// Its shard has not been overloaded for long enough.
    NotHotLongEnough,
    /// A person pinned it.
    Pinned,
    /// Its table is not to be planned for.
    ModeOff,
}

impl RefusalReason {
    /// The machine-readable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnsplittableKey => "unsplittable_key",
            Self::InsufficientHistory => "insufficient_history",
            Self::NoTargetCapacity => "no_target_capacity",
            Self::Cooldown => "cooldown",
            Self::InFlight => "in_flight",
            Self::LowBenefit => "low_benefit",
            Self::RoundTrip => "round_trip",
            Self::NotHotLongEnough => "not_hot_long_enough",
            Self::Pinned => "pinned",
            Self::ModeOff => "mode_off",
        }
    }

    /// What a person can do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::UnsplittableKey => {
                "Split the slot or isolate its hot keys first; if one key makes all the load, \
                 cache it or spread it in the application."
            }
            Self::InsufficientHistory => "Wait until enough buckets of its load are known.",
            Self::NoTargetCapacity => "Add a shard, or raise the capacity of an existing one.",
            Self::Cooldown => "Wait until the cool-down after its last move is over.",
            Self::InFlight => "Wait until its current move is over.",
            Self::LowBenefit => {
                "Nothing needs to be done; lower the minimum benefit or the move cost to act anyway."
            }
            Self::RoundTrip => {
                "Add a shard on this server or on a nearer node; lower foreshard.wait_cost if waiting matters less \
                 than the overload."
            }
            Self::NotHotLongEnough => "Wait: the overload may pass by itself.",
            Self::Pinned => "Remove the pin if the segment may move.",
            Self::ModeOff => {
                "Nothing is planned for its table in mode off; foreshard.configure() changes that."
            }
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A hot segment that is not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The segment.
    pub segment: i64,
    /// Why.
    pub reason: RefusalReason,
}

/// Segments that matter and stay on shards that stay overloaded or undrained.
pub(super) fn all(state: &State, options: &PlanOptions, acts: bool) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (index, segment) in state.segments.iter().enumerate() {
        let shard = state.shard_of(index);
        let reason = if state.is_draining(shard) {
            undrained(state, index)
        } else if acts
            && overloaded(state, options, shard)
            && state.height(index) >= options.min_benefit_fraction * state.mean_load
        {
            unmoved(state, options, index)
        } else {
            None
        };
        if let Some(reason) = reason {
            refusals.push(Refusal { segment: segment.id, reason });
        }
    }
    refusals.sort_by_key(|refusal| refusal.segment);
    refusals
}

fn undrained(state: &State, index: usize) -> Option<RefusalReason> {
    match state.segments.get(index).map(|segment| segment.hold) {
        Some(Hold::InFlight) => Some(RefusalReason::InFlight),
        Some(Hold::Pinned) => Some(RefusalReason::Pinned),
        Some(Hold::Off) => Some(RefusalReason::ModeOff),
        // A segment that would fit was only beyond the step limit: the next plan takes it.
        _ if drain_target(state, index).is_some() => None,
        _ => Some(RefusalReason::NoTargetCapacity),
    }
}

fn unmoved(state: &State, options: &PlanOptions, index: usize) -> Option<RefusalReason> {
    if let Some(reason) = blocked(state, options, index) {
        return Some(reason);
    }
    match verdict_anywhere(state, options, index, false) {
        Verdict::NoTarget => Some(RefusalReason::NoTargetCapacity),
        Verdict::TooFar => Some(RefusalReason::RoundTrip),
        Verdict::LowBenefit => Some(RefusalReason::LowBenefit),
        // It was beyond the step limit: the next plan takes it.
        Verdict::Move(_) => None,
    }
}
