//! After pg_upgrade: relations, types, roles and transaction ids are as they were; functions, triggers, servers and schemas
//! have other oids, internal triggers and `relrewrite` are gone. So the copies of moves that were under way are worth
//! nothing (nobody logged what changed since), while every slot is where its partition is, as always.

use super::{record_event, shadow};
use crate::pg::report::PgResult;
use crate::pg::{spi, storage};
use foreshard_core::phase::Phase;
use pgrx::pg_sys;
use serde_json::json;
use std::str::FromStr;

/// Why a move ended that pg_upgrade found under way.
const REASON: &str = "pg_upgrade carried the database to another server while this was under way";

/// Finds out whether the tables have come to another server, and then puts right what cannot have come along. Repeated,
/// it does nothing.
pub fn settle() -> PgResult<()> {
    if is_carried_over()? {
        let moves = end_moves()?;
        let dropped = drop_copies()?;
        learn_functions_again()?;
        record_event(
            "server_upgraded",
            None,
            None,
            json!({"moves_ended": moves, "copies_dropped": dropped}),
        )?;
    }
    spi::run(
        "INSERT INTO foreshard.server_mark AS m (system_identifier, major_version, capture_function) \
         SELECT c.system_identifier, pg_catalog.current_setting('server_version_num')::int4 / 10000, 'foreshard.capture()'::regprocedure::oid \
         FROM pg_catalog.pg_control_system() c \
         ON CONFLICT (only_one) DO UPDATE SET system_identifier = excluded.system_identifier, major_version = excluded.major_version, \
             capture_function = excluded.capture_function, since = pg_catalog.now() \
         WHERE (m.system_identifier, m.major_version, m.capture_function) <> (excluded.system_identifier, excluded.major_version, excluded.capture_function)",
        &[],
    )?;
    Ok(())
}

/// Whether this is another server than the one of the mark, and not a copy of its files (which may have a new identifier,
/// but the same functions).
fn is_carried_over() -> PgResult<bool> {
    let found = spi::one::<bool>(
        "SELECT m.system_identifier <> c.system_identifier AND (m.major_version, m.capture_function) <> \
             (pg_catalog.current_setting('server_version_num')::int4 / 10000, 'foreshard.capture()'::regprocedure::oid) \
         FROM foreshard.server_mark m, pg_catalog.pg_control_system() c",
        &[],
    )?;
    Ok(found.unwrap_or(false))
}

/// The end of a move that was in a phase: what has been swapped stays swapped, without a way back.
fn end_of(phase: &str) -> PgResult<Phase> {
    Ok(match Phase::from_str(phase).map_err(crate::pg::report::internal)? {
        Phase::Watch | Phase::Retire => Phase::Done,
        Phase::Revert => Phase::Cancelled,
        _ => Phase::Failed,
    })
}

/// Ends every move that has not ended, prepared ways back of splits included; how many.
fn end_moves() -> PgResult<usize> {
    let open = spi::rows(
        // One that waits for its carrier has nothing yet; the second row of a merge goes with the first.
        "SELECT m.move_id, m.slot_id, coalesce(o.phase, m.phase) FROM foreshard.move m LEFT JOIN foreshard.move o ON o.move_id = m.partner_of \
         WHERE (NOT m.finished OR m.phase = 'prepared') AND (coalesce(o.started_at, m.started_at) IS NOT NULL OR coalesce(o.phase, m.phase) <> 'preflight') \
         ORDER BY m.partner_of IS NULL, m.move_id",
        &[],
        |row| Ok((row.need::<i64>(1)?, row.need::<i64>(2)?, row.need::<String>(3)?)),
    )?;
    for (move_id, slot_id, phase) in &open {
        let end = end_of(phase)?;
        shadow::forget(*move_id)?;
        spi::run(
            "UPDATE foreshard.move SET phase = $2, finished = true, finished_at = pg_catalog.clock_timestamp(), waiting_for = NULL, \
                 route_weight = NULL, last_error = CASE WHEN $2 = 'done' THEN last_error ELSE $3 END WHERE move_id = $1",
            &[(*move_id).into(), end.as_str().into(), REASON.into()],
        )?;
        let detail = json!({"from": phase, "to": end.as_str(), "reason": REASON});
        record_event("phase", Some(*move_id), Some(*slot_id), detail)?;
    }
    Ok(open.len())
}

/// Drops shadows, logs and old copies: tables of ours with such names that hold no slot. How many.
fn drop_copies() -> PgResult<usize> {
    let left = spi::rows(
        "SELECT c.oid FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e' \
         JOIN pg_catalog.pg_extension e ON d.refclassid = 'pg_catalog.pg_extension'::regclass AND e.oid = d.refobjid AND e.extname = 'foreshard' \
         WHERE c.relnamespace = 'foreshard'::regnamespace AND c.relkind IN ('r', 'p', 'f') \
           AND c.relname ~ '^(shadow|capture|split|place)_[0-9]+(_[0-9]+)*(_twin|_old)?$' \
           AND NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE c.oid IN (p.partition, p.branch)) \
           AND NOT EXISTS (SELECT FROM foreshard.graph g WHERE c.oid IN (g.metagraph, g.closure, g.components)) \
           AND NOT EXISTS (SELECT FROM foreshard.graph_partition g WHERE c.oid = g.partition) \
         ORDER BY c.relkind <> 'p', c.oid",
        &[],
        |row| row.need::<pg_sys::Oid>(1),
    )?;
    let mut dropped = 0;
    for relation in left {
        // The partitions of one go with it.
        if shadow::exists(relation)? {
            storage::drop_own_table(relation);
            dropped += 1;
        }
    }
    Ok(dropped)
}

/// What is known of triggers goes with their names; who calls what, and how foreign servers fared, is observed anew.
fn learn_functions_again() -> PgResult<()> {
    for sql in [
        "DELETE FROM foreshard.trigger_profile p USING foreshard.trigger_profile o \
         WHERE (o.table_oid, o.trigger_name, o.event, o.level, o.timing) = (p.table_oid, p.trigger_name, p.event, p.level, p.timing) \
           AND (o.last_seen_at, o.profile_id) > (p.last_seen_at, p.profile_id)",
        "UPDATE foreshard.trigger_profile p SET function_oid = q.tgfoid, function_version = NULL \
         FROM (SELECT DISTINCT ON (r.table_oid, t.tgname) r.table_oid, t.tgname, t.tgfoid FROM ( \
                   SELECT m.table_oid, m.table_oid AS relation FROM foreshard.managed_table m \
                   UNION ALL SELECT s.table_oid, s.partition FROM foreshard.slot_partition s) r \
               JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.relation \
               ORDER BY r.table_oid, t.tgname, r.relation <> r.table_oid, t.oid) q \
         WHERE (q.table_oid, q.tgname) = (p.table_oid, p.trigger_name)",
        "DELETE FROM foreshard.observed_dependency",
        "DELETE FROM foreshard.data_source_statistics WHERE server_id <> 0",
    ] {
        spi::run(sql, &[])?;
    }
    Ok(())
}
