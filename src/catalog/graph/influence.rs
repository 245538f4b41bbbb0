//! What is known of a graph's nodes besides the closure: influence, accesses, who is used with whom.

use super::Graph;
use crate::pg::graph::keys::NodeKey;
use crate::pg::report::PgResult;
use crate::pg::spi;

/// Most pairs of nodes used together that are kept of a graph; the lightest go first.
const MAX_PAIRS: i64 = 1_000_000;
/// A pair that weighs less than this share of one access is forgotten.
const LEAST_WEIGHT: f64 = 0.01;

/// What an access at `at` still counts, as an SQL expression; the half-life in seconds.
fn decay(at: &str, half_life_s: i32) -> String {
    // Not too small a power: that is an error.
    format!(
        "pg_catalog.power(2.0::float8, -least(200.0, greatest(0.0, \
         extract(epoch FROM pg_catalog.clock_timestamp() - {at})::float8 / {half_life_s})))"
    )
}

/// `SELECT node, shard_id, influence_score, access_score, version` of the whole directory, accesses decayed.
pub fn knowledge_query(graph: &Graph, half_life_s: i32) -> String {
    let decay = decay("accessed_at", half_life_s);
    format!(
        "SELECT node, shard_id, influence_score, access_score * coalesce({decay}, 1.0), version FROM {}",
        graph.metagraph_name
    )
}

/// Writes scores of some nodes, where they differ. Rows that somebody else is changing are left to the next time:
/// nobody ever waits here, so nobody can wait for this in a circle.
pub fn write_scores<'a>(
    graph: &Graph,
    keys: impl IntoIterator<Item = &'a NodeKey>,
    influence: &[f64],
    betweenness: &[f64],
) -> PgResult<u64> {
    let table = &graph.metagraph_name;
    spi::run(
        &format!(
            "WITH u AS (SELECT * FROM unnest($1, $2::float8[], $3::float8[]) AS u (node, influence, betweenness)), \
             l AS (SELECT m.node FROM {table} m JOIN u USING (node) \
                   WHERE m.betweenness IS DISTINCT FROM u.betweenness \
                      OR m.influence_score IS NULL OR pg_catalog.abs(m.influence_score - u.influence) > 1e-6 * u.influence \
                   FOR NO KEY UPDATE OF m SKIP LOCKED) \
             UPDATE {table} m SET influence_score = u.influence, betweenness = u.betweenness \
             FROM u JOIN l USING (node) WHERE m.node = u.node"
        ),
        &[graph.kind.array(keys), influence.to_vec().into(), betweenness.to_vec().into()],
    )
}

/// Takes the scores of nodes that are in the directory only. As the graph's owner.
pub fn clear_gone(graph: &Graph) -> PgResult<u64> {
    let (table, closure) = (&graph.metagraph_name, &graph.closure_name);
    spi::run(
        &format!(
            "UPDATE {table} SET influence_score = NULL, betweenness = NULL WHERE node IN ( \
                 SELECT m.node FROM {table} m WHERE m.influence_score IS NOT NULL AND NOT EXISTS ( \
                     SELECT FROM {closure} c WHERE c.ancestor_shard = m.shard_id AND c.ancestor = m.node AND c.descendant = m.node) \
                 FOR NO KEY UPDATE OF m SKIP LOCKED)"
        ),
        &[],
    )
}

/// How a computation went.
pub struct Computed {
    /// Nodes looked at.
    pub nodes: i64,
    /// Iterations of PageRank.
    pub iterations: i32,
    /// Whether they came within the tolerance.
    pub converged: bool,
    /// "exact" or "sampled".
    pub method: &'static str,
    /// Pairs drawn for betweenness.
    pub samples: i64,
    /// By how much betweenness may be off.
    pub error_bound: f64,
}

/// Changes of a graph so far, as something to compare. As somebody who may read its tables.
pub fn changes(graph: &Graph) -> PgResult<String> {
    let table = &graph.components_name;
    let found = spi::one::<String>(&format!("SELECT coalesce(sum(changes), 0)::text FROM {table}"), &[])?;
    Ok(found.unwrap_or_default())
}

/// Notes a computation and the most influential nodes, most influential first, with both scores.
pub fn note(graph_id: i32, changes: &str, done: &Computed, top: &[(String, f64, f64)]) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.graph_influence AS i \
             (graph_id, attempted_at, refreshed_at, changes, nodes, iterations, converged, betweenness, samples, error_bound) \
         VALUES ($1, pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp(), $2::numeric, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (graph_id) DO UPDATE SET attempted_at = excluded.attempted_at, refreshed_at = excluded.refreshed_at, \
             changes = excluded.changes, nodes = excluded.nodes, iterations = excluded.iterations, \
             converged = excluded.converged, betweenness = excluded.betweenness, samples = excluded.samples, \
             error_bound = excluded.error_bound",
        &[
            graph_id.into(),
            changes.into(),
            done.nodes.into(),
            done.iterations.into(),
            done.converged.into(),
            done.method.into(),
            done.samples.into(),
            done.error_bound.into(),
        ],
    )?;
    spi::run("DELETE FROM foreshard.graph_influencer WHERE graph_id = $1", &[graph_id.into()])?;
    let nodes: Vec<String> = top.iter().map(|(node, ..)| node.clone()).collect();
    let influence: Vec<f64> = top.iter().map(|(_, influence, _)| *influence).collect();
    let between: Vec<f64> = top.iter().map(|(.., between)| *between).collect();
    spi::run(
        "INSERT INTO foreshard.graph_influencer (graph_id, place, node, influence_score, betweenness) \
         SELECT $1, u.place, u.node, u.influence, u.between_ \
         FROM unnest($2::text[], $3::float8[], $4::float8[]) WITH ORDINALITY AS u (node, influence, between_, place)",
        &[graph_id.into(), nodes.into(), influence.into(), between.into()],
    )?;
    Ok(())
}

/// A graph whose influence has not been looked at for so many seconds, and its changes when it was computed; the
/// look is noted.
pub fn next_due(interval_s: i32) -> PgResult<Option<(i32, Option<String>)>> {
    let due = spi::rows(
        "SELECT g.graph_id, i.changes::text FROM foreshard.graph g LEFT JOIN foreshard.graph_influence i USING (graph_id) \
         WHERE i.attempted_at IS NULL OR i.attempted_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1) \
         ORDER BY g.graph_id LIMIT 1",
        &[f64::from(interval_s).into()],
        |row| Ok((row.need::<i32>(1)?, row.get::<String>(2)?)),
    )?;
    let Some((graph_id, changes)) = due.into_iter().next() else { return Ok(None) };
    spi::run(
        "INSERT INTO foreshard.graph_influence (graph_id, attempted_at) VALUES ($1, pg_catalog.clock_timestamp()) \
         ON CONFLICT (graph_id) DO UPDATE SET attempted_at = excluded.attempted_at",
        &[graph_id.into()],
    )?;
    Ok(Some((graph_id, changes)))
}

/// Whether the worker of graphs has something to do; `interval_s` 0: influence is not computed by itself.
pub fn is_work_due(interval_s: i32) -> PgResult<bool> {
    let due = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.node_move WHERE state = 'waiting') OR EXISTS (SELECT FROM foreshard.graph_access) \
             OR $1 > 0 AND EXISTS (SELECT FROM foreshard.graph g LEFT JOIN foreshard.graph_influence i USING (graph_id) \
                 WHERE i.attempted_at IS NULL OR i.attempted_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1))",
        &[f64::from(interval_s).into()],
    )?;
    Ok(due.unwrap_or(false))
}

/// Queues an access to nodes (in text) that are on so many shards.
pub fn queue_access(graph_id: i32, nodes: Vec<String>, shards: i32) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.graph_access (graph_id, nodes, shards) VALUES ($1, $2, $3)",
        &[graph_id.into(), nodes.into(), shards.into()],
    )?;
    Ok(())
}

/// The graph of the first access in the queue.
pub fn next_accessed() -> PgResult<Option<i32>> {
    spi::one::<i32>("SELECT graph_id FROM foreshard.graph_access ORDER BY access_id LIMIT 1", &[])
}

/// Takes up to `most` accesses of a graph out of the queue: nodes, shards.
pub fn take_accesses(graph_id: i32, most: i64) -> PgResult<Vec<(Vec<String>, i32)>> {
    spi::rows_mut(
        "DELETE FROM foreshard.graph_access WHERE access_id IN ( \
             SELECT access_id FROM foreshard.graph_access WHERE graph_id = $1 ORDER BY access_id LIMIT $2) RETURNING nodes, shards",
        &[graph_id.into(), most.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Adds accesses to nodes. As the graph's owner. Those to a node that somebody is changing are lost: nobody waits
/// here, as in [`write_scores`].
pub fn add_accesses(graph: &Graph, keys: &[NodeKey], counts: &[f64], half_life_s: i32) -> PgResult<()> {
    let (table, decay) = (&graph.metagraph_name, decay("m.accessed_at", half_life_s));
    spi::run(
        &format!(
            "WITH u AS (SELECT * FROM unnest($1, $2::float8[]) AS u (node, count)), \
             l AS (SELECT m.node FROM {table} m JOIN u USING (node) FOR NO KEY UPDATE OF m SKIP LOCKED) \
             UPDATE {table} m SET access_score = coalesce(m.access_score * {decay}, 0.0) + u.count, \
                 accessed_at = pg_catalog.clock_timestamp() \
             FROM u JOIN l USING (node) WHERE m.node = u.node"
        ),
        &[graph.kind.array(keys), counts.to_vec().into()],
    )?;
    Ok(())
}

/// Adds pairs of nodes that were used together, and windows that touched more than one shard.
pub fn add_windows(
    graph_id: i32,
    pairs: &[(String, String, f64)],
    windows: (i64, i64, i64),
    half_life_s: i32,
) -> PgResult<()> {
    let decay = decay("c.noted_at", half_life_s);
    let left: Vec<String> = pairs.iter().map(|(a, ..)| a.clone()).collect();
    let right: Vec<String> = pairs.iter().map(|(_, b, _)| b.clone()).collect();
    let weights: Vec<f64> = pairs.iter().map(|(.., weight)| *weight).collect();
    spi::run(
        &format!(
            "INSERT INTO foreshard.graph_coaccess AS c (graph_id, node_a, node_b, weight, noted_at) \
             SELECT $1, u.a, u.b, u.weight, pg_catalog.clock_timestamp() \
             FROM unnest($2::text[], $3::text[], $4::float8[]) AS u (a, b, weight) \
             ON CONFLICT (graph_id, node_a, node_b) DO UPDATE \
             SET weight = c.weight * {decay} + excluded.weight, noted_at = excluded.noted_at"
        ),
        &[graph_id.into(), left.into(), right.into(), weights.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.graph_traffic AS t (graph_id, windows, cross_shard_windows, shards_touched) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (graph_id) DO UPDATE SET windows = t.windows + excluded.windows, \
             cross_shard_windows = t.cross_shard_windows + excluded.cross_shard_windows, \
             shards_touched = t.shards_touched + excluded.shards_touched",
        &[graph_id.into(), windows.0.into(), windows.1.into(), windows.2.into()],
    )?;
    Ok(())
}

/// `SELECT node_a, node_b, weight`, decayed, of pairs of a graph's nodes, the nodes in text.
pub fn pairs(graph_id: i32, half_life_s: i32) -> PgResult<Vec<(String, String, f64)>> {
    let decay = decay("noted_at", half_life_s);
    spi::rows(
        &format!(
            "SELECT node_a, node_b, weight * {decay} AS own FROM foreshard.graph_coaccess WHERE graph_id = $1 ORDER BY own DESC LIMIT {MAX_PAIRS}"
        ),
        &[graph_id.into()],
        |row| Ok((row.need(1)?, row.need(2)?, row.need(3)?)),
    )
}

/// Graphs whose nodes' accesses have not been judged for so long; the look is noted. Forgets pairs that hardly
/// count any more.
pub fn take_to_judge(interval_s: i32, half_life_s: i32) -> PgResult<Vec<i32>> {
    let due: Vec<i32> = spi::rows_mut(
        "UPDATE foreshard.graph_traffic SET judged_at = pg_catalog.clock_timestamp() \
         WHERE judged_at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1) RETURNING graph_id",
        &[f64::from(interval_s).into()],
        |row| row.need(1),
    )?;
    if !due.is_empty() {
        let decay = decay("noted_at", half_life_s);
        spi::run(
            &format!(
                "DELETE FROM foreshard.graph_coaccess WHERE graph_id = ANY ($1) AND weight * {decay} < {LEAST_WEIGHT}"
            ),
            &[due.clone().into()],
        )?;
    }
    Ok(due)
}

/// Types that may not live everywhere: type and shard.
pub fn allowed(graph_id: i32) -> PgResult<Vec<(String, i32)>> {
    spi::rows(
        "SELECT node_type, shard_id FROM foreshard.graph_type_shard WHERE graph_id = $1 ORDER BY 1, 2",
        &[graph_id.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Lets nodes of a type live only on these shards; none: on all.
pub fn allow(graph_id: i32, node_type: &str, shards: &[i32]) -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.graph_type_shard WHERE graph_id = $1 AND node_type = $2",
        &[graph_id.into(), node_type.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.graph_type_shard (graph_id, node_type, shard_id) SELECT DISTINCT $1, $2, s FROM pg_catalog.unnest($3::int[]) s",
        &[graph_id.into(), node_type.into(), shards.to_vec().into()],
    )?;
    Ok(())
}
