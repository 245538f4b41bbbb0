//! How predictions compared with what then happened.

use std::collections::VecDeque;

use super::{Prediction, RESOURCES, Resource};

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
    inside: bool,
}

/// The newest comparisons of all resources.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparisons {
    newest: VecDeque<[Option<Comparison>; RESOURCES]>,
}

impl Comparisons {
    /// Adds the comparisons of one call; nothing when nothing was predicted.
    pub(super) fn push(
        &mut self,
        predictions: [Option<Prediction>; RESOURCES],
        outcomes: &[Option<f64>; RESOURCES],
    ) {
        let mut compared = [None; RESOURCES];
        for (slot, (prediction, outcome)) in compared.iter_mut().zip(predictions.iter().zip(outcomes)) {
            *slot = prediction.zip(*outcome).map(|(prediction, actual)| Comparison {
                predicted: prediction.value,
                actual,
                inside: (prediction.lower..=prediction.upper).contains(&actual),
            });
        }
        if compared.iter().all(Option::is_none) {
            return;
        }
        if self.newest.len() == FEEDBACK_WINDOW {
            self.newest.pop_front();
        }
        self.newest.push_back(compared);
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
