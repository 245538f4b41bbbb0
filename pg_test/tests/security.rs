//! Who may do what, and that a hostile table owner gains nothing from a move or a rebuild.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use support::{cluster, database, expect_error, move_away, wait_for_end, wait_for_move, wait_for_phase};

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
           AND p.proname <> 'next_key' AND (p.provolatile = 'v' OR p.proname NOT IN ('get_shard_location', 'predict_cost', 'sparkline'))",
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
             foreshard.cancel_move, foreshard.request_resharding TO alice, bob; \
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
    assert_eq!(bob.query_one("SELECT foreshard.distribute('bob_t', 'id', colocate_with => 'alice_t')")?, "6");
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

/// What mallory does wherever her code runs: note who she is, and try to become more.
const SPY: &str = "\
CREATE TABLE mallory.seen (who text, place text);
CREATE TABLE mallory.loot (what text);
CREATE FUNCTION mallory.spy(place text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE try text;
BEGIN
    INSERT INTO mallory.seen VALUES (current_user, place);
    FOREACH try IN ARRAY ARRAY['SET ROLE postgres', 'RESET ROLE', 'SET SESSION AUTHORIZATION postgres',
        'RESET SESSION AUTHORIZATION', 'ALTER ROLE mallory SUPERUSER', 'CREATE TABLE mallory.stolen AS SELECT rolpassword FROM pg_authid']
    LOOP
        BEGIN
            EXECUTE try;
            IF current_user <> 'mallory' OR try ~ 'ALTER|CREATE' THEN
                INSERT INTO mallory.loot VALUES (format('%s: %s as %s', place, try, current_user));
            END IF;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
END $$;
-- Marked immutable, as an index, a generated column or a constraint wants it.
CREATE FUNCTION mallory.f(v text, place text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
    $$ BEGIN PERFORM mallory.spy(place); RETURN v; END $$;
CREATE DOMAIN mallory.dom AS text CHECK (mallory.f(VALUE, 'domain') IS NOT NULL);
CREATE TABLE mallory.trap (
    id bigint PRIMARY KEY,
    v text CHECK (mallory.f(v, 'check') IS NOT NULL),
    w mallory.dom,
    g text GENERATED ALWAYS AS (mallory.f(v, 'generated')) STORED,
    d text DEFAULT mallory.f('d', 'default'));
CREATE INDEX trap_expression ON mallory.trap (mallory.f(v, 'index'));
CREATE INDEX trap_partial ON mallory.trap (w) WHERE mallory.f(v, 'predicate') IS NOT NULL;
CREATE STATISTICS mallory.trap_statistics ON (mallory.f(v, 'statistics')), id FROM mallory.trap;
CREATE FUNCTION mallory.noted() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM mallory.spy('trigger'); RETURN NEW; END $$;
CREATE TRIGGER noted BEFORE INSERT OR UPDATE ON mallory.trap FOR EACH ROW EXECUTE FUNCTION mallory.noted();
CREATE POLICY p ON mallory.trap USING (mallory.f(v, 'policy') IS NOT NULL);
ALTER TABLE mallory.trap ENABLE ROW LEVEL SECURITY;
INSERT INTO mallory.trap (id, v, w) SELECT g, 'v' || g, 'w' FROM generate_series(1, 20) g;
TRUNCATE mallory.seen;";

/// Things in `evil` that are found first by whoever has it first on the search_path.
const EVIL: &str = "\
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['int4', 'int8', 'oid', 'name', 'text', 'bool', 'char', 'int2'] LOOP
        EXECUTE format('CREATE FUNCTION evil.eq(a pg_catalog.%1$I, b pg_catalog.%1$I) RETURNS bool LANGUAGE plpgsql AS
            $f$ BEGIN PERFORM mallory.spy(''operator %1$s''); RETURN a OPERATOR(pg_catalog.=) b; END $f$', t);
        EXECUTE format('CREATE OPERATOR evil.= (FUNCTION = evil.eq, LEFTARG = pg_catalog.%1$I, RIGHTARG = pg_catalog.%1$I)', t);
    END LOOP;
END $$;
CREATE FUNCTION evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN PERFORM mallory.spy('format'); RETURN 'x'; END $$;
CREATE FUNCTION evil.quote_ident(name) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN PERFORM mallory.spy('quote_ident'); RETURN 'x'; END $$;
CREATE FUNCTION evil.length(text) RETURNS int LANGUAGE plpgsql AS
    $$ BEGIN PERFORM mallory.spy('length'); RETURN 0; END $$;
CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE plpgsql AS
    $$ BEGIN PERFORM mallory.spy('current_setting'); RETURN '8192'; END $$;
CREATE TABLE evil.pg_class AS SELECT * FROM pg_catalog.pg_class;
CREATE TABLE evil.shard AS SELECT 1 AS shard_id;";

/// A connection of mallory, who has two schemas.
fn mallory(cluster: &Cluster, client: &mut Client) -> Result<Client> {
    client.exec(
        "CREATE ROLE mallory LOGIN; CREATE SCHEMA mallory AUTHORIZATION mallory; \
         CREATE SCHEMA evil AUTHORIZATION mallory",
    )?;
    let mut mallory = connect_as(cluster, "d", "mallory")?;
    mallory.exec(SPY)?;
    Ok(mallory)
}

/// Mallory's code ran as mallory, if at all, and nothing was gained.
fn harmless(client: &mut Client, stage: &str) -> Result<()> {
    let seen =
        client.exec("SELECT DISTINCT who, place FROM mallory.seen WHERE who <> 'mallory' ORDER BY 1, 2")?;
    assert!(seen.is_empty(), "{stage}: mallory's code ran as (who|where):\n{}", seen.to_text());
    let loot = client.exec("SELECT DISTINCT what FROM mallory.loot ORDER BY 1")?;
    assert!(loot.is_empty(), "{stage}: mallory succeeded in:\n{}", loot.to_text());
    assert_eq!(client.query_one("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = 'mallory'")?, "f");
    Ok(())
}

/// Changes where moves wait.
fn hold(cluster: &Cluster, c: &mut Client, change: &str) -> Result<()> {
    cluster.psql("d", &format!("ALTER SYSTEM {change}"))?;
    c.exec("SELECT pg_reload_conf()")?;
    Ok(())
}

/// Mallory lays hands on the copy while the move stands: what the carrier reads as superuser must not
/// become her code, and nothing of a move may go away under it.
fn tamper(c: &mut Client, mallory: &mut Client) -> Result<()> {
    let log = c.query_one("SELECT capture_log::regclass FROM foreshard.move_relation")?;
    let shadow = c.query_one("SELECT shadow::regclass FROM foreshard.move_relation")?;
    for (sqlstate, sql) in [
        (
            "42501",
            format!(
                "CREATE RULE \"_RETURN\" AS ON SELECT TO {log} DO INSTEAD SELECT 1::bigint AS k1 WHERE mallory.f('', 'log') = ''"
            ),
        ),
        ("42501", format!("CREATE RULE r AS ON DELETE TO {log} DO ALSO SELECT mallory.spy('log')")),
        ("42501", format!("ALTER TABLE {log} ENABLE ROW LEVEL SECURITY")),
        ("42501", format!("INSERT INTO {log} VALUES (1)")),
        ("42501", format!("DROP TABLE {log}")),
        ("2BP01", format!("DROP TABLE {shadow}")),
        ("42501", format!("ALTER TABLE {shadow} SET SCHEMA foreshard")),
        ("42501", "UPDATE foreshard.move SET phase = 'cutover'".to_string()),
        ("42501", "CREATE TABLE foreshard.mine ()".to_string()),
    ] {
        expect_error(mallory, sqlstate, &sql)?;
    }
    // On her own copy she may put what she likes; it runs as her.
    mallory.exec(&format!(
        "CREATE TRIGGER noted BEFORE INSERT OR DELETE ON {shadow} FOR EACH ROW EXECUTE FUNCTION mallory.noted(); \
         CREATE RULE r AS ON DELETE TO {shadow} DO ALSO SELECT mallory.spy('rule')"
    ))?;
    Ok(())
}

#[test]
fn a_hostile_owner_gains_nothing() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("hostile"))?;
    let mut c = database(&cluster, "d")?;
    let mut mallory = mallory(&cluster, &mut c)?;
    // A superuser distributes mallory's table for her.
    c.exec("SELECT foreshard.distribute('mallory.trap', 'id', 4)")?;
    harmless(&mut c, "distribute")?;
    let slot = c.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    for round in ["plain", "tampered"] {
        hold(&cluster, &mut c, "SET foreshard.hold_at_phase = 'catch_up'")?;
        let move_id = move_away(&mut c, &slot)?;
        wait_for_phase(&mut c, &move_id, "catch_up")?;
        mallory.exec("UPDATE mallory.trap SET v = v || '!'; TRUNCATE mallory.seen")?;
        if round == "tampered" {
            tamper(&mut c, &mut mallory)?;
        }
        hold(&cluster, &mut c, "RESET foreshard.hold_at_phase")?;
        wait_for_end(&mut c, &move_id)?;
        let end =
            c.exec("SELECT phase, last_error FROM foreshard.move ORDER BY move_id DESC LIMIT 1")?.to_text();
        println!("{round}: {end}");
        harmless(&mut c, round)?;
        if round == "plain" {
            assert_eq!(end, "done|");
            assert_ne!(
                c.query_one("SELECT count(*) FROM mallory.seen")?,
                "0",
                "the replay maintains mallory's index"
            );
        }
        let left = c.exec("SELECT relname FROM pg_class WHERE relname ~ '^(shadow_|capture_)'")?.to_text();
        assert_eq!(left, "", "left over");
    }
    for round in ["split", "tampered split"] {
        hold(&cluster, &mut c, "SET foreshard.hold_at_phase = 'catch_up'")?;
        let move_id = c.query_one(&format!("SELECT foreshard.split_slot({slot})"))?;
        wait_for_phase(&mut c, &move_id, "catch_up")?;
        mallory.exec("UPDATE mallory.trap SET v = v || '!'; TRUNCATE mallory.seen")?;
        if round == "tampered split" {
            tamper(&mut c, &mut mallory)?;
            let child = c.query_one("SELECT min(child)::regclass FROM foreshard.move_child")?;
            let staging = c.query_one("SELECT shadow::regclass FROM foreshard.move_relation")?;
            mallory.exec(&format!("ALTER TABLE {staging} DETACH PARTITION {child}"))?;
        }
        hold(&cluster, &mut c, "RESET foreshard.hold_at_phase")?;
        wait_for_end(&mut c, &move_id)?;
        let end =
            c.exec("SELECT phase, last_error FROM foreshard.move ORDER BY move_id DESC LIMIT 1")?.to_text();
        println!("{round}: {end}");
        harmless(&mut c, round)?;
        assert_eq!(end == "done|", round == "split", "{end}");
        let left =
            c.exec("SELECT relname FROM pg_class WHERE relname ~ '^(shadow|capture|split)_'")?.to_text();
        assert_eq!(left, "", "left over");
    }
    // Keys whose input function runs the checks of a domain.
    mallory.exec("CREATE TABLE mallory.keyed (id mallory.dom[] PRIMARY KEY); INSERT INTO mallory.keyed VALUES ('{x}'), ('{y}')")?;
    c.exec("SELECT foreshard.distribute('mallory.keyed', 'id', 2); TRUNCATE mallory.seen")?;
    let location = "SELECT foreshard.get_shard_location('mallory.keyed', '{x}'::text)";
    c.exec(location)?;
    harmless(&mut c, "get_shard_location")?;
    c.exec("SELECT foreshard.isolate_key('mallory.keyed', '{x}'::text)")?;
    harmless(&mut c, "isolate_key")?;
    assert_ne!(c.query_one("SELECT count(*) FROM mallory.seen")?, "0", "the domain is checked");
    let move_id = c.query_one("SELECT max(move_id) FROM foreshard.move")?;
    wait_for_move(&mut c, &move_id, "done")?;
    c.exec("SELECT foreshard.place_keys('mallory.keyed', '{\"{y}\": null, \"{z}\": null}', whole => false)")?;
    c.exec(location)?;
    harmless(&mut c, "keys with lists")?;
    c.exec("SELECT foreshard.undistribute('mallory.trap')")?;
    harmless(&mut c, "undistribute")?;
    assert_eq!(c.query_one("SELECT count(*) FROM mallory.trap WHERE v LIKE '%!!'")?, "20");
    Ok(())
}

#[test]
fn an_evil_search_path_changes_nothing() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("evil"))?;
    let mut c = database(&cluster, "d")?;
    mallory(&cluster, &mut c)?.exec(EVIL)?;
    c.exec(
        "CREATE TABLE public.good (id bigint PRIMARY KEY, v text, FOREIGN KEY (id) REFERENCES public.good)",
    )?;
    c.exec(
        "INSERT INTO public.good SELECT g, g FROM generate_series(1, 100) g; CREATE INDEX ON public.good (v)",
    )?;
    // Everybody, the workers included, finds evil first from now on.
    c.exec("ALTER DATABASE d SET search_path = evil, pg_catalog, public")?;
    c.exec("ALTER ROLE postgres SET search_path = evil, pg_catalog, public")?;
    c.exec(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'foreshard keeper%'",
    )?;
    let mut c = cluster.connect("d")?;
    assert_eq!(c.query_one("SHOW search_path")?, "evil, pg_catalog, public");
    c.exec("SELECT foreshard.distribute('public.good', 'id', 4)")?;
    // The test's own questions must not run into the trap.
    c.exec("SET search_path = pg_catalog")?;
    harmless(&mut c, "distribute")?;
    let slot = c.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    let other = c.query_one(&format!(
        "SELECT min(shard) FROM foreshard.shards WHERE shard <> (SELECT shard FROM foreshard.slots WHERE slot_id = {slot})"
    ))?;
    c.exec("TRUNCATE mallory.seen; SET search_path = evil, pg_catalog, public")?;
    let move_id = c.query_one(&format!("SELECT foreshard.move_slot({slot}, '{other}')"))?;
    c.exec(
        "SELECT foreshard.get_shard_location('public.good', 1::bigint); SELECT * FROM foreshard.recommend()",
    )?;
    c.exec("SELECT * FROM foreshard.monitor_resharding_progress(); SELECT * FROM foreshard.slots")?;
    c.exec("SET search_path = pg_catalog")?;
    wait_for_move(&mut c, &move_id, "done")?;
    c.exec(
        "SET search_path = evil, pg_catalog, public; SELECT foreshard.undistribute('public.good'); RESET ALL",
    )?;
    c.exec("SET search_path = pg_catalog")?;
    harmless(&mut c, "with evil first on the search_path")?;
    assert_eq!(c.query_one("SELECT count(*) FROM mallory.seen")?, "0");
    Ok(())
}
