//! Names and schemas of relations, read and changed without a statement: some are under users' locks.

use super::report::{PgResult, PgSqlErrorCode, cstring, error, internal};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use std::ffi::CStr;

const NO_LOCK: i32 = pg_sys::NoLock as i32;

fn gone(relation: pg_sys::Oid) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, format!("relation {} does not exist", relation.to_u32()))
}

/// A relation's schema-qualified, quoted name.
pub fn qualified(relation: pg_sys::Oid) -> PgResult<String> {
    // SAFETY: look-ups by oid; what they return are C strings of the current memory context, or null.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        if name.is_null() || schema.is_null() {
            return Err(gone(relation));
        }
        let full = pg_sys::quote_qualified_identifier(schema, name);
        CStr::from_ptr(full).to_str().map(str::to_owned).map_err(internal)
    }
}

/// A relation's name without its schema, as it is.
pub fn plain(relation: pg_sys::Oid) -> PgResult<String> {
    // SAFETY: as in `qualified`.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return Err(gone(relation));
        }
        CStr::from_ptr(name).to_str().map(str::to_owned).map_err(internal)
    }
}

/// The schema of a relation.
pub fn schema(relation: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: a look-up by oid.
    unsafe { pg_sys::get_rel_namespace(relation) }
}

/// Renames a table or an index (with its constraint) that the caller has locked ACCESS EXCLUSIVE, or whose table is.
pub fn rename(relation: pg_sys::Oid, name: &str, is_index: bool) {
    let name = cstring(name);
    // SAFETY: the relation exists; raises when the name is taken.
    unsafe {
        pg_sys::RenameRelationInternal(relation, name.as_ptr(), true, is_index);
        pg_sys::CommandCounterIncrement();
    }
}

/// Moves a table that the caller has locked ACCESS EXCLUSIVE to another schema, with all that belongs to it.
pub fn set_schema(table: pg_sys::Oid, schema: pg_sys::Oid) {
    // SAFETY: the table is locked and stays open while its rows of the catalog change; the list of what has moved
    // lives through the call.
    unsafe {
        let relation = pg_sys::table_open(table, NO_LOCK);
        let old = (*(*relation).rd_rel).relnamespace;
        let moved = pg_sys::new_object_addresses();
        pg_sys::AlterTableNamespaceInternal(relation, old, schema, moved);
        pg_sys::free_object_addresses(moved);
        pg_sys::table_close(relation, NO_LOCK);
        pg_sys::CommandCounterIncrement();
    }
}

/// Whether an extension is in this database.
pub fn has_extension(name: &CStr) -> bool {
    // SAFETY: a look into pg_extension by a C string; a missing one gives InvalidOid.
    unsafe { pg_sys::get_extension_oid(name.as_ptr(), true) != pg_sys::InvalidOid }
}
