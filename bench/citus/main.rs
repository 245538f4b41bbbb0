//! What foreshard is worth on a Citus cluster whose load is skewed, and skewed at some hours only.
//!
//! A Citus cluster of a coordinator and two workers, each worker on a processor of its own. All tenants have as many rows, and
//! the shards are spread evenly; but the tenants that nine of ten questions are about live on shards of one worker. In one run,
//! on the same data:
//!
//! * The skew: throughput and 99th percentile in a closed loop after `citus_rebalance_start` by shard count, by disk size, and by
//!   foreshard, which has only seen the load. Bar: 1.5 times the throughput of the better of the others.
//! * A day, with a clock that runs faster: hot tenants of one worker have a peak at the same hours every day, a little higher from
//!   day to day, and on the judged day it is for the first time more than that worker can serve. Questions come when they are
//!   due, whoever answers, so that whoever falls behind has a queue. foreshard watches the days before (mode advise) until
//!   what it foresees is trusted, and is in auto mode from the judged day's night on; each of Citus' own strategies rebalances at the
//!   beginning of that day. Bars: fewer overloaded seconds than with the better of the others, where there are some; moves
//!   for what was only foreseen; and the last of them done before the first second that is overloaded with the others.
//!
//! `foreshard-bench-citus [--seconds 15] [--tenants 400] [--clients 8] [--days 3] [--day-seconds 60] [--given 0]`: seconds of every
//! closed loop (0: without the skew), days that are at least watched (0: without the day; while nothing is trusted four more, all
//! like the last one), and outcomes of foreseen steps that are given instead of earned, as if they had paid (said when it is
//! so). A day has twenty buckets. Needs an installed Citus; exit code 1 when a bar is missed or there is none. Eight to ten minutes.

mod day;
mod hours;
mod load;
mod skew;
mod world;

use foreshard_test::bars::end;
use foreshard_test::process::processors;
use foreshard_test::{Error, Result};
use std::process::ExitCode;
use world::World;

/// Buckets of a day.
pub const BUCKETS: u32 = 20;

/// What the command line asked for.
pub struct Options {
    /// Seconds of every closed loop; 0: the skewed load is left out.
    pub seconds: u32,
    /// Tenants.
    pub tenants: u32,
    /// Clients of a closed loop.
    pub clients: usize,
    /// Days that are watched before one is judged, at least; 0: the day is left out.
    pub days: u32,
    /// Length of a day, s.
    pub day_s: u32,
    /// Outcomes that are given.
    pub given: u32,
}

fn main() -> ExitCode {
    end(parse().and_then(|options| run(&options)))
}

fn parse() -> Result<Options> {
    let mut options = Options { seconds: 15, tenants: 400, clients: 8, days: 3, day_s: 60, given: 0 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u32>().ok());
        match (name.as_str(), value) {
            ("--seconds", Some(number @ 0..=3_600)) => options.seconds = number,
            ("--tenants", Some(number @ 100..=100_000)) => options.tenants = number,
            ("--clients", Some(number @ 1..=50)) => options.clients = number as usize,
            ("--days", Some(number @ 0..=100)) => options.days = number,
            ("--day-seconds", Some(number @ 40..=1_200)) if number.is_multiple_of(BUCKETS) => {
                options.day_s = number;
            }
            ("--given", Some(number @ 0..=40)) => options.given = number,
            _ => return Err(Error::new(format!("{name} is not understood."), "See bench/citus/main.rs.")),
        }
    }
    Ok(options)
}

fn run(options: &Options) -> Result<bool> {
    if processors().len() < 2 {
        return Err(Error::new("The bench needs two processors.", ""));
    }
    let mut world = World::start()?;
    world.fill(options.tenants)?;
    let hot = world.hot(options.tenants)?;
    println!("{}", world.shape()?);
    println!("{} tenants of {} rows in {} shards", options.tenants, world::ROWS, world::SHARDS);
    let mut holds = true;
    if options.seconds > 0 {
        holds &= skew::bench(options, &world, &hot)?;
    }
    if options.days > 0 {
        holds &= day::bench(options, &mut world, &hot)?;
    }
    Ok(holds)
}
