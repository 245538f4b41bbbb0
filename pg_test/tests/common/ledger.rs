//! Clients that write by key and remember what was committed. A commit whose outcome a crash hides is
//! resolved by looking; anything else a client did not expect is an error.
//!
//! Two tables of the form `(id bigint PRIMARY KEY, v text)` are written; key `k > 0` stands for row `k`
//! of the first, `k < 0` for row `-k` of the second.

use super::{Random, Server};
use foreshard_test::{Client, Error, Result, SqlError};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The tables, by sign of the key.
pub const TABLES: [&str; 2] = ["acc", "note"];

/// One key's change: from, to (None: no such row).
type Change = (i64, Option<String>, Option<String>);

struct Share {
    rows: BTreeMap<i64, String>,
    errors: Vec<String>,
}

/// The clients at work.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    shares: Vec<Arc<Mutex<Share>>>,
    threads: Vec<JoinHandle<()>>,
}

/// Creates and fills both tables; every client later owns the keys that are its number modulo `clients`.
pub fn create(server: &mut Server, rows: u64) -> Result<()> {
    for table in TABLES {
        server.query(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, v text NOT NULL); \
             INSERT INTO {table} SELECT g, 'v' || g FROM generate_series(1, {rows}) g"
        ))?;
    }
    Ok(())
}

impl Ledger {
    /// Starts clients on the tables as [`create`] left them.
    pub fn start(server: &Server, rows: u64, clients: u64) -> Ledger {
        Ledger::start_kind(server, rows, clients, false)
    }

    /// As [`start`](Self::start), with single changes of one row only, none of its key: all that stays whole when one
    /// of several servers crashes.
    pub fn start_plain(server: &Server, rows: u64, clients: u64) -> Ledger {
        Ledger::start_kind(server, rows, clients, true)
    }

    fn start_kind(server: &Server, rows: u64, clients: u64, plain: bool) -> Ledger {
        let stop = Arc::new(AtomicBool::new(false));
        let commits = Arc::new(AtomicU64::new(0));
        let mut shares = Vec::new();
        let mut threads = Vec::new();
        for number in 0..clients {
            let mine = (1..=rows as i64).filter(|k| k % clients as i64 == number as i64);
            let rows = mine.flat_map(|k| [(k, format!("v{k}")), (-k, format!("v{k}"))]).collect();
            let share = Arc::new(Mutex::new(Share { rows, errors: Vec::new() }));
            let mut writer = Writer {
                conninfo: server.cluster.conninfo("postgres"),
                client: None,
                random: Random::new(number + 17),
                next: (1_000_000 / clients * clients + number) as i64,
                stride: clients as i64,
                plain,
            };
            let (stop, commits, own) = (Arc::clone(&stop), Arc::clone(&commits), Arc::clone(&share));
            threads.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(mut share) = own.lock() {
                        writer.step(&mut share);
                    }
                    commits.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }));
            shares.push(share);
        }
        Ledger { stop, commits, shares, threads }
    }

    /// Waits until the clients have done some more work.
    pub fn work(&self, transactions: u64) -> Result<()> {
        let goal = self.commits.load(Ordering::Relaxed) + transactions;
        foreshard_test::wait_until("the clients work", super::PATIENCE, || {
            Ok(self.commits.load(Ordering::Relaxed) >= goal)
        })
    }

    /// Pauses the clients and asserts that the tables hold exactly what was committed, whether read by
    /// the table or by its key, and that no statement ever failed.
    pub fn assert_equal(&self, server: &mut Server) -> Result<()> {
        let shares: Vec<_> = self.shares.iter().filter_map(|share| share.lock().ok()).collect();
        assert_eq!(shares.len(), self.shares.len(), "a client panicked");
        for share in &shares {
            assert_eq!(share.errors, Vec::<String>::new(), "statements failed");
        }
        let mut expected: BTreeMap<i64, &str> = BTreeMap::new();
        for share in &shares {
            expected.extend(share.rows.iter().map(|(k, v)| (*k, v.as_str())));
        }
        for plan in ["enable_indexscan", "enable_seqscan"] {
            let text = server.query(&format!(
                "SET enable_bitmapscan = off; SET {plan} = off; \
                 SELECT id, v FROM acc WHERE id > 0 UNION ALL SELECT -id, v FROM note WHERE id > 0"
            ))?;
            server.query("RESET enable_indexscan; RESET enable_seqscan")?;
            compare(&expected, &text, plan);
        }
        Ok(())
    }

    /// Stops the clients.
    pub fn finish(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop();
    }
}

fn compare(expected: &BTreeMap<i64, &str>, text: &str, plan: &str) {
    let mut found = BTreeMap::new();
    for (key, v) in text.lines().filter_map(|line| line.split_once('|')) {
        let key: i64 = key.parse().expect("a number");
        assert_eq!(found.insert(key, v), None, "key {key} is there twice ({plan} off)");
    }
    let short = |v: Option<&&str>| v.map(|v| v.chars().take(40).collect::<String>());
    let differing: Vec<String> = expected
        .keys()
        .chain(found.keys())
        .filter(|key| expected.get(key) != found.get(key))
        .map(|key| {
            format!("{key}: committed {:?}, found {:?}", short(expected.get(key)), short(found.get(key)))
        })
        .collect();
    assert!(
        differing.is_empty(),
        "{} rows differ ({plan} off), for example:\n{}",
        differing.len(),
        differing[..differing.len().min(10)].join("\n")
    );
}

struct Writer {
    conninfo: String,
    client: Option<Client>,
    random: Random,
    next: i64,
    stride: i64,
    plain: bool,
}

/// A piece of work: its statements, whether it commits, and what it changes then.
struct Work {
    statements: Vec<String>,
    changes: Vec<Change>,
    commit: bool,
}

impl Work {
    /// Its statements, shortened.
    fn brief(&self) -> String {
        let short = self.statements.iter().map(|s| s.chars().take(100).collect::<String>());
        short.collect::<Vec<_>>().join("; ")
    }
}

impl Writer {
    /// One transaction, with its outcome in the ledger.
    fn step(&mut self, share: &mut Share) {
        let Some(mut client) = self.client.take().or_else(|| Client::connect(&self.conninfo).ok()) else {
            std::thread::sleep(Duration::from_millis(20));
            return;
        };
        let work = self.plan(share);
        match perform(&mut client, &work) {
            Ok(()) => {
                if work.commit {
                    apply(share, &work.changes);
                }
                self.read(client, share, &work);
            }
            Err(error) if error.is_connection_loss() => self.resolve(share, &work),
            Err(error) => {
                share.errors.push(format!("{error} in {}", work.brief()));
                // An open transaction goes with its connection.
            }
        }
    }

    /// What was just committed, and another key, must be there for the next statement, wherever it is read.
    fn read(&mut self, mut client: Client, share: &mut Share, work: &Work) {
        let (other, _) = self.existing(share);
        let keys: Vec<i64> = work.changes.iter().map(|(key, _, _)| *key).chain([other]).collect();
        for key in keys {
            match look(&mut client, key) {
                Ok(found) if found.as_ref() == share.rows.get(&key) => {}
                Ok(_) => share.errors.push(format!("key {key} is read otherwise after {}", work.brief())),
                Err(error) if error.is_connection_loss() => return,
                Err(error) => share.errors.push(error.to_string()),
            }
        }
        self.client = Some(client);
    }

    /// After a lost connection: either everything or nothing of the work is there.
    fn resolve(&mut self, share: &mut Share, work: &Work) {
        let begun = Instant::now();
        let (client, found) = loop {
            if begun.elapsed() > super::PATIENCE {
                return share.errors.push(format!("the outcome is not to be learnt: {}", work.brief()));
            }
            // A server that is still away, or goes down again: so far nothing is decided. The connection that failed
            // is closed before the next one is made, or waiting would take all that the server has.
            if let Ok(mut client) = Client::connect(&self.conninfo) {
                let looked: std::result::Result<Vec<_>, _> =
                    work.changes.iter().map(|(key, _, _)| look(&mut client, *key)).collect();
                match looked {
                    Ok(found) => break (client, found),
                    Err(error) if error.is_connection_loss() => {}
                    Err(error) => return share.errors.push(error.to_string()),
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut done = Vec::new();
        for ((key, before, after), found) in work.changes.iter().zip(found) {
            if found == *after {
                done.push(true);
            } else if found == *before {
                done.push(false);
            } else {
                share.errors.push(format!("key {key} is neither as before nor as after the crash"));
            }
        }
        if done.iter().all(|d| *d) && work.commit {
            apply(share, &work.changes);
        } else if done.iter().any(|d| *d) {
            share.errors.push(format!("a transaction was done in part: {} {done:?}", work.brief()));
        }
        self.client = Some(client);
    }

    /// A value that was never written before; one in thirty is stored out of line.
    fn value(&mut self) -> String {
        let words = if self.random.below(30) == 0 { 400 } else { 2 };
        (0..words).map(|_| format!("{:012x}", self.random.below(1 << 48))).collect()
    }

    fn existing(&mut self, share: &Share) -> (i64, String) {
        let at = self.random.below(1_000_000) as i64 - 500_000;
        let at = at % 20_000;
        let next = share.rows.range(at..).next().or_else(|| share.rows.iter().next_back());
        next.map_or((0, String::new()), |(k, v)| (*k, v.clone()))
    }

    fn fresh(&mut self) -> i64 {
        self.next += self.stride;
        if self.random.below(2) == 0 { self.next } else { -self.next }
    }

    fn plan(&mut self, share: &Share) -> Work {
        let (key, old) = self.existing(share);
        let value = self.value();
        let single = |change: Change| Work {
            statements: vec![statement(&change)],
            changes: vec![change],
            commit: true,
        };
        match self.random.below(if self.plain { 8 } else { 12 }) {
            0..=4 => single((key, Some(old), Some(value))),
            5..=6 => single((self.fresh(), None, Some(value))),
            7 => single((key, Some(old), None)),
            8 => self.change_key(key, old),
            _ => self.transaction(key, old, value),
        }
    }

    /// The row goes to another key, and so perhaps to another slot.
    fn change_key(&mut self, key: i64, old: String) -> Work {
        let new = self.fresh().abs() * key.signum();
        let table = TABLES[usize::from(key < 0)];
        Work {
            statements: vec![format!("UPDATE {table} SET id = {} WHERE id = {}", new.abs(), key.abs())],
            changes: vec![(key, Some(old.clone()), None), (new, None, Some(old))],
            commit: true,
        }
    }

    /// Several statements, a savepoint that is undone, and commit or rollback.
    fn transaction(&mut self, key: i64, old: String, value: String) -> Work {
        let insert = (self.fresh(), None, Some(self.value()));
        let update = (key, Some(old), Some(value));
        let undone = (key, None, None);
        let mut statements = vec!["BEGIN".to_string(), statement(&insert), "SAVEPOINT s".to_string()];
        statements.extend([statement(&undone), "ROLLBACK TO s".to_string(), statement(&update)]);
        let commit = self.random.below(4) > 0;
        statements.push(if commit { "COMMIT" } else { "ROLLBACK" }.to_string());
        Work { statements, changes: vec![insert, update], commit }
    }
}

fn statement((key, before, after): &Change) -> String {
    let (table, id) = (TABLES[usize::from(*key < 0)], key.abs());
    match (before, after) {
        (None, Some(v)) => format!("INSERT INTO {table} (id, v) VALUES ({id}, '{v}')"),
        (Some(_), Some(v)) => format!("UPDATE {table} SET v = '{v}' WHERE id = {id}"),
        (_, None) => format!("DELETE FROM {table} WHERE id = {id}"),
    }
}

fn perform(client: &mut Client, work: &Work) -> std::result::Result<(), SqlError> {
    for statement in &work.statements {
        let rows = client.exec(statement)?;
        let writes = ["INSERT", "UPDATE", "DELETE"].iter().any(|verb| statement.starts_with(verb));
        if writes && rows.affected() != 1 {
            let mut error = SqlError::connection(&format!("{} rows instead of 1", rows.affected()));
            error.sqlstate = "XXXXX".into();
            return Err(error);
        }
    }
    Ok(())
}

fn look(client: &mut Client, key: i64) -> std::result::Result<Option<String>, SqlError> {
    let table = TABLES[usize::from(key < 0)];
    let rows = client.exec(&format!("SELECT v FROM {table} WHERE id = {}", key.abs()))?;
    Ok(rows.get(0, 0).map(String::from))
}

fn apply(share: &mut Share, changes: &[Change]) {
    for (key, _, after) in changes {
        match after {
            Some(v) => share.rows.insert(*key, v.clone()),
            None => share.rows.remove(key),
        };
    }
}

/// An error a test can return.
pub fn missing(what: &str) -> Error {
    Error::new(format!("{what} is missing"), "")
}
