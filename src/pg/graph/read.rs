//! Whole results of statements, row by row, under the active snapshot and without keeping them.

use super::keys::{KeyKind, NodeKey};
use crate::pg::report::{PgResult, cstring, internal};
use crate::pg::spi::{Arg, parameters};
use pgrx::{FromDatum, pg_sys};

/// Rows fetched at once.
const FETCH: i64 = 10_000;

/// One row of a result; columns count from 1.
pub struct ReadRow {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
    kind: KeyKind,
}

impl ReadRow {
    fn value(&self, column: i32) -> Option<pg_sys::Datum> {
        let mut is_null = false;
        // SAFETY: tuple and descriptor belong to the result at hand; unknown columns are NULL.
        let value = unsafe { pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &mut is_null) };
        (!is_null).then_some(value)
    }

    /// A column that is a key; None: NULL. Raises 55000 when the column has another type: tables may be altered
    /// between two statements.
    pub fn key(&self, column: i32) -> Option<NodeKey> {
        // SAFETY: the type is checked before the value is read as one.
        unsafe {
            self.kind.require(pg_sys::SPI_gettypeid(self.descriptor, column));
            self.value(column).map(|value| self.kind.read(value))
        }
    }

    /// A bigint column.
    pub fn bigint(&self, column: i32) -> Option<i64> {
        self.value(column).map(|value| value.value() as i64)
    }

    /// An integer column.
    pub fn int(&self, column: i32) -> Option<i32> {
        self.value(column).map(|value| value.value() as i32)
    }

    /// A column of double precision.
    pub fn float(&self, column: i32) -> Option<f64> {
        self.value(column).map(|value| f64::from_bits(value.value() as u64))
    }

    /// A text column.
    pub fn text(&self, column: i32) -> Option<String> {
        // SAFETY: the column is a text.
        self.value(column).and_then(|value| unsafe { String::from_datum(value, false) })
    }
}

/// Hands every row of a statement that only reads to `row`.
///
/// # Errors
/// Those of `row`, and XX000 when the statement cannot be run.
pub fn each(sql: &str, kind: KeyKind, row: impl FnMut(&ReadRow) -> PgResult<()>) -> PgResult<()> {
    each_of(sql, &[], kind, row)
}

/// As [`each`], of a statement with parameters.
///
/// # Errors
/// Those of `row`, and XX000 when the statement cannot be run.
pub fn each_of(
    sql: &str,
    args: &[Arg],
    kind: KeyKind,
    mut row: impl FnMut(&ReadRow) -> PgResult<()>,
) -> PgResult<()> {
    let sql = cstring(sql);
    let (mut types, mut values, nulls) = parameters(args);
    // SAFETY: connected for the time of the call; rows are handed out while their table lives; one type, value and null
    // flag belong to each parameter, and the portal has copies of them. An ERROR ends the connection with the
    // (sub)transaction.
    unsafe {
        if pg_sys::SPI_connect() < 0 {
            return Err(internal("no connection to SPI"));
        }
        let portal = pg_sys::SPI_cursor_open_with_args(
            std::ptr::null(),
            sql.as_ptr(),
            args.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            true,
            0,
        );
        let mut result = Ok(());
        loop {
            pgrx::check_for_interrupts!();
            pg_sys::SPI_cursor_fetch(portal, true, FETCH);
            let (table, count) = (pg_sys::SPI_tuptable, pg_sys::SPI_processed as usize);
            for at in 0..count {
                let tuple = *(*table).vals.add(at);
                let one = ReadRow { tuple, descriptor: (*table).tupdesc, kind };
                result = row(&one);
                if result.is_err() {
                    break;
                }
            }
            pg_sys::SPI_freetuptable(table);
            if count == 0 || result.is_err() {
                break;
            }
        }
        pg_sys::SPI_cursor_close(portal);
        pg_sys::SPI_finish();
        result
    }
}
