//! Hot keys of Zipf streams and of the recorded trace, against exact decayed counts.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::HashMap;
use std::process::Command;

use foreshard_core::sketch::{HotKeys, Key, MAX_KEY_BYTES, MergeError};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Accesses per second of the streams.
const RATE: f64 = 1_000.0;

/// Exact decayed counts.
#[derive(Default)]
struct Exact {
    counts: HashMap<u32, (f64, f64)>,
}

impl Exact {
    fn add(&mut self, key: u32, weight: f64, now_s: f64, half_life_s: f64) {
        let (count, at_s) = self.counts.entry(key).or_insert((0.0, now_s));
        *count = *count * (-(now_s - *at_s) / half_life_s).exp2() + weight;
        *at_s = now_s;
    }

    fn get(&self, key: u32, now_s: f64, half_life_s: f64) -> f64 {
        let decayed = |(count, at_s): &(f64, f64)| count * (-(now_s - at_s) / half_life_s).exp2();
        self.counts.get(&key).map_or(0.0, decayed)
    }

    fn top(&self, k: usize, now_s: f64, half_life_s: f64) -> Vec<u32> {
        let mut keys: Vec<(f64, u32)> =
            self.counts.keys().map(|key| (self.get(*key, now_s, half_life_s), *key)).collect();
        keys.sort_by(|a, b| b.0.total_cmp(&a.0));
        keys.into_iter().take(k).map(|(_, key)| key).collect()
    }
}

/// `count` accesses to `keys` keys, the i-th hottest with a share proportional to 1 / i^`skew`.
fn zipf(seed: u64, count: usize, keys: u32, skew: f64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sums = Vec::with_capacity(keys as usize);
    let mut sum = 0.0;
    for rank in 1..=keys {
        sum += f64::from(rank).powf(-skew);
        sums.push(sum);
    }
    (0..count).map(|_| sums.partition_point(|at| *at < rng.random::<f64>() * sum) as u32).collect()
}

/// The trace's accesses in order.
fn trace() -> Vec<u32> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/data/orm-busy.trace.xz");
    let output = Command::new("xz").args(["-dc", path]).output().unwrap();
    assert!(output.status.success(), "xz cannot read {path}");
    output.stdout.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word)).collect()
}

/// Of the true top 50: the share that is among the 50 reported, and the accesses of the 50 reported as
/// a share of theirs, when a share 1 / `every` of the accesses is sampled; `random` draws it, otherwise
/// it is every so many'th. Checks the bounds on the way.
fn recall(accesses: &[u32], half_life_s: f64, max_keys: usize, every: u32, random: bool) -> (f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (mut all, mut sampled) = (Exact::default(), Exact::default());
    let mut keys = HotKeys::new(half_life_s, max_keys);
    let mut now_s = 1.7e9;
    for (index, key) in accesses.iter().enumerate() {
        now_s = 1.7e9 + index as f64 / RATE;
        all.add(*key, 1.0, now_s, half_life_s);
        let hit = if random { rng.random_ratio(1, every) } else { (index as u32).is_multiple_of(every) };
        if hit {
            keys.add(key, u64::from(every), now_s);
            sampled.add(*key, f64::from(every), now_s, half_life_s);
        }
    }
    assert_eq!(keys.ignored(), 0);
    let top = keys.top(50, now_s);
    assert!(top.is_sorted_by(|a, b| a.estimate >= b.estimate));
    for hot in &top {
        let truth = sampled.get(hot.key, now_s, half_life_s);
        assert!(hot.lower <= truth * (1.0 + 1e-9) && truth <= hot.upper * (1.0 + 1e-9), "{hot:?} {truth}");
        assert!(hot.lower <= hot.estimate && hot.estimate <= hot.upper, "{hot:?}");
    }
    let truth = all.top(50, now_s, half_life_s);
    let found = truth.iter().filter(|key| top.iter().any(|hot| hot.key == **key)).count() as f64 / 50.0;
    let accesses = |keys: &[u32]| keys.iter().map(|key| all.get(*key, now_s, half_life_s)).sum::<f64>();
    let reported: Vec<u32> = top.iter().map(|hot| hot.key).collect();
    (found, accesses(&reported) / accesses(&truth))
}

#[test]
fn finds_the_hot_keys_of_a_zipf_stream() {
    for skew in [0.9, 1.1] {
        let accesses = zipf(1, 400_000, 20_000, skew);
        let (found, share) = recall(&accesses, 600.0, 4_096, 4, true);
        println!(
            "zipf {skew}, 1 in 4 sampled: recall of the top 50 {found:.2}, of their accesses {share:.3}"
        );
        // Neighbouring ranks differ by less than what sampling blurs.
        assert!(found >= 0.85 && share >= 0.98, "{found} {share}");
    }
}

#[test]
fn finds_the_hot_keys_of_the_trace() {
    let (found, share) = recall(&trace(), 3_600.0, 4_096, 4, false);
    println!("trace, 1 in 4 sampled: recall of the top 50 {found:.2}, of their accesses {share:.3}");
    assert!(found >= 0.95 && share >= 0.98, "{found} {share}");
}

/// The numbers behind the default sampling interval: `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "prints numbers, takes minutes"]
fn recall_by_sampling_interval() {
    let trace = trace();
    for half_life_s in [600.0, 3_600.0, 1e6] {
        for max_keys in [1_024, 2_048, 4_096, 8_192] {
            let recalls: Vec<String> = [1, 2, 4, 8, 16, 32, 64, 128, 256]
                .into_iter()
                .map(|every| {
                    let (found, share) = recall(&trace, half_life_s, max_keys, every, true);
                    format!("{every}: {found:.2} {share:.3}")
                })
                .collect();
            println!("half-life {half_life_s} s, {max_keys} keys: {}", recalls.join(", "));
        }
    }
}

#[test]
fn a_steady_rate_is_its_own_score() {
    let mut keys = HotKeys::new(60.0, 64);
    for step in 0..20_000_u32 {
        keys.add(&"hot", 1, f64::from(step) * 0.1);
        if step % 5 == 0 {
            keys.add(&"warm", 10, f64::from(step) * 0.1);
        }
    }
    let top = keys.top(5, 2_000.0);
    let scores: Vec<(&str, f64)> = top.iter().map(|hot| (hot.key, hot.access_score)).collect();
    assert!(scores[0].0 == "warm" && (scores[0].1 - 20.0).abs() < 0.2, "{scores:?}");
    assert!(scores[1].0 == "hot" && (scores[1].1 - 10.0).abs() < 0.1, "{scores:?}");
    let later = keys.get(&"hot", 2_060.0);
    assert!((later.access_score / scores[1].1 - 0.5).abs() < 0.01, "half after a half-life");
    assert_eq!(keys.get(&"none", 2_000.0).lower, 0.0);
}

#[test]
fn what_is_ignored_is_counted() {
    let mut keys = HotKeys::new(1.0, 8);
    keys.add(&1, 1, 1_000.0);
    keys.add(&1, 1, 995.0);
    assert_eq!(keys.ignored(), 0, "the epoch before");
    for now_s in [0.0, f64::NAN, f64::INFINITY, 1e300] {
        keys.add(&1, 1, now_s);
    }
    assert_eq!(keys.ignored(), 4);
    assert!((keys.get(&1, f64::NAN).estimate - (1.0 + 0.5_f64.powi(5))).abs() < 1e-3);
    assert!(keys.top(9, 1e6).iter().all(|hot| hot.estimate == 0.0));
}

#[test]
fn a_forgotten_epoch_is_still_in_the_upper_bound() {
    let mut keys = HotKeys::new(1.0, 8);
    keys.add(&"old", 1 << 20, 9.9);
    keys.add(&"new", 1, 10.5);
    keys.add(&"new", 1, 20.1);
    let (old, truth) = (keys.get(&"old", 20.1), 2.0_f64.powf(20.0 - 10.2));
    assert!(old.lower == 0.0 && truth <= old.upper && old.upper < truth * 1.01, "{old:?} {truth}");
}

#[test]
fn keys_have_a_limit() {
    let key = Key::new(7, b"abc").unwrap();
    assert_eq!((key.table(), key.bytes()), (7, &b"abc"[..]));
    assert!(Key::new(7, &[0; MAX_KEY_BYTES]).is_some() && Key::new(7, &[0; MAX_KEY_BYTES + 1]).is_none());
    // Far more keys than places: the number told apart stays bounded.
    let mut keys = HotKeys::new(10.0, 100);
    (0..50_000_u32).for_each(|key| keys.add(&key, 1, f64::from(key) / 1_000.0));
    assert!(keys.top(usize::MAX, 50.0).len() <= 2 * 256);
}

#[test]
fn only_equal_half_lives_merge() {
    let (mut one, other) = (HotKeys::<u32>::new(1.0, 8), HotKeys::new(2.0, 8));
    assert_eq!(one.merge(&other), Err(MergeError::HalfLife));
    assert_eq!(one.merge(&HotKeys::new(1.0, 64)), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn bounds_hold(
        accesses in prop::collection::vec((0_u32..60, 1_u64..50, 0.0_f64..1.0), 1..400),
        // Up to half the length of the stream, so that epochs are forgotten.
        half_life_s in 0.5_f64..100.0,
        split in 0_usize..400,
    ) {
        let mut exact = Exact::default();
        let (mut whole, mut one, mut two) = (HotKeys::new(half_life_s, 8), HotKeys::new(half_life_s, 8), HotKeys::new(half_life_s, 8));
        let mut now_s = -50.0;
        for (index, (key, weight, gap_s)) in accesses.iter().enumerate() {
            now_s += gap_s;
            exact.add(*key, *weight as f64, now_s, half_life_s);
            whole.add(key, *weight, now_s);
            let half = if index < split { &mut one } else { &mut two };
            half.add(key, *weight, now_s);
        }
        let mut reversed = two.clone();
        reversed.merge(&one).unwrap();
        one.merge(&two).unwrap();
        for keys in [whole, one, reversed] {
            for key in 0..60 {
                let hot = keys.get(&key, now_s);
                let truth = exact.get(key, now_s, half_life_s);
                prop_assert!(hot.lower <= truth * (1.0 + 1e-9), "{:?} {}", hot, truth);
                prop_assert!(truth <= hot.upper * (1.0 + 1e-9), "{:?} {}", hot, truth);
                prop_assert!(hot.estimate >= hot.lower && hot.estimate <= hot.upper);
            }
            let top = keys.top(10, now_s);
            prop_assert!(top.is_sorted_by(|a, b| a.estimate >= b.estimate));
        }
    }
}
