//! Statements for another server, by contrib dblink over a foreign server and the user mapping of the role that
//! acts: postgres_fdw has no way to make anything there.
//!
//! A link is opened for one piece of work and closed behind it; one that an ERROR left open is closed by the next.

use crate::pg::local::{Local, LocalBox};
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::{security, spi};
use pgrx::pg_sys;
use std::collections::HashSet;

/// What every session on a node begins with: values have one text form, what it commits is on disk, nothing that a
/// role or database has as its default stops it, and it does not outlive us for long when the network is cut.
const SESSION: &str = "SET search_path = pg_catalog, pg_temp; SET synchronous_commit = on; SET statement_timeout = 0; \
    SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET default_transaction_read_only = off; \
    SET default_transaction_isolation = 'read committed'; SET client_min_messages = error; SET jit = off; \
    SET datestyle = 'ISO'; SET intervalstyle = postgres; SET timezone = 'UTC'; SET extra_float_digits = 1; \
    SET bytea_output = hex; SET row_security = off; \
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 20000";

/// The connections that this worker keeps and that are known to be whole; other sessions keep none.
static KEPT: LocalBox<HashSet<String>> = LocalBox::new();
/// This process keeps its connections.
static KEEPS: Local<bool> = Local::new(false);

/// Keeps connections from one piece of work to the next: for workers, which call [`distrust`] after every error.
pub fn keep() {
    KEEPS.set(true);
}

/// After an error: what is open is closed and opened again before it is used.
pub fn distrust() {
    KEPT.forget();
}

/// A connection to a node.
pub struct Link {
    schema: String,
    name: String,
    role: pg_sys::Oid,
}

impl Link {
    /// Connects as `role`, by its user mapping for the foreign server.
    ///
    /// # Errors
    /// 55000 without contrib dblink; otherwise what the connection failed with (08001, 42704 without a user mapping).
    pub fn open(server: &str, role: pg_sys::Oid) -> PgResult<Link> {
        let schema = spi::one::<String>(
            "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'dblink'",
            &[],
        )?
        .ok_or_else(|| {
            wrong_state("extension \"dblink\" is not installed in this database")
                .set_detail("foreshard makes tables on other servers by contrib dblink.")
                .set_hint("CREATE EXTENSION dblink;")
        })?;
        // Nobody gets a connection that was made for another.
        let name = format!("foreshard {server} {}", role.to_u32());
        let is_kept = KEEPS.get() && KEPT.with(HashSet::new, |kept| kept.contains(&name)).unwrap_or(false);
        let link = Link { schema, name, role };
        if is_kept {
            return Ok(link);
        }
        let schema = &link.schema;
        let guard = security::as_restricted_owner(role);
        let _ = spi::one::<String>(
            &format!(
                "SELECT {schema}.dblink_disconnect($1) WHERE $1 = ANY ({schema}.dblink_get_connections())"
            ),
            &[link.name.as_str().into()],
        )?;
        let connect = format!("SELECT {schema}.dblink_connect($1, $2)");
        let _ = spi::one::<String>(&connect, &[link.name.as_str().into(), server.into()])?;
        drop(guard);
        link.exec(SESSION)?;
        if KEEPS.get() {
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
        if std::thread::panicking() || KEEPS.get() {
            return;
        }
        let _guard = security::as_restricted_owner(self.role);
        let close = format!("SELECT {}.dblink_disconnect($1)", self.schema);
        let _ = spi::one::<String>(&close, &[self.name.as_str().into()]);
    }
}
