//! Lists have limits: how many there may be, and how long one may be.

use std::collections::BTreeMap;

use super::plan::Node;
use crate::graph::partition::WeightedGraph;

/// Room for lists of chosen keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The most lists of all slots together.
    pub lists: usize,
    /// The most keys of one.
    pub keys: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { lists: 512, keys: 4096 }
    }
}

/// Sends keys home for which there is no room, those that gain least: whole lists first, then keys of those that are too
/// long. Keys that stay where they are take room as well.
pub(super) fn fit(graph: &WeightedGraph, nodes: &[Node], places: &mut [u16], room: &Room) {
    let mut lists: BTreeMap<(u32, u16), Vec<(f64, usize)>> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate().filter(|(at, node)| places[*at] != node.home) {
        lists.entry((node.slot, places[at])).or_default().push((value(graph, nodes, places, at), at));
    }
    let mut order: Vec<((u32, u16), Vec<(f64, usize)>)> = lists.into_iter().collect();
    let sum = |keys: &[(f64, usize)]| keys.iter().map(|(value, _)| value).sum::<f64>();
    order.sort_by(|a, b| sum(&b.1).total_cmp(&sum(&a.1)).then(a.0.cmp(&b.0)));
    for (rank, (_, mut keys)) in order.into_iter().enumerate() {
        keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let kept = if rank < room.lists { room.keys } else { 0 };
        for (_, at) in keys.into_iter().skip(kept) {
            if let (Some(node), Some(place)) = (nodes.get(at).filter(|node| !node.fixed), places.get_mut(at))
            {
                *place = node.home;
            }
        }
    }
}

/// What a key gains by not being at home.
fn value(graph: &WeightedGraph, nodes: &[Node], places: &[u16], at: usize) -> f64 {
    let near = |shard: u16| -> f64 {
        let on = graph.edges(at).filter(|(other, _)| places[*other as usize] == shard);
        on.map(|(_, weight)| f64::from(weight)).sum()
    };
    near(places[at]) - near(nodes[at].home)
}
