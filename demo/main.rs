//! The whole loop on a recorded workload: distribute, observe, forecast, recommend, move
//! online, and show that it helped. Leaves its cluster running.
//!
//! `foreshard-demo [--quick] [--rate N] [--graph]`: `--quick` watches for a shorter time, `--rate`
//! sets the accesses per second instead of measuring what the machine carries, `--graph` adds a
//! chapter on Debian's packages.

mod graph;
mod replay;
mod reshard;
mod setup;
mod show;
mod trace;
mod watch;

use foreshard_core::placement::best_assignment;
use foreshard_test::load::{Load, Window};
use foreshard_test::{Client, Cluster, Error, Latencies, Result};
use replay::{Replay, UPDATE_EVERY, fingerprint};
use reshard::{Outcome, plan, reshard, show_forecasts, show_recommendations};
use setup::{BUCKET_S, CAPACITY, DATABASE, SHARDS, SLOTS};
use show::{Screen, latencies, shard_bars};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use trace::Trace;
use watch::{Observed, imbalance, per_shard};

/// Clients that replay the trace.
const CLIENTS: usize = 4;
/// The most accesses per second asked for.
const MAX_RATE: f64 = 4_000.0;
/// Share of what the machine carries that is asked for.
const RATE_SHARE: f64 = 0.35;
/// The most requests in a row.
const ROUNDS: usize = 3;

struct Options {
    quick: bool,
    rate: Option<f64>,
    graph: bool,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options { quick: false, rate: None, graph: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--graph" => options.graph = true,
                "--rate" => options.rate = arguments.next().and_then(|rate| rate.parse().ok()),
                _ => {
                    return Err(Error::new(
                        format!("Unknown argument \"{argument}\"."),
                        "Use --quick, --rate N and --graph.",
                    ));
                }
            }
        }
        Ok(options)
    }

    fn watch_time(&self) -> Duration {
        Duration::from_secs(if self.quick { 30 } else { 44 })
    }
}

fn main() -> ExitCode {
    let outcome = Options::parse().and_then(|options| run(&options));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let mut screen = Screen::new();
    let (cluster, trace) = prepare(&mut screen)?;
    let mut client = cluster.connect(DATABASE)?;
    let print_before = fingerprint(&mut client)?;
    let replay = Replay::new(trace);
    let rate = match options.rate {
        Some(rate) => rate,
        None => measure_rate(&cluster, &replay)?,
    };

    screen.heading("Observe");
    println!(
        "{CLIENTS} clients replay the trace, {rate:.0} accesses/s, 1 in {UPDATE_EVERY} an update, due at fixed times"
    );
    let load = Load::start(&cluster.conninfo(DATABASE), rate, "warm-up", replay.shoppers(CLIENTS))?;
    let before = observe(&mut client, &load, options, "before")?;
    screen.heat_map(&before.loads(), &before.shard_of, &SHARDS);

    screen.heading("Forecast of the hottest slots (cost units/s = ms of CPU per second)");
    show_forecasts(&mut client)?;

    let outcome = move_slots(&mut client, &mut screen, &load)?;
    screen.heading("After");
    let after = observe(&mut client, &load, options, "after")?;
    screen.heat_map(&after.loads(), &after.shard_of, &SHARDS);
    let errors = load.error_texts();
    let windows = load.finish()?;

    screen.heading("Client latency, counted from the time an access was due");
    let shown: Vec<Window> = windows
        .into_iter()
        .filter(|window| window.label != "warm-up" && window.label != "settling")
        .collect();
    latencies(&shown);
    errors.iter().for_each(|error| println!("  error: {error}"));
    let balance = show_balance(&mut screen, &before, &after);
    let rows = verify(&mut screen, &mut client, &replay, &print_before)?;
    if options.graph {
        graph::chapter(&mut client, &mut screen, options.quick)?;
    }
    conclude(&mut screen, &outcome, &balance, &shown, rows, &replay);
    println!(
        "\nThe cluster is still up after {:.0} s. Connect with:\n  psql \"{}\"\nor make psql; remove it with make demo-stop.",
        begin.elapsed().as_secs_f64(),
        cluster.conninfo(DATABASE)
    );
    cluster.keep();
    if outcome.failed > 0 || shown.iter().any(|window| window.errors > 0) {
        return Err(Error::new(
            format!("{} moves failed.", outcome.failed),
            "The clients' errors are above; foreshard.history tells about the moves.",
        ));
    }
    Ok(())
}

fn prepare(screen: &mut Screen) -> Result<(Cluster, Trace)> {
    screen.heading("Set up");
    let trace = Trace::load()?;
    println!("trace: {} accesses to {} objects", trace.accesses.len(), trace.keys.len());
    let cluster = setup::start_cluster()?;
    println!(
        "cluster: PostgreSQL {}, {} tablespaces, socket {}",
        cluster.install().major,
        SHARDS.len(),
        cluster.socket_dir().display()
    );
    let mut client = cluster.connect(DATABASE)?;
    let begin = Instant::now();
    let rows = setup::load_objects(&mut client, &trace)?;
    let size = client.query_one("SELECT pg_size_pretty(pg_total_relation_size('object'))")?;
    println!(
        "table object: {rows} rows, {size} with 3 indexes and an audit trigger, loaded in {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    let begin = Instant::now();
    let notices = setup::distribute(&mut client)?;
    for notice in notices {
        println!("  {notice}");
    }
    println!(
        "distributed: {SLOTS} slots over {} shards of {CAPACITY} cost units/s each, in {:.1} s",
        SHARDS.len(),
        begin.elapsed().as_secs_f64()
    );
    for (name, value) in setup::SETTINGS {
        println!("  {name} = {value}");
    }
    Ok((cluster, trace))
}

/// What the machine carries, from a short closed loop.
fn measure_rate(cluster: &Cluster, replay: &std::sync::Arc<Replay>) -> Result<f64> {
    let load =
        Load::start(&cluster.conninfo(DATABASE), f64::INFINITY, "closed loop", replay.shoppers(CLIENTS))?;
    std::thread::sleep(Duration::from_secs(3));
    let windows = load.finish()?;
    let carried = windows.first().map_or(MAX_RATE, Window::rate_per_s);
    Ok((carried * RATE_SHARE).clamp(100.0, MAX_RATE))
}

/// Lets the load settle for two readings, then watches it.
fn observe(client: &mut Client, load: &Load, options: &Options, label: &str) -> Result<Observed> {
    std::thread::sleep(Duration::from_secs(2 * BUCKET_S + 1));
    load.mark(label);
    Observed::over(client, options.watch_time())
}

/// Rounds of recommendation and request until nothing more is recommended.
fn move_slots(client: &mut Client, screen: &mut Screen, load: &Load) -> Result<Outcome> {
    let mut total = Outcome { confidence: f64::INFINITY, ..Outcome::default() };
    for round in 1..=ROUNDS {
        screen.heading(&format!("Recommendations, round {round}"));
        if !show_recommendations(client, round == 1)? {
            break;
        }
        let Some(plan) = plan(client)? else {
            println!("  predict_shard_assignment() proposes nothing confident enough");
            break;
        };
        screen.heading("Moves, under the replay");
        load.mark(&format!("during moves {round}"));
        let outcome = reshard(client, screen, &plan)?;
        load.mark("settling");
        println!(
            "  {} moves done, {} failed, {:.1} MB in {:.1} s",
            outcome.done,
            outcome.failed,
            outcome.bytes as f64 / 1e6,
            outcome.elapsed.as_secs_f64()
        );
        total.done += outcome.done;
        total.failed += outcome.failed;
        total.bytes += outcome.bytes;
        total.elapsed += outcome.elapsed;
        total.confidence = total.confidence.min(outcome.confidence);
        if outcome.done == 0 {
            break;
        }
        std::thread::sleep(Duration::from_secs(2 * BUCKET_S));
    }
    Ok(total)
}

/// Busiest shard over mean, for the same loads differently placed.
struct Balance {
    old: f64,
    new: f64,
    best: f64,
    lower_bound: f64,
}

/// Compares placements on the loads seen after the moves, since the trace drifts: the
/// loads seen before would flatter the plan that was made from them.
fn show_balance(screen: &mut Screen, before: &Observed, after: &Observed) -> Balance {
    let loads = after.loads();
    let old = per_shard(&loads, &before.shard_of, &SHARDS);
    let new = per_shard(&loads, &after.shard_of, &SHARDS);
    let list: Vec<f64> = loads.values().copied().collect();
    let yardstick = best_assignment(&list, &[CAPACITY; SHARDS.len()]);
    let mut best = vec![0.0; SHARDS.len()];
    for (load, &shard) in list.iter().zip(&yardstick.assignment) {
        best[shard] += load;
    }
    let scale = imbalance(&old).max(imbalance(&new)) * 1.1;
    screen.heading("Load per shard, the last window's loads under three placements (cost units/s)");
    println!("  the old placement");
    shard_bars(&SHARDS, &old, scale);
    println!("  the new placement");
    shard_bars(&SHARDS, &new, scale);
    println!("  the best placement of the same slots that a search with hindsight finds");
    shard_bars(&SHARDS, &best, scale);
    Balance {
        old: imbalance(&old),
        new: imbalance(&new),
        best: yardstick.imbalance,
        lower_bound: yardstick.lower_bound,
    }
}

fn verify(screen: &mut Screen, client: &mut Client, replay: &Replay, print_before: &str) -> Result<usize> {
    screen.heading("Verify");
    let rows = replay.verify(client)?;
    println!(
        "  {rows} rows carry exactly the {} updates the clients saw committed; the audit table too",
        replay.updates()
    );
    if fingerprint(client)? != print_before {
        return Err(Error::new(
            "Columns that nobody updates have changed.",
            "This is a bug of foreshard; please report it with the log.",
        ));
    }
    println!("  the other columns' fingerprint is what it was before the moves");
    Ok(rows)
}

fn conclude(
    screen: &mut Screen,
    outcome: &Outcome,
    balance: &Balance,
    windows: &[Window],
    rows: usize,
    replay: &Replay,
) {
    screen.heading("Conclusion");
    let percent = |imbalance: f64| (imbalance - 1.0) * 100.0;
    let worst = |prefix: &str, of: fn(&Latencies) -> f64| {
        let these = windows.iter().filter(|w| w.label.starts_with(prefix));
        these.map(|window| of(&window.latencies)).fold(0.0, f64::max)
    };
    let p99 = |prefix| worst(prefix, Latencies::p99_ms);
    let max = |prefix| worst(prefix, Latencies::max_ms);
    let errors: u64 = windows.iter().map(|window| window.errors).sum();
    if outcome.done == 0 {
        println!(
            "No slot was moved. The busiest shard carries {:.1} % more than the mean; the best placement of these slots would leave {:.1} %.",
            percent(balance.old),
            percent(balance.best)
        );
        return;
    }
    println!(
        "foreshard moved {} of {SLOTS} slots ({:.1} MB) in {:.1} s with a confidence of {:.2} while {} accesses went on. \
On the loads measured afterwards the busiest shard carries {:.1} % more than the mean; in the old placement it would be {:.1} %, \
in the best one found with hindsight {:.1} % (no placement can be under {:.1} %). \
The clients' p99 was {:.2} ms before, {:.2} ms during and {:.2} ms after the moves, their longest wait {:.1}, {:.1} and {:.1} ms; \
{errors} accesses failed, and all {rows} rows are what the clients wrote.",
        outcome.done,
        outcome.bytes as f64 / 1e6,
        outcome.elapsed.as_secs_f64(),
        outcome.confidence,
        replay.position(),
        percent(balance.new),
        percent(balance.old),
        percent(balance.best),
        percent(balance.lower_bound),
        p99("before"),
        p99("during"),
        p99("after"),
        max("before"),
        max("during"),
        max("after"),
    );
}
