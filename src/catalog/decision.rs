//! Rows of forecasts and recommendations, and the segments the planner works on.

use super::act::IS_UNDONE;
use super::gathering::GATHERED;
use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::forecast::ForecastPoint;
use foreshard_core::placement::{Plan, Refusal, Step, Timing};
use std::collections::{HashMap, HashSet};

/// A slot as the planner's input knows it.
pub struct SlotRow {
    /// Slot.
    pub slot_id: i64,
    /// Its shard.
    pub shard_id: i32,
    /// Bytes of all its tables with indexes and toast; None: nobody has said so yet of one on a node.
    pub bytes: Option<i64>,
    /// Where a move that is under way takes it; until the cutover its load is still on [`Self::shard_id`]. None: nowhere.
    pub heads_for: Option<i32>,
    /// A move is under way or waiting.
    pub moving: bool,
    /// Seconds since it was last moved, or a move of it failed; None: neither.
    pub rested_s: Option<f64>,
    /// Consecutive readings with an overloaded shard.
    pub hot_buckets: i32,
    /// Colocation group.
    pub group_id: i32,
    /// Heat, cost units/s; 0 when nothing was observed.
    pub heat: f64,
    /// Accesses per second, decayed; 0 when nothing was observed.
    pub accesses_per_s: f64,
    /// It has been observed.
    pub observed: bool,
    /// Somebody undid a recommended move of it less than a day ago.
    pub undone: bool,
    /// Its moves that failed within a day.
    pub failures: i64,
    /// The slot whose keys it lists.
    pub home_slot_id: Option<i64>,
    /// When it was last moved or its keys changed, s since 1970.
    pub changed_at_s: Option<f64>,
    /// None of its tables has a unique index of its own, which foreign tables cannot be part of.
    pub may_leave_server: bool,
    /// It is a slot of a Citus cluster.
    pub is_citus: bool,
    /// Somebody else moves shards of that cluster.
    pub others_move: bool,
}

impl SlotRow {
    /// The shard that plans count it on.
    pub fn planned_shard(&self) -> i32 {
        self.heads_for.unwrap_or(self.shard_id)
    }
}

/// Every slot with at least one partition, or shard of Citus; one of those counts as moving while anybody moves shards there.
pub fn slots() -> PgResult<Vec<SlotRow>> {
    slots_of(None)
}

/// The same of one slot and its lists of chosen keys.
pub fn slots_of(slot_id: Option<i64>) -> PgResult<Vec<SlotRow>> {
    spi::rows(
        &format!(
            "SELECT s.slot_id, s.shard_id, CASE WHEN count(p.bytes) = count(*) THEN sum(p.bytes)::int8 END, \
                s.slot_id IN (SELECT pg_catalog.unnest(m.guests || m.slot_id) FROM foreshard.move m WHERE NOT m.finished) OR bool_or(p.others_move), \
                extract(epoch FROM pg_catalog.clock_timestamp() - greatest(s.last_moved_at, \
                    (SELECT max(m.finished_at) FROM foreshard.move m WHERE m.slot_id = s.slot_id AND m.phase = 'failed')))::float8, \
                coalesce(max(h.hot_buckets), 0), \
                s.group_id, coalesce(max(h.heat), 0), \
                EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND m.undone_at > pg_catalog.now() - interval '1 day' AND {IS_UNDONE}), \
                count(h.heat) > 0, \
                s.home_slot_id IS NULL AND NOT EXISTS (SELECT FROM foreshard.slot_partition x JOIN pg_catalog.pg_index i ON i.indrelid = x.table_oid AND i.indisunique \
                        WHERE x.slot_id = s.slot_id), \
                s.home_slot_id, extract(epoch FROM s.last_moved_at)::float8, s.hash_from IS NOT NULL, \
                (SELECT m.to_shard FROM foreshard.move m WHERE m.slot_id = s.slot_id AND NOT m.finished AND m.kind = 'move' AND NOT m.prepare \
                    AND NOT m.paused AND NOT m.cancel_requested AND m.swapped_at IS NULL AND m.phase NOT LIKE 'revert%'), \
                bool_or(p.others_move), \
                (SELECT count(*) FROM foreshard.move m WHERE m.slot_id = s.slot_id AND m.phase = 'failed' \
                    AND m.finished_at > pg_catalog.clock_timestamp() - interval '1 day'), \
                coalesce(max(h.access_score), 0) \
         FROM foreshard.slot s JOIN (SELECT l.slot_id, foreshard.total_bytes(l.partition) + CASE WHEN c.relkind = 'f' THEN r.bytes ELSE coalesce(r.bytes, 0) END AS bytes, false AS others_move \
                 FROM foreshard.slot_partition l JOIN pg_catalog.pg_class c ON c.oid = l.partition LEFT JOIN foreshard.remote_table r ON r.partition = c.oid \
             UNION ALL SELECT t.slot_id, t.bytes, EXISTS (SELECT FROM foreshard.citus_cluster k WHERE k.others_move IS NOT NULL) FROM foreshard.citus_shard t) p USING (slot_id) \
         LEFT JOIN foreshard.slot_heat h USING (slot_id) \
         WHERE $1::int8 IS NULL OR s.slot_id = $1 OR s.home_slot_id = $1 GROUP BY s.slot_id ORDER BY 1"
        ),
        &[slot_id.into()],
        |row| {
            Ok(SlotRow {
                slot_id: row.need(1)?,
                shard_id: row.need(2)?,
                bytes: row.get(3)?,
                moving: row.need(4)?,
                rested_s: row.get(5)?,
                hot_buckets: row.need(6)?,
                group_id: row.need(7)?,
                heat: row.need(8)?,
                undone: row.need(9)?,
                observed: row.need(10)?,
                may_leave_server: row.need(11)?,
                home_slot_id: row.get(12)?,
                changed_at_s: row.get(13)?,
                is_citus: row.need(14)?,
                heads_for: row.get(15)?,
                others_move: row.need(16)?,
                failures: row.need(17)?,
                accesses_per_s: row.need(18)?,
            })
        },
    )
}

/// One slot's forecast as stored.
pub struct SlotForecast {
    /// Slot.
    pub slot_id: i64,
    /// Points, one per lead.
    pub points: Vec<ForecastPoint>,
    /// Model's name.
    pub model: String,
    /// Known buckets it was fitted on.
    pub history_buckets: i32,
    /// Mean absolute error of its back-test, cost units/s.
    pub mae: f64,
}

/// Stores forecasts in place of all others. What is forecast as before stays as it is, with the time at which that was first so:
/// most plans are made within the bucket that the last one knew already, and a week ahead of a thousand slots is a lot to write.
pub fn store_forecasts(forecasts: &[SlotForecast], interval_level: f64) -> PgResult<()> {
    let stored = stored(interval_level)?;
    let changed: Vec<&SlotForecast> =
        forecasts.iter().filter(|f| stored.get(&f.slot_id) != Some(&Some(form(f)))).collect();
    let kept: HashSet<i64> = forecasts.iter().map(|f| f.slot_id).collect();
    let written: Vec<i64> = changed.iter().map(|f| f.slot_id).collect();
    if !written.is_empty() || stored.keys().any(|slot| !kept.contains(slot)) {
        let kept: Vec<i64> = kept.into_iter().collect();
        spi::run(
            "DELETE FROM foreshard.forecast f WHERE f.slot_id IN (SELECT pg_catalog.unnest($1)) \
                OR NOT EXISTS (SELECT FROM pg_catalog.unnest($2) AS q (slot_id) WHERE q.slot_id = f.slot_id)",
            &[written.into(), kept.into()],
        )?;
    }
    for f in changed {
        let [at, mean, lower, upper] = columns(f);
        spi::run(
            "INSERT INTO foreshard.forecast (slot_id, at, cost_units_per_s, lower, upper, interval_level, model, history_buckets, mae, made_at) \
             SELECT $1, pg_catalog.to_timestamp(a), m, l, u, $6, $7, $8, $9, pg_catalog.now() \
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5)) AS q (a, m, l, u)",
            &[
                f.slot_id.into(),
                at.into(),
                mean.into(),
                lower.into(),
                upper.into(),
                interval_level.into(),
                f.model.as_str().into(),
                f.history_buckets.into(),
                f.mae.into(),
            ],
        )?;
    }
    Ok(())
}

/// The forecasts that are stored, with intervals of this level. Of their medians nothing is: the means stand for them.
pub fn forecasts(interval_level: f64) -> PgResult<Vec<SlotForecast>> {
    spi::rows(
        "SELECT slot_id, model, history_buckets, coalesce(mae, 'NaN'), pg_catalog.array_agg(extract(epoch FROM at)::int8 ORDER BY at), \
             pg_catalog.array_agg(coalesce(cost_units_per_s, 'NaN') ORDER BY at), pg_catalog.array_agg(coalesce(lower, 'NaN') ORDER BY at), \
             pg_catalog.array_agg(coalesce(upper, 'NaN') ORDER BY at) \
         FROM foreshard.forecast WHERE interval_level = $1 GROUP BY slot_id, model, history_buckets, mae ORDER BY 1",
        &[interval_level.into()],
        |row| {
            let at = row.need::<Vec<i64>>(5)?;
            let (means, lower, upper) =
                (row.need::<Vec<f64>>(6)?, row.need::<Vec<f64>>(7)?, row.need::<Vec<f64>>(8)?);
            let points = at.into_iter().zip(means).zip(lower.into_iter().zip(upper));
            let point =
                |((at_s, mean), (lower, upper))| ForecastPoint { at_s, mean, median: mean, lower, upper };
            Ok(SlotForecast {
                slot_id: row.need(1)?,
                points: points.map(point).collect(),
                model: row.need(2)?,
                history_buckets: row.need(3)?,
                mae: row.need(4)?,
            })
        },
    )
}

/// A forecast as it is compared with what is stored: bits of all its numbers, and the rest.
type Form = (Vec<u64>, String, i32);

/// Starts of buckets, means, lower and upper bounds.
fn columns(f: &SlotForecast) -> [Vec<f64>; 4] {
    let of: [fn(&ForecastPoint) -> f64; 4] = [|p| p.at_s as f64, |p| p.mean, |p| p.lower, |p| p.upper];
    of.map(|of| f.points.iter().map(of).collect())
}

fn form(f: &SlotForecast) -> Form {
    let numbers = columns(f).into_iter().flatten().chain([f.mae]).map(f64::to_bits).collect();
    (numbers, f.model.clone(), f.history_buckets)
}

/// What is stored, by slot; None of one that is not all of one forecast with these intervals.
fn stored(interval_level: f64) -> PgResult<HashMap<i64, Option<Form>>> {
    let rows = spi::rows(
        "SELECT slot_id, pg_catalog.array_agg(extract(epoch FROM at)::float8 ORDER BY at) || pg_catalog.array_agg(coalesce(cost_units_per_s, 'NaN') ORDER BY at) \
             || pg_catalog.array_agg(coalesce(lower, 'NaN') ORDER BY at) || pg_catalog.array_agg(coalesce(upper, 'NaN') ORDER BY at) || coalesce(mae, 'NaN'), \
             model, history_buckets, interval_level = $1 \
         FROM foreshard.forecast GROUP BY slot_id, model, history_buckets, mae, interval_level",
        &[interval_level.into()],
        |row| {
            let numbers = row.need::<Vec<f64>>(2)?.into_iter().map(f64::to_bits).collect();
            let form = (numbers, row.need::<String>(3)?, row.need::<i32>(4)?);
            Ok((row.need::<i64>(1)?, row.need::<bool>(5)?.then_some(form)))
        },
    )?;
    let mut stored = HashMap::new();
    for (slot_id, form) in rows {
        // Two forecasts of one slot are none.
        stored.entry(slot_id).and_modify(|known| *known = None).or_insert(form);
    }
    Ok(stored)
}

/// Machine-readable reason and advice for a step that is not confident enough to be taken.
pub const LOW_CONFIDENCE: (&str, &str) = (
    "low_confidence",
    "Wait for more load history, lower foreshard.min_confidence, or use foreshard.move_slot().",
);

/// Reason and advice for a confident step whose time has not come.
pub const SCHEDULED: (&str, &str) =
    ("scheduled", "Wait: it begins at start_at, when little else runs; foreshard.move_slot() does not wait.");

/// Reason and advice for a step that is only foreseen, by a foresight that is not trusted.
pub const UNTRUSTED: (&str, &str) = (
    "untrusted_foresight",
    "Look at foreshard.calibration and foreshard.forecast_errors; the auto mode acts on what is only foreseen once enough such steps have paid, while forecasts cover what comes.",
);

/// Reason and advice for a step that counts on one that is not taken.
pub const DEPENDS: (&str, &str) =
    ("depends", "Wait: it counts on an earlier step with a shard of its own, which is not taken yet.");

/// Reason and advice for a step that must wait for the hours in which moves may begin.
pub const OUTSIDE_WINDOW: (&str, &str) =
    ("outside_window", "Wait: foreshard.move_window opens at start_at; foreshard.move_slot() does not wait.");

/// Reason and advice for a step with a slot of which somebody undid the last one.
pub const UNDONE: (&str, &str) = (
    "undone",
    "An earlier recommendation was undone; for a day nobody but a person moves this slot: foreshard.move_slot().",
);

/// Reason and advice for a division of a slot that is about to leave its shard.
pub const DRAINING: (&str, &str) = (
    "draining",
    "Wait: its shard is being emptied, and the slot is divided where it goes; foreshard.split_slot() does not wait.",
);

/// Reason and advice for a division that cannot be taken back.
pub const IRREVERSIBLE: (&str, &str) = (
    "irreversible",
    "Citus brings nothing together again, so a person decides: foreshard.isolate_key() or foreshard.split_slot() does it.",
);

/// What is said of a step of a plan.
pub struct Verdict {
    /// The confidence to state.
    pub stated: f64,
    /// It relieves a shard in distress: nothing that is under way holds it up.
    pub urgent: bool,
    /// When to begin.
    pub timing: Timing,
    /// The same in seconds from now; None: not within days.
    pub start_s: Option<f64>,
    /// Why it is not taken now; None: it may be.
    pub refusal: Option<(&'static str, &'static str)>,
}

/// Replaces the stored recommendations, those of keys used together aside, by a plan's steps, with a verdict each, and refusals; a lead is `lead_s`
/// long.
pub fn store_plan(plan: &Plan, slots: &[SlotRow], verdicts: &[Verdict], lead_s: i32) -> PgResult<()> {
    spi::run(&format!("DELETE FROM foreshard.recommendation r WHERE NOT {GATHERED}"), &[])?;
    for (step, verdict) in plan.steps.iter().zip(verdicts) {
        store_step(step, slots, verdict, lead_s)?;
    }
    for refusal in &plan.refusals {
        store_refusal(refusal, slots)?;
    }
    Ok(())
}

/// Bytes of a slot; None: unknown.
pub fn bytes_of(slot_id: i64, slots: &[SlotRow]) -> Option<i64> {
    slots.iter().find(|s| s.slot_id == slot_id).and_then(|s| s.bytes)
}

fn store_step(step: &Step, slots: &[SlotRow], verdict: &Verdict, lead_s: i32) -> PgResult<()> {
    let after_s = |lead: usize| f64::from(lead_s) * lead as f64;
    spi::run(
        "INSERT INTO foreshard.recommendation (made_at, action, slot_id, from_shard, to_shard, confidence, benefit, bytes, \
             imbalance_before, imbalance_after, reason, refusal, advice, foreseen, raw_confidence, start_at, overload_at, timing) \
         VALUES (pg_catalog.now(), 'move', $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
             pg_catalog.now() + pg_catalog.make_interval(secs => $14), pg_catalog.now() + pg_catalog.make_interval(secs => $15), $16)",
        &[
            step.segment.into(),
            step.from.into(),
            step.to.into(),
            verdict.stated.into(),
            step.benefit.into(),
            bytes_of(step.segment, slots).into(),
            step.peak_before.into(),
            step.peak_after.into(),
            step.reason.as_str().into(),
            verdict.refusal.map(|r| r.0).into(),
            verdict.refusal.map(|r| r.1).into(),
            step.foreseen.into(),
            step.confidence.into(),
            verdict.start_s.into(),
            verdict.timing.overload_lead.map(after_s).into(),
            verdict.timing.start.as_str().into(),
        ],
    )?;
    Ok(())
}

fn store_refusal(refusal: &Refusal, slots: &[SlotRow]) -> PgResult<()> {
    let shard = slots.iter().find(|s| s.slot_id == refusal.segment).map(|s| s.shard_id);
    spi::run(
        "INSERT INTO foreshard.recommendation (made_at, action, slot_id, from_shard, bytes, refusal, advice) \
         VALUES (pg_catalog.now(), 'none', $1, $2, $3, $4, $5)",
        &[
            refusal.segment.into(),
            shard.into(),
            bytes_of(refusal.segment, slots).into(),
            refusal.reason.as_str().into(),
            refusal.reason.advice().into(),
        ],
    )?;
    Ok(())
}

/// Median bytes per second of the last moves, waits of the canary left out; None: none has finished.
pub fn move_rate() -> PgResult<Option<f64>> {
    spi::one::<f64>(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY q.bytes_per_s) FROM ( \
             SELECT m.bytes_copied / greatest(extract(epoch FROM v.at - m.started_at), 0.1)::float8 AS bytes_per_s \
             FROM foreshard.move m JOIN LATERAL ( \
                 SELECT min(j.at) AS at FROM foreshard.journal j \
                 WHERE j.move_id = m.move_id AND j.event = 'phase' AND j.detail->>'from' = 'verify' \
                   AND j.detail->>'to' IN ('canary', 'cutover')) v ON v.at IS NOT NULL \
             WHERE m.phase = 'done' AND m.bytes_copied > 1048576 ORDER BY m.move_id DESC LIMIT 20) q",
        &[],
    )
}

/// (Slot, colocation group) of those of some slots that exist.
pub fn groups_of(slots: &[i64]) -> PgResult<Vec<(i64, i32)>> {
    spi::rows(
        "SELECT slot_id, group_id FROM foreshard.slot WHERE slot_id = ANY ($1) ORDER BY 1",
        &[slots.to_vec().into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}
