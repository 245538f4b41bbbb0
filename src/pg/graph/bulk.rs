//! Filling a table that this transaction has created, as COPY with FREEZE does: rows by the page, visible and
//! frozen at once, indexes later.

use super::keys::{KeyKind, NodeKey};
use super::leaf::ClosureRow;
use crate::pg::lock::ROW_EXCLUSIVE;
use pgrx::{IntoDatum, pg_sys};

/// Rows stored at once.
const BATCH: usize = 1000;

/// A value of a column.
pub enum Value<'a> {
    /// A key.
    Key(&'a NodeKey),
    /// An integer.
    Int(i32),
    /// A bigint.
    Bigint(i64),
    /// A double precision.
    Float(f64),
    /// A text.
    Text(Option<&'a str>),
    /// NULL of any type.
    Null,
}

/// A table that is being filled.
pub struct Bulk {
    relation: pg_sys::Relation,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    filled: usize,
    state: pg_sys::BulkInsertState,
    kind: KeyKind,
    context: pg_sys::MemoryContext,
    /// Rows added so far.
    rows: u64,
}

impl Bulk {
    /// Opens a heap that this (sub)transaction has created and that has no index yet.
    pub fn open(table: pg_sys::Oid, kind: KeyKind) -> Self {
        // SAFETY: the caller created the table in this transaction.
        unsafe {
            let relation = pg_sys::relation_open(table, ROW_EXCLUSIVE);
            let slot =
                || pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &raw const pg_sys::TTSOpsVirtual);
            Self {
                relation,
                slots: (0..BATCH).map(|_| slot()).collect(),
                filled: 0,
                state: pg_sys::GetBulkInsertState(),
                kind,
                context: pg_sys::AllocSetContextCreateInternal(
                    pg_sys::CurrentMemoryContext,
                    c"foreshard bulk load".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                ),
                rows: 0,
            }
        }
    }

    /// Adds a row of a closure.
    pub fn push_closure(&mut self, row: &ClosureRow<'_>) {
        // SAFETY: values live in our context until the batch is stored.
        let values = unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            let values = row.values(self.kind);
            pg_sys::MemoryContextSwitchTo(before);
            values
        };
        self.store(&values, |_| false);
    }

    /// Adds a row; as many values as the table has columns, of their types.
    pub fn push(&mut self, row: &[Value<'_>]) {
        // SAFETY: as for `push_closure`.
        let values: Vec<pg_sys::Datum> = unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            let value = |value: &Value<'_>| match value {
                Value::Key(key) => self.kind.datum(key),
                Value::Int(value) => pg_sys::Datum::from(*value),
                Value::Bigint(value) => pg_sys::Datum::from(*value),
                Value::Float(value) => pg_sys::Datum::from(value.to_bits()),
                Value::Text(text) => text.into_datum().unwrap_or(pg_sys::Datum::from(0usize)),
                Value::Null => pg_sys::Datum::from(0usize),
            };
            let values = row.iter().map(value).collect();
            pg_sys::MemoryContextSwitchTo(before);
            values
        };
        self.store(&values, |at| matches!(row.get(at), Some(Value::Null | Value::Text(None))));
    }

    fn store(&mut self, values: &[pg_sys::Datum], is_null: impl Fn(usize) -> bool) {
        let Some(slot) = self.slots.get(self.filled).copied() else { return };
        // SAFETY: the slot is empty and has room for every column; no more values than columns are taken.
        unsafe {
            let columns = (*(*self.relation).rd_att).natts.max(0) as usize;
            for (at, value) in values.iter().enumerate().take(columns) {
                *(*slot).tts_values.add(at) = *value;
                *(*slot).tts_isnull.add(at) = is_null(at);
            }
            pg_sys::ExecStoreVirtualTuple(slot);
        }
        self.filled += 1;
        self.rows += 1;
        if self.filled == BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        pgrx::check_for_interrupts!();
        let options = pg_sys::HEAP_INSERT_SKIP_FSM | pg_sys::HEAP_INSERT_FROZEN;
        // SAFETY: as many slots as are filled; the table was created in this transaction, so that rows may be
        // frozen. What is allocated lives in our context until the end.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            pg_sys::heap_multi_insert(
                self.relation,
                self.slots.as_mut_ptr(),
                self.filled as i32,
                pg_sys::GetCurrentCommandId(true),
                options as i32,
                self.state,
            );
            for slot in self.slots.iter().take(self.filled) {
                if let Some(clear) = (*(**slot).tts_ops).clear {
                    clear(*slot);
                }
            }
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.context);
        }
        self.filled = 0;
    }

    /// Stores what is left and closes the table; all rows that were added.
    pub fn finish(mut self) -> u64 {
        if self.filled > 0 {
            self.flush();
        }
        // SAFETY: opened in `open`; the lock stays to the end of the transaction.
        unsafe {
            pg_sys::FreeBulkInsertState(self.state);
            self.slots.iter().for_each(|slot| pg_sys::ExecDropSingleTupleTableSlot(*slot));
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.context);
            pg_sys::CommandCounterIncrement();
        }
        self.rows
    }
}
