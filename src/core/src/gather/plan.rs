//! From what is known of keys to changes of slots that are worth their bytes.

use std::collections::HashMap;
use std::hash::Hash;

use super::Gatherer;
use super::lists::{self, Room};
use crate::graph::partition::{PartitionOptions, WeightedGraph, cut_share, partition, repartition};
use crate::graph::shards::{Placed, Shards, balance};

/// A placement from nothing is only taken when it cuts less than this share of what an improved one cuts.
const FROM_NOTHING: f64 = 0.7;

/// A chosen key goes home when it is used less than this share of what a key needs to be chosen.
const COOLED: f64 = 0.25;

/// A list is cleared for their sake when at least this share of its keys have cooled down.
const MOSTLY_COOL: f64 = 0.5;

/// How plans are made.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherOptions {
    /// How keys are distributed over shards.
    pub partition: PartitionOptions,
    /// Keys with fewer uses (that count, of windows) are not chosen.
    pub least_uses: f64,
    /// What it is worth that a window no longer needs more than one shard, over the time in which a change must pay.
    pub worth: f64,
    /// What copying a byte costs.
    pub byte_cost: f64,
    /// A plan is only one if it brings what crosses shards down by this share.
    pub least_gain: f64,
    /// A plan may make loads no more uneven than this (or than they are): busiest over mean.
    pub most_uneven: f64,
    /// Room for lists.
    pub room: Room,
}

impl Default for GatherOptions {
    fn default() -> Self {
        Self {
            partition: PartitionOptions { slack: 0.03, stay: 1.0, cycles: 2, ..PartitionOptions::default() },
            least_uses: 1.0,
            worth: 1.0,
            byte_cost: 0.0,
            least_gain: 0.1,
            most_uneven: 1.1,
            room: Room::default(),
        }
    }
}

/// By how much at most a shard is asked to carry less or more than its share, to make up for the past.
const MOST_COMPENSATION: f64 = 0.1;

/// The shards as a plan should see them: smaller where more than a fair share was served lately. Loads that come then
/// even out over time, not only those foreseen.
pub fn compensated(shards: &Shards, served: &[f64]) -> Shards {
    let total: f64 = served.iter().sum();
    let factor = |(shard, served): (u16, &f64)| {
        let surplus = if total > 0.0 { served / total / shards.share(shard) - 1.0 } else { 0.0 };
        1.0 - surplus.clamp(-MOST_COMPENSATION, MOST_COMPENSATION)
    };
    let factors: Vec<f64> = (0_u16..).zip(served).map(factor).collect();
    shards.scaled(&factors)
}

/// A slot as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotState {
    /// Number of its shard; beyond those that count: it is left alone.
    pub shard: u16,
    /// Its load, with that of all its chosen keys, in any unit.
    pub load: f64,
    /// What is copied to change it.
    pub bytes: u64,
    /// It may be changed now.
    pub free: bool,
}

/// Where a chosen key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// Slot that it hashes to, by position.
    pub slot: u32,
    /// Shard.
    pub shard: u16,
    /// It has a place by itself, and is left there.
    pub alone: bool,
}

/// What shall become of the keys of one slot.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotChange<K> {
    /// The slot, by position.
    pub slot: u32,
    /// Keys that change their place, and the shard; None: home.
    pub keys: Vec<(K, Option<u16>)>,
    /// Weight (of windows) that would cross shards without this change, given all others.
    pub gain: f64,
    /// What is copied.
    pub bytes: u64,
}

/// A plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Gathering<K> {
    /// Changes, best first.
    pub changes: Vec<SlotChange<K>>,
    /// Share of the weight of keys used together that crosses shards, before and after.
    pub crossing: (f64, f64),
    /// Busiest shard over its fair share, before and after.
    pub balance: (f64, f64),
}

/// A key, as a node.
pub(super) struct Node {
    /// Number among the keys.
    pub(super) key: u32,
    pub(super) slot: u32,
    /// Shard of its slot.
    pub(super) home: u16,
    /// It stays where it is.
    pub(super) fixed: bool,
}

/// Keys and the rest of every shard as a graph.
struct Picture {
    graph: WeightedGraph,
    nodes: Vec<Node>,
    /// Of keys and rests: where they are.
    present: Vec<u16>,
    shards: Shards,
}

impl<K: Clone + Eq + Hash> Gatherer<K> {
    /// Plans where keys shall live. `chosen` are those that live elsewhere than at home, or alone; `slot_of` tells the
    /// slot of any other. Nothing is remembered: asked again before anything has changed, it says the same.
    pub fn plan(
        &self,
        shards: &Shards,
        slots: &[SlotState],
        chosen: &HashMap<K, Located>,
        slot_of: impl FnMut(&K) -> Option<u32>,
        options: &GatherOptions,
    ) -> Gathering<K> {
        let picture = self.picture(shards, slots, chosen, slot_of, options);
        let before = cut_share(&picture.graph, &picture.present);
        let uneven = |places: &[u16]| balance(&picture.graph.shard_loads(places, shards.len()), shards);
        let crooked = uneven(&picture.present);
        let mut places = picture.distribute(options);
        lists::fit(&picture.graph, &picture.nodes, &mut places, &options.room);
        picture.leave_what_does_not_pay(&mut places, slots, options);
        let (mut after, mut level) = (cut_share(&picture.graph, &places), uneven(&places));
        let pays = after <= before * (1.0 - options.least_gain) && level <= options.most_uneven.max(crooked);
        if !pays && !(crooked > options.most_uneven && level < crooked && after <= before) {
            places.clone_from(&picture.present);
            (after, level) = (before, crooked);
        }
        let mut changes = self.changes(&picture, &places, slots);
        self.send_cooled_home(&mut changes, slots, chosen, options);
        let rank = |change: &SlotChange<K>| change.gain / (change.bytes.max(1)) as f64;
        changes.sort_by(|a, b| rank(b).total_cmp(&rank(a)).then(a.slot.cmp(&b.slot)));
        Gathering { changes, crossing: (before, after), balance: (crooked, level) }
    }

    /// Uses (that still count) of every key, by number.
    fn uses(&self) -> Vec<f64> {
        let (graph, numbers) = self.graph();
        let mut uses = vec![0.0; self.len()];
        for (node, number) in numbers.iter().enumerate() {
            if let Some(own) = uses.get_mut(*number as usize) {
                *own = graph.load(node);
            }
        }
        uses
    }

    fn picture(
        &self,
        shards: &Shards,
        slots: &[SlotState],
        chosen: &HashMap<K, Located>,
        mut slot_of: impl FnMut(&K) -> Option<u32>,
        options: &GatherOptions,
    ) -> Picture {
        let (known, numbers) = self.graph();
        let mut place_of = vec![u32::MAX; known.len()];
        let (mut nodes, mut present, mut uses) = (Vec::new(), Vec::new(), Vec::new());
        let counts = |shard: u16| usize::from(shard) < shards.len();
        for (at, number) in numbers.iter().enumerate() {
            let Some(key) = self.keys.key(*number) else { continue };
            let own = chosen.get(key);
            let slot = own.map(|own| own.slot).or_else(|| slot_of(key));
            let Some((slot, state)) = slot.and_then(|slot| Some((slot, slots.get(slot as usize)?))) else {
                continue;
            };
            let least = if own.is_some() { COOLED } else { 1.0 } * options.least_uses;
            let at_present = own.map_or(state.shard, |own| own.shard);
            if known.load(at) < least || !counts(at_present) || !counts(state.shard) {
                continue;
            }
            place_of[at] = nodes.len() as u32;
            let fixed = !state.free || own.is_some_and(|own| own.alone);
            nodes.push(Node { key: *number, slot, home: state.shard, fixed });
            present.push(at_present);
            uses.push(known.load(at));
        }
        let mut edges = Vec::new();
        for at in 0..known.len() {
            for (other, weight) in known.edges(at) {
                let pair = (place_of[at], place_of[other as usize]);
                if at < other as usize && pair.0 != u32::MAX && pair.1 != u32::MAX {
                    edges.push((pair.0, pair.1, weight));
                }
            }
        }
        Self::with_rests(shards, slots, nodes, present, uses, &edges)
    }

    /// Adds what a shard's slots carry beside these keys, which stays where it is.
    fn with_rests(
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

    fn changes(&self, picture: &Picture, places: &[u16], slots: &[SlotState]) -> Vec<SlotChange<K>> {
        let losses = picture.losses(places, slots.len());
        let mut by_slot: Vec<Option<SlotChange<K>>> = vec![None; slots.len()];
        for (at, node) in picture.nodes.iter().enumerate() {
            let (from, to) = (picture.present[at], places[at]);
            let Some(key) = self.keys.key(node.key).filter(|_| from != to) else { continue };
            let slot = node.slot as usize;
            let change = by_slot[slot].get_or_insert_with(|| SlotChange {
                slot: node.slot,
                keys: Vec::new(),
                gain: losses[slot],
                bytes: slots[slot].bytes,
            });
            change.keys.push((key.clone(), (to != node.home).then_some(to)));
        }
        by_slot.into_iter().flatten().collect()
    }

    /// Chosen keys that are hardly used any more go home: with whatever else happens to their slot, or when most of the
    /// slot's chosen keys are like that.
    fn send_cooled_home(
        &self,
        changes: &mut Vec<SlotChange<K>>,
        slots: &[SlotState],
        chosen: &HashMap<K, Located>,
        options: &GatherOptions,
    ) {
        let uses = self.uses();
        let mut cooled: HashMap<u32, Vec<K>> = HashMap::new();
        let mut listed: HashMap<u32, usize> = HashMap::new();
        for (key, own) in chosen.iter().filter(|(_, own)| !own.alone) {
            *listed.entry(own.slot).or_default() += 1;
            let known = self.keys.get(key).and_then(|number| uses.get(number as usize)).copied();
            if known.unwrap_or(0.0) < options.least_uses * COOLED {
                cooled.entry(own.slot).or_default().push(key.clone());
            }
        }
        let mut order: Vec<(u32, Vec<K>)> = cooled.into_iter().collect();
        order.sort_by_key(|(slot, _)| *slot);
        for (slot, keys) in order {
            let home = || keys.iter().map(|key| (key.clone(), None));
            if let Some(change) = changes.iter_mut().find(|change| change.slot == slot) {
                change.keys.extend(home());
                continue;
            }
            let all = listed.get(&slot).copied().unwrap_or(0);
            let state = slots.get(slot as usize).filter(|state| state.free);
            if let Some(state) = state
                && keys.len() as f64 >= all as f64 * MOSTLY_COOL
            {
                changes.push(SlotChange { slot, keys: home().collect(), gain: 0.0, bytes: state.bytes });
            }
        }
    }
}

impl Picture {
    /// Where everything should be, whatever it costs.
    fn distribute(&self, options: &GatherOptions) -> Vec<u16> {
        let places = repartition(&self.graph, &self.present, &self.shards, &options.partition);
        let fresh = partition(&self.graph, &self.shards, &options.partition);
        if cut_share(&self.graph, &fresh) < cut_share(&self.graph, &places) * FROM_NOTHING {
            fresh
        } else {
            places
        }
    }

    /// Weight that would cross shards if a slot's keys stayed where they are, given all other changes; by slot.
    fn losses(&self, places: &[u16], slots: usize) -> Vec<f64> {
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
            for (at, node) in self.nodes.iter().enumerate() {
                if worst.contains(&(node.slot as usize)) {
                    places[at] = self.present[at];
                }
            }
        }
    }
}
