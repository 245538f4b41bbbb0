//! Which candidates a slot is forecast by: those whose errors were least, lately.
//!
//! Candidates are fitted on all but the last part of the history and forecast it from many origins, the rolling
//! back-test. Per band of leads their absolute errors, in the unit of the load, are summed with a half-life,
//! and a mean of the best few is taken, weighted by how much better each was than the others: near ties share, and
//! one that is clearly better is nearly alone. Later errors are added as they become known, so that after a change
//! the candidates that cope with it take over.

use super::history::History;
use super::{Candidate, LEADS, Leads};

/// Leads that are decided together (from 1, to and with).
const BANDS: [(usize, usize); 4] = [(1, 1), (2, 6), (7, 12), (13, LEADS)];
/// The most candidates whose mean is taken.
const MAX_TOGETHER: usize = 5;
/// A candidate whose error is twice that of the best counts a thousand times less.
const SHARPNESS: f64 = 10.0;
/// The most origins tried.
const MAX_ORIGINS: usize = 64;
/// How much the error over all leads counts beside that over the band's own, which are few.
const OVERALL: f64 = 0.5;
/// Half-life of errors, buckets of history.
const HALF_LIFE: f64 = 14.0 * LEADS as f64;

/// Candidates and their weights, which sum to 1, the best first.
pub(super) type Together = Vec<(usize, f64)>;

/// Sums of errors of one candidate, per band and (last) over all leads.
type Sums = [f64; BANDS.len() + 1];

/// How the candidates did lately, and how many of them are taken.
#[derive(Clone, Debug)]
pub(super) struct Scores {
    sums: Vec<Sums>,
    /// By which a candidate's errors are multiplied: what is usually worse must be better by so much.
    handicaps: Vec<f64>,
}

impl Scores {
    /// Lets `buckets` pass.
    pub(super) fn age(&mut self, buckets: usize) {
        let factor = (-(buckets as f64) / HALF_LIFE).exp2();
        self.sums.iter_mut().flatten().for_each(|sum| *sum *= factor);
    }

    /// Adds what a candidate forecast for a lead (from 1), both on the log scale.
    pub(super) fn add(&mut self, candidate: usize, lead: usize, forecast: f64, actual: f64) {
        let error = (forecast.exp_m1() - actual.exp_m1()).abs();
        if let Some(sums) = self.sums.get_mut(candidate) {
            sums[BANDS.iter().position(|(_, last)| lead <= *last).unwrap_or(BANDS.len() - 1)] += error;
            sums[BANDS.len()] += error;
        }
    }

    /// Candidates with their errors relative to the least, best first.
    fn ranked(&self, band: usize) -> Vec<(usize, f64)> {
        let score = |which: usize, place: usize| self.sums[which][place] * self.handicaps[which];
        let least = |place: usize| {
            let all = (0..self.sums.len()).map(|which| score(which, place));
            all.fold(f64::INFINITY, f64::min).max(f64::MIN_POSITIVE)
        };
        let (own, overall) = (least(band), least(BANDS.len()));
        let rank = |which: usize| score(which, band) / own + OVERALL * score(which, BANDS.len()) / overall;
        let mut ranked: Vec<(usize, f64)> = (0..self.sums.len()).map(|which| (which, rank(which))).collect();
        ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
        ranked
    }

    /// Per lead (from 1) the candidates whose mean is to be taken.
    pub(super) fn together(&self) -> Vec<Together> {
        let mut together = Vec::with_capacity(LEADS);
        for (band, (first, last)) in BANDS.into_iter().enumerate() {
            let mut chosen = self.ranked(band);
            chosen.truncate(MAX_TOGETHER);
            let best = chosen.first().map_or(1.0, |(_, rank)| rank.max(f64::MIN_POSITIVE));
            // Without any error all are as good.
            let weight = |rank: f64| if rank > best { (rank / best).powf(-SHARPNESS) } else { 1.0 };
            let total: f64 = chosen.iter().map(|(_, rank)| weight(*rank)).sum();
            chosen.iter_mut().for_each(|(_, rank)| *rank = weight(*rank) / total);
            (first..=last).for_each(|_| together.push(chosen.clone()));
        }
        together
    }

    /// The best `count` candidates over everything, and the scores of those only, in that order.
    pub(super) fn best(&self, count: usize) -> (Vec<usize>, Scores) {
        let mut wanted: Vec<usize> = Vec::new();
        // In turn the best of every band, so that each keeps what it takes.
        let ranked: Vec<Together> = (0..BANDS.len()).map(|band| self.ranked(band)).collect();
        for place in 0..self.sums.len() {
            for band in &ranked {
                if wanted.len() < count && !wanted.contains(&band[place].0) {
                    wanted.push(band[place].0);
                }
            }
        }
        let scores = Scores {
            sums: wanted.iter().map(|which| self.sums[*which]).collect(),
            handicaps: wanted.iter().map(|which| self.handicaps[*which]).collect(),
        };
        (wanted, scores)
    }
}

/// Forecasts of every candidate from every origin, on the log scale.
pub(super) struct Trial<'a> {
    history: &'a History,
    /// Buckets known to the forecasts.
    origins: Vec<usize>,
    /// Per candidate and origin.
    forecasts: Vec<Vec<Leads>>,
}

impl<'a> Trial<'a> {
    /// Lets `candidates`, fitted on the first `cut` buckets, forecast the rest.
    pub(super) fn new(history: &'a History, candidates: &[Box<dyn Candidate>], cut: usize) -> Self {
        let count = history.len().saturating_sub(cut);
        let origins: Vec<usize> = (cut..history.len()).step_by(count.div_ceil(MAX_ORIGINS).max(1)).collect();
        let from = |candidate: &dyn Candidate| -> Vec<Leads> {
            origins.iter().map(|origin| candidate.predict(&history.logs[..*origin])).collect()
        };
        let forecasts = candidates.iter().map(|candidate| from(candidate.as_ref())).collect();
        Self { history, origins, forecasts }
    }

    /// How everybody did.
    pub(super) fn scores(&self, handicaps: Vec<f64>) -> Scores {
        let count = self.forecasts.len();
        let mut scores = Scores { sums: vec![[0.0; BANDS.len() + 1]; count], handicaps };
        let mut before = self.origins.first().copied().unwrap_or(0);
        for (place, origin) in self.origins.iter().enumerate() {
            scores.age(origin - before);
            before = *origin;
            for (candidate, forecasts) in self.forecasts.iter().enumerate() {
                for (index, forecast) in forecasts[place].iter().enumerate() {
                    if self.history.known.get(origin + index) == Some(&true) {
                        scores.add(candidate, index + 1, *forecast, self.history.logs[origin + index]);
                    }
                }
            }
        }
        scores
    }

    /// What the chosen candidates forecast: (buckets known, forecast), oldest first.
    pub(super) fn chosen(&self, together: &[Together]) -> Vec<(usize, Leads)> {
        let mean_at =
            |place: usize, lead: usize| weighted_mean(&together[lead], |w| self.forecasts[w][place][lead]);
        let origins = self.origins.iter().enumerate();
        origins.map(|(place, origin)| (*origin, std::array::from_fn(|lead| mean_at(place, lead)))).collect()
    }
}

/// The mean of what some candidates say; 0 of nothing.
pub(super) fn weighted_mean(together: &Together, value: impl Fn(usize) -> f64) -> f64 {
    together.iter().map(|(which, weight)| weight * value(*which)).sum()
}

/// The median; 0 of nothing.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}
