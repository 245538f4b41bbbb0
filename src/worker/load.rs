//! Readings of the statistics counters: what every slot's accesses cost, and which shards are overloaded.

use super::costs::Book;
use super::publish::Publisher;
use crate::catalog::citus;
use crate::catalog::colocation::{self, ShardRow};
use crate::catalog::heat::{self, Previous, Reading};
use crate::catalog::layout;
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::route;
use foreshard_core::heat::{Counters, Rates, decayed_heat, rates};
use foreshard_core::unit_cost::Load;
use std::collections::{BTreeMap, HashMap};

/// Readings of nodes of Citus that are older than so many buckets say nothing about now.
const FRESH_BUCKETS: f64 = 3.0;

/// Accesses: scans and written rows.
fn accesses_per_s(rates: &Rates) -> f64 {
    rates.scans_per_s + rates.writes_per_s
}

/// The partitions' counters as last read, to tell the tables of a slot apart.
#[derive(Default)]
pub struct Reader {
    partitions: HashMap<(i64, i32), Counters>,
    /// When the nodes of Citus were read that a slot's last reading came from.
    seen_s: HashMap<i64, f64>,
    routed: HashMap<u32, Routed>,
    read_at_s: f64,
}

/// Reads of a partition that its copies served, which its own counters lack: (scans, rows).
#[derive(Clone, Copy, Default)]
struct Routed {
    /// As last seen of the present route.
    seen: (u64, u64),
    /// Of all routes since this keeper began.
    total: (u64, u64),
}

/// A slot at a reading.
struct Slot<'a> {
    slot_id: i64,
    shard_id: i32,
    partitions: &'a [Reading],
    counters: Counters,
}

impl Reader {
    /// Reads all counters, stores what they say and tells it to `publisher`.
    pub fn observe(&mut self, publisher: &mut Publisher, costs: &Book, now_s: f64) -> PgResult<()> {
        colocation::reconcile()?;
        layout::follow()?;
        let previous = heat::previous()?;
        let mut readings = heat::read_counters()?;
        readings.iter_mut().for_each(|reading| self.add_routed(reading));
        readings.extend(self.of_citus()?);
        let mut loads: BTreeMap<i32, f64> = BTreeMap::new();
        let mut observed = Vec::new();
        let mut shard_of: HashMap<i64, i32> = HashMap::new();
        for partitions in readings.chunk_by(|a, b| a.slot_id == b.slot_id) {
            let Some(first) = partitions.first() else { continue };
            let counters = together(partitions);
            let slot = Slot { slot_id: first.slot_id, shard_id: first.shard_id, partitions, counters };
            let seen = self.judge(&slot, previous.get(&slot.slot_id), publisher, costs, now_s);
            // Heat, not the last reading: backends flush their counters at their own pace, so that a single
            // reading jumps.
            *loads.entry(slot.shard_id).or_default() += seen.heat;
            shard_of.insert(slot.slot_id, slot.shard_id);
            observed.push(seen);
        }
        self.partitions = readings.iter().map(|r| (r.count, r.counters)).collect();
        self.read_at_s = now_s;
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

    /// What nodes of Citus counted, of slots that were read since the last time: of others nothing is known.
    fn of_citus(&mut self) -> PgResult<Vec<Reading>> {
        let mut all = citus::counters::readings(f64::from(guc::BUCKET.get()) * FRESH_BUCKETS)?;
        let mut now: HashMap<i64, f64> = HashMap::new();
        for reading in &all {
            let read_s = reading.read_at_s.unwrap_or_default();
            now.entry(reading.slot_id).and_modify(|least| *least = read_s.min(*least)).or_insert(read_s);
        }
        all.retain(|reading| now.get(&reading.slot_id) != self.seen_s.get(&reading.slot_id));
        self.seen_s = now;
        Ok(all)
    }

    fn add_routed(&mut self, reading: &mut Reading) {
        let Some(relation) = reading.relation else { return };
        let now = route::routed(relation);
        if now.is_none() && !self.routed.contains_key(&relation) {
            return;
        }
        let now = now.unwrap_or_default();
        let routed = self.routed.entry(relation).or_default();
        // A new route counts from 0.
        let since = |now: u64, seen: u64| if now >= seen { now - seen } else { now };
        routed.total.0 += since(now.0, routed.seen.0);
        routed.total.1 += since(now.1, routed.seen.1);
        routed.seen = now;
        reading.counters.scans += routed.total.0;
        reading.counters.rows_read += routed.total.1;
    }

    /// What a slot's counters say, given the reading before.
    fn judge(
        &self,
        slot: &Slot,
        before: Option<&Previous>,
        publisher: &mut Publisher,
        costs: &Book,
        now_s: f64,
    ) -> heat::Observed {
        let half_life_s = f64::from(guc::HEAT_HALF_LIFE.get());
        let elapsed_s = before.map_or(0.0, |b| now_s - b.observed_at_s);
        let parts = before.and_then(|b| self.rates(slot, b, elapsed_s));
        let rates = parts.as_ref().map(|parts| rates_together(parts));
        let load = parts.as_ref().map(|parts| {
            let loads = parts.iter().map(|(table, r)| costs.load((*table, slot.slot_id), r, elapsed_s));
            loads_together(&loads.collect::<Vec<_>>())
        });
        let decay = |old: f64, rate: Option<f64>| {
            rate.map_or(old, |rate| decayed_heat(old, rate, elapsed_s, half_life_s))
        };
        let accesses = rates.as_ref().map(accesses_per_s);
        let heat = decay(before.map_or(0.0, |b| b.heat), load.map(|l| l.cost_units_per_s));
        publisher.note(slot.slot_id, heat, accesses, elapsed_s);
        heat::Observed {
            slot_id: slot.slot_id,
            counters: slot.counters,
            heat,
            access_score: decay(before.map_or(0.0, |b| b.access_score), accesses),
            rates,
            load,
            hot_buckets: before.map_or(0, |b| b.hot_buckets),
        }
    }

    /// The rates of every table of a slot since the reading before; None when a counter went backwards. A
    /// keeper that has not seen the tables apart yet takes all for accesses to the busiest one.
    fn rates(&self, slot: &Slot, before: &Previous, elapsed_s: f64) -> Option<Vec<(u32, Rates)>> {
        if (self.read_at_s - before.observed_at_s).abs() > 0.01 {
            let busiest = slot.partitions.iter().max_by_key(|p| p.counters.scans + p.counters.inserted)?;
            return Some(vec![(busiest.table, rates(&before.counters, &slot.counters, elapsed_s)?)]);
        }
        let of_table = |p: &Reading| match self.partitions.get(&p.count) {
            Some(before) => Some((p.table, rates(before, &p.counters, elapsed_s)?)),
            // It has just come to this node: what it counted elsewhere is not known here.
            None if p.relation.is_none() => None,
            // A table that has just come to the group: its rows are no load.
            None => Some((p.table, Rates::default())),
        };
        slot.partitions.iter().map(of_table).collect()
    }
}

/// The counters of all tables of a slot.
fn together(partitions: &[Reading]) -> Counters {
    let sum =
        |of: fn(&Counters) -> u64| partitions.iter().map(|p| of(&p.counters)).fold(0, u64::saturating_add);
    Counters {
        scans: sum(|c| c.scans),
        rows_read: sum(|c| c.rows_read),
        inserted: sum(|c| c.inserted),
        updated: sum(|c| c.updated),
        deleted: sum(|c| c.deleted),
        blocks_read: sum(|c| c.blocks_read),
        blocks_hit: sum(|c| c.blocks_hit),
    }
}

/// The rates of all tables of a slot.
fn rates_together(parts: &[(u32, Rates)]) -> Rates {
    let sum = |of: fn(&Rates) -> f64| parts.iter().map(|(_, r)| of(r)).sum();
    Rates {
        scans_per_s: sum(|r| r.scans_per_s),
        rows_read_per_s: sum(|r| r.rows_read_per_s),
        writes_per_s: sum(|r| r.writes_per_s),
        blocks_read_per_s: sum(|r| r.blocks_read_per_s),
        blocks_hit_per_s: sum(|r| r.blocks_hit_per_s),
    }
}

/// Loads together; a part that is unknown of all is unknown.
fn loads_together(parts: &[Load]) -> Load {
    let known = |of: fn(&Load) -> Option<f64>| parts.iter().filter_map(of).reduce(|a, b| a + b);
    Load {
        cpu_ms_per_s: parts.iter().map(|l| l.cpu_ms_per_s).sum(),
        wal_bytes_per_s: known(|l| l.wal_bytes_per_s),
        trigger_cost_per_s: known(|l| l.trigger_cost_per_s),
        cost_units_per_s: parts.iter().map(|l| l.cost_units_per_s).sum(),
    }
}

/// Shards whose utilisation exceeds the mean by the upper threshold, or that are being drained. Nodes of Citus are compared
/// with one another.
fn overloaded(loads: &BTreeMap<i32, f64>) -> PgResult<Vec<i32>> {
    let (citus, own): (Vec<_>, Vec<_>) = colocation::shards()?.into_iter().partition(|shard| shard.is_citus);
    let load = |shard: &ShardRow| loads.get(&shard.shard_id).copied().unwrap_or(0.0);
    let mut found = Vec::new();
    for shards in [own, citus] {
        let capacity: f64 = shards.iter().filter(|s| !s.draining && s.takes).map(|s| s.capacity).sum();
        let mean = shards.iter().map(load).sum::<f64>() / capacity.max(f64::MIN_POSITIVE);
        let limit = mean * (1.0 + guc::IMBALANCE_HIGH.get());
        found
            .extend(shards.iter().filter(|s| s.draining || load(s) / s.capacity > limit).map(|s| s.shard_id));
    }
    Ok(found)
}
