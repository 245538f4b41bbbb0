//! Readings of the statistics counters: what every slot's accesses cost, and which shards are overloaded.

use super::costs::Book;
use super::late::Latecomers;
use super::publish::Publisher;
use crate::catalog::citus;
use crate::catalog::colocation::{self, ShardRow};
use crate::catalog::heat::{self, Previous, Reading};
use crate::catalog::late::{self, Late};
use crate::catalog::layout;
use crate::catalog::remote::statistics;
use crate::observe::drain::SegmentActivity;
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::route;
use foreshard_core::heat::{Counters, Rates, decayed_heat, rates};
use foreshard_core::late::late_heat;
use foreshard_core::placement::PlanOptions;
use foreshard_core::shared::SEGMENT_COUNTERS;
use foreshard_core::unit_cost::Load;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Readings of nodes of Citus that are older than so many buckets say nothing about now.
const FRESH_BUCKETS: f64 = 3.0;

/// Accesses: scans and written rows.
fn accesses_per_s(rates: &Rates) -> f64 {
    rates.scans_per_s + rates.writes_per_s
}

/// The partitions' counters as last read, to tell the tables of a slot apart.
#[derive(Default)]
pub struct Reader {
    partitions: HashMap<heat::Count, Counters>,
    /// What nodes had measured of their tables and shards then, and since when they had counted that.
    measured: HashMap<heat::Count, (i64, [u64; SEGMENT_COUNTERS])>,
    /// When the nodes were read that a slot's last reading came from, by their clocks.
    seen_s: HashMap<i64, f64>,
    routed: HashMap<u32, Routed>,
    read_at_s: f64,
    latecomers: Latecomers,
}

/// Reads of a partition that its copies served, which its own counters lack: (scans, rows).
#[derive(Clone, Copy, Default)]
struct Routed {
    /// As last seen of the present route.
    seen: (u64, u64),
    /// Of all routes since this keeper began.
    total: (u64, u64),
}

/// A table of a slot, over the last bucket.
struct Part {
    table: u32,
    rates: Rates,
    /// It is on a node of postgres_fdw.
    is_far: bool,
    /// What its counters brought late: more of each rate, for so long before the bucket, s.
    late: Option<(Rates, f64)>,
}

/// A slot at a reading.
struct Slot<'a> {
    slot_id: i64,
    shard_id: i32,
    partitions: &'a [Reading],
    counters: Counters,
    /// Over which time others counted, by their clock, s; inner None: that is not known; None: it is of this server.
    counted_s: Option<Option<f64>>,
}

/// What nodes have said since the last time.
struct News {
    /// Slots of which they have said nothing, with their shards.
    unread: BTreeSet<(i64, i32)>,
    /// Over which time the counters of the others counted, s; None: that is not known.
    counted_s: HashMap<i64, Option<f64>>,
}

impl Reader {
    /// How much it remembers of what, in words.
    pub fn remembers(&self) -> String {
        format!("{} readings, {} routed partitions", self.partitions.len(), self.routed.len())
    }

    /// Reads all counters, stores what they say and tells it to `publisher`.
    pub fn observe(&mut self, publisher: &mut Publisher, costs: &mut Book, now_s: f64) -> PgResult<()> {
        colocation::reconcile()?;
        layout::follow()?;
        publisher.begin_reading();
        self.learn_elsewhere(costs, now_s)?;
        let costs: &Book = costs;
        let previous = heat::previous()?;
        let bucket_s = f64::from(guc::BUCKET.get());
        let mut late: Vec<Late> = Vec::new();
        let mut readings = heat::read_counters()?;
        // After the counters were read: what ends in between will have reported at the next reading.
        self.latecomers.look(now_s, bucket_s)?;
        readings.iter_mut().for_each(|reading| self.add_routed(reading));
        let there: HashSet<u32> = readings.iter().filter_map(|reading| reading.relation).collect();
        self.routed.retain(|relation, _| there.contains(relation));
        readings.extend(citus::counters::readings(bucket_s * FRESH_BUCKETS)?);
        let unknown = citus::counters::unknown_shards(bucket_s * FRESH_BUCKETS)?;
        let counted = readings.iter().map(|r| (r.count, r.counters)).collect();
        let mut loads: BTreeMap<i32, f64> = BTreeMap::new();
        let news = self.take_unread(&mut readings);
        for (slot_id, shard_id) in &news.unread {
            *loads.entry(*shard_id).or_default() += previous.get(slot_id).map_or(0.0, |before| before.heat);
        }
        let mut observed = Vec::new();
        let mut shard_of: HashMap<i64, i32> = HashMap::new();
        for partitions in readings.chunk_by(|a, b| a.slot_id == b.slot_id) {
            let Some(first) = partitions.first() else { continue };
            let counters = together(partitions);
            let counted_s = news.counted_s.get(&first.slot_id).copied();
            let slot =
                Slot { slot_id: first.slot_id, shard_id: first.shard_id, partitions, counters, counted_s };
            let before = previous.get(&slot.slot_id);
            let seen = self.judge(&slot, before, (publisher, costs), &mut late, now_s);
            // Heat, not the last reading: backends flush their counters at their own pace, so that a single
            // reading jumps.
            *loads.entry(slot.shard_id).or_default() += seen.heat;
            shard_of.insert(slot.slot_id, slot.shard_id);
            observed.push(seen);
        }
        self.partitions = counted;
        let last_s = std::mem::replace(&mut self.read_at_s, now_s);
        if observed.is_empty() {
            return Ok(());
        }
        let hot = overloaded(&loads, &unknown)?;
        for o in &mut observed {
            o.hot_buckets = match shard_of.get(&o.slot_id).and_then(|shard| hot.get(shard)) {
                Some(true) => o.hot_buckets.saturating_add(1),
                Some(false) => 0,
                None => o.hot_buckets,
            };
        }
        heat::store(&observed, now_s, guc::BUCKET.get())?;
        // A bucket is called by when it was read: the last one by the second that it ended in.
        late::add(&late, ((last_s / bucket_s).floor() + 1.0) * bucket_s)?;
        heat::roll_up(now_s, guc::BUCKET.get())
    }

    /// Learns from what nodes have measured since they were last read, as from samples of this server. What they had
    /// measured before this keeper read them for the first time has been learnt from.
    fn learn_elsewhere(&mut self, costs: &mut Book, now_s: f64) -> PgResult<()> {
        let mut shards = citus::measured::shards()?;
        shards.extend(statistics::measured_tables()?);
        costs.set_elsewhere(shards.iter().map(|shard| (shard.table, shard.slot_id)).collect());
        let mut now = HashMap::new();
        let mut news = Vec::new();
        for shard in shards {
            let Some(measured) = shard.measured else { continue };
            if let Some((since, before)) = self.measured.get(&measured.count) {
                let more = grown(&measured.counters, (*since == measured.since).then_some(before));
                news.push(SegmentActivity {
                    relation: 0,
                    slot_id: shard.slot_id,
                    table: shard.table,
                    counters: more,
                });
            }
            now.insert(measured.count, (measured.since, measured.counters));
        }
        self.measured = now;
        costs.add(&news, now_s);
        Ok(())
    }

    /// Leaves out slots on nodes that were not read since the last time: nothing is known of them, least of all that they are idle.
    /// Of the others, over which time they were counted.
    fn take_unread(&mut self, readings: &mut Vec<Reading>) -> News {
        let mut now: HashMap<i64, f64> = HashMap::new();
        for (slot_id, read_s) in readings.iter().filter_map(|r| Some((r.slot_id, r.read_at_s?))) {
            now.entry(slot_id).and_modify(|least| *least = read_s.min(*least)).or_insert(read_s);
        }
        let is_news = |reading: &Reading| {
            let read_s = now.get(&reading.slot_id);
            read_s.is_none() || read_s != self.seen_s.get(&reading.slot_id)
        };
        let unread = readings.iter().filter(|r| !is_news(r)).map(|r| (r.slot_id, r.shard_id)).collect();
        readings.retain(is_news);
        // One that was never read begins at 0.
        let since = |(slot_id, read_s): (&i64, &f64)| {
            let seen_s = self.seen_s.get(slot_id).filter(|seen_s| **seen_s > 0.0);
            (*slot_id, seen_s.map(|seen_s| read_s - seen_s))
        };
        let counted_s = now.iter().map(since).collect();
        self.seen_s = now;
        News { unread, counted_s }
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

    /// What a slot's counters say, given the reading before; `late`: what they should have said earlier.
    fn judge(
        &mut self,
        slot: &Slot,
        before: Option<&Previous>,
        (publisher, costs): (&mut Publisher, &Book),
        late: &mut Vec<Late>,
        now_s: f64,
    ) -> heat::Observed {
        let half_life_s = f64::from(guc::HEAT_HALF_LIFE.get());
        let elapsed_s = before.map_or(0.0, |b| now_s - b.observed_at_s);
        let parts = before.and_then(|b| match slot.counted_s {
            None => self.rates(slot, b, elapsed_s),
            Some(counted_s) => self.rates_elsewhere(slot, counted_s?),
        });
        let rates = parts.as_ref().map(|parts| rates_together(parts));
        let counted_s = slot.counted_s.flatten().unwrap_or(elapsed_s);
        let load = parts.as_ref().map(|parts| {
            let load =
                |p: &Part| with_statements(costs.load((p.table, slot.slot_id), &p.rates, counted_s), p);
            loads_together(&parts.iter().map(load).collect::<Vec<_>>())
        });
        let (mut late_units, mut late_accesses) = (0.0, 0.0);
        for part in parts.iter().flatten() {
            let Some((rates, before_s)) = part.late else { continue };
            let load = costs.late_load((part.table, slot.slot_id), &rates);
            let left = |rate: f64| late_heat(rate, before_s, elapsed_s, half_life_s);
            late_units += left(load.cost_units_per_s);
            late_accesses += left(accesses_per_s(&rates));
            late.push(Late { slot_id: slot.slot_id, before_s, rates, load });
        }
        let decay = |old: f64, rate: Option<f64>| {
            rate.map_or(old, |rate| decayed_heat(old, rate, elapsed_s, half_life_s))
        };
        let accesses = rates.as_ref().map(accesses_per_s);
        let heat = decay(before.map_or(0.0, |b| b.heat), load.map(|l| l.cost_units_per_s)) + late_units;
        publisher.note(slot.slot_id, heat, accesses, elapsed_s);
        heat::Observed {
            slot_id: slot.slot_id,
            counters: slot.counters,
            heat,
            access_score: decay(before.map_or(0.0, |b| b.access_score), accesses) + late_accesses,
            rates,
            load,
            hot_buckets: before.map_or(0, |b| b.hot_buckets),
        }
    }

    /// The same of a slot whose tables others read, at their times; None when what counted them before was not seen.
    fn rates_elsewhere(&self, slot: &Slot, counted_s: f64) -> Option<Vec<Part>> {
        let of_table = |p: &Reading| {
            // One that has just come to this node, or another life of its server: what it counted before is not known here.
            let before = self.partitions.get(&p.count)?;
            let rates = rates(before, &p.counters, counted_s)?;
            Some(Part { table: p.table, rates, is_far: p.relation.is_some(), late: None })
        };
        slot.partitions.iter().map(of_table).collect()
    }

    /// The rates of every table of a slot since the reading before; None when a counter went backwards. A
    /// keeper that has not seen the tables apart yet takes all for accesses to the busiest one.
    fn rates(&mut self, slot: &Slot, before: &Previous, elapsed_s: f64) -> Option<Vec<Part>> {
        if (self.read_at_s - before.observed_at_s).abs() > 0.01 {
            let busiest = slot.partitions.iter().max_by_key(|p| p.counters.scans + p.counters.inserted)?;
            let rates = rates(&before.counters, &slot.counters, elapsed_s)?;
            return Some(vec![Part { table: busiest.table, rates, is_far: false, late: None }]);
        }
        let from_s = before.observed_at_s;
        let Self { partitions, latecomers, .. } = self;
        let of_table = |p: &Reading| {
            let rates = match partitions.get(&p.count) {
                Some(before) => rates(before, &p.counters, elapsed_s)?,
                // A table that has just come to the group: its rows are no load.
                None => Rates::default(),
            };
            let found = p.relation.and_then(|r| latecomers.spread(r, &rates, from_s, elapsed_s));
            Some(match found {
                Some((spread, before_s)) => {
                    let late = Some((spread.before, before_s));
                    Part { table: p.table, rates: spread.now, is_far: false, late }
                }
                None => Part { table: p.table, rates, is_far: false, late: None },
            })
        };
        slot.partitions.iter().map(of_table).collect()
    }
}

/// How much counters have grown; those that begin anew, or have fallen, count from zero.
fn grown(now: &[u64; SEGMENT_COUNTERS], before: Option<&[u64; SEGMENT_COUNTERS]>) -> [u64; SEGMENT_COUNTERS] {
    match before {
        Some(before) if now.iter().zip(before).all(|(now, before)| now >= before) => {
            std::array::from_fn(|i| now[i].saturating_sub(before[i]))
        }
        _ => *now,
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
fn rates_together(parts: &[Part]) -> Rates {
    let sum = |of: fn(&Rates) -> f64| parts.iter().map(|p| of(&p.rates)).sum();
    Rates {
        scans_per_s: sum(|r| r.scans_per_s),
        rows_read_per_s: sum(|r| r.rows_read_per_s),
        writes_per_s: sum(|r| r.writes_per_s),
        blocks_read_per_s: sum(|r| r.blocks_read_per_s),
        blocks_hit_per_s: sum(|r| r.blocks_hit_per_s),
    }
}

/// With what a node does for the statements that postgres_fdw sends around every scan: neither counters nor what a foreshard there
/// measures have it.
fn with_statements(load: Load, part: &Part) -> Load {
    let ms = if part.is_far { part.rates.scans_per_s * guc::REMOTE_SCAN_COST.get() } else { 0.0 };
    Load { cpu_ms_per_s: load.cpu_ms_per_s + ms, cost_units_per_s: load.cost_units_per_s + ms, ..load }
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

/// Whether the utilisation of shards exceeds the mean by the upper threshold, or they are being drained. Nodes of Citus are
/// compared with one another. Shards of which not all is known are not judged, nor are others by them.
fn overloaded(loads: &BTreeMap<i32, f64>, unknown: &BTreeSet<i32>) -> PgResult<HashMap<i32, bool>> {
    let (citus, own): (Vec<_>, Vec<_>) = colocation::shards()?.into_iter().partition(|shard| shard.is_citus);
    let load = |shard: &ShardRow| loads.get(&shard.shard_id).copied().unwrap_or(0.0);
    let mut found = HashMap::new();
    for shards in [own, citus] {
        let known: Vec<&ShardRow> = shards.iter().filter(|s| !unknown.contains(&s.shard_id)).collect();
        let capacity: f64 = known.iter().filter(|s| !s.draining && s.takes).map(|s| s.capacity).sum();
        let all: f64 = known.iter().map(|s| load(s)).sum();
        let limit = all / capacity.max(f64::MIN_POSITIVE) * (1.0 + guc::IMBALANCE_HIGH.get());
        // Next to no load overloads nobody, however unevenly it is spread.
        let matters = all >= PlanOptions::default().min_load;
        found.extend(known.iter().map(|s| (s.shard_id, matters && load(s) / s.capacity > limit)));
        found.extend(shards.iter().filter(|s| s.draining).map(|s| (s.shard_id, true)));
    }
    Ok(found)
}
