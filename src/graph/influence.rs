//! How influential a graph's nodes are: PageRank and betweenness, computed by the core and written to the
//! directory in batches.

use super::input::{Input, Reading, Statements};
use crate::catalog::graph::influence::{self, Computed};
use crate::catalog::graph::{self, Graph};
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::{fresh_snapshot, read};
use crate::pg::report::{PgResult, bad_argument, internal};
use crate::pg::{guc, security, spi};
use foreshard_core::graph::between::{self, BetweenError};
use foreshard_core::graph::csr::Digraph;
use foreshard_core::graph::rank::{RankOptions, Ranks, page_rank};
use std::ops::ControlFlow;

/// Betweenness is exact while nodes × edges are no more than this (about a second).
const EXACT_WORK: f64 = 1e8;
/// Share of the computations in which the bound of sampled betweenness may be wrong.
const DELTA: f64 = 0.1;
/// Error that sampled betweenness may have unless somebody asks for another one.
pub const EPSILON: f64 = 0.01;
/// Rows written at once.
pub const WRITE_BATCH: usize = 10_000;
/// How many of the most influential nodes are listed.
const LISTED: usize = 100;

/// Scores of all nodes, by number.
pub struct Scores {
    /// Keys.
    pub keys: Vec<NodeKey>,
    /// PageRank; sums to 1.
    pub influence: Vec<f64>,
    /// Share of all shortest paths that lead through a node.
    pub betweenness: Vec<f64>,
    /// How it went.
    pub done: Computed,
    /// The graph's changes before it was read.
    pub changes: String,
}

/// PageRank; interrupts are served after every iteration.
///
/// # Errors
/// 22023 for weights that are none.
pub fn ranks(graph: &Digraph, start: Option<&[f64]>) -> PgResult<Ranks> {
    let look = |_, _| {
        pgrx::check_for_interrupts!();
        ControlFlow::Continue(())
    };
    page_rank(graph, &RankOptions::default(), start, look)
        .map_err(|problem| bad_argument(problem.to_string()))
}

/// Computes the scores of a graph's nodes from its edges as they are now; acts as the graph's owner.
///
/// # Errors
/// 22023 for weights of edges that are negative or not finite, and for a bad `epsilon`.
pub fn compute(graph: &Graph, epsilon: f64) -> PgResult<Scores> {
    let _owner = security::as_restricted_owner(graph.owner);
    spi::set_local("row_security", "off")?;
    let _fresh = fresh_snapshot();
    let changes = influence::changes(graph)?;
    let mut reading = Reading::default();
    reading.read(&Statements::weighted(graph), graph.kind, |_| true)?;
    let input = reading.finish(true)?;
    let start = known(graph, &input)?;
    let ranks = ranks(&input.graph, start.as_deref())?;
    let work = f64::from(input.graph.node_count()) * input.graph.edge_count() as f64;
    let (method, betweenness, samples, error_bound) = match work <= EXACT_WORK {
        true => {
            ("exact", between::exact(&input.graph, |done| look(u64::from(done))).map_err(failed)?, 0, 0.0)
        }
        false => {
            let seed = u64::from(ranks.iterations) ^ u64::from(input.graph.node_count());
            let found = between::sampled(&input.graph, epsilon, DELTA, seed, look).map_err(failed)?;
            ("sampled", found.values, found.samples, found.error_bound)
        }
    };
    let done = Computed {
        nodes: i64::from(input.graph.node_count()),
        iterations: ranks.iterations as i32,
        converged: ranks.converged,
        method,
        samples: samples as i64,
        error_bound,
    };
    Ok(Scores { keys: input.keys.keys().to_vec(), influence: ranks.values, betweenness, done, changes })
}

fn look(done: u64) -> ControlFlow<()> {
    if done.is_multiple_of(16) {
        pgrx::check_for_interrupts!();
    }
    ControlFlow::Continue(())
}

fn failed(problem: BetweenError) -> pgrx::pg_sys::panic::ErrorReport {
    match problem {
        BetweenError::BadBound => bad_argument(problem.to_string()),
        BetweenError::Cancelled => internal(problem),
    }
}

/// The scores that the directory has, to begin with; None when they are no beginning.
fn known(graph: &Graph, input: &Input) -> PgResult<Option<Vec<f64>>> {
    let mut found: Vec<Option<f64>> = vec![None; input.keys.len() as usize];
    read::each(&influence::knowledge_query(graph, guc::GRAPH_HALF_LIFE.get()), graph.kind, |row| {
        let number = row.key(1).and_then(|key| input.keys.get(&key));
        if let Some(place) = number.and_then(|number| found.get_mut(number as usize)) {
            *place = row.float(3).filter(|score| score.is_finite() && *score >= 0.0);
        }
        Ok(())
    })?;
    let some: Vec<f64> = found.iter().flatten().copied().collect();
    let total: f64 = some.iter().sum();
    if total <= 0.0 {
        return Ok(None);
    }
    let mean = total / some.len() as f64;
    Ok(Some(found.into_iter().map(|score| score.unwrap_or(mean)).collect()))
}

/// Writes batch number `batch` of the scores; None when there is none. Acts as the graph's owner.
pub fn write(graph: &Graph, scores: &Scores, batch: usize) -> PgResult<Option<u64>> {
    let from = batch * WRITE_BATCH;
    if from >= scores.keys.len() {
        let _owner = security::as_restricted_owner(graph.owner);
        influence::clear_gone(graph)?;
        return Ok(None);
    }
    let to = (from + WRITE_BATCH).min(scores.keys.len());
    let _owner = security::as_restricted_owner(graph.owner);
    let (Some(keys), Some(influence), Some(betweenness)) =
        (scores.keys.get(from..to), scores.influence.get(from..to), scores.betweenness.get(from..to))
    else {
        return Err(internal("scores are missing"));
    };
    influence::write_scores(graph, keys, influence, betweenness).map(Some)
}

/// Notes that the scores were computed, and the most influential nodes. As the extension's owner.
pub fn note(graph_id: i32, scores: &Scores) -> PgResult<()> {
    let of = |number: &usize| scores.influence.get(*number).copied().unwrap_or(0.0);
    let mut order: Vec<usize> = (0..scores.keys.len()).collect();
    order.sort_by(|a, b| of(b).total_cmp(&of(a)).then(a.cmp(b)));
    let top: Vec<(String, f64, f64)> = order
        .iter()
        .take(LISTED)
        .filter_map(|number| {
            let between = scores.betweenness.get(*number).copied().unwrap_or(0.0);
            Some((scores.keys.get(*number)?.text(), of(number), between))
        })
        .collect();
    graph::hold(graph_id)?;
    influence::note(graph_id, &scores.changes, &scores.done, &top)
}
