//! Rows of what shall become of keys that are used together. They stay while what they say does.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::{JsonB, pg_sys};
use serde_json::Value;

/// Recommendations `r` that are told here, which other plans leave alone.
pub const GATHERED: &str = "(r.action = 'place' OR r.action = 'none' AND r.keys IS NOT NULL)";

/// What may change of a recommendation whose keys do not.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// place, or none.
    pub action: &'static str,
    /// What is copied.
    pub bytes: i64,
    /// Why.
    pub reason: String,
    /// What it is worth.
    pub benefit: f64,
    /// Why not, and what to do.
    pub refusal: Option<(&'static str, &'static str)>,
}

/// Adds one; None: its slot is gone.
pub fn add(
    slot_id: i64,
    shard_id: i32,
    (table, keys): (pg_sys::Oid, Value),
    said: &Said,
    start_s: Option<f64>,
) -> PgResult<Option<i64>> {
    spi::one_mut(
        "INSERT INTO foreshard.recommendation (made_at, action, slot_id, from_shard, bytes, reason, refusal, advice, benefit, start_at, keys, table_oid) \
         SELECT pg_catalog.now(), $1, s.slot_id, s.shard_id, $4, $5, $6, $7, $8, pg_catalog.now() + pg_catalog.make_interval(secs => $9), $10, $11::oid::regclass \
         FROM foreshard.slot s WHERE s.slot_id = $2 AND s.shard_id = $3 RETURNING recommendation_id",
        &[
            said.action.into(),
            slot_id.into(),
            shard_id.into(),
            said.bytes.into(),
            said.reason.as_str().into(),
            said.refusal.map(|refusal| refusal.0).into(),
            said.refusal.map(|refusal| refusal.1).into(),
            said.benefit.into(),
            start_s.into(),
            JsonB(keys).into(),
            table.into(),
        ],
    )
}

/// Says something else of one; its keys are not written again.
pub fn change(recommendation_id: i64, said: &Said, start_s: Option<f64>) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.recommendation SET made_at = pg_catalog.now(), action = $2, bytes = $3, reason = $4, refusal = $5, advice = $6, benefit = $7, \
             start_at = pg_catalog.now() + pg_catalog.make_interval(secs => $8) WHERE recommendation_id = $1",
        &[
            recommendation_id.into(),
            said.action.into(),
            said.bytes.into(),
            said.reason.as_str().into(),
            said.refusal.map(|refusal| refusal.0).into(),
            said.refusal.map(|refusal| refusal.1).into(),
            said.benefit.into(),
            start_s.into(),
        ],
    )?;
    Ok(())
}

/// Those of some recommendations that are still there.
pub fn present(recommendations: &[i64]) -> PgResult<Vec<i64>> {
    spi::rows(
        "SELECT recommendation_id FROM foreshard.recommendation WHERE recommendation_id = ANY ($1)",
        &[recommendations.to_vec().into()],
        |row| row.need(1),
    )
}

/// Forgets all but these.
pub fn keep_only(recommendations: &[i64]) -> PgResult<()> {
    spi::run(
        &format!(
            "DELETE FROM foreshard.recommendation r WHERE {GATHERED} AND r.recommendation_id <> ALL ($1)"
        ),
        &[recommendations.to_vec().into()],
    )?;
    Ok(())
}

/// Partitions that placements of keys under way will add to each table of a slot's group: room that is taken already.
pub fn coming_lists(slot_id: i64) -> PgResult<i64> {
    let more = spi::one::<i64>(
        "SELECT sum(greatest(q.made - q.taken, 0))::int8 FROM foreshard.slot s JOIN foreshard.slot o USING (group_id) \
         JOIN LATERAL (SELECT pg_catalog.cardinality(m.guests) AS taken, \
                (SELECT count(*) FROM foreshard.move_part p WHERE p.move_id = m.move_id AND p.keys IS NOT NULL) AS made \
             FROM foreshard.move m WHERE m.slot_id = o.slot_id AND m.kind = 'place' AND NOT m.finished AND m.swapped_at IS NULL) q ON true \
         WHERE s.slot_id = $1",
        &[slot_id.into()],
    )?;
    Ok(more.unwrap_or(0))
}
