//! Where a key lives.

use crate::catalog::{colocation, name_of};
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::types::Regclass;
use crate::pg::{lock, partition, security};
use pgrx::AnyElement;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// How often a key is looked for whose partition is replaced meanwhile.
const LOOKS: u32 = 3;

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
    let key = key.map(|key| (key.datum(), key.oid()));
    // Nobody replaces partitions of the table until the shard of the one that has the key is known.
    let _shared = lock::Shared::on(table);
    let mut looks = 0;
    loop {
        looks += 1;
        let leaf = partition::locate(table, key)?;
        let _owner = security::as_extension_owner()?;
        match colocation::shard_of_partition(leaf)? {
            Some(shard) => return Ok(Some(shard)),
            None if colocation::managed(table)?.is_none() => return Err(not_managed(&name_of(table)?)),
            // Lists of chosen keys are replaced under the lock of another table, that between.
            None if looks < LOOKS => {}
            None => {
                return Err(wrong_state(format!(
                    "partition {} of table {} is in no slot",
                    name_of(leaf)?,
                    name_of(table)?
                ))
                .set_hint(
                    "Somebody attached it; the view foreshard.layout_problems says what does not fit.",
                ));
            }
        }
    }
}

fn not_managed(table: &str) -> ErrorReport {
    wrong_state(format!("table {table} is not managed by foreshard"))
        .set_hint("Distribute it first: SELECT foreshard.distribute(...).")
}
