//! What triggers of distributed tables cost, as the nodes that have a foreshard measure it: triggers of shards there, which are
//! told under the names that they have here.

use super::counters::Answer;
use crate::catalog::measured::{OfTrigger, Said};
use crate::catalog::profile::{identity_args, whole, words_of};
use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg};
use foreshard_core::shared::{ProfileIdentity, TOTALS, Total};
use pgrx::pg_sys::Oid;
use std::collections::BTreeMap;

/// The totals as they are stored, by `Total as usize`.
const SUMS: [&str; TOTALS] = [
    "calls",
    "failed_calls",
    "sampled_calls",
    "sampled_weight",
    "cpu_ns",
    "cpu_inclusive_ns",
    "elapsed_ns",
    "elapsed_inclusive_ns",
    "memory_bytes",
    "memory_weight",
    "blocks_hit",
    "blocks_read",
    "blocks_dirtied",
    "wal_bytes",
    "temp_blocks",
];

/// A trigger of a table here, and when it fires: event, level, timing.
type Key = (u32, String, u32, [String; 3]);

/// A trigger of a shard, matched with that of the table here.
struct Found {
    shard: i64,
    key: Key,
    since: i64,
    totals: [i64; TOTALS],
    /// Since when it counted at the last reading, and what.
    before: Option<(i64, Vec<i64>)>,
}

impl Found {
    /// What was counted since the last reading; all of it when another count has begun.
    fn more(&self) -> [i64; TOTALS] {
        let before = self.before.as_ref().filter(|(since, _)| *since == self.since).map(|(_, totals)| totals);
        match before {
            Some(before) if before.len() == TOTALS && self.totals.iter().zip(before).all(|(a, b)| a >= b) => {
                std::array::from_fn(|i| self.totals[i].saturating_sub(before[i]))
            }
            _ => self.totals,
        }
    }

    fn is_news(&self) -> bool {
        self.before.as_ref().is_none_or(|(since, totals)| *since != self.since || *totals != self.totals)
    }
}

/// Adds what the nodes have measured of triggers to the sums of the tables, and forgets triggers that are gone.
pub fn store(answers: &[Answer]) -> PgResult<()> {
    for answer in answers.iter().filter(|answer| answer.measured) {
        let Ok(answered) = &answer.said else { continue };
        let found = found(answer.citus_node, &Said::read(answered).triggers)?;
        let news: Vec<&Found> = found.values().filter(|one| one.is_news()).collect();
        if !news.is_empty() {
            add(&news)?;
            remember(&news)?;
        }
    }
    forget_gone()
}

/// Whether a trigger or constraint is called `there` on shard `q.shard` of the table on which it is called `here`: with the number of
/// the shard behind it, and cut and hashed in front of that where it would be too long.
fn named(here: &str, there: &str) -> String {
    format!(
        "({there} = {here}::text || '_' || q.shard OR (octet_length({here}::text || '_' || q.shard) > 63 \
          AND {there} ~ ('_[0-9a-f]{{8}}_' || q.shard || '$') \
          AND pg_catalog.starts_with({here}::text, pg_catalog.regexp_replace({there}, '_[0-9a-f]{{8}}_[0-9]+$', ''))))"
    )
}

/// The triggers that are known here, each once.
fn found(citus_node: i32, said: &[OfTrigger]) -> PgResult<BTreeMap<(i64, Key), Found>> {
    if said.is_empty() {
        return Ok(BTreeMap::new());
    }
    let word = |at: usize| -> Arg<'static> {
        said.iter().map(|one| one.words[at].clone()).collect::<Vec<_>>().into()
    };
    let rows = spi::rows(
        &format!(
            "SELECT q.no::int4 - 1, t.tgrelid, t.tgname::text, t.tgfoid, e.counted_in, e.counted \
             FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
                 pg_catalog.unnest($6), pg_catalog.unnest($7)) WITH ORDINALITY AS q (shard, n, c, f, e, l, w, no) \
             JOIN foreshard.citus_shard s ON s.citus_shard = q.shard AND s.node_name = (SELECT o.node_name FROM foreshard.node o WHERE o.citus_node = $8) \
             JOIN pg_catalog.pg_trigger t ON t.tgrelid = s.table_oid::oid \
             JOIN pg_catalog.pg_proc r ON r.oid = t.tgfoid AND r.proname::text = q.f \
             LEFT JOIN pg_catalog.pg_constraint k ON k.oid = t.tgconstraint \
             LEFT JOIN foreshard.citus_trigger_seen e ON (e.citus_shard, e.trigger_name, e.function_oid, e.event, e.level, e.timing) = (q.shard, t.tgname, t.tgfoid, q.e, q.l, q.w) \
             WHERE CASE WHEN t.tgisinternal THEN {} ELSE {} END ORDER BY 1, 2, 3",
            named("k.conname", "q.c"),
            named("t.tgname", "q.n")
        ),
        &[
            said.iter().map(|one| one.shard).collect::<Vec<_>>().into(),
            said.iter().map(|one| one.name.clone()).collect::<Vec<_>>().into(),
            said.iter().map(|one| one.constraint.clone()).collect::<Vec<_>>().into(),
            said.iter().map(|one| one.function.clone()).collect::<Vec<_>>().into(),
            word(0),
            word(1),
            word(2),
            citus_node.into(),
        ],
        |row| {
            let trigger =
                (row.need::<Oid>(2)?.to_u32(), row.need::<String>(3)?, row.need::<Oid>(4)?.to_u32());
            Ok((row.need::<i32>(1)?, trigger, row.get::<i64>(5)?.zip(row.get::<Vec<i64>>(6)?)))
        },
    )?;
    let mut found = BTreeMap::new();
    for (index, (table, name, function), before) in rows {
        let Some(one) = usize::try_from(index).ok().and_then(|index| said.get(index)) else { continue };
        let key: Key = (table, name, function, one.words.clone());
        found.entry((one.shard, key.clone())).or_insert(Found {
            shard: one.shard,
            key,
            since: one.since,
            totals: one.totals,
            before,
        });
    }
    Ok(found)
}

/// The identity columns of triggers, as six parameters of a statement.
fn key_args<'a>(keys: impl Iterator<Item = &'a Key> + Clone) -> [Arg<'static>; 6] {
    let word =
        |at: usize| -> Arg<'static> { keys.clone().map(|key| key.3[at].clone()).collect::<Vec<_>>().into() };
    [
        keys.clone().map(|key| Oid::from(key.0)).collect::<Vec<_>>().into(),
        keys.clone().map(|key| key.1.clone()).collect::<Vec<_>>().into(),
        keys.clone().map(|key| Oid::from(key.2)).collect::<Vec<_>>().into(),
        word(0),
        word(1),
        word(2),
    ]
}

/// Adds to the sums of the tables' triggers.
fn add(news: &[&Found]) -> PgResult<()> {
    let mut sums: BTreeMap<&Key, [i64; TOTALS]> = BTreeMap::new();
    for one in news {
        let sum = sums.entry(&one.key).or_insert([0; TOTALS]);
        sum.iter_mut().zip(one.more()).for_each(|(sum, more)| *sum = sum.saturating_add(more));
    }
    // What has only been entered has cost nothing yet, and is no news to anybody.
    sums.retain(|_, sum| sum[Total::Calls as usize] > 0);
    if sums.is_empty() {
        return Ok(());
    }
    let numbers = |from: usize, each: fn(usize) -> String| {
        (from..from + TOTALS).map(each).collect::<Vec<_>>().join(", ")
    };
    let sql = format!(
        "INSERT INTO foreshard.citus_trigger AS p (table_oid, trigger_name, function_oid, event, level, timing, {names}, first_seen_at, last_seen_at) \
         SELECT q.t::regclass, q.n::name, q.f, q.e, q.l, q.w, {columns}, pg_catalog.now(), pg_catalog.now() \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
             pg_catalog.unnest($6), {arguments}) AS q (t, n, f, e, l, w, {columns}) \
         ON CONFLICT (table_oid, trigger_name, function_oid, event, level, timing) DO UPDATE SET {updates}, last_seen_at = excluded.last_seen_at",
        names = SUMS.join(", "),
        columns = numbers(0, |n| format!("c{n}")),
        arguments = numbers(7, |n| format!("pg_catalog.unnest(${n})")),
        updates = SUMS.map(|sum| format!("{sum} = p.{sum} + excluded.{sum}")).join(", "),
    );
    let mut args: Vec<Arg> = key_args(sums.keys().copied()).into();
    args.extend((0..TOTALS).map(|i| Arg::from(sums.values().map(|sum| sum[i]).collect::<Vec<i64>>())));
    spi::run(&sql, &args).map(drop)
}

/// Remembers what was counted of the triggers of shards.
fn remember(news: &[&Found]) -> PgResult<()> {
    let counted = |one: &&Found| {
        let words: Vec<String> = one.totals.iter().map(i64::to_string).collect();
        format!("{{{}}}", words.join(","))
    };
    let mut args: Vec<Arg> = key_args(news.iter().map(|one| &one.key)).into();
    args.push(news.iter().map(|one| one.shard).collect::<Vec<_>>().into());
    args.push(news.iter().map(|one| one.since).collect::<Vec<_>>().into());
    args.push(news.iter().map(counted).collect::<Vec<_>>().into());
    spi::run(
        "INSERT INTO foreshard.citus_trigger_seen (citus_shard, trigger_name, function_oid, event, level, timing, counted_in, counted) \
         SELECT q.shard, q.n::name, q.f, q.e, q.l, q.w, q.since, q.counted::int8[] \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
             pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9)) AS q (t, n, f, e, l, w, shard, since, counted) \
         ON CONFLICT (citus_shard, trigger_name, function_oid, event, level, timing) DO UPDATE SET counted_in = excluded.counted_in, counted = excluded.counted",
        &args,
    )
    .map(drop)
}

/// Forgets triggers that are gone.
fn forget_gone() -> PgResult<()> {
    for statement in [
        "DELETE FROM foreshard.citus_trigger p WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t \
             WHERE t.tgrelid = p.table_oid::oid AND t.tgname = p.trigger_name AND t.tgfoid = p.function_oid)",
        "DELETE FROM foreshard.citus_trigger_seen e USING foreshard.citus_shard s WHERE s.citus_shard = e.citus_shard \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = s.table_oid::oid AND t.tgname = e.trigger_name AND t.tgfoid = e.function_oid)",
    ] {
        spi::run(statement, &[])?;
    }
    Ok(())
}

/// A trigger as a node tells it.
pub struct Told {
    /// Name.
    pub name: String,
    /// Name of its constraint, of one of PostgreSQL's own.
    pub constraint: Option<String>,
    /// Name of its function.
    pub function: String,
    /// Event, level and timing.
    pub words: (&'static str, &'static str, &'static str),
}

/// On a node: how the triggers of these profiles are to be told, by their places in `of`; those that are gone are not.
pub fn told(of: &[&ProfileIdentity]) -> PgResult<Vec<(usize, Told)>> {
    let found = spi::rows(
        "SELECT q.no::int4 - 1, t.tgname::text, k.conname::text, r.proname::text \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), \
             pg_catalog.unnest($6)) WITH ORDINALITY AS q (t, n, f, e, l, w, no) \
         JOIN pg_catalog.pg_trigger t ON t.tgrelid = q.t AND t.tgname = q.n::name AND t.tgfoid = q.f \
         JOIN pg_catalog.pg_proc r ON r.oid = t.tgfoid LEFT JOIN pg_catalog.pg_constraint k ON k.oid = t.tgconstraint",
        &identity_args(of),
        |row| {
            Ok((row.need::<i32>(1)?, row.need::<String>(2)?, row.get::<String>(3)?, row.need::<String>(4)?))
        },
    )?;
    let told = found.into_iter().filter_map(|(at, name, constraint, function)| {
        let at = usize::try_from(at).ok()?;
        let words = words_of(of.get(at)?.event);
        Some((at, Told { name, constraint, function, words }))
    });
    Ok(told.collect())
}

/// Totals as PostgreSQL's bigint has them.
pub fn whole_of(totals: &[u64]) -> Vec<i64> {
    totals.iter().map(|total| whole(*total)).collect()
}
