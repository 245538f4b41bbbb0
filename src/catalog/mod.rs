//! Rows ↔ core values: the only home of SQL text outside `sql/`.

pub mod act;
pub mod adopt;
pub mod attach;
pub mod baseline;
pub mod birth;
pub mod child;
pub mod citus;
pub mod coaccess;
pub mod colocation;
pub mod copy;
pub mod data_source;
pub mod decision;
pub mod definition;
pub mod dependency;
pub mod described;
pub mod division;
pub mod drain;
pub mod due;
pub mod event;
pub mod forecast_error;
pub mod foresight;
pub mod gathering;
pub mod graph;
pub mod guest;
pub mod heat;
pub mod hot_key;
pub mod join;
pub mod late;
pub mod layout;
pub mod link;
pub mod list_size;
pub mod measured;
pub mod merge;
pub mod mold;
pub mod moves;
pub mod node;
pub mod outcome;
pub mod place;
pub mod predict;
pub mod preflight;
pub mod prepared;
pub mod profile;
pub mod progress;
pub mod rebuild;
pub mod regressor;
pub mod relation;
pub mod release;
pub mod remains;
pub mod remote;
pub mod report;
mod request;
pub mod session;
pub mod setting;
pub mod shadow;
pub mod slot_key;
pub mod split;
pub mod standing;
pub mod statistics;
pub mod story;
pub mod unit_cost;
pub mod upgraded;
pub mod verified;
pub mod waiting;
pub mod watched;
pub mod wayback;
pub mod whole;
pub mod wish;

use crate::pg::report::PgResult;
use crate::pg::{names, spi};
use pgrx::{JsonB, pg_sys};

/// A relation's schema-qualified, quoted name.
pub fn name_of(relation: pg_sys::Oid) -> PgResult<String> {
    names::qualified(relation)
}

/// Appends to the history.
pub fn record_event(
    event: &str,
    move_id: Option<i64>,
    slot_id: Option<i64>,
    detail: serde_json::Value,
) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.journal (event, move_id, slot_id, detail) VALUES ($1, $2, $3, $4)",
        &[event.into(), move_id.into(), slot_id.into(), JsonB(detail).into()],
    )?;
    Ok(())
}

/// Forbids plans that read a whole table, for replays of a few keys under a lock.
fn prefer_index_plans() -> PgResult<()> {
    for setting in ["enable_seqscan", "enable_hashjoin", "enable_mergejoin"] {
        spi::set_local(setting, "off")?;
    }
    Ok(())
}

/// Before the extension goes: what it has elsewhere goes as well.
pub fn leave_all() -> PgResult<()> {
    citus::strategy::forget_all()?;
    remote::farewell::leave_all()
}
