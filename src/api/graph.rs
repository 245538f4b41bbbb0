//! Graphs: made, dropped, checked, made right.

use crate::catalog::graph::create::{self, Plan};
use crate::catalog::graph::{self as catalog, Graph};
use crate::catalog::relation::column;
use crate::catalog::{colocation, data_source, name_of, record_event};
use crate::graph::component::hold_all;
use crate::graph::input::Statements;
use crate::graph::{build, diff, far};
use crate::mover::short_lock;
use crate::pg::graph::fresh_snapshot;
use crate::pg::graph::keys::KeyKind;
use crate::pg::report::{PgResult, bad_argument, error, unsupported};
use crate::pg::types::Regclass;
use crate::pg::{guc, lock, security, spi, transaction};
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;
use std::rc::Rc;

/// Longest name of a graph, bytes: names of its objects are made of it.
const MAX_NAME: usize = 39;
/// Most differences that check_graph() tells.
const MAX_DIFFERENCES: usize = 10_000;

/// Makes a graph of a table of edges and keeps its closure exact from now on. In one READ COMMITTED transaction, while
/// others read and write; writers of the table wait at its end, until it commits. Returns the rows of the closure.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments, reason = "the arguments of the SQL function")]
fn create_graph(
    graph_name: Option<&str>,
    edges: Option<Regclass>,
    source: Option<&str>,
    target: Option<&str>,
    nodes: default!(Option<Regclass>, "NULL"),
    node_key: default!(Option<&str>, "NULL"),
    node_type: default!(Option<&str>, "NULL"),
    weight: default!(Option<&str>, "NULL"),
    max_depth: default!(Option<i32>, "NULL"),
) -> PgResult<i64> {
    let (Some(name), Some(edges), Some(source), Some(target)) = (graph_name, edges, source, target) else {
        return Err(bad_argument("name, edges, source and target must not be NULL"));
    };
    check_new(name, max_depth)?;
    keep_definitions([Some(edges.0), nodes.as_ref().map(|nodes| nodes.0)])?;
    if nodes.is_some() != node_key.is_some() || (nodes.is_none() && node_type.is_some()) {
        return Err(bad_argument("nodes and node_key must be given together")
            .set_hint("node_type names a column of the table of nodes."));
    }
    let ends = edge_columns(edges.0, source, target)?;
    if let Some(weight) = weight {
        require_column(edges.0, weight)?;
    }
    let mut key = None;
    if let (Some(nodes), Some(name)) = (&nodes, node_key) {
        require_own_table(nodes.0)?;
        if security::relation_owner(nodes.0)? != security::relation_owner(edges.0)? {
            return Err(bad_argument("the tables of edges and of nodes must have the same owner"));
        }
        let (own, type_) = require_column(nodes.0, name)?;
        require_same_key(nodes.0, own, type_, ends.kind, ends.collation)?;
        if let Some(node_type) = node_type {
            require_column(nodes.0, node_type)?;
        }
        key = Some(own);
    }
    let nodes = nodes.map(|nodes| nodes.0);
    let plan = Plan { weight, nodes, node_key: key, node_type, max_depth, ..ends.plan(name, edges.0) };
    make(&plan, true, "create_graph")
}

/// Makes a graph of a closure table that somebody keeps already: its rows of depth 1 are the edges, those of depth 0
/// nodes, and all others are no longer needed. The table stays as it is. Unless `verify` is false it must be right.
/// Otherwise as `create_graph`.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn adopt_closure(
    graph_name: Option<&str>,
    closure: Option<Regclass>,
    ancestor: default!(Option<&str>, "'ancestor'"),
    descendant: default!(Option<&str>, "'descendant'"),
    depth: default!(Option<&str>, "'depth'"),
    max_depth: default!(Option<i32>, "NULL"),
    verify: default!(Option<bool>, "true"),
) -> PgResult<i64> {
    let (Some(name), Some(closure), Some(ancestor), Some(descendant), Some(depth)) =
        (graph_name, closure, ancestor, descendant, depth)
    else {
        return Err(bad_argument("name, closure, ancestor, descendant and depth must not be NULL"));
    };
    check_new(name, max_depth)?;
    let table = closure.0;
    keep_definitions([Some(table), None])?;
    let ends = edge_columns(table, ancestor, descendant)?;
    let (depth, type_) = require_column(table, depth)?;
    if ![pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID].contains(&type_) {
        return Err(error(
            PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
            format!("column \"{}\" of table {} is not an integer", depth.0, name_of(table)?),
        ));
    }
    let (nodes, node_key) = (Some(table), Some(ends.source));
    let plan = Plan { nodes, node_key, depth: Some(depth), max_depth, ..ends.plan(name, table) };
    make(&plan, verify.unwrap_or(true), "adopt_closure")
}

/// Lets nobody alter the tables, which must belong to the current user, from now on.
fn keep_definitions(tables: [Option<pg_sys::Oid>; 2]) -> PgResult<()> {
    let mut tables: Vec<pg_sys::Oid> = tables.into_iter().flatten().collect();
    for table in &tables {
        security::require_owner(*table, &name_of(*table)?)?;
    }
    tables.sort_unstable_by_key(|table| table.to_u32());
    tables.dedup();
    lock::lock_all(&tables, lock::SHARE_UPDATE_EXCLUSIVE);
    Ok(())
}

fn check_new(name: &str, max_depth: Option<i32>) -> PgResult<()> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(bad_argument(format!("the name of a graph must have 1 to {MAX_NAME} bytes")));
    }
    if max_depth.is_some_and(|depth| depth < 1) {
        return Err(bad_argument("max_depth must be at least 1"));
    }
    require_read_committed()
}

/// Edges are read again under the lock, and then everything that committed before must be seen.
fn require_read_committed() -> PgResult<()> {
    transaction::require_read_committed(
        "a graph can be made only in a transaction of isolation level READ COMMITTED",
    )
}

/// The ends of a table's edges.
struct Ends<'a> {
    source: (&'a str, i16),
    target: (&'a str, i16),
    kind: KeyKind,
    collation: pg_sys::Oid,
}

impl<'a> Ends<'a> {
    /// A graph of nothing but these edges.
    fn plan(&self, name: &'a str, edges: pg_sys::Oid) -> Plan<'a> {
        let Ends { source, target, kind, collation } = *self;
        Plan {
            name,
            edges,
            source,
            target,
            weight: None,
            nodes: None,
            node_key: None,
            node_type: None,
            depth: None,
            kind,
            collation,
            max_depth: None,
        }
    }
}

fn edge_columns<'a>(table: pg_sys::Oid, source: &'a str, target: &'a str) -> PgResult<Ends<'a>> {
    require_own_table(table)?;
    let (source, source_type) = require_column(table, source)?;
    let (target, target_type) = require_column(table, target)?;
    let (kind, collation) = key_kind(table, source, source_type)?;
    require_same_key(table, target, target_type, kind, collation)?;
    Ok(Ends { source, target, kind, collation })
}

/// Keeps writers out of tables until the end of the transaction; nobody queues behind us while we wait.
fn keep_writers_out(tables: &[pg_sys::Oid]) -> PgResult<()> {
    let lock_timeout = short_lock::lock_in_session(tables, lock::SHARE_ROW_EXCLUSIVE, &[])?;
    spi::set_local("lock_timeout", &lock_timeout)
}

fn make(plan: &Plan<'_>, verify: bool, what: &str) -> PgResult<i64> {
    {
        let _owner = security::as_extension_owner()?;
        data_source::keep_as_they_are(false)?;
    }
    {
        // Sources of that name are trusted like the graph; the statement's snapshot may be older than the lock.
        let _fresh = fresh_snapshot();
        data_source::require_all_own(plan.name)?;
    }
    let shards = {
        let _owner = security::as_extension_owner()?;
        if catalog::exists(plan.name)? {
            return Err(error(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("graph \"{}\" already exists", plan.name),
            ));
        }
        colocation::shards_named(None)?
    };
    let statements = Statements::of_plan(plan)?;
    let made = build::create(plan, &statements, &shards, verify, keep_writers_out)?;
    let _owner = security::as_extension_owner()?;
    let detail = json!({
        "graph": plan.name, "edges": name_of(plan.edges)?, "rows": made.rows, "caught_up": made.caught_up, "held_ms": made.held_ms,
    });
    record_event(what, None, None, detail)?;
    Ok(made.rows as i64)
}

/// Drops a graph: its closure, directory, functions and triggers. The edges stay as they are.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn drop_graph(graph_name: &str) -> PgResult<()> {
    let _owner = {
        let as_owner = security::as_extension_owner()?;
        let id = catalog::id_of(graph_name)?;
        let tables = catalog::tables_left(id)?;
        drop(as_owner);
        // The edges' owner may always; when the table is gone, the closure's.
        if let Some(table) = tables.first() {
            security::require_owner(*table, &name_of(*table)?)?;
        }
        if tables.is_empty() && !security::is_superuser() {
            return Err(error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be superuser to drop what is left of graph \"{graph_name}\""),
            ));
        }
        let as_owner = security::as_extension_owner()?;
        create::drop_all(id)?;
        as_owner
    };
    record_event("drop_graph", None, None, json!({"graph": graph_name}))
}

/// Drops what is left of graphs whose edge table is gone; called when a table was dropped.
///
/// # Errors
/// 2BP01 when the table of nodes is gone and the one of edges is not.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn drop_lost_graphs() -> PgResult<()> {
    let _owner = security::as_extension_owner()?;
    for graph_id in catalog::without_edges()? {
        create::drop_all(graph_id)?;
    }
    match catalog::without_nodes()? {
        None => Ok(()),
        Some(name) => Err(error(
            PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("cannot drop the table of nodes of graph \"{name}\""),
        )
        .set_hint("Drop the graph first: SELECT foreshard.drop_graph(...).")),
    }
}

/// Makes a graph's closure, directory and components right, whatever is wrong with them; writers of its tables
/// wait, readers do not. Returns how many rows of the closure were wrong.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn rebuild_graph(graph_name: &str) -> PgResult<i64> {
    require_read_committed()?;
    let id = own_graph_id(graph_name)?;
    let graph = catalog::by_id(id)?;
    let mut tables: Vec<pg_sys::Oid> =
        std::iter::once(graph.edges).chain(graph.nodes.as_ref().map(|nodes| nodes.table)).collect();
    tables.sort_unstable_by_key(|table| table.to_u32());
    tables.dedup();
    keep_writers_out(&tables)?;
    let graph = catalog::again(id)?;
    let rows = {
        let _owner = security::as_restricted_owner(graph.owner);
        spi::set_local("row_security", "off")?;
        let held = hold_all(&graph)?;
        // Its parts may have changed while we waited.
        let graph = catalog::again(id)?;
        far::join(&graph, &held, None)?;
        let _fresh = fresh_snapshot();
        diff::rebuild(&graph, guc::GRAPH_MAX_ROWS.get().max(1) as u64)?
    };
    let _owner = security::as_extension_owner()?;
    record_event("rebuild_graph", None, None, json!({"graph": graph_name, "rows": rows}))?;
    Ok(rows as i64)
}

/// Compares a graph's closure with what it should be, computed from all edges as they are now: a row per
/// difference (at most 10,000), none when it is right.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "the columns of the result")]
fn check_graph(
    graph_name: &str,
) -> Result<
    TableIterator<
        'static,
        (
            name!(ancestor, String),
            name!(descendant, String),
            name!(stored_depth, Option<i32>),
            name!(correct_depth, Option<i32>),
            name!(problem, String),
        ),
    >,
    pg_sys::panic::ErrorReport,
> {
    let graph = own_graph(graph_name)?;
    let found = {
        let _owner = security::as_restricted_owner(graph.owner);
        spi::set_local("row_security", "off")?;
        let _fresh = fresh_snapshot();
        diff::check(&graph, MAX_DIFFERENCES)?
    };
    let depth = |depth: Option<u32>| depth.map(|depth| depth as i32);
    Ok(TableIterator::new(found.into_iter().map(move |row| {
        (row.ancestor, row.descendant, depth(row.stored), depth(row.right), row.problem.to_owned())
    })))
}

/// A graph whose edge table belongs to the current user.
fn own_graph(name: &str) -> PgResult<Rc<Graph>> {
    catalog::by_id(own_graph_id(name)?)
}

/// Its id.
pub(super) fn own_graph_id(name: &str) -> PgResult<i32> {
    let as_owner = security::as_extension_owner()?;
    let id = catalog::id_of(name)?;
    drop(as_owner);
    let graph = catalog::by_id(id)?;
    security::require_owner(graph.edges, &name_of(graph.edges)?)?;
    Ok(id)
}

/// An ordinary, permanent table of the current user's, without partitions and children.
fn require_own_table(table: pg_sys::Oid) -> PgResult<()> {
    let name = name_of(table)?;
    security::require_owner(table, &name)?;
    let _owner = security::as_extension_owner()?;
    match catalog::unfit(table)? {
        None => Ok(()),
        Some(why) => Err(unsupported(format!("table {name} cannot be part of a graph")).set_detail(why)),
    }
}

/// A column's name and number, and its type.
fn require_column(table: pg_sys::Oid, name: &str) -> PgResult<((&str, i16), pg_sys::Oid)> {
    match column(table, name)? {
        Some((number, type_)) => Ok(((name, number), type_)),
        None => Err(error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            format!("column \"{name}\" of table {} does not exist", name_of(table)?),
        )),
    }
}

fn key_kind(table: pg_sys::Oid, column: (&str, i16), type_: pg_sys::Oid) -> PgResult<(KeyKind, pg_sys::Oid)> {
    let Some(kind) = KeyKind::of(type_) else {
        return Err(unsupported(format!("column \"{}\" cannot be the key of a graph's nodes", column.0))
            .set_detail("Keys are of type integer, bigint, uuid, text or varchar."));
    };
    let (collation, deterministic) = catalog::collation(table, column.1)?;
    if !deterministic {
        return Err(unsupported(format!("column \"{}\" cannot be the key of a graph's nodes", column.0))
            .set_detail("Its collation is not deterministic."));
    }
    Ok((kind, collation))
}

fn require_same_key(
    table: pg_sys::Oid,
    column: (&str, i16),
    type_: pg_sys::Oid,
    kind: KeyKind,
    collation: pg_sys::Oid,
) -> PgResult<()> {
    if key_kind(table, column, type_)? == (kind, collation) {
        return Ok(());
    }
    Err(error(
        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
        format!(
            "column \"{}\" of table {} differs in type or collation from the source column",
            column.0,
            name_of(table)?
        ),
    ))
}
