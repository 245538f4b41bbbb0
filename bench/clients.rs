//! Who uses the table while it is copied.

use crate::{DATABASE, Scenario};
use foreshard_test::load::{Load, Session, Window};
use foreshard_test::{Client, Cluster, Error, Latencies, Result, SqlError, wait_until};
use std::thread::JoinHandle;
use std::time::Duration;

/// Clients that update.
pub const UPDATERS: usize = 8;
/// Clients that read.
pub const READERS: usize = 4;
/// The label of windows that nobody asks for.
pub const PAUSE: &str = "pause";
/// How long what is measured may take.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// A client that does one statement on random keys.
struct KeyUser {
    sql: &'static str,
    rows: u64,
    state: u64,
}

impl KeyUser {
    fn several(count: usize, sql: &'static str, rows: u64) -> Vec<KeyUser> {
        let one = |number| KeyUser { sql, rows, state: number * 0x9e37_79b9 + 12345 };
        (0..count as u64).map(one).collect()
    }
}

impl Session for KeyUser {
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        client.prepare("s", self.sql)
    }

    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        // Row 1 is left to the session of `hold`.
        let key = (self.state % (self.rows - 1) + 2).to_string();
        client.exec_prepared("s", &[Some(&key)]).map(drop)
    }
}

/// All clients at work.
pub struct Clients {
    updates: Load,
    reads: Option<Load>,
}

/// What clients felt in one window of time.
pub struct Felt {
    /// Those that update.
    pub updates: Window,
    /// Those that read, where there are any.
    pub reads: Option<Window>,
}

impl Felt {
    /// Both kinds.
    pub fn windows(&self) -> impl Iterator<Item = &Window> {
        std::iter::once(&self.updates).chain(&self.reads)
    }

    /// The 99th percentile of all latencies, from the time a statement was due.
    pub fn p99_ms(&self) -> f64 {
        let mut all = Latencies::default();
        self.windows().for_each(|window| all.add(&window.latencies));
        all.p99_ms()
    }

    /// The longest time that any client waited for an answer.
    pub fn longest_wait_ms(&self) -> f64 {
        self.windows().map(|window| milliseconds(window.longest_wait)).fold(0.0, f64::max)
    }

    /// The longest time by which any client was behind its schedule.
    pub fn longest_behind_ms(&self) -> f64 {
        self.windows().map(|window| milliseconds(window.longest_behind)).fold(0.0, f64::max)
    }
}

impl Clients {
    /// Starts the scenario's load.
    pub fn start(conninfo: &str, scenario: &Scenario) -> Result<Clients> {
        let update = "UPDATE account SET balance = balance + 1 WHERE id = $1";
        let read = "SELECT balance FROM account WHERE id = $1";
        let updaters = KeyUser::several(UPDATERS, update, scenario.rows);
        let readers = KeyUser::several(READERS, read, scenario.rows);
        let updates = Load::start(conninfo, scenario.rate, PAUSE, updaters)?;
        let reads = scenario.reads > 0.0;
        let reads = reads.then(|| Load::start(conninfo, scenario.reads, PAUSE, readers)).transpose()?;
        Ok(Clients { updates, reads })
    }

    /// Ends the current window and begins the next.
    pub fn mark(&self, label: &str) {
        self.updates.mark(label);
        self.reads.iter().for_each(|load| load.mark(label));
    }

    /// Stops them; every window, and the first few error texts.
    pub fn finish(self) -> Result<(Vec<Felt>, Vec<String>)> {
        let mut errors = self.updates.error_texts();
        errors.extend(self.reads.iter().flat_map(Load::error_texts));
        let mut reads = self.reads.map(Load::finish).transpose()?.map(Vec::into_iter);
        let updates = self.updates.finish()?;
        let felt = |updates| Felt { updates, reads: reads.as_mut().and_then(Iterator::next) };
        Ok((updates.into_iter().map(felt).collect(), errors))
    }
}

/// A session that, whenever one of the questions in turn is answered with `now`, changes one row and keeps
/// its transaction open.
pub fn hold(
    cluster: &Cluster,
    hold_s: f64,
    moments: &'static [&'static str],
) -> Result<JoinHandle<Result<()>>> {
    let mut client = cluster.connect(DATABASE)?;
    Ok(std::thread::spawn(move || {
        for moment in moments {
            wait_until("a transaction gets in the way", PATIENCE, || {
                Ok(client.query_one(moment)? != "before")
            })?;
            // A row that no client updates: it is the transaction that is in the way, not the row.
            client.exec("BEGIN; UPDATE account SET balance = balance WHERE id = 1")?;
            if client.query_one(moment)? != "now" {
                return Err(Error::new(
                    "The open transaction came too late to be in the way.",
                    "Use more --rows.",
                ));
            }
            std::thread::sleep(Duration::from_secs_f64(hold_s));
            client.exec("COMMIT")?;
        }
        Ok(())
    }))
}

/// A duration as milliseconds.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
