//! Tables whose rows are not all seen by snapshots that do not see a certain transaction: who has such a snapshot is kept out.
//!
//! Raised and lowered under a lock of the caller's, read without one. What was read of a place that somebody else takes meanwhile is
//! looked at once more, so nobody is kept out of one table by what is said of another.

use std::sync::atomic::{AtomicU64, Ordering};

/// Tables at a time, over all databases.
pub const BARRIERS: usize = 32;

/// One table. All zero: free.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Barrier {
    /// Database and table.
    key: AtomicU64,
    /// The transaction that has to be seen.
    xid: AtomicU64,
}

/// The table over borrowed memory; `count` is how many entries are used.
#[derive(Clone, Copy, Debug)]
pub struct Barriers<'a> {
    count: &'a AtomicU64,
    entries: &'a [Barrier],
}

impl<'a> Barriers<'a> {
    /// A table over `entries`.
    pub const fn new(count: &'a AtomicU64, entries: &'a [Barrier]) -> Self {
        Self { count, entries }
    }

    fn used(&self, key: u64) -> Option<&'a Barrier> {
        self.entries.iter().find(|entry| key != 0 && entry.key.load(Ordering::Acquire) == key)
    }

    /// The transaction that a snapshot has to see that reads a table; None: any may.
    pub fn before(&self, key: u64) -> Option<u32> {
        let entry = self.used(key)?;
        let xid = entry.xid.load(Ordering::Acquire) as u32;
        // Its place may have been given to another table: then no snapshot is left that this one has to be kept from.
        (entry.key.load(Ordering::Acquire) == key).then_some(xid)
    }

    /// From now on; in place of what was said of that table before. False: there is no room.
    pub fn raise(&self, key: u64, xid: u32) -> bool {
        if key == 0 {
            return false;
        }
        if let Some(entry) = self.used(key) {
            entry.xid.store(u64::from(xid), Ordering::Release);
            return true;
        }
        let free = self.entries.iter().find(|entry| entry.key.load(Ordering::Acquire) == 0);
        let Some(entry) = free else { return false };
        entry.xid.store(u64::from(xid), Ordering::Release);
        entry.key.store(key, Ordering::Release);
        self.count.fetch_add(1, Ordering::Release);
        true
    }

    /// What is said now, by table.
    pub fn all(&self) -> impl Iterator<Item = (u64, u32)> + 'a {
        self.entries.iter().filter_map(|entry| {
            let key = entry.key.load(Ordering::Acquire);
            (key != 0).then(|| (key, entry.xid.load(Ordering::Acquire) as u32))
        })
    }

    /// No more, unless another transaction has to be seen meanwhile.
    pub fn lower(&self, key: u64, xid: u32) {
        if let Some(entry) =
            self.used(key).filter(|entry| entry.xid.load(Ordering::Acquire) == u64::from(xid))
        {
            entry.key.store(0, Ordering::Release);
            self.count.fetch_sub(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BARRIERS, Barrier, Barriers};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn entries(count: usize) -> Vec<Barrier> {
        (0..count).map(|_| Barrier::default()).collect()
    }

    #[test]
    fn the_last_transaction_counts() {
        let (count, entries) = (AtomicU64::new(0), entries(BARRIERS));
        let barriers = Barriers::new(&count, &entries);
        assert_eq!(barriers.before(7), None);
        assert!(barriers.raise(7, 100) && barriers.raise(8, 50));
        assert!(barriers.raise(7, 120));
        assert_eq!((barriers.before(7), barriers.before(8), barriers.before(9)), (Some(120), Some(50), None));
        assert_eq!(count.load(Ordering::Relaxed), 2);
        assert_eq!(barriers.all().collect::<Vec<_>>(), [(7, 120), (8, 50)]);
        // Raised again since somebody found that nobody is behind transaction 100.
        barriers.lower(7, 100);
        assert_eq!(barriers.before(7), Some(120));
        barriers.lower(7, 120);
        barriers.lower(7, 120);
        assert_eq!((barriers.before(7), barriers.before(8)), (None, Some(50)));
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn places_are_few_and_come_back() {
        let (count, entries) = (AtomicU64::new(0), entries(2));
        let barriers = Barriers::new(&count, &entries);
        assert!(!barriers.raise(0, 1) && barriers.before(0).is_none());
        assert!(barriers.raise(1, 10) && barriers.raise(2, 20) && !barriers.raise(3, 30));
        assert!(barriers.raise(2, 21), "who has a place needs no other");
        assert_eq!(barriers.before(3), None);
        barriers.lower(1, 10);
        assert!(barriers.raise(3, 30));
        assert_eq!((barriers.before(1), barriers.before(2), barriers.before(3)), (None, Some(21), Some(30)));
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
