//! Files of relations that no relation owns.

use super::Server;
use foreshard_test::{Result, wait_until};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The largest file that a transaction which did nothing but make tables may leave, bytes: one page, as of an empty B-tree.
const EMPTY: u64 = 8_192;

/// What PostgreSQL itself leaves behind: when a server crashes, the files of tables made by a transaction under way stay,
/// and nothing ever removes them. The mover commits what it makes before it fills it, so that they are empty.
#[derive(Default)]
pub struct Remains {
    /// The server has crashed since the last look.
    pub crashed: bool,
    known: HashSet<String>,
}

impl Remains {
    /// Takes note of the empty files among those that a crash may have left; returns the others.
    fn sort_out(&mut self, found: Vec<String>) -> Vec<String> {
        let is_empty = |path: &String| fs::metadata(path).is_ok_and(|file| file.len() <= EMPTY);
        let (left, others): (Vec<_>, Vec<_>) = found
            .into_iter()
            .filter(|path| !self.known.contains(path))
            .partition(|path| self.crashed && is_empty(path));
        if !left.is_empty() {
            println!("empty files that a crash left: {left:?}");
        }
        self.known.extend(left);
        others
    }
}

/// Asserts that every file in the database's directories, in all tablespaces, belongs to a relation.
/// Dropped relations keep an empty file until the next checkpoint, so one is made first.
pub fn assert_no_orphans(server: &mut Server) -> Result<()> {
    let mut orphans = Vec::new();
    // Autovacuum and the keeper may create or truncate something between the two looks.
    let clean = wait_until("no orphan file", Duration::from_secs(5), || {
        server.query("CHECKPOINT")?;
        orphans = look(server)?;
        orphans.retain(|path| !server.remains.known.contains(path));
        Ok(orphans.is_empty())
    });
    if clean.is_err() {
        orphans = server.remains.sort_out(orphans);
    }
    server.remains.crashed = false;
    assert!(orphans.is_empty(), "orphan files: {orphans:?}\n{}", server.log_tail());
    Ok(())
}

/// The orphans now, as paths.
fn look(server: &mut Server) -> Result<Vec<String>> {
    let data = server.cluster.data_dir();
    let database = server.query("SELECT oid FROM pg_database WHERE datname = current_database()")?;
    let spaces = server.query(
        "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''",
    )?;
    let mut found = Vec::new();
    list(&data.join("base").join(&database), &mut found);
    // Where pg_upgrade was at work, the old server's files lie beside those of this one.
    let mine = format!("PG_{}_", server.cluster.install().major);
    for space in spaces.lines() {
        for version in fs::read_dir(space)?.flatten() {
            if version.file_name().to_string_lossy().starts_with(&mine) {
                list(&version.path().join(&database), &mut found);
            }
        }
    }
    let owned = server.query(
        "SELECT DISTINCT pg_relation_filenode(oid) FROM pg_class WHERE pg_relation_filenode(oid) IS NOT NULL",
    )?;
    let owned: HashSet<&str> = owned.lines().collect();
    Ok(found.into_iter().filter(|path| !owned.contains(number(path))).collect())
}

/// The files of a directory that are named by a number.
fn list(dir: &Path, found: &mut Vec<String>) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path().to_string_lossy().into_owned());
    found.extend(paths.filter(|path| !number(path).is_empty()));
}

/// The relation's number in a path: `…/16384_fsm.1` → `16384`; empty when there is none.
fn number(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let end = name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len());
    &name[..end]
}
