//! What several test files need: a cluster with shards, waiting for moves, expected errors, and
//! reproducible random numbers.
#![allow(dead_code, reason = "every test file uses a part of it")]

use foreshard_test::{Client, Cluster, ClusterOptions, Error, Install, Result, SqlError, wait_until};
use std::time::Duration;

/// How long anything asynchronous may take.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Tablespaces of a cluster made by [`cluster`], each with a shard of the same letter.
pub const SPACES: [&str; 3] = ["ts_a", "ts_b", "ts_c"];

/// Starts a cluster with the tablespaces of [`SPACES`].
pub fn cluster(options: &ClusterOptions) -> Result<Cluster> {
    cluster_of(Install::from_env()?, options)
}

/// As [`cluster`], of a given installation.
pub fn cluster_of(install: Install, options: &ClusterOptions) -> Result<Cluster> {
    let cluster = Cluster::start_with(
        install,
        &options.clone().set("foreshard.rollback_window", "0").set("foreshard.canary_steps", ""),
    )?;
    let mut client = cluster.connect("postgres")?;
    for name in SPACES {
        let dir = cluster.make_tablespace_dir(name)?;
        client.exec(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display()))?;
    }
    Ok(cluster)
}

/// Creates a database with the extension and the shards a, b and c, and connects to it.
pub fn database(cluster: &Cluster, name: &str) -> Result<Client> {
    cluster.connect("postgres")?.exec(&format!("CREATE DATABASE {name} TEMPLATE template0"))?;
    let mut client = cluster.connect(name)?;
    client.exec("CREATE EXTENSION foreshard")?;
    for space in SPACES {
        let shard = space.trim_start_matches("ts_");
        client.exec(&format!("SELECT foreshard.add_shard('{shard}', '{space}')"))?;
    }
    Ok(client)
}

/// Waits until so many relations are watched, all databases together.
pub fn wait_watched(c: &mut Client, relations: u32) -> Result<()> {
    wait_for(c, "SELECT used FROM foreshard.stat_foreshard WHERE area = 'relations'", &relations.to_string())
}

/// The keeper of the current database; waits for it.
pub fn keeper(c: &mut Client) -> Result<i32> {
    let sql = "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE backend_type = 'foreshard keeper' AND datname = current_database()";
    let mut pid = 0;
    wait_until("a keeper", PATIENCE, || {
        pid = c.query_one(sql)?.parse().unwrap_or(0);
        Ok(pid > 0)
    })?;
    Ok(pid)
}

/// The error a statement must end with.
pub fn error_of(client: &mut Client, sql: &str) -> Result<SqlError> {
    match client.exec(sql) {
        Ok(_) => Err(Error::new(format!("This was accepted: {sql}"), "")),
        Err(error) => Ok(error),
    }
}

/// Fails unless a statement ends with this SQLSTATE.
pub fn expect_error(client: &mut Client, sqlstate: &str, sql: &str) -> Result<SqlError> {
    let error = error_of(client, sql)?;
    if error.sqlstate != sqlstate {
        return Err(Error::new(format!("Wanted {sqlstate}, got {error}\nfrom: {sql}"), ""));
    }
    Ok(error)
}

/// Waits until a query answers `wanted`.
pub fn wait_for(client: &mut Client, sql: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(&format!("{sql} gives {wanted}"), PATIENCE, || {
        last = client.query_one(sql)?;
        Ok(last == wanted)
    })
    .map_err(|error| Error::new(format!("{error} It gave \"{last}\"."), ""))
}

/// Waits until a move has ended in whatever way.
pub fn wait_for_end(client: &mut Client, move_id: &str) -> Result<()> {
    wait_for(client, &format!("SELECT finished FROM foreshard.move WHERE move_id = {move_id}"), "t")
}

/// Waits until a move has ended as wanted (`done`, `cancelled` or `failed`).
pub fn wait_for_move(client: &mut Client, move_id: &str, wanted: &str) -> Result<()> {
    wait_for_end(client, move_id)?;
    let row = client
        .exec(&format!("SELECT phase, last_error FROM foreshard.move WHERE move_id = {move_id}"))?
        .to_text();
    if row.split('|').next() == Some(wanted) {
        return Ok(());
    }
    Err(Error::new(format!("Move {move_id} ended as {row} instead of {wanted}."), ""))
}

/// Waits until a move has reached a phase and stands there.
pub fn wait_for_phase(client: &mut Client, move_id: &str, phase: &str) -> Result<()> {
    wait_for(client, &format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}"), phase)
}

/// Files the move of a slot to some shard it is not on; the move's id.
pub fn move_away(client: &mut Client, slot_id: &str) -> Result<String> {
    Ok(client.query_one(&format!(
        "SELECT foreshard.move_slot({slot_id}, (SELECT min(shard) FROM foreshard.shards \
         WHERE shard <> (SELECT min(shard) FROM foreshard.slots WHERE slot_id = {slot_id})))"
    ))?)
}

/// The slot of a key of a managed table.
pub fn slot_of_key(client: &mut Client, table: &str, key: &str) -> Result<String> {
    Ok(client.query_one(&format!(
        "SELECT s.slot_id FROM foreshard.slots s JOIN {table} t ON t.tableoid = s.partition WHERE t.id = {key}"
    ))?)
}

/// Splitmix64: small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit` (above 0).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// One of some things.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        let index = self.below(of.len() as u64) as usize;
        of[index]
    }
}
