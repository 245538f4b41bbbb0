//! What EXPLAIN (FORESHARD) says of the relations of a plan, as far as the caller may read them.

use crate::pg::compat::explain::Property;
use crate::pg::report::PgResult;
use crate::pg::{security, spi};
use pgrx::pg_sys;

/// A partition of a slot, or the copy of one that serves reads: slot, shard, measured costs, and the move it is in.
/// Nothing: it is none, or not the caller's to read.
pub fn scanned(relation: pg_sys::Oid) -> PgResult<Vec<Property>> {
    let _path = security::pinned_search_path();
    let owner = security::as_extension_owner()?;
    let found = spi::rows(
        "SELECT f.table_oid, s.slot_id, h.shard_name::text, f.is_copy, c.read_cpu_ms / nullif(c.scans, 0), c.write_cpu_ms / nullif(c.rows_written, 0), \
             c.trigger_cost_units / nullif(c.trigger_calls, 0), m.kind || ' ' || m.move_id || ': ' || m.phase, m.route_weight \
         FROM (SELECT p.table_oid::oid, p.slot_id, false AS is_copy FROM foreshard.slot_partition p WHERE p.partition = $1 \
               UNION ALL SELECT p.table_oid::oid, p.slot_id, true FROM foreshard.move_relation r \
                   JOIN foreshard.slot_partition p ON p.partition = r.source WHERE r.shadow = $1) f \
         JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard h USING (shard_id) \
         LEFT JOIN foreshard.slot_cost c ON c.slot_id = f.slot_id AND c.table_oid = f.table_oid \
         LEFT JOIN foreshard.move m ON m.slot_id = f.slot_id AND NOT m.finished LIMIT 1",
        &[relation.into()],
        |row| {
            let mut told = vec![
                Property::whole("Slot", row.need::<i64>(2)?),
                Property::text("Shard", row.need::<String>(3)?),
            ];
            if row.need::<bool>(4)? {
                told.push(Property::text("Read From", "copy".to_string()));
            }
            told.extend(costs([row.get(5)?, row.get(6)?, row.get(7)?]));
            if let Some(of) = row.get::<String>(8)? {
                told.push(Property::text("Move", of));
            }
            if let Some(weight) = row.get::<f64>(9)? {
                told.push(Property::number("Reads of the Copy", "%", weight * 100.0));
            }
            Ok((row.need::<pg_sys::Oid>(1)?, told))
        },
    )?;
    drop(owner);
    readable(found)
}

/// A managed table that is written: what a row and a trigger call of it cost, over all slots.
pub fn written(table: pg_sys::Oid) -> PgResult<Vec<Property>> {
    let _path = security::pinned_search_path();
    let owner = security::as_extension_owner()?;
    let found = spi::rows(
        "SELECT m.table_oid::oid, c.per_row, c.per_call, (SELECT count(*) FROM foreshard.slot_partition p WHERE p.table_oid = m.table_oid) \
         FROM foreshard.managed_table m CROSS JOIN LATERAL ( \
             SELECT sum(s.write_cpu_ms) / nullif(sum(s.rows_written), 0) AS per_row, sum(s.trigger_cost_units) / nullif(sum(s.trigger_calls), 0) AS per_call \
             FROM foreshard.slot_cost s WHERE s.table_oid = m.table_oid) c \
         WHERE m.table_oid = $1::regclass",
        &[table.into()],
        |row| {
            let mut told = vec![Property::whole("Slots", row.need::<i64>(4)?)];
            told.extend(costs([None, row.get(2)?, row.get(3)?]));
            Ok((row.need::<pg_sys::Oid>(1)?, told))
        },
    )?;
    drop(owner);
    readable(found)
}

/// What was measured, of one scan, one row written and one trigger call.
fn costs(measured: [Option<f64>; 3]) -> impl Iterator<Item = Property> {
    let labels = ["Cost per Scan", "Cost per Row Written", "Cost per Trigger Call"];
    labels.into_iter().zip(measured).filter_map(|(label, cost)| Some(Property::number(label, "ms", cost?)))
}

/// Only for those who may read something of the table, or are monitors.
fn readable(found: Vec<(pg_sys::Oid, Vec<Property>)>) -> PgResult<Vec<Property>> {
    let Some((table, told)) = found.into_iter().next() else { return Ok(Vec::new()) };
    let may = spi::one::<bool>(
        "SELECT pg_catalog.pg_has_role('pg_monitor', 'USAGE') OR pg_catalog.has_any_column_privilege($1::oid, 'SELECT')",
        &[table.into()],
    )?;
    Ok(if may == Some(true) { told } else { Vec::new() })
}
