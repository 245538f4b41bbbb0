//! The functions of a graph.

use super::create::{own_name, role_name};
use super::{EDGE_DEPTH, Graph};
use crate::catalog::name_of;
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;
use pgrx::spi::{quote_identifier, quote_literal};

/// The functions of a graph: one statement each, so that the planner puts it into the caller's query. `far`: parts are
/// on nodes, and PostgreSQL joins none of their rows with the directory there, so where a node lives is asked for first.
pub fn make(graph: &Graph, owner: pg_sys::Oid, far: bool) -> PgResult<()> {
    let owner = role_name(owner)?;
    let key = graph.kind.type_name();
    let edges = name_of(graph.edges)?;
    let column = |number: i16| -> PgResult<String> {
        let name = spi::one::<String>(
            "SELECT attname::text FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum = $2",
            &[graph.edges.into(), number.into()],
        )?;
        Ok(quote_identifier(name.unwrap_or_default()))
    };
    let (source, target) = (column(graph.source)?, column(graph.target)?);
    let (closure, metagraph) = (&graph.closure_name, &graph.metagraph_name);
    let is_edge =
        graph.depth.as_ref().map(|depth| format!(" AND e.{} = {EDGE_DEPTH}", depth.name)).unwrap_or_default();
    let of_node = match far {
        false => format!(
            "{metagraph} m JOIN {closure} c ON c.ancestor = m.node AND c.ancestor_shard = m.shard_id WHERE m.node = $1"
        ),
        true => format!(
            "{closure} c WHERE c.ancestor = $1 AND c.ancestor_shard = (SELECT m.shard_id FROM {metagraph} m WHERE m.node = $1)"
        ),
    };
    let range = "($2 IS NULL OR c.depth >= $2) AND ($3 IS NULL OR c.depth <= $3)";
    let made = [
        (
            "_descendants",
            format!("node {key}, min_depth int DEFAULT 1, max_depth int DEFAULT NULL"),
            format!("TABLE (descendant {key}, depth int)"),
            format!("SELECT c.descendant, c.depth FROM {of_node} AND {range}"),
            "What a node reaches, itself at depth 0.",
        ),
        (
            "_ancestors",
            format!("node {key}, min_depth int DEFAULT 1, max_depth int DEFAULT NULL"),
            format!("TABLE (ancestor {key}, depth int)"),
            format!("SELECT c.ancestor, c.depth FROM {closure} c WHERE c.descendant = $1 AND {range}"),
            "What reaches a node, itself at depth 0.",
        ),
        (
            "_common_ancestors",
            format!("node_a {key}, node_b {key}"),
            format!("TABLE (ancestor {key}, depth_a int, depth_b int)"),
            format!(
                "SELECT a.ancestor, a.depth, b.depth FROM {closure} a JOIN {closure} b \
                 ON b.ancestor = a.ancestor AND b.ancestor_shard = a.ancestor_shard WHERE a.descendant = $1 AND b.descendant = $2"
            ),
            "What reaches both of two nodes, and how far they are from it.",
        ),
        (
            "_is_ancestor",
            format!("ancestor {key}, descendant {key}"),
            "boolean".to_owned(),
            format!("SELECT EXISTS (SELECT FROM {of_node} AND c.descendant = $2 AND c.depth > 0)"),
            "Whether a node reaches another one.",
        ),
        (
            "_path",
            format!("ancestor {key}, descendant {key}"),
            format!("TABLE (step int, node {key})"),
            format!(
                "WITH RECURSIVE p (step, node, rest) AS ( \
                     SELECT 0, c.ancestor, c.depth FROM {of_node} AND c.descendant = $2 \
                     UNION ALL \
                     SELECT p.step + 1, n.node, p.rest - 1 FROM p, LATERAL ( \
                         SELECT e.{target} AS node FROM {edges} e JOIN {metagraph} m ON m.node = e.{target} \
                         JOIN {closure} c ON c.ancestor = m.node AND c.ancestor_shard = m.shard_id \
                         WHERE e.{source} = p.node{is_edge} AND c.descendant = $2 AND c.depth = p.rest - 1 ORDER BY 1 LIMIT 1) n \
                     WHERE p.rest > 0) \
                 SELECT p.step, p.node FROM p ORDER BY p.step"
            ),
            "A shortest path, node by node; no row when there is none.",
        ),
    ];
    let replace = if far { "OR REPLACE " } else { "" };
    for (suffix, parameters, result, body, comment) in made {
        let name = own_name(&graph.name, suffix);
        spi::run(
            &format!(
                "CREATE {replace}FUNCTION {name}({parameters}) RETURNS {result} LANGUAGE sql STABLE PARALLEL SAFE AS {}",
                quote_literal(body)
            ),
            &[],
        )?;
        spi::run(&format!("ALTER FUNCTION {name} OWNER TO {owner}"), &[])?;
        spi::run(&format!("COMMENT ON FUNCTION {name} IS {}", quote_literal(comment)), &[])?;
    }
    Ok(())
}
