//! A coordinator and two nodes, which are two databases of another server, with the tables of the ledger.

use super::ledger;
use super::{Server, options};
use foreshard_test::{Cluster, ClusterOptions, Proxy, Result};

/// Rows of each table.
pub const ROWS: u64 = 4_000;

/// The phases of a move to or from a node in which its carrier can be held.
pub const PHASES: [&str; 8] =
    ["preflight", "capture", "copy", "index", "catch_up", "verify", "cutover", "retire"];

/// A server with two shards of its own and nodes n1, n2, which are two databases of another server, or servers of their own.
pub struct World {
    /// The coordinator.
    pub here: Server,
    /// The server whose databases are the nodes.
    pub there: Cluster,
    /// The link to the nodes.
    pub proxy: Option<Proxy>,
    /// The server that is n2, if that is one of its own.
    pub apart: Option<Cluster>,
    /// The link to it.
    pub apart_proxy: Option<Proxy>,
}

impl World {
    /// Starts both servers; nodes are not added.
    pub fn start(name: &str) -> Result<World> {
        World::start_with(name, false, false)
    }

    fn start_with(name: &str, behind_proxy: bool, two_servers: bool) -> Result<World> {
        let another =
            |name: &str| Cluster::start(&ClusterOptions::new(&format!("{name}-there")).set("fsync", "off"));
        let there = another(name)?;
        let apart = two_servers.then(|| another(&format!("{name}-2"))).transpose()?;
        let settings = options(name)
            .set("foreshard.copy_chunk", "64kB")
            .set("foreshard.node_check_interval", "1")
            .set("foreshard.node_failures", "1")
            .set("foreshard.max_lock_time", "200");
        let mut here = Server::start(&settings)?;
        there.connect("postgres")?.exec("CREATE DATABASE second")?;
        here.query("CREATE EXTENSION postgres_fdw; CREATE EXTENSION dblink")?;
        let proxy = behind_proxy.then(|| Proxy::start(&there)).transpose()?;
        let apart_proxy = match &apart {
            Some(apart) if behind_proxy => Some(Proxy::start(apart)?),
            _ => None,
        };
        let second = match &apart {
            Some(apart) => (apart, &apart_proxy, "postgres"),
            None => (&there, &proxy, "second"),
        };
        for (node, (cluster, proxy, database)) in [("n1", (&there, &proxy, "postgres")), ("n2", second)] {
            let place = match proxy {
                Some(proxy) => proxy.options(),
                None => format!("host '{}', port '{}'", cluster.socket_dir().display(), cluster.port()),
            };
            here.query(&format!(
                "CREATE SERVER s_{node} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({place}, dbname '{database}', \
                     connect_timeout '2', tcp_user_timeout '2000', keepalives_idle '5'); \
                 CREATE USER MAPPING FOR postgres SERVER s_{node} OPTIONS (user 'postgres')"
            ))?;
        }
        Ok(World { here, there, proxy, apart, apart_proxy })
    }

    /// With nodes and a shard on each.
    pub fn with_nodes(name: &str) -> Result<World> {
        World::start(name)?.add_nodes()
    }

    /// As [`with_nodes`](Self::with_nodes), behind a link that can be cut.
    pub fn with_proxy(name: &str) -> Result<World> {
        World::start_with(name, true, false)?.add_nodes()
    }

    /// As [`with_nodes`](Self::with_nodes), each node a server of its own, behind a link of its own if that is wanted.
    pub fn with_two_servers(name: &str, behind_proxies: bool) -> Result<World> {
        World::start_with(name, behind_proxies, true)?.add_nodes()
    }

    fn add_nodes(mut self) -> Result<World> {
        let world = &mut self;
        for node in ["n1", "n2"] {
            world.here.query(&format!(
                "SELECT foreshard.add_node('{node}', 's_{node}'); SELECT foreshard.add_shard('on_{node}', node => '{node}')"
            ))?;
        }
        Ok(self)
    }

    /// Both tables of the ledger, colocated, with unique indexes of their partitions only.
    pub fn tables(&mut self, slots: u32) -> Result<()> {
        ledger::create(&mut self.here, ROWS)?;
        self.here.query(&format!(
            "CREATE INDEX acc_v_idx ON acc (left(v, 20)); \
             ALTER TABLE acc ADD CONSTRAINT v_there CHECK (v <> ''); \
             SELECT foreshard.distribute('acc', 'id', {slots}, shards => '{{sa,sb}}', remote => true); \
             SELECT foreshard.distribute('note', 'id', colocate_with => 'acc', remote => true)"
        ))?;
        Ok(())
    }

    /// Begins to move a slot to a shard; the move's id.
    pub fn move_to(&mut self, slot: &str, shard: &str) -> Result<String> {
        self.here.query(&format!("SELECT foreshard.move_slot({slot}, '{shard}')"))
    }

    /// The shard of a slot.
    pub fn shard_of(&mut self, slot: &str) -> Result<String> {
        self.here.query(&format!("SELECT DISTINCT shard FROM foreshard.slots WHERE slot_id = {slot}"))
    }

    /// What is on the nodes beside the tables that hold slots.
    pub fn assert_nothing_left(&mut self) -> Result<()> {
        self.here.wait_query("SELECT count(*) FROM foreshard.remote_tables WHERE orphan", "0")?;
        self.here.wait_query("SELECT count(*) FROM foreshard.remote_table WHERE dressed", "0")?;
        self.here.assert_clean()?;
        let known = self.here.query("SELECT count(*) FROM foreshard.remote_table")?;
        let mut tables = 0;
        let second = self.apart.as_ref().map_or((&self.there, "second"), |apart| (apart, "postgres"));
        for (cluster, database) in [(&self.there, "postgres"), second] {
            let mut there = cluster.connect(database)?;
            let of = "FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'f', 'S') AND relname NOT LIKE 'foreshard\\_lease\\_%'";
            let names = there.query_one(&format!("SELECT coalesce(string_agg(relname, ' '), '') {of}"))?;
            let left = there.query_one(&format!(
                "SELECT count(*) {of} AND relname ~ '^foreshard_(inbox|state|log|changes|rest)_'"
            ))?;
            assert_eq!(left, "0", "{names}");
            let functions = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'foreshard\\_%' AND pronamespace = 'public'::regnamespace";
            assert_eq!(there.query_one(functions)?, "0");
            tables += there
                .query_one(&format!("SELECT count(*) {of} AND relkind = 'r'"))?
                .parse::<i64>()
                .unwrap_or(-1);
        }
        assert_eq!(tables.to_string(), known, "tables on the nodes");
        Ok(())
    }
}
