//! What users notice of a move, as a matrix: actors (what sessions do) × places (where the move stands
//! meanwhile) × ends. In every cell a session opens something before the move enters the place and finishes
//! it after, and again around leaving it. Either the move has to wait (then it says for whom, and nobody
//! else waits), or it goes on; the results are those of an ordinary table.

mod actors;
mod grid;
mod support;

use foreshard_test::{Error, Result, in_turn};
use grid::{End, Grid, Lock, Place};

/// The move ends with its swap.
const SWAP_ONLY: &[(&str, &str)] = &[("foreshard.rollback_window", "0"), ("foreshard.canary_steps", "")];
/// The old copy is kept for longer than any test takes.
const WATCHED: &[(&str, &str)] = &[("foreshard.rollback_window", "600"), ("foreshard.canary_steps", "")];
/// Every read that may be routed is, for longer than any test takes.
const ROUTED: &[(&str, &str)] = &[
    ("foreshard.rollback_window", "0"),
    ("foreshard.canary_steps", "100"),
    ("foreshard.canary_dwell", "3600000"),
    ("foreshard.max_slowdown", "0"),
];
/// The canary has lasted long enough.
const JUDGED: &[(&str, &str)] = &[("foreshard.canary_dwell", "40")];

/// Where a move can stand. A phase that the engine gets later is one more entry, and one in `grid::WAY`.
const PLACES: [Place; 9] = [
    Place {
        splits: false,
        name: "copy",
        from: "capture",
        at: "copy",
        asks: false,
        settings: SWAP_ONLY,
        rests: false,
        let_go: &[],
        entering: Lock::Writers,
        leaving: Lock::Everybody,
        replays: true,
        ends: &[End::Done, End::Cancelled],
    },
    Place {
        splits: false,
        name: "mirror",
        from: "catch_up",
        at: "verify",
        asks: false,
        settings: SWAP_ONLY,
        rests: false,
        let_go: &[],
        entering: Lock::Writers,
        leaving: Lock::Everybody,
        replays: false,
        ends: &[End::Done, End::Cancelled],
    },
    Place {
        splits: false,
        name: "canary",
        from: "verify",
        at: "canary",
        asks: false,
        settings: ROUTED,
        rests: true,
        let_go: JUDGED,
        entering: Lock::Nobody,
        leaving: Lock::Everybody,
        replays: false,
        ends: &[End::Done, End::Cancelled],
    },
    Place {
        splits: false,
        name: "cutover",
        from: "verify",
        at: "cutover",
        asks: false,
        settings: SWAP_ONLY,
        rests: false,
        let_go: &[],
        entering: Lock::Nobody,
        leaving: Lock::Everybody,
        replays: false,
        ends: &[End::Done, End::Cancelled],
    },
    Place {
        splits: false,
        name: "watch",
        from: "cutover",
        at: "watch",
        asks: false,
        settings: WATCHED,
        rests: true,
        let_go: SWAP_ONLY,
        entering: Lock::Everybody,
        leaving: Lock::Everybody,
        replays: false,
        ends: &[End::Done],
    },
    Place {
        splits: false,
        name: "rollback",
        from: "watch",
        at: "watch",
        asks: true,
        settings: WATCHED,
        rests: false,
        let_go: &[],
        entering: Lock::Nobody,
        leaving: Lock::Everybody,
        replays: false,
        ends: &[End::Cancelled],
    },
    // A split ends otherwise, and lets nobody near the table for that; afterwards the rows are in two slots.
    Place {
        splits: true,
        name: "split-copy",
        from: "capture",
        at: "copy",
        asks: false,
        settings: SWAP_ONLY,
        rests: false,
        let_go: &[],
        entering: Lock::Writers,
        leaving: Lock::Everybody,
        replays: true,
        ends: &[End::Cancelled, End::Done],
    },
    Place {
        splits: true,
        name: "split-mirror",
        from: "catch_up",
        at: "verify",
        asks: false,
        settings: SWAP_ONLY,
        rests: false,
        let_go: &[],
        entering: Lock::Writers,
        leaving: Lock::Everybody,
        replays: false,
        ends: &[End::Cancelled, End::Done],
    },
    Place {
        splits: true,
        name: "split-cutover",
        from: "verify",
        at: "cutover",
        asks: false,
        settings: SWAP_ONLY,
        rests: false,
        let_go: &[],
        entering: Lock::Nobody,
        leaving: Lock::Everybody,
        replays: false,
        ends: &[End::Cancelled, End::Done],
    },
];

/// Actors that a split refuses (foreign keys to the table), or waits for in a way of its own, which tests/split.rs
/// shows (serializable readers).
const NOT_FOR_SPLITS: [&str; 4] =
    ["deferred reference", "deferred referenced", "write skew by row", "write skew by gap"];

/// Whether this version lets a move end so: with `FORESHARD_LONG=1` all do.
fn its_turn(ends: &[End], end: End) -> bool {
    in_turn(ends).any(|(_, own)| *own == end)
}

/// Every actor in one place.
fn every_actor_in(name: &str) -> Result<()> {
    let place = PLACES.iter().find(|place| place.name == name);
    let place = place.ok_or_else(|| Error::new(format!("There is no place {name}."), ""))?;
    let mut actors = actors::all();
    actors.retain(|actor| !(place.splits && NOT_FOR_SPLITS.contains(&actor.name)));
    let mut grid = Grid::start(name, &actors)?;
    // A place with one end has it on every version.
    for end in place.ends.iter().filter(|end| place.ends.len() == 1 || its_turn(place.ends, **end)) {
        grid.round(place, *end)?;
    }
    grid.verdict()
}

#[test]
fn copy() -> Result<()> {
    every_actor_in("copy")
}

#[test]
fn mirror() -> Result<()> {
    every_actor_in("mirror")
}

#[test]
fn canary() -> Result<()> {
    every_actor_in("canary")
}

#[test]
fn cutover() -> Result<()> {
    every_actor_in("cutover")
}

#[test]
fn watch() -> Result<()> {
    every_actor_in("watch")
}

#[test]
fn rollback() -> Result<()> {
    every_actor_in("rollback")
}

#[test]
fn split_copy() -> Result<()> {
    every_actor_in("split-copy")
}

#[test]
fn split_mirror() -> Result<()> {
    every_actor_in("split-mirror")
}

#[test]
fn split_cutover() -> Result<()> {
    every_actor_in("split-cutover")
}
