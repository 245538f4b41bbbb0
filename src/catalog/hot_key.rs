//! The busiest keys of hot slots.

use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg};
use pgrx::pg_sys::Oid;
use std::collections::HashMap;

/// A hot key.
pub struct HotKey {
    /// Hash of the whole key.
    pub hash: u64,
    /// The partitioned table it was last seen in.
    pub table: u32,
    /// Its slot.
    pub slot_id: i64,
    /// Its text; None: cannot be told.
    pub text: Option<String>,
    /// The text is its beginning.
    pub truncated: bool,
    /// Accesses per second.
    pub accesses_per_s: f64,
    /// They are surely no fewer.
    pub lower: f64,
    /// They are surely no more.
    pub upper: f64,
    /// Decayed number of accesses.
    pub access_score: f64,
}

/// Replaces the hot keys of a group; keys of a group or table that is gone are passed over.
pub fn store(group_id: i32, keys: &[HotKey]) -> PgResult<()> {
    spi::run("DELETE FROM foreshard.hot_key WHERE group_id = $1", &[group_id.into()])?;
    if keys.is_empty() {
        return Ok(());
    }
    let number = |of: fn(&HotKey) -> f64| -> Arg<'static> { keys.iter().map(of).collect::<Vec<_>>().into() };
    spi::run(
        "INSERT INTO foreshard.hot_key (group_id, key_hash, table_oid, slot_id, key, truncated, accesses_per_s, lower, upper, access_score, observed_at) \
         SELECT $1, q.h, q.t::regclass, q.s, q.k, q.cut, q.a, q.l, q.u, q.score, pg_catalog.now() \
         FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), \
             pg_catalog.unnest($7), pg_catalog.unnest($8), pg_catalog.unnest($9), pg_catalog.unnest($10)) AS q (h, t, s, k, cut, a, l, u, score) \
         WHERE EXISTS (SELECT FROM foreshard.managed_table m WHERE m.table_oid = q.t AND m.group_id = $1)",
        &[
            group_id.into(),
            keys.iter().map(|k| k.hash as i64).collect::<Vec<_>>().into(),
            keys.iter().map(|k| Oid::from(k.table)).collect::<Vec<_>>().into(),
            keys.iter().map(|k| k.slot_id).collect::<Vec<_>>().into(),
            keys.iter().map(|k| k.text.clone()).collect::<Vec<_>>().into(),
            keys.iter().map(|k| k.truncated).collect::<Vec<_>>().into(),
            number(|k| k.accesses_per_s),
            number(|k| k.lower),
            number(|k| k.upper),
            number(|k| k.access_score),
        ],
    )?;
    Ok(())
}

/// The busiest key of a slot.
pub struct Busiest {
    /// A table that it was seen in.
    pub table: Oid,
    /// Its text.
    pub key: String,
    /// Its share of all accesses to the slot; None: those are not known.
    pub share: Option<f64>,
    /// Accesses per second.
    pub accesses_per_s: f64,
}

impl Busiest {
    /// Slot and key from a row with slot, table, key, share, accesses per second.
    pub(super) fn of_slot(row: &spi::Row) -> PgResult<(i64, Busiest)> {
        let busiest = Busiest {
            table: row.need(2)?,
            key: row.need(3)?,
            share: row.get(4)?,
            accesses_per_s: row.need(5)?,
        };
        Ok((row.need(1)?, busiest))
    }
}

/// The busiest key of every slot that can be told.
pub fn busiest() -> PgResult<HashMap<i64, Busiest>> {
    let rows = spi::rows(
        "SELECT DISTINCT ON (k.slot_id) k.slot_id, k.table_oid::oid, k.key, k.access_score / nullif(h.access_score, 0), k.access_score \
         FROM foreshard.hot_key k JOIN foreshard.managed_table m USING (table_oid) LEFT JOIN foreshard.slot_heat h USING (slot_id) \
         WHERE NOT k.truncated AND k.key IS NOT NULL ORDER BY k.slot_id, k.access_score DESC, k.key_hash",
        &[],
        Busiest::of_slot,
    )?;
    Ok(rows.into_iter().collect())
}
