//! What happened to edges and nodes while a graph was being made, which keeps nobody from writing them.

use super::changed;
use super::component::Touched;
use super::input::{Input, Reading, Statements, too_large};
use crate::catalog::graph::{Graph, node};
use crate::pg::graph::fresh_snapshot;
use crate::pg::graph::keys::NodeKey;
use crate::pg::report::PgResult;
use foreshard_core::graph::keys::KeyTable;
use std::cmp::Ordering;

/// Brings a closure that was made of `before` up to date with edges and nodes as they are now; the caller keeps
/// writers out, acts as the graph's owner, and has seen to it that row security is off. Returns how many edges had
/// come or gone. `max_work` bounds it as it does one statement.
///
/// # Errors
/// 53400 when it is more work than that.
pub fn catch_up(
    graph: &Graph,
    id: i32,
    statements: &Statements,
    before: &Input,
    max_work: u64,
) -> PgResult<u64> {
    let now = {
        let _fresh = fresh_snapshot();
        let mut reading = Reading::default();
        reading.keys = before.keys.clone();
        reading.read(statements, graph.kind, |_| true)?;
        reading.finish(false)?
    };
    let (touched, edges) = differences(before, &now)?;
    changed::repair(graph, id, touched, max_work)?;
    let retyped: Vec<NodeKey> = (0_usize..)
        .zip(now.keys.keys())
        .filter(|(number, _)| {
            before.types.get(*number).unwrap_or(&None) != now.types.get(*number).unwrap_or(&None)
        })
        .map(|(_, key)| key.clone())
        .collect();
    if !retyped.is_empty() {
        node::refresh_types(graph, &retyped)?;
    }
    Ok(edges)
}

/// Pairs with an edge in one of both only, and nodes that exist in one only; how many pairs.
fn differences(before: &Input, now: &Input) -> PgResult<(Touched, u64)> {
    let mut touched = Touched::default();
    let number = |keys: &mut KeyTable<NodeKey>, node: u32| match now.keys.key(node) {
        Some(key) => keys.number(key).map(Some).map_err(|problem| too_large(&problem)),
        None => Ok(None),
    };
    let (old, new) = (before.graph.simple(), now.graph.simple());
    let (mut old, mut new) = (old.pairs().peekable(), new.pairs().peekable());
    loop {
        // Both ascend.
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(b),
        };
        let only = match order {
            Ordering::Less => old.next(),
            Ordering::Greater => new.next(),
            Ordering::Equal => {
                old.next();
                new.next();
                None
            }
        };
        if let Some((source, target)) = only
            && let (Some(source), Some(target)) =
                (number(&mut touched.keys, source)?, number(&mut touched.keys, target)?)
        {
            touched.pairs.push((source, target));
        }
    }
    let edges = touched.pairs.len() as u64;
    for node in 0..now.keys.len() {
        let alive = |input: &Input| input.alive.get(node as usize).copied().unwrap_or(false);
        if alive(before) != alive(now) {
            number(&mut touched.keys, node)?;
        }
    }
    Ok((touched, edges))
}
