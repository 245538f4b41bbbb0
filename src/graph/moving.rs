//! Nodes move to other shards: one by one, each in one piece.
//!
//! Whoever moves a node holds its component, as whoever changes edges does. The directory's row and all rows of
//! the closure that name the node change in one transaction, so a snapshot sees all of it before or all of it after,
//! and a crash leaves nothing half done: what was not committed is still in the queue.

use super::component::{self, Touched};
use super::write::Writer;
use super::{changed, diff, far, rewrite};
use crate::catalog::colocation;
use crate::catalog::graph::{self, Graph, create, far_part, influence, moving};
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::{announce_change, fresh_snapshot};
use crate::pg::report::{PgResult, bad_argument, error, internal, unknown};
use crate::pg::{guc, security, spi};
use pgrx::pg_sys;
use pgrx::prelude::PgSqlErrorCode;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// How long the worker waits for another component while it holds some.
const LOCK_TIMEOUT: &str = "200ms";
/// Moves looked at in one transaction, at most.
const MOST_PER_TRANSACTION: i64 = 500;

/// A node's key from text.
///
/// # Errors
/// 22P02.
pub fn key_of(graph: &Graph, node: &str) -> PgResult<NodeKey> {
    graph.kind.parse(node).ok_or_else(|| {
        error(
            PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
            format!("invalid key for a node of graph \"{}\": \"{node}\"", graph.name),
        )
    })
}

/// Where types may live: shards by type; a type that is not there may live everywhere. As the extension's owner.
pub fn allowed(graph_id: i32) -> PgResult<BTreeMap<String, Vec<i32>>> {
    let mut found: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for (type_, shard) in influence::allowed(graph_id)? {
        found.entry(type_).or_default().push(shard);
    }
    Ok(found)
}

/// A graph with a part of its closure on each of these shards; those that are missing are made. As the extension's
/// owner.
///
/// # Errors
/// 55000 when one is missing on a node.
pub fn with_parts(graph_id: i32, shards: &[i32]) -> PgResult<Rc<Graph>> {
    let graph = graph::by_id(graph_id)?;
    let missing: Vec<i32> = shards
        .iter()
        .copied()
        .filter(|shard| graph.parts.iter().all(|part| part.shard_id != *shard))
        .collect();
    for shard in &missing {
        if graph::has_part(graph_id, *shard)? {
            continue;
        }
        if far_part::is_on_node(*shard)? {
            return Err(create::not_yet(&graph.name));
        }
        create::add_part(&graph, graph_id, *shard)?;
    }
    if missing.is_empty() {
        return Ok(graph);
    }
    announce_change(graph.metagraph);
    let _fresh = fresh_snapshot();
    graph::by_id(graph_id)
}

/// What became of a move.
pub enum Outcome {
    /// It was made: the node's new version, and how many rows were rewritten.
    Moved(i64, u64),
    /// The node was there already; its version.
    There(i64),
    /// It was not made.
    Refused(pg_sys::panic::ErrorReport),
}

/// Moves one node; the writer is one of the graph. `version`: only if the node is that version.
///
/// # Errors
/// 40001 in a transaction with an old snapshot; what the server says.
pub fn move_one(
    graph: &Graph,
    writer: &mut Writer<'_>,
    allowed: &BTreeMap<String, Vec<i32>>,
    node: &str,
    to: i32,
    version: Option<i64>,
) -> PgResult<Outcome> {
    let key = key_of(graph, node)?;
    let _owner = security::as_restricted_owner(graph.owner);
    let find = || -> PgResult<_> { Ok(moving::nodes(graph, std::slice::from_ref(&key))?.into_iter().next()) };
    let missing = || Outcome::Refused(unknown(format!("graph \"{}\" has no node \"{node}\"", graph.name)));
    if find()?.is_none() {
        return Ok(missing());
    }
    let mut touched = Touched::default();
    touched.keys.number(&key).map_err(|problem| super::input::too_large(&problem))?;
    let held = component::hold(graph, &touched)?;
    let _fresh = fresh_snapshot();
    require_same_parts(graph)?;
    // Again: it may have moved while we waited.
    let Some(row) = find()? else { return Ok(missing()) };
    if let Some(version) = version
        && version != row.version
    {
        return Ok(Outcome::Refused(
            error(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                format!("node \"{node}\" of graph \"{}\" has moved meanwhile", graph.name),
            )
            .set_detail(format!("It is version {}, not {version}.", row.version)),
        ));
    }
    let shards = row.type_.as_ref().and_then(|type_| allowed.get(type_));
    if shards.is_some_and(|shards| !shards.contains(&to)) {
        return Ok(Outcome::Refused(
            bad_argument(format!("node \"{node}\" of graph \"{}\" may not live on that shard", graph.name))
                .set_detail(format!("Its type \"{}\" is restricted.", row.type_.unwrap_or_default()))
                .set_hint("See foreshard.allow_type()."),
        ));
    }
    if row.shard_id == to {
        return Ok(Outcome::There(row.version));
    }
    let joined = far::join(graph, &held.components, Some(to))?;
    if joined.is_suspect {
        let _fresh = fresh_snapshot();
        diff::repair(graph, &held.components, &joined.shards, changed::max_rows())?;
    }
    let _fresh = fresh_snapshot();
    let ends = (row.shard_id, to);
    let rows = moving::place(graph, &key, to)? + rewrite::closure(graph, writer, &key, ends, &joined.shards)?;
    Ok(Outcome::Moved(row.version + 1, rows))
}

/// While a component was waited for, somebody may have given the closure another part: rows there would be overlooked.
///
/// # Errors
/// 40001 then.
fn require_same_parts(graph: &Graph) -> PgResult<()> {
    let tables = |graph: &Graph| graph.parts.iter().map(|part| part.table).collect::<Vec<_>>();
    if tables(graph) == tables(&*graph::again(graph.id)?) {
        return Ok(());
    }
    Err(error(
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!("the closure of graph \"{}\" was given another part meanwhile", graph.name),
    )
    .set_hint("Repeat the transaction."))
}

/// Files moves of nodes, given with names of shards; how many. Nodes that are there already are left out.
///
/// # Errors
/// 42704 for a node or shard that does not exist.
pub fn file(graph_id: i32, moves: &[(String, String)], user: &str) -> PgResult<u64> {
    let _owner = security::as_extension_owner()?;
    let shards = colocation::shards()?;
    let mut to = Vec::with_capacity(moves.len());
    for (_, name) in moves {
        let shard = shards.iter().find(|shard| &shard.name == name);
        let shard = shard.ok_or_else(|| unknown(format!("shard \"{name}\" does not exist")))?;
        if shard.is_citus {
            return Err(create::elsewhere(name));
        }
        to.push(shard.shard_id);
    }
    let graph = graph::by_id(graph_id)?;
    let keys = moves.iter().map(|(node, _)| key_of(&graph, node)).collect::<PgResult<Vec<_>>>()?;
    let rows = {
        let _owner = security::as_restricted_owner(graph.owner);
        moving::nodes(&graph, &keys)?
    };
    let known: BTreeMap<&str, (i32, i64)> =
        rows.iter().map(|row| (row.node.as_str(), (row.shard_id, row.version))).collect();
    let mut filed = Vec::with_capacity(moves.len());
    for (key, to) in keys.iter().zip(to) {
        let node = key.text();
        let (shard, version) = known
            .get(node.as_str())
            .copied()
            .ok_or_else(|| unknown(format!("graph \"{}\" has no node \"{node}\"", graph.name)))?;
        if shard != to {
            filed.push((node, to, version));
        }
    }
    moving::file(graph_id, &filed, user)
}

/// What became of a part that moves wait for.
pub enum MadePart {
    /// No move waits for any.
    None,
    /// It is not there yet, but nearer.
    Nearer,
    /// There may be more.
    Made,
    /// Somebody reads the closure, or nobody has looked at the node yet.
    Busy,
}

/// Makes a part that moves wait for, in a worker's transaction of its own, under a lock that nobody shares: whoever has planned does
/// not look into the part, and must not see that nodes have gone there. `lock` tries to take it.
///
/// # Errors
/// 55P03 where the closure is read; what the server says, such as that the shard's disk is gone.
pub fn make_part(lock: impl Fn(&[pg_sys::Oid]) -> PgResult<bool>) -> PgResult<MadePart> {
    let Some((graph_id, shard)) = moving::lacks_part()? else { return Ok(MadePart::None) };
    if far_part::is_on_node(shard)? {
        return make_far_part(graph_id, shard, lock);
    }
    let closure: Vec<pg_sys::Oid> = graph::closure_of(graph_id)?.into_iter().collect();
    if !lock(&closure)? {
        return Ok(MadePart::Busy);
    }
    with_parts(graph_id, &[shard])?;
    Ok(MadePart::Made)
}

/// The same of a part on a node, in three transactions: its table is noted here, then made there while nobody waits for
/// anything of ours, and then attached, which needs no node.
fn make_far_part(
    graph_id: i32,
    shard: i32,
    lock: impl Fn(&[pg_sys::Oid]) -> PgResult<bool>,
) -> PgResult<MadePart> {
    let graph = graph::by_id(graph_id)?;
    let closure = graph::closure_of(graph_id)?.ok_or_else(|| internal("a graph without a closure"))?;
    match far_part::noted(closure, shard)? {
        None => far_part::note(&graph, closure, shard)?,
        Some((remote_id, false)) => {
            if !far_part::make(&graph, closure, shard, remote_id)? {
                return Ok(MadePart::Busy);
            }
        }
        Some((remote_id, true)) => {
            if !lock(&[closure])? {
                return Ok(MadePart::Busy);
            }
            if far_part::attach(&graph, closure, shard, remote_id)? {
                announce_change(graph.metagraph);
                return Ok(MadePart::Made);
            }
        }
    }
    Ok(MadePart::Nearer)
}

/// Gives up the moves that wait for the part that [`make_part`] would make.
pub fn give_up_part(why: &str) -> PgResult<()> {
    match moving::lacks_part()? {
        Some((graph_id, shard)) => moving::fail_to(graph_id, shard, why),
        None => Ok(()),
    }
}

/// How far a worker is with a graph's moves.
pub struct Progress {
    /// The graph.
    pub graph_id: i32,
    /// Moves up to this number were looked at.
    pub after: i64,
    /// Components that somebody else held for too long: their nodes are moved another time.
    pub busy: BTreeSet<i64>,
    /// The component that is waited for; stays when the wait fails.
    pub awaited: Cell<Option<i64>>,
}

impl Progress {
    /// Nothing was looked at yet.
    pub fn new(graph_id: i32) -> Self {
        Self { graph_id, after: 0, busy: BTreeSet::new(), awaited: Cell::new(None) }
    }
}

/// Makes moves to parts that there are, until enough rows are rewritten; the number of the last one looked at, None when there
/// are no more. In a worker's transaction; with `one`, a single one.
///
/// # Errors
/// What the server says; nothing of this transaction is kept then.
pub fn work(progress: &Progress, one: bool) -> PgResult<Option<i64>> {
    progress.awaited.set(None);
    // Components are held in any order here, so whoever waits too long is we, before anybody looks for a deadlock;
    // and what we hold meanwhile is not held for long.
    spi::set_local("lock_timeout", &format!("{}ms", first_wait_ms()?))?;
    let _plans = spi::KeptPlans::begin()?;
    let waiting =
        moving::next(progress.graph_id, progress.after, if one { 1 } else { MOST_PER_TRANSACTION })?;
    if waiting.is_empty() {
        return Ok(None);
    }
    let graph = graph::by_id(progress.graph_id)?;
    let allowed = allowed(graph.id)?;
    let most = u64::try_from(guc::GRAPH_MOVE_BATCH.get()).unwrap_or(1);
    let (mut rewritten, mut writer) = (0, Writer::new(&graph));
    let mut last = None;
    for move_ in &waiting {
        last = Some(move_.move_id);
        let component = component::of(&graph, &key_of(&graph, &move_.node)?)?;
        if component.is_some_and(|component| progress.busy.contains(&component)) {
            continue;
        }
        progress.awaited.set(component);
        let made = move_one(&graph, &mut writer, &allowed, &move_.node, move_.to_shard, Some(move_.version))?;
        if progress.awaited.take().is_some() && rewritten == 0 {
            spi::set_local("lock_timeout", LOCK_TIMEOUT)?;
        }
        match made {
            Outcome::Moved(_, rows) => {
                rewritten += rows;
                moving::finish(move_.move_id, rows, None)?;
            }
            Outcome::There(_) => moving::finish(move_.move_id, 0, None)?,
            Outcome::Refused(why) => moving::finish(move_.move_id, 0, Some(why.message()))?,
        }
        if rewritten >= most {
            break;
        }
    }
    Ok(last)
}

/// How long a worker that holds nothing else waits for a component: others may be at it all the time, one after the other. It gives
/// up before anybody looks for a deadlock: moves that it looks at are locked.
fn first_wait_ms() -> PgResult<i64> {
    let sql = "SELECT extract(epoch FROM pg_catalog.current_setting('deadlock_timeout')::interval) * 1000";
    let deadlock_ms = spi::one::<f64>(&format!("{sql}::float8"), &[])?.unwrap_or(1000.0);
    Ok((deadlock_ms * 0.8).clamp(50.0, 2000.0) as i64)
}

/// The move that [`work`] would begin with.
pub fn first(progress: &Progress) -> PgResult<Option<i64>> {
    Ok(moving::next(progress.graph_id, progress.after, 1)?.first().map(|move_| move_.move_id))
}

/// Gives up the move that [`work`] would begin with.
pub fn give_up(progress: &Progress, why: &str) -> PgResult<()> {
    match first(progress)? {
        Some(move_id) => moving::finish(move_id, 0, Some(why)),
        None => Err(internal("no move waits")),
    }
}
