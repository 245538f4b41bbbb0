//! What Citus asks foreshard when it rebalances, and keys of its tables.

use super::reshard::{require_read_committed, require_slot_owner, wake_keeper};
use crate::catalog::citus::{self, require_coordinator, splitting, strategy, triggers};
use crate::catalog::{colocation, measured, name_of, node, record_event, session};
use crate::observe::{asked, drain};
use crate::pg::report::{PgResult, bad_argument, wrong_state};
use crate::pg::{bgworker, guc, security, shmem, spi};
use pgrx::prelude::*;
use pgrx::{AnyElement, JsonB};
use serde_json::{Value, json};
use std::collections::HashMap;

/// The slot of a key of a table of the adopted cluster, and the name of its shard; None: the table is not one of those.
pub(super) fn slot_of_key(table: pg_sys::Oid, key: &AnyElement) -> PgResult<Option<(i64, String)>> {
    if !citus::is_here() {
        return Ok(None);
    }
    let as_owner = security::as_extension_owner()?;
    let is_citus = citus::has_table(table)?;
    drop(as_owner);
    if !is_citus {
        return Ok(None);
    }
    let restricted = security::owner_of(table).map(security::as_restricted_owner);
    let shard = citus::shard_of_key(table, spi::any_arg(*key))?;
    drop(restricted);
    let _owner = security::as_extension_owner()?;
    let found = match shard {
        Some(shard) => citus::slot_of_shard(shard)?,
        None => None,
    };
    found.map(Some).ok_or_else(|| {
        wrong_state(format!(
            "the place of this key in table {} is not known yet",
            name_of(table).unwrap_or_default()
        ))
        .set_hint("Shards of Citus are looked at in every foreshard.bucket.")
    })
}

/// Gives a key of a table of the adopted cluster a slot by itself, on the shard named, else where it is: the move; inner None: it
/// has one there already; None: the table is not one of those.
pub(super) fn isolate(
    table: pg_sys::Oid,
    key: &AnyElement,
    shard: Option<&str>,
) -> PgResult<Option<Option<i64>>> {
    let Some((slot_id, _)) = slot_of_key(table, key)? else { return Ok(None) };
    shmem::require_preloaded()?;
    require_read_committed()?;
    require_slot_owner(slot_id)?;
    let restricted = security::owner_of(table).map(security::as_restricted_owner);
    session::plain_text_forms()?;
    let text = citus::text_of_key(spi::any_arg(*key))?;
    drop(restricted);
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    session::plain_text_forms()?;
    let hash = citus::hash_of_key(table, &text)?;
    let share = citus::share_of_tenant(slot_id, &text)?;
    let filed = splitting::file_alone(slot_id, (hash, share), shard, &user)?;
    if let Some(move_id) = filed {
        colocation::require_create(&user, &[move_id])?;
        wake_keeper();
    }
    Ok(Some(filed))
}

/// What a shard of Citus, and those of other tables with the same keys, will cost at its forecast peak; in cost units per
/// second where anything is known of its group.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn citus_shard_cost(shard: i64) -> PgResult<f32> {
    let _owner = security::as_extension_owner()?;
    strategy::cost(shard)
}

/// What a node of Citus can carry, in cost units per second.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn citus_node_capacity(node: i32) -> PgResult<f32> {
    let _owner = security::as_extension_owner()?;
    strategy::capacity(node)
}

/// Whether a shard of Citus may be on a node: not on one that is drained, and none goes to one that does not answer.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn citus_shard_allowed(shard: i64, node: i32) -> PgResult<bool> {
    let _owner = security::as_extension_owner()?;
    strategy::allowed(shard, node)
}

/// Registers foreshard as a rebalance strategy of Citus: then `citus_rebalance_start(rebalance_strategy := 'foreshard')` and
/// `get_rebalance_table_shards_plan` balance forecast peaks. The thresholds are those of `citus_add_rebalance_strategy`.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn register_citus_strategy(
    strategy_name: default!(&str, "'foreshard'"),
    default_threshold: default!(f32, "0.1"),
    minimum_threshold: default!(f32, "0.01"),
    improvement_threshold: default!(f32, "0.1"),
) -> PgResult<()> {
    node::check_name("strategy", strategy_name)?;
    let thresholds = [default_threshold, minimum_threshold, improvement_threshold];
    if !thresholds.iter().all(|threshold| (0.0..=1e6).contains(threshold))
        || default_threshold < minimum_threshold
    {
        return Err(bad_argument("thresholds must not be negative, and the default not below the minimum"));
    }
    let _owner = security::as_extension_owner()?;
    require_coordinator()?;
    strategy::register(strategy_name, default_threshold, minimum_threshold, improvement_threshold)?;
    record_event("register_citus_strategy", None, None, json!({"strategy": strategy_name}))
}

/// Removes the strategy again; DROP EXTENSION does so, too.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn unregister_citus_strategy(strategy_name: default!(&str, "'foreshard'")) -> PgResult<()> {
    let _owner = security::as_extension_owner()?;
    require_coordinator()?;
    strategy::unregister(strategy_name)?;
    record_event("unregister_citus_strategy", None, None, json!({"strategy": strategy_name}))
}

/// Most shards that one call may ask for.
const MAX_OBSERVED: usize = 65_536;
/// Longest that they are watched without being asked for again, s.
const MAX_KEEP_S: f64 = 86_400.0;

/// Internal: on a node of Citus its coordinator asks what was measured of these shards, and so has them watched for so many
/// seconds more. Never raises for what is only not so on this server (`why`): then there is nothing to tell.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn observe_shards(
    shards: Option<Vec<Option<i64>>>,
    relations: Option<Vec<Option<pg_sys::Oid>>>,
    keep_s: Option<f64>,
) -> PgResult<JsonB> {
    let (shards, relations) = (shards.unwrap_or_default(), relations.unwrap_or_default());
    let keep_s = keep_s.filter(|keep_s| (0.0..=MAX_KEEP_S).contains(keep_s));
    let keep_s = keep_s.ok_or_else(|| {
        bad_argument("keep_s must be a number of seconds").set_detail("At most a day's worth.")
    })?;
    if shards.len() != relations.len() || shards.len() > MAX_OBSERVED {
        return Err(bad_argument("there must be as many shards as relations, and not too many")
            .set_detail(format!("At most {MAX_OBSERVED} are watched.")));
    }
    let of: HashMap<u32, i64> = shards
        .into_iter()
        .zip(relations)
        .filter_map(|(shard, relation)| Some((relation?.to_u32(), shard?)))
        .collect();
    let missing = if shmem::is_preloaded() && guc::OBSERVE.get() {
        let wanted: Vec<u32> = of.keys().copied().filter(|relation| *relation != 0).collect();
        let until_us = bgworker::now_us().saturating_add((keep_s * 1e6) as i64);
        asked::watch(&wanted, until_us)
    } else {
        0
    };
    let (counters, totals) = measured::names();
    Ok(JsonB(json!({
        "why": why_not(missing),
        "counters": counters,
        "totals": totals,
        "shards": measured_shards(&of),
        "triggers": measured_triggers(&of)?,
    })))
}

/// Why nothing, or not all, is measured here; null: all is.
fn why_not(missing: usize) -> Value {
    if !shmem::is_preloaded() {
        return json!("it is not preloaded there");
    }
    if !guc::OBSERVE.get() {
        return json!("foreshard.observe is off there");
    }
    match missing {
        0 => Value::Null,
        _ => json!(format!("{missing} shards found no room there: raise foreshard.max_relations")),
    }
}

/// A time as PostgreSQL's bigint has it.
fn since_of(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

/// What was measured of shards: [shard, since when it is watched, counters] of each.
fn measured_shards(of: &HashMap<u32, i64>) -> Value {
    let told = asked::relations().into_iter().filter_map(|one| {
        let shard = of.get(&one.relation)?;
        Some(json!([shard, since_of(one.since_us), triggers::whole_of(&one.counters)]))
    });
    told.collect()
}

/// What was measured of triggers on them: [shard, name, constraint, function, event, level, timing, since when, totals] of each.
/// The entries of those that are gone are free for others.
fn measured_triggers(of: &HashMap<u32, i64>) -> PgResult<Value> {
    let since: HashMap<u32, u64> =
        asked::relations().into_iter().map(|one| (one.relation, one.since_us)).collect();
    let profiles: Vec<_> =
        asked::profiles().into_iter().filter(|one| of.contains_key(&one.identity.table)).collect();
    if profiles.is_empty() {
        return Ok(json!([]));
    }
    let identities: Vec<_> = profiles.iter().map(|one| &one.identity).collect();
    let names: HashMap<usize, triggers::Told> = triggers::told(&identities)?.into_iter().collect();
    let mut gone = Vec::new();
    let mut told = Vec::new();
    for (at, one) in profiles.iter().enumerate() {
        let table = one.identity.table;
        let (Some(shard), Some(since_us)) = (of.get(&table), since.get(&table)) else { continue };
        let Some(name) = names.get(&at) else {
            gone.push(one.key);
            continue;
        };
        let (event, level, timing) = name.words;
        told.push(json!([
            shard,
            name.name,
            name.constraint,
            name.function,
            event,
            level,
            timing,
            since_of(*since_us),
            triggers::whole_of(&one.totals)
        ]));
    }
    drain::forget_profiles(&gone);
    Ok(Value::Array(told))
}
