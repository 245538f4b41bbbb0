//! A question under way: connecting, sending, waiting, all without standing still.

use super::connection::{Connection, Progress};
use super::libpq::{
    COMMAND_OK, CONNECTION_OK, DIAG_MESSAGE, DIAG_SQLSTATE, PIPELINE_ABORTED, PIPELINE_SYNC, SINGLE_TUPLE,
    TUPLES_OK,
};
use super::reply::Reply;
use super::target::Target;
use super::{Failure, NO_CONNECTION};
use crate::pg::host;
use crate::pg::receive::{TextRow, text_bytes};
use crate::pg::report::cstring;
use pgrx::pg_sys;
use std::ffi::{CString, c_char, c_int, c_uint};
use std::time::{Duration, Instant};

/// Longest wait between two looks at interrupts: a signal that comes right before a wait does not end it.
const SLICE: Duration = Duration::from_millis(50);
/// The same while a host's name is being looked up.
const LOOK_UP_SLICE: Duration = Duration::from_millis(2);

/// Something to ask.
#[derive(Clone, Debug)]
pub enum Command {
    /// A statement with its parameters: type (0: the server finds out) and text.
    Query(String, Vec<(u32, String)>),
    /// The same, of which every row is taken as it comes; its reply has none.
    Rows(String, Vec<(u32, String)>),
    /// Prepares a statement, nameless.
    Prepare(String),
    /// What was prepared.
    Describe,
}

/// What a look at an inquiry gives.
pub enum Asked {
    /// Nothing yet.
    Waits,
    /// One reply per command.
    Answered(Vec<Reply>),
    /// It failed.
    Failed(Failure),
}

enum State {
    /// The host's name is being looked up.
    LookingUp,
    Connecting {
        writable: bool,
    },
    /// The commands are sent, as far as the socket takes them.
    Sent {
        unsent: bool,
    },
    Over,
}

/// A batch of commands under way. Its last one must leave the connection outside of a transaction. Dropped before its
/// end it takes the connection along.
pub struct Inquiry {
    target: Target,
    connection: Option<Connection>,
    state: State,
    commands: Vec<Command>,
    replies: Vec<Reply>,
    /// What came of [`Command::Rows`], and its bytes.
    rows: Vec<TextRow>,
    bytes: usize,
    /// Commands whose results have all been taken.
    ended: usize,
    error: Option<Failure>,
    deadline: Instant,
    looked_at: Instant,
    /// Time in which nobody looked what the server sent.
    unheard: Duration,
}

impl Inquiry {
    /// Begins.
    ///
    /// # Errors
    /// When no connection can be begun.
    pub fn begin(target: Target, commands: Vec<Command>, limit: Duration) -> Result<Inquiry, Failure> {
        let connection = Connection::kept(&target);
        let looked_at = Instant::now();
        let mut inquiry = Inquiry {
            target,
            connection,
            state: State::LookingUp,
            commands,
            replies: Vec::new(),
            rows: Vec::new(),
            bytes: 0,
            ended: 0,
            error: None,
            deadline: looked_at + limit,
            looked_at,
            unheard: Duration::ZERO,
        };
        if inquiry.connection.is_some() {
            // A connection that died meanwhile is made anew by `advance`.
            inquiry.state = State::Connecting { writable: true };
            let _ = inquiry.send();
        } else {
            inquiry.look_up()?;
        }
        Ok(inquiry)
    }

    /// Begins to make a connection: has the host's name looked up, which libpq would wait for.
    fn look_up(&mut self) -> Result<(), Failure> {
        self.state = State::LookingUp;
        if let Some(name) = &self.target.host {
            host::ask(name);
        }
        self.connect()
    }

    /// Begins to connect, once the host's name is known.
    fn connect(&mut self) -> Result<(), Failure> {
        if self.target.host.as_ref().is_none_or(|name| host::has_ended(name, Duration::ZERO)) {
            self.connection = Some(Connection::begin(&self.target)?);
            self.state = State::Connecting { writable: true };
        }
        Ok(())
    }

    /// Goes on as far as it can without waiting. The server's time is that in which somebody listens: whoever comes back late
    /// finds what has come, and goes on waiting for the rest.
    pub fn advance(&mut self) -> Asked {
        let away = self.looked_at.elapsed().saturating_sub(SLICE);
        self.deadline += away;
        self.unheard += away;
        let asked = self.go_on();
        self.looked_at = Instant::now();
        asked
    }

    /// Whether the server has everything that it is asked.
    pub fn is_sent(&self) -> bool {
        matches!(self.state, State::Sent { unsent: false } | State::Over)
    }

    /// Bytes of the rows that have come.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows that have come, once it has answered.
    pub fn take_rows(&mut self) -> Vec<TextRow> {
        self.bytes = 0;
        std::mem::take(&mut self.rows)
    }

    fn go_on(&mut self) -> Asked {
        loop {
            match self.step() {
                Ok(Some(replies)) => return Asked::Answered(replies),
                Ok(None) if Instant::now() >= self.deadline => {
                    self.state = State::Over;
                    let made = self.connection.as_ref().is_some_and(Connection::is_made);
                    let what = if made { "the answer of" } else { "connecting to" };
                    let name = &self.target.name;
                    return Asked::Failed(Failure::timeout(&format!("{what} server \"{name}\"")));
                }
                Ok(None) => return Asked::Waits,
                Err(failure) => {
                    // The server may have been restarted since the connection was last used.
                    let lost = failure.sqlstate.starts_with("08") || failure.sqlstate.starts_with("57P");
                    let stale = self.connection.take().is_some_and(|c| c.used) && self.replies.is_empty();
                    if !lost || !stale {
                        return self.failed(failure);
                    }
                    self.error = None;
                    if let Err(failure) = self.look_up() {
                        return self.failed(failure);
                    }
                }
            }
        }
    }

    fn failed(&mut self, failure: Failure) -> Asked {
        self.state = State::Over;
        Asked::Failed(failure)
    }

    fn step(&mut self) -> Result<Option<Vec<Reply>>, Failure> {
        if matches!(self.state, State::LookingUp) {
            return self.connect().map(|()| None);
        }
        let Some(connection) = &self.connection else {
            return Err(Failure::of(NO_CONNECTION, "there is no connection"));
        };
        match self.state {
            State::LookingUp => Ok(None),
            State::Connecting { .. } => {
                // Polled again only when the socket says so: libpq asks for it.
                if !is_ready(connection.socket(), self.writable()) {
                    return Ok(None);
                }
                match connection.advance()? {
                    Progress::Waits { writable } => self.state = State::Connecting { writable },
                    Progress::Ready => self.send()?,
                }
                Ok(None)
            }
            State::Sent { .. } => self.receive(),
            State::Over => Err(Failure::of(NO_CONNECTION, "the question is over")),
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        let Some(connection) = &self.connection else { return Ok(()) };
        self.state = State::Sent { unsent: true };
        self.ended = 0;
        for command in &self.commands {
            send(connection, command)?;
        }
        // SAFETY: in pipeline mode.
        if unsafe { (connection.libpq.pipeline_sync)(connection.raw) } == 0 {
            return Err(connection.failure(NO_CONNECTION));
        }
        self.want_rows(connection);
        Ok(())
    }

    /// Before the first result of a command: its rows come one by one, if they shall. After an error there are none.
    fn want_rows(&self, connection: &Connection) {
        if matches!(self.commands.get(self.ended), Some(Command::Rows(..))) {
            // SAFETY: a connection with commands under way; it says no where that is not possible.
            unsafe { (connection.libpq.single_rows)(connection.raw) };
        }
    }

    fn receive(&mut self) -> Result<Option<Vec<Reply>>, Failure> {
        let Some(connection) = &self.connection else { return Ok(None) };
        let (raw, libpq) = (connection.raw, connection.libpq);
        // SAFETY: a connection with commands under way; every result is taken over.
        unsafe {
            // First the input: a server that does not read until somebody takes its answers would never go on.
            let consumed = (libpq.consume)(raw) != 0;
            let unsent = (libpq.flush)(raw);
            // A null ends the results of every command.
            while (libpq.is_busy)(raw) == 0 {
                let result = (libpq.get_result)(raw);
                if result.is_null() {
                    self.ended += 1;
                    if !consumed || !connection.is_made() || self.ended > self.commands.len() {
                        break;
                    }
                    self.want_rows(connection);
                    continue;
                }
                let reply = Reply::new(result, libpq);
                match reply.status() {
                    PIPELINE_SYNC => return self.finish(),
                    COMMAND_OK | TUPLES_OK => self.replies.push(reply),
                    SINGLE_TUPLE => {
                        let row: TextRow = std::array::from_fn(|column| reply.value(0, column));
                        self.bytes += text_bytes(&row);
                        self.rows.push(row);
                    }
                    PIPELINE_ABORTED => {}
                    _ if self.error.is_none() => {
                        let sqlstate = reply.error(DIAG_SQLSTATE);
                        let sqlstate = if sqlstate.len() == 5 { sqlstate } else { NO_CONNECTION.to_owned() };
                        let message = reply.error(DIAG_MESSAGE);
                        self.error = Some(match message.is_empty() {
                            true => connection.failure(&sqlstate),
                            false => Failure::of(&sqlstate, message),
                        });
                    }
                    _ => {}
                }
            }
            self.state = State::Sent { unsent: unsent == 1 };
            if !consumed || unsent < 0 || !connection.is_made() {
                return Err(self.error.take().unwrap_or_else(|| connection.failure(NO_CONNECTION)));
            }
        }
        Ok(None)
    }

    fn finish(&mut self) -> Result<Option<Vec<Reply>>, Failure> {
        self.state = State::Over;
        // A server whose rows nobody reads cannot go on, until its own time is over.
        let unheard = self.unheard > SLICE && !self.rows.is_empty();
        match (self.error.take(), self.connection.take()) {
            // The transaction is still open over there: the connection goes with it.
            (Some(failure), _) if failure.sqlstate == "57014" => {
                Err(Failure { timed_out: true, unheard, ..failure })
            }
            (Some(failure), _) => Err(failure),
            (None, connection) => {
                if let Some(connection) = connection {
                    connection.keep();
                }
                Ok(Some(std::mem::take(&mut self.replies)))
            }
        }
    }

    fn writable(&self) -> bool {
        match self.state {
            State::Connecting { writable } => writable,
            State::Sent { unsent } => unsent,
            State::LookingUp | State::Over => false,
        }
    }
}

impl Connection {
    fn is_made(&self) -> bool {
        // SAFETY: a valid connection.
        unsafe { (self.libpq.status)(self.raw) == CONNECTION_OK }
    }
}

fn send(connection: &Connection, command: &Command) -> Result<(), Failure> {
    let (raw, libpq) = (connection.raw, &connection.libpq);
    let nothing = std::ptr::null;
    // SAFETY: in pipeline mode; texts and arrays live until libpq has copied them, lengths are those of the arrays.
    let sent = unsafe {
        match command {
            Command::Query(sql, parameters) | Command::Rows(sql, parameters) => {
                let types: Vec<c_uint> = parameters.iter().map(|(type_, _)| *type_).collect();
                let texts: Vec<CString> = parameters.iter().map(|(_, text)| cstring(text)).collect();
                let values: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
                let count = c_int::try_from(types.len()).unwrap_or(0);
                let sql = cstring(sql);
                (libpq.send_query)(
                    raw,
                    sql.as_ptr(),
                    count,
                    types.as_ptr(),
                    values.as_ptr(),
                    std::ptr::null(),
                    std::ptr::null(),
                    0,
                )
            }
            Command::Prepare(sql) => {
                (libpq.send_prepare)(raw, c"".as_ptr(), cstring(sql).as_ptr(), 0, nothing())
            }
            Command::Describe => (libpq.send_describe)(raw, c"".as_ptr()),
        }
    };
    if sent == 0 { Err(connection.failure(NO_CONNECTION)) } else { Ok(()) }
}

/// Whether a socket is readable (or writable) right now; one that is none is, so that libpq may say why.
fn is_ready(socket: c_int, writable: bool) -> bool {
    if socket < 0 {
        return true;
    }
    let events = if writable { libc::POLLOUT } else { libc::POLLIN };
    let mut one = libc::pollfd { fd: socket, events, revents: 0 };
    // SAFETY: one entry, no waiting.
    unsafe { libc::poll(&mut one, 1, 0) != 0 }
}

/// Waits until one of the inquiries can go on, the time of one is over, or an interrupt has to be looked at.
pub fn wait<'a>(inquiries: impl Iterator<Item = &'a Inquiry>) {
    let mut until = Instant::now() + SLICE;
    let mut sockets: Vec<libc::pollfd> = Vec::new();
    for inquiry in inquiries {
        until = until.min(inquiry.deadline);
        if matches!(inquiry.state, State::LookingUp) {
            until = until.min(Instant::now() + LOOK_UP_SLICE);
        }
        if let Some(fd) = inquiry.connection.as_ref().map(Connection::socket).filter(|fd| *fd >= 0) {
            let connecting = matches!(inquiry.state, State::Connecting { .. });
            let events = match (inquiry.writable(), connecting) {
                (true, true) => libc::POLLOUT,
                (true, false) => libc::POLLIN | libc::POLLOUT,
                (false, _) => libc::POLLIN,
            };
            sockets.push(libc::pollfd { fd, events, revents: 0 });
        }
    }
    let left_ms = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
    // SAFETY: the array has this length; the wait is shown in pg_stat_activity while it lasts.
    unsafe {
        *pg_sys::my_wait_event_info = pg_sys::PG_WAIT_EXTENSION;
        libc::poll(
            sockets.as_mut_ptr(),
            sockets.len() as libc::nfds_t,
            c_int::try_from(left_ms).unwrap_or(50),
        );
        *pg_sys::my_wait_event_info = 0;
    }
    pgrx::check_for_interrupts!();
}
