//! Rows of a closure, written to the parts where their ancestors live.

use super::reader::Reader;
use crate::catalog::graph::Graph;
use crate::catalog::graph::far::{FarPart, Sent};
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::leaf::{ClosureRow, Leaf};
use crate::pg::graph::lookup::Place;
use crate::pg::report::{PgResult, internal};
use foreshard_core::graph::maintain::RowChange;

/// So many rows are sent to a node at once.
const SENT_AT_ONCE: usize = 8_192;

/// Where a row is.
#[derive(Clone, Copy)]
pub enum Spot {
    /// In a part on this server.
    Here(Place),
    /// In one on a node, where it is found by its keys.
    There,
}

/// Rows that wait to be sent to a node.
struct Waiting {
    part: FarPart,
    rows: Vec<Sent>,
}

/// The parts of a closure, opened as they are needed.
pub struct Writer<'g> {
    graph: &'g Graph,
    leaves: Vec<(i32, Leaf)>,
    /// Some parts are on nodes.
    has_far: bool,
    waiting: Vec<Waiting>,
}

impl<'g> Writer<'g> {
    /// Of a graph; nothing is opened yet.
    pub fn new(graph: &'g Graph) -> Self {
        let has_far = graph.parts.iter().any(|part| part.remote.is_some());
        Self { graph, leaves: Vec::new(), has_far, waiting: Vec::new() }
    }

    /// The part of a shard on this server.
    fn leaf(&mut self, shard: i32) -> PgResult<&mut Leaf> {
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

    /// Whether the part of a shard is on a node.
    pub fn is_far(&self, shard: i32) -> bool {
        let is_it = |part: &&crate::catalog::graph::Part| part.shard_id == shard;
        self.has_far && self.graph.parts.iter().find(is_it).is_some_and(|part| part.remote.is_some())
    }

    /// Has a row wait that goes to a node.
    fn send(&mut self, shard: i32, row: Sent) -> PgResult<()> {
        let graph = self.graph;
        let at = match self.waiting.iter().position(|own| own.part.shard_id == shard) {
            Some(at) => at,
            None => {
                let part = graph.parts.iter().find(|part| part.shard_id == shard).map(FarPart::of);
                let part = part.transpose()?.flatten();
                let part = part.ok_or_else(|| internal(format!("shard {shard} is not on a node")))?;
                self.waiting.push(Waiting { part, rows: Vec::new() });
                self.waiting.len() - 1
            }
        };
        if let Some(own) = self.waiting.get_mut(at) {
            own.rows.push(row);
            if own.rows.len() >= SENT_AT_ONCE {
                own.part.send(graph, &std::mem::take(&mut own.rows))?;
            }
        }
        Ok(())
    }

    /// Inserts a row that is not there.
    pub fn insert(&mut self, row: &ClosureRow<'_>) -> PgResult<()> {
        if self.is_far(row.ancestor_shard) {
            return self.send(row.ancestor_shard, sent(row));
        }
        self.leaf(row.ancestor_shard)?.insert(row);
        Ok(())
    }

    /// Replaces a row by one of the same part.
    pub fn update(&mut self, spot: Spot, row: &ClosureRow<'_>) -> PgResult<()> {
        match spot {
            Spot::Here(place) => self.leaf(row.ancestor_shard)?.update(place, row),
            Spot::There => self.send(row.ancestor_shard, sent(row))?,
        }
        Ok(())
    }

    /// Deletes a row of a part.
    pub fn delete(
        &mut self,
        shard: i32,
        spot: Spot,
        ancestor: &NodeKey,
        descendant: &NodeKey,
    ) -> PgResult<()> {
        match spot {
            Spot::Here(place) => self.leaf(shard)?.delete(place),
            Spot::There => {
                let (ancestor, descendant) = (ancestor.clone(), descendant.clone());
                self.send(shard, Sent { ancestor, descendant, depth: None, descendant_shard: 0 })?;
            }
        }
        Ok(())
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> PgResult<()> {
        self.leaves.iter_mut().for_each(|(_, leaf)| leaf.flush());
        for own in &mut self.waiting {
            own.part.send(self.graph, &std::mem::take(&mut own.rows))?;
        }
        Ok(())
    }
}

fn sent(row: &ClosureRow<'_>) -> Sent {
    Sent {
        ancestor: row.ancestor.clone(),
        descendant: row.descendant.clone(),
        depth: Some(row.depth),
        descendant_shard: row.descendant_shard,
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
        let spot = match before {
            None => None,
            Some(_) => Some(reader.row(ancestor, descendant)?.ok_or_else(lost_row)?.1),
        };
        let (ancestor_shard, descendant_shard) = (reader.shard(ancestor)?, reader.shard(descendant)?);
        let (Some(from), Some(to)) = (reader.keys.key(ancestor), reader.keys.key(descendant)) else {
            return Err(internal("an unknown node changes"));
        };
        let row =
            |depth| ClosureRow { ancestor: from, descendant: to, depth, ancestor_shard, descendant_shard };
        match (spot, after) {
            (None, Some(depth)) => writer.insert(&row(depth))?,
            (Some(spot), Some(depth)) => writer.update(spot, &row(depth))?,
            (Some(spot), None) => writer.delete(ancestor_shard, spot, from, to)?,
            (None, None) => {}
        }
    }
    writer.flush()
}

fn lost_row() -> pgrx::pg_sys::panic::ErrorReport {
    internal("a row of the closure was there and is not any more")
}
