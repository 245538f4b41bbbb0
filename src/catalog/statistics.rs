//! How the observation itself fares.

use crate::pg::report::PgResult;
use crate::pg::spi;
use std::collections::HashMap;

/// Adds to the number of samples that were overwritten before the keeper read them, by area.
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

/// Samples this database's keeper could not read in time, by area.
pub fn lost() -> PgResult<HashMap<String, i64>> {
    let rows = spi::rows("SELECT area, lost FROM foreshard.lost_sample", &[], |row| {
        Ok((row.need::<String>(1)?, row.need::<i64>(2)?))
    })?;
    Ok(rows.into_iter().collect())
}
