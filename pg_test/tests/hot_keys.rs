//! Hot keys of a real trace: clients replay orm-busy, and `hot_keys` must name the keys that were really
//! accessed most. `FORESHARD_TRACE=all` replays the whole trace, the short form its begin. Every statement is
//! sampled: the trace has fifty keys around place 50 that differ by 1 %, which one in eight cannot tell apart.

#[path = "../../demo/trace.rs"]
#[allow(dead_code, reason = "the demo shows more of a key")]
mod trace;

mod support;

use foreshard_test::{Client, ClusterOptions, Error, Result, SqlError, wait_until};
use std::collections::HashSet;
use support::{PATIENCE, cluster, database};
use trace::Trace;

/// Accesses of the short form.
const SHORT: usize = 400_000;
/// Accesses of one statement; an object-relational mapper fetches what it needs for a page at once.
const AT_ONCE: usize = 8;
/// Clients.
const CLIENTS: usize = 2;
const TOP: usize = 50;
/// Counts that differ by less are the same: around place 50 the trace has two dozen keys with 283 to 286 accesses,
/// and an access a minute ago weighs 1 % less than one now.
const SAME: f64 = 0.01;

/// Every other window as one statement, the keys of the rest one by one.
fn replay(client: &mut Client, trace: &Trace, windows: &[&[u32]]) -> std::result::Result<(), SqlError> {
    client.prepare("one", "SELECT n FROM object WHERE id = $1")?;
    client.prepare("many", "SELECT n FROM object WHERE id = ANY ($1)")?;
    for (i, window) in windows.iter().enumerate() {
        let ids: Vec<String> = window.iter().map(|k| trace.keys[*k as usize].to_string()).collect();
        if i % 4 == 0 {
            for id in &ids {
                client.exec_prepared("one", &[Some(id)])?;
            }
        } else {
            client.exec_prepared("many", &[Some(&format!("{{{}}}", ids.join(",")))])?;
        }
    }
    Ok(())
}

/// The keys accessed as often as the one in place [`TOP`], give or take [`SAME`] (more than [`TOP`] if several
/// are); in a window a key counts once, because a statement looks it up once.
fn true_top(trace: &Trace, accesses: &[u32]) -> HashSet<String> {
    let mut counts = vec![0_u64; trace.keys.len()];
    for (i, window) in accesses.chunks(AT_ONCE).enumerate() {
        let distinct: HashSet<u32> = window.iter().copied().collect();
        if i % 4 == 0 {
            window.iter().for_each(|k| counts[*k as usize] += 1);
        } else {
            distinct.into_iter().for_each(|k| counts[k as usize] += 1);
        }
    }
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|k| std::cmp::Reverse(counts[*k]));
    let least = counts[order[TOP - 1]] as f64 * (1.0 - SAME);
    let top = order.iter().take_while(|k| counts[**k] as f64 >= least);
    top.map(|k| trace.keys[*k].to_string()).collect()
}

#[test]
fn the_hot_keys_of_a_trace_are_found() -> Result<()> {
    let whole = std::env::var("FORESHARD_TRACE").is_ok_and(|v| v == "all");
    let trace = Trace::load()?;
    let accesses = if whole { &trace.accesses[..] } else { &trace.accesses[..SHORT] };
    let cluster = cluster(
        &ClusterOptions::new("hotkeys")
            .set("foreshard.bucket", "1")
            .set("foreshard.heat_half_life", "1h")
            .set("foreshard.sample_buffer", "262144")
            .set("foreshard.key_sample_interval", "1")
            .set("foreshard.observe_budget", "100"),
    )?;
    let mut client = database(&cluster, "keys")?;
    let ids: Vec<String> = trace.keys.iter().map(u32::to_string).collect();
    client.exec("CREATE TABLE object (id bigint PRIMARY KEY, n int DEFAULT 0)")?;
    client.exec(&format!(
        "INSERT INTO object SELECT unnest('{{{}}}'::bigint[]); SELECT foreshard.distribute('object', 'id', 32); ANALYZE object",
        ids.join(",")
    ))?;
    let windows: Vec<&[u32]> = accesses.chunks(AT_ONCE).collect();
    // Nothing is sampled while nothing is hot.
    replay(&mut cluster.connect("keys")?, &trace, &windows[..4])?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.hot_keys")?, "0");

    // Every key as often as every other, until all slots are hot: heat is known seconds after the accesses.
    let all: Vec<u32> = (0..trace.keys.len() as u32).collect();
    let passes: Vec<&[u32]> = all.chunks(AT_ONCE).collect();
    let hot = "SELECT count(*) FROM foreshard.heat_map WHERE reads_per_s > 100";
    for _ in 0..20 {
        replay(&mut cluster.connect("keys")?, &trace, &passes)?;
        if client.query_one(hot)? == "32" {
            break;
        }
    }

    std::thread::scope(|scope| {
        let share = windows.len().div_ceil(CLIENTS);
        let clients: Vec<_> = windows
            .chunks(share)
            .map(|part| {
                let (cluster, trace) = (&cluster, &trace);
                scope.spawn(move || replay(&mut cluster.connect("keys")?, trace, part))
            })
            .collect();
        for client in clients {
            client.join().map_err(|_| Error::new("a client panicked", ""))??;
        }
        Ok::<(), Error>(())
    })?;
    let settled = "SELECT max(observed_at) > clock_timestamp() - interval '3 s' FROM foreshard.hot_keys";
    wait_until("the keys are told", PATIENCE, || Ok(client.query_one(settled)? == "t"))?;
    std::thread::sleep(std::time::Duration::from_secs(3));

    let rows = client
        .exec(&format!("SELECT key FROM foreshard.hot_keys ORDER BY access_score DESC, key LIMIT {TOP}"))?;
    let found: HashSet<String> =
        (0..rows.len()).map(|i| rows.get(i, 0).unwrap_or_default().to_string()).collect();
    let truth = true_top(&trace, accesses);
    let recall = found.intersection(&truth).count() as f64 / TOP as f64;
    println!("{} accesses: recall of the true top {TOP} keys {recall:.2}", accesses.len());
    let misplaced = "SELECT count(*) FROM foreshard.hot_keys k JOIN foreshard.slot_partition p USING (slot_id) \
        WHERE NOT EXISTS (SELECT FROM object o WHERE o.id = k.key::bigint AND o.tableoid = p.partition)";
    assert_eq!(client.query_one(misplaced)?, "0", "a key stands in another slot");
    let areas = client.exec("SELECT f::text FROM foreshard.stat_foreshard f")?;
    let areas: Vec<_> = (0..areas.len()).filter_map(|i| areas.get(i, 0)).collect();
    assert!(recall >= 0.95, "recall {recall:.2}; {areas:?}");
    Ok(())
}
