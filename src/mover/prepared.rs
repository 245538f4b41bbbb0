//! Moves that wait before their cutover: both copies are kept equal by the mirror, nobody is at work but for a
//! look now and then.

use super::Outcome;
use super::cutover::way_back_lost;
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::{prepared, record_event, shadow};
use crate::engine::Engine;
use crate::pg::bgworker::{WorkResult, transaction};
use crate::pg::guc;
use crate::pg::report::PgResult;
use foreshard_core::phase::Event;
use serde_json::json;

/// Goes on when that was asked for; begins anew when the table was altered, catches up when the mirror had to give
/// up, and clears away what has waited for too long or takes the last free space.
pub fn look(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Outcome> {
    if !row.prepare {
        return Ok(Outcome::Leave(Event::Completed));
    }
    transaction(|| {
        if let Some(why) = unwanted(engine, row)? {
            moves::note(row.move_id, None, Some(&why), None)?;
            record_event("discarded", Some(row.move_id), Some(row.slot_id), json!({"reason": why}))?;
            return Ok(Outcome::Leave(Event::CancelRequested));
        }
        let relations = shadow::relations(row.move_id)?;
        match way_back_lost(&relations)? {
            Some(Event::SourceChanged) => return Ok(Outcome::Leave(Event::SourceChanged)),
            Some(_) => return Ok(Outcome::Leave(Event::BacklogTooLarge)),
            None => {}
        }
        for relation in &relations {
            if !engine.fits(row, relation)? {
                return Ok(Outcome::Leave(Event::SourceChanged));
            }
        }
        prepared::set_checked(row.move_id)?;
        Ok(Outcome::Rest)
    })
}

/// Why what was prepared is not kept any longer, if so.
fn unwanted(engine: &dyn Engine, row: &MoveRow) -> PgResult<Option<String>> {
    let lifetime_s = guc::PREPARED_SPLIT_LIFETIME.get();
    if row.prepared_age_s.is_some_and(|age| age >= f64::from(lifetime_s)) {
        return Ok(Some(format!(
            "nobody asked for it in {lifetime_s} s (foreshard.prepared_split_lifetime)"
        )));
    }
    engine.keeps_too_much(row)
}
