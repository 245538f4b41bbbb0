//! Rows of a closure that name a node which moves, below the executor: nobody else changes them, because the node's
//! component is held.

use super::write::Writer;
use crate::catalog::graph::Graph;
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::leaf::ClosureRow;
use crate::pg::graph::lookup::{Lookup, Place, Reads};
use crate::pg::lock::ROW_EXCLUSIVE;
use crate::pg::report::{PgResult, internal};
use pgrx::pg_sys;

/// A row, with the node at its other end.
struct Named {
    other: NodeKey,
    depth: u32,
    descendant_shard: i32,
    place: Place,
}

/// Takes a node's rows from one shard to another, under the active snapshot; how many were rewritten.
///
/// Rows that lead to the node change in place, those that begin at it go to the other part: a snapshot sees each of them
/// once.
pub fn closure(graph: &Graph, writer: &mut Writer<'_>, node: &NodeKey, from: i32, to: i32) -> PgResult<u64> {
    let mut rows = 0;
    for part in &graph.parts {
        for row in named(graph, part.table, part.reverse, node, 1)? {
            if row.other == *node || row.descendant_shard == to {
                continue;
            }
            writer.leaf(part.shard_id)?.update(
                row.place,
                &ClosureRow {
                    ancestor: &row.other,
                    descendant: node,
                    depth: row.depth,
                    ancestor_shard: part.shard_id,
                    descendant_shard: to,
                },
            );
            rows += 1;
        }
    }
    let home = graph.parts.iter().find(|part| part.shard_id == from);
    let home = home.ok_or_else(|| internal("the closure has no part for the shard of a node"))?;
    for row in named(graph, home.table, home.pairs, node, 2)? {
        writer.leaf(from)?.delete(row.place);
        writer.leaf(to)?.insert(&ClosureRow {
            ancestor: node,
            descendant: &row.other,
            depth: row.depth,
            ancestor_shard: to,
            descendant_shard: if row.other == *node { to } else { row.descendant_shard },
        });
        rows += 1;
    }
    // The next node's rows may be the same ones.
    writer.flush();
    Ok(rows)
}

/// The rows of a part that an index finds by a node; column `other` is their other end.
fn named(
    graph: &Graph,
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    node: &NodeKey,
    other: i16,
) -> PgResult<Vec<Named>> {
    let mut lookup = Lookup::open(table, index, 1, graph.kind, ROW_EXCLUSIVE, Reads::Row)?;
    let mut found = Vec::new();
    lookup.find(&[node]);
    while lookup.advance() {
        if found.len().is_multiple_of(1024) {
            pgrx::check_for_interrupts!();
        }
        if let (Some(other), Some(depth), Some(descendant_shard)) =
            (lookup.key(other), lookup.int(3), lookup.int(5))
        {
            let (depth, place) = (depth.max(0) as u32, lookup.place());
            found.push(Named { other, depth, descendant_shard, place });
        }
    }
    Ok(found)
}
