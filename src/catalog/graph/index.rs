//! Indexes that lead from the keys of a graph's nodes to rows of its tables.

use crate::catalog::name_of;
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::spi;
use pgrx::pg_sys;
use pgrx::spi::quote_identifier;

/// A column that is a key, and the index that leads to it.
#[derive(Clone, Copy, Debug)]
pub struct KeyIndex {
    /// The index; its first column is the key.
    pub index: pg_sys::Oid,
    /// Whether its second column is the other end of the edge.
    pub has_other_end: bool,
}

/// `depth = n` as the server writes it; the name is not quoted yet.
pub fn at_depth(column: &str, depth: i64) -> String {
    format!("({} = {depth})", quote_identifier(column))
}

/// A B-tree whose first column is `number`, best one whose second column is `other`: of the rows `which` says, as
/// the server writes it, or of all rows. Not one to which different keys are equal (a nondeterministic collation).
pub fn find_index(
    table: pg_sys::Oid,
    number: i16,
    other: i16,
    which: Option<&str>,
) -> PgResult<Option<KeyIndex>> {
    let found = spi::rows(
        "SELECT i.indexrelid, coalesce(i.indnkeyatts >= 2 AND i.indkey[1] = $3, false) \
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_collation l WHERE l.oid = i.indcollation[1] AND NOT l.collisdeterministic) AS both_ends \
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
              JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0] \
         WHERE i.indrelid = $1 AND i.indkey[0] = $2 AND pg_catalog.pg_get_expr(i.indpred, i.indrelid) IS NOT DISTINCT FROM $4 AND i.indisvalid AND i.indisready \
           AND c.relam = 403 AND o.opcdefault AND c.relkind = 'i' \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_collation l WHERE l.oid = i.indcollation[0] AND NOT l.collisdeterministic) \
         ORDER BY both_ends DESC, i.indnkeyatts, i.indexrelid LIMIT 1",
        &[table.into(), number.into(), other.into(), which.into()],
        |row| Ok(KeyIndex { index: row.need(1)?, has_other_end: row.need(2)? }),
    )?;
    Ok(found.into_iter().next())
}

pub(super) fn need_index(
    table: pg_sys::Oid,
    name: &str,
    (number, other): (i16, i16),
    which: Option<&str>,
) -> PgResult<KeyIndex> {
    let missing = || -> PgResult<_> {
        let (table, column) = (name_of(table)?, quote_identifier(name));
        Ok(wrong_state(format!("table {table} has no index on column \"{name}\", which its graph needs"))
            .set_hint(format!("CREATE INDEX ON {table} ({column}){};", condition(" WHERE", which))))
    };
    match find_index(table, number, other, which)? {
        Some(index) => Ok(index),
        None => Err(missing()?),
    }
}

pub(super) fn primary_key(table: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>(
        "SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = $1 AND indisprimary AND indisvalid",
        &[table.into()],
    )?
    .ok_or_else(|| wrong_state("a table that belongs to the graph has lost its primary key"))
}

/// A condition after a keyword, or nothing.
pub(super) fn condition(keyword: &str, which: Option<&str>) -> String {
    which.map(|which| format!("{keyword} {which}")).unwrap_or_default()
}
