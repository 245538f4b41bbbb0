//! Look-ups of rows by key in one copy of a partition.

use crate::pg::compat;
use crate::pg::scan::equality_key;
use pgrx::pg_sys;

/// One copy, ready for look-ups by key.
pub(super) struct Copy {
    pub(super) relation: pg_sys::Relation,
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    pub(super) slot: *mut pg_sys::TupleTableSlot,
    pub(super) keys: Vec<pg_sys::ScanKeyData>,
}

impl Copy {
    /// # Safety
    /// `relation` must be open and `index` one of its unique B-trees.
    pub(super) unsafe fn new(relation: pg_sys::Relation, index: pg_sys::Oid) -> Self {
        // SAFETY: as promised by the caller; SnapshotSelf is a constant of the server.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
            let count = (*(*index).rd_index).indnkeyatts.max(0) as usize;
            let keys = (0..count).map(|column| equality_key(index, column)).collect();
            let snapshot = &raw mut pg_sys::SnapshotSelfData;
            let scan = compat::index_beginscan(relation, index, snapshot, count as i32);
            let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
            Self { relation, index, scan, slot, keys }
        }
    }

    /// Puts the row of a key into the slot; false: there is none.
    ///
    /// # Safety
    /// One value per key column, of its type.
    pub(super) unsafe fn find(&mut self, values: &[pg_sys::Datum]) -> bool {
        for (key, value) in self.keys.iter_mut().zip(values) {
            key.sk_argument = *value;
        }
        // SAFETY: the scan copies the keys; the slot belongs to the relation.
        unsafe {
            pg_sys::index_rescan(
                self.scan,
                self.keys.as_mut_ptr(),
                self.keys.len() as i32,
                std::ptr::null_mut(),
                0,
            );
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            let found = pg_sys::index_getnext_slot(self.scan, forward, self.slot);
            let natts = (*(*self.relation).rd_att).natts;
            if found && i32::from((*self.slot).tts_nvalid) < natts {
                pg_sys::slot_getsomeattrs_int(self.slot, natts);
            }
            found
        }
    }

    /// Value of an attribute of the row found; None: NULL.
    ///
    /// # Safety
    /// `find` said true, and `attribute` is below natts.
    pub(super) unsafe fn value(&self, attribute: usize) -> Option<pg_sys::Datum> {
        // SAFETY: as promised by the caller.
        unsafe { (!*(*self.slot).tts_isnull.add(attribute)).then(|| *(*self.slot).tts_values.add(attribute)) }
    }

    /// # Safety
    /// Once.
    pub(super) unsafe fn close(self) {
        // SAFETY: opened in `new`; locks stay to the end of the transaction.
        unsafe {
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::index_endscan(self.scan);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
            pg_sys::table_close(self.relation, pg_sys::NoLock as i32);
        }
    }
}
