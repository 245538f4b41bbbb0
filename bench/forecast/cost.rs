//! What forecasts cost: many slots with four weeks of hours, fitted and forecast on one core.

use foreshard_core::forecast::{ForecastOptions, Forecaster, Series, fit};
use foreshard_test::bars::bar_most;
use std::time::Instant;

/// Buckets of a slot: four weeks of hours.
const BUCKETS: usize = 672;
/// Buckets by which the histories of two slots that are cut from one series are apart.
const APART: usize = 5;
const LEADS: usize = 24;
/// Sampled futures of a slot, as the keeper asks for.
const FUTURES: u64 = 64;
/// Slots that the bars are for.
const SLOTS: f64 = 1_024.0;
/// Most seconds of their fits, and of their forecasts.
const BARS: [f64; 2] = [10.0, 0.5];

/// A slot's history: a part of a series, begun again from its start where it is too short, in a unit of its own.
fn slot(series: &[Series], number: usize) -> Series {
    let from = &series[number % series.len()];
    let begin = number / series.len() * APART;
    let unit = 1.0 + (number % 7) as f64;
    let value = |at: usize| from.values[(begin + at) % from.values.len()].map(|value| value * unit);
    Series { step_s: 3_600, values: (0..BUCKETS).map(value).collect(), ..from.clone() }
}

/// Fits and forecasts that many slots; whether the bars hold. Series of which less than three quarters are known are no
/// load of a slot that is always there.
pub fn bench(series: &[Series], slots: usize) -> bool {
    let is_known = |one: &&Series| 4 * one.values.iter().flatten().count() >= 3 * one.values.len();
    let series: Vec<Series> = series.iter().filter(is_known).cloned().collect();
    if slots == 0 || series.is_empty() {
        return true;
    }
    let histories: Vec<Series> = (0..slots).map(|number| slot(&series, number)).collect();
    let begun = Instant::now();
    let options = ForecastOptions::default();
    let models: Vec<Box<dyn Forecaster>> =
        histories.iter().filter_map(|history| fit(history, &options).ok()).collect();
    let fitted_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let points: usize = models.iter().map(|model| model.forecast(LEADS).len()).sum();
    let forecast_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let seeds: Vec<u64> = (0..FUTURES).collect();
    let paths: usize = models.iter().map(|model| model.sample_paths(LEADS, &seeds).len()).sum();
    let sampled_s = begun.elapsed().as_secs_f64();
    println!(
        "\n{} of {slots} slots fitted on {BUCKETS} hours each, {points} points, {paths} futures in {sampled_s:.2} s",
        models.len()
    );
    let share = slots as f64 / SLOTS;
    let fits = bar_most("fits on one core, s", fitted_s, BARS[0] * share);
    bar_most("forecasts, s", forecast_s, BARS[1] * share) && fits && models.len() == slots
}
