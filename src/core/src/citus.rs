//! What Citus is told about shards and nodes, and which Citus that may be.

use std::fmt;

/// A version of Citus, as the extension says: `13.2-1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

/// The oldest Citus that is adopted: the first one that supports PostgreSQL 15.
pub const LEAST: Version = Version { major: 11, minor: 1 };

impl Version {
    /// Reads `major.minor` and whatever follows; None: it is no version.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-', ' ']);
        let mut number = || parts.next()?.parse().ok();
        Some(Self { major: number()?, minor: number()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a shard without any load costs, as a share of the mean of its group: shards that nobody uses are spread
/// by number.
const IDLE_SHARE: f64 = 0.02;

/// The cost of a shard, given its forecast peak and the mean of those of its group that are known. What is not known is
/// taken for the mean, and where nothing is known all shards cost the same.
pub fn shard_cost(peak: Option<f64>, group_mean: Option<f64>) -> f32 {
    let usable = |load: &f64| load.is_finite() && *load >= 0.0;
    let Some(mean) = group_mean.filter(usable).filter(|mean| *mean > 0.0) else { return 1.0 };
    let cost = peak.filter(usable).unwrap_or(mean) + mean * IDLE_SHARE;
    cost.min(f64::from(f32::MAX)) as f32
}

/// What is said of a shard on a node, and of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The shard is there already.
    pub is_there: bool,
    /// The node is being emptied.
    pub draining: bool,
    /// The node does not answer.
    pub is_down: bool,
}

/// Whether a shard may be on a node: nothing goes to one that is being emptied or does not answer, and only the first is
/// left (from the second it could not be copied).
pub const fn is_allowed(seat: Seat) -> bool {
    !seat.draining && (seat.is_there || !seat.is_down)
}

/// How a move stands that Citus switches over: it waits for the locks under which nobody writes, or has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Switch {
    /// It has all of them.
    pub has_locks: bool,
    /// For how long it has been seen to have them, s.
    pub held_s: f64,
    /// The longest that anybody has waited behind it, s; None: nobody waits.
    pub queue_s: Option<f64>,
}

/// Longest that writers queue behind a switch that waits for another writer, beyond `foreshard.max_lock_time`, s.
const QUEUE_S: f64 = 2.0;
/// Longest that a switch holds the locks, beyond the same, s: Citus looks once a second whether the copy has caught up, and what
/// waits on nodes is not seen from here.
const SWITCH_S: f64 = 10.0;

/// Whether a switch is to be broken off, because writers have waited for it long enough.
pub fn gives_way(switch: Switch, max_lock_time_s: f64) -> bool {
    if switch.has_locks {
        return switch.held_s > SWITCH_S + max_lock_time_s;
    }
    switch.queue_s.is_some_and(|queue_s| queue_s > QUEUE_S + max_lock_time_s)
}

/// How often a switch gives way before its move is given up: every time the whole copy is made again.
pub const MOST_GIVEN_WAY: i32 = 6;

/// How long a move rests that this server must not make now, s.
pub const REST_S: f64 = 10.0;

/// How long a move rests that has given way so often, s.
pub fn rest_s(gave_way: i32) -> f64 {
    REST_S * 2_f64.powi(gave_way.clamp(1, 7) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare() {
        assert_eq!(Version::parse("13.2-1"), Some(Version { major: 13, minor: 2 }));
        assert_eq!(Version::parse("11.1.4"), Some(LEAST));
        assert!(Version::parse("11.0-2").is_some_and(|old| old < LEAST));
        assert!(Version::parse("9.5-1").is_some_and(|old| old < LEAST));
        assert_eq!(Version::parse("devel"), None);
        assert_eq!(Version::parse(""), None);
    }

    #[test]
    fn costs_follow_peaks_and_unknown_is_the_mean() {
        assert!((shard_cost(Some(100.0), Some(10.0)) - 100.2).abs() < 1e-4);
        assert!((shard_cost(None, Some(10.0)) - 10.2).abs() < 1e-4);
        assert!(shard_cost(Some(0.0), Some(10.0)) > 0.0);
        assert_eq!(shard_cost(None, None), 1.0);
        assert_eq!(shard_cost(Some(5.0), Some(0.0)), 1.0);
        assert_eq!(shard_cost(Some(f64::NAN), Some(f64::INFINITY)), 1.0);
        assert!(shard_cost(Some(1e300), Some(1.0)).is_finite());
    }

    #[test]
    fn nobody_goes_to_a_sick_or_draining_node() {
        let seat = |is_there, draining, is_down| is_allowed(Seat { is_there, draining, is_down });
        assert!(seat(false, false, false));
        assert!(!seat(true, true, false));
        assert!(!seat(false, false, true));
        assert!(seat(true, false, true));
    }
    #[test]
    fn a_switch_gives_way_to_who_waits_behind_it() {
        let switch = |has_locks, held_s, queue_s| gives_way(Switch { has_locks, held_s, queue_s }, 0.04);
        // Nobody is harmed by one that waits alone.
        assert!(!switch(false, 0.0, None));
        assert!(!switch(false, 0.0, Some(2.0)) && switch(false, 0.0, Some(2.1)));
        // What Citus does under the locks takes a second or two.
        assert!(!switch(true, 3.0, Some(3.0)));
        assert!(switch(true, 10.1, None));
    }

    #[test]
    fn rests_grow() {
        assert_eq!([1, 2, 6].map(rest_s), [10.0, 20.0, 320.0]);
        assert_eq!(rest_s(-5), 10.0);
        assert_eq!(rest_s(i32::MAX), 640.0);
    }
}
