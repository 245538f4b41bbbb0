//! What `next_key()` must know of a table, and the sequence its keys come from.

use super::name_of;
use super::relation::without_grants;
use crate::pg::report::PgResult;
use crate::pg::{security, sequence, spi};
use pgrx::pg_sys;
use pgrx::spi::{quote_identifier, quote_literal};

/// Keys that one value of a key sequence stands for. Part of the on-disk contract: never change it. It
/// exceeds the most slots a table may have, so that a block has a key for nearly every slot.
pub const BLOCK: i64 = 8192;
/// The last value of a key sequence: the last key of its block is the last bigint.
const LAST_BLOCK: i64 = i64::MAX / BLOCK;

/// A managed table, as the birth of its keys sees it.
pub struct Newborn {
    /// Colocation group.
    pub group_id: i32,
    /// Key sequence; None when the table was distributed without one.
    pub key_sequence: Option<pg_sys::Oid>,
}

/// The managed table, None when it is not managed.
pub fn newborn(table: pg_sys::Oid) -> PgResult<Option<Newborn>> {
    let found = spi::rows(
        "SELECT group_id, key_sequence::oid FROM foreshard.managed_table WHERE table_oid = $1",
        &[table.into()],
        |row| Ok(Newborn { group_id: row.need(1)?, key_sequence: row.get(2)? }),
    )?;
    Ok(found.into_iter().next())
}

/// A partition's slot and shard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cradle {
    /// The leaf partition.
    pub partition: pg_sys::Oid,
    /// Slot.
    pub slot_id: i64,
    /// Shard of the slot.
    pub shard_id: i32,
    /// Capacity of the shard.
    pub capacity: f64,
    /// The shard is being emptied.
    pub draining: bool,
}

/// The hash partitions of a managed table; a new key is no chosen one.
pub fn cradles(table: pg_sys::Oid) -> PgResult<Vec<Cradle>> {
    spi::rows(
        "SELECT coalesce(p.branch, p.partition)::oid, s.slot_id, h.shard_id, h.capacity, h.draining \
         FROM foreshard.slot_partition p JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard h USING (shard_id) \
         WHERE p.table_oid = $1 AND s.home_slot_id IS NULL",
        &[table.into()],
        |row| {
            Ok(Cradle {
                partition: row.need(1)?,
                slot_id: row.need(2)?,
                shard_id: row.need(3)?,
                capacity: row.need(4)?,
                draining: row.need(5)?,
            })
        },
    )
}

/// The managed tables that foreign keys of `table` lead to, keys that contain column `key` aside: rows of
/// those already live where their parent does.
pub fn parents(table: pg_sys::Oid, key: i16) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT DISTINCT k.confrelid FROM pg_catalog.pg_constraint k JOIN foreshard.managed_table m ON m.table_oid = k.confrelid \
         WHERE k.conrelid = $1 AND k.contype = 'f' AND k.conparentid = 0 AND NOT $2 = ANY (k.conkey)",
        &[table.into(), key.into()],
        |row| row.need::<pg_sys::Oid>(1),
    )
}

/// Whether a column has a sequence of its own (serial, identity).
fn has_sequence(table: pg_sys::Oid, column: &str) -> PgResult<bool> {
    let found = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') \
           AND a.attrelid = $1 AND a.attname = $2::name)",
        &[table.into(), column.into()],
    )?;
    Ok(found.unwrap_or(false))
}

/// Creates the sequence behind a table's bigint keys, owned by the key column, beginning above all keys.
/// Not for a column that has a sequence already: the two would draw the same keys one day, and
/// `pg_get_serial_sequence()` could answer with either.
pub fn create_key_sequence(table: pg_sys::Oid, key: &str) -> PgResult<()> {
    if has_sequence(table, key)? {
        return Ok(());
    }
    let (name, column) = (name_of(table)?, quote_identifier(key));
    // Only built-in code runs here, and row level security must not hide the greatest key.
    let as_extension_owner = security::as_extension_owner()?;
    let greatest = spi::one::<i64>(&format!("SELECT pg_catalog.max({column}::bigint) FROM {name}"), &[])?;
    drop(as_extension_owner);
    let (schema, owner) = place_and_owner(table)?;
    let bare_name = sequence::free_name(table, Some(key), "foreshard_seq", table)?;
    let full_name = format!("{schema}.{}", quote_identifier(&bare_name));
    let next = greatest.map_or(1, |key| key.div_euclid(BLOCK).max(0) + 1);
    let start = next.min(LAST_BLOCK);
    spi::run(
        &format!("CREATE SEQUENCE {full_name} AS bigint MAXVALUE {LAST_BLOCK} START WITH {start} NO CYCLE"),
        &[],
    )?;
    if let Some(made) = spi::one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[full_name.as_str().into()])? {
        without_grants(made)?;
    }
    if next > LAST_BLOCK {
        // Used up from the beginning; next_key() will say so.
        spi::run(
            "SELECT pg_catalog.setval($1::regclass, $2)",
            &[full_name.as_str().into(), LAST_BLOCK.into()],
        )?;
    }
    spi::run(&format!("ALTER SEQUENCE {full_name} OWNER TO {owner}"), &[])?;
    spi::run(&format!("ALTER SEQUENCE {full_name} OWNED BY {name}.{column}"), &[])?;
    let comment = format!(
        "Keys drawn by foreshard.next_key(): value v stands for the keys from v * {BLOCK} to v * {BLOCK} + {}.",
        BLOCK - 1
    );
    spi::run(&format!("COMMENT ON SEQUENCE {full_name} IS {}", quote_literal(&comment)), &[])?;
    let _owner = security::as_extension_owner()?;
    spi::run(
        "UPDATE foreshard.managed_table SET key_sequence = $2::regclass WHERE table_oid = $1",
        &[table.into(), full_name.as_str().into()],
    )?;
    Ok(())
}

/// (Schema, owner), quoted.
fn place_and_owner(table: pg_sys::Oid) -> PgResult<(String, String)> {
    let found = spi::rows(
        "SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        &[table.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    found.into_iter().next().ok_or_else(|| crate::pg::report::internal("table vanished"))
}

/// Drops a table's key sequence, if it still is one: its owner may have done something else with it.
pub fn drop_key_sequence(table: pg_sys::Oid, key_sequence: pg_sys::Oid) -> PgResult<()> {
    if sequence::is_owned_by(key_sequence, table) {
        spi::run(&format!("DROP SEQUENCE {}", name_of(key_sequence)?), &[])?;
    }
    Ok(())
}
