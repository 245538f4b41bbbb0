//! Kinds of transactions: serializable ones, savepoints, two phases.

use crate::grid::{Cell, both, rows, same};
use foreshard_test::{Error, Result};

/// Reads and writes; nobody else is serializable, so nothing may fail.
pub fn serializable_open(cell: &mut Cell) -> Result<()> {
    let key = cell.key(0).to_string();
    cell.a.exec("BEGIN ISOLATION LEVEL SERIALIZABLE")?;
    both(&mut cell.a, &format!("UPDATE t SET n = n + 1, v = 'one' WHERE id = {key}"))?;
    let twin = rows(&mut cell.a, "u")?;
    same("rows at first", &rows(&mut cell.a, "t")?, &twin)?;
    cell.noted.push(twin);
    Ok(())
}

pub fn serializable_close(cell: &mut Cell) -> Result<()> {
    same("rows of the same snapshot", &rows(&mut cell.a, "t")?, &cell.noted[0])?;
    let (key, new) = (cell.key(1).to_string(), cell.free(0).to_string());
    both(&mut cell.a, &format!("UPDATE t SET n = n + 1, v = 'two' WHERE id = {key}"))?;
    both(&mut cell.a, &format!("INSERT INTO t (id, v) VALUES ({new}, 'three')"))?;
    let twin = rows(&mut cell.a, "u")?;
    same("rows in the end", &rows(&mut cell.a, "t")?, &twin)?;
    cell.a.exec("COMMIT")?;
    Ok(())
}

/// Two serializable transactions, each about to write what the other one has read. One has committed; what
/// it has read lies in the moving slot, where the other one will write.
fn skew_open(cell: &mut Cell, read: &str) -> Result<()> {
    cell.a.exec("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT n FROM other WHERE id = 1")?;
    cell.b.exec(&format!(
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL enable_seqscan = off; SELECT n FROM t WHERE id = {read}; \
         UPDATE other SET n = n + 1 WHERE id = 1; COMMIT"
    ))?;
    // What is known of the whole partition would survive anything.
    let coarse = "SELECT count(*) FROM pg_locks l JOIN foreshard.slots s ON s.partition = l.relation \
         WHERE l.mode = 'SIReadLock' AND l.locktype = 'relation' \
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    same("predicate locks of whole partitions", &cell.admin.query_one(coarse)?, "0")
}

fn skew_close(cell: &mut Cell, write: &str) -> Result<()> {
    match cell.a.exec(write).and_then(|_| cell.a.exec("COMMIT")) {
        Ok(_) => Err(Error::new("Two transactions committed that no order explains.", "")),
        Err(error) => {
            cell.a.exec("ROLLBACK")?;
            same("the error of the second", &error.sqlstate, "40001")
        }
    }
}

pub fn skew_open_row(cell: &mut Cell) -> Result<()> {
    let read = cell.key(0).to_string();
    skew_open(cell, &read)
}

pub fn skew_close_row(cell: &mut Cell) -> Result<()> {
    let write = format!("UPDATE t SET n = n + 1 WHERE id = {}", cell.key(0));
    skew_close(cell, &write)
}

pub fn skew_open_gap(cell: &mut Cell) -> Result<()> {
    let read = cell.free(0).to_string();
    skew_open(cell, &read)
}

pub fn skew_close_gap(cell: &mut Cell) -> Result<()> {
    let write = format!("INSERT INTO t (id, v) VALUES ({}, 'skewed')", cell.free(0));
    skew_close(cell, &write)
}

/// Changes before and in a savepoint.
pub fn savepoint_open(cell: &mut Cell) -> Result<()> {
    let [x, y, z] = [0, 1, 2].map(|n| cell.key(n).to_string());
    let new = cell.free(0).to_string();
    let a = &mut cell.a;
    a.exec("BEGIN")?;
    both(a, &format!("UPDATE t SET n = n + 1, v = 'kept' WHERE id = {x}"))?;
    a.exec("SAVEPOINT s")?;
    both(a, &format!("UPDATE t SET n = n + 1, v = 'undone' WHERE id IN ({x}, {y})"))?;
    both(a, &format!("DELETE FROM t WHERE id = {z}"))?;
    both(a, &format!("INSERT INTO t (id, v) VALUES ({new}, 'undone')"))
}

/// More changes, which are undone with those; then other ones that stay.
pub fn savepoint_close(cell: &mut Cell) -> Result<()> {
    let [x, y, z] = [0, 1, 2].map(|n| cell.key(n).to_string());
    let (new, key) = (cell.free(1).to_string(), cell.key(3).to_string());
    let a = &mut cell.a;
    both(a, &format!("UPDATE t SET v = 'undone' WHERE id = {key}"))?;
    a.exec("ROLLBACK TO s")?;
    both(a, &format!("UPDATE t SET n = n + 10 WHERE id = {y}"))?;
    a.exec("SAVEPOINT deeper")?;
    both(a, &format!("INSERT INTO t (id, v) VALUES ({new}, 'kept')"))?;
    a.exec("RELEASE deeper")?;
    a.exec("COMMIT")?;
    let sql = format!(
        "SELECT string_agg(v, ' ' ORDER BY id) FROM t WHERE v IN ('kept', 'undone') AND id IN ({x}, {y}, {z}, {new})"
    );
    same("what was kept", &a.query_one(&sql)?, "kept kept")
}

/// A transaction that has let go of all it changed, and is still there.
pub fn undone_open(cell: &mut Cell) -> Result<()> {
    let (key, new) = (cell.key(0).to_string(), cell.free(0).to_string());
    let a = &mut cell.a;
    a.exec("BEGIN; UPDATE other SET n = n + 1 WHERE id = 2; SAVEPOINT s")?;
    both(a, &format!("UPDATE t SET n = n + 1, v = 'undone' WHERE id = {key}"))?;
    both(a, &format!("INSERT INTO t (id, v) VALUES ({new}, 'undone')"))?;
    a.exec("ROLLBACK TO s")?;
    Ok(())
}

pub fn undone_close(cell: &mut Cell) -> Result<()> {
    let (key, gone, new) = (cell.key(0).to_string(), cell.key(1).to_string(), cell.free(0).to_string());
    let a = &mut cell.a;
    both(a, &format!("UPDATE t SET n = n + 10 WHERE id = {key}"))?;
    both(a, &format!("DELETE FROM t WHERE id = {gone}"))?;
    both(a, &format!("INSERT INTO t (id, v) VALUES ({new}, 'kept')"))?;
    a.exec("COMMIT")?;
    Ok(())
}

/// Two prepared transactions, of which one will be rolled back. They have no process.
pub fn prepare(cell: &mut Cell) -> Result<()> {
    let [x, y, z] = [0, 1, 2].map(|n| cell.key(n).to_string());
    let new = cell.free(0).to_string();
    cell.holder = "a prepared transaction".to_string();
    cell.noted = ["keep", "drop"].map(|what| format!("{what} {} {}", cell.database, cell.leg)).to_vec();
    let a = &mut cell.a;
    a.exec("BEGIN")?;
    both(a, &format!("UPDATE t SET n = n + 1, v = 'prepared' WHERE id = {x}"))?;
    both(a, &format!("DELETE FROM t WHERE id = {y}"))?;
    both(a, &format!("INSERT INTO t (id, v) VALUES ({new}, 'prepared')"))?;
    a.exec(&format!("PREPARE TRANSACTION '{}'", cell.noted[0]))?;
    a.exec("BEGIN")?;
    both(a, &format!("UPDATE t SET n = n + 1, v = 'dropped' WHERE id = {z}"))?;
    a.exec(&format!("PREPARE TRANSACTION '{}'", cell.noted[1]))?;
    Ok(())
}

/// Other sessions end them.
pub fn commit_prepared(cell: &mut Cell) -> Result<()> {
    let (keep, drop) = (&cell.noted[0], &cell.noted[1]);
    cell.c.exec(&format!("ROLLBACK PREPARED '{drop}'"))?;
    cell.b.exec(&format!("COMMIT PREPARED '{keep}'"))?;
    let key = cell.key(0).to_string();
    let v = cell.c.query_one(&format!("SELECT v FROM t WHERE id = {key}"))?;
    same("the prepared change", &v, "prepared")
}
