//! Rights on tables on nodes: roles that user mappings name there have those that whoever they stand for has here.
//! They are given when a copy is made, and the health checks of a node follow what is granted, revoked or mapped later.
//!
//! A GRANT on a node is committed there before anything is committed here. So what is about to be given is noted first, in a
//! transaction of its own: nothing is ever there that is not known to be taken back. What somebody else granted there by hand
//! is left alone.

use super::{RemoteRow, by_id, lease, literal, reap};
use crate::catalog::link::Link;
use crate::catalog::node::NodeRow;
use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg, Row};
use pgrx::JsonB;
use pgrx::spi::quote_identifier;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashSet};

/// A right, with its columns if it is one of columns, and the role there that has it.
type Right = (String, String);

/// What is to be done about the rights on one table on a node.
pub struct Due {
    remote_id: i64,
    /// What roles are to have, in the order in which it is stored.
    wanted: Vec<Right>,
    /// What they may have; all that they are to have is among it.
    noted: BTreeSet<Right>,
    /// What they have for certain.
    given: BTreeSet<Right>,
}

/// Names of roles on a node.
pub type Roles = HashSet<String>;

fn rights_of(value: &Value) -> Vec<Right> {
    let one =
        |entry: &Value| Some((entry["right"].as_str()?.to_string(), entry["role"].as_str()?.to_string()));
    value.as_array().map(|all| all.iter().filter_map(one).collect()).unwrap_or_default()
}

fn value_of<'a>(rights: impl Iterator<Item = &'a Right>) -> JsonB {
    JsonB(Value::Array(rights.map(|(right, role)| json!({"right": right, "role": role})).collect()))
}

fn set(row: &Row, column: usize) -> PgResult<Vec<Right>> {
    Ok(rights_of(&row.need::<JsonB>(column)?.0))
}

/// Notes what the tables chosen by `which` are about to be given, and tells of those on which anything has to be done.
fn note(which: &str, chosen: &[Arg]) -> PgResult<Vec<Due>> {
    // What is given on a node is on disk there: so must be what is known of it here.
    spi::set_local("synchronous_commit", "on")?;
    let all = format!(
        "SELECT t.remote_id, coalesce(w.rights, '[]') AS wanted FROM foreshard.remote_table t \
         LEFT JOIN foreshard.wanted_rights() w ON w.remote_id = t.remote_id WHERE {which}"
    );
    // A role that is missing there stays due, and its right is noted once.
    spi::run(
        &format!(
            "UPDATE foreshard.remote_table r SET rights = (SELECT coalesce(pg_catalog.jsonb_agg(DISTINCT e), '[]') \
                 FROM pg_catalog.jsonb_array_elements(r.rights || q.wanted) e) \
             FROM ({all}) q WHERE r.remote_id = q.remote_id AND NOT r.rights @> q.wanted"
        ),
        chosen,
    )?;
    spi::rows_mut(
        &format!(
            "SELECT r.remote_id, q.wanted, r.rights, r.given FROM foreshard.remote_table r JOIN ({all}) q USING (remote_id) \
             WHERE r.rights <> q.wanted OR r.given <> q.wanted"
        ),
        chosen,
        |row| {
            Ok(Due {
                remote_id: row.need(1)?,
                wanted: set(row, 2)?,
                noted: set(row, 3)?.into_iter().collect(),
                given: set(row, 4)?.into_iter().collect(),
            })
        },
    )
}

/// Notes what is due on a node, of tables that are partitions: nobody else changes rights on those.
pub fn note_due(node: &str) -> PgResult<Vec<Due>> {
    let attached = "t.node_name = $1::name \
        AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = t.partition AND i.inhparent = t.table_oid)";
    note(attached, &[node.into()])
}

/// Notes what the copies that a move makes on a node are to be given.
pub fn note_of_move(move_id: i64) -> PgResult<()> {
    note("t.move_id = $1", &[move_id.into()]).map(drop)
}

/// Which of the roles that are in question there are on the node.
pub fn roles_there(link: &Link, due: &[Due]) -> PgResult<Roles> {
    existing(link, due.iter().flat_map(|one| one.wanted.iter().chain(&one.noted)))
}

fn existing<'a>(link: &Link, rights: impl Iterator<Item = &'a Right>) -> PgResult<Roles> {
    let names: BTreeSet<String> = rights.map(|(_, role)| literal(role)).collect();
    if names.is_empty() {
        return Ok(Roles::new());
    }
    let names: Vec<String> = names.into_iter().collect();
    let query = format!("SELECT rolname FROM pg_roles WHERE rolname IN ({})", names.join(", "));
    Ok(link.rows(&query, 1)?.into_iter().flatten().flatten().collect())
}

impl Due {
    /// What to revoke and what to grant. Whoever loses a right on the table loses that on its columns with it, so whatever he
    /// is to have is granted again.
    fn changes(&self, roles: &Roles) -> (Vec<&Right>, Vec<&Right>) {
        let wanted: BTreeSet<&Right> = self.wanted.iter().collect();
        let gone: Vec<&Right> =
            self.noted.iter().filter(|right| !wanted.contains(right) && roles.contains(&right.1)).collect();
        let is_new =
            |right: &&Right| !self.given.contains(*right) || gone.iter().any(|(_, role)| *role == right.1);
        let new: Vec<&Right> =
            self.wanted.iter().filter(|right| roles.contains(&right.1) && is_new(right)).collect();
        (gone, new)
    }

    /// Makes the rights there what they are to be, as far as the roles exist. What has no role there stays due.
    pub fn carry(&self, node: &NodeRow, roles: &Roles) -> PgResult<()> {
        let Some(row) = by_id(self.remote_id)? else { return Ok(()) };
        let (gone, new) = self.changes(roles);
        if !gone.is_empty() || !new.is_empty() {
            let Some(role) = reap::maker(&row, node)? else { return Ok(()) };
            lease::require(node)?;
            change(&Link::open(&row.server, role)?, &row, &gone, &new)?;
        }
        let given = self.wanted.iter().filter(|(_, role)| roles.contains(role));
        spi::run(
            "UPDATE foreshard.remote_table SET rights = $2, given = $3 WHERE remote_id = $1 AND (rights <> $2 OR given <> $3)",
            &[self.remote_id.into(), value_of(self.wanted.iter()).into(), value_of(given).into()],
        )?;
        Ok(())
    }
}

/// In one transaction there.
fn change(link: &Link, row: &RemoteRow, gone: &[&Right], new: &[&Right]) -> PgResult<()> {
    let table = row.table_there();
    let revoke =
        |(right, role): &&Right| format!("REVOKE {right} ON {table} FROM {}; ", quote_identifier(role));
    let grant = |(right, role): &&Right| format!("GRANT {right} ON {table} TO {}; ", quote_identifier(role));
    let statements: String = gone.iter().map(revoke).chain(new.iter().map(grant)).collect();
    link.exec(&format!("BEGIN; {statements}COMMIT"))
}

/// Gives a copy that nobody uses yet what was noted for it, as far as the roles exist.
pub fn give(link: &Link, row: &RemoteRow) -> PgResult<()> {
    let noted = "SELECT rights FROM foreshard.remote_table WHERE remote_id = $1";
    let noted = spi::one::<JsonB>(noted, &[row.remote_id.into()])?.map(|rights| rights_of(&rights.0));
    let noted = noted.unwrap_or_default();
    let roles = existing(link, noted.iter())?;
    let new: Vec<&Right> = noted.iter().filter(|(_, role)| roles.contains(role)).collect();
    if new.is_empty() { Ok(()) } else { change(link, row, &[], &new) }
}
