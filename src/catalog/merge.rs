//! Merges of slots: asking for one, what speaks against it, and what becomes of everything that is known of both.

use super::citus::splitting;
use super::split::{Slot, slot, target};
use super::{forecast_error, heat, moves, outcome, preflight, request, shadow, split, unit_cost, whole};
use crate::pg::report::{self, PgResult, bad_argument, unsupported};
use crate::pg::spi;
use serde_json::json;

/// Files the merge of two slots.
///
/// # Errors
/// 42704 unknown slot or shard, 22023 slots that are not the two halves of one or a shard that is drained, 55006
/// already moving, 0A000 with every reason why they cannot be merged.
pub fn file(slot_a: i64, slot_b: i64, to_shard: Option<&str>, user: &str) -> PgResult<i64> {
    if splitting::range_of(slot_a)?.or(splitting::range_of(slot_b)?).is_some() {
        return Err(unsupported(format!("slots {slot_a} and {slot_b} cannot be merged"))
            .set_detail("Citus divides shards, and brings none together again.")
            .set_hint("Move them onto one shard with foreshard.move_slot()."));
    }
    let (a, b) = (slot(slot_a)?, slot(slot_b)?);
    let shard_id = target(to_shard, a.shard_id)?;
    require_halves((slot_a, &a), (slot_b, &b))?;
    // The half with the smaller remainder keeps its id, as the first part of a split does.
    let ((kept, first), (gone, second)) =
        if a.remainder < b.remainder { ((slot_a, &a), (slot_b, &b)) } else { ((slot_b, &b), (slot_a, &a)) };
    for (slot_id, slot) in [(kept, first), (gone, second)] {
        if slot.moving {
            return Err(moves::already_moving(slot_id));
        }
    }
    refuse(kept, &reasons(kept, gone)?)?;
    let asked = json!({"merge": [slot_a, slot_b], "shard": to_shard});
    let request_id = request::file(user, first.group_id, &asked)?;
    let move_id = insert(request_id, [kept, gone], [first.shard_id, second.shard_id], shard_id)?;
    // Another session may have split or merged one between the look at it and its lock.
    if slot(kept)?.modulus != first.modulus || slot(gone)?.modulus != second.modulus {
        return Err(moves::already_moving(kept));
    }
    spi::run(
        "INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id, slot_id) VALUES ($1, 0, $2, $3, $4, $5)",
        &[move_id.into(), (first.modulus / 2).into(), first.remainder.into(), shard_id.into(), kept.into()],
    )?;
    Ok(move_id)
}

/// The row of the merge, and that which keeps others away from the slot that goes. Another session may have filed a
/// move of either meanwhile.
fn insert(request_id: i64, slots: [i64; 2], from: [i32; 2], to: i32) -> PgResult<i64> {
    let [kept, gone] = slots;
    let move_id = spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, other_slot, from_shard, to_shard, other_shard) VALUES ($1, 'merge', $2, $3, $4, $5, $6) \
         ON CONFLICT (slot_id) WHERE NOT finished DO NOTHING RETURNING move_id",
        &[request_id.into(), kept.into(), gone.into(), from[0].into(), to.into(), from[1].into()],
    )?
    .ok_or_else(|| moves::already_moving(kept))?;
    spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, partner_of, from_shard, to_shard) VALUES ($1, 'merge', $2, $3, $4, $5) \
         ON CONFLICT (slot_id) WHERE NOT finished DO NOTHING RETURNING move_id",
        &[request_id.into(), gone.into(), move_id.into(), from[1].into(), to.into()],
    )?
    .ok_or_else(|| moves::already_moving(gone))?;
    Ok(move_id)
}

/// The shard that two slots should be merged on: that of the first, unless it is being emptied; None: both are.
pub fn shard_for(slot_a: i64, slot_b: i64) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT h.shard_name::text FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) \
         WHERE s.slot_id IN ($1, $2) AND NOT h.draining ORDER BY s.slot_id <> $1 LIMIT 1",
        &[slot_a.into(), slot_b.into()],
    )
}

/// 22023 unless the slots are (2m, r) and (2m, r + m) of one group.
fn require_halves((slot_a, a): (i64, &Slot), (slot_b, b): (i64, &Slot)) -> PgResult<()> {
    let half = a.modulus / 2;
    if a.group_id == b.group_id
        && a.modulus == b.modulus
        && a.modulus == half * 2
        && (a.remainder - b.remainder).abs() == half
    {
        return Ok(());
    }
    let place = |slot: &Slot| format!("({}, {})", slot.modulus, slot.remainder);
    Err(bad_argument(format!("slots {slot_a} and {slot_b} are not the two halves of one"))
        .set_detail(format!(
            "Their moduli and remainders are {} and {}{}; (2m, r) and (2m, r + m) make (m, r).",
            place(a),
            place(b),
            if a.group_id == b.group_id { "" } else { ", in different colocation groups" }
        ))
        .set_hint("See modulus and remainder in the view foreshard.slots."))
}

/// 0A000 with every reason.
pub fn refuse(slot_id: i64, reasons: &[String]) -> PgResult<()> {
    let hint = "Cure every reason named and merge the slots again; until then they may stay two.";
    report::refuse(format!("slot {slot_id} cannot be merged"), reasons, hint)
}

/// Everything that speaks against merging two slots, of all their tables.
pub fn reasons(slot_a: i64, slot_b: i64) -> PgResult<Vec<String>> {
    let mut found = Vec::new();
    let (a, b) = (shadow::partitions_of_slot(slot_a)?, shadow::partitions_of_slot(slot_b)?);
    if a.is_empty() || a.len() != b.len() {
        found.push("no_partition: a slot has no partition of a table any more".to_string());
    }
    for slot in [slot_a, slot_b] {
        found.extend(super::place::against_split_of(slot)?);
    }
    for partition in a.iter().chain(&b) {
        found.extend(preflight::against_move(*partition)?);
        found.extend(split::against_split(*partition)?);
        found.extend(split::against_indexes(*partition)?);
    }
    let both: Vec<_> = a.into_iter().chain(b).collect();
    for leaves in whole::by_table(&both)? {
        match leaves.as_slice() {
            [first, second] => found.extend(whole::differences(*first, *second)?),
            _ => found.push("no_partition: a slot has no partition of a table any more".to_string()),
        }
    }
    Ok(found)
}

/// The placement changes: the first slot is both, the other is gone; what is known of the load adds up.
pub fn place(move_id: i64, kept: i64, gone: i64) -> PgResult<()> {
    add_present(kept, gone)?;
    spi::run("DELETE FROM foreshard.slot_partition WHERE slot_id IN ($1, $2)", &[kept.into(), gone.into()])?;
    spi::run("DELETE FROM foreshard.slot WHERE slot_id = $1", &[gone.into()])?;
    spi::run(
        "UPDATE foreshard.slot s SET modulus = p.modulus, remainder = p.remainder, shard_id = p.shard_id, \
                last_moved_at = pg_catalog.clock_timestamp() \
         FROM foreshard.move_part p WHERE s.slot_id = $2 AND p.move_id = $1 AND p.part = 0",
        &[move_id.into(), kept.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition) \
         SELECT DISTINCT $2, i.inhparent::regclass, c.child::regclass FROM foreshard.move_child c \
         JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.child WHERE c.move_id = $1",
        &[move_id.into(), kept.into()],
    )?;
    spi::run(
        "UPDATE foreshard.move SET swapped_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[move_id.into()],
    )?;
    heat::divide(kept, &[(kept, 1.0)])
}

/// Heat, costs and forecast of the one that goes are added to the other's. Unknown stays unknown.
fn add_present(kept: i64, gone: i64) -> PgResult<()> {
    let args = [kept.into(), gone.into()];
    spi::run(
        "UPDATE foreshard.slot_heat a SET reads_per_s = a.reads_per_s + b.reads_per_s, writes_per_s = a.writes_per_s + b.writes_per_s, \
             blocks_per_s = a.blocks_per_s + b.blocks_per_s, cost_units_per_s = a.cost_units_per_s + b.cost_units_per_s, \
             cpu_ms_per_s = a.cpu_ms_per_s + b.cpu_ms_per_s, wal_bytes_per_s = a.wal_bytes_per_s + b.wal_bytes_per_s, \
             trigger_cost_per_s = a.trigger_cost_per_s + b.trigger_cost_per_s, heat = a.heat + b.heat, \
             access_score = a.access_score + b.access_score, hot_buckets = greatest(a.hot_buckets, b.hot_buckets) \
         FROM foreshard.slot_heat b WHERE a.slot_id = $1 AND b.slot_id = $2",
        &args,
    )?;
    let args = [kept.into(), gone.into()];
    spi::run(
        &format!(
            "INSERT INTO foreshard.slot_cost AS a (slot_id, table_oid, measured_at, {0}) \
             SELECT $1, table_oid, measured_at, {0} FROM foreshard.slot_cost WHERE slot_id = $2 \
             ON CONFLICT (slot_id, table_oid) DO UPDATE SET {1}",
            unit_cost::SUMS.join(", "),
            unit_cost::SUMS.map(|sum| format!("{sum} = a.{sum} + excluded.{sum}")).join(", ")
        ),
        &args,
    )?;
    let args = [kept.into(), gone.into()];
    spi::run(
        "UPDATE foreshard.forecast a SET cost_units_per_s = a.cost_units_per_s + b.cost_units_per_s, lower = a.lower + b.lower, \
             upper = a.upper + b.upper, mae = a.mae + b.mae FROM foreshard.forecast b WHERE a.slot_id = $1 AND b.slot_id = $2 AND a.at = b.at",
        &args,
    )?;
    Ok(())
}

/// The load history and the hot keys of the one that is gone become the other's; what was predicted of either can no
/// longer be judged. In the transaction that ends the merge.
pub fn add_past(kept: i64, gone: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.heat_history a SET reads_per_s = a.reads_per_s + b.reads_per_s, writes_per_s = a.writes_per_s + b.writes_per_s, \
             blocks_per_s = a.blocks_per_s + b.blocks_per_s, cost_units_per_s = a.cost_units_per_s + b.cost_units_per_s, \
             cpu_ms_per_s = a.cpu_ms_per_s + b.cpu_ms_per_s, wal_bytes_per_s = a.wal_bytes_per_s + b.wal_bytes_per_s, \
             trigger_cost_per_s = a.trigger_cost_per_s + b.trigger_cost_per_s, access_score = a.access_score + b.access_score \
         FROM foreshard.heat_history b WHERE a.slot_id = $1 AND b.slot_id = $2 AND (a.resolution_s, a.bucket_at) = (b.resolution_s, b.bucket_at)",
        &[kept.into(), gone.into()],
    )?;
    spi::run("DELETE FROM foreshard.heat_history WHERE slot_id = $1", &[gone.into()])?;
    forecast_error::forget(kept)?;
    spi::run("UPDATE foreshard.hot_key SET slot_id = $1 WHERE slot_id = $2", &[kept.into(), gone.into()])?;
    outcome::slots_changed(kept, &[kept], &[gone])
}
