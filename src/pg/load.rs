//! Filling a heap by the page, as COPY does it: one WAL record and one look for room for all rows of a page, and
//! a ring of buffers of its own, so that what others work with stays in memory.

use super::lock::ROW_EXCLUSIVE;
use super::report::{PgResult, PgSqlErrorCode, cstring, error, internal};
use pgrx::pg_sys;

/// The most rows stored at once.
const BATCH_ROWS: usize = 1000;
/// Beyond this rows are stored at once whatever their number, bytes. Values that are stored out of line do not count.
const BATCH_BYTES: usize = 256 * 1024;

/// How a batch keeps its rows until they are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// As values, which the caller keeps where [`Load::context`] is, or for as long as the table is filled.
    Kept,
    /// As rows of their own, because values are gone when the next row comes.
    Passing,
}

/// A heap that is being filled. It must have no index that writers maintain, no constraint and no trigger: nothing
/// looks at the rows.
pub struct Load {
    relation: pg_sys::Relation,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    filled: usize,
    bytes: usize,
    state: pg_sys::BulkInsertState,
    options: u32,
    values: Values,
    context: pg_sys::MemoryContext,
    rows: u64,
}

impl Load {
    /// Opens a heap. `options` are `HEAP_INSERT_*`.
    pub fn open(table: pg_sys::Oid, values: Values, options: u32) -> Self {
        // SAFETY: raises for what cannot be opened; everything lives in the current context, which the caller keeps.
        unsafe {
            let relation = pg_sys::relation_open(table, ROW_EXCLUSIVE);
            let kind = match values {
                Values::Kept => &raw const pg_sys::TTSOpsVirtual,
                Values::Passing => &raw const pg_sys::TTSOpsHeapTuple,
            };
            let slot = || {
                let slot = pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, kind);
                // Columns that are never given are NULL.
                for at in 0..(*(*relation).rd_att).natts.max(0) as usize {
                    *(*slot).tts_isnull.add(at) = true;
                }
                slot
            };
            Self {
                relation,
                slots: (0..BATCH_ROWS).map(|_| slot()).collect(),
                filled: 0,
                bytes: 0,
                state: pg_sys::GetBulkInsertState(),
                options,
                values,
                context: pg_sys::AllocSetContextCreateInternal(
                    pg_sys::CurrentMemoryContext,
                    c"foreshard bulk load".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                ),
                rows: 0,
            }
        }
    }

    /// Columns of the table, dropped ones included.
    pub fn columns(&self) -> usize {
        // SAFETY: the relation is open.
        unsafe { (*(*self.relation).rd_att).natts.max(0) as usize }
    }

    /// Where values may live until their batch is stored.
    pub fn context(&self) -> pg_sys::MemoryContext {
        self.context
    }

    /// Adds a row: column (from 0), value and whether it is NULL; columns beyond the table's are left out.
    ///
    /// # Safety
    /// Values are of their columns' types and live as long as [`Values`] says.
    pub unsafe fn push(&mut self, row: impl Iterator<Item = (usize, pg_sys::Datum, bool)>) {
        let Some(slot) = self.slots.get(self.filled).copied() else { return };
        let columns = self.columns();
        // SAFETY: the slot is empty and has room for every column. What materialising raises passes no destructor.
        unsafe {
            for (at, value, is_null) in row.filter(|(at, ..)| *at < columns) {
                *(*slot).tts_values.add(at) = value;
                *(*slot).tts_isnull.add(at) = is_null;
            }
            pg_sys::ExecStoreVirtualTuple(slot);
            if self.values == Values::Passing {
                if let Some(materialize) = (*(*slot).tts_ops).materialize {
                    materialize(slot);
                }
                let tuple = (*slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple;
                self.bytes += if tuple.is_null() { 0 } else { (*tuple).t_len as usize };
            }
        }
        self.filled += 1;
        self.rows += 1;
        if self.filled == self.slots.len() || self.bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        pgrx::check_for_interrupts!();
        // SAFETY: as many slots as are filled; what storing allocates lives in our context until it is done.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.context);
            pg_sys::heap_multi_insert(
                self.relation,
                self.slots.as_mut_ptr(),
                self.filled as i32,
                pg_sys::GetCurrentCommandId(true),
                self.options as i32,
                self.state,
            );
            for slot in self.slots.iter().take(self.filled) {
                if let Some(clear) = (*(**slot).tts_ops).clear {
                    clear(*slot);
                }
            }
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.context);
        }
        self.filled = 0;
        self.bytes = 0;
    }

    /// Stores what is left and closes the table.
    pub fn finish(mut self) -> Filled {
        if self.filled > 0 {
            self.flush();
        }
        // SAFETY: opened in `open`; the lock stays to the end of the transaction.
        unsafe {
            pg_sys::FreeBulkInsertState(self.state);
            self.slots.iter().for_each(|slot| pg_sys::ExecDropSingleTupleTableSlot(*slot));
            let main = pg_sys::ForkNumber::MAIN_FORKNUM;
            let blocks = pg_sys::RelationGetNumberOfBlocksInFork(self.relation, main);
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.context);
            pg_sys::CommandCounterIncrement();
            Filled { rows: self.rows, blocks }
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
    let public = pg_sys::DestReceiver {
        receiveSlot: Some(receive),
        rStartup: Some(begin),
        rShutdown: Some(end),
        rDestroy: Some(end),
        mydest: pg_sys::CommandDest::DestTuplestore,
    };
    // A parallel query could not be given a command of ours in its middle.
    super::spi::set_local("max_parallel_workers_per_gather", "0")?;
    // The map of free space would lead to blocks before `from_block`, where a failed chunk is not cut off. Without it only the
    // last block is looked at, which is that one.
    let options = pg_sys::HEAP_INSERT_SKIP_FSM | if frozen { pg_sys::HEAP_INSERT_FROZEN } else { 0 };
    let load = Load::open(table, Values::Passing, options);
    // SAFETY: the relation is open.
    unsafe { begin_at(load.relation, from_block)? };
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

/// Makes a new block, the first behind `block` others, the one that is filled next.
///
/// # Safety
/// `relation` must be an open heap.
unsafe fn begin_at(relation: pg_sys::Relation, block: u32) -> PgResult<()> {
    let main = pg_sys::ForkNumber::MAIN_FORKNUM;
    let exclusive = pg_sys::ExclusiveLock as i32;
    // SAFETY: as promised by the caller; truncated under ACCESS EXCLUSIVE, extended under the lock for that.
    unsafe {
        if pg_sys::RelationGetNumberOfBlocksInFork(relation, main) > block {
            // A vacuum may be at it.
            if !super::lock::try_lock_all(&[(*relation).rd_id], super::lock::ACCESS_EXCLUSIVE) {
                return Err(error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "the copy is in use"));
            }
            pg_sys::RelationTruncate(relation, block);
        }
        pg_sys::LockRelationForExtension(relation, exclusive);
        // After a crash blocks that were never written may be missing.
        let at = loop {
            let new = pg_sys::InvalidBlockNumber;
            let buffer = pg_sys::ReadBufferExtended(
                relation,
                main,
                new,
                pg_sys::ReadBufferMode::RBM_NORMAL,
                std::ptr::null_mut(),
            );
            let at = pg_sys::BufferGetBlockNumber(buffer);
            pg_sys::ReleaseBuffer(buffer);
            pgrx::check_for_interrupts!();
            if at >= block {
                break at;
            }
        };
        pg_sys::UnlockRelationForExtension(relation, exclusive);
        // Else it would go on in the block that it filled last.
        if let Some(storage) = (*relation).rd_smgr.as_mut() {
            storage.smgr_targblock = at;
        }
    }
    Ok(())
}

#[pgrx::pg_guard]
// SAFETY: called by PostgreSQL; touches nothing.
unsafe extern "C-unwind" fn begin(
    _self_: *mut pg_sys::DestReceiver,
    _operation: i32,
    _columns: pg_sys::TupleDesc,
) {
}

#[pgrx::pg_guard]
// SAFETY: as `begin`.
unsafe extern "C-unwind" fn end(_self_: *mut pg_sys::DestReceiver) {}

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
