//! After a swap: whether statements fare worse on the new copy than before, so that the swap is undone.

use crate::catalog::due::Due;
use crate::catalog::{moves, shadow};
use crate::mover::cutover;
use crate::mover::measure::{self, Watched};
use crate::pg::bgworker::{WorkResult, transaction};
use crate::pg::guc;
use crate::pg::route;
use std::collections::HashMap;

/// What a keeper knows of the moves whose old copies are kept.
#[derive(Default)]
pub struct Watches {
    /// What was swapped while the server, or its keeper, was another one is watched again.
    resumed: bool,
    moves: HashMap<i64, Watched>,
}

impl Watches {
    /// Looks at every move whose old copy is kept, and asks for a rollback where statements on the slot have become
    /// slower (or fail more often) than before, than the other statements explain and than the forecast of its load explains.
    pub fn look(&mut self) -> WorkResult<()> {
        if self.resumed && !route::any() {
            return Ok(());
        }
        route::keep_only(&transaction(moves::unfinished)?);
        if guc::MAX_SLOWDOWN.get() <= 0.0 {
            return Ok(());
        }
        let watched = transaction(moves::watched)?;
        self.moves.retain(|move_id, _| watched.contains(move_id));
        // One that cannot be looked at takes none of the others along.
        let mut outcome = Ok(());
        for move_id in watched {
            outcome = outcome.and(self.look_at(move_id));
        }
        self.resumed |= outcome.is_ok();
        outcome
    }

    /// Moves whose old copy is of no use any more: the table was altered, or a change could not be made in it. Until a
    /// carrier ends them, every commit on their slots tries in vain to keep the old copy equal.
    pub fn kept_in_vain() -> WorkResult<Vec<Due>> {
        let mut found = Vec::new();
        for move_id in transaction(moves::watched_leaders)? {
            let is_kept_in_vain = transaction(|| match moves::load(move_id)? {
                Some(row) if !row.is_foreign => cutover::seems_kept_in_vain(&shadow::relations(move_id)?),
                _ => Ok(false),
            });
            if matches!(is_kept_in_vain, Ok(true)) {
                found.push(Due { move_id, is_short: true });
            }
        }
        Ok(found)
    }

    fn look_at(&mut self, move_id: i64) -> WorkResult<()> {
        let Some(row) = transaction(|| moves::load(move_id))? else { return Ok(()) };
        if !self.resumed && measure::resume(&row)? {
            return Ok(());
        }
        let known = self.moves.entry(move_id).or_default();
        transaction(|| measure::look(&row, known))
    }
}
