//! What outlives a database: dump and restore, and upgrades from every released version.

mod support;

use foreshard_test::install::{repository, run};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Install, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{cluster, cluster_of, database, move_away, wait_for, wait_for_move, wait_for_phase};

/// Dumps a database as `pg_dump` does and restores it, without any tolerance, into a new one.
fn dump_and_restore(cluster: &Cluster, from: &str, to: &str) -> Result<String> {
    let dump = run(&mut cluster.client_command("pg_dump", from))?;
    cluster.connect("postgres")?.exec(&format!("CREATE DATABASE {to} TEMPLATE template0"))?;
    restore(cluster, to, &dump.stdout)?;
    Ok(String::from_utf8_lossy(&dump.stdout).into_owned())
}

/// Runs a dump, or a part of one.
fn restore(cluster: &Cluster, to: &str, dump: &[u8]) -> Result<()> {
    let file = cluster.log_path().with_file_name("dump.sql");
    fs::write(&file, dump)?;
    cluster.install().user.give(&file)?;
    run(cluster.client_command("psql", to).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&file))?;
    Ok(())
}

/// What must be the same in both databases.
const STATE: &str = "\
SELECT s.slot_id, s.group_id, s.\"table\", s.partition, s.modulus, s.remainder, s.shard, t.spcname \
FROM foreshard.slots s JOIN pg_class c ON c.oid = s.partition LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace \
ORDER BY s.slot_id, s.\"table\"::text";

const SHARDS: &str =
    "SELECT shard_id, shard, node, tablespace, capacity, draining, slots FROM foreshard.shards ORDER BY 1";

const LOCATED: &str = "\
SELECT count(*), count(*) FILTER (WHERE foreshard.get_shard_location('\"Odd s\".\"Odd T\"', id) = s.shard \
    AND \"a, %s \"\"b; --\" = 7) \
FROM \"Odd s\".\"Odd T\" t JOIN foreshard.slots s ON s.partition = t.tableoid";

fn populate(c: &mut Client) -> Result<()> {
    c.exec(
        "CREATE SCHEMA \"Odd s\"; CREATE TABLE \"Odd s\".\"Odd T\" (id text PRIMARY KEY, v int, \"a, %s \"\"b; --\" int DEFAULT 7); \
         INSERT INTO \"Odd s\".\"Odd T\" SELECT 'k' || g, g FROM generate_series(1, 500) g; \
         CREATE TABLE mate (id text PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY); \
         SELECT foreshard.distribute('\"Odd s\".\"Odd T\"', 'id', 6); \
         SELECT foreshard.distribute('mate', 'id', colocate_with => '\"Odd s\".\"Odd T\"'); \
         SELECT foreshard.distribute('other', 'id', 3)",
    )?;
    c.exec(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
         VALUES (10, 1, now(), 1), (300, 1, now(), 2), (3600, 1, now(), NULL)",
    )?;
    Ok(())
}

#[test]
fn a_restored_database_is_managed_again() -> Result<()> {
    let mut cluster = cluster(&ClusterOptions::new("restore").set("foreshard.observe", "off"))?;
    let mut c = database(&cluster, "d")?;
    populate(&mut c)?;
    let first = c.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    let move_id = move_away(&mut c, &first)?;
    wait_for_move(&mut c, &move_id, "done")?;
    // A second move is under way while the dump is made: of its copy nothing is to be seen.
    cluster.set_and_reload(&[("foreshard.hold_at_phase", "verify")])?;
    let last = c.query_one("SELECT max(slot_id) FROM foreshard.slots")?;
    let move_id = move_away(&mut c, &last)?;
    wait_for_phase(&mut c, &move_id, "verify")?;
    let dump = dump_and_restore(&cluster, "d", "restored")?;
    for trace in ["shadow_", "capture_", "foreshard.capture"] {
        assert!(!dump.contains(trace), "the dump mentions {trace}");
    }
    let mut r = cluster.connect("restored")?;
    for sql in [STATE, SHARDS] {
        assert_eq!(c.exec(sql)?.to_text(), r.exec(sql)?.to_text());
    }
    assert_eq!(r.exec(LOCATED)?.to_text(), "500|500");
    assert_eq!(
        r.exec("SELECT resolution_s, cost_units_per_s FROM foreshard.heat_history ORDER BY 1")?.to_text(),
        "300|2\n3600|"
    );
    assert_eq!(r.query_one("SELECT count(*) FROM foreshard.progress_moves")?, "0");
    cluster.set_and_reload(&[("foreshard.hold_at_phase", "")])?;
    wait_for_move(&mut c, &move_id, "done")?;
    life_goes_on(&mut r, &first)
}

/// A keeper that reads while a restore has brought slots, but not their partitions yet, draws no conclusions from that.
#[test]
fn half_a_restore_is_left_alone() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("half").set("foreshard.bucket", "1"))?;
    let mut c = database(&cluster, "d")?;
    c.exec(
        "CREATE TABLE t (id bigint PRIMARY KEY, v int); INSERT INTO t SELECT g, g FROM generate_series(1, 300) g; \
         CREATE TABLE mate (id bigint PRIMARY KEY); SELECT foreshard.distribute('t', 'id', 4); \
         SELECT foreshard.distribute('mate', 'id', colocate_with => 't')",
    )?;
    let move_id = c.query_one("SELECT foreshard.isolate_key('t', 7::bigint)")?;
    wait_for_move(&mut c, &move_id, "done")?;
    let dump = run(&mut cluster.client_command("pg_dump", "d"))?;
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    // Newer versions of pg_dump put what psql may do into brackets, which a part of the dump does not close.
    let brackets = |line: &&str| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict ");
    let dump: String = dump.lines().filter(brackets).map(|line| format!("{line}\n")).collect();
    let middle = dump.find("COPY foreshard.slot_partition (").unwrap_or(dump.len());
    let (first, second) = dump.split_at(middle);
    assert!(
        first.contains("COPY foreshard.slot (") && !second.is_empty(),
        "slots come before their partitions"
    );
    c.exec("CREATE DATABASE restored TEMPLATE template0")?;
    restore(&cluster, "restored", first.as_bytes())?;
    let mut r = cluster.connect("restored")?;
    wait_for(&mut r, "SELECT keeper_pid IS NOT NULL FROM foreshard.worker_states()", "t")?;
    std::thread::sleep(std::time::Duration::from_secs(4));
    let slots = "SELECT string_agg(slot_id || ' ' || coalesce(home_slot_id, 0), ',' ORDER BY slot_id) FROM foreshard.slot";
    assert_eq!(r.query_one("SELECT count(*) FROM foreshard.slot_partition")?, "0");
    assert_eq!(r.query_one(slots)?, c.query_one(slots)?);
    restore(&cluster, "restored", second.as_bytes())?;
    assert_eq!(c.exec(STATE)?.to_text(), r.exec(STATE)?.to_text());
    wait_for(&mut r, "SELECT bool_and(observed_at IS NOT NULL) FROM foreshard.heat_map", "t")?;
    assert_eq!(
        r.query_one("SELECT count(*) FROM foreshard.history WHERE event IN ('attached', 'detached')")?,
        "0"
    );
    // What is attached by hand afterwards is followed as ever.
    let partition = r.query_one("SELECT min(inhrelid::regclass::text) FROM pg_inherits JOIN foreshard.slots ON partition = inhrelid WHERE inhparent = 'mate'::regclass")?;
    let bound = r.query_one(&format!(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE oid = '{partition}'::regclass"
    ))?;
    r.exec(&format!("ALTER TABLE mate DETACH PARTITION {partition}"))?;
    wait_for(&mut r, "SELECT count(*) FROM foreshard.history WHERE event = 'detached'", "1")?;
    r.exec(&format!("ALTER TABLE mate ATTACH PARTITION {partition} {bound}"))?;
    wait_for(&mut r, "SELECT count(*) FROM foreshard.history WHERE event = 'attached'", "1")
}

/// Moves, new shards and new tables work in the restored database; numbers go on where they stood.
fn life_goes_on(r: &mut Client, slot: &str) -> Result<()> {
    let move_id = move_away(r, slot)?;
    wait_for_move(r, &move_id, "done")?;
    assert_eq!(r.exec(LOCATED)?.to_text(), "500|500");
    assert_eq!(r.query_one("SELECT foreshard.add_shard('d', 'ts_a')")?, "4");
    r.exec("CREATE TABLE fresh (id int PRIMARY KEY)")?;
    r.exec("SELECT foreshard.distribute('fresh', 'id', 2)")?;
    assert_eq!(
        r.query_one("SELECT min(slot_id) FROM foreshard.slots WHERE \"table\" = 'fresh'::regclass")?,
        "10"
    );
    r.exec("SELECT foreshard.undistribute('mate'); SELECT foreshard.undistribute('\"Odd s\".\"Odd T\"')")?;
    assert_eq!(r.query_one("SELECT count(*) FROM \"Odd s\".\"Odd T\"")?, "500");
    Ok(())
}

/// Every object of the extension with what matters about it.
const OBJECTS: &str = "\
SELECT pg_describe_object(d.classid, d.objid, 0), md5(coalesce(pg_get_functiondef(p.oid), pg_get_viewdef(v.oid), '')), \
       coalesce(p.proacl, c.relacl)::text, obj_description(d.objid, d.classid::regclass::name), \
       (SELECT string_agg(format('%s %s %s', attname, format_type(atttypid, atttypmod), attnotnull), ',' ORDER BY attnum) \
          FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) \
FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'foreshard' \
LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid \
LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid LEFT JOIN pg_class v ON v.oid = c.oid AND v.relkind = 'v' \
WHERE d.deptype = 'e' ORDER BY 1";

#[test]
fn every_released_version_upgrades_to_a_fresh_install() -> Result<()> {
    let cluster = cluster(&ClusterOptions::new("upgrade"))?;
    let mut fresh = database(&cluster, "fresh")?;
    let wanted = fresh.exec(OBJECTS)?.to_text();
    assert!(wanted.contains("foreshard.distribute") && wanted.contains("view foreshard.slots"));
    let released = fresh.exec(
        "SELECT p.source FROM pg_extension_update_paths('foreshard') p JOIN pg_available_extensions a ON a.name = 'foreshard' \
         JOIN pg_available_extension_versions v ON v.name = a.name AND v.version = p.source \
         WHERE p.target = a.default_version AND p.path IS NOT NULL",
    )?;
    for (number, version) in released.to_text().lines().enumerate() {
        let name = format!("old{number}");
        fresh.exec(&format!("CREATE DATABASE {name} TEMPLATE template0"))?;
        let mut old = cluster.connect(&name)?;
        old.exec(&format!(
            "CREATE EXTENSION foreshard VERSION '{version}'; ALTER EXTENSION foreshard UPDATE"
        ))?;
        assert_eq!(wanted, old.exec(OBJECTS)?.to_text(), "upgraded from {version}");
    }
    Ok(())
}

/// A copy of an installation (hard links) that has a next version of the extension; removed when dropped.
struct NextVersion {
    install: Install,
    tree: PathBuf,
    version: String,
}

/// What the next version adds, and what it does to a table that has data.
const NEXT_SQL: &str = "\\echo Use \"ALTER EXTENSION foreshard UPDATE\" to load this file. \\quit
SET LOCAL search_path TO pg_catalog, pg_temp;
ALTER TABLE foreshard.shard ADD COLUMN note text NOT NULL DEFAULT 'from before';
CREATE FUNCTION foreshard.next_version() RETURNS int IMMUTABLE LANGUAGE sql SET search_path TO pg_catalog, pg_temp AS 'SELECT 2';
COMMENT ON FUNCTION foreshard.next_version() IS 'What is new.';
REVOKE ALL ON FUNCTION foreshard.next_version() FROM PUBLIC;
";

impl NextVersion {
    fn make() -> Result<NextVersion> {
        let mut install = Install::from_env()?;
        let tree = install.run_dir.join(format!("next-{}-{}", install.major, std::process::id()));
        let from = install.run_dir.join(format!("pg{}", install.major));
        let bin = install
            .bin_dir
            .strip_prefix(&from)
            .map_err(|_| Error::new("The installation is elsewhere.", ""))?;
        let bin_dir = tree.join(bin);
        run(Command::new("cp").arg("-al").arg(&from).arg(&tree))?;
        install.bin_dir = bin_dir;
        let mut next = NextVersion { install, tree, version: String::new() };
        let share = run(Command::new(next.install.program("pg_config")).arg("--sharedir"))?;
        next.write(&Path::new(String::from_utf8_lossy(&share.stdout).trim()).join("extension"))?;
        Ok(next)
    }

    /// The control file and the script of the next version. Files are replaced, never written into: they are linked.
    fn write(&mut self, extension: &Path) -> Result<()> {
        assert!(extension.starts_with(&self.tree), "{} is not in the copy", extension.display());
        let path = extension.join("foreshard.control");
        let control = fs::read_to_string(&path)?;
        let line = control.lines().find(|line| line.starts_with("default_version")).unwrap_or_default();
        let version = line.split('\'').nth(1).unwrap_or_default().to_string();
        let (rest, last) = version.rsplit_once('.').unwrap_or_default();
        self.version = format!("{rest}.{}", last.parse::<u32>().unwrap_or_default() + 1);
        fs::remove_file(&path)?;
        fs::write(&path, control.replace(line, &format!("default_version = '{}'", self.version)))?;
        fs::write(extension.join(format!("foreshard--{version}--{}.sql", self.version)), NEXT_SQL)?;
        Ok(())
    }
}

impl Drop for NextVersion {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.tree);
    }
}

/// A slot in two, a key by itself, and a split that is prepared: (its move, its slot).
fn divide(c: &mut Client) -> Result<(String, String)> {
    c.exec("INSERT INTO other SELECT generate_series(1, 300)")?;
    let slots =
        c.exec("SELECT slot_id FROM foreshard.slots WHERE \"table\" = 'other'::regclass ORDER BY 1")?;
    let slot = |n: usize| slots.get(n, 0).unwrap_or_default().to_string();
    let split = c.query_one(&format!("SELECT foreshard.split_slot({})", slot(0)))?;
    wait_for_move(c, &split, "done")?;
    let key = format!(
        "SELECT min(t.id) FROM other t JOIN foreshard.slots s ON s.partition = t.tableoid WHERE s.slot_id = {}",
        slot(1)
    );
    let key = c.query_one(&key)?;
    let isolated = c.query_one(&format!("SELECT foreshard.isolate_key('other', {key})"))?;
    wait_for_move(c, &isolated, "done")?;
    let prepared = c.query_one(&format!("SELECT foreshard.prepare_split({})", slot(2)))?;
    let state = format!("SELECT state FROM foreshard.progress_moves WHERE move_id = {prepared}");
    wait_for(c, &state, "prepared")?;
    Ok((prepared, slot(2)))
}

/// What was prepared is switched over to, what was isolated comes home, and every key is where it is said to be.
fn divisions_go_on(c: &mut Client, (prepared, slot): &(String, String)) -> Result<()> {
    assert_eq!(&c.query_one(&format!("SELECT foreshard.split_slot({slot})"))?, prepared);
    wait_for_move(c, prepared, "done")?;
    let isolated = "SELECT t.id FROM other t JOIN foreshard.slots s ON s.partition = t.tableoid JOIN foreshard.heat_map h USING (slot_id) WHERE h.isolated";
    let key = c.query_one(isolated)?;
    let home = c.query_one(&format!("SELECT foreshard.unisolate_key('other', {key})"))?;
    wait_for_move(c, &home, "done")?;
    assert_eq!(c.exec(isolated)?.len(), 0);
    let located = "SELECT count(*), count(*) FILTER (WHERE foreshard.get_shard_location('other', id) = s.shard), count(DISTINCT s.slot_id) \
         FROM other t JOIN foreshard.slots s ON s.partition = t.tableoid";
    assert_eq!(c.exec(located)?.to_text(), "300|300|5");
    Ok(())
}

#[test]
fn an_upgrade_to_the_next_version_keeps_everything() -> Result<()> {
    let next = NextVersion::make()?;
    let options = ClusterOptions::new("next").set("foreshard.observe", "off");
    let mut cluster = cluster_of(next.install.clone(), &options)?;
    let mut postgres = cluster.connect("postgres")?;
    let now =
        "SELECT source FROM pg_extension_update_paths('foreshard') WHERE path IS NOT NULL AND target = ";
    let now = postgres.query_one(&format!("{now}'{}'", next.version))?;
    postgres.exec("CREATE DATABASE d TEMPLATE template0")?;
    let mut c = cluster.connect("d")?;
    c.exec(&format!("CREATE EXTENSION foreshard VERSION '{now}'"))?;
    for shard in ["a", "b", "c"] {
        c.exec(&format!("SELECT foreshard.add_shard('{shard}', 'ts_{shard}')"))?;
    }
    populate(&mut c)?;
    let prepared = divide(&mut c)?;
    cluster.set_and_reload(&[("foreshard.hold_at_phase", "verify")])?;
    let slot = c.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    let move_id = move_away(&mut c, &slot)?;
    wait_for_phase(&mut c, &move_id, "verify")?;
    let before = [c.exec(STATE)?.to_text(), c.exec(SHARDS)?.to_text()];

    c.exec("ALTER EXTENSION foreshard UPDATE")?;
    assert_eq!(c.query_one("SELECT extversion FROM pg_extension WHERE extname = 'foreshard'")?, next.version);
    assert_eq!([c.exec(STATE)?.to_text(), c.exec(SHARDS)?.to_text()], before);
    assert_eq!(
        c.exec("SELECT DISTINCT note, foreshard.next_version() FROM foreshard.shard")?.to_text(),
        "from before|2"
    );
    let told =
        "SELECT count(*) FROM foreshard.check() WHERE problem LIKE 'the library is of another version%'";
    assert_eq!(c.query_one(told)?, "1", "the library is still the old one");
    // The move that was under way comes to its end, and a new installation is the same as an upgraded one.
    cluster.set_and_reload(&[("foreshard.hold_at_phase", "")])?;
    wait_for_move(&mut c, &move_id, "done")?;
    assert_eq!(c.exec(LOCATED)?.to_text(), "500|500");
    divisions_go_on(&mut c, &prepared)?;
    let upgraded = c.exec(OBJECTS)?.to_text();
    let mut fresh = database(&cluster, "fresh")?;
    assert_eq!(fresh.exec(OBJECTS)?.to_text(), upgraded);
    Ok(())
}

/// Somebody may have run an upgrade script: it never changes after the commit that added it.
#[test]
fn upgrade_scripts_are_immutable() -> Result<()> {
    let scripts = fs::read_dir(repository().join("sql"))?.flatten().map(|entry| entry.file_name());
    for script in
        scripts.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("foreshard--"))
    {
        let mut git = Command::new("git");
        let path = format!("sql/{script}");
        git.current_dir(repository()).args(["log", "--format=%h %s", "--diff-filter=M", "--", &path]);
        let changes = String::from_utf8_lossy(&run(&mut git)?.stdout).into_owned();
        assert!(changes.is_empty(), "{path} was changed after its release:\n{changes}");
    }
    Ok(())
}
