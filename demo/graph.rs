//! A chapter on graphs: Debian's packages, what breaks if one goes, and what placing them changes.

use crate::setup::SHARDS;
use crate::show::Screen;
use foreshard_test::install::{repository, run};
use foreshard_test::{Client, Error, Result, wait_until};
use std::process::Command;
use std::time::{Duration, Instant};

/// An edge leads from a package to one that it needs.
const EDGES: &str = "data/graphs/debian_bookworm.edges.xz";
/// Line *n*, from 0, names node *n*.
const NAMES: &str = "data/graphs/debian_bookworm.names.xz";
/// The package that goes.
const PACKAGE: &str = "libssl3";
/// What the quick demo has of the archive: these packages and all that they need, an eighth of all.
const QUICK: &str = "python3-";
/// The package that gets a new need.
const NEEDY: &str = "libcurl4";
/// Packages whose needs are looked up together, to see how many shards that takes.
const LOOKUPS: u32 = 400;
/// How long the moves of nodes may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// The chapter; the cluster has its shards already.
pub fn chapter(client: &mut Client, screen: &mut Screen, quick: bool) -> Result<()> {
    screen.heading("A graph: Debian's packages and what they need");
    load(client, quick)?;
    let (rows, took) =
        timed(|| client.query_one("SELECT foreshard.create_graph('deps', 'depends', 'package', 'needs')"));
    let rows: u64 = rows?.parse().unwrap_or(0);
    println!(
        "  create_graph(): {rows} pairs with their distances over {} shards in {took:.1} s; from now on triggers keep them exact",
        SHARDS.len()
    );
    what_breaks(client)?;
    change(client, if quick { "git" } else { "0ad" })?;
    placement(client)
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed().as_secs_f64())
}

fn unpacked(file: &str) -> Result<String> {
    let output = run(Command::new("xz").arg("-dc").arg(repository().join(file))).map_err(|error| {
        Error::new(
            format!("{file} cannot be unpacked: {error}"),
            "Install xz-utils and check that the clone is complete.",
        )
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Which packages are reached from those of [`QUICK`].
fn needed(names: &[&str], edges: &[(usize, usize)]) -> Vec<bool> {
    let mut targets: Vec<Vec<usize>> = vec![Vec::new(); names.len()];
    for (package, needs) in edges {
        if let Some(own) = targets.get_mut(*package) {
            own.push(*needs);
        }
    }
    let mut reached: Vec<bool> = names.iter().map(|name| name.starts_with(QUICK)).collect();
    let mut waiting: Vec<usize> =
        reached.iter().enumerate().filter(|(_, reached)| **reached).map(|(id, _)| id).collect();
    while let Some(package) = waiting.pop() {
        for needs in targets.get(package).into_iter().flatten() {
            if let Some(reached) = reached.get_mut(*needs).filter(|reached| !**reached) {
                *reached = true;
                waiting.push(*needs);
            }
        }
    }
    reached
}

/// Packages and what they need; of a part of the archive, if it must be quick.
fn load(client: &mut Client, quick: bool) -> Result<()> {
    client.exec(
        "CREATE TABLE package (id int PRIMARY KEY, name text NOT NULL UNIQUE); \
         CREATE TABLE depends (package int NOT NULL, needs int NOT NULL, PRIMARY KEY (package, needs)); \
         CREATE INDEX ON depends (needs, package)",
    )?;
    let (names, edges) = (unpacked(NAMES)?, unpacked(EDGES)?);
    let names: Vec<&str> = names.lines().filter(|line| !line.starts_with('#')).collect();
    let pair = |line: &str| {
        let (package, needs) = line.split_once(' ')?;
        Some((package.parse().ok()?, needs.parse().ok()?))
    };
    let edges: Vec<(usize, usize)> =
        edges.lines().filter(|line| !line.starts_with('#')).filter_map(pair).collect();
    let kept = if quick { needed(&names, &edges) } else { vec![true; names.len()] };
    let is_kept = |id: usize| kept.get(id).copied().unwrap_or(false);
    let mut lines = names.iter().enumerate().filter(|(id, _)| is_kept(*id));
    let packages = client.copy_in("COPY package FROM STDIN", |buffer| match lines.next() {
        Some((id, name)) => {
            buffer.extend_from_slice(format!("{id}\t{name}\n").as_bytes());
            true
        }
        None => false,
    })?;
    let mut lines = edges.iter().filter(|(package, _)| is_kept(*package));
    let needs = client.copy_in("COPY depends FROM STDIN", |buffer| match lines.next() {
        Some((package, needs)) => {
            buffer.extend_from_slice(format!("{package}\t{needs}\n").as_bytes());
            true
        }
        None => false,
    })?;
    client.exec("ANALYZE package; ANALYZE depends")?;
    let which = if quick { format!(" ({QUICK}* and what they need)") } else { String::new() };
    println!("  {packages} packages of Debian 12{which}, {needs} direct needs");
    Ok(())
}

/// What needs [`PACKAGE`], and how.
fn what_breaks(client: &mut Client) -> Result<()> {
    let id = client.query_one(&format!("SELECT id FROM package WHERE name = '{PACKAGE}'"))?;
    let ask = format!(
        "SELECT count(*), count(*) FILTER (WHERE depth = 1), max(depth) FROM foreshard.deps_ancestors({id})"
    );
    let (found, took) = timed(|| client.exec(&ask));
    let found = found?;
    let recursive = format!(
        "WITH RECURSIVE c (n, depth) AS (SELECT package, 1 FROM depends WHERE needs = {id} UNION \
             SELECT e.package, c.depth + 1 FROM c JOIN depends e ON e.needs = c.n WHERE c.depth < 25) \
         SELECT count(*), count(*) FILTER (WHERE depth = 1), max(depth) FROM (SELECT min(depth) FROM c WHERE n <> {id} GROUP BY n) q (depth)"
    );
    let (same, slow) = timed(|| client.exec(&recursive));
    if same?.to_text() != found.to_text() {
        return Err(Error::new(
            "The closure and a recursive query differ.",
            "This is a bug of foreshard; please report it.",
        ));
    }
    let count = |column| found.get(0, column).unwrap_or("0");
    println!(
        "  if {PACKAGE} goes, {} packages break: {} need it directly, the others over up to {} steps; {:.1} ms (a recursive query: {:.1} ms)",
        count(0),
        count(1),
        count(2),
        took * 1e3,
        slow * 1e3
    );
    let top = client.exec(&format!(
        "SELECT string_agg(name, ', ') FROM (SELECT p.name FROM foreshard.deps_ancestors({id}) a JOIN foreshard.deps_metagraph m ON m.node = a.ancestor \
             JOIN package p ON p.id = a.ancestor ORDER BY m.influence_score DESC LIMIT 5) q"
    ))?;
    println!("  the most influential of them: {}", top.get(0, 0).unwrap_or(""));
    let path = client.exec(&format!(
        "SELECT string_agg(p.name, ' > ' ORDER BY w.step) FROM (SELECT ancestor FROM foreshard.deps_ancestors({id}) ORDER BY depth DESC, ancestor LIMIT 1) a, \
             LATERAL foreshard.deps_path(a.ancestor, {id}) w JOIN package p ON p.id = w.node"
    ))?;
    println!("  the longest way: {}", path.get(0, 0).unwrap_or(""));
    Ok(())
}

/// A need that comes and goes.
fn change(client: &mut Client, new_need: &str) -> Result<()> {
    let edge = format!(
        "SELECT (SELECT id FROM package WHERE name = '{NEEDY}'), (SELECT id FROM package WHERE name = '{new_need}')"
    );
    let count = "SELECT count(*) FROM foreshard.deps_closure";
    let pairs: i64 = client.query_one(count)?.parse().unwrap_or(0);
    let (made, came) = timed(|| client.exec(&format!("INSERT INTO depends {edge}")));
    made?;
    let more: i64 = client.query_one(count)?.parse().unwrap_or(0);
    let (gone, went) =
        timed(|| client.exec(&format!("DELETE FROM depends WHERE (package, needs) = ({edge})")));
    gone?;
    println!(
        "  were {NEEDY} to need {new_need}: {} more pairs after {came:.2} s; taken back, they are gone after {went:.2} s",
        more - pairs
    );
    Ok(())
}

/// Share of look-ups on more than one shard, and shards per look-up: a package with what it needs directly.
fn spread(client: &mut Client) -> Result<(f64, f64)> {
    let rows = client.exec(&format!(
        "SELECT avg((shards > 1)::int), avg(shards) FROM (SELECT foreshard.note_access('deps', array_agg(d.descendant::text)) AS shards \
             FROM (SELECT id FROM package WHERE EXISTS (SELECT FROM depends WHERE package = id) ORDER BY md5(name) LIMIT {LOOKUPS}) p, \
                  LATERAL foreshard.deps_descendants(p.id, 0, 1) d GROUP BY p.id) q"
    ))?;
    let number = |column| rows.get(0, column).and_then(|value| value.parse().ok()).unwrap_or(f64::NAN);
    Ok((number(0), number(1)))
}

fn placement(client: &mut Client) -> Result<()> {
    let before = spread(client)?;
    let begun = Instant::now();
    let moves = client.query_one("SELECT foreshard.place_graph('deps')")?;
    let waiting = "SELECT count(*) FROM foreshard.node_moves WHERE state = 'waiting'";
    wait_until("the moves of nodes", PATIENCE, || Ok(client.query_one(waiting)? == "0"))?;
    let took = begun.elapsed().as_secs_f64();
    let failed = client.query_one("SELECT count(*) FROM foreshard.node_moves WHERE state = 'failed'")?;
    let after = spread(client)?;
    let wrong = client.query_one("SELECT count(*) FROM foreshard.check_graph('deps')")?;
    println!(
        "  place_graph() moved {moves} packages in {took:.1} s ({failed} failed): of {LOOKUPS} look-ups of a package and its needs \
         {:.0} % touched more than one shard ({:.2} shards each), now {:.0} % ({:.2}); check_graph() finds {wrong} differences",
        before.0 * 100.0,
        before.1,
        after.0 * 100.0,
        after.1
    );
    if wrong == "0" {
        return Ok(());
    }
    Err(Error::new("The closure is not what the edges say.", "This is a bug of foreshard; please report it."))
}
