//! What Citus counts of tenants, as far as it helps to judge whether a slot should be divided: how its questions spread over
//! their hashes, and whether one of them makes the load.

use crate::catalog::hot_key::Busiest;
use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::division::Keys;
use std::collections::HashMap;

/// What is older says nothing about now.
const FRESH: &str = "interval '10 min'";

/// Tenants with the questions of their slots: those of the tenants that Citus lists, or all accesses to the slot in the same time,
/// whichever are more; a list is not all of them.
fn counted() -> String {
    format!(
        "SELECT t.slot_id, t.group_id, t.tenant, t.hash, t.queries::float8 AS queries, p.period_s, \
                greatest(sum(t.queries) OVER w, coalesce(h.access_score, 0) * p.period_s) AS all_queries, s.hash_from, s.hash_to \
         FROM foreshard.citus_tenant t JOIN foreshard.slot s USING (slot_id) LEFT JOIN foreshard.slot_heat h USING (slot_id) \
         CROSS JOIN (SELECT coalesce((SELECT g.setting::float8 FROM pg_catalog.pg_settings g WHERE g.name = 'citus.stat_tenants_period'), 60) AS period_s) p \
         WHERE t.hash BETWEEN s.hash_from AND s.hash_to AND t.queries > 0 AND t.observed_at > pg_catalog.clock_timestamp() - {FRESH} \
         WINDOW w AS (PARTITION BY t.slot_id)"
    )
}

/// Notes the hashes of tenants: of keys of PostgreSQL's own types only, because what reads a text of another may be somebody's code.
pub fn note_hashes() -> PgResult<()> {
    let types = spi::rows(
        "SELECT DISTINCT pg_catalog.format_type(g.key_type::oid, -1) FROM foreshard.colocation_group g JOIN foreshard.citus_tenant t USING (group_id) \
         WHERE g.citus_colocation IS NOT NULL AND t.hash IS NULL AND g.key_type::oid > 0 AND g.key_type::oid < 16384",
        &[],
        |row| row.need::<String>(1),
    )?;
    for key_type in types {
        spi::run(
            &format!(
                "UPDATE foreshard.citus_tenant t SET hash = pg_catalog.worker_hash(CAST(t.tenant AS {key_type})) FROM foreshard.colocation_group g \
                 WHERE g.group_id = t.group_id AND t.hash IS NULL AND g.citus_colocation IS NOT NULL AND pg_catalog.format_type(g.key_type::oid, -1) = $1"
            ),
            &[key_type.as_str().into()],
        )?;
    }
    Ok(())
}

/// How the questions of slots spread over their tenants: half of the hashes is what a split would give another slot.
pub fn keys() -> PgResult<HashMap<i64, Keys>> {
    if !super::is_here() {
        return Ok(HashMap::new());
    }
    let rows = spi::rows(
        &format!(
            "SELECT q.slot_id, count(*)::int, max(q.queries / q.all_queries), \
                    coalesce(sum(q.queries) FILTER (WHERE 2 * q.hash::int8 > q.hash_from::int8 + q.hash_to::int8), 0) / sum(q.queries) \
             FROM ({}) q GROUP BY 1",
            counted()
        ),
        &[],
        |row| {
            let keys = Keys {
                sampled: row.need::<i32>(2)?.max(0) as u32,
                top_share: row.need(3)?,
                second_share: row.need(4)?,
                front_share: None,
            };
            Ok((row.need::<i64>(1)?, keys))
        },
    )?;
    Ok(rows.into_iter().collect())
}

/// The busiest tenant of every slot.
pub fn busiest() -> PgResult<HashMap<i64, Busiest>> {
    if !super::is_here() {
        return Ok(HashMap::new());
    }
    let rows = spi::rows(
        &format!(
            "SELECT DISTINCT ON (q.slot_id) q.slot_id, m.table_oid, q.tenant, q.queries / q.all_queries, q.queries / q.period_s \
             FROM ({}) q JOIN LATERAL (SELECT min(c.table_oid::oid) AS table_oid FROM foreshard.citus_table c \
                 WHERE c.group_id = q.group_id AND c.key_column IS NOT NULL) m ON m.table_oid IS NOT NULL ORDER BY q.slot_id, q.queries DESC, q.tenant",
            counted()
        ),
        &[],
        Busiest::of_slot,
    )?;
    Ok(rows.into_iter().collect())
}
