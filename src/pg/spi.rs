//! SPI in three shapes: run, one value, rows. Statements are the callers' (catalog, mover), values
//! travel as parameters.

use super::local::{Local, LocalBox};
use super::report::{PgResult, cstring, internal};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiClient, SpiHeapTupleData, SpiTupleTable};
use std::collections::HashMap;
use std::rc::Rc;

/// A parameter of a statement.
pub type Arg<'a> = DatumWithOid<'a>;

/// 25006 on a standby; pgrx assigns a transaction id before the statement could say so itself.
fn refuse_on_standby() {
    // SAFETY: raises an ERROR or does nothing.
    unsafe { pg_sys::PreventCommandDuringRecovery(c"functions of foreshard that change something".as_ptr()) };
}

/// A value of any type as a parameter.
pub fn any_arg(key: pgrx::AnyElement) -> Arg<'static> {
    let type_oid = key.oid();
    // SAFETY: the datum is one of that type, given to the function that passes it on.
    unsafe { DatumWithOid::new(key, type_oid) }
}

/// Runs a statement that changes something (or needs a fresh snapshot) and returns the rows processed.
pub fn run(sql: &str, args: &[Arg]) -> PgResult<u64> {
    refuse_on_standby();
    Spi::connect_mut(|client| {
        let done = write(client, sql, None, args)?;
        let _ = done;
        // SAFETY: SPI_processed is set by the statement that just ran in this backend.
        Ok(unsafe { pg_sys::SPI_processed })
    })
}

/// Types, values and null flags of parameters, as SPI has them.
pub(super) fn parameters(args: &[Arg]) -> (Vec<pg_sys::Oid>, Vec<pg_sys::Datum>, Vec<std::ffi::c_char>) {
    let value = |arg: &Arg| arg.datum().map_or(pg_sys::Datum::from(0usize), |value| value.sans_lifetime());
    let null = |arg: &Arg| if arg.datum().is_some() { b' ' } else { b'n' } as std::ffi::c_char;
    (
        args.iter().map(|arg| arg.oid()).collect(),
        args.iter().map(value).collect(),
        args.iter().map(null).collect(),
    )
}

/// The text in the first column of the first row of a statement that reads, by a snapshot of its own: it sees what has been
/// committed by now, in a transaction of any isolation level and in parallel workers.
pub fn text_of_now(sql: &str, args: &[Arg]) -> PgResult<Option<String>> {
    let (mut types, mut values, nulls) = parameters(args);
    // SAFETY: connected for the time of the call; the snapshot is copied when it becomes the active one, which it is for the
    // statement alone; an ERROR ends both with the (sub)transaction. One type, value and null flag belong to each
    // parameter, and the text is copied before the connection ends.
    unsafe {
        if pg_sys::SPI_connect() < 0 {
            return Err(internal("no connection to SPI"));
        }
        // That of the catalog is the only one that is new at every isolation level and may be taken in parallel mode.
        pg_sys::PushActiveSnapshot(pg_sys::GetCatalogSnapshot(pg_sys::InvalidOid));
        let text = cstring(sql);
        let (types, values) = (types.as_mut_ptr(), values.as_mut_ptr());
        let count = args.len() as i32;
        let code =
            pg_sys::SPI_execute_with_args(text.as_ptr(), count, types, values, nulls.as_ptr(), true, 1);
        pg_sys::PopActiveSnapshot();
        let mut found = None;
        if code == pg_sys::SPI_OK_SELECT as i32 && pg_sys::SPI_processed > 0 {
            let table = pg_sys::SPI_tuptable;
            let text = pg_sys::SPI_getvalue(*(*table).vals, (*table).tupdesc, 1);
            if !text.is_null() {
                found = Some(std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned());
            }
        }
        pg_sys::SPI_finish();
        if code < 0 { Err(internal(format!("SPI code {code}"))) } else { Ok(found) }
    }
}

/// Plans that this session keeps, by statement and types of its parameters.
static PLANS: LocalBox<HashMap<(String, Vec<pg_sys::Oid>), pg_sys::SPIPlanPtr>> = LocalBox::new();
/// The most of them; beyond it all are made again.
const MAX_PLANS: usize = 256;

/// As [`run`], with a plan that the session keeps: for statements that come again and again.
pub fn run_kept(sql: &str, args: &[Arg]) -> PgResult<u64> {
    refuse_on_standby();
    let (mut types, mut values, nulls) = parameters(args);
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

/// Statements whose plans a session keeps while it is told to.
type Kept = HashMap<(String, Vec<pg_sys::Oid>), Rc<OwnedPreparedStatement>>;
static KEPT: LocalBox<Kept> = LocalBox::new();
static KEEPING: Local<bool> = Local::new(false);

/// While it lives, statements with parameters are planned once per session, whatever the parameters.
pub struct KeptPlans(());

impl KeptPlans {
    /// From now on, in this transaction.
    pub fn begin() -> PgResult<KeptPlans> {
        set_local("plan_cache_mode", "force_generic_plan")?;
        KEEPING.set(true);
        Ok(KeptPlans(()))
    }
}

impl Drop for KeptPlans {
    fn drop(&mut self) {
        KEEPING.set(false);
    }
}

/// The kept plan of a statement, if it is to be kept.
fn kept(
    client: &SpiClient<'_>,
    sql: &str,
    args: &[Arg],
    writes: bool,
) -> PgResult<Option<Rc<OwnedPreparedStatement>>> {
    if !KEEPING.get() || args.is_empty() {
        return Ok(None);
    }
    let key = (sql.to_owned(), args.iter().map(Arg::oid).collect::<Vec<pg_sys::Oid>>());
    if let Some(known) = KEPT.with(HashMap::new, |kept| kept.get(&key).cloned()).flatten() {
        return Ok(Some(known));
    }
    let types: Vec<PgOid> = key.1.iter().map(|oid| PgOid::from(*oid)).collect();
    let prepared = if writes { client.prepare_mut(sql, &types) } else { client.prepare(sql, &types) }
        .map_err(internal)?;
    let plan = Rc::new(prepared.keep());
    KEPT.with(HashMap::new, |kept| {
        if kept.len() >= MAX_PLANS {
            kept.clear();
        }
        kept.insert(key, plan.clone());
    });
    Ok(Some(plan))
}

/// Runs a statement that reads.
fn read<'conn>(
    client: &SpiClient<'conn>,
    sql: &str,
    limit: Option<i64>,
    args: &[Arg],
) -> PgResult<SpiTupleTable<'conn>> {
    match kept(client, sql, args, false)? {
        Some(plan) => client.select(&*plan, limit, args),
        None => client.select(sql, limit, args),
    }
    .map_err(internal)
}

/// Runs a statement that may write.
fn write<'conn>(
    client: &mut SpiClient<'conn>,
    sql: &str,
    limit: Option<i64>,
    args: &[Arg],
) -> PgResult<SpiTupleTable<'conn>> {
    match kept(client, sql, args, true)? {
        Some(plan) => client.update(&*plan, limit, args),
        None => client.update(sql, limit, args),
    }
    .map_err(internal)
}

/// First column of the first row; None when there is no row or the value is NULL.
pub fn one<T: FromDatum + IntoDatum>(sql: &str, args: &[Arg]) -> PgResult<Option<T>> {
    Spi::connect(|client| {
        let rows = read(client, sql, Some(1), args)?;
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
        let rows = write(client, sql, Some(1), args)?;
        match rows.into_iter().next() {
            Some(row) => row.get::<T>(1).map_err(internal),
            None => Ok(None),
        }
    })
}

/// Maps every row of a read-only statement.
pub fn rows<R>(sql: &str, args: &[Arg], map: impl Fn(&Row) -> PgResult<R>) -> PgResult<Vec<R>> {
    Spi::connect(|client| {
        let table = read(client, sql, None, args)?;
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
        let table = write(client, sql, None, args)?;
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
    let (guc, value) = (cstring(guc), cstring(value));
    // SAFETY: as `set_config()` does it; raises for what may not be set.
    unsafe {
        let context =
            if pg_sys::superuser() { pg_sys::GucContext::PGC_SUSET } else { pg_sys::GucContext::PGC_USERSET };
        pg_sys::set_config_option(
            guc.as_ptr(),
            value.as_ptr(),
            context,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
    Ok(())
}
