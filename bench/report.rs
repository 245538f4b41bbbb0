//! What a run of the bench of moves prints.

use crate::clients::{Felt, PAUSE, milliseconds};
use crate::contenders::{Cost, Course};
use foreshard_test::load::Window;
use foreshard_test::{Client, Error, Result};
use std::time::Duration;

/// Everything measured in one scenario.
pub struct Results {
    /// Rows of the table.
    pub rows: u64,
    /// Size of the slot.
    pub slot_bytes: f64,
    /// The bare copy.
    pub raw: Course,
    /// The move.
    pub moved: Course,
    /// SET TABLESPACE.
    pub tablespace: Cost,
    /// pg_repack, or why it was skipped.
    pub repack: std::result::Result<Cost, String>,
    /// What clients felt.
    pub windows: Vec<Felt>,
    /// Some of their errors.
    pub errors: Vec<String>,
}

impl Results {
    /// What clients felt meanwhile.
    pub fn felt(&self, label: &str) -> Option<&Felt> {
        self.windows.iter().find(|felt| felt.updates.label == label)
    }

    /// A time as a multiple of the bare copy's.
    pub fn ratio(&self, time: Duration) -> f64 {
        time.as_secs_f64() / self.raw.cost.elapsed.as_secs_f64()
    }
}

/// Prints all but the bars.
pub fn print(results: &Results) {
    println!("{:<12} {:>9} {:>9} {:>9} {:>16}", "", "s", "rows/s", "to raw", "WAL B/B moved");
    for (name, course) in [("raw", &results.raw), ("move", &results.moved)] {
        print_cost(name, results, &course.cost);
        for (event, at) in &course.events {
            println!("  up to {event}: {:.2} s, to raw {:.2}", at.as_secs_f64(), results.ratio(*at));
        }
    }
    print_cost("tablespace", results, &results.tablespace);
    match &results.repack {
        Ok(cost) => print_cost("pg_repack", results, cost),
        Err(reason) => println!("pg_repack    SKIPPED: {reason}"),
    }
    print_clients(results);
}

/// The clients' WAL is in it: they were at work.
fn print_cost(name: &str, results: &Results, cost: &Cost) {
    let elapsed_s = cost.elapsed.as_secs_f64();
    println!(
        "{name:<12} {elapsed_s:>9.2} {:>9.0} {:>9.2} {:>16.2}",
        results.rows as f64 / elapsed_s,
        results.ratio(cost.elapsed),
        cost.wal_bytes / results.slot_bytes
    );
}

fn print_clients(results: &Results) {
    println!("p50, p99 and max: from the time a statement was due; wait: from sending it to its answer;");
    println!("behind: how late a client sent; gap: without any answer to anybody (ms, the longest each);");
    println!("at: when the longest wait ended, s from the begin of what is measured");
    println!(
        "{:<20} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6}",
        "", "done", "p50", "p99", "max", "wait", "at", "behind", "gap", "errors"
    );
    for felt in results.windows.iter().filter(|felt| felt.updates.label != PAUSE) {
        print_window("updates", &felt.updates);
        felt.reads.iter().for_each(|window| print_window("reads", window));
    }
    results.errors.iter().for_each(|error| println!("error: {error}"));
    if let (Some(before), Some(during)) = (results.felt("before"), results.felt("move")) {
        let (before, during) = (&before.updates.latencies, &during.updates.latencies);
        println!(
            "updates during the move / before: p50 {:.2}, p99 {:.2}, max {:.2}",
            during.p50_ms() / before.p50_ms(),
            during.p99_ms() / before.p99_ms(),
            during.max_ms() / before.max_ms()
        );
    }
}

fn print_window(kind: &str, window: &Window) {
    println!(
        "{:<20} {:>8} {:>8.2} {:>8.2} {:>8.1} {:>8.1} {:>8.2} {:>8.1} {:>8.1} {:>6}",
        format!("{}, {kind}", window.label),
        window.latencies.count(),
        window.latencies.p50_ms(),
        window.latencies.p99_ms(),
        window.latencies.max_ms(),
        milliseconds(window.longest_wait),
        window.longest_wait_at.as_secs_f64(),
        milliseconds(window.longest_behind),
        milliseconds(window.longest_gap),
        window.errors
    );
}

/// Every update the clients saw committed is in the table, and no other.
pub fn verify(client: &mut Client, windows: &[Felt]) -> Result<()> {
    let updates: u64 = windows.iter().map(|felt| felt.updates.latencies.count()).sum();
    let errors: u64 = windows.iter().map(|felt| felt.updates.errors).sum();
    let found = client.query_one("SELECT sum(balance) FROM account")?;
    if errors == 0 && found != updates.to_string() {
        return Err(Error::new(
            format!("The table holds {found} updates where the clients made {updates}."),
            "This is a bug of foreshard; please report it.",
        ));
    }
    println!("verified: the table holds the clients' {updates} updates, {errors} failed");
    Ok(())
}

/// A number the server sent.
pub fn number(text: &str) -> Result<f64> {
    text.parse().map_err(|_| Error::new(format!("\"{text}\" is no number."), ""))
}
