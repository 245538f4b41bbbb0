//! For the people who look: the report, and what status() and check() must ask shared memory.

use crate::catalog::report;
use crate::pg::report::PgResult;
use crate::pg::types::Regclass;
use crate::pg::{bgworker, disk, lock, shmem};
use pgrx::prelude::*;

/// Everything on one self-contained HTML page, as the caller may see it; changes nothing. Without JIT, which would take
/// longer than all of its queries.
#[pg_extern(
    volatile,
    parallel_unsafe,
    sql = "CREATE FUNCTION foreshard.report_html() RETURNS text VOLATILE PARALLEL UNSAFE \
           SET search_path TO pg_catalog, pg_temp SET jit TO off \
           LANGUAGE c AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';"
)]
fn report_html() -> PgResult<String> {
    Ok(foreshard_core::report::html(&report::read()?))
}

/// Internal: whether the library is preloaded, of which version it is, and which workers serve this database.
#[pg_extern(volatile, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn worker_states() -> TableIterator<
    'static,
    (
        name!(preloaded, bool),
        name!(library_version, String),
        name!(launcher_pid, Option<i32>),
        name!(keeper_pid, Option<i32>),
        name!(keeper_state, String),
        name!(carriers, i32),
        name!(keeper_look_ms, Option<f64>),
    ),
> {
    let database = bgworker::database();
    let pid = |pid: i32| (pid > 0).then_some(pid);
    let (launcher, entry) = shmem::with(|registry| {
        let entry = registry.entries.iter().find(|e| e.state != shmem::State::Free && e.database == database);
        (pid(registry.launcher), entry.copied())
    })
    .unwrap_or((None, None));
    let keeper = entry.and_then(|entry| pid(entry.keeper));
    let state = match entry.map(|entry| entry.state) {
        _ if keeper.is_some() => "running",
        Some(shmem::State::Probe | shmem::State::Running) => "starting",
        _ => "missing",
    };
    let carriers = entry.map_or(0, |entry| entry.carriers.iter().filter(|pid| **pid > 0).count());
    TableIterator::once((
        shmem::is_preloaded(),
        env!("CARGO_PKG_VERSION").to_string(),
        launcher,
        keeper,
        state.to_string(),
        carriers as i32,
        keeper.and(entry).map(|entry| f64::from(entry.look_us) / 1e3),
    ))
}

/// Internal: bytes of a table with its indexes and its toast table, without a lock on any of them; NULL: it does not exist.
#[pg_extern(stable, parallel_safe)]
#[search_path(pg_catalog, pg_temp)]
fn total_bytes(relation: Regclass) -> Option<i64> {
    disk::total_bytes(relation.0)
}

/// Internal: whether a relation can be looked into right now without waiting for whoever has locked it.
#[pg_extern(volatile, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
fn is_open(relation: Regclass) -> bool {
    lock::Shared::try_on(relation.0).is_some()
}
