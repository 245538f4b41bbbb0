//! Graphs while others write, move nodes and alter tables; closure tables that are adopted; dumps.

mod common;

use common::closures::{assert_checked, assert_right, wrong};
use common::placed::expect_code;
use common::{Server, options};
use foreshard_test::{Result, wait_until};
use std::time::{Duration, Instant};

#[test]
fn a_graph_is_made_while_others_write_and_survives_a_dump() -> Result<()> {
    let mut server = Server::start(&options("graph-online"))?;
    server.query(
        "CREATE TABLE e (s int, t int); CREATE TABLE n (k int); INSERT INTO n VALUES (77); \
         INSERT INTO e SELECT g, g + 1 FROM generate_series(1, 20) g",
    )?;
    let mut first = server.cluster.connect("postgres")?;
    first.exec("BEGIN; INSERT INTO e VALUES (21, 22); DELETE FROM e WHERE s = 5")?;
    let mut maker = server.cluster.connect("postgres")?;
    let pid = maker.backend_pid();
    maker.send_query("SELECT foreshard.create_graph('g', 'e', 's', 't', 'n', 'k')")?;
    // The closure is there, the table is written: nobody queues behind the one who waits.
    let waits = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
    wait_until("the lock", Duration::from_secs(20), || Ok(server.query(&waits)? == "1"))?;
    let begun = Instant::now();
    server.query("SET statement_timeout = '10s'; INSERT INTO e VALUES (22, 23), (22, 23), (9, 9); INSERT INTO n VALUES (78); DELETE FROM n WHERE k = 77; DELETE FROM e WHERE s = 20")?;
    assert!(begun.elapsed() < Duration::from_secs(2), "writers wait: {:?}", begun.elapsed());
    first.exec("COMMIT")?;
    wait_until("the graph", Duration::from_secs(20), || {
        Ok(maker.poll_result(Duration::from_millis(100))?.is_some())
    })?;
    assert_right(&mut server, "g", "making it")?;
    assert_checked(&mut server, "g")?;
    let noted =
        server.query("SELECT detail->>'caught_up' FROM foreshard.history WHERE event = 'create_graph'")?;
    assert_eq!(noted, "4");
    expect_code(
        maker.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT foreshard.rebuild_graph('g')"),
        "0A000",
    );
    // Restored without any tolerance, the graph goes on, and goes with its edges.
    let dump = server.cluster.client_command("pg_dump", "postgres").output()?;
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    server.query("CREATE DATABASE restored TEMPLATE template0")?;
    let file = server.cluster.data_dir().join("dump.sql");
    std::fs::write(&file, &dump.stdout)?;
    let mut restore = server.cluster.client_command("psql", "restored");
    let output = restore.args(["-q", "-X", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut restored = server.cluster.connect("restored")?;
    restored.exec("INSERT INTO e VALUES (23, 1); DELETE FROM e WHERE s = 9; INSERT INTO n VALUES (79)")?;
    assert_eq!(restored.query_one(&wrong("g"))?, "0");
    assert_eq!(restored.exec("SELECT * FROM foreshard.check_graph('g')")?.len(), 0);
    restored.exec("DROP TABLE e; INSERT INTO n VALUES (80)")?;
    assert_eq!(
        restored.query_one("SELECT count(*) FROM pg_class WHERE relnamespace = 'foreshard'::regnamespace AND relname LIKE 'g\\_%'")?,
        "0"
    );
    Ok(())
}

#[test]
fn sessions_see_what_others_did_to_the_closure() -> Result<()> {
    let mut server = Server::start(&options("graph-parts"))?;
    server.query(
        "CREATE TABLE e (s int, t int); CREATE TABLE n (k int); INSERT INTO e VALUES (1, 2); SELECT foreshard.create_graph('g', 'e', 's', 't'); \
         SELECT foreshard.add_shard('late'); SELECT foreshard.add_shard('later'); SELECT foreshard.add_shard('latest')",
    )?;
    let (mut mover, mut writer) = (server.cluster.connect("postgres")?, server.cluster.connect("postgres")?);
    let mut old = server.cluster.connect("postgres")?;
    old.exec("INSERT INTO e VALUES (50, 51)")?;
    // A part that is made while a writer waits for the component.
    mover.exec("BEGIN; SELECT foreshard.move_node('g', '1', 'late')")?;
    let pid = writer.backend_pid();
    writer.send_query("INSERT INTO e VALUES (2, 3)")?;
    let waits =
        format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'");
    wait_until("the writer", Duration::from_secs(20), || Ok(server.query(&waits)? == "1"))?;
    mover.exec("COMMIT")?;
    wait_until("its end", Duration::from_secs(20), || {
        Ok(writer.poll_result(Duration::from_millis(50))?.is_some())
    })?;
    assert_right(&mut server, "g", "a new part")?;
    // One that is made while a move of a node waits: its rows there would be overlooked.
    mover.exec("BEGIN; SELECT foreshard.move_node('g', '1', 'latest')")?;
    writer.send_query("SELECT foreshard.move_node('g', '2', 'late')")?;
    wait_until("the other move", Duration::from_secs(20), || Ok(server.query(&waits)? == "1"))?;
    mover.exec("COMMIT")?;
    let mut outcome = None;
    wait_until("its end", Duration::from_secs(20), || {
        outcome = writer.poll_result(Duration::from_millis(50)).transpose();
        Ok(outcome.is_some())
    })?;
    let error = expect_code(outcome.unwrap_or_else(|| writer.exec("SELECT 1")), "40001");
    assert!(error.message.contains("another part") && error.hint.is_some(), "{error}");
    writer.exec("SELECT foreshard.move_node('g', '2', 'late')")?;
    assert_right(&mut server, "g", "a move made again")?;
    // One that is made while a session has an old snapshot: it writes elsewhere, and then there.
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    mover.exec("SELECT foreshard.move_node('g', '2', 'later')")?;
    old.exec("INSERT INTO e VALUES (100, 101); COMMIT; INSERT INTO e VALUES (3, 4), (4, 5), (5, 6), (1, 6)")?;
    assert_right(&mut server, "g", "an old snapshot")?;
    // What a snapshot does not see cannot be taken away.
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    writer.exec("INSERT INTO e VALUES (200, 201)")?;
    expect_code(old.exec("TRUNCATE e"), "40001");
    old.exec("ROLLBACK")?;
    // Indexes of somebody else's, and a publication of everything.
    server.query(
        "DO $$ DECLARE p regclass; BEGIN FOR p IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'foreshard.g_closure'::regclass LOOP \
             EXECUTE format('CREATE INDEX ON %s (descendant, ancestor); CREATE INDEX ON %s USING brin (depth);', p, p); \
         END LOOP; END $$; CREATE PUBLICATION p FOR ALL TABLES; SELECT foreshard.move_node('g', '3', 'late'); DROP PUBLICATION p",
    )?;
    writer.exec("DELETE FROM e WHERE s = 1 AND t = 6")?;
    server.query("SET enable_seqscan = off")?;
    assert_eq!(server.query("SELECT descendant FROM foreshard.g_closure WHERE depth = 5")?, "6");
    server.query("RESET enable_seqscan")?;
    assert_checked(&mut server, "g")?;
    assert_eq!(server.query("SELECT foreshard.rebuild_graph('g')")?, "0");
    assert_right(&mut server, "g", "a rebuild")
}

#[test]
fn a_closure_table_is_adopted() -> Result<()> {
    let mut server = Server::start(&options("graph-adopt"))?;
    server.query(
        "CREATE TABLE paths (\"Up\" bigint, down bigint, \"Depth\" smallint, PRIMARY KEY (\"Up\", down)); \
         INSERT INTO paths VALUES (1, 1, 0), (2, 2, 0), (3, 3, 0), (9, 9, 0), (1, 2, 1), (2, 3, 1), (1, 3, 2)",
    )?;
    let adopt =
        |more: &str| format!("SELECT foreshard.adopt_closure('a', 'paths', 'Up', 'down', 'Depth'{more})");
    let mut client = server.cluster.connect("postgres")?;
    client.exec(
        "UPDATE paths SET \"Depth\" = 7 WHERE \"Up\" = 1 AND down = 3; INSERT INTO paths VALUES (3, 1, 2)",
    )?;
    let error = expect_code(client.exec(&adopt("")), "23514");
    let detail = error.detail.unwrap_or_default();
    assert!(
        detail.contains("0 pairs are missing, 1 have no path, 1 have another depth")
            && detail.contains("(3, 1)"),
        "{detail}"
    );
    client.exec("DELETE FROM paths WHERE \"Up\" = 3 AND down = 1; UPDATE paths SET \"Depth\" = 2 WHERE \"Up\" = 1 AND down = 3")?;
    assert_eq!(client.query_one(&adopt(""))?, "7");
    let all = "SELECT string_agg(format('%s>%s:%s', ancestor, descendant, depth), ' ' ORDER BY ancestor, descendant) FROM foreshard.a_closure";
    assert_eq!(client.query_one(all)?, "1>1:0 1>2:1 1>3:2 2>2:0 2>3:1 3>3:0 9>9:0");
    // Who keeps the table goes on; only edges and nodes count.
    client.exec("INSERT INTO paths VALUES (3, 9, 1), (2, 9, 2), (1, 9, 3)")?;
    client.exec("DELETE FROM paths WHERE \"Depth\" > 1")?;
    client.exec("UPDATE paths SET \"Depth\" = \"Depth\" + 1 WHERE \"Up\" = 1 AND down = 2")?;
    assert_eq!(client.query_one(all)?, "1>1:0 2>2:0 2>3:1 2>9:2 3>3:0 3>9:1 9>9:0");
    client.exec(
        "UPDATE paths SET \"Depth\" = 1 WHERE \"Up\" = 1 AND down = 2; INSERT INTO paths VALUES (10, 10, 0)",
    )?;
    assert_eq!(
        client.query_one("SELECT string_agg(node::text, '>' ORDER BY step) FROM foreshard.a_path(1, 9)")?,
        "1>2>3>9"
    );
    assert_eq!(client.exec("SELECT * FROM foreshard.check_graph('a')")?.len(), 0);
    client.exec("DELETE FROM paths WHERE \"Up\" = 10; TRUNCATE paths")?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.a_closure")?, "0");
    client.exec("SELECT foreshard.drop_graph('a'); INSERT INTO paths VALUES (1, 2, 1), (2, 1, 1)")?;
    assert_eq!(client.query_one(&adopt(""))?, "4");
    Ok(())
}
