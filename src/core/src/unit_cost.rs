//! From a few measured executions to the cost of all of them.
//!
//! Counters say exactly how much a slot was used, unit costs ([`crate::heat::UnitCosts`]) guess what
//! a use costs, and sampled executions say by what factor the guess is wrong: the CPU time measured
//! over the CPU time the unit costs predicted for the same executions. A slot with few samples is
//! shrunk towards its table, a table towards the guess, by pseudo-counts: with `m` units of prior
//! evidence for the parent's value, the value is `(m · parent + Σ measured) / (m + Σ predicted)`. That
//! is the posterior mean of a gamma prior for the rate of a Poisson (Gelman et al., "Bayesian Data
//! Analysis", 2.6: empirical Bayes), a ratio estimator otherwise. Evidence decays, so old samples give
//! way to the parent's value where no new ones come.
//!
//! What a slot is shrunk towards is its table's plain ratio, and what is still doubted of the table (plain
//! to shrunk) is doubted of all of its slots alike: shrunk towards the shrunk value, slots of one kind would
//! differ by how often they were sampled, the more the further the guess is off.

use std::collections::{BTreeMap, HashSet};

use crate::heat::{Rates, UnitCosts};

/// A factor never leaves this range, and no drained batch of samples counts for a factor outside it:
/// one absurd measurement must not decide a plan.
pub const FACTOR_RANGE: (f64, f64) = (0.01, 100.0);

/// Prior evidence for a factor, in predicted ms of CPU: some dozens of sampled statements of a few
/// tenths of a ms. Single statements scatter by about their own size, slots of one table by perhaps a
/// fifth of it, so it takes some dozens for a slot to say more about itself than its table does.
pub const PRIOR_MS: f64 = 10.0;

/// Prior evidence for the WAL of a write, in rows written.
pub const PRIOR_ROWS: f64 = 50.0;

/// Prior evidence for the cost of a trigger call, in calls.
pub const PRIOR_CALLS: f64 = 50.0;

/// The most slots, and the most tables, remembered; samples of further slots count for their table,
/// of further tables not at all ([`Costs::overflowed`]).
pub const MAX_ENTRIES: usize = 1 << 17;

/// More WAL than this for one row is no measurement, bytes (a row has less than 2 GiB).
const MAX_WAL_BYTES: f64 = 4e9;

/// More than this for one call of a trigger is no measurement, cost units (28 hours of CPU).
const MAX_CALL_UNITS: f64 = 1e8;

/// Evidence below this is none.
const MIN_EVIDENCE: f64 = 1e-6;

/// Sums over the sampled executions that touched one segment of one table since the last drain.
///
/// CPU times and WAL are the statements' own, without those of the triggers they fired: these are in
/// `trigger_cost_units`. Values that are negative or not finite count as 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sampled {
    /// Statements.
    pub statements: f64,
    /// Scans started.
    pub scans: f64,
    /// Rows read.
    pub rows_read: f64,
    /// Blocks found in shared buffers.
    pub blocks_hit: f64,
    /// Blocks read from outside shared buffers.
    pub blocks_read: f64,
    /// CPU time of reading, measured, ms.
    pub read_cpu_ms: f64,
    /// CPU time the unit costs predict for these scans and rows, ms.
    pub predicted_read_ms: f64,
    /// Rows inserted, updated or deleted.
    pub rows_written: f64,
    /// CPU time of writing, measured, ms.
    pub write_cpu_ms: f64,
    /// CPU time the unit costs predict for these writes, ms.
    pub predicted_write_ms: f64,
    /// Write-ahead log, bytes.
    pub wal_bytes: f64,
    /// Calls of triggers.
    pub trigger_calls: f64,
    /// What these calls cost, cost units.
    pub trigger_cost_units: f64,
    /// Bytes sent to clients.
    pub result_bytes: f64,
    /// Time that reading and writing took, ms.
    pub elapsed_ms: f64,
    /// Blocks dirtied.
    pub blocks_dirtied: f64,
    /// Temporary blocks read and written.
    pub temp_blocks: f64,
}

/// What is known about the unit costs of a slot (or a table).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotCosts {
    /// Measured over predicted CPU time of reading; 1 when nothing is known.
    pub read_factor: f64,
    /// Measured over predicted CPU time of writing; 1 when nothing is known.
    pub write_factor: f64,
    /// WAL of one row written, bytes; `None` when none has been seen.
    pub wal_bytes_per_write: Option<f64>,
    /// Cost of one trigger call, cost units; `None` when none has been seen.
    pub trigger_cost_per_call: Option<f64>,
}

impl Default for SlotCosts {
    fn default() -> Self {
        Self { read_factor: 1.0, write_factor: 1.0, wal_bytes_per_write: None, trigger_cost_per_call: None }
    }
}

/// The load of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// CPU time, ms per second.
    pub cpu_ms_per_s: f64,
    /// Write-ahead log, bytes per second; `None` when no write has been sampled.
    pub wal_bytes_per_s: Option<f64>,
    /// Triggers, cost units per second; `None` when their calls or their costs are unknown.
    pub trigger_cost_per_s: Option<f64>,
    /// All of that and block accesses, cost units per second. What is unknown adds nothing.
    pub cost_units_per_s: f64,
}

/// A ratio of decayed sums: what was measured over what it was measured on.
#[derive(Clone, Copy, Debug, Default)]
struct Ratio {
    measured: f64,
    evidence: f64,
}

impl Ratio {
    /// One batch, its ratio kept in `range`. Nothing when there is no evidence to divide by.
    fn of(measured: f64, evidence: f64, range: (f64, f64)) -> Self {
        let evidence = known(evidence);
        Self { measured: known(measured).clamp(range.0 * evidence, range.1 * evidence), evidence }
    }

    fn add(&mut self, kept: f64, batch: &Self) {
        self.measured = self.measured * kept + batch.measured;
        self.evidence = self.evidence * kept + batch.evidence;
    }

    fn decayed(&self, kept: f64) -> Self {
        Self { measured: self.measured * kept, evidence: self.evidence * kept }
    }

    /// The ratio, shrunk towards `parent` as if that had been seen with `prior` evidence.
    fn shrunk(&self, parent: f64, prior: f64) -> f64 {
        // (prior · parent + measured) / (prior + evidence), so written that no evidence is exactly parent.
        parent + (self.measured - parent * self.evidence) / (prior + self.evidence)
    }

    /// The ratio itself; `None` when nothing was seen.
    fn plain(&self) -> Option<f64> {
        (self.evidence > MIN_EVIDENCE).then(|| self.measured / self.evidence)
    }
}

/// The decayed evidence of a slot or a table.
#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    at_s: f64,
    read: Ratio,
    write: Ratio,
    wal: Ratio,
    trigger: Ratio,
}

impl Evidence {
    fn of(sampled: &Sampled, at_s: f64) -> Self {
        Self {
            at_s,
            read: Ratio::of(sampled.read_cpu_ms, sampled.predicted_read_ms, FACTOR_RANGE),
            write: Ratio::of(sampled.write_cpu_ms, sampled.predicted_write_ms, FACTOR_RANGE),
            wal: Ratio::of(sampled.wal_bytes, sampled.rows_written, (0.0, MAX_WAL_BYTES)),
            trigger: Ratio::of(sampled.trigger_cost_units, sampled.trigger_calls, (0.0, MAX_CALL_UNITS)),
        }
    }

    fn is_empty(&self) -> bool {
        [self.read, self.write, self.wal, self.trigger].iter().all(|ratio| ratio.evidence <= MIN_EVIDENCE)
    }

    fn add(&mut self, batch: &Self, half_life_s: f64) {
        // A batch from before the last one is taken as of the last one.
        let kept = kept(self.at_s, batch.at_s, half_life_s);
        self.at_s = self.at_s.max(batch.at_s);
        self.read.add(kept, &batch.read);
        self.write.add(kept, &batch.write);
        self.wal.add(kept, &batch.wal);
        self.trigger.add(kept, &batch.trigger);
    }

    fn at(&self, now_s: f64, half_life_s: f64) -> Self {
        let kept = kept(self.at_s, now_s, half_life_s);
        Self {
            at_s: now_s,
            read: self.read.decayed(kept),
            write: self.write.decayed(kept),
            wal: self.wal.decayed(kept),
            trigger: self.trigger.decayed(kept),
        }
    }

    /// The costs of a table: factors are shrunk towards the guess; of the rest there is none.
    fn of_table(&self) -> SlotCosts {
        let factor = |ratio: &Ratio| in_range(ratio.shrunk(1.0, PRIOR_MS));
        SlotCosts {
            read_factor: factor(&self.read),
            write_factor: factor(&self.write),
            wal_bytes_per_write: self.wal.plain(),
            trigger_cost_per_call: self.trigger.plain(),
        }
    }

    /// The costs of a slot of `table`.
    fn of_slot(&self, table: &Self) -> SlotCosts {
        let factor = |slot: &Ratio, table: &Ratio| {
            let shrunk = table.shrunk(1.0, PRIOR_MS);
            let factor = match table.plain().filter(|plain| *plain > 0.0) {
                Some(plain) => {
                    // Relative to the table, so that no evidence is exactly the table.
                    let relative = Ratio { measured: slot.measured / plain, ..*slot };
                    shrunk * relative.shrunk(1.0, PRIOR_MS)
                }
                None => slot.shrunk(shrunk, PRIOR_MS),
            };
            in_range(factor)
        };
        let cost = |slot: &Ratio, table: &Ratio, prior: f64| match table.plain() {
            Some(plain) => Some(slot.shrunk(plain, prior)),
            None => slot.plain(),
        };
        SlotCosts {
            read_factor: factor(&self.read, &table.read),
            write_factor: factor(&self.write, &table.write),
            wal_bytes_per_write: cost(&self.wal, &table.wal, PRIOR_ROWS),
            trigger_cost_per_call: cost(&self.trigger, &table.trigger, PRIOR_CALLS),
        }
    }
}

/// The unit costs learnt so far, of every slot and table. Time is an argument, in seconds of any
/// clock that does not go back.
#[derive(Clone, Debug)]
pub struct Costs {
    half_life_s: f64,
    tables: BTreeMap<u32, Evidence>,
    slots: BTreeMap<(u32, i64), Evidence>,
    overflowed: u64,
}

impl Costs {
    /// Knows nothing yet, and forgets half of its evidence every `half_life_s` seconds (at least 1
    /// ms).
    pub fn new(half_life_s: f64) -> Self {
        let half_life_s = half_life_s.clamp(1e-3, 1e12).max(1e-3);
        Self { half_life_s, tables: BTreeMap::new(), slots: BTreeMap::new(), overflowed: 0 }
    }

    /// Learns from the executions sampled on one segment of one table (its OID) until `now_s`.
    ///
    /// A `now_s` that is not finite is ignored.
    pub fn add(&mut self, table: u32, segment: i64, sampled: &Sampled, now_s: f64) {
        let batch = Evidence::of(sampled, now_s);
        if !now_s.is_finite() || batch.is_empty() {
            return;
        }
        let half_life_s = self.half_life_s;
        if !add_bounded(&mut self.tables, table, &batch, half_life_s)
            || !add_bounded(&mut self.slots, (table, segment), &batch, half_life_s)
        {
            self.overflowed = self.overflowed.saturating_add(1);
        }
    }

    /// The unit costs of a table: its samples, shrunk towards the configured unit costs.
    pub fn table(&self, table: u32, now_s: f64) -> SlotCosts {
        self.table_evidence(table, now_s).of_table()
    }

    /// The unit costs of a slot: its samples, shrunk towards its table.
    pub fn slot(&self, table: u32, segment: i64, now_s: f64) -> SlotCosts {
        let evidence = self.slots.get(&(table, segment)).copied().unwrap_or_default();
        evidence.at(now_s, self.half_life_s).of_slot(&self.table_evidence(table, now_s))
    }

    fn table_evidence(&self, table: u32, now_s: f64) -> Evidence {
        let evidence = self.tables.get(&table).copied().unwrap_or_default();
        evidence.at(now_s, self.half_life_s)
    }

    /// Forgets all but these slots of tables, and tables of which none is there. What a table has learnt of slots that are gone stays.
    pub fn retain(&mut self, there: &HashSet<(u32, i64)>) {
        let tables: HashSet<u32> = there.iter().map(|(table, _)| *table).collect();
        self.tables.retain(|table, _| tables.contains(table));
        self.slots.retain(|slot, _| there.contains(slot));
    }

    /// Makes room: drops the entries whose evidence has decayed to nothing. Linear in their number; worth calling once per half-life.
    pub fn prune(&mut self, now_s: f64) {
        let half_life_s = self.half_life_s;
        self.tables.retain(|_, evidence| !evidence.at(now_s, half_life_s).is_empty());
        self.slots.retain(|_, evidence| !evidence.at(now_s, half_life_s).is_empty());
    }

    /// Slots with evidence of their own.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Batches of samples that found no room for their slot or table.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

/// Adds to an entry, or makes one; `false` when there is no room.
fn add_bounded<K: Ord>(map: &mut BTreeMap<K, Evidence>, key: K, batch: &Evidence, half_life_s: f64) -> bool {
    if let Some(evidence) = map.get_mut(&key) {
        evidence.add(batch, half_life_s);
        return true;
    }
    if map.len() >= MAX_ENTRIES {
        return false;
    }
    map.insert(key, *batch);
    true
}

/// The load of a slot: its counters' rates at what its executions cost.
///
/// `unit` are the configured unit costs the factors refer to. `trigger_calls_per_s` is `None` when it
/// is not known how often triggers are called.
pub fn load(rates: &Rates, unit: &UnitCosts, costs: &SlotCosts, trigger_calls_per_s: Option<f64>) -> Load {
    let read_ms = rates.scans_per_s * unit.scan + rates.rows_read_per_s * unit.row_read;
    let write_ms = rates.writes_per_s * unit.write;
    let cpu_ms_per_s = costs.read_factor * read_ms + costs.write_factor * write_ms;
    let wal_bytes_per_s = costs.wal_bytes_per_write.map(|bytes| bytes * rates.writes_per_s);
    let trigger_cost_per_s =
        trigger_calls_per_s.zip(costs.trigger_cost_per_call).map(|(calls_per_s, units)| calls_per_s * units);
    let blocks = rates.blocks_read_per_s * unit.block_read + rates.blocks_hit_per_s * unit.block_hit;
    let wal = wal_bytes_per_s.unwrap_or(0.0) / 1_024.0 * unit.wal_kb;
    Load {
        cpu_ms_per_s,
        wal_bytes_per_s,
        trigger_cost_per_s,
        cost_units_per_s: cpu_ms_per_s + blocks + wal + trigger_cost_per_s.unwrap_or(0.0),
    }
}

/// A factor, kept in its range.
fn in_range(factor: f64) -> f64 {
    factor.clamp(FACTOR_RANGE.0, FACTOR_RANGE.1)
}

/// The share of evidence of `from_s` that is left at `now_s`.
fn kept(from_s: f64, now_s: f64, half_life_s: f64) -> f64 {
    let elapsed_s = (now_s - from_s).max(0.0);
    (-elapsed_s / half_life_s).exp2()
}

/// The number, or 0 when it is none or negative. Sums stay finite however many there are.
fn known(value: f64) -> f64 {
    if value.is_finite() { value.clamp(0.0, 1e15) } else { 0.0 }
}
