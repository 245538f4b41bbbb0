//! A fixed open-addressing table of 64-bit keys: readers never wait, whatever writers do.

use std::sync::atomic::{AtomicU64, Ordering};

const EMPTY: u64 = 0;
/// A key was here; searches go on past it.
const GONE: u64 = u64::MAX;
/// Places looked at before a table counts as full (or a key as absent).
const MAX_PROBES: usize = 64;

/// Where a key stands, for payload in a parallel array of the same length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// The key was there already.
    Found(usize),
    /// The key was entered just now by this call; its payload must be filled in.
    Entered(usize),
    /// No room within the probe limit.
    Full,
}

/// The table over borrowed memory, linear probing (Knuth, TAOCP 3, 6.4, algorithm L).
#[derive(Clone, Copy, Debug)]
pub struct Directory<'a> {
    keys: &'a [AtomicU64],
}

impl<'a> Directory<'a> {
    /// A table over `keys`, whose length must be a power of two (else it behaves as empty and full).
    pub fn new(keys: &'a [AtomicU64]) -> Self {
        Self { keys: if keys.len().is_power_of_two() { keys } else { &[] } }
    }

    /// Places in the table.
    pub fn capacity(&self) -> usize {
        self.keys.len()
    }

    /// The places a key may stand at, in order of probing.
    fn places(&self, key: u64) -> impl Iterator<Item = usize> + use<> {
        let length = self.keys.len();
        let mask = length.wrapping_sub(1);
        // Fibonacci hashing: the upper half of the product is well mixed.
        let home = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize;
        (0..MAX_PROBES.min(length)).map(move |i| home.wrapping_add(i) & mask)
    }

    /// Where `key` stands. 0 and `u64::MAX` are never found.
    #[inline]
    pub fn find(&self, key: u64) -> Option<usize> {
        if key == EMPTY || key == GONE {
            return None;
        }
        for place in self.places(key) {
            match self.keys[place].load(Ordering::Acquire) {
                found if found == key => return Some(place),
                EMPTY => return None,
                _ => {}
            }
        }
        None
    }

    /// Whether `key` still stands at `place`.
    #[inline]
    pub fn is_at(&self, place: usize, key: u64) -> bool {
        self.keys.get(place).is_some_and(|k| k.load(Ordering::Acquire) == key)
    }

    /// Finds or enters a key; any number of callers at once. Only empty places are used, so that two
    /// callers cannot enter one key twice.
    pub fn claim(&self, key: u64) -> Claim {
        if key == EMPTY || key == GONE {
            return Claim::Full;
        }
        // Even a failing exchange takes the cache line away from everybody else.
        if let Some(place) = self.find(key) {
            return Claim::Found(place);
        }
        for place in self.places(key) {
            match self.keys[place].load(Ordering::Acquire) {
                EMPTY => {}
                found if found == key => return Claim::Found(place),
                _ => continue,
            }
            match self.keys[place].compare_exchange(EMPTY, key, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Claim::Entered(place),
                Err(found) if found == key => return Claim::Found(place),
                Err(_) => {}
            }
        }
        Claim::Full
    }

    /// Where `key` may be entered by [`Directory::publish`] once its payload is in place, preferring
    /// places that were left. Callers of `reserve`, `publish` and `remove` exclude one another.
    pub fn reserve(&self, key: u64) -> Option<usize> {
        self.places(key).find(|place| {
            let found = self.keys[*place].load(Ordering::Acquire);
            found == EMPTY || found == GONE
        })
    }

    /// Makes a key visible at a reserved place.
    pub fn publish(&self, place: usize, key: u64) {
        self.keys[place].store(key, Ordering::Release);
    }

    /// Takes the key at `place` out. Places at the end of a chain become empty again. A `claim` at the
    /// same moment may then enter a key a second time; its owner must merge such twins.
    pub fn remove(&self, place: usize) {
        let mask = self.keys.len().wrapping_sub(1);
        self.keys[place].store(GONE, Ordering::Release);
        if self.keys[place.wrapping_add(1) & mask].load(Ordering::Acquire) != EMPTY {
            return;
        }
        let mut place = place;
        for _ in 0..MAX_PROBES {
            if self.keys[place].load(Ordering::Acquire) != GONE {
                return;
            }
            self.keys[place].store(EMPTY, Ordering::Release);
            place = place.wrapping_sub(1) & mask;
        }
    }

    /// Every (place, key) in the table.
    pub fn entries(&self) -> impl Iterator<Item = (usize, u64)> + use<'a> {
        let keys = self.keys;
        keys.iter().enumerate().filter_map(|(place, key)| match key.load(Ordering::Acquire) {
            EMPTY | GONE => None,
            key => Some((place, key)),
        })
    }
}
