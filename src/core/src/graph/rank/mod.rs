//! Influence by PageRank: weighted, dangling mass handled, from a cold or a warm start.
//!
//! Ranks solve `r(v) = (1 - d) / n + d · (Σ over edges (u, v) of w(u, v) / W(u) · r(u) + D / n)`, where `W(u)`
//! is the weight of all edges that leave u and D the rank of the nodes that have none (dangling): a surfer
//! there jumps anywhere (Page, Brin, Motwani, Winograd 1999; Langville, Meyer 2004). They sum to 1. Rank flows
//! along edges, so where "a depends on b" is the edge (a, b), what much depends on has influence.
//!
//! Power iteration. Threads have nodes of their own to write to, so they share nothing that they write, and the
//! result is the same for any number of threads but for the last bits of the convergence test. Edges are
//! arranged by blocks of sources whose contributions fit into a processor's second-level cache, within a block by
//! target (Nishtala, Vuduc, Demmel, Yelick, *When cache blocking of sparse matrix vector multiply works and
//! why*, 2007), 8 bytes per edge: large graphs then cost streaming, not a cache miss per edge. petgraph's `page_rank` is neither weighted nor this definition, and `O(n · (n + m))` an
//! iteration.

mod flow;

use std::fmt;
use std::ops::ControlFlow;

use super::csr::Digraph;
use flow::Flow;

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
        ranks.change = flow.iterate(&mut ranks.values);
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
