//! Decomposition into trend, day, week and rest (after MSTL, Bandara et al. 2021, with exponentially weighted seasonal
//! means instead of loess, so that it is known at once where the end of a series stands). What is left is forecast
//! between its last level and its mean of the last day, with a weight per lead that is fitted on that lead.

use super::history::History;
use super::{Candidate, Leads};

/// What a day counts, relative to the one after it.
const DAYS_KEPT: f64 = 0.93;
/// The same of weeks.
const WEEKS_KEPT: f64 = 0.85;
/// A season of the week counts as so many weeks less than it was seen: few weeks are mostly noise.
const SHRINK: f64 = 1.0;
/// The newest weeks looked at.
const WEEKS: usize = 8;
/// Smoothing of the rest.
const ALPHA: f64 = 0.6;

/// A model by decomposition.
pub(super) struct Mstl {
    /// Buckets of a day.
    day: usize,
    /// Per lead, how much of the last level's difference from the mean is left.
    weights: Leads,
}

/// What a series is the sum of.
struct Parts {
    /// By buckets before the end, from the last one on.
    day: Vec<f64>,
    /// Likewise; a single 0 when no two weeks are known.
    week: Vec<f64>,
    /// What is left, oldest first.
    rest: Vec<f64>,
}

/// Weighted means per phase, counted from the end, centred.
fn season(values: &[f64], period: usize, kept: f64, shrink: f64) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); period];
    for (back, value) in values.iter().rev().enumerate() {
        let weight = kept.powi((back / period) as i32);
        let sum = &mut sums[back % period];
        *sum = (sum.0 + weight * value, sum.1 + weight);
    }
    let mut means: Vec<f64> = sums.iter().map(|(sum, weight)| sum / (weight + shrink).max(1e-9)).collect();
    let mean = means.iter().sum::<f64>() / period.max(1) as f64;
    means.iter_mut().for_each(|value| *value -= mean);
    means
}

/// Means over the day around every bucket; at the ends over the nearest whole day.
fn trend(values: &[f64], day: usize) -> Vec<f64> {
    let mut before = Vec::with_capacity(values.len() + 1);
    before.push(0.0);
    for value in values {
        before.push(before[before.len() - 1] + value);
    }
    (0..values.len())
        .map(|at| {
            let from = at.saturating_sub(day / 2).min(values.len().saturating_sub(day));
            let to = (from + day).min(values.len());
            (before[to] - before[from]) / (to - from).max(1) as f64
        })
        .collect()
}

fn parts(logs: &[f64], day: usize) -> Parts {
    let values = &logs[logs.len().saturating_sub(WEEKS * 7 * day)..];
    let trend = trend(values, day);
    let level: Vec<f64> = values.iter().zip(&trend).map(|(value, trend)| value - trend).collect();
    let without = |season: &[f64], of: &[f64]| -> Vec<f64> {
        let last = of.len().saturating_sub(1);
        of.iter().enumerate().map(|(at, value)| value - season[(last - at) % season.len()]).collect()
    };
    let first = season(&level, day, DAYS_KEPT, 0.0);
    let has_week = values.len() >= 14 * day;
    // The mean of a week's rest has the week's trend in it as well: it is a part of the week.
    let week = if has_week {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let own: Vec<f64> = values.iter().map(|value| value - mean).collect();
        season(&without(&first, &own), 7 * day, WEEKS_KEPT, SHRINK)
    } else {
        vec![0.0]
    };
    let again = season(&without(&week, &level), day, DAYS_KEPT, 0.0);
    let rest = without(&again, &without(&week, values));
    Parts { day: again, week, rest }
}

/// (Smoothed level, mean of the last day) of the rest up to a bucket.
fn ends(rest: &[f64], day: usize) -> (f64, f64) {
    let recent = &rest[rest.len().saturating_sub(12)..];
    let level = recent.iter().fold(recent.first().copied().unwrap_or(0.0), |l, v| l + ALPHA * (v - l));
    let last = &rest[rest.len().saturating_sub(day)..];
    (level, last.iter().sum::<f64>() / last.len().max(1) as f64)
}

impl Mstl {
    /// Fits on the first `end` buckets; None when they are too few.
    pub(super) fn fit(history: &History, end: usize, day: usize) -> Option<Self> {
        if end < 7 * day {
            return None;
        }
        let rest = parts(&history.logs[..end], day).rest;
        let weights = std::array::from_fn(|index| {
            let (mut product, mut square) = (0.0, 1e-9);
            for origin in (2 * day..rest.len().saturating_sub(index)).step_by(3) {
                let (level, mean) = ends(&rest[..origin], day);
                product += (rest[origin + index] - mean) * (level - mean);
                square += (level - mean) * (level - mean);
            }
            (product / square).clamp(0.0, 1.0)
        });
        Some(Self { day, weights })
    }
}

impl Candidate for Mstl {
    fn name(&self) -> &'static str {
        "mstl"
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let parts = parts(logs, self.day);
        let (level, mean) = ends(&parts.rest, self.day);
        let ahead = |season: &[f64], lead: usize| season[(season.len() - lead % season.len()) % season.len()];
        std::array::from_fn(|index| {
            let seasons = ahead(&parts.day, index + 1) + ahead(&parts.week, index + 1);
            seasons + mean + self.weights[index] * (level - mean)
        })
    }
}
