//! Shadow heaps, shadow indexes, capture triggers and the storage swap: catalog surgery as CLUSTER
//! does it (`swap_relation_files` in PostgreSQL's cluster.c is static, this is our own).

use super::compat;
use super::lock::{ACCESS_EXCLUSIVE, ACCESS_SHARE};
use super::report::{PgResult, cstring, internal};
use super::security::as_restricted_owner;
use pgrx::pg_sys;

/// In how many parts a file is cut off at most, about.
const MOST_CUTS: u32 = 512;

/// Numbers of what pg_stat_progress_create_index shows (commands/progress.h): command (1: CREATE INDEX), index, access method.
const PROGRESS_COMMAND: i32 = 0;
const PROGRESS_INDEX: i32 = 6;
const PROGRESS_METHOD: i32 = 8;

/// How the names of capture triggers begin; PostgreSQL appends a number to those of internal ones.
pub const CAPTURE: &std::ffi::CStr = c"foreshard_capture";

/// Creates an empty heap of exactly the shape of `source` in `tablespace`, with its toast table, named
/// `pg_temp_<oid>` beside the source; the caller renames it in the same transaction.
pub fn create_heap_like(source: pg_sys::Oid, tablespace: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    // SAFETY: the source is locked by the caller's transaction and stays open while its access method
    // and persistence are read.
    unsafe {
        let relation = pg_sys::table_open(source, ACCESS_SHARE);
        let (am, persistence) = ((*(*relation).rd_rel).relam, (*(*relation).rd_rel).relpersistence);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        let heap = compat::make_new_heap(source, tablespace, am, persistence, ACCESS_SHARE);
        pg_sys::CommandCounterIncrement();
        Ok(heap)
    }
}

/// Creates, on the shadow, an invalid and not yet ready copy of an index (expressions, predicate,
/// operator classes and options included) with empty storage.
pub fn create_index_like(
    shadow: pg_sys::Oid,
    source_index: pg_sys::Oid,
    tablespace: pg_sys::Oid,
    name: &str,
) -> pg_sys::Oid {
    let name = cstring(name);
    // SAFETY: the shadow is open and ours; PostgreSQL copies the name.
    unsafe {
        let relation = pg_sys::table_open(shadow, ACCESS_SHARE);
        // Planning an index expression may already run it.
        let _guard = as_restricted_owner((*(*relation).rd_rel).relowner);
        let index = pg_sys::index_concurrently_create_copy(relation, source_index, tablespace, name.as_ptr());
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        pg_sys::CommandCounterIncrement();
        index
    }
}

/// Gives a relation that nobody has analysed what the planner knows of another one with the same columns.
pub fn copy_statistics(from: pg_sys::Oid, to: pg_sys::Oid) {
    // SAFETY: plain catalog rows; `to` has none, because it is empty and ours.
    unsafe {
        pg_sys::RemoveStatistics(to, 0);
        pg_sys::CopyStatistics(from, to);
        pg_sys::CommandCounterIncrement();
    }
}

/// Fills an index made by [`create_index_like`] from the shadow's rows and marks it ready and valid.
/// Storage that a crashed build left is emptied first, so the step may be repeated.
pub fn build_index(shadow: pg_sys::Oid, index: pg_sys::Oid) {
    // SAFETY: both relations are ours and locked; index_build runs user code as the table's owner.
    unsafe {
        let heap = pg_sys::table_open(shadow, pg_sys::ShareLock as i32);
        let _guard = as_restricted_owner((*(*heap).rd_rel).relowner);
        let relation = pg_sys::index_open(index, ACCESS_EXCLUSIVE);
        if pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM) > 0 {
            pg_sys::RelationTruncate(relation, 0);
        }
        let info = pg_sys::BuildIndexInfo(relation);
        // As for CREATE INDEX, in pg_stat_progress_create_index; an error ends it with the transaction.
        pg_sys::pgstat_progress_start_command(
            pg_sys::ProgressCommandType::PROGRESS_COMMAND_CREATE_INDEX,
            shadow,
        );
        pg_sys::pgstat_progress_update_param(PROGRESS_COMMAND, 1);
        pg_sys::pgstat_progress_update_param(PROGRESS_INDEX, i64::from(index.to_u32()));
        let method = (*(*relation).rd_rel).relam;
        pg_sys::pgstat_progress_update_param(PROGRESS_METHOD, i64::from(method.to_u32()));
        pg_sys::index_build(heap, relation, info, false, true);
        pg_sys::pgstat_progress_end_command();
        pg_sys::index_close(relation, pg_sys::NoLock as i32);
        pg_sys::table_close(heap, pg_sys::NoLock as i32);
        pg_sys::CommandCounterIncrement();
        pg_sys::index_set_state_flags(index, pg_sys::IndexStateFlagsAction::INDEX_CREATE_SET_READY);
        pg_sys::CommandCounterIncrement();
        pg_sys::index_set_state_flags(index, pg_sys::IndexStateFlagsAction::INDEX_CREATE_SET_VALID);
        pg_sys::CommandCounterIncrement();
    }
}

fn address(class: pg_sys::Oid, object: pg_sys::Oid) -> pg_sys::ObjectAddress {
    pg_sys::ObjectAddress { classId: class, objectId: object, objectSubId: 0 }
}

/// Installs the capture trigger on `source`; returns its oid. `arguments` are the log's oid and the
/// key's attribute numbers. DROP EXTENSION takes the trigger along (automatic dependency).
pub fn install_capture(source: pg_sys::Oid, function: pg_sys::Oid, arguments: &[u32]) -> pg_sys::Oid {
    // SAFETY: the node is allocated in the current context and lives through the call; the source is
    // locked SHARE ROW EXCLUSIVE by the caller.
    unsafe {
        let mut args: *mut pg_sys::List = std::ptr::null_mut();
        for argument in arguments {
            let text = cstring(&argument.to_string());
            args = pg_sys::lappend(args, pg_sys::makeString(pg_sys::pstrdup(text.as_ptr())).cast());
        }
        let mut statement =
            pgrx::PgBox::<pg_sys::CreateTrigStmt>::alloc_node(pg_sys::NodeTag::T_CreateTrigStmt);
        statement.trigname = pg_sys::pstrdup(CAPTURE.as_ptr());
        statement.args = args;
        statement.row = true;
        statement.timing = pg_sys::TRIGGER_TYPE_AFTER as i16;
        statement.events =
            (pg_sys::TRIGGER_TYPE_INSERT | pg_sys::TRIGGER_TYPE_DELETE | pg_sys::TRIGGER_TYPE_UPDATE) as i16;
        let none = pg_sys::InvalidOid;
        let always = b'A' as std::ffi::c_char;
        let created = pg_sys::CreateTriggerFiringOn(
            statement.into_pg(),
            std::ptr::null(),
            source,
            none,
            none,
            none,
            function,
            none,
            std::ptr::null_mut(),
            true,
            false,
            always,
        );
        pg_sys::CommandCounterIncrement();
        pg_sys::deleteDependencyRecordsForSpecific(
            pg_sys::TriggerRelationId,
            created.objectId,
            pg_sys::DependencyType::DEPENDENCY_NORMAL as std::ffi::c_char,
            pg_sys::ProcedureRelationId,
            function,
        );
        let trigger = address(pg_sys::TriggerRelationId, created.objectId);
        let callee = address(pg_sys::ProcedureRelationId, function);
        pg_sys::recordDependencyOn(&trigger, &callee, pg_sys::DependencyType::DEPENDENCY_AUTO);
        pg_sys::CommandCounterIncrement();
        created.objectId
    }
}

/// Makes every session read a relation's definition anew, from its next use on.
pub fn forget_cached(relation: pg_sys::Oid) {
    // SAFETY: only queues the message; raises when the relation is gone.
    unsafe {
        pg_sys::CacheInvalidateRelcacheByRelid(relation);
        pg_sys::CommandCounterIncrement();
    }
}

/// The indexes of a table that the caller has locked, ascending.
pub fn indexes(table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: the table is locked and open while the list of its indexes, a copy, is read.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::NoLock as i32);
        let list = pg_sys::RelationGetIndexList(relation);
        let length = if list.is_null() { 0 } else { (*list).length.max(0) as usize };
        let indexes = (0..length).map(|at| (*(*list).elements.add(at)).oid_value).collect();
        pg_sys::list_free(list);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        indexes
    }
}

/// Drops a capture trigger; the caller holds ACCESS EXCLUSIVE on its table.
pub fn drop_trigger(trigger: pg_sys::Oid) {
    drop_object(address(pg_sys::TriggerRelationId, trigger));
}

/// Drops one of foreshard's own tables (shadow or capture log) with everything on it.
pub fn drop_own_table(relation: pg_sys::Oid) {
    drop_object(address(pg_sys::RelationRelationId, relation));
}

/// Cuts a part of at least `bytes` off the end of one of foreshard's own relations that nobody reads any more. A file
/// that is dropped as it stands, with hundreds of megabytes, keeps the file system so busy that everybody's commits
/// wait. False when somebody is at it: then it goes when it is dropped.
pub fn shorten(relation: pg_sys::Oid, bytes: i64) -> bool {
    if !super::lock::try_lock_all(&[relation], super::lock::ACCESS_EXCLUSIVE) {
        return false;
    }
    // SAFETY: opened under the lock that truncation asks for; raises for what cannot be opened.
    unsafe {
        let open = pg_sys::relation_open(relation, pg_sys::NoLock as i32);
        let now = pg_sys::RelationGetNumberOfBlocksInFork(open, pg_sys::ForkNumber::MAIN_FORKNUM);
        // Each cut looks through all of shared memory.
        let cut = ((bytes / i64::from(pg_sys::BLCKSZ)) as u32).max(now / MOST_CUTS);
        if now > 0 {
            pg_sys::RelationTruncate(open, now.saturating_sub(cut));
        }
        pg_sys::relation_close(open, pg_sys::NoLock as i32);
    }
    true
}

fn drop_object(object: pg_sys::ObjectAddress) {
    let flags = pg_sys::PERFORM_DELETION_INTERNAL
        | pg_sys::PERFORM_DELETION_QUIETLY
        | pg_sys::PERFORM_DELETION_SKIP_EXTENSIONS;
    // SAFETY: takes the locks it needs; raises when something else depends on the object.
    unsafe {
        pg_sys::performDeletion(&object, pg_sys::DropBehavior::DROP_CASCADE, flags as i32);
        pg_sys::CommandCounterIncrement();
    }
}

/// Promotes predicate locks of both heaps, so that SERIALIZABLE conflicts survive the swap.
pub fn promote_predicate_locks(a: pg_sys::Oid, b: pg_sys::Oid) {
    for oid in [a, b] {
        // SAFETY: locked ACCESS EXCLUSIVE by the caller.
        unsafe {
            let relation = pg_sys::table_open(oid, pg_sys::NoLock as i32);
            compat::promote_predicate_locks(relation);
            pg_sys::table_close(relation, pg_sys::NoLock as i32);
        }
    }
}

/// Exchanges the storage of two relations of the same shape: relfilenumber, tablespace, freeze limits,
/// size estimates, and for heaps the toast *link* (toast pointers embed the toast table's oid, so its
/// relfilenumber must stay with it). Both are locked ACCESS EXCLUSIVE by the caller.
pub fn swap_storage(a: pg_sys::Oid, b: pg_sys::Oid) -> PgResult<()> {
    // SAFETY: both tuples are private copies of pg_class rows, whose fixed part is FormData_pg_class;
    // the catalog stays open while they are written back.
    unsafe {
        let catalog = pg_sys::table_open(pg_sys::RelationRelationId, pg_sys::RowExclusiveLock as i32);
        let tuple_a = class_tuple(a)?;
        let tuple_b = class_tuple(b)?;
        let row_a = &mut *class_form(tuple_a);
        let row_b = &mut *class_form(tuple_b);
        if row_a.relfilenode == pg_sys::InvalidOid || row_b.relfilenode == pg_sys::InvalidOid {
            return Err(internal("cannot swap the storage of a mapped relation"));
        }
        std::mem::swap(&mut row_a.relfilenode, &mut row_b.relfilenode);
        std::mem::swap(&mut row_a.reltablespace, &mut row_b.reltablespace);
        std::mem::swap(&mut row_a.reltoastrelid, &mut row_b.reltoastrelid);
        std::mem::swap(&mut row_a.relfrozenxid, &mut row_b.relfrozenxid);
        std::mem::swap(&mut row_a.relminmxid, &mut row_b.relminmxid);
        std::mem::swap(&mut row_a.relpages, &mut row_b.relpages);
        std::mem::swap(&mut row_a.reltuples, &mut row_b.reltuples);
        std::mem::swap(&mut row_a.relallvisible, &mut row_b.relallvisible);
        compat::swap_relallfrozen(row_a, row_b);
        let (toast_of_a, toast_of_b) = (row_a.reltoastrelid, row_b.reltoastrelid);
        pg_sys::CatalogTupleUpdate(catalog, &mut (*tuple_a).t_self, tuple_a);
        pg_sys::CatalogTupleUpdate(catalog, &mut (*tuple_b).t_self, tuple_b);
        relink_toast(toast_of_a, a);
        relink_toast(toast_of_b, b);
        swap_rewrite_marks(catalog, toast_of_a, toast_of_b)?;
        pg_sys::heap_freetuple(tuple_a);
        pg_sys::heap_freetuple(tuple_b);
        pg_sys::table_close(catalog, pg_sys::RowExclusiveLock as i32);
        pg_sys::CommandCounterIncrement();
    }
    compat::close_smgr(a);
    compat::close_smgr(b);
    Ok(())
}

/// # Safety
/// Must run inside a transaction.
unsafe fn class_tuple(relation: pg_sys::Oid) -> PgResult<pg_sys::HeapTuple> {
    let zero = pg_sys::Datum::from(0usize);
    // SAFETY: look-up by oid; the copy is ours.
    let tuple = unsafe {
        pg_sys::SearchSysCacheCopy(
            pg_sys::SysCacheIdentifier::RELOID as i32,
            pg_sys::Datum::from(relation),
            zero,
            zero,
            zero,
        )
    };
    if tuple.is_null() {
        Err(internal(format!("relation {} vanished", relation.to_u32())))
    } else {
        Ok(tuple)
    }
}

/// # Safety
/// `tuple` must be a pg_class row.
unsafe fn class_form(tuple: pg_sys::HeapTuple) -> *mut pg_sys::FormData_pg_class {
    // SAFETY: GETSTRUCT: user data starts t_hoff bytes into the tuple.
    unsafe {
        let header = (*tuple).t_data;
        header.cast::<u8>().add((*header).t_hoff as usize).cast()
    }
}

/// Makes the internal dependency of a toast table point to its new owner.
///
/// # Safety
/// Must run inside the transaction that swapped the links.
unsafe fn relink_toast(toast: pg_sys::Oid, owner: pg_sys::Oid) {
    if toast == pg_sys::InvalidOid {
        return;
    }
    // SAFETY: a toast table's only dependency is the one on its heap.
    unsafe {
        pg_sys::deleteDependencyRecordsFor(pg_sys::RelationRelationId, toast, false);
        let from = address(pg_sys::RelationRelationId, toast);
        let to = address(pg_sys::RelationRelationId, owner);
        pg_sys::recordDependencyOn(&from, &to, pg_sys::DependencyType::DEPENDENCY_INTERNAL);
    }
}

/// Exchanges `relrewrite` of two toast tables: logical decoding skips the chunks of a toast table that
/// is marked as a rewrite's, so the mark must stay with the shadow.
///
/// # Safety
/// `catalog` must be pg_class, open for writing; the owners are locked ACCESS EXCLUSIVE.
unsafe fn swap_rewrite_marks(catalog: pg_sys::Relation, a: pg_sys::Oid, b: pg_sys::Oid) -> PgResult<()> {
    if a == pg_sys::InvalidOid || b == pg_sys::InvalidOid {
        return Ok(());
    }
    // SAFETY: both tuples are private copies of pg_class rows, written back to the open catalog.
    unsafe {
        let tuple_a = class_tuple(a)?;
        let tuple_b = class_tuple(b)?;
        std::mem::swap(&mut (*class_form(tuple_a)).relrewrite, &mut (*class_form(tuple_b)).relrewrite);
        pg_sys::CatalogTupleUpdate(catalog, &mut (*tuple_a).t_self, tuple_a);
        pg_sys::CatalogTupleUpdate(catalog, &mut (*tuple_b).t_self, tuple_b);
        pg_sys::heap_freetuple(tuple_a);
        pg_sys::heap_freetuple(tuple_b);
    }
    Ok(())
}

/// Gives the toast table of `owner` and its index the conventional names again.
pub fn rename_toast(owner: pg_sys::Oid, toast: pg_sys::Oid, toast_index: pg_sys::Oid) {
    let table = cstring(&format!("pg_toast_{}", owner.to_u32()));
    let index = cstring(&format!("pg_toast_{}_index", owner.to_u32()));
    // SAFETY: both relations exist and belong to a table the caller has locked.
    unsafe {
        pg_sys::RenameRelationInternal(toast, table.as_ptr(), true, false);
        pg_sys::CommandCounterIncrement();
        pg_sys::RenameRelationInternal(toast_index, index.as_ptr(), true, true);
        pg_sys::CommandCounterIncrement();
    }
}
