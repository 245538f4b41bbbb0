//! Who may use a table here may use its slots on nodes, and nobody longer than here.

mod common;

use common::nodes::World;
use common::placed::expect_code;
use foreshard_test::{Client, Result};

/// What is left to do on nodes.
const PENDING: &str = "SELECT coalesce(string_agg(DISTINCT statement, '; ' ORDER BY statement), '') FROM foreshard.pending_rights";

/// A table of one slot on n1, whose readers are a login role and the member of another role; its name there.
fn prepare(world: &mut World) -> Result<String> {
    world
        .there
        .connect("postgres")?
        .exec("CREATE ROLE app_there LOGIN; CREATE ROLE clerk_there LOGIN; CREATE ROLE report_there LOGIN")?;
    world.here.query(
        "CREATE ROLE app LOGIN; CREATE ROLE staff; CREATE ROLE clerk LOGIN IN ROLE staff; CREATE ROLE late LOGIN; \
         CREATE USER MAPPING FOR app SERVER s_n1 OPTIONS (user 'app_there', password_required 'false'); \
         CREATE USER MAPPING FOR clerk SERVER s_n1 OPTIONS (user 'clerk_there', password_required 'false'); \
         CREATE USER MAPPING FOR late SERVER s_n1 OPTIONS (user 'late_there', password_required 'false'); \
         CREATE TABLE t (id bigint PRIMARY KEY, v text, secret text); \
         INSERT INTO t SELECT g, 'v' || g, 's' || g FROM generate_series(1, 100) g; \
         SELECT foreshard.distribute('t', 'id', 1, remote => true, shards => '{sa}'); \
         GRANT SELECT ON t TO app; GRANT SELECT, DELETE ON t TO staff",
    )?;
    let slot = world.here.slots("t")?[0].clone();
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    world.here.query("SELECT format('%I.%I', remote_schema, remote_name) FROM foreshard.remote_table")
}

fn as_role(world: &World, role: &str) -> Result<Client> {
    let conninfo = world.here.cluster.conninfo("postgres").replace("user=postgres", &format!("user={role}"));
    Ok(Client::connect(&conninfo)?)
}

/// The rights of a role on a table on the node.
fn rights_there(world: &World, role: &str, table: &str) -> Result<String> {
    let rights = format!(
        "SELECT coalesce(string_agg(p, ' ' ORDER BY p), '') FROM unnest('{{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}}'::text[]) p \
         WHERE has_table_privilege('{role}', '{table}', p)"
    );
    Ok(world.there.connect("postgres")?.query_one(&rights)?)
}

#[test]
fn rights_follow_the_table() -> Result<()> {
    let mut world = World::with_nodes("fdw-rights")?;
    let table = prepare(&mut world)?;
    // Given before anybody read there.
    assert_eq!(rights_there(&world, "app_there", &table)?, "SELECT");
    assert_eq!(rights_there(&world, "clerk_there", &table)?, "DELETE SELECT");
    let mut app = as_role(&world, "app")?;
    let mut clerk = as_role(&world, "clerk")?;
    assert_eq!(app.query_one("SELECT count(*) FROM t")?, "100");
    assert_eq!(
        clerk.query_one("WITH d AS (DELETE FROM t WHERE id = 100 RETURNING 1) SELECT count(*) FROM d")?,
        "1"
    );
    world.here.wait_query(PENDING, "")?;

    // What is granted and revoked here is granted and revoked there; what somebody grants there by hand is his.
    world.there.connect("postgres")?.exec(&format!("GRANT SELECT ON {table} TO report_there"))?;
    world.here.query("GRANT INSERT, UPDATE ON t TO app")?;
    world.here.wait_query(PENDING, "")?;
    assert_eq!(rights_there(&world, "app_there", &table)?, "INSERT SELECT UPDATE");
    app.exec("INSERT INTO t VALUES (101, 'new', 'new'); UPDATE t SET v = 'newer' WHERE id = 101")?;
    world.here.query("REVOKE INSERT, UPDATE ON t FROM app; REVOKE staff FROM clerk")?;
    world.here.wait_query(PENDING, "")?;
    assert_eq!(rights_there(&world, "app_there", &table)?, "SELECT");
    assert_eq!(rights_there(&world, "clerk_there", &table)?, "");
    assert_eq!(rights_there(&world, "report_there", &table)?, "SELECT");
    expect_code(clerk.exec("SELECT count(*) FROM t"), "42501");

    // A right on columns is one on columns there, too.
    world.here.query("REVOKE SELECT ON t FROM app; GRANT SELECT (id, v) ON t TO app")?;
    world.here.wait_query(PENDING, "")?;
    assert_eq!(rights_there(&world, "app_there", &table)?, "");
    assert_eq!(app.query_one("SELECT v FROM t WHERE id = 101")?, "newer");
    let columns = "SELECT string_agg(c, ' ' ORDER BY c) FROM unnest('{id,v,secret}'::text[]) c";
    let columns = format!("{columns} WHERE has_column_privilege('app_there', '{table}', c, 'SELECT')");
    assert_eq!(world.there.connect("postgres")?.query_one(&columns)?, "id v");
    // Also when the whole table is granted and taken away again, which takes away the columns there first.
    world.here.query("GRANT SELECT ON t TO app")?;
    world.here.wait_query(PENDING, "")?;
    world.here.query("REVOKE SELECT ON t FROM app; GRANT SELECT (id) ON t TO app")?;
    world.here.wait_query(PENDING, "")?;
    let columns = world.there.connect("postgres")?.query_one(&columns)?;
    assert_eq!(columns, "id", "REVOKE of the table takes those of columns away here as well");
    world.assert_nothing_left()
}

#[test]
fn what_is_due_is_told_and_done_when_it_can_be() -> Result<()> {
    let mut world = World::with_nodes("fdw-rights-due")?;
    let table = prepare(&mut world)?;
    world.here.wait_query(PENDING, "")?;
    // The role that a mapping names does not exist there yet.
    world.here.query("GRANT SELECT ON t TO late")?;
    let grant = format!("GRANT SELECT ON {table} TO late_there");
    world.here.wait_query("SELECT bool_and(given <> '[]' AND rights @> '[{\"role\": \"late_there\"}]') FROM foreshard.remote_table", "t")?;
    assert_eq!(world.here.query(PENDING)?, grant);
    world.here.query("CREATE ROLE watcher LOGIN IN ROLE pg_monitor")?;
    let told = "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'rights on it differ%' AND detail LIKE '%late_there%'";
    assert_eq!(as_role(&world, "watcher")?.query_one(told)?, "1");
    world.there.connect("postgres")?.exec("CREATE ROLE late_there LOGIN")?;
    world.here.wait_query(PENDING, "")?;
    assert_eq!(as_role(&world, "late")?.query_one("SELECT count(*) FROM t")?, "100");
    // While the node is away, what it was given is known, and goes as soon as it is back.
    world.there.kill9_postmaster()?;
    world.here.query("REVOKE ALL ON t FROM app")?;
    assert_eq!(world.here.query(PENDING)?, format!("REVOKE SELECT ON {table} FROM app_there"));
    world.there.start_again()?;
    world.here.wait_query(PENDING, "")?;
    assert_eq!(rights_there(&world, "app_there", &table)?, "");
    // Who has rights and no way to use them.
    world.here.query("CREATE ROLE nomap LOGIN IN ROLE staff")?;
    let told =
        "SELECT string_agg(detail, ' ') FROM foreshard.check() WHERE problem LIKE '%have no user mapping'";
    assert_eq!(world.here.query(told)?, "nomap");
    world.here.query("DROP ROLE nomap")?;
    // Row level security would bind here and not there.
    let error = expect_code(
        world.here.cluster.connect("postgres")?.exec("ALTER TABLE t ENABLE ROW LEVEL SECURITY"),
        "0A000",
    );
    assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("row level security")), "{error}");
    // A copy that is made later has what is granted by then.
    let slot = world.here.slots("t")?[0].clone();
    let move_id = world.move_to(&slot, "sb")?;
    world.here.wait_end(&move_id, "done")?;
    world.here.query("GRANT SELECT ON t TO app; REVOKE ALL ON t FROM late")?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(as_role(&world, "app")?.query_one("SELECT count(*) FROM t")?, "100");
    let table = world.here.query("SELECT format('%I.%I', remote_schema, remote_name) FROM foreshard.remote_table WHERE partition <> 0 ORDER BY remote_id DESC LIMIT 1")?;
    assert_eq!(rights_there(&world, "late_there", &table)?, "");
    world.assert_nothing_left()
}

/// What somebody granted on one partition goes with it, there and back, and nobody else gets anything by that.
#[test]
fn rights_on_one_partition_follow_it() -> Result<()> {
    let mut world = World::with_nodes("fdw-rights-part")?;
    world.there.connect("postgres")?.exec("CREATE ROLE late_there LOGIN")?;
    prepare(&mut world)?;
    let slot = world.here.slots("t")?[0].clone();
    let move_id = world.move_to(&slot, "sa")?;
    world.here.wait_end(&move_id, "done")?;
    let leaf =
        world.here.query("SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 't'::regclass")?;
    world.here.query(&format!(
        "GRANT SELECT (id, v) ON {leaf} TO late; CREATE ROLE nosy LOGIN; ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO nosy"
    ))?;
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let newest = "SELECT format('%I.%I', remote_schema, remote_name) FROM foreshard.remote_table WHERE partition <> 0 ORDER BY remote_id DESC LIMIT 1";
    let table = world.here.query(newest)?;
    let mut late = as_role(&world, "late")?;
    let read = format!("SELECT count(v) FROM {leaf}");
    assert_eq!(late.query_one(&read)?, "100");
    expect_code(late.exec("SELECT count(v) FROM t"), "42501");
    expect_code(late.exec(&format!("SELECT secret FROM {leaf}")), "42501");
    assert_eq!(rights_there(&world, "late_there", &table)?, "");
    let nosy = "SELECT count(*) FROM pg_class WHERE relkind = 'f' AND has_table_privilege('nosy', oid, 'SELECT, INSERT, UPDATE')";
    assert_eq!(world.here.query(nosy)?, "0");
    // What is granted later as well, and it goes when it is revoked.
    world.here.query(&format!("GRANT SELECT, DELETE ON {leaf} TO late"))?;
    world.here.wait_query(PENDING, "")?;
    assert_eq!(rights_there(&world, "late_there", &table)?, "DELETE SELECT");
    world.here.query(&format!("REVOKE DELETE ON {leaf} FROM late"))?;
    world.here.wait_query(PENDING, "")?;
    assert_eq!(rights_there(&world, "late_there", &table)?, "SELECT");
    // Without a mapping there is no way there for him.
    let move_id = world.move_to(&slot, "on_n2")?;
    world.here.wait_end(&move_id, "failed")?;
    let why = format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}");
    let why = world.here.query(&why)?;
    assert!(why.contains("no_user_mapping: late"), "{why}");
    let move_id = world.move_to(&slot, "sb")?;
    world.here.wait_end(&move_id, "done")?;
    assert_eq!(late.query_one(&read)?, "100");
    assert_eq!(late.query_one(&format!("SELECT count(secret) FROM {leaf}"))?, "100");
    expect_code(late.exec(&format!("DELETE FROM {leaf}")), "42501");
    world.assert_nothing_left()
}
