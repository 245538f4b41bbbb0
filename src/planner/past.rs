//! What every slot carried, bucket by bucket. Of thousands of slots these are millions of rows, so a keeper remembers them from plan to
//! plan and reads what is new.

use crate::catalog::{event, heat, regressor};
use crate::pg::local::LocalBox;
use crate::pg::report::PgResult;
use crate::pg::{bgworker, guc};
use foreshard_core::forecast::Series;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{MAX_HISTORY, MAX_LEADS, models};

/// Buckets before the last known one that are read again: some rows come late.
const LATE: i64 = 3;
/// Plans after which everything is read again: what a long transaction counted changes older buckets, and so may a person.
const MEMORY_PLANS: f64 = 10.0;

/// Complete buckets of every slot at one resolution.
pub(super) struct Past {
    /// By slot; gaps are None.
    pub(super) all: BTreeMap<i64, Series>,
    /// Slots whose past is another one than it was: they were divided, merged, or lost keys.
    pub(super) changed: BTreeSet<i64>,
    resolution_s: i32,
    /// What the slots were like when all was read, and when that was, s since 1970.
    layout: String,
    read_at_s: f64,
    /// End of the last bucket, s since 1970.
    end_s: i64,
}

/// By resolution, s.
static KEPT: LocalBox<HashMap<i32, Past>> = LocalBox::new();

/// What a keeper remembers between plans: (buckets of all slots, models).
pub fn remembered() -> (usize, usize) {
    let buckets = |past: &Past| past.all.values().map(|series| series.values.len()).sum::<usize>();
    let all = KEPT.with(HashMap::new, |kept| kept.values().map(buckets).sum::<usize>());
    (all.unwrap_or(0), models::kept())
}

impl Past {
    /// The past until now, with the special events and regressors until the horizon.
    pub(super) fn read(resolution_s: i32, now_s: f64, horizon_s: i32) -> PgResult<Self> {
        let step = i64::from(resolution_s);
        // The bucket under way is left out: it is not complete.
        let end_s = (now_s / f64::from(resolution_s)).floor() as i64 * step;
        let since_s = end_s - step * MAX_HISTORY as i64;
        let layout = heat::layout(resolution_s)?;
        let before = KEPT.with(HashMap::new, |kept| kept.remove(&resolution_s)).flatten();
        let memory_s = MEMORY_PLANS * f64::from(guc::PLAN_INTERVAL.get());
        let goes_on = |past: &Past| {
            let age_s = now_s - past.read_at_s;
            past.layout == layout && past.end_s <= end_s && (0.0..memory_s).contains(&age_s)
        };
        let past = match before {
            Some(mut past) if goes_on(&past) => {
                past.changed.clear();
                past.add(past.end_s - LATE * step, end_s)?;
                past
            }
            before => {
                let (all, changed) = (BTreeMap::new(), BTreeSet::new());
                let mut past = Past { all, changed, resolution_s, layout, read_at_s: now_s, end_s };
                past.add(since_s, end_s)?;
                past.compare(before);
                past
            }
        };
        past.trimmed(since_s, end_s).with_what_users_know(since_s, now_s, horizon_s)
    }

    /// Keeps it for the next plan, in a keeper.
    pub(super) fn keep(self) {
        // A session plans once in a while; it need not remember that.
        if bgworker::is_ours() {
            KEPT.with(HashMap::new, |kept| kept.insert(self.resolution_s, self));
        }
    }

    /// Forgets, in a keeper, all resolutions but these: finer ones are read while there is no history of coarser ones.
    pub(super) fn keep_only(resolutions_s: &[i32]) {
        if bgworker::is_ours() {
            KEPT.with(HashMap::new, |kept| kept.retain(|own_s, _| resolutions_s.contains(own_s)));
        }
    }

    fn add(&mut self, since_s: i64, end_s: i64) -> PgResult<()> {
        let step = i64::from(self.resolution_s);
        let all = &mut self.all;
        heat::history(self.resolution_s, since_s, |slot_id, at_s, cost| {
            let at_s = at_s.div_euclid(step) * step;
            if at_s >= end_s {
                return;
            }
            let entry = all.entry(slot_id).or_insert_with(|| Series {
                start_s: at_s,
                step_s: step as u32,
                values: Vec::new(),
                events: Vec::new(),
                regressors: Vec::new(),
            });
            let Ok(index) = usize::try_from((at_s - entry.start_s) / step) else { return };
            if index >= entry.values.len() && index <= 2 * MAX_HISTORY {
                entry.values.resize(index + 1, None);
            }
            if let Some(value) = entry.values.get_mut(index) {
                *value = cost;
            }
        })?;
        self.end_s = end_s;
        Ok(())
    }

    /// Notes whose past is another one than it was.
    fn compare(&mut self, before: Option<Past>) {
        let Some(before) = before else { return };
        let differs =
            |slot: &i64, now: &Series| before.all.get(slot).is_some_and(|was| are_different(was, now));
        self.changed =
            self.all.iter().filter(|(slot, now)| differs(slot, now)).map(|(slot, _)| *slot).collect();
    }

    /// Without what is too old. What is not known of the time until now is a gap: forecasts begin now, not where a
    /// history ends; but the last bucket may just not be rolled up yet.
    fn trimmed(mut self, since_s: i64, end_s: i64) -> Self {
        let step = i64::from(self.resolution_s);
        for series in self.all.values_mut() {
            let old =
                usize::try_from((since_s - series.start_s) / step).unwrap_or(0).min(series.values.len());
            series.values.drain(..old);
            series.start_s += step * old as i64;
            let known = usize::try_from((end_s - step - series.start_s) / step).unwrap_or(0).min(MAX_HISTORY);
            if series.values.len() < known {
                series.values.resize(known, None);
            }
        }
        self.all.retain(|_, series| series.values.iter().any(Option::is_some));
        self
    }

    fn with_what_users_know(mut self, since_s: i64, now_s: f64, horizon_s: i32) -> PgResult<Self> {
        let mut events = event::by_slot(since_s as f64, now_s + f64::from(horizon_s))?;
        // Somewhat further than the horizon, since models forecast a day of buckets at once.
        let until_s = now_s + f64::from(horizon_s) + f64::from(MAX_LEADS * self.resolution_s);
        let mut regressors = regressor::by_slot(self.resolution_s, since_s as f64, until_s)?;
        for (slot_id, series) in &mut self.all {
            series.events = events.remove(slot_id).unwrap_or_default();
            series.regressors = regressors.remove(slot_id).unwrap_or_default();
        }
        Ok(self)
    }
}

/// Whether most of what both know is not the same. Single buckets may be: some loads come late.
fn are_different(was: &Series, now: &Series) -> bool {
    let step = i64::from(now.step_s.max(1));
    let skipped =
        |own: &Series| usize::try_from((was.start_s.max(now.start_s) - own.start_s) / step).unwrap_or(0);
    let pairs = was.values.iter().skip(skipped(was)).zip(now.values.iter().skip(skipped(now)));
    let (mut both, mut other) = (0, 0);
    for (was, now) in
        pairs.filter_map(|(was, now)| Some(((*was)?, (*now)?))).filter(|pair| *pair != (0.0, 0.0))
    {
        both += 1;
        other += usize::from((was - now).abs() > 0.01 * was.max(now));
    }
    2 * other > both
}
