//! What a series without a history borrows from those that have one.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::forecast::{ForecastError, ForecastOptions, Series, Shapes, fit, fit_borrowing};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DAY_S: u32 = 86_400;

/// Office hours.
fn office(hour: usize) -> f64 {
    if (8..18).contains(&(hour % 24)) { 10.0 } else { 1.0 }
}

/// Batch work at night.
fn night(hour: usize) -> f64 {
    if hour % 24 < 6 { 8.0 } else { 0.5 }
}

/// Hours `from..to` since a midnight with 10 % noise.
fn hours(from: usize, to: usize, scale: f64, seed: u64, truth: fn(usize) -> f64) -> Series {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (from..to).map(|hour| Some(scale * truth(hour) * (0.9 + 0.2 * rng.random::<f64>())));
    Series {
        start_s: from as i64 * 3_600,
        step_s: 3_600,
        values: values.collect(),
        events: Vec::new(),
        regressors: Vec::new(),
    }
}

/// Six of each kind, of all sizes.
fn grown(seed: u64) -> Vec<Series> {
    let one = |n: u64| {
        let truth = if n.is_multiple_of(2) { office } else { night };
        hours(0, 24 * 10 + 5, 3.0_f64.powi(n as i32 - 5), seed * 100 + n, truth)
    };
    (0..12).map(one).collect()
}

fn error(series: &Series, shapes: &Shapes, end: usize, scale: f64, truth: fn(usize) -> f64) -> f64 {
    let model = fit_borrowing(series, &ForecastOptions::default(), shapes, false).unwrap();
    let points = model.forecast(24);
    let errors =
        points.iter().enumerate().map(|(lead, point)| (point.mean - scale * truth(end + lead)).abs());
    errors.sum::<f64>() / (0..24).map(|lead| scale * truth(end + lead)).sum::<f64>()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn half_a_day_is_enough_to_know_whose_child_it_is(
        from in 0_usize..24, seed in 1_u64..1_000, scale in 0.5_f64..500.0, at_night in any::<bool>(),
    ) {
        let truth = if at_night { night } else { office };
        let shapes = Shapes::learn(&grown(seed), DAY_S);
        prop_assert_eq!(shapes.len(), 2);
        let young = hours(from, from + 12, scale, seed, truth);
        let borrowed = error(&young, &shapes, from + 12, scale, truth);
        let alone = error(&young, &Shapes::default(), from + 12, scale, truth);
        prop_assert!(borrowed < 0.35, "{} (alone {})", borrowed, alone);
        prop_assert!(borrowed < 0.7 * alone, "{} instead of {}", borrowed, alone);
    }

    #[test]
    fn what_is_borrowed_depends_on_no_size_and_no_order(
        from in 0_usize..24, seed in 1_u64..1_000, size in 0.001_f64..1_000.0,
    ) {
        let mut all = grown(seed);
        let young = hours(from, from + 10, 20.0, seed, office);
        let one = Shapes::learn(&all, DAY_S).borrow(&young).unwrap();
        all.reverse();
        for series in all.iter_mut().chain([&mut young.clone()]) {
            series.values.iter_mut().flatten().for_each(|value| *value *= size);
        }
        let mut larger = young.clone();
        larger.values.iter_mut().flatten().for_each(|value| *value *= size);
        let other = Shapes::learn(&all, DAY_S).borrow(&larger).unwrap();
        prop_assert!((one.iter().sum::<f64>() / 24.0 - 1.0).abs() < 1e-9);
        for (one, other) in one.iter().zip(&other) {
            prop_assert!((one - other).abs() < 1e-6 && *one >= 0.0, "{} {}", one, other);
        }
    }

    #[test]
    fn whoever_has_two_days_of_his_own_borrows_nothing(from in 0_usize..24, seed in 1_u64..1_000) {
        let shapes = Shapes::learn(&grown(seed), DAY_S);
        let series = hours(from, from + 48, 20.0, seed, office);
        prop_assert!(shapes.borrow(&series).is_none());
        let options = ForecastOptions::default();
        let (own, other) =
            (fit(&series, &options).unwrap(), fit_borrowing(&series, &options, &shapes, false).unwrap());
        prop_assert_eq!(own.name(), other.name());
        prop_assert_eq!(own.forecast(24), other.forecast(24));
    }
}

#[test]
fn a_flat_series_stays_flat_and_too_little_is_too_little() {
    let shapes = Shapes::learn(&grown(1), DAY_S);
    let flat = hours(0, 20, 50.0, 3, |_| 1.0);
    assert!(shapes.borrow(&flat).is_none());
    let options = ForecastOptions::default();
    let three = hours(6, 9, 20.0, 3, office);
    let model = fit_borrowing(&three, &options, &shapes, true).unwrap();
    assert_eq!(model.name(), "level with a borrowed season");
    assert_eq!(model.forecast(1)[0].at_s, 9 * 3_600);
    let two = hours(6, 8, 20.0, 3, office);
    assert_eq!(
        fit_borrowing(&two, &options, &shapes, true).err(),
        Some(ForecastError::InsufficientHistory { have: 2, need: 6 })
    );
    assert!(fit_borrowing(&three, &options, &Shapes::default(), true).is_err());
    assert!(Shapes::learn(&[hours(0, 60, 1.0, 1, office)], DAY_S).is_empty());
}

#[test]
fn a_model_goes_on_with_its_shape() {
    let shapes = Shapes::learn(&grown(2), DAY_S);
    let mut model =
        fit_borrowing(&hours(0, 12, 20.0, 7, office), &ForecastOptions::default(), &shapes, false).unwrap();
    let next: Vec<Option<f64>> = (12..16).map(|hour| Some(20.0 * office(hour))).collect();
    model.extend(&next);
    let points = model.forecast(12);
    assert_eq!(points[0].at_s, 16 * 3_600);
    assert!(points[0].mean > 120.0 && points[6].mean < 60.0, "{points:?}");
    assert!(points.iter().all(|point| point.lower <= point.mean && point.mean <= point.upper));
    let path = model.sample_path(12, 5);
    assert!(path[0] > 100.0 && path[6] < 100.0, "{path:?}");
}

/// A hundred thousand slots with days of five minutes each: shapes are learnt between two plans.
#[test]
fn shapes_of_very_many_series_are_learnt_in_no_time() {
    let one = |n: usize| {
        let truth = if n.is_multiple_of(2) { office } else { night };
        let values = (0..4 * 288).map(|at| Some(truth(at / 12) * (1.0 + (n % 7 + at % 5) as f64 * 0.02)));
        Series {
            start_s: 0,
            step_s: 300,
            values: values.collect(),
            events: Vec::new(),
            regressors: Vec::new(),
        }
    };
    let some: Vec<Series> = (0..35).map(one).collect();
    let begun = std::time::Instant::now();
    let shapes = Shapes::learn(some.iter().cycle().take(100_000), DAY_S);
    let took = begun.elapsed();
    println!("{} shapes of 100000 series in {} ms", shapes.len(), took.as_millis());
    assert_eq!(shapes.len(), 2);
    // Without optimisation, on a busy machine; all of them would take more than a minute.
    assert!(took.as_secs_f64() < 10.0, "{took:?}");
}
