//! Copying waits while production is not well, says why, and goes on when it is.

mod common;

use common::{Server, options};
use foreshard_test::{Client, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Sessions that do something again and again until told to stop.
struct Busy {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Busy {
    fn start(server: &Server, sessions: usize, sql: &'static str) -> Result<Busy> {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..sessions)
            .map(|_| {
                let (mut client, stop) = (server.cluster.connect("postgres")?, Arc::clone(&stop));
                Ok(std::thread::spawn(
                    move || {
                        while !stop.load(Ordering::Relaxed) && client.exec(sql).is_ok() {}
                    },
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Busy { stop, threads })
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Starts a move, waits until it says that it waits for this, and asserts that it copies nothing meanwhile.
fn move_waits(server: &mut Server, setting: (&str, &str), reason: &str) -> Result<String> {
    server.set(&[setting])?;
    let slot = server.slots("t")?[0].clone();
    let move_id = server.move_slot(&slot)?;
    waits(server, move_id, reason)
}

fn waits(server: &mut Server, move_id: String, reason: &str) -> Result<String> {
    let waits = format!(
        "SELECT phase || ' ' || (waiting_for LIKE '{reason}') FROM foreshard.progress_moves WHERE move_id = {move_id}"
    );
    server.wait_query(&waits, "copy true")?;
    let blocks = format!("SELECT sum(blocks_done) FROM foreshard.move_relation WHERE move_id = {move_id}");
    let done = server.query(&blocks)?;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(server.query(&blocks)?, done, "blocks copied while {reason}");
    Ok(move_id)
}

fn goes_on(server: &mut Server, move_id: &str, setting: &str) -> Result<()> {
    server.wait_end(move_id, "done")?;
    server.set(&[(setting, "0")])?;
    server.assert_settled()
}

#[test]
fn copying_waits_for_production() -> Result<()> {
    let options = options("health").set("foreshard.copy_chunk", "64kB").set("foreshard.copy_rate", "1500");
    let mut server = Server::start(&options)?;
    server.query(
        "CREATE TABLE x (n int); INSERT INTO x VALUES (0); \
         CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 9000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let mut old: Client = server.cluster.connect("postgres")?;
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM x")?;
    for _ in 0..30 {
        server.query("UPDATE x SET n = n + 1")?;
    }
    let who = format!("pid {} holds a snapshot % transactions old", old.backend_pid());
    let move_id = move_waits(&mut server, ("foreshard.max_xmin_age", "20"), &who)?;
    old.exec("COMMIT")?;
    goes_on(&mut server, &move_id, "foreshard.max_xmin_age")?;

    let writers = Busy::start(&server, 1, "INSERT INTO x SELECT generate_series(1, 2000)")?;
    let wal = "the server writes % kB of WAL per second";
    let move_id = move_waits(&mut server, ("foreshard.max_wal_rate", "300"), wal)?;
    writers.end();
    // What the move writes itself counts as well.
    server.set(&[("foreshard.copy_rate", "100")])?;
    std::thread::sleep(Duration::from_secs(3));
    server.set(&[("foreshard.copy_rate", "0"), ("foreshard.max_wal_rate", "0")])?;
    goes_on(&mut server, &move_id, "foreshard.max_wal_rate")?;

    server.set(&[("foreshard.copy_rate", "1500")])?;
    let readers = Busy::start(&server, 4, "SELECT pg_sleep(0.015)")?;
    let slow = "the 99th percentile of statements is % ms";
    let move_id = move_waits(&mut server, ("foreshard.max_p99", "10"), slow)?;
    readers.end();
    goes_on(&mut server, &move_id, "foreshard.max_p99")?;

    // A split has no statements of its slot to watch, but those of the database.
    let readers = Busy::start(&server, 4, "SELECT pg_sleep(0.015)")?;
    server.set(&[("foreshard.max_p99", "10")])?;
    let slot = server.slots("t")?[0].clone();
    let split = server.split_slot(&slot)?;
    let split = waits(&mut server, split, slow)?;
    readers.end();
    goes_on(&mut server, &split, "foreshard.max_p99")
}
