//! What users know of every bucket: listened to when it says something, and only then.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::Arc;

use foreshard_core::forecast::{ForecastOptions, Forecaster, Regressor, Series, fit};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const HOUR_S: u32 = 3_600;
const KNOWN: usize = 24 * 28;
const AHEAD: usize = 24 * 3;

/// A temperature that changes from day to day, and a load that follows it and the hour.
fn weather(seed: u64) -> (Vec<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut level = 0.0;
    (0..KNOWN + AHEAD)
        .map(|hour| {
            if hour % 6 == 0 {
                level = 0.6 * level + 6.0 * (rng.random::<f64>() - 0.5);
            }
            let temperature = 15.0 + level + 5.0 * ((hour % 24) as f64 / 24.0 * std::f64::consts::TAU).sin();
            let usual = if (8..18).contains(&(hour % 24)) { 300.0 } else { 100.0 };
            let noise = 0.97 + 0.06 * rng.random::<f64>();
            (temperature, usual * (0.06 * (temperature - 15.0)).exp() * noise)
        })
        .unzip()
}

fn regressor(kind: u64, values: &[f64]) -> Arc<Regressor> {
    let points = values.iter().enumerate().map(|(hour, value)| (hour as i64 * i64::from(HOUR_S), *value));
    Arc::new(Regressor::from_points(kind, HOUR_S, points))
}

fn series(load: &[f64], regressors: Vec<Arc<Regressor>>) -> Series {
    let values = load.iter().copied().map(Some).collect();
    Series { start_s: 0, step_s: HOUR_S, values, events: Vec::new(), regressors }
}

/// Mean absolute error over a day's leads, from the end of what is known on every twelve hours.
fn error(model: &mut dyn Forecaster, load: &[f64], told: &[Arc<Regressor>]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for origin in (KNOWN..load.len() - 24).step_by(12) {
        model.tell(told);
        for (point, actual) in model.forecast(24).iter().zip(&load[origin..]) {
            sum += (point.median - actual).abs();
            count += 1;
        }
        model.extend(&load[origin..origin + 12].iter().copied().map(Some).collect::<Vec<_>>());
    }
    sum / f64::from(count)
}

#[test]
fn a_load_that_follows_the_weather_is_forecast_by_it() {
    let (temperature, load) = weather(1);
    let told = vec![regressor(1, &temperature)];
    let options = ForecastOptions::default();
    let mut with = fit(&series(&load[..KNOWN], told.clone()), &options).unwrap();
    let mut without = fit(&series(&load[..KNOWN], Vec::new()), &options).unwrap();
    assert!(with.name().contains("with_regressors"), "{}", with.name());
    let (with, without) = (error(with.as_mut(), &load, &told), error(without.as_mut(), &load, &[]));
    assert!(with < 0.6 * without, "{with} {without}");
}

#[test]
fn what_says_nothing_is_not_listened_to() {
    let mut ratios = Vec::new();
    for seed in 0..3 {
        let (_, load) = weather(10 + seed);
        let (other, _) = weather(100 + seed);
        let told = vec![regressor(1, &other)];
        let options = ForecastOptions::default();
        let mut with = fit(&series(&load[..KNOWN], told.clone()), &options).unwrap();
        let mut without = fit(&series(&load[..KNOWN], Vec::new()), &options).unwrap();
        ratios.push(error(with.as_mut(), &load, &told) / error(without.as_mut(), &load, &[]));
    }
    let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
    assert!(mean < 1.06, "{ratios:?}");
}

#[test]
fn a_new_weather_forecast_changes_what_is_forecast_at_once() {
    let (temperature, load) = weather(2);
    let mut model =
        fit(&series(&load[..KNOWN], vec![regressor(1, &temperature)]), &ForecastOptions::default()).unwrap();
    let before = model.forecast(24);
    let mut warmer = temperature.clone();
    warmer[KNOWN..].iter_mut().for_each(|value| *value += 5.0);
    model.tell(&[regressor(1, &warmer)]);
    let rise: f64 = model.forecast(24).iter().zip(&before).map(|(now, then)| now.median / then.median).sum();
    assert!(rise / 24.0 > 1.1, "{rise}");
    // What is told of something else is not what it was fitted with.
    model.tell(&[regressor(2, &temperature)]);
    assert!(model.forecast(24)[12].median > 1.05 * before[12].median);
}

#[test]
fn hostile_regressors_do_no_harm() {
    let (temperature, load) = weather(3);
    let short = &temperature[..KNOWN / 3];
    let hostile: Vec<Arc<Regressor>> = vec![
        regressor(1, &[]),
        regressor(2, &[5.0; KNOWN]),
        regressor(3, short),
        Arc::new(Regressor { kind: 4, start_s: i64::MIN, values: vec![Some(f64::NAN); 9] }),
        Arc::new(Regressor { kind: 5, start_s: i64::MAX, values: vec![None, Some(1.0)] }),
        regressor(6, &[f64::INFINITY, 1e100, -1e100]),
    ];
    for one in hostile {
        let model =
            fit(&series(&load[..KNOWN], vec![one.clone(), one]), &ForecastOptions::default()).unwrap();
        assert!(!model.name().contains("with_regressors"), "{}", model.name());
    }
    // One that ends with the history is taken to go on as it was a day before.
    let ends = vec![regressor(1, &temperature[..KNOWN])];
    let model = fit(&series(&load[..KNOWN], ends), &ForecastOptions::default()).unwrap();
    assert!(model.forecast(600).iter().all(|point| point.mean.is_finite() && point.lower >= 0.0));
    for step_s in [300, 7, 86_400] {
        let series = Series { step_s, ..series(&load[..KNOWN], vec![regressor(1, &temperature)]) };
        assert!(fit(&series, &ForecastOptions::default()).is_ok());
    }
}

#[test]
fn points_become_buckets() {
    let day_s = 86_400;
    let points = [(-30, 1.0), (-20, 3.0), (180, 8.0), (180 + 2 * day_s, 7.0), (5, f64::NAN)];
    let regressor = Regressor::from_points(9, 60, points);
    assert_eq!((regressor.kind, regressor.start_s), (9, -60));
    assert_eq!(&regressor.values[..6], &[Some(2.0), Some(3.5), Some(5.0), Some(6.5), Some(8.0), None]);
    assert_eq!(regressor.values.last(), Some(&Some(7.0)));
    assert_eq!(regressor.values.len(), 2 * day_s as usize / 60 + 5);
    // Years apart: only the newest are kept.
    let regressor = Regressor::from_points(9, 60, [(i64::MIN / 2, 1.0), (0, 2.0), (i64::MAX / 2, 3.0)]);
    assert_eq!(regressor.values, [Some(3.0)]);
    assert!(Regressor::from_points(9, 0, [(1, 1.0)]).values.is_empty());
}
