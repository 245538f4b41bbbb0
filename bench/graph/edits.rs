//! Single edges that come and go, against triggers as one would write them by hand.
//!
//! Edges drawn at random are taken from the graph at once; then each of them is inserted by a statement of its own, and
//! then each is deleted by one. Both closures are held in shared buffers before.

use crate::server::{copy, quantile};
use crate::timed;
use foreshard_core::graph::Digraph;
use foreshard_core::graph::maintain::{MaintainOptions, MemoryClosure};
use foreshard_test::bars::{bar_least, bar_most};
use foreshard_test::{Client, Cluster, Error, Result};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};

/// How many times as fast ours has to be.
const BAR: f64 = 5.0;
/// Seconds after which no more edges are deleted with the triggers written by hand: they take seconds each.
const PATIENCE_S: f64 = 60.0;

/// For statements that change very many edges.
const UNBOUNDED: &str = "SET foreshard.graph_max_work = 1000000000";

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

/// Compares both; whether the bars hold.
pub fn single(
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
    let changed = changed(graph, &chosen)?;
    let (gone, took) = timed(|| without(client, &chosen));
    gone?;
    println!("{} random edges taken from the graph in one statement: {took:.2} s", chosen.len());
    let mut hand = cluster.connect("postgres")?;
    set_up(&mut hand)?;
    let mut holds = true;
    let inserts = [
        edit(client, "edge", &chosen, true, f64::INFINITY)?,
        edit(&mut hand, "hand_edge", &chosen, true, f64::INFINITY)?,
    ];
    holds &= compare("inserts", inserts, &changed[0])?;
    holds &= same(&mut hand)?;
    let theirs = edit(&mut hand, "hand_edge", &chosen, false, PATIENCE_S)?;
    let some = chosen.get(..theirs.len()).unwrap_or(&chosen);
    let deletes = [edit(client, "edge", some, false, f64::INFINITY)?, theirs];
    holds &= compare("deletes", deletes, changed[1].get(..some.len()).unwrap_or(&changed[1]))?;
    holds &= same(&mut hand)?;
    if some.len() < chosen.len() {
        let rest = chosen.get(some.len()..).unwrap_or_default();
        let seconds = edit(client, "edge", rest, false, f64::INFINITY)?;
        print(
            "deletes",
            "foreshard, the other edges",
            seconds,
            changed[1].get(some.len()..).unwrap_or_default(),
        );
    }
    hand.exec("DROP TABLE hand, hand_edge")?;
    client.exec(UNBOUNDED)?;
    copy(client, "edge", &chosen)?;
    client.exec("RESET foreshard.graph_max_work")?;
    Ok(holds)
}

/// Rows of the closure that each insert changes, after all edges were taken away, and then each delete.
fn changed(graph: &Digraph, chosen: &[(u32, u32)]) -> Result<[Vec<usize>; 2]> {
    let wrong = |problem: &dyn std::fmt::Display| Error::new(problem.to_string(), "Try another graph.");
    let mut memory = MemoryClosure::new(
        &graph.simple(),
        MaintainOptions { max_work: 1 << 40, ..MaintainOptions::default() },
        100_000_000,
    )
    .map_err(|problem| wrong(&problem))?;
    let mut rows = [Vec::new(), Vec::new()];
    for (pass, insert) in [(None, false), (Some(0), true), (Some(1), false)] {
        for edge in chosen {
            let own = std::slice::from_ref(edge);
            let done = if insert { memory.edit(own, &[]) } else { memory.edit(&[], own) };
            let count = done.map_err(|problem| wrong(&problem))?.len();
            if let Some(rows) = pass.and_then(|pass| rows.get_mut(pass)) {
                rows.push(count);
            }
        }
    }
    Ok(rows)
}

fn without(client: &mut Client, chosen: &[(u32, u32)]) -> Result<()> {
    client.exec("CREATE TEMP TABLE chosen (s int, t int)")?;
    copy(client, "chosen", chosen)?;
    client.exec(UNBOUNDED)?;
    client.exec("DELETE FROM edge e USING chosen c WHERE e.s = c.s AND e.t = c.t; RESET foreshard.graph_max_work; DROP TABLE chosen")?;
    Ok(())
}

/// The edges and the closure as they are, and triggers; all of it in shared buffers, like ours.
fn set_up(hand: &mut Client) -> Result<()> {
    hand.exec(BY_HAND)?;
    hand.exec(
        "SET client_min_messages = error; INSERT INTO hand_edge SELECT * FROM edge; CREATE INDEX ON hand_edge (s, t); CREATE INDEX ON hand_edge (t, s); \
         INSERT INTO hand SELECT ancestor, descendant, depth FROM foreshard.g_closure; \
         INSERT INTO hand SELECT node, node, 0 FROM foreshard.g_metagraph ON CONFLICT DO NOTHING; \
         CREATE TRIGGER i AFTER INSERT ON hand_edge FOR EACH ROW EXECUTE FUNCTION hand_insert(); \
         CREATE TRIGGER d AFTER DELETE ON hand_edge FOR EACH ROW EXECUTE FUNCTION hand_delete()",
    )?;
    hand.exec("VACUUM ANALYZE")?;
    hand.exec(
        "CREATE EXTENSION IF NOT EXISTS pg_prewarm; SELECT count(pg_prewarm(c.oid)) FROM pg_class c WHERE c.relkind IN ('r', 'i') AND c.relname ~ '^(hand|edge|g_closure|g_metagraph|g_component)'",
    )?;
    hand.exec("CHECKPOINT")?;
    Ok(())
}

/// Seconds of every statement; no more of them once so many seconds are over.
fn edit(
    client: &mut Client,
    table: &str,
    edges: &[(u32, u32)],
    insert: bool,
    patience: f64,
) -> Result<Vec<f64>> {
    let sql = match insert {
        true => format!("INSERT INTO {table} VALUES ($1::int, $2::int)"),
        false => format!("DELETE FROM {table} WHERE s = $1::int AND t = $2::int"),
    };
    client.prepare("edit", &sql)?;
    let (mut seconds, mut sum) = (Vec::new(), 0.0);
    for (s, t) in edges {
        let (done, took) =
            timed(|| client.exec_prepared("edit", &[Some(&s.to_string()), Some(&t.to_string())]));
        done?;
        seconds.push(took);
        sum += took;
        if sum > patience {
            break;
        }
    }
    client.exec("DEALLOCATE edit")?;
    Ok(seconds)
}

/// Prints a run; seconds per changed row, and the p99 of a statement.
fn print(what: &str, who: &str, mut seconds: Vec<f64>, changed: &[usize]) -> (f64, f64) {
    let (sum, rows) = (seconds.iter().sum::<f64>(), changed.iter().sum::<usize>());
    seconds.sort_by(f64::total_cmp);
    let (per_row, p99) = (sum / rows.max(1) as f64, quantile(&seconds, 0.99));
    println!(
        "{what} of single edges, {who}: {} statements, {:.0}/s, p50 {:.0} us, p99 {:.0} us, {:.2} us per changed row ({rows} rows)",
        seconds.len(),
        seconds.len() as f64 / sum,
        quantile(&seconds, 0.5) * 1e6,
        p99 * 1e6,
        per_row * 1e6
    );
    (per_row, p99)
}

fn compare(what: &str, [ours, theirs]: [Vec<f64>; 2], changed: &[usize]) -> Result<bool> {
    let ours = print(what, "foreshard", ours, changed);
    let theirs = print(what, "by hand", theirs, changed);
    let per_row = bar_least(&format!("by hand / foreshard per changed row, {what}"), theirs.0 / ours.0, BAR);
    Ok(bar_least(&format!("by hand / foreshard p99, {what}"), theirs.1 / ours.1, BAR) && per_row)
}

fn same(hand: &mut Client) -> Result<bool> {
    let wrong = hand.query_one(
        "SELECT count(*) FROM foreshard.g_closure c FULL JOIN hand h ON h.a = c.ancestor AND h.d = c.descendant \
         WHERE h.depth IS DISTINCT FROM c.depth AND coalesce(c.ancestor, h.a) <> coalesce(c.descendant, h.d)",
    )?;
    Ok(bar_most("rows in which both closures differ", wrong.parse().unwrap_or(f64::NAN), 0.0))
}
