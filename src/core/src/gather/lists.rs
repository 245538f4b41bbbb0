//! Lists have limits: how many there may be, and how long one may be.

use std::collections::{BTreeMap, BTreeSet};

use super::picture::Node;
use crate::graph::partition::WeightedGraph;

/// Room for lists of chosen keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The most lists of all slots together.
    pub lists: usize,
    /// Keys of one list: more of a slot on a shard make several lists.
    pub keys: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { lists: 512, keys: 200 }
    }
}

impl Room {
    /// Lists that so many keys of one slot on one shard take.
    pub fn lists_of(&self, keys: usize) -> usize {
        keys.div_ceil(self.keys.max(1))
    }
}

/// The chosen keys of a slot on a shard.
type Place = (u32, u16);

/// Keys, as nodes, each with what it gains.
type Keys = Vec<(f64, usize)>;

/// What lists there are, and shall be.
pub(super) struct Lists<'a> {
    pub(super) room: &'a Room,
    pub(super) graph: &'a WeightedGraph,
    pub(super) nodes: &'a [Node],
    /// Where nodes are.
    pub(super) present: &'a [u16],
    /// Chosen keys that are no nodes, which stay where they are, and whether their slot may be changed.
    pub(super) idle: BTreeMap<Place, (usize, bool)>,
}

impl Lists<'_> {
    fn listed<'a>(&'a self, places: &'a [u16]) -> impl Iterator<Item = (usize, &'a Node, Place)> {
        let all = self.nodes.iter().zip(places).enumerate();
        all.filter(|(_, (node, place))| !node.alone && **place != node.home)
            .map(|(at, (node, place))| (at, node, (node.slot, *place)))
    }

    /// Keys by list, those that are no nodes included.
    fn lengths(&self, places: &[u16]) -> BTreeMap<Place, usize> {
        let mut lengths: BTreeMap<Place, usize> =
            self.idle.iter().map(|(place, (keys, _))| (*place, *keys)).collect();
        self.listed(places).for_each(|(_, _, place)| *lengths.entry(place).or_default() += 1);
        lengths
    }

    fn needed(&self, lengths: &BTreeMap<Place, usize>) -> usize {
        lengths.values().map(|keys| self.room.lists_of(*keys)).sum()
    }

    /// Movable keys by list, each with what it gains, the best first.
    fn movable(&self, places: &[u16]) -> BTreeMap<Place, Keys> {
        let mut lists: BTreeMap<Place, Keys> = BTreeMap::new();
        for (at, _, place) in self.listed(places).filter(|(_, node, _)| !node.fixed) {
            lists.entry(place).or_default().push((self.value(places, at), at));
        }
        lists.values_mut().for_each(|keys| keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))));
        lists
    }

    /// Sends keys home for which there is no room, those of the lists that gain least: whatever it costs, as the places
    /// themselves. What stays where it is takes room as well.
    pub(super) fn fit(&self, places: &mut [u16]) {
        let movable = self.movable(places);
        let mut held = self.lengths(places);
        movable.iter().for_each(|(place, keys)| {
            if let Some(length) = held.get_mut(place) {
                *length -= keys.len();
            }
        });
        let mut left = self.room.lists.saturating_sub(self.needed(&held));
        for (place, keys) in ascending(movable).into_iter().rev() {
            let held = held.get(&place).copied().unwrap_or(0);
            let own = self.room.lists_of(held);
            let kept = keys.len().min((own + left).saturating_mul(self.room.keys.max(1)) - held);
            left -= (self.room.lists_of(held + kept) - own).min(left);
            keys.iter().skip(kept).for_each(|(_, at)| places[*at] = self.nodes[*at].home);
        }
    }

    /// Takes back what makes more lists than there is room for, the least gain first; where there were too many to begin
    /// with, whole lists go home. Returns the places whose other keys go home too, and whether anything changed.
    pub(super) fn make_room(&self, places: &mut [u16]) -> (BTreeSet<Place>, bool) {
        let mut lengths = self.lengths(places);
        let mut excess = self.needed(&lengths).saturating_sub(self.room.lists);
        let changed = excess > 0;
        if excess > 0 {
            self.take_back(places, &mut lengths, &mut excess);
        }
        let mut cleared = BTreeSet::new();
        if excess == 0 {
            return (cleared, changed);
        }
        let mut movable = self.movable(places);
        for place in self.idle.keys() {
            movable.entry(*place).or_default();
        }
        for (place, keys) in ascending(movable) {
            // A list of which something stays is still a list.
            let idle = self.idle.get(&place).copied().unwrap_or((0, true));
            let length = lengths.get(&place).copied().unwrap_or(0);
            if excess == 0 || !idle.1 || keys.len() + idle.0 < length {
                continue;
            }
            keys.iter().for_each(|(_, at)| places[*at] = self.nodes[*at].home);
            excess -= self.room.lists_of(length).min(excess);
            cleared.insert(place);
        }
        (cleared, true)
    }

    /// Newcomers of lists that grew by a list or more go back to where they are; home if that were no less.
    fn take_back(&self, places: &mut [u16], lengths: &mut BTreeMap<Place, usize>, excess: &mut usize) {
        let before = self.lengths(self.present);
        let lists = |keys: Option<&usize>| self.room.lists_of(keys.copied().unwrap_or(0));
        let grown = |place: &Place, lengths: &BTreeMap<Place, usize>| {
            lists(lengths.get(place)) > lists(before.get(place))
        };
        let mut newcomers = self.movable(places);
        for (place, keys) in &mut newcomers {
            keys.retain(|(_, at)| self.present[*at] != place.1);
        }
        for (place, mut keys) in ascending(newcomers) {
            while *excess > 0 && grown(&place, lengths) {
                let length = lengths.get(&place).copied().unwrap_or(0);
                let over = length - (self.room.lists_of(length) - 1) * self.room.keys.max(1);
                for (_, at) in keys.split_off(keys.len().saturating_sub(over)) {
                    let back = (place.0, self.present[at]);
                    let full = lengths.get(&back).copied().unwrap_or(0);
                    let stays = back.1 == self.nodes[at].home;
                    let fits = !stays && self.room.lists_of(full + 1) <= self.room.lists_of(full);
                    places[at] = if fits { back.1 } else { self.nodes[at].home };
                    if fits {
                        *lengths.entry(back).or_default() += 1;
                    }
                }
                lengths.insert(place, length - over);
                *excess -= 1;
            }
        }
    }

    /// What a key gains by not being at home.
    fn value(&self, places: &[u16], at: usize) -> f64 {
        let near = |shard: u16| -> f64 {
            let on = self.graph.edges(at).filter(|(other, _)| places[*other as usize] == shard);
            on.map(|(_, weight)| f64::from(weight)).sum()
        };
        near(places[at]) - near(self.nodes[at].home)
    }
}

/// Lists by what they gain, the least first.
fn ascending(lists: BTreeMap<Place, Keys>) -> Vec<(Place, Keys)> {
    let sum = |keys: &Keys| keys.iter().map(|(value, _)| value).sum::<f64>();
    let mut order: Vec<(f64, (Place, Keys))> = lists.into_iter().map(|list| (sum(&list.1), list)).collect();
    // The first place wins where gains are equal.
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.0.cmp(&a.1.0)));
    order.into_iter().map(|(_, list)| list).collect()
}
