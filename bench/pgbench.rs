//! The workloads, and pgbench.

use crate::servers::{DATABASE, Server, lane_user};
use foreshard_test::process::{pin, processors};
use foreshard_test::{Error, Result};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// When to look for new backends: pgbench connects once to look around, then once per client.
const CONNECTING: [Duration; 3] =
    [Duration::from_millis(10), Duration::from_millis(20), Duration::from_millis(30)];

/// What pgbench does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// `SELECT abalance FROM pgbench_accounts WHERE aid = :aid`.
    Select,
    /// pgbench's simple-update: UPDATE accounts, SELECT, INSERT history in a transaction.
    Update,
    /// The same with a PL/pgSQL AFTER UPDATE row trigger that writes an audit row.
    Trigger,
}

impl Workload {
    /// Every workload, the trigger last: it stays on the table.
    pub const ALL: [Workload; 3] = [Workload::Select, Workload::Update, Workload::Trigger];

    /// The workloads a word of the command line means.
    pub fn parse(word: &str) -> Option<Vec<Workload>> {
        if word == "all" {
            return Some(Workload::ALL.to_vec());
        }
        Workload::ALL.into_iter().find(|workload| workload.name() == word).map(|workload| vec![workload])
    }

    /// Its word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Select => "select",
            Workload::Update => "update",
            Workload::Trigger => "trigger",
        }
    }

    /// pgbench's own script for it.
    fn script(self) -> &'static str {
        match self {
            Workload::Select => "--builtin=select-only",
            Workload::Update | Workload::Trigger => "--builtin=simple-update",
        }
    }
}

/// What runs of pgbench showed.
#[derive(Clone, Copy, Default)]
pub struct Speed {
    transactions: f64,
    /// Without the time to connect.
    seconds: f64,
    cpu_ticks: f64,
}

impl Speed {
    /// Transactions per second, without the time to connect.
    pub fn tps(&self) -> f64 {
        self.transactions / self.seconds
    }

    /// Transactions per clock tick of processor time that the whole server used, background workers
    /// included. Other work on the machine disturbs it less than it disturbs the time on the clock.
    pub fn per_cpu_tick(&self) -> f64 {
        self.transactions / self.cpu_ticks.max(1.0)
    }

    /// Of both together.
    pub fn and(self, other: Speed) -> Speed {
        Speed {
            transactions: self.transactions + other.transactions,
            seconds: self.seconds + other.seconds,
            cpu_ticks: self.cpu_ticks + other.cpu_ticks,
        }
    }
}

/// How long a run is.
#[derive(Clone, Copy)]
pub enum Length {
    /// On the clock.
    Seconds(u32),
    /// Transactions per client: the same work for every server.
    Transactions(u64),
}

impl Length {
    fn argument(self) -> String {
        match self {
            Length::Seconds(seconds) => format!("--time={seconds}"),
            Length::Transactions(number) => format!("--transactions={number}"),
        }
    }
}

/// Runs pgbench: one process for each processor that has a client, on that processor together with the
/// backends of its clients. Left to the kernel, who shares a processor with whom is drawn anew all the
/// time, and throughput with it: by a factor of two, since a wake-up across processors is dear.
pub fn pgbench(
    server: &Server,
    workload: Workload,
    clients: u32,
    length: Length,
    seed: u32,
) -> Result<Speed> {
    let before = server.cpu_ticks()?;
    let processors = processors();
    let lanes = u32::try_from(processors.len()).unwrap_or(1).clamp(1, clients);
    let place = |lane: u32| processors.get(lane as usize).map_or(&[][..], std::slice::from_ref);
    let mut running = Vec::new();
    for lane in 0..lanes {
        let own = clients / lanes + u32::from(lane < clients % lanes);
        let child = command(server, workload, lane, own, length, seed + 100_000 * lane).spawn()?;
        pin(child.id().cast_signed(), place(lane));
        running.push(child);
    }
    for pause in CONNECTING {
        std::thread::sleep(pause);
        for lane in 0..lanes {
            server.backends(Some(lane)).into_iter().for_each(|pid| pin(pid, place(lane)));
        }
    }
    let (mut transactions, mut tps) = (0.0, 0.0);
    for child in running {
        let (own, own_tps) = read(&child.wait_with_output()?)?;
        transactions += own;
        tps += own_tps;
    }
    let ticks = server.cpu_ticks()?.saturating_sub(before);
    Ok(Speed { transactions, seconds: transactions / tps, cpu_ticks: ticks as f64 })
}

fn command(
    server: &Server,
    workload: Workload,
    lane: u32,
    clients: u32,
    length: Length,
    seed: u32,
) -> Command {
    let install = server.cluster.install();
    // Not `Cluster::client_command`: before 17, pgbench takes the database as an argument only.
    let mut command = install.user.command(&install.program("pgbench"));
    command
        .arg("--host")
        .arg(server.cluster.socket_dir())
        .args(["--port", &server.cluster.port().to_string()])
        .arg(format!("--username={}", lane_user(lane)))
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=1", workload.script()])
        .args(["--client", &clients.to_string(), &length.argument()])
        .args(["--random-seed", &seed.to_string(), DATABASE])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The number of transactions, and those per second without the time to connect.
fn read(output: &Output) -> Result<(f64, f64)> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(Error::new(format!("pgbench failed ({}): {said}", output.status), ""));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let unread = |what: &str| Error::new(format!("pgbench reported no {what}:\n{text}"), "");
    let tps = number(&text, "tps = ", "(without initial connection time)");
    let transactions = text.lines().find_map(|line| {
        // With a number given, "done/wanted".
        let done = line.strip_prefix("number of transactions actually processed: ")?.split('/').next()?;
        done.parse::<f64>().ok()
    });
    let failed = number(&text, "number of failed transactions: ", "").unwrap_or(0.0);
    if failed > 0.0 {
        return Err(Error::new(format!("{failed} transactions of pgbench failed."), "See the server's log."));
    }
    let transactions = transactions.ok_or_else(|| unread("number of transactions"))?;
    let tps = tps.filter(|tps| *tps > 0.0).ok_or_else(|| unread("throughput"))?;
    Ok((transactions, tps))
}

/// The number behind `begin` in the line that begins and ends so.
fn number(text: &str, begin: &str, end: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(begin)?.strip_suffix(end))?;
    rest.split_whitespace().next()?.parse().ok().filter(|number: &f64| number.is_finite())
}
