//! Filling a table that this transaction has created, as COPY with FREEZE does: rows by the page, visible and
//! frozen at once, indexes later.

use super::keys::{KeyKind, NodeKey};
use super::leaf::ClosureRow;
use crate::pg::load::{Load, Values};
use pgrx::{IntoDatum, pg_sys};

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
    load: Load,
    kind: KeyKind,
}

impl Bulk {
    /// Opens a heap that this (sub)transaction has created and that has no index yet.
    pub fn open(table: pg_sys::Oid, kind: KeyKind) -> Self {
        let options = pg_sys::HEAP_INSERT_SKIP_FSM | pg_sys::HEAP_INSERT_FROZEN;
        Self { load: Load::open(table, Values::Kept, options), kind }
    }

    /// Adds a row of a closure.
    pub fn push_closure(&mut self, row: &ClosureRow<'_>) {
        // SAFETY: values live in the load's context until the batch is stored.
        let values = unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.load.context());
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
            let before = pg_sys::MemoryContextSwitchTo(self.load.context());
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
        let row = values.iter().enumerate().map(|(at, value)| (at, *value, is_null(at)));
        // SAFETY: values were made in the load's context, of the types of the table that was created for them.
        unsafe { self.load.push(row) };
    }

    /// Stores what is left and closes the table; all rows that were added.
    pub fn finish(self) -> u64 {
        self.load.finish().rows
    }
}
