//! How long a move takes against the least that copying can take, and what clients feel.
//!
//! One table is one slot: N rows of about 200 bytes, a primary key and two indexes, under
//! key updates at fixed times. Measured in one run, on the same data, under the same load:
//!
//! * raw: `INSERT … SELECT` into a bare table, then the same indexes: what a copy costs
//!   without any of the rest;
//! * move: `foreshard.move_slot`, in all and up to each phase;
//! * tablespace: `ALTER TABLE … SET TABLESPACE` and the same for its indexes, what PostgreSQL has of its own.
//!
//! With `--hold S`, a session keeps a write transaction on the table open for S seconds from the end of the
//! copy on, across everything the move needs a lock for; nobody else should notice.
//!
//! `foreshard-bench-move [--rows N] [--rate N] [--hold S]` (2,000,000 rows, 500 updates/s, no such transaction)

use foreshard_test::load::{Load, Session, Window};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, SqlError, wait_until};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clients that update.
const CLIENTS: usize = 8;
/// How long the load is watched without a move.
const BEFORE: Duration = Duration::from_secs(10);
/// How long a move may take.
const PATIENCE: Duration = Duration::from_secs(900);
const DATABASE: &str = "bench";

struct Options {
    rows: u64,
    rate: f64,
    /// Seconds; 0: no open transaction.
    hold_s: f64,
}

impl Options {
    fn parse() -> Result<Options> {
        let mut options = Options { rows: 2_000_000, rate: 500.0, hold_s: 0.0 };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().and_then(|value| value.parse::<f64>().ok());
            match (name.as_str(), value) {
                ("--rows", Some(rows)) if rows >= 2.0 => options.rows = rows as u64,
                ("--rate", Some(rate)) if rate > 0.0 => options.rate = rate,
                ("--hold", Some(hold_s)) if (0.0..=600.0).contains(&hold_s) => options.hold_s = hold_s,
                _ => {
                    return Err(Error::new(
                        format!("The argument {name} is unknown or lacks a number."),
                        "Use --rows N, --rate N and --hold SECONDS.",
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// A client that updates random keys.
struct Updater {
    rows: u64,
    state: u64,
}

impl Session for Updater {
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        client.prepare("u", "UPDATE account SET balance = balance + 1 WHERE id = $1")
    }

    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let key = (self.state % (self.rows - 1) + 2).to_string();
        client.exec_prepared("u", &[Some(&key)]).map(drop)
    }
}

fn main() -> ExitCode {
    match Options::parse().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let cluster = Cluster::start(
        &ClusterOptions::new("bench")
            .set("shared_buffers", "512MB")
            .set("max_wal_size", "8GB")
            .set("maintenance_work_mem", "256MB")
            .set("foreshard.rollback_window", "0")
            .set("foreshard.canary_steps", ""),
    )?;
    let mut client = prepare(&cluster, options)?;
    let sessions = (0..CLIENTS as u64)
        .map(|number| Updater { rows: options.rows, state: number * 0x9e37_79b9 + 12345 })
        .collect();
    let load = Load::start(&cluster.conninfo(DATABASE), options.rate, "warm-up", sessions)?;
    std::thread::sleep(Duration::from_secs(2));
    load.mark("before");
    std::thread::sleep(BEFORE);
    load.mark("raw copy");
    let wal = wal_bytes(&mut client)?;
    let (insert, index) = raw_copy(&mut client)?;
    let raw_wal = wal_bytes(&mut client)? - wal;
    load.mark("pause");
    client.exec("DROP TABLE raw; CHECKPOINT")?;
    std::thread::sleep(Duration::from_secs(3));
    load.mark("move");
    let holder = (options.hold_s > 0.0).then(|| hold(&cluster, options.hold_s)).transpose()?;
    let wal = wal_bytes(&mut client)?;
    let (elapsed, phases) = move_slot(&mut client)?;
    let move_wal = wal_bytes(&mut client)? - wal;
    load.mark("after");
    if let Some(holder) = holder {
        holder.join().map_err(|_| Error::new("The open transaction failed.", ""))??;
    }
    std::thread::sleep(Duration::from_secs(5));
    load.mark("tablespace");
    let tablespace = set_tablespace(&mut client)?;
    load.mark("end");
    std::thread::sleep(Duration::from_secs(1));
    let errors = load.error_texts();
    let windows = load.finish()?;

    let raw = insert + index;
    println!(
        "raw: INSERT … SELECT {:.2} s, indexes {:.2} s, together {:.2} s ({:.0} rows/s)",
        insert.as_secs_f64(),
        index.as_secs_f64(),
        raw.as_secs_f64(),
        options.rows as f64 / raw.as_secs_f64()
    );
    println!(
        "move: {:.2} s ({:.0} rows/s)",
        elapsed.as_secs_f64(),
        options.rows as f64 / elapsed.as_secs_f64()
    );
    println!("ratio move / raw: {:.2}", ratio(elapsed, raw));
    println!("SET TABLESPACE: {:.2} s, ratio to raw {:.2}", tablespace.as_secs_f64(), ratio(tablespace, raw));
    let bytes: f64 = client.query_one("SELECT sum(bytes) FROM foreshard.slots")?.parse().unwrap_or(f64::NAN);
    println!(
        "WAL per byte of the slot, the clients' included: raw {:.2}, move {:.2}",
        raw_wal / bytes,
        move_wal / bytes
    );
    for (event, at) in &phases {
        println!("  up to {event}: {:.2} s, ratio {:.2}", at.as_secs_f64(), ratio(*at, raw));
    }
    print_clients(&windows, &errors);
    verify(&mut client, &windows)
}

/// Bytes of WAL written so far.
fn wal_bytes(client: &mut Client) -> Result<f64> {
    let text = client.query_one("SELECT pg_current_wal_insert_lsn() - '0/0'")?;
    text.parse().map_err(|_| Error::new(format!("The WAL position is \"{text}\"."), ""))
}

/// A session that, once the move has copied, changes one row and keeps its transaction open.
fn hold(cluster: &Cluster, hold_s: f64) -> Result<JoinHandle<Result<()>>> {
    let mut client = cluster.connect(DATABASE)?;
    Ok(std::thread::spawn(move || {
        let copied =
            "SELECT EXISTS (SELECT FROM foreshard.move WHERE phase NOT IN ('preflight', 'capture', 'copy'))";
        wait_until("the move has copied", PATIENCE, || Ok(client.query_one(copied)? == "t"))?;
        // A row that no client updates: it is the transaction that is in the way, not the row.
        client.exec("BEGIN; UPDATE account SET balance = balance WHERE id = 1")?;
        std::thread::sleep(Duration::from_secs_f64(hold_s));
        client.exec("COMMIT")?;
        Ok(())
    }))
}

/// Moves the slot's partition back the way PostgreSQL does it by itself.
fn set_tablespace(client: &mut Client) -> Result<Duration> {
    let partition = client.query_one("SELECT partition FROM foreshard.slots")?;
    let indexes = client.exec(&format!(
        "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{partition}'::regclass"
    ))?;
    let begin = Instant::now();
    client.exec(&format!("ALTER TABLE {partition} SET TABLESPACE bench_a"))?;
    for index in indexes.to_text().lines() {
        client.exec(&format!("ALTER INDEX {index} SET TABLESPACE bench_a"))?;
    }
    Ok(begin.elapsed())
}

fn ratio(time: Duration, raw: Duration) -> f64 {
    time.as_secs_f64() / raw.as_secs_f64()
}

fn prepare(cluster: &Cluster, options: &Options) -> Result<Client> {
    let mut client = cluster.connect("postgres")?;
    for shard in ["bench_a", "bench_b"] {
        let dir = cluster.make_tablespace_dir(shard)?;
        client.exec(&format!("CREATE TABLESPACE {shard} LOCATION '{}'", dir.display()))?;
    }
    client.exec(&format!("CREATE DATABASE {DATABASE}"))?;
    let mut client = cluster.connect(DATABASE)?;
    println!("loading {} rows", options.rows);
    client.exec(
        "CREATE TABLE account (
             id bigint PRIMARY KEY, owner int NOT NULL, opened timestamptz NOT NULL,
             balance bigint NOT NULL DEFAULT 0, note text NOT NULL)",
    )?;
    client.exec(&format!(
        "INSERT INTO account
         SELECT g, hashint8(g), timestamptz '2024-01-01' + g * interval '1 second', 0,
                repeat(md5(g::text), 5)
         FROM generate_series(1, {}) g",
        options.rows
    ))?;
    client.exec("CREATE INDEX account_owner ON account (owner)")?;
    client.exec("CREATE INDEX account_opened ON account (opened)")?;
    client.exec("CREATE EXTENSION foreshard")?;
    client.exec(
        "SELECT foreshard.add_shard('bench_a', 'bench_a'), foreshard.add_shard('bench_b', 'bench_b')",
    )?;
    client.exec(
        "SELECT foreshard.distribute('account', 'id', slots => 1, shards => ARRAY['bench_a']::name[])",
    )?;
    client.exec("VACUUM (ANALYZE) account")?;
    client.exec("CHECKPOINT")?;
    let size = client.query_one("SELECT pg_size_pretty(sum(bytes)) FROM foreshard.slots")?;
    println!("one slot of {size}, {CLIENTS} clients, {} updates/s", options.rate);
    Ok(client)
}

/// The least a copy can cost: into a bare table, indexes afterwards, on the other shard.
fn raw_copy(client: &mut Client) -> Result<(Duration, Duration)> {
    let begin = Instant::now();
    client.exec("CREATE TABLE raw (LIKE account) TABLESPACE bench_b")?;
    client.exec("INSERT INTO raw SELECT * FROM account")?;
    let insert = begin.elapsed();
    let begin = Instant::now();
    client.exec("ALTER TABLE raw ADD PRIMARY KEY (id) USING INDEX TABLESPACE bench_b")?;
    client.exec("CREATE INDEX ON raw (owner) TABLESPACE bench_b")?;
    client.exec("CREATE INDEX ON raw (opened) TABLESPACE bench_b")?;
    Ok((insert, begin.elapsed()))
}

/// Moves the slot; the time it took, and the time of each event on the way.
fn move_slot(client: &mut Client) -> Result<(Duration, Vec<(String, Duration)>)> {
    let begin = Instant::now();
    let id = client.query_one("SELECT foreshard.move_slot(slot_id, 'bench_b') FROM foreshard.slots")?;
    let mut last_error = String::new();
    wait_until("the move ends", PATIENCE, || {
        let rows = client.exec_params(
            "SELECT state, coalesce(last_error, '') AS error FROM foreshard.progress_moves WHERE move_id = $1::bigint",
            &[Some(&id)],
        )?;
        last_error = rows.field(0, "error").unwrap_or_default().to_string();
        Ok(!matches!(rows.field(0, "state"), Some("waiting" | "running" | "cancelling")))
    })?;
    let elapsed = begin.elapsed();
    let shard = client.query_one("SELECT shard FROM foreshard.slots")?;
    if shard != "bench_b" {
        return Err(Error::new(
            format!("The move ended, but the slot is on {shard}. Its last error: {last_error}"),
            "",
        ));
    }
    let events = client.exec_params(
        "SELECT event, extract(epoch FROM at - min(at) OVER ()) AS after_s, detail ->> 'to' AS to_phase
         FROM foreshard.history WHERE move_id = $1::bigint ORDER BY event_id",
        &[Some(&id)],
    )?;
    let phases = (0..events.len())
        .filter_map(|row| {
            let name = [events.field(row, "event"), events.field(row, "to_phase")];
            let name = name.into_iter().flatten().collect::<Vec<_>>().join(" ");
            let at = events.parse::<f64>(row, "after_s")?;
            Some((name, Duration::from_secs_f64(at.max(0.0))))
        })
        .collect();
    Ok((elapsed, phases))
}

fn print_clients(windows: &[Window], errors: &[String]) {
    println!(
        "clients        {:>8} {:>8} {:>8} {:>8} {:>9} {:>7}",
        "updates", "p50 ms", "p99 ms", "max ms", "gap ms", "errors"
    );
    for window in windows {
        if ["warm-up", "pause", "end"].contains(&window.label.as_str()) {
            continue;
        }
        println!(
            "  {:<12} {:>8} {:>8.2} {:>8.2} {:>8.1} {:>9.1} {:>7}",
            window.label,
            window.latencies.count(),
            window.latencies.p50_ms(),
            window.latencies.p99_ms(),
            window.latencies.max_ms(),
            window.longest_gap.as_secs_f64() * 1000.0,
            window.errors
        );
    }
    errors.iter().for_each(|error| println!("error: {error}"));
    let find = |label: &str| windows.iter().find(|window| window.label == label);
    if let (Some(before), Some(during)) = (find("before"), find("move")) {
        let (before, during) = (&before.latencies, &during.latencies);
        println!(
            "ratio during the move / before: p50 {:.2}, p99 {:.2}, max {:.2}",
            during.p50_ms() / before.p50_ms(),
            during.p99_ms() / before.p99_ms(),
            during.max_ms() / before.max_ms()
        );
    }
}

/// Every update the clients saw committed is in the moved table, and no other.
fn verify(client: &mut Client, windows: &[Window]) -> Result<()> {
    let updates: u64 = windows.iter().map(|window| window.latencies.count()).sum();
    let errors: u64 = windows.iter().map(|window| window.errors).sum();
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
