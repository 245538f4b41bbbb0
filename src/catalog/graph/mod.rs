//! Graphs as the catalog knows them: which tables, columns and indexes.

pub mod create;
pub mod far;
pub mod far_part;
pub mod functions;
mod index;
pub mod influence;
pub mod moving;
pub mod node;

pub use index::{KeyIndex, at_depth, find_index};
use index::{condition, need_index, primary_key};

use super::relation::column;
use crate::pg::graph::keys::KeyKind;
use crate::pg::graph::{latest_snapshot, read};
use crate::pg::invalidation;
use crate::pg::local::LocalBox;
use crate::pg::report::{PgResult, error, unknown, unsupported, wrong_state};
use crate::pg::{lock, security, spi};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::PgSqlErrorCode;
use pgrx::spi::quote_identifier;
use std::collections::HashMap;
use std::rc::Rc;

/// Depth of the rows of an adopted closure table that are edges.
pub const EDGE_DEPTH: i64 = 1;
/// Depth of those that are nodes.
pub const NODE_DEPTH: i64 = 0;

/// The column of an adopted closure table that says how many edges a path has.
#[derive(Clone, Debug)]
pub struct DepthColumn {
    /// Its number.
    pub number: i16,
    /// Its name, quoted.
    pub name: String,
}

/// The table of a graph's nodes.
#[derive(Clone, Debug)]
pub struct NodeTable {
    /// The table.
    pub table: pg_sys::Oid,
    /// Number of the key's column.
    pub key: i16,
    /// Its name, quoted.
    pub key_name: String,
    /// Number of the type's column.
    pub type_column: Option<i16>,
    /// Its name, quoted.
    pub type_name: Option<String>,
    /// An index that leads to a key.
    pub index: pg_sys::Oid,
    /// The table's name, qualified and quoted.
    pub name: String,
    /// Which of its rows are nodes; None: all of them.
    pub which: Option<String>,
}

/// A part of a closure.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The shard whose ancestors' rows are in it.
    pub shard_id: i32,
    /// The table.
    pub table: pg_sys::Oid,
    /// Its unique index on (ancestor, descendant).
    pub pairs: pg_sys::Oid,
    /// Its index that leads from descendants to ancestors and depths.
    pub reverse: pg_sys::Oid,
    /// Capacity of the shard, 0 while it is being emptied.
    pub capacity: f64,
    /// How many nodes are thought to live there, 0 when nobody has counted.
    pub nodes: f64,
    /// How many rows it is thought to have, likewise.
    pub rows: f64,
    /// Number of its table on a node, which has the indexes; None: it is on this server.
    pub remote: Option<i64>,
}

/// A graph.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Number.
    pub id: i32,
    /// Name.
    pub name: String,
    /// Whom the graph's tables belong to.
    pub owner: pg_sys::Oid,
    /// What keys are.
    pub kind: KeyKind,
    /// The largest depth that is kept.
    pub max_depth: Option<u32>,
    /// The edge table, its columns by number and by quoted name, and how to look up by them.
    pub edges: pg_sys::Oid,
    /// Number of the source's column.
    pub source: i16,
    /// Number of the target's column.
    pub target: i16,
    /// The depth's column, when the edge table is a closure table that was adopted.
    pub depth: Option<DepthColumn>,
    /// `SELECT source, target FROM edges`, without NULLs.
    pub edge_query: String,
    /// The same with the weight as a third column (NULL: 1), where edges have weights.
    pub weight_query: Option<String>,
    /// Leads from a source to its targets.
    pub out: KeyIndex,
    /// Leads from a target to its sources.
    pub into: KeyIndex,
    /// The table of nodes.
    pub nodes: Option<NodeTable>,
    /// The node directory.
    pub metagraph: pg_sys::Oid,
    /// Its primary key.
    pub metagraph_index: pg_sys::Oid,
    /// Its name, qualified and quoted.
    pub metagraph_name: String,
    /// The closure's name, qualified and quoted.
    pub closure_name: String,
    /// The components.
    pub components: pg_sys::Oid,
    /// Their primary key.
    pub components_index: pg_sys::Oid,
    /// Their name, qualified and quoted.
    pub components_name: String,
    /// The parts of the closure, by shard.
    pub parts: Vec<Part>,
}

/// What this session remembers, with the invalidation counter as it was.
static KNOWN: LocalBox<HashMap<i32, (u64, Rc<Graph>)>> = LocalBox::new();

/// A graph by its id, from memory while nothing about it changed.
///
/// # Errors
/// 42704 when there is none; 42703, 55000 when one of its tables, columns or indexes is gone.
pub fn by_id(graph_id: i32) -> PgResult<Rc<Graph>> {
    let now = invalidation::generation();
    let known = KNOWN.with(HashMap::new, |known| known.get(&graph_id).cloned()).flatten();
    if let Some((generation, graph)) = known
        && generation == now
    {
        return Ok(graph);
    }
    let graph = {
        let _path = security::pinned_search_path();
        let _owner = security::as_extension_owner()?;
        Rc::new(read(graph_id)?)
    };
    KNOWN.with(HashMap::new, |known| known.insert(graph_id, (now, graph.clone())));
    Ok(graph)
}

/// The same after waiting for somebody who may have changed it.
///
/// # Errors
/// As [`by_id`].
pub fn again(graph_id: i32) -> PgResult<Rc<Graph>> {
    invalidation::accept();
    by_id(graph_id)
}

/// A graph that nobody drops before this transaction ends: who drops one begins with its tables, so what writes to rows
/// that hang on the graph's begins with them, too.
///
/// # Errors
/// As [`by_id`].
pub fn hold(graph_id: i32) -> PgResult<Rc<Graph>> {
    lock::lock_all(&[by_id(graph_id)?.metagraph], lock::ROW_EXCLUSIVE);
    again(graph_id)
}

/// The id of a graph.
///
/// # Errors
/// 42704 when there is none.
pub fn id_of(name: &str) -> PgResult<i32> {
    spi::one::<i32>("SELECT graph_id FROM foreshard.graph WHERE graph_name = $1::name", &[name.into()])?
        .ok_or_else(|| unknown(format!("graph \"{name}\" does not exist")))
}

/// A row of the table of graphs.
struct Registered {
    name: String,
    edges: pg_sys::Oid,
    source: String,
    target: String,
    nodes: Option<pg_sys::Oid>,
    node_key: Option<String>,
    node_type: Option<String>,
    weight: Option<String>,
    key_type: pg_sys::Oid,
    max_depth: Option<i32>,
    metagraph: pg_sys::Oid,
    closure: pg_sys::Oid,
    components: pg_sys::Oid,
    depth: Option<String>,
}

fn registered(graph_id: i32) -> PgResult<Registered> {
    let found = spi::rows(
        "SELECT graph_name::text, edge_table::oid, source_column::text, target_column::text, node_table::oid, \
                node_key_column::text, node_type_column::text, key_type::oid, max_depth, metagraph::oid, closure::oid, components::oid, weight_column::text, depth_column::text \
         FROM foreshard.graph WHERE graph_id = $1",
        &[graph_id.into()],
        |row| {
            Ok(Registered {
                name: row.need(1)?,
                edges: row.need(2)?,
                source: row.need(3)?,
                target: row.need(4)?,
                nodes: row.get(5)?,
                node_key: row.get(6)?,
                node_type: row.get(7)?,
                key_type: row.need(8)?,
                max_depth: row.get(9)?,
                metagraph: row.need(10)?,
                closure: row.need(11)?,
                components: row.need(12)?,
                weight: row.get(13)?,
                depth: row.get(14)?,
            })
        },
    )?;
    match found.into_iter().next() {
        Some(found) => Ok(found),
        None => Err(not_registered(graph_id)?),
    }
}

/// The table of a graph's closure.
pub fn closure_of(graph_id: i32) -> PgResult<Option<pg_sys::Oid>> {
    spi::one::<pg_sys::Oid>(
        "SELECT closure::oid FROM foreshard.graph WHERE graph_id = $1",
        &[graph_id.into()],
    )
}

/// A graph that a transaction does not see is younger than its snapshot, or gone.
fn not_registered(graph_id: i32) -> PgResult<ErrorReport> {
    let _latest = latest_snapshot();
    let exists = "SELECT EXISTS (SELECT FROM foreshard.graph WHERE graph_id = $1)";
    if spi::one::<bool>(exists, &[graph_id.into()])? == Some(true) {
        let code = PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE;
        return Ok(error(code, "the graph of this table was made after the transaction's snapshot")
            .set_hint("Repeat the transaction."));
    }
    Ok(unknown(format!("graph {graph_id} does not exist"))
        .set_hint("Drop the triggers \"foreshard_graph_…\" of the table that was left behind by a graph."))
}

fn read(graph_id: i32) -> PgResult<Graph> {
    let row = registered(graph_id)?;
    let own = spi::one::<pg_sys::Oid>("SELECT 'foreshard.graph'::regclass::oid", &[])?;
    invalidation::watch(own.into_iter().chain([row.edges, row.metagraph, row.closure]).chain(row.nodes));
    let kind = KeyKind::of(row.key_type)
        .ok_or_else(|| unsupported(format!("graph \"{}\" has keys of an unknown type", row.name)))?;
    let (source, target) =
        (key_column(row.edges, &row.source, kind)?, key_column(row.edges, &row.target, kind)?);
    let depth = row.depth.as_deref().map(|name| depth_column(row.edges, name)).transpose()?;
    let at_depth = |value| row.depth.as_deref().map(|name| at_depth(name, value));
    let (is_edge, is_node) = (at_depth(EDGE_DEPTH), at_depth(NODE_DEPTH));
    let nodes = match (row.nodes, &row.node_key) {
        (Some(table), Some(key)) => {
            let number = key_column(table, key, kind)?;
            Some(NodeTable {
                table,
                key: number,
                key_name: quote_identifier(key),
                type_column: match &row.node_type {
                    Some(name) => column(table, name)?.map(|(number, _)| number),
                    None => None,
                },
                type_name: row.node_type.as_deref().map(quote_identifier),
                index: need_index(table, key, (number, 0), is_node.as_deref())?.index,
                name: super::name_of(table)?,
                which: is_node,
            })
        }
        _ => None,
    };
    let (source_name, target_name) = (quote_identifier(&row.source), quote_identifier(&row.target));
    let owner = security::relation_owner(row.metagraph)?;
    for table in [Some(row.edges), row.nodes].into_iter().flatten() {
        require_owner_of(table, owner, &row.name)?;
    }
    let edge_query = edge_query(&super::name_of(row.edges)?, &source_name, &target_name, is_edge.as_deref());
    Ok(Graph {
        id: graph_id,
        owner,
        kind,
        max_depth: row.max_depth.and_then(|depth| u32::try_from(depth).ok()),
        edges: row.edges,
        source,
        target,
        weight_query: row.weight.as_deref().map(|weight| {
            let weight = quote_identifier(weight);
            edge_query.replacen(" FROM", &format!(", {weight}::pg_catalog.float8 FROM"), 1)
        }),
        edge_query,
        out: need_index(row.edges, &row.source, (source, target), is_edge.as_deref())?,
        into: need_index(row.edges, &row.target, (target, source), is_edge.as_deref())?,
        depth,
        nodes,
        metagraph: row.metagraph,
        metagraph_index: primary_key(row.metagraph)?,
        metagraph_name: super::name_of(row.metagraph)?,
        closure_name: super::name_of(row.closure)?,
        components: row.components,
        components_index: primary_key(row.components)?,
        components_name: super::name_of(row.components)?,
        parts: parts(graph_id, row.metagraph)?,
        name: row.name,
    })
}

/// Number of a column that is a key of this kind.
fn key_column(table: pg_sys::Oid, name: &str, kind: KeyKind) -> PgResult<i16> {
    match column(table, name)? {
        Some((number, type_)) if KeyKind::of(type_) == Some(kind) => Ok(number),
        Some(_) => Err(wrong_state(format!(
            "column \"{name}\" of table {} has another type than the keys of its graph",
            super::name_of(table)?
        ))),
        None => Err(lost_column(table, name)?),
    }
}

/// Expressions, policies and casts of one of a graph's tables run as the owner of all of them.
fn require_owner_of(table: pg_sys::Oid, owner: pg_sys::Oid, graph: &str) -> PgResult<()> {
    if security::relation_owner(table)? == owner {
        return Ok(());
    }
    let table = super::name_of(table)?;
    Err(wrong_state(format!("table {table} has another owner than graph \"{graph}\""))
        .set_hint("Give the table back, or drop the graph and create it anew."))
}

fn lost_column(table: pg_sys::Oid, name: &str) -> PgResult<pgrx::pg_sys::panic::ErrorReport> {
    let message = format!("column \"{name}\" of table {} does not exist", super::name_of(table)?);
    Ok(error(PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN, message)
        .set_detail("A graph depends on it.")
        .set_hint("Give the column its name back, or drop the graph: SELECT foreshard.drop_graph(...)."))
}

fn depth_column(table: pg_sys::Oid, name: &str) -> PgResult<DepthColumn> {
    match column(table, name)? {
        Some((number, _)) => Ok(DepthColumn { number, name: quote_identifier(name) }),
        None => Err(lost_column(table, name)?),
    }
}

/// The parts of a graph's closure, as they are whatever the transaction's snapshot: what is read here is remembered.
fn parts(graph_id: i32, metagraph: pg_sys::Oid) -> PgResult<Vec<Part>> {
    let metagraph = metagraph.to_u32();
    let sql = format!(
        "SELECT p.shard_id, p.partition::oid::int8, coalesce(i.pairs, 0)::int8, coalesce(i.reverse, 0)::int8, \
                CASE WHEN s.draining THEN 0 ELSE s.capacity END, \
                coalesce((SELECT greatest(c.reltuples, 0) * u.share FROM pg_catalog.pg_class c \
                    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                    JOIN pg_catalog.pg_stats t ON t.schemaname = n.nspname AND t.tablename = c.relname AND t.attname = 'shard_id', \
                    LATERAL ROWS FROM (unnest(t.most_common_vals::text::int[]), unnest(t.most_common_freqs)) AS u (shard, share) \
                    WHERE c.oid = {metagraph} AND u.shard = p.shard_id), 0)::float8, \
                coalesce(r.rows, (SELECT greatest(c.reltuples, 0) FROM pg_catalog.pg_class c WHERE c.oid = p.partition), 0)::float8, \
                coalesce(r.remote_id, (SELECT 0 FROM pg_catalog.pg_class c WHERE c.oid = p.partition AND c.relkind = 'f'))::int8 \
         FROM foreshard.graph_partition p JOIN foreshard.shard s USING (shard_id) \
              LEFT JOIN foreshard.remote_table r ON r.partition = p.partition, \
         LATERAL (SELECT min(i.indexrelid) FILTER (WHERE i.indisunique AND i.indnkeyatts = 2 AND i.indkey[0] = 1 AND i.indkey[1] = 2) AS pairs, \
                         min(i.indexrelid) FILTER (WHERE i.indkey[0] = 2 AND 1 = ANY (i.indkey)) AS reverse \
                  FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid AND x.relam = 403 \
                  WHERE i.indrelid = p.partition AND 3 = ANY (i.indkey) AND i.indisvalid AND i.indislive AND i.indimmediate \
                   AND i.indpred IS NULL AND i.indexprs IS NULL) i \
         WHERE p.graph_id = {graph_id} ORDER BY p.shard_id"
    );
    let mut found = Vec::new();
    let _latest = latest_snapshot();
    read::each(&sql, KeyKind::Int8, |row| {
        let oid = |column| row.bigint(column).and_then(|oid| u32::try_from(oid).ok()).map(pg_sys::Oid::from);
        if let (Some(shard_id), Some(table), Some(pairs), Some(reverse)) =
            (row.int(1), oid(2), oid(3), oid(4))
        {
            let (capacity, nodes) = (row.float(5).unwrap_or(0.0), row.float(6).unwrap_or(0.0));
            let rows = row.float(7).unwrap_or(0.0);
            let remote = row.bigint(8);
            found.push(Part { shard_id, table, pairs, reverse, capacity, nodes, rows, remote });
        }
        Ok(())
    })?;
    // What indexes they have is remembered as well.
    invalidation::watch(found.iter().map(|part| part.table));
    Ok(found)
}

/// `SELECT source, target`, without NULLs; names are quoted.
fn edge_query(table: &str, source: &str, target: &str, which: Option<&str>) -> String {
    let and = condition(" AND", which);
    format!("SELECT {source}, {target} FROM {table} WHERE {source} IS NOT NULL AND {target} IS NOT NULL{and}")
}

/// `SELECT key, type`, without NULL keys; names are quoted.
pub fn node_query(table: &str, key: &str, type_: Option<&str>, which: Option<&str>) -> String {
    let (type_, and) = (type_.unwrap_or("NULL"), condition(" AND", which));
    format!("SELECT {key}, {type_}::pg_catalog.text FROM {table} WHERE {key} IS NOT NULL{and}")
}

/// Both for a graph that is about to be made.
pub fn queries(plan: &create::Plan<'_>) -> PgResult<(String, Option<String>)> {
    let edges = super::name_of(plan.edges)?;
    let at_depth = |value| plan.depth.map(|(name, _)| at_depth(name, value));
    let (source, target) = (quote_identifier(plan.source.0), quote_identifier(plan.target.0));
    let edges = edge_query(&edges, &source, &target, at_depth(EDGE_DEPTH).as_deref());
    let nodes = match (plan.nodes, plan.node_key) {
        (Some(table), Some((key, _))) => {
            let type_ = plan.node_type.map(quote_identifier);
            let (name, key) = (super::name_of(table)?, quote_identifier(key));
            Some(node_query(&name, &key, type_.as_deref(), at_depth(NODE_DEPTH).as_deref()))
        }
        _ => None,
    };
    Ok((edges, nodes))
}

/// Whether there is a graph of this name.
pub fn exists(name: &str) -> PgResult<bool> {
    let found = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.graph WHERE graph_name = $1::name)",
        &[name.into()],
    )?;
    Ok(found.unwrap_or(false))
}

/// Whether a graph's closure has a part for a shard.
pub fn has_part(graph_id: i32, shard_id: i32) -> PgResult<bool> {
    let found = spi::one_mut::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.graph_partition WHERE graph_id = $1 AND shard_id = $2)",
        &[graph_id.into(), shard_id.into()],
    )?;
    Ok(found.unwrap_or(false))
}

/// The tables of a graph that still exist: edges, then closure.
pub fn tables_left(graph_id: i32) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT c.oid FROM foreshard.graph g JOIN pg_catalog.pg_class c ON c.oid IN (g.edge_table, g.closure) \
         WHERE g.graph_id = $1 ORDER BY c.oid = g.closure",
        &[graph_id.into()],
        |row| row.need(1),
    )
}

/// Graphs whose edge table is gone.
pub fn without_edges() -> PgResult<Vec<i32>> {
    spi::rows_mut(
        "SELECT graph_id FROM foreshard.graph g WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = g.edge_table) ORDER BY 1",
        &[],
        |row| row.need(1),
    )
}

/// The name of a graph whose table of nodes is gone.
pub fn without_nodes() -> PgResult<Option<String>> {
    spi::one_mut::<String>(
        "SELECT graph_name::text FROM foreshard.graph g WHERE node_table IS NOT NULL \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = g.node_table) LIMIT 1",
        &[],
    )
}

/// Why a table cannot be part of a graph; None: it can.
pub fn unfit(table: pg_sys::Oid) -> PgResult<Option<String>> {
    spi::one::<String>("SELECT foreshard.graph_refusal($1)", &[table.into()])
}

/// Collation of a column (0: none), and whether it is deterministic.
pub fn collation(table: pg_sys::Oid, number: i16) -> PgResult<(pg_sys::Oid, bool)> {
    let found = spi::rows(
        "SELECT a.attcollation, coalesce(c.collisdeterministic, true) FROM pg_catalog.pg_attribute a \
         LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation WHERE a.attrelid = $1 AND a.attnum = $2",
        &[table.into(), number.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    Ok(found.into_iter().next().unwrap_or((pg_sys::InvalidOid, true)))
}
