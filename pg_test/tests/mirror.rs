//! While a move mirrors, both copies are equal after every commit, whatever the transaction did; and when
//! mirroring is not possible, the user commits all the same and the move steps back.

mod common;

use common::ledger::{self, Ledger};
use common::{Server, options};
use foreshard_test::{Client, Result, wait_until};
use std::time::Duration;

/// Columns of every kind: generated, dropped, added with a default, wide enough for toast.
const SETUP: &str = "
    CREATE TABLE t (id bigint, k text, v text, gone int, n int NOT NULL DEFAULT 0, PRIMARY KEY (id, k));
    ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
    INSERT INTO t SELECT g, 'k' || g % 7, repeat('v' || g, g % 9 * 400), g FROM generate_series(1, 3000) g;
    ALTER TABLE t DROP COLUMN gone;
    ALTER TABLE t ADD COLUMN late text DEFAULT 'late', ADD COLUMN twice int GENERATED ALWAYS AS (n * 2) STORED;
    ALTER TABLE t ADD UNIQUE (id, n) DEFERRABLE;
    CREATE INDEX t_expression ON t (lower(k), (n + 1)) WHERE n >= 0;
    CREATE INDEX t_gin ON t USING gin (to_tsvector('simple', coalesce(late, '')));
    CREATE INDEX t_brin ON t USING brin (n);
    SELECT foreshard.distribute('t', 'id', 2);
    CREATE FUNCTION risky(fails boolean) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE t SET n = n + 1000 WHERE id % 10 = 3;
        DELETE FROM t WHERE id % 10 = 4;
        IF fails THEN RAISE EXCEPTION 'on purpose'; END IF;
    EXCEPTION WHEN raise_exception THEN NULL;
    END $$;";

/// What may be done to rows in one or several transactions; `;;` ends a message.
const WORK: [(&str, &str); 20] = [
    ("insert", "INSERT INTO t SELECT g, 'new', 'x' FROM generate_series(10001, 10200) g"),
    ("update, nothing indexed", "UPDATE t SET v = v || 'y' WHERE id % 3 = 0"),
    ("update, indexed", "UPDATE t SET n = n + 1 WHERE id % 5 = 0"),
    (
        "update again and again",
        "BEGIN;; UPDATE t SET n = n + 1 WHERE id = 7;; UPDATE t SET n = n + 1 WHERE id = 7;; UPDATE t SET v = 'z' WHERE id = 7;; COMMIT",
    ),
    ("delete", "DELETE FROM t WHERE id % 11 = 0"),
    (
        "delete and insert the same key",
        "BEGIN;; DELETE FROM t WHERE id = 9;; INSERT INTO t VALUES (9, 'k2', 'back');; COMMIT",
    ),
    (
        "insert and delete again",
        "BEGIN;; INSERT INTO t VALUES (20001, 'x');; DELETE FROM t WHERE id = 20001;; COMMIT",
    ),
    ("key changes within the slot or across", "UPDATE t SET id = id + 30000, k = upper(k) WHERE id % 13 = 0"),
    (
        "keys trade places",
        "BEGIN;; SET CONSTRAINTS ALL DEFERRED;; UPDATE t SET n = CASE n WHEN 0 THEN 1 ELSE 0 END WHERE id BETWEEN 100 AND 120;; COMMIT",
    ),
    ("rolled back", "BEGIN;; UPDATE t SET v = 'never';; ROLLBACK"),
    (
        "savepoints",
        "BEGIN;; SAVEPOINT a;; UPDATE t SET v = 'a' WHERE id = 21;; SAVEPOINT b;; UPDATE t SET v = 'b' WHERE id = 22;; ROLLBACK TO b;; UPDATE t SET n = 5 WHERE id = 23;; RELEASE a;; UPDATE t SET n = 6 WHERE id = 24;; SAVEPOINT c;; DELETE FROM t WHERE id BETWEEN 25 AND 30;; ROLLBACK TO c;; COMMIT",
    ),
    ("subtransaction of a function", "SELECT risky(false), risky(true)"),
    (
        "on conflict",
        "INSERT INTO t SELECT g, 'k' || g % 7, 'conflict' FROM generate_series(1, 60) g ON CONFLICT (id, k) DO UPDATE SET v = excluded.v, n = t.n + 1",
    ),
    (
        "merge",
        "MERGE INTO t USING (SELECT g AS id FROM generate_series(200, 260) g) s ON t.id = s.id WHEN MATCHED AND t.id % 2 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = 77 WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'm')",
    ),
    (
        "repeatable read",
        "BEGIN ISOLATION LEVEL REPEATABLE READ;; SELECT count(*) FROM t;; UPDATE t SET v = 'rr' WHERE id % 17 = 0;; COMMIT",
    ),
    (
        "serializable",
        "BEGIN ISOLATION LEVEL SERIALIZABLE;; SELECT count(*) FROM t;; UPDATE t SET v = 'ssi' WHERE id % 19 = 0;; DELETE FROM t WHERE id = 2000;; COMMIT",
    ),
    (
        "two phases",
        "BEGIN;; UPDATE t SET v = 'prepared', n = 9 WHERE id % 23 = 0;; PREPARE TRANSACTION 'p';; COMMIT PREPARED 'p'",
    ),
    (
        "wide values",
        "UPDATE t SET v = repeat(md5(id::text), 300), n = n + 1 WHERE id % 29 = 0;; UPDATE t SET n = n + 1 WHERE id % 29 = 0",
    ),
    (
        "wide keys",
        "INSERT INTO t SELECT g, repeat(md5(g::text), 60), 'wide key' FROM generate_series(60001, 60100) g;; UPDATE t SET v = 'w' WHERE id > 60000",
    ),
    ("set to null", "UPDATE t SET v = NULL, late = NULL WHERE id % 31 = 0"),
];

fn run(client: &mut Client, work: &str) -> Result<()> {
    for message in work.split(";;") {
        client.exec(message)?;
    }
    Ok(())
}

/// Pairs of source and shadow of a move.
fn copies(server: &mut Server, move_id: &str) -> Result<Vec<(String, String)>> {
    let text = server.query(&format!(
        "SELECT source::regclass, shadow::regclass FROM foreshard.move_relation WHERE move_id = {move_id}"
    ))?;
    Ok(text.lines().filter_map(|line| line.split_once('|')).map(|(a, b)| (a.into(), b.into())).collect())
}

/// Both copies hold the same rows, by sequential scan and through the shadow's indexes.
fn assert_equal(server: &mut Server, move_id: &str, after: &str) -> Result<()> {
    for (source, shadow) in copies(server, move_id)? {
        let differing = server.query(&format!(
            "SELECT count(*) FROM ((TABLE {source} EXCEPT ALL TABLE {shadow}) UNION ALL (TABLE {shadow} EXCEPT ALL TABLE {source})) q"
        ))?;
        assert_eq!(differing, "0", "rows that differ after: {after}");
        let counts = |condition: &str| {
            format!(
                "SET LOCAL enable_seqscan = off; SELECT (SELECT count(*) FROM {source} WHERE {condition}) \
                 || ' ' || (SELECT count(*) FROM {shadow} WHERE {condition})"
            )
        };
        for condition in [
            "id > 0",
            "lower(k) < 'k5' AND n >= 0",
            "to_tsvector('simple', coalesce(late, '')) @@ 'late'",
            "n BETWEEN 1 AND 80",
        ] {
            let text = server.query(&counts(condition))?;
            let same = text.lines().last().and_then(|line| line.split_once(' ')).is_some_and(|(a, b)| a == b);
            assert!(same, "rows by index where {condition}, after {after}: {text}");
        }
        server.query(&format!("SELECT bt_index_check(indexrelid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND indrelid = '{shadow}'::regclass"))?;
    }
    Ok(())
}

#[test]
fn both_copies_are_equal_after_every_commit() -> Result<()> {
    let mut server = Server::start(&options("mirror").set("max_prepared_transactions", "4"))?;
    server.query(SETUP)?;
    let slot = server.slots("t")?[0].clone();
    server.hold(Some("verify"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "verify")?;
    assert_equal(&mut server, &move_id, "catch-up")?;
    let mut client = server.cluster.connect("postgres")?;
    for (name, work) in WORK {
        println!("{name}");
        run(&mut client, work)?;
        assert_equal(&mut server, &move_id, name)?;
    }
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    let way = path(&mut server, &move_id)?;
    assert!(way.ends_with("catch_up mirror verify canary cutover retire done"), "{way}");
    server.assert_settled()
}

/// After the swap the old copy is kept equal, and a rollback brings it back with all that was written since.
#[test]
fn a_move_is_rolled_back() -> Result<()> {
    let options =
        options("rollback").set("max_prepared_transactions", "4").set("foreshard.rollback_window", "600");
    let mut server = Server::start(&options)?;
    server.query(SETUP)?;
    let slot = server.slots("t")?[0].clone();
    let placed = format!("SELECT shard_id FROM foreshard.slot WHERE slot_id = {slot}");
    let before = server.query(&placed)?;
    let move_id = server.move_slot(&slot)?;
    server.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"), "watch")?;
    assert_ne!(server.query(&placed)?, before);
    // A carrier only keeps a place among the workers while there is something to do.
    wait_until("the carrier ends", Duration::from_secs(10), || Ok(server.carrier()?.is_none()))?;
    let mut client = server.cluster.connect("postgres")?;
    for (name, work) in WORK {
        println!("{name}");
        run(&mut client, work)?;
        assert_equal(&mut server, &move_id, name)?;
    }
    server.cluster.kill9_postmaster()?;
    server.cluster.start_again()?;
    client = server.cluster.connect("postgres")?;
    run(&mut client, "UPDATE t SET v = 'after the crash' WHERE id % 3 = 1")?;
    assert_equal(&mut server, &move_id, "a crash")?;
    let rows = server.query("SELECT md5(string_agg(t::text, '' ORDER BY id, k)) FROM t")?;
    assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "f");
    assert_eq!(server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?, "t");
    server.wait_end(&move_id, "cancelled")?;
    assert_eq!(server.query(&placed)?, before);
    assert_eq!(server.query("SELECT md5(string_agg(t::text, '' ORDER BY id, k)) FROM t")?, rows);
    server.check_storage()?;
    server.assert_settled()?;
    // Once the window has passed there is no way back.
    server.set(&[("foreshard.rollback_window", "1")])?;
    let move_id = server.move_slot(&slot)?;
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?, "f");
    server.assert_settled()
}

/// DDL on a moved table ends the way back, not the move.
#[test]
fn ddl_ends_the_way_back() -> Result<()> {
    let mut server = Server::start(&options("rollback-ddl").set("foreshard.rollback_window", "600"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, n int); INSERT INTO t SELECT g FROM generate_series(1, 1000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let slot = server.slots("t")?[0].clone();
    let move_id = server.move_slot(&slot)?;
    server.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"), "watch")?;
    server.query("ALTER TABLE t ADD COLUMN more text DEFAULT 'x'")?;
    server.query("UPDATE t SET n = 5, more = 'y' WHERE id < 500")?;
    // The keeper may have seen by itself that there is none.
    server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?;
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query("SELECT count(*) FROM t WHERE n = 5 AND more = 'y'")?, "499");
    // Nobody has to ask: what cannot be kept equal any more goes, long before the window ends.
    let move_id = server.move_slot(&slot)?;
    server.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"), "watch")?;
    server.query("ALTER TABLE t ADD COLUMN most text DEFAULT 'z'")?;
    server.wait_end(&move_id, "done")?;
    let why = format!(
        "SELECT last_error LIKE 'there is no way back%' FROM foreshard.move WHERE move_id = {move_id}"
    );
    assert_eq!(server.query(&why)?, "t");
    server.assert_settled()
}

/// One transaction that changes more of a slot than can be remembered, and then something of another slot: neither copy
/// is read any more when it has committed.
#[test]
fn a_transaction_too_large_to_mirror_closes_all_its_routes() -> Result<()> {
    let mut server = Server::start(&options("mirror-large").set("foreshard.max_concurrent_moves", "2"))?;
    server.query(
        "CREATE TABLE big (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0); \
         INSERT INTO big SELECT g FROM generate_series(1, 900000) g; SELECT foreshard.distribute('big', 'id', 2)",
    )?;
    server.hold(Some("verify"))?;
    let slots = server.slots("big")?;
    for slot in &slots {
        let move_id = server.move_slot(slot)?;
        server.query(&format!("SELECT foreshard.set_route_weight({move_id}, 1)"))?;
    }
    server.hold(None)?;
    let routed =
        "SELECT string_agg(phase || weight, ' ') FROM foreshard.progress_moves WHERE finished_at IS NULL";
    server.wait_query(routed, "canary1 canary1")?;
    let mut client = server.cluster.connect("postgres")?;
    let key_of = |slot: &str| {
        format!(
            "SELECT min(id) FROM big WHERE tableoid = (SELECT partition FROM foreshard.slots WHERE slot_id = {slot})"
        )
    };
    let second = client.query_one(&key_of(&slots[1]))?;
    let read = format!("SELECT n FROM big WHERE id = {second}");
    assert_eq!(client.query_one(&read)?, "0");
    let all_of_first = format!(
        "UPDATE big SET n = 7 WHERE tableoid = (SELECT partition FROM foreshard.slots WHERE slot_id = {})",
        slots[0]
    );
    client.exec(&format!("BEGIN; {all_of_first}; UPDATE big SET n = 8 WHERE id = {second}; COMMIT"))?;
    assert_eq!(client.query_one(&read)?, "8", "what a copy does not have is not read from it");
    server.query("SELECT foreshard.set_route_weight(move_id, NULL) FROM foreshard.move")?;
    server.wait_query("SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    assert_eq!(client.query_one(&read)?, "8");
    server.assert_settled()
}

/// What a long copy leaves in the logs is gone before anybody looks through them with writers waiting, also where there are
/// always some: they hold a lock on the log, so that it cannot be emptied at once.
#[test]
fn long_logs_are_short_again_before_writers_wait() -> Result<()> {
    let mut server = Server::start(&options("mirror-log").set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, 16_000)?;
    server.query("SELECT foreshard.distribute('acc', 'id', 2)")?;
    let slot = server.slots("acc")?[0].clone();
    server.hold(Some("copy"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "copy")?;
    for _ in 0..24 {
        server.query("UPDATE acc SET v = v")?;
    }
    let ledger = Ledger::start(&server, 16_000, 4);
    let bytes = format!(
        "SELECT sum(pg_relation_size(capture_log)) FROM foreshard.move_relation WHERE move_id = {move_id}"
    );
    let long: u64 = server.query(&bytes)?.parse().unwrap_or(0);
    server.hold(Some("mirror"))?;
    server.wait_phase(&move_id, "mirror")?;
    let short: u64 = server.query(&bytes)?.parse().unwrap_or(u64::MAX);
    println!("{long} bytes of log while it was copied, {short} before writers wait");
    assert!(long > 6_000_000, "{long} bytes");
    // Where there are always writers the file may have kept its length; its pages are empty then.
    if short > 1_000_000 {
        let vacuumed =
            "SELECT bool_and(pg_stat_get_vacuum_count(capture_log) > 0) FROM foreshard.move_relation";
        server.wait_query(vacuumed, "t")?;
    }
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    ledger.assert_equal(&mut server)?;
    ledger.finish();
    server.assert_settled()
}

/// The path of a move through its phases.
fn path(server: &mut Server, move_id: &str) -> Result<String> {
    server.query(&format!(
        "SELECT string_agg(detail ->> 'to', ' ' ORDER BY event_id) FROM foreshard.history WHERE event = 'phase' AND move_id = {move_id}"
    ))
}

#[test]
fn who_cannot_mirror_commits_all_the_same() -> Result<()> {
    let mut server = Server::start(&options("mirror-back"))?;
    server.query(
        "CREATE TABLE big (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0); \
         INSERT INTO big SELECT g FROM generate_series(1, 900000) g; SELECT foreshard.distribute('big', 'id', 2)",
    )?;
    let slot = server.slots("big")?[0].clone();
    server.hold(Some("verify"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "verify")?;
    let mut client = server.cluster.connect("postgres")?;
    // An error in the shadow alone.
    client.exec("UPDATE big SET n = 1 WHERE id < 2000")?;
    let kind = |from: char, to: char| {
        format!(
            "UPDATE pg_class SET relkind = '{to}' WHERE relkind = '{from}' AND oid = \
               (SELECT shadow_index FROM foreshard.move_index WHERE move_id = {move_id} LIMIT 1)"
        )
    };
    server.query(&kind('i', 'S'))?;
    client.exec("UPDATE big SET n = 2 WHERE id < 1000")?;
    server.query(&kind('S', 'i'))?;
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    let way = path(&mut server, &move_id)?;
    assert!(way.contains("verify catch_up"), "{way}");
    assert_eq!(server.query("SELECT sum(n) FROM big")?, (999 * 2 + 1000).to_string());
    // More keys than are remembered.
    server.hold(Some("cutover"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "cutover")?;
    client.exec("BEGIN; UPDATE big SET n = 3; SAVEPOINT a; UPDATE big SET n = 4; ROLLBACK TO a; COMMIT")?;
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    let way = path(&mut server, &move_id)?;
    assert!(way.contains("cutover catch_up"), "{way}");
    assert_eq!(server.query("SELECT count(*) FROM big WHERE n = 3")?, "900000");
    wait_until("nothing is left", Duration::from_secs(20), || Ok(server.assert_settled().is_ok()))
}

/// A paused move keeps what it has and what is written, and goes on where it was.
#[test]
fn a_move_is_paused() -> Result<()> {
    let mut server = Server::start(&options("pause").set("foreshard.copy_rate", "2000"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, repeat('v', 200) FROM generate_series(1, 60000) g; SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let slot = server.slots("t")?[0].clone();
    let move_id = server.move_slot(&slot)?;
    let done = format!(
        "SELECT coalesce(sum(blocks_done), 0) FROM foreshard.move_relation WHERE move_id = {move_id}"
    );
    wait_until("something is copied", Duration::from_secs(20), || Ok(server.query(&done)? != "0"))?;
    assert_eq!(server.query(&format!("SELECT foreshard.pause_move({move_id})"))?, "t");
    wait_until("the carrier ends", Duration::from_secs(20), || Ok(server.carrier()?.is_none()))?;
    let blocks = server.query(&done)?;
    server.query("UPDATE t SET v = 'while paused' WHERE id % 2 = 0")?;
    let state = format!("SELECT phase, state FROM foreshard.progress_moves WHERE move_id = {move_id}");
    assert_eq!(server.query(&state)?, "copy|paused");
    assert_eq!(server.query(&format!("SELECT foreshard.pause_move({move_id})"))?, "f", "paused already");
    server.set(&[("foreshard.copy_rate", "0")])?;
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(server.query(&done)?, blocks);
    assert_eq!(server.query(&format!("SELECT foreshard.resume_move({move_id})"))?, "t");
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query("SELECT count(*) FROM t WHERE v = 'while paused'")?, "30000");
    // A paused move can be cancelled.
    server.set(&[("foreshard.copy_rate", "2000")])?;
    let move_id = server.move_slot(&slot)?;
    assert_eq!(server.query(&format!("SELECT foreshard.pause_move({move_id})"))?, "t");
    assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    server.wait_end(&move_id, "cancelled")?;
    server.assert_settled()
}
