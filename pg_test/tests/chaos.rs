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
/// Size of the small file system: a slot fits and has room to grow, also at the end of a long run.
const SMALL_MB: u64 = 128;
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

    /// Does something bad; false: there was nobody to do it to.
    fn fault(&mut self, which: &str) -> Result<bool> {
        self.number += 1;
        self.server.remains.crashed |= ["carrier", "backend", "postmaster"].contains(&which);
        match which {
            "carrier" => match self.server.carrier()? {
                Some(pid) => Ok(self.server.cluster.kill9(pid).is_ok()),
                None => Ok(false),
            },
            "backend" => {
                let any = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
                           AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1";
                let pid = self.try_query(any).and_then(|pid| pid.parse().ok());
                Ok(pid.is_some_and(|pid| self.server.cluster.kill9(pid).is_ok()))
            }
            "postmaster" => {
                self.server.cluster.kill9_postmaster()?;
                self.server.cluster.start_again()?;
                Ok(true)
            }
            "cancel" | "rollback" => Ok(self.ask(which)),
            "pause" => {
                let paused = self.ask(which);
                if paused {
                    self.random.nap(1_200);
                    self.resume_all();
                }
                Ok(paused)
            }
            "writer" | "locker" => Ok(self.hold_locks(which)),
            "ddl" => Ok(self.ddl()),
            _ => self.fill_disk().inspect_err(|error| println!("{error}")),
        }
    }

    /// Cancels, pauses or rolls back some move; false: there is none that would.
    fn ask(&mut self, what: &str) -> bool {
        let Some(move_id) = self.any_move() else { return false };
        self.try_query(&format!("SELECT foreshard.{what}_move({move_id})")).as_deref() == Some("t")
    }

    fn resume_all(&mut self) {
        let _ = self
            .server
            .query("SELECT foreshard.resume_move(move_id) FROM foreshard.move WHERE paused AND NOT finished");
    }

    /// A session that keeps a transaction open. The ledger does not look at negative ids.
    fn hold_locks(&mut self, which: &str) -> bool {
        let Ok(mut client) = self.server.cluster.connect("postgres") else { return false };
        let work = if which == "writer" {
            format!("BEGIN; INSERT INTO acc (id, v) VALUES (-{}, 'x')", self.number)
        } else {
            "BEGIN; LOCK TABLE note IN SHARE UPDATE EXCLUSIVE MODE".to_string()
        };
        let holds = client.exec(&work).is_ok();
        if holds {
            self.random.nap(1_000);
            let _ = client.exec(if self.random.below(2) == 0 { "COMMIT" } else { "ROLLBACK" });
        }
        holds
    }

    fn ddl(&mut self) -> bool {
        let statement = DDL[self.random.below(DDL.len() as u64) as usize];
        let Some(leaf) = self.any_leaf() else { return false };
        let sql = statement.replace('@', &leaf).replace('#', &self.number.to_string());
        let Ok(mut client) = self.server.cluster.connect("postgres") else { return false };
        let mut done = false;
        for statement in sql.split("; ") {
            done |= client.exec(statement).is_ok();
        }
        done
    }

    /// A move to a file system that gets full, in the middle of the copy or later. Before the indexes are built that ends the move. Later there may
    /// be nothing left that needs room but what clients write: they log what they cannot mirror, and the move
    /// goes on when the disk is free again. After the cutover a full disk would be the clients' own.
    fn fill_disk(&mut self) -> Result<bool> {
        let Some(disk) = self.disk.take() else { return Ok(false) };
        self.come_to_rest()?;
        let phase = ["copy", "index", "catch_up", "verify"][self.random.below(4) as usize];
        let ends = phase == "copy" || phase == "index";
        self.server.hold(Some(phase))?;
        let slot = self.any_slot();
        self.require_room_to_grow(&slot)?;
        let move_id = self.server.query(&format!("SELECT foreshard.move_slot({slot}, 'small')"))?;
        // The slot may have grown too large: then the move is refused.
        let stands =
            format!("SELECT phase = '{phase}' OR finished FROM foreshard.move WHERE move_id = {move_id}");
        self.server.wait_query(&stands, "t")?;
        if self.server.phase(&move_id)? != phase {
            self.server.hold(None)?;
            self.disk = Some(disk);
            return self.come_to_rest().map(|()| false);
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
        self.come_to_rest().map(|()| true)
    }

    /// Clients write while a slot lies on the small file system: what they would fill up by themselves is no fault of ours.
    fn require_room_to_grow(&mut self, slot: &str) -> Result<()> {
        let size = format!(
            "SELECT sum(pg_total_relation_size(partition)) FROM foreshard.slot_partition WHERE slot_id = {slot}"
        );
        let bytes = self.server.query(&size)?.parse::<u64>().unwrap_or(u64::MAX);
        assert!(
            bytes < SMALL_MB << 19,
            "slot {slot} has {bytes} bytes, too many for a file system of {SMALL_MB} MB"
        );
        Ok(())
    }

    fn come_to_rest(&mut self) -> Result<()> {
        self.resume_all();
        let left = "SELECT count(*) FROM foreshard.move WHERE NOT finished";
        wait_until("all moves have ended", REST, || {
            Ok(self.server.query(left).is_ok_and(|count| count == "0"))
        })
        .inspect_err(|_| self.tell())
    }

    /// What a person would look at first.
    fn tell(&mut self) {
        for sql in [
            "SELECT to_jsonb(p) FROM foreshard.progress_moves p WHERE finished_at IS NULL",
            "SELECT to_jsonb(m) FROM foreshard.move m WHERE NOT finished",
            "SELECT jsonb_build_array(event, at, move_id, detail) FROM foreshard.history ORDER BY event_id DESC LIMIT 20",
            "SELECT jsonb_build_array(pid, backend_type, state, xact_start, wait_event_type, wait_event, pg_blocking_pids(pid), left(query, 150)) FROM pg_stat_activity WHERE datname IS NOT NULL",
        ] {
            println!("{sql}\n{}", self.server.query(sql).unwrap_or_else(|error| error.to_string()));
        }
        let log = self.server.cluster.log_contents();
        let lines: Vec<&str> = log.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(80)..].join("\n"));
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
    let (mut fault, mut attempts) = (0, 0);
    while fault < faults {
        attempts += 1;
        assert!(attempts <= 4 * faults + 40, "only {fault} faults in {attempts} attempts");
        site.begin_move();
        site.random.nap(1_500);
        // Each kind comes first once, in a random order after that.
        let kind = match only {
            Some(kind) => kind as u64,
            None if attempts <= FAULTS.len() as u64 => attempts - 1,
            None => site.random.below(FAULTS.len() as u64),
        };
        if !site.fault(FAULTS[kind as usize])? {
            println!("{}: there is nothing to do it to", FAULTS[kind as usize]);
            continue;
        }
        fault += 1;
        println!("{fault}: {}", FAULTS[kind as usize]);
        site.counts[kind as usize] += 1;
        if fault % BETWEEN_LOOKS == 0 {
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
