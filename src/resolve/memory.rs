//! What is learnt of sources: between shared memory and tables, and how an answer or a failure changes it.

use crate::catalog::data_source;
use crate::pg::guc;
use crate::pg::local::LocalBox;
use crate::pg::report::PgResult;
use crate::pg::sources::{self, Entry, Place};
use foreshard_core::resolve::{Admission, Health, Rules, Sample, health};
use std::collections::HashSet;

/// Doublings of a pause.
const LONGEST: f64 = 32.0;

/// What came of a question.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// An answer. Without a sample when its time says nothing about the place.
    Answered {
        /// Keys asked for.
        keys: usize,
        /// Rows that came.
        rows: usize,
        /// Time, ms.
        ms: Option<f64>,
    },
    /// It took too long.
    TimedOut,
    /// It failed.
    Failed {
        /// SQLSTATE.
        sqlstate: String,
        /// The place itself said so, or could not be reached; else nobody tried.
        asked: bool,
    },
}

/// How breakers are set.
pub fn rules() -> Rules {
    let pause_ms = f64::from(guc::RESOLVE_BREAKER_PAUSE.get());
    let failures = guc::RESOLVE_BREAKER_FAILURES.get().max(0) as u32;
    Rules { failures, pause_ms, longest_ms: pause_ms * LONGEST }
}

/// Notes what came of a question.
pub fn note(place: Place, outcome: &Outcome) {
    let (now_ms, rules) = (sources::now_ms(), rules());
    sources::with(|board| {
        let Some(entry) = board.entry(place, now_ms) else { return };
        entry.used_ms = now_ms.max(1.0);
        entry.unsaved = true;
        entry.counters.calls += 1;
        let sick = match outcome {
            Outcome::Answered { keys, rows, ms } => {
                entry.counters.keys += *keys as i64;
                entry.counters.rows += *rows as i64;
                entry.breaker.succeeded();
                if let Some(ms) = *ms {
                    entry.learnt.answered(now_ms, Sample { keys: *keys as f64, rows: *rows as f64, ms });
                }
                return;
            }
            Outcome::TimedOut => {
                entry.counters.timeouts += 1;
                Some("57014")
            }
            Outcome::Failed { sqlstate, asked } => {
                let sick = health(sqlstate) == Health::Sick;
                if !sick {
                    entry.counters.refused += 1;
                    // Whoever refuses is there; whom nobody let in has not seen it work.
                    if *asked && !sqlstate.starts_with("28") && !sqlstate.starts_with("2F") {
                        entry.breaker.succeeded();
                    }
                }
                sick.then_some(sqlstate.as_str())
            }
        };
        if let Some(sqlstate) = sick {
            entry.counters.failures += 1;
            entry.last_error = sqlstate.as_bytes().try_into().unwrap_or_default();
            entry.learnt.failed(now_ms);
            entry.breaker.failed(now_ms, &rules);
        }
    });
}

/// Whether a place may be asked now; whoever is let in as the one who tries keeps others out.
pub fn admit(place: Place) -> Admission {
    let (now_ms, rules) = (sources::now_ms(), rules());
    let admitted = |board: &mut sources::Board| {
        board.find(place)?;
        board.entry(place, now_ms).map(|entry| entry.breaker.admit(now_ms, &rules))
    };
    sources::with(admitted).flatten().unwrap_or(Admission::Open)
}

/// Sources of which this session has read what was saved.
static READ: LocalBox<HashSet<i32>> = LocalBox::new();

/// Everything known of these sources, read from the tables if need be. As the extension's owner.
pub fn known(source_ids: &[i32]) -> PgResult<Vec<Entry>> {
    let database = sources::place(0, 0).database;
    let unread: Vec<i32> = READ
        .with(HashSet::new, |read| source_ids.iter().copied().filter(|id| !read.contains(id)).collect())
        .unwrap_or_default();
    if !unread.is_empty() {
        let saved = data_source::saved(database, &unread)?;
        sources::with(|board| {
            for entry in saved {
                if board.find(entry.place).is_none()
                    && let Some(own) = board.entry(entry.place, entry.used_ms)
                {
                    *own = entry;
                }
            }
        });
        READ.with(HashSet::new, |read| read.extend(unread));
    }
    let own = |board: &mut sources::Board| -> Vec<Entry> {
        board
            .of_database(database)
            .filter(|entry| source_ids.contains(&entry.place.source))
            .map(|e| *e)
            .collect()
    };
    Ok(sources::with(own).unwrap_or_default())
}

/// What the tables do not have yet of this database; it counts as saved from now on.
pub fn take_unsaved() -> Vec<Entry> {
    let database = sources::place(0, 0).database;
    let take = |board: &mut sources::Board| -> Vec<Entry> {
        let unsaved = board.of_database(database).filter(|entry| entry.unsaved);
        unsaved
            .map(|entry| {
                entry.unsaved = false;
                *entry
            })
            .collect()
    };
    sources::with(take).unwrap_or_default()
}
