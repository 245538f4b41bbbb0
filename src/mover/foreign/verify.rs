//! Verification of copies on either side.

use super::{Outcome, Round, advance, pairs, replay};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::remote::{self, digest};
use crate::catalog::{name_of, record_event, shadow};
use crate::pg::bgworker::{self, WorkResult, transaction, transaction_repeatable_read};
use crate::pg::spi;
use foreshard_core::phase::Event;
use pgrx::pg_sys;
use std::time::Instant;

/// Parts of a log on a node that are replayed before copies are compared.
const MOST_ROUNDS: usize = 100;

/// Vacuums copies that are here, catches up, and compares.
pub fn verify(row: &MoveRow) -> WorkResult<Outcome> {
    let heaps = transaction(|| {
        let mut heaps = Vec::new();
        for relation in shadow::relations(row.move_id)? {
            if remote::behind(relation.shadow)?.is_none() {
                heaps.push(name_of(relation.shadow)?);
            }
        }
        Ok(heaps)
    })?;
    for heap in heaps {
        bgworker::command(&format!("VACUUM (TRUNCATE off, ANALYZE) {heap}"))?;
    }
    // That may have taken long, and keys that are logged are not compared.
    for _ in 0..MOST_ROUNDS {
        match replay(row, false)? {
            Round::Changed => return Ok(Outcome::Leave(Event::SourceChanged)),
            Round::Keys(_, true) => break,
            Round::Keys(..) => {}
        }
    }
    match compare(row)? {
        Compared::Equal => transaction(|| advance(row, Event::Completed)),
        Compared::Different => Ok(Outcome::Leave(Event::Mismatch)),
        Compared::Leave(event) => Ok(Outcome::Leave(event)),
    }
}

/// What a comparison of all pairs came to.
pub enum Compared {
    Equal,
    Different,
    Leave(Event),
}

/// Compares every pair and notes what came of it.
pub fn compare(row: &MoveRow) -> WorkResult<Compared> {
    let begun = Instant::now();
    let sources: Vec<pg_sys::Oid> =
        transaction(|| Ok(shadow::relations(row.move_id)?.iter().map(|r| r.source).collect()))?;
    let different = transaction_repeatable_read(&sources, || {
        let Some(pairs) = pairs(row)? else { return Ok(Err(Event::SourceChanged)) };
        spi::set_local("track_counts", "off")?;
        let (mut rows, mut skipped) = (0, 0);
        for pair in &pairs {
            pair.note_life(row.move_id)?;
            let Some(found) = digest::compare(pair)? else { return Ok(Err(Event::BacklogTooLarge)) };
            if found.differing > 0 {
                return Ok(Ok(Some(format!(
                    "verification found {} differing key buckets ({} rows in the source, {} in the copy)",
                    found.differing, found.rows, found.copy_rows
                ))));
            }
            rows += found.rows;
            skipped += found.skipped;
        }
        moves::set_verified(row.move_id)?;
        let ms = begun.elapsed().as_millis() as u64;
        let detail = serde_json::json!({"rows": rows, "skipped_keys": skipped, "ms": ms});
        record_event("verified", Some(row.move_id), Some(row.slot_id), detail)?;
        Ok(Ok(None))
    })?;
    match different {
        Err(event) => Ok(Compared::Leave(event)),
        Ok(None) => Ok(Compared::Equal),
        Ok(Some(what)) => {
            transaction(|| {
                moves::note(row.move_id, None, Some(&what), None)?;
                let detail = serde_json::json!({"detail": what});
                record_event("mismatch", Some(row.move_id), Some(row.slot_id), detail)
            })?;
            Ok(Compared::Different)
        }
    }
}
