//! Splits that are built ahead, merges, and ways back.

mod common;

use common::ledger::{self, Ledger};
use common::placed::{assert_located, expect_code, layout};
use common::{PATIENCE, SPLIT_PHASES, Server, options};
use foreshard_test::{Result, in_turn, wait_until};

fn start(name: &str, rows: u64) -> Result<(Server, Ledger)> {
    let mut server = Server::start(&options(name).set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, rows)?;
    server.query(
        "SELECT foreshard.distribute('acc', 'id', 2); SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    let ledger = Ledger::start(&server, rows, 3);
    Ok((server, ledger))
}

fn wait_state(server: &mut Server, move_id: &str, state: &str) -> Result<()> {
    server.wait_query(&format!("SELECT state FROM foreshard.progress_moves WHERE move_id = {move_id}"), state)
}

/// What was built ahead outlives a crash, stays equal, and only has to be switched over to.
#[test]
fn a_prepared_split_is_a_switchover() -> Result<()> {
    let (mut server, ledger) = start("prepared", 6_000)?;
    let slots = server.slots("acc")?;
    let prepare = format!("SELECT foreshard.prepare_split({}, to_shard_b => 'sb')", slots[0]);
    let move_id = server.query(&prepare)?;
    wait_state(&mut server, &move_id, "prepared")?;
    server
        .wait_query("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard carrier'", "0")?;
    ledger.work(100)?;
    assert_eq!(layout(&mut server, "acc")?.lines().count(), 2, "nothing has changed yet");
    // Bounded, and not to be had twice.
    let mut c = server.cluster.connect("postgres")?;
    expect_code(c.exec(&prepare), "55006");
    server.set(&[("foreshard.max_prepared_splits", "1")])?;
    let error = expect_code(c.exec(&format!("SELECT foreshard.prepare_split({})", slots[1])), "53400");
    assert!(error.hint.is_some(), "{error}");
    // A crash keeps it.
    server.cluster.kill9_postmaster()?;
    server.cluster.start_again()?;
    wait_state(&mut server, &move_id, "prepared")?;
    ledger.work(60)?;
    let mut c = server.cluster.connect("postgres")?;
    let error = expect_code(
        c.exec(&format!("SELECT foreshard.split_slot({}, to_shard_b => 'sa')", slots[0])),
        "55006",
    );
    assert!(error.hint.is_some_and(|hint| hint.contains("cancel_move")));
    assert_eq!(server.query(&format!("SELECT foreshard.split_slot({})", slots[0]))?, move_id);
    server.wait_end(&move_id, "done")?;
    let copies = server.query(&format!(
        "SELECT count(*) FROM foreshard.history WHERE move_id = {move_id} AND event = 'phase' AND detail->>'to' = 'copy'"
    ))?;
    assert_eq!(copies, "1", "copies made for one split");
    ledger.work(60)?;
    ledger.assert_equal(&mut server)?;
    assert_eq!(layout(&mut server, "acc")?.lines().count(), 3);
    for table in ["acc", "note"] {
        assert_located(&mut server, table, "id")?;
    }
    server.assert_settled()?;
    // A table that is altered meanwhile has its parts built again.
    let move_id = server.query(&format!("SELECT foreshard.prepare_split({})", slots[1]))?;
    wait_state(&mut server, &move_id, "prepared")?;
    // A carrier that ended before its first look is followed by another one.
    server.query(&format!("UPDATE foreshard.move SET checked_at = NULL WHERE move_id = {move_id}"))?;
    let looked = format!("SELECT checked_at IS NOT NULL FROM foreshard.move WHERE move_id = {move_id}");
    server.wait_query(&looked, "t")?;
    server.query("ALTER TABLE acc ADD COLUMN later int DEFAULT 7")?;
    assert_eq!(server.query(&format!("SELECT foreshard.split_slot({})", slots[1]))?, move_id);
    server.wait_end(&move_id, "done")?;
    assert_eq!(server.query("SELECT count(*) FROM acc WHERE later IS DISTINCT FROM 7")?, "0");
    ledger.work(60)?;
    ledger.assert_equal(&mut server)?;
    server.assert_settled()?;
    // Discarded by hand, and after its time.
    let move_id = server.query(&format!("SELECT foreshard.prepare_split({})", slots[0]))?;
    wait_state(&mut server, &move_id, "prepared")?;
    assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    server.wait_end(&move_id, "cancelled")?;
    server.assert_settled()?;
    server.set(&[("foreshard.prepared_split_lifetime", "1s")])?;
    let move_id = server.query(&format!("SELECT foreshard.prepare_split({})", slots[0]))?;
    server.wait_end(&move_id, "cancelled")?;
    let why = server
        .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
    assert!(why.contains("prepared_split_lifetime"), "{why}");
    ledger.finish();
    server.assert_settled()
}

/// The halves of the first slot that was split: (kept, new).
fn halves(server: &mut Server) -> Result<(String, String)> {
    let pair = server.query(
        "SELECT a.slot_id, b.slot_id FROM foreshard.slot a JOIN foreshard.slot b ON a.group_id = b.group_id AND a.modulus = b.modulus \
           AND b.remainder = a.remainder + a.modulus / 2 WHERE a.modulus > 2 ORDER BY 1 LIMIT 1",
    )?;
    let (a, b) = pair.split_once('|').unwrap_or_default();
    Ok((a.to_string(), b.to_string()))
}

/// Two slots become one under writers, whoever is killed in whatever phase.
#[test]
fn merged_whatever_happens() -> Result<()> {
    let (mut server, ledger) = start("merge", 4_000)?;
    let slot = server.slots("acc")?[0].clone();
    let before = layout(&mut server, "acc")?;
    for (round, phase) in in_turn(&SPLIT_PHASES) {
        let move_id = server.split_slot(&slot)?;
        server.wait_end(&move_id, "done")?;
        let (a, b) = halves(&mut server)?;
        assert_eq!(a, slot, "the first half keeps the id");
        server.hold(Some(phase))?;
        let merge = if round / 2 % 2 == 0 { format!("{a}, {b}, 'sa'") } else { format!("{b}, {a}, 'sa'") };
        let move_id = server.query(&format!("SELECT foreshard.merge_slots({merge})"))?;
        server.wait_phase(&move_id, phase)?;
        let mut c = server.cluster.connect("postgres")?;
        if *phase != "retire" {
            expect_code(c.exec(&format!("SELECT foreshard.move_slot({b}, 'sa')")), "55006");
            expect_code(c.exec(&format!("SELECT foreshard.split_slot({a})")), "55006");
        }
        ledger.work(40)?;
        // Rounds are odd or even by the version.
        if round / 2 % 2 == 0 {
            server.cluster.kill9_postmaster()?;
            server.cluster.start_again()?;
        } else if let Some(pid) = server.carrier()? {
            let _ = server.cluster.kill9(pid);
        }
        server.hold(None)?;
        server.wait_end(&move_id, "done")?;
        ledger.work(20)?;
        ledger.assert_equal(&mut server)?;
        assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "note")?);
        let slots = layout(&mut server, "acc")?.lines().count();
        assert_eq!(slots, before.lines().count(), "slots after a merge held in {phase}");
        server.assert_settled()?;
    }
    for table in ["acc", "note"] {
        assert_located(&mut server, table, "id")?;
    }
    // Cancelled: they stay two, and either may be used again.
    let move_id = server.split_slot(&slot)?;
    server.wait_end(&move_id, "done")?;
    let (a, b) = halves(&mut server)?;
    server.hold(Some("verify"))?;
    let move_id = server.query(&format!("SELECT foreshard.merge_slots({a}, {b})"))?;
    server.wait_phase(&move_id, "verify")?;
    assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    server.hold(None)?;
    server.wait_end(&move_id, "cancelled")?;
    server.assert_settled()?;
    // What one half is granted on meanwhile is not lost with it.
    server.hold(Some("verify"))?;
    let move_id = server.query(&format!("SELECT foreshard.merge_slots({a}, {b})"))?;
    server.wait_phase(&move_id, "verify")?;
    let half = server.query(&format!(
        "SELECT partition FROM foreshard.slots WHERE slot_id = {b} AND \"table\" = 'note'::regclass"
    ))?;
    server.query(&format!("GRANT SELECT ON {half} TO PUBLIC"))?;
    server.hold(None)?;
    server.wait_end(&move_id, "failed")?;
    let why = server.query(&format!("SELECT last_error FROM foreshard.move WHERE move_id = {move_id}"))?;
    assert!(why.contains("different: privileges"), "{why}");
    server.query(&format!("REVOKE SELECT ON {half} FROM PUBLIC"))?;
    server.assert_settled()?;
    server.move_and_wait(&b)?;
    ledger.finish();
    server.assert_settled()
}

/// Within the window a split is undone by its old storage, which every later write has reached.
#[test]
fn a_split_has_a_way_back() -> Result<()> {
    let (mut server, ledger) = start("way-back", 4_000)?;
    server.set(&[("foreshard.rollback_window", "600s")])?;
    // Values in dropped columns, columns that old rows lack, values that are toasted.
    server.query(
        "ALTER TABLE acc ADD COLUMN gone text DEFAULT 'g'; UPDATE acc SET gone = repeat('y', 100) WHERE id % 5 = 0; ALTER TABLE acc DROP COLUMN gone; \
         ALTER TABLE acc ADD COLUMN later int DEFAULT 7, ADD COLUMN big text; ALTER TABLE acc ALTER big SET STORAGE external; \
         UPDATE acc SET big = repeat('x', 5000) WHERE id % 50 = 0; CREATE INDEX by_length ON acc (length(v)); ANALYZE acc",
    )?;
    let misplaced = server.query(
        "SELECT format('ALTER INDEX %s SET TABLESPACE %I', indexrelid::regclass, shard) FROM foreshard.slots JOIN pg_index ON indrelid = partition",
    )?;
    // One by one: two locks at once could be in a deadlock with the clients'.
    for change in misplaced.lines() {
        server.query(change)?;
    }
    let slot = server.slots("acc")?[0].clone();
    let before = layout(&mut server, "acc")?;
    let held = "SELECT max((detail->>'held_us')::int) FROM foreshard.history WHERE event = 'cutover'";
    for crash in [false, true] {
        if crash {
            server.hold(Some("retire"))?;
        }
        let move_id = server.split_slot(&slot)?;
        if crash {
            // The old storage has changed hands, and nobody has cleaned up yet.
            server.wait_phase(&move_id, "retire")?;
            server.cluster.kill9_postmaster()?;
            server.cluster.start_again()?;
            server.hold(None)?;
        }
        server.wait_end(&move_id, "done")?;
        assert_eq!(layout(&mut server, "acc")?.lines().count(), 3);
        println!("held for {} us", server.query(held)?);
        let way =
            server.query(&format!("SELECT move_id FROM foreshard.move WHERE way_back_of = {move_id}"))?;
        wait_state(&mut server, &way, "prepared")?;
        ledger.work(100)?;
        if crash {
            server.cluster.kill9_postmaster()?;
            server.cluster.start_again()?;
            ledger.work(50)?;
        }
        // A row whose key somebody else is changing has gone to another partition.
        let change = "UPDATE acc SET big = repeat('z', 6000), later = 8 WHERE id % 100 = 0";
        let mut c = server.cluster.connect("postgres")?;
        while let Err(error) = c.exec(change) {
            assert_eq!(error.sqlstate, "40001", "{error}");
        }
        // By hand, or as what was recommended: the same way, and remembered.
        server
            .query(&format!("UPDATE foreshard.move SET recommendation_id = 815 WHERE move_id = {move_id}"))?;
        if crash {
            assert_eq!(server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?, "t");
        } else {
            assert_eq!(server.query("SELECT foreshard.undo_recommendation(815)")?, way);
        }
        server.wait_end(&way, "done")?;
        let undone =
            format!("SELECT undone_by, undone_at IS NOT NULL FROM foreshard.move WHERE move_id = {move_id}");
        assert_eq!(server.query(&undone)?, format!("{way}|t"));
        assert_eq!(server.fails("SELECT foreshard.undo_recommendation(815)")?.sqlstate, "55000");
        let copies = server.query(&format!(
            "SELECT count(*) FROM foreshard.history WHERE move_id = {way} AND detail->>'to' = 'copy'"
        ))?;
        assert_eq!(copies, "0", "nothing is copied on the way back");
        ledger.work(50)?;
        ledger.assert_equal(&mut server)?;
        assert_eq!(layout(&mut server, "acc")?, before);
        let known = server.query(
            "SELECT bool_and(EXISTS (SELECT FROM pg_statistic WHERE starelid = s.partition)), \
                 bool_and((SELECT count(*) FROM pg_statistic JOIN pg_index ON indexrelid = starelid WHERE indrelid = s.partition) = 1) \
             FROM foreshard.slots s WHERE \"table\" = 'acc'::regclass",
        )?;
        assert_eq!(known, "t|t", "what the planner knows of partitions and indexes");
        // Nothing of what was stored in either copy is garbled.
        assert_eq!(
            server.query(
                "SELECT bool_and(big IS NULL OR big IN (repeat('x', 5000), repeat('z', 6000))), bool_and(later IN (7, 8)), \
                     count(*) FILTER (WHERE big LIKE 'z%' AND later = 8) > 5, count(*) FILTER (WHERE big LIKE 'x%') > 5 FROM acc"
            )?,
            "t|t|t|t"
        );
        server.assert_settled()?;
    }
    // Too late; altered.
    let move_id = server.split_slot(&slot)?;
    server.wait_end(&move_id, "done")?;
    let way = server.query(&format!("SELECT move_id FROM foreshard.move WHERE way_back_of = {move_id}"))?;
    server.query("ALTER TABLE acc ADD COLUMN newest int")?;
    server.set(&[("foreshard.rollback_window", "1s")])?;
    server.wait_end(&way, "cancelled")?;
    let error = server.fails(&format!("SELECT foreshard.rollback_move({move_id})"))?;
    assert_eq!(error.sqlstate, "0A000", "{error}");
    ledger.work(20)?;
    ledger.finish();
    server.assert_settled()
}

/// What somebody attaches or detaches by hand is followed as far as it can be, and told.
#[test]
fn partitions_changed_by_hand_are_followed() -> Result<()> {
    let mut server = Server::start(&options("by-hand"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v int); INSERT INTO t SELECT g FROM generate_series(1, 1000) g; SELECT foreshard.distribute('t', 'id', 4)",
    )?;
    let problems = "SELECT string_agg(concat_ws(' ', slot_id, partition, problem), ',' ORDER BY problem) FROM foreshard.layout_problems";
    assert_eq!(server.query(problems)?, "");
    let bound = server.query(
        "SELECT partition, slot_id, modulus, remainder FROM foreshard.slots ORDER BY slot_id LIMIT 1",
    )?;
    let parts: Vec<&str> = bound.split('|').collect();
    let [partition, slot, modulus, remainder] = parts[..] else { panic!("{bound}") };
    server.query(&format!("ALTER TABLE t DETACH PARTITION {partition}"))?;
    assert_eq!(server.query(problems)?, format!("{slot} no_partition"), "at once");
    server.wait_query("SELECT count(*) FROM foreshard.history WHERE event = 'detached'", "1")?;
    server.wait_query("SELECT count(*) FROM foreshard.slots", "3")?;
    // The halves of its bound are no slot of ours; its own bound is.
    server.query(&format!(
        "CREATE TABLE half (LIKE t); ALTER TABLE t ATTACH PARTITION half FOR VALUES WITH (MODULUS {}, REMAINDER {remainder})",
        modulus.parse::<i32>().unwrap_or(0) * 2
    ))?;
    assert_eq!(server.query(problems)?, format!("{slot} no_partition,half no_slot"));
    server.query(&format!(
        "ALTER TABLE t DETACH PARTITION half; ALTER TABLE t ATTACH PARTITION {partition} FOR VALUES WITH (MODULUS {modulus}, REMAINDER {remainder})"
    ))?;
    server.wait_query("SELECT count(*) FROM foreshard.history WHERE event = 'attached'", "1")?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.slots")?, "4");
    assert_eq!(server.query(problems)?, "");
    server.move_and_wait(slot)?;
    assert_located(&mut server, "t", "id")?;
    server.assert_settled()
}

/// What the planner says about slots that are or will be too hot, or cold; and that the auto mode builds ahead.
#[test]
fn divided_by_load() -> Result<()> {
    let mut server = Server::start(
        &options("divide")
            .set("foreshard.forecast_horizon", "1d")
            .set("foreshard.plan_interval", "1s")
            .set("foreshard.cooldown", "0")
            .set("foreshard.heat_half_life", "1s")
            .set("foreshard.hot_slot_threshold", "1")
            .set("foreshard.key_sample_interval", "1")
            .set("foreshard.observe_budget", "100"),
    )?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v int); INSERT INTO t SELECT g FROM generate_series(1, 1000) g; SELECT foreshard.distribute('t', 'id', 4)",
    )?;
    let slot = server.slots("t")?[0].clone();
    // The first slot alone has a peak every day, from three hours from now on; the least load is now.
    server.query(&format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 3600, s.slot_id, to_timestamp(h * 3600), 1, 1, 1, \
             CASE WHEN s.slot_id = {slot} AND ((h - now) % 24 + 24) % 24 BETWEEN 3 AND 6 THEN 200 WHEN ((h - now) % 24 + 24) % 24 = 0 THEN 5 ELSE 10 END \
         FROM foreshard.slot s, LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, generate_series(now - 28 * 24, now - 1) h"
    ))?;
    let said = format!(
        "SELECT concat_ws(' ', action, refusal) FROM foreshard.recommendations WHERE slot_id = {slot} AND action <> 'move' AND advice IS NOT NULL"
    );
    let keys = |server: &mut Server, sampled: i32, top: f64, second: f64| {
        server.query(&format!(
            "INSERT INTO foreshard.slot_keys VALUES ({slot}, {sampled}, 100, {top}, {second}, now()) \
             ON CONFLICT (slot_id) DO UPDATE SET sampled = excluded.sampled, top_share = excluded.top_share, second_share = excluded.second_share"
        ))
    };
    server.wait_query(&said, "none few_keys_sampled")?;
    keys(&mut server, 1, 0.9, 0.9)?;
    server.wait_query(&said, "none popular_key")?;
    // Once the key can be told, it is isolated; and brought back.
    server.query(&format!(
        "INSERT INTO foreshard.hot_key SELECT s.group_id, 1, 't', {slot}, (SELECT min(t.id) FROM t JOIN foreshard.slots p ON p.partition = t.tableoid AND p.slot_id = {slot}), \
             false, 100, 90, 110, 100, now() FROM foreshard.slot s WHERE s.slot_id = {slot}"
    ))?;
    let ahead = format!(
        "SELECT action, start_at < now() + interval '2 h', overload_at > now() + interval '1 h', jsonb_array_length(keys) FROM foreshard.recommendations WHERE slot_id = {slot} AND action <> 'move'"
    );
    server.wait_query(&ahead, "isolate|t|t|1")?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.move")?, "0", "advice only");
    // Not in hours that are not left for moves.
    let later = server.query("SELECT to_char(now() AT TIME ZONE 'UTC' + interval '2 h', 'HH24:MI-') || to_char(now() AT TIME ZONE 'UTC' + interval '3 h', 'HH24:MI UTC')")?;
    server.set(&[("foreshard.mode", "auto"), ("foreshard.move_window", &later)])?;
    let waits = format!(
        "SELECT refusal IS NOT DISTINCT FROM 'outside_window' OR start_at > now() + interval '1 h' FROM foreshard.recommendations WHERE slot_id = {slot} AND action = 'isolate'"
    );
    server.wait_query(&waits, "t")?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.move")?, "0", "outside of the hours");
    server.set(&[("foreshard.move_window", "")])?;
    server.wait_query("SELECT count(*) FROM foreshard.placed_keys('t') WHERE isolated", "1")?;
    server.set(&[("foreshard.mode", "advise")])?;
    server.wait_moves()?;
    let upon = server.query(
        "SELECT m.recommendation_id FROM foreshard.history h JOIN foreshard.move m USING (move_id) \
         WHERE h.event = 'auto' AND m.kind = 'place' AND (h.detail ->> 'recommendation_id')::int8 = m.recommendation_id",
    )?;
    server.query(&format!("SELECT foreshard.undo_recommendation({upon})"))?;
    server.wait_query("SELECT count(*) FROM foreshard.placed_keys('t')", "0")?;
    server.wait_moves()?;
    server.query("DELETE FROM foreshard.hot_key; UPDATE foreshard.move SET undone_at = NULL; DELETE FROM foreshard.move")?;
    keys(&mut server, 500, 0.1, 0.95)?;
    server.wait_query(&said, "none unbalanced_cut")?;
    keys(&mut server, 500, 0.1, 0.5)?;
    let ahead = format!(
        "SELECT action, start_at < now() + interval '2 h', overload_at > now() + interval '1 h', to_shard <> from_shard FROM foreshard.recommendations WHERE slot_id = {slot} AND action <> 'move'"
    );
    server.wait_query(&ahead, "prepare|t|t|t")?;
    let dry = server.query(&format!(
        "SELECT count(*) FROM foreshard.recommend() WHERE action = 'prepare' AND slot_id = {slot}"
    ))?;
    assert_eq!(dry, "1");
    sampled_when_hot_known_in_the_valley(&mut server, &slot)?;
    server.wait_query(&ahead, "prepare|t|t|t")?;
    assert_eq!(server.query("SELECT count(*) FROM foreshard.move")?, "0", "advice only");
    // No room is no error, and holds nobody up.
    server.set(&[("foreshard.mode", "auto"), ("foreshard.max_prepared_splits", "0")])?;
    for _ in 0..2 {
        server.query("DELETE FROM foreshard.forecast")?;
        server.wait_query("SELECT count(*) > 0 FROM foreshard.forecast", "t")?;
    }
    assert!(!server.cluster.log_contents().contains("no more splits may be prepared"));
    server.set(&[("foreshard.max_prepared_splits", "4")])?;
    taken_back(&mut server, &slot)?;
    server.set(&[("foreshard.mode", "advise")])?;
    // Halves that stay cold are merged, wherever they are.
    let move_id = server.query(&format!("SELECT foreshard.split_slot({slot})"))?;
    server.wait_end(&move_id, "done")?;
    server.move_and_wait(&slot)?;
    let place = format!("SELECT shard FROM foreshard.slots WHERE slot_id = {slot}");
    let shard = server.query(&place)?;
    server.query(
        "UPDATE foreshard.move SET recommendation_id = 4711 WHERE move_id = (SELECT max(move_id) FROM foreshard.move)",
    )?;
    server.query(&format!(
        "UPDATE foreshard.heat_history SET cost_units_per_s = CASE WHEN slot_id = {slot} OR slot_id > 4 THEN 0.01 ELSE 50 END WHERE resolution_s = 3600"
    ))?;
    let recommended = format!(
        "SELECT concat_ws(' ', action, refusal) FROM foreshard.recommendations WHERE slot_id = {slot}"
    );
    server.wait_query(&recommended, "merge undone")?;
    server.query("UPDATE foreshard.move SET undone_at = NULL")?;
    server.wait_query(&recommended, "merge")?;
    server.query(&format!("INSERT INTO foreshard.forecast_error VALUES ({slot}, 1, 3600, 9, 9, 9, 9, 9, 9, now()) ON CONFLICT DO NOTHING"))?;
    server.set(&[("foreshard.mode", "auto")])?;
    let merged = "SELECT move_id, recommendation_id FROM foreshard.move WHERE kind = 'merge' AND partner_of IS NULL AND phase = 'done'";
    server.wait_query(&format!("SELECT count(*) FROM ({merged}) q"), "1")?;
    server.set(&[("foreshard.mode", "advise")])?;
    assert_eq!(layout(&mut server, "t")?.lines().count(), 4);
    assert_eq!(server.query(&place)?, shard);
    let errors =
        server.query(&format!("SELECT count(*) FROM foreshard.forecast_error WHERE slot_id = {slot}"))?;
    assert_eq!(errors, "0", "the load that was forecast is another one now");
    // The move before it cannot be undone: the slot is more than it was. The merge can, by a split.
    let error = server.fails("SELECT foreshard.undo_recommendation(4711)")?;
    assert!(
        error.sqlstate == "55000"
            && error.detail.is_some_and(|detail| detail.contains("split or merged since"))
    );
    let recommendation = server.query(&format!("SELECT recommendation_id FROM ({merged}) q"))?;
    let back = server.query(&format!("SELECT foreshard.undo_recommendation({recommendation})"))?;
    server.wait_end(&back, "done")?;
    assert_eq!(layout(&mut server, "t")?.lines().count(), 5);
    assert_eq!(server.query("SELECT count(DISTINCT shard) FROM foreshard.slots WHERE modulus = 8")?, "2");
    server.wait_query(&recommended, "merge undone")?;
    server.assert_settled()
}

/// Keys are sampled while their slot is hot; in the valley they still say whether a cut would divide the load.
fn sampled_when_hot_known_in_the_valley(server: &mut Server, slot: &str) -> Result<()> {
    server.query("DELETE FROM foreshard.slot_keys")?;
    let reads = server.query(&format!(
        "SELECT string_agg('SELECT FROM t WHERE id = ' || id, '; ') FROM t JOIN foreshard.slots ON partition = t.tableoid WHERE slot_id = {slot}"
    ))?;
    let many = format!("SELECT sampled >= 100 FROM foreshard.slot_keys WHERE slot_id = {slot}");
    wait_until("keys are sampled", PATIENCE, || {
        // The partitions are so small that an index is no help.
        server.query(&format!("SET enable_seqscan = off; {reads}; RESET enable_seqscan"))?;
        Ok(server.query(&many)? == "t")
    })?;
    // What decay leaves of them is stored as hot keys, but says no more how keys spread.
    server.wait_query("SELECT max(h.observed_at) > max(k.observed_at) + interval '3 s' FROM foreshard.hot_keys h, foreshard.slot_keys k", "t")?;
    assert_eq!(server.query(&many)?, "t");
    Ok(())
}

/// What the auto mode builds is told and taken back, by its recommendation or by hand; then it is left to persons.
fn taken_back(server: &mut Server, slot: &str) -> Result<()> {
    let prepared = format!(
        "SELECT move_id, recommendation_id FROM foreshard.move WHERE slot_id = {slot} AND kind = 'split' AND phase = 'prepared'"
    );
    for by_hand in [false, true] {
        server.wait_query(&format!("SELECT count(*) FROM ({prepared}) q"), "1")?;
        let row = server.query(&prepared)?;
        let (move_id, recommendation) = row.split_once('|').unwrap_or_default();
        let told = server.query(&format!(
            "SELECT detail ->> 'recommendation_id', detail ->> 'kind' FROM foreshard.history WHERE move_id = {move_id} AND event = 'auto'"
        ))?;
        assert_eq!(told, format!("{recommendation}|split"));
        // Two halves on one shard would be no relief to it.
        let shards =
            format!("SELECT count(DISTINCT shard_id) FROM foreshard.move_part WHERE move_id = {move_id}");
        assert_eq!(server.query(&shards)?, "2");
        let undo = format!("SELECT foreshard.undo_recommendation({recommendation})");
        if by_hand {
            assert_eq!(server.query(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
        } else {
            assert_eq!(server.query(&undo)?, move_id);
        }
        server.wait_end(move_id, "cancelled")?;
        assert_eq!(server.fails(&undo)?.sqlstate, "55000");
        server.wait_query(
            &format!("SELECT concat_ws(' ', action, refusal) FROM foreshard.recommendations WHERE slot_id = {slot} AND action <> 'move'"),
            "prepare undone",
        )?;
        assert_eq!(server.query("SELECT count(*) FROM foreshard.move WHERE NOT finished")?, "0");
        if !by_hand {
            server.query("UPDATE foreshard.move SET undone_at = NULL")?;
        }
    }
    Ok(())
}
