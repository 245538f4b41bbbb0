//! Scans made again on both copies, under the statement's snapshot. Whole results are not compared: a LIMIT, the order of
//! equal rows or a sum of floats may rightly differ between two physical orders.
//!
//! A look-up by an index is made again by the same index of both copies, and the sets of rows must be equal. Of a scan that
//! reads more rows than a look-up that is made again may, or has no index that could be asked so, some rows of either copy
//! are looked for in the other ([`super::sample`]): each must be there once, and the same.
//!
//! All of it is bounded in rows, bytes and time, waits for nobody, is not cancelled and never raises: what cannot be
//! compared is counted. Only an error that a healthy copy cannot give is a difference.

use super::super::region::Region;
use super::super::scan::{IndexUse, reads_heap};
use super::super::subtransaction::{self, Ended};
use super::super::{compat, plan::MAX_NODES};
use super::plan::{divided, lock_pairs};
use super::sample;
use foreshard_core::shared::Seen;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Scans of one statement that are made again.
const MAX_SCANS: usize = 4;
/// Rows of a look-up that is made again.
const MAX_ROWS: usize = 64;
/// Bytes of values of one row, and of all, that are read.
const MAX_ROW_BYTES: u64 = 1 << 20;
const MAX_BYTES: u64 = 16 << 20;
/// Longest time that one statement is held up by it.
const MAX_TIME: Duration = Duration::from_millis(10);

/// A scan of a routed partition, on either copy.
#[derive(Clone, Copy)]
pub(super) struct Scan {
    /// Place of its route.
    pub route: usize,
    /// The first of the statement on that partition.
    pub first: bool,
    again: Again,
}

/// How a scan could be made again.
#[derive(Clone, Copy)]
enum Again {
    /// Which of several copies it reads, or would have read, is not known.
    No,
    /// Any of its rows will do.
    Rows,
    /// By an index and the keys that it had.
    Index(Keys),
}

/// What an index was asked.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    index: pg_sys::Oid,
    /// The keys and how many they are.
    pub keys: (pg_sys::ScanKey, i32),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Equal,
    Different,
    /// That cannot be said.
    Unknown,
}

struct Walk<'a> {
    query: *const pg_sys::QueryDesc,
    seen: &'a [Seen],
    eligible: &'a [Seen],
    found: Vec<Scan>,
    nodes: usize,
}

/// The scans of routed partitions that a statement has begun. `eligible`: what it could have been sent by.
///
/// # Safety
/// `query` must have run and not been ended yet.
pub(super) unsafe fn scans(query: *mut pg_sys::QueryDesc, seen: &[Seen], eligible: &[Seen]) -> Vec<Scan> {
    let mut walk = Walk { query, seen, eligible, found: Vec::new(), nodes: 0 };
    // SAFETY: planstate is the root of a tree of initialised nodes.
    unsafe {
        if !seen.is_empty() && !(*query).planstate.is_null() {
            visit((*query).planstate, (&raw mut walk).cast());
        }
    }
    walk.found
}

// SAFETY: `context` is the Walk of `scans`; `state` an initialised plan state.
unsafe extern "C-unwind" fn visit(state: *mut pg_sys::PlanState, context: *mut std::ffi::c_void) -> bool {
    // SAFETY: as above.
    unsafe {
        let walk = &mut *context.cast::<Walk>();
        walk.nodes += 1;
        if state.is_null() || walk.nodes > MAX_NODES {
            return walk.nodes > MAX_NODES;
        }
        if let Some(used) = IndexUse::of(state, walk.query) {
            walk.add(used.heap(), Some(&used));
        } else if reads_heap((*state).type_) {
            walk.add(relation_of(state.cast()), None);
        }
        compat::walk_plan_state(state, visit, context)
    }
}

/// # Safety
/// `scan` must be an initialised scan of a heap.
unsafe fn relation_of(scan: *const pg_sys::ScanState) -> u32 {
    // SAFETY: as promised by the caller.
    unsafe { (*scan).ss_currentRelation.as_ref() }.map_or(0, |relation| relation.rd_id.to_u32())
}

impl Walk<'_> {
    /// # Safety
    /// As for [`IndexUse::lasting_keys`].
    unsafe fn add(&mut self, relation: u32, used: Option<&IndexUse>) {
        let reads = |s: &&Seen| s.source == relation || s.shadow == relation;
        let own: Vec<&Seen> = self.eligible.iter().filter(reads).collect();
        let Some(route) = own.first().copied().or_else(|| self.seen.iter().find(reads)) else { return };
        let first = !self.found.iter().any(|scan| scan.route == route.place);
        let again = match used {
            _ if own.len() != 1 => Again::No,
            // SAFETY: as promised by the caller; the index is open.
            Some(used) if unsafe { can_be_repeated(used) } => unsafe {
                Again::Index(Keys { index: (*used.index).rd_id, keys: (used.keys(), used.count) })
            },
            _ => Again::Rows,
        };
        self.found.push(Scan { route: route.place, first, again });
    }
}

/// Whether a look-up can be made again with the keys it had.
///
/// # Safety
/// As for [`IndexUse::lasting_keys`].
unsafe fn can_be_repeated(used: &IndexUse) -> bool {
    use pg_sys::{BTREE_AM_OID, GIST_AM_OID, HASH_AM_OID, SPGIST_AM_OID};
    // SAFETY: as promised by the caller.
    unsafe {
        let method = (*(*used.index).rd_rel).relam;
        let row = |key: &pg_sys::ScanKeyData| key.sk_flags as u32 & pg_sys::SK_ROW_HEADER != 0;
        used.plain
            && used.count > 0
            && matches!(method, BTREE_AM_OID | HASH_AM_OID | GIST_AM_OID | SPGIST_AM_OID)
            && used.lasting_keys().filter(|key| !row(key)).count() == used.count as usize
    }
}

/// Makes some scans of a statement again, on both copies, and notes whether they agree.
///
/// # Safety
/// `query` must not have been ended yet, and `scans` be its scans; `seen` could all have been routed.
pub(super) unsafe fn again(region: &Region, query: *mut pg_sys::QueryDesc, seen: &[Seen], scans: &[Scan]) {
    // SAFETY: the statement's own snapshot.
    let snapshot = unsafe { (*query).snapshot };
    let until = Instant::now() + MAX_TIME;
    let could_be_routed = |scan: &Scan| seen.iter().find(|s| s.place == scan.route).map(|s| (s, scan.again));
    for (route, again) in scans.iter().filter_map(could_be_routed).take(MAX_SCANS) {
        let Some(stats) = region.routes().stats(route.stats) else { continue };
        let mut asked = 0;
        // SAFETY: as promised by the caller.
        let verdict = unsafe { look(region, snapshot, route, again, until, &mut asked) };
        match verdict {
            Verdict::Unknown => stats.incomparable.fetch_add(1, Ordering::Relaxed),
            Verdict::Equal => stats.compared.fetch_add(1, Ordering::Relaxed),
            Verdict::Different => {
                stats.compared.fetch_add(1, Ordering::Relaxed);
                stats.differing_index.store(asked, Ordering::Relaxed);
                stats.differed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// One scan; `asked` becomes the index by which the copies were.
///
/// # Safety
/// As for [`again`].
unsafe fn look(
    region: &Region,
    snapshot: pg_sys::Snapshot,
    route: &Seen,
    again: Again,
    until: Instant,
    asked: &mut u32,
) -> Verdict {
    // SAFETY: no preconditions. In parallel mode there are no subtransactions.
    if matches!(again, Again::No) || unsafe { pg_sys::IsInParallelMode() } {
        return Verdict::Unknown;
    }
    let mut verdict = Verdict::Unknown;
    // SAFETY: as promised by the caller; what is allocated goes with its context, or with the subtransaction.
    let ended = subtransaction::run(|| unsafe {
        // What was routed is locked already; once more costs little.
        if !lock_pairs(region, std::slice::from_ref(route)) {
            return;
        }
        let context = pg_sys::AllocSetContextCreateInternal(
            pg_sys::CurrentMemoryContext,
            c"foreshard comparison".as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
            pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
            pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
        );
        let outer = pg_sys::MemoryContextSwitchTo(context);
        let mut look = Look { route, snapshot, until, bytes: 0, row_context: context };
        verdict = look.compare(again, asked);
        pg_sys::MemoryContextSwitchTo(outer);
        pg_sys::MemoryContextDelete(context);
    });
    if ended == Ended::Failed(PgSqlErrorCode::ERRCODE_QUERY_CANCELED) {
        // Who asked for that gets it as soon as something else looks.
        // SAFETY: flags of this process.
        unsafe {
            pg_sys::QueryCancelPending = 1;
            pg_sys::InterruptPending = 1;
        }
    }
    match ended {
        Ended::Well => verdict,
        Ended::Failed(code) if is_damage(code) => Verdict::Different,
        Ended::Failed(_) => Verdict::Unknown,
    }
}

/// Whether an error says that something is wrong with what is stored (classes XX and 58). Others come and go: a lock, memory, a
/// conflict, a cancel.
fn is_damage(code: PgSqlErrorCode) -> bool {
    let class = super::super::reading::sqlstate(code);
    class.starts_with("XX") || class.starts_with("58")
}

/// A comparison under way.
pub(super) struct Look<'a> {
    /// What is compared.
    pub route: &'a Seen,
    /// What both copies are read by.
    pub snapshot: pg_sys::Snapshot,
    until: Instant,
    bytes: u64,
    row_context: pg_sys::MemoryContext,
}

impl Look<'_> {
    /// # Safety
    /// Both copies must be locked, the keys alive, the snapshot registered.
    unsafe fn compare(&mut self, again: Again, asked: &mut u32) -> Verdict {
        // SAFETY: as promised by the caller.
        unsafe {
            let Again::Index(by) = again else { return sample::compare(self, None, asked) };
            let Some(pairs) = both(self.route, by.index.to_u32()) else { return Verdict::Unknown };
            if !pairs.iter().all(|(_, index)| may_open(*index)) {
                return Verdict::Unknown;
            }
            *asked = pairs[0].1.to_u32();
            match pairs.map(|(heap, index)| self.look_up(heap, index, &by)) {
                [Found::All(a), Found::All(b)] if a == b => Verdict::Equal,
                [Found::All(_), Found::All(_)] => Verdict::Different,
                [Found::Unknown, _] | [_, Found::Unknown] => Verdict::Unknown,
                _ => sample::compare(self, Some((pairs, by)), asked),
            }
        }
    }

    /// Whether a row of the partition is one that the copy must have, or the other way round; None: that cannot be said.
    ///
    /// # Safety
    /// The slot must hold a row of the partition, or of the copy; both are locked.
    pub unsafe fn is_shared(&self, slot: *mut pg_sys::TupleTableSlot, of_source: bool) -> Option<bool> {
        if self.route.parent == 0 {
            return Some(true);
        }
        // SAFETY: as promised by the caller; copies have the partition's columns by number.
        unsafe {
            let divided = divided(self.route);
            let column = divided.column()?;
            if (*slot).tts_nvalid < column {
                pg_sys::slot_getsomeattrs_int(slot, column.into());
            }
            let at = usize::try_from(column - 1).ok()?;
            if *(*slot).tts_isnull.add(at) {
                return None;
            }
            divided.shares(*(*slot).tts_values.add(at), of_source)
        }
    }

    /// The rows that an index finds and both copies must have.
    ///
    /// # Safety
    /// As for [`Look::compare`]; the index is locked.
    unsafe fn look_up(&mut self, heap: pg_sys::Oid, index: pg_sys::Oid, by: &Keys) -> Found {
        let of_source = heap.to_u32() == self.route.source;
        let (mut met, mut rows, mut sum) = (0, 0_u64, 0_u64);
        let mut found = Found::Unknown;
        // SAFETY: as promised by the caller; everything opened is closed, or released by the subtransaction.
        unsafe {
            let scan = IndexScan::begin(heap, index, self.snapshot, by.keys.1);
            scan.look_up(by.keys.0, by.keys.1);
            while Instant::now() <= self.until {
                if !scan.next() {
                    found = Found::All((rows, sum));
                    break;
                }
                met += 1;
                if met > MAX_ROWS {
                    found = Found::More;
                    break;
                }
                // What the index is not sure of, each copy's may see otherwise.
                let counts =
                    if (*scan.descriptor).xs_recheck { None } else { self.is_shared(scan.slot, of_source) };
                let hash = match counts {
                    Some(true) => self.hash(scan.slot, (*scan.heap).rd_att),
                    Some(false) => continue,
                    None => None,
                };
                let Some(hash) = hash else { break };
                rows += 1;
                sum = sum.wrapping_add(hash);
            }
            scan.end();
        }
        found
    }

    /// Hash of all values of a row as they are, toasted or not; None: they are too long, or time is up.
    ///
    /// # Safety
    /// The slot must hold a row of this shape.
    pub unsafe fn hash(
        &mut self,
        slot: *mut pg_sys::TupleTableSlot,
        descriptor: pg_sys::TupleDesc,
    ) -> Option<u64> {
        if Instant::now() > self.until {
            return None;
        }
        // SAFETY: as promised by the caller; what is fetched of a row goes before the next.
        unsafe {
            let natts = (*descriptor).natts;
            if i32::from((*slot).tts_nvalid) < natts {
                pg_sys::slot_getsomeattrs_int(slot, natts);
            }
            let row = || (0..natts.max(0) as usize).map(|at| (&*compat::attribute(descriptor, at), at));
            let value = |at: usize| (!*(*slot).tts_isnull.add(at)).then(|| *(*slot).tts_values.add(at));
            let stored = || row().filter(|(attribute, _)| !attribute.attisdropped);
            let length = |(attribute, at): (&pg_sys::FormData_pg_attribute, usize)| match value(at) {
                Some(value) if attribute.attlen == -1 => pg_sys::toast_raw_datum_size(value) as u64,
                _ => 0,
            };
            let bytes: u64 = stored().map(length).sum();
            self.bytes = self.bytes.saturating_add(bytes);
            if bytes > MAX_ROW_BYTES || self.bytes > MAX_BYTES {
                return None;
            }
            let row_context = pg_sys::AllocSetContextCreateInternal(
                self.row_context,
                c"foreshard row".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let outer = pg_sys::MemoryContextSwitchTo(row_context);
            let mut hash = 0_u64;
            for (attribute, at) in stored() {
                let value = value(at).map_or(1, |value| {
                    let image = compat::datum_image_hash(value, attribute.attbyval, attribute.attlen.into());
                    2 + u64::from(image)
                });
                // Multiplier of Steele & Vigna (2021) for 64-bit congruential steps.
                hash = (hash ^ value).wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29);
            }
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::MemoryContextDelete(row_context);
            Some(hash)
        }
    }
}

/// What a look-up found.
enum Found {
    /// Number and sum of hashes of its rows.
    All((u64, u64)),
    /// Too many.
    More,
    Unknown,
}

/// (heap, index) of the partition and of its shadow.
pub(super) type Pairs = [(pg_sys::Oid, pg_sys::Oid); 2];

/// Both copies, given an index of either.
fn both(route: &Seen, index: u32) -> Option<Pairs> {
    let (original, counterpart) = match route.counterpart(index) {
        Some(counterpart) => (index, counterpart),
        None => (route.original(index)?, index),
    };
    Some([
        (pg_sys::Oid::from(route.source), pg_sys::Oid::from(original)),
        (pg_sys::Oid::from(route.shadow), pg_sys::Oid::from(counterpart)),
    ])
}

/// Locks an index, which another session may be making anew, unless that takes waiting.
///
/// # Safety
/// Inside a transaction.
pub(super) unsafe fn may_open(index: pg_sys::Oid) -> bool {
    // SAFETY: any oid may be locked; it stays so to the end of the transaction. One that is gone has no kind.
    unsafe {
        pg_sys::ConditionalLockRelationOid(index, pg_sys::AccessShareLock as i32)
            && pg_sys::get_rel_relkind(index) as u8 == pg_sys::RELKIND_INDEX
    }
}

/// Look-ups by an index.
pub(super) struct IndexScan {
    /// The heap.
    pub heap: pg_sys::Relation,
    index: pg_sys::Relation,
    descriptor: pg_sys::IndexScanDesc,
    /// The row that was found.
    pub slot: *mut pg_sys::TupleTableSlot,
}

impl IndexScan {
    /// # Safety
    /// Heap and index must be locked, the snapshot registered.
    pub unsafe fn begin(
        heap: pg_sys::Oid,
        index: pg_sys::Oid,
        snapshot: pg_sys::Snapshot,
        keys: i32,
    ) -> IndexScan {
        let none = pg_sys::NoLock as i32;
        // SAFETY: as promised by the caller.
        unsafe {
            let heap = pg_sys::table_open(heap, none);
            let index = pg_sys::index_open(index, none);
            let slot = pg_sys::table_slot_create(heap, std::ptr::null_mut());
            let descriptor = compat::index_beginscan(heap, index, snapshot, keys);
            IndexScan { heap, index, descriptor, slot }
        }
    }

    /// # Safety
    /// `keys` must be as many of this index, and live until the next look-up.
    pub unsafe fn look_up(&self, keys: pg_sys::ScanKey, count: i32) {
        // SAFETY: as promised by the caller.
        unsafe { pg_sys::index_rescan(self.descriptor, keys, count, std::ptr::null_mut(), 0) }
    }

    /// Whether there is another row.
    ///
    /// # Safety
    /// After a look-up.
    pub unsafe fn next(&self) -> bool {
        let forward = pg_sys::ScanDirection::ForwardScanDirection;
        // SAFETY: as promised by the caller.
        unsafe { pg_sys::index_getnext_slot(self.descriptor, forward, self.slot) }
    }

    /// # Safety
    /// Once.
    pub unsafe fn end(self) {
        // SAFETY: opened in `begin`.
        unsafe {
            pg_sys::index_endscan(self.descriptor);
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
            pg_sys::table_close(self.heap, pg_sys::NoLock as i32);
        }
    }
}
