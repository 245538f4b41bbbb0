//! Counters that come late: which partitions long transactions used, and how the partitions' counters ran before those
//! ended.

use crate::catalog::late::{self, Open};
use crate::pg::report::PgResult;
use foreshard_core::heat::Rates;
use foreshard_core::late::{Spread, spread};
use std::collections::{HashMap, HashSet};

/// A transaction is long when it has been open for so much of a bucket.
const LONG_BUCKETS: f64 = 0.5;
/// An idle session may report its counters so much later than the end of its transaction, s (PostgreSQL's
/// PGSTAT_IDLE_INTERVAL, and a bit).
const REPORT_S: f64 = 12.0;

/// A transaction's counters are spread over its last hour at most: what is older has been planned with.
const LONGEST_S: f64 = 3600.0;
/// Partitions whose counters are spread after one reading; those of more are told as they came. Each takes hundreds of
/// rows of history.
const MOST: usize = 256;

/// A transaction that has ended.
#[derive(Clone, Copy)]
struct Ended {
    began_s: f64,
    known_at_s: f64,
}

/// What long transactions did.
#[derive(Default)]
pub struct Latecomers {
    open: Vec<Open>,
    /// Of every partition the transaction that began first.
    ended: HashMap<u32, Ended>,
    /// How fast the counters of partitions ran in the last bucket.
    usual: HashMap<u32, Rates>,
    next: HashMap<u32, Rates>,
    /// Partitions whose counters may still be spread after this reading.
    room: usize,
}

impl Latecomers {
    /// Looks which transactions are open, and which have ended since the last time.
    pub fn look(&mut self, now_s: f64, bucket_s: f64) -> PgResult<()> {
        let open = late::open(now_s - bucket_s * LONG_BUCKETS)?;
        self.ended
            .retain(|_, ended| (0.0..REPORT_S.max(2.0 * bucket_s)).contains(&(now_s - ended.known_at_s)));
        let still: HashSet<(i32, u64)> = open.iter().map(|o| (o.pid, o.began_s.to_bits())).collect();
        for was in &self.open {
            if !still.contains(&(was.pid, was.began_s.to_bits())) {
                let new = Ended { began_s: was.began_s, known_at_s: now_s };
                let ended = self.ended.entry(was.relation).or_insert(new);
                ended.began_s = ended.began_s.min(was.began_s);
            }
        }
        self.open = open;
        self.room = MOST;
        self.usual = std::mem::take(&mut self.next);
        Ok(())
    }

    /// Takes the rates of a partition apart, if a long transaction that used it has ended; with how long before the
    /// bucket, which began at `from_s`, that had begun. Else they are what is usual from now on.
    pub fn spread(
        &mut self,
        relation: u32,
        seen: &Rates,
        from_s: f64,
        elapsed_s: f64,
    ) -> Option<(Spread, f64)> {
        let ended = self.ended.get(&relation).filter(|_| self.room > 0);
        let before_s = ended.map_or(0.0, |ended| (from_s - ended.began_s).min(LONGEST_S));
        let found = self.usual.get(&relation).and_then(|usual| spread(seen, usual, elapsed_s, before_s));
        self.next.insert(relation, found.map_or(*seen, |spread| spread.now));
        if found.is_some() {
            self.ended.remove(&relation);
            self.room -= 1;
        }
        found.map(|spread| (spread, before_s))
    }
}
