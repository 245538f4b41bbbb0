//! Sampled futures of whole shards: how sure a step is.

use super::state::{above, add, peak};
use super::{MAX_FUTURES, Segment};

/// The most numbers kept: 64 MB. Beyond it fewer futures are looked at.
const MAX_NUMBERS: usize = 1 << 23;

/// Summed curves of every shard in every joint future. A segment without a future counts with its mean curve.
#[derive(Clone)]
pub(super) struct Futures {
    count: usize,
    leads: usize,
    shards: usize,
    /// By future, shard, lead.
    sums: Vec<f64>,
    /// The fair utilisation in each future.
    fair: Vec<f64>,
    /// Segments of each shard without futures.
    unknown: Vec<usize>,
}

/// The two shards of a step.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    pub(super) from: usize,
    pub(super) to: usize,
    /// What they can carry, cost units/s.
    pub(super) from_capacity: f64,
    pub(super) to_capacity: f64,
    /// The first is to be emptied: all that matters is that the second can carry it.
    pub(super) drains: bool,
    /// What the step saves of the links across shards, cost units/s.
    pub(super) joined: f64,
}

impl Futures {
    /// Of a placement on `shards` shards that can carry `capacity` together.
    pub(super) fn new(
        segments: &[Segment],
        place: &[usize],
        shards: usize,
        leads: usize,
        capacity: f64,
    ) -> Self {
        let known = segments.iter().map(|segment| segment.futures.len()).filter(|count| *count > 0);
        let room = MAX_NUMBERS / (shards * leads).max(1);
        let count = known.min().unwrap_or(0).min(MAX_FUTURES).min(room);
        let mut futures = Self {
            count,
            leads,
            shards,
            sums: vec![0.0; count * shards * leads],
            fair: Vec::with_capacity(count),
            unknown: vec![0; shards],
        };
        for (segment, shard) in segments.iter().zip(place) {
            futures.unknown[*shard] += usize::from(segment.futures.is_empty());
            for k in 0..count {
                add(futures.sum_mut(k, *shard), curve(segment, k));
            }
        }
        for k in 0..count {
            let mut total = vec![0.0; leads];
            (0..shards).for_each(|shard| add(&mut total, futures.sum(k, shard)));
            futures.fair.push(peak(total.into_iter()) / capacity);
        }
        futures
    }

    fn range(&self, k: usize, shard: usize) -> std::ops::Range<usize> {
        let begin = (k * self.shards + shard) * self.leads;
        begin..begin + self.leads
    }

    fn sum(&self, k: usize, shard: usize) -> &[f64] {
        self.sums.get(self.range(k, shard)).unwrap_or(&[])
    }

    fn sum_mut(&mut self, k: usize, shard: usize) -> &mut [f64] {
        let range = self.range(k, shard);
        self.sums.get_mut(range).unwrap_or(&mut [])
    }

    /// A segment has moved.
    pub(super) fn apply(&mut self, segment: &Segment, from: usize, to: usize) {
        if segment.futures.is_empty() {
            self.unknown[from] = self.unknown[from].saturating_sub(1);
            self.unknown[to] += 1;
        }
        for k in 0..self.count {
            let moved = curve(segment, k);
            add(self.sum_mut(k, to), moved);
            let left = self.sum_mut(k, from).iter_mut().zip(moved);
            left.for_each(|(sum, value)| *sum = (*sum - value).max(0.0));
        }
    }

    /// Share of the futures in which the peak of a shard is above `limit` × the fair utilisation of that
    /// future; None when there are none.
    pub(super) fn share_above(&self, shard: usize, limit: f64) -> Option<f64> {
        let above = |k: &usize| peak(self.sum(*k, shard).iter().copied()) > limit * self.fair[*k];
        (self.count > 0).then(|| (0..self.count).filter(above).count() as f64 / self.count as f64)
    }

    /// Share of the futures in which moving `segment` lowers what the peaks of the two shards exceed their
    /// fair share by, by more than `least_gain` (cost units/s), as [`super::outcome`] judges it afterwards; see [`super::plan`].
    /// 0 when a segment of theirs has no futures.
    pub(super) fn confidence(&self, segment: &Segment, ends: Ends, least_gain: f64) -> f64 {
        if self.count == 0 || self.unknown[ends.from] + self.unknown[ends.to] > 0 {
            return 0.0;
        }
        // What pays by the links alone need not be a relief as well.
        let joins = ends.joined > 0.0 && ends.joined >= least_gain;
        let pays = (0..self.count).filter(|k| {
            if ends.drains {
                let after = combined(self.sum(*k, ends.to), curve(segment, *k), |sum, value| sum + value);
                return after <= ends.to_capacity;
            }
            let gain = self.gain(*k, segment, ends);
            gain > 0.0 && gain >= least_gain && (joins || self.is_relief(*k, segment, ends))
        });
        pays.count() as f64 / self.count as f64
    }

    /// Mean gain of moving `segment` over all futures, cost units/s; None when there are none.
    pub(super) fn mean_gain(&self, segment: &Segment, ends: Ends) -> Option<f64> {
        let sum: f64 = (0..self.count).map(|k| self.gain(k, segment, ends)).sum();
        (self.count > 0).then(|| sum / self.count as f64)
    }

    /// Whether in future `k` the two shards are above their fair share for no more load in all than without the move.
    fn is_relief(&self, k: usize, segment: &Segment, ends: Ends) -> bool {
        let excess = |shard: usize, capacity: f64, share: f64| {
            let loads = self.sum(k, shard).iter().zip(curve(segment, k));
            above(loads.map(|(load, moved)| load + share * moved), capacity * self.fair[k])
        };
        let before = excess(ends.from, ends.from_capacity, 0.0) + excess(ends.to, ends.to_capacity, 0.0);
        let after = excess(ends.from, ends.from_capacity, -1.0) + excess(ends.to, ends.to_capacity, 1.0);
        after <= before
    }

    /// What the move lowers the excess of both peaks by in future `k`, cost units/s.
    fn gain(&self, k: usize, segment: &Segment, ends: Ends) -> f64 {
        let moved = curve(segment, k);
        let to_after = combined(self.sum(k, ends.to), moved, |sum, value| sum + value);
        let from_after = combined(self.sum(k, ends.from), moved, |sum, value| sum - value);
        let before = |shard| peak(self.sum(k, shard).iter().copied());
        let excess = |peak: f64, capacity: f64| (peak - capacity * self.fair[k]).max(0.0);
        let relief = excess(before(ends.from), ends.from_capacity) - excess(from_after, ends.from_capacity);
        let growth = excess(to_after, ends.to_capacity) - excess(before(ends.to), ends.to_capacity);
        relief - growth + ends.joined
    }
}

fn curve(segment: &Segment, k: usize) -> &[f64] {
    segment.futures.get(k).unwrap_or(&segment.curve)
}

fn combined(sum: &[f64], curve: &[f64], op: impl Fn(f64, f64) -> f64) -> f64 {
    peak(sum.iter().zip(curve).map(|(sum, value)| op(*sum, *value)))
}
