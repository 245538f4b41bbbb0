//! The steps of a canary: how many of the reads go to the new copy, and when that was enough.
//!
//! At every step the weight stands for a while (the dwell); the first half warms caches, the second is judged:
//! reads that went to the copy against those that could have and, by the toss of a coin, did not.

use crate::latency::{Counts, Slowdown, fails_more, slowdown};
use std::fmt;

/// Steps at most.
const MAX_STEPS: usize = 32;
/// Slow steps after which the canary is given up.
const PATIENCE: u32 = 3;

/// What is wrong with a list of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSteps {
    /// The item.
    pub item: String,
}

impl fmt::Display for BadSteps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" is not a percentage above that before it, up to 100", self.item)
    }
}

impl std::error::Error for BadSteps {}

/// Reads a list of rising percentages ("1, 5, 25, 100") as shares; an empty list is one.
///
/// # Errors
/// The first item that is no number, not above its predecessor or beyond 100, or the one too many (of 32).
pub fn parse_steps(list: &str) -> Result<Vec<f64>, BadSteps> {
    let mut steps: Vec<f64> = Vec::new();
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let bad = || BadSteps { item: item.to_owned() };
        let share = item.parse::<f64>().map_err(|_| bad())? / 100.0;
        let floor = steps.last().copied().unwrap_or(0.0);
        if !(share > floor && share <= 1.0) || steps.len() >= MAX_STEPS {
            return Err(bad());
        }
        steps.push(share);
    }
    Ok(steps)
}

/// What is known at a look.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Eligible reads that stayed with the old copy.
    pub stayed: &'a Counts,
    /// Reads that went to the new one.
    pub routed: &'a Counts,
    /// Look-ups on both copies that did not agree.
    pub differed: u64,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing yet.
    Wait,
    /// Forget the routed reads so far: caches are warm now.
    Measure,
    /// Send this share of the reads to the copy.
    Weigh(f64),
    /// The copies differ.
    Differ,
    /// The copy serves worse.
    GiveUp(Reason),
    /// It serves well.
    Finished,
}

/// Why a canary is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Again and again reads of the copy were slower.
    Slower(Slowdown),
    /// Reads of the copy failed more often.
    Fails,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slower(s) => write!(
                f,
                "reads of the copy are slower: {} of {:.3} ms against {:.3} ms",
                if s.quantile > 0.5 { "99th percentile" } else { "median" },
                s.test_ms,
                s.base_ms
            ),
            Self::Fails => write!(f, "reads of the copy fail more often"),
        }
    }
}

/// A canary under way.
#[derive(Clone, Debug)]
pub struct Canary {
    steps: Vec<f64>,
    at: usize,
    since_ms: f64,
    begun: bool,
    warm: bool,
    slow: u32,
}

impl Canary {
    /// With these shares, not begun yet.
    pub fn new(steps: Vec<f64>) -> Self {
        Self { steps, at: 0, since_ms: 0.0, begun: false, warm: false, slow: 0 }
    }

    fn step(&mut self, now_ms: f64) -> Decision {
        (self.since_ms, self.begun, self.warm) = (now_ms, true, false);
        self.steps.get(self.at).map_or(Decision::Finished, |share| Decision::Weigh(*share))
    }

    /// What to do at `now_ms`. `ratio`: how many times slower is too slow, 0 for never.
    pub fn look(&mut self, now_ms: f64, evidence: &Evidence, dwell_ms: f64, ratio: f64) -> Decision {
        if evidence.differed > 0 {
            return Decision::Differ;
        }
        if !self.begun {
            return self.step(now_ms);
        }
        let stood_ms = now_ms - self.since_ms;
        if !self.warm {
            self.warm = stood_ms >= dwell_ms / 2.0;
            return if self.warm { Decision::Measure } else { Decision::Wait };
        }
        if fails_more(evidence.stayed, evidence.routed) {
            return Decision::GiveUp(Reason::Fails);
        }
        if stood_ms < dwell_ms {
            return Decision::Wait;
        }
        match slowdown(evidence.stayed, evidence.routed, ratio, None) {
            Some(_) if self.slow + 1 < PATIENCE => {
                self.slow += 1;
                self.at = self.at.saturating_sub(1);
            }
            Some(slower) => return Decision::GiveUp(Reason::Slower(slower)),
            None => self.at += 1,
        }
        self.step(now_ms)
    }
}
