//! What was recommended and what became of it: the rows behind calibrated confidence.

use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::calibration::Judged;

/// Outcomes that are kept per group.
const KEPT: i64 = 400;

/// A step whose outcome will be looked at.
pub struct NewOutcome {
    /// Slot to move.
    pub slot_id: i64,
    /// Shard it was to leave.
    pub from_shard: i32,
    /// Shard it was to go to.
    pub to_shard: i32,
    /// Share of the sampled futures in which it paid.
    pub raw: f64,
    /// Confidence that was stated.
    pub stated: f64,
    /// Other slots on the first shard, the steps before it done.
    pub stay: Vec<i64>,
    /// Slots on the second shard.
    pub there: Vec<i64>,
    /// What the shards can carry: the two, and all that share the load; cost units/s.
    pub capacities: [f64; 3],
    /// Least benefit that pays for the move, cost units/s.
    pub least_gain: f64,
    /// The first shard was draining.
    pub drains: bool,
    /// It was recommended for what was only foreseen.
    pub foreseen: bool,
    /// What it saves of transactions across shards, less what accesses then wait for its node, cost units/s.
    pub joined: f64,
}

/// Notes a step unless one of the slot, as much foreseen as this one, is under way already. `horizon_s` is how long it has to pay.
pub fn note(new: &NewOutcome, horizon_s: i32, resolution_s: i32) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, \
             from_capacity, to_capacity, capacity, least_gain, drains, resolution_s, made_at, due_at, joined, foreseen) \
         SELECT s.group_id, s.slot_id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
                pg_catalog.now(), pg_catalog.now() + pg_catalog.make_interval(secs => $14), $15, $16 \
         FROM foreshard.slot s WHERE s.slot_id = $1 \
           AND NOT EXISTS (SELECT FROM foreshard.outcome o WHERE o.slot_id = $1 AND o.foreseen = $16 AND o.judged_at IS NULL)",
        &[
            new.slot_id.into(),
            new.from_shard.into(),
            new.to_shard.into(),
            new.raw.into(),
            new.stated.into(),
            new.stay.clone().into(),
            new.there.clone().into(),
            new.capacities[0].into(),
            new.capacities[1].into(),
            new.capacities[2].into(),
            new.least_gain.into(),
            new.drains.into(),
            resolution_s.into(),
            f64::from(horizon_s).into(),
            new.joined.into(),
            new.foreseen.into(),
        ],
    )?;
    Ok(())
}

/// A step whose time is over, with the loads that came: per bucket those of the slot, of the others on the
/// shard it was to leave, of those where it was to go, and of all that the same shards can hold (slots of Citus, or others).
pub struct Due {
    /// Row.
    pub outcome_id: i64,
    /// Cost units/s.
    pub loads: Vec<[f64; 4]>,
    /// Buckets that should be known.
    pub buckets: i64,
    /// See [`NewOutcome::capacities`].
    pub capacities: [f64; 3],
    /// See [`NewOutcome::least_gain`].
    pub least_gain: f64,
    /// See [`NewOutcome::drains`].
    pub drains: bool,
    /// See [`NewOutcome::joined`].
    pub joined: f64,
}

/// The steps whose time is over and that are not judged yet, oldest first.
pub fn due(limit: i64) -> PgResult<Vec<Due>> {
    let rows = spi::rows(
        "SELECT outcome_id, from_capacity, to_capacity, capacity, least_gain, drains, \
                greatest(1, floor(extract(epoch FROM due_at - made_at) / resolution_s))::int8, joined \
         FROM foreshard.outcome WHERE judged_at IS NULL \
           AND due_at + pg_catalog.make_interval(secs => resolution_s + 5) < pg_catalog.clock_timestamp() \
         ORDER BY outcome_id LIMIT $1",
        &[limit.into()],
        |row| {
            Ok(Due {
                outcome_id: row.need(1)?,
                loads: Vec::new(),
                capacities: [row.need(2)?, row.need(3)?, row.need(4)?],
                least_gain: row.need(5)?,
                drains: row.need(6)?,
                buckets: row.need(7)?,
                joined: row.need(8)?,
            })
        },
    )?;
    let loads = |outcome_id: i64| {
        spi::rows(
            "SELECT sum(h.cost_units_per_s) FILTER (WHERE h.slot_id = o.slot_id), \
                    sum(h.cost_units_per_s) FILTER (WHERE h.slot_id = ANY (o.stay)), \
                    sum(h.cost_units_per_s) FILTER (WHERE h.slot_id = ANY (o.there)), \
                    sum(h.cost_units_per_s) \
             FROM foreshard.outcome o JOIN foreshard.slot own USING (slot_id) JOIN foreshard.heat_history h \
               ON h.resolution_s = o.resolution_s AND h.bucket_at >= o.made_at AND h.bucket_at < o.due_at \
             JOIN foreshard.slot s ON s.slot_id = h.slot_id AND (s.hash_from IS NULL) = (own.hash_from IS NULL) \
             WHERE o.outcome_id = $1 GROUP BY h.bucket_at \
             HAVING bool_and(h.cost_units_per_s IS NOT NULL) ORDER BY h.bucket_at",
            &[outcome_id.into()],
            |row| {
                let load =
                    |at: usize| Ok::<f64, pgrx::pg_sys::panic::ErrorReport>(row.get(at)?.unwrap_or(0.0));
                Ok([load(1)?, load(2)?, load(3)?, load(4)?])
            },
        )
    };
    rows.into_iter().map(|due| Ok(Due { loads: loads(due.outcome_id)?, ..due })).collect()
}

/// Gives up what was noted by a clock that was ahead: it would never be due, and nothing else of those slots could be noted.
pub fn give_up_future() -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.outcome SET judged_at = pg_catalog.clock_timestamp() \
         WHERE judged_at IS NULL AND made_at > pg_catalog.clock_timestamp() + interval '1 minute'",
        &[],
    )?;
    Ok(())
}

/// What becomes of open outcomes when a slot is divided into `parts`, itself among them, or `others` become part of it: what was
/// predicted of them can no longer be judged, but what was predicted of their neighbours can, by the loads of the parts.
pub fn slots_changed(slot_id: i64, parts: &[i64], others: &[i64]) -> PgResult<()> {
    let mine: Vec<i64> = others.iter().copied().chain([slot_id]).collect();
    spi::run(
        "UPDATE foreshard.outcome SET judged_at = pg_catalog.clock_timestamp() WHERE judged_at IS NULL AND slot_id = ANY ($1)",
        &[mine.clone().into()],
    )?;
    for side in ["stay", "there"] {
        spi::run(
            &format!(
                "UPDATE foreshard.outcome SET {side} = ARRAY(SELECT pg_catalog.unnest({side}) EXCEPT SELECT pg_catalog.unnest($1)) || $2 \
                 WHERE judged_at IS NULL AND {side} && $1"
            ),
            &[mine.clone().into(), parts.to_vec().into()],
        )?;
    }
    Ok(())
}

/// Stores a judgement; None: what came is not known. A step that was taken and swapped back, because statements had become slower, did
/// not pay, whatever the loads say. Of a step that was taken the journal says what was expected of it and
/// what came: `judged` with the move, the confidence that it would save `least_gain`, and what it saved (`gain`, both in cost units per second).
pub fn judge(outcome_id: i64, paid: Option<bool>, gain: Option<f64>) -> PgResult<()> {
    let taken = spi::rows_mut(
        "UPDATE foreshard.outcome o SET judged_at = pg_catalog.now(), gain = $3, \
             paid = $2 AND NOT EXISTS (SELECT FROM foreshard.move m JOIN foreshard.journal j USING (move_id) \
                 WHERE m.slot_id = o.slot_id AND m.to_shard = o.to_shard AND j.event = 'regression' AND m.created_at BETWEEN o.made_at AND o.due_at) \
         WHERE outcome_id = $1 RETURNING slot_id, stated, least_gain, \
             (SELECT max(m.move_id) FROM foreshard.move m WHERE m.slot_id = o.slot_id AND m.to_shard = o.to_shard \
                 AND m.phase = 'done' AND m.created_at BETWEEN o.made_at AND o.due_at), paid",
        &[outcome_id.into(), paid.into(), gain.into()],
        |row| {
            let step = (row.need::<i64>(1)?, row.need::<f64>(2)?, row.need::<f64>(3)?);
            Ok((step, row.get::<i64>(4)?, row.get::<bool>(5)?))
        },
    )?;
    for ((slot_id, confidence, least_gain), move_id, paid) in taken {
        if move_id.is_some() && paid.is_some() {
            let detail = serde_json::json!({"confidence": confidence, "least_gain": least_gain, "gain": gain, "paid": paid});
            super::record_event("judged", move_id, Some(slot_id), detail)?;
        }
    }
    Ok(())
}

/// (Group, outcome) of judged steps, oldest first: those that looked ahead in buckets of the length that the group's newest step did,
/// since who is right about minutes may be wrong about days; and none off a shard that is to be emptied, which pay in any case.
pub fn judged() -> PgResult<Vec<(i32, Judged)>> {
    spi::rows(
        "SELECT group_id, o.raw, o.stated, o.foreseen, o.paid FROM foreshard.outcome o \
         JOIN (SELECT DISTINCT ON (group_id) group_id, resolution_s FROM foreshard.outcome WHERE NOT drains ORDER BY group_id, outcome_id DESC) n \
             USING (group_id, resolution_s) \
         WHERE o.paid IS NOT NULL AND NOT o.drains ORDER BY o.judged_at, o.outcome_id",
        &[],
        |row| {
            let (raw, stated, foreseen) = (row.need(2)?, row.need(3)?, row.need(4)?);
            Ok((row.need(1)?, Judged { raw, stated, foreseen, paid: row.need(5)? }))
        },
    )
}

/// Forgets all but the newest outcomes of each group, and none that is not judged yet.
pub fn expire() -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.outcome o USING ( \
             SELECT outcome_id, pg_catalog.row_number() OVER (PARTITION BY group_id ORDER BY outcome_id DESC) AS age \
             FROM foreshard.outcome WHERE judged_at IS NOT NULL) q WHERE q.outcome_id = o.outcome_id AND q.age > $1",
        &[KEPT.into()],
    )?;
    Ok(())
}

/// Stores what the outcomes of a group say; true when its trust has changed.
pub fn store_trust(group_id: i32, trust: &str, outcomes: i32, expected: f64, paid: f64) -> PgResult<bool> {
    let before = spi::one::<String>(
        "SELECT trust FROM foreshard.group_trust WHERE group_id = $1",
        &[group_id.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.group_trust (group_id, trust, outcomes, stated, paid, since) \
         SELECT $1, $2, $3, $4, $5, pg_catalog.now() \
         WHERE EXISTS (SELECT FROM foreshard.colocation_group WHERE group_id = $1) \
         ON CONFLICT (group_id) DO UPDATE SET trust = excluded.trust, outcomes = excluded.outcomes, \
             stated = excluded.stated, paid = excluded.paid, \
             since = CASE WHEN group_trust.trust = excluded.trust THEN group_trust.since ELSE excluded.since END",
        &[group_id.into(), trust.into(), outcomes.into(), expected.into(), paid.into()],
    )?;
    Ok(before.as_deref() != Some(trust))
}
