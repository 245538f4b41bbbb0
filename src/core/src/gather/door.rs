//! Who was here before, in fixed memory. Most keys of a table that grows are used once; a place among those whose company is known
//! takes hundreds of bytes. So a key that is new has to come twice (the doorkeeper of TinyLFU: Einziger, Friedman and Manes 2017).

use std::hash::{DefaultHasher, Hash, Hasher};

/// Bits per key that a generation is made for, and how many of them a key sets: one stranger in twenty at most is taken for
/// somebody who was here.
const BITS: usize = 8;
const MARKS: u64 = 4;

/// Marks of keys, in two generations: when one is full, the one before it is forgotten.
#[derive(Clone, Debug)]
pub(super) struct Door {
    now: Vec<u64>,
    before: Vec<u64>,
    /// Keys that a generation is made for, and those that this one has marks of.
    room: usize,
    marked: usize,
}

impl Door {
    /// Remembers the last `keys` that came, and twice as many at most.
    pub(super) fn new(keys: usize) -> Self {
        let words = (keys * BITS).div_ceil(64).max(1);
        Self { now: vec![0; words], before: vec![0; words], room: keys.max(1), marked: 0 }
    }

    /// Whether a key was here before; from now on it was.
    pub(super) fn passes<K: Hash>(&mut self, key: &K) -> bool {
        // The same in every process: what is learnt depends on nothing but what came.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let hash = hasher.finish();
        let bits = self.now.len() as u64 * 64;
        let has = |words: &[u64]| places(hash, bits).all(|(word, bit)| words[word] & bit != 0);
        if has(&self.now) || has(&self.before) {
            return true;
        }
        if self.marked == self.room {
            std::mem::swap(&mut self.now, &mut self.before);
            self.now.fill(0);
            self.marked = 0;
        }
        for (word, bit) in places(hash, bits) {
            self.now[word] |= bit;
        }
        self.marked += 1;
        false
    }
}

/// Where a key's marks are: the word, and the bit in it.
fn places(hash: u64, bits: u64) -> impl Iterator<Item = (usize, u64)> {
    let step = (hash >> 32) | 1;
    (0..MARKS).map(move |mark| {
        let place = hash.wrapping_add(mark.wrapping_mul(step)) % bits;
        ((place / 64) as usize, 1 << (place % 64))
    })
}

#[cfg(test)]
mod tests {
    use super::Door;

    fn passing(door: &mut Door, keys: std::ops::Range<u64>) -> usize {
        keys.filter(|key| door.passes(key)).count()
    }

    #[test]
    fn who_comes_again_passes_and_strangers_hardly_ever_do() {
        let mut door = Door::new(1_000);
        let taken = passing(&mut door, 0..1_000);
        assert!(taken < 40, "{taken} passed when they came first");
        assert_eq!(passing(&mut door, 0..1_000), 1_000);
        let taken = passing(&mut door, 10_000..11_000);
        assert!(taken < 100, "{taken} strangers passed");
    }

    #[test]
    fn what_was_long_ago_is_forgotten_and_takes_no_more_room() {
        let mut door = Door::new(1_000);
        let words = door.now.len() + door.before.len();
        passing(&mut door, 0..1_000);
        passing(&mut door, 10_000..14_000);
        let left = passing(&mut door, 0..1_000);
        assert!(left < 150, "{left} are still known");
        assert_eq!(door.now.len() + door.before.len(), words);
        assert!(!Door::new(0).passes(&1_u64));
    }
}
