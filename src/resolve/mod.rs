//! Resolving keys of one class into keys of another: which chains there are and what they will take (`network`),
//! where keys live (`spread`), asking all places of a step at once (`step`), what was asked (`report`), what is
//! learnt of it (`memory`), and whether a query may become a data source (`register`).
//!
//! Everything a source's query does, it does as the caller, read-only, in a subtransaction that is rolled back, or in a
//! read-only transaction of another server that the caller's user mapping leads to.

pub mod explain;
pub mod memory;
pub mod network;
pub mod register;
pub mod report;
mod spread;
mod step;

use crate::catalog::data_source;
use crate::pg::local::Local;
use crate::pg::reading::Caught;
use crate::pg::report::{PgResult, PgSqlErrorCode, error, unknown, unsupported, warning};
use crate::pg::{guc, query, reading};
use foreshard_core::resolve::{Answer, Chain, Frontier, Resolved, TooMuch};
use network::Network;
use pgrx::AnyArray;
use pgrx::pg_sys::panic::ErrorReport;
use std::collections::HashMap;

/// Why a chain did not work.
#[derive(Clone, Debug)]
struct Broken {
    /// Number of the source.
    edge: usize,
    sqlstate: String,
    message: String,
}

/// resolve() is under way in this session.
static UNDER_WAY: Local<bool> = Local::new(false);

struct UnderWay;

impl UnderWay {
    /// 0A000 for a source that resolves itself: time limits and reports are those of one question.
    fn begin() -> PgResult<UnderWay> {
        if UNDER_WAY.replace(true) {
            return Err(unsupported("a data source cannot call resolve()")
                .set_hint("Register the other source in the same graph, and resolve() will chain them."));
        }
        Ok(UnderWay)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.set(false);
    }
}

/// A row of the result: input, output, attributes.
pub type Derived = (String, String, Option<String>);

/// Derives keys of class `to` from `input`, keys of class `from`.
///
/// # Errors
/// 42704 for what is not known and where no chain leads, 53400 beyond foreshard.resolve_max_rows, the SQLSTATE that
/// all chains failed with if it is the question's fault, otherwise 08006 or 57P03.
pub fn resolve(graph: &str, from: &str, input: &AnyArray, to: &str) -> PgResult<Vec<Derived>> {
    let _under_way = UnderWay::begin()?;
    report::begin();
    let input = in_forms(|| query::texts(input)).map_err(raised)?;
    let max_rows = guc::RESOLVE_MAX_ROWS.get().max(1) as usize;
    if input.len() > max_rows {
        return Err(too_much(TooMuch::Rows(max_rows)));
    }
    let network = Network::read(graph)?;
    let found = network.search(from, to, input.len() as f64)?;
    let Some(first) = found.chains.first() else { return Err(network.nowhere(from, to)) };
    let input = match first.edges.first().map(|edge| &network.sources[*edge]) {
        Some(source) => in_forms(|| data_source::canonical(source.key_array, &input)).map_err(raised)?,
        None => input,
    };
    let (start, order) = Frontier::of_inputs(input);
    let mut known: HashMap<Vec<usize>, Frontier> = HashMap::new();
    let mut tried: Vec<(usize, Broken)> = Vec::new();
    for (number, chain) in found.chains.iter().enumerate() {
        // What failed once fails for other chains as well.
        if let Some((_, broken)) = tried.iter().find(|(_, broken)| chain.edges.contains(&broken.edge)) {
            tried.push((number, broken.clone()));
            continue;
        }
        match follow(&network, number, chain, &start, &mut known, max_rows) {
            Ok(resolved) => return Ok(told(resolved, &order)),
            Err(broken) => tried.push((number, broken)),
        }
    }
    Err(all_broken(&network, (from, to), &found.chains, &tried))
}

/// Runs `work` where values have the forms that sources tell them in, whatever the caller has set.
fn in_forms<T>(work: impl FnOnce() -> PgResult<T>) -> Result<T, Caught> {
    reading::look(None, || {
        data_source::set_forms()?;
        work()
    })
}

fn raised(caught: Caught) -> ErrorReport {
    error(reading::code_of(&caught.sqlstate), caught.message)
}

fn told(resolved: Vec<Resolved>, order: &[String]) -> Vec<Derived> {
    resolved
        .into_iter()
        .map(|row| {
            let input = order.get(row.input as usize).cloned().unwrap_or_default();
            (input, row.output, row.attributes)
        })
        .collect()
}

/// Asks the sources of a chain one after the other; what an earlier chain that began alike has learnt is used again.
fn follow(
    network: &Network,
    number: usize,
    chain: &Chain,
    start: &Frontier,
    known: &mut HashMap<Vec<usize>, Frontier>,
    max_rows: usize,
) -> Result<Vec<Resolved>, Broken> {
    let mut frontier = start.clone();
    for (at, edge) in chain.edges.iter().enumerate() {
        let beginning = chain.edges[..=at].to_vec();
        if let Some(reached) = known.get(&beginning) {
            frontier = reached.clone();
            continue;
        }
        let last = at + 1 == chain.edges.len();
        let answers: Vec<Answer> = if frontier.is_empty() {
            Vec::new()
        } else {
            let place = step::Place { network, edge: *edge, chain: number, step: at };
            answers_of(&place, &mut frontier, max_rows)?
        };
        let limit = |what: TooMuch| {
            let report = too_much(what);
            Broken { edge: *edge, sqlstate: "53400".to_owned(), message: report.message().to_owned() }
        };
        if last {
            return frontier.finish(&answers, max_rows).map_err(limit);
        }
        frontier = frontier.next(&answers, max_rows).map_err(limit)?;
        known.insert(beginning, frontier.clone());
    }
    Ok(frontier.as_they_are())
}

/// Asks one source. Keys that are equal by their type are asked for once, and answers to keys that look different
/// are answers to those that they equal; others are told, and left out.
fn answers_of(
    place: &step::Place<'_>,
    frontier: &mut Frontier,
    max_rows: usize,
) -> Result<Vec<Answer>, Broken> {
    let source = &place.network.sources[place.edge];
    let broken =
        |caught: Caught| Broken { edge: place.edge, sqlstate: caught.sqlstate, message: caught.message };
    let equal = |keys: &[&str], array| in_forms(|| data_source::equal(array, keys)).map_err(broken);
    let comparable = reading::look(None, || query::comparable(source.key_array)).map_err(broken)?;
    if let Some(array) = comparable
        && frontier.len() > 1
    {
        let groups = equal(&frontier.keys(), array)?;
        frontier.merge(&groups);
    }
    let mut answers = step::ask(place, &frontier.keys(), max_rows)?;
    let strangers = frontier.strangers(&answers);
    if strangers.is_empty() {
        return Ok(answers);
    }
    if let Some(array) = comparable {
        let asked = frontier.keys();
        let keys: Vec<&str> = asked.iter().copied().chain(strangers.iter().map(String::as_str)).collect();
        let mut same: HashMap<&str, &str> = HashMap::new();
        for group in equal(&keys, array)? {
            // The asked ones come first, and are merged: there is one of them at most.
            if let Some((first, others)) = group.split_first()
                && *first < asked.len()
            {
                same.extend(others.iter().filter_map(|other| Some((*keys.get(*other)?, *keys.get(*first)?))));
            }
        }
        for answer in &mut answers {
            if let Some(own) = same.get(answer.key.as_str()) {
                answer.key = (*own).to_owned();
            }
        }
    }
    let lost = frontier.unasked(&answers);
    if lost > 0 {
        warning(&format!(
            "data source \"{}\" gave {lost} rows for keys that it was not asked for; they are left out",
            source.name
        ));
    }
    Ok(answers)
}

fn too_much(what: TooMuch) -> ErrorReport {
    let what = match what {
        TooMuch::Rows(rows) => format!("{rows} rows (foreshard.resolve_max_rows)"),
        TooMuch::Bytes(bytes) => format!("{} MB", bytes >> 20),
    };
    error(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, format!("resolve() exceeds {what}"))
        .set_hint("Ask for fewer keys at a time.")
}

/// The error of a question that no chain answered.
fn all_broken(
    network: &Network,
    (from, to): (&str, &str),
    chains: &[Chain],
    tried: &[(usize, Broken)],
) -> ErrorReport {
    let lines: Vec<String> = tried
        .iter()
        .filter_map(|(number, broken)| {
            let chain = chains.get(*number)?;
            let names = network.names(chain).join(", ");
            let own = network.sources.get(broken.edge).map_or("", |source| source.name.as_str());
            Some(format!(
                "Chain {} ({names}; {:.1} ms predicted): data source \"{own}\": {} (SQLSTATE {}).",
                number + 1,
                chain.ms,
                broken.message.trim_end_matches('.'),
                broken.sqlstate
            ))
        })
        .collect();
    let states: Vec<&str> = tried.iter().map(|(_, broken)| broken.sqlstate.as_str()).collect();
    let code = match states.first() {
        // One cause that is no illness of a place: the caller's own question.
        Some(first) if states.iter().all(|state| state == first) && !is_illness(first) => {
            reading::code_of(first)
        }
        Some(_) if states.iter().all(|state| state.starts_with("08")) => {
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE
        }
        _ => PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW,
    };
    let message = format!("no chain of data sources from class \"{from}\" to class \"{to}\" worked");
    error(code, message)
        .set_detail(lines.join("\n"))
        .set_hint("SELECT * FROM foreshard.last_resolve() shows every question.")
}

/// Time-outs and what belongs to a place rather than to the question.
fn is_illness(sqlstate: &str) -> bool {
    sqlstate == "57014"
        || (foreshard_core::resolve::health(sqlstate) == foreshard_core::resolve::Health::Sick
            && sqlstate != "53400")
}

/// 42704 for a class that no source knows.
fn unknown_class(graph: &str, class: &str) -> ErrorReport {
    unknown(format!("no data source of graph \"{graph}\" knows class \"{class}\""))
}
