//! What `foreshard.stat_triggers` says of triggers against what is known of them by other means
//! (`common/truth.rs` says which): CPU, elapsed time, WAL, blocks, memory, nesting and failures.

mod common;

use common::known::{insert_all, insert_each, known_server, managed_table, table_with};
use common::profile::{self, Profile, settled, wait_calls, warm_up};
use common::truth::{assert_near, blocks_of, cpu_us_of, function_times, memory_bytes, wal_bytes_of};
use common::{PATIENCE, Server};
use foreshard_test::{Client, Error, Result, wait_until};

/// A table of 300 pages with one row each, and room for another version of it.
const WIDE: &str = "CREATE TABLE wide (id int, n int, filler char(4000) NOT NULL) WITH (fillfactor = 40); \
    ALTER TABLE wide ALTER filler SET STORAGE PLAIN; \
    INSERT INTO wide SELECT g, 0, '' FROM generate_series(1, 300) g";
/// Keys of warm-ups begin here, those of measurements at 1.
const WARM: u64 = 1_000_000;

/// Inserts rows into tables one by one until the triggers of all are watched and measured.
fn warm(server: &mut Server, client: &mut Client, tables: &[&str]) -> Result<Vec<Profile>> {
    warm_nested(server, client, tables, tables)
}

/// As [`warm`], where the triggers of some tables also reach others.
fn warm_nested(
    server: &mut Server,
    client: &mut Client,
    tables: &[&str],
    reached: &[&str],
) -> Result<Vec<Profile>> {
    let names: Vec<_> = reached.iter().map(|table| (*table, *table, "INSERT")).collect();
    let mut next = WARM;
    warm_up(server, &names, || {
        for table in tables {
            insert_each(client, table, next, 1)?;
        }
        next += 1;
        Ok(())
    })
}

/// What a row's insert costs around its trigger, µs of CPU.
struct Idle {
    /// All of an insert whose trigger does nothing, by the kernel.
    spent_us: f64,
    /// Of that, what foreshard says that trigger takes.
    trigger_us: f64,
}

impl Idle {
    /// Measures it.
    fn measure(server: &mut Server, client: &mut Client) -> Result<Idle> {
        table_with(server, "idle", "known_burn", "'0'")?;
        let before = warm(server, client, &["idle"])?[0];
        let rows = 500;
        let spent = cpu_us_of(client, |client| insert_all(client, "idle", 1, rows))?;
        let since = wait_calls(server, ("idle", "idle", "INSERT"), before, rows)?;
        let idle = Idle { spent_us: spent / rows as f64, trigger_us: since.mean(|p| p.cpu_us) };
        println!(
            "a row's insert takes {:.1} µs, {:.1} of them its idle trigger",
            idle.spent_us, idle.trigger_us
        );
        Ok(idle)
    }

    /// What a trigger takes per call, when so many inserts took so long.
    fn trigger_us(&self, spent_us: f64, rows: u64) -> f64 {
        spent_us / rows as f64 - self.spent_us + self.trigger_us
    }
}

#[test]
fn cpu_and_elapsed_time_are_true() -> Result<()> {
    let mut server = known_server("known-cpu")?;
    let mut client = server.cluster.connect("postgres")?;
    let idle = Idle::measure(&mut server, &mut client)?;
    // From a hundred µs to ten ms a call.
    for (table, rounds, calls) in [("small", "3000", 600), ("middle", "30000", 150), ("large", "300000", 30)]
    {
        table_with(&mut server, table, "known_burn", &format!("'{rounds}'"))?;
        let before = warm(&mut server, &mut client, &[table])?[0];
        let times_before = function_times(&mut server, &mut client, "known_burn")?;
        let spent_us = cpu_us_of(&mut client, |client| insert_all(client, table, 1, calls))?;
        let times = function_times(&mut server, &mut client, "known_burn")?.since(times_before);
        let since = wait_calls(&mut server, (table, table, "INSERT"), before, calls)?;
        assert_eq!((since.sampled, since.failed, times.calls), (since.calls, 0.0, since.calls), "{since:?}");
        let truth = idle.trigger_us(spent_us, calls);
        assert_near(&format!("CPU of {table}, µs"), since.mean(|p| p.cpu_us), truth, 0.05, 10.0);
        // PostgreSQL's span is the longer one: it has the reading of the clocks in it, and now and then
        // another process' turn.
        let elapsed = since.mean(|p| p.elapsed_us);
        assert_near(&format!("elapsed of {table}, µs"), elapsed, times.self_us / times.calls, 0.03, 40.0);
        assert_near("with nested triggers", since.cpu_us_inclusive, since.cpu_us, 0.001, 1.0);
    }
    Ok(())
}

#[test]
fn a_renamed_trigger_is_counted_under_its_new_name() -> Result<()> {
    let mut server = known_server("known-renamed")?;
    let mut client = server.cluster.connect("postgres")?;
    table_with(&mut server, "former", "known_burn", "'0'")?;
    warm(&mut server, &mut client, &["former"])?;
    // The session that renames it has called it, too: what it remembers of the trigger no longer holds.
    client.exec("ALTER TRIGGER former ON former RENAME TO latter")?;
    insert_each(&mut client, "former", 1, 40)?;
    wait_calls(&mut server, ("former", "latter", "INSERT"), Profile::default(), 40)?;
    Ok(())
}

#[test]
fn sleeping_is_no_cpu() -> Result<()> {
    let mut server = known_server("known-sleep")?;
    let mut client = server.cluster.connect("postgres")?;
    table_with(&mut server, "sleeper", "known_sleep", "'0.02'")?;
    let before = warm(&mut server, &mut client, &["sleeper"])?[0];
    let times_before = function_times(&mut server, &mut client, "known_sleep")?;
    insert_each(&mut client, "sleeper", 1, 40)?;
    let times = function_times(&mut server, &mut client, "known_sleep")?.since(times_before);
    let since = wait_calls(&mut server, ("sleeper", "sleeper", "INSERT"), before, 40)?;
    assert_near("elapsed, µs", since.mean(|p| p.elapsed_us), times.self_us / times.calls, 0.01, 0.0);
    let (cpu, elapsed) = (since.mean(|p| p.cpu_us), since.mean(|p| p.elapsed_us));
    assert!(elapsed >= 20_000.0 && cpu < 1_000.0, "elapsed {elapsed} µs, CPU {cpu} µs");
    Ok(())
}

#[test]
fn samples_stand_for_all_calls() -> Result<()> {
    let mut server = known_server("known-samples")?;
    let mut client = server.cluster.connect("postgres")?;
    let idle = Idle::measure(&mut server, &mut client)?;
    table_with(&mut server, "often", "known_burn", "'10000'")?;
    let before = warm(&mut server, &mut client, &["often"])?[0];
    client.exec("SET foreshard.trigger_sample_interval = 16")?;
    // Long enough that one call during which the machine was elsewhere, were it drawn, moves the mean by
    // a few percent only: such a call stands for sixteen.
    let calls = 16_000;
    let spent_us = cpu_us_of(&mut client, |client| insert_all(client, "often", 1, calls))?;
    // Every call is counted; one in sixteen is measured, and those say what all of them cost.
    let since = wait_calls(&mut server, ("often", "often", "INSERT"), before, calls)?;
    assert!((800.0..=1_350.0).contains(&since.sampled), "of {calls} calls, {} were measured", since.sampled);
    assert_near("CPU, µs", since.mean(|p| p.cpu_us), idle.trigger_us(spent_us, calls), 0.1, 10.0);
    Ok(())
}

#[test]
fn wal_is_true() -> Result<()> {
    let mut server = known_server("known-wal")?;
    let mut client = server.cluster.connect("postgres")?;
    for (table, bytes) in [("short", 2_000), ("long", 100_000)] {
        table_with(&mut server, table, "known_wal", &format!("'{bytes}'"))?;
        let before = warm(&mut server, &mut client, &[table])?[0];
        insert_each(&mut client, table, 1, 40)?;
        let since = wait_calls(&mut server, (table, table, "INSERT"), before, 40)?;
        let message = |transactional| {
            format!("SELECT pg_logical_emit_message({transactional}, 'known', repeat('x', {bytes}))")
        };
        let truth = wal_bytes_of(&mut client, &message(true))? + wal_bytes_of(&mut client, &message(false))?;
        // The log's own page headers and padding are not the trigger's.
        assert_near(&format!("WAL of {table}, bytes"), since.mean(|p| p.wal_bytes), truth, 0.01, 32.0);
    }
    Ok(())
}

#[test]
fn blocks_are_true() -> Result<()> {
    let mut server = known_server("known-blocks")?;
    let mut client = server.cluster.connect("postgres")?;
    server.query(WIDE)?;
    server.query("VACUUM (ANALYZE) wide")?;
    let scan = "SELECT count(*) FROM wide";
    let update = "UPDATE wide SET n = n + 1 WHERE id <= 50";
    let sort = "SELECT count(*) FROM (SELECT filler FROM wide ORDER BY filler, id OFFSET 1) s";
    let literal = |sql: &str| format!("'{sql}'");
    table_with(&mut server, "scans", "known_query", &literal(scan))?;
    table_with(&mut server, "updates", "known_query", &literal(update))?;
    table_with(&mut server, "sorts", "known_small_sort", &literal(sort))?;
    let before = warm(&mut server, &mut client, &["scans", "updates", "sorts"])?;

    insert_each(&mut client, "scans", 1, 50)?;
    let since = wait_calls(&mut server, ("scans", "scans", "INSERT"), before[0], 50)?;
    let truth = blocks_of(&mut client, scan)?.touched;
    assert!(truth >= 300.0, "the scan touches {truth} blocks");
    let touched = since.mean(|p| p.blocks_hit + p.blocks_read);
    assert_near("blocks of a scan", touched, truth, 0.0, 2.0);

    for id in 1..=20 {
        // Every page is clean when the call begins, and so is dirtied once.
        client.exec("CHECKPOINT")?;
        insert_each(&mut client, "updates", id, 1)?;
    }
    let since = wait_calls(&mut server, ("updates", "updates", "INSERT"), before[1], 20)?;
    let truth = blocks_of(&mut client, update)?;
    assert!(truth.dirtied >= 50.0, "{truth:?}");
    assert_near("blocks dirtied", since.mean(|p| p.blocks_dirtied), truth.dirtied, 0.0, 2.0);

    insert_each(&mut client, "sorts", 1, 20)?;
    let since = wait_calls(&mut server, ("sorts", "sorts", "INSERT"), before[2], 20)?;
    client.exec("SET work_mem = '64kB'")?;
    let truth = blocks_of(&mut client, sort)?;
    assert!(truth.temp_written >= 50.0, "{truth:?}");
    let temp = truth.temp_read + truth.temp_written;
    assert_near("temporary blocks", since.mean(|p| p.temp_blocks), temp, 0.02, 2.0);
    Ok(())
}

#[test]
fn blocks_read_are_true() -> Result<()> {
    let mut server = known_server("known-read")?;
    let mut client = server.cluster.connect("postgres")?;
    server.query(WIDE)?;
    server.query("VACUUM (ANALYZE) wide")?;
    table_with(&mut server, "reads", "known_query", "'SELECT count(*) FROM wide'")?;
    warm(&mut server, &mut client, &["reads"])?;
    drop(client);
    // After this nothing is in shared buffers.
    server.cluster.restart()?;
    let before = settled(&mut server, &[("reads", "reads", "INSERT")])?[0];
    let mut client = server.cluster.connect("postgres")?;
    insert_each(&mut client, "reads", 1, 1)?;
    let since = wait_calls(&mut server, ("reads", "reads", "INSERT"), before, 1)?;
    assert_eq!(since.sampled, 1.0);
    // The pages, and what of the catalogs the new session needs to plan the query.
    let read = since.blocks_read;
    assert!((300.0..400.0).contains(&read), "a scan of 300 cold pages read {read}");
    Ok(())
}

#[test]
fn memory_that_stays_is_seen() -> Result<()> {
    let mut server = known_server("known-memory")?;
    let mut client = server.cluster.connect("postgres")?;
    table_with(&mut server, "keeps", "known_keep", "'1000'")?;
    table_with(&mut server, "wastes", "known_waste", "'1000'")?;
    let before = warm(&mut server, &mut client, &["keeps", "wastes"])?;
    for (table, before) in [("keeps", before[0]), ("wastes", before[1])] {
        client.exec("BEGIN")?;
        insert_each(&mut client, table, 1, 2)?;
        let start = memory_bytes(&mut client)?;
        insert_each(&mut client, table, 3, 40)?;
        let truth = (memory_bytes(&mut client)? - start) / 40.0;
        client.exec("COMMIT")?;
        let since = wait_calls(&mut server, (table, table, "INSERT"), before, 42)?;
        let kept = since.mean_memory_bytes();
        assert_near(&format!("memory that \"{table}\" keeps, bytes"), kept, truth, 0.05, 20_000.0);
        assert_eq!(kept > 900_000.0, table == "keeps", "{kept} bytes");
    }
    Ok(())
}

#[test]
fn nested_triggers_are_told_apart() -> Result<()> {
    let mut server = known_server("known-nested")?;
    let mut client = server.cluster.connect("postgres")?;
    let idle = Idle::measure(&mut server, &mut client)?;
    table_with(&mut server, "inner_table", "known_burn", "'40000'")?;
    table_with(&mut server, "outer_table", "known_outer", "'20000', 'inner_table'")?;
    let before = warm_nested(&mut server, &mut client, &["outer_table"], &["outer_table", "inner_table"])?;
    let outer_before = function_times(&mut server, &mut client, "known_outer")?;
    let inner_before = function_times(&mut server, &mut client, "known_burn")?;
    let calls = 150;
    let spent = cpu_us_of(&mut client, |client| insert_all(client, "outer_table", 1, calls))?;
    let outer_times = function_times(&mut server, &mut client, "known_outer")?.since(outer_before);
    let inner_times = function_times(&mut server, &mut client, "known_burn")?.since(inner_before);
    let outer = wait_calls(&mut server, ("outer_table", "outer_table", "INSERT"), before[0], calls)?;
    let inner = wait_calls(&mut server, ("inner_table", "inner_table", "INSERT"), before[1], calls)?;

    let truth = idle.trigger_us(spent, calls);
    assert_near("CPU of both, µs", outer.mean(|p| p.cpu_us_inclusive), truth, 0.05, 10.0);
    assert_near("CPU, sum of parts", outer.cpu_us + inner.cpu_us, outer.cpu_us_inclusive, 0.02, 0.0);
    assert_near("elapsed of both", outer.elapsed_us_inclusive, outer_times.total_us, 0.03, 0.0);
    assert_near("elapsed of the outer alone", outer.elapsed_us, outer_times.self_us, 0.05, 0.0);
    assert_near("elapsed of the inner", inner.elapsed_us, inner_times.self_us, 0.03, 0.0);
    assert!(inner.cpu_us > outer.cpu_us, "the inner one burns twice as much");
    Ok(())
}

/// Inserts a row, which must fail with what the trigger raises, every field of it.
fn must_raise(client: &mut Client, table: &str, id: u64) -> Result<()> {
    let Err(error) = client.exec(&format!("INSERT INTO {table} (id) VALUES ({id})")) else {
        return Err(Error::new(format!("The trigger of {table} did not fail."), ""));
    };
    let optional = |text: &Option<Box<str>>| text.as_deref().unwrap_or_default().to_string();
    assert_eq!((error.sqlstate.as_str(), error.message.as_str()), ("FS001", "known to fail"), "{error}");
    assert_eq!(
        (optional(&error.detail).as_str(), optional(&error.hint).as_str()),
        ("its detail", "its hint")
    );
    let context = optional(&error.context);
    assert!(context.starts_with("PL/pgSQL function known_raise() line "), "{context}");
    Ok(())
}

#[test]
fn failures_are_counted_and_leave_nothing() -> Result<()> {
    let mut server = known_server("known-failing")?;
    let mut client = server.cluster.connect("postgres")?;
    let idle = Idle::measure(&mut server, &mut client)?;
    table_with(&mut server, "raises", "known_raise", "'40000'")?;
    table_with(&mut server, "catches", "known_catch", "'80000', 'raises'")?;
    let before = warm(&mut server, &mut client, &["catches"])?[0];
    let raises = ("raises", "raises", "INSERT");
    let raises_before = settled(&mut server, &[raises])?[0];
    for id in 1..=10 {
        must_raise(&mut client, "raises", id)?;
    }
    let since = wait_calls(&mut server, raises, raises_before, 10)?;
    assert_eq!(since.failed, 10.0, "{since:?}");

    let raises_before = settled(&mut server, &[raises])?[0];
    let spent = cpu_us_of(&mut client, |client| insert_all(client, "catches", 1, 60))?;
    let caught = wait_calls(&mut server, ("catches", "catches", "INSERT"), before, 60)?;
    let failed = wait_calls(&mut server, raises, raises_before, 60)?;
    assert_eq!((caught.failed, failed.failed), (0.0, 60.0), "{caught:?} {failed:?}");
    // The frame of the failed call is gone, that of the catcher has gone on. Both burn long, because what
    // measuring the inner one takes is part of this truth, but rightly of no trigger's cost.
    let truth = idle.trigger_us(spent, 60);
    assert_near("CPU of a catcher, µs", caught.mean(|p| p.cpu_us_inclusive), truth, 0.05, 10.0);
    assert!(caught.cpu_us <= caught.cpu_us_inclusive, "{caught:?}");
    deep_failure(&mut server, &mut client)?;
    timeout(&mut server, &mut client)
}

/// Eleven calls in one another: the innermost fails, the sixth from inside catches.
fn deep_failure(server: &mut Server, client: &mut Client) -> Result<()> {
    managed_table(server, "deep", ", depth int NOT NULL")?;
    server
        .query("CREATE TRIGGER deep BEFORE INSERT ON deep FOR EACH ROW EXECUTE FUNCTION known_deep('5')")?;
    let deep = ("deep", "deep", "INSERT");
    let mut id = 0;
    let mut insert = |client: &mut Client| {
        id += 100;
        client.exec(&format!("INSERT INTO deep (id, depth) VALUES ({id}, 10)")).map(drop)
    };
    let before = warm_up(server, &[deep], || Ok(insert(client)?))?[0];
    let rows: u64 = server.query("SELECT count(*) FROM deep")?.parse().unwrap_or(0);
    for _ in 0..8 {
        insert(client)?;
    }
    let since = wait_calls(server, deep, before, 8 * 11)?;
    assert_eq!(since.failed, 8.0 * 5.0, "{since:?}");
    assert_eq!(server.query("SELECT count(*) FROM deep")?, (rows + 8 * 6).to_string());
    Ok(())
}

/// A call that is cancelled fails too, and the next calls are measured as ever.
fn timeout(server: &mut Server, client: &mut Client) -> Result<()> {
    table_with(server, "waits", "known_sleep", "'0.05'")?;
    let waits = ("waits", "waits", "INSERT");
    let before = warm(server, client, &["waits"])?[0];
    client.exec("SET statement_timeout = '10ms'")?;
    let error = client.exec("INSERT INTO waits (id) VALUES (1)").err();
    assert_eq!(error.map(|error| error.sqlstate), Some("57014".to_string()));
    client.exec("RESET statement_timeout")?;
    let times_before = function_times(server, client, "known_sleep")?;
    insert_each(client, "waits", 2, 10)?;
    let times = function_times(server, client, "known_sleep")?.since(times_before);
    let since = wait_calls(server, waits, before, 11)?;
    assert_eq!(since.failed, 1.0, "{since:?}");
    assert_near(
        "elapsed after a failure, µs",
        since.mean(|p| p.elapsed_us),
        times.self_us / times.calls,
        0.02,
        0.0,
    );
    Ok(())
}

#[test]
fn a_session_may_be_left_alone() -> Result<()> {
    let mut server = known_server("known-off")?;
    let mut client = server.cluster.connect("postgres")?;
    table_with(&mut server, "quiet", "known_burn", "'100'")?;
    table_with(&mut server, "loud", "known_burn", "'100'")?;
    let name = ("quiet", "quiet", "INSERT");
    let warmed = warm(&mut server, &mut client, &["quiet", "loud"])?;
    let (before, loud) = (warmed[0], warmed[1]);
    server.set(&[("foreshard.observe", "off")])?;
    wait_until(
        "the setting is known",
        PATIENCE,
        || Ok(client.query_one("SHOW foreshard.observe")? == "off"),
    )?;
    insert_each(&mut client, "quiet", 1, 50)?;
    server.set(&[("foreshard.observe", "on")])?;
    wait_until("the setting is known", PATIENCE, || Ok(client.query_one("SHOW foreshard.observe")? == "on"))?;
    // The keeper has to know it, too, and to say again what is watched.
    let mut next = 1;
    wait_until("calls are counted again", PATIENCE, || {
        insert_each(&mut client, "loud", next, 1)?;
        next += 1;
        Ok(profile::read(&mut server, "loud", "loud", "INSERT")?.calls > loud.calls)
    })?;
    insert_each(&mut client, "quiet", 101, 7)?;
    // The fifty calls while it was off were not even counted.
    wait_calls(&mut server, name, before, 7)?;
    assert_eq!(profile::read(&mut server, "quiet", "quiet", "UPDATE")?, Profile::default());
    Ok(())
}
