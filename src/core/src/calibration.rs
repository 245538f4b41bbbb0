//! Whether confidence is earned: what became of predictions that were made with a known confidence.
//!
//! Of many steps recommended at confidence `c` about `c` should have paid. The share of sampled futures in which
//! a step pays is only the first word on that: a planner picks what looks best, and what looks best is lucky more
//! often than not. So what is *stated* is that share corrected by what became of earlier steps with about the same
//! share. When clearly fewer paid than was stated, trust is withdrawn, and it comes back once the newest ones are
//! as good as stated again.

use std::collections::VecDeque;

use crate::placement::Step;

/// Outcomes that are looked at, the newest ones.
pub const WINDOW: usize = 40;
/// Outcomes below which nothing is said.
pub const LEAST: usize = 6;
/// Standard deviations of chance that a shortfall must exceed to withdraw trust.
const SURE: f64 = 3.0;
/// The shortfall below which it is never withdrawn, as a share of all.
const SHORTFALL: f64 = 0.15;
/// The shortfall at which it comes back.
const RECOVERED: f64 = 0.05;

/// How far the raw confidences of earlier steps may be from that of the one in question to count, half of one each.
const SIMILAR: f64 = 0.15;
/// How many outcomes the raw confidence itself counts as.
const PRIOR: f64 = 4.0;

/// What became of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Share of the sampled futures in which it paid.
    pub raw: f64,
    /// The confidence it was recommended with.
    pub stated: f64,
    /// It was recommended for what was only foreseen, not for what was there already.
    pub foreseen: bool,
    /// Whether it paid.
    pub paid: bool,
}

/// What the outcomes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Too few outcomes.
    Unknown,
    /// About as many paid as were said to.
    Earned,
    /// Clearly fewer paid.
    Withdrawn,
}

impl Trust {
    /// The machine-readable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Earned => "earned",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// The newest outcomes.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// All of them, behind what is stated.
    all: VecDeque<Judged>,
    /// Of steps that were foreseen, behind trust.
    foreseen: VecDeque<Judged>,
    withdrawn: bool,
}

impl Calibration {
    /// Adds what became of a step.
    pub fn observe(&mut self, judged: Judged) {
        keep(&mut self.all, judged);
        if !judged.foreseen {
            return;
        }
        keep(&mut self.foreseen, judged);
        let n = self.foreseen.len();
        if n < LEAST {
            return;
        }
        let short = self.expected() - self.paid();
        if self.withdrawn {
            self.withdrawn = short > RECOVERED;
        } else {
            // Even a sure thing may fail now and then, so the spread of one outcome is never 0.
            let spread: f64 = self.foreseen.iter().map(|o| (o.stated * (1.0 - o.stated)).max(0.05)).sum();
            self.withdrawn = short > SHORTFALL && short * n as f64 > SURE * spread.sqrt();
        }
    }

    /// The confidence to state for a step that pays in the share `raw` of the sampled futures.
    pub fn stated(&self, raw: f64) -> f64 {
        let raw = raw.clamp(0.0, 1.0);
        let (mut paid, mut all) = (PRIOR * raw, PRIOR);
        for judged in &self.all {
            let near = (-((judged.raw - raw) / SIMILAR).powi(2) * std::f64::consts::LN_2).exp();
            paid += near * f64::from(u8::from(judged.paid));
            all += near;
        }
        paid / all
    }

    /// How many outcomes of foreseen steps are known, [`WINDOW`] at most.
    pub fn len(&self) -> usize {
        self.foreseen.len()
    }

    /// Whether no such outcome is known.
    pub fn is_empty(&self) -> bool {
        self.foreseen.is_empty()
    }

    /// Mean confidence stated for them.
    pub fn expected(&self) -> f64 {
        self.foreseen.iter().map(|judged| judged.stated).sum::<f64>() / self.foreseen.len().max(1) as f64
    }

    /// Share of them that paid.
    pub fn paid(&self) -> f64 {
        self.foreseen.iter().filter(|judged| judged.paid).count() as f64 / self.foreseen.len().max(1) as f64
    }

    /// What they say.
    pub fn trust(&self) -> Trust {
        match (self.foreseen.len() < LEAST, self.withdrawn) {
            (true, _) => Trust::Unknown,
            (false, false) => Trust::Earned,
            (false, true) => Trust::Withdrawn,
        }
    }
}

fn keep(outcomes: &mut VecDeque<Judged>, judged: Judged) {
    outcomes.push_back(judged);
    if outcomes.len() > WINDOW {
        outcomes.pop_front();
    }
}

/// A step proves itself by the present load if its target ends up this share below what its source is at.
const PROVEN: f64 = 0.05;
/// Utilisation from which a shard is in distress.
pub const DISTRESS: f64 = 0.9;
/// Confidence from which a step is as likely to pay as not.
const EVEN: f64 = 0.5;
/// Steps of a lower share of futures are not followed up: nobody would take them.
pub const NOTED: f64 = 0.3;

/// What the two shards of a step are at now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Present {
    /// Utilisation of the shard it leaves.
    pub from: f64,
    /// Utilisation of the shard it goes to, with it.
    pub to_after: f64,
    /// The first is to be emptied.
    pub drains: bool,
    /// Forecasts of what is on the two are to be relied on ([`crate::coverage::is_foreseeable`]).
    pub foreseeable: bool,
    /// All that is on the two has futures, so that the confidence of the step means something.
    pub has_odds: bool,
}

impl Present {
    fn says_it_helps(self) -> bool {
        self.drains && self.to_after <= 1.0 || self.to_after < self.from * (1.0 - PROVEN)
    }
}

/// Whether a step relieves a shard that is all but beyond its capacity at this moment: that can wait neither for
/// foresight nor for a quiet hour.
pub fn relieves_distress(now: Present) -> bool {
    // An overload that is only carried elsewhere is relieved by nothing.
    now.says_it_helps() && now.from >= DISTRESS && now.to_after <= 1.0 && !now.drains
}

/// Whether a step may be taken without anybody being asked.
///
/// A shard in distress is relieved without much confidence, if the present load says that it helps and it is as likely to pay as not,
/// or that cannot be said (where all that comes is noise, some shard is always in distress, and moves only add to it); where forecasts are not
/// to be relied on only once it has been overloaded for a while, because nothing else says that it will last. Else the
/// stated confidence must be `least` or more, and as long as trust is not earned, or forecasts of what is on the two
/// shards are not to be relied on, the present load must say so, too: what is only foreseen waits.
pub fn permission(calibration: &Calibration, step: &Step, now: Present, least: f64) -> bool {
    let stated = calibration.stated(step.confidence);
    let likely = stated >= EVEN || !now.has_odds;
    if relieves_distress(now) && (now.foreseeable || !step.foreseen) && likely {
        return true;
    }
    let earned = calibration.trust() == Trust::Earned && now.foreseeable;
    let trusted = earned || now.says_it_helps() && !step.foreseen;
    stated >= least && trusted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(stated: f64, paid: bool) -> Judged {
        Judged { raw: stated, stated, foreseen: true, paid }
    }

    #[test]
    fn trust_is_earned_lost_and_earned_again() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.trust(), Trust::Unknown);
        for i in 0..20 {
            calibration.observe(judged(0.9, i % 10 != 0));
        }
        assert_eq!(calibration.trust(), Trust::Earned);
        for _ in 0..8 {
            calibration.observe(judged(0.9, false));
        }
        assert_eq!(calibration.trust(), Trust::Withdrawn);
        for i in 0..WINDOW {
            calibration.observe(judged(0.9, i % 10 != 0));
        }
        assert_eq!(calibration.trust(), Trust::Earned);
        assert_eq!(calibration.len(), WINDOW);
    }

    fn step(confidence: f64, foreseen: bool) -> Step {
        Step {
            segment: 1,
            from: 0,
            to: 1,
            benefit: 1.0,
            confidence,
            foreseen,
            peak_before: 1.5,
            peak_after: 1.2,
            reason: String::new(),
        }
    }

    #[test]
    fn foresight_acts_once_it_is_trusted_and_distress_at_once() {
        let mut calibration = Calibration::default();
        let quiet = Present { from: 0.3, to_after: 0.4, drains: false, foreseeable: true, has_odds: true };
        let busy = Present { from: 0.6, to_after: 0.4, drains: false, foreseeable: true, has_odds: true };
        let distress = Present { from: 1.1, to_after: 0.7, drains: false, foreseeable: true, has_odds: true };
        assert!(!permission(&calibration, &step(1.0, true), quiet, 0.7), "foresight is not known to be good");
        assert!(permission(&calibration, &step(1.0, false), busy, 0.7), "the present says so as well");
        assert!(!permission(&calibration, &step(0.5, false), busy, 0.7));
        assert!(permission(&calibration, &step(0.5, false), distress, 0.7));
        assert!(!permission(&calibration, &step(0.4, false), distress, 0.7), "it will hardly pay");
        assert!(permission(&calibration, &step(0.0, false), Present { has_odds: false, ..distress }, 0.7));
        assert!(!permission(&calibration, &step(1.0, false), Present { to_after: 1.1, ..distress }, 0.7));
        (0..LEAST).for_each(|_| calibration.observe(judged(0.9, true)));
        assert!(permission(&calibration, &step(1.0, true), quiet, 0.7));
        let unreliable = |now: Present| Present { foreseeable: false, ..now };
        assert!(
            !permission(&calibration, &step(1.0, true), unreliable(busy), 0.7),
            "forecasts do not cover what comes"
        );
        assert!(permission(&calibration, &step(1.0, false), unreliable(busy), 0.7));
        assert!(permission(&calibration, &step(0.5, false), unreliable(distress), 0.7));
        assert!(!permission(&calibration, &step(1.0, true), unreliable(distress), 0.7), "it may be a flash");
        (0..WINDOW).for_each(|_| calibration.observe(judged(0.9, false)));
        assert!(!permission(&calibration, &step(1.0, true), quiet, 0.7));
        assert!(!permission(&calibration, &step(1.0, true), distress, 0.7), "such steps have never paid");
        assert!(permission(&calibration, &step(0.1, true), Present { has_odds: false, ..distress }, 0.7));
    }

    #[test]
    fn what_was_there_already_earns_no_trust_in_foresight() {
        let mut calibration = Calibration::default();
        let present = |paid| Judged { foreseen: false, ..judged(0.9, paid) };
        (0..WINDOW).for_each(|_| calibration.observe(present(true)));
        assert_eq!(calibration.trust(), Trust::Unknown);
        assert!(calibration.stated(0.5) > 0.5, "and yet something is known of confidence");
        (0..LEAST).for_each(|_| calibration.observe(judged(0.9, false)));
        assert_eq!(calibration.trust(), Trust::Withdrawn);
        (0..WINDOW).for_each(|_| calibration.observe(present(true)));
        assert_eq!(calibration.trust(), Trust::Withdrawn);
    }

    #[test]
    fn modest_confidence_that_is_right_about_itself_is_trusted() {
        let mut calibration = Calibration::default();
        for i in 0..40 {
            calibration.observe(judged(0.5, i % 2 == 0));
        }
        assert_eq!(calibration.trust(), Trust::Earned);
    }

    #[test]
    fn what_is_stated_becomes_what_comes_true() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.stated(0.9), 0.9);
        for i in 0..200 {
            let stated = calibration.stated(0.95);
            calibration.observe(Judged { raw: 0.95, stated, foreseen: true, paid: i % 5 < 3 });
        }
        // Three of five, whatever the futures say.
        assert!((calibration.stated(0.95) - 0.6).abs() < 0.05, "{}", calibration.stated(0.95));
        assert_eq!(calibration.trust(), Trust::Earned);
        // Of quite other steps that says little.
        assert!(calibration.stated(0.3) < 0.4);
    }
}
