//! A model of a series that was divided by known factors, and the factors: what it forecasts is multiplied again.

use std::sync::Arc;

use super::{ForecastPoint, Forecaster, Regressor};

/// What multiplies the buckets of a series.
pub(super) trait Factors {
    /// What the name of the model ends in.
    fn suffix(&self) -> &'static str;

    /// By how much bucket `index` (from 0) of a forecast is multiplied.
    fn factor(&self, index: usize) -> f64;

    /// So many buckets have passed: forecasts now begin behind them.
    fn passed(&mut self, buckets: usize);
}

/// A model and its factors.
pub(super) struct Scaled<F> {
    pub(super) model: Box<dyn Forecaster>,
    pub(super) factors: F,
}

impl<F: Factors> Forecaster for Scaled<F> {
    fn name(&self) -> String {
        format!("{} {}", self.model.name(), self.factors.suffix())
    }

    fn forecast(&self, leads: usize) -> Vec<ForecastPoint> {
        let mut points = self.model.forecast(leads);
        for (index, point) in points.iter_mut().enumerate() {
            let factor = self.factors.factor(index);
            for value in [&mut point.mean, &mut point.median, &mut point.lower, &mut point.upper] {
                *value *= factor;
            }
        }
        points
    }

    fn sample_path(&self, leads: usize, seed: u64) -> Vec<f64> {
        let mut path = self.model.sample_path(leads, seed);
        path.iter_mut().enumerate().for_each(|(index, value)| *value *= self.factors.factor(index));
        path
    }

    fn sample_paths(&self, leads: usize, seeds: &[u64]) -> Vec<Vec<f64>> {
        let mut paths = self.model.sample_paths(leads, seeds);
        for path in &mut paths {
            path.iter_mut().enumerate().for_each(|(index, value)| *value *= self.factors.factor(index));
        }
        paths
    }

    fn history_buckets(&self) -> usize {
        self.model.history_buckets()
    }

    fn mae(&self) -> f64 {
        self.model.mae()
    }

    fn extend(&mut self, values: &[Option<f64>]) {
        let without =
            values.iter().enumerate().map(|(index, value)| value.map(|v| v / self.factors.factor(index)));
        let without: Vec<Option<f64>> = without.collect();
        self.model.extend(&without);
        self.factors.passed(values.len());
    }

    fn has_changed(&self) -> bool {
        self.model.has_changed()
    }

    fn tell(&mut self, regressors: &[Arc<Regressor>]) {
        self.model.tell(regressors);
    }
}
