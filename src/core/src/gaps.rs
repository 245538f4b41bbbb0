//! Sampling one event in so many without falling into step with the events.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Random gaps between samples: a fixed stride would always meet the same statement of a transaction
/// that has as many.
#[derive(Clone, Debug)]
pub struct Gaps {
    rng: SmallRng,
}

impl Gaps {
    /// Gaps determined by `seed`.
    pub fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed) }
    }

    /// Events until the next sample, counted from 1, uniform with mean `interval`; 1 for an interval of 1.
    pub fn next(&mut self, interval: u32) -> u32 {
        self.rng.random_range(1..=longest(interval))
    }

    /// Events until the first sample, counted from 1, by one who came in between two samples: as [`Gaps::next`] leaves it on
    /// average, so that short series of events have their share of samples. (The smaller of two different numbers up
    /// to twice the interval: the equilibrium distribution of a renewal process with uniform gaps.)
    pub fn first(&mut self, interval: u32) -> u32 {
        let numbers = longest(interval) + 1;
        let one = self.rng.random_range(1..=numbers);
        let other = self.rng.random_range(1..numbers);
        one.min(if other < one { other } else { other + 1 })
    }

    /// Which of the next `interval` events is the sample, counted from 0: one of each so many, so that their number is known.
    pub fn place(&mut self, interval: u32) -> u32 {
        self.rng.random_range(0..interval.max(1))
    }
}

/// The longest gap that [`Gaps::next`] draws for an interval: what is longer was drawn for another one.
#[inline]
pub fn longest(interval: u32) -> u32 {
    2 * interval.clamp(1, u32::MAX / 2) - 1
}
