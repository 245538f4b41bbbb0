//! Who may do what, and who sees what.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use support::{cluster, database, expect_error, move_away, wait_for_move, wait_for_phase};

/// Fails with the rows of a query that must find nothing.
fn nothing(client: &mut Client, what: &str, sql: &str) -> Result<()> {
    let rows = client.exec(sql)?;
    assert!(rows.is_empty(), "{what}:\n{}", rows.to_text());
    Ok(())
}

/// Members of the extension that live in its schema, by kind.
const MEMBERS: &str = "SELECT classid, objid FROM pg_depend WHERE deptype = 'e' AND refobjid = \
    (SELECT oid FROM pg_extension WHERE extname = 'foreshard')";

#[test]
fn catalog_is_tight_and_commented() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("catalog"))?;
    let mut c = database(&cluster, "d")?;
    nothing(
        &mut c,
        "PUBLIC may execute",
        "SELECT p.oid::regprocedure FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a \
         WHERE p.pronamespace = 'foreshard'::regnamespace AND a.grantee = 0 \
           AND p.proname <> 'next_key' AND (p.provolatile = 'v' OR p.proname NOT IN ('get_shard_location', 'predict_cost', 'sparkline', 'total_bytes', 'last_resolve'))",
    )?;
    nothing(
        &mut c,
        "PUBLIC may touch",
        "SELECT c.oid::regclass, a.privilege_type FROM pg_class c, aclexplode(c.relacl) a \
         WHERE c.relnamespace = 'foreshard'::regnamespace AND a.grantee = 0 AND a.privilege_type <> 'SELECT'",
    )?;
    nothing(
        &mut c,
        "not commented",
        &format!(
            "SELECT pg_describe_object(m.classid, m.objid, 0) FROM ({MEMBERS}) m \
             LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid \
             WHERE (m.classid = 'pg_proc'::regclass OR c.relkind IN ('r', 'v', 'm', 'p', 'f')) \
               AND coalesce(obj_description(m.objid, m.classid::regclass::name), '') = ''"
        ),
    )?;
    nothing(
        &mut c,
        "SECURITY DEFINER without a pinned search_path",
        "SELECT oid::regprocedure FROM pg_proc p WHERE pronamespace = 'foreshard'::regnamespace AND prosecdef \
         AND NOT EXISTS (SELECT FROM unnest(proconfig) s WHERE s LIKE 'search_path=%')",
    )?;
    // capture() and start_keeper() look nothing up by name; next_key() and graph_changed() pin the path when they do.
    nothing(
        &mut c,
        "search_path is not pinned to pg_catalog, pg_temp",
        "SELECT oid::regprocedure, proconfig FROM pg_proc WHERE pronamespace = 'foreshard'::regnamespace \
         AND proname NOT IN ('capture', 'graph_changed', 'start_keeper', 'next_key') \
         AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)",
    )?;
    Ok(())
}

/// A database with a table of `alice` and one of `bob`, who were granted the functions of owners.
fn two_owners(cluster: &Cluster, name: &str) -> Result<Client> {
    let mut c = database(cluster, name)?;
    c.exec(
        "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; CREATE ROLE watcher LOGIN; CREATE ROLE nobody_else LOGIN; \
         GRANT pg_monitor TO watcher; \
         GRANT EXECUTE ON FUNCTION foreshard.distribute, foreshard.undistribute, foreshard.move_slot, \
             foreshard.cancel_move, foreshard.request_resharding, foreshard.split_slot, foreshard.isolate_keys TO alice, bob; \
         GRANT CREATE ON TABLESPACE ts_a, ts_b, ts_c TO alice, bob; \
         GRANT CREATE ON SCHEMA public TO alice, bob",
    )?;
    for owner in ["alice", "bob"] {
        c.exec(&format!(
            "SET ROLE {owner}; CREATE TABLE public.{owner}_t (id int PRIMARY KEY, v text); \
             INSERT INTO public.{owner}_t SELECT g, repeat('x', 50) FROM generate_series(1, 500) g; RESET ROLE"
        ))?;
    }
    Ok(c)
}

fn connect_as(cluster: &Cluster, database: &str, role: &str) -> Result<Client> {
    let conninfo = cluster.conninfo(database).replace("user=postgres", &format!("user={role}"));
    Ok(Client::connect(&conninfo)?)
}

#[test]
fn owners_act_on_their_own_tables_only() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("owners"))?;
    let mut c = two_owners(&cluster, "d")?;
    let mut alice = connect_as(&cluster, "d", "alice")?;
    let mut bob = connect_as(&cluster, "d", "bob")?;
    expect_error(&mut alice, "42501", "SELECT foreshard.distribute('bob_t', 'id', 6)")?;
    assert_eq!(alice.query_one("SELECT foreshard.distribute('alice_t', 'id', 6)")?, "6");
    // Alice could no longer do with her slots what she likes.
    expect_error(
        &mut bob,
        "42501",
        "SELECT foreshard.distribute('bob_t', 'id', colocate_with => 'alice_t')",
    )?;
    assert_eq!(bob.query_one("SELECT foreshard.distribute('bob_t', 'id', 6)")?, "6");
    expect_error(&mut bob, "42501", "SELECT foreshard.undistribute('alice_t')")?;
    assert_eq!(bob.query_one("SELECT foreshard.undistribute('bob_t') IS NULL")?, "f");
    assert_eq!(bob.query_one("SELECT foreshard.distribute('bob_t', 'id', 4)")?, "4");
    assert_eq!(
        c.query_one(
            "SELECT count(*) FROM pg_class WHERE relname LIKE 'alice_t%' AND relowner <> 'alice'::regrole"
        )?,
        "0"
    );
    let slot_sql = |table: &str| {
        format!("SELECT min(slot_id) FROM foreshard.slots WHERE \"table\" = '{table}'::regclass")
    };
    let alices = c.query_one(&slot_sql("alice_t"))?;
    let bobs = c.query_one(&slot_sql("bob_t"))?;
    let target = |slot: &str| {
        format!(
            "SELECT min(shard) FROM foreshard.shards WHERE shard <> (SELECT shard FROM foreshard.slots WHERE slot_id = {slot})"
        )
    };
    let (to_a, to_b) = (c.query_one(&target(&alices))?, c.query_one(&target(&bobs))?);
    expect_error(&mut bob, "42501", &format!("SELECT foreshard.move_slot({alices}, '{to_a}')"))?;
    let both = format!("{{\"{bobs}\": \"{to_b}\", \"{alices}\": \"{to_a}\"}}");
    expect_error(&mut bob, "42501", &format!("SELECT foreshard.request_resharding(1, '{both}')"))?;
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.move")?, "0");
    hold(&cluster, &mut c, "SET foreshard.hold_at_phase = 'verify'")?;
    let move_id = alice.query_one(&format!("SELECT foreshard.move_slot({alices}, '{to_a}')"))?;
    wait_for_phase(&mut c, &move_id, "verify")?;
    expect_error(&mut bob, "42501", &format!("SELECT foreshard.cancel_move({move_id})"))?;
    hold(&cluster, &mut c, "RESET foreshard.hold_at_phase")?;
    wait_for_move(&mut c, &move_id, "done")?;
    assert_eq!(alice.query_one("SELECT count(*) FROM alice_t")?, "500");
    expect_error(
        &mut alice,
        "42501",
        "CREATE TRIGGER x AFTER INSERT ON alice_t FOR EACH ROW EXECUTE FUNCTION foreshard.capture('1260', '1')",
    )?;
    // Tables lie where their owners may create.
    c.exec("REVOKE CREATE ON TABLESPACE ts_a, ts_b, ts_c FROM PUBLIC, alice, bob")?;
    for change in [
        format!("move_slot({bobs}, '{to_b}')"),
        format!("split_slot({bobs}, to_shard_b => '{to_b}')"),
        format!("isolate_keys('bob_t', ARRAY['1', '2', '3', '4', '5', '6', '7', '8'], '{to_b}')"),
        format!("request_resharding(1, '{{\"{bobs}\": \"{to_b}\"}}')"),
    ] {
        expect_error(&mut bob, "42501", &format!("SELECT foreshard.{change}"))?;
    }
    assert_eq!(c.query_one("SELECT count(*) FROM foreshard.progress_moves WHERE state <> 'done'")?, "0");
    c.exec("GRANT CREATE ON TABLESPACE ts_a, ts_b, ts_c TO bob")?;
    let move_id = bob.query_one(&format!("SELECT foreshard.move_slot({bobs}, '{to_b}')"))?;
    wait_for_move(&mut c, &move_id, "done")?;
    // The owner's settings of the session cannot raise what min_confidence allows.
    expect_error(&mut bob, "42501", "SET foreshard.min_confidence = 0")?;
    Ok(())
}

#[test]
fn monitors_look_and_others_do_not() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("monitor"))?;
    let mut c = two_owners(&cluster, "d")?;
    c.exec("SELECT foreshard.distribute('alice_t', 'id', 4)")?;
    let slot = c.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    let move_id = move_away(&mut c, &slot)?;
    wait_for_move(&mut c, &move_id, "done")?;
    let mut watcher = connect_as(&cluster, "d", "watcher")?;
    let mut nobody = connect_as(&cluster, "d", "nobody_else")?;
    let views = c.exec("SELECT viewname FROM pg_views WHERE schemaname = 'foreshard' ORDER BY 1")?.to_text();
    for view in views.lines() {
        let sql = format!("SELECT * FROM foreshard.{view}");
        watcher.exec(&sql)?;
        expect_error(&mut nobody, "42501", &sql)?;
    }
    for function in ["recommend()", "predict_shard_assignment()", "monitor_resharding_progress()"] {
        let sql = format!("SELECT * FROM foreshard.{function}");
        watcher.exec(&sql)?;
        expect_error(&mut nobody, "42501", &sql)?;
    }
    assert_eq!(watcher.query_one("SELECT finished FROM foreshard.monitor_resharding_progress()")?, "t");
    for sql in [
        "SELECT foreshard.add_shard('x')".to_string(),
        "SELECT foreshard.distribute('bob_t', 'id', 2)".to_string(),
        "SELECT foreshard.undistribute('alice_t')".to_string(),
        format!("SELECT foreshard.move_slot({slot}, 'a')"),
        format!("SELECT foreshard.cancel_move({move_id})"),
        "SELECT foreshard.request_resharding(1, '{}')".to_string(),
        "SELECT foreshard.start_keeper()".to_string(),
        "SELECT foreshard.configure('alice_t', 'observe', 'off')".to_string(),
        "DELETE FROM foreshard.history".to_string(),
        "DELETE FROM foreshard.journal".to_string(),
    ] {
        expect_error(&mut watcher, "42501", &sql)?;
        expect_error(&mut nobody, "42501", &sql)?;
    }
    assert_ne!(nobody.query_one("SELECT foreshard.get_shard_location('alice_t'::regclass, 1)")?, "");
    Ok(())
}

/// Operators that win over PostgreSQL's own as long as search_path has them; they note who calls.
const TRAPS: &str = "\
CREATE SCHEMA mallory AUTHORIZATION mallory; SET ROLE mallory;
CREATE TABLE mallory.caught (who text);
CREATE FUNCTION mallory.eq(oid, oid) RETURNS bool LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO mallory.caught VALUES (current_user); RETURN $1::text OPERATOR(pg_catalog.=) $2::text; END $$;
CREATE FUNCTION mallory.eq(name, name) RETURNS bool LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO mallory.caught VALUES (current_user); RETURN $1::text OPERATOR(pg_catalog.=) $2::text; END $$;
CREATE FUNCTION mallory.eq(name, text) RETURNS bool LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO mallory.caught VALUES (current_user); RETURN $1::text OPERATOR(pg_catalog.=) $2; END $$;
CREATE OPERATOR mallory.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = mallory.eq);
CREATE OPERATOR mallory.= (LEFTARG = name, RIGHTARG = name, FUNCTION = mallory.eq);
CREATE OPERATOR mallory.= (LEFTARG = name, RIGHTARG = text, FUNCTION = mallory.eq);
SET search_path = mallory, pg_catalog, public;";

#[test]
fn only_who_may_insert_draws_keys() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("draw"))?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE ROLE owner LOGIN; CREATE ROLE writer LOGIN; CREATE ROLE partly LOGIN; CREATE ROLE reader LOGIN; CREATE ROLE mallory LOGIN; \
         GRANT CREATE ON SCHEMA public TO owner; GRANT CREATE ON TABLESPACE ts_a, ts_b, ts_c TO owner; \
         GRANT EXECUTE ON FUNCTION foreshard.distribute, foreshard.undistribute, foreshard.configure TO owner, writer; \
         SET ROLE owner; CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE u (id uuid PRIMARY KEY); \
         SELECT foreshard.distribute('t', 'id', 4), foreshard.distribute('u', 'id', 4); \
         ALTER TABLE t ALTER id SET DEFAULT foreshard.next_key('t', NULL::bigint); \
         GRANT INSERT ON t, u TO writer, mallory; GRANT INSERT (v) ON t TO partly; GRANT SELECT ON t, u TO reader; RESET ROLE",
    )?;
    assert_eq!(
        c.query_one("SELECT relowner::regrole FROM pg_class WHERE relname = 't_id_foreshard_seq'")?,
        "owner"
    );
    let (bigint, uuid) = ("SELECT foreshard.next_key('t', 1)", "SELECT foreshard.next_key('u', NULL::uuid)");
    for role in ["owner", "writer"] {
        let mut one = connect_as(&cluster, "d", role)?;
        one.exec(bigint)?;
        one.exec(uuid)?;
        one.exec("INSERT INTO t (v) VALUES ('x')")?;
    }
    connect_as(&cluster, "d", "partly")?.exec("INSERT INTO t (v) VALUES ('x')")?;
    let mut reader = connect_as(&cluster, "d", "reader")?;
    expect_error(&mut reader, "42501", bigint)?;
    expect_error(&mut reader, "42501", uuid)?;
    // A right that is taken away counts at once, also for keys in stock.
    let mut writer = connect_as(&cluster, "d", "writer")?;
    writer.exec(bigint)?;
    expect_error(&mut writer, "42501", "SELECT nextval('t_id_foreshard_seq')")?;
    c.exec("REVOKE INSERT ON t FROM writer")?;
    expect_error(&mut writer, "42501", bigint)?;
    // Settings are the owner's.
    let configure = "SELECT foreshard.configure('t', 'observe', 'off')";
    expect_error(&mut writer, "42501", configure)?;
    expect_error(&mut reader, "42501", configure)?;
    connect_as(&cluster, "d", "owner")?.exec(configure)?;
    // No code of the caller's runs as somebody else.
    c.exec(TRAPS)?;
    c.exec("RESET ROLE; RESET search_path")?;
    let mut mallory = connect_as(&cluster, "d", "mallory")?;
    mallory.exec("SET search_path = mallory, pg_catalog, public")?;
    mallory.exec(bigint)?;
    mallory.exec(uuid)?;
    nothing(&mut c, "caught", "SELECT * FROM mallory.caught")?;
    assert_eq!(mallory.query_one("SHOW search_path")?, "mallory, pg_catalog, public");
    c.exec("SET ROLE owner; SELECT foreshard.undistribute('u')")?;
    Ok(())
}

/// Changes where moves wait.
fn hold(cluster: &Cluster, c: &mut Client, change: &str) -> Result<()> {
    cluster.psql("d", &format!("ALTER SYSTEM {change}"))?;
    c.exec("SELECT pg_reload_conf()")?;
    Ok(())
}

/// What a DBA put on an owner's table, and the owner could not put there, is there again when it was rebuilt.
#[test]
fn what_a_dba_made_is_made_again() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("dba"))?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE ROLE app; CREATE SCHEMA secret; \
         CREATE FUNCTION secret.audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
         REVOKE EXECUTE ON FUNCTION secret.audit FROM PUBLIC; \
         CREATE TABLE secret.kind (id int PRIMARY KEY); INSERT INTO secret.kind VALUES (1); \
         CREATE TABLE item (id bigint PRIMARY KEY, kind int REFERENCES secret.kind, v text); \
         INSERT INTO item SELECT g, 1, 'v' FROM generate_series(1, 100) g; ALTER TABLE item OWNER TO app; \
         CREATE TRIGGER audit AFTER INSERT ON item FOR EACH ROW EXECUTE FUNCTION secret.audit(); \
         CREATE STATISTICS st (dependencies) ON kind, v FROM item; \
         CREATE VIEW items AS SELECT * FROM item; ALTER VIEW items OWNER TO app; \
         CREATE TABLE line (item_id bigint REFERENCES item); INSERT INTO line VALUES (7)",
    )?;
    let facts = "SELECT (SELECT count(*) FROM items) || ' ' || (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'item'::regclass AND tgname = 'audit') \
        || ' ' || (SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated AND conparentid = 0 AND conrelid IN ('item'::regclass, 'line'::regclass)) \
        || ' ' || (SELECT stxowner::regrole FROM pg_statistic_ext) || ' ' || (SELECT relowner::regrole FROM pg_class WHERE oid = 'item'::regclass)";
    for change in ["SELECT foreshard.distribute('item', 'id', 4)", "SELECT foreshard.undistribute('item')"] {
        c.exec(change)?;
        assert_eq!(c.query_one(facts)?, "100 1 2 postgres app", "{change}");
    }
    Ok(())
}
