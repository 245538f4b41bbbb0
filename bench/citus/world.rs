//! The servers: a coordinator with foreshard, and plain workers.

use foreshard_test::process::{pin, processors};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, wait_until};
use std::time::Duration;

/// Shards of the table.
pub const SHARDS: u32 = 32;
/// Rows of a tenant: what a question looks at.
pub const ROWS: u32 = 1_000;
/// Tenants that are hot, each on a shard of its own.
const HOT: usize = 8;
/// How long a rebalance or a move may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where every shard is, as arguments of Citus' functions.
const PLACEMENT: &str = "SELECT p.shardid, format('%L, %s', n.nodename, n.nodeport) AS node \
    FROM pg_dist_placement p JOIN pg_dist_node n ON n.groupid = p.groupid AND n.noderole = 'primary' JOIN pg_dist_shard s ON s.shardid = p.shardid \
    WHERE s.logicalrelid = 'item'::regclass AND p.shardstate = 1 ORDER BY 1";

/// Shards that Citus has elsewhere than foreshard knows.
const ELSEWHERE: &str = "SELECT count(*) FROM foreshard.slots s JOIN pg_dist_placement p ON p.shardid = s.citus_shard AND p.shardstate = 1 \
    JOIN pg_dist_node d ON d.groupid = p.groupid AND d.noderole = 'primary' JOIN foreshard.nodes n ON n.node = s.shard WHERE n.citus_node <> d.nodeid";

/// All servers.
pub struct World {
    coordinator: Cluster,
    _workers: Vec<Cluster>,
    /// Where every shard was at first.
    home: Vec<(i64, String)>,
}

/// What a rebalance comes to.
pub struct Planned {
    /// Moves.
    pub moves: usize,
    /// Bytes that they move.
    pub bytes: f64,
}

/// A move that foreshard made, in seconds since a day began.
pub struct Move {
    /// When it was filed.
    pub filed_s: f64,
    /// When its slot was on the other node; None: it is not.
    pub swapped_s: Option<f64>,
    /// Bytes that it moved.
    pub bytes: f64,
    /// It was made for what was only foreseen.
    pub foreseen: bool,
}

fn server(name: &str, preload: &str) -> Result<Cluster> {
    let options = ClusterOptions::new(name)
        .set("shared_preload_libraries", preload)
        .set("wal_level", "logical")
        .set("citus.enable_statistics_collection", "off")
        .set("foreshard.bucket", "2")
        .set("foreshard.plan_interval", "5");
    let mut cluster = Cluster::start(&options)?;
    let own = cluster.socket_dir().display().to_string();
    cluster
        .set_and_reload(&[("citus.local_hostname", &own), ("citus.background_task_queue_interval", "1s")])?;
    cluster.connect("postgres")?.exec("CREATE EXTENSION citus")?;
    Ok(cluster)
}

impl World {
    /// Starts everything.
    pub fn start() -> Result<World> {
        let listed = Cluster::start(&ClusterOptions::new("citus-look"))?
            .connect("postgres")?
            .query_one("SELECT count(*) FROM pg_available_extensions WHERE name = 'citus'")?;
        if listed == "0" {
            return Err(Error::new(
                "Citus is not available: pg_available_extensions does not list it.",
                "Install it into the server that the bench runs on.",
            ));
        }
        let coordinator = server("bench-citus", "citus,foreshard")?;
        let mut client = coordinator.connect("postgres")?;
        let place = |cluster: &Cluster| format!("'{}', {}", cluster.socket_dir().display(), cluster.port());
        client.exec(&format!("SELECT citus_set_coordinator_host({})", place(&coordinator)))?;
        let mut workers = Vec::new();
        for (number, processor) in processors().into_iter().take(2).enumerate() {
            let worker = server(&format!("bench-citus-w{number}"), "citus")?;
            pin(worker.postmaster_pid(), &[processor]);
            client.exec(&format!("SELECT citus_add_node({})", place(&worker)))?;
            workers.push(worker);
        }
        Ok(World { coordinator, _workers: workers, home: Vec::new() })
    }

    /// Connects to the coordinator.
    pub fn connect(&self) -> Result<Client> {
        Ok(self.coordinator.connect("postgres")?)
    }

    fn one(&self, sql: &str) -> Result<String> {
        Ok(self.connect()?.query_one(sql)?)
    }

    /// Versions.
    pub fn shape(&self) -> Result<String> {
        self.one(
            "SELECT format('Citus %s, PostgreSQL %s', extversion, current_setting('server_version')) FROM pg_extension WHERE extname = 'citus'",
        )
    }

    /// Makes the table, and lets foreshard adopt the cluster.
    pub fn fill(&mut self, tenants: u32) -> Result<()> {
        let mut client = self.connect()?;
        client.exec(&format!(
            "CREATE TABLE item (tenant bigint, n int, v text, PRIMARY KEY (tenant, n)); \
             SELECT create_distributed_table('item', 'tenant', shard_count := {SHARDS})"
        ))?;
        client.exec(&format!(
            "INSERT INTO item SELECT t, n, repeat('x', 40) FROM generate_series(1, {tenants}) t, generate_series(1, {ROWS}) n"
        ))?;
        client.exec("VACUUM (ANALYZE) item")?;
        client.exec("SET citus.enable_ddl_propagation = off")?;
        client.exec("CREATE EXTENSION foreshard")?;
        client.exec(
            "SELECT foreshard.add_node('bench', engine => 'citus'), foreshard.register_citus_strategy()",
        )?;
        self.home = self.placement()?;
        Ok(())
    }

    /// Tenants on different shards of one node.
    pub fn hot(&self, tenants: u32) -> Result<Vec<String>> {
        let text = self.one(&format!(
            "SELECT string_agg(q.t::text, ' ') FROM (SELECT min(t) AS t FROM (SELECT t, get_shard_id_for_distribution_column('item', t) AS shardid \
                 FROM generate_series(1, {tenants}) t) k JOIN citus_shards c USING (shardid) \
             WHERE c.nodeport = (SELECT min(nodeport) FROM citus_shards WHERE table_name = 'item'::regclass) GROUP BY shardid ORDER BY 1 LIMIT {HOT}) q"
        ))?;
        let found: Vec<String> = text.split_whitespace().map(String::from).collect();
        if found.len() == HOT { Ok(found) } else { Err(Error::new("Too few tenants.", "--tenants 400")) }
    }

    /// Rebalances.
    pub fn rebalance(&self, strategy: &str) -> Result<Planned> {
        let mut client = self.connect()?;
        let rows = client.exec(&format!(
            "SELECT count(*) AS moves, coalesce(sum(t.bytes), 0) AS bytes \
             FROM get_rebalance_table_shards_plan('item', rebalance_strategy := '{strategy}') p LEFT JOIN foreshard.citus_shard t ON t.citus_shard = p.shardid"
        ))?;
        let planned = Planned {
            moves: rows.parse(0, "moves").unwrap_or(0),
            bytes: rows.parse(0, "bytes").unwrap_or(0.0),
        };
        client.exec(&format!("SELECT citus_rebalance_start(rebalance_strategy := '{strategy}')"))?;
        wait_until("the rebalance ends", PATIENCE, || {
            let left = "SELECT count(*) FROM pg_dist_background_job WHERE state::text NOT IN ('finished', 'failed', 'cancelled')";
            Ok(client.query_one(left)? == "0")
        })?;
        Ok(planned)
    }

    fn placement(&self) -> Result<Vec<(i64, String)>> {
        let rows = self.connect()?.exec(PLACEMENT)?;
        let place = |row| Some((rows.parse::<i64>(row, "shardid")?, rows.field(row, "node")?.to_string()));
        (0..rows.len()).map(|row| place(row).ok_or_else(|| "A shard on no node.".into())).collect()
    }

    /// Moves every shard to where it was at first, while nobody writes and foreshard moves nothing.
    pub fn back(&self) -> Result<()> {
        let mut client = self.connect()?;
        let mut said = String::new();
        let ended = wait_until("all shards are where they were", PATIENCE, || {
            let now = self.placement()?;
            let away = self.home.iter().zip(&now).filter(|((_, home), (_, node))| home != node);
            let mut is_home = now.len() == self.home.len();
            for ((shard, home), (_, node)) in away {
                is_home = false;
                // One whose former copy Citus has not dropped yet is refused: it has its turn again.
                let back = client.exec(&format!(
                    "SELECT citus_move_shard_placement({shard}, {node}, {home}, shard_transfer_mode := 'block_writes')"
                ));
                if let Err(error) = back {
                    said = error.to_string();
                }
            }
            Ok(is_home)
        });
        ended.map_err(|error| Error::new(error.to_string(), said))?;
        wait_until("foreshard knows where the shards are", PATIENCE, || {
            Ok(client.query_one(ELSEWHERE)? == "0")
        })?;
        client.exec("ANALYZE item")?;
        Ok(())
    }

    /// Lets days have this length, and forgets what was seen before them.
    pub fn begin_days(&mut self, day_s: u32, bucket_s: u32) -> Result<()> {
        let (day, bucket) = (format!("{day_s}s"), format!("{bucket_s}s"));
        // Yesterday's peak is forgotten in the night, as it is where nights have hours.
        let half_life = format!("{}s", (bucket_s / 2).max(1));
        self.coordinator.set_and_reload(&[
            ("foreshard.mode", "off"),
            ("foreshard.bucket", &bucket),
            ("foreshard.plan_interval", &bucket),
            ("foreshard.season", &day),
            ("foreshard.forecast_horizon", &day),
            ("foreshard.heat_half_life", &half_life),
            ("foreshard.cooldown", "0"),
            ("foreshard.rollback_window", "0"),
            // Citus' moves have no canary, and what it would take is part of what a move is taken to take.
            ("foreshard.canary_steps", ""),
            ("foreshard.canary_dwell", "0"),
        ])?;
        self.wait_moves()?;
        let mut client = self.connect()?;
        for table in ["heat_history", "outcome", "group_trust", "forecast", "forecast_due", "forecast_error"]
        {
            client.exec(&format!("DELETE FROM foreshard.{table}"))?;
        }
        drop(client);
        // What the keeper remembers of it goes with the keeper.
        self.coordinator.restart()?;
        let watches =
            "SELECT coalesce(max(observed_at) > pg_postmaster_start_time(), false) FROM foreshard.slot_heat";
        wait_until("loads are watched", PATIENCE, || Ok(self.one(watches)? == "t"))
    }

    /// Changes what foreshard does with what it finds.
    pub fn set_mode(&mut self, mode: &str) -> Result<()> {
        self.coordinator.set_and_reload(&[("foreshard.mode", mode)])
    }

    /// Waits until foreshard moves nothing.
    pub fn wait_moves(&self) -> Result<()> {
        let mut client = self.connect()?;
        wait_until("the moves end", PATIENCE, || {
            Ok(client.query_one("SELECT count(*) FROM foreshard.move WHERE NOT finished")? == "0")
        })
    }

    /// Whether what was foreseen is trusted.
    pub fn is_trusted(&self) -> Result<bool> {
        Ok(self.one("SELECT min(trust) FROM foreshard.group_trust")? == "earned")
    }

    /// What is known of forecasts, and what is thought of them.
    pub fn standing(&self) -> Result<String> {
        self.one(
            "SELECT concat_ws('; ', \
                 coalesce((SELECT 'trust ' || min(t.trust) || ' by ' || sum(t.outcomes) || ' outcomes' FROM foreshard.group_trust t), 'trust unknown'), \
                 (SELECT 'covered ' || round(avg(e.coverage)::numeric, 2) FROM foreshard.forecast_errors e), \
                 (SELECT string_agg(DISTINCT f.model, ', ') FROM foreshard.forecasts f))",
        )
    }

    /// What is recommended, and why it is not done.
    pub fn recommended(&self) -> Result<String> {
        self.one(
            "SELECT coalesce(string_agg(q.n || ' ' || q.why, ', ' ORDER BY q.why), 'nothing') \
             FROM (SELECT coalesce(r.refusal, 'taken') AS why, count(*) AS n FROM foreshard.recommendations r WHERE r.action = 'move' GROUP BY 1) q",
        )
    }

    /// The most buckets for which a shard has been overloaded.
    pub fn hot_buckets(&self) -> Result<String> {
        self.one("SELECT max(hot_buckets) FROM foreshard.slot_heat")
    }

    /// Lets so many foreseen steps have paid.
    pub fn give(&self, outcomes: u32, bucket_s: u32) -> Result<()> {
        self.connect()?.exec(&format!(
            "INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, from_capacity, to_capacity, \
                 capacity, least_gain, drains, foreseen, resolution_s, made_at, due_at, judged_at, paid) \
             SELECT group_id, 0, 1, 2, 0.95, 0.95, '{{}}', '{{}}', 1, 1, 1, 0, false, true, {bucket_s}, now(), now(), now(), true \
             FROM foreshard.colocation_group, generate_series(1, {outcomes})"
        ))?;
        Ok(())
    }

    /// Moves that foreshard filed since a day began, s since 1970.
    pub fn moves(&self, begun_s: f64) -> Result<Vec<Move>> {
        let rows = self.connect()?.exec(&format!(
            "SELECT extract(epoch FROM created_at) - {begun_s:.3} AS filed, extract(epoch FROM swapped_at) - {begun_s:.3} AS swapped, \
                    coalesce(bytes_copied, 0) AS bytes, (reason LIKE '%will be above%') IS TRUE AS foreseen \
             FROM foreshard.move WHERE created_at >= to_timestamp({begun_s:.3}) ORDER BY move_id"
        ))?;
        let read = |row| Move {
            filed_s: rows.parse(row, "filed").unwrap_or(0.0),
            swapped_s: rows.parse(row, "swapped"),
            bytes: rows.parse(row, "bytes").unwrap_or(0.0),
            foreseen: rows.field(row, "foreseen") == Some("t"),
        };
        Ok((0..rows.len()).map(read).collect())
    }
}
