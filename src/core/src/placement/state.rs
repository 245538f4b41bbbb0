//! Load per shard and lead while a plan grows.

use std::collections::{BTreeMap, BTreeSet};

use super::futures::Futures;
use super::{Link, PlanOptions, Segment, Shard, farther};

/// A problem with its (changing) placement. Shards and segments are addressed by index.
#[derive(Clone)]
pub(super) struct State<'a> {
    pub(super) shards: &'a [Shard],
    pub(super) segments: &'a [Segment],
    /// Shard of each segment.
    place: Vec<usize>,
    /// Segments of each shard.
    members: Vec<Vec<usize>>,
    /// Summed curve of each shard.
    loads: Vec<Vec<f64>>,
    /// Maximum of each shard's summed curve.
    peaks: Vec<f64>,
    /// Maximum of each segment's curve.
    heights: Vec<f64>,
    /// (Other segment, weight) of each segment that is used together with others.
    links: Vec<Vec<(usize, f64)>>,
    /// Peak of the cluster's summed curve.
    pub(super) total_peak: f64,
    /// The lowest utilisation peak any placement can have.
    pub(super) fair: f64,
    /// Fair load of a mean shard, cost units/s.
    pub(super) mean_load: f64,
    /// Sampled futures.
    pub(super) futures: Futures,
}

/// Maximum of a curve, at least 0.
pub(super) fn peak(curve: impl Iterator<Item = f64>) -> f64 {
    curve.fold(0.0, f64::max)
}

/// What of a curve is above `level`, all leads together.
pub(super) fn above(curve: impl Iterator<Item = f64>, level: f64) -> f64 {
    curve.map(|load| (load - level).max(0.0)).sum()
}

/// Adds a curve to a sum.
pub(super) fn add(sum: &mut [f64], curve: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(curve) {
        *sum += value;
    }
}

/// Capacities of the shards that share the load of these segments, cost units/s: of those that are not draining and hold one, or may
/// hold one. What nobody can use makes no share of anybody smaller. None when all are draining.
pub fn shared_capacities(shards: &[Shard], segments: &[Segment]) -> Vec<f64> {
    let holding: BTreeSet<i32> = segments.iter().map(|segment| segment.shard).collect();
    let classes = segments.iter().fold(0, |classes, segment| classes | segment.class);
    let shares =
        |shard: &&Shard| !shard.draining && (holding.contains(&shard.id) || shard.accepts & classes != 0);
    shards.iter().filter(shares).map(|shard| shard.capacity).collect()
}

impl<'a> State<'a> {
    /// The present placement of a checked problem.
    pub(super) fn new(shards: &'a [Shard], segments: &'a [Segment], links: &[Link]) -> Self {
        let index: BTreeMap<i32, usize> =
            shards.iter().zip(0..).map(|(shard, index)| (shard.id, index)).collect();
        let leads = segments.first().map_or(0, |segment| segment.curve.len());
        let mut total = vec![0.0; leads];
        let mut loads = vec![vec![0.0; leads]; shards.len()];
        let mut members = vec![Vec::new(); shards.len()];
        let mut place = Vec::with_capacity(segments.len());
        for (at, segment) in segments.iter().enumerate() {
            let shard = index.get(&segment.shard).copied().unwrap_or(0);
            place.push(shard);
            add(&mut total, &segment.curve);
            if let (Some(load), Some(members)) = (loads.get_mut(shard), members.get_mut(shard)) {
                add(load, &segment.curve);
                members.push(at);
            }
        }
        let active = shared_capacities(shards, segments);
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
            futures: Futures::new(segments, &place, shards.len(), leads, capacity),
            place,
            members,
            peaks: loads.iter().map(|load| peak(load.iter().copied())).collect(),
            loads,
            heights: segments.iter().map(|segment| peak(segment.curve.iter().copied())).collect(),
            links: linked(segments, links),
            total_peak,
            fair: total_peak / capacity,
            mean_load: total_peak / active.len().max(1) as f64,
        }
    }

    pub(super) fn shard_of(&self, segment: usize) -> usize {
        self.place.get(segment).copied().unwrap_or(0)
    }

    pub(super) fn is_draining(&self, shard: usize) -> bool {
        self.shards.get(shard).is_some_and(|shard| shard.draining)
    }

    /// Whether a shard may hold a segment.
    pub(super) fn accepts(&self, shard: usize, segment: usize) -> bool {
        match (self.shards.get(shard), self.segments.get(segment)) {
            (Some(shard), Some(segment)) => !shard.draining && shard.accepts & segment.class != 0,
            _ => false,
        }
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

    /// Contribution of a segment to the objective while it is on a draining shard.
    pub(super) fn drain_penalty(&self, segment: usize) -> f64 {
        // More than any target's excess, cut links and waits can grow by, so that draining always improves; the one
        // is for segments without load.
        let farthest = peak((0..self.shards.len()).map(|to| self.farther(segment, to)));
        2.0 * self.height(segment) + 1.0 + self.linked_to(segment, |_| true) + farthest
    }

    /// Weight of the links of a segment to segments on shards that `on` names, cost units/s.
    pub(super) fn linked_to(&self, segment: usize, on: impl Fn(usize) -> bool) -> f64 {
        let links = self.links.get(segment).map_or(&[][..], Vec::as_slice);
        links.iter().filter(|(other, _)| on(self.shard_of(*other))).map(|(_, weight)| weight).sum()
    }

    /// What moving a segment to `to` saves of the links across shards, cost units/s.
    pub(super) fn joined(&self, segment: usize, to: usize) -> f64 {
        let from = self.shard_of(segment);
        self.linked_to(segment, |shard| shard == to) - self.linked_to(segment, |shard| shard == from)
    }

    /// What its accesses cost more on `to` than where it is, cost units/s; see [`farther`].
    pub(super) fn farther(&self, segment: usize, to: usize) -> f64 {
        let places = (self.shards.get(self.shard_of(segment)), self.shards.get(to));
        match (self.segments.get(segment), places) {
            (Some(segment), (Some(from), Some(to))) => farther(segment, from, to),
            _ => 0.0,
        }
    }

    /// Shards on which a segment has linked ones, other than its own.
    pub(super) fn linked_shards(&self, segment: usize) -> Vec<usize> {
        let links = self.links.get(segment).map_or(&[][..], Vec::as_slice);
        let mut shards: Vec<usize> = links.iter().map(|(other, _)| self.shard_of(*other)).collect();
        shards.sort_unstable();
        shards.dedup();
        shards.retain(|shard| *shard != self.shard_of(segment));
        shards
    }

    /// See the module [`super`].
    pub(super) fn objective(&self) -> f64 {
        let active = (0..self.shards.len()).filter(|shard| !self.is_draining(*shard));
        let excess: f64 = active.map(|shard| self.excess(shard, self.peak(shard))).sum();
        let left = (0..self.segments.len()).filter(|s| self.is_draining(self.shard_of(*s)));
        let left: f64 = left.map(|segment| self.drain_penalty(segment)).sum();
        let cut = (0..self.segments.len()).map(|s| self.linked_to(s, |shard| shard != self.shard_of(s)));
        // Every link is seen from both of its ends.
        excess + left + cut.sum::<f64>() / 2.0 + self.waits()
    }

    /// What it costs that accesses wait for round trips, cost units/s.
    fn waits(&self) -> f64 {
        let here = |shard: &Shard| Shard { round_trip_ms: 0.0, ..shard.clone() };
        let one = |(segment, place): (&Segment, &usize)| {
            self.shards.get(*place).map_or(0.0, |shard| farther(segment, &here(shard), shard))
        };
        self.segments.iter().zip(&self.place).map(one).sum()
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

    /// Whether the sampled futures agree that a shard will be overloaded.
    pub(super) fn is_foreseen(&self, shard: usize, options: &PlanOptions) -> bool {
        let limit = 1.0 + options.imbalance_high;
        let share = self.futures.share_above(shard, self.capacity(shard) * limit);
        share.is_some_and(|share| share >= options.foresight)
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

    /// Summed curve of a shard.
    pub(super) fn load(&self, shard: usize) -> &[f64] {
        self.loads.get(shard).map_or(&[], Vec::as_slice)
    }

    /// Moves a segment.
    pub(super) fn apply(&mut self, segment: usize, to: usize) {
        let from = self.shard_of(segment);
        if from == to {
            return;
        }
        if let Some(place) = self.place.get_mut(segment) {
            *place = to;
        }
        if let Some(members) = self.members.get_mut(from) {
            members.retain(|member| *member != segment);
        }
        if let Some(members) = self.members.get_mut(to) {
            members.push(segment);
        }
        // Summed anew, so that rounding errors do not pile up over a long plan.
        for shard in [from, to] {
            let mut sum = vec![0.0; self.load(shard).len()];
            for member in self.members(shard).iter().filter_map(|member| self.segments.get(*member)) {
                add(&mut sum, &member.curve);
            }
            if let (Some(load), Some(top)) = (self.loads.get_mut(shard), self.peaks.get_mut(shard)) {
                *top = peak(sum.iter().copied());
                *load = sum;
            }
        }
        if let Some(moved) = self.segments.get(segment) {
            self.futures.apply(moved, from, to);
        }
    }

    /// The segments on a shard.
    pub(super) fn members(&self, shard: usize) -> &[usize] {
        self.members.get(shard).map_or(&[], Vec::as_slice)
    }
}

/// Links by segment, from both ends; those of unknown segments or without a positive weight are left out.
fn linked(segments: &[Segment], links: &[Link]) -> Vec<Vec<(usize, f64)>> {
    if links.is_empty() {
        return Vec::new();
    }
    let index: BTreeMap<i64, usize> =
        segments.iter().zip(0..).map(|(segment, index)| (segment.id, index)).collect();
    let mut linked = vec![Vec::new(); segments.len()];
    for link in links.iter().filter(|link| link.weight.is_finite() && link.weight > 0.0) {
        if let (Some(a), Some(b)) = (index.get(&link.a), index.get(&link.b))
            && a != b
        {
            linked[*a].push((*b, link.weight));
            linked[*b].push((*a, link.weight));
        }
    }
    linked
}
