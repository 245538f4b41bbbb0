//! Partitions that somebody attached or detached by hand: what is registered follows, as far as it can. Nothing here waits for a lock
//! on a partition: bounds name no columns, so they are told without their table (0), which would be locked for it.

use super::colocation::HAS_BEEN_WHOLE;
use super::record_event;
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;
use serde_json::json;

/// A partition that is not what is registered.
struct Found {
    slot_id: i64,
    partition: String,
    table: String,
    oid: pg_sys::Oid,
}

fn found(row: &spi::Row) -> PgResult<Found> {
    Ok(Found { slot_id: row.need(1)?, partition: row.need(2)?, table: row.need(3)?, oid: row.need(4)? })
}

/// Forgets partitions that were detached and registers those that were attached where one was missing; every change is
/// told in the history and in the server's log. What fits no slot stays in the view `layout_problems`, and so does what a group lacks
/// that a restore has not brought whole yet.
pub fn follow() -> PgResult<()> {
    let still = "NOT EXISTS (SELECT FROM foreshard.move m WHERE (m.slot_id = s.slot_id OR s.slot_id = ANY (m.guests)) AND NOT m.finished AND NOT (m.prepare AND m.phase = 'prepared'))";
    let detached = spi::rows(
        &format!(
            "SELECT s.slot_id, p.partition::text, p.table_oid::text, p.partition::oid \
             FROM foreshard.slot_partition p JOIN foreshard.slot s USING (slot_id) JOIN pg_catalog.pg_class c ON c.oid = p.partition \
             WHERE {still} AND EXISTS (SELECT FROM pg_catalog.pg_class t WHERE t.oid = p.table_oid) \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(p.partition) a WHERE a.relid = p.table_oid)"
        ),
        &[],
        found,
    )?;
    for Found { slot_id, partition, table, oid } in detached {
        spi::run("DELETE FROM foreshard.slot_partition WHERE partition = $1", &[oid.into()])?;
        pgrx::log!(
            "foreshard: partition {partition} of {table} was detached by hand: slot {slot_id} has no partition of that table (hint: Attach one with the same bound.)"
        );
        record_event("detached", None, Some(slot_id), json!({"table": table, "partition": partition}))?;
    }
    let attached = spi::rows(
        &format!(
            "SELECT s.slot_id, c.oid::regclass::text, m.table_oid::text, c.oid FROM foreshard.managed_table m JOIN foreshard.colocation_group g USING (group_id) \
             JOIN pg_catalog.pg_inherits i ON i.inhparent = m.table_oid JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relkind = 'r' \
             JOIN foreshard.slot s ON s.group_id = m.group_id \
               AND pg_catalog.pg_get_expr(c.relpartbound, 0) = format('FOR VALUES WITH (modulus %s, remainder %s)', s.modulus, s.remainder) \
             WHERE NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.partition = c.oid OR (p.slot_id, p.table_oid) = (s.slot_id, m.table_oid)) \
               AND {HAS_BEEN_WHOLE} AND {still}"
        ),
        &[],
        found,
    )?;
    for Found { slot_id, partition, table, oid } in attached {
        spi::run(
            "INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition) \
             SELECT $1, inhparent::regclass, inhrelid::regclass FROM pg_catalog.pg_inherits WHERE inhrelid = $2",
            &[slot_id.into(), oid.into()],
        )?;
        pgrx::log!(
            "foreshard: partition {partition} of {table} was attached by hand: it is that of slot {slot_id}"
        );
        record_event("attached", None, Some(slot_id), json!({"table": table, "partition": partition}))?;
    }
    follow_lists()
}

/// Whether a table of a slot lies in another tablespace than that of the slot's shard, where a move brings it.
pub fn is_elsewhere(slot_id: i64) -> PgResult<bool> {
    let elsewhere = "SELECT EXISTS (SELECT FROM foreshard.layout_problems WHERE slot_id = $1 AND problem = 'other_tablespace')";
    Ok(spi::one::<bool>(elsewhere, &[slot_id.into()])? == Some(true))
}

/// Lists that were attached below the table between of a slot's partitions become lists of chosen keys: of a slot that
/// has such a list in another table, else of one of their own, on the shard where their storage is.
fn follow_lists() -> PgResult<()> {
    let attached = spi::rows(
        "SELECT s.slot_id, c.oid::regclass::text, h.table_oid::text, c.oid FROM foreshard.slot_partition h JOIN foreshard.slot s USING (slot_id) \
         JOIN pg_catalog.pg_inherits i ON i.inhparent = h.branch AND NOT i.inhdetachpending \
         JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relkind = 'r' AND pg_catalog.pg_get_expr(c.relpartbound, 0) LIKE 'FOR VALUES IN %' \
         WHERE NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.partition = c.oid) \
           AND NOT EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND NOT m.finished) ORDER BY 4",
        &[],
        found,
    )?;
    for Found { slot_id: home, partition, table, oid } in attached {
        let shard_id = super::colocation::shard_of_storage(oid)?;
        let slot_id = spi::one_mut::<i64>(
            "WITH bound AS (SELECT c.oid, h.table_oid, pg_catalog.pg_get_expr(c.relpartbound, 0) AS keys FROM foreshard.slot_partition h \
                  JOIN pg_catalog.pg_inherits i ON i.inhparent = h.branch JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE h.slot_id = $1 AND c.oid = $2), \
                  same AS (SELECT min(s.slot_id) AS slot_id FROM bound b JOIN foreshard.slot s ON s.home_slot_id = $1 JOIN foreshard.slot_partition p USING (slot_id) \
                  JOIN pg_catalog.pg_class c ON c.oid = p.partition WHERE pg_catalog.pg_get_expr(c.relpartbound, 0) = b.keys \
                    AND NOT EXISTS (SELECT FROM foreshard.slot_partition o WHERE (o.slot_id, o.table_oid) = (s.slot_id, b.table_oid))), \
                  made AS (INSERT INTO foreshard.slot (group_id, modulus, remainder, shard_id, home_slot_id) \
                      SELECT h.group_id, h.modulus, h.remainder, coalesce($3, h.shard_id), h.slot_id FROM foreshard.slot h, same \
                      WHERE h.slot_id = $1 AND same.slot_id IS NULL RETURNING slot_id) \
             SELECT coalesce(same.slot_id, made.slot_id) FROM same LEFT JOIN made ON true",
            &[home.into(), oid.into(), shard_id.into()],
        )?;
        let Some(slot_id) = slot_id else { continue };
        spi::run(
            "INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition) \
             SELECT $1, h.table_oid, i.inhrelid::regclass FROM pg_catalog.pg_inherits i JOIN foreshard.slot_partition h ON h.branch = i.inhparent \
             WHERE i.inhrelid = $2",
            &[slot_id.into(), oid.into()],
        )?;
        pgrx::log!(
            "foreshard: list {partition} of {table} was attached by hand: its keys are chosen ones of slot {home}, as slot {slot_id}"
        );
        record_event("attached", None, Some(slot_id), json!({"table": table, "partition": partition}))?;
    }
    Ok(())
}
