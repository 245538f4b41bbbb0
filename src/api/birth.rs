//! Placement at birth: keys that hash to where their rows should live.

use crate::birth::{self, Neighbour, Wish};
use crate::pg::report::{PgResult, bad_argument};
use crate::pg::types::Regclass;
use crate::pg::{security, shmem};
use pgrx::Uuid;
use pgrx::prelude::*;

fn wish(
    table: Option<Regclass>,
    near: Option<Neighbour>,
    predicted_cost: Option<f64>,
    near_table: Option<Regclass>,
) -> PgResult<Wish> {
    shmem::require_preloaded()?;
    let Some(Regclass(table)) = table else { return Err(bad_argument("table must not be NULL")) };
    if predicted_cost.is_some_and(|cost| !(cost.is_finite() && cost >= 0.0)) {
        return Err(bad_argument("predicted_cost must be a finite number of at least 0")
            .set_detail("The unit is cost units (ms of CPU); NULL means unknown."));
    }
    security::require_insert(table)?;
    Ok(Wish { table, near, near_table: near_table.map(|t| t.0), cost: predicted_cost })
}

/// A new bigint key of a managed table, in the slot that bounded load and the hint choose. It pins
/// search_path itself when it looks something up: a SET clause would cost as much as all the rest.
#[pg_extern(name = "next_key", volatile, parallel_unsafe)]
fn next_key_bigint(
    table: Option<Regclass>,
    near: Option<i64>,
    predicted_cost: default!(Option<f64>, "NULL"),
    near_table: default!(Option<Regclass>, "NULL"),
) -> PgResult<i64> {
    birth::draw_bigint(&wish(table, near.map(Neighbour::Bigint), predicted_cost, near_table)?)
}

/// A new uuid key; else as the other form.
#[pg_extern(name = "next_key", volatile, parallel_unsafe)]
fn next_key_uuid(
    table: Option<Regclass>,
    near: Option<Uuid>,
    predicted_cost: default!(Option<f64>, "NULL"),
    near_table: default!(Option<Regclass>, "NULL"),
) -> PgResult<Uuid> {
    let near = near.map(|uuid| Neighbour::Uuid(*uuid.as_bytes()));
    let key = birth::draw_uuid(&wish(table, near, predicted_cost, near_table)?)?;
    Ok(Uuid::from_bytes(key))
}
