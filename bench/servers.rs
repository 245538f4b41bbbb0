//! The two servers: the same table natively partitioned in one, distributed by foreshard in the other.

use crate::pgbench::Workload;
use foreshard_test::process::{children, processors, signal};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, StopMode, wait_until};
use std::time::Duration;

/// The database on each server.
pub const DATABASE: &str = "bench";
const PARTITIONS: u32 = 32;
/// How long the keeper may take to show what it saw.
const PATIENCE: Duration = Duration::from_secs(60);

/// What both servers are set to. Autovacuum would come at times of its own, so tables are vacuumed before
/// each run instead; checkpoints likewise.
const SETTINGS: [(&str, &str); 9] = [
    ("shared_buffers", "1GB"),
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("autovacuum", "off"),
    ("checkpoint_timeout", "1h"),
    ("max_wal_size", "16GB"),
    ("bgwriter_lru_maxpages", "0"),
    ("jit", "off"),
];

/// The settings as one line.
pub fn settings_text() -> String {
    SETTINGS.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// A server with the table in it.
pub struct Server {
    /// The cluster.
    pub cluster: Cluster,
    preloaded: bool,
}

impl Server {
    /// Starts a server and loads `scale` times 100,000 rows.
    pub fn start(name: &str, preloaded: bool, scale: u32) -> Result<Server> {
        eprintln!("starting and loading server \"{name}\"");
        let mut options = ClusterOptions::new(&format!("overhead-{name}"));
        options.data_checksums = false;
        for (name, value) in SETTINGS {
            options = options.set(name, value);
        }
        if !preloaded {
            options = options.set("shared_preload_libraries", "");
        }
        let cluster = Cluster::start(&options)?;
        cluster.connect("postgres")?.exec(&format!("CREATE DATABASE {DATABASE} TEMPLATE template0"))?;
        let mut server = Server { cluster, preloaded };
        server.load(scale)?;
        Ok(server)
    }

    fn connect(&self) -> Result<Client> {
        Ok(self.cluster.connect(DATABASE)?)
    }

    /// `PostgreSQL 15.20`.
    pub fn version(&self) -> Result<String> {
        Ok(format!("PostgreSQL {}", self.connect()?.query_one("SHOW server_version")?))
    }

    /// pgbench's tables, its accounts partitioned.
    fn load(&mut self, scale: u32) -> Result<()> {
        let mut client = self.connect()?;
        client.exec(
            "CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
             CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
             CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
             CREATE TABLE audit (at timestamptz NOT NULL, what jsonb NOT NULL)",
        )?;
        client
            .exec(&format!("INSERT INTO pgbench_branches SELECT g, 0 FROM generate_series(1, {scale}) g"))?;
        client.exec(&format!(
            "INSERT INTO pgbench_tellers SELECT g, (g - 1) / 10 + 1, 0 FROM generate_series(1, {scale} * 10) g"
        ))?;
        let columns = "(aid int NOT NULL, bid int, abalance int, filler char(84))";
        let fill = format!(
            "INSERT INTO pgbench_accounts SELECT g, (g - 1) / 100000 + 1, 0, '' FROM generate_series(1, {scale} * 100000) g"
        );
        let key = "ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)";
        if self.preloaded {
            client.exec(&format!("CREATE TABLE pgbench_accounts {columns} WITH (fillfactor = 50)"))?;
            client.exec(&fill)?;
            client.exec(key)?;
            client.exec("CREATE EXTENSION foreshard")?;
            client.exec("SELECT foreshard.add_shard('main', 'pg_default')")?;
            client.exec(&format!(
                "SELECT foreshard.distribute('pgbench_accounts', 'aid', slots => {PARTITIONS})"
            ))?;
        } else {
            client.exec(&format!("CREATE TABLE pgbench_accounts {columns} PARTITION BY HASH (aid)"))?;
            for remainder in 0..PARTITIONS {
                client.exec(&format!(
                    "CREATE TABLE pgbench_accounts_{remainder} PARTITION OF pgbench_accounts \
                     FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {remainder}) WITH (fillfactor = 50)"
                ))?;
            }
            client.exec(&fill)?;
            client.exec(key)?;
        }
        // Twice: the second pass counts what the first one left.
        client.exec("VACUUM (FREEZE, ANALYZE)")?;
        client.exec("VACUUM (ANALYZE)")?;
        client.exec("CREATE EXTENSION pg_prewarm")?;
        for lane in 0..processors().len().max(1) as u32 {
            client.exec(&format!("CREATE ROLE {} LOGIN SUPERUSER", lane_user(lane)))?;
        }
        Ok(())
    }

    /// Everything about the partitions that may matter to a query, as text.
    fn shape(&self) -> Result<String> {
        let rows = self.connect()?.exec(
            "SELECT pg_get_expr(c.relpartbound, c.oid) AS bound, c.relpages, c.reltuples, c.reloptions,
                 (SELECT array_agg((a.attname, a.atttypid, a.attstorage, a.attnotnull) ORDER BY a.attnum)
                  FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0) AS columns,
                 (SELECT array_agg((x.indkey, x.indisprimary, i.relpages, i.reloptions))
                  FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = c.oid) AS indexes,
                 (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid) AS triggers
             FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid
             WHERE h.inhparent = 'pgbench_accounts'::regclass ORDER BY bound",
        )?;
        Ok(rows.to_text())
    }

    /// Makes the server fit for a workload: its trigger.
    pub fn prepare_workload(&mut self, workload: Workload) -> Result<()> {
        let mut client = self.connect()?;
        client.exec("DROP TRIGGER IF EXISTS audit ON pgbench_accounts")?;
        if workload == Workload::Trigger {
            client.exec(
                "CREATE OR REPLACE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     INSERT INTO audit VALUES (now(),
                         jsonb_build_object('aid', NEW.aid, 'old', OLD.abalance, 'new', NEW.abalance));
                     RETURN NULL;
                 END $$",
            )?;
            client.exec(
                "CREATE TRIGGER audit AFTER UPDATE ON pgbench_accounts FOR EACH ROW EXECUTE FUNCTION audit()",
            )?;
        }
        Ok(())
    }

    /// Stops the server, which gives its memory back.
    pub fn stop(&mut self) -> Result<()> {
        self.cluster.stop(StopMode::Fast)
    }

    /// Brings the stopped server back to where every round begins, everything in shared buffers. It is
    /// started anew, because where its memory happens to lie changes its speed for as long as it runs.
    pub fn prepare_round(&mut self, workload: Workload) -> Result<()> {
        self.cluster.start_again()?;
        let mut client = self.connect()?;
        if workload != Workload::Select {
            client.exec("TRUNCATE pgbench_history, audit")?;
            client.exec("VACUUM pgbench_accounts")?;
        }
        client.exec(
            "SELECT sum(pg_prewarm(oid)) FROM pg_class WHERE relkind IN ('r', 'i') AND relname LIKE 'pgbench%'",
        )?;
        client.exec("CHECKPOINT")?;
        Ok(())
    }

    /// Switches something off.
    pub fn switch_off(&mut self, setting: &str) -> Result<()> {
        self.cluster.set_and_reload(&[(setting, "off")])?;
        Ok(())
    }

    /// Stops every process of the server where it is.
    pub fn hold(&self) {
        // The postmaster first, so that no child is born between the list and the signal.
        let postmaster = self.cluster.postmaster_pid();
        signal(postmaster, libc::SIGSTOP);
        children(postmaster).into_iter().for_each(|child| signal(child, libc::SIGSTOP));
    }

    /// Lets them go on.
    pub fn release(&self) {
        let postmaster = self.cluster.postmaster_pid();
        if postmaster == 0 {
            return;
        }
        children(postmaster).into_iter().for_each(|child| signal(child, libc::SIGCONT));
        signal(postmaster, libc::SIGCONT);
    }

    /// The backends of a lane's clients, or of all.
    pub fn backends(&self, lane: Option<u32>) -> Vec<i32> {
        let user = lane.map_or(String::new(), lane_user);
        let title = format!("{user} {DATABASE} [local]");
        let mut pids = children(self.cluster.postmaster_pid());
        pids.retain(|&pid| command_line(pid).contains(&title));
        pids
    }

    /// Clock ticks of processor time used by all processes of the server so far.
    pub fn cpu_ticks(&self) -> Result<u64> {
        let postmaster = self.cluster.postmaster_pid();
        // A backend's time is its own until its parent has noticed its end, then its parent's; so wait for
        // that. A process that has ended has no command line.
        let ended = |pid: i32| command_line(pid).is_empty();
        wait_until("pgbench's connections end", PATIENCE, || {
            Ok(self.backends(None).is_empty() && !children(postmaster).into_iter().any(ended))
        })?;
        let own = ticks(postmaster, 4).ok_or("The server's processor time cannot be read.")?;
        Ok(own + children(postmaster).into_iter().filter_map(|pid| ticks(pid, 2)).sum::<u64>())
    }

    /// Makes sure that what is measured at the defaults really is at work: a keeper, heat on every slot,
    /// and calls of the trigger counted where this version counts them.
    pub fn require_observing(&self, workload: Workload) -> Result<()> {
        if !self.preloaded {
            return Ok(());
        }
        let mut client = self.connect()?;
        let mut wait = |what: &str, sql: &str, wanted: &str| {
            wait_until(what, PATIENCE, || Ok(client.query_one(sql)? == wanted))
        };
        wait(
            "the keeper runs",
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'foreshard keeper%' AND datname = current_database()",
            "1",
        )?;
        let hot = "SELECT count(*) FROM foreshard.heat_map WHERE heat > 0";
        wait("every slot is seen under load", hot, &PARTITIONS.to_string())?;
        let counted =
            self.connect()?.query_one("SELECT to_regclass('foreshard.stat_triggers') IS NOT NULL")?;
        if workload == Workload::Trigger && counted == "t" {
            let sql = "SELECT coalesce(sum(sampled_calls), 0) > 0 FROM foreshard.stat_triggers";
            wait("calls of the trigger are sampled", sql, "t")?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What is held still cannot be stopped.
        self.release();
    }
}

/// The user of a lane's clients, which tells their backends from those of others.
pub fn lane_user(lane: u32) -> String {
    format!("lane_{lane}")
}

/// The title of a server process.
fn command_line(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// The first two (its own) or all four (its ended children's too) processor times of a process, summed.
fn ticks(pid: i32, fields: usize) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; utime is the 12th field behind it.
    let times = text.rsplit_once(')')?.1.split_whitespace().skip(11).take(fields);
    times.map(|time| time.parse::<u64>().ok()).sum()
}

/// Fails unless both servers hold the same partitions, to the page.
pub fn require_same_table(servers: &mut [Server]) -> Result<()> {
    let mut shapes = Vec::new();
    for server in servers.iter() {
        shapes.push(server.shape()?);
    }
    let pairs = shapes.windows(2).flat_map(|two| two[0].lines().zip(two[1].lines()));
    let differing = pairs.into_iter().find(|(one, other)| one != other);
    if let Some((one, other)) = differing {
        return Err(Error::new(
            format!("The servers' partitions differ, so their speed says nothing:\n{one}\n{other}"),
            "",
        ));
    }
    let counts: Vec<usize> = shapes.iter().map(|shape| shape.lines().count()).collect();
    if counts.iter().any(|count| *count != PARTITIONS as usize) {
        return Err(Error::new(
            format!("The servers have {counts:?} partitions instead of {PARTITIONS}."),
            "",
        ));
    }
    Ok(())
}
