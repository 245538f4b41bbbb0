//! What may be done with recommendations for a slot.

use crate::catalog::{decision, setting};
use crate::pg::guc::{self, Mode};
use crate::pg::report::PgResult;
use std::collections::HashMap;

/// The mode of every colocation group.
pub struct Modes {
    said: HashMap<i32, Mode>,
    usual: Mode,
}

impl Modes {
    /// As settings and `configure()` say now.
    pub fn read() -> PgResult<Self> {
        Ok(Self { said: setting::modes()?, usual: guc::MODE.get() })
    }

    /// Of a colocation group.
    pub fn of(&self, group_id: i32) -> Mode {
        self.said.get(&group_id).copied().unwrap_or(self.usual)
    }
}

/// The first of some slots whose tables are in mode off.
pub fn first_off(slots: &[i64]) -> PgResult<Option<i64>> {
    let modes = Modes::read()?;
    let groups = decision::groups_of(slots)?;
    Ok(groups.into_iter().find(|(_, group)| modes.of(*group) == Mode::Off).map(|(slot, _)| slot))
}
