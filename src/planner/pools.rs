//! Pools of shards: what is on nodes of Citus stays on nodes of Citus, so that each kind is planned for by itself.

use crate::pg::report::{PgResult, internal};
use foreshard_core::placement::{
    Link, Pace, Plan, PlanOptions, Segment, Shard, Step, Timing, plan_linked, schedule,
};

/// The class of slots of Citus; see the planner's other classes.
pub const CITUS: u64 = 4;

/// Shards and segments between which moves are possible.
pub struct Pool {
    /// They are nodes of Citus.
    pub is_citus: bool,
    /// Shards.
    pub places: Vec<Shard>,
    /// Segments on them.
    pub segments: Vec<Segment>,
}

impl Pool {
    /// Whether a shard is one of its own.
    pub fn has(&self, shard_id: i32) -> bool {
        self.places.iter().any(|place| place.id == shard_id)
    }

    /// The steps of a plan between its shards, with their positions in the plan.
    pub fn steps(&self, plan: &Plan) -> (Vec<usize>, Plan) {
        let own = |(_, step): &(usize, &Step)| self.has(step.from);
        let (at, steps) =
            plan.steps.iter().enumerate().filter(own).map(|(index, step)| (index, step.clone())).unzip();
        (at, Plan { steps, ..plan.clone() })
    }
}

/// The pools of a problem, `citus` being the shards that are nodes of Citus.
pub fn split(places: Vec<Shard>, segments: Vec<Segment>, citus: &[i32]) -> Vec<Pool> {
    let (there, here): (Vec<_>, Vec<_>) = places.into_iter().partition(|place| citus.contains(&place.id));
    let (on, own): (Vec<_>, Vec<_>) = segments.into_iter().partition(|one| citus.contains(&one.shard));
    let pools = [
        Pool { is_citus: false, places: here, segments: own },
        Pool { is_citus: true, places: there, segments: on },
    ];
    pools.into_iter().filter(|pool| !pool.places.is_empty()).collect()
}

/// Plans for every pool; the imbalance is that of the worst. Without a shard there is nothing to plan.
pub fn plan(pools: &[Pool], links: &[Link], options: &PlanOptions) -> PgResult<Plan> {
    let mut whole =
        Plan { steps: Vec::new(), refusals: Vec::new(), imbalance_before: 1.0, imbalance_after: 1.0 };
    for pool in pools {
        let one = plan_linked(&pool.places, &pool.segments, links, options).map_err(internal)?;
        whole.steps.extend(one.steps);
        whole.refusals.extend(one.refusals);
        whole.imbalance_before = whole.imbalance_before.max(one.imbalance_before);
        whole.imbalance_after = whole.imbalance_after.max(one.imbalance_after);
    }
    whole.refusals.sort_by_key(|refusal| refusal.segment);
    Ok(whole)
}

/// When every step of a plan begins; `paces`: of slots of Citus, and of others.
pub fn times(
    pools: &[Pool],
    plan: &Plan,
    options: &PlanOptions,
    [citus, own_pace]: &[Pace; 2],
    open: &[bool],
) -> PgResult<Vec<Timing>> {
    let mut all: Vec<(usize, Timing)> = Vec::with_capacity(plan.steps.len());
    for pool in pools {
        let (at, own) = pool.steps(plan);
        let pace = if pool.is_citus { citus } else { own_pace };
        let times = schedule(&pool.places, &pool.segments, &own, options, pace, open).map_err(internal)?;
        all.extend(at.into_iter().zip(times));
    }
    all.sort_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, timing)| timing).collect())
}
