//! Cost profiles of synthetic triggers whose true cost is known.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::profile::{
    Bend, CostWeights, FEATURE_NAMES, FEATURES, FEEDBACK_WINDOW, Fallback, LEVEL, MIN_SAMPLES, Model,
    ModelKind, Observed, Prediction, Profile, RESERVOIR, RESOURCES, RESTORED_UNTIL, Resource, Sample,
    cost_of,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A trigger whose mean CPU time is linear in its features, times `factor`.
struct Trigger {
    rng: ChaCha8Rng,
    version: u64,
    factor: f64,
    /// Added to the mean, µs.
    extra_us: f64,
    /// Standard deviation of the multiplicative noise.
    noise: f64,
    /// Share of calls that cost 20 times as much.
    outliers: f64,
}

impl Trigger {
    fn new(seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { rng, version: 1, factor: 1.0, extra_us: 0.0, noise: 0.2, outliers: 0.0 }
    }

    fn features(&mut self) -> [f64; FEATURES] {
        let bytes = (50.0 * self.rng.random_range(0.0_f64..4.0).exp()).round();
        let non_null = f64::from(self.rng.random_range(3..12));
        let changed = f64::from(self.rng.random_range(0..4));
        let rows = if self.rng.random_bool(0.8) { 1.0 } else { f64::from(self.rng.random_range(2..50)) };
        [bytes, non_null, changed, rows]
    }

    fn truth_us(&self, [bytes, non_null, changed, rows]: &[f64; FEATURES]) -> f64 {
        self.extra_us + self.factor * (40.0 + 0.05 * bytes + 3.0 * non_null + 12.0 * changed + 0.5 * rows)
    }

    fn normal(&mut self) -> f64 {
        let (one, two): (f64, f64) = (self.rng.random_range(1e-12..1.0), self.rng.random());
        (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos()
    }

    fn sample(&mut self) -> Sample {
        let features = self.features();
        let noise = (1.0 + self.noise * self.normal()).max(0.01);
        let outlier = if self.rng.random_bool(self.outliers) { 20.0 } else { 1.0 };
        let cpu_us = self.truth_us(&features) * noise * outlier;
        let mut outcomes = [None; RESOURCES];
        outcomes[Resource::CpuUs.index()] = Some(cpu_us);
        outcomes[Resource::WalBytes.index()] = Some(100.0 + features[0]);
        Sample { version: self.version, features, outcomes }
    }

    /// Runs `count` calls with a fit every 50; the number of drifts.
    fn run(&mut self, profile: &mut Profile, count: usize) -> u64 {
        let before = profile.drifts();
        for call in 1..=count {
            profile.observe(self.sample());
            if call % 50 == 0 {
                profile.refit();
            }
        }
        profile.drifts() - before
    }

    /// Mean and 95th percentile of |predicted / truth - 1| over fresh features.
    fn errors(&mut self, profile: &Profile) -> (f64, f64) {
        let model = cpu(profile).unwrap();
        let mut errors: Vec<f64> = (0..500)
            .map(|_| {
                let features = self.features();
                (model.predict(&features).value / self.truth_us(&features) - 1.0).abs()
            })
            .collect();
        errors.sort_by(f64::total_cmp);
        (errors.iter().sum::<f64>() / 500.0, errors[475])
    }
}

fn cpu(profile: &Profile) -> Option<&Model> {
    profile.models()[Resource::CpuUs.index()].as_ref()
}

#[test]
fn learns_a_linear_cost() {
    let mut trigger = Trigger::new(1);
    let mut profile = Profile::new();
    trigger.run(&mut profile, 400);
    let model = cpu(&profile).unwrap();
    assert_eq!((model.kind, model.reason, model.samples, model.level), (ModelKind::Linear, None, 400, LEVEL));
    let (mean, p95) = trigger.errors(&profile);
    println!("{model:?}: error mean {mean:.4}, p95 {p95:.4}");
    assert!(mean < 0.04 && p95 < 0.1, "{mean} {p95}");
    let wal = profile.models()[Resource::WalBytes.index()].as_ref().unwrap();
    assert!((wal.coefficients[0] - 1.0).abs() < 1e-6 && (wal.intercept - 100.0).abs() < 1e-3, "{wal:?}");
    assert!(profile.models()[Resource::BlocksRead.index()].is_none(), "never seen");
    let feedback = profile.feedback(Resource::CpuUs).unwrap();
    println!("{feedback:?}");
    assert_eq!(feedback.comparisons, FEEDBACK_WINDOW as u32);
    assert!(feedback.r2.unwrap() > 0.5 && feedback.bias.unwrap().abs() < 0.05, "{feedback:?}");
    assert!((0.85..=1.0).contains(&feedback.coverage), "{feedback:?}");
    assert!(profile.feedback(Resource::BlocksRead).is_none());
}

#[test]
fn follows_a_change_of_cost_within_200_samples() {
    for (seed, factor) in [1.5, 3.0, 10.0, 0.3].into_iter().cycle().take(8).enumerate() {
        for new_version in [false, true] {
            for before in [130, 600] {
                let mut trigger = Trigger::new(seed as u64);
                let mut profile = Profile::new();
                trigger.run(&mut profile, before);
                trigger.factor = factor;
                trigger.version += u64::from(new_version);
                let drifts = trigger.run(&mut profile, 200);
                let (mean, p95) = trigger.errors(&profile);
                let what = format!("x{factor}, version {new_version}, {before} before: {mean:.3} {p95:.3}");
                // Estimating five numbers from 200 noisy samples is itself good for 10 % at the edges.
                assert!(mean <= 0.08 && p95 <= 0.18, "{what}");
                // The same factor for all calls is followed without forgetting them.
                let kept = if factor == 1.5 && !new_version { before + 200 } else { 200 };
                let kept = kept.min(RESERVOIR);
                let samples = profile.samples();
                assert!((kept - 10..=kept + 10).contains(&samples), "{what}: {samples}");
                assert_eq!(drifts, u64::from(!new_version), "{what}");
            }
        }
    }
}

#[test]
fn a_machine_of_two_speeds_does_not_cost_what_was_learnt() {
    let (mut errors, mut coverage) = (Vec::new(), 0.0);
    for seed in 0..10 {
        let mut trigger = Trigger::new(seed);
        let mut profile = Profile::new();
        trigger.run(&mut profile, 400);
        for round in 0..10 {
            trigger.factor = if round % 2 == 0 { 1.6 } else { 1.0 };
            trigger.run(&mut profile, 60);
            errors.push(trigger.errors(&profile).0);
        }
        coverage += profile.feedback(Resource::CpuUs).unwrap().coverage / 10.0;
    }
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let worst = errors.iter().copied().fold(0.0, f64::max);
    // The level alone, from the 50 calls before the last fit, is uncertain by 3.5 % (one deviation).
    println!(
        "60 calls after a change of speed: error {mean:.3}, worst {worst:.3}, intervals hold {coverage:.3}"
    );
    assert!(mean < 0.05 && worst < 0.12 && coverage > 0.85, "{mean} {worst} {coverage}");
}

#[test]
fn a_change_of_another_shape_is_learnt_anew() {
    for seed in 0..10 {
        let mut trigger = Trigger::new(seed);
        let mut profile = Profile::new();
        trigger.run(&mut profile, 600);
        // Cheap calls cost six times as much as before, expensive ones twice.
        trigger.extra_us = 300.0;
        trigger.run(&mut profile, 200);
        let (mean, _) = trigger.errors(&profile);
        let samples = profile.samples();
        println!("{samples} samples, mean error {mean:.3}");
        assert!((190..=210).contains(&samples) && mean < 0.08, "seed {seed}: {samples}, {mean:.3}");
    }
}

#[test]
fn a_replaced_function_is_forgotten_at_once() {
    let mut trigger = Trigger::new(3);
    let mut profile = Profile::new();
    trigger.run(&mut profile, 100);
    let old = trigger.sample();
    trigger.version = 2;
    assert_eq!(profile.observe(trigger.sample()), Observed::Replaced);
    assert!(profile.samples() == 1 && profile.feedback(Resource::CpuUs).is_none());
    assert_eq!(profile.observe(old), Observed::Late, "a session that still runs the old one");
    for _ in 2..MIN_SAMPLES {
        profile.observe(trigger.sample());
        profile.refit();
        assert!(profile.models().iter().all(Option::is_none));
    }
    profile.observe(trigger.sample());
    profile.refit();
    let model = cpu(&profile).unwrap();
    assert_eq!((model.kind, model.reason), (ModelKind::Mean, Some(Fallback::TooFewSamples)));
    // The old version returns: believed once it is not contradicted any more.
    let back: Vec<Observed> = (0..8).map(|_| profile.observe(old)).collect();
    assert!(back[..7].iter().all(|seen| *seen == Observed::Late) && back[7] == Observed::Replaced);
    assert_eq!(profile.version(), Some(1));
}

#[test]
fn outliers_are_neither_drift_nor_cost() {
    let mut drifts = 0;
    for seed in 0..if cfg!(debug_assertions) { 1 } else { 8 } {
        let mut trigger = Trigger { outliers: 0.05, ..Trigger::new(100 + seed) };
        let mut profile = Profile::new();
        drifts += trigger.run(&mut profile, 20_000);
        assert_eq!(profile.samples(), RESERVOIR);
        let (mean, p95) = trigger.errors(&profile);
        assert!(mean < 0.05 && p95 < 0.12, "{mean} {p95}");
    }
    assert_eq!(drifts, 0);
}

#[test]
fn a_first_call_that_compiles_its_plan_does_not_count() {
    let mut trigger = Trigger::new(5);
    let mut profile = Profile::new();
    let mut first = trigger.sample();
    first.outcomes = first.outcomes.map(|outcome| outcome.map(|value| value * 50.0));
    profile.observe(first);
    trigger.run(&mut profile, 11);
    profile.refit();
    let (mean, _) = trigger.errors(&profile);
    assert!(mean < 0.5, "{mean}");
    trigger.run(&mut profile, 50);
    let (mean, _) = trigger.errors(&profile);
    assert!(mean < 0.1, "{mean}");
}

#[test]
fn a_second_mode_is_no_outlier() {
    let mut trigger = Trigger { outliers: 0.3, ..Trigger::new(6) };
    let mut profile = Profile::new();
    trigger.run(&mut profile, 500);
    let feedback = profile.feedback(Resource::CpuUs).unwrap();
    assert!(feedback.bias.unwrap().abs() < 0.3, "{feedback:?}");
}

#[test]
fn intervals_cover_fresh_data() {
    for (noise, outliers) in [(0.2, 0.0), (0.5, 0.0), (0.2, 0.05), (0.02, 0.0)] {
        for samples in [12, 25, 50, 200] {
            let (mut inside, mut all) = (0, 0);
            for seed in 0..60 {
                let mut trigger = Trigger { noise, outliers, ..Trigger::new(1_000 + seed) };
                let mut profile = Profile::new();
                (0..samples).for_each(|_| _ = profile.observe(trigger.sample()));
                profile.refit();
                let model = cpu(&profile).unwrap();
                for _ in 0..100 {
                    let fresh = trigger.sample();
                    let Prediction { lower, upper, .. } = model.predict(&fresh.features);
                    inside += u32::from((lower..=upper).contains(&fresh.outcomes[0].unwrap()));
                    all += 1;
                }
            }
            let coverage = f64::from(inside) / f64::from(all);
            println!("noise {noise}, outliers {outliers}, {samples} samples: coverage {coverage:.3}");
            // Few samples are to be on the safe side, and no time is known better than clocks are steady.
            let allowed = match samples {
                ..50 => 0.91..=1.0,
                _ if noise < 0.08 => 0.95..=1.0,
                _ => 0.87..=0.95,
            };
            assert!(allowed.contains(&coverage), "{coverage}");
        }
    }
}

fn constant(
    count: usize,
    features: impl Fn(usize) -> [f64; FEATURES],
    actual: impl Fn(usize) -> f64,
) -> Model {
    let mut profile = Profile::new();
    for index in 0..count {
        let mut outcomes = [None; RESOURCES];
        outcomes[0] = Some(actual(index));
        profile.observe(Sample { version: 1, features: features(index), outcomes });
    }
    profile.refit();
    profile.models()[0].clone().unwrap()
}

#[test]
fn falls_back_to_the_mean_and_says_why() {
    let noise = |i: usize| 100.0 + (i * 7_919 % 41) as f64;
    let mean = |model: &Model| (model.kind, model.reason);
    let same = constant(100, |_| [10.0, 2.0, 0.0, 1.0], noise);
    assert_eq!(mean(&same), (ModelKind::Mean, Some(Fallback::ConstantFeatures)));
    assert!((same.predict(&[99.0; FEATURES]).value - 120.0).abs() < 2.0);
    let few = constant(19, |i| [i as f64; FEATURES], |i| i as f64);
    assert_eq!(mean(&few), (ModelKind::Mean, Some(Fallback::TooFewSamples)));
    let unrelated = constant(200, |i| [(i * 31 % 17) as f64, 1.0, 1.0, 1.0], noise);
    assert_eq!(mean(&unrelated), (ModelKind::Mean, Some(Fallback::NoBetterThanMean)));
    // Collinear features: one of them is enough.
    let collinear = constant(100, |i| [i as f64, 2.0 * i as f64, 7.0, 1.0 - i as f64], |i| 5.0 + i as f64);
    assert_eq!(mean(&collinear), (ModelKind::Linear, None));
    assert!((collinear.coefficients[0] - 1.0).abs() < 1e-6 && collinear.coefficients[1] == 0.0);
    let reasons = ["too few samples", "features are constant", "rank-deficient", "no better than the mean"];
    assert_eq!(reasons.map(|reason| Fallback::from_name(reason).unwrap().name()), reasons);
}

#[test]
fn rare_work_belongs_in_the_mean() {
    // Every 20th call reads 5 blocks; that is no start-up.
    let mut profile = Profile::new();
    for index in 0..400 {
        let mut outcomes = [None; RESOURCES];
        outcomes[Resource::BlocksRead.index()] = Some(if index % 20 == 3 { 5.0 } else { 0.0 });
        profile.observe(Sample { version: 1, features: [index as f64 % 7.0, 1.0, 1.0, 1.0], outcomes });
    }
    profile.refit();
    let model = profile.models()[Resource::BlocksRead.index()].as_ref().unwrap();
    assert!((model.predict(&[3.0, 1.0, 1.0, 1.0]).value - 0.25).abs() < 0.1, "{model:?}");
}

#[test]
fn a_restored_model_predicts_until_there_is_a_better_one() {
    let mut trigger = Trigger::new(8);
    let mut stored = Profile::new();
    trigger.run(&mut stored, 300);
    for (version, kept) in [(Some(1), true), (None, true), (Some(7), false)] {
        let mut profile = Profile::new();
        profile.restore(version, stored.models().clone());
        assert_eq!(profile.models(), stored.models());
        for _ in 1..RESTORED_UNTIL {
            profile.observe(trigger.sample());
            profile.refit();
            assert_eq!(profile.models() == stored.models(), kept);
        }
        let compared = profile.feedback(Resource::CpuUs).map_or(0, |feedback| feedback.comparisons);
        assert!(!kept || compared == RESTORED_UNTIL as u32 - 1);
        profile.observe(trigger.sample());
        profile.refit();
        assert_eq!(cpu(&profile).unwrap().samples as usize, RESTORED_UNTIL);
    }
}

#[test]
fn without_cpu_time_elapsed_time_reveals_drift() {
    let mut trigger = Trigger::new(9);
    let mut profile = Profile::new();
    let mut run = |factor: f64| {
        trigger.factor = factor;
        for call in 1..=200 {
            let mut sample = trigger.sample();
            sample.outcomes.swap(Resource::CpuUs.index(), Resource::ElapsedUs.index());
            profile.observe(sample);
            if call % 50 == 0 {
                profile.refit();
            }
        }
        profile.drifts()
    };
    assert_eq!((run(1.0), run(3.0)), (0, 1));
}

#[test]
fn names_are_names() {
    for (index, resource) in Resource::ALL.into_iter().enumerate() {
        assert_eq!((resource.index(), Resource::from_name(resource.name())), (index, Some(resource)));
    }
    assert_eq!(Resource::from_name("x"), None);
    for kind in [ModelKind::Linear, ModelKind::Mean] {
        assert_eq!(ModelKind::from_name(kind.name()), Some(kind));
    }
    assert_eq!(FEATURE_NAMES.len(), FEATURES);
}

#[test]
fn a_model_read_back_broken_still_predicts_sanely() {
    for broken in [0.7, -0.7, f64::NAN, f64::INFINITY] {
        let model = Model {
            kind: ModelKind::Linear,
            reason: None,
            intercept: broken,
            coefficients: [broken, 1.0, -1.0, 1e300],
            bend: Some(Bend { from: broken, slope: broken }),
            samples: 0,
            lower_quantile: broken,
            upper_quantile: -broken,
            floor: broken,
            level: LEVEL,
        };
        for features in [[0.0; FEATURES], [1.0; FEATURES], [f64::NAN; FEATURES], [1e300; FEATURES]] {
            let Prediction { value, lower, upper } = model.predict(&features);
            assert!(0.0 <= lower && lower <= value && value <= upper && upper.is_finite(), "{model:?}");
            assert!(model.residual(&features, 5.0).is_finite());
        }
    }
}

/// Rows longer than 900 bytes are compressed: that costs, and in proportion.
#[test]
fn a_line_bends_where_rows_become_long() {
    let bytes = |i: usize| (50.0 * (4.0 * (i * 7_919 % 300) as f64 / 300.0).exp()).round();
    let noise = |i: usize| 0.7 + 0.6 * (i * 104_729 % 101) as f64 / 100.0;
    let features = |bytes: f64| [bytes, 7.0, 2.0, 1.0];
    let truth = |bytes: f64| 20.0 + 0.004 * bytes + 0.08 * (bytes - 900.0).max(0.0);
    let model = constant(300, |i| features(bytes(i)), |i| truth(bytes(i)) * noise(i));
    assert!((600.0..1_300.0).contains(&model.bend.unwrap().from), "{model:?}");
    for bytes in [100.0, 500.0, 900.0, 1_500.0, 2_500.0] {
        let ratio = model.predict(&features(bytes)).value / truth(bytes);
        assert!((0.85..1.15).contains(&ratio), "{bytes} bytes: {ratio}");
    }
    let straight = constant(300, |i| features(bytes(i)), |i| (20.0 + 0.04 * bytes(i)) * noise(i));
    assert_eq!(straight.bend, None, "{straight:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn predictions_are_sane_whatever_is_observed(
        samples in prop::collection::vec(
            (prop::array::uniform4(any::<f64>()), prop::option::of(any::<f64>()), 0_u64..2),
            0..120,
        ),
        scale in prop::sample::select(vec![1.0, 1e-300, 1e300]),
        asked in prop::array::uniform4(any::<f64>()),
    ) {
        let mut profile = Profile::new();
        for (features, actual, version) in samples {
            let outcomes = [actual.map(|value| value.abs() * scale); RESOURCES];
            profile.observe(Sample { version, features, outcomes });
        }
        profile.refit();
        prop_assert!(profile.samples() <= RESERVOIR);
        for model in profile.models().iter().flatten() {
            let Prediction { value, lower, upper } = model.predict(&asked);
            prop_assert!(0.0 <= lower && lower <= value && value <= upper && upper.is_finite(), "{:?}", model);
        }
        if let Some(cost) = cost_of(profile.models(), &asked, &CostWeights::default()) {
            prop_assert!(0.0 <= cost.lower && cost.lower <= cost.value && cost.value <= cost.upper);
        }
    }

    #[test]
    fn the_unit_of_a_feature_does_not_matter(seed: u64, unit in 1e-6_f64..1e6) {
        let mut trigger = Trigger::new(seed);
        let (mut one, mut other) = (Profile::new(), Profile::new());
        for _ in 0..100 {
            let sample = trigger.sample();
            one.observe(sample);
            other.observe(Sample { features: sample.features.map(|value| value * unit), ..sample });
        }
        one.refit();
        other.refit();
        let features = trigger.features();
        let value = cpu(&one).unwrap().predict(&features).value;
        let same = cpu(&other).unwrap().predict(&features.map(|value| value * unit)).value;
        prop_assert!((value / same - 1.0).abs() < 1e-6, "{} {}", value, same);
    }
}
