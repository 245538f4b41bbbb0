//! Tables on nodes: the register of what was made there, and how a partition is made like another on either side.
//!
//! A table on a node is the only partition of a parent of its own there, with the bound of its slot: so the node itself
//! refuses a row that belongs elsewhere, which a foreign table does not (docs/decisions/0019).

pub mod against;
pub mod copy;
pub mod digest;
pub mod farewell;
pub mod hold;
pub mod index;
pub mod lease;
pub mod make;
pub mod reap;
pub mod retained;
pub mod rights;
pub mod statistics;
pub mod swap;

use super::definition::{self, IndexDefinition};
use super::link::Link;
use super::node::{self, NodeRow};
use super::preflight;
use crate::pg::report::{PgResult, internal, wrong_state};
use crate::pg::spi;
use pgrx::spi::{quote_identifier, quote_literal};
use pgrx::{JsonB, pg_sys};
use serde_json::{Value, json};

/// A table that was made, or is to be made, on a node.
#[derive(Clone)]
pub struct RemoteRow {
    /// Primary key, part of the names of everything that belongs to it.
    pub remote_id: i64,
    /// Node.
    pub node: String,
    /// Foreign server of the node.
    pub server: String,
    /// What marks it there as made from here.
    pub mark: String,
    /// Its schema there, unquoted.
    pub schema: String,
    /// Its name there, unquoted.
    pub name: String,
    /// Managed table.
    pub table: pg_sys::Oid,
    /// Who owned the managed table when it was made.
    pub owner_name: String,
    /// The foreign table over it; 0: not made yet.
    pub partition: pg_sys::Oid,
    /// Columns of the identity key, unquoted.
    pub key: Vec<String>,
    /// Storage parameters.
    pub options: Option<String>,
    /// Indexes that the parent does not have.
    pub indexes: Vec<OwnIndex>,
}

/// An index of a leaf that its parent does not have.
#[derive(Clone)]
pub struct OwnIndex {
    /// What comes before the table's name; None: a constraint.
    pub create: Option<String>,
    /// What comes behind.
    pub body: String,
}

impl OwnIndex {
    /// The statement that makes it on a table.
    pub fn statement(&self, table: &str) -> String {
        match &self.create {
            Some(create) => format!("{create} ON {table}{}", self.body),
            None => format!("ALTER TABLE {table} ADD {}", self.body),
        }
    }

    fn of(index: IndexDefinition) -> Self {
        OwnIndex { create: index.create, body: index.body }
    }
}

impl RemoteRow {
    /// A name in its schema, qualified and quoted.
    pub fn there(&self, name: &str) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(name))
    }

    /// The table there.
    pub fn table_there(&self) -> String {
        self.there(&self.name)
    }

    /// Something that belongs to it there.
    pub fn aid_there(&self, what: &str) -> String {
        self.there(&format!("foreshard_{what}_{}", self.remote_id))
    }

    /// The foreign table over something that belongs to it.
    pub fn aid_here(&self, what: &str) -> String {
        format!("foreshard.remote_{what}_{}", self.remote_id)
    }

    /// Connects to its node as the owner of the table.
    pub fn link(&self, owner: pg_sys::Oid) -> PgResult<Link> {
        Link::of_owner(&self.server, owner)
    }
}

const ROW: &str = "SELECT r.remote_id, r.node_name::text, n.server_name::text, r.remote_schema::text, r.remote_name::text, r.table_oid::oid, \
        r.owner_name::text, r.partition::oid, r.key_columns::text[], r.options, r.indexes, 'foreshard of ' || n.owner_id \
    FROM foreshard.remote_table r JOIN foreshard.node n USING (node_name)";

fn row_of(row: &spi::Row) -> PgResult<RemoteRow> {
    let indexes: Value = row.need::<JsonB>(11)?.0;
    let own = |index: &Value| {
        Some(OwnIndex {
            create: index["create"].as_str().map(String::from),
            body: index["body"].as_str()?.to_string(),
        })
    };
    Ok(RemoteRow {
        remote_id: row.need(1)?,
        node: row.need(2)?,
        server: row.need(3)?,
        mark: row.need(12)?,
        schema: row.need(4)?,
        name: row.need(5)?,
        table: row.need(6)?,
        owner_name: row.need(7)?,
        partition: row.need(8)?,
        key: row.need(9)?,
        options: row.get(10)?,
        indexes: indexes.as_array().map(|all| all.iter().filter_map(own).collect()).unwrap_or_default(),
    })
}

/// The remote table behind a foreign table; None: it is none of ours.
pub fn behind(partition: pg_sys::Oid) -> PgResult<Option<RemoteRow>> {
    let found = spi::rows(&format!("{ROW} WHERE r.partition = $1"), &[partition.into()], row_of)?;
    Ok(found.into_iter().next())
}

/// The remote table of a number.
pub fn by_id(remote_id: i64) -> PgResult<Option<RemoteRow>> {
    let found = spi::rows(&format!("{ROW} WHERE r.remote_id = $1"), &[remote_id.into()], row_of)?;
    Ok(found.into_iter().next())
}

/// The remote tables that were registered for a move and have no foreign table yet.
pub fn unmade(move_id: i64) -> PgResult<Vec<RemoteRow>> {
    spi::rows(
        &format!("{ROW} WHERE r.move_id = $1 AND r.partition = 0 ORDER BY 1"),
        &[move_id.into()],
        row_of,
    )
}

/// Those of nodes that nobody needs: no foreign table is over them and no move makes one.
pub fn orphans(node: &str) -> PgResult<Vec<RemoteRow>> {
    spi::rows(&format!("{ROW} WHERE r.node_name = $1::name AND {ORPHAN} ORDER BY 1"), &[node.into()], row_of)
}

/// No foreign table is over it, no move makes one, and no move of a graph's node waits for it.
const ORPHAN: &str = "NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = r.partition) \
    AND NOT EXISTS (SELECT FROM foreshard.move m WHERE m.move_id = r.move_id AND NOT m.finished) \
    AND NOT (r.partition = 0 AND EXISTS (SELECT FROM foreshard.graph g JOIN foreshard.node_move m USING (graph_id) \
        WHERE g.closure = r.table_oid AND m.to_shard = r.graph_shard AND m.state = 'waiting'))";

/// Whether one that was an orphan still is; until the end of the transaction nobody makes a table over it then.
pub fn is_orphan(remote_id: i64) -> PgResult<bool> {
    let locked = "SELECT true FROM foreshard.remote_table WHERE remote_id = $1 FOR UPDATE";
    spi::one_mut::<bool>(locked, &[remote_id.into()])?;
    // With a snapshot of its own, as above.
    let query = format!("{ROW} WHERE r.remote_id = $1 AND {ORPHAN}");
    Ok(!spi::rows_mut(&query, &[remote_id.into()], row_of)?.is_empty())
}

/// What may still have what a move needed of it, and takes part in none; not in one either that has only been filed for its slot. The log of
/// one that was lost with its node says what was changed there last.
const LEFT_DRESSED: &str = "r.dressed AND r.lost_from IS NULL AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = r.partition) \
    AND NOT EXISTS (SELECT FROM foreshard.move_relation m WHERE r.partition::oid IN (m.source, m.shadow)) \
    AND NOT EXISTS (SELECT FROM foreshard.move m WHERE NOT m.finished AND (m.move_id = r.move_id \
        OR m.slot_id IN (SELECT p.slot_id FROM foreshard.slot_partition p WHERE p.partition = r.partition)))";

/// Those of a node that are used, take part in no move, and may still have what a move needed of them.
pub fn dressed(node: &str) -> PgResult<Vec<RemoteRow>> {
    spi::rows(
        &format!("{ROW} WHERE r.node_name = $1::name AND {LEFT_DRESSED} ORDER BY 1"),
        &[node.into()],
        row_of,
    )
}

/// Whether that still holds of one of them; until the end of the transaction no move begins with it then.
pub fn is_left_dressed(remote_id: i64) -> PgResult<bool> {
    let locked = "SELECT true FROM foreshard.remote_table WHERE remote_id = $1 FOR UPDATE";
    spi::one_mut::<bool>(locked, &[remote_id.into()])?;
    // With a snapshot of its own: a move may have begun while we waited.
    let query = format!("{ROW} WHERE r.remote_id = $1 AND {LEFT_DRESSED}");
    Ok(!spi::rows_mut(&query, &[remote_id.into()], row_of)?.is_empty())
}

/// Notes whether there may be things on the node that a move needs of a table, also where nothing changes by that: whoever
/// is about to take such things away (see [`is_left_dressed`]) is waited for.
pub fn set_dressed(partitions: &[pg_sys::Oid], dressed: bool) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.remote_table SET dressed = $2 WHERE partition::oid = ANY ($1)",
        &[partitions.to_vec().into(), dressed.into()],
    )?;
    Ok(())
}

/// What a copy of a partition is made like.
pub struct Shape {
    /// The partitioned table.
    pub parent: pg_sys::Oid,
    /// Its owner.
    pub owner: pg_sys::Oid,
    /// Columns as CREATE TABLE has them.
    pub columns: String,
    /// The same without NOT NULL.
    pub loose_columns: String,
    /// Names of the columns, quoted.
    pub names: Vec<String>,
    /// Columns of the identity key, unquoted.
    pub key: Vec<String>,
    /// `HASH (…)`.
    pub by: String,
    /// CHECK constraints, with their names.
    pub checks: Vec<String>,
    /// Storage parameters.
    pub options: Option<String>,
    /// Indexes of the partition that the parent does not have.
    pub own_indexes: Vec<OwnIndex>,
    /// Indexes of the parent.
    pub indexes: Vec<OwnIndex>,
    /// `FOR VALUES WITH (…)`.
    pub bound: String,
    /// Name of the partition, unquoted.
    pub leaf: String,
}

/// The shape of a partition's copies, as its table is now.
pub fn shape(partition: pg_sys::Oid) -> PgResult<Shape> {
    let head = spi::rows(
        "SELECT p.oid, p.relowner, pg_catalog.pg_get_partkeydef(p.oid), pg_catalog.pg_get_expr(c.relpartbound, c.oid), c.relname::text \
         FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhrelid = $1",
        &[partition.into()],
        |row| {
            Ok((
                row.need::<pg_sys::Oid>(1)?,
                row.need::<pg_sys::Oid>(2)?,
                row.need::<String>(3)?,
                row.need::<String>(4)?,
                row.need::<String>(5)?,
            ))
        },
    )?;
    let Some((parent, owner, by, bound, leaf)) = head.into_iter().next() else {
        return Err(wrong_state("the partition belongs to no table any more"));
    };
    let remote = behind(partition)?;
    let (key, options, own_indexes) = match remote {
        Some(remote) => (remote.key, remote.options, remote.indexes),
        None => (local_key(partition)?, local_options(partition)?, own_indexes(partition)?),
    };
    Ok(Shape {
        parent,
        owner,
        columns: columns(parent, true)?,
        loose_columns: columns(parent, false)?,
        names: names(parent)?,
        key,
        by,
        checks: spi::rows(
            "SELECT format('CONSTRAINT %I %s', conname, pg_catalog.pg_get_constraintdef(oid)) FROM pg_catalog.pg_constraint \
             WHERE conrelid = $1 AND contype = 'c' ORDER BY conname",
            &[parent.into()],
            |row| row.need(1),
        )?,
        options,
        own_indexes,
        indexes: definition::indexes(parent)?.into_iter().map(OwnIndex::of).collect(),
        bound,
        leaf,
    })
}

impl Shape {
    /// Everything that its copies depend on, as one text: it must be the same when they change places.
    pub fn portrait(&self) -> String {
        let texts = |all: &[OwnIndex]| all.iter().map(|i| i.statement("t")).collect::<Vec<_>>().join("\n");
        format!(
            "{}\n{}\n{}\n{}\n{}\n{:?}\n{}\n{}\n{}",
            self.owner.to_u32(),
            self.columns,
            self.by,
            self.bound,
            self.checks.join("\n"),
            self.options,
            texts(&self.own_indexes),
            texts(&self.indexes),
            self.key.join(","),
        )
    }
}

/// Columns of a table as CREATE TABLE has them; `strict`: with NOT NULL.
pub fn columns(table: pg_sys::Oid, strict: bool) -> PgResult<String> {
    spi::one::<String>(
        "SELECT pg_catalog.string_agg(format('%I %s%s%s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), \
                CASE WHEN a.attcollation <> 0 THEN (SELECT format(' COLLATE %I.%I', n.nspname, c.collname) FROM pg_catalog.pg_collation c \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation AND c.collname <> 'default') ELSE '' END, \
                CASE WHEN $2 AND a.attnotnull THEN ' NOT NULL' ELSE '' END), ', ' ORDER BY a.attnum) \
         FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped",
        &[table.into(), strict.into()],
    )?
    .ok_or_else(|| internal("the table has no columns"))
}

fn names(table: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        &[table.into()],
        |row| row.need(1),
    )
}

fn local_key(partition: pg_sys::Oid) -> PgResult<Vec<String>> {
    let (_, key) = preflight::identity_index(partition)?.ok_or_else(|| {
        wrong_state("the partition has lost its identity index")
            .set_hint("Add a primary key to the partition.")
    })?;
    spi::rows(
        "SELECT a.attname::text FROM pg_catalog.unnest($2::int2[]) WITH ORDINALITY k (attnum, n) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = k.attnum ORDER BY k.n",
        &[partition.into(), key.into()],
        |row| row.need(1),
    )
}

fn local_options(partition: pg_sys::Oid) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT pg_catalog.string_agg(pg_catalog.quote_ident(o.option_name) || '=' || pg_catalog.quote_literal(o.option_value), ', ') \
         FROM pg_catalog.pg_class c, pg_catalog.pg_options_to_table(c.reloptions) o WHERE c.oid = $1",
        &[partition.into()],
    )
}

fn own_indexes(partition: pg_sys::Oid) -> PgResult<Vec<OwnIndex>> {
    let inherited: Vec<String> = spi::rows(
        "SELECT pg_catalog.quote_ident(coalesce(k.conname, c.relname)) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
         JOIN pg_catalog.pg_inherits h ON h.inhrelid = i.indexrelid \
         LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u') \
         WHERE i.indrelid = $1",
        &[partition.into()],
        |row| row.need(1),
    )?;
    let own = definition::indexes(partition)?.into_iter().filter(|index| !inherited.contains(&index.name));
    Ok(own.map(OwnIndex::of).collect())
}

/// Registers a table that is to be made on a node, in a transaction of its own: its name is known before it is there.
pub fn register(move_id: i64, node: &NodeRow, shape: &Shape) -> PgResult<i64> {
    let indexes: Vec<Value> =
        shape.own_indexes.iter().map(|i| json!({"create": i.create, "body": i.body})).collect();
    let owner = role_name(shape.owner)?;
    spi::one_mut::<i64>(
        "INSERT INTO foreshard.remote_table (remote_id, node_name, remote_schema, remote_name, table_oid, owner_name, move_id, key_columns, options, indexes, portrait) \
         SELECT q.n, $1::name, $2::name, CASE WHEN octet_length($3) <= 44 THEN $3 ELSE pg_catalog.left($3, 11) END || '_f' || q.n, $4, $5::name, $6, $7::name[], $8, $9, foreshard.table_portrait($4) \
         FROM (SELECT pg_catalog.nextval('foreshard.remote_table_remote_id_seq') AS n) q RETURNING remote_id",
        &[
            node.name.as_str().into(),
            node.schema.as_str().into(),
            shape.leaf.as_str().into(),
            shape.parent.into(),
            owner.as_str().into(),
            move_id.into(),
            shape.key.clone().into(),
            shape.options.clone().into(),
            JsonB(Value::Array(indexes)).into(),
        ],
    )?
    .ok_or_else(|| internal("no remote table"))
}

/// The name of a role, unquoted.
pub fn role_name(role: pg_sys::Oid) -> PgResult<String> {
    Ok(spi::one::<String>("SELECT pg_catalog.pg_get_userbyid($1)::text", &[role.into()])?.unwrap_or_default())
}

/// As a literal.
pub fn literal(text: &str) -> String {
    quote_literal(text)
}

/// Forgets a remote table.
pub fn forget(remote_id: i64) -> PgResult<()> {
    spi::run("DELETE FROM foreshard.remote_table WHERE remote_id = $1", &[remote_id.into()])?;
    Ok(())
}

/// The node of a shard; None: this server.
pub fn node_of_shard(shard_id: i32) -> PgResult<Option<(NodeRow, String)>> {
    let found = spi::rows(
        "SELECT node_name::text, tablespace_name::text FROM foreshard.shard WHERE shard_id = $1 AND node_name <> 'local'",
        &[shard_id.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<String>(2)?)),
    )?;
    match found.into_iter().next() {
        None => Ok(None),
        Some((name, tablespace)) => Ok(Some((node::node(&name)?, tablespace))),
    }
}
