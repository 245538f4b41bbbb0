//! Samples that were read out of the rings and not learnt from yet.
//!
//! A ring is overwritten while its reader does something else, and learning from a sample may take long (models are fitted
//! again). So rings are only copied from, whenever writers call, between any two steps of a tick and between any two samples
//! learnt; the copy waits here, as long as there is room.

use crate::observe::drain::Cursors;
use crate::observe::samples::{DependencySample, KeySample, TransactionSample, TriggerSample};
use crate::pg::guc;
use std::collections::VecDeque;

/// Samples of a kind that may wait, if the rings are not larger.
const MIN_ROOM: usize = 16_384;

/// Samples of one kind.
pub(super) struct Queue<T> {
    waiting: VecDeque<T>,
    /// How many may wait: never fewer than a ring holds, so that what fits there is not lost here.
    room: usize,
    /// Overwritten before they were read, or without room here, since this was stored.
    pub(super) lost: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let room = guc::SAMPLE_BUFFER.get().max(0) as usize;
        Self { waiting: VecDeque::new(), room: room.max(MIN_ROOM), lost: 0 }
    }
}

impl<T> Queue<T> {
    fn put(&mut self, sample: T) {
        if self.waiting.len() < self.room {
            self.waiting.push_back(sample);
        } else {
            self.lost += 1;
        }
    }

    /// Everything that waits.
    pub(super) fn take(&mut self) -> VecDeque<T> {
        std::mem::take(&mut self.waiting)
    }
}

/// What waits.
#[derive(Default)]
pub(super) struct Inbox {
    cursors: Cursors,
    /// Measured trigger calls.
    pub(super) triggers: Queue<TriggerSample>,
    /// Keys.
    pub(super) keys: Queue<KeySample>,
    /// Sampled transactions.
    pub(super) transactions: Queue<TransactionSample>,
    /// What trigger functions touch.
    pub(super) dependencies: Queue<DependencySample>,
}

impl Inbox {
    /// Empties the rings.
    pub(super) fn collect(&mut self) {
        let Self { cursors, triggers, keys, transactions, dependencies } = self;
        cursors.answer();
        let overwritten = cursors.triggers(|sample| triggers.put(sample));
        triggers.lost += overwritten;
        let overwritten = cursors.keys(|sample| keys.put(sample));
        keys.lost += overwritten;
        let overwritten = cursors.transactions(|sample| transactions.put(sample));
        transactions.lost += overwritten;
        let overwritten = cursors.dependencies(|sample| dependencies.put(sample));
        dependencies.lost += overwritten;
    }

    /// The same, if writers have called since the last time because the rings fill; whether they have.
    pub(super) fn collect_if_called(&mut self) -> bool {
        let called = self.cursors.are_called();
        if called {
            self.collect();
        }
        called
    }
}
