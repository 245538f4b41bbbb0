//! Source and shadow of one partition: look-ups by key, and writing what differs.

use super::Target;
use crate::pg::compat::{self, NewEntries};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// One copy, ready for look-ups by key.
struct Copy {
    relation: pg_sys::Relation,
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    keys: Vec<pg_sys::ScanKeyData>,
}

impl Copy {
    /// # Safety
    /// `relation` must be open and `index` one of its unique B-trees.
    unsafe fn new(relation: pg_sys::Relation, index: pg_sys::Oid) -> Self {
        // SAFETY: as promised by the caller; SnapshotSelf is a constant of the server.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
            let count = (*(*index).rd_index).indnkeyatts.max(0) as usize;
            let keys = (0..count).map(|column| equality(index, column)).collect();
            let snapshot = &raw mut pg_sys::SnapshotSelfData;
            let scan = compat::index_beginscan(relation, index, snapshot, count as i32);
            let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            Self { relation, index, scan, slot, keys }
        }
    }

    /// Puts the row of a key into the slot; false: there is none.
    ///
    /// # Safety
    /// One value per key column, of its type.
    unsafe fn find(&mut self, values: &[pg_sys::Datum]) -> bool {
        for (key, value) in self.keys.iter_mut().zip(values) {
            key.sk_argument = *value;
        }
        // SAFETY: the scan copies the keys; the slot belongs to the relation.
        unsafe {
            pg_sys::index_rescan(
                self.scan,
                self.keys.as_mut_ptr(),
                self.keys.len() as i32,
                std::ptr::null_mut(),
                0,
            );
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            let found = pg_sys::index_getnext_slot(self.scan, forward, self.slot);
            let natts = (*(*self.relation).rd_att).natts;
            if found && i32::from((*self.slot).tts_nvalid) < natts {
                pg_sys::slot_getsomeattrs_int(self.slot, natts);
            }
            found
        }
    }

    /// Value of an attribute of the row found; None: NULL.
    ///
    /// # Safety
    /// `find` said true, and `attribute` is below natts.
    unsafe fn value(&self, attribute: usize) -> Option<pg_sys::Datum> {
        // SAFETY: as promised by the caller.
        unsafe { (!*(*self.slot).tts_isnull.add(attribute)).then(|| *(*self.slot).tts_values.add(attribute)) }
    }

    /// # Safety
    /// Once.
    unsafe fn close(self) {
        // SAFETY: opened in `new`; locks stay to the end of the transaction.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::index_endscan(self.scan);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
        }
    }
}

/// The scan key "column = ?" by the index's own operator class.
///
/// # Safety
/// `index` must be an open B-tree with that many columns.
unsafe fn equality(index: pg_sys::Relation, column: usize) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: as promised by the caller.
    unsafe {
        let family = *(*index).rd_opfamily.add(column);
        let type_ = *(*index).rd_opcintype.add(column);
        let strategy = pg_sys::BTEqualStrategyNumber as i16;
        let operator = pg_sys::get_opfamily_member(family, type_, type_, strategy);
        pg_sys::ScanKeyEntryInitialize(
            &mut key,
            0,
            column as i16 + 1,
            strategy as u16,
            type_,
            *(*index).rd_indcollation.add(column),
            pg_sys::get_opcode(operator),
            pg_sys::Datum::from(0usize),
        );
    }
    key
}

/// An index of the shadow, ready for new rows.
struct OpenIndex {
    relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    predicate: *mut pg_sys::ExprState,
}

/// Source and shadow.
pub(super) struct Pair {
    source: Copy,
    shadow: Copy,
    /// The log's columns are the key's.
    log: pg_sys::Relation,
    indexes: Vec<OpenIndex>,
    state: *mut pg_sys::EState,
    /// A row of the shadow for index expressions.
    row: *mut pg_sys::TupleTableSlot,
    /// For the row of one key.
    context: pg_sys::MemoryContext,
}

impl Pair {
    /// None: one of them is gone, and the move with it.
    ///
    /// # Safety
    /// Inside a transaction that has locked the source.
    pub(super) unsafe fn open(target: Target) -> Option<Self> {
        // SAFETY: as promised by the caller. The shadow's lock is waited for: a carrier holds more only for
        // `foreshard.max_lock_time`.
        unsafe {
            let no_lock = pg_sys::NoLock as i32;
            let log = pg_sys::try_relation_open(target.log, pg_sys::RowExclusiveLock as i32);
            if log.is_null() {
                return None;
            }
            let shadow = pg_sys::try_relation_open(target.shadow, pg_sys::RowExclusiveLock as i32);
            if shadow.is_null() {
                pg_sys::relation_close(log, no_lock);
                return None;
            }
            let source = pg_sys::try_relation_open(target.source, no_lock);
            if source.is_null() {
                pg_sys::relation_close(shadow, no_lock);
                pg_sys::relation_close(log, no_lock);
                return None;
            }
            let source_index = pg_sys::index_open(target.source_index, pg_sys::AccessShareLock as i32);
            if !same_shape(source, shadow) || !is_key_of(log, source_index, source) {
                // DDL came in between; the carrier will see it.
                error!("source and shadow have different columns");
            }
            pg_sys::index_close(source_index, no_lock);
            let state = pg_sys::CreateExecutorState();
            let indexes = open_indexes(shadow, state);
            Some(Self {
                row: pg_sys::MakeSingleTupleTableSlot((*shadow).rd_att, &raw const pg_sys::TTSOpsHeapTuple),
                source: Copy::new(source, target.source_index),
                shadow: Copy::new(shadow, target.shadow_index),
                log,
                indexes,
                state,
                context: pg_sys::AllocSetContextCreateInternal(
                    pg_sys::CurrentMemoryContext,
                    c"foreshard mirror".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                ),
            })
        }
    }

    /// Makes the shadow's row of one key what the source's is.
    ///
    /// # Safety
    /// `key` must have the log's shape.
    pub(super) unsafe fn make_equal(&mut self, key: &mut pg_sys::HeapTupleData) {
        // SAFETY: as promised by the caller.
        unsafe {
            let count = self.source.keys.len();
            let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0usize); count], vec![false; count]);
            pg_sys::heap_deform_tuple(key, (*self.log).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            match (self.source.find(&values), self.shadow.find(&values)) {
                (false, false) => {}
                (false, true) => {
                    pg_sys::simple_heap_delete(self.shadow.relation, &mut (*self.shadow.slot).tts_tid);
                }
                (true, found) => {
                    // Not around the look-ups: a scan keeps what it allocates.
                    let before = pg_sys::MemoryContextSwitchTo(self.context);
                    self.write(found);
                    pg_sys::MemoryContextSwitchTo(before);
                    pg_sys::MemoryContextReset(self.context);
                }
            }
        }
    }

    /// Writes the source's row into the shadow, over the row found there.
    ///
    /// # Safety
    /// Both look-ups have been made.
    unsafe fn write(&mut self, found: bool) {
        // SAFETY: both descriptors have the same attributes; values live in the slots' pages, which are
        // pinned until the next look-up.
        unsafe {
            let relation = self.shadow.relation;
            let descriptor = (*relation).rd_att;
            let natts = (*descriptor).natts.max(0) as usize;
            let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0usize); natts], vec![true; natts]);
            let mut same = found;
            for index in 0..natts {
                let attribute = &*compat::attribute(descriptor, index);
                if attribute.attisdropped {
                    continue;
                }
                let new = self.source.value(index);
                let old = if found { self.shadow.value(index) } else { None };
                let equal = found
                    && match (new, old) {
                        (Some(new), Some(old)) => {
                            compat::datum_image_eq(new, old, attribute.attbyval, attribute.attlen.into())
                        }
                        (None, None) => true,
                        _ => false,
                    };
                same &= equal;
                // An equal value keeps the shadow's own toast.
                if let Some(value) = if equal { old } else { new } {
                    (values[index], nulls[index]) = (value, false);
                }
            }
            if same {
                return;
            }
            let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            let needed = if found {
                compat::simple_heap_update(relation, &mut (*self.shadow.slot).tts_tid, tuple)
            } else {
                pg_sys::simple_heap_insert(relation, tuple);
                NewEntries::All
            };
            if needed != NewEntries::None {
                self.insert_into_indexes(tuple, needed);
            }
        }
    }

    /// # Safety
    /// `tuple` has just been stored in the shadow.
    unsafe fn insert_into_indexes(&mut self, tuple: pg_sys::HeapTuple, needed: NewEntries) {
        let mut values = [pg_sys::Datum::from(0usize); pg_sys::INDEX_MAX_KEYS as usize];
        let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: the expression context is the executor state's own; index expressions see the row.
        unsafe {
            pg_sys::ExecStoreHeapTuple(tuple, self.row, false);
            (*self.row).tts_tid = (*tuple).t_self;
            (*self.row).tts_tableOid = (*self.shadow.relation).rd_id;
            let mut expressions = (*self.state).es_per_tuple_exprcontext;
            if expressions.is_null() {
                expressions = pg_sys::MakePerTupleExprContext(self.state);
            }
            (*expressions).ecxt_scantuple = self.row;
            for index in &self.indexes {
                if needed == NewEntries::Summarizing && !compat::is_summarizing(index.info) {
                    continue;
                }
                if !index.predicate.is_null() && !compat::holds(index.predicate, expressions) {
                    continue;
                }
                pg_sys::FormIndexDatum(
                    index.info,
                    self.row,
                    self.state,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
                pg_sys::index_insert(
                    index.relation,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                    &mut (*tuple).t_self,
                    self.shadow.relation,
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
                    false,
                    index.info,
                );
            }
            pg_sys::MemoryContextReset((*expressions).ecxt_per_tuple_memory);
        }
    }

    /// # Safety
    /// Once.
    pub(super) unsafe fn close(self) {
        // SAFETY: opened in `open`; locks stay to the end of the transaction.
        unsafe {
            for index in self.indexes {
                compat::index_insert_cleanup(index.relation, index.info);
                pg_sys::index_close(index.relation, pg_sys::NoLock as i32);
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.row);
            pg_sys::FreeExecutorState(self.state);
            self.source.close();
            self.shadow.close();
            pg_sys::relation_close(self.log, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.context);
        }
    }
}

/// Whether every attribute of one is stored as that of the other.
///
/// # Safety
/// Both must be open.
unsafe fn same_shape(a: pg_sys::Relation, b: pg_sys::Relation) -> bool {
    // SAFETY: as promised by the caller; the index is below natts of both.
    unsafe {
        let (a, b) = ((*a).rd_att, (*b).rd_att);
        let same = |index: usize| {
            let (x, y) = (&*compat::attribute(a, index), &*compat::attribute(b, index));
            (x.atttypid, x.attlen, x.attbyval, x.attisdropped)
                == (y.atttypid, y.attlen, y.attbyval, y.attisdropped)
        };
        (*a).natts == (*b).natts && (0..(*a).natts.max(0) as usize).all(same)
    }
}

/// Whether the log's columns have the types of the index's key columns.
///
/// # Safety
/// All must be open, the index being one of `relation`.
unsafe fn is_key_of(log: pg_sys::Relation, index: pg_sys::Relation, relation: pg_sys::Relation) -> bool {
    // SAFETY: as promised by the caller; an index has as many keys as it says, each a column (1 to natts).
    unsafe {
        let definition = (*index).rd_index;
        let count = (*definition).indnkeyatts.max(0) as usize;
        let same = |column: usize| {
            let attnum = *(*definition).indkey.values.as_ptr().add(column);
            let attribute = (attnum as usize).checked_sub(1);
            attribute.is_some_and(|attribute| {
                (*compat::attribute((*log).rd_att, column)).atttypid
                    == (*compat::attribute((*relation).rd_att, attribute)).atttypid
            })
        };
        (*(*log).rd_att).natts.max(0) as usize == count && (0..count).all(same)
    }
}

/// # Safety
/// `relation` must be open.
unsafe fn open_indexes(relation: pg_sys::Relation, state: *mut pg_sys::EState) -> Vec<OpenIndex> {
    // SAFETY: the list holds oids; the expression states live in the executor state's memory.
    unsafe {
        let list = pg_sys::RelationGetIndexList(relation);
        let count = if list.is_null() { 0 } else { (*list).length.max(0) as usize };
        let oids: Vec<pg_sys::Oid> = (0..count).map(|i| (*(*list).elements.add(i)).oid_value).collect();
        let open = |oid| {
            let relation = pg_sys::index_open(oid, pg_sys::RowExclusiveLock as i32);
            let info = pg_sys::BuildIndexInfo(relation);
            let predicate = if (*info).ii_Predicate.is_null() {
                std::ptr::null_mut()
            } else {
                pg_sys::ExecPrepareQual((*info).ii_Predicate, state)
            };
            OpenIndex { relation, info, predicate }
        };
        oids.into_iter().map(open).collect()
    }
}
