//! The worker of graphs, one per database, while there is work: counts accesses that were noted, moves nodes,
//! computes influence.

use crate::catalog::graph::{self as catalog, influence as stored};
use crate::catalog::session;
use crate::graph::{influence, moving, place};
use crate::pg::bgworker::{self, WorkResult};
use crate::pg::guc;
use crate::planner;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Moves of nodes that are tried one by one after some together have failed: as many as those were at most.
const ONE_BY_ONE: u32 = 500;
/// Moves that wait for somebody, and do not keep others waiting.
const MOST_SKIPPED: usize = 1_000;

/// Entry point; the argument is the database's oid.
///
/// # Safety
/// Called by PostgreSQL in a fresh background worker only.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn foreshard_graph_main(argument: pg_sys::Datum) {
    let database = argument.value() as u32;
    bgworker::on_exit(leave);
    bgworker::begin(database);
    if !super::enter(database) {
        return;
    }
    let mut done = bgworker::transaction(session::prepare_worker);
    for (what, work) in [
        ("counting accesses", count as fn() -> WorkResult<()>),
        ("moves that nodes need", relieve),
        ("moves of nodes", move_nodes),
        ("influence", refresh),
    ] {
        if done.is_ok() {
            bgworker::show_activity(Some(what));
            done = work();
        }
        if let Err(report) = &done {
            pgrx::log!("foreshard graph: {what}: {}", report.line);
            done = Ok(());
        }
    }
}

/// # Safety
/// An exit callback of PostgreSQL.
#[pg_guard]
extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    super::leave();
}

/// Counts what was noted; a graph that cannot be read (a table was altered, say) stands in nobody's way.
fn count() -> WorkResult<()> {
    while let Some(graph_id) = bgworker::transaction(stored::next_accessed)? {
        match bgworker::transaction(|| place::count_accesses(graph_id)) {
            Err(failure) if is_passing(failure.code) => return Err(failure),
            Err(failure) => {
                pgrx::log!("foreshard graph: counting accesses: {}", failure.line);
                bgworker::transaction(|| place::forget_accesses(graph_id))?;
            }
            Ok(()) => {}
        }
        bgworker::wait(0);
    }
    Ok(())
}

/// Files moves of nodes that are far busier than others; in auto mode only, and in the hours that are left for moves.
fn relieve() -> WorkResult<()> {
    let threshold = guc::GRAPH_MOVE_THRESHOLD.get();
    let (interval, half_life) = (guc::PLAN_INTERVAL.get(), guc::GRAPH_HALF_LIFE.get());
    let due = bgworker::transaction(|| stored::take_to_judge(interval, half_life))?;
    if guc::MODE.get() != guc::Mode::Auto || threshold <= 0.0 {
        return Ok(());
    }
    let may_begin = planner::is_open(bgworker::now_s());
    for graph_id in due {
        if let Err(failure) = bgworker::transaction(|| place::relieve(graph_id, threshold, may_begin)) {
            pgrx::log!("foreshard graph: moves that nodes need: {}", failure.line);
        }
    }
    Ok(())
}

/// Makes the moves that wait. When one of a transaction fails, they are tried one by one until it is found.
fn move_nodes() -> WorkResult<()> {
    let mut one = 0_u32;
    // Their components are held by somebody: they are tried again the next time.
    let mut skipped: Vec<i64> = Vec::new();
    loop {
        match bgworker::transaction(|| moving::work(one > 0, &skipped)) {
            Ok(false) => return Ok(()),
            Ok(true) => one = one.saturating_sub(1),
            Err(_) if one == 0 => one = ONE_BY_ONE,
            Err(failure) if is_passing(failure.code) => {
                match bgworker::transaction(|| moving::first(&skipped))? {
                    Some(blocked) if skipped.len() < MOST_SKIPPED => skipped.push(blocked),
                    _ => return Err(failure),
                }
                one = 0;
            }
            Err(failure) => {
                bgworker::transaction(|| moving::give_up(&failure.line, &skipped))?;
                one = 0;
            }
        }
        bgworker::wait(0);
    }
}

fn is_passing(code: PgSqlErrorCode) -> bool {
    matches!(
        code,
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE
            | PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED
            | PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE
            | PgSqlErrorCode::ERRCODE_QUERY_CANCELED
            | PgSqlErrorCode::ERRCODE_DISK_FULL
    )
}

/// Computes the influence of the nodes of graphs that have changed; every batch is a transaction.
fn refresh() -> WorkResult<()> {
    let interval = guc::INFLUENCE_INTERVAL.get();
    if interval == 0 {
        return Ok(());
    }
    while let Some((graph_id, before)) = bgworker::transaction(|| stored::next_due(interval))? {
        let scores = bgworker::transaction(|| {
            let graph = catalog::by_id(graph_id)?;
            if before.is_some() && before == Some(stored::changes(&graph)?) {
                return Ok(None);
            }
            influence::compute(&graph, influence::EPSILON).map(Some)
        });
        let scores = match scores {
            Ok(Some(scores)) => scores,
            Ok(None) => continue,
            Err(failure) => {
                pgrx::log!("foreshard graph: influence: {}", failure.line);
                continue;
            }
        };
        // A graph that was dropped meanwhile stands in no other's way.
        if let Err(failure) = store(graph_id, &scores) {
            pgrx::log!("foreshard graph: influence: {}", failure.line);
        }
    }
    Ok(())
}

fn store(graph_id: i32, scores: &influence::Scores) -> WorkResult<()> {
    let mut batch = 0;
    let write =
        |batch| bgworker::transaction(|| influence::write(&*catalog::by_id(graph_id)?, scores, batch));
    while write(batch)?.is_some() {
        batch += 1;
        bgworker::wait(0);
    }
    bgworker::transaction(|| influence::note(graph_id, scores))
}
