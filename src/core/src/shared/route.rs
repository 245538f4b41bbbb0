//! Routes: which partitions have a second copy that reads may be sent to, and how those reads fare.
//!
//! Written by few (carriers and keepers, one at a time: the caller holds a lock), read by every statement while
//! there is any. A reader copies an entry between two equal, even stamps (a sequence lock), and looks again with
//! [`Routes::is_open`] once it holds its locks. What closes a route for good ([`Route::failures`]) is an
//! increment that nobody undoes, so that it cannot be lost to a writer that raises the weight at the same time.

use crate::latency::Histogram;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Routes at a time, over all databases.
pub const ROUTES: usize = 128;
/// Moves with statistics at a time.
pub const ROUTED_MOVES: usize = 32;
/// Indexes of a partition; one that has more cannot be routed.
pub const ROUTE_INDEXES: usize = 24;

/// Statements that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arm {
    /// On the slot, before the swap.
    Before,
    /// On the slot, after the swap.
    After,
    /// Could have been routed, were not.
    Stayed,
    /// Were routed.
    Routed,
    /// On anything else, before the swap.
    OthersBefore,
    /// On anything else, after the swap.
    OthersAfter,
}

/// How many arms there are.
pub const ARMS: usize = 6;

/// What happened to the statements on the slot of a move. All zero: nothing.
#[repr(C)]
#[derive(Debug, Default)]
pub struct RouteStats {
    /// The move, 0: free.
    pub move_id: AtomicU64,
    /// 1 once the copies have changed places.
    pub swapped: AtomicU32,
    /// Index by which both copies were asked when they last differed.
    pub differing_index: AtomicU32,
    /// Scans of which both copies have been asked.
    pub compared: AtomicU64,
    /// Those that differed.
    pub differed: AtomicU64,
    /// Scans that were drawn to be compared and could not be.
    pub incomparable: AtomicU64,
    /// Reads so far: sent to the copy, not sent though they could have been, and those that cannot be sent there.
    pub reads: [AtomicU64; 3],
    arms: [Histogram; ARMS],
}

impl RouteStats {
    /// The statements of an arm.
    pub fn arm(&self, arm: Arm) -> &Histogram {
        &self.arms[arm as usize]
    }

    /// One more read while reads are routed, by the arm that it belongs to.
    pub fn count_read(&self, arm: Option<Arm>) {
        let at = match arm {
            Some(Arm::Routed) => 0,
            Some(_) => 1,
            None => 2,
        };
        self.reads[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets everything and belongs to a move, or to nobody (0).
    pub fn begin(&self, move_id: u64) {
        self.swapped.store(0, Ordering::Relaxed);
        self.differing_index.store(0, Ordering::Relaxed);
        self.compared.store(0, Ordering::Relaxed);
        self.differed.store(0, Ordering::Relaxed);
        self.incomparable.store(0, Ordering::Relaxed);
        self.reads.iter().for_each(|n| n.store(0, Ordering::Relaxed));
        self.arms.iter().for_each(Histogram::clear);
        self.move_id.store(move_id, Ordering::Release);
    }
}

/// One partition and one of its copies. All zero: free.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Route {
    /// Odd while the fields below are being written.
    stamp: AtomicU64,
    /// Database and partition; 0: free.
    key: AtomicU64,
    shadow: AtomicU32,
    /// relfilenode of the partition when the route was made.
    storage: AtomicU32,
    /// Snapshots must have seen this transaction, and all before it, end.
    horizon: AtomicU32,
    /// Place of the move's statistics.
    stats: AtomicU32,
    /// See [`RouteSpec::parent`].
    parent: AtomicU32,
    /// See [`RouteSpec::staging`].
    staging: AtomicU32,
    /// (index of the partition, its counterpart), both 0: none.
    indexes: [[AtomicU32; 2]; ROUTE_INDEXES],
    /// Share of reads that go to the shadow, of `u32::MAX`.
    weight: AtomicU32,
    /// Changes that could not be mirrored; the route is closed when there is any.
    failures: AtomicU32,
    /// Reads that were sent to the shadow, and rows they returned: load of the slot that its own counters lack.
    pub routed: [AtomicU64; 2],
}

/// What is written into a route.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RouteSpec {
    /// Database.
    pub database: u32,
    /// Partition.
    pub source: u32,
    /// Its shadow; 0: there is none here, and whoever names the table is timed.
    pub shadow: u32,
    /// relfilenode of the partition.
    pub storage: u32,
    /// See [`Route`].
    pub horizon: u32,
    /// Place of the move's statistics.
    pub stats: u32,
    /// The partitioned table that the partition is one of, when the copy has other rows than the partition: only what
    /// is read by one key of the partition can be read there. 0: both have the same rows.
    pub parent: u32,
    /// The partitioned table that says which copy has a key; 0: there is one copy.
    pub staging: u32,
    /// (index of the partition, its counterpart).
    pub indexes: Vec<(u32, u32)>,
}

/// A route as it was at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its place.
    pub place: usize,
    stamp: u64,
    /// Partition.
    pub source: u32,
    /// Its shadow.
    pub shadow: u32,
    /// relfilenode of the partition.
    pub storage: u32,
    /// See [`Route`].
    pub horizon: u32,
    /// Place of the move's statistics.
    pub stats: u32,
    /// Share of reads, of `u32::MAX`.
    pub weight: u32,
    /// See [`RouteSpec::parent`].
    pub parent: u32,
    /// See [`RouteSpec::staging`].
    pub staging: u32,
    indexes: [(u32, u32); ROUTE_INDEXES],
}

impl Seen {
    /// The shadow's counterpart of an index.
    pub fn counterpart(&self, index: u32) -> Option<u32> {
        self.indexes.iter().find(|(from, _)| *from == index && index != 0).map(|(_, to)| *to)
    }

    /// Indexes of the partition, each with its counterpart.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u32)> {
        self.indexes.iter().copied().filter(|(from, _)| *from != 0)
    }

    /// The index of the partition whose counterpart this is.
    pub fn original(&self, index: u32) -> Option<u32> {
        self.indexes.iter().find(|(_, to)| *to == index && index != 0).map(|(from, _)| *from)
    }
}

/// The table of routes, over lent memory.
#[derive(Clone, Copy, Debug)]
pub struct Routes<'a> {
    /// Routes in use.
    count: &'a AtomicU64,
    entries: &'a [Route],
    stats: &'a [RouteStats],
}

fn key(database: u32, source: u32) -> u64 {
    u64::from(database) << 32 | u64::from(source)
}

impl<'a> Routes<'a> {
    /// Over this memory.
    pub fn new(count: &'a AtomicU64, entries: &'a [Route], stats: &'a [RouteStats]) -> Self {
        Self { count, entries, stats }
    }

    /// Whether there is any route. All that a statement pays while there is none.
    #[inline]
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Places in use. Routes lie at the lowest free places, so the look ends with the last of them.
    fn used(self) -> impl Iterator<Item = usize> + 'a {
        let mut left = self.count.load(Ordering::Acquire);
        (0..self.entries.len())
            .map_while(move |place| {
                let used = left > 0 && self.entries[place].key.load(Ordering::Acquire) != 0;
                let go_on = left > 0;
                left -= u64::from(used);
                go_on.then_some((place, used))
            })
            .filter_map(|(place, used)| used.then_some(place))
    }

    /// Every route of a database.
    pub fn of_database(self, database: u32) -> impl Iterator<Item = Seen> + 'a {
        self.used()
            .filter_map(move |place| self.read(place).filter(|(db, _)| *db == database))
            .map(|(_, seen)| seen)
    }

    /// The route of a partition; of several copies the first.
    pub fn find(&self, database: u32, source: u32) -> Option<Seen> {
        let wanted = key(database, source);
        let place = self.used().find(|place| self.entries[*place].key.load(Ordering::Acquire) == wanted)?;
        self.read(place).map(|(_, seen)| seen).filter(|seen| seen.source == source)
    }

    /// The entry at a place.
    pub fn entry(&self, place: usize) -> Option<&'a Route> {
        self.entries.get(place)
    }

    /// The statistics at a place.
    pub fn stats(&self, place: u32) -> Option<&'a RouteStats> {
        self.stats.get(place as usize)
    }

    /// The statistics of a move.
    pub fn stats_of(&self, move_id: u64) -> Option<(u32, &'a RouteStats)> {
        let place = self.stats.iter().position(|s| s.move_id.load(Ordering::Acquire) == move_id)?;
        Some((place as u32, &self.stats[place]))
    }

    fn read(&self, place: usize) -> Option<(u32, Seen)> {
        let entry = self.entries.get(place)?;
        let stamp = entry.stamp.load(Ordering::Acquire);
        let key = entry.key.load(Ordering::Relaxed);
        if stamp % 2 == 1 || key == 0 {
            return None;
        }
        let load = |word: &AtomicU32| word.load(Ordering::Relaxed);
        let mut indexes = [(0, 0); ROUTE_INDEXES];
        for (to, [source, shadow]) in indexes.iter_mut().zip(&entry.indexes) {
            *to = (load(source), load(shadow));
        }
        let closed = load(&entry.failures) > 0;
        let seen = Seen {
            place,
            stamp,
            source: key as u32,
            shadow: load(&entry.shadow),
            storage: load(&entry.storage),
            horizon: load(&entry.horizon),
            stats: load(&entry.stats),
            weight: if closed { 0 } else { load(&entry.weight) },
            parent: load(&entry.parent),
            staging: load(&entry.staging),
            indexes,
        };
        fence(Ordering::Acquire);
        (entry.stamp.load(Ordering::Relaxed) == stamp).then_some(((key >> 32) as u32, seen))
    }

    /// Whether a route is still the one that was seen, and open.
    pub fn is_open(&self, seen: &Seen) -> bool {
        self.entries.get(seen.place).is_some_and(|entry| {
            entry.stamp.load(Ordering::Acquire) == seen.stamp
                && entry.failures.load(Ordering::Acquire) == 0
                && entry.weight.load(Ordering::Acquire) > 0
        })
    }

    /// Closes the routes of a partition until they are made anew: a change of it will not be mirrored.
    pub fn fail(&self, database: u32, source: u32) {
        let wanted = key(database, source);
        for entry in self.entries.iter().filter(|e| e.key.load(Ordering::Acquire) == wanted) {
            entry.failures.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Whether a route was closed by a failure.
    pub fn has_failed(&self, seen: &Seen) -> bool {
        self.entries.get(seen.place).is_none_or(|entry| entry.failures.load(Ordering::Acquire) > 0)
    }

    // What follows is for one writer at a time.

    /// Makes (or makes anew) the route of a partition to a copy, with weight 0. False: there is no room.
    pub fn make(&self, spec: &RouteSpec) -> bool {
        let wanted = key(spec.database, spec.source);
        // A copy that has other rows is one of several; a table without a copy has a route for every move that times it.
        let same = |e: &Route| match (spec.shadow, spec.parent) {
            (0, _) => e.stats.load(Ordering::Relaxed) == spec.stats,
            (_, 0) => true,
            (shadow, _) => e.shadow.load(Ordering::Relaxed) == shadow,
        };
        let at = |key| {
            let fits = |e: &Route| e.key.load(Ordering::Relaxed) == key && (key == 0 || same(e));
            self.entries.iter().position(fits)
        };
        if spec.indexes.len() > ROUTE_INDEXES {
            return false;
        }
        let Some(place) = at(wanted).or_else(|| at(0)) else { return false };
        let entry = &self.entries[place];
        let is_new = entry.key.load(Ordering::Relaxed) == 0;
        entry.stamp.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        entry.weight.store(0, Ordering::Relaxed);
        entry.failures.store(0, Ordering::Relaxed);
        entry.shadow.store(spec.shadow, Ordering::Relaxed);
        entry.storage.store(spec.storage, Ordering::Relaxed);
        entry.horizon.store(spec.horizon, Ordering::Relaxed);
        entry.stats.store(spec.stats, Ordering::Relaxed);
        entry.parent.store(spec.parent, Ordering::Relaxed);
        entry.staging.store(spec.staging, Ordering::Relaxed);
        let mut indexes = spec.indexes.iter();
        for [source, shadow] in &entry.indexes {
            let (a, b) = indexes.next().copied().unwrap_or((0, 0));
            source.store(a, Ordering::Relaxed);
            shadow.store(b, Ordering::Relaxed);
        }
        if is_new {
            entry.routed.iter().for_each(|n| n.store(0, Ordering::Relaxed));
        }
        entry.key.store(wanted, Ordering::Release);
        entry.stamp.fetch_add(1, Ordering::SeqCst);
        if is_new {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        true
    }

    /// Statistics for a move, emptied when they are new; None: there is no room.
    pub fn stats_for(&self, move_id: u64) -> Option<u32> {
        if let Some((place, _)) = self.stats_of(move_id) {
            return Some(place);
        }
        let (place, free) = self.stats_of(0)?;
        free.begin(move_id);
        Some(place)
    }

    /// Sets the share (0 to 1) of reads of every route of a move.
    pub fn set_weight(&self, stats: u32, share: f64) {
        let weight = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)).round() as u32;
        for entry in self.of_stats(stats) {
            entry.weight.store(weight, Ordering::SeqCst);
        }
    }

    /// Removes every route of a move; `forget` its statistics too.
    pub fn remove(&self, stats: u32, forget: bool) {
        for entry in self.of_stats(stats) {
            entry.stamp.fetch_add(1, Ordering::SeqCst);
            entry.weight.store(0, Ordering::SeqCst);
            entry.key.store(0, Ordering::SeqCst);
            entry.stamp.fetch_add(1, Ordering::SeqCst);
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        if let (true, Some(stats)) = (forget, self.stats(stats)) {
            stats.begin(0);
        }
    }

    fn of_stats(&self, stats: u32) -> impl Iterator<Item = &'a Route> {
        self.entries
            .iter()
            .filter(move |e| e.key.load(Ordering::Relaxed) != 0 && e.stats.load(Ordering::Relaxed) == stats)
    }
}
