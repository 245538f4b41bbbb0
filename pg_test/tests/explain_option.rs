//! EXPLAIN (FORESHARD) on PostgreSQL 18: where what a plan reads lives, and what it was measured to cost.

mod support;

use foreshard_test::{Client, ClusterOptions, Install, Result, wait_until};
use support::{PATIENCE, cluster, database, error_of, move_away, wait_for_phase};

/// A plan as text.
fn plan(client: &mut Client, options: &str, query: &str) -> Result<String> {
    Ok(client.exec(&format!("EXPLAIN ({options}) {query}"))?.to_text())
}

#[test]
fn plans_tell_slots_and_costs() -> Result<()> {
    if Install::from_env()?.major < 18 {
        println!("skipped: only PostgreSQL 18 has room for an option of EXPLAIN");
        return Ok(());
    }
    let mut cluster = cluster(
        &ClusterOptions::new("explain_option")
            .set("foreshard.bucket", "1")
            .set("foreshard.statement_sample_interval", "1")
            .set("foreshard.trigger_sample_interval", "1")
            .set("foreshard.observe_budget", "100"),
    )?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE TABLE \"T ä\" (id bigint PRIMARY KEY, v int DEFAULT 0); INSERT INTO \"T ä\" SELECT g FROM generate_series(1, 200) g; \
         CREATE TABLE plain (id int); CREATE VIEW v AS SELECT * FROM \"T ä\"; CREATE ROLE reader; GRANT SELECT ON v TO reader; \
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; \
         SELECT foreshard.distribute('\"T ä\"', 'id', 4); SET jit = off; SET enable_seqscan = off; \
         CREATE TRIGGER f BEFORE UPDATE ON \"T ä\" FOR EACH ROW EXECUTE FUNCTION f()",
    )?;
    let one = "SELECT v FROM \"T ä\" WHERE id = 7";
    let wanted = c.query_one(
        "SELECT format('Foreshard: Slot: %s, Shard: %s', slot_id, shard) FROM foreshard.slots s JOIN \"T ä\" t ON t.tableoid = s.partition WHERE id = 7",
    )?;
    assert!(plan(&mut c, "FORESHARD, COSTS OFF", one)?.contains(&wanted), "{wanted}");
    assert_eq!(
        plan(&mut c, "FORESHARD", "SELECT count(*) FROM \"T ä\"")?.matches("Foreshard: Slot: ").count(),
        4
    );
    for silent in ["FORESHARD off", "COSTS on", "FORESHARD, FORESHARD off"] {
        assert!(!plan(&mut c, silent, one)?.contains("Foreshard"), "{silent}");
    }
    assert!(!plan(&mut c, "FORESHARD", "SELECT * FROM plain, pg_class")?.contains("Foreshard"));
    let error = error_of(&mut c, &format!("EXPLAIN (FORESHARD 'no such thing') {one}"))?;
    assert_eq!(error.sqlstate, "42601", "{error}");
    measured(&mut c, one)?;

    // Who sees a table through a view only is told nothing of it.
    assert!(plan(&mut c, "FORESHARD", "SELECT * FROM v WHERE id = 7")?.contains("Foreshard"));
    c.exec("SET ROLE reader")?;
    assert!(!plan(&mut c, "FORESHARD", "SELECT * FROM v WHERE id = 7")?.contains("Foreshard"));
    c.exec("RESET ROLE")?;

    cluster.set_and_reload(&[("foreshard.hold_at_phase", "verify")])?;
    let slot = c.query_one(
        "SELECT slot_id FROM foreshard.slots s JOIN \"T ä\" t ON t.tableoid = s.partition WHERE id = 7",
    )?;
    let move_id = move_away(&mut c, &slot)?;
    wait_for_phase(&mut c, &move_id, "verify")?;
    let told = plan(&mut c, "ANALYZE, FORESHARD", one)?;
    assert!(told.contains(&format!("Move: move {move_id}: verify")), "{told}");
    // A database without the extension says so.
    let mut other = cluster.connect("postgres")?;
    other.exec("CREATE TABLE t (id int)")?;
    assert_eq!(error_of(&mut other, "EXPLAIN (FORESHARD) SELECT * FROM t")?.sqlstate, "42704");
    Ok(())
}

/// What was measured is told, in every format.
fn measured(c: &mut Client, one: &str) -> Result<()> {
    let mut told = String::new();
    wait_until("costs are known", PATIENCE, || {
        for _ in 0..20 {
            c.exec(one)?;
            c.exec("UPDATE \"T ä\" SET v = v + 1 WHERE id = 7")?;
        }
        told = plan(c, "FORESHARD", one)?;
        Ok(["Cost per Scan: ", "Cost per Row Written: ", "Cost per Trigger Call: "]
            .iter()
            .all(|cost| told.contains(cost)))
    })
    .map_err(|error| foreshard_test::Error::new(format!("{error} {told}"), ""))?;
    let update = plan(c, "FORESHARD", "UPDATE \"T ä\" SET v = 1 WHERE id = 7")?;
    assert!(
        update.contains("Foreshard: Slots: 4, Cost per Row Written: ")
            && update.contains("Foreshard: Slot: "),
        "{update}"
    );
    let insert = plan(c, "FORESHARD", "INSERT INTO \"T ä\" VALUES (1000)")?;
    assert!(insert.contains("Foreshard: Slots: 4"), "{insert}");
    let json = plan(c, "FORESHARD, FORMAT json", one)?.replace('\'', "''");
    let slot = c.query_one(&format!("SELECT '{json}'::json -> 0 -> 'Plan' -> 'Foreshard' ->> 'Slot'"))?;
    assert!(slot.parse::<u64>().is_ok(), "{slot} in {json}");
    assert!(plan(c, "FORESHARD, FORMAT xml", one)?.contains("<Cost-per-Scan>"));
    assert!(plan(c, "FORESHARD, FORMAT yaml", one)?.contains("Foreshard:"));
    Ok(())
}
