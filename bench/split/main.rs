//! What a split costs, and what clients feel of it.
//!
//! One table is one slot: N rows of about 200 bytes, a primary key and two indexes, under key updates at fixed times.
//! Measured in one run, on the same data, under the same load:
//!
//! * raw: `INSERT … SELECT` into a bare table, then the same indexes: what a copy costs without any of the rest;
//! * cold split: `foreshard.split_slot` of a slot of which nothing is built;
//! * merge: `foreshard.merge_slots` of its halves;
//! * prepared split: `foreshard.prepare_split`, and then `foreshard.split_slot` as a switchover;
//! * rollback: `foreshard.rollback_move` of it (with `--window 0` there is none);
//! * by hand: DETACH, two INSERTs and two ATTACHes in one transaction.
//!
//! `foreshard-bench-split [--rows N] [--rate N] [--tables N] [--window S]` (2,000,000 rows, 500 updates/s, one table,
//! 300 s to come back). With more tables, all of them are colocated and of N rows. Exit code 1 when a bar is missed.

use foreshard_test::load::{Load, Session};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, SqlError, wait_until};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Clients that update.
const UPDATERS: usize = 8;
/// How long what is measured may take.
const PATIENCE: Duration = Duration::from_secs(900);
/// How long the load is watched without anything else.
const BEFORE: Duration = Duration::from_secs(5);
/// How long clients may catch up with their schedule before the next thing is measured.
const PAUSE: Duration = Duration::from_secs(2);
/// The most that a prepared split may lock clients out, ms.
const MAX_HELD_MS: f64 = 100.0;
/// The most that a cold split may take, in raw copies.
const MAX_RATIO: f64 = 4.0;

struct Options {
    rows: u64,
    rate: f64,
    tables: u32,
    window_s: u32,
}

fn main() -> ExitCode {
    foreshard_test::bars::end(parse().and_then(|options| run(&options)))
}

fn parse() -> Result<Options> {
    let mut options = Options { rows: 2_000_000, rate: 500.0, tables: 1, window_s: 300 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<f64>().ok());
        match (name.as_str(), value) {
            ("--rows", Some(number)) if number >= 2.0 => options.rows = number as u64,
            ("--rate", Some(number)) if number > 0.0 => options.rate = number,
            ("--tables", Some(number)) if (1.0..=64.0).contains(&number) => options.tables = number as u32,
            ("--window", Some(number)) if (0.0..=86400.0).contains(&number) => {
                options.window_s = number as u32;
            }
            _ => {
                return Err(Error::new(
                    format!("The argument {name} is unknown or lacks a number."),
                    "Use --rows N, --rate N, --tables N and --window SECONDS.",
                ));
            }
        }
    }
    Ok(options)
}

/// A client that updates random keys of the tables in turn.
struct Updater {
    tables: u32,
    rows: u64,
    state: u64,
}

impl Session for Updater {
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        for table in 0..self.tables {
            client.prepare(
                &format!("s{table}"),
                &format!("UPDATE account{table} SET balance = balance + 1 WHERE id = $1"),
            )?;
        }
        Ok(())
    }

    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let key = (self.state % self.rows + 1).to_string();
        let statement = format!("s{}", self.state / self.rows % u64::from(self.tables));
        client.exec_prepared(&statement, &[Some(&key)]).map(drop)
    }
}

/// What was measured.
struct Line {
    what: &'static str,
    elapsed: Duration,
    /// How long the exclusive locks were held, ms.
    held_ms: Option<f64>,
}

fn run(options: &Options) -> Result<bool> {
    let cluster = Cluster::start(
        &ClusterOptions::new("bench-split")
            .set("shared_buffers", "512MB")
            .set("max_wal_size", "8GB")
            .set("maintenance_work_mem", "256MB")
            // A canary stands as long as its settings say, whatever the split costs.
            .set("foreshard.canary_steps", "")
            .set("foreshard.rollback_window", &options.window_s.to_string()),
    )?;
    let mut client = prepare(&cluster, options)?;
    let updaters = (0..UPDATERS as u64).map(|number| Updater {
        tables: options.tables,
        rows: options.rows,
        state: number * 0x9e37_79b9 + 12345,
    });
    let load = Load::start(&cluster.conninfo("postgres"), options.rate, "pause", updaters.collect())?;
    std::thread::sleep(PAUSE);
    load.mark("before");
    std::thread::sleep(BEFORE);
    let mut lines = Vec::new();
    let mut measure = |what, work: &mut dyn FnMut() -> Result<Option<String>>, client: &mut Client| {
        load.mark("pause");
        client.exec("CHECKPOINT")?;
        std::thread::sleep(PAUSE);
        load.mark(what);
        let begin = Instant::now();
        let moved = work()?;
        let elapsed = begin.elapsed();
        std::thread::sleep(Duration::from_millis(250));
        let held_ms = moved.map(|id| held_ms(client, &id)).transpose()?;
        lines.push(Line { what, elapsed, held_ms });
        Ok::<(), Error>(())
    };
    let mut worker = cluster.connect("postgres")?;
    measure("raw copy", &mut || raw(&mut worker, options).map(|()| None), &mut client)?;
    measure("cold split", &mut || change(&mut worker, "split_slot(min(slot_id))").map(Some), &mut client)?;
    discard(&mut worker)?;
    measure("merge", &mut || merge(&mut worker).map(Some), &mut client)?;
    measure("prepare", &mut || ready(&mut worker).map(|_| None), &mut client)?;
    let mut split = String::new();
    measure(
        "prepared split",
        &mut || {
            split = change(&mut worker, "split_slot(min(slot_id))")?;
            Ok(Some(split.clone()))
        },
        &mut client,
    )?;
    if options.window_s > 0 {
        measure("rollback", &mut || rollback(&mut worker, &split).map(Some), &mut client)?;
    } else {
        merge(&mut worker)?;
    }
    measure("by hand", &mut || by_hand(&mut worker, options).map(|()| None), &mut client)?;
    let windows = load.finish()?;
    let sum = "SELECT sum(balance) FROM account0";
    println!("(sum of balances {})", client.query_one(sum)?);
    println!(
        "{:<16} {:>10} {:>8} {:>12} {:>14} {:>8}",
        "", "elapsed s", "÷ raw", "locked ms", "longest wait ms", "errors"
    );
    let raw_s = lines.first().map_or(f64::NAN, |line| line.elapsed.as_secs_f64());
    for line in &lines {
        let window = windows.iter().find(|window| window.label == line.what);
        let wait_ms = window.map_or(f64::NAN, |window| window.longest_wait.as_secs_f64() * 1e3);
        println!(
            "{:<16} {:>10.2} {:>8.2} {:>12} {:>14.1} {:>8}",
            line.what,
            line.elapsed.as_secs_f64(),
            line.elapsed.as_secs_f64() / raw_s,
            line.held_ms.map_or("-".to_string(), |held| format!("{held:.1}")),
            wait_ms,
            window.map_or(0, |window| window.errors),
        );
    }
    Ok(bars(&lines, raw_s))
}

/// Prints what must hold; whether it does.
fn bars(lines: &[Line], raw_s: f64) -> bool {
    let line = |what: &str| lines.iter().find(|line| line.what == what);
    let held = line("prepared split").and_then(|line| line.held_ms).unwrap_or(f64::NAN);
    let ratio = line("cold split").map_or(f64::NAN, |line| line.elapsed.as_secs_f64() / raw_s);
    let bars = [
        (format!("prepared split: locks held {held:.1} ms, at most {MAX_HELD_MS}"), held < MAX_HELD_MS),
        (format!("cold split: {ratio:.2} raw copies, at most {MAX_RATIO}"), ratio <= MAX_RATIO),
    ];
    for (what, holds) in &bars {
        println!("{} {what}", if *holds { "PASS  " } else { "MISSED" });
    }
    bars.iter().all(|(_, holds)| *holds)
}

fn prepare(cluster: &Cluster, options: &Options) -> Result<Client> {
    let mut client = cluster.connect("postgres")?;
    client.exec("CREATE EXTENSION foreshard")?;
    client.exec("SELECT foreshard.add_shard('a', 'pg_default')")?;
    println!("{} table(s) of {} rows, {} updates/s", options.tables, options.rows, options.rate);
    for table in 0..options.tables {
        client.exec(&format!(
            "CREATE TABLE account{table} (id bigint PRIMARY KEY, owner int NOT NULL, opened timestamptz NOT NULL, balance bigint NOT NULL DEFAULT 0, note text NOT NULL);
             INSERT INTO account{table} SELECT g, hashint8(g), timestamptz '2024-01-01' + g * interval '1 second', 0, repeat(md5(g::text), 5) FROM generate_series(1, {}) g;
             CREATE INDEX ON account{table} (owner); CREATE INDEX ON account{table} (opened)",
            options.rows
        ))?;
        let how = if table == 0 { "slots => 1" } else { "colocate_with => 'account0'" };
        client.exec(&format!("SELECT foreshard.distribute('account{table}', 'id', {how})"))?;
        client.exec(&format!("VACUUM (ANALYZE) account{table}"))?;
    }
    Ok(client)
}

/// The least a copy can cost: into a bare table, indexes afterwards.
fn raw(client: &mut Client, options: &Options) -> Result<()> {
    for table in 0..options.tables {
        client.exec(&format!(
            "CREATE TABLE raw{table} (LIKE account{table}); INSERT INTO raw{table} SELECT * FROM account{table}; \
             ALTER TABLE raw{table} ADD PRIMARY KEY (id); CREATE INDEX ON raw{table} (owner); CREATE INDEX ON raw{table} (opened)"
        ))?;
    }
    for table in 0..options.tables {
        client.exec(&format!("DROP TABLE raw{table}"))?;
    }
    Ok(())
}

fn wait(client: &mut Client, id: &str, state: &str) -> Result<()> {
    let mut last = String::new();
    wait_until("the change ends", PATIENCE, || {
        let rows = client.exec_params(
            "SELECT state, coalesce(last_error, '') AS error FROM foreshard.progress_moves WHERE move_id = $1::bigint",
            &[Some(id)],
        )?;
        last = rows.field(0, "error").unwrap_or_default().to_string();
        Ok(!matches!(rows.field(0, "state"), Some("waiting" | "running" | "cancelling"))
            && rows.field(0, "state") == Some(state)
            || rows.field(0, "state") == Some("failed"))
    })?;
    let end =
        client.query_one(&format!("SELECT state FROM foreshard.progress_moves WHERE move_id = {id}"))?;
    if end == state { Ok(()) } else { Err(Error::new(format!("It ended as {end}: {last}"), "")) }
}

/// Does something to the first slot and waits for the end.
fn change(client: &mut Client, call: &str) -> Result<String> {
    let id = client.query_one(&format!("SELECT foreshard.{call} FROM foreshard.slots"))?;
    wait(client, &id, "done")?;
    Ok(id)
}

fn ready(client: &mut Client) -> Result<String> {
    let id = client.query_one("SELECT foreshard.prepare_split(min(slot_id)) FROM foreshard.slots")?;
    wait(client, &id, "prepared")?;
    Ok(id)
}

fn merge(client: &mut Client) -> Result<String> {
    change(client, "merge_slots(min(slot_id), max(slot_id))")
}

/// Gives up the way back of the last split, if there is one.
fn discard(client: &mut Client) -> Result<()> {
    client.exec(
        "SELECT foreshard.cancel_move(move_id) FROM foreshard.progress_moves WHERE state = 'prepared'",
    )?;
    wait_until("the way back is given up", PATIENCE, || {
        Ok(client.query_one("SELECT count(*) FROM foreshard.move WHERE NOT finished")? == "0")
    })
}

fn rollback(client: &mut Client, split: &str) -> Result<String> {
    client.exec(&format!("SELECT foreshard.rollback_move({split})"))?;
    let id = client
        .query_one(&format!("SELECT max(move_id) FROM foreshard.progress_moves WHERE move_id > {split}"))?;
    wait(client, &id, "done")?;
    Ok(id)
}

/// What PostgreSQL has of its own.
fn by_hand(client: &mut Client, options: &Options) -> Result<()> {
    client.exec("BEGIN")?;
    for table in 0..options.tables {
        let name = format!("account{table}");
        let partition = client.query_one(&format!(
            "SELECT partition FROM foreshard.slots WHERE \"table\" = '{name}'::regclass"
        ))?;
        client.exec(&format!(
            "ALTER TABLE {name} DETACH PARTITION {partition}; \
             CREATE TABLE {name}_h0 (LIKE {name}); CREATE TABLE {name}_h1 (LIKE {name})"
        ))?;
        for half in 0..2 {
            client.exec(&format!(
                "INSERT INTO {name}_h{half} SELECT * FROM {partition} WHERE satisfies_hash_partition('{name}'::regclass, 2, {half}, id); \
                 ALTER TABLE {name}_h{half} ADD PRIMARY KEY (id); CREATE INDEX ON {name}_h{half} (owner); CREATE INDEX ON {name}_h{half} (opened); \
                 ALTER TABLE {name} ATTACH PARTITION {name}_h{half} FOR VALUES WITH (MODULUS 2, REMAINDER {half})"
            ))?;
        }
    }
    client.exec("COMMIT").map(drop).map_err(Error::from)
}

/// How long a cutover held its locks, ms.
fn held_ms(client: &mut Client, id: &str) -> Result<f64> {
    let held = client.query_one(&format!(
        "SELECT (detail ->> 'held_us')::float8 / 1000 FROM foreshard.history WHERE event = 'cutover' AND move_id = {id}"
    ))?;
    held.parse().map_err(|_| Error::new(format!("The cutover of {id} has left no trace."), ""))
}
