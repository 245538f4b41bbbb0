//! Splits: a slot becomes two without anybody noticing; whatever hangs on its partitions hangs on the new ones.

mod common;

use common::ledger::{self, Ledger};
use common::placed::{assert_located, expect_code, layout};
use common::snapshots;
use common::{Random, Server, options};
use foreshard_test::Result;
use std::time::Duration;

/// A shard that a part of a slot, or a key, is on its way to is not dropped from under it.
#[test]
fn where_something_goes_stays() -> Result<()> {
    let mut server = Server::start(&options("split-target"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 2000); \
         SELECT foreshard.distribute('t', 'id', 2, shards => ARRAY['sa', 'sb'])",
    )?;
    let slot = server.slots("t")?[0].clone();
    let changes = [
        ("third", format!("SELECT foreshard.split_slot({slot}, to_shard_b => 'third')")),
        ("fourth", "SELECT foreshard.isolate_key('t', 17, 'fourth')".to_string()),
    ];
    for (shard, change) in changes {
        server.query(&format!("SELECT foreshard.add_shard('{shard}')"))?;
        server.hold(Some("copy"))?;
        let move_id = server.query(&change)?;
        server.wait_phase(&move_id, "copy")?;
        let refused = server.fails(&format!("SELECT foreshard.drop_shard('{shard}')"))?;
        assert_eq!(refused.sqlstate, "55006", "{shard}");
        server.hold(None)?;
        server.wait_end(&move_id, "done")?;
        assert_eq!(server.query("SELECT count(*) || ' ' || count(DISTINCT id) FROM t")?, "2000 2000");
        let there = format!("SELECT count(*) FROM foreshard.slots WHERE shard = '{shard}'");
        assert_eq!(server.query(&there)?, "1");
    }
    server.assert_clean()
}

/// What the hint of the refusal says, done as it says: the key holds from when it was added again, and is whole once it is validated.
#[test]
fn a_foreign_key_to_the_table_is_taken_off_meanwhile() -> Result<()> {
    let mut server = Server::start(&options("split-inbound"))?;
    server.query(
        "CREATE TABLE parent (id bigint PRIMARY KEY, v text); INSERT INTO parent SELECT g, 'v' FROM generate_series(1, 4000) g; \
         SELECT foreshard.distribute('parent', 'id', 2); \
         CREATE TABLE child (id bigint PRIMARY KEY, parent_id bigint NOT NULL, CONSTRAINT to_parent FOREIGN KEY (parent_id) REFERENCES parent); \
         INSERT INTO child SELECT g, g FROM generate_series(1, 4000) g",
    )?;
    let slot = server.slots("parent")?[0].clone();
    let refused = server.fails(&format!("SELECT foreshard.split_slot({slot})"))?;
    assert_eq!(refused.sqlstate, "0A000");
    let hint = refused.hint.unwrap_or_default();
    assert!(
        hint.contains("drop the foreign key, split the slot, and add the key again (NOT VALID"),
        "{hint}"
    );
    server.query("ALTER TABLE child DROP CONSTRAINT to_parent")?;
    let split = server.split_slot(&slot)?;
    server.wait_end(&split, "done")?;
    server.query("INSERT INTO child VALUES (5000, 99999)")?;
    server.query(
        "ALTER TABLE child ADD CONSTRAINT to_parent FOREIGN KEY (parent_id) REFERENCES parent NOT VALID",
    )?;
    let deleted = "DELETE FROM parent WHERE id % 2 = 1";
    let validated = "ALTER TABLE child VALIDATE CONSTRAINT to_parent";
    for statement in ["INSERT INTO child VALUES (5001, 88888)", deleted, validated] {
        assert_eq!(server.fails(statement)?.sqlstate, "23503", "{statement}");
    }
    server.query("DELETE FROM child WHERE id = 5000")?;
    server.query(validated)?;
    // It does not stand in the way of a move.
    for slot in server.slots("parent")? {
        let move_id = server.move_slot(&slot)?;
        server.wait_end(&move_id, "done")?;
    }
    assert_eq!(server.fails(deleted)?.sqlstate, "23503");
    let valid = "SELECT convalidated FROM pg_constraint WHERE conname = 'to_parent' AND conparentid = 0";
    assert_eq!(server.query(valid)?, "t");
    server.assert_settled()
}

#[test]
fn nobody_notices() -> Result<()> {
    let mut server = Server::start(&options("split").set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, 12_000)?;
    server.query(
        "SELECT foreshard.distribute('acc', 'id', 2); SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    let ledger = Ledger::start(&server, 12_000, 4);
    let mut prepared = server.cluster.connect("postgres")?;
    prepared.exec("SET plan_cache_mode = force_generic_plan; SET jit = off")?;
    prepared.prepare("by_key", "SELECT count(*) FROM acc WHERE id = $1")?;
    prepared.prepare("all", "SELECT count(*) FROM (SELECT id FROM acc OFFSET 0) q WHERE $1::int = 0")?;
    for round in 0..5 {
        let slots = server.slots("acc")?;
        let slot = &slots[round * 7 % slots.len()];
        let of_slot =
            format!("SELECT modulus, remainder, shard FROM foreshard.slots WHERE slot_id = {slot} LIMIT 1");
        let before = server.query(&of_slot)?;
        let move_id = if round % 2 == 0 {
            server.split_slot(slot)?
        } else {
            server.query(&format!("SELECT foreshard.split_slot({slot})"))?
        };
        for key in 0..20 {
            prepared.exec_prepared("by_key", &[Some(&key.to_string())])?;
            prepared.exec_prepared("all", &[Some("0")])?;
        }
        server.wait_end(&move_id, "done")?;
        let after = server.query(&of_slot)?;
        let number = |text: &str, n: usize| text.split('|').nth(n).and_then(|n| n.parse::<i64>().ok());
        assert_eq!(number(&after, 0), number(&before, 0).map(|m| m * 2), "{before} became {after}");
        assert_eq!(number(&after, 1), number(&before, 1));
        ledger.assert_equal(&mut server)?;
        server.assert_settled()?;
        assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "note")?);
        assert_eq!(layout(&mut server, "acc")?.lines().count(), slots.len() + 1);
        let held = server.query(&format!(
            "SELECT detail->>'held_us', detail->>'attempts' FROM foreshard.history WHERE event = 'cutover' AND move_id = {move_id}"
        ))?;
        println!("round {round}: held for {held} us|attempts");
    }
    ledger.work(100)?;
    ledger.assert_equal(&mut server)?;
    ledger.finish();
    for table in ["acc", "note"] {
        assert_located(&mut server, table, "id")?;
    }
    // One partition is looked at for one key.
    let plan = server.query("EXPLAIN (COSTS off) SELECT * FROM acc WHERE id = 4711")?;
    assert_eq!(plan.matches("acc_s").count() - plan.matches("_pkey").count(), 1, "{plan}");
    let names =
        server.query("SELECT string_agg(partition::text, ' ') FROM foreshard.slots WHERE modulus = 4")?;
    assert!(names.is_empty() || names.contains("acc_s4_"), "{names}");
    // A table that comes later has the same layout, and the same names.
    server.query("CREATE TABLE late (id bigint PRIMARY KEY); INSERT INTO late SELECT generate_series(1, 3000); SELECT foreshard.distribute('late', 'id', colocate_with => 'acc')")?;
    assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "late")?);
    assert_located(&mut server, "late", "id")?;
    let suffixes = |table: &str| {
        format!(
            "SELECT string_agg(replace(partition::text, '{table}', ''), ' ' ORDER BY slot_id) FROM foreshard.slots WHERE \"table\" = '{table}'::regclass"
        )
    };
    assert_eq!(server.query(&suffixes("acc"))?, server.query(&suffixes("late"))?);
    // Parts are slots like any other.
    let slot = server.slots("late")?[3].clone();
    server.move_and_wait(&slot)?;
    let move_id = server.split_slot(&slot)?;
    server.wait_end(&move_id, "done")?;
    assert_eq!(layout(&mut server, "acc")?, layout(&mut server, "late")?);
    server.query("SELECT foreshard.undistribute('late'); SELECT foreshard.undistribute('note'); SELECT foreshard.undistribute('acc')")?;
    assert_eq!(server.query("SELECT count(*) FROM late")?, "3000");
    server.assert_clean()
}

#[test]
fn what_cannot_be_split_says_why() -> Result<()> {
    let mut server = Server::start(&options("split-refuse"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); SELECT foreshard.distribute('t', 'id', 2); \
         CREATE TABLE nokey (id bigint, v text); SELECT foreshard.distribute('nokey', 'id', 1); \
         CREATE TABLE few (id bigint PRIMARY KEY); SELECT foreshard.distribute('few', 'id', 4096)",
    )?;
    let slot = server.slots("t")?[0].clone();
    let leaf = server.query(&format!("SELECT partition FROM foreshard.slots WHERE slot_id = {slot}"))?;
    let mut c = server.cluster.connect("postgres")?;
    let split = format!("SELECT foreshard.split_slot({slot})");
    let mut refused = |make: &str, word: &str, unmake: &str| -> Result<()> {
        c.exec(&make.replace("LEAF", &leaf))?;
        let error = expect_code(c.exec(&split), "0A000");
        assert!(
            error.detail.as_deref().is_some_and(|d| d.contains(word)) && error.hint.is_some(),
            "{word}: {error}"
        );
        c.exec(&unmake.replace("LEAF", &leaf))?;
        Ok(())
    };
    refused(
        "CREATE TABLE inbound (t_id bigint REFERENCES t)",
        "inbound_foreign_key: inbound_t_id_fkey of public.inbound",
        "DROP TABLE inbound",
    )?;
    refused(
        "CREATE TABLE inbound (t_id bigint REFERENCES LEAF)",
        "inbound_foreign_key",
        "DROP TABLE inbound",
    )?;
    refused("CREATE PUBLICATION p FOR TABLE t", "publication: p", "DROP PUBLICATION p")?;
    refused("CREATE PUBLICATION p FOR ALL TABLES", "publication: p", "DROP PUBLICATION p")?;
    refused("CREATE PUBLICATION p FOR TABLES IN SCHEMA public", "publication: p", "DROP PUBLICATION p")?;
    refused(
        "CREATE PUBLICATION p FOR TABLE LEAF WITH (publish_via_partition_root = true)",
        "own_publication: p",
        "DROP PUBLICATION p",
    )?;
    refused("CREATE VIEW v AS SELECT * FROM LEAF", "dependent: ", "DROP VIEW v")?;
    refused("CREATE TABLE other (t LEAF)", "row_type_used: ", "DROP TABLE other")?;
    refused(
        "ALTER TABLE LEAF ADD CONSTRAINT late CHECK (v <> 'x') NOT VALID",
        "not_validated: constraint late",
        "ALTER TABLE LEAF DROP CONSTRAINT late",
    )?;
    refused(
        "CREATE ROLE somebody; ALTER TABLE LEAF OWNER TO somebody",
        "other_owner",
        "ALTER TABLE LEAF OWNER TO postgres",
    )?;
    refused(
        "CREATE INDEX only_t ON ONLY t (v)",
        "index_without_partition: public.only_t",
        "DROP INDEX only_t",
    )?;
    refused("CREATE SEQUENCE own OWNED BY LEAF.id", "own_sequence: public.own", "DROP SEQUENCE own")?;
    refused("CREATE STATISTICS st ON id, v FROM LEAF", "own_statistics: st", "DROP STATISTICS st")?;
    refused(
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER tr AFTER INSERT ON LEAF FOR EACH ROW EXECUTE FUNCTION f()",
        "own_trigger: tr",
        "DROP TRIGGER tr ON LEAF",
    )?;
    let nokey = server.slots("nokey")?[0].clone();
    let mut c = server.cluster.connect("postgres")?;
    let error = expect_code(c.exec(&format!("SELECT foreshard.split_slot({nokey})")), "0A000");
    assert!(error.detail.as_deref().is_some_and(|d| d.contains("no_identity_index")), "{error}");
    let few = server.slots("few")?[0].clone();
    expect_code(c.exec(&format!("SELECT foreshard.split_slot({few})")), "53400");
    expect_code(c.exec("SELECT foreshard.split_slot(123456)"), "42704");
    expect_code(c.exec("SELECT foreshard.split_slot(NULL)"), "22023");
    expect_code(c.exec(&format!("SELECT foreshard.split_slot({slot}, 'nowhere')")), "42704");
    // Where a slot is now, an older snapshot need not show.
    let calls = [
        split.clone(),
        format!("SELECT foreshard.move_slot({slot}, 'sb')"),
        format!("SELECT foreshard.merge_slots({slot}, {few})"),
        "SELECT foreshard.isolate_key('t', 1)".to_string(),
        "SELECT foreshard.undo_recommendation(1)".to_string(),
    ];
    for call in calls {
        let error = expect_code(c.exec(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {call}")), "0A000");
        assert!(error.hint.is_some_and(|hint| hint.contains("READ COMMITTED")), "{call}");
        c.exec("ROLLBACK")?;
    }
    c.exec("CREATE ROLE stranger; GRANT USAGE ON SCHEMA foreshard TO stranger; SET ROLE stranger")?;
    expect_code(c.exec(&split), "42501");
    c.exec("RESET ROLE; GRANT EXECUTE ON FUNCTION foreshard.split_slot TO stranger; SET ROLE stranger")?;
    expect_code(c.exec(&split), "42501");
    c.exec("RESET ROLE")?;
    // Two changes of a slot exclude each other; what was split for good does not come back.
    server.hold(Some("copy"))?;
    let move_id = c.query_one(&split)?;
    expect_code(c.exec(&split), "55006");
    expect_code(c.exec(&format!("SELECT foreshard.move_slot({slot}, 'sb')")), "55006");
    c.exec("CREATE TABLE late (id bigint PRIMARY KEY)")?;
    expect_code(c.exec("SELECT foreshard.distribute('late', 'id', colocate_with => 't')"), "55006");
    expect_code(c.exec("SELECT foreshard.undistribute('t')"), "55006");
    server.wait_phase(&move_id, "copy")?;
    assert_eq!(c.query_one(&format!("SELECT foreshard.pause_move({move_id})"))?, "t");
    server.hold(None)?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.phase(&move_id)?, "copy", "paused");
    // What comes to hang on the slot meanwhile is found as well.
    c.exec("CREATE TABLE inbound (t_id bigint REFERENCES t)")?;
    assert_eq!(c.query_one(&format!("SELECT foreshard.resume_move({move_id})"))?, "t");
    server.wait_end(&move_id, "failed")?;
    let why = server
        .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
    assert!(why.contains("inbound_foreign_key"), "{why}");
    c.exec("DROP TABLE inbound")?;
    let move_id = c.query_one(&split)?;
    server.wait_end(&move_id, "done")?;
    let error = expect_code(c.exec(&format!("SELECT foreshard.rollback_move({move_id})")), "0A000");
    assert!(error.hint.is_some(), "{error}");
    server.assert_settled()
}

/// Nothing but the function's arguments says that a slot becomes two: an undivided table becomes five, with
/// clients at work.
#[test]
fn parts_may_be_many() -> Result<()> {
    let mut server = Server::start(&options("split-many").set("foreshard.copy_chunk", "64kB"))?;
    ledger::create(&mut server, 6_000)?;
    server.query(
        "SELECT foreshard.distribute('acc', 'id', 1); SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
    )?;
    let ledger = Ledger::start(&server, 6_000, 3);
    let slot = server.slots("acc")?[0].clone();
    server.query(&format!(
        "WITH r AS (INSERT INTO foreshard.resharding_request (requested_by, assignment) VALUES ('me', '{{}}') RETURNING request_id), \
         m AS (INSERT INTO foreshard.move (request_id, kind, slot_id, from_shard, to_shard) SELECT request_id, 'split', {slot}, 1, 1 FROM r RETURNING move_id) \
         INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id) SELECT move_id, g, 5, g, 1 + g % 2 FROM m, generate_series(0, 4) g"
    ))?;
    server.wait_end("1", "done")?;
    ledger.work(100)?;
    ledger.assert_equal(&mut server)?;
    ledger.finish();
    for table in ["acc", "note"] {
        assert_located(&mut server, table, "id")?;
        assert_eq!(layout(&mut server, table)?.lines().count(), 5);
    }
    server.assert_settled()
}

/// DDL in the middle: the split begins anew, or ends; nothing is left and nothing lost.
#[test]
fn definitions_change_meanwhile() -> Result<()> {
    let mut server = Server::start(&options("split-ddl"))?;
    let create = "CREATE TABLE t (id bigint PRIMARY KEY, v text NOT NULL); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 3000) g; \
                  SELECT foreshard.distribute('t', 'id', 2)";
    server.query(create)?;
    for (phase, change) in [
        ("capture", "ALTER TABLE t ADD COLUMN a int DEFAULT 5"),
        ("copy", "ALTER TABLE t ALTER COLUMN v SET DEFAULT 'x'"),
        ("index", "CREATE INDEX ON t (v)"),
        ("verify", "ALTER TABLE t ADD CHECK (id > 0)"),
        ("cutover", "ALTER TABLE t ALTER COLUMN v DROP NOT NULL"),
        ("cutover", "TRUNCATE t; INSERT INTO t SELECT g, 'w' || g FROM generate_series(1, 2000) g"),
        ("cutover", "ALTER TABLE t RENAME COLUMN v TO w"),
        ("cutover", "VACUUM FULL t"),
        ("cutover", "ALTER TABLE t RENAME TO t2"),
        ("cutover", "ALTER TABLE t2 RENAME TO t"),
    ] {
        println!("{change} in {phase}");
        let slot = server.query("SELECT min(slot_id) FROM foreshard.slot")?;
        server.hold(Some(phase))?;
        let move_id = server.split_slot(&slot)?;
        server.wait_phase(&move_id, phase)?;
        let digest = |server: &mut Server, name: &str| {
            server.query(&format!("SELECT count(*) || ' ' || sum(id) FROM {name}"))
        };
        server.query(change)?;
        let name = if change.ends_with("t2") { "t2" } else { "t" };
        let before = digest(&mut server, name)?;
        server.hold(None)?;
        server.wait_end(&move_id, "done")?;
        assert_eq!(digest(&mut server, name)?, before, "{change}");
        let shapes = server.query(&format!(
            "SELECT count(DISTINCT (SELECT string_agg(concat_ws(' ', attname, atttypid, attnotnull, pg_get_expr(adbin, adrelid)), ',' ORDER BY attnum) \
               FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum) WHERE attrelid = relid AND attnum > 0 AND NOT attisdropped) \
               || (SELECT count(*) FROM pg_index WHERE indrelid = relid)) FROM pg_partition_tree('{name}')"
        ))?;
        assert_eq!(shapes, "1", "shapes of the partitions after {change}");
        // The new index lies where users' indexes lie.
        server.assert_clean()?;
    }
    // The table goes, then the extension.
    let slot = server.slots("t")?[0].clone();
    server.hold(Some("cutover"))?;
    let move_id = server.split_slot(&slot)?;
    server.wait_phase(&move_id, "cutover")?;
    server.query("DROP TABLE t")?;
    server.hold(None)?;
    server.wait_query("SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    server.wait_query("SELECT count(*) FROM pg_class WHERE relname ~ '^(split|capture)_'", "0")?;
    server.assert_clean()?;
    server.query(create)?;
    let slot = server.slots("t")?[0].clone();
    server.hold(Some("cutover"))?;
    let move_id = server.split_slot(&slot)?;
    server.wait_phase(&move_id, "cutover")?;
    server.query("DROP EXTENSION foreshard")?;
    assert_eq!(server.query("SELECT count(*) FROM t")?, "3000");
    assert_eq!(server.query("SELECT count(*) FROM pg_class WHERE relname ~ '^(split|capture)_'")?, "0");
    server.query("UPDATE t SET v = 'z'")?;
    Ok(())
}

#[test]
fn old_snapshots_see_every_row() -> Result<()> {
    snapshots::old_snapshots_see_every_row("split-mvcc", |server| {
        let slot = server.slots("t")?[0].clone();
        server.split_slot(&slot)
    })
}

#[test]
fn serializable_stays_serializable() -> Result<()> {
    snapshots::serializable_stays_serializable("split-ssi", |server| {
        let slot = server
            .query("SELECT slot_id FROM foreshard.slots JOIN t ON t.tableoid = partition WHERE id = 17")?;
        server.split_slot(&slot)
    })
}

/// Where a key is can be asked in a transaction whose snapshot is older than the partition that has it.
#[test]
fn keys_are_located_under_old_snapshots() -> Result<()> {
    let mut server = Server::start(&options("split-located"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 500); SELECT foreshard.distribute('t', 'id', 1)",
    )?;
    let slot = server.slots("t")?[0].clone();
    server.hold(Some("cutover"))?;
    let move_id = server.split_slot(&slot)?;
    server.wait_phase(&move_id, "cutover")?;
    let mut old = server.cluster.connect("postgres")?;
    old.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    let located = "SELECT string_agg(foreshard.get_shard_location('t', g), ' ' ORDER BY g) FROM generate_series(1, 50) g";
    let now = server.query(located)?;
    assert!(now.contains("sa") && now.contains("sb"), "{now}");
    assert_eq!(old.query_one(located)?, now);
    // As well once the transaction has an id; and it keeps no lock on the table.
    old.exec("SELECT pg_current_xact_id()")?;
    assert_eq!(old.query_one(located)?, now);
    let locked = format!(
        "SELECT count(*) FROM pg_locks WHERE pid = {} AND relation = 't'::regclass",
        old.backend_pid()
    );
    assert_eq!(server.query(&locked)?, "0");
    old.exec("COMMIT")?;
    server.assert_settled()
}

/// The parts look as hot as they are, and keys are born into them.
#[test]
fn what_is_known_is_divided() -> Result<()> {
    let mut server = Server::start(&options("split-known").set("foreshard.hot_slot_threshold", "1"))?;
    server.query(
        "CREATE TABLE t (id bigint PRIMARY KEY, v int); SELECT foreshard.distribute('t', 'id', 2); \
         ALTER TABLE t ALTER id SET DEFAULT foreshard.next_key('t', NULL::bigint); INSERT INTO t (v) SELECT g FROM generate_series(1, 4000) g",
    )?;
    let slot = server.slots("t")?[0].clone();
    server.query(&format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, cost_units_per_s) \
         SELECT 3600, {slot}, date_trunc('hour', now()) - g * interval '1 hour', 100, 50, 40 FROM generate_series(1, 200) g"
    ))?;
    let mut c = server.cluster.connect("postgres")?;
    let mut random = Random::new(3);
    for _ in 0..2000 {
        c.exec(&format!("SELECT * FROM t WHERE id = {}", random.below(100_000)))?;
    }
    server.wait_query(&format!("SELECT heat > 0 FROM foreshard.slot_heat WHERE slot_id = {slot}"), "t")?;
    let move_id = server.query(&format!("SELECT foreshard.split_slot({slot})"))?;
    server.wait_end(&move_id, "done")?;
    let other = server.query("SELECT max(slot_id) FROM foreshard.slot")?;
    let shares = server.query(&format!("SELECT slot_id, rows::float8 / sum(rows) OVER () FROM foreshard.move_part WHERE move_id = {move_id} ORDER BY part"))?;
    for line in shares.lines() {
        let Some((slot, share)) = line.split_once('|') else { panic!("{line}") };
        let right = server.query(&format!(
            "SELECT count(*), bool_and(abs(cost_units_per_s - 40 * {share}) < 1e-6 AND abs(reads_per_s - 100 * {share}) < 1e-6) \
             FROM foreshard.heat_history WHERE slot_id = {slot} AND resolution_s = 3600"
        ))?;
        assert_eq!(right, "200|t", "history of slot {slot} with share {share}");
    }
    let hot = server.query(&format!(
        "SELECT count(*) FROM foreshard.slot_heat WHERE slot_id IN ({slot}, {other}) AND heat > 0"
    ))?;
    assert_eq!(hot, "2", "slots with heat");
    server.wait_query("SELECT count(*) FROM foreshard.heat_map WHERE reads_per_s IS NOT NULL", "3")?;
    // What the clients wrote into the other slot may be reported as late as now.
    let sane = server.query(&format!(
        "SELECT bool_and(writes_per_s < 100 AND reads_per_s < 20000) FROM foreshard.heat_history WHERE resolution_s = 1 AND reads_per_s IS NOT NULL \
             AND slot_id IN ({slot}, {other}) AND bucket_at > (SELECT swapped_at FROM foreshard.move WHERE move_id = {move_id})"
    ))?;
    assert_ne!(sane, "f", "what the carrier read and wrote counts as load of the parts");
    // next_key() knows the parts: by the same session, and by a new one.
    for client in [&mut c, &mut server.cluster.connect("postgres")?] {
        let born = client.exec("INSERT INTO t (v) SELECT 1 FROM generate_series(1, 3000) RETURNING foreshard.get_shard_location('t', id) IS NOT NULL")?;
        assert_eq!(born.len(), 3000);
        let near = client.query_one(&format!(
            "WITH k AS (SELECT id, foreshard.next_key('t', near => id) AS new FROM t WHERE tableoid = (SELECT partition FROM foreshard.slots WHERE slot_id = {other}) LIMIT 200) \
             SELECT count(*) FILTER (WHERE foreshard.get_shard_location('t', id) = foreshard.get_shard_location('t', new)) FROM k"
        ))?;
        assert_eq!(near, "200", "keys beside their neighbours");
    }
    let used = server.query("SELECT count(DISTINCT tableoid) FROM t WHERE v = 1")?;
    assert_eq!(used, "3", "parts that keys are born into");
    assert_located(&mut server, "t", "id")?;
    server.assert_settled()
}
