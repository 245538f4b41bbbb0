//! foreshard as a rebalance strategy of Citus.

use crate::pg::report::{PgResult, PgSqlErrorCode, error, unknown};
use crate::pg::{security, spi};
use foreshard_core::citus::{Seat, is_allowed, shard_cost};

/// Registers the three functions under a name.
///
/// # Errors
/// 42710 there is such a strategy.
pub fn register(name: &str, threshold: f32, minimum: f32, improvement: f32) -> PgResult<()> {
    if exists(name)? {
        return Err(error(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("rebalance strategy \"{name}\" already exists"),
        )
        .set_hint("See pg_dist_rebalance_strategy; foreshard.unregister_citus_strategy() removes one."));
    }
    spi::run(
        "SELECT pg_catalog.citus_add_rebalance_strategy($1::name, 'foreshard.citus_shard_cost'::regproc, \
             'foreshard.citus_node_capacity'::regproc, 'foreshard.citus_shard_allowed'::regproc, $2, $3, $4)",
        &[name.into(), threshold.into(), minimum.into(), improvement.into()],
    )?;
    Ok(())
}

/// Removes a strategy of ours.
///
/// # Errors
/// 42704 there is none of that name that asks our functions.
pub fn unregister(name: &str) -> PgResult<()> {
    let done = spi::run(
        "DELETE FROM pg_catalog.pg_dist_rebalance_strategy WHERE name = $1::name \
           AND shard_cost_function::oid = 'foreshard.citus_shard_cost'::regproc::oid",
        &[name.into()],
    )?;
    if done == 0 {
        return Err(unknown(format!("rebalance strategy \"{name}\" of foreshard does not exist")));
    }
    Ok(())
}

/// Removes all strategies of ours, before their functions go with the extension. Called in a session of anybody who may drop it, so
/// nothing is looked up by its `search_path`.
pub fn forget_all() -> PgResult<()> {
    if !super::is_here() {
        return Ok(());
    }
    let _owner = security::as_extension_owner()?;
    spi::run(
        "DELETE FROM pg_catalog.pg_dist_rebalance_strategy s \
         WHERE s.shard_cost_function::pg_catalog.oid OPERATOR(pg_catalog.=) 'foreshard.citus_shard_cost'::pg_catalog.regproc::pg_catalog.oid",
        &[],
    )?;
    Ok(())
}

fn exists(name: &str) -> PgResult<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_rebalance_strategy WHERE name = $1::name)";
    Ok(spi::one::<bool>(sql, &[name.into()])?.unwrap_or(false))
}

/// The forecast peak of the slot of a shard, the load of now where there is no forecast, against the mean of its group.
pub fn cost(citus_shard: i64) -> PgResult<f32> {
    let found = spi::rows(
        "WITH own AS (SELECT s.slot_id, s.group_id FROM foreshard.citus_shard t JOIN foreshard.slot s USING (slot_id) WHERE t.citus_shard = $1), \
              peak AS (SELECT s.slot_id, coalesce(f.peak, t.heat) AS peak FROM own o JOIN foreshard.slot s USING (group_id) \
                   LEFT JOIN foreshard.slot_heat t ON t.slot_id = s.slot_id \
                   LEFT JOIN LATERAL (SELECT max(c.cost_units_per_s) AS peak FROM foreshard.forecast c WHERE c.slot_id = s.slot_id AND c.at > pg_catalog.now()) f ON true) \
         SELECT (SELECT p.peak FROM peak p JOIN own USING (slot_id)), (SELECT avg(p.peak) FROM peak p)",
        &[citus_shard.into()],
        |row| Ok((row.get::<f64>(1)?, row.get::<f64>(2)?)),
    )?;
    let (peak, mean) = found.into_iter().next().unwrap_or_default();
    Ok(shard_cost(peak, mean))
}

/// What a node can carry; one that has just joined, what the cluster was adopted with.
pub fn capacity(citus_node: i32) -> PgResult<f32> {
    let found = spi::one::<f64>(
        "SELECT coalesce((SELECT h.capacity FROM foreshard.node n JOIN foreshard.shard h USING (node_name) WHERE n.citus_node = $1), \
                         (SELECT c.capacity FROM foreshard.citus_cluster c), 1)",
        &[citus_node.into()],
    )?;
    Ok(found.unwrap_or(1.0).min(f64::from(f32::MAX)) as f32)
}

/// Whether a shard may be on a node.
pub fn allowed(citus_shard: i64, citus_node: i32) -> PgResult<bool> {
    let found = spi::rows(
        "SELECT EXISTS (SELECT FROM foreshard.citus_shard t WHERE t.citus_shard = $1 AND t.node_name = n.node_name), \
                coalesce(h.draining, false), n.state = 'down' \
         FROM foreshard.node n LEFT JOIN foreshard.shard h USING (node_name) WHERE n.citus_node = $2",
        &[citus_shard.into(), citus_node.into()],
        |row| Ok(Seat { is_there: row.need(1)?, draining: row.need(2)?, is_down: row.need(3)? }),
    )?;
    Ok(found.into_iter().next().is_none_or(is_allowed))
}
