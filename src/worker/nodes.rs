//! The worker of health checks: asks every node that is due how it is, reads the statistics of the tables there, and
//! drops there what nobody needs. It ends when that is done; a node that is cut off holds up nobody else.

use crate::catalog::link;
use crate::catalog::measured;
use crate::catalog::node::{self, NodeRow};
use crate::catalog::remote::{self, lease, reap, rights, statistics};
use crate::catalog::session;
use crate::mover::is_away;
use crate::pg::away;
use crate::pg::bgworker::{self, Failure, WorkResult, transaction};
use crate::pg::remote::server_oid;
use crate::pg::report::PgResult;
use crate::pg::wire::{self, Bound};
use crate::pg::{guc, lock};
use foreshard_core::breaker::State;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

/// The extra number of a worker that looks at the Citus cluster instead.
pub const CITUS: i64 = 1;
/// How long a node may take to say how it is, ms; one that accepts connections and says nothing is down like others.
const PATIENCE_MS: u128 = 5_000;
/// How long any one thing else may take on a node, ms: others are waiting, and that this one has gone silent meanwhile is
/// only seen at the next look. What was begun there ends there, and is found done.
const STEP_MS: u128 = 10_000;

/// How long anybody may keep it from a row of ours, ms, such as that of a node which is dropped in a transaction that stays
/// open: the other nodes have their turn.
const LOCK_MS: u32 = 5_000;

/// How long rights may be carried to one node in one look; what is left has its turn in the next.
const RIGHTS_LIMIT: Duration = Duration::from_secs(30);

/// From so long a wait on, statements are not let wait for a node as well: what is refused at once they hear as soon themselves.
const LONG_WAIT: Duration = Duration::from_secs(1);
/// For so long, and as long as three looks at every node are apart, it holds that statements would wait in vain, ms; at most
/// twice as long, should nobody look any more.
const HOLD_MS: u64 = 60_000;

/// Entry point; the argument is the database's oid.
///
/// # Safety
/// Called by PostgreSQL in a fresh background worker only.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn foreshard_nodes_main(argument: pg_sys::Datum) {
    let database = argument.value() as u32;
    bgworker::on_exit(leave);
    bgworker::begin(database);
    if !super::enter(database) || transaction(session::prepare_worker).is_err() {
        return;
    }
    if let Err(failure) = transaction(|| session::wait_for_locks(LOCK_MS)) {
        return pgrx::log!("foreshard nodes: {}", failure.line);
    }
    if bgworker::extra() == CITUS {
        return super::citus::look();
    }
    let nodes = match transaction(|| Ok(if only_one()? { node::nodes(None)? } else { Vec::new() })) {
        Ok(nodes) => nodes,
        Err(failure) => return pgrx::log!("foreshard nodes: {}", failure.line),
    };
    // Nothing here runs an owner's code.
    link::keep_all();
    // At the same time: a name server that is silent holds up all of them once.
    if let Err(failure) = transaction(|| nodes.iter().try_for_each(|node| link::look_up(&node.server))) {
        pgrx::log!("foreshard nodes: {}", failure.line);
    }
    for node in nodes {
        bgworker::show_activity(Some(&format!("looking at node {}", node.name)));
        if let Err(failure) = look_after(&node) {
            link::distrust();
            pgrx::log!("foreshard node {}: {}", node.name, failure.line);
        }
    }
}

/// # Safety
/// An exit callback of PostgreSQL.
#[pg_guard]
extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    super::leave();
}

/// Whether there is no other worker like this one: two of them would renew a claim against each other.
fn only_one() -> PgResult<bool> {
    Ok(lock::try_session_lock(node::class()?, 0))
}

/// Renews this server's claim to what it made on a node; false: another server has done so.
fn renew(node: &NodeRow) -> WorkResult<bool> {
    let there = transaction(|| lease::look(&lease::open(node)?, node))?;
    let next = transaction(|| lease::propose(node, there.as_deref()))?;
    let written = match &next {
        Some(next) => transaction(|| lease::write(&lease::open(node)?, node, there.as_deref(), next))?,
        None => false,
    };
    let next = next.filter(|_| written);
    transaction(|| lease::settle(node, next.as_deref()))?;
    Ok(written)
}

/// Does one thing on a node, within its time.
fn bounded<R>(work: impl FnOnce() -> WorkResult<R>) -> WorkResult<R> {
    let _bound = Bound::set(STEP_MS);
    work()
}

/// Follows what is granted, revoked and mapped here, on the tables on a node.
fn carry_rights(node: &NodeRow) -> WorkResult<()> {
    let due = transaction(|| rights::note_due(&node.name))?;
    if due.is_empty() {
        return Ok(());
    }
    let roles = bounded(|| transaction(|| rights::roles_there(&lease::open(node)?, &due)))?;
    let until = Instant::now() + RIGHTS_LIMIT;
    let mut ended = Ok(());
    // One owner who cannot log in there keeps nobody else from losing a right.
    for one in due.iter().take_while(|_| Instant::now() < until) {
        if let Err(failure) = bounded(|| transaction(|| one.carry(node, &roles))) {
            link::distrust();
            ended = Err(failure);
        }
    }
    ended
}

/// One health check, and while the node answers what else there is to do on it.
fn look_after(node: &NodeRow) -> WorkResult<()> {
    let limit = guc::NODE_FAILURES.get().max(1) as u32;
    let begun = Instant::now();
    let bound = Bound::set(PATIENCE_MS);
    let looked = transaction(|| {
        let link = lease::open(node)?;
        wire::watch();
        node::look_at(&link, &node.server, &node.schema)
    });
    let was_cut = bound.end();
    let (looks, why) = match &looked {
        Ok(looks) => (Some(looks), None),
        Err(_) if was_cut => (None, Some("it did not say within five seconds how it is")),
        Err(Failure { line, .. }) => (None, Some(line.as_str())),
    };
    let now = node.breaker.after(looks.is_some(), limit);
    let took = begun.elapsed();
    transaction(|| {
        node::store(node, now, looks, why, took)?;
        if looks.is_none() {
            measured::forget(&node.name)?;
        }
        let silent = match &looked {
            Err(failure) if now.state == State::Open => is_silent(node, failure, was_cut, took)?,
            _ => false,
        };
        tell_statements(node, silent);
        Ok(())
    })?;
    if looks.is_none() {
        link::distrust();
        return Ok(());
    }
    look_further(node)
}

/// Whether whoever asks the node waits in vain. Where another of several hosts may answer readers only what ended by itself counts:
/// then all of them were tried.
fn is_silent(node: &NodeRow, failure: &Failure, was_cut: bool, took: Duration) -> PgResult<bool> {
    if was_cut || link::is_looking_up(&node.server)? {
        return Ok(!node::has_several_hosts(&node.server)?);
    }
    Ok(is_away(failure) && took >= LONG_WAIT)
}

/// Lets statements of this database know whether they would wait for the node in vain.
fn tell_statements(node: &NodeRow, silent: bool) {
    let Some(server) = server_oid(&node.server).map(pg_sys::Oid::from) else { return };
    if silent {
        let between_ms = guc::NODE_CHECK_INTERVAL.get().max(0) as u64 * 1000;
        away::note(server, HOLD_MS + (3 * between_ms).min(HOLD_MS));
    } else {
        away::forget(server);
    }
}

/// Reads what the node knows of our tables there, and what a foreshard there has measured. What fails is asked again without that: what is
/// wrong may be that foreshard, which keeps nothing else from being done.
fn read_statistics(node: &NodeRow) -> WorkResult<()> {
    let collect = |measured, failed: Option<&str>| {
        bounded(|| transaction(|| statistics::collect(&lease::open(node)?, node, measured, failed)))
    };
    let mut failed = None;
    if transaction(|| measured::is_asked(&node.name))? {
        let Err(failure) = collect(true, None) else { return Ok(()) };
        link::distrust();
        failed = Some(failure.line);
    }
    collect(false, failed.as_deref())
}

/// What else there is to do on a node that answers.
fn look_further(node: &NodeRow) -> WorkResult<()> {
    let is_ours = bounded(|| renew(node))?;
    read_statistics(node)?;
    if !is_ours {
        return Ok(());
    }
    if let Err(failure) = carry_rights(node) {
        // The rest does not hang on it, and check() tells what is due.
        link::distrust();
        pgrx::log!("foreshard node {}: rights: {}", node.name, failure.line);
    }
    for table in transaction(|| remote::dressed(&node.name))? {
        let clear = || {
            if !remote::is_left_dressed(table.remote_id)? {
                return Ok(());
            }
            reap::clear(node, &table, guc::MAX_LOCK_TIME.get())
        };
        bounded(|| transaction(clear))?;
    }
    for orphan in transaction(|| reap::left_on(node))? {
        // Who made it may have lost its user mapping, or its right to connect.
        let drop_as = |as_maker: bool| {
            // A part of a closure may have been attached meanwhile.
            if !remote::is_orphan(orphan.remote_id)? {
                return Ok(());
            }
            reap::drop_orphan(node, &orphan, as_maker)
        };
        if bounded(|| transaction(|| drop_as(true))).is_err() {
            link::distrust();
            bounded(|| transaction(|| drop_as(false)))?;
        }
    }
    Ok(())
}
