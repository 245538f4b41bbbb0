//! Where a key lives.

use crate::catalog::{colocation, name_of};
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::types::Regclass;
use crate::pg::{partition, security};
use pgrx::AnyElement;
use pgrx::prelude::*;

/// Name of the shard that holds a key of a managed table, or of one of an adopted Citus cluster: the partition PostgreSQL itself routes the
/// key to, whatever type the key is given in.
#[pg_extern(
    stable,
    parallel_safe,
    sql = "CREATE FUNCTION foreshard.get_shard_location(\"table\" regclass, key \"any\") RETURNS text \
           STABLE PARALLEL SAFE SET search_path TO pg_catalog, pg_temp \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn get_shard_location(table: Option<Regclass>, key: Option<AnyElement>) -> PgResult<Option<String>> {
    let Some(Regclass(table)) = table else { return Ok(None) };
    if let Some(key) = &key
        && let Some((_, shard)) = super::citus::slot_of_key(table, key)?
    {
        return Ok(Some(shard));
    }
    let leaf = partition::locate(table, key.map(|k| (k.datum(), k.oid())))?;
    let _owner = security::as_extension_owner()?;
    match colocation::shard_of_partition(leaf)? {
        Some(shard) => Ok(Some(shard)),
        None if colocation::managed(table)?.is_some() => Err(wrong_state(format!(
            "partition {} of table {} is in no slot",
            name_of(leaf)?,
            name_of(table)?
        ))
        .set_hint("Somebody attached it; the view foreshard.layout_problems says what does not fit.")),
        None => Err(wrong_state(format!("table {} is not managed by foreshard", name_of(table)?))
            .set_hint("Distribute it first: SELECT foreshard.distribute(...).")),
    }
}
