//! The partition that follows what happens: windows in, a bounded number of moves out.

use std::collections::VecDeque;

use super::weights::WeightedGraph;
use super::{PartitionOptions, partition, repartition};
use crate::graph::csr::MAX_NODES;
use crate::graph::shards::{NodeMove, Placed, Shards, place_near};

/// The most different nodes of a window that are looked at; more are cut off.
pub const MAX_WINDOW: usize = 64;

/// Units of growth after which decayed numbers are brought down again.
const RESCALE: f64 = 1e6;

/// The most that a shard is asked to carry less or more to make up for the past, as a share of its share: a
/// bad past must not make a bad present.
const MAX_COMPENSATION: f64 = 0.1;

/// Not placed yet.
const NOWHERE: u16 = u16::MAX;

/// How an adaptive partition behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaptiveOptions {
    /// After this many windows half of a co-access weight is forgotten.
    pub pair_half_life_windows: f64,
    /// After this many windows half of a load is forgotten.
    pub load_half_life_windows: f64,
    /// Windows between two plans.
    pub period_windows: u32,
    /// The most nodes that move after one window.
    pub max_moves_per_window: usize,
    /// The most nodes that one plan may move.
    pub max_moves_per_plan: usize,
    /// The most partners that are remembered of a node, the heaviest.
    pub max_partners: usize,
    /// Nodes have numbers below this; others are ignored. Memory goes with the largest number seen, so numbers
    /// should be dense.
    pub max_nodes: u32,
    /// How strongly a shard that carried more than its share lately is asked to carry less from now on: by
    /// this many times the surplus. Loads of the past half-life then even out, not only those foreseen.
    pub compensation: f64,
    /// How plans are made.
    pub partition: PartitionOptions,
}

impl Default for AdaptiveOptions {
    fn default() -> Self {
        Self {
            pair_half_life_windows: 200_000.0,
            load_half_life_windows: 250_000.0,
            period_windows: 5_000,
            max_moves_per_window: 8,
            max_moves_per_plan: 10_000,
            max_partners: 32,
            max_nodes: 1 << 20,
            compensation: 1.0,
            partition: PartitionOptions { slack: 0.03, stay: 1.0, cycles: 1, ..PartitionOptions::default() },
        }
    }
}

/// A partner of a node and how much both were used together, in units of the landmark.
#[derive(Clone, Copy, Debug)]
struct Partner {
    node: u32,
    weight: f32,
}

/// What is known of one node.
#[derive(Clone, Debug)]
struct Known {
    place: u16,
    kind: u16,
    /// Accesses in units of the landmark.
    heat: f64,
    partners: Vec<Partner>,
}

/// A partition that is told windows and hands out moves; see the module above.
///
/// Memory: about 48 bytes per node number in use and 8 per partner remembered.
#[derive(Clone, Debug)]
pub struct Adaptive {
    shards: Shards,
    options: AdaptiveOptions,
    nodes: Vec<Known>,
    /// Heat of the nodes that live on a shard, in units of the landmark.
    heats: Vec<f64>,
    /// Accesses that a shard served when they came, in the same units.
    served: Vec<f64>,
    /// What an access is worth now, in units of the landmark.
    heat_unit: f64,
    pair_unit: f64,
    windows: u64,
    pending: VecDeque<NodeMove>,
    moves: Vec<NodeMove>,
    moved: u64,
    ignored: u64,
}

impl Adaptive {
    /// Knows nothing yet.
    pub fn new(shards: Shards, options: AdaptiveOptions) -> Self {
        Self {
            heats: vec![0.0; shards.len()],
            served: vec![0.0; shards.len()],
            shards,
            options,
            nodes: Vec::new(),
            heat_unit: 1.0,
            pair_unit: 1.0,
            windows: 0,
            pending: VecDeque::new(),
            moves: Vec::new(),
            moved: 0,
            ignored: 0,
        }
    }

    /// Tells where a node lives and of which type it is; `place` `None` for nowhere yet. False for a node
    /// number beyond the limit or a shard where it may not live.
    pub fn assign(&mut self, node: u32, kind: u16, place: Option<u16>) -> bool {
        let fine = place.is_none_or(|shard| self.shards.may(kind, shard));
        if !fine || self.known(node).is_none() {
            return false;
        }
        self.relocate(node, |known| (known.kind, known.place) = (kind, place.unwrap_or(NOWHERE)));
        true
    }

    /// Where a node lives: where it was placed, else where its number's hash puts it.
    pub fn shard_of(&self, node: u32) -> u16 {
        match self.nodes.get(node as usize) {
            Some(known) if known.place != NOWHERE => known.place,
            Some(known) => self.shards.default_shard(node, known.kind),
            None => self.shards.default_shard(node, 0),
        }
    }

    /// Whether a node was placed, rather than living where its hash puts it.
    pub fn is_placed(&self, node: u32) -> bool {
        self.nodes.get(node as usize).is_some_and(|known| known.place != NOWHERE)
    }

    /// Learns from a window of accesses without placing or moving anything.
    pub fn learn(&mut self, window: &[u32]) {
        let mut distinct: Vec<u32> = Vec::with_capacity(window.len().min(MAX_WINDOW));
        let heat = self.heat_unit;
        for node in window {
            let Some(known) = self.known(*node) else {
                self.ignored = self.ignored.saturating_add(1);
                continue;
            };
            known.heat += heat;
            distinct.push(*node);
            let shard = self.shard_of(*node);
            self.heats[usize::from(shard)] += heat;
        }
        distinct.sort_unstable();
        distinct.dedup();
        distinct.truncate(MAX_WINDOW);
        // A window is worth the same to every node in it, however many there are.
        let weight = (self.pair_unit / (distinct.len().max(2) - 1) as f64) as f32;
        let most = self.options.max_partners.max(1);
        for node in &distinct {
            for other in distinct.iter().filter(|other| *other != node) {
                if let Some(known) = self.nodes.get_mut(*node as usize) {
                    remember(&mut known.partners, *other, weight, most);
                }
            }
        }
        self.windows += 1;
        self.heat_unit *= (1.0 / self.options.load_half_life_windows.max(1.0)).exp2();
        self.pair_unit *= (1.0 / self.options.pair_half_life_windows.max(1.0)).exp2();
        self.rescale();
    }

    /// Makes two nodes partners as if they had been used together in this many windows: what the structure of a
    /// graph says before there is anything to observe. False for a node beyond the limit or a bad number.
    pub fn relate(&mut self, a: u32, b: u32, windows: f64) -> bool {
        let weight = (windows * self.pair_unit) as f32;
        let fine = weight.is_finite() && weight > 0.0 && a != b;
        if !fine || self.known(a.max(b)).is_none() {
            return false;
        }
        let most = self.options.max_partners.max(1);
        for (node, other) in [(a, b), (b, a)] {
            if let Some(known) = self.nodes.get_mut(node as usize) {
                remember(&mut known.partners, other, weight, most);
            }
        }
        true
    }

    /// Learns from a window, places nodes that were nowhere near those they came with, plans when it is time,
    /// and hands out the moves to make now (they are taken as made).
    pub fn observe(&mut self, window: &[u32]) -> &[NodeMove] {
        for node in window {
            let shard = self.shard_of(*node);
            self.served[usize::from(shard)] += self.heat_unit;
        }
        self.learn(window);
        self.moves.clear();
        self.settle_newcomers(window);
        if self.windows.is_multiple_of(u64::from(self.options.period_windows.max(1))) {
            self.plan();
        }
        while self.moves.len() < self.options.max_moves_per_window {
            let Some(next) = self.pending.pop_front() else { break };
            if self.shard_of(next.node) == next.from {
                self.relocate(next.node, |known| known.place = next.to);
                self.moves.push(next);
            }
        }
        self.moved += self.moves.len() as u64;
        &self.moves
    }

    /// Places everything that is known anew, from nothing but what was learnt.
    pub fn place_all(&mut self) {
        self.pending.clear();
        self.served.fill(0.0);
        let (graph, numbers) = self.graph();
        let options = PartitionOptions { cycles: 4, ..self.options.partition.clone() };
        let places = partition(&graph, &self.shards, &options);
        for (node, place) in numbers.iter().zip(places) {
            self.relocate(*node, |known| known.place = place);
        }
    }

    /// Moves handed out so far.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Accesses of nodes beyond the limit so far.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Moves that are planned and not yet handed out.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Decayed loads of all shards, in accesses.
    pub fn loads(&self) -> Vec<f64> {
        self.heats.iter().map(|heat| (heat / self.heat_unit).max(0.0)).collect()
    }

    /// Changes where a node lives, and its heat with it.
    fn relocate(&mut self, node: u32, change: impl FnOnce(&mut Known)) {
        let from = self.shard_of(node);
        let Some(known) = self.nodes.get_mut(node as usize) else { return };
        let heat = known.heat;
        change(known);
        let to = self.shard_of(node);
        self.heats[usize::from(from)] -= heat;
        self.heats[usize::from(to)] += heat;
    }

    /// What is known of a node; nothing for a number beyond the limit.
    fn known(&mut self, node: u32) -> Option<&mut Known> {
        if node >= self.options.max_nodes.min(MAX_NODES) {
            return None;
        }
        let place = node as usize;
        if place >= self.nodes.len() {
            let unknown = Known { place: NOWHERE, kind: 0, heat: 0.0, partners: Vec::new() };
            self.nodes.resize(place + 1, unknown);
        }
        self.nodes.get_mut(place)
    }

    /// Brings all numbers down before they lose precision.
    fn rescale(&mut self) {
        if self.heat_unit > RESCALE {
            let factor = 1.0 / self.heat_unit;
            self.served.iter_mut().for_each(|served| *served *= factor);
            self.nodes.iter_mut().for_each(|known| known.heat *= factor);
            self.heats.fill(0.0);
            for node in 0..self.nodes.len() as u32 {
                // Added up anew, so that rounding errors do not pile up either.
                let (shard, heat) = (self.shard_of(node), self.nodes[node as usize].heat);
                self.heats[usize::from(shard)] += heat;
            }
            self.heat_unit = 1.0;
        }
        if self.pair_unit > RESCALE {
            let factor = (1.0 / self.pair_unit) as f32;
            for known in &mut self.nodes {
                known.partners.iter_mut().for_each(|partner| partner.weight *= factor);
            }
            self.pair_unit = 1.0;
        }
    }

    /// Places nodes of the window that live nowhere yet.
    fn settle_newcomers(&mut self, window: &[u32]) {
        let new: Vec<u32> = window.iter().copied().filter(|node| !self.is_placed(*node)).collect();
        for node in new {
            let mut loads = self.loads();
            let Some(known) = self.nodes.get(node as usize) else { continue };
            let near: Vec<(u16, f64)> = known
                .partners
                .iter()
                .filter(|partner| self.is_placed(partner.node))
                .map(|partner| (self.shard_of(partner.node), f64::from(partner.weight)))
                .collect();
            let newcomer = Placed { load: known.heat / self.heat_unit, kind: known.kind };
            loads[usize::from(self.shard_of(node))] -= newcomer.load;
            let slack = self.options.partition.slack;
            let place = place_near(newcomer, &near, &loads, &self.shards, slack);
            self.relocate(node, |known| known.place = place);
        }
    }

    /// Plans moves from where everything is now.
    fn plan(&mut self) {
        self.pending.clear();
        let (graph, numbers) = self.graph();
        let home: Vec<u16> = numbers.iter().map(|node| self.shard_of(*node)).collect();
        let places = repartition(&graph, &home, &self.compensated(), &self.options.partition);
        let mut moves: Vec<(f64, NodeMove)> = Vec::new();
        for (index, node) in numbers.iter().enumerate() {
            let (from, to) = (home[index], places[index]);
            if from != to {
                moves.push((graph.load(index), NodeMove { node: *node, from, to }));
            }
        }
        moves.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.node.cmp(&b.1.node)));
        moves.truncate(self.options.max_moves_per_plan);
        self.pending.extend(moves.into_iter().map(|(_, step)| step));
    }

    /// The shards as the next plan shall see them: smaller where more was served than a fair share.
    fn compensated(&self) -> Shards {
        let total: f64 = self.served.iter().sum();
        let factor = |(shard, served): (u16, &f64)| {
            let surplus = if total > 0.0 { served / total / self.shards.share(shard) - 1.0 } else { 0.0 };
            1.0 - (self.options.compensation * surplus).clamp(-MAX_COMPENSATION, MAX_COMPENSATION)
        };
        let factors: Vec<f64> = (0_u16..).zip(&self.served).map(factor).collect();
        self.shards.scaled(&factors)
    }

    /// Forgets all but the `most` nodes with the most accesses and numbers those anew, in the order of their old
    /// numbers, which are returned.
    pub fn compact(&mut self, most: usize) -> Vec<u32> {
        let mut kept: Vec<u32> = (0..self.nodes.len() as u32).collect();
        let heat = |node: &u32| self.nodes[*node as usize].heat;
        kept.sort_by(|a, b| heat(b).total_cmp(&heat(a)).then(a.cmp(b)));
        kept.truncate(most);
        kept.sort_unstable();
        let mut number_of = vec![u32::MAX; self.nodes.len()];
        (0_u32..).zip(&kept).for_each(|(new, old)| number_of[*old as usize] = new);
        let mut nodes = Vec::with_capacity(kept.len());
        for old in &kept {
            let mut known = self.nodes[*old as usize].clone();
            known.partners.retain_mut(|partner| {
                partner.node = number_of[partner.node as usize];
                partner.node != u32::MAX
            });
            nodes.push(known);
        }
        self.nodes = nodes;
        self.pending.clear();
        self.heats.fill(0.0);
        for node in 0..self.nodes.len() as u32 {
            let (shard, heat) = (self.shard_of(node), self.nodes[node as usize].heat);
            self.heats[usize::from(shard)] += heat;
        }
        kept
    }

    /// What was learnt as a graph (loads are accesses), and the node behind each of its numbers.
    pub fn graph(&self) -> (WeightedGraph, Vec<u32>) {
        let mut numbers = Vec::new();
        let mut number_of = vec![u32::MAX; self.nodes.len()];
        for (node, known) in self.nodes.iter().enumerate() {
            if known.heat > 0.0 {
                number_of[node] = numbers.len() as u32;
                numbers.push(node as u32);
            }
        }
        let mut edges = Vec::new();
        for (index, node) in numbers.iter().enumerate() {
            let known = &self.nodes[*node as usize];
            for partner in &known.partners {
                let other = number_of[partner.node as usize];
                if other == u32::MAX {
                    continue;
                }
                // Both may remember the pair, or only the one to whom it matters more.
                let theirs = &self.nodes[partner.node as usize].partners;
                let mirrored = theirs.iter().find(|theirs| theirs.node == *node);
                if mirrored.is_none_or(|_| index as u32 > other) {
                    let weight = mirrored.map_or(0.0, |theirs| theirs.weight).max(partner.weight);
                    edges.push((index as u32, other, (f64::from(weight) / self.pair_unit) as f32));
                }
            }
        }
        let loads = numbers.iter().map(|node| self.nodes[*node as usize].heat / self.heat_unit).collect();
        let kinds = numbers.iter().map(|node| self.nodes[*node as usize].kind).collect();
        let costs = vec![1.0; numbers.len()];
        (WeightedGraph::collect(loads, kinds, costs, &edges), numbers)
    }
}

/// Adds to a partner's weight; a new one takes the place of the lightest when there are too many.
fn remember(partners: &mut Vec<Partner>, node: u32, weight: f32, most: usize) {
    let mut lightest = (f32::INFINITY, 0);
    for (index, partner) in partners.iter_mut().enumerate() {
        if partner.node == node {
            partner.weight += weight;
            return;
        }
        if partner.weight < lightest.0 {
            lightest = (partner.weight, index);
        }
    }
    let partner = Partner { node, weight };
    if partners.len() < most {
        partners.push(partner);
    } else if let Some(place) = partners.get_mut(lightest.1) {
        *place = partner;
    }
}
