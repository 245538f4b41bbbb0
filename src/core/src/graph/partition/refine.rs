//! Moving nodes of one level to where they are connected best, within the limits of the shards.

use super::PartitionOptions;
use super::weights::WeightedGraph;
use crate::graph::shards::Shards;

/// A graph, its shards, and scratch space.
pub(super) struct Refiner<'a> {
    graph: &'a WeightedGraph,
    home: &'a [u16],
    shards: &'a Shards,
    options: &'a PartitionOptions,
    /// The most load of each shard.
    limits: Vec<f64>,
    /// Weights of the edges of the node at hand, by shard.
    near: Vec<f64>,
    /// Shards with such edges.
    seen: Vec<u16>,
}

/// Where a node would go, and what is gained in edge weight (negative when lost).
#[derive(Clone, Copy)]
struct Offer {
    to: u16,
    gain: f64,
}

impl<'a> Refiner<'a> {
    pub(super) fn new(
        graph: &'a WeightedGraph,
        home: &'a [u16],
        shards: &'a Shards,
        options: &'a PartitionOptions,
    ) -> Self {
        let total = graph.total_load() * (1.0 + options.slack.max(0.0));
        let limit = |shard: u16| total * shards.share(shard);
        Self {
            graph,
            home,
            shards,
            options,
            limits: (0..shards.len() as u16).map(limit).collect(),
            near: vec![0.0; shards.len()],
            seen: Vec::new(),
        }
    }

    /// Places all nodes anew, heaviest first, each where it is connected best to those already placed.
    pub(super) fn gather(&mut self, places: &mut [u16]) {
        let mut order: Vec<u32> = (0..self.graph.len() as u32).collect();
        let load = |node: u32| self.graph.load(node as usize);
        order.sort_by(|a, b| load(*b).total_cmp(&load(*a)).then(a.cmp(b)));
        let mut placed = vec![false; self.graph.len()];
        let mut loads = vec![0.0; self.shards.len()];
        for node in order.iter().map(|node| *node as usize) {
            let mut near = vec![0.0; self.shards.len()];
            for (other, weight) in self.graph.edges(node) {
                if placed[other as usize] {
                    near[usize::from(places[other as usize])] += f64::from(weight);
                }
            }
            let own = self.graph.load(node);
            let score = |shard: &u16| {
                let shard = usize::from(*shard);
                // Nothing near: a little for being empty, so that loads stay even.
                (near[shard] + 1e-9) * (1.0 - (loads[shard] + own) / self.limits[shard])
            };
            let best =
                self.shards.for_kind(self.graph.kind(node)).max_by(|a, b| score(a).total_cmp(&score(b)));
            let best = best.unwrap_or(0);
            places[node] = best;
            placed[node] = true;
            loads[usize::from(best)] += own;
        }
    }

    /// Improves until nothing improves, at most the rounds that options allow; then brings shards that carry
    /// too much below their limits.
    pub(super) fn refine(&mut self, places: &mut [u16]) {
        let mut loads = self.graph.shard_loads(places, self.shards.len());
        self.relieve(places, &mut loads);
        for round in 0..self.options.rounds {
            let forward = round % 2 == 0;
            let last = self.graph.len().saturating_sub(1);
            let mut moved = 0_usize;
            for index in 0..self.graph.len() {
                let node = if forward { index } else { last - index };
                let from = places[node];
                if let Some(best) = self.best(node, places, &loads)
                    && best.gain > 1e-9
                {
                    self.shift(node, from, best.to, places, &mut loads);
                    moved += 1;
                }
            }
            self.relieve(places, &mut loads);
            if moved == 0 {
                break;
            }
        }
    }

    /// Takes nodes from shards that carry too much, those first that lose least per load.
    fn relieve(&mut self, places: &mut [u16], loads: &mut [f64]) {
        for shard in 0..self.shards.len() {
            if loads[shard] <= self.limits[shard] {
                continue;
            }
            let mut offers = Vec::new();
            for node in 0..self.graph.len() {
                if usize::from(places[node]) == shard
                    && self.graph.load(node) > 0.0
                    && let Some(best) = self.best(node, places, loads)
                {
                    offers.push((-best.gain / self.graph.load(node), node));
                }
            }
            offers.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            for (_, node) in offers {
                if loads[shard] <= self.limits[shard] {
                    break;
                }
                if let Some(best) = self.best(node, places, loads) {
                    self.shift(node, shard as u16, best.to, places, loads);
                }
            }
        }
    }

    fn shift(&self, node: usize, from: u16, to: u16, places: &mut [u16], loads: &mut [f64]) {
        loads[usize::from(from)] -= self.graph.load(node);
        loads[usize::from(to)] += self.graph.load(node);
        places[node] = to;
    }

    /// The best other shard that has room for a node; of equally good ones the least used.
    fn best(&mut self, node: usize, places: &[u16], loads: &[f64]) -> Option<Offer> {
        self.seen.drain(..).for_each(|shard| self.near[usize::from(shard)] = 0.0);
        for (other, weight) in self.graph.edges(node) {
            let shard = places[other as usize];
            if self.near[usize::from(shard)] <= 0.0 {
                self.seen.push(shard);
            }
            self.near[usize::from(shard)] += f64::from(weight);
        }
        if self.options.stay > 0.0 {
            let home = self.home[node];
            if self.near[usize::from(home)] <= 0.0 {
                self.seen.push(home);
            }
            self.near[usize::from(home)] += self.options.stay * f64::from(self.graph.cost(node));
        }
        let (from, own) = (places[node], self.graph.load(node));
        let mut best: Option<Offer> = None;
        let used = |shard: u16| loads[usize::from(shard)] / self.limits[usize::from(shard)];
        for to in self.shards.for_kind(self.graph.kind(node)) {
            if to == from || loads[usize::from(to)] + own > self.limits[usize::from(to)] {
                continue;
            }
            let gain = self.near[usize::from(to)] - self.near[usize::from(from)];
            let better = |best: &Offer| gain > best.gain || (gain >= best.gain && used(to) < used(best.to));
            if best.as_ref().is_none_or(better) {
                best = Some(Offer { to, gain });
            }
        }
        best
    }
}
