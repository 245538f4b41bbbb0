//! Settings of single tables.

use crate::catalog::{colocation, name_of, record_event, setting};
use crate::pg::guc::Mode;
use crate::pg::report::{PgResult, bad_argument, wrong_state};
use crate::pg::security;
use crate::pg::types::Regclass;
use pgrx::prelude::*;
use serde_json::json;

/// Every setting, for the HINT.
const SETTINGS: &[&str] = &["mode", "observe"];

/// `on` or `off`, in any of PostgreSQL's spellings.
fn switch(setting: &str, value: &str) -> PgResult<&'static str> {
    match value.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Ok("on"),
        "off" | "false" | "no" | "0" => Ok("off"),
        _ => Err(bad_argument(format!("setting \"{setting}\" requires on or off, not \"{value}\""))
            .set_hint("NULL brings back the default.")),
    }
}

/// `off`, `advise` or `auto`.
fn mode(setting: &str, value: &str) -> PgResult<&'static str> {
    let mode = Mode::parse(value).ok_or_else(|| {
        bad_argument(format!("setting \"{setting}\" requires off, advise or auto, not \"{value}\""))
            .set_hint("NULL brings back the server's setting, foreshard.mode.")
    })?;
    Ok(mode.as_str())
}

/// Sets what applies to one managed table; NULL brings back the default. `observe`: whether its statements, keys
/// and triggers are sampled (default on). `mode`: what is done with recommendations (default `foreshard.mode`);
/// slots move with all colocated tables, so whoever sets it owns them all, and the most careful one counts.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn configure(table: Option<Regclass>, setting: Option<&str>, value: Option<&str>) -> PgResult<()> {
    let (Some(Regclass(table)), Some(setting)) = (table, setting) else {
        return Err(bad_argument("table and setting must not be NULL"));
    };
    let name = name_of(table)?;
    security::require_owner(table, &name)?;
    if !SETTINGS.contains(&setting) {
        return Err(bad_argument(format!("unknown setting \"{setting}\""))
            .set_hint(format!("Settings of a table are: {}.", SETTINGS.join(", "))));
    }
    let read = if setting == "mode" { mode } else { switch };
    let value = value.map(|value| read(setting, value)).transpose()?;
    let as_owner = security::as_extension_owner()?;
    if colocation::managed(table)?.is_none() {
        return Err(wrong_state(format!("table {name} is not managed by foreshard"))
            .set_hint("Distribute it first: SELECT foreshard.distribute(...)."));
    }
    let together = if setting == "mode" { setting::colocated(table)? } else { Vec::new() };
    drop(as_owner);
    for (table, name) in together {
        security::require_owner(table, &name)?;
    }
    let _owner = security::as_extension_owner()?;
    setting::store(table, setting, value)?;
    record_event("configure", None, None, json!({"table": name, "setting": setting, "value": value}))
}
