//! Session settings of our workers: nothing a database or role sets as its default may stop them.

use crate::pg::report::PgResult;
use crate::pg::spi;

/// Pins search_path and switches off timeouts, for the whole session.
pub fn prepare_worker() -> PgResult<()> {
    for (name, value) in [
        ("search_path", "pg_catalog, pg_temp"),
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("row_security", "off"),
        ("session_replication_role", "origin"),
        ("default_transaction_read_only", "off"),
        ("default_transaction_isolation", "read committed"),
        ("default_table_access_method", "heap"),
        ("default_tablespace", ""),
        // Compiling a plan takes tens of milliseconds, some of them under a lock.
        ("jit", "off"),
        ("DateStyle", "ISO"),
        ("extra_float_digits", "1"),
    ] {
        let _ = spi::one_mut::<String>(
            "SELECT pg_catalog.set_config($1, $2, false)",
            &[name.into(), value.into()],
        )?;
    }
    // Since 17; the carrier's transactions take as long as a table needs.
    let _ = spi::rows(
        "SELECT pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'",
        &[],
        |_| Ok(()),
    )?;
    Ok(())
}

/// From now on nobody is waited for longer than this for a lock, in any transaction of this session.
pub fn wait_for_locks(limit_ms: u32) -> PgResult<()> {
    let limit = format!("{limit_ms}ms");
    let set = "SELECT pg_catalog.set_config('lock_timeout', $1, false)";
    spi::one_mut::<String>(set, &[limit.as_str().into()]).map(drop)
}

/// Values have one text form, whatever the session prefers, until the innermost switch of the user ends.
pub fn plain_text_forms() -> PgResult<()> {
    // Only the style of the output: in which order a date is read stays the session's choice.
    for (setting, value) in [("datestyle", "ISO"), ("intervalstyle", "postgres"), ("extra_float_digits", "1")]
    {
        spi::set_local(setting, value)?;
    }
    Ok(())
}
