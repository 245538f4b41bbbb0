//! Rows of parts on nodes, as a reader keeps them: a question there takes as long as a thousand here, so all rows of a node
//! are asked for at once, and of many nodes where the repair says what it will read.

use super::reader::Reader;
use crate::catalog::graph::far::FarPart;
use crate::pg::report::{PgResult, internal};
use foreshard_core::graph::Reached;
use foreshard_core::graph::maintain::Ahead;
use std::collections::HashMap;

/// Nodes that are asked about at once.
const AT_ONCE: usize = 256;
/// Most nodes of which rows are read before anybody asks for them.
const MOST_AHEAD: usize = 4_096;
/// Rows that are kept, of one part.
const MOST_KEPT: usize = 2_000_000;

/// Rows of one node in one part, by the number of their other end.
#[derive(Default)]
struct Rows {
    depths: HashMap<u32, u32>,
    /// There are no others.
    is_whole: bool,
}

/// What was read of one part on a node.
pub(super) struct Far {
    pub(super) part: FarPart,
    below: HashMap<u32, Rows>,
    above: HashMap<u32, Rows>,
    kept: usize,
}

impl Far {
    pub(super) fn new(part: FarPart) -> Self {
        Self { part, below: HashMap::new(), above: HashMap::new(), kept: 0 }
    }

    fn side(&mut self, up: bool) -> &mut HashMap<u32, Rows> {
        if up { &mut self.above } else { &mut self.below }
    }

    fn forget_many(&mut self) {
        if self.kept > MOST_KEPT {
            self.below.clear();
            self.above.clear();
            self.kept = 0;
        }
    }
}

impl Reader<'_> {
    /// Which of the parts on nodes has the rows that begin at a node; None: one of this server's.
    pub(super) fn far_home(&mut self, node: u32) -> PgResult<Option<usize>> {
        if self.far.is_empty() {
            return Ok(None);
        }
        let shard = self.shard(node)?;
        Ok(self.far.iter().position(|far| far.part.shard_id == shard))
    }

    fn far(&mut self, at: usize) -> PgResult<&mut Far> {
        self.far.get_mut(at).ok_or_else(|| internal("an unknown part of the closure was asked for"))
    }

    /// Reads the rows of some nodes in one direction, whole or at most so many.
    fn read_far(&mut self, at: usize, up: bool, nodes: &[u32], most: Option<usize>) -> PgResult<()> {
        let keys = nodes.iter().map(|node| self.key(*node)).collect::<PgResult<Vec<_>>>()?;
        let part = self.far(at)?.part.clone();
        let rows = part.rows(self.graph, up, &keys, most)?;
        let is_whole = most.is_none_or(|most| rows.len() < most);
        let far = self.far(at)?;
        far.forget_many();
        far.kept += rows.len();
        for node in nodes {
            far.side(up).insert(*node, Rows { depths: HashMap::new(), is_whole });
        }
        for row in rows {
            let (ancestor, descendant) = (self.number(&row.ancestor)?, self.number(&row.descendant)?);
            self.remember(ancestor, Some(part.shard_id));
            self.remember(descendant, Some(row.descendant_shard));
            let (node, other) = if up { (descendant, ancestor) } else { (ancestor, descendant) };
            if let Some(own) = self.far(at)?.side(up).get_mut(&node) {
                own.depths.insert(other, row.depth);
            }
        }
        Ok(())
    }

    /// Reads all rows of these nodes in one direction that were not read yet.
    fn read_all_far(&mut self, at: usize, up: bool, nodes: &[u32]) -> PgResult<()> {
        let side = self.far(at)?.side(up);
        let is_new = |node: &&u32| side.get(*node).is_none_or(|own| !own.is_whole);
        let missing: Vec<u32> = nodes.iter().filter(is_new).copied().collect();
        for nodes in missing.chunks(AT_ONCE) {
            pgrx::check_for_interrupts!();
            self.read_far(at, up, nodes, None)?;
        }
        Ok(())
    }

    /// Depth of a pair's row in a part on a node.
    pub(super) fn far_depth(&mut self, at: usize, ancestor: u32, descendant: u32) -> PgResult<Option<u32>> {
        if let Some(above) = self.far(at)?.above.get(&descendant).filter(|own| own.is_whole) {
            return Ok(above.depths.get(&ancestor).copied());
        }
        self.read_all_far(at, false, &[ancestor])?;
        let below = self.far(at)?.below.get(&ancestor);
        Ok(below.and_then(|own| own.depths.get(&descendant).copied()))
    }

    /// Rows of a node in one direction in a part on a node, at most so many.
    pub(super) fn far_rows(
        &mut self,
        at: usize,
        up: bool,
        node: u32,
        limit: usize,
        rows: &mut Vec<Reached>,
    ) -> PgResult<()> {
        let known = self.far(at)?.side(up).get(&node);
        let is_enough = known.is_some_and(|own| own.is_whole || own.depths.len() >= limit);
        if !is_enough {
            // What is below a node is asked for again and again.
            self.read_far(at, up, &[node], up.then_some(limit))?;
        }
        if let Some(own) = self.far(at)?.side(up).get(&node) {
            let all = own.depths.iter().take(limit);
            rows.extend(all.map(|(node, depth)| Reached { node: *node, depth: *depth }));
        }
        Ok(())
    }

    /// Reads what a repair is about to ask for.
    pub(super) fn far_ahead(&mut self, ahead: &Ahead<'_>) -> PgResult<()> {
        let nodes: Vec<u32> = ahead.ends.iter().chain(ahead.loops).take(MOST_AHEAD).copied().collect();
        for at in 0..self.far.len() {
            if ahead.backward {
                self.read_all_far(at, true, &nodes)?;
                continue;
            }
            let mut own = Vec::new();
            for node in &nodes {
                if self.far_home(*node)? == Some(at) {
                    own.push(*node);
                }
            }
            self.read_all_far(at, false, &own)?;
        }
        Ok(())
    }
}
