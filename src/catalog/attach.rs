//! ATTACH PARTITION without its scan, for tables whose rows are known to belong where they go.

use super::name_of;
use crate::pg::report::{PgResult, internal};
use crate::pg::{security, spi, storage};
use pgrx::pg_sys;

/// What follows the table's name in that of an index: columns and label.
pub fn tail_of<'a>(index: &'a str, table: &str) -> (Option<&'a str>, &'a str) {
    let rest = index.strip_prefix(table).and_then(|rest| rest.strip_prefix('_')).unwrap_or("idx");
    rest.rsplit_once('_').map_or((None, rest), |(columns, label)| (Some(columns), label))
}

/// Attaches a copy while it shows the storage of its empty twin, as the owner: ATTACH looks at expressions.
/// The caller has made sure that its rows belong there.
pub fn attach(
    parent: pg_sys::Oid,
    owner: pg_sys::Oid,
    child: pg_sys::Oid,
    twin: pg_sys::Oid,
    bound: &str,
) -> PgResult<()> {
    let statement = format!("ALTER TABLE {} ATTACH PARTITION {} {bound}", name_of(parent)?, name_of(child)?);
    let before = storage::indexes(child);
    storage::swap_storage(child, twin)?;
    let guard = security::as_restricted_owner(owner);
    // The planner must not look into an index that has more than the heap it is shown; until the guard goes.
    for setting in ["enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"] {
        spi::set_local(setting, "off")?;
    }
    spi::run(&statement, &[])?;
    drop(guard);
    storage::swap_storage(child, twin)?;
    // An index that ATTACH had to make would be empty.
    if storage::indexes(child) != before {
        return Err(internal(format!("the indexes of {} do not fit those of its table", name_of(child)?)));
    }
    Ok(())
}
