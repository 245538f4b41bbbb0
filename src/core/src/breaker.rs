//! A circuit breaker per node: a few failed checks in a row open it, one success closes it.
//!
//! While it is open nothing is sent to the node but the next check, so that a node which is away costs every
//! statement of ours at most one look at a row.

/// Whether a node is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It is.
    #[default]
    Closed,
    /// It is not, until a check succeeds.
    Open,
}

/// The breaker of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Whether the node is used.
    pub state: State,
    /// Failed checks in a row.
    pub failures: u32,
}

impl Breaker {
    /// After a check; `limit` failures in a row open it (at least one).
    pub const fn after(self, success: bool, limit: u32) -> Breaker {
        if success {
            return Breaker { state: State::Closed, failures: 0 };
        }
        let failures = self.failures.saturating_add(1);
        let limit = if limit == 0 { 1 } else { limit };
        let opens = matches!(self.state, State::Open) || failures >= limit;
        Breaker { state: if opens { State::Open } else { State::Closed }, failures }
    }
}

#[cfg(test)]
mod tests {
    use super::{Breaker, State};

    #[test]
    fn opens_after_some_failures_in_a_row_and_closes_at_once() {
        let mut breaker = Breaker::default();
        for success in [false, false, true, false, false] {
            breaker = breaker.after(success, 3);
        }
        assert_eq!(breaker, Breaker { state: State::Closed, failures: 2 });
        breaker = breaker.after(false, 3);
        assert_eq!(breaker.state, State::Open);
        // A limit that was raised meanwhile does not close it.
        assert_eq!(breaker.after(false, 100).state, State::Open);
        assert_eq!(breaker.after(true, 3), Breaker::default());
        assert_eq!(Breaker::default().after(false, 0).state, State::Open);
    }
}
