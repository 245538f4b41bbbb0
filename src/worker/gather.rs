//! Keys that sampled transactions used together, per colocation group: what placements of keys are planned from.

use crate::catalog::colocation;
use crate::observe::samples::KeySample;
use crate::pg::report::PgResult;
use crate::planner::Decision;
use crate::planner::gatherings::{self, Gathered, Known};
use foreshard_core::gather::Gatherer;
use std::collections::{HashMap, HashSet};

/// Keys told apart per group: a few hundred bytes each.
const MAX_KEYS: usize = 65_536;
/// Sampled transactions after which one counts half.
const HALF_LIFE: f64 = 200_000.0;
/// Fewest sampled transactions to plan from.
const MIN_WINDOWS: u64 = 400;
/// What counts at a look of the loads at the one before: half after an hour of looks every minute.
const KEPT: f64 = 0.9885;
/// A plan is only made again after this share more of them.
const NEWS: f64 = 0.05;

/// What is known of one group.
struct Group {
    gatherer: Gatherer<Vec<u8>>,
    /// When it began, and the transactions since then.
    since_s: f64,
    transactions: f64,
    /// Windows when it was last planned for, and what came of it.
    planned_at: u64,
    plan: Vec<Gathered>,
    /// Load that shards have carried lately, by shard.
    served: HashMap<i32, f64>,
}

impl Group {
    fn new(now_s: f64) -> Self {
        let gatherer = Gatherer::new(MAX_KEYS, HALF_LIFE, HALF_LIFE);
        Self {
            gatherer,
            since_s: now_s,
            transactions: 0.0,
            planned_at: 0,
            plan: Vec::new(),
            served: HashMap::new(),
        }
    }

    /// Notes what shards carry now, at every look.
    fn note_loads(&mut self, group_id: i32, decision: &Decision) {
        self.served.values_mut().for_each(|served| *served *= KEPT);
        for slot in decision.slots.iter().filter(|slot| slot.group_id == group_id) {
            *self.served.entry(slot.shard_id).or_default() += slot.heat;
        }
    }

    fn known(&self, now_s: f64) -> Known<'_> {
        Known {
            gatherer: &self.gatherer,
            served: &self.served,
            rate_per_s: self.transactions / (now_s - self.since_s).max(1.0),
            counted: (HALF_LIFE / std::f64::consts::LN_2).min(self.gatherer.windows() as f64),
        }
    }
}

/// A transaction's keys as they come.
#[derive(Default)]
struct Window {
    weight: u32,
    keys: Vec<Vec<u8>>,
}

/// See the module.
#[derive(Default)]
pub struct Gatherers {
    groups: HashMap<i32, Group>,
    /// Transactions of which more keys may come, by group.
    open: HashMap<(i32, u64), Window>,
}

impl Gatherers {
    /// A key that a sampled transaction, which stands for `weight`, used.
    pub fn note(&mut self, group_id: i32, sample: KeySample) {
        let window = self.open.entry((group_id, sample.window)).or_default();
        window.weight = sample.weight;
        window.keys.push(sample.bytes);
    }

    /// All keys of a transaction are written at once: those read so far are whole, but for hardly any.
    pub fn close_windows(&mut self, now_s: f64) {
        for ((group_id, _), window) in self.open.drain() {
            let group = self.groups.entry(group_id).or_insert_with(|| Group::new(now_s));
            group.gatherer.observe(&window.keys);
            group.transactions += f64::from(window.weight);
        }
    }

    /// Forgets groups that are gone.
    pub fn retain(&mut self, groups: &HashSet<i32>) {
        self.groups.retain(|group, _| groups.contains(group));
    }

    /// What should become of keys. A group is looked at again once enough more is known, or when one of the slots that
    /// were to change has begun to.
    pub fn plan(&mut self, decision: &Decision, now_s: f64) -> PgResult<Vec<Gathered>> {
        let mut all = Vec::new();
        for (group_id, group) in &mut self.groups {
            group.note_loads(*group_id, decision);
            let windows = group.gatherer.windows();
            let news = windows.saturating_sub(group.planned_at) as f64;
            let moving = |one: &Gathered| decision.slots.iter().any(|s| s.slot_id == one.slot_id && s.moving);
            if windows >= MIN_WINDOWS && (news >= windows as f64 * NEWS || group.plan.iter().any(moving)) {
                group.planned_at = windows;
                group.plan.clear();
                if let Some(table) = colocation::tables_of_group(*group_id)?.first() {
                    group.plan = gatherings::decide(*group_id, *table, &group.known(now_s), decision)?;
                }
            }
            all.extend(group.plan.iter().cloned());
        }
        Ok(all)
    }
}
