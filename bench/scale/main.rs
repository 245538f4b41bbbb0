//! What several machines are worth once their load is spread: a coordinator and nodes of contrib postgres_fdw, each node
//! on its share of the processors.
//!
//! `foreshard-bench-scale [--nodes 2] [--slots 16] [--first 12] [--seconds 10] [--clients 8] [--work 40000] [--wait 90] [--measured 1]`
//!
//! Keys are those of orm-busy, drawn at random as often as the trace has them; every question has its node hash a text for
//! about a millisecond (`--work` repetitions of a word). The `--first` hottest slots begin on the first node (as many as on
//! any other are nearly balanced: keys of orm-busy are spread well by their hash). Printed are questions
//! per second and the 99th percentile: as it begins; once foreshard, in auto mode with a clock that runs faster, has done
//! nothing more for a while (at most `--wait` s); and with the best assignment there is, found by trying all of them with the true
//! counts. Bar: nine tenths of the best. Last, what the coordinator costs against asking the right node directly. Nodes have a foreshard that
//! measures one statement in ten, or none at all (`--measured 0`).
//!
//! Where there is not a processor for each of them, nodes get quotas of control groups, half of all processors together; that
//! takes a user who may make such groups. Exit code 1 when the bar is missed.

mod best;
mod load;
#[path = "../graph/read.rs"]
#[allow(dead_code, reason = "that bench reads graphs as well")]
mod read;
mod share;
mod world;

use foreshard_test::bars::{bar_least, end};
use foreshard_test::install::repository;
use foreshard_test::{Error, Result};
use load::{Asked, Background, ask_all};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use world::World;

/// The least throughput of what was found over that of the best.
const LEAST: f64 = 0.9;
/// How long nothing must happen for the search to be over.
const QUIET: Duration = Duration::from_secs(15);

/// What the command line asked for.
pub struct Options {
    /// Nodes.
    pub nodes: usize,
    /// Slots of the table.
    pub slots: usize,
    /// Slots that begin on the first node.
    pub first: usize,
    /// Seconds of every measurement.
    pub seconds: u64,
    /// Clients at a time.
    pub clients: usize,
    /// Repetitions of the word that a question hashes.
    pub work: usize,
    /// Nodes have a foreshard of their own.
    pub measured: bool,
    wait: u64,
}

fn main() -> ExitCode {
    end(parse().and_then(|options| bench(&options)))
}

fn parse() -> Result<Options> {
    let mut options = Options {
        nodes: 2,
        slots: 16,
        first: 12,
        seconds: 10,
        clients: 8,
        work: 40_000,
        measured: true,
        wait: 90,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<usize>().ok());
        match (name.as_str(), value) {
            ("--nodes", Some(n @ 2..=3)) => options.nodes = n,
            ("--slots", Some(n @ 2..=20)) => options.slots = n,
            ("--first", Some(n @ 1..=19)) => options.first = n,
            ("--seconds", Some(n @ 1..=600)) => options.seconds = n as u64,
            ("--clients", Some(n @ 1..=100)) => options.clients = n,
            ("--work", Some(n @ 1..=1_000_000)) => options.work = n,
            ("--measured", Some(n @ 0..=1)) => options.measured = n == 1,
            ("--wait", Some(n @ 10..=3_600)) => options.wait = n as u64,
            _ => return Err(Error::new(format!("{name} is not understood."), "See bench/scale/main.rs.")),
        }
    }
    Ok(options)
}

fn bench(options: &Options) -> Result<bool> {
    let accesses = read::trace(&repository().join("demo/data/orm-busy.trace.xz"))?;
    let keys = accesses.iter().max().map_or(0, |key| *key as usize + 1);
    println!(
        "{} accesses to {keys} keys in {} slots on {} nodes",
        accesses.len(),
        options.slots,
        options.nodes
    );
    let mut world = World::start(options, keys)?;
    println!("{}", world.shape()?);
    let counts = world.counts(&accesses)?;
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let mean = total as f64 / options.nodes as f64;
    let hot = best::hottest_first(&counts, options.nodes, options.first);
    world.place(&hot)?;
    let at_first = told("as it begins", &counts, &world, mean, &measure(options, &world, &accesses)?)?;
    search(options, &mut world, &accesses)?;
    let found = told("found by foreshard", &counts, &world, mean, &measure(options, &world, &accesses)?)?;
    world.place(&best::best(&counts, options.nodes))?;
    let best = told("the best there is", &counts, &world, mean, &measure(options, &world, &accesses)?)?;
    println!("  found over as it begins: {:.2}", found / at_first);
    let holds = bar_least("throughput of what was found over the best there is", found / best, LEAST);
    overhead(options, &world, &accesses)?;
    Ok(holds)
}

fn measure(options: &Options, world: &World, accesses: &[u32]) -> Result<Asked> {
    ask_all(options, world, accesses, options.clients, false)
}

/// Prints one state; questions per second.
fn told(what: &str, counts: &[(i64, u64)], world: &World, mean: f64, asked: &Asked) -> Result<f64> {
    let places = world.places()?;
    let mut loads = vec![0_u64; world.nodes()];
    for (slot, count) in counts {
        let node = places.get(slot).copied().ok_or("A slot is nowhere.")?;
        loads[node] += count;
    }
    let most = loads.iter().max().copied().unwrap_or(0);
    println!(
        "{what:<20} {:>8.0} questions/s, p50 {:>6.2} ms, p99 {:>7.2} ms; busiest node over the mean {:.3}",
        asked.per_second,
        asked.latencies.p50_ms(),
        asked.latencies.p99_ms(),
        most as f64 / mean
    );
    Ok(asked.per_second)
}

/// Lets foreshard work until it has come to rest.
fn search(options: &Options, world: &mut World, accesses: &[u32]) -> Result<()> {
    let background = Background::start(options, world, accesses)?;
    world.set_mode("auto")?;
    let (begun, mut last) = (Instant::now(), Instant::now());
    let mut moved = String::new();
    while begun.elapsed().as_secs() < options.wait
        && last.elapsed() < QUIET.max(Duration::from_secs(options.wait / 4))
    {
        let now = world.moves()?;
        if now != moved {
            (moved, last) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    for line in world.said()? {
        println!("    {line}");
    }
    world.set_mode("off")?;
    world.wait_moves()?;
    let served = background.stop()?;
    println!(
        "  {} by itself, the last one {:.0} s after auto mode began; {served} questions meanwhile, none failed",
        world.moves()?,
        last.duration_since(begun).as_secs_f64()
    );
    Ok(())
}

/// What it costs to ask by way of the coordinator.
fn overhead(options: &Options, world: &World, accesses: &[u32]) -> Result<()> {
    for clients in [1, options.clients] {
        let by_way = ask_all(options, world, accesses, clients, false)?;
        let direct = ask_all(options, world, accesses, clients, true)?;
        println!(
            "  {clients} client(s): {:.0} questions/s by the coordinator, {:.0} directly: {:.2} of it; p50 {:.2} ms against {:.2} ms, p99 {:.2} ms against {:.2} ms",
            by_way.per_second,
            direct.per_second,
            by_way.per_second / direct.per_second,
            by_way.latencies.p50_ms(),
            direct.latencies.p50_ms(),
            by_way.latencies.p99_ms(),
            direct.latencies.p99_ms()
        );
    }
    Ok(())
}
