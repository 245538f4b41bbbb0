//! What sessions and a move of the same slot do to each other. Moves are asynchronous, so these are
//! libpq sessions rather than isolation specs: a move is held at a phase, sessions act, it goes on.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result, wait_until};
use std::time::Duration;
use support::{
    PATIENCE, cluster, database, expect_error, move_away, slot_of_key, wait_for, wait_for_move,
    wait_for_phase,
};

/// Longest time a bystander's statement may take.
const BYSTANDER: &str = "SET statement_timeout = '2s'";

/// A cluster whose database `d` has the managed table `t` (4 slots), its twin `u` (ordinary, same rows)
/// and a table `child` that references `t`. Rows of `t` are changed together with their twins.
struct Site {
    cluster: Cluster,
    client: Client,
    /// The slot that moves.
    slot: String,
    /// Keys in that slot, ascending.
    keys: Vec<String>,
}

impl Site {
    fn new(name: &str) -> Result<Site> {
        let cluster = cluster(&ClusterOptions::new(name).set("foreshard.observe", "off"))?;
        let mut client = database(&cluster, "d")?;
        client.exec(
            "CREATE EXTENSION amcheck; \
             CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL, n int NOT NULL DEFAULT 0, UNIQUE (id, n)); \
             CREATE INDEX t_v ON t (v) WHERE n > 1; CREATE TABLE u (LIKE t INCLUDING ALL); \
             INSERT INTO t SELECT g, repeat('v' || g, 20), g % 5 FROM generate_series(1, 2000) g; INSERT INTO u TABLE t; \
             CREATE TABLE child (id serial PRIMARY KEY, t_id int REFERENCES t ON DELETE CASCADE); \
             SELECT foreshard.distribute('t', 'id', 4)",
        )?;
        let slot = slot_of_key(&mut client, "t", "1")?;
        let keys = client.exec(&format!(
            "SELECT t.id FROM t JOIN foreshard.slots s ON s.partition = t.tableoid WHERE s.slot_id = {slot} ORDER BY 1"
        ))?;
        let keys = keys.to_text().lines().map(str::to_string).collect();
        Ok(Site { cluster, client, slot, keys })
    }

    fn connect(&self) -> Result<Client> {
        Ok(self.cluster.connect("d")?)
    }

    fn hold(&mut self, phase: &str) -> Result<()> {
        self.cluster.set_and_reload(&[("foreshard.hold_at_phase", phase)])
    }

    /// Starts the move and waits until it stands before a phase.
    fn move_up_to(&mut self, phase: &str) -> Result<String> {
        self.hold(phase)?;
        let move_id = move_away(&mut self.client, &self.slot)?;
        wait_for_phase(&mut self.client, &move_id, phase)?;
        Ok(move_id)
    }

    fn finish(&mut self, move_id: &str) -> Result<()> {
        self.hold("")?;
        wait_for_move(&mut self.client, move_id, "done")?;
        self.check()
    }

    /// Twin and managed table agree, whichever way one looks; indexes are sound; nothing is left over.
    fn check(&mut self) -> Result<()> {
        let c = &mut self.client;
        for path in ["enable_seqscan", "enable_indexscan"] {
            c.exec(&format!("SET {path} = off"))?;
            assert_eq!(
                c.query_one("SELECT count(*) FROM (TABLE t EXCEPT ALL TABLE u) q")?,
                "0",
                "{path} off"
            );
            assert_eq!(
                c.query_one("SELECT count(*) FROM (TABLE u EXCEPT ALL TABLE t) q")?,
                "0",
                "{path} off"
            );
            c.exec(&format!("RESET {path}"))?;
        }
        c.exec(
            "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
             WHERE i.indrelid IN (SELECT partition FROM foreshard.slots) AND x.relkind = 'i'",
        )?;
        no_leftovers(c)
    }

    /// Somebody else reads and writes the moving slot, and is not held up.
    fn bystander(&self, key: usize) -> Result<()> {
        let mut other = self.connect()?;
        other.exec(BYSTANDER)?;
        let id = &self.keys[key];
        other.exec(&format!("SELECT * FROM t WHERE id = {id}; SELECT count(*) FROM t"))?;
        both(&mut other, &format!("UPDATE t SET v = v || '.' WHERE id = {id}"))
    }
}

/// Runs a statement on `t` and on its twin in one transaction.
fn both(client: &mut Client, sql: &str) -> Result<()> {
    let twin = sql.replace(" t ", " u ").replace(" t(", " u(");
    client.exec(&format!("{sql}; {twin}"))?;
    Ok(())
}

fn no_leftovers(c: &mut Client) -> Result<()> {
    let left = c.exec(
        "SELECT relname FROM pg_class WHERE relname ~ '^(shadow_|capture_|pg_temp_)' AND relkind IN ('r', 'i') \
         UNION ALL SELECT tgname FROM pg_trigger WHERE tgfoid = 'foreshard.capture'::regproc",
    )?;
    assert!(left.is_empty(), "left over:\n{}", left.to_text());
    Ok(())
}

/// Every kind of change, each on rows of its own.
fn change_rows(w: &mut Client, keys: &[String], round: usize, phase: &str) -> Result<()> {
    let key = |n: usize| keys[n].as_str();
    both(w, &format!("UPDATE t SET v = 'updated {phase}', n = n + 1 WHERE id = {}", key(0)))?;
    both(w, &format!("DELETE FROM t WHERE id = {}", key(1)))?;
    // The key moves to another row's place, mostly in another slot, and something new takes the old one.
    both(w, &format!("UPDATE t SET id = {} WHERE id = {}", 5000 + round, key(2)))?;
    both(w, &format!("INSERT INTO t VALUES ({}, 'again {phase}', 9)", key(2)))?;
    both(
        w,
        &format!(
            "INSERT INTO t VALUES ({}, 'x', 0) ON CONFLICT (id) DO UPDATE SET v = 'upserted', n = 7",
            key(3)
        ),
    )?;
    both(w, &format!("INSERT INTO t VALUES ({}, 'x', 0) ON CONFLICT DO NOTHING", key(4)))?;
    both(
        w,
        &format!(
            "INSERT INTO t SELECT g, 'new {phase}', g FROM generate_series({0}, {0} + 50) g",
            10_000 + round * 100
        ),
    )?;
    both(w, &format!("SELECT FROM t WHERE id = {0} FOR UPDATE; UPDATE t SET n = 3 WHERE id = {0}", key(5)))?;
    w.exec("BEGIN; SAVEPOINT s")?;
    both(w, &format!("DELETE FROM t WHERE id = {}", key(6)))?;
    w.exec("ROLLBACK TO s")?;
    both(
        w,
        &format!("UPDATE t SET v = 'kept' WHERE id = {0}; UPDATE t SET v = v || v WHERE id = {0}", key(6)),
    )?;
    w.exec("COMMIT")?;
    w.exec(&format!(
        "INSERT INTO child (t_id) VALUES ({0}), ({1}); DELETE FROM child WHERE t_id = {1}",
        key(7),
        key(8)
    ))?;
    expect_error(w, "23503", &format!("INSERT INTO child (t_id) VALUES ({})", key(1)))?;
    expect_error(w, "23505", &format!("INSERT INTO t VALUES ({}, 'dup')", key(9)))?;
    Ok(())
}

#[test]
fn changes_in_every_phase_arrive() -> Result<()> {
    let mut site = Site::new("phases")?;
    let mut w = site.connect()?;
    let mut move_id = String::new();
    for (round, phase) in
        ["capture", "copy", "index", "catch_up", "verify", "cutover", "retire"].iter().enumerate()
    {
        site.hold(phase)?;
        if round == 0 {
            move_id = move_away(&mut site.client, &site.slot)?;
        }
        wait_for_phase(&mut site.client, &move_id, phase)?;
        change_rows(&mut w, &site.keys[round * 20..], round, phase)?;
    }
    site.finish(&move_id)?;
    assert_eq!(site.client.query_one("SELECT count(*) FROM child c JOIN t ON t.id = c.t_id")?, "7");
    // Foreign keys work in both directions afterwards.
    let key = site.keys[7].clone();
    both(&mut site.client, &format!("DELETE FROM t WHERE id = {key}"))?;
    assert_eq!(site.client.query_one("SELECT count(*) FROM child")?, "6");
    assert_eq!(
        site.client.query_one(&format!("SELECT restarts FROM foreshard.move WHERE move_id = {move_id}"))?,
        "0"
    );
    site.check()
}

/// A REPEATABLE READ snapshot that has not touched the table: no lock stands in the way, only the snapshot.
/// One that was taken while both copies were mirrored may read either, so the move does not wait for it.
fn old_snapshot(phase: &str, write: bool) -> Result<()> {
    let mut site = Site::new(&format!("snapshot_{phase}_{write}"))?;
    let mut reader = site.connect()?;
    let pid = reader.backend_pid();
    let mut move_id = String::new();
    if phase != "before" {
        move_id = site.move_up_to(phase)?;
    }
    reader.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM child")?;
    if phase == "before" {
        site.hold("cutover")?;
        move_id = move_away(&mut site.client, &site.slot)?;
        wait_for_phase(&mut site.client, &move_id, "cutover")?;
    }
    if write {
        let keys = site.keys[..50].join(", ");
        let mut w = site.connect()?;
        both(&mut w, &format!("UPDATE t SET n = n + 100 WHERE id IN ({keys})"))?;
        both(&mut w, &format!("DELETE FROM t WHERE id = {}", site.keys[60]))?;
        both(&mut w, "INSERT INTO t SELECT g, 'late', 0 FROM generate_series(3001, 3100) g")?;
    }
    site.hold("")?;
    let waits = phase != "cutover";
    if waits {
        wait_for_phase(&mut site.client, &move_id, "cutover")?;
        let named = format!(
            "SELECT waiting_for LIKE '%pid {pid} %' FROM foreshard.progress_moves WHERE move_id = {move_id}"
        );
        wait_for(&mut site.client, &named, "t")?;
    } else {
        wait_for_move(&mut site.client, &move_id, "done")?;
    }
    site.bystander(70)?;
    for path in ["enable_indexscan", "enable_seqscan"] {
        reader.exec(&format!("SET LOCAL {path} = off"))?;
        assert_eq!(
            reader.exec("SELECT count(*), sum(n), max(n), count(DISTINCT id) FROM t")?.to_text(),
            "2000|4000|4|2000"
        );
        reader.exec(&format!("SET LOCAL {path} = on"))?;
    }
    // Having read the table, it holds a lock as well; still nobody else waits.
    site.bystander(71)?;
    let finished = format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}");
    assert_eq!(site.client.query_one(&finished)?, if waits { "f" } else { "t" });
    reader.exec("COMMIT")?;
    wait_for_move(&mut site.client, &move_id, "done")?;
    site.check()
}

#[test]
fn a_snapshot_older_than_the_move_sees_its_own_data() -> Result<()> {
    old_snapshot("before", false)?;
    old_snapshot("before", true)
}

#[test]
fn a_snapshot_older_than_the_replay_sees_its_own_data() -> Result<()> {
    old_snapshot("catch_up", true)?;
    old_snapshot("cutover", true)
}

#[test]
fn prepared_statements_and_cursors_survive_the_cutover() -> Result<()> {
    let mut site = Site::new("prepared")?;
    let mut p = site.connect()?;
    p.exec("SET plan_cache_mode = force_generic_plan")?;
    p.prepare("get", "SELECT v FROM t WHERE id = $1")?;
    p.prepare("all", "SELECT count(*), sum(n) FROM t WHERE v <> $1")?;
    p.prepare(
        "put",
        "WITH a AS (UPDATE t SET n = n + 1 WHERE id = $1) UPDATE u SET n = n + 1 WHERE id = $1",
    )?;
    p.exec(
        "CREATE FUNCTION bump(k int) RETURNS int LANGUAGE plpgsql AS $$ DECLARE r int; BEGIN \
         UPDATE u SET n = n + 1 WHERE id = k; UPDATE t SET n = n + 1 WHERE id = k RETURNING n INTO r; RETURN r; END $$",
    )?;
    p.exec("DECLARE held CURSOR WITH HOLD FOR SELECT id, v FROM t ORDER BY id")?;
    assert_eq!(p.exec("FETCH 2 FROM held")?.len(), 2);
    let key = site.keys[5].clone();
    let use_all = |p: &mut Client, n: i32| -> Result<()> {
        assert!(
            p.exec_prepared("get", &[Some(&key)])?
                .get(0, 0)
                .is_some_and(|v| v.starts_with(&format!("v{key}")))
        );
        p.exec_prepared("put", &[Some(&key)])?;
        let bumped = p.query_one(&format!("SELECT bump({key})"))?;
        assert_eq!(bumped, p.query_one(&format!("SELECT n FROM u WHERE id = {key}"))?, "round {n}");
        assert_eq!(p.exec_prepared("all", &[Some("")])?.get(0, 0), Some("2000"));
        Ok(())
    };
    use_all(&mut p, 0)?;
    let move_id = site.move_up_to("cutover")?;
    use_all(&mut p, 1)?;
    // An open cursor holds a snapshot and a lock: the cutover waits, bystanders do not.
    let mut open = site.connect()?;
    let pid = open.backend_pid();
    open.exec("BEGIN; DECLARE c CURSOR FOR SELECT id, n FROM t; FETCH 10 FROM c")?;
    site.hold("")?;
    let named =
        format!("SELECT waiting_for LIKE '%pid {pid} %' FROM foreshard.move WHERE move_id = {move_id}");
    wait_for(&mut site.client, &named, "t")?;
    site.bystander(40)?;
    use_all(&mut p, 2)?;
    assert_eq!(open.exec("FETCH ALL FROM c")?.len(), 1990);
    open.exec("COMMIT")?;
    wait_for_move(&mut site.client, &move_id, "done")?;
    use_all(&mut p, 3)?;
    assert_eq!(p.exec("FETCH ALL FROM held")?.len(), 1998);
    site.check()
}

#[test]
fn an_idle_writer_delays_the_move_and_nobody_else() -> Result<()> {
    let mut site = Site::new("idle")?;
    let mut idle = site.connect()?;
    let pid = idle.backend_pid();
    for phase in ["capture", "cutover"] {
        let lock = if phase == "capture" { "UPDATE t SET n = n WHERE id" } else { "SELECT FROM t WHERE id" };
        let tail = if phase == "capture" { "" } else { " FOR UPDATE" };
        let move_id = site.move_up_to(phase)?;
        idle.exec(&format!("BEGIN; {lock} = {}{tail}", site.keys[0]))?;
        site.hold("")?;
        let named = format!(
            "SELECT lock_attempts > 8 AND waiting_for LIKE '%pid {pid} %' FROM foreshard.move WHERE move_id = {move_id}"
        );
        wait_for(&mut site.client, &named, "t")?;
        for round in 0..20 {
            site.bystander(10 + round)?;
        }
        wait_for_phase(&mut site.client, &move_id, phase)?;
        idle.exec("COMMIT")?;
        wait_for_move(&mut site.client, &move_id, "done")?;
        site.check()?;
    }
    Ok(())
}

#[test]
fn ddl_makes_a_move_start_again() -> Result<()> {
    let mut site = Site::new("ddl")?;
    let leaf = site
        .client
        .query_one(&format!("SELECT partition FROM foreshard.slots WHERE slot_id = {}", site.slot))?;
    site.client.exec("CREATE ROLE somebody")?;
    let cases = [
        ("verify", "ALTER TABLE t ADD COLUMN w int DEFAULT 5".to_string()),
        ("cutover", "ALTER TABLE t ALTER COLUMN w TYPE bigint".to_string()),
        ("cutover", "CREATE INDEX t_n ON t (n) ; CREATE INDEX ON u (n)".to_string()),
        ("index", "DROP INDEX t_n".to_string()),
        ("catch_up", format!("VACUUM FULL {leaf}")),
        ("verify", format!("ALTER TABLE {leaf} DISABLE TRIGGER ALL")),
        ("cutover", format!("ALTER TABLE {leaf} ENABLE TRIGGER ALL")),
        ("copy", "ALTER TABLE t DROP COLUMN w".to_string()),
        ("catch_up", format!("ALTER TABLE {leaf} OWNER TO somebody")),
        ("cutover", format!("ALTER TABLE {leaf} OWNER TO postgres")),
        ("verify", "TRUNCATE t CASCADE".to_string()),
    ];
    for (phase, ddl) in cases {
        let move_id = site.move_up_to(phase)?;
        let mut d = site.connect()?;
        d.exec("SET statement_timeout = '10s'")?;
        for statement in ddl.split(" ; ") {
            d.exec(statement)?;
            if statement.contains(" t ") || statement.contains("TRUNCATE t") {
                d.exec(&statement.replace(" t ", " u ").replace("t_n", "u_n"))?;
            }
        }
        site.hold("")?;
        wait_for_move(&mut site.client, &move_id, "done")?;
        let restarts = site
            .client
            .query_one(&format!("SELECT restarts FROM foreshard.move WHERE move_id = {move_id}"))?;
        assert_ne!(restarts, "0", "{ddl} at {phase}");
        if !ddl.contains("DISABLE") {
            site.check().inspect_err(|_| println!("after {ddl} at {phase}"))?;
        }
    }
    both(&mut site.client, "INSERT INTO t VALUES (1, 'one')")?;
    site.check()
}

#[test]
fn a_dropped_table_ends_its_move() -> Result<()> {
    let mut site = Site::new("dropped")?;
    site.move_up_to("verify")?;
    site.connect()?.exec("SET statement_timeout = '10s'; DROP TABLE t CASCADE")?;
    site.hold("")?;
    wait_for(&mut site.client, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
    wait_until("the shadow is gone", PATIENCE, || {
        let shadows = "SELECT count(*) FROM pg_class WHERE relname ~ '^(shadow_|capture_)'";
        Ok(site.client.query_one(shadows)? == "0")
    })?;
    no_leftovers(&mut site.client)
}

#[test]
fn one_move_at_a_time_per_slot() -> Result<()> {
    let mut site = Site::new("second")?;
    let (mut a, mut b) = (site.connect()?, site.connect()?);
    let sql = format!(
        "SELECT foreshard.move_slot({}, (SELECT min(shard) FROM foreshard.shards WHERE shard <> \
                       (SELECT shard FROM foreshard.slots WHERE slot_id = {})))",
        site.slot, site.slot
    );
    site.hold("copy")?;
    a.exec("BEGIN")?;
    let move_id = a.query_one(&sql)?;
    // The second one waits for the first to commit or not, and is then refused like any other.
    b.send_query(&sql)?;
    assert!(b.poll_result(Duration::from_millis(300))?.is_none());
    a.exec("COMMIT")?;
    let refused = b.poll_result(Duration::from_secs(10)).err().map(|error| error.sqlstate);
    assert_eq!(refused.as_deref(), Some("55006"));
    wait_for_phase(&mut site.client, &move_id, "copy")?;
    expect_error(&mut b, "55006", &sql)?;
    expect_error(&mut b, "55006", "SELECT foreshard.undistribute('t')")?;
    expect_error(
        &mut b,
        "55006",
        "CREATE TABLE m (id int PRIMARY KEY); SELECT foreshard.distribute('m', 'id', colocate_with => 't')",
    )?;
    assert_eq!(b.query_one(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    site.hold("")?;
    wait_for_move(&mut site.client, &move_id, "cancelled")?;
    assert_eq!(b.query_one(&format!("SELECT foreshard.cancel_move({move_id})"))?, "f");
    site.check()?;
    let again = b.query_one(&sql)?;
    wait_for_move(&mut site.client, &again, "done")?;
    site.check()
}

/// Who cancels what is just being swapped for good is not told that it was cancelled.
#[test]
fn a_cancel_that_comes_too_late_says_so() -> Result<()> {
    let mut site = Site::new("late")?;
    site.client.exec(
        "CREATE TABLE p (id int PRIMARY KEY); INSERT INTO p SELECT generate_series(1, 100); SELECT foreshard.distribute('p', 'id', 1)",
    )?;
    let slot = slot_of_key(&mut site.client, "p", "1")?;
    let move_id = site.client.query_one(&format!("SELECT foreshard.prepare_split({slot})"))?;
    wait_for_phase(&mut site.client, &move_id, "prepared")?;
    // In place of a carrier; none is to take the phase at its word.
    site.hold("retire")?;
    let (mut swap, mut late) = (site.connect()?, site.connect()?);
    let set = |phase: &str| format!("UPDATE foreshard.move SET phase = '{phase}' WHERE move_id = {move_id}");
    swap.exec(&format!("BEGIN; {}", set("retire")))?;
    late.send_query(&format!("SELECT foreshard.cancel_move({move_id})"))?;
    let waits =
        format!("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = {}", late.backend_pid());
    wait_for(&mut site.client, &waits, "t")?;
    swap.exec("COMMIT")?;
    let cancelled = late.poll_result(PATIENCE)?.map(|rows| rows.to_text());
    assert_eq!(cancelled.as_deref(), Some("f"));
    swap.exec(&set("prepared"))?;
    site.hold("")?;
    assert_eq!(site.client.query_one(&format!("SELECT foreshard.cancel_move({move_id})"))?, "t");
    wait_for_move(&mut site.client, &move_id, "cancelled")?;
    site.check()
}

#[test]
fn one_distribution_at_a_time_per_table() -> Result<()> {
    let site = Site::new("twice")?;
    let (mut a, mut b) = (site.connect()?, site.connect()?);
    a.exec("CREATE TABLE x (id int PRIMARY KEY); INSERT INTO x SELECT generate_series(1, 100)")?;
    for (begin, sql) in [
        ("distribute('x', 'id', 4)", "SELECT foreshard.distribute('x', 'id', 4)"),
        ("undistribute('x')", "SELECT foreshard.undistribute('x')"),
    ] {
        a.exec(&format!("BEGIN; SELECT foreshard.{begin}"))?;
        b.send_query(sql)?;
        assert!(b.poll_result(Duration::from_millis(300))?.is_none());
        a.exec("COMMIT")?;
        let refused = b.poll_result(Duration::from_secs(10)).err().map(|error| error.sqlstate);
        assert_eq!(refused.as_deref(), Some("55000"), "{sql}");
    }
    assert_eq!(a.query_one("SELECT count(*) FROM x")?, "100");
    // A colocated table and a move of its group: the distribution waits for the move to be filed.
    let (slot, other) = (&site.slot, "SELECT min(shard) FROM foreshard.shards WHERE shard <>");
    a.exec(&format!(
        "BEGIN; SELECT foreshard.move_slot({slot}, ({other} (SELECT shard FROM foreshard.slots WHERE slot_id = {slot})))"
    ))?;
    b.send_query("SELECT foreshard.distribute('x', 'id', colocate_with => 't')")?;
    assert!(b.poll_result(Duration::from_millis(300))?.is_none());
    a.exec("COMMIT")?;
    let refused = b.poll_result(Duration::from_secs(10)).err().map(|error| error.sqlstate);
    assert_eq!(refused.as_deref(), Some("55006"));
    Ok(())
}
