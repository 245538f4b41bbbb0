//! What chosen keys are worth: keys that are used together gathered on one shard, and a hot table brought to balance.
//!
//! `foreshard-bench-place [TRACE] [--only PART] [--slots 16] [--shards 8] [--window 8] [--period N] [--gate]`
//!
//! TRACE is a list of accessed keys, 4-byte big-endian integers, plain or .xz; orm-busy unless named. Consecutive
//! accesses, WINDOW at a time, are used together. Parts:
//!
//! * `gather`: learns on the first half, places keys, and follows the second half, replanning every PERIOD windows
//!   (a 40th of the trace, at most 10,000, and 20 times as many are the half-life of what was seen);
//!   windows are judged by where keys were before the window was seen. A change copies its whole slot: keys and bytes
//!   that move are printed. Bars: at most 40 % of the windows on more than one shard, max/mean load at most 1.10.
//! * `balance`: four slots a shard to begin with; splits, isolations, merges and moves as the decisions of the core have
//!   them, again and again, with the second half judged: max/mean load per shard at most 5 % over the best possible
//!   with that many shards, on 8 and on 64 shards. Numbers of slots are bounded by the settings; printed.
//! * `server` (FORESHARD_PG names a staged version): prepared look-ups of the trace's keys on a table with the lists of
//!   `gather` against the same table without, in interleaved pairs. Bar: at least 0.8 of the rate.
//!
//! `--gate`: a fifth of the trace, without a server, for the tests. Exit code 1 when a bar is missed.

mod balance;
mod gather;
#[path = "../graph/read.rs"]
#[allow(dead_code, reason = "that bench reads graphs as well")]
mod read;
mod server;

use foreshard_test::install::repository;
use foreshard_test::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line asked for.
pub struct Options {
    trace: PathBuf,
    only: Option<String>,
    /// Slots of the table.
    pub slots: usize,
    /// Shards.
    pub shards: usize,
    /// Accesses of a window.
    pub window: usize,
    /// Windows between two plans; None: 10,000, of short traces fewer.
    pub period: Option<usize>,
    /// Pairs of runs of the server part.
    pub pairs: usize,
    gate: bool,
}

const PARTS: [&str; 3] = ["gather", "balance", "server"];

impl Options {
    fn parse() -> Result<Options> {
        let usage = "Use [TRACE] [--only PART] [--slots N] [--shards N] [--window N] [--period N] [--pairs N] [--gate].";
        let mut options = Options {
            trace: repository().join("demo/data/orm-busy.trace.xz"),
            only: None,
            slots: 16,
            shards: 8,
            window: 8,
            period: None,
            pairs: 5,
            gate: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if !name.starts_with("--") {
                options.trace = name.into();
                continue;
            }
            if name == "--gate" {
                options.gate = true;
                continue;
            }
            let value = arguments.next().unwrap_or_default();
            match (name.as_str(), value.parse::<usize>().ok().filter(|n| *n > 0)) {
                ("--only", _) if PARTS.contains(&value.as_str()) => options.only = Some(value),
                ("--slots", Some(n @ 1..=1_024)) => options.slots = n,
                ("--shards", Some(n @ 2..=256)) => options.shards = n,
                ("--window", Some(n @ 2..=64)) => options.window = n,
                ("--period", Some(n)) => options.period = Some(n),
                ("--pairs", Some(n @ 1..=100)) => options.pairs = n,
                _ => return Err(Error::new(format!("{name} {value} is not understood."), usage)),
            }
        }
        Ok(options)
    }

    fn asks(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }
}

fn main() -> ExitCode {
    foreshard_test::bars::end(Options::parse().and_then(|options| bench(&options)))
}

fn bench(options: &Options) -> Result<bool> {
    let mut accesses = read::trace(&options.trace)?;
    if options.gate {
        accesses.truncate(accesses.len() / 5);
    }
    let keys = accesses.iter().max().map_or(0, |key| *key as usize + 1);
    println!("trace: {} accesses to {keys} keys", accesses.len());
    let mut holds = true;
    let mut layout = None;
    if options.asks("gather") || options.asks("server") {
        let (fine, last) = gather::bench(options, &accesses)?;
        holds &= fine;
        layout = Some(last);
    }
    if options.asks("balance") {
        for shards in [options.shards, options.shards * 8] {
            holds &= balance::bench(shards, &accesses, keys)?;
        }
    }
    if let Some(layout) = layout
        && options.asks("server")
        && !options.gate
        && std::env::var_os("FORESHARD_PG").is_some()
    {
        holds &= server::bench(options, &accesses, keys, &layout)?;
    }
    Ok(holds)
}
