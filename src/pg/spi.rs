//! SPI in three shapes: run, one value, rows. Statements are the callers' (catalog, mover), values
//! travel as parameters.

use super::report::{PgResult, internal};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiHeapTupleData;

/// A parameter of a statement.
pub type Arg<'a> = DatumWithOid<'a>;

/// 25006 on a standby; pgrx assigns a transaction id before the statement could say so itself.
fn refuse_on_standby() {
    // SAFETY: raises an ERROR or does nothing.
    unsafe { pg_sys::PreventCommandDuringRecovery(c"functions of foreshard that change something".as_ptr()) };
}

/// Runs a statement that changes something (or needs a fresh snapshot) and returns the rows processed.
pub fn run(sql: &str, args: &[Arg]) -> PgResult<u64> {
    refuse_on_standby();
    Spi::connect_mut(|client| {
        let done = client.update(sql, None, args).map_err(internal)?;
        let _ = done;
        // SAFETY: SPI_processed is set by the statement that just ran in this backend.
        Ok(unsafe { pg_sys::SPI_processed })
    })
}

/// First column of the first row; None when there is no row or the value is NULL.
pub fn one<T: FromDatum + IntoDatum>(sql: &str, args: &[Arg]) -> PgResult<Option<T>> {
    Spi::connect(|client| {
        let rows = client.select(sql, Some(1), args).map_err(internal)?;
        match rows.into_iter().next() {
            Some(row) => row.get::<T>(1).map_err(internal),
            None => Ok(None),
        }
    })
}

/// As [`one`], for statements that write.
pub fn one_mut<T: FromDatum + IntoDatum>(sql: &str, args: &[Arg]) -> PgResult<Option<T>> {
    refuse_on_standby();
    Spi::connect_mut(|client| {
        let rows = client.update(sql, Some(1), args).map_err(internal)?;
        match rows.into_iter().next() {
            Some(row) => row.get::<T>(1).map_err(internal),
            None => Ok(None),
        }
    })
}

/// Maps every row of a read-only statement.
pub fn rows<R>(sql: &str, args: &[Arg], map: impl Fn(&Row) -> PgResult<R>) -> PgResult<Vec<R>> {
    Spi::connect(|client| {
        let table = client.select(sql, None, args).map_err(internal)?;
        let mut out = Vec::with_capacity(table.len());
        for row in table {
            out.push(map(&Row(row))?);
        }
        Ok(out)
    })
}

/// One row of a result.
pub struct Row<'conn>(SpiHeapTupleData<'conn>);

impl Row<'_> {
    /// Column `ordinal` (from 1), None for NULL.
    pub fn get<T: IntoDatum + FromDatum>(&self, ordinal: usize) -> PgResult<Option<T>> {
        self.0.get::<T>(ordinal).map_err(internal)
    }

    /// Column `ordinal`, which the statement makes NOT NULL.
    pub fn need<T: IntoDatum + FromDatum>(&self, ordinal: usize) -> PgResult<T> {
        self.get(ordinal)?.ok_or_else(|| internal(format!("unexpected NULL in column {ordinal}")))
    }
}

/// Runs `work` with `guc = value` for the rest of the transaction.
pub fn set_local(guc: &str, value: &str) -> PgResult<()> {
    let _ = one_mut::<String>("SELECT pg_catalog.set_config($1, $2, true)", &[guc.into(), value.into()])?;
    Ok(())
}
