//! What a statement's triggers will cost.

use crate::catalog::predict::{self, Learnt, RowFeatures, Trigger};
use crate::catalog::{colocation, name_of, relation, unit_cost};
use crate::pg::report::{PgResult, bad_argument, error, wrong_state};
use crate::pg::security;
use crate::pg::types::{JsonText, Regclass};
use foreshard_core::profile::{FEATURES, Prediction, Resource, cost_of, total};
use pgrx::pg_sys::Oid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// What is known of a statement and its rows; None: unknown.
struct Statement {
    operation: &'static str,
    bytes: Option<f64>,
    non_null: Option<f64>,
    changed: Option<f64>,
    rows: f64,
    /// The partition that they are in.
    leaf: Option<Oid>,
}

/// A prediction for all calls of one trigger, or of all triggers.
struct Predicted {
    calls: f64,
    cpu_us: Option<Prediction>,
    cost: Option<Prediction>,
}

type Answer = (
    Option<String>,
    Option<Oid>,
    Option<String>,
    Option<String>,
    f64,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<f64>,
    Option<String>,
    Option<i32>,
    Option<String>,
);

/// Cost of the triggers that a statement of `statement_rows` rows of `bytes` bytes fires: a row per
/// trigger, then the total. What was not learnt yet is NULL, and the notes say so.
#[allow(clippy::type_complexity)]
#[pg_extern(
    name = "predict_cost",
    sql = "CREATE FUNCTION foreshard.predict_cost(\"table\" regclass, operation text, bytes bigint, non_null int DEFAULT NULL, \
               changed int DEFAULT NULL, statement_rows bigint DEFAULT 1) \
           RETURNS TABLE (trigger text, function regprocedure, level text, timing text, calls float8, cpu_us float8, cost_units float8, \
               lower float8, upper float8, model text, samples int, note text) \
           STABLE SET search_path TO pg_catalog, pg_temp \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn predict_cost_of_size(
    table: Option<Regclass>,
    operation: Option<&str>,
    bytes: Option<i64>,
    non_null: Option<i32>,
    changed: Option<i32>,
    statement_rows: Option<i64>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(trigger, Option<String>),
            name!(function, Option<Oid>),
            name!(level, Option<String>),
            name!(timing, Option<String>),
            name!(calls, f64),
            name!(cpu_us, Option<f64>),
            name!(cost_units, Option<f64>),
            name!(lower, Option<f64>),
            name!(upper, Option<f64>),
            name!(model, Option<String>),
            name!(samples, Option<i32>),
            name!(note, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let (table, operation, rows) = checked(table, operation, statement_rows)?;
    for (what, value) in
        [("bytes", bytes), ("non_null", non_null.map(i64::from)), ("changed", changed.map(i64::from))]
    {
        if value.is_some_and(|v| v < 0) {
            return Err(bad_argument(format!("{what} must not be negative")));
        }
    }
    let statement = Statement {
        operation,
        bytes: bytes.map(|b| b as f64),
        non_null: non_null.map(f64::from),
        changed: changed.map(f64::from),
        rows,
        leaf: None,
    };
    Ok(TableIterator::new(answer(table, &statement)?))
}

/// As above, for rows like `row`, a JSON object with values for columns of the table.
#[allow(clippy::type_complexity)]
#[pg_extern(
    name = "predict_cost",
    sql = "CREATE FUNCTION foreshard.predict_cost(\"table\" regclass, operation text, \"row\" jsonb, statement_rows bigint DEFAULT 1) \
           RETURNS TABLE (trigger text, function regprocedure, level text, timing text, calls float8, cpu_us float8, cost_units float8, \
               lower float8, upper float8, model text, samples int, note text) \
           STABLE SET search_path TO pg_catalog, pg_temp \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn predict_cost_of_row(
    table: Option<Regclass>,
    operation: Option<&str>,
    row: Option<JsonText>,
    statement_rows: Option<i64>,
) -> Result<
    TableIterator<
        'static,
        (
            name!(trigger, Option<String>),
            name!(function, Option<Oid>),
            name!(level, Option<String>),
            name!(timing, Option<String>),
            name!(calls, f64),
            name!(cpu_us, Option<f64>),
            name!(cost_units, Option<f64>),
            name!(lower, Option<f64>),
            name!(upper, Option<f64>),
            name!(model, Option<String>),
            name!(samples, Option<i32>),
            name!(note, Option<String>),
        ),
    >,
    ErrorReport,
> {
    let (table, operation, rows) = checked(table, operation, statement_rows)?;
    let row = row.ok_or_else(|| bad_argument("row must not be NULL"))?;
    // As the caller: input functions and domains may run code that others wrote.
    let RowFeatures { bytes, non_null, leaf } = predict::features_of(table, row)?;
    let statement =
        Statement { operation, bytes: Some(bytes), non_null: Some(non_null), changed: None, rows, leaf };
    Ok(TableIterator::new(answer(table, &statement)?))
}

/// The arguments both forms share, if they make sense and the caller may ask.
fn checked(
    table: Option<Regclass>,
    operation: Option<&str>,
    statement_rows: Option<i64>,
) -> PgResult<(Oid, &'static str, f64)> {
    let (Some(Regclass(table)), Some(operation)) = (table, operation) else {
        return Err(bad_argument("table and operation must not be NULL"));
    };
    let operation = predict::operation(operation)?;
    let rows = statement_rows.filter(|rows| *rows >= 1);
    let rows = rows.ok_or_else(|| bad_argument("statement_rows must be at least 1"))?;
    if relation::kind(table)?.is_empty() {
        let what = format!("relation {} does not exist", table.to_u32());
        return Err(error(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, what));
    }
    let name = name_of(table)?;
    if !predict::may_ask(table)? {
        return Err(error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for table {name}"),
        )
        .set_hint("It takes SELECT on the table, or membership in pg_monitor."));
    }
    let _owner = security::as_extension_owner()?;
    if colocation::managed(table)?.is_none() {
        return Err(wrong_state(format!("table {name} is not managed by foreshard"))
            .set_hint("Distribute it first: SELECT foreshard.distribute(...)."));
    }
    Ok((table, operation, rows as f64))
}

fn answer(table: Oid, statement: &Statement) -> PgResult<Vec<Answer>> {
    let _owner = security::as_extension_owner()?;
    let columns = predict::columns(table)? as f64;
    let mut rows = Vec::new();
    let mut parts = Vec::new();
    let mut unknown = Vec::new();
    for trigger in predict::triggers(table, statement.operation, statement.leaf)? {
        // Most checks of foreign keys are never measured; those say nothing.
        if trigger.internal && trigger.learnt.is_none() {
            continue;
        }
        let predicted = predict_calls(&trigger, statement, columns);
        if predicted.cost.is_none() {
            unknown.push(trigger.name.clone());
        }
        rows.push(row_of(&trigger, &predicted));
        parts.push(predicted);
    }
    let (mut sum, waits) = (total_of(&parts, &unknown), waits(table, statement.leaf)?);
    let notes: Vec<String> = sum.11.take().into_iter().chain(waits).collect();
    sum.11 = (!notes.is_empty()).then(|| notes.join("; "));
    rows.push(sum);
    Ok(rows)
}

/// What the statement itself waits for, which no trigger's cost has in it.
fn waits(table: Oid, leaf: Option<Oid>) -> PgResult<Option<String>> {
    let (there, all, most_ms) = predict::round_trips(table, leaf)?;
    Ok((there > 0).then(|| {
        format!("not included: {there} of {all} partitions are on nodes, where a statement waits for round trips of up to {most_ms:.2} ms")
    }))
}

/// The features of one call; what is not known is what it was on average, or a guess from the table.
fn features(trigger: &Trigger, learnt: &Learnt, statement: &Statement, columns: f64) -> [f64; FEATURES] {
    // Nothing is known of the rows of these when they are measured.
    if !trigger.per_row || trigger.is_built_in() {
        return [0.0, 0.0, 0.0, statement.rows];
    }
    let [bytes, non_null, changed, _] = learnt.mean_features;
    [
        statement.bytes.or(bytes).unwrap_or(0.0),
        statement.non_null.or(non_null).unwrap_or(columns),
        statement.changed.or(changed).unwrap_or(0.0),
        // Before a row is written it is not known how many there will be: nothing was learnt of that.
        if trigger.timing == "AFTER" { statement.rows } else { 1.0 },
    ]
}

fn predict_calls(trigger: &Trigger, statement: &Statement, columns: f64) -> Predicted {
    let calls = if trigger.per_row { statement.rows * trigger.share.unwrap_or(1.0) } else { 1.0 };
    let Some(learnt) = &trigger.learnt else {
        return Predicted { calls, cpu_us: None, cost: None };
    };
    let features = features(trigger, learnt, statement, columns);
    let cpu = learnt.models[Resource::CpuUs.index()].as_ref().map(|m| m.predict(&features));
    let cost = cost_of(&learnt.models, &features, &unit_cost::weights());
    Predicted { calls, cpu_us: cpu.map(|p| total(&[(p, calls)])), cost: cost.map(|p| total(&[(p, calls)])) }
}

fn row_of(trigger: &Trigger, predicted: &Predicted) -> Answer {
    let clock = trigger.learnt.as_ref().and_then(Learnt::clock);
    let mut notes = Vec::new();
    if predicted.cost.is_none() {
        notes.push("no samples yet".to_string());
    } else if predicted.cpu_us.is_none() {
        notes.push("elapsed time stands in for CPU".to_string());
    }
    if trigger.conditional {
        notes.push("WHEN is assumed to hold".to_string());
    }
    if let Some(share) = trigger.share.filter(|share| *share < 1.0) {
        notes.push(format!("{:.1} % of the partitions have it, and as many rows", share * 100.0));
    }
    if let Some(columns) = &trigger.columns {
        notes.push(format!("if one of these is updated: {columns}"));
    }
    (
        Some(trigger.name.clone()),
        Some(trigger.function),
        Some(if trigger.per_row { "ROW" } else { "STATEMENT" }.to_string()),
        Some(trigger.timing.clone()),
        predicted.calls,
        predicted.cpu_us.map(|p| p.value),
        predicted.cost.map(|p| p.value),
        predicted.cost.map(|p| p.lower),
        predicted.cost.map(|p| p.upper),
        clock.map(|m| m.kind.name().to_string()),
        clock.map(|m| m.samples as i32),
        (!notes.is_empty()).then(|| notes.join("; ")),
    )
}

/// The sum of what is known; NULL when nothing is, 0 when no trigger fires.
fn total_of(parts: &[Predicted], unknown: &[String]) -> Answer {
    let sum = |of: fn(&Predicted) -> Option<Prediction>| -> Option<Prediction> {
        let known: Vec<(Prediction, f64)> = parts.iter().filter_map(|p| Some((of(p)?, 1.0))).collect();
        (!known.is_empty() || parts.is_empty()).then(|| total(&known))
    };
    let cost = sum(|p| p.cost);
    let note = if parts.is_empty() {
        Some("no trigger fires".to_string())
    } else if unknown.is_empty() {
        None
    } else {
        Some(format!("not included, no samples yet: {}", unknown.join(", ")))
    };
    (
        None,
        None,
        None,
        None,
        parts.iter().fold(0.0, |sum, p| sum + p.calls),
        sum(|p| p.cpu_us).map(|p| p.value),
        cost.map(|p| p.value),
        cost.map(|p| p.lower),
        cost.map(|p| p.upper),
        None,
        None,
        note,
    )
}
