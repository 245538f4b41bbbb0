//! Edges and nodes of users, read whole.

use crate::catalog::graph::create::Plan;
use crate::catalog::graph::{self, Graph};
use crate::pg::graph::keys::{KeyKind, NodeKey};
use crate::pg::graph::read;
use crate::pg::report::{PgResult, bad_argument, error};
use foreshard_core::graph::csr::{Digraph, Edge, GraphError};
use foreshard_core::graph::keys::KeyTable;
use pgrx::prelude::PgSqlErrorCode;

/// A graph in memory.
pub struct Input {
    /// Keys of the nodes, by number.
    pub keys: KeyTable<NodeKey>,
    /// The edges.
    pub graph: Digraph,
    /// By number: the type, where the table of nodes gives one.
    pub types: Vec<Option<String>>,
    /// By number: whether there is such a node: it has an edge, or the table of nodes has it.
    pub alive: Vec<bool>,
}

/// 54000: a graph that is too large for us.
pub fn too_large(problem: &GraphError) -> pgrx::pg_sys::panic::ErrorReport {
    match problem {
        GraphError::TooManyNodes { .. } | GraphError::TooManyEdges { .. } => {
            error(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, problem.to_string())
        }
        _ => bad_argument(problem.to_string()),
    }
}

/// What statements are to be read.
pub struct Statements {
    /// `SELECT source, target`, without NULLs.
    pub edges: String,
    /// `SELECT key, type`, without NULL keys.
    pub nodes: Option<String>,
    /// Whether the first statement has the edge's weight as a third column.
    pub weighted: bool,
}

impl Statements {
    /// Those of a graph.
    pub fn of(graph: &Graph) -> Self {
        let nodes = graph.nodes.as_ref();
        let nodes = nodes.map(|nodes| {
            let (type_, which) = (nodes.type_name.as_deref(), nodes.which.as_deref());
            graph::node_query(&nodes.name, &nodes.key_name, type_, which)
        });
        Self { edges: graph.edge_query.clone(), nodes, weighted: false }
    }

    /// The same with the weights of edges, where the graph has any.
    pub fn weighted(graph: &Graph) -> Self {
        let plain = Self::of(graph);
        match &graph.weight_query {
            Some(query) => Self { edges: query.clone(), weighted: true, ..plain },
            None => plain,
        }
    }

    /// Those of a graph that is about to be made.
    ///
    /// # Errors
    /// When one of its tables is gone.
    pub fn of_plan(plan: &Plan<'_>) -> PgResult<Self> {
        let (edges, nodes) = graph::queries(plan)?;
        Ok(Self { edges, nodes, weighted: false })
    }
}

/// Numbers and edges as they are read.
#[derive(Default)]
pub struct Reading {
    /// Keys in the order of their first appearance.
    pub keys: KeyTable<NodeKey>,
    /// Edges by number.
    pub pairs: Vec<(u32, u32)>,
    /// Their weights, in the same order; empty when they have none.
    weights: Vec<f64>,
    types: Vec<Option<String>>,
    /// Nodes of the table of nodes.
    listed: Vec<u32>,
}

impl Reading {
    fn number(&mut self, key: &NodeKey) -> PgResult<u32> {
        self.keys.number(key).map_err(|problem| too_large(&problem))
    }

    /// Reads what `wanted` does not keep out.
    pub fn read(
        &mut self,
        statements: &Statements,
        kind: KeyKind,
        wanted: impl Fn(&NodeKey) -> bool,
    ) -> PgResult<()> {
        read::each(&statements.edges, kind, |row| {
            if let (Some(source), Some(target)) = (row.key(1), row.key(2))
                && wanted(&source)
            {
                let pair = (self.number(&source)?, self.number(&target)?);
                self.pairs.push(pair);
                if statements.weighted {
                    self.weights.push(row.float(3).unwrap_or(1.0));
                }
            }
            Ok(())
        })?;
        let Some(nodes) = &statements.nodes else { return Ok(()) };
        read::each(nodes, kind, |row| {
            if let Some(key) = row.key(1)
                && wanted(&key)
            {
                let number = self.number(&key)?;
                self.listed.push(number);
                if let Some(type_) = row.text(2) {
                    let types = &mut self.types;
                    types.resize(types.len().max(number as usize + 1), None);
                    if let Some(place) = types.get_mut(number as usize) {
                        *place = Some(place.take().map_or(type_.clone(), |known| known.min(type_)));
                    }
                }
            }
            Ok(())
        })
    }

    /// Builds the graph; with `sorted`, nodes are numbered in the order of their keys.
    pub fn finish(mut self, sorted: bool) -> PgResult<Input> {
        let count = self.keys.len() as usize;
        self.types.resize(count, None);
        if sorted {
            self = self.renumbered()?;
        }
        let mut alive = vec![false; count];
        let mut live = |node: u32| {
            if let Some(place) = alive.get_mut(node as usize) {
                *place = true;
            }
        };
        self.pairs.iter().for_each(|(source, target)| {
            live(*source);
            live(*target);
        });
        self.listed.iter().for_each(|node| live(*node));
        let graph = match self.weights.is_empty() {
            true => Digraph::from_pairs(self.keys.len(), &self.pairs),
            false => {
                let ends = self.pairs.iter().zip(&self.weights);
                let edges: Vec<Edge> = ends
                    .map(|((source, target), weight)| Edge {
                        source: *source,
                        target: *target,
                        weight: *weight,
                    })
                    .collect();
                Digraph::from_edges(self.keys.len(), &edges)
            }
        };
        let graph = graph.map_err(|problem| too_large(&problem))?;
        Ok(Input { keys: self.keys, graph, types: self.types, alive })
    }

    fn renumbered(self) -> PgResult<Self> {
        let mut order: Vec<u32> = (0..self.keys.len()).collect();
        order.sort_by(|a, b| self.keys.key(*a).cmp(&self.keys.key(*b)));
        let mut keys = KeyTable::new();
        let mut numbers = vec![0_u32; order.len()];
        let mut types = Vec::with_capacity(order.len());
        for old in &order {
            if let (Some(key), Some(place)) = (self.keys.key(*old), numbers.get_mut(*old as usize)) {
                *place = keys.number(key).map_err(|problem| too_large(&problem))?;
            }
            types.push(self.types.get(*old as usize).cloned().flatten());
        }
        let new = |old: &u32| numbers.get(*old as usize).copied().unwrap_or(0);
        Ok(Self {
            pairs: self.pairs.iter().map(|(source, target)| (new(source), new(target))).collect(),
            listed: self.listed.iter().map(new).collect(),
            weights: self.weights,
            keys,
            types,
        })
    }
}
