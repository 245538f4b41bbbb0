//! Fitted models, kept from plan to plan: a model goes on with new buckets, and is fitted again once a day of
//! them has passed or the load has changed.

use crate::pg::bgworker;
use crate::pg::local::{Local, LocalBox};
use foreshard_core::forecast::{Event, ForecastOptions, Forecaster, Series, Shapes, fit_borrowing};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::{Duration, Instant};

/// How long learnt shapes are used, s: days change slowly.
const SHAPES_KEPT_S: f64 = 3600.0;
/// New buckets after which a model is fitted again.
const REFIT_AFTER: usize = 24;
/// New buckets after which a changed load is worth a new fit.
const REFIT_CHANGED_AFTER: usize = 12;
/// Models kept, about 0.1 MB each.
const MAX_KEPT: usize = 4_096;
/// Plans after which a model that none of them used is forgotten.
const IDLE_PLANS: u64 = 10;
/// Time that fits of one plan may take; what has no model then gets a simple one. A plan is made in a
/// transaction, and somebody may be waiting for it.
const FIT_BUDGET: Duration = Duration::from_secs(2);

/// The model of a slot.
struct Kept {
    model: Box<dyn Forecaster>,
    /// Start of the bucket it forecasts first, unix seconds.
    next_s: i64,
    /// The last bucket it knows.
    last: Option<f64>,
    /// Buckets since the fit.
    since_fit: usize,
    /// What it was told ahead.
    events: Vec<Event>,
    /// What tells the regressors apart that it was told of.
    regressors: Vec<u64>,
    /// The plan that used it last.
    used_in: u64,
}

impl Kept {
    /// Goes on with the buckets of a series that are new; false: it cannot, or should be fitted again.
    fn follow(&mut self, series: &Series, may_refit: bool) -> bool {
        // Without the time for another fit what it was told before must do.
        if may_refit && (self.events != series.events || self.regressors != kinds(series)) {
            return false;
        }
        let step_s = i64::from(series.step_s);
        let from = (self.next_s - series.start_s) / step_s;
        let Some(new) = usize::try_from(from).ok().and_then(|from| series.values.get(from..)) else {
            return false;
        };
        // The slot has been split, and its past divided: this is another series now.
        let known = from.checked_sub(1).and_then(|last| series.values.get(last as usize)).copied().flatten();
        if from > 0 && known != self.last {
            return false;
        }
        let changed = self.model.has_changed() && self.since_fit + new.len() >= REFIT_CHANGED_AFTER;
        if new.len() > 2 * REFIT_AFTER || may_refit && (changed || self.since_fit + new.len() >= REFIT_AFTER)
        {
            return false;
        }
        self.model.extend(new);
        self.model.tell(&series.regressors);
        self.last = series.values.last().copied().flatten();
        self.since_fit += new.len();
        self.next_s += step_s * new.len() as i64;
        true
    }
}

/// What tells the regressors of a series apart.
fn kinds(series: &Series) -> Vec<u64> {
    series.regressors.iter().map(|regressor| regressor.kind).collect()
}

/// By slot, length of a bucket and season, s.
type Models = HashMap<(i64, u32, u32), Kept>;

/// Those of this process.
static MODELS: LocalBox<Models> = LocalBox::new();

/// What young series borrow of, by length of a bucket and season, with when it was learnt.
static SHAPES: LocalBox<HashMap<(u32, u32), (f64, Shapes)>> = LocalBox::new();

/// Plans made by this process.
static PLANS: Local<u64> = Local::new(0);
/// The slot that was fitted last: the next plan begins behind it, so that everybody has a turn.
static FITTED: Local<i64> = Local::new(i64::MIN);

/// How many there are.
pub(super) fn kept() -> usize {
    MODELS.with(Models::new, |models| models.len()).unwrap_or(0)
}

/// The shapes of all series; none while no series is young, because nobody else borrows.
fn shapes(all: &BTreeMap<i64, Series>, season_s: u32) -> Shapes {
    let young = all.values().find(|series| Shapes::is_young(series, season_s));
    let Some(step_s) = young.map(|series| series.step_s) else { return Shapes::default() };
    let now_s = bgworker::now_s();
    let fresh = |(learnt_s, _): &(f64, Shapes)| (0.0..SHAPES_KEPT_S).contains(&(now_s - learnt_s));
    let known = SHAPES.with(HashMap::new, |kept| {
        kept.get(&(step_s, season_s)).filter(|own| fresh(own)).map(|(_, shapes)| shapes.clone())
    });
    if let Some(Some(shapes)) = known {
        return shapes;
    }
    let shapes = Shapes::learn(all.values(), season_s);
    // What did not know anything yet may know something soon.
    if !shapes.is_empty() {
        SHAPES.with(HashMap::new, |kept| {
            kept.retain(|_, own| fresh(own));
            kept.insert((step_s, season_s), (now_s, shapes.clone()))
        });
    }
    shapes
}

/// Gives `work` the model of every slot that has history enough; those of slots whose past has `changed` are made anew.
pub fn each(
    all: &BTreeMap<i64, Series>,
    changed: &BTreeSet<i64>,
    options: &ForecastOptions,
    mut work: impl FnMut(i64, &dyn Forecaster),
) {
    let plan = PLANS.get().wrapping_add(1);
    PLANS.set(plan);
    let last = FITTED.get();
    let behind = all.range((Bound::Excluded(last), Bound::Unbounded)).chain(all.range(..=last));
    let mut spent = Duration::ZERO;
    let shapes = shapes(all, options.season_s);
    MODELS.with(Models::new, |models| {
        for (slot_id, series) in behind {
            // Whoever asked for a plan of thousands of slots may lose patience.
            pgrx::check_for_interrupts!();
            let key = (*slot_id, series.step_s, options.season_s);
            let may_fit = spent < FIT_BUDGET;
            if let Some(kept) = models.get_mut(&key).filter(|_| !changed.contains(slot_id))
                && kept.follow(series, may_fit)
            {
                kept.used_in = plan;
                work(*slot_id, kept.model.as_ref());
                continue;
            }
            models.remove(&key);
            let keep = may_fit && models.len() < MAX_KEPT;
            let begun = Instant::now();
            let fitted = fit_borrowing(series, options, &shapes, !keep);
            spent += begun.elapsed();
            let Ok(model) = fitted else { continue };
            work(*slot_id, model.as_ref());
            if keep {
                FITTED.set(*slot_id);
                let next_s = series.start_s + i64::from(series.step_s) * series.values.len() as i64;
                let (events, regressors) = (series.events.clone(), kinds(series));
                let last = series.values.last().copied().flatten();
                let kept = Kept { model, next_s, last, since_fit: 0, events, regressors, used_in: plan };
                models.insert(key, kept);
            }
        }
        // Slots that are gone, and resolutions that are no longer asked for.
        models.retain(|_, kept| plan - kept.used_in < IDLE_PLANS);
    });
    // A session plans once in a while; it need not remember that.
    if !bgworker::is_ours() {
        MODELS.forget();
        SHAPES.forget();
    }
}
