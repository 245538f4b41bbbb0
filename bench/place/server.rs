//! What lists of chosen keys cost a look-up, on a real server.

use crate::Options;
use crate::gather::{Layout, slot_of};
use foreshard_test::bars::bar_least;
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, wait_until};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Least ratio of the rates.
const LEAST: f64 = 0.8;
/// A turn of one table.
const TURN: Duration = Duration::from_secs(2);
/// How long placements may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Whether the bar holds: the tables have the same keys, one of them as many lists of as many keys as the layout has.
pub fn bench(options: &Options, accesses: &[u32], keys: usize, layout: &Layout) -> Result<bool> {
    let cluster = Cluster::start(
        &ClusterOptions::new("bench-place")
            .set("shared_buffers", "512MB")
            .set("foreshard.rollback_window", "0")
            .set("foreshard.canary_steps", "")
            .set("foreshard.max_leaves", "4096"),
    )?;
    let mut client = cluster.connect("postgres")?;
    client.exec("CREATE EXTENSION foreshard")?;
    for shard in 0..options.shards {
        let path = cluster.make_tablespace_dir(&format!("space{shard}"))?;
        client.exec(&format!("CREATE TABLESPACE space{shard} LOCATION '{}'", path.display()))?;
        client.exec(&format!("SELECT foreshard.add_shard('s{shard}', 'space{shard}')"))?;
    }
    for table in ["plain", "chosen"] {
        client.exec(&format!(
            "CREATE TABLE {table} (id bigint PRIMARY KEY, payload text NOT NULL); \
             INSERT INTO {table} SELECT g, repeat(md5(g::text), 4) FROM generate_series(0, {}) g",
            keys.saturating_sub(1)
        ))?;
        client.exec(&format!("SELECT foreshard.distribute('{table}', 'id', {})", options.slots))?;
    }
    place(&mut client, options, layout)?;
    client.exec("VACUUM (ANALYZE) plain, chosen")?;
    let shape = client.query_one(
        "SELECT count(*) || ' leaves, ' || (SELECT count(*) FROM foreshard.placed_keys('chosen')) || ' chosen keys' \
         FROM pg_catalog.pg_partition_tree('chosen') WHERE isleaf",
    )?;
    let sample: Vec<String> = accesses.iter().step_by(7).take(200_000).map(u32::to_string).collect();
    let pruned = ratio(&cluster, options, &sample, "off")?;
    println!("  planned as by PostgreSQL alone (foreshard.direct_lookups = off): {pruned:.3}");
    let median = ratio(&cluster, options, &sample, "on")?;
    Ok(bar_least(&format!("look-ups with {shape} over the same without lists"), median, LEAST))
}

/// The median of the rates with lists over those without.
fn ratio(cluster: &Cluster, options: &Options, sample: &[String], direct: &str) -> Result<f64> {
    let mut sessions = [session(cluster, "plain", direct)?, session(cluster, "chosen", direct)?];
    let mut at = 0;
    for session in &mut sessions {
        run(session, sample, &mut at)?;
    }
    let mut ratios = Vec::new();
    for pair in 0..options.pairs {
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            let which = (pair + turn) % 2;
            rates[which] = run(&mut sessions[which], sample, &mut at)?;
        }
        println!("  pair {}: {:.0}/s without lists, {:.0}/s with", pair + 1, rates[0], rates[1]);
        ratios.push(rates[1] / rates[0]);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN))
}

/// Chooses as many keys, in as many lists as the layout has: slots are other ones than the bench's hash makes.
fn place(client: &mut Client, options: &Options, layout: &Layout) -> Result<()> {
    let mut map: HashMap<String, String> = HashMap::new();
    for (key, own) in layout {
        debug_assert_eq!(own.slot, slot_of(*key, options.slots));
        map.insert(key.to_string(), format!("s{}", own.shard));
    }
    let pairs: Vec<String> = map.iter().map(|(key, shard)| format!("\"{key}\": \"{shard}\"")).collect();
    let begun = Instant::now();
    client.exec(&format!("SELECT foreshard.place_keys('chosen', '{{{}}}')", pairs.join(", ")))?;
    wait_until("keys are placed", PATIENCE, || {
        Ok(client.query_one("SELECT count(*) FROM foreshard.progress_moves WHERE state <> 'done'")? == "0")
    })
    .map_err(|error| Error::new(error.to_string(), "See foreshard.progress_moves."))?;
    let held = client.query_one(
        "SELECT round(max((detail ->> 'held_us')::numeric) / 1000, 1) FROM foreshard.history WHERE event = 'cutover'",
    )?;
    println!("  placed in {:.1} s, locks held for at most {held} ms", begun.elapsed().as_secs_f64());
    Ok(())
}

fn session(cluster: &Cluster, table: &str, direct: &str) -> Result<Client> {
    let mut client = cluster.connect("postgres")?;
    client.exec(&format!("SET foreshard.direct_lookups = {direct}"))?;
    client.prepare("look", &format!("SELECT payload FROM {table} WHERE id = $1"))?;
    Ok(client)
}

/// Look-ups per second in one turn.
fn run(client: &mut Client, sample: &[String], at: &mut usize) -> Result<f64> {
    let (begun, mut done) = (Instant::now(), 0_u32);
    while begun.elapsed() < TURN {
        for _ in 0..100 {
            let key = sample.get(*at % sample.len().max(1)).map(String::as_str);
            client.exec_prepared("look", &[key])?;
            *at += 1;
            done += 1;
        }
    }
    Ok(f64::from(done) / begun.elapsed().as_secs_f64())
}
