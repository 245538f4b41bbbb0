//! What the keeper learns from samples: trigger costs, hot keys, co-access and dependencies. Samples are
//! read every tick, what follows from them is stored every bucket.

use super::publish::Publisher;
use super::triggers::Triggers;
use crate::catalog::{coaccess, dependency, hot_key, statistics};
use crate::observe::drain::Cursors;
use crate::observe::samples::{DependencySample, KeySample};
use crate::pg::bgworker::{self, WorkResult};
use crate::pg::report::PgResult;
use crate::pg::{guc, keytext, spi};
use foreshard_core::affinity::CoAccess;
use foreshard_core::sketch::HotKeys;
use std::collections::HashMap;

/// Keys stored per group.
const TOP_KEYS: usize = 100;
/// Pairs of slots stored per database.
const TOP_PAIRS: usize = 1000;
/// Edges that may wait to be stored.
const MAX_EDGES: usize = 4096;

/// A key as it was sampled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SampledKey {
    relation: u32,
    hash: u64,
    truncated: bool,
    bytes: Vec<u8>,
}

impl From<KeySample> for SampledKey {
    fn from(sample: KeySample) -> Self {
        Self {
            relation: sample.relation,
            hash: sample.hash,
            truncated: sample.truncated,
            bytes: sample.bytes,
        }
    }
}
