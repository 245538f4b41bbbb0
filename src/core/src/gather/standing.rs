//! Whether what was planned for a slot may still be done.

use std::collections::HashSet;

/// How a slot with its lists of chosen keys stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// It and its lists: slot, shard and when that was last changed.
    pub lists: Vec<(i64, i32, Option<f64>)>,
    /// It may not be changed now: something is under way, it rests, or what was done to it was undone.
    pub held: bool,
}

impl Standing {
    /// Whether a plan that was made when the slot stood like this, for these shards, still holds `now` (None: the slot is
    /// gone), when keys may come to `usable` shards only.
    pub fn holds(
        &self,
        now: Option<&Standing>,
        mut targets: impl Iterator<Item = i32>,
        usable: &HashSet<i32>,
    ) -> bool {
        now.is_some_and(|now| !now.held && now.lists == self.lists)
            && targets.all(|shard| usable.contains(&shard))
    }
}
