//! How busy a table's slots and shards are, from shared memory and from what this session did itself.

use crate::catalog::birth::Cradle;
use crate::observe::directory::{self, LeafLoad};
use crate::pg::guc;
use foreshard_core::birth::{Picture, ShardState, SlotState};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// Work of a slot, over all colocated tables.
#[derive(Clone, Copy, Default)]
struct Work {
    shard_id: i32,
    load: f64,
    placed: f64,
}

fn by_slot(watched: &[LeafLoad]) -> HashMap<i64, Work> {
    let mut slots: HashMap<i64, Work> = HashMap::with_capacity(watched.len());
    for leaf in watched {
        let work = slots.entry(leaf.slot_id).or_default();
        // Every leaf of a slot carries the load of the slot, and what was placed in itself.
        work.shard_id = leaf.load.shard_id;
        work.load = work.load.max(leaf.load.load);
        work.placed += leaf.load.placed;
    }
    slots
}

/// A picture, with the ids of its shards, and which slots are watched.
pub struct View {
    /// For choosing.
    pub picture: Picture,
    /// Index of every shard by id.
    pub shards: HashMap<i32, usize>,
    /// Whether somebody else counts what is placed in a slot.
    pub watched: Vec<bool>,
    /// When it was taken.
    pub taken_at: Instant,
}

/// Takes the picture: slots as the catalog has them, where nobody watches them; `mine` is what this session
/// placed in each.
pub fn take(cradles: &[Cradle], mine: &[f64]) -> View {
    let half_life_s = f64::from(guc::HEAT_HALF_LIFE.get());
    let watched = directory::loads();
    let works = by_slot(&watched);
    let mut shards: HashMap<i32, usize> = HashMap::new();
    let mut states: Vec<ShardState> = Vec::new();
    let mut slots = Vec::with_capacity(cradles.len());
    let mut seen = Vec::with_capacity(cradles.len());
    for (cradle, mine) in cradles.iter().zip(mine) {
        let work = works.get(&cradle.slot_id).copied();
        // Where the slot lives and what its shard can do is the catalog's to say: it is never older.
        let shard = *shards.entry(cradle.shard_id).or_insert_with(|| {
            let Cradle { capacity, draining, .. } = *cradle;
            states.push(ShardState { capacity, draining, elsewhere: 0.0 });
            states.len() - 1
        });
        let (load, placed) = work.map_or((0.0, *mine), |work| (work.load, work.placed));
        slots.push(SlotState { shard, load, placed });
        seen.push(work.is_some());
    }
    let own: HashSet<i64> = cradles.iter().map(|cradle| cradle.slot_id).collect();
    for (_, work) in works.iter().filter(|(slot_id, _)| !own.contains(*slot_id)) {
        if let Some(state) = shards.get(&work.shard_id).and_then(|shard| states.get_mut(*shard)) {
            state.elsewhere += work.load * half_life_s + work.placed;
        }
    }
    let picture = Picture::new(&slots, &states, half_life_s);
    View { picture, shards, watched: seen, taken_at: Instant::now() }
}
