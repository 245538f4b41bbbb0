//! Why a key is where it is, and what a plan makes of the shards.

use crate::catalog::{colocation, name_of, story};
use crate::pg::report::{PgResult, bad_argument, internal, wrong_state};
use crate::pg::types::Regclass;
use crate::pg::{guc, partition, security};
use crate::planner::{self, Explanation};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{AnyElement, JsonB};

/// Plans now and explains the place of a key with it.
fn explained(table: Option<Regclass>, key: Option<AnyElement>) -> PgResult<Explanation> {
    let (Some(Regclass(table)), Some(key)) = (table, key) else {
        return Err(bad_argument("table and key must not be NULL"));
    };
    let name = name_of(table)?;
    if let Some((slot_id, _)) = super::citus::slot_of_key(table, &key)? {
        let _owner = security::as_extension_owner()?;
        let story = story::of_slot(slot_id)?.ok_or_else(|| internal(format!("slot {slot_id} is gone")))?;
        return planner::explain(&planner::decide(guc::FORECAST_HORIZON.get())?, name, story);
    }
    let as_owner = security::as_extension_owner()?;
    if colocation::managed(table)?.is_none() {
        return Err(wrong_state(format!("table {name} is not managed by foreshard"))
            .set_hint("Distribute it first: SELECT foreshard.distribute(...)."));
    }
    drop(as_owner);
    let leaf = partition::locate(table, Some((key.datum(), key.oid())))?;
    let _owner = security::as_extension_owner()?;
    let story = story::of_partition(leaf)?
        .ok_or_else(|| internal(format!("partition {} of {name} has no slot", leaf.to_u32())))?;
    let decision = planner::decide(guc::FORECAST_HORIZON.get())?;
    planner::explain(&decision, name, story)
}

/// Why the slot of a key is where it is, in words: how it came there, its load now and to come, what was considered
/// for it, and what was refused and why. Plans anew; changes nothing.
#[pg_extern(
    volatile,
    parallel_unsafe,
    sql = "CREATE FUNCTION foreshard.explain_placement(\"table\" regclass, key \"any\") RETURNS text \
           VOLATILE PARALLEL UNSAFE SET search_path TO pg_catalog, pg_temp \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn explain_placement(table: Option<Regclass>, key: Option<AnyElement>) -> PgResult<String> {
    Ok(explained(table, key)?.to_text())
}

/// The same as an object.
#[pg_extern(
    volatile,
    parallel_unsafe,
    sql = "CREATE FUNCTION foreshard.explain_placement_json(\"table\" regclass, key \"any\") RETURNS jsonb \
           VOLATILE PARALLEL UNSAFE SET search_path TO pg_catalog, pg_temp \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn explain_placement_json(table: Option<Regclass>, key: Option<AnyElement>) -> PgResult<JsonB> {
    Ok(JsonB(explained(table, key)?.to_json()?))
}

/// Plans now and shows the load of every shard over the horizon: as it is, as it is forecast if nothing moves, and
/// once every step of recommend() is done, in cost units per second; changes nothing.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn recommend_curves() -> Result<
    TableIterator<
        'static,
        (
            name!(shard, String),
            name!(at, TimestampWithTimeZone),
            name!(load_now, Option<f64>),
            name!(forecast, Option<f64>),
            name!(planned, Option<f64>),
            name!(capacity, f64),
            name!(unknown_slots, i64),
        ),
    >,
    ErrorReport,
> {
    let _owner = security::as_extension_owner()?;
    let decision = planner::decide(guc::FORECAST_HORIZON.get())?;
    let mut rows = Vec::new();
    for point in decision.curves() {
        rows.push((
            decision.shard_name(point.shard_id),
            to_timestamp(point.at_s),
            point.load_now,
            point.forecast,
            point.planned,
            point.capacity,
            point.unknown_slots,
        ));
    }
    Ok(TableIterator::new(rows))
}
