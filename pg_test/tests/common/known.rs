//! Triggers of which it is known what they do, on managed tables.

use super::{Server, options};
use foreshard_test::{Client, ClusterOptions, Result};

/// Slots of every table here.
const SLOTS: u32 = 4;

/// Trigger functions. What one does is in its arguments: of a table's triggers each has its own.
const FUNCTIONS: &str = "
    -- Keeps a processor busy for so many rounds.
    CREATE FUNCTION known_burn() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE sum bigint := 0;
    BEGIN
        FOR i IN 1 .. TG_ARGV[0]::int LOOP sum := sum + i % 7; END LOOP;
        RETURN NEW;
    END $$;
    -- Takes time, but no processor's.
    CREATE FUNCTION known_sleep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(TG_ARGV[0]::float8);
        RETURN NEW;
    END $$;
    -- Writes WAL records of a known size.
    CREATE FUNCTION known_wal() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_logical_emit_message(true, 'known', repeat('x', TG_ARGV[0]::int));
        PERFORM pg_logical_emit_message(false, 'known', repeat('x', TG_ARGV[0]::int));
        RETURN NEW;
    END $$;
    -- Touches blocks: EXECUTEs its argument.
    CREATE FUNCTION known_query() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE TG_ARGV[0];
        RETURN NEW;
    END $$;
    CREATE FUNCTION known_small_sort() RETURNS trigger LANGUAGE plpgsql SET work_mem = '64kB' AS $$
    BEGIN
        EXECUTE TG_ARGV[0];
        RETURN NEW;
    END $$;
    -- Leaves a cursor open, whose sort keeps so many kilobytes until the transaction ends.
    CREATE FUNCTION known_keep() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        kept refcursor;
        line text;
    BEGIN
        OPEN kept FOR SELECT repeat('x', 1000) || g FROM generate_series(1, TG_ARGV[0]::int) g ORDER BY 1;
        FETCH kept INTO line;
        RETURN NEW;
    END $$;
    -- Uses as much, and gives it back.
    CREATE FUNCTION known_waste() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE lines text[];
    BEGIN
        SELECT array_agg(repeat('x', 1000) || g) INTO lines FROM generate_series(1, TG_ARGV[0]::int) g;
        RETURN NEW;
    END $$;
    -- Burns, then inserts a row into another table, which has a trigger of its own.
    CREATE FUNCTION known_outer() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE sum bigint := 0;
    BEGIN
        FOR i IN 1 .. TG_ARGV[0]::int LOOP sum := sum + i % 7; END LOOP;
        EXECUTE format('INSERT INTO %I (id) VALUES ($1)', TG_ARGV[1]) USING NEW.id;
        RETURN NEW;
    END $$;
    -- Burns, then fails.
    CREATE FUNCTION known_raise() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE sum bigint := 0;
    BEGIN
        FOR i IN 1 .. TG_ARGV[0]::int LOOP sum := sum + i % 7; END LOOP;
        RAISE EXCEPTION 'known to fail' USING ERRCODE = 'FS001', DETAIL = 'its detail', HINT = 'its hint',
            COLUMN = 'its column', CONSTRAINT = 'its constraint', TABLE = 'its table', SCHEMA = 'its schema';
    END $$;
    -- Catches what the trigger of another table raises, then burns.
    CREATE FUNCTION known_catch() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE sum bigint := 0;
    BEGIN
        BEGIN
            EXECUTE format('INSERT INTO %I (id) VALUES ($1)', TG_ARGV[1]) USING NEW.id;
        EXCEPTION WHEN SQLSTATE 'FS001' THEN
            sum := 1;
        END;
        FOR i IN 1 .. TG_ARGV[0]::int LOOP sum := sum + i % 7; END LOOP;
        RETURN NEW;
    END $$;
    -- Calls itself until depth 0, where it fails; caught at a depth of its argument.
    CREATE FUNCTION known_deep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.depth = 0 THEN
            RAISE EXCEPTION 'known to fail' USING ERRCODE = 'FS001';
        ELSIF NEW.depth = TG_ARGV[0]::int THEN
            BEGIN
                INSERT INTO deep (id, depth) VALUES (-NEW.id, NEW.depth - 1);
            EXCEPTION WHEN SQLSTATE 'FS001' THEN
                RETURN NEW;
            END;
        ELSE
            INSERT INTO deep (id, depth) VALUES (NEW.id + 1, NEW.depth - 1);
        END IF;
        RETURN NEW;
    END $$;";

/// Options of a server on which every trigger call is measured, and read every second.
pub fn known_options(name: &str) -> ClusterOptions {
    options(name)
        .set("autovacuum", "off")
        .set("track_functions", "all")
        .set("foreshard.trigger_sample_interval", "1")
        .set("foreshard.observe_budget", "100")
}

/// Starts such a server, with the trigger functions.
pub fn known_server(name: &str) -> Result<Server> {
    let mut server = Server::start(&known_options(name))?;
    server.query(FUNCTIONS)?;
    Ok(server)
}

/// Creates a managed table with a bigint key `id` and these columns.
pub fn managed_table(server: &mut Server, name: &str, columns: &str) -> Result<()> {
    server.query(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY{columns})"))?;
    server.query(&format!("SELECT foreshard.distribute('{name}', 'id', {SLOTS})"))?;
    Ok(())
}

/// Creates a managed table `name` with an AFTER INSERT row trigger `name` that runs a function with
/// arguments (SQL literals).
pub fn table_with(server: &mut Server, name: &str, function: &str, arguments: &str) -> Result<()> {
    managed_table(server, name, "")?;
    server.query(&format!(
        "CREATE TRIGGER {name} AFTER INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION {function}({arguments})"
    ))?;
    Ok(())
}

/// Inserts rows with keys `first`, `first + 1` … one statement each.
pub fn insert_each(client: &mut Client, table: &str, first: u64, rows: u64) -> Result<()> {
    let name = format!("insert_{table}");
    // Prepared once a connection: a plan in the making would be noise.
    let there =
        client.query_one(&format!("SELECT count(*) FROM pg_prepared_statements WHERE name = '{name}'"))?;
    if there == "0" {
        client.prepare(&name, &format!("INSERT INTO {table} (id) VALUES ($1)"))?;
    }
    for id in first..first + rows {
        client.exec_prepared(&name, &[Some(&id.to_string())])?;
    }
    Ok(())
}

/// Inserts rows with keys `first`, `first + 1` … by one statement, so that what a statement costs by itself
/// (above all waking up and having forgotten everything) is divided by many calls of a trigger.
pub fn insert_all(client: &mut Client, table: &str, first: u64, rows: u64) -> Result<()> {
    client
        .exec(&format!("INSERT INTO {table} (id) SELECT generate_series({first}, {first} + {rows} - 1)"))?;
    Ok(())
}
