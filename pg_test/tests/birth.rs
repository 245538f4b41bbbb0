//! Keys at birth among other sessions: never twice whatever crashes, never waited for, even, restorable.

mod support;

use foreshard_test::install::run;
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, SqlError};
use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use support::{Random, cluster, database, expect_error, move_away, wait_for, wait_for_move};

/// Sessions that draw keys at the same time.
const SESSIONS: u64 = 8;

fn keys_of(rows: &foreshard_test::Rows) -> Vec<i64> {
    (0..rows.len()).filter_map(|row| rows.get(row, 0)?.parse().ok()).collect()
}

/// One session's work: keys from SELECT, from the default, in transactions that end in every way.
fn draw_some(c: &mut Client, random: &mut Random, drawn: &mut Vec<i64>) -> std::result::Result<(), SqlError> {
    let insert = "INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 20) RETURNING id";
    match random.below(5) {
        0 => drawn.extend(keys_of(&c.exec("SELECT foreshard.next_key('t', NULL::bigint)")?)),
        1 => {
            let near = random.below(1000);
            let sql = format!("SELECT foreshard.next_key('t', {near}, 0.1) FROM generate_series(1, 300)");
            drawn.extend(keys_of(&c.exec(&sql)?));
        }
        2 => drawn.extend(keys_of(&c.exec(insert)?)),
        3 => {
            c.exec("BEGIN; SAVEPOINT a")?;
            drawn.extend(keys_of(&c.exec(insert)?));
            c.exec("ROLLBACK TO a; SAVEPOINT b")?;
            drawn.extend(keys_of(&c.exec(insert)?));
            c.exec("RELEASE b")?;
            drawn.extend(keys_of(&c.exec(insert)?));
            c.exec("COMMIT")?;
        }
        _ => {
            c.exec("BEGIN")?;
            drawn.extend(keys_of(&c.exec(insert)?));
            let _ = c.exec("SELECT 1 / 0");
            c.exec("ROLLBACK")?;
        }
    }
    Ok(())
}

/// Draws until told to stop; comes back after every lost connection. What went wrong beside that, if anything.
fn session(conninfo: &str, seed: u64, stop: &AtomicBool, all: &Mutex<Vec<i64>>) -> Option<String> {
    let mut random = Random(seed);
    let mut drawn = Vec::new();
    let mut wrong = None;
    while !stop.load(Ordering::Relaxed) && wrong.is_none() {
        let Ok(mut c) = Client::connect(conninfo) else {
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            // A machine with two cores has other things to do, such as the move.
            thread::sleep(Duration::from_millis(2));
            match draw_some(&mut c, &mut random, &mut drawn) {
                Ok(()) => {}
                Err(error) if error.is_connection_loss() || error.sqlstate.starts_with("57P") => break,
                Err(error) => {
                    wrong = Some(error.to_string());
                    break;
                }
            }
        }
    }
    if let Ok(mut all) = all.lock() {
        all.append(&mut drawn);
    }
    wrong
}

/// Kills a backend, then the postmaster, and moves a slot, all while keys are drawn. The move's id.
fn disturb(cluster: &mut Cluster) -> Result<String> {
    let pause = || thread::sleep(Duration::from_millis(1200));
    pause();
    let mut c = cluster.connect("d")?;
    let slot = c.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    let move_id = move_away(&mut c, &slot)?;
    pause();
    let victim = c.query_one(
        "SELECT min(pid) FROM pg_stat_activity WHERE datname = 'd' AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
    )?;
    cluster.kill9(victim.parse().map_err(|_| Error::new("There was no session to kill.", ""))?)?;
    cluster.wait_ready(Duration::from_secs(60))?;
    pause();
    cluster.kill9_postmaster()?;
    cluster.start_again()?;
    pause();
    Ok(move_id)
}

#[test]
fn no_key_is_drawn_twice_whatever_crashes() -> Result<()> {
    // Commits do not wait for the disk: what was drawn must be safe without them.
    let mut cluster = cluster(
        &ClusterOptions::new("twice").set("synchronous_commit", "off").set("wal_writer_delay", "10s"),
    )?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); SELECT foreshard.distribute('t', 'id', 8); \
         ALTER TABLE t ALTER id SET DEFAULT foreshard.next_key('t', NULL::bigint)",
    )?;
    let conninfo = cluster.conninfo("d");
    let (stop, all) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let (disturbed, wrong) = thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|seed| {
                scope.spawn({
                    let (c, s, a) = (&conninfo, &stop, &all);
                    move || session(c, seed, s, a)
                })
            })
            .collect();
        let disturbed = disturb(&mut cluster);
        stop.store(true, Ordering::Relaxed);
        let wrong: Vec<String> = sessions
            .into_iter()
            .filter_map(|s| s.join().unwrap_or_else(|_| Some("panic".to_string())))
            .collect();
        (disturbed, wrong)
    });
    let move_id = disturbed?;
    assert_eq!(wrong, Vec::<String>::new());
    let drawn = all.into_inner().map_err(|_| Error::new("A session panicked.", ""))?;
    let distinct: HashSet<i64> = drawn.iter().copied().collect();
    println!("{} keys", drawn.len());
    assert!(drawn.len() > 20_000, "only {} keys were drawn", drawn.len());
    assert_eq!(distinct.len(), drawn.len(), "keys drawn twice");
    let mut c = cluster.connect("d")?;
    let after =
        keys_of(&c.exec("SELECT foreshard.next_key('t', NULL::bigint) FROM generate_series(1, 10000)")?);
    assert!(after.iter().all(|key| !distinct.contains(key)));
    wait_for_move(&mut c, &move_id, "done")
}

/// Even a key that was only looked at, in a transaction that never ended, does not come back.
#[test]
fn a_key_outlives_the_crash_that_follows_at_once() -> Result<()> {
    let options =
        ClusterOptions::new("at_once").set("synchronous_commit", "off").set("wal_writer_delay", "10s");
    let mut cluster = cluster(&options)?;
    let mut c = database(&cluster, "d")?;
    c.exec("CREATE TABLE t (id bigint PRIMARY KEY); SELECT foreshard.distribute('t', 'id', 8)")?;
    c.exec("CHECKPOINT")?;
    c.exec("BEGIN")?;
    let draw = "SELECT foreshard.next_key('t', 1)";
    let first = c.query_one(draw)?;
    cluster.kill9_postmaster()?;
    cluster.start_again()?;
    let second = cluster.connect("d")?.query_one(draw)?;
    assert_ne!(first, second);
    Ok(())
}

#[test]
fn nobody_waits_for_a_key() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("waits"))?;
    let mut a = database(&cluster, "d")?;
    let mut b = cluster.connect("d")?;
    a.exec("CREATE TABLE t (id bigint PRIMARY KEY, v text); SELECT foreshard.distribute('t', 'id', 8)")?;
    a.exec("BEGIN; SELECT count(foreshard.next_key('t', 1)) FROM generate_series(1, 20000)")?;
    let locks = a.exec(
        "SELECT locktype, relation::regclass, mode FROM pg_locks WHERE pid = pg_backend_pid() \
         AND (locktype NOT IN ('relation', 'virtualxid') OR mode NOT IN ('AccessShareLock', 'ExclusiveLock')) ORDER BY 1, 2",
    )?;
    // nextval() itself keeps these: its own transaction id, and what only DDL on the sequence waits for.
    assert_eq!(locks.to_text(), "relation|t_id_foreshard_seq|RowExclusiveLock\ntransactionid||ExclusiveLock");
    b.exec(
        "SET lock_timeout = '1s'; SELECT count(foreshard.next_key('t', 1)) FROM generate_series(1, 20000)",
    )?;
    a.exec("ROLLBACK")?;
    Ok(())
}

#[test]
fn keys_are_spread_as_capacities_say() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("spread").set("foreshard.bucket", "3600s"))?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY); SELECT foreshard.distribute('t', 'id', 32); \
         ALTER TABLE t ALTER id SET DEFAULT foreshard.next_key('t', NULL::bigint); CREATE TABLE u (id uuid PRIMARY KEY); \
         SELECT foreshard.distribute('u', 'id', 32)",
    )?;
    c.exec("INSERT INTO t SELECT FROM generate_series(1, 100000)")?;
    c.exec("INSERT INTO u SELECT foreshard.next_key('u', NULL::uuid) FROM generate_series(1, 100000)")?;
    for table in ["t", "u"] {
        // Shards have equal capacities: an equal part each, and within a shard an equal part for each slot.
        let counts = format!(
            "SELECT shard, count(*) AS n FROM {table} JOIN foreshard.slots ON partition = {table}.tableoid"
        );
        let off = c.exec(&format!(
            "SELECT shard, n FROM ({counts} GROUP BY 1) q WHERE n NOT BETWEEN 33000 AND 33700"
        ))?;
        assert!(off.is_empty(), "{table}:\n{}", off.to_text());
        let uneven = c.exec(&format!(
            "SELECT shard, min(n), max(n) FROM ({counts} GROUP BY 1, slot_id) q GROUP BY 1 HAVING max(n) > min(n) * 1.05"
        ))?;
        assert!(uneven.is_empty(), "{table}:\n{}", uneven.to_text());
    }
    let timing = c.query_one(
        "SELECT extract(epoch FROM clock_timestamp() - t0) * 1e6 / n FROM (SELECT clock_timestamp() AS t0 OFFSET 0) s, \
         LATERAL (SELECT count(foreshard.next_key('t', NULL::bigint)) AS n FROM generate_series(1, 200000) WHERE t0 IS NOT NULL) q",
    )?;
    println!("{timing} us a key");
    what_was_placed_is_not_forgotten(&cluster, &mut c)
}

/// What was placed counts until a reading has seen it, whatever else is told to backends meanwhile.
fn what_was_placed_is_not_forgotten(cluster: &Cluster, c: &mut Client) -> Result<()> {
    let heavy =
        c.query_one("SELECT foreshard.get_shard_location('t', foreshard.next_key('t', NULL::bigint, 1e8))")?;
    let there = format!(
        "SELECT count(*) FROM (SELECT foreshard.next_key('t', NULL::bigint) AS k FROM generate_series(1, 100)) q \
         WHERE foreshard.get_shard_location('t', k) = '{heavy}'"
    );
    assert_eq!(cluster.connect("d")?.query_one(&there)?, "0", "other sessions know what was placed");
    c.exec("SELECT foreshard.configure('u', 'observe', 'off')")?;
    let seen = "SELECT count(*) FROM foreshard.table_setting WHERE setting = 'observe'";
    assert_eq!(c.query_one(seen)?, "1");
    // The keeper looks once a second.
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!(cluster.connect("d")?.query_one(&there)?, "0", "it was forgotten because of another table");
    Ok(())
}

#[test]
fn a_draining_shard_takes_no_keys() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("draining"))?;
    let mut c = database(&cluster, "d")?;
    c.exec("CREATE TABLE t (id bigint PRIMARY KEY); SELECT foreshard.distribute('t', 'id', 12)")?;
    c.exec("UPDATE foreshard.shard SET draining = true WHERE shard_name = 'a'")?;
    let shards = "SELECT string_agg(DISTINCT foreshard.get_shard_location('t', k), ',') FROM \
        (SELECT foreshard.next_key('t', n) AS k FROM generate_series(1, 200) n) q";
    assert_eq!(c.query_one(shards)?, "b,c", "a draining shard takes no keys");
    c.exec("UPDATE foreshard.shard SET draining = shard_name <> 'a'")?;
    // The session reads the catalog again by and by.
    wait_for(&mut c, shards, "a")?;
    Ok(())
}

#[test]
fn a_restored_table_goes_on() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("restore"))?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); SELECT foreshard.distribute('t', 'id', 4); \
         ALTER TABLE t ALTER id SET DEFAULT foreshard.next_key('t', NULL::bigint); \
         CREATE TABLE u (id bigint DEFAULT foreshard.next_key('t', 7, near_table => 't') PRIMARY KEY, t_id bigint REFERENCES t); \
         INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 30000)",
    )?;
    let dump = run(&mut cluster.client_command("pg_dump", "d"))?;
    let file = cluster.log_path().with_file_name("dump.sql");
    std::fs::write(&file, &dump.stdout)?;
    cluster.install().user.give(&file)?;
    c.exec("CREATE DATABASE r TEMPLATE template0")?;
    run(cluster.client_command("psql", "r").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file))?;
    let mut r = cluster.connect("r")?;
    for sql in [
        "SELECT last_value, is_called FROM t_id_foreshard_seq",
        "SELECT key_sequence, table_oid FROM foreshard.managed_table",
        "SELECT pg_get_serial_sequence('t', 'id'), obj_description('t_id_foreshard_seq'::regclass)",
        "SELECT adrelid::regclass, pg_get_expr(adbin, adrelid) FROM pg_attrdef ORDER BY 1::text",
    ] {
        assert_eq!(c.exec(sql)?.to_text(), r.exec(sql)?.to_text(), "{sql}");
    }
    r.exec("INSERT INTO t (v) SELECT 'y' FROM generate_series(1, 20000); INSERT INTO u (t_id) SELECT min(id) FROM t")?;
    assert_eq!(
        r.query_one("SELECT bool_and(y.id > (SELECT max(id) FROM t WHERE v = 'x')) FROM t y WHERE v = 'y'")?,
        "t"
    );
    r.exec("DROP TABLE u; DROP TABLE t")?;
    assert_eq!(r.query_one("SELECT count(*) FROM pg_class WHERE relname LIKE '%foreshard_seq'")?, "0");
    Ok(())
}

#[test]
fn without_the_library_it_says_so() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::new("bare").set("shared_preload_libraries", ""))?;
    let mut c = cluster.connect("postgres")?;
    c.exec(
        "CREATE EXTENSION foreshard; SELECT foreshard.add_shard('a'); CREATE TABLE t (id bigint PRIMARY KEY); \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let error = expect_error(&mut c, "55000", "SELECT foreshard.next_key('t', 1)")?;
    assert!(error.to_string().contains("shared_preload_libraries = 'foreshard'"), "{error}");
    Ok(())
}

/// What a session has in stock is of the sequence as it was: a restart, and the ROLLBACK of one, makes it worthless.
#[test]
fn a_restarted_sequence_gives_no_key_twice() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("birth-restart"))?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, v int); SELECT foreshard.distribute('t', 'id', 8); \
         ALTER TABLE t ALTER id SET DEFAULT foreshard.next_key('t', NULL::bigint)",
    )?;
    let mut other = cluster.connect("d")?;
    let insert = |c: &mut Client, rows: u32| {
        c.exec(&format!("INSERT INTO t (v) SELECT 1 FROM generate_series(1, {rows})")).map(drop)
    };
    insert(&mut c, 100)?;
    insert(&mut other, 100)?;
    c.exec("TRUNCATE t RESTART IDENTITY")?;
    // More than what is left of the block that was begun before.
    insert(&mut c, 20_000)?;
    insert(&mut other, 20_000)?;
    // Keys of the new sequence, which goes away again; the old one gives the same.
    c.exec("BEGIN; TRUNCATE t RESTART IDENTITY")?;
    insert(&mut c, 20_000)?;
    c.exec("ROLLBACK")?;
    insert(&mut c, 20_000)?;
    insert(&mut other, 20_000)?;
    c.exec("BEGIN; SAVEPOINT a; TRUNCATE t RESTART IDENTITY")?;
    insert(&mut c, 100)?;
    c.exec("ROLLBACK TO a")?;
    insert(&mut c, 20_000)?;
    c.exec("COMMIT")?;
    assert_eq!(c.query_one("SELECT count(*) FROM t")?, "100000");
    Ok(())
}
