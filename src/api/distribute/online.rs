//! distribute(…, online => true): the table becomes the only slot of a group at once, and that slot is split into as
//! many as were asked for, in the background. undistribute(…, online => true): all slots are copied into one table in the
//! background, which in the end is the table; of a table with one slot, the partition becomes the table at once.

use super::super::reshard::{require_slot_owner, wake_keeper};
use super::{
    EACH_LINE, check_key, check_slots, group_of, places, require_group_owner, require_joinable,
    require_plain, require_same,
};
use crate::catalog::relation::kind;
use crate::catalog::{adopt, birth, colocation, join, name_of, preflight, record_event, release, split};
use crate::mover::short_lock;
use crate::pg::report::{PgResult, internal, notice, refuse, unsupported, wrong_state};
use crate::pg::{lock, partition, security, shmem, spi};
use pgrx::pg_sys;
use serde_json::json;
use std::time::Instant;

/// The slots that a table shall have.
pub enum Wanted<'a> {
    /// So many, on these shards.
    Slots(i32, Option<&'a [String]>),
    /// Those of the colocation group of this table.
    With(pg_sys::Oid),
}

/// See the module. Returns the number of slots that the table will have.
pub fn distribute(table: pg_sys::Oid, key: &str, wanted: &Wanted) -> PgResult<i32> {
    if let Wanted::Slots(slots, _) = wanted {
        check_slots(*slots)?;
    }
    shmem::require_preloaded()?;
    let name = name_of(table)?;
    security::require_owner(table, &name)?;
    let kind = kind(table)?;
    let as_owner = security::as_extension_owner()?;
    let undivided = colocation::undivided_slot(table)?;
    let managed = colocation::managed(table)?;
    drop(as_owner);
    if let (Some((slot_id, present)), Some(managed)) = (undivided, &managed) {
        // An earlier one was cancelled, or failed, after the table had been adopted.
        if present != key {
            return Err(wrong_state(format!("table {name} is already distributed by \"{present}\"")));
        }
        require_slot_owner(slot_id)?;
        let slots = divide((slot_id, table), key, managed, wanted, &name)?;
        let _owner = security::as_extension_owner()?;
        colocation::set_slot_count(managed.group_id, slots)?;
        return Ok(slots);
    }
    require_plain(&name, &kind, managed.is_some())?;
    let key_type = check(table, key, &name)?;
    if let Wanted::With(with) = wanted {
        group_to_join(*with, key, key_type)?;
    }
    let (around, sequences) = preflight::around(table)?;
    let lock_timeout = short_lock::lock_in_session(&around, lock::ACCESS_EXCLUSIVE, &sequences)?;
    let held = Instant::now();
    require_same(table, &name)?;
    let key_type = check(table, key, &name)?;

    let (own, slot_id, table) = adopt_as_slot(table, key, key_type, wanted)?;
    let slots = divide((slot_id, table), key, &own, wanted, &name)?;
    let as_owner = security::as_extension_owner()?;
    let held_us = held.elapsed().as_micros() as u64;
    let detail = json!({"table": name, "key": key, "slots": slots, "online": true, "held_us": held_us});
    record_event("distribute", None, Some(slot_id), detail)?;
    drop(as_owner);
    spi::set_local("lock_timeout", &lock_timeout)?;
    Ok(slots)
}

/// The table becomes the only slot of a group of its own: group, slot, and the table of its name.
fn adopt_as_slot(
    table: pg_sys::Oid,
    key: &str,
    key_type: pg_sys::Oid,
    wanted: &Wanted,
) -> PgResult<(colocation::ManagedRow, i64, pg_sys::Oid)> {
    let adopted = adopt::adopt(table, key)?;
    let as_owner = security::as_extension_owner()?;
    let (slot_count, shards) = match wanted {
        Wanted::Slots(slots, shards) => (*slots, *shards),
        Wanted::With(_) => (1, None),
    };
    let group_id = colocation::insert_group(key_type, slot_count)?;
    let all = colocation::shards_named(shards)?;
    let home = colocation::shard_of_storage(table)?
        .or_else(|| all.first().map(|shard| shard.shard_id))
        .ok_or_else(|| internal("no shard"))?;
    colocation::insert_slot(group_id, 1, 0, home)?;
    let slot_id = colocation::slots_of(group_id)?.first().map(|slot| slot.slot_id);
    let slot_id = slot_id.ok_or_else(|| internal("the new group has no slot"))?;
    let members: Vec<(i64, pg_sys::Oid)> = adopted.leaves.iter().map(|leaf| (slot_id, *leaf)).collect();
    colocation::insert_managed(adopted.table, group_id, key, &members)?;
    drop(as_owner);
    if partition::is_bigint(key_type) {
        birth::create_key_sequence(adopted.table, key)?;
    }
    Ok((colocation::ManagedRow { group_id, slot_count, key_type }, slot_id, adopted.table))
}

/// What speaks against it; the key's type.
fn check(table: pg_sys::Oid, key: &str, name: &str) -> PgResult<pg_sys::Oid> {
    let key_type = check_key(table, key, name)?;
    let reasons = preflight::against_adoption(table)?;
    refuse(format!("table {name} cannot be distributed online"), &reasons, EACH_LINE)?;
    Ok(key_type)
}

/// Files the split of the only slot, given with its table. Returns the number of slots that there will be.
fn divide(
    only: (i64, pg_sys::Oid),
    key: &str,
    own: &colocation::ManagedRow,
    wanted: &Wanted,
    name: &str,
) -> PgResult<i32> {
    let user = security::current_user()?;
    let (slots, move_id) = match wanted {
        Wanted::Slots(slots, shards) => (*slots, split_into(only.0, own.group_id, *slots, *shards, &user)?),
        Wanted::With(with) => join(only, key, own, *with, &user)?,
    };
    let as_owner = security::as_extension_owner()?;
    colocation::require_create(&user, &[move_id])?;
    drop(as_owner);
    notice(&format!(
        "table {name} is managed now; its rows are spread over {slots} slots in the background (move {move_id})"
    ));
    wake_keeper();
    Ok(slots)
}

/// The move that splits the slot into so many new ones.
fn split_into(
    slot_id: i64,
    group_id: i32,
    slots: i32,
    shards: Option<&[String]>,
    user: &str,
) -> PgResult<i64> {
    let _owner = security::as_extension_owner()?;
    let all = colocation::shards_named(shards)?;
    let places = places(group_id, slots, &all)?;
    let shard = |id: &i32| all.iter().find(|shard| shard.shard_id == *id).map(|shard| shard.name.as_str());
    let targets: Vec<Option<&str>> = places.iter().map(shard).collect();
    if targets.iter().any(Option::is_none) {
        return Err(wrong_state("a shard was dropped meanwhile").set_hint("Try again."));
    }
    split::file(slot_id, &targets, user, false)
}

/// The slots of the group of `with` and the move that splits the slot into those. Nobody else's slots are held for that
/// long.
fn join(
    (slot_id, table): (i64, pg_sys::Oid),
    key: &str,
    own: &colocation::ManagedRow,
    with: pg_sys::Oid,
    user: &str,
) -> PgResult<(i32, i64)> {
    let group = group_to_join(with, key, own.key_type)?;
    let _owner = security::as_extension_owner()?;
    if group.group_id == own.group_id {
        return Err(wrong_state("the table is in that colocation group already"));
    }
    let slots = colocation::slots_of(group.group_id)?.len() as i32;
    Ok((slots, join::file(slot_id, table, group.group_id, user)?))
}

/// The group of a table, which may be joined and is held still until the transaction ends.
fn group_to_join(with: pg_sys::Oid, key: &str, key_type: pg_sys::Oid) -> PgResult<colocation::ManagedRow> {
    let as_owner = security::as_extension_owner()?;
    let group = group_of(with)?;
    drop(as_owner);
    require_group_owner(&group)?;
    let _owner = security::as_extension_owner()?;
    require_joinable(&group, key, key_type)?;
    Ok(group)
}

/// See the module. None of the group's slots is being moved, all are here, and the caller owns the table.
pub fn undistribute(table: pg_sys::Oid, group_id: i32, name: &str) -> PgResult<()> {
    shmem::require_preloaded()?;
    let as_owner = security::as_extension_owner()?;
    let undivided = colocation::undivided_slot(table)?;
    let others = colocation::tables_of_group(group_id)?;
    drop(as_owner);
    check_release(table, name)?;
    if undivided.is_some() {
        return release_now(table, name);
    }
    if let Some(other) = others.into_iter().find(|other| *other != table) {
        return Err(unsupported(format!("table {name} cannot be undistributed online")).set_detail(format!(
            "colocated: {} is in the same colocation group, and slots go up in a table with all their tables",
            name_of(other)?
        )).set_hint("Undistribute the other tables of the group without online first, then this one."));
    }
    let user = security::current_user()?;
    let as_owner = security::as_extension_owner()?;
    let move_id = release::file(table, group_id, &user)?;
    drop(as_owner);
    notice(&format!(
        "the slots of table {name} are copied into one table in the background (move {move_id}), which then takes its place"
    ));
    wake_keeper();
    Ok(())
}

fn check_release(table: pg_sys::Oid, name: &str) -> PgResult<()> {
    let reasons = release::reasons(table)?;
    refuse(format!("table {name} cannot be undistributed online"), &reasons, EACH_LINE)
}

/// The only partition becomes the table, under one short lock.
fn release_now(table: pg_sys::Oid, name: &str) -> PgResult<()> {
    let (mut around, sequences) = preflight::around(table)?;
    around.push(release::only_partition(table)?);
    let lock_timeout = short_lock::lock_in_session(&around, lock::ACCESS_EXCLUSIVE, &sequences)?;
    let held = Instant::now();
    require_same(table, name)?;
    check_release(table, name)?;
    let leaf = release::only_partition(table)?;
    if around.last() != Some(&leaf) {
        return Err(
            wrong_state(format!("table {name} was changed by another session")).set_hint("Try again.")
        );
    }
    release::release(table, leaf)?;
    let as_owner = security::as_extension_owner()?;
    colocation::delete_managed(table)?;
    let held_us = held.elapsed().as_micros() as u64;
    let detail = json!({"table": name, "online": true, "held_us": held_us});
    record_event("undistribute", None, None, detail)?;
    drop(as_owner);
    spi::set_local("lock_timeout", &lock_timeout)
}
