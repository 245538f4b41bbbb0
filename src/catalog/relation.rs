//! Facts about relations and the extension itself.

use crate::pg::report::PgResult;
use crate::pg::{security, spi};
use pgrx::pg_sys;

/// relkind of a relation, empty when it does not exist.
pub fn kind(relation: pg_sys::Oid) -> PgResult<String> {
    let found = spi::one::<String>(
        "SELECT relkind::text FROM pg_catalog.pg_class WHERE oid = $1",
        &[relation.into()],
    )?;
    Ok(found.unwrap_or_default())
}

/// Bytes of a relation with indexes and toast.
pub fn bytes(relation: pg_sys::Oid) -> PgResult<i64> {
    let found =
        spi::one::<i64>("SELECT pg_catalog.pg_total_relation_size($1::regclass)", &[relation.into()])?;
    Ok(found.unwrap_or(0))
}

/// Bytes of a table and all its partitions.
pub fn bytes_of_tree(table: pg_sys::Oid) -> PgResult<i64> {
    let partitions = spi::one::<i64>(
        "SELECT sum(pg_catalog.pg_total_relation_size(relid))::int8 FROM pg_catalog.pg_partition_tree($1::regclass)",
        &[table.into()],
    )?;
    match partitions {
        Some(bytes) => Ok(bytes),
        None => bytes(table),
    }
}

/// (number, type) of a column.
pub fn column(table: pg_sys::Oid, name: &str) -> PgResult<Option<(i16, pg_sys::Oid)>> {
    let found = spi::rows(
        "SELECT attnum, atttypid FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attname = $2::name AND attnum > 0 AND NOT attisdropped",
        &[table.into(), name.into()],
        |row| Ok((row.need::<i16>(1)?, row.need::<pg_sys::Oid>(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// Whether a tablespace may hold user data; None when it does not exist.
pub fn usable_tablespace(name: &str) -> PgResult<Option<bool>> {
    spi::one::<bool>(
        "SELECT spcname <> 'pg_global' FROM pg_catalog.pg_tablespace WHERE spcname = $1::name",
        &[name.into()],
    )
}

/// Whether this database has the extension.
pub fn has_extension() -> PgResult<bool> {
    let installed = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'foreshard')",
        &[],
    )?;
    Ok(installed.unwrap_or(false))
}

/// Takes from a table or sequence that was just made what ALTER DEFAULT PRIVILEGES granted on it: whoever made it is not
/// whose it will be. It is then as one on which nothing was granted.
pub fn without_grants(relation: pg_sys::Oid) -> PgResult<()> {
    let granted = "SELECT relacl IS NOT NULL FROM pg_catalog.pg_class WHERE oid = $1";
    if spi::one::<bool>(granted, &[relation.into()])? != Some(true) {
        return Ok(());
    }
    let _guard = security::as_extension_owner()?;
    let revokes = spi::rows(
        "SELECT DISTINCT format('REVOKE ALL ON %s %I.%I FROM %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname, \
                CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, pg_catalog.aclexplode(c.relacl) a \
         WHERE c.oid = $1 AND a.grantee <> c.relowner",
        &[relation.into()],
        |row| row.need::<String>(1),
    )?;
    revokes.iter().try_for_each(|revoke| spi::run(revoke, &[]).map(drop))?;
    spi::run("UPDATE pg_catalog.pg_class SET relacl = NULL WHERE oid = $1", &[relation.into()])?;
    Ok(())
}

/// Whether row-level security of a table applies to the current user.
pub fn is_row_security_active(table: pg_sys::Oid) -> PgResult<bool> {
    Ok(spi::one::<bool>("SELECT pg_catalog.row_security_active($1)", &[table.into()])? == Some(true))
}
