//! The resolver: the cheapest chain of data sources, with the caller's rights and no others.

mod common;

use common::placed::expect_code;
use common::sources::{ORDERS, SHOP, add, connect_as, resolve};
use common::{Server, options};
use foreshard_test::{Result, wait_until};
use std::time::{Duration, Instant};

const INVOICES: &str = "SELECT order_id, invoice, amount FROM shop.invoices WHERE order_id = ANY ($1)";
const DIRECT: &str = "WITH w AS MATERIALIZED (SELECT shop.wait()) \
    SELECT customer_id, invoice, amount FROM shop.direct WHERE customer_id = ANY ($1) AND EXISTS (TABLE w)";

fn shop(server: &mut Server) -> Result<()> {
    server.query(SHOP)?;
    server.query(&add("orders", "customer", "order", ORDERS, ""))?;
    server.query(&add("invoices", "order", "invoice", INVOICES, ""))?;
    Ok(())
}

#[test]
fn the_cheapest_chain_is_taken_and_learnt() -> Result<()> {
    let mut server = Server::start(&options("resolver"))?;
    shop(&mut server)?;
    let mut c = server.cluster.connect("postgres")?;
    let mut ask = |sql: &str| -> Result<String> { Ok(c.exec(sql)?.to_text()) };
    // Three orders each, in the order of the inputs, attributes of the last source; duplicates once.
    let rows = ask(&resolve("2, 1, 2, NULL, 99", "customer", "invoice"))?;
    let first: Vec<&str> = rows.lines().collect();
    assert_eq!(first.len(), 6, "{rows}");
    assert_eq!(first[0], "2|I4|{\"amount\": 40}");
    assert_eq!(first[5], "1|I3|{\"amount\": 30}");
    let report = "SELECT chain, step, source, server, keys, rows, outcome FROM foreshard.last_resolve()";
    assert_eq!(ask(report)?, "1|1|orders|local|3|6|answered\n1|2|invoices|local|6|6|answered");
    assert_eq!(ask(&resolve("1", "order", "invoice"))?, "1|I1|{\"amount\": 10}");
    assert_eq!(ask("SELECT * FROM foreshard.resolve('shop', 'customer', '{}'::int[], 'invoice')")?, "");
    // A direct source that is said to be cheap is taken, until it turns out to be slow.
    ask(&add("direct", "customer", "invoice", DIRECT, ", cost_hint_ms => 0.1"))?;
    let chosen = "SELECT array_to_string(sources, '+') FROM foreshard.explain_resolve('shop', 'customer', ARRAY[1, 2], 'invoice') WHERE chosen";
    assert_eq!(ask(chosen)?, "direct");
    assert_eq!(ask(&resolve("1", "customer", "invoice"))?.lines().count(), 3);
    ask("UPDATE shop.delay SET s = 0.2")?;
    ask(&resolve("1", "customer", "invoice"))?;
    assert_eq!(ask("SELECT source FROM foreshard.last_resolve()")?, "direct");
    assert_eq!(ask(chosen)?, "orders+invoices");
    let explained = "SELECT place, array_to_string(sources, '+'), array_to_string(classes, '>'), predicted_ms > 0, cardinality(step_ms) \
        FROM foreshard.explain_resolve('shop', 'customer', ARRAY[1, 2], 'invoice')";
    let explained = ask(explained)?;
    assert_eq!(explained, "1|orders+invoices|customer>order>invoice|t|2\n2|direct|customer>invoice|t|1");
    ask(&resolve("1", "customer", "invoice"))?;
    assert_eq!(ask("SELECT string_agg(source, '+') FROM foreshard.last_resolve()")?, "orders+invoices");
    let learnt = "SELECT source, server, calls, keys, rows, failures, round(rows_per_key::numeric, 1), call_ms > 50, state \
        FROM foreshard.stat_data_sources ORDER BY source";
    let expected = "direct|local|2|2|6|0|2.3|t|working\n\
                    invoices|local|3|10|10|0|1.0|f|working\norders|local|2|4|9|0|2.0|f|working";
    assert_eq!(ask(learnt)?, expected);
    // Errors of the question are told as such, and the first three are nobody's illness.
    let failing = [
        ("42704", "SELECT foreshard.resolve('none', 'a', ARRAY[1], 'b')".to_owned()),
        ("42704", resolve("1", "customer", "nothing")),
        ("42704", resolve("1", "invoice", "customer")),
        ("22P02", resolve("'x'", "customer", "invoice")),
        ("53400", format!("SET foreshard.resolve_max_rows = 5; {}", resolve("1, 2", "customer", "invoice"))),
        (
            "53400",
            format!("SET foreshard.resolve_max_rows = 5; {}", resolve("1,2,3,4,5,6", "customer", "order")),
        ),
        ("42704", format!("SET foreshard.resolve_max_steps = 1; {}", resolve("'I1'", "order", "customer"))),
    ];
    for (code, sql) in failing {
        let error = server.fails(&sql)?;
        assert_eq!(error.sqlstate, code, "{sql}: {error}");
    }
    // What was learnt outlives a restart.
    wait_until("saving", Duration::from_secs(20), || {
        Ok(server.query("SELECT sum(counters[1]) >= 7 FROM foreshard.data_source_statistics")? == "t")
    })?;
    let learnt = "SELECT calls >= 2, call_ms > 50 FROM foreshard.stat_data_sources WHERE source = 'direct'";
    assert_eq!(server.query(learnt)?, "t|t");
    server.cluster.restart()?;
    assert_eq!(server.query(learnt)?, "t|t");
    assert_eq!(server.query(chosen)?, "orders+invoices");
    server.query("SELECT foreshard.drop_data_source('shop', 'orders')")?;
    assert_eq!(server.query(chosen)?, "direct");
    assert_eq!(server.fails("SELECT foreshard.drop_data_source('shop', 'orders')")?.sqlstate, "42704");
    Ok(())
}

#[test]
fn sources_read_with_the_rights_of_the_caller() -> Result<()> {
    let mut server = Server::start(&options("resolver-rights"))?;
    server.query(SHOP)?;
    server.query(
        "CREATE ROLE maker LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE other LOGIN; CREATE ROLE nobody LOGIN; \
         GRANT USAGE ON SCHEMA shop TO maker, reader, other; GRANT SELECT ON ALL TABLES IN SCHEMA shop TO maker, reader; \
         GRANT INSERT ON shop.delay TO maker, reader; \
         GRANT EXECUTE ON FUNCTION foreshard.add_data_source, foreshard.drop_data_source TO maker, other; \
         GRANT EXECUTE ON FUNCTION foreshard.resolve TO maker, reader, other; \
         CREATE FUNCTION shop.writes(k int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO shop.delay VALUES (1); RETURN k; END $$; \
         ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY own ON shop.orders TO reader USING (customer_id < 3); CREATE POLICY everything ON shop.orders TO maker USING (true)",
    )?;
    let mut maker = connect_as(&server.cluster, "maker")?;
    // What is not one reading SELECT of the right shape.
    for (code, query) in [
        ("22023", "SELECT 1; SELECT 2"),
        ("22023", ""),
        ("22023", "DELETE FROM shop.orders"),
        ("22023", "VALUES (1, 2)"),
        ("22023", "SELECT customer_id, order_id INTO shop.x FROM shop.orders WHERE customer_id = ANY ($1)"),
        ("22023", "SELECT customer_id, order_id FROM shop.orders WHERE customer_id = ANY ($1) FOR UPDATE"),
        (
            "22023",
            "WITH w AS (INSERT INTO shop.delay VALUES (1) RETURNING s) SELECT customer_id, order_id FROM shop.orders WHERE customer_id = ANY ($1)",
        ),
        ("22023", "SELECT customer_id, order_id FROM shop.orders"),
        ("22023", "SELECT customer_id, order_id FROM shop.orders WHERE customer_id = ANY ($1) AND note = $2"),
        ("22023", "SELECT customer_id FROM shop.orders WHERE customer_id = ANY ($1)"),
        ("42804", "SELECT customer_id, order_id FROM shop.orders WHERE customer_id = $1"),
        ("42804", "SELECT note, order_id FROM shop.orders WHERE customer_id = ANY ($1)"),
        ("42P01", "SELECT customer_id, order_id FROM orders WHERE customer_id = ANY ($1)"),
        ("42804", "SELECT 1, 2 WHERE $1 IS NOT NULL"),
        ("42601", "SELECT FROM WHERE"),
        (
            "42601",
            "SELECT customer_id, order_id FROM shop.orders WHERE customer_id = ANY ($1)) q; DELETE FROM shop.orders; --",
        ),
        ("42501", "SELECT oid::int, rolpassword FROM pg_authid WHERE oid::int = ANY ($1)"),
    ] {
        expect_code(maker.exec(&add("bad", "customer", "order", query, "")), code);
    }
    maker.exec(&add("orders", "customer", "order", &format!("{ORDERS};"), ""))?;
    expect_code(maker.exec(&add("orders", "customer", "order", ORDERS, "")), "42710");
    expect_code(maker.exec(&add("a", "order", "x", "SELECT k, k FROM unnest($1::uuid[]) k", "")), "42804");
    expect_code(maker.exec(&add("a", "x", "x", ORDERS, "")), "22023");
    // Every caller sees what his rights let him see, and row security holds.
    let all = "SELECT count(*) FROM foreshard.resolve('shop', 'customer', ARRAY[1, 2, 3, 4], 'order')";
    assert_eq!(maker.query_one(all)?, "12");
    let mut reader = connect_as(&server.cluster, "reader")?;
    assert_eq!(reader.query_one(all)?, "6");
    let mut other = connect_as(&server.cluster, "other")?;
    expect_code(other.exec(all), "42501");
    assert_eq!(other.query_one("SELECT outcome FROM foreshard.last_resolve()")?, "refused");
    let mut nobody = connect_as(&server.cluster, "nobody")?;
    expect_code(nobody.exec(all), "42501");
    // What was asked is told to whoever asked it: by his session, and there to his role alone.
    let asked = "SELECT count(*) FROM foreshard.last_resolve()";
    assert_eq!(nobody.query_one(asked)?, "0");
    let mut both = server.cluster.connect("postgres")?;
    both.exec("SET ROLE reader")?;
    assert_eq!((both.query_one(all)?, both.query_one(asked)?), ("6".to_owned(), "1".to_owned()));
    both.exec("SET ROLE nobody")?;
    assert_eq!(both.query_one(asked)?, "0");
    // Refusals are nobody's illness: however often one is refused, others are served.
    for _ in 0..5 {
        expect_code(other.exec(all), "42501");
    }
    assert_eq!(reader.query_one(all)?, "6");
    // Nobody adds to what others trust, or takes it away; superusers run no code of others.
    expect_code(
        other.exec(&add("mine", "customer", "order", "SELECT k, k FROM unnest($1::int[]) k", "")),
        "42501",
    );
    expect_code(other.exec("SELECT foreshard.drop_data_source('shop', 'orders')"), "42501");
    let error = server.fails(all)?;
    assert_eq!(error.sqlstate, "42704", "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("superuser")));
    // Keys are values, never SQL.
    maker.exec(&add(
        "names",
        "name",
        "order",
        "SELECT note, order_id FROM shop.orders WHERE note = ANY ($1)",
        "",
    ))?;
    let evil = "'n1'') OR true --', 'n2\",\"n3', '\\', '{}', 'n4', ''";
    assert_eq!(
        maker.query_one(&format!(
            "SELECT string_agg(output, ',') FROM foreshard.resolve('shop', 'name', ARRAY[{evil}], 'order')"
        ))?,
        "4"
    );
    // A function that writes is stopped when it runs, whatever it is called; nothing of it is left.
    maker.exec(&add(
        "writes",
        "customer",
        "written",
        "SELECT k, shop.writes(k) FROM unnest($1::int[]) k",
        "",
    ))?;
    expect_code(maker.exec(&resolve("1", "customer", "written")), "25006");
    maker.exec(&add(
        "sets",
        "customer",
        "set",
        "SELECT k, pg_catalog.set_config('work_mem', '77MB', false) FROM unnest($1::int[]) k",
        "",
    ))?;
    assert_eq!(
        maker.query_one("SELECT output FROM foreshard.resolve('shop', 'customer', ARRAY[1], 'set')")?,
        "77MB"
    );
    assert_ne!(maker.query_one("SHOW work_mem")?, "77MB");
    assert_eq!(server.query("SELECT count(*) FROM shop.delay")?, "1");
    // A source that resolves is refused, and the session can resolve afterwards.
    let nested = "SELECT k, (SELECT count(*) FROM foreshard.resolve('shop', 'customer', ARRAY[k], 'order')) FROM unnest($1::int[]) k";
    maker.exec(&add("nested", "customer", "nested", nested, ""))?;
    expect_code(maker.exec(&resolve("1", "customer", "nested")), "0A000");
    assert_eq!(maker.query_one(all)?, "12");
    // A user's cancel is his, and no failure of the source; the session goes on.
    maker.exec(&add(
        "slow",
        "customer",
        "slow",
        "SELECT k, pg_catalog.pg_sleep(30)::text FROM unnest($1::int[]) k",
        "",
    ))?;
    let begun = Instant::now();
    maker.send_query("SELECT * FROM foreshard.resolve('shop', 'customer', ARRAY[1], 'slow')")?;
    std::thread::sleep(Duration::from_millis(300));
    maker.cancel();
    let cancelled = maker.poll_result(Duration::from_secs(20)).err().map(|error| error.sqlstate);
    assert_eq!(cancelled.as_deref(), Some("57014"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.query("ALTER ROLE maker SET foreshard.resolve_timeout = '200ms'")?;
    let mut maker = connect_as(&server.cluster, "maker")?;
    expect_code(maker.exec(&resolve("1", "customer", "slow")), "57P03");
    assert_eq!(maker.query_one("SELECT outcome FROM foreshard.last_resolve()")?, "timeout");
    assert_eq!(
        maker.query_one("SELECT count(*) FROM foreshard.resolve('shop', 'customer', ARRAY[1], 'order')")?,
        "3"
    );
    expect_code(reader.exec("SET foreshard.resolve_timeout = '1ms'"), "42501");
    let seen = "SELECT timeouts, failures FROM foreshard.stat_data_sources WHERE source = 'slow'";
    assert_eq!(server.query(seen)?, "1|1");
    Ok(())
}

#[test]
fn only_members_of_the_owners_add_to_a_graph() -> Result<()> {
    let mut server = Server::start(&options("resolver-owners"))?;
    server.query(SHOP)?;
    server.query(
        "CREATE ROLE attacker LOGIN; CREATE TABLE public.e (s bigint, t bigint); \
         GRANT EXECUTE ON FUNCTION foreshard.add_data_source TO attacker",
    )?;
    let mine = |name: &str| add(name, "customer", "order", "SELECT k, k FROM unnest($1::int[]) k", "");
    let mut attacker = connect_as(&server.cluster, "attacker")?;
    // A snapshot of before the first source.
    attacker.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    server.query(&add("orders", "customer", "order", ORDERS, ""))?;
    expect_code(attacker.exec(&mine("old")), "0A000");
    attacker.exec("ROLLBACK")?;
    // A first source that is not committed yet.
    server.query("SELECT foreshard.drop_data_source('shop', 'orders')")?;
    let mut owner = server.cluster.connect("postgres")?;
    owner.exec("BEGIN")?;
    owner.exec(&add("orders", "customer", "order", ORDERS, ""))?;
    attacker.send_query(&mine("early"))?;
    std::thread::sleep(Duration::from_millis(500));
    owner.exec("COMMIT")?;
    let refused = attacker.poll_result(Duration::from_secs(20)).err().map(|error| error.sqlstate);
    assert_eq!(refused.as_deref(), Some("42501"));
    assert_eq!(server.query("SELECT count(*) FROM foreshard.data_source")?, "1");
    // Nor does a graph get sources that somebody else was quick to add.
    attacker.exec(&mine("quick").replace("'shop'", "'g'"))?;
    server.query("CREATE ROLE maker LOGIN; ALTER TABLE public.e OWNER TO maker; GRANT EXECUTE ON FUNCTION foreshard.create_graph TO maker")?;
    let mut maker = connect_as(&server.cluster, "maker")?;
    expect_code(maker.exec("SELECT foreshard.create_graph('g', 'public.e', 's', 't')"), "42501");
    Ok(())
}

#[test]
fn keys_are_matched_by_their_type_and_attributes_are_exact() -> Result<()> {
    let mut server = Server::start(&options("resolver-types"))?;
    let of = |type_: &str| format!("SELECT k, 'x'::text FROM unnest($1::{type_}[]) k");
    server.query(&add("inet", "inet", "x", &of("inet"), ""))?;
    server.query(&add("boolean", "boolean", "x", &of("boolean"), ""))?;
    server.query(&add("date", "date", "x", &of("date"), ""))?;
    server.query(&add(
        "numeric",
        "numeric",
        "x",
        "SELECT v.k, 'x'::text, 12345678901234567890.123456789 AS exact FROM (VALUES (1.0::numeric)) v(k) WHERE v.k = ANY ($1)",
        "",
    ))?;
    server.query("SET DateStyle = 'SQL, DMY'")?;
    let mut derived = |input: &str, class: &str| {
        server.query(&format!(
            "SELECT string_agg(input || '=' || output, ' ' ORDER BY input) FROM foreshard.resolve('shop', '{class}', {input}, 'x')"
        ))
    };
    assert_eq!(derived("ARRAY['10.0.0.1'::inet]", "inet")?, "10.0.0.1/32=x");
    assert_eq!(derived("ARRAY[true]", "boolean")?, "true=x");
    assert_eq!(derived("ARRAY[date '2026-12-05']", "date")?, "2026-12-05=x");
    assert_eq!(derived("ARRAY[1, 1.00, 2]", "numeric")?, "1=x 1.00=x");
    let exact = "SELECT DISTINCT attributes->>'exact' FROM foreshard.resolve('shop', 'numeric', ARRAY[1::numeric], 'x')";
    assert_eq!(server.query(exact)?, "12345678901234567890.123456789");
    Ok(())
}
