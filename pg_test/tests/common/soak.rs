//! What a soak test watches: the memory of long-lived processes, and sessions that nobody sends away.

use super::{Random, Server};
use foreshard_test::Client;
use foreshard_test::process::own_memory_kb;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Growth that is no leak, kB: caches fill, and what is freed is not given back at once.
const SLACK_KB: f64 = 4096.0;
/// Share of its size by which a process may grow beyond that.
const SLACK: f64 = 0.1;
/// Share of its life in which a process may still fill its caches.
const WARM_UP: f64 = 0.3;

/// Memory of processes over time.
#[derive(Default)]
pub struct Memory {
    /// By kind and process: (s, kB).
    series: BTreeMap<(String, i32), Vec<(f64, f64)>>,
}

impl Memory {
    /// Looks at a process; one that has ended meanwhile is passed over.
    pub fn note(&mut self, pid: i32, kind: &str, at_s: f64) {
        if let Some(kb) = own_memory_kb(pid) {
            self.series.entry((kind.to_string(), pid)).or_default().push((at_s, kb as f64));
        }
    }

    /// Prints what every kind of process used, and asserts that none that lived long grew. Carriers are short-lived:
    /// later ones may not be larger than earlier ones.
    pub fn assert_flat(&self) {
        let mut carriers = Vec::new();
        for ((kind, pid), series) in &self.series {
            if kind == "foreshard carrier" {
                let most = series.iter().map(|(_, kb)| *kb).fold(0.0, f64::max);
                carriers.push((series[0].0, most));
            } else if series.len() >= 8 {
                Memory::assert_series(
                    &format!("{kind} {pid}"),
                    &series[(series.len() as f64 * WARM_UP) as usize..],
                );
            }
        }
        carriers.sort_by(|a, b| a.0.total_cmp(&b.0));
        if carriers.len() >= 8 {
            Memory::assert_series("carriers, each at its largest", &carriers);
        }
    }

    fn assert_series(what: &str, series: &[(f64, f64)]) {
        let third = (series.len() / 3).max(1);
        let median = |part: &[(f64, f64)]| {
            let mut sizes: Vec<f64> = part.iter().map(|(_, kb)| *kb).collect();
            sizes.sort_by(f64::total_cmp);
            sizes[sizes.len() / 2]
        };
        let (early, late) = (median(&series[..third]), median(&series[series.len() - third..]));
        let minutes = (series[series.len() - 1].0 - series[0].0) / 60.0;
        println!(
            "{what}: {early:.0} kB, then {late:.0} kB; {:+.0} kB/min over {minutes:.1} min, {} samples",
            slope(series) * 60.0,
            series.len()
        );
        assert!(late - early <= SLACK_KB + SLACK * early, "{what} grew from {early:.0} to {late:.0} kB");
    }
}

/// Least squares, per unit of the first.
fn slope(series: &[(f64, f64)]) -> f64 {
    let n = series.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| series.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let above: f64 = series.iter().map(|(a, b)| (a - x) * (b - y)).sum();
    let below: f64 = series.iter().map(|(a, _)| (a - x) * (a - x)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}

/// Sessions that read and write everywhere, graphs too, and are sent away by nobody; whatever fails there fails the test.
pub struct Steady {
    stop: Arc<AtomicBool>,
    errors: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<u64>>,
}

impl Steady {
    /// Starts so many.
    pub fn start(server: &Server, sessions: u64) -> Steady {
        let (stop, errors) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let threads = (0..sessions)
            .map(|number| {
                let conninfo = server.cluster.conninfo("postgres") + " application_name=steady";
                let (stop, errors) = (Arc::clone(&stop), Arc::clone(&errors));
                std::thread::spawn(move || session(&conninfo, number, &stop, &errors))
            })
            .collect();
        Steady { stop, errors, threads }
    }

    /// Stops them; no statement may have failed.
    pub fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let statements: u64 = self.threads.drain(..).filter_map(|thread| thread.join().ok()).sum();
        let errors = self.errors.lock().map(|errors| errors.clone()).unwrap_or_default();
        println!("{statements} statements of steady sessions");
        assert!(errors.is_empty(), "statements failed: {errors:?}");
        assert!(statements > 50, "only {statements} statements");
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The largest kinds of memory contexts of a session.
const CONTEXTS: &str = "SELECT string_agg(name || ' ' || kb || ' kB', ', ') FROM (SELECT name, sum(total_bytes)::int8 / 1024 AS kb \
     FROM pg_backend_memory_contexts GROUP BY 1 ORDER BY 2 DESC LIMIT 6) q";

/// One session until it is told to stop: how many statements.
fn session(conninfo: &str, number: u64, stop: &AtomicBool, errors: &Mutex<Vec<String>>) -> u64 {
    let mut random = Random::new(number + 91);
    let (mut client, mut done) = (None, 0);
    while !stop.load(Ordering::Relaxed) {
        let Some(connected) = client.take().or_else(|| Client::connect(conninfo).ok()) else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let mut connected = connected;
        let sql = statement(&mut random, number);
        match connected.exec(&sql) {
            Ok(_) => {
                done += 1;
                client = Some(connected);
            }
            // The server crashed: somebody wanted that.
            Err(error) if error.is_connection_loss() => {}
            Err(error) => {
                if let Ok(mut errors) = errors.lock() {
                    errors.push(format!("{error} in {sql}"));
                }
                client = Some(connected);
            }
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    // What of a session that grew is PostgreSQL's.
    if let Some(contexts) = client.and_then(|mut client| client.query_one(CONTEXTS).ok()) {
        println!("steady session {number}: {contexts}");
    }
    done
}

/// The ledger does not look at ids below one, nor at edges.
fn statement(random: &mut Random, number: u64) -> String {
    let (key, id) = (random.below(6_000) + 1, random.below(500) * 2 + number + 1);
    let (s, t) = (random.below(60), random.below(60));
    match random.below(40) {
        // One session edits the graph, so that nobody is told that another came first.
        0..=2 if number == 0 => format!("INSERT INTO e (s, t) VALUES ({s}, {t})"),
        3..=5 if number == 0 => "DELETE FROM e WHERE id IN (SELECT id FROM e ORDER BY random() LIMIT (SELECT greatest(count(*) - 70, 0) FROM e))".into(),
        6 => "SELECT count(*) FROM foreshard.heat_map".into(),
        7 => "SELECT count(*) FROM foreshard.slots".into(),
        8 => "EXPLAIN SELECT * FROM acc JOIN note USING (id) WHERE id < 100".into(),
        9..=12 => format!("INSERT INTO note (id, v) VALUES (-{id}, 'x') ON CONFLICT (id) DO UPDATE SET v = note.v || 'y' WHERE length(note.v) < 50"),
        13..=14 => format!("DELETE FROM note WHERE id = -{id}"),
        15..=18 => format!("BEGIN; INSERT INTO acc (id, v) VALUES (-{id}, 'x') ON CONFLICT DO NOTHING; SAVEPOINT a; DELETE FROM acc WHERE id = -{id}; ROLLBACK TO a; COMMIT"),
        19 => format!("UPDATE acc SET v = 'z' WHERE id = -{id}"),
        20..=24 => format!("SELECT count(*) FROM foreshard.g_descendants({s})"),
        // Most reads are of few keys, so that there is something to balance.
        _ => format!("SELECT count(*) FROM acc WHERE id IN ({}, {key})", key % 3 + 1),
    }
}
