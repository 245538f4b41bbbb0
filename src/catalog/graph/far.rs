//! Parts of a closure on nodes: what is asked of them and sent to them, through foreign tables and as the graph's owner;
//! and the marks by which both sides know that neither has lost what the other has (docs/decisions/0013).

use super::{Graph, Part};
use crate::catalog::name_of;
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::read;
use crate::pg::report::{PgResult, PgSqlErrorCode, error};
use crate::pg::{security, spi};
use std::collections::BTreeSet;

/// A row of a part on a node.
pub struct FarRow {
    /// The ancestor.
    pub ancestor: NodeKey,
    /// The descendant.
    pub descendant: NodeKey,
    /// Edges of a shortest path.
    pub depth: u32,
    /// Shard of the descendant.
    pub descendant_shard: i32,
}

/// What a row of a part on a node shall be.
pub struct Sent {
    /// The ancestor.
    pub ancestor: NodeKey,
    /// The descendant.
    pub descendant: NodeKey,
    /// Edges of a shortest path; None: there shall be no such row.
    pub depth: Option<u32>,
    /// Shard of the descendant.
    pub descendant_shard: i32,
}

/// A part on a node, with the names of the foreign tables that lead to it.
#[derive(Clone)]
pub struct FarPart {
    /// The shard whose ancestors' rows are in it.
    pub shard_id: i32,
    table: String,
    inbox: String,
    marks: String,
}

/// The foreign table through which rows are sent to a part, by the number of its table on the node.
pub(super) fn inbox_of(remote_id: i64) -> String {
    format!("foreshard.remote_inbox_{remote_id}")
}

/// The one with the marks of components.
pub(super) fn marks_of(remote_id: i64) -> String {
    format!("foreshard.remote_marks_{remote_id}")
}

/// The parts of a graph's closure that are on nodes.
pub fn parts(graph: &Graph) -> PgResult<Vec<FarPart>> {
    graph.parts.iter().filter_map(|part| FarPart::of(part).transpose()).collect()
}

impl FarPart {
    /// None: the part is on this server.
    pub fn of(part: &Part) -> PgResult<Option<Self>> {
        let Some(remote_id) = part.remote else { return Ok(None) };
        Ok(Some(Self {
            shard_id: part.shard_id,
            table: name_of(part.table)?,
            inbox: inbox_of(remote_id),
            marks: marks_of(remote_id),
        }))
    }

    /// Rows that begin (`up`: end) at any of these nodes; at most so many.
    pub fn rows(
        &self,
        graph: &Graph,
        up: bool,
        nodes: &[NodeKey],
        most: Option<usize>,
    ) -> PgResult<Vec<FarRow>> {
        let column = if up { "descendant" } else { "ancestor" };
        let limit = most.map(|most| format!(" LIMIT {most}")).unwrap_or_default();
        let table = &self.table;
        let sql = format!(
            "SELECT ancestor, descendant, depth, descendant_shard FROM {table} WHERE {column} = ANY ($1){limit}"
        );
        let mut found = Vec::new();
        read::each_of(&sql, &[graph.kind.array(nodes)], graph.kind, |row| {
            if let (Some(ancestor), Some(descendant), Some(depth), Some(descendant_shard)) =
                (row.key(1), row.key(2), row.int(3), row.int(4))
            {
                found.push(FarRow { ancestor, descendant, depth: depth.max(0) as u32, descendant_shard });
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Makes rows what they shall be, by state: what is sent twice is done once.
    pub fn send(&self, graph: &Graph, rows: &[Sent]) -> PgResult<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let depth = |row: &Sent| row.depth.map_or(-1, |depth| depth as i32);
        let depths: Vec<i32> = rows.iter().map(depth).collect();
        let shards: Vec<i32> = rows.iter().map(|row| row.descendant_shard).collect();
        let (inbox, shard) = (&self.inbox, self.shard_id);
        spi::run_kept(
            &format!(
                "INSERT INTO {inbox} (ancestor, descendant, depth, ancestor_shard, descendant_shard) \
                 SELECT u.a, u.d, nullif(u.n, -1), {shard}, u.s FROM unnest($1, $2, $3, $4) AS u (a, d, n, s)"
            ),
            &[
                graph.kind.array(rows.iter().map(|row| &row.ancestor)),
                graph.kind.array(rows.iter().map(|row| &row.descendant)),
                depths.into(),
                shards.into(),
            ],
        )?;
        Ok(())
    }

    /// Deletes the rows that begin at a node; how many.
    pub fn remove(&self, graph: &Graph, node: &NodeKey) -> PgResult<u64> {
        let sql = format!("DELETE FROM {} WHERE ancestor = ANY ($1)", self.table);
        spi::run_kept(&sql, &[graph.kind.array([node])])
    }

    /// Rows that lead to a node name the shard it lives on from now on, that of the node with itself not; how many.
    pub fn retarget(&self, graph: &Graph, node: &NodeKey, to: i32) -> PgResult<u64> {
        let sql = format!(
            "UPDATE {} SET descendant_shard = $2 \
             WHERE descendant = ANY ($1) AND ancestor <> ALL ($1) AND descendant_shard <> $2",
            self.table
        );
        spi::run_kept(&sql, &[graph.kind.array([node]), to.into()])
    }

    /// Replaces the mark of a component on the node; the one that was there.
    ///
    /// The transaction there is REPEATABLE READ: when its snapshot is older than a change of the component, this fails as
    /// holding the component would here.
    ///
    /// # Errors
    /// 40001 then; what the connection failed with.
    pub fn exchange(&self, component: i64, token: i64) -> PgResult<Option<i64>> {
        let marks = &self.marks;
        let update = format!(
            "UPDATE {marks} SET previous = token, token = $2 WHERE component = $1 RETURNING previous"
        );
        let found = spi::rows_mut(&update, &[component.into(), token.into()], |row| row.get::<i64>(1))?;
        if let Some(previous) = found.into_iter().next() {
            return Ok(previous);
        }
        // One that our snapshot there does not see raises 40001 there.
        let insert = format!("INSERT INTO {marks} (component, token) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        if spi::run(&insert, &[component.into(), token.into()])? == 0 {
            let code = PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE;
            return Err(error(
                code,
                "a component of the graph changed on a node since this transaction began there",
            )
            .set_hint("Repeat the transaction."));
        }
        Ok(None)
    }

    /// Replaces all marks there.
    fn set_marks(&self, marks: &[(i64, i64)]) -> PgResult<()> {
        let table = &self.marks;
        spi::run(&format!("DELETE FROM {table}"), &[])?;
        let components: Vec<i64> = marks.iter().map(|(component, _)| *component).collect();
        let tokens: Vec<i64> = marks.iter().map(|(_, token)| *token).collect();
        spi::run(
            &format!(
                "INSERT INTO {table} (component, token) SELECT u.c, u.t FROM unnest($1, $2) AS u (c, t)"
            ),
            &[components.into(), tokens.into()],
        )?;
        Ok(())
    }
}

/// What this server last noted of a component and a part on a node that nodes of it live on.
pub struct Mark {
    /// The component.
    pub component: i64,
    /// The part's shard.
    pub shard_id: i32,
    /// What the node has noted, unless one of both has lost something.
    pub token: i64,
}

/// The marks of components, which are held.
pub fn marks(graph_id: i32, components: &BTreeSet<i64>) -> PgResult<Vec<Mark>> {
    let components: Vec<i64> = components.iter().copied().collect();
    let _owner = security::as_extension_owner()?;
    spi::rows_mut(
        "SELECT component, shard_id, token FROM foreshard.graph_mark WHERE graph_id = $1 AND component = ANY ($2) ORDER BY 1, 2",
        &[graph_id.into(), components.into()],
        |row| Ok(Mark { component: row.need(1)?, shard_id: row.need(2)?, token: row.need(3)? }),
    )
}

/// Notes another mark of a component, which is held.
pub fn renew(graph_id: i32, component: i64, shard_id: i32) -> PgResult<i64> {
    let _owner = security::as_extension_owner()?;
    let token = spi::one_mut::<i64>(
        "INSERT INTO foreshard.graph_mark AS m (graph_id, component, shard_id, token) \
         VALUES ($1, $2, $3, pg_catalog.hashtextextended(pg_catalog.gen_random_uuid()::text, 0)) \
         ON CONFLICT (graph_id, component, shard_id) DO UPDATE SET token = excluded.token RETURNING m.token",
        &[graph_id.into(), component.into(), shard_id.into()],
    )?;
    token.ok_or_else(|| crate::pg::report::internal("no mark of a component"))
}

/// Forgets the mark of a component that is part of another one.
pub fn forget(graph_id: i32, component: i64, shard_id: i32) -> PgResult<()> {
    let _owner = security::as_extension_owner()?;
    spi::run(
        "DELETE FROM foreshard.graph_mark WHERE graph_id = $1 AND component = $2 AND shard_id = $3",
        &[graph_id.into(), component.into(), shard_id.into()],
    )?;
    Ok(())
}

/// Makes all marks anew, here and on the nodes, from the directory. As the graph's owner, who holds every component.
pub fn replace_marks(graph: &Graph) -> PgResult<()> {
    for part in parts(graph)? {
        let components = spi::rows_mut(
            &format!("SELECT DISTINCT component FROM {} WHERE shard_id = $1", graph.metagraph_name),
            &[part.shard_id.into()],
            |row| row.need::<i64>(1),
        )?;
        let marks = {
            let _owner = security::as_extension_owner()?;
            spi::run(
                "DELETE FROM foreshard.graph_mark WHERE graph_id = $1 AND shard_id = $2",
                &[graph.id.into(), part.shard_id.into()],
            )?;
            spi::rows_mut(
                "INSERT INTO foreshard.graph_mark (graph_id, component, shard_id, token) \
                 SELECT $1, u.c, $2, pg_catalog.hashtextextended(pg_catalog.gen_random_uuid()::text, 0) FROM unnest($3) AS u (c) \
                 RETURNING component, token",
                &[graph.id.into(), part.shard_id.into(), components.into()],
                |row| Ok((row.need::<i64>(1)?, row.need::<i64>(2)?)),
            )?
        };
        part.set_marks(&marks)?;
    }
    Ok(())
}
