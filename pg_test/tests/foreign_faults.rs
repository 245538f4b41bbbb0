//! What goes wrong on nodes while slots move: commits that are lost, nodes that stay away, long logs, values of unique
//! indexes that change places, locks that others hold there; and tables that cannot be there.

mod common;

use common::nodes::{ROWS, World};
use common::placed::expect_code;
use foreshard_test::{Client, Result};
use std::time::Duration;

/// The name on its node of the one table there that is a slot's.
fn remote(world: &mut World) -> Result<String> {
    world.here.query(
        "SELECT remote_schema || '.' || remote_name FROM foreshard.remote_table WHERE partition <> 0 ORDER BY remote_id LIMIT 1",
    )
}

fn waiting_for(world: &mut World, move_id: &str, pattern: &str) -> Result<()> {
    let waits = format!(
        "SELECT coalesce(waiting_for LIKE '{pattern}', false) FROM foreshard.move WHERE move_id = {move_id}"
    );
    world.here.wait_query(&waits, "t")
}

#[test]
fn what_a_node_loses_is_not_lost() -> Result<()> {
    let mut world = World::with_nodes("fault-lost")?;
    world.tables(1)?;
    world.here.wait_query("SELECT bool_and(held AND checked_at IS NOT NULL) FROM foreshard.nodes", "t")?;
    // What postgres_fdw commits there stays in memory for long, and nothing of ours has it written meanwhile.
    let mut there = world.there.connect("postgres")?;
    there.exec("ALTER SYSTEM SET wal_writer_delay = '10s'")?;
    there.exec("ALTER ROLE postgres SET synchronous_commit = off; SELECT pg_reload_conf()")?;
    let slot = world.here.slots("acc")?[0].clone();
    world.here.hold(Some("cutover"))?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_phase(&move_id, "cutover")?;
    world.here.set(&[("foreshard.node_check_interval", "600")])?;
    std::thread::sleep(Duration::from_millis(1_500));
    let mut writer = world.here.cluster.connect("postgres")?;
    writer.exec("UPDATE acc SET v = 'late' WHERE id BETWEEN 1 AND 50")?;
    // In the way of the exchange, not of the replay.
    writer.exec("BEGIN; UPDATE acc SET v = v WHERE id = 1000")?;
    let log = world.here.query(
        "SELECT capture_log::regclass FROM foreshard.move_relation r JOIN pg_inherits i ON i.inhrelid = r.source WHERE i.inhparent = 'acc'::regclass",
    )?;
    world.here.hold(None)?;
    world.here.wait_query(&format!("SELECT count(*) FROM {log}"), "0")?;
    world.there.kill9_postmaster()?;
    std::thread::sleep(Duration::from_millis(200));
    world.there.start_again()?;
    writer.exec("COMMIT")?;
    world.here.set(&[("foreshard.node_check_interval", "1")])?;
    world.here.wait_query(&format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}"), "t")?;
    println!("the move is {}", world.here.phase(&move_id)?);
    assert_eq!(world.here.query("SELECT count(*) FROM acc WHERE v = 'late'")?, "50");
    assert_eq!(world.here.query("SELECT count(*) FROM acc")?, ROWS.to_string());
    world.assert_nothing_left()
}

#[test]
fn others_go_on_while_a_node_is_away() -> Result<()> {
    let mut world = World::with_nodes("fault-away")?;
    world.tables(2)?;
    world.here.set(&[("foreshard.max_concurrent_moves", "1")])?;
    let slots = world.here.slots("acc")?;
    world.here.hold(Some("catch_up"))?;
    let waits = world.move_to(&slots[0], "on_n1")?;
    world.here.wait_phase(&waits, "catch_up")?;
    world.there.kill9_postmaster()?;
    world.here.hold(None)?;
    let to = if world.shard_of(&slots[1])? == "sa" { "sb" } else { "sa" };
    let goes = world.move_to(&slots[1], to)?;
    world.here.wait_end(&goes, "done")?;
    world.there.start_again()?;
    world.here.wait_end(&waits, "done")?;
    // An old copy is all that there is of a slot whose node does not answer: it outlives its time, and can be read.
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    world.here.set(&[("foreshard.rollback_window", "600")])?;
    let watched = world.move_to(&slots[1], "on_n1")?;
    let phase = format!("SELECT phase FROM foreshard.move WHERE move_id = {watched}");
    world.here.wait_query(&phase, "watch")?;
    world.there.kill9_postmaster()?;
    world.here.wait_query("SELECT bool_and(state = 'down') FROM foreshard.nodes", "t")?;
    world.here.set(&[("foreshard.rollback_window", "1")])?;
    std::thread::sleep(Duration::from_millis(3_000));
    assert_eq!(world.here.query(&phase)?, "watch");
    let kept = world.here.query(
        "SELECT retained_copy FROM foreshard.retained_copies WHERE \"table\" = 'acc'::regclass AND held_by = 'n1' \
           AND node_state = 'down' AND retained_on = 'local' AND complete_to <= clock_timestamp()",
    )?;
    assert_ne!(world.here.query(&format!("SELECT count(*) FROM {kept}"))?, "0");
    let told = "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'of table % is on node n1, which does not answer'";
    assert_eq!(world.here.query(told)?, "2");
    world.there.start_again()?;
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    world.here.wait_end(&watched, "done")?;
    world.here.set(&[("foreshard.rollback_window", "0")])?;
    world.assert_nothing_left()?;
    assert_eq!(world.here.query("SELECT count(*) FROM acc")?, ROWS.to_string());
    Ok(())
}

/// What is written after a swap comes into the old copy without anybody asking for it, and leaves the log.
#[test]
fn an_old_copy_follows_the_slot() -> Result<()> {
    let mut world = World::with_nodes("fault-follows")?;
    world.tables(1)?;
    let slot = world.here.slots("acc")?[0].clone();
    // A way back that was not prepared is not begun.
    world.here.hold(Some("cutover"))?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_phase(&move_id, "cutover")?;
    world.here.set(&[("foreshard.rollback_window", "600")])?;
    world.here.hold(None)?;
    world.here.wait_end(&move_id, "done")?;
    for (to, log_is_there) in [("sb", false), ("on_n2", true)] {
        let move_id = world.move_to(&slot, to)?;
        let phase = format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}");
        world.here.wait_query(&phase, "watch")?;
        let kept = "SELECT retained_copy FROM foreshard.retained_copies WHERE \"table\" = 'acc'::regclass";
        let kept = world.here.query(kept)?;
        world.here.query(
            "UPDATE acc SET v = v || '!' WHERE id <= 300; DELETE FROM acc WHERE id BETWEEN 400 AND 450",
        )?;
        let sum = "SELECT md5(string_agg(id || v, ',' ORDER BY id)) FROM";
        let now = world.here.query(&format!("{sum} acc"))?;
        assert_ne!(world.here.query(&format!("{sum} {kept}"))?, now, "nothing has followed yet");
        // As if half a minute had passed.
        world.here.query(&format!(
            "UPDATE foreshard.move SET swapped_at = swapped_at - interval '1 min', checked_at = NULL WHERE move_id = {move_id}"
        ))?;
        world.here.wait_query(&format!("{sum} {kept}"), &now)?;
        let log = if log_is_there {
            let remote = "SELECT 'foreshard_log_' || max(remote_id) FROM foreshard.remote_table WHERE table_oid = 'acc'::regclass";
            let log = world.here.query(remote)?;
            let count = format!("SELECT count(*) FROM {log}");
            let mut there = world.there.connect("second")?;
            foreshard_test::wait_until("the log on the node is empty", Duration::from_secs(20), || {
                Ok(there.query_one(&count)? == "0")
            })?;
            "0".to_string()
        } else {
            let log = "SELECT capture_log::regclass FROM foreshard.move_relation r JOIN pg_inherits i ON i.inhrelid = r.source \
                WHERE i.inhparent = 'acc'::regclass AND r.move_id = ";
            let log = world.here.query(&format!("{log}{move_id}"))?;
            world.here.query(&format!("SELECT count(*) FROM {log}"))?
        };
        assert_eq!(log, "0");
        world.here.query(&format!("SELECT foreshard.rollback_move({move_id})"))?;
        world.here.wait_end(&move_id, "cancelled")?;
        assert_eq!(world.here.query(&format!("{sum} acc"))?, now);
        world.assert_nothing_left()?;
        world.here.query("INSERT INTO acc SELECT g, 'again' FROM generate_series(400, 450) g")?;
    }
    world.here.set(&[("foreshard.rollback_window", "0")])?;
    Ok(())
}

#[test]
fn a_node_that_is_gone_for_good_is_forgotten() -> Result<()> {
    let mut world = World::with_nodes("fault-gone")?;
    world.tables(1)?;
    let slot = world.here.slots("acc")?[0].clone();
    world.here.hold(Some("catch_up"))?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_phase(&move_id, "catch_up")?;
    let mut c = world.here.cluster.connect("postgres")?;
    expect_code(c.exec("SELECT foreshard.drop_node('n1', force => true)"), "55000");
    expect_code(c.exec("SELECT foreshard.drop_node('n1', force => NULL)"), "22023");
    world.there.kill9_postmaster()?;
    c.exec(&format!("SELECT foreshard.cancel_move({move_id})"))?;
    world.here.hold(None)?;
    world.here.wait_end(&move_id, "cancelled")?;
    world.here.wait_query("SELECT bool_and(state = 'down') FROM foreshard.nodes", "t")?;
    c.exec("SELECT foreshard.drop_shard('on_n1')")?;
    expect_code(c.exec("SELECT foreshard.drop_node('n1')"), "55006");
    c.exec("SELECT foreshard.drop_node('n1', force => true)")?;
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.remote_table")?, "0");
    assert_eq!(c.query_one("SELECT string_agg(node::text, ' ') FROM foreshard.nodes")?, "n2");
    Ok(())
}

#[test]
fn a_group_moves_between_two_shards_of_one_node() -> Result<()> {
    let mut world = World::with_nodes("fault-twice")?;
    world.here.query("SELECT foreshard.add_shard('on_n1_too', node => 'n1')")?;
    world.tables(1)?;
    let slot = world.here.slots("acc")?[0].clone();
    for shard in ["on_n1", "on_n1_too"] {
        let move_id = world.move_to(&slot, shard)?;
        world.here.wait_end(&move_id, "done")?;
        assert_eq!(world.shard_of(&slot)?, shard);
    }
    assert_eq!(world.here.query("SELECT count(*) FROM acc")?, ROWS.to_string());
    world.assert_nothing_left()
}

#[test]
fn long_logs_are_replayed_whatever_changes_places() -> Result<()> {
    let mut world = World::with_nodes("fault-log")?;
    world.here.query(
        "CREATE TABLE u (tenant bigint, id bigint, place bigint NOT NULL, PRIMARY KEY (tenant, id)); \
         CREATE UNIQUE INDEX u_place ON u (tenant, place); INSERT INTO u SELECT 1, g, g FROM generate_series(1, 21000) g; \
         SELECT foreshard.distribute('u', 'tenant', 1, remote => true, shards => '{sa}')",
    )?;
    let slot = world.here.slots("u")?[0].clone();
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    // More keys than a verification leaves out, and each has the value of another one that comes in a later part of the log.
    world.here.hold(Some("verify"))?;
    let move_id = world.move_to(&slot, "on_n2")?;
    world.here.wait_phase(&move_id, "verify")?;
    world.here.query("UPDATE u SET place = -place")?;
    world.here.query("UPDATE u SET place = 21001 + place")?;
    world.here.hold(None)?;
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(
        world
            .here
            .query("SELECT count(*) || ' ' || count(DISTINCT place) FROM u WHERE id + place = 21001")?,
        "21000 21000"
    );
    world.assert_nothing_left()
}

#[test]
fn who_holds_a_table_on_its_node_is_waited_for_without_writers() -> Result<()> {
    let mut world = World::with_nodes("fault-held")?;
    world.tables(1)?;
    let slot = world.here.slots("acc")?[0].clone();
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let table = remote(&mut world)?;
    // As autovacuum does.
    let mut holder: Client = world.there.connect("postgres")?;
    let hold = format!("BEGIN; LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE");
    for phase in ["capture", "cutover"] {
        world.here.hold(Some(phase))?;
        let moves = format!("SELECT count(*) FROM foreshard.move WHERE slot_id = {slot} AND NOT finished");
        if world.here.query(&moves)? == "0" {
            world.move_to(&slot, "on_n2")?;
        }
        let move_id = world.here.query("SELECT max(move_id) FROM foreshard.move")?;
        world.here.wait_phase(&move_id, phase)?;
        holder.exec(&hold)?;
        world.here.hold(if phase == "capture" { Some("cutover") } else { None })?;
        waiting_for(&mut world, &move_id, "node n1: pid %ShareUpdateExclusiveLock%")?;
        world.here.query("UPDATE acc SET v = 'not held up' WHERE id = 7")?;
        holder.exec("COMMIT")?;
    }
    let move_id = world.here.query("SELECT max(move_id) FROM foreshard.move")?;
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(world.here.query("SELECT v FROM acc WHERE id = 7")?, "not held up");
    world.assert_nothing_left()
}

#[test]
fn tables_that_cannot_be_there_say_so() -> Result<()> {
    let mut world = World::with_nodes("fault-tables")?;
    let mut c = world.here.cluster.connect("postgres")?;
    c.exec(
        "CREATE TABLE v (id bigint PRIMARY KEY, w int); CREATE ROLE reader LOGIN; \
         CREATE USER MAPPING FOR reader SERVER s_n1 OPTIONS (user 'postgres'); \
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM count(*) FROM new_rows; RETURN NULL; END'",
    )?;
    let trigger = "CREATE TRIGGER see AFTER INSERT ON v REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION see()";
    c.exec(trigger)?;
    let error = expect_code(c.exec("SELECT foreshard.distribute('v', 'id', 1, remote => true)"), "0A000");
    assert!(
        error.detail.as_deref().is_some_and(|detail| detail.contains("transition_table: see")),
        "{error}"
    );
    c.exec(
        "DROP TRIGGER see ON v; SELECT foreshard.distribute('v', 'id', 1, remote => true, shards => '{sa}')",
    )?;
    let slot = world.here.slots("v")?[0].clone();
    for (make, undo, word) in [
        (trigger, "DROP TRIGGER see ON v", "transition_table: see"),
        ("GRANT INSERT (w) ON v TO reader", "REVOKE ALL ON v FROM reader", "column_rights: reader"),
        (
            "ALTER TABLE v ENABLE ROW LEVEL SECURITY; GRANT SELECT ON v TO reader",
            "REVOKE ALL ON v FROM reader",
            "row_security: ",
        ),
    ] {
        c.exec(make)?;
        let move_id = world.move_to(&slot, "on_n1")?;
        world.here.wait_end(&move_id, "failed")?;
        let why = format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}");
        let why = world.here.query(&why)?;
        assert!(why.contains(word), "{why}");
        c.exec(undo)?;
    }
    // Nobody but the owner has rights on it.
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let told = "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'a trigger has transition tables%' AND detail = 'trigger see'";
    assert_eq!(c.query_one(told)?, "0");
    c.exec(trigger)?;
    assert_eq!(c.query_one(told)?, "1");
    expect_code(c.exec("INSERT INTO v VALUES (1, 1)"), "0A000");
    c.exec("DROP TRIGGER see ON v; INSERT INTO v VALUES (1, 1)")?;
    world.assert_nothing_left()
}

/// What hangs on one partition alone would go with it: a move is refused, also when it was made in its middle, on either side.
#[test]
fn what_is_made_on_a_partition_alone_is_not_lost() -> Result<()> {
    let mut world = World::with_nodes("fault-own")?;
    world.here.query(
        "CREATE TABLE v (id bigint PRIMARY KEY, w int, x int); INSERT INTO v SELECT g, g, g FROM generate_series(1, 500) g; \
         SELECT foreshard.distribute('v', 'id', 1, remote => true, shards => '{sa}'); \
         CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    )?;
    let slot = world.here.slots("v")?[0].clone();
    let leaf = "SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'v'::regclass";
    let leaf = world.here.query(leaf)?;
    for (to, held) in [("on_n1", "catch_up"), ("on_n2", "verify"), ("sb", "cutover")] {
        for (make, undo, word) in [
            (
                format!("CREATE TRIGGER own AFTER UPDATE ON {leaf} FOR EACH ROW EXECUTE FUNCTION own()"),
                format!("DROP TRIGGER own ON {leaf}"),
                "own_trigger: own",
            ),
            (
                format!("CREATE STATISTICS own_stats (ndistinct) ON w, x FROM {leaf}"),
                "DROP STATISTICS own_stats".to_string(),
                "own_statistics: own_stats",
            ),
        ] {
            world.here.hold(Some(held))?;
            let move_id = world.move_to(&slot, to)?;
            world.here.wait_phase(&move_id, held)?;
            world.here.query(&make)?;
            world.here.hold(None)?;
            world.here.wait_end(&move_id, "failed")?;
            let why = format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}");
            let why = world.here.query(&why)?;
            assert!(why.contains(word), "to {to}: {why}");
            // Undone, it may go; that it was there before is a reason as well.
            let move_id = world.move_to(&slot, to)?;
            world.here.wait_end(&move_id, "failed")?;
            world.here.query(&undo)?;
        }
        let move_id = world.move_to(&slot, to)?;
        world.here.wait_end(&move_id, "done")?;
    }
    assert_eq!(world.here.query("SELECT count(*) FROM v")?, "500");
    world.assert_nothing_left()
}

#[test]
fn texts_are_not_ordered_otherwise_on_a_node() -> Result<()> {
    let mut world = World::with_nodes("fault-order")?;
    world.there.connect("postgres")?.exec("CREATE DATABASE third TEMPLATE template0 LOCALE 'C'")?;
    world.here.query(&format!(
        "CREATE SERVER s_n3 FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}', port '{}', dbname 'third', connect_timeout '2'); \
         CREATE USER MAPPING FOR postgres SERVER s_n3 OPTIONS (user 'postgres'); \
         SELECT foreshard.add_node('n3', 's_n3'); SELECT foreshard.add_shard('on_n3', node => 'n3'); \
         CREATE TABLE v (id bigint PRIMARY KEY, w text); SELECT foreshard.distribute('v', 'id', 1, remote => true, shards => '{{sa}}'); \
         CREATE TABLE u (id bigint PRIMARY KEY, w text COLLATE \"C\"); SELECT foreshard.distribute('u', 'id', 1, remote => true, shards => '{{sa}}')",
        world.there.socket_dir().display(),
        world.there.port()
    ))?;
    let slot = world.here.slots("v")?[0].clone();
    let move_id = world.move_to(&slot, "on_n3")?;
    world.here.wait_end(&move_id, "failed")?;
    let why = format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}");
    let why = world.here.query(&why)?;
    assert!(why.contains("collation: w would be ordered by \"c c c\" on node \"n3\""), "{why}");
    for (slot, shard) in [(slot, "on_n1"), (world.here.slots("u")?[0].clone(), "on_n3")] {
        let move_id = world.move_to(&slot, shard)?;
        world.here.wait_end(&move_id, "done")?;
    }
    Ok(())
}

/// A carrier that was lost may have left an index at work on its node: the next one waits for it, and builds none twice nor
/// takes another for built.
#[test]
fn an_index_that_is_still_built_there_is_waited_for() -> Result<()> {
    let mut world = World::with_nodes("fault-index")?;
    world.here.query(
        "CREATE TABLE v (id bigint PRIMARY KEY, w int, x int); CREATE INDEX v_w ON v (w); CREATE INDEX v_x ON v (x); \
         INSERT INTO v SELECT g, g % 7, g % 11 FROM generate_series(1, 500) g; \
         SELECT foreshard.distribute('v', 'id', 1, remote => true, shards => '{sa}')",
    )?;
    let slot = world.here.slots("v")?[0].clone();
    world.here.hold(Some("index"))?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_phase(&move_id, "index")?;
    let table = remote(&mut world)?;
    let mut there = world.there.connect("postgres")?;
    there.exec(&format!("ALTER TABLE {table} ADD PRIMARY KEY (id)"))?;
    there.exec(&format!("BEGIN; CREATE INDEX ON {table} (w)"))?;
    world.here.hold(None)?;
    let mut looks = world.there.connect("postgres")?;
    let waits =
        format!("SELECT count(*) > 0 FROM pg_locks WHERE relation = '{table}'::regclass AND NOT granted");
    foreshard_test::wait_until("the carrier waits", Duration::from_secs(20), || {
        Ok(looks.query_one(&waits)? == "t")
    })?;
    there.exec("COMMIT")?;
    world.here.wait_end(&move_id, "done")?;
    let indexes = format!(
        "SELECT string_agg(substring(pg_get_indexdef(indexrelid) FROM '[(].*'), ' ' ORDER BY indkey::text) FROM pg_index WHERE indrelid = '{table}'::regclass"
    );
    let indexes = there.query_one(&indexes)?;
    assert_eq!(indexes, "(id) (w) (x)");
    world.assert_nothing_left()
}
