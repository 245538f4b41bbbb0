//! Histograms of latencies, and when one counts as slower.
#![allow(clippy::expect_used, reason = "a test may fail")]

use foreshard_core::latency::{
    BUCKETS, Counts, Histogram, bucket, bucket_end_ns, change, fails_more, slowdown,
};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Log-normal latencies around a median, ns.
fn latencies(rng: &mut SmallRng, n: usize, median_ns: f64, spread: f64) -> Counts {
    let mut counts = Counts::default();
    for _ in 0..n {
        let normal: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        counts.add((median_ns * (normal * spread).exp()) as u64);
    }
    counts
}

proptest! {
    #[test]
    fn a_duration_is_in_its_bucket(ns in 0_u64..2_000_000_000_000) {
        let at = bucket(ns);
        prop_assert!(at < BUCKETS);
        if at + 1 < BUCKETS {
            prop_assert!((ns as f64) < bucket_end_ns(at) + 1.0);
        }
        if ns >= 512 && at + 1 < BUCKETS {
            prop_assert!(ns as f64 >= bucket_end_ns(at - 1) - 256.0, "{ns} in {at}");
        }
        prop_assert!(bucket(ns + 1) >= at);
    }

    #[test]
    fn quantiles_are_those_of_the_durations(mut all in proptest::collection::vec(1_000_u64..1_000_000_000, 1..300), q in 0.01_f64..1.0) {
        let histogram = Histogram::default();
        all.iter().for_each(|ns| histogram.add(*ns));
        all.sort_unstable();
        let exact = all[((all.len() as f64 * q).ceil() as usize).max(1) - 1] as f64 / 1e6;
        let known = histogram.read().quantile_ms(q).unwrap_or(0.0);
        prop_assert!(known >= exact * 0.999 && known <= exact * 1.3 + 0.0006, "{known} of {exact}");
    }
}

/// The same distribution is never slower, in 2000 trials; machine noise that hits everybody is no slowdown.
#[test]
fn chance_is_no_slowdown() {
    let mut rng = SmallRng::seed_from_u64(7);
    for round in 0..2000 {
        let n = rng.random_range(100..3000);
        let spread = rng.random_range(0.1..1.2);
        let base = latencies(&mut rng, 2000, 50_000.0, spread);
        let test = latencies(&mut rng, n, 50_000.0, spread);
        assert_eq!(slowdown(&base, &test, 1.5, None), None, "round {round}");
        assert!(!fails_more(&base, &test));
    }
    let (before, after) = (latencies(&mut rng, 2000, 1e6, 0.3), latencies(&mut rng, 2000, 5e6, 0.3));
    assert!(slowdown(&before, &after, 2.0, None).is_some());
    assert!((4.0..6.5).contains(&change(&before, &after, 0.5)), "{}", change(&before, &after, 0.5));
    assert_eq!(slowdown(&before, &after, 2.0, Some((&before, &after))), None);
}

/// Thrice as slow is found within three hundred statements; a tail alone (4 % of statements take 50 times as long) within a thousand.
#[test]
fn a_slowdown_is_found() {
    let mut rng = SmallRng::seed_from_u64(8);
    for _ in 0..200 {
        let base = latencies(&mut rng, 500, 300_000.0, 0.4);
        let slow = latencies(&mut rng, 300, 900_000.0, 0.4);
        let found = slowdown(&base, &slow, 2.0, None).expect("slower");
        assert!(found.test_ms > found.base_ms * 2.0);
        let mut tail = latencies(&mut rng, 960, 300_000.0, 0.4);
        (0..40).for_each(|_| tail.add(15_000_000));
        let found = slowdown(&base, &tail, 2.0, None).expect("a slower tail");
        assert_eq!(found.quantile, 0.99);
    }
}

#[test]
fn few_statements_say_nothing() {
    let mut rng = SmallRng::seed_from_u64(9);
    let base = latencies(&mut rng, 50, 1e5, 0.3);
    let slow = latencies(&mut rng, 1000, 1e8, 0.3);
    assert_eq!(slowdown(&base, &slow, 2.0, None), None);
    assert_eq!(slowdown(&slow, &latencies(&mut rng, 10, 1e9, 0.3), 2.0, None), None);
    assert_eq!(change(&base, &slow, 0.99), 1.0);
}

#[test]
fn failures_count() {
    let mut rng = SmallRng::seed_from_u64(10);
    let base = latencies(&mut rng, 1000, 1e5, 0.3);
    let mut test = latencies(&mut rng, 1000, 1e5, 0.3);
    test.errors = 2;
    assert!(!fails_more(&base, &test));
    test.errors = 30;
    assert!(fails_more(&base, &test));
    let mut both = base.clone();
    both.errors = 25;
    assert!(!fails_more(&both, &test));
}
