//! Requests and moves.

use super::{record_event, request};
use crate::pg::report::{PgResult, PgSqlErrorCode, bad_argument, busy, error, internal, unknown};
use crate::pg::{lock, spi};
use foreshard_core::phase::{Capabilities, Event, Phase, next};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use serde_json::json;
use std::str::FromStr;

/// Most slots one request may move.
const MAX_ASSIGNMENTS: usize = 4096;

/// A move as its carrier sees it.
pub struct MoveRow {
    /// Primary key.
    pub move_id: i64,
    /// It is a split or a placement of keys: the slot is divided anew.
    pub is_split: bool,
    /// Of a merge: the slot that goes up in the first.
    pub other_slot: Option<i64>,
    /// Of a merge that would undo a split: that split.
    pub way_back_of: Option<i64>,
    /// It waits, prepared, until somebody asks for the cutover.
    pub prepare: bool,
    /// It is a placement of keys.
    pub is_place: bool,
    /// A table with one slot gets those of a group.
    pub joins: bool,
    /// All slots of a table go up in an ordinary one.
    pub undistributes: bool,
    /// Slot that moves.
    pub slot_id: i64,
    /// Shard it comes from.
    pub from_shard: i32,
    /// Target shard.
    pub to_shard: i32,
    /// Tablespace of the target shard.
    pub tablespace: String,
    /// Where it stands.
    pub phase: Phase,
    /// Somebody called cancel_move.
    pub cancel_requested: bool,
    /// Somebody called rollback_move after the swap.
    pub rollback_requested: bool,
    /// Somebody called pause_move.
    pub paused: bool,
    /// Nothing more to do.
    pub finished: bool,
    /// Seconds since the swap; None: not yet.
    pub swapped_age_s: Option<f64>,
    /// Seconds since the old copy began to be watched: since the swap, or since a crash made that begin anew.
    pub watched_age_s: Option<f64>,
    /// Seconds since the last verification; None: never.
    pub verified_age_s: Option<f64>,
    /// Share of reads that the copy serves.
    pub route_weight: Option<f64>,
    /// Share of reads that somebody asked for with set_route_weight.
    pub manual_weight: Option<f64>,
    /// Seconds since it was prepared; None: never.
    pub prepared_age_s: Option<f64>,
    /// It is a move, and one of its shards is on another server.
    pub is_foreign: bool,
    /// How often Citus' switch gave way to writers.
    pub gave_way: i32,
    /// It rests since the last time.
    pub rests: bool,
    /// Its slot is one of Citus.
    pub is_citus: bool,
    /// Seconds since it began to be measured how statements fare before the swap; None: not yet.
    pub measured_age_s: Option<f64>,
}

impl MoveRow {
    /// Two slots become one.
    pub fn is_merge(&self) -> bool {
        self.other_slot.is_some()
    }

    /// Other partitions take the place of those there are: no swap of storage.
    pub fn replaces(&self) -> bool {
        self.is_split || self.is_merge() || self.undistributes
    }

    /// What it is, for people.
    pub fn what(&self) -> &'static str {
        match (self.is_split, self.is_merge()) {
            (true, _) => "split",
            (_, true) => "merge",
            _ if self.undistributes => "undistribution",
            _ => "move",
        }
    }
}

/// Reads a move; None when it is gone.
pub fn load(move_id: i64) -> PgResult<Option<MoveRow>> {
    let found = spi::rows(
        "SELECT m.move_id, m.slot_id, m.to_shard, h.tablespace_name::text, m.phase, m.cancel_requested OR EXISTS (SELECT FROM foreshard.move o WHERE o.partner_of = m.move_id AND o.cancel_requested), m.finished, \
                extract(epoch FROM pg_catalog.clock_timestamp() - m.verified_at)::float8, m.from_shard, m.rollback_requested, \
                extract(epoch FROM pg_catalog.clock_timestamp() - m.swapped_at)::float8, m.paused, m.route_weight, m.manual_weight, m.kind IN ('split', 'place', 'join'), m.prepare, \
                extract(epoch FROM pg_catalog.clock_timestamp() - m.prepared_at)::float8, m.other_slot, m.way_back_of, m.kind = 'place', \
                m.kind = 'move' AND 'local' <> ANY (ARRAY[h.node_name, f.node_name]), m.kind = 'undistribute', m.kind = 'join', \
                extract(epoch FROM pg_catalog.clock_timestamp() - coalesce(m.watch_from, m.swapped_at))::float8, \
                m.gave_way, coalesce(m.not_before > pg_catalog.clock_timestamp(), false), \
                EXISTS (SELECT FROM foreshard.slot s WHERE s.slot_id = m.slot_id AND s.hash_from IS NOT NULL), \
                extract(epoch FROM pg_catalog.clock_timestamp() - m.measured_from)::float8 \
         FROM foreshard.move m JOIN foreshard.shard h ON h.shard_id = m.to_shard JOIN foreshard.shard f ON f.shard_id = m.from_shard WHERE m.move_id = $1",
        &[move_id.into()],
        |row| {
            Ok(MoveRow {
                move_id: row.need(1)?,
                slot_id: row.need(2)?,
                to_shard: row.need(3)?,
                tablespace: row.need(4)?,
                phase: Phase::from_str(&row.need::<String>(5)?).map_err(internal)?,
                cancel_requested: row.need(6)?,
                finished: row.need(7)?,
                verified_age_s: row.get(8)?,
                from_shard: row.need(9)?,
                rollback_requested: row.need(10)?,
                swapped_age_s: row.get(11)?,
                paused: row.need(12)?,
                route_weight: row.get(13)?,
                manual_weight: row.get(14)?,
                is_split: row.need(15)?,
                prepare: row.need(16)?,
                prepared_age_s: row.get(17)?,
                other_slot: row.get(18)?,
                way_back_of: row.get(19)?,
                is_place: row.need(20)?,
                is_foreign: row.need(21)?,
                undistributes: row.need(22)?,
                joins: row.need(23)?,
                watched_age_s: row.get(24)?,
                gave_way: row.need(25)?,
                rests: row.need(26)?,
                is_citus: row.need(27)?,
                measured_age_s: row.get(28)?,
            })
        },
    )?;
    Ok(found.into_iter().next())
}

/// Takes the carrier's session lock on a move; false when another carrier has it. No user can take it.
pub fn claim(move_id: i64) -> PgResult<bool> {
    Ok(lock::try_session_lock(class()?, move_id as u32))
}

/// Keeps carriers off a move until the end of the transaction; false when one has it.
pub fn claim_for_transaction(move_id: i64) -> PgResult<bool> {
    Ok(lock::try_transaction_lock(class()?, move_id as u32))
}

/// The catalog of moves, as a class of locks.
fn class() -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>("SELECT 'foreshard.move'::regclass::oid", &[])?
        .ok_or_else(|| internal("table foreshard.move is missing"))
}

/// One wanted assignment, validated.
pub struct Assignment {
    /// Slot to move.
    pub slot_id: i64,
    /// Where it is.
    pub from_shard: i32,
    /// Where it shall be.
    pub to_shard: i32,
}

/// 55006: two changes of one slot exclude each other.
pub(super) fn already_moving(slot_id: i64) -> ErrorReport {
    busy(format!("slot {slot_id} is already being moved"))
        .set_hint("See foreshard.progress_moves; foreshard.cancel_move(move_id) ends a move.")
}

/// Checks one (slot, shard name) pair.
///
/// # Errors
/// 42704 unknown slot or shard, 22023 already there or target draining, 55006 already moving.
pub fn validate(slot_id: i64, shard: &str) -> PgResult<Assignment> {
    let slot = spi::rows(
        "SELECT s.shard_id, h.shard_name::text, EXISTS (SELECT FROM foreshard.move m WHERE (m.slot_id = s.slot_id OR s.slot_id = ANY (m.guests)) AND NOT m.finished) \
         FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) WHERE s.slot_id = $1",
        &[slot_id.into()],
        |row| Ok((row.need::<i32>(1)?, row.need::<String>(2)?, row.need::<bool>(3)?)),
    )?;
    let Some((from_shard, from_name, moving)) = slot.into_iter().next() else {
        return Err(
            unknown(format!("slot {slot_id} does not exist")).set_hint("See the view foreshard.slots.")
        );
    };
    let target = spi::rows(
        "SELECT shard_id, draining, node_name <> 'local' FROM foreshard.shard WHERE shard_name = $1::name",
        &[shard.into()],
        |row| Ok((row.need::<i32>(1)?, row.need::<bool>(2)?, row.need::<bool>(3)?)),
    )?;
    let Some((to_shard, draining, is_foreign)) = target.into_iter().next() else {
        return Err(
            unknown(format!("shard \"{shard}\" does not exist")).set_hint("See the view foreshard.shards.")
        );
    };
    if draining {
        return Err(bad_argument(format!("shard \"{shard}\" is being drained")));
    }
    if moving {
        return Err(already_moving(slot_id));
    }
    if from_shard == to_shard && (is_foreign || !super::layout::is_elsewhere(slot_id)?) {
        return Err(bad_argument(format!("slot {slot_id} is already on shard \"{from_name}\"")));
    }
    if is_foreign {
        super::remote::against::refuse_unique(slot_id)?;
    }
    super::citus::moving::check(slot_id, to_shard)?;
    super::node::require_up(to_shard)?;
    super::node::require_up(from_shard)?;
    Ok(Assignment { slot_id, from_shard, to_shard })
}

/// Tables of a slot's group, for privilege checks: (oid, name).
pub fn tables_of_slot(slot_id: i64) -> PgResult<Vec<(pg_sys::Oid, String)>> {
    spi::rows(
        "SELECT p.table_oid::oid, p.table_oid::text FROM foreshard.slot_partition p WHERE p.slot_id = $1 \
         UNION ALL SELECT t.table_oid::oid, t.table_oid::text FROM foreshard.citus_shard t WHERE t.slot_id = $1",
        &[slot_id.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Files a request with its moves; returns (request id, move ids).
pub fn file_request(
    assignments: &[Assignment],
    confidence: Option<f64>,
    user: &str,
    map: &serde_json::Value,
) -> PgResult<(i64, Vec<i64>)> {
    let request_id = request::file_assignment(user, confidence, map)?;
    let mut moves = Vec::with_capacity(assignments.len());
    for a in assignments {
        // Another session may have filed a move of this slot since it was validated. What carries a confidence
        // was recommended: the move remembers as what.
        let move_id = spi::one_mut::<i64>(
            "INSERT INTO foreshard.move (request_id, slot_id, from_shard, to_shard, recommendation_id, reason) \
             SELECT $1, $2, $3, $4, r.recommendation_id, r.reason FROM (SELECT) one LEFT JOIN LATERAL ( \
                 SELECT n.recommendation_id, n.reason FROM foreshard.recommendation n \
                 WHERE $5 AND n.action = 'move' AND n.slot_id = $2 AND n.to_shard = $4 ORDER BY 1 DESC LIMIT 1) r ON true \
             ON CONFLICT (slot_id) WHERE NOT finished DO NOTHING RETURNING move_id",
            &[
                request_id.into(),
                a.slot_id.into(),
                a.from_shard.into(),
                a.to_shard.into(),
                confidence.is_some().into(),
            ],
        )?
        .ok_or_else(|| already_moving(a.slot_id))?;
        moves.push(move_id);
    }
    Ok((request_id, moves))
}

/// Validates a whole `{"slot": "shard"}` map, then files it; nothing is filed when one entry is wrong.
///
/// # Errors
/// 22023 for an empty or malformed map, and those of [`validate`].
pub fn file_map(
    map: &serde_json::Map<String, serde_json::Value>,
    confidence: Option<f64>,
    user: &str,
) -> PgResult<(i64, Vec<i64>)> {
    let assignments = validate_map(map)?;
    file_request(&assignments, confidence, user, &serde_json::Value::Object(map.clone()))
}

/// The validated assignments of a map.
pub fn validate_map(map: &serde_json::Map<String, serde_json::Value>) -> PgResult<Vec<Assignment>> {
    if map.is_empty() {
        return Err(bad_argument("shard assignment map is empty")
            .set_hint("The map has the form {\"<slot_id>\": \"<shard>\"}; foreshard.predict_shard_assignment() makes one."));
    }
    if map.len() > MAX_ASSIGNMENTS {
        return Err(error(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("shard assignment map has {} entries, at most {MAX_ASSIGNMENTS} are allowed", map.len()),
        ));
    }
    let mut assignments = Vec::with_capacity(map.len());
    for (key, value) in map {
        // One spelling per slot: a map cannot name a slot twice.
        let slot_id: i64 = key
            .parse()
            .ok()
            .filter(|id: &i64| id.to_string() == *key)
            .ok_or_else(|| bad_argument(format!("\"{key}\" is not a slot id")))?;
        let shard =
            value.as_str().ok_or_else(|| bad_argument(format!("the shard of slot {key} is not a string")))?;
        assignments.push(validate(slot_id, shard)?);
    }
    Ok(assignments)
}

/// Moves the state machine on, in the transaction that did the phase's work. Returns the new phase.
pub fn advance(row: &MoveRow, event: Event, capabilities: Capabilities) -> PgResult<Phase> {
    let transition = next(row.phase, event, capabilities).map_err(internal)?;
    let to = transition.to;
    spi::run(
        "UPDATE foreshard.move SET phase = $2, finished = $3, waiting_for = NULL, not_before = NULL, \
                started_at = coalesce(started_at, pg_catalog.clock_timestamp()), \
                finished_at = CASE WHEN $3 THEN pg_catalog.clock_timestamp() END, \
                restarts = restarts + CASE WHEN $4 THEN 1 ELSE 0 END, errors = 0, \
                prepared_at = CASE WHEN $2 = 'prepared' THEN coalesce(prepared_at, pg_catalog.clock_timestamp()) ELSE prepared_at END, \
                route_weight = CASE WHEN $2 IN ('canary', 'cutover') THEN route_weight END, ready_at = NULL, \
                pending_keys = CASE WHEN $2 = 'catch_up' THEN pending_keys WHEN phase = 'mirror' THEN 0 END, \
                caught_up_at = CASE WHEN $2 = 'copy' OR $2 = 'catch_up' AND caught_up_at = 'infinity' THEN pg_catalog.clock_timestamp() \
                    WHEN phase = 'mirror' AND $2 = 'verify' THEN 'infinity' WHEN $2 <> 'preflight' THEN caught_up_at END WHERE move_id = $1",
        &[
            row.move_id.into(),
            to.as_str().into(),
            to.is_terminal().into(),
            (event == Event::SourceChanged).into(),
        ],
    )?;
    if to.is_terminal() {
        spi::run(
            "UPDATE foreshard.move SET phase = $2, finished = true, finished_at = pg_catalog.clock_timestamp() WHERE partner_of = $1",
            &[row.move_id.into(), to.as_str().into()],
        )?;
        spi::run(
            "UPDATE foreshard.move SET finished = false WHERE way_back_of = $1 AND phase = 'prepared'",
            &[row.move_id.into()],
        )?;
    }
    record_event(
        "phase",
        Some(row.move_id),
        Some(row.slot_id),
        json!({"from": row.phase.as_str(), "to": to.as_str()}),
    )?;
    Ok(to)
}

/// Notes what a move waits for, or an error it will retry after.
pub fn note(
    move_id: i64,
    waiting_for: Option<&str>,
    last_error: Option<&str>,
    pending_keys: Option<i64>,
) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET waiting_for = $2, last_error = coalesce($3, last_error), pending_keys = coalesce($4, pending_keys) WHERE move_id = $1",
        &[move_id.into(), waiting_for.into(), last_error.into(), pending_keys.into()],
    )?;
    Ok(())
}

/// Forgets what a move waited for.
pub fn waits_no_more(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET waiting_for = NULL WHERE move_id = $1 AND waiting_for IS NOT NULL",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Counts an attempt at a short lock.
pub fn count_lock_attempt(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET lock_attempts = lock_attempts + 1 WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Remembers the transaction whose rows a cutover must not show to older snapshots, and, when nothing else is logged (`complete`), that all
/// that was committed before it is in the copy.
pub fn set_last_replay(move_id: i64, complete: bool) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET last_replay_xid = pg_catalog.pg_current_xact_id(), \
             caught_up_at = CASE WHEN $2 THEN pg_catalog.now() ELSE caught_up_at END WHERE move_id = $1",
        &[move_id.into(), complete.into()],
    )?;
    Ok(())
}

/// The low 32 bits of that transaction id.
pub fn last_replay(move_id: i64) -> PgResult<Option<i64>> {
    spi::one::<i64>(
        "SELECT (last_replay_xid::text::numeric % 4294967296)::int8 FROM foreshard.move WHERE move_id = $1",
        &[move_id.into()],
    )
}

/// Marks both copies as compared equal now.
pub fn set_verified(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET verified_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}

/// The placement changes: the slot is on another shard.
pub fn place_slot(row: &MoveRow, shard: i32) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.slot SET shard_id = $2, last_moved_at = pg_catalog.clock_timestamp() WHERE slot_id = $1",
        &[row.slot_id.into(), shard.into()],
    )?;
    spi::run(
        "UPDATE foreshard.move SET swapped_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[row.move_id.into()],
    )?;
    Ok(())
}

/// Holds a move up, or lets it go on; false when it is too late or was so already.
pub fn set_paused(move_id: i64, paused: bool) -> PgResult<bool> {
    Ok(spi::run(
        "UPDATE foreshard.move SET paused = $2, route_weight = NULL WHERE move_id = $1 AND NOT finished AND paused <> $2 AND NOT (phase = ANY ($3) AND $2)",
        &[move_id.into(), paused.into(), unpausable().into()],
    )? > 0)
}

/// The phases in which a pause has no effect: the old copy is on its way out.
pub(super) fn unpausable() -> Vec<String> {
    let phases = Phase::ALL.into_iter().filter(|phase| !phase.is_reversible());
    phases.map(|phase| phase.as_str().to_string()).collect()
}

/// Notes the share of reads that the copy serves.
pub fn set_route_weight(move_id: i64, weight: f64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET route_weight = $2 WHERE move_id = $1",
        &[move_id.into(), weight.into()],
    )?;
    Ok(())
}

/// Asks for a share of reads, None: the canary's own steps; false when the move has passed its cutover.
pub fn request_weight(move_id: i64, weight: Option<f64>) -> PgResult<bool> {
    Ok(spi::run(
        "UPDATE foreshard.move SET manual_weight = $2 WHERE move_id = $1 AND NOT finished AND NOT (phase = ANY ($3))",
        &[move_id.into(), weight.into(), unpausable().into()],
    )? > 0)
}

/// Moves of which an old copy is kept and nobody has asked to swap back.
pub fn watched() -> PgResult<Vec<i64>> {
    spi::rows(
        "SELECT move_id FROM foreshard.move WHERE phase = 'watch' AND NOT finished AND NOT rollback_requested",
        &[],
        |row| row.need(1),
    )
}

/// Those of them that have carriers of their own.
pub fn watched_leaders() -> PgResult<Vec<i64>> {
    spi::rows(
        "SELECT move_id FROM foreshard.move WHERE phase = 'watch' AND NOT finished AND NOT rollback_requested AND NOT cancel_requested \
           AND partner_of IS NULL",
        &[],
        |row| row.need(1),
    )
}

/// All moves that have not ended.
pub fn unfinished() -> PgResult<Vec<i64>> {
    spi::rows("SELECT move_id FROM foreshard.move WHERE NOT finished", &[], |row| row.need(1))
}

/// Asks a move that has swapped to swap back; false when it has ended.
pub fn request_rollback(move_id: i64) -> PgResult<bool> {
    Ok(spi::run(
        "UPDATE foreshard.move SET rollback_requested = true WHERE move_id = $1 AND NOT finished AND phase = 'watch'",
        &[move_id.into()],
    )? > 0)
}

/// Asks a move, or the one that it is part of, to stop; false when it does not exist, has ended, or has just swapped for good.
pub fn request_cancel(move_id: i64) -> PgResult<bool> {
    Ok(spi::run(
        "UPDATE foreshard.move SET cancel_requested = true WHERE move_id = coalesce((SELECT partner_of FROM foreshard.move WHERE move_id = $1), $1) AND NOT finished AND phase <> $2",
        &[move_id.into(), Phase::Retire.as_str().into()],
    )? > 0)
}
