//! Files of relations that no relation owns.

use super::Server;
use foreshard_test::{Result, wait_until};
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Asserts that every file in the database's directories, in all tablespaces, belongs to a relation.
/// Dropped relations keep an empty file until the next checkpoint, so one is made first.
pub fn assert_no_orphans(server: &mut Server) -> Result<()> {
    let mut orphans = Vec::new();
    // Autovacuum and the keeper may create or truncate something between the two looks.
    let clean = wait_until("no orphan file", Duration::from_secs(5), || {
        server.query("CHECKPOINT")?;
        orphans = look(server)?;
        Ok(orphans.is_empty())
    });
    assert!(clean.is_ok(), "orphan files: {orphans:?}\n{}", server.log_tail());
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
