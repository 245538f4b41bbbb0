//! Data sources: what is registered, the SQL that asks them, and what is saved of what was learnt.

use crate::pg::receive::{self, TextRow};
use crate::pg::report::{PgResult, PgSqlErrorCode, error, internal, unknown};
use crate::pg::sources::{Counters, Entry, Place};
use crate::pg::types::Regclass;
use crate::pg::{query, security, spi};
use foreshard_core::resolve::{Breaker, Learnt, array_literal};
use pgrx::pg_sys;
use pgrx::spi::quote_literal;

/// The name of this server among those of a source.
pub const LOCAL: &str = "local";

/// Who says where a key lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardMap {
    /// Nobody: all keys are asked for at the same place.
    None,
    /// The partitions of a managed table.
    Table(pg_sys::Oid),
    /// The directory of a graph, by its id.
    Graph(i32),
}

/// Where keys of a shard are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServersOf {
    /// The shard's name; None for all keys.
    pub shard: Option<String>,
    /// The first choice, then replicas.
    pub servers: Vec<String>,
}

/// A data source.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its id.
    pub id: i32,
    /// Its name.
    pub name: String,
    /// What it takes.
    pub from: String,
    /// What it gives.
    pub to: String,
    /// The query.
    pub query: String,
    /// Type of its parameter.
    pub key_array: pg_sys::Oid,
    /// Type of its output.
    pub output: pg_sys::Oid,
    /// Names of its columns.
    pub columns: Vec<String>,
    /// What its owner thinks that a call takes, ms.
    pub hint_ms: Option<f64>,
    /// Where its keys live.
    pub map: ShardMap,
    /// Where it is asked, where that is not this server alone.
    pub servers: Vec<ServersOf>,
    /// Whose it is.
    pub owner: pg_sys::Oid,
}

/// A source that is to be registered.
pub struct NewSource<'a> {
    /// The graph.
    pub graph: &'a str,
    /// All but the id and the owner, who is the session's current user.
    pub source: &'a Source,
}

/// The sources of a graph, by id. As the extension's owner.
pub fn of_graph(graph: &str) -> PgResult<Vec<Source>> {
    let mut sources = spi::rows(
        "SELECT source_id, source_name::text, from_class, to_class, query, key_array::oid, output_type::oid, columns, \
                cost_hint_ms, shard_table::oid, shard_graph, owner::oid \
         FROM foreshard.data_source WHERE graph_name = $1::name ORDER BY source_id",
        &[graph.into()],
        |row| {
            let map = match (row.get::<pg_sys::Oid>(10)?, row.get::<i32>(11)?) {
                (Some(table), _) => ShardMap::Table(table),
                (None, Some(graph)) => ShardMap::Graph(graph),
                (None, None) => ShardMap::None,
            };
            Ok(Source {
                id: row.need(1)?,
                name: row.need(2)?,
                from: row.need(3)?,
                to: row.need(4)?,
                query: row.need(5)?,
                key_array: row.need(6)?,
                output: row.need(7)?,
                columns: row.need(8)?,
                hint_ms: row.get(9)?,
                map,
                servers: Vec::new(),
                owner: row.need(12)?,
            })
        },
    )?;
    let servers = spi::rows(
        "SELECT v.source_id, h.shard_name::text, v.servers::text[] \
         FROM foreshard.data_source_server v JOIN foreshard.data_source d USING (source_id) \
         LEFT JOIN foreshard.shard h ON h.shard_id = v.shard_id \
         WHERE d.graph_name = $1::name ORDER BY v.source_id, h.shard_name",
        &[graph.into()],
        |row| Ok((row.need::<i32>(1)?, ServersOf { shard: row.get(2)?, servers: row.need(3)? })),
    )?;
    for (id, of) in servers {
        if let Some(source) = sources.iter_mut().find(|source| source.id == id) {
            source.servers.push(of);
        }
    }
    Ok(sources)
}

/// Registers a source for the user given; its id. As the extension's owner.
///
/// # Errors
/// 42710 when there is one of this name.
pub fn insert(new: &NewSource<'_>, owner: pg_sys::Oid) -> PgResult<i32> {
    let source = new.source;
    let (table, graph) = match source.map {
        ShardMap::None => (None, None),
        ShardMap::Table(table) => (Some(Regclass(table)), None),
        ShardMap::Graph(graph) => (None, Some(graph)),
    };
    let id = spi::one_mut::<i32>(
        "INSERT INTO foreshard.data_source (graph_name, source_name, from_class, to_class, query, key_array, output_type, \
                columns, cost_hint_ms, shard_table, shard_graph, owner) \
         VALUES ($1::name, $2::name, $3, $4, $5, $6::oid, $7::oid, $8, $9, $10, $11, $12::oid) \
         ON CONFLICT (graph_name, source_name) DO NOTHING RETURNING source_id",
        &[
            new.graph.into(),
            source.name.as_str().into(),
            source.from.as_str().into(),
            source.to.as_str().into(),
            source.query.as_str().into(),
            source.key_array.into(),
            source.output.into(),
            source.columns.clone().into(),
            source.hint_ms.into(),
            table.into(),
            graph.into(),
            owner.into(),
        ],
    )?;
    let Some(id) = id else {
        return Err(error(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("data source \"{}\" of graph \"{}\" already exists", source.name, new.graph),
        ));
    };
    for of in &source.servers {
        spi::run(
            "INSERT INTO foreshard.data_source_server (source_id, shard_id, servers) \
             SELECT $1, h.shard_id, $3::name[] FROM (SELECT) q LEFT JOIN foreshard.shard h ON h.shard_name = $2::name",
            &[id.into(), of.shard.as_deref().into(), of.servers.clone().into()],
        )?;
    }
    Ok(id)
}

/// Forgets a source; its id. As the extension's owner.
pub fn delete(source_id: i32) -> PgResult<()> {
    spi::run("DELETE FROM foreshard.data_source WHERE source_id = $1", &[source_id.into()])?;
    Ok(())
}

/// Id and owner of a source.
///
/// # Errors
/// 42704 when there is none.
pub fn owner_of(graph: &str, name: &str) -> PgResult<(i32, pg_sys::Oid)> {
    let found = spi::rows(
        "SELECT source_id, owner::oid FROM foreshard.data_source WHERE graph_name = $1::name AND source_name = $2::name",
        &[graph.into(), name.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| unknown(format!("data source \"{name}\" of graph \"{graph}\" does not exist")))
}

/// The edge table of a graph of this name, if there is one.
pub fn edges_of(graph: &str) -> PgResult<Option<pg_sys::Oid>> {
    spi::one::<pg_sys::Oid>(
        "SELECT edge_table::oid FROM foreshard.graph WHERE graph_name = $1::name",
        &[graph.into()],
    )
}

/// Keeps sources from being added until the end of the transaction. Whoever adds one takes the lock `exclusive`; others
/// only want to know that nobody does, and keep no changes of other kinds waiting. As the extension's owner.
pub fn keep_as_they_are(exclusive: bool) -> PgResult<()> {
    let mode = if exclusive { "SHARE ROW EXCLUSIVE" } else { "ROW EXCLUSIVE" };
    spi::run(&format!("LOCK TABLE foreshard.data_source IN {mode} MODE"), &[])?;
    Ok(())
}

/// 42501 unless the current user is a member of all roles that own sources of a graph: who resolves runs all of them.
pub fn require_all_own(graph: &str) -> PgResult<()> {
    let owners: Vec<pg_sys::Oid> = {
        let _owner = security::as_extension_owner()?;
        of_graph(graph)?.into_iter().map(|source| source.owner).collect()
    };
    for owner in owners {
        if !may_act_as(owner)? {
            return Err(error(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be owner of the data sources of graph \"{graph}\""),
            )
            .set_detail(format!(
                "There are some of role {}; who resolves runs all of them with his own rights.",
                role_name(owner)?
            )));
        }
    }
    Ok(())
}

/// Whether the current user has all rights of a role.
pub fn may_act_as(role: pg_sys::Oid) -> PgResult<bool> {
    Ok(spi::one::<bool>("SELECT pg_catalog.pg_has_role($1, 'USAGE')", &[role.into()])?.unwrap_or(false))
}

/// A role's name, quoted.
pub fn role_name(role: pg_sys::Oid) -> PgResult<String> {
    Ok(spi::one::<String>("SELECT $1::pg_catalog.oid::pg_catalog.regrole::text", &[role.into()])?
        .unwrap_or_default())
}

/// A type's name as SQL.
pub fn type_name(type_: pg_sys::Oid) -> PgResult<String> {
    let name = spi::one::<String>("SELECT pg_catalog.format_type($1, NULL)", &[type_.into()])?;
    Ok(name.unwrap_or_default())
}

/// The statement that asks a source: keys and outputs as text, the rest as one object, at most so many rows. Names
/// of columns are the source's own, quoted by the server; keys are the parameter.
pub fn asking(source: &Source, limit: usize) -> String {
    let columns: Vec<String> = (1..=source.columns.len()).map(|at| format!("c{at}")).collect();
    let rest: Vec<String> = source
        .columns
        .iter()
        .enumerate()
        .skip(2)
        .map(|(at, name)| format!("{}::pg_catalog.text, q.c{}", quote_literal(name), at + 1))
        .collect();
    let rest = if rest.is_empty() {
        "NULL::pg_catalog.text".to_owned()
    } else {
        format!("pg_catalog.jsonb_build_object({})::pg_catalog.text", rest.join(", "))
    };
    format!(
        "SELECT q.c1::pg_catalog.text, q.c2::pg_catalog.text, {rest} FROM (\n{}\n) AS q ({}) LIMIT {limit}",
        source.query,
        columns.join(", ")
    )
}

/// Runs such a statement here, as the current user, in the forms that are set, until `row` has enough (false).
pub fn ask(statement: &str, keys: spi::Arg<'_>, row: &mut dyn FnMut(TextRow) -> bool) -> PgResult<()> {
    receive::each_row(statement, &[keys], row)
}

/// Values are told in the same forms as everywhere else, until the end of the (sub)transaction.
pub fn set_forms() -> PgResult<()> {
    let set = FORMS.map(|(setting, value)| format!("pg_catalog.set_config('{setting}', '{value}', true)"));
    let _ = spi::one::<String>(&format!("SELECT {}", set.join(", ")), &[])?;
    Ok(())
}

/// Keys as sources tell them, in the order given: as text, in the forms that are set.
pub fn canonical(key_array: pg_sys::Oid, keys: &[String]) -> PgResult<Vec<String>> {
    let literal = array_literal(keys.iter().map(String::as_str));
    spi::rows(
        "SELECT u.v::pg_catalog.text FROM pg_catalog.unnest($1) WITH ORDINALITY AS u(v, n) ORDER BY u.n",
        &[query::parameter(key_array, &literal)],
        |row| row.need(1),
    )
}

/// Which of these keys are equal by their type: the places of those that are, from 0, in their order.
pub fn equal(key_array: pg_sys::Oid, keys: &[&str]) -> PgResult<Vec<Vec<usize>>> {
    let literal = array_literal(keys.iter().copied());
    spi::rows(
        "SELECT pg_catalog.array_agg(u.n ORDER BY u.n) FROM pg_catalog.unnest($1) WITH ORDINALITY AS u(v, n) \
         GROUP BY u.v HAVING pg_catalog.count(*) > 1",
        &[query::parameter(key_array, &literal)],
        |row| Ok(row.need::<Vec<i64>>(1)?.into_iter().map(|n| n.max(1) as usize - 1).collect()),
    )
}

/// Settings by which values are told as text.
const FORMS: [(&str, &str); 4] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
];

/// Statements with their values, as text.
pub type Opening = [(String, Vec<String>); 2];

/// What another server is told first: a transaction that cannot write, a search path without surprises, the forms of
/// values, and when to give up by itself.
pub fn opening(limit_ms: i32) -> PgResult<Opening> {
    let zone = spi::one::<String>("SELECT pg_catalog.current_setting('TimeZone')", &[])?.unwrap_or_default();
    let mut settings: Vec<(&str, String)> =
        FORMS.iter().map(|(setting, value)| (*setting, (*value).to_owned())).collect();
    settings.push(("search_path", "pg_catalog, pg_temp".to_owned()));
    settings.push(("statement_timeout", limit_ms.to_string()));
    settings.push(("TimeZone", zone));
    let calls: Vec<String> = settings
        .iter()
        .enumerate()
        .map(|(at, (setting, _))| format!("pg_catalog.set_config('{setting}', ${}, true)", at + 1))
        .collect();
    Ok([
        ("BEGIN TRANSACTION READ ONLY".to_owned(), Vec::new()),
        (format!("SELECT {}", calls.join(", ")), settings.into_iter().map(|(_, value)| value).collect()),
    ])
}

/// Shards of nodes by the directory of a graph, keys in text. As the graph's owner.
pub fn shards_of_nodes(metagraph: &str, key_type: &str, keys: &[String]) -> PgResult<Vec<(String, i32)>> {
    spi::rows(
        &format!(
            "SELECT node::pg_catalog.text, shard_id FROM {metagraph} \
             WHERE node = ANY (($1::pg_catalog.text[])::{key_type}[])"
        ),
        &[keys.to_vec().into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// What was saved of these sources. As the extension's owner.
pub fn saved(database: u32, source_ids: &[i32]) -> PgResult<Vec<Entry>> {
    spi::rows(
        "SELECT source_id, server_id::bigint, counters, learnt, breaker, last_error, used_ms \
         FROM foreshard.data_source_statistics WHERE source_id = ANY ($1)",
        &[source_ids.to_vec().into()],
        |row| {
            // As a number: oid 0 would be taken for NULL.
            let server: i64 = row.need(2)?;
            let counters: Vec<i64> = row.need(3)?;
            let breaker: Vec<f64> = row.need(5)?;
            let counter = |at: usize| counters.get(at).copied().unwrap_or(0);
            let number = |at: usize| breaker.get(at).copied().unwrap_or(0.0).max(0.0);
            let mut entry = Entry {
                place: Place { database, source: row.need(1)?, server: u32::try_from(server).unwrap_or(0) },
                learnt: Learnt::from_sums(&row.need::<Vec<f64>>(4)?),
                breaker: Breaker {
                    failures: number(0) as u32,
                    opened: number(1) as u32,
                    until_ms: number(2),
                },
                counters: Counters {
                    calls: counter(0),
                    keys: counter(1),
                    rows: counter(2),
                    failures: counter(3),
                    timeouts: counter(4),
                    refused: counter(5),
                },
                used_ms: row.need(7)?,
                ..Entry::default()
            };
            if let Some(state) = row.get::<String>(6)?.and_then(|text| text.into_bytes().try_into().ok()) {
                entry.last_error = state;
            }
            Ok(entry)
        },
    )
}

/// Saves what was learnt. As the extension's owner.
pub fn save(entries: &[Entry]) -> PgResult<()> {
    for entry in entries {
        let counters = &entry.counters;
        let numbers = vec![
            counters.calls,
            counters.keys,
            counters.rows,
            counters.failures,
            counters.timeouts,
            counters.refused,
        ];
        let breaker =
            vec![f64::from(entry.breaker.failures), f64::from(entry.breaker.opened), entry.breaker.until_ms];
        spi::run(
            "INSERT INTO foreshard.data_source_statistics AS s \
                    (source_id, server_id, counters, learnt, breaker, last_error, used_ms) \
             SELECT d.source_id, $2::bigint::oid, $3, $4, $5, $6, $7 FROM foreshard.data_source d WHERE d.source_id = $1 \
             ON CONFLICT (source_id, server_id) DO UPDATE SET counters = excluded.counters, learnt = excluded.learnt, \
                    breaker = excluded.breaker, last_error = excluded.last_error, used_ms = excluded.used_ms",
            &[
                entry.place.source.into(),
                i64::from(entry.place.server).into(),
                numbers.into(),
                entry.learnt.sums().to_vec().into(),
                breaker.into(),
                last_error(entry).into(),
                entry.used_ms.into(),
            ],
        )?;
    }
    Ok(())
}

/// SQLSTATE of an entry's last failure.
pub fn last_error(entry: &Entry) -> Option<String> {
    std::str::from_utf8(&entry.last_error).ok().filter(|text| !text.starts_with('\0')).map(str::to_owned)
}

/// All ids there are. As the extension's owner.
pub fn all_ids() -> PgResult<Vec<i32>> {
    spi::rows("SELECT source_id FROM foreshard.data_source", &[], |row| row.need(1))
}

/// The id of a shard's name.
///
/// # Errors
/// 42704 when there is none.
pub fn require_shard(name: &str) -> PgResult<()> {
    let known = spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM foreshard.shard WHERE shard_name = $1::name)",
        &[name.into()],
    )?;
    match known {
        Some(true) => Ok(()),
        Some(false) => Err(unknown(format!("shard \"{name}\" does not exist"))),
        None => Err(internal("no answer")),
    }
}
