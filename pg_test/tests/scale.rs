//! Many connections, slots and managed tables: the keeper's look stays under its bucket, what people ask for stays quick,
//! and a server that is full stays healthy. The figures are printed.
//!
//! `make scale` is the full size (500 connections, 200 tables, 2,000 slots); the form in CI is a tenth of it.

mod common;

use common::{Random, Server, options};
use foreshard_test::process::own_memory_kb;
use foreshard_test::{Client, Result};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Threads that share the connections.
const WORKERS: usize = 4;

/// How much of everything.
struct Size {
    connections: usize,
    tables: usize,
    slots: usize,
    /// Under load.
    seconds: u64,
    /// Between two readings, s: at most a fifth of the default, and the bar for a look.
    bucket_s: u64,
}

impl Size {
    fn from_env() -> Size {
        if std::env::var_os("FORESHARD_SCALE").is_some() {
            Size { connections: 500, tables: 200, slots: 10, seconds: 20, bucket_s: 2 }
        } else {
            Size { connections: 60, tables: 20, slots: 10, seconds: 2, bucket_s: 1 }
        }
    }
}

fn start(size: &Size) -> Result<Server> {
    let wanted = options("scale")
        .set("max_connections", &(size.connections + 10).to_string())
        .set("superuser_reserved_connections", "3")
        .set("foreshard.bucket", &size.bucket_s.to_string())
        .set("foreshard.plan_interval", "10")
        .set("jit", "off");
    let mut server = Server::start(&wanted)?;
    let begun = Instant::now();
    for table in 0..size.tables {
        server.query(&format!(
            "CREATE TABLE t{table} (id bigint PRIMARY KEY, v int DEFAULT 0); INSERT INTO t{table} SELECT g FROM generate_series(1, 100) g; \
             SELECT foreshard.distribute('t{table}', 'id', {})",
            size.slots
        ))?;
    }
    let slots = server.query("SELECT count(*) FROM foreshard.slot")?;
    println!("{} tables, {slots} slots distributed in {:.1} s", size.tables, begun.elapsed().as_secs_f64());
    Ok(server)
}

/// The keeper's process and the longest of its looks lately, ms.
fn keeper(server: &mut Server) -> Result<(i32, f64)> {
    let text = server.query("SELECT keeper_pid, keeper_look_ms FROM foreshard.worker_states()")?;
    let (pid, ms) = text.split_once('|').unwrap_or_default();
    Ok((pid.parse().unwrap_or(0), ms.parse().unwrap_or(f64::NAN)))
}

/// Watches for some time: the keeper's longest look is below its bucket.
fn watch(server: &mut Server, size: &Size, what: &str) -> Result<()> {
    let (begun, mut longest) = (Instant::now(), 0.0_f64);
    let (mut pid, mut ms) = keeper(server)?;
    while begun.elapsed() < Duration::from_secs(size.bucket_s * 3) {
        (pid, ms) = keeper(server)?;
        longest = longest.max(ms);
        std::thread::sleep(Duration::from_millis(300));
    }
    let memory_mb = own_memory_kb(pid).unwrap_or(0) as f64 / 1024.0;
    println!(
        "{what}: keeper's longest look {longest:.0} ms, lately {ms:.0} ms; its memory {memory_mb:.1} MB"
    );
    assert!(pid > 0, "no keeper\n{}", server.log_tail());
    assert!(longest < size.bucket_s as f64 * 1e3, "{what}: a look took {longest} ms");
    Ok(())
}

/// Every connection in turn reads or writes some row, from a few threads.
fn load(clients: &mut [Client], size: &Size, seconds: u64) -> Result<f64> {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let share = clients.len().div_ceil(WORKERS).max(1);
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = clients
            .chunks_mut(share)
            .enumerate()
            .map(|(number, clients)| {
                let (stop, done) = (&stop, &done);
                scope.spawn(move || -> Result<()> {
                    let mut random = Random::new(number as u64 + 1);
                    while !stop.load(Ordering::Relaxed) {
                        for client in clients.iter_mut() {
                            let (table, id) = (random.below(size.tables as u64), random.below(100) + 1);
                            let sql = if random.below(4) == 0 {
                                format!("UPDATE t{table} SET v = v + 1 WHERE id = {id}")
                            } else {
                                format!("SELECT v FROM t{table} WHERE id = {id}")
                            };
                            client.exec(&sql)?;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Ok(())))
    })?;
    Ok(done.load(Ordering::Relaxed) as f64 / seconds as f64)
}

/// How long the functions for people take, ms.
fn ask(server: &mut Server) -> Result<()> {
    for sql in [
        "SELECT count(*) FROM foreshard.check()",
        "SELECT count(*) FROM foreshard.status()",
        "SELECT count(*) FROM foreshard.heat_map",
        "SELECT count(*) FROM foreshard.slots",
        "SELECT count(*) FROM foreshard.shards",
        "SELECT count(*) FROM foreshard.recommend()",
        "SELECT length(foreshard.report_html())",
    ] {
        let begun = Instant::now();
        let answer = server.query(sql)?;
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        println!("{sql}: {ms:.0} ms ({answer})");
        assert!(ms < 10_000.0, "{sql} takes {ms} ms");
    }
    Ok(())
}

/// Connects until nobody else is let in.
fn fill_up(server: &Server, clients: &mut Vec<Client>) -> Result<()> {
    let ordinary = server.cluster.conninfo("postgres").replace("user=postgres", "user=ordinary");
    loop {
        match Client::connect(&ordinary) {
            Ok(client) => clients.push(client),
            Err(error)
                if error.message.contains("remaining connection slots")
                    || error.message.contains("too many clients") =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn a_large_server_is_looked_after_in_time() -> Result<()> {
    let size = Size::from_env();
    let mut server = start(&size)?;
    server.query("CREATE ROLE ordinary LOGIN")?;
    watch(&mut server, &size, "no connections")?;
    let begun = Instant::now();
    let mut clients = (0..size.connections - 10)
        .map(|_| server.cluster.connect("postgres"))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    println!("{} connections in {:.1} s", clients.len(), begun.elapsed().as_secs_f64());
    let per_s = load(&mut clients, &size, size.seconds)?;
    println!("{per_s:.0} statements/s over {} connections", clients.len());
    watch(&mut server, &size, "after the load")?;
    ask(&mut server)?;
    // Idle backends up to the limit: the workers are not among them, and go on.
    fill_up(&server, &mut clients)?;
    watch(&mut server, &size, &format!("{} connections, all that fit", clients.len()))?;
    let observed = server
        .query("SELECT count(*) FROM foreshard.heat_map WHERE observed_at > now() - interval '10 s'")?;
    assert_eq!(observed, (size.tables * size.slots).to_string(), "slots that are observed");
    let problems =
        "SELECT string_agg(c::text, E'\\n') FROM foreshard.check() c WHERE object NOT LIKE 'setting %'";
    assert_eq!(server.query(problems)?, "");
    let dropped = server.query(
        "SELECT string_agg(area || ' ' || dropped, ', ') FROM foreshard.stat_foreshard WHERE dropped > 0",
    )?;
    println!("dropped: {dropped:?}");
    Ok(())
}
