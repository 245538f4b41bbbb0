//! Closures with parts on other servers: edges change and nodes move there and back, plans ask only whom they must, what
//! one side lost is found, and a node that is away stops nobody who does not need it.

mod common;

use common::Random;
use common::closures::{assert_checked, assert_right};
use common::nodes::World;
use common::placed::expect_code;
use foreshard_test::Result;
use std::time::{Duration, Instant};

const NODES: u64 = 12;

/// A graph of a few edges on the shards of this server.
fn make(world: &mut World, kind: &str) -> Result<()> {
    world.here.query(&format!(
        "CREATE TABLE e (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s {kind}, t {kind}, w int DEFAULT 1); \
         CREATE TABLE n (k {kind} PRIMARY KEY, type text); \
         INSERT INTO e (s, t) SELECT g::text::{kind}, (g + 1)::text::{kind} FROM generate_series(0, {}) g; \
         SELECT foreshard.create_graph('g', 'e', 's', 't', 'n', 'k', 'type', 'w')",
        NODES - 2
    ))?;
    Ok(())
}

/// Has a worker move nodes, given as `"node": "shard"`, and waits for it.
fn file(world: &mut World, moves: &str) -> Result<()> {
    world.here.query(&format!("SELECT foreshard.move_nodes('g', '{{{moves}}}')"))?;
    world.here.wait_query("SELECT count(*) FROM foreshard.node_moves WHERE state = 'waiting'", "0")?;
    let failed =
        "SELECT coalesce(string_agg(error, ', '), '') FROM foreshard.node_moves WHERE state = 'failed'";
    assert_eq!(world.here.query(failed)?, "");
    Ok(())
}

/// The shard of a node.
fn home(world: &mut World, node: &str) -> Result<String> {
    world.here.query(&format!(
        "SELECT h.shard_name FROM foreshard.g_metagraph m JOIN foreshard.shard h USING (shard_id) WHERE m.node = '{node}'"
    ))
}

/// A statement on the edges or nodes.
fn statement(random: &mut Random) -> String {
    let mut node = || format!("'{}'", random.below(NODES));
    let (a, b, c) = (node(), node(), node());
    match random.below(9) {
        0..=2 => format!("INSERT INTO e (s, t) VALUES ({a}, {b})"),
        3 => format!("INSERT INTO e (s, t) VALUES ({a}, {b}), ({b}, {c}), ({c}, {a})"),
        4 => format!("DELETE FROM e WHERE s = {a}"),
        5 => format!("DELETE FROM e WHERE t = {a} AND s <> {b}"),
        6 => format!("UPDATE e SET t = {b} WHERE s = {a}"),
        7 => format!("INSERT INTO n (k, type) VALUES ({a}, 'x') ON CONFLICT DO NOTHING"),
        _ => format!("DELETE FROM n WHERE k = {a}"),
    }
}

#[test]
fn edges_change_while_nodes_travel() -> Result<()> {
    for (round, kind) in ["int", "text"].into_iter().enumerate() {
        let mut world = World::with_nodes(&format!("graph-nodes-{kind}"))?;
        make(&mut world, kind)?;
        // A session makes nothing on a node.
        let error = expect_code(
            world.here.cluster.connect("postgres")?.exec("SELECT foreshard.move_node('g', '3', 'on_n1')"),
            "55000",
        );
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("move_nodes")), "{error}");
        file(&mut world, "\"3\": \"on_n1\", \"4\": \"on_n2\", \"5\": \"on_n1\"")?;
        assert_eq!(home(&mut world, "3")?, "on_n1");
        assert_right(&mut world.here, "g", "the first moves")?;
        assert_checked(&mut world.here, "g")?;
        let mut random = Random::new(round as u64 + 3);
        for step in 0..60 {
            let own = match step % 4 {
                3 => format!(
                    "SELECT foreshard.move_node('g', m.node::text, '{}') FROM foreshard.g_metagraph m ORDER BY md5(m.node::text || {step}) LIMIT 1",
                    ["sa", "on_n1", "sb", "on_n2"][random.below(4) as usize]
                ),
                2 => {
                    let undone = statement(&mut random);
                    format!("BEGIN; SAVEPOINT a; {undone}; ROLLBACK TO a; {}; COMMIT", statement(&mut random))
                }
                _ => statement(&mut random),
            };
            world.here.query(&own)?;
            assert_right(&mut world.here, "g", &format!("{own} ({kind}, step {step})"))?;
        }
        assert_checked(&mut world.here, "g")?;
        assert_eq!(world.here.query("SELECT foreshard.rebuild_graph('g')")?, "0");
        world.here.query("INSERT INTO e (s, t) VALUES ('1', '3'), ('4', '2')")?;
        assert_right(&mut world.here, "g", "edges after a rebuild")?;
        world.here.query("TRUNCATE e")?;
        assert_right(&mut world.here, "g", "TRUNCATE")?;
        leave(&mut world)?;
    }
    Ok(())
}

/// Drops the graph; nothing of it stays on the nodes.
fn leave(world: &mut World) -> Result<()> {
    world.here.query("SELECT foreshard.drop_graph('g')")?;
    world.here.wait_query("SELECT count(*) FROM foreshard.remote_table", "0")?;
    for database in ["postgres", "second"] {
        let left = "SELECT coalesce(string_agg(relname, ' '), '') FROM pg_class WHERE relnamespace = 'public'::regnamespace \
                    AND relname NOT LIKE 'foreshard\\_lease\\_%'";
        assert_eq!(world.there.connect(database)?.query_one(left)?, "");
    }
    let here = "SELECT count(*) FROM pg_class WHERE relnamespace = 'foreshard'::regnamespace AND (relkind = 'f' OR relname LIKE 'g\\_%')";
    assert_eq!(world.here.query(here)?, "0");
    Ok(())
}

#[test]
fn nodes_come_home_and_the_shard_is_free() -> Result<()> {
    let mut world = World::with_nodes("graph-home")?;
    make(&mut world, "bigint")?;
    file(&mut world, "\"0\": \"on_n1\", \"1\": \"on_n1\", \"11\": \"on_n2\"")?;
    file(&mut world, "\"0\": \"on_n2\", \"1\": \"sa\", \"11\": \"sb\"")?;
    assert_right(&mut world.here, "g", "moves between nodes")?;
    file(&mut world, "\"0\": \"sa\"")?;
    assert_checked(&mut world.here, "g")?;
    let there = world.here.query("SELECT count(*) FROM foreshard.g_closure c JOIN foreshard.shard h ON h.shard_id = c.ancestor_shard WHERE h.node_name <> 'local'")?;
    assert_eq!(there, "0");
    let error = expect_code(
        world.here.cluster.connect("postgres")?.exec("SELECT foreshard.drop_shard('on_n1')"),
        "55006",
    );
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("drop_graph")), "{error}");
    leave(&mut world)?;
    world.here.query("SELECT foreshard.drop_shard('on_n1'); SELECT foreshard.drop_shard('on_n2'); SELECT foreshard.drop_node('n1')")?;
    Ok(())
}

#[test]
fn plans_ask_only_whom_they_must() -> Result<()> {
    let mut world = World::with_nodes("graph-plans")?;
    make(&mut world, "int")?;
    file(&mut world, "\"3\": \"on_n1\", \"4\": \"on_n2\", \"5\": \"on_n1\"")?;
    let explain = "EXPLAIN (ANALYZE, VERBOSE, COSTS off, TIMING off, SUMMARY off)";
    let plan = world.here.query(&format!("{explain} SELECT * FROM foreshard.g_descendants(3)"))?;
    let asked: Vec<&str> = plan
        .lines()
        .filter(|line| line.contains("Foreign Scan") && !line.contains("never executed"))
        .collect();
    assert_eq!(asked.len(), 1, "{plan}");
    assert!(plan.contains("Remote SQL") && plan.contains("((ancestor = 3))"), "{plan}");
    let plan = world.here.query(&format!("{explain} SELECT * FROM foreshard.g_descendants(0)"))?;
    assert!(
        plan.lines().filter(|l| l.contains("Foreign Scan")).all(|l| l.contains("never executed")),
        "{plan}"
    );
    let plan = world.here.query(&format!("{explain} SELECT * FROM foreshard.g_ancestors(6)"))?;
    assert_eq!(plan.matches("Async Foreign Scan").count(), 2, "{plan}");
    assert!(plan.contains("((descendant = 6))"), "{plan}");
    let rows = world
        .here
        .query("SELECT string_agg(ancestor::text, ' ' ORDER BY ancestor) FROM foreshard.g_ancestors(6)")?;
    assert_eq!(rows, "0 1 2 3 4 5");
    let below = world
        .here
        .query("SELECT count(*) FROM foreshard.g_descendants(3), foreshard.g_is_ancestor(0, 11) x WHERE x")?;
    assert_eq!(below, "8");
    let path =
        world.here.query("SELECT string_agg(node::text, ' ' ORDER BY step) FROM foreshard.g_path(2, 6)")?;
    assert_eq!(path, "2 3 4 5 6");
    world.here.query("SET enable_partitionwise_aggregate = on; SET enable_partitionwise_join = on")?;
    let plan = world.here.query("EXPLAIN (VERBOSE, COSTS off) SELECT ancestor_shard, count(*), max(depth) FROM foreshard.g_closure GROUP BY 1")?;
    let pushed = plan.lines().filter(|l| l.contains("Remote SQL") && l.contains("count(*)")).count();
    assert_eq!(pushed, 2, "{plan}");
    let plan = world.here.query(
        "EXPLAIN (VERBOSE, COSTS off) SELECT a.ancestor, count(*) FROM foreshard.g_closure a JOIN foreshard.g_closure b \
         ON b.ancestor = a.ancestor AND b.ancestor_shard = a.ancestor_shard WHERE a.descendant = 6 AND b.descendant = 7 GROUP BY a.ancestor",
    )?;
    let pushed = plan.lines().filter(|l| l.contains("Remote SQL") && l.contains("INNER JOIN")).count();
    assert_eq!(pushed, 2, "{plan}");
    Ok(())
}

#[test]
fn a_node_that_is_away_stops_only_who_needs_it() -> Result<()> {
    let mut world = World::with_nodes("graph-away")?;
    make(&mut world, "int")?;
    // Another component, which lives here.
    world.here.query("INSERT INTO e (s, t) VALUES (100, 101), (101, 102)")?;
    file(&mut world, "\"3\": \"on_n1\"")?;
    let before = world.here.query("SELECT count(*), sum(depth) FROM foreshard.g_closure")?;
    world.there.kill9_postmaster()?;
    let mut c = world.here.cluster.connect("postgres")?;
    for sql in [
        "INSERT INTO e (s, t) VALUES (2, 7)",
        "DELETE FROM e WHERE s = 3",
        "SELECT foreshard.move_node('g', '3', 'sa')",
        "INSERT INTO e (s, t) VALUES (100, 3)",
    ] {
        match c.exec(sql) {
            Ok(_) => panic!("{sql} did not fail"),
            Err(error) => assert!(error.sqlstate.starts_with("08"), "{sql}: {error}"),
        }
    }
    c.exec("INSERT INTO e (s, t) VALUES (102, 103); DELETE FROM e WHERE s = 100; SELECT foreshard.move_node('g', '102', 'sb')")?;
    c.exec("DELETE FROM e WHERE s = 102; INSERT INTO e (s, t) VALUES (100, 101)")?;
    world.there.start_again()?;
    assert_eq!(world.here.query("SELECT count(*), sum(depth) FROM foreshard.g_closure")?, before);
    assert_right(&mut world.here, "g", "the node is back")?;
    c.exec("INSERT INTO e (s, t) VALUES (2, 7)")?;
    assert_right(&mut world.here, "g", "an edge after the node came back")?;
    assert_checked(&mut world.here, "g")
}

#[test]
fn a_snapshot_there_that_is_too_old_is_refused() -> Result<()> {
    let mut world = World::with_nodes("graph-old")?;
    make(&mut world, "int")?;
    world.here.query("INSERT INTO e (s, t) VALUES (100, 101), (101, 102)")?;
    file(&mut world, "\"3\": \"on_n1\", \"101\": \"on_n1\"")?;
    let mut old = world.here.cluster.connect("postgres")?;
    // Its snapshot on the node begins here.
    old.exec("BEGIN; INSERT INTO e (s, t) VALUES (3, 9)")?;
    world.here.query("INSERT INTO e (s, t) VALUES (102, 103)")?;
    expect_code(old.exec("DELETE FROM e WHERE s = 101"), "40001");
    old.exec("ROLLBACK")?;
    assert_right(&mut world.here, "g", "a transaction that was refused")?;
    // Also where the component has come to the node since.
    world.here.query("INSERT INTO e (s, t) VALUES (200, 201)")?;
    old.exec("BEGIN; INSERT INTO e (s, t) VALUES (3, 9)")?;
    world.here.query("SELECT foreshard.move_node('g', '200', 'on_n1')")?;
    expect_code(old.exec("INSERT INTO e (s, t) VALUES (201, 202)"), "40001");
    old.exec("ROLLBACK")?;
    // And where two have become one.
    old.exec("BEGIN; INSERT INTO e (s, t) VALUES (3, 9)")?;
    world.here.query("INSERT INTO e (s, t) VALUES (102, 200)")?;
    expect_code(old.exec("INSERT INTO e (s, t) VALUES (201, 202)"), "40001");
    old.exec("ROLLBACK; INSERT INTO e (s, t) VALUES (201, 202)")?;
    assert_right(&mut world.here, "g", "the last edge")?;
    assert_checked(&mut world.here, "g")
}

#[test]
fn what_one_side_lost_is_found_and_made_right() -> Result<()> {
    let mut world = World::with_nodes("graph-lost")?;
    make(&mut world, "int")?;
    file(&mut world, "\"3\": \"on_n1\", \"4\": \"on_n1\"")?;
    let table =
        world.here.query("SELECT format('%I.%I', remote_schema, remote_name) FROM foreshard.remote_table")?;
    let marks =
        world.here.query("SELECT 'public.foreshard_marks_' || remote_id FROM foreshard.remote_table")?;
    let mut there = world.there.connect("postgres")?;
    // As a transaction leaves it that was committed there and not here: it had added an edge, taken one, moved a node.
    there.exec(&format!(
        "UPDATE {marks} SET previous = token, token = token + 1; \
         UPDATE {table} SET depth = depth + 1 WHERE descendant = 9; DELETE FROM {table} WHERE descendant = 7; \
         INSERT INTO {table} SELECT 6, d, 1, ancestor_shard, ancestor_shard FROM (SELECT DISTINCT ancestor_shard FROM {table}) x, generate_series(7, 8) d"
    ))?;
    assert_ne!(world.here.query("SELECT count(*) FROM foreshard.check_graph('g')")?, "0");
    world.here.query("INSERT INTO e (s, t) VALUES (0, 5)")?;
    assert_right(&mut world.here, "g", "an edge after a change was lost here")?;
    // The node loses what it had committed.
    there.exec(&format!(
        "UPDATE {marks} SET token = previous; DELETE FROM {table} WHERE ancestor = 4 AND descendant > 5"
    ))?;
    world.here.query("SELECT foreshard.move_node('g', '7', 'on_n1')")?;
    assert_right(&mut world.here, "g", "a move after the node lost a change")?;
    // What rebuild_graph() finds needs no mark.
    there.exec(&format!("DELETE FROM {table} WHERE descendant = 11"))?;
    assert_ne!(world.here.query("SELECT foreshard.rebuild_graph('g')")?, "0");
    assert_right(&mut world.here, "g", "rebuild_graph()")?;
    world.here.query("DELETE FROM e WHERE s = 3")?;
    assert_right(&mut world.here, "g", "an edge after rebuild_graph()")?;
    assert_checked(&mut world.here, "g")
}

#[test]
fn storms_leave_parts_on_nodes_exact() -> Result<()> {
    let mut world = World::with_nodes("graph-node-storm")?;
    make(&mut world, "int")?;
    file(&mut world, "\"3\": \"on_n1\", \"4\": \"on_n2\", \"5\": \"on_n1\", \"6\": \"sa\"")?;
    let ends = Instant::now() + Duration::from_secs(4);
    let mut sessions = Vec::new();
    for seed in 0..4 {
        let mut client = world.here.cluster.connect("postgres")?;
        sessions.push(std::thread::spawn(move || {
            let mut random = Random::new(seed + 40);
            let (mut done, mut problems) = (0, Vec::new());
            while Instant::now() < ends {
                let own = match (seed, random.below(5)) {
                    (0, 0) => format!(
                        "SELECT foreshard.move_node('g', '{}', '{}')",
                        random.below(NODES),
                        ["sa", "on_n1", "on_n2"][random.below(3) as usize]
                    ),
                    (1, _) => {
                        format!("BEGIN; {}; {}; COMMIT", statement(&mut random), statement(&mut random))
                    }
                    _ => statement(&mut random),
                };
                match client.exec(&own) {
                    Ok(_) => done += 1,
                    Err(error) => {
                        // A node that has not been met yet; transactions of several statements.
                        let is_told = error.sqlstate == "42704" && own.contains("move_node")
                            || error.sqlstate == "40P01"
                            || error.sqlstate == "40001" && own.starts_with("BEGIN");
                        if !is_told {
                            problems.push(format!("{own}: {error}"));
                        }
                        let _ = client.exec("ROLLBACK");
                    }
                }
            }
            (done, problems)
        }));
    }
    for session in sessions {
        let (done, problems) =
            session.join().map_err(|_| foreshard_test::Error::new("a session panicked", ""))?;
        assert_eq!(problems, Vec::<String>::new());
        assert!(done > 0, "a session did nothing");
    }
    assert_right(&mut world.here, "g", "the storm")?;
    assert_checked(&mut world.here, "g")?;
    assert_eq!(world.here.query("SELECT foreshard.rebuild_graph('g')")?, "0");
    Ok(())
}
