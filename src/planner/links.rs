//! Slots that transactions use together, as the planner wants to know it.

use crate::catalog::coaccess;
use crate::pg::guc;
use crate::pg::report::PgResult;
use foreshard_core::placement::Link;

/// The links between slots: what it costs that they are on different shards, transactions per second x
/// `foreshard.cross_shard_cost`. What chance brings together in uniform traffic needs no correction: wherever a slot
/// goes, it joins as many as it leaves.
pub fn links() -> PgResult<Vec<Link>> {
    let cost = guc::CROSS_SHARD_COST.get();
    if cost <= 0.0 {
        return Ok(Vec::new());
    }
    // A steady rate has a decayed count of rate x half-life / ln 2.
    let per_s = std::f64::consts::LN_2 / coaccess::HALF_LIFE_S;
    let link = |(a, b, weight): (i64, i64, f64)| Link { a, b, weight: weight * per_s * cost };
    Ok(coaccess::weights()?.into_iter().map(link).collect())
}
