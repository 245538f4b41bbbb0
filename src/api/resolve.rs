//! Data sources, and resolving by them.

use crate::catalog::data_source::{self, LOCAL, NewSource, ServersOf, ShardMap, Source};
use crate::catalog::{colocation, graph, name_of, record_event};
use crate::pg::graph::fresh_snapshot;
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::{PgResult, PgSqlErrorCode, bad_argument, error, wrong_state};
use crate::pg::types::{JsonText, Regclass};
use crate::pg::{query, security, sources, transaction};
use crate::resolve::{self, explain, memory, register, report};
use foreshard_core::resolve::Admission;
use pgrx::AnyArray;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde_json::{Value, json};

/// Longest names of graphs and sources, bytes.
const MAX_NAME: usize = 63;
/// Longest name of a class, bytes.
const MAX_CLASS: usize = 200;
/// Servers of one shard.
const MAX_SERVERS: usize = 16;

/// Registers a query that derives keys of class `to_class` from keys of class `from_class`; returns its id.
///
/// `query` is one SELECT with the parameter $1, an array of keys. Its first column is the key as it was asked for, the
/// second what is derived from it, others are attributes. Names in it are found in pg_catalog only, so others need
/// their schema. `servers`: where it is asked, the first choice and then replicas (`["a", "b"]`), or that by shard
/// (`{"shard": ["a", "b"]}`) when keys live on shards by a managed table or a graph's directory; `local` is this server.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments, reason = "the arguments of the SQL function")]
fn add_data_source(
    graph_name: Option<&str>,
    source_name: Option<&str>,
    from_class: Option<&str>,
    to_class: Option<&str>,
    query: Option<&str>,
    cost_hint_ms: default!(Option<f64>, "NULL"),
    sharded_by: default!(Option<Regclass>, "NULL"),
    sharded_by_graph: default!(Option<&str>, "NULL"),
    servers: default!(Option<JsonText>, "NULL"),
) -> PgResult<i32> {
    let (Some(graph), Some(name), Some(from), Some(to), Some(query)) =
        (graph_name, source_name, from_class, to_class, query)
    else {
        return Err(bad_argument("graph_name, source_name, from_class, to_class and query must not be NULL"));
    };
    transaction::require_read_committed(
        "data sources can be added only in transactions of isolation level READ COMMITTED",
    )?;
    require_names(graph, name, from, to)?;
    if cost_hint_ms.is_some_and(|ms| !ms.is_finite() || ms < 0.0) {
        return Err(bad_argument("cost_hint_ms must be a number of milliseconds"));
    }
    // Early, so that nobody learns more than that; what counts is the look under the lock.
    require_may_add(graph)?;
    let map = shard_map(sharded_by, sharded_by_graph)?;
    let mut source = Source {
        id: 0,
        name: name.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
        query: query.trim().trim_end_matches(';').trim_end().to_owned(),
        key_array: pg_sys::InvalidOid,
        output: pg_sys::InvalidOid,
        columns: Vec::new(),
        hint_ms: cost_hint_ms,
        map,
        servers: read_servers(servers.map(|servers| servers.parse()).transpose()?, map != ShardMap::None)?,
        owner: security::current_role(),
    };
    let places = places(&source)?;
    register::examine(&mut source, &places)?;
    require_same_keys(&source)?;
    let owner = source.owner;
    {
        let _owner = security::as_extension_owner()?;
        data_source::keep_as_they_are(true)?;
    }
    // The statement's snapshot may be older than the lock.
    let _fresh = fresh_snapshot();
    require_may_add(graph)?;
    let _owner = security::as_extension_owner()?;
    register::require_one_type(&source, &data_source::of_graph(graph)?)?;
    let id = data_source::insert(&NewSource { graph, source: &source }, owner)?;
    record_event(
        "add_data_source",
        None,
        None,
        json!({"graph": graph, "source": name, "from": from, "to": to}),
    )?;
    Ok(id)
}

/// Forgets a data source.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn drop_data_source(graph_name: &str, source_name: &str) -> PgResult<()> {
    let (id, owner) = {
        let _owner = security::as_extension_owner()?;
        data_source::owner_of(graph_name, source_name)?
    };
    if !data_source::may_act_as(owner)? {
        return Err(not_owner(format!("must be owner of data source \"{source_name}\"")));
    }
    let _owner = security::as_extension_owner()?;
    data_source::delete(id)?;
    record_event("drop_data_source", None, None, json!({"graph": graph_name, "source": source_name}))
}

/// Derives keys of class `to_class` from `input`, keys of class `from_class`, by the cheapest chain of data sources
/// that works. A row per input and output, each once; attributes are those of the last source.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn resolve(
    graph_name: &str,
    from_class: &str,
    input: AnyArray,
    to_class: &str,
) -> Result<
    TableIterator<
        'static,
        (name!(input, String), name!(output, String), name!(attributes, Option<JsonText>)),
    >,
    ErrorReport,
> {
    let derived = resolve::resolve(graph_name, from_class, &input, to_class)?;
    Ok(TableIterator::new(
        derived.into_iter().map(|(input, output, attributes)| (input, output, attributes.map(JsonText))),
    ))
}

/// The chains that resolve() would consider, cheapest first, then sources that it leaves out. Asks none of them.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "the columns of the result")]
fn explain_resolve(
    graph_name: &str,
    from_class: &str,
    input: AnyArray,
    to_class: &str,
) -> Result<
    TableIterator<
        'static,
        (
            name!(place, Option<i32>),
            name!(chosen, bool),
            name!(sources, Vec<String>),
            name!(classes, Vec<String>),
            name!(predicted_ms, Option<f64>),
            name!(predicted_rows, Option<f64>),
            name!(step_ms, Vec<f64>),
            name!(reason, String),
        ),
    >,
    ErrorReport,
> {
    let rows = explain::explain(graph_name, from_class, query::texts(&input)?.len(), to_class)?;
    Ok(TableIterator::new(rows.into_iter().map(|row| {
        (
            row.place,
            row.chosen,
            row.sources,
            row.classes,
            row.predicted_ms,
            row.predicted_rows,
            row.step_ms,
            row.reason,
        )
    })))
}

/// What the last resolve() of this session asked, also when it failed: a row per question. Nobody but the role that asked is told.
#[pg_extern(stable, parallel_restricted)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "the columns of the result")]
fn last_resolve() -> TableIterator<
    'static,
    (
        name!(chain, i32),
        name!(step, i32),
        name!(source, String),
        name!(shards, Vec<String>),
        name!(server, String),
        name!(keys, i64),
        name!(rows, Option<i64>),
        name!(predicted_ms, f64),
        name!(elapsed_ms, Option<f64>),
        name!(outcome, String),
        name!(error, Option<String>),
    ),
> {
    TableIterator::new(report::last().into_iter().map(|line| {
        (
            line.chain,
            line.step,
            line.source,
            line.shards,
            line.server,
            line.keys,
            line.rows,
            line.predicted_ms,
            line.elapsed_ms,
            line.outcome.to_owned(),
            line.error,
        )
    }))
}

/// Internal: behind the view stat_data_sources.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity, reason = "the columns of the result")]
fn data_source_states() -> Result<
    TableIterator<
        'static,
        (
            name!(source_id, i32),
            name!(server_id, i64),
            name!(calls, i64),
            name!(keys, i64),
            name!(rows, i64),
            name!(failures, i64),
            name!(timeouts, i64),
            name!(refused, i64),
            name!(call_ms, f64),
            name!(per_key_ms, f64),
            name!(rows_per_key, f64),
            name!(failure_rate, f64),
            name!(p95_ms, Option<f64>),
            name!(state, String),
            name!(kept_out_until, Option<TimestampWithTimeZone>),
            name!(last_error, Option<String>),
            name!(last_used_at, Option<TimestampWithTimeZone>),
        ),
    >,
    ErrorReport,
> {
    let entries = {
        let _owner = security::as_extension_owner()?;
        memory::known(&data_source::all_ids()?)?
    };
    let now_ms = sources::now_ms();
    Ok(TableIterator::new(entries.into_iter().map(move |entry| {
        let (call_ms, per_key_ms) = entry.learnt.latency(now_ms, None);
        let (state, until) = match entry.breaker.look(now_ms) {
            Admission::Open => ("working", None),
            Admission::Probe => ("to be tried", None),
            Admission::KeptOut(until_ms) => ("kept out", Some(until_ms)),
        };
        (
            entry.place.source,
            i64::from(entry.place.server),
            entry.counters.calls,
            entry.counters.keys,
            entry.counters.rows,
            entry.counters.failures,
            entry.counters.timeouts,
            entry.counters.refused,
            call_ms,
            per_key_ms,
            entry.learnt.fan_out(now_ms),
            entry.learnt.failure(now_ms),
            (entry.learnt.quantile_ms > 0.0).then_some(entry.learnt.quantile_ms),
            state.to_owned(),
            until.and_then(time),
            data_source::last_error(&entry),
            time(entry.used_ms),
        )
    })))
}

/// A time of day from ms since 2000.
fn time(ms: f64) -> Option<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from((ms * 1e3) as pg_sys::TimestampTz).ok()
}

fn not_owner(message: String) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
}

fn require_names(graph: &str, name: &str, from: &str, to: &str) -> PgResult<()> {
    for (what, text, most) in [
        ("graph_name", graph, MAX_NAME),
        ("source_name", name, MAX_NAME),
        ("from_class", from, MAX_CLASS),
        ("to_class", to, MAX_CLASS),
    ] {
        if text.is_empty() || text.len() > most {
            return Err(bad_argument(format!("{what} must have 1 to {most} bytes")));
        }
    }
    if from == to {
        return Err(bad_argument("from_class and to_class must differ"));
    }
    Ok(())
}

/// 42501 unless the current user may add to what others trust: all sources of a graph belong to roles that he is a
/// member of, and so does the edge table of a graph of that name.
fn require_may_add(graph: &str) -> PgResult<()> {
    let edges = {
        let _owner = security::as_extension_owner()?;
        data_source::edges_of(graph)?
    };
    if let Some(edges) = edges {
        security::require_owner(edges, &name_of(edges)?)?;
    }
    data_source::require_all_own(graph)
}

fn shard_map(table: Option<Regclass>, graph_name: Option<&str>) -> PgResult<ShardMap> {
    match (table, graph_name) {
        (Some(_), Some(_)) => Err(bad_argument("sharded_by and sharded_by_graph cannot be given together")),
        (None, None) => Ok(ShardMap::None),
        (Some(Regclass(table)), None) => {
            let name = name_of(table)?;
            security::require_select(table, &name)?;
            let _owner = security::as_extension_owner()?;
            match colocation::managed(table)? {
                Some(_) => Ok(ShardMap::Table(table)),
                None => Err(wrong_state(format!("table {name} is not managed by foreshard"))),
            }
        }
        (None, Some(graph_name)) => {
            let id = {
                let _owner = security::as_extension_owner()?;
                graph::id_of(graph_name)?
            };
            let known = graph::by_id(id)?;
            security::require_select(known.edges, &name_of(known.edges)?)?;
            Ok(ShardMap::Graph(id))
        }
    }
}

/// Reads the argument `servers`.
fn read_servers(servers: Option<Value>, sharded: bool) -> PgResult<Vec<ServersOf>> {
    let wrong = |why: &str| {
        Err(bad_argument("servers must name foreign servers").set_detail(why.to_owned()).set_hint(
            "[\"first\", \"replica\"], or {\"shard\": [\"first\", \"replica\"]} for a sharded data source; \
             \"local\" is this server.",
        ))
    };
    let names = |value: &Value| -> Option<Vec<String>> {
        match value {
            Value::String(name) => Some(vec![name.clone()]),
            Value::Array(list) if !list.is_empty() && list.len() <= MAX_SERVERS => {
                list.iter().map(|name| name.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        }
    };
    match servers {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(by_shard)) => {
            if !sharded {
                return wrong("A data source that is not sharded has no servers by shard.");
            }
            let _owner = security::as_extension_owner()?;
            let mut all = Vec::new();
            for (shard, value) in &by_shard {
                data_source::require_shard(shard)?;
                let Some(servers) = names(value) else {
                    return wrong(&format!(
                        "Those of shard \"{shard}\" are no list of 1 to {MAX_SERVERS} names."
                    ));
                };
                all.push(ServersOf { shard: Some(shard.clone()), servers });
            }
            Ok(all)
        }
        Some(_) if sharded => wrong("A sharded data source has servers by shard."),
        Some(value) => match names(&value) {
            Some(servers) => Ok(vec![ServersOf { shard: None, servers }]),
            None => wrong(&format!("There must be 1 to {MAX_SERVERS} names.")),
        },
    }
}

/// All places where a source will be asked, each once.
fn places(source: &Source) -> PgResult<Vec<String>> {
    let mut all: Vec<String> = source.servers.iter().flat_map(|of| of.servers.clone()).collect();
    let here = match source.map {
        ShardMap::None => source.servers.is_empty(),
        ShardMap::Table(_) | ShardMap::Graph(_) => {
            let _owner = security::as_extension_owner()?;
            let shards = colocation::shards()?;
            shards.iter().any(|s| source.servers.iter().all(|of| of.shard.as_deref() != Some(&s.name)))
        }
    };
    if here {
        all.push(LOCAL.to_owned());
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// Keys of a sharded source are those of the table or the graph that says where they live.
fn require_same_keys(source: &Source) -> PgResult<()> {
    let own = query::element_of(source.key_array)?;
    let other = match source.map {
        ShardMap::None => return Ok(()),
        ShardMap::Table(table) => Router::of(table, Lifetime::Statement)?.key_type(),
        ShardMap::Graph(id) => graph::by_id(id)?.kind.type_oid(),
    };
    if query::are_alike(own, other) {
        return Ok(());
    }
    let (own, other) = (data_source::type_name(own)?, data_source::type_name(other)?);
    Err(error(
        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
        format!("the keys of the data source are {own}, those that say where they live are {other}"),
    ))
}
