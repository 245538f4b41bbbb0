//! What a canary may see and say: rows of another slot are asked nothing, whatever a scan finds is compared, and what cannot
//! be compared is neither a difference nor the client's business.

mod common;

use common::halves::{Site, answer, plan};
use foreshard_test::{Client, Result, wait_until};
use std::time::Duration;

/// Key 7 and its slot are ours; `peek` raises for rows of the other slot.
const SHARED: &str = "
    CREATE TABLE z (id bigint, x int, n int, late text, h int, PRIMARY KEY (x, id));
    INSERT INTO z SELECT g, g, g % 20, 'ours', g % 200 FROM generate_series(1, 4000) g;
    CREATE INDEX z_n ON z (n); CREATE INDEX z_h ON z USING hash (h);
    CREATE TABLE y (id numeric PRIMARY KEY, late text); INSERT INTO y SELECT g, 'ours' FROM generate_series(1, 400) g;
    SELECT foreshard.distribute('z', 'id', 2), foreshard.distribute('y', 'id', 2);
    UPDATE z SET late = 'theirs' WHERE tableoid <> (SELECT tableoid FROM z WHERE id = 7);
    UPDATE y SET late = 'theirs' WHERE tableoid <> (SELECT tableoid FROM y WHERE id = 7);
    CREATE FUNCTION peek(text) RETURNS bool COST 0.0001 LANGUAGE plpgsql AS
        $$ BEGIN IF $1 = 'theirs' THEN RAISE EXCEPTION 'a row of another slot'; END IF; RETURN true; END $$";

/// (scan, query, whether it may read a copy that has rows of another slot).
const FILTERED: [(&str, &str, bool); 7] = [
    ("seqscan", "SELECT n FROM z WHERE peek(late) AND id = 7", true),
    ("seqscan", "SELECT n FROM z WHERE peek(late) AND id IN (7, 7)", true),
    ("indexscan", "SELECT n FROM z WHERE peek(late) AND n = 7 AND id = 7", true),
    ("bitmapscan", "SELECT n FROM z WHERE peek(late) AND n = 7 AND id = 7", true),
    ("indexscan", "SELECT n FROM z WHERE peek(late) AND x = 7 AND id = 7", true),
    // An index that is not sure of its rows asks for its own conditions again, before any filter.
    ("indexscan", "SELECT n FROM z WHERE peek(late) AND h = 7 AND id = 7", false),
    // Its equality could raise: it may not come first.
    ("seqscan", "SELECT trunc(id) FROM y WHERE peek(late) AND id = 7::numeric", false),
];

#[test]
fn rows_of_another_slot_are_asked_nothing() -> Result<()> {
    let mut site = Site::new("canary-others")?;
    site.server.query(SHARED)?;
    site.server.query("VACUUM ANALYZE z, y")?;
    let mut moves = Vec::new();
    for table in ["z", "y"] {
        let slots = site.server.slots(table)?;
        moves.push(site.routed(&format!("SELECT foreshard.merge_slots({}, {})", slots[0], slots[1]), "1")?);
    }
    for (number, (scan, sql, routed)) in FILTERED.iter().enumerate() {
        let mut client = site.client()?;
        for other in ["seqscan", "indexscan", "bitmapscan", "indexonlyscan"].iter().filter(|s| *s != scan) {
            client.exec(&format!("SET enable_{other} = off"))?;
        }
        client.exec("SET jit = off; SET plan_cache_mode = force_generic_plan")?;
        let shown = plan(&mut client, sql)?;
        assert_eq!(shown.contains("split_"), *routed, "{scan}: {sql}\n{shown}");
        let node = ["Seq Scan", "Index Scan", "Bitmap Heap Scan"]
            .into_iter()
            .find(|node| node.to_lowercase().starts_with(scan.trim_end_matches("scan")));
        assert!(shown.contains(node.unwrap_or("no node")), "{scan}: {shown}");
        assert_eq!(answer(&mut client, sql)?, "7", "{scan}: {sql}");
        client.prepare("one", &sql.replace("id = 7", "id = $1"))?;
        let parameters: &[Option<&str>] = if sql.contains("IN") { &[] } else { &[Some("7")] };
        assert_eq!(client.exec_prepared("one", parameters)?.to_text(), "7", "{number}: {sql}");
    }
    // Pages of which a bitmap has forgotten the lines are looked at line by line.
    let mut client = site.client()?;
    client.exec("SET jit = off; SET enable_seqscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = off; SET work_mem = '64kB'")?;
    assert_eq!(answer(&mut client, "SELECT count(*) FROM z WHERE peek(late) AND n >= 0 AND id = 7")?, "1");
    for move_id in &moves {
        site.finish_one(move_id)?;
    }
    site.server.assert_settled()
}

/// A type whose hash can be made to fail within a statement of its own.
const FAILING: &str = "
    CREATE TYPE k; CREATE FUNCTION k_in(cstring) RETURNS k IMMUTABLE STRICT LANGUAGE internal AS 'int4in';
    CREATE FUNCTION k_out(k) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'int4out';
    CREATE TYPE k (INPUT = k_in, OUTPUT = k_out, LIKE = int4);
    CREATE FUNCTION k_eq(k, k) RETURNS bool IMMUTABLE STRICT LANGUAGE internal AS 'int4eq';
    CREATE FUNCTION k_lt(k, k) RETURNS bool IMMUTABLE STRICT LANGUAGE internal AS 'int4lt';
    CREATE FUNCTION k_le(k, k) RETURNS bool IMMUTABLE STRICT LANGUAGE internal AS 'int4le';
    CREATE FUNCTION k_ge(k, k) RETURNS bool IMMUTABLE STRICT LANGUAGE internal AS 'int4ge';
    CREATE FUNCTION k_gt(k, k) RETURNS bool IMMUTABLE STRICT LANGUAGE internal AS 'int4gt';
    CREATE FUNCTION k_cmp(k, k) RETURNS int IMMUTABLE STRICT LANGUAGE internal AS 'btint4cmp';
    CREATE FUNCTION k_hash(k) RETURNS int IMMUTABLE STRICT LANGUAGE internal AS 'hashint4';
    CREATE FUNCTION k_hash(k, bigint) RETURNS bigint IMMUTABLE STRICT LANGUAGE plpgsql AS $$
    BEGIN
        IF current_setting('k.fails', true) = 'on' THEN PERFORM 1 / 0; END IF;
        RETURN hashtextextended($1::text, $2);
    END $$;
    CREATE OPERATOR = (LEFTARG = k, RIGHTARG = k, FUNCTION = k_eq, COMMUTATOR = =, HASHES, MERGES);
    CREATE OPERATOR < (LEFTARG = k, RIGHTARG = k, FUNCTION = k_lt); CREATE OPERATOR <= (LEFTARG = k, RIGHTARG = k, FUNCTION = k_le);
    CREATE OPERATOR > (LEFTARG = k, RIGHTARG = k, FUNCTION = k_gt); CREATE OPERATOR >= (LEFTARG = k, RIGHTARG = k, FUNCTION = k_ge);
    CREATE OPERATOR CLASS k_order DEFAULT FOR TYPE k USING btree AS
        OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 k_cmp(k, k);
    CREATE OPERATOR CLASS k_hashed DEFAULT FOR TYPE k USING hash AS OPERATOR 1 =, FUNCTION 1 k_hash(k), FUNCTION 2 k_hash(k, bigint);
    CREATE TABLE f (id k PRIMARY KEY, n int); INSERT INTO f SELECT g::text::k, g FROM generate_series(1, 100) g;
    SELECT foreshard.distribute('f', 'id', 1)";

/// What fails while it is decided where to read leaves nothing behind, and the read stays.
#[test]
fn a_choice_that_fails_leaves_nothing() -> Result<()> {
    let mut site = Site::new("canary-fails")?;
    site.server.query(FAILING)?;
    let slot = site.server.slots("f")?[0].clone();
    let move_id = site.routed(&format!("SELECT foreshard.split_slot({slot})"), "1")?;
    let mut client = site.client()?;
    // Nobody else asks for the hash.
    client.exec("SET enable_partition_pruning = off; SET foreshard.direct_lookups = off; SET plan_cache_mode = force_generic_plan")?;
    client.exec("PREPARE one (k) AS SELECT n FROM f WHERE id = $1")?;
    for (fails, routed) in [("off", true), ("on", false), ("off", true)] {
        client.exec(&format!("SELECT set_config('k.fails', '{fails}', false)"))?;
        client.take_notices();
        client.exec("BEGIN")?;
        let shown = client.exec("EXPLAIN EXECUTE one('7')")?.to_text();
        assert_eq!(shown.contains("split_"), routed, "{fails}: {shown}");
        for _ in 0..3 {
            assert_eq!(client.query_one("EXECUTE one('7')")?, "7", "{fails}");
        }
        client.exec("COMMIT")?;
        assert_eq!(client.take_notices().join(""), "", "what is left when it fails: {fails}");
    }
    site.finish(&move_id)
}

/// A B-tree that counts down how often its order is asked, and fails then.
const ODD: &str = "
    CREATE FUNCTION odd(a int, b int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
    DECLARE asked int := nullif(current_setting('odd.left', true), '')::int;
    BEGIN
        IF asked IS NOT NULL THEN
            IF asked = 0 THEN RAISE EXCEPTION 'odd' USING ERRCODE = current_setting('odd.code'); END IF;
            PERFORM set_config('odd.left', (asked - 1)::text, false);
        END IF;
        RETURN CASE WHEN a < b THEN -1 WHEN a > b THEN 1 ELSE 0 END;
    END $$;
    CREATE OPERATOR CLASS odd_ops FOR TYPE int USING btree AS
        OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 odd(int, int);
    CREATE TABLE o (id bigint PRIMARY KEY, n int);
    INSERT INTO o SELECT g, g FROM generate_series(1, 300) g;
    CREATE INDEX o_odd ON o (n odd_ops);
    SELECT foreshard.distribute('o', 'id', 1)";

/// Scans of a move that were compared and that could not be, as its carrier notes them, once they are what is wanted.
fn scans(site: &mut Site, move_id: &str, wanted: impl Fn((i64, i64)) -> bool) -> Result<(i64, i64)> {
    let sql = format!(
        "SELECT coalesce(scans_compared, 0), coalesce(scans_incomparable, 0) FROM foreshard.progress_moves WHERE move_id = {move_id}"
    );
    let mut found = (0, 0);
    wait_until("scans are counted", Duration::from_secs(10), || {
        let row = site.server.query(&sql)?;
        let (compared, not) = row.split_once('|').unwrap_or_default();
        found = (compared.parse().unwrap_or(-1), not.parse().unwrap_or(-1));
        Ok(wanted(found))
    })?;
    Ok(found)
}

/// Whatever happens to the second look is not the client's business, and no difference unless it says that one copy is damaged.
#[test]
fn a_second_look_that_fails_is_none() -> Result<()> {
    let mut site = Site::new("canary-transient")?;
    site.server.query(ODD)?;
    let slot = site.server.slots("o")?[0].clone();
    let shard = format!(
        "SELECT h.shard_name FROM foreshard.slot s JOIN foreshard.shard h ON h.shard_id <> s.shard_id WHERE s.slot_id = {slot}"
    );
    let shard = site.server.query(&shard)?;
    let move_id = site.routed(&format!("SELECT foreshard.move_slot({slot}, '{shard}')"), "1")?;
    let mut client = site.client()?;
    client.exec("SET jit = off; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off")?;
    client.prepare("one", "SELECT id FROM o WHERE n = $1")?;
    client.prepare("by_key", "SELECT n FROM o WHERE id = $1")?;
    let run = |client: &mut Client, left: i64| -> Result<i64> {
        client.exec(&format!("SELECT set_config('odd.left', '{left}', false)"))?;
        assert_eq!(client.exec_prepared("one", &[Some("77")])?.to_text(), "77");
        Ok(left - client.query_one("SELECT current_setting('odd.left')")?.parse::<i64>().unwrap_or(0))
    };
    let own = (0..200).map(|_| run(&mut client, 1_000_000)).collect::<Result<Vec<_>>>()?;
    let own = own.into_iter().min().unwrap_or_default();
    assert!(own > 0, "the index is used");
    let mut last = scans(&mut site, &move_id, |now| now.0 > 0)?;
    for code in ["55P03", "57014", "40001", "40P01", "53200", "22012"] {
        client.exec(&format!("SELECT set_config('odd.code', '{code}', false)"))?;
        for _ in 0..200 {
            run(&mut client, own)?;
        }
        let now = scans(&mut site, &move_id, |now| now.1 > last.1)?;
        assert_eq!(site.server.phase(&move_id)?, "canary", "{code}: {last:?}, then {now:?}");
        last = now;
    }
    client.exec("SELECT set_config('odd.left', '', false)")?;
    // An index that another session makes anew is not waited for.
    let leaf = site.server.query("SELECT partition FROM foreshard.slots WHERE \"table\" = 'o'::regclass")?;
    let index = format!(
        "SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{leaf}'::regclass AND indisprimary"
    );
    let index = site.server.query(&index)?;
    client.exec_prepared("by_key", &[Some("5")])?;
    client.exec("SET lock_timeout = '300ms'; SET statement_timeout = '2s'")?;
    let mut other = site.client()?;
    other.exec(&format!("BEGIN; REINDEX INDEX {index}"))?;
    for _ in 0..200 {
        client.exec_prepared("by_key", &[Some("5")])?;
    }
    other.exec("ROLLBACK")?;
    scans(&mut site, &move_id, |now| now.1 > last.1)?;
    assert_eq!(site.server.phase(&move_id)?, "canary");
    // What says that something stored is damaged is another matter.
    client.exec("SELECT set_config('odd.code', 'XX001', false)")?;
    wait_until("damage ends the move", Duration::from_secs(20), || {
        for _ in 0..50 {
            run(&mut client, own)?;
        }
        Ok(site.server.query(&format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}"))?
            == "t")
    })?;
    assert_eq!(site.server.phase(&move_id)?, "failed");
    site.server.assert_settled()
}

/// (settings, statement on `m`): nothing is looked up by an index of which all rows could be compared.
const WHOLE: [(&str, &str); 5] = [
    (
        "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off",
        "SELECT sum(n) FROM m",
    ),
    (
        "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_indexscan = off",
        "SELECT count(*) FROM m WHERE n >= 0",
    ),
    (
        "SET enable_seqscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = off",
        "SELECT sum(n) FROM m WHERE d @> '{1}'",
    ),
    (
        "SET enable_seqscan = off; SET enable_indexscan = off; SET enable_indexonlyscan = off",
        "SELECT sum(n) FROM m WHERE b > 0",
    ),
    (
        "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off; SET parallel_setup_cost = 0; \
         SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2",
        "SELECT sum(n) FROM m",
    ),
];

/// Scans of whole tables and ranges are compared as well, whatever finds their rows.
#[test]
fn whole_scans_are_compared() -> Result<()> {
    let mut site = Site::new("canary-whole")?;
    site.server.query(
        "CREATE TABLE m (id bigint PRIMARY KEY, n int, d int[], b int); \
         INSERT INTO m SELECT g, g, '{1}', g FROM generate_series(1, 400) g; \
         CREATE INDEX ON m (n); CREATE INDEX ON m USING gin (d); CREATE INDEX ON m USING brin (b); \
         CREATE TABLE twin.m AS TABLE m; SELECT foreshard.distribute('m', 'id', 1)",
    )?;
    site.server.query("VACUUM ANALYZE m")?;
    let slot = site.server.slots("m")?[0].clone();
    let moves = |site: &mut Site| {
        let shard = format!(
            "SELECT h.shard_name FROM foreshard.slot s JOIN foreshard.shard h ON h.shard_id <> s.shard_id WHERE s.slot_id = {slot}"
        );
        let shard = site.server.query(&shard)?;
        site.routed(&format!("SELECT foreshard.move_slot({slot}, '{shard}')"), "0.5")
    };
    let whole = |site: &Site, kind: usize| -> Result<Client> {
        let mut client = site.client()?;
        client.exec("SET jit = off")?;
        client.exec(WHOLE[kind].0)?;
        client.prepare("all", WHOLE[kind].1)?;
        Ok(client)
    };
    let move_id = moves(&mut site)?;
    let mut last = 0;
    for (kind, (_, sql)) in WHOLE.iter().enumerate() {
        let mut client = whole(&site, kind)?;
        for _ in 0..200 {
            client.exec_prepared("all", &[])?;
        }
        last = scans(&mut site, &move_id, |(compared, _)| compared > last)
            .map_err(|error| foreshard_test::Error::new(format!("{sql}: {error}"), ""))?
            .0;
    }
    site.finish(&move_id)?;
    for (kind, damage) in [
        (0, "UPDATE SHADOW SET n = n + 1000 WHERE id % 5 = 0"),
        (1, "DELETE FROM SHADOW WHERE id % 5 = 0"),
        (2, "INSERT INTO SHADOW SELECT id + 1000, n, d, b FROM SHADOW WHERE id % 5 = 0"),
    ] {
        let move_id = moves(&mut site)?;
        let shadow =
            format!("SELECT shadow::regclass FROM foreshard.move_relation WHERE move_id = {move_id}");
        let shadow = site.server.query(&shadow)?;
        site.server.query(&damage.replace("SHADOW", &shadow))?;
        let mut client = whole(&site, kind)?;
        let finished = format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}");
        let what = format!("{damage} is found by {}", WHOLE[kind].1);
        wait_until(&what, Duration::from_secs(20), || {
            for _ in 0..50 {
                client.exec_prepared("all", &[])?;
            }
            Ok(site.server.query(&finished)? == "t")
        })?;
        assert_eq!(site.server.phase(&move_id)?, "failed", "{damage}");
        assert_eq!(site.server.query("SELECT count(*) FROM (TABLE m EXCEPT TABLE twin.m) q")?, "0");
    }
    site.server.assert_settled()
}
