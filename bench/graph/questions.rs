//! Questions about what a node reaches and what reaches it, against recursive queries on the edges.
//!
//! Who is asked about: [`ASKED`] nodes, drawn by hash from all nodes that something is [`DEEP`] or more edges away from,
//! so that a traversal needs at least so many steps. The same question is put in two prepared statements of one session,
//! and both must answer the same about every node. Each statement is asked about all nodes in turn, one statement after
//! the other, [`ROUNDS`] times; what counts is the p50 of one over the p50 of the other, as the client sees them. Client and
//! server share a processor meanwhile: else most of a short answer's time is how long an idle processor takes to wake
//! up. What a loop in the server sees is shown as well: the same without there and back.

use crate::server::quantile;
use crate::timed;
use foreshard_test::bars::bar_least;
use foreshard_test::install::run;
use foreshard_test::{Client, Error, Result, Rows};
use std::process::Command;

/// What the bars call deep.
const DEEP: u32 = 5;
/// Nodes that are asked about.
const ASKED: usize = 200;
/// How often about each.
const ROUNDS: usize = 5;
/// How many times as fast the closure has to be.
const BAR: f64 = 20.0;

/// Both directions; whether the bars hold.
pub fn all(client: &mut Client) -> Result<bool> {
    client.exec("VACUUM ANALYZE")?;
    let deepest = client.query_one("SELECT max(depth) FROM foreshard.g_closure")?;
    let server = client.query_one("SELECT pg_backend_pid()")?;
    let pinned = pin(&server, "0");
    let how = if pinned { "on one processor" } else { "wherever they run: taskset is not there" };
    println!("questions: client and server {how}");
    let mut holds = true;
    for (what, source, target) in [("descendants", "s", "t"), ("ancestors", "t", "s")] {
        let end = if source == "s" { "ancestor" } else { "descendant" };
        let nodes = client.exec(&format!(
            "SELECT n FROM (SELECT {end} AS n FROM foreshard.g_closure GROUP BY 1 HAVING max(depth) >= {DEEP}) q ORDER BY md5(n::text) LIMIT {ASKED}"
        ))?;
        let rows = client.query_one(&format!(
            "SELECT pg_catalog.percentile_disc(0.5) WITHIN GROUP (ORDER BY n) || ' rows at the median, ' || pg_catalog.percentile_disc(0.5) WITHIN GROUP (ORDER BY m) \
                 || ' of them' FROM (SELECT count(*) - 1 AS n, count(*) FILTER (WHERE depth >= {DEEP}) AS m FROM foreshard.g_closure WHERE {end} IN ({}) GROUP BY {end}) q",
            listed(&nodes)
        ))?;
        println!(
            "{what} of {} random nodes that are {DEEP} or more edges away from something ({rows} at such depths), ours / WITH RECURSIVE:",
            nodes.len()
        );
        // Recursion knows of a node only with a depth at a time, and ends on cycles because depths do.
        let depths = |most: &str, least: u32| {
            format!(
                "WITH RECURSIVE c (n, depth) AS (SELECT {target}, 1 FROM edge WHERE {source} = $1 UNION \
                     SELECT e.{target}, c.depth + 1 FROM c JOIN edge e ON e.{source} = c.n WHERE c.depth < {most}) \
                 SELECT count(*), sum(depth) FROM (SELECT min(depth) FROM c WHERE n <> $1 GROUP BY n HAVING min(depth) >= {least}) q (depth)"
            )
        };
        let function = format!("foreshard.g_{what}");
        let counted = |arguments: &str| format!("SELECT count(*), sum(depth) FROM {function}($1{arguments})");
        let pairs = Contest {
            what,
            ours: format!("SELECT count(*) FROM {function}($1)"),
            theirs: format!(
                "WITH RECURSIVE c (n) AS (SELECT {target} FROM edge WHERE {source} = $1 UNION SELECT e.{target} FROM c JOIN edge e ON e.{source} = c.n) \
                 SELECT count(*) FROM c WHERE n <> $1"
            ),
        };
        pairs.run(client, &nodes, "how many, without depths")?;
        let least = DEEP.to_string();
        let near = Contest { what, ours: counted(&format!(", 1, {DEEP}")), theirs: depths(&least, 1) };
        near.run(client, &nodes, &format!("those up to depth {DEEP}"))?;
        for (label, arguments, least) in [
            ("all of them, with depths".to_owned(), String::new(), 1),
            (format!("those at depth {DEEP} and more"), format!(", {DEEP}"), DEEP),
        ] {
            let contest = Contest { what, ours: counted(&arguments), theirs: depths(&deepest, least) };
            let ratio = contest.run(client, &nodes, &label)?;
            holds &= bar_least(&format!("WITH RECURSIVE / {what}, {label}, p50"), ratio, BAR);
        }
        floor(client, &nodes)?;
    }
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    pin(&server, &format!("0-{}", all - 1));
    Ok(holds)
}

/// Lets this program and a server's process run on some processors only; whether they do.
fn pin(server: &str, processors: &str) -> bool {
    let own = std::process::id().to_string();
    [own.as_str(), server].iter().all(|process| {
        run(Command::new("taskset").args(["--cpu-list", "--pid", processors, process])).is_ok()
    })
}

fn listed(nodes: &Rows) -> String {
    (0..nodes.len()).filter_map(|row| nodes.get(row, 0)).collect::<Vec<_>>().join(",")
}

/// What no prepared statement of this session is quicker than: one that reads nothing, and one that reads one row by its
/// key.
fn floor(client: &mut Client, nodes: &Rows) -> Result<()> {
    let mut shown = Vec::new();
    for sql in ["SELECT $1::int", "SELECT shard_id FROM foreshard.g_metagraph WHERE node = $1::int"] {
        client.prepare("least", sql)?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            times.extend(pass(client, "least", nodes)?);
        }
        client.exec("DEALLOCATE least")?;
        times.sort_by(f64::total_cmp);
        shown.push(quantile(&times, 0.5));
    }
    if let [nothing, one] = shown.as_slice() {
        println!("  the floor: p50 {nothing:.1} us there and back, {one:.1} us with one row by its key");
    }
    Ok(())
}

/// Microseconds that a prepared statement takes about each node.
fn pass(client: &mut Client, statement: &str, nodes: &Rows) -> Result<Vec<f64>> {
    let mut times = Vec::with_capacity(nodes.len());
    for row in 0..nodes.len() {
        let node = nodes.get(row, 0).unwrap_or("0");
        let (done, took) = timed(|| client.exec_prepared(statement, &[Some(node)]));
        done?;
        times.push(took * 1e6);
    }
    Ok(times)
}

/// The p50 of a statement about a node, as a loop in the server sees it, in microseconds.
fn in_server(client: &mut Client, sql: &str, nodes: &Rows) -> Result<f64> {
    client.exec(&format!(
        "CREATE OR REPLACE FUNCTION pg_temp.ask(nodes int[]) RETURNS TABLE (us float8) LANGUAGE plpgsql AS $f$ \
         DECLARE about int; answer record; begun timestamptz; BEGIN FOREACH about IN ARRAY nodes LOOP \
             begun := clock_timestamp(); {} INTO answer; us := 1e6 * extract(epoch FROM clock_timestamp() - begun); RETURN NEXT; \
         END LOOP; END $f$",
        sql.replace("$1", "about")
    ))?;
    let listed = listed(nodes);
    let p50 = client.query_one(&format!(
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY us) FROM (SELECT pg_temp.ask(ARRAY[{listed}]) AS us FROM generate_series(1, {ROUNDS})) q"
    ))?;
    Ok(p50.parse().unwrap_or(f64::NAN))
}

/// Two statements with the same answer about a node.
struct Contest<'a> {
    what: &'a str,
    ours: String,
    theirs: String,
}

impl Contest<'_> {
    /// Asks both about every node; the p50 of theirs over ours.
    fn run(&self, client: &mut Client, nodes: &Rows, label: &str) -> Result<f64> {
        client.prepare("ours", &self.ours)?;
        client.prepare("theirs", &self.theirs)?;
        for row in 0..nodes.len() {
            let node = nodes.get(row, 0).unwrap_or("0");
            let ours = client.exec_prepared("ours", &[Some(node)])?.to_text();
            let theirs = client.exec_prepared("theirs", &[Some(node)])?.to_text();
            if ours != theirs {
                let both = format!("{} of {node}: {ours} and {theirs} differ.", self.what);
                return Err(Error::new(both, "This is a bug of foreshard; please report it."));
            }
        }
        let mut times: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (own, statement) in times.iter_mut().zip(["ours", "theirs"]) {
                own.extend(pass(client, statement, nodes)?);
            }
        }
        client.exec("DEALLOCATE ours; DEALLOCATE theirs")?;
        let mut ratios: Vec<f64> =
            times[0].iter().zip(&times[1]).map(|(ours, theirs)| theirs / ours).collect();
        times.iter_mut().for_each(|own| own.sort_by(f64::total_cmp));
        ratios.sort_by(f64::total_cmp);
        let [ours, theirs] = [quantile(&times[0], 0.5), quantile(&times[1], 0.5)];
        println!(
            "  {label}: p50 {ours:.1} us / {theirs:.1} us = {:.1} x, p99 {:.0} / {:.0} us, median of the ratios {:.1}",
            theirs / ours,
            quantile(&times[0], 0.99),
            quantile(&times[1], 0.99),
            quantile(&ratios, 0.5)
        );
        let [own, recursive] = [&self.ours, &self.theirs].map(|sql| in_server(client, sql, nodes));
        let (own, recursive) = (own?, recursive?);
        println!("    in the server alone: {own:.1} us / {recursive:.1} us = {:.1} x", recursive / own);
        Ok(theirs / ours)
    }
}
