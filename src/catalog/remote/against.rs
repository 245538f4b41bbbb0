//! Reasons why a partition cannot go to a node, or come home from one, each with a machine-readable word in front.

use super::super::node::NodeRow;
use super::super::{preflight, split};
use super::behind;
use crate::catalog::link::Link;
use crate::pg::report::{PgResult, unsupported};
use crate::pg::spi;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;

/// 0A000: a table with a unique index of its own, which a foreign table cannot be part of.
fn unique(table: &str, index: &str) -> ErrorReport {
    unsupported(format!("table {table} has a unique index of its own, so its slots stay on this server"))
        .set_detail(format!(
            "Index {index} is one of the partitioned table; PostgreSQL allows no foreign table among the partitions then."
        ))
        .set_hint(
            "Distribute the table again with unique indexes on its partitions only (foreshard.undistribute(), then \
             foreshard.distribute(…, remote => true)), or use a Citus cluster (engine citus), which has no such limit.",
        )
}

/// Refuses slots whose tables cannot leave this server at all.
///
/// # Errors
/// 0A000.
pub fn refuse_unique(slot_id: i64) -> PgResult<()> {
    let found = spi::rows(
        "SELECT p.table_oid::text, i.indexrelid::regclass::text FROM foreshard.slot_partition p \
         JOIN pg_catalog.pg_index i ON i.indrelid = p.table_oid AND i.indisunique WHERE p.slot_id = $1 ORDER BY i.indexrelid LIMIT 1",
        &[slot_id.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<String>(2)?)),
    )?;
    match found.into_iter().next() {
        Some((table, index)) => Err(unique(&table, &index)),
        None => Ok(()),
    }
}

/// Everything that speaks against moving a partition when one of its two places is on a node.
pub fn against(partition: pg_sys::Oid, nodes: &[&NodeRow]) -> PgResult<Vec<String>> {
    let mut found = Vec::new();
    if behind(partition)?.is_none() {
        found.extend(preflight::against_move(partition)?);
    }
    // Of a partition on a node as well: what was made on the foreign table alone would go with it.
    found.extend(split::against_split(partition)?);
    found.extend(of_table(partition)?);
    for node in nodes {
        found.extend(of_roles(partition, node)?);
    }
    Ok(found)
}

/// What of the partitioned table a foreign table cannot take part in.
fn of_table(partition: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(
        "WITH parent AS (SELECT c.oid, c.relowner FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhparent WHERE i.inhrelid = $1) \
         SELECT 'no_partition: it belongs to no table any more' WHERE NOT EXISTS (SELECT FROM parent) \
         UNION ALL SELECT 'unique_index: ' || i.indexrelid::regclass FROM parent p JOIN pg_catalog.pg_index i ON i.indrelid = p.oid AND i.indisunique \
         UNION ALL SELECT 'chosen_keys: the slot has keys with partitions of their own' FROM foreshard.slot_partition s WHERE s.partition = $1 AND s.branch IS NOT NULL \
         UNION ALL SELECT 'foreign_key: ' || pg_catalog.quote_ident(k.conname) FROM parent p JOIN pg_catalog.pg_constraint k ON k.conrelid = p.oid AND k.contype = 'f' \
         UNION ALL SELECT 'inherited_check: ' || pg_catalog.quote_ident(k.conname) || ' belongs to the partition alone' FROM pg_catalog.pg_constraint k \
             WHERE k.conrelid = $1 AND k.contype = 'c' AND k.coninhcount = 0 \
         UNION ALL SELECT 'constraint_trigger: ' || pg_catalog.quote_ident(t.tgname) FROM parent p JOIN pg_catalog.pg_trigger t ON t.tgrelid = p.oid \
             WHERE NOT t.tgisinternal AND t.tgconstraint <> 0 \
         UNION ALL SELECT 'transition_table: ' || pg_catalog.quote_ident(t.tgname) || ' would see rows of a foreign table' FROM parent p \
             JOIN pg_catalog.pg_trigger t ON t.tgrelid = p.oid WHERE NOT t.tgisinternal AND (t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL) \
         UNION ALL SELECT 'row_security: row level security of the table does not bind those with rights on it who go to the node directly' FROM parent p \
             JOIN pg_catalog.pg_class c ON c.oid = p.oid WHERE c.relrowsecurity AND EXISTS ( \
                 SELECT 1 FROM pg_catalog.aclexplode(c.relacl) a WHERE a.grantee <> c.relowner \
                 UNION ALL SELECT 1 FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a WHERE t.attrelid = c.oid AND a.grantee <> c.relowner) \
         UNION ALL SELECT 'column_rights: ' || CASE WHEN q.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(q.grantee)) END \
                || ' may write some columns only, and postgres_fdw writes all' FROM ( \
             SELECT DISTINCT a.grantee FROM parent p JOIN pg_catalog.pg_attribute t ON t.attrelid IN (p.oid, $1), pg_catalog.aclexplode(t.attacl) a \
             WHERE a.privilege_type IN ('INSERT', 'UPDATE') AND a.grantee <> p.relowner) q \
         UNION ALL SELECT 'publication: ' || pg_catalog.quote_ident(b.pubname) FROM parent p CROSS JOIN pg_catalog.pg_publication b WHERE b.puballtables \
               OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = b.oid AND r.prrelid = p.oid) \
               OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.pnnspid WHERE n.pnpubid = b.oid AND c.oid = p.oid) \
         UNION ALL SELECT 'generated_column: ' || pg_catalog.quote_ident(a.attname) FROM parent p JOIN pg_catalog.pg_attribute a ON a.attrelid = p.oid \
             WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '' \
         UNION ALL SELECT 'reserved_name: ' || pg_catalog.quote_ident(a.attname) FROM parent p JOIN pg_catalog.pg_attribute a ON a.attrelid = p.oid \
             WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attname LIKE 'foreshard\\_%' \
         UNION ALL SELECT 'own_row_security: row level security of the partition itself' FROM pg_catalog.pg_class WHERE oid = $1 AND relrowsecurity \
         UNION ALL SELECT 'key_type: ' || pg_catalog.format_type(a.atttypid, a.atttypmod) || ' of ' || pg_catalog.quote_ident(a.attname) \
             || ' is not one of PostgreSQL''s own types' FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = $1 AND (t.typnamespace <> 'pg_catalog'::regnamespace OR t.typtype <> 'b') \
               AND a.attnum = ANY (SELECT k FROM pg_catalog.pg_index i, pg_catalog.unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) k WHERE i.indrelid = $1 AND i.indisunique)",
        &[partition.into()],
        |row| row.need(1),
    )
}

/// Who has rights on the table and could not use it on the node.
fn of_roles(partition: pg_sys::Oid, node: &NodeRow) -> PgResult<Vec<String>> {
    spi::rows(
        "WITH parent AS (SELECT c.oid, c.relowner FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhparent WHERE i.inhrelid = $1), \
         server AS (SELECT oid FROM pg_catalog.pg_foreign_server WHERE srvname = $2::name) \
         SELECT format('no_server: server %I does not exist', $2) WHERE NOT EXISTS (SELECT FROM server) \
         UNION ALL SELECT format('no_user_mapping: %s has rights on the table and no user mapping for server %I', u, $2) \
             FROM parent p CROSS JOIN server s CROSS JOIN LATERAL ( \
                 SELECT foreshard.unmapped_roles(p.oid, $2::name) UNION SELECT foreshard.unmapped_roles($1, $2::name)) q (u) \
         UNION ALL SELECT format('no_usage: the owner of the table may not use server %I', $2) FROM parent p CROSS JOIN server s \
             WHERE NOT pg_catalog.has_server_privilege(p.relowner, s.oid, 'USAGE')",
        &[partition.into(), node.server.as_str().into()],
        |row| row.need(1),
    )
}

/// How a database orders texts by default, in a form that does not hang on how the locale was written.
const ORDER: &str = "SELECT pg_catalog.concat_ws(' ', d.datlocprovider, pg_catalog.lower(pg_catalog.replace(pg_catalog.concat_ws(' ', \
        coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale', d.datcollate::text), d.datctype), '-', ''))) \
    FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";

/// Texts that are ordered as the database has it, where the node has it otherwise: postgres_fdw leaves comparing and sorting to the
/// node, and a statement would find other rows than before the move.
pub fn other_order(partition: pg_sys::Oid, node: &NodeRow) -> PgResult<Option<String>> {
    let columns = spi::one::<String>(
        "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attcollation = 'pg_catalog.\"default\"'::pg_catalog.regcollation",
        &[partition.into()],
    )?;
    let Some(columns) = columns else { return Ok(None) };
    let owner = super::shape(partition)?.owner;
    order_of(&Link::of_owner(&node.server, owner)?, node, &columns)
}

/// The same of columns that are named, over a link to the node.
pub fn order_of(link: &Link, node: &NodeRow, columns: &str) -> PgResult<Option<String>> {
    let there = link.one(ORDER)?.unwrap_or_default();
    let here = spi::one::<String>(ORDER, &[])?.unwrap_or_default();
    Ok((here != there).then(|| {
        format!(
            "collation: {columns} would be ordered by \"{there}\" on node \"{}\", which is \"{here}\" here",
            node.name
        )
    }))
}

/// A node whose texts have another encoding.
pub fn other_encoding(link: &Link, node: &NodeRow) -> PgResult<Option<String>> {
    const ENCODING: &str = "SELECT pg_catalog.current_setting('server_encoding')";
    let there = link.one(ENCODING)?.unwrap_or_default();
    let here = spi::one::<String>(ENCODING, &[])?.unwrap_or_default();
    Ok((here != there).then(|| format!("encoding: {there} on node \"{}\", {here} here", node.name)))
}

/// Tables of several owners in one group: a worker that acts for one of them has connections of the others open, which
/// code of that one could use by their names.
pub fn mixed_owners(partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT 'mixed_owners: the tables of the group belong to ' || pg_catalog.string_agg(pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(q.relowner)), ', ' ORDER BY q.relowner) \
         FROM (SELECT DISTINCT p.relowner FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent WHERE i.inhrelid = ANY ($1)) q \
         HAVING count(*) > 1",
        &[partitions.to_vec().into()],
        |row| row.need(1),
    )
}

/// Everything that speaks against a table whose unique indexes are those of its partitions.
pub fn against_layout(table: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT 'inbound_foreign_key: ' || pg_catalog.quote_ident(conname) || ' of ' || conrelid::regclass || ' needs a unique index of the whole table' \
             FROM pg_catalog.pg_constraint WHERE contype = 'f' AND confrelid = $1 AND conparentid = 0 \
         UNION ALL SELECT 'foreign_key: ' || pg_catalog.quote_ident(conname) FROM pg_catalog.pg_constraint WHERE contype = 'f' AND conrelid = $1 \
         UNION ALL SELECT 'constraint_trigger: ' || pg_catalog.quote_ident(tgname) FROM pg_catalog.pg_trigger \
             WHERE tgrelid = $1 AND NOT tgisinternal AND tgconstraint <> 0 \
         UNION ALL SELECT 'transition_table: ' || pg_catalog.quote_ident(tgname) || ' would see rows of a foreign table' FROM pg_catalog.pg_trigger \
             WHERE tgrelid = $1 AND NOT tgisinternal AND (tgoldtable IS NOT NULL OR tgnewtable IS NOT NULL) \
         UNION ALL SELECT 'generated_column: ' || pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute \
             WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated <> '' \
         UNION ALL SELECT 'no_key: the table has no primary key and no unique index over NOT NULL columns' WHERE NOT EXISTS ( \
             SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL \
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 \
                               AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND NOT a.attnotnull))",
        &[table.into()],
        |row| row.need(1),
    )
}
