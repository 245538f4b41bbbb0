//! How far a carrier is with work that is one transaction, for others to see before that ends.

use super::local::Local;
use super::{bgworker, shmem};

/// How often it is told, µs.
const TOLD_EVERY_US: i64 = 200_000;

/// What is told of a carrier's work.
#[derive(Clone, Copy, Default, Debug)]
pub struct Work {
    /// The move, 0: nothing to tell.
    pub move_id: i64,
    /// Blocks read, now and then more than all.
    pub blocks_done: i64,
    /// Blocks to read.
    pub blocks_total: i64,
    /// When it began (PostgreSQL microseconds).
    pub since_us: i64,
}

static WORK: Local<Work> = Local::new(Work { move_id: 0, blocks_done: 0, blocks_total: 0, since_us: 0 });
static TOLD_US: Local<i64> = Local::new(0);

/// Work on a move begins.
pub fn begin(move_id: i64, blocks_total: i64) {
    WORK.set(Work { move_id, blocks_done: 0, blocks_total, since_us: bgworker::now_us() });
    tell();
}

/// So many blocks more have been read; nothing unless work has begun.
pub fn add(blocks: u32) {
    let mut work = WORK.get();
    if work.move_id == 0 {
        return;
    }
    work.blocks_done += i64::from(blocks);
    WORK.set(work);
    if bgworker::now_us() - TOLD_US.get() > TOLD_EVERY_US {
        tell();
    }
}

/// It has ended, or was given up.
pub fn end() {
    WORK.set(Work::default());
    tell();
}

/// Tells it now.
pub fn tell() {
    TOLD_US.set(bgworker::now_us());
    let pid = bgworker::pid();
    shmem::with_entry(bgworker::database(), |entry| {
        let own = entry.carriers.iter().zip(&mut entry.works).find(|(carrier, _)| **carrier == pid);
        if let Some((_, told)) = own {
            *told = WORK.get();
        }
    });
}

/// What the carriers of this database are at.
pub fn told() -> Vec<Work> {
    let database = bgworker::database();
    let works = shmem::with(|registry| {
        let mut entries = registry.entries.iter();
        let entry = entries.find(|e| e.state != shmem::State::Free && e.database == database)?;
        let works =
            entry.carriers.iter().zip(entry.works).filter(|(pid, work)| **pid > 0 && work.move_id > 0);
        Some(works.map(|(_, work)| work).collect())
    });
    works.flatten().unwrap_or_default()
}
