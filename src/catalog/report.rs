//! What the report shows, read from the views with the rights of the caller.

use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg, Row};
use foreshard_core::report::{
    Ahead, Calibration, Curve, Heat, HeatRow, HotKey, Influencer, MAX_BUCKETS, MAX_ENTRIES, MAX_LEADS,
    MAX_SHARDS, MAX_SLOTS, Move, Part, Problem, Recommendation, Report, Shard, Table, Trigger,
};
use std::collections::{BTreeMap, HashMap};

/// Longest text that is read of a value, characters.
const LONGEST: i32 = 2000;

/// Reads all of it.
pub fn read() -> PgResult<Report> {
    let mut report = head()?;
    report.tables = tables()?;
    report.shards = shards()?;
    let resolution = resolution()?;
    report.heat = heat(resolution)?;
    report.curves = curves(resolution, &report.shards)?;
    report.recommendations = recommendations()?;
    report.moves = moves()?;
    report.triggers = triggers()?;
    report.hot_keys = hot_keys()?;
    report.influencers = influencers()?;
    report.calibration = calibration()?;
    report.problems = problems()?;
    Ok(report)
}

/// Rows whose first column says how many there are in all.
fn part<T>(sql: &str, args: &[Arg], map: impl Fn(&Row) -> PgResult<T>) -> PgResult<Part<T>> {
    let rows = spi::rows(sql, args, |row| Ok((row.need::<i64>(1)?, map(row)?)))?;
    let total = rows.first().map_or(0, |(total, _)| usize::try_from(*total).unwrap_or(0));
    Ok(Part { known: rows.into_iter().map(|(_, one)| one).collect(), total })
}

fn head() -> PgResult<Report> {
    let found = spi::rows(
        "SELECT pg_catalog.current_database()::text, pg_catalog.split_part(pg_catalog.current_setting('server_version'), ' ', 1), e.extversion, \
                extract(epoch FROM pg_catalog.clock_timestamp())::float8, extract(timezone FROM pg_catalog.now())::int4, \
                coalesce(pg_catalog.current_setting('foreshard.mode', true), '?') \
         FROM pg_catalog.pg_extension e WHERE e.extname = 'foreshard'",
        &[],
        |row| {
            Ok(Report {
                database: row.need(1)?,
                server: row.need(2)?,
                extension: row.need(3)?,
                made_at: row.need(4)?,
                utc_offset_s: row.need(5)?,
                mode: row.need(6)?,
                ..Report::default()
            })
        },
    )?;
    Ok(found.into_iter().next().unwrap_or_default())
}

fn tables() -> PgResult<Part<Table>> {
    part(
        "SELECT count(*) OVER (), s.\"table\"::text, s.group_id, a.attname::text, count(*), coalesce(sum(s.bytes), 0)::int8 \
         FROM foreshard.slots s JOIN pg_catalog.pg_partitioned_table r ON r.partrelid = s.\"table\" \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = r.partrelid AND a.attnum = r.partattrs[0] \
         GROUP BY s.\"table\", s.group_id, a.attname ORDER BY 6 DESC, 2 LIMIT $1",
        &[(MAX_ENTRIES as i64).into()],
        |row| {
            Ok(Table {
                name: row.need(2)?,
                group_id: row.need(3)?,
                key: row.need(4)?,
                slots: row.need(5)?,
                bytes: row.need(6)?,
            })
        },
    )
}

fn shards() -> PgResult<Part<Shard>> {
    let mut found = part(
        "SELECT count(*) OVER (), shard::text, node::text, capacity, draining, slots, bytes, cost_units_per_s \
         FROM foreshard.shards ORDER BY utilization DESC NULLS LAST, shard LIMIT $1",
        &[(MAX_SHARDS as i64).into()],
        |row| {
            Ok(Shard {
                name: row.need(2)?,
                node: row.need(3)?,
                capacity: row.need(4)?,
                draining: row.need(5)?,
                slots: row.need(6)?,
                bytes: row.need(7)?,
                load: row.get(8)?,
            })
        },
    )?;
    found.known.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The coarsest resolution of which there is a day's worth of buckets, else the finest one, and its newest bucket. Ends are found by
/// the index: a year of thousands of slots is tens of millions of rows.
fn resolution() -> PgResult<Option<(i32, f64)>> {
    let found = spi::rows(
        "WITH RECURSIVE r (resolution_s) AS ( \
             (SELECT resolution_s FROM foreshard.load_history ORDER BY 1 LIMIT 1) \
             UNION ALL SELECT (SELECT h.resolution_s FROM foreshard.load_history h WHERE h.resolution_s > r.resolution_s ORDER BY 1 LIMIT 1) \
             FROM r WHERE r.resolution_s IS NOT NULL) \
         SELECT r.resolution_s, extract(epoch FROM q.last)::float8 FROM r \
         CROSS JOIN LATERAL (SELECT pg_catalog.max(h.bucket_at) AS last, pg_catalog.min(h.bucket_at) AS first \
             FROM foreshard.load_history h WHERE h.resolution_s = r.resolution_s) q WHERE q.last IS NOT NULL \
         ORDER BY CASE WHEN extract(epoch FROM q.last - q.first) >= 24 * r.resolution_s THEN -r.resolution_s ELSE r.resolution_s END LIMIT 1",
        &[],
        |row| Ok((row.need::<i32>(1)?, row.need::<f64>(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// Starts of the newest buckets, ascending.
fn starts((step_s, last): (i32, f64)) -> Vec<f64> {
    (0..MAX_BUCKETS).rev().map(|n| last - n as f64 * f64::from(step_s)).collect()
}

fn heat(resolution: Option<(i32, f64)>) -> PgResult<Heat> {
    let mut slots = part(
        "SELECT count(*) OVER (), slot_id, shard::text, cost_units_per_s FROM foreshard.heat_map \
         ORDER BY cost_units_per_s DESC NULLS LAST, slot_id LIMIT $1",
        &[(MAX_SLOTS as i64).into()],
        |row| {
            Ok(HeatRow { slot_id: row.need(2)?, shard: row.need(3)?, load: row.get(4)?, cells: Vec::new() })
        },
    )?;
    let Some((step_s, last)) = resolution else { return Ok(Heat { slots, ..Heat::default() }) };
    let starts = starts((step_s, last));
    let ids: Vec<i64> = slots.known.iter().map(|slot| slot.slot_id).collect();
    let cells = spi::rows(
        "SELECT slot_id, extract(epoch FROM bucket_at)::float8, cost_units_per_s FROM foreshard.load_history \
         WHERE resolution_s = $1 AND slot_id = ANY ($2) AND bucket_at >= pg_catalog.to_timestamp($3)",
        &[step_s.into(), ids.into(), starts.first().copied().unwrap_or(last).into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<f64>(2)?, row.get::<f64>(3)?)),
    )?;
    let known: HashMap<(i64, i64), Option<f64>> =
        cells.into_iter().map(|(slot, at, load)| ((slot, bucket(at, step_s)), load)).collect();
    // Columns before anything was observed tell nothing.
    let first = known.keys().map(|(_, bucket)| *bucket).min().unwrap_or(i64::MIN);
    let starts: Vec<f64> = starts.into_iter().filter(|at| bucket(*at, step_s) >= first).collect();
    for slot in &mut slots.known {
        slot.cells = starts
            .iter()
            .map(|at| known.get(&(slot.slot_id, bucket(*at, step_s))).copied().flatten())
            .collect();
    }
    slots.known.sort_by(|a, b| (&a.shard, a.slot_id).cmp(&(&b.shard, b.slot_id)));
    Ok(Heat { step_s, starts, slots })
}

/// Number of the bucket that begins at a time.
fn bucket(at: f64, step_s: i32) -> i64 {
    (at / f64::from(step_s.max(1))).round() as i64
}

type Measured = HashMap<String, BTreeMap<i64, Option<f64>>>;

fn curves(resolution: Option<(i32, f64)>, shards: &Part<Shard>) -> PgResult<Vec<Curve>> {
    let mut measured = Measured::new();
    let mut times = Vec::new();
    if let Some((step_s, last)) = resolution {
        times = starts((step_s, last));
        let rows = spi::rows(
            "SELECT h.shard::text, extract(epoch FROM l.bucket_at)::float8, pg_catalog.sum(l.cost_units_per_s) \
             FROM foreshard.load_history l JOIN foreshard.heat_map h USING (slot_id) \
             WHERE l.resolution_s = $1 AND l.bucket_at >= pg_catalog.to_timestamp($2) GROUP BY 1, 2",
            &[step_s.into(), times.first().copied().unwrap_or(last).into()],
            |row| Ok((row.need::<String>(1)?, row.need::<f64>(2)?, row.get::<f64>(3)?)),
        )?;
        for (shard, at, load) in rows {
            measured.entry(shard).or_default().insert(bucket(at, step_s), load);
        }
        let first = measured.values().filter_map(|one| one.keys().next().copied()).min().unwrap_or(i64::MAX);
        times.retain(|at| bucket(*at, step_s) >= first);
    }
    let mut ahead = ahead()?;
    let step_s = resolution.map_or(1, |(step_s, _)| step_s);
    let curve = |shard: &Shard| {
        let own = measured.get(&shard.name);
        let load = |at: &f64| own.and_then(|own| own.get(&bucket(*at, step_s)).copied().flatten());
        Curve {
            shard: shard.name.clone(),
            capacity: shard.capacity,
            measured: times.iter().map(|at| (*at, load(at))).collect(),
            ahead: ahead.remove(&shard.name).unwrap_or_default().into_values().take(MAX_LEADS).collect(),
        }
    };
    Ok(shards.known.iter().map(curve).collect())
}

/// What is forecast of every shard by time in seconds, as stored: with its bounds, and once every move recommended is done.
/// Planning anew would fit the models of every slot (4 s for 128 of them).
fn ahead() -> PgResult<HashMap<String, BTreeMap<i64, Ahead>>> {
    let mut found: HashMap<String, BTreeMap<i64, Ahead>> = HashMap::new();
    let stored = spi::rows(
        "SELECT h.shard::text, extract(epoch FROM f.at)::float8, pg_catalog.sum(f.cost_units_per_s), pg_catalog.sum(f.lower), pg_catalog.sum(f.upper) \
         FROM foreshard.forecasts f JOIN foreshard.heat_map h USING (slot_id) WHERE f.at > pg_catalog.now() GROUP BY 1, 2",
        &[],
        |row| {
            let at = row.need::<f64>(2)?;
            let point =
                Ahead { at, load: row.get(3)?, lower: row.get(4)?, upper: row.get(5)?, planned: None };
            Ok((row.need::<String>(1)?, point))
        },
    )?;
    for (shard, point) in stored {
        found.entry(shard).or_default().insert(point.at as i64, point);
    }
    let planned = spi::rows(
        "SELECT coalesce(r.to_shard, h.shard)::text, extract(epoch FROM f.at)::float8, pg_catalog.sum(f.cost_units_per_s) \
         FROM foreshard.forecasts f JOIN foreshard.heat_map h USING (slot_id) \
         LEFT JOIN foreshard.recommendations r ON r.slot_id = f.slot_id AND r.action = 'move' \
         WHERE f.at > pg_catalog.now() GROUP BY 1, 2",
        &[],
        |row| Ok((row.need::<String>(1)?, row.need::<f64>(2)?, row.get::<f64>(3)?)),
    )?;
    for (shard, at, planned) in planned {
        let point =
            found.entry(shard).or_default().entry(at as i64).or_insert(Ahead { at, ..Ahead::default() });
        point.planned = planned;
    }
    Ok(found)
}

fn recommendations() -> PgResult<Part<Recommendation>> {
    part(
        "SELECT count(*) OVER (), r.recommendation_id, r.action, r.slot_id, o.slot_id, r.from_shard::text, r.to_shard::text, r.confidence, \
                r.benefit, r.bytes, r.imbalance_before, r.imbalance_after, pg_catalog.left(r.reason, $2), pg_catalog.left(r.refusal, $2), \
                pg_catalog.left(r.advice, $2), extract(epoch FROM r.start_at)::float8, extract(epoch FROM r.overload_at)::float8, \
                r.\"table\"::text, CASE WHEN pg_catalog.jsonb_typeof(r.keys) = 'array' THEN r.keys->>0 END, \
                CASE WHEN pg_catalog.jsonb_typeof(r.keys) = 'object' AND pg_catalog.length(r.keys::text) <= 4 * $2 THEN r.keys::text END \
         FROM foreshard.recommendations r LEFT JOIN foreshard.heat_map s ON s.slot_id = r.slot_id \
         LEFT JOIN foreshard.heat_map o ON r.action = 'merge' AND o.group_id = s.group_id AND o.modulus = s.modulus \
             AND o.remainder = (s.remainder + s.modulus / 2) % s.modulus AND o.home_slot_id IS NULL \
         ORDER BY r.action = 'none', r.recommendation_id LIMIT $1",
        &[(2 * MAX_ENTRIES as i64).into(), LONGEST.into()],
        |row| {
            let imbalance = row.get::<f64>(11)?.zip(row.get::<f64>(12)?);
            Ok(Recommendation {
                id: row.need(2)?,
                action: row.need(3)?,
                slot_id: row.need(4)?,
                other: row.get(5)?,
                from: row.get(6)?,
                to: row.get(7)?,
                confidence: row.get(8)?,
                benefit: row.get(9)?,
                bytes: row.get(10)?,
                imbalance,
                reason: row.get(13)?,
                refusal: row.get(14)?,
                advice: row.get(15)?,
                start_at: row.get(16)?,
                overload_at: row.get(17)?,
                table: row.get(18)?,
                key: row.get(19)?,
                map: row.get(20)?,
            })
        },
    )
}

fn moves() -> PgResult<Part<Move>> {
    part(
        "SELECT count(*) OVER (), move_id, kind, slot_id, from_shard::text, to_shard::text, phase, state, \
                extract(epoch FROM started_at)::float8, extract(epoch FROM finished_at)::float8, percent::float8, \
                extract(epoch FROM eta)::float8, bytes_done::int8, requested_by::text, pg_catalog.left(reason, $2), pg_catalog.left(last_error, $2) \
         FROM foreshard.progress_moves ORDER BY finished_at IS NULL AND started_at IS NOT NULL DESC, move_id DESC LIMIT $1",
        &[(MAX_ENTRIES as i64).into(), LONGEST.into()],
        |row| {
            Ok(Move {
                id: row.need(2)?,
                kind: row.need(3)?,
                slot_id: row.need(4)?,
                from: row.need(5)?,
                to: row.need(6)?,
                phase: row.need(7)?,
                state: row.need(8)?,
                started_at: row.get(9)?,
                finished_at: row.get(10)?,
                percent: row.get(11)?,
                eta_s: row.get(12)?,
                bytes: row.get(13)?,
                requested_by: row.need(14)?,
                reason: row.get(15)?,
                error: row.get(16)?,
            })
        },
    )
}

fn triggers() -> PgResult<Part<Trigger>> {
    part(
        "SELECT count(*) OVER (), \"table\"::text, trigger::text, function::text, timing || ' ' || event || ' ' || level, calls, \
                cpu_us_inclusive, elapsed_us_inclusive, wal_bytes::float8, \
                coalesce(total_cpu_us_inclusive, elapsed_us_inclusive * calls) / 1000 \
         FROM foreshard.stat_triggers ORDER BY 10 DESC NULLS LAST, 2, 3 LIMIT $1",
        &[(MAX_ENTRIES as i64).into()],
        |row| {
            Ok(Trigger {
                table: row.need(2)?,
                trigger: row.need(3)?,
                function: row.need(4)?,
                event: row.need(5)?,
                calls: row.need(6)?,
                cpu_us: row.get(7)?,
                elapsed_us: row.get(8)?,
                wal_bytes: row.get(9)?,
                total_ms: row.get(10)?,
            })
        },
    )
}

fn hot_keys() -> PgResult<Part<HotKey>> {
    part(
        "SELECT count(*) OVER (), \"table\"::text, slot_id, pg_catalog.left(key, $2), accesses_per_s, lower, upper \
         FROM foreshard.hot_keys ORDER BY accesses_per_s DESC, slot_id LIMIT $1",
        &[(MAX_ENTRIES as i64).into(), LONGEST.into()],
        |row| {
            Ok(HotKey {
                table: row.need(2)?,
                slot_id: row.need(3)?,
                key: row.get(4)?,
                accesses: row.need(5)?,
                lower: row.need(6)?,
                upper: row.need(7)?,
            })
        },
    )
}

fn influencers() -> PgResult<Part<Influencer>> {
    part(
        "SELECT count(*) OVER (), graph::text, place, pg_catalog.left(node, $2), influence_score, betweenness \
         FROM foreshard.graph_influencers ORDER BY place > 10, graph, place LIMIT $1",
        &[(2 * MAX_ENTRIES as i64).into(), LONGEST.into()],
        |row| {
            Ok(Influencer {
                graph: row.need(2)?,
                place: row.need(3)?,
                node: row.get(4)?,
                influence: row.need(5)?,
                betweenness: row.need(6)?,
            })
        },
    )
}

fn calibration() -> PgResult<Part<Calibration>> {
    part(
        "SELECT count(*) OVER (), group_id, trust, coalesce(outcomes, 0)::int8, stated, paid \
         FROM foreshard.calibration ORDER BY group_id, confidence_from LIMIT $1",
        &[(MAX_ENTRIES as i64).into()],
        |row| {
            Ok(Calibration {
                group_id: row.need(2)?,
                trust: row.need(3)?,
                outcomes: row.need(4)?,
                stated: row.get(5)?,
                paid: row.get(6)?,
            })
        },
    )
}

fn problems() -> PgResult<Part<Problem>> {
    part(
        "SELECT count(*) OVER (), severity, pg_catalog.left(object, $2), pg_catalog.left(problem, $2), pg_catalog.left(detail, $2), \
                pg_catalog.left(hint, $2) FROM foreshard.\"check\"() LIMIT $1",
        &[(MAX_ENTRIES as i64).into(), LONGEST.into()],
        |row| {
            Ok(Problem {
                severity: row.need(2)?,
                object: row.need(3)?,
                problem: row.need(4)?,
                detail: row.need(5)?,
                hint: row.need(6)?,
            })
        },
    )
}
