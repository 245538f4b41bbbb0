//! Statements for another server, by contrib dblink over a foreign server and the user mapping of the role that
//! acts: postgres_fdw has no way to make anything there.
//!
//! dblink's connections have names that all code in the process can use, also code of a table's owner that runs here as the
//! owner. So none is open meanwhile whose role is not the owner's own: a link is opened for one piece of work and closed
//! behind it, and after an error whatever is open is closed before anything else is done.

use crate::pg::bgworker::transaction;
use crate::pg::local::{Local, LocalBox};
use crate::pg::report::{PgResult, PgSqlErrorCode, error, wrong_state};
use crate::pg::{host, security, spi, subtransaction, wire};
use pgrx::{PgLogLevel, pg_sys};
use std::collections::HashSet;
use std::mem::ManuallyDrop;
use std::time::Duration;

/// What every session on a node begins with: values have one text form, what it commits is on disk, nothing that a
/// role or database has as its default stops it, and it does not outlive us for long when the network is cut.
const SESSION: &str = "SET search_path = pg_catalog, pg_temp; SET synchronous_commit = on; SET statement_timeout = 0; \
    SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET default_transaction_read_only = off; \
    SET default_transaction_isolation = 'read committed'; SET client_min_messages = error; SET jit = off; \
    SET datestyle = 'ISO'; SET intervalstyle = postgres; SET timezone = 'UTC'; SET extra_float_digits = 1; \
    SET bytea_output = hex; SET row_security = off; \
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 20000";

/// Which connections a process keeps from one piece of work to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    /// None: users' sessions.
    None,
    /// Those made as the owner of the tables it works on.
    Owners,
    /// All: no owner's code ever runs in it.
    All,
}

/// The connections that this worker keeps and that are known to be whole; other sessions keep none.
static KEPT: LocalBox<HashSet<String>> = LocalBox::new();
/// What this process keeps.
static KEEPS: Local<Keeps> = Local::new(Keeps::None);

/// Keeps connections of tables' owners from one piece of work to the next: for workers, which call [`distrust`] after
/// every error.
pub fn keep_owners() {
    KEEPS.set(Keeps::Owners);
}

/// Keeps all connections: for workers in which no owner's code runs.
pub fn keep_all() {
    KEEPS.set(Keeps::All);
}

/// After an error: what is open is closed, and opened again when it is used. Outside a transaction.
pub fn distrust() {
    if let Err(failure) = transaction(close_all) {
        pgrx::log!("foreshard: connections to nodes stay open: {}", failure.line);
    }
}

/// How long what a user's session asks a node may take in all, ms.
pub const SESSION_MS: u128 = 10_000;

/// How long the name of a server's host may take to be looked up: less than a health check may.
const LOOK_UP: Duration = Duration::from_secs(4);

/// What has to be looked up to connect to a server: the name of its first host, if it is given by name.
fn name_of_host(server: &str) -> PgResult<Option<String>> {
    let options = spi::rows(
        "SELECT coalesce(max(t.option_value) FILTER (WHERE t.option_name = 'host'), ''), \
             coalesce(max(t.option_value) FILTER (WHERE t.option_name = 'hostaddr'), '') \
         FROM pg_catalog.pg_foreign_server s, pg_catalog.pg_options_to_table(s.srvoptions) t WHERE s.srvname = $1::name",
        &[server.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<String>(2)?)),
    )?;
    let (host, hostaddr) = options.into_iter().next().unwrap_or_default();
    Ok(foreshard_core::host::to_look_up(&host, &hostaddr).map(str::to_owned))
}

/// Begins to look up the host of a server that is connected to soon: so several are looked up at the same time.
pub fn look_up(server: &str) -> PgResult<()> {
    if let Some(name) = name_of_host(server)? {
        host::ask(&name);
    }
    Ok(())
}

/// Whether nobody has said yet where the host of a server is.
pub fn is_looking_up(server: &str) -> PgResult<bool> {
    Ok(name_of_host(server)?.is_some_and(|name| !host::has_ended(&name, Duration::ZERO)))
}

/// Has the host of a server looked up, for which libpq would wait without a limit and without looking at interrupts.
///
/// # Errors
/// 08001 that takes too long.
fn require_host(server: &str) -> PgResult<()> {
    let Some(name) = name_of_host(server)? else { return Ok(()) };
    host::ask(&name);
    if host::wait(&name, LOOK_UP) {
        return Ok(());
    }
    let code = PgSqlErrorCode::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
    Err(error(code, format!("the host of server \"{server}\" was not looked up in time"))
        .set_detail(format!("No name server has answered within {} s what \"{name}\" is.", LOOK_UP.as_secs()))
        .set_hint("Give the server the option hostaddr beside host, so that nothing has to be looked up."))
}

/// Runs in a user's session what opens links; an ERROR leaves none of them open.
///
/// # Errors
/// Raises 08006 when the node takes longer than [`SESSION_MS`].
pub fn in_session<R>(work: impl FnOnce() -> R) -> R {
    let _bound = wire::Bound::in_session(SESSION_MS);
    subtransaction::run_or(work, || {
        let _ = close_all();
        if wire::has_cut() {
            error(PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE, "the node did not answer in time")
                .set_detail(format!(
                    "It was waited for {} s, then the connection was cut.",
                    SESSION_MS / 1000
                ))
                .set_hint("See whether the server is well, and the network on the way to it; then try again.")
                .report(PgLogLevel::ERROR);
        }
    })
}

/// Closes every connection of ours.
pub fn close_all() -> PgResult<()> {
    KEPT.forget();
    let Some(schema) = schema()? else { return Ok(()) };
    let close = format!(
        "SELECT {schema}.dblink_disconnect(c) FROM pg_catalog.unnest({schema}.dblink_get_connections()) c WHERE c LIKE 'foreshard %'"
    );
    spi::rows(&close, &[], |row| row.get::<String>(1)).map(drop)
}

/// The schema of contrib dblink, quoted; None: this database does not have it.
fn schema() -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'dblink'",
        &[],
    )
}

/// A connection to a node.
pub struct Link {
    schema: String,
    name: String,
    role: pg_sys::Oid,
    is_kept: bool,
}

impl Link {
    /// Connects as `role`, by its user mapping for the foreign server, for one piece of work.
    ///
    /// # Errors
    /// 55000 without contrib dblink; otherwise what the connection failed with (08001, 42704 without a user mapping), 08001 also when
    /// nobody says in time where the server's host is.
    pub fn open(server: &str, role: pg_sys::Oid) -> PgResult<Link> {
        Link::named(server, role, "", KEEPS.get() == Keeps::All)?.connected(server)
    }

    /// Connects as the owner of the tables that this process works on: a worker keeps the connection.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_owner(server: &str, owner: pg_sys::Oid) -> PgResult<Link> {
        Link::named(server, owner, "", KEEPS.get() != Keeps::None)?.connected(server)
    }

    /// Connects as the owner of the tables that this process works on, apart from [`of_owner`](Self::of_owner): for a transaction that only
    /// holds a lock. What is asked meanwhile is committed there, and does not wait for the end of that one.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn to_hold(server: &str, owner: pg_sys::Oid) -> PgResult<Link> {
        Link::named(server, owner, "lock ", KEEPS.get() != Keeps::None)?.connected(server)
    }

    /// The connection of [`to_hold`](Self::to_hold); None: it is not open.
    pub fn that_holds(server: &str, owner: pg_sys::Oid) -> PgResult<Option<Link>> {
        if KEEPS.get() == Keeps::None {
            return Ok(None);
        }
        let link = Link::named(server, owner, "lock ", true)?;
        Ok(link.is_open().then_some(link))
    }

    /// A connection that need not be there yet.
    fn named(server: &str, role: pg_sys::Oid, purpose: &str, is_kept: bool) -> PgResult<Link> {
        let schema = schema()?.ok_or_else(|| {
            wrong_state("extension \"dblink\" is not installed in this database")
                .set_detail("foreshard makes tables on other servers by contrib dblink.")
                .set_hint("CREATE EXTENSION dblink;")
        })?;
        // Nobody gets a connection that was made for another; dblink cuts names after 63 bytes, so that of the server, which
        // may be as long, is not in it.
        let number = "SELECT oid FROM pg_catalog.pg_foreign_server WHERE srvname = $1::name";
        let number = spi::one::<pg_sys::Oid>(number, &[server.into()])?.unwrap_or(pg_sys::InvalidOid);
        let what = if is_kept { "kept" } else { "once" };
        let name = format!("foreshard {purpose}{what} {} {}", number.to_u32(), role.to_u32());
        Ok(Link { schema, name, role, is_kept })
    }

    /// Whether it is kept, and whole as far as is known.
    fn is_open(&self) -> bool {
        self.is_kept && KEPT.with(HashSet::new, |kept| kept.contains(&self.name)).unwrap_or(false)
    }

    /// Connects, unless that was done.
    fn connected(self, server: &str) -> PgResult<Link> {
        if self.is_open() {
            return Ok(self);
        }
        // Until it is connected there is nothing to be closed.
        let unmade = ManuallyDrop::new(self);
        require_host(server)?;
        let link = ManuallyDrop::into_inner(unmade);
        let schema = &link.schema;
        let guard = security::as_restricted_owner(link.role);
        let _ = spi::one::<String>(
            &format!(
                "SELECT {schema}.dblink_disconnect($1) WHERE $1 = ANY ({schema}.dblink_get_connections())"
            ),
            &[link.name.as_str().into()],
        )?;
        let connect = format!("SELECT {schema}.dblink_connect($1, $2)");
        let _ = spi::one::<String>(&connect, &[link.name.as_str().into(), server.into()])?;
        drop(guard);
        wire::watch();
        link.exec(SESSION)?;
        if link.is_kept {
            KEPT.with(HashSet::new, |kept| kept.insert(link.name.clone()));
        }
        Ok(link)
    }

    /// Runs statements; several are one transaction there, unless they say otherwise.
    pub fn exec(&self, sql: &str) -> PgResult<()> {
        let _guard = security::as_restricted_owner(self.role);
        let call = format!("SELECT {}.dblink_exec($1, $2)", self.schema);
        let _ = spi::one::<String>(&call, &[self.name.as_str().into(), sql.into()])?;
        Ok(())
    }

    /// Runs a query; its columns as text.
    pub fn rows(&self, sql: &str, columns: usize) -> PgResult<Vec<Vec<Option<String>>>> {
        let _guard = security::as_restricted_owner(self.role);
        let names: Vec<String> = (1..=columns).map(|n| format!("c{n} pg_catalog.text")).collect();
        let query = format!("SELECT * FROM {}.dblink($1, $2) AS t ({})", self.schema, names.join(", "));
        spi::rows(&query, &[self.name.as_str().into(), sql.into()], |row| {
            (1..=columns).map(|n| row.get::<String>(n)).collect()
        })
    }

    /// First column of the first row.
    pub fn one(&self, sql: &str) -> PgResult<Option<String>> {
        Ok(self.rows(sql, 1)?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if std::thread::panicking() || self.is_kept {
            return;
        }
        let _guard = security::as_restricted_owner(self.role);
        let close = format!("SELECT {}.dblink_disconnect($1)", self.schema);
        let _ = spi::one::<String>(&close, &[self.name.as_str().into()]);
    }
}
