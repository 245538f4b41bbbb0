//! Whoever owns a managed table gains nothing by the code that hangs on it, whoever changes, moves or commits.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use support::{cluster, database, expect_error, move_away, wait_for_end, wait_for_move, wait_for_phase};

fn connect_as(cluster: &Cluster, database: &str, role: &str) -> Result<Client> {
    let conninfo = cluster.conninfo(database).replace("user=postgres", &format!("user={role}"));
    Ok(Client::connect(&conninfo)?)
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

/// A superuser's REINDEX runs mallory's index function as her; what that writes to a slot is mirrored at his commit, when nobody
/// is mallory any more.
fn lured(cluster: &Cluster, c: &mut Client, mallory: &mut Client, slot: &str) -> Result<()> {
    mallory.exec(
        "CREATE FUNCTION mallory.poke() RETURNS void LANGUAGE sql AS $$ UPDATE mallory.trap SET v = v || '?' $$; \
         CREATE FUNCTION mallory.lure(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM mallory.poke(); RETURN t; END $$; \
         CREATE TABLE mallory.bait (v text); CREATE INDEX ON mallory.bait (mallory.lure(v)); INSERT INTO mallory.bait VALUES ('a')",
    )?;
    hold(cluster, c, "SET foreshard.hold_at_phase = 'verify'")?;
    let move_id = move_away(c, slot)?;
    wait_for_phase(c, &move_id, "verify")?;
    mallory.exec("TRUNCATE mallory.seen")?;
    c.exec("REINDEX TABLE mallory.bait")?;
    harmless(c, "mirrored at a superuser's commit")?;
    assert_ne!(
        c.query_one("SELECT count(*) FROM mallory.seen")?,
        "0",
        "the mirror maintains mallory's index"
    );
    assert_ne!(c.query_one("SELECT count(*) FROM mallory.trap WHERE v LIKE '%??'")?, "0");
    hold(cluster, c, "RESET foreshard.hold_at_phase")?;
    wait_for_move(c, &move_id, "done")
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
    lured(&cluster, &mut c, &mut mallory, &slot)?;
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
