//! Settings of single tables: what `configure()` was told.

use crate::pg::guc::Mode;
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;
use std::collections::HashMap;

/// Stores a setting, or forgets it (None: back to the default).
pub fn store(table: pg_sys::Oid, setting: &str, value: Option<&str>) -> PgResult<()> {
    let Some(value) = value else {
        spi::run(
            "DELETE FROM foreshard.table_setting WHERE table_oid = $1 AND setting = $2",
            &[table.into(), setting.into()],
        )?;
        return Ok(());
    };
    spi::run(
        "INSERT INTO foreshard.table_setting (table_oid, setting, value) VALUES ($1::regclass, $2, $3) \
         ON CONFLICT (table_oid, setting) DO UPDATE SET value = excluded.value",
        &[table.into(), setting.into(), value.into()],
    )?;
    Ok(())
}

/// What was said of the tables of each colocation group about the mode: slots move with all of their tables, so the
/// most careful one counts. Groups of which nothing was said are not there.
pub fn modes() -> PgResult<HashMap<i32, Mode>> {
    let rows = spi::rows(
        "SELECT m.group_id, t.value FROM foreshard.table_setting t JOIN foreshard.managed_table m USING (table_oid) WHERE t.setting = 'mode'",
        &[],
        |row| Ok((row.need::<i32>(1)?, Mode::parse(&row.need::<String>(2)?))),
    )?;
    let mut modes: HashMap<i32, Mode> = HashMap::new();
    for (group_id, mode) in rows {
        let Some(mode) = mode else { continue };
        modes.entry(group_id).and_modify(|least| *least = mode.min(*least)).or_insert(mode);
    }
    Ok(modes)
}

/// The tables that share a colocation group with one, itself included: (oid, name).
pub fn colocated(table: pg_sys::Oid) -> PgResult<Vec<(pg_sys::Oid, String)>> {
    spi::rows(
        "SELECT o.table_oid::oid, o.table_oid::text FROM foreshard.managed_table m JOIN foreshard.managed_table o USING (group_id) \
         WHERE m.table_oid = $1 ORDER BY 1",
        &[table.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}
