//! What watching costs: throughput of a server that foreshard observes against the same partitioned
//! table in a server without foreshard.
//!
//! Two servers stand side by side with the same settings and the same 32 hash partitions: one with
//! `shared_preload_libraries` empty, one with foreshard preloaded at its defaults, where foreshard
//! distributed the table and its keeper runs. A round measures pgbench on each state in turn (plain,
//! defaults, `foreshard.observe = off`), in an order that changes from round to round; the ratio to the
//! plain server is taken within the round. Whatever is not measured is stopped meanwhile (SIGSTOP), so
//! that an idle keeper cannot slow the plain server down. Nothing waits for a disk (fsync,
//! synchronous_commit, full_page_writes off, all in shared_buffers) and partitions have fillfactor 50, so
//! that updates stay HOT and tables keep their size: both make a transaction cheaper and so an overhead
//! larger.
//!
//! `foreshard-bench-overhead [--pairs N] [--seconds N] [--clients N] [--scale N]
//! [--workload select|update|trigger|all] [--control]`; `--control` compares two plain servers, which
//! shows the noise. Exit code 1 when a bar is missed.

mod pgbench;
mod servers;

use foreshard_test::{Error, Result};
use pgbench::{Speed, Workload, pgbench};
use servers::{Server, Stopped};
use std::process::ExitCode;

/// Least ratio to the plain server with everything at its default.
const BAR_DEFAULTS: f64 = 0.98;
/// Least ratio with observation switched off.
const BAR_OFF: f64 = 0.995;
/// Length of the run before the first measured one: longer than `foreshard.bucket`, so that the keeper
/// has read the counters at least twice under load.
const WARM_UP_S: u32 = 22;

/// What the command line asked for.
pub struct Options {
    pairs: usize,
    seconds: u32,
    clients: u32,
    scale: u32,
    workloads: Vec<Workload>,
    control: bool,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options {
            pairs: 9,
            seconds: 15,
            // One backend per core keeps a core each busy with pgbench in between; see `pgbench`.
            clients: 2,
            scale: 10,
            workloads: Workload::ALL.to_vec(),
            control: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--control" {
                options.control = true;
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
                         select|update|trigger|all, --control.",
                    ));
                }
            }
        }
        Ok(options)
    }

    fn states(&self) -> Vec<State> {
        let state = |name, server, observe, bar| State { name, server, observe, bar };
        let plain = state("plain", 0, None, None);
        if self.control {
            return vec![plain, state("plain again", 1, None, None)];
        }
        vec![
            plain,
            state("defaults", 1, Some("on"), Some(BAR_DEFAULTS)),
            state("observe off", 1, Some("off"), Some(BAR_OFF)),
        ]
    }
}

/// One of the things compared: a server and how it is set.
struct State {
    name: &'static str,
    server: usize,
    observe: Option<&'static str>,
    bar: Option<f64>,
}

/// What a state reached, round by round.
type Series = Vec<Speed>;

fn main() -> ExitCode {
    match Options::parse().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints everything; whether all bars hold.
fn run(options: &Options) -> Result<bool> {
    let states = options.states();
    let mut servers = vec![
        Server::start("plain", false, options.scale)?,
        Server::start("second", !options.control, options.scale)?,
    ];
    servers::require_same_table(&mut servers)?;
    println!(
        "{}; {} rows in 32 partitions; {} rounds of {} s, {} clients, -M prepared",
        servers[0].version()?,
        options.scale * 100_000,
        options.pairs,
        options.seconds,
        options.clients
    );
    println!("both servers: {}", servers::settings_text());
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
    for number in 0..servers.len() {
        let others = Stopped::all_but(servers, number);
        let server = &mut servers[number];
        server.prepare_workload(workload)?;
        server.observe("on")?;
        pgbench(server, workload, options.clients, WARM_UP_S, 1)?;
        server.require_observing(workload)?;
        drop(others);
    }
    let mut series: Vec<Series> = states.iter().map(|_| Series::new()).collect();
    for round in 0..options.pairs {
        for index in order(states.len(), round) {
            let state = &states[index];
            let others = Stopped::all_but(servers, state.server);
            let server = &mut servers[state.server];
            if let Some(observe) = state.observe {
                server.observe(observe)?;
            }
            server.prepare_run(workload)?;
            // The same keys for every state of a round.
            let seed = 1000 + round as u32;
            let speed = pgbench(server, workload, options.clients, options.seconds, seed)?;
            drop(others);
            eprintln!("{} round {} {}: {:.0} tps", workload.name(), round + 1, state.name, speed.tps);
            series[index].push(speed);
        }
    }
    Ok(series)
}

/// The order of states in a round: every permutation of two or three in turn, so that no state profits
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
        let by_time = ratios(|speed| speed.tps);
        let by_cpu = ratios(|speed| speed.per_cpu_tick);
        let (bar, verdict) = match state.bar {
            None => ("-".to_string(), "CONTROL"),
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
            median(&column(&series[0], |speed| speed.tps)),
            median(&column(own, |speed| speed.tps)),
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
