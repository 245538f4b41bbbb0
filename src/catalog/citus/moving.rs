//! Moves of slots of Citus: what speaks against one, and the single statement that makes it.

use crate::pg::report::{PgResult, bad_argument, busy, internal, unsupported, wrong_state};
use crate::pg::{lock, reading, spi};
use pgrx::pg_sys;

/// Advisory locks that Citus takes while it plans or moves shards, by the last field of their tag: rebalance of a group,
/// placements of a group, shards of a group.
const MOVE_LOCKS: [i16; 3] = [7, 13, 16];

/// Longest wait for what Citus says of a move, ms.
const PATIENCE_MS: i32 = 3_000;
/// Longest clean-up, ms.
const CLEAN_UP_MS: i32 = 20_000;

/// Who else moves shards of the cluster, or is about to, in words; None: nobody.
pub fn others() -> PgResult<Option<String>> {
    if !super::is_here() {
        return Ok(None);
    }
    spi::one::<String>(
        "SELECT pg_catalog.string_agg(q.who, ', ' ORDER BY q.who) FROM ( \
             SELECT DISTINCT format('%s with process %s', coalesce(nullif(a.backend_type, 'client backend'), 'a session'), l.pid) AS who \
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) \
             WHERE l.locktype = 'advisory' AND l.objsubid = ANY ($1) AND l.granted AND a.backend_type IS DISTINCT FROM 'foreshard carrier' \
               AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()) \
             UNION ALL SELECT format('rebalance job %s of Citus', j.job_id) FROM pg_catalog.pg_dist_background_job j \
             WHERE j.job_type = 'rebalance' AND j.state::text NOT IN ('finished', 'cancelled', 'failed')) q",
        &[MOVE_LOCKS.to_vec().into()],
    )
}

/// Notes who else moves shards; the planner leaves the cluster alone meanwhile. The keeper does this, so it waits for nobody.
pub fn note_others() -> PgResult<()> {
    let others = others()?;
    spi::run(
        "UPDATE foreshard.citus_cluster SET others_move = $1 WHERE others_move IS DISTINCT FROM $1 \
           AND cluster_name IN (SELECT k.cluster_name FROM foreshard.citus_cluster k FOR UPDATE SKIP LOCKED)",
        &[others.as_deref().into()],
    )?;
    Ok(())
}

/// Checks that a slot may go to a shard as far as Citus is concerned.
///
/// # Errors
/// 0A000 one is of Citus and the other is not; 22023 Citus gives that node no shards; 55006 somebody else moves shards.
pub fn check(slot_id: i64, to_shard: i32) -> PgResult<()> {
    let found = spi::rows(
        "SELECT s.hash_from IS NOT NULL, coalesce(n.engine = 'citus', false), h.shard_name::text, coalesce(n.takes_shards, true) \
         FROM foreshard.slot s CROSS JOIN foreshard.shard h LEFT JOIN foreshard.node n USING (node_name) WHERE s.slot_id = $1 AND h.shard_id = $2",
        &[slot_id.into(), to_shard.into()],
        |row| Ok((row.need::<bool>(1)?, row.need::<bool>(2)?, row.need::<String>(3)?, row.need::<bool>(4)?)),
    )?;
    let Some((slot_is, shard_is, shard, takes)) = found.into_iter().next() else { return Ok(()) };
    match (slot_is, shard_is) {
        (false, false) => return Ok(()),
        (true, true) => {}
        _ => {
            let what = if shard_is { "is" } else { "is not" };
            return Err(unsupported(format!("slot {slot_id} cannot go to shard \"{shard}\""))
                .set_detail(format!("That shard {what} a node of the Citus cluster: slots of Citus tables are there, and no others."))
                .set_hint("See the column node of foreshard.shards."));
        }
    }
    if !takes {
        return Err(bad_argument(format!("node \"{shard}\" takes no shards"))
            .set_hint("SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', true);"));
    }
    require_alone()
}

/// Checks that nobody else moves shards.
///
/// # Errors
/// 55006 somebody does.
pub fn require_alone() -> PgResult<()> {
    refuse_others(others()?)
}

/// 55006 while somebody else moves shards.
fn refuse_others(others: Option<String>) -> PgResult<()> {
    match others {
        None => Ok(()),
        Some(who) => Err(busy("somebody else moves shards of the Citus cluster")
            .set_detail(format!("It is {who}."))
            .set_hint("Wait for it (citus_rebalance_wait()), or stop it (citus_rebalance_stop()).")),
    }
}

/// Whether a move is one of a slot of Citus.
pub fn is_of_citus(move_id: i64) -> PgResult<bool> {
    let sql = "SELECT s.hash_from IS NOT NULL FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) WHERE m.move_id = $1";
    Ok(spi::one::<bool>(sql, &[move_id.into()])?.unwrap_or(false))
}

/// Whether Citus has a slot on a shard now, whatever is noted here.
pub fn is_on(slot_id: i64, shard_id: i32) -> PgResult<bool> {
    let on = spi::one::<bool>(
        "SELECT bool_and(n.nodeid = o.citus_node) FROM foreshard.citus_shard t JOIN pg_catalog.pg_dist_placement p ON p.shardid = t.citus_shard \
         JOIN pg_catalog.pg_dist_node n ON n.groupid = p.groupid AND n.noderole = 'primary' \
         CROSS JOIN foreshard.shard h JOIN foreshard.node o ON o.node_name = h.node_name WHERE t.slot_id = $1 AND h.shard_id = $2",
        &[slot_id.into(), shard_id.into()],
    )?;
    Ok(on.unwrap_or(false))
}

/// Takes the right to have Citus move something, until the transaction ends; false: another carrier has it. Citus would refuse two
/// moves in one of its groups.
pub fn take_turn() -> PgResult<bool> {
    let table = spi::one::<pg_sys::Oid>("SELECT 'foreshard.citus_table'::regclass::oid", &[])?
        .ok_or_else(|| internal("table foreshard.citus_table is missing"))?;
    Ok(lock::try_lock_all(&[table], lock::SHARE_UPDATE_EXCLUSIVE))
}

/// Has Citus move all shards of a slot, in this transaction; writers wait only for its end.
///
/// The transaction must have no id yet, so this is a statement that reads as far as SPI is concerned: where the coordinator holds
/// the shards, Citus makes a replication slot here, which waits for all transactions that have an id.
///
/// # Errors
/// Those of `citus_move_shard_placement`.
pub fn carry(slot_id: i64, from_shard: i32, to_shard: i32) -> PgResult<()> {
    let shard = super::counters::first_shard(slot_id)?;
    let node = "SELECT n.nodename, n.nodeport FROM foreshard.shard h JOIN foreshard.node o USING (node_name) \
                JOIN pg_catalog.pg_dist_node n ON n.nodeid = o.citus_node";
    let moved = spi::rows(
        &format!(
            "SELECT pg_catalog.citus_move_shard_placement($1, f.nodename, f.nodeport, t.nodename, t.nodeport) IS NULL \
             FROM ({node} WHERE h.shard_id = $2) f, ({node} WHERE h.shard_id = $3) t"
        ),
        &[shard.into(), from_shard.into(), to_shard.into()],
        |_| Ok(()),
    )?;
    if moved.is_empty() { Err(internal("a node of a move is gone")) } else { Ok(()) }
}

/// Has Citus drop what moves have left that were broken off; why it did not, None: it did. The procedure takes transactions of its
/// own, so it is called by a connection of Citus' to this server.
pub fn clean_up() -> PgResult<Option<String>> {
    reading::within(CLEAN_UP_MS, || {
        let said = spi::rows_mut(
            "SELECT m.success, m.result FROM pg_catalog.master_run_on_worker(ARRAY[pg_catalog.current_setting('citus.local_hostname')], \
                 ARRAY[pg_catalog.current_setting('port')::int], ARRAY['CALL pg_catalog.citus_cleanup_orphaned_resources()'], false) m",
            &[],
            |row| Ok((row.get::<bool>(1)?, row.get::<String>(2)?)),
        )?;
        Ok(said
            .into_iter()
            .find(|(success, _)| *success != Some(true))
            .map(|(_, why)| why.unwrap_or_default()))
    })
}

/// Who has copied or switched over shards since a move has, or is about to, in words; None: nobody.
pub fn company(move_id: i64) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT coalesce((SELECT min(k.others_move) FROM foreshard.citus_cluster k), (SELECT format('move %s', o.move_id) \
             FROM foreshard.move m JOIN foreshard.move o ON o.move_id <> m.move_id JOIN foreshard.slot s ON s.slot_id = o.slot_id \
             WHERE m.move_id = $1 AND s.hash_from IS NOT NULL \
               AND (NOT o.finished AND (o.phase = 'copy' OR o.phase = 'watch' AND (o.rollback_requested OR o.cancel_requested)) \
                    OR o.swapped_at > m.swapped_at OR o.phase NOT IN ('done', 'retire', 'watch') AND o.started_at IS NOT NULL AND o.finished_at > m.swapped_at) \
             ORDER BY o.move_id LIMIT 1))",
        &[move_id.into()],
    )
}

/// Calls off the way back of a move that Citus has made: the slot stays where it is, and nobody but a person brings it back. False: there is
/// none under way.
pub fn call_off(move_id: i64) -> PgResult<bool> {
    Ok(spi::run(
        "UPDATE foreshard.move m SET rollback_requested = false, cancel_requested = false, errors = 0, gave_way = 0, not_before = NULL, waiting_for = NULL, \
             undone_at = CASE WHEN m.undone_by = m.move_id THEN NULL ELSE m.undone_at END, undone_by = nullif(m.undone_by, m.move_id), \
             baseline = coalesce(m.baseline, '{}') || '{\"over\": true}' FROM foreshard.slot s \
         WHERE m.move_id = $1 AND s.slot_id = m.slot_id AND s.hash_from IS NOT NULL AND m.phase = 'watch' AND NOT m.finished \
           AND (m.rollback_requested OR m.cancel_requested)",
        &[move_id.into()],
    )? > 0)
}

/// Counts an error of a move's; how many there were in its phase.
pub fn count_error(move_id: i64) -> PgResult<u32> {
    let errors = spi::one_mut::<i32>(
        "UPDATE foreshard.move SET errors = errors + 1 WHERE move_id = $1 RETURNING errors",
        &[move_id.into()],
    )?;
    Ok(errors.unwrap_or(0).max(0) as u32)
}

/// Notes that the slot has moved, which [`super::layout::follow`] has seen.
pub fn set_swapped(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move m SET swapped_at = pg_catalog.clock_timestamp(), gave_way = 0, not_before = NULL, \
             bytes_copied = (SELECT sum(t.bytes) FROM foreshard.citus_shard t WHERE t.slot_id = m.slot_id) WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Whether there are moves of ours that have not ended, or others whose end they would wait for.
pub fn is_any() -> PgResult<bool> {
    let sql = "SELECT EXISTS (SELECT FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) WHERE s.hash_from IS NOT NULL AND NOT m.finished) \
               OR EXISTS (SELECT FROM foreshard.citus_cluster k WHERE k.others_move IS NOT NULL)";
    Ok(spi::one::<bool>(sql, &[])?.unwrap_or(false))
}

/// Checks that a move can be held up, which one that Citus is at cannot.
///
/// # Errors
/// 55000 Citus is at it.
pub fn require_pausable(move_id: i64) -> PgResult<()> {
    let is_at_it = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) JOIN pg_catalog.pg_locks l ON l.objid = m.move_id::int8::oid \
             WHERE m.move_id = $1 AND s.hash_from IS NOT NULL AND NOT m.finished AND m.phase = 'copy' \
               AND l.locktype = 'object' AND l.classid = 'foreshard.move'::regclass AND l.granted \
               AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()))",
        &[move_id.into()],
    )?;
    if is_at_it != Some(true) {
        return Ok(());
    }
    Err(wrong_state(format!("move {move_id} cannot be paused now"))
        .set_detail(
            "Citus copies its shards and switches them over in one statement, which cannot be held up.",
        )
        .set_hint("Let it end, or end it with foreshard.cancel_move()."))
}

/// Notes how far Citus is with the moves it makes for us, as far as it says so.
pub fn note_progress() -> PgResult<()> {
    let under_way = "SELECT EXISTS (SELECT FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) \
                     WHERE s.hash_from IS NOT NULL AND NOT m.finished AND m.phase = 'copy')";
    if spi::one::<bool>(under_way, &[])? != Some(true) {
        return Ok(());
    }
    // It asks the nodes for the sizes.
    reading::within(PATIENCE_MS, || {
        spi::run(
            "UPDATE foreshard.move m SET waiting_for = q.said FROM (SELECT t.slot_id, format('Citus: %s, %s of %s bytes', \
                     min(coalesce(pg_catalog.to_jsonb(p)->>'status', 'moving')), sum(p.target_shard_size), sum(p.source_shard_size)) AS said \
                 FROM pg_catalog.get_rebalance_progress() p JOIN foreshard.citus_shard t ON t.citus_shard = p.shardid GROUP BY 1) q \
             WHERE q.slot_id = m.slot_id AND NOT m.finished AND m.phase = 'copy'",
            &[],
        )
    })?;
    Ok(())
}

/// Moves that Citus may be at.
pub fn under_way() -> PgResult<Vec<i64>> {
    spi::rows(
        "SELECT m.move_id FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) \
         WHERE s.hash_from IS NOT NULL AND NOT m.finished AND m.phase IN ('copy', 'watch')",
        &[],
        |row| row.need(1),
    )
}

/// Lets a move rest for a while: no carrier comes for it.
pub fn rest(move_id: i64, why: &str, rest_s: f64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET waiting_for = $2, not_before = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3) \
         WHERE move_id = $1 AND NOT finished",
        &[move_id.into(), why.into(), rest_s.into()],
    )?;
    Ok(())
}

/// Moves that somebody wants to end while a carrier may wait for Citus, and those whose way back Citus is at though it was called off.
pub fn to_stop() -> PgResult<Vec<i64>> {
    spi::rows(
        "SELECT m.move_id FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) \
         WHERE s.hash_from IS NOT NULL AND NOT m.finished \
           AND (m.cancel_requested AND m.phase = 'copy' OR m.phase = 'watch' AND NOT m.rollback_requested AND NOT m.cancel_requested \
                AND EXISTS (SELECT FROM pg_catalog.pg_locks c JOIN pg_catalog.pg_locks x ON x.pid = c.pid AND x.locktype = 'advisory' AND x.objsubid = ANY ($1) \
                    WHERE c.locktype = 'object' AND c.classid = 'foreshard.move'::regclass AND c.objid = m.move_id::int8::oid AND c.granted \
                      AND c.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())))",
        &[MOVE_LOCKS.to_vec().into()],
        |row| row.need(1),
    )
}

/// Ends the statement of the carrier of a move, if there is one: whoever has its lock at this moment.
pub fn interrupt(move_id: i64) -> PgResult<()> {
    spi::rows(
        "SELECT pg_catalog.pg_cancel_backend(l.pid) FROM pg_catalog.pg_locks l \
         WHERE l.locktype = 'object' AND l.classid = 'foreshard.move'::regclass AND l.objid = $1::int8::oid AND l.granted \
           AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())",
        &[move_id.into()],
        |row| row.need::<bool>(1),
    )
    .map(drop)
}
