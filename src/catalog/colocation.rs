//! Shards, colocation groups, managed tables and slots.

use crate::pg::report::{PgResult, PgSqlErrorCode, bad_argument, error, unknown, unsupported};
use crate::pg::spi;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;

/// A place for data.
pub struct ShardRow {
    /// Primary key.
    pub shard_id: i32,
    /// Name.
    pub name: String,
    /// Cost units per second.
    pub capacity: f64,
    /// Being emptied.
    pub draining: bool,
    /// Where it is.
    pub node: String,
    /// It is a node of a Citus cluster.
    pub is_citus: bool,
    /// Its node may be given data.
    pub takes: bool,
    /// Round trip to its node as the last health check measured it, ms; None: it is on this server, or on a node of Citus.
    pub round_trip_ms: Option<f64>,
}

impl ShardRow {
    /// It is on this server.
    pub fn is_local(&self) -> bool {
        self.node == LOCAL
    }
}

/// The node that is this server.
pub const LOCAL: &str = "local";

/// All shards, by id.
pub fn shards() -> PgResult<Vec<ShardRow>> {
    spi::rows(
        "SELECT h.shard_id, h.shard_name::text, h.capacity, h.draining, h.node_name::text, coalesce(n.engine = 'citus', false), coalesce(n.takes_shards, true), \
             CASE WHEN n.engine = 'postgres_fdw' THEN n.round_trip_ms END \
         FROM foreshard.shard h LEFT JOIN foreshard.node n USING (node_name) ORDER BY 1",
        &[],
        |row| {
            Ok(ShardRow {
                shard_id: row.need(1)?,
                name: row.need(2)?,
                capacity: row.need(3)?,
                draining: row.need(4)?,
                node: row.need(5)?,
                is_citus: row.need(6)?,
                takes: row.need(7)?,
                round_trip_ms: row.get(8)?,
            })
        },
    )
}

/// The name of a shard of this server that parts of slots may go to; None: it is being emptied, or gone.
pub fn taking_shard(shard_id: i32) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT shard_name::text FROM foreshard.shard WHERE shard_id = $1 AND NOT draining AND node_name = $2",
        &[shard_id.into(), LOCAL.into()],
    )
}

/// The shards of this server with these names, or all of them that are not draining.
///
/// # Errors
/// 42704 for an unknown name, 0A000 for one on another server, 22023 when none is left.
pub fn shards_named(names: Option<&[String]>) -> PgResult<Vec<ShardRow>> {
    let all = shards()?;
    let chosen = match names {
        None => all.into_iter().filter(|s| !s.draining && s.is_local()).collect::<Vec<_>>(),
        Some(names) => {
            for name in names {
                let Some(shard) = all.iter().find(|s| &s.name == name) else {
                    return Err(unknown(format!("shard \"{name}\" does not exist")));
                };
                if !shard.is_local() {
                    return Err(only_here(name, &shard.node));
                }
            }
            all.into_iter().filter(|s| names.contains(&s.name)).collect()
        }
    };
    if chosen.is_empty() {
        return Err(bad_argument("there is no shard to place data on")
            .set_hint("Create one: SELECT foreshard.add_shard('s1', 'pg_default');"));
    }
    Ok(chosen)
}

/// 0A000: this is done on this server, and then slots move.
pub fn only_here(shard: &str, node: &str) -> ErrorReport {
    unsupported(format!("shard \"{shard}\" is on node \"{node}\""))
        .set_detail("Tables are distributed, slots split and merged, and keys placed on shards of this server only.")
        .set_hint("Name a shard of this server, and move whole slots to the node with foreshard.move_slot() afterwards.")
}

/// Adds a shard.
pub fn insert_shard(name: &str, tablespace: &str, capacity: f64, node: &str) -> PgResult<i32> {
    spi::one_mut::<i32>(
        "INSERT INTO foreshard.shard (shard_name, tablespace_name, capacity, node_name) VALUES ($1::name, $2::name, $3, $4::name) RETURNING shard_id",
        &[name.into(), tablespace.into(), capacity.into(), node.into()],
    )?
    .ok_or_else(|| crate::pg::report::internal("no shard id"))
}

/// 42501 unless the user may create in the tablespaces that these moves fill, as PostgreSQL asks of whoever changes a table's; the
/// database's own is everybody's.
pub fn require_create(user: &str, moves: &[i64]) -> PgResult<()> {
    let denied = spi::rows(
        "SELECT t.spcname::text FROM foreshard.move m LEFT JOIN foreshard.move_part p USING (move_id) \
         JOIN foreshard.shard h ON h.shard_id = coalesce(p.shard_id, m.to_shard) AND (h.shard_id <> m.from_shard OR m.kind = 'move') AND h.node_name = 'local' \
         JOIN pg_catalog.pg_tablespace t ON t.spcname = h.tablespace_name \
         WHERE m.move_id = ANY ($2) AND NOT pg_catalog.has_tablespace_privilege($1::name, t.oid, 'CREATE') \
           AND t.oid <> (SELECT dattablespace FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) ORDER BY 1 LIMIT 1",
        &[user.into(), moves.to_vec().into()],
        |row| row.need::<String>(1),
    )?;
    let Some(tablespace) = denied.into_iter().next() else { return Ok(()) };
    let message = format!("permission denied for tablespace {tablespace}");
    Err(error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
        .set_hint("Whoever owns the tablespace can GRANT CREATE on it."))
}

/// A managed table's group and the type of its key.
pub struct ManagedRow {
    /// Colocation group.
    pub group_id: i32,
    /// Modulus of the slots that were never split.
    pub slot_count: i32,
    /// Type of the key.
    pub key_type: pg_sys::Oid,
}

/// The managed table, None when it is not managed.
pub fn managed(table: pg_sys::Oid) -> PgResult<Option<ManagedRow>> {
    let found = spi::rows(
        "SELECT g.group_id, g.key_type::oid, g.slot_count \
         FROM foreshard.managed_table m JOIN foreshard.colocation_group g USING (group_id) WHERE m.table_oid = $1",
        &[table.into()],
        |row| Ok(ManagedRow { group_id: row.need(1)?, key_type: row.need(2)?, slot_count: row.need(3)? }),
    )?;
    Ok(found.into_iter().next())
}

/// Creates a group.
pub fn insert_group(key_type: pg_sys::Oid, slots: i32) -> PgResult<i32> {
    spi::one_mut::<i32>(
        "INSERT INTO foreshard.colocation_group (key_type, slot_count) VALUES ($1::regtype, $2) RETURNING group_id",
        &[key_type.into(), slots.into()],
    )?
    .ok_or_else(|| crate::pg::report::internal("no group id"))
}

/// Creates slot (modulus, remainder) on a shard.
pub fn insert_slot(group_id: i32, modulus: i32, remainder: i32, shard_id: i32) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.slot (group_id, modulus, remainder, shard_id, born_shard) VALUES ($1, $2, $3, $4, $4)",
        &[group_id.into(), modulus.into(), remainder.into(), shard_id.into()],
    )?;
    Ok(())
}

/// A slot, as the leaves of a new table are made for it.
pub struct SlotPlace {
    /// Slot.
    pub slot_id: i64,
    /// Modulus of its hash.
    pub modulus: i32,
    /// Remainder.
    pub remainder: i32,
    /// Tablespace of its shard.
    pub tablespace: String,
}

/// A group's slots in order of modulus and remainder, those of chosen keys aside.
pub fn slots_of(group_id: i32) -> PgResult<Vec<SlotPlace>> {
    spi::rows(
        "SELECT s.slot_id, s.modulus, s.remainder, h.tablespace_name::text FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) \
         WHERE s.group_id = $1 AND s.home_slot_id IS NULL ORDER BY s.modulus, s.remainder",
        &[group_id.into()],
        |row| {
            Ok(SlotPlace {
                slot_id: row.need(1)?,
                modulus: row.need(2)?,
                remainder: row.need(3)?,
                tablespace: row.need(4)?,
            })
        },
    )
}

/// Registers a managed table and its partitions, given as (slot id, partition).
pub fn insert_managed(
    table: pg_sys::Oid,
    group_id: i32,
    key: &str,
    leaves: &[(i64, pg_sys::Oid)],
) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.managed_table (table_oid, group_id, key_column) VALUES ($1::regclass, $2, $3::name)",
        &[table.into(), group_id.into(), key.into()],
    )?;
    for (slot_id, partition) in leaves {
        spi::run(
            "INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition) VALUES ($1, $2::regclass, $3::regclass)",
            &[(*slot_id).into(), table.into(), (*partition).into()],
        )?;
    }
    Ok(())
}

/// Forgets a managed table, and its group when it was the last one.
pub fn delete_managed(table: pg_sys::Oid) -> PgResult<()> {
    let groups = spi::rows_mut(
        "DELETE FROM foreshard.managed_table WHERE table_oid = $1 RETURNING group_id",
        &[table.into()],
        |row| row.need::<i32>(1),
    )?;
    forget_empty_groups(groups)
}

/// Of the groups given, of which a table was just forgotten.
fn forget_empty_groups(groups: Vec<i32>) -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.colocation_group g WHERE g.group_id = ANY ($1) \
           AND g.citus_colocation IS NULL AND NOT EXISTS (SELECT FROM foreshard.managed_table m WHERE m.group_id = g.group_id) \
           AND NOT EXISTS (SELECT FROM foreshard.slot s JOIN foreshard.move m USING (slot_id) WHERE s.group_id = g.group_id AND m.kind = 'join' AND NOT m.finished)",
        &[groups.into()],
    )?;
    Ok(())
}

/// Whether a group `g` has been here whole: something of it has a partition, or was read. pg_restore brings the tables of foreshard one
/// by one, those of partitions last; until then nothing is to be concluded from what a group lacks.
pub(super) const HAS_BEEN_WHOLE: &str = "EXISTS (SELECT FROM foreshard.slot w WHERE w.group_id = g.group_id \
    AND (EXISTS (SELECT FROM foreshard.slot_partition v WHERE v.slot_id = w.slot_id) OR EXISTS (SELECT FROM foreshard.slot_heat v WHERE v.slot_id = w.slot_id)))";

/// Forgets the group of a slot whose table has joined another one.
pub fn forget_group_of(slot_id: i64) -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.colocation_group g USING foreshard.slot s WHERE s.slot_id = $1 AND g.group_id = s.group_id \
           AND NOT EXISTS (SELECT FROM foreshard.managed_table m WHERE m.group_id = g.group_id)",
        &[slot_id.into()],
    )?;
    Ok(())
}

/// A list of chosen keys without a partition is none: its keys hash to its home again.
fn forget_empty_lists() -> PgResult<()> {
    spi::run(
        &format!(
            "DELETE FROM foreshard.slot s USING foreshard.colocation_group g WHERE g.group_id = s.group_id AND s.home_slot_id IS NOT NULL \
               AND NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.slot_id = s.slot_id) AND {HAS_BEEN_WHOLE} \
               AND NOT EXISTS (SELECT FROM foreshard.move m WHERE (m.slot_id = s.slot_id OR s.slot_id = ANY (m.guests)) AND NOT m.finished)"
        ),
        &[],
    )?;
    Ok(())
}

/// Forgets tables and partitions that somebody dropped. Returns whether anything was forgotten.
pub fn reconcile() -> PgResult<bool> {
    let stale = spi::one::<bool>(
        &format!(
            "SELECT EXISTS (SELECT FROM foreshard.managed_table m WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = m.table_oid)) \
                 OR EXISTS (SELECT FROM foreshard.slot_partition p WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = p.partition)) \
                 OR EXISTS (SELECT FROM foreshard.slot s JOIN foreshard.colocation_group g USING (group_id) WHERE s.home_slot_id IS NOT NULL \
                            AND NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.slot_id = s.slot_id) AND {HAS_BEEN_WHOLE})"
        ),
        &[],
    )?;
    if stale != Some(true) {
        return Ok(false);
    }
    // A move of such a partition ends first: its row is what leads to the shadows.
    spi::run(
        "UPDATE foreshard.move m SET cancel_requested = true FROM foreshard.slot_partition p \
         WHERE p.slot_id = m.slot_id AND NOT m.finished AND NOT m.cancel_requested \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = p.partition)",
        &[],
    )?;
    let groups = spi::rows_mut(
        "DELETE FROM foreshard.managed_table t WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t.table_oid) \
           AND NOT EXISTS (SELECT FROM foreshard.slot_partition p JOIN foreshard.move m USING (slot_id) \
                           WHERE p.table_oid = t.table_oid AND NOT m.finished) RETURNING t.group_id",
        &[],
        |row| row.need::<i32>(1),
    )?;
    spi::run(
        "DELETE FROM foreshard.slot_partition p WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = p.partition) \
           AND NOT EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = p.slot_id AND NOT m.finished)",
        &[],
    )?;
    forget_empty_lists()?;
    forget_empty_groups(groups)?;
    Ok(true)
}

/// The slot of a managed table that has but one for all keys, as online distribution begins with it, and its key.
pub fn undivided_slot(table: pg_sys::Oid) -> PgResult<Option<(i64, String)>> {
    let found = spi::rows(
        "SELECT s.slot_id, m.key_column::text FROM foreshard.managed_table m JOIN foreshard.slot s USING (group_id) \
         WHERE m.table_oid = $1 AND s.modulus = 1 AND s.home_slot_id IS NULL",
        &[table.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// A group that has but one slot for all keys is to have so many.
pub fn set_slot_count(group_id: i32, slots: i32) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.colocation_group SET slot_count = $2 WHERE group_id = $1",
        &[group_id.into(), slots.into()],
    )?;
    Ok(())
}

/// The shard, if any, on whose tablespace a table lies.
pub fn shard_of_storage(table: pg_sys::Oid) -> PgResult<Option<i32>> {
    spi::one::<i32>(
        "SELECT min(h.shard_id) FROM foreshard.shard h JOIN pg_catalog.pg_tablespace t ON t.spcname = h.tablespace_name \
         WHERE h.node_name = 'local' AND t.oid = (SELECT coalesce(nullif(c.reltablespace, 0), d.dattablespace) FROM pg_catalog.pg_class c, pg_catalog.pg_database d \
                        WHERE c.oid = $1 AND d.datname = current_database())",
        &[table.into()],
    )
}

/// Name of the shard that holds a partition, None when the partition is not managed. It is asked of partitions as they are
/// now, however old the transaction's snapshot is.
pub fn shard_of_partition(partition: pg_sys::Oid) -> PgResult<Option<String>> {
    spi::text_of_now(
        "SELECT h.shard_name::text FROM foreshard.slot_partition p JOIN foreshard.slot s USING (slot_id) \
         JOIN foreshard.shard h USING (shard_id) WHERE p.partition = $1",
        &[partition.into()],
    )
}

/// Locks the group's slots, so that no move of them is filed before this transaction ends (a new move
/// takes a key share lock on its slot); false when a move is under way.
pub fn hold_still(group_id: i32) -> PgResult<bool> {
    let _ = spi::one_mut::<i64>(
        "SELECT count(*) FROM (SELECT FROM foreshard.slot WHERE group_id = $1 ORDER BY slot_id FOR UPDATE) q",
        &[group_id.into()],
    )?;
    Ok(!group_is_moving(group_id)?)
}

/// Whether keys of the group have partitions of their own.
pub fn has_chosen_keys(group_id: i32) -> PgResult<bool> {
    let sql = "SELECT EXISTS (SELECT FROM foreshard.slot JOIN foreshard.slot_partition USING (slot_id) WHERE group_id = $1 AND home_slot_id IS NOT NULL)";
    Ok(spi::one::<bool>(sql, &[group_id.into()])?.unwrap_or(false))
}

/// Whether slots of the group are on nodes.
pub fn has_slots_away(group_id: i32) -> PgResult<bool> {
    let sql = "SELECT EXISTS (SELECT FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) WHERE s.group_id = $1 AND h.node_name <> 'local')";
    Ok(spi::one::<bool>(sql, &[group_id.into()])?.unwrap_or(false))
}

/// Whether a slot of the group has a move that has not ended.
fn group_is_moving(group_id: i32) -> PgResult<bool> {
    Ok(spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) WHERE s.group_id = $1 AND NOT m.finished)",
        &[group_id.into()],
    )?
    .unwrap_or(false))
}

/// Managed tables of a group, by oid.
pub fn tables_of_group(group_id: i32) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT table_oid::oid FROM foreshard.managed_table WHERE group_id = $1 ORDER BY 1",
        &[group_id.into()],
        |row| row.need(1),
    )
}
