//! What a server makes of it: closures in tables, against plain SQL on the same server in the same run.

use crate::{edits, questions, timed};
use foreshard_core::graph::Digraph;
use foreshard_core::graph::rank::{RankOptions, page_rank};
use foreshard_test::bars::{bar_least, bar_most};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result};
use std::ops::ControlFlow;

/// Autovacuum and checkpoints would come at times of their own.
const SETTINGS: [(&str, &str); 8] = [
    ("checkpoint_timeout", "1h"),
    ("shared_buffers", "2GB"),
    ("maintenance_work_mem", "256MB"),
    ("work_mem", "256MB"),
    ("synchronous_commit", "off"),
    ("autovacuum", "off"),
    ("max_wal_size", "16GB"),
    ("jit", "off"),
];

/// Walks that a recursive query with depths may keep in memory: about 100 bytes each.
const MOST_WALKS: f64 = 2e8;

/// Everything; whether the bars hold.
pub fn all(graph: &Digraph, count: usize) -> Result<bool> {
    let mut options = ClusterOptions::new("bench-graph");
    options.data_checksums = false;
    for (name, value) in SETTINGS {
        options = options.set(name, value);
    }
    let cluster = Cluster::start(&options)?;
    let mut client = cluster.connect("postgres")?;
    client.exec(
        "CREATE EXTENSION foreshard; SELECT foreshard.add_shard('s1'); CREATE TABLE edge (s int, t int); SET client_min_messages = warning",
    )?;
    let edges: Vec<(u32, u32)> = graph.simple().pairs().collect();
    copy(&mut client, "edge", &edges)?;
    client.exec("CREATE INDEX ON edge (s, t); CREATE INDEX ON edge (t, s); ANALYZE edge")?;
    let mut holds = bulk(&mut client)?;
    holds &= questions::all(&mut client)?;
    holds &= rank(&mut client, graph.node_count())?;
    holds &= edits::single(&mut client, &cluster, graph, &edges, count)?;
    many(&mut client, &edges)?;
    Ok(holds)
}

/// Inserts edges, many at once.
pub fn copy(client: &mut Client, table: &str, edges: &[(u32, u32)]) -> Result<()> {
    for part in edges.chunks(20_000) {
        let values: Vec<String> = part.iter().map(|(s, t)| format!("({s},{t})")).collect();
        client.exec(&format!("INSERT INTO {table} VALUES {}", values.join(",")))?;
    }
    Ok(())
}

/// The closure by plain SQL, once with pairs only and once with depths as ours has them. Recursion knows of a pair
/// only with a depth at a time, so it keeps every length of every walk up to the greatest depth.
fn bulk(client: &mut Client) -> Result<bool> {
    let (made, ours) = timed(|| client.query_one("SELECT foreshard.create_graph('g', 'edge', 's', 't')"));
    let rows = made?;
    let indexes = "CREATE UNIQUE INDEX ON plain (a, d); CREATE INDEX ON plain (d, a); DROP TABLE plain";
    let sql = format!(
        "CREATE TABLE plain (a int, d int); \
         INSERT INTO plain WITH RECURSIVE c (a, d) AS (SELECT s, t FROM edge UNION SELECT c.a, e.t FROM c JOIN edge e ON e.s = c.d) SELECT a, d FROM c; {indexes}"
    );
    let (done, theirs) = timed(|| client.exec(&sql));
    done?;
    println!(
        "create_graph: {rows} rows in {ours:.2} s; WITH RECURSIVE without depths, and both indexes: {theirs:.2} s, {:.2} x",
        theirs / ours
    );
    let deepest = client.query_one("SELECT max(depth) FROM foreshard.g_closure")?;
    let walks = rows.parse::<f64>().unwrap_or(0.0) * deepest.parse::<f64>().unwrap_or(0.0);
    if walks > MOST_WALKS {
        println!("WITH RECURSIVE with depths would keep up to {walks:.0} rows in memory: not run");
        return Ok(true);
    }
    let sql = format!(
        "CREATE TABLE plain (a int, d int, depth int); \
         INSERT INTO plain WITH RECURSIVE c (a, d, depth) AS (SELECT s, t, 1 FROM edge UNION SELECT c.a, e.t, c.depth + 1 FROM c JOIN edge e ON e.s = c.d \
             WHERE c.depth < {deepest}) SELECT a, d, min(depth) FROM c WHERE a <> d GROUP BY a, d; {indexes}"
    );
    let (done, theirs) = timed(|| client.exec(&sql));
    done?;
    println!("WITH RECURSIVE with depths (up to {deepest}), and both indexes: {theirs:.2} s");
    Ok(bar_least("WITH RECURSIVE / create_graph, the same closure", theirs / ours, 10.0))
}

/// The value that a share of the sorted ones does not exceed.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(f64::NAN)
}

/// PageRank as plain SQL does it: tables that follow one another until nothing changes any more.
const RANK: &str = "
    CREATE TEMP TABLE rank AS SELECT v AS node, 1.0::float8 / count(*) OVER () AS r, (SELECT count(*) FROM edge e WHERE e.s = v)::float8 AS out
        FROM (SELECT s AS v FROM edge UNION SELECT t FROM edge) q;
    DO $$ DECLARE n float8 := (SELECT count(*) FROM rank); lost float8; far float8; BEGIN LOOP
        lost := (SELECT coalesce(sum(r), 0) FROM rank WHERE out = 0);
        CREATE TEMP TABLE next AS SELECT p.node, (0.15 + 0.85 * lost) / n + 0.85 * coalesce(q.flow, 0) AS r, p.out FROM rank p
            LEFT JOIN (SELECT e.t, sum(p.r / p.out) AS flow FROM edge e JOIN rank p ON p.node = e.s GROUP BY 1) q ON q.t = p.node;
        far := (SELECT sum(abs(a.r - b.r)) FROM rank a JOIN next b USING (node));
        DROP TABLE rank;
        ALTER TABLE next RENAME TO rank;
        EXIT WHEN far < 1e-8;
    END LOOP; END $$";

/// PageRank of the edges in the table, reading them included, against plain SQL; whether the bars hold.
fn rank(client: &mut Client, nodes: u32) -> Result<bool> {
    let (ours, took) = timed(|| -> Result<Vec<f64>> {
        let rows = client.exec("SELECT s, t FROM edge")?;
        let number = |row, column| rows.get(row, column).and_then(|value| value.parse().ok()).unwrap_or(0);
        let pairs: Vec<(u32, u32)> = (0..rows.len()).map(|row| (number(row, 0), number(row, 1))).collect();
        let wrong = |problem: &dyn std::fmt::Display| Error::new(problem.to_string(), "Try another graph.");
        let graph = Digraph::from_pairs(nodes, &pairs).map_err(|problem| wrong(&problem))?;
        let ranks = page_rank(&graph, &RankOptions::default(), None, |_, _| ControlFlow::Continue(()));
        Ok(ranks.map_err(|problem| wrong(&problem))?.values)
    });
    let ours = ours?;
    let (done, slow) = timed(|| client.exec(RANK));
    done?;
    println!("pagerank of the table's edges: {took:.2} s with reading them, plain SQL {slow:.2} s");
    let theirs = client.exec("SELECT node, r FROM rank")?;
    let mut far: f64 = 0.0;
    for row in 0..theirs.len() {
        let number =
            |column| theirs.get(row, column).and_then(|value| value.parse::<f64>().ok()).unwrap_or(f64::NAN);
        far = far.max((ours.get(number(0) as usize).copied().unwrap_or(f64::NAN) - number(1)).abs());
    }
    client.exec("DROP TABLE rank")?;
    let same = bar_most("greatest difference of a rank from plain SQL's", far, 1e-6);
    Ok(bar_least("plain SQL / pagerank", slow / took, 20.0) && same)
}

/// 100,000 edges at once: gone, and there again by COPY.
fn many(client: &mut Client, edges: &[(u32, u32)]) -> Result<()> {
    let count = edges.len().min(100_000);
    client.exec(&format!(
        "CREATE TABLE taken AS SELECT * FROM edge ORDER BY md5(s::text || ' ' || t::text) LIMIT {count}"
    ))?;
    let taken = client.exec("SELECT s, t FROM taken")?;
    let (gone, seconds) =
        timed(|| client.exec("DELETE FROM edge e USING taken o WHERE e.s = o.s AND e.t = o.t"));
    gone?;
    println!("{count} edges deleted in one statement: {seconds:.2} s");
    let mut row = 0;
    let (there, seconds) = timed(|| {
        client.copy_in("COPY edge FROM STDIN", |buffer| {
            for column in 0..2 {
                buffer.extend_from_slice(taken.get(row, column).unwrap_or_default().as_bytes());
                buffer.push(if column == 0 { b'\t' } else { b'\n' });
            }
            row += 1;
            row < taken.len()
        })
    });
    there?;
    println!("COPY of {count} edges: {seconds:.2} s");
    let (wrong, seconds) = timed(|| client.query_one("SELECT count(*) FROM foreshard.check_graph('g')"));
    println!("check_graph: {} differences, {seconds:.2} s", wrong?);
    Ok(())
}
