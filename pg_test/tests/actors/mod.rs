//! The actors of the matrix. Each opens something before a crossing and finishes it after, on rows that are
//! its own for that crossing.

mod constraint;
mod copy;
mod read;
mod transaction;
mod write;

pub use copy::Feed;

use crate::grid::{Cell, Held};
use foreshard_test::Result;

/// A step of an actor.
pub type Step = fn(&mut Cell) -> Result<()>;

/// What a session does while a slot moves.
#[derive(Clone)]
pub struct Actor {
    /// The row of the matrix.
    pub name: &'static str,
    /// What its tables have beyond the others'.
    pub setup: &'static str,
    /// What is held on the moving partition from opening to closing.
    pub holds: Held,
    /// Before the crossing.
    pub open: Step,
    /// After it, or while the move waits.
    pub close: Step,
    /// After the end of the move.
    pub after: Step,
}

impl Actor {
    const fn new(name: &'static str, holds: Held, open: Step, close: Step) -> Actor {
        Actor { name, setup: "", holds, open, close, after: |_| Ok(()) }
    }

    const fn with_setup(self, setup: &'static str) -> Actor {
        Actor { setup, ..self }
    }

    const fn with_after(self, after: Step) -> Actor {
        Actor { after, ..self }
    }
}

/// All of them.
pub fn all() -> Vec<Actor> {
    use Held::{Nothing, Read, RowLock, Snapshot, Write};
    vec![
        Actor::new("prepared generic", Nothing, read::prepared_generic, read::prepared_again),
        Actor::new("prepared custom", Nothing, read::prepared_custom, read::prepared_again),
        Actor::new("cursor", Read, read::cursor_open, read::cursor_close),
        Actor::new("cursor with hold", Nothing, read::held_cursor_open, read::held_cursor_close),
        Actor::new("cursor for update", RowLock, write::cursor_open, write::cursor_close),
        Actor::new("snapshot", Snapshot, read::snapshot_open, read::snapshot_close),
        Actor::new("repeatable read", Read, read::repeatable_open, read::snapshot_close),
        Actor::new("serializable", Write, transaction::serializable_open, transaction::serializable_close),
        Actor::new("write skew by row", Snapshot, transaction::skew_open_row, transaction::skew_close_row),
        Actor::new("write skew by gap", Snapshot, transaction::skew_open_gap, transaction::skew_close_gap),
        Actor::new("copy in", Write, copy::in_open, copy::in_close),
        Actor::new("copy out", Read, copy::out_open, copy::out_close),
        Actor::new("merge", Write, write::merge_open, write::merge_close),
        Actor::new("on conflict update", Write, write::upsert_open, write::upsert_close),
        Actor::new("on conflict nothing", Write, write::nothing_open, write::nothing_close),
        Actor::new("row locks", RowLock, write::locks_open, write::locks_close),
        Actor::new("notify", Write, constraint::notify_open, constraint::notify_close)
            .with_setup(constraint::NOTIFY)
            .with_after(constraint::notify_after),
        Actor::new("deferred unique", Write, constraint::unique_open, constraint::unique_close)
            .with_setup(constraint::UNIQUE),
        Actor::new("deferred reference", Nothing, constraint::child_open, constraint::child_close)
            .with_setup(constraint::REFERENCES),
        Actor::new("deferred referenced", Write, constraint::parent_open, constraint::parent_close)
            .with_setup(constraint::REFERENCES),
        Actor::new("savepoint", Write, transaction::savepoint_open, transaction::savepoint_close),
        Actor::new("savepoint rolled back", Nothing, transaction::undone_open, transaction::undone_close),
        Actor::new("two phases", Write, transaction::prepare, transaction::commit_prepared),
    ]
}
