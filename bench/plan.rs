//! How well and how fast placements are planned, from scratch skew to balance, against the best possible.
//!
//! `foreshard-bench-plan [--slots 10000] [--shards 100] [--leads 24] [--futures 16]`
//!
//! Bars: planned within 1 s, and max/mean at most 1.02 where the largest slot allows it. Exit code 1 when one
//! is missed.

use foreshard_core::placement::{ANY, Hold, PlanOptions, Segment, Shard, best_assignment, imbalance, plan};
use foreshard_test::{Error, Result};
use std::process::ExitCode;
use std::time::Instant;

const BAR_S: f64 = 1.0;
const BAR_IMBALANCE: f64 = 1.02;

struct Options {
    slots: usize,
    shards: usize,
    leads: usize,
    futures: usize,
}

fn parse() -> Result<Options> {
    let mut options = Options { slots: 10_000, shards: 100, leads: 24, futures: 16 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match (name.as_str(), value.parse::<usize>().ok().filter(|n| *n > 0)) {
            ("--slots", Some(n)) => options.slots = n,
            ("--shards", Some(n)) => options.shards = n,
            ("--leads", Some(n)) => options.leads = n,
            ("--futures", Some(n)) => options.futures = n,
            _ => {
                let usage = "Use [--slots N] [--shards N] [--leads N] [--futures N].";
                return Err(Error::new(format!("{name} {value} is not understood."), usage));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    foreshard_test::bars::end(parse().and_then(|options| bench(&options)))
}

/// Slots with shares of Zipf's law to the `skew`, each with its peak at another hour, all placed by number.
fn segments(options: &Options, skew: f64, hours: usize) -> Vec<Segment> {
    let curve = |slot: usize, scale: f64| -> Vec<f64> {
        let mean = scale * 100.0 * (slot as f64 + 10.0).powf(-skew);
        let angle = |lead: usize| (lead + slot % hours.max(1)) as f64 / 24.0 * std::f64::consts::TAU;
        (0..options.leads).map(|lead| mean * (1.0 + 0.5 * angle(lead).sin())).collect()
    };
    (0..options.slots)
        .map(|slot| Segment {
            id: slot as i64,
            // Neighbours, and so the hottest, begin together.
            shard: (slot * options.shards / options.slots) as i32,
            bytes: 64 << 20,
            curve: curve(slot, 1.0),
            futures: (0..options.futures).map(|k| curve(slot, 0.9 + 0.2 * (k % 7) as f64 / 7.0)).collect(),
            hold: Hold::Free,
            hot_buckets: 9,
            class: ANY,
            wait_cost: 0.0,
        })
        .collect()
}

fn bench(options: &Options) -> Result<bool> {
    let shards: Vec<Shard> = (0..options.shards as i32)
        .map(|id| Shard { id, capacity: 1_000.0, draining: false, accepts: ANY, round_trip_ms: 0.0 })
        .collect();
    let strict = PlanOptions {
        imbalance_high: 0.02,
        imbalance_low: 0.015,
        min_benefit_fraction: 0.0,
        move_cost_per_mib: 0.0,
        max_steps: options.slots,
        ..PlanOptions::default()
    };
    println!(
        "{} slots, {} shards, {} leads, {} futures",
        options.slots, options.shards, options.leads, options.futures
    );
    println!(
        "{:<34} {:>8} {:>7} {:>8} {:>8} {:>8}",
        "load", "plan s", "steps", "before", "after", "possible"
    );
    let mut all = true;
    for (name, skew, hours) in [
        ("equal, one time zone", 0.0, 1),
        ("skewed, one time zone", 0.5, 1),
        ("skewed, all time zones", 0.5, 24),
        ("very skewed, all time zones", 0.8, 24),
    ] {
        let segments = segments(options, skew, hours);
        let peaks: Vec<f64> = segments.iter().map(|s| s.curve.iter().copied().fold(0.0, f64::max)).collect();
        let possible = best_assignment(&peaks, &vec![1.0; options.shards]).lower_bound;
        let wrong = |error| Error::new(format!("{error}"), "");
        let before = imbalance(&shards, &segments).map_err(wrong)?;
        let begun = Instant::now();
        let plan = plan(&shards, &segments, &strict).map_err(wrong)?;
        let took_s = begun.elapsed().as_secs_f64();
        println!(
            "{name:<34} {took_s:>8.2} {:>7} {before:>8.3} {:>8.4} {possible:>8.4}",
            plan.steps.len(),
            plan.imbalance_after
        );
        let mut why: std::collections::BTreeMap<&str, usize> = Default::default();
        plan.refusals.iter().for_each(|r| *why.entry(r.reason.as_str()).or_default() += 1);
        if !why.is_empty() {
            println!("    not moved: {why:?}");
        }
        all &= took_s <= BAR_S && plan.imbalance_after <= BAR_IMBALANCE.max(possible * 1.02);
    }
    println!("{} planned in {BAR_S} s with max/mean {BAR_IMBALANCE}", if all { "PASS  " } else { "MISSED" });
    Ok(all)
}
