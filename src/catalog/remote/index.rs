//! Indexes of copies, built one by one once the rows are there.

use super::copy::Pair;
use super::{make, rights};
use crate::catalog::name_of;
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::spi::quote_literal;

/// Builds the next index of a copy, on whichever side it is; false when it has all.
pub fn build_next(pair: &Pair, tablespace: &str) -> PgResult<bool> {
    let wanted: Vec<_> = pair.shape.own_indexes.iter().chain(&pair.shape.indexes).collect();
    if let Some((link, remote)) = pair.copy.link(pair.shape.owner)? {
        let table = remote.table_there();
        // A carrier that is gone, or was cut off, may have left its statement at work there: it would be built twice, and
        // the next one would be taken for built. So that one is waited for, and counted.
        link.exec(&format!("BEGIN; LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))?;
        let built = link.one(&format!(
            "SELECT count(*)::text FROM pg_index WHERE indisvalid AND indrelid = to_regclass({})",
            quote_literal(&table)
        ))?;
        let built: usize = built.and_then(|n| n.parse().ok()).unwrap_or(0);
        let next = wanted.get(built).map(|index| index.statement(&table));
        link.exec(&format!("{}COMMIT", next.as_ref().map(|next| format!("{next}; ")).unwrap_or_default()))?;
        return Ok(next.is_some());
    }
    let built = spi::one::<i64>(
        "SELECT count(*) FROM pg_catalog.pg_index WHERE indrelid = $1 AND indisvalid",
        &[pair.copy.relation.into()],
    )?;
    let Some(index) = wanted.get(built.unwrap_or(0).max(0) as usize) else { return Ok(false) };
    let statement = index.statement(&name_of(pair.copy.relation)?);
    // PostgreSQL itself evaluates what an index computes as the owner of the table.
    spi::set_local("default_tablespace", tablespace)?;
    spi::run(&statement, &[])?;
    Ok(true)
}

/// A copy on a node that has its indexes gets statistics, the rights of others, and, when there is to be a way back,
/// its log; `lock_ms` bounds the wait for that. A source on a node then gets what rows come back by.
pub fn finish(pair: &Pair, lock_ms: Option<i32>) -> PgResult<()> {
    if let (Some((link, remote)), Some(_)) = (pair.source.link(pair.shape.owner)?, lock_ms) {
        make::inbox(&link, remote, &pair.shape)?;
        make::inbox_here(remote, &pair.shape)?;
    }
    let Some((link, remote)) = pair.copy.link(pair.shape.owner)? else { return Ok(()) };
    link.exec(&format!("ANALYZE {}", remote.table_there()))?;
    rights::give(&link, remote)?;
    if let Some(lock_ms) = lock_ms {
        make::capture(&link, remote, &pair.shape, lock_ms)?;
        make::changes_here(remote, &pair.shape)?;
    }
    Ok(())
}
