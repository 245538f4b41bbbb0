//! Connections, and those kept for the next question.

use super::libpq::{
    AUTH_OK, AWAITING_RESPONSE, CONNECTION_OK, IDLE, Libpq, POLLING_FAILED, POLLING_OK, POLLING_WRITING,
    PgConn,
};
use super::reply::text;
use super::target::Target;
use super::{Failure, NO_CONNECTION, NOT_LET_IN};
use crate::pg::local::LocalBox;
use pgrx::pg_sys;
use std::ffi::{CString, c_char, c_int};

/// Connections that are kept.
const MAX_KEPT: usize = 32;

/// A connection; ended when it goes.
pub(super) struct Connection {
    pub(super) raw: *mut PgConn,
    pub(super) libpq: Libpq,
    server: pg_sys::Oid,
    user: pg_sys::Oid,
    /// What it was made with: after ALTER SERVER or ALTER USER MAPPING it is not used again.
    options: Vec<(CString, CString)>,
    password_required: bool,
    /// It has answered a question before.
    pub(super) used: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: ours alone; the descriptor was announced in `begin`.
        unsafe {
            (self.libpq.finish)(self.raw);
            pg_sys::ReleaseExternalFD();
        }
    }
}

static KEPT: LocalBox<Vec<Connection>> = LocalBox::new();

/// How far connecting is.
pub(super) enum Progress {
    /// It waits for the socket to be readable, or writable.
    Waits { writable: bool },
    /// Ready for questions.
    Ready,
}

impl Connection {
    /// One that is kept for this target.
    pub(super) fn kept(target: &Target) -> Option<Connection> {
        let find = |kept: &mut Vec<Connection>| {
            // Those of the target whose options have changed since are of no use any more.
            let fits = |c: &Connection| c.server == target.server && c.user == target.user;
            kept.retain(|c| !fits(c) || (c.options == target.options && c.is_idle()));
            kept.iter().position(fits).map(|at| kept.swap_remove(at))
        };
        KEPT.with(Vec::new, find).flatten()
    }

    /// Begins a new one.
    pub(super) fn begin(target: &Target) -> Result<Connection, Failure> {
        // SAFETY: tells the server of a descriptor that it does not know of.
        if !unsafe { pg_sys::AcquireExternalFD() } {
            return Err(Failure::of("53000", "there are too many open files on the local server"));
        }
        let mut keys: Vec<*const c_char> = target.options.iter().map(|(key, _)| key.as_ptr()).collect();
        let mut values: Vec<*const c_char> = target.options.iter().map(|(_, value)| value.as_ptr()).collect();
        keys.push(std::ptr::null());
        values.push(std::ptr::null());
        // SAFETY: both arrays end with null; libpq copies what it needs.
        let raw = unsafe { (target.libpq.connect_start)(keys.as_ptr(), values.as_ptr(), 0) };
        if raw.is_null() {
            // SAFETY: as announced above.
            unsafe { pg_sys::ReleaseExternalFD() };
            return Err(Failure::of("53200", "out of memory"));
        }
        let connection = Connection {
            raw,
            libpq: target.libpq,
            server: target.server,
            user: target.user,
            options: target.options.clone(),
            password_required: target.password_required,
            used: false,
        };
        match connection.status() {
            1 => Err(connection.failure(NO_CONNECTION)),
            _ => Ok(connection),
        }
    }

    /// Goes on connecting.
    pub(super) fn advance(&self) -> Result<Progress, Failure> {
        let before = self.status();
        // SAFETY: a connection that is being made.
        match unsafe { (self.libpq.connect_poll)(self.raw) } {
            POLLING_OK => self.ready(),
            POLLING_FAILED => {
                // Whoever reached the server and was refused has the wrong password, or the server is starting.
                let reached = before == AWAITING_RESPONSE || before == AUTH_OK;
                Err(self.failure(if reached { NOT_LET_IN } else { NO_CONNECTION }))
            }
            next => Ok(Progress::Waits { writable: next == POLLING_WRITING }),
        }
    }

    fn ready(&self) -> Result<Progress, Failure> {
        // SAFETY: a connection that was made.
        let (by_password, blocking) = unsafe {
            let by_password = (self.libpq.used_password)(self.raw) != 0;
            (by_password, (self.libpq.set_nonblocking)(self.raw, 1) != 0)
        };
        if self.password_required && !by_password {
            return Err(Failure::of("2F003", "password is required: the server did not ask for it"));
        }
        // SAFETY: idle and not in pipeline mode yet.
        if blocking || unsafe { (self.libpq.enter_pipeline)(self.raw) } == 0 {
            return Err(self.failure(NO_CONNECTION));
        }
        Ok(Progress::Ready)
    }

    /// Keeps it for the next question.
    pub(super) fn keep(mut self) {
        self.used = true;
        let put = |kept: &mut Vec<Connection>| {
            if kept.len() >= MAX_KEPT {
                kept.remove(0);
            }
            kept.push(self);
        };
        KEPT.with(Vec::new, put);
    }

    fn is_idle(&self) -> bool {
        // SAFETY: a valid connection.
        unsafe { self.status() == CONNECTION_OK && (self.libpq.transaction_status)(self.raw) == IDLE }
    }

    fn status(&self) -> c_int {
        // SAFETY: a valid connection.
        unsafe { (self.libpq.status)(self.raw) }
    }

    /// Its socket, -1 when it has none.
    pub(super) fn socket(&self) -> c_int {
        // SAFETY: a valid connection.
        unsafe { (self.libpq.socket)(self.raw) }
    }

    /// What libpq says went wrong.
    pub(super) fn failure(&self, sqlstate: &str) -> Failure {
        // SAFETY: a valid connection; the text belongs to it.
        let message = unsafe { text((self.libpq.error_message)(self.raw)) };
        let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Failure::of(sqlstate, lines.join(" "))
    }
}
