//! Making a graph: everything is read, the closure computed and written in bulk, then indexed.

use super::adopt;
use super::catch_up::catch_up;
use super::influence::ranks;
use super::input::{Input, Reading, Statements};
use super::{Homes, new_component};
use crate::catalog::colocation::ShardRow;
use crate::catalog::graph::create::{self, Distinct, Made, Plan};
use crate::catalog::graph::{self, functions};
use crate::pg::graph::bulk::{Bulk, Value};
use crate::pg::graph::fresh_snapshot;
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::leaf::ClosureRow;
use crate::pg::report::{PgResult, error, internal, notice};
use crate::pg::{guc, security, spi};
use foreshard_core::graph::closure::{ClosureError, ClosureOptions, ClosureWalk};
use foreshard_core::graph::components::weak_components;
use pgrx::pg_sys;
use pgrx::prelude::PgSqlErrorCode;
use std::time::{Duration, Instant};

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// A graph that was made.
pub struct Created {
    /// Rows of its closure.
    pub rows: u64,
    /// Edges that came or went while it was made.
    pub caught_up: u64,
    /// How long writers of its tables were kept out, ms.
    pub held_ms: f64,
}

/// Makes the graph of tables that belong to the current user and that nobody can alter. Readers and writers go on while edges are read and the
/// closure is built; then writers wait while what they did meanwhile is caught up with and the triggers are made, and
/// until the end of the transaction: `keep_writers_out` of these tables. With
/// `verify`, an adopted closure table must be right.
///
/// # Errors
/// 54000 when the closure would be larger than `foreshard.graph_max_rows`; 23514 for a wrong closure table.
pub fn create(
    plan: &Plan,
    statements: &Statements,
    shards: &[ShardRow],
    verify: bool,
    keep_writers_out: impl FnOnce(&[pg_sys::Oid]) -> PgResult<()>,
) -> PgResult<Created> {
    let mut tables: Vec<pg_sys::Oid> = [Some(plan.edges), plan.nodes].into_iter().flatten().collect();
    tables.sort_unstable_by_key(|table| table.to_u32());
    tables.dedup();
    let owner = security::relation_owner(plan.edges)?;
    let input = {
        let _owner = security::as_restricted_owner(owner);
        spi::set_local("row_security", "off")?;
        first_picture(plan, statements, verify)?
    };
    notice(&format!(
        "graph \"{}\": {} nodes, {} edges",
        plan.name,
        input.keys.len(),
        input.graph.edge_count()
    ));
    let (made, rows) = {
        let _owner = security::as_extension_owner()?;
        create::require_free_names(plan)?;
        let made = create::tables(plan, shards)?;
        let (rows, distinct) = fill(plan, &made, &input, shards)?;
        create::tell_distinct(&made, &distinct)?;
        create::finish_tables(plan, &made, owner)?;
        (made, rows)
    };
    {
        let _owner = security::as_restricted_owner(owner);
        create::analyze(&made)?;
    }
    keep_writers_out(&tables)?;
    let held = Instant::now();
    let graph = {
        let _owner = security::as_extension_owner()?;
        create::edge_indexes(plan, made.graph_id)?;
        create::first_influence(made.graph_id)?;
        create::announce()?;
        graph::by_id(made.graph_id)?
    };
    let caught_up = {
        let _owner = security::as_restricted_owner(owner);
        spi::set_local("row_security", "off")?;
        catch_up(&graph, made.graph_id, statements, &input, guc::GRAPH_MAX_ROWS.get().max(1) as u64)?
    };
    let _owner = security::as_extension_owner()?;
    create::triggers(plan, made.graph_id)?;
    functions::make(&graph, owner, false)?;
    Ok(Created { rows, caught_up, held_ms: held.elapsed().as_secs_f64() * 1000.0 })
}

/// Edges and nodes under one snapshot, under which an adopted closure table is looked at as well.
fn first_picture(plan: &Plan, statements: &Statements, verify: bool) -> PgResult<Input> {
    let _fresh = fresh_snapshot();
    let mut reading = Reading::default();
    reading.read(statements, plan.kind, |_| true)?;
    let input = reading.finish(true)?;
    if let (Some((depth, _)), true) = (plan.depth, verify) {
        adopt::verify(plan, depth, &input, guc::GRAPH_MAX_ROWS.get().max(1) as u64)?;
    }
    Ok(input)
}

/// How many different nodes the rows of a part begin at and end at. ANALYZE guesses far too few from its sample, and
/// PostgreSQL would then plan every single look-up anew.
struct Counter {
    rows: u64,
    ancestors: u64,
    descendants: u64,
    seen: Vec<u64>,
}

impl Counter {
    fn new(nodes: u32) -> Self {
        Self { rows: 0, ancestors: 0, descendants: 0, seen: vec![0; nodes as usize / 64 + 1] }
    }

    fn ancestor(&mut self, rows: usize) {
        self.rows += rows as u64;
        self.ancestors += u64::from(rows > 0);
    }

    fn descendant(&mut self, node: u32) {
        let bit = 1_u64 << (node % 64);
        if let Some(word) = self.seen.get_mut(node as usize / 64)
            && *word & bit == 0
        {
            *word |= bit;
            self.descendants += 1;
        }
    }
}

/// Writes directory, components and closure; how many rows, and how many different keys they have.
fn fill(plan: &Plan, made: &Made, input: &Input, shards: &[ShardRow]) -> PgResult<(u64, Vec<Distinct>)> {
    let homes: Vec<(i32, f64)> = shards.iter().map(|shard| (shard.shard_id, shard.capacity)).collect();
    let homes = Homes::new(&homes)?;
    let influence = ranks(&input.graph, None)?.values;
    let places = homes.by_influence(&influence);
    fill_nodes(plan, made, input, &places, &influence)?;
    let options = ClosureOptions {
        max_depth: plan.max_depth.and_then(|depth| u32::try_from(depth).ok()),
        self_pairs: true,
        max_rows: guc::GRAPH_MAX_ROWS.get().max(1) as u64,
    };
    let part = |(shard_id, table): &(i32, pg_sys::Oid)| {
        (*shard_id, Bulk::open(*table, plan.kind), Counter::new(input.keys.len()))
    };
    let mut parts: Vec<(i32, Bulk, Counter)> = made.parts.iter().map(part).collect();
    let keys: &[NodeKey] = input.keys.keys();
    let mut walk = ClosureWalk::new(&input.graph, options);
    let mut told = Instant::now();
    let mut rows_of: Vec<(u32, u32)> = Vec::new();
    while let Some((node, rows)) = walk.advance().map_err(|problem| too_many_rows(&problem))? {
        // In the order of the unique index, which is built the faster for it.
        rows_of.clear();
        rows_of.extend(rows.iter().map(|row| (row.node, row.depth)));
        rows_of.sort_unstable();
        let (Some(ancestor), Some(shard)) = (keys.get(node as usize), places.get(node as usize)) else {
            continue;
        };
        let part = parts.iter_mut().find(|(shard_id, ..)| shard_id == shard);
        let (_, part, counter) = part.ok_or_else(|| internal("a node has no part of the closure"))?;
        counter.ancestor(rows_of.len());
        for (below, depth) in &rows_of {
            let place = *below as usize;
            let (Some(descendant), Some(home)) = (keys.get(place), places.get(place)) else { continue };
            counter.descendant(*below);
            part.push_closure(&ClosureRow {
                ancestor,
                descendant,
                depth: *depth,
                ancestor_shard: *shard,
                descendant_shard: *home,
            });
        }
        if node.is_multiple_of(256) && told.elapsed() > PROGRESS_EVERY {
            told = Instant::now();
            let done = f64::from(node) / keys.len().max(1) as f64 * 100.0;
            notice(&format!("graph \"{}\": closure {done:.0} % written", plan.name));
        }
    }
    let (mut rows, mut distinct) = (0, Vec::with_capacity(parts.len()));
    for (_, part, counter) in parts {
        rows += part.finish();
        let Counter { rows, ancestors, descendants, .. } = counter;
        distinct.push(Distinct { rows, ancestors, descendants });
    }
    notice(&format!("graph \"{}\": {rows} rows of the closure written, building indexes", plan.name));
    Ok((rows, distinct))
}

/// 54000: the closure has more rows than it may have.
pub(super) fn too_many_rows(problem: &ClosureError) -> pg_sys::panic::ErrorReport {
    error(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, problem.to_string())
        .set_hint("Give the graph a max_depth, or raise foreshard.graph_max_rows.")
}

fn fill_nodes(plan: &Plan, made: &Made, input: &Input, places: &[i32], influence: &[f64]) -> PgResult<()> {
    let labels = weak_components(&input.graph);
    let mut directory = Bulk::open(made.metagraph, plan.kind);
    let mut components: Vec<i64> = Vec::new();
    for (number, key) in input.keys.keys().iter().enumerate() {
        let first = labels.get(number).copied().unwrap_or(0);
        let component = input.keys.key(first).map_or(0, new_component);
        if first as usize == number {
            components.push(component);
        }
        directory.push(&[
            Value::Key(key),
            Value::Int(places.get(number).copied().unwrap_or(0)),
            Value::Bigint(component),
            Value::Text(input.types.get(number).and_then(Option::as_deref)),
            influence.get(number).map_or(Value::Null, |score| Value::Float(*score)),
            Value::Null,
            Value::Bigint(1),
            Value::Null,
            Value::Null,
        ]);
    }
    directory.finish();
    components.sort_unstable();
    components.dedup();
    let mut rows = Bulk::open(made.components, plan.kind);
    components
        .iter()
        .for_each(|component| rows.push(&[Value::Bigint(*component), Value::Null, Value::Bigint(0)]));
    rows.finish();
    Ok(())
}
