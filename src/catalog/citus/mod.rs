//! A Citus cluster that this server coordinates: whether there is one that can be adopted, and which was.

pub mod counters;
mod divided;
pub mod identity;
pub mod layout;
pub mod measured;
pub mod moving;
pub mod splitting;
pub mod strategy;
pub mod switch;
pub mod tenants;
pub mod triggers;

use crate::pg::report::{
    PgResult, PgSqlErrorCode, bad_argument, busy, error, internal, unknown, unsupported, wrong_state,
};
use crate::pg::{names, spi};
use foreshard_core::citus::{LEAST, Version};
use pgrx::pg_sys;

/// The cluster that was adopted.
pub struct Cluster {
    /// Name; nodes are called after it.
    pub name: String,
    /// Seconds since its nodes were last asked; None: never.
    pub asked_age_s: Option<f64>,
}

/// The adopted cluster, if any.
pub fn cluster() -> PgResult<Option<Cluster>> {
    let found = spi::rows(
        "SELECT cluster_name::text, extract(epoch FROM pg_catalog.clock_timestamp() - asked_at)::float8 FROM foreshard.citus_cluster",
        &[],
        |row| Ok(Cluster { name: row.need(1)?, asked_age_s: row.get(2)? }),
    )?;
    Ok(found.into_iter().next())
}

/// Whether the nodes of an adopted cluster are to be asked again: where nobody watches loads, only how they are, while something is
/// to be moved.
pub fn is_due(interval_s: i32, watches: bool) -> PgResult<bool> {
    // A little early: what is read then belongs to the bucket that ends then.
    let due =
        |cluster: Cluster| cluster.asked_age_s.is_none_or(|age_s| age_s >= f64::from(interval_s) - 0.05);
    Ok(is_here() && cluster()?.is_some_and(due) && (watches || moving::is_any()?))
}

/// The version of the extension in this database.
fn version() -> PgResult<Option<String>> {
    spi::one::<String>("SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'citus'", &[])
}

/// Whether the extension is in this database.
pub fn is_here() -> bool {
    names::has_extension(c"citus")
}

/// Whether a table is one of the adopted cluster.
pub fn has_table(table: pg_sys::Oid) -> PgResult<bool> {
    let sql = "SELECT EXISTS (SELECT FROM foreshard.citus_table WHERE table_oid = $1)";
    Ok(spi::one::<bool>(sql, &[table.into()])?.unwrap_or(false))
}

/// The shard of Citus that has a key of a distributed table. Reads nothing of ours; what makes a key of a text may be code of
/// the table's owner, so the caller sees to it who acts.
pub fn shard_of_key(table: pg_sys::Oid, key: spi::Arg) -> PgResult<Option<i64>> {
    spi::one::<i64>(
        "SELECT pg_catalog.get_shard_id_for_distribution_column($1::regclass, $2)",
        &[table.into(), key],
    )
}

/// The slot of a shard of Citus, and the name of the shard that it is on.
pub fn slot_of_shard(citus_shard: i64) -> PgResult<Option<(i64, String)>> {
    let found = spi::rows(
        "SELECT s.slot_id, h.shard_name::text FROM foreshard.citus_shard t JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard h USING (shard_id) \
         WHERE t.citus_shard = $1",
        &[citus_shard.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// A key as text. What makes a text of it may be code of whoever made its type, so the caller sees to it who acts.
pub fn text_of_key(key: spi::Arg) -> PgResult<String> {
    spi::one::<String>("SELECT $1::text", &[key])?.ok_or_else(|| bad_argument("key must not be NULL"))
}

/// The hash by which Citus finds the shard of a key, given as text, of a distributed table.
///
/// # Errors
/// 0A000 the table has no distribution column, or one of a type that is not PostgreSQL's own: what reads a text of another may be
/// somebody's code.
pub fn hash_of_key(table: pg_sys::Oid, key: &str) -> PgResult<i32> {
    let found = spi::rows(
        "SELECT a.atttypid < 16384, pg_catalog.format_type(a.atttypid, -1) FROM foreshard.citus_table m \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = m.table_oid AND a.attname = m.key_column WHERE m.table_oid = $1",
        &[table.into()],
        |row| Ok((row.need::<bool>(1)?, row.need::<String>(2)?)),
    )?;
    let Some((is_own, key_type)) = found.into_iter().next() else {
        return Err(unsupported("keys of a table without a distribution column cannot be isolated"));
    };
    if !is_own {
        return Err(unsupported(format!("keys of type {key_type} cannot be isolated"))
            .set_detail("Only keys of types of PostgreSQL itself are hashed here.")
            .set_hint("SELECT isolate_tenant_to_new_shard(...) of Citus does it."));
    }
    spi::one::<i32>(&format!("SELECT pg_catalog.worker_hash(CAST($1 AS {key_type}))"), &[key.into()])?
        .ok_or_else(|| internal("a key without a hash"))
}

/// Share of a key, given as text, of the questions that Citus has counted by tenants of a slot; None: it has not.
pub fn share_of_tenant(slot_id: i64, key: &str) -> PgResult<Option<f64>> {
    spi::one::<f64>(
        "SELECT (sum(t.queries) FILTER (WHERE t.tenant = $2))::float8 / nullif(sum(t.queries), 0)::float8 FROM foreshard.citus_tenant t WHERE t.slot_id = $1",
        &[slot_id.into(), key.into()],
    )
}

/// Checks that this database coordinates a Citus cluster.
///
/// # Errors
/// 0A000 Citus is not installed on the server, or too old; 55000 the extension is not in this database, or this is not the
/// coordinator.
pub fn require_coordinator() -> PgResult<()> {
    let Some(version) = version()? else {
        let available = spi::one::<bool>(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'citus')",
            &[],
        )?;
        return Err(match available {
            Some(true) => wrong_state("extension \"citus\" is not installed in this database")
                .set_detail("A Citus cluster is adopted in the database of its coordinator.")
                .set_hint("CREATE EXTENSION citus; or call this in the coordinator's database."),
            _ => unsupported("Citus is not available on this server")
                .set_detail("pg_available_extensions does not list the extension \"citus\".")
                .set_hint("Install Citus, put it first in shared_preload_libraries ('citus,foreshard') and restart PostgreSQL."),
        });
    };
    if Version::parse(&version).is_none_or(|version| version < LEAST) {
        return Err(unsupported(format!("Citus {version} is too old"))
            .set_detail(format!("Clusters are adopted from version {LEAST} on."))
            .set_hint("Upgrade Citus: ALTER EXTENSION citus UPDATE; in every database of the cluster."));
    }
    if spi::one::<bool>("SELECT pg_catalog.citus_is_coordinator()", &[])? != Some(true) {
        return Err(wrong_state("this server does not coordinate a Citus cluster")
            .set_detail("It is a worker, or no node was added to it yet.")
            .set_hint(
                "Connect to the coordinator; citus_set_coordinator_host() and citus_add_node() make it one.",
            ));
    }
    Ok(())
}

/// Remembers that the cluster is adopted; [`layout::follow`] does the rest.
///
/// # Errors
/// 42710 one is already, or a name is taken.
pub fn adopt(name: &str, user: &str, capacity: f64) -> PgResult<()> {
    if let Some(other) = cluster()? {
        return Err(duplicate(format!("Citus cluster \"{}\" is already adopted", other.name))
            .set_detail("A database coordinates one cluster."));
    }
    let taken = spi::one::<String>(
        "SELECT q.name FROM (SELECT node_name::text AS name FROM foreshard.node UNION ALL SELECT shard_name::text FROM foreshard.shard) q \
         WHERE q.name = $1 OR q.name ~ ('^' || pg_catalog.regexp_replace($1, '([^A-Za-z0-9_])', '\\\\\\1', 'g') || '_[0-9]+$') LIMIT 1",
        &[name.into()],
    )?;
    if let Some(taken) = taken {
        return Err(duplicate(format!("name \"{taken}\" is taken by another node or shard"))
            .set_detail(format!("The nodes of the cluster would be called \"{name}_<nodeid>\".")));
    }
    spi::run(
        "INSERT INTO foreshard.citus_cluster (cluster_name, capacity, added_by) VALUES ($1::name, $2, $3::name)",
        &[name.into(), capacity.into(), user.into()],
    )?;
    Ok(())
}

fn duplicate(message: String) -> pg_sys::panic::ErrorReport {
    error(PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT, message)
}

/// Forgets the cluster with its nodes, groups, slots and history; nothing is changed in Citus.
///
/// # Errors
/// 42704 no such cluster, 55006 a move of ours is under way.
pub fn forget(name: &str) -> PgResult<()> {
    if cluster()?.is_none_or(|cluster| cluster.name != name) {
        return Err(unknown(format!("Citus cluster \"{name}\" does not exist")));
    }
    let moves = spi::one::<i64>(
        "SELECT count(*) FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) WHERE s.hash_from IS NOT NULL AND NOT m.finished",
        &[],
    )?;
    if moves.unwrap_or(0) > 0 {
        return Err(busy(format!("Citus cluster \"{name}\" is still used"))
            .set_detail("Moves of its slots have not ended.")
            .set_hint("See foreshard.progress_moves; foreshard.cancel_move(move_id) ends a move."));
    }
    for statement in [
        "DELETE FROM foreshard.colocation_group WHERE citus_colocation IS NOT NULL",
        "DELETE FROM foreshard.citus_table",
        "DELETE FROM foreshard.shard h USING foreshard.node n WHERE n.node_name = h.node_name AND n.engine = 'citus'",
        "DELETE FROM foreshard.node WHERE engine = 'citus'",
        "DELETE FROM foreshard.citus_cluster",
    ] {
        spi::run(statement, &[])?;
    }
    Ok(())
}
