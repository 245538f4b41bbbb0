//! How often a group's keys are used, lately.

/// A pause longer than this is no use at all rather than little use, s.
const PAUSE_S: f64 = 600.0;

/// Transactions per second while there are any: as windows go on, half of what was is forgotten.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    half_life_windows: f64,
    transactions: f64,
    seconds: f64,
    last_s: f64,
}

impl Rate {
    /// Begins now; half counts after so many windows.
    pub fn new(half_life_windows: f64, now_s: f64) -> Self {
        Self { half_life_windows: half_life_windows.max(1.0), transactions: 0.0, seconds: 0.0, last_s: now_s }
    }

    /// So many windows, which stand for so many transactions, came since the last time.
    pub fn note(&mut self, windows: u64, transactions: f64, now_s: f64) {
        let kept = (-(windows as f64) / self.half_life_windows).exp2();
        self.transactions = self.transactions * kept + transactions;
        self.seconds = self.seconds * kept + (now_s - self.last_s).clamp(0.0, PAUSE_S);
        self.last_s = now_s;
    }

    /// Transactions per second.
    pub fn per_s(&self) -> f64 {
        self.transactions / self.seconds.max(1.0)
    }

    /// When windows last came.
    pub fn last_s(&self) -> f64 {
        self.last_s
    }
}
