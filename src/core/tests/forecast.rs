//! Forecasts of synthetic series with a daily season, noise and gaps.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::forecast::{ForecastError, ForecastOptions, Forecaster, Series, fit};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const HOUR_S: u32 = 3_600;

/// The true mean of hour `hour`: a working day.
fn truth(hour: usize) -> f64 {
    let hour = hour % 24;
    if (8..18).contains(&hour) { 500.0 } else { 50.0 + 5.0 * hour as f64 }
}

/// Hours of the working day with 10 % noise; every `gap`-th value is unknown (0: none).
fn hours(count: usize, gap: usize, seed: u64) -> Series {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut value = |hour| truth(hour) * (0.9 + 0.2 * rng.random::<f64>());
    let known = |hour: usize| gap == 0 || !hour.is_multiple_of(gap);
    let values = (0..count).map(|hour| Some(value(hour)).filter(|_| known(hour))).collect();
    Series { start_s: 0, step_s: HOUR_S, values }
}

fn model(series: &Series) -> Box<dyn Forecaster> {
    fit(series, &ForecastOptions::default()).unwrap()
}

#[test]
fn learns_a_daily_season_through_gaps() {
    for gap in [0, 7] {
        let series = hours(24 * 7 + 5, gap, 1);
        let model = model(&series);
        assert_eq!(model.name(), "level+season");
        for (lead, point) in model.forecast(48).iter().enumerate() {
            let hour = 24 * 7 + 5 + lead;
            assert_eq!(point.at_s, hour as i64 * i64::from(HOUR_S));
            let ratio = point.mean / truth(hour);
            assert!((0.85..1.15).contains(&ratio), "hour {hour}: {point:?}");
        }
    }
}

#[test]
fn two_days_are_enough_for_a_season_and_less_is_a_level() {
    assert_eq!(model(&hours(48, 0, 2)).name(), "level+season");
    assert_eq!(model(&hours(47, 0, 2)).name(), "level");
}

#[test]
fn the_phase_follows_the_clock_not_the_index() {
    let mut series = hours(24 * 5, 0, 3);
    series.values.drain(..7);
    series.start_s = 7 * i64::from(HOUR_S);
    let point = model(&series).forecast(13)[12];
    assert!((400.0..600.0).contains(&point.mean), "{point:?}");
}

#[test]
fn a_gap_is_not_a_0() {
    let values = (0..30).map(|hour| (hour % 3 != 0).then_some(100.0)).collect();
    let series = Series { start_s: 0, step_s: HOUR_S, values };
    let model = model(&series);
    assert_eq!(model.history_buckets(), 20);
    for point in model.forecast(24) {
        assert!((point.mean - 100.0).abs() < 1e-6, "{point:?}");
    }
    let bad = |value| Series { start_s: 0, step_s: 1, values: vec![Some(value); 10] };
    for value in [f64::NAN, f64::INFINITY, -1.0] {
        let error = fit(&bad(value), &ForecastOptions::default()).err().unwrap();
        assert_eq!(error, ForecastError::InsufficientHistory { have: 0, need: 6 });
    }
}

#[test]
fn refuses_short_histories_and_bad_steps() {
    let error = |series| fit(&series, &ForecastOptions::default()).err();
    let short = Series { start_s: 0, step_s: 10, values: vec![Some(1.0); 5] };
    assert_eq!(error(short), Some(ForecastError::InsufficientHistory { have: 5, need: 6 }));
    let bad = Series { start_s: 0, step_s: 0, values: vec![Some(1.0); 50] };
    assert_eq!(error(bad), Some(ForecastError::BadStep));
}

#[test]
fn intervals_cover_and_never_narrow() {
    let (mut inside, mut all) = (0, 0);
    for seed in 0..40 {
        let whole = hours(24 * 9, 11, 100 + seed);
        let known = Series { values: whole.values[..24 * 8].to_vec(), ..whole.clone() };
        let forecast = model(&known).forecast(24);
        for (point, actual) in forecast.iter().zip(&whole.values[24 * 8..]) {
            assert!(0.0 <= point.lower && point.lower <= point.mean && point.mean <= point.upper);
            if let Some(actual) = actual {
                all += 1;
                inside += u32::from((point.lower..=point.upper).contains(actual));
            }
        }
        let widths: Vec<f64> = forecast.iter().map(|p| (p.upper.ln_1p() - p.lower.ln_1p()).abs()).collect();
        assert!(widths.windows(2).all(|pair| pair[1] >= pair[0] - 1e-9), "{widths:?}");
    }
    let coverage = f64::from(inside) / f64::from(all);
    println!("coverage of the nominal 90 % interval: {coverage:.3}");
    assert!((0.80..=1.0).contains(&coverage), "{coverage}");
}

#[test]
fn paths_are_reproducible_positive_and_centred() {
    let model = model(&hours(24 * 8, 0, 5));
    let mean: Vec<f64> = model.forecast(24).iter().map(|point| point.mean).collect();
    assert_eq!(model.sample_path(24, 9), model.sample_path(24, 9));
    assert_ne!(model.sample_path(24, 9), model.sample_path(24, 10));
    let mut sums = [0.0; 24];
    for seed in 0..200 {
        for (sum, value) in sums.iter_mut().zip(model.sample_path(24, seed)) {
            assert!(value >= 0.0);
            *sum += value / 200.0;
        }
    }
    for (sum, mean) in sums.iter().zip(mean) {
        assert!((sum / mean - 1.0).abs() < 0.1, "{sum} {mean}");
    }
}

#[test]
fn idle_spiky_and_short_series_stay_finite() {
    let mut spike = vec![Some(0.0); 60];
    spike[30] = Some(1e9);
    for values in [vec![Some(0.0); 60], spike, vec![Some(3.0); 6], vec![Some(1e300); 60]] {
        let highest = values.iter().flatten().copied().fold(0.0, f64::max);
        let model = model(&Series { start_s: -5, step_s: 300, values });
        for point in model.forecast(600) {
            assert!(point.mean.is_finite() && point.mean <= 4.1 * highest + 1e-9, "{point:?}");
            assert!(point.upper.is_finite() && point.lower >= 0.0, "{point:?}");
        }
        assert!(model.sample_path(600, 1).iter().all(|value| value.is_finite() && *value >= 0.0));
        assert!(model.mae().is_finite());
        assert!(model.forecast(0).is_empty() && model.sample_path(0, 1).is_empty());
    }
}
