//! Pairs of slots that transactions touch together.

use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg};

/// Half-life of the counts, s: which slots belong together changes slowly.
pub const HALF_LIFE_S: f64 = 3600.0;

/// A pair of slots.
pub struct Pair {
    /// The slot with the smaller number.
    pub slot_a: i64,
    /// The other one.
    pub slot_b: i64,
    /// Decayed number of transactions that touched both.
    pub weight: f64,
    /// How many times more often than by chance; None: unknown.
    pub lift: Option<f64>,
    /// Share of the transactions that touched either that touched both; None: unknown.
    pub share: Option<f64>,
}

/// Replaces the stored pairs; pairs of slots that are gone are passed over.
pub fn store(pairs: &[Pair]) -> PgResult<()> {
    spi::run("DELETE FROM foreshard.coaccess", &[])?;
    if pairs.is_empty() {
        return Ok(());
    }
    let number =
        |of: fn(&Pair) -> Option<f64>| -> Arg<'static> { pairs.iter().map(of).collect::<Vec<_>>().into() };
    spi::run(
        "INSERT INTO foreshard.coaccess (slot_a, slot_b, weight, lift, share, observed_at) \
         SELECT q.a, q.b, q.w, q.l, q.s, pg_catalog.now() \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5)) \
             AS q (a, b, w, l, s) \
         JOIN foreshard.slot x ON x.slot_id = q.a JOIN foreshard.slot y ON y.slot_id = q.b ON CONFLICT DO NOTHING",
        &[
            pairs.iter().map(|p| p.slot_a).collect::<Vec<_>>().into(),
            pairs.iter().map(|p| p.slot_b).collect::<Vec<_>>().into(),
            number(|p| Some(p.weight)),
            number(|p| p.lift),
            number(|p| p.share),
        ],
    )?;
    Ok(())
}

/// (Slot, slot, decayed number of transactions that touched both) of every stored pair, as of now.
pub fn weights() -> PgResult<Vec<(i64, i64, f64)>> {
    spi::rows(
        // Not too small a power: that is an error.
        "SELECT slot_a, slot_b, weight * pg_catalog.power(0.5, least(200, greatest(0, \
                extract(epoch FROM pg_catalog.clock_timestamp() - observed_at)::float8 / $1))) FROM foreshard.coaccess ORDER BY 1, 2",
        &[HALF_LIFE_S.into()],
        |row| Ok((row.need(1)?, row.need(2)?, row.need(3)?)),
    )
}
