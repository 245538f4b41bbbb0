//! Slots that come home from a node while clients write: nobody has to pause, nobody gets an error that he did not get before, and
//! whoever has an older snapshot is told instead of missing rows.

mod common;

use common::PATIENCE;
use common::nodes::World;
use common::placed::expect_code;
use foreshard_test::{Client, Result, Rows, SqlError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const WRITERS: i64 = 6;
/// The first key that they write.
const FIRST: i64 = 2_000_000;
/// How long a move may take under them.
const COMES_HOME: Duration = Duration::from_secs(60);
/// Longest time for which one of them may wait: as in `nodes`.
const BOUND: Duration = Duration::from_millis(1_800);
/// Begins a transaction that keeps the snapshot it takes.
const OLD_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";

/// What a client was told.
#[derive(Default)]
struct Written {
    rows: BTreeMap<i64, String>,
    errors: Vec<String>,
    longest: Duration,
    statements: u64,
}

/// Clients that write one row after the other, without a pause.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Written>>,
}

impl Writers {
    fn start(world: &World) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let begin = |number| {
            let (conninfo, stop) = (world.here.cluster.conninfo("postgres"), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut written = Written::default();
                if let Err(error) = write(&conninfo, number, &stop, &mut written) {
                    written.errors.push(error.to_string());
                }
                written
            })
        };
        let threads = (0..WRITERS).map(begin).collect();
        Writers { stop, threads }
    }

    fn finish(self) -> Vec<Written> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("a writer panicked")).collect()
    }
}

/// Inserts, updates, and deletes every other row, until it is told to stop or a statement fails.
fn write(
    conninfo: &str,
    number: i64,
    stop: &AtomicBool,
    written: &mut Written,
) -> std::result::Result<(), SqlError> {
    let mut client = Client::connect(conninfo)?;
    for step in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (row, value) = (step / 3, format!("w{step}"));
        let id = FIRST + number + WRITERS * row;
        let (statement, value) = match step % 3 {
            0 => (format!("INSERT INTO acc VALUES ({id}, '{value}')"), Some(value)),
            2 if row % 2 == 0 => (format!("DELETE FROM acc WHERE id = {id}"), None),
            _ => (format!("UPDATE acc SET v = '{value}' WHERE id = {id}"), Some(value)),
        };
        let begun = Instant::now();
        let changed = client.exec(&statement)?.affected();
        written.longest = written.longest.max(begun.elapsed());
        written.statements += 1;
        if changed != 1 {
            written.errors.push(format!("{changed} rows by {statement}"));
        }
        match value {
            Some(value) => written.rows.insert(id, value),
            None => written.rows.remove(&id),
        };
    }
    Ok(())
}

#[test]
fn a_slot_comes_home_under_writers_that_never_pause() -> Result<()> {
    let mut world = World::with_nodes("home-writers")?;
    world.tables(2)?;
    let slot = world.here.slots("acc")?[0].clone();
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let writers = Writers::start(&world);
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    let move_id = world.move_to(&slot, "sb")?;
    world.here.wait_end(&move_id, "done")?;
    let home = begun.elapsed();
    assert_eq!(world.shard_of(&slot)?, "sb");
    // The way back of a move to a node comes home as well.
    world.here.set(&[("foreshard.rollback_window", "600")])?;
    let there = world.move_to(&slot, "on_n2")?;
    world.here.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {there}"), "watch")?;
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    world.here.query(&format!("SELECT foreshard.rollback_move({there})"))?;
    world.here.wait_end(&there, "cancelled")?;
    let back = begun.elapsed();
    assert_eq!(world.shard_of(&slot)?, "sb");
    world.here.set(&[("foreshard.rollback_window", "0")])?;
    let written = writers.finish();
    let held = world.here.query(&format!(
        "SELECT event, detail->>'held_us', detail->>'writers_held_us', detail->>'attempts' FROM foreshard.history \
         WHERE event IN ('cutover', 'rollback') AND move_id IN ({move_id}, {there}) ORDER BY 1"
    ))?;
    let longest = written.iter().map(|w| w.longest).max().unwrap_or_default();
    let statements: u64 = written.iter().map(|w| w.statements).sum();
    println!(
        "home after {home:?}, back after {back:?}; {statements} statements, the longest {longest:?}\n{held}"
    );
    let errors: Vec<&String> = written.iter().flat_map(|w| &w.errors).collect();
    assert_eq!(errors, Vec::<&String>::new());
    let mut rows = BTreeMap::new();
    written.into_iter().for_each(|w| rows.extend(w.rows));
    let expected: Vec<String> = rows.iter().map(|(id, v)| format!("{id}|{v}")).collect();
    for scan in ["enable_seqscan", "enable_indexscan"] {
        let found = world.here.query(&format!(
            "SET enable_bitmapscan = off; SET {scan} = off; SELECT id, v FROM acc WHERE id >= {FIRST} ORDER BY id"
        ))?;
        world.here.query("RESET ALL")?;
        assert!(found.lines().eq(expected.iter().map(String::as_str)), "{scan} off: {} rows", expected.len());
    }
    assert!(home < COMES_HOME && back < COMES_HOME, "{home:?} {back:?}");
    assert!(longest < BOUND, "{longest:?}");
    world.assert_nothing_left()
}

/// A slot of `acc` on node n1, whose move home waits at its cutover; two keys that it has, one of another slot, its partition's name.
fn about_to_come_home(world: &mut World) -> Result<(String, [String; 3], String)> {
    world.tables(2)?;
    let slot = world.here.slots("acc")?[0].clone();
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let leaf = world
        .here
        .query("SELECT partition FROM foreshard.remote_tables WHERE partition::text LIKE 'acc%'")?;
    let key = |of: &str, is: &str| format!("SELECT {of}(id) FROM acc WHERE tableoid {is} '{leaf}'::regclass");
    let keys = [
        world.here.query(&key("min", "="))?,
        world.here.query(&key("max", "="))?,
        world.here.query(&key("min", "<>"))?,
    ];
    world.here.hold(Some("cutover"))?;
    let move_id = world.move_to(&slot, "sa")?;
    world.here.wait_phase(&move_id, "cutover")?;
    Ok((move_id, keys, leaf))
}

/// Waits for the answer to what was sent.
fn answer(client: &mut Client) -> std::result::Result<Rows, SqlError> {
    client.poll_result(PATIENCE).map(|rows| rows.expect("it still waits"))
}

#[test]
fn older_snapshots_are_told_instead_of_missing_rows() -> Result<()> {
    let mut world = World::with_nodes("home-snapshots")?;
    let (move_id, [key, second, elsewhere], leaf) = about_to_come_home(&mut world)?;
    world.here.query(&format!(
        "CREATE FUNCTION look() RETURNS text LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT v FROM acc WHERE id = {key}); END'; \
         CREATE FUNCTION put(bigint) RETURNS text LANGUAGE plpgsql AS \
             'BEGIN INSERT INTO acc VALUES ($1, ''put''); RETURN (SELECT v FROM acc WHERE id = {key}); END'"
    ))?;
    // What is written there meanwhile comes by a replay under the carrier's lock, which waits for the node to be let go.
    world.here.set(&[("foreshard.max_lock_time", "10000")])?;
    let table = world.here.query(
        "SELECT remote_schema || '.' || remote_name FROM foreshard.remote_table WHERE table_oid = 'acc'::regclass ORDER BY remote_id DESC LIMIT 1",
    )?;
    let mut there = world.there.connect("postgres")?;
    there.exec(&format!("BEGIN; UPDATE {table} SET v = 'there' WHERE id IN ({key}, {second})"))?;
    world.here.hold(None)?;
    world.here.wait_query(
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE backend_type = 'foreshard carrier' \
           AND relation = 'acc'::regclass AND mode = 'ShareRowExclusiveLock' AND granted",
        "1",
    )?;
    let queue = |before: &str, statement: &str| -> Result<Client> {
        let mut client = world.here.cluster.connect("postgres")?;
        client.exec(before)?;
        client.send_query(statement)?;
        Ok(client)
    };
    let mut reads = queue(OLD_SNAPSHOT, "INSERT INTO acc VALUES (3000001, 'queued')")?;
    let mut copies = queue(OLD_SNAPSHOT, "INSERT INTO acc VALUES (3000002, 'queued')")?;
    let mut updates = queue("SELECT 1", &format!("UPDATE acc SET v = v || '!' WHERE id = {second}"))?;
    let mut fresh = queue("SELECT 1", "SELECT put(3000003)")?;
    let mut stale = queue("SELECT 1", "SELECT put(3000004), look()")?;
    world.here.wait_query(
        "SELECT count(*) FROM pg_locks WHERE relation = 'acc'::regclass AND mode = 'RowExclusiveLock' AND NOT granted",
        "5",
    )?;
    there.exec("COMMIT")?;
    // Nobody had to go on for that, nor got an error.
    for client in [&mut reads, &mut copies, &mut updates] {
        assert_eq!(answer(client)?.affected(), 1);
    }
    let slot = world.here.slots("acc")?[0].clone();
    assert_eq!(world.shard_of(&slot)?, "sa");
    assert_eq!(updates.query_one(&format!("SELECT v FROM acc WHERE id = {second}"))?, "there!");
    // READ COMMITTED looks anew; but what is STABLE has the snapshot of the statement around it.
    assert_eq!(answer(&mut fresh)?.get(0, 0), Some("there"));
    expect_code(answer(&mut stale), "40001");
    assert_eq!(stale.query_one("SELECT count(*) FROM acc WHERE id = 3000004")?, "0");
    // What an older snapshot has of other slots it may read.
    assert_eq!(
        reads.query_one(&format!("SELECT count(*) FROM acc WHERE id = {elsewhere} AND v LIKE 'v%'"))?,
        "1"
    );
    reads.exec(&format!("EXPLAIN SELECT v FROM acc WHERE id = {key}"))?;
    let error = expect_code(reads.exec(&format!("SELECT v FROM acc WHERE id = {key}")), "40001");
    assert!(error.message.contains(&leaf) && error.hint.is_some(), "{error}");
    expect_code(copies.exec(&format!("COPY {leaf} TO STDOUT")), "40001");
    for client in [&mut reads, &mut copies] {
        client.exec("ROLLBACK")?;
        client.exec(OLD_SNAPSHOT)?;
        assert_eq!(client.query_one(&format!("SELECT v FROM acc WHERE id = {key}"))?, "there");
        client.exec("COMMIT")?;
    }
    world.here.wait_end(&move_id, "done")?;
    world.here.query("DROP FUNCTION look(); DROP FUNCTION put(bigint)")?;
    world.assert_nothing_left()
}

/// Who waits for nothing is waited for: he gets no error, and his snapshot shows what it did.
#[test]
fn who_only_reads_is_waited_for() -> Result<()> {
    let mut world = World::with_nodes("home-readers")?;
    let (move_id, [key, ..], _) = about_to_come_home(&mut world)?;
    let mut reader = world.here.cluster.connect("postgres")?;
    reader.exec(OLD_SNAPSHOT)?;
    // Something to replay, by a transaction that this snapshot does not see.
    world.here.query(&format!("UPDATE acc SET v = 'later' WHERE id = {key}"))?;
    world.here.hold(None)?;
    world.here.wait_query(
        &format!("SELECT coalesce(waiting_for LIKE '%snapshot of pid {} %', false) FROM foreshard.move WHERE move_id = {move_id}", reader.backend_pid()),
        "t",
    )?;
    assert_eq!(reader.query_one(&format!("SELECT count(*) FROM acc WHERE id = {key}"))?, "1");
    reader.exec("COMMIT")?;
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(world.here.query(&format!("SELECT v FROM acc WHERE id = {key}"))?, "later");
    world.assert_nothing_left()
}
