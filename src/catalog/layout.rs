//! Partitions that somebody attached or detached by hand: what is registered follows, as far as it can.

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
/// told in the history and in the server's log. What fits no slot stays in the view `layout_problems`.
pub fn follow() -> PgResult<()> {
    let still = "NOT EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND NOT m.finished AND NOT (m.prepare AND m.phase = 'prepared'))";
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
            "SELECT s.slot_id, c.oid::regclass::text, m.table_oid::text, c.oid FROM foreshard.managed_table m \
             JOIN pg_catalog.pg_inherits i ON i.inhparent = m.table_oid JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relkind = 'r' \
             JOIN foreshard.slot s ON s.group_id = m.group_id \
               AND pg_catalog.pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES WITH (modulus %s, remainder %s)', s.modulus, s.remainder) \
             WHERE NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.partition = c.oid OR (p.slot_id, p.table_oid) = (s.slot_id, m.table_oid)) \
               AND {still}"
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
    Ok(())
}
