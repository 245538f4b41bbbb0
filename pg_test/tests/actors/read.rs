//! Those who mostly read: prepared statements, cursors, snapshots.

use crate::grid::{Cell, both, rows, same, same_error};
use foreshard_test::{Client, Result};

/// What a cursor returns; its rows are those of [`rows`].
const CURSOR: &str = "SELECT id, k, n, md5(v) FROM t";

fn prepare(cell: &mut Cell, mode: &str) -> Result<()> {
    if cell.leg == 0 {
        let a = &mut cell.a;
        a.exec(&format!("SET plan_cache_mode = {mode}"))?;
        a.prepare("get", "SELECT n, md5(v) FROM t WHERE id = $1")?;
        a.prepare("twin", "SELECT n, md5(v) FROM u WHERE id = $1")?;
        a.prepare("all", "SELECT count(*), sum(n), count(DISTINCT v) FROM t WHERE v <> $1")?;
        a.prepare("all of twin", "SELECT count(*), sum(n), count(DISTINCT v) FROM u WHERE v <> $1")?;
        a.prepare("put", "UPDATE t SET n = n + 1, v = v || '.' WHERE id = $1")?;
        a.prepare("put twin", "UPDATE u SET n = n + 1, v = v || '.' WHERE id = $1")?;
        a.prepare("add", "INSERT INTO t (id, v) VALUES ($1, 'added')")?;
        a.prepare("add twin", "INSERT INTO u (id, v) VALUES ($1, 'added')")?;
        a.prepare("remove", "DELETE FROM t WHERE id = $1")?;
        a.prepare("remove twin", "DELETE FROM u WHERE id = $1")?;
    }
    use_prepared(cell, 0)
}

/// Runs every prepared statement and function with a cached plan, each with its twin.
fn use_prepared(cell: &mut Cell, n: usize) -> Result<()> {
    let (key, gone, free) = (cell.key(n).to_string(), cell.key(n + 2).to_string(), cell.free(n).to_string());
    let a = &mut cell.a;
    for (statement, twin, parameter) in [
        ("put", "put twin", key.as_str()),
        ("add", "add twin", free.as_str()),
        ("remove", "remove twin", gone.as_str()),
    ] {
        for name in [statement, twin] {
            let changed = a.exec_prepared(name, &[Some(parameter)])?.affected();
            same(&format!("rows changed by \"{name}\""), &changed.to_string(), "1")?;
        }
    }
    same("the function with a cached plan", &a.query_one(&format!("SELECT bump({key})"))?, "t")?;
    for (statement, twin, parameter) in
        [("get", "twin", key.as_str()), ("get", "twin", gone.as_str()), ("all", "all of twin", "")]
    {
        let wanted = a.exec_prepared(twin, &[Some(parameter)])?.to_text();
        same(statement, &a.exec_prepared(statement, &[Some(parameter)])?.to_text(), &wanted)?;
    }
    Ok(())
}

pub fn prepared_generic(cell: &mut Cell) -> Result<()> {
    prepare(cell, "force_generic_plan")
}

pub fn prepared_custom(cell: &mut Cell) -> Result<()> {
    prepare(cell, "force_custom_plan")
}

pub fn prepared_again(cell: &mut Cell) -> Result<()> {
    use_prepared(cell, 1)
}

/// Two cursors in the middle of a scan, one by index, one through the heap.
pub fn cursor_open(cell: &mut Cell) -> Result<()> {
    let all = rows(&mut cell.admin, "u")?;
    cell.a.exec(&format!(
        "BEGIN; SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; \
         DECLARE by_index CURSOR FOR {CURSOR} ORDER BY id, k; \
         RESET enable_seqscan; RESET enable_sort; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; \
         DECLARE by_scan CURSOR FOR {CURSOR}"
    ))?;
    let by_index = cell.a.exec("FETCH 7 FROM by_index")?.to_text();
    let by_scan = cell.a.exec("FETCH 7 FROM by_scan")?.to_text();
    cell.noted = vec![all, by_index, by_scan];
    Ok(())
}

/// The rest of both is as it was when they were opened.
pub fn cursor_close(cell: &mut Cell) -> Result<()> {
    let by_index = fetch_rest(&mut cell.a, "by_index", &cell.noted[1])?;
    same("rows by index", &by_index, &cell.noted[0])?;
    let by_scan = fetch_rest(&mut cell.a, "by_scan", &cell.noted[2])?;
    same("rows by scan", &sorted(&by_scan), &sorted(&cell.noted[0]))?;
    // A new snapshot in the same transaction sees what the bystander did.
    let key = cell.bystanders_key().to_string();
    let v = cell.a.query_one(&format!("SELECT v FROM t WHERE id = {key}"))?;
    same("the bystander's row", &v, &format!("bystander {}", cell.leg))?;
    cell.a.exec("COMMIT")?;
    Ok(())
}

fn fetch_rest(client: &mut Client, cursor: &str, begin: &str) -> Result<String> {
    Ok(format!("{begin}\n{}", client.exec(&format!("FETCH ALL FROM {cursor}"))?.to_text()))
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// A cursor that outlives its transaction: whole values, of which some lie in toast.
pub fn held_cursor_open(cell: &mut Cell) -> Result<()> {
    let all = "SELECT id, k, n, v FROM";
    cell.noted.push(cell.admin.exec(&format!("{all} u ORDER BY id, k"))?.to_text());
    cell.a.exec(&format!("BEGIN; DECLARE held CURSOR WITH HOLD FOR {all} t ORDER BY id, k"))?;
    cell.noted.push(cell.a.exec("FETCH 7 FROM held")?.to_text());
    cell.a.exec("COMMIT")?;
    Ok(())
}

pub fn held_cursor_close(cell: &mut Cell) -> Result<()> {
    let held = fetch_rest(&mut cell.a, "held", &cell.noted[1])?;
    same("rows of the held cursor", &held, &cell.noted[0])?;
    cell.a.exec("CLOSE held")?;
    Ok(())
}

/// A snapshot without a lock on the table.
pub fn snapshot_open(cell: &mut Cell) -> Result<()> {
    cell.a.exec("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    cell.noted.push(rows(&mut cell.a, "u")?);
    Ok(())
}

/// A snapshot, and the lock of having read.
pub fn repeatable_open(cell: &mut Cell) -> Result<()> {
    snapshot_open(cell)?;
    same("rows at first", &rows(&mut cell.a, "t")?, &cell.noted[0])
}

/// The snapshot shows what it did, by every path; what somebody changed meanwhile cannot be changed, as in an
/// ordinary table; anything else can.
pub fn snapshot_close(cell: &mut Cell) -> Result<()> {
    for path in ["enable_seqscan", "enable_indexscan", "enable_indexonlyscan"] {
        cell.a.exec(&format!("SET LOCAL {path} = off"))?;
        for table in ["t", "u"] {
            same(&format!("rows of {table}, {path} off"), &rows(&mut cell.a, table)?, &cell.noted[0])?;
        }
        cell.a.exec(&format!("SET LOCAL {path} = on"))?;
    }
    let changed = cell.bystanders_key().to_string();
    same_error(&mut cell.a, "40001", &format!("UPDATE t SET n = 0 WHERE id = {changed}"))?;
    same_error(&mut cell.a, "40001", &format!("SELECT FROM t WHERE id = {changed} FOR UPDATE"))?;
    let key = cell.key(0).to_string();
    both(&mut cell.a, &format!("UPDATE t SET n = n + 1, v = 'by snapshot' WHERE id = {key}"))?;
    let gone = cell.key(1).to_string();
    both(&mut cell.a, &format!("DELETE FROM t WHERE id = {gone}"))?;
    cell.a.exec("COMMIT")?;
    Ok(())
}
