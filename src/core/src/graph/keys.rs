//! Users' keys as dense numbers, in the order of their first appearance.

use std::collections::HashMap;
use std::hash::Hash;

use super::csr::{GraphError, MAX_NODES};

/// A number that depends on a key's bytes only: everywhere the same, and as good as random.
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// A two-way table between keys and node numbers.
///
/// Memory: every key twice, and about 20 bytes. The numbers depend on the order of the keys only.
#[derive(Clone, Debug)]
pub struct KeyTable<K> {
    // The standard hasher: keys are users' data, and a chosen set of them must not make this slow.
    numbers: HashMap<K, u32>,
    keys: Vec<K>,
}

impl<K> Default for KeyTable<K> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), keys: Vec::new() }
    }
}

impl<K: Clone + Eq + Hash> KeyTable<K> {
    /// An empty table.
    pub fn new() -> Self {
        Self { numbers: HashMap::new(), keys: Vec::new() }
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
