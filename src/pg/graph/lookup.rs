//! Look-ups of rows by the leading columns of a B-tree.

use super::keys::{KeyKind, NodeKey};
use crate::pg::compat;
use crate::pg::report::{PgResult, wrong_state};
use crate::pg::scan::equality_key;
use pgrx::pg_sys;

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
            Ok(Self { relation, index: open, scan, slot, keys, kind, values })
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
        // SAFETY: the slot belongs to the relation.
        unsafe {
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            pg_sys::index_getnext_slot(self.scan, forward, self.slot)
        }
    }

    fn value(&self, attribute: i16) -> Option<pg_sys::Datum> {
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

    /// Where the row is.
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
            pg_sys::index_endscan(self.scan);
            pg_sys::relation_close(self.index, pg_sys::NoLock as i32);
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.values);
        }
    }
}
