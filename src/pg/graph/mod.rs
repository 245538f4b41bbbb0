//! What graphs need of the server: users' keys as values, look-ups by index, bulk and single writes of closure
//! rows, and what a statement trigger sees.

pub mod bulk;
pub mod call;
pub mod keys;
pub mod leaf;
pub mod lookup;
pub mod read;
pub mod tally;

use pgrx::pg_sys;

/// A snapshot that sees everything that this transaction did and, unless it is REPEATABLE READ, whatever
/// committed; active until it goes.
pub struct Fresh(());

/// Takes one.
pub fn fresh_snapshot() -> Fresh {
    // SAFETY: inside a transaction; popped on drop, or by the abort of the (sub)transaction.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    Fresh(())
}

/// A snapshot that sees whatever has committed, in any transaction; active until it goes.
pub fn latest_snapshot() -> Fresh {
    // SAFETY: as for `fresh_snapshot`.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
    }
    Fresh(())
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: it is on top: everything pushed after it has been popped.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}

/// Makes every session read again what it remembers of a relation, once this transaction commits.
pub fn announce_change(relation: pg_sys::Oid) {
    // SAFETY: an existing relation's oid, inside a transaction.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
}

/// Lets `object` go when `table` is dropped.
pub fn drop_with(object: pg_sys::Oid, table: pg_sys::Oid) {
    let address =
        |oid| pg_sys::ObjectAddress { classId: pg_sys::RelationRelationId, objectId: oid, objectSubId: 0 };
    // SAFETY: both relations exist, inside a transaction that has locked them.
    unsafe {
        pg_sys::recordDependencyOn(
            &address(object),
            &address(table),
            pg_sys::DependencyType::DEPENDENCY_AUTO,
        );
    }
}
