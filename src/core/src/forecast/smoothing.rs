//! The simple ones: the last value, the same phase of earlier seasons, a smoothed level, and additive
//! Holt-Winters (Winters 1960) with a damped trend (Gardner and McKenzie 1985), fitted on the leads it is
//! used for: fitted on one step, its error over a day is a quarter larger.

use super::history::History;
use super::{Candidate, LEADS, Leads};

/// Leads that Holt-Winters is fitted on.
const FITTED_LEADS: [usize; 4] = [1, 6, 12, 24];
/// The most buckets a fit looks at, the newest ones.
const MAX_FITTED: usize = 1_344;

/// Last buckets whose difference from their phase shifts a forecast.
const SHIFT: usize = 3;

/// The mean of the same phase of the last `seasons` seasons; of one: seasonal naive.
pub(super) struct SamePhase {
    pub(super) name: &'static str,
    pub(super) period: usize,
    pub(super) seasons: usize,
    /// Moved by how much the last buckets differ from theirs: what a change of level leaves of a season.
    pub(super) shifted: bool,
}

impl SamePhase {
    /// The mean of what lies `offset` buckets and up to so many seasons more before the last one.
    fn usual(&self, logs: &[f64], offset: usize) -> Option<f64> {
        let at = |season: usize| {
            logs.len().checked_sub(offset + season * self.period + 1).and_then(|i| logs.get(i))
        };
        let same: Vec<f64> = (0..self.seasons).filter_map(|season| at(season).copied()).collect();
        (!same.is_empty()).then(|| same.iter().sum::<f64>() / same.len() as f64)
    }
}

impl Candidate for SamePhase {
    fn name(&self) -> &'static str {
        self.name
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let last = logs.last().copied().unwrap_or(0.0);
        let shift = if self.shifted {
            let differences = (0..SHIFT.min(logs.len()))
                .filter_map(|lag| Some(logs[logs.len() - 1 - lag] - self.usual(logs, lag + self.period)?));
            differences.sum::<f64>() / SHIFT as f64
        } else {
            0.0
        };
        std::array::from_fn(|index| {
            let nearest = self.period * (index + 1).div_ceil(self.period) - index - 1;
            self.usual(logs, nearest).map_or(last, |usual| usual + shift)
        })
    }
}

/// An exponentially smoothed level (Brown 1956); with a constant of 1 the last value.
pub(super) struct Level {
    pub(super) name: &'static str,
    pub(super) alpha: f64,
}

impl Level {
    /// The constant with the smallest mean error over all leads, on the buckets `from..end`.
    pub(super) fn fit(history: &History, from: usize, end: usize) -> Self {
        let tried = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7];
        let error = |alpha: f64| {
            let (mut level, mut sum) = (history.logs.first().copied().unwrap_or(0.0), 0.0);
            for (index, log) in history.logs.iter().enumerate().take(end) {
                level += alpha * (log - level);
                if index >= from {
                    let ahead = FITTED_LEADS.iter().filter(|lead| index + **lead < end);
                    sum += ahead.map(|lead| (history.logs[index + lead] - level).abs()).sum::<f64>();
                }
            }
            sum
        };
        let best = tried.into_iter().min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or(0.3);
        Self { name: "level", alpha: best }
    }
}

impl Candidate for Level {
    fn name(&self) -> &'static str {
        self.name
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        // What is older weighs less than rounding.
        let reach = (30.0 / self.alpha.clamp(0.01, 1.0)) as usize;
        let recent = &logs[logs.len().saturating_sub(reach)..];
        let first = recent.first().copied().unwrap_or(0.0);
        [recent.iter().fold(first, |level, log| level + self.alpha * (log - level)); LEADS]
    }
}

/// Smoothing constants of Holt-Winters.
#[derive(Clone, Copy, Debug)]
struct Constants {
    level: f64,
    trend: f64,
    season: f64,
    damping: f64,
}

/// Holt-Winters, see the module.
pub(super) struct HoltWinters {
    period: usize,
    constants: Constants,
    /// States older than this are not run through again.
    reach: usize,
}

struct State {
    level: f64,
    trend: f64,
    season: Vec<f64>,
    /// Phase of the next bucket.
    phase: usize,
}

impl State {
    /// From the first two seasons.
    fn new(logs: &[f64], period: usize) -> Option<Self> {
        let (first, second) = (logs.get(..period)?, logs.get(period..2 * period)?);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / period as f64;
        let (one, two) = (mean(first), mean(second));
        let season = first.iter().zip(second).map(|(a, b)| (a - one + b - two) / 2.0).collect();
        Some(Self { level: two, trend: 0.0, season, phase: 0 })
    }

    fn step(&mut self, log: f64, c: &Constants) {
        let season = self.season[self.phase];
        let before = self.level;
        self.level = c.level * (log - season) + (1.0 - c.level) * (before + c.damping * self.trend);
        self.trend = c.trend * (self.level - before) + (1.0 - c.trend) * c.damping * self.trend;
        self.season[self.phase] = season + c.season * (log - self.level - season);
        self.phase = (self.phase + 1) % self.season.len();
    }

    fn at(&self, lead: usize, damping: f64) -> f64 {
        let damped: f64 = if self.trend == 0.0 {
            0.0
        } else {
            (1..=lead).map(|step| damping.powi(step as i32)).sum::<f64>() * self.trend
        };
        self.level + damped + self.season[(self.phase + lead - 1) % self.season.len()]
    }
}

impl HoltWinters {
    /// Fits on the first `end` buckets by coordinate descent over a grid; None when they are too few.
    pub(super) fn fit(history: &History, end: usize, period: usize) -> Option<Self> {
        if end < 3 * period || period < 2 {
            return None;
        }
        let reach = MAX_FITTED.max(4 * period);
        let logs = &history.logs[end.saturating_sub(reach)..end];
        let grids: [&[f64]; 4] =
            [&[0.02, 0.05, 0.1, 0.2, 0.4, 0.7], &[0.0, 0.02, 0.1], &[0.02, 0.08, 0.2, 0.4], &[0.8, 0.95]];
        let mut best = Constants { level: 0.1, trend: 0.0, season: 0.08, damping: 0.95 };
        let mut least = error(logs, period, &best)?;
        for _ in 0..2 {
            for (which, grid) in grids.iter().enumerate() {
                for value in *grid {
                    let mut tried = best;
                    match which {
                        0 => tried.level = *value,
                        1 => tried.trend = *value,
                        2 => tried.season = *value,
                        _ => tried.damping = *value,
                    }
                    let found = error(logs, period, &tried)?;
                    if found < least {
                        (least, best) = (found, tried);
                    }
                }
            }
        }
        Some(Self { period, constants: best, reach })
    }
}

/// Mean absolute error over [`FITTED_LEADS`] behind the first two seasons.
fn error(logs: &[f64], period: usize, constants: &Constants) -> Option<f64> {
    let mut state = State::new(logs, period)?;
    let mut sum = 0.0;
    for (index, log) in logs.iter().enumerate() {
        state.step(*log, constants);
        if index + 1 >= 2 * period {
            for lead in FITTED_LEADS {
                if let Some(actual) = logs.get(index + lead) {
                    sum += (actual - state.at(lead, constants.damping)).abs();
                }
            }
        }
    }
    Some(sum)
}

impl Candidate for HoltWinters {
    fn name(&self) -> &'static str {
        "holt_winters"
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let recent = &logs[logs.len().saturating_sub(self.reach)..];
        let Some(mut state) = State::new(recent, self.period) else {
            return [logs.last().copied().unwrap_or(0.0); LEADS];
        };
        recent.iter().for_each(|log| state.step(*log, &self.constants));
        std::array::from_fn(|index| state.at(index + 1, self.constants.damping))
    }
}
