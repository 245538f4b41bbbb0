//! Rows of a closure, written to the parts where their ancestors live.

use super::reader::Reader;
use crate::catalog::graph::Graph;
use crate::pg::graph::leaf::{ClosureRow, Leaf};
use crate::pg::report::{PgResult, internal};
use foreshard_core::graph::maintain::RowChange;

/// The parts of a closure, opened as they are needed.
pub struct Writer<'g> {
    graph: &'g Graph,
    leaves: Vec<(i32, Leaf)>,
}

impl<'g> Writer<'g> {
    pub fn new(graph: &'g Graph) -> Self {
        Self { graph, leaves: Vec::new() }
    }

    /// The part of a shard.
    pub fn leaf(&mut self, shard: i32) -> PgResult<&mut Leaf> {
        let at = match self.leaves.iter().position(|(own, _)| *own == shard) {
            Some(at) => at,
            None => {
                let part = self.graph.parts.iter().find(|part| part.shard_id == shard);
                let part =
                    part.ok_or_else(|| internal(format!("shard {shard} has no part of the closure")))?;
                self.leaves.push((shard, Leaf::open(part.table, self.graph.kind)?));
                self.leaves.len() - 1
            }
        };
        self.leaves.get_mut(at).map(|(_, leaf)| leaf).ok_or_else(|| internal("no part"))
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        self.leaves.iter_mut().for_each(|(_, leaf)| leaf.flush());
    }
}

/// Writes what changes, as the reader's numbers say.
pub fn apply(graph: &Graph, reader: &mut Reader<'_>, changes: &[RowChange]) -> PgResult<()> {
    let mut writer = Writer::new(graph);
    for (done, change) in changes.iter().enumerate() {
        if done.is_multiple_of(1024) {
            pgrx::check_for_interrupts!();
        }
        let RowChange { ancestor, descendant, before, after } = *change;
        // The row that is there tells where its descendant lives.
        let place = match before {
            None => None,
            Some(_) => Some(reader.row(ancestor, descendant)?.ok_or_else(lost_row)?.1),
        };
        let (ancestor_shard, descendant_shard) = (reader.shard(ancestor)?, reader.shard(descendant)?);
        let (Some(from), Some(to)) = (reader.keys.key(ancestor), reader.keys.key(descendant)) else {
            return Err(internal("an unknown node changes"));
        };
        let row =
            |depth| ClosureRow { ancestor: from, descendant: to, depth, ancestor_shard, descendant_shard };
        let leaf = writer.leaf(ancestor_shard)?;
        match (place, after) {
            (None, Some(depth)) => leaf.insert(&row(depth)),
            (Some(place), Some(depth)) => leaf.update(place, &row(depth)),
            (Some(place), None) => leaf.delete(place),
            (None, None) => {}
        }
    }
    writer.flush();
    Ok(())
}

fn lost_row() -> pgrx::pg_sys::panic::ErrorReport {
    internal("a row of the closure was there and is not any more")
}
