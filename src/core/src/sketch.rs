//! Which keys are hot: decayed heavy hitters in bounded memory, with bounds on their error.
//!
//! Counts are the frequent-items sketch of Apache DataSketches (Anderson et al. 2017, "A
//! High-Performance Algorithm for Identifying Frequent Items in Data Streams"), decay is Cormode et
//! al. 2009, "Forward Decay": an access at `t` adds `weight · 2^((t - start) / half-life)` to the
//! sketch of its epoch, and a reader divides by the same power of two of his own time. So every access
//! decays exactly, and the sketch's error is a share of the *decayed* total, not of all there ever
//! was. An epoch lasts ten half-lives, so that the numbers fit 64 bits; there are at most two.

use std::fmt;
use std::hash::Hash;

use datasketches::frequencies::{ErrorType, FrequentItemsSketch};

/// The longest key, in bytes; see [`Key::new`].
pub const MAX_KEY_BYTES: usize = 128;

/// The most keys a sketch can be made for.
pub const MAX_KEYS: usize = 1 << 19;

/// The largest weight of one access; larger ones are cut.
pub const MAX_WEIGHT: u64 = 1 << 20;

/// Half-lives per epoch. When an epoch is forgotten, 2⁻¹⁰ of its weight is left at most.
const EPOCH_HALF_LIVES: f64 = 10.0;

/// Fixed-point scale of a count: rounding down loses less than 1 / SCALE of any access.
const SCALE: f64 = 1_024.0;

/// A sketch takes no more than this in all. With epochs, scale and weights as above, only millions of
/// the heaviest accesses per second and half-lives of days could reach it.
const MAX_TOTAL: u64 = u64::MAX / 4;

/// A key of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    table: u32,
    bytes: Vec<u8>,
}

impl Key {
    /// The key `bytes` of the table with OID `table`; `None` when it is longer than
    /// [`MAX_KEY_BYTES`].
    pub fn new(table: u32, bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX_KEY_BYTES).then(|| Self { table, bytes: bytes.to_vec() })
    }

    /// OID of the table.
    pub fn table(&self) -> u32 {
        self.table
    }

    /// The key itself.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A hot key, as of the moment asked about. Counts are decayed sums of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct HotKey<K> {
    /// The key.
    pub key: K,
    /// Best guess at its decayed count, `lower <= estimate <= upper`.
    pub estimate: f64,
    /// Its decayed count is at least this.
    pub lower: f64,
    /// Its decayed count is at most this.
    pub upper: f64,
    /// Weighted accesses per second: a steady rate is its own score. With the sampling interval as
    /// weight, accesses per second.
    pub access_score: f64,
}

/// Why two collections cannot be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeError {
    /// Their half-lives differ.
    HalfLife,
    /// The sum of their weights does not fit the counters.
    TooHeavy,
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HalfLife => write!(f, "hot keys with different half-lives cannot be merged"),
            Self::TooHeavy => write!(f, "the merged hot keys would overflow their counters"),
        }
    }
}

impl std::error::Error for MergeError {}

/// One epoch: counts in units of 1 / SCALE as of its start.
#[derive(Clone, Debug)]
struct Epoch<K> {
    index: i64,
    sketch: FrequentItemsSketch<K>,
}

/// Decayed counts of the hottest keys.
///
/// A sketch has the next power of two of 4/3 of the keys as places; the bounds of a key are at most
/// 3.5 / places of the decayed total of an epoch apart, and usually much nearer. Memory: two epochs of
/// `places · (size_of::<Option<K>>() + 10)` bytes plus what the keys own.
///
/// How many keys: on the recorded trace of the demo (76 349 keys, the 50th with 0.1 % of the accesses)
/// 4096 keys find the top 50 as well as counting all would, 1024 miss a fifth of them.
#[derive(Clone, Debug)]
pub struct HotKeys<K> {
    half_life_s: f64,
    places: usize,
    current: Option<Epoch<K>>,
    older: Option<Epoch<K>>,
    /// Time of the newest access.
    last_s: f64,
    /// What any one key may have had in forgotten epochs, decayed to `forgotten_s`.
    forgotten: f64,
    forgotten_s: f64,
    ignored: u64,
}

impl<K: Hash + Eq + Clone + Ord> HotKeys<K> {
    /// An empty collection that forgets half of the past every `half_life_s` seconds (at least 1 ms)
    /// and tells at least `max_keys` keys apart (8 to [`MAX_KEYS`]).
    pub fn new(half_life_s: f64, max_keys: usize) -> Self {
        Self {
            half_life_s: half_life_s.clamp(1e-3, 1e12).max(1e-3),
            // The sketch fills three quarters of its places.
            places: (max_keys.clamp(8, MAX_KEYS) * 4).div_ceil(3).next_power_of_two(),
            current: None,
            older: None,
            last_s: f64::NEG_INFINITY,
            forgotten: 0.0,
            forgotten_s: 0.0,
            ignored: 0,
        }
    }

    /// Counts an access to `key` at `now_s`, as `weight` accesses (the sampling interval, say; at
    /// most [`MAX_WEIGHT`]).
    ///
    /// Amortised constant time. Accesses may come out of order within an epoch of ten half-lives;
    /// older ones, and times that are not finite, are only counted in [`Self::ignored`].
    pub fn add(&mut self, key: &K, weight: u64, now_s: f64) {
        if !self.try_add(key, weight.min(MAX_WEIGHT), now_s) {
            self.ignored = self.ignored.saturating_add(1);
        }
    }

    /// Accesses that were not counted.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// The `k` hottest keys, hottest first; equally hot ones in the order of the keys.
    ///
    /// A `now_s` before the newest access means that access's time.
    pub fn top(&self, k: usize, now_s: f64) -> Vec<HotKey<K>> {
        let now_s = self.reading_time(now_s);
        let mut hot: Vec<HotKey<K>> = Vec::new();
        for epoch in [&self.current, &self.older].into_iter().flatten() {
            for row in epoch.sketch.frequent_items_with_threshold(ErrorType::NoFalseNegatives, 0) {
                let current = self.current.as_ref().filter(|current| current.index != epoch.index);
                let seen = current.is_some_and(|current| current.sketch.lower_bound(row.item()) > 0);
                if !seen {
                    hot.push(self.hot_key(row.item(), now_s));
                }
            }
        }
        hot.sort_by(|a, b| b.estimate.total_cmp(&a.estimate).then_with(|| a.key.cmp(&b.key)));
        hot.truncate(k);
        hot
    }

    /// Count and bounds of one key, hot or not.
    pub fn get(&self, key: &K, now_s: f64) -> HotKey<K> {
        self.hot_key(key, self.reading_time(now_s))
    }

    /// Adds what `other` counted.
    ///
    /// # Errors
    /// [`MergeError`] when the half-lives differ or the counters would overflow; nothing changes then.
    pub fn merge(&mut self, other: &Self) -> Result<(), MergeError> {
        if self.half_life_s != other.half_life_s {
            return Err(MergeError::HalfLife);
        }
        let weight = |keys: &Self| {
            let both = [&keys.current, &keys.older].into_iter().flatten();
            both.fold(0_u64, |sum, epoch| sum.saturating_add(epoch.sketch.total_weight()))
        };
        if weight(self).saturating_add(weight(other)) > MAX_TOTAL {
            return Err(MergeError::TooHeavy);
        }
        let last_s = self.last_s.max(other.last_s);
        for epoch in [&other.current, &other.older].into_iter().flatten() {
            self.turn_to(epoch.index, last_s);
            if self.older.is_none() && self.is_older(epoch.index) {
                self.older = self.new_epoch(epoch.index);
            }
            if let Some(own) = self.epoch_mut(epoch.index) {
                own.sketch.merge(&epoch.sketch);
            } else {
                self.forget(epoch, last_s);
            }
        }
        self.last_s = last_s;
        if other.forgotten > 0.0 {
            let theirs = other.forgotten * self.decay(other.forgotten_s, last_s);
            self.forgotten = self.forgotten * self.decay(self.forgotten_s, last_s) + theirs;
            self.forgotten_s = last_s;
        }
        self.ignored = self.ignored.saturating_add(other.ignored);
        Ok(())
    }

    fn try_add(&mut self, key: &K, weight: u64, now_s: f64) -> bool {
        let index = now_s / (EPOCH_HALF_LIVES * self.half_life_s);
        // Beyond this, neighbouring epochs are not told apart.
        if !index.is_finite() || index.abs() > 1e12 {
            return false;
        }
        let index = index.floor() as i64;
        self.turn_to(index, now_s);
        let start_s = self.start_s(index);
        if self.is_older(index) && self.older.is_none() {
            self.older = self.new_epoch(index);
        }
        let growth = ((now_s - start_s) / self.half_life_s).clamp(0.0, EPOCH_HALF_LIVES).exp2();
        let scaled = (weight as f64 * SCALE * growth) as u64;
        let Some(epoch) = self.epoch_mut(index) else {
            return false;
        };
        if epoch.sketch.total_weight() > MAX_TOTAL - scaled {
            return false;
        }
        epoch.sketch.update_with_count_ref(key, scaled);
        self.last_s = self.last_s.max(now_s);
        true
    }

    fn new_epoch(&self, index: i64) -> Option<Epoch<K>> {
        // The number of places is a power of two in its range, so this cannot fail.
        FrequentItemsSketch::new(self.places).ok().map(|sketch| Epoch { index, sketch })
    }

    fn epoch_mut(&mut self, index: i64) -> Option<&mut Epoch<K>> {
        [&mut self.current, &mut self.older].into_iter().flatten().find(|epoch| epoch.index == index)
    }

    /// Whether `index` is the epoch before the current one.
    fn is_older(&self, index: i64) -> bool {
        self.current.as_ref().is_some_and(|current| current.index - 1 == index)
    }

    /// Makes `index` the current epoch, unless a later one is.
    fn turn_to(&mut self, index: i64, now_s: f64) {
        if self.current.as_ref().is_some_and(|current| current.index >= index) {
            return;
        }
        let last = self.current.take();
        for epoch in [self.older.take(), last].into_iter().flatten() {
            if epoch.index + 1 == index {
                self.older = Some(epoch);
            } else {
                self.forget(&epoch, now_s);
            }
        }
        self.current = self.new_epoch(index);
    }

    /// Remembers of an epoch only how much any one key may have had.
    fn forget(&mut self, epoch: &Epoch<K>, now_s: f64) {
        let rows = epoch.sketch.frequent_items(ErrorType::NoFalseNegatives);
        let most = rows.first().map_or(0, |row| row.upper_bound()).max(epoch.sketch.maximum_error());
        let most = most as f64 * self.unit(epoch.index, now_s) * (1.0 + 1.0 / SCALE);
        self.forgotten = self.forgotten * self.decay(self.forgotten_s, now_s) + most;
        self.forgotten_s = now_s;
    }

    fn hot_key(&self, key: &K, now_s: f64) -> HotKey<K> {
        let (mut estimate, mut lower) = (0.0, 0.0);
        let mut upper = self.forgotten * self.decay(self.forgotten_s, now_s);
        for epoch in [&self.current, &self.older].into_iter().flatten() {
            let unit = self.unit(epoch.index, now_s);
            estimate += epoch.sketch.estimate(key) as f64 * unit;
            lower += epoch.sketch.lower_bound(key) as f64 * unit;
            upper += epoch.sketch.upper_bound(key) as f64 * unit * (1.0 + 1.0 / SCALE);
        }
        let access_score = estimate * std::f64::consts::LN_2 / self.half_life_s;
        HotKey { key: key.clone(), estimate, lower, upper, access_score }
    }

    fn reading_time(&self, now_s: f64) -> f64 {
        if now_s.is_finite() { now_s.max(self.last_s) } else { self.last_s }
    }

    fn start_s(&self, index: i64) -> f64 {
        index as f64 * EPOCH_HALF_LIVES * self.half_life_s
    }

    /// What one unit of a count of epoch `index` is worth at `now_s`.
    fn unit(&self, index: i64, now_s: f64) -> f64 {
        self.decay(self.start_s(index), now_s) / SCALE
    }

    fn decay(&self, from_s: f64, now_s: f64) -> f64 {
        (-(now_s - from_s).max(0.0) / self.half_life_s).exp2()
    }
}
