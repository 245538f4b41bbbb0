//! How the observation itself fares.

use crate::pg::report::PgResult;
use crate::pg::spi;
use std::collections::HashMap;

/// What a keeper remembers, and how much of it at most: an area of `foreshard.stat_foreshard`.
pub type Area = (&'static str, usize);
/// Samples of triggers that it has not met before.
pub const NEW_PROFILES: Area = ("samples of new triggers", 4_096);
/// Models of triggers; there may be as many as trigger profiles.
pub const MODELS: Area = ("trigger models", 0);
/// Edges of observed dependencies that are not stored yet.
pub const EDGES: Area = ("dependencies", 4_096);
/// Pairs of slots that are used together.
pub const PAIRS: Area = ("pairs of slots", 65_536);
/// Keys of a group; `foreshard.max_hot_keys` says how many are told apart.
pub const HOT_KEYS: Area = ("hot keys", 0);
/// Slots, and tables, with unit costs of their own.
pub const UNIT_COSTS: Area = ("unit costs", foreshard_core::unit_cost::MAX_ENTRIES);

/// Adds to the number of samples that were overwritten before the keeper read them, or found no room, by area.
pub fn add_lost(lost: &[(&'static str, u64)]) -> PgResult<()> {
    let lost: Vec<_> = lost.iter().filter(|(_, count)| *count > 0).collect();
    if lost.is_empty() {
        return Ok(());
    }
    spi::run(
        "INSERT INTO foreshard.lost_sample AS l (area, lost) \
         SELECT q.area, q.lost FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS q (area, lost) \
         ON CONFLICT (area) DO UPDATE SET lost = l.lost + excluded.lost",
        &[
            lost.iter().map(|(area, _)| (*area).to_string()).collect::<Vec<_>>().into(),
            lost.iter()
                .map(|(_, count)| i64::try_from(*count).unwrap_or(i64::MAX))
                .collect::<Vec<_>>()
                .into(),
        ],
    )?;
    Ok(())
}

/// Samples this database's keeper could not read in time, or had no room for, by area.
pub fn lost() -> PgResult<HashMap<String, i64>> {
    let rows = spi::rows("SELECT area, lost FROM foreshard.lost_sample", &[], |row| {
        Ok((row.need::<String>(1)?, row.need::<i64>(2)?))
    })?;
    Ok(rows.into_iter().collect())
}
