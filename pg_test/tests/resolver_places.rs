//! The resolver and other servers: asked where keys live, all at once, by the caller's own mapping, and what happens
//! when they fail.

mod common;

use common::placed::expect_code;
use common::sources::{ORDERS, SHOP, add, connect_as, resolve};
use common::{Server, options};
use foreshard_test::{Cluster, Result, StopMode, wait_until};
use std::time::{Duration, Instant};

/// Databases of another cluster that stand for so many servers.
const REMOTES: usize = 4;

/// A cluster with databases r1 to r4, each with an empty shop, and foreign servers of these names; shards s1 to s4,
/// keys of table `account` spread over them, and orders of every account where it lives.
fn remotes(server: &mut Server) -> Result<Cluster> {
    let remote = Cluster::start(&options("resolver-remote"))?;
    server.query("CREATE EXTENSION postgres_fdw; CREATE TABLE account (id bigint PRIMARY KEY); INSERT INTO account SELECT generate_series(1, 80)")?;
    let mut shards = Vec::new();
    for number in 1..=REMOTES {
        let name = format!("r{number}");
        foreign(server, &name, remote.socket_dir().to_string_lossy().as_ref(), remote.port(), &name)?;
        remote.connect("postgres")?.exec(&format!("CREATE DATABASE {name}"))?;
        let mut there = remote.connect(&name)?;
        there.exec(&format!(
            "{SHOP} TRUNCATE shop.orders, shop.direct; ALTER TABLE shop.orders ALTER customer_id TYPE bigint"
        ))?;
        if number > 2 {
            server.query(&format!("SELECT foreshard.add_shard('s{number}', 'sa')"))?;
        }
        shards.push(if number > 2 { format!("s{number}") } else { ["sa", "sb"][number - 1].to_owned() });
    }
    server.query("SELECT foreshard.distribute('account', 'id', 16)")?;
    for (number, shard) in shards.iter().enumerate() {
        let keys = server.query(&format!(
            "SELECT string_agg(format('(%s, %s)', id * 10, id), ',') FROM account WHERE foreshard.get_shard_location('account', id) = '{shard}'"
        ))?;
        assert!(!keys.is_empty(), "shard {shard} has no account");
        let mut there = remote.connect(&format!("r{}", number + 1))?;
        there.exec(&format!("INSERT INTO shop.orders VALUES {keys}"))?;
    }
    Ok(remote)
}

fn foreign(server: &mut Server, name: &str, host: &str, port: u16, database: &str) -> Result<()> {
    server.query(&format!(
        "CREATE SERVER {name} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{host}', port '{port}', dbname '{database}'); \
         CREATE USER MAPPING FOR postgres SERVER {name} OPTIONS (user 'postgres')"
    ))?;
    Ok(())
}

const SLOW_ORDERS: &str = "WITH w AS MATERIALIZED (SELECT shop.wait()) \
    SELECT customer_id, order_id FROM shop.orders WHERE customer_id = ANY ($1) AND EXISTS (TABLE w)";
const ALL_ACCOUNTS: &str = "SELECT count(*), min(input), max(output) FROM foreshard.resolve('shop', 'account', (SELECT array_agg(id) FROM account), 'order')";

fn delay(remote: &Cluster, database: &str, seconds: f64) -> Result<()> {
    remote.connect(database)?.exec(&format!("UPDATE shop.delay SET s = {seconds}"))?;
    Ok(())
}

#[test]
fn shards_are_asked_at_once_and_replicas_take_over() -> Result<()> {
    let mut server = Server::start(
        &options("resolver-shards")
            .set("foreshard.resolve_timeout", "3s")
            .set("foreshard.resolve_breaker_pause", "700"),
    )?;
    let mut remote = remotes(&mut server)?;
    let by_shard = |first: &str| {
        format!(
            ", sharded_by => 'account', servers => '{{\"sa\": {first}, \"sb\": \"r2\", \"s3\": [\"r3\"], \"s4\": [\"r4\"]}}'"
        )
    };
    server.query(&add("orders", "account", "order", SLOW_ORDERS, &by_shard("\"r1\"")))?;
    let all = "80|1|90";
    assert_eq!(server.query(ALL_ACCOUNTS)?, all);
    // Every shard with its own keys only, no more than there are.
    let asked = server.query(
        "SELECT string_agg(r.server, ' ' ORDER BY r.server), sum(r.keys), bool_and(r.rows = r.keys), \
                bool_and(r.keys = (SELECT count(*) FROM account WHERE foreshard.get_shard_location('account', id) = r.shards[1])) \
         FROM foreshard.last_resolve() r",
    )?;
    assert_eq!(asked, "r1 r2 r3 r4|80|t|t");
    // Four servers that take half a second each take about half a second.
    for number in 1..=REMOTES {
        delay(&remote, &format!("r{number}"), 0.5)?;
    }
    let begun = Instant::now();
    assert_eq!(server.query(ALL_ACCOUNTS)?, all);
    let took = begun.elapsed();
    println!("{REMOTES} servers of 500 ms each took {took:?}");
    assert!(took >= Duration::from_millis(500) && took < Duration::from_millis(1000), "{took:?}");
    foreign_partitions_are_asked_at_once(&mut server, &remote)?;
    for number in 1..=REMOTES {
        delay(&remote, &format!("r{number}"), 0.0)?;
    }
    // A server that nobody listens at, and one that is too slow: its replica is asked.
    foreign(&mut server, "dead", "/nonexistent", 1, "x")?;
    foreign(&mut server, "tired", &remote.socket_dir().to_string_lossy(), remote.port(), "tired")?;
    remote.connect("postgres")?.exec("CREATE DATABASE tired")?;
    remote
        .connect("tired")?
        .exec(&format!("{SHOP} ALTER TABLE shop.orders ALTER customer_id TYPE bigint"))?;
    server.query("SELECT foreshard.drop_data_source('shop', 'orders')")?;
    server.query(&add("orders", "account", "order", SLOW_ORDERS, &by_shard("[\"dead\", \"r1\"]")))?;
    let path = "SELECT string_agg(server || ' ' || outcome, ', ') FROM foreshard.last_resolve() WHERE shards = '{sa}'";
    for round in 0..4 {
        assert_eq!(server.query(ALL_ACCOUNTS)?, all);
        let expected = if round < 3 { "dead failed, r1 answered" } else { "dead kept out, r1 answered" };
        assert_eq!(server.query(path)?, expected, "round {round}");
    }
    // After its pause it is tried again, once.
    std::thread::sleep(Duration::from_millis(900));
    server.query(ALL_ACCOUNTS)?;
    assert_eq!(server.query(path)?, "dead failed, r1 answered");
    server.query(ALL_ACCOUNTS)?;
    assert_eq!(server.query(path)?, "dead kept out, r1 answered");
    server.query("SELECT foreshard.drop_data_source('shop', 'orders')")?;
    delay(&remote, "tired", 30.0)?;
    server.query(&add("orders", "account", "order", SLOW_ORDERS, &by_shard("[\"tired\", \"r1\"]")))?;
    server.query("SET foreshard.resolve_timeout = '400ms'")?;
    let begun = Instant::now();
    assert_eq!(server.query(ALL_ACCOUNTS)?, all);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(server.query(path)?, "tired timeout, r1 answered");
    directories_say_where_nodes_live(&mut server)?;
    // What a source writes there is refused there.
    server.query("RESET foreshard.resolve_timeout")?;
    remote.connect("r1")?.exec(
        "CREATE FUNCTION shop.writes(k bigint) RETURNS bigint LANGUAGE sql VOLATILE AS 'INSERT INTO shop.delay VALUES (1); SELECT k'",
    )?;
    server.query(&add(
        "writes",
        "account",
        "written",
        "SELECT k, shop.writes(k) FROM pg_catalog.unnest($1::bigint[]) k",
        ", servers => '\"r1\"'",
    ))?;
    let error = server.fails("SELECT foreshard.resolve('shop', 'account', ARRAY[1], 'written')")?;
    assert_eq!(error.sqlstate, "25006", "{error}");
    fall_back_to_another_chain(&mut server, &mut remote)
}

/// Nodes of a graph are asked for where its directory has them, and those that it does not have everywhere.
fn directories_say_where_nodes_live(server: &mut Server) -> Result<()> {
    server.query("CREATE TABLE e (s bigint, t bigint); INSERT INTO e SELECT g, g + 1 FROM generate_series(1, 30) g; SELECT foreshard.create_graph('g', 'e', 's', 't')")?;
    let query = "SELECT k, pg_catalog.current_database() FROM pg_catalog.unnest($1::bigint[]) k";
    server.query(&add(
        "nodes",
        "node",
        "database",
        query,
        ", sharded_by_graph => 'g', servers => '{\"sa\": \"r1\", \"sb\": [\"r2\"]}'",
    ))?;
    let wrong = "SELECT count(*), count(*) FILTER (WHERE r.output <> CASE h.shard_name WHEN 'sa' THEN 'r1' WHEN 'sb' THEN 'r2' ELSE 'postgres' END) \
        FROM foreshard.resolve('shop', 'node', (SELECT array_agg(g) FROM generate_series(1, 31) g), 'database') r \
        JOIN foreshard.g_metagraph m ON m.node::text = r.input JOIN foreshard.shard h USING (shard_id)";
    assert_eq!(server.query(wrong)?, "31|0");
    let places = "SELECT string_agg(output, ' ' ORDER BY output) FROM foreshard.resolve('shop', 'node', ARRAY[999], 'database')";
    assert_eq!(server.query(places)?, "postgres r1 r2");
    server.query("SELECT foreshard.drop_graph('g')")?;
    assert_eq!(server.query(places)?, "postgres r1 r2", "without a directory nobody knows where nodes are");
    Ok(())
}

/// A table of which foreign servers hold the partitions is asked by one statement here; PostgreSQL asks them together.
fn foreign_partitions_are_asked_at_once(server: &mut Server, remote: &Cluster) -> Result<()> {
    server
        .query("CREATE TABLE spread (customer_id bigint, order_id bigint) PARTITION BY HASH (customer_id)")?;
    for number in 1..=REMOTES {
        remote.connect(&format!("r{number}"))?.exec(
            "CREATE VIEW shop.slow AS SELECT k AS customer_id, k * 10 AS order_id FROM pg_catalog.generate_series(1::bigint, 20) k WHERE (SELECT shop.wait())",
        )?;
        server.query(&format!(
            "ALTER SERVER r{number} OPTIONS (ADD async_capable 'true'); \
             CREATE FOREIGN TABLE spread_{number} PARTITION OF spread FOR VALUES WITH (MODULUS {REMOTES}, REMAINDER {}) \
             SERVER r{number} OPTIONS (schema_name 'shop', table_name 'slow')",
            number - 1
        ))?;
    }
    let query = "SELECT customer_id, order_id FROM public.spread WHERE customer_id = ANY ($1)";
    server.query(&add("spread", "client", "order", query, ""))?;
    let input = (1..=20).map(|key| key.to_string()).collect::<Vec<_>>().join(", ");
    let begun = Instant::now();
    assert!(!server.query(&resolve(&input, "client", "order"))?.is_empty());
    let took = begun.elapsed();
    println!("{REMOTES} foreign partitions of 500 ms each took {took:?}");
    assert!(took >= Duration::from_millis(500) && took < Duration::from_millis(1000), "{took:?}");
    Ok(())
}

/// When all of a source's servers are gone, the next-cheapest chain is taken; when there is none, the error tells
/// everything that was tried; when they come back, so do the sources.
fn fall_back_to_another_chain(server: &mut Server, remote: &mut Cluster) -> Result<()> {
    server.query("CREATE TABLE old_orders AS SELECT id, id * 10 AS o FROM account")?;
    let old = "SELECT id, o FROM public.old_orders WHERE id = ANY ($1)";
    remote.stop(StopMode::Fast)?;
    let error = server.fails(ALL_ACCOUNTS)?;
    assert_eq!(error.sqlstate, "08006", "{error}");
    let detail = error.detail.unwrap_or_default();
    assert!(detail.contains("Chain 1 (orders;") && detail.contains("shard \"s"), "{detail}");
    server.query(&add("old", "account", "order", old, ", cost_hint_ms => 5000"))?;
    for _ in 0..4 {
        assert_eq!(server.query(ALL_ACCOUNTS)?, "80|1|90");
    }
    assert_eq!(server.query("SELECT source, outcome FROM foreshard.last_resolve()")?, "old|answered");
    let left_out = "SELECT reason FROM foreshard.explain_resolve('shop', 'account', ARRAY[1], 'order') WHERE place IS NULL AND sources = '{orders}'";
    let reason = server.query(left_out)?;
    assert!(reason.contains("kept out at server \"r"), "{reason}");
    server.query("SELECT foreshard.drop_data_source('shop', 'old')")?;
    let error = server.fails(ALL_ACCOUNTS)?;
    assert!(error.sqlstate == "57P03" || error.sqlstate == "08006", "{error}");
    remote.start_again()?;
    wait_until("the sources are back", Duration::from_secs(30), || {
        Ok(server.query(ALL_ACCOUNTS).is_ok_and(|rows| rows == "80|1|90"))
    })?;
    let sick = "SELECT count(*) FROM foreshard.stat_data_sources WHERE source = 'orders' AND server LIKE 'r_' AND state <> 'working'";
    assert_eq!(server.query(sick)?, "0");
    Ok(())
}

#[test]
fn other_servers_are_reached_by_the_callers_own_mapping() -> Result<()> {
    let mut server = Server::start(&options("resolver-mapping"))?;
    let remote = Cluster::start(&options("resolver-password"))?;
    let mut there = remote.connect("postgres")?;
    there.exec(&format!(
        "{SHOP} CREATE ROLE anna LOGIN PASSWORD 'secret of anna'; CREATE ROLE bert LOGIN PASSWORD 'b'; \
         GRANT USAGE ON SCHEMA shop TO anna, bert; GRANT SELECT ON shop.orders TO anna, bert; \
         ALTER TABLE shop.orders ENABLE ROW LEVEL SECURITY; CREATE POLICY a ON shop.orders TO anna USING (customer_id < 5); \
         CREATE POLICY b ON shop.orders TO bert USING (customer_id < 2)"
    ))?;
    let hba = remote.data_dir().join("pg_hba.conf");
    let trusting = std::fs::read_to_string(&hba)?;
    std::fs::write(&hba, format!("local all anna,bert scram-sha-256\n{trusting}"))?;
    there.exec("SELECT pg_reload_conf()")?;
    server.query(&format!(
        "CREATE EXTENSION postgres_fdw; CREATE ROLE anna LOGIN; CREATE ROLE bert LOGIN; CREATE ROLE carl LOGIN; CREATE ROLE dora LOGIN; \
         CREATE SERVER r FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}', port '{}', dbname 'postgres'); \
         CREATE USER MAPPING FOR postgres SERVER r OPTIONS (user 'postgres'); \
         CREATE USER MAPPING FOR anna SERVER r OPTIONS (user 'anna', password 'secret of anna'); \
         CREATE USER MAPPING FOR bert SERVER r OPTIONS (user 'bert', password 'b'); \
         CREATE USER MAPPING FOR carl SERVER r OPTIONS (user 'postgres'); \
         GRANT USAGE ON FOREIGN SERVER r TO anna, carl, dora; \
         GRANT EXECUTE ON FUNCTION foreshard.resolve TO anna, bert, carl, dora; \
         SELECT foreshard.add_data_source('shop', 'orders', 'customer', 'order', '{ORDERS}', servers => '[\"r\"]')",
        remote.socket_dir().display(),
        remote.port()
    ))?;
    let all = "SELECT count(*) FROM foreshard.resolve('shop', 'customer', ARRAY[1, 2, 3, 4, 5, 6], 'order')";
    assert_eq!(server.query(all)?, "18");
    let mut anna = connect_as(&server.cluster, "anna")?;
    assert_eq!(anna.query_one(all)?, "12");
    assert_eq!(anna.query_one(all)?, "12");
    // The connection is used again, and made anew when the options change or the other side ended it.
    let backends =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'anna' AND application_name = 'foreshard'";
    assert_eq!(there.query_one(backends)?, "1");
    there.exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'anna'")?;
    assert_eq!(anna.query_one(all)?, "12");
    // No right to use the server; then his own mapping.
    let mut bert = connect_as(&server.cluster, "bert")?;
    expect_code(bert.exec(all), "42501");
    server.query("GRANT USAGE ON FOREIGN SERVER r TO bert")?;
    assert_eq!(bert.query_one(all)?, "3");
    server.query(
        "ALTER USER MAPPING FOR bert SERVER r OPTIONS (SET user 'anna', SET password 'secret of anna')",
    )?;
    assert_eq!(bert.query_one(all)?, "12");
    server.query("ALTER USER MAPPING FOR bert SERVER r OPTIONS (SET password 'wrong')")?;
    expect_code(bert.exec(all), "28000");
    // As postgres_fdw has it: no superuser's login over there without a password, unless a superuser waived it.
    let mut carl = connect_as(&server.cluster, "carl")?;
    expect_code(carl.exec(all), "2F003");
    server.query("ALTER USER MAPPING FOR carl SERVER r OPTIONS (ADD password 'unused')")?;
    expect_code(carl.exec(all), "2F003");
    server.query("ALTER USER MAPPING FOR carl SERVER r OPTIONS (ADD password_required 'false')")?;
    assert_eq!(carl.query_one(all)?, "18");
    let mut dora = connect_as(&server.cluster, "dora")?;
    expect_code(dora.exec(all), "42704");
    // A role that the session changes to does not get the other one's connection.
    server.query("GRANT bert TO anna; ALTER USER MAPPING FOR bert SERVER r OPTIONS (SET user 'bert', SET password 'b')")?;
    assert_eq!(anna.query_one(&format!("SET ROLE bert; {all}"))?, "3");
    // None of that is an illness of the source, and no password is told anywhere.
    assert_eq!(
        server.query("SELECT failures, state, refused > 0 FROM foreshard.stat_data_sources")?,
        "0|working|t"
    );
    let told = server.cluster.log_contents() + &remote.log_contents();
    assert!(
        !told.contains("secret of anna' IS") && !told.contains("password=secret"),
        "a password is in a log"
    );
    Ok(())
}

/// While a long question runs here nobody reads what servers answer: they have been asked before, and that time is not theirs.
#[test]
fn servers_answer_while_nobody_listens() -> Result<()> {
    let mut server = Server::start(&options("resolver-unheard").set("foreshard.resolve_timeout", "5s"))?;
    let remote = Cluster::start(&options("resolver-heard"))?;
    remote.connect("postgres")?.exec(SHOP)?;
    server.query(SHOP)?;
    server.query("CREATE EXTENSION postgres_fdw; CREATE TABLE account (id bigint PRIMARY KEY); INSERT INTO account SELECT generate_series(1, 40)")?;
    foreign(&mut server, "r1", &remote.socket_dir().to_string_lossy(), remote.port(), "postgres")?;
    server.query("SELECT foreshard.distribute('account', 'id', 8)")?;
    let slow = "WITH w AS MATERIALIZED (SELECT shop.wait()) SELECT k, k * 10 FROM pg_catalog.unnest($1::bigint[]) k WHERE EXISTS (TABLE w)";
    // Keys of one shard are asked for here, those of the other one there.
    let more = ", sharded_by => 'account', servers => '{\"sb\": \"r1\"}'";
    server.query(&add("slow", "account", "order", slow, more))?;
    let all = "SELECT count(*) FROM foreshard.resolve('shop', 'account', (SELECT array_agg(id) FROM account), 'order')";
    let outcomes =
        "SELECT string_agg(server || ' ' || outcome, ', ' ORDER BY server) FROM foreshard.last_resolve()";
    server.query("UPDATE shop.delay SET s = 3")?;
    delay(&remote, "postgres", 3.0)?;
    let begun = Instant::now();
    assert_eq!(server.query(all)?, "40");
    let took = begun.elapsed();
    assert_eq!(server.query(outcomes)?, "local answered, r1 answered");
    assert!(took >= Duration::from_secs(3) && took < Duration::from_millis(5500), "{took:?}");
    // A server that is too slow is so by its own time.
    delay(&remote, "postgres", 30.0)?;
    let mut client = server.cluster.connect("postgres")?;
    expect_code(client.exec(all), "57P03");
    assert_eq!(client.query_one(outcomes)?, "local answered, r1 timeout");
    let counted = "SELECT string_agg(concat_ws(' ', server, calls, timeouts), ', ' ORDER BY server) FROM foreshard.stat_data_sources";
    assert_eq!(server.query(counted)?, "local 2 0, r1 2 1");
    answers_are_bounded_while_they_come(&mut server)
}

/// What is too much ends when it is, not when all of it is there: here and there it would take too long.
fn answers_are_bounded_while_they_come(server: &mut Server) -> Result<()> {
    let query = "SELECT k, pg_catalog.repeat('x', 8000000) || pg_catalog.pg_sleep(0.05)::text FROM pg_catalog.unnest($1::bigint[]) k";
    for (to, servers) in [("here", ""), ("there", ", servers => '\"r1\"'")] {
        server.query(&add(to, "big", to, query, servers))?;
        let begun = Instant::now();
        let mut client = server.cluster.connect("postgres")?;
        client.exec("SET foreshard.resolve_timeout = '12s'")?;
        let sql = format!(
            "SELECT count(*) FROM foreshard.resolve('shop', 'big', ARRAY(SELECT generate_series(1::bigint, 400)), '{to}')"
        );
        let error = client.exec(&sql).err().ok_or("too much was accepted")?;
        let detail = error.detail.unwrap_or_default();
        assert!(error.sqlstate == "53400" && detail.contains("resolve() exceeds 256 MB"), "{detail}");
        println!("256 MB {to} took {:?}", begun.elapsed());
    }
    Ok(())
}
