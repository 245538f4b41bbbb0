//! PageRank and betweenness against the plainest possible computation of the same.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::ops::ControlFlow;

use foreshard_core::graph::between::{BetweenError, exact, sampled};
use foreshard_core::graph::rank::{RankError, RankOptions, page_rank};
use foreshard_core::graph::{Digraph, Edge};
use proptest::prelude::*;

fn on(_: u32, _: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn edge((source, target, weight): &(u32, u32, f64)) -> Edge {
    Edge { source: *source, target: *target, weight: *weight }
}

/// PageRank by the matrix of the definition, 1,000 times.
fn plain_rank(nodes: usize, edges: &[(u32, u32, f64)], damping: f64) -> Vec<f64> {
    let mut matrix = vec![vec![0.0; nodes]; nodes];
    for (source, row) in matrix.iter_mut().enumerate() {
        let own = edges.iter().filter(|edge| edge.0 as usize == source);
        let total: f64 = own.clone().map(|edge| edge.2).sum();
        for (target, cell) in row.iter_mut().enumerate() {
            let to = own.clone().filter(|edge| edge.1 as usize == target).map(|edge| edge.2).sum::<f64>();
            let follow = if total > 0.0 { to / total } else { 1.0 / nodes as f64 };
            *cell = damping * follow + (1.0 - damping) / nodes as f64;
        }
    }
    let mut ranks = vec![1.0 / nodes as f64; nodes];
    for _ in 0..1_000 {
        ranks = (0..nodes).map(|to| (0..nodes).map(|from| ranks[from] * matrix[from][to]).sum()).collect();
    }
    ranks
}

/// Betweenness by counting the shortest paths of all pairs with powers of the adjacency.
fn plain_between(nodes: usize, pairs: &[(u32, u32)]) -> Vec<f64> {
    let mut depths = vec![vec![usize::MAX; nodes]; nodes];
    let mut paths = vec![vec![0.0; nodes]; nodes];
    for source in 0..nodes {
        (depths[source][source], paths[source][source]) = (0, 1.0);
        for depth in 1..nodes {
            for target in 0..nodes {
                let before = (0..nodes).filter(|middle| depths[source][*middle] == depth - 1);
                let before = before.filter(|middle| pairs.contains(&(*middle as u32, target as u32)));
                let count: f64 = before.map(|middle| paths[source][middle]).sum();
                if count > 0.0 && depths[source][target] == usize::MAX {
                    (depths[source][target], paths[source][target]) = (depth, count);
                }
            }
        }
    }
    let mut values = vec![0.0; nodes];
    for (s, t, v) in (0..nodes * nodes * nodes).map(|i| (i / nodes / nodes, i / nodes % nodes, i % nodes)) {
        let known = s != t && s != v && t != v && paths[s][t] > 0.0 && paths[s][v] > 0.0 && paths[v][t] > 0.0;
        if known && depths[s][v] + depths[v][t] == depths[s][t] {
            values[v] += paths[s][v] * paths[v][t] / paths[s][t];
        }
    }
    values.iter().map(|value| value / (nodes * (nodes - 1)) as f64).collect()
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn ranks_are_those_of_the_definition(
        edges in prop::collection::vec((0_u32..9, 0_u32..9, prop_oneof![Just(1.0), 0.0_f64..5.0]), 0..30),
        damping in 0.0_f64..0.95,
        threads in 1_usize..4,
    ) {
        let list: Vec<Edge> = edges.iter().map(edge).collect();
        let graph = Digraph::from_edges(9, &list).unwrap();
        let options = RankOptions { damping, tolerance: 1e-12, threads, max_iterations: 2_000 };
        let ranks = page_rank(&graph, &options, None, on).unwrap();
        prop_assert!(ranks.converged);
        prop_assert!((ranks.values.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let plain = plain_rank(9, &edges, damping);
        prop_assert!(far(&ranks.values, &plain) < 1e-9, "{:?} {:?}", ranks.values, plain);
    }

    #[test]
    fn betweenness_is_that_of_the_definition(pairs in prop::collection::vec((0_u32..8, 0_u32..8), 0..24)) {
        let graph = Digraph::from_pairs(8, &pairs).unwrap();
        let values = exact(&graph, |_| ControlFlow::Continue(())).unwrap();
        let plain = plain_between(8, &pairs);
        prop_assert!(far(&values, &plain) < 1e-12, "{:?} {:?}", values, plain);
    }

    #[test]
    fn samples_stay_within_their_bound(
        pairs in prop::collection::vec((0_u32..10, 0_u32..10), 0..40),
        seed: u64,
    ) {
        let graph = Digraph::from_pairs(10, &pairs).unwrap();
        let values = exact(&graph, |_| ControlFlow::Continue(())).unwrap();
        let guess = sampled(&graph, 0.05, 1e-6, seed, |_| ControlFlow::Continue(())).unwrap();
        prop_assert!(guess.error_bound <= 0.05);
        prop_assert!(far(&values, &guess.values) <= guess.error_bound, "{:?} {:?}", values, guess);
    }
}

/// An undirected graph that grows by preference for well-connected nodes, as networks of networks do.
fn grown(nodes: u32, links: u32) -> Digraph {
    let mut state = 1_u64;
    let mut number = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % limit as u64) as usize
    };
    let mut pairs = vec![(0, 1), (1, 0)];
    for node in 2..nodes {
        for _ in 0..links {
            let other = pairs[number(pairs.len())].0;
            if other != node {
                pairs.extend([(node, other), (other, node)]);
            }
        }
    }
    Digraph::from_pairs(nodes, &pairs).unwrap()
}

#[test]
fn samples_of_a_network_stay_within_their_bound() {
    let graph = grown(1_000, 2);
    let values = exact(&graph, |_| ControlFlow::Continue(())).unwrap();
    let mut samples = Vec::new();
    for epsilon in [0.04, 0.02] {
        let guess = sampled(&graph, epsilon, 0.01, 7, |_| ControlFlow::Continue(())).unwrap();
        let error = far(&values, &guess.values);
        assert!(error <= guess.error_bound && guess.error_bound <= epsilon, "{error} {guess:?}");
        samples.push(guess.samples);
    }
    assert!(samples[1] > 2 * samples[0], "{samples:?}");
}

#[test]
fn a_warm_start_saves_iterations_and_changes_nothing() {
    let graph = grown(2_000, 3);
    let options = RankOptions::default();
    let cold = page_rank(&graph, &options, None, on).unwrap();
    let mut pairs: Vec<(u32, u32)> = graph.pairs().collect();
    pairs.pop();
    let changed = Digraph::from_pairs(2_000, &pairs).unwrap();
    let again = page_rank(&changed, &options, None, on).unwrap();
    let scaled: Vec<f64> = cold.values.iter().map(|rank| rank * 1e3).collect();
    let warm = page_rank(&changed, &options, Some(&scaled), on).unwrap();
    assert!(warm.iterations < again.iterations, "{} {}", warm.iterations, again.iterations);
    assert!(far(&warm.values, &again.values) < 1e-7);
    let two = page_rank(&graph, &RankOptions { threads: 2, ..options }, None, on).unwrap();
    assert!(far(&two.values, &cold.values) < 1e-12);
}

#[test]
fn everything_can_be_stopped_and_bad_arguments_are_refused() {
    let graph = grown(600, 2);
    let good = RankOptions::default();
    let stop = page_rank(&graph, &good, None, |iteration, _| match iteration {
        3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(stop, Err(RankError::Cancelled));
    let bad = |options: RankOptions| page_rank(&graph, &options, None, on).unwrap_err();
    assert_eq!(bad(RankOptions { damping: 1.0, ..good.clone() }), RankError::BadDamping);
    assert_eq!(bad(RankOptions { damping: f64::NAN, ..good.clone() }), RankError::BadDamping);
    assert_eq!(bad(RankOptions { tolerance: 0.0, ..good.clone() }), RankError::BadTolerance);
    for start in [vec![1.0; 3], vec![0.0; 600], vec![f64::NAN; 600], vec![-1.0; 600]] {
        assert_eq!(page_rank(&graph, &good, Some(&start), on), Err(RankError::BadStart));
    }
    let short = RankOptions { max_iterations: 2, ..good.clone() };
    let ranks = page_rank(&graph, &short, None, on).unwrap();
    assert!(!ranks.converged && ranks.iterations == 2);
    assert_eq!(exact(&graph, |_| ControlFlow::Break(())), Err(BetweenError::Cancelled));
    let stop = sampled(&graph, 0.01, 0.1, 1, |_| ControlFlow::Break(()));
    assert_eq!(stop, Err(BetweenError::Cancelled));
    for (epsilon, delta) in [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (1e-9, 0.1), (f64::NAN, 0.1)] {
        let refused = sampled(&graph, epsilon, delta, 1, |_| ControlFlow::Continue(()));
        assert_eq!(refused, Err(BetweenError::BadBound));
    }
}

#[test]
fn empty_graphs_have_ranks_too() {
    let none = Digraph::from_pairs(0, &[]).unwrap();
    assert!(page_rank(&none, &RankOptions::default(), None, on).unwrap().values.is_empty());
    assert!(exact(&none, |_| ControlFlow::Continue(())).unwrap().is_empty());
    let guess = sampled(&none, 0.1, 0.1, 1, |_| ControlFlow::Continue(())).unwrap();
    assert!(guess.values.is_empty() && guess.samples == 0);
    let lonely = Digraph::from_pairs(3, &[]).unwrap();
    let ranks = page_rank(&lonely, &RankOptions::default(), None, on).unwrap();
    assert!(far(&ranks.values, &[1.0 / 3.0; 3]) < 1e-12);
}
