//! How far a move is, beyond what its phase says.

use crate::pg::report::PgResult;
use crate::pg::spi;

/// Notes how many log entries wait to be replayed, and in how many seconds no more will than can be replayed at once; None: unknown,
/// or never at this pace.
pub fn set_pending(move_id: i64, pending: i64, eta_s: Option<f64>) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET pending_keys = $2, ready_at = pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs => $3) WHERE move_id = $1",
        &[move_id.into(), pending.into(), eta_s.into()],
    )?;
    Ok(())
}

/// Nothing is known of when it will have caught up.
pub fn forget_eta(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET ready_at = NULL WHERE move_id = $1 AND ready_at IS NOT NULL",
        &[move_id.into()],
    )?;
    Ok(())
}

/// Notes how many reads a copy has served so far, could have, and cannot; and of how many scans both copies were asked, and
/// could not be.
pub fn set_reads(move_id: i64, counts: [i64; 5]) -> PgResult<()> {
    let [routed, stayed, unroutable, compared, incomparable] = counts.map(Into::into);
    spi::run(
        "UPDATE foreshard.move SET reads_routed = $2, reads_stayed = $3, reads_unroutable = $4, scans_compared = $5, scans_incomparable = $6 \
         WHERE move_id = $1 AND (reads_routed, reads_stayed, reads_unroutable, scans_compared, scans_incomparable) \
             IS DISTINCT FROM ($2, $3, $4, $5, $6)",
        &[move_id.into(), routed, stayed, unroutable, compared, incomparable],
    )?;
    Ok(())
}
