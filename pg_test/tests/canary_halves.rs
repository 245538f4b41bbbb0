//! The canary of a split: keys of every type, a half that differs is never taken, it can be stopped and resumed, and every
//! snapshot is consistent under writers.

mod common;

use common::halves::{Site, plan};
use foreshard_test::{Client, Error, Result, wait_until};
use std::time::{Duration, Instant};

/// Types of keys, and an expression of one for a number g.
const TYPES: [(&str, &str); 8] = [
    ("int", "g * 7919"),
    ("smallint", "g::smallint"),
    ("text", "md5(g::text)"),
    ("text COLLATE \"C\"", "'k ' || g"),
    ("varchar(40)", "md5(g::text)"),
    ("bpchar(12)", "left(md5(g::text), 5)"),
    ("numeric", "g / 8.0"),
    ("positive", "g"),
];

#[test]
fn keys_of_every_type_find_their_copy() -> Result<()> {
    let mut site = Site::new("canary-types")?;
    site.server.query("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")?;
    for (number, (name, key)) in TYPES.iter().enumerate() {
        site.server.query(&format!(
            "CREATE TABLE k{number} (n int, k {name} PRIMARY KEY); \
             INSERT INTO k{number} SELECT g, {key} FROM generate_series(1, 60) g; SELECT foreshard.distribute('k{number}', 'k', 1)"
        ))?;
    }
    site.server.hold(Some("verify"))?;
    let mut moves = Vec::new();
    for number in 0..TYPES.len() {
        let slot = site.server.slots(&format!("k{number}"))?[0].clone();
        let move_id = site.server.query(&format!("SELECT foreshard.split_slot({slot})"))?;
        site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, 1)"))?;
        moves.push(move_id);
    }
    site.server.hold(None)?;
    for move_id in &moves {
        site.weighs(move_id, "1")?;
    }
    let mut client = site.client()?;
    for (number, (name, _)) in TYPES.iter().enumerate() {
        let keys = client.exec(&format!("SELECT k FROM k{number} ORDER BY n"))?;
        client.prepare(&format!("look{number}"), &format!("SELECT n FROM k{number} WHERE k = $1"))?;
        for mode in ["force_generic_plan", "force_custom_plan"] {
            client.exec(&format!("SET plan_cache_mode = {mode}"))?;
            for row in 0..keys.len() {
                let found = client.exec_prepared(&format!("look{number}"), &[keys.get(row, 0)])?;
                assert_eq!(found.to_text(), (row + 1).to_string(), "{name} {mode}");
            }
        }
        let key = keys.get(7, 0).unwrap_or_default();
        let shown = plan(&mut client, &format!("SELECT n FROM k{number} WHERE k = '{key}'"))?;
        assert!(shown.contains("split_"), "{name}: {shown}");
        assert_eq!(client.query_one(&format!("SELECT count(*), sum(n) FROM k{number} WHERE n > 0"))?, "60");
    }
    // Other types than the key's, values that are none of it, and another collation.
    for (sql, wanted) in [
        ("SELECT n FROM k0 WHERE k = (5 * 7919)::bigint", "5"),
        ("SELECT n FROM k0 WHERE k = 99999999999", ""),
        ("SELECT n FROM k0 WHERE k = 39595.0", "5"),
        ("SELECT n FROM k1 WHERE k = 5", "5"),
        ("SELECT n FROM k1 WHERE k = 5::bigint", "5"),
        ("SELECT n FROM k1 WHERE k IN (5, 70000)", "5"),
        ("SELECT n FROM k2 WHERE k = md5('5') COLLATE \"C\"", "5"),
        ("SELECT n FROM k3 WHERE k = 'k 5' COLLATE \"POSIX\"", "5"),
        ("SELECT n FROM k5 WHERE k = left(md5('5'), 5)", "5"),
        ("SELECT n FROM k6 WHERE k = 0.62500", "5"),
        ("SELECT n FROM k7 WHERE k = 5::bigint", "5"),
    ] {
        assert_eq!(client.exec(sql)?.to_text(), wanted, "{sql}");
    }
    for move_id in &moves {
        site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
    }
    site.server.wait_moves()?;
    site.server.assert_clean()
}

/// A row of one half that is changed, missing or too many is found by the look-ups that go there or could.
#[test]
fn a_difference_in_one_half_ends_the_split() -> Result<()> {
    let mut site = Site::new("canary-half-differs")?;
    for (half, damage) in [
        (0, "UPDATE HALF SET v = v || 'x' WHERE id = KEY"),
        (1, "DELETE FROM HALF WHERE id = KEY"),
        (
            1,
            "INSERT INTO HALF SELECT x, v, n FROM HALF, (SELECT x FROM generate_series(9000001, 9000400) x \
             WHERE satisfies_hash_partition('t'::regclass, 4, REMAINDER, x::bigint) LIMIT 1) q WHERE id = KEY",
        ),
    ] {
        let move_id = site.split("0.5")?;
        let (name, keys) = site.copies(&move_id, "t")?[half].clone();
        let key = keys[2].to_string();
        let remainder = site.server.query(&format!(
            "SELECT remainder FROM foreshard.move_part WHERE move_id = {move_id} ORDER BY part OFFSET {half} LIMIT 1"
        ))?;
        let damage = damage.replace("HALF", &name).replace("KEY", &key).replace("REMAINDER", &remainder);
        site.server.query(&damage)?;
        let surplus = damage.starts_with("INSERT");
        let wrong =
            if surplus { site.server.query(&format!("SELECT max(id) FROM {name}"))? } else { key.clone() };
        let mut client = site.client()?;
        client.exec("SET enable_seqscan = off; SET jit = off")?;
        client.prepare("get", "SELECT v FROM t WHERE id = $1")?;
        client
            .prepare("near", "SELECT id FROM t WHERE n = (SELECT n FROM twin.t WHERE id = $1) AND id = $1")?;
        wait_until("the difference is found", Duration::from_secs(20), || {
            for _ in 0..50 {
                client.exec_prepared("get", &[Some(&wrong)])?;
                client.exec_prepared("near", &[Some(&key)])?;
            }
            let sql = format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}");
            Ok(site.server.query(&sql)? == "t")
        })?;
        assert_eq!(site.server.phase(&move_id)?, "failed", "{damage}");
        let named = format!(
            "SELECT count(*) FROM foreshard.history WHERE event = 'mismatch' AND move_id = {move_id} AND detail::text ~ '{wrong}'"
        );
        assert_eq!(site.server.query(&named)?, "1", "{damage}");
        assert_eq!(site.server.query("SELECT count(*) FROM (TABLE t EXCEPT TABLE twin.t) q")?, "0");
        site.server.assert_settled()?;
    }
    Ok(())
}

/// Held, paused, killed, cancelled, asked for ahead, finished and rolled back.
#[test]
fn a_canary_of_a_split_can_be_stopped_and_resumed() -> Result<()> {
    let mut site = Site::new("canary-half-ends")?;
    site.server.set(&[("foreshard.rollback_window", "600")])?;
    let mut client = site.client()?;
    let prepared = site.server.query(&format!("SELECT foreshard.prepare_split({})", site.slot))?;
    let state = format!("SELECT state FROM foreshard.progress_moves WHERE move_id = {prepared}");
    site.server.wait_query(&state, "prepared")?;
    let key = site.copies(&prepared, "t")?[0].1[1].to_string();
    let row = format!("SELECT v FROM t WHERE id = {key}");
    assert!(!plan(&mut client, &row)?.contains("split_"), "nobody has asked for it");
    // Asking for the split begins the canary.
    site.server.query(&format!("SELECT foreshard.set_route_weight({prepared}, 1)"))?;
    assert_eq!(site.server.query(&format!("SELECT foreshard.split_slot({})", site.slot))?, prepared);
    site.weighs(&prepared, "1")?;
    assert!(plan(&mut client, &row)?.contains("split_"));
    let wait_plan = |client: &mut Client, what: &str, routed: bool| {
        wait_until(what, Duration::from_secs(20), || Ok(plan(client, &row)?.contains("split_") == routed))
    };
    site.server.query(&format!("SELECT foreshard.pause_move({prepared})"))?;
    wait_plan(&mut client, "a paused move routes nothing", false)?;
    client.exec(&format!("UPDATE t SET n = 4711 WHERE id = {key}"))?;
    site.server.query(&format!("SELECT foreshard.resume_move({prepared})"))?;
    wait_plan(&mut client, "a resumed move routes", true)?;
    assert_eq!(client.query_one(&format!("SELECT n FROM t WHERE id = {key}"))?, "4711");
    client.exec(&format!("BEGIN; UPDATE t SET n = 4712 WHERE id = {key}"))?;
    assert_eq!(client.query_one(&format!("SELECT n FROM t WHERE id = {key}"))?, "4712", "its own change");
    client.exec("COMMIT")?;
    assert_eq!(client.query_one(&format!("SELECT n FROM t WHERE id = {key}"))?, "4712");
    // DDL closes it at once; the copies are made again.
    client.exec("ALTER TABLE t ADD COLUMN extra int DEFAULT 5")?;
    assert_eq!(client.query_one(&format!("SELECT extra FROM t WHERE id = {key}"))?, "5");
    let anew = format!("SELECT restarts FROM foreshard.progress_moves WHERE move_id = {prepared}");
    site.server.wait_query(&anew, "1")?;
    wait_plan(&mut client, "copies made anew are read", true)?;
    assert_eq!(client.query_one(&format!("SELECT extra FROM t WHERE id = {key}"))?, "5");
    // A carrier that dies leaves the server's memory suspect: all start again, and so does the canary.
    let pid = site.server.wait_phase(&prepared, "canary")?;
    site.server.cluster.kill9(pid)?;
    wait_until("the server is back", Duration::from_secs(30), || Ok(site.client().is_ok()))?;
    let mut client = site.client()?;
    site.weighs(&prepared, "1")?;
    wait_plan(&mut client, "a new carrier routes", true)?;
    site.server.query(&format!("SELECT foreshard.cancel_move({prepared})"))?;
    site.server.wait_end(&prepared, "cancelled")?;
    site.server.assert_settled()?;
    // By itself, and back.
    let move_id = site.server.query(&format!("SELECT foreshard.split_slot({})", site.slot))?;
    site.server.wait_end(&move_id, "done")?;
    let canary = format!(
        "SELECT string_agg(detail ->> 'to', ' ' ORDER BY at) FROM foreshard.history WHERE event = 'phase' AND move_id = {move_id}"
    );
    assert!(site.server.query(&canary)?.contains("verify canary cutover"));
    let held = site.server.query(&format!(
        "SELECT string_agg(event || ' ' || (detail ->> 'held_us'), ', ') FROM foreshard.history WHERE detail ? 'held_us' AND move_id = {move_id}"
    ))?;
    println!("locks held, us: {held}");
    assert!(held.contains("canary") && held.contains("cutover"), "{held}");
    client.exec(&format!("UPDATE t SET n = 4713 WHERE id = {key}"))?;
    site.server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?;
    site.server.wait_query("SELECT count(*) FROM foreshard.slots WHERE \"table\" = 't'::regclass", "2")?;
    site.server.wait_query("SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    assert_eq!(client.query_one(&format!("SELECT n FROM t WHERE id = {key}"))?, "4713");
    site.server.assert_settled()
}

/// Writers and look-ups under half a weight: what two rows sum up to never changes under any snapshot, whichever copies
/// are read, and everybody reads what he wrote.
#[test]
fn every_snapshot_is_consistent() -> Result<()> {
    let mut site = Site::new("canary-half-sum")?;
    site.server.query("UPDATE t SET n = 100")?;
    let move_id = site.split("0.5")?;
    let until = Instant::now() + Duration::from_secs(4);
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let mut client = site.client()?;
            Ok(std::thread::spawn(move || -> Result<u64> {
                let mut done = 0;
                client.exec("SET jit = off")?;
                client.prepare("one", "SELECT n FROM t WHERE id = $1")?;
                client.prepare("two", "SELECT a.n + b.n FROM t a, t b WHERE a.id = $1 AND b.id = $2")?;
                while Instant::now() < until {
                    if number % 2 == 0 {
                        transfer(&mut client, number / 2, done)?
                    } else {
                        check(&mut client, done)?
                    }
                    done += 1;
                }
                Ok(done)
            }))
        })
        .collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(2));
    site.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
    for thread in threads {
        let done = thread.join().map_err(|_| Error::new("A client failed.", ""))??;
        assert!(done > 20, "{done} rounds");
    }
    site.server.wait_end(&move_id, "done")?;
    let summary = "SELECT (detail->>'reads')::int > 100 AND (detail->'stayed'->>'statements')::int > 50 \
                     AND (detail->>'compared')::int > 10 AND detail->>'differed' = '0' \
                   FROM foreshard.history WHERE event = 'canary' AND detail ? 'compared'";
    assert_eq!(site.server.query(summary)?, "t");
    assert_eq!(site.server.query("SELECT sum(n) FROM t")?, "300000");
    site.server.assert_settled()
}

/// The pairs (k, k + 1500) keep their sum; each writer has every other one.
fn transfer(client: &mut Client, writer: u64, round: u64) -> Result<()> {
    let key = round * 7 % 750 * 2 + 1 + writer;
    let other = key + 1500;
    client.exec(&format!("BEGIN; UPDATE t SET n = n - 1 WHERE id = {key}"))?;
    client.exec(&format!("UPDATE t SET n = n + 1 WHERE id = {other}"))?;
    let own = client.exec_prepared("two", &[Some(&key.to_string()), Some(&other.to_string())])?.to_text();
    assert_eq!(own, "200", "inside the transaction");
    let wrote = client.exec_prepared("one", &[Some(&key.to_string())])?.to_text();
    client.exec("COMMIT")?;
    assert_eq!(client.exec_prepared("one", &[Some(&key.to_string())])?.to_text(), wrote, "what it wrote");
    Ok(())
}

fn check(client: &mut Client, round: u64) -> Result<()> {
    let key = round * 13 % 1500 + 1;
    let (key, other) = (key.to_string(), (key + 1500).to_string());
    let sum = client.exec_prepared("two", &[Some(&key), Some(&other)])?.to_text();
    assert_eq!(sum, "200", "keys {key}, {other}");
    client.exec("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let mut one = |key: &str| {
        Ok::<i64, Error>(client.exec_prepared("one", &[Some(key)])?.to_text().parse().unwrap_or(-1))
    };
    let sum = one(&key)? + one(&other)?;
    assert_eq!(sum, 200, "keys {key}, {other} in one snapshot");
    client.exec("COMMIT")?;
    Ok(())
}
