//! Triggers that tell others, and constraints that are checked at commit.

use crate::grid::{Cell, both, same};
use crate::support::expect_error;
use foreshard_test::Result;

/// Every change is told, once.
pub const NOTIFY: &str = "
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('changes', TG_OP || ' ' || coalesce(NEW.id, OLD.id) || ' ' || coalesce(NEW.v, ''));
        RETURN NULL;
    END $$;
    CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION tell()";

/// One change is committed, one not, one never will be.
pub fn notify_open(cell: &mut Cell) -> Result<()> {
    let (x, y, new) = (cell.key(0).to_string(), cell.key(1).to_string(), cell.free(0).to_string());
    cell.b.exec("LISTEN changes")?;
    both(&mut cell.c, &format!("UPDATE t SET v = 'alone' WHERE id = {y}"))?;
    let a = &mut cell.a;
    a.exec("BEGIN")?;
    both(a, &format!("UPDATE t SET v = 'first' WHERE id = {x}"))?;
    both(a, &format!("INSERT INTO t (id, v) VALUES ({new}, 'new')"))?;
    a.exec("SAVEPOINT s")?;
    both(a, &format!("UPDATE t SET v = 'never' WHERE id = {y}"))?;
    a.exec("ROLLBACK TO s")?;
    cell.noted = vec![
        format!("{} UPDATE {y} alone", cell.c.backend_pid()),
        format!("{} UPDATE {x} first", cell.a.backend_pid()),
        format!("{} INSERT {new} new", cell.a.backend_pid()),
    ];
    Ok(())
}

/// Exactly what was changed was told, by those who changed it.
pub fn notify_close(cell: &mut Cell) -> Result<()> {
    let (x, gone) = (cell.key(0).to_string(), cell.key(2).to_string());
    both(&mut cell.a, &format!("UPDATE t SET v = 'second' WHERE id = {x}"))?;
    both(&mut cell.a, &format!("DELETE FROM t WHERE id = {gone}"))?;
    cell.a.exec("COMMIT")?;
    let pid = cell.a.backend_pid();
    cell.noted.push(format!("{pid} UPDATE {x} second"));
    cell.noted.push(format!("{pid} DELETE {gone} "));
    cell.noted.sort_unstable();
    let bystander = format!("UPDATE {} bystander {}", cell.bystanders_key(), cell.leg);
    let mut told = Vec::new();
    let mut by_bystander = 0;
    for (pid, text) in cell.b.take_notifications()? {
        // The bystander's session is not ours.
        if text == bystander {
            by_bystander += 1;
        } else {
            told.push(format!("{pid} {text}"));
        }
    }
    told.sort_unstable();
    same("what was told", &told.join("\n"), &cell.noted.join("\n"))?;
    same("what was told of the bystander", &by_bystander.to_string(), "1")
}

/// The move itself has nothing to tell.
pub fn notify_after(cell: &mut Cell) -> Result<()> {
    let told = cell.b.take_notifications()?;
    same("what the move told", &format!("{told:?}"), "[]")
}

/// A constraint that rows may violate until commit.
pub const UNIQUE: &str = "
    ALTER TABLE t ADD UNIQUE (id, n) DEFERRABLE INITIALLY DEFERRED;
    ALTER TABLE u ADD UNIQUE (id, n) DEFERRABLE INITIALLY DEFERRED";

/// Two transactions violate the constraint.
pub fn unique_open(cell: &mut Cell) -> Result<()> {
    let (x, y) = (cell.key(0).to_string(), cell.key(1).to_string());
    for id in [&x, &y] {
        both(&mut cell.admin, &format!("INSERT INTO t (id, k, n) VALUES ({id}, 1, 50)"))?;
    }
    cell.a.exec("BEGIN")?;
    both(&mut cell.a, &format!("UPDATE t SET n = 60 WHERE id = {x}"))?;
    cell.b.exec(&format!("BEGIN; UPDATE t SET n = 60 WHERE id = {y}"))?;
    Ok(())
}

/// One cannot commit, the other puts things right first; a third is told at once when it asks.
pub fn unique_close(cell: &mut Cell) -> Result<()> {
    let (x, y) = (cell.key(0).to_string(), cell.key(1).to_string());
    expect_error(&mut cell.b, "23505", "COMMIT")?;
    both(&mut cell.a, &format!("UPDATE t SET n = 61 WHERE id = {x} AND k = 1"))?;
    cell.a.exec("COMMIT")?;
    cell.c.exec("BEGIN; SET CONSTRAINTS ALL IMMEDIATE")?;
    expect_error(&mut cell.c, "23505", &format!("UPDATE t SET n = 60 WHERE id = {y}"))?;
    cell.c.exec("ROLLBACK")?;
    Ok(())
}

/// An ordinary table whose references are checked at commit.
pub const REFERENCES: &str = "
    CREATE TABLE child (name text, id int, k int DEFAULT 0,
        FOREIGN KEY (id, k) REFERENCES t DEFERRABLE INITIALLY DEFERRED)";

/// Two transactions refer to rows that are not there.
pub fn child_open(cell: &mut Cell) -> Result<()> {
    let (soon, never) = (cell.free(0).to_string(), cell.free(1).to_string());
    cell.a.exec(&format!("BEGIN; INSERT INTO child VALUES ('soon', {soon})"))?;
    cell.b.exec(&format!("BEGIN; INSERT INTO child VALUES ('never', {never})"))?;
    Ok(())
}

/// Meanwhile somebody makes one of the rows.
pub fn child_close(cell: &mut Cell) -> Result<()> {
    let soon = cell.free(0).to_string();
    both(&mut cell.c, &format!("INSERT INTO t (id, v) VALUES ({soon}, 'referenced')"))?;
    cell.a.exec("COMMIT")?;
    expect_error(&mut cell.b, "23503", "COMMIT")?;
    expect_error(&mut cell.c, "23503", &format!("DELETE FROM t WHERE id = {soon}"))?;
    let orphans = "SELECT count(*) FROM child WHERE NOT EXISTS (SELECT FROM t WHERE t.id = child.id)";
    same("rows that refer to nothing", &cell.c.query_one(orphans)?, "0")
}

/// Two transactions delete rows that somebody refers to.
pub fn parent_open(cell: &mut Cell) -> Result<()> {
    let (back, gone) = (cell.key(0).to_string(), cell.key(1).to_string());
    cell.c.exec(&format!("INSERT INTO child VALUES ('back', {back}), ('gone', {gone})"))?;
    cell.a.exec("BEGIN")?;
    both(&mut cell.a, &format!("DELETE FROM t WHERE id = {back}"))?;
    cell.b.exec(&format!("BEGIN; DELETE FROM t WHERE id = {gone}"))?;
    Ok(())
}

/// One brings the row back before it commits.
pub fn parent_close(cell: &mut Cell) -> Result<()> {
    let back = cell.key(0).to_string();
    both(&mut cell.a, &format!("INSERT INTO t (id, v) VALUES ({back}, 'back')"))?;
    cell.a.exec("COMMIT")?;
    expect_error(&mut cell.b, "23503", "COMMIT")?;
    let orphans = "SELECT count(*) FROM child WHERE NOT EXISTS (SELECT FROM t WHERE t.id = child.id)";
    same("rows that refer to nothing", &cell.c.query_one(orphans)?, "0")
}
