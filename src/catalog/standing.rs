//! How a move stands, for a person who acts on it.

use crate::pg::report::PgResult;
use crate::pg::spi;

/// What a person who acts on a move must know of it.
pub struct Standing {
    /// Its slot.
    pub slot_id: i64,
    /// Name of its phase.
    pub phase: String,
    /// It has ended.
    pub finished: bool,
    /// It is a split, and the slot has become several.
    pub is_split_for_good: bool,
}

/// How a move stands.
pub fn standing(move_id: i64) -> PgResult<Option<Standing>> {
    let found = spi::rows(
        "SELECT slot_id, phase, finished, kind <> 'move' AND swapped_at IS NOT NULL FROM foreshard.move WHERE move_id = $1",
        &[move_id.into()],
        |row| {
            Ok(Standing {
                slot_id: row.need(1)?,
                phase: row.need(2)?,
                finished: row.need(3)?,
                is_split_for_good: row.need(4)?,
            })
        },
    )?;
    Ok(found.into_iter().next())
}
