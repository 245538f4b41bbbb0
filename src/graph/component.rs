//! Holding the components that some edges touch, so that nobody else changes the same rows of the closure.
//!
//! Without deadlocks between single statements: first nodes are added to the directory, in the order of their
//! keys, then components are held in ascending order, and a component that was merged while it was awaited leads
//! to a greater one. Nodes never leave the directory while others may write (only rows of the closure come and
//! go), so every node that was seen once leads to whoever changes its surroundings.

use super::{Homes, new_component};
use crate::catalog::graph::Graph;
use crate::catalog::graph::node::{self, NewNode};
use crate::pg::graph::keys::{KeyKind, NodeKey};
use crate::pg::graph::lookup::{Lookup, Reads};
use crate::pg::graph::{fresh_snapshot, latest_snapshot};
use crate::pg::lock::ACCESS_SHARE;
use crate::pg::report::{PgResult, wrong_state};
use foreshard_core::graph::components::weak_components;
use foreshard_core::graph::csr::Digraph;
use foreshard_core::graph::keys::KeyTable;
use std::collections::{BTreeMap, BTreeSet};

/// The most neighbours of a new node that are asked where they live.
const MAX_NEIGHBOURS: usize = 1000;

/// How often nodes are added to a directory that does not keep them.
const MAX_ADDED: u32 = 10;

/// Nodes and edges that a statement touched.
#[derive(Default)]
pub struct Touched {
    /// The nodes.
    pub keys: KeyTable<NodeKey>,
    /// Pairs of them that have, had, or may have an edge.
    pub pairs: Vec<(u32, u32)>,
}

/// What is held.
pub struct Held {
    /// By number of a touched node: the shard it lives on.
    pub shards: Vec<i32>,
    /// The components, as they are found by whoever looks from now on or has looked before.
    pub components: BTreeSet<i64>,
}

/// Look-ups in directory and components, at one moment.
pub struct Finder {
    directory: Lookup,
    components: Lookup,
}

impl Finder {
    pub fn open(graph: &Graph) -> PgResult<Self> {
        let open = |table, index, kind| Lookup::open(table, index, 1, kind, ACCESS_SHARE, Reads::Row);
        Ok(Self {
            directory: open(graph.metagraph, graph.metagraph_index, graph.kind)?,
            components: open(graph.components, graph.components_index, KeyKind::Int8)?,
        })
    }

    /// Shard and component of a node.
    pub fn node(&mut self, key: &NodeKey) -> Option<(i32, i64)> {
        self.directory.find(&[key]);
        if !self.directory.advance() {
            return None;
        }
        let label = self.directory.bigint(3)?;
        Some((self.directory.int(2)?, self.root(label)))
    }

    /// What a component was merged into, in the end.
    pub fn root(&mut self, mut component: i64) -> i64 {
        loop {
            self.components.find(&[&NodeKey::Int(component)]);
            if !self.components.advance() {
                return component;
            }
            // Merged ones lead to greater ones, so this ends.
            match self.components.bigint(2).filter(|parent| *parent > component) {
                Some(parent) => component = parent,
                None => return component,
            }
        }
    }
}

/// Holds the components of all touched nodes, adds those to the directory that are not there yet, and merges
/// components that touched pairs connect.
///
/// # Errors
/// 40001 from the server, in a transaction whose snapshot is older than a change of one of the components.
pub fn hold(graph: &Graph, touched: &Touched) -> PgResult<Held> {
    let groups = groups(touched);
    let mut held = BTreeSet::new();
    let mut added = 0;
    let places = loop {
        let places = look(graph, touched)?;
        let missing: Vec<u32> =
            (0_u32..).zip(&places).filter(|(_, place)| place.is_none()).map(|(number, _)| number).collect();
        if !missing.is_empty() {
            added += 1;
            if added > MAX_ADDED {
                return Err(wrong_state(format!(
                    "nodes vanish from the directory of graph \"{}\"",
                    graph.name
                ))
                .set_hint("Do not write the graph's own tables."));
            }
            add(graph, touched, &groups, &places, missing)?;
            continue;
        }
        let needed: BTreeSet<i64> = places.iter().flatten().map(|(_, root)| *root).collect();
        let mut all = true;
        for component in needed.difference(&held.clone()) {
            pgrx::check_for_interrupts!();
            all = false;
            if !node::hold(graph, *component)? {
                // Merged while we waited: look again, before any greater one is held.
                break;
            }
            held.insert(*component);
        }
        if all {
            break places;
        }
    };
    merge(graph, &groups, &places)?;
    let shards = places.iter().flatten().map(|(shard, _)| *shard).collect();
    Ok(Held { shards, components: held })
}

/// By number of a node: the smallest one of those that touched pairs connect it with.
fn groups(touched: &Touched) -> Vec<u32> {
    match Digraph::from_pairs(touched.keys.len(), &touched.pairs) {
        Ok(graph) => weak_components(&graph),
        Err(_) => (0..touched.keys.len()).collect(),
    }
}

/// The component of a node that is in the directory.
pub fn of(graph: &Graph, key: &NodeKey) -> PgResult<Option<i64>> {
    let _fresh = fresh_snapshot();
    Ok(Finder::open(graph)?.node(key).map(|(_, component)| component))
}

fn look(graph: &Graph, touched: &Touched) -> PgResult<Vec<Option<(i32, i64)>>> {
    let _fresh = fresh_snapshot();
    let mut finder = Finder::open(graph)?;
    Ok(touched.keys.keys().iter().map(|key| finder.node(key)).collect())
}

fn add(
    graph: &Graph,
    touched: &Touched,
    groups: &[u32],
    places: &[Option<(i32, i64)>],
    missing: Vec<u32>,
) -> PgResult<()> {
    let homes = Homes::of(graph)?;
    let mut greatest: BTreeMap<u32, i64> = BTreeMap::new();
    for (group, place) in groups.iter().zip(places) {
        if let Some((_, root)) = place {
            let known = greatest.entry(*group).or_insert(*root);
            *known = (*known).max(*root);
        }
    }
    let mut nodes: Vec<NewNode> = Vec::with_capacity(missing.len());
    let mut shards: Vec<Option<i32>> = places.iter().map(|place| place.map(|(shard, _)| shard)).collect();
    let near = Digraph::from_pairs(touched.keys.len(), &touched.pairs).unwrap_or_default();
    let mut counts: Vec<(i32, f64)> = graph.parts.iter().map(|part| (part.shard_id, part.nodes)).collect();
    for number in missing {
        let group = groups.get(number as usize).copied().unwrap_or(number);
        let Some(key) = touched.keys.key(number) else { continue };
        let fresh = || touched.keys.key(group).map_or(0, new_component);
        let component = greatest.get(&group).copied().unwrap_or_else(fresh);
        let others = near.outgoing(number).iter().chain(near.incoming(number)).take(MAX_NEIGHBOURS);
        let neighbours: Vec<i32> =
            others.filter_map(|other| shards.get(*other as usize).copied().flatten()).collect();
        let shard_id = homes.near(key, &neighbours, &mut counts);
        if let Some(place) = shards.get_mut(number as usize) {
            *place = Some(shard_id);
        }
        nodes.push(NewNode { key: key.clone(), shard_id, component });
    }
    nodes.sort_by(|a, b| a.key.cmp(&b.key));
    node::insert(graph, &nodes)
}

fn merge(graph: &Graph, groups: &[u32], places: &[Option<(i32, i64)>]) -> PgResult<()> {
    let mut roots: BTreeMap<u32, BTreeSet<i64>> = BTreeMap::new();
    for (group, place) in groups.iter().zip(places) {
        if let Some((_, root)) = place {
            roots.entry(*group).or_default().insert(*root);
        }
    }
    // Groups that share a component are one.
    let mut into: BTreeMap<i64, i64> = BTreeMap::new();
    let find = |into: &BTreeMap<i64, i64>, mut root: i64| {
        while let Some(parent) = into.get(&root) {
            root = *parent;
        }
        root
    };
    for own in roots.values() {
        let tops: BTreeSet<i64> = own.iter().map(|root| find(&into, *root)).collect();
        if let Some(greatest) = tops.last().copied() {
            tops.iter().filter(|top| **top != greatest).for_each(|top| {
                into.insert(*top, greatest);
            });
        }
    }
    let mut by_parent: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for root in into.keys() {
        by_parent.entry(find(&into, *root)).or_default().push(*root);
    }
    for (parent, others) in by_parent {
        node::merge(graph, parent, &others)?;
    }
    Ok(())
}

/// Holds every component there is.
pub fn hold_all(graph: &Graph) -> PgResult<BTreeSet<i64>> {
    let mut held = BTreeSet::new();
    loop {
        let all: BTreeSet<i64> = {
            // One that our snapshot does not see cannot be held: 40001.
            let _latest = latest_snapshot();
            node::roots(graph)?.into_iter().collect()
        };
        let mut news = false;
        for component in all.difference(&held.clone()) {
            pgrx::check_for_interrupts!();
            news = true;
            if !node::hold(graph, *component)? {
                break;
            }
            held.insert(*component);
        }
        if !news {
            return Ok(held);
        }
    }
}
