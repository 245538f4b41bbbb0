//! A PostgreSQL client over libpq: blocking calls, one asynchronous query, COPY in, notices.

use super::sys::wait_readable;
use crate::error::SqlError;
use pq_sys as pq;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A connection. It may be handed to another thread, but is used by one at a time.
pub struct Client {
    conn: *mut pq::PGconn,
    notices: Box<Mutex<Vec<String>>>,
}

// SAFETY: libpq allows a connection to be used by any thread, one at a time; `&mut self`
// on every call that touches it ensures the latter.
unsafe impl Send for Client {}

/// The rows of a statement, or only its tag.
pub struct Rows {
    result: *mut pq::PGresult,
}

// SAFETY: a PGresult is plain memory that nothing but this struct refers to.
unsafe impl Send for Rows {}
// SAFETY: reading a PGresult does not change it.
unsafe impl Sync for Rows {}

fn c_string(text: &str) -> Result<CString, SqlError> {
    CString::new(text).map_err(|_| SqlError::connection("a zero byte in a text for the server"))
}

/// # Safety
/// `text` is null or a valid C string that outlives the call.
unsafe fn owned(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller vouches for the rest.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// # Safety
/// `result` is a valid PGresult.
unsafe fn error_field(result: *const pq::PGresult, field: u8) -> Option<String> {
    // SAFETY: the caller vouches for `result`; the text lives as long as it.
    unsafe { owned(pq::PQresultErrorField(result, c_int::from(field))) }
}

extern "C" fn collect_notice(arg: *mut c_void, result: *const pq::PGresult) {
    // SAFETY: `arg` is the boxed list of the client whose connection is calling us.
    let notices = unsafe { &*(arg as *const Mutex<Vec<String>>) };
    // SAFETY: libpq hands a valid result to its notice receiver.
    let (severity, message, hint) = unsafe {
        (
            error_field(result, pq::PG_DIAG_SEVERITY_NONLOCALIZED),
            error_field(result, pq::PG_DIAG_MESSAGE_PRIMARY),
            error_field(result, pq::PG_DIAG_MESSAGE_HINT),
        )
    };
    let mut text = format!("{}: {}", severity.unwrap_or_default(), message.unwrap_or_default());
    if let Some(hint) = hint {
        text.push_str("\nHINT: ");
        text.push_str(&hint);
    }
    if let Ok(mut notices) = notices.lock() {
        notices.push(text);
    }
}

impl Client {
    /// Connects by a libpq connection string.
    pub fn connect(conninfo: &str) -> Result<Client, SqlError> {
        let conninfo = c_string(conninfo)?;
        // SAFETY: a valid C string; libpq returns null only when out of memory.
        let conn = unsafe { pq::PQconnectdb(conninfo.as_ptr()) };
        let client = Client { conn, notices: Box::default() };
        // SAFETY: `conn` may be null, which PQstatus reports as bad.
        if unsafe { pq::PQstatus(conn) } != pq::ConnStatusType::CONNECTION_OK {
            return Err(client.connection_error());
        }
        let list: *const Mutex<Vec<String>> = &*client.notices;
        // SAFETY: the list is boxed, so it stays in place until the connection is closed.
        unsafe { pq::PQsetNoticeReceiver(conn, Some(collect_notice), list as *mut c_void) };
        Ok(client)
    }

    fn connection_error(&self) -> SqlError {
        // SAFETY: PQerrorMessage accepts any connection, null included.
        let text = unsafe { owned(pq::PQerrorMessage(self.conn)) };
        SqlError::connection(&text.unwrap_or_default())
    }

    fn check(&self, result: *mut pq::PGresult) -> Result<Rows, SqlError> {
        if result.is_null() {
            return Err(self.connection_error());
        }
        let rows = Rows { result };
        // SAFETY: `result` is valid while `rows` lives.
        match unsafe { pq::PQresultStatus(result) } {
            pq::ExecStatusType::PGRES_FATAL_ERROR | pq::ExecStatusType::PGRES_BAD_RESPONSE => {
                Err(self.statement_error(result))
            }
            _ => Ok(rows),
        }
    }

    fn statement_error(&self, result: *const pq::PGresult) -> SqlError {
        // SAFETY: the caller holds the result.
        let field = |code| unsafe { error_field(result, code) };
        let Some(sqlstate) = field(pq::PG_DIAG_SQLSTATE) else {
            return self.connection_error();
        };
        SqlError {
            sqlstate,
            message: field(pq::PG_DIAG_MESSAGE_PRIMARY).unwrap_or_default(),
            severity: field(pq::PG_DIAG_SEVERITY_NONLOCALIZED).unwrap_or_default().into(),
            detail: field(pq::PG_DIAG_MESSAGE_DETAIL).map(Into::into),
            hint: field(pq::PG_DIAG_MESSAGE_HINT).map(Into::into),
            context: field(pq::PG_DIAG_CONTEXT).map(Into::into),
        }
    }

    /// Runs one or more statements by the simple protocol; the last one's rows.
    pub fn exec(&mut self, sql: &str) -> Result<Rows, SqlError> {
        let sql = c_string(sql)?;
        // SAFETY: the connection is ours and the text is valid.
        let result = unsafe { pq::PQexec(self.conn, sql.as_ptr()) };
        self.check(result)
    }

    /// The first column of the first row, `""` for NULL or no row.
    pub fn query_one(&mut self, sql: &str) -> Result<String, SqlError> {
        let rows = self.exec(sql)?;
        Ok(rows.get(0, 0).unwrap_or_default().to_string())
    }

    /// Runs one statement with text parameters.
    pub fn exec_params(&mut self, sql: &str, params: &[Option<&str>]) -> Result<Rows, SqlError> {
        let sql = c_string(sql)?;
        let params = Params::new(params)?;
        // SAFETY: as many pointers as announced, all valid during the call.
        let result = unsafe {
            pq::PQexecParams(
                self.conn,
                sql.as_ptr(),
                params.len(),
                ptr::null(),
                params.as_ptr(),
                ptr::null(),
                ptr::null(),
                0,
            )
        };
        self.check(result)
    }

    /// Prepares a statement; parameter types are inferred.
    pub fn prepare(&mut self, name: &str, sql: &str) -> Result<(), SqlError> {
        let (name, sql) = (c_string(name)?, c_string(sql)?);
        // SAFETY: valid texts, no parameter types.
        let result = unsafe { pq::PQprepare(self.conn, name.as_ptr(), sql.as_ptr(), 0, ptr::null()) };
        self.check(result).map(drop)
    }

    /// Runs a prepared statement with text parameters.
    pub fn exec_prepared(&mut self, name: &str, params: &[Option<&str>]) -> Result<Rows, SqlError> {
        let name = c_string(name)?;
        let params = Params::new(params)?;
        // SAFETY: as many pointers as announced, all valid during the call.
        let result = unsafe {
            pq::PQexecPrepared(
                self.conn,
                name.as_ptr(),
                params.len(),
                params.as_ptr(),
                ptr::null(),
                ptr::null(),
                0,
            )
        };
        self.check(result)
    }

    /// Starts a statement and returns at once; `poll_result` fetches its end.
    pub fn send_query(&mut self, sql: &str) -> Result<(), SqlError> {
        let sql = c_string(sql)?;
        // SAFETY: the connection is ours and the text is valid.
        match unsafe { pq::PQsendQuery(self.conn, sql.as_ptr()) } {
            1 => Ok(()),
            _ => Err(self.connection_error()),
        }
    }

    /// Waits for the end of what `send_query` started: `None` when it still runs at the
    /// timeout, otherwise the last statement's rows or the first error.
    pub fn poll_result(&mut self, timeout: Duration) -> Result<Option<Rows>, SqlError> {
        let deadline = Instant::now() + timeout;
        let mut last: Option<Result<Rows, SqlError>> = None;
        loop {
            // SAFETY: plain calls on our own connection.
            if unsafe { pq::PQconsumeInput(self.conn) } == 0 {
                return Err(self.connection_error());
            }
            // SAFETY: as above.
            if unsafe { pq::PQisBusy(self.conn) } == 1 {
                if !self.wait_readable(deadline) {
                    return Ok(None);
                }
                continue;
            }
            // SAFETY: not busy, so this does not block.
            let result = unsafe { pq::PQgetResult(self.conn) };
            if result.is_null() {
                return match last {
                    Some(result) => result.map(Some),
                    None => Err(SqlError::connection("no query was sent")),
                };
            }
            let next = self.check(result);
            if !matches!(last, Some(Err(_))) {
                last = Some(next);
            }
        }
    }

    /// Waits until the socket has something to read, false at the deadline.
    fn wait_readable(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        // SAFETY: the connection is ours.
        wait_readable(unsafe { pq::PQsocket(self.conn) }, left);
        true
    }

    /// Asks the server to cancel what this connection runs.
    pub fn cancel(&mut self) {
        let mut buffer = [0 as c_char; 256];
        // SAFETY: the buffer's true size is given; a null cancel object is accepted.
        unsafe {
            let cancel = pq::PQgetCancel(self.conn);
            pq::PQcancel(cancel, buffer.as_mut_ptr(), 256);
            pq::PQfreeCancel(cancel);
        }
    }

    /// Runs `COPY … FROM STDIN`. `fill` appends text lines to the buffer until it returns
    /// false. Returns the number of rows copied.
    pub fn copy_in(
        &mut self,
        sql: &str,
        mut fill: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> Result<u64, SqlError> {
        drop(self.exec(sql)?);
        let mut buffer = Vec::with_capacity(1 << 17);
        let mut more = true;
        while more {
            buffer.clear();
            while more && buffer.len() < 1 << 16 {
                more = fill(&mut buffer);
            }
            let len = c_int::try_from(buffer.len()).unwrap_or(c_int::MAX);
            // SAFETY: the buffer holds `len` bytes.
            if unsafe { pq::PQputCopyData(self.conn, buffer.as_ptr().cast(), len) } != 1 {
                return Err(self.connection_error());
            }
        }
        // SAFETY: the connection is in COPY state, no error message.
        unsafe { pq::PQputCopyEnd(self.conn, ptr::null()) };
        // SAFETY: the COPY's result, then the end of results.
        let result = self.check(unsafe { pq::PQgetResult(self.conn) });
        loop {
            // SAFETY: as above.
            let rest = unsafe { pq::PQgetResult(self.conn) };
            if rest.is_null() {
                break;
            }
            drop(Rows { result: rest });
        }
        Ok(result?.affected())
    }

    /// The next line of a `COPY … TO STDOUT` that `exec` began, without its line end; `None` at its end.
    pub fn copy_out_line(&mut self) -> Result<Option<String>, SqlError> {
        let mut line: *mut c_char = ptr::null_mut();
        // SAFETY: the connection is ours; 0 means that libpq waits for a whole line.
        match unsafe { pq::PQgetCopyData(self.conn, &mut line, 0) } {
            -1 => {
                // SAFETY: the COPY's result, then the end of results.
                let result = self.check(unsafe { pq::PQgetResult(self.conn) });
                // SAFETY: as above; nothing is left after an error either.
                let rest = unsafe { pq::PQgetResult(self.conn) };
                if !rest.is_null() {
                    drop(Rows { result: rest });
                }
                result.map(|_| None)
            }
            -2 => Err(self.connection_error()),
            _ => {
                // SAFETY: a buffer that libpq ends with a zero byte.
                let text = unsafe { owned(line) };
                // SAFETY: allocated by libpq, freed once.
                unsafe { pq::PQfreemem(line.cast()) };
                Ok(Some(text.unwrap_or_default().trim_end_matches('\n').to_string()))
            }
        }
    }

    /// The notifications that have arrived since the last call, as (process id, payload). They come with the
    /// answers of statements, so an empty statement brings what was sent before it.
    pub fn take_notifications(&mut self) -> Result<Vec<(i32, String)>, SqlError> {
        drop(self.exec("")?);
        let mut all = Vec::new();
        loop {
            // SAFETY: the connection is ours; null when there is no more.
            let notify = unsafe { pq::PQnotifies(self.conn) };
            if notify.is_null() {
                return Ok(all);
            }
            // SAFETY: a notification with two C strings, freed once.
            unsafe {
                all.push(((*notify).be_pid, owned((*notify).extra).unwrap_or_default()));
                pq::PQfreemem(notify.cast());
            }
        }
    }

    /// The process id of this connection's backend.
    pub fn backend_pid(&self) -> i32 {
        // SAFETY: the connection is ours.
        unsafe { pq::PQbackendPID(self.conn) }
    }

    /// The notices and warnings received since the last call, as `SEVERITY: message`.
    pub fn take_notices(&mut self) -> Vec<String> {
        match self.notices.lock() {
            Ok(mut notices) => std::mem::take(&mut *notices),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: closed once; PQfinish accepts null.
        unsafe { pq::PQfinish(self.conn) };
    }
}

/// Text parameters in the form libpq wants them.
struct Params {
    _texts: Vec<Option<CString>>,
    pointers: Vec<*const c_char>,
}

impl Params {
    fn new(values: &[Option<&str>]) -> Result<Params, SqlError> {
        let texts =
            values.iter().map(|value| value.map(c_string).transpose()).collect::<Result<Vec<_>, _>>()?;
        let pointers =
            texts.iter().map(|text| text.as_ref().map_or(ptr::null(), |text| text.as_ptr())).collect();
        Ok(Params { _texts: texts, pointers })
    }

    fn len(&self) -> c_int {
        c_int::try_from(self.pointers.len()).unwrap_or(c_int::MAX)
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

impl Rows {
    /// The number of rows.
    pub fn len(&self) -> usize {
        // SAFETY: the result is ours.
        unsafe { pq::PQntuples(self.result) }.unsigned_abs() as usize
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of columns.
    pub fn width(&self) -> usize {
        // SAFETY: the result is ours.
        unsafe { pq::PQnfields(self.result) }.unsigned_abs() as usize
    }

    /// A value, `None` for NULL and for what does not exist.
    pub fn get(&self, row: usize, column: usize) -> Option<&str> {
        if row >= self.len() || column >= self.width() {
            return None;
        }
        let (row, column) = (c_int::try_from(row).ok()?, c_int::try_from(column).ok()?);
        // SAFETY: both indexes are in range; the text lives as long as the result.
        unsafe {
            if pq::PQgetisnull(self.result, row, column) == 1 {
                return None;
            }
            CStr::from_ptr(pq::PQgetvalue(self.result, row, column)).to_str().ok()
        }
    }

    /// The index of a column by its name.
    pub fn column(&self, name: &str) -> Option<usize> {
        let quoted = CString::new(format!("\"{name}\"")).ok()?;
        // SAFETY: a valid name; quoted, so that its case is kept.
        usize::try_from(unsafe { pq::PQfnumber(self.result, quoted.as_ptr()) }).ok()
    }

    /// A value by row and column name, `None` for NULL and for what does not exist.
    pub fn field(&self, row: usize, name: &str) -> Option<&str> {
        self.get(row, self.column(name)?)
    }

    /// A value by name, parsed; `None` for NULL and for what does not parse.
    pub fn parse<T: std::str::FromStr>(&self, row: usize, name: &str) -> Option<T> {
        self.field(row, name)?.parse().ok()
    }

    /// The number of rows the statement changed or returned, 0 when it says nothing.
    pub fn affected(&self) -> u64 {
        // SAFETY: the result is ours; the text lives as long as it.
        let text = unsafe { owned(pq::PQcmdTuples(self.result)) };
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// All rows, one line each, values separated by `|`, NULL as nothing (as `psql -At`).
    pub fn to_text(&self) -> String {
        let line = |row| {
            let values: Vec<&str> =
                (0..self.width()).map(|column| self.get(row, column).unwrap_or_default()).collect();
            values.join("|")
        };
        (0..self.len()).map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // SAFETY: cleared once.
        unsafe { pq::PQclear(self.result) };
    }
}
