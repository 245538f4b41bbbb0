//! How predictions compared with what then happened.

use std::collections::VecDeque;

use super::model::{LEVEL, Model};
use super::{RESOURCES, Resource, Sample};

/// The most comparisons kept per profile.
pub const FEEDBACK_WINDOW: usize = 256;

/// How the last predictions of one resource compared with what happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feedback {
    /// Mean of |predicted - actual|, in the unit of the resource.
    pub mean_absolute_error: f64,
    /// Σ|predicted - actual| / Σ actual; `None` when nothing was used.
    pub relative_error: Option<f64>,
    /// Σ(predicted - actual) / Σ actual: above 0 when predictions are too high; `None` when nothing
    /// was used.
    pub bias: Option<f64>,
    /// Share of the variance that was predicted, at most 1 and below 0 when the mean would have been
    /// better; `None` when the actual values are constant.
    pub r2: Option<f64>,
    /// Share of the actual values inside their interval, in 0..=1.
    pub coverage: f64,
    /// Comparisons behind the above, at least 1.
    pub comparisons: u32,
}

#[derive(Clone, Copy, Debug)]
struct Comparison {
    predicted: f64,
    actual: f64,
    /// (actual - predicted) / normaliser.
    residual: f64,
    inside: bool,
}

/// How fast intervals follow their misses: after a miss they are stretched by this times the level, after a
/// hit shrunk by this times the rest, so that in the long run the share of misses is what it should be,
/// whatever the machine does (adaptive conformal inference, Gibbs and Candès 2021).
const STEP: f64 = 0.05;

/// Intervals are never stretched more than this.
const MAX_STRETCH: f64 = 4.0;

/// The newest comparisons of all resources.
#[derive(Clone, Debug)]
pub(super) struct Comparisons {
    newest: VecDeque<[Option<Comparison>; RESOURCES]>,
    /// How many of the newest are of the cost as it is now.
    current: usize,
    /// By how much intervals are stretched.
    stretch: [f64; RESOURCES],
}

impl Default for Comparisons {
    fn default() -> Self {
        Self { newest: VecDeque::new(), current: 0, stretch: [1.0; RESOURCES] }
    }
}

impl Comparisons {
    /// Adds the comparisons of one call; nothing when nothing was predicted.
    pub(super) fn push(&mut self, models: &[Option<Model>; RESOURCES], sample: &Sample) {
        let mut compared = [None; RESOURCES];
        for (slot, (model, outcome)) in compared.iter_mut().zip(models.iter().zip(sample.outcomes)) {
            *slot = model.as_ref().zip(outcome).map(|(model, actual)| {
                let prediction = model.predict(&sample.features);
                Comparison {
                    predicted: prediction.value,
                    actual,
                    residual: model.residual(&sample.features, actual),
                    inside: (prediction.lower..=prediction.upper).contains(&actual),
                }
            });
        }
        if compared.iter().all(Option::is_none) {
            return;
        }
        for (stretch, comparison) in self.stretch.iter_mut().zip(&compared) {
            let change = comparison.map_or(0.0, |c| if c.inside { LEVEL - 1.0 } else { LEVEL });
            *stretch = (*stretch * (1.0 + STEP * change)).clamp(1.0, MAX_STRETCH);
        }
        if self.newest.len() == FEEDBACK_WINDOW {
            self.newest.pop_front();
        }
        self.newest.push_back(compared);
        self.current = (self.current + 1).min(FEEDBACK_WINDOW);
    }

    /// The cost is another one now: how far predictions were off before says nothing about it.
    pub(super) fn forget_residuals(&mut self) {
        (self.current, self.stretch) = (0, [1.0; RESOURCES]);
    }

    /// By how much to stretch a resource's interval; at least 1.
    pub(super) fn stretch(&self, resource: Resource) -> f64 {
        self.stretch[resource.index()]
    }

    /// How far the newest predictions of a resource were off, as multiples of their normalisers; each was
    /// made before its outcome was known.
    pub(super) fn residuals(&self, resource: Resource) -> Vec<f64> {
        let current = self.newest.iter().rev().take(self.current);
        current.filter_map(|all| Some(all[resource.index()]?.residual)).collect()
    }

    /// The summary of one resource; `None` without a comparison.
    pub(super) fn feedback(&self, resource: Resource) -> Option<Feedback> {
        let all: Vec<Comparison> = self.newest.iter().filter_map(|all| all[resource.index()]).collect();
        if all.is_empty() {
            return None;
        }
        let count = all.len() as f64;
        let sum = |of: &dyn Fn(&Comparison) -> f64| all.iter().map(of).sum::<f64>();
        let actual = sum(&|c| c.actual);
        let absolute = sum(&|c| (c.predicted - c.actual).abs());
        let signed = sum(&|c| c.predicted - c.actual);
        let squared = sum(&|c| (c.predicted - c.actual).powi(2));
        let mean = actual / count;
        let variation = sum(&|c| (c.actual - mean).powi(2));
        let constant = variation <= 1e-18 * count * mean * mean;
        Some(Feedback {
            mean_absolute_error: absolute / count,
            relative_error: (actual > 0.0).then(|| absolute / actual),
            bias: (actual > 0.0).then(|| signed / actual),
            r2: (!constant).then(|| 1.0 - squared / variation),
            coverage: all.iter().filter(|c| c.inside).count() as f64 / count,
            comparisons: all.len() as u32,
        })
    }
}
