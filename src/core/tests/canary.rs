//! The steps of a canary.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::canary::{Canary, Decision, Evidence, Reason, parse_steps};
use foreshard_core::latency::Counts;

fn reads(n: u64, ns: u64) -> Counts {
    let mut counts = Counts::default();
    (0..n).for_each(|_| counts.add(ns));
    counts
}

/// Looks every 100 ms; the weights set, and how it ended.
fn run(
    steps: &str,
    dwell_ms: f64,
    mut evidence: impl FnMut(f64) -> (Counts, Counts, u64),
) -> (Vec<f64>, Decision) {
    let mut canary = Canary::new(parse_steps(steps).unwrap());
    let (mut weights, mut now_ms) = (Vec::new(), 1e6);
    for _ in 0..10_000 {
        let weight = weights.last().copied().unwrap_or(0.0);
        let (stayed, routed, differed) = evidence(weight);
        let evidence = Evidence { stayed: &stayed, routed: &routed, differed };
        match canary.look(now_ms, &evidence, dwell_ms, 2.0) {
            Decision::Wait | Decision::Measure => {}
            Decision::Weigh(share) => weights.push(share),
            end => return (weights, end),
        }
        now_ms += 100.0;
    }
    (weights, Decision::Wait)
}

#[test]
fn steps_are_rising_percentages() {
    assert_eq!(parse_steps("1, 5,25 ,100").unwrap(), [0.01, 0.05, 0.25, 1.0]);
    assert_eq!(parse_steps(" ").unwrap(), []);
    for bad in ["0", "5, 5", "101", "x", "1, 2, nan", "-1", "10, 5", "inf"] {
        assert!(parse_steps(bad).is_err(), "{bad}");
    }
    let many: Vec<String> = (1..=33).map(|n| n.to_string()).collect();
    assert!(parse_steps(&many.join(",")).is_err());
}

#[test]
fn a_good_copy_gets_all_reads() {
    let good = |_| (reads(1000, 300_000), reads(200, 310_000), 0);
    assert_eq!(run("1, 5, 25, 100", 1000.0, good), (vec![0.01, 0.05, 0.25, 1.0], Decision::Finished));
    let quiet = |_| (Counts::default(), Counts::default(), 0);
    assert_eq!(run("10, 50", 0.0, quiet), (vec![0.1, 0.5], Decision::Finished));
    assert_eq!(run("", 1000.0, quiet), (vec![], Decision::Finished));
}

#[test]
fn a_slow_copy_steps_back_and_is_given_up() {
    // Slow once a quarter of the reads go there.
    let slow =
        |weight: f64| (reads(1000, 300_000), reads(200, if weight > 0.2 { 3_000_000 } else { 300_000 }), 0);
    let (weights, end) = run("1, 5, 25, 100", 1000.0, slow);
    assert_eq!(weights, [0.01, 0.05, 0.25, 0.05, 0.25, 0.05, 0.25]);
    assert!(matches!(end, Decision::GiveUp(Reason::Slower(s)) if s.test_ms > 2.0), "{end:?}");
    // Slow for a while: it recovers.
    let mut looks = 0;
    let recovering = |_| {
        looks += 1;
        (reads(1000, 300_000), reads(200, if looks < 15 { 3_000_000 } else { 300_000 }), 0)
    };
    assert_eq!(run("10, 100", 1000.0, recovering), (vec![0.1, 0.1, 1.0], Decision::Finished));
}

#[test]
fn failures_and_differences_end_it() {
    let failing = |weight: f64| {
        let mut routed = reads(100, 300_000);
        routed.errors = if weight > 0.04 { 20 } else { 0 };
        (reads(1000, 300_000), routed, 0)
    };
    assert_eq!(run("1, 5, 25", 1000.0, failing), (vec![0.01, 0.05], Decision::GiveUp(Reason::Fails)));
    let differing = |weight: f64| (reads(10, 300_000), reads(10, 300_000), u64::from(weight > 0.2));
    assert_eq!(run("1, 5, 25", 1000.0, differing), (vec![0.01, 0.05, 0.25], Decision::Differ));
}
