//! Reasons why a table cannot be distributed or moved, all of them at once, each with a machine-readable
//! word in front.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;

fn reasons(sql: &str, table: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(sql, &[table.into()], |row| row.need::<String>(1))
}

/// Reasons that stand against rebuilding `table` under a new oid (distribute and undistribute).
pub fn against_rebuild(table: pg_sys::Oid) -> PgResult<Vec<String>> {
    reasons(
        "SELECT 'not_permanent: the table is temporary or unlogged' FROM pg_catalog.pg_class WHERE oid = $1 AND relpersistence <> 'p' \
         UNION ALL SELECT 'inheritance: the table inherits from or is inherited by ' || CASE WHEN inhrelid = $1 THEN inhparent ELSE inhrelid END::regclass \
           FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhparent \
           WHERE (inhrelid = $1 OR inhparent = $1) AND c.relkind <> 'p' \
         UNION ALL SELECT 'is_partition: the table is a partition of another table' FROM pg_catalog.pg_class WHERE oid = $1 AND relispartition \
         UNION ALL SELECT 'typed_table: the table is of a composite type' FROM pg_catalog.pg_class WHERE oid = $1 AND reloftype <> 0 \
         UNION ALL SELECT 'exclusion_constraint: ' || pg_catalog.quote_ident(conname) FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'x' \
         UNION ALL SELECT 'rule: ' || pg_catalog.quote_ident(rulename) FROM pg_catalog.pg_rewrite WHERE ev_class = $1 \
         UNION ALL SELECT DISTINCT 'materialized_view: ' || v.oid::regclass FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid JOIN pg_catalog.pg_class v ON v.oid = r.ev_class \
             WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND v.relkind = 'm' \
         UNION ALL SELECT 'row_type_used: ' || pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) \
             FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_type t ON t.oid = d.refobjid \
             WHERE d.refclassid = 'pg_type'::regclass AND d.deptype = 'n' AND (t.typrelid = $1 \
               OR t.typelem IN (SELECT oid FROM pg_catalog.pg_type WHERE typrelid = $1)) \
         UNION ALL SELECT 'function_body: ' || p.oid::regprocedure FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_proc p ON p.oid = d.objid \
             WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'n' \
         UNION ALL SELECT 'transition_table: row trigger ' || pg_catalog.quote_ident(tgname) FROM pg_catalog.pg_trigger \
             WHERE tgrelid = $1 AND NOT tgisinternal AND (tgtype & 1) = 1 AND (tgoldtable IS NOT NULL OR tgnewtable IS NOT NULL) \
         UNION ALL SELECT 'publication_filter: ' || pg_catalog.quote_ident(p.pubname) FROM pg_catalog.pg_publication_rel r \
             JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
             WHERE r.prrelid = $1 AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL) AND NOT p.pubviaroot \
         UNION ALL SELECT 'publication_filter: ' || pg_catalog.quote_ident(p.pubname) || ' (filter or column list)' FROM pg_catalog.pg_publication_rel r \
             JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid \
             WHERE r.prrelid = $1 AND (r.prqual IS NOT NULL OR r.prattrs IS NOT NULL) AND p.pubviaroot \
         UNION ALL SELECT 'replica_identity_index: the replica identity is an index' FROM pg_catalog.pg_class WHERE oid = $1 AND relreplident = 'i' \
         UNION ALL SELECT 'security_label: ' || provider FROM pg_catalog.pg_seclabel WHERE classoid = 'pg_class'::regclass AND objoid = $1 \
         UNION ALL SELECT 'extension_member: the table belongs to an extension' FROM pg_catalog.pg_depend \
             WHERE classid = 'pg_class'::regclass AND objid = $1 AND deptype = 'e' \
         UNION ALL SELECT 'invalid_index: ' || indexrelid::regclass FROM pg_catalog.pg_index WHERE indrelid = $1 AND NOT indisvalid",
        table,
    )
}

/// Reasons that stand against making `table` an ordinary one again.
pub fn against_undistribute(table: pg_sys::Oid) -> PgResult<Vec<String>> {
    let mut found = against_rebuild(table)?;
    found.extend(reasons(
        "SELECT 'next_key_default: column ' || pg_catalog.quote_ident(a.attname) || ' takes its default from foreshard.next_key()' \
         FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
         WHERE f.adrelid = $1 AND EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_proc p ON p.oid = d.refobjid \
             WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_proc'::regclass \
               AND p.proname = 'next_key' AND p.pronamespace = 'foreshard'::regnamespace) \
         UNION ALL SELECT 'detach_pending: ' || inhrelid::regclass || ' (ALTER TABLE … DETACH PARTITION … FINALIZE)' FROM pg_catalog.pg_inherits \
             WHERE inhparent = $1 AND inhdetachpending",
        table,
    )?);
    Ok(found)
}

/// Reasons that stand against making `table` a partition as it is and splitting that (distribute online), beyond
/// those against a rebuild.
pub fn against_adoption(table: pg_sys::Oid) -> PgResult<Vec<String>> {
    let mut found = reasons(
        "SELECT 'inbound_foreign_key: ' || pg_catalog.quote_ident(conname) || ' of ' || conrelid::regclass FROM pg_catalog.pg_constraint \
           WHERE contype = 'f' AND confrelid = $1 AND conparentid = 0 \
         UNION ALL SELECT 'not_validated: constraint ' || pg_catalog.quote_ident(conname) FROM pg_catalog.pg_constraint \
           WHERE conrelid = $1 AND NOT convalidated \
         UNION ALL SELECT 'publication: ' || pg_catalog.quote_ident(p.pubname) || ' publishes partitions under their own names (publish_via_partition_root is off)' \
           FROM pg_catalog.pg_publication p WHERE NOT p.pubviaroot AND (p.puballtables \
             OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = $1) \
             OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.pnnspid \
                        WHERE n.pnpubid = p.oid AND c.oid = $1)) \
         UNION ALL SELECT 'subscription: the table is the target of a subscription' FROM pg_catalog.pg_subscription_rel WHERE srrelid = $1",
        table,
    )?;
    found.extend(against_move(table)?);
    Ok(found)
}

/// What adopting a table locks ACCESS EXCLUSIVE and SHARE ROW EXCLUSIVE: itself, the views that show it, identity
/// sequences, which go with it, tables whose defaults name it, and what its foreign keys lead to, because a partition
/// that joins gives up triggers there; sequences of its columns, which change hands.
pub fn around(table: pg_sys::Oid) -> PgResult<(Vec<pg_sys::Oid>, Vec<pg_sys::Oid>)> {
    let mut exclusive = vec![table];
    let others: Vec<pg_sys::Oid> = spi::rows(
        "SELECT v.oid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid JOIN pg_catalog.pg_class v ON v.oid = r.ev_class \
             WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND v.relkind = 'v' \
         UNION SELECT s.oid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'i' \
         UNION SELECT f.adrelid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef f ON f.oid = d.objid \
             WHERE d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid = 0 AND f.adrelid <> $1 \
         ORDER BY 1",
        &[table.into()],
        |row| row.need(1),
    )?;
    exclusive.extend(others);
    let (_, referenced) = super::child::around(&[table])?;
    exclusive.extend(referenced);
    Ok((exclusive, own_sequences(table)?))
}

/// Sequences that the columns of a table own, ascending.
pub fn own_sequences(table: pg_sys::Oid) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT s.oid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'a' ORDER BY 1",
        &[table.into()],
        |row| row.need(1),
    )
}

/// Reasons that stand against hash partitioning `table` by column number `key`.
pub fn against_key(table: pg_sys::Oid, key: i16) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT 'unique_without_key: ' || i.indexrelid::regclass FROM pg_catalog.pg_index i \
         WHERE i.indrelid = $1 AND i.indisunique \
           AND NOT $2 = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
         UNION ALL SELECT 'generated_key: the key column is generated' FROM pg_catalog.pg_attribute \
         WHERE attrelid = $1 AND attnum = $2 AND attgenerated <> ''",
        &[table.into(), key.into()],
        |row| row.need::<String>(1),
    )
}

/// The identity index of a partition (primary key, else a unique, immediate, plain index over NOT NULL
/// columns) with its key's attribute numbers; None when there is none.
pub fn identity_index(partition: pg_sys::Oid) -> PgResult<Option<(pg_sys::Oid, Vec<i16>)>> {
    let found = spi::rows(
        "SELECT i.indexrelid, (i.indkey::int2[])[0:i.indnkeyatts - 1] FROM pg_catalog.pg_index i \
         WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 \
                           AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND NOT a.attnotnull) \
         ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1",
        &[partition.into()],
        |row| Ok((row.need::<pg_sys::Oid>(1)?, row.need::<Vec<i16>>(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// Reasons that stand against moving a leaf partition online.
pub fn against_move(partition: pg_sys::Oid) -> PgResult<Vec<String>> {
    let mut found = reasons(
        "SELECT 'not_permanent: the partition is unlogged' FROM pg_catalog.pg_class WHERE oid = $1 AND relpersistence <> 'p' \
         UNION ALL SELECT 'not_a_table: the partition is itself partitioned or foreign' FROM pg_catalog.pg_class WHERE oid = $1 AND relkind <> 'r' \
         UNION ALL SELECT 'access_method: ' || a.amname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_am a ON a.oid = c.relam WHERE c.oid = $1 AND a.amname <> 'heap' \
         UNION ALL SELECT 'exclusion_constraint: ' || pg_catalog.quote_ident(conname) FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'x' \
         UNION ALL SELECT 'forced_row_security: row level security is forced on the partition itself' FROM pg_catalog.pg_class WHERE oid = $1 AND relforcerowsecurity \
         UNION ALL SELECT 'invalid_index: ' || indexrelid::regclass FROM pg_catalog.pg_index WHERE indrelid = $1 AND NOT (indisvalid AND indisready AND indislive)",
        partition,
    )?;
    if found.is_empty() && identity_index(partition)?.is_none() {
        found.push("no_identity_index: no primary key and no unique index over NOT NULL columns".to_string());
    }
    Ok(found)
}
