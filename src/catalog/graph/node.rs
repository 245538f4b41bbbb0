//! Rows of a graph's node directory and of its components.

use super::Graph;
use crate::pg::graph::keys::NodeKey;
use crate::pg::graph::read;
use crate::pg::report::PgResult;
use crate::pg::spi;

/// A node that shall be in the directory.
pub struct NewNode {
    /// Its key.
    pub key: NodeKey,
    /// Where it lives.
    pub shard_id: i32,
    /// Its component, or one that was merged into it.
    pub component: i64,
}

/// Adds nodes to the directory, those that are not there yet; waits for whoever is adding the same ones. The
/// caller gives them in the order of their keys.
pub fn insert(graph: &Graph, nodes: &[NewNode]) -> PgResult<()> {
    let (kind, table) = (graph.kind, &graph.metagraph_name);
    let shards: Vec<i32> = nodes.iter().map(|node| node.shard_id).collect();
    let components: Vec<i64> = nodes.iter().map(|node| node.component).collect();
    spi::run_kept(
        &format!(
            "INSERT INTO {table} (node, shard_id, component) \
             SELECT * FROM unnest($1, $2, $3) ON CONFLICT (node) DO NOTHING"
        ),
        &[kind.array(nodes.iter().map(|node| &node.key)), shards.into(), components.into()],
    )?;
    Ok(())
}

/// Locks a component until the end of the transaction; false: it is not one by itself (any more).
///
/// By an update, not by a row lock: a transaction with an old snapshot must fail with 40001 instead of looking at
/// edges as they were.
pub fn hold(graph: &Graph, component: i64) -> PgResult<bool> {
    let table = &graph.components_name;
    let held = spi::run_kept(
        &format!("UPDATE {table} SET changes = changes + 1 WHERE component = $1 AND parent IS NULL"),
        &[component.into()],
    )?;
    if held > 0 {
        return Ok(true);
    }
    let made = spi::run_kept(
        &format!("INSERT INTO {table} (component) VALUES ($1) ON CONFLICT (component) DO NOTHING"),
        &[component.into()],
    )?;
    Ok(made > 0)
}

/// Makes `others` part of `component`; all of them are held.
pub fn merge(graph: &Graph, component: i64, others: &[i64]) -> PgResult<()> {
    let table = &graph.components_name;
    spi::run_kept(
        &format!("UPDATE {table} SET parent = $1 WHERE component = ANY ($2)"),
        &[component.into(), others.to_vec().into()],
    )?;
    Ok(())
}

/// Brings the types of nodes up to date with the table of nodes; whatever it does not have has no type.
pub fn refresh_types(graph: &Graph, keys: &[NodeKey]) -> PgResult<()> {
    refresh(graph, "(SELECT * FROM pg_catalog.unnest($1))", &[graph.kind.array(keys)])
}

/// The same of all nodes; all components are held.
pub fn refresh_all_types(graph: &Graph) -> PgResult<()> {
    refresh(graph, &format!("(SELECT node FROM {})", graph.metagraph_name), &[])
}

/// The same of nodes that a query gives.
fn refresh(graph: &Graph, which: &str, arguments: &[spi::Arg]) -> PgResult<()> {
    let Some(nodes) = &graph.nodes else { return Ok(()) };
    let Some(type_name) = &nodes.type_name else { return Ok(()) };
    let (table, key, from) = (&graph.metagraph_name, &nodes.key_name, &nodes.name);
    spi::set_local("row_security", "off")?;
    spi::run_kept(
        &format!(
            "UPDATE {table} m SET type = t.type FROM ( \
                 SELECT k.key, min(n.{type_name}::pg_catalog.text) AS type \
                 FROM {which} AS k (key) LEFT JOIN {from} n ON n.{key} = k.key GROUP BY k.key) t \
             WHERE m.node = t.key AND m.type IS DISTINCT FROM t.type"
        ),
        arguments,
    )?;
    Ok(())
}

/// All components that were not merged into another one, under the active snapshot.
pub fn roots(graph: &Graph) -> PgResult<Vec<i64>> {
    let mut found = Vec::new();
    let sql = format!("SELECT component FROM {} WHERE parent IS NULL", graph.components_name);
    read::each(&sql, graph.kind, |row| {
        found.extend(row.bigint(1));
        Ok(())
    })?;
    Ok(found)
}

/// `SELECT component, parent` of components that were merged.
pub fn merged_query(graph: &Graph) -> String {
    format!("SELECT component, parent FROM {} WHERE parent IS NOT NULL", graph.components_name)
}

/// `SELECT node, shard_id, component` of the whole directory.
pub fn directory_query(graph: &Graph) -> String {
    format!("SELECT node, shard_id, component FROM {}", graph.metagraph_name)
}

/// `SELECT ancestor, descendant, depth` of rows whose ancestor is not in the directory.
pub fn orphan_query(graph: &Graph) -> String {
    let (closure, table) = (&graph.closure_name, &graph.metagraph_name);
    format!(
        "SELECT c.ancestor, c.descendant, c.depth FROM {closure} c \
         WHERE NOT EXISTS (SELECT FROM {table} m WHERE m.node = c.ancestor)"
    )
}

/// Deletes what [`orphan_query`] finds.
pub fn delete_orphans(graph: &Graph) -> PgResult<u64> {
    let (closure, table) = (&graph.closure_name, &graph.metagraph_name);
    spi::run(
        &format!(
            "DELETE FROM {closure} c WHERE NOT EXISTS (SELECT FROM {table} m WHERE m.node = c.ancestor)"
        ),
        &[],
    )
}

/// Makes directory and components what they should be: exactly these nodes (in the order of their keys), each with
/// its component. Nobody else may write the graph's tables.
pub fn replace(graph: &Graph, nodes: &[NewNode]) -> PgResult<()> {
    let (kind, table, own) = (graph.kind, &graph.metagraph_name, &graph.components_name);
    insert(graph, nodes)?;
    let keys = || kind.array(nodes.iter().map(|node| &node.key));
    let labels: Vec<i64> = nodes.iter().map(|node| node.component).collect();
    spi::run(
        &format!(
            "DELETE FROM {table} m WHERE NOT EXISTS (SELECT FROM unnest($1) AS u (key) WHERE u.key = m.node)"
        ),
        &[keys()],
    )?;
    spi::run(
        &format!(
            "UPDATE {table} m SET component = u.label FROM unnest($1, $2) AS u (key, label) \
             WHERE m.node = u.key AND m.component <> u.label"
        ),
        &[keys(), labels.clone().into()],
    )?;
    spi::run(&format!("DELETE FROM {own}"), &[])?;
    let mut distinct = labels;
    distinct.sort_unstable();
    distinct.dedup();
    spi::run(&format!("INSERT INTO {own} (component) SELECT * FROM unnest($1)"), &[distinct.into()])?;
    Ok(())
}
