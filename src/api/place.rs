//! Chosen keys: partitions of their own, beside the slot that they hash to.

use super::reshard::{require_read_committed, wake_keeper};
use crate::catalog::wish::{Key, Placing, text_key};
use crate::catalog::{colocation, name_of, place};
use crate::pg::report::{PgResult, bad_argument, unknown};
use crate::pg::types::{JsonText, Regclass};
use crate::pg::{security, shmem};
use pgrx::datum::AnyElement;
use pgrx::iter::TableIterator;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde_json::{Value, json};
use std::collections::HashMap;

fn table_of(table: Option<Regclass>) -> PgResult<Regclass> {
    table.ok_or_else(|| bad_argument("table must not be NULL"))
}

fn key_of(key: Option<AnyElement>) -> PgResult<Key> {
    let key = key.ok_or_else(|| bad_argument("key must not be NULL"))?;
    Ok((key.datum(), key.oid()))
}

/// Files what `wish` says of a table, all of whose group must belong to the current user; the moves.
fn file(
    table: Regclass,
    asked: Value,
    wish: impl FnOnce(&mut Placing) -> PgResult<()>,
) -> PgResult<Vec<i64>> {
    shmem::require_preloaded()?;
    require_read_committed()?;
    security::require_owner(table.0, &name_of(table.0)?)?;
    let user = security::current_user()?;
    let as_owner = security::as_extension_owner()?;
    let mut placing = Placing::of(table.0)?;
    let tables = placing.tables()?;
    drop(as_owner);
    for (table, name) in tables {
        security::require_owner(table, &name)?;
    }
    let _owner = security::as_extension_owner()?;
    crate::catalog::session::plain_text_forms()?;
    wish(&mut placing)?;
    let moves = placing.file(&user, asked)?;
    colocation::require_create(&user, &moves)?;
    if !moves.is_empty() {
        wake_keeper();
    }
    Ok(moves)
}

/// Gives one key of a table, and of the tables colocated with it, a partition of its own, online: on the shard
/// named, else where its slot is. Returns the move's id; NULL when it has one there already. Of a table of Citus: a shard that
/// has the key's hash only, for good.
#[pg_extern(
    volatile,
    parallel_unsafe,
    sql = "CREATE FUNCTION foreshard.isolate_key(\"table\" regclass, key \"any\", shard text DEFAULT NULL) RETURNS bigint \
           VOLATILE PARALLEL UNSAFE SET search_path TO pg_catalog, pg_temp \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn isolate_key(
    table: Option<Regclass>,
    key: Option<AnyElement>,
    shard: Option<&str>,
) -> PgResult<Option<i64>> {
    if let (Some(Regclass(table)), Some(key)) = (table, &key)
        && let Some(filed) = super::citus::isolate(table, key, shard)?
    {
        return Ok(filed);
    }
    let (table, key) = (table_of(table)?, key_of(key)?);
    let moves = file(table, json!({"isolate": 1, "shard": shard}), |placing| placing.isolate(key, shard))?;
    Ok(moves.first().copied())
}

/// As isolate_key, for several keys given as text, each with a partition of its own. Returns one move per slot
/// that they belong to.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn isolate_keys(
    table: Option<Regclass>,
    keys: Option<Vec<Option<String>>>,
    shard: default!(Option<&str>, "NULL"),
) -> PgResult<Vec<i64>> {
    let table = table_of(table)?;
    let keys = keys.and_then(|keys| keys.into_iter().collect::<Option<Vec<String>>>());
    let keys = keys.ok_or_else(|| bad_argument("keys must not be NULL"))?;
    file(table, json!({"isolate": keys.len(), "shard": shard}), |placing| {
        keys.iter().try_for_each(|key| placing.isolate(text_key(key)?, shard))
    })
}

/// Brings an isolated key back to its slot, online. Returns the move's id.
#[pg_extern(
    volatile,
    parallel_unsafe,
    sql = "CREATE FUNCTION foreshard.unisolate_key(\"table\" regclass, key \"any\") RETURNS bigint \
           VOLATILE PARALLEL UNSAFE SET search_path TO pg_catalog, pg_temp \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn unisolate_key(table: Option<Regclass>, key: Option<AnyElement>) -> PgResult<Option<i64>> {
    let (table, key) = (table_of(table)?, key_of(key)?);
    Ok(file(table, json!({"unisolate": 1}), |placing| placing.unisolate(key))?.first().copied())
}

/// Places keys one by one, online: a map `{"<key>": "<shard>"}`; null brings a key home. With `whole` the map says
/// everything: chosen keys that are not in it go home, isolated ones aside. Returns one move per slot that changes.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn place_keys(
    table: Option<Regclass>,
    map: Option<JsonText>,
    whole: default!(Option<bool>, "true"),
) -> PgResult<Vec<i64>> {
    let table = table_of(table)?;
    let whole = whole.ok_or_else(|| bad_argument("whole must not be NULL"))?;
    let Some(Value::Object(map)) = map.map(|map| map.parse()).transpose()? else {
        return Err(bad_argument("map must be an object")
            .set_hint("The map has the form {\"<key>\": \"<shard>\"}; null brings a key home."));
    };
    file(table, json!({"place": map.len(), "whole": whole}), |placing| {
        let shards: HashMap<String, (i32, bool)> = colocation::shards()?
            .into_iter()
            .filter(colocation::ShardRow::is_local)
            .map(|s| (s.name, (s.shard_id, s.draining)))
            .collect();
        for (key, shard) in &map {
            let shard = match shard {
                Value::Null => None,
                Value::String(name) => match shards.get(name) {
                    None => {
                        return Err(unknown(format!("shard \"{name}\" does not exist"))
                            .set_hint("See the view foreshard.shards."));
                    }
                    Some((_, true)) => {
                        return Err(bad_argument(format!("shard \"{name}\" is being drained")));
                    }
                    Some((shard_id, false)) => Some(*shard_id),
                },
                _ => return Err(bad_argument(format!("the shard of key {key} is not a string"))),
            };
            placing.put(text_key(key)?, shard)?;
        }
        if whole {
            placing.send_others_home();
        }
        Ok(())
    })
}

/// The keys of a managed table that have partitions of their own.
#[pg_extern(stable, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn placed_keys(
    table: Regclass,
) -> Result<
    TableIterator<
        'static,
        (name!(slot_id, i64), name!(key, String), name!(shard, Option<String>), name!(isolated, bool)),
    >,
    ErrorReport,
> {
    let _owner = security::as_extension_owner()?;
    let shards: HashMap<i32, String> =
        colocation::shards()?.into_iter().map(|shard| (shard.shard_id, shard.name)).collect();
    let mut homes: Vec<place::Home> = place::layout(table.0)?.into_values().collect();
    homes.sort_by_key(|home| home.slot_id);
    let mut rows = Vec::new();
    for guest in homes.into_iter().flat_map(|home| home.guests) {
        let shard = shards.get(&guest.shard).cloned();
        let slot_id = guest.slot.unwrap_or_default();
        rows.extend(guest.keys.into_iter().map(|key| (slot_id, key, shard.clone(), guest.isolated)));
    }
    Ok(TableIterator::new(rows))
}
