//! Making a part of a closure on a node: its table is noted here, committed, before it is there; what was made there and
//! never attached, or has lost its foreign table, is an orphan as that of a slot is (docs/decisions/0019).

use super::create::{hand_over, oid_of, own_name, role_name};
use super::far::{inbox_of, marks_of};
use super::{Graph, functions};
use crate::catalog::link::Link;
use crate::catalog::node;
use crate::catalog::remote::lease::{self, Held};
use crate::catalog::remote::{self, RemoteRow, against, literal, make};
use crate::pg::graph::drop_with;
use crate::pg::graph::keys::KeyKind;
use crate::pg::report::{PgResult, internal, refuse};
use crate::pg::spi;
use pgrx::pg_sys;
use pgrx::spi::quote_identifier;

/// Whether a shard is on a node of postgres_fdw.
pub fn is_on_node(shard_id: i32) -> PgResult<bool> {
    let found = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.shard h JOIN foreshard.node n USING (node_name) WHERE h.shard_id = $1 AND n.engine = 'postgres_fdw')",
        &[shard_id.into()],
    )?;
    Ok(found.unwrap_or(false))
}

/// The table that was noted for a part and is not attached yet, and whether it has been made.
pub fn noted(closure: pg_sys::Oid, shard_id: i32) -> PgResult<Option<(i64, bool)>> {
    let found = spi::rows_mut(
        "SELECT remote_id, NOT dressed FROM foreshard.remote_table \
         WHERE table_oid = $1 AND graph_shard = $2 AND partition = 0 ORDER BY 1 LIMIT 1",
        &[closure.into(), shard_id.into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<bool>(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// Notes a table that is about to be made for a part.
pub fn note(graph: &Graph, closure: pg_sys::Oid, shard_id: i32) -> PgResult<()> {
    let (node, _) = node_of(shard_id)?;
    // What is there is on disk: so must be what is known of it here.
    spi::set_local("synchronous_commit", "on")?;
    spi::run(
        "INSERT INTO foreshard.remote_table (remote_id, node_name, remote_schema, remote_name, table_oid, owner_name, move_id, graph_shard, key_columns, portrait) \
         SELECT q.n, $1::name, $2::name, 'closure_s' || $4::int || '_f' || q.n, $3, $5::name, 0, $4, '{ancestor,descendant}'::name[], foreshard.table_portrait($3) \
         FROM (SELECT pg_catalog.nextval('foreshard.remote_table_remote_id_seq') AS n) q",
        &[
            node.name.as_str().into(),
            node.schema.as_str().into(),
            closure.into(),
            shard_id.into(),
            remote::role_name(graph.owner)?.as_str().into(),
        ],
    )?;
    Ok(())
}

fn node_of(shard_id: i32) -> PgResult<(node::NodeRow, String)> {
    remote::node_of_shard(shard_id)?
        .ok_or_else(|| internal("the shard of a part on a node is on this server"))
}

/// The row of a table that is being made or attached, which nobody takes for an orphan until the end of the transaction; None:
/// it was taken for one, or attached.
fn kept(remote_id: i64) -> PgResult<Option<RemoteRow>> {
    let locked = "SELECT true FROM foreshard.remote_table WHERE remote_id = $1 AND partition = 0 FOR UPDATE";
    if spi::one_mut::<bool>(locked, &[remote_id.into()])?.is_none() {
        return Ok(None);
    }
    remote::by_id(remote_id)
}

/// Makes the table of a part on its node, with its indexes, its inbox and the marks of components, in one transaction
/// there, as the graph's owner. False: no health check has looked at the node yet.
///
/// # Errors
/// 55000 when another server holds the tables there, 0A000 when the node has another encoding or orders texts otherwise; what the connection failed with.
pub fn make(graph: &Graph, closure: pg_sys::Oid, shard_id: i32, remote_id: i64) -> PgResult<bool> {
    let Some(row) = kept(remote_id)? else { return Ok(true) };
    let (node, tablespace) = node_of(shard_id)?;
    match lease::held(&node)? {
        Held::Ours => {}
        Held::NotYet => return Ok(false),
        Held::Lost => return Err(lease::lost(&node.name)),
    }
    let link = Link::open(&node.server, graph.owner)?;
    let columns = remote::columns(closure, true)?;
    let mut against = Vec::new();
    against.extend(against::other_encoding(&link, &node)?);
    if graph.kind == KeyKind::Text && !columns.contains(" COLLATE ") {
        against.extend(against::order_of(&link, &node, "keys of nodes")?);
    }
    let what =
        format!("the closure of graph \"{}\" cannot have a part on node \"{}\"", graph.name, node.name);
    refuse(what, &against, "Move its nodes to another shard.")?;
    make::remove(&link, &row)?;
    link.exec(&statements(&row, &columns, &remote::columns(closure, false)?, shard_id, &tablespace))?;
    spi::run("UPDATE foreshard.remote_table SET dressed = false WHERE remote_id = $1", &[remote_id.into()])?;
    Ok(true)
}

/// What makes everything of a part on its node.
fn statements(row: &RemoteRow, columns: &str, loose: &str, shard_id: i32, tablespace: &str) -> String {
    let (table, parent) = (row.table_there(), row.aid_there("of"));
    let (inbox, marks) = (row.aid_there("inbox"), row.aid_there("marks"));
    let body = format!(
        "BEGIN IF NEW.depth IS NULL THEN \
             DELETE FROM {table} t WHERE t.ancestor = NEW.ancestor AND t.descendant = NEW.descendant; \
         ELSE INSERT INTO {table} (ancestor, descendant, depth, ancestor_shard, descendant_shard) \
             VALUES (NEW.ancestor, NEW.descendant, NEW.depth, NEW.ancestor_shard, NEW.descendant_shard) \
             ON CONFLICT (ancestor, descendant) DO UPDATE SET depth = excluded.depth, descendant_shard = excluded.descendant_shard; \
         END IF; RETURN NULL; END"
    );
    format!(
        "BEGIN; CREATE TABLE {parent} ({columns}) PARTITION BY LIST (ancestor_shard); COMMENT ON TABLE {parent} IS {}; \
         CREATE TABLE {table} PARTITION OF {parent} FOR VALUES IN ({shard_id}) WITH (fillfactor = 90) TABLESPACE {}; \
         CREATE UNIQUE INDEX ON {table} (ancestor, descendant) INCLUDE (depth, ancestor_shard); \
         CREATE INDEX ON {table} (descendant, depth) INCLUDE (ancestor); \
         CREATE TABLE {marks} (component bigint PRIMARY KEY, token bigint NOT NULL, previous bigint) WITH (fillfactor = 50); \
         CREATE TABLE {inbox} ({loose}); \
         CREATE FUNCTION {inbox}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {}; \
         REVOKE ALL ON FUNCTION {inbox}() FROM PUBLIC; \
         CREATE TRIGGER foreshard_inbox BEFORE INSERT ON {inbox} FOR EACH ROW EXECUTE FUNCTION {inbox}(); COMMIT",
        literal(&row.mark),
        quote_identifier(tablespace),
        literal(&body),
    )
}

/// Rows that one statement brings to a node, or back.
const BATCH_ROWS: i32 = 1_000;

/// Attaches a part that was made on its node; no node is asked. The closure is locked. False: it was taken for an orphan.
/// As the extension's owner.
pub fn attach(graph: &Graph, closure: pg_sys::Oid, shard_id: i32, remote_id: i64) -> PgResult<bool> {
    let Some(row) = kept(remote_id)? else { return Ok(false) };
    let owner = role_name(graph.owner)?;
    let name = own_name(&graph.name, &format!("_closure_s{shard_id}"));
    let (inbox, marks) = (inbox_of(remote_id), marks_of(remote_id));
    let (server, schema) = (quote_identifier(&row.server), literal(&row.schema));
    let table = |name: &str, columns: &str, there: &str, more: &str| -> PgResult<pg_sys::Oid> {
        let there = literal(there);
        spi::run(
            &format!(
                "CREATE FOREIGN TABLE {name} ({columns}) SERVER {server} OPTIONS (schema_name {schema}, table_name {there}{more})"
            ),
            &[],
        )?;
        let made = oid_of(name)?;
        hand_over(made, &owner)?;
        Ok(made)
    };
    let aid = |what: &str| format!("foreshard_{what}_{remote_id}");
    let batch = format!(", batch_size '{BATCH_ROWS}'");
    // Parts on several nodes are asked at once.
    let main = format!("{batch}, fetch_size '{BATCH_ROWS}', async_capable 'true'");
    let part = table(&name, &remote::columns(closure, true)?, &row.name, &main)?;
    let inbox = table(&inbox, &remote::columns(closure, false)?, &aid("inbox"), &batch)?;
    let marks = table(&marks, "component bigint, token bigint, previous bigint", &aid("marks"), "")?;
    drop_with(inbox, part);
    drop_with(marks, part);
    let closure = &graph.closure_name;
    spi::run(&format!("ALTER TABLE {closure} ATTACH PARTITION {name} FOR VALUES IN ({shard_id})"), &[])?;
    spi::run(
        "UPDATE foreshard.remote_table SET partition = $2 WHERE remote_id = $1",
        &[remote_id.into(), part.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.graph_partition (graph_id, shard_id, partition) VALUES ($1, $2, $3::regclass)",
        &[graph.id.into(), shard_id.into(), part.into()],
    )?;
    functions::make(graph, graph.owner, true)?;
    super::create::announce()?;
    Ok(true)
}
