//! Laws of co-access counts.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;

use foreshard_core::affinity::{CoAccess, MAX_SEGMENTS};
use proptest::prelude::*;

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-9)
}

#[test]
fn counts_every_pair_of_a_transaction_once() {
    let mut pairs = CoAccess::new(60.0, 100);
    pairs.add(&[3, 1, 2, 3, 1], 2.0, 0.0);
    pairs.add(&[2, 1], 1.0, 0.0);
    pairs.add(&[5], 1.0, 0.0);
    let top: Vec<(i64, i64, f64)> =
        pairs.top(9, 0.0).iter().map(|pair| (pair.a, pair.b, pair.weight)).collect();
    assert_eq!(top, [(1, 2, 3.0), (1, 3, 2.0), (2, 3, 2.0)]);
    assert_eq!((pairs.weight(2, 1, 0.0), pairs.weight(5, 1, 0.0)), (3.0, 0.0));
    assert_eq!((pairs.touches(1, 0.0), pairs.touches(5, 0.0), pairs.transactions(0.0)), (3.0, 1.0, 4.0));
    assert_eq!(pairs.top(1, 0.0).len(), 1);
    assert_eq!((pairs.pairs(), pairs.evicted(), pairs.cut()), (3, 0, 0));
}

#[test]
fn share_and_lift_tell_company_from_chance() {
    let mut pairs = CoAccess::new(1e6, 1_000);
    for i in 0..10_000_i64 {
        // 1 and 2 always together in a tenth of all; 10.. and 20.. by chance.
        if i % 10 == 0 {
            pairs.add(&[1, 2], 1.0, 0.0);
        } else {
            pairs.add(&[10 + i % 7, 20 + i % 11], 1.0, 0.0);
        }
    }
    let of =
        |a: i64, b: i64| pairs.top(1_000, 0.0).into_iter().find(|pair| (pair.a, pair.b) == (a, b)).unwrap();
    let together = of(1, 2);
    assert!(near(together.share.unwrap(), 1.0) && near(together.lift.unwrap(), 10.0), "{together:?}");
    let chance = of(10, 20);
    assert!(chance.share.unwrap() < 0.15 && (chance.lift.unwrap() - 1.1).abs() < 0.1, "{chance:?}");
}

#[test]
fn the_heavy_survive_a_flood_of_the_light() {
    let mut pairs = CoAccess::new(1e6, 64);
    for i in 0..5_000_i64 {
        pairs.add(&[1, 2], 1.0, 0.0);
        pairs.add(&[1_000 + i, 9_000_000 + i], 1.0, 0.0);
    }
    assert!(near(pairs.weight(1, 2, 0.0), 5_000.0) && pairs.pairs() <= 64 && pairs.evicted() > 4_900);
    assert_eq!(pairs.top(1, 0.0)[0].share, Some(1.0));
}

#[test]
fn a_wide_transaction_is_cut_without_preference() {
    let mut pairs = CoAccess::new(1e6, 100_000);
    let wide: Vec<i64> = (0..100).collect();
    for second in 0..400 {
        pairs.add(&wide, 1.0, f64::from(second));
    }
    assert_eq!(pairs.cut(), 400);
    let touches: Vec<f64> = wide.iter().map(|segment| pairs.touches(*segment, 400.0)).collect();
    assert!(touches.iter().all(|count| (80.0..180.0).contains(count)), "{touches:?}");
    let total: f64 = touches.iter().sum();
    assert!((total - 400.0 * MAX_SEGMENTS as f64).abs() < 10.0);
}

#[test]
fn nonsense_is_ignored_and_the_far_future_forgets() {
    let mut pairs = CoAccess::new(f64::NAN, 10);
    pairs.add(&[1, 2], f64::NAN, 0.0);
    pairs.add(&[1, 2], -1.0, 0.0);
    pairs.add(&[1, 2], 1.0, f64::NAN);
    pairs.add(&[], 1.0, 0.0);
    assert_eq!((pairs.pairs(), pairs.transactions(0.0)), (0, 0.0));
    let mut pairs = CoAccess::new(1.0, 10);
    for second in [0.0, 300.0, 600.0] {
        pairs.add(&[1, 2], 1.0, second);
        assert!(near(pairs.weight(1, 2, second), 1.0));
    }
    pairs.add(&[3, 4], 1.0, 1e9);
    assert!(pairs.pairs() == 1 && near(pairs.weight(3, 4, 1e9), 1.0));
    assert_eq!(pairs.weight(3, 4, 1e12), 0.0);
    let mut none = CoAccess::new(1.0, 0);
    none.add(&[1, 2], 1.0, 0.0);
    assert_eq!((none.pairs(), none.evicted()), (0, 1));
}

#[test]
fn what_is_gone_leaves_no_pairs() {
    let mut pairs = CoAccess::new(3_600.0, 1_000);
    // Two that stay, with a third that is divided again and again and so has ever new ids.
    for id in 10..500_i64 {
        pairs.add(&[1, 2, id], 1.0, 0.0);
        pairs.retain(|segment| segment <= 2 || segment == id);
        assert!(pairs.pairs() <= 3, "{} pairs", pairs.pairs());
    }
    assert_eq!(
        (pairs.weight(1, 2, 0.0), pairs.weight(1, 499, 0.0), pairs.weight(1, 10, 0.0)),
        (490.0, 1.0, 0.0)
    );
    assert_eq!((pairs.touches(1, 0.0), pairs.touches(10, 0.0), pairs.transactions(0.0)), (490.0, 0.0, 490.0));
    assert_eq!(pairs.evicted(), 0, "nothing was forgotten for want of room");
}

type Transactions = Vec<(Vec<i64>, u32, f64)>;

fn transactions() -> impl Strategy<Value = Transactions> {
    prop::collection::vec((prop::collection::vec(0_i64..12, 0..50), 1_u32..9, 0.0_f64..30.0), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn exact_without_eviction_and_in_any_order(all in transactions(), half_life_s in 0.05_f64..100.0) {
        let (mut one, mut other) = (CoAccess::new(half_life_s, 1_000), CoAccess::new(half_life_s, 1_000));
        let mut exact: BTreeMap<(i64, i64), f64> = BTreeMap::new();
        let end: f64 = all.iter().map(|(_, _, gap_s)| gap_s).sum();
        let mut now_s = 0.0;
        for (segments, weight, gap_s) in &all {
            now_s += gap_s;
            let mut reversed = segments.clone();
            reversed.reverse();
            one.add(segments, f64::from(*weight), now_s);
            other.add(&reversed, f64::from(*weight), now_s);
            let (mut distinct, decay) = (segments.clone(), (-(end - now_s) / half_life_s).exp2());
            distinct.sort_unstable();
            distinct.dedup();
            for (index, a) in distinct.iter().enumerate() {
                for b in &distinct[index + 1..] {
                    *exact.entry((*a, *b)).or_insert(0.0) += f64::from(*weight) * decay;
                }
            }
        }
        for ((a, b), want) in &exact {
            let got = one.weight(*a, *b, end);
            prop_assert!((got - want).abs() <= 1e-6 * want + 1e-12, "{} {}: {} {}", a, b, got, want);
        }
        prop_assert_eq!(one.top(100, end), other.top(100, end));
        prop_assert_eq!(one.evicted(), 0);
    }

    #[test]
    fn a_half_life_halves(all in transactions(), half_life_s in 1.0_f64..100.0) {
        let mut pairs = CoAccess::new(half_life_s, 1_000);
        all.iter().for_each(|(segments, weight, _)| pairs.add(segments, f64::from(*weight), 5.0));
        for pair in pairs.top(100, 5.0) {
            prop_assert!(near(pairs.weight(pair.a, pair.b, 5.0 + half_life_s), pair.weight / 2.0));
            prop_assert!(near(pairs.touches(pair.a, 5.0 + half_life_s), pairs.touches(pair.a, 5.0) / 2.0));
            prop_assert!(pair.share.unwrap() <= 1.0 && pair.weight <= pairs.touches(pair.a, 5.0) * (1.0 + 1e-9));
        }
    }

    #[test]
    fn never_more_than_the_limit_and_never_too_high(
        all in prop::collection::vec((prop::collection::vec(0_i64..1_000, 0..50), 0.0_f64..3.0), 0..60),
        max_pairs in 0_usize..70,
    ) {
        let (mut bounded, mut free) = (CoAccess::new(10.0, max_pairs), CoAccess::new(10.0, 1_000_000));
        let mut now_s = 0.0;
        for (segments, gap_s) in &all {
            now_s += gap_s;
            bounded.add(segments, 1.0, now_s);
            free.add(segments, 1.0, now_s);
            prop_assert!(bounded.pairs() <= max_pairs);
        }
        for pair in bounded.top(max_pairs, now_s) {
            prop_assert!(pair.weight <= free.weight(pair.a, pair.b, now_s) * (1.0 + 1e-9));
        }
        prop_assert!(bounded.evicted() > 0 || bounded.pairs() == free.pairs());
    }
}
