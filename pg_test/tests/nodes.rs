//! Nodes and what happens to them: links that stall, coordinators that were cloned,
//! tables that are altered, tables there that are rewritten, an extension that is dropped in the middle.

mod common;

use common::nodes::{ROWS, World};
use common::placed::expect_code;
use common::standby::Standby;
use foreshard_test::{Client, Link, Result, wait_until};
use std::time::{Duration, Instant};

/// Longest time for which a writer may wait for a node that has stopped answering while a move held the table: the
/// bound of the test's clusters (200 ms), twenty round trips, and the second that a node is given.
const BOUND: Duration = Duration::from_millis(1_800);

/// The one remote table of the ledger's first table, and where it is.
fn remote(world: &mut World) -> Result<String> {
    world.here.query(
        "SELECT remote_schema || '.' || remote_name FROM foreshard.remote_table WHERE table_oid = 'acc'::regclass ORDER BY remote_id DESC LIMIT 1",
    )
}

fn rows_of_acc(world: &mut World) -> Result<String> {
    world.here.query("SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM acc")
}

/// The longest of some updates of one row, made one after the other for a while.
fn longest_update(client: &mut Client, id: &str, time: Duration) -> Result<Duration> {
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    while begun.elapsed() < time {
        let one = Instant::now();
        client.exec(&format!("UPDATE acc SET v = 'again' WHERE id = {id}"))?;
        longest = longest.max(one.elapsed());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(longest)
}

#[test]
fn a_stalled_node_holds_nobody_up() -> Result<()> {
    let mut world = World::with_proxy("node-stall")?;
    world.tables(2)?;
    let slots = world.here.slots("acc")?;
    // Nothing is logged, so that nothing but the locked part has to ask the copy's state there.
    world.here.hold(Some("cutover"))?;
    let move_id = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_phase(&move_id, "cutover")?;
    let state = world.here.query("SELECT 'foreshard_state_' || max(remote_id) FROM foreshard.remote_table WHERE table_oid = 'acc'::regclass")?;
    let mut there = world.there.connect("postgres")?;
    there.exec(&format!("BEGIN; LOCK TABLE {state}"))?;
    let mut client = world.here.cluster.connect("postgres")?;
    let other = client.query_one("SELECT min(id) FROM acc WHERE tableoid = (SELECT partition FROM foreshard.slots WHERE slot_id = (SELECT max(slot_id) FROM foreshard.slots) AND partition::text LIKE 'acc%')")?;
    world.here.hold(None)?;
    let longest = longest_update(&mut client, &other, Duration::from_millis(1_600))?;
    println!("writers waited for at most {longest:?} for a node that says nothing");
    assert!(longest > Duration::from_millis(500), "the move never held anybody up: {longest:?}");
    assert!(longest < BOUND, "{longest:?}");
    there.exec("COMMIT")?;
    world.here.wait_end(&move_id, "done")?;
    // A node that accepts connections and says nothing is down, and the workers leave when they are told to.
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Stalled);
    let begun = Instant::now();
    world.here.wait_query("SELECT bool_or(state = 'down') FROM foreshard.nodes", "t")?;
    println!("down after {:?}", begun.elapsed());
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Up);
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    world.here.hold(Some("catch_up"))?;
    let move_id = world.move_to(&slots[1], "on_n2")?;
    world.here.wait_phase(&move_id, "catch_up")?;
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Stalled);
    world.here.hold(None)?;
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    world.here.cluster.restart()?;
    println!("restarted in {:?} while its worker waited for a node", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Up);
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(world.here.query("SELECT count(*) FROM acc")?, ROWS.to_string());
    world.assert_nothing_left()
}

#[test]
fn nobody_waits_for_a_node_that_is_down() -> Result<()> {
    let mut world = World::with_proxy("node-down")?;
    world.tables(1)?;
    let slot = world.here.slots("acc")?[0].clone();
    let before = rows_of_acc(&mut world)?;
    // The carrier is in the middle of a statement there when the node falls silent.
    world.here.hold(Some("copy"))?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_phase(&move_id, "copy")?;
    let table = remote(&mut world)?;
    let mut there = world.there.connect("postgres")?;
    there.exec(&format!("BEGIN; LOCK TABLE {table}"))?;
    world.here.hold(None)?;
    let mut looks = world.there.connect("postgres")?;
    let waits =
        format!("SELECT count(*) > 0 FROM pg_locks WHERE relation = '{table}'::regclass AND NOT granted");
    wait_until("the carrier waits there", common::PATIENCE, || Ok(looks.query_one(&waits)? == "t"))?;
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Stalled);
    world.here.wait_query("SELECT state FROM foreshard.nodes WHERE node = 'n1'", "down")?;
    let carriers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard carrier'";
    world.here.wait_query(carriers, "0")?;
    world.here.query("BEGIN; SET LOCAL lock_timeout = '2s'; LOCK TABLE acc; COMMIT")?;
    there.exec("COMMIT")?;
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Up);
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(rows_of_acc(&mut world)?, before);
    world.assert_nothing_left()
}

/// Statements on slots of a node that accepts connections and says nothing fail at once, and all others go on.
#[test]
fn no_statement_waits_for_a_node_that_is_silent() -> Result<()> {
    let mut world = World::with_proxy("node-fast")?;
    world.tables(2)?;
    let slots = world.here.slots("acc")?;
    let move_id = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let of_slot = |there: &str| {
        format!(
            "SELECT min(id) FROM acc WHERE tableoid {there} (SELECT partition FROM foreshard.remote_tables WHERE partition::text LIKE 'acc%')"
        )
    };
    let there = world.here.query(&of_slot("="))?;
    let here = world.here.query(&of_slot("<>"))?;
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Stalled);
    world.here.wait_query("SELECT state FROM foreshard.nodes WHERE node = 'n1'", "down")?;
    for statement in [
        "SELECT count(*) FROM acc".to_string(),
        format!("UPDATE acc SET v = 'there' WHERE id = {there}"),
        format!(
            "WITH found AS MATERIALIZED (SELECT v FROM acc WHERE id = {there}) SELECT (SELECT v FROM found)"
        ),
    ] {
        let begun = Instant::now();
        let error = world.here.fails(&statement)?;
        assert_eq!(error.sqlstate, "08006", "{statement}: {error}");
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("foreshard.fail_fast")), "{error}");
        assert!(begun.elapsed() < Duration::from_millis(900), "{statement}: {:?}", begun.elapsed());
    }
    let mut client = world.here.cluster.connect("postgres")?;
    client.exec(&format!(
        "UPDATE acc SET v = 'here' WHERE id = {here}; SET plan_cache_mode = force_generic_plan; SET foreshard.direct_lookups = off; \
         PREPARE look (bigint) AS SELECT v FROM acc WHERE id = $1"
    ))?;
    assert_eq!(client.query_one(&format!("EXECUTE look ({here})"))?, "here");
    client.exec("EXPLAIN SELECT count(*) FROM acc")?;
    // Whoever wants to wait may: as long as the server's connect_timeout on 15, which later versions of postgres_fdw do not heed.
    let begun = Instant::now();
    client.exec("SET foreshard.fail_fast = off; SET statement_timeout = '8s'")?;
    match client.exec("SELECT count(*) FROM acc") {
        Err(error) => assert!(error.sqlstate.starts_with("08") || error.sqlstate == "57014", "{error}"),
        Ok(rows) => panic!("{}", rows.to_text()),
    }
    assert!(begun.elapsed() > Duration::from_millis(1_000), "{:?}", begun.elapsed());
    // It is over as soon as the node answers.
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Up);
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    assert_eq!(world.here.query("SELECT count(*) FROM acc")?, ROWS.to_string());
    world.assert_nothing_left()
}

#[test]
fn a_node_that_somebody_has_locked_keeps_no_other_from_being_looked_at() -> Result<()> {
    let mut world = World::with_nodes("node-locked")?;
    let mut client = world.here.cluster.connect("postgres")?;
    client.exec("BEGIN; SELECT FROM foreshard.node WHERE node_name = 'n1' FOR UPDATE")?;
    let since = client.query_one("SELECT clock_timestamp()")?;
    world.here.wait_query(
        &format!("SELECT coalesce(checked_at > '{since}', false) FROM foreshard.nodes WHERE node = 'n2'"),
        "t",
    )?;
    client.exec("COMMIT")?;
    Ok(())
}

/// One statement on a coordinator.
fn ask(client: &mut Client, sql: &str) -> Result<String> {
    Ok(client.query_one(sql)?)
}

#[test]
fn of_two_clones_one_touches_the_nodes() -> Result<()> {
    let mut world = World::with_nodes("node-clone")?;
    world.tables(2)?;
    let slots = world.here.slots("acc")?;
    let move_id = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    world.here.wait_query("SELECT bool_and(held) FROM foreshard.nodes", "t")?;
    let mut standby = Standby::start(&world.here.cluster)?;
    standby.wait_replayed(&mut world.here)?;
    let mut sides = [world.here.cluster.connect("postgres")?, standby.connect()?];
    ask(&mut sides[1], "SELECT pg_promote()")?;
    // Each of them renews its claim every second; one of them finds that the other has.
    let held = "SELECT held FROM foreshard.nodes WHERE node = 'n1'";
    wait_until("one of both has lost the node", common::PATIENCE, || {
        Ok(ask(&mut sides[0], held)? != ask(&mut sides[1], held)?)
    })?;
    let loser = usize::from(ask(&mut sides[0], held)? == "t");
    println!("the {} has lost", ["first", "clone"][loser]);
    let count = "SELECT count(*) FROM acc";
    assert_eq!(ask(&mut sides[1 - loser], count)?, ROWS.to_string());
    let free = format!("SELECT slot_id FROM foreshard.slots WHERE slot_id <> {} LIMIT 1", slots[0]);
    let free = ask(&mut sides[loser], &free)?;
    let error =
        expect_code(sides[loser].exec(&format!("SELECT foreshard.move_slot({free}, 'on_n1')")), "55000");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("claim_node('n1')")), "{error}");
    let told = "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'another server holds%' AND object = 'node n1'";
    assert_eq!(ask(&mut sides[loser], told)?, "1");
    // What the loser believes to be an orphan is the other one's data.
    sides[loser].exec("DROP TABLE acc")?;
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(ask(&mut sides[loser], "SELECT count(*) FROM foreshard.remote_tables WHERE orphan")?, "1");
    assert_eq!(ask(&mut sides[1 - loser], count)?, ROWS.to_string());
    // It goes on: the other one has lost then.
    sides[loser].exec("SELECT foreshard.claim_node('n1')")?;
    wait_until("the claim holds", common::PATIENCE, || {
        Ok(ask(&mut sides[loser], held)? == "t" && ask(&mut sides[1 - loser], held)? == "f")
    })?;
    wait_until("its orphan goes", common::PATIENCE, || {
        Ok(ask(&mut sides[loser], "SELECT count(*) FROM foreshard.remote_tables WHERE orphan")? == "0")
    })
}

#[test]
fn tables_are_altered_rewritten_and_left_by_the_extension() -> Result<()> {
    let mut world = World::with_nodes("node-tables")?;
    world.tables(1)?;
    let slot = world.here.slots("acc")?[0].clone();
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    no_altering(&mut world, &slot)?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let rows = rewriting(&mut world, &slot)?;
    the_extension_goes(&mut world, &slot, &rows)
}

/// A table with slots on nodes is not altered without them.
fn no_altering(world: &mut World, slot: &str) -> Result<()> {
    let mut c = world.here.cluster.connect("postgres")?;
    let leaf =
        c.query_one("SELECT partition FROM foreshard.remote_tables WHERE partition::text LIKE 'acc%'")?;
    c.exec("CREATE ROLE other; GRANT CREATE ON SCHEMA public TO other")?;
    for what in [
        "ALTER TABLE acc ADD COLUMN w int".to_string(),
        "ALTER TABLE acc RENAME COLUMN v TO w".into(),
        "ALTER TABLE acc ALTER COLUMN v TYPE varchar(100)".into(),
        "ALTER TABLE acc ALTER COLUMN v DROP NOT NULL".into(),
        "ALTER TABLE acc ADD CONSTRAINT short CHECK (length(v) < 1000)".into(),
        "ALTER TABLE acc DROP CONSTRAINT v_there".into(),
        "ALTER TABLE acc OWNER TO other".into(),
        format!("ALTER FOREIGN TABLE {leaf} OPTIONS (SET table_name 'elsewhere')"),
    ] {
        match c.exec(&what) {
            Err(error) if error.sqlstate == "0A000" => {
                assert!(error.hint.is_some() && error.message.contains("n1"), "{what}: {error}");
            }
            other => panic!("{what}: {:?}", other.map(|rows| rows.to_text())),
        }
    }
    // What does not concern the node goes on.
    c.exec(&format!(
        "ALTER TABLE acc ALTER COLUMN v SET DEFAULT 'none', ALTER COLUMN v SET STATISTICS 10; ALTER TABLE acc RENAME TO acc2; \
         ALTER TABLE acc2 RENAME TO acc; CREATE INDEX later ON acc (v); ALTER FOREIGN TABLE {leaf} OPTIONS (ADD fetch_size '500')"
    ))?;
    // Where somebody went around it, check() tells.
    c.exec("ALTER EVENT TRIGGER foreshard_table_altered DISABLE; ALTER TABLE acc ADD COLUMN w int")?;
    let told = "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'was altered while%' AND detail LIKE '%column w%'";
    assert_eq!(c.query_one(told)?, "1");
    c.exec("ALTER TABLE acc DROP COLUMN w; ALTER EVENT TRIGGER foreshard_table_altered ENABLE")?;
    // At home it is altered like any other.
    let move_id = world.move_to(slot, "sa")?;
    world.here.wait_end(&move_id, "done")?;
    c.exec("ALTER TABLE acc ADD COLUMN w int")?;
    // Tables of several owners stay where they are.
    c.exec(
        "CREATE USER MAPPING FOR other SERVER s_n1 OPTIONS (user 'postgres'); ALTER TABLE acc OWNER TO other",
    )?;
    let move_id = world.move_to(slot, "on_n1")?;
    world.here.wait_end(&move_id, "failed")?;
    let why = format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}");
    let why = world.here.query(&why)?;
    assert!(why.contains("mixed_owners"), "{why}");
    c.exec("ALTER TABLE acc OWNER TO postgres; ALTER TABLE acc DROP COLUMN w")?;
    world.assert_nothing_left()
}

/// A table that is rewritten on its node while it is copied is copied anew; what its rows are.
fn rewriting(world: &mut World, slot: &str) -> Result<String> {
    // Old rows in front go, so that a rewrite gives all others new places.
    world.here.query("DELETE FROM acc WHERE id <= 1500; INSERT INTO acc SELECT g, repeat('w', 100) || g FROM generate_series(5001, 9000) g")?;
    let before = rows_of_acc(world)?;
    world.here.set(&[("foreshard.copy_rate", "256")])?;
    let table = remote(world)?;
    let move_id = world.move_to(slot, "on_n2")?;
    let begun = format!(
        "SELECT coalesce(max(m.blocks_done) > 0, false) FROM foreshard.move_relation m JOIN foreshard.remote_table r ON r.partition = m.source \
         WHERE m.move_id = {move_id} AND r.table_oid = 'acc'::regclass"
    );
    world.here.wait_query(&begun, "t")?;
    world.there.connect("postgres")?.exec(&format!("VACUUM FULL {table}"))?;
    world.here.set(&[("foreshard.copy_rate", "0")])?;
    world.here.wait_end(&move_id, "done")?;
    let restarts = format!("SELECT restarts FROM foreshard.move WHERE move_id = {move_id}");
    assert_eq!(world.here.query(&restarts)?, "1");
    assert_eq!(rows_of_acc(world)?, before);
    world.assert_nothing_left()?;
    Ok(before)
}

/// DROP EXTENSION in the middle of a move between nodes.
fn the_extension_goes(world: &mut World, slot: &str, before: &str) -> Result<()> {
    // What somebody detached is his, and so are its rows on the node.
    world.here.query(
        "CREATE TABLE det (id bigint PRIMARY KEY, v text); INSERT INTO det SELECT g, 'd' || g FROM generate_series(1, 50) g; \
         SELECT foreshard.distribute('det', 'id', 1, shards => '{sa}', remote => true)",
    )?;
    let own = world.here.slots("det")?[0].clone();
    let move_id = world.move_to(&own, "on_n2")?;
    world.here.wait_end(&move_id, "done")?;
    let detached =
        world.here.query("SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'det'::regclass")?;
    world.here.query(&format!("ALTER TABLE det DETACH PARTITION {detached}"))?;
    // A log and its triggers on one, a copy with its inbox on the other.
    world.here.hold(Some("catch_up"))?;
    let move_id = world.move_to(slot, "on_n1")?;
    world.here.wait_phase(&move_id, "catch_up")?;
    let mut c = world.here.cluster.connect("postgres")?;
    c.take_notices();
    c.exec("DROP EXTENSION foreshard CASCADE")?;
    let told = c.take_notices().join("; ");
    println!("{told}");
    assert_eq!(rows_of_acc(world)?, before);
    assert_eq!(c.query_one(&format!("SELECT count(*) FROM {detached}"))?, "50");
    for (node, database, tables) in [("n1", "postgres", "0"), ("n2", "second", "3")] {
        // What does not answer in time on a busy machine is told, and stays.
        if told.contains(&format!("node \"{node}\" may keep")) {
            continue;
        }
        let mut there = world.there.connect(database)?;
        let left = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'foreshard%'";
        assert_eq!(there.query_one(left)?, "0", "functions in {database}");
        let left = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal";
        assert_eq!(there.query_one(left)?, "0", "triggers in {database}");
        let names = there.query_one("SELECT coalesce(string_agg(relname, ' '), '') FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')")?;
        let left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')";
        assert_eq!(there.query_one(left)?, tables, "{names}");
    }
    c.exec("INSERT INTO acc VALUES (10001, 'after')")?;
    Ok(())
}

/// What a session asks of nodes that hang ends in time, and nothing else of the session with it.
#[test]
fn sessions_wait_for_hanging_nodes_within_bounds() -> Result<()> {
    let mut world = World::with_proxy("node-hangs")?;
    world.tables(2)?;
    let slots = world.here.slots("acc")?;
    world.here.hold(Some("catch_up"))?;
    let move_id = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_phase(&move_id, "catch_up")?;
    world.here.set(&[("foreshard.node_check_interval", "600")])?;
    let place = world.proxy.as_ref().ok_or("no proxy")?.options();
    for server in ["s_n1", "s_n2"] {
        world.here.query(&format!(
            "ALTER SERVER {server} OPTIONS (SET connect_timeout '600', SET tcp_user_timeout '600000')"
        ))?;
    }
    let mut c = world.here.cluster.connect("postgres")?;
    let own = world.here.cluster.conninfo("postgres").replace('\'', "''");
    c.exec(&format!(
        "CREATE SERVER s_hang FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({place}, dbname 'postgres', connect_timeout '600'); \
         CREATE USER MAPPING FOR postgres SERVER s_hang OPTIONS (user 'postgres'); SELECT dblink_connect('mine', '{own}')"
    ))?;
    // A health check that is under way ends.
    std::thread::sleep(Duration::from_millis(1_500));
    world.proxy.as_ref().ok_or("no proxy")?.set(Link::Stalled);
    let begun = Instant::now();
    let error = expect_code(c.exec("SELECT foreshard.add_node('hang', 's_hang')"), "08006");
    assert!(error.message.contains("did not answer in time"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let mine = "SELECT one FROM dblink('mine', 'SELECT 1') AS t (one int)";
    assert_eq!(c.query_one(mine)?, "1");

    // Ten seconds a node, in which no worker comes back, and then it is done.
    let mut dropper = world.here.cluster.connect("postgres")?;
    dropper.take_notices();
    dropper.exec(&format!("SELECT dblink_connect('mine', '{own}')"))?;
    let begun = Instant::now();
    dropper.send_query("DROP EXTENSION foreshard CASCADE")?;
    let mut most = 0;
    while dropper.poll_result(Duration::from_millis(200))?.is_none() {
        assert!(begun.elapsed() < Duration::from_secs(40), "it still waits");
        if begun.elapsed() > Duration::from_secs(4) {
            let workers = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND backend_type LIKE 'foreshard %'";
            most = most.max(c.query_one(workers)?.parse::<i64>().unwrap_or(99));
        }
    }
    println!("dropped in {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_secs(12), "nobody waited: {:?}", begun.elapsed());
    assert_eq!(most, 0, "workers came back");
    let told = dropper.take_notices().join("; ");
    assert!(told.contains("node \"n1\" may keep what moves made there (it does not answer)"), "{told}");
    assert_eq!(dropper.query_one(mine)?, "1");
    assert_eq!(dropper.query_one("SELECT count(*) FROM pg_extension WHERE extname = 'foreshard'")?, "0");
    assert_eq!(dropper.query_one("SELECT count(*) FROM acc")?, ROWS.to_string());
    Ok(())
}

#[test]
fn a_replica_serves_reads_while_its_node_is_down() -> Result<()> {
    let mut world = World::with_nodes("node-replica")?;
    world.tables(2)?;
    let replica = Standby::start(&world.there)?;
    let port = replica.port();
    world.here.query(&format!(
        "ALTER SERVER s_n1 OPTIONS (SET host '{0},{0}', SET port '{1},{port}')",
        world.there.socket_dir().display(),
        world.there.port()
    ))?;
    let slots = world.here.slots("acc")?;
    let move_id = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let mut client = world.here.cluster.connect("postgres")?;
    let sum = "SELECT count(*) || ' ' || sum(hashtext(v)) FROM acc";
    let before = client.query_one(sum)?;
    let lsn = world.there.connect("postgres")?.query_one("SELECT pg_current_wal_flush_lsn()")?;
    wait_until("the replica has it all", common::PATIENCE, || {
        let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        Ok(replica.connect()?.query_one(&caught_up)? == "t")
    })?;
    world.there.kill9_postmaster()?;
    // A check that the crash has cut off says that first.
    world.here.wait_query(
        "SELECT state, last_error LIKE '%standby%' FROM foreshard.nodes WHERE node = 'n1'",
        "down|t",
    )?;
    // A kept connection is lost once; then the replica reads, and nothing is written.
    let again = client.query_one(sum).or_else(|_| client.query_one(sum))?;
    assert_eq!(again, before);
    let there = client.query_one("SELECT min(id) FROM acc WHERE tableoid = (SELECT partition FROM foreshard.remote_tables WHERE partition::text LIKE 'acc%')")?;
    expect_code(client.exec(&format!("UPDATE acc SET v = 'x' WHERE id = {there}")), "25006");
    expect_code(client.exec(&format!("SELECT foreshard.move_slot({}, 'on_n1')", slots[1])), "08006");
    world.there.start_again()?;
    world.here.wait_query("SELECT state FROM foreshard.nodes WHERE node = 'n1'", "up")?;
    // Sessions that went to the replica stay there; new ones do not.
    let mut client = world.here.cluster.connect("postgres")?;
    client.exec(&format!("UPDATE acc SET v = 'back' WHERE id = {there}"))?;
    Ok(())
}
