//! What is told of a move under way, and what it leaves to others meanwhile: when it will be done, how far behind its copy is, who
//! waits for it, and what becomes of files that are replaced.

mod common;

use common::{PATIENCE, Server, options};
use foreshard_test::{Result, in_turn, wait_until};
use std::time::{Duration, Instant};

/// Index functions take as long as the table `pause` says, in s per row.
const SETUP: &str = "
    CREATE TABLE pause (s float8); INSERT INTO pause VALUES (0);
    CREATE FUNCTION slow(n bigint) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS
        $$ DECLARE p float8 := (SELECT s FROM public.pause); BEGIN IF p > 0 THEN PERFORM pg_sleep(p); END IF; RETURN n; END $$;
    CREATE FUNCTION never(n bigint) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS
        $$ BEGIN RETURN public.slow(n) < 0; END $$;
    CREATE TABLE t (id bigint PRIMARY KEY, n int, v text);
    INSERT INTO t SELECT g, g, repeat('v', 100) FROM generate_series(1, 3000) g;
    CREATE INDEX t_slow ON t (slow(id)); CREATE INDEX t_slow2 ON t (slow(id + 1)); CREATE INDEX t_never ON t (n) WHERE never(id);
    SELECT foreshard.distribute('t', 'id', 2); VACUUM ANALYZE t";

fn start(name: &str) -> Result<(Server, String)> {
    let mut server = Server::start(&options(name).set("foreshard.canary_steps", ""))?;
    for statement in SETUP.rsplitn(2, ';').collect::<Vec<_>>().into_iter().rev() {
        server.query(statement)?;
    }
    let slot = server.slots("t")?[0].clone();
    Ok((server, slot))
}

/// (Phase, eta in s, lag in s, pending keys) of a move, now; what is not known is empty.
fn look(server: &mut Server, move_id: &str) -> Result<Vec<String>> {
    let row = server.query(&format!(
        "SELECT concat_ws('|', phase, coalesce(round(extract(epoch FROM eta), 3)::text, ''), coalesce(round(extract(epoch FROM lag), 3)::text, ''), \
             coalesce(pending_keys::text, '')) FROM foreshard.progress_moves WHERE move_id = {move_id}"
    ))?;
    Ok(row.split('|').map(str::to_owned).collect())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// Who pauses or cancels a move does not wait until an index is built.
#[test]
fn an_index_is_not_waited_for() -> Result<()> {
    let (mut server, slot) = start("hurry")?;
    server.query("UPDATE pause SET s = 0.05")?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "index")?;
    std::thread::sleep(Duration::from_millis(1_500));
    let begun = Instant::now();
    assert_eq!(server.query(&format!("SELECT foreshard.pause_move({move_id})"))?, "t");
    wait_until("the carrier has ended", PATIENCE, || Ok(server.carrier()?.is_none()))?;
    assert!(begun.elapsed() < Duration::from_secs(15), "paused after {:?}", begun.elapsed());
    assert_eq!(server.phase(&move_id)?, "index");
    server.query(&format!("SELECT foreshard.resume_move({move_id})"))?;
    wait_until("it goes on", PATIENCE, || Ok(server.carrier()?.is_some()))?;
    std::thread::sleep(Duration::from_millis(1_500));
    let begun = Instant::now();
    assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    server.wait_end(&move_id, "cancelled")?;
    assert!(begun.elapsed() < Duration::from_secs(15), "cancelled after {:?}", begun.elapsed());
    server.query("UPDATE pause SET s = 0")?;
    server.assert_settled()
}

/// While indexes are built the remaining time is known, and about right; while changes are caught up with, too; how far behind
/// the copy is goes on being counted while nothing happens.
#[test]
fn when_it_will_be_done_is_told() -> Result<()> {
    let (mut server, slot) = start("eta")?;
    server.hold(Some("index"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "index")?;
    assert_eq!(look(&mut server, &move_id)?[1], "", "nothing is built yet");
    server.query("UPDATE pause SET s = 0.0005")?;
    server.hold(Some("catch_up"))?;
    let begun = Instant::now();
    let mut told: Vec<(f64, f64)> = Vec::new();
    loop {
        let seen = look(&mut server, &move_id)?;
        if seen[0] != "index" {
            break;
        }
        assert!(number(&seen[1]).is_none_or(|eta| eta >= 0.0), "{seen:?}");
        told.extend(number(&seen[1]).map(|eta| (begun.elapsed().as_secs_f64(), eta)));
        std::thread::sleep(Duration::from_millis(30));
        assert!(begun.elapsed() < PATIENCE, "the indexes are not built");
    }
    let took = begun.elapsed().as_secs_f64();
    let about = |(at, eta): &&(f64, f64)| {
        (0.3..0.8).contains(&(at / took)) && (0.25..4.0).contains(&(eta / (took - at)))
    };
    let within = told.iter().filter(|(at, _)| (0.3..0.8).contains(&(at / took))).count();
    let right = told.iter().filter(about).count();
    assert!(within > 3 && right * 4 >= within * 3, "{right} of {within} were right, {told:?} of {took} s");
    server.query("UPDATE pause SET s = 0")?;
    catch_up_is_told(&mut server, &move_id)?;
    server.assert_settled()
}

/// A move that stands before its catch-up, goes on at a pace that makes it last.
fn catch_up_is_told(server: &mut Server, move_id: &str) -> Result<()> {
    let lag = |server: &mut Server| -> Result<f64> { Ok(number(&look(server, move_id)?[2]).unwrap_or(-1.0)) };
    let first = lag(server)?;
    (0..4).try_for_each(|_| server.query("UPDATE t SET n = n + 1").map(drop))?;
    std::thread::sleep(Duration::from_millis(300));
    assert!(first >= 0.0 && lag(server)? >= first + 0.3, "the copy gets older");
    // As many rows a second as make it rest after every replay.
    server.set(&[("foreshard.copy_rows", "4000")])?;
    server.hold(Some("verify"))?;
    let mut known = false;
    wait_until("it has caught up", PATIENCE, || {
        let seen = look(server, move_id)?;
        assert!(number(&seen[1]).is_none_or(|eta| (0.0..10.0).contains(&eta)), "{seen:?}");
        known |= seen[0] == "catch_up" && number(&seen[1]).is_some() && number(&seen[3]).is_some();
        Ok(seen[0] == "verify")
    })?;
    assert!(known, "when it will have caught up was never told");
    let seen = look(server, move_id)?;
    assert_eq!((seen[1].as_str(), seen[2].as_str(), seen[3].as_str()), ("", "0.000", "0"), "mirrored");
    server.hold(None)?;
    server.wait_end(move_id, "done")?;
    assert_eq!(look(server, move_id)?[1..], ["", "", ""], "it has ended");
    Ok(())
}

/// Who waits for the copy while its indexes are checked does not wait for the end of that.
#[test]
fn the_check_of_indexes_gives_way() -> Result<()> {
    let (mut server, slot) = start("way")?;
    server.hold(Some("verify"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "verify")?;
    // Rows that the predicate keeps out are asked about one by one: 15 s.
    server.query("UPDATE pause SET s = 0.01")?;
    let shadow = server
        .query(&format!("SELECT shadow::regclass FROM foreshard.move_relation WHERE move_id = {move_id}"))?;
    server.hold(None)?;
    server.wait_query(
        &format!("SELECT count(*) > 0 FROM pg_locks WHERE relation = '{shadow}'::regclass AND mode = 'ShareUpdateExclusiveLock' AND granted \
                    AND pid <> pg_backend_pid() AND EXISTS (SELECT FROM foreshard.progress_moves WHERE move_id = {move_id} AND percent < 100)"),
        "t",
    )?;
    let mut waiter = server.cluster.connect("postgres")?;
    let begun = Instant::now();
    waiter.exec(&format!(
        "BEGIN; SET LOCAL lock_timeout = '5s'; LOCK TABLE {shadow} IN ACCESS EXCLUSIVE MODE"
    ))?;
    println!("{} ms", begun.elapsed().as_millis());
    server.query("UPDATE pause SET s = 0")?;
    waiter.exec("COMMIT")?;
    server.wait_end(&move_id, "done")?;
    server.assert_settled()
}

/// A carrier that waits for a synchronous standby which is away holds nothing that anybody else needs.
#[test]
fn nobody_waits_for_a_standby_with_the_carrier() -> Result<()> {
    let mut server = Server::start(&options("away").set("autovacuum", "off"))?;
    server.query(
        "CREATE TABLE other (n int); CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g FROM generate_series(1, 1000) g; \
         SELECT foreshard.distribute('t', 'id', 1)",
    )?;
    let slot = server.slots("t")?[0].clone();
    server.hold(Some("capture"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "capture")?;
    server.set(&[("synchronous_standby_names", "nobody")])?;
    let mut waiter = server.cluster.connect("postgres")?;
    wait_until("commits wait for the standby", PATIENCE, || {
        waiter.send_query("INSERT INTO other VALUES (1)")?;
        Ok(waiter.poll_result(Duration::from_millis(300))?.is_none())
    })?;
    server.hold(Some("copy"))?;
    server.wait_phase(&move_id, "copy")?;
    let mut writer = server.cluster.connect("postgres")?;
    writer.exec("SET synchronous_commit = local; SET lock_timeout = '10s'")?;
    writer.exec("INSERT INTO t VALUES (1001)")?;
    server.set(&[("synchronous_standby_names", "")])?;
    assert!(waiter.poll_result(PATIENCE)?.is_some());
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    server.assert_settled()
}

/// What merges, placements of keys and undistributions replace goes in steps, after the exchange, whatever happens meanwhile.
#[test]
fn long_files_that_are_replaced_go_in_steps() -> Result<()> {
    let mut server =
        Server::start(&options("remains").set("foreshard.canary_steps", "").set("max_wal_size", "4GB"))?;
    let kinds = [
        (
            "t",
            2,
            "SELECT foreshard.merge_slots(min(slot_id), max(slot_id)) FROM foreshard.slots WHERE \"table\" = 't'::regclass",
        ),
        ("k", 1, "SELECT foreshard.isolate_key('k', 7::bigint)"),
        ("u", 2, ""),
    ];
    for (_, (table, sources, statement)) in in_turn(&kinds) {
        server.query(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, n int, v text); ALTER TABLE {table} ALTER v SET STORAGE EXTERNAL; \
             INSERT INTO {table} SELECT g, g, repeat('x', 8000) FROM generate_series(1, 9000 * {sources}) g; CREATE INDEX ON {table} (n); \
             SELECT foreshard.distribute('{table}', 'id', {sources})"
        ))?;
        let rows = server.query(&format!("SELECT count(*) || ' ' || sum(length(v)) FROM {table}"))?;
        server.hold(Some("retire"))?;
        let move_id =
            if statement.is_empty() { server.undistribute(table)? } else { server.query(statement)? };
        let phase = format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}");
        server.wait_query(&phase, "retire")?;
        let remains = "FROM pg_class WHERE relkind = 'r' AND relname LIKE 'remains\\_%' AND relnamespace = 'foreshard'::regnamespace";
        let kept = server
            .query(&format!("SELECT count(*) || ' ' || bool_and(pg_table_size(oid) > 64 << 20) {remains}"))?;
        assert_eq!(kept, format!("{sources} true"), "{table}: {statement}");
        let indexes = server.query(&format!(
            "SELECT count(*) FROM pg_index WHERE indrelid IN (SELECT oid {remains}) AND pg_relation_size(indexrelid) > 8192"
        ))?;
        assert_eq!(indexes, (2 * sources).to_string(), "{table}: {statement}");
        // The server ends while the files are there.
        server.cluster.kill9_postmaster()?;
        server.cluster.start_again()?;
        server.hold(None)?;
        if statement.is_empty() {
            server.wait_undistributed(&move_id)?;
        } else {
            server.wait_end(&move_id, "done")?;
        }
        assert_eq!(server.query(&format!("SELECT count(*) {remains}"))?, "0");
        assert_eq!(server.query(&format!("SELECT count(*) || ' ' || sum(length(v)) FROM {table}"))?, rows);
        server.assert_clean()?;
    }
    server.check_storage()
}
