//! Shared memory: which database has a keeper, and whether it may have one now.
//!
//! Lock protocol: one LWLock ("foreshard_registry") guards the whole region; nobody holds it across
//! anything but plain memory access. Size is fixed: [`MAX_DATABASES`] entries. Lost on a crash restart,
//! rebuilt by the launcher's probes.

use super::progress::Work;
use super::report::{PgResult, wrong_state};
use pgrx::lwlock::PgLwLock;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, pg_shmem_init};
use std::sync::atomic::{AtomicBool, Ordering};

/// Databases that may have a keeper at the same time.
pub const MAX_DATABASES: usize = 256;
/// Carriers of one database.
pub const MAX_CARRIERS: usize = 8;

/// What the launcher knows about a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// Free entry.
    #[default]
    Free,
    /// A keeper shall be started to look for the extension.
    Probe,
    /// A keeper runs or is being started.
    Running,
    /// Looked at: the extension is not there.
    Absent,
}

/// One database.
#[derive(Clone, Copy, Default, Debug)]
pub struct Entry {
    /// Database oid.
    pub database: u32,
    /// See [`State`].
    pub state: State,
    /// The keeper's process id, 0 for none.
    pub keeper: i32,
    /// Process ids of carriers, 0 for none.
    pub carriers: [i32; MAX_CARRIERS],
    /// What they are at.
    pub works: [Work; MAX_CARRIERS],
    /// How long the keeper's looks took lately, µs: the longest, forgotten by a tenth with every look.
    pub look_us: u32,
    /// No worker is started before this time (PostgreSQL microseconds): somebody drops or copies it.
    pub held_until_us: i64,
}

/// The region.
#[derive(Clone, Copy, Debug)]
pub struct Registry {
    /// The launcher's process id, 0 for none.
    pub launcher: i32,
    /// Databases.
    pub entries: [Entry; MAX_DATABASES],
}

impl Default for Registry {
    fn default() -> Self {
        Registry { launcher: 0, entries: [Entry::default(); MAX_DATABASES] }
    }
}

// SAFETY: plain old data without pointers.
unsafe impl PGRXSharedMemory for Registry {}

// SAFETY: the name is used once in this library.
static REGISTRY: PgLwLock<Registry> = unsafe { PgLwLock::new(c"foreshard_registry") };
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Requests the region; only while `shared_preload_libraries` is processed.
pub fn register() {
    pg_shmem_init!(REGISTRY);
    PRELOADED.store(true, Ordering::Relaxed);
}

/// Whether the library was loaded by `shared_preload_libraries`.
pub fn is_preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// 55000 with the line for postgresql.conf unless preloaded.
pub fn require_preloaded() -> PgResult<()> {
    if is_preloaded() {
        return Ok(());
    }
    Err(wrong_state("foreshard is not loaded by the server")
        .set_hint("Set shared_preload_libraries = 'foreshard' in postgresql.conf and restart PostgreSQL."))
}

/// Runs `work` on the region under the exclusive lock; None when there is no region.
pub fn with<R>(work: impl FnOnce(&mut Registry) -> R) -> Option<R> {
    if !is_preloaded() {
        return None;
    }
    Some(work(&mut REGISTRY.exclusive()))
}

/// Runs `work` on the entry of `database`, made if there is room.
pub fn with_entry<R>(database: u32, work: impl FnOnce(&mut Entry) -> R) -> Option<R> {
    with(|registry| {
        let entries = &mut registry.entries;
        let at = entries
            .iter()
            .position(|e| e.state != State::Free && e.database == database)
            .or_else(|| entries.iter().position(|e| e.state == State::Free))?;
        let entry = &mut entries[at];
        if entry.state == State::Free {
            *entry = Entry { database, state: State::Probe, ..Entry::default() };
        }
        Some(work(entry))
    })
    .flatten()
}

/// Sets the latch of one of our workers.
pub fn wake(pid: i32) {
    if pid > 0 {
        // SAFETY: SIGUSR1 only sets the latch of a PostgreSQL process; the pid came from the registry,
        // which every worker clears when it exits.
        unsafe { libc::kill(pid, libc::SIGUSR1) };
    }
}
