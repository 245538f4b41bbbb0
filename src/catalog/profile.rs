//! What triggers cost: the totals of every profile, and the models learnt from its samples.

use super::watched::ORIGINAL;
use crate::pg::report::{PgResult, internal};
use crate::pg::spi::{self, Arg};
use foreshard_core::profile::{Bend, Fallback, Feedback, Model, ModelKind, RESOURCES, Resource};
use foreshard_core::shared::{ProfileIdentity, TOTALS};
use pgrx::pg_sys::{self, Oid};
use std::collections::HashMap;

/// Bits of `ProfileIdentity::event` that say which operation fires the trigger.
const OPERATION: u32 = pg_sys::TRIGGER_EVENT_OPMASK;
/// Bits that say when it fires.
const TIMING: u32 = pg_sys::TRIGGER_EVENT_TIMINGMASK;

const OPERATIONS: [(u32, &str); 4] = [
    (pg_sys::TRIGGER_EVENT_INSERT, "INSERT"),
    (pg_sys::TRIGGER_EVENT_DELETE, "DELETE"),
    (pg_sys::TRIGGER_EVENT_UPDATE, "UPDATE"),
    (pg_sys::TRIGGER_EVENT_TRUNCATE, "TRUNCATE"),
];
const TIMINGS: [(u32, &str); 3] = [
    (pg_sys::TRIGGER_EVENT_BEFORE, "BEFORE"),
    (pg_sys::TRIGGER_EVENT_AFTER, "AFTER"),
    (pg_sys::TRIGGER_EVENT_INSTEAD, "INSTEAD OF"),
];

/// Event bits as (event, level, timing).
pub(super) fn words_of(event: u32) -> (&'static str, &'static str, &'static str) {
    let word = |of: &[(u32, &'static str)], bits: u32| {
        of.iter().find(|(value, _)| *value == bits).map_or("", |(_, word)| *word)
    };
    let level = if event & pg_sys::TRIGGER_EVENT_ROW != 0 { "ROW" } else { "STATEMENT" };
    (word(&OPERATIONS, event & OPERATION), level, word(&TIMINGS, event & TIMING))
}

/// (event, level, timing) as event bits.
fn bits_of(event: &str, level: &str, timing: &str) -> u32 {
    let bits = |of: &[(u32, &str)], wanted: &str| {
        of.iter().find(|(_, word)| *word == wanted).map_or(0, |(value, _)| *value)
    };
    let row = if level == "ROW" { pg_sys::TRIGGER_EVENT_ROW } else { 0 };
    bits(&OPERATIONS, event) | bits(&TIMINGS, timing) | row
}

/// The identity columns of many profiles, as six parameters of a statement.
pub(super) fn identity_args(of: &[&ProfileIdentity]) -> [Arg<'static>; 6] {
    let column = |word: fn(&ProfileIdentity) -> String| of.iter().map(|i| word(i)).collect::<Vec<_>>();
    [
        of.iter().map(|i| Oid::from(i.table)).collect::<Vec<_>>().into(),
        column(|i| String::from_utf8_lossy(&i.name_bytes()).into_owned()).into(),
        of.iter().map(|i| Oid::from(i.function)).collect::<Vec<_>>().into(),
        column(|i| words_of(i.event).0.to_string()).into(),
        column(|i| words_of(i.event).1.to_string()).into(),
        column(|i| words_of(i.event).2.to_string()).into(),
    ]
}

/// What was counted of a profile since it was last stored.
pub struct Counted {
    /// Which trigger.
    pub identity: ProfileIdentity,
    /// More of each total, by `Total as usize`.
    pub more: [u64; TOTALS],
    /// The totals in shared memory that this brings the sums up to.
    pub seen: [u64; TOTALS],
}

/// When the shared memory that is in use now was made: the checkpointer starts and ends with it.
pub fn shared_memory_made_at_s() -> PgResult<Option<f64>> {
    spi::one::<f64>(
        "SELECT extract(epoch FROM backend_start)::float8 FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer'",
        &[],
    )
}

/// The function of the triggers that moves install, each with a name of its own.
pub fn capture_function() -> PgResult<Oid> {
    let found = spi::one::<Oid>("SELECT 'foreshard.capture()'::regprocedure::oid", &[])?;
    found.ok_or_else(|| internal("function foreshard.capture() is missing"))
}

/// Adds to the totals of profiles; those whose table or trigger is gone are passed over.
pub fn add(counted: &[Counted], counted_in_s: Option<f64>) -> PgResult<()> {
    if counted.is_empty() {
        return Ok(());
    }
    let identities: Vec<&ProfileIdentity> = counted.iter().map(|c| &c.identity).collect();
    let mut args: Vec<Arg> = identity_args(&identities).into();
    for total in 0..TOTALS {
        let column: Vec<i64> = counted.iter().map(|c| whole(c.more[total])).collect();
        args.push(column.into());
    }
    let seen: Vec<String> = counted.iter().map(|c| array_text(&c.seen)).collect();
    args.push(seen.into());
    args.push(counted_in_s.into());
    spi::run(
        "INSERT INTO foreshard.trigger_profile AS p (table_oid, trigger_name, function_oid, event, level, timing, calls, failed_calls, sampled_calls, sampled_weight, \
             cpu_ns, cpu_inclusive_ns, elapsed_ns, elapsed_inclusive_ns, memory_bytes, memory_weight, blocks_hit, blocks_read, blocks_dirtied, \
             wal_bytes, temp_blocks, first_seen_at, last_seen_at, counted, counted_in) \
         SELECT q.t::regclass, q.n::name, q.f, q.e, q.l, q.w, q.c1, q.c2, q.c3, q.c4, q.c5, q.c6, q.c7, q.c8, q.c9, q.c10, q.c11, q.c12, q.c13, q.c14, q.c15, \
             pg_catalog.now(), pg_catalog.now(), q.seen::int8[], pg_catalog.to_timestamp($23) \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
             pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11), \
             pg_catalog.unnest($12), pg_catalog.unnest($13), pg_catalog.unnest($14), pg_catalog.unnest($15), pg_catalog.unnest($16), pg_catalog.unnest($17), \
             pg_catalog.unnest($18), pg_catalog.unnest($19), pg_catalog.unnest($20), pg_catalog.unnest($21), pg_catalog.unnest($22)) \
             AS q (t, n, f, e, l, w, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, seen) \
         WHERE EXISTS (SELECT FROM foreshard.managed_table m WHERE m.table_oid = q.t) AND EXISTS (SELECT FROM pg_catalog.pg_proc r WHERE r.oid = q.f) \
         ON CONFLICT (table_oid, trigger_name, function_oid, event, level, timing) DO UPDATE SET calls = p.calls + excluded.calls, \
             failed_calls = p.failed_calls + excluded.failed_calls, sampled_calls = p.sampled_calls + excluded.sampled_calls, \
             sampled_weight = p.sampled_weight + excluded.sampled_weight, \
             cpu_ns = p.cpu_ns + excluded.cpu_ns, cpu_inclusive_ns = p.cpu_inclusive_ns + excluded.cpu_inclusive_ns, \
             elapsed_ns = p.elapsed_ns + excluded.elapsed_ns, elapsed_inclusive_ns = p.elapsed_inclusive_ns + excluded.elapsed_inclusive_ns, \
             memory_bytes = p.memory_bytes + excluded.memory_bytes, \
             memory_weight = p.memory_weight + excluded.memory_weight, blocks_hit = p.blocks_hit + excluded.blocks_hit, \
             blocks_read = p.blocks_read + excluded.blocks_read, blocks_dirtied = p.blocks_dirtied + excluded.blocks_dirtied, \
             wal_bytes = p.wal_bytes + excluded.wal_bytes, temp_blocks = p.temp_blocks + excluded.temp_blocks, \
             last_seen_at = excluded.last_seen_at, counted = excluded.counted, counted_in = excluded.counted_in",
        &args,
    )?;
    Ok(())
}

/// A sum as PostgreSQL's bigint; what exceeds it stays at its end.
pub(super) fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn array_text(values: &[u64]) -> String {
    let words: Vec<String> = values.iter().map(|v| whole(*v).to_string()).collect();
    format!("{{{}}}", words.join(","))
}

/// What a profile's models were learnt from, and what they are.
pub struct Learnt {
    /// Which trigger.
    pub identity: ProfileIdentity,
    /// Version of the function.
    pub version: Option<u64>,
    /// Mean features of its samples.
    pub mean_features: Option<[f64; foreshard_core::profile::FEATURES]>,
    /// By `Resource::index`.
    pub models: [Option<Model>; RESOURCES],
    /// By `Resource::index`.
    pub feedback: [Option<Feedback>; RESOURCES],
}

/// Replaces the models of these profiles.
pub fn store_models(learnt: &[Learnt]) -> PgResult<()> {
    if learnt.is_empty() {
        return Ok(());
    }
    let identities: Vec<&ProfileIdentity> = learnt.iter().map(|l| &l.identity).collect();
    let mut args: Vec<Arg> = identity_args(&identities).into();
    args.push(learnt.iter().map(|l| l.version.map(|v| v as i64)).collect::<Vec<_>>().into());
    for feature in 0..foreshard_core::profile::FEATURES {
        args.push(learnt.iter().map(|l| l.mean_features.map(|m| m[feature])).collect::<Vec<_>>().into());
    }
    spi::run(
        "UPDATE foreshard.trigger_profile p SET function_version = q.version, mean_tuple_bytes = q.m1, mean_non_null = q.m2, mean_changed = q.m3, \
             mean_statement_rows = q.m4 \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
             pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11)) \
             AS q (t, n, f, e, l, w, version, m1, m2, m3, m4) \
         WHERE (p.table_oid, p.trigger_name, p.function_oid, p.event, p.level, p.timing) = (q.t::regclass, q.n::name, q.f, q.e, q.l, q.w)",
        &args,
    )?;
    replace_models(learnt)
}

/// One row of `trigger_model`.
struct ModelRow<'a> {
    identity: &'a ProfileIdentity,
    resource: Resource,
    model: &'a Model,
    feedback: Option<Feedback>,
}

fn replace_models(learnt: &[Learnt]) -> PgResult<()> {
    let identities: Vec<&ProfileIdentity> = learnt.iter().map(|l| &l.identity).collect();
    spi::run(
        "DELETE FROM foreshard.trigger_model o USING foreshard.trigger_profile p, ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), \
             pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6)) AS q (t, n, f, e, l, w) \
         WHERE o.profile_id = p.profile_id \
           AND (p.table_oid, p.trigger_name, p.function_oid, p.event, p.level, p.timing) = (q.t::regclass, q.n::name, q.f, q.e, q.l, q.w)",
        &identity_args(&identities),
    )?;
    let rows: Vec<ModelRow> = learnt.iter().flat_map(rows_of).collect();
    let identities: Vec<&ProfileIdentity> = rows.iter().map(|r| r.identity).collect();
    let mut args: Vec<Arg> = identity_args(&identities).into();
    let text = |of: fn(&ModelRow) -> Option<&'static str>| -> Arg<'static> {
        rows.iter().map(|r| of(r).map(str::to_string)).collect::<Vec<_>>().into()
    };
    let number = |of: fn(&Model) -> f64| -> Arg<'static> {
        rows.iter().map(|r| of(r.model)).collect::<Vec<_>>().into()
    };
    let bend = |of: fn(&Bend) -> f64| -> Arg<'static> {
        rows.iter().map(|r| r.model.bend.as_ref().map(of)).collect::<Vec<_>>().into()
    };
    let fact = |of: fn(&Feedback) -> Option<f64>| -> Arg<'static> {
        rows.iter().map(|r| r.feedback.as_ref().and_then(of)).collect::<Vec<_>>().into()
    };
    args.extend([
        text(|r| Some(r.resource.name())),
        text(|r| Some(r.model.kind.name())),
        text(|r| r.model.reason.map(Fallback::name)),
        number(|m| m.intercept),
        number(|m| m.coefficients[0]),
        number(|m| m.coefficients[1]),
        number(|m| m.coefficients[2]),
        number(|m| m.coefficients[3]),
        number(|m| f64::from(m.samples)),
        number(|m| m.lower_quantile),
        number(|m| m.upper_quantile),
        number(|m| m.floor),
        number(|m| m.level),
        bend(|b| b.from),
        bend(|b| b.slope),
        fact(|f| Some(f.mean_absolute_error)),
        fact(|f| f.relative_error),
        fact(|f| f.bias),
        fact(|f| f.r2),
        fact(|f| Some(f.coverage)),
        fact(|f| Some(f64::from(f.comparisons))),
    ]);
    spi::run(
        "INSERT INTO foreshard.trigger_model (profile_id, resource, model, reason, intercept, per_tuple_byte, per_non_null, per_changed, \
             per_statement_row, samples, lower_quantile, upper_quantile, floor, level, bend_bytes, per_byte_beyond, mean_absolute_error, relative_error, bias, r2, coverage, comparisons) \
         SELECT p.profile_id, q.c7, q.c8, q.c9, q.c10, q.c11, q.c12, q.c13, q.c14, q.c15::int, q.c16, q.c17, q.c18, q.c19, q.c20, q.c21, q.c22, \
             q.c23, q.c24, q.c25, q.c26, q.c27::int \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
             pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11), \
             pg_catalog.unnest($12), pg_catalog.unnest($13), pg_catalog.unnest($14), pg_catalog.unnest($15), pg_catalog.unnest($16), pg_catalog.unnest($17), \
             pg_catalog.unnest($18), pg_catalog.unnest($19), pg_catalog.unnest($20), pg_catalog.unnest($21), pg_catalog.unnest($22), pg_catalog.unnest($23), \
             pg_catalog.unnest($24), pg_catalog.unnest($25), pg_catalog.unnest($26), pg_catalog.unnest($27)) AS q (t, n, f, e, l, w, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, c17, c18, c19, c20, c21, \
             c22, c23, c24, c25, c26, c27) \
         JOIN foreshard.trigger_profile p \
           ON (p.table_oid, p.trigger_name, p.function_oid, p.event, p.level, p.timing) = (q.t::regclass, q.n::name, q.f, q.e, q.l, q.w)",
        &args,
    )?;
    Ok(())
}

fn rows_of(learnt: &Learnt) -> impl Iterator<Item = ModelRow<'_>> {
    Resource::ALL.into_iter().filter_map(|resource| {
        let model = learnt.models[resource.index()].as_ref()?;
        let feedback = learnt.feedback[resource.index()];
        Some(ModelRow { identity: &learnt.identity, resource, model, feedback })
    })
}

/// A stored profile: what a keeper goes on with.
pub struct Stored {
    /// Totals already in the sums.
    pub seen: [u64; TOTALS],
    /// What was learnt; without feedback, which is the old keeper's.
    pub learnt: Learnt,
}

/// Every stored profile. `made_at_s`: when the shared memory in use now was made; what was counted in an
/// earlier one starts from zero.
pub fn stored(database: u32, made_at_s: Option<f64>) -> PgResult<Vec<Stored>> {
    let mut models = models()?;
    spi::rows(
        "SELECT profile_id, table_oid::oid, trigger_name::text, function_oid, event, level, timing, function_version, mean_tuple_bytes, mean_non_null, \
             mean_changed, mean_statement_rows, \
             CASE WHEN counted_in = pg_catalog.to_timestamp($1) THEN counted END \
         FROM foreshard.trigger_profile ORDER BY last_seen_at DESC",
        &[made_at_s.into()],
        |row| {
            let words = (row.need::<String>(5)?, row.need::<String>(6)?, row.need::<String>(7)?);
            let identity = ProfileIdentity {
                database,
                table: row.need::<Oid>(2)?.to_u32(),
                function: row.need::<Oid>(4)?.to_u32(),
                event: bits_of(&words.0, &words.1, &words.2),
                name: ProfileIdentity::name_words(row.need::<String>(3)?.as_bytes()),
            };
            let counted = row.get::<Vec<i64>>(13)?.unwrap_or_default();
            let means = [row.get::<f64>(9)?, row.get(10)?, row.get(11)?, row.get(12)?];
            Ok((row.need::<i64>(1)?, identity, row.get::<i64>(8)?, means, counted))
        },
    )
    .map(|rows| {
        let restore = |(id, identity, version, means, counted): (i64, _, Option<i64>, [Option<f64>; 4], Vec<i64>)| {
            let known = means.iter().all(Option::is_some);
            Stored {
                seen: std::array::from_fn(|i| counted.get(i).copied().unwrap_or(0).max(0) as u64),
                learnt: Learnt {
                    identity,
                    version: version.map(|v| v as u64),
                    mean_features: known.then(|| means.map(Option::unwrap_or_default)),
                    models: models.remove(&id).unwrap_or_default(),
                    feedback: [None; RESOURCES],
                },
            }
        };
        rows.into_iter().map(restore).collect()
    })
}

/// Stored models by profile.
pub fn models() -> PgResult<HashMap<i64, [Option<Model>; RESOURCES]>> {
    let rows = spi::rows(
        "SELECT profile_id, resource, model, reason, intercept, per_tuple_byte, per_non_null, per_changed, per_statement_row, samples, \
             lower_quantile, upper_quantile, floor, level, bend_bytes, per_byte_beyond FROM foreshard.trigger_model",
        &[],
        |row| Ok((row.need::<i64>(1)?, Resource::from_name(&row.need::<String>(2)?), model(row, 3)?)),
    )?;
    let mut found: HashMap<i64, [Option<Model>; RESOURCES]> = HashMap::new();
    for (id, resource, model) in rows {
        if let (Some(resource), Some(model)) = (resource, model) {
            found.entry(id).or_default()[resource.index()] = Some(model);
        }
    }
    Ok(found)
}

/// The model in fourteen columns from `first` (kind) to the slope beyond the bend; None: one this version does not know.
pub fn model(row: &spi::Row, first: usize) -> PgResult<Option<Model>> {
    let Some(kind) = row.get::<String>(first)?.and_then(|k| ModelKind::from_name(&k)) else {
        return Ok(None);
    };
    let number = |i: usize| row.need::<f64>(first + i);
    let bend = row.get::<f64>(first + 12)?.zip(row.get::<f64>(first + 13)?);
    Ok(Some(Model {
        kind,
        reason: row.get::<String>(first + 1)?.and_then(|r| Fallback::from_name(&r)),
        intercept: number(2)?,
        coefficients: [number(3)?, number(4)?, number(5)?, number(6)?],
        samples: row.need::<i32>(first + 7)?.max(0) as u32,
        lower_quantile: number(8)?,
        upper_quantile: number(9)?,
        floor: number(10)?,
        level: number(11)?,
        bend: bend.map(|(from, slope)| Bend { from, slope }),
    }))
}

/// Of triggers that PostgreSQL made for itself on partitions, those that have one with another name on the partitioned
/// table behind them, however far up, as (index into `of`, name of that one). Their own names end with their oids, or
/// with that one's ([`ProfileIdentity::numbered`]).
pub fn roots(of: &[&ProfileIdentity]) -> PgResult<Vec<(usize, String)>> {
    let found = spi::rows(
        &format!(
            "WITH RECURSIVE q AS (SELECT q.*, pg_catalog.substring(q.n, '^(?:RI|PK)_ConstraintTrigger_(?:[ac]_)?([0-9]{{1,10}})$')::int8 AS id \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
             pg_catalog.unnest($6)) WITH ORDINALITY AS q (t, n, f, e, l, w, no)), \
         up AS (SELECT q.no, q.t, q.n, t.oid, t.tgrelid, t.tgname FROM q \
                 JOIN pg_catalog.pg_trigger t ON t.oid = CASE WHEN q.id <= 4294967295 THEN q.id::oid END AND t.tgfoid = q.f \
             UNION ALL SELECT u.no, u.t, u.n, r.oid, r.tgrelid, r.tgname FROM up u JOIN pg_catalog.pg_trigger t ON t.oid = u.oid {ORIGINAL} \
                 WHERE u.tgrelid <> u.t) \
         SELECT no::int4 - 1, tgname::text FROM up WHERE tgrelid = t AND tgname <> n::name"
        ),
        &identity_args(of),
        |row| Ok((row.need::<i32>(1)?, row.need::<String>(2)?)),
    )?;
    Ok(found.into_iter().filter_map(|(i, name)| Some((usize::try_from(i).ok()?, name))).collect())
}

/// Deletes the profiles of triggers that are gone, and says which of `known` are of none that is there.
pub fn forget_gone(known: &[&ProfileIdentity]) -> PgResult<Vec<usize>> {
    spi::run(
        "DELETE FROM foreshard.trigger_profile p \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = p.table_oid AND t.tgname = p.trigger_name AND t.tgfoid = p.function_oid) \
           AND NOT EXISTS (SELECT FROM foreshard.slot_partition s JOIN pg_catalog.pg_trigger t ON t.tgrelid = s.partition \
                           WHERE s.table_oid = p.table_oid AND t.tgname = p.trigger_name AND t.tgfoid = p.function_oid)",
        &[],
    )?;
    let gone = spi::rows(
        "SELECT q.no::int4 - 1 FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), \
             pg_catalog.unnest($5), pg_catalog.unnest($6)) WITH ORDINALITY AS q (t, n, f, e, l, w, no) \
         CROSS JOIN LATERAL (SELECT pg_catalog.substring(q.n, '^(?:RI|PK)_ConstraintTrigger_(?:[ac]_)?([0-9]{1,10})$')::int8 AS id) i \
         WHERE NOT EXISTS (SELECT FROM foreshard.managed_table m WHERE m.table_oid = q.t) OR NOT CASE \
             WHEN i.id IS NOT NULL THEN EXISTS (SELECT FROM pg_catalog.pg_trigger t \
                 WHERE t.oid = CASE WHEN i.id <= 4294967295 THEN i.id::oid END AND t.tgfoid = q.f) \
             ELSE EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = q.t AND t.tgname = q.n::name AND t.tgfoid = q.f) \
                 OR EXISTS (SELECT FROM foreshard.slot_partition s JOIN pg_catalog.pg_trigger t ON t.tgrelid = s.partition \
                            WHERE s.table_oid = q.t AND t.tgname = q.n::name AND t.tgfoid = q.f) END",
        &identity_args(known),
        |row| row.need::<i32>(1),
    )?;
    Ok(gone.into_iter().filter_map(|i| usize::try_from(i).ok()).collect())
}
