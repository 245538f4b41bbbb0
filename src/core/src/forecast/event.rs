//! Special events: what is known ahead to change the load, such as campaigns, batch runs and holidays.
//!
//! An event multiplies the load that would be there without it. By how much is learnt from earlier events of
//! its kind, as the ratio of what was to what is usual at that time; what was said in advance counts as much
//! as three buckets. Other models then see a history without events, and what they forecast is multiplied.

use std::collections::BTreeMap;

use super::scaled::{Factors, Scaled};
use super::{Forecaster, Series};

/// Buckets that what was said in advance, or else 1, counts for.
const PRIOR_BUCKETS: f64 = 3.0;
/// A ratio is never further from 1.
const MAX_RATIO: f64 = 1_000.0;
/// Weeks, and days, that say what is usual.
const WEEKS: usize = 4;
const DAYS: usize = 7;
/// Known buckets around, when neither do.
const AROUND: usize = 24;
/// Buckets ahead whose events are looked up once for all futures.
const LOOK_AHEAD: i64 = 96;

/// A special event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Events of one kind have one effect.
    pub kind: u64,
    /// Start, unix seconds.
    pub start_s: i64,
    /// End, unix seconds.
    pub end_s: i64,
    /// The load it is expected to make, as a multiple of the usual one, if somebody said so.
    pub factor: Option<f64>,
}

/// Events, and by how much those of each kind multiply the load.
#[derive(Clone, Debug)]
struct Effects {
    ratios: Vec<f64>,
    /// (Kind as an index of `ratios`, start, end).
    events: Vec<(usize, i64, i64)>,
}

impl Effects {
    /// Learns from a series and its events. A bucket that several kinds cover says little of each: it is used
    /// for kinds that never come alone only, and then without what the others make of it.
    fn learn(series: &Series, season_s: u32) -> Self {
        let mut kinds: Vec<u64> = series.events.iter().map(|event| event.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let index = |kind: u64| kinds.binary_search(&kind).unwrap_or(0);
        let events =
            series.events.iter().map(|event| (index(event.kind), event.start_s, event.end_s)).collect();
        let mut effects = Self { ratios: vec![1.0; kinds.len()], events };
        for event in &series.events {
            let factor = event.factor.filter(|factor| factor.is_finite() && *factor > 0.0);
            if let Some(factor) = factor {
                effects.ratios[index(event.kind)] = factor.clamp(1.0 / MAX_RATIO, MAX_RATIO);
            }
        }
        let shares = effects.shares_of_history(series);
        let mut covers = vec![0_u32; series.values.len()];
        shares.iter().flat_map(BTreeMap::keys).for_each(|bucket| covers[*bucket] += 1);
        let free: Vec<bool> = covers.iter().map(|covers| *covers == 0).collect();
        for (kind, own) in shares.iter().enumerate() {
            let alone = own.keys().any(|bucket| covers[*bucket] == 1);
            let (mut more, mut base, mut usual, mut buckets) = (0.0, 0.0, 0.0, 0.0);
            for (bucket, share) in own.iter().filter(|(bucket, _)| !alone || covers[**bucket] == 1) {
                let value = series.values[*bucket].filter(|value| value.is_finite() && *value >= 0.0);
                let (Some(value), Some(was)) = (value, usual_at(series, &free, *bucket, season_s)) else {
                    continue;
                };
                let others = shares.iter().enumerate().filter(|(other, _)| *other != kind);
                let by_others: f64 = others
                    .filter_map(|(other, shares)| {
                        Some(1.0 + (effects.ratios[other] - 1.0) * shares.get(bucket)?)
                    })
                    .product();
                more += share * (value / by_others - was);
                base += share * share * was;
                (usual, buckets) = (usual + was, buckets + 1.0);
            }
            if buckets > 0.0 && usual > 0.0 {
                let prior = PRIOR_BUCKETS * usual / buckets;
                let ratio = 1.0 + (more + prior * (effects.ratios[kind] - 1.0)) / (base + prior);
                effects.ratios[kind] = ratio.clamp(1.0 / MAX_RATIO, MAX_RATIO);
            }
        }
        effects
    }

    /// Per kind the buckets of a series that its events cover, and how much of them.
    fn shares_of_history(&self, series: &Series) -> Vec<BTreeMap<usize, f64>> {
        let mut shares = vec![BTreeMap::new(); self.ratios.len()];
        let (step_s, last) = (i64::from(series.step_s), series.values.len() as i64 - 1);
        for (kind, start_s, end_s) in &self.events {
            let first = start_s.saturating_sub(series.start_s).div_euclid(step_s).max(0);
            let end = end_s.saturating_sub(series.start_s).div_euclid(step_s).min(last);
            for bucket in first..=end {
                let share = share(*start_s, *end_s, series.start_s + step_s * bucket, step_s);
                let known = shares[*kind].entry(bucket as usize).or_insert(0.0);
                *known = share.max(*known);
            }
            shares[*kind].retain(|_, share| *share > 0.0);
        }
        shares
    }

    /// By how much the events multiply a bucket.
    fn at(&self, at_s: i64, step_s: i64) -> f64 {
        // Events of one kind at the same time are one.
        let mut shares: Vec<(usize, f64)> = Vec::new();
        for (kind, start_s, end_s) in &self.events {
            let share = share(*start_s, *end_s, at_s, step_s);
            if share > 0.0 {
                match shares.iter_mut().find(|(known, _)| known == kind) {
                    Some((_, most)) => *most = most.max(share),
                    None => shares.push((*kind, share)),
                }
            }
        }
        let product: f64 =
            shares.iter().map(|(kind, share)| 1.0 + (self.ratios[*kind] - 1.0) * share).product();
        product.clamp(1.0 / MAX_RATIO, MAX_RATIO)
    }
}

/// The share of a bucket that an event covers.
fn share(start_s: i64, end_s: i64, at_s: i64, step_s: i64) -> f64 {
    let overlap = end_s.min(at_s.saturating_add(step_s)).saturating_sub(start_s.max(at_s));
    overlap.max(0) as f64 / step_s.max(1) as f64
}

/// What a bucket without events usually has at the time of bucket `index`: the median of the same time of the
/// weeks around, else of the days around, else of whatever is around.
fn usual_at(series: &Series, free: &[bool], index: usize, season_s: u32) -> Option<f64> {
    let value = |index: usize| series.values.get(index).copied().flatten().filter(|_| free[index]);
    let day = (season_s / series.step_s.max(1)) as usize;
    let around = |period: usize, count: usize| -> Vec<f64> {
        let before = (1..=count).filter_map(|number| index.checked_sub(number * period).and_then(value));
        let after = (1..=count).filter_map(|number| index.checked_add(number * period).and_then(value));
        before.chain(after).collect()
    };
    let mut found = if day > 0 { around(7 * day, WEEKS) } else { Vec::new() };
    if found.len() < 2 && day > 0 {
        found = around(day, DAYS);
    }
    if found.len() < 2 {
        let before = (0..index).rev().filter_map(value).take(AROUND);
        let after = (index + 1..series.values.len()).filter_map(value).take(AROUND);
        found = before.chain(after).collect();
    }
    (!found.is_empty()).then(|| super::trial::median(&mut found))
}

/// By how much events multiply what is forecast without them.
pub(super) struct Ahead {
    effects: Effects,
    step_s: i64,
    /// Start of the bucket forecast first, unix seconds.
    next_s: i64,
    /// By how much the events multiply the next buckets.
    ahead: Vec<f64>,
}

/// Fits by `fit` what is left of a series without its events.
pub(super) fn fit_without_events<E>(
    series: &Series,
    season_s: u32,
    fit: impl FnOnce(&Series) -> Result<Box<dyn Forecaster>, E>,
) -> Result<Box<dyn Forecaster>, E> {
    if series.events.is_empty() {
        return fit(series);
    }
    let (effects, step_s) = (Effects::learn(series, season_s), i64::from(series.step_s));
    let mut values = series.values.clone();
    let mut ratios = vec![1.0; values.len()];
    for (kind, shares) in effects.shares_of_history(series).into_iter().enumerate() {
        for (bucket, share) in shares {
            ratios[bucket] *= 1.0 + (effects.ratios[kind] - 1.0) * share;
        }
    }
    for (value, ratio) in values.iter_mut().zip(ratios) {
        *value = value.map(|value| value / ratio.clamp(1.0 / MAX_RATIO, MAX_RATIO));
    }
    let next_s = series.start_s + step_s * values.len() as i64;
    let model = fit(&Series { values, events: Vec::new(), ..series.clone() })?;
    let mut factors = Ahead { effects, step_s, next_s, ahead: Vec::new() };
    factors.look_ahead();
    Ok(Box::new(Scaled { model, factors }))
}

impl Ahead {
    fn look_ahead(&mut self) {
        let ahead =
            (0..LOOK_AHEAD).map(|lead| self.effects.at(self.next_s + self.step_s * lead, self.step_s));
        self.ahead = ahead.collect();
    }
}

impl Factors for Ahead {
    fn suffix(&self) -> &'static str {
        "with events"
    }

    fn factor(&self, index: usize) -> f64 {
        let later = || self.effects.at(self.next_s + self.step_s * index as i64, self.step_s);
        self.ahead.get(index).copied().unwrap_or_else(later)
    }

    fn passed(&mut self, buckets: usize) {
        if buckets > 0 {
            self.next_s += self.step_s * buckets as i64;
            self.look_ahead();
        }
    }
}
