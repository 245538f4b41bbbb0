//! Making things: on a node the table, what takes its changes in and what logs them; here the foreign tables over
//! those, or an ordinary table that a slot comes home to. Everything may be made again after a crash.

use super::{RemoteRow, Shape, literal};
use crate::catalog::link::Link;
use crate::catalog::relation::without_grants;
use crate::catalog::{mold, shadow};
use crate::pg::report::{PgResult, busy, internal, wrong_state};
use crate::pg::spi;
use pgrx::pg_sys;
use pgrx::spi::quote_identifier;

/// Rows that one statement brings to a node.
const BATCH_ROWS: i32 = 1_000;
/// Log entries that one replay takes from a node.
pub(super) const REPLAY_ENTRIES: usize = 5_000;

fn list(names: &[String], each: impl Fn(usize, &str) -> String) -> String {
    names.iter().enumerate().map(|(n, name)| each(n, name)).collect::<Vec<_>>().join(", ")
}

/// Names of key columns, quoted.
pub fn quoted(names: &[String]) -> Vec<String> {
    names.iter().map(quote_identifier).collect()
}

/// Makes table, inbox and state of a remote table on its node, without indexes, in one transaction there.
///
/// # Errors
/// 55006 when something of its name is there that is not from here.
pub fn table(link: &Link, row: &RemoteRow, shape: &Shape, tablespace: &str) -> PgResult<()> {
    remove(link, row)?;
    let (table, parent) = (row.table_there(), row.aid_there("of"));
    let checks: String = shape.checks.iter().map(|check| format!(", {check}")).collect();
    let with = row.options.as_ref().map(|options| format!(" WITH ({options})")).unwrap_or_default();
    link.exec(&format!(
        "BEGIN; CREATE TABLE {parent} ({}{checks}) PARTITION BY {}; \
         CREATE TABLE {table} PARTITION OF {parent} {}{with} TABLESPACE {}; COMMENT ON TABLE {parent} IS {}; COMMIT",
        shape.columns,
        shape.by,
        shape.bound,
        quote_identifier(tablespace),
        literal(&row.mark),
    ))?;
    inbox(link, row, shape)
}

/// Makes what rows come in by to a table that is there: its inbox, and its state.
pub fn inbox(link: &Link, row: &RemoteRow, shape: &Shape) -> PgResult<()> {
    let (table, inbox, state) = (row.table_there(), row.aid_there("inbox"), row.aid_there("state"));
    let columns = shape.names.join(", ");
    let values = list(&shape.names, |_, name| format!("NEW.{name}"));
    let matches =
        quoted(&row.key).iter().map(|k| format!("t.{k} = NEW.{k}")).collect::<Vec<_>>().join(" AND ");
    // What a copy writes is told to the statistics at once, not when the session has nothing to do for ten seconds: who reads them after
    // the cutover would take it for a load of the slot.
    let body = format!(
        "BEGIN IF TG_LEVEL = 'STATEMENT' THEN PERFORM pg_catalog.pg_stat_force_next_flush(); RETURN NULL; END IF; \
         IF NEW.foreshard_present THEN INSERT INTO {table} ({columns}) VALUES ({values}); \
         ELSE DELETE FROM {table} t WHERE {matches}; END IF; RETURN NULL; END"
    );
    link.exec(&format!(
        "BEGIN; DROP TABLE IF EXISTS {inbox}, {state}; DROP FUNCTION IF EXISTS {inbox}(); \
         CREATE TABLE {inbox} (foreshard_present boolean NOT NULL, {}); \
         CREATE TABLE {state} (blocks bigint NOT NULL); INSERT INTO {state} VALUES (0); \
         CREATE FUNCTION {inbox}() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS {}; \
         REVOKE ALL ON FUNCTION {inbox}() FROM PUBLIC; \
         CREATE TRIGGER foreshard_flush BEFORE INSERT ON {inbox} FOR EACH STATEMENT EXECUTE FUNCTION {inbox}(); \
         CREATE TRIGGER foreshard_inbox BEFORE INSERT ON {inbox} FOR EACH ROW EXECUTE FUNCTION {inbox}(); COMMIT",
        shape.loose_columns,
        literal(&body),
    ))
}

/// Removes everything of a remote table from its node; what is gone already is fine.
///
/// # Errors
/// 55006 when what is there is not from here.
pub fn remove(link: &Link, row: &RemoteRow) -> PgResult<()> {
    let parent = row.aid_there("of");
    let said = link.rows(
        &format!(
            "SELECT to_regclass({})::oid::text, obj_description(to_regclass({}), 'pg_class'), to_regclass({})::oid::text",
            literal(&parent),
            literal(&parent),
            literal(&row.table_there())
        ),
        3,
    )?;
    let said = said.into_iter().next().unwrap_or_default();
    let text = |at: usize| said.get(at).cloned().flatten();
    if text(0).is_none() && text(2).is_none() {
        return Ok(());
    }
    if text(1).as_deref() != Some(row.mark.as_str()) {
        return Err(busy(format!("table {} on node \"{}\" was not made from here", row.table_there(), row.node))
            .set_detail("It belongs to another server, or somebody made it there.")
            .set_hint("Rename it there, or look in the view foreshard.remote_tables at what this server believes to own."));
    }
    let (inbox, log) = (row.aid_there("inbox"), row.aid_there("log"));
    link.exec(&format!(
        "BEGIN; DROP VIEW IF EXISTS {}, {}; DROP TABLE IF EXISTS {parent}, {inbox}, {}, {}, {log}; \
         DROP FUNCTION IF EXISTS {inbox}(); DROP FUNCTION IF EXISTS {log}(); COMMIT",
        row.aid_there("changes"),
        row.aid_there("rest"),
        row.aid_there("state"),
        row.aid_there("marks"),
    ))
}

/// Begins to log the changes of a remote table, in the very transactions that make them; what was logged by an earlier
/// attempt is forgotten.
pub fn capture(link: &Link, row: &RemoteRow, shape: &Shape, lock_ms: i32) -> PgResult<()> {
    release(link, row, lock_ms)?;
    let (table, log) = (row.table_there(), row.aid_there("log"));
    let keys = quoted(&row.key);
    let numbered = list(&keys, |n, _| format!("k{}", n + 1));
    let old = list(&keys, |_, k| format!("OLD.{k}"));
    let new = list(&keys, |_, k| format!("NEW.{k}"));
    let as_numbered = list(&keys, |n, k| format!("{k} AS k{}", n + 1));
    let matches = matching(&keys);
    // TRUNCATE leaves an entry without a key: the copy has to begin anew.
    let body = format!(
        "BEGIN IF TG_OP = 'TRUNCATE' THEN INSERT INTO {log} DEFAULT VALUES; RETURN NULL; END IF; \
         IF TG_OP <> 'INSERT' THEN INSERT INTO {log} ({numbered}) VALUES ({old}); END IF; \
         IF TG_OP <> 'DELETE' THEN INSERT INTO {log} ({numbered}) VALUES ({new}); END IF; RETURN NULL; END"
    );
    link.exec(&format!(
        "BEGIN; SET LOCAL lock_timeout = {lock_ms}; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE; \
         CREATE TABLE {log} AS SELECT {as_numbered} FROM {table} WITH NO DATA; ALTER TABLE {log} ADD COLUMN id bigserial; \
         CREATE FUNCTION {log}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS {}; \
         REVOKE ALL ON FUNCTION {log}() FROM PUBLIC; \
         CREATE TRIGGER foreshard_log AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {log}(); \
         CREATE TRIGGER foreshard_log_all AFTER TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {log}(); \
         ALTER TABLE {table} ENABLE ALWAYS TRIGGER foreshard_log, ENABLE ALWAYS TRIGGER foreshard_log_all; \
         {}; CREATE VIEW {} AS SELECT t.ctid AS foreshard_place, {} FROM {table} t WHERE NOT EXISTS (SELECT FROM {log} l WHERE {matches}); COMMIT",
        literal(&body),
        changes(row, shape, false)?,
        row.aid_there("rest"),
        list(&shape.names, |_, name| format!("t.{name}")),
    ))
}

fn matching(keys: &[String]) -> String {
    let one = |(n, key): (usize, &String)| format!("t.{key} = l.k{}", n + 1);
    keys.iter().enumerate().map(one).collect::<Vec<_>>().join(" AND ")
}

/// The statement that makes the view of logged keys with the state of their rows: of all of them, or of so many entries as
/// one replay takes.
fn changes(row: &RemoteRow, shape: &Shape, whole: bool) -> PgResult<String> {
    let (table, log, keys) = (row.table_there(), row.aid_there("log"), quoted(&row.key));
    let first = keys.first().ok_or_else(|| internal("a table without a key"))?;
    let numbered = list(&keys, |n, _| format!("k{}", n + 1));
    let rows = list(&shape.names, |_, name| match keys.iter().position(|k| k == name) {
        Some(n) => format!("coalesce(t.{name}, l.k{}) AS {name}", n + 1),
        None => format!("t.{name}"),
    });
    let part = if whole { String::new() } else { format!(" ORDER BY id LIMIT {REPLAY_ENTRIES}") };
    Ok(format!(
        "CREATE OR REPLACE VIEW {} AS SELECT l.ids AS foreshard_ids, t.{first} IS NOT NULL AS foreshard_present, l.k1 IS NULL AS foreshard_all, {rows} \
             FROM (SELECT array_agg(id) AS ids, {numbered} FROM (SELECT * FROM {log}{part}) x GROUP BY {numbered}) l \
             LEFT JOIN {table} t ON {}",
        row.aid_there("changes"),
        matching(&keys)
    ))
}

/// Says whether a replay takes the log of a remote table whole.
pub fn take_log(link: &Link, row: &RemoteRow, shape: &Shape, whole: bool) -> PgResult<()> {
    link.exec(&changes(row, shape, whole)?)
}

/// Ends the logging of a remote table, whose users wait no longer than `lock_ms` for it.
pub fn release(link: &Link, row: &RemoteRow, lock_ms: i32) -> PgResult<()> {
    let (table, log) = (row.table_there(), row.aid_there("log"));
    link.exec(&format!(
        "BEGIN; SET LOCAL lock_timeout = {lock_ms}; DROP VIEW IF EXISTS {}, {}; DROP TRIGGER IF EXISTS foreshard_log ON {table}; \
         DROP TRIGGER IF EXISTS foreshard_log_all ON {table}; DROP TABLE IF EXISTS {log}; DROP FUNCTION IF EXISTS {log}(); COMMIT",
        row.aid_there("changes"),
        row.aid_there("rest"),
    ))
}

/// Removes what helped to fill a remote table and what logs its changes.
pub fn undress(link: &Link, row: &RemoteRow, lock_ms: i32) -> PgResult<()> {
    release(link, row, lock_ms)?;
    let inbox = row.aid_there("inbox");
    link.exec(&format!(
        "BEGIN; DROP TABLE IF EXISTS {inbox}, {}; DROP FUNCTION IF EXISTS {inbox}(); COMMIT",
        row.aid_there("state")
    ))
}

/// A foreign table in our schema, a member of the extension that belongs to the owner of the managed table.
fn foreign_table(
    row: &RemoteRow,
    name: &str,
    columns: &str,
    there: &str,
    owner: pg_sys::Oid,
    table: pg_sys::Oid,
    options: &str,
) -> PgResult<pg_sys::Oid> {
    spi::run(
        &format!(
            "CREATE FOREIGN TABLE {name} ({columns}) SERVER {} OPTIONS (schema_name {}, table_name {}{options})",
            quote_identifier(&row.server),
            literal(&row.schema),
            literal(there)
        ),
        &[],
    )?;
    let oid = spi::one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[name.into()])?
        .ok_or_else(|| internal("the new foreign table is not there"))?;
    without_grants(oid)?;
    spi::run(&format!("ALTER EXTENSION foreshard ADD FOREIGN TABLE {name}"), &[])?;
    spi::run("UPDATE pg_catalog.pg_class SET relrewrite = $2 WHERE oid = $1", &[oid.into(), table.into()])?;
    let owner = quote_identifier(super::role_name(owner)?);
    spi::run(&format!("ALTER FOREIGN TABLE {name} OWNER TO {owner}"), &[])?;
    Ok(oid)
}

/// The foreign table that is to be the partition, and those through which it is filled.
pub fn shadow_here(row: &RemoteRow, shape: &Shape) -> PgResult<pg_sys::Oid> {
    let batch = format!(", batch_size '{BATCH_ROWS}'");
    let checks: String = shape.checks.iter().map(|check| format!(", {check}")).collect();
    let columns = format!("{}{checks}", shape.columns);
    let name = format!("foreshard.remote_table_{}", row.remote_id);
    let main = foreign_table(row, &name, &columns, &row.name, shape.owner, row.table, &batch)?;
    inbox_here(row, shape)?;
    spi::run(
        "UPDATE foreshard.remote_table SET partition = $2 WHERE remote_id = $1",
        &[row.remote_id.into(), main.into()],
    )?;
    Ok(main)
}

/// The foreign tables through which rows come in to a remote table.
pub fn inbox_here(row: &RemoteRow, shape: &Shape) -> PgResult<()> {
    drop_here(&[row.aid_here("inbox"), row.aid_here("state")])?;
    let aid = |what: &str| format!("foreshard_{what}_{}", row.remote_id);
    let batch = format!(", batch_size '{BATCH_ROWS}'");
    let columns = format!("foreshard_present boolean, {}", shape.loose_columns);
    foreign_table(row, &row.aid_here("inbox"), &columns, &aid("inbox"), shape.owner, row.table, &batch)?;
    let state = "blocks bigint";
    foreign_table(row, &row.aid_here("state"), state, &aid("state"), shape.owner, row.table, "")?;
    Ok(())
}

/// The foreign tables through which the changes of a remote table are read.
pub fn changes_here(row: &RemoteRow, shape: &Shape) -> PgResult<()> {
    drop_here(&[row.aid_here("changes"), row.aid_here("rest")])?;
    let aid = |what: &str| format!("foreshard_{what}_{}", row.remote_id);
    let fetch = format!(", fetch_size '{BATCH_ROWS}'");
    let changes = format!(
        "foreshard_ids bigint[], foreshard_present boolean, foreshard_all boolean, {}",
        shape.loose_columns
    );
    foreign_table(row, &row.aid_here("changes"), &changes, &aid("changes"), shape.owner, row.table, &fetch)?;
    let rest = format!("foreshard_place tid, {}", shape.loose_columns);
    foreign_table(row, &row.aid_here("rest"), &rest, &aid("rest"), shape.owner, row.table, &fetch)?;
    Ok(())
}

/// Drops foreign tables of ours; those that are gone are fine.
pub fn drop_here(names: &[String]) -> PgResult<()> {
    for name in names {
        let oid = spi::one::<pg_sys::Oid>("SELECT pg_catalog.to_regclass($1)::oid", &[name.as_str().into()])?;
        if oid.is_some() {
            spi::run(&format!("ALTER EXTENSION foreshard DROP FOREIGN TABLE {name}"), &[])?;
            spi::run(&format!("DROP FOREIGN TABLE {name}"), &[])?;
        }
    }
    Ok(())
}

/// An ordinary table of a shape in a tablespace, a member of the extension, without indexes.
pub fn heap_here(
    move_id: i64,
    source: pg_sys::Oid,
    shape: &Shape,
    tablespace: &str,
) -> PgResult<pg_sys::Oid> {
    let name = format!("shadow_{move_id}_{}", source.to_u32());
    let with = shape.options.as_ref().map(|options| format!(" WITH ({options})")).unwrap_or_default();
    let parent = crate::catalog::name_of(shape.parent)?;
    // Nothing is evaluated: expressions are copied as they are stored.
    spi::run(
        &format!(
            "CREATE TABLE foreshard.{name} (LIKE {parent} INCLUDING COMMENTS INCLUDING COMPRESSION INCLUDING CONSTRAINTS \
                 INCLUDING DEFAULTS INCLUDING STORAGE){with} TABLESPACE {}",
            quote_identifier(tablespace)
        ),
        &[],
    )?;
    mold::adopt(&name, source, shape.owner)
}

/// Makes the log of a local source and its trigger; the source is locked SHARE ROW EXCLUSIVE. Returns both.
pub fn capture_here(
    move_id: i64,
    source: pg_sys::Oid,
    key: &[String],
) -> PgResult<(pg_sys::Oid, pg_sys::Oid)> {
    let attributes = spi::rows(
        "SELECT a.attnum FROM pg_catalog.unnest($2::name[]) WITH ORDINALITY k (name, n) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attname = k.name ORDER BY k.n",
        &[source.into(), key.to_vec().into()],
        |row| row.need::<i16>(1),
    )?;
    if attributes.len() != key.len() {
        return Err(wrong_state("the partition has lost a column of its key"));
    }
    let log = shadow::create_log(source, &attributes, &format!("capture_{move_id}_{}", source.to_u32()))?;
    let trigger = shadow::install_trigger(source, log, &attributes)?;
    Ok((log, trigger))
}
