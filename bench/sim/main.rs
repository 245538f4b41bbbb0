//! What foresight is worth: the real forecasts, plans, schedules and phases on a simulated cluster, against
//! recorded loads, in the same run with what others would do; sums over seeds.
//!
//! `foreshard-bench-sim TRACE [--slots 64] [--shards 8] [--days 7] [--seed 1] [--seeds 3] [--skew 0.5]
//! [--utilisation 0.8] [--gib 16] [--gate]`
//!
//! TRACE is a folder of `timestamp,value` files (or one such file), of which scenes are composed (see
//! `core::sim::compose`), or a list of accessed keys: 4-byte big-endian integers, as they are or packed by xz.
//! Overload-minutes are summed over shards; the move of a GiB takes half a minute and costs load on both ends.
//! Policies: never move; reactive (E-Store); clay; foreshard; an oracle that plans with the true future; and
//! foreshard on sabotaged forecasts. Bars: where loads have seasons at least 72 % fewer overload-minutes than
//! reactive, at most 1.5 × the oracle's (or half an hour per shard and week, whatever is more) and no more bytes
//! moved than reactive; never worse than never moving where there is nothing to foresee or all is wrong; no
//! thrashing on a stationary load. `--gate`: small scenes, for the tests. Exit code 1 when a bar is missed.

#[path = "../forecast/read.rs"]
#[allow(dead_code, reason = "the bench of forecasts reads more")]
mod read;

use foreshard_core::placement::PlanOptions;
use foreshard_core::sim::{
    Clay, Composition, Foreshard, Incident, Knowledge, Never, Policy, Reactive, Report, Scene, Shape,
    by_keys, by_series, run,
};
use foreshard_test::install::run as execute;
use foreshard_test::{Error, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Least reduction of overload-minutes against the reactive policy.
const BAR_REACTIVE: f64 = 0.28;
/// Most overload-minutes against the oracle.
const BAR_ORACLE: f64 = 1.5;
/// Correlation with the day or the week before from which a series counts as seasonal.
const SEASONAL: f64 = 0.6;
/// What is nothing: overload-minutes per shard and week.
const NOTHING_MIN: f64 = 30.0;
/// Length of a tick.
const STEP_S: u32 = 300;
/// Series are read in hours: the jitter of a few events a minute is not that of a slot.
const READ_S: u32 = 3_600;

struct Options {
    trace: PathBuf,
    slots: usize,
    shards: usize,
    days: usize,
    seed: u64,
    seeds: u64,
    skew: f64,
    utilisation: f64,
    gib: f64,
    gate: bool,
}

impl Options {
    fn parse() -> Result<Options> {
        let usage = "Use TRACE [--slots 64] [--shards 8] [--days 7] [--seed 1] [--seeds 3] [--skew 0.5] [--utilisation 0.8] [--gib 16] [--gate].";
        let mut arguments = std::env::args().skip(1);
        let trace = arguments.next().ok_or_else(|| Error::new("No trace is named.", usage))?;
        let mut options = Options {
            trace: trace.into(),
            slots: 64,
            shards: 8,
            days: 7,
            seed: 1,
            seeds: 3,
            skew: 0.5,
            utilisation: 0.8,
            gib: 16.0,
            gate: false,
        };
        while let Some(name) = arguments.next() {
            if name == "--gate" {
                (options.gate, options.slots, options.shards, options.seeds) = (true, 24, 4, 2);
                continue;
            }
            let value = arguments.next().unwrap_or_default();
            let real = value.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
            match (name.as_str(), real) {
                ("--skew", Some(x)) => options.skew = x,
                ("--utilisation", Some(x)) => options.utilisation = x,
                ("--gib", Some(x)) => options.gib = x,
                _ => {}
            }
            match (name.as_str(), value.parse::<usize>().ok().filter(|n| *n > 0)) {
                ("--skew" | "--utilisation" | "--gib", _) if real.is_some() => {}
                ("--slots", Some(n @ 2..=4_096)) => options.slots = n,
                ("--shards", Some(n @ 2..=256)) => options.shards = n,
                ("--days", Some(n @ 1..=60)) => options.days = n,
                ("--seed", Some(n)) => options.seed = n as u64,
                ("--seeds", Some(n @ 1..=100)) => options.seeds = n as u64,
                _ => return Err(Error::new(format!("{name} {value} is not understood."), usage)),
            }
        }
        Ok(options)
    }

    fn composition(&self, shape: Shape, seed: u64) -> Composition {
        let day = 86_400 / STEP_S as usize;
        Composition {
            seed,
            slots: self.slots,
            shards: self.shards,
            tick_s: STEP_S,
            warm_up_ticks: 14 * day,
            ticks: self.days * day,
            skew: self.skew,
            utilisation: self.utilisation,
            slot_gib: self.gib,
            shape,
            ..Composition::default()
        }
    }
}

/// What is asked of foreshard in a scene.
#[derive(Clone, Copy, PartialEq)]
enum Bars {
    /// Fewer overloads than reactive, about as few as the oracle's.
    Foresight,
    /// No more than without any move.
    NoHarm,
    /// None: never moving would leave a draining shard as it is.
    Shown,
    /// That, and no thrashing.
    Still,
}

fn main() -> ExitCode {
    foreshard_test::bars::end(Options::parse().and_then(|options| bench(&options)))
}

/// The values of every file, gaps filled with what was before.
fn series(trace: &Path) -> Result<Vec<(u32, Vec<f64>)>> {
    let files = if trace.is_dir() { read::files(trace)? } else { vec![trace.to_path_buf()] };
    let mut all = Vec::new();
    for path in files {
        let mut last = 0.0;
        let values = read::series(&path, READ_S)?.values.into_iter();
        all.push((
            READ_S,
            values
                .map(|value| {
                    last = value.unwrap_or(last);
                    last
                })
                .collect(),
        ));
    }
    Ok(all)
}

/// Whether a series in hours repeats itself by the day or the week.
fn is_seasonal(values: &[f64]) -> bool {
    let correlation = |lag: usize| {
        let pairs: Vec<(f64, f64)> = values.iter().copied().zip(values.iter().skip(lag).copied()).collect();
        let n = pairs.len().max(1) as f64;
        let (a, b) = pairs.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x / n, b + y / n));
        let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
        for (x, y) in pairs {
            (ab, aa, bb) = (ab + (x - a) * (y - b), aa + (x - a).powi(2), bb + (y - b).powi(2));
        }
        if aa * bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 }
    };
    values.len() > 336 && correlation(24).max(correlation(168)) >= SEASONAL
}

/// The accessed keys of a trace.
fn keys(trace: &Path) -> Result<Vec<u32>> {
    let bytes = if trace.extension().is_some_and(|e| e == "xz") {
        execute(Command::new("xz").arg("-dc").arg(trace))?.stdout
    } else {
        std::fs::read(trace)?
    };
    let (words, rest) = bytes.as_chunks::<4>();
    if words.is_empty() || !rest.is_empty() {
        let what = format!("{} is not a list of 4-byte integers.", trace.display());
        return Err(Error::new(
            what,
            "A trace holds the accessed keys, big-endian; or name a folder of CSV files.",
        ));
    }
    Ok(words.iter().map(|word| u32::from_be_bytes(*word)).collect())
}

fn scenes(options: &Options, seed: u64) -> Result<Vec<(String, Bars, Scene)>> {
    let name = options.trace.to_string_lossy().into_owned();
    if !options.trace.is_dir() && !name.ends_with(".csv") && !name.ends_with(".csv.gz") {
        let keys = keys(&options.trace)?;
        let distinct = keys.iter().collect::<HashSet<_>>().len();
        let how = options.composition(Shape::Seasonal, seed);
        // Four weeks, half of them watched.
        let per_tick = (keys.len() / (28 * 288)).max(1);
        if seed == options.seed {
            println!("{} accesses to {distinct} keys, {per_tick} in a tick of {STEP_S} s", keys.len());
        }
        return Ok(vec![("keys".to_string(), Bars::NoHarm, by_keys(&keys, per_tick, &how))]);
    }
    let series = series(&options.trace)?;
    let seasonal: Vec<_> = series.iter().filter(|(_, values)| is_seasonal(values)).cloned().collect();
    if seed == options.seed {
        println!("{} series, {} of them seasonal", series.len(), seasonal.len());
    }
    let mut scenes: Vec<(String, Bars, Scene)> = Shape::ALL
        .into_iter()
        .map(|shape| {
            let bars = match shape {
                Shape::Seasonal | Shape::Shifting => Bars::Foresight,
                Shape::Flash | Shape::Noise | Shape::Walk => Bars::NoHarm,
                Shape::Stationary => Bars::Still,
            };
            let of = if bars == Bars::Foresight && !seasonal.is_empty() { &seasonal } else { &series };
            (shape.as_str().to_string(), bars, by_series(of, &options.composition(shape, seed)))
        })
        .collect();
    let mut how = options.composition(Shape::Seasonal, seed);
    let (begin, day) = (how.warm_up_ticks, 86_400 / STEP_S as usize);
    how.utilisation = 0.6;
    how.incidents = vec![
        Incident::Drain { tick: begin + day, shard: 0 },
        Incident::SlowCopies { from: begin + 2 * day, until: begin + 3 * day, factor: 10.0 },
        Incident::Loss { tick: begin + 3 * day, shard: 1 },
    ];
    scenes.push(("incidents".to_string(), Bars::Shown, by_series(&series, &how)));
    Ok(scenes)
}

/// Every policy's report, in the order of the table.
fn reports(scene: &Scene) -> Vec<Report> {
    let rule = |policy: &mut dyn Policy| run(scene, policy);
    let foreshard = |knowledge: Knowledge| {
        rule(&mut Foreshard::new(
            knowledge,
            PlanOptions {
                move_cost_per_mib: scene.moves.cost_per_mib * 2.0,
                payback_s: 86_400.0,
                min_hot_buckets: 2,
                ..PlanOptions::default()
            },
        ))
    };
    std::thread::scope(|scope| {
        let wrong = scope.spawn(|| foreshard(Knowledge::Sabotaged));
        let mut reports = vec![
            rule(&mut Never),
            rule(&mut Reactive::default()),
            rule(&mut Clay::default()),
            foreshard(Knowledge::Forecasts),
            foreshard(Knowledge::Oracle),
        ];
        reports.extend(wrong.join());
        reports
    })
}

/// Two runs of a policy together; ratios are the mean, thrashing the worst.
fn add(sum: &mut Report, one: &Report, runs: f64) {
    sum.overload_min += one.overload_min;
    sum.excess += one.excess;
    sum.peak_to_mean += (one.peak_to_mean - sum.peak_to_mean) / runs;
    sum.bytes_moved += one.bytes_moved;
    sum.moves += one.moves;
    sum.unpaid += one.unpaid;
    sum.thrash = sum.thrash.max(one.thrash);
}

/// A scene's name, bars, shards, weeks that were counted, and every policy's sums over the seeds.
type Total = (String, Bars, usize, f64, Vec<Report>);

/// Whether the bars hold, said for each; `weeks` of `shards` shards were counted.
fn judge(options: &Options, bars: Bars, shards: usize, weeks: f64, reports: &[Report]) -> bool {
    let of = |name: &str| reports.iter().find(|report| report.policy == name);
    let (Some(never), Some(reactive), Some(ours), Some(oracle), Some(wrong)) =
        (of("never move"), of("reactive"), of("foreshard"), of("oracle"), of("sabotaged"))
    else {
        return false;
    };
    let nothing = NOTHING_MIN * shards as f64 * weeks;
    let mut all = true;
    let mut check = |what: &str, holds: bool| {
        println!("    {} {what}", if holds { "PASS  " } else { "MISSED" });
        all &= holds;
    };
    match bars {
        Bars::Foresight => {
            let limit = reactive.overload_min * BAR_REACTIVE;
            check(&format!("overload at most {limit:.0} min, 28 % of reactive"), ours.overload_min <= limit);
            let limit = (oracle.overload_min * BAR_ORACLE).max(nothing);
            check(&format!("overload at most {limit:.0} min, by the oracle's"), ours.overload_min <= limit);
            check("bytes moved no more than reactive", ours.bytes_moved <= reactive.bytes_moved);
        }
        Bars::NoHarm | Bars::Still => {
            check("no worse than never moving", ours.overload_min <= never.overload_min);
        }
        Bars::Shown => return true,
    }
    // A gate's few slots have hardly any overload that a wrong move could not add to.
    if !options.gate || bars != Bars::Foresight {
        check("no worse than never moving on wrong forecasts", wrong.overload_min <= never.overload_min);
    }
    if bars == Bars::Still {
        check("no thrashing", ours.thrash == 0.0);
    }
    all
}

fn bench(options: &Options) -> Result<bool> {
    println!(
        "{:<11} {:<11} {:>9} {:>10} {:>9} {:>10} {:>9} {:>6} {:>7} {:>7}",
        "scene",
        "policy",
        "overload",
        "x reactive",
        "x oracle",
        "peak/mean",
        "GiB moved",
        "moves",
        "unpaid",
        "thrash"
    );
    let mut all = true;
    let mut totals: Vec<Total> = Vec::new();
    for seed in options.seed..options.seed + options.seeds {
        for (at, (name, bars, scene)) in scenes(options, seed)?.into_iter().enumerate() {
            let counted = (scene.trace.ticks() - scene.warm_up_ticks) as f64;
            let weeks = counted * f64::from(scene.trace.tick_s) / 604_800.0;
            let reports = reports(&scene);
            match totals.get_mut(at) {
                Some((.., sum_weeks, sums)) => {
                    *sum_weeks += weeks;
                    let runs = (seed - options.seed + 1) as f64;
                    sums.iter_mut().zip(&reports).for_each(|(sum, one)| add(sum, one, runs));
                }
                None => totals.push((name, bars, scene.capacities.len(), weeks, reports)),
            }
        }
    }
    let mut foresight: Option<(usize, f64, Vec<Report>)> = None;
    for (name, bars, shards, weeks, reports) in totals {
        let minutes = |which: usize| reports.get(which).map_or(0.0, |report| report.overload_min);
        for report in &reports {
            let ratio =
                |to: f64| if to > 0.0 { format!("{:.2}", report.overload_min / to) } else { "-".to_string() };
            println!(
                "{name:<11} {:<11} {:>5.0} min {:>10} {:>9} {:>10.3} {:>9.1} {:>6} {:>7} {:>7.2}",
                report.policy,
                report.overload_min,
                ratio(minutes(1)),
                ratio(minutes(4)),
                report.peak_to_mean,
                report.bytes_moved as f64 / 1_073_741_824.0,
                report.moves,
                report.unpaid,
                report.thrash,
            );
        }
        if bars != Bars::Foresight {
            all &= judge(options, bars, shards, weeks, &reports);
            continue;
        }
        // Seasons alone and with hot spots are one class, and judged together.
        match &mut foresight {
            None => foresight = Some((shards, weeks, reports)),
            Some((shards, sum_weeks, sums)) => {
                sums.iter_mut().zip(&reports).for_each(|(sum, one)| add(sum, one, 2.0));
                println!("    seasonal and shifting together:");
                all &= judge(options, bars, *shards, *sum_weeks + weeks, sums);
            }
        }
    }
    Ok(all)
}
