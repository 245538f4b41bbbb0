//! What the foreshard of a node has measured of its shards: part of the one question to nodes that have one, and left out of it
//! for all others.
//!
//! Every answer says whether the node has the function that is asked; the next question is made accordingly. So a node
//! without foreshard, or with another version of it, is asked for its counters only, and what fails there is asked again
//! without it.

use crate::catalog::heat::Count;
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::shared::{SEGMENT_COUNTERS, SegmentCounter, TOTALS, Total};
use pgrx::pg_sys::Oid;
use serde_json::{Value, json};

/// Nodes go on watching shards for so many buckets, and so many seconds at least, when they are asked no more.
const KEEP_BUCKETS: i32 = 10;
const KEEP_LEAST_S: i32 = 120;

/// A condition on a node `o`: it is to be asked for what it has measured. One whose answer has failed is left alone for a while.
pub(super) const IS_ASKED: &str = "EXISTS (SELECT FROM foreshard.citus_node c WHERE c.node_name = o.node_name AND c.measures \
     AND coalesce(c.failed_at < pg_catalog.clock_timestamp() - interval '10 min', true))";

/// Whether the node has the function, as a member of the extension: another one, whoever made it, is not called.
const HAS_FUNCTION: &str = "EXISTS (SELECT FROM pg_catalog.pg_depend d CROSS JOIN pg_catalog.pg_extension y \
     WHERE y.extname OPERATOR(pg_catalog.=) 'foreshard'::pg_catalog.name AND d.refobjid OPERATOR(pg_catalog.=) y.oid \
       AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid \
       AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid \
       AND d.objid OPERATOR(pg_catalog.=) pg_catalog.to_regprocedure('foreshard.observe_shards(pg_catalog.int8[], pg_catalog.oid[], pg_catalog.float8)')::pg_catalog.oid \
       AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\")";

/// The part of the question that says whether the node has a foreshard: [version, has the function].
pub(super) fn probe() -> String {
    format!(
        ", 'x', (SELECT pg_catalog.json_build_array(x.extversion, {HAS_FUNCTION}) FROM pg_catalog.pg_extension x \
             WHERE x.extname OPERATOR(pg_catalog.=) 'foreshard'::pg_catalog.name)"
    )
}

/// The part of the question, a template of `format()` whose first two arguments are shards and their names, that asks for what was
/// measured. The function is only reached when it is the extension's: its arguments are not known before.
pub(super) fn asks() -> String {
    let keep_s = guc::BUCKET.get().saturating_mul(KEEP_BUCKETS).max(KEEP_LEAST_S);
    format!(
        ", 'm', (SELECT CASE WHEN {HAS_FUNCTION} \
                 THEN foreshard.observe_shards(pg_catalog.array_agg(n.s), pg_catalog.array_agg(n.c::pg_catalog.oid), {keep_s}::pg_catalog.float8) END \
             FROM (SELECT u.s, pg_catalog.to_regclass(u.n) AS c FROM ROWS FROM (pg_catalog.unnest(%1$L::pg_catalog.int8[]), \
                 pg_catalog.unnest(%2$L::pg_catalog.text[])) AS u (s, n) OFFSET 0) n WHERE n.c IS NOT NULL)"
    )
}

/// What is counted, by name: who counts other things, or in another order, has another version.
pub fn names() -> (Vec<String>, Vec<String>) {
    let segments = SegmentCounter::ALL.iter().map(|counter| format!("{counter:?}")).collect();
    (segments, Total::ALL.iter().map(|total| format!("{total:?}")).collect())
}

/// What a node has measured of a shard.
pub(super) struct OfShard {
    shard: i64,
    since: i64,
    counters: Vec<i64>,
}

/// What a node has measured of a trigger on a shard; names are those on the node.
pub(super) struct OfTrigger {
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
pub(super) struct Said {
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
    /// Reads an answer. What is not as expected is left out.
    pub fn read(answer: &Value) -> Self {
        let probe = answer.get("x").and_then(Value::as_array);
        let version = probe.and_then(|x| x.first()).and_then(Value::as_str).map(str::to_owned);
        let has_function = probe.and_then(|x| x.get(1)).and_then(Value::as_bool).unwrap_or(false);
        let mut said = Self { version, measures: has_function, ..Self::default() };
        if said.version.is_some() && !said.measures {
            said.why = Some("it has no function observe_shards()".to_owned());
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
pub(super) fn note(citus_node: i32, said: &Said, failed: Option<&str>) -> PgResult<()> {
    let why = match failed {
        Some(error) => Some(format!("asking it failed: {error}")),
        None => said.why.clone(),
    };
    // What is not asked because it failed lately has not recovered by that.
    spi::run(
        "INSERT INTO foreshard.citus_node AS c (node_name, version, measures, why, failed_at) \
         SELECT o.node_name, $2, $3, $4, CASE WHEN $5 THEN pg_catalog.clock_timestamp() END FROM foreshard.node o WHERE o.citus_node = $1 \
         ON CONFLICT (node_name) DO UPDATE SET version = excluded.version, measures = excluded.measures, \
             why = CASE WHEN $6 OR $5 OR c.failed_at IS NULL OR NOT excluded.measures THEN excluded.why ELSE c.why END, \
             failed_at = CASE WHEN $5 THEN excluded.failed_at WHEN NOT $6 AND excluded.measures THEN c.failed_at END",
        &[
            citus_node.into(),
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
pub(super) fn forget(citus_node: i32) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.citus_node c SET measures = false FROM foreshard.node o \
         WHERE o.citus_node = $1 AND c.node_name = o.node_name AND c.measures",
        &[citus_node.into()],
    )?;
    Ok(())
}

/// A shard, and what its node has measured of it.
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

/// Every shard of the adopted cluster.
pub fn shards() -> PgResult<Vec<Shard>> {
    spi::rows(
        "SELECT t.table_oid::oid, t.slot_id, t.citus_shard, o.citus_node, t.counted_since, t.measured_in, t.measured \
         FROM foreshard.citus_shard t JOIN foreshard.node o USING (node_name)",
        &[],
        |row| {
            let (shard, node) = (row.need::<i64>(3)?, row.need::<i32>(4)?);
            let since_s = row.get::<f64>(5)?;
            let counted = row.get::<i64>(6)?.zip(row.get::<Vec<i64>>(7)?);
            let measured = since_s.zip(counted).and_then(|(since_s, (since, counters))| {
                let counters: [i64; SEGMENT_COUNTERS] = counters.try_into().ok()?;
                let count = (shard, node, (since_s * 1e6) as i64);
                Some(Measured { count, since, counters: counters.map(|n| n.max(0) as u64) })
            });
            Ok(Shard { table: row.need::<Oid>(1)?.to_u32(), slot_id: row.need(2)?, measured })
        },
    )
}
