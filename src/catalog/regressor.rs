//! Regressors: what a person knows of every bucket, past and coming.

use super::event::groups;
use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::forecast::Regressor;
use std::collections::HashMap;
use std::sync::Arc;

/// Regressors of a table, and of all tables, that are looked at.
const MAX_REGRESSORS: i64 = 4;

/// The regressors between two times in buckets of `step_s`, by slot, a table's own before those of all tables; slots
/// without any are left out. Slots of a table share them.
pub fn by_slot(step_s: i32, since_s: f64, until_s: f64) -> PgResult<HashMap<i64, Vec<Arc<Regressor>>>> {
    let regressors = between(step_s, since_s, until_s)?;
    if regressors.is_empty() {
        return Ok(HashMap::new());
    }
    let of = |group: i32| -> Vec<Arc<Regressor>> {
        let own = regressors.iter().filter(|(only, _)| *only == Some(group));
        let shared = regressors.iter().filter(|(only, _)| only.is_none());
        own.chain(shared).map(|(_, regressor)| Arc::clone(regressor)).collect()
    };
    let slots = groups()?.into_iter().map(|(slot_id, group)| (slot_id, of(group)));
    Ok(slots.filter(|(_, regressors)| !regressors.is_empty()).collect())
}

/// A regressor: (colocation group, None for all; its values).
type GroupRegressor = (Option<i32>, Arc<Regressor>);

/// Every regressor with values between two times, by table and name.
fn between(step_s: i32, since_s: f64, until_s: f64) -> PgResult<Vec<GroupRegressor>> {
    let rows: Vec<(Option<i32>, i64, i64, f64)> = spi::rows(
        "SELECT m.group_id, pg_catalog.hashtextextended(q.name, coalesce(q.table_oid::oid::int8, 0)), q.bucket * $1, q.value \
         FROM (SELECT b.*, pg_catalog.dense_rank() OVER (PARTITION BY b.table_oid ORDER BY b.name) AS place \
               FROM (SELECT r.table_oid, r.name, pg_catalog.floor(extract(epoch FROM r.at) / $1)::int8 AS bucket, pg_catalog.avg(r.value) AS value \
                     FROM foreshard.regressor r WHERE r.at >= pg_catalog.to_timestamp($2) AND r.at < pg_catalog.to_timestamp($3) \
                     GROUP BY 1, 2, 3) b) q \
         LEFT JOIN foreshard.managed_table m USING (table_oid) \
         WHERE q.place <= $4 ORDER BY q.table_oid, q.name, q.bucket",
        &[i64::from(step_s).into(), since_s.into(), until_s.into(), MAX_REGRESSORS.into()],
        |row| {
            pgrx::check_for_interrupts!();
            Ok((row.get(1)?, row.need(2)?, row.need(3)?, row.need(4)?))
        },
    )?;
    let same = |a: &(Option<i32>, i64, i64, f64), b: &(Option<i32>, i64, i64, f64)| a.1 == b.1;
    let regressors = rows.chunk_by(same).filter_map(|points| {
        let (group, kind, ..) = *points.first()?;
        let points = points.iter().map(|(_, _, at_s, value)| (*at_s, *value));
        Some((group, Arc::new(Regressor::from_points(kind as u64, step_s.unsigned_abs(), points))))
    });
    Ok(regressors.collect())
}
