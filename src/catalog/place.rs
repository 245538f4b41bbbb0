//! Placements of chosen keys: the layout of a slot, what speaks against another one, and what becomes of
//! everything that is known of it.

use super::split::{Part, parts};
use super::{guest, heat, outcome, preflight, shadow, split, unit_cost};
use crate::pg::graph::fresh_snapshot;
use crate::pg::partition::{self, Lifetime, Router};
use crate::pg::report::{self, PgResult, busy};
use crate::pg::{lock, names, spi};
use foreshard_core::guests::Guest;
use pgrx::pg_sys;
use std::collections::{BTreeSet, HashMap};

/// A slot with its chosen keys.
pub struct Home {
    /// Slot.
    pub slot_id: i64,
    /// Its shard.
    pub shard_id: i32,
    /// The sets of chosen keys that hash to it.
    pub guests: Vec<Guest>,
    /// Which partition lists which key, when some do.
    pub lists: Option<Router>,
}

/// How often the partitions of a table are looked up again because some went away meanwhile.
const LOOKS: u32 = 8;

/// (Hash partition, slot, shard, whether it is a table between) of every slot, as of now.
fn partitions_of(table: pg_sys::Oid) -> PgResult<Vec<(pg_sys::Oid, i64, i32, bool)>> {
    let _fresh = fresh_snapshot();
    spi::rows(
        "SELECT coalesce(p.branch, p.partition)::oid, s.slot_id, s.shard_id, p.branch IS NOT NULL FROM foreshard.slot_partition p \
         JOIN foreshard.slot s USING (slot_id) WHERE p.table_oid = $1 AND s.home_slot_id IS NULL ORDER BY 1",
        &[table.into()],
        |row| Ok((row.need(1)?, row.need(2)?, row.need(3)?, row.need(4)?)),
    )
}

/// The slots of a managed table by hash partition, each with its chosen keys, in the text forms of the session.
pub fn layout(table: pg_sys::Oid) -> PgResult<HashMap<u32, Home>> {
    // First the table, then its partitions in the order in which ALTER TABLE locks them; and while it is locked no
    // slot gets its first chosen keys.
    lock::lock_all(&[table], lock::ACCESS_SHARE);
    let mut rows = partitions_of(table)?;
    for _ in 0..LOOKS {
        let between: Vec<pg_sys::Oid> = rows.iter().filter(|row| row.3).map(|row| row.0).collect();
        lock::lock_all(&between, lock::ACCESS_SHARE);
        if between.iter().all(|table| names::plain(*table).is_ok()) {
            break;
        }
        // A cutover came first.
        rows = partitions_of(table)?;
    }
    // What is locked has the lists that a look at the catalog from now on tells.
    let _fresh = fresh_snapshot();
    let known = guests(table)?;
    let mut homes = HashMap::new();
    for (partition, slot_id, shard_id, divided) in rows {
        let mut guests = Vec::new();
        let mut lists = None;
        if divided {
            let router = Router::of_any(partition, Lifetime::Statement)?;
            for (leaf, keys) in router.partitions().iter().zip(router.lists()?) {
                let (Some(keys), Some(&(slot, shard, isolated))) = (keys, known.get(&leaf.to_u32())) else {
                    continue;
                };
                let keys: BTreeSet<String> = keys.into_iter().collect();
                guests.push(Guest { slot: Some(slot), shard, isolated, keys });
            }
            lists = Some(router);
        }
        guests.sort_by_key(|guest| guest.slot);
        homes.insert(partition.to_u32(), Home { slot_id, shard_id, guests, lists });
    }
    Ok(homes)
}

/// (Slot, shard, isolated) of every set of chosen keys by partition.
fn guests(table: pg_sys::Oid) -> PgResult<HashMap<u32, (i64, i32, bool)>> {
    let found = spi::rows(
        "SELECT p.partition::oid, s.slot_id, s.shard_id, s.isolated FROM foreshard.slot_partition p JOIN foreshard.slot s USING (slot_id) \
         WHERE p.table_oid = $1 AND s.home_slot_id IS NOT NULL",
        &[table.into()],
        |row| Ok((row.need::<pg_sys::Oid>(1)?.to_u32(), (row.need(2)?, row.need(3)?, row.need(4)?))),
    )?;
    Ok(found.into_iter().collect())
}

/// The keys of a table that are isolated, by their slots.
pub fn isolated_keys(table: pg_sys::Oid) -> PgResult<HashMap<i64, String>> {
    let guests = layout(table)?.into_values().flat_map(|home| home.guests).filter(|guest| guest.isolated);
    Ok(guests.filter_map(|guest| Some((guest.slot?, guest.keys.into_iter().next()?))).collect())
}

/// Why a slot cannot be split: keys of it, or it itself, are chosen.
pub fn against_split_of(slot_id: i64) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT CASE WHEN s.home_slot_id IS NOT NULL THEN 'chosen_keys: the slot is a list of chosen keys, which no hash divides' \
                WHEN count(i.inhrelid) <= count(DISTINCT p.branch) THEN 'has_table_between: its partitions of chosen keys are gone, the table that held them is not; isolate any key of the slot and bring it home again' \
                ELSE 'has_chosen_keys: ' || count(i.inhrelid) - count(DISTINCT p.branch) || ' of its partitions are lists of chosen keys; bring them home first with foreshard.unisolate_key() or foreshard.place_keys()' END \
         FROM foreshard.slot s LEFT JOIN foreshard.slot_partition p ON p.slot_id = s.slot_id AND p.branch IS NOT NULL \
         LEFT JOIN pg_catalog.pg_inherits i ON i.inhparent = p.branch \
         WHERE s.slot_id = $1 GROUP BY s.slot_id HAVING s.home_slot_id IS NOT NULL OR count(p.branch) > 0",
        &[slot_id.into()],
        |row| row.need(1),
    )
}

/// Everything that speaks against another layout of a slot, of these partitions of its tables.
pub fn reasons(slot_id: i64, partitions: &[pg_sys::Oid]) -> PgResult<Vec<String>> {
    let mut found = spi::rows(
        "SELECT 'chosen_keys: the slot itself is a list of chosen keys' FROM foreshard.slot WHERE slot_id = $1 AND home_slot_id IS NOT NULL",
        &[slot_id.into()],
        |row| row.need::<String>(1),
    )?;
    if partitions.is_empty() {
        found.push("no_partition: the slot has no partition any more".to_string());
    }
    let key_type = spi::one::<pg_sys::Oid>(
        "SELECT g.key_type::oid FROM foreshard.slot s JOIN foreshard.colocation_group g USING (group_id) WHERE s.slot_id = $1",
        &[slot_id.into()],
    )?;
    if key_type.is_some_and(|key_type| !partition::is_listable(key_type)) {
        found.push(
            "no_order: the key's type has no btree operator class, so there are no lists of its values"
                .to_string(),
        );
    }
    for partition in partitions {
        found.extend(preflight::against_move(*partition)?);
        found.extend(split::against_split(*partition)?);
        found.extend(split::against_indexes(*partition)?);
    }
    Ok(found)
}

/// 0A000 with every reason.
pub fn refuse(slot_id: i64, reasons: &[String]) -> PgResult<()> {
    let hint = if split::is_referenced(reasons) {
        "Rows that are referenced cannot change their partition: drop the foreign key, place the keys, and add the key again (NOT VALID first, then VALIDATE; of a partitioned table only since PostgreSQL 18); or move the whole slot with foreshard.move_slot()."
    } else {
        "Cure every reason named and try again, or move the whole slot with foreshard.move_slot()."
    };
    report::refuse(format!("keys of slot {slot_id} cannot have partitions of their own"), reasons, hint)
}

/// All partitions that a placement makes anew, ascending.
pub fn sources(move_id: i64) -> PgResult<Vec<pg_sys::Oid>> {
    let mut all: Vec<pg_sys::Oid> = guest::families(move_id)?.into_iter().flat_map(|f| f.sources).collect();
    all.sort_by_key(|oid| oid.to_u32());
    Ok(all)
}

/// 55006 while another change of the same slot or of one of its chosen keys is under way. Whoever was filed
/// first goes first; the slot's row is locked, so that two cannot pass each other.
pub fn wait_turn(move_id: i64) -> PgResult<()> {
    let home = spi::one_mut::<i64>(
        "SELECT h.slot_id FROM foreshard.move m JOIN foreshard.slot s USING (slot_id) \
         JOIN foreshard.slot h ON h.slot_id = coalesce(s.home_slot_id, s.slot_id) \
         WHERE m.move_id = $1 AND (s.home_slot_id IS NOT NULL OR m.kind = 'place') FOR NO KEY UPDATE OF h",
        &[move_id.into()],
    )?;
    let Some(home) = home else { return Ok(()) };
    let other = spi::one_mut::<i64>(
        "SELECT o.move_id FROM foreshard.move m JOIN foreshard.move o ON o.move_id <> m.move_id AND NOT o.finished \
              AND (o.move_id < m.move_id OR o.phase <> 'preflight') \
         WHERE m.move_id = $1 AND CASE WHEN m.kind = 'place' THEN o.slot_id = ANY (m.guests) \
               ELSE o.kind = 'place' AND o.slot_id = $2 AND m.slot_id = ANY (o.guests) END ORDER BY 1 LIMIT 1",
        &[move_id.into(), home.into()],
    )?;
    match other {
        None => Ok(()),
        Some(other) => Err(busy(format!("move {other} of the same keys is under way"))),
    }
}

/// The placement changes: sets of chosen keys become slots of their own, with the part of the load that they
/// take along; those that replace others take over their slots. Returns the parts with their slots.
pub fn place(move_id: i64, slot_id: i64) -> PgResult<Vec<Part>> {
    let vanished = spi::rows(
        "SELECT g FROM foreshard.move m, pg_catalog.unnest(m.guests) g WHERE m.move_id = $1 \
           AND NOT EXISTS (SELECT FROM foreshard.move_part p WHERE p.move_id = m.move_id AND p.slot_id = g)",
        &[move_id.into()],
        |row| row.need::<i64>(1),
    )?;
    let fresh: Vec<i32> = parts(move_id)?.iter().filter(|p| p.slot_id.is_none()).map(|p| p.part).collect();
    for part in fresh {
        spi::run(
            "WITH made AS (INSERT INTO foreshard.slot (group_id, modulus, remainder, shard_id, last_moved_at, home_slot_id, isolated, planned) \
                 SELECT s.group_id, s.modulus, s.remainder, p.shard_id, pg_catalog.clock_timestamp(), s.slot_id, p.isolated, m.recommendation_id IS NOT NULL \
                 FROM foreshard.slot s JOIN foreshard.move_part p ON (p.move_id, p.part) = ($1, $3) JOIN foreshard.move m USING (move_id) \
                 WHERE s.slot_id = $2 RETURNING slot_id) \
             UPDATE foreshard.move_part p SET slot_id = made.slot_id FROM made WHERE (p.move_id, p.part) = ($1, $3)",
            &[move_id.into(), slot_id.into(), part.into()],
        )?;
    }
    spi::run(
        "UPDATE foreshard.slot s SET shard_id = p.shard_id, last_moved_at = pg_catalog.clock_timestamp() \
         FROM foreshard.move_part p WHERE p.move_id = $1 AND s.slot_id = p.slot_id",
        &[move_id.into()],
    )?;
    spi::run(
        "UPDATE foreshard.move SET swapped_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[move_id.into()],
    )?;
    let parts = parts(move_id)?;
    let made: Vec<i64> = parts.iter().filter_map(|part| part.slot_id).collect();
    spi::run(
        "DELETE FROM foreshard.slot_partition WHERE slot_id = ANY ($1)",
        &[[made.as_slice(), vanished.as_slice()].concat().into()],
    )?;
    heat::absorb(slot_id, &vanished)?;
    Ok(parts)
}

/// Registers the new partitions of one table.
pub fn register(move_id: i64, family: &guest::Family, branch: Option<pg_sys::Oid>) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition, branch) \
         SELECT p.slot_id, $3::regclass, c.child::regclass, CASE WHEN p.keys IS NULL THEN $4::oid::regclass END \
         FROM foreshard.move_child c JOIN foreshard.move_part p USING (move_id, part) WHERE c.move_id = $1 AND c.source = $2",
        &[move_id.into(), family.lead.into(), family.table.into(), branch.into()],
    )?;
    Ok(())
}

/// What every part has of the load of the slot; of sets of keys that there were already, nothing. A hot key has
/// what was sampled of it, everything else its share of the rows.
fn shares(move_id: i64, home: i64) -> PgResult<Vec<(i64, f64)>> {
    let mut others = spi::rows(
        "SELECT p.slot_id, p.rows::float8 / nullif((SELECT sum(rows) FROM foreshard.move_part t WHERE t.move_id = p.move_id), 0), \
                (SELECT sum(k.access_score) FROM foreshard.hot_key k WHERE k.slot_id = $2 AND NOT k.truncated AND k.key = ANY (p.keys)) \
                  / nullif((SELECT h.access_score FROM foreshard.slot_heat h WHERE h.slot_id = $2), 0) \
         FROM foreshard.move m JOIN foreshard.move_part p USING (move_id) \
         WHERE m.move_id = $1 AND p.keys IS NOT NULL AND p.slot_id <> ALL (m.guests) ORDER BY p.part",
        &[move_id.into(), home.into()],
        |row| {
            let share: Option<f64> = row.get(2)?;
            let sampled: Option<f64> = row.get(3)?;
            let share = share.unwrap_or(0.0).max(sampled.unwrap_or(0.0));
            Ok((row.need::<i64>(1)?, share.clamp(0.0, 1.0)))
        },
    )?;
    let sum: f64 = others.iter().map(|(_, share)| share).sum();
    if sum > 1.0 {
        others.iter_mut().for_each(|(_, share)| *share /= sum);
    }
    let rest = (1.0 - sum).max(0.0);
    others.insert(0, (home, rest));
    Ok(others)
}

/// Divides what is known of the slot's present load, in the transaction of the exchange.
pub fn divide(move_id: i64, home: i64, parts: &[Part]) -> PgResult<()> {
    let made = shares(move_id, home)?;
    keep_shares(move_id, &made)?;
    heat::divide(home, &made)?;
    unit_cost::divide(home, &made)?;
    // The counters of new partitions begin anew.
    for part in parts.iter().filter_map(|part| part.slot_id) {
        if !made.iter().any(|(slot, _)| *slot == part) {
            heat::divide(part, &[(part, 1.0)])?;
        }
    }
    Ok(())
}

/// The past is divided as the present was: what was sampled of a key is a share of the load as it was then.
fn keep_shares(move_id: i64, made: &[(i64, f64)]) -> PgResult<()> {
    let (slots, shares): (Vec<i64>, Vec<f64>) = made.iter().copied().unzip();
    spi::run(
        "UPDATE foreshard.move_part p SET share = q.share FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS q (slot_id, share) \
         WHERE p.move_id = $1 AND p.slot_id = q.slot_id",
        &[move_id.into(), slots.into(), shares.into()],
    )?;
    Ok(())
}

/// The shares by which the load of the slot was divided.
fn kept_shares(move_id: i64) -> PgResult<Vec<(i64, f64)>> {
    spi::rows(
        "SELECT slot_id, share FROM foreshard.move_part WHERE move_id = $1 AND share IS NOT NULL ORDER BY part",
        &[move_id.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Divides the past of the slot, and forgets the slots of keys that went home. Not idempotent: it belongs into
/// the transaction that ends the placement.
pub fn settle(move_id: i64, home: i64) -> PgResult<()> {
    let made = kept_shares(move_id)?;
    let swapped_at_s = spi::one::<f64>(
        "SELECT extract(epoch FROM swapped_at)::float8 FROM foreshard.move WHERE move_id = $1",
        &[move_id.into()],
    )?;
    let gone = spi::rows(
        "SELECT s.slot_id FROM foreshard.move m JOIN foreshard.slot s ON s.slot_id = ANY (m.guests) WHERE m.move_id = $1 \
           AND NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.slot_id = s.slot_id)",
        &[move_id.into()],
        |row| row.need::<i64>(1),
    )?;
    heat::absorb_history(home, &gone)?;
    if let Some(until_s) = swapped_at_s.filter(|_| made.len() > 1) {
        heat::divide_history(home, &made, until_s)?;
    }
    let parts: Vec<i64> = made.iter().map(|(slot, _)| *slot).chain([home]).collect();
    outcome::slots_changed(home, &parts, &gone)?;
    spi::run("DELETE FROM foreshard.slot WHERE slot_id = ANY ($1)", &[gone.into()])?;
    spi::run(
        "UPDATE foreshard.move_part SET keys = '{}' WHERE move_id = $1 AND keys IS NOT NULL",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Partitions of some tables as they are before a placement, for its locks: the tables whose partitions change.
pub fn parents_of(move_id: i64) -> PgResult<Vec<pg_sys::Oid>> {
    let mut held = Vec::new();
    let parts = parts(move_id)?.len();
    for family in guest::families(move_id)? {
        // The table itself gets another partition only when the table between comes or goes.
        if family.branch.is_none() || family.is_single(parts) {
            held.push(family.table);
        }
        held.extend(family.branch);
    }
    Ok(held)
}

/// The partitions of all copies under way of one staging table.
pub fn siblings(move_id: i64, staging: pg_sys::Oid) -> PgResult<Vec<shadow::RelationRow>> {
    let rows = shadow::relations(move_id)?;
    Ok(rows.into_iter().filter(|row| row.shadow == staging).collect())
}
