//! What a keeper reads out of shared memory: its own database's part of everything.

use super::samples::{DependencySample, KeySample, MAX_SEGMENTS, TransactionSample, TriggerSample};
use crate::pg::region::{self, Dropped};
use crate::pg::{bgworker, shmem};
use foreshard_core::shared::{ProfileIdentity, SEGMENT_COUNTERS, TOTALS};
use std::sync::atomic::Ordering;

/// Counters of one leaf partition since the last drain, by `SegmentCounter as usize`.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentActivity {
    /// The leaf partition.
    pub relation: u32,
    /// Its slot.
    pub slot_id: i64,
    /// The partitioned table.
    pub table: u32,
    /// The counters.
    pub counters: [u64; SEGMENT_COUNTERS],
}

/// Takes the counters of every watched leaf of this database in which something happened.
pub fn segments() -> Vec<SegmentActivity> {
    let Some(region) = region::get() else { return Vec::new() };
    let database = bgworker::database();
    let mut found = Vec::new();
    for (place, key) in region.segment_keys().entries() {
        if (key >> 32) as u32 != database {
            continue;
        }
        let segment = &region.segments[place];
        // Whoever asks for it keeps what it saw last by itself.
        if segment.is_asked() {
            continue;
        }
        let counters = segment.take();
        if segment.activity().leaf && counters.iter().any(|c| *c > 0) {
            found.push(SegmentActivity {
                relation: key as u32,
                slot_id: segment.slot_id.load(Ordering::Relaxed) as i64,
                table: segment.table.load(Ordering::Relaxed) as u32,
                counters,
            });
        }
    }
    found
}

/// Totals of one trigger since the entry was made, by `Total as usize`; they only grow, the reader keeps
/// what it saw last.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileActivity {
    /// `ProfileIdentity::key`, as in [`TriggerSample::profile`].
    pub key: u64,
    /// Which trigger.
    pub identity: ProfileIdentity,
    /// The totals.
    pub totals: [u64; TOTALS],
}

/// The totals of every trigger of this database, but those on tables that another server asks for (see [`super::asked`]).
pub fn profiles() -> Vec<ProfileActivity> {
    let Some(region) = region::get() else { return Vec::new() };
    let database = bgworker::database();
    let entries = region.profile_keys().entries();
    let read = entries.filter_map(|(place, key)| {
        let profile = &region.profiles[place];
        let identity = profile.identity().filter(|i| i.database == database)?;
        let is_asked = region.segment(identity.table).is_some_and(|segment| segment.is_asked());
        (!is_asked).then(|| ProfileActivity { key, identity, totals: profile.totals() })
    });
    read.collect()
}

/// Frees the entries of triggers that are gone, or are counted elsewhere now. Returns the totals they had, by key.
pub fn forget_profiles(keys: &[u64]) -> Vec<(u64, [u64; TOTALS])> {
    let Some(region) = region::get() else { return Vec::new() };
    if keys.is_empty() {
        return Vec::new();
    }
    shmem::with(|_| {
        let own = keys.iter().filter_map(|key| Some((*key, region.profile_keys().find(*key)?)));
        own.map(|(key, place)| {
            region.profiles[place].leave();
            let totals = region.profiles[place].totals();
            // From now on the place may be another's.
            region.profile_keys().remove(place);
            (key, totals)
        })
        .collect()
    })
    .unwrap_or_default()
}

/// From now on this process is called when the rings fill: see [`Cursors::are_called`].
pub fn serve() {
    if let Some(region) = region::get() {
        region.enter_keeper();
    }
}

/// This process reads no rings any more.
pub fn serve_no_more() {
    if let Some(region) = region::get() {
        region.leave_keeper();
    }
}

/// How far a keeper has read the rings.
#[derive(Clone, Copy, Debug)]
pub struct Cursors {
    /// Calls that were answered.
    calls: u64,
    triggers: u64,
    keys: u64,
    transactions: u64,
    dependencies: u64,
}

impl Default for Cursors {
    /// From now on: what was sampled before belongs to an earlier keeper.
    fn default() -> Self {
        let heads = region::get().map(|r| {
            (r.triggers().head(), r.keys().head(), r.transactions().head(), r.dependencies().head())
        });
        let (triggers, keys, transactions, dependencies) = heads.unwrap_or_default();
        let calls = region::get().map_or(0, region::Region::calls);
        Self { calls, triggers, keys, transactions, dependencies }
    }
}

macro_rules! reader {
    ($(#[$doc:meta])* $name:ident, $sample:ident) => {
        $(#[$doc])*
        ///
        /// Returns how many samples, of whatever database, were overwritten before they were read.
        pub fn $name(&mut self, mut each: impl FnMut($sample)) -> u64 {
            let Some(region) = region::get() else { return 0 };
            let database = bgworker::database();
            region.$name().drain(&mut self.$name, |words| {
                if let Some(sample) = $sample::decode(words, database) {
                    each(sample);
                }
            })
        }
    };
}

impl Cursors {
    /// Whether keepers were called since [`Cursors::answer`]: another half of some ring is full.
    pub fn are_called(&self) -> bool {
        region::get().is_some_and(|region| region.calls() != self.calls)
    }

    /// The rings are about to be read.
    pub fn answer(&mut self) {
        self.calls = region::get().map_or(0, region::Region::calls);
    }

    reader!(
        /// Measured trigger calls since the last reading.
        triggers, TriggerSample
    );
    reader!(
        /// Keys seen on hot slots since the last reading.
        keys, KeySample
    );
    reader!(
        /// Sampled transactions since the last reading.
        transactions, TransactionSample
    );
    reader!(
        /// What trigger functions were seen to touch since the last reading.
        dependencies, DependencySample
    );
}

/// One area of shared memory, for `foreshard.stat_foreshard`.
pub struct Area {
    /// What it holds.
    pub name: &'static str,
    /// Entries it has room for.
    pub capacity: u64,
    /// Entries in use (None: a ring, which is always full in time, or of every session).
    pub used: Option<u64>,
    /// Entries written since the server started.
    pub written: Option<u64>,
    /// Entries dropped since the server started.
    pub dropped: u64,
}

/// Every area, all databases together.
pub fn areas() -> Vec<Area> {
    let Some(region) = region::get() else { return Vec::new() };
    let table = |name, capacity: usize, used: usize, what| Area {
        name,
        capacity: capacity as u64 / 2,
        used: Some(used as u64),
        written: None,
        dropped: region.dropped(what),
    };
    let ring = |name, capacity: usize, head: u64, what| Area {
        name,
        capacity: capacity as u64,
        used: None,
        written: Some(head),
        dropped: region.dropped(what),
    };
    let of_session = |name, capacity: usize, what| Area {
        name,
        capacity: capacity as u64,
        used: None,
        written: None,
        dropped: region.dropped(what),
    };
    let (relations, profiles, copies) = (region.segment_keys(), region.profile_keys(), region.copy_keys());
    let (triggers, keys) = (region.triggers(), region.keys());
    let (transactions, dependencies) = (region.transactions(), region.dependencies());
    vec![
        table("relations", relations.capacity(), relations.entries().count(), Dropped::Relation),
        table("trigger profiles", profiles.capacity(), profiles.entries().count(), Dropped::Profile),
        table("trigger copies", copies.capacity(), copies.entries().count(), Dropped::Copy),
        ring("trigger samples", triggers.capacity(), triggers.head(), Dropped::TriggerSample),
        ring("key samples", keys.capacity(), keys.head(), Dropped::KeySample),
        ring("transaction samples", transactions.capacity(), transactions.head(), Dropped::TransactionSample),
        ring("dependency samples", dependencies.capacity(), dependencies.head(), Dropped::DependencySample),
        of_session("measured statements", super::sensor::MAX_TRACKED, Dropped::Statement),
        of_session("slots of a transaction", MAX_SEGMENTS, Dropped::Slot),
    ]
}

/// (Statements sampled, milliseconds spent on measuring, nested calls too deep to be measured alone,
/// measurements given up) since the server started, all databases together.
pub fn sampling() -> (u64, f64, u64, u64) {
    let Some(region) = region::get() else { return (0, 0.0, 0, 0) };
    let (statements, overhead_ns) = region.sampling();
    (statements, overhead_ns as f64 / 1e6, region.dropped(Dropped::Depth), region.dropped(Dropped::Failure))
}
