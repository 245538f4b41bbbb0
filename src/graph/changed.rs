//! What the triggers do: after every statement the closure is that of the edges.

use super::component::{Touched, hold};
use super::reader::Reader;
use super::{diff, far, write};
use crate::catalog::graph::{self, EDGE_DEPTH, Graph, NODE_DEPTH, node};
use crate::pg::graph::call::{Call, Event};
use crate::pg::graph::fresh_snapshot;
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::tally::{self, Done};
use crate::pg::report::{PgResult, error};
use crate::pg::{guc, lock, security};
use foreshard_core::graph::maintain::{MaintainError, MaintainOptions, RowChange, maintain};
use pgrx::pg_sys;
use pgrx::prelude::PgSqlErrorCode;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Called by the triggers of all graphs.
///
/// # Errors
/// 39P01 for a trigger that is not one of a graph; 40001 and what else the server says; 53400 when a statement
/// takes more work than `foreshard.graph_max_work`.
pub fn statement(call: &Call) -> PgResult<()> {
    let (id, role) = match call.arguments.as_slice() {
        [id, role] => (id.parse::<i32>().ok(), role.as_str()),
        _ => (None, ""),
    };
    let Some(id) = id else { return Err(not_ours()) };
    let graph = graph::by_id(id)?;
    let own = match role {
        "edges" => Some(graph.edges),
        "nodes" => graph.nodes.as_ref().map(|nodes| nodes.table),
        _ => None,
    };
    if own != Some(call.table) {
        return Err(not_ours());
    }
    if call.is_before {
        tally::open(id);
        return Ok(());
    }
    let _path = security::pinned_search_path();
    let _owner = security::as_restricted_owner(graph.owner);
    // Before any component, as TRUNCATE has it: whoever holds one waits for no table.
    let tables: Vec<pg_sys::Oid> =
        [Some(graph.edges), graph.nodes.as_ref().map(|nodes| nodes.table)].into_iter().flatten().collect();
    lock::lock_all(&tables, lock::ACCESS_SHARE);
    if call.event == Event::Truncate {
        return truncated(&graph);
    }
    let done = if role == "edges" { edges(&graph, call)? } else { nodes(&graph, call)? };
    match tally::close(id, done) {
        Some(done) => keep(&graph, id, done),
        None => Ok(()),
    }
}

fn not_ours() -> pgrx::pg_sys::panic::ErrorReport {
    error(
        PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
        "foreshard.graph_changed() can only be called by a trigger that create_graph() made",
    )
}

/// Edges that a part of a query added or took, how many more or fewer of each pair.
///
/// # Errors
/// 53400 when they are more pairs than steps are allowed.
fn edges(graph: &Graph, call: &Call) -> PgResult<Vec<Done>> {
    let most = guc::GRAPH_MAX_WORK.get().max(1) as usize;
    let which = graph.depth.as_ref().map(|depth| (depth.number, EDGE_DEPTH));
    let mut counts: HashMap<Vec<NodeKey>, i64> = HashMap::new();
    call.changes(&[graph.source, graph.target], &[], graph.kind, which, |ends, sign| {
        *counts.entry(ends).or_default() += sign;
        match counts.len() <= most {
            true => Ok(()),
            false => Err(too_much_work(graph, most as u64)),
        }
    })?;
    let ends = |(ends, count): (Vec<NodeKey>, i64)| {
        let mut ends = ends.into_iter();
        Some(Done::Edges(ends.next()?, ends.next()?, count))
    };
    Ok(counts.into_iter().filter(|(_, count)| *count != 0).filter_map(ends).collect())
}

/// Nodes that a part of a query added to the table of nodes, took from it, or changed there.
///
/// # Errors
/// 53400 when they are more than steps are allowed.
fn nodes(graph: &Graph, call: &Call) -> PgResult<Vec<Done>> {
    let Some(table) = &graph.nodes else { return Ok(Vec::new()) };
    let most = guc::GRAPH_MAX_WORK.get().max(1) as usize;
    let which = graph.depth.as_ref().map(|depth| (depth.number, NODE_DEPTH));
    let mut found: HashSet<NodeKey> = HashSet::new();
    call.changes(&[table.key], table.type_column.as_slice(), graph.kind, which, |key, _| {
        found.extend(key);
        match found.len() <= most {
            true => Ok(()),
            false => Err(too_much_work(graph, most as u64)),
        }
    })?;
    Ok(found.into_iter().map(Done::Node).collect())
}

/// Makes the closure what it should be around whatever a query changed.
fn keep(graph: &Graph, id: i32, done: Vec<Done>) -> PgResult<()> {
    let mut counts: BTreeMap<(NodeKey, NodeKey), i64> = BTreeMap::new();
    let mut listed: BTreeSet<NodeKey> = BTreeSet::new();
    for done in done {
        match done {
            Done::Edges(source, target, count) => *counts.entry((source, target)).or_default() += count,
            Done::Node(key) => {
                listed.insert(key);
            }
        }
    }
    let mut touched = Touched::default();
    let number = |touched: &mut Touched, key: &NodeKey| {
        touched.keys.number(key).map_err(|problem| super::input::too_large(&problem))
    };
    for ((source, target), count) in &counts {
        if *count != 0 {
            let pair = (number(&mut touched, source)?, number(&mut touched, target)?);
            touched.pairs.push(pair);
        }
    }
    for key in &listed {
        number(&mut touched, key)?;
    }
    repair(graph, id, touched, guc::GRAPH_MAX_WORK.get().max(1) as u64)?;
    let listed: Vec<NodeKey> = listed.into_iter().collect();
    if listed.is_empty() { Ok(()) } else { node::refresh_types(graph, &listed) }
}

/// Makes the closure what it should be around the touched nodes.
///
/// # Errors
/// 53400 when that takes more than `most` steps.
pub(super) fn repair(graph: &Graph, id: i32, touched: Touched, most: u64) -> PgResult<()> {
    if touched.keys.is_empty() {
        return Ok(());
    }
    let held = hold(graph, &touched)?;
    // Whom we waited for may have given the closure another part.
    let graph = &*graph::again(id)?;
    let far = far::join(graph, &held.components, None)?;
    let _fresh = fresh_snapshot();
    if far.is_suspect {
        return diff::repair(graph, &held.components, &far.shards, most.max(max_rows()));
    }
    let count = touched.keys.len();
    let mut reader = Reader::new(graph, touched.keys, &held.shards, &far.shards)?;
    let options = MaintainOptions { max_depth: graph.max_depth, max_work: patience(graph, most) };
    match maintain(&mut reader, &touched.pairs, &options) {
        Ok(mut changes) => {
            own_rows(&mut reader, count, &mut changes)?;
            write::apply(graph, &mut reader, &changes)
        }
        Err(MaintainError::Reader(report)) => Err(report),
        Err(MaintainError::TooMuchWork { .. }) => {
            drop(reader);
            diff::repair(graph, &held.components, &far.shards, most)
        }
    }
}

/// The rows that a closure may have at most.
pub(super) fn max_rows() -> u64 {
    guc::GRAPH_MAX_ROWS.get().max(1) as u64
}

/// So many steps are always tried.
const LEAST_STEPS: u64 = 200_000;

/// How many steps are tried before everything is compared: about what that takes, unless it might be more than `most`.
fn patience(graph: &Graph, most: u64) -> u64 {
    let rows = graph.parts.iter().map(|part| part.rows).sum::<f64>() as u64;
    if rows == 0 || rows.saturating_mul(2) > most { most } else { rows.max(LEAST_STEPS).min(most) }
}

/// The rows of touched nodes with themselves come and go with the nodes.
fn own_rows(reader: &mut Reader<'_>, touched: u32, changes: &mut Vec<RowChange>) -> PgResult<()> {
    for node in 0..touched {
        let there = reader.stored(node, node)?;
        let alive = reader.is_alive(node)?;
        if alive != there.is_some() {
            let after = alive.then_some(0);
            changes.push(RowChange { ancestor: node, descendant: node, before: there, after });
        }
    }
    Ok(())
}

/// After TRUNCATE of edges or nodes: whatever is left is compared. Nobody else writes the truncated table, but
/// others may write the other one, so all components are held.
fn truncated(graph: &Graph) -> PgResult<()> {
    let held = super::component::hold_all(graph)?;
    // Its parts may have changed while we waited.
    let graph = &*graph::again(graph.id)?;
    let far = far::join(graph, &held, None)?;
    let _fresh = fresh_snapshot();
    diff::repair(graph, &held, &far.shards, u64::MAX)?;
    node::refresh_all_types(graph)
}

/// 53400: a statement is too much for its bound.
pub(super) fn too_much_work(graph: &Graph, most: u64) -> pgrx::pg_sys::panic::ErrorReport {
    error(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("keeping graph \"{}\" takes more than {most} steps for this statement", graph.name),
    )
    .set_detail(
        "Steps are rows of the closure and edges that are looked at; the limit is foreshard.graph_max_work.",
    )
    .set_hint("Change fewer edges at once, or raise foreshard.graph_max_work for this transaction.")
}
