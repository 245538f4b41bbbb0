//! The proof that a closure is what a recursive query over its edges says.

use super::Server;
use foreshard_test::Result;

/// Rows in which the closure of a graph differs from a recursive query; edges in `e (s, t)`, nodes in `n (k)`.
pub fn wrong(graph: &str) -> String {
    format!(
        "WITH RECURSIVE g AS (SELECT DISTINCT s, t FROM e WHERE s IS NOT NULL AND t IS NOT NULL), \
         v AS (SELECT s AS k FROM g UNION SELECT t FROM g UNION SELECT k FROM n WHERE k IS NOT NULL), \
         c (a, d, depth) AS (SELECT k, k, 0 FROM v UNION SELECT c.a, g.t, c.depth + 1 FROM c JOIN g ON g.s = c.d WHERE c.depth < 25), \
         r AS (SELECT a, d, min(depth) AS depth FROM c GROUP BY a, d), \
         o AS (SELECT ancestor, descendant, depth FROM foreshard.{graph}_closure) \
         SELECT count(*) FROM ((TABLE r EXCEPT ALL TABLE o) UNION ALL (TABLE o EXCEPT ALL TABLE r)) q"
    )
}

pub fn assert_right(server: &mut Server, graph: &str, after: &str) -> Result<()> {
    let told = server.query(&format!("SELECT * FROM foreshard.check_graph('{graph}')"))?;
    assert_eq!((server.query(&wrong(graph))?.as_str(), told.as_str()), ("0", ""), "after {after}");
    Ok(())
}

/// The closure, the directory and the check agree.
pub fn assert_checked(server: &mut Server, graph: &str) -> Result<()> {
    assert_eq!(server.query(&format!("SELECT * FROM foreshard.check_graph('{graph}')"))?, "");
    let lost = server.query(&format!(
        "SELECT count(*) FROM foreshard.{graph}_closure c LEFT JOIN foreshard.{graph}_metagraph a ON a.node = c.ancestor \
         LEFT JOIN foreshard.{graph}_metagraph d ON d.node = c.descendant \
         WHERE a.shard_id IS DISTINCT FROM c.ancestor_shard OR d.shard_id IS DISTINCT FROM c.descendant_shard"
    ))?;
    assert_eq!(lost, "0", "rows on the wrong shard");
    Ok(())
}
