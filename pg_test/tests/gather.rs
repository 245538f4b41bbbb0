//! Keys that transactions use together are placed together, by recommendation and by itself; and a front of new keys is
//! told from a load that a split would divide.

mod support;

use foreshard_test::{Client, ClusterOptions, Result};
use support::{Random, cluster, database, wait_for};

const GROUPS: u64 = 60;

/// Transactions, each with keys of one group: members of a group are far apart.
fn work(client: &mut Client, random: &mut Random, count: usize) -> Result<()> {
    for _ in 0..count {
        let group = random.bits() % GROUPS + 1;
        let keys: Vec<String> = (0..4).map(|_| (group + GROUPS * (random.bits() % 5)).to_string()).collect();
        client.exec_prepared("many", &[Some(&format!("{{{}}}", keys.join(",")))])?;
    }
    Ok(())
}

/// Share of the groups of which all keys are on one shard.
const TOGETHER: &str = "SELECT round(avg((shards = 1)::int), 2) FROM (SELECT count(DISTINCT foreshard.get_shard_location('t', g + 60 * m)) AS shards \
     FROM generate_series(1, 60) g, generate_series(0, 4) m GROUP BY g) q";

#[test]
fn what_is_used_together_is_placed_together() -> Result<()> {
    let cluster = cluster(
        &ClusterOptions::new("gather")
            .set("foreshard.bucket", "1s")
            .set("foreshard.plan_interval", "1s")
            .set("foreshard.heat_half_life", "2s")
            .set("foreshard.hot_slot_threshold", "1")
            .set("foreshard.statement_sample_interval", "1")
            .set("foreshard.key_sample_interval", "1")
            .set("foreshard.observe_budget", "100")
            .set("foreshard.split_threshold", "100")
            .set("foreshard.imbalance_high", "100")
            .set("foreshard.cooldown", "1s"),
    )?;
    let mut client = database(&cluster, "d")?;
    client.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, v int DEFAULT 0); INSERT INTO t SELECT g FROM generate_series(1, 300) g; \
         SELECT foreshard.distribute('t', 'id', 6)",
    )?;
    // Keys are seen where an index is used; so small a table is rather read as a whole.
    client.exec("SET enable_seqscan = off; SET jit = off")?;
    client.prepare("many", "SELECT count(v) FROM t WHERE id = ANY ($1)")?;
    let mut random = Random(5);
    let before: f64 = client.query_one(TOGETHER)?.parse().unwrap_or(1.0);
    assert!(before < 0.2, "{before}");
    let mut asked = "0".to_string();
    for _ in 0..40 {
        work(&mut client, &mut random, 300)?;
        asked = client.query_one(
            "SELECT count(*) FROM foreshard.recommendations WHERE action = 'place' AND keys IS NOT NULL AND refusal IS NULL",
        )?;
        if asked != "0" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    assert_ne!(asked, "0", "no placement was recommended");
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.move")?, "0", "advice only");
    unchanged_rows_stay(&mut client)?;
    // Whoever may not read the key does not see it here.
    client.exec("CREATE ROLE looker LOGIN; GRANT pg_monitor TO looker; SET ROLE looker")?;
    assert_eq!(client.query_one("SELECT count(keys) FROM foreshard.recommendations")?, "0");
    client.exec("RESET ROLE")?;
    // A person is faster with one of the keys: what was planned for its slot holds no longer, the rest goes on.
    client.exec(
        "SELECT foreshard.isolate_key('t', (SELECT min(k::bigint) FROM foreshard.recommendations r, jsonb_object_keys(r.keys) k WHERE r.action = 'place'))",
    )?;
    wait_for(&mut client, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    // The slot rests for a second; then there is another plan.
    std::thread::sleep(std::time::Duration::from_millis(3500));
    client.exec("SELECT foreshard.configure('t', 'mode', 'auto')")?;
    wait_for(&mut client, "SELECT count(*) > 1 FROM foreshard.move", "t")?;
    // Slots are filed one after the other.
    std::thread::sleep(std::time::Duration::from_millis(500));
    // What has not begun would go with the mode.
    wait_for(&mut client, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'advise')")?;
    wait_for(&mut client, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    let after: f64 = client.query_one(TOGETHER)?.parse().unwrap_or(0.0);
    assert!(after > 0.8, "{before} of the groups became {after}");
    let logged = "SELECT count(*) = count(DISTINCT m.move_id) AND bool_and(h.detail ->> 'reason' LIKE '%used together%') \
         FROM foreshard.move m LEFT JOIN foreshard.history h ON h.move_id = m.move_id AND h.event = 'auto' \
           AND (h.detail ->> 'recommendation_id')::int8 = m.recommendation_id WHERE m.kind = 'place' AND m.recommendation_id IS NOT NULL";
    assert_eq!(client.query_one(logged)?, "t");
    assert_eq!(
        client.query_one("SELECT count(*) FROM foreshard.move WHERE recommendation_id IS NULL")?,
        "1",
        "of what was done by itself the recommendation is known"
    );
    // It is not moved again, and can be undone.
    let chosen = client.query_one("SELECT count(*) FROM foreshard.placed_keys('t')")?;
    client.exec("SELECT foreshard.undo_recommendation(recommendation_id) FROM foreshard.move WHERE kind = 'place' AND recommendation_id IS NOT NULL")?;
    wait_for(&mut client, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    client.exec(
        "SELECT foreshard.unisolate_key('t', key::bigint) FROM foreshard.placed_keys('t') WHERE isolated",
    )?;
    wait_for(&mut client, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    assert_eq!(
        client.query_one("SELECT count(*) FROM foreshard.placed_keys('t')")?,
        "0",
        "{chosen} were chosen"
    );
    assert_eq!(client.query_one(TOGETHER)?.parse().unwrap_or(1.0), before);

    appended(&mut database(&cluster, "appended")?)
}

/// Nobody works, so nothing new is known: the plan's rows, keys and all, are not written again.
fn unchanged_rows_stay(client: &mut Client) -> Result<()> {
    let rows = "SELECT string_agg(recommendation_id || ' ' || xmin, ',' ORDER BY recommendation_id) FROM foreshard.recommendation WHERE action = 'place'";
    std::thread::sleep(std::time::Duration::from_millis(2200));
    let before = client.query_one(rows)?;
    assert_ne!(before, "");
    std::thread::sleep(std::time::Duration::from_millis(2200));
    assert_eq!(client.query_one(rows)?, before);
    Ok(())
}

/// Every statement writes a new key, or reads one of the newest.
fn appended(client: &mut Client) -> Result<()> {
    client.exec(
        "CREATE TABLE log (id bigint PRIMARY KEY, v int); SELECT foreshard.distribute('log', 'id', 2); \
         UPDATE foreshard.slot SET shard_id = 1",
    )?;
    client.prepare("add", "INSERT INTO log VALUES ($1)")?;
    // Two slots with a history, on three shards: both are too hot.
    client.exec(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 300, slot_id, to_timestamp(b * 300), 1, 1, 1, 100 FROM foreshard.slot, LATERAL (SELECT extract(epoch FROM now())::int8 / 300 AS now) t, \
             generate_series(now - 288, now - 1) b",
    )?;
    client.exec("ALTER SYSTEM SET foreshard.split_threshold = '0.4'")?;
    client.exec("SELECT pg_reload_conf()")?;
    let mut next = 0;
    for _ in 0..60 {
        for _ in 0..200 {
            next += 1;
            client.exec_prepared("add", &[Some(&next.to_string())])?;
        }
        let said = client.query_one(
            "SELECT coalesce(string_agg(DISTINCT refusal, ','), '') FROM foreshard.recommendations WHERE advice LIKE '%next_key()%'",
        )?;
        if said == "append_pattern" {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    let seen = client.exec("SELECT * FROM foreshard.slot_keys")?.to_text();
    let said = client.exec("SELECT slot_id, action, refusal FROM foreshard.recommendations")?.to_text();
    panic!("{seen}\n{said}")
}
