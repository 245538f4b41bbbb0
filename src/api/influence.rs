//! Influence, placement and moves of graph nodes.

use super::graph::own_graph_id;
use crate::catalog::graph::{self as catalog, influence as stored, moving as queue};
use crate::catalog::{colocation, name_of, record_event, relation};
use crate::graph::moving::{self, Outcome};
use crate::graph::{Writer, influence, place};
use crate::mover::short_lock;
use crate::pg::report::{PgResult, bad_argument, error, unknown};
use crate::pg::types::JsonText;
use crate::pg::{lock, security, shmem, spi};
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde_json::{Map, Value, json};

/// Most nodes of one note_access().
const MAX_NOTED: usize = 1_000;

/// Computes PageRank and betweenness of a graph's nodes now and writes them to its metagraph. Betweenness is exact for
/// small graphs, else sampled: off by at most `epsilon` with probability 0.9.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "the columns of the result")]
fn refresh_influence(
    graph_name: &str,
    epsilon: default!(f64, 0.01),
) -> Result<
    TableIterator<
        'static,
        (
            name!(nodes, i64),
            name!(iterations, i32),
            name!(converged, bool),
            name!(betweenness, String),
            name!(samples, i64),
            name!(error_bound, f64),
        ),
    >,
    pg_sys::panic::ErrorReport,
> {
    if !(epsilon > 0.0 && epsilon < 1.0) {
        return Err(bad_argument("epsilon must be between 0 and 1"));
    }
    let id = own_graph_id(graph_name)?;
    let graph = catalog::by_id(id)?;
    let scores = influence::compute(&graph, epsilon)?;
    let mut batch = 0;
    while influence::write(&graph, &scores, batch)?.is_some() {
        batch += 1;
    }
    let _owner = security::as_extension_owner()?;
    influence::note(id, &scores)?;
    let done = scores.done;
    Ok(TableIterator::once((
        done.nodes,
        done.iterations,
        done.converged,
        done.method.to_owned(),
        done.samples,
        done.error_bound,
    )))
}

/// The texts of an array; 22023 if one is NULL.
fn names_of(texts: Vec<Option<String>>, what: &str) -> PgResult<Vec<String>> {
    let texts: Option<Vec<String>> = texts.into_iter().collect();
    texts.ok_or_else(|| bad_argument(format!("{what} must not hold NULL")))
}

/// Lets nodes of a type live only on these shards; NULL: on all. Nodes that live elsewhere move with the next plan.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn allow_type(
    graph_name: Option<&str>,
    node_type: Option<&str>,
    shards: Option<Vec<Option<String>>>,
) -> PgResult<()> {
    let (Some(graph_name), Some(node_type)) = (graph_name, node_type) else {
        return Err(bad_argument("graph_name and node_type must not be NULL"));
    };
    let shards = shards.map(|shards| names_of(shards, "shards")).transpose()?;
    let id = own_graph_id(graph_name)?;
    let _owner = security::as_extension_owner()?;
    let all = colocation::shards()?;
    let mut ids = Vec::new();
    for name in shards.iter().flatten() {
        let shard = all.iter().find(|shard| &shard.name == name);
        ids.push(shard.ok_or_else(|| unknown(format!("shard \"{name}\" does not exist")))?.shard_id);
    }
    if shards.is_some() && ids.is_empty() {
        return Err(bad_argument("a type must be allowed on at least one shard"));
    }
    stored::allow(id, node_type, &ids)?;
    record_event("allow_type", None, None, json!({"graph": graph_name, "type": node_type, "shards": shards}))
}

/// Plans where a graph's nodes should live and shows what that changes; changes nothing. The map is one for
/// move_nodes().
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "the columns of the result")]
fn graph_plan(
    graph_name: &str,
) -> Result<
    TableIterator<
        'static,
        (
            name!(moves, i64),
            name!(cross_shard_ratio_before, f64),
            name!(cross_shard_ratio_after, f64),
            name!(imbalance_before, f64),
            name!(imbalance_after, f64),
            name!(shard_assignment_map, JsonB),
        ),
    >,
    pg_sys::panic::ErrorReport,
> {
    let plan = place::plan(own_graph_id(graph_name)?)?;
    let moves = plan.moves.len() as i64;
    let map: Map<String, Value> =
        plan.moves.into_iter().map(|(node, shard)| (node, Value::String(shard))).collect();
    Ok(TableIterator::once((
        moves,
        plan.cross_shard.0,
        plan.cross_shard.1,
        plan.imbalance.0,
        plan.imbalance.1,
        JsonB(Value::Object(map)),
    )))
}

/// Plans where a graph's nodes should live and files the moves; returns how many.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn place_graph(graph_name: &str) -> PgResult<i64> {
    shmem::require_preloaded()?;
    let id = own_graph_id(graph_name)?;
    let plan = place::plan(id)?;
    let filed = moving::file(id, &plan.moves, &security::current_user()?)?;
    let _owner = security::as_extension_owner()?;
    record_event(
        "place_graph",
        None,
        None,
        json!({
            "graph": graph_name,
            "moves": filed,
            "cross_shard_ratio_before": plan.cross_shard.0,
            "cross_shard_ratio_after": plan.cross_shard.1,
        }),
    )?;
    Ok(filed as i64)
}

/// Moves one node to a shard, in this transaction; changes of edges around it wait for its end. With `version`,
/// only if the node is that version. Returns the node's new version.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn move_node(
    graph_name: Option<&str>,
    node: Option<&str>,
    shard: Option<&str>,
    version: default!(Option<i64>, "NULL"),
) -> PgResult<i64> {
    let (Some(graph_name), Some(node), Some(shard)) = (graph_name, node, shard) else {
        return Err(bad_argument("graph_name, node and shard must not be NULL"));
    };
    let id = own_graph_id(graph_name)?;
    let as_owner = security::as_extension_owner()?;
    let known = colocation::shards()?.into_iter().find(|known| known.name == shard);
    let to = known.ok_or_else(|| unknown(format!("shard \"{shard}\" does not exist")))?.shard_id;
    if !catalog::has_part(id, to)? {
        if catalog::far_part::is_on_node(to)? {
            return Err(catalog::create::not_yet(graph_name));
        }
        // Whoever has planned already would not look there, but see that the node has left.
        let closure: Vec<pg_sys::Oid> = catalog::closure_of(id)?.into_iter().collect();
        let lock_timeout = short_lock::lock_in_session(&closure, lock::ACCESS_EXCLUSIVE, &[])?;
        spi::set_local("lock_timeout", &lock_timeout)?;
    }
    let graph = moving::with_parts(id, &[to])?;
    let allowed = moving::allowed(id)?;
    drop(as_owner);
    match moving::move_one(&graph, &mut Writer::new(&graph), &allowed, node, to, version)? {
        Outcome::Moved(version, _) | Outcome::There(version) => Ok(version),
        Outcome::Refused(why) => Err(why),
    }
}

/// Files moves of nodes, `{"<node>": "<shard>"}`, which a worker makes in bounded transactions; returns how many
/// (nodes that are there already do not count).
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn move_nodes(graph_name: &str, shard_assignment_map: JsonText) -> PgResult<i64> {
    shmem::require_preloaded()?;
    let id = own_graph_id(graph_name)?;
    let wrong = || {
        bad_argument("shard_assignment_map must be an object whose values are names of shards")
            .set_hint("The map has the form {\"<node>\": \"<shard>\"}.")
    };
    let Value::Object(map) = shard_assignment_map.parse()? else { return Err(wrong()) };
    let mut moves = Vec::with_capacity(map.len());
    for (node, shard) in map {
        let Value::String(shard) = shard else { return Err(wrong()) };
        moves.push((node, shard));
    }
    Ok(moving::file(id, &moves, &security::current_user()?)? as i64)
}

/// Forgets moves of a graph's nodes that are still waiting; returns how many.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn cancel_node_moves(graph_name: &str) -> PgResult<i64> {
    let id = own_graph_id(graph_name)?;
    let _owner = security::as_extension_owner()?;
    Ok(queue::cancel(id)? as i64)
}

/// Tells that these nodes were used together, by a query say; returns how many shards they are on.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn note_access(graph_name: &str, nodes: Vec<Option<String>>) -> PgResult<i32> {
    let nodes = names_of(nodes, "nodes")?;
    if nodes.len() > MAX_NOTED {
        return Err(bad_argument(format!("at most {MAX_NOTED} nodes can be noted at once")));
    }
    let as_owner = security::as_extension_owner()?;
    let id = catalog::id_of(graph_name)?;
    drop(as_owner);
    let graph = catalog::by_id(id)?;
    let name = name_of(graph.edges)?;
    security::require_select(graph.edges, &name)?;
    // Whoever does not see all edges must not learn here which nodes there are.
    if relation::is_row_security_active(graph.edges)? {
        let message = format!("row-level security of table {name} applies to the current user");
        return Err(error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message));
    }
    place::note_access(id, &nodes)
}
