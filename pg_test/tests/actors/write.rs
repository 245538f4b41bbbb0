//! Those who write, and those who wait for each other: MERGE, ON CONFLICT, row locks.

use crate::grid::{Cell, both, same, twice};
use crate::support::error_of;
use foreshard_test::{Client, Error, Result};
use std::time::Duration;

/// How long a session may still wait after the other one has ended.
const SOON: Duration = Duration::from_secs(10);

/// Sends a statement that has to wait for another session.
fn send_waiting(client: &mut Client, sql: &str) -> Result<()> {
    client.send_query(&twice(sql))?;
    match client.poll_result(Duration::from_millis(20))? {
        None => Ok(()),
        Some(_) => Err(Error::new(format!("This did not wait: {sql}"), "")),
    }
}

/// The end of a statement that waited.
fn waited(client: &mut Client) -> Result<()> {
    let rows = client.poll_result(SOON)?;
    rows.map(drop).ok_or_else(|| Error::new("A statement waits for nobody.", ""))
}

/// A cursor that locks the rows it stands on. WHERE CURRENT OF asks every partition for its cursor, so none may
/// be pruned.
pub fn cursor_open(cell: &mut Cell) -> Result<()> {
    let (x, y, z) = (cell.key(0), cell.key(1), cell.key(2));
    let sql = format!(
        "BEGIN; DECLARE c CURSOR FOR SELECT id FROM t WHERE id + 0 IN ({x}, {y}, {z}) ORDER BY id FOR UPDATE; FETCH 1 FROM c"
    );
    let found = cell.a.query_one(&sql)?;
    same("the cursor's first row", &found, cell.key(0))
}

pub fn cursor_close(cell: &mut Cell) -> Result<()> {
    let (x, y) = (cell.key(0).to_string(), cell.key(1).to_string());
    let a = &mut cell.a;
    let set = "SET n = n + 1, v = 'current'";
    same(
        "rows updated",
        &a.exec(&format!("UPDATE t {set} WHERE CURRENT OF c"))?.affected().to_string(),
        "1",
    )?;
    a.exec(&format!("UPDATE u {set} WHERE id = {x}"))?;
    same("the cursor's second row", &a.query_one("FETCH 1 FROM c")?, &y)?;
    same("rows deleted", &a.exec("DELETE FROM t WHERE CURRENT OF c")?.affected().to_string(), "1")?;
    a.exec(&format!("DELETE FROM u WHERE id = {y}"))?;
    a.exec("FETCH ALL FROM c; COMMIT")?;
    Ok(())
}

fn merge(changed: &str, deleted: &str, inserted: &str) -> String {
    format!(
        "MERGE INTO t AS m USING (VALUES ({changed}), ({deleted}), ({inserted})) AS s (id) ON m.id = s.id AND m.k = 0 \
         WHEN MATCHED AND m.id = {deleted} THEN DELETE \
         WHEN MATCHED THEN UPDATE SET n = m.n + 1, v = m.v || '+' \
         WHEN NOT MATCHED THEN INSERT (id, v) VALUES (s.id, 'merged')"
    )
}

/// One MERGE is done and not committed; another one waits for its row.
pub fn merge_open(cell: &mut Cell) -> Result<()> {
    let first = merge(cell.key(0), cell.key(1), cell.free(0));
    let second = merge(cell.key(0), cell.key(2), cell.free(1));
    cell.a.exec("BEGIN")?;
    both(&mut cell.a, &first)?;
    send_waiting(&mut cell.b, &second)
}

pub fn merge_close(cell: &mut Cell) -> Result<()> {
    let third = merge(cell.key(3), cell.key(4), cell.free(2));
    both(&mut cell.a, &third)?;
    cell.a.exec("COMMIT")?;
    waited(&mut cell.b)?;
    // What the second one found changed, it changed again.
    let key = cell.key(0).to_string();
    let v = cell.a.query_one(&format!("SELECT v LIKE '%++' FROM t WHERE id = {key}"))?;
    same("both changes of one row", &v, "t")
}

fn upsert(id: &str) -> String {
    format!(
        "INSERT INTO t AS m (id, v) VALUES ({id}, 'inserted') ON CONFLICT (id, k) DO UPDATE SET n = m.n + 1, v = m.v || ' again'"
    )
}

/// A new row and an old one; somebody else wants the same new row.
pub fn upsert_open(cell: &mut Cell) -> Result<()> {
    let (new, old) = (upsert(cell.free(0)), upsert(cell.key(0)));
    cell.a.exec("BEGIN")?;
    both(&mut cell.a, &new)?;
    both(&mut cell.a, &old)?;
    send_waiting(&mut cell.b, &new)?;
    send_waiting(&mut cell.c, &old)
}

pub fn upsert_close(cell: &mut Cell) -> Result<()> {
    cell.a.exec("COMMIT")?;
    waited(&mut cell.b)?;
    waited(&mut cell.c)?;
    let (new, old) = (cell.free(0).to_string(), cell.key(0).to_string());
    let v = cell.a.query_one(&format!("SELECT v FROM t WHERE id = {new}"))?;
    same("the new row", &v, "inserted again")?;
    let v = cell.a.query_one(&format!("SELECT v LIKE '% again again' FROM t WHERE id = {old}"))?;
    same("the old row", &v, "t")
}

fn if_absent(id: &str, v: &str) -> String {
    format!("INSERT INTO t (id, v) VALUES ({id}, '{v}') ON CONFLICT DO NOTHING")
}

/// Two new rows and an old one, in a transaction that will be rolled back, and those who want them.
pub fn nothing_open(cell: &mut Cell) -> Result<()> {
    let (new, old) = (if_absent(cell.free(0), "first"), if_absent(cell.key(0), "never"));
    let second = if_absent(cell.free(0), "second");
    cell.a.exec("BEGIN")?;
    both(&mut cell.a, &new)?;
    same("rows inserted", &cell.a.exec(&old)?.affected().to_string(), "0")?;
    send_waiting(&mut cell.b, &second)
}

pub fn nothing_close(cell: &mut Cell) -> Result<()> {
    let new = cell.free(0).to_string();
    cell.a.exec("ROLLBACK")?;
    waited(&mut cell.b)?;
    let third = if_absent(&new, "third");
    same("rows inserted", &cell.a.exec(&third)?.affected().to_string(), "0")?;
    let v = cell.a.query_one(&format!("SELECT v FROM t WHERE id = {new}"))?;
    same("the new row", &v, "second")
}

const MODES: [&str; 4] = ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"];

/// Whether a lock of one mode excludes one of the other, as PostgreSQL's manual has it.
fn excludes(held: usize, wanted: usize) -> bool {
    held == 0 || wanted == 0 || held == 1 && wanted <= 2 || held == 2 && wanted == 1
}

/// A row locked in every mode; those that can be shared by two sessions.
pub fn locks_open(cell: &mut Cell) -> Result<()> {
    cell.a.exec("BEGIN")?;
    cell.b.exec("BEGIN")?;
    for (n, mode) in MODES.iter().enumerate() {
        let lock = format!("SELECT FROM t WHERE id = {} FOR {mode}", cell.key(n));
        both(&mut cell.a, &lock)?;
        if n >= 2 {
            both(&mut cell.b, &lock)?;
        }
    }
    Ok(())
}

/// Everybody else finds the locks as they are in an ordinary table; their holder writes.
pub fn locks_close(cell: &mut Cell) -> Result<()> {
    for (held, mode) in MODES.iter().enumerate() {
        for (wanted, other) in MODES.iter().enumerate() {
            for table in ["t", "u"] {
                let id = cell.key(held).to_string();
                let sql = format!("SELECT id FROM {table} WHERE id = {id} FOR {other}");
                let what = format!("FOR {other} of a row of {table} locked FOR {mode}");
                let skipped = cell.c.exec(&format!("{sql} SKIP LOCKED"))?.is_empty();
                same(&what, &skipped.to_string(), &excludes(held, wanted).to_string())?;
                if skipped {
                    same(&what, &error_of(&mut cell.c, &format!("{sql} NOWAIT"))?.sqlstate, "55P03")?;
                }
            }
        }
    }
    // What only shares the key lets others change the rest of the row.
    let shared = cell.key(3).to_string();
    both(&mut cell.c, &format!("UPDATE t SET n = n + 1 WHERE id = {shared}"))?;
    let (changed, deleted) = (cell.key(0).to_string(), cell.key(1).to_string());
    both(&mut cell.a, &format!("UPDATE t SET n = n + 1 WHERE id = {changed}"))?;
    both(&mut cell.a, &format!("DELETE FROM t WHERE id = {deleted}"))?;
    cell.a.exec("COMMIT")?;
    let still = cell.key(2).to_string();
    let held = cell.c.exec(&format!("SELECT FROM t WHERE id = {still} FOR UPDATE SKIP LOCKED"))?;
    same("the other session's lock", &held.is_empty().to_string(), "true")?;
    cell.b.exec("COMMIT")?;
    Ok(())
}
