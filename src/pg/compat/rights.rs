//! Whose rights a statement asks for: since 16 they stand beside the range table instead of in it.

use pgrx::pg_sys;

/// Whether a statement names this relation itself (privileges are checked on it), rather than reaching it as
/// the partition of another one.
///
/// # Safety
/// `entry` must be a relation's range table entry.
pub unsafe fn is_named(entry: *const pg_sys::RangeTblEntry) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: as promised by the caller.
    unsafe {
        (*entry).requiredPerms != 0
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        (*entry).perminfoindex != 0
    }
}

/// The columns of a relation that a query reads, numbered from the lowest system column.
///
/// # Safety
/// `entry` must be a relation's range table entry of the query.
pub unsafe fn columns_read(
    query: *const pg_sys::Query,
    entry: *const pg_sys::RangeTblEntry,
) -> *mut pg_sys::Bitmapset {
    #[cfg(feature = "pg15")]
    // SAFETY: as promised by the caller.
    unsafe {
        let _ = query;
        (*entry).selectedCols
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        rights((*query).rteperminfos, entry).map_or(std::ptr::null_mut(), |rights| (*rights).selectedCols)
    }
}

/// The role whose rights count for a relation of a query; 0: the current one.
///
/// # Safety
/// `entry` must be a relation's range table entry of the query.
pub unsafe fn checked_as(query: *const pg_sys::Query, entry: *const pg_sys::RangeTblEntry) -> pg_sys::Oid {
    #[cfg(feature = "pg15")]
    // SAFETY: as promised by the caller.
    unsafe {
        let _ = query;
        (*entry).checkAsUser
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        rights((*query).rteperminfos, entry).map_or(pg_sys::InvalidOid, |rights| (*rights).checkAsUser)
    }
}

/// What a range table entry asks rights for.
///
/// # Safety
/// `all` must be the list that the entry's index points into.
#[cfg(not(feature = "pg15"))]
unsafe fn rights(
    all: *mut pg_sys::List,
    entry: *const pg_sys::RangeTblEntry,
) -> Option<*mut pg_sys::RTEPermissionInfo> {
    // SAFETY: as promised by the caller; the index counts from 1, 0 is none.
    unsafe { crate::pg::plan::pointers(all).nth(((*entry).perminfoindex as usize).checked_sub(1)?) }
}

/// Tells the planner that the relation an entry names is another one now.
///
/// # Safety
/// `entry` must be a relation's range table entry of the query, which the planner may change.
pub unsafe fn set_named(
    query: *mut pg_sys::Query,
    entry: *const pg_sys::RangeTblEntry,
    relation: pg_sys::Oid,
) {
    #[cfg(feature = "pg15")]
    let _ = (query, entry, relation);
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        if let Some(rights) = rights((*query).rteperminfos, entry) {
            (*rights).relid = relation;
        }
    }
}

/// Makes an entry that was added to a plan the one whose rights are checked: it has what the plan asks rights for.
///
/// # Safety
/// `entry` must be a copy of a range table entry of the plan.
pub unsafe fn name_again(planned: *mut pg_sys::PlannedStmt, entry: *const pg_sys::RangeTblEntry) {
    #[cfg(feature = "pg15")]
    let _ = (planned, entry);
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        if let Some(rights) = rights((*planned).permInfos, entry) {
            (*rights).relid = (*entry).relid;
        }
    }
}

/// Makes an entry one that is not named: no rights are checked on it.
///
/// # Safety
/// `entry` must be a relation's range table entry of a plan.
pub unsafe fn unname(entry: *mut pg_sys::RangeTblEntry) {
    #[cfg(feature = "pg15")]
    // SAFETY: as promised by the caller.
    unsafe {
        (*entry).requiredPerms = 0;
        (*entry).selectedCols = std::ptr::null_mut();
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        (*entry).perminfoindex = 0;
    }
}
