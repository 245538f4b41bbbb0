//! Time of day, and the additive season by it.

use super::Series;

/// Maps bucket indexes to times and phases.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    start_s: i64,
    step_s: i64,
    season_s: i64,
    /// Buckets per season, if a season is a whole number (at least 2) of them.
    pub(super) period: Option<usize>,
}

impl Clock {
    /// The clock of `series` without its first `skip` buckets.
    pub(super) fn new(series: &Series, skip: usize, season_s: u32) -> Self {
        let step_s = i64::from(series.step_s);
        let whole = season_s.is_multiple_of(series.step_s.max(1)) && season_s / series.step_s.max(1) >= 2;
        let skipped_s = step_s.saturating_mul(i64::try_from(skip).unwrap_or(i64::MAX));
        Self {
            start_s: series.start_s.saturating_add(skipped_s),
            step_s,
            season_s: i64::from(season_s),
            period: whole.then(|| (season_s / series.step_s.max(1)) as usize),
        }
    }

    /// Start of bucket `index`, unix seconds.
    pub(super) fn at_s(&self, index: usize) -> i64 {
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        self.start_s.saturating_add(self.step_s.saturating_mul(index))
    }

    /// Phase of bucket `index` in the season, 0 without one.
    pub(super) fn phase(&self, index: usize) -> usize {
        if self.period.is_none() {
            return 0;
        }
        (self.at_s(index).rem_euclid(self.season_s) / self.step_s) as usize
    }
}

/// The additive season: per phase, the mean difference from the mean of its own day; sums to 0.
pub(super) fn season_of(logs: &[Option<f64>], clock: &Clock, period: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0_u32); period];
    // Days are counted from the end, so that the latest one is never cut.
    let mut end = logs.len();
    while end >= period {
        let start = end - period;
        let day = logs.get(start..end).unwrap_or_default();
        let known: Vec<f64> = day.iter().flatten().copied().collect();
        // The mean of a half known day says nothing about the other half.
        if 4 * known.len() >= 3 * period {
            let mean = known.iter().sum::<f64>() / known.len() as f64;
            for (offset, log) in day.iter().enumerate() {
                if let (Some(log), Some(sum)) = (log, sums.get_mut(clock.phase(start + offset))) {
                    *sum = (sum.0 + log - mean, sum.1 + 1);
                }
            }
        }
        end = start;
    }
    let means: Vec<Option<f64>> =
        sums.iter().map(|(sum, count)| (*count > 0).then(|| sum / f64::from(*count))).collect();
    let smooth = smooth(&fill(&means), period / 96);
    let mean = smooth.iter().sum::<f64>() / period as f64;
    smooth.iter().map(|value| value - mean).collect()
}

/// Fills unknown phases by interpolation around the circle; all unknown is no season.
pub(super) fn fill(means: &[Option<f64>]) -> Vec<f64> {
    let period = means.len();
    let known: Vec<(usize, f64)> =
        means.iter().enumerate().filter_map(|(phase, mean)| mean.map(|mean| (phase, mean))).collect();
    let mut filled: Vec<f64> = means.iter().map(|mean| mean.unwrap_or(0.0)).collect();
    for (index, (phase, mean)) in known.iter().enumerate() {
        let next = known.get((index + 1) % known.len()).copied().unwrap_or((*phase, *mean));
        let gap = (next.0 + period - phase - 1) % period;
        for step in 1..=gap {
            let share = step as f64 / (gap + 1) as f64;
            if let Some(value) = filled.get_mut((phase + step) % period) {
                *value = mean + (next.1 - mean) * share;
            }
        }
    }
    filled
}

/// Mean over `2 * half + 1` neighbours around the circle: few days of short buckets are noisy.
pub(super) fn smooth(values: &[f64], half: usize) -> Vec<f64> {
    let period = values.len();
    (0..period)
        .map(|phase| {
            let around = (0..=2 * half).map(|step| (phase + period + step - half) % period);
            let sum: f64 = around.filter_map(|phase| values.get(phase)).sum();
            sum / (2 * half + 1) as f64
        })
        .collect()
}
