//! Whether every row of a heap is in its indexes: the row numbers that an index has are noted in a bitmap, and every row
//! that the active snapshot sees is looked up there.
//!
//! An index is read as VACUUM reads it (`index_bulk_delete`, as `validate_index` of PostgreSQL does it), by a callback that
//! keeps every entry. Rows seen were there before the snapshot, and so were their entries; nobody removes entries
//! of a row that a snapshot sees. So other sessions may write all the time.

use super::keytext;
use super::lock::{ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE};
use super::report::{PgResult, busy};
use super::{compat, security};
use foreshard_core::digest::together;
use pgrx::pg_sys;
use std::ffi::c_void;
use std::time::Instant;

/// Bitmaps of the indexes that are looked at together, bytes; a longer heap is looked at range by range.
const BITMAP_BYTES: usize = 64 << 20;
/// Most rows that a page has (MaxHeapTuplesPerPage): a header of 23 bytes, aligned, and a line pointer each.
const PAGE_ROWS: usize = (pg_sys::BLCKSZ as usize - 24) / (24 + 4);
/// Words of a block's bits.
const WORDS: usize = PAGE_ROWS.div_ceil(64);
/// The same in bytes.
const BLOCK_BYTES: usize = WORDS * size_of::<u64>();
/// How often it is looked whether somebody waits.
const YIELD_MS: u128 = 300;
const MAIN: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;
/// Access methods that have an entry for every row, by the oids of PostgreSQL: B-tree, hash, GiST, GIN, SP-GiST.
const CHECKED_METHODS: [u32; 5] = [403, HASH_METHOD, 783, 2742, 4000];
/// It leaves NULLs out.
const HASH_METHOD: u32 = 405;

/// A row without an entry.
pub struct Missing {
    /// The index that does not have it.
    pub index: pg_sys::Oid,
    /// Its key as text, column by column.
    pub key: Vec<Option<String>>,
    /// Where it is: block and line.
    pub place: (u32, u16),
}

/// What a check came to.
#[derive(Default)]
pub struct Checked {
    /// Indexes that were read.
    pub indexes: usize,
    /// Rows without an entry, at most as many as asked for.
    pub missing: Vec<Missing>,
}

/// The rows of some blocks that an index has.
struct Bitmap {
    first: u32,
    words: Vec<u64>,
}

impl Bitmap {
    fn at(&self, block: u32, offset: u16) -> Option<(usize, u64)> {
        let at = usize::from(offset);
        let word = block.checked_sub(self.first)? as usize * WORDS + at / 64;
        (at < WORDS * 64).then_some((word, 1 << (at % 64)))
    }

    fn note(&mut self, block: u32, offset: u16) {
        if let Some((word, bit)) = self.at(block, offset)
            && let Some(word) = self.words.get_mut(word)
        {
            *word |= bit;
        }
    }

    fn has(&self, block: u32, offset: u16) -> bool {
        let found = self.at(block, offset).and_then(|(word, bit)| Some(self.words.get(word)? & bit != 0));
        found.unwrap_or(false)
    }
}

/// # Safety
/// An `IndexBulkDeleteCallback` whose state is a [`Bitmap`]. Called by the server without a guard: it cannot raise.
unsafe extern "C-unwind" fn keep(entry: pg_sys::ItemPointer, state: *mut c_void) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        let block = u32::from((*entry).ip_blkid.bi_hi) << 16 | u32::from((*entry).ip_blkid.bi_lo);
        // Lines are counted from 1.
        (*state.cast::<Bitmap>()).note(block, (*entry).ip_posid.wrapping_sub(1));
    }
    false
}

/// An index under check.
struct OpenIndex {
    relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    predicate: *mut pg_sys::ExprState,
    skips_nulls: bool,
    found: Bitmap,
}

/// A heap under check.
struct Check<'a> {
    heap: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    strategy: pg_sys::BufferAccessStrategy,
    state: *mut pg_sys::EState,
    context: *mut pg_sys::ExprContext,
    slot: *mut pg_sys::TupleTableSlot,
    indexes: Vec<OpenIndex>,
    key: &'a [i16],
    limit: usize,
    missing: Vec<Missing>,
}

/// How many indexes of a heap are looked at together: those whose bitmaps all have room for the whole heap, so that each is read
/// once; at least one, which then has all the room.
pub fn at_once(blocks: i64) -> usize {
    together(BITMAP_BYTES, BLOCK_BYTES, blocks.max(0) as u64)
}

/// Looks up every row of `heap` that the active snapshot sees in those of `indexes` that should have all rows; `key`: the
/// attributes by which a row is named. It ends when `limit` rows are missing. Keeps others from vacuuming until the
/// transaction ends; gives way (55006) to whoever waits for a lock. `progress` is told the blocks read.
pub fn missing_entries(
    heap: pg_sys::Oid,
    indexes: &[pg_sys::Oid],
    key: &[i16],
    limit: usize,
    progress: impl FnMut(u32),
) -> PgResult<Checked> {
    // SAFETY: everything is opened and locked here; what is allocated lives in the executor state or in the current
    // context. Expressions and predicates run as the table's owner.
    unsafe {
        let relation = pg_sys::table_open(heap, SHARE_UPDATE_EXCLUSIVE);
        let mut checked = Checked::default();
        if (*relation).rd_tableam == pg_sys::GetHeapamTableAmRoutine() {
            let _guard = security::as_restricted_owner((*(*relation).rd_rel).relowner);
            let mut check = Check::open(relation, indexes, key, limit);
            checked.indexes = check.indexes.len();
            if checked.indexes > 0 {
                check.run(progress)?;
            }
            checked.missing = check.close();
        }
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        Ok(checked)
    }
}

impl<'a> Check<'a> {
    /// # Safety
    /// `heap` must be open, of PostgreSQL's own access method, and the indexes its own; a snapshot is active.
    unsafe fn open(heap: pg_sys::Relation, indexes: &[pg_sys::Oid], key: &'a [i16], limit: usize) -> Self {
        // SAFETY: as promised by the caller.
        unsafe {
            let state = pg_sys::CreateExecutorState();
            let open = |oid: &pg_sys::Oid| {
                let relation = pg_sys::index_open(*oid, ROW_EXCLUSIVE);
                let method = (*(*relation).rd_rel).relam.to_u32();
                if !CHECKED_METHODS.contains(&method) {
                    pg_sys::index_close(relation, pg_sys::NoLock as i32);
                    return None;
                }
                let info = pg_sys::BuildIndexInfo(relation);
                let predicate = if (*info).ii_Predicate.is_null() {
                    std::ptr::null_mut()
                } else {
                    pg_sys::ExecPrepareQual((*info).ii_Predicate, state)
                };
                let found = Bitmap { first: 0, words: Vec::new() };
                Some(OpenIndex { relation, info, predicate, skips_nulls: method == HASH_METHOD, found })
            };
            let slot =
                pg_sys::MakeSingleTupleTableSlot((*heap).rd_att, &raw const pg_sys::TTSOpsBufferHeapTuple);
            let context = pg_sys::MakePerTupleExprContext(state);
            (*context).ecxt_scantuple = slot;
            Self {
                heap,
                snapshot: pg_sys::GetActiveSnapshot(),
                strategy: pg_sys::GetAccessStrategy(pg_sys::BufferAccessStrategyType::BAS_BULKREAD),
                state,
                context,
                slot,
                indexes: indexes.iter().filter_map(open).collect(),
                key,
                limit,
                missing: Vec::new(),
            }
        }
    }

    /// # Safety
    /// As `open` left it.
    unsafe fn run(&mut self, mut progress: impl FnMut(u32)) -> PgResult<()> {
        // SAFETY: the heap is open; blocks that it gets from now on have no row that the snapshot sees.
        let blocks = unsafe { pg_sys::RelationGetNumberOfBlocksInFork(self.heap, MAIN) };
        let room = BITMAP_BYTES / (BLOCK_BYTES * self.indexes.len());
        let at_once = u32::try_from(room.max(1)).unwrap_or(u32::MAX);
        let mut looked = Instant::now();
        let mut first = 0;
        while first < blocks && self.missing.len() < self.limit {
            let end = blocks.min(first.saturating_add(at_once));
            for index in &mut self.indexes {
                index.found.first = first;
                index.found.words.clear();
                index.found.words.resize((end - first) as usize * WORDS, 0);
                // SAFETY: heap and index are open; the heap's lock keeps VACUUM away, of which an index bears one only.
                unsafe { read(self.heap, index, self.strategy) };
            }
            for block in first..end {
                pgrx::check_for_interrupts!();
                // SAFETY: as above.
                unsafe { self.look_up_block(block) };
                progress(1);
                if self.missing.len() >= self.limit {
                    break;
                }
                self.give_way(&mut looked)?;
            }
            first = end;
        }
        Ok(())
    }

    /// 55006 when somebody waits for the heap or an index of it; they are looked for now and then.
    fn give_way(&self, looked: &mut Instant) -> PgResult<()> {
        if looked.elapsed().as_millis() <= YIELD_MS {
            return Ok(());
        }
        *looked = Instant::now();
        // Whoever wants an index locks its table first. (Of weak locks, as those of the indexes, PostgreSQL keeps no queue
        // that could be asked for.)
        // SAFETY: it is open, and locked so.
        if unsafe { pg_sys::LockHasWaitersRelation(self.heap, SHARE_UPDATE_EXCLUSIVE) } {
            return Err(busy("somebody waits for a lock on the copy or one of its indexes"));
        }
        Ok(())
    }

    /// # Safety
    /// As `open` left it; the block exists.
    unsafe fn look_up_block(&mut self, block: u32) {
        let mut roots = [0 as pg_sys::OffsetNumber; PAGE_ROWS];
        let mut seen: [(u16, u16); PAGE_ROWS] = [(0, 0); PAGE_ROWS];
        let mut count = 0;
        // SAFETY: the page is pinned, and locked while its line pointers are read; rows of a pinned page stay where they
        // are. User code runs without the lock.
        unsafe {
            let normal = pg_sys::ReadBufferMode::RBM_NORMAL;
            let buffer = pg_sys::ReadBufferExtended(self.heap, MAIN, block, normal, self.strategy);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
            let page = pg_sys::BufferGetPage(buffer);
            let header = page.cast::<pg_sys::PageHeaderData>();
            let lines = usize::from((*header).pd_lower)
                .saturating_sub(std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp))
                / size_of::<pg_sys::ItemIdData>();
            if lines > 0 {
                pg_sys::heap_get_root_tuples(page, roots.as_mut_ptr());
            }
            let all_visible = u32::from((*header).pd_flags) & pg_sys::PD_ALL_VISIBLE != 0;
            for (at, root) in roots.iter().enumerate().take(lines) {
                let mut tuple = match self.row_at(page, block, at as u16 + 1) {
                    Some(tuple) => tuple,
                    None => continue,
                };
                if all_visible || pg_sys::HeapTupleSatisfiesVisibility(&mut tuple, self.snapshot, buffer) {
                    seen[count] = (at as u16 + 1, *root);
                    count += 1;
                }
            }
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_UNLOCK as i32);
            for number in 0..self.indexes.len() {
                for (offset, root) in &seen[..count] {
                    // A row without a root is corrupt; it is in no index either.
                    if !self.indexes[number].found.has(block, root.wrapping_sub(1))
                        && let Some(mut tuple) = self.row_at(page, block, *offset)
                    {
                        self.miss(number, &mut tuple, buffer);
                    }
                }
            }
            pg_sys::ReleaseBuffer(buffer);
        }
    }

    /// Notes that an index does not have a row, if it should.
    ///
    /// # Safety
    /// The row must be on the page, which is pinned.
    unsafe fn miss(&mut self, number: usize, tuple: &mut pg_sys::HeapTupleData, buffer: pg_sys::Buffer) {
        if self.missing.len() >= self.limit {
            return;
        }
        let index = &self.indexes[number];
        // SAFETY: the slot is of the heap; the executor state outlives what is evaluated.
        unsafe {
            pg_sys::ExecStoreBufferHeapTuple(tuple, self.slot, buffer);
            if self.is_due(index) {
                let descriptor = (*self.heap).rd_att;
                let key = self.key.iter().map(|attnum| {
                    let mut is_null = false;
                    let value = pg_sys::slot_getattr(self.slot, i32::from(*attnum), &mut is_null);
                    let attribute = compat::attribute(descriptor, (*attnum - 1).max(0) as usize);
                    if is_null { None } else { keytext::print((*attribute).atttypid, value).ok().flatten() }
                });
                let key = key.collect();
                let tid = &tuple.t_self;
                let block = u32::from(tid.ip_blkid.bi_hi) << 16 | u32::from(tid.ip_blkid.bi_lo);
                let index = (*index.relation).rd_id;
                self.missing.push(Missing { index, key, place: (block, tid.ip_posid) });
            }
            pg_sys::ExecClearTuple(self.slot);
            pg_sys::MemoryContextReset((*self.context).ecxt_per_tuple_memory);
        }
    }

    /// Whether the row in the slot belongs into an index.
    ///
    /// # Safety
    /// The slot must have a row.
    unsafe fn is_due(&self, index: &OpenIndex) -> bool {
        // SAFETY: as promised by the caller; arrays as long as an index may have columns.
        unsafe {
            if !index.predicate.is_null() && !compat::holds(index.predicate, self.context) {
                return false;
            }
            if !index.skips_nulls {
                return true;
            }
            let mut values = [pg_sys::Datum::from(0usize); pg_sys::INDEX_MAX_KEYS as usize];
            let mut nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
            let before = pg_sys::MemoryContextSwitchTo((*self.context).ecxt_per_tuple_memory);
            pg_sys::FormIndexDatum(
                index.info,
                self.slot,
                self.state,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
            pg_sys::MemoryContextSwitchTo(before);
            !nulls[0]
        }
    }

    /// The row of a line, if there is one.
    ///
    /// # Safety
    /// `page` must be a pinned page of a heap that has this line.
    unsafe fn row_at(&self, page: pg_sys::Page, block: u32, line: u16) -> Option<pg_sys::HeapTupleData> {
        // SAFETY: as promised by the caller; a normal line leads to a row.
        unsafe {
            let pointer = *pg_sys::PageGetItemId(page, line);
            if pointer.lp_flags() != pg_sys::LP_NORMAL {
                return None;
            }
            let mut tuple = pg_sys::HeapTupleData {
                t_len: pointer.lp_len(),
                t_tableOid: (*self.heap).rd_id,
                t_data: page.cast::<u8>().add(pointer.lp_off() as usize).cast(),
                ..Default::default()
            };
            tuple.t_self.ip_blkid.bi_hi = (block >> 16) as u16;
            tuple.t_self.ip_blkid.bi_lo = block as u16;
            tuple.t_self.ip_posid = line;
            Some(tuple)
        }
    }

    /// # Safety
    /// Once.
    unsafe fn close(self) -> Vec<Missing> {
        // SAFETY: opened in `open`; locks stay to the end of the transaction.
        unsafe {
            for index in &self.indexes {
                pg_sys::index_close(index.relation, pg_sys::NoLock as i32);
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::FreeExecutorState(self.state);
            pg_sys::FreeAccessStrategy(self.strategy);
        }
        self.missing
    }
}

/// Notes all entries of an index; nothing is deleted.
///
/// # Safety
/// Heap and index must be open, the heap locked against VACUUM.
unsafe fn read(heap: pg_sys::Relation, index: &mut OpenIndex, strategy: pg_sys::BufferAccessStrategy) {
    // SAFETY: as promised by the caller; the bitmap outlives the call.
    unsafe {
        let mut info = compat::vacuum_info(heap, index.relation, strategy);
        let bitmap: *mut Bitmap = &raw mut index.found;
        pg_sys::index_bulk_delete(&mut info, std::ptr::null_mut(), Some(keep), bitmap.cast());
    }
}
