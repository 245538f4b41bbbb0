//! Intervals from past errors: adaptive conformal inference (Gibbs and Candès, NeurIPS 2021), per lead.
//!
//! An interval reaches from one quantile of the newest errors to another. Which quantiles, the past decides:
//! every miss moves them outwards, every hit a little inwards, so that the nominal share is covered in the
//! long run whatever the errors do. A change of level, seen by a two-sided CUSUM (Page 1954), makes old errors
//! worthless: most are forgotten, and the quantiles start further out. It watches the errors of one step and
//! those of a longer lead: a model that follows at once is wrong about one bucket only, but what it said long
//! before is wrong for a while.

use std::collections::VecDeque;

use super::{LEADS, Leads};

/// Errors kept per lead, the newest ones.
const KEPT: usize = 144;
/// Errors kept through a change.
const KEPT_THROUGH_CHANGE: usize = 12;
/// How far a miss moves the quantiles.
const RATE: f64 = 0.04;
/// Errors that say what is usual.
const USUAL: usize = 96;
/// The least size of a usual error, on the log scale: below a hundredth of the load differences are no change.
const LEAST_USUAL: f64 = 0.01;
/// An error counts no more than so many usual ones: one spike is no change.
const MOST: f64 = 6.0;
/// The leads whose errors are watched: (lead, drift per step that is no change, sum of drifts that is one), both
/// in usual errors. Errors at longer leads come in rows, so more of them are needed.
const WATCHED: [(usize, f64, f64); 2] = [(1, 0.75, 10.0), (LEADS / 2, 1.0, 20.0)];

/// A two-sided CUSUM.
#[derive(Clone, Debug, Default)]
struct Cusum {
    recent: VecDeque<f64>,
    up: f64,
    down: f64,
}

impl Cusum {
    /// Adds an error; whether that makes a change.
    fn changed(&mut self, error: f64, allowance: f64, alarm: f64) -> bool {
        let usual = usual(&self.recent);
        self.recent.push_back(error);
        if self.recent.len() > USUAL {
            self.recent.pop_front();
        }
        let Some(usual) = usual.map(|usual| usual.max(LEAST_USUAL)) else { return false };
        let scaled = (error / usual).clamp(-MOST, MOST);
        self.up = (self.up + scaled - allowance).max(0.0);
        self.down = (self.down - scaled - allowance).max(0.0);
        let changed = self.up.max(self.down) >= alarm;
        if changed {
            (self.up, self.down) = (0.0, 0.0);
        }
        changed
    }
}

#[derive(Clone, Debug, Default)]
struct Lead {
    /// Actual − forecast, newest last.
    errors: VecDeque<f32>,
    /// The share to be missed that would have missed the nominal share.
    miss: f64,
}

/// The state of all leads.
#[derive(Clone, Debug)]
pub(super) struct Conformal {
    /// The nominal share to be missed.
    nominal: f64,
    leads: Vec<Lead>,
    cusums: [Cusum; WATCHED.len()],
}

impl Conformal {
    /// With intervals that are to cover `level` of what comes.
    pub(super) fn new(level: f64) -> Self {
        let nominal = if level > 0.0 && level < 1.0 { 1.0 - level } else { 0.1 };
        Self {
            nominal,
            leads: vec![Lead { errors: VecDeque::new(), miss: nominal }; LEADS],
            cusums: Default::default(),
        }
    }

    /// Learns the error (actual − forecast, log scale) made at a lead (from 1). True: the series changed.
    pub(super) fn observe(&mut self, lead: usize, error: f64) -> bool {
        let nominal = self.nominal;
        let Some(own) = self.leads.get_mut(lead - 1) else { return false };
        if let Some((below, above)) = own.reach() {
            let missed = error < -below || error > above;
            own.miss = (own.miss + RATE * (nominal - f64::from(u8::from(missed)))).clamp(-0.2, 2.0 * nominal);
        }
        own.errors.push_back(error as f32);
        if own.errors.len() > KEPT {
            own.errors.pop_front();
        }
        let mut changed = false;
        for (cusum, (watched, allowance, alarm)) in self.cusums.iter_mut().zip(WATCHED) {
            changed |= lead == watched && cusum.changed(error, allowance, alarm);
        }
        if changed {
            self.forget();
        }
        changed
    }

    /// Forgets most of what was before a change.
    fn forget(&mut self) {
        for lead in &mut self.leads {
            let surplus = lead.errors.len().saturating_sub(KEPT_THROUGH_CHANGE);
            lead.errors.drain(..surplus);
            lead.miss = lead.miss.min(0.0);
        }
    }

    /// How far the intervals reach below and above the forecasts, on the log scale, never narrower at a
    /// longer lead: that would only be luck.
    pub(super) fn reaches(&self) -> Vec<(f64, f64)> {
        let (mut low, mut high) = (0.0_f64, 0.0_f64);
        let widened = self.leads.iter().map(|lead| {
            let (below, above) = lead.reach().unwrap_or((0.0, 0.0));
            (low, high) = (low.max(below), high.max(above));
            (low, high)
        });
        widened.collect()
    }
}

/// The scale of errors: two thirds are smaller.
fn usual(errors: &VecDeque<f64>) -> Option<f64> {
    if errors.len() < 12 {
        return None;
    }
    let mut sizes: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    let rank = sizes.len() * 2 / 3;
    Some(*sizes.select_nth_unstable_by(rank, f64::total_cmp).1)
}

impl Lead {
    /// How far the interval reaches below and above; None: nothing is known.
    fn reach(&self) -> Option<(f64, f64)> {
        let last = self.errors.len().checked_sub(1)?;
        let mut sorted: Vec<f32> = self.errors.iter().copied().collect();
        sorted.sort_unstable_by(f32::total_cmp);
        // Finite samples: of n errors the k-th smallest leaves k / (n + 1) below.
        let tail = self.miss.max(0.0) / 2.0;
        let rank = ((sorted.len() + 1) as f64 * tail).floor() as usize;
        let low = rank.saturating_sub(1).min(last);
        // Beyond the largest error seen, when even that did not cover enough.
        let beyond = 1.0 + (-self.miss).max(0.0) * 10.0;
        let (low, high) = (f64::from(sorted[low]), f64::from(sorted[last - low]));
        Some(((-low).max(0.0) * beyond, high.max(0.0) * beyond))
    }
}

/// Errors of whole trajectories, newest last: what sampled futures are made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Trajectories(VecDeque<[f32; LEADS]>);

impl Trajectories {
    /// Adds one.
    pub(super) fn push(&mut self, errors: Leads) {
        self.0.push_back(errors.map(|error| error as f32));
        if self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The one `back` before the newest.
    pub(super) fn get(&self, back: usize) -> Option<Leads> {
        let errors = self.0.len().checked_sub(back + 1).and_then(|i| self.0.get(i));
        errors.map(|errors| errors.map(f64::from))
    }
}
