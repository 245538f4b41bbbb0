//! The whole chain on a simulated cluster: it converges, and it keeps still.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::placement::PlanOptions;
use foreshard_core::sim::{Sim, SimOptions, TickReport, thrash};

/// A day with its peak at `peak_hour`, `mean` on average.
fn day(mean: f64, swing: f64, peak_hour: usize) -> Vec<f64> {
    let angle = |hour: usize| (hour as f64 - peak_hour as f64) / 24.0 * std::f64::consts::TAU;
    (0..24).map(|hour| mean * (1.0 + swing * angle(hour).cos())).collect()
}

fn options(curves: Vec<Vec<f64>>, start: Vec<usize>) -> SimOptions {
    SimOptions {
        seed: 7,
        curves,
        start,
        capacities: vec![1_000.0; 4],
        noise: 0.1,
        gaps: 0.02,
        slot_bytes: 64 << 20,
        leads: 24,
        futures: 10,
        warm_up_ticks: 48,
        cooldown_ticks: 24,
        max_moves: 4,
        min_confidence: 0.5,
        plan: PlanOptions::default(),
    }
}

fn run(options: SimOptions, ticks: usize) -> Vec<TickReport> {
    let mut sim = Sim::new(options);
    (0..ticks).map(|_| sim.tick().unwrap()).collect()
}

fn worst_thrash(reports: &[TickReport]) -> f64 {
    let shards = reports[0].shares.len();
    (0..shards)
        .map(|shard| thrash(&reports.iter().map(|report| report.shares[shard]).collect::<Vec<_>>()))
        .fold(0.0, f64::max)
}

fn moves(reports: &[TickReport]) -> usize {
    reports.iter().map(|report| report.moves).sum()
}

/// Zipf-like slots, the hottest all on the first shard.
fn zipf() -> SimOptions {
    let curves = (0..32).map(|slot| day(400.0 / (slot as f64 + 4.0), 0.5, 14)).collect();
    options(curves, (0..32).map(|slot| slot / 8).collect())
}

#[test]
fn converges_on_a_skew_and_then_keeps_still() {
    let limit = 1.0 + PlanOptions::default().imbalance_low;
    for (seed, noise) in [(1, 0.05), (3, 0.05), (7, 0.1)] {
        let reports = run(SimOptions { seed, noise, ..zipf() }, 120);
        let (first, last) = (&reports[0], &reports[119]);
        println!("{:.3} -> {:.3}, {} moves", first.imbalance, last.imbalance, moves(&reports));
        assert!(first.imbalance > 1.5, "{}", first.imbalance);
        // The planner sees forecasts; two days of noisy hours know a shard's peak to about 2 %.
        assert!(last.imbalance < limit + 0.02, "{}", last.imbalance);
        assert_eq!(moves(&reports[72..]), 0, "moves after it had converged");
        assert!(moves(&reports) <= 8, "{} moves", moves(&reports));
        assert!(worst_thrash(&reports) < 0.5, "{}", worst_thrash(&reports));
    }
}

#[test]
fn keeps_still_when_balanced() {
    let curves = (0..32).map(|slot| day(20.0, 0.8, slot % 24)).collect();
    let reports = run(options(curves, (0..32).map(|slot| slot % 4).collect()), 72);
    assert_eq!(moves(&reports), 0);
}

#[test]
fn does_not_thrash_on_a_steady_skew_it_cannot_cure() {
    // One slot is hotter than a fair share: no placement balances it, and moving it about is the
    // classical mistake.
    let mut curves: Vec<_> = (0..16).map(|_| day(10.0, 0.3, 10)).collect();
    curves[0] = day(300.0, 0.3, 10);
    let reports = run(options(curves, (0..16).map(|slot| slot / 4).collect()), 96);
    assert!(worst_thrash(&reports) < 0.5, "{}", worst_thrash(&reports));
    assert!(moves(&reports) <= 6, "{} moves", moves(&reports));
}

#[test]
fn is_deterministic() {
    assert_eq!(run(zipf(), 54), run(zipf(), 54));
}

#[test]
fn thrash_is_0_for_monotone_series_and_grows_with_oscillation() {
    assert_eq!(thrash(&[]), 0.0);
    assert_eq!(thrash(&[0.1, 0.2, 0.2, 0.9]), 0.0);
    assert_eq!(thrash(&[0.9, 0.5, 0.1]), 0.0);
    let once = thrash(&[0.0, 1.0, 0.0]);
    let often = thrash(&[0.0, 1.0, 0.0, 1.0, 0.0]);
    assert!(once > 0.0 && often > once);
}
