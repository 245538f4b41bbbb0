//! Initial placement: weighted consistent hashing with bounded loads.
//!
//! Source: Mirrokni, Thorup, Zadimoghaddam, *Consistent Hashing with Bounded Loads* (SODA 2018):
//! a ball goes to the first bin of its own preference order that has room, and a bin has room for
//! `ceil((1 + epsilon) * fair share)` balls. The preference order is weighted rendezvous hashing
//! (Thaler, Ravishankar 1998; weights by Schindelhauer, Schomaker 2005) instead of a circle with
//! virtual nodes, so a shard's share follows its capacity exactly and does not depend on who else
//! is there.
//!
//! The result is part of the on-disk contract: the same arguments give the same layout in every
//! version and on every machine. So the hash is xxh3 with fixed seeds, and the logarithm is our own
//! (the platform's `ln` may differ in the last bit).

use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The most slots one layout may have.
pub const MAX_SLOTS: u32 = 65_536;

/// The most shards one layout may spread over.
pub const MAX_SHARDS: usize = 4_096;

/// Seed of the (slot, shard) affinity. Never change it.
const AFFINITY_SEED: u64 = 0x666f_7265_7368_6172;

/// Seed of the order in which slots choose. Never change it.
const ORDER_SEED: u64 = 0x6472_6168_7365_726f;

/// A shard and the share of the load it is meant to carry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardWeight {
    /// The shard's identifier; it enters the hash, so renumbering shards moves slots.
    pub shard_id: i32,
    /// Relative capacity (cost units per second), finite and above 0.
    pub capacity: f64,
}

/// Why a layout could not be computed.
#[derive(Clone, Debug, PartialEq)]
pub enum RingError {
    /// There is no shard to place anything on.
    NoShards,
    /// The capacity of this shard is not a finite number above 0.
    BadCapacity {
        /// The shard whose capacity is bad.
        shard_id: i32,
    },
    /// `epsilon` is not a finite number of at least 0.
    BadEpsilon,
    /// More slots than [`MAX_SLOTS`].
    TooManySlots {
        /// The number of slots asked for.
        slots: u32,
        /// The number of slots allowed.
        limit: u32,
    },
    /// More shards than [`MAX_SHARDS`].
    TooManyShards {
        /// The number of shards given.
        shards: usize,
        /// The number of shards allowed.
        limit: usize,
    },
    /// The same shard is named twice.
    DuplicateShard {
        /// The shard named twice.
        shard_id: i32,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoShards => write!(f, "there is no shard to place slots on"),
            Self::BadCapacity { shard_id } => {
                write!(f, "capacity of shard {shard_id} must be a positive number")
            }
            Self::BadEpsilon => write!(f, "epsilon must be a number of at least 0"),
            Self::TooManySlots { slots, limit } => {
                write!(f, "{slots} slots exceed the limit of {limit}")
            }
            Self::TooManyShards { shards, limit } => {
                write!(f, "{shards} shards exceed the limit of {limit}")
            }
            Self::DuplicateShard { shard_id } => write!(f, "shard {shard_id} is named twice"),
        }
    }
}

impl std::error::Error for RingError {}

/// Places `slots` slots on `shards`; element `i` of the result is the shard of slot `i`.
///
/// Each shard gets at most `ceil((1 + epsilon) * slots * capacity / total capacity)` slots.
/// `layout_key` identifies the colocation layout, so that two groups spread differently. The order
/// of `shards` does not matter. A small `epsilon` is evener; a large one moves fewer slots when a
/// shard comes or goes.
///
/// # Errors
/// [`RingError`] for no shards, bad capacities or epsilon, duplicates, or sizes beyond the limits.
pub fn place_slots(
    layout_key: u64,
    slots: u32,
    shards: &[ShardWeight],
    epsilon: f64,
) -> Result<Vec<i32>, RingError> {
    check(slots, shards, epsilon)?;
    // Sorted, so that floating-point sums and ties do not depend on the caller's order.
    let mut shards = shards.to_vec();
    shards.sort_by_key(|shard| shard.shard_id);
    let mut room = rooms(slots, &shards, epsilon);

    // Slots choose in a hashed order: whoever is displaced by a full shard is then arbitrary, not
    // always the highest remainders.
    let mut order: Vec<(u64, u32)> =
        (0..slots).map(|slot| (hash(ORDER_SEED, layout_key, slot, 0), slot)).collect();
    order.sort_unstable();

    let mut layout = vec![0_i32; slots as usize];
    for (_, slot) in order {
        let chosen = choose(layout_key, slot, &shards, &room);
        if let (Some(place), Some(left), Some(shard)) =
            (layout.get_mut(slot as usize), room.get_mut(chosen), shards.get(chosen))
        {
            *place = shard.shard_id;
            *left = left.saturating_sub(1);
        }
    }
    Ok(layout)
}

fn check(slots: u32, shards: &[ShardWeight], epsilon: f64) -> Result<(), RingError> {
    if shards.is_empty() {
        return Err(RingError::NoShards);
    }
    if slots > MAX_SLOTS {
        return Err(RingError::TooManySlots { slots, limit: MAX_SLOTS });
    }
    if shards.len() > MAX_SHARDS {
        return Err(RingError::TooManyShards { shards: shards.len(), limit: MAX_SHARDS });
    }
    if !epsilon.is_finite() || epsilon < 0.0 {
        return Err(RingError::BadEpsilon);
    }
    let mut seen = std::collections::BTreeSet::new();
    for shard in shards {
        if !shard.capacity.is_finite() || shard.capacity <= 0.0 {
            return Err(RingError::BadCapacity { shard_id: shard.shard_id });
        }
        if !seen.insert(shard.shard_id) {
            return Err(RingError::DuplicateShard { shard_id: shard.shard_id });
        }
    }
    Ok(())
}

/// How many slots each shard may take.
fn rooms(slots: u32, shards: &[ShardWeight], epsilon: f64) -> Vec<u32> {
    // Divided by the largest first: a sum of huge capacities must not overflow to infinity.
    let largest = shards.iter().map(|shard| shard.capacity).fold(0.0, f64::max);
    let total: f64 = shards.iter().map(|shard| shard.capacity / largest).sum();
    shards
        .iter()
        .map(|shard| {
            let share = (shard.capacity / largest) / total;
            let bound = ((1.0 + epsilon) * f64::from(slots) * share).ceil();
            if bound >= f64::from(slots) { slots } else { bound as u32 }
        })
        .collect()
}

/// The shard (its index) this slot likes best among those with room.
fn choose(layout_key: u64, slot: u32, shards: &[ShardWeight], room: &[u32]) -> usize {
    let mut best = (f64::INFINITY, usize::MAX);
    for (index, shard) in shards.iter().enumerate() {
        if room.get(index).is_some_and(|left| *left > 0) {
            let key = hash(AFFINITY_SEED, layout_key, slot, shard.shard_id);
            let score = minus_ln_unit(key) / shard.capacity;
            if score < best.0 || best.1 == usize::MAX {
                best = (score, index);
            }
        }
    }
    // All full can only be a rounding error of `rooms` (the bounds add up to at least `slots`).
    if best.1 == usize::MAX { shards.len() - 1 } else { best.1 }
}

fn hash(seed: u64, layout_key: u64, slot: u32, shard_id: i32) -> u64 {
    let mut bytes = [0_u8; 16];
    bytes[..8].copy_from_slice(&layout_key.to_le_bytes());
    bytes[8..12].copy_from_slice(&slot.to_le_bytes());
    bytes[12..].copy_from_slice(&shard_id.to_le_bytes());
    xxh3_64_with_seed(&bytes, seed)
}

/// `-ln(u)` for `u` in (0, 1) made of the top 53 bits of `hash`; exactly reproducible, because it
/// uses only IEEE additions, multiplications and divisions.
fn minus_ln_unit(hash: u64) -> f64 {
    let bits = (hash >> 11) | 1; // never 0
    let exponent = 63 - bits.leading_zeros(); // of the highest set bit, 0..=52
    let mantissa = bits as f64 / (1_u64 << exponent) as f64; // in [1, 2), exact
    // ln m = 2 atanh((m - 1) / (m + 1)); the argument is below 1/3, so 17 terms reach 1e-17.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut term = s;
    let mut sum = 0.0;
    let mut odd = 1.0;
    while odd < 35.0 {
        sum += term / odd;
        term *= square;
        odd += 2.0;
    }
    let two = 2.0;
    (53.0 - f64::from(exponent)) * std::f64::consts::LN_2 - two * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_logarithm_agrees_with_the_platform() {
        for hash in [1, 1 << 11, u64::MAX, u64::MAX / 3, 0x0123_4567_89ab_cdef] {
            let u = ((hash >> 11) | 1) as f64 / (1_u64 << 53) as f64;
            assert!((minus_ln_unit(hash) + u.ln()).abs() < 1e-12, "{hash}");
        }
    }

    #[test]
    fn refuses_bad_arguments() {
        let one = |capacity| [ShardWeight { shard_id: 7, capacity }];
        assert_eq!(place_slots(1, 4, &[], 0.1), Err(RingError::NoShards));
        for capacity in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let got = place_slots(1, 4, &one(capacity), 0.1);
            assert_eq!(got, Err(RingError::BadCapacity { shard_id: 7 }));
        }
        for epsilon in [-0.1, f64::NAN, f64::INFINITY] {
            assert_eq!(place_slots(1, 4, &one(1.0), epsilon), Err(RingError::BadEpsilon));
        }
        let twice = [one(1.0)[0], one(2.0)[0]];
        assert_eq!(place_slots(1, 4, &twice, 0.1), Err(RingError::DuplicateShard { shard_id: 7 }));
        assert!(place_slots(1, MAX_SLOTS + 1, &one(1.0), 0.1).is_err());
        assert_eq!(place_slots(1, 0, &one(1.0), 0.1), Ok(vec![]));
    }

    #[test]
    fn layouts_spread_differently() {
        let shards: Vec<_> = (1..=4).map(|shard_id| ShardWeight { shard_id, capacity: 1.0 }).collect();
        assert_ne!(place_slots(1, 64, &shards, 0.1), place_slots(2, 64, &shards, 0.1));
    }
}
