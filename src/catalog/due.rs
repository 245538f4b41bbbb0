//! Which moves want a carrier.

use super::remote::retained;
use super::{moves, prepared};
use crate::pg::report::PgResult;
use crate::pg::spi;

/// A move that should have a carrier.
pub struct Due {
    /// The move.
    pub move_id: i64,
    /// What is left of it is short, and somebody waits for it: it goes back or is given up, its old copy goes, or it only
    /// has to switch over. It must not wait behind the copy of another.
    pub is_short: bool,
}

/// What [`Due::is_short`] says, of a move m.
const SHORT: &str = "(m.cancel_requested OR m.rollback_requested OR m.phase = 'prepared' AND NOT m.prepare \
    OR m.phase NOT IN ('preflight', 'capture', 'copy', 'index', 'catch_up', 'mirror', 'verify', 'prepared', 'canary', 'cutover'))";

/// What a move m has to do needs its nodes: all but clearing away, and, once it has swapped, all but to go back while the old
/// copy is kept.
const NEEDS_NODES: &str = "(m.phase IN ('preflight', 'capture', 'copy', 'index', 'catch_up', 'verify', 'cutover') AND NOT m.cancel_requested \
    OR m.phase = 'watch' AND (m.rollback_requested OR m.cancel_requested) \
       AND coalesce(m.watch_from, m.swapped_at) > pg_catalog.clock_timestamp() - pg_catalog.current_setting('foreshard.rollback_window')::interval)";

/// A server on which a shard of a move m is does not answer.
const NODE_IS_DOWN: &str = "EXISTS (SELECT FROM foreshard.shard h JOIN foreshard.node n USING (node_name) \
    WHERE h.shard_id IN (m.from_shard, m.to_shard) AND n.engine = 'postgres_fdw' AND n.state = 'down')";

/// Moves that should have a carrier and have none, at most `limit`; short work first, then those under way. While an old copy
/// is only kept, or a node that a move needs does not answer, nothing is to be done. One whose slot is on a node that does not
/// answer is all that there is of the slot, so it is kept however long that takes.
pub fn without_carrier(limit: i64) -> PgResult<Vec<Due>> {
    let refresh_is_due = retained::refresh_is_due();
    let holder_is_down = retained::HOLDER_IS_DOWN;
    spi::rows(
        &format!(
            "SELECT m.move_id, {SHORT} FROM foreshard.move m WHERE NOT m.finished AND m.partner_of IS NULL \
           AND (NOT m.paused OR m.cancel_requested OR m.phase = ANY ($2)) \
           AND (m.not_before IS NULL OR m.not_before <= pg_catalog.clock_timestamp() OR m.cancel_requested) \
           AND NOT {holder_is_down} \
           AND NOT (m.phase = 'watch' AND NOT m.rollback_requested AND NOT m.cancel_requested AND NOT ({refresh_is_due} AND NOT {NODE_IS_DOWN}) \
                    AND coalesce(m.watch_from, m.swapped_at) > pg_catalog.clock_timestamp() - pg_catalog.current_setting('foreshard.rollback_window')::interval) \
           AND NOT (m.phase = 'prepared' AND m.prepare AND NOT m.cancel_requested \
                    AND coalesce(m.checked_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => CASE WHEN m.way_back_of IS NULL THEN $3 ELSE $4 END), false)) \
           AND NOT ((m.phase = 'watch' OR m.phase IN ('preflight', 'copy') AND NOT m.cancel_requested) AND EXISTS (SELECT FROM foreshard.citus_shard t WHERE t.slot_id = m.slot_id) \
                    AND (EXISTS (SELECT FROM foreshard.citus_cluster k WHERE k.others_move IS NOT NULL) \
                         OR EXISTS (SELECT FROM foreshard.shard h JOIN foreshard.node n USING (node_name) WHERE h.shard_id IN (m.from_shard, m.to_shard) AND n.state = 'down'))) \
           AND NOT (m.kind = 'move' AND {NEEDS_NODES} AND {NODE_IS_DOWN}) \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l \
             WHERE l.locktype = 'object' AND l.classid = 'foreshard.move'::regclass AND l.objid = m.move_id::int8::oid \
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())) \
         ORDER BY (m.rollback_requested OR m.cancel_requested) DESC, 2 DESC, m.started_at NULLS LAST, m.move_id LIMIT $1"
        ),
        &[
            limit.into(),
            moves::unpausable().into(),
            prepared::check_every_s(false).into(),
            prepared::check_every_s(true).into(),
        ],
        |row| Ok(Due { move_id: row.need(1)?, is_short: row.need(2)? }),
    )
}

/// A change that foreshard filed by itself, and that has not begun. By Citus: that Citus is not at.
pub struct Unbegun {
    /// The move.
    pub move_id: i64,
    /// Its slot.
    pub slot_id: i64,
    /// The slot's group.
    pub group_id: i32,
    /// The shard it leaves carries at least the asked share of what it can.
    pub is_urgent: bool,
}

/// All of them; `distress` is that share.
pub fn unbegun(distress: f64) -> PgResult<Vec<Unbegun>> {
    spi::rows(
        "SELECT m.move_id, m.slot_id, s.group_id, coalesce((SELECT sum(h.heat) >= $1 * a.capacity FROM foreshard.slot x \
                JOIN foreshard.slot_heat h USING (slot_id) WHERE x.shard_id = a.shard_id), false) \
         FROM foreshard.move m JOIN foreshard.resharding_request r USING (request_id) JOIN foreshard.slot s USING (slot_id) \
         JOIN foreshard.shard a ON a.shard_id = m.from_shard \
         WHERE NOT m.finished AND NOT m.cancel_requested AND m.partner_of IS NULL \
           AND (m.phase = 'preflight' AND m.started_at IS NULL OR s.hash_from IS NOT NULL AND m.phase IN ('preflight', 'copy') \
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.locktype = 'object' AND l.classid = 'foreshard.move'::regclass \
                    AND l.objid = m.move_id::int8::oid AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))) \
           AND r.requested_by = 'foreshard' AND m.recommendation_id IS NOT NULL",
        &[distress.into()],
        |row| {
            Ok(Unbegun {
                move_id: row.need(1)?,
                slot_id: row.need(2)?,
                group_id: row.need(3)?,
                is_urgent: row.need(4)?,
            })
        },
    )
}

/// Interrupts carriers whose moves were cancelled or paused, in the middle of what may take hours: building an index, vacuuming,
/// comparing. Short steps end by themselves, and what Citus does is not held up.
pub fn interrupt() -> PgResult<()> {
    spi::rows(
        "SELECT pg_catalog.pg_cancel_backend(l.pid) FROM foreshard.move m \
         JOIN pg_catalog.pg_locks l ON l.locktype = 'object' AND l.classid = 'foreshard.move'::regclass AND l.objid = m.move_id::int8::oid \
             AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) AND l.granted \
         JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE NOT m.finished AND (m.cancel_requested OR m.paused AND NOT EXISTS (SELECT FROM foreshard.slot s WHERE s.slot_id = m.slot_id AND s.hash_from IS NOT NULL)) \
           AND m.phase IN ('copy', 'index', 'catch_up', 'verify') \
           AND a.backend_type = 'foreshard carrier' AND a.xact_start < pg_catalog.clock_timestamp() - interval '1 s'",
        &[],
        |row| row.need::<bool>(1),
    )
    .map(drop)
}

/// Ends carriers that have been waiting for a node that is down: one that keeps its connections and says nothing lets nobody
/// know, and whoever waits for it holds locks, a snapshot and the place of others meanwhile. What is to be cleared away has
/// bounds of its own, but for statistics, which are not made by whoever comes next.
pub fn end_waits() -> PgResult<()> {
    spi::rows(
        &format!(
            "SELECT pg_catalog.pg_terminate_backend(l.pid) FROM foreshard.move m \
             JOIN pg_catalog.pg_locks l ON l.locktype = 'object' AND l.classid = 'foreshard.move'::regclass AND l.objid = m.move_id::int8::oid \
                 AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) AND l.granted \
             JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
             WHERE NOT m.finished AND m.kind = 'move' AND a.backend_type = 'foreshard carrier' AND {NODE_IS_DOWN} \
               AND a.xact_start < pg_catalog.clock_timestamp() - CASE WHEN m.phase IN ('preflight', 'capture', 'copy', 'index', 'catch_up', \
                   'verify', 'cutover', 'watch') THEN interval '1 s' ELSE interval '1 min' END"
        ),
        &[],
        |row| row.need::<bool>(1),
    )
    .map(drop)
}

/// A change of placement that is at work: neither waiting prepared, nor paused by a person, nor swapped already.
pub struct UnderWay {
    /// Shards it has to do with.
    pub shards: Vec<i32>,
    /// Colocation group of its slot.
    pub group_id: i32,
    /// It divides, merges or places, so that the layout of the group changes.
    pub divides: bool,
}

/// All of them, those that wait for a carrier included.
pub fn under_way() -> PgResult<Vec<UnderWay>> {
    spi::rows(
        "SELECT ARRAY[m.from_shard, m.to_shard] || m.other_shard || ARRAY(SELECT p.shard_id FROM foreshard.move_part p WHERE p.move_id = m.move_id), s.group_id, m.kind <> 'move' \
         FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) \
         WHERE NOT m.finished AND m.partner_of IS NULL AND m.way_back_of IS NULL AND m.swapped_at IS NULL \
           AND NOT (m.paused AND NOT m.cancel_requested) AND NOT (m.prepare AND m.phase = 'prepared')",
        &[],
        |row| {
            Ok(UnderWay {
                shards: row.need::<Vec<Option<i32>>>(1)?.into_iter().flatten().collect(),
                group_id: row.need(2)?,
                divides: row.need(3)?,
            })
        },
    )
}
