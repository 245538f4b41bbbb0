//! What was done upon a recommendation, and how it stands.

use crate::pg::report::PgResult;
use crate::pg::spi;

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
    /// Its slot.
    pub slot_id: i64,
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
                        AND x.swapped_at IS NOT NULL) \
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
