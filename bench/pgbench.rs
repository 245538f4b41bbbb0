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

/// Runs pgbench for so many seconds; transactions per second without the time to connect.
pub fn pgbench(server: &Server, workload: Workload, clients: u32, seconds: u32, seed: u32) -> Result<f64> {
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
    let output = run(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps =
        tps_of(&text).ok_or_else(|| Error::new(format!("pgbench reported no throughput:\n{text}"), ""))?;
    match text.lines().find_map(|line| line.strip_prefix("number of failed transactions: ")) {
        Some(failed) if !failed.starts_with("0 ") => Err(Error::new(
            format!("pgbench reports failed transactions: {failed}."),
            "See the server's log.",
        )),
        _ => Ok(tps),
    }
}

/// The number in `tps = 1234.5 (without initial connection time)`.
fn tps_of(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.ends_with("(without initial connection time)"))?;
    let number = line.strip_prefix("tps = ")?.split_whitespace().next()?;
    number.parse().ok().filter(|tps: &f64| tps.is_finite() && *tps > 0.0)
}
