//! What foreshard as a rebalance strategy is worth on a skewed load.
//!
//! A Citus cluster of a coordinator and two workers, each worker on a processor of its own. All tenants have as many rows, and
//! the shards are spread evenly; but the tenants that nine of ten questions are about live on shards of one worker. In one run,
//! on the same data and under the same load: throughput after `citus_rebalance_start` by shard count, by disk size, and by
//! foreshard, which has only seen the load.
//!
//! `foreshard-bench-citus [--seconds N] [--tenants N] [--clients N]` (20 s, 400 tenants of 1,000 rows, 8 clients). Needs an
//! installed Citus; exit code 1 when the bar is missed or there is none.

use foreshard_test::process::{pin, processors};
use foreshard_test::{Cluster, ClusterOptions, Error, Result, wait_until};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

/// The least throughput of foreshard over that of the better one of the others.
const LEAST_RATIO: f64 = 1.5;
/// Shards of the table.
const SHARDS: u32 = 32;
/// Tenants that are hot, each on a shard of its own, and the percentage of questions about them.
const HOT: u32 = 8;
const HOT_PERCENT: u32 = 90;
/// Rows of a tenant: what a question looks at.
const ROWS: u32 = 1_000;
/// How long a rebalance may take.
const PATIENCE: Duration = Duration::from_secs(300);

struct Options {
    seconds: u32,
    tenants: u32,
    clients: u32,
}

fn main() -> ExitCode {
    foreshard_test::bars::end(parse().and_then(|options| run(&options)))
}

fn parse() -> Result<Options> {
    let mut options = Options { seconds: 20, tenants: 400, clients: 8 };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u32>().ok());
        match (name.as_str(), value) {
            ("--seconds", Some(number)) if number >= 1 => options.seconds = number,
            ("--tenants", Some(number)) if number >= 100 => options.tenants = number,
            ("--clients", Some(number)) if number >= 1 => options.clients = number,
            _ => return Err(Error::new(format!("{name} needs a number."), "See bench/citus/main.rs.")),
        }
    }
    Ok(options)
}

struct World {
    coordinator: Cluster,
    _workers: Vec<Cluster>,
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
    fn start() -> Result<World> {
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
        Ok(World { coordinator, _workers: workers })
    }

    fn one(&self, sql: &str) -> Result<String> {
        Ok(self.coordinator.connect("postgres")?.query_one(sql)?)
    }

    fn fill(&self, tenants: u32) -> Result<()> {
        let mut client = self.coordinator.connect("postgres")?;
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
        Ok(())
    }

    /// Tenants on different shards of one node.
    fn hot(&self, tenants: u32) -> Result<Vec<String>> {
        let text = self.one(&format!(
            "SELECT string_agg(q.t::text, ' ') FROM (SELECT min(t) AS t FROM (SELECT t, get_shard_id_for_distribution_column('item', t) AS shardid \
                 FROM generate_series(1, {tenants}) t) k JOIN citus_shards c USING (shardid) \
             WHERE c.nodeport = (SELECT min(nodeport) FROM citus_shards WHERE table_name = 'item'::regclass) GROUP BY shardid ORDER BY 1 LIMIT {HOT}) q"
        ))?;
        let found: Vec<String> = text.split_whitespace().map(String::from).collect();
        if found.len() == HOT as usize {
            Ok(found)
        } else {
            Err(Error::new("Too few tenants.", "--tenants 400"))
        }
    }

    /// Questions per second.
    fn load(&self, script: &std::path::Path, clients: u32, seconds: u32) -> Result<f64> {
        let install = self.coordinator.install();
        let output = install
            .user
            .command(&install.program("pgbench"))
            .arg("--host")
            .arg(self.coordinator.socket_dir())
            .args(["--port", &self.coordinator.port().to_string(), "--username=postgres", "--no-vacuum"])
            .args(["--protocol=prepared", "--jobs=2", "--client", &clients.to_string()])
            .args(["--time", &seconds.to_string(), "--random-seed=7", "--file"])
            .arg(script)
            .arg("postgres")
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        tps.ok_or_else(|| {
            Error::new(
                "pgbench reported no throughput.",
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        })
    }

    /// Rebalances; how many moves of how many bytes were planned.
    fn rebalance(&self, strategy: &str) -> Result<String> {
        let planned = self.one(&format!(
            "SELECT concat(count(*), ' moves, ', pg_size_pretty(coalesce(sum(t.bytes), 0))) \
             FROM get_rebalance_table_shards_plan('item', rebalance_strategy := '{strategy}') p LEFT JOIN foreshard.citus_shard t ON t.citus_shard = p.shardid"
        ))?;
        let mut client = self.coordinator.connect("postgres")?;
        client.exec(&format!("SELECT citus_rebalance_start(rebalance_strategy := '{strategy}')"))?;
        wait_until("the rebalance ends", PATIENCE, || {
            let left = "SELECT count(*) FROM pg_dist_background_job WHERE state::text NOT IN ('finished', 'failed', 'cancelled')";
            Ok(client.query_one(left)? == "0")
        })?;
        Ok(planned)
    }
}

fn script(hot: &[String], tenants: u32) -> String {
    let cases: Vec<String> = hot.iter().zip(1..).map(|(id, n)| format!("when :h = {n} then {id}")).collect();
    format!(
        "\\set r random(1, 100)\n\\set h random(1, {})\n\\set any random(1, {tenants})\n\
         \\set t case when :r > {HOT_PERCENT} then :any {} else 1 end\n\
         SELECT sum(length(md5(md5(md5(v || n))))) FROM item WHERE tenant = :t;\n",
        hot.len(),
        cases.join(" ")
    )
}

fn run(options: &Options) -> Result<bool> {
    if processors().len() < 2 {
        return Err(Error::new("The bench needs two processors.", ""));
    }
    let world = World::start()?;
    world.fill(options.tenants)?;
    let hot = world.hot(options.tenants)?;
    let path = world.coordinator.data_dir().join("../load.sql");
    std::fs::write(&path, script(&hot, options.tenants))?;
    println!(
        "Citus {}, {}",
        world.one("SELECT extversion FROM pg_extension WHERE extname = 'citus'")?,
        world.one("SHOW server_version")?
    );
    println!(
        "{} tenants of {ROWS} rows in {SHARDS} shards; {HOT_PERCENT} % of the questions about {HOT} of one worker",
        options.tenants
    );
    // What foreshard is to know of the load.
    world.load(&path, options.clients, options.seconds)?;
    let mut found = Vec::new();
    for strategy in ["by_shard_count", "by_disk_size", "foreshard"] {
        let moved = world.rebalance(strategy)?;
        let tps = world.load(&path, options.clients, options.seconds)?;
        println!("{strategy:<16} {tps:>9.0} questions/s  ({moved})");
        found.push(tps);
    }
    let better = found[0].max(found[1]);
    let ratio = found[2] / better.max(f64::MIN_POSITIVE);
    let verdict = if ratio >= LEAST_RATIO { "PASS" } else { "MISSED" };
    println!(
        "{verdict:<8} {ratio:>9.2} {LEAST_RATIO:>9.2}  throughput of foreshard, to the better of the others"
    );
    Ok(ratio >= LEAST_RATIO)
}
