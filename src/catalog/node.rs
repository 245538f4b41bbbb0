//! Nodes: other servers that shards may be on. What they must be like, how they are, who is left on them.

use super::link::Link;
use crate::pg::report::{
    PgResult, PgSqlErrorCode, bad_argument, error, internal, unknown, unsupported, wrong_state,
};
use crate::pg::spi;
use foreshard_core::breaker::{Breaker, State};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use std::time::{Duration, Instant};

/// The oldest server that may be a node.
const LEAST_VERSION: i32 = 150_000;
/// Round trips that are measured; the fastest counts.
const ROUND_TRIPS: usize = 5;

/// A node.
pub struct NodeRow {
    /// Name.
    pub name: String,
    /// Foreign server.
    pub server: String,
    /// Schema in which tables are made there, unquoted.
    pub schema: String,
    /// Role whose user mapping the health checks use; None: it is gone.
    pub checked_as: Option<pg_sys::Oid>,
    /// ms.
    pub round_trip_ms: f64,
    /// How it is.
    pub breaker: Breaker,
    /// By what the tables there are told from those of other servers; clones of this one have the same.
    pub owner_id: String,
    /// The token that this server last wrote there; None: none yet.
    pub lease: Option<String>,
}

impl NodeRow {
    /// What marks everything there as made from here.
    pub fn mark(&self) -> String {
        format!("foreshard of {}", self.owner_id)
    }
}

/// What a node says of itself.
pub struct Looks {
    /// `server_version_num`.
    pub version: i32,
    /// Fastest round trip, ms.
    pub round_trip_ms: f64,
    /// How far its clock is ahead, ms.
    pub clock_offset_ms: f64,
}

/// All nodes of postgres_fdw, or the one of a name.
pub fn nodes(name: Option<&str>) -> PgResult<Vec<NodeRow>> {
    spi::rows(
        "SELECT n.node_name::text, n.server_name::text, n.remote_schema::text, r.oid, n.round_trip_ms, n.state, n.failures, n.owner_id::text, n.lease::text \
         FROM foreshard.node n LEFT JOIN pg_catalog.pg_roles r ON r.rolname = n.checked_as \
         WHERE n.engine = 'postgres_fdw' AND ($1 IS NULL OR n.node_name = $1::name) ORDER BY 1",
        &[name.into()],
        |row| {
            let down = row.need::<String>(6)? == "down";
            Ok(NodeRow {
                name: row.need(1)?,
                server: row.need(2)?,
                schema: row.need(3)?,
                checked_as: row.get(4)?,
                round_trip_ms: row.need(5)?,
                breaker: Breaker {
                    state: if down { State::Open } else { State::Closed },
                    failures: row.need::<i32>(7)?.max(0) as u32,
                },
                owner_id: row.need(8)?,
                lease: row.get(9)?,
            })
        },
    )
}

/// The node of a name.
///
/// # Errors
/// 42704; 0A000 a node of Citus, on which Citus makes tables.
pub fn node(name: &str) -> PgResult<NodeRow> {
    let is_citus =
        "SELECT EXISTS (SELECT FROM foreshard.node WHERE node_name = $1::name AND engine = 'citus')";
    if spi::one::<bool>(is_citus, &[name.into()])? == Some(true) {
        return Err(unsupported(format!("node \"{name}\" is one of a Citus cluster"))
            .set_detail("It is one shard, and holds what Citus places there.")
            .set_hint("Make tables with create_distributed_table(); foreshard follows."));
    }
    nodes(Some(name))?.into_iter().next().ok_or_else(|| {
        unknown(format!("node \"{name}\" does not exist"))
            .set_hint("See the view foreshard.nodes; foreshard.add_node() adds one.")
    })
}

/// 08006: the node does not answer.
pub fn is_down(name: &str) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE, format!("node \"{name}\" does not answer"))
        .set_detail("Its last health checks failed; foreshard.nodes has the reason.")
        .set_hint("It is used again as soon as a health check succeeds (foreshard.node_check_interval).")
}

/// 08006 while the node of a shard is down, 55000 while it is another server's.
pub fn require_up(shard_id: i32) -> PgResult<()> {
    let unusable = spi::rows(
        "SELECT n.node_name::text, n.held FROM foreshard.shard h JOIN foreshard.node n USING (node_name) \
         WHERE h.shard_id = $1 AND (n.state = 'down' OR NOT n.held)",
        &[shard_id.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<bool>(2)?)),
    )?;
    match unusable.into_iter().next() {
        None => Ok(()),
        Some((name, true)) => Err(is_down(&name)),
        Some((name, false)) => Err(super::remote::lease::lost(&name)),
    }
}

/// Shards whose node is down, or another server's.
pub fn sick_shards() -> PgResult<Vec<i32>> {
    spi::rows(
        "SELECT h.shard_id FROM foreshard.shard h JOIN foreshard.node n USING (node_name) WHERE n.state = 'down' OR NOT n.held",
        &[],
        |row| row.need(1),
    )
}

/// Checks that a foreign server can be a node for the current user.
///
/// # Errors
/// 42704 no such server or no user mapping, 0A000 a server of another wrapper, 42501 no right to use it.
pub fn check_server(server: &str, user: pg_sys::Oid) -> PgResult<()> {
    let found = spi::rows(
        "SELECT p.proname = 'postgres_fdw_handler', pg_catalog.has_server_privilege($2, s.oid, 'USAGE'), \
                EXISTS (SELECT FROM pg_catalog.pg_user_mappings m WHERE m.srvid = s.oid AND m.umuser IN ($2, 0)) \
         FROM pg_catalog.pg_foreign_server s JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw \
         LEFT JOIN pg_catalog.pg_proc p ON p.oid = w.fdwhandler WHERE s.srvname = $1::name",
        &[server.into(), user.into()],
        |row| Ok((row.get::<bool>(1)?.unwrap_or(false), row.need::<bool>(2)?, row.need::<bool>(3)?)),
    )?;
    match found.into_iter().next() {
        None => Err(unknown(format!("server \"{server}\" does not exist"))
            .set_hint("CREATE EXTENSION postgres_fdw; then CREATE SERVER … FOREIGN DATA WRAPPER postgres_fdw and CREATE USER MAPPING.")),
        Some((false, ..)) => Err(unsupported(format!("server \"{server}\" is not one of postgres_fdw"))
            .set_detail("Shards on other servers are foreign tables of contrib postgres_fdw.")),
        Some((_, false, _)) => Err(error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for foreign server {server}"),
        )
        .set_hint("GRANT USAGE ON FOREIGN SERVER … TO the owner of the tables.")),
        Some((.., false)) => Err(unknown(format!("there is no user mapping for server \"{server}\""))
            .set_hint("CREATE USER MAPPING FOR CURRENT_USER SERVER … OPTIONS (user …, password …);")),
        Some(_) => Ok(()),
    }
}

/// The fastest of some round trips, and how far the clock there is ahead by that one, ms.
fn clock(link: &Link) -> PgResult<(f64, f64)> {
    let mut fastest = f64::MAX;
    let mut offset_ms = 0.0;
    for _ in 0..ROUND_TRIPS {
        let (begun, begun_s) = (Instant::now(), crate::pg::bgworker::now_s());
        let there = link.one("SELECT extract(epoch FROM clock_timestamp())::float8")?;
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        let there_s: f64 =
            there.and_then(|s| s.parse().ok()).ok_or_else(|| internal("a server without a clock"))?;
        if took_ms < fastest {
            (fastest, offset_ms) = (took_ms, (there_s - begun_s) * 1e3 - took_ms / 2.0);
        }
    }
    Ok((fastest, offset_ms))
}

/// Connects and looks whether the other server can take tables.
///
/// # Errors
/// 0A000 a server too old or of another encoding, 55000 a standby, 42704 no such schema, 42501 no right to make
/// tables in it, and what the connection failed with.
pub fn look_at(link: &Link, server: &str, schema: &str) -> PgResult<Looks> {
    let (fastest, offset_ms) = clock(link)?;
    let said = link.rows(
        &format!(
            "SELECT current_setting('server_version_num'), current_setting('server_encoding'), pg_is_in_recovery()::text, \
                    n.oid::text, (has_schema_privilege(n.oid, 'CREATE') AND has_schema_privilege(n.oid, 'USAGE'))::text, \
                    EXISTS (SELECT FROM pg_language WHERE lanname = 'plpgsql' AND has_language_privilege(oid, 'USAGE'))::text \
             FROM (VALUES (1)) one LEFT JOIN pg_namespace n ON n.nspname = {}",
            pgrx::spi::quote_literal(schema)
        ),
        6,
    )?;
    let said = said.into_iter().next().unwrap_or_default();
    let text = |at: usize| said.get(at).and_then(Option::as_deref);
    let version: i32 = text(0).and_then(|v| v.parse().ok()).unwrap_or(0);
    if version < LEAST_VERSION {
        return Err(unsupported(format!("server \"{server}\" runs PostgreSQL {}", version / 10_000))
            .set_detail("A node needs version 15 or later."));
    }
    let encoding = spi::one::<String>("SELECT pg_catalog.current_setting('server_encoding')", &[])?;
    if encoding.as_deref() != text(1) {
        return Err(unsupported(format!("server \"{server}\" has another encoding")).set_detail(format!(
            "It is {} there and {} here: keys would hash differently.",
            text(1).unwrap_or("unknown"),
            encoding.as_deref().unwrap_or("unknown")
        )));
    }
    if text(2) == Some("true") {
        return Err(wrong_state(format!("server \"{server}\" is a standby"))
            .set_hint("Name all its hosts in the option host, and set target_session_attrs 'read-write'."));
    }
    if text(3).is_none() {
        return Err(unknown(format!("schema \"{schema}\" does not exist on server \"{server}\"")));
    }
    if text(4) != Some("true") {
        return Err(error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for schema {schema} on server \"{server}\""),
        )
        .set_hint(
            "GRANT CREATE, USAGE ON SCHEMA … TO the role that the user mapping names, on that server.",
        ));
    }
    if text(5) != Some("true") {
        return Err(unsupported(format!("server \"{server}\" has no language plpgsql that may be used"))
            .set_detail("Tables there log their changes and take rows in by triggers in PL/pgSQL.")
            .set_hint("CREATE EXTENSION plpgsql, or GRANT USAGE ON LANGUAGE plpgsql, in that database."));
    }
    Ok(Looks { version, round_trip_ms: fastest, clock_offset_ms: offset_ms })
}

/// Whether a server of this name has several hosts, one of which may answer where another does not.
pub fn has_several_hosts(server: &str) -> PgResult<bool> {
    let found = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s, pg_catalog.pg_options_to_table(s.srvoptions) t \
             WHERE s.srvname = $1::name AND t.option_name IN ('host', 'hostaddr') AND pg_catalog.strpos(t.option_value, ',') > 0)",
        &[server.into()],
    )?;
    Ok(found.unwrap_or(false))
}

/// Which settings that end a wait for a node that is cut off the server lacks.
pub fn lacking_timeouts(server: &str) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT o FROM pg_catalog.unnest(ARRAY['connect_timeout', 'tcp_user_timeout', 'keepalives_idle']) o \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server s, pg_catalog.pg_options_to_table(s.srvoptions) t \
             WHERE s.srvname = $1::name AND t.option_name = o)",
        &[server.into()],
        |row| row.need(1),
    )
}

/// Adds a node.
///
/// # Errors
/// 42710 the name or the server is taken.
pub fn insert(name: &str, server: &str, schema: &str, user: &str, looks: &Looks) -> PgResult<()> {
    let done = spi::run(
        "INSERT INTO foreshard.node (node_name, server_name, remote_schema, checked_as, remote_version, round_trip_ms, clock_offset_ms, checked_at) \
         VALUES ($1::name, $2::name, $3::name, $4::name, $5, $6, $7, '-infinity') ON CONFLICT DO NOTHING",
        &[
            name.into(),
            server.into(),
            schema.into(),
            user.into(),
            looks.version.into(),
            looks.round_trip_ms.into(),
            looks.clock_offset_ms.into(),
        ],
    )?;
    if done == 0 {
        return Err(error(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("node \"{name}\" or a node of server \"{server}\" already exists"),
        ));
    }
    Ok(())
}

/// Removes a node.
///
/// # Errors
/// 42704 unknown, 55006 while it has shards or tables.
pub fn delete(name: &str) -> PgResult<()> {
    node(name)?;
    let used = spi::one::<String>(
        "SELECT pg_catalog.string_agg(x, ', ') FROM (SELECT 'shard ' || shard_name AS x FROM foreshard.shard WHERE node_name = $1::name \
             UNION ALL SELECT 'table ' || remote_name FROM foreshard.remote_table WHERE node_name = $1::name LIMIT 10) q",
        &[name.into()],
    )?;
    if let Some(used) = used {
        return Err(crate::pg::report::busy(format!("node \"{name}\" is still used"))
            .set_detail(format!("On it are: {used}."))
            .set_hint(
                "Empty its shards with foreshard.drain_shard() and remove them with foreshard.drop_shard().",
            ));
    }
    spi::run("DELETE FROM foreshard.node WHERE node_name = $1::name", &[name.into()])?;
    Ok(())
}

/// Stores what a health check came to that took so long; `why` None: the node answered. The next one is due an interval after this one began,
/// however long the nodes take.
pub fn store(
    node: &NodeRow,
    now: Breaker,
    looks: Option<&Looks>,
    why: Option<&str>,
    took: Duration,
) -> PgResult<()> {
    let state = if now.state == State::Open { "down" } else { "up" };
    spi::run(
        "UPDATE foreshard.node SET state = $2, failures = $3, last_error = $4, checked_at = pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $8), \
                state_since = CASE WHEN state = $2 THEN state_since ELSE pg_catalog.clock_timestamp() END, \
                round_trip_ms = coalesce($5, round_trip_ms), clock_offset_ms = coalesce($6, clock_offset_ms), \
                remote_version = coalesce($7, remote_version) WHERE node_name = $1::name",
        &[
            node.name.as_str().into(),
            state.into(),
            (now.failures as i32).into(),
            why.into(),
            looks.map(|l| l.round_trip_ms).into(),
            looks.map(|l| l.clock_offset_ms).into(),
            looks.map(|l| l.version).into(),
            took.as_secs_f64().into(),
        ],
    )?;
    if now.state != node.breaker.state {
        let event = if now.state == State::Open { "node_down" } else { "node_up" };
        super::record_event(event, None, None, serde_json::json!({"node": node.name, "reason": why}))?;
    }
    Ok(())
}

/// Whether a health check of any node is due: half a second early, since keepers look every second and the worker takes its time to begin.
pub fn is_check_due(interval_s: i32) -> PgResult<bool> {
    Ok(spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.node WHERE engine = 'postgres_fdw' AND checked_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1))",
        &[(f64::from(interval_s) - 0.5).into()],
    )?
    .unwrap_or(false))
}

/// The catalog of nodes, as a class of locks.
pub fn class() -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>("SELECT 'foreshard.node'::regclass::oid", &[])?
        .ok_or_else(|| internal("no catalog of nodes"))
}

/// The current role.
pub fn current_role() -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>("SELECT oid FROM pg_catalog.pg_roles WHERE rolname = current_user", &[])?
        .ok_or_else(|| internal("nobody is logged in"))
}

/// 22023 unless the text can be an object's name.
pub fn check_name(what: &str, name: &str) -> PgResult<()> {
    if name.is_empty() || name.len() > 63 {
        return Err(bad_argument(format!("{what} name must have 1 to 63 bytes")));
    }
    Ok(())
}

/// The role of a name, if it exists.
pub fn role(name: &str) -> PgResult<Option<pg_sys::Oid>> {
    spi::one::<pg_sys::Oid>("SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1::name", &[name.into()])
}

/// Whether tables may be made in a tablespace of a node; None: there is no such.
pub fn usable_tablespace(link: &Link, name: &str) -> PgResult<Option<bool>> {
    let found = link.one(&format!(
        "SELECT (spcname = (SELECT b.spcname FROM pg_database d JOIN pg_tablespace b ON b.oid = d.dattablespace WHERE d.datname = current_database()) \
                OR has_tablespace_privilege(oid, 'CREATE') AND spcname <> 'pg_global')::text FROM pg_tablespace WHERE spcname = {}",
        pgrx::spi::quote_literal(name)
    ))?;
    Ok(found.map(|usable| usable == "true"))
}
