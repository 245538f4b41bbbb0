//! The closure compared with what it should be, computed from all edges: to repair it, or to tell what is wrong.

use super::far::everywhere;
use super::input::{Input, Reading, Statements};
use super::write::{Spot, Writer};
use super::{Homes, changed, new_component};
use crate::catalog::graph::Graph;
use crate::catalog::graph::far::{self, FarPart};
use crate::catalog::graph::node::{self, NewNode};
use crate::pg::graph::keys::{KeyKind, NodeKey};
use crate::pg::graph::leaf::ClosureRow;
use crate::pg::graph::lookup::{Lookup, Reads};
use crate::pg::graph::read;
use crate::pg::lock::ROW_EXCLUSIVE;
use crate::pg::report::{PgResult, internal};
use crate::pg::spi;
use foreshard_core::graph::closure::{ClosureOptions, ClosureWalk};
use foreshard_core::graph::components::weak_components;
use std::collections::{BTreeSet, HashMap, HashSet};

/// A row that is not what it should be.
pub struct Difference {
    /// The ancestor.
    pub ancestor: String,
    /// The descendant.
    pub descendant: String,
    /// The depth that is stored; None: there is no such row.
    pub stored: Option<u32>,
    /// The right depth; None: there should be no such row.
    pub right: Option<u32>,
    /// What is wrong.
    pub problem: &'static str,
}

/// A row as it is stored.
struct Stored {
    descendant: u32,
    depth: u32,
    part: i32,
    descendant_shard: i32,
    spot: Spot,
}

/// Nodes whose rows are read from a node of ours at once.
const AT_ONCE: u32 = 256;

/// Parts on nodes, of which the rows of many ancestors are read at once.
struct Far {
    parts: Vec<FarPart>,
    /// Which of the ancestors were read, by their numbers divided.
    read: HashSet<u32>,
    /// What nobody has asked for yet, by ancestor.
    rows: HashMap<u32, Vec<Stored>>,
}

/// A row, as it is and as it should be.
enum Change {
    Missing { descendant: u32, depth: u32 },
    Surplus(Stored),
    Wrong(Stored, u32),
}

/// All of a graph, or of some of its components, in memory, except for the closure.
struct Picture<'g> {
    graph: &'g Graph,
    input: Input,
    /// By number; None: not in the directory.
    shards: Vec<Option<i32>>,
    homes: Homes,
    down: Vec<(i32, Lookup)>,
    far: Far,
}

impl<'g> Picture<'g> {
    /// Reads it under the active snapshot; of parts on nodes, those of `far` will be looked at.
    fn read(graph: &'g Graph, scope: Option<&BTreeSet<i64>>, far: &BTreeSet<i32>) -> PgResult<Self> {
        let mut parents: HashMap<i64, i64> = HashMap::new();
        read::each(&node::merged_query(graph), KeyKind::Int8, |row| {
            if let (Some(component), Some(parent)) = (row.bigint(1), row.bigint(2)) {
                parents.insert(component, parent);
            }
            Ok(())
        })?;
        let within = |mut label: i64| {
            while let Some(parent) = parents.get(&label).filter(|parent| **parent > label) {
                label = *parent;
            }
            scope.is_none_or(|scope| scope.contains(&label))
        };
        let mut reading = Reading::default();
        let mut shards = Vec::new();
        read::each(&node::directory_query(graph), graph.kind, |row| {
            if let (Some(key), Some(shard), Some(label)) = (row.key(1), row.int(2), row.bigint(3))
                && within(label)
            {
                reading.keys.number(&key).map_err(|problem| super::input::too_large(&problem))?;
                shards.push(Some(shard));
            }
            Ok(())
        })?;
        let known = reading.keys.clone();
        let wanted = |key: &NodeKey| scope.is_none() || known.get(key).is_some();
        reading.read(&Statements::of(graph), graph.kind, wanted)?;
        let input = reading.finish(false)?;
        shards.resize(input.keys.len() as usize, None);
        let mut down = Vec::with_capacity(graph.parts.len());
        let mut parts = Vec::new();
        for part in &graph.parts {
            if part.remote.is_some() {
                parts.extend(FarPart::of(part)?.filter(|part| far.contains(&part.shard_id)));
                continue;
            }
            let rows = Lookup::open(part.table, part.pairs, 1, graph.kind, ROW_EXCLUSIVE, Reads::Row)?;
            down.push((part.shard_id, rows));
        }
        let far = Far { parts, read: HashSet::new(), rows: HashMap::new() };
        Ok(Self { graph, input, shards, homes: Homes::of(graph)?, down, far })
    }

    fn shard(&self, node: u32) -> i32 {
        let known = self.shards.get(node as usize).copied().flatten();
        known.or_else(|| self.input.keys.key(node).map(|key| self.homes.of_key(key))).unwrap_or(0)
    }

    /// Every row whose ancestor is known and that is not what it should be, by ancestor.
    fn compare(
        &mut self,
        max_rows: u64,
        too_many: impl Fn() -> pgrx::pg_sys::panic::ErrorReport,
        mut tell: impl FnMut(&Self, u32, Vec<Change>) -> PgResult<()>,
    ) -> PgResult<()> {
        let graph = std::mem::take(&mut self.input.graph);
        let options = ClosureOptions { max_depth: self.graph.max_depth, self_pairs: true, max_rows };
        let mut walk = ClosureWalk::new(&graph, options);
        // By number of the descendant: which ancestor it was met for, and the depth.
        let mut right: Vec<(u32, u32)> = vec![(u32::MAX, 0); graph.node_count() as usize];
        while let Some((ancestor, rows)) = walk.advance().map_err(|_| too_many())? {
            if ancestor.is_multiple_of(64) {
                pgrx::check_for_interrupts!();
            }
            let alive = self.input.alive.get(ancestor as usize).copied().unwrap_or(false);
            let rows = if alive { rows } else { &[] };
            for row in rows {
                if let Some(place) = right.get_mut(row.node as usize) {
                    *place = (ancestor, row.depth);
                }
            }
            let mut changes = Vec::new();
            for stored in self.stored(ancestor)? {
                let place = right.get_mut(stored.descendant as usize);
                let here = stored.part == self.shard(ancestor);
                match place.filter(|(of, _)| *of == ancestor && here) {
                    None => changes.push(Change::Surplus(stored)),
                    Some(place) => {
                        place.0 = u32::MAX;
                        let depth = place.1;
                        if stored.depth != depth || stored.descendant_shard != self.shard(stored.descendant) {
                            changes.push(Change::Wrong(stored, depth));
                        }
                    }
                }
            }
            for row in rows {
                if right.get(row.node as usize).is_some_and(|(of, _)| *of == ancestor) {
                    changes.push(Change::Missing { descendant: row.node, depth: row.depth });
                }
            }
            if !changes.is_empty() {
                tell(self, ancestor, changes)?;
            }
        }
        self.input.graph = graph;
        Ok(())
    }

    /// The rows of an ancestor, in whatever part they are. Descendants that nobody knows get numbers as well.
    fn stored(&mut self, ancestor: u32) -> PgResult<Vec<Stored>> {
        let Some(key) = self.input.keys.key(ancestor).cloned() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for (part, lookup) in &mut self.down {
            lookup.find(&[&key]);
            while lookup.advance() {
                let (Some(descendant), Some(depth), Some(shard)) =
                    (lookup.key(2), lookup.int(3), lookup.int(5))
                else {
                    continue;
                };
                let number = self.input.keys.number(&descendant);
                found.push(Stored {
                    descendant: number.map_err(|problem| super::input::too_large(&problem))?,
                    depth: depth.max(0) as u32,
                    part: *part,
                    descendant_shard: shard,
                    spot: Spot::Here(lookup.place()),
                });
            }
        }
        if !self.far.parts.is_empty() {
            self.read_far(ancestor)?;
            found.extend(self.far.rows.remove(&ancestor).unwrap_or_default());
        }
        Ok(found)
    }

    /// Reads the rows of an ancestor and those after it from the parts on nodes, unless that was done.
    fn read_far(&mut self, ancestor: u32) -> PgResult<()> {
        if !self.far.read.insert(ancestor / AT_ONCE) {
            return Ok(());
        }
        let first = ancestor / AT_ONCE * AT_ONCE;
        let numbers = first..first.saturating_add(AT_ONCE).min(self.input.keys.len());
        let keys: Vec<NodeKey> = numbers.filter_map(|number| self.input.keys.key(number).cloned()).collect();
        for part in self.far.parts.clone() {
            for row in part.rows(self.graph, false, &keys, None)? {
                let number = |input: &mut Input, key: &NodeKey| {
                    input.keys.number(key).map_err(|problem| super::input::too_large(&problem))
                };
                let ancestor = number(&mut self.input, &row.ancestor)?;
                let stored = Stored {
                    descendant: number(&mut self.input, &row.descendant)?,
                    depth: row.depth,
                    part: part.shard_id,
                    descendant_shard: row.descendant_shard,
                    spot: Spot::There,
                };
                self.far.rows.entry(ancestor).or_default().push(stored);
            }
        }
        Ok(())
    }

    fn write(&self, writer: &mut Writer<'_>, node: u32, changes: Vec<Change>) -> PgResult<()> {
        let key = |node: u32| self.input.keys.key(node).ok_or_else(|| internal("an unknown node changes"));
        let ancestor_shard = self.shard(node);
        let ancestor = key(node)?;
        for change in changes {
            match change {
                Change::Surplus(stored) => {
                    writer.delete(stored.part, stored.spot, ancestor, key(stored.descendant)?)?;
                }
                Change::Missing { descendant, depth } => {
                    let descendant_shard = self.shard(descendant);
                    let descendant = key(descendant)?;
                    let row = ClosureRow { ancestor, descendant, depth, ancestor_shard, descendant_shard };
                    writer.insert(&row)?;
                }
                Change::Wrong(stored, depth) => {
                    let descendant_shard = self.shard(stored.descendant);
                    let descendant = key(stored.descendant)?;
                    let row = ClosureRow { ancestor, descendant, depth, ancestor_shard, descendant_shard };
                    writer.update(stored.spot, &row)?;
                }
            }
        }
        Ok(())
    }

    fn differences(&self, ancestor: u32, changes: Vec<Change>) -> Vec<Difference> {
        let text = |node: u32| self.input.keys.key(node).map(NodeKey::text).unwrap_or_default();
        let difference = |change: Change| {
            let (descendant, stored, right, problem) = match change {
                Change::Missing { descendant, depth } => (descendant, None, Some(depth), "missing"),
                Change::Surplus(stored) => (stored.descendant, Some(stored.depth), None, "surplus"),
                Change::Wrong(stored, right) if stored.depth == right => {
                    (stored.descendant, Some(stored.depth), Some(right), "shard")
                }
                Change::Wrong(stored, right) => (stored.descendant, Some(stored.depth), Some(right), "depth"),
            };
            Difference { ancestor: text(ancestor), descendant: text(descendant), stored, right, problem }
        };
        changes.into_iter().map(difference).collect()
    }
}

/// Makes the closure of some components, which are held, what it should be, under the active snapshot; of parts on nodes,
/// those of `far` may have rows of theirs.
///
/// # Errors
/// 53400 when it has more than `max_rows` rows; then nothing may be kept of this statement.
pub fn repair(graph: &Graph, components: &BTreeSet<i64>, far: &BTreeSet<i32>, max_rows: u64) -> PgResult<()> {
    // An edge that a policy hides would be taken for one that is gone; better an error.
    spi::set_local("row_security", "off")?;
    let mut picture = Picture::read(graph, Some(components), far)?;
    let mut writer = Writer::new(graph);
    let too_many = || changed::too_much_work(graph, max_rows);
    picture.compare(max_rows, too_many, |picture, ancestor, changes| {
        picture.write(&mut writer, ancestor, changes)
    })?;
    writer.flush()
}

/// Everything that is wrong with a graph's closure and directory, under the active snapshot, up to `limit`.
pub fn check(graph: &Graph, limit: usize) -> PgResult<Vec<Difference>> {
    let mut picture = Picture::read(graph, None, &everywhere(graph))?;
    let mut found = Vec::new();
    let all = || internal("the closure has too many rows");
    picture.compare(u64::MAX, all, |picture, ancestor, changes| {
        if found.len() < limit {
            found.extend(picture.differences(ancestor, changes));
        }
        Ok(())
    })?;
    for (number, key) in picture.input.keys.keys().iter().enumerate() {
        let alive = picture.input.alive.get(number).copied().unwrap_or(false);
        if alive && picture.shards.get(number).copied().flatten().is_none() {
            let node = key.text();
            found.push(Difference {
                ancestor: node.clone(),
                descendant: node,
                stored: None,
                right: Some(0),
                problem: "not in the metagraph",
            });
        }
    }
    read::each(&node::orphan_query(graph), graph.kind, |row| {
        if let (Some(ancestor), Some(descendant)) = (row.key(1), row.key(2)) {
            let known = picture.input.keys.get(&ancestor);
            if known.is_none_or(|number| number >= picture.shards.len() as u32) {
                found.push(Difference {
                    ancestor: ancestor.text(),
                    descendant: descendant.text(),
                    stored: row.int(3).map(|depth| depth.max(0) as u32),
                    right: None,
                    problem: "surplus",
                });
            }
        }
        Ok(())
    })?;
    found.truncate(limit);
    Ok(found)
}

/// Makes closure, directory and components what they should be. The caller keeps writers out of the edge table and
/// the node table, and holds all components, because nodes move; readers see the closure as it was until the end of the transaction.
///
/// # Errors
/// 54000 when the closure is larger than `max_rows`.
pub fn rebuild(graph: &Graph, max_rows: u64) -> PgResult<u64> {
    let mut rows = 0;
    let mut picture = Picture::read(graph, None, &everywhere(graph))?;
    let mut writer = Writer::new(graph);
    let problem = foreshard_core::graph::closure::ClosureError::TooManyRows { limit: max_rows };
    let too_many = || super::build::too_many_rows(&problem);
    picture.compare(max_rows, too_many, |picture, ancestor, changes| {
        rows += changes.len() as u64;
        picture.write(&mut writer, ancestor, changes)
    })?;
    writer.flush()?;
    drop(writer);
    let labels = weak_components(&picture.input.graph);
    let mut nodes = Vec::new();
    for (number, key) in picture.input.keys.keys().iter().enumerate().take(labels.len()) {
        if picture.input.alive.get(number).copied().unwrap_or(false) {
            let first = labels.get(number).copied().unwrap_or(0);
            nodes.push(NewNode {
                key: key.clone(),
                shard_id: picture.shard(number as u32),
                component: picture.input.keys.key(first).map_or(0, new_component),
            });
        }
    }
    nodes.sort_by(|a, b| a.key.cmp(&b.key));
    drop(picture);
    node::replace(graph, &nodes)?;
    node::refresh_all_types(graph)?;
    rows += node::delete_orphans(graph)?;
    far::replace_marks(graph)?;
    Ok(rows)
}
