//! Betweenness: the share of all ordered pairs of different nodes (s, t) whose shortest paths lead through a
//! node other than s and t (each pair shared among its shortest paths; in 0..=1, `n · (n - 1)` pairs).
//!
//! Exact by Brandes (*A faster algorithm for betweenness centrality*, 2001), `O(n · m)`. For large graphs by
//! sampling (Riondato, Kornaropoulos, *Fast approximation of betweenness centrality through sampling*, 2014):
//! of a random pair one of its shortest paths is drawn at random, found by a search from both ends (Borassi,
//! Natale, *KADABRA*, 2016), and its inner nodes count 1. Every node's estimate is a mean of independent
//! numbers in 0..=1 with the right expectation. Two bounds hold for all nodes together with probability
//! 1 - delta: the number of samples is at most that of Hoeffding's inequality with a union bound, and
//! sampling ends earlier when the empirical Bernstein bound (Maurer, Pontil 2009, Theorem 4), which knows how
//! rare most nodes are, is within epsilon. Both have explicit constants, unlike the VC bound of the first
//! paper, whose constant is an estimate.
//!
//! Parallel edges and self loops are ignored; lengths are numbers of edges.

use std::fmt;
use std::ops::ControlFlow;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::csr::Digraph;

/// The most samples of one estimate.
pub const MAX_SAMPLES: u64 = 1 << 32;

/// Why there is no betweenness.
#[derive(Clone, Debug, PartialEq)]
pub enum BetweenError {
    /// `epsilon` or `delta` is not in 0..1 (both ends excluded), or so small that the bound is beyond
    /// [`MAX_SAMPLES`].
    BadBound,
    /// The caller said stop.
    Cancelled,
}

impl fmt::Display for BetweenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadBound => "epsilon and delta must lie between 0 and 1 and not be too small",
            Self::Cancelled => "computing betweenness was cancelled",
        })
    }
}

impl std::error::Error for BetweenError {}

/// A sampled estimate with its bound.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Element `v` is the estimate for node `v`.
    pub values: Vec<f64>,
    /// Pairs that were drawn.
    pub samples: u64,
    /// With probability 1 - delta no estimate is off by more than this; at most the epsilon asked for.
    pub error_bound: f64,
}

/// Exact betweenness of all nodes. `progress` is told how many sources are done and may stop it.
///
/// # Errors
/// [`BetweenError::Cancelled`] when stopped.
pub fn exact(
    graph: &Digraph,
    mut progress: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<f64>, BetweenError> {
    let graph = graph.simple();
    let nodes = graph.node_count() as usize;
    let mut total = vec![0.0; nodes];
    let mut search = Search::new(nodes);
    let mut passed = vec![0.0; nodes];
    for source in graph.nodes() {
        search.from(source);
        while search.advance(|node| graph.outgoing(node)) {}
        // Backwards: what passes a node is what passes its successors, and one for each of them.
        for node in search.order.iter().rev() {
            let mut own = 0.0;
            for next in graph.outgoing(*node) {
                if search.depth(*next) == search.depth(*node) + 1 {
                    let share = search.paths[*node as usize] / search.paths[*next as usize];
                    own += share * (1.0 + passed[*next as usize]);
                }
            }
            passed[*node as usize] = own;
            if *node != source {
                total[*node as usize] += own;
            }
        }
        if progress(source + 1).is_break() {
            return Err(BetweenError::Cancelled);
        }
    }
    let pairs = (nodes as f64 * (nodes as f64 - 1.0)).max(1.0);
    total.iter_mut().for_each(|value| *value /= pairs);
    Ok(total)
}

/// Estimates betweenness so that with probability `1 - delta` no node is off by more than `epsilon`.
/// `progress` is told how many samples are done and may stop it.
///
/// # Errors
/// [`BetweenError`] for a bad bound, and when stopped.
pub fn sampled(
    graph: &Digraph,
    epsilon: f64,
    delta: f64,
    seed: u64,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<Sampled, BetweenError> {
    let inside = |value: f64| value > 0.0 && value < 1.0;
    if !inside(epsilon) || !inside(delta) {
        return Err(BetweenError::BadBound);
    }
    let graph = graph.simple();
    let nodes = graph.node_count();
    // Others cannot be inside a path: their estimates are exact.
    let inner =
        graph.nodes().filter(|node| !graph.outgoing(*node).is_empty() && !graph.incoming(*node).is_empty());
    let bound = Bound::new(inner.count(), epsilon, delta)?;
    let mut counts = vec![0_u64; nodes as usize];
    let mut result = Sampled { values: vec![0.0; nodes as usize], ..Sampled::default() };
    if bound.most == 0 {
        return Ok(result);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut pair = Pair::new(&graph);
    let mut check = bound.first_check;
    loop {
        let source = rng.random_range(0..nodes);
        let target = rng.random_range(0..nodes - 1);
        pair.draw(source, if target >= source { target + 1 } else { target }, &mut rng, &mut counts);
        result.samples += 1;
        if result.samples.is_multiple_of(256) && progress(result.samples).is_break() {
            return Err(BetweenError::Cancelled);
        }
        if result.samples >= check || result.samples >= bound.most {
            result.error_bound = bound.now(&counts, result.samples);
            if result.error_bound <= epsilon {
                break;
            }
            check = next_check(check);
        }
    }
    let samples = result.samples as f64;
    result.values = counts.iter().map(|count| *count as f64 / samples).collect();
    Ok(result)
}

fn next_check(check: u64) -> u64 {
    check + check / 4 + 1
}

/// How far estimates may be off, after how many samples.
struct Bound {
    epsilon: f64,
    /// Enough whatever comes (Hoeffding, with half of delta).
    most: u64,
    first_check: u64,
    /// ln(4 / failure probability of one node at one check), with the other half of delta.
    log: f64,
}

impl Bound {
    fn new(inner: usize, epsilon: f64, delta: f64) -> Result<Self, BetweenError> {
        if inner == 0 {
            return Ok(Self { epsilon, most: 0, first_check: 0, log: 0.0 });
        }
        let most = ((4.0 * inner as f64 / delta).ln() / (2.0 * epsilon * epsilon)).ceil();
        if !most.is_finite() || most > MAX_SAMPLES as f64 {
            return Err(BetweenError::BadBound);
        }
        let most = most as u64;
        let first_check = (most / 64).max(64);
        let checks = std::iter::successors(Some(first_check), |check| Some(next_check(*check)));
        let checks = checks.take_while(|check| *check < most).count().max(1);
        let log = (8.0 * inner as f64 * checks as f64 / delta).ln();
        Ok(Self { epsilon, most, first_check, log })
    }

    /// By how much the worst estimate may be off now.
    fn now(&self, counts: &[u64], samples: u64) -> f64 {
        if samples >= self.most {
            return self.epsilon;
        }
        let (n, log) = (samples as f64, self.log);
        let largest = counts.iter().map(|count| *count as f64 / n * (1.0 - *count as f64 / n));
        let variance = largest.fold(0.0, f64::max) * n / (n - 1.0);
        (2.0 * variance * log / n).sqrt() + 7.0 * log / (3.0 * (n - 1.0))
    }
}

/// A breadth-first search that counts shortest paths, level by level.
struct Search {
    /// Nodes in the order of their depths.
    order: Vec<u32>,
    /// Where in `order` the last level begins.
    level: usize,
    depths: Vec<u32>,
    /// Numbers of shortest paths. Beyond 1e300 they saturate.
    paths: Vec<f64>,
    stamps: Vec<u32>,
    stamp: u32,
}

/// Depth of a node that was not met.
const UNMET: u32 = u32::MAX;

impl Search {
    fn new(nodes: usize) -> Self {
        Self {
            order: Vec::new(),
            level: 0,
            depths: vec![0; nodes],
            paths: vec![0.0; nodes],
            stamps: vec![0; nodes],
            stamp: 0,
        }
    }

    fn from(&mut self, source: u32) {
        if self.stamp == u32::MAX {
            self.stamps.fill(0);
            self.stamp = 0;
        }
        self.stamp += 1;
        self.order.clear();
        self.level = 0;
        self.meet(source, 0, 1.0);
    }

    fn meet(&mut self, node: u32, depth: u32, paths: f64) {
        let place = node as usize;
        (self.stamps[place], self.depths[place], self.paths[place]) = (self.stamp, depth, paths);
        self.order.push(node);
    }

    fn depth(&self, node: u32) -> u32 {
        if self.stamps[node as usize] == self.stamp { self.depths[node as usize] } else { UNMET }
    }

    /// The last level that was met.
    fn frontier(&self) -> &[u32] {
        self.order.get(self.level..).unwrap_or_default()
    }

    /// Meets the next level; whether there is one.
    fn advance<'g>(&mut self, edges: impl Fn(u32) -> &'g [u32]) -> bool {
        let (begin, end) = (self.level, self.order.len());
        for index in begin..end {
            let node = self.order[index];
            let (depth, paths) = (self.depths[node as usize] + 1, self.paths[node as usize]);
            for next in edges(node) {
                if self.stamps[*next as usize] != self.stamp {
                    self.meet(*next, depth, paths);
                } else if self.depths[*next as usize] == depth {
                    let sum = &mut self.paths[*next as usize];
                    *sum = (*sum + paths).min(1e300);
                }
            }
        }
        self.level = end;
        self.order.len() > end
    }
}

/// Searches from both ends of a pair.
struct Pair<'g> {
    graph: &'g Digraph,
    forward: Search,
    backward: Search,
}

impl<'g> Pair<'g> {
    fn new(graph: &'g Digraph) -> Self {
        let nodes = graph.node_count() as usize;
        Self { graph, forward: Search::new(nodes), backward: Search::new(nodes) }
    }

    /// Draws one of the shortest paths from `source` to `target`, if there is any, and counts its inner nodes.
    fn draw(&mut self, source: u32, target: u32, rng: &mut ChaCha8Rng, counts: &mut [u64]) {
        let graph = self.graph;
        self.forward.from(source);
        self.backward.from(target);
        // The first level of one side that holds nodes of the other side holds a node of every shortest path.
        let from_source = loop {
            let work = |search: &Search, back: bool| -> usize {
                let edges =
                    |node: &u32| if back { graph.incoming(*node).len() } else { graph.outgoing(*node).len() };
                search.frontier().iter().map(edges).sum()
            };
            let ahead = work(&self.forward, false) <= work(&self.backward, true);
            let (side, other) = match ahead {
                true => (&mut self.forward, &self.backward),
                false => (&mut self.backward, &self.forward),
            };
            let more = if ahead {
                side.advance(|node| graph.outgoing(node))
            } else {
                side.advance(|node| graph.incoming(node))
            };
            if !more {
                return;
            }
            if side.frontier().iter().any(|node| other.depth(*node) != UNMET) {
                break ahead;
            }
        };
        let (side, other) = match from_source {
            true => (&self.forward, &self.backward),
            false => (&self.backward, &self.forward),
        };
        let met = side.frontier().iter().filter(|node| other.depth(**node) != UNMET);
        let weight = |node: u32| (side.paths[node as usize] * other.paths[node as usize]).min(1e300);
        let Some(middle) = drawn(met.copied(), weight, rng) else { return };
        if middle != source && middle != target {
            counts[middle as usize] += 1;
        }
        walk(&self.forward, middle, |node| graph.incoming(node), rng, counts);
        walk(&self.backward, middle, |node| graph.outgoing(node), rng, counts);
    }
}

/// Walks from `middle` to the root of a search along a random shortest path and counts the nodes between.
fn walk<'g>(
    search: &Search,
    middle: u32,
    edges: impl Fn(u32) -> &'g [u32],
    rng: &mut ChaCha8Rng,
    counts: &mut [u64],
) {
    let mut node = middle;
    while search.depth(node) > 1 {
        let wanted = search.depth(node) - 1;
        let previous = edges(node).iter().copied().filter(|other| search.depth(*other) == wanted);
        let Some(chosen) = drawn(previous, |node| search.paths[node as usize], rng) else { return };
        counts[chosen as usize] += 1;
        node = chosen;
    }
}

/// One of `nodes`, with probability proportional to its weight.
fn drawn(
    nodes: impl Iterator<Item = u32> + Clone,
    weight: impl Fn(u32) -> f64,
    rng: &mut ChaCha8Rng,
) -> Option<u32> {
    let total: f64 = nodes.clone().map(&weight).sum();
    let mut left = rng.random::<f64>() * total;
    let mut last = None;
    for node in nodes {
        left -= weight(node);
        last = Some(node);
        if left < 0.0 {
            break;
        }
    }
    last
}
