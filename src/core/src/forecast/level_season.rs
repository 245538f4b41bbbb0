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
use super::history::to_log;
use super::season::{Clock, season_of};
use super::{CAP_FACTOR, ForecastOptions, ForecastPoint, Forecaster, MAX_LEADS, Series};

/// Prefer the season unless the level alone is better by this factor: the back-test's season was
/// learnt from half of the history only, the final one from all of it.
const SEASON_BONUS: f64 = 1.3;

/// Level, or level and season.
pub(super) struct LevelSeason {
    series: Series,
    keep: usize,
    options: ForecastOptions,
    fitted: Fitted,
}

struct Fitted {
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

impl LevelSeason {
    /// Fits on the last `keep` buckets, of which some are known.
    pub(super) fn fit(series: &Series, keep: usize, options: &ForecastOptions) -> Self {
        let fitted = fit(series, keep, options);
        Self { series: series.clone(), keep, options: options.clone(), fitted }
    }
}

fn fit(series: &Series, keep: usize, options: &ForecastOptions) -> Fitted {
    let skip = series.values.len().saturating_sub(keep);
    let logs: Vec<Option<f64>> = series.values.iter().skip(skip).map(|value| to_log(*value)).collect();
    let have = logs.iter().flatten().count();
    let clock = Clock::new(series, skip, options.season_s);
    let first = logs.iter().position(Option::is_some).unwrap_or(0);

    let seasonal = clock.period.filter(|period| {
        // Unknown days teach nothing: two full ones must be known, up to a quarter in gaps.
        logs.len() - first >= 2 * period && 2 * have >= 3 * period
    });
    let cut = seasonal.map_or(first, |period| (first + period).max(logs.len() / 2));
    let level = candidate(&logs, &clock, None, cut, options);
    let Some(period) = seasonal else { return level };
    let season = candidate(&logs, &clock, Some(period), cut, options);
    if season.offsets.mae <= level.offsets.mae * SEASON_BONUS { season } else { level }
}

/// Fits one candidate, back-tested on the buckets from `cut` on.
fn candidate(
    logs: &[Option<f64>],
    clock: &Clock,
    period: Option<usize>,
    cut: usize,
    options: &ForecastOptions,
) -> Fitted {
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
    Fitted {
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

impl Fitted {
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
    fn name(&self) -> String {
        self.fitted.name.to_string()
    }

    fn forecast(&self, leads: usize) -> Vec<ForecastPoint> {
        let fitted = &self.fitted;
        (1..=leads.min(MAX_LEADS))
            .map(|lead| {
                let median = fitted.median_log(lead);
                let (below, above) = fitted.offsets.at(lead);
                let mean = fitted.value(median + fitted.offsets.smear_log);
                ForecastPoint {
                    at_s: fitted.clock.at_s(fitted.end + lead - 1),
                    mean,
                    median: fitted.value(median),
                    lower: fitted.value(median - below).min(mean),
                    upper: fitted.value(median + above).max(mean),
                }
            })
            .collect()
    }

    fn sample_path(&self, leads: usize, seed: u64) -> Vec<f64> {
        let fitted = &self.fitted;
        let leads = leads.min(MAX_LEADS);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut path = Vec::with_capacity(leads);
        // A block is the whole error trajectory after one moment of the past, so errors stay as
        // autocorrelated, and grow with the lead, as they really did. A further block starts from
        // where the last one ended.
        let mut carried = 0.0;
        while path.len() < leads {
            let back = rng.random_range(0..fitted.backtest.trajectories());
            let mut error = 0.0;
            for lead in 1..=fitted.backtest.horizon() {
                if path.len() == leads {
                    break;
                }
                error = fitted.backtest.error(back, lead).unwrap_or(error);
                let log = fitted.median_log(path.len() + 1) + carried + error;
                path.push(fitted.value(log));
            }
            carried += error;
        }
        path
    }

    fn history_buckets(&self) -> usize {
        self.fitted.history_buckets
    }

    fn mae(&self) -> f64 {
        self.fitted.offsets.mae
    }

    fn extend(&mut self, values: &[Option<f64>]) {
        // So short a history is fitted again in no time.
        self.series.values.extend_from_slice(values);
        self.fitted = fit(&self.series, self.keep, &self.options);
    }

    fn has_changed(&self) -> bool {
        false
    }
}
