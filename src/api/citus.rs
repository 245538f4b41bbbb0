//! What Citus asks foreshard when it rebalances, and keys of its tables.

use super::reshard::{require_read_committed, require_slot_owner, wake_keeper};
use crate::catalog::citus::{self, require_coordinator, splitting, strategy};
use crate::catalog::{colocation, name_of, node, record_event, session};
use crate::pg::report::{PgResult, bad_argument, wrong_state};
use crate::pg::{security, shmem, spi};
use pgrx::AnyElement;
use pgrx::prelude::*;
use serde_json::json;

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
