//! What a node measures of tables that the coordinator of its cluster asks for: ordinary ones, of no table that foreshard
//! manages. Needs no Citus.

mod common;

use common::{Server, options};
use foreshard_test::Result;
use std::time::Duration;

/// Asks for a table as shard 7, for a minute.
const ASKED: &str = "foreshard.observe_shards(ARRAY[7::bigint], ARRAY['plain'::regclass::oid], 60)";

/// A counter of the shard, by name.
fn counter(name: &str) -> String {
    format!(
        "SELECT (j->'shards'->0->2->>(n.i::int - 1))::bigint FROM (SELECT {ASKED} AS j) r, \
             jsonb_array_elements_text(j->'counters') WITH ORDINALITY n (name, i) WHERE n.name = '{name}'"
    )
}

fn number(server: &mut Server, name: &str) -> Result<i64> {
    Ok(server.query(&counter(name))?.parse().unwrap_or(-1))
}

fn start(name: &str) -> Result<Server> {
    let options = options(name)
        .set("foreshard.statement_sample_interval", "1")
        .set("foreshard.trigger_sample_interval", "1")
        .set("foreshard.observe_budget", "100");
    let mut server = Server::start(&options)?;
    server.query(
        "CREATE TABLE plain (id int PRIMARY KEY, v int NOT NULL DEFAULT 0); CREATE INDEX ON plain ((id + 1)); \
         INSERT INTO plain SELECT g FROM generate_series(1, 100) g; \
         CREATE FUNCTION work() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM sum(g) FROM generate_series(1, 500) g; RETURN NEW; END $$; \
         CREATE TRIGGER work_7 BEFORE UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION work()",
    )?;
    Ok(server)
}

#[test]
fn what_is_asked_for_is_measured_and_only_grows() -> Result<()> {
    let mut server = start("observed-shards")?;
    // Before anybody has asked, nothing is.
    server.query("UPDATE plain SET v = v + 1 WHERE id = 1")?;
    assert_eq!(number(&mut server, "Statements")?, 0);
    for id in 1..=20 {
        server.query(&format!("UPDATE plain SET v = v + 1 WHERE id = {id}"))?;
        server.query(&format!("SELECT v FROM plain WHERE id + 1 = {id}"))?;
    }
    for (name, least) in [("Statements", 40), ("RowsWritten", 20), ("RowsRead", 20), ("ReadCpuNs", 1)] {
        assert!(number(&mut server, name)? >= least, "{name}: {}", server.query(&counter(name))?);
    }
    assert_eq!(number(&mut server, "TriggerCalls")?, 20);
    assert!(number(&mut server, "TriggerCostNs")? > 0);
    let since = format!("SELECT {ASKED}->'shards'->0->>1");
    let before = (server.query(&since)?, number(&mut server, "Statements")?);

    // A keeper that reads what is its own, every second, takes nothing of it, and learns nothing from it.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!((server.query(&since)?, number(&mut server, "Statements")?), before);
    assert_eq!(server.query("SELECT (SELECT count(*) FROM foreshard.stat_triggers) + (SELECT count(*) FROM foreshard.slot_costs) + (SELECT count(*) FROM foreshard.co_access)")?, "0");

    let told = format!(
        "SELECT t->>0, t->>1, t->>3, t->>4, t->>5, t->>6 FROM (SELECT {ASKED}->'triggers'->0 AS t) q"
    );
    assert_eq!(server.query(&told)?, "7|work_7|work|UPDATE|ROW|BEFORE");
    // One that is gone is not told.
    server.query("DROP TRIGGER work_7 ON plain")?;
    assert_eq!(server.query(&format!("SELECT {ASKED}->'triggers', {ASKED}->'why'"))?, "[]|null");

    // What nobody asks for any more is watched no more.
    let used = "SELECT used FROM foreshard.stat_foreshard WHERE area = 'relations'";
    assert_eq!(server.query(used)?, "1");
    server.query("SELECT foreshard.observe_shards(ARRAY[7::bigint], ARRAY['plain'::regclass::oid], 0)")?;
    server.wait_query(used, "0")?;
    assert_eq!(number(&mut server, "Statements")?, 0, "it begins anew");
    Ok(())
}

#[test]
fn what_a_keeper_watches_stays_its_own() -> Result<()> {
    let mut server = start("observed-own")?;
    server.query("CREATE TABLE t (id int PRIMARY KEY, v int); SELECT foreshard.distribute('t', 'id', 2)")?;
    let used = "SELECT used FROM foreshard.stat_foreshard WHERE area = 'relations'";
    server.wait_query(used, "3")?;
    let partition = server.query("SELECT min(partition::oid) FROM foreshard.slots")?;
    let asked = format!(
        "SELECT foreshard.observe_shards(ARRAY[1::bigint, 7], ARRAY[{partition}::oid, 'plain'::regclass::oid], 60)"
    );
    assert_eq!(server.query(&format!("SELECT jsonb_array_length(j->'shards') FROM ({asked} AS j) q"))?, "1");
    // Both go on: the keeper learns from its own, and publishes it anew, which leaves the other alone.
    server
        .query("INSERT INTO t SELECT g, 0 FROM generate_series(1, 200) g; ALTER TABLE t ADD COLUMN w int")?;
    server.query("SELECT foreshard.configure('t', 'observe', 'on')")?;
    server.wait_query("SELECT count(*) > 0 FROM foreshard.slot_costs", "t")?;
    assert_eq!(server.query(used)?, "4");
    Ok(())
}

#[test]
fn who_may_not_ask_and_what_is_no_question() -> Result<()> {
    let mut server = start("observed-rights")?;
    server.query("CREATE ROLE somebody; GRANT pg_monitor TO somebody")?;
    assert_eq!(server.fails(&format!("SET ROLE somebody; SELECT {ASKED}"))?.sqlstate, "42501");
    for arguments in [
        "ARRAY[7::bigint], ARRAY['plain'::regclass::oid], NULL",
        "ARRAY[7::bigint], ARRAY['plain'::regclass::oid], 'NaN'",
        "ARRAY[7::bigint], ARRAY['plain'::regclass::oid], -1",
        "ARRAY[7::bigint], NULL, 60",
    ] {
        assert_eq!(server.fails(&format!("SELECT foreshard.observe_shards({arguments})"))?.sqlstate, "22023");
    }
    for arguments in
        ["NULL, NULL, 60", "ARRAY[NULL::bigint], ARRAY[NULL::oid], 60", "ARRAY[1::bigint], ARRAY[0::oid], 60"]
    {
        let asked = format!("SELECT jsonb_array_length(foreshard.observe_shards({arguments})->'shards')");
        assert_eq!(server.query(&asked)?, "0", "{arguments}");
    }
    server.set(&[("foreshard.observe", "off")])?;
    server.wait_query(&format!("SELECT {ASKED}->>'why'"), "foreshard.observe is off there")?;
    Ok(())
}
