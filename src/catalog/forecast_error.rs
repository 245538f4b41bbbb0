//! Forecasts compared with what came, per slot and lead.

use super::decision::SlotForecast;
use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::coverage::{self, Coverage, KEPT};
use std::collections::HashMap;

/// Leads that are followed up (from 1).
const LEADS: [usize; 3] = [1, 12, 24];

/// Notes what is forecast for some leads. Of several forecasts of a bucket at one lead the first counts. What was
/// noted at another resolution is forgotten: the horizon has changed, and a lead is something else now.
pub fn note(forecasts: &[SlotForecast], resolution_s: i32) -> PgResult<()> {
    let (mut slots, mut leads, mut at) = (Vec::new(), Vec::new(), Vec::new());
    let (mut means, mut lower, mut upper) = (Vec::new(), Vec::new(), Vec::new());
    for forecast in forecasts {
        for lead in LEADS {
            let Some(point) = forecast.points.get(lead - 1) else { continue };
            slots.push(forecast.slot_id);
            leads.push(lead as i32);
            at.push(point.at_s as f64);
            means.push(point.mean);
            lower.push(point.lower);
            upper.push(point.upper);
        }
    }
    if slots.is_empty() {
        return Ok(());
    }
    spi::run("DELETE FROM foreshard.forecast_due WHERE resolution_s <> $1", &[resolution_s.into()])?;
    spi::run(
        "INSERT INTO foreshard.forecast_due (slot_id, resolution_s, lead, at, cost_units_per_s, lower, upper) \
         SELECT q.s, $1, q.n, pg_catalog.to_timestamp(q.a), q.m, q.l, q.u \
         FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), \
             pg_catalog.unnest($7)) AS q (s, n, a, m, l, u) JOIN foreshard.slot x ON x.slot_id = q.s ON CONFLICT DO NOTHING",
        &[
            resolution_s.into(),
            slots.into(),
            leads.into(),
            at.into(),
            means.into(),
            lower.into(),
            upper.into(),
        ],
    )?;
    Ok(())
}

/// Compares what was noted with the buckets that are over; what is not known by then is forgotten. Of buckets of
/// several resolutions the newest say how good a forecast at that lead is.
pub fn settle() -> PgResult<()> {
    spi::run(
        "WITH came AS ( \
             DELETE FROM foreshard.forecast_due d USING foreshard.heat_history h \
             WHERE h.resolution_s = d.resolution_s AND h.slot_id = d.slot_id AND h.bucket_at = d.at \
               AND d.at + pg_catalog.make_interval(secs => d.resolution_s) <= pg_catalog.now() \
             RETURNING d.*, h.cost_units_per_s AS actual), \
         judged AS ( \
             SELECT c.slot_id, c.lead, c.resolution_s, count(*) AS buckets, max(c.at) AS last_at, \
                    sum(abs(c.actual - c.cost_units_per_s)) AS error, count(*) FILTER (WHERE c.actual BETWEEN c.lower AND c.upper) AS covered, \
                    coalesce(sum(abs(c.actual - c.cost_units_per_s)) FILTER (WHERE n.naive IS NOT NULL), 0) AS scaled, \
                    coalesce(sum(abs(c.actual - n.naive)), 0) AS naive \
             FROM came c CROSS JOIN LATERAL (SELECT coalesce( \
                 (SELECT y.cost_units_per_s FROM foreshard.heat_history y WHERE y.resolution_s = c.resolution_s AND y.slot_id = c.slot_id \
                    AND y.bucket_at = c.at - pg_catalog.make_interval(secs => extract(epoch FROM pg_catalog.current_setting('foreshard.season')::interval)::float8)), \
                 (SELECT l.cost_units_per_s FROM foreshard.heat_history l WHERE l.resolution_s = c.resolution_s AND l.slot_id = c.slot_id \
                    AND l.bucket_at = c.at - pg_catalog.make_interval(secs => c.lead * c.resolution_s))) AS naive) n \
             WHERE c.actual IS NOT NULL GROUP BY 1, 2, 3), \
         newest AS (SELECT DISTINCT ON (slot_id, lead) * FROM judged ORDER BY slot_id, lead, last_at DESC, resolution_s) \
         INSERT INTO foreshard.forecast_error AS e (slot_id, lead, resolution_s, buckets, weight, error, covered, scaled_error, naive_error, last_at) \
         SELECT slot_id, lead, resolution_s, buckets, buckets, error, covered, scaled, naive, last_at FROM newest \
         ON CONFLICT (slot_id, lead) DO UPDATE SET (resolution_s, buckets, weight, error, covered, scaled_error, naive_error, last_at) = \
             (SELECT excluded.resolution_s, k.old::int * e.buckets + excluded.buckets, k.kept * e.weight + excluded.weight, \
                     k.kept * e.error + excluded.error, k.kept * e.covered + excluded.covered, \
                     k.kept * e.scaled_error + excluded.scaled_error, k.kept * e.naive_error + excluded.naive_error, excluded.last_at \
              FROM (SELECT o.old, o.old::int * pg_catalog.power($1, excluded.buckets) AS kept \
                    FROM (SELECT e.resolution_s = excluded.resolution_s AS old) o) k)",
        &[KEPT.into()],
    )?;
    spi::run(
        "DELETE FROM foreshard.forecast_due WHERE at + pg_catalog.make_interval(secs => 3.0 * resolution_s + 60) < pg_catalog.now()",
        &[],
    )?;
    Ok(())
}

/// How much of what came to each slot was covered, by forecasts of buckets of one length.
pub fn coverage(resolution_s: i32) -> PgResult<HashMap<i64, Coverage>> {
    let rows = spi::rows(
        "SELECT slot_id, sum(weight), sum(covered), sum(scaled_error), sum(naive_error) FROM foreshard.forecast_error \
         WHERE resolution_s = $1 AND lead = ANY ($2) GROUP BY 1",
        &[resolution_s.into(), coverage::LEADS.map(|lead| lead as i32).to_vec().into()],
        |row| {
            let (weight, covered) = (row.need(2)?, row.need(3)?);
            Ok((row.need(1)?, Coverage { weight, covered, error: row.need(4)?, naive_error: row.need(5)? }))
        },
    )?;
    Ok(rows.into_iter().collect())
}

/// Forgets how good forecasts of a slot were, and what was forecast: its load is not what it was, because another's has
/// been added to it.
pub fn forget(slot_id: i64) -> PgResult<()> {
    for table in ["forecast_due", "forecast_error"] {
        spi::run(&format!("DELETE FROM foreshard.{table} WHERE slot_id = $1"), &[slot_id.into()])?;
    }
    Ok(())
}
