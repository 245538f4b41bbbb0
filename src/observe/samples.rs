//! Samples as words of the rings and back.

use crate::pg::region::{DEPENDENCY_WORDS, KEY_WORDS, TRANSACTION_WORDS, TRIGGER_WORDS};
use foreshard_core::shared::KEY_BYTES;

/// Features of a trigger call: tuple bytes, non-null attributes, changed attributes, statement rows.
pub const FEATURES: usize = 4;
/// Outcomes of a trigger call, in the order of `foreshard_core::profile::Resource`: CPU µs, elapsed µs,
/// memory bytes, blocks hit, read, dirtied, WAL bytes, temporary blocks.
pub const OUTCOMES: usize = 8;
/// Segments of one transaction that are remembered.
pub const MAX_SEGMENTS: usize = TRANSACTION_WORDS - 2;

const UNSEEN: u64 = u64::MAX;

/// One measured trigger call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TriggerSample {
    /// `ProfileIdentity::key` of the trigger.
    pub profile: u64,
    /// Changes when the function is replaced.
    pub version: u64,
    /// See [`FEATURES`].
    pub features: [f64; FEATURES],
    /// See [`OUTCOMES`], nested triggers included; None: cannot be seen for this trigger.
    pub outcomes: [Option<f64>; OUTCOMES],
}

/// One key that a sampled statement looked up or wrote.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySample {
    /// The partitioned table; the leaf partition for a truncated key.
    pub relation: u32,
    /// Accesses this sample stands for.
    pub weight: u32,
    /// The key's datum: by-value types as 8 bytes (native order), others as their payload without a
    /// varlena header.
    pub bytes: Vec<u8>,
    /// The key is longer than `bytes`, which is its beginning.
    pub truncated: bool,
    /// Hash of the whole key (xxh3 of the payload), so that long keys stay apart.
    pub hash: u64,
    /// The sampled transaction that used it, the same for all of its keys; 0: it was sampled because its slot is hot.
    pub window: u64,
}

/// The slots a sampled transaction touched.
#[derive(Clone, Debug, PartialEq)]
pub struct TransactionSample {
    /// Transactions this sample stands for.
    pub weight: u32,
    /// Distinct slots.
    pub slots: Vec<i64>,
}

/// A trigger function was seen to touch a relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DependencySample {
    /// Oid of the function.
    pub function: u32,
    /// Oid of the relation.
    pub relation: u32,
    /// It modified the relation (else it read it).
    pub writes: bool,
}

impl TriggerSample {
    /// As words, for `database`.
    pub fn encode(&self, database: u32) -> [u64; TRIGGER_WORDS] {
        let mut words = [0; TRIGGER_WORDS];
        words[0] = u64::from(database);
        words[1] = self.profile;
        words[2] = self.version;
        for (word, feature) in words[3..].iter_mut().zip(self.features) {
            *word = feature.to_bits();
        }
        for (word, outcome) in words[3 + FEATURES..].iter_mut().zip(self.outcomes) {
            *word = outcome.map_or(UNSEEN, f64::to_bits);
        }
        words
    }

    /// From words; None for another database.
    pub fn decode(words: &[u64; TRIGGER_WORDS], database: u32) -> Option<Self> {
        (words[0] == u64::from(database)).then(|| Self {
            profile: words[1],
            version: words[2],
            features: std::array::from_fn(|i| f64::from_bits(words[3 + i])),
            outcomes: std::array::from_fn(|i| match words[3 + FEATURES + i] {
                UNSEEN => None,
                bits => Some(f64::from_bits(bits)),
            }),
        })
    }
}

impl KeySample {
    /// As words, for `database`.
    pub fn encode(
        database: u32,
        relation: u32,
        weight: u32,
        key: &[u8],
        whole: usize,
        hash: u64,
        window: u64,
    ) -> [u64; KEY_WORDS] {
        let mut words = [0; KEY_WORDS];
        let kept = &key[..key.len().min(KEY_BYTES)];
        words[0] = u64::from(database) << 32 | u64::from(relation);
        words[1] = u64::from(weight) << 32 | u64::from(whole > kept.len()) << 16 | kept.len() as u64;
        words[2] = hash;
        words[3] = window;
        for (word, chunk) in words[4..].iter_mut().zip(kept.chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(bytes);
        }
        words
    }

    /// From words; None for another database.
    pub fn decode(words: &[u64; KEY_WORDS], database: u32) -> Option<Self> {
        if (words[0] >> 32) as u32 != database {
            return None;
        }
        let length = ((words[1] & 0xffff) as usize).min(KEY_BYTES);
        let bytes: Vec<u8> = words[4..].iter().flat_map(|w| w.to_le_bytes()).take(length).collect();
        Some(Self {
            relation: words[0] as u32,
            weight: (words[1] >> 32) as u32,
            bytes,
            truncated: words[1] >> 16 & 1 != 0,
            hash: words[2],
            window: words[3],
        })
    }
}

impl TransactionSample {
    /// As words, for `database`.
    pub fn encode(database: u32, weight: u32, slots: &[i64]) -> [u64; TRANSACTION_WORDS] {
        let mut words = [0; TRANSACTION_WORDS];
        let kept = &slots[..slots.len().min(MAX_SEGMENTS)];
        words[0] = u64::from(database) << 32 | kept.len() as u64;
        words[1] = u64::from(weight);
        for (word, slot) in words[2..].iter_mut().zip(kept) {
            *word = *slot as u64;
        }
        words
    }

    /// From words; None for another database.
    pub fn decode(words: &[u64; TRANSACTION_WORDS], database: u32) -> Option<Self> {
        ((words[0] >> 32) as u32 == database).then(|| Self {
            weight: words[1] as u32,
            slots: words[2..].iter().take((words[0] & 0xffff) as usize).map(|w| *w as i64).collect(),
        })
    }
}

impl DependencySample {
    /// As words, for `database`.
    pub fn encode(&self, database: u32) -> [u64; DEPENDENCY_WORDS] {
        [
            u64::from(database),
            u64::from(self.function),
            u64::from(self.relation) << 1 | u64::from(self.writes),
        ]
    }

    /// From words; None for another database.
    pub fn decode(words: &[u64; DEPENDENCY_WORDS], database: u32) -> Option<Self> {
        (words[0] == u64::from(database)).then_some(Self {
            function: words[1] as u32,
            relation: (words[2] >> 1) as u32,
            writes: words[2] & 1 != 0,
        })
    }
}
