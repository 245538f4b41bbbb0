//! How long a move takes against the least that copying can take and against other tools, and what
//! clients feel meanwhile.
//!
//! One table is one slot: N rows of about 200 bytes, a primary key and two indexes, under key updates and
//! key look-ups at fixed times. Measured in one run, on the same data, under the same load:
//!
//! * raw: `INSERT … SELECT` into a bare table, then the same indexes: what a copy costs
//!   without any of the rest;
//! * move: `foreshard.move_slot`, in all and up to each phase;
//! * tablespace: `ALTER TABLE … SET TABLESPACE` and the same for its indexes, what PostgreSQL has of its own;
//! * pg_repack: the same partition to the other tablespace, `scripts/repack.sh` puts the Debian package's
//!   into the staged server. Where it is missing the run says so and skips what is compared with it.
//!
//! With `--hold S`, a session keeps a write transaction on the table open for S seconds: one from the end of
//! the copy on, across what the move waits for before its last phases, one across the cutover, and one
//! across pg_repack's swap. Nobody else should notice.
//!
//! `foreshard-bench-move [--rows N] [--rate N] [--reads N] [--hold S]` (2,000,000 rows, 500 updates/s,
//! 500 reads/s, no such transaction) measures once; `--all` measures at 500 and at 2000 updates/s and with
//! an open transaction of 10 s, each in a fresh server. Exit code 1 when a bar is missed.

mod bars;
mod clients;
mod contenders;
mod report;

use clients::Clients;
use contenders::Cost;
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result};
use report::Results;
use std::process::ExitCode;
use std::time::Duration;

/// How long the load is watched without a move.
const BEFORE: Duration = Duration::from_secs(10);
/// How long clients may catch up with their schedule before the next thing is measured.
const PAUSE: Duration = Duration::from_secs(5);
/// A statement that hung when something ended is still charged to it.
const GRACE: Duration = Duration::from_millis(250);
/// The database of the bench.
const DATABASE: &str = "bench";

/// One thing to measure.
pub struct Scenario {
    rows: u64,
    /// Updates per second.
    rate: f64,
    /// Reads per second.
    reads: f64,
    /// Seconds; 0: no open transaction.
    hold_s: f64,
}

impl Scenario {
    fn label(&self) -> String {
        let hold = if self.hold_s > 0.0 { format!(", hold {} s", self.hold_s) } else { String::new() };
        format!("{} updates/s, {} reads/s{hold}", self.rate, self.reads)
    }
}

fn main() -> ExitCode {
    match parse().and_then(|scenarios| run(&scenarios)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asked for.
fn parse() -> Result<Vec<Scenario>> {
    let (mut rows, mut rate, mut reads, mut hold_s, mut all) = (2_000_000, None, 500.0, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--all" {
            all = true;
            continue;
        }
        let value = arguments.next().and_then(|value| value.parse::<f64>().ok());
        match (name.as_str(), value) {
            ("--rows", Some(number)) if number >= 2.0 => rows = number as u64,
            ("--rate", Some(number)) if number > 0.0 => rate = Some(number),
            ("--reads", Some(number)) if number >= 0.0 => reads = number,
            ("--hold", Some(number)) if (0.0..=600.0).contains(&number) => hold_s = Some(number),
            _ => {
                return Err(Error::new(
                    format!("The argument {name} is unknown or lacks a number."),
                    "Use --rows N, --rate N, --reads N and --hold SECONDS, or --all.",
                ));
            }
        }
    }
    let scenario = |rate, hold_s| Scenario { rows, rate, reads, hold_s };
    match (all, rate, hold_s) {
        (true, None, None) => Ok(vec![scenario(500.0, 0.0), scenario(2000.0, 0.0), scenario(500.0, 10.0)]),
        (true, ..) => Err(Error::new("--all chooses the rates and the open transaction itself.", "")),
        _ => Ok(vec![scenario(rate.unwrap_or(500.0), hold_s.unwrap_or(0.0))]),
    }
}

/// Measures and prints everything; whether all bars hold.
fn run(scenarios: &[Scenario]) -> Result<bool> {
    let mut bars = Vec::new();
    for scenario in scenarios {
        println!("== {}", scenario.label());
        let results = measure(scenario)?;
        report::print(&results);
        bars.push((scenario.label(), bars::of(scenario, &results)));
    }
    Ok(bars::print(&bars))
}

fn measure(scenario: &Scenario) -> Result<Results> {
    let cluster = Cluster::start(
        &ClusterOptions::new("bench")
            .set("shared_buffers", "512MB")
            .set("max_wal_size", "8GB")
            .set("maintenance_work_mem", "256MB")
            .set("foreshard.rollback_window", "0")
            // A canary stands as long as its settings say, whatever the move costs.
            .set("foreshard.canary_steps", ""),
    )?;
    let mut client = prepare(&cluster, scenario)?;
    let slot_bytes = report::number(&client.query_one("SELECT sum(bytes) FROM foreshard.slots")?)?;
    let clients = Clients::start(&cluster.conninfo(DATABASE), scenario)?;
    std::thread::sleep(Duration::from_secs(2));
    clients.mark("before");
    std::thread::sleep(BEFORE);
    rest(&mut client, &clients)?;
    clients.mark("raw copy");
    let raw = contenders::raw(&mut client)?;
    pause(&clients);
    client.exec("DROP TABLE raw")?;
    rest(&mut client, &clients)?;
    clients.mark("move");
    let moved = hold_during(&cluster, scenario, contenders::IN_THE_WAY_OF_MOVE, || {
        contenders::move_slot(&mut client)
    })?;
    pause(&clients);
    rest(&mut client, &clients)?;
    clients.mark("tablespace");
    let tablespace = contenders::set_tablespace(&mut client)?;
    pause(&clients);
    rest(&mut client, &clients)?;
    clients.mark("pg_repack");
    let repack = measure_repack(&cluster, &mut client, scenario)?;
    pause(&clients);
    std::thread::sleep(Duration::from_secs(1));
    let (windows, errors) = clients.finish()?;
    report::verify(&mut client, &windows)?;
    Ok(Results { rows: scenario.rows, slot_bytes, raw, moved, tablespace, repack, windows, errors })
}

/// Ends the measured window, once nothing of it can hang any more.
fn pause(clients: &Clients) {
    std::thread::sleep(GRACE);
    clients.mark(clients::PAUSE);
}

/// The same start for everybody: after a checkpoint every page's next change writes the whole page to the WAL,
/// which is most of what clients write; who starts without one has an easier time.
fn rest(client: &mut Client, clients: &Clients) -> Result<()> {
    clients.mark(clients::PAUSE);
    client.exec("CHECKPOINT")?;
    std::thread::sleep(PAUSE);
    Ok(())
}

/// pg_repack's cost, or why there is none.
fn measure_repack(
    cluster: &Cluster,
    client: &mut Client,
    scenario: &Scenario,
) -> Result<std::result::Result<Cost, String>> {
    if let Err(reason) = contenders::find_repack(cluster, client)? {
        return Ok(Err(reason));
    }
    client.exec("CREATE EXTENSION pg_repack")?;
    let cost = hold_during(cluster, scenario, contenders::IN_THE_WAY_OF_REPACK, || {
        contenders::repack(cluster, client)
    })?;
    Ok(Ok(cost))
}

/// Does something, with a transaction open at those moments when the scenario wants one.
fn hold_during<T>(
    cluster: &Cluster,
    scenario: &Scenario,
    moments: &'static [&'static str],
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let holder =
        (scenario.hold_s > 0.0).then(|| clients::hold(cluster, scenario.hold_s, moments)).transpose()?;
    let done = work()?;
    if let Some(holder) = holder {
        holder.join().map_err(|_| Error::new("The open transaction failed.", ""))??;
    }
    Ok(done)
}

fn prepare(cluster: &Cluster, scenario: &Scenario) -> Result<Client> {
    let mut client = cluster.connect("postgres")?;
    for shard in ["bench_a", "bench_b"] {
        let dir = cluster.make_tablespace_dir(shard)?;
        client.exec(&format!("CREATE TABLESPACE {shard} LOCATION '{}'", dir.display()))?;
    }
    client.exec(&format!("CREATE DATABASE {DATABASE}"))?;
    let mut client = cluster.connect(DATABASE)?;
    println!("loading {} rows", scenario.rows);
    client.exec(
        "CREATE TABLE account (
             id bigint PRIMARY KEY, owner int NOT NULL, opened timestamptz NOT NULL,
             balance bigint NOT NULL DEFAULT 0, note text NOT NULL)",
    )?;
    client.exec(&format!(
        "INSERT INTO account
         SELECT g, hashint8(g), timestamptz '2024-01-01' + g * interval '1 second', 0,
                repeat(md5(g::text), 5)
         FROM generate_series(1, {}) g",
        scenario.rows
    ))?;
    client.exec("CREATE INDEX account_owner ON account (owner)")?;
    client.exec("CREATE INDEX account_opened ON account (opened)")?;
    client.exec("CREATE EXTENSION foreshard")?;
    client.exec(
        "SELECT foreshard.add_shard('bench_a', 'bench_a'), foreshard.add_shard('bench_b', 'bench_b')",
    )?;
    client.exec(
        "SELECT foreshard.distribute('account', 'id', slots => 1, shards => ARRAY['bench_a']::name[])",
    )?;
    client.exec("VACUUM (ANALYZE) account")?;
    client.exec("CHECKPOINT")?;
    let size = client.query_one("SELECT pg_size_pretty(sum(bytes)) FROM foreshard.slots")?;
    println!("one slot of {size}, {} clients that update, {} that read", clients::UPDATERS, clients::READERS);
    Ok(client)
}
