//! Load per shard and lead while a plan grows.

use super::{MAX_FUTURES, Segment, Shard};

/// A problem with its (changing) placement. Shards and segments are addressed by index.
#[derive(Clone)]
pub(super) struct State<'a> {
    pub(super) shards: &'a [Shard],
    pub(super) segments: &'a [Segment],
    /// Shard of each segment.
    place: Vec<usize>,
    /// Summed curve of each shard.
    loads: Vec<Vec<f64>>,
    /// Maximum of each shard's summed curve.
    peaks: Vec<f64>,
    /// Maximum of each segment's curve.
    heights: Vec<f64>,
    /// Peak of the cluster's summed curve.
    pub(super) total_peak: f64,
    /// The lowest utilisation peak any placement can have.
    pub(super) fair: f64,
    /// Fair load of a mean shard, cost units/s.
    pub(super) mean_load: f64,
    /// The fair utilisation in each joint future.
    fair_in: Vec<f64>,
}

/// Maximum of a curve, at least 0.
pub(super) fn peak(curve: impl Iterator<Item = f64>) -> f64 {
    curve.fold(0.0, f64::max)
}

/// Adds a curve to a sum.
pub(super) fn add(sum: &mut [f64], curve: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(curve) {
        *sum += value;
    }
}

impl<'a> State<'a> {
    /// The present placement of a checked problem.
    pub(super) fn new(shards: &'a [Shard], segments: &'a [Segment]) -> Self {
        let index: std::collections::BTreeMap<i32, usize> =
            shards.iter().enumerate().map(|(index, shard)| (shard.id, index)).collect();
        let leads = segments.first().map_or(0, |segment| segment.curve.len());
        let mut total = vec![0.0; leads];
        let mut loads = vec![vec![0.0; leads]; shards.len()];
        let mut place = Vec::with_capacity(segments.len());
        for segment in segments {
            let shard = index.get(&segment.shard).copied().unwrap_or(0);
            place.push(shard);
            add(&mut total, &segment.curve);
            if let Some(load) = loads.get_mut(shard) {
                add(load, &segment.curve);
            }
        }
        let active: Vec<f64> =
            shards.iter().filter(|shard| !shard.draining).map(|shard| shard.capacity).collect();
        // With every shard draining there is no target; any positive capacity keeps ratios finite.
        let capacity = if active.is_empty() {
            shards.iter().map(|shard| shard.capacity).sum()
        } else {
            active.iter().sum::<f64>()
        };
        let total_peak = peak(total.into_iter());
        Self {
            shards,
            segments,
            place,
            peaks: loads.iter().map(|load| peak(load.iter().copied())).collect(),
            loads,
            heights: segments.iter().map(|segment| peak(segment.curve.iter().copied())).collect(),
            total_peak,
            fair: total_peak / capacity,
            mean_load: total_peak / active.len().max(1) as f64,
            fair_in: total_peaks_in(segments, leads).iter().map(|peak| peak / capacity).collect(),
        }
    }

    pub(super) fn shard_of(&self, segment: usize) -> usize {
        self.place.get(segment).copied().unwrap_or(0)
    }

    pub(super) fn is_draining(&self, shard: usize) -> bool {
        self.shards.get(shard).is_some_and(|shard| shard.draining)
    }

    pub(super) fn capacity(&self, shard: usize) -> f64 {
        self.shards.get(shard).map_or(1.0, |shard| shard.capacity)
    }

    /// Peak of a segment's curve, cost units/s.
    pub(super) fn height(&self, segment: usize) -> f64 {
        self.heights.get(segment).copied().unwrap_or(0.0)
    }

    /// Peak of a shard, cost units/s.
    pub(super) fn peak(&self, shard: usize) -> f64 {
        self.peaks.get(shard).copied().unwrap_or(0.0)
    }

    /// Utilisation peak of a shard / fair utilisation; 1 without any load.
    pub(super) fn relative(&self, shard: usize) -> f64 {
        self.relative_of(shard, self.peak(shard))
    }

    /// The same if the shard's peak were `peak`.
    pub(super) fn relative_of(&self, shard: usize, peak: f64) -> f64 {
        if self.fair > 0.0 { peak / self.capacity(shard) / self.fair } else { 1.0 }
    }

    /// What `peak` on `shard` exceeds the shard's fair share by, cost units/s.
    pub(super) fn excess(&self, shard: usize, peak: f64) -> f64 {
        (peak - self.capacity(shard) * self.fair).max(0.0)
    }

    /// The same in joint future `k`.
    pub(super) fn excess_in(&self, k: usize, shard: usize, peak: f64) -> f64 {
        (peak - self.capacity(shard) * self.fair_in.get(k).copied().unwrap_or(self.fair)).max(0.0)
    }

    /// Contribution of a segment to the objective while it is on a draining shard.
    pub(super) fn drain_penalty(&self, segment: usize) -> f64 {
        // More than any target's excess can grow by, so that draining always improves; the one is
        // for segments without load.
        2.0 * self.height(segment) + 1.0
    }

    /// See the module [`super`].
    pub(super) fn objective(&self) -> f64 {
        let active = (0..self.shards.len()).filter(|shard| !self.is_draining(*shard));
        let excess: f64 = active.map(|shard| self.excess(shard, self.peak(shard))).sum();
        let left = (0..self.segments.len()).filter(|s| self.is_draining(self.shard_of(*s)));
        excess + left.map(|segment| self.drain_penalty(segment)).sum::<f64>()
    }

    /// Highest relative utilisation of all shards.
    pub(super) fn imbalance(&self) -> f64 {
        peak((0..self.shards.len()).map(|shard| self.relative(shard)))
    }

    /// Highest relative utilisation of the shards that are not draining.
    pub(super) fn active_imbalance(&self) -> f64 {
        let active = (0..self.shards.len()).filter(|shard| !self.is_draining(*shard));
        peak(active.map(|shard| self.relative(shard)))
    }

    /// Peak of the segment's shard without it.
    pub(super) fn peak_without(&self, segment: usize) -> f64 {
        self.combined_peak(self.shard_of(segment), segment, |load, value| load - value)
    }

    /// Peak of `shard` with the segment added.
    pub(super) fn peak_with(&self, shard: usize, segment: usize) -> f64 {
        self.combined_peak(shard, segment, |load, value| load + value)
    }

    fn combined_peak(&self, shard: usize, segment: usize, op: impl Fn(f64, f64) -> f64) -> f64 {
        match (self.loads.get(shard), self.segments.get(segment)) {
            (Some(load), Some(segment)) => {
                peak(load.iter().zip(&segment.curve).map(|(load, value)| op(*load, *value)))
            }
            _ => 0.0,
        }
    }

    /// Moves a segment.
    pub(super) fn apply(&mut self, segment: usize, to: usize) {
        let from = self.shard_of(segment);
        if let Some(place) = self.place.get_mut(segment) {
            *place = to;
        }
        // Summed anew, so that rounding errors do not pile up over a long plan.
        for shard in [from, to] {
            let mut sum = vec![0.0; self.loads.get(shard).map_or(0, Vec::len)];
            for member in self.members(shard) {
                add(&mut sum, &member.curve);
            }
            if let (Some(load), Some(top)) = (self.loads.get_mut(shard), self.peaks.get_mut(shard)) {
                *top = peak(sum.iter().copied());
                *load = sum;
            }
        }
    }

    /// The segments on a shard.
    pub(super) fn members(&self, shard: usize) -> impl Iterator<Item = &'a Segment> {
        let placed = self.segments.iter().zip(&self.place);
        placed.filter(move |(_, place)| **place == shard).map(|(segment, _)| segment)
    }
}

/// Peak of the cluster in each joint future; a segment without that future counts with its mean.
fn total_peaks_in(segments: &[Segment], leads: usize) -> Vec<f64> {
    let most = segments.iter().map(|segment| segment.futures.len()).max().unwrap_or(0);
    let total = |k: usize| {
        let mut sum = vec![0.0; leads];
        for segment in segments {
            add(&mut sum, segment.futures.get(k).unwrap_or(&segment.curve));
        }
        peak(sum.into_iter())
    };
    (0..most.min(MAX_FUTURES)).map(total).collect()
}
