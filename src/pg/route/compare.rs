//! Look-ups made again on both copies: the same index conditions under the same snapshot must find the same
//! rows, whichever index of whichever copy is asked. Whole results are not compared: a LIMIT, the order of equal
//! rows or a sum of floats may rightly differ between two physical orders.

use super::super::region::Region;
use super::super::scan::{IndexUse, reads_heap};
use super::super::subtransaction::{self, Ended};
use super::super::{compat, plan::MAX_NODES};
use super::plan::{divided, lock_pairs};
use foreshard_core::shared::Seen;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering;

/// Look-ups of one statement that are made again.
const MAX_SCANS: usize = 2;
/// Rows of a look-up that is made again; one that finds more says nothing.
const MAX_ROWS: u64 = 64;

/// A scan of a routed partition, on either copy.
#[derive(Clone, Copy)]
pub(super) struct Scan {
    /// Place of its route.
    pub route: usize,
    /// The first of the statement on that partition.
    pub first: bool,
    /// The index it used; 0: none, or not one whose look-ups can be made again.
    index: pg_sys::Oid,
    keys: pg_sys::ScanKey,
    count: i32,
}

struct Walk<'a> {
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
    let mut walk = Walk { seen, eligible, found: Vec::new(), nodes: 0 };
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
        if let Some(used) = IndexUse::of(state) {
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
        let mut own = self.eligible.iter().filter(reads);
        // Which of several copies it would have read, or read, is not known.
        let used = used.filter(|_| self.eligible.iter().filter(reads).count() == 1);
        let Some(route) = own.next().or_else(|| self.seen.iter().find(reads)) else { return };
        let first = !self.found.iter().any(|scan| scan.route == route.place);
        // SAFETY: as promised by the caller.
        let again = used.filter(|used| unsafe { can_be_repeated(used) });
        let (index, keys, count) = again.map_or((pg_sys::InvalidOid, std::ptr::null_mut(), 0), |used| {
            // SAFETY: the index is open.
            (unsafe { (*used.index).rd_id }, used.keys(), used.count)
        });
        self.found.push(Scan { route: route.place, first, index, keys, count });
    }
}

/// Whether a look-up can be made again with the keys it had.
///
/// # Safety
/// As for [`IndexUse::lasting_keys`].
unsafe fn can_be_repeated(used: &IndexUse) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        let method = (*(*used.index).rd_rel).relam;
        let row = |key: &pg_sys::ScanKeyData| key.sk_flags as u32 & pg_sys::SK_ROW_HEADER != 0;
        used.plain
            && used.count > 0
            && matches!(method, pg_sys::BTREE_AM_OID | pg_sys::HASH_AM_OID)
            && used.lasting_keys().filter(|key| !row(key)).count() == used.count as usize
    }
}

/// Makes some look-ups of a statement again, on both copies, and notes whether they agree.
///
/// # Safety
/// `query` must not have been ended yet, and `scans` be its scans; `seen` could all have been routed.
pub(super) unsafe fn again(region: &Region, query: *mut pg_sys::QueryDesc, seen: &[Seen], scans: &[Scan]) {
    // SAFETY: no preconditions. Parallel workers would need the locks, too.
    if unsafe { pg_sys::IsInParallelMode() } {
        return;
    }
    // SAFETY: inside the statement's transaction. What was routed is locked already; once more costs little.
    if !unsafe { lock_pairs(region, seen) } {
        return;
    }
    for scan in scans.iter().filter(|scan| scan.index != pg_sys::InvalidOid).take(MAX_SCANS) {
        let Some(route) = seen.iter().find(|s| s.place == scan.route) else { continue };
        let Some(pairs) = both(route, scan.index.to_u32()) else { continue };
        let Some(stats) = region.routes().stats(route.stats) else { continue };
        let mut equal = None;
        let ended = subtransaction::run(|| {
            let find = |(heap, index): (pg_sys::Oid, pg_sys::Oid)| {
                let filter = |slot: *mut pg_sys::TupleTableSlot| {
                    // SAFETY: a row of the heap.
                    unsafe { is_shared(route, slot, heap.to_u32() == route.source) }
                };
                // SAFETY: both copies are locked; the query's snapshot is registered.
                unsafe { look_up(heap, index, scan, (*query).snapshot, &filter) }
            };
            if let [Some(a), Some(b)] = pairs.map(find) {
                equal = Some(a == b);
            }
        });
        match ended {
            Ended::Well => {}
            Ended::Failed(PgSqlErrorCode::ERRCODE_QUERY_CANCELED) => {
                ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
                    "canceling statement due to user request"
                );
            }
            Ended::Failed(_) => equal = Some(false),
        }
        let Some(equal) = equal else { continue };
        stats.compared.fetch_add(1, Ordering::Relaxed);
        if !equal {
            stats.differing_index.store(pairs[0].1.to_u32(), Ordering::Relaxed);
            stats.differed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// (heap, index) of the partition and of its shadow, given an index of either.
fn both(route: &Seen, index: u32) -> Option<[(pg_sys::Oid, pg_sys::Oid); 2]> {
    let (original, counterpart) = match route.counterpart(index) {
        Some(counterpart) => (index, counterpart),
        None => (route.original(index)?, index),
    };
    Some([
        (pg_sys::Oid::from(route.source), pg_sys::Oid::from(original)),
        (pg_sys::Oid::from(route.shadow), pg_sys::Oid::from(counterpart)),
    ])
}

/// Whether a row of the partition is one that the copy must have, or the other way round; None: that cannot be said.
///
/// # Safety
/// The slot must hold a row of the partition, or of the copy; both are locked.
unsafe fn is_shared(route: &Seen, slot: *mut pg_sys::TupleTableSlot, of_source: bool) -> Option<bool> {
    if route.parent == 0 {
        return Some(true);
    }
    // SAFETY: as promised by the caller; copies have the partition's columns by number.
    unsafe {
        let divided = divided(route);
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

/// Number and sum of hashes of the rows that an index finds and `counts` says yes to; None: too many, or it cannot be said.
///
/// # Safety
/// The heap must be locked, `scan`'s keys alive, the snapshot registered.
unsafe fn look_up(
    heap: pg_sys::Oid,
    index: pg_sys::Oid,
    scan: &Scan,
    snapshot: pg_sys::Snapshot,
    counts: &dyn Fn(*mut pg_sys::TupleTableSlot) -> Option<bool>,
) -> Option<(u64, u64)> {
    let share = pg_sys::AccessShareLock as i32;
    // SAFETY: as promised by the caller; everything opened is closed, or released by the subtransaction.
    unsafe {
        let heap = pg_sys::table_open(heap, pg_sys::NoLock as i32);
        let index = pg_sys::index_open(index, share);
        let slot = pg_sys::table_slot_create(heap, std::ptr::null_mut());
        let descriptor = compat::index_beginscan(heap, index, snapshot, scan.count);
        pg_sys::index_rescan(descriptor, scan.keys, scan.count, std::ptr::null_mut(), 0);
        let (mut met, mut rows, mut sum) = (0_u64, 0_u64, 0_u64);
        while met <= MAX_ROWS
            && pg_sys::index_getnext_slot(descriptor, pg_sys::ScanDirection::ForwardScanDirection, slot)
        {
            met += 1;
            match counts(slot) {
                Some(true) => {
                    rows += 1;
                    sum = sum.wrapping_add(row_hash(slot, (*heap).rd_att));
                }
                Some(false) => {}
                None => met = MAX_ROWS + 1,
            }
        }
        pg_sys::index_endscan(descriptor);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::index_close(index, share);
        pg_sys::table_close(heap, pg_sys::NoLock as i32);
        (met <= MAX_ROWS).then_some((rows, sum))
    }
}

/// Hash of all values of a row as they are, toasted or not.
///
/// # Safety
/// The slot must hold a row of this shape.
unsafe fn row_hash(slot: *mut pg_sys::TupleTableSlot, descriptor: pg_sys::TupleDesc) -> u64 {
    let mut hash = 0_u64;
    // SAFETY: as promised by the caller.
    unsafe {
        let natts = (*descriptor).natts;
        if i32::from((*slot).tts_nvalid) < natts {
            pg_sys::slot_getsomeattrs_int(slot, natts);
        }
        for index in 0..natts.max(0) as usize {
            let attribute = &*compat::attribute(descriptor, index);
            if attribute.attisdropped {
                continue;
            }
            let value = if *(*slot).tts_isnull.add(index) {
                1
            } else {
                let value = *(*slot).tts_values.add(index);
                2 + u64::from(compat::datum_image_hash(value, attribute.attbyval, attribute.attlen.into()))
            };
            // Multiplier of Steele & Vigna (2021) for 64-bit congruential steps.
            hash = (hash ^ value).wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29);
        }
    }
    hash
}
