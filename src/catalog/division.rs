//! Rows of what shall become of slots that are too hot, or too cold.

use super::colocation;
use super::split::{MAX_MODULUS, MAX_SLOTS};
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::{JsonB, pg_sys};
use serde_json::Value;
use std::collections::HashMap;

/// How a slot lies in its group.
pub struct Shape {
    /// Group.
    pub group_id: i32,
    /// Modulus of its hash.
    pub modulus: i32,
    /// Remainder.
    pub remainder: i32,
    /// It came from a split, and no keys of it are chosen.
    pub was_split: bool,
    /// Its halves are built and wait.
    pub is_prepared: bool,
    /// It may be split once more, as far as its modulus and the number of slots go.
    pub divisible: bool,
    /// Keys of it have places of their own, or it is such a place.
    pub chosen: bool,
    /// It is a slot of this server that keys can be chosen from, and its tables have room for another list; or one of Citus with
    /// more hashes than one.
    pub isolable: bool,
    /// It is the list of one key that the planner isolated; the slot that the key belongs to.
    pub isolated_of: Option<i64>,
}

/// Every slot's, by id.
pub fn shapes() -> PgResult<HashMap<i64, Shape>> {
    let rows = spi::rows(
        "SELECT s.slot_id, s.group_id, s.modulus, s.remainder, s.modulus > g.slot_count AND NOT l.chosen AND s.hash_from IS NULL, \
                EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND NOT m.finished AND m.prepare AND m.phase = 'prepared' AND m.kind = 'split'), \
                CASE WHEN s.hash_from IS NULL THEN s.modulus::int8 * 2 <= $1 ELSE l.has_hashes END AND count(*) OVER (PARTITION BY s.group_id) < $2, \
                CASE WHEN s.hash_from IS NULL THEN s.home_slot_id IS NULL AND h.node_name = $4 AND count(*) OVER (PARTITION BY s.group_id) < $3 \
                     ELSE l.has_hashes AND count(*) OVER (PARTITION BY s.group_id) < $2 END, CASE WHEN s.isolated AND s.planned THEN s.home_slot_id END, l.chosen \
         FROM foreshard.slot s JOIN foreshard.colocation_group g USING (group_id) JOIN foreshard.shard h USING (shard_id) \
         CROSS JOIN LATERAL (SELECT s.home_slot_id IS NOT NULL OR EXISTS (SELECT FROM foreshard.slot o WHERE o.home_slot_id = s.slot_id) AS chosen, \
             s.hash_to > s.hash_from AND EXISTS (SELECT FROM foreshard.citus_table m WHERE m.group_id = s.group_id AND m.key_column IS NOT NULL) AS has_hashes) l",
        &[
            i64::from(MAX_MODULUS).into(),
            MAX_SLOTS.into(),
            i64::from(guc::MAX_LEAVES.get()).into(),
            colocation::LOCAL.into(),
        ],
        |row| {
            let shape = Shape {
                group_id: row.need(2)?,
                modulus: row.need(3)?,
                remainder: row.need(4)?,
                was_split: row.need(5)?,
                is_prepared: row.need(6)?,
                divisible: row.need(7)?,
                isolable: row.need(8)?,
                isolated_of: row.get(9)?,
                chosen: row.need(10)?,
            };
            Ok((row.need::<i64>(1)?, shape))
        },
    )?;
    Ok(rows.into_iter().collect())
}

/// What may have changed of a slot since it was planned for.
pub struct Standing {
    /// Group.
    pub group_id: i32,
    /// Its shard is being emptied.
    pub draining: bool,
    /// It is a slot of Citus, which brings nothing together again.
    pub is_citus: bool,
}

/// How a slot stands; None: it is gone.
pub fn standing(slot_id: i64) -> PgResult<Option<Standing>> {
    let found = spi::rows(
        "SELECT s.group_id, h.draining, s.hash_from IS NOT NULL FROM foreshard.slot s JOIN foreshard.shard h USING (shard_id) WHERE s.slot_id = $1",
        &[slot_id.into()],
        |row| Ok(Standing { group_id: row.need(1)?, draining: row.need(2)?, is_citus: row.need(3)? }),
    )?;
    Ok(found.into_iter().next())
}

/// One recommendation about a slot as a whole.
pub struct Row<'a> {
    /// split, prepare, merge, isolate, home or none.
    pub action: &'a str,
    /// Slot.
    pub slot_id: i64,
    /// Its shard.
    pub shard_id: i32,
    /// The shard that its second half or its key goes to; None: it stays.
    pub to_shard: Option<i32>,
    /// Its bytes; None: unknown.
    pub bytes: Option<i64>,
    /// Why.
    pub reason: Option<&'a str>,
    /// Why not, and what to do.
    pub refusal: Option<(&'a str, &'a str)>,
    /// When to begin, s from now.
    pub start_s: Option<f64>,
    /// When it will be too hot, s from now.
    pub over_s: Option<f64>,
    /// Of keys: the table, and where they should be.
    pub keys: Option<(pg_sys::Oid, &'a Value)>,
}

/// Adds recommendations.
pub fn store(rows: &[Row]) -> PgResult<()> {
    for row in rows {
        spi::run(
            "INSERT INTO foreshard.recommendation (made_at, action, slot_id, from_shard, bytes, reason, refusal, advice, foreseen, start_at, overload_at, keys, table_oid, to_shard) \
             VALUES (pg_catalog.now(), $1, $2, $3, $4, $5, $6, $7, $8 > 0, \
                 pg_catalog.now() + pg_catalog.make_interval(secs => $9), pg_catalog.now() + pg_catalog.make_interval(secs => $8), $10, $11::oid::regclass, $12)",
            &[
                row.action.into(),
                row.slot_id.into(),
                row.shard_id.into(),
                row.bytes.into(),
                row.reason.into(),
                row.refusal.map(|r| r.0).into(),
                row.refusal.map(|r| r.1).into(),
                row.over_s.into(),
                row.start_s.into(),
                row.keys.map(|(_, keys)| JsonB(keys.clone())).into(),
                row.keys.map(|(table, _)| table).into(),
                row.to_shard.into(),
            ],
        )?;
    }
    Ok(())
}
