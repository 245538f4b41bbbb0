//! Load forecasts per slot, with intervals and sampled futures.
//!
//! A model is fitted to a bounded history of buckets and answers for the leads after its end. Its
//! intervals and futures come from a rolling back-test, not from an assumed distribution. Unknown
//! buckets are `None` and are skipped; they are never read as 0.

mod backtest;
mod conformal;
mod event;
mod field;
mod history;
mod kernel;
mod level_season;
mod linear;
mod median_regression;
mod mstl;
mod regressor;
mod scaled;
mod season;
mod shape;
mod smoothing;
mod trial;

use std::fmt;
use std::sync::Arc;

pub use event::Event;
use event::fit_without_events;
use field::Field;
use history::History;
use level_season::LevelSeason;
pub use regressor::Regressor;
use regressor::Regressors;
pub use shape::Shapes;
use shape::fit_without_shape;

/// The most leads a forecast answers for; longer requests are cut.
pub const MAX_LEADS: usize = 4_096;

/// A series of equally spaced buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Start of the first bucket, unix seconds.
    pub start_s: i64,
    /// Length of a bucket, seconds, above 0.
    pub step_s: u32,
    /// One value per bucket, in the unit to be forecast (cost units per second); `None` is unknown.
    /// Negative and non-finite values count as unknown.
    pub values: Vec<Option<f64>>,
    /// Special events, past ones to learn from and coming ones.
    pub events: Vec<Event>,
    /// What is known of each bucket, past and coming; shared by the series of a table.
    pub regressors: Vec<Arc<Regressor>>,
}

/// How to fit.
#[derive(Clone, Debug, PartialEq)]
pub struct ForecastOptions {
    /// Length of the season, seconds; default one day. 0 or a length that is not a multiple of the
    /// step fits no season.
    pub season_s: u32,
    /// Nominal coverage of the interval, in (0, 1); default 0.9.
    pub interval_level: f64,
    /// The fewest known buckets worth a forecast; default 6, never below 3.
    pub min_buckets: usize,
    /// The most buckets looked at, counted from the end; default 4032 (two weeks of 5 minutes).
    pub max_history: usize,
    /// Names of the only models that may compete, of [`MODELS`]; empty: all of them.
    pub models: Vec<String>,
}

/// The models that compete.
pub const MODELS: [&str; 23] = [
    "naive",
    "level",
    "kernel",
    "kernel_relative",
    "ridge",
    "ridge_relative",
    "same_time_yesterday",
    "same_time",
    "same_time_shifted",
    "same_time_last_week",
    "same_time_of_week",
    "same_time_of_week_shifted",
    "holt_winters",
    "ridge_day",
    "ridge_day_relative",
    "ridge_week",
    "ridge_week_relative",
    "ridge_day_loose",
    "ridge_week_loose",
    "spar",
    "mstl",
    "median_regression",
    "with_regressors",
];

impl ForecastOptions {
    /// (The fewest known buckets, the most buckets looked at).
    fn bounds(&self) -> (usize, usize) {
        let need = self.min_buckets.max(3);
        (need, self.max_history.clamp(need, MAX_HISTORY.max(need)))
    }
}

impl Default for ForecastOptions {
    fn default() -> Self {
        Self { season_s: 86_400, interval_level: 0.9, min_buckets: 6, max_history: 4_032, models: Vec::new() }
    }
}

/// The forecast of one bucket, in the unit of the series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForecastPoint {
    /// Start of the bucket, unix seconds.
    pub at_s: i64,
    /// Expected value, at least 0.
    pub mean: f64,
    /// Median, at least 0: the point with the smallest expected absolute error.
    pub median: f64,
    /// Lower end of the interval, `0 <= lower <= mean`.
    pub lower: f64,
    /// Upper end of the interval, at least `mean`.
    pub upper: f64,
}

/// A fitted model.
pub trait Forecaster {
    /// The model's name, for the catalog.
    fn name(&self) -> String;

    /// The next `leads` buckets after the end of the series (at most [`MAX_LEADS`]).
    fn forecast(&self, leads: usize) -> Vec<ForecastPoint>;

    /// One sampled future of `leads` buckets (at most [`MAX_LEADS`]), never below 0.
    ///
    /// The same seed gives the same future. Slots with equally long histories asked with the same
    /// seed replay the same moments of the past, so what they did together they do together in
    /// that future; use one seed per future, for all slots.
    fn sample_path(&self, leads: usize, seed: u64) -> Vec<f64>;

    /// [`Self::sample_path`] of each seed.
    fn sample_paths(&self, leads: usize, seeds: &[u64]) -> Vec<Vec<f64>> {
        seeds.iter().map(|seed| self.sample_path(leads, *seed)).collect()
    }

    /// Number of known buckets the model was fitted on.
    fn history_buckets(&self) -> usize;

    /// Mean absolute error of the rolling back-test over its leads, in the unit of the series.
    fn mae(&self) -> f64;

    /// Goes on with further buckets, without fitting again: forecasts then begin behind them, and intervals
    /// learn from what was forecast before.
    fn extend(&mut self, values: &[Option<f64>]);

    /// Whether the series has changed since the fit, so that a new one is worth while.
    fn has_changed(&self) -> bool;

    /// Takes what is known of the regressors now instead of what was, without fitting again.
    fn tell(&mut self, regressors: &[Arc<Regressor>]) {
        let _ = regressors;
    }
}

/// Leads that candidates forecast at once; later ones stand on them.
const LEADS: usize = 24;

/// One number per lead, from lead 1 on.
type Leads = [f64; LEADS];

/// A forecast never exceeds this multiple of the highest known value: an exponential of a log-scale
/// error must not invent loads nobody has seen.
const CAP_FACTOR: f64 = 4.0;

/// One of the models that compete.
trait Candidate {
    /// Its name.
    fn name(&self) -> &'static str;

    /// What follows a history whose first bucket is that of the history it was fitted on, on the log scale.
    fn predict(&self, logs: &[f64]) -> Leads;

    /// Takes other values of the regressors it was fitted with.
    fn tell(&mut self, regressors: &Regressors) {
        let _ = regressors;
    }
}

/// Why there is no forecast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForecastError {
    /// Too few known buckets: the load is unknown, not 0.
    InsufficientHistory {
        /// Known buckets.
        have: usize,
        /// Known buckets needed.
        need: usize,
    },
    /// The step is 0.
    BadStep,
}

impl fmt::Display for ForecastError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InsufficientHistory { have, need } => {
                write!(f, "{have} known buckets are too few for a forecast ({need} needed)")
            }
            Self::BadStep => write!(f, "the bucket length must be above 0 s"),
        }
    }
}

impl std::error::Error for ForecastError {}

/// The most buckets a fit looks at, whatever the options say.
const MAX_HISTORY: usize = 100_000;

/// Fits the candidates and returns those that a rolling back-test found best, at every lead a mean of a
/// few of them, weighted by how good they were.
///
/// Short histories, below four times 24 known buckets, have two candidates of their own, `level` and from two
/// full seasons on `level+season`.
///
/// # Errors
/// [`ForecastError::BadStep`] when `step_s` is 0; [`ForecastError::InsufficientHistory`] when fewer
/// than `min_buckets` buckets are known, or too few for any of the models asked for.
pub fn fit(series: &Series, options: &ForecastOptions) -> Result<Box<dyn Forecaster>, ForecastError> {
    if series.step_s == 0 {
        return Err(ForecastError::BadStep);
    }
    fit_without_events(series, options.season_s, |series| fit_field(series, options))
}

fn fit_field(series: &Series, options: &ForecastOptions) -> Result<Box<dyn Forecaster>, ForecastError> {
    let (need, keep) = options.bounds();
    let history = History::new(series, keep, options.season_s);
    let have = history.count_known();
    if have >= need
        && let Some(field) = Field::fit(history, options)
    {
        return Ok(Box::new(field));
    }
    if have < need || !options.models.is_empty() {
        return Err(ForecastError::InsufficientHistory { have, need });
    }
    Ok(Box::new(LevelSeason::fit(series, keep, options)))
}

/// As [`fit`], but with the two simplest candidates only: some hundred times faster, for whoever has no time
/// now.
///
/// # Errors
/// As [`fit`].
pub fn fit_simple(series: &Series, options: &ForecastOptions) -> Result<Box<dyn Forecaster>, ForecastError> {
    if series.step_s == 0 {
        return Err(ForecastError::BadStep);
    }
    fit_without_events(series, options.season_s, |series| fit_level_season(series, options))
}

/// As [`fit`] (or [`fit_simple`], if `simple`), for a series that has not seen two seasons: it borrows the season of those
/// that it looks like so far. Series that have nothing to borrow are fitted as ever. With a season to borrow three known
/// buckets are enough.
///
/// # Errors
/// As [`fit`].
pub fn fit_borrowing(
    series: &Series,
    options: &ForecastOptions,
    shapes: &Shapes,
    simple: bool,
) -> Result<Box<dyn Forecaster>, ForecastError> {
    if series.step_s == 0 {
        return Err(ForecastError::BadStep);
    }
    let own = if simple { fit_level_season } else { fit_field };
    fit_without_events(series, options.season_s, |series| match shapes.borrow(series) {
        None => own(series, options),
        Some(shape) => {
            let fewer = ForecastOptions { min_buckets: 3, ..options.clone() };
            fit_without_shape(series, (shape, options.season_s), |series| own(series, &fewer))
        }
    })
}

fn fit_level_season(
    series: &Series,
    options: &ForecastOptions,
) -> Result<Box<dyn Forecaster>, ForecastError> {
    let (need, keep) = options.bounds();
    let known = series.values.iter().rev().take(keep).filter(|value| history::to_log(**value).is_some());
    let have = known.count();
    if have < need {
        return Err(ForecastError::InsufficientHistory { have, need });
    }
    Ok(Box::new(LevelSeason::fit(series, keep, options)))
}
