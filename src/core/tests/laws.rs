//! Laws of ring, heat and digest, for any input proptest finds.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;

use foreshard_core::digest::{BUCKETS, RowHasher, TableDigest};
use foreshard_core::heat::{Counters, decayed_heat, rates};
use foreshard_core::ring::{ShardWeight, place_slots};
use proptest::prelude::*;

fn shards(capacities: &[f64]) -> Vec<ShardWeight> {
    (1..).zip(capacities).map(|(shard_id, capacity)| ShardWeight { shard_id, capacity: *capacity }).collect()
}

fn counts(layout: &[i32]) -> BTreeMap<i32, usize> {
    let mut counts = BTreeMap::new();
    for shard in layout {
        *counts.entry(*shard).or_insert(0) += 1;
    }
    counts
}

fn hash(bytes: &[u8]) -> u128 {
    let mut hasher = RowHasher::new();
    hasher.update(bytes);
    hasher.finish()
}

fn digest(rows: &[(u16, Vec<u8>)]) -> TableDigest {
    let mut digest = TableDigest::new();
    for (key, row) in rows {
        digest.add_row(hash(&key.to_le_bytes()), hash(row));
    }
    digest
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn ring_respects_capacity(
        key: u64,
        slots in 0_u32..600,
        capacities in prop::collection::vec(0.1_f64..100.0, 1..12),
        epsilon in 0.0_f64..1.0,
    ) {
        let layout = place_slots(key, slots, &shards(&capacities), epsilon).unwrap();
        prop_assert_eq!(layout.len(), slots as usize);
        let total: f64 = capacities.iter().sum();
        for (shard, count) in counts(&layout) {
            let share = capacities[shard as usize - 1] / total;
            let bound = ((1.0 + epsilon) * f64::from(slots) * share + 1e-6).ceil();
            prop_assert!(count as f64 <= bound, "shard {} has {} of {}", shard, count, bound);
        }
    }

    #[test]
    fn ring_ignores_the_order_and_scale_of_shards(
        key: u64,
        capacities in prop::collection::vec(1_u32..100, 1..12),
    ) {
        let capacities: Vec<f64> = capacities.into_iter().map(f64::from).collect();
        let one = shards(&capacities);
        let mut reversed = one.clone();
        reversed.reverse();
        let doubled: Vec<_> =
            one.iter().map(|s| ShardWeight { capacity: s.capacity * 2.0, ..*s }).collect();
        let layout = place_slots(key, 256, &one, 0.1).unwrap();
        prop_assert_eq!(&layout, &place_slots(key, 256, &reversed, 0.1).unwrap());
        prop_assert_eq!(&layout, &place_slots(key, 256, &doubled, 0.1).unwrap());
    }

    #[test]
    fn ring_moves_few_slots_for_a_new_shard(key: u64, count in 2_usize..12) {
        let slots = 1_024;
        let before = place_slots(key, slots, &shards(&vec![1.0; count]), 0.25).unwrap();
        let after = place_slots(key, slots, &shards(&vec![1.0; count + 1]), 0.25).unwrap();
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        // The fair share of the new shard must move; hashing anew would move count / (count + 1).
        let fair = slots as usize / (count + 1);
        prop_assert!(moved <= fair * 7 / 4, "{} moved, fair {}", moved, fair);
    }

    #[test]
    fn heat_stays_between_past_and_present(
        heat in 0.0_f64..1e9,
        rate in 0.0_f64..1e9,
        elapsed_s in 0.0_f64..1e6,
        half_life_s in 0.1_f64..1e6,
    ) {
        let next = decayed_heat(heat, rate, elapsed_s, half_life_s);
        let slack = 1e-9 * heat.max(rate);
        prop_assert!(next >= heat.min(rate) - slack && next <= heat.max(rate) + slack);
        // Two halves of a bucket are the same as the bucket.
        let half = decayed_heat(heat, rate, elapsed_s / 2.0, half_life_s);
        let twice = decayed_heat(half, rate, elapsed_s / 2.0, half_life_s);
        prop_assert!((next - twice).abs() <= 1e-6 * heat.max(rate).max(1.0));
    }

    #[test]
    fn rates_are_unknown_or_not_negative(previous: [u16; 7], current: [u16; 7]) {
        let counters = |c: [u16; 7]| {
            let [scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit] =
                c.map(u64::from);
            Counters { scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit }
        };
        let backwards = previous.iter().zip(&current).any(|(previous, current)| current < previous);
        let rates = rates(&counters(previous), &counters(current), 10.0);
        prop_assert_eq!(rates.is_none(), backwards);
        prop_assert!(rates.is_none_or(|rates| rates.writes_per_s >= 0.0));
    }

    #[test]
    fn digest_ignores_order_and_chunks(
        rows in prop::collection::vec((any::<u16>(), any::<Vec<u8>>()), 0..60),
        shuffle in any::<u64>(),
        cut in 0_usize..60,
    ) {
        let whole = digest(&rows);
        let mut other = rows.clone();
        other.sort_by_key(|(key, row)| hash(&[&key.to_le_bytes()[..], row].concat()) as u64 ^ shuffle);
        prop_assert_eq!(&whole, &digest(&other));
        let (one, two) = rows.split_at(cut.min(rows.len()));
        let mut merged = digest(one);
        merged.merge(&digest(two));
        prop_assert_eq!(&whole, &merged);
        prop_assert_eq!(whole.rows(), rows.len() as u64);
        prop_assert_eq!(whole.combined(), merged.combined());
        prop_assert!(whole.differing_buckets(&merged).is_empty());
    }

    #[test]
    fn digest_sees_every_single_byte(
        mut rows in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 1..20)), 1..60),
        row in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(),
        flip in 1_u8..,
    ) {
        let before = digest(&rows);
        let (key, bytes) = row.get(&rows).clone();
        let (row, byte) = (row.index(rows.len()), byte.index(bytes.len()));
        rows[row].1[byte] ^= flip;
        let after = digest(&rows);
        let bucket = TableDigest::bucket_of(hash(&key.to_le_bytes()));
        prop_assert_eq!(before.differing_buckets(&after), vec![bucket]);
        prop_assert_ne!(before.combined(), after.combined());
        // So is a row that is lost.
        rows.remove(row);
        prop_assert_eq!(before.differing_buckets(&digest(&rows)), vec![bucket]);
    }
}

#[test]
fn digest_sees_swapped_contents_of_one_bucket() {
    let (a, b) = (0x1_00_u128, 0x2_00_u128);
    assert_eq!(TableDigest::bucket_of(a), TableDigest::bucket_of(b));
    let (mut one, mut two) = (TableDigest::new(), TableDigest::new());
    one.add_row(a, 11);
    one.add_row(b, 22);
    two.add_row(a, 22);
    two.add_row(b, 11);
    assert_eq!(one.differing_buckets(&two), vec![0]);
    assert!(TableDigest::bucket_of(u128::MAX) < BUCKETS);
}

#[test]
fn hasher_is_streaming_and_resets() {
    let mut hasher = RowHasher::new();
    hasher.update(b"fore");
    hasher.update(b"shard");
    assert_eq!(hasher.finish(), hash(b"foreshard"));
    hasher.reset();
    assert_eq!(hasher.finish(), hash(b""));
    // However long a row is, and wherever its attributes end, its hash is that of its bytes.
    let row: Vec<u8> = (0..40_000_u32).map(|at| (at * at % 251) as u8).collect();
    for length in [0, 1, 240, 8_191, 8_192, 8_193, 40_000] {
        for chunk in [7, 1_000, 8_192, 40_000] {
            hasher.reset();
            row[..length].chunks(chunk).for_each(|bytes| hasher.update(bytes));
            assert_eq!(hasher.finish(), xxhash_rust::xxh3::xxh3_128(&row[..length]), "{length} by {chunk}");
        }
    }
}

/// The layout is part of what databases have stored: when this fails, the code is wrong, not the
/// test.
#[test]
fn ring_golden() {
    let weights = [(1, 1.0), (2, 2.0), (7, 1.5)];
    let shards = weights.map(|(shard_id, capacity)| ShardWeight { shard_id, capacity });
    let layout = place_slots(42, 32, &shards, 0.1).unwrap();
    let want =
        [2, 2, 2, 7, 1, 1, 7, 2, 7, 1, 1, 1, 2, 2, 2, 7, 7, 2, 7, 1, 2, 7, 7, 7, 2, 1, 2, 1, 2, 7, 2, 7];
    assert_eq!(layout, want);
    let all: Vec<u8> =
        place_slots(u64::MAX, 1_024, &shards, 0.05).unwrap().into_iter().flat_map(i32::to_le_bytes).collect();
    assert_eq!(format!("{:032x}", hash(&all)), "b38af2110c343b1c06094df9a3da8117");
}
