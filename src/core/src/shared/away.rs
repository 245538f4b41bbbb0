//! Servers that do not answer: statements that would ask one of them need not wait to find that out.
//!
//! Written by the health checks of every database, read by every statement while there is any. An entry holds for a
//! while only: should nobody look any more, it says nothing, and its place is free. A reader sees a key with its own
//! time or with the one that was there before, which ended sooner.

use std::sync::atomic::{AtomicU64, Ordering};

/// Servers at a time, over all databases; one that finds no place is not known here.
pub const AWAY: usize = 128;

/// One server. All zero: free.
#[repr(C)]
#[derive(Debug, Default)]
pub struct AwayServer {
    /// Database and server.
    key: AtomicU64,
    /// Until when this holds, µs.
    until_us: AtomicU64,
}

/// The table over borrowed memory; `count` is how many entries are used.
#[derive(Clone, Copy, Debug)]
pub struct AwayServers<'a> {
    count: &'a AtomicU64,
    entries: &'a [AwayServer],
}

impl<'a> AwayServers<'a> {
    /// A table over `entries`.
    pub const fn new(count: &'a AtomicU64, entries: &'a [AwayServer]) -> Self {
        Self { count, entries }
    }

    fn used(&self, key: u64) -> Option<&'a AwayServer> {
        self.entries.iter().find(|entry| key != 0 && entry.key.load(Ordering::Acquire) == key)
    }

    /// Whether a server is known not to answer.
    pub fn is_away(&self, key: u64, now_us: u64) -> bool {
        self.used(key).is_some_and(|entry| entry.until_us.load(Ordering::Acquire) > now_us)
    }

    /// Says that a server does not answer; false: there is no room to say so.
    pub fn set(&self, key: u64, now_us: u64, until_us: u64) -> bool {
        if key == 0 {
            return false;
        }
        if let Some(entry) = self.used(key) {
            entry.until_us.store(until_us, Ordering::Release);
            return true;
        }
        self.entries.iter().any(|entry| self.claim(entry, key, now_us, until_us))
    }

    /// Takes an entry that is free, or that nobody has renewed in time.
    fn claim(&self, entry: &AwayServer, key: u64, now_us: u64, until_us: u64) -> bool {
        let known = entry.key.load(Ordering::Acquire);
        if known != 0 && entry.until_us.load(Ordering::Acquire) > now_us {
            return false;
        }
        if entry.key.compare_exchange(known, key, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        entry.until_us.store(until_us, Ordering::Release);
        if known == 0 {
            self.count.fetch_add(1, Ordering::Release);
        }
        true
    }

    /// A server answers.
    pub fn clear(&self, key: u64) {
        if let Some(entry) = self.used(key) {
            self.free(entry, key);
        }
    }

    /// Forgets what nobody has renewed in time, so that statements have nothing to look at again.
    pub fn forget_old(&self, now_us: u64) {
        for entry in self.entries {
            let key = entry.key.load(Ordering::Acquire);
            if key != 0 && entry.until_us.load(Ordering::Acquire) <= now_us {
                self.free(entry, key);
            }
        }
    }

    fn free(&self, entry: &AwayServer, key: u64) {
        entry.until_us.store(0, Ordering::Release);
        if entry.key.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.count.fetch_sub(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AWAY, AwayServer, AwayServers};
    use std::sync::atomic::{AtomicU64, Ordering};

    fn entries(count: usize) -> Vec<AwayServer> {
        (0..count).map(|_| AwayServer::default()).collect()
    }

    #[test]
    fn what_is_said_holds_for_a_while_only() {
        let (count, entries) = (AtomicU64::new(0), entries(AWAY));
        let away = AwayServers::new(&count, &entries);
        assert!(!away.is_away(7, 0));
        assert!(away.set(7, 0, 100));
        assert!(away.is_away(7, 99) && !away.is_away(7, 100) && !away.is_away(8, 0));
        assert!(away.set(7, 50, 200));
        assert!(away.is_away(7, 150));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        away.clear(7);
        away.clear(7);
        assert!(!away.is_away(7, 150));
        assert_eq!(count.load(Ordering::Relaxed), 0);
        assert!(!away.set(0, 0, 100) && !away.is_away(0, 0));
    }

    #[test]
    fn what_nobody_renews_gives_its_place_up() {
        let (count, entries) = (AtomicU64::new(0), entries(2));
        let away = AwayServers::new(&count, &entries);
        assert!(away.set(1, 0, 100) && away.set(2, 0, 300));
        assert!(!away.set(3, 50, 400));
        assert!(away.set(3, 100, 400));
        assert!(!away.is_away(1, 0) && away.is_away(2, 100) && away.is_away(3, 100));
        assert_eq!(count.load(Ordering::Relaxed), 2);
        away.forget_old(300);
        assert!(away.is_away(3, 300));
        assert_eq!(count.load(Ordering::Relaxed), 1);
        away.forget_old(400);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}
