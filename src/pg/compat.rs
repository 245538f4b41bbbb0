//! Every difference between PostgreSQL 15, 16, 17 and 18. No other file mentions a version.

pub mod explain;
mod pages;
mod rights;
mod run;

pub use pages::{extend, log_pages, needs_wal, toast, vacuum_info};
pub use rights::{checked_as, columns_read, is_named, name_again, set_named, unname};
pub use run::{RunArguments, asks_other_nodes, may_prune, register_run_hook, run_next, walk_plan_state};

use pgrx::pg_sys;

// Server functions that pgrx does not bind (`commands/cluster.h`, `storage/predicate.h`, `utils/datum.h`,
// `commands/sequence.h`), that must not go through its guard (the executor's), signal handlers, which pgrx
// binds in a form that is no function pointer, and a function that is called so often that one guard must do
// for many calls.
mod raw {
    use pgrx::pg_sys;
    // SAFETY: declarations follow the server headers of 15 to 18, which agree.
    unsafe extern "C-unwind" {
        pub fn make_new_heap(
            old_heap: pg_sys::Oid,
            new_tablespace: pg_sys::Oid,
            new_access_method: pg_sys::Oid,
            relpersistence: std::ffi::c_char,
            lockmode: pg_sys::LOCKMODE,
        ) -> pg_sys::Oid;
        pub fn TransferPredicateLocksToHeapRelation(relation: pg_sys::Relation);
        pub fn datumIsEqual(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i32) -> bool;
        pub fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i32) -> bool;
        pub fn datum_image_hash(value: pg_sys::Datum, by_value: bool, length: i32) -> u32;
        pub fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
        pub fn compute_partition_hash_value(
            partnatts: i32,
            partsupfunc: *mut pg_sys::FmgrInfo,
            partcollation: *const pg_sys::Oid,
            values: *const pg_sys::Datum,
            isnull: *const bool,
        ) -> u64;
        pub fn die(signal: i32);
        pub fn SetLatch(latch: *mut pg_sys::Latch);
        pub fn RegisterTimeout(id: u32, handler: unsafe extern "C-unwind" fn()) -> u32;
        pub fn enable_timeout_after(id: u32, delay_ms: i32);
        pub fn enable_timeout_every(id: u32, first: pg_sys::TimestampTz, delay_ms: i32);
        pub fn disable_timeout(id: u32, keep_indicator: bool);
        pub fn SignalHandlerForConfigReload(signal: i32);
    }
}

/// A heap of the same shape as `old_heap` (dropped columns included), with its toast table.
///
/// # Safety
/// Inside a transaction, with `old_heap` locked.
pub unsafe fn make_new_heap(
    old_heap: pg_sys::Oid,
    tablespace: pg_sys::Oid,
    access_method: pg_sys::Oid,
    persistence: std::ffi::c_char,
    lockmode: pg_sys::LOCKMODE,
) -> pg_sys::Oid {
    // SAFETY: as promised by the caller; the guard turns an ERROR into a Rust unwind.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            raw::make_new_heap(old_heap, tablespace, access_method, persistence, lockmode)
        })
    }
}

/// Promotes SSI predicate locks of a relation whose tuples are about to move.
///
/// # Safety
/// `relation` must be open.
pub unsafe fn promote_predicate_locks(relation: pg_sys::Relation) {
    // SAFETY: as promised by the caller.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::TransferPredicateLocksToHeapRelation(relation)) }
}

/// Bitwise equality of two values of one type.
///
/// # Safety
/// Both must be non-NULL values with this passing convention and length.
pub unsafe fn datum_is_equal(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i32) -> bool {
    // SAFETY: as promised by the caller; raises only for corrupt varlena headers.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::datumIsEqual(a, b, by_value, length)) }
}

/// Hash of a value as it is stored, the same whether toasted or not.
///
/// # Safety
/// A non-NULL value with this passing convention and length.
pub unsafe fn datum_image_hash(value: pg_sys::Datum, by_value: bool, length: i32) -> u32 {
    // SAFETY: as promised by the caller; raises when a toasted value cannot be fetched.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::datum_image_hash(value, by_value, length)) }
}

/// The number of a relation's storage, 0 when it is gone.
pub fn storage_number(relation: pg_sys::Oid) -> u32 {
    // SAFETY: the relation is locked by the caller's transaction; null when it is gone; closed again.
    unsafe {
        let open = pg_sys::RelationIdGetRelation(relation);
        let number = open.as_ref().map_or(0, |open| (*open.rd_rel).relfilenode.to_u32());
        if !open.is_null() {
            pg_sys::RelationClose(open);
        }
        number
    }
}

/// The access method of a relation; invalid when it is gone.
pub fn access_method(relation: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: a row of pg_class is read before it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(relation));
        if row.is_null() {
            return pg_sys::InvalidOid;
        }
        let method = (*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_class>()).relam;
        pg_sys::ReleaseSysCache(row);
        method
    }
}

/// The next value of a sequence, as `nextval()` gives it, without its check of privileges.
///
/// # Safety
/// Inside a transaction; the caller has checked what the current user may do.
pub unsafe fn nextval(sequence: pg_sys::Oid) -> i64 {
    // SAFETY: as promised by the caller; raises for what is no sequence and for an exhausted one.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::nextval_internal(sequence, false)) }
}

/// Hashes values, one after the other, as hash partitioning by one column does.
///
/// # Safety
/// `function` must be the extended hash function of the values' type, `collation` the key's, and every
/// value a valid, non-NULL one of that type.
pub unsafe fn partition_hashes(
    function: &mut pg_sys::FmgrInfo,
    collation: pg_sys::Oid,
    values: &[pg_sys::Datum],
    hashes: &mut [u64],
) {
    let isnull = false;
    // SAFETY: as promised by the caller; the frame an ERROR leaves holds plain data only.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            for (value, hash) in values.iter().zip(hashes.iter_mut()) {
                *hash = raw::compute_partition_hash_value(1, function, &collation, value, &isnull);
            }
        });
    }
}

/// Attribute `index` (from 0) of a tuple descriptor.
///
/// # Safety
/// `index` must be below `natts`; the pointer lives as long as the descriptor.
pub unsafe fn attribute(descriptor: pg_sys::TupleDesc, index: usize) -> *const pg_sys::FormData_pg_attribute {
    #[cfg(feature = "pg18")]
    // SAFETY: since 18 the full attributes follow the array of compact ones.
    unsafe {
        let natts = (*descriptor).natts.max(0) as usize;
        (*descriptor).compact_attrs.as_ptr().add(natts).cast::<pg_sys::FormData_pg_attribute>().add(index)
    }
    #[cfg(not(feature = "pg18"))]
    // SAFETY: as promised by the caller.
    unsafe {
        (*descriptor).attrs.as_ptr().add(index)
    }
}

/// Swaps `relallfrozen` (18 and later) between two pg_class rows.
#[allow(unused_variables)]
pub fn swap_relallfrozen(a: &mut pg_sys::FormData_pg_class, b: &mut pg_sys::FormData_pg_class) {
    #[cfg(feature = "pg18")]
    std::mem::swap(&mut a.relallfrozen, &mut b.relallfrozen);
}

/// Forgets open file handles of a relation whose storage changed (15 and 16; later versions do it on
/// relcache invalidation).
#[allow(unused_variables)]
pub fn close_smgr(relation: pg_sys::Oid) {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: takes any oid; does nothing when the relation is not open.
    unsafe {
        pg_sys::RelationCloseSmgrByOid(relation)
    };
}

/// Whether `role` owns relation `relation` (superusers and members of the owner included).
pub fn owns_relation(relation: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    return unsafe { pg_sys::pg_class_ownercheck(relation, role) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    return unsafe { pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, role) };
}

/// Whether `role` may use a foreign server.
pub fn may_use_server(server: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    let usage = pg_sys::ACL_USAGE as pg_sys::AclMode;
    #[cfg(feature = "pg15")]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    let result = unsafe { pg_sys::pg_foreign_server_aclcheck(server, role, usage) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    let result = unsafe { pg_sys::object_aclcheck(pg_sys::ForeignServerRelationId, server, role, usage) };
    result == pg_sys::AclResult::ACLCHECK_OK
}

/// Any number from which PostgreSQL looks for a free one of an extension's time-outs (they begin at 12 or 13).
const FIRST_FREE_TIMEOUT: u32 = 15;

/// A time-out of our own; once per process.
pub fn register_timeout(handler: unsafe extern "C-unwind" fn()) -> u32 {
    // SAFETY: the handler is async-signal-safe; raises FATAL when all ten of them are taken.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::RegisterTimeout(FIRST_FREE_TIMEOUT, handler)) }
}

/// Lets a time-out of [`register_timeout`] go off.
pub fn enable_timeout(id: u32, delay_ms: i32) {
    // SAFETY: the id was registered; raises nothing but FATAL.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::enable_timeout_after(id, delay_ms)) }
}

/// Lets it go off for the first time in `first_ms`, and then again and again.
pub fn enable_timeouts(id: u32, first_ms: i64, delay_ms: i32) {
    // SAFETY: as above.
    unsafe {
        let first = pg_sys::GetCurrentTimestamp() + first_ms * 1000;
        pg_sys::ffi::pg_guard_ffi_boundary(|| raw::enable_timeout_every(id, first, delay_ms));
    }
}

/// Stops it.
pub fn disable_timeout(id: u32) {
    // SAFETY: as above.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::disable_timeout(id, false)) }
}

/// What PostgreSQL's own handler of a statement's time-out does, from a signal handler: asks the statement to end.
pub fn cancel_own_statement() {
    // SAFETY: flags that signal handlers set; SetLatch may be called from them.
    unsafe {
        pg_sys::InterruptPending = 1;
        pg_sys::QueryCancelPending = 1;
        raw::SetLatch(pg_sys::MyLatch);
    }
}

/// Whether `role` owns database `database`.
pub fn owns_database(database: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    return unsafe { pg_sys::pg_database_ownercheck(database, role) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    return unsafe { pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, role) };
}

/// Whether `role` owns extension `extension`.
pub fn owns_extension(extension: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    #[cfg(feature = "pg15")]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    return unsafe { pg_sys::pg_extension_ownercheck(extension, role) };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: catalog look-up by oid, errors for unknown ones.
    return unsafe { pg_sys::object_ownercheck(pg_sys::ExtensionRelationId, extension, role) };
}

/// The text pg_locks shows for a virtual transaction id.
pub fn vxid_text(vxid: &pg_sys::VirtualTransactionId) -> String {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    return format!("{}/{}", vxid.backendId, vxid.localTransactionId);
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    return format!("{}/{}", vxid.procNumber, vxid.localTransactionId);
}

/// PostgreSQL's own handler of SIGTERM, which ends a worker at the next safe point; libpq, which may be waiting for a
/// node, gets there by losing its connection.
///
/// # Safety
/// A signal handler.
unsafe extern "C-unwind" fn cut_and_die(signal: i32) {
    super::wire::cut();
    // SAFETY: as promised by the caller.
    unsafe { raw::die(signal) };
}

/// PostgreSQL's own handlers for the signals a worker gets.
pub fn install_signal_handlers() {
    // SAFETY: handlers are async-signal-safe functions of the server; called before signals are unblocked.
    unsafe {
        #[cfg(feature = "pg18")]
        {
            pg_sys::pqsignal_be(libc::SIGTERM, Some(cut_and_die));
            pg_sys::pqsignal_be(libc::SIGHUP, Some(raw::SignalHandlerForConfigReload));
        }
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::pqsignal(libc::SIGTERM, Some(cut_and_die));
            pg_sys::pqsignal(libc::SIGHUP, Some(raw::SignalHandlerForConfigReload));
        }
    }
}

/// The template named in CREATE DATABASE … TEMPLATE, if any.
///
/// # Safety
/// `statement` must be a CreatedbStmt.
pub unsafe fn template_of(statement: *mut pg_sys::CreatedbStmt) -> Vec<*const std::ffi::c_char> {
    let mut names = Vec::new();
    // SAFETY: options is a list of DefElem; defGetString returns the option's text.
    unsafe {
        let options = (*statement).options;
        if options.is_null() {
            return names;
        }
        for i in 0..(*options).length {
            let option = (*(*options).elements.add(i as usize)).ptr_value.cast::<pg_sys::DefElem>();
            if std::ffi::CStr::from_ptr((*option).defname) == c"template" && !(*option).arg.is_null() {
                names.push(pg_sys::defGetString(option).cast_const());
            }
        }
    }
    names
}

/// Whether a statement is `DROP EXTENSION` of the one named.
///
/// # Safety
/// `statement` must be a parse tree node.
pub unsafe fn drops_extension(statement: *mut pg_sys::Node, name: &std::ffi::CStr) -> bool {
    // SAFETY: the node is read as the struct its tag names; objects is a list of String nodes.
    unsafe {
        if (*statement).type_ != pg_sys::NodeTag::T_DropStmt {
            return false;
        }
        let drop = statement.cast::<pg_sys::DropStmt>();
        let objects = (*drop).objects;
        if (*drop).removeType != pg_sys::ObjectType::OBJECT_EXTENSION || objects.is_null() {
            return false;
        }
        (0..(*objects).length.max(0) as usize).any(|i| {
            let object = (*(*objects).elements.add(i)).ptr_value.cast::<pg_sys::Node>();
            (*object).type_ == pg_sys::NodeTag::T_String
                && std::ffi::CStr::from_ptr((*object.cast::<pg_sys::String>()).sval) == name
        })
    }
}

/// Equality of two values of one type as they are stored, whether toasted or not.
///
/// # Safety
/// Both must be non-NULL values with this passing convention and length.
pub unsafe fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i32) -> bool {
    // SAFETY: as promised by the caller; raises when a toasted value cannot be fetched.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| raw::datum_image_eq(a, b, by_value, length)) }
}

/// Begins an index scan with so many keys; `index_rescan` sets them.
///
/// # Safety
/// Both relations must be open, and the snapshot must live as long as the scan.
pub unsafe fn index_beginscan(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: i32,
) -> pg_sys::IndexScanDesc {
    #[cfg(feature = "pg18")]
    // SAFETY: as promised by the caller; no instrumentation.
    unsafe {
        pg_sys::index_beginscan(heap, index, snapshot, std::ptr::null_mut(), keys, 0)
    }
    #[cfg(not(feature = "pg18"))]
    // SAFETY: as promised by the caller.
    unsafe {
        pg_sys::index_beginscan(heap, index, snapshot, keys, 0)
    }
}

/// Which indexes need an entry for a new version of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewEntries {
    /// None: it hangs on the entries of the old one.
    None,
    /// Only those that summarize ranges of blocks.
    Summarizing,
    /// All.
    All,
}

/// Replaces a row.
///
/// # Safety
/// `tid` must be a row of the relation that nobody else changes, `tuple` of its shape.
pub unsafe fn simple_heap_update(
    relation: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    tuple: pg_sys::HeapTuple,
) -> NewEntries {
    #[cfg(feature = "pg15")]
    // SAFETY: as promised by the caller.
    unsafe {
        pg_sys::simple_heap_update(relation, tid, tuple);
        let heap_only = u32::from((*(*tuple).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE != 0;
        if heap_only { NewEntries::None } else { NewEntries::All }
    }
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        let mut update = pg_sys::TU_UpdateIndexes::TU_All;
        pg_sys::simple_heap_update(relation, tid, tuple, &mut update);
        match update {
            pg_sys::TU_UpdateIndexes::TU_None => NewEntries::None,
            pg_sys::TU_UpdateIndexes::TU_Summarizing => NewEntries::Summarizing,
            _ => NewEntries::All,
        }
    }
}

/// Whether an index summarizes ranges of blocks (before 16 that makes no difference).
///
/// # Safety
/// `info` must be valid.
pub unsafe fn is_summarizing(info: *const pg_sys::IndexInfo) -> bool {
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    unsafe {
        (*info).ii_Summarizing
    }
    #[cfg(feature = "pg15")]
    {
        let _ = info;
        false
    }
}

/// Ends a series of insertions into an index.
///
/// # Safety
/// The index must be open, with the info the insertions used.
pub unsafe fn index_insert_cleanup(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo) {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: as promised by the caller.
    unsafe {
        pg_sys::index_insert_cleanup(index, info);
    }
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let _ = (index, info);
}

/// Whether a prepared qualification holds for the row in the context.
///
/// # Safety
/// `state` must be what `ExecPrepareQual` gave, for this row's shape.
pub unsafe fn holds(state: *mut pg_sys::ExprState, context: *mut pg_sys::ExprContext) -> bool {
    let mut isnull = false;
    // SAFETY: as promised by the caller; the guard turns an ERROR of the expression into a Rust unwind.
    unsafe {
        let before = pg_sys::MemoryContextSwitchTo((*context).ecxt_per_tuple_memory);
        let holds = pg_sys::ffi::pg_guard_ffi_boundary(|| {
            (*state).evalfunc.is_some_and(|evaluate| evaluate(state, context, &mut isnull).value() != 0)
        });
        pg_sys::MemoryContextSwitchTo(before);
        holds
    }
}
