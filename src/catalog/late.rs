//! Transactions that are open for long, whose counters come when they end, and the load that is told afterwards.

use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg};
use foreshard_core::heat::Rates;
use foreshard_core::unit_cost::Load;
use pgrx::pg_sys::Oid;
use std::collections::HashSet;

/// Locks looked at.
const MAX_LOCKS: i64 = 65_536;

/// A partition that an open transaction has used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Open {
    /// The session.
    pub pid: i32,
    /// When the transaction began, seconds since the epoch.
    pub began_s: f64,
    /// The partition.
    pub relation: u32,
}

/// What transactions of this database that began before `until_s` have used so far, by their locks, the oldest first.
pub fn open(until_s: f64) -> PgResult<Vec<Open>> {
    let any = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() \
             AND xact_start < pg_catalog.to_timestamp($1) AND backend_type NOT LIKE 'foreshard%')",
        &[until_s.into()],
    )?;
    // The locks of a server take longer to look through.
    if any != Some(true) {
        return Ok(Vec::new());
    }
    spi::rows(
        "SELECT a.pid, extract(epoch FROM a.xact_start)::float8, l.relation FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_locks l USING (pid) \
         WHERE a.datname = pg_catalog.current_database() AND a.xact_start < pg_catalog.to_timestamp($1) AND a.backend_type NOT LIKE 'foreshard%' \
           AND l.locktype = 'relation' AND l.granted AND l.database = a.datid \
           AND EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.partition::oid = l.relation) \
         GROUP BY 1, 2, 3 ORDER BY 2 LIMIT $2",
        &[until_s.into(), MAX_LOCKS.into()],
        |row| {
            let relation = row.need::<Oid>(3)?.to_u32();
            Ok(Open { pid: row.need(1)?, began_s: row.need(2)?, relation })
        },
    )
}

/// More load of a slot than its history says.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// Slot.
    pub slot_id: i64,
    /// For so long before the last bucket but one ended, seconds.
    pub before_s: f64,
    /// More of each rate.
    pub rates: Rates,
    /// What they cost.
    pub load: Load,
}

/// Adds to the history what came late: all buckets that end by `until_s`, in proportion to how much of each it lasted.
/// Unknown ones stay unknown.
pub fn add(late: &[Late], until_s: f64) -> PgResult<()> {
    let mut rest = late.to_vec();
    // A statement changes a row once: of each slot one table at a time.
    while !rest.is_empty() {
        let mut slots = HashSet::new();
        let (one_each, others): (Vec<Late>, Vec<Late>) =
            rest.into_iter().partition(|late| slots.insert(late.slot_id));
        add_one_each(&one_each, until_s)?;
        rest = others;
    }
    Ok(())
}

fn add_one_each(late: &[Late], until_s: f64) -> PgResult<()> {
    let column = |of: fn(&Late) -> f64| -> Arg<'static> { late.iter().map(of).collect::<Vec<_>>().into() };
    // How much of a bucket it lasted. The table to be updated cannot be named in FROM.
    let part = "(least(extract(epoch FROM h.bucket_at)::float8 + h.resolution_s, $1) - greatest(extract(epoch FROM h.bucket_at)::float8, $1 - q.before_s)) \
        / h.resolution_s";
    let columns = [
        ("reads_per_s", "r1"),
        ("writes_per_s", "r2"),
        ("blocks_per_s", "r3"),
        ("cost_units_per_s", "l1"),
        ("cpu_ms_per_s", "l2"),
        ("wal_bytes_per_s", "l3"),
    ];
    let set = columns.map(|(column, more)| format!("{column} = h.{column} + q.{more} * {part}")).join(", ");
    spi::run(
        &format!(
            "UPDATE foreshard.heat_history h SET {set} \
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), \
                 pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9)) AS q (slot_id, before_s, r1, r2, r3, l1, l2, l3) \
             WHERE h.slot_id = q.slot_id AND h.bucket_at < pg_catalog.to_timestamp($1) \
               AND h.bucket_at > pg_catalog.to_timestamp($1 - q.before_s) - pg_catalog.make_interval(secs => h.resolution_s)"
        ),
        &[
            until_s.into(),
            late.iter().map(|l| l.slot_id).collect::<Vec<_>>().into(),
            column(|l| l.before_s),
            column(|l| l.rates.scans_per_s),
            column(|l| l.rates.writes_per_s),
            column(|l| l.rates.blocks_read_per_s + l.rates.blocks_hit_per_s),
            column(|l| l.load.cost_units_per_s),
            column(|l| l.load.cpu_ms_per_s),
            column(|l| l.load.wal_bytes_per_s.unwrap_or(0.0)),
        ],
    )?;
    Ok(())
}
