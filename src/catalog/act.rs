//! What was done upon a recommendation, and how it stands.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::JsonB;

/// Writes down, for moves that nobody asked for, upon which recommendation each was filed.
pub fn record_auto(moves: &[i64]) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.journal (event, move_id, slot_id, detail) \
         SELECT 'auto', m.move_id, m.slot_id, pg_catalog.jsonb_build_object('recommendation_id', m.recommendation_id, 'kind', m.kind, \
                'from', f.shard_name, 'to', t.shard_name, 'reason', m.reason, 'confidence', r.confidence, 'benefit', r.benefit, \
                'foreseen', r.foreseen, 'overload_at', r.overload_at, 'request_id', m.request_id) \
         FROM foreshard.move m JOIN foreshard.shard f ON f.shard_id = m.from_shard JOIN foreshard.shard t ON t.shard_id = m.to_shard \
         LEFT JOIN foreshard.recommendation r USING (recommendation_id) WHERE m.move_id = ANY ($1) ORDER BY m.move_id",
        &[moves.to_vec().into()],
    )?;
    Ok(())
}

/// Remembers of changes that nobody asked for, just filed, upon which recommendation each was, and writes it down. A
/// split that was prepared upon one and goes on upon another belongs to the first. `key`: the one that it is about, if
/// it is about one; a slot may have several such.
pub fn attach(moves: &[i64], action: &str, key: Option<&str>) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move m SET recommendation_id = r.recommendation_id, reason = r.reason \
         FROM (SELECT n.move_id, max(q.recommendation_id) AS newest FROM foreshard.move n JOIN foreshard.recommendation q \
                   ON q.slot_id IN (n.slot_id, n.other_slot) AND q.action = $2 \
                  AND ($3::text IS NULL OR q.keys = pg_catalog.jsonb_build_array($3::text)) \
               WHERE n.move_id = ANY ($1) AND n.recommendation_id IS NULL GROUP BY 1) f \
         JOIN foreshard.recommendation r ON r.recommendation_id = f.newest WHERE m.move_id = f.move_id",
        &[moves.to_vec().into(), action.into(), key.into()],
    )?;
    record_auto(moves)
}

/// Whether a move `m` is undone, or about to be: somebody asked for it, and what was to undo it has not been given up. A
/// move whose own way back was lost goes on to its end.
pub const IS_UNDONE: &str = "(m.undone_at IS NOT NULL AND CASE WHEN m.undone_by = m.move_id THEN m.phase NOT IN ('retire', 'done') \
    ELSE coalesce((SELECT u.phase NOT IN ('revert', 'revert_failed', 'cancelled', 'failed') FROM foreshard.move u WHERE u.move_id = m.undone_by), true) END)";

/// What was done upon a recommendation.
pub struct Act {
    /// The move.
    pub move_id: i64,
    /// Its slot.
    pub slot_id: i64,
    /// `move`, `split`, `merge` or `place`.
    pub kind: String,
    /// Of a placement of keys: where they were, those aside that were placed again.
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
    /// What it made is no longer as it made it: of a move, the slot was divided or merged; of a placement, every key of
    /// it was placed again. Keys whose slot or list merely moved are brought back from wherever they are.
    pub changed_since: bool,
    /// Of a merge: name of the shard that the other slot came from.
    pub other_from: Option<String>,
}

/// The newest move made upon a recommendation; None: nothing was, or it is long ago.
pub fn of(recommendation_id: i64) -> PgResult<Option<Act>> {
    let found = spi::rows(
        &format!(
            "SELECT m.move_id, m.slot_id, m.kind, m.phase, m.finished, f.shard_name::text, t.shard_name::text, n.shard_name::text, {IS_UNDONE}, \
                    CASE WHEN m.kind = 'move' \
                         THEN EXISTS (SELECT FROM foreshard.move x WHERE x.slot_id = m.slot_id AND x.move_id > m.move_id AND x.kind <> 'move' \
                                      AND x.swapped_at IS NOT NULL) \
                         WHEN m.kind <> 'place' THEN EXISTS (SELECT FROM foreshard.move_part p LEFT JOIN foreshard.slot q ON q.slot_id = p.slot_id \
                                          AND (q.modulus, q.remainder, q.shard_id) = (p.modulus, p.remainder, p.shard_id) \
                                      WHERE p.move_id = m.move_id AND q.slot_id IS NULL) \
                         ELSE k.former = '{{}}' AND m.former <> '{{}}' END, o.shard_name::text, k.former \
             FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard f ON f.shard_id = m.from_shard \
             JOIN foreshard.shard t ON t.shard_id = m.to_shard JOIN foreshard.shard n ON n.shard_id = s.shard_id \
             LEFT JOIN foreshard.shard o ON o.shard_id = m.other_shard \
             CROSS JOIN LATERAL (SELECT m.former - ARRAY(SELECT key FROM foreshard.move x, pg_catalog.jsonb_object_keys(x.former) key \
                 WHERE x.slot_id = m.slot_id AND x.kind = 'place' AND x.move_id > m.move_id AND x.swapped_at IS NOT NULL AND x.undone_by IS NULL \
                   AND NOT EXISTS (SELECT FROM foreshard.move u WHERE u.undone_by = x.move_id)) AS former) k \
             WHERE m.recommendation_id = $1 ORDER BY 1 DESC LIMIT 1"
        ),
        &[recommendation_id.into()],
        |row| {
            Ok(Act {
                move_id: row.need(1)?,
                slot_id: row.need(2)?,
                kind: row.need(3)?,
                phase: row.need(4)?,
                finished: row.need(5)?,
                from: row.need(6)?,
                to: row.need(7)?,
                now_on: row.need(8)?,
                undone: row.need(9)?,
                changed_since: row.need(10)?,
                other_from: row.get(11)?,
                former: row.get::<JsonB>(12)?.map(|former| former.0),
            })
        },
    )?;
    Ok(found.into_iter().next())
}

/// Remembers that somebody asked to undo a move by another one, or by itself.
pub fn set_undone(move_id: i64, undoing: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET undone_at = pg_catalog.clock_timestamp(), undone_by = $2 WHERE move_id = $1",
        &[move_id.into(), undoing.into()],
    )?;
    Ok(())
}

/// The same of a move that was cancelled or rolled back by hand, if it had been recommended: who takes back what the
/// planner wanted does not want it tried again.
pub fn taken_back(move_id: i64, undoing: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move m SET undone_at = pg_catalog.clock_timestamp(), undone_by = CASE WHEN $1 = $2 THEN m.move_id ELSE $2 END \
         WHERE m.recommendation_id IS NOT NULL AND m.move_id = (SELECT coalesce(o.partner_of, o.move_id) FROM foreshard.move o WHERE o.move_id = $1)",
        &[move_id.into(), undoing.into()],
    )?;
    Ok(())
}

/// Says of a move why it was made.
pub fn set_reason(move_id: i64, reason: &str) -> PgResult<()> {
    spi::run("UPDATE foreshard.move SET reason = $2 WHERE move_id = $1", &[move_id.into(), reason.into()])?;
    Ok(())
}
