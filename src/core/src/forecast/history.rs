//! A load history as the models see it: on the log scale, with its gaps filled.

use super::Series;
use super::regressor::Regressors;
use super::season::Clock;

/// Logs of the values, `ln(1 + value)`; loads of every size have comparable errors there.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// One value per bucket; unknown ones are filled in, see [`History::push`].
    pub(super) logs: Vec<f64>,
    /// Whether the bucket was known.
    pub(super) known: Vec<bool>,
    pub(super) clock: Clock,
    /// Buckets per season, if a season is a whole number of them.
    pub(super) day: Option<usize>,
    /// What users know of its buckets and of those after it.
    pub(super) regressors: Regressors,
}

/// The log of a load; negative and non-finite values are unknown.
pub(super) fn to_log(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite() && *value >= 0.0).map(f64::ln_1p)
}

impl History {
    /// The last `keep` buckets of a series, from the first known one on.
    pub(super) fn new(series: &Series, keep: usize, season_s: u32) -> Self {
        let from = series.values.len().saturating_sub(keep);
        let logs: Vec<Option<f64>> = series.values.iter().skip(from).map(|v| to_log(*v)).collect();
        let unknown = logs.iter().take_while(|log| log.is_none()).count();
        let clock = Clock::new(series, from + unknown, season_s);
        let regressors = Regressors::new(series, clock.at_s(0), logs.len() - unknown, clock.period);
        let mut history = Self { logs: Vec::new(), known: Vec::new(), day: clock.period, clock, regressors };
        logs.into_iter().skip(unknown).for_each(|log| history.push(log));
        history
    }

    /// Adds a bucket. An unknown one gets what the same time of the last week, of the last day, or else the
    /// last bucket had: models never take it for an observation, but they need something to look back at.
    pub(super) fn push(&mut self, log: Option<f64>) {
        let end = self.logs.len();
        let back = |buckets: usize| end.checked_sub(buckets).and_then(|i| self.logs.get(i)).copied();
        let filled =
            log.or_else(|| self.day.and_then(|day| back(7 * day).or_else(|| back(day)))).or_else(|| back(1));
        self.logs.push(filled.unwrap_or(0.0));
        self.known.push(log.is_some());
    }

    /// Buckets.
    pub(super) fn len(&self) -> usize {
        self.logs.len()
    }

    /// Known buckets.
    pub(super) fn count_known(&self) -> usize {
        self.known.iter().filter(|known| **known).count()
    }
}
