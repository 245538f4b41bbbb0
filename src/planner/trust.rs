//! Confidence that is earned: what became of recommended steps, per colocation group.

use super::pools::Pool;
use crate::catalog::{decision, outcome, record_event};
use crate::pg::guc;
use crate::pg::report::PgResult;
use foreshard_core::calibration::{Calibration, NOTED, Trust};
use foreshard_core::placement::{
    Link, Plan, PlanOptions, Realised, Step, farther, outcome as judge, shared_capacities,
};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// Steps judged at once.
const MAX_JUDGED: i64 = 200;
/// Share of the buckets that must be known to judge by them.
const KNOWN: f64 = 0.8;

/// What the outcomes of every group say.
pub fn calibrations() -> PgResult<HashMap<i32, Calibration>> {
    let mut all: HashMap<i32, Calibration> = HashMap::new();
    for (group_id, judged) in outcome::judged()? {
        all.entry(group_id).or_default().observe(judged);
    }
    Ok(all)
}

/// Judges the steps whose time is over.
pub fn settle() -> PgResult<()> {
    outcome::give_up_future()?;
    let due = outcome::due(MAX_JUDGED)?;
    if due.is_empty() {
        return Ok(());
    }
    for due in due {
        if (due.loads.len() as f64) < due.buckets as f64 * KNOWN {
            outcome::judge(due.outcome_id, None, None)?;
            continue;
        }
        let curve = |which: usize| due.loads.iter().map(|loads| loads[which]).collect::<Vec<f64>>();
        let [from_capacity, to_capacity, capacity] = due.capacities;
        let realised = Realised {
            moved: curve(0),
            stay: curve(1),
            there: curve(2),
            total: curve(3),
            from_capacity,
            to_capacity,
            capacity,
            drains: due.drains,
            joined: due.joined,
            least_gain: due.least_gain,
        };
        let came = judge(&realised);
        // What it saves across shards is what it was said to save: a step that paid by that alone says nothing of what was foreseen.
        let by_loads = judge(&Realised { joined: 0.0, ..realised });
        let paid = (came.paid == by_loads.paid).then_some(came.paid);
        outcome::judge(due.outcome_id, paid, Some(came.gain))?;
    }
    outcome::expire()?;
    for (group_id, calibration) in calibrations()? {
        let (trust, outcomes) = (calibration.trust(), calibration.len() as i32);
        let (stated, paid) = (calibration.expected(), calibration.paid());
        if outcome::store_trust(group_id, trust.as_str(), outcomes, stated, paid)? && trust != Trust::Unknown
        {
            let detail = json!({
                "group_id": group_id, "trust": trust.as_str(), "outcomes": outcomes, "stated": stated, "paid": paid,
            });
            record_event("trust", None, None, detail)?;
        }
    }
    Ok(())
}

/// Notes the steps of a pool's plan that claim to pay, to be judged when the time that was looked ahead is over.
pub fn note(
    plan: &Plan,
    slots: &[decision::SlotRow],
    (pool, links): (&Pool, &[Link]),
    stated: &[f64],
    options: &PlanOptions,
    resolution_s: i32,
) -> PgResult<()> {
    let shards = pool.places.as_slice();
    let leads = pool.segments.first().map_or(1, |segment| segment.curve.len().max(1));
    let horizon_s = guc::FORECAST_HORIZON.get().min(resolution_s.saturating_mul(leads as i32));
    let mut place: BTreeMap<i64, i32> =
        slots.iter().map(|slot| (slot.slot_id, slot.planned_shard())).collect();
    let capacity = |id: i32| shards.iter().find(|shard| shard.id == id).map_or(1.0, |shard| shard.capacity);
    let all: f64 = shared_capacities(shards, &pool.segments).iter().sum();
    for (step, stated) in plan.steps.iter().zip(stated) {
        let on = |shard: i32| -> Vec<i64> {
            let there = place.iter().filter(|(slot, at)| **at == shard && **slot != step.segment);
            there.map(|(slot, _)| *slot).collect()
        };
        if step.confidence >= NOTED {
            let mib = decision::bytes_of(step.segment, slots).unwrap_or(0) as f64 / 1_048_576.0;
            let new = outcome::NewOutcome {
                slot_id: step.segment,
                from_shard: step.from,
                to_shard: step.to,
                raw: step.confidence,
                stated: *stated,
                stay: on(step.from),
                there: on(step.to),
                capacities: [capacity(step.from), capacity(step.to), all],
                least_gain: mib * options.move_cost_per_mib / options.payback_s,
                drains: shards.iter().any(|shard| shard.id == step.from && shard.draining),
                foreseen: step.foreseen,
                joined: joined(links, &place, step) - waits(pool, step),
            };
            outcome::note(&new, horizon_s, resolution_s)?;
        }
        place.insert(step.segment, step.to);
    }
    Ok(())
}

/// What accesses to the slot of a step cost more where it goes because they wait for a node, cost units/s.
fn waits(pool: &Pool, step: &Step) -> f64 {
    let place = |id: i32| pool.places.iter().find(|place| place.id == id);
    let slot = pool.segments.iter().find(|segment| segment.id == step.segment);
    match (slot, place(step.from), place(step.to)) {
        (Some(slot), Some(from), Some(to)) => farther(slot, from, to),
        _ => 0.0,
    }
}

/// What a step saves of the links across shards, cost units/s, when slots are where `place` says.
fn joined(links: &[Link], place: &BTreeMap<i64, i32>, step: &Step) -> f64 {
    let with = |shard: i32| -> f64 {
        let other = |link: &&Link| match (link.a == step.segment, link.b == step.segment) {
            (true, false) => place.get(&link.b) == Some(&shard),
            (false, true) => place.get(&link.a) == Some(&shard),
            _ => false,
        };
        links.iter().filter(other).map(|link| link.weight).sum()
    };
    with(step.to) - with(step.from)
}
