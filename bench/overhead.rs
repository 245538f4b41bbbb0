//! What watching costs: throughput of a server that foreshard observes against the same partitioned
//! table in a server without foreshard.
//!
//! Four servers stand side by side with the same settings and the same 32 hash partitions: one with
//! `shared_preload_libraries` empty, one with foreshard preloaded at its defaults, where foreshard
//! distributed the table and its keeper runs, one like that with `foreshard.observe = off`, and one with
//! `foreshard.direct_lookups = off`, which tells what watching alone costs, faster look-ups aside (same bar). In a round
//! each of them runs pgbench for the same time, in turns of a second with new connections and the same
//! transactions; the order of turns goes through all permutations, and whoever has no turn is stopped
//! (SIGSTOP). So what else happens on the machine, and how it drifts, hits all of them alike, and an idle
//! keeper cannot slow the plain server down. Clients are kept on a processor each, see `pgbench`. Between
//! rounds all servers are stopped and then started in another order, so that each gets other memory. The
//! ratio to the plain server is taken within the round, of all its turns' transactions by all their time.
//!
//! Nothing waits for a disk (fsync, synchronous_commit, full_page_writes off, all in shared_buffers) and
//! partitions have fillfactor 50, so that updates stay HOT and tables keep their size: both make a
//! transaction cheaper and so an overhead larger. A keeper that was stopped looks at the counters as soon
//! as it goes on: about once a turn, which is as often as it would.
//!
//! `foreshard-bench-overhead [--pairs N] [--seconds N] [--clients N] [--scale N]
//! [--workload select|update|trigger|all] [--control] [--no-direct]`; `--control` compares two plain servers, which
//! shows the noise; `--no-direct` leaves the last server out. Exit code 1 when a bar is missed.

mod pgbench;
mod servers;

use foreshard_test::{Error, Result};
use pgbench::{Length, Speed, Workload, pgbench};
use servers::Server;
use std::process::ExitCode;

/// Least ratio to the plain server with everything at its default.
const BAR_DEFAULTS: f64 = 0.98;
/// Least ratio with observation switched off.
const BAR_OFF: f64 = 0.995;
/// The setting that switches watching off.
const OBSERVE: &str = "foreshard.observe";
/// Length of the run before the first measured one: longer than `foreshard.bucket`, so that the keeper
/// has read the counters at least twice under load.
const WARM_UP_S: u32 = 22;
/// Length of the run before each round: caches of processes are filled, keepers are there.
const LEAD_IN_S: u32 = 3;
/// Length of a turn, s: short, because virtual machines get slow for a second now and then, but long
/// enough for a session's first statements not to matter, and as long as a keeper's pause: after shorter ones
/// it would work more often than in a server that is never stopped.
const TURN_S: f64 = 1.0;

/// What the command line asked for.
pub struct Options {
    pairs: usize,
    seconds: u32,
    clients: u32,
    scale: u32,
    workloads: Vec<Workload>,
    control: bool,
    no_direct: bool,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options {
            pairs: 9,
            seconds: 15,
            clients: 2,
            scale: 10,
            workloads: Workload::ALL.to_vec(),
            control: false,
            no_direct: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let flag = match name.as_str() {
                "--control" => Some(&mut options.control),
                "--no-direct" => Some(&mut options.no_direct),
                _ => None,
            };
            if let Some(flag) = flag {
                *flag = true;
                continue;
            }
            let value = arguments.next().unwrap_or_default();
            let number = value.parse::<u32>().ok().filter(|number| *number > 0);
            match (name.as_str(), number, Workload::parse(&value)) {
                ("--pairs", Some(pairs), _) => options.pairs = pairs as usize,
                ("--seconds", Some(seconds), _) => options.seconds = seconds,
                ("--clients", Some(clients), _) => options.clients = clients,
                ("--scale", Some(scale), _) => options.scale = scale,
                ("--workload", _, Some(workloads)) => options.workloads = workloads,
                _ => {
                    return Err(Error::new(
                        format!("The argument {name} is unknown or its value \"{value}\" is not allowed."),
                        "Use --pairs N, --seconds N, --clients N, --scale N, --workload \
                         select|update|trigger|all, --control, --no-direct.",
                    ));
                }
            }
        }
        Ok(options)
    }

    fn states(&self) -> Vec<State> {
        let state = |name, preloaded, off, bar| State { name, preloaded, off, bar };
        let plain = state("plain", false, None, None);
        if self.control {
            return vec![plain, state("plain again", false, None, None)];
        }
        let mut states = vec![
            plain,
            state("defaults", true, None, Some(BAR_DEFAULTS)),
            state("observe off", true, Some(OBSERVE), Some(BAR_OFF)),
        ];
        if !self.no_direct {
            states.push(state("direct off", true, Some("foreshard.direct_lookups"), Some(BAR_DEFAULTS)));
        }
        states
    }
}

/// One of the things compared.
struct State {
    name: &'static str,
    preloaded: bool,
    /// A setting that is off.
    off: Option<&'static str>,
    bar: Option<f64>,
}

/// What a state reached, round by round.
type Series = Vec<Speed>;

fn main() -> ExitCode {
    foreshard_test::bars::end(Options::parse().and_then(|options| run(&options)))
}

/// Measures and prints everything; whether all bars hold.
fn run(options: &Options) -> Result<bool> {
    let states = options.states();
    let mut servers = Vec::new();
    for state in &states {
        servers.push(Server::start(state.name, state.preloaded, options.scale)?);
    }
    servers::require_same_table(&mut servers)?;
    println!(
        "{}; {} rows in 32 partitions; {} rounds of {} s, {} clients, -M prepared",
        servers[0].version()?,
        options.scale * 100_000,
        options.pairs,
        options.seconds,
        options.clients
    );
    println!("every server: {}", servers::settings_text());
    print_head();
    let mut good = true;
    for workload in &options.workloads {
        let series = measure(options, &mut servers, &states, *workload)?;
        good &= report(*workload, &states, &series);
    }
    Ok(good)
}

/// All rounds of one workload.
fn measure(
    options: &Options,
    servers: &mut [Server],
    states: &[State],
    workload: Workload,
) -> Result<Vec<Series>> {
    let mut warm = Vec::new();
    for (server, state) in servers.iter_mut().zip(states) {
        server.prepare_workload(workload)?;
        server.stop()?;
        server.prepare_round(workload)?;
        warm.push(pgbench(server, workload, options.clients, Length::Seconds(WARM_UP_S), 1)?);
        if state.preloaded && state.off != Some(OBSERVE) {
            server.require_observing(workload)?;
        }
        if let Some(setting) = state.off {
            server.switch_off(setting)?;
        }
    }
    // What a client of the plain server does in a turn.
    let per_turn = warm.first().map_or(0.0, Speed::tps) * TURN_S / f64::from(options.clients);
    let turn = Length::Transactions(per_turn.max(1.0) as u64);
    let mut series: Vec<Series> = states.iter().map(|_| Series::new()).collect();
    for round in 0..options.pairs {
        let speeds = measure_round(options, servers, workload, turn, round)?;
        for ((own, speed), state) in series.iter_mut().zip(speeds).zip(states) {
            eprintln!("{} round {} {}: {:.0} tps", workload.name(), round + 1, state.name, speed.tps());
            own.push(speed);
        }
    }
    Ok(series)
}

/// One round: what each server reached.
fn measure_round(
    options: &Options,
    servers: &mut [Server],
    workload: Workload,
    length: Length,
    round: usize,
) -> Result<Vec<Speed>> {
    for server in servers.iter_mut() {
        server.stop()?;
    }
    for index in order(servers.len(), round) {
        servers[index].prepare_round(workload)?;
        pgbench(&servers[index], workload, options.clients, Length::Seconds(LEAD_IN_S), 1)?;
    }
    servers.iter().for_each(Server::hold);
    let mut speeds = vec![Speed::default(); servers.len()];
    let turns = (f64::from(options.seconds) / TURN_S) as usize;
    for turn in 0..turns {
        for index in order(servers.len(), round + turn) {
            let server = &servers[index];
            server.release();
            // The same keys for every server.
            let seed = (1000 * (round + 1) + turn) as u32;
            let speed = pgbench(server, workload, options.clients, length, seed)?;
            server.hold();
            speeds[index] = speeds[index].and(speed);
        }
    }
    servers.iter().for_each(Server::release);
    Ok(speeds)
}

/// The order of states in a turn: every permutation of two or three in turn, so that no state profits
/// from always following another.
fn order(states: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..states).map(|place| (place + round) % states).collect();
    if (round / states) % 2 == 1 {
        order.reverse();
    }
    order
}

fn print_head() {
    println!(
        "{:<9} {:<12} {:>9} {:>9} {:>8} {:>8} {:>8} {:>8} {:>6}",
        "workload", "state", "plain tps", "tps", "median", "min", "max", "by cpu", "bar"
    );
}

/// Prints the lines of a workload; whether its bars hold. "by cpu" is the median of the same ratio taken
/// of transactions per processor time of the server; it is no bar, but steadier on a busy machine.
fn report(workload: Workload, states: &[State], series: &[Series]) -> bool {
    let mut good = true;
    let column = |own: &Series, of: fn(&Speed) -> f64| sorted(own.iter().map(of));
    for (state, own) in states.iter().zip(series).skip(1) {
        let ratios = |of: fn(&Speed) -> f64| sorted(own.iter().zip(&series[0]).map(|(a, b)| of(a) / of(b)));
        let by_time = ratios(Speed::tps);
        let by_cpu = ratios(Speed::per_cpu_tick);
        let (bar, verdict) = match state.bar {
            None => ("-".to_string(), ""),
            Some(bar) if median(&by_time) >= bar => (format!("{bar}"), "PASS"),
            Some(bar) => {
                good = false;
                (format!("{bar}"), "MISS")
            }
        };
        println!(
            "{:<9} {:<12} {:>9.0} {:>9.0} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {bar:>6} {verdict}",
            workload.name(),
            state.name,
            median(&column(&series[0], Speed::tps)),
            median(&column(own, Speed::tps)),
            median(&by_time),
            by_time.first().copied().unwrap_or(f64::NAN),
            by_time.last().copied().unwrap_or(f64::NAN),
            median(&by_cpu),
        );
    }
    good
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => at(n / 2),
        n => (at(n / 2 - 1) + at(n / 2)) / 2.0,
    }
}
