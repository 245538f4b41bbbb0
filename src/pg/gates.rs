//! What every statement asks first: whether there is anything at all that it has to look at. Part of the observation region.

use std::sync::atomic::{AtomicU64, Ordering};

/// What every statement of every backend reads and hardly anybody writes: together they have a cache line of their own.
#[repr(C)]
#[derive(Debug)]
pub struct Gates {
    /// Slots that are hot.
    pub(super) hot: AtomicU64,
    /// Canary routes.
    pub(super) route_count: AtomicU64,
    /// Servers that do not answer.
    pub(super) away_count: AtomicU64,
    /// Partitions that are kept from older snapshots.
    pub(super) barrier_count: AtomicU64,
}

/// Nothing is hot, there are no routes, every node answers, and every snapshot sees all: what is seen without shared memory.
pub static CLOSED: Gates = Gates {
    hot: AtomicU64::new(0),
    route_count: AtomicU64::new(0),
    away_count: AtomicU64::new(0),
    barrier_count: AtomicU64::new(0),
};

impl Gates {
    /// Whether any slot of any database is hot: the first gate of key sampling.
    #[inline]
    pub fn any_hot(&self) -> bool {
        self.hot.load(Ordering::Relaxed) > 0
    }

    /// Whether there are routes in any database.
    #[inline]
    pub fn any_route(&self) -> bool {
        self.route_count.load(Ordering::Acquire) > 0
    }

    /// Whether a node of any database does not answer.
    #[inline]
    pub fn any_away(&self) -> bool {
        self.away_count.load(Ordering::Acquire) > 0
    }

    /// Whether a partition of any database is kept from older snapshots.
    #[inline]
    pub fn any_barrier(&self) -> bool {
        self.barrier_count.load(Ordering::Relaxed) > 0
    }
}
