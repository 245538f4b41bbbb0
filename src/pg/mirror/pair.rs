//! Source and shadow of one partition: look-ups by key, and writing what differs. The shadow of a split is a
//! partitioned table, and a key's row is in the part that its hash says.

use super::Target;
use super::copy::Copy;
use crate::pg::compat::{self, NewEntries};
use crate::pg::partition::{Lifetime, Router};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// An index of the shadow, ready for new rows.
struct OpenIndex {
    relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    predicate: *mut pg_sys::ExprState,
}

/// A heap that is written, with its indexes.
struct Shadow {
    copy: Copy,
    indexes: Vec<OpenIndex>,
    /// A row of it for index expressions.
    row: *mut pg_sys::TupleTableSlot,
}

/// The parts of a shadow that is partitioned.
struct Parts {
    router: Router,
    /// Place and type of the partition key among the key's columns.
    at: usize,
    key_type: pg_sys::Oid,
    /// By number, as they are needed.
    open: Vec<Option<Shadow>>,
}

enum Shadows {
    One(Shadow),
    Parts(Parts),
}

/// Source and shadow.
pub(super) struct Pair {
    source: Copy,
    shadows: Shadows,
    /// The shadow, of which everything else is a part.
    relation: pg_sys::Relation,
    /// The log's columns are the key's.
    log: pg_sys::Relation,
    state: *mut pg_sys::EState,
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
            let partitioned = (*(*shadow).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
            if !(partitioned || same_shape(source, shadow)) || !is_key_of(log, source_index, source) {
                // DDL came in between; the carrier will see it.
                error!("source and shadow have different columns");
            }
            let state = pg_sys::CreateExecutorState();
            let shadows = if partitioned {
                Shadows::Parts(Parts::new(source, source_index, target.shadow))
            } else {
                let shadow = pg_sys::relation_open(target.shadow, no_lock);
                Shadows::One(Shadow::new(shadow, target.shadow_index, state))
            };
            pg_sys::index_close(source_index, no_lock);
            Some(Self {
                source: Copy::new(source, target.source_index),
                shadows,
                relation: shadow,
                log,
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
            let shadow = match &mut self.shadows {
                Shadows::One(shadow) => shadow,
                Shadows::Parts(parts) => parts.of(&values, self.source.relation, self.state),
            };
            match (self.source.find(&values), shadow.copy.find(&values)) {
                (false, false) => {}
                (false, true) => {
                    pg_sys::simple_heap_delete(shadow.copy.relation, &mut (*shadow.copy.slot).tts_tid);
                }
                (true, found) => {
                    // Not around the look-ups: a scan keeps what it allocates.
                    let before = pg_sys::MemoryContextSwitchTo(self.context);
                    shadow.write(&self.source, found, self.state);
                    pg_sys::MemoryContextSwitchTo(before);
                    pg_sys::MemoryContextReset(self.context);
                }
            }
        }
    }

    /// # Safety
    /// Once.
    pub(super) unsafe fn close(self) {
        // SAFETY: opened in `open`; locks stay to the end of the transaction.
        unsafe {
            match self.shadows {
                Shadows::One(shadow) => shadow.close(),
                Shadows::Parts(parts) => parts.open.into_iter().flatten().for_each(|shadow| shadow.close()),
            }
            pg_sys::FreeExecutorState(self.state);
            self.source.close();
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::relation_close(self.log, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.context);
        }
    }
}

impl Parts {
    /// # Safety
    /// Both must be open, the index being one of `source`.
    unsafe fn new(source: pg_sys::Relation, index: pg_sys::Relation, staging: pg_sys::Oid) -> Self {
        let router = match Router::of_any(staging, Lifetime::Statement) {
            Ok(router) => router,
            Err(report) => {
                report.report(PgLogLevel::ERROR);
                error!("the parts of a split are gone");
            }
        };
        // SAFETY: as promised by the caller; an index has as many keys as it says, each a column (1 to natts).
        // The names compared are the same column's: of the staging table, which has no dropped columns, and of
        // the source.
        unsafe {
            let name = pg_sys::get_attname(staging, router.key_attribute(), false);
            let attribute = pg_sys::get_attnum((*source).rd_id, name);
            let definition = (*index).rd_index;
            let count = (*definition).indnkeyatts.max(0) as usize;
            let at = (0..count).find(|at| *(*definition).indkey.values.as_ptr().add(*at) == attribute);
            let Some(at) = at else {
                error!("the identity index does not have the partition key");
            };
            let key_type = pg_sys::get_atttype((*source).rd_id, attribute);
            let open = router.partitions().iter().map(|_| None).collect();
            Parts { router, at, key_type, open }
        }
    }

    /// The part that a key's row is in.
    ///
    /// # Safety
    /// One value per key column, of its type; the state must live as long as the parts.
    unsafe fn of(
        &mut self,
        values: &[pg_sys::Datum],
        source: pg_sys::Relation,
        state: *mut pg_sys::EState,
    ) -> &mut Shadow {
        let number = self.router.locate(Some((values[self.at], self.key_type)));
        let Some((number, place)) = number.and_then(|number| Some((number, self.open.get_mut(number)?)))
        else {
            error!("no part of the split takes the key");
        };
        let oid = self.router.partition(number);
        place.get_or_insert_with(|| {
            // SAFETY: as promised by the caller; a partition cannot go while its table is locked. Its identity
            // index is marked as its replica identity.
            unsafe {
                let relation = pg_sys::relation_open(oid, pg_sys::RowExclusiveLock as i32);
                if !same_shape(source, relation) {
                    error!("source and shadow have different columns");
                }
                let index = pg_sys::RelationGetReplicaIndex(relation);
                Shadow::new(relation, index, state)
            }
        })
    }
}

impl Shadow {
    /// # Safety
    /// `relation` must be open and `index` its identity index; the state must live as long.
    unsafe fn new(relation: pg_sys::Relation, index: pg_sys::Oid, state: *mut pg_sys::EState) -> Self {
        // SAFETY: as promised by the caller.
        unsafe {
            Shadow {
                row: pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple),
                indexes: open_indexes(relation, state),
                copy: Copy::new(relation, index),
            }
        }
    }

    /// Writes the source's row into the shadow, over the row found there.
    ///
    /// # Safety
    /// Both look-ups have been made.
    unsafe fn write(&mut self, source: &Copy, found: bool, state: *mut pg_sys::EState) {
        // SAFETY: both descriptors have the same attributes; values live in the slots' pages, which are
        // pinned until the next look-up.
        unsafe {
            let relation = self.copy.relation;
            let descriptor = (*relation).rd_att;
            let natts = (*descriptor).natts.max(0) as usize;
            let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0usize); natts], vec![true; natts]);
            let mut same = found;
            for index in 0..natts {
                let attribute = &*compat::attribute(descriptor, index);
                if attribute.attisdropped {
                    continue;
                }
                let new = source.value(index);
                let old = if found { self.copy.value(index) } else { None };
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
                compat::simple_heap_update(relation, &mut (*self.copy.slot).tts_tid, tuple)
            } else {
                pg_sys::simple_heap_insert(relation, tuple);
                NewEntries::All
            };
            if needed != NewEntries::None {
                self.insert_into_indexes(tuple, needed, state);
            }
        }
    }

    /// # Safety
    /// `tuple` has just been stored in the shadow.
    unsafe fn insert_into_indexes(
        &mut self,
        tuple: pg_sys::HeapTuple,
        needed: NewEntries,
        state: *mut pg_sys::EState,
    ) {
        let mut values = [pg_sys::Datum::from(0usize); pg_sys::INDEX_MAX_KEYS as usize];
        let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: the expression context is the executor state's own; index expressions see the row.
        unsafe {
            pg_sys::ExecStoreHeapTuple(tuple, self.row, false);
            (*self.row).tts_tid = (*tuple).t_self;
            (*self.row).tts_tableOid = (*self.copy.relation).rd_id;
            let mut expressions = (*state).es_per_tuple_exprcontext;
            if expressions.is_null() {
                expressions = pg_sys::MakePerTupleExprContext(state);
            }
            (*expressions).ecxt_scantuple = self.row;
            for index in &self.indexes {
                if needed == NewEntries::Summarizing && !compat::is_summarizing(index.info) {
                    continue;
                }
                if !index.predicate.is_null() && !compat::holds(index.predicate, expressions) {
                    continue;
                }
                pg_sys::FormIndexDatum(index.info, self.row, state, values.as_mut_ptr(), nulls.as_mut_ptr());
                pg_sys::index_insert(
                    index.relation,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                    &mut (*tuple).t_self,
                    self.copy.relation,
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
    unsafe fn close(self) {
        // SAFETY: opened in `new`; locks stay to the end of the transaction.
        unsafe {
            for index in self.indexes {
                compat::index_insert_cleanup(index.relation, index.info);
                pg_sys::index_close(index.relation, pg_sys::NoLock as i32);
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.row);
            self.copy.close();
        }
    }
}

/// Whether every attribute of one is stored as that of the other; one that is dropped in both is not stored.
///
/// # Safety
/// Both must be open.
unsafe fn same_shape(a: pg_sys::Relation, b: pg_sys::Relation) -> bool {
    // SAFETY: as promised by the caller; the index is below natts of both.
    unsafe {
        let (a, b) = ((*a).rd_att, (*b).rd_att);
        let same = |index: usize| {
            let (x, y) = (&*compat::attribute(a, index), &*compat::attribute(b, index));
            x.attisdropped && y.attisdropped
                || (x.atttypid, x.attlen, x.attbyval, x.attisdropped)
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
