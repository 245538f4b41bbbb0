//! Parts of a closure on nodes, for whoever changes the closure.
//!
//! postgres_fdw commits there first and here afterwards, and its transaction there keeps the snapshot of its first
//! statement. So each component has a mark on every node that nodes of it live on, replaced on both sides by everybody who holds
//! the component, before anything is read there. A mark that is not the one noted here tells that either side lost what
//! the other has: then everything is compared. A snapshot there that is older than somebody else's mark is refused by the
//! node, with 40001.

use super::component::Finder;
use crate::catalog::graph::Graph;
use crate::catalog::graph::far::{self, FarPart};
use crate::pg::graph::fresh_snapshot;
use crate::pg::report::{PgResult, wrong_state};
use std::collections::{BTreeMap, BTreeSet};

/// What components that are held have on nodes.
#[derive(Default)]
pub struct Joined {
    /// Shards of the parts that may have rows of theirs.
    pub shards: BTreeSet<i32>,
    /// Whether this server or a node has lost a change.
    pub is_suspect: bool,
}

/// Sees to it that what this transaction reads of these components on nodes is what was last committed. They are held;
/// `to` is a shard that one of their nodes is about to live on.
///
/// # Errors
/// 40001 when a transaction under way on a node began before the last change of one of them; what a connection to a node
/// failed with.
pub fn join(graph: &Graph, held: &BTreeSet<i64>, to: Option<i32>) -> PgResult<Joined> {
    let parts = far::parts(graph)?;
    if parts.is_empty() {
        return Ok(Joined::default());
    }
    let roots = roots(graph, held)?;
    let known = far::marks(graph.id, &roots.iter().flat_map(|(own, root)| [*own, *root]).collect())?;
    let mut due: BTreeMap<(i64, i32), Option<i64>> =
        known.iter().map(|mark| ((mark.component, mark.shard_id), Some(mark.token))).collect();
    for mark in &known {
        let root = roots.get(&mark.component).copied().unwrap_or(mark.component);
        due.entry((root, mark.shard_id)).or_insert(None);
    }
    if let Some(to) = to.filter(|to| find(&parts, *to).is_some()) {
        roots.values().for_each(|root| {
            due.entry((*root, to)).or_insert(None);
        });
    }
    let mut joined = Joined::default();
    for ((component, shard), noted) in due {
        let part = find(&parts, shard).ok_or_else(|| lost_part(graph))?;
        let next = far::renew(graph.id, component, shard)?;
        joined.is_suspect |= part.exchange(component, next)? != noted;
        if roots.get(&component).is_some_and(|root| *root != component) {
            far::forget(graph.id, component, shard)?;
        }
        joined.shards.insert(shard);
    }
    Ok(joined)
}

/// By component: what it was merged into.
fn roots(graph: &Graph, held: &BTreeSet<i64>) -> PgResult<BTreeMap<i64, i64>> {
    let _fresh = fresh_snapshot();
    let mut finder = Finder::open(graph)?;
    Ok(held.iter().map(|component| (*component, finder.root(*component))).collect())
}

fn find(parts: &[FarPart], shard: i32) -> Option<&FarPart> {
    parts.iter().find(|part| part.shard_id == shard)
}

fn lost_part(graph: &Graph) -> pgrx::pg_sys::panic::ErrorReport {
    wrong_state(format!("the closure of graph \"{}\" has lost its part on a node", graph.name))
        .set_hint("Drop the graph and create it again.")
}

/// The shards of all parts on nodes.
pub fn everywhere(graph: &Graph) -> BTreeSet<i32> {
    graph.parts.iter().filter(|part| part.remote.is_some()).map(|part| part.shard_id).collect()
}
