//! Canary routes: a share of the reads of a moving partition runs on its shadow, and how statements fare is
//! counted, before and after the swap. The only hook of ours that may change where a statement reads; what it
//! reads is the same, because the mirror keeps both copies equal under every snapshot that may be routed.
//!
//! A plan is looked at when its execution starts, never when it is made: a cached plan outlives weights and
//! snapshots. It is routed, on a copy, only if
//!
//! * it only reads, locks no rows, is no cursor (which `WHERE CURRENT OF` could name), and this transaction has written nothing (what it wrote is not in the shadow
//!   before it commits) and is not SERIALIZABLE (predicate locks name relations);
//! * its snapshot sees every transaction of the carrier's that wrote the shadow as ended;
//! * the partition is not named directly, no system column of it is asked for, and every index has a counterpart;
//! * shadow and partition can be locked at once, still have the same columns, and the partition still the storage
//!   that is mirrored;
//! * after that the route is still open.
//!
//! A partition that is being divided, or merged, has copies with other rows: a scan of it reads one of them only if the
//! key that it is bound to is known before it begins (`partition::fixed`); every other scan of it stays.
//!
//! A change that cannot be mirrored closes the route before it commits, so a snapshot that sees the change
//! finds the route closed. Parallel workers run what their leader chose.
//!
//! What is looked up to choose (partition descriptors, functions of an operator class, arrays, locks) may fail: it is done in
//! a subtransaction, after which nothing is left of a failure but a statement that stays.

mod compare;
mod plan;
mod sample;

use super::glance::GLANCE;
use super::local::{Local, LocalBox};
use super::region::{self, Region};
use super::subtransaction::{self, Ended};
use super::{bgworker, compat, usage};
use foreshard_core::latency::{Counts, Histogram};
use foreshard_core::shared::{Arm, ROUTED_MOVES, RouteSpec, RouteStats, Seen};
use pgrx::pg_sys;
use pgrx::prelude::*;
use plan::Target;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;

/// One in so many eligible reads is looked up on both copies.
const COMPARE_INTERVAL: u32 = 16;
/// Statements under way that are timed; others are not.
const MAX_ACTIVE: usize = 32;
/// Routes of the partitions that one statement may name.
const MAX_SEEN: usize = 32;

/// A statement under way.
struct Active {
    query: usize,
    /// Subtransaction it began in.
    level: u32,
    /// Routes of the partitions it names; empty: it is one of the others.
    seen: Vec<Seen>,
    /// Those of them that it could have been sent by.
    eligible: Vec<Seen>,
    /// Those that it was sent by.
    routed: Vec<Seen>,
    compare: bool,
    running: bool,
    spent_ns: u64,
}

impl Active {
    /// The group of a move's canary that it belongs to, if any.
    fn arm(&self, seen: &Seen) -> Option<Arm> {
        let of = |routes: &[Seen]| routes.iter().any(|route| route.stats == seen.stats);
        match (of(&self.routed), of(&self.eligible)) {
            (true, _) => Some(Arm::Routed),
            (false, true) => Some(Arm::Stayed),
            _ => None,
        }
    }
}

static ACTIVE: LocalBox<Vec<Active>> = LocalBox::new();
/// A statement is being looked at: what that runs itself is not.
static NEVER: Local<bool> = Local::new(false);

/// Whether statements of this process are being timed: all that one pays after it has begun, and that before it is [`any`].
#[inline]
pub fn is_timing() -> bool {
    GLANCE.routed.get() > 0
}

fn with_active<R>(work: impl FnOnce(&mut Vec<Active>) -> R) -> Option<R> {
    ACTIVE.with(Vec::new, |active| {
        let result = work(active);
        GLANCE.routed.set(active.len() as u32);
        result
    })
}

/// A statement begins: routes it or not, and remembers to time it. Called by the executor's hook before the
/// original.
///
/// # Safety
/// `query` must be valid and not started yet.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn begins(query: *mut pg_sys::QueryDesc, eflags: i32) {
    // SAFETY: a variable of this process, -1 except in parallel workers.
    let is_worker = unsafe { pg_sys::ParallelWorkerNumber } >= 0;
    let Some(region) = region::get() else { return };
    if is_worker || bgworker::is_ours() || NEVER.get() {
        return;
    }
    NEVER.set(true);
    let active = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: as promised by the caller.
        unsafe { choose(region, query) }
    }))
    .finally(|| NEVER.set(false))
    .execute();
    if let Some(active) = active.filter(|_| eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 == 0) {
        with_active(|all| {
            all.retain(|a| a.query != active.query);
            if all.len() < MAX_ACTIVE {
                all.push(active);
            }
        });
    }
}

/// # Safety
/// As for [`begins`].
unsafe fn choose(region: &'static Region, query: *mut pg_sys::QueryDesc) -> Option<Active> {
    let mut seen: Vec<Seen> = region.routes().of_database(bgworker::database()).collect();
    if seen.is_empty() {
        return None;
    }
    // SAFETY: as promised by the caller.
    unsafe {
        let named = super::plan::relations((*query).plannedstmt);
        seen.retain(|route| named.iter().any(|n| n.relation == route.source));
        seen.truncate(MAX_SEEN);
        // What a statement runs inside is part of that statement.
        let inside = with_active(|all| all.iter().any(|active| active.running)).unwrap_or(true);
        if seen.is_empty() && inside {
            return None;
        }
        let mut active = Active {
            query: query as usize,
            level: pg_sys::GetCurrentSubTransactionId(),
            seen,
            eligible: Vec::new(),
            routed: Vec::new(),
            compare: false,
            running: false,
            spent_ns: 0,
        };
        let open: Vec<Seen> = active.seen.iter().filter(|s| s.weight > 0).copied().collect();
        if !open.is_empty() && plan::may_route(query, &open) {
            send(region, query, &open, &mut active);
        }
        Some(active)
    }
}

/// Decides by the open routes, and makes the statement read the copies that it is sent to.
///
/// # Safety
/// As for [`begins`]; the statement may be routed.
unsafe fn send(region: &Region, query: *mut pg_sys::QueryDesc, open: &[Seen], active: &mut Active) {
    let mut chosen = None;
    let work = || {
        // SAFETY: as promised by the caller; the generator is this process's own.
        unsafe {
            let targets = plan::targets(query, open);
            if targets.is_empty() {
                return;
            }
            let state = &raw mut pg_sys::pg_global_prng_state;
            let compare = pg_sys::pg_prng_uint32(state).is_multiple_of(COMPARE_INTERVAL);
            let drawn = draw(&targets, || pg_sys::pg_prng_uint32(state));
            let plan = if drawn.is_empty() { None } else { plan::route(region, query, &drawn) };
            let routed = if plan.is_some() { routes(drawn) } else { Vec::new() };
            chosen = Some((compare, routes(&targets), routed, plan));
        }
    };
    let ended = subtransaction::uncancelled(|| subtransaction::run_here(work));
    let (Ended::Well, Some((compare, eligible, routed, plan))) = (ended, chosen) else { return };
    (active.compare, active.eligible, active.routed) = (compare, eligible, routed);
    if let Some(plan) = plan {
        // SAFETY: as promised by the caller.
        unsafe { (*query).plannedstmt = plan };
    }
}

/// The routes to some targets, each once.
fn routes<'a>(targets: impl IntoIterator<Item = &'a Target>) -> Vec<Seen> {
    let mut found: Vec<Seen> = Vec::new();
    for Target { route, .. } in targets {
        if !found.iter().any(|known| known.place == route.place) {
            found.push(*route);
        }
    }
    found
}

/// One coin per move: all its partitions, which are colocated, or none.
fn draw(open: &[Target], mut coin: impl FnMut() -> u32) -> Vec<&Target> {
    let mut coins: Vec<(u32, u32)> = Vec::new();
    let mut drawn = Vec::new();
    for target in open {
        let seen = &target.route;
        let toss = match coins.iter().find(|(stats, _)| *stats == seen.stats) {
            Some((_, toss)) => *toss,
            None => {
                let toss = coin();
                coins.push((seen.stats, toss));
                toss
            }
        };
        if toss <= seen.weight {
            drawn.push(target);
        }
    }
    drawn
}

/// A part of a statement begins or ends to run. Times only.
#[inline]
pub(super) fn runs(query: *mut pg_sys::QueryDesc, since_ns: Option<u64>) -> u64 {
    if is_timing() { times(query, since_ns) } else { 0 }
}

#[cold]
#[inline(never)]
fn times(query: *mut pg_sys::QueryDesc, since_ns: Option<u64>) -> u64 {
    let now_ns = usage::elapsed_ns();
    with_active(|all| {
        if let Some(active) = all.iter_mut().rev().find(|a| a.query == query as usize) {
            active.running = since_ns.is_none();
            active.spent_ns += since_ns.filter(|ns| *ns > 0).map_or(0, |ns| now_ns.saturating_sub(ns));
        }
    });
    now_ns
}

/// A statement ends well: it is counted where it belongs, and some are made again on the other copy.
///
/// # Safety
/// `query` must have run and not been ended yet.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn ends(query: *mut pg_sys::QueryDesc) {
    let found = with_active(|all| {
        let at = all.iter().position(|a| a.query == query as usize)?;
        Some(all.swap_remove(at))
    });
    let (Some(Some(active)), Some(region)) = (found, region::get()) else { return };
    // SAFETY: as promised by the caller.
    let scans = unsafe { compare::scans(query, &active.seen, &active.eligible) };
    // Nothing here scans a table whose rows are on other servers.
    let touches = |s: &&Seen| s.shadow == 0 || scans.iter().any(|scan| scan.route == s.place);
    let touched: Vec<&Seen> = active.seen.iter().filter(touches).collect();
    if active.seen.is_empty() || touched.is_empty() {
        return count_other(region, |arm| arm.add(active.spent_ns));
    }
    let mut counted = Vec::with_capacity(touched.len());
    for seen in touched {
        let Some(stats) = region.routes().stats(seen.stats).filter(|_| !counted.contains(&seen.stats)) else {
            continue;
        };
        counted.push(seen.stats);
        let swapped = stats.swapped.load(Ordering::Relaxed) > 0;
        stats.arm(if swapped { Arm::After } else { Arm::Before }).add(active.spent_ns);
        // SAFETY: as promised by the caller.
        let reads = unsafe { (*query).operation } == pg_sys::CmdType::CMD_SELECT;
        let arm = active.arm(seen);
        if let Some(arm) = arm {
            stats.arm(arm).add(active.spent_ns);
        }
        if reads && seen.weight > 0 {
            stats.count_read(arm);
        }
    }
    if !active.routed.is_empty() {
        // SAFETY: as promised by the caller.
        let rows = unsafe { (*(*query).estate).es_processed };
        let was_routed = |scan: &compare::Scan| active.routed.iter().any(|seen| seen.place == scan.route);
        for scan in scans.iter().filter(|scan| scan.first && was_routed(scan)) {
            if let Some(entry) = region.routes().entry(scan.route) {
                entry.routed[0].fetch_add(1, Ordering::Relaxed);
                entry.routed[1].fetch_add(rows, Ordering::Relaxed);
            }
        }
    }
    if active.compare {
        // SAFETY: as promised by the caller; the snapshot is registered until the query is freed.
        unsafe { compare::again(region, query, &active.eligible, &scans) };
    }
}

/// Others: what the machine does to everybody.
fn count_other(region: &Region, count: impl Fn(&Histogram)) {
    let mut counted: Vec<u32> = Vec::new();
    for seen in region.routes().of_database(bgworker::database()) {
        if let Some(stats) = region.routes().stats(seen.stats).filter(|_| !counted.contains(&seen.stats)) {
            counted.push(seen.stats);
            let swapped = stats.swapped.load(Ordering::Relaxed) > 0;
            count(stats.arm(if swapped { Arm::OthersAfter } else { Arm::OthersBefore }));
        }
    }
}

/// Statements that an abort ended: from subtransaction `level` on, or all. Those that were running failed.
pub(super) fn forget(level: Option<u32>, failed: bool) {
    if GLANCE.routed.get() == 0 {
        return;
    }
    let gone = with_active(|all| {
        let (gone, kept): (Vec<Active>, Vec<Active>) =
            std::mem::take(all).into_iter().partition(|a| level.is_none_or(|level| a.level >= level));
        *all = kept;
        gone
    });
    let Some(region) = region::get().filter(|_| failed) else { return };
    for active in gone.into_iter().flatten().filter(|a| a.running) {
        if active.seen.is_empty() {
            count_other(region, Histogram::add_error);
        }
        for seen in &active.seen {
            if let Some(stats) = region.routes().stats(seen.stats) {
                let swapped = stats.swapped.load(Ordering::Relaxed) > 0;
                stats.arm(if swapped { Arm::After } else { Arm::Before }).add_error();
                if let Some(arm) = active.arm(seen) {
                    stats.arm(arm).add_error();
                }
            }
        }
    }
}

/// Closes the route of a partition of this database: somebody is about to commit what is not mirrored.
pub fn fail(source: pg_sys::Oid) {
    if let Some(region) = region::get() {
        region.routes().fail(bgworker::database(), source.to_u32());
    }
}

/// The partition whose shadow this is, for those who watch what a routed statement touched.
pub fn source_of(relation: u32) -> u32 {
    let Some(region) = region::get().filter(|r| r.routes().any()) else { return relation };
    let mut routes = region.routes().of_database(bgworker::database());
    routes.find(|seen| seen.shadow == relation).map_or(relation, |seen| seen.source)
}

/// The routes of one move, for its carrier and the keeper.
pub struct MoveRoutes {
    region: &'static Region,
    place: u32,
}

/// What a route is made of.
pub struct Spec {
    /// Partition.
    pub source: pg_sys::Oid,
    /// Its shadow; invalid: what is timed is a whole table, which has none here, and is touched by whoever names it.
    pub shadow: pg_sys::Oid,
    /// The table of the partition, when the copy has other rows; else invalid.
    pub parent: pg_sys::Oid,
    /// The partitioned table of which the copy is a partition; else invalid.
    pub staging: pg_sys::Oid,
    /// (index of the partition, its counterpart).
    pub indexes: Vec<(pg_sys::Oid, pg_sys::Oid)>,
}

impl MoveRoutes {
    /// The routes of a move that has some.
    pub fn of(move_id: i64) -> Option<Self> {
        let region = region::get()?;
        let (place, _) = region.routes().stats_of(stats_key(move_id))?;
        Some(Self { region, place })
    }

    /// Makes routes for a move, all closed; None: there is no room for them. The caller holds a lock on the
    /// partitions that keeps writers out, so that nobody is about to commit what is not mirrored. `horizon`: the
    /// last transaction of the carrier's that wrote a shadow; None: statements are only to be timed, no lock is
    /// needed, and nothing can be routed.
    pub fn make(move_id: i64, specs: &[Spec], horizon: Option<u32>) -> Option<Self> {
        let region = region::get()?;
        let database = bgworker::database();
        // No partition has storage 0. Looked up before the lock is taken.
        let storage = |spec: &Spec| horizon.map_or(0, |_| compat::storage_number(spec.source));
        let storages: Vec<u32> = specs.iter().map(storage).collect();
        super::shmem::with(|_| {
            let place = region.routes().stats_for(stats_key(move_id))?;
            if specs.iter().any(|spec| spec.parent != pg_sys::InvalidOid) {
                region.routes().remove(place, false);
            }
            let made = specs.iter().zip(&storages).all(|(spec, storage)| {
                region.routes().make(&RouteSpec {
                    database,
                    source: spec.source.to_u32(),
                    shadow: spec.shadow.to_u32(),
                    storage: *storage,
                    horizon: horizon.unwrap_or(0),
                    stats: place,
                    parent: spec.parent.to_u32(),
                    staging: spec.staging.to_u32(),
                    indexes: spec.indexes.iter().map(|(a, b)| (a.to_u32(), b.to_u32())).collect(),
                })
            });
            if !made {
                region.routes().remove(place, true);
            }
            made.then_some(Self { region, place })
        })
        .flatten()
    }

    /// Its statistics.
    pub fn stats(&self) -> Option<&'static RouteStats> {
        self.region.routes().stats(self.place)
    }

    /// Reads of partitions that the shadows served.
    pub fn reads(&self) -> u64 {
        let routes = self.region.routes();
        let of_move = routes.of_database(bgworker::database()).filter(|seen| seen.stats == self.place);
        of_move.filter_map(|seen| routes.entry(seen.place)).map(|e| e.routed[0].load(Ordering::Relaxed)).sum()
    }

    /// Whether they are there to time statements, and nothing can be routed.
    pub fn only_time(&self) -> bool {
        let mut routes = self.region.routes().of_database(bgworker::database());
        routes.all(|seen| seen.stats != self.place || seen.storage == 0)
    }

    /// Sets the share of reads, 0 to 1.
    pub fn set_weight(&self, share: f64) {
        super::shmem::with(|_| self.region.routes().set_weight(self.place, share));
    }

    /// Whether one was closed because a change could not be mirrored, or is gone.
    pub fn have_failed(&self, sources: &[pg_sys::Oid]) -> bool {
        let routes = self.region.routes();
        sources.iter().any(|source| {
            routes.find(bgworker::database(), source.to_u32()).is_none_or(|seen| routes.has_failed(&seen))
        })
    }

    /// Removes the routes and what is known of them.
    pub fn remove(self) {
        super::shmem::with(|_| self.region.routes().remove(self.place, true));
    }
}

/// All statements of this database that were timed since its move began.
pub fn statements() -> Counts {
    let Some(routes) = region::get().map(Region::routes) else { return Counts::default() };
    let mut places: Vec<u32> = routes.of_database(bgworker::database()).map(|seen| seen.stats).collect();
    places.dedup();
    // Every move sees the others' statements.
    let Some(stats) = places.first().and_then(|place| routes.stats(*place)) else { return Counts::default() };
    let arms = [Arm::Before, Arm::After, Arm::OthersBefore, Arm::OthersAfter];
    arms.iter().fold(Counts::default(), |sum, arm| sum.plus(&stats.arm(*arm).read()))
}

/// Removes the routes of this database whose moves are not among these.
pub fn keep_only(moves: &[i64]) {
    let Some(routes) = region::get().map(Region::routes) else { return };
    let database = u64::from(bgworker::database());
    for place in 0..ROUTED_MOVES as u32 {
        let key = routes.stats(place).map_or(0, |stats| stats.move_id.load(Ordering::Acquire));
        if key != 0 && key >> 32 == database && !moves.iter().any(|id| stats_key(*id) == key) {
            super::shmem::with(|_| routes.remove(place, true));
        }
    }
}

/// Whether there are routes in any database.
#[inline]
pub fn any() -> bool {
    GLANCE.gates.get().any_route()
}

/// Moves of different databases have the same numbers.
fn stats_key(move_id: i64) -> u64 {
    u64::from(bgworker::database()) << 32 | (move_id as u64 & u64::from(u32::MAX))
}

/// Reads routed away from a partition so far, and the rows they returned.
pub fn routed(source: u32) -> Option<(u64, u64)> {
    let routes = region::get()?.routes();
    let own = routes.of_database(bgworker::database()).filter(|seen| seen.source == source);
    let counted = own
        .filter_map(|seen| routes.entry(seen.place))
        .map(|entry| (entry.routed[0].load(Ordering::Relaxed), entry.routed[1].load(Ordering::Relaxed)));
    counted.reduce(|(reads, rows), (more_reads, more_rows)| (reads + more_reads, rows + more_rows))
}
