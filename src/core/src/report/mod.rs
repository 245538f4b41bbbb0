//! The report: everything a person wants to see of a database on one page that needs nothing but a browser.
//!
//! [`html`] makes a self-contained document of a [`Report`]: no script, no network, figures as inline SVG whose texts are
//! HTML (so they keep their size on every screen), a table behind every figure. Every text passes the template's escaping,
//! and a content security policy in the page forbids whatever could be smuggled in. All lists are bounded; the page says
//! how many entries it leaves out.

mod acts;
mod costs;
mod load;
mod page;
mod plot;
mod text;

pub use acts::remedy;
pub use text::literal;

/// Slots in the heat map.
pub const MAX_SLOTS: usize = 48;
/// Buckets in the heat map, and in a load curve before now.
pub const MAX_BUCKETS: usize = 72;
/// Leads of a load curve.
pub const MAX_LEADS: usize = 96;
/// Shards.
pub const MAX_SHARDS: usize = 24;
/// Entries of every other list.
pub const MAX_ENTRIES: usize = 30;

/// Some of the entries there are, the most important ones first.
#[derive(Clone, Debug)]
pub struct Part<T> {
    /// The entries known here.
    pub known: Vec<T>,
    /// How many there are.
    pub total: usize,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Part { known: Vec::new(), total: 0 }
    }
}

impl<T> From<Vec<T>> for Part<T> {
    fn from(known: Vec<T>) -> Self {
        Part { total: known.len(), known }
    }
}

impl<T> Part<T> {
    /// At most so many entries.
    fn shown(&self, most: usize) -> &[T] {
        &self.known[..self.known.len().min(most)]
    }

    /// How many are not shown then.
    fn left_out(&self, most: usize) -> usize {
        self.total.max(self.known.len()) - self.known.len().min(most)
    }
}

/// All that is reported. Times are unix seconds, loads cost units (ms of CPU) per second; None is unknown.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Name of the database.
    pub database: String,
    /// Version of PostgreSQL.
    pub server: String,
    /// Version of the extension.
    pub extension: String,
    /// When the report was made.
    pub made_at: f64,
    /// What is added to UTC for the times shown.
    pub utc_offset_s: i32,
    /// `foreshard.mode`.
    pub mode: String,
    /// Managed tables.
    pub tables: Part<Table>,
    /// Shards, by name.
    pub shards: Part<Shard>,
    /// Loads of slots over time, the hottest ones.
    pub heat: Heat,
    /// Load curves of shards.
    pub curves: Vec<Curve>,
    /// What is recommended, and what is refused.
    pub recommendations: Part<Recommendation>,
    /// Moves, the newest first.
    pub moves: Part<Move>,
    /// Triggers, the costliest first.
    pub triggers: Part<Trigger>,
    /// Hot keys, the hottest first.
    pub hot_keys: Part<HotKey>,
    /// Influential nodes of graphs.
    pub influencers: Part<Influencer>,
    /// What became of recommendations.
    pub calibration: Part<Calibration>,
    /// What is wrong.
    pub problems: Part<Problem>,
}

/// A managed table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its colocation group.
    pub group_id: i32,
    /// Column of the key.
    pub key: String,
    /// Its slots.
    pub slots: i64,
    /// Size with indexes.
    pub bytes: i64,
}

/// A shard.
#[derive(Clone, Debug, Default)]
pub struct Shard {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub node: String,
    /// What it can carry.
    pub capacity: f64,
    /// It is being emptied.
    pub draining: bool,
    /// Slots on it.
    pub slots: i64,
    /// Bytes on it.
    pub bytes: i64,
    /// Load now.
    pub load: Option<f64>,
}

/// Loads of slots over time.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    /// Seconds of a bucket.
    pub step_s: i32,
    /// Starts of the buckets, ascending.
    pub starts: Vec<f64>,
    /// A row per slot.
    pub slots: Part<HeatRow>,
}

/// A slot's row.
#[derive(Clone, Debug, Default)]
pub struct HeatRow {
    /// Slot.
    pub slot_id: i64,
    /// Its shard.
    pub shard: String,
    /// Load now.
    pub load: Option<f64>,
    /// Load in each bucket.
    pub cells: Vec<Option<f64>>,
}

/// A shard's load before and after now.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Name of the shard.
    pub shard: String,
    /// What it can carry.
    pub capacity: f64,
    /// Loads measured of the slots it has now, at starts of buckets, ascending.
    pub measured: Vec<(f64, Option<f64>)>,
    /// What is forecast, ascending.
    pub ahead: Vec<Ahead>,
}

/// A shard's load at a lead.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    /// When.
    pub at: f64,
    /// If nothing moves.
    pub load: Option<f64>,
    /// Sum of the slots' lower bounds.
    pub lower: Option<f64>,
    /// Sum of the slots' upper bounds.
    pub upper: Option<f64>,
    /// Once every step recommended is done.
    pub planned: Option<f64>,
}

/// A step that is recommended, or refused.
#[derive(Clone, Debug, Default)]
pub struct Recommendation {
    /// Its number.
    pub id: i64,
    /// `move`, `split`, `prepare`, `merge`, `isolate`, `place`, `home` or `none`.
    pub action: String,
    /// The slot.
    pub slot_id: i64,
    /// Of a merge: the other slot.
    pub other: Option<i64>,
    /// Where the slot is.
    pub from: Option<String>,
    /// Where it shall go.
    pub to: Option<String>,
    /// Probability that it pays.
    pub confidence: Option<f64>,
    /// What it saves.
    pub benefit: Option<f64>,
    /// What it copies.
    pub bytes: Option<i64>,
    /// Peak load of the worst shard over its fair share, before and after.
    pub imbalance: Option<(f64, f64)>,
    /// Why.
    pub reason: Option<String>,
    /// Why it is not taken now.
    pub refusal: Option<String>,
    /// What can be done about that.
    pub advice: Option<String>,
    /// When to begin.
    pub start_at: Option<f64>,
    /// When the overload begins without it.
    pub overload_at: Option<f64>,
    /// Of chosen keys: their table, as SQL names it.
    pub table: Option<String>,
    /// The key, if it is about one.
    pub key: Option<String>,
    /// Where each key shall be, as a JSON object; None as well when it is long, or not for the caller to see.
    pub map: Option<String>,
}

/// A move.
#[derive(Clone, Debug, Default)]
pub struct Move {
    /// Its number.
    pub id: i64,
    /// `move`, `split`, `merge` or `place`.
    pub kind: String,
    /// The slot.
    pub slot_id: i64,
    /// From.
    pub from: String,
    /// To.
    pub to: String,
    /// Its phase.
    pub phase: String,
    /// `waiting`, `running`, `done`, …
    pub state: String,
    /// When it began.
    pub started_at: Option<f64>,
    /// When it ended.
    pub finished_at: Option<f64>,
    /// Per cent copied.
    pub percent: Option<f64>,
    /// Seconds still to copy.
    pub eta_s: Option<f64>,
    /// Bytes copied.
    pub bytes: Option<i64>,
    /// Who asked for it.
    pub requested_by: String,
    /// Why.
    pub reason: Option<String>,
    /// What went wrong last.
    pub error: Option<String>,
}

/// A trigger and what it cost.
#[derive(Clone, Debug, Default)]
pub struct Trigger {
    /// Table.
    pub table: String,
    /// Trigger.
    pub trigger: String,
    /// Function.
    pub function: String,
    /// `BEFORE INSERT ROW` and the like.
    pub event: String,
    /// Calls.
    pub calls: i64,
    /// CPU of a call in µs, nested triggers included.
    pub cpu_us: Option<f64>,
    /// Elapsed time of a call in µs, nested triggers included.
    pub elapsed_us: Option<f64>,
    /// WAL of a call in bytes.
    pub wal_bytes: Option<f64>,
    /// CPU of all calls in ms; elapsed time of what only the executor sees.
    pub total_ms: Option<f64>,
}

/// A hot key.
#[derive(Clone, Debug, Default)]
pub struct HotKey {
    /// Table.
    pub table: String,
    /// Slot.
    pub slot_id: i64,
    /// The key; None: the reader of the report may not see it.
    pub key: Option<String>,
    /// Accesses per second.
    pub accesses: f64,
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
}

/// An influential node of a graph.
#[derive(Clone, Debug, Default)]
pub struct Influencer {
    /// Graph.
    pub graph: String,
    /// Place, from 1.
    pub place: i32,
    /// The node; None: the reader of the report may not see it.
    pub node: Option<String>,
    /// PageRank.
    pub influence: f64,
    /// Betweenness.
    pub betweenness: f64,
}

/// What became of recommendations of about one confidence.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// Colocation group.
    pub group_id: i32,
    /// Whether its foresight is trusted.
    pub trust: String,
    /// How many were judged.
    pub outcomes: i64,
    /// Mean confidence stated; None: nothing was judged yet.
    pub stated: Option<f64>,
    /// Share that paid.
    pub paid: Option<f64>,
}

/// What is wrong.
#[derive(Clone, Debug, Default)]
pub struct Problem {
    /// `error`, `warning` or `notice`.
    pub severity: String,
    /// With what.
    pub object: String,
    /// What.
    pub problem: String,
    /// In numbers.
    pub detail: String,
    /// How to fix it.
    pub hint: String,
}

/// The report as one self-contained HTML document.
pub fn html(report: &Report) -> String {
    page::document(report).into_string()
}
