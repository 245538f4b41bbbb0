//! Which moves want a carrier.

use super::{moves, prepared};
use crate::pg::report::PgResult;
use crate::pg::spi;

/// Moves that should have a carrier and have none, at most `limit`; those under way first. While an old copy
/// is only kept, nothing is to be done.
pub fn without_carrier(limit: i64) -> PgResult<Vec<i64>> {
    spi::rows(
        "SELECT m.move_id FROM foreshard.move m WHERE NOT m.finished AND m.partner_of IS NULL \
           AND (NOT m.paused OR m.cancel_requested OR m.phase = ANY ($2)) \
           AND NOT (m.phase = 'watch' AND NOT m.rollback_requested AND NOT m.cancel_requested \
                    AND m.swapped_at > pg_catalog.clock_timestamp() - pg_catalog.current_setting('foreshard.rollback_window')::interval) \
           AND NOT (m.phase = 'prepared' AND m.prepare AND NOT m.cancel_requested \
                    AND coalesce(m.checked_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => CASE WHEN m.way_back_of IS NULL THEN $3 ELSE $4 END), false)) \
           AND NOT ((m.phase = 'watch' OR m.phase IN ('preflight', 'copy') AND NOT m.cancel_requested) AND EXISTS (SELECT FROM foreshard.citus_shard t WHERE t.slot_id = m.slot_id) \
                    AND (EXISTS (SELECT FROM foreshard.citus_cluster k WHERE k.others_move IS NOT NULL) \
                         OR EXISTS (SELECT FROM foreshard.shard h JOIN foreshard.node n USING (node_name) WHERE h.shard_id IN (m.from_shard, m.to_shard) AND n.state = 'down'))) \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l \
             WHERE l.locktype = 'object' AND l.classid = 'foreshard.move'::regclass AND l.objid = m.move_id::int8::oid \
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())) \
         ORDER BY m.started_at NULLS LAST, m.move_id LIMIT $1",
        &[
            limit.into(),
            moves::unpausable().into(),
            prepared::check_every_s(false).into(),
            prepared::check_every_s(true).into(),
        ],
        |row| row.need::<i64>(1),
    )
}
