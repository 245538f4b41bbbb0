//! An undirected graph with loads and edge weights, as partitioning needs it.

use std::fmt;

use crate::graph::csr::{MAX_EDGES, MAX_NODES};
use crate::graph::shards::Placed;

/// Why something cannot be partitioned.
#[derive(Clone, Debug, PartialEq)]
pub enum PartitionError {
    /// More nodes than a graph may have.
    TooManyNodes {
        /// The number given.
        nodes: usize,
    },
    /// More edges than a graph may have.
    TooManyEdges {
        /// The number given.
        edges: usize,
    },
    /// An edge names a node beyond the number of nodes.
    UnknownNode {
        /// The node.
        node: u32,
    },
    /// A load or weight is negative or not a finite number.
    BadNumber,
}

impl fmt::Display for PartitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyNodes { nodes } => write!(f, "{nodes} nodes exceed the limit of {MAX_NODES}"),
            Self::TooManyEdges { edges } => write!(f, "{edges} edges exceed the limit of {}", MAX_EDGES / 2),
            Self::UnknownNode { node } => write!(f, "an edge names the unknown node {node}"),
            Self::BadNumber => write!(f, "loads and weights must be finite numbers of at least 0"),
        }
    }
}

impl std::error::Error for PartitionError {}

/// An undirected graph: every edge is in the lists of both of its nodes, parallel ones added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightedGraph {
    starts: Vec<u32>,
    nodes: Vec<u32>,
    weights: Vec<f32>,
    loads: Vec<f64>,
    kinds: Vec<u16>,
    /// What moving a node costs; the number of nodes in it, for a cluster.
    costs: Vec<f32>,
}

impl WeightedGraph {
    /// A graph of `nodes` with undirected edges (in any direction, parallel ones are added, loops ignored).
    ///
    /// # Errors
    /// [`PartitionError`] beyond limits, for unknown nodes, and for bad numbers.
    pub fn new(nodes: &[Placed], edges: &[(u32, u32, f32)]) -> Result<Self, PartitionError> {
        if nodes.len() > MAX_NODES as usize {
            return Err(PartitionError::TooManyNodes { nodes: nodes.len() });
        }
        if edges.len() > MAX_EDGES / 2 {
            return Err(PartitionError::TooManyEdges { edges: edges.len() });
        }
        let unknown = edges.iter().map(|(a, b, _)| *a.max(b)).find(|node| *node as usize >= nodes.len());
        if let Some(node) = unknown {
            return Err(PartitionError::UnknownNode { node });
        }
        let fine = |number: f64| number.is_finite() && number >= 0.0;
        if !nodes.iter().all(|node| fine(node.load)) || !edges.iter().all(|edge| fine(f64::from(edge.2))) {
            return Err(PartitionError::BadNumber);
        }
        let loads = nodes.iter().map(|node| node.load).collect();
        let kinds = nodes.iter().map(|node| node.kind).collect();
        Ok(Self::collect(loads, kinds, vec![1.0; nodes.len()], edges))
    }

    /// The same from checked parts.
    pub(super) fn collect(
        loads: Vec<f64>,
        kinds: Vec<u16>,
        costs: Vec<f32>,
        edges: &[(u32, u32, f32)],
    ) -> Self {
        let both =
            || edges.iter().filter(|(a, b, _)| a != b).flat_map(|(a, b, w)| [(*a, *b, *w), (*b, *a, *w)]);
        let mut starts = vec![0_u32; loads.len() + 1];
        both().for_each(|(owner, ..)| starts[owner as usize + 1] += 1);
        for node in 1..starts.len() {
            starts[node] += starts[node - 1];
        }
        let mut places = starts.clone();
        let mut nodes = vec![0; starts.last().map_or(0, |all| *all as usize)];
        let mut weights = vec![0.0; nodes.len()];
        for (owner, other, weight) in both() {
            let place = &mut places[owner as usize];
            (nodes[*place as usize], weights[*place as usize]) = (other, weight);
            *place += 1;
        }
        Self { starts, nodes, weights, loads, kinds, costs }.added_up()
    }

    /// Adds up parallel edges.
    fn added_up(self) -> Self {
        let mut place_of = vec![u32::MAX; self.len()];
        let mut merged = Self {
            starts: vec![0],
            nodes: Vec::with_capacity(self.nodes.len()),
            weights: Vec::with_capacity(self.nodes.len()),
            ..Self::default()
        };
        for node in 0..self.len() {
            let begin = merged.nodes.len();
            for (other, weight) in self.edges(node) {
                let place = &mut place_of[other as usize];
                if *place != u32::MAX && *place as usize >= begin {
                    merged.weights[*place as usize] += weight;
                } else {
                    *place = merged.nodes.len() as u32;
                    merged.nodes.push(other);
                    merged.weights.push(weight);
                }
            }
            merged.starts.push(merged.nodes.len() as u32);
        }
        (merged.loads, merged.kinds, merged.costs) = (self.loads, self.kinds, self.costs);
        merged
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.loads.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.loads.is_empty()
    }

    /// The edges of a node: its neighbours, each once, and the weight of the edge.
    pub fn edges(&self, node: usize) -> impl Iterator<Item = (u32, f32)> {
        let range = match self.starts.get(node..node.saturating_add(2)) {
            Some([start, end]) => *start as usize..*end as usize,
            _ => 0..0,
        };
        self.nodes[range.clone()].iter().copied().zip(self.weights[range].iter().copied())
    }

    /// How many neighbours a node has.
    pub fn degree(&self, node: usize) -> usize {
        match self.starts.get(node..node.saturating_add(2)) {
            Some([start, end]) => (end - start) as usize,
            _ => 0,
        }
    }

    /// The load of a node.
    pub fn load(&self, node: usize) -> f64 {
        self.loads.get(node).copied().unwrap_or(0.0)
    }

    /// The type of a node.
    pub fn kind(&self, node: usize) -> u16 {
        self.kinds.get(node).copied().unwrap_or(0)
    }

    /// What moving a node costs.
    pub(super) fn cost(&self, node: usize) -> f32 {
        self.costs.get(node).copied().unwrap_or(1.0)
    }

    /// All loads together.
    pub fn total_load(&self) -> f64 {
        self.loads.iter().sum()
    }

    /// All nodes as things to be placed.
    pub(super) fn placed(&self) -> Vec<Placed> {
        self.loads.iter().zip(&self.kinds).map(|(load, kind)| Placed { load: *load, kind: *kind }).collect()
    }

    /// Loads of the shards under a placement.
    pub fn shard_loads(&self, places: &[u16], shards: usize) -> Vec<f64> {
        let mut loads = vec![0.0; shards];
        for (load, place) in self.loads.iter().zip(places) {
            if let Some(own) = loads.get_mut(usize::from(*place)) {
                *own += load;
            }
        }
        loads
    }
}
