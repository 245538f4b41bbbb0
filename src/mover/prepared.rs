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
        let Some(event) = changed(engine, row)? else {
            prepared::set_checked(row.move_id)?;
            return Ok(Outcome::Rest);
        };
        // A way back is not worth a copy that nobody has asked for.
        if row.way_back_of.is_some() && event == Event::SourceChanged {
            let lost = "the table was altered: there is no way back";
            moves::note(row.move_id, None, Some(lost), None)?;
            record_event("discarded", Some(row.move_id), Some(row.slot_id), json!({"reason": lost}))?;
            return Ok(Outcome::Leave(Event::CancelRequested));
        }
        Ok(Outcome::Leave(event))
    })
}

/// Why the copies are no longer ready, if so.
fn changed(engine: &dyn Engine, row: &MoveRow) -> PgResult<Option<Event>> {
    let relations = shadow::relations(row.move_id)?;
    match way_back_lost(&relations)? {
        Some(Event::SourceChanged) => return Ok(Some(Event::SourceChanged)),
        Some(_) => return Ok(Some(Event::BacklogTooLarge)),
        None => {}
    }
    for relation in &relations {
        if !engine.fits(row, relation)? {
            return Ok(Some(Event::SourceChanged));
        }
    }
    Ok(None)
}

/// Why what was prepared is not kept any longer, if so.
fn unwanted(engine: &dyn Engine, row: &MoveRow) -> PgResult<Option<String>> {
    let (lifetime_s, setting) = match row.way_back_of {
        Some(_) => (guc::ROLLBACK_WINDOW.get(), "rollback_window"),
        None => (guc::PREPARED_SPLIT_LIFETIME.get(), "prepared_split_lifetime"),
    };
    if row.prepared_age_s.is_some_and(|age| age >= f64::from(lifetime_s)) {
        return Ok(Some(format!("nobody asked for it in {lifetime_s} s (foreshard.{setting})")));
    }
    engine.keeps_too_much(row)
}
