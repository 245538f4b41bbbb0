//! DDL and tricks around the capture trigger while a move is held half-way: the move restarts, captures
//! correctly or fails with a reason; the data is right and nothing is left behind.

mod common;

use common::ledger::{self, Ledger};
use common::{Server, options};
use foreshard_test::Result;

const ROWS: u64 = 3000;

fn start(name: &str) -> Result<(Server, Ledger)> {
    let mut server = Server::start(&options(name).set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, ROWS)?;
    server.query(
        "ALTER TABLE acc ADD extra int DEFAULT 1, ADD doomed text; CREATE INDEX acc_v ON acc (left(v, 9)); \
         SELECT foreshard.distribute('acc', 'id', 2); \
         SELECT foreshard.distribute('note', 'id', colocate_with => 'acc'); \
         CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
         CREATE TABLE other (n int PRIMARY KEY); INSERT INTO other VALUES (1)",
    )?;
    let ledger = Ledger::start(&server, ROWS, 2);
    Ok((server, ledger))
}

/// Statements that change nothing the ledger sees; none may stop or spoil a move. `@` is the leaf.
const HARMLESS: [&str; 25] = [
    "ALTER TABLE acc ADD COLUMN plus text",
    "ALTER TABLE acc ADD COLUMN plus2 float8 DEFAULT random()",
    "ALTER TABLE acc DROP COLUMN doomed",
    "CREATE INDEX acc_new ON acc (extra, id)",
    "DROP INDEX acc_v",
    "CREATE INDEX CONCURRENTLY leaf_new ON @ (extra)",
    "ALTER TABLE acc ALTER COLUMN v TYPE varchar(10000)",
    "ALTER TABLE acc ALTER COLUMN extra TYPE bigint",
    "VACUUM FULL @",
    "VACUUM (FREEZE) acc",
    "CLUSTER @ USING @_pkey",
    "REINDEX TABLE @",
    "REINDEX INDEX CONCURRENTLY @_pkey",
    "ALTER TABLE @ DISABLE TRIGGER USER",
    "BEGIN; ALTER TABLE @ DISABLE TRIGGER ALL; UPDATE @ SET extra = 99 WHERE id % 5 = 0; ALTER TABLE @ ENABLE TRIGGER ALL; COMMIT",
    "ALTER TABLE @ SET (fillfactor = 60)",
    "ALTER TABLE @ SET TABLESPACE pg_default",
    "ALTER TABLE @ RENAME TO renamed; ALTER TABLE renamed RENAME TO @",
    "ALTER TABLE acc RENAME COLUMN extra TO extra2; ALTER TABLE acc RENAME COLUMN extra2 TO extra",
    "ALTER TABLE acc ALTER COLUMN extra SET NOT NULL, ADD CHECK (extra > 0)",
    "UPDATE acc SET extra = 1 WHERE extra <> 1; ALTER TABLE acc ADD FOREIGN KEY (extra) REFERENCES other (n)",
    "CREATE TRIGGER zz AFTER UPDATE ON acc FOR EACH ROW EXECUTE FUNCTION nothing()",
    "ALTER TABLE acc ALTER COLUMN v SET STORAGE EXTERNAL; ANALYZE acc",
    "ALTER TABLE @ ALTER COLUMN v SET STATISTICS 500; ALTER TABLE @ REPLICA IDENTITY FULL",
    "SET session_replication_role = replica; UPDATE acc SET extra = 1 WHERE id % 7 = 0; RESET session_replication_role",
];

/// What a client that comes later does: each statement by itself, as psql would.
fn run(server: &Server, statements: &str, leaf: &str) -> Result<()> {
    let mut client = server.cluster.connect("postgres")?;
    let sql = statements.replace('@', leaf);
    if sql.starts_with("BEGIN") {
        client.exec(&sql)?;
        return Ok(());
    }
    for statement in sql.split("; ") {
        // Clients move rows from slot to slot; PostgreSQL says of such a row that it must be tried again.
        while let Err(error) = client.exec(statement) {
            if error.sqlstate != "40001" {
                return Err(error.into());
            }
        }
    }
    Ok(())
}

fn harmless_ddl_in(phases: &[&str], name: &str) -> Result<()> {
    let (mut server, ledger) = start(name)?;
    let slots = server.slots("acc")?;
    for (round, statements) in HARMLESS.iter().enumerate() {
        let phase = phases[round % phases.len()];
        let slot = &slots[round % 2];
        println!("{statements} in {phase}");
        let leaf = server.query(&format!(
            "SELECT partition FROM foreshard.slots WHERE slot_id = {slot} AND \"table\" = 'acc'::regclass"
        ))?;
        server.hold(Some(phase))?;
        let move_id = server.move_slot(slot)?;
        server.wait_phase(&move_id, phase)?;
        ledger.work(10)?;
        run(&server, statements, &leaf)?;
        ledger.work(10)?;
        let extra = "SELECT sum(extra * hashint8(id)::numeric) FROM acc WHERE id <= 3000";
        let before = server.query("SELECT count(*) FROM acc WHERE extra IS NULL")?;
        server.hold(None)?;
        server.wait_end(&move_id, "done")?;
        assert_eq!(server.query("SELECT count(*) FROM acc WHERE extra IS NULL")?, before);
        server.query(extra)?;
        ledger.assert_equal(&mut server)?;
        // The index that was made meanwhile lies in the default tablespace for the other slot.
        server.assert_placed(&format!("s.slot_id = {slot}"))?;
        server.assert_clean()?;
    }
    ledger.finish();
    Ok(())
}

#[test]
fn ddl_before_cutover() -> Result<()> {
    harmless_ddl_in(&["cutover"], "ddl-cutover")
}

#[test]
fn ddl_in_earlier_phases() -> Result<()> {
    harmless_ddl_in(&["copy", "catch_up", "index", "verify", "capture"], "ddl-earlier")
}

/// What was written behind the back of the capture trigger must be in the copy nevertheless, as must
/// what a TRUNCATE took away.
#[test]
fn contents_after_tricks() -> Result<()> {
    let mut server = Server::start(&options("tricks"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' FROM generate_series(1, 3000) g; \
         SELECT foreshard.distribute('t', 'id', 1)",
    )?;
    let slot = server.slots("t")?.remove(0);
    for statements in [
        "SET session_replication_role = replica; UPDATE t SET v = 'r' WHERE id % 3 = 0; DELETE FROM t WHERE id % 11 = 0; INSERT INTO t VALUES (-1, 'r')",
        "ALTER TABLE t_s0 DISABLE TRIGGER USER; UPDATE t SET v = 'u' WHERE id % 3 = 1; ALTER TABLE t_s0 ENABLE TRIGGER USER",
        "ALTER TABLE t_s0 DISABLE TRIGGER ALL; UPDATE t SET v = 'a' WHERE id % 3 = 2; ALTER TABLE t_s0 ENABLE TRIGGER ALL",
        "BEGIN; ALTER TABLE t_s0 DISABLE TRIGGER ALL; DELETE FROM t WHERE id % 13 = 0; ALTER TABLE t_s0 ENABLE TRIGGER ALL; COMMIT",
        "BEGIN; TRUNCATE t; ROLLBACK",
        "BEGIN; UPDATE t SET v = 'p' WHERE id < 100; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'",
        "BEGIN; SAVEPOINT a; UPDATE t SET v = 's'; ROLLBACK TO a; UPDATE t SET v = 's2' WHERE id = 7; COMMIT",
        "ALTER TABLE t DROP CONSTRAINT t_pkey; UPDATE t SET v = 'k' WHERE id = 1; ALTER TABLE t ADD PRIMARY KEY (id)",
        "TRUNCATE t; INSERT INTO t VALUES (1, 'one'), (2, 'two')",
        "TRUNCATE t_s0",
        "INSERT INTO t SELECT g, 'new' FROM generate_series(1, 5000) g; UPDATE t SET id = id + 100000 WHERE id > 4000",
    ] {
        for phase in ["copy", "cutover"] {
            println!("{statements} in {phase}");
            server.hold(Some(phase))?;
            let move_id = server.move_slot(&slot)?;
            server.wait_phase(&move_id, phase)?;
            let mut client = server.cluster.connect("postgres")?;
            for statement in statements.split("; ") {
                client.exec(statement)?;
            }
            let digest = "SELECT count(*), sum(hashtextextended(t::text, 0)::numeric) FROM t";
            let expected = client.query_one(digest)? + &client.exec(digest)?.to_text();
            drop(client);
            server.hold(None)?;
            server.wait_end(&move_id, "done")?;
            let found = server.query("SELECT count(*) FROM t")? + &server.query(digest)?;
            assert_eq!(found, expected, "{statements} in {phase}");
            server.assert_settled()?;
            if statements.contains("(-1") {
                server.query("DELETE FROM t WHERE id = -1")?;
            }
            if statements.starts_with("INSERT") {
                server.query("TRUNCATE t")?;
            }
        }
    }
    Ok(())
}

/// The reasons for which a move ends without moving are in the progress view; nothing is left.
#[test]
fn refusals_and_losses() -> Result<()> {
    let mut server = Server::start(&options("refusals"))?;
    server.query(
        "CREATE TABLE nokey (id bigint, v text); INSERT INTO nokey SELECT g FROM generate_series(1, 100) g; \
         SELECT foreshard.distribute('nokey', 'id', 1); \
         CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g FROM generate_series(1, 1000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let slot = server.slots("nokey")?.remove(0);
    let move_id = server.move_slot(&slot)?;
    server.wait_end(&move_id, "failed")?;
    let error = server
        .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
    assert!(error.contains("no_identity_index") && error.contains("primary key"), "{error}");
    assert!(error.contains("hint:"), "{error}");
    assert_eq!(server.query("SELECT count(*) FROM nokey")?, "100");
    server.assert_settled()?;

    let slots = server.slots("t")?;
    for (statement, phase) in [
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "copy"),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", "cutover"),
        ("DROP TABLE t", "cutover"),
    ] {
        println!("{statement} in {phase}");
        server.hold(Some(phase))?;
        let move_id = server.move_slot(&slots[0])?;
        server.wait_phase(&move_id, phase)?;
        assert_eq!(server.fails("SELECT foreshard.undistribute('t')")?.sqlstate, "55006");
        server.query(statement)?;
        server.hold(None)?;
        if statement.starts_with("DROP") {
            server.wait_query("SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
        } else {
            server.wait_end(&move_id, "failed")?;
            server.query("ALTER TABLE t ADD PRIMARY KEY (id)")?;
            assert_eq!(server.query("SELECT count(*) FROM t")?, "1000");
        }
        // The new key's index lies in the default tablespace.
        server.assert_clean()?;
    }
    Ok(())
}
