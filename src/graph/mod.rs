//! Graphs in the server: `build` makes a closure, `changed` keeps it exact while edges change, `diff` compares it
//! with what it should be. What a closure is and how it changes is in `foreshard_core::graph`; what the tables are
//! called is in `catalog::graph`.
//!
//! Who may change a closure is settled by components (`component`): whoever changes edges holds the rows of all
//! components that the edges touch, until the end of the transaction.

mod adopt;
pub mod build;
mod catch_up;
pub mod changed;
pub mod component;
pub mod diff;
pub mod far;
mod far_reader;
pub mod influence;
pub mod input;
pub mod moving;
pub mod place;
mod reader;
mod rewrite;
mod write;

pub use write::Writer;

use crate::catalog::graph::Graph;
use crate::pg::graph::keys::NodeKey;
use crate::pg::report::{PgResult, bad_argument, wrong_state};
use foreshard_core::graph::keys::key_hash;
use foreshard_core::graph::shards::{Placed, Shards, distribute, place_near};

/// A shard takes new nodes for their neighbours' sake until it has this much more than its share, as with `next_key()`.
const NEAR_SLACK: f64 = 0.25;
/// Below this many nodes nothing is known about how full shards are.
const LEAST_NODES: f64 = 20.0;

/// Where nodes live that nobody placed: by hash, in proportion to the capacity of the shards.
struct Homes {
    shards: Shards,
    ids: Vec<i32>,
}

impl Homes {
    /// Of shards given as (id, capacity); those without capacity get none, unless no shard has any.
    fn new(shards: &[(i32, f64)]) -> PgResult<Self> {
        let mut usable: Vec<(i32, f64)> =
            shards.iter().copied().filter(|(_, capacity)| *capacity > 0.0).collect();
        if usable.is_empty() {
            usable = shards.iter().map(|(id, _)| (*id, 1.0)).collect();
        }
        let capacities: Vec<f64> = usable.iter().map(|(_, capacity)| *capacity).collect();
        let shards = Shards::new(&capacities).map_err(|error| bad_argument(error.to_string()))?;
        Ok(Self { shards, ids: usable.iter().map(|(id, _)| *id).collect() })
    }

    /// Of a graph's parts on this server: nodes come to others by moves, so that a change among new nodes never needs
    /// another server, and none of their rows is there.
    fn of(graph: &Graph) -> PgResult<Self> {
        let here = graph.parts.iter().filter(|part| part.remote.is_none());
        let parts: Vec<(i32, f64)> = here.map(|part| (part.shard_id, part.capacity)).collect();
        if parts.is_empty() {
            return Err(wrong_state(format!("the closure of graph \"{}\" has no partition", graph.name)));
        }
        Self::new(&parts)
    }

    fn of_key(&self, key: &NodeKey) -> i32 {
        let number = self.shards.default_shard(key_hash(&key.bytes()) as u32, 0);
        self.id(number)
    }

    fn id(&self, number: u16) -> i32 {
        self.ids.get(usize::from(number)).or(self.ids.first()).copied().unwrap_or(0)
    }

    /// Where nodes of this influence live at first: evenly by influence and capacity.
    fn by_influence(&self, influence: &[f64]) -> Vec<i32> {
        let nodes: Vec<Placed> = influence.iter().map(|load| Placed { load: *load, kind: 0 }).collect();
        distribute(&nodes, &self.shards).into_iter().map(|number| self.id(number)).collect()
    }

    /// Where a new node lives whose neighbours live on these shards, while there is room; without neighbours, or
    /// while nobody has counted the nodes of the shards (`counts`, by shard), by hash. It is added to `counts`.
    fn near(&self, key: &NodeKey, neighbours: &[i32], counts: &mut [(i32, f64)]) -> i32 {
        let number = |id: i32| self.ids.iter().position(|own| *own == id).map(|number| number as u16);
        let near: Vec<(u16, f64)> =
            neighbours.iter().filter_map(|shard| number(*shard)).map(|number| (number, 1.0)).collect();
        let of = |id: &i32| counts.iter().find(|(shard, _)| shard == id).map_or(0.0, |(_, nodes)| *nodes);
        let loads: Vec<f64> = self.ids.iter().map(of).collect();
        if near.is_empty() || loads.iter().sum::<f64>() < LEAST_NODES {
            return self.of_key(key);
        }
        let node = Placed { load: 1.0, kind: 0 };
        let home = self.id(place_near(node, &near, &loads, &self.shards, NEAR_SLACK));
        if let Some((_, nodes)) = counts.iter_mut().find(|(shard, _)| *shard == home) {
            *nodes += 1.0;
        }
        home
    }
}

/// The number of a new component that has this key. Numbers are random, so that chains of merged components stay
/// short; should two of them meet, the components only wait for each other more than they need.
fn new_component(key: &NodeKey) -> i64 {
    (key_hash(&key.bytes()) >> 1) as i64
}
