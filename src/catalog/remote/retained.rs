//! The old copy of a slot that has moved to, from or between nodes, while there is a way back: what is logged since the
//! swap is brought into it now and then, so that a log does not grow for as long as the copy is kept, and so that it can be said
//! up to when the copy has everything, should the node that holds the slot be lost.

use super::copy;
use crate::catalog::shadow::RelationRow;
use crate::pg::report::PgResult;
use crate::pg::spi;

/// A server of postgres_fdw has one of the shards of a move m.
const IS_FOREIGN: &str = "EXISTS (SELECT FROM foreshard.shard h JOIN foreshard.node n USING (node_name) \
    WHERE h.shard_id IN (m.from_shard, m.to_shard) AND n.engine = 'postgres_fdw')";

/// The node that holds the slot of a move m which has swapped does not answer: then the old copy is all that there is.
pub const HOLDER_IS_DOWN: &str = "(m.kind = 'move' AND m.phase = 'watch' AND EXISTS (SELECT FROM foreshard.shard h JOIN foreshard.node n USING (node_name) \
    WHERE h.shard_id = m.to_shard AND n.engine = 'postgres_fdw' AND n.state = 'down'))";

/// The old copy of a move m is kept, and nothing was brought into it for half a minute.
pub fn refresh_is_due() -> String {
    format!(
        "(m.kind = 'move' AND m.phase = 'watch' AND NOT m.rollback_requested AND NOT m.cancel_requested \
          AND greatest(m.checked_at, m.swapped_at) < pg_catalog.clock_timestamp() - interval '30 s' AND {IS_FOREIGN})"
    )
}

fn holds(condition: &str, move_id: i64) -> PgResult<bool> {
    let query = format!("SELECT {condition} FROM foreshard.move m WHERE m.move_id = $1");
    Ok(spi::one::<bool>(&query, &[move_id.into()])?.unwrap_or(false))
}

/// Whether the node that holds the slot of a move does not answer.
pub fn holder_is_down(move_id: i64) -> PgResult<bool> {
    holds(HOLDER_IS_DOWN, move_id)
}

/// Whether it is time to bring into the old copy of a move what was logged since the swap.
pub fn is_due(move_id: i64) -> PgResult<bool> {
    holds(&refresh_is_due(), move_id)
}

/// Notes that this begins: should it fail, it is tried again half a minute later.
pub fn begin(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET checked_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Notes that everything which was committed before it [began](begin) is in the old copy.
pub fn end(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET caught_up_at = greatest(CASE WHEN pg_catalog.isfinite(caught_up_at) THEN caught_up_at END, checked_at) \
         WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}

/// The old copy that is kept of a slot whose node does not answer.
pub struct Kept {
    /// The move that keeps it.
    pub move_id: i64,
    /// The node that holds the slot.
    pub held_by: String,
    /// Where the copy is.
    pub retained_on: String,
    /// What was committed by then is in it.
    pub complete_to: String,
    /// When the node was found not to answer.
    pub down_since: String,
    /// Time between the two, s.
    pub between_s: f64,
}

impl Kept {
    /// What may be lost with the node, in words.
    pub fn loss(&self) -> String {
        format!(
            "The copy on \"{}\" has everything that was committed by {}. Node \"{}\" was found not to answer at {}, {:.0} s later: what was \
             committed in between, or since then by whoever still reached it, is not in the copy.",
            self.retained_on, self.complete_to, self.held_by, self.down_since, self.between_s
        )
    }
}

/// That of a slot; None: there is none.
pub fn of_slot(slot_id: i64) -> PgResult<Option<Kept>> {
    let found = spi::rows(
        "SELECT c.move_id, c.held_by::text, c.retained_on::text, c.complete_to::text, n.state_since::text, \
             greatest(extract(epoch FROM n.state_since - c.complete_to), 0)::float8 \
         FROM foreshard.retained_copies c JOIN foreshard.node n ON n.node_name = c.held_by \
         WHERE c.slot_id = $1 AND n.state = 'down' AND n.engine = 'postgres_fdw' LIMIT 1",
        &[slot_id.into()],
        |row| {
            Ok(Kept {
                move_id: row.need(1)?,
                held_by: row.need(2)?,
                retained_on: row.need(3)?,
                complete_to: row.need(4)?,
                down_since: row.need(5)?,
                between_s: row.need(6)?,
            })
        },
    )?;
    Ok(found.into_iter().next())
}

/// The node of a slot, and whether it is one that does not answer; None: there is no such slot.
pub fn holder(slot_id: i64) -> PgResult<Option<(String, bool)>> {
    let found = spi::rows(
        "SELECT h.node_name::text, coalesce(n.state = 'down' AND n.engine = 'postgres_fdw', false) \
         FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) LEFT JOIN foreshard.node n USING (node_name) WHERE s.slot_id = $1",
        &[slot_id.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// Notes of what a move has on the node that is lost from when on it may be the only place of what was committed.
pub fn note_lost(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.remote_table r SET lost_from = c.complete_to FROM foreshard.retained_copies c \
         WHERE c.move_id = $1 AND r.partition = c.partition",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Whether a way back was prepared before the swap: a copy on a node logs its changes, a source there takes rows in. Both
/// were made while `foreshard.rollback_window` was not 0, which may have changed since.
pub fn can_return(relations: &[RelationRow]) -> PgResult<bool> {
    for relation in relations {
        let pair = copy::pair(relation)?;
        let changes = pair.copy.remote.as_ref().map(|remote| remote.aid_here("changes"));
        let inbox = pair.source.remote.as_ref().map(|remote| remote.aid_here("inbox"));
        for name in changes.iter().chain(&inbox) {
            let exists = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
            if spi::one::<bool>(exists, &[name.as_str().into()])? != Some(true) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
