//! Whether a query may become a data source: it is prepared, and its rights are checked, as the user who adds it,
//! wherever it will be asked.

use super::network::place_name;
use crate::catalog::data_source::{self, LOCAL, Opening, Source};
use crate::pg::remote::{self, Asked, Command, Failure, Inquiry, Target};
use crate::pg::report::{PgResult, PgSqlErrorCode, bad_argument, error, notice, unsupported};
use crate::pg::{guc, query, reading};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use std::time::Duration;

/// Most columns of a source.
const MAX_COLUMNS: usize = 40;
/// Types with these numbers are the same on every server.
const FIRST_OTHER_TYPE: u32 = 10_000;

/// What a query is, wherever it was prepared.
struct Shape {
    key_array: pg_sys::Oid,
    columns: Vec<(String, pg_sys::Oid)>,
}

/// Fills in what a source's query takes and gives, after looking at it at every one of the places given.
///
/// # Errors
/// What the places say; 22023 and 42804 where the query does not keep to the contract; 08006 when no place could be
/// reached.
pub fn examine(source: &mut Source, places: &[String]) -> PgResult<()> {
    query::require_select(&source.query)?;
    let mut shape: Option<Shape> = None;
    let mut unreached: Option<Failure> = None;
    for place in places {
        let found = match place.as_str() {
            LOCAL => here(&source.query)?,
            server => match there(server, &source.query)? {
                Ok(shape) => shape,
                Err(failure) => {
                    notice(&format!("{} was not asked: {}", place_name(server), failure.message));
                    unreached = Some(failure);
                    continue;
                }
            },
        };
        let alike = |own: &Shape| {
            own.key_array == found.key_array
                && own.columns.len() == found.columns.len()
                && own
                    .columns
                    .iter()
                    .zip(&found.columns)
                    .all(|(a, b)| a.0 == b.0 && query::are_alike(a.1, b.1))
        };
        if shape.as_ref().is_some_and(|own| !alike(own)) {
            return Err(mismatch(format!("the query gives other columns at {}", place_name(place))));
        }
        shape = Some(found);
    }
    let Some(shape) = shape else {
        let failure = unreached.map_or(String::new(), |failure| failure.message);
        return Err(error(
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            "the query could not be checked anywhere",
        )
        .set_detail(failure));
    };
    if places.iter().any(|place| place != LOCAL) {
        require_built_in(&shape)?;
    }
    adopt(source, &shape)?;
    for place in places {
        match place.as_str() {
            LOCAL => rights_here(source)?,
            server => rights_there(source, server)?,
        }
    }
    Ok(())
}

/// The contract: `$1` is an array of keys; the first column is the key, the second the output, others are attributes.
fn adopt(source: &mut Source, shape: &Shape) -> PgResult<()> {
    let element = query::element_of(shape.key_array)?;
    let [key, output, ..] = shape.columns.as_slice() else {
        return Err(bad_argument("the query of a data source must give at least two columns")
            .set_detail("The first is the key as it was asked for, the second what is derived from it."));
    };
    if shape.columns.len() > MAX_COLUMNS {
        return Err(bad_argument(format!(
            "the query of a data source may give at most {MAX_COLUMNS} columns"
        )));
    }
    if !query::are_alike(element, key.1) {
        return Err(mismatch(format!(
            "the first column of a data source must have the type of its keys, {}, not {}",
            data_source::type_name(element)?,
            data_source::type_name(key.1)?
        )));
    }
    source.key_array = shape.key_array;
    source.output = output.1;
    source.columns = shape.columns.iter().map(|(name, _)| name.clone()).collect();
    Ok(())
}

fn mismatch(message: String) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH, message)
}

/// Keys of a class have one type, whichever source gives or takes them.
///
/// # Errors
/// 42804 when they have not.
pub fn require_one_type(source: &Source, others: &[Source]) -> PgResult<()> {
    let ends = |source: &Source| -> PgResult<[(String, pg_sys::Oid); 2]> {
        let element = query::element_of(source.key_array)?;
        Ok([(source.from.clone(), element), (source.to.clone(), source.output)])
    };
    for (class, own) in ends(source)? {
        for other in others {
            for (_, type_) in ends(other)?.into_iter().filter(|(name, _)| *name == class) {
                if !query::are_alike(own, type_) {
                    return Err(mismatch(format!(
                        "keys of class \"{class}\" are {} for data source \"{}\", and {} for this one",
                        data_source::type_name(type_)?,
                        other.name,
                        data_source::type_name(own)?
                    )));
                }
            }
        }
    }
    Ok(())
}

fn here(sql: &str) -> PgResult<Shape> {
    let examined = query::examine(sql)?;
    Ok(Shape { key_array: examined.parameter, columns: examined.columns })
}

/// Runs the query for no rows: the executor checks rights first.
fn rights_here(source: &Source) -> PgResult<()> {
    let statement = data_source::asking(source, 0);
    let limit = Some(guc::RESOLVE_TIMEOUT.get());
    let none = || {
        data_source::set_forms()?;
        data_source::ask(&statement, query::parameter(source.key_array, "{}"), &mut |_| true)
    };
    match reading::look(limit, none) {
        Ok(_) => Ok(()),
        Err(caught) => Err(error(reading::code_of(&caught.sqlstate), caught.message)),
    }
}

/// The same on another server, unless it is not reached.
fn rights_there(source: &Source, server: &str) -> PgResult<()> {
    let target = Target::of(server).map_err(|(state, message)| error(reading::code_of(&state), message))?;
    let limit_ms = guc::RESOLVE_TIMEOUT.get();
    let keys = (source.key_array.to_u32(), "{}".to_owned());
    let query = Command::Query(data_source::asking(source, 0), vec![keys]);
    match ask(target, in_transaction(data_source::opening(limit_ms)?, vec![query]), limit_ms) {
        Err(failure) if !failure.timed_out && !failure.sqlstate.starts_with("08") => {
            Err(error(reading::code_of(&failure.sqlstate), failure.message)
                .set_detail(format!("The query was run for no keys at {}.", place_name(server))))
        }
        _ => Ok(()),
    }
}

/// Commands between the opening and the end of a transaction that leaves nothing behind.
pub fn in_transaction(opening: Opening, commands: Vec<Command>) -> Vec<Command> {
    let begin = opening.into_iter().map(|(sql, values)| {
        Command::Query(sql, values.into_iter().map(|value| (pg_sys::TEXTOID.to_u32(), value)).collect())
    });
    begin.chain(commands).chain([Command::Query("ROLLBACK".to_owned(), Vec::new())]).collect()
}

/// Prepares the query on another server. The inner error: it was not reached.
fn there(server: &str, sql: &str) -> PgResult<Result<Shape, Failure>> {
    let target = Target::of(server).map_err(|(state, message)| error(reading::code_of(&state), message))?;
    let limit_ms = guc::RESOLVE_TIMEOUT.get();
    let commands = vec![Command::Prepare(sql.to_owned()), Command::Describe];
    let commands = in_transaction(data_source::opening(limit_ms)?, commands);
    let replies = match ask(target, commands, limit_ms) {
        Ok(replies) => replies,
        Err(failure) if failure.timed_out || failure.sqlstate.starts_with("08") => return Ok(Err(failure)),
        Err(failure) => {
            return Err(error(reading::code_of(&failure.sqlstate), failure.message)
                .set_detail(format!("The query was prepared at {}.", place_name(server))));
        }
    };
    let Some(described) = replies.get(3) else { return Ok(Err(no_answer())) };
    let parameters = described.parameters();
    let [key_array] = parameters.as_slice() else {
        return Err(bad_argument("the query of a data source must have exactly the parameter $1")
            .set_detail("It is the array of the keys that are asked for."));
    };
    let columns = described.columns();
    let columns = columns.into_iter().map(|(name, type_)| (name, pg_sys::Oid::from(type_))).collect();
    let shape = Shape { key_array: pg_sys::Oid::from(*key_array), columns };
    require_built_in(&shape)?;
    Ok(Ok(shape))
}

/// 0A000 for keys of types that another server may know by other numbers, whether it was reached or not.
fn require_built_in(shape: &Shape) -> PgResult<()> {
    let of_columns = shape.columns.iter().take(2).map(|(_, type_)| *type_);
    if std::iter::once(shape.key_array).chain(of_columns).all(|type_| type_.to_u32() < FIRST_OTHER_TYPE) {
        return Ok(());
    }
    Err(unsupported("keys of data sources on other servers must have types that are built in")
        .set_hint("Cast them, for example: $1::text[]"))
}

fn no_answer() -> Failure {
    Failure::of("08006", "no answer")
}

/// Asks one server and waits.
fn ask(target: Target, commands: Vec<Command>, limit_ms: i32) -> Result<Vec<remote::Reply>, Failure> {
    let mut inquiry = Inquiry::begin(target, commands, Duration::from_millis(limit_ms.max(1) as u64))?;
    loop {
        match inquiry.advance() {
            Asked::Waits => remote::wait(std::iter::once(&inquiry)),
            Asked::Answered(replies) => return Ok(replies),
            Asked::Failed(failure) => return Err(failure),
        }
    }
}
