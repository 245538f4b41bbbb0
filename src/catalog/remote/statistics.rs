//! What nodes know of the tables that hold slots there: rows, bytes and counters, kept here so that remote slots are
//! planned with like all others.

use super::literal;
use crate::catalog::link::Link;
use crate::catalog::node::NodeRow;
use crate::pg::report::{PgResult, internal};
use crate::pg::spi;

/// Columns of one table's statistics, as they are stored.
const COLUMNS: [&str; 9] =
    ["rows", "bytes", "scans", "rows_read", "inserted", "updated", "deleted", "blocks_read", "blocks_hit"];

/// Reads and stores the statistics of all our tables on a node, in one round trip.
pub fn collect(link: &Link, node: &NodeRow) -> PgResult<()> {
    let names: Vec<String> = spi::rows(
        "SELECT remote_name::text FROM foreshard.remote_table WHERE node_name = $1::name AND partition <> 0",
        &[node.name.as_str().into()],
        |row| row.need(1),
    )?;
    if names.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = names.iter().map(|name| literal(name)).collect();
    let said = link.rows(
        &format!(
            "SELECT c.relname, greatest(c.reltuples, 0)::int8, pg_total_relation_size(c.oid), \
                    pg_stat_get_numscans(c.oid) + coalesce(i.scans, 0), \
                    pg_stat_get_tuples_returned(c.oid) + pg_stat_get_tuples_fetched(c.oid) + coalesce(i.rows, 0), \
                    pg_stat_get_tuples_inserted(c.oid), pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_deleted(c.oid), \
                    greatest(pg_stat_get_blocks_fetched(c.oid) + coalesce(i.fetched, 0) - pg_stat_get_blocks_hit(c.oid) - coalesce(i.hit, 0), 0)::int8, \
                    (pg_stat_get_blocks_hit(c.oid) + coalesce(i.hit, 0))::int8 \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL ( \
                 SELECT sum(pg_stat_get_numscans(indexrelid))::int8 AS scans, sum(pg_stat_get_tuples_fetched(indexrelid))::int8 AS rows, \
                        sum(pg_stat_get_blocks_fetched(indexrelid))::int8 AS fetched, sum(pg_stat_get_blocks_hit(indexrelid))::int8 AS hit \
                 FROM pg_index WHERE indrelid = c.oid) i \
             WHERE n.nspname = {} AND c.relname IN ({})",
            literal(&node.schema),
            list.join(", ")
        ),
        COLUMNS.len() + 1,
    )?;
    let mut found: Vec<Vec<i64>> = vec![Vec::new(); COLUMNS.len()];
    let mut tables = Vec::new();
    for row in said {
        let mut row = row.into_iter();
        tables.push(row.next().flatten().ok_or_else(|| internal("a table without a name"))?);
        for (column, value) in found.iter_mut().zip(row) {
            column.push(value.and_then(|value| value.parse().ok()).unwrap_or(0));
        }
    }
    let unnested: Vec<String> =
        (0..COLUMNS.len()).map(|n| format!("pg_catalog.unnest(${})", n + 3)).collect();
    let set: Vec<String> = COLUMNS.iter().map(|column| format!("{column} = q.{column}")).collect();
    let mut args: Vec<spi::Arg> = vec![node.name.as_str().into(), tables.into()];
    args.extend(found.into_iter().map(spi::Arg::from));
    spi::run(
        &format!(
            "UPDATE foreshard.remote_table r SET collected_at = pg_catalog.clock_timestamp(), {} \
             FROM ROWS FROM (pg_catalog.unnest($2), {}) AS q (name, {}) WHERE r.node_name = $1::name AND r.remote_name = q.name",
            set.join(", "),
            unnested.join(", "),
            COLUMNS.join(", ")
        ),
        &args,
    )?;
    Ok(())
}
