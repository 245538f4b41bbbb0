//! The worker of health checks: asks every node that is due how it is, reads the statistics of the tables there, and
//! drops there what nobody needs. It ends when that is done; a node that is cut off holds up nobody else.

use crate::catalog::link::Link;
use crate::catalog::node::{self, NodeRow};
use crate::catalog::remote::{self, reap, statistics};
use crate::catalog::session;
use crate::pg::bgworker::{self, Failure, WorkResult, transaction};
use crate::pg::guc;
use crate::pg::report::{PgResult, unknown};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// The extra number of a worker that looks at the Citus cluster instead.
pub const CITUS: i64 = 1;

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
    if bgworker::extra() == CITUS {
        return super::citus::look();
    }
    let nodes = match transaction(|| node::nodes(None)) {
        Ok(nodes) => nodes,
        Err(failure) => return pgrx::log!("foreshard nodes: {}", failure.line),
    };
    for node in nodes {
        bgworker::show_activity(Some(&format!("looking at node {}", node.name)));
        if let Err(failure) = look_after(&node) {
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

fn open(node: &NodeRow) -> PgResult<Link> {
    let role = node.checked_as.ok_or_else(|| {
        unknown(format!("the role that added node \"{}\" is gone", node.name))
            .set_hint("Remove the node and add it again as another role.")
    })?;
    Link::open(&node.server, role)
}

/// One health check, and while the node answers what else there is to do on it.
fn look_after(node: &NodeRow) -> WorkResult<()> {
    let limit = guc::NODE_FAILURES.get().max(1) as u32;
    let looked = transaction(|| node::look_at(&open(node)?, &node.server, &node.schema));
    let (looks, why) = match &looked {
        Ok(looks) => (Some(looks), None),
        Err(Failure { line, .. }) => (None, Some(line.as_str())),
    };
    let now = node.breaker.after(looks.is_some(), limit);
    transaction(|| node::store(node, now, looks, why))?;
    if looks.is_none() {
        return Ok(());
    }
    transaction(|| statistics::collect(&open(node)?, node))?;
    for table in transaction(|| remote::dressed(&node.name))? {
        transaction(|| reap::clear(node, &table, guc::MAX_LOCK_TIME.get()))?;
    }
    for orphan in transaction(|| reap::left_on(node))? {
        // Who made it may have lost its user mapping, or its right to connect.
        if transaction(|| reap::drop_orphan(node, &orphan, true)).is_err() {
            transaction(|| reap::drop_orphan(node, &orphan, false))?;
        }
    }
    Ok(())
}
