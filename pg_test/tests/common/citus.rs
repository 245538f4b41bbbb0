//! A Citus cluster of a coordinator and two workers; without Citus nothing.

use super::{Server, options};
use foreshard_test::{ClusterOptions, Result};
use std::io::Write;
use std::sync::OnceLock;

/// Shards of every table.
pub const SHARDS: u32 = 8;

/// Why the tests of Citus are skipped on this server; None: they are not.
fn missing() -> Result<Option<&'static str>> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = match FOUND.get() {
        Some(found) => *found,
        None => {
            let mut plain = Server::start(&options("citus-look"))?;
            let listed =
                plain.query("SELECT count(*) FROM pg_available_extensions WHERE name = 'citus'")? != "0";
            *FOUND.get_or_init(|| listed)
        }
    };
    Ok((!found).then_some("pg_available_extensions does not list it"))
}

/// Says that a test is skipped, and why, past the capture of what passing tests print; true: it is.
pub fn skipped(test: &str) -> Result<bool> {
    let why = missing()?;
    if let Some(why) = why {
        writeln!(std::io::stderr(), "skipped: citus is not available: {why} ({test})")?;
    }
    Ok(why.is_some())
}

/// A coordinator and two workers.
pub struct World {
    /// The coordinator.
    pub here: Server,
    /// The workers.
    pub workers: Vec<Server>,
}

fn citus_options(name: &str, preload: &str) -> ClusterOptions {
    options(name)
        .set("shared_preload_libraries", preload)
        .set("wal_level", "logical")
        .set("citus.enable_statistics_collection", "off")
        .set("citus.node_conninfo", "sslmode=disable")
        .set("foreshard.node_failures", "1")
}

impl World {
    /// Starts them, with distributed tables.
    pub fn start(name: &str) -> Result<World> {
        World::start_with(name, ["citus", "citus"])
    }

    /// The same, adopted, with a foreshard on the first worker that measures every statement.
    pub fn measuring(name: &str) -> Result<World> {
        let mut world = World::start_with(name, ["citus,foreshard", "citus"])?;
        world.workers[0].query(
            "SET citus.enable_ddl_propagation = off; CREATE EXTENSION foreshard; RESET citus.enable_ddl_propagation",
        )?;
        world.workers[0]
            .set(&[("foreshard.statement_sample_interval", "1"), ("foreshard.observe_budget", "100")])?;
        world.here.query("SELECT foreshard.add_node('shop', engine => 'citus')")?;
        Ok(world)
    }

    /// Starts them; what the workers preload.
    fn start_with(name: &str, preload: [&str; 2]) -> Result<World> {
        let mut here = Server::bare(&citus_options(name, "citus,foreshard"))?;
        let mut workers = Vec::new();
        // How Citus reaches its own server.
        let own = here.cluster.socket_dir().display().to_string();
        here.set(&[("citus.local_hostname", &own)])?;
        here.query("CREATE EXTENSION citus")?;
        let host = |server: &Server| {
            format!("'{}', {}", server.cluster.socket_dir().display(), server.cluster.port())
        };
        here.query(&format!("SELECT citus_set_coordinator_host({})", host(&here)))?;
        for (number, preload) in (1..).zip(preload) {
            let mut worker = Server::bare(&citus_options(&format!("{name}-w{number}"), preload))?;
            let own = worker.cluster.socket_dir().display().to_string();
            worker.set(&[("citus.local_hostname", &own)])?;
            worker.query("CREATE EXTENSION citus")?;
            here.query(&format!("SELECT citus_add_node({})", host(&worker)))?;
            workers.push(worker);
        }
        here.query(&format!(
            "CREATE TABLE tenant (id bigint PRIMARY KEY, v int NOT NULL DEFAULT 0); \
             CREATE TABLE item (tenant bigint, n int, PRIMARY KEY (tenant, n)); \
             CREATE TABLE lone (id bigint PRIMARY KEY, v int); CREATE TABLE everywhere (id int PRIMARY KEY); \
             SELECT create_distributed_table('tenant', 'id', shard_count := {SHARDS}); \
             SELECT create_distributed_table('item', 'tenant', colocate_with := 'tenant'); \
             SELECT create_distributed_table('lone', 'id', shard_count := 2, colocate_with := 'none'); \
             SELECT create_reference_table('everywhere'); \
             INSERT INTO tenant SELECT g FROM generate_series(1, 1000) g; INSERT INTO item SELECT g, 1 FROM generate_series(1, 1000) g"
        ))?;
        // What is only on the coordinator need not be on the workers.
        here.query("SET citus.enable_ddl_propagation = off; CREATE EXTENSION foreshard; RESET citus.enable_ddl_propagation")?;
        Ok(World { here, workers })
    }

    /// The same, adopted.
    pub fn adopted(name: &str) -> Result<World> {
        let mut world = World::start(name)?;
        world.here.query("SELECT foreshard.add_node('shop', engine => 'citus')")?;
        Ok(world)
    }

    /// A slot of the tenants on the node of a number, the first or the second.
    pub fn slot_on(&mut self, number: usize) -> Result<String> {
        let shard = self.shard(number)?;
        self.slot_on_shard(&shard)
    }

    /// A slot of the tenants on a shard.
    pub fn slot_on_shard(&mut self, shard: &str) -> Result<String> {
        self.here.query(&format!(
            "SELECT min(slot_id) FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass AND shard = '{shard}'"
        ))
    }

    /// The name of the shard that a worker is.
    pub fn shard(&mut self, number: usize) -> Result<String> {
        self.here
            .query(&format!("SELECT shard FROM foreshard.shards ORDER BY shard_id LIMIT 1 OFFSET {number}"))
    }

    /// The shard of a slot.
    pub fn shard_of(&mut self, slot: &str) -> Result<String> {
        self.here.query(&format!("SELECT DISTINCT shard FROM foreshard.slots WHERE slot_id = {slot}"))
    }

    /// Rows of tenants with items, and the sum of their values.
    pub fn rows(&mut self) -> Result<String> {
        self.here.query("SELECT count(*), sum(v) FROM tenant JOIN item ON tenant = id")
    }
}

/// Shards that Citus has elsewhere than the catalog says.
pub const ELSEWHERE: &str = "SELECT count(*) FROM foreshard.slots s JOIN pg_dist_placement p ON p.shardid = s.citus_shard \
     JOIN pg_dist_node d ON d.groupid = p.groupid JOIN foreshard.nodes n ON n.node = s.shard WHERE n.citus_node <> d.nodeid";

/// The arguments of a move by hand of slot SLOT to shard SHARD.
pub const MOVE_ARGUMENTS: &str = "(SELECT min(citus_shard) FROM foreshard.citus_shard WHERE slot_id = SLOT), \
     (SELECT d.nodename FROM foreshard.slots s JOIN foreshard.nodes n ON n.node = s.shard JOIN pg_dist_node d ON d.nodeid = n.citus_node WHERE s.slot_id = SLOT LIMIT 1), \
     (SELECT d.nodeport FROM foreshard.slots s JOIN foreshard.nodes n ON n.node = s.shard JOIN pg_dist_node d ON d.nodeid = n.citus_node WHERE s.slot_id = SLOT LIMIT 1), \
     (SELECT d.nodename FROM foreshard.nodes n JOIN pg_dist_node d ON d.nodeid = n.citus_node WHERE n.node = 'SHARD'), \
     (SELECT d.nodeport FROM foreshard.nodes n JOIN pg_dist_node d ON d.nodeid = n.citus_node WHERE n.node = 'SHARD')";

/// Waits until the carrier is inside Citus' move.
pub fn wait_for_citus(here: &mut Server, carrier: i32) -> Result<()> {
    let locks = format!(
        "SELECT count(*) > 0 FROM pg_locks WHERE pid = {carrier} AND locktype = 'advisory' AND objsubid = 16"
    );
    here.wait_query(&locks, "t")
}
