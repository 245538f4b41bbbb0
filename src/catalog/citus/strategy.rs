//! foreshard as a rebalance strategy of Citus.

use crate::pg::local::LocalBox;
use crate::pg::report::{PgResult, PgSqlErrorCode, error, unknown};
use crate::pg::{bgworker, security, spi};
use foreshard_core::citus::{Seat, is_allowed, shard_cost};
use std::collections::HashMap;

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

/// What the slots of a group will cost at their peaks, as one statement of this session has read it.
struct Peaks {
    /// When the statement began, and when it read them, us.
    began_us: i64,
    read_us: i64,
    by_slot: HashMap<i64, f64>,
    mean: Option<f64>,
}

/// By group. Citus asks for the shards one by one, in one statement: the forecasts of the group are read for the first of them.
static PEAKS: LocalBox<HashMap<i32, Peaks>> = LocalBox::new();
/// A process that does not say when its statements begin reads them again after that, us.
const PEAKS_HOLD_US: i64 = 5_000_000;

impl Peaks {
    /// The forecast peaks of the slots of a group, the load of now where there is no forecast.
    fn read(group_id: i32, began_us: i64) -> PgResult<Self> {
        let found = spi::rows(
            "SELECT s.slot_id, coalesce(f.peak, t.heat) FROM foreshard.slot s LEFT JOIN foreshard.slot_heat t ON t.slot_id = s.slot_id \
             LEFT JOIN LATERAL (SELECT max(c.cost_units_per_s) AS peak FROM foreshard.forecast c WHERE c.slot_id = s.slot_id AND c.at > pg_catalog.now()) f ON true \
             WHERE s.group_id = $1",
            &[group_id.into()],
            |row| Ok((row.need::<i64>(1)?, row.get::<f64>(2)?)),
        )?;
        let known = found.into_iter().filter_map(|(slot_id, peak)| Some((slot_id, peak?)));
        let by_slot: HashMap<i64, f64> = known.collect();
        let mean = (!by_slot.is_empty()).then(|| by_slot.values().sum::<f64>() / by_slot.len() as f64);
        Ok(Self { began_us, read_us: bgworker::now_us(), by_slot, mean })
    }

    /// Whether they still are what this statement reads.
    fn is_of(&self, began_us: i64) -> bool {
        self.began_us == began_us && bgworker::now_us().saturating_sub(self.read_us) < PEAKS_HOLD_US
    }

    fn of(&self, slot_id: i64) -> (Option<f64>, Option<f64>) {
        (self.by_slot.get(&slot_id).copied(), self.mean)
    }
}

/// The forecast peak of the slot of a shard, the load of now where there is no forecast, against the mean of its group.
pub fn cost(citus_shard: i64) -> PgResult<f32> {
    let own = spi::rows(
        "SELECT s.slot_id, s.group_id FROM foreshard.citus_shard t JOIN foreshard.slot s USING (slot_id) WHERE t.citus_shard = $1",
        &[citus_shard.into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<i32>(2)?)),
    )?;
    let Some((slot_id, group_id)) = own.into_iter().next() else { return Ok(shard_cost(None, None)) };
    let began_us = bgworker::statement_us();
    let known = PEAKS.with(HashMap::new, |all| {
        all.get(&group_id).filter(|peaks| peaks.is_of(began_us)).map(|peaks| peaks.of(slot_id))
    });
    if let Some((peak, mean)) = known.flatten() {
        return Ok(shard_cost(peak, mean));
    }
    let peaks = Peaks::read(group_id, began_us)?;
    let (peak, mean) = peaks.of(slot_id);
    PEAKS.with(HashMap::new, |all| {
        all.retain(|_, other| other.is_of(began_us));
        all.insert(group_id, peaks);
    });
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
