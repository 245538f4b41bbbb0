//! Closures on the workers of a Citus cluster: their parts are there as on any other server, each worker a node of postgres_fdw
//! besides; the coordinator's metagraph is the directory.

mod common;

use common::citus::{World, skipped};
use common::closures::{assert_checked, assert_right};
use foreshard_test::Result;

#[test]
fn closures_have_parts_on_workers() -> Result<()> {
    if skipped("closures_have_parts_on_workers")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-graph")?;
    // What belongs to one server only is no business of Citus.
    world.here.query(
        "SET citus.enable_ddl_propagation = off; CREATE EXTENSION postgres_fdw; CREATE EXTENSION dblink; RESET citus.enable_ddl_propagation",
    )?;
    for number in 0..2 {
        let worker = &world.workers[number].cluster;
        let server = format!(
            "SET citus.enable_ddl_propagation = off; \
             CREATE SERVER w{number} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}', port '{}', dbname 'postgres', \
                 options '-c citus.enable_ddl_propagation=off'); \
             CREATE USER MAPPING FOR postgres SERVER w{number} OPTIONS (user 'postgres'); RESET citus.enable_ddl_propagation",
            worker.socket_dir().display(),
            worker.port()
        );
        world.here.query(&server)?;
        world.here.query(&format!(
            "SELECT foreshard.add_node('worker{number}', 'w{number}'), foreshard.add_shard('closures{number}', node => 'worker{number}')"
        ))?;
    }
    world.here.query(
        "SELECT foreshard.add_shard('home'); CREATE TABLE e (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, s int, t int); \
         CREATE TABLE n (k int PRIMARY KEY); \
         INSERT INTO e (s, t) SELECT g, g + 1 FROM generate_series(0, 10) g; SELECT foreshard.create_graph('g', 'e', 's', 't', 'n', 'k')",
    )?;
    world.here.query(
        "SELECT foreshard.move_nodes('g', '{\"3\": \"closures0\", \"4\": \"closures1\", \"5\": \"closures0\"}')",
    )?;
    world.here.wait_query(
        "SELECT count(*), count(*) FILTER (WHERE state = 'done') FROM foreshard.node_moves",
        "3|3",
    )?;
    assert_right(&mut world.here, "g", "moves to workers")?;
    // Edges change while nodes are there, also in a transaction that writes to tables of Citus.
    for edit in [
        "INSERT INTO e (s, t) VALUES (0, 5), (5, 3)",
        "DELETE FROM e WHERE s = 4",
        "BEGIN; UPDATE tenant SET v = v + 1 WHERE id = 7; INSERT INTO e (s, t) VALUES (11, 4); COMMIT",
        "BEGIN; UPDATE tenant SET v = v + 1 WHERE id = 7; DELETE FROM e WHERE t = 3; ROLLBACK",
    ] {
        world.here.query(edit)?;
        assert_right(&mut world.here, "g", edit)?;
    }
    assert_checked(&mut world.here, "g")?;
    assert_eq!(world.here.query("SELECT v FROM tenant WHERE id = 7")?, "1");
    // Whoever asks for the descendants of a node asks one worker.
    let plan = world.here.query(
        "EXPLAIN (ANALYZE, VERBOSE, COSTS off, TIMING off, SUMMARY off) SELECT * FROM foreshard.g_descendants(3)",
    )?;
    let asked = plan.lines().filter(|line| line.contains("Foreign Scan") && !line.contains("never executed"));
    assert_eq!(asked.count(), 1, "{plan}");
    // Citus' rebalancer and the look at its catalogs have nothing to do with those tables.
    assert_eq!(
        world.here.query(
            "SELECT count(*) FROM foreshard.check() WHERE severity = 'error' AND object NOT LIKE 'setting %'"
        )?,
        "0"
    );
    world.here.query("SELECT foreshard.drop_graph('g')")?;
    world.here.wait_query("SELECT count(*) FROM foreshard.remote_table", "0")
}
