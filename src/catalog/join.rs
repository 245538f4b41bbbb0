//! Joins: a table that was distributed online with one slot gets the slots of a colocation group, and becomes one of its
//! tables (docs/decisions/0008).

use super::split::{self, Part, parts, slot};
use super::{colocation, moves, name_of, request, shadow};
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;
use serde_json::json;

/// Files that the only slot of a table is split into those of a group, which is held still: until that has ended, nothing
/// else is done with any of them.
///
/// # Errors
/// 55006 already moving, 0A000 with every reason why the slot cannot be split.
pub fn file(slot_id: i64, table: pg_sys::Oid, group_id: i32, user: &str) -> PgResult<i64> {
    let present = slot(slot_id)?;
    if present.moving {
        return Err(moves::already_moving(slot_id));
    }
    split::refuse(slot_id, &split::reasons(slot_id)?)?;
    let asked = json!({"join": name_of(table)?, "group_id": group_id});
    let request_id = request::file(user, group_id, &asked)?;
    let move_id = spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, from_shard, to_shard) \
         SELECT $1, 'join', $2, $3, shard_id FROM foreshard.slot WHERE group_id = $4 AND home_slot_id IS NULL ORDER BY modulus, remainder LIMIT 1 \
         ON CONFLICT (slot_id) WHERE NOT finished DO NOTHING RETURNING move_id",
        &[request_id.into(), slot_id.into(), present.shard_id.into(), group_id.into()],
    )?
    .ok_or_else(|| moves::already_moving(slot_id))?;
    spi::run(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, partner_of, from_shard, to_shard) \
         SELECT $1, 'join', slot_id, $2, shard_id, shard_id FROM foreshard.slot WHERE group_id = $3 ORDER BY slot_id",
        &[request_id.into(), move_id.into(), group_id.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id, slot_id) \
         SELECT $1, row_number() OVER (ORDER BY modulus, remainder) - 1, modulus, remainder, shard_id, slot_id \
         FROM foreshard.slot WHERE group_id = $2 AND home_slot_id IS NULL",
        &[move_id.into(), group_id.into()],
    )?;
    Ok(move_id)
}

/// The placement changes: the table is one of the group, its new partitions are its slots'. Returns the parts.
pub fn place(move_id: i64, slot_id: i64) -> PgResult<Vec<Part>> {
    spi::run(
        "UPDATE foreshard.managed_table t SET group_id = s.group_id FROM foreshard.move_part p JOIN foreshard.slot s USING (slot_id) \
         WHERE p.move_id = $1 AND p.part = 0 AND t.table_oid IN (SELECT table_oid FROM foreshard.slot_partition WHERE slot_id = $2)",
        &[move_id.into(), slot_id.into()],
    )?;
    spi::run("DELETE FROM foreshard.slot_partition WHERE slot_id = $1", &[slot_id.into()])?;
    spi::run(
        "INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition) \
         SELECT p.slot_id, i.inhparent::regclass, c.child::regclass FROM foreshard.move_child c JOIN foreshard.move_part p USING (move_id, part) \
         JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.child WHERE c.move_id = $1",
        &[move_id.into()],
    )?;
    spi::run(
        "UPDATE foreshard.move SET swapped_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[move_id.into()],
    )?;
    parts(move_id)
}

/// The last work: what was only for the table's own slot goes, and with it the join itself.
pub fn settle(move_id: i64, slot_id: i64) -> PgResult<()> {
    shadow::drop_all(move_id)?;
    colocation::forget_group_of(slot_id)
}
