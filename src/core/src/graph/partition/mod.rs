//! Who shall live together: nodes that are used together on one shard, loads even, few moves.
//!
//! [`partition`] is offline: a multilevel method. Nodes that belong together are merged into clusters that may
//! not grow beyond a share of a shard (label propagation with a size limit: Meyerhenke, Sanders, Schulz,
//! *Partitioning complex networks via size-constrained clustering*, 2014), again and again; the coarsest
//! graph is placed; then, level by level back to the nodes, every cluster may go where it is connected
//! best, as long as there is room. With a placement to begin with, only nodes of one shard are merged (as in
//! repartitioning with ParMETIS), so whole groups move at once, and staying at home is worth something.
//!
//! [`combined`] makes the weighted graph from structure, co-access, influence and heat. [`Adaptive`] is online: it is told windows of accesses one by one, keeps decayed co-access weights and
//! loads, plans again every so often, and hands out a bounded number of moves per window.

mod adaptive;
mod coarsen;
mod combine;
mod refine;
mod weights;

pub use adaptive::{Adaptive, AdaptiveOptions};
pub use combine::{Knowledge, Mix, combined};
pub use weights::{PartitionError, WeightedGraph};

use super::shards::{Shards, distribute};
use refine::Refiner;

/// How a partition is made.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionOptions {
    /// A shard may carry this much more than its share of the load, as a share of that.
    pub slack: f64,
    /// The largest load of a cluster, as a share of the mean load of a shard. Small clusters fill shards
    /// evenly, large ones keep more together.
    pub cluster_share: f64,
    /// What staying at home is worth, in units of edge weight per unit of a node's moving cost.
    pub stay: f64,
    /// Rounds of refinement per level.
    pub rounds: u32,
    /// Cycles of merging and refinement.
    pub cycles: u32,
}

impl Default for PartitionOptions {
    fn default() -> Self {
        Self { slack: 0.05, cluster_share: 0.05, stay: 0.0, rounds: 6, cycles: 3 }
    }
}

/// Merging ends at this many clusters per shard.
const CLUSTERS_PER_SHARD: usize = 32;

/// Merging that leaves more than this share of the nodes is not worth another level.
const LEAST_SHRINKAGE: f64 = 0.95;

/// The most levels.
const MAX_LEVELS: usize = 24;

/// Places the nodes of a graph from nothing. Element `v` is the shard of node `v`.
///
/// The limit of a shard is exceeded only where types or the size of single nodes leave no other way.
pub fn partition(graph: &WeightedGraph, shards: &Shards, options: &PartitionOptions) -> Vec<u16> {
    let (levels, coarsest) = merge(graph, None, shards, options);
    let mut places = seed(&coarsest, shards, options);
    let free = PartitionOptions { stay: 0.0, ..options.clone() };
    places = unfold(&levels, coarsest, places, shards, &free);
    for _ in 1..options.cycles.max(1) {
        places = cycle(graph, &places, &places, shards, &free);
    }
    places
}

/// Improves a placement. `home[v]` is where node `v` lives now and where staying is worth something.
pub fn repartition(
    graph: &WeightedGraph,
    home: &[u16],
    shards: &Shards,
    options: &PartitionOptions,
) -> Vec<u16> {
    let mut places = home.to_vec();
    places.resize(graph.len(), 0);
    for (node, place) in places.iter_mut().enumerate() {
        let kind = graph.kind(node);
        if !shards.may(kind, *place) {
            *place = shards.default_shard(node as u32, kind);
        }
    }
    let home = places.clone();
    for _ in 0..options.cycles.max(1) {
        let next = cycle(graph, &places, &home, shards, options);
        if next == places {
            break;
        }
        places = next;
    }
    places
}

/// One level: the finer graph, and the cluster of each of its nodes.
struct Level {
    graph: WeightedGraph,
    clusters: Vec<u32>,
}

/// Merges again and again; the levels, finest first, and the coarsest graph.
fn merge(
    graph: &WeightedGraph,
    places: Option<&[u16]>,
    shards: &Shards,
    options: &PartitionOptions,
) -> (Vec<Level>, WeightedGraph) {
    let most = graph.total_load() / shards.len() as f64 * options.cluster_share;
    let mut levels: Vec<Level> = Vec::new();
    let mut current = graph.clone();
    let mut own: Option<Vec<u16>> = places.map(<[u16]>::to_vec);
    while current.len() > CLUSTERS_PER_SHARD * shards.len() && levels.len() < MAX_LEVELS {
        let (coarser, clusters) = coarsen::coarsen(&current, own.as_deref(), most);
        if coarser.len() as f64 > current.len() as f64 * LEAST_SHRINKAGE {
            break;
        }
        own = own.map(|own| folded(&own, &clusters, coarser.len()));
        levels.push(Level { graph: current, clusters });
        current = coarser;
    }
    (levels, current)
}

/// Places of clusters, all of whose nodes have the same.
fn folded(places: &[u16], clusters: &[u32], count: usize) -> Vec<u16> {
    let mut folded = vec![0; count];
    for (cluster, place) in clusters.iter().zip(places) {
        folded[*cluster as usize] = *place;
    }
    folded
}

/// Places of the nodes of a finer graph.
fn unfolded(places: &[u16], clusters: &[u32]) -> Vec<u16> {
    clusters.iter().map(|cluster| places[*cluster as usize]).collect()
}

/// A first placement: heaviest first, each where it is connected best and there is room.
fn seed(graph: &WeightedGraph, shards: &Shards, options: &PartitionOptions) -> Vec<u16> {
    let mut places = distribute(&graph.placed(), shards);
    let home = places.clone();
    let mut refiner = Refiner::new(graph, &home, shards, options);
    refiner.gather(&mut places);
    places
}

/// Refines from the coarsest level to the finest; nobody has a home.
fn unfold(
    levels: &[Level],
    coarsest: WeightedGraph,
    places: Vec<u16>,
    shards: &Shards,
    options: &PartitionOptions,
) -> Vec<u16> {
    let mut places = places;
    let home = places.clone();
    Refiner::new(&coarsest, &home, shards, options).refine(&mut places);
    for level in levels.iter().rev() {
        places = unfolded(&places, &level.clusters);
        let home = places.clone();
        Refiner::new(&level.graph, &home, shards, options).refine(&mut places);
    }
    places
}

/// Merges nodes of the same place, refines on all levels.
fn cycle(
    graph: &WeightedGraph,
    places: &[u16],
    home: &[u16],
    shards: &Shards,
    options: &PartitionOptions,
) -> Vec<u16> {
    let (levels, coarsest) = merge(graph, Some(places), shards, options);
    let mut homes = vec![home.to_vec()];
    let mut current = places.to_vec();
    for level in &levels {
        let count = level.clusters.iter().max().map_or(0, |most| *most as usize + 1);
        current = folded(&current, &level.clusters, count);
        let finer = homes.last().map_or(&[][..], Vec::as_slice);
        homes.push(folded(finer, &level.clusters, count));
    }
    let coarsest_home = homes.pop().unwrap_or_default();
    Refiner::new(&coarsest, &coarsest_home, shards, options).refine(&mut current);
    for level in levels.iter().rev() {
        current = unfolded(&current, &level.clusters);
        let own_home = homes.pop().unwrap_or_default();
        Refiner::new(&level.graph, &own_home, shards, options).refine(&mut current);
    }
    current
}

/// Share of the weight of all edges that join different shards.
pub fn cut_share(graph: &WeightedGraph, places: &[u16]) -> f64 {
    let (mut cut, mut all) = (0.0, 0.0);
    for node in 0..graph.len() {
        for (other, weight) in graph.edges(node) {
            all += f64::from(weight);
            if places.get(node) != places.get(other as usize) {
                cut += f64::from(weight);
            }
        }
    }
    if all > 0.0 { cut / all } else { 0.0 }
}
