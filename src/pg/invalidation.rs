//! When what a session remembers of relations has become old: PostgreSQL's invalidation messages for the
//! relations it watches, counted.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

thread_local! {
    static WATCHED: RefCell<HashSet<u32>> = RefCell::new(HashSet::new());
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// The most relations watched at a time; those that are gone stay among them. Beyond it all is taken for changed, and whoever still
/// needs to know watches anew.
const MOST: usize = 1 << 18;

/// Watches relations from now on.
pub fn watch(relations: impl IntoIterator<Item = pg_sys::Oid>) {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback is a plain function of this library, registered once per process.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(invalidated), pg_sys::Datum::from(0usize)) };
    }
    WATCHED.with_borrow_mut(|watched| {
        if watched.len() >= MOST {
            *watched = HashSet::new();
            GENERATION.set(GENERATION.get() + 1);
        }
        watched.extend(relations.into_iter().map(|oid| oid.to_u32()));
    });
}

/// Takes notice of what others have committed.
pub fn accept() {
    // SAFETY: inside a transaction.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}

/// A number that changes when a watched relation was changed.
pub fn generation() -> u64 {
    GENERATION.get()
}

#[pg_guard]
// SAFETY: called by PostgreSQL between any two catalog look-ups; touches nothing but our own cells, never
// while they are borrowed, because `watch` calls nobody while it borrows.
unsafe extern "C-unwind" fn invalidated(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let ours = relation == pg_sys::InvalidOid
        || WATCHED.with(|w| w.try_borrow().map_or(true, |watched| watched.contains(&relation.to_u32())));
    if ours {
        GENERATION.set(GENERATION.get() + 1);
    }
}
