//! Code of a table's owner runs in the process that moves the table to a node, and finds every connection of dblink there:
//! none may be anybody else's.

mod common;

use common::nodes::World;
use foreshard_test::{Client, Result};

/// What mallory's code does while her rows are copied: notes the connections that there are, and tries each. Those of her own
/// role are hers to use.
const SPY: &str = "\
CREATE TABLE mallory.seen (name text);
CREATE FUNCTION mallory.f(v text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE link text;
BEGIN
    FOREACH link IN ARRAY coalesce(public.dblink_get_connections(), '{}') LOOP
        INSERT INTO mallory.seen SELECT link WHERE NOT EXISTS (SELECT FROM mallory.seen s WHERE s.name = link);
        BEGIN
            PERFORM * FROM public.dblink(link, 'SELECT current_user::text') AS t (who text) WHERE t.who <> 'm_there';
            IF FOUND THEN
                INSERT INTO mallory.seen VALUES ('somebody else''s: ' || link);
            END IF;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
    END LOOP;
    RETURN true;
END $$;
CREATE TABLE mallory.t (id bigint PRIMARY KEY, v text NOT NULL CHECK (mallory.f(v)));
INSERT INTO mallory.t SELECT g, 'v' || g FROM generate_series(1, 300) g;";

fn prepare(world: &mut World) -> Result<()> {
    let hba = world.there.data_dir().join("pg_hba.conf");
    let trusting = std::fs::read_to_string(&hba)?;
    std::fs::write(&hba, format!("local all m_there scram-sha-256\n{trusting}"))?;
    for database in ["postgres", "second"] {
        world.there.connect(database)?.exec(
            "DO $$ BEGIN CREATE ROLE m_there LOGIN PASSWORD 'm'; EXCEPTION WHEN duplicate_object THEN NULL; END $$; \
             GRANT CREATE, USAGE ON SCHEMA public TO m_there; CREATE SCHEMA mallory AUTHORIZATION m_there; \
             CREATE FUNCTION mallory.f(v text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true'; SELECT pg_reload_conf()",
        )?;
    }
    world.here.query(
        "CREATE ROLE mallory LOGIN; CREATE SCHEMA mallory AUTHORIZATION mallory; \
         GRANT USAGE ON FOREIGN SERVER s_n1, s_n2 TO mallory; \
         CREATE USER MAPPING FOR mallory SERVER s_n1 OPTIONS (user 'm_there', password 'm'); \
         CREATE USER MAPPING FOR mallory SERVER s_n2 OPTIONS (user 'm_there', password 'm')",
    )?;
    let conninfo = world.here.cluster.conninfo("postgres").replace("user=postgres", "user=mallory");
    Client::connect(&conninfo)?.exec(SPY)?;
    Ok(())
}

#[test]
fn an_owner_finds_no_connection_but_the_owners() -> Result<()> {
    let mut world = World::with_nodes("hostile-links")?;
    prepare(&mut world)?;
    world
        .here
        .query("SELECT foreshard.distribute('mallory.t', 'id', 1, remote => true, shards => '{sa}')")?;
    let slot = world.here.slots("mallory.t")?[0].clone();
    world.here.wait_query("SELECT bool_and(state = 'up' AND held) FROM foreshard.nodes", "t")?;
    world.here.query("TRUNCATE mallory.seen")?;
    for shard in ["on_n1", "on_n2", "sb"] {
        let move_id = world.move_to(&slot, shard)?;
        world.here.wait_end(&move_id, "done")?;
    }
    let seen = world.here.query("SELECT coalesce(string_agg(name, ', '), '') FROM mallory.seen")?;
    println!("mallory saw: {seen}");
    assert_ne!(seen, "", "her own connections are open while her rows are copied");
    let others = world
        .here
        .query("SELECT count(*) FROM mallory.seen WHERE name !~ (' ' || 'mallory'::regrole::oid || '$')")?;
    assert_eq!(others, "0", "{seen}");
    assert_eq!(world.here.query("SELECT count(*) FROM mallory.t")?, "300");
    Ok(())
}
