//! The field of candidates, the ones that a slot is forecast by, and what their errors say.

use std::collections::VecDeque;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::conformal::{Conformal, Trajectories};
use super::history::{History, to_log};
use super::kernel::Kernel;
use super::linear::{Ridge, Spar};
use super::median_regression::MedianRegression;
use super::mstl::Mstl;
use super::smoothing::{HoltWinters, Level, SamePhase};
use super::trial::{Scores, Together, Trial, weighted_mean};
use super::{
    CAP_FACTOR, Candidate, ForecastOptions, ForecastPoint, Forecaster, LEADS, Leads, MAX_LEADS, Regressor,
};

/// Known buckets below which there is nothing to choose by.
const MIN_KNOWN: usize = 4 * LEADS;
/// The most buckets of the history that candidates are tried on.
const MAX_TRIED: usize = 42 * LEADS;
/// Candidates that stay in the running after the fit.
const MAX_CANDIDATES: usize = 7;

/// How a candidate is made; the same again once it is known to be good.
#[derive(Clone, Copy, Debug)]
enum Recipe {
    Naive,
    Level,
    /// Name, period, seasons, shifted.
    SamePhase(&'static str, usize, usize, bool),
    HoltWinters(usize),
    /// Periods, relative, ridge, name.
    Ridge([Option<usize>; 2], bool, f64, &'static str),
    Spar(usize),
    Mstl(usize),
    /// Period, with regressors, name.
    MedianRegression(usize, bool, &'static str),
    /// Relative, name.
    Kernel(bool, &'static str),
}

/// Ridge of the regressions, as a share of the features' mean variance.
const RIDGE: f64 = 0.02;
/// The same for series that follow themselves so closely that it would only blur them.
const LOOSE: f64 = 0.0002;
/// Bandwidth of the kernel regressions, as a share of the usual distance.
const BANDWIDTH: f32 = 0.5;

impl Recipe {
    /// The name of what it makes.
    fn name(self) -> &'static str {
        match self {
            Recipe::Naive => "naive",
            Recipe::Level => "level",
            Recipe::HoltWinters(_) => "holt_winters",
            Recipe::Spar(_) => "spar",
            Recipe::Mstl(_) => "mstl",
            Recipe::SamePhase(name, ..)
            | Recipe::Ridge(.., name)
            | Recipe::MedianRegression(.., name)
            | Recipe::Kernel(_, name) => name,
        }
    }

    /// See [`Scores`]: models that are known to be a good deal worse than others on most series must prove
    /// that they are not on this one.
    fn handicap(self) -> f64 {
        match self {
            Recipe::Ridge(_, true, ..) | Recipe::Mstl(_) | Recipe::MedianRegression(..) => 1.0,
            Recipe::Ridge(_, false, ..) | Recipe::Spar(_) => 1.02,
            Recipe::HoltWinters(_) | Recipe::Level | Recipe::Naive => 1.05,
            Recipe::Kernel(..) | Recipe::SamePhase(..) => 1.1,
        }
    }

    /// Everything that may suit a history.
    fn all(history: &History) -> Vec<Recipe> {
        let mut all = vec![
            Recipe::Naive,
            Recipe::Level,
            Recipe::Kernel(false, "kernel"),
            Recipe::Kernel(true, "kernel_relative"),
        ];
        let day = history.day.filter(|day| history.len() >= 3 * day);
        // A day of the last buckets is all that these look at, and those below look at it, too.
        if day != Some(LEADS) {
            all.push(Recipe::Ridge([None, None], false, RIDGE, "ridge"));
            all.push(Recipe::Ridge([None, None], true, RIDGE, "ridge_relative"));
        }
        let Some(day) = day else { return all };
        let week = 7 * day;
        all.extend([
            Recipe::SamePhase("same_time_yesterday", day, 1, false),
            Recipe::SamePhase("same_time", day, 5, false),
            Recipe::SamePhase("same_time_shifted", day, 3, true),
            Recipe::SamePhase("same_time_last_week", week, 1, false),
            Recipe::SamePhase("same_time_of_week", week, 3, false),
            Recipe::SamePhase("same_time_of_week_shifted", week, 2, true),
            Recipe::HoltWinters(day),
            Recipe::Ridge([Some(day), None], false, RIDGE, "ridge_day"),
            Recipe::Ridge([Some(day), None], true, RIDGE, "ridge_day_relative"),
            Recipe::Ridge([Some(day), Some(week)], false, RIDGE, "ridge_week"),
            Recipe::Ridge([Some(day), Some(week)], true, RIDGE, "ridge_week_relative"),
            Recipe::Ridge([Some(day), None], true, LOOSE, "ridge_day_loose"),
            Recipe::Ridge([Some(day), Some(week)], true, LOOSE, "ridge_week_loose"),
            Recipe::Spar(day),
            Recipe::Mstl(day),
            Recipe::MedianRegression(day, false, "median_regression"),
            Recipe::MedianRegression(day, true, "with_regressors"),
        ]);
        all
    }

    /// The candidate, fitted on the first `end` buckets; None when they are too few.
    fn make(self, history: &History, end: usize) -> Option<Box<dyn Candidate>> {
        Some(match self {
            Recipe::Naive => Box::new(Level { name: "naive", alpha: 1.0 }),
            Recipe::Level => Box::new(Level::fit(history, end / 3, end)),
            Recipe::SamePhase(name, period, seasons, shifted) => {
                // Once around is needed to know it, and once more to be tried.
                if end < (seasons + 1) * period {
                    return None;
                }
                Box::new(SamePhase { name, period, seasons, shifted })
            }
            Recipe::HoltWinters(period) => Box::new(HoltWinters::fit(history, end, period)?),
            Recipe::Ridge(periods, relative, ridge, name) => {
                let periods: Vec<usize> = periods.into_iter().flatten().collect();
                Box::new(Ridge::fit(history, end, &periods, relative, ridge, name)?)
            }
            Recipe::Mstl(period) => Box::new(Mstl::fit(history, end, period)?),
            Recipe::MedianRegression(period, regressors, name) => {
                Box::new(MedianRegression::fit(history, end, period, regressors, name)?)
            }
            Recipe::Spar(period) => Box::new(Spar::fit(history, end, period, RIDGE)?),
            Recipe::Kernel(relative, name) => Box::new(Kernel::fit(history, end, relative, BANDWIDTH, name)?),
        })
    }
}

/// What past errors say.
struct Record {
    conformal: Conformal,
    trajectories: Trajectories,
    /// To be added to the median on the log scale to get the mean.
    smear_log: f64,
    mae: f64,
}

impl Record {
    /// Of the back-test.
    fn new(history: &History, trial: &Trial, together: &[Together], interval_level: f64) -> Self {
        let mut record = Self {
            conformal: Conformal::new(interval_level),
            trajectories: Trajectories::default(),
            smear_log: 0.0,
            mae: 0.0,
        };
        let (mut exps, mut one_steps) = (0.0, 0_u32);
        let (mut sum, mut count) = (0.0, 0_u32);
        for (origin, forecast) in trial.chosen(together) {
            let (mut errors, mut known, mut last) = ([0.0; LEADS], 0, 0.0);
            for (index, forecast) in forecast.iter().enumerate() {
                let at = origin + index;
                errors[index] = last;
                let Some(actual) = history.logs.get(at).filter(|_| history.known[at]) else { continue };
                last = actual - forecast;
                errors[index] = last;
                known += 1;
                record.conformal.observe(index + 1, actual - forecast);
                if index == 0 {
                    (exps, one_steps) = (exps + (actual - forecast).min(20.0).exp(), one_steps + 1);
                }
                sum += (actual.exp_m1() - forecast.exp_m1()).abs();
                count += 1;
            }
            if known * 2 > LEADS {
                record.trajectories.push(errors);
            }
        }
        if one_steps > 0 {
            record.smear_log = (exps / f64::from(one_steps)).clamp(0.5, 2.0).ln();
        }
        record.mae = sum / f64::from(count.max(1));
        record
    }
}

/// A forecast whose buckets come now, on the log scale.
struct Pending {
    /// Buckets known when it was made.
    origin: usize,
    chosen: Leads,
    /// Of each candidate.
    all: Vec<[f32; LEADS]>,
}

/// The chosen candidates at work.
pub(super) struct Field {
    history: History,
    candidates: Vec<Box<dyn Candidate>>,
    scores: Scores,
    /// Per lead the candidates whose mean is taken, as of now.
    together: Vec<Together>,
    /// What was forecast at the last [`LEADS`] buckets.
    pending: VecDeque<Pending>,
    record: Record,
    /// Highest exponent a forecast may have.
    cap_log: f64,
    changed: bool,
}

impl Field {
    /// Fits; None when the history is too short to choose by.
    pub(super) fn fit(history: History, options: &ForecastOptions) -> Option<Self> {
        if history.count_known() < MIN_KNOWN {
            return None;
        }
        let tried = (history.len() / 4).clamp(LEADS, MAX_TRIED);
        let cut = history.len() - tried;
        // What is not known can neither be forecast well nor badly.
        if history.known[cut..].iter().filter(|known| **known).count() * 2 < tried.min(4 * LEADS) {
            return None;
        }
        let allowed = |recipe: &Recipe| {
            options.models.is_empty() || options.models.iter().any(|name| name == recipe.name())
        };
        let tested = Recipe::all(&history).into_iter().filter(allowed);
        let tested = tested.filter_map(|recipe| Some((recipe, recipe.make(&history, cut)?)));
        let (recipes, tested): (Vec<Recipe>, Vec<_>) = tested.unzip();
        if tested.is_empty() {
            return None;
        }
        let trial = Trial::new(&history, &tested, cut);
        let scores = trial.scores(recipes.iter().map(|recipe| recipe.handicap()).collect());
        let record = Record::new(&history, &trial, &scores.together(), options.interval_level);
        // The best few stay, fitted on everything.
        let (kept, scores) = scores.best(MAX_CANDIDATES);
        let mut tested: Vec<Option<Box<dyn Candidate>>> = tested.into_iter().map(Some).collect();
        let fitted = kept.into_iter().filter_map(|index| {
            recipes[index].make(&history, history.len()).or_else(|| tested[index].take())
        });
        let candidates: Vec<Box<dyn Candidate>> = fitted.collect();
        let highest = history.logs.iter().copied().fold(0.0, f64::max);
        let cap_log = (highest.exp_m1() * CAP_FACTOR).ln_1p();
        let (together, pending) = (scores.together(), VecDeque::new());
        let mut field =
            Self { history, candidates, scores, together, pending, record, cap_log, changed: false };
        field.note_forecast();
        Some(field)
    }

    /// What each candidate forecasts for the buckets after `logs`, and the mean of the chosen ones, on the
    /// log scale.
    fn predict(&self, logs: &[f64]) -> (Vec<Leads>, Leads) {
        let all: Vec<Leads> = self.candidates.iter().map(|candidate| candidate.predict(logs)).collect();
        let chosen = std::array::from_fn(|lead| {
            weighted_mean(&self.together[lead], |which| all[which][lead].clamp(0.0, self.cap_log))
        });
        (all, chosen)
    }

    fn note_forecast(&mut self) {
        let (all, chosen) = self.predict(&self.history.logs);
        let all = all.into_iter().map(|leads| leads.map(|log| log as f32)).collect();
        self.pending.push_back(Pending { origin: self.history.len(), chosen, all });
        if self.pending.len() > LEADS {
            self.pending.pop_front();
        }
    }

    fn observe(&mut self, value: Option<f64>) {
        let log = to_log(value);
        self.history.push(log);
        let end = self.history.len();
        self.scores.age(1);
        if let Some(actual) = log {
            self.cap_log = self.cap_log.max((actual.exp_m1() * CAP_FACTOR).ln_1p());
            for Pending { origin, chosen, all } in &self.pending {
                let lead = end - origin;
                self.changed |= self.record.conformal.observe(lead, actual - chosen[lead - 1]);
                for (candidate, leads) in all.iter().enumerate() {
                    self.scores.add(candidate, lead, f64::from(leads[lead - 1]), actual);
                }
            }
            self.together = self.scores.together();
        }
        if let Some(Pending { origin, chosen, .. }) = self.pending.front().filter(|p| end - p.origin == LEADS)
        {
            let (logs, known) = (&self.history.logs[*origin..], &self.history.known[*origin..]);
            let mut last = 0.0;
            let errors = std::array::from_fn(|lead| {
                last = if known[lead] { logs[lead] - chosen[lead] } else { last };
                last
            });
            if known.iter().filter(|known| **known).count() * 2 > LEADS {
                self.record.trajectories.push(errors);
            }
        }
        self.note_forecast();
    }

    /// Medians of the next `leads` buckets on the log scale; beyond [`LEADS`] forecasts stand on forecasts.
    fn medians(&self, leads: usize) -> Vec<f64> {
        let first = match self.pending.back() {
            Some(pending) => pending.chosen,
            None => self.predict(&self.history.logs).1,
        };
        let mut medians = first.to_vec();
        if leads > LEADS {
            let mut logs = self.history.logs.clone();
            logs.extend(first);
            while medians.len() < leads {
                let next = self.predict(&logs).1;
                logs.extend(next);
                medians.extend(next);
            }
        }
        medians.truncate(leads);
        medians
    }

    /// A future around the medians of its leads: blocks of errors as they really followed one another; a further block
    /// starts where the last ended.
    fn path(&self, medians: &[f64], seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut path = Vec::with_capacity(medians.len());
        let mut carried = 0.0;
        for block in medians.chunks(LEADS) {
            let back = rng.random_range(0..self.record.trajectories.len().max(1));
            let errors = self.record.trajectories.get(back);
            for (index, median) in block.iter().enumerate() {
                path.push(self.value(median + carried + errors.map_or(0.0, |errors| errors[index])));
            }
            carried += errors.map_or(0.0, |errors| errors[LEADS - 1]);
        }
        path
    }

    fn value(&self, log: f64) -> f64 {
        log.clamp(0.0, self.cap_log).exp_m1()
    }
}

impl Forecaster for Field {
    fn name(&self) -> String {
        let middle = &self.together[LEADS / 2 - 1];
        let names: Vec<&str> = middle.iter().map(|(which, _)| self.candidates[*which].name()).collect();
        match names.as_slice() {
            [name] => (*name).to_string(),
            names => format!("mean({})", names.join(", ")),
        }
    }

    fn forecast(&self, leads: usize) -> Vec<ForecastPoint> {
        let leads = leads.min(MAX_LEADS);
        let reaches = self.record.conformal.reaches();
        let points = self.medians(leads).into_iter().enumerate().map(|(index, median)| {
            let growth = ((index + 1) as f64 / LEADS as f64).max(1.0).sqrt();
            let (below, above) = reaches.get(index.min(LEADS - 1)).copied().unwrap_or_default();
            let (lower, upper) = (self.value(median - below * growth), self.value(median + above * growth));
            let mean = self.value(median + self.record.smear_log).clamp(lower, upper);
            ForecastPoint {
                at_s: self.history.clock.at_s(self.history.len() + index),
                mean,
                median: self.value(median),
                lower,
                upper,
            }
        });
        points.collect()
    }

    fn sample_path(&self, leads: usize, seed: u64) -> Vec<f64> {
        self.path(&self.medians(leads.min(MAX_LEADS)), seed)
    }

    fn sample_paths(&self, leads: usize, seeds: &[u64]) -> Vec<Vec<f64>> {
        // Those of many leads take a while.
        let medians = self.medians(leads.min(MAX_LEADS));
        seeds.iter().map(|seed| self.path(&medians, *seed)).collect()
    }

    fn history_buckets(&self) -> usize {
        self.history.count_known()
    }

    fn mae(&self) -> f64 {
        self.record.mae
    }

    fn extend(&mut self, values: &[Option<f64>]) {
        values.iter().for_each(|value| self.observe(*value));
    }

    fn has_changed(&self) -> bool {
        self.changed
    }

    fn tell(&mut self, regressors: &[Arc<Regressor>]) {
        if self.history.regressors.len() == 0 {
            return;
        }
        self.history.regressors = self.history.regressors.told(regressors);
        self.candidates.iter_mut().for_each(|candidate| candidate.tell(&self.history.regressors));
        // What was forecast last was forecast by what was known then.
        if self.pending.pop_back().is_some() {
            self.note_forecast();
        }
    }
}
