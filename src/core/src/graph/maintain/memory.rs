//! A closure with its edges in memory, kept exact.

use std::convert::Infallible;
use std::fmt;

use rustc_hash::FxHashMap;

use super::{ClosureReader, MaintainError, MaintainOptions, Reached, RowChange, maintain};
use crate::graph::closure::{ClosureError, ClosureOptions, ClosureWalk};
use crate::graph::csr::{Digraph, GraphError};

/// Why edges could not be changed.
#[derive(Clone, Debug, PartialEq)]
pub enum EditError {
    /// An edge that shall be deleted is not there, or names an unknown node.
    UnknownEdge {
        /// Where it begins.
        source: u32,
        /// Where it ends.
        target: u32,
    },
    /// The change takes more work than allowed; nothing was changed.
    TooMuchWork {
        /// The most rows and edges that might have been looked at.
        limit: u64,
    },
    /// The closure is larger than allowed.
    Closure(ClosureError),
    /// The graph is larger than allowed.
    Graph(GraphError),
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownEdge { source, target } => write!(f, "there is no edge {source} to {target}"),
            Self::TooMuchWork { limit } => MaintainError::<String>::TooMuchWork { limit: *limit }.fmt(f),
            Self::Closure(error) => error.fmt(f),
            Self::Graph(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for EditError {}

/// A closure in memory: two hash maps per node, about 30 bytes per pair.
#[derive(Clone, Debug, Default)]
pub struct MemoryClosure {
    /// Sorted, with parallel edges.
    out: Vec<Vec<u32>>,
    into: Vec<Vec<u32>>,
    descendants: Vec<FxHashMap<u32, u32>>,
    ancestors: Vec<FxHashMap<u32, u32>>,
    options: MaintainOptions,
    rows: u64,
    last_asked: (u32, u32),
}

impl MemoryClosure {
    /// The closure of a graph, at most `max_rows` rows without those of nodes with themselves.
    ///
    /// # Errors
    /// [`EditError::Closure`] beyond that.
    pub fn new(graph: &Digraph, options: MaintainOptions, max_rows: u64) -> Result<Self, EditError> {
        let nodes = graph.node_count() as usize;
        let mut closure = Self {
            out: graph.nodes().map(|node| graph.outgoing(node).to_vec()).collect(),
            into: graph.nodes().map(|node| graph.incoming(node).to_vec()).collect(),
            descendants: vec![FxHashMap::default(); nodes],
            ancestors: vec![FxHashMap::default(); nodes],
            options,
            rows: 0,
            last_asked: (0, 0),
        };
        let bulk = ClosureOptions { max_depth: options.max_depth, self_pairs: false, max_rows };
        let mut walk = ClosureWalk::new(graph, bulk);
        while let Some((ancestor, rows)) = walk.advance().map_err(EditError::Closure)? {
            let own = rows.iter().map(|row| (row.node, row.depth));
            closure.descendants[ancestor as usize] = own.collect();
            for Reached { node, depth } in rows {
                closure.ancestors[*node as usize].insert(ancestor, *depth);
            }
        }
        closure.rows = walk.rows_so_far();
        Ok(closure)
    }

    /// The number of nodes.
    pub fn node_count(&self) -> u32 {
        self.out.len() as u32
    }

    /// Rows, those of nodes with themselves not counted.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The depth of a pair, 0 for a node with itself.
    pub fn depth_of(&self, ancestor: u32, descendant: u32) -> Option<u32> {
        if ancestor == descendant {
            return Some(0).filter(|_| ancestor < self.node_count());
        }
        self.descendants.get(ancestor as usize)?.get(&descendant).copied()
    }

    /// The descendants of a node, ascending, without itself.
    pub fn descendants_of(&self, ancestor: u32) -> Vec<Reached> {
        sorted(self.descendants.get(ancestor as usize))
    }

    /// The ancestors of a node, ascending, without itself.
    pub fn ancestors_of(&self, descendant: u32) -> Vec<Reached> {
        sorted(self.ancestors.get(descendant as usize))
    }

    /// Inserts and deletes edges (one of parallel edges each) and keeps the closure exact; what changed.
    ///
    /// # Errors
    /// [`EditError`]; then nothing was changed.
    pub fn edit(
        &mut self,
        inserted: &[(u32, u32)],
        deleted: &[(u32, u32)],
    ) -> Result<Vec<RowChange>, EditError> {
        let nodes = self.node_count();
        if let Some((source, target)) = inserted.iter().find(|(a, b)| *a.max(b) >= nodes) {
            let node = *source.max(target);
            return Err(EditError::Graph(GraphError::UnknownNode { node, nodes }));
        }
        inserted.iter().for_each(|edge| self.add(*edge));
        for (index, edge) in deleted.iter().enumerate() {
            if !self.remove(*edge) {
                self.undo(inserted, deleted.get(..index).unwrap_or_default());
                return Err(EditError::UnknownEdge { source: edge.0, target: edge.1 });
            }
        }
        let touched: Vec<(u32, u32)> = inserted.iter().chain(deleted).copied().collect();
        let options = self.options;
        match maintain(self, &touched, &options) {
            Ok(changes) => {
                changes.iter().for_each(|change| self.apply(change));
                Ok(changes)
            }
            Err(MaintainError::TooMuchWork { limit }) => {
                self.undo(inserted, deleted);
                Err(EditError::TooMuchWork { limit })
            }
        }
    }

    fn undo(&mut self, inserted: &[(u32, u32)], deleted: &[(u32, u32)]) {
        deleted.iter().for_each(|edge| self.add(*edge));
        inserted.iter().for_each(|edge| {
            self.remove(*edge);
        });
    }

    fn add(&mut self, (source, target): (u32, u32)) {
        let (out, into) = (&mut self.out[source as usize], &mut self.into[target as usize]);
        out.insert(out.partition_point(|node| *node < target), target);
        into.insert(into.partition_point(|node| *node < source), source);
    }

    /// Whether there was such an edge.
    fn remove(&mut self, (source, target): (u32, u32)) -> bool {
        let Some(out) = self.out.get_mut(source as usize) else { return false };
        let Ok(place) = out.binary_search(&target) else { return false };
        out.remove(place);
        let into = &mut self.into[target as usize];
        if let Ok(place) = into.binary_search(&source) {
            into.remove(place);
        }
        true
    }

    fn apply(&mut self, change: &RowChange) {
        let RowChange { ancestor, descendant, before, after } = *change;
        let below = &mut self.descendants[ancestor as usize];
        let above = &mut self.ancestors[descendant as usize];
        match after {
            Some(depth) => {
                below.insert(descendant, depth);
                above.insert(ancestor, depth);
            }
            None => {
                below.remove(&descendant);
                above.remove(&ancestor);
            }
        }
        self.rows = self.rows + u64::from(before.is_none()) - u64::from(after.is_none());
    }
}

fn sorted(rows: Option<&FxHashMap<u32, u32>>) -> Vec<Reached> {
    let all = rows.into_iter().flatten();
    let mut rows: Vec<Reached> = all.map(|(node, depth)| Reached { node: *node, depth: *depth }).collect();
    rows.sort_unstable();
    rows
}

fn append(from: Option<&FxHashMap<u32, u32>>, limit: usize, rows: &mut Vec<Reached>) {
    let all = from.into_iter().flatten();
    rows.extend(all.take(limit).map(|(node, depth)| Reached { node: *node, depth: *depth }));
}

impl ClosureReader for MemoryClosure {
    type Error = Infallible;

    fn ancestors(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> Result<(), Infallible> {
        append(self.ancestors.get(node as usize), limit, rows);
        Ok(())
    }

    fn descendants(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> Result<(), Infallible> {
        append(self.descendants.get(node as usize), limit, rows);
        Ok(())
    }

    fn depth(&mut self, ancestor: u32, descendant: u32) -> Result<Option<u32>, Infallible> {
        // Of both maps that know it, the one that was asked last is in the processor's cache.
        let same_descendant = self.last_asked.1 == descendant && self.last_asked.0 != ancestor;
        self.last_asked = (ancestor, descendant);
        Ok(match same_descendant {
            true => self.ancestors.get(descendant as usize).and_then(|rows| rows.get(&ancestor)).copied(),
            false => self.descendants.get(ancestor as usize).and_then(|rows| rows.get(&descendant)).copied(),
        })
    }

    fn has_edge(&mut self, source: u32, target: u32) -> Result<bool, Infallible> {
        Ok(self.out.get(source as usize).is_some_and(|out| out.binary_search(&target).is_ok()))
    }

    fn out_edges(&mut self, node: u32, targets: &mut Vec<u32>) -> Result<(), Infallible> {
        targets.extend(self.out.get(node as usize).into_iter().flatten());
        Ok(())
    }

    fn in_edges(&mut self, node: u32, sources: &mut Vec<u32>) -> Result<(), Infallible> {
        sources.extend(self.into.get(node as usize).into_iter().flatten());
        Ok(())
    }
}
