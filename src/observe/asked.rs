//! Relations that another server asks for: the shards of a Citus cluster on one of its nodes.
//!
//! Hooks count them like partitions of managed tables. Their counters and the totals of their triggers only grow: whoever
//! asks keeps what it saw last, so that an answer that is lost, or a second one who asks, takes nothing away from anybody. The
//! keeper of this database leaves them alone but for one thing: what nobody has asked for in time is watched no more.

use super::directory::{own_entries, retire};
use super::drain::ProfileActivity;
use crate::pg::region::{self, Dropped, segment_key};
use crate::pg::{bgworker, guc, shmem};
use foreshard_core::shared::{Activity, SEGMENT_COUNTERS, Segment};
use std::sync::atomic::Ordering;

/// A relation of the current database that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedActivity {
    /// The relation.
    pub relation: u32,
    /// Since when it is watched, µs of PostgreSQL's clock: counters of another beginning are other counters.
    pub since_us: u64,
    /// What was counted since then.
    pub counters: [u64; SEGMENT_COUNTERS],
}

/// Watches these relations of the current database until then (µs of PostgreSQL's clock), unless they are asked for again. Returns
/// how many found no room: at least half of the places is left to keepers.
pub fn watch(relations: &[u32], until_us: i64) -> usize {
    let Some(region) = region::get() else { return relations.len() };
    let (database, now_us) = (bgworker::database(), bgworker::now_us());
    let (since, until) = (now_us.max(1) as u64, until_us.max(0) as u64);
    let most = guc::MAX_RELATIONS.get().max(0) as usize;
    shmem::with(|_| {
        retire_overdue(region, since);
        let keys = region.segment_keys();
        let (mut entered, mut missing) = (keys.entries().count(), 0);
        for relation in relations {
            let key = segment_key(database, *relation);
            if let Some(place) = keys.find(key) {
                let segment = &region.segments[place];
                if let Some((since, _)) = segment.asked() {
                    segment.set_asked(Some((since, until)));
                }
                continue;
            }
            match keys.reserve(key).filter(|_| entered < most) {
                Some(place) => {
                    enter(&region.segments[place], *relation, (since, until));
                    keys.publish(place, key);
                    entered += 1;
                }
                None => {
                    region.drop_one(Dropped::Relation);
                    missing += 1;
                }
            }
        }
        missing
    })
    .unwrap_or(relations.len())
}

/// Makes a place that was reserved that of a relation: a leaf of itself, in no slot and without a key.
fn enter(segment: &Segment, relation: u32, asked: (u64, u64)) {
    let _ = segment.take();
    segment.table.store(u64::from(relation), Ordering::Relaxed);
    for word in
        [&segment.slot_id, &segment.group_id, &segment.shard_id, &segment.key_attribute, &segment.placed_ns]
    {
        word.store(0, Ordering::Relaxed);
    }
    segment.set_load(0.0, 0.0);
    segment.set_asked(Some(asked));
    segment.set_activity(Activity { observed: true, hot: false, leaf: true });
}

/// Watches no longer what nobody has asked for in time, in this database. The keeper's, every tick.
pub fn end_overdue() {
    let Some(region) = region::get() else { return };
    let now_us = bgworker::now_us().max(0) as u64;
    // Nearly always there is nothing to do, which is seen without the lock.
    if overdue(region, now_us).next().is_some() {
        shmem::with(|_| retire_overdue(region, now_us));
    }
}

/// Takes them out; under the lock.
fn retire_overdue(region: &'static region::Region, now_us: u64) {
    overdue(region, now_us).for_each(|place| retire(region, place));
}

fn overdue(region: &'static region::Region, now_us: u64) -> impl Iterator<Item = usize> {
    own_entries(region)
        .map(|(place, _)| place)
        .filter(move |place| region.segments[*place].asked().is_some_and(|(_, until)| until < now_us))
}

/// What is counted of every relation of the current database that is asked for.
pub fn relations() -> Vec<AskedActivity> {
    let Some(region) = region::get() else { return Vec::new() };
    let counted = own_entries(region).filter_map(|(place, relation)| {
        let segment = &region.segments[place];
        let (since_us, _) = segment.asked()?;
        Some(AskedActivity { relation, since_us, counters: segment.counters() })
    });
    counted.collect()
}

/// The totals of every trigger on them.
pub fn profiles() -> Vec<ProfileActivity> {
    let Some(region) = region::get() else { return Vec::new() };
    let database = bgworker::database();
    let totals = region.profile_keys().entries().filter_map(|(place, key)| {
        let profile = &region.profiles[place];
        let identity = profile.identity().filter(|i| i.database == database)?;
        let is_asked = region.segment(identity.table).is_some_and(|segment| segment.is_asked());
        is_asked.then(|| ProfileActivity { key, identity, totals: profile.totals() })
    });
    totals.collect()
}
