//! One cell: an actor's database, its sessions, and its move.

use super::{End, compare, leftovers};
use crate::actors::{Actor, Feed};
use crate::support::{PATIENCE, expect_error, move_away, wait_for, wait_for_move, wait_for_phase};
use foreshard_test::{Client, Cluster, Error, Result, wait_until};

/// Rows that an actor may use per crossing; the last of the rows that are there is the bystander's.
const PER_LEG: usize = 8;

/// See the module.
pub struct Cell {
    /// Who acts.
    pub actor: Actor,
    /// The database.
    pub database: String,
    /// Looks and asks.
    pub admin: Client,
    /// The session that opens something.
    pub a: Client,
    /// Another one.
    pub b: Client,
    /// A third one.
    pub c: Client,
    /// What the actor has to remember from opening to closing.
    pub noted: Vec<String>,
    /// A COPY under way.
    pub feed: Option<Feed>,
    /// How the move names whom it waits for.
    pub holder: String,
    /// Crossings begun.
    pub leg: usize,
    conninfo: String,
    move_id: String,
    slot: String,
    shard: String,
    keys: Vec<String>,
    free: Vec<String>,
}

impl Cell {
    /// Connects the sessions of an actor.
    pub fn new(cluster: &Cluster, actor: &Actor, database: &str) -> Result<Cell> {
        let mut admin = cluster.connect(database)?;
        admin.exec(actor.setup)?;
        let slot = admin.query_one("SELECT min(slot_id) FROM place")?;
        let mut list = |free: &str| -> Result<Vec<String>> {
            let sql = format!("SELECT id FROM place WHERE slot_id = {slot} AND free = {free} ORDER BY id");
            Ok(admin.exec(&sql)?.to_text().lines().map(String::from).collect())
        };
        let (keys, free) = (list("false")?, list("true")?);
        let [a, b, c] = [cluster.connect(database)?, cluster.connect(database)?, cluster.connect(database)?];
        Ok(Cell {
            actor: actor.clone(),
            database: database.to_string(),
            conninfo: cluster.conninfo(database),
            holder: format!("pid {} ", a.backend_pid()),
            admin,
            a,
            b,
            c,
            noted: Vec::new(),
            feed: None,
            leg: 0,
            move_id: String::new(),
            shard: String::new(),
            slot,
            keys,
            free,
        })
    }

    /// A row of the moving slot, for this crossing alone.
    pub fn key(&self, n: usize) -> &str {
        &self.keys[(self.leg * PER_LEG + n) % self.keys.len()]
    }

    /// A row of the moving slot that is not there yet, for this crossing alone.
    pub fn free(&self, n: usize) -> &str {
        &self.free[(self.leg * PER_LEG + n) % self.free.len()]
    }

    /// The row that the bystander changes.
    pub fn bystanders_key(&self) -> &str {
        self.key(PER_LEG - 1)
    }

    /// A further session.
    pub fn connect(&self) -> Result<Client> {
        Ok(Client::connect(&self.conninfo)?)
    }

    /// Files the move or the split of the slot.
    pub fn file_move(&mut self, splits: bool) -> Result<()> {
        self.shard = self.placed()?;
        self.move_id = if splits {
            self.admin.query_one(&format!("SELECT foreshard.split_slot({})", self.slot))?
        } else {
            move_away(&mut self.admin, &self.slot)?
        };
        Ok(())
    }

    fn placed(&mut self) -> Result<String> {
        let sql =
            format!("SELECT min(shard) || min(modulus) FROM foreshard.slots WHERE slot_id = {}", self.slot);
        Ok(self.admin.query_one(&sql)?)
    }

    /// Asks something of the move, by the function's name.
    pub fn ask(&mut self, function: &str) -> Result<()> {
        let said = self.admin.query_one(&format!("SELECT foreshard.{function}({})", self.move_id))?;
        same(function, &said, "t")
    }

    /// Waits until the move stands in a phase.
    pub fn wait_phase(&mut self, phase: &str) -> Result<()> {
        wait_for_phase(&mut self.admin, &self.move_id, phase)
    }

    /// Waits until reads of the moving slot are routed to its copy, as anybody can see.
    pub fn wait_routed(&mut self) -> Result<()> {
        let sql = format!("EXPLAIN (COSTS off) SELECT v FROM t WHERE id = {}", self.bystanders_key());
        wait_until("reads are routed", PATIENCE, || Ok(self.admin.exec(&sql)?.to_text().contains("shadow_")))
    }

    /// Waits until the move has ended like this.
    pub fn wait_end(&mut self, phase: &str) -> Result<()> {
        wait_for_move(&mut self.admin, &self.move_id, phase)
    }

    /// The actor opens something, to finish it after the move has gone on.
    pub fn begin_leg(&mut self) -> Result<()> {
        self.noted.clear();
        (self.actor.open)(self)
    }

    /// The move goes on. It has to wait for the actor, and says so, or it arrives; in both cases nobody else
    /// waits. Then the actor finishes.
    pub fn cross(&mut self, blocked: bool, stop: &str) -> Result<()> {
        let view = format!("FROM foreshard.progress_moves WHERE move_id = {}", self.move_id);
        if blocked {
            let named = format!("SELECT waiting_for LIKE '%{}%' {view}", self.holder);
            wait_for(&mut self.admin, &named, "t")?;
        } else {
            wait_for(&mut self.admin, &format!("SELECT phase {view}"), stop)?;
        }
        self.bystander()?;
        let arrived = self.admin.query_one(&format!("SELECT phase = '{stop}' {view}"))?;
        same("whether the move has gone on", &arrived, if blocked { "f" } else { "t" })?;
        (self.actor.close)(self)?;
        self.leg += 1;
        Ok(())
    }

    /// Somebody new reads and writes the moving slot, and is not held up.
    fn bystander(&self) -> Result<()> {
        let mut client = self.connect()?;
        client.exec("SET statement_timeout = '2s'")?;
        let id = self.bystanders_key();
        client.exec(&format!("SELECT * FROM t WHERE id = {id}; SELECT count(*) FROM t"))?;
        both(&mut client, &format!("UPDATE t SET n = n + 1, v = 'bystander {}' WHERE id = {id}", self.leg))
    }

    /// After the end of a move: the tables are equal and sound, the slot is where it belongs, the move took
    /// the shortest way, and nothing is left over.
    pub fn check(&mut self, way: &str, end: End) -> Result<()> {
        let placed = self.placed()?;
        same(
            "whether the slot has moved or split",
            &(placed != self.shard).to_string(),
            &(end == End::Done).to_string(),
        )?;
        let went = self.admin.query_one(&format!(
            "SELECT string_agg(detail ->> 'to', ' ' ORDER BY event_id) FROM foreshard.history \
             WHERE event = 'phase' AND move_id = {}",
            self.move_id
        ))?;
        same("the move's way", &went, way)?;
        compare(&mut self.admin)?;
        same("left over", &leftovers(&mut self.admin)?, "")?;
        (self.actor.after)(self)
    }

    /// Where the move is, for those who read about a failure.
    pub fn state(&mut self) -> String {
        let sql = format!(
            "SELECT row_to_json(p) FROM (SELECT phase, state, waiting_for, lock_attempts, restarts, last_error \
             FROM foreshard.progress_moves WHERE move_id = {}) p",
            self.move_id
        );
        self.admin.query_one(&sql).unwrap_or_else(|error| error.to_string())
    }
}

/// Runs a statement on `t` and on its twin in one message.
pub fn both(client: &mut Client, sql: &str) -> Result<()> {
    client.exec(&twice(sql)).map_err(|error| Error::new(format!("{error}\nin: {sql}"), ""))?;
    Ok(())
}

/// A statement on `t` and the same one on its twin.
pub fn twice(sql: &str) -> String {
    format!("{sql}; {}", sql.replace(" t ", " u "))
}

/// All rows of a table, as text.
pub fn rows(client: &mut Client, table: &str) -> Result<String> {
    Ok(client.exec(&format!("SELECT id, k, n, md5(v) FROM {table} ORDER BY id, k"))?.to_text())
}

/// Fails unless something is as wanted.
pub fn same(what: &str, got: &str, wanted: &str) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    let first = got.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    let (got, wanted) = match first {
        Some(pair) if got.lines().count() > 3 => pair,
        _ => (got, wanted),
    };
    Err(Error::new(format!("{what}: got \"{got}\", wanted \"{wanted}\""), ""))
}

/// Fails unless a statement on `t` ends with this SQLSTATE, and its twin as well; the transaction goes on.
pub fn same_error(client: &mut Client, sqlstate: &str, sql: &str) -> Result<()> {
    for statement in [sql.to_string(), sql.replace(" t ", " u ")] {
        client.exec("SAVEPOINT expected")?;
        expect_error(client, sqlstate, &statement)?;
        client.exec("ROLLBACK TO expected; RELEASE expected")?;
    }
    Ok(())
}
