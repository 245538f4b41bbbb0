//! What a measured statement, and a sampled transaction, say.

use super::samples::{DependencySample, KeySample, MAX_SEGMENTS, TransactionSample, TriggerSample};
use super::trigger::cost_ns;
use crate::pg::builtin::BuiltInCalls;
use crate::pg::plan::{Key, Named, Report, Touch};
use crate::pg::region::Region;
use crate::pg::{bgworker, guc, region, trigger};
use foreshard_core::frames::{Amount, Amounts};
use foreshard_core::shared::{ProfileIdentity, SegmentCounter, Total};
use std::sync::atomic::Ordering;

/// Divides what a statement took among the partitions it touched and its reading and writing of them, in
/// proportion to what the configured unit costs say of each; WAL and dirtied blocks go where it wrote.
///
/// `spent` is None for a statement that was not drawn itself: later statements of a sampled transaction
/// would count twice as often as first ones. `slots` collects the slots of a sampled transaction.
pub(super) fn attribute(
    region: &Region,
    spent: Option<&Amounts>,
    report: &Report,
    slots: Option<&mut Vec<i64>>,
) {
    if let Some(spent) = spent {
        attribute_costs(region, spent, report);
    }
    if let Some(slots) = slots {
        for touch in &report.touches {
            let slot = region.segment(touch.relation).map(|s| s.slot_id.load(Ordering::Relaxed) as i64);
            if let Some(slot) = slot.filter(|s| !slots.contains(s) && slots.len() < MAX_SEGMENTS) {
                slots.push(slot);
            }
        }
    }
    for calls in &report.built_in {
        record_built_in(region, calls);
    }
}

fn attribute_costs(region: &Region, spent: &Amounts, report: &Report) {
    let predicted: Vec<(f64, f64)> = report.touches.iter().map(predicted_ns).collect();
    let total: f64 = predicted.iter().map(|(read, write)| read + write).sum();
    let written: f64 = report.touches.iter().map(|t| t.rows_written).sum();
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

/// Calls of a built-in trigger: one sample with their mean.
fn record_built_in(region: &Region, calls: &BuiltInCalls) {
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
    let elapsed_ns = (calls.elapsed_us * 1e3).max(0.0) as u64;
    let totals = [
        (Total::Calls, calls.calls),
        (Total::Sampled, calls.calls),
        (Total::Weight, calls.calls),
        (Total::ElapsedNs, elapsed_ns as f64),
        (Total::ElapsedInclusiveNs, elapsed_ns as f64),
        (Total::BlocksHit, calls.blocks_hit),
        (Total::BlocksRead, calls.blocks_read),
        (Total::BlocksDirtied, calls.blocks_dirtied),
        (Total::WalBytes, calls.wal_bytes),
        (Total::TempBlocks, calls.temp_blocks),
    ];
    for (total, amount) in totals {
        profile.add(total, amount.max(0.0) as u64);
    }
    let mut amounts = Amounts::default();
    amounts[Amount::CpuNs as usize] = elapsed_ns;
    amounts[Amount::BlocksRead as usize] = calls.blocks_read as u64;
    amounts[Amount::WalBytes as usize] = calls.wal_bytes as u64;
    segment.add(SegmentCounter::TriggerCalls, calls.calls as u64);
    segment.add(SegmentCounter::SampledTriggerCalls, calls.calls as u64);
    segment.add(SegmentCounter::TriggerCostNs, cost_ns(&amounts));
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
        let words = KeySample::encode(
            database,
            key.relation,
            weight,
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
