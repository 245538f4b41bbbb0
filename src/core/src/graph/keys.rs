//! Users' keys as dense numbers, in the order of their first appearance.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use super::csr::{GraphError, MAX_NODES};

/// A number that depends on a key's bytes only: everywhere the same, and as good as random.
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// Odd and without a pattern (the golden ratio).
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash with a secret of each table's own: keys are users' data, and a chosen set of them must not make it slow. Much
/// quicker for numbers than the standard one.
#[derive(Clone, Debug)]
struct Secret {
    start: u64,
    factor: u64,
}

impl Default for Secret {
    fn default() -> Self {
        let random = RandomState::new();
        Self { start: random.hash_one(0_u8), factor: random.hash_one(1_u8) | 1 }
    }
}

impl BuildHasher for Secret {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding { state: self.start, factor: self.factor }
    }
}

/// Multiplies to twice the width and folds both halves, word by word.
struct Folding {
    state: u64,
    factor: u64,
}

impl Folding {
    fn add(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        self.state = (product as u64 ^ (product >> 64) as u64).wrapping_add(ODD);
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        self.add(xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.state));
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn write_i64(&mut self, value: i64) {
        self.add(value.cast_unsigned());
    }

    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    fn write_isize(&mut self, value: isize) {
        self.add(value.cast_unsigned() as u64);
    }

    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}

/// A two-way table between keys and node numbers.
///
/// Memory: every key twice, and about 20 bytes. The numbers depend on the order of the keys only.
#[derive(Clone, Debug)]
pub struct KeyTable<K> {
    numbers: HashMap<K, u32, Secret>,
    keys: Vec<K>,
}

impl<K> Default for KeyTable<K> {
    fn default() -> Self {
        Self { numbers: HashMap::default(), keys: Vec::new() }
    }
}

impl<K: Clone + Eq + Hash> KeyTable<K> {
    /// An empty table.
    pub fn new() -> Self {
        Self { numbers: HashMap::default(), keys: Vec::new() }
    }

    /// The number of `key`, a new one if it has none yet.
    ///
    /// # Errors
    /// [`GraphError::TooManyNodes`] when all of [`MAX_NODES`] are given away.
    pub fn number(&mut self, key: &K) -> Result<u32, GraphError> {
        if let Some(number) = self.numbers.get(key) {
            return Ok(*number);
        }
        let number = self.keys.len() as u32;
        if number >= MAX_NODES {
            return Err(GraphError::TooManyNodes { nodes: u64::from(number) + 1, limit: MAX_NODES });
        }
        self.numbers.insert(key.clone(), number);
        self.keys.push(key.clone());
        Ok(number)
    }

    /// The number of `key`, if it has one.
    pub fn get(&self, key: &K) -> Option<u32> {
        self.numbers.get(key).copied()
    }

    /// The key with this number.
    pub fn key(&self, number: u32) -> Option<&K> {
        self.keys.get(number as usize)
    }

    /// All keys in the order of their numbers.
    pub fn keys(&self) -> &[K] {
        &self.keys
    }

    /// How many keys have a number.
    pub fn len(&self) -> u32 {
        self.keys.len() as u32
    }

    /// Whether no key has a number.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}
