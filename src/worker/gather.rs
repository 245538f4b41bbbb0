//! Keys that sampled transactions used together, per colocation group: what placements of keys are planned from.

use crate::catalog::colocation;
use crate::pg::bgworker::{self, WorkResult};
use crate::planner::gatherings::{self, Gathered};
use crate::planner::Decision;
use foreshard_core::gather::Gatherer;
use std::collections::{HashMap, HashSet};

/// Keys told apart per group: a few hundred bytes each.
const MAX_KEYS: usize = 65_536;
/// Sampled transactions after which one counts half.
const HALF_LIFE: f64 = 200_000.0;
/// Fewest sampled transactions to plan from.
const MIN_WINDOWS: u64 = 400;
/// A plan is only made again after this share more of them.
const NEWS: f64 = 0.05;

/// What is known of one group.
struct Group {
    gatherer: Gatherer<Vec<u8>>,
    /// Windows when it was last planned for.
    planned_at: u64,
}

/// See the module.
#[derive(Default)]
pub struct Gatherers {
    groups: HashMap<i32, Group>,
    /// Keys of transactions of which more may come, by group and transaction.
    open: HashMap<(i32, u64), Vec<Vec<u8>>>,
}

impl Gatherers {
    /// A key that a sampled transaction used.
    pub fn note(&mut self, group_id: i32, window: u64, key: Vec<u8>) {
        self.open.entry((group_id, window)).or_default().push(key);
    }

    /// All keys of a transaction are written at once: those read so far are whole, but for hardly any.
    pub fn close_windows(&mut self) {
        for ((group_id, _), keys) in self.open.drain() {
            let new = || Group { gatherer: Gatherer::new(MAX_KEYS, HALF_LIFE), planned_at: 0 };
            self.groups.entry(group_id).or_insert_with(new).gatherer.observe(&keys);
        }
    }

    /// Forgets groups that are gone.
    pub fn retain(&mut self, groups: &HashSet<i32>) {
        self.groups.retain(|group, _| groups.contains(group));
    }

    /// What should become of keys, of groups of which enough has been learnt since the last time.
    pub fn plan(&mut self, decision: &Decision) -> WorkResult<Vec<Gathered>> {
        let mut all = Vec::new();
        for (group_id, group) in &mut self.groups {
            let windows = group.gatherer.windows();
            let news = windows.saturating_sub(group.planned_at);
            if windows < MIN_WINDOWS || (news as f64) < windows as f64 * NEWS {
                continue;
            }
            let tables = bgworker::transaction(|| colocation::tables_of_group(*group_id))?;
            let Some(table) = tables.first().copied() else { continue };
            let found =
                bgworker::transaction(|| gatherings::decide(*group_id, table, &group.gatherer, decision))?;
            all.extend(found);
            group.planned_at = windows;
        }
        Ok(all)
    }
}
