//! Which keys to choose, and for which shard: keys that are used together shall live together.
//!
//! A hash spreads the keys of a table over its slots whatever they are used for. [`Gatherer`] is told windows of keys
//! that were used together and remembers, in bounded memory, who was used with whom (the machinery is that of graphs:
//! [`crate::graph::partition`]). [`Gatherer::plan`] says which keys should live elsewhere than their slot, given
//! where everything is now; what it says can be done by slots, each of which is copied once, however many of its
//! keys move. So a change must be worth the bytes of its slot, and nothing moves for a little.

mod door;
mod lists;
mod picture;
mod plan;
mod rate;
mod standing;

use std::hash::Hash;

use crate::graph::keys::KeyTable;
use crate::graph::partition::{Adaptive, AdaptiveOptions, WeightedGraph};
use crate::graph::shards::Shards;
use door::Door;

pub use lists::Room;
pub use plan::{GatherOptions, Gathering, Layout, Located, SlotChange, SlotState, compensated};
pub use rate::Rate;
pub use standing::Standing;

/// The most keys that a gatherer can be made for.
pub const MAX_KEYS: usize = 1 << 18;

/// When there is no room for another key, this share of them stays, the most used ones.
const KEPT: f64 = 0.75;

/// So many keys are known from their first use on; what comes then has to come twice.
const OPEN_KEYS: usize = 4_096;

/// What is known of which keys are used together.
///
/// Memory: per key about 48 bytes, twice the key, and 8 bytes for each of up to 32 others it is used with; from four thousand keys on
/// two bytes for each that there is room for, by which those that come once only are left out.
#[derive(Clone, Debug)]
pub struct Gatherer<K> {
    keys: KeyTable<K>,
    /// Who was here before, once there are many keys.
    door: Option<Door>,
    learnt: Adaptive,
    max_keys: usize,
    half_life_windows: f64,
    windows: u64,
    uses: u64,
    forgotten: u64,
}

impl<K: Clone + Eq + Hash> Gatherer<K> {
    /// Knows nothing yet; tells at most `max_keys` keys apart (16 to [`MAX_KEYS`]), and forgets half of who
    /// was used with whom, and half of how much, after so many windows.
    pub fn new(max_keys: usize, half_life_windows: f64, load_half_life_windows: f64) -> Self {
        let options = AdaptiveOptions {
            pair_half_life_windows: half_life_windows.max(1.0),
            load_half_life_windows: load_half_life_windows.max(1.0),
            ..AdaptiveOptions::default()
        };
        Self {
            keys: KeyTable::new(),
            door: None,
            learnt: Adaptive::new(Shards::one(), options),
            max_keys: max_keys.clamp(16, MAX_KEYS),
            half_life_windows: load_half_life_windows.max(1.0),
            windows: 0,
            uses: 0,
            forgotten: 0,
        }
    }

    /// Learns that these keys were used together; one alone is an access to it.
    pub fn observe(&mut self, window: &[K]) {
        if self.len() + window.len() > self.max_keys {
            self.make_room();
        }
        let mut numbers = Vec::with_capacity(window.len());
        for key in window {
            match self.keys.get(key) {
                Some(number) => numbers.push(number),
                None => self.admit(key, &mut numbers),
            }
        }
        self.learnt.learn(&numbers);
        self.windows += 1;
        self.uses += window.len() as u64;
    }

    /// Takes up a key that is not known, unless it has to come again first: then its number counts for both uses.
    fn admit(&mut self, key: &K, numbers: &mut Vec<u32>) {
        let came_before = self.len() >= OPEN_KEYS;
        if came_before && !self.door.get_or_insert_with(|| Door::new(self.max_keys)).passes(key) {
            return;
        }
        // There is room for it: see `observe`.
        if let Ok(number) = self.keys.number(key) {
            numbers.push(number);
            numbers.extend(came_before.then_some(number));
        }
    }

    /// From now on tells at most so many keys apart (16 to [`MAX_KEYS`]); the most used ones stay.
    pub fn limit(&mut self, max_keys: usize) {
        let max_keys = max_keys.clamp(16, MAX_KEYS);
        if max_keys != self.max_keys {
            (self.max_keys, self.door) = (max_keys, None);
        }
        if self.len() > self.max_keys {
            self.make_room();
        }
    }

    /// Windows that count, when the older ones are forgotten as their keys are.
    pub fn counted(&self) -> f64 {
        (self.half_life_windows / std::f64::consts::LN_2).min(self.windows as f64)
    }

    fn make_room(&mut self) {
        let most = (self.max_keys as f64 * KEPT) as usize;
        let kept = self.learnt.compact(most);
        self.forgotten += u64::from(self.keys.len()).saturating_sub(kept.len() as u64);
        let mut keys = KeyTable::new();
        for old in kept {
            if let Some(key) = self.keys.key(old) {
                // Fewer than before: there is a number for each.
                let _ = keys.number(key);
            }
        }
        self.keys = keys;
    }

    /// Windows so far.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Keys of a window, in the mean.
    pub fn mean_window(&self) -> f64 {
        self.uses as f64 / self.windows.max(1) as f64
    }

    /// All keys known now.
    pub fn keys(&self) -> &[K] {
        self.keys.keys()
    }

    /// Keys known now.
    pub fn len(&self) -> usize {
        self.keys.len() as usize
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys forgotten for want of room so far.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// What is known as a graph, and the key's number behind each of its nodes.
    fn graph(&self) -> (WeightedGraph, Vec<u32>) {
        self.learnt.graph()
    }
}
