//! Verification: whatever differs between the copies, in their rows or in their indexes, is found and named, and ends the
//! move.

mod common;

use common::{PATIENCE, Server, options};
use foreshard_test::Result;
use std::time::Duration;

/// What verification named when a move ended.
fn named(server: &mut Server, move_id: &str, what: &str) -> Result<String> {
    server.query(&format!(
        "SELECT {what} FROM foreshard.history WHERE event = 'mismatch' AND move_id = {move_id}"
    ))
}

/// Rows planted into a copy, or taken from it: of a move, a split, a merge and an undistribution.
#[test]
fn planted_differences_are_found() -> Result<()> {
    let mut server = Server::start(&options("planted"))?;
    server.query(
        "CREATE TABLE t (id bigint, k text, v text, PRIMARY KEY (id, k)); \
         INSERT INTO t SELECT g, 'k', 'value ' || g FROM generate_series(1, 5000) g; SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let slots = server.slots("t")?;
    let placed = "SELECT string_agg(concat_ws(' ', slot_id, shard_id, modulus), ', ' ORDER BY slot_id) FROM foreshard.slot";
    let before = server.query(placed)?;
    for (what, statement) in [
        ("different", "UPDATE @ SET v = overlay(v PLACING 'V' FROM 1) WHERE id = #"),
        ("missing", "DELETE FROM @ WHERE id = #"),
        ("extra", "INSERT INTO @ VALUES (#, 'planted', 'x')"),
    ] {
        for kind in ["move", "split", "merge", "undistribute"] {
            server.hold(Some("verify"))?;
            let move_id = match kind {
                "move" => server.move_slot(&slots[0])?,
                "split" => server.split_slot(&slots[0])?,
                "merge" => {
                    server.query(&format!("SELECT foreshard.merge_slots({}, {})", slots[0], slots[1]))?
                }
                _ => server.undistribute("t")?,
            };
            server.wait_phase(&move_id, "verify")?;
            let relation = |what: &str| {
                format!(
                    "SELECT {what}::regclass FROM foreshard.move_relation WHERE move_id = {move_id} ORDER BY source DESC LIMIT 1"
                )
            };
            let (source, shadow) = (server.query(&relation("source"))?, server.query(&relation("shadow"))?);
            let key = server.query(&format!("SELECT id FROM {source} ORDER BY id LIMIT 1 OFFSET 700"))?;
            server.query(&statement.replace('@', &shadow).replace('#', &key))?;
            server.hold(None)?;
            server.wait_end(&move_id, "failed")?;
            let k = if what == "extra" { "planted" } else { "k" };
            assert_eq!(
                named(&mut server, &move_id, "detail -> 'rows'")?,
                format!("[{{\"key\": [\"{key}\", \"{k}\"], \"row\": \"{what}\"}}]"),
                "{kind}, {what}"
            );
            server.assert_settled()?;
        }
    }
    assert_eq!(server.query(placed)?, before);
    Ok(())
}

/// Columns for every access method; the last column is in no index, so that its changes are heap-only.
const INDEXED: &str = "
    CREATE TABLE t (id bigint PRIMARY KEY, h text, r int4range, n int, w text, free int) WITH (fillfactor = 60);
    INSERT INTO t SELECT g, CASE WHEN g % 3 > 0 THEN 'h' || g END, int4range(g, g + 5), g, 'word' || g % 50, 0
        FROM generate_series(1, 6000) g;
    CREATE INDEX t_partial ON t (n) WHERE n % 2 = 0;
    CREATE INDEX t_hash ON t USING hash (h);
    CREATE INDEX t_gist ON t USING gist (r);
    CREATE INDEX t_spgist ON t USING spgist (w);
    CREATE INDEX t_gin ON t USING gin (to_tsvector('simple', w));
    CREATE INDEX t_brin ON t USING brin (n);
    SELECT foreshard.distribute('t', 'id', 2)";

/// One row of a copy that one of its indexes does not have, while all rows are equal.
#[test]
fn rows_without_an_entry_are_found() -> Result<()> {
    let mut server = Server::start(&options("entries"))?;
    server.query(INDEXED)?;
    let slot = server.slots("t")?[0].clone();
    // The primary key when the verification has passed and is made again before the cutover.
    for (name, phase) in [
        ("_n_idx", "verify"),
        ("_h_idx", "verify"),
        ("_r_idx", "verify"),
        ("_w_idx", "verify"),
        ("_tsvector_idx", "verify"),
        ("_pkey", "cutover"),
    ] {
        server.hold(Some(phase))?;
        let move_id = server.move_slot(&slot)?;
        server.wait_phase(&move_id, phase)?;
        let of_move = format!("FROM foreshard.move_index WHERE move_id = {move_id}");
        let index = server.query(&format!(
            "SELECT 'public.' || source_index::regclass || ' ' || shadow_index {of_move} AND source_index::regclass::text ~ '{name}$'"
        ))?;
        let (index, copy) = index.split_once(' ').unwrap_or_default();
        let shadow = server.query(&format!("SELECT DISTINCT heap::regclass {of_move}"))?;
        let key = server.query(&format!(
            "SELECT id FROM {shadow} WHERE n % 2 = 0 AND h IS NOT NULL ORDER BY id LIMIT 1 OFFSET 500"
        ))?;
        let ready = |ready| format!("UPDATE pg_index SET indisready = {ready} WHERE indexrelid = {copy}");
        server.query(&ready(false))?;
        server.query(&format!(
            "WITH d AS (DELETE FROM {shadow} WHERE id = {key} RETURNING *) INSERT INTO {shadow} SELECT * FROM d"
        ))?;
        server.query(&ready(true))?;
        if phase == "cutover" {
            server.query(
                "UPDATE foreshard.move SET verified_at = now() - interval '1 hour' WHERE NOT finished",
            )?;
        }
        server.hold(None)?;
        server.wait_end(&move_id, "failed")?;
        assert_eq!(
            named(
                &mut server,
                &move_id,
                "jsonb_path_query_array(detail, '$.rows[*].key[0]') || (detail #> '{rows,0,index}') || (detail #> '{rows,0,row}')"
            )?,
            format!("[\"{key}\", \"{index}\", \"not indexed\"]"),
            "{name}"
        );
        let error = server
            .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
        assert!(error.contains(index), "{error}");
        server.assert_settled()?;
    }
    // What belongs into no index is not missed, nor are rows whose entry is that of an earlier version.
    server.hold(Some("verify"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "verify")?;
    for _ in 0..3 {
        server.query("UPDATE t SET free = free + 1 WHERE id % 4 = 0")?;
    }
    server.query("UPDATE t SET h = NULL, n = n + 1 WHERE id % 5 = 0; DELETE FROM t WHERE id % 7 = 0; INSERT INTO t SELECT g FROM generate_series(7001, 7400) g")?;
    let mut open = server.cluster.connect("postgres")?;
    open.exec("BEGIN; UPDATE t SET n = n + 2, w = 'open' WHERE id % 11 = 0")?;
    server.hold(None)?;
    server.wait_query(
        &format!("SELECT detail->>'indexes' FROM foreshard.history WHERE event = 'verified' AND move_id = {move_id}"),
        "6",
    )?;
    open.exec("COMMIT")?;
    server.wait_end(&move_id, "done")?;
    server.check_storage()?;
    server.assert_settled()?;
    progress_is_told(&mut server, &slot)
}

/// A verification that waits for the second of two copies has done its part of the first.
fn progress_is_told(server: &mut Server, slot: &str) -> Result<()> {
    server.query("CREATE TABLE u (id bigint PRIMARY KEY, v text); INSERT INTO u SELECT g FROM generate_series(1, 9000) g; SELECT foreshard.distribute('u', 'id', colocate_with => 't')")?;
    server.hold(Some("cutover"))?;
    let move_id = server.move_slot(slot)?;
    server.wait_phase(&move_id, "cutover")?;
    let last = server
        .query(&format!("SELECT max(heap)::regclass FROM foreshard.move_index WHERE move_id = {move_id}"))?;
    let mut holder = server.cluster.connect("postgres")?;
    holder.exec(&format!("BEGIN; LOCK TABLE {last} IN SHARE UPDATE EXCLUSIVE MODE"))?;
    server.query("UPDATE foreshard.move SET verified_at = now() - interval '1 hour' WHERE NOT finished")?;
    server.hold(None)?;
    server.wait_query(
        &format!(
            "SELECT percent BETWEEN 1 AND 99 AND eta IS NOT NULL FROM foreshard.progress_moves WHERE move_id = {move_id}"
        ),
        "t",
    )?;
    holder.exec("COMMIT")?;
    server.wait_end(&move_id, "done")?;
    let percent = format!("SELECT percent FROM foreshard.progress_moves WHERE move_id = {move_id}");
    assert_eq!(server.query(&percent)?, "100.0");
    server.assert_settled()
}

/// Who waits for a partition has its turn while others are compared that were locked together with it.
#[test]
fn somebody_who_waits_goes_first() -> Result<()> {
    let mut server = Server::start(&options("turn").set("autovacuum", "off"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g FROM generate_series(1, 500) g; \
         CREATE TABLE u (id bigint PRIMARY KEY, v text); INSERT INTO u TABLE t; SELECT foreshard.distribute('t', 'id', 1); \
         SELECT foreshard.distribute('u', 'id', colocate_with => 't')",
    )?;
    let slot = server.slots("t")?[0].clone();
    server.hold(Some("verify"))?;
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "verify")?;
    let of_move = format!("FROM foreshard.move_relation WHERE move_id = {move_id} ORDER BY source");
    let first = server.query(&format!("SELECT source::regclass {of_move} LIMIT 1"))?;
    let log = server.query(&format!("SELECT capture_log::regclass {of_move} DESC LIMIT 1"))?;
    // The comparison stops between the two.
    let mut holder = server.cluster.connect("postgres")?;
    holder.exec(&format!("BEGIN; LOCK TABLE {log}"))?;
    server.hold(None)?;
    let waiters = |table: &str| {
        format!("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass")
    };
    server.wait_query(&waiters(&log), "1")?;
    let mut owner = server.cluster.connect("postgres")?;
    owner.send_query(&format!("ALTER TABLE {first} ALTER v SET DEFAULT 'x'"))?;
    server.wait_query(&waiters(&first), "1")?;
    // Longer than between two looks.
    std::thread::sleep(Duration::from_millis(400));
    holder.exec("COMMIT")?;
    assert!(owner.poll_result(PATIENCE)?.is_some());
    let told = format!("SELECT last_error FROM foreshard.move WHERE move_id = {move_id}");
    server.wait_query(&told, "somebody waits for a lock on the partition")?;
    server.wait_end(&move_id, "done")?;
    server.assert_settled()
}
