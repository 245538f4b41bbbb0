//! Sampled keys with their slots and hashes: whether a cut would divide a slot's load.

use super::learn::SampledKey;
use super::publish::Publisher;
use crate::catalog::slot_key::KeyLoad;
use crate::pg::keytext;
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::PgResult;
use foreshard_core::sketch::HotKey;
use pgrx::pg_sys;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

/// After so many half-lives of heat what was accessed before weighs an eighth: then a front that moves on has nearly all
/// of the load.
const FRONT_HALF_LIVES: f64 = 3.0;

/// How far keys that are numbers have come: whether the load is on those that are new.
#[derive(Debug, Default)]
pub struct Front {
    most: Option<i64>,
    /// The most at earlier times.
    lines: VecDeque<(f64, i64)>,
}

impl Front {
    /// A key was sampled.
    pub fn note(&mut self, key_type: pg_sys::Oid, bytes: &[u8]) {
        self.most = self.most.max(number(key_type, bytes));
    }

    /// What was the greatest key a while ago; None: nobody had looked yet, or keys have no order.
    pub fn line(&mut self, half_life_s: f64, now_s: f64) -> Option<i64> {
        let until_s = now_s - half_life_s * FRONT_HALF_LIVES;
        let is_due = self.lines.back().is_none_or(|(at_s, _)| now_s - at_s >= half_life_s / 8.0);
        self.lines.extend(self.most.filter(|_| is_due).map(|most| (now_s, most)));
        while self.lines.get(1).is_some_and(|(at_s, _)| *at_s <= until_s) {
            self.lines.pop_front();
        }
        self.lines.front().filter(|(at_s, _)| *at_s <= until_s).map(|(_, most)| *most)
    }
}

/// A key as a number, if it is one that sequences make.
fn number(key_type: pg_sys::Oid, bytes: &[u8]) -> Option<i64> {
    let is_number = matches!(key_type, pg_sys::INT8OID | pg_sys::INT4OID | pg_sys::INT2OID);
    let word: [u8; 8] = bytes.try_into().ok().filter(|_| is_number)?;
    let word = i64::from_ne_bytes(word);
    // What a shorter number leaves of its word is not said.
    Some(match key_type {
        pg_sys::INT4OID => i64::from(word as i32),
        pg_sys::INT2OID => i64::from(word as i16),
        _ => word,
    })
}

/// The loads of keys; of keys that were not sampled whole, none. `line`: keys beyond it are new.
pub fn of(keys: &[HotKey<SampledKey>], line: Option<i64>, publisher: &Publisher) -> PgResult<Vec<KeyLoad>> {
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
        let is_new = line.zip(number(relation.key_type, &hot.key.bytes)).map(|(line, key)| key > line);
        loads.push(KeyLoad { slot_id, hash, accesses_per_s: hot.access_score, is_new });
    }
    Ok(loads)
}
