//! The workloads, and pgbench.

use crate::servers::{DATABASE, Server};
use foreshard_test::install::run;
use foreshard_test::{Error, Result};
use std::process::Stdio;

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

/// Runs pgbench for so many seconds.
pub fn pgbench(server: &Server, workload: Workload, clients: u32, seconds: u32, seed: u32) -> Result<Speed> {
    let install = server.cluster.install();
    // Not `Cluster::client_command`: before 17, pgbench takes the database as an argument only.
    let mut command = install.user.command(&install.program("pgbench"));
    command
        .arg("--host")
        .arg(server.cluster.socket_dir())
        .args(["--port", &server.cluster.port().to_string(), "--username=postgres"])
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=1", workload.script()])
        .args(["--client", &clients.to_string(), "--time", &seconds.to_string()])
        .args(["--random-seed", &seed.to_string(), DATABASE])
        .stdin(Stdio::null());
    let before = server.cpu_ticks()?;
    let output = run(&mut command)?;
    let ticks = server.cpu_ticks()?.saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let unread = |what: &str| Error::new(format!("pgbench reported no {what}:\n{text}"), "");
    let tps = number(&text, "tps = ", "(without initial connection time)");
    let transactions = number(&text, "number of transactions actually processed: ", "");
    let failed = number(&text, "number of failed transactions: ", "").unwrap_or(0.0);
    if failed > 0.0 {
        return Err(Error::new(format!("{failed} transactions of pgbench failed."), "See the server's log."));
    }
    let transactions = transactions.ok_or_else(|| unread("number of transactions"))?;
    let tps = tps.filter(|tps| *tps > 0.0).ok_or_else(|| unread("throughput"))?;
    Ok(Speed { transactions, seconds: transactions / tps, cpu_ticks: ticks as f64 })
}

/// The number behind `begin` in the line that begins and ends so.
fn number(text: &str, begin: &str, end: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(begin)?.strip_suffix(end))?;
    rest.split_whitespace().next()?.parse().ok().filter(|number: &f64| number.is_finite())
}
