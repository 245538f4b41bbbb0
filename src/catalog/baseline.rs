//! How statements fared before a swap and what load was forecast, kept with the move: what is in shared memory does
//! not outlive the server.

use crate::pg::report::PgResult;
use crate::pg::{guc, spi};
use foreshard_core::latency::Counts;
use foreshard_core::watch::{Period, Point};
use pgrx::JsonB;
use serde_json::{Value, json};

/// The slots whose statements are measured for a slot, its parameter $1: itself; of a slot of Citus all of its group, because which of
/// them a statement is sent to is not seen here.
const MEASURED: &str = "(SELECT o.slot_id FROM foreshard.slot s JOIN foreshard.slot o \
    ON o.slot_id = s.slot_id OR s.hash_from IS NOT NULL AND o.group_id = s.group_id WHERE s.slot_id = $1)";

/// Points of a forecast that are kept.
const MOST_POINTS: usize = 400;

/// What is known of the time before a swap.
#[derive(Default)]
pub struct Baseline {
    /// How statements fared until the swap, or until it was last kept.
    pub before: Period,
    /// The slot's load then, cost units/s.
    pub load: Option<f64>,
    /// What was forecast before the swap, and how long its buckets are, s.
    pub forecast: Vec<Point>,
    /// See `forecast`.
    pub step_s: f64,
    /// It was kept after the swap: nothing can be added any more.
    pub is_final: bool,
    /// When the watch began, anew if need be, s since 1970; None: there was no swap yet.
    pub watch_from_s: Option<f64>,
    /// It began anew: what an earlier server had counted since the swap is lost.
    pub is_resumed: bool,
    /// Of a move by Citus: it is not judged any more.
    pub is_over: bool,
}

fn counts_to_json(counts: &Counts) -> Value {
    json!({"counts": counts.pairs().collect::<Vec<_>>(), "errors": counts.errors})
}

fn counts_of(value: &Value) -> Counts {
    let pairs = value["counts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pair = |pair: &Value| Some((usize::try_from(pair[0].as_u64()?).ok()?, pair[1].as_u64()?));
    Counts::from_pairs(pairs.iter().filter_map(pair), value["errors"].as_u64().unwrap_or(0))
}

fn points_of(value: &Value) -> Vec<Point> {
    let number = |point: &Value, at: usize| point[at].as_f64();
    let point = |p: &Value| {
        Some(Point { at_s: number(p, 0)?, mean: number(p, 1)?, lower: number(p, 2)?, upper: number(p, 3)? })
    };
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(point).collect()
}

/// Measuring begins now; `seconds` of it were before.
pub fn begin(move_id: i64, seconds: f64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET measured_from = pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $2) WHERE move_id = $1",
        &[move_id.into(), seconds.into()],
    )?;
    Ok(())
}

/// What is kept with a move.
pub fn load(move_id: i64) -> PgResult<Baseline> {
    let found = spi::rows(
        "SELECT baseline, extract(epoch FROM coalesce(watch_from, swapped_at))::float8, watch_from IS NOT NULL \
         FROM foreshard.move WHERE move_id = $1",
        &[move_id.into()],
        |row| {
            let kept = row.get::<JsonB>(1)?.map(|kept| kept.0).unwrap_or_default();
            let seconds = kept["seconds"].as_f64().unwrap_or(0.0);
            Ok(Baseline {
                before: Period {
                    slot: counts_of(&kept["slot"]),
                    others: counts_of(&kept["others"]),
                    seconds,
                },
                load: kept["load"].as_f64(),
                forecast: points_of(&kept["forecast"]),
                step_s: kept["step_s"].as_f64().unwrap_or(0.0),
                is_final: kept["final"].as_bool().unwrap_or(false),
                watch_from_s: row.get(2)?,
                is_resumed: row.need(3)?,
                is_over: kept["over"].as_bool().unwrap_or(false),
            })
        },
    )?;
    Ok(found.into_iter().next().unwrap_or_default())
}

/// Keeps how statements fared so far, in the place of what was kept before. Before the swap, with the forecast of the slot's load as it is
/// now; after it, for good, with the one that was kept.
pub fn store(move_id: i64, slot_id: i64, slot: &Counts, others: &Counts, swapped: bool) -> PgResult<()> {
    let mut kept = json!({"slot": counts_to_json(slot), "others": counts_to_json(others), "final": swapped});
    if !swapped {
        let points = forecast(slot_id)?;
        let step_s = points.windows(2).map(|pair| pair[1].at_s - pair[0].at_s).fold(f64::INFINITY, f64::min);
        if step_s.is_finite() {
            kept["step_s"] = json!(step_s);
            kept["forecast"] = points.iter().map(|p| json!([p.at_s, p.mean, p.lower, p.upper])).collect();
        }
        kept["load"] = json!(load_since(slot_id, None, Some(move_id))?);
    }
    spi::run(
        "UPDATE foreshard.move SET baseline = coalesce(baseline, '{}') || $2 || pg_catalog.jsonb_build_object('seconds', \
             extract(epoch FROM coalesce(swapped_at, pg_catalog.clock_timestamp()) - measured_from)::float8) WHERE move_id = $1",
        &[move_id.into(), JsonB(kept).into()],
    )?;
    Ok(())
}

/// The forecast of the load of what is measured for a slot, from the bucket of now on. Of several slots together: what is not known of
/// one is not known.
fn forecast(slot_id: i64) -> PgResult<Vec<Point>> {
    spi::rows(
        &format!(
            "SELECT extract(epoch FROM f.at)::float8, sum(f.cost_units_per_s), sum(f.lower), sum(f.upper) FROM foreshard.forecast f \
             WHERE f.slot_id IN {MEASURED} AND f.at > pg_catalog.clock_timestamp() - interval '1 day' \
               AND f.cost_units_per_s IS NOT NULL AND f.lower IS NOT NULL AND f.upper IS NOT NULL \
             GROUP BY f.at HAVING count(*) = (SELECT count(*) FROM {MEASURED} k) ORDER BY f.at LIMIT $2"
        ),
        &[slot_id.into(), (MOST_POINTS as i64).into()],
        |row| Ok(Point { at_s: row.need(1)?, mean: row.need(2)?, lower: row.need(3)?, upper: row.need(4)? }),
    )
}

/// The measured load of what is measured for a slot since a time (s since 1970) or since the measuring of a move began, the last two
/// buckets at least, cost units/s; None: unknown.
pub fn load_since(slot_id: i64, since_s: Option<f64>, move_id: Option<i64>) -> PgResult<Option<f64>> {
    spi::one::<f64>(
        &format!(
            "SELECT sum(q.load) FROM (SELECT avg(h.cost_units_per_s) AS load FROM foreshard.heat_history h WHERE h.resolution_s = $4 AND h.slot_id IN {MEASURED} \
               AND h.bucket_at > coalesce(pg_catalog.to_timestamp($2), (SELECT least(measured_from, pg_catalog.clock_timestamp() - 2 * pg_catalog.make_interval(secs => $4)) \
                       FROM foreshard.move WHERE move_id = $3)) \
                   - pg_catalog.make_interval(secs => $4) GROUP BY h.slot_id) q"
        ),
        &[slot_id.into(), since_s.into(), move_id.into(), guc::BUCKET.get().into()],
    )
}

/// The watch begins anew: what was counted since the swap is lost, and what was not kept before it.
pub fn begin_anew(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET watch_from = pg_catalog.clock_timestamp(), baseline = coalesce(baseline, '{}') || '{\"final\": true}' WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}

/// What is kept is final: what comes from now on is not of the time before.
pub fn close(move_id: i64) -> PgResult<()> {
    set(move_id, "final")
}

/// The move is not judged any more.
pub fn end_watch(move_id: i64) -> PgResult<()> {
    set(move_id, "over")
}

fn set(move_id: i64, what: &str) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET baseline = coalesce(baseline, '{}') || pg_catalog.jsonb_build_object($2, true) WHERE move_id = $1",
        &[move_id.into(), what.into()],
    )?;
    Ok(())
}
