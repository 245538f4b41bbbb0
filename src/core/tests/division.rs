//! Splits and merges are decided by load, and never chase each other.

use foreshard_core::division::{Candidate, GAP, Keys, NotDivided, Thresholds, Verdict, judge, may_merge};

const KEYS: Keys = Keys { sampled: 500, top_share: 0.02, second_share: 0.5, front_share: Some(0.1) };

fn slot(present: f64, curve: &[f64]) -> Candidate<'_> {
    Candidate {
        present,
        curve,
        group_mean: 0.1,
        keys: Some(KEYS),
        free: true,
        divisible: true,
        chosen: false,
        isolable: false,
    }
}

#[test]
fn split_when_hot_prepared_in_the_valley_before() {
    let thresholds = Thresholds::new(0.8, 0.2);
    let cluster = [5.0, 3.0, 1.0, 2.0, 6.0, 9.0];
    assert_eq!(judge(&slot(0.3, &[0.3; 6]), &cluster, &thresholds), Verdict::Leave);
    assert_eq!(judge(&slot(0.9, &[0.3; 6]), &cluster, &thresholds), Verdict::Split);
    let rising = [0.3, 0.2, 0.1, 0.4, 0.7, 1.2];
    assert_eq!(judge(&slot(0.3, &rising), &cluster, &thresholds), Verdict::Prepare { at: 2, over: 5 });
    assert_eq!(judge(&slot(f64::NAN, &[]), &[], &thresholds), Verdict::Leave);
}

#[test]
fn what_a_split_would_not_cure_has_its_reason() {
    let thresholds = Thresholds::new(0.8, 0.2);
    let curve = [1.0; 4];
    let hot = slot(1.0, &curve);
    let verdict = |slot: Candidate| judge(&slot, &curve, &thresholds);
    let with = |keys: Keys| verdict(Candidate { keys: Some(keys), ..hot });
    assert_eq!(verdict(hot), Verdict::Split);
    assert_eq!(with(Keys { sampled: 99, ..KEYS }), Verdict::Not(NotDivided::FewKeys));
    assert_eq!(with(Keys { sampled: 3, top_share: 0.6, ..KEYS }), Verdict::Not(NotDivided::PopularKey));
    assert_eq!(with(Keys { second_share: 0.9, ..KEYS }), Verdict::Not(NotDivided::UnbalancedCut));
    assert_eq!(with(Keys { second_share: 0.1, ..KEYS }), Verdict::Not(NotDivided::UnbalancedCut));
    assert_eq!(with(Keys { second_share: f64::NAN, ..KEYS }), Verdict::Not(NotDivided::UnbalancedCut));
    assert_eq!(with(Keys { front_share: Some(0.9), ..KEYS }), Verdict::Not(NotDivided::AppendPattern));
    assert_eq!(verdict(Candidate { keys: None, ..hot }), Verdict::Not(NotDivided::FewKeys));
    assert_eq!(verdict(Candidate { group_mean: 0.9, ..hot }), Verdict::Not(NotDivided::UniformLoad));
    assert_eq!(verdict(Candidate { divisible: false, ..hot }), Verdict::Not(NotDivided::Limit));
    assert_eq!(verdict(Candidate { chosen: true, ..hot }), Verdict::Not(NotDivided::ChosenKeys));
    // Of a key that makes much of the load, though not most of it, the slot is relieved by a place for that key.
    let keys = Some(Keys { top_share: 0.3, ..KEYS });
    let one = Candidate { chosen: true, isolable: true, keys, ..hot };
    assert_eq!(verdict(one), Verdict::Isolate { at: 0, over: 0 });
    // The only slot of two shards' load is as hot as all of its group; so are two of eight shards'.
    for each in [2.0, 4.0] {
        assert_eq!(verdict(Candidate { group_mean: each, ..slot(each, &[each; 4]) }), Verdict::Split);
    }
    assert_eq!(verdict(Candidate { free: false, ..hot }), Verdict::Not(NotDivided::Resting));
}

#[test]
fn one_popular_key_is_isolated() {
    let thresholds = Thresholds::new(0.8, 0.2);
    let (hot, late) = ([1.0; 4], [0.3, 0.2, 0.3, 1.0]);
    let verdict = |present: f64, curve: &[f64], keys: Keys, divisible: bool| {
        let candidate = Candidate { keys: Some(keys), isolable: true, divisible, ..slot(present, curve) };
        judge(&candidate, &[3.0, 1.0, 2.0, 4.0], &thresholds)
    };
    let popular = Keys { sampled: 3, top_share: 0.6, second_share: 0.9, ..KEYS };
    assert_eq!(verdict(1.0, &hot, popular, true), Verdict::Isolate { at: 0, over: 0 });
    assert_eq!(verdict(0.3, &late, popular, true), Verdict::Isolate { at: 1, over: 3 });
    assert_eq!(verdict(0.3, &[0.3; 4], popular, true), Verdict::Leave);
    // A third of the load is enough when no cut helps.
    let third = Keys { top_share: 0.33, second_share: 0.9, ..KEYS };
    assert_eq!(verdict(1.0, &hot, third, true), Verdict::Isolate { at: 0, over: 0 });
    assert_eq!(verdict(1.0, &hot, Keys { second_share: 0.5, ..third }, true), Verdict::Split);
    assert_eq!(
        verdict(1.0, &hot, Keys { second_share: 0.5, ..third }, false),
        Verdict::Isolate { at: 0, over: 0 }
    );
    assert_eq!(verdict(1.0, &hot, Keys { sampled: 99, ..third }, true), Verdict::Not(NotDivided::FewKeys));
    assert_eq!(verdict(1.0, &hot, KEYS, false), Verdict::Not(NotDivided::Limit));
    let resting = Candidate { keys: Some(popular), isolable: true, free: false, ..slot(1.0, &hot) };
    assert_eq!(judge(&resting, &hot, &thresholds), Verdict::Not(NotDivided::Resting));
}

#[test]
fn only_what_is_and_will_be_cold_is_merged() {
    let thresholds = Thresholds::new(0.8, 0.2);
    assert!(may_merge([0.05, 0.05], [&[0.1, 0.0], &[0.1, 0.2]], &thresholds));
    assert!(!may_merge([0.15, 0.1], [&[0.1, 0.0], &[0.1, 0.2]], &thresholds), "hot now");
    assert!(!may_merge([0.05, 0.05], [&[0.1, 0.1], &[0.1, 0.2]], &thresholds), "hot later");
    assert!(!may_merge([0.0, 0.0], [&[], &[]], &thresholds), "nothing is known");
    assert!(!may_merge([0.0, 0.0], [&[f64::NAN], &[0.0]], &thresholds));
}

/// xorshift64*, enough for variety.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Whatever somebody sets and however the load jumps about: a slot that was divided is merged only once its load has
/// fallen to less than a half of that at which it was, and the reverse.
#[test]
fn splits_and_merges_cannot_cycle() {
    let mut random = Random(7);
    let mut changes = 0;
    for _ in 0..2_000 {
        let thresholds = Thresholds::new(random.unit() * 4.0, random.unit() * 8.0 - 1.0);
        assert!(thresholds.merge * GAP <= thresholds.split, "{thresholds:?}");
        let level = random.unit() * 2.0;
        let wobble = random.unit();
        // Every second one is isolations and ways home.
        let keys = if random.unit() < 0.5 { KEYS } else { Keys { top_share: 0.7, ..KEYS } };
        let mut divided_at: Option<f64> = None;
        let mut merged_at: Option<f64> = None;
        for _ in 0..50 {
            let load = level * (1.0 - wobble / 2.0 + wobble * random.unit());
            let share = random.unit();
            let (a, b) = ([load * share], [load * (1.0 - share)]);
            match divided_at {
                None => {
                    let curve = [load];
                    let candidate = Candidate { keys: Some(keys), isolable: true, ..slot(load, &curve) };
                    let verdict = judge(&candidate, &[load], &thresholds);
                    if matches!(verdict, Verdict::Split | Verdict::Isolate { over: 0, .. }) {
                        if let Some(merged) = merged_at {
                            assert!(load >= merged * GAP * (1.0 - 1e-9), "{merged} was merged, {load} split");
                        }
                        divided_at = Some(load);
                        changes += 1;
                    }
                }
                Some(divided) if may_merge([a[0], b[0]], [&a, &b], &thresholds) => {
                    assert!(load * GAP <= divided * (1.0 + 1e-9), "{divided} was split, {load} merged");
                    (divided_at, merged_at) = (None, Some(load));
                    changes += 1;
                }
                Some(_) => {}
            }
        }
        // A load that wobbles by less than the gap changes nothing back.
        if wobble < 0.6 {
            assert!(divided_at.is_none() || merged_at.is_none());
        }
    }
    assert!(changes > 500, "{changes} changes");
}
