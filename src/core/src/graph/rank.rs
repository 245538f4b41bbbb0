//! Influence by PageRank: weighted, dangling mass handled, from a cold or a warm start.
//!
//! Ranks solve `r(v) = (1 - d) / n + d · (Σ over edges (u, v) of w(u, v) / W(u) · r(u) + D / n)`, where `W(u)`
//! is the weight of all edges that leave u and D the rank of the nodes that have none (dangling): a surfer
//! there jumps anywhere (Page, Brin, Motwani, Winograd 1999; Langville, Meyer 2004). They sum to 1. Rank flows
//! along edges, so where "a depends on b" is the edge (a, b), what much depends on has influence.
//!
//! Power iteration that pulls: every node reads its in-edges' contributions, so threads share nothing
//! that they write, and the result is the same for any number of threads but for the last bits of the
//! convergence test. petgraph's `page_rank` is neither weighted nor this definition, and `O(n · (n + m))` an
//! iteration.

use std::fmt;
use std::ops::{ControlFlow, Range};

use super::csr::Digraph;

/// The most threads of one computation.
pub const MAX_THREADS: usize = 64;

/// How ranks are computed.
#[derive(Clone, Debug, PartialEq)]
pub struct RankOptions {
    /// Share of the rank that follows edges, in 0..1.
    pub damping: f64,
    /// Done when an iteration changes all ranks together by at most this much. The distance from the exact
    /// ranks is then at most `damping / (1 - damping)` times as much, all nodes together.
    pub tolerance: f64,
    /// The most iterations; after them the ranks are what they are, and not [`Ranks::converged`].
    pub max_iterations: u32,
    /// Threads, at most [`MAX_THREADS`]. They live for one iteration and inherit the caller's signal mask.
    pub threads: usize,
}

impl Default for RankOptions {
    fn default() -> Self {
        Self { damping: 0.85, tolerance: 1e-8, max_iterations: 500, threads: 1 }
    }
}

/// The ranks of all nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranks {
    /// Element `v` is the rank of node `v`; they sum to 1.
    pub values: Vec<f64>,
    /// Iterations that were made.
    pub iterations: u32,
    /// By how much the last one changed all ranks together.
    pub change: f64,
    /// Whether that is within the tolerance.
    pub converged: bool,
}

/// Why there are no ranks.
#[derive(Clone, Debug, PartialEq)]
pub enum RankError {
    /// `damping` is not in 0..1.
    BadDamping,
    /// `tolerance` is not a number above 0.
    BadTolerance,
    /// The start does not have a finite number of at least 0 for every node, or has only zeros.
    BadStart,
    /// The caller said stop.
    Cancelled,
}

impl fmt::Display for RankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadDamping => "damping must be at least 0 and below 1",
            Self::BadTolerance => "tolerance must be a number above 0",
            Self::BadStart => "the start must have a finite number of at least 0 for every node",
            Self::Cancelled => "computing ranks was cancelled",
        })
    }
}

impl std::error::Error for RankError {}

/// Computes the ranks, beginning with `start` (any positive scale; earlier ranks of nearly the same graph
/// save iterations) or with equal ones. `progress` is told the iteration and its change and may stop it.
///
/// # Errors
/// [`RankError`] for bad arguments, and when stopped.
pub fn page_rank(
    graph: &Digraph,
    options: &RankOptions,
    start: Option<&[f64]>,
    mut progress: impl FnMut(u32, f64) -> ControlFlow<()>,
) -> Result<Ranks, RankError> {
    if !(0.0..1.0).contains(&options.damping) {
        return Err(RankError::BadDamping);
    }
    if options.tolerance.is_nan() || options.tolerance <= 0.0 {
        return Err(RankError::BadTolerance);
    }
    let mut ranks = Ranks { values: first(graph, start)?, ..Ranks::default() };
    if ranks.values.is_empty() {
        return Ok(Ranks { converged: true, ..ranks });
    }
    let mut flow = Flow::new(graph, options, &ranks.values);
    while ranks.iterations < options.max_iterations {
        ranks.change = flow.iterate(graph, &mut ranks.values);
        ranks.iterations += 1;
        ranks.converged = ranks.change <= options.tolerance;
        if progress(ranks.iterations, ranks.change).is_break() {
            return Err(RankError::Cancelled);
        }
        if ranks.converged {
            break;
        }
    }
    Ok(ranks)
}

fn first(graph: &Digraph, start: Option<&[f64]>) -> Result<Vec<f64>, RankError> {
    let nodes = graph.node_count() as usize;
    let Some(start) = start else { return Ok(vec![1.0 / nodes as f64; nodes]) };
    let largest = start.iter().copied().fold(0.0, f64::max);
    let fine = start.iter().all(|rank| rank.is_finite() && *rank >= 0.0);
    if start.len() != nodes || !fine || (nodes > 0 && largest <= 0.0) {
        return Err(RankError::BadStart);
    }
    // Divided by the largest first: a sum of huge numbers must not overflow.
    let sum: f64 = start.iter().map(|rank| rank / largest).sum();
    Ok(start.iter().map(|rank| rank / largest / sum).collect())
}

/// What flows along edges between two iterations.
struct Flow {
    damping: f64,
    /// 1 / weight of the edges that leave a node; 0 for a dangling one.
    shares: Vec<f64>,
    /// Rank × share: what an edge of weight 1 carries.
    carried: Vec<f64>,
    next: Vec<f64>,
    dangling: f64,
    /// Consecutive nodes with about equally many in-edges, one part per thread.
    parts: Vec<Range<usize>>,
}

/// What one thread reports of its part.
#[derive(Clone, Copy, Default)]
struct Sums {
    change: f64,
    dangling: f64,
}

/// The part of the nodes that one thread computes.
struct Work<'a> {
    nodes: Range<usize>,
    ranks: &'a mut [f64],
    next: &'a mut [f64],
}

impl Flow {
    fn new(graph: &Digraph, options: &RankOptions, ranks: &[f64]) -> Self {
        let share = |node: u32| {
            let weight = graph.out_weight(node);
            // A weight too small for its reciprocal carries nothing either.
            if weight.is_finite() && (1.0 / weight).is_finite() { 1.0 / weight } else { 0.0 }
        };
        let shares: Vec<f64> = graph.nodes().map(share).collect();
        let dangling = ranks.iter().zip(&shares).filter(|(_, share)| **share <= 0.0).map(|(rank, _)| rank);
        Self {
            damping: options.damping,
            carried: ranks.iter().zip(&shares).map(|(rank, share)| rank * share).collect(),
            next: vec![0.0; shares.len()],
            dangling: dangling.sum(),
            parts: parts(graph, options.threads.clamp(1, MAX_THREADS)),
            shares,
        }
    }

    /// One iteration in place; by how much it changed all ranks together.
    fn iterate(&mut self, graph: &Digraph, ranks: &mut [f64]) -> f64 {
        let nodes = ranks.len() as f64;
        let base = (1.0 - self.damping) / nodes + self.damping * self.dangling / nodes;
        let mut works = Vec::with_capacity(self.parts.len());
        let (mut ranks_left, mut next_left) = (ranks, self.next.as_mut_slice());
        for nodes in &self.parts {
            let (ranks, others) = ranks_left.split_at_mut(nodes.len());
            let (next, rest) = next_left.split_at_mut(nodes.len());
            (ranks_left, next_left) = (others, rest);
            works.push(Work { nodes: nodes.clone(), ranks, next });
        }
        let (damping, shares, carried) = (self.damping, &self.shares, &self.carried);
        let sums = run(works, |work| pull(graph, base, damping, shares, carried, work));
        std::mem::swap(&mut self.carried, &mut self.next);
        self.dangling = sums.iter().map(|sums| sums.dangling).sum();
        sums.iter().map(|sums| sums.change).sum()
    }
}

/// Runs all parts, the first one here and the others in threads of their own; here as well when the system
/// has no thread left.
fn run<'a>(works: Vec<Work<'a>>, part: impl Fn(&mut Work<'a>) -> Sums + Sync) -> Vec<Sums> {
    let mut sums = vec![Sums::default(); works.len()];
    let part = &part;
    std::thread::scope(|scope| {
        let mut pairs: Vec<(Work<'a>, &mut Sums)> = works.into_iter().zip(&mut sums).collect();
        let own = if pairs.is_empty() { None } else { Some(pairs.swap_remove(0)) };
        let mut failed = Vec::new();
        for (work, sum) in pairs {
            let shared = std::sync::Arc::new(std::sync::Mutex::new(Some((work, sum))));
            let theirs = shared.clone();
            let spawned = std::thread::Builder::new().spawn_scoped(scope, move || once(&theirs, part));
            if spawned.is_err() {
                failed.push(shared);
            }
        }
        if let Some((mut work, sum)) = own {
            *sum = part(&mut work);
        }
        failed.iter().for_each(|shared| once(shared, part));
    });
    sums
}

/// The shared slot of a piece of work, so that it is still there when a thread cannot be had.
type Shared<'a, 's> = std::sync::Mutex<Option<(Work<'a>, &'s mut Sums)>>;

fn once<'a>(shared: &Shared<'a, '_>, part: &(impl Fn(&mut Work<'a>) -> Sums + Sync)) {
    let taken = shared.lock().ok().and_then(|mut slot| slot.take());
    if let Some((mut work, sum)) = taken {
        *sum = part(&mut work);
    }
}

/// New ranks of one part.
fn pull(
    graph: &Digraph,
    base: f64,
    damping: f64,
    shares: &[f64],
    carried: &[f64],
    work: &mut Work<'_>,
) -> Sums {
    let (starts, sources, weights) = (graph.in_starts(), graph.in_nodes(), graph.in_weight_array());
    let mut sums = Sums::default();
    let begin = work.nodes.start;
    for (index, (rank, next)) in work.ranks.iter_mut().zip(work.next.iter_mut()).enumerate() {
        let node = begin + index;
        let edges = starts[node] as usize..starts[node + 1] as usize;
        let own = &sources[edges.clone()];
        let sum = match weights.get(edges) {
            Some(weights) if !weights.is_empty() => {
                own.iter().zip(weights).map(|(source, weight)| carried[*source as usize] * weight).sum()
            }
            _ => gathered(own, carried),
        };
        let new = base + damping * sum;
        sums.change += (new - *rank).abs();
        *rank = new;
        *next = new * shares[node];
        if shares[node] <= 0.0 {
            sums.dangling += new;
        }
    }
    sums
}

/// Sum of some elements; in four chains, so that additions do not wait for one another.
fn gathered(places: &[u32], values: &[f64]) -> f64 {
    let (fours, rest) = places.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for four in fours {
        for (sum, place) in sums.iter_mut().zip(four) {
            *sum += values[*place as usize];
        }
    }
    let rest: f64 = rest.iter().map(|place| values[*place as usize]).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// All nodes in consecutive parts with about equal work.
fn parts(graph: &Digraph, threads: usize) -> Vec<Range<usize>> {
    let nodes = graph.node_count() as usize;
    let work = |node: usize| graph.in_starts().get(node).map_or(0, |edges| *edges as usize) + 4 * node;
    let all = work(nodes);
    let mut parts = Vec::with_capacity(threads);
    let mut begin = 0;
    for thread in 1..=threads {
        let end = if thread == threads {
            nodes
        } else {
            // The first node whose work so far reaches this thread's share.
            let (mut low, mut high) = (begin, nodes);
            while low < high {
                let middle = low + (high - low) / 2;
                if work(middle) < all / threads * thread { low = middle + 1 } else { high = middle }
            }
            low
        };
        parts.push(begin..end);
        begin = end;
    }
    parts
}
