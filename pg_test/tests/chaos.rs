//! Moves under everything that happens to a database at once: kills of carrier, backends and postmaster,
//! cancel, pause and rollback, lock holders, DDL, a full disk. Clients write all the time and know what was
//! committed; now and then everything has to come to rest, and the ledger has to be right to the row.
//!
//! `make chaos` is the long form (`FORESHARD_FAULTS=220`); a seed (`FORESHARD_SEED`) repeats the choices,
//! not the timing; `FORESHARD_FAULT=disk` makes every fault of that kind.

mod common;

use common::ledger::{self, Ledger};
use common::{Random, Server, options};
use foreshard_test::{Result, wait_until};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const ROWS: u64 = 16_000;
/// Faults between two looks at everything.
const BETWEEN_LOOKS: u64 = 10;
/// Size of the small file system: one slot fits, twice what it needs does not.
const SMALL_MB: u64 = 6;
/// Room that is left for a copy whose disk gets full.
const COPIED_BYTES: u64 = 600 << 10;
/// How long everything may take to come to rest.
const REST: Duration = Duration::from_secs(90);

/// What may go wrong.
const FAULTS: [&str; 10] =
    ["carrier", "backend", "postmaster", "cancel", "rollback", "pause", "writer", "locker", "ddl", "disk"];

/// DDL that the ledger does not see; `@` is a leaf, `#` a number.
const DDL: [&str; 9] = [
    "ALTER TABLE acc ADD COLUMN c# int DEFAULT #",
    "VACUUM FULL @",
    "CREATE INDEX i# ON note (left(v, 5))",
    "REINDEX TABLE CONCURRENTLY @",
    "ALTER TABLE @ SET (fillfactor = 70)",
    "ALTER TABLE acc ALTER COLUMN v TYPE varchar(1#)",
    "ALTER TABLE note DISABLE TRIGGER USER; ALTER TABLE note ENABLE TRIGGER USER",
    "CLUSTER @ USING @_pkey",
    "ANALYZE acc; VACUUM (FREEZE) note",
];

/// A file system of a few MB, mounted where a tablespace lies; None: this user may not mount.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path) -> Option<SmallDisk> {
        let owner = std::fs::metadata(at).ok()?;
        let options = format!("size={SMALL_MB}m,mode=0700,uid={},gid={}", owner.uid(), owner.gid());
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).status();
        done.is_ok_and(|status| status.success()).then(|| SmallDisk { at: at.to_path_buf() })
    }

    /// Takes all room but so many bytes.
    fn fill(&self, but: u64) {
        let path = self.at.join("filler");
        // It writes until there is no room.
        let _ = std::fs::write(&path, vec![1; (SMALL_MB << 20) as usize]);
        if let Ok(filler) = std::fs::OpenOptions::new().write(true).open(&path) {
            let bytes = filler.metadata().map_or(0, |filler| filler.len());
            let _ = filler.set_len(bytes.saturating_sub(but));
        }
    }

    fn free(&self) {
        let _ = std::fs::remove_file(self.at.join("filler"));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

struct Site {
    server: Server,
    ledger: Ledger,
    disk: Option<SmallDisk>,
    random: Random,
    slots: Vec<String>,
    counts: [u64; FAULTS.len()],
    number: u64,
}

impl Site {
    fn start(seed: u64) -> Result<Site> {
        let options = options("chaos")
            .set("foreshard.copy_chunk", "64kB")
            .set("foreshard.copy_rate", "3000")
            .set("foreshard.rollback_window", "2")
            .set("foreshard.canary_steps", "20, 100")
            .set("foreshard.canary_dwell", "200")
            .set("foreshard.max_concurrent_moves", "2");
        let mut server = Server::start(&options)?;
        let dir = server.cluster.make_tablespace_dir("small")?;
        let disk = SmallDisk::mount(&dir);
        if disk.is_some() {
            server.query(&format!("CREATE TABLESPACE small LOCATION '{}'", dir.display()))?;
        } else {
            println!("no file system can be mounted here: the disk does not get full");
        }
        ledger::create(&mut server, ROWS)?;
        server.query(
            "SELECT foreshard.distribute('acc', 'id', 4); \
             SELECT foreshard.distribute('note', 'id', colocate_with => 'acc')",
        )?;
        if disk.is_some() {
            server.query("SELECT foreshard.add_shard('small', 'small')")?;
        }
        let slots = server.slots("acc")?;
        let ledger = Ledger::start(&server, ROWS, 4);
        let random = Random::new(seed);
        Ok(Site { server, ledger, disk, random, slots, counts: [0; FAULTS.len()], number: 0 })
    }

    /// A statement whose refusal is one of the things that happen.
    fn try_query(&mut self, sql: &str) -> Option<String> {
        self.server.query(sql).ok().filter(|text| !text.is_empty())
    }

    fn any_slot(&mut self) -> String {
        let at = self.random.below(self.slots.len() as u64) as usize;
        self.slots[at].clone()
    }

    fn any_leaf(&mut self) -> Option<String> {
        let slot = self.any_slot();
        self.try_query(&format!(
            "SELECT partition FROM foreshard.slot_partition WHERE slot_id = {slot} LIMIT 1"
        ))
    }

    fn any_move(&mut self) -> Option<String> {
        let by = if self.random.below(2) == 0 { "" } else { "DESC" };
        self.try_query(&format!(
            "SELECT move_id FROM foreshard.move WHERE NOT finished ORDER BY move_id {by} LIMIT 1"
        ))
    }

    /// Moves some slot; one that moves already is refused.
    fn begin_move(&mut self) {
        let slot = self.any_slot();
        self.try_query(&format!(
            "SELECT foreshard.move_slot({slot}, (SELECT shard_name FROM foreshard.shard WHERE shard_name LIKE 's_' \
               AND shard_id <> (SELECT shard_id FROM foreshard.slot WHERE slot_id = {slot}) LIMIT 1))"
        ));
    }

    fn fault(&mut self, which: &str) -> Result<()> {
        self.number += 1;
        match which {
            "carrier" => {
                if let Some(pid) = self.server.carrier()? {
                    let _ = self.server.cluster.kill9(pid);
                }
            }
            "backend" => {
                let any = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
                           AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
                if let Some(pid) = self.try_query(any).and_then(|pid| pid.parse().ok()) {
                    let _ = self.server.cluster.kill9(pid);
                }
            }
            "postmaster" => {
                self.server.cluster.kill9_postmaster()?;
                self.server.cluster.start_again()?;
            }
            "cancel" | "rollback" => {
                if let Some(move_id) = self.any_move() {
                    self.try_query(&format!("SELECT foreshard.{which}_move({move_id})"));
                }
            }
            "pause" => {
                if let Some(move_id) = self.any_move() {
                    self.try_query(&format!("SELECT foreshard.pause_move({move_id})"));
                    self.random.nap(1_200);
                    self.resume_all();
                }
            }
            "writer" | "locker" => self.hold_locks(which),
            "ddl" => self.ddl(),
            _ => self.fill_disk().inspect_err(|error| println!("{error}"))?,
        }
        Ok(())
    }

    fn resume_all(&mut self) {
        let _ = self
            .server
            .query("SELECT foreshard.resume_move(move_id) FROM foreshard.move WHERE paused AND NOT finished");
    }

    /// A session that keeps a transaction open. The ledger does not look at negative ids.
    fn hold_locks(&mut self, which: &str) {
        let Ok(mut client) = self.server.cluster.connect("postgres") else { return };
        let work = if which == "writer" {
            format!("BEGIN; INSERT INTO acc (id, v) VALUES (-{}, 'x')", self.number)
        } else {
            "BEGIN; LOCK TABLE note IN SHARE UPDATE EXCLUSIVE MODE".to_string()
        };
        if client.exec(&work).is_ok() {
            self.random.nap(1_000);
            let _ = client.exec(if self.random.below(2) == 0 { "COMMIT" } else { "ROLLBACK" });
        }
    }

    fn ddl(&mut self) {
        let statement = DDL[self.random.below(DDL.len() as u64) as usize];
        let Some(leaf) = self.any_leaf() else { return };
        let sql = statement.replace('@', &leaf).replace('#', &self.number.to_string());
        let Ok(mut client) = self.server.cluster.connect("postgres") else { return };
        for statement in sql.split("; ") {
            let _ = client.exec(statement);
        }
    }

    /// A move to a file system that gets full, in the middle of the copy or later. Before the indexes are built that ends the move. Later there may
    /// be nothing left that needs room but what clients write: they log what they cannot mirror, and the move
    /// goes on when the disk is free again. After the cutover a full disk would be the clients' own.
    fn fill_disk(&mut self) -> Result<()> {
        let Some(disk) = self.disk.take() else { return Ok(()) };
        self.come_to_rest()?;
        let phase = ["copy", "index", "catch_up", "verify"][self.random.below(4) as usize];
        let ends = phase == "copy" || phase == "index";
        self.server.hold(Some(phase))?;
        let slot = self.any_slot();
        let move_id = self.server.query(&format!("SELECT foreshard.move_slot({slot}, 'small')"))?;
        // The slot may have grown too large: then the move is refused.
        let stands =
            format!("SELECT phase = '{phase}' OR finished FROM foreshard.move WHERE move_id = {move_id}");
        self.server.wait_query(&stands, "t")?;
        if self.server.phase(&move_id)? != phase {
            self.server.hold(None)?;
            self.disk = Some(disk);
            return self.come_to_rest();
        }
        disk.fill(if phase == "copy" { COPIED_BYTES } else { 0 });
        self.ledger.work(200)?;
        if !ends {
            disk.free();
        }
        self.server.hold(None)?;
        self.server.wait_end(&move_id, if ends { "failed" } else { "done" })?;
        disk.free();
        self.disk = Some(disk);
        if !ends {
            let back = self.server.query(&format!("SELECT foreshard.move_slot({slot}, 'sa')"))?;
            self.server.wait_end(&back, "done")?;
        }
        self.come_to_rest()
    }

    fn come_to_rest(&mut self) -> Result<()> {
        self.resume_all();
        let left = "SELECT count(*) FROM foreshard.move WHERE NOT finished";
        wait_until("all moves have ended", REST, || {
            Ok(self.server.query(left).is_ok_and(|count| count == "0"))
        })
    }

    /// Everything comes to rest and is looked at.
    fn look(&mut self) -> Result<()> {
        self.come_to_rest()?;
        self.ledger.assert_equal(&mut self.server)?;
        // Indexes made on the parent meanwhile lie in the default tablespace until the next move.
        self.server.assert_clean()
    }
}

#[test]
fn nothing_is_lost_whatever_happens() -> Result<()> {
    let number =
        |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (seed, faults) = (number("FORESHARD_SEED", 1), number("FORESHARD_FAULTS", 20));
    let only =
        std::env::var("FORESHARD_FAULT").ok().and_then(|kind| FAULTS.iter().position(|known| *known == kind));
    let mut site = Site::start(seed)?;
    for fault in 0..faults {
        site.begin_move();
        site.random.nap(1_500);
        // Each kind comes first once, in a random order after that.
        let kind = match only {
            Some(kind) => kind as u64,
            None if fault < FAULTS.len() as u64 => fault,
            None => site.random.below(FAULTS.len() as u64),
        };
        println!("{fault}: {}", FAULTS[kind as usize]);
        site.fault(FAULTS[kind as usize])?;
        site.counts[kind as usize] += 1;
        if fault % BETWEEN_LOOKS == BETWEEN_LOOKS - 1 {
            site.look()?;
        }
    }
    site.look()?;
    let ends = site.server.query("SELECT string_agg(phase || ' ' || n, ', ') FROM (SELECT phase, count(*) n FROM foreshard.move GROUP BY 1 ORDER BY 1) q")?;
    let restarts = site.server.query("SELECT sum(restarts) FROM foreshard.move")?;
    println!(
        "seed {seed}, {faults} faults: {:?} of {FAULTS:?}; moves: {ends}; restarts: {restarts}",
        site.counts
    );
    site.ledger.finish();
    Ok(())
}
