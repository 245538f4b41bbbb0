//! Fitted models, kept from plan to plan: a model goes on with new buckets, and is fitted again once a day of
//! them has passed or the load has changed.

use crate::pg::bgworker;
use crate::pg::local::LocalBox;
use foreshard_core::forecast::{ForecastOptions, Forecaster, Series, fit, fit_simple};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// New buckets after which a model is fitted again.
const REFIT_AFTER: usize = 24;
/// New buckets after which a changed load is worth a new fit.
const REFIT_CHANGED_AFTER: usize = 12;
/// Models kept, about 0.1 MB each.
const MAX_KEPT: usize = 4_096;
/// Time that fits of one plan may take; what has no model then gets a simple one. A plan is made in a
/// transaction, and somebody may be waiting for it.
const FIT_BUDGET: Duration = Duration::from_secs(2);

/// The model of a slot.
struct Kept {
    model: Box<dyn Forecaster>,
    /// Start of the bucket it forecasts first, unix seconds.
    next_s: i64,
    /// Buckets since the fit.
    since_fit: usize,
}

impl Kept {
    /// Goes on with the buckets of a series that are new; false: it cannot, or should be fitted again.
    fn follow(&mut self, series: &Series, may_refit: bool) -> bool {
        let step_s = i64::from(series.step_s);
        let from = (self.next_s - series.start_s) / step_s;
        let Some(new) = usize::try_from(from).ok().and_then(|from| series.values.get(from..)) else {
            return false;
        };
        let changed = self.model.has_changed() && self.since_fit + new.len() >= REFIT_CHANGED_AFTER;
        if may_refit && (changed || self.since_fit + new.len() >= REFIT_AFTER) {
            return false;
        }
        self.model.extend(new);
        self.since_fit += new.len();
        self.next_s += step_s * new.len() as i64;
        true
    }
}

/// By slot and length of a bucket, s.
type Models = HashMap<(i64, u32), Kept>;

/// Those of this process.
static MODELS: LocalBox<Models> = LocalBox::new();

/// Gives `work` the model of every slot that has history enough.
pub fn each(
    all: BTreeMap<i64, Series>,
    options: &ForecastOptions,
    mut work: impl FnMut(i64, &dyn Forecaster),
) {
    let begun = Instant::now();
    MODELS.with(Models::new, |models| {
        for (slot_id, series) in &all {
            let key = (*slot_id, series.step_s);
            let may_fit = begun.elapsed() < FIT_BUDGET;
            if models.get_mut(&key).is_some_and(|kept| kept.follow(series, may_fit)) {
                work(*slot_id, models[&key].model.as_ref());
                continue;
            }
            models.remove(&key);
            let kept = may_fit && models.len() < MAX_KEPT;
            let fitted = if kept { fit(series, options) } else { fit_simple(series, options) };
            let Ok(model) = fitted else { continue };
            work(*slot_id, model.as_ref());
            if kept {
                let next_s = series.start_s + i64::from(series.step_s) * series.values.len() as i64;
                models.insert(key, Kept { model, next_s, since_fit: 0 });
            }
        }
        // Slots that are gone; another resolution may be asked for again.
        models.retain(|(slot_id, step_s), _| {
            all.contains_key(slot_id) || all.values().next().is_none_or(|series| series.step_s != *step_s)
        });
    });
    // A session plans once in a while; it need not remember that.
    if !bgworker::is_ours() {
        MODELS.forget();
    }
}
