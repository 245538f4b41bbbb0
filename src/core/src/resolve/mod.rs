//! Which chain of data sources leads from one class of resources to another, what it will take, which sources are
//! sick, and how the answers of several places become one.
//!
//! Classes are nodes, data sources are edges. A source is asked at one or more places (servers); what is learnt and
//! whether it is kept out belongs to the pair of source and place.

mod breaker;
mod chain;
mod cost;
mod gather;

pub use breaker::{Admission, Breaker, Rules};
pub use chain::{Chain, Edge, Found, Limits, Step, cheapest};
pub use cost::{Learnt, Prediction, SUMS, Sample, together};
pub use gather::{Answer, Frontier, MAX_BYTES, Resolved, TooMuch, array_literal};

/// What a failure says about the place where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is sick: others will fail there as well.
    Sick,
    /// The place did what it should; this caller's question was refused or could not be answered.
    Refused,
}

/// Tells both apart by the SQLSTATE. What a caller can bring about alone (a key that is no number, a right that he
/// does not have) must not keep a source from everybody else.
pub fn health(sqlstate: &str) -> Health {
    let classes = ["08", "53", "57", "58", "F0", "XX"];
    // 57014 is somebody's cancel or a limit of the session; a time-out of ours is told apart before.
    if sqlstate != "57014" && classes.iter().any(|class| sqlstate.starts_with(class)) {
        Health::Sick
    } else {
        Health::Refused
    }
}

/// The same of an error that was caught in the caller's own session. XX000 stands there for every SQLSTATE that
/// PostgreSQL does not know, so for whatever a function chooses to raise.
pub fn health_here(sqlstate: &str) -> Health {
    if sqlstate == "XX000" { Health::Refused } else { health(sqlstate) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_cannot_make_a_place_sick() {
        for refused in ["42501", "22P02", "42P01", "57014", "28P01", "23505", ""] {
            assert_eq!(health(refused), Health::Refused, "{refused}");
        }
        for sick in ["08006", "57P01", "57P03", "53300", "XX001", "58030"] {
            assert_eq!(health(sick), Health::Sick, "{sick}");
        }
        assert_eq!((health("XX000"), health_here("XX000")), (Health::Sick, Health::Refused));
        assert_eq!(health_here("58030"), Health::Sick);
    }
}
