//! Shared memory: what is known of data sources at the places where they are asked, and which are kept out.
//!
//! Not in tables, because a question that failed rolls back and is just what others must know of, and because
//! questions are asked by transactions that may write nothing. Lock protocol: one LWLock ("foreshard_sources") guards
//! the board, held for plain memory access only. Size is fixed ([`MAX_ENTRIES`]); the entry that was used least
//! recently makes room. Without preloading every session has a board of its own. Keepers save it to tables.

use super::local::LocalBox;
use super::shmem;
use foreshard_core::resolve::{Breaker, Learnt};
use pgrx::lwlock::PgLwLock;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, pg_shmem_init, pg_sys};

/// Pairs of source and place.
pub const MAX_ENTRIES: usize = 1024;

/// A source at a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The database.
    pub database: u32,
    /// The source.
    pub source: i32,
    /// The foreign server's oid, 0 for this server.
    pub server: u32,
}

/// Counters since ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Questions.
    pub calls: i64,
    /// Keys asked for.
    pub keys: i64,
    /// Rows that came.
    pub rows: i64,
    /// Questions that failed because the place was sick, time-outs included.
    pub failures: i64,
    /// Questions that took too long.
    pub timeouts: i64,
    /// Questions that were refused, or could not be answered for this caller.
    pub refused: i64,
}

/// What is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// Of what.
    pub place: Place,
    /// Latency, rows, errors.
    pub learnt: Learnt,
    /// Whether it is kept out.
    pub breaker: Breaker,
    /// Counters.
    pub counters: Counters,
    /// SQLSTATE of the last failure, zeros for none.
    pub last_error: [u8; 5],
    /// When it was last asked, ms since 2000; 0 for a free entry.
    pub used_ms: f64,
    /// The tables do not have it yet.
    pub unsaved: bool,
}

/// All of them.
#[derive(Clone, Copy)]
pub struct Board {
    entries: [Entry; MAX_ENTRIES],
}

impl Default for Board {
    fn default() -> Self {
        Board { entries: [Entry::default(); MAX_ENTRIES] }
    }
}

impl Board {
    /// What is known of a place.
    pub fn find(&self, place: Place) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.used_ms > 0.0 && entry.place == place)
    }

    /// The same, made by `make` if it is not known.
    pub fn entry(&mut self, place: Place, now_ms: f64) -> Option<&mut Entry> {
        let known = self.entries.iter().position(|entry| entry.used_ms > 0.0 && entry.place == place);
        let at = match known {
            Some(at) => at,
            None => {
                let oldest = |a: &(usize, &Entry), b: &(usize, &Entry)| a.1.used_ms.total_cmp(&b.1.used_ms);
                let (at, _) = self.entries.iter().enumerate().min_by(oldest)?;
                self.entries[at] = Entry { place, used_ms: now_ms.max(1.0), ..Entry::default() };
                at
            }
        };
        self.entries.get_mut(at)
    }

    /// Everything of a database.
    pub fn of_database(&mut self, database: u32) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(move |entry| entry.used_ms > 0.0 && entry.place.database == database)
    }
}

// SAFETY: plain old data without pointers.
unsafe impl PGRXSharedMemory for Board {}

// SAFETY: the name is used once in this library.
static BOARD: PgLwLock<Board> = unsafe { PgLwLock::new(c"foreshard_sources") };
/// Without preloading.
static OWN: LocalBox<Board> = LocalBox::new();

/// Requests the region; only while `shared_preload_libraries` is processed.
pub fn register() {
    pg_shmem_init!(BOARD);
}

/// Runs `work`, which only touches memory, on the board.
pub fn with<R>(work: impl FnOnce(&mut Board) -> R) -> Option<R> {
    if shmem::is_preloaded() { Some(work(&mut BOARD.exclusive())) } else { OWN.with(Board::default, work) }
}

/// Forgets what belongs to none of these databases.
pub fn forget_dropped(databases: &[u32]) {
    with(|board| {
        let dropped = |entry: &&mut Entry| entry.used_ms > 0.0 && !databases.contains(&entry.place.database);
        board.entries.iter_mut().filter(dropped).for_each(|entry| *entry = Entry::default());
    });
}

/// A place of this database.
pub fn place(source: i32, server: u32) -> Place {
    // SAFETY: constant of a connected session.
    Place { database: unsafe { pg_sys::MyDatabaseId }.to_u32(), source, server }
}

/// The time of day, ms since 2000.
pub fn now_ms() -> f64 {
    // SAFETY: no preconditions.
    unsafe { pg_sys::GetCurrentTimestamp() as f64 / 1e3 }
}
