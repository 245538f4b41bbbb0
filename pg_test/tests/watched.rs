//! What shared memory has entries for: new tables at once, no trigger twice, nothing of what is gone.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result, wait_until};
use std::time::{Duration, Instant};
use support::{PATIENCE, cluster, database, keeper, wait_for, wait_watched};

#[test]
fn new_tables_are_watched_at_once() -> Result<()> {
    let options = ClusterOptions::new("watched")
        .set("foreshard.bucket", "3600s")
        .set("foreshard.plan_interval", "3600s")
        .set("foreshard.statement_sample_interval", "1")
        .set("foreshard.trigger_sample_interval", "1")
        .set("foreshard.observe_budget", "100")
        .set("foreshard.max_relations", "64")
        .set("foreshard.max_trigger_profiles", "16");
    let mut cluster = cluster(&options)?;
    let mut c = database(&cluster, "d")?;
    c.exec("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)")?;
    keeper(&mut c)?;
    c.exec("SELECT foreshard.distribute('t', 'id', 8)")?;
    let begun = Instant::now();
    wait_watched(&mut c, 9)?;
    println!("watched after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(3), "watched after {:?}", begun.elapsed());
    let samples = "SELECT written FROM foreshard.stat_foreshard WHERE area = 'transaction samples'";
    let quiet = c.query_one(samples)?;
    c.exec("SELECT count(*) FROM t")?;
    assert_ne!(c.query_one(samples)?, quiet);
    // A table that is not to be observed is left alone, within a second.
    c.exec("INSERT INTO foreshard.table_setting VALUES ('t', 'observe', 'off')")?;
    wait_until("the table is left alone", PATIENCE, || {
        let before = c.query_one(samples)?;
        c.exec("SELECT count(*) FROM t")?;
        Ok(c.query_one(samples)? == before)
    })?;
    copies_are_one_trigger(&mut c)?;
    what_is_dropped_is_withdrawn(&cluster, &mut c)?;
    // What does not fit is counted, and said once.
    c.exec("CREATE TABLE wide (id int PRIMARY KEY)")?;
    c.exec("SELECT foreshard.distribute('wide', 'id', 256)")?;
    let dropped = "SELECT dropped > 0 FROM foreshard.stat_foreshard WHERE area = 'relations'";
    wait_for(&mut c, dropped, "t")?;
    c.exec("INSERT INTO foreshard.table_setting VALUES ('wide', 'observe', 'off')")?;
    std::thread::sleep(Duration::from_millis(2500));
    let said = cluster.log_contents().matches("partitions are not watched").count();
    assert_eq!(said, 1, "said {said} times");
    assert_ne!(c.query_one(USED)?, "0|0|0");
    c.exec("DROP EXTENSION foreshard CASCADE")?;
    c.exec("CREATE EXTENSION foreshard")?;
    wait_for(&mut c, USED, "0|0|0")?;
    cluster.restart()
}

/// Entries of shared memory in use: relations, copies of triggers, trigger profiles.
const USED: &str =
    "SELECT string_agg(used::text, '|' ORDER BY area) FROM foreshard.stat_foreshard WHERE used IS NOT NULL";

/// The checks of a foreign key have a name of their own on every partition, of which there are more than entries.
fn copies_are_one_trigger(c: &mut Client) -> Result<()> {
    c.exec("CREATE TABLE u (id int PRIMARY KEY, t_id int)")?;
    c.exec("SELECT foreshard.distribute('u', 'id', 20)")?;
    wait_watched(c, 30)?;
    let copies = "SELECT used FROM foreshard.stat_foreshard WHERE area = 'trigger copies'";
    assert_eq!(c.query_one(copies)?, "0");
    c.exec("ALTER TABLE u ADD FOREIGN KEY (t_id) REFERENCES t")?;
    let made = "SELECT count(*) FROM pg_trigger g JOIN foreshard.slot_partition p ON p.partition = g.tgrelid WHERE g.tgisinternal";
    let made = c.query_one(made)?;
    assert!(made.parse::<u32>().unwrap_or(0) >= 40, "{made} triggers");
    wait_for(c, copies, &made)?;
    c.exec("INSERT INTO u SELECT g, g % 100 + 1 FROM generate_series(1, 2000) g")?;
    c.exec("UPDATE u SET t_id = t_id % 100 + 1")?;
    let profiles = "SELECT used, dropped FROM foreshard.stat_foreshard WHERE area = 'trigger profiles'";
    let profiles = c.exec(profiles)?.to_text();
    assert_eq!(profiles.trim(), "2|0", "a check is one trigger for INSERT and one for UPDATE");
    Ok(())
}

/// Nobody else takes out what a database has left behind that was dropped.
fn what_is_dropped_is_withdrawn(cluster: &Cluster, c: &mut Client) -> Result<()> {
    let before = c.query_one(USED)?;
    let mut other = database(cluster, "e")?;
    other.exec("CREATE TABLE v (id int PRIMARY KEY); CREATE FUNCTION idle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")?;
    other.exec("SELECT foreshard.distribute('v', 'id', 4)")?;
    other.exec("CREATE TRIGGER idle BEFORE INSERT ON v FOR EACH ROW EXECUTE FUNCTION idle()")?;
    wait_watched(c, 35)?;
    other.exec("INSERT INTO v VALUES (1)")?;
    assert_ne!(c.query_one(USED)?, before);
    drop(other);
    c.exec("DROP DATABASE e WITH (FORCE)")?;
    wait_for(c, USED, &before)
}
