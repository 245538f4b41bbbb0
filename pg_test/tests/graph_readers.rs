//! Graphs beside sessions that planned, or began, before something changed; keys that are nearly equal; types that are gone.

mod common;

use common::closures::{assert_checked, assert_right};
use common::placed::expect_code;
use common::{Server, options};
use foreshard_test::{Result, wait_until};
use std::time::Duration;

/// A reader that has planned does not look into a part that is made afterwards, and must not see that a node has gone there,
/// whoever moved it.
#[test]
fn a_reader_misses_nothing_while_a_part_is_made() -> Result<()> {
    let mut server = Server::start(&options("graph-readers"))?;
    server.query(
        "CREATE TABLE e (s int, t int); CREATE TABLE n (k int); INSERT INTO e VALUES (1, 2); SELECT foreshard.create_graph('g', 'e', 's', 't'); \
         SELECT foreshard.add_shard('late'); SELECT foreshard.add_shard('later'); \
         CREATE FUNCTION slow() RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(4); RETURN 1000; END $$",
    )?;
    let (mut reader, mut mover) = (server.cluster.connect("postgres")?, server.cluster.connect("postgres")?);
    let pid = reader.backend_pid();
    for (way, shard) in [
        ("SELECT foreshard.move_node('g', '1', 'late')", "late"),
        ("SELECT foreshard.move_nodes('g', '{\"1\": \"later\"}')", "later"),
    ] {
        reader.send_query("SELECT descendant FROM foreshard.g_descendants(1) d WHERE d.depth < slow()")?;
        let plans =
            format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        wait_until("the plan", Duration::from_secs(20), || Ok(server.query(&plans)? == "1"))?;
        mover.exec(way)?;
        let mut answer = None;
        wait_until("the answer", Duration::from_secs(20), || {
            answer = reader.poll_result(Duration::from_millis(50))?;
            Ok(answer.is_some())
        })?;
        assert_eq!(answer.map(|rows| rows.to_text()).unwrap_or_default().trim(), "2", "{way}");
        server.wait_query(
            "SELECT s.shard FROM foreshard.g_metagraph m JOIN foreshard.shards s USING (shard_id) WHERE m.node = 1",
            shard,
        )?;
    }
    assert_right(&mut server, "g", "a part that was made meanwhile")
}

/// What would let rows change without the closure is refused when it is done, and told where it could not be refused.
#[test]
fn tables_of_graphs_stay_fit() -> Result<()> {
    let mut server = Server::start(&options("graph-fit"))?;
    server.query(
        "CREATE ROLE owner LOGIN; GRANT CREATE ON SCHEMA public TO owner; GRANT EXECUTE ON FUNCTION foreshard.create_graph TO owner; \
         SET SESSION AUTHORIZATION owner; CREATE TABLE e (s int, t int, w float8, note varchar(9)); CREATE TABLE n (k int, type text); \
         CREATE TABLE p (LIKE e) PARTITION BY LIST (s); CREATE TABLE parent (LIKE e); INSERT INTO e VALUES (1, 2, 1, 'x'); \
         SELECT foreshard.create_graph('g', 'e', 's', 't', 'n', 'k', 'type', 'w'); RESET SESSION AUTHORIZATION",
    )?;
    let mut owner = server.cluster.connect("postgres")?;
    owner.exec("SET SESSION AUTHORIZATION owner")?;
    for (sql, why) in [
        ("ALTER TABLE p ATTACH PARTITION e FOR VALUES IN (1)", "partition"),
        ("ALTER TABLE e INHERIT parent", "inherits"),
        ("CREATE TABLE child () INHERITS (n)", "inherited"),
        ("CREATE TABLE child (LIKE e); ALTER TABLE child INHERIT e", "inherited"),
        ("ALTER TABLE n SET UNLOGGED", "unlogged"),
        ("ALTER TABLE e RENAME COLUMN s TO source", "no column s"),
        ("ALTER TABLE e DROP COLUMN w", "no column w"),
        ("ALTER TABLE n RENAME type TO kind", "no column type"),
        ("ALTER TABLE e ALTER t TYPE bigint", "of type bigint"),
    ] {
        let error = expect_code(owner.exec(sql), "0A000").to_string();
        assert!(error.contains("graph \"g\"") && error.contains(why), "{sql}: {error}");
    }
    owner.exec(
        "ALTER TABLE e ADD COLUMN more int, ALTER note TYPE text; ALTER TABLE e RENAME COLUMN note TO label; ALTER TABLE e RENAME TO edges; \
         ALTER TABLE edges SET (fillfactor = 90); CREATE TABLE other () INHERITS (parent); INSERT INTO edges VALUES (2, 3, 1, 'y')",
    )?;
    let problems = "SELECT severity, object, detail FROM foreshard.check() WHERE object LIKE 'graph%'";
    assert_eq!(server.query(problems)?, "");
    server.query(
        "ALTER EVENT TRIGGER foreshard_graph_tables_altered DISABLE; CREATE TABLE child () INHERITS (edges)",
    )?;
    server.query("ALTER EVENT TRIGGER foreshard_graph_tables_altered ENABLE")?;
    assert_eq!(server.fails("ALTER TABLE edges ADD COLUMN yet int")?.sqlstate, "0A000");
    assert!(
        server.query(problems)?.starts_with("error|graph g|table public.edges: It inherits"),
        "{}",
        server.query(problems)?
    );
    server.query("DROP TABLE child")?;
    assert_eq!(server.query(problems)?, "");
    assert_checked(&mut server, "g")
}

/// Indexes to which different keys are equal lead to other nodes' edges.
#[test]
fn indexes_that_ignore_case_are_not_used() -> Result<()> {
    let mut server = Server::start(&options("graph-case"))?;
    let ignoring = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    if server.cluster.connect("postgres")?.exec(ignoring).is_err_and(|error| error.sqlstate == "0A000") {
        println!("skipped: this PostgreSQL has no ICU");
        return Ok(());
    }
    server.query(
        "CREATE TABLE e (s text, t text); CREATE UNIQUE INDEX ON e (s COLLATE ci, t COLLATE ci); \
         CREATE INDEX ON e (t COLLATE ci, s COLLATE ci); \
         INSERT INTO e VALUES ('a', 'x'), ('A', 'y'); SELECT foreshard.create_graph('g', 'e', 's', 't'); \
         INSERT INTO e VALUES ('z', 'a'); DELETE FROM e WHERE s = 'a'",
    )?;
    assert_eq!(server.query("SELECT descendant FROM foreshard.g_descendants('z')")?, "a");
    assert_checked(&mut server, "g")
}

/// Who began before a graph was made is told to begin again; TRUNCATE takes the types of nodes along, for a rebuild as well.
#[test]
fn what_is_gone_or_not_there_yet() -> Result<()> {
    let mut server = Server::start(&options("graph-types"))?;
    server.query(
        "CREATE TABLE e (s int, t int); CREATE TABLE n (k int, type text); INSERT INTO n VALUES (1, 'a'); INSERT INTO e VALUES (1, 2)",
    )?;
    let mut old = server.cluster.connect("postgres")?;
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    server.query(
        "SELECT foreshard.create_graph('g', 'e', 's', 't', 'n', 'k', 'type'); SELECT foreshard.allow_type('g', 'a', '{sa}')",
    )?;
    let error = expect_code(old.exec("INSERT INTO e VALUES (5, 6)"), "40001");
    assert!(!error.to_string().contains("Drop the triggers"), "{error}");
    old.exec("ROLLBACK")?;
    let type_of = "SELECT type FROM foreshard.g_metagraph WHERE node = 1";
    assert_eq!(server.query(type_of)?, "a");
    server.query("TRUNCATE n")?;
    assert_eq!(server.query(type_of)?, "");
    server.query("INSERT INTO n VALUES (1, 'a')")?;
    assert_eq!(server.query(type_of)?, "a");
    server.query("UPDATE foreshard.g_metagraph SET type = 'b'; SELECT foreshard.rebuild_graph('g')")?;
    assert_eq!(server.query(type_of)?, "a");
    // Whoever does not see all edges does not learn which nodes there are.
    server.query(
        "CREATE ROLE half LOGIN; GRANT SELECT ON e TO half; ALTER TABLE e ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY p ON e FOR SELECT TO half USING (s <> 1); \
         GRANT EXECUTE ON FUNCTION foreshard.note_access TO half",
    )?;
    let mut half = server.cluster.connect("postgres")?;
    half.exec("SET ROLE half")?;
    expect_code(half.exec("SELECT foreshard.note_access('g', '{1}')"), "42501");
    Ok(())
}

/// A component that somebody holds keeps nobody else's nodes from moving.
#[test]
fn a_held_component_stops_no_other_move() -> Result<()> {
    let mut server = Server::start(&options("graph-held"))?;
    server.query(
        "CREATE TABLE e1 (s int, t int); CREATE TABLE e2 (s int, t int); INSERT INTO e1 VALUES (1, 2), (11, 12), (21, 22); \
         INSERT INTO e2 VALUES (7, 8); SELECT foreshard.create_graph('g1', 'e1', 's', 't'), foreshard.create_graph('g2', 'e2', 's', 't')",
    )?;
    let mut holder = server.cluster.connect("postgres")?;
    holder.exec("BEGIN; INSERT INTO e1 VALUES (2, 3)")?;
    let to = |graph: &str, node: u32| {
        format!(
            "(SELECT min(shard) FROM foreshard.shards WHERE shard_id <> (SELECT shard_id FROM foreshard.{graph}_metagraph WHERE node = {node}))"
        )
    };
    for (graph, node) in [("g1", 1), ("g1", 11), ("g1", 21), ("g2", 7)] {
        server.query(&format!(
            "SELECT foreshard.move_nodes('{graph}', jsonb_build_object('{node}', {}))",
            to(graph, node)
        ))?;
    }
    server.wait_query("SELECT count(*) FROM foreshard.node_move WHERE state = 'waiting'", "1")?;
    holder.exec("COMMIT")?;
    server.wait_query("SELECT count(*) FROM foreshard.node_move WHERE state <> 'done'", "0")?;
    assert_checked(&mut server, "g1")?;
    assert_checked(&mut server, "g2")
}
