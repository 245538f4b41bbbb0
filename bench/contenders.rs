//! What is compared: ways to get a table's rows to another place.

use crate::clients::PATIENCE;
use crate::{DATABASE, report};
use foreshard_test::install::run;
use foreshard_test::{Client, Cluster, Error, Result, wait_until};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Where a move stands in its way: `now` between the copy and the point where every change is mirrored,
/// which waits for older transactions.
const MOVE_HAS_COPIED: &str = "SELECT coalesce((SELECT CASE
         WHEN phase IN ('preflight', 'capture', 'copy') THEN 'before'
         WHEN phase IN ('index', 'catch_up', 'mirror') THEN 'now' ELSE 'over' END
     FROM foreshard.move), 'before')";
/// The same, `now` until the cutover.
const MOVE_VERIFIES: &str = "SELECT coalesce((SELECT CASE
         WHEN phase IN ('preflight', 'capture', 'copy', 'index', 'catch_up', 'mirror') THEN 'before'
         WHEN phase IN ('verify', 'canary', 'cutover') THEN 'now' ELSE 'over' END
     FROM foreshard.move), 'before')";
/// The same of pg_repack, which commits its new table with the rows in it and drops it in the end.
const REPACK_HAS_COPIED: &str = "SELECT CASE WHEN EXISTS (SELECT FROM pg_class
     WHERE relnamespace = to_regnamespace('repack') AND relname ~ '^table_[0-9]+$')
     THEN 'now' ELSE 'before' END";
/// When an open transaction is in the way of a move: twice, because it waits for those that are older than
/// the mirror, so that none of them is there any more at the cutover.
pub const IN_THE_WAY_OF_MOVE: &[&str] = &[MOVE_HAS_COPIED, MOVE_VERIFIES];
/// When it is in the way of pg_repack.
pub const IN_THE_WAY_OF_REPACK: &[&str] = &[REPACK_HAS_COPIED];

/// What something took.
pub struct Cost {
    /// Time on the clock.
    pub elapsed: Duration,
    /// WAL written meanwhile, the clients' included.
    pub wal_bytes: f64,
}

/// What something took, step by step.
pub struct Course {
    /// In all.
    pub cost: Cost,
    /// Every event, and when it happened.
    pub events: Vec<(String, Duration)>,
}

impl Course {
    /// When a move entered the first of these phases.
    pub fn entered(&self, phases: &[&str]) -> Option<Duration> {
        let entered = |name: &str| name.strip_prefix("phase ").is_some_and(|phase| phases.contains(&phase));
        self.events.iter().find(|(name, _)| entered(name)).map(|(_, at)| *at)
    }
}

/// Does something and tells what it took.
fn cost(client: &mut Client, work: impl FnOnce(&mut Client) -> Result<()>) -> Result<Cost> {
    let wal = wal_bytes(client)?;
    let begin = Instant::now();
    work(client)?;
    let elapsed = begin.elapsed();
    Ok(Cost { elapsed, wal_bytes: wal_bytes(client)? - wal })
}

/// Bytes of WAL written so far.
fn wal_bytes(client: &mut Client) -> Result<f64> {
    report::number(&client.query_one("SELECT pg_current_wal_insert_lsn() - '0/0'")?)
}

/// The least a copy can cost: into a bare table, indexes afterwards, on the other shard.
pub fn raw(client: &mut Client) -> Result<Course> {
    let begin = Instant::now();
    let mut copied = Duration::ZERO;
    let cost = cost(client, |client| {
        client.exec("CREATE TABLE raw (LIKE account) TABLESPACE bench_b")?;
        client.exec("INSERT INTO raw SELECT * FROM account")?;
        copied = begin.elapsed();
        client.exec("ALTER TABLE raw ADD PRIMARY KEY (id) USING INDEX TABLESPACE bench_b")?;
        client.exec("CREATE INDEX ON raw (owner) TABLESPACE bench_b")?;
        client.exec("CREATE INDEX ON raw (opened) TABLESPACE bench_b")?;
        Ok(())
    })?;
    Ok(Course { cost, events: vec![("rows copied".to_string(), copied)] })
}

/// Moves the slot to the other shard.
pub fn move_slot(client: &mut Client) -> Result<Course> {
    let mut id = String::new();
    let mut last_error = String::new();
    let cost = cost(client, |client| {
        id = client.query_one("SELECT foreshard.move_slot(slot_id, 'bench_b') FROM foreshard.slots")?;
        wait_until("the move ends", PATIENCE, || {
            let rows = client.exec_params(
                "SELECT state, coalesce(last_error, '') AS error FROM foreshard.progress_moves WHERE move_id = $1::bigint",
                &[Some(&id)],
            )?;
            last_error = rows.field(0, "error").unwrap_or_default().to_string();
            Ok(!matches!(rows.field(0, "state"), Some("waiting" | "running" | "cancelling")))
        })
    })?;
    let shard = client.query_one("SELECT shard FROM foreshard.slots")?;
    if shard != "bench_b" {
        return Err(Error::new(
            format!("The move ended, but the slot is on {shard}. Its last error: {last_error}"),
            "",
        ));
    }
    Ok(Course { cost, events: events(client, &id)? })
}

/// What happened in a move, and when.
fn events(client: &mut Client, id: &str) -> Result<Vec<(String, Duration)>> {
    let rows = client.exec_params(
        "SELECT event, extract(epoch FROM at - min(at) OVER ()) AS after_s, detail ->> 'to' AS to_phase
         FROM foreshard.history WHERE move_id = $1::bigint ORDER BY event_id",
        &[Some(id)],
    )?;
    let event = |row| {
        let name = [rows.field(row, "event"), rows.field(row, "to_phase")];
        let name = name.into_iter().flatten().collect::<Vec<_>>().join(" ");
        let at = rows.parse::<f64>(row, "after_s")?;
        Some((name, Duration::from_secs_f64(at.max(0.0))))
    };
    Ok((0..rows.len()).filter_map(event).collect())
}

/// Moves the slot's partition back the way PostgreSQL does it by itself.
pub fn set_tablespace(client: &mut Client) -> Result<Cost> {
    let partition = client.query_one("SELECT partition FROM foreshard.slots")?;
    let indexes = client.exec(&format!(
        "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{partition}'::regclass"
    ))?;
    cost(client, |client| {
        client.exec(&format!("ALTER TABLE {partition} SET TABLESPACE bench_a"))?;
        for index in indexes.to_text().lines() {
            client.exec(&format!("ALTER INDEX {index} SET TABLESPACE bench_a"))?;
        }
        Ok(())
    })
}

/// Whether the server has pg_repack; if not, a sentence that says so and what to do.
pub fn find_repack(cluster: &Cluster, client: &mut Client) -> Result<std::result::Result<(), String>> {
    let program = cluster.install().program("pg_repack");
    let offered =
        client.query_one("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_repack'")?;
    if program.exists() && offered == "1" {
        return Ok(Ok(()));
    }
    Ok(Err("pg_repack is not in the staged server, so nothing is compared with it; \
            run apt-get install postgresql-15-repack, then scripts/repack.sh"
        .to_string()))
}

/// The same partition to the other shard with pg_repack, indexes too, without its ANALYZE.
pub fn repack(cluster: &Cluster, client: &mut Client) -> Result<Cost> {
    let partition = client.query_one(
        "SELECT format('%I.%I', nspname, relname) FROM foreshard.slots s
         JOIN pg_class c ON c.oid = s.partition::regclass JOIN pg_namespace n ON n.oid = relnamespace",
    )?;
    let install = cluster.install();
    let mut command = install.user.command(&install.program("pg_repack"));
    command
        .arg("--host")
        .arg(cluster.socket_dir())
        .args(["--port", &cluster.port().to_string(), "--username=postgres"])
        .args(["--no-order", "--no-analyze", "--tablespace=bench_b", "--moveidx"])
        .args([&format!("--table={partition}"), &format!("--dbname={DATABASE}")])
        .stdin(Stdio::null());
    let cost = cost(client, |_| run(&mut command).map(drop))?;
    // It ends without an error when it found nothing to do or gave up.
    let tablespace = client.query_one(&format!(
        "SELECT spcname FROM pg_class c JOIN pg_tablespace t ON t.oid = reltablespace WHERE c.oid = '{partition}'::regclass"
    ))?;
    if tablespace != "bench_b" {
        return Err(Error::new("pg_repack ended, but the partition is where it was.", ""));
    }
    Ok(cost)
}
