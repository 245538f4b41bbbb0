//! Refuses malformed problems before any arithmetic.

use std::collections::BTreeSet;

use super::{MAX_LEADS, MAX_SEGMENTS, MAX_SHARDS, PlacementError, PlanOptions, Segment, Shard};

/// Checks shards and segments.
pub(super) fn problem(shards: &[Shard], segments: &[Segment]) -> Result<(), PlacementError> {
    if shards.is_empty() {
        return Err(PlacementError::NoShards);
    }
    limit("shards", shards.len(), MAX_SHARDS)?;
    limit("segments", segments.len(), MAX_SEGMENTS)?;
    let mut known = BTreeSet::new();
    for shard in shards {
        if !shard.capacity.is_finite() || shard.capacity <= 0.0 {
            return Err(PlacementError::BadCapacity { shard: shard.id });
        }
        if !known.insert(shard.id) {
            return Err(PlacementError::DuplicateShard { shard: shard.id });
        }
    }
    let leads = segments.first().map_or(0, |segment| segment.curve.len());
    limit("leads", leads, MAX_LEADS)?;
    let mut seen = BTreeSet::new();
    for segment in segments {
        if !seen.insert(segment.id) {
            return Err(PlacementError::DuplicateSegment { segment: segment.id });
        }
        if !known.contains(&segment.shard) {
            let (segment, shard) = (segment.id, segment.shard);
            return Err(PlacementError::UnknownShard { segment, shard });
        }
        let mut curves = std::iter::once(&segment.curve).chain(&segment.futures);
        if leads == 0 || !curves.all(|curve| curve.len() == leads && is_load(curve)) {
            return Err(PlacementError::BadCurve { segment: segment.id });
        }
    }
    Ok(())
}

fn is_load(curve: &[f64]) -> bool {
    // The upper bound keeps sums of many curves finite.
    curve.iter().all(|value| (0.0..=1e200).contains(value))
}

fn limit(what: &'static str, have: usize, limit: usize) -> Result<(), PlacementError> {
    if have > limit { Err(PlacementError::TooLarge { what, limit }) } else { Ok(()) }
}

/// Checks the options.
pub(super) fn options(options: &PlanOptions) -> Result<(), PlacementError> {
    let bad = |name| Err(PlacementError::BadOption { name });
    let at_least_0 = |value: f64| value.is_finite() && value >= 0.0;
    if !at_least_0(options.imbalance_high) {
        return bad("imbalance_high");
    }
    if !at_least_0(options.imbalance_low) || options.imbalance_low > options.imbalance_high {
        return bad("imbalance_low");
    }
    if !at_least_0(options.min_benefit_fraction) {
        return bad("min_benefit_fraction");
    }
    if !at_least_0(options.move_cost_per_mib) {
        return bad("move_cost_per_mib");
    }
    if !options.payback_s.is_finite() || options.payback_s <= 0.0 {
        return bad("payback_s");
    }
    if !at_least_0(options.min_load) {
        return bad("min_load");
    }
    if options.unmovable_share.is_nan() || options.unmovable_share <= 0.0 {
        return bad("unmovable_share");
    }
    if options.foresight.is_nan() || options.foresight <= 0.0 {
        return bad("foresight");
    }
    Ok(())
}
