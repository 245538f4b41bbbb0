//! What samples say of the keys of every slot: whether a cut would divide their load.

use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::division::Keys;
use std::collections::HashMap;

/// A sampled key.
pub struct KeyLoad {
    /// Its slot.
    pub slot_id: i64,
    /// Its hash, by which it is partitioned.
    pub hash: u64,
    /// Accesses per second.
    pub accesses_per_s: f64,
    /// It is beyond all keys that were seen a while ago; None: keys of its type have no such order, or nothing had been
    /// seen yet.
    pub is_new: Option<bool>,
}

/// Replaces what is stored of a group's slots.
pub fn store(group_id: i32, keys: &[KeyLoad]) -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.slot_keys k USING foreshard.slot s WHERE s.slot_id = k.slot_id AND s.group_id = $1",
        &[group_id.into()],
    )?;
    if keys.is_empty() {
        return Ok(());
    }
    // A hash has 64 bits without a sign.
    spi::run(
        "INSERT INTO foreshard.slot_keys (slot_id, sampled, accesses_per_s, top_share, second_share, front_share, observed_at) \
         SELECT s.slot_id, count(*)::int4, sum(q.a), max(q.a) / sum(q.a), \
             coalesce(sum(q.a) FILTER (WHERE pg_catalog.mod(q.h::numeric + CASE WHEN q.h < 0 THEN 18446744073709551616 ELSE 0 END, s.modulus::numeric * 2) \
                 <> s.remainder), 0) / sum(q.a), \
             coalesce(sum(q.a) FILTER (WHERE q.new), CASE WHEN pg_catalog.bool_and(q.new IS NOT NULL) THEN 0 END) / sum(q.a), pg_catalog.now() \
         FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5)) AS q (slot_id, h, a, new) \
         JOIN foreshard.slot s ON s.slot_id = q.slot_id WHERE s.group_id = $1 GROUP BY 1 HAVING sum(q.a) > 0",
        &[
            group_id.into(),
            keys.iter().map(|key| key.slot_id).collect::<Vec<_>>().into(),
            keys.iter().map(|key| key.hash as i64).collect::<Vec<_>>().into(),
            keys.iter().map(|key| key.accesses_per_s).collect::<Vec<_>>().into(),
            keys.iter().map(|key| key.is_new).collect::<Vec<_>>().into(),
        ],
    )?;
    Ok(())
}

/// What is stored, by slot.
pub fn all() -> PgResult<HashMap<i64, Keys>> {
    let rows = spi::rows(
        "SELECT slot_id, sampled, top_share, second_share, front_share FROM foreshard.slot_keys",
        &[],
        |row| {
            let keys = Keys {
                sampled: row.need::<i32>(2)?.max(0) as u32,
                top_share: row.need(3)?,
                second_share: row.need(4)?,
                front_share: row.get(5)?,
            };
            Ok((row.need::<i64>(1)?, keys))
        },
    )?;
    Ok(rows.into_iter().collect())
}
