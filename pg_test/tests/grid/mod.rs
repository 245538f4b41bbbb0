//! The machinery of the matrix: a server with a database per actor, a move in each of them, all at the same
//! place, and what must hold in every cell.

mod cell;

pub use cell::{Cell, both, rows, same, same_error, twice};

use crate::actors::Actor;
use crate::support::{PATIENCE, cluster, database, wait_for};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result};
use std::time::Instant;

/// What a session holds on the moving partition while its transaction is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A snapshot, no lock.
    Snapshot,
    /// ACCESS SHARE, and a snapshot.
    Read,
    /// ROW SHARE.
    RowLock,
    /// ROW EXCLUSIVE.
    Write,
}

/// Whom the locks conflict with that the move needs between two stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// It takes none that matters.
    Nobody,
    /// SHARE ROW EXCLUSIVE.
    Writers,
    /// ACCESS EXCLUSIVE.
    Everybody,
}

/// How a move ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The slot has moved.
    Done,
    /// It was cancelled or rolled back; the slot is where it was.
    Cancelled,
}

/// A place where a move can stand.
pub struct Place {
    /// Its name in the matrix.
    pub name: &'static str,
    /// The slot is split, not moved.
    pub splits: bool,
    /// The phase the move is held in before.
    pub from: &'static str,
    /// The phase it is held in at this place.
    pub at: &'static str,
    /// It is a rollback that brings the move here.
    pub asks: bool,
    /// Settings until the move is to leave.
    pub settings: &'static [(&'static str, &'static str)],
    /// It stays here by itself, without being held.
    pub rests: bool,
    /// Settings that let it leave then.
    pub let_go: &'static [(&'static str, &'static str)],
    /// What the move needs to get here.
    pub entering: Lock,
    /// What it needs from here to its end.
    pub leaving: Lock,
    /// From here on something is still replayed, so that a cutover waits for snapshots older than that.
    pub replays: bool,
    /// The ends that a move can have from here.
    pub ends: &'static [End],
}

/// One crossing: what the move does between two stops.
#[derive(Clone, Copy)]
struct Leg {
    lock: Lock,
    old_snapshots: bool,
}

impl Leg {
    fn blocked_by(self, held: Held) -> bool {
        let by_lock = match self.lock {
            Lock::Nobody => false,
            Lock::Writers => held == Held::Write,
            Lock::Everybody => matches!(held, Held::Read | Held::RowLock | Held::Write),
        };
        by_lock || self.old_snapshots && held == Held::Snapshot
    }
}

/// The phases on the way, without what comes after the swap.
const WAY: [&str; 8] = ["capture", "copy", "index", "catch_up", "mirror", "verify", CANARY, "cutover"];
/// Only where a move is to stand there.
const CANARY: &str = "canary";

/// The phases that a move enters from this place on the shortest way.
fn way(place: &Place, end: End) -> String {
    let mut way = WAY.to_vec();
    way.retain(|phase| *phase != CANARY || place.at == CANARY);
    let swaps = end == End::Done || place.at == "watch";
    if !swaps {
        way.retain(|phase| position(phase) <= position(place.at));
    } else if place.at == "watch" {
        way.push("watch");
    }
    way.extend(if end == End::Done { ["retire", "done"] } else { ["revert", "cancelled"] });
    way.join(" ")
}

fn position(phase: &str) -> Option<usize> {
    WAY.iter().position(|known| *known == phase)
}

/// The managed table, an ordinary twin, and a table that does not move. Two rows of three are there, the
/// third is the name of a row that may be inserted; every tenth value lies in toast.
const BASE: &str = "
    CREATE EXTENSION amcheck;
    CREATE TABLE t (id int, k int NOT NULL DEFAULT 0, v text NOT NULL DEFAULT '', n int NOT NULL DEFAULT 0, PRIMARY KEY (id, k));
    ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
    CREATE INDEX t_n ON t (n);
    CREATE INDEX t_v ON t (md5(v)) WHERE n > 1;
    INSERT INTO t SELECT g, 0, repeat(md5(g::text), CASE WHEN g % 10 = 0 THEN 100 ELSE 1 END), g % 5 FROM generate_series(1, 300) g;
    CREATE TABLE u (LIKE t INCLUDING ALL);
    CREATE TABLE other (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
    INSERT INTO other SELECT generate_series(1, 10);
    SELECT foreshard.distribute('t', 'id', 2);
    CREATE TABLE place AS SELECT t.id, s.slot_id, t.id % 3 = 0 AS free FROM t JOIN foreshard.slots s ON s.partition = t.tableoid;
    DELETE FROM t WHERE id % 3 = 0;
    INSERT INTO u TABLE t;
    CREATE FUNCTION bump(which int) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE a int; b int;
    BEGIN
        UPDATE t SET n = n + 1 WHERE id = which RETURNING n INTO a;
        UPDATE u SET n = n + 1 WHERE id = which RETURNING n INTO b;
        RETURN a = b;
    END $$;";

/// A server with one cell per actor.
pub struct Grid {
    cells: Vec<Cell>,
    failures: Vec<String>,
    cluster: Cluster,
}

impl Grid {
    /// Starts the server and makes a database for every actor.
    pub fn start(name: &str, actors: &[Actor]) -> Result<Grid> {
        let options = ClusterOptions::new(&format!("matrix-{name}"))
            .set("foreshard.observe", "off")
            .set("fsync", "off")
            .set("autovacuum", "off")
            .set("max_connections", "200")
            .set("max_worker_processes", "80");
        let cluster = cluster(&options)?;
        database(&cluster, "base")?.exec(BASE)?;
        let mut maker = cluster.connect("postgres")?;
        let mut cells = Vec::new();
        for actor in actors {
            let name = actor.name.replace(' ', "_");
            maker.exec(&format!("CREATE DATABASE {name} TEMPLATE base"))?;
            cells.push(Cell::new(&cluster, actor, &name)?);
        }
        Ok(Grid { cells, failures: Vec::new(), cluster })
    }

    /// Moves every cell's slot once: to the stop before the place, into the place, and on to the end.
    pub fn round(&mut self, place: &Place, end: End) -> Result<()> {
        let what = format!("{} ({end:?})", place.name);
        self.hold(place.from, place.settings)?;
        self.each(&what, |cell| cell.file_move(place.splits));
        self.each(&what, |cell| cell.wait_phase(place.from));
        self.each(&what, |cell| cell.begin_leg());
        let entering = Leg { lock: place.entering, old_snapshots: false };
        if place.asks {
            self.each(&what, |cell| cell.ask("rollback_move"));
        }
        self.hold(if place.rests { "" } else { place.at }, place.settings)?;
        if place.at == CANARY {
            self.each(&what, Cell::wait_routed);
        }
        self.each(&format!("{what}, entering"), |cell| {
            cell.cross(entering.blocked_by(cell.actor.holds), place.at)
        });
        self.each(&what, |cell| cell.wait_phase(place.at));
        self.each(&what, |cell| cell.begin_leg());
        let leaving = Leg { lock: place.leaving, old_snapshots: place.replays && end == End::Done };
        if end == End::Cancelled && !place.asks {
            self.each(&what, |cell| cell.ask("rollback_move"));
        }
        self.hold("", place.let_go)?;
        let finished = if end == End::Done { "done" } else { "cancelled" };
        self.each(&format!("{what}, leaving"), |cell| {
            cell.cross(leaving.blocked_by(cell.actor.holds), finished)
        });
        let way = way(place, end);
        self.each(&what, |cell| cell.wait_end(finished));
        self.each(&what, |cell| cell.check(&way, end));
        Ok(())
    }

    /// Holds moves at a phase, with settings.
    fn hold(&mut self, phase: &str, settings: &[(&str, &str)]) -> Result<()> {
        let changes = [&[("foreshard.hold_at_phase", phase)], settings].concat();
        self.cluster.set_and_reload(&changes)
    }

    /// Does something in every cell; one that fails takes no further part. A server that is broken altogether
    /// is not waited for in every cell.
    fn each(&mut self, what: &str, mut step: impl FnMut(&mut Cell) -> Result<()>) {
        let failures = &mut self.failures;
        let begun = Instant::now();
        self.cells.retain_mut(|cell| {
            let outcome = if begun.elapsed() < 2 * PATIENCE {
                step(cell)
            } else {
                Err(Error::new("not tried, others took too long", ""))
            };
            let Err(error) = outcome else { return true };
            let state = cell.state();
            failures.push(format!("{} × {what}: {error}\n  {state}", cell.actor.name));
            false
        });
    }

    /// All failures, if there are any.
    pub fn verdict(self) -> Result<()> {
        let log = self.cluster.log_contents();
        let bad = |line: &&str| ["PANIC:", "WARNING:", "TRAP:"].iter().any(|word| line.contains(word));
        let lines: Vec<&str> = log.lines().filter(bad).collect();
        if self.failures.is_empty() && lines.is_empty() {
            return Ok(());
        }
        let text = format!("{} cells failed:\n{}", self.failures.len(), self.failures.join("\n"));
        Err(Error::new(text, lines.join("\n")))
    }
}

/// What is left of moves, one line each.
fn leftovers(c: &mut Client) -> Result<String> {
    let left = c.exec(
        "SELECT relname::text FROM pg_class WHERE relname ~ '^(shadow_|capture_|split_|pg_temp_)' OR relrewrite <> 0 \
         UNION ALL SELECT tgname FROM pg_trigger WHERE tgfoid = 'foreshard.capture'::regproc \
         UNION ALL SELECT 'row of ' || source FROM foreshard.move_relation",
    )?;
    Ok(left.to_text())
}

/// Twin and managed table agree, whichever way one looks, and every index fits its table.
fn compare(c: &mut Client) -> Result<()> {
    for path in ["enable_seqscan", "enable_indexscan", "enable_bitmapscan"] {
        c.exec(&format!("SET {path} = off"))?;
        for which in ["id > 0", "n BETWEEN 0 AND 1000000", "n > 1 AND md5(v) > ''"] {
            let (t, u) = (format!("SELECT * FROM t WHERE {which}"), format!("SELECT * FROM u WHERE {which}"));
            let differing =
                format!("SELECT count(*) FROM (({t} EXCEPT ALL {u}) UNION ALL ({u} EXCEPT ALL {t})) q");
            same(&format!("rows that differ, {path} off, {which}"), &c.query_one(&differing)?, "0")?;
        }
        c.exec(&format!("RESET {path}"))?;
    }
    c.exec(
        "SELECT bt_index_check(i.indexrelid, true) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid \
         WHERE i.indrelid IN (SELECT partition FROM foreshard.slots) AND x.relkind = 'i'",
    )?;
    wait_for(c, "SELECT count(*) FROM foreshard.move WHERE NOT finished", "0")
}
