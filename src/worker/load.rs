//! One reading of the statistics counters: what every slot's accesses cost, and which shards are
//! overloaded.

use super::publish::Publisher;
use super::costs::Book;
use crate::catalog::{colocation, heat};
use crate::pg::guc;
use crate::pg::report::PgResult;
use foreshard_core::heat::{Rates, decayed_heat, rates};
use std::collections::{BTreeMap, HashMap};

/// Accesses: scans and written rows.
fn accesses_per_s(rates: &Rates) -> f64 {
    rates.scans_per_s + rates.writes_per_s
}

/// Reads all counters, stores what they say and tells it to `publisher`.
pub fn observe(publisher: &mut Publisher, costs: &Book, now_s: f64) -> PgResult<()> {
    colocation::reconcile()?;
    let previous = heat::previous()?;
    let half_life_s = f64::from(guc::HEAT_HALF_LIFE.get());
    let mut loads: BTreeMap<i32, f64> = BTreeMap::new();
    let mut observed = Vec::new();
    let mut shard_of: HashMap<i64, i32> = HashMap::new();
    for reading in heat::read_counters()? {
        let before = previous.get(&reading.slot_id);
        let elapsed_s = before.map_or(0.0, |b| now_s - b.observed_at_s);
        let rates = before.and_then(|b| rates(&b.counters, &reading.counters, elapsed_s));
        let load = rates.as_ref().map(|r| costs.load(reading.slot_id, r));
        let decay = |old: f64, rate: Option<f64>| {
            rate.map_or(old, |rate| decayed_heat(old, rate, elapsed_s, half_life_s))
        };
        let accesses = rates.as_ref().map(accesses_per_s);
        let heat = decay(before.map_or(0.0, |b| b.heat), load.map(|l| l.cost_units_per_s));
        let access_score = decay(before.map_or(0.0, |b| b.access_score), accesses);
        publisher.note(reading.slot_id, heat, accesses, elapsed_s);
        // Heat, not the last reading: backends flush their counters at their own pace, so that a single
        // reading jumps.
        *loads.entry(reading.shard_id).or_default() += heat;
        shard_of.insert(reading.slot_id, reading.shard_id);
        observed.push(heat::Observed {
            slot_id: reading.slot_id,
            counters: reading.counters,
            heat,
            access_score,
            rates,
            load,
            hot_buckets: before.map_or(0, |b| b.hot_buckets),
        });
    }
    if observed.is_empty() {
        return Ok(());
    }
    let hot = overloaded(&loads)?;
    for o in &mut observed {
        let is_hot = shard_of.get(&o.slot_id).is_some_and(|s| hot.contains(s));
        o.hot_buckets = if is_hot { o.hot_buckets.saturating_add(1) } else { 0 };
    }
    heat::store(&observed, now_s, guc::BUCKET.get())?;
    heat::roll_up(now_s, guc::BUCKET.get())
}

/// Shards whose utilisation exceeds the mean by the upper threshold, or that are being drained.
fn overloaded(loads: &BTreeMap<i32, f64>) -> PgResult<Vec<i32>> {
    let shards = colocation::shards()?;
    let capacity: f64 = shards.iter().filter(|s| !s.draining).map(|s| s.capacity).sum();
    let mean = loads.values().sum::<f64>() / capacity.max(f64::MIN_POSITIVE);
    let limit = mean * (1.0 + guc::IMBALANCE_HIGH.get());
    Ok(shards
        .iter()
        .filter(|s| s.draining || loads.get(&s.shard_id).copied().unwrap_or(0.0) / s.capacity > limit)
        .map(|s| s.shard_id)
        .collect())
}
