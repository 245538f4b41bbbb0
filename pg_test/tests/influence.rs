//! Influence, placement and moves of graph nodes.

mod common;

use common::placed::expect_code;
use common::{Random, Server, options};
use foreshard_test::{Result, wait_until};
use std::time::Duration;

/// Edges of `e (s, t, w)` as a graph `g` with nodes in `n (k, type)`.
fn make(server: &mut Server, fill: &str) -> Result<()> {
    server.query(&format!(
        "CREATE TABLE e (s int, t int, w float8); CREATE TABLE n (k int PRIMARY KEY, type text); {fill}; \
         SELECT foreshard.create_graph('g', 'e', 's', 't', 'n', 'k', 'type', 'w')"
    ))?;
    Ok(())
}

/// The closure is right and every row is where the directory says.
fn assert_checked(server: &mut Server) -> Result<()> {
    assert_eq!(server.query("SELECT * FROM foreshard.check_graph('g')")?, "");
    let wrong = server.query(
        "SELECT count(*) FROM foreshard.g_closure c LEFT JOIN foreshard.g_metagraph a ON a.node = c.ancestor \
         LEFT JOIN foreshard.g_metagraph d ON d.node = c.descendant \
         WHERE a.shard_id IS DISTINCT FROM c.ancestor_shard OR d.shard_id IS DISTINCT FROM c.descendant_shard",
    )?;
    assert_eq!(wrong, "0", "rows on the wrong shard");
    Ok(())
}

/// PageRank of `e` by plain SQL, 120 iterations, into table `r (k, v)`.
const REFERENCE: &str = "DO $$ BEGIN \
     DROP TABLE IF EXISTS r; CREATE TEMP TABLE r AS SELECT node AS k, 1.0::float8 / count(*) OVER () AS v FROM foreshard.g_metagraph; \
     FOR i IN 1..120 LOOP \
         CREATE TEMP TABLE x AS WITH o AS (SELECT s, sum(w) AS w FROM e GROUP BY s), \
             d AS (SELECT coalesce(sum(v), 0) AS v FROM r WHERE k NOT IN (SELECT s FROM o)), \
             f AS (SELECT e.t AS k, sum(r.v * e.w / o.w) AS v FROM e JOIN o USING (s) JOIN r ON r.k = e.s GROUP BY e.t) \
         SELECT r.k, (0.15 + 0.85 * d.v) / count(*) OVER () + 0.85 * coalesce(f.v, 0) AS v FROM r CROSS JOIN d LEFT JOIN f USING (k); \
         DROP TABLE r; ALTER TABLE x RENAME TO r; \
     END LOOP; END $$";

#[test]
fn influence_is_that_of_the_definition_and_follows_changes() -> Result<()> {
    let mut server = Server::start(&options("influence"))?;
    make(
        &mut server,
        "SELECT setseed(0.3); INSERT INTO e SELECT s, t, 1 + s % 3 FROM (SELECT DISTINCT floor(random() * 60)::int AS s, \
             floor(60 * random() * random())::int AS t FROM generate_series(1, 200)) q; INSERT INTO n VALUES (1000, 'alone')",
    )?;
    // Until weights are read, equal ones count; nothing is known of paths.
    let at_first = server.query(
        "SELECT round(sum(influence_score)::numeric, 6), count(betweenness) FROM foreshard.g_metagraph",
    )?;
    assert_eq!(at_first, "1.000000|0");
    let row = server.query("SELECT nodes = (SELECT count(*) FROM foreshard.g_metagraph), converged, betweenness, error_bound FROM foreshard.refresh_influence('g')")?;
    assert_eq!(row, "t|t|exact|0");
    let compare = |server: &mut Server| -> Result<()> {
        server.query(REFERENCE)?;
        let off = server.query(
            "SELECT count(*) FROM foreshard.g_metagraph m FULL JOIN r ON r.k = m.node WHERE abs(m.influence_score - r.v) < 1e-6 IS NOT TRUE",
        )?;
        assert_eq!(off, "0");
        Ok(())
    };
    compare(&mut server)?;
    server.query("INSERT INTO e VALUES (1, 59, 50), (2, 59, 50), (3, 59, 50); DELETE FROM e WHERE s = 7")?;
    server.query("SELECT foreshard.refresh_influence('g')")?;
    compare(&mut server)?;
    // a → b → c: of the pairs, one leads through b.
    server.query("TRUNCATE e; TRUNCATE n; INSERT INTO e VALUES (1, 2, 1), (2, 3, 1)")?;
    server.query("SELECT foreshard.refresh_influence('g')")?;
    assert_eq!(
        server.query("SELECT string_agg(round(betweenness::numeric, 4)::text, ' ' ORDER BY node) FROM foreshard.g_metagraph WHERE node < 4")?,
        "0.0000 0.1667 0.0000"
    );
    assert_eq!(
        server.query(
            "SELECT string_agg(node, ' ' ORDER BY place) FROM foreshard.graph_influencers WHERE graph = 'g'"
        )?,
        "3 2 1"
    );
    server.query("UPDATE e SET w = -1")?;
    assert_eq!(server.fails("SELECT foreshard.refresh_influence('g')")?.sqlstate, "22023");
    assert_eq!(server.fails("SELECT foreshard.refresh_influence('g', 0)")?.sqlstate, "22023");
    // By itself, once the graph has changed and the interval is over; and it can be stopped.
    server.query("UPDATE e SET w = 1; INSERT INTO e VALUES (4, 1, 1), (5, 1, 1), (6, 1, 1), (1, 1, 30)")?;
    server.set(&[("foreshard.influence_interval", "1")])?;
    wait_until("influence", Duration::from_secs(20), || {
        let top = "SELECT node FROM foreshard.graph_influencers WHERE graph = 'g' AND place = 1";
        Ok(server.query(top)? == "1")
    })?;
    server.set(&[("foreshard.influence_interval", "0")])?;
    assert_checked(&mut server)
}

#[test]
fn a_large_graph_is_sampled_within_the_bound_and_stops_when_told() -> Result<()> {
    let mut server = Server::start(&options("influence-large"))?;
    make(
        &mut server,
        "INSERT INTO e SELECT s, t, 1 FROM (SELECT g AS s, 4000 + g % 5 AS t FROM generate_series(1, 3999) g \
             UNION ALL SELECT 4000 + g % 5, 5000 + g FROM generate_series(1, 30000) g) q",
    )?;
    let row = server.query(
        "SELECT betweenness, error_bound <= 0.02, samples > 0 FROM foreshard.refresh_influence('g', 0.02)",
    )?;
    assert_eq!(row, "sampled|t|t");
    // Every hub is inside a fifth of the paths of sources, and of its own leaves: 800 × 6000 of 34004 × 34003 pairs.
    let far = server.query("SELECT count(*) FROM foreshard.g_metagraph WHERE node BETWEEN 4000 AND 4004 AND abs(betweenness - 800.0 * 6000 / (34004.0 * 34003)) > 0.02")?;
    assert_eq!(far, "0");
    let mut client = server.cluster.connect("postgres")?;
    let started = std::time::Instant::now();
    expect_code(
        client.exec("SET statement_timeout = '700ms'; SELECT foreshard.refresh_influence('g', 0.00005)"),
        "57014",
    );
    assert!(started.elapsed() < Duration::from_secs(4), "not stopped in time: {:?}", started.elapsed());
    Ok(())
}

/// Clusters of nodes: 12 rings of 10, with a few edges between rings.
const RINGS: &str = "INSERT INTO e SELECT c * 100 + i, c * 100 + (i + j) % 10, 1 FROM generate_series(0, 11) c, generate_series(0, 9) i, generate_series(1, 3) j; \
     INSERT INTO e SELECT c * 100, (c + 1) % 12 * 100 + 5, 1 FROM generate_series(0, 10) c";

fn wait_moved(server: &mut Server) -> Result<()> {
    wait_until("moves of nodes", Duration::from_secs(30), || {
        Ok(server.query("SELECT count(*) FROM foreshard.node_move WHERE state = 'waiting'")? == "0")
    })
}

#[test]
fn what_belongs_together_comes_to_live_together() -> Result<()> {
    let mut server = Server::start(&options("influence-place"))?;
    make(&mut server, RINGS)?;
    server.query("INSERT INTO n SELECT c * 100 + 1, 'pinned' FROM generate_series(0, 11) c")?;
    let spread = server.query(
        "SELECT max(v) / min(v) < 1.1 FROM (SELECT sum(influence_score) AS v FROM foreshard.g_metagraph GROUP BY shard_id) q",
    )?;
    assert_eq!(spread, "t", "influence is uneven at first");
    let plan = server.query(
        "SELECT moves > 0, cross_shard_ratio_before > 0.3, cross_shard_ratio_after < 0.15, imbalance_after <= 1.1, \
             moves = (SELECT count(*) FROM jsonb_object_keys(shard_assignment_map)) FROM foreshard.graph_plan('g')",
    )?;
    assert_eq!(plan, "t|t|t|t|t");
    let filed: u64 = server.query("SELECT foreshard.place_graph('g')")?.parse().unwrap_or(0);
    assert!(filed > 10, "{filed} moves");
    wait_moved(&mut server)?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.node_moves WHERE state <> 'done'")?, "0");
    assert_checked(&mut server)?;
    let cut = server.query(
        "SELECT avg((a.shard_id <> b.shard_id)::int) < 0.1 FROM e JOIN foreshard.g_metagraph a ON a.node = s JOIN foreshard.g_metagraph b ON b.node = t",
    )?;
    assert_eq!(cut, "t", "rings are torn");
    // New nodes come near their neighbours.
    server.query("ANALYZE foreshard.g_closure, foreshard.g_metagraph")?;
    server.query("INSERT INTO e SELECT c * 100, c * 100 + 50, 1 FROM generate_series(0, 11) c")?;
    let near = server.query(
        "SELECT count(*) FROM foreshard.g_metagraph a JOIN foreshard.g_metagraph b ON b.node = a.node + 50 AND a.node % 100 = 0 WHERE a.shard_id = b.shard_id",
    )?;
    assert!(near.parse::<u32>().unwrap_or(0) >= 10, "{near} of 12 new nodes are near");
    // Types live where they may; the plan brings them there and move_node() keeps to it.
    server.query("SELECT foreshard.allow_type('g', 'pinned', ARRAY['sb'])")?;
    assert_eq!(server.fails("SELECT foreshard.move_node('g', '101', 'sa')")?.sqlstate, "22023");
    server.query("SELECT foreshard.place_graph('g')")?;
    wait_moved(&mut server)?;
    let placed = "SELECT count(*) FROM foreshard.g_metagraph JOIN foreshard.shard USING (shard_id) WHERE type = 'pinned' AND shard_name = 'sb'";
    assert_eq!(server.query(placed)?, "12");
    assert_eq!(server.fails("SELECT foreshard.allow_type('g', 'x', '{}')")?.sqlstate, "22023");
    // A shard that was added later, and one that is being emptied.
    server
        .query("SELECT foreshard.add_shard('late', 'sa'); SELECT foreshard.move_node('g', '303', 'late')")?;
    assert_eq!(
        server.query("SELECT count(DISTINCT ancestor_shard), bool_and(tableoid = 'foreshard.g_closure_s3'::regclass) FROM foreshard.g_closure WHERE ancestor = 303")?,
        "1|t"
    );
    server.query("UPDATE foreshard.shard SET draining = true WHERE shard_name = 'late'; SELECT foreshard.place_graph('g')")?;
    wait_moved(&mut server)?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.g_closure_s3")?, "0");
    assert_checked(&mut server)
}

#[test]
fn accesses_are_counted_and_busy_nodes_move() -> Result<()> {
    let mut server = Server::start(&options("influence-access").set("foreshard.plan_interval", "1"))?;
    make(&mut server, RINGS)?;
    server.query(
        "SELECT foreshard.move_node('g', node::text, CASE WHEN node < 600 THEN 'sa' ELSE 'sb' END) FROM foreshard.g_metagraph ORDER BY node",
    )?;
    assert_eq!(server.query("SELECT foreshard.note_access('g', ARRAY['1', '101', '999999'])")?, "1");
    assert_eq!(server.query("SELECT foreshard.note_access('g', ARRAY['1', '701'])")?, "2");
    assert_eq!(server.fails("SELECT foreshard.note_access('g', ARRAY['x'])")?.sqlstate, "22P02");
    wait_until("counting", Duration::from_secs(20), || {
        Ok(server.query("SELECT count(*) FROM foreshard.graph_access")? == "0")
    })?;
    assert_eq!(
        server.query(
            "SELECT windows, cross_shard_windows, cross_shard_ratio FROM foreshard.graph_traffic_stats"
        )?,
        "2|1|0.5"
    );
    let score = "SELECT round(access_score::numeric, 1) FROM foreshard.g_metagraph WHERE node = 1";
    assert_eq!(server.query(score)?, "2.0");
    assert_eq!(
        server.query("SELECT string_agg(node_a || '+' || node_b, ' ' ORDER BY node_a, node_b) FROM foreshard.graph_coaccess")?,
        "1+101 1+701"
    );
    // Who may not read the edges may not note, and does not see nodes.
    server.query("CREATE ROLE nobody; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA foreshard TO nobody; GRANT pg_monitor TO nobody; SELECT foreshard.refresh_influence('g')")?;
    let mut nobody = server.cluster.connect("postgres")?;
    nobody.exec("SET ROLE nobody")?;
    for call in [
        "note_access('g', ARRAY['1'])",
        "refresh_influence('g')",
        "place_graph('g')",
        "graph_plan('g')",
        "move_node('g', '1', 'sb')",
        "move_nodes('g', '{}')",
        "cancel_node_moves('g')",
        "allow_type('g', 'x', NULL)",
    ] {
        expect_code(nobody.exec(&format!("SELECT foreshard.{call}")), "42501");
    }
    let seen = nobody
        .exec("SELECT count(*) > 0, count(node) FROM foreshard.graph_influencers")
        .map(|rows| rows.to_text());
    assert_eq!(seen.unwrap_or_default(), "t|0");
    // Why a move failed may name the key; and whoever sees some edges only sees no nodes.
    server.query(
        "INSERT INTO foreshard.node_move (graph_id, node, to_shard, version, state, requested_by, finished_at, error) \
             SELECT graph_id, '1', shard_id, 1, 'failed', 'x', now(), 'node 1 has gone' FROM foreshard.graph, foreshard.shard; \
         GRANT SELECT ON e TO nobody; CREATE POLICY few ON e USING (s < 0); ALTER TABLE e ENABLE ROW LEVEL SECURITY",
    )?;
    for (keys, wanted) in [
        ("SELECT count(*), count(node), count(error) FROM foreshard.node_moves", "2|0|0"),
        ("SELECT count(node) FROM foreshard.graph_influencers", "0"),
    ] {
        assert_eq!(nobody.exec(keys).map(|rows| rows.to_text()).unwrap_or_default(), wanted);
    }
    server.query("ALTER TABLE e DISABLE ROW LEVEL SECURITY; DELETE FROM foreshard.node_move")?;
    // Two nodes of one shard get busy: nothing moves before somebody says auto.
    let busy = "SELECT foreshard.note_access('g', ARRAY['2', '102']) FROM generate_series(1, 200)";
    server.query(busy)?;
    wait_until("counting", Duration::from_secs(20), || {
        Ok(server.query("SELECT windows FROM foreshard.graph_traffic")? == "202")
    })?;
    let own = "SELECT count(*) FROM foreshard.node_move WHERE requested_by = 'foreshard'";
    assert_eq!(server.query(own)?, "0");
    // Nor in hours that are not left for moves.
    let later = server.query("SELECT to_char(now() AT TIME ZONE 'UTC' + interval '2 h', 'HH24:MI-') || to_char(now() AT TIME ZONE 'UTC' + interval '3 h', 'HH24:MI UTC')")?;
    server.set(&[("foreshard.mode", "auto"), ("foreshard.move_window", &later)])?;
    let begun = server.query("SELECT clock_timestamp()")?;
    let judged = format!("SELECT judged_at > '{begun}' FROM foreshard.graph_traffic");
    wait_until("a look at the nodes", Duration::from_secs(8), || {
        server.query("SELECT foreshard.note_access('g', ARRAY['2'])")?;
        Ok(server.query(&judged)? == "t")
    })?;
    // What it files is filed a moment later; the worker is gone by then.
    server.wait_query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard graph'", "0")?;
    assert_eq!(server.query(own)?, "0");
    server.set(&[("foreshard.move_window", "")])?;
    let moved = wait_until("a move", Duration::from_secs(8), || {
        server.query("SELECT foreshard.note_access('g', ARRAY['2'])")?;
        let by_itself = "SELECT count(*) > 0 FROM foreshard.node_moves WHERE state = 'done' AND requested_by = 'foreshard'";
        Ok(server.query(by_itself)? == "t")
    });
    if moved.is_err() {
        let moves = server.query("SELECT * FROM foreshard.node_moves")?;
        let traffic = server.query("SELECT *, now() FROM foreshard.graph_traffic")?;
        let heat = server
            .query("SELECT node, shard_id, access_score FROM foreshard.g_metagraph WHERE access_score > 0")?;
        panic!("no busy node moved: {moves}; {traffic}; {heat}");
    }
    assert_checked(&mut server)
}

#[test]
fn moves_are_whole_whatever_happens() -> Result<()> {
    let mut server = Server::start(&options("influence-move").set("foreshard.graph_move_batch", "300"))?;
    make(&mut server, "INSERT INTO e SELECT g, g + 1, 1 FROM generate_series(1, 600) g")?;
    // A version that is not the node's, a node and a shard that do not exist; a move that is rolled back.
    server.query("SELECT foreshard.move_node('g', '5', 'sa'); SELECT foreshard.move_node('g', '6', 'sa')")?;
    let version: i64 =
        server.query("SELECT version FROM foreshard.g_metagraph WHERE node = 5")?.parse().unwrap_or(0);
    assert_eq!(
        server.query(&format!("SELECT foreshard.move_node('g', '5', 'sb', {version})"))?,
        (version + 1).to_string()
    );
    assert_eq!(
        server.fails(&format!("SELECT foreshard.move_node('g', '5', 'sa', {version})"))?.sqlstate,
        "40001"
    );
    assert_eq!(server.fails("SELECT foreshard.move_node('g', '77777', 'sa')")?.sqlstate, "42704");
    assert_eq!(server.fails("SELECT foreshard.move_node('g', '5', 'none')")?.sqlstate, "42704");
    assert_eq!(server.fails("SELECT foreshard.move_nodes('g', '{\"5\": 1}')")?.sqlstate, "22023");
    // A snapshot from before a move sees all rows, on their old shard; one after it, on the new one.
    let mut reader = server.cluster.connect("postgres")?;
    let look = "SELECT count(*) FROM foreshard.g_descendants(6)";
    reader.exec("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let before = reader.exec(look).map(|rows| rows.to_text())?;
    server.query("BEGIN; SELECT foreshard.move_node('g', '5', 'sa'); ROLLBACK; SELECT foreshard.move_node('g', '6', 'sb')")?;
    assert_eq!(reader.exec(look).map(|rows| rows.to_text())?, before);
    assert_eq!(server.query(look)?, before);
    // Who began to write before the move is told so, as for any change under it.
    expect_code(reader.exec("INSERT INTO e VALUES (6, 1, 1)"), "40001");
    reader.exec("ROLLBACK")?;
    // All nodes move, edges change meanwhile, the worker is killed in the middle.
    let file = "SELECT foreshard.move_nodes('g', jsonb_object_agg(m.node, s.shard_name)) FROM foreshard.g_metagraph m \
                JOIN foreshard.shard s ON s.shard_id <> m.shard_id";
    let total: i64 = server.query(file)?.parse().unwrap_or(0);
    assert!(total >= 600, "{total} moves");
    let mut random = Random::new(3);
    let mut killed = false;
    wait_until("the moves", Duration::from_secs(180), || {
        let (a, b) = (random.below(600) + 1, random.below(600) + 1);
        server.query(&format!("INSERT INTO e VALUES ({a}, {b}, 1); DELETE FROM e WHERE ctid IN (SELECT ctid FROM e WHERE s = {a} AND t = {b} LIMIT 1)"))?;
        let done: i64 = server
            .query("SELECT count(*) FROM foreshard.node_move WHERE state = 'done'")?
            .parse()
            .unwrap_or(0);
        let pid = server.query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'foreshard graph'")?;
        if !killed
            && done > 20
            && done < total
            && let Ok(pid) = pid.parse()
        {
            server.cluster.kill9(pid)?;
            server.cluster.wait_ready(Duration::from_secs(30))?;
            let left: i64 = server
                .query("SELECT count(*) FROM foreshard.node_move WHERE state = 'waiting'")?
                .parse()
                .unwrap_or(0);
            assert!(left > 0, "killed too late");
            killed = true;
            assert_checked(&mut server)?;
        }
        Ok(done >= total)
    })?;
    assert!(killed, "the moves were too quick to be killed");
    assert_eq!(server.query("SELECT count(*) FROM foreshard.node_move WHERE state <> 'done'")?, "0");
    assert_checked(&mut server)?;
    server.query("SELECT foreshard.rebuild_graph('g')")?;
    assert_checked(&mut server)?;
    server.query("SELECT foreshard.drop_graph('g')")?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.node_move")?, "0");
    Ok(())
}
