//! The rows of a query one by one, while it runs: those that nobody wants any more are never in memory.

use super::report::{PgResult, cstring, internal};
use super::spi::{Arg, parameters};
use pgrx::pg_sys;
use std::ffi::{CStr, c_char};

/// A row of what a data source tells, as texts: key, output, attributes.
pub type TextRow = [Option<String>; COLUMNS];

const COLUMNS: usize = 3;

/// Bytes of a row's texts.
pub fn text_bytes(row: &TextRow) -> usize {
    row.iter().flatten().map(String::len).sum()
}

/// Where the rows go. The server sees only the first part.
#[repr(C)]
struct Receiver<'a> {
    public: pg_sys::DestReceiver,
    row: &'a mut dyn FnMut(TextRow) -> bool,
}

/// Gives the rows of a query, of three columns of type text, to `row` until that has enough (false).
///
/// # Errors
/// Whatever the query raises; XX000 when it is no query.
pub fn each_row(sql: &str, args: &[Arg], row: &mut dyn FnMut(TextRow) -> bool) -> PgResult<()> {
    let (mut types, values, nulls) = parameters(args);
    let public = public(receive);
    let mut receiver = Receiver { public, row };
    let count = types.len() as i32;
    // SAFETY: connected for the time of the call, an ERROR ends the connection with the (sub)transaction. The receiver outlives
    // the query, and its public part comes first. One type, value and null flag belong to each parameter, and the list has room
    // for so many.
    let code = unsafe {
        if pg_sys::SPI_connect() < 0 {
            return Err(internal("no connection to SPI"));
        }
        let params = pg_sys::makeParamList(count);
        let first = (&raw mut (*params).params).cast::<pg_sys::ParamExternData>();
        for (at, ((value, null), ptype)) in values.iter().zip(&nulls).zip(&types).enumerate() {
            *first.add(at) = pg_sys::ParamExternData {
                value: *value,
                isnull: *null != b' ' as c_char,
                pflags: pg_sys::PARAM_FLAG_CONST as u16,
                ptype: *ptype,
            };
        }
        let options = pg_sys::CURSOR_OPT_PARALLEL_OK as i32;
        let plan = pg_sys::SPI_prepare_cursor(cstring(sql).as_ptr(), count, types.as_mut_ptr(), options);
        if plan.is_null() {
            return Err(internal("a statement could not be prepared"));
        }
        let options = pg_sys::SPIExecuteOptions {
            params,
            read_only: true,
            dest: (&raw mut receiver).cast(),
            ..Default::default()
        };
        let code = pg_sys::SPI_execute_plan_extended(plan, &options);
        pg_sys::SPI_finish();
        code
    };
    if code == pg_sys::SPI_OK_SELECT as i32 { Ok(()) } else { Err(internal(format!("SPI code {code}"))) }
}

/// What the server sees of a receiver whose rows `receive` takes one by one, with nothing to do before and after them.
pub(super) fn public(
    receive: unsafe extern "C-unwind" fn(*mut pg_sys::TupleTableSlot, *mut pg_sys::DestReceiver) -> bool,
) -> pg_sys::DestReceiver {
    pg_sys::DestReceiver {
        receiveSlot: Some(receive),
        rStartup: Some(begin),
        rShutdown: Some(end),
        rDestroy: Some(end),
        mydest: pg_sys::CommandDest::DestTuplestore,
    }
}

#[pgrx::pg_guard]
// SAFETY: called by PostgreSQL; touches nothing.
unsafe extern "C-unwind" fn begin(
    _self_: *mut pg_sys::DestReceiver,
    _operation: i32,
    _columns: pg_sys::TupleDesc,
) {
}

#[pgrx::pg_guard]
// SAFETY: as `begin`.
unsafe extern "C-unwind" fn end(_self_: *mut pg_sys::DestReceiver) {}

#[pgrx::pg_guard]
// SAFETY: called by PostgreSQL with the receiver it was given, while the query runs.
unsafe extern "C-unwind" fn receive(
    slot: *mut pg_sys::TupleTableSlot,
    self_: *mut pg_sys::DestReceiver,
) -> bool {
    // SAFETY: the server gives back the receiver it was given, and a slot with the query's columns, which are texts; what a text
    // is copied from is freed at once.
    unsafe {
        let receiver = &mut *self_.cast::<Receiver<'_>>();
        if usize::try_from((*slot).tts_nvalid).unwrap_or(0) < COLUMNS {
            pg_sys::slot_getsomeattrs_int(slot, COLUMNS as i32);
        }
        let text = |column: usize| {
            if *(*slot).tts_isnull.add(column) {
                return None;
            }
            let datum = *(*slot).tts_values.add(column);
            let copy = pg_sys::text_to_cstring(datum.cast_mut_ptr::<pg_sys::text>());
            let own = CStr::from_ptr(copy).to_str().map(str::to_owned);
            pg_sys::pfree(copy.cast());
            // Another text than the one that is there would be another key.
            Some(own.unwrap_or_else(|_| pgrx::error!("a data source gave a text that is not UTF-8")))
        };
        (receiver.row)(std::array::from_fn(text))
    }
}
