//! Rolling back-test of a smoothed level: what its errors were, per lead.

/// Smoothing constants tried; 0 is the mean of all that is known.
const ALPHAS: [f64; 9] = [0.0, 0.03, 0.06, 0.12, 0.2, 0.3, 0.5, 0.7, 0.95];

/// The longest lead tested; errors of longer leads grow with the square root, as a random walk's.
const MAX_HORIZON: usize = 96;

/// The most origins tested, evenly spread.
const MAX_ORIGINS: usize = 192;

/// The smoothed level after each bucket; gaps keep it.
///
/// The first values count as in a mean, so the level does not hang on the very first one.
pub(super) fn levels(rest: &[Option<f64>], alpha: f64) -> Vec<f64> {
    let (mut level, mut count) = (0.0, 0_u32);
    rest.iter()
        .map(|value| {
            if let Some(value) = value {
                count += 1;
                level += alpha.max(1.0 / f64::from(count)) * (value - level);
            }
            level
        })
        .collect()
}

/// The tested part of a series without its season, and what was known after each of its buckets: the
/// smoothed level and the mean so far. A lead is forecast between the two, as much on the side of
/// the level as the level was worth at that lead.
#[derive(Clone, Debug)]
pub(super) struct Backtest {
    rest: Vec<Option<f64>>,
    levels: Vec<f64>,
    means: Vec<f64>,
    /// Per lead (from 1): weight of the level against the mean, 0..=1.
    weights: Vec<f64>,
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
            means: levels(&rest, 0.0),
            levels: Vec::new(),
            weights: Vec::new(),
            alpha: 0.0,
            rest,
            cut,
            horizon,
        };
        let mut best = f64::INFINITY;
        for alpha in ALPHAS {
            let levels = levels(&test.rest, alpha);
            let error = test.error_on_some_leads(&levels);
            if error < best || test.levels.is_empty() {
                (best, test.alpha, test.levels) = (error, alpha, levels);
            }
        }
        let weights = (1..=horizon).map(|lead| test.weight_of_level(lead, &test.levels));
        test.weights = weights.collect();
        test
    }

    /// Weight of the level against the mean at `lead` (from 1): least squares over the origins.
    fn weight_of_level(&self, lead: usize, levels: &[f64]) -> f64 {
        let (mut product, mut square) = (0.0, 0.0);
        for origin in self.origins() {
            let actual = self.rest.get(origin + lead).copied().flatten();
            if let (Some(actual), Some(level), Some(mean)) =
                (actual, levels.get(origin), self.means.get(origin))
            {
                product += (actual - mean) * (level - mean);
                square += (level - mean) * (level - mean);
            }
        }
        if square > 0.0 { (product / square).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// Forecast without the season, on the log scale, at `lead` (from 1), of one who knows this
    /// level and mean.
    pub(super) fn expected(&self, lead: usize, level: f64, mean: f64) -> f64 {
        let index = lead.clamp(1, self.horizon) - 1;
        mean + self.weights.get(index).copied().unwrap_or(1.0) * (level - mean)
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
        (self.rest.len() - self.cut).saturating_sub(self.horizon).max(1)
    }

    /// Error at `lead` of the trajectory that starts `back` origins before the last full one;
    /// counted from the end, so that equal draws are equal moments for all slots.
    pub(super) fn error(&self, back: usize, lead: usize) -> Option<f64> {
        let last = self.rest.len().checked_sub(self.horizon + 1)?;
        self.error_from(last.checked_sub(back)?, lead)
    }

    fn error_from(&self, origin: usize, lead: usize) -> Option<f64> {
        let actual = self.rest.get(origin + lead).copied().flatten()?;
        Some(actual - self.expected(lead, *self.levels.get(origin)?, *self.means.get(origin)?))
    }

    fn origins(&self) -> impl Iterator<Item = usize> + use<> {
        let count = self.rest.len().saturating_sub(self.cut + 1);
        (self.cut..self.cut + count).step_by(count.div_ceil(MAX_ORIGINS).max(1))
    }

    /// Sum of the mean absolute errors at leads 1, 2, 4, … with these levels.
    fn error_on_some_leads(&self, levels: &[f64]) -> f64 {
        let mut sum = 0.0;
        let mut lead = 1;
        while lead <= self.horizon {
            let weight = self.weight_of_level(lead, levels);
            let (mut total, mut count) = (0.0, 0_u32);
            for origin in self.origins() {
                let actual = self.rest.get(origin + lead).copied().flatten();
                if let (Some(actual), Some(level), Some(mean)) =
                    (actual, levels.get(origin), self.means.get(origin))
                {
                    total += (actual - mean - weight * (level - mean)).abs();
                    count += 1;
                }
            }
            sum += total / f64::from(count.max(1));
            lead *= 2;
        }
        sum
    }

    /// Interval offsets per lead, smearing and mean absolute error; `season` is the (log) season of
    /// a bucket as the back-test knew it.
    pub(super) fn offsets(&self, level: f64, season: impl Fn(usize) -> f64) -> Offsets {
        let tail = if level > 0.0 && level < 1.0 { (1.0 - level) / 2.0 } else { 0.05 };
        let (mut below, mut above) = (Vec::new(), Vec::new());
        let (mut low, mut high) = (0.0_f64, 0.0_f64);
        let smear_log = self.smear_log();
        for lead in 1..=self.horizon {
            let mut errors: Vec<f64> =
                self.origins().filter_map(|origin| self.error_from(origin, lead)).collect();
            // An interval never gets narrower with the lead: that would only be luck.
            if let Some((lower, upper)) = tails(&mut errors, tail) {
                low = low.max(-lower);
                high = high.max(upper);
            }
            below.push(low);
            above.push(high);
        }
        Offsets { below, above, smear_log, mae: self.mae(smear_log, season) }
    }

    /// What to add on the log scale to turn a median into a mean: from the errors at lead 1 only,
    /// which are mostly noise. Those at longer leads are also what the model gets wrong, and
    /// correcting for that as if it were noise made forecasts of a real series 15 % worse.
    fn smear_log(&self) -> f64 {
        let errors = self.origins().filter_map(|origin| self.error_from(origin, 1));
        let exps = errors.map(|error| error.min(20.0).exp());
        let (sum, count) = exps.fold((0.0, 0_u32), |(sum, n), exp| (sum + exp, n + 1));
        if count == 0 { 0.0 } else { (sum / f64::from(count)).clamp(0.5, 2.0).ln() }
    }

    fn mae(&self, smear_log: f64, season: impl Fn(usize) -> f64) -> f64 {
        let (mut sum, mut count) = (0.0, 0_u32);
        for origin in self.origins() {
            for lead in 1..=self.horizon {
                let actual = self.rest.get(origin + lead).copied().flatten();
                if let (Some(actual), Some(error)) = (actual, self.error_from(origin, lead)) {
                    let season = season(origin + lead);
                    let forecast = (actual - error + smear_log + season).max(0.0).exp_m1();
                    sum += ((actual + season).exp_m1() - forecast).abs();
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
