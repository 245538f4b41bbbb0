//! The relations worth watching: entered by keepers, looked up by every backend.

use crate::pg::region::{self, Dropped, segment_key};
use crate::pg::{bgworker, shmem};
use foreshard_core::shared::{Activity, Segment};
use std::collections::HashSet;
use std::sync::atomic::Ordering;

/// A relation to watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// Oid of the leaf partition or of the partitioned table.
    pub relation: u32,
    /// Oid of the partitioned table.
    pub table: u32,
    /// Slot of a leaf; None for the partitioned table.
    pub slot_id: Option<i64>,
    /// Colocation group.
    pub group_id: i32,
    /// Shard of a leaf, else 0.
    pub shard_id: i32,
    /// Attribute number of the key in `relation`.
    pub key_attribute: i16,
    /// False: `configure(table, 'observe', 'off')`.
    pub observed: bool,
    /// Accesses exceed `foreshard.hot_slot_threshold`.
    pub hot: bool,
    /// Heat of the slot, cost units per second.
    pub load: f64,
    /// Capacity of the shard, cost units per second.
    pub capacity: f64,
}

/// Makes exactly `relations` the watched ones of this database. Returns how many did not fit.
///
/// Only the database's keeper calls it. Counters of relations that stay are kept.
pub fn publish(relations: &[Watched]) -> usize {
    let Some(region) = region::get() else { return relations.len() };
    let database = bgworker::database();
    shmem::with(|_| {
        let keys = region.segment_keys();
        let wanted: HashSet<u32> = relations.iter().map(|w| w.relation).collect();
        for (place, key) in keys.entries() {
            if (key >> 32) as u32 == database && !wanted.contains(&(key as u32)) {
                retire(region, place);
            }
        }
        let mut missing = 0;
        for watched in relations {
            let key = segment_key(database, watched.relation);
            match keys.find(key) {
                Some(place) => fill(region, &region.segments[place], watched),
                None => match keys.reserve(key) {
                    Some(place) => {
                        let _ = region.segments[place].take();
                        fill(region, &region.segments[place], watched);
                        keys.publish(place, key);
                    }
                    None => {
                        region.drop_one(Dropped::Relation);
                        missing += 1;
                    }
                },
            }
        }
        missing
    })
    .unwrap_or(relations.len())
}

/// Takes every relation of a database out: the keeper leaves because the extension is gone.
pub fn withdraw() {
    publish(&[]);
}

fn retire(region: &region::Region, place: usize) {
    let segment = &region.segments[place];
    if segment.activity().hot {
        region.change_hot(-1);
    }
    segment.set_activity(Activity::default());
    region.segment_keys().remove(place);
}

fn fill(region: &region::Region, segment: &Segment, watched: &Watched) {
    let leaf = watched.slot_id.is_some();
    segment.slot_id.store(watched.slot_id.unwrap_or(0) as u64, Ordering::Relaxed);
    segment.table.store(u64::from(watched.table), Ordering::Relaxed);
    segment.group_id.store(watched.group_id as u64, Ordering::Relaxed);
    segment.shard_id.store(watched.shard_id as u64, Ordering::Relaxed);
    segment.key_attribute.store(watched.key_attribute.max(0) as u64, Ordering::Relaxed);
    segment.placed_ns.store(0, Ordering::Relaxed);
    segment.set_load(watched.load, watched.capacity);
    let now = Activity { observed: watched.observed, hot: watched.hot && watched.observed, leaf };
    match (segment.activity().hot, now.hot) {
        (false, true) => region.change_hot(1),
        (true, false) => region.change_hot(-1),
        _ => {}
    }
    segment.set_activity(now);
}

/// What is known of a leaf partition's slot at birth of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotLoad {
    /// Shard of the slot.
    pub shard_id: i32,
    /// Heat of the slot, cost units per second.
    pub load: f64,
    /// Cost predicted for keys placed there since `load` was published, cost units.
    pub placed: f64,
}

fn slot_load(segment: &Segment) -> SlotLoad {
    SlotLoad {
        shard_id: segment.shard_id.load(Ordering::Relaxed) as i32,
        load: segment.load().0,
        placed: segment.placed_ns.load(Ordering::Relaxed) as f64 / 1e6,
    }
}

/// Notes that a key with this predicted cost (cost units) was placed in a leaf partition.
pub fn note_placed(leaf: u32, cost_units: f64) {
    if let Some(segment) = region::get().and_then(|r| r.segment(leaf)) {
        let ns = (cost_units.clamp(0.0, 1e9) * 1e6) as u64;
        segment.placed_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// A leaf partition of the current database that is watched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeafLoad {
    /// Oid of the partition.
    pub leaf: u32,
    /// Its slot; colocated tables share it.
    pub slot_id: i64,
    /// What is known of it.
    pub load: SlotLoad,
}

/// Every watched leaf partition of the current database.
pub fn loads() -> Vec<LeafLoad> {
    let Some(region) = region::get() else { return Vec::new() };
    let database = bgworker::database();
    region
        .segment_keys()
        .entries()
        .filter(|(place, key)| (key >> 32) as u32 == database && region.segments[*place].activity().leaf)
        .map(|(place, key)| {
            let segment = &region.segments[place];
            LeafLoad {
                leaf: key as u32,
                slot_id: segment.slot_id.load(Ordering::Relaxed) as i64,
                load: slot_load(segment),
            }
        })
        .collect()
}
