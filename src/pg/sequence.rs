//! Sequences, as a source of numbers that nobody gets twice, and strong random bytes.

use super::compat;
use super::lock::ACCESS_SHARE;
use super::report::{PgResult, internal};
use pgrx::pg_sys;

/// The next value of a sequence, once it is on disk that it was given away, and the number of the storage it
/// came from, as [`storage`] has it. `nextval()` promises that only
/// for a transaction that commits; here not even a crash of the server brings a value back. Values are
/// logged in batches (of 32 here), so it is rarely necessary to wait for the disk.
///
/// The only lock kept to the end of the transaction is `nextval()`'s own ROW EXCLUSIVE on the sequence,
/// which keeps nobody but ALTER and DROP SEQUENCE waiting.
pub fn next_durable(sequence: pg_sys::Oid) -> (i64, u32) {
    // SAFETY: runs inside a statement; the caller has checked the privileges. The sequence's only page is
    // read under a share lock; its LSN is at or behind the record that covers the value.
    unsafe {
        let value = compat::nextval(sequence);
        let relation = pg_sys::relation_open(sequence, ACCESS_SHARE);
        let storage = (*(*relation).rd_rel).relfilenode.to_u32();
        let buffer = pg_sys::ReadBuffer(relation, 0);
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let logged_at = pg_sys::BufferGetLSNAtomic(buffer);
        pg_sys::UnlockReleaseBuffer(buffer);
        pg_sys::relation_close(relation, ACCESS_SHARE);
        pg_sys::XLogFlush(logged_at);
        (value, storage)
    }
}

/// The number of a sequence's storage; 0 when the sequence is gone. A restart (TRUNCATE … RESTART IDENTITY, ALTER
/// SEQUENCE … RESTART) gives a sequence new storage, and a ROLLBACK of that the old one back: values that came from
/// other storage than it has now may come again.
pub fn storage(sequence: pg_sys::Oid) -> u32 {
    compat::storage_number(sequence)
}

/// 25006 in a read-only transaction and on a standby, as `nextval()` has it, whatever is in stock.
pub fn refuse_read_only() {
    // SAFETY: raises an ERROR or does nothing.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(c"next_key()".as_ptr());
        pg_sys::PreventCommandDuringRecovery(c"next_key()".as_ptr());
    }
}

/// Whether `sequence` is (still) a sequence that a column of `table` owns.
pub fn is_owned_by(sequence: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    let (mut owner, mut column) = (pg_sys::InvalidOid, 0);
    // SAFETY: catalog look-ups by oid; a missing relation gives 0.
    unsafe {
        pg_sys::get_rel_relkind(sequence) == pg_sys::RELKIND_SEQUENCE as std::ffi::c_char
            && pg_sys::sequenceIsOwned(
                sequence,
                pg_sys::DependencyType::DEPENDENCY_AUTO as std::ffi::c_char,
                &mut owner,
                &mut column,
            )
            && owner == table
    }
}

/// A name for a relation in the schema of `beside` that nobody has: `<name of first>_<second>_<label>`, cut and
/// numbered as CREATE TABLE does for serial columns.
pub fn free_name(
    first: pg_sys::Oid,
    second: Option<&str>,
    label: &str,
    beside: pg_sys::Oid,
) -> PgResult<String> {
    let (second, label) = (second.map(super::report::cstring), super::report::cstring(label));
    // SAFETY: catalog look-ups; the names are C strings that live during the call.
    unsafe {
        let name = pg_sys::get_rel_name(first);
        if name.is_null() {
            return Err(internal(format!("relation {} does not exist", first.to_u32())));
        }
        let second = second.as_ref().map_or(std::ptr::null(), |second| second.as_ptr());
        let schema = pg_sys::get_rel_namespace(beside);
        let free = pg_sys::ChooseRelationName(name, second, label.as_ptr(), schema, false);
        Ok(std::ffi::CStr::from_ptr(free).to_string_lossy().into_owned())
    }
}

/// Fills `bytes` with strong random numbers.
pub fn fill_random(bytes: &mut [u8]) -> PgResult<()> {
    // SAFETY: writes exactly the slice.
    if unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) } {
        Ok(())
    } else {
        Err(internal("no random numbers from the operating system"))
    }
}
