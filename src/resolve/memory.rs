//! What is learnt of sources: between shared memory and tables, and how an answer or a failure changes it.

use crate::catalog::data_source;
use crate::pg::guc;
use crate::pg::local::LocalBox;
use crate::pg::report::PgResult;
use crate::pg::sources::{self, Entry, Place};
use foreshard_core::resolve::{Admission, Health, Rules, Sample};
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
    /// It took too long, perhaps because nobody read what it sent.
    Unheard,
    /// It failed.
    Failed {
        /// SQLSTATE.
        sqlstate: String,
        /// What that says about the place.
        health: Health,
        /// The place itself said so; else it was not reached.
        asked: bool,
    },
    /// The caller has no way to get there: nobody tried.
    Unsent,
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
            Outcome::Unheard => None,
            Outcome::Unsent => {
                entry.counters.refused += 1;
                None
            }
            Outcome::Failed { sqlstate, health, asked } => {
                let sick = *health == Health::Sick;
                if !sick {
                    entry.counters.refused += 1;
                    // Whoever refuses is there; whom nobody let in has not seen it work.
                    if *asked && !is_kept_from(sqlstate) {
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

/// Whether an error says that the caller was not let in: that tells nothing about the place.
pub fn is_kept_from(sqlstate: &str) -> bool {
    sqlstate.starts_with("28") || sqlstate.starts_with("2F")
}

/// Somebody was let in. Who tries has the end of the pause that keeps others out meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Admitted {
    probe_until_ms: Option<f64>,
}

/// Lets in who may ask a place now; whoever is let in as the one who tries keeps others out. None: kept out.
pub fn admit(place: Place) -> Option<Admitted> {
    let (now_ms, rules) = (sources::now_ms(), rules());
    let admitted = |board: &mut sources::Board| {
        board.find(place)?;
        let entry = board.entry(place, now_ms)?;
        Some(match entry.breaker.admit(now_ms, &rules) {
            Admission::Open => Some(Admitted::default()),
            Admission::Probe => Some(Admitted { probe_until_ms: Some(entry.breaker.until_ms) }),
            Admission::KeptOut(_) => None,
        })
    };
    sources::with(admitted).flatten().unwrap_or(Some(Admitted::default()))
}

/// Whoever was let in has learnt nothing about the place: if he was the one to try, the next one is.
pub fn release(place: Place, admitted: Admitted) {
    let Some(until_ms) = admitted.probe_until_ms else { return };
    let now_ms = sources::now_ms();
    sources::with(|board| {
        if board.find(place).is_some()
            && let Some(entry) = board.entry(place, now_ms)
        {
            entry.breaker.released(until_ms, now_ms);
        }
    });
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
