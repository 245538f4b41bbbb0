//! How a slot came to be where it is.

use super::act::IS_UNDONE;
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;
use serde::Serialize;

/// Moves that are told, the newest ones.
const TOLD: i64 = 5;

/// A slot and where it was put when it was made.
#[derive(Serialize)]
pub struct Story {
    /// Slot.
    pub slot_id: i64,
    /// Colocation group.
    pub group_id: i32,
    /// Modulus of its hash.
    pub modulus: i32,
    /// Remainder.
    pub remainder: i32,
    /// Name of the shard it was born on; None: not remembered.
    pub born_on: Option<String>,
    /// When it was made.
    pub born_at: Option<String>,
    /// The split that made it; None: the ring placed it, or that is not remembered.
    pub born_by_move: Option<i64>,
    /// How it was made is known.
    pub birth_known: bool,
    /// When it was last moved or made; None: never since the ring placed it.
    pub last_moved_at: Option<String>,
    /// Its last moves, the newest first.
    pub moves: Vec<Past>,
}

/// A move of a slot.
#[derive(Serialize)]
pub struct Past {
    /// The move.
    pub move_id: i64,
    /// `move`, `split`, `merge` or `place`.
    pub kind: String,
    /// Name of the shard it left.
    pub from: String,
    /// Name of the shard it went to.
    pub to: String,
    /// Name of its phase.
    pub phase: String,
    /// When the slot changed its place, else when the move was asked for.
    pub at: String,
    /// Who asked for it; `foreshard`: the auto mode.
    pub requested_by: String,
    /// The recommendation it was made upon.
    pub recommendation_id: Option<i64>,
    /// The confidence it was requested with.
    pub confidence: Option<f64>,
    /// Why.
    pub reason: Option<String>,
    /// When somebody undid it.
    pub undone_at: Option<String>,
}

/// The story of a partition's slot; None: the partition is not managed.
pub fn of_partition(partition: pg_sys::Oid) -> PgResult<Option<Story>> {
    let sql = "SELECT slot_id FROM foreshard.slot_partition WHERE partition = $1 LIMIT 1";
    match spi::one::<i64>(sql, &[partition.into()])? {
        Some(slot_id) => of_slot(slot_id),
        None => Ok(None),
    }
}

/// The story of a slot; None: there is no such.
pub fn of_slot(slot_id: i64) -> PgResult<Option<Story>> {
    let found = spi::rows(
        "SELECT s.slot_id, s.group_id, s.modulus, s.remainder, b.shard_name::text, \
                pg_catalog.to_char(coalesce(x.swapped_at, CASE WHEN k.known THEN g.created_at END), 'YYYY-MM-DD\"T\"HH24:MI:SSOF'), x.move_id, \
                x.move_id IS NOT NULL OR k.known, pg_catalog.to_char(s.last_moved_at, 'YYYY-MM-DD\"T\"HH24:MI:SSOF') \
         FROM foreshard.slot s JOIN foreshard.colocation_group g USING (group_id) \
         LEFT JOIN foreshard.shard b ON b.shard_id = s.born_shard \
         LEFT JOIN (SELECT r.slot_id, m.move_id, m.swapped_at FROM foreshard.move_part r JOIN foreshard.move m USING (move_id) \
                    WHERE r.part > 0 AND m.swapped_at IS NOT NULL) x ON x.slot_id = s.slot_id \
         CROSS JOIN LATERAL (SELECT s.home_slot_id IS NULL AND s.hash_from IS NULL AND (s.modulus = g.slot_count OR EXISTS ( \
             SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND m.kind IN ('split', 'merge') AND m.swapped_at IS NOT NULL)) AS known) k \
         WHERE s.slot_id = $1",
        &[slot_id.into()],
        |row| {
            Ok(Story {
                slot_id: row.need(1)?,
                group_id: row.need(2)?,
                modulus: row.need(3)?,
                remainder: row.need(4)?,
                born_on: row.get(5)?,
                born_at: row.get(6)?,
                born_by_move: row.get(7)?,
                birth_known: row.need(8)?,
                last_moved_at: row.get(9)?,
                moves: Vec::new(),
            })
        },
    )?;
    let Some(story) = found.into_iter().next() else { return Ok(None) };
    let moves = moves_of(story.slot_id)?;
    Ok(Some(Story { moves, ..story }))
}

fn moves_of(slot_id: i64) -> PgResult<Vec<Past>> {
    spi::rows(
        &format!(
            "SELECT m.move_id, m.kind, f.shard_name::text, t.shard_name::text, m.phase, \
                pg_catalog.to_char(coalesce(m.swapped_at, r.requested_at), 'YYYY-MM-DD\"T\"HH24:MI:SSOF'), r.requested_by::text, \
                m.recommendation_id, r.confidence, m.reason, \
                CASE WHEN {IS_UNDONE} THEN pg_catalog.to_char(m.undone_at, 'YYYY-MM-DD\"T\"HH24:MI:SSOF') END \
         FROM foreshard.move m JOIN foreshard.resharding_request r USING (request_id) JOIN foreshard.shard f ON f.shard_id = m.from_shard \
         JOIN foreshard.shard t ON t.shard_id = m.to_shard WHERE m.slot_id = $1 ORDER BY 1 DESC LIMIT $2"
        ),
        &[slot_id.into(), TOLD.into()],
        |row| {
            Ok(Past {
                move_id: row.need(1)?,
                kind: row.need(2)?,
                from: row.need(3)?,
                to: row.need(4)?,
                phase: row.need(5)?,
                at: row.need(6)?,
                requested_by: row.need(7)?,
                recommendation_id: row.get(8)?,
                confidence: row.get(9)?,
                reason: row.get(10)?,
                undone_at: row.get(11)?,
            })
        },
    )
}
