//! Assignments of slots to nodes by their true counts.

use std::collections::HashMap;

/// The node of every slot.
pub type Places = HashMap<i64, usize>;

fn descending(counts: &[(i64, u64)]) -> Vec<(i64, u64)> {
    let mut sorted = counts.to_vec();
    sorted.sort_by_key(|(slot, count)| (std::cmp::Reverse(*count), *slot));
    sorted
}

/// The `first` hottest slots on the first node, as many of the others on every other one.
pub fn hottest_first(counts: &[(i64, u64)], nodes: usize, first: usize) -> Places {
    let sorted = descending(counts);
    let each = sorted.len().saturating_sub(first).div_ceil((nodes - 1).max(1)).max(1);
    let node = |at: usize| at.checked_sub(first).map_or(0, |behind| 1 + behind / each);
    sorted.iter().enumerate().map(|(at, (slot, _))| (*slot, node(at))).collect()
}

/// The assignment whose busiest node is least busy, of all there are.
pub fn best(counts: &[(i64, u64)], nodes: usize) -> Places {
    let sorted = descending(counts);
    let mut search = Search {
        counts: &sorted,
        least: u64::MAX,
        chosen: vec![0; sorted.len()],
        now: vec![0; sorted.len()],
        loads: vec![0; nodes],
    };
    search.from(0);
    sorted.iter().zip(&search.chosen).map(|((slot, _), node)| (*slot, *node)).collect()
}

struct Search<'a> {
    counts: &'a [(i64, u64)],
    /// Load of the busiest node in the best assignment so far.
    least: u64,
    chosen: Vec<usize>,
    now: Vec<usize>,
    loads: Vec<u64>,
}

impl Search<'_> {
    fn from(&mut self, at: usize) {
        let Some((_, count)) = self.counts.get(at) else {
            self.least = self.loads.iter().max().copied().unwrap_or(0);
            self.chosen.clone_from(&self.now);
            return;
        };
        for node in 0..self.loads.len() {
            // Nodes are alike: of those that are still empty one is enough.
            let seen = self.loads[..node].contains(&self.loads[node]);
            if seen || self.loads[node] + count >= self.least {
                continue;
            }
            self.loads[node] += count;
            self.now[at] = node;
            self.from(at + 1);
            self.loads[node] -= count;
        }
    }
}
