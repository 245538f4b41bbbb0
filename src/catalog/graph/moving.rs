//! Moves of nodes: the queue, and rows of the directory.

use super::Graph;
use crate::pg::graph::keys::NodeKey;
use crate::pg::report::PgResult;
use crate::pg::spi;

/// A node as the directory has it.
pub struct NodeRow {
    /// Key, in text.
    pub node: String,
    /// Where it lives.
    pub shard_id: i32,
    /// How often it moved, and one.
    pub version: i64,
    /// Its type.
    pub type_: Option<String>,
}

/// Rows of the directory, those of these nodes that have one. As the graph's owner.
pub fn nodes(graph: &Graph, keys: &[NodeKey]) -> PgResult<Vec<NodeRow>> {
    spi::rows_mut(
        &format!(
            "SELECT node::text, shard_id, version, type FROM {} WHERE node = ANY ($1)",
            graph.metagraph_name
        ),
        &[graph.kind.array(keys)],
        |row| {
            Ok(NodeRow {
                node: row.need(1)?,
                shard_id: row.need(2)?,
                version: row.need(3)?,
                type_: row.get(4)?,
            })
        },
    )
}

/// Rewrites the directory's row of a node, which is held. As the graph's owner.
pub fn place(graph: &Graph, key: &NodeKey, to: i32) -> PgResult<u64> {
    spi::run_kept(
        &format!(
            "UPDATE {} SET shard_id = $2, version = version + 1 WHERE node = ANY ($1)",
            graph.metagraph_name
        ),
        &[graph.kind.array([key]), to.into()],
    )
}

/// A move that waits.
pub struct Waiting {
    /// Its id.
    pub move_id: i64,
    /// The node, in text.
    pub node: String,
    /// Where it shall live.
    pub to_shard: i32,
    /// The version that was to move.
    pub version: i64,
}

/// Files moves, nodes in text with where to and which version; one of a node that waits already is replaced.
pub fn file(graph_id: i32, moves: &[(String, i32, i64)], user: &str) -> PgResult<u64> {
    let nodes: Vec<String> = moves.iter().map(|(node, ..)| node.clone()).collect();
    let shards: Vec<i32> = moves.iter().map(|(_, shard, _)| *shard).collect();
    let versions: Vec<i64> = moves.iter().map(|(.., version)| *version).collect();
    spi::run(
        "INSERT INTO foreshard.node_move AS m (graph_id, node, to_shard, version, requested_by) \
         SELECT $1, u.node, u.shard, u.version, $5::name FROM unnest($2::text[], $3::int[], $4::bigint[]) AS u (node, shard, version) \
         ON CONFLICT (graph_id, node) WHERE state = 'waiting' DO UPDATE \
         SET to_shard = excluded.to_shard, version = excluded.version, requested_by = excluded.requested_by, requested_at = now()",
        &[graph_id.into(), nodes.into(), shards.into(), versions.into(), user.into()],
    )
}

/// The first graph and shard that a move waits for although the closure has no part there.
pub fn lacks_part() -> PgResult<Option<(i32, i32)>> {
    let found = spi::rows_mut(
        "SELECT m.graph_id, m.to_shard FROM foreshard.node_move m WHERE m.state = 'waiting' \
         AND NOT EXISTS (SELECT FROM foreshard.graph_partition p WHERE (p.graph_id, p.shard_id) = (m.graph_id, m.to_shard)) \
         ORDER BY m.node_move_id LIMIT 1",
        &[],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// Ends all moves of a graph's nodes to a shard that wait, with why they were not made.
pub fn fail_to(graph_id: i32, shard_id: i32, error: &str) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.node_move SET state = 'failed', finished_at = pg_catalog.clock_timestamp(), closure_rows = 0, error = $3 \
         WHERE graph_id = $1 AND to_shard = $2 AND state = 'waiting'",
        &[graph_id.into(), shard_id.into(), error.into()],
    )?;
    Ok(())
}

/// Graphs with moves that wait, to parts that there are.
pub fn graphs_waiting() -> PgResult<Vec<i32>> {
    spi::rows_mut(
        "SELECT m.graph_id FROM foreshard.node_move m JOIN foreshard.graph_partition p ON (p.graph_id, p.shard_id) = (m.graph_id, m.to_shard) \
         WHERE m.state = 'waiting' GROUP BY 1 ORDER BY min(m.node_move_id)",
        &[],
        |row| row.need(1),
    )
}

/// A graph's moves that wait, to parts that there are, after the one with this number, at most so many in the order of their
/// numbers; they are kept from others until the end of the transaction.
pub fn next(graph_id: i32, after: i64, most: i64) -> PgResult<Vec<Waiting>> {
    spi::rows_mut(
        "SELECT m.node_move_id, m.node, m.to_shard, m.version FROM foreshard.node_move m \
         JOIN foreshard.graph_partition p ON (p.graph_id, p.shard_id) = (m.graph_id, m.to_shard) \
         WHERE m.state = 'waiting' AND m.graph_id = $1 AND m.node_move_id > $2 \
         ORDER BY m.node_move_id LIMIT $3 FOR UPDATE OF m SKIP LOCKED",
        &[graph_id.into(), after.into(), most.into()],
        |row| {
            Ok(Waiting {
                move_id: row.need(1)?,
                node: row.need(2)?,
                to_shard: row.need(3)?,
                version: row.need(4)?,
            })
        },
    )
}

/// Ends a move, with the rows it rewrote, or why it was not made.
pub fn finish(move_id: i64, rows: u64, error: Option<&str>) -> PgResult<()> {
    spi::run_kept(
        "UPDATE foreshard.node_move SET state = CASE WHEN $3 IS NULL THEN 'done' ELSE 'failed' END, \
             finished_at = pg_catalog.clock_timestamp(), closure_rows = $2, error = $3 WHERE node_move_id = $1",
        &[move_id.into(), (rows as i64).into(), error.into()],
    )?;
    Ok(())
}

/// Forgets moves of a graph that wait; how many.
pub fn cancel(graph_id: i32) -> PgResult<u64> {
    spi::run("DELETE FROM foreshard.node_move WHERE graph_id = $1 AND state = 'waiting'", &[graph_id.into()])
}

/// Forgets moves that ended so many seconds ago.
pub fn expire(retain_s: i32) -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.node_move WHERE state <> 'waiting' AND finished_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1)",
        &[f64::from(retain_s).into()],
    )?;
    Ok(())
}
