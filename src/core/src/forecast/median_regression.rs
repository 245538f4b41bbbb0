//! Median regression, one per lead: what lies in the middle, not the mean, so that spikes of the past do not bend it.
//!
//! Few features, chosen for the lead: the same time of yesterday, of the day before and of last week, weighted means of
//! the same time of the last days and of the last weeks, and how far the last buckets are from theirs; and, if asked
//! for, what users know of the bucket (see [`super::regressor`]) beside what they knew of those it is compared with.
//! Solved as weighted least squares, again and again (Schlossmacher 1973), with a weak ridge.

use ndarray::Array2;

use super::history::History;
use super::linear::{MAX_ROWS, Normal, ROWS_PER_FEATURE, back};
use super::regressor::Regressors;
use super::{Candidate, LEADS, Leads};

/// The most days and weeks that the means look at.
const DAYS: usize = 7;
const WEEKS: usize = 2;
/// What a day, or a week, counts relative to the one after it.
const DAYS_KEPT: f64 = 0.75;
const WEEKS_KEPT: f64 = 0.7;
/// Last buckets that are compared with their means.
const LAGS: usize = 4;
/// Ridge, as a share of the features' mean variance.
const RIDGE: f64 = 0.0003;
/// Rounds of weighting at the first lead; later ones begin with its weights.
const ROUNDS: usize = 4;
/// Errors below this share of the usual one count as if they had it.
const LEAST_ERROR: f64 = 0.2;
/// Features per regressor.
const PER_REGRESSOR: usize = 6;

/// Buckets of the seasons, and how many of them the means look at.
#[derive(Clone, Copy, Debug)]
struct Seasons {
    day: usize,
    days: usize,
    weeks: usize,
}

/// The model.
pub(super) struct MedianRegression {
    name: &'static str,
    seasons: Seasons,
    lines: Vec<Line>,
    regressors: Regressors,
}

/// One lead's.
struct Line {
    slopes: Vec<f64>,
    feature_means: Vec<f64>,
    target_mean: f64,
}

/// What is usual at the phase of a bucket: weighted means of it and of those whole periods before it.
struct Usual<'a> {
    logs: &'a [f64],
    seasons: Seasons,
    /// Of every bucket, where they are asked for more than once: (of the days, of the weeks).
    known: Vec<(f64, f64)>,
}

impl<'a> Usual<'a> {
    fn new(logs: &'a [f64], seasons: Seasons) -> Self {
        Self { logs, seasons, known: Vec::new() }
    }

    /// For whoever asks for every bucket.
    fn of_all(logs: &'a [f64], seasons: Seasons) -> Self {
        let usual = Self::new(logs, seasons);
        let known = (0..logs.len()).map(|at| (usual.of_day(at), usual.of_week(at))).collect();
        Self { known, ..usual }
    }

    fn mean(&self, at: usize, period: usize, count: usize, kept: f64) -> f64 {
        let (mut sum, mut total, mut weight) = (0.0, 0.0, 1.0);
        for number in 0..count {
            let Some(at) = at.checked_sub(number * period) else { break };
            (sum, total, weight) = (sum + weight * self.logs[at], total + weight, weight * kept);
        }
        if total > 0.0 { sum / total } else { 0.0 }
    }

    fn of_day(&self, at: usize) -> f64 {
        let Seasons { day, days, .. } = self.seasons;
        self.known.get(at).map_or_else(|| self.mean(at, day, days, DAYS_KEPT), |known| known.0)
    }

    fn of_week(&self, at: usize) -> f64 {
        let Seasons { day, weeks, .. } = self.seasons;
        self.known.get(at).map_or_else(|| self.mean(at, 7 * day, weeks, WEEKS_KEPT), |known| known.1)
    }

    /// The differences of the buckets up to `last` from what was usual: the same for every lead.
    fn differences(&self, last: usize) -> Vec<f64> {
        let (day, week) = (self.seasons.day, 7 * self.seasons.day);
        let mut found = Vec::with_capacity(2 * LAGS);
        for at in (0..LAGS).map(|lag| last.saturating_sub(lag)) {
            let value = self.logs[at];
            found.push(value - self.of_day(at.saturating_sub(day)));
            if self.seasons.weeks > 0 {
                found.push(value - self.of_week(at.saturating_sub(week)));
            }
        }
        found
    }

    /// Adds the features of a lead after bucket `last`.
    fn features(
        &self,
        (last, lead): (usize, usize),
        differences: &[f64],
        regressors: &Regressors,
        to: &mut Vec<f64>,
    ) {
        let day = self.seasons.day;
        let before = |period: usize| (last + lead).saturating_sub(back(lead, period));
        let (yesterday, last_week) = (before(day), before(7 * day));
        to.extend([self.logs[yesterday], self.logs[yesterday.saturating_sub(day)], self.of_day(yesterday)]);
        if self.seasons.weeks > 0 {
            to.extend([self.logs[last_week], self.of_week(last_week)]);
        }
        to.extend_from_slice(differences);
        for which in 0..regressors.len() {
            let at = |bucket: usize| regressors.at(which, bucket);
            let (then, day_before) = (at(last + lead), at(yesterday));
            to.extend([then, day_before, at(last_week), at(last), then * then, day_before * day_before]);
        }
    }
}

impl Seasons {
    /// The least index of the last bucket of a row.
    fn reach(self) -> usize {
        (self.days.max(2) * self.day).max(7 * self.day * self.weeks) + self.day + LAGS
    }

    /// How many features there are.
    fn width(self, regressors: usize) -> usize {
        let weekly = usize::from(self.weeks > 0);
        3 + 2 * weekly + LAGS * (1 + weekly) + PER_REGRESSOR * regressors
    }
}

impl MedianRegression {
    /// Fits on the first `end` buckets; None when they are too few, or there are no regressors to be listened to.
    pub(super) fn fit(
        history: &History,
        end: usize,
        day: usize,
        with_regressors: bool,
        name: &'static str,
    ) -> Option<Self> {
        let regressors = if with_regressors { history.regressors.clone() } else { Regressors::default() };
        if with_regressors && regressors.len() == 0 {
            return None;
        }
        // As many weeks as leave a few days to learn from.
        let weeks = (0..=WEEKS).rev().find(|weeks| *weeks == 0 || end >= (7 * weeks + 11) * day)?;
        let seasons = Seasons { day, days: (end / day / 2).min(DAYS), weeks };
        if seasons.days < 2 {
            return None;
        }
        let last = end.checked_sub(2)?;
        let first = seasons.reach().max(last.saturating_sub(MAX_ROWS));
        let usual = Usual::of_all(&history.logs[..end], seasons);
        let differences: Vec<Vec<f64>> = (first..=last).map(|row| usual.differences(row)).collect();
        let width = seasons.width(regressors.len());
        let mut lines = Vec::with_capacity(LEADS);
        // Of every bucket, what it counted in the lead before: what is far off at one lead is so at the next.
        let mut counted = vec![1.0; end];
        for lead in 1..=LEADS {
            let rows: Vec<usize> =
                (first..end.saturating_sub(lead)).filter(|row| history.known[row + lead]).collect();
            if rows.len() < ROWS_PER_FEATURE * width {
                return None;
            }
            let mut features = Vec::with_capacity(rows.len() * width);
            for row in &rows {
                usual.features((*row, lead), &differences[row - first], &regressors, &mut features);
            }
            let features = Array2::from_shape_vec((rows.len(), width), features).ok()?;
            let targets = rows.iter().map(|row| history.logs[row + lead]).collect();
            let targets = Array2::from_shape_vec((rows.len(), 1), targets).ok()?;
            let mut weights: Vec<f64> = rows.iter().map(|row| counted[row + lead]).collect();
            let rounds = if lead == 1 { ROUNDS } else { 1 };
            lines.push(Line::fit(&features, &targets, &mut weights, rounds)?);
            rows.iter().zip(weights).for_each(|(row, weight)| counted[row + lead] = weight);
        }
        Some(Self { name, seasons, lines, regressors })
    }
}

impl Line {
    /// Fits with the weights, so many times over, and leaves those that follow.
    fn fit(
        features: &Array2<f64>,
        targets: &Array2<f64>,
        weights: &mut [f64],
        rounds: usize,
    ) -> Option<Self> {
        let mut fitted = None;
        for _ in 0..rounds {
            let line = Self::weighted(features, targets, weights)?;
            let errors: Vec<f64> = features
                .rows()
                .into_iter()
                .zip(targets.column(0))
                .map(|(row, target)| (target - line.at(row.iter().copied())).abs())
                .collect();
            let usual = super::trial::median(&mut errors.clone());
            let least = (LEAST_ERROR * usual).max(1e-9);
            weights.iter_mut().zip(errors).for_each(|(weight, error)| *weight = least / error.max(least));
            fitted = Some(line);
        }
        fitted
    }

    fn weighted(features: &Array2<f64>, targets: &Array2<f64>, weights: &[f64]) -> Option<Self> {
        let normal = Normal::weighted(features, targets, weights);
        let slopes = normal.solve(RIDGE)?.column(0).to_vec();
        Some(Self { slopes, target_mean: *normal.target_means.first()?, feature_means: normal.feature_means })
    }

    fn at(&self, features: impl Iterator<Item = f64>) -> f64 {
        let lines = features.zip(&self.feature_means).zip(&self.slopes);
        self.target_mean + lines.map(|((value, mean), slope)| slope * (value - mean)).sum::<f64>()
    }
}

impl Candidate for MedianRegression {
    fn name(&self) -> &'static str {
        self.name
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let Some(last) = logs.len().checked_sub(1) else { return [0.0; LEADS] };
        let usual = Usual::new(logs, self.seasons);
        let differences = usual.differences(last);
        let mut features = Vec::new();
        std::array::from_fn(|index| {
            features.clear();
            usual.features((last, index + 1), &differences, &self.regressors, &mut features);
            self.lines[index].at(features.iter().copied())
        })
    }

    fn tell(&mut self, regressors: &Regressors) {
        if self.regressors.len() > 0 {
            self.regressors = regressors.clone();
        }
    }
}
