//! One weighted graph from structure, co-access, influence and heat.

use super::weights::{PartitionError, WeightedGraph};
use crate::graph::csr::Digraph;
use crate::graph::shards::Placed;

/// How much each kind of knowledge counts: relative weights, finite numbers of at least 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Of a node's load: that it exists.
    pub count: f64,
    /// Of a node's load: its influence.
    pub influence: f64,
    /// Of a node's load: its observed heat.
    pub heat: f64,
    /// Of an edge: that the graph has it, by its weight.
    pub structure: f64,
    /// Of an edge: that its nodes are used together.
    pub co_access: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self { count: 0.2, influence: 0.3, heat: 0.5, structure: 0.3, co_access: 0.7 }
    }
}

/// What is known of a graph besides its edges; every list may be empty, and then counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Knowledge<'a> {
    /// By node: its type; 0 for nodes beyond the list.
    pub kinds: &'a [u16],
    /// By node: its influence, in any unit.
    pub influence: &'a [f64],
    /// By node: its heat, in any unit.
    pub heat: &'a [f64],
    /// Pairs of nodes and how often they are used together, in any unit.
    pub co_access: &'a [(u32, u32, f32)],
}

/// The graph to partition. Each kind of knowledge is brought to a sum of 1 before it is mixed, so units do not
/// matter; loads then sum to the mix of those that are known, edge weights likewise (times the number of
/// nodes, so that a weight is a share of what a node has on average).
///
/// # Errors
/// [`PartitionError`] for bad numbers, unknown nodes, and beyond limits.
pub fn combined(
    graph: &Digraph,
    knowledge: &Knowledge<'_>,
    mix: &Mix,
) -> Result<WeightedGraph, PartitionError> {
    let nodes = graph.node_count() as usize;
    let share = |values: &[f64], weight: f64| {
        let total: f64 = values.iter().sum();
        if total > 0.0 { weight / total } else { 0.0 }
    };
    let influence = share(knowledge.influence, mix.influence);
    let heat = share(knowledge.heat, mix.heat);
    let of = |values: &[f64], node: usize| values.get(node).copied().unwrap_or(0.0);
    let placed: Vec<Placed> = (0..nodes)
        .map(|node| Placed {
            load: mix.count / nodes as f64
                + influence * of(knowledge.influence, node)
                + heat * of(knowledge.heat, node),
            kind: knowledge.kinds.get(node).copied().unwrap_or(0),
        })
        .collect();
    let structure: f64 = graph.nodes().map(|node| graph.out_weight(node)).sum();
    let together: f64 = knowledge.co_access.iter().map(|(_, _, weight)| f64::from(*weight)).sum();
    let factor = |mix: f64, total: f64| if total > 0.0 { mix / total * nodes as f64 } else { 0.0 };
    let (structure, together) = (factor(mix.structure, structure), factor(mix.co_access, together));
    let mut edges = Vec::with_capacity(graph.edge_count() + knowledge.co_access.len());
    for source in graph.nodes() {
        let weights = graph.out_weights(source);
        for (index, target) in graph.outgoing(source).iter().enumerate() {
            let weight = weights.get(index).copied().unwrap_or(1.0);
            edges.push((source, *target, (weight * structure) as f32));
        }
    }
    let used = knowledge.co_access.iter();
    edges.extend(used.map(|(a, b, weight)| (*a, *b, (f64::from(*weight) * together) as f32)));
    WeightedGraph::new(&placed, &edges)
}
