//! One ancestor after the other: which of its rows are lost, improved or put off.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::{FxHashMap, FxHashSet};

use super::view::{Part, View};
use super::{ClosureReader, MaintainError, Reached, RowChange, Sides, Touched};

/// No path.
const NONE: u32 = u32::MAX;

/// Nodes with more edges than this are asked the other way round: which of the ancestor's rows has an edge
/// to the node, instead of which of the node's edges comes from a row.
const MANY_EDGES: usize = 32;

/// A touched edge that concerns an ancestor.
#[derive(Clone, Copy)]
struct Concern {
    from: u32,
    edge: usize,
    /// Depth of the edge's near end as seen from the ancestor.
    depth: u32,
    /// Depth of its far end before.
    before: Option<u32>,
}

/// What becomes of one node, as seen from the ancestor at hand.
#[derive(Clone, Copy)]
struct Fate {
    before: Option<u32>,
    after: u32,
    /// Whether it lost all its shortest paths.
    lost: bool,
}

/// Rows of the ancestor at hand, for hubs.
enum Rows {
    Unread,
    Read,
    /// More than this many; not worth reading.
    Many(usize),
}

/// The state of a repair; one per call, reused for every ancestor.
pub(super) struct Repair<'v, 'r, R> {
    view: &'v mut View<'r, R>,
    from: u32,
    fates: FxHashMap<u32, Fate>,
    checked: FxHashSet<u32>,
    lost: Vec<(u32, u32)>,
    queue: BinaryHeap<Reverse<(u32, u32)>>,
    rows_state: Rows,
    rows: Vec<Reached>,
}

impl<'v, 'r, R: ClosureReader> Repair<'v, 'r, R> {
    pub(super) fn new(view: &'v mut View<'r, R>) -> Self {
        Self {
            view,
            from: 0,
            fates: FxHashMap::default(),
            checked: FxHashSet::default(),
            lost: Vec::new(),
            queue: BinaryHeap::new(),
            rows_state: Rows::Unread,
            rows: Vec::new(),
        }
    }

    /// Repairs every ancestor that a touched edge concerns and appends the rows that change.
    pub(super) fn run(
        &mut self,
        sides: &Sides,
        changes: &mut Vec<RowChange>,
    ) -> Result<(), MaintainError<R::Error>> {
        let concerns = self.concerns(sides)?;
        let edges = &sides.edges;
        let mut loops: Vec<u32> = concerns.iter().map(|concern| concern.from).collect();
        loops.dedup();
        let mut ends: Vec<u32> = edges.iter().map(|edge| edge.far).collect();
        ends.sort_unstable();
        ends.dedup();
        self.view.look_ahead(&loops, &ends)?;
        for own in concerns.chunk_by(|a, b| a.from == b.from) {
            let Some(first) = own.first() else { continue };
            self.from = first.from;
            self.repair(own, edges)?;
            self.tell(changes);
        }
        Ok(())
    }

    /// Which edges concern whom, by ancestor.
    fn concerns(&mut self, sides: &Sides) -> Result<Vec<Concern>, MaintainError<R::Error>> {
        let mut concerns = Vec::new();
        for (index, edge) in sides.edges.iter().enumerate() {
            for Reached { node, depth } in sides.near.get(&edge.near).into_iter().flatten() {
                if *depth >= self.view.max_depth() {
                    continue;
                }
                let before = self.view.depth(*node, edge.far)?;
                let through = depth + 1;
                let concerned = match edge.exists {
                    true => before.is_none_or(|before| through < before),
                    false => before == Some(through),
                };
                if concerned {
                    concerns.push(Concern { from: *node, edge: index, depth: *depth, before });
                }
            }
        }
        concerns.sort_unstable_by_key(|concern| (concern.from, concern.edge));
        Ok(concerns)
    }

    fn repair(&mut self, concerns: &[Concern], edges: &[Touched]) -> Result<(), MaintainError<R::Error>> {
        self.fates.clear();
        self.checked.clear();
        self.lost.clear();
        self.rows_state = Rows::Unread;
        let ends = |exists: bool| {
            let of = move |concern: &Concern| edges.get(concern.edge).map(|edge| (*concern, edge));
            concerns.iter().filter_map(of).filter(move |(_, edge)| edge.exists == exists)
        };
        for (concern, edge) in ends(false) {
            self.queue.push(Reverse((concern.depth + 1, edge.far)));
        }
        self.find_lost()?;
        for index in 0..self.lost.len() {
            let Some((depth, node)) = self.lost.get(index).copied() else { break };
            self.reconnect(node, depth)?;
        }
        for (concern, edge) in ends(true) {
            // A lost near end passes its depth on when it has one again.
            if self.fates.get(&edge.near).is_none_or(|fate| !fate.lost) {
                self.improve_known(edge.far, concern.depth + 1, Some(concern.before))?;
            }
        }
        self.settle()
    }

    /// Marks, in ascending order of their old depths, the nodes that no longer have any of their shortest
    /// paths. When a node is looked at, all nodes of smaller depth have been decided.
    fn find_lost(&mut self) -> Result<(), MaintainError<R::Error>> {
        while let Some(Reverse((depth, node))) = self.queue.pop() {
            if !self.checked.insert(node) || self.nearest(node, depth)?.is_some_and(|best| best <= depth) {
                continue;
            }
            self.fates.insert(node, Fate { before: Some(depth), after: NONE, lost: true });
            self.lost.push((depth, node));
            let onward = self.view.onward(node)?;
            for index in 0..onward.len {
                let Some(next) = self.view.at(onward, index) else { break };
                if next != self.from
                    && !self.checked.contains(&next)
                    && self.view.depth(self.from, next)? == Some(depth + 1)
                {
                    self.queue.push(Reverse((depth + 1, next)));
                }
            }
        }
        Ok(())
    }

    /// The best depth that `node` has through nodes that kept theirs; any of at most `enough` will do.
    fn nearest(&mut self, node: u32, enough: u32) -> Result<Option<u32>, MaintainError<R::Error>> {
        let back = self.view.back(node)?;
        if back.len > MANY_EDGES && self.read_rows(back.len)? {
            return self.nearest_of_rows(back, enough);
        }
        let mut best = None;
        for index in 0..back.len {
            let Some(previous) = self.view.at(back, index) else { break };
            if previous == node || self.fates.contains_key(&previous) {
                continue;
            }
            if let Some(depth) = self.view.depth(self.from, previous)? {
                best = Some(best.map_or(depth + 1, |best: u32| best.min(depth + 1)));
                if depth < enough {
                    break;
                }
            }
        }
        Ok(best)
    }

    fn nearest_of_rows(&mut self, back: Part, enough: u32) -> Result<Option<u32>, MaintainError<R::Error>> {
        self.view.spend(self.rows.len())?;
        let mut best: Option<u32> = None;
        for Reached { node, depth } in &self.rows {
            let better = best.is_none_or(|best| depth + 1 < best);
            if better && !self.fates.contains_key(node) && self.view.holds(back, *node) {
                best = Some(depth + 1);
                if *depth < enough {
                    break;
                }
            }
        }
        Ok(best)
    }

    /// Has the ancestor's rows at hand if they are fewer than `edges`.
    fn read_rows(&mut self, edges: usize) -> Result<bool, MaintainError<R::Error>> {
        let unread = match self.rows_state {
            Rows::Unread => true,
            Rows::Read => return Ok(self.rows.len() < edges),
            Rows::Many(least) => least < edges,
        };
        if unread {
            self.rows.clear();
            let full = self.view.reached(self.from, edges, &mut self.rows)?;
            self.rows_state = if full { Rows::Many(edges) } else { Rows::Read };
        }
        Ok(matches!(self.rows_state, Rows::Read) && self.rows.len() < edges)
    }

    /// Gives a lost node the best depth through nodes that were not lost; others may improve it later.
    fn reconnect(&mut self, node: u32, before: u32) -> Result<(), MaintainError<R::Error>> {
        let Some(best) = self.nearest(node, before.saturating_add(1))? else { return Ok(()) };
        if best <= self.view.max_depth() {
            if let Some(fate) = self.fates.get_mut(&node) {
                fate.after = best;
            }
            self.queue.push(Reverse((best, node)));
        }
        Ok(())
    }

    /// Lets `node` have this depth if it is better than what it has.
    fn improve(&mut self, node: u32, depth: u32) -> Result<(), MaintainError<R::Error>> {
        self.improve_known(node, depth, None)
    }

    /// The same of a node whose depth before may have been read already.
    fn improve_known(
        &mut self,
        node: u32,
        depth: u32,
        known: Option<Option<u32>>,
    ) -> Result<(), MaintainError<R::Error>> {
        if node == self.from || depth > self.view.max_depth() {
            return Ok(());
        }
        let fate = match (self.fates.get(&node), known) {
            (Some(fate), _) => *fate,
            (None, Some(before)) => Fate { before, after: before.unwrap_or(NONE), lost: false },
            (None, None) => {
                let before = self.view.depth(self.from, node)?;
                Fate { before, after: before.unwrap_or(NONE), lost: false }
            }
        };
        if depth < fate.after {
            self.fates.insert(node, Fate { after: depth, ..fate });
            self.queue.push(Reverse((depth, node)));
        }
        Ok(())
    }

    /// Passes new depths on, smallest first (Dijkstra).
    fn settle(&mut self) -> Result<(), MaintainError<R::Error>> {
        while let Some(Reverse((depth, node))) = self.queue.pop() {
            if self.fates.get(&node).is_none_or(|fate| fate.after != depth) {
                continue;
            }
            let onward = self.view.onward(node)?;
            for index in 0..onward.len {
                let Some(next) = self.view.at(onward, index) else { break };
                self.improve(next, depth.saturating_add(1))?;
            }
        }
        Ok(())
    }

    fn tell(&self, changes: &mut Vec<RowChange>) {
        for (node, fate) in &self.fates {
            let after = Some(fate.after).filter(|after| *after != NONE);
            if after != fate.before {
                let (ancestor, descendant) =
                    if self.view.backward() { (*node, self.from) } else { (self.from, *node) };
                changes.push(RowChange { ancestor, descendant, before: fate.before, after });
            }
        }
    }
}
