//! A table of which slots are split, merged and given lists of keys, with a canary that can be held.

use super::{Server, options};
use foreshard_test::{Client, Result};

/// `t` is managed, `w` colocated with it; the schema `twin` holds the same rows in ordinary tables.
const SETUP: &str = "
    CREATE TABLE t (id bigint PRIMARY KEY, v text, gone int, n int NOT NULL);
    ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
    INSERT INTO t SELECT g, repeat('v' || g, g % 5 * 300), g, g % 100 FROM generate_series(1, 3000) g;
    ALTER TABLE t DROP COLUMN gone;
    ALTER TABLE t ADD COLUMN late text DEFAULT 'late';
    CREATE INDEX t_n ON t (n) INCLUDE (id);
    CREATE SCHEMA twin; CREATE TABLE twin.t AS TABLE t;
    CREATE TABLE w (extra int, m int, t_id bigint PRIMARY KEY);
    INSERT INTO w SELECT 0, g % 9, g FROM generate_series(1, 3000) g;
    CREATE TABLE twin.w AS TABLE w;
    SELECT foreshard.distribute('t', 'id', 2);
    SELECT foreshard.distribute('w', 't_id', colocate_with => 't');
    VACUUM ANALYZE t; VACUUM ANALYZE w; ANALYZE twin.t; ANALYZE twin.w;";

/// A server with a table that is to be divided anew.
pub struct Site {
    /// The server.
    pub server: Server,
    /// The first slot.
    pub slot: String,
}

impl Site {
    /// Starts it.
    pub fn new(name: &str) -> Result<Site> {
        let options = options(name)
            .set("foreshard.canary_steps", "50")
            .set("foreshard.canary_dwell", "200")
            .set("foreshard.max_concurrent_moves", "8");
        let mut server = Server::start(&options)?;
        for statement in SETUP.split_inclusive(';') {
            server.query(statement)?;
        }
        let slot = server.slots("t")?[0].clone();
        Ok(Site { server, slot })
    }

    /// A change whose copies serve this share of the reads.
    pub fn routed(&mut self, change: &str, weight: &str) -> Result<String> {
        self.server.hold(Some("verify"))?;
        let move_id = self.server.query(change)?;
        self.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, {weight})"))?;
        self.server.hold(None)?;
        self.weighs(&move_id, weight)?;
        Ok(move_id)
    }

    /// A split whose halves serve this share of the reads.
    pub fn split(&mut self, weight: &str) -> Result<String> {
        self.routed(&format!("SELECT foreshard.split_slot({}, to_shard_b => 'sb')", self.slot), weight)
    }

    /// Waits for it.
    pub fn weighs(&mut self, move_id: &str, weight: &str) -> Result<()> {
        self.server.wait_query(
            &format!("SELECT phase || weight FROM foreshard.progress_moves WHERE move_id = {move_id}"),
            &format!("canary{weight}"),
        )
    }

    /// Lets the canary go on by itself.
    pub fn finish(&mut self, move_id: &str) -> Result<()> {
        self.finish_one(move_id)?;
        self.server.assert_settled()
    }

    /// As [`Site::finish`], while others go on.
    pub fn finish_one(&mut self, move_id: &str) -> Result<()> {
        self.server.query(&format!("SELECT foreshard.set_route_weight({move_id}, NULL)"))?;
        self.server.wait_end(move_id, "done")
    }

    /// A new session.
    pub fn client(&self) -> Result<Client> {
        Ok(self.server.cluster.connect("postgres")?)
    }

    /// The copies of `t` in a change under way, with the first keys of each.
    pub fn copies(&mut self, move_id: &str, table: &str) -> Result<Vec<(String, Vec<i64>)>> {
        let found = self.server.query(&format!(
            "SELECT DISTINCT c.child::regclass FROM foreshard.move_child c JOIN pg_inherits i ON i.inhrelid = c.source \
             WHERE c.move_id = {move_id} AND i.inhparent = '{table}'::regclass AND c.part >= 0 ORDER BY 1"
        ))?;
        let mut copies = Vec::new();
        for name in found.lines() {
            let keys = self.server.query(&format!("SELECT id FROM {name} ORDER BY id LIMIT 4"))?;
            copies.push((name.to_string(), keys.lines().filter_map(|key| key.parse().ok()).collect()));
        }
        Ok(copies)
    }
}

/// The rows of a statement.
pub fn answer(client: &mut Client, sql: &str) -> Result<String> {
    Ok(client.exec(sql)?.to_text())
}

/// The same statement on the ordinary tables.
pub fn in_twin(client: &mut Client, sql: &str) -> Result<String> {
    client.exec("SET search_path = twin")?;
    let found = answer(client, sql)?;
    client.exec("RESET search_path")?;
    Ok(found)
}

/// Its plan.
pub fn plan(client: &mut Client, sql: &str) -> Result<String> {
    Ok(client.exec(&format!("EXPLAIN (COSTS off) {sql}"))?.to_text())
}
