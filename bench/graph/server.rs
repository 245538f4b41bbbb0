//! What a server makes of it: closures in tables, against plain SQL on the same server in the same run.

use crate::timed;
use foreshard_core::graph::Digraph;
use foreshard_core::graph::maintain::{MaintainOptions, MemoryClosure};
use foreshard_test::bars::{bar_least, bar_most};
use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};

/// Autovacuum and checkpoints would come at times of their own.
const SETTINGS: [(&str, &str); 7] = [
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
/// What the bars call deep.
const DEEP: u32 = 5;

/// A closure of a graph, kept by triggers as one would write them by hand.
const BY_HAND: &str = "
    CREATE TABLE hand_edge (s int, t int);
    CREATE TABLE hand (a int, d int, depth int, PRIMARY KEY (a, d));
    CREATE INDEX ON hand (d, a);
    CREATE FUNCTION hand_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO hand SELECT x.a, y.d, x.depth + 1 + y.depth FROM hand x, hand y WHERE x.d = NEW.s AND y.a = NEW.t AND x.a <> y.d
        ON CONFLICT (a, d) DO UPDATE SET depth = excluded.depth WHERE hand.depth > excluded.depth;
        RETURN NULL; END $$;
    CREATE FUNCTION hand_delete() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE n bigint; BEGIN
        CREATE TEMP TABLE IF NOT EXISTS lost (a int, d int, PRIMARY KEY (a, d)) ON COMMIT DELETE ROWS;
        WITH gone AS (DELETE FROM hand h USING hand x, hand y WHERE x.d = OLD.s AND y.a = OLD.t AND h.a = x.a AND h.d = y.d AND h.a <> h.d
                      AND h.depth = x.depth + 1 + y.depth AND NOT EXISTS (SELECT FROM hand_edge e WHERE e.s = OLD.s AND e.t = OLD.t) RETURNING h.a, h.d)
        INSERT INTO lost SELECT * FROM gone;
        LOOP
            INSERT INTO hand SELECT l.a, l.d, min(h.depth) + 1 FROM lost l JOIN hand_edge e ON e.t = l.d JOIN hand h ON h.a = l.a AND h.d = e.s
                GROUP BY l.a, l.d
            ON CONFLICT (a, d) DO UPDATE SET depth = excluded.depth WHERE hand.depth > excluded.depth;
            GET DIAGNOSTICS n = ROW_COUNT;
            EXIT WHEN n = 0;
        END LOOP;
        DELETE FROM lost;
        RETURN NULL; END $$;";

/// Everything; whether the bars hold.
pub fn all(graph: &Digraph, edits: usize) -> Result<bool> {
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
    holds &= queries(&mut client)?;
    holds &= single(&mut client, &cluster, graph, &edges, edits.min(1000))?;
    many(&mut client, &edges)?;
    Ok(holds)
}

fn copy(client: &mut Client, table: &str, edges: &[(u32, u32)]) -> Result<()> {
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

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len() as f64 - 1.0) * share) as usize).copied().unwrap_or(f64::NAN)
}

fn queries(client: &mut Client) -> Result<bool> {
    client.exec("VACUUM ANALYZE")?;
    let deepest = client.query_one("SELECT max(depth) FROM foreshard.g_closure")?;
    let mut holds = true;
    for (what, source, target) in [("descendants", "s", "t"), ("ancestors", "t", "s")] {
        let end = if source == "s" { "ancestor" } else { "descendant" };
        let nodes = client.exec(&format!(
            "SELECT n FROM (SELECT {end} AS n FROM foreshard.g_closure GROUP BY 1 HAVING max(depth) >= {DEEP}) q ORDER BY md5(n::text) LIMIT 200"
        ))?;
        let pairs = format!(
            "WITH RECURSIVE c (n) AS (SELECT {target} FROM edge WHERE {source} = $1 UNION SELECT e.{target} FROM c JOIN edge e ON e.{source} = c.n) \
             SELECT count(*) FROM c WHERE n <> $1"
        );
        let depths = format!(
            "WITH RECURSIVE c (n, depth) AS (SELECT {target}, 1 FROM edge WHERE {source} = $1 UNION \
                 SELECT e.{target}, c.depth + 1 FROM c JOIN edge e ON e.{source} = c.n WHERE c.depth < {deepest}) \
             SELECT count(*), sum(depth) FROM (SELECT min(depth) FROM c WHERE n <> $1 GROUP BY n HAVING min(depth) >= {DEEP}) q (depth)"
        );
        let function = format!("foreshard.g_{what}");
        println!("{what}, {} nodes {DEEP} or more edges away from something:", nodes.len());
        let all = Contest { what, ours: format!("SELECT count(*) FROM {function}($1)"), theirs: pairs };
        all.run(client, &nodes, "all of them, without depths")?;
        let deep = Contest {
            what,
            ours: format!("SELECT count(*), sum(depth) FROM {function}($1, {DEEP})"),
            theirs: depths,
        };
        let ratio = deep.run(client, &nodes, &format!("those at depth {DEEP} and more"))?;
        floor(client, &nodes)?;
        holds &= bar_least(&format!("WITH RECURSIVE / {what} at depth >= {DEEP}, p50"), ratio, 20.0);
    }
    Ok(holds)
}

/// What no prepared statement of this session is quicker than: one that reads nothing, and one that reads one row by its
/// key.
fn floor(client: &mut Client, nodes: &foreshard_test::Rows) -> Result<()> {
    let mut shown = Vec::new();
    for sql in ["SELECT $1::int", "SELECT shard_id FROM foreshard.g_metagraph WHERE node = $1::int"] {
        client.prepare("least", sql)?;
        let mut times = Vec::new();
        for row in 0..nodes.len() {
            let (done, took) =
                timed(|| client.exec_prepared("least", &[Some(nodes.get(row, 0).unwrap_or("0"))]));
            done?;
            times.push(took * 1e6);
        }
        client.exec("DEALLOCATE least")?;
        times.sort_by(f64::total_cmp);
        shown.push(quantile(&times, 0.5));
    }
    if let [nothing, one] = shown.as_slice() {
        println!("  the floor: p50 {nothing:.0} us there and back, {one:.0} us with one row by its key");
    }
    Ok(())
}

/// Two statements with the same answer about a node.
struct Contest<'a> {
    what: &'a str,
    ours: String,
    theirs: String,
}

impl Contest<'_> {
    /// Asks both about every node in turn; the median of theirs over ours.
    fn run(&self, client: &mut Client, nodes: &foreshard_test::Rows, label: &str) -> Result<f64> {
        client.prepare("ours", &self.ours)?;
        client.prepare("theirs", &self.theirs)?;
        let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        let mut ratios = Vec::new();
        for row in 0..nodes.len() {
            let node = nodes.get(row, 0).unwrap_or("0");
            let (ours, fast) = timed(|| client.exec_prepared("ours", &[Some(node)]));
            let (theirs, slow) = timed(|| client.exec_prepared("theirs", &[Some(node)]));
            assert_eq!(ours?.to_text(), theirs?.to_text(), "{} of {node}", self.what);
            times[0].push(fast * 1e6);
            times[1].push(slow * 1e6);
            ratios.push(slow / fast);
        }
        client.exec("DEALLOCATE ours; DEALLOCATE theirs")?;
        times.iter_mut().for_each(|own| own.sort_by(f64::total_cmp));
        ratios.sort_by(f64::total_cmp);
        let ratio = quantile(&ratios, 0.5);
        println!(
            "  {label}: p50 {:.0} us, WITH RECURSIVE {:.0} us, median of the ratios {ratio:.2}",
            quantile(&times[0], 0.5),
            quantile(&times[1], 0.5)
        );
        Ok(ratio)
    }
}

/// Seconds of every statement, and rows of the closure that change with all of them.
fn edit(client: &mut Client, table: &str, edges: &[(u32, u32)], insert: bool) -> Result<Vec<f64>> {
    let (name, sql) = match insert {
        true => (format!("insert_{table}"), format!("INSERT INTO {table} VALUES ($1::int, $2::int)")),
        false => {
            (format!("delete_{table}"), format!("DELETE FROM {table} WHERE s = $1::int AND t = $2::int"))
        }
    };
    client.prepare(&name, &sql)?;
    let mut seconds = Vec::new();
    for (s, t) in edges {
        let (done, took) =
            timed(|| client.exec_prepared(&name, &[Some(&s.to_string()), Some(&t.to_string())]));
        done?;
        seconds.push(took);
    }
    client.exec(&format!("DEALLOCATE {name}"))?;
    Ok(seconds)
}

fn single(
    client: &mut Client,
    cluster: &Cluster,
    graph: &Digraph,
    edges: &[(u32, u32)],
    edits: usize,
) -> Result<bool> {
    let mut random = SmallRng::seed_from_u64(7);
    let mut chosen: Vec<(u32, u32)> =
        edges.choose_multiple(&mut random, edits).copied().filter(|(s, t)| s != t).collect();
    chosen.shuffle(&mut random);
    let mut memory = MemoryClosure::new(&graph.simple(), MaintainOptions::default(), 100_000_000)
        .map_err(|error| foreshard_test::Error::new(error.to_string(), ""))?;
    let mut changed = [0_usize; 2];
    for (at, insert) in [(0, false), (1, true)] {
        for edge in &chosen {
            let own = std::slice::from_ref(edge);
            let done = if insert { memory.edit(own, &[]) } else { memory.edit(&[], own) };
            changed[at] += done.map_or(0, |rows| rows.len());
        }
    }
    let mut hand = cluster.connect("postgres")?;
    hand.exec(BY_HAND)?;
    copy(&mut hand, "hand_edge", edges)?;
    hand.exec(
        "CREATE INDEX ON hand_edge (s, t); CREATE INDEX ON hand_edge (t, s); INSERT INTO hand SELECT ancestor, descendant, depth FROM foreshard.g_closure; \
         CREATE TRIGGER i AFTER INSERT ON hand_edge FOR EACH ROW EXECUTE FUNCTION hand_insert(); \
         CREATE TRIGGER d AFTER DELETE ON hand_edge FOR EACH ROW EXECUTE FUNCTION hand_delete(); SET client_min_messages = error",
    )?;
    hand.exec("VACUUM ANALYZE")?;
    let mut holds = true;
    for (what, insert, rows) in [("deletes", false, changed[0]), ("inserts", true, changed[1])] {
        let mut ours = edit(client, "edge", &chosen, insert)?;
        let mut theirs = edit(&mut hand, "hand_edge", &chosen, insert)?;
        let (sum, their_sum) = (ours.iter().sum::<f64>(), theirs.iter().sum::<f64>());
        ours.sort_by(f64::total_cmp);
        theirs.sort_by(f64::total_cmp);
        for (who, own, sum) in [("foreshard", &ours, sum), ("by hand", &theirs, their_sum)] {
            println!(
                "{what} of single edges, {who}: {:.0}/s, p50 {:.0} us, p99 {:.0} us, {:.2} us per changed row ({rows} rows)",
                own.len() as f64 / sum,
                quantile(own, 0.5) * 1e6,
                quantile(own, 0.99) * 1e6,
                sum * 1e6 / rows.max(1) as f64
            );
        }
        holds &= bar_least(&format!("by hand / foreshard per changed row, {what}"), their_sum / sum, 5.0);
        holds &= bar_least(
            &format!("by hand / foreshard p99, {what}"),
            quantile(&theirs, 0.99) / quantile(&ours, 0.99),
            5.0,
        );
    }
    let wrong = hand.query_one(
        "SELECT count(*) FROM foreshard.g_closure c FULL JOIN hand h ON h.a = c.ancestor AND h.d = c.descendant WHERE h.depth IS DISTINCT FROM c.depth",
    )?;
    holds &= bar_most("rows in which both closures differ", wrong.parse().unwrap_or(f64::NAN), 0.0);
    Ok(holds)
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
