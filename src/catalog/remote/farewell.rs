//! Before the extension goes: what moves left on nodes goes as well, as far as the nodes answer. The tables that hold
//! slots stay, with the foreign tables over them, which are the user's.

use super::{RemoteRow, lease, make, reap};
use crate::catalog::link::{self, Link};
use crate::catalog::node::{self, NodeRow};
use crate::pg::report::{PgResult, warning};
use crate::pg::subtransaction::{self, Ended};
use crate::pg::wire::Bound;
use crate::pg::{hooks, reading, security, spi};
use foreshard_core::breaker::State;
use pgrx::pg_sys::panic::ErrorReportable;

/// How long users of a table on a node may wait for the end of a log, ms; and we for them.
const LOCK_MS: i32 = 1_000;
/// How often a node is tried.
const ATTEMPTS: usize = 3;
/// Why a node was not asked, or not for longer.
const SILENT: &str = "it does not answer";
/// `query_canceled`.
const CANCELLED: &str = "57014";

/// Clears every node. No worker of ours is at work. Failures are told, and change nothing: should the extension stay
/// after all, moves under way find that their logs or copies are gone, and begin again or are reverted.
pub fn leave_all() -> PgResult<()> {
    let _owner = security::as_extension_owner()?;
    for node in node::nodes(None)? {
        let left = remaining(&node)?;
        let failed = if answers(&node) { try_to_leave(&node, &left) } else { Some(SILENT.to_string()) };
        if let Some(why) = failed.filter(|_| !left.is_empty()) {
            let names: Vec<String> =
                left.iter().flat_map(|(row, ..)| [row.table_there(), row.aid_there("log")]).collect();
            warning(&format!(
                "node \"{}\" may keep what moves made there ({why}): {}",
                node.name,
                names.join(", ")
            ));
        }
        let parts = parts_on(&node)?;
        if !parts.is_empty() {
            warning(&format!(
                "node \"{}\" keeps parts of closures of graphs: {}",
                node.name,
                parts.join(", ")
            ));
        }
    }
    Ok(())
}

/// Tables on a node that are parts of closures, with what belongs to them.
fn parts_on(node: &NodeRow) -> PgResult<Vec<String>> {
    let found = spi::rows(
        "SELECT remote_id FROM foreshard.remote_table r WHERE r.node_name = $1::name AND r.graph_shard IS NOT NULL \
           AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = r.partition) ORDER BY 1",
        &[node.name.as_str().into()],
        |row| row.need::<i64>(1),
    )?;
    let mut names = Vec::new();
    for remote_id in found {
        if let Some(row) = super::by_id(remote_id)? {
            names.extend([row.aid_there("of"), row.aid_there("inbox"), row.aid_there("marks")]);
        }
    }
    Ok(names)
}

/// Leaves a node, in ten seconds at most, in which no worker comes back; why not. What a worker had begun there may take a
/// moment to end, so a failure is not the last word, but for a cancel.
fn try_to_leave(node: &NodeRow, left: &[(RemoteRow, bool)]) -> Option<String> {
    hooks::keep_workers_away(link::SESSION_MS as i64);
    let bound = Bound::in_session(link::SESSION_MS);
    let mut ended = Ended::Well;
    for _ in 0..ATTEMPTS {
        ended = attempt(|| leave(node, left));
        let is_cancelled = matches!(&ended, Ended::Failed(code) if reading::sqlstate(*code) == CANCELLED);
        if ended == Ended::Well || is_cancelled || bound.is_over() {
            break;
        }
    }
    match (ended, bound.end()) {
        (Ended::Well, _) => None,
        (Ended::Failed(_), true) => Some(SILENT.to_string()),
        (Ended::Failed(code), false) => Some(reading::sqlstate(code)),
    }
}

fn answers(node: &NodeRow) -> bool {
    node.breaker.state == State::Closed
}

/// Lets a node forget this server, as far as it answers within ten seconds; None: it is known not to.
pub fn leave_lease(node: &NodeRow) -> Option<Ended> {
    answers(node).then(|| {
        let _bound = Bound::in_session(link::SESSION_MS);
        attempt(|| lease::leave(node))
    })
}

/// Does something in a subtransaction; when that fails, no connection stays open in the user's session.
fn attempt(work: impl FnOnce() -> PgResult<()>) -> Ended {
    let ended = subtransaction::run(|| work().unwrap_or_report());
    if ended != Ended::Well {
        subtransaction::run(|| link::close_all().unwrap_or_report());
    }
    ended
}

/// What on a node is there for a move only: a remote table, and whether it holds rows of the user's, so that only its aids
/// go. Copies and sources that were put away are members of the extension; partitions are not, nor is what somebody detached.
fn remaining(node: &NodeRow) -> PgResult<Vec<(RemoteRow, bool)>> {
    let found = spi::rows(
        "SELECT r.remote_id, o.is_users FROM foreshard.remote_table r CROSS JOIN LATERAL ( \
             SELECT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = r.partition) AND NOT EXISTS ( \
                 SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = r.partition \
                     AND d.objsubid = 0 AND d.deptype = 'e') AS is_users) o \
         WHERE r.node_name = $1::name AND (r.dressed OR NOT o.is_users) ORDER BY 1",
        &[node.name.as_str().into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<bool>(2)?)),
    )?;
    let mut rows = Vec::new();
    for (remote_id, is_slot) in found {
        if let Some(row) = super::by_id(remote_id)? {
            rows.push((row, is_slot));
        }
    }
    Ok(rows)
}

fn leave(node: &NodeRow, left: &[(RemoteRow, bool)]) -> PgResult<()> {
    if !left.is_empty() {
        lease::require(node)?;
    }
    for (row, is_slot) in left {
        let Some(role) = reap::maker(row, node)? else { continue };
        let link = Link::open(&row.server, role)?;
        if *is_slot {
            make::undress(&link, row, LOCK_MS)?;
        } else {
            make::remove(&link, row)?;
        }
    }
    lease::leave(node)
}
