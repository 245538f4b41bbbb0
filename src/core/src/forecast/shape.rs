//! Daily shapes that series share, and what a young series borrows of them.
//!
//! The shape of a series is, per time of day, its mean share of its own day's mean: 1 everywhere is flat. Shapes of
//! series that are known for some days are clustered (leaders at a fixed distance, then Lloyd's iterations, on
//! logarithms, so that the size of a series does not matter). A series that has not seen two days yet is matched
//! with the clusters by the little it has; what it borrows is the mean of their shapes, weighted by the
//! likelihood of what was seen and by how many series have the shape. Its own part is forecast without the shape.

use super::scaled::{Factors, Scaled};
use super::season::{Clock, fill, smooth};
use super::{Forecaster, Series};

/// Full days from which a shape is learnt, at least.
const LEAST_DAYS: usize = 3;
/// Days whose shape is looked at, the newest ones.
const MOST_DAYS: usize = 28;
/// The most series that shapes are learnt from: some hundreds show what shapes there are.
const MOST_SERIES: usize = 2_048;
/// The most clusters.
const MAX_CLUSTERS: usize = 16;
/// Root mean square difference of logarithms from which shapes are different ones.
const APART: f64 = 0.35;
/// Rounds of Lloyd's iteration.
const ROUNDS: usize = 5;
/// Added to shares before their logarithm is taken: an hour without load is not infinitely far from one with some.
const FLOOR: f64 = 0.1;
/// Least variance of logarithms around a shape: no series follows it exactly.
const NOISE: f64 = 0.04;
/// How many buckets in a row say as much as one on its own.
const ALIKE: f64 = 3.0;
/// How many series the flat shape counts as.
const FLAT: f64 = 0.5;
/// Known buckets that are enough to say how large a series is.
const LEAST_KNOWN: usize = 3;
/// No series is divided by less than this share.
const LEAST_SHARE: f64 = 0.02;

/// The daily shapes of some series of one bucket length.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    step_s: u32,
    season_s: u32,
    clusters: Vec<Cluster>,
}

#[derive(Clone, Debug)]
struct Cluster {
    /// Shares per phase, 1 in the mean.
    shape: Vec<f64>,
    members: f64,
}

impl Shapes {
    /// Learns the shapes of the series that are known for at least three days; those of another bucket length
    /// than the first are passed over. Of more than two thousand some are looked at, evenly; below that the
    /// order of the series does not matter.
    pub fn learn<'a>(all: impl IntoIterator<Item = &'a Series>, season_s: u32) -> Self {
        let mut shapes = Self { season_s, ..Self::default() };
        let mut known: Vec<&Series> = Vec::new();
        for series in all {
            if shapes.step_s == 0 {
                shapes.step_s = series.step_s;
            }
            if series.step_s == shapes.step_s {
                known.push(series);
            }
        }
        let every = known.len().div_ceil(MOST_SERIES).max(1);
        let sample = known.into_iter().step_by(every);
        let mut profiles: Vec<Vec<f64>> = sample.filter_map(|series| profile(series, season_s)).collect();
        profiles.sort_by(|a, b| {
            let different = a.iter().zip(b).map(|(a, b)| a.total_cmp(b)).find(|order| order.is_ne());
            different.unwrap_or(std::cmp::Ordering::Equal)
        });
        shapes.clusters = clusters(&profiles);
        shapes
    }

    /// How many different shapes there are.
    pub fn len(&self) -> usize {
        self.clusters.len()
    }

    /// Whether no shape is known.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty()
    }

    /// Whether a series has not seen two days yet, so that it may borrow.
    pub fn is_young(series: &Series, season_s: u32) -> bool {
        let Some(period) = Clock::new(series, 0, season_s).period else { return false };
        let first = series.values.iter().position(Option::is_some);
        first.is_some_and(|first| series.values.len() - first < 2 * period)
    }

    /// The shares, per phase of the season, that a series should borrow; None: it has a history of its own, too
    /// little is known of it, or it is likelier to be flat than anything known.
    pub fn borrow(&self, series: &Series) -> Option<Vec<f64>> {
        let clock = Clock::new(series, 0, self.season_s);
        let period = clock.period.filter(|_| series.step_s == self.step_s)?;
        if !Self::is_young(series, self.season_s) || self.clusters.is_empty() {
            return None;
        }
        let known: Vec<(usize, f64)> = series
            .values
            .iter()
            .enumerate()
            .filter_map(|(at, value)| {
                value.filter(|v| v.is_finite() && *v >= 0.0).map(|v| (clock.phase(at), v))
            })
            .collect();
        if known.len() < LEAST_KNOWN {
            return None;
        }
        let flat = vec![1.0; period];
        let misfits: Vec<f64> = self.clusters.iter().map(|cluster| misfit(&known, &cluster.shape)).collect();
        let flat_misfit = misfit(&known, &flat);
        let least = misfits.iter().copied().fold(flat_misfit, f64::min).max(NOISE);
        let says = known.len() as f64 / ALIKE;
        let likely = |misfit: f64| (-0.5 * says * (misfit - least) / least).exp();
        let weights: Vec<f64> = self
            .clusters
            .iter()
            .zip(&misfits)
            .map(|(cluster, misfit)| cluster.members * likely(*misfit))
            .collect();
        let flat_weight = FLAT * likely(flat_misfit);
        let total = weights.iter().sum::<f64>() + flat_weight;
        if flat_weight * 2.0 >= total || !total.is_finite() {
            return None;
        }
        let mut borrowed = vec![flat_weight / total; period];
        for (cluster, weight) in self.clusters.iter().zip(&weights) {
            let shares = borrowed.iter_mut().zip(&cluster.shape);
            shares.for_each(|(sum, share)| *sum += share * weight / total);
        }
        Some(borrowed)
    }
}

/// The shape of a series; None: it is not known for long enough, or has no load.
fn profile(series: &Series, season_s: u32) -> Option<Vec<f64>> {
    let clock = Clock::new(series, 0, season_s);
    let period = clock.period?;
    let mut sums = vec![(0.0, 0_u32); period];
    let (mut days, mut end) = (0, series.values.len());
    while end >= period && days < MOST_DAYS {
        let start = end - period;
        let day: Vec<Option<f64>> = series.values.get(start..end).unwrap_or_default().to_vec();
        let known: Vec<f64> = day.iter().flatten().copied().filter(|v| v.is_finite() && *v >= 0.0).collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        // The mean of a half known day says nothing about the other half.
        if 4 * known.len() >= 3 * period && mean > 0.0 {
            for (offset, value) in day.iter().enumerate() {
                let value = value.filter(|v| v.is_finite() && *v >= 0.0);
                if let (Some(value), Some(sum)) = (value, sums.get_mut(clock.phase(start + offset))) {
                    *sum = (sum.0 + value / mean, sum.1 + 1);
                }
            }
            days += 1;
        }
        end = start;
    }
    if days < LEAST_DAYS {
        return None;
    }
    let shares: Vec<Option<f64>> =
        sums.iter().map(|(sum, count)| (*count > 0).then(|| sum / f64::from(*count))).collect();
    let shape = normalised(smooth(&fill(&shares), period / 96));
    Some(shape).filter(|shape| shape.iter().all(|share| share.is_finite()))
}

/// With mean 1.
fn normalised(mut shape: Vec<f64>) -> Vec<f64> {
    let mean = shape.iter().sum::<f64>() / shape.len().max(1) as f64;
    shape.iter_mut().for_each(|share| *share /= mean.max(f64::MIN_POSITIVE));
    shape
}

fn log(share: f64) -> f64 {
    (share + FLOOR).ln()
}

fn logs(shape: &[f64]) -> Vec<f64> {
    shape.iter().map(|share| log(*share)).collect()
}

/// Mean square difference of the logarithms of two shapes.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len().max(1) as f64
}

/// Mean square difference of the logarithms of what is known, (phase, value), from a shape of the best size.
fn misfit(known: &[(usize, f64)], shape: &[f64]) -> f64 {
    let share = |phase: usize| shape.get(phase).copied().unwrap_or(1.0);
    let values: f64 = known.iter().map(|(_, value)| value).sum();
    let shares: f64 = known.iter().map(|(phase, _)| share(*phase).max(LEAST_SHARE)).sum();
    let size = values / shares.max(f64::MIN_POSITIVE);
    if size <= 0.0 {
        return 0.0;
    }
    let squares = known.iter().map(|(phase, value)| (log(value / size) - log(share(*phase))).powi(2));
    squares.sum::<f64>() / known.len().max(1) as f64
}

/// The nearest of some leaders and its distance, all as logarithms.
fn nearest(profile: &[f64], leaders: &[Vec<f64>]) -> Option<(usize, f64)> {
    let distances = leaders.iter().map(|leader| distance(profile, leader)).enumerate();
    distances.min_by(|a, b| a.1.total_cmp(&b.1))
}

fn clusters(profiles: &[Vec<f64>]) -> Vec<Cluster> {
    // A logarithm costs as much as twenty differences, and every one is needed as often as there are leaders.
    let known: Vec<Vec<f64>> = profiles.iter().map(|profile| logs(profile)).collect();
    let (mut leaders, mut shapes): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
    for (profile, own) in profiles.iter().zip(&known) {
        let far = nearest(own, &leaders).is_none_or(|(_, distance)| distance > APART * APART);
        if far && leaders.len() < MAX_CLUSTERS {
            leaders.push(own.clone());
            shapes.push(profile.clone());
        }
    }
    let mut members = vec![0.0; leaders.len()];
    for _ in 0..ROUNDS {
        members = vec![0.0; leaders.len()];
        let mut sums: Vec<Vec<f64>> = leaders.iter().map(|leader| vec![0.0; leader.len()]).collect();
        for (profile, own) in profiles.iter().zip(&known) {
            let Some((nearest, _)) = nearest(own, &leaders) else { continue };
            members[nearest] += 1.0;
            sums[nearest].iter_mut().zip(profile).for_each(|(sum, share)| *sum += share);
        }
        for (at, (sum, count)) in sums.into_iter().zip(&members).enumerate() {
            if *count > 0.0 {
                shapes[at] = normalised(sum);
                leaders[at] = logs(&shapes[at]);
            }
        }
    }
    let all = shapes.into_iter().zip(members).map(|(shape, members)| Cluster { shape, members });
    all.filter(|cluster| cluster.members > 0.0).collect()
}

/// A shape that a series borrows.
pub(super) struct Borrowed {
    shape: Vec<f64>,
    clock: Clock,
    /// Index of lead 1 on the clock.
    end: usize,
}

/// Fits by `fit` what is left of a series without a shape.
pub(super) fn fit_without_shape<E>(
    series: &Series,
    (shape, season_s): (Vec<f64>, u32),
    fit: impl FnOnce(&Series) -> Result<Box<dyn Forecaster>, E>,
) -> Result<Box<dyn Forecaster>, E> {
    let mut factors = Borrowed { shape, clock: Clock::new(series, 0, season_s), end: 0 };
    let without =
        series.values.iter().enumerate().map(|(at, value)| value.map(|value| value / factors.factor(at)));
    let model = fit(&Series { values: without.collect(), ..series.clone() })?;
    factors.end = series.values.len();
    Ok(Box::new(Scaled { model, factors }))
}

impl Factors for Borrowed {
    fn suffix(&self) -> &'static str {
        "with a borrowed season"
    }

    fn factor(&self, index: usize) -> f64 {
        self.shape.get(self.clock.phase(self.end + index)).copied().unwrap_or(1.0).max(LEAST_SHARE)
    }

    fn passed(&mut self, buckets: usize) {
        self.end += buckets;
    }
}
