//! Shards that are emptied, and shards that go.

use super::colocation;
use crate::pg::report::{PgResult, busy, unknown, wrong_state};
use crate::pg::spi;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Whether a move `m`, or a part of it, goes to a shard `h`.
const GOES_TO: &str = "(m.to_shard = h.shard_id \
     OR EXISTS (SELECT FROM foreshard.move_part p WHERE p.move_id = m.move_id AND p.shard_id = h.shard_id))";

/// Says whether a shard is being emptied.
///
/// # Errors
/// 42704 no such shard.
pub fn mark(shard: &str, draining: bool) -> PgResult<()> {
    let done = spi::run(
        "UPDATE foreshard.shard SET draining = $2 WHERE shard_name = $1::name",
        &[shard.into(), draining.into()],
    )?;
    if done == 0 {
        return Err(
            unknown(format!("shard \"{shard}\" does not exist")).set_hint("See the view foreshard.shards.")
        );
    }
    Ok(())
}

/// A slot that has to go: (slot, load, whether its tables may be on other servers).
struct Leaving {
    slot_id: i64,
    load: f64,
    may_leave_server: bool,
    is_citus: bool,
}

/// A place for every slot of a shard that does not move yet, busiest first, each onto the shard that is least utilised
/// with it; as `{"<slot>": "<shard>"}`. Chosen keys stay with [`super::place`].
///
/// # Errors
/// 55000 a slot has nowhere to go.
pub fn plan(shard: &str) -> PgResult<Map<String, Value>> {
    let leaving = spi::rows(
        "SELECT s.slot_id, coalesce(t.heat, 0), NOT EXISTS (SELECT FROM foreshard.slot_partition p \
                JOIN pg_catalog.pg_index i ON i.indrelid = p.table_oid AND i.indisunique WHERE p.slot_id = s.slot_id), s.hash_from IS NOT NULL \
         FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) LEFT JOIN foreshard.slot_heat t USING (slot_id) \
         WHERE h.shard_name = $1::name AND s.home_slot_id IS NULL \
           AND NOT EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND NOT m.finished) ORDER BY 2 DESC, 1",
        &[shard.into()],
        |row| {
            Ok(Leaving {
                slot_id: row.need(1)?,
                load: row.need(2)?,
                may_leave_server: row.need(3)?,
                is_citus: row.need(4)?,
            })
        },
    )?;
    let sick = super::node::sick_shards()?;
    let targets: Vec<colocation::ShardRow> = colocation::shards()?
        .into_iter()
        .filter(|s| !s.draining && s.name != shard && s.takes && !sick.contains(&s.shard_id))
        .collect();
    // A slot without any load still takes room; one that moves counts where it goes.
    let mut loads: HashMap<i32, f64> = spi::rows(
        "SELECT coalesce(m.to_shard, s.shard_id), sum(coalesce(t.heat, 0) + 1e-6) FROM foreshard.slot s LEFT JOIN foreshard.slot_heat t USING (slot_id) \
         LEFT JOIN foreshard.move m ON m.slot_id = s.slot_id AND NOT m.finished AND m.kind = 'move' AND NOT m.cancel_requested GROUP BY 1",
        &[],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?
    .into_iter()
    .collect();
    let mut map = Map::new();
    for slot in leaving {
        let with = |target: &colocation::ShardRow| {
            (loads.get(&target.shard_id).copied().unwrap_or(0.0) + slot.load) / target.capacity
        };
        let best = targets
            .iter()
            .filter(|target| target.is_citus == slot.is_citus)
            .filter(|target| slot.is_citus || target.is_local() || slot.may_leave_server)
            .min_by(|a, b| with(a).total_cmp(&with(b)));
        let Some(best) = best else {
            return Err(wrong_state(format!("there is no other shard for slot {}", slot.slot_id))
                .set_hint("Add one with foreshard.add_shard()."));
        };
        *loads.entry(best.shard_id).or_default() += slot.load + 1e-6;
        map.insert(slot.slot_id.to_string(), Value::String(best.name.clone()));
    }
    Ok(map)
}

/// What is on a shard, or comes to it, and does not leave with what [`plan`] files: in words, None if nothing.
pub fn rest(shard: &str) -> PgResult<Option<String>> {
    let found = spi::rows(
        &format!(
            "SELECT (SELECT count(*) FROM foreshard.slot s WHERE s.shard_id = h.shard_id AND s.home_slot_id IS NOT NULL), \
                    (SELECT count(*) FROM foreshard.slot s WHERE s.shard_id = h.shard_id AND s.home_slot_id IS NULL \
                         AND EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND NOT m.finished \
                                     AND (m.kind <> 'move' OR m.to_shard = h.shard_id OR m.cancel_requested))), \
                    EXISTS (SELECT FROM foreshard.move m WHERE NOT m.finished AND m.swapped_at IS NULL AND m.from_shard <> h.shard_id AND {GOES_TO}) \
             FROM foreshard.shard h WHERE h.shard_name = $1::name"
        ),
        &[shard.into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<i64>(2)?, row.need::<bool>(3)?)),
    )?;
    let Some((lists, busy, coming)) = found.into_iter().next() else { return Ok(None) };
    let mut all = Vec::new();
    if lists > 0 {
        all.push(format!("{lists} lists of chosen keys, which foreshard.place_keys() brings home"));
    }
    if busy > 0 {
        all.push(format!("{busy} slots that are being changed"));
    }
    if coming {
        all.push("what is on its way to it".to_string());
    }
    Ok((!all.is_empty()).then(|| all.join("; ")))
}

/// Removes a shard.
///
/// # Errors
/// 42704 no such shard, 55006 it holds slots or is part of a move that is remembered.
pub fn remove(shard: &str) -> PgResult<()> {
    // Whoever is about to file a change to it comes before this, and is seen, or finds it gone.
    spi::run("SELECT FROM foreshard.shard WHERE shard_name = $1::name FOR UPDATE", &[shard.into()])?;
    let used = spi::rows_mut(
        &format!(
            "SELECT (SELECT count(*) FROM foreshard.slot s WHERE s.shard_id = h.shard_id), \
                    (SELECT count(*) FROM foreshard.move m WHERE NOT m.finished AND (h.shard_id IN (m.from_shard, m.other_shard) OR {GOES_TO})), \
                    (SELECT count(*) FROM foreshard.graph_partition g WHERE g.shard_id = h.shard_id) \
             FROM foreshard.shard h WHERE h.shard_name = $1::name"
        ),
        &[shard.into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<i64>(2)?, row.need::<i64>(3)?)),
    )?;
    match used.first() {
        None => return Err(unknown(format!("shard \"{shard}\" does not exist"))),
        Some((0, 0, 0)) => {}
        Some((0, 0, parts)) => {
            return Err(busy(format!("shard \"{shard}\" is still used"))
                .set_detail(format!("On it are parts of {parts} closures of graphs."))
                .set_hint("Drop these graphs first: foreshard.drop_graph()."));
        }
        Some((slots, moves, _)) => {
            return Err(busy(format!("shard \"{shard}\" is still used"))
                .set_detail(format!("On it are {slots} slots, and {moves} moves from or to it."))
                .set_hint("Empty it first: foreshard.drain_shard()."));
        }
    }
    let of_shard = "(SELECT shard_id FROM foreshard.shard WHERE shard_name = $1::name)";
    for statement in [
        format!(
            "DELETE FROM foreshard.move_part p USING foreshard.move m WHERE m.move_id = p.move_id AND m.finished AND p.shard_id = {of_shard}"
        ),
        format!(
            "DELETE FROM foreshard.move WHERE finished AND {of_shard} IN (from_shard, to_shard, other_shard)"
        ),
        format!("UPDATE foreshard.slot SET born_shard = NULL WHERE born_shard = {of_shard}"),
        "DELETE FROM foreshard.shard WHERE shard_name = $1::name".to_string(),
    ] {
        spi::run(&statement, &[shard.into()])?;
    }
    Ok(())
}
