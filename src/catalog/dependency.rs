//! What trigger functions were seen to read and write.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys::Oid;

/// How often a function was seen to touch a relation.
pub struct Seen {
    /// Oid of the function.
    pub function: u32,
    /// Oid of the relation.
    pub relation: u32,
    /// It modified the relation (else it read it).
    pub writes: bool,
    /// Times.
    pub times: u64,
}

/// Adds to what was seen; functions and relations that are gone are passed over.
pub fn add(seen: &[Seen]) -> PgResult<()> {
    if seen.is_empty() {
        return Ok(());
    }
    spi::run(
        "INSERT INTO foreshard.observed_dependency AS d (function_oid, relation_oid, writes, seen, last_seen_at) \
         SELECT q.f, q.r, q.w, q.times, pg_catalog.now() \
         FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4)) AS q (f, r, w, times) \
         WHERE EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.oid = q.f) AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = q.r) \
         ON CONFLICT (function_oid, relation_oid, writes) DO UPDATE SET seen = d.seen + excluded.seen, last_seen_at = excluded.last_seen_at",
        &[
            seen.iter().map(|s| Oid::from(s.function)).collect::<Vec<_>>().into(),
            seen.iter().map(|s| Oid::from(s.relation)).collect::<Vec<_>>().into(),
            seen.iter().map(|s| s.writes).collect::<Vec<_>>().into(),
            seen.iter().map(|s| i64::try_from(s.times).unwrap_or(i64::MAX)).collect::<Vec<_>>().into(),
        ],
    )?;
    Ok(())
}

/// Forgets functions and relations that somebody dropped.
pub fn forget_gone() -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.observed_dependency d \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.oid = d.function_oid) \
            OR NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = d.relation_oid)",
        &[],
    )?;
    Ok(())
}
