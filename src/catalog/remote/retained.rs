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
