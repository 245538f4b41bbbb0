//! What was done upon a recommendation, and how it stands.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::JsonB;

/// Remembers of changes that were just filed upon which of the present recommendations that was.
pub fn link(moves: &[i64], action: &str) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move m SET recommendation_id = r.recommendation_id, reason = r.reason FROM foreshard.recommendation r \
         WHERE m.move_id = ANY ($1) AND r.slot_id = m.slot_id AND r.action = $2",
        &[moves.to_vec().into(), action.into()],
    )?;
    Ok(())
}

/// Writes down, for moves that nobody asked for, upon which recommendation each was filed.
pub fn record_auto(moves: &[i64]) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.journal (event, move_id, slot_id, detail) \
         SELECT 'auto', m.move_id, m.slot_id, pg_catalog.jsonb_build_object('recommendation_id', m.recommendation_id, \
                'from', f.shard_name, 'to', t.shard_name, 'reason', m.reason, 'confidence', r.confidence, 'benefit', r.benefit, \
                'foreseen', r.foreseen, 'overload_at', r.overload_at, 'request_id', m.request_id) \
         FROM foreshard.move m JOIN foreshard.shard f ON f.shard_id = m.from_shard JOIN foreshard.shard t ON t.shard_id = m.to_shard \
         LEFT JOIN foreshard.recommendation r USING (recommendation_id) WHERE m.move_id = ANY ($1) ORDER BY m.move_id",
        &[moves.to_vec().into()],
    )?;
    Ok(())
}

/// The move that was made upon a recommendation.
pub struct Act {
    /// The move.
    pub move_id: i64,
    /// move, split, merge or place.
    pub kind: String,
    /// Its slot.
    pub slot_id: i64,
    /// Of a split or merge: the other slot.
    pub other_slot: Option<i64>,
    /// Of a placement of keys: where they were.
    pub former: Option<serde_json::Value>,
    /// Name of its phase.
    pub phase: String,
    /// It has ended.
    pub finished: bool,
    /// Name of the shard the slot came from.
    pub from: String,
    /// Name of the shard the slot went to.
    pub to: String,
    /// Name of the shard the slot is on now.
    pub now_on: String,
    /// It was undone already.
    pub undone: bool,
    /// The slot was split after it.
    pub split_since: bool,
}

/// The newest move made upon a recommendation; None: nothing was, or it is long ago.
pub fn of(recommendation_id: i64) -> PgResult<Option<Act>> {
    let found = spi::rows(
        "SELECT m.move_id, m.slot_id, m.phase, m.finished, f.shard_name::text, t.shard_name::text, n.shard_name::text, m.undone_at IS NOT NULL, \
                EXISTS (SELECT FROM foreshard.move x WHERE x.slot_id = m.slot_id AND x.move_id > m.move_id AND x.kind = 'split' \
                        AND x.swapped_at IS NOT NULL), m.kind, \
                coalesce(m.other_slot, (SELECT p.slot_id FROM foreshard.move_part p WHERE p.move_id = m.move_id AND m.kind = 'split' AND p.part = 1)), \
                m.former \
         FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard f ON f.shard_id = m.from_shard \
         JOIN foreshard.shard t ON t.shard_id = m.to_shard JOIN foreshard.shard n ON n.shard_id = s.shard_id \
         WHERE m.recommendation_id = $1 ORDER BY 1 DESC LIMIT 1",
        &[recommendation_id.into()],
        |row| {
            Ok(Act {
                move_id: row.need(1)?,
                slot_id: row.need(2)?,
                phase: row.need(3)?,
                finished: row.need(4)?,
                from: row.need(5)?,
                to: row.need(6)?,
                now_on: row.need(7)?,
                undone: row.need(8)?,
                split_since: row.need(9)?,
                kind: row.need(10)?,
                other_slot: row.get(11)?,
                former: row.get::<JsonB>(12)?.map(|former| former.0),
            })
        },
    )?;
    Ok(found.into_iter().next())
}

/// Remembers that a move was undone.
pub fn set_undone(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET undone_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Says of a move why it was made.
pub fn set_reason(move_id: i64, reason: &str) -> PgResult<()> {
    spi::run("UPDATE foreshard.move SET reason = $2 WHERE move_id = $1", &[move_id.into(), reason.into()])?;
    Ok(())
}
