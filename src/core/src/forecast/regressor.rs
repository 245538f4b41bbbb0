//! Regressors: what a user knows of every bucket, past and coming, such as the weather or the number of open orders.
//!
//! They are looked at by one candidate only (see [`super::median_regression`]), which competes like the others: a
//! regressor that says nothing of a load is not listened to.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{MAX_HISTORY, Series};

/// The most regressors of a series that are looked at, the first ones.
const MOST: usize = 4;
/// The longest time between two known values that is bridged.
const LONGEST_LINE_S: i64 = 86_400;
/// How many days back a value may come from where none is known.
const DAYS_BACK: usize = 8;

/// A regressor: one value per bucket of the series it is given with.
#[derive(Clone, Debug, PartialEq)]
pub struct Regressor {
    /// What tells regressors of a series apart, the same from fit to fit.
    pub kind: u64,
    /// Start of the first bucket, unix seconds; buckets are as long as those of the series.
    pub start_s: i64,
    /// Past and coming values; `None` and non-finite ones are unknown.
    pub values: Vec<Option<f64>>,
}

impl Regressor {
    /// From known values: the mean of those in a bucket, and between buckets at most a day apart what lies on the
    /// line between them. Points of a step of 0, and all but the newest of too many buckets, are dropped.
    pub fn from_points(kind: u64, step_s: u32, points: impl IntoIterator<Item = (i64, f64)>) -> Self {
        let step_s = i64::from(step_s);
        let mut buckets: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
        for (at_s, value) in points {
            if value.is_finite() && step_s > 0 {
                let bucket = buckets.entry(at_s.div_euclid(step_s)).or_default();
                *bucket = (bucket.0 + value, bucket.1 + 1.0);
            }
        }
        let last = buckets.last_key_value().map_or(0, |(bucket, _)| *bucket);
        let known: Vec<(i64, f64)> = buckets
            .into_iter()
            .filter(|(bucket, _)| last.saturating_sub(*bucket) < MAX_HISTORY as i64)
            .map(|(bucket, (sum, count))| (bucket, sum / count))
            .collect();
        let first = known.first().map_or(0, |(bucket, _)| *bucket);
        let mut values = vec![None; if known.is_empty() { 0 } else { (last - first + 1) as usize }];
        for (index, (bucket, value)) in known.iter().enumerate() {
            let (next, then) = known.get(index + 1).copied().unwrap_or((bucket + 1, *value));
            let apart = next - bucket;
            let filled = if apart * step_s <= LONGEST_LINE_S { apart } else { 1 };
            for step in 0..filled {
                let share = step as f64 / apart as f64;
                values[(bucket - first + step) as usize] = Some(value * (1.0 - share) + then * share);
            }
        }
        Self { kind, start_s: first.saturating_mul(step_s), values }
    }
}

/// A regressor as buckets of a history see it.
#[derive(Clone, Debug)]
struct Column {
    regressor: Arc<Regressor>,
    /// Bucket of the history that the first value belongs to.
    offset: i64,
    /// What is subtracted, and what the rest is divided by.
    scale: (f64, f64),
}

/// The regressors of a history.
#[derive(Clone, Debug, Default)]
pub(super) struct Regressors {
    columns: Vec<Column>,
    /// Buckets of a day.
    day: usize,
    /// Start of the first bucket of the history, and length of a bucket, s.
    start_s: i64,
    step_s: i64,
}

impl Regressors {
    /// Those of a series that are known for at least half of its `buckets` from `start_s` on, and are not the
    /// same all the time.
    pub(super) fn new(series: &Series, start_s: i64, buckets: usize, day: Option<usize>) -> Self {
        let mut regressors = Self {
            columns: Vec::new(),
            day: day.unwrap_or(1).max(1),
            start_s,
            step_s: i64::from(series.step_s.max(1)),
        };
        for regressor in series.regressors.iter().take(MOST) {
            let mut column = regressors.column(regressor, (0.0, 1.0));
            let known: Vec<f64> =
                (0..buckets).filter_map(|at| known(&column.regressor, at as i64 - column.offset)).collect();
            let count = known.len().max(1) as f64;
            let mean = known.iter().sum::<f64>() / count;
            let variance = known.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / count;
            if 2 * known.len() >= buckets && variance.is_finite() && variance > 1e-12 * (1.0 + mean * mean) {
                column.scale = (mean, variance.sqrt());
                regressors.columns.push(column);
            }
        }
        regressors
    }

    fn column(&self, regressor: &Arc<Regressor>, scale: (f64, f64)) -> Column {
        let offset = regressor.start_s.saturating_sub(self.start_s).div_euclid(self.step_s);
        Column { regressor: Arc::clone(regressor), offset, scale }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    /// The same with what is known now; those that are no longer told keep what was told.
    pub(super) fn told(&self, now: &[Arc<Regressor>]) -> Self {
        let columns = self.columns.iter().map(|column| {
            let same = now.iter().find(|regressor| regressor.kind == column.regressor.kind);
            same.map_or_else(|| column.clone(), |regressor| self.column(regressor, column.scale))
        });
        Self { columns: columns.collect(), ..*self }
    }

    /// A regressor at a bucket of the history or after it, in standard deviations from its mean. Where nothing
    /// is known it is what it was at the same time of the last known day, else its mean.
    pub(super) fn at(&self, which: usize, bucket: usize) -> f64 {
        let Some(Column { regressor, offset, scale: (mean, deviation) }) = self.columns.get(which) else {
            return 0.0;
        };
        let at = bucket as i64 - offset;
        // Beyond the last value nothing is known at once.
        let beyond = (at - regressor.values.len() as i64 + 1).max(0) as usize;
        let first = beyond.div_ceil(self.day);
        let known =
            (first..first + DAYS_BACK).find_map(|days| known(regressor, at - (days * self.day) as i64));
        known.map_or(0.0, |value| ((value - mean) / deviation).clamp(-8.0, 8.0))
    }
}

/// A value, if it is known.
fn known(regressor: &Regressor, at: i64) -> Option<f64> {
    let at = usize::try_from(at).ok()?;
    regressor.values.get(at).copied().flatten().filter(|value| value.is_finite())
}
