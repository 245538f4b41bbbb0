//! How much measuring may cost: beyond `foreshard.observe_budget` it is thinned out.

use crate::pg::{guc, usage};
use foreshard_core::frames::{Amount, Amounts};

/// Samples between two looks at the budget.
const LOOK_EVERY: u32 = 64;
/// Sampling is never thinned out more than this.
const MAX_THINNING: u32 = 1024;
/// A budget of all of the time, per cent, is never exceeded.
const ALL: f64 = 100.0;
/// One in so many measured trigger calls also measures memory, which takes microseconds and leaves caches
/// cold: a call of 11 µs was seen to take 20.
const MEMORY_EVERY: u32 = 8;

/// What this session's measuring has taken.
#[derive(Debug)]
pub(super) struct Budget {
    overhead_ns: u64,
    reported_ns: u64,
    looked_overhead_ns: u64,
    looked_cpu_ns: u64,
    events: u32,
    memory_turn: u32,
    thinning: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            overhead_ns: 0,
            reported_ns: 0,
            looked_overhead_ns: 0,
            looked_cpu_ns: usage::cpu_ns(),
            events: 0,
            memory_turn: 0,
            thinning: 1,
        }
    }
}

impl Budget {
    /// Time spent on measuring so far, ns.
    pub fn overhead_ns(&self) -> u64 {
        self.overhead_ns
    }

    /// By how much sampling is to be thinned out.
    pub fn thinning(&self) -> u32 {
        self.thinning
    }

    /// Adds time spent on measuring.
    pub fn spend(&mut self, ns: u64) {
        self.overhead_ns = self.overhead_ns.saturating_add(ns);
    }

    /// Adds the time since a reading.
    pub fn spend_since(&mut self, reading: &Amounts) {
        self.spend(usage::elapsed_ns().saturating_sub(reading[Amount::ElapsedNs as usize]));
    }

    /// Overhead since the last call of this function, ns.
    pub fn take_unreported_ns(&mut self) -> u64 {
        let ns = self.overhead_ns.saturating_sub(self.reported_ns);
        self.reported_ns = self.overhead_ns;
        ns
    }

    /// Whether the next measured trigger call measures memory too.
    pub fn wants_memory(&mut self) -> bool {
        self.memory_turn = self.memory_turn.wrapping_add(1);
        self.memory_turn.is_multiple_of(MEMORY_EVERY)
    }

    /// Compares the overhead with the CPU time of the session, now and then.
    pub fn adjust(&mut self) {
        self.events += 1;
        if self.events < LOOK_EVERY {
            return;
        }
        let cpu_ns = usage::cpu_ns();
        let busy_ns = cpu_ns.saturating_sub(self.looked_cpu_ns).max(1);
        let spent_ns = self.overhead_ns.saturating_sub(self.looked_overhead_ns);
        let share = spent_ns as f64 / busy_ns as f64 * 100.0;
        let budget = guc::OBSERVE_BUDGET.get();
        // Overhead is elapsed time, which other processes lengthen: it can seem to be more than all.
        if share > budget && budget < ALL {
            self.thinning = (self.thinning * 2).min(MAX_THINNING);
        } else if share < budget / 4.0 && self.thinning > 1 {
            self.thinning /= 2;
        }
        (self.events, self.looked_cpu_ns, self.looked_overhead_ns) = (0, cpu_ns, self.overhead_ns);
    }
}
