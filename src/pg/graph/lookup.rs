//! Look-ups of rows by the leading columns of a B-tree.

use super::keys::{KeyKind, NodeKey};
use crate::pg::compat;
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::scan::equality_key;
use pgrx::pg_sys;

/// What is called for every row: one guard does for all of it.
mod raw {
    use pgrx::pg_sys;
    // SAFETY: declarations follow the server headers of 15 to 18, which agree.
    unsafe extern "C-unwind" {
        pub fn index_getnext_tid(
            scan: pg_sys::IndexScanDesc,
            direction: pg_sys::ScanDirection::Type,
        ) -> pg_sys::ItemPointer;
        pub fn index_fetch_heap(scan: pg_sys::IndexScanDesc, slot: *mut pg_sys::TupleTableSlot) -> bool;
        pub fn visibilitymap_get_status(
            heap: pg_sys::Relation,
            block: pg_sys::BlockNumber,
            map: *mut pg_sys::Buffer,
        ) -> u8;
        pub fn index_deform_tuple(
            entry: pg_sys::IndexTuple,
            descriptor: pg_sys::TupleDesc,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
        );
    }
}

/// What is read of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// All of it, and where it is.
    Row,
    /// Only columns of the index, and not the row itself where the visibility map says that everybody sees it.
    Index,
}

/// Rows of one table with given values in the leading columns of one of its indexes, as the snapshot that was
/// active at the beginning sees them. The locks stay to the end of the transaction.
pub struct Lookup {
    relation: pg_sys::Relation,
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    keys: Vec<pg_sys::ScanKeyData>,
    kind: KeyKind,
    /// Values of the keys.
    values: pg_sys::MemoryContext,
    only: Option<Covered>,
}

/// The columns of the entry at hand, and the page of the visibility map that was looked at last.
struct Covered {
    /// Numbers of the index's columns in the table.
    columns: Vec<i16>,
    entry: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    map: pg_sys::Buffer,
    /// Rows are looked at in any case: a serializable transaction notes which ones it read.
    always: bool,
}

impl Covered {
    /// # Safety
    /// `index` must be an open index.
    unsafe fn of(index: pg_sys::Relation) -> Self {
        // SAFETY: as promised by the caller; the array has as many elements as the index has columns.
        unsafe {
            let form = (*index).rd_index;
            let count = usize::try_from((*form).indnatts).unwrap_or_default();
            let numbers = (*form).indkey.values.as_ptr();
            Self {
                columns: (0..count).map(|at| *numbers.add(at)).collect(),
                entry: vec![pg_sys::Datum::from(0usize); count],
                nulls: vec![true; count],
                map: pg_sys::InvalidBuffer as pg_sys::Buffer,
                always: pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32,
            }
        }
    }
}

impl Lookup {
    /// Opens a table and one of its indexes for look-ups by its first `columns` columns, which are keys.
    ///
    /// # Errors
    /// 55000 when the table or the index is gone.
    pub fn open(
        table: pg_sys::Oid,
        index: pg_sys::Oid,
        columns: usize,
        kind: KeyKind,
        lock: i32,
        reads: Reads,
    ) -> PgResult<Self> {
        let gone = || wrong_state("a table or an index that belongs to the graph is gone");
        // SAFETY: inside a transaction with an active snapshot, which outlives this; the index is asked for as
        // many columns as it has at most.
        unsafe {
            let relation = pg_sys::try_relation_open(table, lock);
            if relation.is_null() {
                return Err(gone());
            }
            let open = pg_sys::try_relation_open(index, pg_sys::AccessShareLock as i32);
            if open.is_null() {
                return Err(gone());
            }
            let is_index = (*(*open).rd_rel).relkind as u8 == pg_sys::RELKIND_INDEX
                && !(*open).rd_index.is_null()
                && (*(*open).rd_index).indrelid == table
                && (*(*open).rd_index).indisvalid
                && (*(*open).rd_index).indislive
                && usize::try_from((*(*open).rd_index).indnkeyatts).is_ok_and(|own| own >= columns)
                // Components are numbers, whatever keys are.
                && (0..columns).all(|at| KeyKind::of((*compat::attribute((*open).rd_att, at)).atttypid) == Some(kind));
            if !is_index {
                return Err(gone());
            }
            let keys = (0..columns).map(|column| equality_key(open, column)).collect();
            let snapshot = pg_sys::GetActiveSnapshot();
            let scan = compat::index_beginscan(relation, open, snapshot, columns as i32);
            let values = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"foreshard look-up".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            let only = (reads == Reads::Index).then(|| Covered::of(open));
            (*scan).xs_want_itup = only.is_some();
            Ok(Self { relation, index: open, scan, slot, keys, kind, values, only })
        }
    }

    /// Begins anew, with these values: one for each column.
    pub fn find(&mut self, values: &[&NodeKey]) {
        // SAFETY: the values live in our own context until the next look-up; the scan copies the keys.
        unsafe {
            if !matches!(values, [NodeKey::Int(_), ..] | []) {
                pg_sys::MemoryContextReset(self.values);
            }
            let before = pg_sys::MemoryContextSwitchTo(self.values);
            for (key, value) in self.keys.iter_mut().zip(values) {
                key.sk_argument = self.kind.datum(value);
            }
            pg_sys::MemoryContextSwitchTo(before);
            let (keys, count) = (self.keys.as_mut_ptr(), self.keys.len() as i32);
            pg_sys::index_rescan(self.scan, keys, count, std::ptr::null_mut(), 0);
        }
    }

    /// Goes to the next row; false: there is none.
    pub fn advance(&mut self) -> bool {
        let forward = pg_sys::ScanDirection::ForwardScanDirection;
        let Some(only) = &mut self.only else {
            // SAFETY: the slot belongs to the relation.
            return unsafe { pg_sys::index_getnext_slot(self.scan, forward, self.slot) };
        };
        let (relation, scan, slot) = (self.relation, self.scan, self.slot);
        let (entry, nulls) = (only.entry.as_mut_ptr(), only.nulls.as_mut_ptr());
        let (map, always): (*mut pg_sys::Buffer, bool) = (&mut only.map, only.always);
        // SAFETY: as in PostgreSQL's index-only scans: an entry stays until the next one is asked for, and it has the
        // columns of its index. Keys of ours need no recheck. The frame holds plain data only.
        unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                loop {
                    let place = raw::index_getnext_tid(scan, forward);
                    if place.is_null() {
                        return false;
                    }
                    let block = u32::from((*place).ip_blkid.bi_hi) << 16 | u32::from((*place).ip_blkid.bi_lo);
                    let visible = !always
                        && u32::from(raw::visibilitymap_get_status(relation, block, map))
                            & pg_sys::VISIBILITYMAP_ALL_VISIBLE
                            != 0;
                    if visible || raw::index_fetch_heap(scan, slot) {
                        raw::index_deform_tuple((*scan).xs_itup, (*scan).xs_itupdesc, entry, nulls);
                        return true;
                    }
                }
            })
        }
    }

    fn value(&self, attribute: i16) -> Option<pg_sys::Datum> {
        if let Some(only) = &self.only {
            let at = only.columns.iter().position(|own| *own == attribute)?;
            return if *only.nulls.get(at)? { None } else { only.entry.get(at).copied() };
        }
        let index = usize::try_from(attribute).ok()?.checked_sub(1)?;
        // SAFETY: the slot holds a row; only attributes that it has are asked for.
        unsafe {
            if i32::from(attribute) > (*(*self.relation).rd_att).natts {
                return None;
            }
            if (*self.slot).tts_nvalid < attribute {
                pg_sys::slot_getsomeattrs_int(self.slot, i32::from(attribute));
            }
            (!*(*self.slot).tts_isnull.add(index)).then(|| *(*self.slot).tts_values.add(index))
        }
    }

    /// An attribute that is a key; None: NULL. After [`Lookup::advance`] said true; likewise below.
    pub fn key(&self, attribute: i16) -> Option<NodeKey> {
        let value = self.value(attribute)?;
        // SAFETY: the table has the attribute, and its type is checked before the value is read as one.
        unsafe {
            let at = usize::try_from(attribute).ok()?.checked_sub(1)?;
            self.kind.require((*compat::attribute((*self.relation).rd_att, at)).atttypid);
            Some(self.kind.read(value))
        }
    }

    /// An attribute that is an integer; None: NULL.
    pub fn int(&self, attribute: i16) -> Option<i32> {
        self.value(attribute).map(|value| value.value() as i32)
    }

    /// An attribute that is a bigint; None: NULL.
    pub fn bigint(&self, attribute: i16) -> Option<i64> {
        self.value(attribute).map(|value| value.value() as i64)
    }

    /// Where the row is; not of one that was opened for [`Reads::Index`].
    pub fn place(&self) -> Place {
        // SAFETY: the slot holds a row.
        Place(unsafe { (*self.slot).tts_tid })
    }
}

/// Where a row is.
#[derive(Clone, Copy)]
pub struct Place(pub(super) pg_sys::ItemPointerData);

impl Drop for Lookup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The abort of the transaction lets everything go.
            return;
        }
        // SAFETY: opened in `open`.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            if let Some(only) = self.only.as_ref().filter(|only| only.map > 0) {
                pg_sys::ReleaseBuffer(only.map);
            }
            pg_sys::index_endscan(self.scan);
            pg_sys::relation_close(self.index, pg_sys::NoLock as i32);
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.values);
        }
    }
}
