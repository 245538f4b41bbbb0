//! The servers: a coordinator with foreshard, and nodes, which have one only to measure.

use crate::Options;
use crate::best::Places;
use crate::share::Share;
use foreshard_test::process::{pin, processors};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, wait_until};
use std::collections::HashMap;
use std::time::Duration;

/// How long moves may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What differs from the defaults, because the bench has minutes, not days.
const SETTINGS: [(&str, &str); 12] = [
    ("foreshard.mode", "off"),
    ("foreshard.bucket", "1s"),
    ("foreshard.plan_interval", "2s"),
    ("foreshard.forecast_horizon", "60s"),
    ("foreshard.heat_half_life", "10s"),
    ("foreshard.imbalance_high", "0.05"),
    ("foreshard.imbalance_low", "0.02"),
    ("foreshard.min_confidence", "0.6"),
    ("foreshard.cooldown", "10s"),
    ("foreshard.rollback_window", "0"),
    ("foreshard.node_check_interval", "1s"),
    ("foreshard.max_lock_time", "200ms"),
];

/// All servers.
pub struct World {
    coordinator: Cluster,
    nodes: Vec<Cluster>,
    /// The slot of every key.
    slots: Vec<i64>,
    /// Behind the servers: those have to be gone when it is dropped.
    shares: Shares,
}

fn server(name: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
    let mut options =
        ClusterOptions::new(name).set("autovacuum", "off").set("jit", "off").set("fsync", "off");
    for (name, value) in settings {
        options = options.set(name, value);
    }
    Cluster::start(&options)
}

/// What share of all processors the nodes have where they have to have quotas; the rest is for coordinator and clients, so that
/// those are not what is measured.
const SHARE_OF_NODES: f64 = 0.5;

/// The processors of every node and, last, those of the coordinator and the clients: each its own, as many as there are.
/// None: there are too few.
fn own_processors(nodes: usize) -> Option<Vec<Vec<usize>>> {
    let all = processors();
    if all.len() <= nodes {
        return None;
    }
    let each = (all.len() - 1) / nodes;
    let mut shares: Vec<Vec<usize>> = all.chunks(each).take(nodes).map(<[usize]>::to_vec).collect();
    shares.push(all.iter().copied().skip(each * nodes).collect());
    Some(shares)
}

/// Who runs where.
enum Shares {
    Pinned(Vec<Vec<usize>>),
    /// Quotas, each of so much of a processor.
    Quota(Vec<Share>, f64),
}

impl Shares {
    fn new(nodes: usize) -> Result<Shares> {
        if let Some(own) = own_processors(nodes) {
            return Ok(Shares::Pinned(own));
        }
        let each = processors().len() as f64 * SHARE_OF_NODES / nodes as f64;
        let quotas = (0..nodes).map(|node| Share::of(&format!("node{node}"), each)).collect::<Result<_>>()?;
        Ok(Shares::Quota(quotas, each))
    }

    fn of_coordinator(&self, pid: i32) {
        if let Shares::Pinned(own) = self {
            pin(pid, own.last().map_or(&[], Vec::as_slice));
        }
    }

    fn of_node(&self, node: usize, pid: i32) -> Result<()> {
        match self {
            Shares::Pinned(own) => pin(pid, &own[node]),
            Shares::Quota(quotas, _) => quotas[node].take(pid)?,
        }
        Ok(())
    }

    fn told(&self) -> String {
        match self {
            Shares::Pinned(own) => {
                let own: Vec<String> = own.iter().map(|share| format!("{share:?}")).collect();
                format!("processors of nodes and, last, of coordinator and clients: {}", own.join(" "))
            }
            Shares::Quota(_, each) => format!(
                "every node may use {each:.2} of a processor; there are {} for all, coordinator and clients included",
                processors().len()
            ),
        }
    }
}

impl World {
    /// Starts everything and distributes a table with a row for every key.
    pub fn start(options: &Options, keys: usize) -> Result<World> {
        let shares = Shares::new(options.nodes)?;
        let coordinator = server("scale-coordinator", &SETTINGS)?;
        shares.of_coordinator(coordinator.postmaster_pid());
        let mut client = coordinator.connect("postgres")?;
        client.exec("CREATE EXTENSION foreshard; CREATE EXTENSION postgres_fdw; CREATE EXTENSION dblink")?;
        client.exec("SELECT foreshard.add_shard('home', 'pg_default')")?;
        let mut nodes = Vec::new();
        let mut names = Vec::new();
        for number in 0..options.nodes {
            let settings = if options.measured {
                ("foreshard.statement_sample_interval", "10")
            } else {
                ("shared_preload_libraries", "")
            };
            let node = server(&format!("scale-node{number}"), &[settings])?;
            shares.of_node(number, node.postmaster_pid())?;
            if options.measured {
                node.connect("postgres")?.exec("CREATE EXTENSION foreshard")?;
            }
            client.exec(&format!(
                "CREATE SERVER s{number} FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}', port '{}', dbname 'postgres', \
                     connect_timeout '5', tcp_user_timeout '5000', keepalives_idle '5'); \
                 CREATE USER MAPPING FOR postgres SERVER s{number} OPTIONS (user 'postgres'); \
                 SELECT foreshard.add_node('n{number}', 's{number}'), foreshard.add_shard('on{number}', node => 'n{number}')",
                node.socket_dir().display(),
                node.port()
            ))?;
            names.push(format!("on{number}"));
            nodes.push(node);
        }
        client.exec(&format!(
            "CREATE TABLE item (id bigint PRIMARY KEY, v text NOT NULL); \
             INSERT INTO item SELECT g, md5(g::text) FROM generate_series(0, {}) g; \
             SELECT foreshard.distribute('item', 'id', {}, shards => '{{{}}}', remote => true); \
             SELECT foreshard.drain_shard('home')",
            keys.saturating_sub(1),
            options.slots,
            names.join(",")
        ))?;
        let mut world = World { coordinator, nodes, slots: vec![0; keys], shares };
        world.wait_moves()?;
        let rows = client.exec(
            "SELECT i.id, p.slot_id FROM item i JOIN foreshard.slot_partition p ON p.partition = i.tableoid",
        )?;
        for row in 0..rows.len() {
            let (key, slot) = (rows.parse::<usize>(row, "id"), rows.parse::<i64>(row, "slot_id"));
            let (Some(key), Some(slot)) = (key, slot) else { return Err("A key without a slot.".into()) };
            world.slots[key] = slot;
        }
        Ok(world)
    }

    /// Who runs where, and that questions are answered by the nodes.
    pub fn shape(&self) -> Result<String> {
        let mut client = self.connect()?;
        let plan = client.query_one("EXPLAIN (VERBOSE, COSTS off, FORMAT json) SELECT id FROM item WHERE id = 1 AND length(md5(repeat(v, 2))) = 32")?;
        if !plan.contains("md5(repeat(v, 2))") || plan.contains("\"Filter\"") {
            return Err(Error::new(format!("The nodes do not answer the questions: {plan}"), ""));
        }
        Ok(format!("{}; {}", client.query_one("SHOW server_version")?, self.shares.told()))
    }

    /// How many nodes.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Connects to the coordinator.
    pub fn connect(&self) -> Result<Client> {
        Ok(self.coordinator.connect("postgres")?)
    }

    /// Connects to a node.
    pub fn connect_to(&self, node: usize) -> Result<Client> {
        Ok(self.nodes[node].connect("postgres")?)
    }

    /// The slot of a key.
    pub fn slot_of(&self, key: u32) -> i64 {
        self.slots.get(key as usize).copied().unwrap_or(0)
    }

    /// How often every slot is accessed.
    pub fn counts(&self, accesses: &[u32]) -> Result<Vec<(i64, u64)>> {
        let mut counts: HashMap<i64, u64> = self.places()?.keys().map(|slot| (*slot, 0)).collect();
        for key in accesses {
            *counts.entry(self.slot_of(*key)).or_default() += 1;
        }
        let mut counts: Vec<(i64, u64)> = counts.into_iter().collect();
        counts.sort_unstable();
        Ok(counts)
    }

    /// The node of every slot.
    pub fn places(&self) -> Result<Places> {
        let rows = self
            .connect()?
            .exec("SELECT DISTINCT slot_id, shard FROM foreshard.slots WHERE shard LIKE 'on%'")?;
        let place = |row| {
            Some((
                rows.parse::<i64>(row, "slot_id")?,
                rows.field(row, "shard")?.strip_prefix("on")?.parse().ok()?,
            ))
        };
        (0..rows.len()).map(|row| place(row).ok_or_else(|| "A slot on no node.".into())).collect()
    }

    /// Slots on a node, with their tables there.
    pub fn tables_on(&self, node: usize) -> Result<Vec<(i64, String)>> {
        let rows = self.connect()?.exec(&format!(
            "SELECT p.slot_id, t.remote_table FROM foreshard.remote_tables t JOIN foreshard.slot_partition p ON p.partition = t.partition WHERE t.node = 'n{node}'"
        ))?;
        let table =
            |row| Some((rows.parse::<i64>(row, "slot_id")?, rows.field(row, "remote_table")?.to_string()));
        (0..rows.len()).map(|row| table(row).ok_or_else(|| "A table without a slot.".into())).collect()
    }

    /// Moves every slot where it should be.
    pub fn place(&mut self, wanted: &Places) -> Result<()> {
        let now = self.places()?;
        let mut client = self.connect()?;
        for (slot, node) in wanted.iter().filter(|(slot, node)| now.get(slot) != Some(node)) {
            client.exec(&format!("SELECT foreshard.move_slot({slot}, 'on{node}')"))?;
        }
        self.wait_moves()?;
        if self.places()? == *wanted { Ok(()) } else { Err("The slots are not where they should be.".into()) }
    }

    /// Waits until nothing moves.
    pub fn wait_moves(&mut self) -> Result<()> {
        let mut client = self.connect()?;
        wait_until("the moves end", PATIENCE, || {
            Ok(client.query_one("SELECT count(*) FROM foreshard.move WHERE NOT finished")? == "0")
        })
    }

    /// Moves that foreshard made by itself.
    pub fn moves(&self) -> Result<String> {
        Ok(self.connect()?.query_one(
            "SELECT count(*) || ' moves' FROM foreshard.move WHERE recommendation_id IS NOT NULL AND phase = 'done'",
        )?)
    }

    /// What foreshard knows of the shards and says last, a line each.
    pub fn said(&self) -> Result<Vec<String>> {
        let rows = self.connect()?.exec(
            "SELECT format('%s: %s slots, %s cost units/s, forecast peak %s', shard, slots, round(cost_units_per_s::numeric, 1), \
                    round(forecast_peak::numeric, 1)) AS said FROM foreshard.shards WHERE shard LIKE 'on%' \
             UNION ALL SELECT * FROM (SELECT format('%s of slot %s from %s to %s, confidence %s%s: %s', action, slot_id, from_shard, \
                    coalesce(to_shard, '-'), round(confidence::numeric, 2), CASE WHEN foreseen THEN ', foreseen' END, coalesce(refusal, reason)) \
             FROM foreshard.recommendations WHERE made_at >= (SELECT max(made_at) FROM foreshard.recommendations) - interval '2 s' \
             ORDER BY recommendation_id DESC LIMIT 12) last",
        )?;
        Ok((0..rows.len()).filter_map(|row| rows.field(row, "said").map(str::to_string)).collect())
    }

    /// Changes what foreshard does with what it finds.
    pub fn set_mode(&mut self, mode: &str) -> Result<()> {
        self.coordinator.set_and_reload(&[("foreshard.mode", mode)])
    }
}
