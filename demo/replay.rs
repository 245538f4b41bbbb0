//! The shop's clients: they replay the trace and remember what they wrote.

use crate::setup::INITIAL_STOCK;
use crate::trace::Trace;
use foreshard_test::load::Session;
use foreshard_test::{Client, Error, Result, SqlError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Every so many accesses, one is an update.
pub const UPDATE_EVERY: usize = 10;

/// What all clients share.
pub struct Replay {
    trace: Trace,
    next: AtomicUsize,
    updates: Vec<AtomicU32>,
}

/// One client.
pub struct Shopper {
    replay: Arc<Replay>,
}

impl Replay {
    /// A replay from the trace's begin.
    pub fn new(trace: Trace) -> Arc<Replay> {
        let updates = trace.keys.iter().map(|_| AtomicU32::new(0)).collect();
        Arc::new(Replay { trace, next: AtomicUsize::new(0), updates })
    }

    /// Clients that take turns at the trace.
    pub fn shoppers(self: &Arc<Replay>, count: usize) -> Vec<Shopper> {
        let shopper = || Shopper { replay: Arc::clone(self) };
        std::iter::repeat_with(shopper).take(count).collect()
    }

    /// How many accesses have been replayed.
    pub fn position(&self) -> usize {
        self.next.load(Ordering::Relaxed)
    }

    /// How many updates the clients saw committed.
    pub fn updates(&self) -> u64 {
        let count = |counter: &AtomicU32| u64::from(counter.load(Ordering::Relaxed));
        self.updates.iter().map(count).sum()
    }

    /// Compares every row with what the clients wrote; the number of rows.
    pub fn verify(&self, client: &mut Client) -> Result<usize> {
        let rows = client.exec("SELECT id, stock, version FROM object ORDER BY id")?;
        if rows.len() != self.trace.keys.len() {
            return Err(Error::new(
                format!("The table has {} rows instead of {}.", rows.len(), self.trace.keys.len()),
                "",
            ));
        }
        for (row, (key, updates)) in self.trace.keys.iter().zip(&self.updates).enumerate() {
            let updates = i64::from(updates.load(Ordering::Relaxed));
            let want = [i64::from(*key), INITIAL_STOCK - updates, updates];
            let found = ["id", "stock", "version"].map(|name| rows.parse::<i64>(row, name));
            if found != want.map(Some) {
                return Err(Error::new(
                    format!("(id, stock, version) is {found:?} where the clients wrote {want:?}."),
                    "",
                ));
            }
        }
        let audited = client.query_one("SELECT count(*) FROM object_audit")?;
        if audited != self.updates().to_string() {
            return Err(Error::new(
                format!("The audit trigger wrote {audited} rows for {} updates.", self.updates()),
                "",
            ));
        }
        Ok(rows.len())
    }
}

/// A fingerprint of everything the replay does not change.
pub fn fingerprint(client: &mut Client) -> Result<String> {
    Ok(client.query_one(
        "SELECT sum(hashtextextended(concat_ws('|', id, kind, name, price, attributes, body), 0)::numeric) FROM object",
    )?)
}

impl Session for Shopper {
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        client
            .prepare("look", "SELECT kind, name, price, stock, attributes, body FROM object WHERE id = $1")?;
        client.prepare(
            "sell",
            "UPDATE object SET stock = stock - 1, version = version + 1, updated_at = clock_timestamp() WHERE id = $1",
        )
    }

    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        let replay = &self.replay;
        let turn = replay.next.fetch_add(1, Ordering::Relaxed);
        let object = replay.trace.accesses[turn % replay.trace.accesses.len()] as usize;
        let key = replay.trace.keys[object].to_string();
        let found = if turn % UPDATE_EVERY == UPDATE_EVERY - 1 {
            let sold = client.exec_prepared("sell", &[Some(&key)])?.affected();
            if sold == 1 {
                replay.updates[object].fetch_add(1, Ordering::Relaxed);
            }
            sold
        } else {
            client.exec_prepared("look", &[Some(&key)])?.len() as u64
        };
        if found == 1 {
            return Ok(());
        }
        let mut error = SqlError::connection(&format!("object {key} was found {found} times"));
        error.sqlstate = "P0004".into();
        Err(error)
    }
}
