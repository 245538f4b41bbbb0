//! What the server tests share: a server with two shards, moves and their phases, and the proof that a
//! move left nothing behind.

#![allow(dead_code)] // Each test file uses its own part.

pub mod citus;
pub mod closures;
pub mod files;
pub mod halves;
pub mod known;
pub mod ledger;
pub mod nodes;
pub mod placed;
pub mod profile;
pub mod rows;
pub mod snapshots;
pub mod soak;
pub mod sources;
pub mod standby;
pub mod truth;

use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, SqlError, rest, wait_until};
use std::time::{Duration, Instant};

/// The shards, each on a tablespace of its name.
pub const SHARDS: [&str; 2] = ["sa", "sb"];
/// Longest wait for a move to get somewhere.
pub const PATIENCE: Duration = Duration::from_secs(100);

/// Every phase of the local engine in which a carrier can be held.
pub const PHASES: [&str; 10] =
    ["preflight", "capture", "copy", "index", "catch_up", "mirror", "verify", "canary", "cutover", "retire"];

/// Those of a split.
pub const SPLIT_PHASES: [&str; 10] =
    ["preflight", "capture", "copy", "index", "catch_up", "mirror", "verify", "canary", "cutover", "retire"];

/// A server whose database `postgres` has the extension and two shards.
pub struct Server {
    /// The cluster.
    pub cluster: Cluster,
    /// What PostgreSQL leaves of a crash.
    pub remains: files::Remains,
    admin: Option<Client>,
}

/// The options all these servers have: nothing waits for a disk, autovacuum is a nuisance, but one that looks at few rows.
pub fn options(name: &str) -> ClusterOptions {
    ClusterOptions::new(name)
        .set("fsync", "off")
        .set("autovacuum_naptime", "1s")
        .set("autovacuum_vacuum_cost_delay", "0")
        .set("default_statistics_target", "10")
        .set("foreshard.bucket", "1")
        .set("foreshard.rollback_window", "0")
        .set("foreshard.canary_steps", "50")
        .set("foreshard.canary_dwell", "0")
}

impl Server {
    /// Starts a server with tablespaces, extension, shards, amcheck and pg_visibility.
    pub fn start(options: &ClusterOptions) -> Result<Server> {
        Server::start_on(Cluster::start(options)?)
    }

    /// As [`start`](Self::start), on a cluster that was just made.
    pub fn start_on(cluster: Cluster) -> Result<Server> {
        let mut server = Server::of(cluster);
        server.make_tablespaces()?;
        server
            .query("CREATE EXTENSION foreshard; CREATE EXTENSION amcheck; CREATE EXTENSION pg_visibility")?;
        for name in SHARDS {
            server.query(&format!("SELECT foreshard.add_shard('{name}', '{name}')"))?;
        }
        Ok(server)
    }

    /// A cluster as it is.
    pub fn of(cluster: Cluster) -> Server {
        Server { cluster, remains: files::Remains::default(), admin: None }
    }

    /// Starts a server that has only the tablespaces.
    pub fn bare(options: &ClusterOptions) -> Result<Server> {
        let mut server = Server::of(Cluster::start(options)?);
        server.make_tablespaces()?;
        Ok(server)
    }

    fn make_tablespaces(&mut self) -> Result<()> {
        for name in SHARDS {
            let dir = self.cluster.make_tablespace_dir(name)?;
            self.query(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display()))?;
        }
        Ok(())
    }

    /// Runs SQL as superuser; all rows as text. A lost connection is made again, once.
    pub fn query(&mut self, sql: &str) -> Result<String> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.admin.is_none() {
                self.admin = self.cluster.connect("postgres").ok();
            }
            let Some(client) = &mut self.admin else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            match client.exec(sql) {
                Ok(rows) => return Ok(rows.to_text()),
                Err(error) if error.is_connection_loss() => self.admin = None,
                Err(error) => return Err(Error::new(format!("{error}\nin: {sql}"), "")),
            }
        }
        Err(Error::new(format!("The server does not come back for: {sql}"), ""))
    }

    /// Runs SQL that must fail; the error.
    pub fn fails(&mut self, sql: &str) -> Result<SqlError> {
        let mut client = self.cluster.connect("postgres")?;
        match client.exec(sql) {
            Ok(rows) => Err(Error::new(format!("{sql} did not fail but returned {}", rows.to_text()), "")),
            Err(error) => Ok(error),
        }
    }

    /// Changes settings; a server that is just restarting is waited for.
    pub fn set(&mut self, changes: &[(&str, &str)]) -> Result<()> {
        let mut last = None;
        for _ in 0..50 {
            match self.cluster.set_and_reload(changes) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        last.map_or(Ok(()), Err)
    }

    /// Makes carriers wait on entering a phase; None: nowhere.
    pub fn hold(&mut self, phase: Option<&str>) -> Result<()> {
        self.set(&[("foreshard.hold_at_phase", phase.unwrap_or(""))])
    }

    /// Moves a slot to the shard it is not on; the move's id.
    pub fn move_slot(&mut self, slot: &str) -> Result<String> {
        let shard = self.query(&format!(
            "SELECT h.shard_name FROM foreshard.slot s, foreshard.shard h \
             WHERE s.slot_id = {slot} AND h.shard_id <> s.shard_id"
        ))?;
        self.query(&format!("SELECT foreshard.move_slot({slot}, '{shard}')"))
    }

    /// Splits a slot, its second part onto the shard that the slot is not on; the move's id.
    pub fn split_slot(&mut self, slot: &str) -> Result<String> {
        let shard = self.query(&format!(
            "SELECT h.shard_name FROM foreshard.slot s, foreshard.shard h \
             WHERE s.slot_id = {slot} AND h.shard_id <> s.shard_id"
        ))?;
        self.query(&format!("SELECT foreshard.split_slot({slot}, to_shard_b => '{shard}')"))
    }

    /// Waits until no move is under way, and says which failed.
    pub fn wait_moves(&mut self) -> Result<()> {
        self.wait_query("SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")?;
        let failed = "SELECT move_id, phase, last_error FROM foreshard.move WHERE phase <> 'done'";
        let failed = self.query(failed)?;
        assert_eq!(failed, "", "{}", self.log_tail());
        Ok(())
    }

    /// The slots of a table, in order.
    pub fn slots(&mut self, table: &str) -> Result<Vec<String>> {
        let text = self.query(&format!(
            "SELECT slot_id FROM foreshard.slot_partition WHERE table_oid = '{table}'::regclass ORDER BY 1"
        ))?;
        Ok(text.lines().map(String::from).collect())
    }

    /// The phase a move is in.
    pub fn phase(&mut self, move_id: &str) -> Result<String> {
        self.query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"))
    }

    /// The process of the only carrier, when it is there.
    pub fn carrier(&mut self) -> Result<Option<i32>> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'foreshard carrier'";
        Ok(self.query(sql)?.lines().next().and_then(|pid| pid.parse().ok()))
    }

    /// Waits until a move stands in a phase and a carrier is at it.
    pub fn wait_phase(&mut self, move_id: &str, phase: &str) -> Result<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let begun = Instant::now();
            let now = self.phase(move_id)?;
            if now == phase
                && let Some(pid) = self.carrier()?
            {
                return Ok(pid);
            }
            if Instant::now() > deadline {
                return Err(self.lost(move_id, phase));
            }
            rest(begun, Duration::from_millis(5));
        }
    }

    /// Waits until a move has ended as expected.
    pub fn wait_end(&mut self, move_id: &str, expected: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sql = format!("SELECT phase FROM foreshard.move WHERE finished AND move_id = {move_id}");
            let end = self.query(&sql)?;
            if end == expected {
                return Ok(());
            }
            if !end.is_empty() || Instant::now() > deadline {
                return Err(self.lost(move_id, expected));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Begins to undistribute a table online; the move's id.
    pub fn undistribute(&mut self, table: &str) -> Result<String> {
        self.query(&format!("SELECT foreshard.undistribute('{table}', online => true)"))?;
        self.query(
            "SELECT max(move_id) FROM foreshard.move WHERE kind = 'undistribute' AND partner_of IS NULL",
        )
    }

    /// Waits until that has ended, which its row does not outlive; how long its cutover held the locks, us.
    pub fn wait_undistributed(&mut self, move_id: &str) -> Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sql = format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}");
            match self.query(&sql)?.as_str() {
                "" => break,
                "f" if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => return Err(self.lost(move_id, "its end")),
            }
        }
        let held = self.query(&format!(
            "SELECT detail->>'held_us' FROM foreshard.history WHERE event = 'cutover' AND move_id = {move_id}"
        ))?;
        Ok(held.parse().unwrap_or(u64::MAX))
    }

    fn lost(&mut self, move_id: &str, expected: &str) -> Error {
        let sql = format!("SELECT row_to_json(p) FROM foreshard.progress_moves p WHERE move_id = {move_id}");
        let state = self.query(&sql).unwrap_or_else(|error| error.to_string());
        Error::new(format!("move {move_id} should have come to {expected}, but: {state}"), self.log_tail())
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        let log = self.cluster.log_contents();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Moves a slot to the other shard and waits for the end.
    pub fn move_and_wait(&mut self, slot: &str) -> Result<()> {
        let move_id = self.move_slot(slot)?;
        self.wait_end(&move_id, "done")
    }

    /// Waits until a query returns a text.
    pub fn wait_query(&mut self, sql: &str, expected: &str) -> Result<()> {
        let mut last = String::new();
        let outcome = wait_until(&format!("{sql} is {expected}"), PATIENCE, || {
            last = self.query(sql)?;
            Ok(last == expected)
        });
        outcome.map_err(|error| Error::new(format!("{error} It is {last}."), self.log_tail()))
    }

    /// Asserts that no move is under way and none left anything: no trigger, shadow, log, row of the
    /// catalog or file; that every slot lies where it should; and that every index fits its table.
    pub fn assert_settled(&mut self) -> Result<()> {
        self.assert_placed("true")?;
        self.assert_clean()
    }

    /// As [`Server::assert_settled`], where users made indexes in other tablespaces.
    pub fn assert_clean(&mut self) -> Result<()> {
        for (what, sql) in LEFT_OVER {
            let found = self.query(sql)?;
            assert_eq!(found, "", "{what}");
        }
        self.check_storage()?;
        files::assert_no_orphans(self)
    }

    /// Asserts that heap, toast and indexes of the slots that fulfil a condition lie on their shard.
    pub fn assert_placed(&mut self, condition: &str) -> Result<()> {
        let found = self.query(&format!("{MISPLACED} AND {condition}"))?;
        assert_eq!(found, "", "storage on the wrong shard");
        Ok(())
    }

    /// Runs amcheck over every valid btree and every heap of user tables, and compares heaps with their visibility maps.
    pub fn check_storage(&mut self) -> Result<()> {
        self.query(
            "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid \
             JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relkind = 'i' AND i.indisvalid \
               AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) \
               AND c.relpersistence = 'p'",
        )?;
        for (what, check) in HEAP_CHECKS {
            let wrong = self.query(&format!(
                "SELECT c.oid::regclass, x.* FROM pg_class c JOIN pg_am a ON a.oid = c.relam, LATERAL {check} x \
                 WHERE a.amname = 'heap' AND c.relkind = 'r' AND c.relpersistence = 'p' \
                   AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
            ))?;
            assert_eq!(wrong, "", "{what}");
        }
        Ok(())
    }
}

/// What finds something wrong in the heap `c`.
/// pg_check_visible is not among them: it takes an autovacuum worker that has an id for a reason that rows are not visible to all.
const HEAP_CHECKS: [(&str, &str); 2] = [
    ("damaged rows", "verify_heapam(c.oid, check_toast => true)"),
    ("rows that the map of frozen pages should not cover", "pg_check_frozen(c.oid)"),
];

/// Relations of slots whose files are not where the slot's shard is.
const MISPLACED: &str = "SELECT c.oid::regclass, pg_relation_filepath(c.oid), h.tablespace_name \
     FROM foreshard.slot_partition p JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard h USING (shard_id) \
     JOIN pg_class leaf ON leaf.oid = p.partition \
     JOIN pg_class c ON c.oid IN (leaf.oid, leaf.reltoastrelid) OR c.oid IN \
         (SELECT indexrelid FROM pg_index WHERE indrelid IN (leaf.oid, leaf.reltoastrelid)) \
     LEFT JOIN pg_tablespace t ON t.spcname = h.tablespace_name \
     WHERE pg_relation_filepath(c.oid) NOT LIKE 'pg\\_tblspc/' || t.oid || '/%'";

/// What must not be there once every move has ended, as queries that return what is wrong.
const LEFT_OVER: [(&str, &str); 5] = [
    ("moves under way", "SELECT move_id, phase FROM foreshard.move WHERE NOT finished"),
    (
        "capture triggers",
        "SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE tgname LIKE 'foreshard\\_capture%'",
    ),
    (
        "shadows and logs",
        "SELECT oid::regclass FROM pg_class WHERE relname ~ '^(shadow|capture|split|place|remains)_' OR relname LIKE 'pg\\_temp\\_%' \
            OR relrewrite <> 0",
    ),
    (
        "rows of moves",
        "SELECT move_id, source FROM foreshard.move_relation UNION ALL SELECT move_id, source_index FROM foreshard.move_index \
         UNION ALL SELECT move_id, child FROM foreshard.move_child",
    ),
    (
        "toast tables with foreign names",
        "SELECT c.oid::regclass, t.relname FROM pg_class c JOIN pg_class t ON t.oid = c.reltoastrelid \
         WHERE c.relnamespace >= 16384 AND t.relname <> 'pg_toast_' || c.oid",
    ),
];

/// A small random number generator (xorshift64*): tests need no quality, only variety.
pub struct Random(u64);

impl Random {
    /// Seeded by a number.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) % limit.max(1)
    }

    /// A pause of up to so many milliseconds.
    pub fn nap(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(most_ms)));
    }
}
