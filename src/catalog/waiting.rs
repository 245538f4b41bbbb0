//! Who is in the way of a move.

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

/// The backends that hold the oldest snapshots of this database, in words.
pub fn oldest_snapshots() -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT pg_catalog.string_agg(format('snapshot of pid %s (%s s old)', pid, round(extract(epoch FROM pg_catalog.clock_timestamp() - xact_start))), ', ') \
         FROM (SELECT pid, xact_start FROM pg_catalog.pg_stat_activity WHERE datname = current_database() AND backend_xmin IS NOT NULL \
                 AND pid <> pg_catalog.pg_backend_pid() ORDER BY pg_catalog.age(backend_xmin) DESC LIMIT 3) q",
        &[],
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
