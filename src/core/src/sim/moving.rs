//! A move in flight, driven by the phase machine of the real ones.

use super::{Moves, Order};
use crate::phase::{Capabilities, Event, Phase, next};

const MIB: f64 = 1_048_576.0;
const CAPABILITIES: Capabilities = Capabilities { mirror: true, canary: true, watch: true, prepare: false };
/// Share of the time of a move's bytes that goes into copying; the rest builds indexes and verifies.
const COPY: f64 = 0.6;
const INDEX: f64 = 0.3;
const VERIFY: f64 = 0.1;

/// A move in flight.
pub(super) struct Moving {
    pub(super) order: Order,
    bytes: u64,
    phase: Phase,
    /// Seconds of work left in the phase.
    left_s: f64,
}

/// What a tick did for a move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Progress {
    /// The slot changed its place.
    pub(super) swapped: bool,
    /// The move is over.
    pub(super) over: bool,
    /// Cost on each of its shards, cost units.
    pub(super) cost: f64,
}

impl Moving {
    pub(super) fn new(order: Order, bytes: u64) -> Self {
        Self { order, bytes, phase: Phase::Preflight, left_s: 0.0 }
    }

    /// Before the swap.
    pub(super) fn is_under_way(&self) -> bool {
        self.phase.is_reversible()
    }

    /// Works for `seconds`, `slowness` times as slow as usual.
    pub(super) fn work(&mut self, mut seconds: f64, moves: &Moves, slowness: f64) -> Progress {
        let mut progress = Progress { swapped: false, over: false, cost: 0.0 };
        let rate = (moves.bytes_per_s / slowness.max(1e-3)).max(1.0);
        while !progress.over {
            let worked = self.left_s.min(seconds);
            seconds -= worked;
            self.left_s -= worked;
            if matches!(self.phase, Phase::Copy | Phase::Index | Phase::Verify) {
                progress.cost += worked * rate / MIB * moves.cost_per_mib;
            }
            if self.left_s > 0.0 {
                break;
            }
            match next(self.phase, Event::Completed, CAPABILITIES) {
                Ok(transition) => {
                    progress.swapped |= self.phase == Phase::Cutover;
                    self.phase = transition.to;
                    self.left_s = self.seconds_in(transition.to, moves, rate);
                    // What is watched after the swap holds nobody up here.
                    progress.over = transition.to == Phase::Watch || transition.to.is_terminal();
                }
                Err(_) => progress.over = true,
            }
        }
        progress
    }

    fn seconds_in(&self, phase: Phase, moves: &Moves, rate: f64) -> f64 {
        let bytes_s = self.bytes as f64 / rate;
        match phase {
            Phase::Copy => bytes_s * COPY,
            Phase::Index => bytes_s * INDEX,
            Phase::Verify => bytes_s * VERIFY,
            Phase::Canary => moves.fixed_s,
            _ => 0.0,
        }
    }
}
