//! Which triggers a statement would fire, what was learnt about each, and the features of a row.

use super::name_of;
use super::profile::model;
use crate::pg::partition::leaf_of;
use crate::pg::report::{PgResult, bad_argument};
use crate::pg::spi;
use crate::pg::types::JsonText;
use foreshard_core::profile::{FEATURES, Model, RESOURCES, Resource};
use pgrx::IntoDatum;
use pgrx::pg_sys::{self, Oid};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// The statements whose triggers can be predicted, with their bit in `pg_trigger.tgtype`.
const OPERATIONS: [(&str, u32); 4] = [
    ("INSERT", pg_sys::TRIGGER_TYPE_INSERT),
    ("UPDATE", pg_sys::TRIGGER_TYPE_UPDATE),
    ("DELETE", pg_sys::TRIGGER_TYPE_DELETE),
    ("TRUNCATE", pg_sys::TRIGGER_TYPE_TRUNCATE),
];

/// The operation of this name, in upper case.
///
/// # Errors
/// 22023 for any other word.
pub fn operation(name: &str) -> PgResult<&'static str> {
    let wanted = OPERATIONS.iter().find(|(word, _)| word.eq_ignore_ascii_case(name.trim()));
    wanted.map(|(word, _)| *word).ok_or_else(|| {
        bad_argument(format!("unknown operation \"{name}\""))
            .set_hint("Use INSERT, UPDATE, DELETE or TRUNCATE.")
    })
}

/// A trigger that an operation fires.
pub struct Trigger {
    /// Its oid.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// Of one that partitions have and their table has not: the share of rows that fire it.
    pub share: Option<f64>,
    /// Its function.
    pub function: Oid,
    /// Per row (else per statement).
    pub per_row: bool,
    /// BEFORE, AFTER or INSTEAD OF.
    pub timing: String,
    /// It enforces a constraint of PostgreSQL's own.
    pub internal: bool,
    /// It has a WHEN condition.
    pub conditional: bool,
    /// Columns of UPDATE OF, None for any.
    pub columns: Option<String>,
    /// What was learnt; None: no profile.
    pub learnt: Option<Learnt>,
}

/// First oid that is not PostgreSQL's own.
const FIRST_FOREIGN_OID: u32 = 10_000;

impl Trigger {
    /// Its function is PostgreSQL's own: hooks do not see it, only measured statements do.
    pub fn is_built_in(&self) -> bool {
        self.function.to_u32() < FIRST_FOREIGN_OID
    }
}

/// What was learnt about a trigger.
#[derive(Clone)]
pub struct Learnt {
    /// Mean features of its samples.
    pub mean_features: [Option<f64>; FEATURES],
    /// By `Resource::index`.
    pub models: [Option<Model>; RESOURCES],
}

impl Learnt {
    /// The model that a reader is told about: of CPU, or of elapsed time where CPU cannot be seen.
    pub fn clock(&self) -> Option<&Model> {
        let of = |resource: Resource| self.models[resource.index()].as_ref();
        of(Resource::CpuUs).or_else(|| of(Resource::ElapsedUs))
    }
}

/// The triggers that are enabled for an operation, in the order in which they fire: those of the table, and those for rows
/// that only partitions have, of all of them or of the one (`leaf`) that holds the row.
///
/// A partition's copy of an internal trigger has a name of its own: profiles of all of them count.
pub fn triggers(table: Oid, operation: &str, leaf: Option<Oid>) -> PgResult<Vec<Trigger>> {
    let bit = OPERATIONS.iter().find(|(word, _)| *word == operation).map_or(0, |(_, bit)| *bit);
    let mut found = spi::rows(
        "WITH leaf AS (SELECT s.partition AS oid FROM foreshard.slot_partition s WHERE s.table_oid = $1 AND s.partition = coalesce($4, s.partition)), \
         fired AS ( \
             SELECT t.oid, NULL::float8 AS share FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $1 \
             UNION ALL \
             SELECT min(t.oid::int8)::oid, count(*) / (SELECT count(*) FROM leaf)::float8 FROM pg_catalog.pg_trigger t JOIN leaf ON leaf.oid = t.tgrelid \
             WHERE t.tgparentid = 0 AND NOT t.tgisinternal AND t.tgtype & 1 <> 0 AND t.tgenabled IN ('O', 'A') AND t.tgtype & $2 <> 0 \
             GROUP BY t.tgname, t.tgfoid, t.tgtype) \
         SELECT t.oid, t.tgname::text, t.tgfoid, t.tgtype & 1 <> 0, \
             CASE WHEN t.tgtype & 64 <> 0 THEN 'INSTEAD OF' WHEN t.tgtype & 2 <> 0 THEN 'BEFORE' ELSE 'AFTER' END, t.tgisinternal, t.tgqual IS NOT NULL, \
             (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a \
              WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr) AND $3 = 'UPDATE'), f.share \
         FROM fired f JOIN pg_catalog.pg_trigger t USING (oid) \
         WHERE t.tgenabled IN ('O', 'A') AND t.tgtype & $2 <> 0 \
         ORDER BY t.tgtype & 2 = 0, (t.tgtype & 1 <> 0) = (t.tgtype & 2 <> 0), t.tgname",
        &[table.into(), (bit as i32).into(), operation.into(), leaf.into()],
        |row| {
            Ok(Trigger {
                oid: row.need(1)?,
                name: row.need(2)?,
                function: row.need(3)?,
                per_row: row.need(4)?,
                timing: row.need(5)?,
                internal: row.need(6)?,
                conditional: row.need(7)?,
                columns: row.get(8)?,
                share: row.get(9)?,
                learnt: None,
            })
        },
    )?;
    for (trigger, learnt) in learnt(table, operation)? {
        if let Some(known) = found.iter_mut().find(|t| t.oid == trigger && t.learnt.is_none()) {
            known.learnt = Some(learnt);
        }
    }
    Ok(found)
}

/// What was learnt of the triggers of a table, as (trigger, learnt), the best known first.
fn learnt(table: Oid, operation: &str) -> PgResult<Vec<(Oid, Learnt)>> {
    let rows = spi::rows(
        "SELECT t.oid, p.profile_id, p.mean_tuple_bytes, p.mean_non_null, p.mean_changed, p.mean_statement_rows, m.resource, \
             m.model, m.reason, m.intercept, m.per_tuple_byte, m.per_non_null, m.per_changed, m.per_statement_row, m.samples, m.lower_quantile, \
             m.upper_quantile, m.floor, m.level, m.bend_bytes, m.per_byte_beyond \
         FROM foreshard.trigger_profile p JOIN foreshard.trigger_model m USING (profile_id) \
         JOIN pg_catalog.pg_trigger t ON (t.tgrelid = p.table_oid OR t.tgparentid = 0 AND NOT t.tgisinternal AND t.tgrelid IN \
                 (SELECT s.partition FROM foreshard.slot_partition s WHERE s.table_oid = $1)) AND t.tgfoid = p.function_oid \
             AND (t.tgtype & 1 <> 0) = (p.level = 'ROW') AND (t.tgtype & 2 <> 0) = (p.timing = 'BEFORE') \
         WHERE p.table_oid = $1 AND p.event = $2 AND (t.tgname = p.trigger_name OR t.tgisinternal AND EXISTS ( \
             SELECT FROM foreshard.slot_partition s JOIN pg_catalog.pg_trigger l ON l.tgrelid = s.partition \
             WHERE s.table_oid = $1 AND l.tgparentid = t.oid AND l.tgname = p.trigger_name)) \
         ORDER BY t.tgname = p.trigger_name DESC, p.sampled_calls DESC, p.profile_id",
        &[table.into(), operation.into()],
        |row| {
            let means = [row.get::<f64>(3)?, row.get(4)?, row.get(5)?, row.get(6)?];
            let resource = Resource::from_name(&row.need::<String>(7)?);
            Ok((row.need::<Oid>(1)?, row.need::<i64>(2)?, means, resource, model(row, 8)?))
        },
    )?;
    let mut found: Vec<(Oid, i64, Learnt)> = Vec::new();
    for (trigger, profile, mean_features, resource, model) in rows {
        let (Some(resource), Some(model)) = (resource, model) else { continue };
        let at = found.iter().position(|(t, p, _)| (*t, *p) == (trigger, profile));
        let at = at.unwrap_or_else(|| {
            found.push((trigger, profile, Learnt { mean_features, models: Default::default() }));
            found.len() - 1
        });
        found[at].2.models[resource.index()] = Some(model);
    }
    Ok(found.into_iter().map(|(trigger, _, learnt)| (trigger, learnt)).collect())
}

/// Of a table's partitions, or of the one that holds the row: how many are on nodes, how many there are, and the longest round trip
/// to one of those nodes, ms.
pub fn round_trips(table: Oid, leaf: Option<Oid>) -> PgResult<(i64, i64, f64)> {
    let found = spi::rows(
        "SELECT count(n.node_name), count(*), coalesce(max(n.round_trip_ms), 0) FROM foreshard.slot_partition p \
         JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard h USING (shard_id) \
         LEFT JOIN foreshard.node n ON n.node_name = h.node_name AND n.engine = 'postgres_fdw' \
         WHERE p.table_oid = $1 AND p.partition = coalesce($2, p.partition)",
        &[table.into(), leaf.into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<i64>(2)?, row.need::<f64>(3)?)),
    )?;
    Ok(found.into_iter().next().unwrap_or((0, 0, 0.0)))
}

/// Whether the current user may ask: by SELECT on the table, or as a monitor.
pub fn may_ask(table: Oid) -> PgResult<bool> {
    let may = spi::one::<bool>(
        "SELECT pg_catalog.has_table_privilege($1::oid, 'SELECT') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')",
        &[table.into()],
    )?;
    Ok(may.unwrap_or(false))
}

/// Number of columns of a table.
pub fn columns(table: Oid) -> PgResult<i64> {
    let found = spi::one::<i64>(
        "SELECT count(*) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
        &[table.into()],
    )?;
    Ok(found.unwrap_or(0))
}

/// A row that a trigger fires for.
pub struct RowFeatures {
    /// Its length.
    pub bytes: f64,
    /// Its values that are not NULL.
    pub non_null: f64,
    /// The partition that holds it; None: its key is not given.
    pub leaf: Option<Oid>,
}

/// What is known of the row of a table that a JSON object describes, as the current user.
///
/// # Errors
/// 22023 for other JSON and for a column that the table does not have; whatever the types' input says.
pub fn features_of(table: Oid, row: JsonText) -> PgResult<RowFeatures> {
    let members: BTreeMap<String, Option<IgnoredAny>> = row.parse().map_err(|_| {
        bad_argument("row must be a JSON object")
            .set_hint("Give columns and values: \"row\" => '{\"id\": 1}'.")
    })?;
    let known = spi::rows(
        "SELECT attname::text FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
        &[table.into()],
        |row| row.need::<String>(1),
    )?;
    let name = name_of(table)?;
    if let Some(unknown) = members.keys().find(|key| !known.contains(key)) {
        return Err(bad_argument(format!("table {name} has no column \"{unknown}\"")));
    }
    let column = spi::one::<String>(
        "SELECT pg_catalog.quote_ident(a.attname) FROM pg_catalog.pg_partitioned_table p \
         JOIN pg_catalog.pg_attribute a ON (a.attrelid, a.attnum) = (p.partrelid, p.partattrs[0]) WHERE p.partrelid = $1",
        &[table.into()],
    )?;
    let leaf = match column {
        Some(column) => {
            let key = format!(
                "SELECT (pg_catalog.jsonb_populate_record(NULL::{name}, $1)).{column}::pg_catalog.text"
            );
            let key = spi::one::<String>(&key, &[row.clone().into()])?;
            key.into_datum().map(|key| leaf_of(table, (key, pg_sys::TEXTOID))).transpose()?.flatten()
        }
        None => None,
    };
    let non_null = members.values().filter(|value| value.is_some()).count();
    let bytes = spi::one::<i32>(
        &format!("SELECT pg_catalog.pg_column_size(pg_catalog.jsonb_populate_record(NULL::{name}, $1))"),
        &[row.into()],
    )?;
    Ok(RowFeatures { bytes: f64::from(bytes.unwrap_or(0)), non_null: non_null as f64, leaf })
}
