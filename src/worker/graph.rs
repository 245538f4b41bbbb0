//! The worker of graphs, one per database, while there is work: counts accesses that were noted, moves nodes,
//! computes influence.

use crate::catalog::graph::{self as catalog, influence as stored, moving as queue};
use crate::catalog::{link, session};
use crate::graph::moving::{self, MadePart, Progress};
use crate::graph::{influence, place};
use crate::mover::short_lock;
use crate::pg::bgworker::{self, WorkResult};
use crate::pg::wire::Bound;
use crate::pg::{guc, lock};
use crate::planner;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Moves of nodes that are tried one by one after some together have failed: as many as those were at most.
const ONE_BY_ONE: u32 = 500;
/// Attempts to lock a closure for a new part, some 20 s.
const PART_ATTEMPTS: u32 = 144;
/// How long making a part on a node may take, ms.
const NODE_MS: u128 = 10_000;
/// Components of a graph that others hold, of which the nodes are not moved now.
const MOST_BUSY: usize = 1_000;

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
        ("moves of nodes to new parts", move_to_new_parts),
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

/// Makes the parts that moves wait for, then the moves. When a closure is never free for a moment, the next worker tries again.
fn move_to_new_parts() -> WorkResult<()> {
    let (mut attempt, mut made) = (0, false);
    while attempt < PART_ATTEMPTS {
        let lock = |closure: &[pg_sys::Oid]| short_lock::try_lock(closure, lock::ACCESS_EXCLUSIVE, attempt);
        // A node that has gone silent would keep the rows of ours that are locked meanwhile.
        let bound = Bound::set(NODE_MS);
        let part = bgworker::transaction(|| moving::make_part(lock));
        drop(bound);
        match part {
            Ok(MadePart::None) => break,
            Ok(MadePart::Made) => (attempt, made) = (0, true),
            Ok(MadePart::Nearer) => {}
            Ok(MadePart::Busy) => attempt += 1,
            Err(failure) if is_passing(failure.code) => attempt += 1,
            Err(failure) => {
                link::distrust();
                bgworker::transaction(|| moving::give_up_part(&failure.line))?;
            }
        }
        bgworker::wait(short_lock::backoff_ms(attempt));
    }
    if made { move_nodes() } else { Ok(()) }
}

/// Makes the moves that wait.
fn move_nodes() -> WorkResult<()> {
    for graph_id in bgworker::transaction(queue::graphs_waiting)? {
        move_nodes_of(graph_id)?;
    }
    Ok(())
}

/// Those of one graph, from the first to the last. When one of a transaction fails, they are tried one by one until it is found;
/// components that others hold are left for the next worker.
fn move_nodes_of(graph_id: i32) -> WorkResult<()> {
    let (mut progress, mut one) = (Progress::new(graph_id), 0_u32);
    loop {
        match bgworker::transaction(|| moving::work(&progress, one > 0)) {
            Ok(None) => return Ok(()),
            Ok(Some(last)) => (progress.after, one) = (last, one.saturating_sub(1)),
            Err(failure) if is_passing(failure.code) && progress.awaited.get().is_some() => {
                progress.busy.extend(progress.awaited.take());
                if progress.busy.len() > MOST_BUSY {
                    return Err(failure);
                }
            }
            Err(_) if one == 0 => one = ONE_BY_ONE,
            Err(failure) => {
                match bgworker::transaction(|| moving::first(&progress))? {
                    Some(blocked) if is_passing(failure.code) => progress.after = blocked,
                    _ => bgworker::transaction(|| moving::give_up(&progress, &failure.line))?,
                }
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
