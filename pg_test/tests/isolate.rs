//! Chosen keys get partitions of their own and go home again, without anybody noticing.

mod common;

use common::ledger::{self, Ledger};
use common::placed::{assert_located, expect_code};
use common::{Random, Server, in_turn, options};
use foreshard_test::Result;

/// Every key that has a partition of its own, with its shard, as foreshard and as PostgreSQL have it.
fn placed(server: &mut Server, table: &str) -> Result<String> {
    server.query(&format!(
        "SELECT string_agg(format('%s%s@%s', k.key, CASE WHEN k.isolated THEN '!' END, k.shard), ' ' ORDER BY k.key::bigint) \
         FROM foreshard.placed_keys('{table}') k JOIN foreshard.slots s ON s.slot_id = k.slot_id AND s.\"table\" = '{table}'::regclass \
         JOIN pg_class c ON c.oid = s.partition WHERE pg_get_expr(c.relpartbound, c.oid) ~ ('[('' ]' || k.key || '[)'']') AND s.shard = k.shard"
    ))
}

/// A server with two colocated tables of two slots, one on each shard, and clients that write them.
fn start(name: &str, rows: u64) -> Result<(Server, Ledger)> {
    let mut server = Server::start(&options(name).set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, rows)?;
    server.query(
        "CREATE INDEX ON acc (left(v, 8)); SELECT foreshard.distribute('acc', 'id', 2); \
         SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    let slot = server.slots("acc")?[1].clone();
    server.move_and_wait(&slot)?;
    let ledger = Ledger::start(&server, rows, 3);
    Ok((server, ledger))
}

fn check(server: &mut Server, ledger: &Ledger, expected: &str) -> Result<()> {
    server.wait_moves()?;
    ledger.work(30)?;
    ledger.assert_equal(server)?;
    for table in ["acc", "note"] {
        assert_eq!(placed(server, table)?, expected, "chosen keys of {table}");
        assert_located(server, table, "id")?;
    }
    server.assert_settled()
}

#[test]
fn nobody_notices() -> Result<()> {
    let (mut server, ledger) = start("isolate", 6_000)?;
    let shard = server.query("SELECT foreshard.get_shard_location('acc', 17)")?;
    // A generic plan knows nothing of the keys to come.
    let mut prepared = server.cluster.connect("postgres")?;
    prepared.exec("SET plan_cache_mode = force_generic_plan; SET jit = off")?;
    prepared.prepare("by_key", "SELECT count(*) FROM acc WHERE id = $1")?;
    prepared.exec_prepared("by_key", &[Some("17")])?;
    assert_ne!(server.query("SELECT foreshard.isolate_key('acc', 17)")?, "");
    check(&mut server, &ledger, &format!("17!@{shard}"))?;
    prepared.exec_prepared("by_key", &[Some("17")])?;
    assert_eq!(server.query("SELECT foreshard.isolate_key('acc', 17) IS NULL")?, "t", "it is so already");
    // Its slot is one like any other: it can be elsewhere.
    let slot = server.query("SELECT slot_id FROM foreshard.placed_keys('acc')")?;
    server.move_and_wait(&slot)?;
    let other = if shard == "sa" { "sb" } else { "sa" };
    check(&mut server, &ledger, &format!("17!@{other}"))?;
    assert_eq!(server.query("SELECT foreshard.get_shard_location('note', 17)")?, other);
    // Many keys, changes, and the way home, for both slots at once.
    server.query(
        "SELECT foreshard.place_keys('note', jsonb_object_agg(g, 'sa')) FROM generate_series(100, 109) g",
    )?;
    let at = |server: &mut Server| -> Result<String> {
        let sql = "SELECT string_agg(key || '@' || shard, ' ' ORDER BY key::int) FROM foreshard.placed_keys('acc') WHERE NOT isolated";
        server.query(sql)
    };
    server.wait_moves()?;
    let first = at(&mut server)?;
    assert!(first.contains("@sa") && !first.contains("@sb") && first.split(' ').count() < 10, "{first}");
    let key = first.split('@').next().unwrap_or_default().to_string();
    server.query(&format!("SELECT foreshard.place_keys('acc', '{{\"{key}\": null, \"5\": \"sa\", \"6\": \"sb\", \"7\": \"sa\", \"8\": \"sb\"}}', whole => false)"))?;
    server.wait_moves()?;
    let second = at(&mut server)?;
    assert!(
        !second.contains(&format!("{key}@")) && second.split(' ').count() >= 5,
        "{first} became {second}"
    );
    let all = format!("17!@{other} {second}");
    let mut all: Vec<&str> = all.split(' ').collect();
    all.sort_by_key(|entry| entry.split(['!', '@']).next().and_then(|key| key.parse::<i64>().ok()));
    check(&mut server, &ledger, &all.join(" "))?;
    // One partition is looked at for one key, and only the slot's for others.
    let plan = server.query("EXPLAIN (COSTS off) SELECT * FROM acc WHERE id = 17")?;
    assert_eq!(plan.matches(" on acc_").count(), 1, "{plan}");
    server.query("SELECT foreshard.place_keys('acc', '{}')")?;
    check(&mut server, &ledger, &format!("17!@{other}"))?;
    server.query("SELECT foreshard.unisolate_key('note', '17'::text)")?;
    check(&mut server, &ledger, "")?;
    let held = "SELECT max((detail->>'held_us')::int) FROM foreshard.history WHERE event = 'cutover'";
    println!("locks were held for at most {} us", server.query(held)?);
    let shape = "SELECT count(*), bool_and(relkind = 'r') FROM pg_partition_tree('acc') JOIN pg_class ON oid = relid WHERE level > 0";
    assert_eq!(server.query(shape)?, "2|t", "it is as it was");
    ledger.finish();
    server.query("SELECT foreshard.isolate_key('acc', 17)")?;
    server.wait_moves()?;
    server.query("SELECT foreshard.undistribute('note'); SELECT foreshard.undistribute('acc')")?;
    server.assert_clean()
}

#[test]
fn killed_in_every_phase() -> Result<()> {
    let (mut server, ledger) = start("isolate-crash", 3_000)?;
    let mut random = Random::new(11);
    for (round, phase) in in_turn(&["copy", "capture", "cutover", "verify", "retire"]) {
        println!("killed in {phase}");
        server.hold(Some(phase))?;
        let keys: Vec<String> = (0..6)
            .map(|_| {
                format!("\"{}\": \"s{}\"", random.below(300), if random.below(2) == 0 { 'a' } else { 'b' })
            })
            .collect();
        let moves = server
            .query(&format!("SELECT unnest(foreshard.place_keys('acc', '{{{}}}'))", keys.join(", ")))?;
        let move_id = moves.lines().next().unwrap_or_default().to_string();
        let pid = server.wait_phase(&move_id, phase)?;
        ledger.work(30)?;
        if round % 2 == 1 {
            let _ = server.cluster.kill9(pid);
        } else {
            server.cluster.kill9_postmaster()?;
            server.cluster.start_again()?;
        }
        if round == 3 {
            server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?;
            server.hold(None)?;
            server.wait_end(&move_id, "cancelled")?;
            server.query("DELETE FROM foreshard.move WHERE phase = 'cancelled'")?;
        }
        server.hold(None)?;
        server.wait_moves()?;
        ledger.work(20)?;
        ledger.assert_equal(&mut server)?;
        assert_located(&mut server, "acc", "id")?;
        assert_eq!(placed(&mut server, "acc")?, placed(&mut server, "note")?);
    }
    ledger.finish();
    server.assert_settled()
}

#[test]
fn what_cannot_be_says_why() -> Result<()> {
    let mut server = Server::start(&options("isolate-refuse").set("foreshard.max_leaves", "6"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g FROM generate_series(1, 100) g; SELECT foreshard.distribute('t', 'id', 2); \
         CREATE TABLE nokey (id bigint, v text); SELECT foreshard.distribute('nokey', 'id', 1); \
         CREATE TABLE odd (id xid NOT NULL); SELECT foreshard.distribute('odd', 'id', 1); CREATE TABLE plain (id int)",
    )?;
    let mut c = server.cluster.connect("postgres")?;
    let error = expect_code(c.exec("SELECT foreshard.isolate_key('nokey', 1)"), "0A000");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("no_identity_index")) && error.hint.is_some());
    let error = expect_code(c.exec("SELECT foreshard.isolate_key('odd', '5'::xid)"), "0A000");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("no_order")), "{error}");
    c.exec("CREATE TABLE inbound (t_id bigint REFERENCES t)")?;
    let error = expect_code(c.exec("SELECT foreshard.isolate_key('t', 1)"), "0A000");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("inbound_foreign_key")), "{error}");
    c.exec("DROP TABLE inbound")?;
    expect_code(c.exec("SELECT foreshard.isolate_key('plain', 1)"), "55000");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', NULL::int)"), "22023");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 'one'::text)"), "22P02");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 1, 'nowhere')"), "42704");
    expect_code(c.exec("SELECT foreshard.unisolate_key('t', 1)"), "22023");
    expect_code(c.exec("SELECT foreshard.place_keys('t', '[]')"), "22023");
    expect_code(c.exec("SELECT foreshard.place_keys('t', '{\"1\": 5}')"), "22023");
    expect_code(c.exec("SELECT foreshard.isolate_keys('t', '{1,2,3,4,5}')"), "53400");
    let long = "SELECT foreshard.place_keys('t', jsonb_object_agg(g, 'sa') || jsonb_object_agg(-g, 'sb')) FROM generate_series(1, 20000) g";
    expect_code(c.exec(long), "53400");
    c.exec("CREATE ROLE stranger; GRANT USAGE ON SCHEMA foreshard TO stranger; GRANT EXECUTE ON FUNCTION foreshard.place_keys TO stranger; SET ROLE stranger")?;
    expect_code(c.exec("SELECT foreshard.place_keys('t', '{}')"), "42501");
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 1)"), "42501");
    c.exec("RESET ROLE")?;
    c.exec("SELECT foreshard.isolate_key('t', 1)")?;
    expect_code(c.exec("SELECT foreshard.isolate_key('t', 1)"), "55006");
    server.wait_moves()?;
    // What has chosen keys is not split, nor are they.
    for slot in c
        .exec("SELECT unnest(ARRAY[slot_id, home_slot_id]) FROM foreshard.slot WHERE isolated")?
        .to_text()
        .lines()
    {
        let error = expect_code(c.exec(&format!("SELECT foreshard.split_slot({slot})")), "0A000");
        assert!(error.detail.as_deref().is_some_and(|d| d.contains("chosen_keys")), "{error}");
    }
    expect_code(c.exec("SELECT foreshard.place_keys('t', '{\"1\": \"sa\"}')"), "22023");
    let here = c.query_one("SELECT shard FROM foreshard.placed_keys('t')")?;
    let there = if here == "sa" { "sb" } else { "sa" };
    let error = expect_code(c.exec(&format!("SELECT foreshard.isolate_key('t', 1, '{there}')")), "22023");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("move_slot")), "{error}");
    c.exec("CREATE TABLE late (id bigint PRIMARY KEY)")?;
    expect_code(c.exec("SELECT foreshard.distribute('late', 'id', colocate_with => 't')"), "0A000");
    server.assert_settled()
}
