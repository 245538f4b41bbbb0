//! The relations that backends shall watch: partitioned tables and their leaves.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys::Oid;

/// A managed table or one of its partitions.
#[derive(Clone, Debug, PartialEq)]
pub struct Relation {
    /// Oid of the leaf partition or of the partitioned table.
    pub relation: u32,
    /// Oid of the partitioned table.
    pub table: u32,
    /// Slot of a leaf; None for the partitioned table.
    pub slot_id: Option<i64>,
    /// Colocation group.
    pub group_id: i32,
    /// Type of the group's keys.
    pub key_type: Oid,
    /// Shard of a leaf, else 0.
    pub shard_id: i32,
    /// Capacity of the shard, cost units per second; 0 for the partitioned table.
    pub capacity: f64,
    /// Attribute number of the key in `relation`: leaves may number theirs differently.
    pub key_attribute: i16,
    /// False: `configure(table, 'observe', 'off')`.
    pub observed: bool,
    /// It is a table on a node.
    pub is_foreign: bool,
}

/// A text that changes whenever [`relations`] would answer differently, and is cheaper to ask for.
pub fn fingerprint() -> PgResult<String> {
    let found = spi::one::<String>(
        "SELECT pg_catalog.concat_ws('/', \
             (SELECT pg_catalog.string_agg(m.xmin::text, ',' ORDER BY m.table_oid) FROM foreshard.managed_table m), \
             (SELECT pg_catalog.string_agg(t.xmin::text, ',' ORDER BY t.table_oid, t.setting) FROM foreshard.table_setting t), \
             (SELECT pg_catalog.string_agg(h.xmin::text, ',' ORDER BY h.shard_id) FROM foreshard.shard h), \
             (SELECT pg_catalog.concat(count(*), ' ', sum(s.shard_id), ' ', max(s.last_moved_at)) FROM foreshard.slot s), \
             (SELECT pg_catalog.concat(count(*), ' ', sum(p.partition::oid::int8)) FROM foreshard.slot_partition p), \
             (SELECT pg_catalog.concat(count(*), ' ', sum(t.oid::int8)) FROM foreshard.managed_table m \
                JOIN pg_catalog.pg_trigger t ON t.tgrelid = m.table_oid WHERE t.tgisinternal))",
        &[],
    )?;
    Ok(found.unwrap_or_default())
}

/// Triggers that PostgreSQL made for itself on partitions, as (trigger, that of the managed table of which it is a copy). Their
/// names are their own; those of triggers that people made are the same on every partition.
pub fn copies() -> PgResult<Vec<(u32, u32)>> {
    spi::rows(
        &format!(
            "WITH RECURSIVE up AS (SELECT t.oid AS copy, p.table_oid::oid AS table_oid, t.oid, t.tgrelid FROM foreshard.slot_partition p \
                 JOIN pg_catalog.pg_trigger t ON t.tgrelid = p.partition WHERE t.tgisinternal \
             UNION ALL SELECT u.copy, u.table_oid, r.oid, r.tgrelid FROM up u JOIN pg_catalog.pg_trigger t ON t.oid = u.oid {ORIGINAL} \
                 WHERE u.tgrelid <> u.table_oid) \
             SELECT copy, oid FROM up WHERE tgrelid = table_oid ORDER BY 1"
        ),
        &[],
        |row| Ok((row.need::<Oid>(1)?.to_u32(), row.need::<Oid>(2)?.to_u32())),
    )
}

/// Joins a trigger `t` of a partition with `r`, the one it was copied from: it says so, or its constraint does.
pub(super) const ORIGINAL: &str = "CROSS JOIN LATERAL (SELECT o.oid, o.tgrelid, o.tgname FROM pg_catalog.pg_trigger o WHERE o.oid = t.tgparentid \
     UNION ALL SELECT o.oid, o.tgrelid, o.tgname FROM pg_catalog.pg_constraint c \
         JOIN pg_catalog.pg_constraint a ON a.oid = c.conparentid \
         JOIN pg_catalog.pg_trigger o ON o.tgrelid = a.conrelid AND o.tgconstraint = a.oid AND o.tgfoid = t.tgfoid AND o.tgtype = t.tgtype \
     WHERE c.oid = t.tgconstraint AND t.tgparentid = 0) r";

/// Every managed table and every one of its partitions.
pub fn relations() -> PgResult<Vec<Relation>> {
    // The key's name now, whatever it was called when the table was distributed.
    spi::rows(
        "WITH managed AS (SELECT m.table_oid::oid AS table_oid, m.group_id, g.key_type::oid AS key_type, k.attname, k.attnum, \
                coalesce(pg_catalog.lower(t.value) NOT IN ('off', 'false', 'no', '0'), true) AS observed \
             FROM foreshard.managed_table m JOIN foreshard.colocation_group g USING (group_id) \
             JOIN pg_catalog.pg_partitioned_table r ON r.partrelid = m.table_oid \
             JOIN pg_catalog.pg_attribute k ON k.attrelid = m.table_oid AND k.attnum = r.partattrs[0] \
             LEFT JOIN foreshard.table_setting t ON t.table_oid = m.table_oid AND t.setting = 'observe') \
         SELECT m.table_oid, m.table_oid, NULL::int8, m.group_id, m.key_type, 0, 0::float8, m.attnum, m.observed, false FROM managed m \
         UNION ALL \
         SELECT p.partition::oid, m.table_oid, p.slot_id, m.group_id, m.key_type, s.shard_id, h.capacity, a.attnum, m.observed, c.relkind = 'f' \
         FROM managed m JOIN foreshard.slot_partition p ON p.table_oid = m.table_oid JOIN foreshard.slot s USING (slot_id) \
         JOIN foreshard.shard h USING (shard_id) JOIN pg_catalog.pg_class c ON c.oid = p.partition \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partition AND a.attname = m.attname AND NOT a.attisdropped",
        &[],
        |row| {
            Ok(Relation {
                relation: row.need::<Oid>(1)?.to_u32(),
                table: row.need::<Oid>(2)?.to_u32(),
                slot_id: row.get(3)?,
                group_id: row.need(4)?,
                key_type: row.need(5)?,
                shard_id: row.need(6)?,
                capacity: row.need(7)?,
                key_attribute: row.need(8)?,
                observed: row.need(9)?,
                is_foreign: row.need(10)?,
            })
        },
    )
}
