//! When something that goes on will be done, and when that cannot be said.

/// A round of replaying what was logged, while more was logged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// Entries replayed.
    pub drained: u64,
    /// How long that took, rests included, s.
    pub seconds: f64,
    /// Entries that were logged meanwhile: those that wait now.
    pub pending: u64,
}

impl Round {
    /// Seconds until a round finds no more than `enough` entries and has replayed them; None: at this pace never, or nothing is known.
    pub fn eta_s(&self, enough: u64) -> Option<f64> {
        if self.drained == 0 || self.seconds <= 0.0 || !self.seconds.is_finite() {
            return None;
        }
        let drain_per_s = self.drained as f64 / self.seconds;
        let last_s = self.pending.min(enough) as f64 / drain_per_s;
        if self.pending <= enough {
            return Some(last_s);
        }
        let arrive_per_s = self.pending as f64 / self.seconds;
        let gain_per_s = drain_per_s - arrive_per_s;
        (gain_per_s > 0.0).then(|| (self.pending - enough) as f64 / gain_per_s + last_s)
    }
}
