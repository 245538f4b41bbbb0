//! Filling a heap by the page, past shared memory, as CLUSTER does it: pages are made in private memory, logged as a
//! whole and written once, so that what others work with stays in memory and no page is written as zeros first.
//!
//! Pages are written before they are logged: what is in the log has its place on the disk, so neither recovery nor a
//! standby can fail for want of room, and the request to sync the file is older than the record, so that a checkpoint that
//! begins behind the record syncs them. The other order is that of WAL, but it protects nothing here: what was written and
//! not logged lies behind what the move has noted, and is cut off. Until their record comes, pages say that they
//! changed when the log was last flushed, which is true enough and never in the future.

use super::compat::{self, needs_wal};
use super::report::{PgResult, PgSqlErrorCode, cstring, error, internal};
use super::visibility;
use super::{lock, receive as receiver};
use pgrx::pg_sys;

/// Pages that are logged and written at once: as many as a WAL record takes.
const BATCH_PAGES: usize = pg_sys::XLR_MAX_BLOCK_ID as usize;
/// A page, bytes.
const PAGE_BYTES: usize = pg_sys::BLCKSZ as usize;
/// Rows beyond this have values moved out of line, bytes: TOAST_TUPLE_THRESHOLD, a quarter of a page.
const TOAST_BYTES: u32 = 2032;
/// What forming rows may leave behind before it is cleared, bytes.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Where a page's line pointers begin, bytes.
const HEADER_BYTES: usize = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);
const MAIN: pg_sys::ForkNumber::Type = pg_sys::ForkNumber::MAIN_FORKNUM;

/// A heap that is being filled behind its last block. It must have no index that writers maintain, no constraint and no
/// trigger: nothing looks at the rows. Nobody else may lengthen it.
pub struct Load {
    relation: pg_sys::Relation,
    context: pg_sys::MemoryContext,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    scratch_bytes: usize,
    /// [`BATCH_PAGES`] pages, aligned as direct I/O wants it.
    pages: *mut u8,
    /// Pages begun, the last of which is being filled.
    begun: usize,
    /// What stays free of each page, bytes.
    spare_bytes: usize,
    first_block: u32,
    next_block: u32,
    frozen: bool,
    xid: pg_sys::TransactionId,
    command: pg_sys::CommandId,
    rows: u64,
}

impl Load {
    /// Opens a heap. `frozen`: rows are stored as old ones, which every snapshot sees, and their pages are marked so.
    pub fn open(table: pg_sys::Oid, frozen: bool) -> Self {
        // SAFETY: raises for what cannot be opened; everything lives in the current context, which the caller keeps.
        unsafe {
            let relation = pg_sys::relation_open(table, lock::ROW_EXCLUSIVE);
            let columns = (*(*relation).rd_att).natts.max(0) as usize;
            let room: *mut u8 = pg_sys::palloc((BATCH_PAGES + 1) * PAGE_BYTES).cast();
            let options: *const pg_sys::StdRdOptions = (*relation).rd_options.cast();
            let fill_percent =
                options.as_ref().map_or(100, |options| options.fillfactor.clamp(10, 100) as usize);
            let block = pg_sys::RelationGetNumberOfBlocksInFork(relation, MAIN);
            Self {
                relation,
                context: pg_sys::AllocSetContextCreateInternal(
                    pg_sys::CurrentMemoryContext,
                    c"foreshard bulk load".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                ),
                values: vec![pg_sys::Datum::from(0usize); columns],
                nulls: vec![true; columns],
                scratch_bytes: 0,
                pages: room.add(room.align_offset(PAGE_BYTES)),
                begun: 0,
                spare_bytes: PAGE_BYTES * (100 - fill_percent) / 100,
                first_block: block,
                next_block: block,
                frozen,
                xid: pg_sys::GetCurrentTransactionId(),
                command: pg_sys::GetCurrentCommandId(true),
                rows: 0,
            }
        }
    }

    /// Where values may live until their row is added.
    pub fn context(&self) -> pg_sys::MemoryContext {
        self.context
    }

    /// Adds a row: column (from 0), value and whether it is NULL. Columns that are never given are NULL; those
    /// beyond the table's are left out.
    ///
    /// # Safety
    /// Values are of their columns' types.
    pub unsafe fn push(&mut self, row: impl Iterator<Item = (usize, pg_sys::Datum, bool)>) {
        for (at, value, is_null) in row {
            if let (Some(to), Some(null)) = (self.values.get_mut(at), self.nulls.get_mut(at)) {
                (*to, *null) = (value, is_null);
            }
        }
        // SAFETY: a value for each column.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            let mut tuple = pg_sys::heap_form_tuple(
                (*self.relation).rd_att,
                self.values.as_mut_ptr(),
                self.nulls.as_mut_ptr(),
            );
            let has_external = u32::from((*(*tuple).t_data).t_infomask) & pg_sys::HEAP_HASEXTERNAL != 0;
            if has_external || (*tuple).t_len > TOAST_BYTES {
                // Never frozen: what a failed chunk leaves in the toast table is for VACUUM to take away.
                let options = pg_sys::HEAP_INSERT_SKIP_FSM;
                tuple = compat::toast(self.relation, tuple, options as i32);
            }
            self.add(tuple);
            pg_sys::MemoryContextSwitchTo(before);
            self.scratch_bytes += (*tuple).t_len as usize;
            if self.scratch_bytes >= SCRATCH_BYTES {
                pgrx::check_for_interrupts!();
                pg_sys::MemoryContextReset(self.context);
                self.scratch_bytes = 0;
            }
        }
        self.rows += 1;
    }

    /// Puts a row onto the page that is being filled, or onto a new one.
    ///
    /// # Safety
    /// `tuple` must be a row of the table.
    unsafe fn add(&mut self, tuple: pg_sys::HeapTuple) {
        // SAFETY: as promised by the caller.
        let bytes = unsafe { (*tuple).t_len as usize };
        let pointer_bytes = std::mem::size_of::<pg_sys::ItemIdData>();
        let aligned = bytes.next_multiple_of(pg_sys::MAXIMUM_ALIGNOF as usize);
        // SAFETY: pages are ours and as long as their headers say; a row fits into an empty page, else forming it raised.
        unsafe {
            let mut page = self.page();
            let full = page.is_none_or(|page| {
                let free = usize::from((*page).pd_upper - (*page).pd_lower);
                let is_empty = usize::from((*page).pd_lower) == HEADER_BYTES;
                free < aligned + pointer_bytes + if is_empty { 0 } else { self.spare_bytes }
            });
            if full {
                page = Some(self.begin_page());
            }
            let Some(page) = page else { return };
            let free = usize::from((*page).pd_upper - (*page).pd_lower);
            if free < aligned + pointer_bytes {
                pgrx::ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                    format!("row is too big: size {bytes}")
                );
            }
            let upper = usize::from((*page).pd_upper) - aligned;
            let offset = (usize::from((*page).pd_lower) - HEADER_BYTES) / pointer_bytes + 1;
            let block = self.next_block + self.begun as u32 - 1;
            let header = page.cast::<u8>().add(upper).cast::<pg_sys::HeapTupleHeaderData>();
            std::ptr::copy_nonoverlapping((*tuple).t_data.cast::<u8>(), header.cast(), bytes);
            self.mark(header, block, offset as u16);
            let mut pointer = pg_sys::ItemIdData::default();
            pointer.set_lp_off(upper as u32);
            pointer.set_lp_flags(pg_sys::LP_NORMAL);
            pointer.set_lp_len(bytes as u32);
            page.cast::<u8>().add(usize::from((*page).pd_lower)).cast::<pg_sys::ItemIdData>().write(pointer);
            (*page).pd_lower += pointer_bytes as u16;
            (*page).pd_upper = upper as u16;
        }
    }

    /// Whose a row is, as `heap_prepare_insert` marks it.
    ///
    /// # Safety
    /// `header` must be a row on a page of ours.
    unsafe fn mark(&self, header: *mut pg_sys::HeapTupleHeaderData, block: u32, offset: u16) {
        // SAFETY: as promised by the caller.
        unsafe {
            let row = &mut *header;
            row.t_infomask &= !(pg_sys::HEAP_XACT_MASK as u16);
            row.t_infomask2 &= !(pg_sys::HEAP2_XACT_MASK as u16);
            row.t_infomask |= pg_sys::HEAP_XMAX_INVALID as u16;
            if self.frozen {
                row.t_infomask |= pg_sys::HEAP_XMIN_FROZEN as u16;
            }
            row.t_choice.t_heap.t_xmin = self.xid;
            row.t_choice.t_heap.t_xmax = pg_sys::InvalidTransactionId;
            row.t_choice.t_heap.t_field3.t_cid = self.command;
            row.t_ctid.ip_blkid.bi_hi = (block >> 16) as u16;
            row.t_ctid.ip_blkid.bi_lo = block as u16;
            row.t_ctid.ip_posid = offset;
        }
    }

    fn page(&self) -> Option<*mut pg_sys::PageHeaderData> {
        let last = self.begun.checked_sub(1)?;
        // SAFETY: `begun` never passes BATCH_PAGES.
        Some(unsafe { self.pages.add(last * PAGE_BYTES).cast() })
    }

    fn begin_page(&mut self) -> *mut pg_sys::PageHeaderData {
        if self.begun == BATCH_PAGES {
            self.flush();
        }
        // SAFETY: less than BATCH_PAGES are begun.
        unsafe {
            let page = self.pages.add(self.begun * PAGE_BYTES);
            self.begun += 1;
            pg_sys::PageInit(page.cast(), PAGE_BYTES, 0);
            let page = page.cast::<pg_sys::PageHeaderData>();
            if self.frozen {
                (*page).pd_flags |= pg_sys::PD_ALL_VISIBLE as u16;
            }
            page
        }
    }

    /// Logs and writes what is begun.
    fn flush(&mut self) {
        pgrx::check_for_interrupts!();
        // SAFETY: whole pages of the blocks behind the heap's last; nobody else lengthens it.
        unsafe {
            let mut blocks: Vec<u32> = (0..self.begun as u32).map(|at| self.next_block + at).collect();
            let mut pages: Vec<pg_sys::Page> =
                (0..self.begun).map(|at| self.pages.add(at * PAGE_BYTES).cast()).collect();
            if pg_sys::RelationGetNumberOfBlocksInFork(self.relation, MAIN) != self.next_block {
                pgrx::ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                    "somebody else writes to a table that is being filled"
                );
            }
            let flushed = pg_sys::GetFlushRecPtr(std::ptr::null_mut());
            let last = self.begun - 1;
            for (at, (block, page)) in blocks.iter().zip(&pages).enumerate() {
                compat::extend(self.relation, *block, *page, flushed, at == last);
            }
            if needs_wal(self.relation) {
                compat::log_pages(self.relation, &mut blocks, &mut pages);
            }
            self.next_block += self.begun as u32;
        }
        self.begun = 0;
    }

    /// Stores what is left and closes the table.
    pub fn finish(mut self) -> Filled {
        if self.begun > 0 {
            self.flush();
        }
        // SAFETY: opened in `open`; the lock stays to the end of the transaction.
        unsafe {
            if self.frozen {
                visibility::set_all_frozen(self.relation, self.first_block, self.next_block);
            }
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.context);
            pg_sys::CommandCounterIncrement();
            Filled { rows: self.rows, blocks: self.next_block }
        }
    }
}

/// Where the rows of a query go. The server sees only the first part.
#[repr(C)]
struct Receiver {
    public: pg_sys::DestReceiver,
    load: Load,
    /// The column of the table for each of the query's, from 0.
    columns: Vec<usize>,
}

/// Where rows of a query go.
pub struct Target<'a> {
    /// The heap, as [`Load`] wants it, of which nobody else reads or writes anything yet.
    pub table: pg_sys::Oid,
    /// The attribute numbers that the query's columns have in it.
    pub columns: &'a [i16],
    /// Its blocks after what was committed last: whatever lies behind is of somebody who failed, and goes.
    pub from_block: u32,
    /// Rows are stored as old ones, which every snapshot sees, as COPY with FREEZE does it, and their pages are marked so. If
    /// this transaction fails they stay until the next one begins at the same block.
    pub frozen: bool,
}

/// What was stored.
pub struct Filled {
    /// Rows.
    pub rows: u64,
    /// Blocks that the table has now.
    pub blocks: u32,
}

/// Stores the rows of a query, behind all that is there.
///
/// # Errors
/// Whatever the query raises; XX000 when it is no query; 55P03 when something is to be cut off and somebody is at the table.
pub fn fill(target: &Target, query: &str) -> PgResult<Filled> {
    let Target { table, columns, from_block, frozen } = *target;
    let columns = columns.iter().map(|attnum| usize::from(attnum.unsigned_abs()).saturating_sub(1)).collect();
    let public = receiver::public(receive);
    // A parallel query could not be given a command of ours in its middle.
    super::spi::set_local("max_parallel_workers_per_gather", "0")?;
    begin_at(table, from_block)?;
    let load = Load::open(table, frozen);
    let mut receiver = Receiver { public, load, columns };
    // SAFETY: the receiver outlives the query, and its public part comes first; connected for the time of the call,
    // an ERROR ends the connection and everything else with the transaction.
    unsafe {
        if pg_sys::SPI_connect() < 0 {
            return Err(internal("no connection to SPI"));
        }
        let options = pg_sys::SPIExecuteOptions { dest: (&raw mut receiver).cast(), ..Default::default() };
        let code = pg_sys::SPI_execute_extended(cstring(query).as_ptr(), &options);
        pg_sys::SPI_finish();
        if code != pg_sys::SPI_OK_SELECT as i32 {
            return Err(internal(format!("SPI code {code}")));
        }
    }
    Ok(receiver.load.finish())
}

/// Makes a heap `block` blocks long, and keeps others from writing to it.
fn begin_at(table: pg_sys::Oid, block: u32) -> PgResult<()> {
    let in_use = || Err(error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "the copy is in use"));
    if !lock::try_lock_all(&[table], lock::EXCLUSIVE) {
        return in_use();
    }
    // SAFETY: raises for what cannot be opened; truncated under ACCESS EXCLUSIVE.
    unsafe {
        let relation = pg_sys::relation_open(table, lock::ROW_EXCLUSIVE);
        let blocks = pg_sys::RelationGetNumberOfBlocksInFork(relation, MAIN);
        if blocks < block {
            return Err(internal(format!("the copy has {blocks} blocks left of {block}")));
        }
        if blocks > block {
            if !lock::try_lock_all(&[table], lock::ACCESS_EXCLUSIVE) {
                return in_use();
            }
            pg_sys::RelationTruncate(relation, block);
        }
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
    }
    Ok(())
}

#[pgrx::pg_guard]
// SAFETY: called by PostgreSQL with the receiver it was given, while the query runs.
unsafe extern "C-unwind" fn receive(
    slot: *mut pg_sys::TupleTableSlot,
    self_: *mut pg_sys::DestReceiver,
) -> bool {
    // SAFETY: the server gives back the receiver it was given, and a slot with a column for each of the query's.
    unsafe {
        let receiver = &mut *self_.cast::<Receiver>();
        let count = receiver.columns.len();
        if usize::try_from((*slot).tts_nvalid).unwrap_or(0) < count {
            pg_sys::slot_getsomeattrs_int(slot, count as i32);
        }
        let value =
            |(from, to): (usize, &usize)| (*to, *(*slot).tts_values.add(from), *(*slot).tts_isnull.add(from));
        receiver.load.push(receiver.columns.iter().enumerate().map(value));
    }
    true
}
