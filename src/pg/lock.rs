//! Short locks: tried without queueing, so that nobody ever waits behind a move that waits.

use super::local::Local;
use super::report::{PgResult, busy};
use super::spi;
use pgrx::pg_sys;
use std::time::Instant;

/// How often a process that reads or writes for long looks whether it is in somebody's way, ms.
const YIELD_MS: u128 = 300;
/// When it last looked.
static LOOKED: Local<Option<Instant>> = Local::new(None);

/// ACCESS SHARE.
pub const ACCESS_SHARE: i32 = pg_sys::AccessShareLock as i32;
/// ROW EXCLUSIVE.
pub const ROW_EXCLUSIVE: i32 = pg_sys::RowExclusiveLock as i32;
/// SHARE UPDATE EXCLUSIVE: blocks who alters, and itself.
pub const SHARE_UPDATE_EXCLUSIVE: i32 = pg_sys::ShareUpdateExclusiveLock as i32;
/// SHARE ROW EXCLUSIVE: blocks writers, not readers.
pub const SHARE_ROW_EXCLUSIVE: i32 = pg_sys::ShareRowExclusiveLock as i32;
/// EXCLUSIVE: blocks everybody but readers.
pub const EXCLUSIVE: i32 = pg_sys::ExclusiveLock as i32;
/// ACCESS EXCLUSIVE: blocks everybody.
pub const ACCESS_EXCLUSIVE: i32 = pg_sys::AccessExclusiveLock as i32;

/// Takes `mode` on every relation at once or on none; held to the end of the transaction. The caller
/// passes relations in ascending order, as every move does.
pub fn try_lock_all(relations: &[pg_sys::Oid], mode: i32) -> bool {
    for (taken, relation) in relations.iter().enumerate() {
        // SAFETY: any oid may be locked; the transaction owns the lock.
        if !unsafe { pg_sys::ConditionalLockRelationOid(*relation, mode) } {
            for held in &relations[..taken] {
                // SAFETY: releases what this loop took.
                unsafe { pg_sys::UnlockRelationOid(*held, mode) };
            }
            return false;
        }
    }
    true
}

/// Takes `mode` on every relation, queueing; the session's `lock_timeout` bounds each wait and raises
/// 55P03 when it passes.
pub fn lock_all(relations: &[pg_sys::Oid], mode: i32) {
    for relation in relations {
        // SAFETY: any oid may be locked; an ERROR unwinds the transaction.
        unsafe { pg_sys::LockRelationOid(*relation, mode) };
    }
}

/// ACCESS SHARE on a relation for as long as it lives: nobody has to wait for the end of the transaction.
pub struct Shared(pg_sys::Oid);

impl Shared {
    /// Queues for it.
    pub fn on(relation: pg_sys::Oid) -> Self {
        lock_all(&[relation], ACCESS_SHARE);
        Shared(relation)
    }

    /// Takes it if nobody has to be waited for.
    pub fn try_on(relation: pg_sys::Oid) -> Option<Self> {
        try_lock_all(&[relation], ACCESS_SHARE).then(|| Shared(relation))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // While an ERROR unwinds, the abort of the (sub)transaction releases it.
        if !std::thread::panicking() {
            // SAFETY: releases what `on` took.
            unsafe { pg_sys::UnlockRelationOid(self.0, ACCESS_SHARE) };
        }
    }
}

/// Takes `mode` on every relation, queueing for one at a time while holding none of the others, so that
/// nobody who locks them in another order can be in a deadlock with us.
pub fn lock_all_in_any_order(relations: &[pg_sys::Oid], mode: i32) {
    let mut first = 0;
    while first < relations.len() {
        lock_all(&relations[first..=first], mode);
        let rest: Vec<pg_sys::Oid> =
            relations.iter().enumerate().filter(|(i, _)| *i != first).map(|(_, oid)| *oid).collect();
        if try_lock_all(&rest, mode) {
            return;
        }
        // SAFETY: releases what this round took.
        unsafe { pg_sys::UnlockRelationOid(relations[first], mode) };
        first = (first + 1) % relations.len();
        pgrx::check_for_interrupts!();
    }
}

/// Virtual transactions of this database, or of all, whose snapshot may not see what transaction `xid` did; without this process's.
pub fn older_snapshots(xid: u32, everywhere: bool) -> Vec<pg_sys::VirtualTransactionId> {
    let mut count: i32 = 0;
    let vacuum = (pg_sys::PROC_IS_AUTOVACUUM | pg_sys::PROC_IN_VACUUM) as i32;
    // SAFETY: returns a palloc'd array of `count` entries, copied here.
    unsafe {
        let xid = pg_sys::TransactionId::from_inner(xid);
        let list = pg_sys::GetCurrentVirtualXIDs(xid, true, everywhere, vacuum, &mut count);
        let mut out = Vec::with_capacity(count.max(0) as usize);
        for i in 0..count.max(0) as usize {
            out.push(*list.add(i));
        }
        if !list.is_null() {
            pg_sys::pfree(list.cast());
        }
        out
    }
}

/// The current transaction's id, assigned if it has none yet.
pub fn current_xid() -> u32 {
    // SAFETY: only called inside a transaction.
    unsafe { pg_sys::GetCurrentTransactionId() }.into_inner()
}

/// Gives way (55006) to whoever waits for ACCESS EXCLUSIVE on anything that this process has locked, and with them to everybody
/// behind. It is called often and looks now and then.
pub fn give_way() -> PgResult<()> {
    if LOOKED.get().is_some_and(|at| at.elapsed().as_millis() <= YIELD_MS) {
        return Ok(());
    }
    // Who wants less does not wait for readers.
    let waiting = spi::one::<bool>(
        "WITH l AS MATERIALIZED (SELECT database, relation, mode, granted, pid FROM pg_catalog.pg_locks WHERE locktype = 'relation') \
         SELECT EXISTS (SELECT FROM l own JOIN l other ON other.database = own.database AND other.relation = own.relation \
             WHERE own.granted AND own.pid = pg_catalog.pg_backend_pid() AND NOT other.granted AND other.mode = 'AccessExclusiveLock')",
        &[],
    )?;
    LOOKED.set(Some(Instant::now()));
    if waiting == Some(true) { Err(busy("somebody waits for a lock on the partition")) } else { Ok(()) }
}

/// Whether a serializable transaction, running or not yet forgotten, has read something of these relations.
pub fn is_predicate_locked(relations: &[pg_sys::Oid]) -> PgResult<bool> {
    let locked = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE mode = 'SIReadLock' \
           AND (relation = ANY ($1) OR relation IN (SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = ANY ($1))) \
           AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))",
        &[relations.to_vec().into()],
    )?;
    Ok(locked.unwrap_or(false))
}

/// Takes an exclusive lock on "object `object` of class `class`" of this database for the rest of the
/// session; false when somebody else has it. Taken again by the same session it is simply kept.
///
/// The tag is one that no SQL function can make. The lock method is that of advisory locks: the standard
/// one would release session locks when any transaction aborts, and keep them when a process ends outside
/// a transaction.
pub fn try_session_lock(class: pg_sys::Oid, object: u32) -> bool {
    try_object(class, object, true)
}

/// The same lock for the rest of the transaction.
pub fn try_transaction_lock(class: pg_sys::Oid, object: u32) -> bool {
    try_object(class, object, false)
}

fn try_object(class: pg_sys::Oid, object: u32, for_session: bool) -> bool {
    // SAFETY: the tag is a plain key; dontWait never blocks; the session or the transaction owns the lock until it ends.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: pg_sys::MyDatabaseId.to_u32(),
            locktag_field2: class.to_u32(),
            locktag_field3: object,
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        };
        let taken = pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, for_session, true);
        taken != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }
}

/// Keeps locks that the transaction has on relations until [`release_kept`], or until a transaction of this process
/// aborts, or it ends: a transaction that ends in between does not let go of them.
pub fn keep(relations: &[pg_sys::Oid], mode: i32) -> bool {
    relations.iter().all(|relation| {
        let tag = relation_tag(*relation);
        // SAFETY: the tag is that of a relation of this database; dontWait never blocks; the session owns the lock.
        let taken = unsafe { pg_sys::LockAcquire(&tag, mode, true, true) };
        taken != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    })
}

/// Lets go of everything that [`keep`] holds. Outside a transaction.
pub fn release_kept() {
    // SAFETY: no transaction is under way, so the session's own locks of the ordinary kind are all there are.
    unsafe {
        if !pg_sys::IsTransactionState() {
            pg_sys::LockReleaseAll(pg_sys::DEFAULT_LOCKMETHOD as u16, true);
        }
    }
}

fn relation_tag(relation: pg_sys::Oid) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        // SAFETY: set when the connection was made.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: relation.to_u32(),
        locktag_field3: 0,
        locktag_field4: 0,
        locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}
