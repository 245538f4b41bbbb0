//! The closure before and the edges after a statement, read by index for the core's repair.

use super::Homes;
use super::far_reader::Far;
use super::write::Spot;
use crate::catalog::graph::far::FarPart;
use crate::catalog::graph::{Graph, KeyIndex, Part};
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::lookup::{Lookup, Reads};
use crate::pg::lock::{ACCESS_SHARE, ROW_EXCLUSIVE};
use crate::pg::report::{PgResult, internal, wrong_state};
use foreshard_core::graph::Reached;
use foreshard_core::graph::keys::KeyTable;
use foreshard_core::graph::maintain::{Ahead, ClosureReader};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use std::collections::BTreeSet;

/// After so many questions about one node's rows they are read, four times as many at once each time.
const FIRST_READ: u32 = 8;

/// Look-ups in one part of the closure, opened as they are needed.
struct Doors {
    part: Part,
    rows: Option<Lookup>,
    pairs: Option<Lookup>,
    down: Option<Lookup>,
    up: Option<Lookup>,
}

/// Rows of one node in one direction, as far as they have been read.
struct Rows {
    of: Option<u32>,
    /// Questions about the node that the rows did not answer.
    asked: u32,
    /// How many questions make the rows be read.
    patience: u32,
    complete: bool,
    /// By number of the other node: which read it was, and the depth.
    depths: Vec<(u32, u32)>,
    read: u32,
}

impl Rows {
    fn new() -> Self {
        Self { of: None, asked: 0, patience: FIRST_READ, complete: false, depths: Vec::new(), read: 0 }
    }

    fn begin(&mut self, node: u32) {
        self.of = Some(node);
        self.asked = 0;
        self.patience = FIRST_READ;
        self.complete = false;
    }

    fn take(&mut self, rows: &[Reached]) {
        self.read += 1;
        for row in rows {
            let place = row.node as usize;
            if self.depths.len() <= place {
                self.depths.resize(place + place / 2 + 1, (0, 0));
            }
            if let Some(depth) = self.depths.get_mut(place) {
                *depth = (self.read, row.depth);
            }
        }
        self.complete = true;
    }

    fn depth(&self, node: u32) -> Option<u32> {
        self.depths.get(node as usize).filter(|(read, _)| *read == self.read).map(|(_, depth)| *depth)
    }
}

/// Reads a graph; nodes are numbered as they are met. Lives as long as one snapshot.
pub struct Reader<'g> {
    pub(super) graph: &'g Graph,
    /// Keys by number.
    pub keys: KeyTable<NodeKey>,
    /// Shards by number, as far as they are known.
    shards: Vec<Option<i32>>,
    doors: Vec<Doors>,
    /// The parts on nodes that may have rows of what is read.
    pub(super) far: Vec<Far>,
    out: Option<Lookup>,
    into: Option<Lookup>,
    out_pairs: Option<Lookup>,
    directory: Option<Lookup>,
    listed: Option<Lookup>,
    below: Rows,
    above: Rows,
    looked: u32,
    homes: Homes,
}

fn opened<'l>(
    door: &'l mut Option<Lookup>,
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    columns: usize,
    graph: &Graph,
    (lock, reads): (i32, Reads),
) -> PgResult<&'l mut Lookup> {
    match door {
        Some(lookup) => Ok(lookup),
        None => Ok(door.insert(Lookup::open(table, index, columns, graph.kind, lock, reads)?)),
    }
}

/// How users' tables and the directory are read.
const THEIRS: (i32, Reads) = (ACCESS_SHARE, Reads::Row);
/// How the closure is read: its indexes have what is asked for.
const OURS: (i32, Reads) = (ROW_EXCLUSIVE, Reads::Index);

/// How edges are read by an index.
fn by(index: KeyIndex) -> (i32, Reads) {
    if index.has_other_end { (ACCESS_SHARE, Reads::Index) } else { THEIRS }
}

/// 55000: a node lives where the closure has no part.
fn no_part(graph: &Graph) -> ErrorReport {
    wrong_state(format!(
        "a node of graph \"{}\" lives on a shard that its closure has no partition for",
        graph.name
    ))
    .set_hint("SELECT * FROM foreshard.check_graph(...); SELECT foreshard.rebuild_graph(...);")
}

impl<'g> Reader<'g> {
    /// A reader that knows the numbers and shards of some nodes already; of parts on nodes it asks those of `far`.
    pub fn new(
        graph: &'g Graph,
        keys: KeyTable<NodeKey>,
        shards: &[i32],
        far: &BTreeSet<i32>,
    ) -> PgResult<Self> {
        let door = |part: &Part| Doors { part: *part, rows: None, pairs: None, down: None, up: None };
        let mut asked = Vec::new();
        for part in graph.parts.iter().filter(|part| far.contains(&part.shard_id)) {
            asked.extend(FarPart::of(part)?.map(Far::new));
        }
        Ok(Self {
            graph,
            shards: shards.iter().map(|shard| Some(*shard)).collect(),
            keys,
            doors: graph.parts.iter().filter(|part| part.remote.is_none()).map(door).collect(),
            far: asked,
            out: None,
            into: None,
            out_pairs: None,
            directory: None,
            listed: None,
            below: Rows::new(),
            above: Rows::new(),
            looked: 0,
            homes: Homes::of(graph)?,
        })
    }

    pub(super) fn key(&self, node: u32) -> PgResult<NodeKey> {
        self.keys.key(node).cloned().ok_or_else(|| internal("an unknown node was asked for"))
    }

    pub(super) fn number(&mut self, key: &NodeKey) -> PgResult<u32> {
        self.keys.number(key).map_err(|problem| super::input::too_large(&problem))
    }

    pub(super) fn remember(&mut self, node: u32, shard: Option<i32>) {
        let place = node as usize;
        if self.shards.len() <= place {
            self.shards.resize(self.keys.len() as usize, None);
        }
        if let (Some(known), Some(shard)) = (self.shards.get_mut(place), shard) {
            *known = Some(shard);
        }
    }

    /// Where a node lives; one that is not in the directory yet: where it will.
    pub fn shard(&mut self, node: u32) -> PgResult<i32> {
        if let Some(shard) = self.shards.get(node as usize).copied().flatten() {
            return Ok(shard);
        }
        let (graph, key) = (self.graph, self.key(node)?);
        let directory =
            opened(&mut self.directory, graph.metagraph, graph.metagraph_index, 1, graph, THEIRS)?;
        directory.find(&[&key]);
        let found = directory.advance().then(|| directory.int(2)).flatten();
        let shard = found.unwrap_or_else(|| self.homes.of_key(&key));
        self.remember(node, Some(shard));
        Ok(shard)
    }

    fn look(&mut self) {
        self.looked += 1;
        if self.looked.is_multiple_of(1024) {
            pgrx::check_for_interrupts!();
        }
    }

    fn doors(&mut self, ancestor: u32) -> PgResult<&mut Doors> {
        let (graph, shard) = (self.graph, self.shard(ancestor)?);
        let doors = self.doors.iter_mut().find(|doors| doors.part.shard_id == shard);
        doors.ok_or_else(|| no_part(graph))
    }

    /// Depth and place of a pair's row, which tells as well where the descendant lives.
    pub fn row(&mut self, ancestor: u32, descendant: u32) -> PgResult<Option<(u32, Spot)>> {
        self.look();
        if let Some(at) = self.far_home(ancestor)? {
            return Ok(self.far_depth(at, ancestor, descendant)?.map(|depth| (depth, Spot::There)));
        }
        let (from, to, graph) = (self.key(ancestor)?, self.key(descendant)?, self.graph);
        let doors = self.doors(ancestor)?;
        let Part { table, pairs, .. } = doors.part;
        let lookup = opened(&mut doors.rows, table, pairs, 2, graph, (ROW_EXCLUSIVE, Reads::Row))?;
        lookup.find(&[&from, &to]);
        if !lookup.advance() {
            return Ok(None);
        }
        let (found, shard) =
            (lookup.int(3).map(|depth| (depth.max(0) as u32, Spot::Here(lookup.place()))), lookup.int(5));
        self.remember(descendant, shard);
        Ok(found)
    }

    /// Depth of a pair's row, also that of a node with itself.
    pub fn stored(&mut self, ancestor: u32, descendant: u32) -> PgResult<Option<u32>> {
        self.look();
        if let Some(at) = self.far_home(ancestor)? {
            return self.far_depth(at, ancestor, descendant);
        }
        let (from, to, graph) = (self.key(ancestor)?, self.key(descendant)?, self.graph);
        let doors = self.doors(ancestor)?;
        let Part { table, pairs, .. } = doors.part;
        let lookup = opened(&mut doors.pairs, table, pairs, 2, graph, OURS)?;
        lookup.find(&[&from, &to]);
        Ok(lookup.advance().then(|| lookup.int(3)).flatten().map(|depth| depth.max(0) as u32))
    }

    /// Up to `limit` rows of one node in one direction, whole if they are fewer.
    fn rows(&mut self, node: u32, up: bool, limit: usize, rows: &mut Vec<Reached>) -> PgResult<()> {
        self.look();
        if !up && let Some(at) = self.far_home(node)? {
            return self.far_rows(at, false, node, limit, rows);
        }
        let (graph, key) = (self.graph, self.key(node)?);
        let home = if up { None } else { Some(self.shard(node)?) };
        if home.is_some_and(|home| self.doors.iter().all(|doors| doors.part.shard_id != home)) {
            return Err(no_part(graph));
        }
        let mut found: Vec<(NodeKey, u32, Option<i32>)> = Vec::new();
        for doors in &mut self.doors {
            if home.is_some_and(|home| home != doors.part.shard_id) {
                continue;
            }
            let Part { table, pairs, reverse, shard_id, .. } = doors.part;
            let lookup = match up {
                true => opened(&mut doors.up, table, reverse, 1, graph, OURS)?,
                false => opened(&mut doors.down, table, pairs, 1, graph, OURS)?,
            };
            lookup.find(&[&key]);
            while found.len() < limit && lookup.advance() {
                let other = lookup.key(if up { 1 } else { 2 });
                let shard = up.then_some(shard_id);
                if let (Some(other), Some(depth)) = (other, lookup.int(3)) {
                    found.push((other, depth.max(0) as u32, shard));
                }
            }
        }
        let mut room = limit.saturating_sub(found.len());
        for (other, depth, shard) in found {
            let number = self.number(&other)?;
            self.remember(number, shard);
            rows.push(Reached { node: number, depth });
        }
        // What is below a node on this server is here as well.
        let far = if up { self.far.len() } else { 0 };
        for at in 0..far {
            let before = rows.len();
            if room > 0 {
                self.far_rows(at, true, node, room, rows)?;
            }
            room = room.saturating_sub(rows.len() - before);
        }
        Ok(())
    }

    fn edges(&mut self, node: u32, out: bool, nodes: &mut Vec<u32>) -> PgResult<()> {
        self.look();
        let (graph, key) = (self.graph, self.key(node)?);
        let lookup = match out {
            true => opened(&mut self.out, graph.edges, graph.out.index, 1, graph, by(graph.out))?,
            false => opened(&mut self.into, graph.edges, graph.into.index, 1, graph, by(graph.into))?,
        };
        let column = if out { graph.target } else { graph.source };
        let mut found = Vec::new();
        lookup.find(&[&key]);
        while lookup.advance() {
            found.extend(lookup.key(column));
        }
        for other in &found {
            nodes.push(self.number(other)?);
        }
        Ok(())
    }

    /// Whether a node exists: it has an edge, or the table of nodes has it.
    pub fn is_alive(&mut self, node: u32) -> PgResult<bool> {
        let (graph, key) = (self.graph, self.key(node)?);
        if let Some(nodes) = &graph.nodes {
            let lookup = opened(&mut self.listed, nodes.table, nodes.index, 1, graph, THEIRS)?;
            lookup.find(&[&key]);
            if lookup.advance() {
                return Ok(true);
            }
        }
        for (door, index, column) in
            [(&mut self.out, graph.out, graph.target), (&mut self.into, graph.into, graph.source)]
        {
            let lookup = opened(door, graph.edges, index.index, 1, graph, by(index))?;
            lookup.find(&[&key]);
            while lookup.advance() {
                // An edge with one end is none.
                if lookup.key(column).is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Answers from rows that were read, reads them when the same node is asked about again and again.
    fn remembered(&mut self, node: u32, other: u32, up: bool) -> PgResult<Option<Option<u32>>> {
        let side = if up { &mut self.above } else { &mut self.below };
        if side.of != Some(node) {
            side.begin(node);
        }
        if side.complete {
            return Ok(Some(side.depth(other)));
        }
        side.asked += 1;
        if side.asked < side.patience {
            return Ok(None);
        }
        side.patience = side.patience.saturating_mul(4);
        let limit = side.patience.saturating_mul(4) as usize;
        let mut rows = Vec::new();
        self.rows(node, up, limit, &mut rows)?;
        if rows.len() >= limit {
            return Ok(None);
        }
        let side = if up { &mut self.above } else { &mut self.below };
        side.take(&rows);
        Ok(Some(side.depth(other)))
    }
}

impl ClosureReader for Reader<'_> {
    type Error = ErrorReport;

    fn ancestors(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> PgResult<()> {
        self.rows(node, true, limit, rows)
    }

    fn descendants(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> PgResult<()> {
        self.rows(node, false, limit, rows)
    }

    fn depth(&mut self, ancestor: u32, descendant: u32) -> PgResult<Option<u32>> {
        if let Some(at) = self.far_home(ancestor)? {
            self.look();
            return self.far_depth(at, ancestor, descendant);
        }
        if let Some(known) = self.remembered(ancestor, descendant, false)? {
            return Ok(known);
        }
        if let Some(known) = self.remembered(descendant, ancestor, true)? {
            return Ok(known);
        }
        self.stored(ancestor, descendant)
    }

    fn has_edge(&mut self, source: u32, target: u32) -> PgResult<bool> {
        self.look();
        let (graph, from, to) = (self.graph, self.key(source)?, self.key(target)?);
        if graph.out.has_other_end {
            let lookup = opened(&mut self.out_pairs, graph.edges, graph.out.index, 2, graph, by(graph.out))?;
            lookup.find(&[&from, &to]);
            return Ok(lookup.advance());
        }
        let lookup = opened(&mut self.out, graph.edges, graph.out.index, 1, graph, by(graph.out))?;
        lookup.find(&[&from]);
        while lookup.advance() {
            if lookup.key(graph.target).as_ref() == Some(&to) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn out_edges(&mut self, node: u32, targets: &mut Vec<u32>) -> PgResult<()> {
        self.edges(node, true, targets)
    }

    fn in_edges(&mut self, node: u32, sources: &mut Vec<u32>) -> PgResult<()> {
        self.edges(node, false, sources)
    }

    fn look_ahead(&mut self, ahead: &Ahead<'_>) -> PgResult<()> {
        if self.far.is_empty() { Ok(()) } else { self.far_ahead(ahead) }
    }
}
