//! Clients in a closed loop that ask for keys as often as the trace has them.

use crate::Options;
use crate::world::World;
use foreshard_test::{Client, Latencies, Result, SqlError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Accesses that a client draws and asks for again and again.
const DRAWN: usize = 50_000;

/// What clients got.
pub struct Asked {
    /// Questions per second.
    pub per_second: f64,
    /// Of all of them.
    pub latencies: Latencies,
}

/// One client: by the coordinator, or with a connection to every node and the place of every key.
pub struct Asker {
    clients: Vec<Client>,
    keys: Vec<(String, usize, String)>,
    at: usize,
}

impl Asker {
    /// Connects and prepares; `number` decides which keys it draws.
    fn new(options: &Options, world: &World, accesses: &[u32], number: usize, direct: bool) -> Result<Asker> {
        let mut random = SmallRng::seed_from_u64(number as u64 + 7);
        let drawn: Vec<u32> = (0..DRAWN).map(|_| accesses[random.random_range(0..accesses.len())]).collect();
        let question = |table: &str| {
            format!("SELECT id FROM {table} WHERE id = $1 AND length(md5(repeat(v, {}))) = 32", options.work)
        };
        if !direct {
            let mut client = world.connect()?;
            client.exec("SET jit = off")?;
            client.prepare("q", &question("item"))?;
            let keys = drawn.iter().map(|key| (key.to_string(), 0, "q".to_string())).collect();
            return Ok(Asker { clients: vec![client], keys, at: 0 });
        }
        let mut clients = Vec::new();
        for node in 0..options.nodes {
            let mut client = world.connect_to(node)?;
            client.exec("SET jit = off")?;
            for (slot, table) in world.tables_on(node)? {
                client.prepare(&format!("q{slot}"), &question(&table))?;
            }
            clients.push(client);
        }
        let places = world.places()?;
        let place = |key: &u32| {
            let slot = world.slot_of(*key);
            (key.to_string(), places.get(&slot).copied().unwrap_or(0), format!("q{slot}"))
        };
        Ok(Asker { clients, keys: drawn.iter().map(place).collect(), at: 0 })
    }

    fn ask(&mut self) -> std::result::Result<(), SqlError> {
        let (key, client, name) = &self.keys[self.at % self.keys.len()];
        self.at += 1;
        let rows = self.clients[*client].exec_prepared(name, &[Some(key)])?;
        assert_eq!(rows.len(), 1, "key {key} is not where it should be");
        Ok(())
    }
}

/// Asks for some seconds, by the coordinator or directly.
pub fn ask_all(
    options: &Options,
    world: &World,
    accesses: &[u32],
    clients: usize,
    direct: bool,
) -> Result<Asked> {
    let mut askers = Vec::new();
    for number in 0..clients {
        askers.push(Asker::new(options, world, accesses, number, direct)?);
    }
    // Plans and connections are made before it counts.
    for asker in &mut askers {
        for _ in 0..50 {
            asker.ask()?;
        }
    }
    let (begun, time) = (Instant::now(), Duration::from_secs(options.seconds));
    let threads: Vec<JoinHandle<std::result::Result<Latencies, SqlError>>> = askers
        .into_iter()
        .map(|mut asker| {
            std::thread::spawn(move || {
                let mut latencies = Latencies::default();
                while begun.elapsed() < time {
                    let one = Instant::now();
                    asker.ask()?;
                    latencies.record(one.elapsed());
                }
                Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Latencies::default();
    for thread in threads {
        latencies.add(&thread.join().map_err(|_| "A client panicked.")??);
    }
    Ok(Asked { per_second: latencies.count() as f64 / begun.elapsed().as_secs_f64(), latencies })
}

/// Clients that ask until they are stopped.
pub struct Background {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    threads: Vec<JoinHandle<std::result::Result<(), SqlError>>>,
}

impl Background {
    /// Starts as many clients as every measurement has.
    pub fn start(options: &Options, world: &World, accesses: &[u32]) -> Result<Background> {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for number in 0..options.clients {
            let mut asker = Asker::new(options, world, accesses, number, false)?;
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    asker.ask()?;
                    served.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        Ok(Background { stop, served, threads })
    }

    /// Stops them; how many questions they asked. A question that failed is an error.
    pub fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "A client panicked.")??;
        }
        Ok(self.served.load(Ordering::Relaxed))
    }
}
