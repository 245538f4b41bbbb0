//! Who may touch what this server made on a node. Clones, restores and promoted standbys of a server know the same
//! tables on the same nodes; only one of them may go on with them.
//!
//! A table on the node holds a random token, which whoever knows it replaces by another at every health check: so
//! copies of this server that were left behind know an old one, and touch nothing there any more. The next token is
//! noted here, committed, before it is written there: a crash in between loses nothing.

use super::literal;
use crate::catalog::link::Link;
use crate::catalog::node::{self, NodeRow};
use crate::catalog::record_event;
use crate::pg::report::{PgResult, unknown, wrong_state};
use crate::pg::spi;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::spi::quote_identifier;
use serde_json::json;

/// Whose a node's tables of ours are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// This server's.
    Ours,
    /// Nobody has looked yet.
    NotYet,
    /// Those of another one that knows them too.
    Lost,
}

/// Where the token is, in the schema of the node.
pub fn table(node: &NodeRow) -> String {
    let name = format!("foreshard_lease_{}", node.owner_id.replace('-', ""));
    format!("{}.{}", quote_identifier(&node.schema), quote_identifier(&name))
}

/// Connects to a node as the role that added it.
///
/// # Errors
/// 42704 the role is gone; otherwise what the connection failed with.
pub fn open(node: &NodeRow) -> PgResult<Link> {
    let role = node.checked_as.ok_or_else(|| {
        unknown(format!("the role that added node \"{}\" is gone", node.name))
            .set_hint("Remove the node and add it again as another role.")
    })?;
    Link::open(&node.server, role)
}

/// The token on the node; None: there is none yet.
pub fn look(link: &Link, node: &NodeRow) -> PgResult<Option<String>> {
    let exists = format!("SELECT to_regclass({})::oid::text", literal(&table(node)));
    if link.one(&exists)?.is_none() {
        return Ok(None);
    }
    link.one(&format!("SELECT lease::text FROM {}", table(node)))
}

/// Begins to replace the token that is there, if it is one of ours or somebody has claimed the node for us: the next one,
/// to be committed before it is written. One whose writing was not seen to end is tried again: it may yet come about.
pub fn propose(node: &NodeRow, there: Option<&str>) -> PgResult<Option<String>> {
    spi::set_local("synchronous_commit", "on")?;
    spi::one_mut::<String>(
        "UPDATE foreshard.node SET lease = coalesce($2::uuid, lease), \
             next_lease = CASE WHEN $2::uuid <> next_lease THEN next_lease ELSE pg_catalog.gen_random_uuid() END \
         WHERE node_name = $1::name AND (claims OR $2::uuid IS NULL OR $2::uuid IN (lease, next_lease)) RETURNING next_lease::text",
        &[node.name.as_str().into(), there.into()],
    )
}

/// Writes the next token in place of the one that was there; false: somebody else was faster.
pub fn write(link: &Link, node: &NodeRow, there: Option<&str>, next: &str) -> PgResult<bool> {
    let table = table(node);
    let statement = match there {
        Some(there) => format!(
            "UPDATE {table} SET lease = {}, renewed_at = now() WHERE lease = {} RETURNING lease::text",
            literal(next),
            literal(there)
        ),
        None => {
            link.exec(&format!(
                "BEGIN; CREATE TABLE IF NOT EXISTS {table} (is_all boolean PRIMARY KEY DEFAULT true CHECK (is_all), lease uuid NOT NULL, \
                     renewed_at timestamptz NOT NULL DEFAULT now()); \
                 COMMENT ON TABLE {table} IS {}; COMMIT",
                literal(&format!("{}: who may touch its tables here; renewed at every health check", node.mark()))
            ))?;
            format!(
                "INSERT INTO {table} (lease) VALUES ({}) ON CONFLICT DO NOTHING RETURNING lease::text",
                literal(next)
            )
        }
    };
    Ok(link.one(&statement)?.as_deref() == Some(next))
}

/// Notes what came of a renewal. None: the token there is none of ours, or somebody else was faster.
pub fn settle(node: &NodeRow, next: Option<&str>) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.node SET lease = $2::uuid, next_lease = NULL, claims = false WHERE node_name = $1::name AND next_lease = $2::uuid",
        &[node.name.as_str().into(), next.into()],
    )?;
    let changed = spi::run(
        "UPDATE foreshard.node SET held = $2 WHERE node_name = $1::name AND held <> $2 AND NOT claims",
        &[node.name.as_str().into(), next.is_some().into()],
    )?;
    if changed > 0 {
        let event = if next.is_some() { "node_regained" } else { "node_lost" };
        record_event(event, None, None, json!({"node": node.name}))?;
    }
    Ok(())
}

/// Whose the node's tables are, by the token that is there now. In a READ COMMITTED transaction.
pub fn held(node: &NodeRow) -> PgResult<Held> {
    if node.lease.is_none() {
        return Ok(Held::NotYet);
    }
    let link = open(node)?;
    // Read there first: what is there has been noted here before. A renewal or two may come in between.
    for _ in 0..3 {
        let there = link.one(&format!("SELECT lease::text FROM {}", table(node)))?;
        let known = spi::one_mut::<bool>(
            "SELECT $2::uuid IN (lease, next_lease) FROM foreshard.node WHERE node_name = $1::name",
            &[node.name.as_str().into(), there.as_deref().into()],
        )?;
        if known == Some(true) {
            return Ok(Held::Ours);
        }
    }
    Ok(Held::Lost)
}

/// Everything that destroys or writes on a node asks this first.
///
/// # Errors
/// 55000 the node's tables are not this server's.
pub fn require(node: &NodeRow) -> PgResult<()> {
    match held(node)? {
        Held::Ours => Ok(()),
        Held::NotYet => Err(wrong_state(format!("node \"{}\" has not been looked at yet", node.name))),
        Held::Lost => Err(lost(&node.name)),
    }
}

/// 55000: another server goes on with what was made on the node.
pub fn lost(name: &str) -> ErrorReport {
    wrong_state(format!("another server holds the tables on node \"{name}\""))
        .set_detail(
            "A clone, a restored backup or a promoted standby of this server, or the one that this server is a copy of, has renewed its \
             claim there. This server changes nothing there any more.",
        )
        .set_hint(format!(
            "If this is the server that goes on: stop the other one, then SELECT foreshard.claim_node({}).",
            literal(name)
        ))
}

/// Takes the token that is there for ours, whoever wrote it; None: there is none, and the next health check makes one. Who
/// holds the node may replace the token before that check does: so the check takes what it finds then, once.
pub fn claim(name: &str) -> PgResult<()> {
    let node = node::node(name)?;
    let there = look(&open(&node)?, &node)?;
    spi::run(
        "UPDATE foreshard.node SET lease = $2::uuid, next_lease = NULL, held = true, claims = true, checked_at = '-infinity' WHERE node_name = $1::name",
        &[name.into(), there.as_deref().into()],
    )?;
    record_event("claim_node", None, None, json!({"node": name}))
}

/// Removes the token, if it is the one that this server wrote: nothing of it is to be looked after there any more.
pub fn leave(node: &NodeRow) -> PgResult<()> {
    // A renewal may have ended without our knowing, so the next token is ours as well. Each look has a connection of its own.
    if look(&open(node)?, node)?.is_none() || !matches!(held(node)?, Held::Ours) {
        return Ok(());
    }
    open(node)?.exec(&format!("DROP TABLE {}", table(node)))
}
