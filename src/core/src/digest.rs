//! Order-independent digest of a table, by key bucket.
//!
//! Two copies are equal when every bucket has the same row count and the same wrapping sum of mixed
//! row hashes; only buckets that differ need to be scanned again. It finds accidents (a lost,
//! stale, doubled or torn row), with odds of about 2^-128 a bucket; it is not made against an
//! adversary who crafts rows.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Number of key buckets of a [`TableDigest`].
pub const BUCKETS: usize = 256;

/// 64-bit hash of a key's bytes (xxh3): tells long keys with one beginning apart.
pub fn key_hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Rows up to so many bytes are hashed in one go: the state of a stream is larger than most rows.
const AT_ONCE_BYTES: usize = 8 << 10;

/// xxh3-128 hash of one row (or one key), attribute by attribute.
///
/// It sees only bytes: feed a length or a NULL mark before each attribute, or (`ab`, `c`) and
/// (`a`, `bc`) are one row.
#[derive(Clone, Default)]
pub struct RowHasher {
    /// The row so far, while it is short.
    short: Vec<u8>,
    /// The whole row so far, once it is longer.
    long: Option<Box<Xxh3>>,
}

impl RowHasher {
    /// An empty hasher.
    pub fn new() -> Self {
        Self { short: Vec::with_capacity(AT_ONCE_BYTES), long: None }
    }

    /// Forgets everything, so that one hasher serves all rows of a scan.
    pub fn reset(&mut self) {
        self.short.clear();
        self.long = None;
    }

    /// Appends bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        if let Some(long) = &mut self.long {
            long.update(bytes);
        } else if self.short.len() + bytes.len() <= AT_ONCE_BYTES {
            self.short.extend_from_slice(bytes);
        } else {
            let mut long = Box::new(Xxh3::new());
            long.update(&self.short);
            long.update(bytes);
            self.long = Some(long);
        }
    }

    /// The hash of all bytes since the last reset; the hasher is unchanged.
    pub fn finish(&self) -> u128 {
        self.long.as_ref().map_or_else(|| xxh3_128(&self.short), |long| long.digest128())
    }
}

impl std::fmt::Debug for RowHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowHasher({:032x})", self.finish())
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    rows: u64,
    sum: u128,
}

/// Digest of a set of rows: per key bucket a count and a wrapping sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableDigest {
    buckets: Vec<Bucket>,
}

impl Default for TableDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl TableDigest {
    /// The digest of no rows.
    pub fn new() -> Self {
        Self { buckets: vec![Bucket::default(); BUCKETS] }
    }

    /// The bucket of a key, `0..BUCKETS`.
    pub fn bucket_of(key_hash: u128) -> usize {
        (key_hash % BUCKETS as u128) as usize
    }

    /// Adds a row; the order of additions does not matter, repetitions do.
    pub fn add_row(&mut self, key_hash: u128, row_hash: u128) {
        if let Some(bucket) = self.buckets.get_mut(Self::bucket_of(key_hash)) {
            // The odd factor is a bijection and ties the row to its key: contents swapped between
            // two keys of a bucket do not cancel out.
            bucket.sum = bucket.sum.wrapping_add(row_hash.wrapping_mul(key_hash | 1));
            bucket.rows = bucket.rows.wrapping_add(1);
        }
    }

    /// Adds all rows of another digest, for scans done in chunks.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            mine.sum = mine.sum.wrapping_add(theirs.sum);
            mine.rows = mine.rows.wrapping_add(theirs.rows);
        }
    }

    /// Number of rows added.
    pub fn rows(&self) -> u64 {
        self.buckets.iter().fold(0, |sum: u64, bucket| sum.wrapping_add(bucket.rows))
    }

    /// Number of rows of a bucket.
    pub fn rows_in(&self, bucket: usize) -> u64 {
        self.buckets.get(bucket).map_or(0, |bucket| bucket.rows)
    }

    /// The buckets in which the two digests differ, ascending; empty when the tables are equal.
    pub fn differing_buckets(&self, other: &Self) -> Vec<usize> {
        let pairs = self.buckets.iter().zip(&other.buckets).enumerate();
        pairs.filter(|(_, (mine, theirs))| mine != theirs).map(|(index, _)| index).collect()
    }

    /// One hash of the whole digest, to be shown or stored.
    pub fn combined(&self) -> u128 {
        let mut state = Xxh3::new();
        for bucket in &self.buckets {
            state.update(&bucket.rows.to_le_bytes());
            state.update(&bucket.sum.to_le_bytes());
        }
        state.digest128()
    }
}

/// How many things are looked at together, each of which notes `each_bytes` for every one of `blocks`: those whose notes all
/// have room for the whole, so that each is read once; at least one, which then has all the room.
pub fn together(room_bytes: usize, each_bytes: usize, blocks: u64) -> usize {
    let whole = (each_bytes as u128 * u128::from(blocks)).max(1);
    usize::try_from(room_bytes as u128 / whole).unwrap_or(usize::MAX).max(1)
}
