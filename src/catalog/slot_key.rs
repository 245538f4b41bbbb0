//! What samples say of the keys of every slot: whether a cut would divide their load.

use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::division::{Keys, MIN_KEYS};
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

/// How long what was sampled of a slot counts, days: a slot that is hot once a week is judged by its last peak.
const KEPT_DAYS: i32 = 8;

/// Stores what was sampled until `now_s` of a group's slots; counts decay by half in `half_life_s`.
///
/// Keys are sampled while their slot is hot, but it is in the valley before a peak that somebody asks how they
/// spread. So what was sampled last stays: what is merely left of it, decayed, does not replace it, nor do the first few
/// keys of the next peak.
pub fn store(group_id: i32, keys: &[KeyLoad], now_s: f64, half_life_s: f64) -> PgResult<()> {
    if keys.is_empty() {
        return Ok(());
    }
    // A hash has 64 bits without a sign.
    spi::run(
        "INSERT INTO foreshard.slot_keys AS k (slot_id, sampled, accesses_per_s, top_share, second_share, front_share, observed_at) \
         SELECT s.slot_id, count(*)::int4, sum(q.a), max(q.a) / sum(q.a), \
             coalesce(sum(q.a) FILTER (WHERE pg_catalog.mod(q.h::numeric + CASE WHEN q.h < 0 THEN 18446744073709551616 ELSE 0 END, s.modulus::numeric * 2) \
                 <> s.remainder), 0) / sum(q.a), \
             coalesce(sum(q.a) FILTER (WHERE q.new), CASE WHEN pg_catalog.bool_and(q.new IS NOT NULL) THEN 0 END) / sum(q.a), pg_catalog.to_timestamp($5) \
         FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($9)) AS q (slot_id, h, a, new) \
         JOIN foreshard.slot s ON s.slot_id = q.slot_id WHERE s.group_id = $1 GROUP BY 1 HAVING sum(q.a) > 0 \
         ON CONFLICT (slot_id) DO UPDATE SET sampled = excluded.sampled, accesses_per_s = excluded.accesses_per_s, \
             top_share = excluded.top_share, second_share = excluded.second_share, front_share = coalesce(excluded.front_share, k.front_share), \
             observed_at = excluded.observed_at \
         WHERE k.observed_at < excluded.observed_at - pg_catalog.make_interval(days => $8) OR k.observed_at > excluded.observed_at \
            OR (excluded.accesses_per_s > 1.01 * k.accesses_per_s \
                    * pg_catalog.power(0.5, least(200, extract(epoch FROM excluded.observed_at - k.observed_at)::float8 / $6)) \
                AND (excluded.sampled >= least($7, k.sampled) OR excluded.accesses_per_s >= k.accesses_per_s / 2))",
        &[
            group_id.into(),
            keys.iter().map(|key| key.slot_id).collect::<Vec<_>>().into(),
            keys.iter().map(|key| key.hash as i64).collect::<Vec<_>>().into(),
            keys.iter().map(|key| key.accesses_per_s).collect::<Vec<_>>().into(),
            now_s.into(),
            half_life_s.max(1.0).into(),
            (MIN_KEYS as i32).into(),
            KEPT_DAYS.into(),
            keys.iter().map(|key| key.is_new).collect::<Vec<_>>().into(),
        ],
    )?;
    Ok(())
}

/// What is stored and still counts, by slot.
pub fn all() -> PgResult<HashMap<i64, Keys>> {
    let rows = spi::rows(
        "SELECT slot_id, sampled, top_share, second_share, front_share FROM foreshard.slot_keys \
         WHERE observed_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(days => $1)",
        &[KEPT_DAYS.into()],
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

/// Deletes what no longer counts.
pub fn expire() -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.slot_keys WHERE observed_at < pg_catalog.now() - pg_catalog.make_interval(days => $1)",
        &[KEPT_DAYS.into()],
    )?;
    Ok(())
}
