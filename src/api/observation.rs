//! How the observation fares: what shared memory holds, and what it had to drop.

use crate::catalog::statistics;
use crate::observe::drain;
use crate::pg::{bgworker, guc, progress, security, shmem};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// A counter as PostgreSQL's bigint.
fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Internal, behind the view stat_foreshard: every area of shared memory, all databases together, what this database's
/// keeper could not read in time, and what it had to forget or could not take up.
#[pg_extern(volatile, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn observation_areas() -> Result<
    TableIterator<
        'static,
        (
            name!(area, String),
            name!(capacity, i64),
            name!(used, Option<i64>),
            name!(written, Option<i64>),
            name!(dropped, i64),
            name!(lost, Option<i64>),
        ),
    >,
    ErrorReport,
> {
    shmem::require_preloaded()?;
    let _owner = security::as_extension_owner()?;
    let lost = statistics::lost()?;
    let rows = drain::areas().into_iter().map(|area| {
        // Only rings are overwritten.
        let unread = area.written.map(|_| lost.get(area.name).copied().unwrap_or(0));
        (
            area.name.to_string(),
            whole(area.capacity),
            area.used.map(whole),
            area.written.map(whole),
            whole(area.dropped),
            unread,
        )
    });
    let whole_of = |setting: i32| setting.max(0) as usize;
    let learnt = [
        statistics::NEW_PROFILES,
        (statistics::MODELS.0, whole_of(guc::MAX_TRIGGER_PROFILES.get())),
        statistics::EDGES,
        statistics::PAIRS,
        (statistics::HOT_KEYS.0, whole_of(guc::MAX_HOT_KEYS.get())),
        statistics::UNIT_COSTS,
    ];
    let learnt = learnt.iter().map(|(area, capacity)| {
        let lost = lost.get(*area).copied().unwrap_or(0);
        ((*area).to_string(), whole(*capacity as u64), None, None, 0, Some(lost))
    });
    Ok(TableIterator::new(rows.chain(learnt).collect::<Vec<_>>()))
}

/// Internal, behind the view stat_sampling: what measuring itself cost, all databases together.
#[pg_extern(volatile, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn observation_sampling() -> Result<
    TableIterator<
        'static,
        (
            name!(statements_sampled, i64),
            name!(measuring_ms, f64),
            name!(too_deep, i64),
            name!(given_up, i64),
        ),
    >,
    ErrorReport,
> {
    shmem::require_preloaded()?;
    let (statements, measuring_ms, too_deep, given_up) = drain::sampling();
    Ok(TableIterator::once((whole(statements), measuring_ms, whole(too_deep), whole(given_up))))
}

/// Internal, behind the view progress_moves: how far the carriers of this database are with a verification.
#[pg_extern(volatile, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
pub fn verification_progress() -> TableIterator<
    'static,
    (name!(move_id, i64), name!(blocks_done, i64), name!(blocks_total, i64), name!(elapsed_s, f64)),
> {
    let now_us = bgworker::now_us();
    TableIterator::new(progress::told().into_iter().map(move |work| {
        let elapsed_s = (now_us - work.since_us) as f64 / 1e6;
        (work.move_id, work.blocks_done.min(work.blocks_total), work.blocks_total, elapsed_s)
    }))
}
