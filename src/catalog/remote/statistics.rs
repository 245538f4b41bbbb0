//! What nodes know of the tables that hold slots there: rows, bytes and counters, and what a foreshard there has measured, kept here so that
//! remote slots are planned with like all others.

use super::literal;
use crate::catalog::link::Link;
use crate::catalog::measured::{self, Measured, Said, Shard};
use crate::catalog::node::NodeRow;
use crate::pg::guc;
use crate::pg::report::{PgResult, internal};
use crate::pg::spi;
use foreshard_core::shared::SegmentCounter;
use pgrx::JsonB;
use pgrx::pg_sys::Oid;
use serde_json::Value;

/// The function that is asked for what was measured, if it is the extension's: another one, whoever made it, is not called. It is not
/// looked up by its name, which fails for whoever may not use the schema. Its arguments are int8[], oid[] and float8.
const FUNCTION: &str = "SELECT p.oid, p.pronamespace FROM pg_extension y JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = y.oid \
         AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e' \
     JOIN pg_proc p ON p.oid = d.objid JOIN pg_namespace s ON s.oid = p.pronamespace \
     WHERE y.extname = 'foreshard' AND s.nspname = 'foreshard' AND p.proname = 'observe_shards' \
       AND p.proargtypes = '1016 1028 701'::oidvector";

/// Tables of ours on a node, by the numbers that they have here.
struct Tables {
    ids: Vec<String>,
    names: Vec<String>,
    /// Those that hold slots now: copies and parts of closures do not.
    hold_slots: Vec<String>,
}

fn tables(node: &NodeRow) -> PgResult<Tables> {
    let found = spi::rows(
        "SELECT r.remote_id, r.remote_name::text, EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.partition = r.partition) \
         FROM foreshard.remote_table r WHERE r.node_name = $1::name AND r.partition <> 0",
        &[node.name.as_str().into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<String>(2)?, row.need::<bool>(3)?)),
    )?;
    Ok(Tables {
        ids: found.iter().map(|(id, ..)| id.to_string()).collect(),
        names: found.iter().map(|(_, name, _)| literal(name)).collect(),
        hold_slots: found.iter().map(|(.., holds_slot)| holds_slot.to_string()).collect(),
    })
}

/// The one question: when it is there, since when the server runs that counts, for every table that is there [number, rows, bytes, scans,
/// rows read, inserted, updated, deleted, blocks read, blocks hit], and of which version its foreshard is (see [`Said::read`]); with
/// `measured` also what that has measured of those that hold slots.
fn question(node: &NodeRow, measured: bool) -> PgResult<String> {
    let Tables { ids, names, hold_slots } = tables(node)?;
    let measured = if measured {
        let keep_s = measured::keep_s(guc::BUCKET.get().max(guc::NODE_CHECK_INTERVAL.get()));
        format!(
            ", 'm', (SELECT CASE WHEN EXISTS ({FUNCTION}) \
                     THEN foreshard.observe_shards(array_agg(q.id), array_agg(q.oid), {keep_s}::float8) END FROM q WHERE q.holds_slot)"
        )
    } else {
        String::new()
    };
    Ok(format!(
        "WITH q AS MATERIALIZED (SELECT u.id, u.holds_slot, c.oid, greatest(c.reltuples, 0)::int8 AS rows \
             FROM ROWS FROM (unnest(ARRAY[{}]::int8[]), unnest(ARRAY[{}]::text[]), unnest(ARRAY[{}]::bool[])) AS u (id, name, holds_slot) \
             JOIN pg_class c ON c.relname = u.name::name JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = {}) \
         SELECT json_build_object('at', date_part('epoch', clock_timestamp()), 'since', date_part('epoch', pg_postmaster_start_time()), \
             's', (SELECT coalesce(json_agg(json_build_array(q.id, q.rows, pg_total_relation_size(q.oid), \
                     pg_stat_get_numscans(q.oid) + coalesce(i.scans, 0), \
                     pg_stat_get_tuples_returned(q.oid) + pg_stat_get_tuples_fetched(q.oid) + coalesce(i.rows, 0), \
                     pg_stat_get_tuples_inserted(q.oid), pg_stat_get_tuples_updated(q.oid), pg_stat_get_tuples_deleted(q.oid), \
                     greatest(pg_stat_get_blocks_fetched(q.oid) + coalesce(i.fetched, 0) - pg_stat_get_blocks_hit(q.oid) - coalesce(i.hit, 0), 0)::int8, \
                     (pg_stat_get_blocks_hit(q.oid) + coalesce(i.hit, 0))::int8)), '[]'::json) \
                 FROM q CROSS JOIN LATERAL ( \
                     SELECT sum(pg_stat_get_numscans(indexrelid))::int8 AS scans, sum(pg_stat_get_tuples_fetched(indexrelid))::int8 AS rows, \
                            sum(pg_stat_get_blocks_fetched(indexrelid))::int8 AS fetched, sum(pg_stat_get_blocks_hit(indexrelid))::int8 AS hit \
                     FROM pg_index WHERE indrelid = q.oid) i), \
             'x', (SELECT json_build_array(x.extversion, f.oid IS NOT NULL, \
                       has_function_privilege(f.oid, 'EXECUTE') AND has_schema_privilege(f.pronamespace, 'USAGE'), current_user) \
                   FROM pg_extension x LEFT JOIN ({FUNCTION}) f ON true WHERE x.extname = 'foreshard'){measured})",
        ids.join(", "),
        names.join(", "),
        hold_slots.join(", "),
        literal(&node.schema),
    ))
}

/// Reads and stores the statistics of all our tables on a node, in one round trip; with `measured` what its foreshard has measured, too.
/// `failed`: that was asked for, which failed, so that now it is not.
pub fn collect(link: &Link, node: &NodeRow, measured: bool, failed: Option<&str>) -> PgResult<()> {
    let asked_at = spi::one::<f64>("SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8", &[])?;
    let answer = link.one(&question(node, measured)?)?.unwrap_or_default();
    let answer: Value = serde_json::from_str(&answer).map_err(internal)?;
    let said = Said::read(&answer);
    store(node, &answer, &said, asked_at)?;
    measured::note(&node.name, &said, failed)
}

/// Forgets what was said of a table that has just taken the place of a slot's: it was filled for that, which is no load. What the node says
/// next is where counting begins.
pub fn begin_anew(partition: Oid) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.remote_table SET collected_at = pg_catalog.clock_timestamp(), counted_at = NULL, counted_since = NULL, \
             measured_in = NULL, measured = NULL WHERE partition = $1::regclass",
        &[partition.into()],
    )?;
    Ok(())
}

fn store(node: &NodeRow, answer: &Value, said: &Said, asked_at: Option<f64>) -> PgResult<()> {
    let tables = answer.get("s").cloned().unwrap_or_default();
    let clock = |name: &str| answer.get(name).and_then(Value::as_f64);
    spi::run(
        "UPDATE foreshard.remote_table r SET collected_at = pg_catalog.clock_timestamp(), counted_at = $3, counted_since = $4, \
             rows = q.n[2], bytes = q.n[3], scans = q.n[4], rows_read = q.n[5], inserted = q.n[6], updated = q.n[7], deleted = q.n[8], \
             blocks_read = q.n[9], blocks_hit = q.n[10], measured_in = q.since, measured = q.counted \
         FROM (SELECT c.n, w.since, w.counted FROM (SELECT ARRAY(SELECT v::int8 FROM pg_catalog.jsonb_array_elements_text(a.one) WITH ORDINALITY AS e (v, n) ORDER BY e.n) AS n \
                   FROM pg_catalog.jsonb_array_elements($1) AS a (one)) c \
               LEFT JOIN (SELECT (a.one->>0)::int8 AS id, (a.one->>1)::int8 AS since, \
                       ARRAY(SELECT v::int8 FROM pg_catalog.jsonb_array_elements_text(a.one->2) WITH ORDINALITY AS e (v, n) ORDER BY e.n) AS counted \
                   FROM pg_catalog.jsonb_array_elements($5) AS a (one)) w ON w.id = c.n[1]) q \
         WHERE r.remote_id = q.n[1] AND r.node_name = $2::name \
           AND coalesce(extract(epoch FROM r.collected_at)::float8 <= $6, true)",
        &[
            JsonB(tables).into(),
            node.name.as_str().into(),
            clock("at").into(),
            clock("since").into(),
            JsonB(said.shards_as_json()).into(),
            asked_at.into(),
        ],
    )?;
    Ok(())
}

/// The tables on nodes that hold slots, and what was measured of them there. Triggers are not: they fire here, and those there are only
/// such as log changes for a move.
pub fn measured_tables() -> PgResult<Vec<Shard>> {
    use SegmentCounter::{SampledTriggerCalls, TriggerCalls, TriggerCostNs};
    spi::rows(
        "SELECT p.table_oid::oid, p.slot_id, r.partition::oid, r.counted_since, r.measured_in, r.measured \
         FROM foreshard.remote_table r JOIN foreshard.slot_partition p ON p.partition = r.partition",
        &[],
        |row| {
            let count = (i64::from(row.need::<Oid>(3)?.to_u32()), 0);
            let mut measured = Measured::of(count, row.get(4)?, row.get(5)?, row.get(6)?);
            if let Some(measured) = &mut measured {
                for counter in [TriggerCalls, SampledTriggerCalls, TriggerCostNs] {
                    measured.counters[counter as usize] = 0;
                }
            }
            Ok(Shard { table: row.need::<Oid>(1)?.to_u32(), slot_id: row.need(2)?, measured })
        },
    )
}
