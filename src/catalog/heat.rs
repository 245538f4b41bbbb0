//! Counters of slots, their rates, the load history and its roll-up.

use super::forecast_error;
use crate::pg::graph::keys::KeyKind;
use crate::pg::graph::read;
use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg};
use foreshard_core::heat::{Counters, Rates};
use foreshard_core::unit_cost::Load;
use pgrx::pg_sys::Oid;
use std::collections::HashMap;

/// What tells counters from all others: the partition, or the shard, the node that counted, and in which life of its server.
pub type Count = (i64, i32, i64);

/// What is known of a partition at a reading.
pub struct Reading {
    /// Slot.
    pub slot_id: i64,
    /// Its shard.
    pub shard_id: i32,
    /// The partitioned table.
    pub table: u32,
    /// The partition, also one on a node; None: it is a shard of Citus.
    pub relation: Option<u32>,
    /// What tells its counters from all others.
    pub count: Count,
    /// When it was read, if somebody else read it, by the clock of who did; seconds since the epoch.
    pub read_at_s: Option<f64>,
    /// Cumulative counters.
    pub counters: Counters,
}

/// Seven counters of a row, from column `first` on.
pub(super) fn counters(row: &spi::Row, first: usize) -> PgResult<Counters> {
    let at = |i: usize| -> PgResult<u64> { Ok(row.get::<i64>(first + i)?.unwrap_or(0).max(0) as u64) };
    Ok(Counters {
        scans: at(0)?,
        rows_read: at(1)?,
        inserted: at(2)?,
        updated: at(3)?,
        deleted: at(4)?,
        blocks_read: at(5)?,
        blocks_hit: at(6)?,
    })
}

/// What the history has of a load.
const LOADS: [&str; 8] = [
    "reads_per_s",
    "writes_per_s",
    "blocks_per_s",
    "cost_units_per_s",
    "cpu_ms_per_s",
    "wal_bytes_per_s",
    "trigger_cost_per_s",
    "access_score",
];
/// What the present load has that adds up.
const PRESENT: [&str; 9] = [
    "reads_per_s",
    "writes_per_s",
    "blocks_per_s",
    "cost_units_per_s",
    "cpu_ms_per_s",
    "wal_bytes_per_s",
    "trigger_cost_per_s",
    "heat",
    "access_score",
];

/// The cumulative statistics of every partition.
const COUNTERS: &str = "SELECT s.slot_id, s.shard_id, p.table_oid::oid, p.partition::oid, (q.scans + coalesce(r.scans, 0))::int8 AS scans, (q.rows + coalesce(r.rows_read, 0))::int8 AS rows, \
                q.ins + coalesce(r.inserted, 0) AS ins, q.upd + coalesce(r.updated, 0) AS upd, q.del + coalesce(r.deleted, 0) AS del, \
                (greatest(q.fetched - q.hit, 0) + coalesce(r.blocks_read, 0))::int8 AS read, (q.hit + coalesce(r.blocks_hit, 0))::int8 AS hit, \
                CASE WHEN r.partition IS NOT NULL THEN coalesce(r.counted_at, 0) END AS said_at, (coalesce(r.counted_since, 0) * 1e6)::int8 AS life \
         FROM foreshard.slot s JOIN foreshard.slot_partition p USING (slot_id) LEFT JOIN foreshard.remote_table r ON r.partition = p.partition::oid CROSS JOIN LATERAL ( \
             SELECT pg_catalog.pg_stat_get_numscans(p.partition) + coalesce(sum(pg_catalog.pg_stat_get_numscans(i.indexrelid)), 0) AS scans, \
                    pg_catalog.pg_stat_get_tuples_returned(p.partition) + pg_catalog.pg_stat_get_tuples_fetched(p.partition) \
                      + coalesce(sum(pg_catalog.pg_stat_get_tuples_fetched(i.indexrelid)), 0) AS rows, \
                    pg_catalog.pg_stat_get_tuples_inserted(p.partition) AS ins, \
                    pg_catalog.pg_stat_get_tuples_updated(p.partition) AS upd, \
                    pg_catalog.pg_stat_get_tuples_deleted(p.partition) AS del, \
                    pg_catalog.pg_stat_get_blocks_fetched(p.partition) + coalesce(sum(pg_catalog.pg_stat_get_blocks_fetched(i.indexrelid)), 0) AS fetched, \
                    pg_catalog.pg_stat_get_blocks_hit(p.partition) + coalesce(sum(pg_catalog.pg_stat_get_blocks_hit(i.indexrelid)), 0) AS hit \
             FROM pg_catalog.pg_index i WHERE i.indrelid = p.partition) q";

/// Reads the cumulative statistics of every partition now, by slot.
pub fn read_counters() -> PgResult<Vec<Reading>> {
    spi::rows(&format!("{COUNTERS} ORDER BY 1, 4"), &[], |row| {
        let relation = row.need::<Oid>(4)?.to_u32();
        Ok(Reading {
            slot_id: row.need(1)?,
            shard_id: row.need(2)?,
            table: row.need::<Oid>(3)?.to_u32(),
            relation: Some(relation),
            // On a node the life of the server that is that node: what another one counts is another count.
            count: (i64::from(relation), 0, row.need(13)?),
            read_at_s: row.get(12)?,
            counters: counters(row, 5)?,
        })
    })
}

/// The previous reading of a slot.
pub struct Previous {
    /// Counters then.
    pub counters: Counters,
    /// Seconds since the epoch.
    pub observed_at_s: f64,
    /// Decayed cost units per second.
    pub heat: f64,
    /// Decayed accesses (scans and written rows) per second.
    pub access_score: f64,
    /// Consecutive readings with an overloaded shard.
    pub hot_buckets: i32,
}

/// Previous readings by slot.
pub fn previous() -> PgResult<HashMap<i64, Previous>> {
    let found = spi::rows(
        "SELECT slot_id, extract(epoch FROM observed_at)::float8, coalesce(heat, 0), coalesce(access_score, 0), hot_buckets, \
                scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit FROM foreshard.slot_heat",
        &[],
        |row| {
            Ok((
                row.need::<i64>(1)?,
                Previous {
                    observed_at_s: row.need(2)?,
                    heat: row.need(3)?,
                    access_score: row.need(4)?,
                    hot_buckets: row.need(5)?,
                    counters: counters(row, 6)?,
                },
            ))
        },
    )?;
    Ok(found.into_iter().collect())
}

/// A slot's state after a reading; rates and load None: unknown.
pub struct Observed {
    /// Slot.
    pub slot_id: i64,
    /// Counters now.
    pub counters: Counters,
    /// Rates since the previous reading.
    pub rates: Option<Rates>,
    /// What they cost.
    pub load: Option<Load>,
    /// Decayed cost units per second.
    pub heat: f64,
    /// Decayed accesses per second.
    pub access_score: f64,
    /// Consecutive readings with an overloaded shard.
    pub hot_buckets: i32,
}

/// Stores a reading made at `now_s`, unless there is a later one (a clock that was set back aside), and adds it to
/// the history at `bucket_s` resolution: two statements, whatever the number of slots.
pub fn store(observed: &[Observed], now_s: f64, bucket_s: i32) -> PgResult<()> {
    let bucket_at_s = (now_s / f64::from(bucket_s)).floor() * f64::from(bucket_s);
    let counter = |of: fn(&Counters) -> u64| -> Arg<'static> {
        observed.iter().map(|o| of(&o.counters) as i64).collect::<Vec<_>>().into()
    };
    let rate = |of: fn(&Rates) -> f64| -> Arg<'static> {
        observed.iter().map(|o| o.rates.as_ref().map(of)).collect::<Vec<_>>().into()
    };
    let load = |of: fn(&Load) -> Option<f64>| -> Arg<'static> {
        observed.iter().map(|o| o.load.as_ref().and_then(of)).collect::<Vec<_>>().into()
    };
    spi::run(
        "INSERT INTO foreshard.slot_heat AS h (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, \
             reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s, cpu_ms_per_s, wal_bytes_per_s, trigger_cost_per_s, heat, access_score, hot_buckets) \
         SELECT q.slot_id, pg_catalog.to_timestamp($1), q.c1, q.c2, q.c3, q.c4, q.c5, q.c6, q.c7, q.r1, q.r2, q.r3, q.l1, q.l2, q.l3, q.l4, q.heat, q.score, q.hot \
         FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), \
             pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10), pg_catalog.unnest($11), pg_catalog.unnest($12), \
             pg_catalog.unnest($13), pg_catalog.unnest($14), pg_catalog.unnest($15), pg_catalog.unnest($16), pg_catalog.unnest($17), pg_catalog.unnest($18), \
             pg_catalog.unnest($19)) AS q (slot_id, c1, c2, c3, c4, c5, c6, c7, r1, r2, r3, l1, l2, l3, l4, heat, score, hot) \
         ON CONFLICT (slot_id) DO UPDATE SET observed_at = excluded.observed_at, scans = excluded.scans, rows_read = excluded.rows_read, \
             inserted = excluded.inserted, updated = excluded.updated, deleted = excluded.deleted, blocks_read = excluded.blocks_read, \
             blocks_hit = excluded.blocks_hit, reads_per_s = excluded.reads_per_s, writes_per_s = excluded.writes_per_s, \
             blocks_per_s = excluded.blocks_per_s, cost_units_per_s = excluded.cost_units_per_s, cpu_ms_per_s = excluded.cpu_ms_per_s, \
             wal_bytes_per_s = excluded.wal_bytes_per_s, trigger_cost_per_s = excluded.trigger_cost_per_s, heat = excluded.heat, \
             access_score = excluded.access_score, hot_buckets = excluded.hot_buckets \
         WHERE h.observed_at < excluded.observed_at OR h.observed_at > excluded.observed_at + interval '1 min'",
        &[
            now_s.into(),
            observed.iter().map(|o| o.slot_id).collect::<Vec<_>>().into(),
            counter(|c| c.scans),
            counter(|c| c.rows_read),
            counter(|c| c.inserted),
            counter(|c| c.updated),
            counter(|c| c.deleted),
            counter(|c| c.blocks_read),
            counter(|c| c.blocks_hit),
            rate(|r| r.scans_per_s),
            rate(|r| r.writes_per_s),
            rate(|r| r.blocks_read_per_s + r.blocks_hit_per_s),
            load(|l| Some(l.cost_units_per_s)),
            load(|l| Some(l.cpu_ms_per_s)),
            load(|l| l.wal_bytes_per_s),
            load(|l| l.trigger_cost_per_s),
            observed.iter().map(|o| o.heat).collect::<Vec<_>>().into(),
            observed.iter().map(|o| o.access_score).collect::<Vec<_>>().into(),
            observed.iter().map(|o| o.hot_buckets).collect::<Vec<_>>().into(),
        ],
    )?;
    spi::run(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s, \
             cpu_ms_per_s, wal_bytes_per_s, trigger_cost_per_s, access_score) \
         SELECT $1, slot_id, pg_catalog.to_timestamp($2), reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s, \
             cpu_ms_per_s, wal_bytes_per_s, trigger_cost_per_s, CASE WHEN reads_per_s IS NOT NULL THEN access_score END \
         FROM foreshard.slot_heat WHERE observed_at = pg_catalog.to_timestamp($3) ON CONFLICT DO NOTHING",
        &[bucket_s.into(), bucket_at_s.into(), now_s.into()],
    )?;
    Ok(())
}

/// A slot has become others, given with their shares of its load: each begins with its share of the heat,
/// and with the counters of its own partitions (of Citus, whose nodes count by themselves, with none). In the transaction that makes them; a reading that was
/// begun before does not overwrite it.
pub fn divide(slot_id: i64, parts: &[(i64, f64)]) -> PgResult<()> {
    spi::run(
        &format!(
            "INSERT INTO foreshard.slot_heat AS h (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, \
                 reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s, cpu_ms_per_s, wal_bytes_per_s, trigger_cost_per_s, heat, access_score, hot_buckets) \
             SELECT n.slot_id, pg_catalog.clock_timestamp(), c.scans, c.rows, c.ins, c.upd, c.del, c.read, c.hit, \
                 o.reads_per_s * n.share, o.writes_per_s * n.share, o.blocks_per_s * n.share, o.cost_units_per_s * n.share, o.cpu_ms_per_s * n.share, \
                 o.wal_bytes_per_s * n.share, o.trigger_cost_per_s * n.share, o.heat * n.share, o.access_score * n.share, o.hot_buckets \
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS n (slot_id, share) \
             JOIN foreshard.slot_heat o ON o.slot_id = $1 \
             CROSS JOIN LATERAL (SELECT coalesce(sum(scans), 0)::int8 AS scans, coalesce(sum(rows), 0)::int8 AS rows, coalesce(sum(ins), 0)::int8 AS ins, \
                 coalesce(sum(upd), 0)::int8 AS upd, coalesce(sum(del), 0)::int8 AS del, coalesce(sum(read), 0)::int8 AS read, coalesce(sum(hit), 0)::int8 AS hit FROM ({COUNTERS} WHERE s.slot_id = n.slot_id) k) c \
             ON CONFLICT (slot_id) DO UPDATE SET observed_at = excluded.observed_at, scans = excluded.scans, rows_read = excluded.rows_read, \
                 inserted = excluded.inserted, updated = excluded.updated, deleted = excluded.deleted, blocks_read = excluded.blocks_read, \
                 blocks_hit = excluded.blocks_hit, reads_per_s = excluded.reads_per_s, writes_per_s = excluded.writes_per_s, \
                 blocks_per_s = excluded.blocks_per_s, cost_units_per_s = excluded.cost_units_per_s, cpu_ms_per_s = excluded.cpu_ms_per_s, \
                 wal_bytes_per_s = excluded.wal_bytes_per_s, trigger_cost_per_s = excluded.trigger_cost_per_s, heat = excluded.heat, \
                 access_score = excluded.access_score"
        ),
        &[slot_id.into(), slots(parts), shares(parts)],
    )?;
    // How the keys of the whole spread says nothing of how those of a part do, nor of where a cut would be.
    spi::run("DELETE FROM foreshard.slot_keys WHERE slot_id = $1", &[slot_id.into()])?;
    Ok(())
}

/// Slots have gone up in another one: their present load is its own.
pub fn absorb(slot_id: i64, gone: &[i64]) -> PgResult<()> {
    let sums = PRESENT.map(|rate| format!("coalesce(h.{rate} + q.{rate}, h.{rate}, q.{rate})")).join(", ");
    let totals = PRESENT.map(|rate| format!("sum({rate}) AS {rate}")).join(", ");
    spi::run(
        &format!(
            "UPDATE foreshard.slot_heat h SET ({}) = ROW ({sums}) \
             FROM (SELECT {totals} FROM foreshard.slot_heat WHERE slot_id = ANY ($2)) q WHERE h.slot_id = $1",
            PRESENT.join(", ")
        ),
        &[slot_id.into(), gone.to_vec().into()],
    )?;
    Ok(())
}

/// The same of their load history, which is theirs no longer.
pub fn absorb_history(slot_id: i64, gone: &[i64]) -> PgResult<()> {
    let totals = LOADS.map(|load| format!("sum({load})")).join(", ");
    let sums =
        LOADS.map(|load| format!("{load} = coalesce(h.{load} + excluded.{load}, h.{load}, excluded.{load})"));
    spi::run(
        &format!(
            "INSERT INTO foreshard.heat_history AS h (resolution_s, slot_id, bucket_at, {}) \
             SELECT resolution_s, $1, bucket_at, {totals} FROM foreshard.heat_history WHERE slot_id = ANY ($2) GROUP BY 1, 3 \
             ON CONFLICT (resolution_s, slot_id, bucket_at) DO UPDATE SET {}",
            LOADS.join(", "),
            sums.join(", ")
        ),
        &[slot_id.into(), gone.to_vec().into()],
    )?;
    spi::run("DELETE FROM foreshard.heat_history WHERE slot_id = ANY ($1)", &[gone.to_vec().into()])?;
    if gone.is_empty() { Ok(()) } else { forecast_error::forget(slot_id) }
}

/// The same of the load history before `until_s` and of the forecast. In the transaction that ends the split.
pub fn divide_history(slot_id: i64, parts: &[(i64, f64)], until_s: f64) -> PgResult<()> {
    let others: Vec<(i64, f64)> = parts.iter().copied().filter(|(slot, _)| *slot != slot_id).collect();
    let kept: f64 = parts.iter().filter(|(slot, _)| *slot == slot_id).map(|(_, share)| share).sum();
    let loads = LOADS;
    let points = ["cost_units_per_s", "lower", "upper", "mae"];
    let times = |columns: &[&str], share: &str| {
        let products = columns.iter().map(|column| format!("o.{column} * {share}"));
        products.collect::<Vec<_>>().join(", ")
    };
    let set = |columns: &[&str]| {
        let products = columns.iter().map(|column| format!("{column} = {column} * $2"));
        products.collect::<Vec<_>>().join(", ")
    };
    spi::run(
        &format!(
            "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, {}) \
             SELECT o.resolution_s, n.slot_id, o.bucket_at, {} FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS n (slot_id, share) \
             JOIN foreshard.heat_history o ON o.slot_id = $1 AND o.bucket_at < pg_catalog.to_timestamp($4) ON CONFLICT DO NOTHING",
            loads.join(", "),
            times(&loads, "n.share")
        ),
        &[slot_id.into(), slots(&others), shares(&others), until_s.into()],
    )?;
    spi::run(
        &format!(
            "UPDATE foreshard.heat_history SET {} WHERE slot_id = $1 AND bucket_at < pg_catalog.to_timestamp($3)",
            set(&loads)
        ),
        &[slot_id.into(), kept.into(), until_s.into()],
    )?;
    // What was forecast of the whole cannot be compared with what comes of a part.
    spi::run("DELETE FROM foreshard.forecast_due WHERE slot_id = $1", &[slot_id.into()])?;
    let errors = ["error", "scaled_error", "naive_error"];
    spi::run(
        &format!("UPDATE foreshard.forecast_error SET {} WHERE slot_id = $1", set(&errors)),
        &[slot_id.into(), kept.into()],
    )?;
    // A forecast that was made since knows the parts.
    spi::run(
        &format!(
            "INSERT INTO foreshard.forecast (slot_id, at, interval_level, model, history_buckets, made_at, {}) \
             SELECT n.slot_id, o.at, o.interval_level, o.model, o.history_buckets, o.made_at, {} \
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS n (slot_id, share) \
             JOIN foreshard.forecast o ON o.slot_id = $1 AND o.made_at < pg_catalog.to_timestamp($4) ON CONFLICT DO NOTHING",
            points.join(", "),
            times(&points, "n.share")
        ),
        &[slot_id.into(), slots(&others), shares(&others), until_s.into()],
    )?;
    spi::run(
        &format!(
            "UPDATE foreshard.forecast SET {} WHERE slot_id = $1 AND made_at < pg_catalog.to_timestamp($3)",
            set(&points)
        ),
        &[slot_id.into(), kept.into(), until_s.into()],
    )?;
    Ok(())
}

fn slots(parts: &[(i64, f64)]) -> Arg<'static> {
    parts.iter().map(|(slot, _)| *slot).collect::<Vec<i64>>().into()
}

fn shares(parts: &[(i64, f64)]) -> Arg<'static> {
    parts.iter().map(|(_, share)| *share).collect::<Vec<f64>>().into()
}

/// Names of the shards whose present load is at least this share of what they can carry.
pub fn distressed(share: f64) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT a.shard_name::text FROM foreshard.shard a JOIN foreshard.slot s USING (shard_id) JOIN foreshard.slot_heat h USING (slot_id) \
         GROUP BY a.shard_id HAVING sum(h.heat) >= $1 * a.capacity",
        &[share.into()],
        |row| row.need(1),
    )
}

/// Coarser resolutions of the history, seconds.
pub const ROLL_UPS_S: [i32; 3] = [60, 300, 3600];

/// Averages finished coarse buckets out of the next finer resolution. Unknown stays unknown. Buckets to come are those of a clock that was
/// ahead: nothing waits for them.
pub fn roll_up(now_s: f64, bucket_s: i32) -> PgResult<()> {
    let mut finer = bucket_s;
    for coarse in ROLL_UPS_S {
        if coarse <= bucket_s {
            continue;
        }
        let until_s = (now_s / f64::from(coarse)).floor() * f64::from(coarse);
        spi::run(
            "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s, \
                 cpu_ms_per_s, wal_bytes_per_s, trigger_cost_per_s, access_score) \
             SELECT $1, slot_id, pg_catalog.date_bin(pg_catalog.make_interval(secs => $1), bucket_at, 'epoch'), \
                    avg(reads_per_s), avg(writes_per_s), avg(blocks_per_s), avg(cost_units_per_s), \
                    avg(cpu_ms_per_s), avg(wal_bytes_per_s), avg(trigger_cost_per_s), avg(access_score) \
             FROM foreshard.heat_history WHERE resolution_s = $2 AND bucket_at < pg_catalog.to_timestamp($3) \
               AND bucket_at >= coalesce((SELECT max(bucket_at) FROM foreshard.heat_history WHERE resolution_s = $1 AND bucket_at < pg_catalog.to_timestamp($3)) \
                                         + pg_catalog.make_interval(secs => $1), '-infinity') \
             GROUP BY 2, 3 ON CONFLICT DO NOTHING",
            &[coarse.into(), finer.into(), until_s.into()],
        )?;
        finer = coarse;
    }
    Ok(())
}

/// Deletes history older than its retention, given as (resolution, keep), both in seconds; resolutions
/// that are not listed go by `other_keep_s`.
pub fn expire(keep_s: &[(i32, i32)], other_keep_s: i32, events_keep_s: i32) -> PgResult<()> {
    for (resolution, keep) in keep_s {
        spi::run(
            "DELETE FROM foreshard.heat_history WHERE resolution_s = $1 AND bucket_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2)",
            &[(*resolution).into(), (*keep).into()],
        )?;
    }
    let listed: Vec<i32> = keep_s.iter().map(|(r, _)| *r).collect();
    spi::run(
        "DELETE FROM foreshard.heat_history WHERE resolution_s <> ALL ($1) AND bucket_at < pg_catalog.now() - pg_catalog.make_interval(secs => $2)",
        &[listed.into(), other_keep_s.into()],
    )?;
    spi::run(
        "DELETE FROM foreshard.journal WHERE at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)",
        &[events_keep_s.into()],
    )?;
    spi::run(
        "DELETE FROM foreshard.regressor WHERE at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)",
        &[events_keep_s.into()],
    )?;
    spi::run(
        "DELETE FROM foreshard.resharding_request r WHERE requested_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1) \
           AND NOT EXISTS (SELECT FROM foreshard.move m WHERE m.request_id = r.request_id AND NOT m.finished)",
        &[events_keep_s.into()],
    )?;
    Ok(())
}

/// Hands the load history of every slot at one resolution since `since_s`, slot by slot and in order, to `each`: slot, start of
/// the bucket (s), cost units/s.
pub fn history(resolution_s: i32, since_s: i64, mut each: impl FnMut(i64, i64, Option<f64>)) -> PgResult<()> {
    let sql = format!(
        "SELECT h.slot_id, extract(epoch FROM h.bucket_at)::int8, h.cost_units_per_s FROM foreshard.heat_history h \
         JOIN foreshard.slot s USING (slot_id) \
         WHERE h.resolution_s = {resolution_s} AND h.bucket_at >= pg_catalog.to_timestamp({since_s}) ORDER BY 1, 2"
    );
    read::each(&sql, KeyKind::Int8, |row| {
        if let (Some(slot_id), Some(at_s)) = (row.bigint(1), row.bigint(2)) {
            each(slot_id, at_s, row.float(3));
        }
        Ok(())
    })
}

/// What changes when the past of slots does: it is divided, added up or forgotten when a change of them ends, or somebody brings the
/// history of earlier times.
pub fn layout(resolution_s: i32) -> PgResult<String> {
    let found = spi::one::<String>(
        "SELECT pg_catalog.concat_ws(' ', count(*), sum(slot_id), max(last_moved_at), (SELECT count(*) FROM foreshard.move WHERE finished), \
             (SELECT min(bucket_at) FROM foreshard.heat_history WHERE resolution_s = $1)) FROM foreshard.slot",
        &[resolution_s.into()],
    )?;
    Ok(found.unwrap_or_default())
}
