//! Direct linear forecasts: one regression per lead, fitted on that lead.
//!
//! [`Ridge`] looks at the last buckets and at the same leads one season and one week earlier, all leads with
//! the same features. [`Spar`] is the sparse periodic autoregression of Chen et al. (NSDI 2008) as P-Store
//! uses it (Taft et al., SIGMOD 2018): the same phase of the last days, and how much the last buckets differ
//! from their own phase. Both are solved by the normal equations with a ridge (Hoerl and Kennard 1970).

use linfa_linalg::cholesky::SolveC;
use ndarray::Array2;

use super::history::History;
use super::{Candidate, LEADS, Leads};

/// Last buckets a ridge regression looks at.
const LAGS: usize = 24;
/// Last buckets whose difference from their phase a sparse periodic autoregression looks at.
const SPAR_LAGS: usize = 8;
/// The most days it looks at.
const SPAR_DAYS: usize = 7;
/// Rows per feature below which a regression is not worth trying.
pub(super) const ROWS_PER_FEATURE: usize = 2;
/// The most rows a fit uses, the newest ones.
pub(super) const MAX_ROWS: usize = 2_016;

/// How far back the same phase is known for a lead (from 1).
pub(super) fn back(lead: usize, period: usize) -> usize {
    period * lead.div_ceil(period)
}

/// Sums of squares and products of features and targets, centred.
pub(super) struct Normal {
    gram: Array2<f64>,
    moments: Array2<f64>,
    pub(super) feature_means: Vec<f64>,
    pub(super) target_means: Vec<f64>,
    rows: usize,
}

impl Normal {
    /// From rows of features and targets.
    fn new(mut features: Array2<f64>, mut targets: Array2<f64>) -> Self {
        let rows = features.nrows();
        let centre = |values: &mut Array2<f64>| -> Vec<f64> {
            let centre_column = |mut column: ndarray::ArrayViewMut1<f64>| {
                let mean = column.sum() / rows.max(1) as f64;
                column.iter_mut().for_each(|value| *value -= mean);
                mean
            };
            values.columns_mut().into_iter().map(centre_column).collect()
        };
        let (feature_means, target_means) = (centre(&mut features), centre(&mut targets));
        let gram = features.t().dot(&features);
        let moments = features.t().dot(&targets);
        Self { gram, moments, feature_means, target_means, rows }
    }

    /// The same with rows that count differently, by weights of at most 1.
    pub(super) fn weighted(features: &Array2<f64>, targets: &Array2<f64>, weights: &[f64]) -> Self {
        let total = weights.iter().sum::<f64>().max(1e-300);
        let centre = |values: &Array2<f64>| -> (Array2<f64>, Vec<f64>) {
            let mean_of = |column: ndarray::ArrayView1<f64>| {
                column.iter().zip(weights).map(|(value, weight)| weight * value).sum::<f64>() / total
            };
            let means: Vec<f64> = values.columns().into_iter().map(mean_of).collect();
            let mut centred = values.clone();
            for (mut row, weight) in centred.rows_mut().into_iter().zip(weights) {
                let root = weight.sqrt();
                row.iter_mut().zip(&means).for_each(|(value, mean)| *value = root * (*value - mean));
            }
            (centred, means)
        };
        let ((features, feature_means), (targets, target_means)) = (centre(features), centre(targets));
        let gram = features.t().dot(&features);
        let moments = features.t().dot(&targets);
        Self { gram, moments, feature_means, target_means, rows: features.nrows() }
    }

    /// Coefficients (features × targets) with a ridge of `strength` times the mean variance of the features.
    pub(super) fn solve(&self, strength: f64) -> Option<Array2<f64>> {
        let size = self.gram.nrows();
        let scale = self.gram.diag().sum() / size.max(1) as f64;
        let ridge = (strength * scale).max(1e-9 * self.rows as f64);
        let mut gram = self.gram.clone();
        gram.diag_mut().iter_mut().for_each(|value| *value += ridge);
        let solved = gram.solvec(&self.moments).ok()?;
        solved.iter().all(|value| value.is_finite()).then_some(solved)
    }
}

/// Ridge regression, see the module.
pub(super) struct Ridge {
    name: &'static str,
    /// How far back each feature lies from the last bucket.
    offsets: Vec<usize>,
    /// Features and targets are differences from the mean of the last [`LAGS`] buckets, so that a shifted
    /// level is only that.
    relative: bool,
    coefficients: Array2<f64>,
    feature_means: Vec<f64>,
    target_means: Vec<f64>,
}

impl Ridge {
    /// Fits on the first `end` buckets; None when they are too few.
    pub(super) fn fit(
        history: &History,
        end: usize,
        seasons: &[usize],
        relative: bool,
        strength: f64,
        name: &'static str,
    ) -> Option<Self> {
        let mut offsets: Vec<usize> = (0..LAGS).collect();
        for season in seasons {
            for lead in 1..=LEADS {
                let offset = back(lead, *season) - lead;
                if !offsets.contains(&offset) {
                    offsets.push(offset);
                }
            }
        }
        let reach = offsets.iter().copied().max().unwrap_or(0).max(LAGS);
        // The last bucket of the features of a row; its targets follow.
        let last = end.checked_sub(LEADS + 1)?;
        let first = reach.max(last.saturating_sub(MAX_ROWS));
        let mostly_known =
            |row: &usize| history.known[row + 1..=row + LEADS].iter().filter(|k| **k).count() * 2 > LEADS;
        let rows: Vec<usize> = (first..=last).filter(mostly_known).collect();
        if rows.len() < ROWS_PER_FEATURE * offsets.len() {
            return None;
        }
        let mut features = Array2::zeros((rows.len(), offsets.len()));
        let mut targets = Array2::zeros((rows.len(), LEADS));
        for (index, row) in rows.iter().enumerate() {
            let base = if relative { level(&history.logs[..=*row]) } else { 0.0 };
            for (place, offset) in offsets.iter().enumerate() {
                features[(index, place)] = history.logs[row - offset] - base;
            }
            for lead in 1..=LEADS {
                targets[(index, lead - 1)] = history.logs[row + lead] - base;
            }
        }
        let normal = Normal::new(features, targets);
        let coefficients = normal.solve(strength)?;
        let Normal { feature_means, target_means, .. } = normal;
        Some(Self { name, offsets, relative, coefficients, feature_means, target_means })
    }
}

/// Mean of the last [`LAGS`] buckets.
fn level(logs: &[f64]) -> f64 {
    let last = &logs[logs.len().saturating_sub(LAGS)..];
    last.iter().sum::<f64>() / last.len().max(1) as f64
}

impl Candidate for Ridge {
    fn name(&self) -> &'static str {
        self.name
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let base = if self.relative { level(logs) } else { 0.0 };
        let mut leads: Leads = std::array::from_fn(|lead| self.target_means[lead] + base);
        for (place, offset) in self.offsets.iter().enumerate() {
            let value = logs.len().checked_sub(offset + 1).map_or(base, |i| logs[i])
                - base
                - self.feature_means[place];
            let row = self.coefficients.row(place);
            leads.iter_mut().zip(row).for_each(|(lead, slope)| *lead += slope * value);
        }
        leads
    }
}

/// Sparse periodic autoregression, see the module.
pub(super) struct Spar {
    day: usize,
    days: usize,
    /// Per lead: coefficients, feature means, target mean.
    lines: Vec<(Vec<f64>, Vec<f64>, f64)>,
}

impl Spar {
    /// Fits on the first `end` buckets; None when they are too few.
    pub(super) fn fit(history: &History, end: usize, day: usize, strength: f64) -> Option<Self> {
        // As many days back as leave as many to learn from.
        let days = (end / day / 2).min(SPAR_DAYS);
        if days < 2 {
            return None;
        }
        let mut model = Self { day, days, lines: Vec::new() };
        // The same at every lead.
        let differences: Vec<[f64; SPAR_LAGS]> =
            (0..end).map(|row| model.differences(&history.logs[..=row])).collect();
        for lead in 1..=LEADS {
            let last = end.checked_sub(lead + 1)?;
            let first = model.reach(lead).max(last.saturating_sub(MAX_ROWS));
            let rows: Vec<usize> = (first..=last).filter(|row| history.known[row + lead]).collect();
            let width = days + SPAR_LAGS;
            if rows.len() < ROWS_PER_FEATURE * width {
                return None;
            }
            let mut features = Array2::zeros((rows.len(), width));
            let mut targets = Array2::zeros((rows.len(), 1));
            for (index, row) in rows.iter().enumerate() {
                let logs = &history.logs[..=*row];
                model.features(logs, &differences[*row], lead, |place, value| {
                    features[(index, place)] = value;
                });
                targets[(index, 0)] = history.logs[row + lead];
            }
            let normal = Normal::new(features, targets);
            let slopes = normal.solve(strength)?.column(0).to_vec();
            model.lines.push((slopes, normal.feature_means, *normal.target_means.first()?));
        }
        Some(model)
    }

    /// The least index of the last bucket of a row.
    fn reach(&self, lead: usize) -> usize {
        (self.days * self.day + SPAR_LAGS).max(back(lead, self.day) + (self.days - 1) * self.day)
    }

    /// How much the last buckets differ from their own phase.
    fn differences(&self, logs: &[f64]) -> [f64; SPAR_LAGS] {
        let at = |offset: usize| logs.len().checked_sub(offset + 1).map_or(0.0, |i| logs[i]);
        std::array::from_fn(|lag| {
            let usual: f64 = (1..=self.days).map(|number| at(lag + number * self.day)).sum();
            at(lag) - usual / self.days as f64
        })
    }

    fn features(
        &self,
        logs: &[f64],
        differences: &[f64; SPAR_LAGS],
        lead: usize,
        mut set: impl FnMut(usize, f64),
    ) {
        let at = |offset: usize| logs.len().checked_sub(offset + 1).map_or(0.0, |i| logs[i]);
        let nearest = back(lead, self.day) - lead;
        for number in 0..self.days {
            set(number, at(nearest + number * self.day));
        }
        for (lag, difference) in differences.iter().enumerate() {
            set(self.days + lag, *difference);
        }
    }
}

impl Candidate for Spar {
    fn name(&self) -> &'static str {
        "spar"
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let differences = self.differences(logs);
        std::array::from_fn(|index| {
            let (slopes, means, mean) = &self.lines[index];
            let mut sum = *mean;
            self.features(logs, &differences, index + 1, |place, value| {
                sum += slopes[place] * (value - means[place])
            });
            sum
        })
    }
}
