//! What the last resolve() of this session asked; kept when it fails.

use crate::pg::local::{Local, LocalBox};
use crate::pg::security;

/// A question to a source at a place.
#[derive(Clone, Debug)]
pub struct Line {
    /// Number of the chain, from 1.
    pub chain: i32,
    /// Number of the step, from 1.
    pub step: i32,
    /// The source.
    pub source: String,
    /// Shards whose keys were asked for; empty: not sharded.
    pub shards: Vec<String>,
    /// Where.
    pub server: String,
    /// Keys asked for.
    pub keys: i64,
    /// Rows that came.
    pub rows: Option<i64>,
    /// What it was predicted to take, ms.
    pub predicted_ms: f64,
    /// What it took, ms.
    pub elapsed_ms: Option<f64>,
    /// answered, failed, timeout, refused or kept out
    pub outcome: &'static str,
    /// What went wrong.
    pub error: Option<String>,
}

/// Lines that are kept.
const MAX_LINES: usize = 10_000;

static LAST: LocalBox<Vec<Line>> = LocalBox::new();
/// Whose questions they were: nobody else in the session is told.
static WHOSE: Local<u32> = Local::new(0);

/// Forgets the one before.
pub fn begin() {
    WHOSE.set(security::current_role().to_u32());
    LAST.with(Vec::new, Vec::clear);
}

/// Adds a line.
pub fn add(line: Line) {
    LAST.with(Vec::new, |lines| {
        if lines.len() < MAX_LINES {
            lines.push(line);
        }
    });
}

/// All lines, if they are the current user's.
pub fn last() -> Vec<Line> {
    if WHOSE.get() != security::current_role().to_u32() {
        return Vec::new();
    }
    LAST.with(Vec::new, |lines| lines.clone()).unwrap_or_default()
}
