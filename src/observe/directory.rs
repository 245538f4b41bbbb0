//! The relations worth watching: entered by keepers, looked up by every backend.

use crate::pg::region::{self, Dropped, segment_key};
use crate::pg::{bgworker, shmem};
use foreshard_core::shared::{Activity, Segment};
use std::collections::{HashMap, HashSet};
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

/// A partition's copy of a trigger that PostgreSQL made for itself, which has a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriggerCopy {
    /// The copy's oid.
    pub trigger: u32,
    /// Oid of the partitioned table's trigger.
    pub root: u32,
}

/// What was placed in relations by their oids, nano cost units.
pub type Placed = HashMap<u32, u64>;

/// Cost predicted for keys placed so far in the leaf partitions of this database: what a reading of the counters
/// that begins now is going to see.
pub fn placed() -> Placed {
    let Some(region) = region::get() else { return Placed::new() };
    let own = own_entries(region)
        .map(|(place, relation)| (relation, region.segments[place].placed_ns.load(Ordering::Relaxed)));
    own.filter(|(_, placed_ns)| *placed_ns > 0).collect()
}

/// (Place, relation) of every entry of the current database.
pub(super) fn own_entries(region: &'static region::Region) -> impl Iterator<Item = (usize, u32)> {
    let database = bgworker::database();
    let entries = region.segment_keys().entries();
    entries.filter(move |(_, key)| (key >> 32) as u32 == database).map(|(place, key)| (place, key as u32))
}

/// Makes exactly `relations` the watched ones of this database. Returns how many did not fit. `read`: what had been
/// placed in relations before the reading that their loads come from, which now is part of these.
///
/// Only the database's keeper calls it. Counters of relations that stay are kept; what another server asks for
/// ([`super::asked`]) stays.
pub fn publish(relations: &[Watched], read: &Placed) -> usize {
    let Some(region) = region::get() else { return relations.len() };
    let database = bgworker::database();
    shmem::with(|_| {
        let keys = region.segment_keys();
        let wanted: HashSet<u32> = relations.iter().map(|w| w.relation).collect();
        for (place, relation) in own_entries(region) {
            if !wanted.contains(&relation) && !region.segments[place].is_asked() {
                retire(region, place);
            }
        }
        let mut missing = 0;
        for watched in relations {
            let key = segment_key(database, watched.relation);
            match keys.find(key) {
                Some(place) => {
                    let segment = &region.segments[place];
                    fill(region, segment, watched);
                    segment.take_placed(read.get(&watched.relation).copied().unwrap_or(0));
                }
                None => match keys.reserve(key) {
                    Some(place) => {
                        let _ = region.segments[place].take();
                        region.segments[place].placed_ns.store(0, Ordering::Relaxed);
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

/// Makes exactly `copies` the known ones of this database, by their triggers' oids; who does not fit is counted
/// under a name of its own until the keeper brings it together with the others.
pub fn publish_copies(copies: &[TriggerCopy]) {
    let Some(region) = region::get() else { return };
    let database = bgworker::database();
    shmem::with(|_| {
        let keys = region.copy_keys();
        let wanted: HashSet<u32> = copies.iter().map(|copy| copy.trigger).collect();
        for (place, key) in keys.entries() {
            if (key >> 32) as u32 == database && !wanted.contains(&(key as u32)) {
                keys.remove(place);
            }
        }
        for copy in copies {
            let key = segment_key(database, copy.trigger);
            match keys.find(key) {
                Some(place) => region.set_copied_from(place, copy.root),
                None => match keys.reserve(key) {
                    Some(place) => {
                        region.set_copied_from(place, copy.root);
                        keys.publish(place, key);
                    }
                    None => region.drop_one(Dropped::Copy),
                },
            }
        }
    });
}

/// Takes everything of this database out: the keeper leaves because the extension is gone.
pub fn withdraw() {
    let own = bgworker::database();
    withdraw_if(|database| database == own);
}

/// Takes everything out that belongs to none of these databases: they were dropped. The launcher's, which starts
/// keepers for databases that it has found only, so that no other one can have come to be meanwhile.
pub fn withdraw_dropped(databases: &[u32]) {
    let there: HashSet<u32> = databases.iter().copied().collect();
    withdraw_if(|database| !there.contains(&database));
}

fn withdraw_if(is_gone: impl Fn(u32) -> bool) {
    let Some(region) = region::get() else { return };
    let of = |key: u64| (key >> 32) as u32;
    let relations = || region.segment_keys().entries().filter(|(_, key)| is_gone(of(*key)));
    let copies = || region.copy_keys().entries().filter(|(_, key)| is_gone(of(*key)));
    let profiles = || {
        let entries = region.profile_keys().entries();
        entries.filter(|(place, _)| region.profiles[*place].identity().is_some_and(|i| is_gone(i.database)))
    };
    // Asked every two seconds, by the launcher: without a lock while there is nothing to do.
    if relations().next().is_none() && copies().next().is_none() && profiles().next().is_none() {
        return;
    }
    shmem::with(|_| {
        relations().for_each(|(place, _)| retire(region, place));
        copies().for_each(|(place, _)| region.copy_keys().remove(place));
        profiles().for_each(|(place, _)| {
            region.profiles[place].leave();
            region.profile_keys().remove(place);
        });
    });
}

/// Takes a relation out; under the lock.
pub(super) fn retire(region: &region::Region, place: usize) {
    let segment = &region.segments[place];
    if segment.activity().hot {
        region.change_hot(-1);
    }
    segment.set_activity(Activity::default());
    segment.set_asked(None);
    region.segment_keys().remove(place);
}

fn fill(region: &region::Region, segment: &Segment, watched: &Watched) {
    let leaf = watched.slot_id.is_some();
    segment.set_asked(None);
    segment.slot_id.store(watched.slot_id.unwrap_or(0) as u64, Ordering::Relaxed);
    segment.table.store(u64::from(watched.table), Ordering::Relaxed);
    segment.group_id.store(watched.group_id as u64, Ordering::Relaxed);
    segment.shard_id.store(watched.shard_id as u64, Ordering::Relaxed);
    segment.key_attribute.store(watched.key_attribute.max(0) as u64, Ordering::Relaxed);
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
    own_entries(region)
        .filter(|(place, _)| region.segments[*place].activity().leaf && !region.segments[*place].is_asked())
        .map(|(place, leaf)| {
            let segment = &region.segments[place];
            LeafLoad {
                leaf,
                slot_id: segment.slot_id.load(Ordering::Relaxed) as i64,
                load: slot_load(segment),
            }
        })
        .collect()
}
