//! PageRank against the bandwidth of memory; sampled betweenness against exact.

use crate::{read, timed};
use foreshard_core::graph::Digraph;
use foreshard_core::graph::between::{exact, sampled};
use foreshard_core::graph::rank::{RankOptions, Ranks, page_rank};
use foreshard_test::bars::bar_most;
use foreshard_test::{Error, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::Path;

const NODES: u32 = 1_000_000;
const EDGES: usize = 10_000_000;

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::new(error.to_string(), "Try another graph.")
}

fn ranks(graph: &Digraph, threads: usize, start: Option<&[f64]>) -> Result<(Ranks, f64)> {
    let options = RankOptions { threads, ..RankOptions::default() };
    let (ranks, took) = timed(|| page_rank(graph, &options, start, |_, _| ControlFlow::Continue(())));
    Ok((ranks.map_err(wrong)?, took))
}

/// PageRank as its definition says it, edge by edge.
fn plain(graph: &Digraph, iterations: u32) -> Vec<f64> {
    let nodes = f64::from(graph.node_count());
    let mut ranks = vec![1.0 / nodes; graph.node_count() as usize];
    for _ in 0..iterations {
        let dangling = graph.nodes().filter(|node| graph.out_weight(*node) <= 0.0);
        let lost: f64 = dangling.map(|node| ranks[node as usize]).sum();
        let mut next = vec![0.15 / nodes + 0.85 * lost / nodes; ranks.len()];
        for source in graph.nodes().filter(|node| graph.out_weight(*node) > 0.0) {
            let weights = graph.out_weights(source);
            for (index, target) in graph.outgoing(source).iter().enumerate() {
                let weight = weights.get(index).copied().unwrap_or(1.0);
                next[*target as usize] += 0.85 * ranks[source as usize] * weight / graph.out_weight(source);
            }
        }
        ranks = next;
    }
    ranks
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Communities of 1,000 nodes that four of five edges stay in, the others lead to popular nodes anywhere. Numbers
/// are scattered, they say nothing about neighbourhood.
fn generated() -> Result<Digraph> {
    let mut rng = SmallRng::seed_from_u64(2);
    let mut pairs = Vec::with_capacity(EDGES);
    // A multiplication that is one to one modulo the number of nodes.
    let scattered = |node: u32| (u64::from(node) * 611_953 % u64::from(NODES)) as u32;
    for _ in 0..EDGES {
        let source = rng.random_range(0..NODES);
        let popularity = rng.random::<f64>().powi(3);
        let target = match rng.random_range(0..5) {
            0 => (popularity * f64::from(NODES)) as u32,
            _ => source / 1_000 * 1_000 + (popularity * 1_000.0) as u32,
        };
        pairs.push((scattered(source), scattered(target)));
    }
    Digraph::from_pairs(NODES, &pairs).map_err(wrong)
}

/// Bytes per second of reading a large array from end to end.
fn bandwidth() -> f64 {
    let data = vec![1_u64; 32 << 20];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (sum, took) = timed(|| black_box(&data).iter().sum::<u64>());
        black_box(sum);
        best = best.min(took);
    }
    (data.len() * 8) as f64 / best
}

/// Both graphs; whether the bar holds.
pub fn rank(graph: &Digraph) -> Result<bool> {
    let (own, took) = ranks(graph, 1, None)?;
    let (warm, warm_took) = ranks(graph, 1, Some(&own.values))?;
    println!(
        "pagerank of the graph: {took:.3} s, {} iterations; warm {warm_took:.3} s, {}; off a plain reference by {:.1e}",
        own.iterations,
        warm.iterations,
        far(&own.values, &plain(graph, own.iterations + 40))
    );
    let (large, build) = timed(generated);
    let large = large?;
    // Per edge its source and the rank that flows; per node borders, rank in and out, share, flow out.
    let bytes = (EDGES * 12 + NODES as usize * 36) as f64;
    let speed = bandwidth();
    let mut holds = true;
    for threads in [1, 2] {
        let (large, took) = ranks(&large, threads, None)?;
        let floor = bytes / speed * f64::from(large.iterations);
        println!(
            "pagerank of 1 M nodes, 10 M edges, {threads} thread(s): {took:.2} s, {} iterations of {:.1} ms; \
             floor {floor:.2} s at {:.1} GB/s; built in {build:.2} s",
            large.iterations,
            took / f64::from(large.iterations) * 1e3,
            speed / 1e9
        );
        if threads == 1 {
            holds &= bar_most("pagerank / memory bandwidth floor", took / floor, 3.0);
        }
    }
    Ok(holds)
}

/// A network that grows by preference, undirected.
fn grown(nodes: u32, links: u32) -> Result<Digraph> {
    let mut rng = SmallRng::seed_from_u64(3);
    let mut pairs: Vec<(u32, u32)> = vec![(0, 1), (1, 0)];
    for node in 2..nodes {
        for _ in 0..links {
            let other = pairs[rng.random_range(0..pairs.len())].0;
            if other != node {
                pairs.extend([(node, other), (other, node)]);
            }
        }
    }
    Digraph::from_pairs(nodes, &pairs).map_err(wrong)
}

/// Sampled against exact; whether it is within its bound.
pub fn between(file: Option<&Path>) -> Result<bool> {
    let graph = match file {
        Some(path) => read::graph(path)?,
        None => grown(6_474, 2)?,
    };
    let (values, took) = timed(|| exact(&graph, |_| ControlFlow::Continue(())));
    let values = values.map_err(wrong)?;
    let largest = values.iter().copied().fold(0.0, f64::max);
    println!(
        "betweenness of {} nodes, {} edges: exact {took:.2} s, largest {largest:.4}",
        graph.node_count(),
        graph.edge_count()
    );
    let mut holds = true;
    for epsilon in [0.02, 0.01, 0.005] {
        let (guess, took) = timed(|| sampled(&graph, epsilon, 0.1, 1, |_| ControlFlow::Continue(())));
        let guess = guess.map_err(wrong)?;
        println!("sampled, epsilon {epsilon}, delta 0.1: {} samples, {took:.3} s", guess.samples);
        holds &= bar_most("error of sampled betweenness", far(&values, &guess.values), guess.error_bound);
    }
    Ok(holds)
}
