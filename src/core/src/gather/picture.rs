//! Keys and the rest of every shard as a graph, and the best places that are worth their bytes.

use std::collections::BTreeSet;

use super::lists::Lists;
use super::plan::{GatherOptions, SlotState};
use crate::graph::partition::{WeightedGraph, cut_share, partition, repartition};
use crate::graph::shards::{Placed, Shards, balance};

/// A placement from nothing is only taken when it cuts less than this share of what an improved one cuts.
const FROM_NOTHING: f64 = 0.7;

/// What pays and what there is room for depend on each other: they are looked at in turn, at most so often.
const TURNS: u32 = 4;

/// A key, as a node.
pub(super) struct Node {
    /// Number among the keys.
    pub(super) key: u32,
    pub(super) slot: u32,
    /// Shard of its slot.
    pub(super) home: u16,
    /// It stays where it is.
    pub(super) fixed: bool,
    /// It has a place by itself.
    pub(super) alone: bool,
}

/// Where everything shall be.
pub(super) struct Settled {
    pub(super) places: Vec<u16>,
    /// Lists whose other keys go home.
    pub(super) cleared: BTreeSet<(u32, u16)>,
    /// As in [`super::Gathering`].
    pub(super) crossing: (f64, f64),
    pub(super) balance: (f64, f64),
}

/// Keys and the rest of every shard as a graph.
pub(super) struct Picture {
    pub(super) graph: WeightedGraph,
    pub(super) nodes: Vec<Node>,
    /// Of keys and rests: where they are.
    pub(super) present: Vec<u16>,
    pub(super) shards: Shards,
}

impl Picture {
    /// Adds what a shard's slots carry beside these keys, which stays where it is.
    pub(super) fn with_rests(
        shards: &Shards,
        slots: &[SlotState],
        nodes: Vec<Node>,
        mut present: Vec<u16>,
        uses: Vec<f64>,
        edges: &[(u32, u32, f32)],
    ) -> Picture {
        let load = |slot: &SlotState| if slot.load.is_finite() { slot.load.max(0.0) } else { 0.0 };
        let (sum, used): (f64, f64) = (slots.iter().map(load).sum(), uses.iter().sum());
        // Uses in the unit of loads.
        let scale = if sum > 0.0 && used > 0.0 { sum / used } else { 1.0 };
        let mut own = vec![0.0; slots.len()];
        nodes.iter().zip(&uses).for_each(|(node, uses)| own[node.slot as usize] += uses * scale);
        // Keys of a slot are never more than the slot: samples of others are no business of it.
        let of_slot =
            |slot: usize| if own[slot] > 0.0 { (load(&slots[slot]) / own[slot]).min(1.0) } else { 1.0 };
        let factor: Vec<f64> =
            (0..slots.len()).map(|slot| if sum > 0.0 { of_slot(slot) } else { 1.0 }).collect();
        let mut rests = vec![0.0; shards.len()];
        for (slot, state) in slots.iter().enumerate() {
            if let Some(rest) = rests.get_mut(usize::from(state.shard)) {
                *rest += (load(state) - own[slot] * factor[slot]).max(0.0);
            }
        }
        let mut bound = shards.clone();
        for shard in 0..shards.len() as u16 {
            // Only a shard that does not exist is refused.
            let _ = bound.restrict(shard + 1, &[shard]);
        }
        let mut placed: Vec<Placed> = Vec::with_capacity(nodes.len() + rests.len());
        for ((node, uses), at) in nodes.iter().zip(&uses).zip(&present) {
            let kind = if node.fixed { at + 1 } else { 0 };
            placed.push(Placed { load: uses * scale * factor[node.slot as usize], kind });
        }
        for (shard, rest) in (0_u16..).zip(rests) {
            placed.push(Placed { load: rest, kind: shard + 1 });
            present.push(shard);
        }
        // Everything in it was checked: loads are finite, edges name nodes.
        let graph = WeightedGraph::new(&placed, edges).unwrap_or_default();
        Picture { graph, nodes, present, shards: bound }
    }

    /// The best places that are worth their bytes and for which there is room; the present ones if they are no better, or
    /// what is left of them when there is less room.
    pub(super) fn settle(
        &self,
        lists: &Lists,
        slots: &[SlotState],
        shards: &Shards,
        options: &GatherOptions,
    ) -> Settled {
        let before = cut_share(&self.graph, &self.present);
        let uneven = |places: &[u16]| balance(&self.graph.shard_loads(places, shards.len()), shards);
        let crooked = uneven(&self.present);
        let mut places = self.distribute(options);
        lists.fit(&mut places);
        let mut cleared = BTreeSet::new();
        for _ in 0..TURNS {
            self.leave_what_does_not_pay(&mut places, slots, options);
            let (gone, changed) = lists.make_room(&mut places);
            cleared = gone;
            if !changed {
                break;
            }
        }
        let (mut after, mut level) = (cut_share(&self.graph, &places), uneven(&places));
        let pays = after <= before * (1.0 - options.least_gain) && level <= options.most_uneven.max(crooked);
        let evens = crooked > options.most_uneven && level < crooked && after <= before;
        if !pays && !evens {
            places.clone_from(&self.present);
            (cleared, _) = lists.make_room(&mut places);
            (after, level) = (cut_share(&self.graph, &places), uneven(&places));
        }
        Settled { places, cleared, crossing: (before, after), balance: (crooked, level) }
    }

    /// Where everything should be, whatever it costs.
    fn distribute(&self, options: &GatherOptions) -> Vec<u16> {
        let places = repartition(&self.graph, &self.present, &self.shards, &options.partition);
        let fresh = partition(&self.graph, &self.shards, &options.partition);
        let pairs = (0..self.graph.len()).flat_map(|at| self.graph.edges(at));
        let weight = pairs.map(|(_, weight)| f64::from(weight)).sum::<f64>() / 2.0;
        let moved = |places: &[u16]| places.iter().zip(&self.present).filter(|(a, b)| a != b).count();
        let cut = |places: &[u16]| cut_share(&self.graph, places);
        // What an improvement has to pay for, a placement from nothing has to as well.
        let price = |places: &[u16]| cut(places) * weight + moved(places) as f64 * options.partition.stay;
        let most = cut(&places) * FROM_NOTHING;
        let uneven =
            |places: &[u16]| balance(&self.graph.shard_loads(places, self.shards.len()), &self.shards);
        let level = uneven(&fresh).max(1.0 + options.partition.slack);
        let is_better = |other: &[u16]| cut(other) < most && price(other) < price(&places);
        let alike = self.alike(&fresh);
        if uneven(&alike) <= level && is_better(&alike) {
            alike
        } else if is_better(&fresh) {
            fresh
        } else {
            places
        }
    }

    /// The same parts, each on the shard where most of it is: from nothing they are made for any of them.
    fn alike(&self, fresh: &[u16]) -> Vec<u16> {
        let count = self.shards.len();
        let mut shared = vec![0.0; count * count];
        for (at, _) in self.nodes.iter().enumerate().filter(|(_, node)| !node.fixed) {
            shared[usize::from(fresh[at]) * count + usize::from(self.present[at])] += self.graph.load(at);
        }
        let mut pairs: Vec<usize> = (0..shared.len()).collect();
        pairs.sort_by(|a, b| shared[*b].total_cmp(&shared[*a]).then(a.cmp(b)));
        let (mut shard_of, mut taken) = (vec![None; count], vec![false; count]);
        for (part, shard) in pairs.into_iter().map(|pair| (pair / count, pair % count)) {
            if shard_of[part].is_none() && !taken[shard] {
                (shard_of[part], taken[shard]) = (Some(shard as u16), true);
            }
        }
        let mut places = fresh.to_vec();
        for (at, _) in self.nodes.iter().enumerate().filter(|(_, node)| !node.fixed) {
            places[at] = shard_of[usize::from(fresh[at])].unwrap_or(fresh[at]);
        }
        places
    }

    /// Weight that would cross shards if a slot's keys stayed where they are, given all other changes; by slot.
    pub(super) fn losses(&self, places: &[u16], slots: usize) -> Vec<f64> {
        let mut losses = vec![0.0; slots];
        for (at, node) in self.nodes.iter().enumerate() {
            if places[at] == self.present[at] {
                continue;
            }
            for (other, weight) in self.graph.edges(at) {
                let other = other as usize;
                let same = self.nodes.get(other).is_some_and(|other| other.slot == node.slot);
                let stays = if same { self.present[other] } else { places[other] };
                let joined = f64::from(u8::from(places[other] == places[at]))
                    - f64::from(u8::from(stays == self.present[at]));
                // Two of one slot that both move see each other.
                let half = if same && places[other] != self.present[other] { 0.5 } else { 1.0 };
                losses[node.slot as usize] += joined * half * f64::from(weight);
            }
        }
        losses
    }

    /// Takes back changes of slots that are not worth their bytes, the worst first: an eighth of all at a time, since
    /// others then lose partners.
    fn leave_what_does_not_pay(&self, places: &mut [u16], slots: &[SlotState], options: &GatherOptions) {
        loop {
            let losses = self.losses(places, slots.len());
            let mut changed = vec![false; slots.len()];
            for (at, node) in self.nodes.iter().enumerate() {
                changed[node.slot as usize] |= places[at] != self.present[at];
            }
            let pays =
                |slot: usize| losses[slot] * options.worth - slots[slot].bytes as f64 * options.byte_cost;
            let mut worst: Vec<usize> =
                (0..slots.len()).filter(|slot| changed[*slot] && pays(*slot) <= 0.0).collect();
            if worst.is_empty() {
                return;
            }
            worst.sort_by(|a, b| pays(*a).total_cmp(&pays(*b)).then(a.cmp(b)));
            worst.truncate(slots.len().div_ceil(8));
            let mut back = vec![false; slots.len()];
            worst.into_iter().for_each(|slot| back[slot] = true);
            for (at, _) in self.nodes.iter().enumerate().filter(|(_, node)| back[node.slot as usize]) {
                places[at] = self.present[at];
            }
        }
    }
}
