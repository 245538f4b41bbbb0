//! What a measured statement, and a sampled transaction, say.

use super::samples::{DependencySample, KeySample, MAX_SEGMENTS, TransactionSample, TriggerSample};
use super::trigger::{cost_ns, own_cost_ns, without_overhead};
use crate::pg::builtin::BuiltInCalls;
use crate::pg::plan::{Key, Named, Report, Touch};
use crate::pg::region::{Dropped, Region};
use crate::pg::{bgworker, guc, region, trigger};
use foreshard_core::frames::{Amount, Amounts, Spent};
use foreshard_core::shared::{ProfileIdentity, SegmentCounter, Total};
use std::sync::atomic::Ordering;

/// What is known of a measured statement beside its report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measured {
    /// How many statements it stands for; 0: others stand for it.
    stands_for: u32,
    /// What its parts took, without what triggers and statements inside it account for.
    spent: Amounts,
    /// What managed statements inside it took while its last triggers fired, not those of triggers that are measured
    /// by themselves: the statements of built-in triggers; and what measuring all that took.
    of_built_in: Amounts,
    /// Calls of its triggers that fired on no leaf, and their cost, nano cost units.
    fired: (u64, u64),
}

impl Measured {
    /// Nothing is known yet of a statement that stands for so many.
    pub(super) fn new(stands_for: u32) -> Self {
        Self { stands_for, ..Self::default() }
    }

    /// Adds what one of its parts took; `finishing`: the one in which its last triggers fired.
    pub(super) fn add_part(&mut self, spent: &Spent, finishing: bool) {
        add(&mut self.spent, &without_overhead(&spent.own));
        if finishing {
            let mut statements = spent.statements;
            // The time between their pieces and the trigger's: readings of clocks and counters.
            let inside = statements[Amount::OverheadNs as usize];
            statements[Amount::ElapsedNs as usize] = statements[Amount::ElapsedNs as usize]
                .saturating_add(spent.inclusive[Amount::OverheadNs as usize].saturating_sub(inside));
            add(&mut self.of_built_in, &statements);
        }
    }

    /// Adds a call of one of its triggers that fired on no leaf.
    pub(super) fn add_trigger(&mut self, weight: u32, spent: &Spent) {
        let weight = u64::from(weight);
        self.fired.0 = self.fired.0.saturating_add(weight);
        self.fired.1 = self.fired.1.saturating_add(weight.saturating_mul(own_cost_ns(spent)));
    }
}

fn add(sums: &mut Amounts, amounts: &Amounts) {
    for (sum, amount) in sums.iter_mut().zip(amounts) {
        *sum = sum.saturating_add(*amount);
    }
}

/// Divides what a statement took among the partitions it touched and its reading and writing of them, in
/// proportion to what the configured unit costs say of each; WAL and dirtied blocks go where it wrote. What it read and
/// wrote elsewhere takes its share, which goes nowhere.
///
/// Costs of a statement that is not `typical` are left out: later statements of a sampled transaction
/// would count twice as often as first ones. `slots` collects the slots of a sampled transaction.
pub(super) fn attribute(
    region: &Region,
    (measured, typical): (&Measured, bool),
    report: &Report,
    slots: Option<&mut Vec<i64>>,
) {
    let built_in: Vec<BuiltInCalls> =
        report.built_in.iter().map(|calls| calls.without(&measured.of_built_in, &report.built_in)).collect();
    // Only the time of built-in triggers is known. A foreign key that waits for a lock takes no CPU: of their time as much is
    // taken for CPU as of their whole statement's.
    let busy = |amount: Amount| measured.spent[amount as usize] as f64;
    let cpu_share = (busy(Amount::CpuNs) / busy(Amount::ElapsedNs).max(1.0)).min(1.0);
    if typical {
        let mut spent = measured.spent;
        for calls in &built_in {
            take_off(&mut spent, calls, cpu_share);
        }
        attribute_costs(region, &spent, report);
    }
    if let Some(slots) = slots {
        for touch in &report.touches {
            let own = region.segment(touch.relation).filter(|segment| !segment.is_asked());
            let slot = own.map(|segment| segment.slot_id.load(Ordering::Relaxed) as i64);
            let Some(slot) = slot.filter(|slot| !slots.contains(slot)) else { continue };
            if slots.len() < MAX_SEGMENTS {
                slots.push(slot);
            } else {
                region.drop_one(Dropped::Slot);
            }
        }
    }
    for (calls, own) in report.built_in.iter().zip(&built_in) {
        record_built_in(region, calls, (own, cpu_share), measured.stands_for);
    }
    attribute_fired(region, measured, report);
}

/// Built-in triggers are no pieces of their own: what they took is part of what their statement took.
fn take_off(spent: &mut Amounts, calls: &BuiltInCalls, cpu_share: f64) {
    let elapsed_ns = calls.elapsed_us * 1e3;
    for (amount, taken) in [
        (Amount::CpuNs, elapsed_ns * cpu_share),
        (Amount::ElapsedNs, elapsed_ns),
        (Amount::BlocksDirtied, calls.blocks_dirtied),
        (Amount::WalBytes, calls.wal_bytes),
        (Amount::TempBlocks, calls.temp_blocks),
    ] {
        spent[amount as usize] = spent[amount as usize].saturating_sub(taken.max(0.0) as u64);
    }
}

/// Triggers that fire for a statement fire on the partitioned table: their cost belongs to the leaves it wrote, as one
/// call each; to those it looked at, when it wrote none.
fn attribute_fired(region: &Region, measured: &Measured, report: &Report) {
    let (calls, cost_ns) = measured.fired;
    if calls == 0 || measured.stands_for == 0 {
        return;
    }
    let written: f64 = report.touches.iter().map(|touch| touch.rows_written).sum();
    let looked_at = report.touches.len().max(1) as f64;
    for touch in &report.touches {
        let share = if written > 0.0 { touch.rows_written / written } else { 1.0 / looked_at };
        let Some(segment) = region.segment(touch.relation).filter(|_| share > 0.0) else { continue };
        let times = u64::from(measured.stands_for);
        segment.add(SegmentCounter::TriggerCalls, calls.saturating_mul(times));
        segment.add(SegmentCounter::SampledTriggerCalls, calls.saturating_mul(times));
        let cost = (cost_ns as f64 * share).round() as u64;
        segment.add(SegmentCounter::TriggerCostNs, cost.saturating_mul(times));
    }
}

fn attribute_costs(region: &Region, spent: &Amounts, report: &Report) {
    let predicted: Vec<(f64, f64)> = report.touches.iter().map(predicted_ns).collect();
    let (read_elsewhere, written_elsewhere) = predicted_ns(&report.elsewhere);
    let total =
        predicted.iter().map(|(read, write)| read + write).sum::<f64>() + read_elsewhere + written_elsewhere;
    let written = report.touches.iter().map(|t| t.rows_written).sum::<f64>() + report.elsewhere.rows_written;
    for (touch, (read_ns, write_ns)) in report.touches.iter().zip(&predicted) {
        let Some(segment) = region.segment(touch.relation) else { continue };
        let share = |amount: Amount, part: f64, whole: f64| {
            if whole > 0.0 { (spent[amount as usize] as f64 * part / whole).round() as u64 } else { 0 }
        };
        segment.add(SegmentCounter::ReadCpuNs, share(Amount::CpuNs, *read_ns, total));
        segment.add(SegmentCounter::WriteCpuNs, share(Amount::CpuNs, *write_ns, total));
        if report.worker {
            continue;
        }
        segment.add(SegmentCounter::ReadElapsedNs, share(Amount::ElapsedNs, *read_ns, total));
        segment.add(SegmentCounter::WriteElapsedNs, share(Amount::ElapsedNs, *write_ns, total));
        segment.add(SegmentCounter::TempBlocks, share(Amount::TempBlocks, read_ns + write_ns, total));
        segment.add(SegmentCounter::WalBytes, share(Amount::WalBytes, touch.rows_written, written));
        segment.add(SegmentCounter::BlocksDirtied, share(Amount::BlocksDirtied, touch.rows_written, written));
        segment.add(SegmentCounter::PredictedReadNs, read_ns.round() as u64);
        segment.add(SegmentCounter::PredictedWriteNs, write_ns.round() as u64);
        segment.add(SegmentCounter::Statements, 1);
        segment.add(SegmentCounter::Scans, touch.scans.round() as u64);
        segment.add(SegmentCounter::RowsRead, touch.rows_read.round() as u64);
        segment.add(SegmentCounter::RowsWritten, touch.rows_written.round() as u64);
        segment.add(SegmentCounter::BlocksHit, touch.blocks_hit.round() as u64);
        segment.add(SegmentCounter::BlocksRead, touch.blocks_read.round() as u64);
        segment.add(SegmentCounter::ResultBytes, touch.result_bytes.round() as u64);
    }
}

/// What the configured unit costs say of (reading, writing) a partition, ns of CPU.
fn predicted_ns(touch: &Touch) -> (f64, f64) {
    let read_ms = touch.scans * guc::SCAN_COST.get()
        + touch.rows_read * guc::ROW_COST.get()
        + touch.blocks_hit * guc::BLOCK_HIT_COST.get();
    // With all costs set to 0 everything would be attributed to nobody.
    let nonzero = |ms: f64, events: f64| if ms > 0.0 || events <= 0.0 { ms } else { events * 1e-6 };
    (
        nonzero(read_ms, touch.scans) * 1e6,
        nonzero(touch.rows_written * guc::WRITE_COST.get(), touch.rows_written) * 1e6,
    )
}

/// Calls of a built-in trigger: one sample with their mean. No hook counts these calls: those of sampled statements stand
/// for all. `own`: without the statements on managed tables that they ran, which account for themselves, and how much of its
/// time is CPU.
fn record_built_in(
    region: &Region,
    calls: &BuiltInCalls,
    (own, cpu_share): (&BuiltInCalls, f64),
    stands_for: u32,
) {
    let Some(segment) = region.segment(calls.relation).filter(|s| s.activity().observed) else { return };
    let database = bgworker::database();
    let identity = ProfileIdentity {
        database,
        table: segment.table.load(Ordering::Relaxed) as u32,
        function: calls.function,
        event: calls.event,
        name: ProfileIdentity::name_words(&calls.name),
    };
    let Some((place, key)) = trigger::enter_profile(region, &identity) else { return };
    let profile = &region.profiles[place];
    let elapsed_ns = calls.elapsed_us * 1e3;
    let totals = [
        (Total::Calls, calls.calls),
        (Total::Weight, calls.calls),
        (Total::ElapsedNs, elapsed_ns),
        (Total::ElapsedInclusiveNs, elapsed_ns),
        (Total::BlocksHit, calls.blocks_hit),
        (Total::BlocksRead, calls.blocks_read),
        (Total::BlocksDirtied, calls.blocks_dirtied),
        (Total::WalBytes, calls.wal_bytes),
        (Total::TempBlocks, calls.temp_blocks),
    ];
    for (total, amount) in totals {
        profile.add(total, (amount.max(0.0) as u64).saturating_mul(u64::from(stands_for)));
    }
    profile.add(Total::Sampled, calls.calls as u64);
    let mut amounts = Amounts::default();
    amounts[Amount::CpuNs as usize] = (own.elapsed_us * 1e3 * cpu_share) as u64;
    amounts[Amount::BlocksRead as usize] = own.blocks_read as u64;
    amounts[Amount::WalBytes as usize] = own.wal_bytes as u64;
    amounts[Amount::TempBlocks as usize] = own.temp_blocks as u64;
    let all = (calls.calls as u64).saturating_mul(u64::from(stands_for));
    segment.add(SegmentCounter::TriggerCalls, all);
    segment.add(SegmentCounter::SampledTriggerCalls, all);
    segment.add(SegmentCounter::TriggerCostNs, cost_ns(&amounts).saturating_mul(u64::from(stands_for)));
    if segment.is_asked() {
        // Nobody here learns from it.
        return;
    }
    let mean = |sum: f64| Some(sum / calls.calls.max(1.0));
    let sample = TriggerSample {
        profile: key,
        version: 0,
        features: [0.0, 0.0, 0.0, calls.calls],
        outcomes: [
            None,
            mean(calls.elapsed_us),
            None,
            mean(calls.blocks_hit),
            mean(calls.blocks_read),
            mean(calls.blocks_dirtied),
            mean(calls.wal_bytes),
            mean(calls.temp_blocks),
        ],
    };
    region.push_trigger(&sample.encode(database));
}

/// Keys of one transaction that are remembered.
pub(super) const MAX_WINDOW: usize = 16;

/// Adds the keys of a statement to those of its transaction; long ones cannot be told again.
pub(super) fn collect(window: &mut Vec<Key>, keys: &[Key]) {
    for key in keys.iter().filter(|key| key.whole <= key.length) {
        let known = window.iter().any(|own| own.hash == key.hash && own.relation == key.relation);
        if !known && window.len() < MAX_WINDOW {
            window.push(*key);
        }
    }
}

/// Hands keys on, each for `weight` accesses; `window`: the sampled transaction that used them, 0 for keys of hot slots.
pub(super) fn push_keys<'a>(keys: impl Iterator<Item = &'a Key>, weight: u32, window: u64) {
    let Some(region) = region::get() else { return };
    let database = bgworker::database();
    for key in keys {
        // A transaction is one, whatever stands for how many of its keys.
        let stands_for = if window == 0 { key.weight } else { 1 };
        let words = KeySample::encode(
            database,
            key.relation,
            weight.saturating_mul(stands_for),
            &key.bytes[..key.length],
            key.whole,
            key.hash,
            window,
        );
        region.push_key(&words);
    }
}

/// Hands the slots of a committed transaction on.
pub(super) fn push_transaction(region: &Region, slots: &[i64], weight: u32) {
    if slots.is_empty() {
        return;
    }
    region.push_transaction(&TransactionSample::encode(bgworker::database(), weight, slots));
}

/// What trigger functions were seen to touch lately, so that the same is not said again and again.
#[derive(Debug)]
pub(super) struct RecentEdges {
    edges: [(u32, u32, bool); 64],
    next: usize,
}

impl Default for RecentEdges {
    fn default() -> Self {
        Self { edges: [(0, 0, false); 64], next: 0 }
    }
}

impl RecentEdges {
    /// Says that `function` touches these relations, unless it was said lately.
    pub(super) fn push(&mut self, region: &Region, function: u32, relations: &[Named]) {
        for named in relations.iter().take(MAX_SEGMENTS) {
            let edge = (function, named.relation, named.writes);
            if self.edges.contains(&edge) {
                continue;
            }
            self.edges[self.next] = edge;
            self.next = (self.next + 1) % self.edges.len();
            let sample = DependencySample { function, relation: named.relation, writes: named.writes };
            region.push_dependency(&sample.encode(bgworker::database()));
        }
    }
}
