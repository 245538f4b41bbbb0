//! Laws of unit costs learnt from samples.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::heat::{Rates, UnitCosts, cost_units_per_s};
use foreshard_core::unit_cost::{
    Costs, FACTOR_RANGE, MAX_ENTRIES, PRIOR_CALLS, PRIOR_MS, PRIOR_ROWS, Sampled, SlotCosts, load,
};
use proptest::prelude::*;
use std::collections::HashSet;

/// Executions that cost `factor` times what was predicted.
fn sampled(predicted_ms: f64, factor: f64) -> Sampled {
    Sampled {
        statements: 10.0,
        read_cpu_ms: predicted_ms * factor,
        predicted_read_ms: predicted_ms,
        write_cpu_ms: predicted_ms * factor,
        predicted_write_ms: predicted_ms,
        rows_written: predicted_ms,
        wal_bytes: predicted_ms * factor * 100.0,
        trigger_calls: predicted_ms,
        trigger_cost_units: predicted_ms * factor,
        ..Sampled::default()
    }
}

fn near(a: f64, b: f64, tolerance: f64) -> bool {
    (a - b).abs() <= tolerance * a.abs().max(b.abs())
}

#[test]
fn nothing_seen_is_the_guess_or_unknown() {
    let costs = Costs::new(3_600.0);
    assert_eq!(costs.table(1, 0.0), SlotCosts::default());
    assert_eq!(costs.slot(1, 2, 0.0), SlotCosts::default());
    let reads = Sampled { wal_bytes: 0.0, rows_written: 0.0, trigger_calls: 0.0, ..sampled(5.0, 2.0) };
    let mut costs = Costs::new(3_600.0);
    costs.add(1, 2, &reads, 0.0);
    let slot = costs.slot(1, 2, 0.0);
    assert!(
        slot.read_factor > 1.0 && slot.wal_bytes_per_write.is_none() && slot.trigger_cost_per_call.is_none()
    );
}

#[test]
fn shrinks_as_documented() {
    let mut costs = Costs::new(1e9);
    costs.add(1, 10, &sampled(30.0, 3.0), 0.0);
    costs.add(1, 11, &sampled(60.0, 1.0), 0.0);
    let table = costs.table(1, 0.0);
    let factor = (PRIOR_MS + 90.0 + 60.0) / (PRIOR_MS + 90.0);
    assert!(near(table.read_factor, factor, 1e-9) && near(table.write_factor, factor, 1e-9));
    assert!(near(table.wal_bytes_per_write.unwrap(), 15_000.0 / 90.0, 1e-9), "no guess to shrink towards");
    let slot = costs.slot(1, 10, 0.0);
    let plain = 150.0 / 90.0;
    let own = (PRIOR_MS * plain + 90.0) / (PRIOR_MS + 30.0) * factor / plain;
    assert!(near(slot.read_factor, own, 1e-9), "{slot:?}");
    let wal = (PRIOR_ROWS * 15_000.0 / 90.0 + 9_000.0) / (PRIOR_ROWS + 30.0);
    assert!(near(slot.wal_bytes_per_write.unwrap(), wal, 1e-9));
    let calls = (PRIOR_CALLS * 150.0 / 90.0 + 90.0) / (PRIOR_CALLS + 30.0);
    assert!(near(slot.trigger_cost_per_call.unwrap(), calls, 1e-9));
    assert_eq!(costs.slot(1, 99, 0.0), table, "a slot without samples is as its table");
}

/// With settings far off, a slot that was sampled often would look cheaper (or dearer) than one of the same kind
/// that was not.
#[test]
fn slots_of_one_kind_cost_the_same_however_often_they_were_sampled() {
    for factor in [0.05, 30.0] {
        let mut costs = Costs::new(1e9);
        costs.add(1, 1, &sampled(100.0, factor), 0.0);
        costs.add(1, 2, &sampled(0.1, factor), 0.0);
        let (often, once, never) = (costs.slot(1, 1, 0.0), costs.slot(1, 2, 0.0), costs.slot(1, 3, 0.0));
        assert!(near(often.read_factor, never.read_factor, 1e-9), "{often:?} {never:?}");
        assert!(near(once.write_factor, never.write_factor, 1e-9), "{once:?} {never:?}");
        assert_eq!(never, costs.table(1, 0.0));
    }
}

#[test]
fn a_load_adds_what_is_known() {
    let rates = Rates {
        scans_per_s: 10.0,
        rows_read_per_s: 1_000.0,
        writes_per_s: 20.0,
        blocks_read_per_s: 5.0,
        blocks_hit_per_s: 100.0,
    };
    let unit = UnitCosts::default();
    let guess = load(&rates, &unit, &SlotCosts::default(), Some(20.0));
    assert!(near(guess.cost_units_per_s, cost_units_per_s(&rates, &unit), 1e-12));
    assert_eq!((guess.wal_bytes_per_s, guess.trigger_cost_per_s), (None, None));
    let costs = SlotCosts {
        read_factor: 2.0,
        write_factor: 3.0,
        wal_bytes_per_write: Some(1_024.0),
        trigger_cost_per_call: Some(0.5),
    };
    let known = load(&rates, &unit, &costs, Some(40.0));
    assert!(near(known.cpu_ms_per_s, 2.0 * 1.2 + 3.0, 1e-12), "{known:?}");
    assert_eq!((known.wal_bytes_per_s, known.trigger_cost_per_s), (Some(20.0 * 1_024.0), Some(20.0)));
    let blocks = 5.0 * unit.block_read + 100.0 * unit.block_hit;
    assert!(near(known.cost_units_per_s, 5.4 + blocks + 20.0 * unit.wal_kb + 20.0, 1e-12));
    assert_eq!(load(&rates, &unit, &costs, None).trigger_cost_per_s, None);
}

#[test]
fn one_absurd_batch_does_not_poison() {
    let mut costs = Costs::new(1e9);
    (0..100).for_each(|_| costs.add(1, 1, &sampled(10.0, 2.0), 0.0));
    costs.add(1, 1, &Sampled { read_cpu_ms: 1e300, predicted_read_ms: 1.0, ..Sampled::default() }, 0.0);
    costs.add(
        1,
        1,
        &Sampled { read_cpu_ms: f64::INFINITY, predicted_read_ms: f64::NAN, ..Sampled::default() },
        0.0,
    );
    costs.add(1, 1, &Sampled { write_cpu_ms: -5.0, predicted_write_ms: 1.0, ..Sampled::default() }, 0.0);
    costs.add(1, 1, &sampled(10.0, 2.0), f64::NAN);
    let slot = costs.slot(1, 1, 0.0);
    assert!((1.9..2.2).contains(&slot.read_factor) && (1.9..2.1).contains(&slot.write_factor), "{slot:?}");
}

#[test]
fn forgotten_slots_make_room() {
    let mut costs = Costs::new(10.0);
    for segment in 0..=MAX_ENTRIES as i64 {
        costs.add(1, segment, &sampled(1.0, 4.0), 0.0);
    }
    assert_eq!((costs.slots(), costs.overflowed()), (MAX_ENTRIES, 1));
    assert_eq!(costs.slot(1, MAX_ENTRIES as i64, 0.0), costs.table(1, 0.0));
    costs.add(1, 0, &sampled(1.0, 4.0), 1_000.0);
    costs.prune(1_000.0);
    assert_eq!(costs.slots(), 1);
}

#[test]
fn what_is_gone_is_forgotten_at_once() {
    let mut costs = Costs::new(3_600.0);
    costs.add(1, 10, &sampled(30.0, 3.0), 0.0);
    costs.add(1, 11, &sampled(60.0, 1.0), 0.0);
    costs.add(2, 10, &sampled(60.0, 5.0), 0.0);
    let (table, slot) = (costs.table(1, 0.0), costs.slot(1, 11, 0.0));
    costs.retain(&HashSet::from([(1, 11), (3, 12)]));
    assert_eq!(costs.slots(), 1);
    assert_eq!((costs.table(1, 0.0), costs.slot(1, 11, 0.0)), (table, slot), "what is there stays as it was");
    assert_eq!(costs.slot(1, 10, 0.0), costs.slot(1, 99, 0.0), "as one that was never seen");
    assert_eq!(costs.table(2, 0.0), SlotCosts::default(), "no slot of it is left");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn exact_when_all_slots_cost_the_same(
        factor in 0.02_f64..50.0,
        batches in prop::collection::vec((0_i64..8, 0.1_f64..1e4, 0.0_f64..100.0), 1..60),
    ) {
        let (mut costs, mut guessed_right) = (Costs::new(600.0), Costs::new(600.0));
        let (mut now_s, mut predicted_ms) = (0.0, 0.0);
        for (segment, ms, gap_s) in &batches {
            now_s += gap_s;
            predicted_ms = predicted_ms * (-gap_s / 600.0_f64).exp2() + ms;
            costs.add(1, *segment, &sampled(*ms, factor), now_s);
            guessed_right.add(1, *segment, &sampled(*ms, 1.0), now_s);
        }
        // The guess keeps exactly the weight of its pseudo-counts.
        let off = (factor - 1.0).abs() * PRIOR_MS / (PRIOR_MS + predicted_ms) + 1e-9 * factor;
        for segment in 0..9 {
            let slot = costs.slot(1, segment, now_s);
            prop_assert!((slot.read_factor - factor).abs() <= off, "{:?} {}", slot, off);
            prop_assert!((slot.write_factor - factor).abs() <= off);
            prop_assert!(near(slot.wal_bytes_per_write.unwrap(), 100.0 * factor, 1e-6));
            prop_assert!(near(slot.trigger_cost_per_call.unwrap(), factor, 1e-6));
            let slot = guessed_right.slot(1, segment, now_s);
            prop_assert!(near(slot.read_factor, 1.0, 1e-9) && near(slot.write_factor, 1.0, 1e-9));
        }
    }

    #[test]
    fn evidence_wins_and_its_absence_is_the_table(
        own in 0.02_f64..50.0,
        others in 0.02_f64..50.0,
        elapsed_s in 0.0_f64..5_000.0,
    ) {
        let mut costs = Costs::new(100.0);
        costs.add(1, 1, &sampled(1e6, own), 0.0);
        costs.add(1, 2, &sampled(1e6, others), 0.0);
        let slot = costs.slot(1, 1, 0.0);
        prop_assert!((slot.read_factor - own).abs() <= 1e-4 * (own + others), "{:?}", slot);
        // The more it decays, the nearer the slot comes to its table.
        let gap = |now_s: f64| (costs.slot(1, 1, now_s).read_factor - costs.table(1, now_s).read_factor).abs();
        let ratio = 1e6 * (-elapsed_s / 100.0_f64).exp2() / PRIOR_MS;
        prop_assert!(gap(elapsed_s) <= (own - others).abs().max((own - 1.0).abs()) * ratio.min(1.0) + 1e-9);
        prop_assert_eq!(costs.slot(1, 3, elapsed_s), costs.table(1, elapsed_s));
        prop_assert_eq!(costs.slot(7, 1, elapsed_s), SlotCosts::default());
    }

    #[test]
    fn costs_are_bounded_whatever_is_sampled(
        batches in prop::collection::vec((any::<f64>(), any::<f64>(), any::<f64>(), any::<f64>(), 0.0_f64..1e4), 1..20),
    ) {
        let mut costs = Costs::new(60.0);
        let mut now_s = 0.0;
        for (a, b, c, d, gap_s) in batches {
            now_s += gap_s;
            let batch = Sampled {
                read_cpu_ms: a,
                predicted_read_ms: b,
                write_cpu_ms: c,
                predicted_write_ms: d,
                wal_bytes: a,
                rows_written: c,
                trigger_calls: b,
                trigger_cost_units: d,
                ..Sampled::default()
            };
            costs.add(1, 1, &batch, now_s);
        }
        let slot = costs.slot(1, 1, now_s);
        for factor in [slot.read_factor, slot.write_factor] {
            prop_assert!((FACTOR_RANGE.0..=FACTOR_RANGE.1).contains(&factor), "{:?}", slot);
        }
        for cost in [slot.wal_bytes_per_write, slot.trigger_cost_per_call].into_iter().flatten() {
            prop_assert!(cost.is_finite() && cost >= 0.0);
        }
    }
}
