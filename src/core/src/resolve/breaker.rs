//! Circuit breakers: a place that failed several times in a row is left alone for a while, then tried by one caller.

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Failures in a row after which it opens; 0: never.
    pub failures: u32,
    /// How long it stays open the first time, ms; twice as long with every failed try.
    pub pause_ms: f64,
    /// How long at most, ms.
    pub longest_ms: f64,
}

/// May one ask there?
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Admission {
    /// Yes.
    Open,
    /// Yes, to see whether it works again; nobody else may meanwhile.
    Probe,
    /// Not before that time, ms.
    KeptOut(f64),
}

/// The state of one place. Its first state is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Breaker {
    /// Failures since the last success.
    pub failures: u32,
    /// How often it was opened since the last success.
    pub opened: u32,
    /// Nobody asks before that time, ms; 0: it is closed.
    pub until_ms: f64,
}

/// Doublings beyond which a pause is as long as can be.
const MAX_DOUBLINGS: u32 = 30;

impl Breaker {
    /// What [`Breaker::admit`] would say.
    pub fn look(&self, now_ms: f64) -> Admission {
        if self.opened == 0 {
            Admission::Open
        } else if now_ms < self.until_ms {
            Admission::KeptOut(self.until_ms)
        } else {
            Admission::Probe
        }
    }

    /// Asks for admission; whoever probes keeps others out for the time of a pause.
    pub fn admit(&mut self, now_ms: f64, rules: &Rules) -> Admission {
        let admission = self.look(now_ms);
        if admission == Admission::Probe {
            self.until_ms = now_ms + self.pause_ms(rules);
        }
        admission
    }

    /// Whoever probed, and had got this pause for it, has learnt nothing: the next one may try. A later probe keeps
    /// its own pause.
    pub fn released(&mut self, pause_until_ms: f64, now_ms: f64) {
        if self.until_ms == pause_until_ms {
            self.until_ms = self.until_ms.min(now_ms);
        }
    }

    /// It answered.
    pub fn succeeded(&mut self) {
        *self = Breaker::default();
    }

    /// It failed.
    pub fn failed(&mut self, now_ms: f64, rules: &Rules) {
        self.failures = self.failures.saturating_add(1);
        if rules.failures > 0 && self.failures >= rules.failures {
            self.opened = self.opened.saturating_add(1);
            self.until_ms = now_ms + self.pause_ms(rules);
        }
    }

    fn pause_ms(&self, rules: &Rules) -> f64 {
        let doublings = self.opened.saturating_sub(1).min(MAX_DOUBLINGS);
        (rules.pause_ms * f64::from(1_u32 << doublings)).min(rules.longest_ms.max(rules.pause_ms))
    }
}
