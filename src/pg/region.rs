//! The observation region: shared memory sized by POSTMASTER settings, carved into arrays of atomics.
//!
//! Lock protocol: none for counting, sampling and reading routes (see `foreshard_core::shared`). Entering and
//! removing relations ([`Region::segment_keys`]) is done by keepers, and by sessions in which a coordinator of Citus asks for
//! shards (`observe::asked`), making and removing routes
//! ([`Region::routes`]) by carriers and keepers, raising and lowering barriers ([`Region::barriers`]) by carriers, keepers and the launcher, all under the LWLock of `pg::shmem`. The launcher takes out what
//! belongs to databases that are gone, under the same lock. Every
//! array has a fixed length; what does not fit is dropped and counted in [`Region::dropped`]. The region is
//! lost on a restart; keepers fill it again.

use super::gates::Gates;
use super::glance::GLANCE;
use super::guc;
use foreshard_core::shared::{
    AWAY, AwayServer, AwayServers, BARRIERS, Barrier, Barriers, Directory, Entry, Profile, Pushed,
    ROUTED_MOVES, ROUTES, Route, RouteStats, Routes, SampleRing, Segment,
};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Words of a trigger sample.
pub const TRIGGER_WORDS: usize = 18;
/// Words of a key sample.
pub const KEY_WORDS: usize = 11;
/// Words of a transaction sample.
pub const TRANSACTION_WORDS: usize = 34;
/// Words of a dependency sample.
pub const DEPENDENCY_WORDS: usize = 3;
/// Entries of the dependency ring: each backend reports an edge only once in a while.
const DEPENDENCY_ENTRIES: usize = 1024;
/// Auxiliary processes and prepared transactions beside the backends.
const SPARE_PROCESSES: usize = 64;

/// What was dropped, because something of fixed size was full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// A relation that keepers could not enter.
    Relation,
    /// A partition's copy of a trigger that keepers could not enter.
    Copy,
    /// A call of a trigger without a profile entry.
    Profile,
    /// A trigger sample.
    TriggerSample,
    /// A key sample.
    KeySample,
    /// A transaction sample.
    TransactionSample,
    /// A dependency sample.
    DependencySample,
    /// A nested call that was too deep to be measured on its own.
    Depth,
    /// A measurement given up after an internal error.
    Failure,
    /// A statement whose measurement gave way to another one's, because too many were open.
    Statement,
    /// A slot of a sampled transaction that touched too many.
    Slot,
}

/// How many kinds there are.
pub const DROPPED: usize = 11;
/// Keepers that can be called at a time.
const KEEPERS: usize = super::shmem::MAX_DATABASES;
/// Copies of triggers per relation that there is room for.
const COPIES_PER_RELATION: i32 = 4;

mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declaration is PostgreSQL's own (storage/latch.h); it never raises.
    unsafe extern "C-unwind" {
        pub fn SetLatch(latch: *mut pg_sys::Latch);
    }
}

/// Numbers that stand alone.
#[repr(C)]
#[derive(Debug)]
struct Header {
    heads: [AtomicU64; 4],
    /// How often keepers were called to read the rings.
    calls: AtomicU64,
    dropped: [AtomicU64; DROPPED],
    statements: AtomicU64,
    overhead_ns: AtomicU64,
}

/// A type for which all-zero memory is a valid value and which has no padding rules beyond 64 bytes.
///
/// # Safety
/// Only for types made of atomics.
unsafe trait Zeroed {}
// SAFETY: atomics.
unsafe impl Zeroed for AtomicU32 {}
// SAFETY: atomics.
unsafe impl Zeroed for AtomicU64 {}
// SAFETY: atomics only.
unsafe impl Zeroed for Header {}
// SAFETY: atomics only.
unsafe impl Zeroed for Gates {}
// SAFETY: atomics only.
unsafe impl Zeroed for Segment {}
// SAFETY: atomics only.
unsafe impl Zeroed for Profile {}
// SAFETY: atomics only.
unsafe impl Zeroed for Route {}
// SAFETY: atomics only.
unsafe impl Zeroed for RouteStats {}
// SAFETY: atomics only.
unsafe impl Zeroed for AwayServer {}
// SAFETY: atomics only.
unsafe impl Zeroed for Barrier {}
// SAFETY: atomics only.
unsafe impl<const W: usize> Zeroed for Entry<W> {}

/// The arrays.
pub struct Region {
    header: &'static Header,
    segment_keys: &'static [AtomicU64],
    /// Relations, parallel to [`Region::segment_keys`].
    pub segments: &'static [Segment],
    profile_keys: &'static [AtomicU64],
    /// Trigger profiles, parallel to [`Region::profile_keys`].
    pub profiles: &'static [Profile],
    triggers: &'static [Entry<TRIGGER_WORDS>],
    keys: &'static [Entry<KEY_WORDS>],
    transactions: &'static [Entry<TRANSACTION_WORDS>],
    dependencies: &'static [Entry<DEPENDENCY_WORDS>],
    sampling: &'static [AtomicU32],
    /// Places of keepers in the server's array of processes, plus 1; 0: free.
    keepers: &'static [AtomicU32],
    copy_keys: &'static [AtomicU64],
    /// Oids of triggers, parallel to [`Region::copy_keys`].
    copied: &'static [AtomicU64],
    gates: &'static Gates,
    routes: &'static [Route],
    route_stats: &'static [RouteStats],
    away: &'static [AwayServer],
    barriers: &'static [Barrier],
}

struct Carver {
    at: usize,
    base: *mut u8,
}

const LINE: usize = 64;

impl Carver {
    /// The next `count` elements; with a null base only their size is counted.
    fn take<T: Zeroed>(&mut self, count: usize) -> &'static [T] {
        let start = self.at.next_multiple_of(LINE);
        self.at = start + count * size_of::<T>();
        if self.base.is_null() {
            return &[];
        }
        // SAFETY: the region has the size that the same sequence of calls counted with a null base, is
        // aligned to a cache line, lives as long as the process, and is zeroed, which T allows.
        unsafe { std::slice::from_raw_parts(self.base.add(start).cast::<T>(), count) }
    }
}

/// Places of a table for `entries` entries: half of it stays free, so that probing stays short.
fn places(entries: i32) -> usize {
    (entries.max(1) as usize * 2).next_power_of_two()
}

fn carve(base: *mut u8) -> (usize, Option<Region>) {
    let mut carver = Carver { at: 0, base };
    let (relations, profiles) = (places(guc::MAX_RELATIONS.get()), places(guc::MAX_TRIGGER_PROFILES.get()));
    let samples = guc::SAMPLE_BUFFER.get().max(1) as usize;
    // SAFETY: set before shared memory is requested, never changed after.
    let processes = unsafe { pg_sys::MaxBackends }.max(0) as usize + SPARE_PROCESSES;
    let header = carver.take::<Header>(1);
    let gates = carver.take::<Gates>(1);
    let segment_keys = carver.take(relations);
    let segments = carver.take(relations);
    let profile_keys = carver.take(profiles);
    let profile_entries = carver.take(profiles);
    let triggers = carver.take(samples);
    let keys = carver.take(samples);
    let transactions = carver.take(samples);
    let dependencies = carver.take(DEPENDENCY_ENTRIES);
    let sampling = carver.take(processes);
    let keepers = carver.take(KEEPERS);
    let copies = places(guc::MAX_RELATIONS.get().saturating_mul(COPIES_PER_RELATION));
    let copy_keys = carver.take(copies);
    let copied = carver.take(copies);
    let routes = carver.take(ROUTES);
    let route_stats = carver.take(ROUTED_MOVES);
    let away = carver.take(AWAY);
    let barriers = carver.take(BARRIERS);
    let region = header.first().zip(gates.first()).map(|(header, gates)| Region {
        header,
        gates,
        segment_keys,
        segments,
        profile_keys,
        profiles: profile_entries,
        triggers,
        keys,
        transactions,
        dependencies,
        sampling,
        keepers,
        copy_keys,
        copied,
        routes,
        route_stats,
        away,
        barriers,
    });
    (carver.at + LINE, region)
}

impl Region {
    /// Relations by [`segment_key`].
    #[inline]
    pub fn segment_keys(&self) -> Directory<'static> {
        Directory::new(self.segment_keys)
    }

    /// Trigger profiles by `ProfileIdentity::key`.
    #[inline]
    pub fn profile_keys(&self) -> Directory<'static> {
        Directory::new(self.profile_keys)
    }

    /// Partitions' copies of triggers that have names of their own, by [`segment_key`] of the trigger.
    #[inline]
    pub fn copy_keys(&self) -> Directory<'static> {
        Directory::new(self.copy_keys)
    }

    /// The trigger of the partitioned table that a trigger of the current database is a copy of, if a keeper has
    /// said so.
    pub fn copied_from(&self, trigger: u32) -> Option<u32> {
        let key = segment_key(super::bgworker::database(), trigger);
        let place = self.copy_keys().find(key)?;
        let root = self.copied[place].load(Ordering::Acquire) as u32;
        // It may have given way to another one.
        self.copy_keys().is_at(place, key).then_some(root)
    }

    /// Says what the trigger that is (about to be) entered at a place is a copy of.
    pub fn set_copied_from(&self, place: usize, root: u32) {
        self.copied[place].store(u64::from(root), Ordering::Release);
    }

    /// The entry of a relation of the current database.
    #[inline]
    pub fn segment(&self, relation: u32) -> Option<&'static Segment> {
        self.segment_keys()
            .find(segment_key(super::bgworker::database(), relation))
            .map(|i| &self.segments[i])
    }

    /// Read routes of moves under way.
    #[inline]
    pub fn routes(&self) -> Routes<'static> {
        Routes::new(&self.gates.route_count, self.routes, self.route_stats)
    }

    /// Servers that do not answer.
    #[inline]
    pub fn away(&self) -> AwayServers<'static> {
        AwayServers::new(&self.gates.away_count, self.away)
    }

    /// Partitions that are kept from older snapshots.
    #[inline]
    pub fn barriers(&self) -> Barriers<'static> {
        Barriers::new(&self.gates.barrier_count, self.barriers)
    }

    /// Samples of trigger calls.
    pub fn triggers(&self) -> SampleRing<'static, TRIGGER_WORDS> {
        SampleRing::new(&self.header.heads[0], self.triggers)
    }

    /// Samples of keys.
    pub fn keys(&self) -> SampleRing<'static, KEY_WORDS> {
        SampleRing::new(&self.header.heads[1], self.keys)
    }

    /// Samples of transactions.
    pub fn transactions(&self) -> SampleRing<'static, TRANSACTION_WORDS> {
        SampleRing::new(&self.header.heads[2], self.transactions)
    }

    /// Samples of what trigger functions touch.
    pub fn dependencies(&self) -> SampleRing<'static, DEPENDENCY_WORDS> {
        SampleRing::new(&self.header.heads[3], self.dependencies)
    }

    /// Adds a sample of a trigger call.
    pub fn push_trigger(&self, words: &[u64; TRIGGER_WORDS]) {
        self.pushed(self.triggers().push(words), Dropped::TriggerSample);
    }

    /// Adds a sample of a key.
    pub fn push_key(&self, words: &[u64; KEY_WORDS]) {
        self.pushed(self.keys().push(words), Dropped::KeySample);
    }

    /// Adds a sample of a transaction.
    pub fn push_transaction(&self, words: &[u64; TRANSACTION_WORDS]) {
        self.pushed(self.transactions().push(words), Dropped::TransactionSample);
    }

    /// Adds a sample of what a trigger function touches.
    pub fn push_dependency(&self, words: &[u64; DEPENDENCY_WORDS]) {
        self.pushed(self.dependencies().push(words), Dropped::DependencySample);
    }

    fn pushed(&self, pushed: Pushed, what: Dropped) {
        if !pushed.kept {
            self.drop_one(what);
        }
        if pushed.half {
            self.call_keepers();
        }
    }

    /// Calls every keeper to read the rings, which all of them share. Once per half of a ring: a latch is set
    /// without waiting, and who has it set for nothing only looks.
    fn call_keepers(&self) {
        self.header.calls.fetch_add(1, Ordering::Release);
        for keeper in self.keepers {
            let place = keeper.load(Ordering::Relaxed) as usize;
            if place > 0 {
                // SAFETY: places are those of running processes (see `enter_keeper`); the array lives as long as
                // the server, and the latch of a process that has just ended may be set, too.
                unsafe { raw::SetLatch(&raw mut (*(*pg_sys::ProcGlobal).allProcs.add(place - 1)).procLatch) };
            }
        }
    }

    /// How often keepers were called: to be looked at again once woken.
    pub fn calls(&self) -> u64 {
        self.header.calls.load(Ordering::Acquire)
    }

    /// From now on this process, a keeper, is called when the rings fill. Without room it reads at its own pace.
    pub fn enter_keeper(&self) {
        // SAFETY: MyProc is set in every worker.
        let Some(place) = process_index(unsafe { pg_sys::MyProc }) else { return };
        let place = place as u32 + 1;
        let is_free = |keeper: &&AtomicU32| {
            keeper.compare_exchange(0, place, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let _ = self.keepers.iter().find(is_free);
    }

    /// This process is called no more.
    pub fn leave_keeper(&self) {
        // SAFETY: as above.
        let Some(place) = process_index(unsafe { pg_sys::MyProc }) else { return };
        for keeper in self.keepers {
            let _ = keeper.compare_exchange(place as u32 + 1, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Counts something that was dropped.
    pub fn drop_one(&self, what: Dropped) {
        self.header.dropped[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often something was dropped since the server started.
    pub fn dropped(&self, what: Dropped) -> u64 {
        self.header.dropped[what as usize].load(Ordering::Relaxed)
    }

    /// Counts a sampled statement and the time that measuring took.
    pub fn count_sampling(&self, statements: u64, overhead_ns: u64) {
        if statements > 0 {
            self.header.statements.fetch_add(statements, Ordering::Relaxed);
        }
        self.header.overhead_ns.fetch_add(overhead_ns, Ordering::Relaxed);
    }

    /// (Statements sampled, nanoseconds spent on measuring) since the server started.
    pub fn sampling(&self) -> (u64, u64) {
        (self.header.statements.load(Ordering::Relaxed), self.header.overhead_ns.load(Ordering::Relaxed))
    }

    /// Adds to (or takes from) the number of hot slots.
    pub fn change_hot(&self, more: i64) {
        let _ = self
            .gates
            .hot
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |hot| Some(hot.saturating_add_signed(more)));
    }

    /// Marks (or unmarks) this process as sampling its present statement, for its parallel workers.
    pub fn mark_sampling(&self, sampled: bool) {
        // SAFETY: MyProc is set in every process that runs statements.
        if let Some(mark) = process_index(unsafe { pg_sys::MyProc }).and_then(|i| self.sampling.get(i)) {
            mark.store(u32::from(sampled), Ordering::Relaxed);
        }
    }

    /// In a parallel worker: whether the leader samples the statement.
    pub fn leader_samples(&self) -> bool {
        // SAFETY: MyProc is set; a parallel worker has joined its leader's lock group, which lives as long.
        let leader = unsafe { (*pg_sys::MyProc).lockGroupLeader };
        let mark = process_index(leader).and_then(|i| self.sampling.get(i));
        mark.is_some_and(|m| m.load(Ordering::Relaxed) != 0)
    }
}

/// The place of a process in the server's array of processes.
fn process_index(process: *mut pg_sys::PGPROC) -> Option<usize> {
    if process.is_null() {
        return None;
    }
    // SAFETY: both point into the array allProcs, which is one allocation.
    let index = unsafe { process.offset_from((*pg_sys::ProcGlobal).allProcs) };
    usize::try_from(index).ok()
}

/// The directory's key of a relation.
#[inline]
pub fn segment_key(database: u32, relation: u32) -> u64 {
    u64::from(database) << 32 | u64::from(relation)
}

static mut REGION: Option<Region> = None;
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// The region; None unless preloaded.
#[inline]
pub fn get() -> Option<&'static Region> {
    let region = &raw const REGION;
    // SAFETY: written once, by the postmaster before any backend exists.
    unsafe { (*region).as_ref() }
}

/// Requests the region; only while `shared_preload_libraries` is processed.
pub fn register() {
    // SAFETY: single-threaded start-up of the postmaster.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(start);
    }
}

#[pg_guard]
// SAFETY: called by the postmaster when it sizes shared memory.
unsafe extern "C-unwind" fn request() {
    // SAFETY: hooks chain; the size is that of `start`, because the settings cannot change in between.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(carve(std::ptr::null_mut()).0);
    }
}

#[pg_guard]
// SAFETY: called by the postmaster once shared memory exists, again after a crash of a backend.
unsafe extern "C-unwind" fn start() {
    // SAFETY: hooks chain; ShmemInitStruct returns memory of the size asked for, which is zeroed before
    // anybody else can see it (a fresh segment after a crash, too).
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let size = carve(std::ptr::null_mut()).0;
        let mut found = false;
        let memory =
            pg_sys::ShmemInitStruct(c"foreshard_observation".as_ptr(), size, &mut found).cast::<u8>();
        let aligned = memory.add(memory.align_offset(LINE));
        if !found {
            std::ptr::write_bytes(memory, 0, size);
        }
        REGION = carve(aligned).1;
        if let Some(region) = get() {
            GLANCE.gates.set(region.gates);
        }
    }
}
