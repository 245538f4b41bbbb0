//! Both copies in numbers: rows and hash of every key bucket, computed where the rows are, from their text. Text forms
//! are pinned on both sides.

use super::copy::{Pair, Side};
use crate::catalog::link::Link;
use crate::catalog::name_of;
use crate::pg::report::{PgResult, internal};
use crate::pg::{security, spi};
use std::collections::BTreeMap;

/// Keys that a verification may leave out.
const MAX_SKIPPED: usize = 20_000;

/// By bucket: rows, and two sums of hashes.
type Buckets = BTreeMap<i64, (i64, String, String)>;

/// What a comparison came to.
pub struct Compared {
    /// Rows of the source.
    pub rows: i64,
    /// Rows of the copy.
    pub copy_rows: i64,
    /// Buckets that differ.
    pub differing: usize,
    /// Keys that were left out.
    pub skipped: usize,
}

fn hash_of(columns: &[String], alias: &str, seed: i32) -> String {
    let columns: Vec<String> = columns.iter().map(|column| format!("{alias}.{column}")).collect();
    format!(
        "pg_catalog.hashtextextended(ROW({})::pg_catalog.text COLLATE pg_catalog.\"C\", {seed})",
        columns.join(", ")
    )
}

fn query(pair: &Pair, table: &str, skip: &[i64]) -> String {
    let list: Vec<String> = skip.iter().map(i64::to_string).collect();
    format!(
        "SELECT q.k & 255, count(*), sum(q.a)::pg_catalog.text, sum(q.b)::pg_catalog.text \
         FROM (SELECT {} AS k, {} AS a, {} AS b FROM ONLY {table} t) q \
         WHERE q.k <> ALL ('{{{}}}'::pg_catalog.int8[]) GROUP BY 1",
        hash_of(&pair.keys, "t", 0),
        hash_of(&pair.shape.names, "t", 1),
        hash_of(&pair.shape.names, "t", 2),
        list.join(",")
    )
}

fn keys_query(pair: &Pair, log: &str) -> String {
    let numbered: Vec<String> = (1..=pair.keys.len()).map(|n| format!("k{n}")).collect();
    format!("SELECT DISTINCT {} FROM {log} l LIMIT {}", hash_of(&numbered, "l", 0), MAX_SKIPPED + 1)
}

fn here(pair: &Pair, table: &str, skip: &[i64]) -> PgResult<Buckets> {
    let _guard = security::as_restricted_owner(pair.shape.owner);
    text_forms()?;
    let found = spi::rows(&query(pair, table, skip), &[], |row| {
        Ok((row.need::<i64>(1)?, (row.need::<i64>(2)?, row.need::<String>(3)?, row.need::<String>(4)?)))
    })?;
    Ok(found.into_iter().collect())
}

fn there(link: &Link, pair: &Pair, table: &str, skip: &[i64]) -> PgResult<Buckets> {
    let mut buckets = Buckets::new();
    for row in link.rows(&query(pair, table, skip), 4)? {
        let mut row = row.into_iter().flatten();
        let mut next = || row.next().ok_or_else(|| internal("a digest with a hole"));
        let number = |text: String| text.parse::<i64>().map_err(internal);
        buckets.insert(number(next()?)?, (number(next()?)?, next()?, next()?));
    }
    Ok(buckets)
}

/// The same as of a link; until the switch of the user ends.
fn text_forms() -> PgResult<()> {
    for (setting, value) in [
        ("datestyle", "ISO"),
        ("intervalstyle", "postgres"),
        ("timezone", "UTC"),
        ("extra_float_digits", "1"),
        ("bytea_output", "hex"),
    ] {
        spi::set_local(setting, value)?;
    }
    Ok(())
}

fn of_copy(pair: &Pair, side: &Side, skip: &[i64]) -> PgResult<Buckets> {
    match side.link(pair.shape.owner)? {
        None => here(pair, &side.name, skip),
        Some((link, remote)) => there(&link, pair, &remote.table_there(), skip),
    }
}

/// Compares both copies without the keys that are logged: the source by one snapshot, the copy as it is, since nobody
/// but the caller writes it. In a REPEATABLE READ transaction. None: too much is logged.
pub fn compare(pair: &Pair) -> PgResult<Option<Compared>> {
    let (source, skip) = match pair.source.link(pair.shape.owner)? {
        Some((link, remote)) => {
            link.exec("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
            let logged = link.rows(&keys_query(pair, &remote.aid_there("log")), 1)?;
            let skip: Vec<i64> =
                logged.into_iter().flatten().flatten().filter_map(|key| key.parse().ok()).collect();
            if skip.len() > MAX_SKIPPED {
                link.exec("COMMIT")?;
                return Ok(None);
            }
            let source = there(&link, pair, &remote.table_there(), &skip)?;
            link.exec("COMMIT")?;
            (source, skip)
        }
        None => {
            let guard = security::as_restricted_owner(pair.shape.owner);
            text_forms()?;
            let keys = keys_query(pair, &name_of(pair.log)?);
            let skip = spi::rows(&keys, &[], |row| row.need::<i64>(1))?;
            drop(guard);
            if skip.len() > MAX_SKIPPED {
                return Ok(None);
            }
            (here(pair, &pair.source.name, &skip)?, skip)
        }
    };
    let copy = of_copy(pair, &pair.copy, &skip)?;
    let buckets = (0..256).filter(|bucket| source.get(bucket) != copy.get(bucket));
    let rows = |side: &Buckets| side.values().map(|(rows, ..)| rows).sum();
    Ok(Some(Compared {
        rows: rows(&source),
        copy_rows: rows(&copy),
        differing: buckets.count(),
        skipped: skip.len(),
    }))
}
