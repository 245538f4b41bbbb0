//! Adoption: an ordinary table becomes, as it is, the only partition of a new partitioned table of its name. No row
//! is read or written. It is the first half of distributing a table online; the second is a split of that partition
//! (docs/decisions/0008).

use super::attach::{attach, tail_of};
use super::definition::{Definition, capture};
use super::name_of;
use super::rebuild::{Rebuilt, Shape, dress, drop_scratch_schema, put_back, step_aside};
use crate::pg::report::{PgResult, internal};
use crate::pg::spi;
use crate::pg::{security, sequence, storage};
use pgrx::pg_sys;
use pgrx::spi::quote_identifier;

/// Makes `table` the partition (modulus 1, remainder 0) of a new table of its name, partitioned by hash of `key`.
/// The caller holds ACCESS EXCLUSIVE on it, has run the preflight, and no foreign key leads to it.
pub fn adopt(table: pg_sys::Oid, key: &str) -> PgResult<Rebuilt> {
    let definition = capture(table)?;
    let aside = step_aside(table, &definition)?;
    dress(&definition, &aside, &Shape::Hash { key, base: 1, leaves: &[], own_unique: false })?;
    let parent = spi::one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[definition.name.as_str().into()])?
        .ok_or_else(|| internal("the new table is not there"))?;
    strip(table)?;
    rename(table, parent, &definition)?;
    put_back(table, &definition)?;
    drop_scratch_schema(table)?;
    let owner = security::relation_owner(table)?;
    let as_extension_owner = security::as_extension_owner()?;
    let twin = storage::create_heap_like(table, pg_sys::InvalidOid)?;
    drop(as_extension_owner);
    // Every key has remainder 0: what ATTACH would scan for is true of any row.
    attach(parent, owner, table, twin, "FOR VALUES WITH (MODULUS 1, REMAINDER 0)")?;
    storage::drop_own_table(twin);
    storage::forget_cached(table);
    Ok(Rebuilt { table: parent, leaves: vec![table], rows: 0 })
}

/// Takes away what is the new table's now, or would be there twice.
fn strip(table: pg_sys::Oid) -> PgResult<()> {
    let statements = spi::rows(
        "SELECT statement FROM ( \
           SELECT 1 AS o, format('DROP TRIGGER %I ON %s', tgname, tgrelid::regclass) AS statement FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal \
           UNION ALL SELECT 1, format('DROP POLICY %I ON %s', polname, polrelid::regclass) FROM pg_catalog.pg_policy WHERE polrelid = $1 \
           UNION ALL SELECT 2, format('ALTER TABLE %s ALTER COLUMN %I DROP IDENTITY', attrelid::regclass, attname) \
             FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attidentity <> '' AND NOT attisdropped) q ORDER BY o, statement",
        &[table.into()],
        |row| row.need::<String>(1),
    )?;
    statements.iter().try_for_each(|statement| spi::run(statement, &[]).map(drop))?;
    let published = spi::rows(
        "SELECT format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, r.prrelid::regclass) \
         FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1",
        &[table.into()],
        |row| row.need::<String>(1),
    )?;
    // A table that is dropped leaves its publications without asking their owners, too.
    let _guard = security::as_extension_owner()?;
    published.iter().try_for_each(|statement| spi::run(statement, &[]).map(drop))
}

/// The partition and its indexes get names of their own; the old ones are the new table's.
fn rename(table: pg_sys::Oid, parent: pg_sys::Oid, definition: &Definition) -> PgResult<()> {
    let indexes = spi::rows(
        "SELECT i.indexrelid, c.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
         WHERE i.indrelid = $1 ORDER BY 1",
        &[table.into()],
        |row| Ok((row.need::<pg_sys::Oid>(1)?, row.need::<String>(2)?)),
    )?;
    let name = sequence::free_name(parent, None, "s1_0", parent)?;
    spi::run(&format!("ALTER TABLE {} RENAME TO {}", name_of(table)?, quote_identifier(&name)), &[])?;
    for (index, old) in indexes {
        let (columns, label) = tail_of(&old, &definition.bare_name);
        let name = sequence::free_name(table, columns, label, parent)?;
        spi::run(&format!("ALTER INDEX {} RENAME TO {}", name_of(index)?, quote_identifier(&name)), &[])?;
    }
    Ok(())
}
