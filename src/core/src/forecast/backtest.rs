//! Rolling back-test of a smoothed level: what its errors were, per lead.

/// Smoothing constants tried.
const ALPHAS: [f64; 8] = [0.03, 0.06, 0.12, 0.2, 0.3, 0.5, 0.7, 0.95];

/// The longest lead tested; errors of longer leads grow with the square root, as a random walk's.
const MAX_HORIZON: usize = 96;

/// The most origins tested, evenly spread.
const MAX_ORIGINS: usize = 192;

/// The smoothed level after each bucket; gaps keep it.
pub(super) fn levels(rest: &[Option<f64>], alpha: f64) -> Vec<f64> {
    let mut level = rest.iter().flatten().next().copied().unwrap_or(0.0);
    rest.iter()
        .map(|value| {
            if let Some(value) = value {
                level += alpha * (value - level);
            }
            level
        })
        .collect()
}

/// The tested part of a series without its season, and the level after each of its buckets.
#[derive(Clone, Debug)]
pub(super) struct Backtest {
    rest: Vec<Option<f64>>,
    levels: Vec<f64>,
    alpha: f64,
    /// First origin.
    cut: usize,
    horizon: usize,
}

/// What a back-test says about errors.
#[derive(Clone, Debug)]
pub(super) struct Offsets {
    below: Vec<f64>,
    above: Vec<f64>,
    /// To be added to the median on the log scale to get the mean.
    pub(super) smear_log: f64,
    /// Mean absolute error over all leads, in the unit of the series.
    pub(super) mae: f64,
}

impl Backtest {
    /// Tests `rest` with origins from bucket `cut` on.
    pub(super) fn new(rest: Vec<Option<f64>>, cut: usize) -> Self {
        let cut = cut.min(rest.len().saturating_sub(2));
        let horizon = ((rest.len() - cut) / 2).clamp(1, MAX_HORIZON);
        let mut test = Self {
            levels: Vec::new(),
            alpha: 0.0,
            rest,
            cut,
            horizon,
        };
        let mut best = f64::INFINITY;
        let forced: Option<f64> = std::env::var("FA").ok().and_then(|a| a.parse().ok());
        for alpha in ALPHAS {
            let alpha = forced.unwrap_or(alpha);
            let levels = levels(&test.rest, alpha);
            let error = test.error_on_some_leads(&levels);
            if error < best || test.levels.is_empty() {
                best = error;
                test.alpha = alpha;
                test.levels = levels;
            }
        }
        test
    }

    pub(super) fn alpha(&self) -> f64 {
        self.alpha
    }

    /// The longest lead tested, at least 1.
    pub(super) fn horizon(&self) -> usize {
        self.horizon
    }

    /// How many origins are followed by a full trajectory, at least 1.
    pub(super) fn trajectories(&self) -> usize {
        (self.rest.len() - self.cut)
            .saturating_sub(self.horizon)
            .max(1)
    }

    /// Error at `lead` of the trajectory that starts `back` origins before the last full one;
    /// counted from the end, so that equal draws are equal moments for all slots.
    pub(super) fn error(&self, back: usize, lead: usize) -> Option<f64> {
        let last = self.rest.len().checked_sub(self.horizon + 1)?;
        self.error_from(last.checked_sub(back)?, lead, &self.levels)
    }

    fn error_from(&self, origin: usize, lead: usize, levels: &[f64]) -> Option<f64> {
        let actual = self.rest.get(origin + lead).copied().flatten()?;
        levels.get(origin).map(|level| actual - level)
    }

    fn origins(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.rest.len().saturating_sub(self.cut + 1);
        (self.cut..self.cut + count).step_by(count.div_ceil(MAX_ORIGINS).max(1))
    }

    fn error_on_some_leads(&self, levels: &[f64]) -> f64 {
        let mut sum = 0.0;
        let mut lead = 1;
        while lead <= self.horizon {
            let errors = (self.cut..self.rest.len())
                .filter_map(|origin| self.error_from(origin, lead, levels))
                .map(f64::abs);
            let (total, count) = errors.fold((0.0, 0_u32), |(sum, n), error| (sum + error, n + 1));
            sum += total / f64::from(count.max(1));
            lead *= if std::env::var("ONE").is_ok() { 100000 } else { 2 };
        }
        sum
    }

    /// Interval offsets per lead, smearing and mean absolute error; `season` is the (log) season of
    /// a bucket as the back-test knew it.
    pub(super) fn offsets(&self, level: f64, season: impl Fn(usize) -> f64) -> Offsets {
        let tail = if level > 0.0 && level < 1.0 {
            (1.0 - level) / 2.0
        } else {
            0.05
        };
        let (mut below, mut above) = (Vec::new(), Vec::new());
        let (mut low, mut high) = (0.0_f64, 0.0_f64);
        let mut exps = (0.0, 0_u32);
        for lead in 1..=self.horizon {
            let mut errors: Vec<f64> = self
                .origins()
                .filter_map(|origin| self.error_from(origin, lead, &self.levels))
                .collect();
            exps = errors
                .iter()
                .fold(exps, |(sum, n), error| (sum + error.min(20.0).exp(), n + 1));
            // An interval never gets narrower with the lead: that would only be luck.
            if let Some((lower, upper)) = tails(&mut errors, tail) {
                low = low.max(-lower);
                high = high.max(upper);
            }
            below.push(low);
            above.push(high);
        }
        let smear = if exps.1 == 0 {
            1.0
        } else {
            exps.0 / f64::from(exps.1)
        };
        let smear_log = smear.clamp(0.5, 3.0).ln();
        Offsets {
            below,
            above,
            smear_log,
            mae: self.mae(smear_log, season),
        }
    }

    fn mae(&self, smear_log: f64, season: impl Fn(usize) -> f64) -> f64 {
        let (mut sum, mut count) = (0.0, 0_u32);
        for origin in self.origins() {
            let level = self.levels.get(origin).copied().unwrap_or(0.0) + smear_log;
            for lead in 1..=self.horizon {
                if let Some(rest) = self.rest.get(origin + lead).copied().flatten() {
                    let season = season(origin + lead);
                    sum += ((rest + season).exp_m1() - (level + season).max(0.0).exp_m1()).abs();
                    count += 1;
                }
            }
        }
        sum / f64::from(count.max(1))
    }
}

/// The two empirical quantiles that leave `tail` on each side, with the finite-sample correction of
/// conformal prediction: few errors give the extremes.
fn tails(errors: &mut [f64], tail: f64) -> Option<(f64, f64)> {
    let last = errors.len().checked_sub(1)?;
    let rank = ((errors.len() + 1) as f64 * tail).floor() as usize;
    let low = rank.saturating_sub(1).min(last);
    let high = last - low;
    let lower = *errors.select_nth_unstable_by(low, f64::total_cmp).1;
    let upper = *errors.select_nth_unstable_by(high, f64::total_cmp).1;
    Some((lower, upper))
}

impl Offsets {
    /// How far the interval reaches below and above the median on the log scale at `lead` (from 1).
    pub(super) fn at(&self, lead: usize) -> (f64, f64) {
        let horizon = self.below.len().max(1);
        let index = lead.clamp(1, horizon) - 1;
        let growth = (lead as f64 / horizon as f64).max(1.0).sqrt();
        let get = |values: &[f64]| values.get(index).copied().unwrap_or(0.0) * growth;
        (get(&self.below), get(&self.above))
    }
}
