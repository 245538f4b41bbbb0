//! What the shards of a plan's steps are at now, the steps that were taken before done.
//!
//! A step is judged by the present as well as by what is foreseen ([`crate::calibration::permission`]). Steps taken before
//! it count: the second of two steps off a shard in distress finds a shard that the first has relieved.

use std::collections::BTreeMap;

use crate::calibration::Present;
use crate::coverage::{Coverage, is_foreseeable};
use crate::placement::{Segment, Step};

/// A segment now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loaded {
    /// Identifier.
    pub segment: i64,
    /// Its shard, or the one that it is moving to.
    pub shard: i32,
    /// Its load, cost units/s.
    pub load: f64,
    /// The mean of the curve that it is planned by, cost units/s.
    pub planned: f64,
    /// How much of what came to it lately its forecasts covered.
    pub coverage: Coverage,
    /// It has futures, so that steps with it have a confidence.
    pub has_futures: bool,
}

impl Loaded {
    /// A segment of a plan that carries `load`.
    pub fn new(segment: &Segment, load: f64, coverage: Coverage) -> Self {
        let planned = segment.curve.iter().sum::<f64>() / segment.curve.len().max(1) as f64;
        let has_futures = !segment.futures.is_empty();
        Self { segment: segment.id, shard: segment.shard, load, planned, coverage, has_futures }
    }
}

/// All of them, and the shards they are on.
#[derive(Clone, Debug)]
pub struct Presence {
    segments: BTreeMap<i64, Loaded>,
    /// (Capacity, to be emptied) of each shard.
    shards: BTreeMap<i32, (f64, bool)>,
    nominal: f64,
}

impl Presence {
    /// Of segments on shards, each with its capacity in cost units/s and whether it is to be emptied; intervals of forecasts
    /// are to cover `nominal` of what comes.
    pub fn new(
        segments: impl Iterator<Item = Loaded>,
        shards: impl Iterator<Item = (i32, f64, bool)>,
        nominal: f64,
    ) -> Self {
        Self {
            segments: segments.map(|segment| (segment.segment, segment)).collect(),
            shards: shards.map(|(id, capacity, drains)| (id, (capacity, drains))).collect(),
            nominal,
        }
    }

    /// Load and `more` of a shard, as a share of its capacity; one that is not known is full.
    pub fn used(&self, shard: i32, more: f64) -> f64 {
        let load: f64 = self.on(shard).map(|segment| segment.load).sum();
        self.shards.get(&shard).map_or(1.0, |(capacity, _)| (load + more) / capacity)
    }

    /// Whether a shard is to be emptied.
    pub fn drains(&self, shard: i32) -> bool {
        self.shards.get(&shard).is_some_and(|(_, drains)| *drains)
    }

    /// What the two shards of a step are at.
    pub fn of(&self, step: &Step) -> Present {
        let ends = || self.on(step.from).chain(self.on(step.to));
        Present {
            from: self.used(step.from, 0.0),
            to_after: self.used(step.to, self.segments.get(&step.segment).map_or(0.0, |own| own.load)),
            drains: self.drains(step.from),
            foreseeable: is_foreseeable(ends().map(|own| (own.planned, own.coverage)), self.nominal),
            has_odds: ends().all(|own| own.has_futures),
        }
    }

    /// A step is taken.
    pub fn take(&mut self, step: &Step) {
        if let Some(segment) = self.segments.get_mut(&step.segment) {
            segment.shard = step.to;
        }
    }

    fn on(&self, shard: i32) -> impl Iterator<Item = &Loaded> {
        self.segments.values().filter(move |segment| segment.shard == shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(segment: i64, from: i32, to: i32) -> Step {
        Step {
            segment,
            from,
            to,
            benefit: 1.0,
            confidence: 1.0,
            foreseen: true,
            peak_before: 1.5,
            peak_after: 1.2,
            reason: String::new(),
        }
    }

    fn coverage(covered: bool) -> Coverage {
        let mut coverage = Coverage::default();
        (0..50).for_each(|_| coverage.observe(covered));
        coverage
    }

    fn loaded(segment: i64, shard: i32, covered: bool) -> Loaded {
        Loaded {
            segment,
            shard,
            load: 50.0,
            planned: 40.0,
            coverage: coverage(covered),
            has_futures: segment != 3,
        }
    }

    #[test]
    fn steps_that_were_taken_count() {
        let segments = [loaded(1, 1, true), loaded(2, 1, true), loaded(3, 2, false)];
        let shards = [(1, 100.0, false), (2, 200.0, true), (3, 100.0, false)];
        let mut presence = Presence::new(segments.into_iter(), shards.into_iter(), 0.9);
        let first = presence.of(&step(1, 1, 3));
        assert_eq!((first.from, first.to_after, first.drains, first.foreseeable), (1.0, 0.5, false, true));
        presence.take(&step(1, 1, 3));
        let second = presence.of(&step(2, 1, 3));
        assert_eq!((second.from, second.to_after), (0.5, 1.0));
        let third = presence.of(&step(3, 2, 3));
        assert_eq!((third.from, third.to_after, third.drains), (0.25, 1.0, true));
        assert!(!third.foreseeable, "half of the load there is not what was forecast");
        assert!(!third.has_odds && second.has_odds);
        assert_eq!(presence.used(4, 0.0), 1.0);
    }
}
