//! docs/reference.md: functions, views and settings as the server lists them, refusals and SQLSTATEs as the source has them.

use super::source::{CONSTANTS, REFUSALS, START, UNFIT, Word, of_constants, of_enum, raised};
use foreshard_test::{Client, Error, Result};
use std::collections::BTreeMap;

const HEADER: &str = "# Reference\n\n<!-- Made from the code by `make docs`; do not edit. -->\n\n\
All names are in schema `foreshard`. *Who*: PUBLIC may call it; `pg_monitor` may; or nobody but superusers until you GRANT EXECUTE\n\
(functions then check that the caller owns the tables concerned). `NULL` means unknown.\n";

/// SQLSTATE, PostgreSQL's name as in `ERRCODE_…`, when, and what to do.
const STATES: [(&str, &str, &str, &str); 25] = [
    (
        "08001",
        "SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION",
        "The host of a foreign server is not found in time.",
        "Look at the name servers, or give the server option hostaddr.",
    ),
    (
        "08006",
        "CONNECTION_FAILURE",
        "A node or a server of a data source does not answer.",
        "See `nodes.last_error`, `stat_data_sources.last_error`; check the foreign server and the user mapping.",
    ),
    (
        "0A000",
        "FEATURE_NOT_SUPPORTED",
        "Something foreshard does not do, with every reason in the DETAIL.",
        "Do what the HINT says, or leave the table as it is: nothing has happened.",
    ),
    (
        "22023",
        "INVALID_PARAMETER_VALUE",
        "An argument that can never work, NULL included.",
        "Change the argument.",
    ),
    ("22P02", "INVALID_TEXT_REPRESENTATION", "A key that its type cannot hold.", "Change the key."),
    (
        "23514",
        "CHECK_VIOLATION",
        "A table given to `adopt_closure()` is not the closure of its rows of depth 1.",
        "Put it right (the DETAIL has the first differences), or `create_graph()` from the edges.",
    ),
    (
        "2200H",
        "SEQUENCE_GENERATOR_LIMIT_EXCEEDED",
        "The sequence of `next_key()` has left bigint.",
        "Nothing: 2^63 keys are used up.",
    ),
    (
        "2BP01",
        "DEPENDENT_OBJECTS_STILL_EXIST",
        "A table of nodes is dropped before its graph.",
        "`drop_graph()` first.",
    ),
    (
        "2F003",
        "S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED",
        "A user mapping without a password, for somebody who is not a superuser.",
        "Put a password into the user mapping.",
    ),
    (
        "39P01",
        "E_R_I_E_TRIGGER_PROTOCOL_VIOLATED",
        "A trigger function of foreshard is called by hand.",
        "Do not.",
    ),
    (
        "40001",
        "T_R_SERIALIZATION_FAILURE",
        "A node of a graph moved, its component changed, or a slot came home from a node, since the snapshot.",
        "Run the transaction again.",
    ),
    (
        "42501",
        "INSUFFICIENT_PRIVILEGE",
        "The caller does not own what is concerned.",
        "Ask the owner, or `GRANT` membership.",
    ),
    ("42703", "UNDEFINED_COLUMN", "A column that the table does not have.", "Change the name."),
    (
        "42704",
        "UNDEFINED_OBJECT",
        "An unknown shard, node, slot, move, graph or source.",
        "Look into `shards`, `nodes`, `slots`, `progress_moves`, `graphs`.",
    ),
    ("42710", "DUPLICATE_OBJECT", "That name is taken.", "Choose another name."),
    (
        "42723",
        "DUPLICATE_FUNCTION",
        "A function that a graph needs has the name of another one.",
        "Choose another name for the graph.",
    ),
    ("42804", "DATATYPE_MISMATCH", "A key, or a query's column, of the wrong type.", "Cast it."),
    (
        "42P01",
        "UNDEFINED_TABLE",
        "No such table, or it is not managed.",
        "`distribute()` it first; `slots` lists managed tables.",
    ),
    (
        "53400",
        "CONFIGURATION_LIMIT_EXCEEDED",
        "A limit that a setting holds; message or HINT names it.",
        "Raise the setting, or do less at a time.",
    ),
    (
        "54000",
        "PROGRAM_LIMIT_EXCEEDED",
        "A limit of PostgreSQL or of a graph's size.",
        "Place fewer keys; make the graph smaller.",
    ),
    (
        "55000",
        "OBJECT_NOT_IN_PREREQUISITE_STATE",
        "Not preloaded, or the object is in the wrong state for this.",
        "Do what the HINT says.",
    ),
    (
        "55006",
        "OBJECT_IN_USE",
        "Somebody else works on it: a move, a placement, a rebalance of Citus.",
        "Wait, or `cancel_move()`.",
    ),
    (
        "55P03",
        "LOCK_NOT_AVAILABLE",
        "A lock was not had in time.",
        "Try again; find who holds it in `pg_locks`.",
    ),
    (
        "57P03",
        "CANNOT_CONNECT_NOW",
        "No chain of data sources worked, or all are kept out by their breaker.",
        "See the DETAIL and `stat_data_sources`.",
    ),
    (
        "XX000",
        "INTERNAL_ERROR",
        "A bug of foreshard, or a catalog of it edited by hand.",
        "`SELECT * FROM foreshard.check()`; report it with the server log.",
    ),
];

/// The whole text.
pub fn text(client: &mut Client) -> Result<String> {
    let mut text = HEADER.to_string();
    text.push_str("\n## Functions\n\n| function | result | who | what |\n|---|---|---|---|\n");
    text.push_str(&lines(client, FUNCTIONS)?);
    text.push_str(
        "\n## Views\n\n`pg_monitor` may read all of them.\n\n| view | columns | what |\n|---|---|---|\n",
    );
    text.push_str(&lines(client, VIEWS)?);
    text.push_str("\n## A table to write into\n\n| table | columns | what |\n|---|---|---|\n");
    text.push_str(&lines(client, EVENT)?);
    text.push_str(
        "\n## Settings\n\n| setting | default | range | set in | meaning |\n|---|---|---|---|---|\n",
    );
    text.push_str(&lines(client, SETTINGS)?);
    text.push_str("\n## Typed refusals\n\nIn `refusal` of `recommendations`, `recommend()` and `explain_placement_json()`.\n\n");
    text.push_str(&refusals()?);
    text.push_str("\n`timing` of `recommendations`, why a step begins when it does:\n\n");
    text.push_str(&words(&of_enum(START)?, "timing"));
    text.push_str("\nWhy `explain_placement()` says that a shard is no place for a slot:\n\n");
    text.push_str(&words(&of_enum(UNFIT)?, "refused"));
    text.push_str("\n## SQLSTATEs\n\n| SQLSTATE | condition | when | what to do |\n|---|---|---|---|\n");
    text.push_str(&states()?);
    Ok(text)
}

fn lines(client: &mut Client, query: &str) -> Result<String> {
    Ok(format!("{}\n", client.exec(query)?.to_text().trim_end()))
}

/// A row per function that is not internal.
const FUNCTIONS: &str = "SELECT format('| `%s(%s)` | %s | %s | %s |', p.proname, i.inputs, '`' || coalesce(o.outputs, pg_get_function_result(p.oid)) || '`', \
        CASE WHEN EXISTS (SELECT FROM aclexplode(p.proacl) a WHERE a.grantee = 0) THEN 'PUBLIC' \
             WHEN has_function_privilege('pg_monitor', p.oid, 'EXECUTE') THEN '`pg_monitor`' ELSE 'GRANT' END, \
        replace(d.description, '|', '\\|')) \
    FROM pg_proc p JOIN pg_description d ON (d.objoid, d.classoid, d.objsubid) = (p.oid, 'pg_proc'::regclass, 0), \
    LATERAL (SELECT string_agg(quote_ident(coalesce(a.name, '$' || a.n)) || ' ' || format_type(a.type, NULL) \
                    || coalesce(' DEFAULT ' || regexp_replace(pg_get_function_arg_default(p.oid, a.n::int), '^NULL::.*', 'NULL'), ''), ', ' ORDER BY a.n) AS inputs \
             FROM unnest(p.proargnames, coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes) WITH ORDINALITY a (name, type, mode, n) \
             WHERE coalesce(a.mode, 'i') IN ('i', 'b', 'v') AND a.type IS NOT NULL) i, \
    LATERAL (SELECT 'SETOF (' || string_agg(quote_ident(a.name) || ' ' || format_type(a.type, NULL), ', ' ORDER BY a.n) || ')' AS outputs \
             FROM unnest(p.proargnames, p.proallargtypes, p.proargmodes) WITH ORDINALITY a (name, type, mode, n) WHERE a.mode IN ('o', 't')) o \
    WHERE p.pronamespace = 'foreshard'::regnamespace AND d.description NOT LIKE 'Internal:%' \
    ORDER BY p.proname COLLATE \"C\", pg_get_function_identity_arguments(p.oid) COLLATE \"C\"";

/// A row per view.
const VIEWS: &str = "SELECT format('| `%s` | %s | %s |', c.relname, \
        (SELECT string_agg(format('`%s` %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) \
         FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), \
        replace(d.description, '|', '\\|')) \
    FROM pg_class c JOIN pg_description d ON (d.objoid, d.classoid, d.objsubid) = (c.oid, 'pg_class'::regclass, 0) \
    WHERE c.relnamespace = 'foreshard'::regnamespace AND c.relkind = 'v' ORDER BY c.relname COLLATE \"C\"";

/// The table of special events.
const EVENT: &str = "SELECT format('| `%s` | %s | %s |', c.relname, \
        (SELECT string_agg(format('`%s` %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum) \
         FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), obj_description(c.oid, 'pg_class')) \
    FROM pg_class c WHERE c.oid = 'foreshard.event'::regclass";

/// A row per setting.
const SETTINGS: &str = "SELECT format('| `%s` | %s | %s | %s | %s |', name, \
        CASE WHEN coalesce(boot_val, '') = '' THEN '' ELSE format('`%s`', boot_val || coalesce(' ' || unit, '')) END, \
        CASE WHEN vartype = 'bool' THEN '`on`, `off`' WHEN enumvals IS NOT NULL THEN '`' || array_to_string(enumvals, '`, `') || '`' \
             WHEN min_val IS NOT NULL THEN format('%s – %s%s', min_val, max_val, coalesce(' ' || unit, '')) ELSE '' END, \
        CASE context WHEN 'postmaster' THEN 'configuration, restart' WHEN 'sighup' THEN 'configuration, reload' \
             WHEN 'superuser' THEN 'configuration; session, by superusers' WHEN 'user' THEN 'configuration; session' ELSE context END, \
        short_desc) \
    FROM pg_settings WHERE name LIKE 'foreshard.%' ORDER BY name COLLATE \"C\"";

/// The table of refusals, each once.
fn refusals() -> Result<String> {
    let mut all = Vec::new();
    for of in REFUSALS {
        all.extend(of_enum(of)?);
    }
    for path in CONSTANTS {
        all.extend(of_constants(path)?);
    }
    let mut once: BTreeMap<String, Word> = BTreeMap::new();
    for word in all {
        once.entry(word.name.clone()).or_insert(word);
    }
    Ok(words(&once.into_values().collect::<Vec<_>>(), "refusal"))
}

fn words(words: &[Word], head: &str) -> String {
    let advice = words.iter().any(|word| !word.advice.is_empty());
    let mut table = if advice {
        format!("| {head} | what it says | what to do |\n|---|---|---|\n")
    } else {
        format!("| {head} | what it says |\n|---|---|\n")
    };
    for word in words {
        let advice = if advice { format!(" {} |", word.advice) } else { String::new() };
        table.push_str(&format!("| `{}` | {} |{advice}\n", word.name, word.meaning));
    }
    table
}

/// The table of SQLSTATEs; an error when it does not have what the source raises.
fn states() -> Result<String> {
    let known: Vec<&str> = STATES.iter().map(|state| state.1).collect();
    let raised = raised()?;
    let missing: Vec<&String> = raised.iter().filter(|name| !known.contains(&name.as_str())).collect();
    let surplus: Vec<&&str> = known.iter().filter(|name| !raised.contains(**name)).collect();
    if !missing.is_empty() || !surplus.is_empty() {
        return Err(Error::new(
            format!(
                "The reference lacks the SQLSTATEs {missing:?} and has {surplus:?}, which nothing raises."
            ),
            "Bring STATES of pg_test/tests/documents/reference.rs up to date.",
        ));
    }
    Ok(STATES
        .iter()
        .map(|(code, name, when, cure)| format!("| {code} | `{}` | {when} | {cure} |\n", condition(name)))
        .collect())
}

/// The name of a condition, as plpgsql has it.
fn condition(name: &str) -> String {
    name.trim_start_matches("S_R_E_").trim_start_matches("E_R_I_E_").trim_start_matches("T_R_").to_lowercase()
}
