//! Where a graph's nodes should live: what is used together on one shard, loads even, types where they may be.

use super::input::{Reading, Statements};
use super::moving;
use crate::catalog::colocation::{self, ShardRow};
use crate::catalog::graph::{self, Graph, influence, moving as queue};
use crate::catalog::heat;
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::{fresh_snapshot, read};
use crate::pg::report::{PgResult, bad_argument, wrong_state};
use crate::pg::{guc, security, spi};
use foreshard_core::calibration::DISTRESS;
use foreshard_core::graph::csr::Digraph;
use foreshard_core::graph::keys::KeyTable;
use foreshard_core::graph::partition::{
    Knowledge, Mix, PartitionOptions, WeightedGraph, combined, cut_share, partition, repartition,
};
use foreshard_core::graph::shards::{Placed, Shards, balance, deviating};
use std::collections::{BTreeMap, HashMap};

/// A placement from nothing is only taken when it cuts less than this share of what an improved one cuts: it moves
/// far more nodes.
const FROM_NOTHING: f64 = 0.7;
/// Most nodes that move by themselves after one look.
const MOST_BY_THEMSELVES: usize = 64;

/// A plan for a graph.
pub struct Plan {
    /// Nodes to move, in text, and the name of the shard, by node.
    pub moves: Vec<(String, String)>,
    /// Share of the weight of what belongs together that is on different shards, now and afterwards.
    pub cross_shard: (f64, f64),
    /// The busiest shard's load relative to its share, now and afterwards.
    pub imbalance: (f64, f64),
}

/// What is known of a graph's nodes, by number, and of the shards they may live on.
struct Picture {
    keys: KeyTable<NodeKey>,
    graph: Digraph,
    kinds: Vec<u16>,
    influence: Vec<f64>,
    heat: Vec<f64>,
    co_access: Vec<(u32, u32, f32)>,
    /// Where they live: numbers of shards; beyond those that count: where nobody shall live.
    home: Vec<u16>,
    shards: Shards,
    names: Vec<String>,
}

/// Shards that nodes may be placed on, those first, then the others. Those on nodes are among the first once somebody
/// has moved a node of the graph there.
fn places(graph: &Graph) -> PgResult<(Vec<ShardRow>, usize)> {
    let has_part = |shard: &ShardRow| graph.parts.iter().any(|part| part.shard_id == shard.shard_id);
    let (mut usable, other): (Vec<ShardRow>, Vec<ShardRow>) = colocation::shards()?
        .into_iter()
        .partition(|shard| !shard.draining && (shard.is_local() || has_part(shard)));
    if usable.is_empty() {
        return Err(wrong_state("every shard is being emptied"));
    }
    let count = usable.len();
    usable.extend(other);
    Ok((usable, count))
}

impl Picture {
    /// Reads it; acts as the extension's owner and as the graph's.
    fn read(graph_id: i32, graph: &Graph) -> PgResult<Self> {
        let as_owner = security::as_extension_owner()?;
        let half_life = guc::GRAPH_HALF_LIFE.get();
        let (all, count) = places(graph)?;
        let allowed = moving::allowed(graph_id)?;
        let pairs = influence::pairs(graph_id, half_life)?;
        drop(as_owner);
        let capacities: Vec<f64> = all.iter().take(count).map(|shard| shard.capacity).collect();
        let mut shards = Shards::new(&capacities).map_err(|problem| bad_argument(problem.to_string()))?;
        let kind_of = restrict(&mut shards, &all, count, &allowed)?;

        let _owner = security::as_restricted_owner(graph.owner);
        spi::set_local("row_security", "off")?;
        let _fresh = fresh_snapshot();
        let mut reading = Reading::default();
        reading.read(&Statements::weighted(graph), graph.kind, |_| true)?;
        let input = reading.finish(true)?;
        let nodes = input.keys.len() as usize;
        let kind = |type_: &Option<String>| {
            type_.as_ref().and_then(|type_| kind_of.get(type_)).copied().unwrap_or(0)
        };
        let mut picture = Self {
            kinds: input.types.iter().map(kind).collect(),
            influence: vec![0.0; nodes],
            heat: vec![0.0; nodes],
            co_access: Vec::new(),
            home: vec![u16::MAX; nodes],
            names: all.iter().map(|shard| shard.name.clone()).collect(),
            keys: input.keys,
            graph: input.graph,
            shards,
        };
        let numbers: HashMap<i32, u16> = all.iter().map(|shard| shard.shard_id).zip(0_u16..).collect();
        picture.read_directory(graph, half_life, &numbers)?;
        for (a, b, weight) in pairs {
            let number = |node: &str| graph.kind.parse(node).and_then(|key| picture.keys.get(&key));
            if let (Some(a), Some(b)) = (number(&a), number(&b)) {
                picture.co_access.push((a, b, weight as f32));
            }
        }
        Ok(picture)
    }

    fn read_directory(&mut self, graph: &Graph, half_life: i32, numbers: &HashMap<i32, u16>) -> PgResult<()> {
        read::each(&influence::knowledge_query(graph, half_life), graph.kind, |row| {
            let Some(number) = row.key(1).and_then(|key| self.keys.get(&key)) else { return Ok(()) };
            let number = number as usize;
            if let (Some(home), Some(shard)) = (self.home.get_mut(number), row.int(2)) {
                *home = numbers.get(&shard).copied().unwrap_or(u16::MAX);
            }
            for (place, column) in [(self.influence.get_mut(number), 3), (self.heat.get_mut(number), 4)] {
                if let (Some(place), Some(value)) = (place, row.float(column)) {
                    *place = if value.is_finite() { value.max(0.0) } else { 0.0 };
                }
            }
            Ok(())
        })
    }

    fn weighted(&self) -> PgResult<WeightedGraph> {
        let knowledge = Knowledge {
            kinds: &self.kinds,
            influence: &self.influence,
            heat: &self.heat,
            co_access: &self.co_access,
        };
        combined(&self.graph, &knowledge, &Mix::default())
            .map_err(|problem| bad_argument(problem.to_string()))
    }

    /// Nodes that would live elsewhere, in text, and the name of the shard.
    fn moves(&self, places: &[u16]) -> Vec<(String, String)> {
        let moved = self.keys.keys().iter().zip(self.home.iter().zip(places)).filter(|(_, (a, b))| a != b);
        moved
            .filter_map(|(key, (_, to))| Some((key.text(), self.names.get(usize::from(*to))?.clone())))
            .collect()
    }
}

/// Restricts shards to what types may live on; the number of every type that is restricted, from 1.
fn restrict(
    shards: &mut Shards,
    all: &[ShardRow],
    count: usize,
    allowed: &BTreeMap<String, Vec<i32>>,
) -> PgResult<HashMap<String, u16>> {
    let mut kinds = HashMap::new();
    for ((type_, own), kind) in allowed.iter().zip(1_u16..) {
        let numbers: Vec<u16> = all
            .iter()
            .take(count)
            .zip(0_u16..)
            .filter(|(shard, _)| own.contains(&shard.shard_id))
            .map(|(_, number)| number)
            .collect();
        if numbers.is_empty() {
            return Err(wrong_state(format!(
                "every shard that nodes of type \"{type_}\" may live on is being emptied"
            ))
            .set_hint("Allow others: SELECT foreshard.allow_type(...)."));
        }
        shards.restrict(kind, &numbers).map_err(|problem| bad_argument(problem.to_string()))?;
        kinds.insert(type_.clone(), kind);
    }
    Ok(kinds)
}

/// Plans where a graph's nodes should live. Changes nothing.
pub fn plan(graph_id: i32) -> PgResult<Plan> {
    let graph = graph::by_id(graph_id)?;
    let picture = Picture::read(graph_id, &graph)?;
    let weighted = picture.weighted()?;
    let count = picture.shards.len();
    let shards = &picture.shards;
    // Whoever lives where nobody shall is planned as if by hash, and moves in any case.
    let home: Vec<u16> = picture
        .home
        .iter()
        .zip(0_u32..)
        .map(|(home, node)| match usize::from(*home) < count {
            true => *home,
            false => shards.default_shard(node, weighted.kind(node as usize)),
        })
        .collect();
    pgrx::check_for_interrupts!();
    let options = PartitionOptions { stay: 0.2, ..PartitionOptions::default() };
    let mut places = repartition(&weighted, &home, shards, &options);
    pgrx::check_for_interrupts!();
    let fresh = partition(&weighted, shards, &PartitionOptions::default());
    if cut_share(&weighted, &fresh) < cut_share(&weighted, &places) * FROM_NOTHING {
        places = match alike(shards, &picture.kinds) {
            true => renamed(&fresh, &home, count),
            false => fresh,
        };
    }
    let imbalance = |places: &[u16]| balance(&weighted.shard_loads(places, count), shards);
    Ok(Plan {
        moves: picture.moves(&places),
        cross_shard: (cut_share(&weighted, &picture.home), cut_share(&weighted, &places)),
        imbalance: (imbalance(&picture.home), imbalance(&places)),
    })
}

/// Whether shards can change names: none is larger than another one, and no type is restricted.
fn alike(shards: &Shards, kinds: &[u16]) -> bool {
    let even = 1.0 / shards.len() as f64;
    let same = (0..shards.len() as u16).all(|shard| (shards.share(shard) - even).abs() < 1e-9);
    same && kinds.iter().all(|kind| *kind == 0)
}

/// The same placement with shards named so that many nodes stay: the largest overlaps first.
fn renamed(places: &[u16], home: &[u16], count: usize) -> Vec<u16> {
    let mut overlaps: BTreeMap<(u16, u16), u64> = BTreeMap::new();
    places.iter().zip(home).for_each(|pair| *overlaps.entry((*pair.0, *pair.1)).or_default() += 1);
    let mut order: Vec<((u16, u16), u64)> = overlaps.into_iter().collect();
    order.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut name: Vec<Option<u16>> = vec![None; count];
    let mut taken = vec![false; count];
    for ((new, old), _) in order {
        let (Some(own), Some(used)) = (name.get_mut(usize::from(new)), taken.get_mut(usize::from(old)))
        else {
            continue;
        };
        if own.is_none() && !*used {
            (*own, *used) = (Some(old), true);
        }
    }
    let mut left = (0..count as u16).filter(|shard| !taken.get(usize::from(*shard)).copied().unwrap_or(true));
    for own in name.iter_mut().filter(|own| own.is_none()) {
        *own = left.next();
    }
    places.iter().map(|place| name.get(usize::from(*place)).copied().flatten().unwrap_or(*place)).collect()
}

/// Files moves of nodes that are accessed far more than others on their shard; how many. `threshold`: by how many
/// times the mean. Unless moves may begin now, only those off shards in distress, to others.
pub fn relieve(graph_id: i32, threshold: f64, may_begin: bool) -> PgResult<u64> {
    let distressed = if may_begin { Vec::new() } else { heat::distressed(DISTRESS)? };
    if !may_begin && distressed.is_empty() {
        return Ok(0);
    }
    let graph = graph::by_id(graph_id)?;
    let picture = Picture::read(graph_id, &graph)?;
    let nodes: Vec<Placed> = picture
        .heat
        .iter()
        .zip(&picture.kinds)
        .map(|(load, kind)| Placed { load: *load, kind: *kind })
        .collect();
    let moves = deviating(&nodes, &picture.home, &picture.shards, threshold, MOST_BY_THEMSELVES);
    let text = |number: u32| picture.keys.key(number).map(NodeKey::text);
    let name = |shard: u16| picture.names.get(usize::from(shard)).cloned();
    let in_distress = |shard: u16| name(shard).is_some_and(|name| distressed.contains(&name));
    let home = |node: u32| picture.home.get(node as usize).copied().unwrap_or(u16::MAX);
    let moves: Vec<(String, String)> = moves
        .iter()
        .filter(|own| may_begin || in_distress(home(own.node)) && !in_distress(own.to))
        .filter_map(|own| Some((text(own.node)?, name(own.to)?)))
        .collect();
    if moves.is_empty() { Ok(0) } else { moving::file(graph_id, &moves, "foreshard") }
}

/// Most nodes of a window between which pairs are counted.
const WINDOW: usize = 64;
/// Most windows counted in one transaction.
const WINDOWS_AT_ONCE: i64 = 2_000;

/// Counts some of the accesses to a graph that were noted. In a worker's transaction.
pub fn count_accesses(graph_id: i32) -> PgResult<()> {
    graph::hold(graph_id)?;
    let windows = influence::take_accesses(graph_id, WINDOWS_AT_ONCE)?;
    count_windows(graph_id, &windows)
}

/// Forgets those that [`count_accesses`] would count.
pub fn forget_accesses(graph_id: i32) -> PgResult<()> {
    influence::take_accesses(graph_id, WINDOWS_AT_ONCE).map(drop)
}

fn count_windows(graph_id: i32, windows: &[(Vec<String>, i32)]) -> PgResult<()> {
    let graph = graph::by_id(graph_id)?;
    let half_life = guc::GRAPH_HALF_LIFE.get();
    let mut accesses: BTreeMap<&str, f64> = BTreeMap::new();
    let mut pairs: BTreeMap<(&str, &str), f64> = BTreeMap::new();
    let (mut cross, mut touched) = (0, 0);
    for (nodes, shards) in windows {
        nodes.iter().for_each(|node| *accesses.entry(node).or_default() += 1.0);
        cross += i64::from(*shards > 1);
        touched += i64::from(*shards);
        let near = nodes.get(..nodes.len().min(WINDOW)).unwrap_or_default();
        // Every node of a window has one access to share among the others.
        let weight = 1.0 / (near.len().max(2) - 1) as f64;
        for (at, a) in near.iter().enumerate() {
            for b in near.iter().skip(at + 1) {
                let pair = if a < b { (a.as_str(), b.as_str()) } else { (b.as_str(), a.as_str()) };
                *pairs.entry(pair).or_default() += weight;
            }
        }
    }
    let pairs: Vec<(String, String, f64)> =
        pairs.into_iter().map(|((a, b), weight)| (a.to_owned(), b.to_owned(), weight)).collect();
    influence::add_windows(graph_id, &pairs, (windows.len() as i64, cross, touched), half_life)?;
    let known = accesses.into_iter().filter_map(|(node, count)| Some((graph.kind.parse(node)?, count)));
    let (keys, counts): (Vec<NodeKey>, Vec<f64>) = known.unzip();
    let _owner = security::as_restricted_owner(graph.owner);
    influence::add_accesses(&graph, &keys, &counts, half_life)
}

/// Notes that these nodes were used together; how many shards they are on. Nodes that the graph does not have are
/// left out.
pub fn note_access(graph_id: i32, nodes: &[String]) -> PgResult<i32> {
    let graph = graph::by_id(graph_id)?;
    let mut keys = nodes.iter().map(|node| moving::key_of(&graph, node)).collect::<PgResult<Vec<_>>>()?;
    keys.sort_unstable();
    keys.dedup();
    let rows = {
        let _owner = security::as_restricted_owner(graph.owner);
        queue::nodes(&graph, &keys)?
    };
    let mut shards: Vec<i32> = rows.iter().map(|row| row.shard_id).collect();
    shards.sort_unstable();
    shards.dedup();
    let touched = shards.len() as i32;
    let _owner = security::as_extension_owner()?;
    if !rows.is_empty() {
        influence::queue_access(graph_id, rows.into_iter().map(|row| row.node).collect(), touched)?;
    }
    Ok(touched)
}
