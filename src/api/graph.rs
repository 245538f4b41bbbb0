//! Graphs: made, dropped, checked, made right.

use crate::catalog::graph::create::{self, Plan};
use crate::catalog::graph::{self as catalog, Graph};
use crate::catalog::relation::column;
use crate::catalog::{colocation, name_of, record_event};
use crate::graph::input::Statements;
use crate::graph::{build, diff};
use crate::pg::graph::fresh_snapshot;
use crate::pg::graph::keys::KeyKind;
use crate::pg::report::{PgResult, bad_argument, error, unsupported};
use crate::pg::types::Regclass;
use crate::pg::{guc, lock, security, spi};
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;
use std::rc::Rc;

/// Longest name of a graph, bytes: names of its objects are made of it.
const MAX_NAME: usize = 39;
/// Most differences that check_graph() tells.
const MAX_DIFFERENCES: usize = 10_000;

/// Makes a graph of a table of edges and keeps its closure exact from now on. In one transaction; writers of the
/// table wait. Returns the rows of the closure.
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
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(bad_argument(format!("the name of a graph must have 1 to {MAX_NAME} bytes")));
    }
    if max_depth.is_some_and(|depth| depth < 1) {
        return Err(bad_argument("max_depth must be at least 1"));
    }
    if nodes.is_some() != node_key.is_some() || (nodes.is_none() && node_type.is_some()) {
        return Err(bad_argument("nodes and node_key must be given together")
            .set_hint("node_type names a column of the table of nodes."));
    }
    let edges = edges.0;
    require_own_table(edges)?;
    let (source, source_type) = require_column(edges, source)?;
    let (target, target_type) = require_column(edges, target)?;
    let (kind, collation) = key_kind(edges, source, source_type)?;
    require_same_key(edges, target, target_type, kind, collation)?;
    if let Some(weight) = weight {
        require_column(edges, weight)?;
    }
    let mut key = None;
    if let (Some(nodes), Some(name)) = (&nodes, node_key) {
        require_own_table(nodes.0)?;
        let (own, type_) = require_column(nodes.0, name)?;
        require_same_key(nodes.0, own, type_, kind, collation)?;
        if let Some(node_type) = node_type {
            require_column(nodes.0, node_type)?;
        }
        key = Some(own);
    }
    let plan = Plan {
        name,
        edges,
        source,
        target,
        weight,
        nodes: nodes.map(|nodes| nodes.0),
        node_key: key,
        node_type,
        kind,
        collation,
        max_depth,
    };
    let shards = {
        let _owner = security::as_extension_owner()?;
        if catalog::exists(name)? {
            return Err(error(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("graph \"{name}\" already exists"),
            ));
        }
        colocation::shards_named(None)?
    };
    let statements = Statements::of_plan(&plan)?;
    let rows = build::create(&plan, &statements, &shards)?;
    let _owner = security::as_extension_owner()?;
    record_event("create_graph", None, None, json!({"graph": name, "edges": name_of(edges)?, "rows": rows}))?;
    Ok(rows as i64)
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
        for table in &tables {
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

/// Makes a graph's closure, directory and components right, whatever is wrong with them; writers of its tables
/// wait, readers do not. Returns how many rows of the closure were wrong.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn rebuild_graph(graph_name: &str) -> PgResult<i64> {
    let graph = own_graph(graph_name)?;
    let mut tables: Vec<pg_sys::Oid> =
        std::iter::once(graph.edges).chain(graph.nodes.as_ref().map(|nodes| nodes.table)).collect();
    tables.sort_unstable_by_key(|table| table.to_u32());
    tables.dedup();
    lock::lock_all(&tables, lock::SHARE_ROW_EXCLUSIVE);
    let rows = {
        let _owner = security::as_restricted_owner(graph.owner);
        spi::set_local("row_security", "off")?;
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
