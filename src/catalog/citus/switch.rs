//! Writers that wait while Citus switches a move over, and moves that give way to them.
//!
//! Citus locks what it calls the metadata of the shards EXCLUSIVE, here and then on every node that plans queries: whoever writes to
//! them has it SHARE until the end of the transaction. No setting of ours bounds what it waits for on nodes, nor how long it
//! looks on until the copy has caught up, so whoever waits is looked at from outside.

use crate::catalog::record_event;
use crate::pg::report::PgResult;
use crate::pg::spi;
use serde_json::json;

/// Those locks by the last field of their tag: of one shard, and of all colocated ones.
const SWITCH_LOCKS: [i16; 2] = [4, 8];

/// A move that Citus is about to switch over, or has begun to.
pub struct Seen {
    /// The move.
    pub move_id: i64,
    /// How often it has given way.
    pub gave_way: i32,
    /// It has all the locks here.
    pub has_locks: bool,
    /// The longest that anybody has waited behind it, s; None: nobody waits.
    pub queue_s: Option<f64>,
    /// Who has what it waits for, in words; None: nobody here.
    pub holders: Option<String>,
}

/// All of them, those aside that have just given way.
pub fn seen() -> PgResult<Vec<Seen>> {
    spi::rows(
        "WITH l AS MATERIALIZED (SELECT k.locktype, k.classid, k.objid, k.objsubid, k.mode, k.granted, k.pid, k.waitstart FROM pg_catalog.pg_locks k \
                 WHERE k.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()) \
                   AND (k.locktype = 'advisory' AND k.objsubid = ANY ($1) OR k.locktype = 'object' AND k.classid = 'foreshard.move'::regclass AND k.granted)), \
              own AS (SELECT m.move_id, m.gave_way, x.classid, x.objid, x.objsubid, x.pid, x.granted \
                 FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) JOIN l c ON c.locktype = 'object' AND c.objid = m.move_id::int8::oid \
                 JOIN l x ON x.pid = c.pid AND x.locktype = 'advisory' AND x.mode = 'ExclusiveLock' \
                 WHERE NOT m.finished AND s.hash_from IS NOT NULL AND (m.not_before IS NULL OR m.not_before <= pg_catalog.clock_timestamp())) \
         SELECT o.move_id, o.gave_way, bool_and(o.granted), max(w.wait_s)::float8, pg_catalog.string_agg(DISTINCT w.holder, ', ') \
         FROM own o LEFT JOIN LATERAL ( \
             SELECT CASE WHEN NOT k.granted THEN extract(epoch FROM pg_catalog.clock_timestamp() - k.waitstart) END AS wait_s, \
                    CASE WHEN k.granted AND k.pid IS NULL THEN 'a prepared transaction (see pg_prepared_xacts)' \
                         WHEN k.granted THEN format('pid %s (%s, transaction %s s old)', k.pid, coalesce(a.state, a.backend_type), \
                             round(extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start))) END AS holder \
             FROM l k LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = k.pid \
             WHERE k.locktype = 'advisory' AND (k.classid, k.objid, k.objsubid) = (o.classid, o.objid, o.objsubid) AND k.pid IS DISTINCT FROM o.pid) w ON true \
         GROUP BY 1, 2",
        &[SWITCH_LOCKS.to_vec().into()],
        |row| {
            Ok(Seen {
                move_id: row.need(1)?,
                gave_way: row.need(2)?,
                has_locks: row.need(3)?,
                queue_s: row.get(4)?,
                holders: row.get(5)?,
            })
        },
    )
}

/// Notes that a move gives way, and for how long it rests. To be committed before its carrier is interrupted, which looks for it. A keeper
/// waits for nobody who has the move's row: then the carrier finds an error like any other.
pub fn note(seen: &Seen, rest_s: f64) -> PgResult<()> {
    let who = match (&seen.holders, seen.has_locks) {
        (Some(who), false) => format!("others waited behind it for {who}"),
        _ => "it took too long under its locks".to_string(),
    };
    let why = format!("Citus' switch gave way to writers: {who}");
    spi::run(
        "UPDATE foreshard.move SET gave_way = gave_way + 1, lock_attempts = lock_attempts + 1, waiting_for = $3, last_error = $3, \
             not_before = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $2) \
         WHERE move_id = (SELECT m.move_id FROM foreshard.move m WHERE m.move_id = $1 AND NOT m.finished FOR NO KEY UPDATE SKIP LOCKED)",
        &[seen.move_id.into(), rest_s.into(), why.as_str().into()],
    )?;
    record_event("gave_way", Some(seen.move_id), None, json!({"reason": who, "rest_s": rest_s}))
}
