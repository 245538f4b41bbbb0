//! Forecasts of synthetic series with a daily season, noise and gaps.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::forecast::{ForecastError, ForecastOptions, Forecaster, Regressor, Series, fit};
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
    Series { start_s: 0, step_s: HOUR_S, values, events: Vec::new(), regressors: Vec::new() }
}

fn model(series: &Series) -> Box<dyn Forecaster> {
    fit(series, &ForecastOptions::default()).unwrap()
}

#[test]
fn learns_a_daily_season_through_gaps() {
    for gap in [0, 7] {
        let series = hours(24 * 7 + 5, gap, 1);
        let model = model(&series);
        assert_ne!(model.name(), "level");
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
    let series = Series { start_s: 0, step_s: HOUR_S, values, events: Vec::new(), regressors: Vec::new() };
    let model = model(&series);
    assert_eq!(model.history_buckets(), 20);
    for point in model.forecast(24) {
        assert!((point.mean - 100.0).abs() < 1e-6, "{point:?}");
    }
    let bad = |value| Series {
        start_s: 0,
        step_s: 1,
        values: vec![Some(value); 10],
        events: Vec::new(),
        regressors: Vec::new(),
    };
    for value in [f64::NAN, f64::INFINITY, -1.0] {
        let error = fit(&bad(value), &ForecastOptions::default()).err().unwrap();
        assert_eq!(error, ForecastError::InsufficientHistory { have: 0, need: 6 });
    }
}

#[test]
fn refuses_short_histories_and_bad_steps() {
    let error = |series| fit(&series, &ForecastOptions::default()).err();
    let short = Series {
        start_s: 0,
        step_s: 10,
        values: vec![Some(1.0); 5],
        events: Vec::new(),
        regressors: Vec::new(),
    };
    assert_eq!(error(short), Some(ForecastError::InsufficientHistory { have: 5, need: 6 }));
    let bad = Series {
        start_s: 0,
        step_s: 0,
        values: vec![Some(1.0); 50],
        events: Vec::new(),
        regressors: Vec::new(),
    };
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
        let model =
            model(&Series { start_s: -5, step_s: 300, values, events: Vec::new(), regressors: Vec::new() });
        for point in model.forecast(600) {
            assert!(point.mean.is_finite() && point.mean <= 4.1 * highest + 1e-9, "{point:?}");
            assert!(point.upper.is_finite() && point.lower >= 0.0, "{point:?}");
        }
        assert!(model.sample_path(600, 1).iter().all(|value| value.is_finite() && *value >= 0.0));
        assert!(model.mae().is_finite());
        assert!(model.forecast(0).is_empty() && model.sample_path(0, 1).is_empty());
    }
}

/// Errors of a forecast at each lead, summed over origins, and how much its intervals covered.
struct Trial {
    errors: f64,
    naive: f64,
    covered: f64,
}

/// Fits on the first part of a series and forecasts the rest, every five buckets 24 of them.
fn try_on(values: &[f64], known: usize) -> Trial {
    let series = |end: usize| Series {
        start_s: 0,
        step_s: HOUR_S,
        values: values[..end].iter().copied().map(Some).collect(),
        events: Vec::new(),
        regressors: Vec::new(),
    };
    let mut model = model(&series(known));
    let (mut trial, mut asked) = (Trial { errors: 0.0, naive: 0.0, covered: 0.0 }, 0.0);
    let mut told = known;
    for origin in (known..values.len() - 24).step_by(5) {
        model.extend(&values[told..origin].iter().copied().map(Some).collect::<Vec<_>>());
        told = origin;
        for (lead, point) in model.forecast(24).iter().enumerate() {
            let actual = values[origin + lead];
            assert_eq!(point.at_s, ((origin + lead) * HOUR_S as usize) as i64);
            trial.errors += (point.median - actual).abs();
            trial.naive += (values[origin + lead - 24] - actual).abs();
            trial.covered += f64::from(u8::from((point.lower..=point.upper).contains(&actual)));
            asked += 1.0;
        }
    }
    trial.covered /= asked;
    trial
}

/// A working week with noise.
fn week(hours: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let weekend = |hour: usize| hour / 24 % 7 >= 5;
    let mean = |hour: usize| if weekend(hour) { 60.0 } else { truth(hour) };
    (0..hours).map(|hour| mean(hour) * (0.9 + 0.2 * rng.random::<f64>())).collect()
}

#[test]
fn a_week_is_learnt_from_four_of_them() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let trial = try_on(&week(24 * 7 * 6, &mut rng), 24 * 7 * 4);
    let ratio = trial.errors / trial.naive;
    println!("error {ratio:.3} of the same time yesterday, covered {:.3}", trial.covered);
    // The noise alone is 0.29 of what the weekends cost the naive forecast.
    assert!(ratio < 0.45, "{ratio}");
    assert!((0.85..=0.97).contains(&trial.covered), "{}", trial.covered);
}

#[test]
fn a_shift_of_level_is_followed_and_still_covered() {
    let (mut covered, mut ratios) = (0.0, 0.0);
    let runs = 12;
    for seed in 0..runs {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut values = week(24 * 7 * 6, &mut rng);
        // Three shifts in the part that no fit has seen: to the double, the third, the quadruple.
        for (from, factor) in [(24 * 29, 2.0), (24 * 33, 0.33), (24 * 38, 4.0)] {
            values[from..].iter_mut().for_each(|value| *value *= factor);
        }
        let trial = try_on(&values, 24 * 7 * 4);
        covered += trial.covered / runs as f64;
        ratios += trial.errors / trial.naive / runs as f64;
    }
    println!("error {ratios:.3} of the same time yesterday, covered {covered:.3}");
    assert!(ratios < 0.8, "{ratios}");
    assert!(covered >= 0.8, "{covered}");
}

#[test]
fn noise_is_not_taken_for_a_pattern() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let values: Vec<f64> = (0..24 * 7 * 6).map(|_| 50.0 + 100.0 * rng.random::<f64>()).collect();
    let trial = try_on(&values, 24 * 7 * 4);
    // The best forecast of noise, its median, has 0.75 of the naive one's error.
    assert!(trial.errors / trial.naive < 0.8, "{}", trial.errors / trial.naive);
    assert!((0.85..=0.95).contains(&trial.covered), "{}", trial.covered);
}

#[test]
fn a_change_is_reported() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let values = week(24 * 7 * 5, &mut rng);
    let known = values.iter().copied().map(Some);
    let series = Series {
        start_s: 0,
        step_s: HOUR_S,
        values: known.clone().take(24 * 7 * 4).collect(),
        events: Vec::new(),
        regressors: Vec::new(),
    };
    let mut model = model(&series);
    model.extend(&known.skip(24 * 7 * 4).take(72).collect::<Vec<_>>());
    assert!(!model.has_changed(), "nothing has");
    let shifted = values[24 * 7 * 4 + 72..].iter().take(24).map(|value| Some(value * 5.0));
    model.extend(&shifted.collect::<Vec<_>>());
    assert!(model.has_changed());
}

#[test]
fn only_the_models_asked_for_compete() {
    for name in foreshard_core::forecast::MODELS {
        let options = ForecastOptions { models: vec![name.to_string()], ..ForecastOptions::default() };
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let values = week(24 * 7 * 8, &mut rng).into_iter().map(Some).collect();
        let noise = (0..24 * 7 * 8).map(|hour| Some(f64::from(hour * 7_919 % 101))).collect();
        let regressors = vec![Regressor { kind: 1, start_s: 0, values: noise }.into()];
        match fit(&Series { start_s: 0, step_s: HOUR_S, values, events: Vec::new(), regressors }, &options) {
            Ok(model) => assert_eq!(model.name(), name),
            // Those without a season are for series without one.
            Err(error) => {
                assert!(name.starts_with("ridge") && name.matches('_').count() <= 1, "{name}: {error}")
            }
        }
    }
}

#[test]
fn events_are_learnt_and_expected_again() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut values = week(24 * 7 * 5, &mut rng);
    // A batch run of three hours, every fifth day at another hour, triples the load.
    let at = |number: usize| 24 * (3 + 5 * number) + 5 * number % 24;
    for number in 0..6 {
        values[at(number)..at(number) + 3].iter_mut().for_each(|value| *value *= 3.0);
    }
    let event = |hour: usize, factor| foreshard_core::forecast::Event {
        kind: 7,
        start_s: (hour * HOUR_S as usize) as i64,
        end_s: ((hour + 3) * HOUR_S as usize) as i64,
        factor,
    };
    // The next one comes six hours after the end of what is known.
    let known = 24 * 7 * 4;
    let mut series = Series {
        start_s: 0,
        step_s: HOUR_S,
        values: values[..known].iter().copied().map(Some).collect(),
        events: (0..6)
            .filter(|number| at(*number) + 3 < known)
            .map(|number| event(at(number), None))
            .collect(),
        regressors: Vec::new(),
    };
    let learnt = series.events.len();
    assert!(learnt >= 4);
    let usual = model(&series).forecast(24)[6].mean;
    series.events.push(event(known + 6, None));
    let foreseen = model(&series);
    let expected = foreseen.forecast(24);
    assert!((2.2..3.3).contains(&(expected[6].mean / usual)), "{} {usual}", expected[6].mean);
    assert!((0.8..1.25).contains(&(expected[12].mean / model(&series).forecast(24)[12].mean)));
    assert!(expected[6].lower <= expected[6].mean && expected[6].mean <= expected[6].upper);
    let paths: f64 = (0..100).map(|seed| foreseen.sample_path(24, seed)[6]).sum::<f64>() / 100.0;
    assert!((0.75..1.33).contains(&(paths / expected[6].mean)), "{paths}");
    // What was said in advance is all there is for the first one of its kind.
    series.events = vec![event(known + 6, Some(5.0))];
    let said = model(&series).forecast(24)[6].mean;
    series.events.clear();
    assert!((4.5..5.5).contains(&(said / model(&series).forecast(24)[6].mean)), "{said}");
}

#[test]
fn an_outage_teaches_no_certainty() {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut values: Vec<Option<f64>> = week(1_500, &mut rng).into_iter().map(Some).collect();
    values.extend([None; 500]);
    values.push(Some(100.0));
    let model =
        model(&Series { start_s: 0, step_s: HOUR_S, values, events: Vec::new(), regressors: Vec::new() });
    assert!(model.mae() > 0.0);
    for point in model.forecast(24) {
        assert!(point.lower < point.median && point.median < point.upper, "{point:?}");
    }
    assert!((1..20).any(|seed| model.sample_path(24, seed) != model.sample_path(24, 0)));
}

#[test]
fn an_idle_slot_that_gets_hot_has_changed() {
    let series = Series {
        start_s: 0,
        step_s: HOUR_S,
        values: vec![Some(0.0); 300],
        events: Vec::new(),
        regressors: Vec::new(),
    };
    let mut model = model(&series);
    model.extend(&[Some(0.0); 48]);
    assert!(!model.has_changed());
    model.extend(&[Some(1_000.0); 4]);
    assert!(model.has_changed());
    let next = model.forecast(1)[0];
    assert!(next.upper >= 900.0, "{next:?}");
    // The rounding noise of a constant is none.
    let series = Series {
        start_s: 0,
        step_s: HOUR_S,
        values: vec![Some(5.0); 300],
        events: Vec::new(),
        regressors: Vec::new(),
    };
    let mut model = fit(&series, &ForecastOptions::default()).unwrap();
    model.extend(&[Some(5.0); 200]);
    assert!(!model.has_changed());
}

#[test]
fn events_between_buckets_and_on_top_of_each_other_count_once() {
    let mut values = vec![100.0; 24 * 28];
    let mut events = Vec::new();
    let mut add = |kind, hour: usize, factor| {
        let start_s = (hour * HOUR_S as usize) as i64 + 1_800;
        events.push(foreshard_core::forecast::Event { kind, start_s, end_s: start_s + 3_600, factor });
    };
    // From half past to half past, tripling the load; two kinds always come together, one of them twice.
    for hour in (30..24 * 28).step_by(50) {
        values[hour..hour + 2].iter_mut().for_each(|value| *value = 200.0);
        add(1, hour, None);
        add(1, hour, None);
        add(2, hour, None);
    }
    add(1, 24 * 28 + 5, None);
    add(2, 24 * 28 + 5, None);
    add(3, i64::MAX as usize / 10_000_000, Some(7.0));
    let values = values.into_iter().map(Some).collect();
    let forecast =
        model(&Series { start_s: 0, step_s: HOUR_S, values, events, regressors: Vec::new() }).forecast(24);
    assert!((100.0 - forecast[3].mean).abs() < 5.0, "{:?}", forecast[3]);
    assert!((170.0..220.0).contains(&forecast[5].mean), "{:?}", forecast[5]);
    assert!((170.0..220.0).contains(&forecast[6].mean), "{:?}", forecast[6]);
}
