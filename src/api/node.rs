//! Nodes, and shards that are emptied.

use super::reshard::wake_keeper;
use crate::catalog::link::{self, Link};
use crate::catalog::node::NodeRow;
use crate::catalog::remote::{self, farewell, lease, reap};
use crate::catalog::{citus, drain, node, record_event};
use crate::pg::report::{PgResult, bad_argument, notice, wrong_state};
use crate::pg::subtransaction::Ended;
use crate::pg::{security, shmem};
use foreshard_core::breaker::State;
use pgrx::prelude::*;
use serde_json::json;

/// A clock that is further off is told, ms.
const CLOCK_OFF_MS: f64 = 1_000.0;

/// Makes a foreign server of postgres_fdw a node, on which shards may be: checks it with the caller's user mapping and
/// measures the round trip. `remote_schema` is where tables are made there. With engine `citus` adopts the Citus cluster that
/// this server coordinates: each of its nodes becomes one of ours and a shard, called after `node_name`.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn add_node(
    node_name: Option<&str>,
    server: default!(Option<&str>, "NULL"),
    remote_schema: default!(Option<&str>, "'public'"),
    engine: default!(Option<&str>, "'postgres_fdw'"),
) -> PgResult<()> {
    let (Some(name), Some(remote_schema), Some(engine)) = (node_name, remote_schema, engine) else {
        return Err(bad_argument("node_name, remote_schema and engine must not be NULL"));
    };
    node::check_name("node", name)?;
    if name == crate::catalog::colocation::LOCAL {
        return Err(bad_argument("node \"local\" is this server"));
    }
    match engine {
        "citus" => adopt_citus(name, server),
        "postgres_fdw" => add_server(name, server, remote_schema),
        _ => Err(bad_argument(format!("engine \"{engine}\" does not exist"))
            .set_hint("Engines of nodes are postgres_fdw and citus.")),
    }
}

/// Names of nodes end with a number; both must fit into 63 bytes.
const MAX_CLUSTER_NAME: usize = 52;
/// What a node of Citus is taken to carry, as a shard that is added without a word.
const CAPACITY: f64 = 1000.0;

fn adopt_citus(name: &str, server: Option<&str>) -> PgResult<()> {
    if server.is_some() {
        return Err(bad_argument("a Citus cluster has no foreign server")
            .set_hint("Call foreshard.add_node('name', engine => 'citus') on the coordinator."));
    }
    if name.len() > MAX_CLUSTER_NAME {
        return Err(bad_argument(format!("name of a cluster must have 1 to {MAX_CLUSTER_NAME} bytes")));
    }
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    citus::require_coordinator()?;
    citus::adopt(name, &user, CAPACITY)?;
    citus::layout::follow()?;
    record_event("add_node", None, None, json!({"node": name, "engine": "citus"}))?;
    wake_keeper();
    Ok(())
}

fn add_server(name: &str, server: Option<&str>, remote_schema: &str) -> PgResult<()> {
    let Some(server) = server else { return Err(bad_argument("server must not be NULL")) };
    let role = node::current_role()?;
    node::check_server(server, role)?;
    let looks = link::in_session(|| node::look_at(&Link::open(server, role)?, server, remote_schema))?;
    if looks.clock_offset_ms.abs() > CLOCK_OFF_MS {
        notice(&format!("the clock of server \"{server}\" is {:.0} ms ahead", looks.clock_offset_ms));
    }
    let lacking = node::lacking_timeouts(server)?;
    if !lacking.is_empty() {
        notice(&format!(
            "server \"{server}\" does not set {}: statements may wait long for a node that is cut off",
            lacking.join(", ")
        ));
    }
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    node::insert(name, server, remote_schema, &user, &looks)?;
    wake_keeper();
    record_event(
        "add_node",
        None,
        None,
        json!({"node": name, "server": server, "round_trip_ms": looks.round_trip_ms, "version": looks.version}),
    )
}

/// Forgets a node that has no shards and no tables of ours any more; of a Citus cluster everything that is known, and nothing
/// changes there. With `force` also one that does not answer, with what moves have left there.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn drop_node(node_name: Option<&str>, force: default!(Option<bool>, "false")) -> PgResult<()> {
    let (Some(name), Some(force)) = (node_name, force) else {
        return Err(bad_argument("node_name and force must not be NULL"));
    };
    let _owner = security::as_extension_owner()?;
    if citus::cluster()?.is_some_and(|cluster| cluster.name == name) {
        citus::forget(name)?;
    } else {
        let node = node::node(name)?;
        if force {
            forget_orphans(&node)?;
        }
        node::delete(name)?;
        // Rolled back, the next health check makes it again.
        if farewell::leave_lease(&node) == Some(Ended::Well) {
            pgrx::debug1!("foreshard: node {name} has forgotten this server");
        } else {
            notice(&format!("node \"{name}\" did not answer: the table {} stays there", lease::table(&node)));
        }
    }
    record_event("drop_node", None, None, json!({"node": name}))
}

/// Forgets what a node that is gone for good has of ours, as far as nothing here is over it.
fn forget_orphans(node: &NodeRow) -> PgResult<()> {
    if node.breaker.state == State::Closed {
        return Err(wrong_state(format!("node \"{}\" answers", node.name))
            .set_detail("What moves left there is dropped by its next health checks.")
            .set_hint("Call foreshard.drop_node() without force when foreshard.remote_tables shows none of its tables."));
    }
    for orphan in reap::left_on(node)? {
        notice(&format!("table {} stays on node \"{}\"", orphan.table_there(), node.name));
        remote::forget(orphan.remote_id)?;
    }
    Ok(())
}

/// Takes the tables on a node for this server's: for the one that goes on, after a clone, a restore or a promotion. The
/// other server touches them no more.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn claim_node(node_name: Option<&str>) -> PgResult<()> {
    let Some(name) = node_name else { return Err(bad_argument("node_name must not be NULL")) };
    let _owner = security::as_extension_owner()?;
    link::in_session(|| lease::claim(name))?;
    wake_keeper();
    Ok(())
}

/// Empties a shard: nothing is placed on it any more, and every slot that is there moves to the shard that has most
/// room for it. Returns how many moves were filed. With `draining` false the shard takes data again.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn drain_shard(shard: Option<&str>, draining: default!(Option<bool>, "true")) -> PgResult<i64> {
    let (Some(shard), Some(draining)) = (shard, draining) else {
        return Err(bad_argument("shard and draining must not be NULL"));
    };
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    drain::mark(shard, draining)?;
    record_event("drain_shard", None, None, json!({"shard": shard, "draining": draining}))?;
    if !draining {
        return Ok(0);
    }
    let map = drain::plan(shard)?;
    if let Some(rest) = drain::rest(shard)? {
        notice(&format!(
            "not everything leaves shard \"{shard}\" now: {rest}; call drain_shard again afterwards"
        ));
    }
    if map.is_empty() {
        return Ok(0);
    }
    shmem::require_preloaded()?;
    let (_, filed) = crate::catalog::moves::file_map(&map, None, &user)?;
    wake_keeper();
    Ok(filed.len() as i64)
}

/// Forgets a shard that holds nothing and that no move knows.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn drop_shard(shard: Option<&str>) -> PgResult<()> {
    let Some(shard) = shard else { return Err(bad_argument("shard must not be NULL")) };
    let _owner = security::as_extension_owner()?;
    drain::remove(shard)?;
    record_event("drop_shard", None, None, json!({"shard": shard}))
}
