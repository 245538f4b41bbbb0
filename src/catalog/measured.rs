//! What the foreshard of another server has measured of relations that this one asks for (`observe_shards()`): shards of Citus, and tables
//! on nodes of postgres_fdw that hold slots.
//!
//! Every answer says whether the node has the function that is asked; the next question is made accordingly. So a node
//! without foreshard, or with another version of it, is asked for its counters only, and what fails there is asked again
//! without it.

use super::heat::Count;
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::shared::{SEGMENT_COUNTERS, SegmentCounter, TOTALS, Total};
use serde_json::{Value, json};

/// Nodes go on watching for so many times as long as between two questions, when they are asked no more, and for so many seconds at least
/// and at most.
const KEEP_TIMES: i32 = 10;
const KEEP_S: (i32, i32) = (120, 86_400);

/// A condition on a node `o`: it is to be asked for what it has measured. One whose answer has failed is left alone for a while.
pub const IS_ASKED: &str = "EXISTS (SELECT FROM foreshard.measuring_node c WHERE c.node_name = o.node_name AND c.measures \
     AND coalesce(c.failed_at < pg_catalog.clock_timestamp() - interval '10 min', true))";

/// For how long a node is to watch what it is asked for every `interval_s`, s.
pub fn keep_s(interval_s: i32) -> i32 {
    interval_s.saturating_mul(KEEP_TIMES).clamp(KEEP_S.0, KEEP_S.1)
}

/// Whether a node is to be asked for what it has measured: it can be, and somebody here learns from it.
pub fn is_asked(node: &str) -> PgResult<bool> {
    let asked = format!("SELECT {IS_ASKED} FROM foreshard.node o WHERE o.node_name = $1::name");
    Ok(guc::OBSERVE.get() && spi::one::<bool>(&asked, &[node.into()])?.unwrap_or(false))
}

/// What is counted, by name: who counts other things, or in another order, has another version.
pub fn names() -> (Vec<String>, Vec<String>) {
    let segments = SegmentCounter::ALL.iter().map(|counter| format!("{counter:?}")).collect();
    (segments, Total::ALL.iter().map(|total| format!("{total:?}")).collect())
}

/// What a node has measured of a relation, which is told by a number of ours.
pub struct OfShard {
    shard: i64,
    since: i64,
    counters: Vec<i64>,
}

/// What a node has measured of a trigger on a shard; names are those on the node.
pub struct OfTrigger {
    /// The shard.
    pub shard: i64,
    /// Name of the trigger.
    pub name: String,
    /// Name of its constraint, of a trigger of PostgreSQL's own.
    pub constraint: Option<String>,
    /// Name of its function.
    pub function: String,
    /// Event, level and timing.
    pub words: [String; 3],
    /// Since when the shard is watched.
    pub since: i64,
    /// By `Total as usize`.
    pub totals: [i64; TOTALS],
}

/// What a node has said of its foreshard.
#[derive(Default)]
pub struct Said {
    /// Version of the extension there; None: it is not there.
    pub version: Option<String>,
    /// It can be asked.
    pub measures: bool,
    /// Why what was measured is not used; None: nothing is wrong.
    pub why: Option<String>,
    /// It was asked, and has answered.
    pub answered: bool,
    /// What was measured of shards.
    pub shards: Vec<OfShard>,
    /// What was measured of triggers on them.
    pub triggers: Vec<OfTrigger>,
}

impl Said {
    /// Reads an answer: `x`, [version, has the function, this role may execute it, this role] (of Citus, where it is a superuser, without
    /// the last two), and `m`, what the function said. What is not as expected is left out.
    pub fn read(answer: &Value) -> Self {
        let probe = |at: usize| answer.get("x").and_then(|x| x.get(at));
        let version = probe(0).and_then(Value::as_str).map(str::to_owned);
        let has_function = probe(1).and_then(Value::as_bool).unwrap_or(false);
        let may = probe(2).and_then(Value::as_bool).unwrap_or(true);
        let mut said = Self { version, measures: has_function && may, ..Self::default() };
        if said.version.is_some() && !said.measures {
            let role = probe(3).and_then(Value::as_str).unwrap_or_default();
            said.why = Some(if has_function {
                format!("its role {role} may not execute observe_shards()")
            } else {
                "it has no function observe_shards()".to_owned()
            });
        }
        let Some(measured) = answer.get("m").filter(|m| m.is_object()) else { return said };
        said.answered = true;
        let (counters, totals) = names();
        if measured.get("counters") != Some(&json!(counters))
            || measured.get("totals") != Some(&json!(totals))
        {
            said.why = Some("it counts other things than this one".to_owned());
            return said;
        }
        said.why = measured.get("why").and_then(Value::as_str).map(str::to_owned);
        let list = |name: &str| measured.get(name).and_then(Value::as_array);
        said.shards = list("shards").into_iter().flatten().filter_map(of_shard).collect();
        said.triggers = list("triggers").into_iter().flatten().filter_map(of_trigger).collect();
        said
    }

    /// What was measured of shards as JSON: [shard, since, counters] of each.
    pub fn shards_as_json(&self) -> Value {
        self.shards.iter().map(|one| json!([one.shard, one.since, one.counters])).collect()
    }
}

fn of_shard(value: &Value) -> Option<OfShard> {
    let counters: Option<Vec<i64>> = value.get(2)?.as_array()?.iter().map(Value::as_i64).collect();
    let counters = counters.filter(|counters| counters.len() == SEGMENT_COUNTERS)?;
    Some(OfShard { shard: value.get(0)?.as_i64()?, since: value.get(1)?.as_i64()?, counters })
}

fn of_trigger(value: &Value) -> Option<OfTrigger> {
    let text = |at: usize| value.get(at).and_then(Value::as_str).map(str::to_owned);
    let totals: Option<Vec<i64>> = value.get(8)?.as_array()?.iter().map(Value::as_i64).collect();
    Some(OfTrigger {
        shard: value.get(0)?.as_i64()?,
        name: text(1)?,
        constraint: text(2),
        function: text(3)?,
        words: [text(4)?, text(5)?, text(6)?],
        since: value.get(7)?.as_i64()?,
        totals: totals?.try_into().ok()?,
    })
}

/// Notes what a node has said of its foreshard. `failed`: it was asked for what it has measured, which failed; then it was asked
/// again without that.
pub fn note(node: &str, said: &Said, failed: Option<&str>) -> PgResult<()> {
    let why = match failed {
        Some(error) => Some(format!("asking it failed: {error}")),
        None => said.why.clone(),
    };
    // What is not asked because it failed lately has not recovered by that.
    spi::run(
        "INSERT INTO foreshard.measuring_node AS c (node_name, version, measures, why, failed_at) \
         SELECT o.node_name, $2, $3, $4, CASE WHEN $5 THEN pg_catalog.clock_timestamp() END FROM foreshard.node o WHERE o.node_name = $1::name \
         ON CONFLICT (node_name) DO UPDATE SET version = excluded.version, measures = excluded.measures, \
             why = CASE WHEN $6 OR $5 OR c.failed_at IS NULL OR NOT excluded.measures THEN excluded.why ELSE c.why END, \
             failed_at = CASE WHEN $5 THEN excluded.failed_at WHEN NOT $6 AND excluded.measures THEN c.failed_at END",
        &[
            node.into(),
            said.version.as_deref().into(),
            said.measures.into(),
            why.as_deref().into(),
            failed.is_some().into(),
            said.answered.into(),
        ],
    )?;
    Ok(())
}

/// A node has not answered: whether it can be asked for more is found out when it does.
pub fn forget(node: &str) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.measuring_node SET measures = false WHERE node_name = $1::name AND measures",
        &[node.into()],
    )?;
    Ok(())
}

/// A shard, or a table on a node, and what its node has measured of it.
pub struct Shard {
    /// The distributed table.
    pub table: u32,
    /// Its slot.
    pub slot_id: i64,
    /// What was measured; None: nothing is known.
    pub measured: Option<Measured>,
}

/// Counters of measured statements, which only grow.
pub struct Measured {
    /// What tells these counters from all others.
    pub count: Count,
    /// Since when they count, by the node's clock: those of another beginning are others.
    pub since: i64,
    /// By `SegmentCounter as usize`.
    pub counters: [u64; SEGMENT_COUNTERS],
}

impl Measured {
    /// Of shard and node: counters since then, in the life of the server that began then (s); None: not all of that is known.
    pub fn of(
        (shard, node): (i64, i32),
        life_s: Option<f64>,
        since: Option<i64>,
        counters: Option<Vec<i64>>,
    ) -> Option<Self> {
        let counters: [i64; SEGMENT_COUNTERS] = counters?.try_into().ok()?;
        let count = (shard, node, (life_s? * 1e6) as i64);
        Some(Self { count, since: since?, counters: counters.map(|n| n.max(0) as u64) })
    }
}
