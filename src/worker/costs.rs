//! Measured unit costs of every slot, kept by the keeper: sampled executions say by what factor the
//! configured costs are wrong.

use super::publish::Publisher;
use crate::catalog::unit_cost::{self, Measured};
use crate::observe::drain::SegmentActivity;
use crate::pg::guc;
use crate::pg::report::PgResult;
use foreshard_core::heat::{Rates, UnitCosts};
use foreshard_core::shared::SegmentCounter;
use foreshard_core::unit_cost::{Costs, Load, Sampled, load};
use std::collections::{HashMap, HashSet};

/// Half-life of what was measured, s.
const HALF_LIFE_S: f64 = 3600.0;
/// Shortest pause between two times the sums are stored, s: they change slowly.
const STORE_EVERY_S: f64 = 10.0;

/// A table and a slot.
pub type Segment = (u32, i64);

/// Decayed sums of what was measured of one segment.
#[derive(Clone, Copy, Default)]
struct Sums {
    at_s: f64,
    sums: Sampled,
    unsaved: bool,
}

impl Sums {
    /// The sums at `now_s`.
    fn at(&self, now_s: f64) -> Sampled {
        let kept = (-(now_s - self.at_s).max(0.0) / HALF_LIFE_S).exp2();
        combined(&self.sums, &Sampled::default(), kept)
    }
}

/// The sum of old, of which a share is kept, and new.
fn combined(old: &Sampled, new: &Sampled, kept: f64) -> Sampled {
    let sum = |of: fn(&Sampled) -> f64| of(old) * kept + of(new);
    Sampled {
        statements: sum(|s| s.statements),
        scans: sum(|s| s.scans),
        rows_read: sum(|s| s.rows_read),
        blocks_hit: sum(|s| s.blocks_hit),
        blocks_read: sum(|s| s.blocks_read),
        read_cpu_ms: sum(|s| s.read_cpu_ms),
        predicted_read_ms: 0.0,
        rows_written: sum(|s| s.rows_written),
        write_cpu_ms: sum(|s| s.write_cpu_ms),
        predicted_write_ms: 0.0,
        wal_bytes: sum(|s| s.wal_bytes),
        trigger_calls: sum(|s| s.trigger_calls),
        trigger_cost_units: sum(|s| s.trigger_cost_units),
        result_bytes: sum(|s| s.result_bytes),
        elapsed_ms: sum(|s| s.elapsed_ms),
        blocks_dirtied: sum(|s| s.blocks_dirtied),
        temp_blocks: sum(|s| s.temp_blocks),
    }
}

/// With what the unit costs predict for it, blocks found in shared buffers included: finding them is CPU
/// time of the same statements.
fn predicted(sums: &Sampled, unit: &UnitCosts) -> Sampled {
    Sampled {
        predicted_read_ms: sums.scans * unit.scan
            + sums.rows_read * unit.row_read
            + sums.blocks_hit * unit.block_hit,
        predicted_write_ms: sums.rows_written * unit.write,
        ..*sums
    }
}

/// What was measured between two drains.
fn sampled(activity: &SegmentActivity) -> Sampled {
    let of = |counter: SegmentCounter| activity.counters[counter as usize] as f64;
    let interval = f64::from(guc::TRIGGER_SAMPLE_INTERVAL.get().max(1));
    Sampled {
        statements: of(SegmentCounter::Statements),
        scans: of(SegmentCounter::Scans),
        rows_read: of(SegmentCounter::RowsRead),
        blocks_hit: of(SegmentCounter::BlocksHit),
        blocks_read: of(SegmentCounter::BlocksRead),
        read_cpu_ms: of(SegmentCounter::ReadCpuNs) / 1e6,
        predicted_read_ms: 0.0,
        rows_written: of(SegmentCounter::RowsWritten),
        write_cpu_ms: of(SegmentCounter::WriteCpuNs) / 1e6,
        predicted_write_ms: 0.0,
        wal_bytes: of(SegmentCounter::WalBytes),
        // Every measured call counts as often as the calls it stands for, or triggers that are measured at different
        // rates would not mix; as evidence it is one call.
        trigger_calls: of(SegmentCounter::SampledTriggerCalls) / interval,
        trigger_cost_units: of(SegmentCounter::TriggerCostNs) / 1e6 / interval,
        result_bytes: of(SegmentCounter::ResultBytes),
        elapsed_ms: (of(SegmentCounter::ReadElapsedNs) + of(SegmentCounter::WriteElapsedNs)) / 1e6,
        blocks_dirtied: of(SegmentCounter::BlocksDirtied),
        temp_blocks: of(SegmentCounter::TempBlocks),
    }
}

/// What slots were measured to cost.
pub struct Book {
    restored: bool,
    unit: UnitCosts,
    costs: Costs,
    sums: HashMap<Segment, Sums>,
    /// Trigger calls since the last reading.
    calls: HashMap<Segment, u64>,
    /// Segments that other servers measure, which no keeper here publishes; None: not known yet.
    elsewhere: Option<HashSet<Segment>>,
    stored_at_s: f64,
    now_s: f64,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            restored: false,
            unit: unit_cost::configured(),
            costs: Costs::new(HALF_LIFE_S),
            sums: HashMap::new(),
            calls: HashMap::new(),
            elsewhere: None,
            stored_at_s: 0.0,
            now_s: 0.0,
        }
    }
}

impl Book {
    /// Goes on where the last keeper stood; once.
    pub fn restore(&mut self, now_s: f64) -> PgResult<()> {
        if self.restored {
            return Ok(());
        }
        self.join(now_s)?;
        self.restored = true;
        Ok(())
    }

    /// Takes over what is stored of segments that came to be since: those that a slot was split into.
    pub fn join(&mut self, now_s: f64) -> PgResult<()> {
        let known = self.sums.len();
        for Measured { table, slot_id, at_s, sums } in unit_cost::measured()? {
            self.sums.entry((table, slot_id)).or_insert(Sums { at_s, sums, unsaved: false });
        }
        if self.sums.len() > known {
            self.learn_again(now_s);
        }
        Ok(())
    }

    /// Derives the factors from the sums, with the unit costs as they are set now.
    fn learn_again(&mut self, now_s: f64) {
        self.unit = unit_cost::configured();
        self.costs = Costs::new(HALF_LIFE_S);
        for ((table, slot_id), sums) in &self.sums {
            self.costs.add(*table, *slot_id, &predicted(&sums.at(now_s), &self.unit), now_s);
        }
    }

    /// Segments of which something was measured.
    pub fn segments(&self) -> usize {
        self.sums.len()
    }

    /// Batches of samples that found no room.
    pub fn overflowed(&self) -> u64 {
        self.costs.overflowed()
    }

    /// Adds what was measured.
    pub fn add(&mut self, measured: &[SegmentActivity], now_s: f64) {
        self.now_s = now_s;
        if self.unit != unit_cost::configured() {
            self.learn_again(now_s);
        }
        for activity in measured {
            let segment = (activity.table, activity.slot_id);
            let calls = activity.counters[SegmentCounter::TriggerCalls as usize];
            if calls > 0 {
                *self.calls.entry(segment).or_default() += calls;
            }
            let new = sampled(activity);
            if new == Sampled::default() {
                continue;
            }
            let sums = self.sums.entry(segment).or_default();
            let old = sums.at(now_s);
            *sums = Sums { at_s: now_s, sums: combined(&old, &new, 1.0), unsaved: true };
            self.costs.add(segment.0, segment.1, &predicted(&new, &self.unit), now_s);
        }
    }

    /// Stores what is new, not more often than is worth it.
    pub fn store(&self) -> PgResult<bool> {
        if self.now_s - self.stored_at_s < STORE_EVERY_S {
            return Ok(false);
        }
        let new = self.sums.iter().filter(|(_, s)| s.unsaved);
        let rows: Vec<Measured> = new
            .map(|((table, slot_id), s)| Measured {
                table: *table,
                slot_id: *slot_id,
                at_s: s.at_s,
                sums: s.sums,
            })
            .collect();
        unit_cost::store(&rows)?;
        Ok(true)
    }

    /// What [`Book::store`] wrote is safely stored.
    pub fn stored(&mut self) {
        self.stored_at_s = self.now_s;
        self.sums.values_mut().for_each(|sums| sums.unsaved = false);
    }

    /// Says which segments other servers measure.
    pub fn set_elsewhere(&mut self, segments: HashSet<Segment>) {
        self.elsewhere = Some(segments);
    }

    /// Forgets segments that are gone.
    pub fn retain(&mut self, publisher: &Publisher) {
        let Some(elsewhere) = &self.elsewhere else { return };
        let own = publisher.relations().iter().filter_map(|r| Some((r.table, r.slot_id?)));
        let there: HashSet<Segment> = own.chain(elsewhere.iter().copied()).collect();
        self.sums.retain(|segment, _| there.contains(segment));
        self.calls.retain(|segment, _| there.contains(segment));
        self.costs.retain(&there);
        self.costs.prune(self.now_s);
    }

    /// The load of a slot in one of its tables; `elapsed_s`: over which time its trigger calls were counted.
    pub fn load(&self, segment: Segment, rates: &Rates, elapsed_s: f64) -> Load {
        let calls = self.calls.get(&segment).copied().unwrap_or(0) as f64;
        self.load_with(segment, rates, (elapsed_s > 0.0).then(|| calls / elapsed_s))
    }

    fn load_with(&self, segment: Segment, rates: &Rates, calls_per_s: Option<f64>) -> Load {
        let costs = self.costs.slot(segment.0, segment.1, self.now_s);
        // Finding blocks in shared buffers is part of the CPU time the factor is about.
        let hit = self.unit.block_hit * costs.read_factor;
        let found = load(rates, &UnitCosts { block_hit: hit, ..self.unit }, &costs, calls_per_s);
        Load { cpu_ms_per_s: found.cpu_ms_per_s + rates.blocks_hit_per_s * hit, ..found }
    }

    /// The load that these rates were at another time; triggers' calls are counted at once, and not part of it.
    pub fn late_load(&self, segment: Segment, rates: &Rates) -> Load {
        self.load_with(segment, rates, None)
    }

    /// A reading was made of what was counted so far.
    pub fn read(&mut self) {
        self.calls.clear();
    }
}
