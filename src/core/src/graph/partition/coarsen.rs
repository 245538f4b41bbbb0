//! Merging nodes that belong together.

use super::weights::WeightedGraph;

/// Rounds of label propagation.
const ROUNDS: usize = 3;

/// Merges nodes into clusters of at most `most` load, of one type and (if given) one place. Returns the graph
/// of clusters and the cluster of every node.
pub(super) fn coarsen(graph: &WeightedGraph, places: Option<&[u16]>, most: f64) -> (WeightedGraph, Vec<u32>) {
    let labels = propagate(graph, places, most);
    let mut numbers = vec![u32::MAX; graph.len()];
    let mut count = 0;
    let mut clusters = Vec::with_capacity(graph.len());
    for label in &labels {
        let number = &mut numbers[*label as usize];
        if *number == u32::MAX {
            *number = count;
            count += 1;
        }
        clusters.push(*number);
    }
    let size = count as usize;
    let (mut loads, mut kinds, mut costs) = (vec![0.0; size], vec![0; size], vec![0.0; size]);
    let mut edges = Vec::new();
    for (node, cluster) in clusters.iter().enumerate() {
        let place = *cluster as usize;
        loads[place] += graph.load(node);
        kinds[place] = graph.kind(node);
        costs[place] += graph.cost(node);
        for (other, weight) in graph.edges(node) {
            let theirs = clusters[other as usize];
            if *cluster < theirs {
                edges.push((*cluster, theirs, weight));
            }
        }
    }
    (WeightedGraph::collect(loads, kinds, costs, &edges), clusters)
}

/// Every node takes the label that weighs most among its neighbours', as long as the cluster may grow.
fn propagate(graph: &WeightedGraph, places: Option<&[u16]>, most: f64) -> Vec<u32> {
    let mut labels: Vec<u32> = (0..graph.len() as u32).collect();
    let mut loads: Vec<f64> = (0..graph.len()).map(|node| graph.load(node)).collect();
    let mut weights = vec![0.0_f32; graph.len()];
    let mut seen: Vec<u32> = Vec::new();
    // Nodes of few neighbours first: they know best where they belong.
    let mut order: Vec<u32> = labels.clone();
    order.sort_by_key(|node| (graph.degree(*node as usize), *node));
    for _ in 0..ROUNDS {
        let mut changed = false;
        for node in order.iter().map(|node| *node as usize) {
            let own = labels[node];
            let place = |node: usize| places.and_then(|places| places.get(node));
            for (other, weight) in graph.edges(node) {
                let other = other as usize;
                if place(other) == place(node) && graph.kind(other) == graph.kind(node) {
                    let sum = &mut weights[labels[other] as usize];
                    if *sum <= 0.0 {
                        seen.push(labels[other]);
                    }
                    *sum += weight;
                }
            }
            let mut best = (weights[own as usize], own);
            for label in &seen {
                let room = *label == own || loads[*label as usize] + graph.load(node) <= most;
                let weight = weights[*label as usize];
                if room && (weight > best.0 || (weight >= best.0 && best.1 != own && *label < best.1)) {
                    best = (weight, *label);
                }
            }
            seen.drain(..).for_each(|label| weights[label as usize] = 0.0);
            if best.1 != own {
                loads[own as usize] -= graph.load(node);
                loads[best.1 as usize] += graph.load(node);
                labels[node] = best.1;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    labels
}
