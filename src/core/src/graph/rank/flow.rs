//! One iteration after the other, in parts for threads and blocks for caches.

use std::ops::Range;
use std::sync::Mutex;

use super::{MAX_THREADS, RankOptions};
use crate::graph::csr::Digraph;

/// Sources of a block: a quarter of a megabyte of contributions. Measured best of 13 to 20 bits.
const BLOCK_BITS: u32 = 15;

/// Places of a block that take turns.
const STREAMS: usize = 8;

/// What flows along edges between two iterations.
pub(super) struct Flow {
    damping: f64,
    /// 1 / weight of the edges that leave a node; 0 for a dangling one.
    shares: Vec<f64>,
    /// Rank × share: what an edge of weight 1 carries.
    carried: Vec<f64>,
    next: Vec<f64>,
    dangling: f64,
    /// Consecutive nodes with about equally many in-edges, one part per thread.
    parts: Vec<Part>,
}

/// Consecutive nodes and the edges to them.
struct Part {
    nodes: Range<usize>,
    /// Target (from the part's first node) and source, by block of sources and then by target.
    edges: Vec<[u32; 2]>,
    /// Where the edges of each block end.
    ends: Vec<usize>,
    /// In the order of `edges`; empty when all weights are 1.
    weights: Vec<f64>,
}

/// What one thread reports of its part.
#[derive(Clone, Copy, Default)]
struct Sums {
    change: f64,
    dangling: f64,
}

/// The part of the nodes that one thread computes, and where it writes.
struct Work<'a> {
    part: &'a Part,
    ranks: &'a mut [f64],
    next: &'a mut [f64],
    sums: &'a mut Sums,
}

impl Flow {
    pub(super) fn new(graph: &Digraph, options: &RankOptions, ranks: &[f64]) -> Self {
        let share = |node: u32| {
            let weight = graph.out_weight(node);
            // A weight too small for its reciprocal carries nothing either.
            if weight.is_finite() && (1.0 / weight).is_finite() { 1.0 / weight } else { 0.0 }
        };
        let shares: Vec<f64> = graph.nodes().map(share).collect();
        let dangling = ranks.iter().zip(&shares).filter(|(_, share)| **share <= 0.0).map(|(rank, _)| rank);
        let parts = parts(graph, options.threads.clamp(1, MAX_THREADS));
        Self {
            damping: options.damping,
            carried: ranks.iter().zip(&shares).map(|(rank, share)| rank * share).collect(),
            next: vec![0.0; shares.len()],
            dangling: dangling.sum(),
            parts: parts.into_iter().map(|nodes| Part::new(graph, nodes)).collect(),
            shares,
        }
    }

    /// One iteration in place; by how much it changed all ranks together.
    pub(super) fn iterate(&mut self, ranks: &mut [f64]) -> f64 {
        let nodes = ranks.len() as f64;
        let base = (1.0 - self.damping) / nodes + self.damping * self.dangling / nodes;
        let mut sums = vec![Sums::default(); self.parts.len()];
        let mut works = Vec::with_capacity(self.parts.len());
        let (mut ranks_left, mut next_left) = (ranks, self.next.as_mut_slice());
        for (part, sums) in self.parts.iter().zip(&mut sums) {
            let (ranks, others) = ranks_left.split_at_mut(part.nodes.len());
            let (next, rest) = next_left.split_at_mut(part.nodes.len());
            (ranks_left, next_left) = (others, rest);
            works.push(Work { part, ranks, next, sums });
        }
        let (damping, shares, carried) = (self.damping, &self.shares, &self.carried);
        run(works, |work| work.run(base, damping, shares, carried));
        std::mem::swap(&mut self.carried, &mut self.next);
        self.dangling = sums.iter().map(|sums| sums.dangling).sum();
        sums.iter().map(|sums| sums.change).sum()
    }
}

impl Part {
    fn new(graph: &Digraph, nodes: Range<usize>) -> Self {
        let blocks = (graph.node_count() as usize >> BLOCK_BITS) + 1;
        let (starts, all) = (graph.in_starts(), graph.in_nodes());
        let range = starts[nodes.start] as usize..starts[nodes.end] as usize;
        let mut places = vec![0_usize; blocks + 1];
        for source in &all[range.clone()] {
            places[(*source >> BLOCK_BITS) as usize + 1] += 1;
        }
        for block in 1..=blocks {
            places[block] += places[block - 1];
        }
        let mut edges = vec![[0; 2]; range.len()];
        let mut weights = vec![0.0; graph.in_weight_array().get(range).map_or(0, <[f64]>::len)];
        for node in nodes.clone() {
            let target = (node - nodes.start) as u32;
            for index in starts[node] as usize..starts[node + 1] as usize {
                let place = &mut places[(all[index] >> BLOCK_BITS) as usize];
                edges[*place] = [target, all[index]];
                if let Some(weight) = weights.get_mut(*place) {
                    *weight = graph.in_weight_array()[index];
                }
                *place += 1;
            }
        }
        // Every place has moved on to the end of its block.
        places.truncate(blocks);
        Self { nodes, edges, ends: places, weights }
    }
}

impl Work<'_> {
    /// New ranks of the part.
    fn run(&mut self, base: f64, damping: f64, shares: &[f64], carried: &[f64]) {
        self.next.fill(0.0);
        let mut begin = 0;
        for end in &self.part.ends {
            let edges = self.part.edges.get(begin..*end).unwrap_or_default();
            match self.part.weights.get(begin..*end) {
                Some(weights) => flow_weighted(edges, weights, carried, self.next),
                None => flow(edges, carried, self.next),
            }
            begin = *end;
        }
        let shares = shares.get(self.part.nodes.clone()).unwrap_or_default();
        let mut sums = Sums::default();
        for ((rank, next), share) in self.ranks.iter_mut().zip(self.next.iter_mut()).zip(shares) {
            let new = base + damping * *next;
            sums.change += (new - *rank).abs();
            *rank = new;
            *next = new * share;
            if *share <= 0.0 {
                sums.dangling += new;
            }
        }
        *self.sums = sums;
    }
}

/// Lets contributions of one block flow. A target's edges follow one another, and each would wait for the sum of
/// the one before; so places far apart in the block take turns (measured: half the time).
fn flow(edges: &[[u32; 2]], carried: &[f64], next: &mut [f64]) {
    let mut add = |[target, source]: [u32; 2]| next[target as usize] += carried[source as usize];
    let length = edges.len() / STREAMS;
    let streams: [&[[u32; 2]]; STREAMS] =
        std::array::from_fn(|stream| &edges[stream * length..(stream + 1) * length]);
    for index in 0..length {
        for stream in &streams {
            add(stream[index]);
        }
    }
    edges[STREAMS * length..].iter().for_each(|edge| add(*edge));
}

/// The same with weights.
fn flow_weighted(edges: &[[u32; 2]], weights: &[f64], carried: &[f64], next: &mut [f64]) {
    let mut add = |index: usize| {
        let [target, source] = edges[index];
        next[target as usize] += carried[source as usize] * weights[index];
    };
    let length = edges.len() / STREAMS;
    for index in 0..length {
        for stream in 0..STREAMS {
            add(stream * length + index);
        }
    }
    (STREAMS * length..edges.len()).for_each(add);
}

/// Runs all parts, the last one here and the others in threads of their own; here as well when the system has no
/// thread left.
fn run<'a>(mut works: Vec<Work<'a>>, part: impl Fn(&mut Work<'a>) + Sync) {
    let last = works.pop();
    // Every work in a slot that its thread empties, so that it is still there when no thread can be had.
    let slots: Vec<Mutex<Option<Work<'a>>>> = works.into_iter().map(|work| Mutex::new(Some(work))).collect();
    let run_slot = |slot: &Mutex<Option<Work<'a>>>| {
        let taken = slot.lock().ok().and_then(|mut slot| slot.take());
        if let Some(mut work) = taken {
            part(&mut work);
        }
    };
    std::thread::scope(|scope| {
        for slot in &slots {
            let spawned = std::thread::Builder::new().spawn_scoped(scope, || run_slot(slot));
            if spawned.is_err() {
                run_slot(slot);
            }
        }
        if let Some(mut work) = last {
            part(&mut work);
        }
    });
}

/// All nodes in consecutive parts with about equal work.
fn parts(graph: &Digraph, threads: usize) -> Vec<Range<usize>> {
    let nodes = graph.node_count() as usize;
    let work = |node: usize| graph.in_starts().get(node).map_or(0, |edges| *edges as usize) + 4 * node;
    let all = work(nodes);
    let mut parts = Vec::with_capacity(threads);
    let mut begin = 0;
    for thread in 1..threads {
        // The first node whose work so far reaches this thread's share.
        let (mut low, mut high) = (begin, nodes);
        while low < high {
            let middle = low + (high - low) / 2;
            if work(middle) < all / threads * thread { low = middle + 1 } else { high = middle }
        }
        parts.push(begin..low);
        begin = low;
    }
    parts.push(begin..nodes);
    parts
}
