//! Sampled keys with their slots and hashes: whether a cut would divide a slot's load.

use super::learn::SampledKey;
use super::publish::Publisher;
use crate::catalog::slot_key::KeyLoad;
use crate::pg::keytext;
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::PgResult;
use foreshard_core::sketch::HotKey;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The loads of keys; of keys that were not sampled whole, none.
pub fn of(keys: &[HotKey<SampledKey>], publisher: &Publisher) -> PgResult<Vec<KeyLoad>> {
    let mut routers: HashMap<u32, Router> = HashMap::new();
    let mut loads = Vec::new();
    for hot in keys.iter().filter(|hot| !hot.key.truncated) {
        let Some(relation) = publisher.relation(hot.key.relation) else { continue };
        let router = match routers.entry(relation.table) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Router::of(relation.table.into(), Lifetime::Statement)?),
        };
        let Some((leaf, hash)) = keytext::place(router, relation.key_type, &hot.key.bytes)? else { continue };
        let leaf = publisher.relation(leaf.to_u32());
        let Some(slot_id) = leaf.and_then(|leaf| leaf.slot_id) else { continue };
        loads.push(KeyLoad { slot_id, hash, accesses_per_s: hot.access_score });
    }
    Ok(loads)
}
