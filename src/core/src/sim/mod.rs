//! A simulated cluster: real forecasts, plans, schedules and phases of moves, against loads that were
//! recorded or composed.
//!
//! It asks of the whole chain what no unit test can: does it act before a peak, does it keep still, does a
//! wrong forecast do harm? Everything is deterministic. Time goes in ticks. In a tick moves make progress
//! (each through [`crate::phase`]) and cost load on both of their shards, every shard serves its slots, and
//! what exceeds a shard's capacity is overload; then the [`Policy`] sees the loads so far and orders moves.

mod cluster;
mod compose;
mod foresight;
mod moving;
mod rivals;

pub use cluster::{Report, run};
pub use compose::{Composition, Shape, by_keys, by_series};
pub use foresight::{Foreshard, Knowledge};
pub use rivals::{Clay, Never, Reactive};

use crate::placement::Link;

/// The loads of all slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Length of a tick, s.
    pub tick_s: u32,
    /// Slots.
    pub slots: usize,
    /// Load of every slot in every tick, tick by tick, cost units/s.
    pub loads: Vec<f32>,
}

impl Trace {
    /// Ticks.
    pub fn ticks(&self) -> usize {
        self.loads.len() / self.slots.max(1)
    }

    /// Loads of all slots in a tick.
    pub fn at(&self, tick: usize) -> &[f32] {
        self.loads.get(tick * self.slots..(tick + 1) * self.slots).unwrap_or(&[])
    }

    /// Mean load of a slot over some ticks, cost units/s; 0 when there are none.
    pub fn mean(&self, slot: usize, ticks: std::ops::Range<usize>) -> f64 {
        let ticks = ticks.start..ticks.end.min(self.ticks());
        let count = ticks.len().max(1);
        ticks.map(|tick| f64::from(self.loads[tick * self.slots + slot])).sum::<f64>() / count as f64
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Incident {
    /// From a tick on a shard is to be emptied.
    Drain {
        /// Tick.
        tick: usize,
        /// Shard.
        shard: usize,
    },
    /// From a tick on a shard is gone: replicas on the other shards, in turn, serve its slots.
    Loss {
        /// Tick.
        tick: usize,
        /// Shard.
        shard: usize,
    },
    /// Between two ticks moves are slower.
    SlowCopies {
        /// First tick.
        from: usize,
        /// First tick in which they are as fast as before.
        until: usize,
        /// Times as slow.
        factor: f64,
    },
}

/// How moves go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moves {
    /// Bytes per second of one.
    pub bytes_per_s: f64,
    /// What each takes whatever its size, s.
    pub fixed_s: f64,
    /// What moving one MiB costs on each of the two shards, cost units.
    pub cost_per_mib: f64,
    /// At the same time.
    pub concurrent: usize,
}

/// A cluster and what happens to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Loads.
    pub trace: Trace,
    /// Shard of each slot at the beginning.
    pub start: Vec<usize>,
    /// What each shard can carry, cost units/s.
    pub capacities: Vec<f64>,
    /// Size of each slot.
    pub bytes: Vec<u64>,
    /// Slots that are used together.
    pub links: Vec<Link>,
    /// What goes wrong.
    pub incidents: Vec<Incident>,
    /// How moves go.
    pub moves: Moves,
    /// Ticks in which loads are only watched; overload is counted after them.
    pub warm_up_ticks: usize,
}

/// A shard as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardState {
    /// What it can carry, cost units/s.
    pub capacity: f64,
    /// It is to be emptied.
    pub draining: bool,
    /// It is gone.
    pub lost: bool,
}

/// What a policy may know.
pub struct View<'a> {
    /// The cluster; of its loads only the ticks before [`Self::now`] (an oracle looks further).
    pub scene: &'a Scene,
    /// Ticks that are over.
    pub now: usize,
    /// Shard of each slot.
    pub place: &'a [usize],
    /// Where each slot is moving to.
    pub moving: &'a [Option<usize>],
    /// The tick in which each slot arrived.
    pub moved_at: &'a [Option<usize>],
    /// Shards.
    pub shards: &'a [ShardState],
    /// Whether orders are carried out: not while loads are only watched.
    pub acts: bool,
}

impl View<'_> {
    /// Mean load of a slot over the last ticks, cost units/s.
    pub fn recent(&self, slot: usize, ticks: usize) -> f64 {
        self.scene.trace.mean(slot, self.now.saturating_sub(ticks)..self.now)
    }

    /// The same of all slots of each shard; those that move count where they go.
    pub fn recent_shards(&self, ticks: usize) -> Vec<f64> {
        let mut loads = vec![0.0; self.shards.len()];
        for (slot, (shard, heads_for)) in self.place.iter().zip(self.moving).enumerate() {
            loads[heads_for.unwrap_or(*shard)] += self.recent(slot, ticks);
        }
        loads
    }

    /// Moves that could begin now.
    pub fn free_moves(&self) -> usize {
        let busy = self.moving.iter().flatten().count();
        self.scene.moves.concurrent.saturating_sub(busy)
    }

    /// Whether a shard may be moved to.
    pub fn is_target(&self, shard: usize) -> bool {
        self.shards.get(shard).is_some_and(|shard| !shard.draining && !shard.lost)
    }
}

/// A move to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// The slot.
    pub slot: usize,
    /// Where to.
    pub to: usize,
}

/// Who decides on moves.
pub trait Policy {
    /// Its name.
    fn name(&self) -> &str;

    /// Moves to begin now, most important first; what exceeds [`View::free_moves`] is forgotten.
    fn decide(&mut self, view: &View) -> Vec<Order>;
}

/// The thrashing of a shard's load share over time: 0 for a monotone series.
///
/// With `u` and `d` the total upward and downward variation, `alpha = (min / max)^0.8` of them and
/// `alpha * (u + d) + (1 - alpha) * min(u, d)`, divided by the range of the series. The definition
/// is that of the project's `facts.md`.
pub fn thrash(shares: &[f64]) -> f64 {
    let (mut up, mut down) = (0.0_f64, 0.0_f64);
    for (previous, next) in shares.iter().zip(shares.iter().skip(1)) {
        up += (next - previous).max(0.0);
        down += (previous - next).max(0.0);
    }
    let low = shares.iter().copied().fold(f64::INFINITY, f64::min);
    let high = shares.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let most = up.max(down);
    if most <= 0.0 || high <= low {
        return 0.0;
    }
    let least = up.min(down);
    let alpha = (least / most).powf(0.8);
    (alpha * (up + down) + (1.0 - alpha) * least) / (high - low)
}
