//! The functions of libpq, found where the server has loaded it.

use crate::pg::local::Local;
use crate::pg::report::{PgResult, unsupported};
use pgrx::pg_sys;
use std::ffi::{c_char, c_int, c_uint, c_void};

/// A connection, as libpq has it.
#[repr(C)]
pub struct PgConn([u8; 0]);
/// A result, as libpq has it.
#[repr(C)]
pub struct PgAnswer([u8; 0]);

/// An option that libpq knows (`PQconninfoOption`).
#[repr(C)]
pub struct KnownOption {
    /// Its keyword; null ends the array.
    pub keyword: *const c_char,
    envvar: *const c_char,
    compiled: *const c_char,
    val: *const c_char,
    label: *const c_char,
    /// "D": for debugging only.
    pub dispchar: *const c_char,
    dispsize: c_int,
}

/// `CONNECTION_OK`.
pub const CONNECTION_OK: c_int = 0;
/// `CONNECTION_AWAITING_RESPONSE`: the server was reached.
pub const AWAITING_RESPONSE: c_int = 4;
/// `CONNECTION_AUTH_OK`.
pub const AUTH_OK: c_int = 5;
/// `PGRES_POLLING_FAILED`.
pub const POLLING_FAILED: c_int = 0;
/// `PGRES_POLLING_WRITING`.
pub const POLLING_WRITING: c_int = 2;
/// `PGRES_POLLING_OK`.
pub const POLLING_OK: c_int = 3;
/// `PGRES_COMMAND_OK`.
pub const COMMAND_OK: c_int = 1;
/// `PGRES_TUPLES_OK`.
pub const TUPLES_OK: c_int = 2;
/// `PGRES_SINGLE_TUPLE`: one row of several.
pub const SINGLE_TUPLE: c_int = 9;
/// `PGRES_PIPELINE_SYNC`.
pub const PIPELINE_SYNC: c_int = 10;
/// `PGRES_PIPELINE_ABORTED`.
pub const PIPELINE_ABORTED: c_int = 11;
/// `PQTRANS_IDLE`.
pub const IDLE: c_int = 0;
/// `PG_DIAG_SQLSTATE`.
pub const DIAG_SQLSTATE: c_int = b'C' as c_int;
/// `PG_DIAG_MESSAGE_PRIMARY`.
pub const DIAG_MESSAGE: c_int = b'M' as c_int;

type Texts = *const *const c_char;

macro_rules! functions {
    ($( $(#[$doc:meta])* $name:ident = $symbol:literal ($($type:ty),*) $(-> $result:ty)?; )*) => {
        /// Addresses of libpq's functions.
        #[derive(Clone, Copy)]
        pub struct Libpq { $( $(#[$doc])* pub $name: unsafe extern "C" fn($($type),*) $(-> $result)?, )* }

        impl Libpq {
            fn find() -> PgResult<Libpq> {
                Ok(Libpq { $( $name: {
                    // SAFETY: looks a symbol up among the loaded libraries.
                    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, concat!($symbol, "\0").as_ptr().cast()) };
                    if found.is_null() {
                        return Err(unsupported("libpq of this server is too old").set_detail(concat!("It has no function ", $symbol, ".")));
                    }
                    // SAFETY: the function has this signature in every libpq that has it.
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $result)?>(found) }
                }, )* })
            }
        }
    };
}

functions! {
    /// Begins to connect.
    connect_start = "PQconnectStartParams"(Texts, Texts, c_int) -> *mut PgConn;
    /// Goes on connecting.
    connect_poll = "PQconnectPoll"(*mut PgConn) -> c_int;
    /// Ends a connection.
    finish = "PQfinish"(*mut PgConn);
    /// The state of a connection.
    status = "PQstatus"(*const PgConn) -> c_int;
    /// Its socket.
    socket = "PQsocket"(*const PgConn) -> c_int;
    /// What went wrong with it last.
    error_message = "PQerrorMessage"(*const PgConn) -> *const c_char;
    /// Whether it was let in by a password.
    used_password = "PQconnectionUsedPassword"(*const PgConn) -> c_int;
    /// Whether it is in a transaction.
    transaction_status = "PQtransactionStatus"(*const PgConn) -> c_int;
    /// Never waits when sending.
    set_nonblocking = "PQsetnonblocking"(*mut PgConn, c_int) -> c_int;
    /// Several commands per round trip.
    enter_pipeline = "PQenterPipelineMode"(*mut PgConn) -> c_int;
    /// Ends a batch of commands.
    pipeline_sync = "PQpipelineSync"(*mut PgConn) -> c_int;
    /// Sends a statement with its parameters.
    send_query = "PQsendQueryParams"(*mut PgConn, *const c_char, c_int, *const c_uint, Texts, *const c_int, *const c_int, c_int) -> c_int;
    /// Sends a statement to be prepared.
    send_prepare = "PQsendPrepare"(*mut PgConn, *const c_char, *const c_char, c_int, *const c_uint) -> c_int;
    /// Asks about a prepared statement.
    send_describe = "PQsendDescribePrepared"(*mut PgConn, *const c_char) -> c_int;
    /// Has the rows of the command whose results come next given one by one.
    single_rows = "PQsetSingleRowMode"(*mut PgConn) -> c_int;
    /// Sends what is waiting to be sent; 1: not all of it could be.
    flush = "PQflush"(*mut PgConn) -> c_int;
    /// Reads what has come.
    consume = "PQconsumeInput"(*mut PgConn) -> c_int;
    /// Whether asking for a result would wait.
    is_busy = "PQisBusy"(*mut PgConn) -> c_int;
    /// The next result.
    get_result = "PQgetResult"(*mut PgConn) -> *mut PgAnswer;
    /// Of which kind it is.
    result_status = "PQresultStatus"(*const PgAnswer) -> c_int;
    /// Part of its error.
    result_error = "PQresultErrorField"(*const PgAnswer, c_int) -> *const c_char;
    /// Frees it.
    clear = "PQclear"(*mut PgAnswer);
    /// Columns.
    nfields = "PQnfields"(*const PgAnswer) -> c_int;
    /// A column's name.
    fname = "PQfname"(*const PgAnswer, c_int) -> *const c_char;
    /// A column's type.
    ftype = "PQftype"(*const PgAnswer, c_int) -> c_uint;
    /// A value.
    getvalue = "PQgetvalue"(*const PgAnswer, c_int, c_int) -> *const c_char;
    /// Whether it is NULL.
    getisnull = "PQgetisnull"(*const PgAnswer, c_int, c_int) -> c_int;
    /// Parameters of a described statement.
    nparams = "PQnparams"(*const PgAnswer) -> c_int;
    /// The type of one.
    paramtype = "PQparamtype"(*const PgAnswer, c_int) -> c_uint;
    /// All options that there are.
    known_options = "PQconndefaults"() -> *mut KnownOption;
    /// Frees them.
    free_options = "PQconninfoFree"(*mut KnownOption);
}

static LIBPQ: Local<Option<Libpq>> = Local::new(None);

/// libpq, loaded if need be.
///
/// # Errors
/// 58P01 when the server has no libpqwalreceiver, 0A000 when its libpq is older than 14.
pub fn libpq() -> PgResult<Libpq> {
    if let Some(known) = LIBPQ.get() {
        return Ok(known);
    }
    // SAFETY: loading is idempotent; the library is the server's own, from its own directory.
    unsafe { pg_sys::load_file(c"libpqwalreceiver".as_ptr(), false) };
    let found = Libpq::find()?;
    LIBPQ.set(Some(found));
    Ok(found)
}
