//! Launcher, keeper and carrier as processes: they come and go with the extension, give way to whoever
//! needs the database to himself, stay away from standbys and shrug off hostile settings.

mod common;

use common::ledger::{self, Ledger};
use common::standby::Standby;
use common::{PATIENCE, Server, options};
use foreshard_test::process::signal;
use foreshard_test::{Client, Result, wait_until};
use std::time::{Duration, Instant};

const KEEPERS: &str = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_stat_activity \
                       WHERE backend_type = 'foreshard keeper'";

/// A small table of a database, distributed over the two shards.
fn make_table(client: &mut Client) -> Result<()> {
    client.exec("CREATE EXTENSION foreshard")?;
    for name in common::SHARDS {
        client.exec(&format!("SELECT foreshard.add_shard('{name}', '{name}')"))?;
    }
    client.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 4000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    Ok(())
}

const ROWS_OF_T: &str = "SELECT count(*) || ':' || sum(id) || ':' || count(DISTINCT v) FROM t";

/// Files a move of slot 1 to the shard it is not on; its id.
fn file_move(client: &mut Client) -> Result<String> {
    Ok(client.query_one(
        "SELECT foreshard.move_slot(s.slot_id, h.shard_name::text) FROM foreshard.slot s, foreshard.shard h \
         WHERE h.shard_id <> s.shard_id ORDER BY s.slot_id LIMIT 1",
    )?)
}

fn wait_phase(server: &Server, database: &str, phase: &str) -> Result<()> {
    let mut seen = String::new();
    let what = format!("a move in {database} stands in {phase}");
    let reached = wait_until(&what, PATIENCE, || {
        let mut client = server.cluster.connect(database)?;
        let sql = "SELECT phase FROM foreshard.move ORDER BY move_id DESC LIMIT 1";
        seen = client.query_one(sql)?;
        Ok(seen == phase)
    });
    reached.inspect_err(|_| println!("the last move in {database} stood in {seen}"))
}

#[test]
fn keepers_come_and_go() -> Result<()> {
    let mut server = Server::start(&options("keepers").set("foreshard.bucket", "3600"))?;
    let launcher = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard launcher'";
    server.wait_query(launcher, "1")?;
    server.query("CREATE DATABASE two")?;
    let mut two = server.cluster.connect("two")?;
    two.exec("CREATE EXTENSION foreshard")?;
    let begun = Instant::now();
    server.wait_query(KEEPERS, "postgres,two")?;
    assert!(begun.elapsed() < Duration::from_secs(5), "keepers came after {:?}", begun.elapsed());

    let keeper =
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'foreshard keeper' AND datname = 'two'";
    let pid: i32 = server.query(keeper)?.parse().expect("a process id");
    signal(pid, libc::SIGTERM);
    server.wait_query(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"), "0")?;
    server.wait_query(KEEPERS, "postgres,two")?;

    reload_reaches_the_keeper(&mut server)?;

    two.exec("DROP EXTENSION foreshard")?;
    let begun = Instant::now();
    server.wait_query(KEEPERS, "postgres")?;
    assert!(begun.elapsed() < Duration::from_secs(4), "the keeper left after {:?}", begun.elapsed());
    two.exec("CREATE EXTENSION foreshard; DROP EXTENSION foreshard; CREATE EXTENSION foreshard")?;
    server.wait_query(KEEPERS, "postgres,two")?;
    // A DROP that is rolled back sends the keeper away for some seconds only.
    two.exec("BEGIN; DROP EXTENSION foreshard; ROLLBACK")?;
    server.wait_query(KEEPERS, "postgres,two")?;
    Ok(())
}

/// With an hour between readings there is one; after a reload to one second they follow each other.
fn reload_reaches_the_keeper(server: &mut Server) -> Result<()> {
    server.query(
        "CREATE TABLE r (id bigint PRIMARY KEY); INSERT INTO r SELECT generate_series(1, 100); \
         SELECT foreshard.distribute('r', 'id', 2)",
    )?;
    let readings = "SELECT count(*) > 3 FROM foreshard.heat_history WHERE resolution_s = 1";
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(server.query(readings)?, "f");
    server.set(&[("foreshard.bucket", "1")])?;
    server.wait_query(readings, "t")
}

/// Runs a statement that needs the database to itself; it must not have to wait for long.
fn at_once(client: &mut Client, sql: &str) -> Result<()> {
    let begun = Instant::now();
    client.exec(sql)?;
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(4), "{sql} took {elapsed:?}");
    Ok(())
}

#[test]
fn databases_can_be_dropped_renamed_and_copied() -> Result<()> {
    let mut server = Server::bare(&options("databases"))?;
    let dir = server.cluster.make_tablespace_dir("sc")?;
    server.query(&format!("CREATE TABLESPACE sc LOCATION '{}'", dir.display()))?;
    server.query("CREATE DATABASE one")?;
    let mut one = server.cluster.connect("one")?;
    make_table(&mut one)?;
    let rows = one.query_one(ROWS_OF_T)?;
    server.hold(Some("catch_up"))?;
    file_move(&mut one)?;
    wait_phase(&server, "one", "catch_up")?;
    drop(one);

    let mut admin = server.cluster.connect("postgres")?;
    at_once(&mut admin, "CREATE DATABASE copy TEMPLATE one")?;
    at_once(&mut admin, "ALTER DATABASE one RENAME TO uno")?;
    at_once(&mut admin, "ALTER DATABASE uno SET TABLESPACE sc")?;
    // The workers come back by themselves, in the copy as well, and the moves go on.
    server.wait_query(KEEPERS, "copy,uno")?;
    server.hold(None)?;
    for database in ["uno", "copy"] {
        wait_phase(&server, database, "done")?;
        let mut client = server.cluster.connect(database)?;
        assert_eq!(client.query_one(ROWS_OF_T)?, rows, "rows in {database}");
        let left = "SELECT count(*) FROM pg_class WHERE relname ~ '^(shadow|capture)_'";
        assert_eq!(client.query_one(left)?, "0");
    }
    server.hold(Some("copy"))?;
    file_move(&mut server.cluster.connect("uno")?)?;
    wait_phase(&server, "uno", "copy")?;
    at_once(&mut admin, "DROP DATABASE uno")?;
    at_once(&mut admin, "DROP DATABASE copy")?;
    at_once(&mut admin, "CREATE DATABASE uno")?;
    Ok(())
}

#[test]
fn drop_extension_ends_a_move() -> Result<()> {
    let mut server = Server::start(&options("dropext").set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, 4000)?;
    let distribute = "SELECT foreshard.distribute('acc', 'id', 2); \
                      SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')";
    server.query(distribute)?;
    let ledger = Ledger::start(&server, 4000, 2);
    for phase in ["copy", "catch_up", "cutover", "retire"] {
        println!("extension dropped in {phase}");
        server.hold(Some(phase))?;
        let slot = server.slots("acc")?.remove(0);
        let move_id = server.move_slot(&slot)?;
        server.wait_phase(&move_id, phase)?;
        at_once(&mut server.cluster.connect("postgres")?, "DROP EXTENSION foreshard")?;
        let workers =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ 'foreshard (keeper|carrier)'";
        server.wait_query(workers, "0")?;
        ledger.work(20)?;
        ledger.assert_equal(&mut server)?;
        let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'foreshard%'";
        assert_eq!(server.query(left)?, "0", "triggers");
        let left = "SELECT count(*) FROM pg_class WHERE relname ~ '^(shadow|capture)_' OR relrewrite <> 0";
        assert_eq!(server.query(left)?, "0", "shadows");
        server.check_storage()?;
        common::files::assert_no_orphans(&mut server)?;
        adopt_again(&mut server)?;
    }
    ledger.finish();
    Ok(())
}

/// Makes the extension anew and writes down by hand what `distribute` had: the partitions are there.
fn adopt_again(server: &mut Server) -> Result<()> {
    server.query("CREATE EXTENSION foreshard")?;
    for name in common::SHARDS {
        server.query(&format!("SELECT foreshard.add_shard('{name}', '{name}')"))?;
    }
    server.query(
        "INSERT INTO foreshard.colocation_group (key_type, slot_count) VALUES ('bigint', 2); \
         INSERT INTO foreshard.managed_table (table_oid, group_id, key_column) \
           SELECT t::regclass, 1, 'id' FROM unnest(array['acc', 'note']) t; \
         INSERT INTO foreshard.slot (group_id, modulus, remainder, shard_id) \
           SELECT 1, 2, r, (SELECT h.shard_id FROM foreshard.shard h JOIN pg_tablespace s ON s.spcname = h.tablespace_name \
                            JOIN pg_class c ON c.reltablespace = s.oid AND c.relname = 'acc_s' || r) FROM generate_series(0, 1) r; \
         INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition) \
           SELECT s.slot_id, t::regclass, (t || '_s' || s.remainder)::regclass \
           FROM foreshard.slot s, unnest(array['acc', 'note']) t",
    )?;
    Ok(())
}

#[test]
fn without_preloading_nothing_moves() -> Result<()> {
    let server = Server::bare(&options("notpreloaded").set("shared_preload_libraries", ""))?;
    let mut client = server.cluster.connect("postgres")?;
    make_table(&mut client)?;
    let notices = client.take_notices().join("\n");
    assert!(notices.contains("WARNING: foreshard is not loaded by the server"), "{notices}");
    assert!(notices.contains("shared_preload_libraries = 'foreshard'"), "{notices}");
    let error = client.exec("SELECT foreshard.move_slot(1, 'sb')").err().expect("an error");
    assert_eq!(error.sqlstate, "55000");
    assert!(error.hint.is_some_and(|hint| hint.contains("shared_preload_libraries")));
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.move")?, "0");
    // Looking works, and so does the table.
    client.exec("SELECT * FROM foreshard.slots; SELECT * FROM foreshard.progress_moves")?;
    client.exec("UPDATE t SET v = v || '!'; SELECT foreshard.undistribute('t'); DROP EXTENSION foreshard")?;
    assert_eq!(client.query_one("SELECT count(*) FROM t WHERE v LIKE '%!'")?, "4000");
    Ok(())
}

/// Settings that a database or role may have as its defaults, and that must not reach a move.
const HOSTILE: [(&str, &str); 20] = [
    ("statement_timeout", "'50ms'"),
    ("lock_timeout", "'1ms'"),
    ("idle_in_transaction_session_timeout", "'1ms'"),
    ("default_transaction_isolation", "'serializable'"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("search_path", "evil"),
    ("session_replication_role", "replica"),
    ("default_tablespace", "sb"),
    ("temp_tablespaces", "sa"),
    ("DateStyle", "'German'"),
    ("extra_float_digits", "-15"),
    ("bytea_output", "escape"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("enable_seqscan", "off"),
    ("enable_indexscan", "off"),
    ("check_function_bodies", "off"),
    ("work_mem", "'64kB'"),
];

#[test]
fn hostile_settings_do_not_matter() -> Result<()> {
    let mut server = Server::start(&options("hostile").set("foreshard.copy_chunk", "64kB"))?;
    server.query(
        "CREATE SCHEMA evil; \
         CREATE FUNCTION evil.no(bigint, bigint) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT false'; \
         CREATE OPERATOR evil.= (leftarg = bigint, rightarg = bigint, function = evil.no); \
         CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT 1/0; SELECT NULL::timestamptz'; \
         CREATE TABLE evil.pg_class (oid oid); CREATE TABLE evil.move (move_id int); \
         CREATE TABLE public.h (\"Id\" bigint, at timestamptz NOT NULL DEFAULT now(), f float8, b bytea, \"sel ect\" text, \
           PRIMARY KEY (\"Id\", f)); \
         INSERT INTO h SELECT g, now(), g / 7.0, decode(md5(g::text), 'hex'), NULL FROM generate_series(1, 9000) g; \
         CREATE INDEX ON h (at, \"sel ect\"); SELECT foreshard.distribute('h', 'Id', 2)",
    )?;
    let slot = server.slots("h")?.remove(0);
    for (name, value) in HOSTILE {
        server.query(&format!("ALTER DATABASE postgres SET {name} = {value}"))?;
        server.query(&format!("ALTER ROLE postgres SET {name} = {value}"))?;
    }
    server.cluster.restart()?;
    let mut user = server.cluster.connect("postgres")?;
    user.exec("SET default_transaction_read_only = off; SET session_replication_role = origin; SET statement_timeout = 0")?;
    user.exec("SET default_transaction_isolation = 'read committed'")?;
    let move_id = user.query_one(&format!(
        "SELECT foreshard.move_slot({slot}, h.shard_name::text) FROM foreshard.slot s, foreshard.shard h \
         WHERE s.slot_id = {slot} AND h.shard_id <> s.shard_id"
    ))?;
    user.exec("RESET default_transaction_isolation; SET lock_timeout = '10s'")?;
    let finished = format!(
        "SELECT phase FROM foreshard.move WHERE finished AND move_id OPERATOR(pg_catalog.=) {move_id}"
    );
    let mut writes = 0;
    let deadline = Instant::now() + PATIENCE;
    while user.query_one(&finished)?.is_empty() && Instant::now() < deadline {
        writes += 1;
        std::thread::sleep(Duration::from_millis(5));
        user.exec(&format!(
            "UPDATE public.h SET b = '{writes}' WHERE \"Id\" OPERATOR(pg_catalog.=) {writes}"
        ))?;
    }
    server.wait_end(&move_id, "done")?;
    let sql = format!(
        "SELECT count(*) FROM public.h WHERE b = \"Id\"::text::bytea AND \"Id\" OPERATOR(pg_catalog.<=) {writes}"
    );
    assert_eq!(user.query_one(&sql)?, writes.to_string());
    assert_eq!(user.query_one("SELECT count(*) FROM public.h")?, "9000");
    hostile_rollback(&mut server, &mut user, &slot)?;
    for (name, _) in HOSTILE {
        user.exec(&format!("ALTER DATABASE postgres RESET {name}; ALTER ROLE postgres RESET {name}"))?;
    }
    server.cluster.restart()?;
    server.assert_settled()
}

/// A move whose reads are routed, which is watched, and then undone by hand.
fn hostile_rollback(server: &mut Server, user: &mut Client, slot: &str) -> Result<()> {
    server.set(&[
        ("foreshard.rollback_window", "600"),
        ("foreshard.canary_steps", "20, 100"),
        ("foreshard.canary_dwell", "400"),
    ])?;
    user.exec("SET default_transaction_isolation = 'read committed'")?;
    let move_id = user.query_one(&format!(
        "SELECT foreshard.move_slot({slot}, h.shard_name::text) FROM foreshard.slot s, foreshard.shard h \
         WHERE s.slot_id OPERATOR(pg_catalog.=) {slot} AND h.shard_id OPERATOR(pg_catalog.<>) s.shard_id"
    ))?;
    user.exec("RESET default_transaction_isolation")?;
    // One session as it comes, one that can be routed. Both wait for a cutover, as long as that may take.
    let mut guest = server.cluster.connect("postgres")?;
    let mut reader = server.cluster.connect("postgres")?;
    for session in [&mut guest, &mut reader] {
        session.exec("SET lock_timeout = '10s'; SET statement_timeout = '10s'")?;
    }
    reader.exec("SET default_transaction_isolation = 'read committed'; SET search_path = public")?;
    let mut writes = 0;
    let mut work = |user: &mut Client| -> Result<()> {
        writes = writes % 9000 + 1;
        user.exec(&format!(
            "UPDATE public.h SET \"sel ect\" = 'w{writes}' WHERE \"Id\" OPERATOR(pg_catalog.=) {writes}"
        ))?;
        assert_eq!(guest.query_one("SELECT count(*) FROM public.h")?, "9000");
        let read = format!("SELECT \"sel ect\" FROM public.h WHERE \"Id\" = {writes}");
        assert_eq!(reader.query_one(&read)?, format!("w{writes}"));
        Ok(())
    };
    let phase = format!("SELECT phase FROM foreshard.move WHERE move_id OPERATOR(pg_catalog.=) {move_id}");
    wait_until("the move is watched", PATIENCE, || {
        work(user)?;
        Ok(user.query_one(&phase)? == "watch")
    })?;
    let canary = format!(
        "SELECT pg_catalog.string_agg(detail ->> 'weight', ' ' ORDER BY at) FROM foreshard.history \
         WHERE event = 'canary' AND detail ? 'weight' AND move_id OPERATOR(pg_catalog.=) {move_id}"
    );
    assert_eq!(server.query(&canary)?, "0.2 1.0", "steps of the canary");
    user.exec(&format!("SELECT foreshard.rollback_move({move_id})"))?;
    wait_until("the move is undone", PATIENCE, || {
        work(user)?;
        Ok(user.query_one(&phase)? == "cancelled")
    })?;
    let routed = format!("SELECT reads_routed > 0 FROM foreshard.progress_moves WHERE move_id = {move_id}");
    assert_eq!(reader.query_one(&routed)?, "t", "reads were routed");
    let wrong = "SELECT count(*) FROM public.h WHERE \"sel ect\" <> 'w' || \"Id\"";
    assert_eq!(reader.query_one(wrong)?, "0");
    assert_eq!(reader.query_one("SELECT count(\"sel ect\") FROM public.h")?, writes.to_string());
    Ok(())
}

#[test]
fn a_replica_that_is_behind_holds_up_the_copy() -> Result<()> {
    let options =
        options("lag").set("foreshard.copy_chunk", "64kB").set("foreshard.max_replica_lag", "256kB");
    let mut server = Server::start(&options)?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 4000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let slot = server.slots("t")?[0].clone();
    let mut standby = Standby::start(&server.cluster)?;
    standby.wait_replayed(&mut server)?;
    standby.connect()?.exec("SELECT pg_wal_replay_pause()")?;
    let move_id = server.move_slot(&slot)?;
    let waits = format!(
        "SELECT phase || ' ' || (waiting_for LIKE 'replica % is % behind') FROM foreshard.progress_moves WHERE move_id = {move_id}"
    );
    server.wait_query(&waits, "copy true")?;
    let blocks = format!("SELECT sum(blocks_done) FROM foreshard.move_relation WHERE move_id = {move_id}");
    let done = server.query(&blocks)?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(server.query(&blocks)?, done, "blocks copied while the replica is behind");
    standby.connect()?.exec("SELECT pg_wal_replay_resume()")?;
    server.wait_end(&move_id, "done")?;
    server.assert_settled()
}

#[test]
fn standbys_have_no_workers_until_promoted() -> Result<()> {
    let mut server = Server::start(&options("standby").set("foreshard.copy_chunk", "64kB"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, repeat(md5(g::text), 1 + g % 100) FROM generate_series(1, 4000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let slots = server.slots("t")?;
    let mut standby = Standby::start(&server.cluster)?;
    // One move is replayed to its end, another one is caught in the middle by the promotion.
    server.move_and_wait(&slots[0])?;
    server.query("UPDATE t SET v = v || '!' WHERE id <= 100")?;
    server.hold(Some("catch_up"))?;
    let move_id = server.move_slot(&slots[1])?;
    server.wait_phase(&move_id, "catch_up")?;
    server.query("UPDATE t SET v = v || '?' WHERE id > 3900")?;
    let rows = "SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM t";
    let expected = server.query(rows)?;
    standby.wait_replayed(&mut server)?;

    let mut client = standby.connect()?;
    let workers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'foreshard%'";
    assert_eq!(client.query_one("SELECT pg_is_in_recovery()")?, "t");
    assert_eq!(client.query_one(workers)?, "0");
    assert_eq!(client.query_one(rows)?, expected, "rows on the standby");
    let error = client.exec("SELECT foreshard.add_shard('sc')").err().expect("an error");
    assert_eq!(error.sqlstate, "25006", "{error}");

    server.cluster.stop(foreshard_test::StopMode::Immediate)?;
    client.exec("SELECT pg_promote()")?;
    client.exec("ALTER SYSTEM SET foreshard.hold_at_phase = ''")?;
    client.exec("SELECT pg_reload_conf()")?;
    wait_until("the move ends on the new primary", PATIENCE, || {
        let sql = format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}");
        Ok(client.query_one(&sql)? == "done")
    })?;
    assert_ne!(client.query_one(workers)?, "0");
    assert_eq!(client.query_one(rows)?, expected, "rows on the new primary");
    let left = "SELECT count(*) FROM pg_class WHERE relname ~ '^(shadow|capture)_'";
    assert_eq!(client.query_one(left)?, "0");
    Ok(())
}

/// A snapshot on a replica that is older than what was replayed keeps a cutover waiting, and is named; the replica's session
/// sees the slot as it was.
#[test]
fn snapshots_on_replicas_are_waited_for() -> Result<()> {
    let mut server = Server::start(&options("replica-snapshot"))?;
    server.query(
        "CREATE TABLE other (id int); CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 2000) g; SELECT foreshard.distribute('t', 'id', 1)",
    )?;
    let slot = server.slots("t")?[0].clone();
    let mut standby = Standby::start(&server.cluster)?;
    standby.wait_replayed(&mut server)?;
    let mut client = standby.connect()?;
    for statement in [
        "ALTER SYSTEM SET hot_standby_feedback = on",
        "ALTER SYSTEM SET wal_receiver_status_interval = '1s'",
        "SELECT pg_reload_conf()",
    ] {
        client.exec(statement)?;
    }
    server.wait_query("SELECT count(backend_xmin) FROM pg_stat_replication", "1")?;
    client.exec("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    client.exec("SELECT count(*) FROM other")?;
    server.hold(Some("catch_up"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "catch_up")?;
    server.query("UPDATE t SET v = 'new' WHERE id <= 100")?;
    server.hold(None)?;
    let waits = format!(
        "SELECT coalesce(waiting_for LIKE 'snapshot on replica%', false) FROM foreshard.progress_moves WHERE move_id = {move_id}"
    );
    server.wait_query(&waits, "t")?;
    assert_eq!(client.query_one("SELECT count(*) FROM t WHERE v = 'new'")?, "0", "rows of later");
    assert_eq!(client.query_one("SELECT count(*) FROM t")?, "2000");
    client.exec("COMMIT")?;
    server.wait_end(&move_id, "done")?;
    standby.wait_replayed(&mut server)?;
    assert_eq!(client.query_one("SELECT count(*) FROM t WHERE v = 'new'")?, "100");
    server.assert_settled()
}
