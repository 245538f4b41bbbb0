//! Slots that Citus has divided into several, whoever asked for it: what is known of the slot is divided with it, so that no part
//! begins without a past.

use crate::catalog::{heat, outcome, record_event, unit_cost};
use crate::pg::report::{PgResult, internal};
use crate::pg::{bgworker, spi};
use foreshard_core::hash_range::{HashRange, shares};
use serde_json::json;

/// A range of hashes that was part of a slot's and is by itself now.
struct Found {
    slot_id: i64,
    whole: HashRange,
    range: HashRange,
    shard_id: i32,
}

/// Registers the parts of slots that Citus has no more, before anything is matched by its range. `ranges` is the query of what
/// Citus has: group, first and last hash, shard. By who has the cluster's row.
pub(super) fn follow(ranges: &str) -> PgResult<()> {
    let found = spi::rows(
        &format!(
            "WITH r AS MATERIALIZED ({ranges}), \
                  gone AS MATERIALIZED (SELECT s.slot_id, s.group_id, s.hash_from, s.hash_to FROM foreshard.slot s WHERE s.hash_from IS NOT NULL \
                      AND NOT EXISTS (SELECT FROM r WHERE (r.group_id, r.hash_from, r.hash_to) = (s.group_id, s.hash_from, s.hash_to))) \
             SELECT g.slot_id, g.hash_from, g.hash_to, r.hash_from, r.hash_to, r.shard_id \
             FROM gone g JOIN r ON r.group_id = g.group_id AND r.hash_from >= g.hash_from AND r.hash_to <= g.hash_to ORDER BY 1, 4"
        ),
        &[],
        |row| {
            Ok(Found {
                slot_id: row.need(1)?,
                whole: HashRange { from: row.need(2)?, to: row.need(3)? },
                range: HashRange { from: row.need(4)?, to: row.need(5)? },
                shard_id: row.need(6)?,
            })
        },
    )?;
    for parts in found.chunk_by(|a, b| a.slot_id == b.slot_id) {
        divide(parts)?;
    }
    Ok(())
}

/// One slot becomes several; the first part keeps its id. Whoever wanted something else of it is told.
fn divide(parts: &[Found]) -> PgResult<()> {
    let Some((first, others)) = parts.split_first().filter(|(_, others)| !others.is_empty()) else {
        return Ok(());
    };
    let ranges: Vec<HashRange> = parts.iter().map(|part| part.range).collect();
    // What is not all there, because a node is not known yet, is looked at again.
    if !first.whole.is_made_of(&ranges) {
        return Ok(());
    }
    let slot_id = first.slot_id;
    let asked = asked_for(slot_id, &ranges)?;
    let known = asked.as_ref().map_or_else(|| shares(&ranges, None), |(_, shares)| shares.clone());
    spi::run(
        "UPDATE foreshard.slot SET hash_from = $2, hash_to = $3, shard_id = $4, last_moved_at = pg_catalog.clock_timestamp() WHERE slot_id = $1",
        &[slot_id.into(), first.range.from.into(), first.range.to.into(), first.shard_id.into()],
    )?;
    let mut slots = vec![slot_id];
    for part in others {
        slots.push(insert(part)?);
    }
    let made: Vec<(i64, f64)> = slots.iter().copied().zip(known).collect();
    heat::divide(slot_id, &made)?;
    unit_cost::divide(slot_id, &made)?;
    heat::divide_history(slot_id, &made, bgworker::now_s())?;
    outcome::slots_changed(slot_id, &slots, &[])?;
    let move_id = asked.map(|(move_id, _)| move_id);
    if let Some(move_id) = move_id {
        let from: Vec<i32> = ranges.iter().map(|range| range.from).collect();
        spi::run(
            "UPDATE foreshard.move_part p SET slot_id = q.slot_id FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS q (hash_from, slot_id) \
             WHERE p.move_id = $1 AND p.hash_from = q.hash_from",
            &[move_id.into(), from.into(), slots.clone().into()],
        )?;
    }
    // What was to become of the whole is not to become of a part.
    spi::run(
        "UPDATE foreshard.move SET cancel_requested = true, last_error = 'the slot was divided by somebody else' \
         WHERE slot_id = $1 AND NOT finished AND phase IN ('preflight', 'copy') AND move_id IS DISTINCT FROM $2",
        &[slot_id.into(), move_id.into()],
    )?;
    record_event("citus_split", move_id, Some(slot_id), json!({"slots": slots}))
}

/// A new slot of the group of the one that it was part of; which of how many it is, follows.
fn insert(part: &Found) -> PgResult<i64> {
    spi::one_mut::<i64>(
        "INSERT INTO foreshard.slot (group_id, modulus, remainder, shard_id, born_shard, hash_from, hash_to, last_moved_at) \
         SELECT s.group_id, s.modulus, s.remainder, $2, $2, $3, $4, pg_catalog.clock_timestamp() FROM foreshard.slot s WHERE s.slot_id = $1 RETURNING slot_id",
        &[part.slot_id.into(), part.shard_id.into(), part.range.from.into(), part.range.to.into()],
    )?
    .ok_or_else(|| internal("no slot id"))
}

/// Our own split of a slot into just these ranges, with the shares that were foreseen; None: somebody else made it.
fn asked_for(slot_id: i64, ranges: &[HashRange]) -> PgResult<Option<(i64, Vec<f64>)>> {
    let found = spi::rows(
        "SELECT m.move_id, pg_catalog.array_agg(p.hash_to ORDER BY p.part), pg_catalog.array_agg(coalesce(p.share, 0) ORDER BY p.part) \
         FROM foreshard.move m JOIN foreshard.move_part p USING (move_id) \
         WHERE m.slot_id = $1 AND NOT m.finished AND m.kind = 'split' GROUP BY 1",
        &[slot_id.into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<Vec<i32>>(2)?, row.need::<Vec<f64>>(3)?)),
    )?;
    let last: Vec<i32> = ranges.iter().map(|range| range.to).collect();
    Ok(found.into_iter().find(|(_, to, _)| *to == last).map(|(move_id, _, shares)| (move_id, shares)))
}
