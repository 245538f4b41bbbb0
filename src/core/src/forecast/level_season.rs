//! Level and level + season: the first models.
//!
//! Both live in `ln(1 + value)`, where loads of every size have comparable errors. The level is
//! exponentially smoothed (Brown 1956), its `alpha` the best of a small grid; a lead is forecast
//! between the level and the long-run mean, with a weight per lead from least squares, because what
//! the last hours say fades with the lead. The season is additive: the mean, per time of day, of
//! what differs from the mean of its own day. Intervals and futures are the errors of a rolling
//! back-test per lead, whose season was learnt only from buckets before the tested ones (level,
//! weights and `alpha` were chosen on the tested ones). The mean is corrected from the log scale by
//! Duan's smearing (1983).
//!
//! It knows no week: where days differ, a seasonal naive forecast can be better.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::backtest::{Backtest, Offsets, levels};
use super::season::{Clock, season_of};
use super::{ForecastError, ForecastOptions, ForecastPoint, Forecaster, MAX_LEADS, Series};

/// The most buckets a fit looks at, whatever the options say.
const MAX_HISTORY: usize = 100_000;

/// A forecast never exceeds this multiple of the highest known value: an exponential of a log-scale
/// error must not invent loads nobody has seen.
const CAP_FACTOR: f64 = 4.0;

/// Prefer the season unless the level alone is better by this factor: the back-test's season was
/// learnt from half of the history only, the final one from all of it.
const SEASON_BONUS: f64 = 1.3;

struct LevelSeason {
    name: &'static str,
    clock: Clock,
    /// Index of lead 1 on the clock.
    end: usize,
    /// Per phase; empty without a season.
    season: Vec<f64>,
    /// Smoothed level and mean at the end, without the season.
    level: f64,
    mean: f64,
    backtest: Backtest,
    offsets: Offsets,
    /// Highest exponent a forecast may have.
    cap_log: f64,
    history_buckets: usize,
}

/// See [`super::fit`].
pub(super) fn fit(series: &Series, options: &ForecastOptions) -> Result<Box<dyn Forecaster>, ForecastError> {
    if series.step_s == 0 {
        return Err(ForecastError::BadStep);
    }
    let need = options.min_buckets.max(3);
    let keep = options.max_history.clamp(need, MAX_HISTORY.max(need));
    let skip = series.values.len().saturating_sub(keep);
    let logs: Vec<Option<f64>> = series.values.iter().skip(skip).map(|value| to_log(*value)).collect();
    let have = logs.iter().flatten().count();
    if have < need {
        return Err(ForecastError::InsufficientHistory { have, need });
    }
    let clock = Clock::new(series, skip, options.season_s);
    let first = logs.iter().position(Option::is_some).unwrap_or(0);

    let seasonal = clock.period.filter(|period| {
        // Unknown days teach nothing: two full ones must be known, up to a quarter in gaps.
        logs.len() - first >= 2 * period && 2 * have >= 3 * period
    });
    let cut = seasonal.map_or(first, |period| (first + period).max(logs.len() / 2));
    let level = candidate(&logs, &clock, None, cut, options);
    let Some(period) = seasonal else {
        return Ok(Box::new(level));
    };
    let season = candidate(&logs, &clock, Some(period), cut, options);
    if season.offsets.mae <= level.offsets.mae * SEASON_BONUS {
        Ok(Box::new(season))
    } else {
        Ok(Box::new(level))
    }
}

fn to_log(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite() && *value >= 0.0).map(f64::ln_1p)
}

/// Fits one candidate, back-tested on the buckets from `cut` on.
fn candidate(
    logs: &[Option<f64>],
    clock: &Clock,
    period: Option<usize>,
    cut: usize,
    options: &ForecastOptions,
) -> LevelSeason {
    let learnt = period.map(|period| season_of(logs.get(..cut).unwrap_or(logs), clock, period));
    let backtest = Backtest::new(remove(logs, clock, learnt.as_deref()), cut);
    let season = period.map(|period| season_of(logs, clock, period)).unwrap_or_default();
    let rest = remove(logs, clock, Some(&season).filter(|season| !season.is_empty()).map(Vec::as_slice));
    let at_end = |alpha| levels(&rest, alpha).last().copied().unwrap_or(0.0);
    let highest = logs.iter().flatten().copied().fold(0.0, f64::max);
    let fitted = |index: usize| {
        learnt.as_ref().and_then(|season| season.get(clock.phase(index)).copied()).unwrap_or(0.0)
    };
    let offsets = backtest.offsets(options.interval_level, fitted);
    LevelSeason {
        name: if period.is_some() { "level+season" } else { "level" },
        clock: clock.clone(),
        end: logs.len(),
        season,
        level: at_end(backtest.alpha()),
        mean: at_end(0.0),
        backtest,
        offsets,
        cap_log: (highest.exp_m1() * CAP_FACTOR).ln_1p(),
        history_buckets: logs.iter().flatten().count(),
    }
}

/// The logs without their season.
fn remove(logs: &[Option<f64>], clock: &Clock, season: Option<&[f64]>) -> Vec<Option<f64>> {
    let Some(season) = season else {
        return logs.to_vec();
    };
    let of = |index| season.get(clock.phase(index)).copied().unwrap_or(0.0);
    logs.iter().enumerate().map(|(index, log)| log.map(|log| log - of(index))).collect()
}

impl LevelSeason {
    /// The median path on the log scale, at lead `lead` (from 1).
    fn median_log(&self, lead: usize) -> f64 {
        let phase = self.clock.phase(self.end + lead - 1);
        let rest = self.backtest.expected(lead, self.level, self.mean);
        rest + self.season.get(phase).copied().unwrap_or(0.0)
    }

    fn value(&self, log: f64) -> f64 {
        log.clamp(0.0, self.cap_log).exp_m1()
    }
}

impl Forecaster for LevelSeason {
    fn name(&self) -> &'static str {
        self.name
    }

    fn forecast(&self, leads: usize) -> Vec<ForecastPoint> {
        (1..=leads.min(MAX_LEADS))
            .map(|lead| {
                let median = self.median_log(lead);
                let (below, above) = self.offsets.at(lead);
                let mean = self.value(median + self.offsets.smear_log);
                ForecastPoint {
                    at_s: self.clock.at_s(self.end + lead - 1),
                    mean,
                    lower: self.value(median - below).min(mean),
                    upper: self.value(median + above).max(mean),
                }
            })
            .collect()
    }

    fn sample_path(&self, leads: usize, seed: u64) -> Vec<f64> {
        let leads = leads.min(MAX_LEADS);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut path = Vec::with_capacity(leads);
        // A block is the whole error trajectory after one moment of the past, so errors stay as
        // autocorrelated, and grow with the lead, as they really did. A further block starts from
        // where the last one ended.
        let mut carried = 0.0;
        while path.len() < leads {
            let back = rng.random_range(0..self.backtest.trajectories());
            let mut error = 0.0;
            for lead in 1..=self.backtest.horizon() {
                if path.len() == leads {
                    break;
                }
                error = self.backtest.error(back, lead).unwrap_or(error);
                let log = self.median_log(path.len() + 1) + carried + error;
                path.push(self.value(log));
            }
            carried += error;
        }
        path
    }

    fn history_buckets(&self) -> usize {
        self.history_buckets
    }

    fn mae(&self) -> f64 {
        self.offsets.mae
    }
}
