//! Who or what is in the way of a move.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;

/// Who holds locks on these relations or old snapshots, in words; None when nobody.
pub fn blockers(relations: &[pg_sys::Oid]) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT pg_catalog.string_agg(DISTINCT CASE WHEN l.pid IS NULL THEN 'a prepared transaction (see pg_prepared_xacts)' \
                ELSE format('pid %s (%s, transaction %s s old)', a.pid, coalesce(a.state, a.backend_type), \
                round(extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start))) END, ', ') \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.granted AND l.relation = ANY ($1) AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
           AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()",
        &[relations.to_vec().into()],
    )
}

/// Whose serializable transactions, running or not yet forgotten, have read something of these relations, in words; None: nobody's.
pub fn serializable_readers(relations: &[pg_sys::Oid]) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT pg_catalog.string_agg(DISTINCT coalesce('what pid ' || l.pid || ' has read in a serializable transaction', \
                'what serializable transactions have read'), ', ') \
         FROM pg_catalog.pg_locks l WHERE l.mode = 'SIReadLock' \
           AND (l.relation = ANY ($1) OR l.relation IN (SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = ANY ($1))) \
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
        &[relations.to_vec().into()],
    )
}

/// The virtual transactions, as pg_locks calls them, that wait at this moment to write to one of these relations.
pub fn writers(relations: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT DISTINCT l.virtualtransaction FROM pg_catalog.pg_locks l WHERE l.locktype = 'relation' AND NOT l.granted \
           AND l.mode = 'RowExclusiveLock' AND l.relation = ANY ($1) \
           AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
        &[relations.to_vec().into()],
        |row| row.need(1),
    )
}

/// The backends that hold the oldest snapshots of this database, in words.
pub fn oldest_snapshots() -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT pg_catalog.string_agg(format('snapshot of pid %s (%s s old)', pid, round(extract(epoch FROM pg_catalog.clock_timestamp() - xact_start))), ', ') \
         FROM (SELECT pid, xact_start FROM pg_catalog.pg_stat_activity WHERE datname = current_database() AND backend_xmin IS NOT NULL \
                 AND pid <> pg_catalog.pg_backend_pid() ORDER BY pg_catalog.age(backend_xmin) DESC LIMIT 3) q",
        &[],
    )
}

/// The replica whose sessions have the oldest snapshot, in words, when that may not see what transaction `xid` did. Only of
/// replicas with hot_standby_feedback is it known.
pub fn replica_snapshots(xid: i64) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT format('snapshot on %s', who) FROM ( \
           SELECT format('replica \"%s\"', application_name) AS who, pg_catalog.age(backend_xmin) AS age FROM pg_catalog.pg_stat_replication \
           UNION ALL SELECT format('the replica of slot \"%s\"', slot_name), pg_catalog.age(xmin) FROM pg_catalog.pg_replication_slots WHERE active) q \
         WHERE age >= pg_catalog.age($1::text::xid) ORDER BY age DESC LIMIT 1",
        &[xid.into()],
    )
}

/// Age in ms of the oldest transaction that holds a lock on these relations, autovacuum aside; a prepared
/// one is infinitely old.
pub fn oldest_holder_ms(relations: &[pg_sys::Oid]) -> PgResult<Option<f64>> {
    spi::one::<f64>(
        "SELECT max(CASE WHEN l.pid IS NULL THEN 'infinity' ELSE extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start) * 1000 END)::float8 \
         FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.granted AND l.relation = ANY ($1) AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()) \
           AND a.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() AND a.backend_type IS DISTINCT FROM 'autovacuum worker'",
        &[relations.to_vec().into()],
    )
}

/// The replica that is furthest behind, in words, when it is more than so many bytes.
pub fn lagging_replica(limit_bytes: i64) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT format('replica \"%s\" (pid %s) is %s behind', application_name, pid, pg_catalog.pg_size_pretty(lag)) \
         FROM (SELECT application_name, pid, pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), \
                      coalesce(replay_lsn, flush_lsn, write_lsn, sent_lsn)) AS lag \
               FROM pg_catalog.pg_stat_replication WHERE state IN ('streaming', 'catchup')) q WHERE lag > $1 ORDER BY lag DESC LIMIT 1",
        &[limit_bytes.into()],
    )
}

/// Bytes of WAL written so far.
pub fn wal_bytes() -> PgResult<f64> {
    let sql = "SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), '0/0')::float8";
    Ok(spi::one::<f64>(sql, &[])?.unwrap_or(0.0))
}

/// Who holds the oldest snapshot (a session, a prepared transaction, a replication slot or a replica), in words,
/// when that lies more than so many transactions back.
pub fn oldest_xmin(limit: i64) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT format('%s holds a snapshot %s transactions old', who, age) FROM ( \
           SELECT format('pid %s', pid) AS who, pg_catalog.age(backend_xmin) AS age FROM pg_catalog.pg_stat_activity WHERE backend_xmin IS NOT NULL \
           UNION ALL SELECT format('prepared transaction \"%s\"', gid), pg_catalog.age(transaction) FROM pg_catalog.pg_prepared_xacts \
           UNION ALL SELECT format('replication slot \"%s\"', slot_name), greatest(pg_catalog.age(xmin), pg_catalog.age(catalog_xmin)) FROM pg_catalog.pg_replication_slots \
           UNION ALL SELECT format('replica \"%s\"', application_name), pg_catalog.age(backend_xmin) FROM pg_catalog.pg_stat_replication) q \
         WHERE age > $1 ORDER BY age DESC LIMIT 1",
        &[limit.into()],
    )
}
