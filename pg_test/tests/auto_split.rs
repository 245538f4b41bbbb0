//! A slot that will be too hot is split by itself: halves built in the valley before the peak, a switchover with a canary
//! when the load comes, and a way back.

mod common;

use common::placed::{assert_located, layout};
use common::{PATIENCE, Server, options};
use foreshard_test::{Client, Error, Result, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The first slot alone has a peak every day, from three hours from now on; the least load is now. The peak is one that two clients reach
/// on a busy machine as well.
const HISTORY: &str = "
    INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s)
    SELECT 3600, s.slot_id, to_timestamp(h * 3600), 1, 1, 1,
           CASE WHEN s.slot_id = SLOT AND ((h - now) % 24 + 24) % 24 BETWEEN 3 AND 6 THEN 80
                WHEN ((h - now) % 24 + 24) % 24 = 0 THEN 2 ELSE 4 END
    FROM foreshard.slot s, LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, generate_series(now - 28 * 24, now - 1) h";

/// Clients that look keys of a slot up, and write some, as fast as they can, checking that each reads what it wrote.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    fn start(server: &Server, keys: &Arc<Vec<String>>) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number: usize| {
            let mut client = server.cluster.connect("postgres")?;
            let (stop, keys) = (stop.clone(), keys.clone());
            Ok(std::thread::spawn(move || work(&mut client, &keys, number, &stop)))
        };
        let threads = (0..2).map(client).collect::<Result<_>>()?;
        Ok(Load { stop, threads })
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| Error::new("A client failed.", ""))??;
        }
        Ok(())
    }
}

fn work(client: &mut Client, keys: &[String], number: usize, stop: &AtomicBool) -> Result<()> {
    client.exec("SET jit = off; SET enable_seqscan = off")?;
    client.prepare("get", "SELECT v FROM t WHERE id = $1")?;
    client.prepare("set", "UPDATE t SET v = v + 1 WHERE id = $1 RETURNING v")?;
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        // Each client has keys of its own.
        let key = Some(keys[(round * 31) % (keys.len() / 2) * 2 + number].as_str());
        if round % 50 == 0 {
            let wrote = client.exec_prepared("set", &[key])?.to_text();
            assert_eq!(client.exec_prepared("get", &[key])?.to_text(), wrote, "what it wrote");
        } else {
            assert_eq!(client.exec_prepared("get", &[key])?.len(), 1);
        }
    }
    Ok(())
}

fn remainders(server: &mut Server) -> Result<String> {
    server.query("SELECT modulus, remainder FROM foreshard.slots ORDER BY 1, 2")
}

#[test]
fn built_ahead_switched_over_and_taken_back() -> Result<()> {
    let mut server = Server::start(
        &options("auto-split")
            .set("foreshard.forecast_horizon", "1d")
            .set("foreshard.plan_interval", "1s")
            .set("foreshard.cooldown", "0")
            .set("foreshard.hot_buckets", "1")
            .set("foreshard.split_threshold", "0.4")
            .set("foreshard.heat_half_life", "1s")
            .set("foreshard.hot_slot_threshold", "0.1")
            .set("foreshard.key_sample_interval", "1")
            .set("foreshard.observe_budget", "100")
            .set("foreshard.statement_sample_interval", "10")
            .set("foreshard.canary_steps", "20, 100")
            .set("foreshard.canary_dwell", "400")
            .set("foreshard.max_slowdown", "0"),
    )?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v int NOT NULL); INSERT INTO t SELECT g, 0 FROM generate_series(1, 2000) g; \
         SELECT foreshard.distribute('t', 'id', 4)",
    )?;
    server.query("VACUUM ANALYZE t")?;
    let slot = server.slots("t")?[0].clone();
    server.query(&HISTORY.replace("SLOT", &slot))?;
    let keys = server.query(&format!(
        "SELECT id FROM t JOIN foreshard.slots ON partition = t.tableoid WHERE slot_id = {slot} ORDER BY id"
    ))?;
    let keys: Arc<Vec<String>> = Arc::new(keys.lines().map(String::from).collect());
    // So that it is known how its keys spread. Little load, and no forecast of it yet.
    let sampled = format!("SELECT sampled >= 100 FROM foreshard.slot_keys WHERE slot_id = {slot}");
    wait_until("keys are sampled", PATIENCE, || {
        let reads: Vec<String> = keys.iter().map(|key| format!("SELECT FROM t WHERE id = {key}")).collect();
        server.query(&format!("SET enable_seqscan = off; {}; RESET enable_seqscan", reads.join("; ")))?;
        Ok(server.query(&sampled)? == "t")
    })?;
    server.set(&[("foreshard.mode", "auto"), ("foreshard.rollback_window", "600")])?;
    let prepared = format!(
        "SELECT state FROM foreshard.progress_moves WHERE slot_id = {slot} AND kind = 'split' ORDER BY move_id DESC LIMIT 1"
    );
    server.wait_query(&prepared, "prepared")?;
    let move_id = server.query(&format!(
        "SELECT m.move_id FROM foreshard.move m JOIN foreshard.history h ON h.move_id = m.move_id AND h.event = 'auto' \
         WHERE m.slot_id = {slot} AND m.kind = 'split' AND NOT m.finished"
    ))?;
    // Until then other slots may have been moved out of its way.
    let before = remainders(&mut server)?;
    assert_eq!(before.lines().count(), 4, "nothing is divided yet");
    // The peak comes.
    let load = Load::start(&server, &keys)?;
    server.wait_end(&move_id, "done")?;
    server.set(&[("foreshard.mode", "advise")])?;
    let story = server.query(&format!(
        "SELECT string_agg(coalesce(detail ->> 'weight', detail ->> 'to'), ' ' ORDER BY at) FROM foreshard.history \
         WHERE move_id = {move_id} AND (event = 'phase' OR event = 'canary' AND detail ? 'weight')"
    ))?;
    assert!(story.contains("verify prepared canary 0.2 1.0 cutover"), "{story}");
    assert_eq!(story.matches("copy").count(), 1, "{story}");
    let held = format!(
        "SELECT max((detail ->> 'held_us')::int) FROM foreshard.history WHERE event = 'cutover' AND move_id = {move_id}"
    );
    println!("{story}; held for {} us", server.query(&held)?);
    let reads = format!(
        "SELECT reads_routed > 100, scans_compared > 0 FROM foreshard.progress_moves WHERE move_id = {move_id}"
    );
    assert_eq!(server.query(&reads)?, "t|t");
    assert_eq!(layout(&mut server, "t")?.lines().count(), 5);
    assert_located(&mut server, "t", "id")?;
    // Back, with the load going on.
    assert_eq!(server.query(&format!("SELECT foreshard.rollback_move({move_id})"))?, "t");
    let way = server.query(&format!("SELECT move_id FROM foreshard.move WHERE way_back_of = {move_id}"))?;
    server.wait_end(&way, "done")?;
    load.end()?;
    assert_eq!(remainders(&mut server)?, before);
    assert_eq!(server.query("SELECT count(*), count(DISTINCT id) FROM t")?, "2000|2000");
    // Other slots may have been moved meanwhile, and keep their ways back.
    server.set(&[("foreshard.rollback_window", "0")])?;
    server.wait_moves()?;
    server.assert_settled()
}
