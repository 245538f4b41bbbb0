//! The mirror: what a transaction changed in a moving partition is made equal in its shadow when the
//! transaction commits, in that same transaction.
//!
//! The capture trigger only remembers identity keys, in this backend's memory. Before commit (or PREPARE)
//! one pass looks every key up in the source as this transaction leaves it, and in the shadow, and makes the
//! shadow's row equal: by heap and index access methods, without uniqueness checks, triggers or SPI. A key's
//! state is looked at, not its history, so repeated changes cost one pass and need no order.
//!
//! Why nobody else can interfere: keys of subtransactions that were rolled back are dropped, so each key left
//! was changed by this transaction, which holds the row's lock (or the uniqueness of the key it deleted)
//! until it ends. Rows are therefore looked up with `SnapshotSelf`: no predicate locks, no serialization
//! failure that a user would not have had.
//!
//! The pass runs in a subtransaction. If it fails (disk full, an index error), the keys go to the capture log
//! instead and the user commits; a log that is not empty tells the carrier to step back to catch-up. The same
//! happens to a transaction that changes more keys than fit into [`MAX_BYTES`].

mod copy;
mod pair;

use super::local::{Local, LocalBox};
use super::subtransaction::{self, Ended};
use super::{route, security};
use pair::Pair;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ops::Range;

/// Memory for the keys of one transaction.
const MAX_BYTES: usize = 16 << 20;

/// What a trigger mirrors, from its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The partition.
    pub source: pg_sys::Oid,
    /// Its log.
    pub log: pg_sys::Oid,
    /// Its shadow.
    pub shadow: pg_sys::Oid,
    /// The identity index of the partition; its columns in order are those of the log.
    pub source_index: pg_sys::Oid,
    /// The same of the shadow; 0: the shadow is partitioned, and each partition has its own.
    pub shadow_index: pg_sys::Oid,
}

/// A remembered key: a heap tuple of the log's shape.
#[derive(Clone, Copy, Debug)]
struct Key {
    target: usize,
    /// Place in the words.
    at: usize,
    bytes: usize,
}

/// What this transaction changed.
#[derive(Debug, Default)]
struct Pending {
    targets: Vec<Target>,
    keys: Vec<Key>,
    /// The tuples, each aligned to 8 bytes.
    words: Vec<u64>,
    /// Which subtransaction the keys from a place on belong to; the innermost last.
    levels: Vec<(u32, usize)>,
    /// There was no room for more: all goes to the log.
    full: bool,
}

static PENDING: LocalBox<Pending> = LocalBox::new();
static ANY: Local<bool> = Local::new(false);
/// The pass of this transaction is over: what is changed now (by another extension, before the commit) is logged.
static PASSED: Local<bool> = Local::new(false);
/// The callbacks are there: without them nothing would be mirrored.
static READY: Local<bool> = Local::new(false);

/// The partitions whose failure this session has told of.
static TOLD: LocalBox<Vec<pg_sys::Oid>> = LocalBox::new();
/// The most of them.
const MAX_TOLD: usize = 64;

/// Registers the callbacks; from `_PG_init` while preloading.
pub fn register() {
    // SAFETY: single-threaded start-up of the postmaster; backends inherit the registration.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction), std::ptr::null_mut());
    }
    READY.set(true);
}

/// Remembers a key, a tuple of the log's shape without external values. False: it has to be logged.
pub fn remember(target: Target, tuple: &[u8]) -> bool {
    if !READY.get() || PASSED.get() {
        route::fail(target.source);
        return false;
    }
    // SAFETY: a plain number of this process.
    let level = unsafe { pg_sys::GetCurrentSubTransactionId() };
    let remembered = PENDING.with(Pending::default, |pending| pending.push(target, tuple, level));
    ANY.set(true);
    remembered.unwrap_or(false)
}

impl Pending {
    fn push(&mut self, target: Target, tuple: &[u8], level: u32) -> bool {
        let words = tuple.len().div_ceil(8);
        // Known even if its keys are logged at once: at the commit no more reads may go to its shadow.
        let place = self.targets.iter().position(|known| *known == target).unwrap_or_else(|| {
            self.targets.push(target);
            self.targets.len() - 1
        });
        self.full |= (self.words.len() + words) * 8 + self.keys.len() * size_of::<Key>() > MAX_BYTES;
        if self.full {
            return false;
        }
        if self.levels.last().is_none_or(|(last, _)| *last != level) {
            self.levels.push((level, self.keys.len()));
        }
        let at = self.words.len();
        self.words.resize(at + words, 0);
        let room = self.words[at..].iter_mut().flat_map(|word| {
            let word: *mut u64 = word;
            // SAFETY: the eight bytes of a word that is borrowed mutably.
            unsafe { std::slice::from_raw_parts_mut(word.cast::<u8>(), 8) }
        });
        room.zip(tuple).for_each(|(to, from)| *to = *from);
        // A row that is updated again and again needs one look.
        let same = |last: &Key| last.target == place && self.words[last.at..at] == self.words[at..];
        if self.keys.last().is_some_and(same) {
            self.words.truncate(at);
        } else {
            self.keys.push(Key { target: place, at, bytes: tuple.len() });
        }
        true
    }

    fn subtransaction_ends(&mut self, level: u32, parent: Option<u32>) {
        if self.levels.last().is_none_or(|(last, _)| *last != level) {
            return;
        }
        let Some((_, from)) = self.levels.pop() else { return };
        match parent {
            Some(parent) if self.levels.last().is_none_or(|(last, _)| *last != parent) => {
                self.levels.push((parent, from));
            }
            Some(_) => {}
            None => {
                if let Some(key) = self.keys.get(from) {
                    self.words.truncate(key.at);
                }
                self.keys.truncate(from);
            }
        }
    }

    /// The tuple of a key; it lives as long as this is not changed.
    fn tuple(&mut self, key: Key) -> pg_sys::HeapTupleData {
        pg_sys::HeapTupleData {
            t_len: key.bytes as u32,
            t_data: self.words[key.at..].as_mut_ptr().cast(),
            t_self: pg_sys::ItemPointerData::default(),
            t_tableOid: pg_sys::InvalidOid,
        }
    }
}

// SAFETY: a transaction callback of PostgreSQL.
unsafe extern "C-unwind" fn transaction(event: pg_sys::XactEvent::Type, argument: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{
        XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE,
        XACT_EVENT_PREPARE,
    };
    // Also when nothing was changed so far: who is called after us may be the first to change something.
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => PASSED.set(true),
        XACT_EVENT_ABORT | XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => PASSED.set(false),
        _ => {}
    }
    // Every transaction comes by several times; the guard takes longer than all the rest.
    if ANY.get() {
        // SAFETY: as above.
        unsafe { guarded(event, argument) };
    }
}

// SAFETY: called by `transaction`.
#[pg_guard]
unsafe extern "C-unwind" fn guarded(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{
        XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE,
        XACT_EVENT_PREPARE,
    };
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => {
            if let Some(pending) = PENDING.with(Pending::default, std::mem::take) {
                mirror(pending);
            }
        }
        XACT_EVENT_ABORT | XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => {
            ANY.set(false);
            PENDING.forget();
        }
        _ => {}
    }
}

// SAFETY: a subtransaction callback of PostgreSQL.
unsafe extern "C-unwind" fn subtransaction(
    event: pg_sys::SubXactEvent::Type,
    level: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _: *mut std::ffi::c_void,
) {
    use pg_sys::SubXactEvent::{SUBXACT_EVENT_ABORT_SUB, SUBXACT_EVENT_COMMIT_SUB};
    if !ANY.get() {
        return;
    }
    let parent = match event {
        SUBXACT_EVENT_ABORT_SUB => None,
        SUBXACT_EVENT_COMMIT_SUB => Some(parent),
        _ => return,
    };
    PENDING.with(Pending::default, |pending| pending.subtransaction_ends(level, parent));
}

/// Makes every shadow equal, or logs the keys of those that cannot be. All in one subtransaction, which is cheaper; if that
/// fails, one for each: a shadow in which nothing can be written (of a move whose partition was altered, say) must not
/// send those of other moves back, too.
fn mirror(mut pending: Pending) {
    let all = 0..pending.targets.len();
    let alone = (all.len() == 1).then(|| pending.targets[0].source);
    let tell_alone = |why: &str| alone.into_iter().for_each(|source| tell(source, why));
    if !pending.full && make_all_equal(&mut pending, all.clone(), tell_alone) {
        return;
    }
    for place in all {
        let source = pending.targets[place].source;
        let mirrored = !pending.full
            && alone.is_none()
            && make_all_equal(&mut pending, place..place + 1, |why| tell(source, why));
        if !mirrored {
            // Before the commit, so that whoever sees it does not read the shadow.
            route::fail(source);
            log_keys(&mut pending, place);
        }
    }
}

/// Whether the shadows of some targets are equal now; if not, nothing was done.
fn make_all_equal(pending: &mut Pending, places: Range<usize>, tell: impl FnOnce(&str)) -> bool {
    let work = || places.for_each(|place| make_equal(pending, place));
    subtransaction::run_telling(work, tell) == Ended::Well
}

fn log_keys(pending: &mut Pending, place: usize) {
    let log = pending.targets[place].log;
    for at in 0..pending.keys.len() {
        let key = pending.keys[at];
        if key.target == place {
            let mut tuple = pending.tuple(key);
            // SAFETY: the tuple has the log's shape; a log that is gone means that the move is gone.
            unsafe { log_key(log, &mut tuple) };
        }
    }
}

/// Tells the server's log why, once per partition and session: the carrier only sees that it has to go back.
fn tell(source: pg_sys::Oid, why: &str) {
    let told = TOLD.with(Vec::new, |told: &mut Vec<pg_sys::Oid>| {
        let known = told.contains(&source) || told.len() >= MAX_TOLD;
        if !known {
            told.push(source);
        }
        known
    });
    if told == Some(false) {
        log!("foreshard: changes of partition {} cannot be made in its copy now: {why}", source.to_u32());
    }
}

/// # Safety
/// `tuple` must have the shape of the log.
unsafe fn log_key(log: pg_sys::Oid, tuple: &mut pg_sys::HeapTupleData) {
    // SAFETY: as promised by the caller.
    unsafe {
        let relation = pg_sys::try_relation_open(log, pg_sys::RowExclusiveLock as i32);
        if !relation.is_null() {
            pg_sys::simple_heap_insert(relation, tuple);
            pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        }
    }
}

fn make_equal(pending: &mut Pending, place: usize) {
    let target = pending.targets[place];
    let mut keys: Vec<Key> = pending.keys.iter().filter(|key| key.target == place).copied().collect();
    // The same key once; the order does not matter.
    let words = &pending.words;
    let image = |key: &Key| &words[key.at..key.at + key.bytes.div_ceil(8)];
    keys.sort_by(|a, b| image(a).cmp(image(b)));
    keys.dedup_by(|a, b| image(a) == image(b));
    // Indexes of the copy are the owner's code, and whoever commits may be stronger. On ERROR the subtransaction's abort
    // brings the user back.
    let _owner = security::owner_of(target.source).map(security::as_restricted_owner);
    // SAFETY: the transaction still holds its locks on the source.
    let Some(mut pair) = (unsafe { Pair::open(target) }) else { return };
    for key in keys {
        let mut tuple = pending.tuple(key);
        // SAFETY: the tuple has the log's shape, whose columns are the key's.
        unsafe { pair.make_equal(&mut tuple) };
    }
    // SAFETY: opened above.
    unsafe { pair.close() };
}
