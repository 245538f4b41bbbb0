//! Some rows of either copy, looked for in the other: those that an index finds first, or some of one page.

use super::super::scan::equality_key;
use super::compare::{IndexScan, Keys, Look, Pairs, Verdict, may_open};
use pgrx::pg_sys;

/// Rows of a copy that are looked for. Each look-up adds to the counters by which the slot is judged: with one read in sixteen
/// compared, one scan per read at most.
const MAX_ROWS: usize = 16;
const MAIN: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;
/// Lines of a page that are looked at.
const MAX_LINE: u16 = 512;

/// Compares rows of both copies: those that an index finds first, or those of a page drawn at random. `asked` becomes the
/// index by which they are looked for.
///
/// # Safety
/// Both copies, and the indexes that are given, must be locked, the keys alive, the snapshot registered.
pub(super) unsafe fn compare(look: &mut Look, by: Option<(Pairs, Keys)>, asked: &mut u32) -> Verdict {
    // SAFETY: as promised by the caller.
    unsafe {
        let Some((own, theirs)) = identity(look) else { return Verdict::Unknown };
        *asked = own.to_u32();
        let (source, shadow) = (pg_sys::Oid::from(look.route.source), pg_sys::Oid::from(look.route.shadow));
        let mut met = 0;
        for (at, from, to, index) in [(0, source, shadow, theirs), (1, shadow, source, own)] {
            let other = Finder::open(to, index, look.snapshot);
            let verdict = match &by {
                Some((pairs, keys)) => first_rows(look, pairs[at], keys, &other, &mut met),
                None => rows_of_page(look, from, &other, &mut met),
            };
            other.scan.end();
            if verdict != Verdict::Equal {
                return verdict;
            }
        }
        if met > 0 { Verdict::Equal } else { Verdict::Unknown }
    }
}

/// A unique index of the partition by which every row can be found, and its counterpart.
///
/// # Safety
/// As for [`compare`].
unsafe fn identity(look: &Look) -> Option<(pg_sys::Oid, pg_sys::Oid)> {
    look.route.pairs().map(|(own, theirs)| (pg_sys::Oid::from(own), pg_sys::Oid::from(theirs))).find(
        |(own, theirs)| {
            // SAFETY: opened once locked, and closed again; the lists of a relation are valid while it is open.
            unsafe {
                if !may_open(*own) || !may_open(*theirs) {
                    return false;
                }
                let index = pg_sys::index_open(*own, pg_sys::NoLock as i32);
                let form = &*(*index).rd_index;
                let columns = form.indkey.values.as_slice(form.indnkeyatts.max(0) as usize);
                let fits = form.indisunique
                    && form.indimmediate
                    && form.indisvalid
                    && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                    && columns.iter().all(|column| *column > 0)
                    && pg_sys::RelationGetIndexPredicate(index).is_null();
                pg_sys::index_close(index, pg_sys::NoLock as i32);
                fits
            }
        },
    )
}

/// # Safety
/// As for [`compare`].
unsafe fn first_rows(
    look: &mut Look,
    (heap, index): (pg_sys::Oid, pg_sys::Oid),
    by: &Keys,
    other: &Finder,
    met: &mut usize,
) -> Verdict {
    // SAFETY: as promised by the caller; everything opened is closed, or released by the subtransaction.
    unsafe {
        let scan = IndexScan::begin(heap, index, look.snapshot, by.keys.1);
        scan.look_up(by.keys.0, by.keys.1);
        let mut verdict = Verdict::Equal;
        for _ in 0..MAX_ROWS {
            if verdict != Verdict::Equal || !scan.next() {
                break;
            }
            verdict = other.has(look, scan.slot, scan.heap, met);
        }
        scan.end();
        verdict
    }
}

/// # Safety
/// As for [`compare`].
unsafe fn rows_of_page(look: &mut Look, heap: pg_sys::Oid, other: &Finder, met: &mut usize) -> Verdict {
    let forward = pg_sys::ScanDirection::ForwardScanDirection;
    // SAFETY: as above; the generator is this process's own.
    unsafe {
        let heap = pg_sys::table_open(heap, pg_sys::NoLock as i32);
        let blocks = pg_sys::RelationGetNumberOfBlocksInFork(heap, MAIN);
        let state = &raw mut pg_sys::pg_global_prng_state;
        let block = ((u64::from(pg_sys::pg_prng_uint32(state)) * u64::from(blocks)) >> 32) as u32;
        let at = |line| {
            let mut place = pg_sys::ItemPointerData::default();
            (place.ip_blkid.bi_hi, place.ip_blkid.bi_lo) = ((block >> 16) as u16, block as u16);
            place.ip_posid = line;
            place
        };
        let (mut first, mut last) = (at(1), at(MAX_LINE));
        let (rows, pages) = ((*(*heap).rd_rel).reltuples, (*(*heap).rd_rel).relpages);
        // As many of each page as are wanted; of a heap that was never counted one in four.
        let share = if rows > 0.0 { MAX_ROWS as f64 * f64::from(pages) / f64::from(rows) } else { 0.25 };
        let slot = pg_sys::table_slot_create(heap, std::ptr::null_mut());
        let scan = pg_sys::table_beginscan_tidrange(heap, look.snapshot, &mut first, &mut last);
        let mut verdict = Verdict::Equal;
        let end = *met + 2 * MAX_ROWS;
        while verdict == Verdict::Equal
            && *met < end
            && pg_sys::table_scan_getnextslot_tidrange(scan, forward, slot)
        {
            if f64::from(pg_sys::pg_prng_uint32(state)) < share * f64::from(u32::MAX) {
                verdict = other.has(look, slot, heap, met);
            }
        }
        pg_sys::table_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::table_close(heap, pg_sys::NoLock as i32);
        verdict
    }
}

/// Finds rows of a copy by their key.
struct Finder {
    scan: IndexScan,
    keys: Vec<pg_sys::ScanKeyData>,
    /// The number of every column of the index in the heap.
    columns: Vec<i16>,
}

impl Finder {
    /// # Safety
    /// Heap and index, a B-tree, must be locked, the snapshot registered.
    unsafe fn open(heap: pg_sys::Oid, index: pg_sys::Oid, snapshot: pg_sys::Snapshot) -> Finder {
        // SAFETY: as promised by the caller.
        unsafe {
            let relation = pg_sys::index_open(index, pg_sys::NoLock as i32);
            let form = &*(*relation).rd_index;
            let columns = form.indkey.values.as_slice(form.indnkeyatts.max(0) as usize).to_vec();
            let keys: Vec<_> = (0..columns.len()).map(|column| equality_key(relation, column)).collect();
            pg_sys::index_close(relation, pg_sys::NoLock as i32);
            Finder { scan: IndexScan::begin(heap, index, snapshot, keys.len() as i32), keys, columns }
        }
    }

    /// Whether a row of the other copy, which this one must have, is here once and the same.
    ///
    /// # Safety
    /// The slot must hold a row of `heap`.
    unsafe fn has(
        &self,
        look: &mut Look,
        slot: *mut pg_sys::TupleTableSlot,
        heap: pg_sys::Relation,
        met: &mut usize,
    ) -> Verdict {
        // SAFETY: as promised by the caller; the arguments live as long as the row in the slot.
        unsafe {
            let of_source = (*heap).rd_id.to_u32() == look.route.source;
            match look.is_shared(slot, of_source) {
                Some(true) => {}
                Some(false) => return Verdict::Equal,
                None => return Verdict::Unknown,
            }
            let Some(wanted) = look.hash(slot, (*heap).rd_att) else { return Verdict::Unknown };
            let mut keys = self.keys.clone();
            for (key, column) in keys.iter_mut().zip(&self.columns) {
                let at = (*column - 1).max(0) as usize;
                if *(*slot).tts_isnull.add(at) {
                    // Many rows may have no key.
                    return Verdict::Equal;
                }
                key.sk_argument = *(*slot).tts_values.add(at);
            }
            *met += 1;
            self.scan.look_up(keys.as_mut_ptr(), keys.len() as i32);
            if !self.scan.next() {
                return Verdict::Different;
            }
            let Some(found) = look.hash(self.scan.slot, (*self.scan.heap).rd_att) else {
                return Verdict::Unknown;
            };
            if found == wanted && !self.scan.next() { Verdict::Equal } else { Verdict::Different }
        }
    }
}
