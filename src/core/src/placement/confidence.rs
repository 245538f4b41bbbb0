//! How sure a step is: the share of the sampled futures in which it pays.

use super::state::{State, add, peak};
use super::{MAX_FUTURES, Segment};

/// Share of the joint futures in which moving `segment` to `to` lowers what the peaks of the two
/// shards exceed their fair share by, by more than `least_gain` (cost units/s); see [`super::plan`].
pub(super) fn confidence(state: &State, segment: usize, to: usize, least_gain: f64) -> f64 {
    let from = state.shard_of(segment);
    let Some(moved) = state.segments.get(segment) else {
        return 0.0;
    };
    let stay: Vec<&Segment> = state.members(from).filter(|member| member.id != moved.id).collect();
    let there: Vec<&Segment> = state.members(to).collect();
    let all = stay.iter().chain(&there).copied().chain([moved]);
    let futures = all.map(|member| member.futures.len()).min().unwrap_or(0).min(MAX_FUTURES);
    if futures == 0 {
        return 0.0;
    }
    let pays = (0..futures).filter(|k| {
        let moving = moved.futures.get(*k).map_or(&[][..], Vec::as_slice);
        let (to_before, to_after) = peaks_in(*k, &there, moving);
        if state.is_draining(from) {
            return to_after <= state.capacity(to);
        }
        let (from_after, from_before) = peaks_in(*k, &stay, moving);
        let excess =
            |from_peak, to_peak| state.excess_in(*k, from, from_peak) + state.excess_in(*k, to, to_peak);
        let gain = excess(from_before, to_before) - excess(from_after, to_after);
        gain > 0.0 && gain >= least_gain
    });
    pays.count() as f64 / futures as f64
}

/// Peak in future `k` of the segments without and with `extra`.
fn peaks_in(k: usize, segments: &[&Segment], extra: &[f64]) -> (f64, f64) {
    let mut sum = vec![0.0; extra.len()];
    for curve in segments.iter().filter_map(|segment| segment.futures.get(k)) {
        add(&mut sum, curve);
    }
    let without = peak(sum.iter().copied());
    add(&mut sum, extra);
    (without, peak(sum.into_iter()))
}
