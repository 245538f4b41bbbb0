//! A digraph as two compressed adjacency arrays (out and in), read only.
//!
//! 8 bytes per edge and 8 per node, 16 more per edge when weights are not all 1. Lists are sorted, so
//! whether an edge exists is a binary search, and equal input gives equal output whatever the order of edges.

use std::fmt;

/// The most nodes of a graph.
pub const MAX_NODES: u32 = 1 << 30;

/// The most edges of a graph.
pub const MAX_EDGES: usize = 1 << 31;

/// An edge between two nodes, with a weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// Where it begins.
    pub source: u32,
    /// Where it ends.
    pub target: u32,
    /// Its weight, a finite number of at least 0. Weights count for influence and placement, not for depth.
    pub weight: f64,
}

/// Why a graph could not be built.
#[derive(Clone, Debug, PartialEq)]
pub enum GraphError {
    /// More nodes than [`MAX_NODES`].
    TooManyNodes {
        /// The number of nodes asked for.
        nodes: u64,
        /// The number allowed.
        limit: u32,
    },
    /// More edges than [`MAX_EDGES`].
    TooManyEdges {
        /// The number of edges given.
        edges: usize,
        /// The number allowed.
        limit: usize,
    },
    /// An edge names a node beyond the number of nodes.
    UnknownNode {
        /// The node.
        node: u32,
        /// The number of nodes.
        nodes: u32,
    },
    /// The weight of this edge is negative or not a finite number.
    BadWeight {
        /// Where the edge begins.
        source: u32,
        /// Where it ends.
        target: u32,
    },
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyNodes { nodes, limit } => write!(f, "{nodes} nodes exceed the limit of {limit}"),
            Self::TooManyEdges { edges, limit } => write!(f, "{edges} edges exceed the limit of {limit}"),
            Self::UnknownNode { node, nodes } => {
                write!(f, "an edge names node {node}, but the graph has {nodes} nodes")
            }
            Self::BadWeight { source, target } => {
                write!(f, "weight of edge {source} to {target} must be a finite number of at least 0")
            }
        }
    }
}

impl std::error::Error for GraphError {}

/// One direction: the neighbours of node `v` are `nodes[starts[v]..starts[v + 1]]`.
#[derive(Clone, Debug, Default, PartialEq)]
struct Lists {
    starts: Vec<u32>,
    nodes: Vec<u32>,
    /// In the order of `nodes`; empty when all weights are 1.
    weights: Vec<f64>,
}

/// A directed graph; see the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Digraph {
    out: Lists,
    into: Lists,
}

impl Digraph {
    /// A graph of `nodes` nodes, all edges of weight 1.
    ///
    /// # Errors
    /// [`GraphError`] beyond a limit, or for an edge that names an unknown node.
    pub fn from_pairs(nodes: u32, pairs: &[(u32, u32)]) -> Result<Self, GraphError> {
        Self::build(nodes, pairs.len(), pairs.iter().map(|(source, target)| (*source, *target, 1.0)), false)
    }

    /// A graph of `nodes` nodes with weighted edges.
    ///
    /// # Errors
    /// [`GraphError`] likewise, and for a weight that is negative or not finite.
    pub fn from_edges(nodes: u32, edges: &[Edge]) -> Result<Self, GraphError> {
        let bad = edges.iter().find(|edge| !edge.weight.is_finite() || edge.weight < 0.0);
        if let Some(Edge { source, target, .. }) = bad {
            return Err(GraphError::BadWeight { source: *source, target: *target });
        }
        let weighted = edges.iter().any(|edge| (edge.weight - 1.0).abs() > 0.0);
        let tuples = edges.iter().map(|edge| (edge.source, edge.target, edge.weight));
        Self::build(nodes, edges.len(), tuples, weighted)
    }

    fn build(
        nodes: u32,
        count: usize,
        edges: impl Iterator<Item = (u32, u32, f64)> + Clone,
        weighted: bool,
    ) -> Result<Self, GraphError> {
        if nodes > MAX_NODES {
            return Err(GraphError::TooManyNodes { nodes: u64::from(nodes), limit: MAX_NODES });
        }
        if count > MAX_EDGES {
            return Err(GraphError::TooManyEdges { edges: count, limit: MAX_EDGES });
        }
        let unknown = edges.clone().map(|(source, target, _)| source.max(target)).find(|node| *node >= nodes);
        if let Some(node) = unknown {
            return Err(GraphError::UnknownNode { node, nodes });
        }
        // Transposing visits nodes in ascending order, so two more of it leave both directions sorted.
        let unsorted = Lists::collect(nodes, edges.map(|(source, target, w)| (target, source, w)), weighted);
        let out = unsorted.transposed();
        drop(unsorted);
        let into = out.transposed();
        Ok(Self { out, into })
    }

    /// The number of nodes.
    pub fn node_count(&self) -> u32 {
        self.out.len()
    }

    /// The number of edges, parallel ones and self loops counted singly.
    pub fn edge_count(&self) -> usize {
        self.out.nodes.len()
    }

    /// All nodes.
    pub fn nodes(&self) -> std::ops::Range<u32> {
        0..self.node_count()
    }

    /// Where the edges of `node` lead, ascending; empty for an unknown node.
    pub fn outgoing(&self, node: u32) -> &[u32] {
        self.out.of(node)
    }

    /// Where the edges to `node` come from, ascending; empty for an unknown node.
    pub fn incoming(&self, node: u32) -> &[u32] {
        self.into.of(node)
    }

    /// Weights of the edges of [`Self::outgoing`] in its order; empty when all weights of the graph are 1.
    pub fn out_weights(&self, node: u32) -> &[f64] {
        self.out.weights_of(node)
    }

    /// Weights of the edges of [`Self::incoming`] in its order; empty when all weights of the graph are 1.
    pub fn in_weights(&self, node: u32) -> &[f64] {
        self.into.weights_of(node)
    }

    /// Sum of the weights of the edges that leave `node`.
    pub fn out_weight(&self, node: u32) -> f64 {
        if self.is_weighted() {
            self.out_weights(node).iter().sum()
        } else {
            self.outgoing(node).len() as f64
        }
    }

    /// Whether any weight differs from 1.
    pub fn is_weighted(&self) -> bool {
        !self.out.weights.is_empty()
    }

    /// Whether there is an edge from `source` to `target`.
    pub fn has_edge(&self, source: u32, target: u32) -> bool {
        self.outgoing(source).binary_search(&target).is_ok()
    }

    /// All edges, by source and then by target, without their weights.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u32)> {
        self.nodes().flat_map(|source| self.outgoing(source).iter().map(move |target| (source, *target)))
    }

    /// The same graph with every edge turned round; costs nothing.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { out: self.into, into: self.out }
    }

    /// The same graph without weights, self loops and all but one of parallel edges.
    #[must_use]
    pub fn simple(&self) -> Self {
        let mut out = Lists { starts: vec![0], nodes: Vec::new(), weights: Vec::new() };
        for source in self.nodes() {
            let begin = out.nodes.len();
            for target in self.outgoing(source).iter().filter(|target| **target != source) {
                if out.nodes.len() == begin || out.nodes.last() != Some(target) {
                    out.nodes.push(*target);
                }
            }
            out.starts.push(out.nodes.len() as u32);
        }
        let into = out.transposed();
        Self { out, into }
    }

    /// Borders of the in-lists: those of node `v` are at `starts[v]..starts[v + 1]` of [`Self::in_nodes`].
    pub(super) fn in_starts(&self) -> &[u32] {
        &self.into.starts
    }

    /// All in-lists one after the other.
    pub(super) fn in_nodes(&self) -> &[u32] {
        &self.into.nodes
    }

    /// All weights in the order of [`Self::in_nodes`]; empty when all are 1.
    pub(super) fn in_weight_array(&self) -> &[f64] {
        &self.into.weights
    }
}

impl Lists {
    /// Counting sort of `(owner, neighbour, weight)` by owner, stable.
    fn collect(nodes: u32, edges: impl Iterator<Item = (u32, u32, f64)> + Clone, weighted: bool) -> Self {
        let mut starts = vec![0_u32; nodes as usize + 1];
        let mut count = 0;
        for (owner, ..) in edges.clone() {
            starts[owner as usize + 1] += 1;
            count += 1;
        }
        for node in 1..starts.len() {
            starts[node] += starts[node - 1];
        }
        let mut next = starts.clone();
        let mut lists = Self {
            starts,
            nodes: vec![0; count],
            weights: if weighted { vec![0.0; count] } else { Vec::new() },
        };
        for (owner, neighbour, weight) in edges {
            let place = &mut next[owner as usize];
            lists.nodes[*place as usize] = neighbour;
            if weighted {
                lists.weights[*place as usize] = weight;
            }
            *place += 1;
        }
        lists
    }

    /// The other direction, every list ascending.
    fn transposed(&self) -> Self {
        let edges = (0..self.len()).flat_map(|owner| {
            let (nodes, weights) = (self.of(owner), self.weights_of(owner));
            let weight = move |index: usize| weights.get(index).copied().unwrap_or(1.0);
            nodes.iter().enumerate().map(move |(index, node)| (*node, owner, weight(index)))
        });
        Self::collect(self.len(), edges, !self.weights.is_empty())
    }

    fn len(&self) -> u32 {
        self.starts.len().saturating_sub(1) as u32
    }

    fn range(&self, node: u32) -> std::ops::Range<usize> {
        let borders = self.starts.get(node as usize..(node as usize).saturating_add(2));
        match borders {
            Some([start, end]) => *start as usize..*end as usize,
            _ => 0..0,
        }
    }

    fn of(&self, node: u32) -> &[u32] {
        self.nodes.get(self.range(node)).unwrap_or_default()
    }

    fn weights_of(&self, node: u32) -> &[f64] {
        self.weights.get(self.range(node)).unwrap_or_default()
    }
}
