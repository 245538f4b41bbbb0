//! Rows of a closure that name a node which moves, below the executor where they are on this server: nobody else changes
//! them, because the node's component is held.

use super::write::{Spot, Writer};
use crate::catalog::graph::far::{FarPart, FarRow};
use crate::catalog::graph::{Graph, Part};
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::leaf::ClosureRow;
use crate::pg::graph::lookup::{Lookup, Reads};
use crate::pg::lock::ROW_EXCLUSIVE;
use crate::pg::report::{PgResult, internal};
use std::collections::BTreeSet;

/// A row, with the node at its other end.
struct Named {
    other: NodeKey,
    depth: u32,
    descendant_shard: i32,
    spot: Spot,
}

/// Takes a node's rows from one shard to another, under the active snapshot; how many were rewritten.
///
/// Rows that lead to the node change in place, those that begin at it go to the other part: a snapshot sees each of them
/// once, as far as they are on this server. Of parts on nodes, those of `far` may have such rows.
pub fn closure(
    graph: &Graph,
    writer: &mut Writer<'_>,
    node: &NodeKey,
    (from, to): (i32, i32),
    far: &BTreeSet<i32>,
) -> PgResult<u64> {
    let mut rows = 0;
    for part in &graph.parts {
        if part.remote.is_some() {
            if far.contains(&part.shard_id)
                && let Some(part) = FarPart::of(part)?
            {
                rows += part.retarget(graph, node, to)?;
            }
            continue;
        }
        for row in named(graph, part, true, node)? {
            if row.other == *node || row.descendant_shard == to {
                continue;
            }
            writer.update(
                row.spot,
                &ClosureRow {
                    ancestor: &row.other,
                    descendant: node,
                    depth: row.depth,
                    ancestor_shard: part.shard_id,
                    descendant_shard: to,
                },
            )?;
            rows += 1;
        }
    }
    if let Some(part) = part_of(graph, to)?.1 {
        // What a move that was lost here has left there.
        part.remove(graph, node)?;
    }
    for row in taken(graph, writer, node, from)? {
        writer.insert(&ClosureRow {
            ancestor: node,
            descendant: &row.other,
            depth: row.depth,
            ancestor_shard: to,
            descendant_shard: if row.other == *node { to } else { row.descendant_shard },
        })?;
        rows += 1;
    }
    // The next node's rows may be the same ones.
    writer.flush()?;
    Ok(rows)
}

/// The part of a shard, and how it is reached if it is on a node.
fn part_of(graph: &Graph, shard: i32) -> PgResult<(&Part, Option<FarPart>)> {
    let part = graph.parts.iter().find(|part| part.shard_id == shard);
    let part = part.ok_or_else(|| internal("the closure has no part for the shard of a node"))?;
    Ok((part, FarPart::of(part)?))
}

/// Takes the rows that begin at a node out of the part of its shard.
fn taken(graph: &Graph, writer: &mut Writer<'_>, node: &NodeKey, from: i32) -> PgResult<Vec<Named>> {
    let (home, far) = part_of(graph, from)?;
    let Some(far) = far else {
        let rows = named(graph, home, false, node)?;
        for row in &rows {
            writer.delete(from, row.spot, node, &row.other)?;
        }
        return Ok(rows);
    };
    let rows = far.rows(graph, false, std::slice::from_ref(node), None)?;
    far.remove(graph, node)?;
    let row = |row: FarRow| Named {
        other: row.descendant,
        depth: row.depth,
        descendant_shard: row.descendant_shard,
        spot: Spot::There,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// The rows of a part on this server that begin (`up`: end) at a node.
fn named(graph: &Graph, part: &Part, up: bool, node: &NodeKey) -> PgResult<Vec<Named>> {
    let (index, other) = if up { (part.reverse, 1) } else { (part.pairs, 2) };
    let mut lookup = Lookup::open(part.table, index, 1, graph.kind, ROW_EXCLUSIVE, Reads::Row)?;
    let mut found = Vec::new();
    lookup.find(&[node]);
    while lookup.advance() {
        if found.len().is_multiple_of(1024) {
            pgrx::check_for_interrupts!();
        }
        if let (Some(other), Some(depth), Some(descendant_shard)) =
            (lookup.key(other), lookup.int(3), lookup.int(5))
        {
            let (depth, spot) = (depth.max(0) as u32, Spot::Here(lookup.place()));
            found.push(Named { other, depth, descendant_shard, spot });
        }
    }
    Ok(found)
}
