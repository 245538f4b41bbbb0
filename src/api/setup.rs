//! Shards, and the wake-up call of CREATE EXTENSION.

use crate::catalog::colocation::LOCAL;
use crate::catalog::link::{self, Link};
use crate::catalog::relation::usable_tablespace;
use crate::catalog::{colocation, node, record_event};
use crate::pg::report::{PgResult, bad_argument, error, unknown, wrong_state};
use crate::pg::shmem::{self, State};
use crate::pg::{bgworker, security};
use pgrx::prelude::*;
use serde_json::json;

const MAX_SHARDS: usize = 1024;

/// Adds a shard: a place for data. Returns its id.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn add_shard(
    shard_name: &str,
    tablespace: default!(&str, "'pg_default'"),
    capacity: default!(f64, 1000.0),
    node: default!(&str, "'local'"),
) -> PgResult<i32> {
    if shard_name.is_empty() || shard_name.len() > 63 {
        return Err(bad_argument("shard name must have 1 to 63 bytes"));
    }
    if !(capacity > 0.0 && capacity.is_finite()) {
        return Err(bad_argument("capacity must be positive")
            .set_detail("The unit is cost units (ms of CPU) per second."));
    }
    if node == LOCAL {
        match usable_tablespace(tablespace)? {
            Some(true) => {}
            Some(false) => return Err(bad_argument("tablespace \"pg_global\" cannot hold user data")),
            None => return Err(unknown(format!("tablespace \"{tablespace}\" does not exist"))),
        }
    } else {
        remote_tablespace(node, tablespace)?;
    }
    let _owner = security::as_extension_owner()?;
    let shards = colocation::shards()?;
    if shards.iter().any(|s| s.name == shard_name) {
        return Err(error(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("shard \"{shard_name}\" already exists"),
        ));
    }
    if shards.len() >= MAX_SHARDS {
        return Err(error(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("there can be at most {MAX_SHARDS} shards"),
        ));
    }
    let shard_id = colocation::insert_shard(shard_name, tablespace, capacity, node)?;
    record_event(
        "add_shard",
        None,
        None,
        json!({"shard": shard_name, "tablespace": tablespace, "capacity": capacity, "node": node}),
    )?;
    Ok(shard_id)
}

/// Checks that a node has a tablespace, as the current user.
fn remote_tablespace(node: &str, tablespace: &str) -> PgResult<()> {
    let as_owner = security::as_extension_owner()?;
    let found = node::node(node)?;
    drop(as_owner);
    let user = node::current_role()?;
    node::check_server(&found.server, user)?;
    let looked = link::in_session(|| node::usable_tablespace(&Link::open(&found.server, user)?, tablespace));
    match looked? {
        Some(true) => Ok(()),
        Some(false) => Err(error(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("permission denied for tablespace {tablespace} on node \"{node}\""),
        )),
        None => Err(unknown(format!("tablespace \"{tablespace}\" does not exist on node \"{node}\""))),
    }
}

/// Asks, at commit, for a keeper in this database. CREATE EXTENSION calls it.
#[pg_extern(volatile, parallel_unsafe)]
fn start_keeper() {
    if !shmem::is_preloaded() {
        let what = "foreshard is not loaded by the server: nothing is observed and nothing can move";
        wrong_state(what)
            .set_hint("Set shared_preload_libraries = 'foreshard' in postgresql.conf and restart PostgreSQL.")
            .report(PgLogLevel::WARNING);
        return;
    }
    let database = bgworker::database();
    pgrx::register_xact_callback(pgrx::PgXactCallbackEvent::Commit, move || {
        shmem::with_entry(database, |entry| {
            // DROP EXTENSION may just have sent the workers away.
            entry.held_until_us = 0;
            if entry.keeper == 0 {
                entry.state = State::Probe;
            }
        });
        if let Some(launcher) = shmem::with(|registry| registry.launcher) {
            shmem::wake(launcher);
        }
    });
}
