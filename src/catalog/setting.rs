//! Settings of single tables: what `configure()` was told.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;

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
