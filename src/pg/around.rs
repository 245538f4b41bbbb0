//! Which statement goes on when a subtransaction in it is rolled back, as that of a block with an EXCEPTION clause: the error has
//! passed the frames of those inside it, and their memory may be gone.

use super::glance::NOTHING_RUNS;
use super::local::{Local, LocalBox};

/// Subtransactions inside each other that are remembered.
const MAX_DEPTH: usize = 64;

/// Subtransactions that a statement runs around, the innermost last: number, statement (as in [`super::glance::Glance`]).
static AROUND: LocalBox<Vec<(u32, (usize, usize))>> = LocalBox::new();
/// There are some.
static ANY: Local<bool> = Local::new(false);

fn with<R>(work: impl FnOnce(&mut Vec<(u32, (usize, usize))>) -> R) -> Option<R> {
    AROUND.with(
        || Vec::with_capacity(MAX_DEPTH),
        |around| {
            let result = work(around);
            ANY.set(!around.is_empty());
            result
        },
    )
}

/// Takes out a subtransaction and those in it: numbers only grow within a transaction.
fn leave(around: &mut Vec<(u32, (usize, usize))>, level: u32) {
    while around.last().is_some_and(|(known, _)| *known >= level) {
        around.pop();
    }
}

/// A subtransaction begins while `running` runs.
#[inline]
pub(super) fn begins(level: u32, running: (usize, usize)) {
    if ANY.get() || running != NOTHING_RUNS {
        with(|around| {
            leave(around, level);
            if running != NOTHING_RUNS && around.len() < MAX_DEPTH {
                around.push((level, running));
            }
        });
    }
}

/// It has ended well.
#[inline]
pub(super) fn commits(level: u32) {
    if ANY.get() {
        with(|around| leave(around, level));
    }
}

/// It is rolled back; returns the statement that goes on.
pub(super) fn aborts(level: u32) -> (usize, usize) {
    if !ANY.get() {
        return NOTHING_RUNS;
    }
    let found = with(|around| {
        let found = around.iter().rfind(|(known, _)| *known == level).map(|(_, running)| *running);
        leave(around, level);
        found
    });
    found.flatten().unwrap_or(NOTHING_RUNS)
}

/// The transaction has ended.
#[inline]
pub(super) fn transaction_ends() {
    if ANY.get() {
        with(Vec::clear);
    }
}
