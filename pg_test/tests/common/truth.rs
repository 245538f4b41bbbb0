//! What triggers really cost, measured without foreshard.
//!
//! * CPU: the time the kernel had the backend on a processor (`/proc/<pid>/schedstat`, ns), read by the
//!   test before and after a batch of statements, less the same for a batch whose trigger does nothing:
//!   what an insert, the call of a trigger and its measuring cost is then in neither. A loop
//!   "calibrated" beforehand would not do: the speed of a core changes from second to second with what
//!   else runs, while this is the time of the very calls that are judged. A loop that ends when a clock
//!   says so would not do either: that is time on the wall, and a busy machine shares it out.
//! * Elapsed time, with and without nested triggers: `pg_stat_user_functions` (`track_functions = all`).
//! * WAL: the difference of `pg_current_wal_insert_lsn()`, the least of several runs, since others write
//!   WAL too.
//! * Blocks: what EXPLAIN (ANALYZE, BUFFERS) says of the same statement outside the trigger.
//! * Memory: the difference of `sum(total_bytes)` of `pg_backend_memory_contexts` within the transaction.

use super::Server;
use foreshard_test::{Client, Error, Result};
use std::fs;

/// Processor time a process has used so far, ns.
pub fn cpu_ns(pid: i32) -> Result<u64> {
    let unread = || Error::new(format!("The processor time of process {pid} cannot be read."), "");
    if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/schedstat")) {
        return text.split_whitespace().next().and_then(|ns| ns.parse().ok()).ok_or_else(unread);
    }
    // A kernel without scheduler statistics: hundredths of a second, which batches of a second and more
    // do not mind.
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11).take(2));
    let ticks: Option<u64> = fields.and_then(|fields| fields.map(|field| field.parse::<u64>().ok()).sum());
    ticks.map(|ticks| ticks * 10_000_000).ok_or_else(unread)
}

/// Processor time in µs that a connection's backend uses for something.
pub fn cpu_us_of(client: &mut Client, work: impl FnOnce(&mut Client) -> Result<()>) -> Result<f64> {
    let pid = client.backend_pid();
    let before = cpu_ns(pid)?;
    work(client)?;
    Ok((cpu_ns(pid)? - before) as f64 / 1e3)
}

/// Calls and times of a function since [`function_times`] was asked before; µs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FunctionTimes {
    /// Calls that returned.
    pub calls: f64,
    /// With what it called.
    pub total_us: f64,
    /// Without.
    pub self_us: f64,
}

impl FunctionTimes {
    /// What came since.
    pub fn since(self, before: FunctionTimes) -> FunctionTimes {
        FunctionTimes {
            calls: self.calls - before.calls,
            total_us: self.total_us - before.total_us,
            self_us: self.self_us - before.self_us,
        }
    }
}

/// PostgreSQL's own statistics of a function. The connection that called it must say that it has no more.
pub fn function_times(server: &mut Server, caller: &mut Client, function: &str) -> Result<FunctionTimes> {
    caller.exec("SELECT pg_stat_force_next_flush()")?;
    let text = server.query(&format!(
        "SELECT coalesce(sum(calls), 0), coalesce(sum(total_time), 0) * 1000, coalesce(sum(self_time), 0) * 1000 \
         FROM pg_stat_user_functions WHERE funcname = '{function}'"
    ))?;
    let mut numbers = text.split('|').map(|number| number.parse::<f64>().unwrap_or(f64::NAN));
    let mut next = || numbers.next().unwrap_or(f64::NAN);
    Ok(FunctionTimes { calls: next(), total_us: next(), self_us: next() })
}

/// Bytes of WAL that a statement writes: the least of five times, since other processes write some too.
pub fn wal_bytes_of(client: &mut Client, statement: &str) -> Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        client.exec("BEGIN")?;
        // An id for the transaction comes first, so that it is not part of the difference.
        let before = client.query_one("SELECT pg_current_wal_insert_lsn() FROM pg_current_xact_id()")?;
        client.exec(statement)?;
        let bytes = client.query_one(&format!("SELECT pg_current_wal_insert_lsn() - '{before}'::pg_lsn"))?;
        client.exec("ROLLBACK")?;
        least = least.min(bytes.parse().unwrap_or(f64::INFINITY));
    }
    Ok(least)
}

/// Blocks as EXPLAIN counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Blocks {
    /// Found in shared buffers or read.
    pub touched: f64,
    /// Made dirty.
    pub dirtied: f64,
    /// Of temporary files, read.
    pub temp_read: f64,
    /// Of temporary files, written.
    pub temp_written: f64,
}

/// The blocks that a statement touches, as EXPLAIN says; what it writes is rolled back.
pub fn blocks_of(client: &mut Client, statement: &str) -> Result<Blocks> {
    // Once before, so that neither plan nor catalog is read for the first time.
    client.exec("BEGIN")?;
    client.exec(statement)?;
    client.exec("ROLLBACK; CHECKPOINT")?;
    client.exec("BEGIN")?;
    let rows = client.exec(&format!(
        "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF, FORMAT JSON) {statement}"
    ))?;
    let plan = rows.get(0, 0).unwrap_or_default().to_string();
    client.exec("ROLLBACK")?;
    // The first mention of each is the topmost node's, which has all of them.
    let first = |name: &str| {
        let (_, rest) = plan.split_once(&format!("\"{name}\": "))?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<f64>().ok()
    };
    let of =
        |name: &str| first(name).ok_or_else(|| Error::new(format!("EXPLAIN has no {name}:\n{plan}"), ""));
    Ok(Blocks {
        touched: of("Shared Hit Blocks")? + of("Shared Read Blocks")?,
        dirtied: of("Shared Dirtied Blocks")?,
        temp_read: of("Temp Read Blocks")?,
        temp_written: of("Temp Written Blocks")?,
    })
}

/// Bytes in all memory contexts of a connection's backend.
pub fn memory_bytes(client: &mut Client) -> Result<f64> {
    let text = client.query_one("SELECT sum(total_bytes) FROM pg_backend_memory_contexts")?;
    text.parse().map_err(|_| Error::new(format!("The memory contexts sum up to \"{text}\"."), ""))
}

/// Fails unless a number is near another: within a share of it or within an absolute amount.
pub fn assert_near(what: &str, found: f64, truth: f64, share: f64, absolute: f64) {
    let room = (truth.abs() * share).max(absolute);
    println!("{what}: {found:.1}, truth {truth:.1} (room {room:.1})");
    assert!(
        (found - truth).abs() <= room,
        "{what} is {found}, but the truth is {truth} (allowed: {share} of it or {absolute})"
    );
}
