//! What a cutover needs of nodes: that the copy there is the one that was verified, that nobody writes the source any more,
//! and who is in the way of that.

use super::copy::Pair;
use super::{RemoteRow, literal};
use crate::catalog::link::Link;
use crate::pg::report::{PgResult, PgSqlErrorCode, error};
use crate::pg::spi;

/// When we are cut off, the lock of a cutover on a node goes after so long, ms.
const LEFT_ALONE_MS: i32 = 10_000;
/// What tells one life of a server from the next: it is started again, all its sessions have crashed (after which its
/// statistics begin anew), or another server has taken its place. What it had committed without waiting for the disk, or for
/// the standby that took its place, may be lost then.
const LIFE: &str =
    "SELECT concat_ws(' ', pg_postmaster_start_time(), pg_stat_get_bgwriter_stat_reset_time())";

impl Pair {
    /// Notes in which life of its node a copy is compared: before it is, and over the same connection.
    pub fn note_life(&self, move_id: i64) -> PgResult<()> {
        let Some((link, _)) = self.copy.link(self.shape.owner)? else { return Ok(()) };
        let life = link.one(LIFE)?;
        spi::run(
            "UPDATE foreshard.move_relation SET life_there = $3 WHERE move_id = $1 AND source = $2",
            &[move_id.into(), self.source.relation.into(), life.as_deref().into()],
        )?;
        Ok(())
    }

    /// Whether a copy on a node is still the one that was compared: keys that were replayed into it since are logged no more,
    /// so nothing else would miss what the node has lost. And that none of our own transactions is under way there.
    ///
    /// # Errors
    /// 55P03 one is.
    pub fn is_as_verified(&self) -> PgResult<bool> {
        let Some((link, remote)) = self.copy.link(self.shape.owner)? else { return Ok(true) };
        let noted = "SELECT life_there FROM foreshard.move_relation WHERE source = $1";
        if spi::one::<String>(noted, &[self.source.relation.into()])? != link.one(LIFE)? {
            return Ok(false);
        }
        let state = format!("SELECT blocks FROM {} FOR UPDATE NOWAIT", remote.aid_there("state"));
        if link.rows(&state, 1)?.is_empty() {
            return Err(error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "the copy is still being written"));
        }
        Ok(true)
    }

    /// Makes sure that nobody is writing a source on a node, not even a transaction that this server has given up: takes a
    /// lock there that lasts until [`release_there`](Self::release_there), or as long as the connection, over which nothing else is
    /// asked: with both shards on one node what makes the copy durable would else be committed after the exchange.
    ///
    /// # Errors
    /// 55P03 somebody is.
    pub fn hold_there(&self, wait_ms: i32) -> PgResult<()> {
        let Some((link, remote)) = self.source.holder(self.shape.owner)? else { return Ok(()) };
        link.exec(&format!(
            "BEGIN; SET LOCAL lock_timeout = {wait_ms}; SET LOCAL idle_in_transaction_session_timeout = {}; \
             LOCK TABLE {} IN SHARE MODE",
            wait_ms + LEFT_ALONE_MS,
            remote.table_there()
        ))
    }

    /// That the lock of [`hold_there`](Self::hold_there) is still held: its connection may have been lost since.
    ///
    /// # Errors
    /// 55P03 it is not, or what the connection ended with.
    pub fn is_still_held(&self) -> PgResult<()> {
        let Some(remote) = &self.source.remote else { return Ok(()) };
        match Link::that_holds(&remote.server, self.shape.owner)? {
            Some(link) => link.one("SELECT 'held'").map(drop),
            None => Err(error(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, "the lock on the node is gone")),
        }
    }

    /// Who is in the way of a lock on a source on a node, in words; None: nobody, or the source is here. Without `writers`
    /// only who holds it for long: autovacuum above all, which gives way to nobody for a second.
    pub fn in_the_way(&self, writers: bool) -> PgResult<Option<String>> {
        let Some((link, remote)) = self.source.link(self.shape.owner)? else { return Ok(None) };
        let who = holders(&link, remote, writers)?;
        Ok(who.map(|who| format!("node {}: {who}", remote.node)))
    }
}

fn holders(link: &Link, remote: &RemoteRow, writers: bool) -> PgResult<Option<String>> {
    let writers = if writers { "'RowExclusiveLock', " } else { "" };
    let table = literal(&remote.table_there());
    link.one(&format!(
        "SELECT string_agg(DISTINCT CASE WHEN l.pid IS NULL THEN 'a prepared transaction' \
                WHEN a.backend_type = 'autovacuum worker' THEN format('autovacuum of %s (pid %s)', {table}, l.pid) \
                ELSE format('pid %s (%s on %s)', l.pid, l.mode, {table}) END, ', ') \
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.granted AND l.locktype = 'relation' AND l.relation = to_regclass({table}) AND l.pid IS DISTINCT FROM pg_backend_pid() \
           AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) \
           AND l.mode IN ({writers}'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
    ))
}

/// What was verified of a move has to be verified again.
pub fn forget_verified(move_id: i64) -> PgResult<()> {
    spi::run("UPDATE foreshard.move SET verified_at = NULL WHERE move_id = $1", &[move_id.into()])?;
    Ok(())
}
