//! Splits that are built ahead and wait for somebody to ask for the cutover.

use super::{moves, record_event};
use crate::pg::report::{PgResult, PgSqlErrorCode, busy, error};
use crate::pg::{guc, spi};
use serde_json::json;

/// Pause between two looks at what waits, s: mirrors may have given up, the table may have been altered.
const CHECK_EVERY_S: i32 = 30;

/// The pause, s, of splits or of ways back: as long as the lifetime at most.
pub fn check_every_s(way_back: bool) -> i32 {
    let lifetime = if way_back { guc::ROLLBACK_WINDOW.get() } else { guc::PREPARED_SPLIT_LIFETIME.get() };
    CHECK_EVERY_S.min(lifetime)
}

/// A split that waits, or will once it is built.
pub struct Prepared {
    move_id: i64,
    shards: Vec<String>,
}

/// The split of a slot that is to wait.
pub fn of_slot(slot_id: i64) -> PgResult<Option<Prepared>> {
    let found = spi::rows(
        "SELECT m.move_id, (SELECT pg_catalog.array_agg(h.shard_name::text ORDER BY p.part) FROM foreshard.move_part p JOIN foreshard.shard h USING (shard_id) \
             WHERE p.move_id = m.move_id) \
         FROM foreshard.move m WHERE m.slot_id = $1 AND NOT m.finished AND m.prepare AND NOT m.cancel_requested AND m.kind = 'split'",
        &[slot_id.into()],
        |row| Ok(Prepared { move_id: row.need(1)?, shards: row.need(2)? }),
    )?;
    Ok(found.into_iter().next())
}

/// Lets a split that was prepared go on to its cutover; its id.
///
/// # Errors
/// 55006 when its parts are built for other shards, or for one that is to be emptied, or it has just ended.
pub fn go_on(ready: &Prepared, slot_id: i64, targets: &[Option<&str>], user: &str) -> PgResult<i64> {
    let fits = |(target, shard): (&Option<&str>, &String)| target.is_none_or(|target| target == shard);
    if targets.len() != ready.shards.len() || !targets.iter().zip(&ready.shards).all(fits) {
        return Err(busy(format!("the split of slot {slot_id} is prepared for other shards"))
            .set_detail(format!("Its parts are built for {}.", ready.shards.join(", ")))
            .set_hint(format!(
                "Name no shards, or discard what is prepared first: foreshard.cancel_move({}).",
                ready.move_id
            )));
    }
    let drained = spi::one::<String>(
        "SELECT min(h.shard_name::text) FROM foreshard.move_part p JOIN foreshard.shard h USING (shard_id) WHERE p.move_id = $1 AND h.draining",
        &[ready.move_id.into()],
    )?;
    if let Some(shard) = drained {
        return Err(busy(format!(
            "the split of slot {slot_id} is prepared for a shard that is being drained"
        ))
        .set_detail(format!("A part is built on \"{shard}\"."))
        .set_hint(format!("Discard what is prepared first: foreshard.cancel_move({}).", ready.move_id)));
    }
    let gone_on = spi::run(
        "UPDATE foreshard.move SET prepare = false WHERE move_id = $1 AND NOT finished AND prepare AND NOT cancel_requested",
        &[ready.move_id.into()],
    )?;
    if gone_on == 0 {
        return Err(moves::already_moving(slot_id));
    }
    let detail = json!({"requested_by": user, "assignment": {"split": slot_id, "shards": targets}});
    record_event("request", Some(ready.move_id), Some(slot_id), detail)?;
    Ok(ready.move_id)
}

fn waiting() -> PgResult<i64> {
    let waiting = spi::one::<i64>(
        "SELECT count(*) FROM foreshard.move WHERE NOT finished AND prepare AND kind = 'split'",
        &[],
    )?;
    Ok(waiting.unwrap_or(0))
}

/// Whether one more split may be prepared.
pub fn has_room() -> PgResult<bool> {
    Ok(waiting()? < i64::from(guc::MAX_PREPARED_SPLITS.get()))
}

/// # Errors
/// 53400 when as many splits as are allowed wait already.
pub fn require_room() -> PgResult<()> {
    let (limit, waiting) = (guc::MAX_PREPARED_SPLITS.get(), waiting()?);
    if waiting < i64::from(limit) {
        return Ok(());
    }
    Err(error(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        "no more splits may be prepared".to_string(),
    )
    .set_detail(format!("{waiting} are, and foreshard.max_prepared_splits is {limit}."))
    .set_hint("Discard one with foreshard.cancel_move(move_id), or raise the setting."))
}

/// Notes that a move that waits was found in order.
pub fn set_checked(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET checked_at = pg_catalog.clock_timestamp(), waiting_for = NULL WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}
