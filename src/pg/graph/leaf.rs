//! Single rows of one part of a closure, with their index entries, below the executor: no trigger, no rule, no
//! check of privileges. Whoever calls has serialised the writers.

use super::keys::{KeyKind, NodeKey};
use super::lookup::Place;
use crate::pg::compat::{self, NewEntries};
use crate::pg::lock::ROW_EXCLUSIVE;
use crate::pg::report::{PgResult, wrong_state};
use pgrx::pg_sys;

/// A row of a closure.
#[derive(Clone, Copy, Debug)]
pub struct ClosureRow<'a> {
    /// The ancestor.
    pub ancestor: &'a NodeKey,
    /// The descendant.
    pub descendant: &'a NodeKey,
    /// Edges of a shortest path.
    pub depth: u32,
    /// Shard of the ancestor.
    pub ancestor_shard: i32,
    /// Shard of the descendant.
    pub descendant_shard: i32,
}

/// Columns of a closure.
pub const CLOSURE_COLUMNS: usize = 5;

impl ClosureRow<'_> {
    /// The values of the columns, allocated in the current memory context.
    pub(super) fn values(&self, kind: KeyKind) -> [pg_sys::Datum; CLOSURE_COLUMNS] {
        [
            kind.datum(self.ancestor),
            kind.datum(self.descendant),
            pg_sys::Datum::from(self.depth as i32),
            pg_sys::Datum::from(self.ancestor_shard),
            pg_sys::Datum::from(self.descendant_shard),
        ]
    }
}

/// A row that was stored and has no index entries yet.
struct Stored {
    values: [pg_sys::Datum; CLOSURE_COLUMNS],
    place: pg_sys::ItemPointerData,
    needed: NewEntries,
}

/// So many new rows are stored at once.
const ROWS: usize = 256;
/// So many rows get their index entries at once.
const ENTRIES: usize = 32_768;

/// An index, ready for new entries.
struct OpenIndex {
    relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    /// Numbers of its columns in the table, from 0.
    columns: Vec<usize>,
    unique: bool,
}

/// A part of a closure that is written: new rows by the page, and entries of each index in its order, so that neighbours
/// go to the same pages one after the other. What was not flushed is lost.
pub struct Leaf {
    relation: pg_sys::Relation,
    indexes: Vec<OpenIndex>,
    kind: KeyKind,
    /// Values of rows that wait.
    context: pg_sys::MemoryContext,
    /// What it was opened in.
    lasting: pg_sys::MemoryContext,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    /// Columns of the slots; a copy, which nobody counts references to.
    columns: pg_sys::TupleDesc,
    /// New rows.
    waiting: Vec<[pg_sys::Datum; CLOSURE_COLUMNS]>,
    stored: Vec<Stored>,
}

impl Leaf {
    /// Opens a part.
    ///
    /// # Errors
    /// 55000 when it is gone, or has other columns than ours, or an index with expressions or a condition.
    pub fn open(table: pg_sys::Oid, kind: KeyKind) -> PgResult<Self> {
        let changed = || wrong_state("a part of the graph's closure is gone or was altered");
        // SAFETY: inside a transaction; index attribute numbers are read as many as the index says.
        unsafe {
            let relation = pg_sys::try_relation_open(table, ROW_EXCLUSIVE);
            if relation.is_null() {
                return Err(changed());
            }
            if (*(*relation).rd_att).natts != CLOSURE_COLUMNS as i32
                || (*(*relation).rd_rel).relam != pg_sys::HEAP_TABLE_AM_OID
            {
                return Err(changed());
            }
            let list = pg_sys::RelationGetIndexList(relation);
            let count = if list.is_null() { 0 } else { (*list).length.max(0) as usize };
            let mut indexes = Vec::with_capacity(count);
            for at in 0..count {
                let oid = (*(*list).elements.add(at)).oid_value;
                let index = pg_sys::index_open(oid, ROW_EXCLUSIVE);
                let info = pg_sys::BuildIndexInfo(index);
                if !(*info).ii_ReadyForInserts {
                    // Being built: whoever builds it takes what it lacks.
                    pg_sys::index_close(index, ROW_EXCLUSIVE);
                    continue;
                }
                let all = (*info).ii_NumIndexAttrs.max(0) as usize;
                let numbers = (*info).ii_IndexAttrNumbers;
                let columns: Vec<usize> = (0..all.min(numbers.len()))
                    .filter_map(|i| usize::try_from(numbers[i] - 1).ok().filter(|n| *n < CLOSURE_COLUMNS))
                    .collect();
                if columns.len() != all || !(*info).ii_Predicate.is_null() {
                    return Err(wrong_state(
                        "a part of the graph's closure has an index that cannot be kept",
                    )
                    .set_detail("Such an index must be on columns, for all rows.")
                    .set_hint(format!("Drop index {}.", name_of(oid))));
                }
                indexes.push(OpenIndex { relation: index, info, columns, unique: (*info).ii_Unique });
            }
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"foreshard closure row".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let (slots, waiting, stored) = (Vec::new(), Vec::new(), Vec::new());
            let lasting = pg_sys::CurrentMemoryContext;
            let columns = pg_sys::CreateTupleDescCopy((*relation).rd_att);
            Ok(Self { relation, indexes, kind, context, lasting, slots, columns, waiting, stored })
        }
    }

    /// Inserts a row, at the latest with [`Leaf::flush`], which raises 23505 when the pair is there already.
    pub fn insert(&mut self, row: &ClosureRow<'_>) {
        // SAFETY: what is allocated lives in our context until the rows are stored.
        let values = unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            let values = row.values(self.kind);
            pg_sys::MemoryContextSwitchTo(before);
            values
        };
        self.waiting.push(values);
        if self.waiting.len() >= ROWS {
            self.store();
        }
        self.flush_many();
    }

    /// Deletes the row at a place.
    pub fn delete(&mut self, mut place: Place) {
        // SAFETY: a look-up found it there, and other writers wait for us.
        unsafe { pg_sys::simple_heap_delete(self.relation, &mut place.0) };
    }

    /// Replaces the row at a place; its index entries follow with [`Leaf::flush`].
    pub fn update(&mut self, mut place: Place, row: &ClosureRow<'_>) {
        // SAFETY: as for `insert` and `delete`; the tuple is a copy, in our context.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            let mut values = row.values(self.kind);
            let mut nulls = [false; CLOSURE_COLUMNS];
            let tuple =
                pg_sys::heap_form_tuple((*self.relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let needed = compat::simple_heap_update(self.relation, &mut place.0, tuple);
            if needed != NewEntries::None {
                self.stored.push(Stored { values, place: (*tuple).t_self, needed });
            }
            pg_sys::heap_freetuple(tuple);
            pg_sys::MemoryContextSwitchTo(before);
        }
        self.flush_many();
    }

    fn flush_many(&mut self) {
        if self.stored.len() >= ENTRIES {
            self.flush();
        }
    }

    /// Writes whatever waits.
    pub fn flush(&mut self) {
        // SAFETY: what is allocated on the way goes with the values at the end.
        let before = unsafe { pg_sys::MemoryContextSwitchTo(self.context) };
        self.store();
        let stored = std::mem::take(&mut self.stored);
        let mut order: Vec<u32> = (0..stored.len() as u32).collect();
        let row = |at: &u32| stored.get(*at as usize);
        for index in &self.indexes {
            if matches!(self.kind, KeyKind::Int4 | KeyKind::Int8) {
                let first = |at: &u32| row(at).map(|row| index.columns.iter().map(|c| self.number(row, *c)));
                order.sort_by(|a, b| match (first(a), first(b)) {
                    (Some(a), Some(b)) => a.cmp(b),
                    _ => std::cmp::Ordering::Equal,
                });
            }
            for (done, row) in order.iter().filter_map(row).enumerate() {
                if done.is_multiple_of(1024) {
                    pgrx::check_for_interrupts!();
                }
                self.enter(index, row);
            }
        }
        // SAFETY: nothing refers to what is in there any more.
        unsafe {
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.context);
        }
    }

    /// A column as a number, where keys are numbers.
    fn number(&self, row: &Stored, column: usize) -> i64 {
        let value = row.values.get(column).map_or(0, |value| value.value());
        if column < 2 && self.kind == KeyKind::Int8 { value as i64 } else { i64::from(value as i32) }
    }

    /// Stores new rows.
    fn store(&mut self) {
        let count = self.waiting.len();
        // SAFETY: every slot has room for the columns of the table, whose number was looked at; what is allocated on the
        // way goes with the values.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo(self.context);
            if self.slots.len() < count {
                // They outlive this batch.
                let before = pg_sys::MemoryContextSwitchTo(self.lasting);
                let ops = &raw const pg_sys::TTSOpsVirtual;
                while self.slots.len() < count {
                    self.slots.push(pg_sys::MakeSingleTupleTableSlot(self.columns, ops));
                }
                pg_sys::MemoryContextSwitchTo(before);
            }
            for (values, slot) in self.waiting.iter().zip(&self.slots) {
                for (at, value) in values.iter().enumerate() {
                    *(**slot).tts_values.add(at) = *value;
                    *(**slot).tts_isnull.add(at) = false;
                }
                pg_sys::ExecStoreVirtualTuple(*slot);
            }
            if count > 0 {
                let command = pg_sys::GetCurrentCommandId(true);
                let (slots, none) = (self.slots.as_mut_ptr(), std::ptr::null_mut());
                pg_sys::heap_multi_insert(self.relation, slots, count as i32, command, 0, none);
            }
            for (values, slot) in self.waiting.drain(..).zip(&self.slots) {
                let place = (**slot).tts_tid;
                self.stored.push(Stored { values, place, needed: NewEntries::All });
                if let Some(clear) = (*(**slot).tts_ops).clear {
                    clear(*slot);
                }
            }
            pg_sys::MemoryContextSwitchTo(outer);
        }
    }

    fn enter(&self, index: &OpenIndex, row: &Stored) {
        // SAFETY: the index is open.
        if row.needed == NewEntries::Summarizing && !unsafe { compat::is_summarizing(index.info) } {
            return;
        }
        let mut entry = [pg_sys::Datum::from(0usize); CLOSURE_COLUMNS];
        let mut nulls = [false; CLOSURE_COLUMNS];
        for (place, column) in entry.iter_mut().zip(&index.columns) {
            *place = row.values[*column];
        }
        let check = match index.unique {
            true => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES,
            false => pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
        };
        let mut place = row.place;
        // SAFETY: the row was stored there with these values; one value per column of the index.
        unsafe {
            pg_sys::index_insert(
                index.relation,
                entry.as_mut_ptr(),
                nulls.as_mut_ptr(),
                &mut place,
                self.relation,
                check,
                false,
                index.info,
            );
        }
    }
}

/// An index's name, for a message.
fn name_of(index: pg_sys::Oid) -> String {
    // SAFETY: a name or NULL, allocated in the current memory context.
    unsafe {
        let name = pg_sys::get_rel_name(index);
        if name.is_null() {
            String::new()
        } else {
            std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The abort of the transaction lets everything go.
            return;
        }
        // SAFETY: opened in `open`; locks stay to the end of the transaction.
        unsafe {
            for index in &self.indexes {
                compat::index_insert_cleanup(index.relation, index.info);
                pg_sys::index_close(index.relation, pg_sys::NoLock as i32);
            }
            self.slots.iter().for_each(|slot| pg_sys::ExecDropSingleTupleTableSlot(*slot));
            pg_sys::FreeTupleDesc(self.columns);
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.context);
        }
    }
}
