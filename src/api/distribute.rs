//! distribute and undistribute.

mod online;

use crate::catalog::colocation::SlotPlace;
use crate::catalog::rebuild::{Leaf, Shape, lock_with_notice, rebuild};
use crate::catalog::relation::{bytes_of_tree, column, kind};
use crate::catalog::remote::against;
use crate::catalog::{birth, colocation, moves, name_of, node, preflight, record_event};
use crate::pg::report::{PgResult, bad_argument, busy, error, refuse, unknown, unsupported, wrong_state};
use crate::pg::types::Regclass;
use crate::pg::{partition, security, transaction};
use foreshard_core::ring::{ShardWeight, place_slots};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde_json::json;

/// Slots of a table, unless said otherwise.
const DEFAULT_SLOTS: i32 = 32;
/// Slots a table may have.
const MAX_SLOTS: i32 = 4096;
/// No shard gets more than this share over its fair number of slots.
const EPSILON: f64 = 0.05;

/// Turns a plain table into a managed one: hash-partitioned by `key` into `slots` partitions, placed on
/// the shards. Runs in one transaction under ACCESS EXCLUSIVE, or, `online`, begins to do so in the background
/// ([`online`]). Returns the number of slots.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn distribute(
    table: Option<Regclass>,
    key: Option<&str>,
    slots: default!(Option<i32>, "NULL"),
    colocate_with: default!(Option<Regclass>, "NULL"),
    shards: default!(Option<Vec<Option<String>>>, "NULL"),
    online: default!(Option<bool>, "false"),
    remote: default!(Option<bool>, "false"),
) -> PgResult<i32> {
    let (Some(Regclass(table)), Some(key), Some(online), Some(remote)) = (table, key, online, remote) else {
        return Err(bad_argument("table, key, online and remote must not be NULL"));
    };
    transaction::require_read_committed(
        "tables can be distributed only in transactions of isolation level READ COMMITTED",
    )?;
    let shards = shard_names(shards)?;
    if online && remote {
        return Err(unsupported("online and remote cannot be given together"));
    }
    if online {
        let wanted = match colocate_with {
            Some(_) if slots.is_some() || shards.is_some() => return Err(colocated_has_slots()),
            Some(Regclass(with)) => online::Wanted::With(with),
            None => online::Wanted::Slots(slots.unwrap_or(DEFAULT_SLOTS), shards.as_deref()),
        };
        return online::distribute(table, key, &wanted);
    }
    let name = name_of(table)?;
    security::require_owner(table, &name)?;
    let kind = kind(table)?;
    let as_owner = security::as_extension_owner()?;
    let managed = colocation::managed(table)?;
    let group = colocate_with.map(|with| group_of(with.0)).transpose()?;
    drop(as_owner);
    if let Some(group) = &group {
        require_group_owner(group)?;
    }
    require_plain(&name, &kind, managed.is_some())?;
    if group.is_some() && (slots.is_some() || shards.is_some()) {
        return Err(colocated_has_slots());
    }
    check_key(table, key, &name)?;
    check_remote(table, &name, remote)?;
    lock_with_notice(&name, bytes_of_tree(table)?)?;
    require_same(table, &name)?;
    let key_type = check_key(table, key, &name)?;
    check_remote(table, &name, remote)?;

    let as_owner = security::as_extension_owner()?;
    let slots = slots.unwrap_or(DEFAULT_SLOTS);
    let joins = group.is_some();
    let (group_id, base) = match group {
        Some(group) => {
            require_joinable(&group, key, key_type)?;
            (group.group_id, group.slot_count)
        }
        None => (create_group(key_type, slots, only_local(shards.as_deref(), remote)?.as_deref())?, slots),
    };
    let placed = colocation::slots_of(group_id)?;
    drop(as_owner);
    let leaf = |slot: &SlotPlace| Leaf {
        modulus: slot.modulus as u32,
        remainder: slot.remainder as u32,
        tablespace: slot.tablespace.clone(),
    };
    let leaves: Vec<Leaf> = placed.iter().map(leaf).collect();
    let rebuilt =
        rebuild(table, &Shape::Hash { key, base: base as u32, leaves: &leaves, own_unique: remote })?;
    let members: Vec<(i64, pg_sys::Oid)> =
        placed.iter().map(|slot| slot.slot_id).zip(rebuilt.leaves).collect();
    let as_owner = security::as_extension_owner()?;
    colocation::insert_managed(rebuilt.table, group_id, key, &members)?;
    drop(as_owner);
    if partition::is_bigint(key_type) {
        birth::create_key_sequence(rebuilt.table, key)?;
    }
    let _owner = security::as_extension_owner()?;
    record_event(
        "distribute",
        None,
        None,
        json!({"table": name, "key": key, "slots": placed.len(), "rows": rebuilt.rows}),
    )?;
    if remote && !joins {
        send(group_id, slots, shards.as_deref())?;
    }
    Ok(placed.len() as i32)
}

fn colocated_has_slots() -> ErrorReport {
    bad_argument("slots and shards cannot be given together with colocate_with")
        .set_detail("A colocated table has the slots of its group.")
}

/// Refuses a group that a table with such a key cannot join, or not now; it stays as it is until the transaction ends.
fn require_joinable(group: &colocation::ManagedRow, key: &str, key_type: pg_sys::Oid) -> PgResult<()> {
    if group.key_type != key_type {
        return Err(bad_argument(format!(
            "key \"{key}\" has another type than the keys of the colocation group"
        )));
    }
    require_still(group.group_id)?;
    if colocation::has_chosen_keys(group.group_id)? {
        return Err(unsupported("the colocation group has keys with partitions of their own")
            .set_hint("Bring them home first (foreshard.unisolate_key, foreshard.place_keys), and place them again afterwards."));
    }
    require_here(group.group_id)
}

/// Files the moves of those slots whose place, with the shards of nodes counted in, is on a node.
fn send(group_id: i32, slots: i32, shards: Option<&[String]>) -> PgResult<()> {
    let sick = node::sick_shards()?;
    let all: Vec<colocation::ShardRow> = colocation::shards()?
        .into_iter()
        .filter(|shard| !sick.contains(&shard.shard_id))
        .filter(|shard| shards.map_or(!shard.draining, |names| names.contains(&shard.name)))
        .collect();
    let mut map = serde_json::Map::new();
    for (slot, shard_id) in colocation::slots_of(group_id)?.iter().zip(places(group_id, slots, &all)?) {
        let away = all.iter().find(|shard| shard.shard_id == shard_id && !shard.is_local());
        if let Some(shard) = away {
            map.insert(slot.slot_id.to_string(), serde_json::Value::String(shard.name.clone()));
        }
    }
    if map.is_empty() {
        return Ok(());
    }
    crate::pg::shmem::require_preloaded()?;
    moves::file_map(&map, None, &security::current_user()?)?;
    super::reshard::wake_keeper();
    Ok(())
}

/// The names of shards of this server among those asked for: slots are made here and then move.
fn only_local(shards: Option<&[String]>, remote: bool) -> PgResult<Option<Vec<String>>> {
    let Some(names) = shards else { return Ok(None) };
    if !remote {
        return Ok(Some(names.to_vec()));
    }
    let all = colocation::shards()?;
    let is_away = |name: &String| all.iter().any(|shard| &shard.name == name && !shard.is_local());
    let local: Vec<String> = names.iter().filter(|name| !is_away(name)).cloned().collect();
    // With shards of nodes only, slots begin wherever there is room.
    Ok(if local.is_empty() { None } else { Some(local) })
}

/// Refuses tables that cannot have slots on nodes.
fn check_remote(table: pg_sys::Oid, name: &str, remote: bool) -> PgResult<()> {
    if !remote {
        return Ok(());
    }
    let reasons = against::against_layout(table)?;
    refuse(format!("table {name} cannot have slots on other servers"), &reasons, EACH_LINE)
}

/// Refuses a group that has slots on nodes: a table is rebuilt here.
fn require_here(group_id: i32) -> PgResult<()> {
    if !colocation::has_slots_away(group_id)? {
        return Ok(());
    }
    Err(unsupported("the colocation group has slots on other servers").set_hint(
        "Bring them home first with foreshard.move_slot(), or empty the shards with foreshard.drain_shard().",
    ))
}

/// Turns a managed table back into an ordinary one, in one transaction under ACCESS EXCLUSIVE, or, `online`, begins to do
/// so in the background ([`online`]).
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn undistribute(table: Regclass, online: default!(bool, "false")) -> PgResult<()> {
    transaction::require_read_committed(
        "tables can be undistributed only in transactions of isolation level READ COMMITTED",
    )?;
    let table = table.0;
    let name = name_of(table)?;
    security::require_owner(table, &name)?;
    let as_owner = security::as_extension_owner()?;
    let Some(managed) = colocation::managed(table)? else {
        return Err(wrong_state(format!("table {name} is not managed by foreshard")));
    };
    require_still(managed.group_id)?;
    require_here(managed.group_id)?;
    drop(as_owner);
    if online {
        return online::undistribute(table, managed.group_id, &name);
    }
    let check = || {
        let reasons = preflight::against_undistribute(table)?;
        refuse(format!("table {name} cannot be undistributed"), &reasons, EACH_LINE)
    };
    check()?;
    lock_with_notice(&name, bytes_of_tree(table)?)?;
    require_same(table, &name)?;
    check()?;
    let as_owner = security::as_extension_owner()?;
    let key_sequence = birth::newborn(table)?.and_then(|newborn| newborn.key_sequence);
    colocation::delete_managed(table)?;
    drop(as_owner);
    if let Some(key_sequence) = key_sequence {
        birth::drop_key_sequence(table, key_sequence)?;
    }
    let rebuilt = rebuild(table, &Shape::Plain)?;
    let _owner = security::as_extension_owner()?;
    record_event("undistribute", None, None, json!({"table": name, "rows": rebuilt.rows}))
}

/// What is done with slots is done with all their tables, and takes all their owners.
fn require_group_owner(group: &colocation::ManagedRow) -> PgResult<()> {
    let as_owner = security::as_extension_owner()?;
    let tables = colocation::tables_of_group(group.group_id)?;
    drop(as_owner);
    tables.into_iter().try_for_each(|table| security::require_owner(table, &name_of(table)?))
}

/// Only ordinary tables that are not managed yet can be distributed.
fn require_plain(name: &str, kind: &str, managed: bool) -> PgResult<()> {
    if managed {
        return Err(wrong_state(format!("table {name} is already distributed")));
    }
    let why = match kind {
        "r" => return Ok(()),
        "p" => "It is already partitioned.",
        _ => "Only ordinary tables can be distributed.",
    };
    Err(unsupported(format!("{name} is not an ordinary table")).set_detail(why))
}

/// The shards' names, none of them NULL.
fn shard_names(shards: Option<Vec<Option<String>>>) -> PgResult<Option<Vec<String>>> {
    let names = shards.map(|names| names.into_iter().collect::<Option<Vec<String>>>());
    match names {
        Some(None) => Err(bad_argument("the name of a shard must not be NULL")),
        Some(names) => Ok(names),
        None => Ok(None),
    }
}

/// While the lock was awaited, somebody else may have renamed or rebuilt the table.
fn require_same(table: pg_sys::Oid, name: &str) -> PgResult<()> {
    if !kind(table)?.is_empty() && name_of(table)? == name {
        return Ok(());
    }
    Err(wrong_state(format!("table {name} was changed by another session")).set_hint("Try again."))
}

/// Refuses while slots of the group move; no further move is filed before this transaction ends.
fn require_still(group_id: i32) -> PgResult<()> {
    if colocation::hold_still(group_id)? {
        return Ok(());
    }
    Err(busy("slots of the table's colocation group are being moved")
        .set_hint("Wait for foreshard.progress_moves to empty or call foreshard.cancel_move(move_id)."))
}

/// Everything that speaks against distributing the table by this key; the key's type. Asked before the
/// lock, so that a refusal disturbs nobody, and again under it.
fn check_key(table: pg_sys::Oid, key: &str, name: &str) -> PgResult<pg_sys::Oid> {
    let (attnum, key_type) = key_column(table, key, name)?;
    let mut reasons = preflight::against_rebuild(table)?;
    reasons.extend(preflight::against_key(table, attnum)?);
    refuse(format!("table {name} cannot be distributed by \"{key}\""), &reasons, EACH_LINE)?;
    Ok(key_type)
}

fn group_of(table: pg_sys::Oid) -> PgResult<colocation::ManagedRow> {
    colocation::managed(table)?.ok_or_else(|| {
        wrong_state(format!("table {} is not managed by foreshard", name_of(table).unwrap_or_default()))
    })
}

fn key_column(table: pg_sys::Oid, key: &str, name: &str) -> PgResult<(i16, pg_sys::Oid)> {
    let Some((attnum, key_type)) = column(table, key)? else {
        return Err(error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("column \"{key}\" of table {name} does not exist"),
        ));
    };
    if !partition::is_hashable(key_type)? {
        return Err(unsupported(format!(
            "column \"{key}\" cannot be a key: its type has no hash operator class"
        )));
    }
    Ok((attnum, key_type))
}

/// What to do about reasons against a whole table.
const EACH_LINE: &str = "Each line names one reason; remove or change what it names and try again.";

/// Creates a group with its slots.
fn create_group(key_type: pg_sys::Oid, slots: i32, shards: Option<&[String]>) -> PgResult<i32> {
    check_slots(slots)?;
    let shards = colocation::shards_named(shards)?;
    let group_id = colocation::insert_group(key_type, slots)?;
    for (remainder, shard_id) in places(group_id, slots, &shards)?.into_iter().enumerate() {
        colocation::insert_slot(group_id, slots, remainder as i32, shard_id)?;
    }
    Ok(group_id)
}

fn check_slots(slots: i32) -> PgResult<()> {
    if (1..=MAX_SLOTS).contains(&slots) {
        return Ok(());
    }
    Err(bad_argument(format!("slots must be between 1 and {MAX_SLOTS}")))
}

/// The shard of every slot of a group, by remainder: consistent hashing with bounded loads.
fn places(group_id: i32, slots: i32, shards: &[colocation::ShardRow]) -> PgResult<Vec<i32>> {
    let weights: Vec<ShardWeight> =
        shards.iter().map(|s| ShardWeight { shard_id: s.shard_id, capacity: s.capacity }).collect();
    place_slots(group_id as u64, slots as u32, &weights, EPSILON).map_err(|e| unknown(e.to_string()))
}
