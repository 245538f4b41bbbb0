//! From what is known of keys to changes of slots that are worth their bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;

use super::Gatherer;
use super::lists::{Lists, Room};
use super::picture::{Node, Picture, Settled};
use crate::graph::partition::{PartitionOptions, WeightedGraph};
use crate::graph::shards::Shards;

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
    /// Windows that there were when it was first known to be chosen: a key is cold only when it was watched for long. None:
    /// its uses cannot be seen, so it never is.
    pub since: Option<u64>,
}

/// Where everything is.
pub struct Layout<'a, K> {
    /// Shards that count.
    pub shards: &'a Shards,
    /// Slots, by position.
    pub slots: &'a [SlotState],
    /// Keys that live elsewhere than at home, or alone.
    pub chosen: &'a HashMap<K, Located>,
    /// Other forms of a key, with the one that stands for all of them.
    pub variants: &'a HashMap<K, K>,
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

/// What is known, as a graph.
struct Known {
    graph: WeightedGraph,
    /// The key's number behind each node.
    numbers: Vec<u32>,
    /// Of every node the one that stands for all forms of its key.
    roots: Vec<usize>,
    /// Uses of all forms of a key, where it stands for them.
    uses: Vec<f64>,
}

impl<K: Clone + Eq + Hash> Gatherer<K> {
    /// Plans where keys shall live. `slot_of` tells the slot of any key that is not chosen. Nothing is remembered: asked
    /// again before anything has changed, it says the same.
    pub fn plan(
        &self,
        layout: &Layout<K>,
        slot_of: impl FnMut(&K) -> Option<u32>,
        options: &GatherOptions,
    ) -> Gathering<K> {
        let (shards, slots) = (layout.shards, layout.slots);
        let known = self.known(layout);
        let picture = self.picture(&known, layout, slot_of, options);
        let idle = self.idle(&picture, layout);
        let count = |(place, keys): (&(u32, u16), &Vec<K>)| {
            (*place, (keys.len(), slots.get(place.0 as usize).is_some_and(|slot| slot.free)))
        };
        let lists = Lists {
            room: &options.room,
            graph: &picture.graph,
            nodes: &picture.nodes,
            present: &picture.present,
            idle: idle.iter().map(count).collect(),
        };
        let Settled { places, cleared, crossing, balance } = picture.settle(&lists, slots, shards, options);
        let mut changes = self.changes(&picture, &places, slots);
        let mut leaving: BTreeMap<u32, Vec<K>> = BTreeMap::new();
        for (place, keys) in idle.into_iter().filter(|(place, _)| cleared.contains(place)) {
            leaving.entry(place.0).or_default().extend(keys);
        }
        let forced: BTreeSet<u32> = leaving.keys().copied().collect();
        self.add_cooled(&mut leaving, &known, layout, options);
        send_home(&mut changes, leaving, &forced, layout);
        let rank = |change: &SlotChange<K>| change.gain / (change.bytes.max(1)) as f64;
        changes.sort_by(|a, b| rank(b).total_cmp(&rank(a)).then(a.slot.cmp(&b.slot)));
        Gathering { changes, crossing, balance }
    }

    /// The forms of a key become one.
    fn known(&self, layout: &Layout<K>) -> Known {
        let (graph, numbers) = self.graph();
        let mut node_of = vec![None; self.len()];
        for (at, number) in numbers.iter().enumerate() {
            if let Some(node) = node_of.get_mut(*number as usize) {
                *node = Some(at);
            }
        }
        let root = |(at, number): (usize, &u32)| {
            let first = self.keys.key(*number).and_then(|key| layout.variants.get(key));
            let first = first.and_then(|first| self.keys.get(first));
            first.and_then(|number| node_of.get(number as usize).copied().flatten()).unwrap_or(at)
        };
        let roots: Vec<usize> = numbers.iter().enumerate().map(root).collect();
        let mut uses = vec![0.0; numbers.len()];
        roots.iter().enumerate().for_each(|(at, root)| uses[*root] += graph.load(at));
        Known { graph, numbers, roots, uses }
    }

    /// Chosen keys with company that no node stands for, by slot and shard.
    fn idle(&self, picture: &Picture, layout: &Layout<K>) -> BTreeMap<(u32, u16), Vec<K>> {
        let nodes: HashSet<u32> = picture.nodes.iter().map(|node| node.key).collect();
        let mut idle: BTreeMap<(u32, u16), Vec<K>> = BTreeMap::new();
        for (key, own) in layout.chosen.iter().filter(|(_, own)| !own.alone) {
            if self.keys.get(key).is_none_or(|number| !nodes.contains(&number)) {
                idle.entry((own.slot, own.shard)).or_default().push(key.clone());
            }
        }
        idle
    }

    fn picture(
        &self,
        known: &Known,
        layout: &Layout<K>,
        mut slot_of: impl FnMut(&K) -> Option<u32>,
        options: &GatherOptions,
    ) -> Picture {
        let mut place_of = vec![u32::MAX; known.graph.len()];
        let (mut nodes, mut present, mut uses) = (Vec::new(), Vec::new(), Vec::new());
        let counts = |shard: u16| usize::from(shard) < layout.shards.len();
        for (at, number) in known.numbers.iter().enumerate().filter(|(at, _)| known.roots[*at] == *at) {
            let Some(key) = self.keys.key(*number) else { continue };
            let own = layout.chosen.get(key);
            let slot = own.map(|own| own.slot).or_else(|| slot_of(key));
            let Some((slot, state)) = slot.and_then(|slot| Some((slot, layout.slots.get(slot as usize)?)))
            else {
                continue;
            };
            let least = if own.is_some() { COOLED } else { 1.0 } * options.least_uses;
            let at_present = own.map_or(state.shard, |own| own.shard);
            if known.uses[at] < least || !counts(at_present) || !counts(state.shard) {
                continue;
            }
            place_of[at] = nodes.len() as u32;
            let alone = own.is_some_and(|own| own.alone);
            nodes.push(Node { key: *number, slot, home: state.shard, fixed: !state.free || alone, alone });
            present.push(at_present);
            uses.push(known.uses[at]);
        }
        let mut edges = Vec::new();
        for at in 0..known.graph.len() {
            for (other, weight) in known.graph.edges(at) {
                let (a, b) = (known.roots[at], known.roots[other as usize]);
                let pair = (place_of[a], place_of[b]);
                if at < other as usize && a != b && pair.0 != u32::MAX && pair.1 != u32::MAX {
                    edges.push((pair.0, pair.1, weight));
                }
            }
        }
        Picture::with_rests(layout.shards, layout.slots, nodes, present, uses, &edges)
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

    /// Adds chosen keys that are hardly used any more, and were watched for long enough to say so.
    fn add_cooled(
        &self,
        leaving: &mut BTreeMap<u32, Vec<K>>,
        known: &Known,
        layout: &Layout<K>,
        options: &GatherOptions,
    ) {
        let least = options.least_uses * COOLED;
        let nodes = known.numbers.iter().zip(&known.uses);
        let warm: HashSet<u32> =
            nodes.filter(|(_, uses)| **uses >= least).map(|(number, _)| *number).collect();
        let before = leaving.values().flatten().cloned().collect::<HashSet<K>>();
        for (key, own) in layout.chosen.iter().filter(|(_, own)| !own.alone) {
            let watched = own.since.map_or(0, |since| self.windows.saturating_sub(since));
            let is_warm = self.keys.get(key).is_some_and(|number| warm.contains(&number));
            if !is_warm && watched as f64 >= self.half_life_windows && !before.contains(key) {
                leaving.entry(own.slot).or_default().push(key.clone());
            }
        }
    }
}

/// Chosen keys go home: with whatever else happens to their slot, when most of the slot's chosen keys do, or when the
/// slot is `forced` to for want of room.
fn send_home<K: Clone + Eq + Hash>(
    changes: &mut Vec<SlotChange<K>>,
    leaving: BTreeMap<u32, Vec<K>>,
    forced: &BTreeSet<u32>,
    layout: &Layout<K>,
) {
    let mut listed: HashMap<u32, usize> = HashMap::new();
    for own in layout.chosen.values().filter(|own| !own.alone) {
        *listed.entry(own.slot).or_default() += 1;
    }
    let mut change_of: HashMap<u32, usize> =
        changes.iter().enumerate().map(|(at, change)| (change.slot, at)).collect();
    for (slot, keys) in leaving {
        let Some(state) = layout.slots.get(slot as usize).filter(|state| state.free) else { continue };
        let all = listed.get(&slot).copied().unwrap_or(0);
        let mostly = keys.len() as f64 >= all as f64 * MOSTLY_COOL;
        if !change_of.contains_key(&slot) && (mostly || forced.contains(&slot)) {
            change_of.insert(slot, changes.len());
            changes.push(SlotChange { slot, keys: Vec::new(), gain: 0.0, bytes: state.bytes });
        }
        if let Some(change) = change_of.get(&slot).and_then(|at| changes.get_mut(*at)) {
            change.keys.extend(keys.into_iter().map(|key| (key, None)));
        }
    }
}
