//! The transitive closure with minimal depth, one ancestor at a time.
//!
//! A breadth-first search per ancestor: `O(pairs + edges looked at)` in total, and memory for one ancestor's
//! rows and a mark per node, so a caller can write rows in batches of any size. Matrix and bit-set methods
//! are faster on dense graphs but know no depth.

use std::fmt;
use std::ops::Range;

use super::Reached;
use super::csr::Digraph;

/// What a closure shall contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosureOptions {
    /// The largest depth that is kept; unlimited when `None`.
    pub max_depth: Option<u32>,
    /// Whether every node has its row (v, v, 0).
    pub self_pairs: bool,
    /// The most rows; beyond it [`ClosureError::TooManyRows`]. (A cycle of a million nodes has 10¹² rows.)
    pub max_rows: u64,
}

impl Default for ClosureOptions {
    fn default() -> Self {
        Self { max_depth: None, self_pairs: true, max_rows: 1 << 32 }
    }
}

/// Why a closure ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClosureError {
    /// It has more rows than were allowed.
    TooManyRows {
        /// The number allowed.
        limit: u64,
    },
}

impl fmt::Display for ClosureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRows { limit } => write!(f, "the closure has more than {limit} rows"),
        }
    }
}

impl std::error::Error for ClosureError {}

/// A walk over the rows of a closure; see the module.
#[derive(Clone, Debug)]
pub struct ClosureWalk<'g> {
    graph: &'g Digraph,
    options: ClosureOptions,
    left: Range<u32>,
    rows_so_far: u64,
    /// Element `v` is the stamp of the last search that met node `v`.
    met: Vec<u32>,
    stamp: u32,
    rows: Vec<Reached>,
}

impl<'g> ClosureWalk<'g> {
    /// A walk over all ancestors.
    pub fn new(graph: &'g Digraph, options: ClosureOptions) -> Self {
        let all = graph.nodes();
        Self::over(graph, options, all)
    }

    /// A walk over some ancestors: several of these can run at once.
    pub fn over(graph: &'g Digraph, options: ClosureOptions, ancestors: Range<u32>) -> Self {
        let end = ancestors.end.min(graph.node_count());
        Self {
            graph,
            options,
            left: ancestors.start.min(end)..end,
            rows_so_far: 0,
            met: vec![0; graph.node_count() as usize],
            stamp: 0,
            rows: Vec::new(),
        }
    }

    /// The next ancestor and its descendants by ascending depth; `None` after the last. An ancestor without
    /// rows (there can be some without self pairs) comes with an empty slice.
    ///
    /// # Errors
    /// [`ClosureError::TooManyRows`] when this ancestor's rows would exceed the limit.
    pub fn advance(&mut self) -> Result<Option<(u32, &[Reached])>, ClosureError> {
        let Some(ancestor) = self.left.next() else { return Ok(None) };
        self.search(ancestor);
        let skipped = usize::from(!self.options.self_pairs);
        let rows = self.rows.get(skipped..).unwrap_or_default();
        self.rows_so_far = self.rows_so_far.saturating_add(rows.len() as u64);
        if self.rows_so_far > self.options.max_rows {
            return Err(ClosureError::TooManyRows { limit: self.options.max_rows });
        }
        Ok(Some((ancestor, rows)))
    }

    /// The descendants of one node by ascending depth, itself first (whatever the options say about self
    /// pairs); empty for an unknown node. The walk goes on where it was.
    pub fn descendants(&mut self, ancestor: u32) -> &[Reached] {
        self.search(ancestor);
        &self.rows
    }

    /// Rows handed out so far.
    pub fn rows_so_far(&self) -> u64 {
        self.rows_so_far
    }

    fn search(&mut self, ancestor: u32) {
        self.rows.clear();
        if self.stamp == u32::MAX {
            self.met.fill(0);
            self.stamp = 0;
        }
        self.stamp += 1;
        let Some(first) = self.met.get_mut(ancestor as usize) else { return };
        *first = self.stamp;
        self.rows.push(Reached { node: ancestor, depth: 0 });
        let max_depth = self.options.max_depth.unwrap_or(u32::MAX);
        let mut next = 0;
        // The rows found so far are the queue of the search as well.
        while let Some(Reached { node, depth }) = self.rows.get(next).copied() {
            next += 1;
            if depth >= max_depth {
                break;
            }
            for target in self.graph.outgoing(node) {
                let met = &mut self.met[*target as usize];
                if *met != self.stamp {
                    *met = self.stamp;
                    self.rows.push(Reached { node: *target, depth: depth + 1 });
                }
            }
        }
    }
}
