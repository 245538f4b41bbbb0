//! What a measured trigger call says.

use super::samples::TriggerSample;
use crate::pg::region::Region;
use crate::pg::trigger::Measured;
use crate::pg::{bgworker, guc};
use foreshard_core::frames::{Amount, Amounts, Spent};
use foreshard_core::shared::{SegmentCounter, Total};

/// Amounts without the time that measuring inside the piece took.
pub(super) fn without_overhead(amounts: &Amounts) -> Amounts {
    let mut own = *amounts;
    let overhead_ns = amounts[Amount::OverheadNs as usize];
    for time in [Amount::CpuNs, Amount::ElapsedNs] {
        own[time as usize] = own[time as usize].saturating_sub(overhead_ns);
    }
    own
}

/// Nano cost units (ns of CPU) of amounts.
pub(super) fn cost_ns(amounts: &Amounts) -> u64 {
    let of = |amount: Amount| amounts[amount as usize] as f64;
    let io_ms = of(Amount::BlocksRead) * guc::BLOCK_READ_COST.get()
        + of(Amount::WalBytes) / 1024.0 * guc::WAL_KB_COST.get()
        + of(Amount::TempBlocks) * guc::TEMP_BLOCK_COST.get();
    (of(Amount::CpuNs) + io_ms * 1e6) as u64
}

/// Nano cost units of a call, without what others account for.
pub(super) fn own_cost_ns(spent: &Spent) -> u64 {
    cost_ns(&without_overhead(&spent.own))
}

/// Records a call. `memory`: memory was measured, too.
pub(super) fn record(region: &Region, call: &Measured, spent: &Spent, memory: bool) {
    let inclusive = without_overhead(&spent.inclusive);
    let exclusive = without_overhead(&spent.exclusive);
    let totals = [
        (Total::CpuNs, exclusive[Amount::CpuNs as usize]),
        (Total::CpuInclusiveNs, inclusive[Amount::CpuNs as usize]),
        (Total::ElapsedNs, exclusive[Amount::ElapsedNs as usize]),
        (Total::ElapsedInclusiveNs, inclusive[Amount::ElapsedNs as usize]),
        (Total::BlocksHit, exclusive[Amount::BlocksHit as usize]),
        (Total::BlocksRead, exclusive[Amount::BlocksRead as usize]),
        (Total::BlocksDirtied, exclusive[Amount::BlocksDirtied as usize]),
        (Total::WalBytes, exclusive[Amount::WalBytes as usize]),
        (Total::TempBlocks, exclusive[Amount::TempBlocks as usize]),
        (Total::MemoryBytes, inclusive[Amount::MemoryBytes as usize]),
        (Total::MemoryWeight, u64::from(memory)),
        (Total::Weight, 1),
    ];
    for (total, amount) in totals {
        call.profile.add(total, amount.saturating_mul(u64::from(call.draw.weight)));
    }
    call.profile.add(Total::Sampled, 1);
    if let Some(segment) = call.segment {
        let weight = u64::from(call.draw.weight);
        segment.add(SegmentCounter::SampledTriggerCalls, weight);
        segment.add(SegmentCounter::TriggerCostNs, weight.saturating_mul(own_cost_ns(spent)));
    }
    if call.segment.is_some_and(|segment| segment.is_asked()) {
        // Nobody here learns from it.
        return;
    }
    let of = |amount: Amount| Some(inclusive[amount as usize] as f64);
    let rows = call.features.transition_rows.or(call.statement_rows).unwrap_or(1);
    let sample = TriggerSample {
        profile: call.profile_key,
        version: call.version,
        features: [
            call.features.tuple_bytes as f64,
            call.features.non_null as f64,
            call.features.changed as f64,
            rows as f64,
        ],
        outcomes: [
            Some(inclusive[Amount::CpuNs as usize] as f64 / 1e3),
            Some(inclusive[Amount::ElapsedNs as usize] as f64 / 1e3),
            of(Amount::MemoryBytes).filter(|_| memory),
            of(Amount::BlocksHit),
            of(Amount::BlocksRead),
            of(Amount::BlocksDirtied),
            of(Amount::WalBytes),
            of(Amount::TempBlocks),
        ],
    };
    region.push_trigger(&sample.encode(bgworker::database()));
}
