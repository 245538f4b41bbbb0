//! SPI in three shapes: run, one value, rows. Statements are the callers' (catalog, mover), values
//! travel as parameters.

use super::local::LocalBox;
use super::report::{PgResult, cstring, internal};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiHeapTupleData;
use std::collections::HashMap;

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

/// Plans that this session keeps, by statement and types of its parameters.
static PLANS: LocalBox<HashMap<(String, Vec<pg_sys::Oid>), pg_sys::SPIPlanPtr>> = LocalBox::new();
/// The most of them; beyond it all are made again.
const MAX_PLANS: usize = 256;

/// As [`run`], with a plan that the session keeps: for statements that come again and again.
pub fn run_kept(sql: &str, args: &[Arg]) -> PgResult<u64> {
    refuse_on_standby();
    let mut types: Vec<pg_sys::Oid> = args.iter().map(|arg| arg.oid()).collect();
    let value = |arg: &Arg| arg.datum().map_or(pg_sys::Datum::from(0usize), |value| value.sans_lifetime());
    let mut values: Vec<pg_sys::Datum> = args.iter().map(value).collect();
    let null = |arg: &Arg| if arg.datum().is_some() { b' ' } else { b'n' } as std::ffi::c_char;
    let nulls: Vec<std::ffi::c_char> = args.iter().map(null).collect();
    // SAFETY: connected for the time of the call, an ERROR ends the connection with the (sub)transaction; a kept
    // plan lives until it is freed, and one type, value and null flag belong to each parameter.
    unsafe {
        if pg_sys::SPI_connect() < 0 {
            return Err(internal("no connection to SPI"));
        }
        let key = (sql.to_owned(), types.clone());
        let known = PLANS.with(HashMap::new, |plans| plans.get(&key).copied()).flatten();
        let plan = match known {
            Some(plan) => plan,
            None => {
                let plan = pg_sys::SPI_prepare(cstring(sql).as_ptr(), types.len() as i32, types.as_mut_ptr());
                if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
                    pg_sys::SPI_finish();
                    return Err(internal("a statement could not be prepared"));
                }
                PLANS.with(HashMap::new, |plans| {
                    if plans.len() >= MAX_PLANS {
                        plans.drain().for_each(|(_, old)| {
                            pg_sys::SPI_freeplan(old);
                        });
                    }
                    plans.insert(key, plan);
                });
                plan
            }
        };
        let code = pg_sys::SPI_execute_plan(plan, values.as_mut_ptr(), nulls.as_ptr(), false, 0);
        let processed = pg_sys::SPI_processed;
        pg_sys::SPI_finish();
        if code < 0 {
            return Err(internal(format!("SPI code {code}")));
        }
        Ok(processed)
    }
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

/// As [`rows`], for statements that write or lock.
pub fn rows_mut<R>(sql: &str, args: &[Arg], map: impl Fn(&Row) -> PgResult<R>) -> PgResult<Vec<R>> {
    refuse_on_standby();
    Spi::connect_mut(|client| {
        let table = client.update(sql, None, args).map_err(internal)?;
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
