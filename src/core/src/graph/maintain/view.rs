//! The reader, turned forward or backward, with a budget and every node's edges read once.

use rustc_hash::FxHashMap;

use super::{Ahead, ClosureReader, MaintainError, MaintainOptions, Reached};

/// Forward, "reaching" are ancestors and edges lead to descendants; backward it is the other way round.
pub(super) struct View<'r, R> {
    reader: &'r mut R,
    backward: bool,
    max_depth: u32,
    max_work: u64,
    work: u64,
    onward: Edges,
    back: Edges,
}

/// Edges that were read: node → its part of one long list, ascending.
#[derive(Default)]
struct Edges {
    parts: FxHashMap<u32, (usize, usize)>,
    nodes: Vec<u32>,
}

impl Edges {
    fn of(&self, node: u32) -> Option<&[u32]> {
        let (start, end) = self.parts.get(&node)?;
        self.nodes.get(*start..*end)
    }
}

impl<'r, R: ClosureReader> View<'r, R> {
    pub(super) fn new(reader: &'r mut R, options: &MaintainOptions) -> Self {
        Self {
            reader,
            backward: false,
            max_depth: options.max_depth.unwrap_or(u32::MAX),
            max_work: options.max_work,
            work: 0,
            onward: Edges::default(),
            back: Edges::default(),
        }
    }

    /// Chooses the direction; nothing may have been read of edges before.
    pub(super) fn turn(&mut self, backward: bool) {
        self.backward = backward;
    }

    pub(super) fn backward(&self) -> bool {
        self.backward
    }

    /// The largest depth that is kept.
    pub(super) fn max_depth(&self) -> u32 {
        self.max_depth
    }

    /// Accounts for work.
    pub(super) fn spend(&mut self, amount: usize) -> Result<(), MaintainError<R::Error>> {
        self.work = self.work.saturating_add(amount as u64);
        if self.work > self.max_work {
            return Err(MaintainError::TooMuchWork { limit: self.max_work });
        }
        Ok(())
    }

    /// What reaches `node`, itself last; whether that is `limit` rows or more (and then incomplete).
    pub(super) fn reaching(
        &mut self,
        node: u32,
        limit: usize,
        rows: &mut Vec<Reached>,
    ) -> Result<bool, MaintainError<R::Error>> {
        let read = match self.backward {
            false => self.reader.ancestors(node, limit, rows),
            true => self.reader.descendants(node, limit, rows),
        };
        self.finish(read, node, limit, rows)
    }

    /// What `node` reaches, itself last; whether that is `limit` rows or more (and then incomplete).
    pub(super) fn reached(
        &mut self,
        node: u32,
        limit: usize,
        rows: &mut Vec<Reached>,
    ) -> Result<bool, MaintainError<R::Error>> {
        let read = match self.backward {
            false => self.reader.descendants(node, limit, rows),
            true => self.reader.ancestors(node, limit, rows),
        };
        self.finish(read, node, limit, rows)
    }

    fn finish(
        &mut self,
        read: Result<(), R::Error>,
        node: u32,
        limit: usize,
        rows: &mut Vec<Reached>,
    ) -> Result<bool, MaintainError<R::Error>> {
        read.map_err(MaintainError::Reader)?;
        let full = rows.len() >= limit;
        rows.retain(|row| row.node != node);
        rows.push(Reached { node, depth: 0 });
        self.spend(rows.len())?;
        Ok(full)
    }

    /// Depth of `to` as seen from `from`, 0 for itself.
    pub(super) fn depth(&mut self, from: u32, to: u32) -> Result<Option<u32>, MaintainError<R::Error>> {
        if from == to {
            return Ok(Some(0));
        }
        self.spend(1)?;
        let depth = match self.backward {
            false => self.reader.depth(from, to),
            true => self.reader.depth(to, from),
        };
        depth.map_err(MaintainError::Reader)
    }

    /// Whether the edge exists; its ends as they are, not turned.
    pub(super) fn has_edge(&mut self, source: u32, target: u32) -> Result<bool, MaintainError<R::Error>> {
        self.spend(1)?;
        self.reader.has_edge(source, target).map_err(MaintainError::Reader)
    }

    pub(super) fn look_ahead(&mut self, loops: &[u32], ends: &[u32]) -> Result<(), MaintainError<R::Error>> {
        let ahead = Ahead { loops, ends, backward: self.backward };
        self.reader.look_ahead(&ahead).map_err(MaintainError::Reader)
    }

    /// Where the edges of `node` lead, ascending.
    pub(super) fn onward(&mut self, node: u32) -> Result<Part, MaintainError<R::Error>> {
        self.edges(node, false)
    }

    /// Where the edges to `node` come from, ascending.
    pub(super) fn back(&mut self, node: u32) -> Result<Part, MaintainError<R::Error>> {
        self.edges(node, true)
    }

    /// Element `index` of a part.
    pub(super) fn at(&self, part: Part, index: usize) -> Option<u32> {
        let edges = if part.back { &self.back } else { &self.onward };
        edges.nodes.get(part.start + index).copied().filter(|_| index < part.len)
    }

    /// Whether a part holds `node`.
    pub(super) fn holds(&self, part: Part, node: u32) -> bool {
        let edges = if part.back { &self.back } else { &self.onward };
        let nodes = edges.nodes.get(part.start..part.start + part.len).unwrap_or_default();
        nodes.binary_search(&node).is_ok()
    }

    fn edges(&mut self, node: u32, back: bool) -> Result<Part, MaintainError<R::Error>> {
        let known = if back { &mut self.back } else { &mut self.onward };
        if let Some(nodes) = known.of(node) {
            let len = nodes.len();
            let start = known.parts.get(&node).map_or(0, |(start, _)| *start);
            return Ok(Part { back, start, len });
        }
        let start = known.nodes.len();
        match back == self.backward {
            true => self.reader.out_edges(node, &mut known.nodes),
            false => self.reader.in_edges(node, &mut known.nodes),
        }
        .map_err(MaintainError::Reader)?;
        if let Some(nodes) = known.nodes.get_mut(start..) {
            // Usually sorted already, and then this is one pass.
            nodes.sort_unstable();
        }
        let len = known.nodes.len() - start;
        known.parts.insert(node, (start, start + len));
        self.spend(len + 1)?;
        Ok(Part { back, start, len })
    }
}

/// A node's edges in one direction; an index, because reading more moves the list.
#[derive(Clone, Copy)]
pub(super) struct Part {
    back: bool,
    start: usize,
    /// How many there are.
    pub(super) len: usize,
}
