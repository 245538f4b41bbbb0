//! Keys that sampled transactions used together, per colocation group: what placements of keys are planned from.

use crate::catalog::gathering;
use crate::observe::samples::KeySample;
use crate::pg::bgworker::{self, WorkResult};
use crate::planner::Decision;
use crate::planner::gatherings::{self, Gathered, Known, Present, Since};
use foreshard_core::gather::{Gatherer, Rate};
use std::collections::{HashMap, HashSet};

/// Keys told apart, of all groups together and of one: a few hundred bytes each.
const ALL_KEYS: usize = 131_072;
const MAX_KEYS: usize = 65_536;
/// Sampled transactions after which one counts half.
const HALF_LIFE: f64 = 200_000.0;
/// Fewest sampled transactions to plan from.
const MIN_WINDOWS: u64 = 400;
/// Load that a shard carried counts half after this time, s.
const SERVED_HALF_LIFE_S: f64 = 3_600.0;
/// Of a longer pause between two looks at the loads nothing is known, s.
const LONGEST_LOOK_S: f64 = 600.0;
/// A plan is only made again after this share more of the transactions that count.
const NEWS: f64 = 0.05;
/// A group is forgotten that was not used for so long: a day and two hours, for those that are used once a day.
const IDLE_S: f64 = 26.0 * 3_600.0;
/// Longest time that one round files placements for; the rest has its turn later, s.
const FILING_S: f64 = 5.0;

/// What is known of one group.
struct Group {
    gatherer: Gatherer<Vec<u8>>,
    rate: Rate,
    /// Windows, and what they stand for, since the rate was noted.
    news: (u64, f64),
    /// Windows when it was last planned for, and what came of it.
    planned_at: u64,
    plan: Vec<Gathered>,
    /// Slots that could not be planned for then.
    held: Vec<i64>,
    /// When keys were first known to be chosen.
    since: Since,
    /// Load that shards have carried lately, by shard, and when that was noted.
    served: HashMap<i32, f64>,
    served_at_s: f64,
}

impl Group {
    fn new(now_s: f64) -> Self {
        Self {
            gatherer: Gatherer::new(MAX_KEYS, HALF_LIFE, HALF_LIFE),
            rate: Rate::new(HALF_LIFE, now_s),
            news: (0, 0.0),
            planned_at: 0,
            plan: Vec::new(),
            held: Vec::new(),
            since: Since::new(),
            served: HashMap::new(),
            served_at_s: now_s,
        }
    }

    /// Notes what shards carry now, for the time since the last look.
    fn note_loads(&mut self, group_id: i32, decision: &Decision, now_s: f64) {
        let passed_s = (now_s - self.served_at_s).max(0.0);
        self.served_at_s = now_s;
        let kept = (-passed_s / SERVED_HALF_LIFE_S).exp2();
        self.served.values_mut().for_each(|served| *served *= kept);
        for slot in decision.slots.iter().filter(|slot| slot.group_id == group_id) {
            *self.served.entry(slot.shard_id).or_default() += slot.heat * passed_s.min(LONGEST_LOOK_S);
        }
    }

    /// Makes the plan anew once enough more is known, when something of it does not hold any more, or when the slots
    /// that it had to leave alone are free.
    fn renew(&mut self, group_id: i32, present: &Present, decision: &Decision, now_s: f64) -> WorkResult<()> {
        let dropped = gatherings::review(&mut self.plan, present, decision, now_s);
        let stale = dropped || present.frees(&self.held);
        let windows = self.gatherer.windows();
        let news = windows.saturating_sub(self.planned_at) as f64;
        if windows < MIN_WINDOWS || !stale && news < self.gatherer.counted() * NEWS {
            return Ok(());
        }
        let known = Known {
            gatherer: &self.gatherer,
            served: &self.served,
            rate_per_s: self.rate.per_s(),
            since: &self.since,
        };
        let made = gatherings::decide(group_id, &known, present, decision)?;
        // What may not be planned for now may be the next time, whether more is known or not.
        let planned_at = if made.is_some() { windows } else { 0 };
        let mut made = made.unwrap_or_default();
        let mut before: HashMap<i64, &mut Gathered> =
            self.plan.iter_mut().map(|one| (one.slot_id(), one)).collect();
        for one in &mut made.gathered {
            if let Some(before) = before.get_mut(&one.slot_id()) {
                one.take_over(before);
            }
        }
        (self.planned_at, self.plan) = (planned_at, made.gathered);
        (self.since, self.held) = (made.since, made.held);
        Ok(())
    }

    /// Shows the plan.
    fn store(&mut self, decision: &Decision) -> WorkResult<()> {
        if self.plan.is_empty() {
            return Ok(());
        }
        let shown = bgworker::transaction(|| gatherings::store(&self.plan, decision))?;
        self.plan.iter_mut().zip(shown).for_each(|(one, shown)| one.show(shown));
        Ok(())
    }

    /// Files what may be done, slot by slot: one that is refused holds up no other. False: nothing was filed.
    fn file(&mut self, decision: &Decision) -> bool {
        let begun_s = bgworker::now_s();
        let (mut filed, mut refused) = (false, false);
        for one in &mut self.plan {
            let now_s = bgworker::now_s();
            if now_s - begun_s > FILING_S {
                break;
            }
            if !gatherings::may_file(one, decision) {
                continue;
            }
            match bgworker::transaction(|| gatherings::file(one)) {
                Ok(done) => filed |= done,
                Err(failure) => {
                    let (slot_id, why) = (one.slot_id(), &failure.line);
                    pgrx::log!("foreshard keeper: placement of keys of slot {slot_id}: {why}");
                    one.refuse(&failure, now_s);
                    refused = true;
                }
            }
        }
        if refused {
            report(self.store(decision));
        }
        filed
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
        let mut changed = false;
        for ((group_id, _), window) in self.open.drain() {
            let group = self.groups.entry(group_id).or_insert_with(|| {
                changed = true;
                Group::new(now_s)
            });
            group.gatherer.observe(&window.keys);
            group.news.0 += 1;
            group.news.1 += f64::from(window.weight);
        }
        self.groups.retain(|_, group| {
            let (windows, transactions) = std::mem::take(&mut group.news);
            if windows > 0 {
                group.rate.note(windows, transactions, now_s);
            }
            let used = now_s - group.rate.last_s() < IDLE_S;
            changed |= !used;
            used
        });
        if changed {
            self.share_memory();
        }
    }

    fn share_memory(&mut self) {
        let own = (ALL_KEYS / self.groups.len().max(1)).min(MAX_KEYS);
        self.groups.values_mut().for_each(|group| group.gatherer.limit(own));
    }

    /// Keys that are told apart, of all groups.
    pub fn keys(&self) -> usize {
        self.groups.values().map(|group| group.gatherer.len()).sum()
    }

    /// Forgets groups that are gone.
    pub fn retain(&mut self, groups: &HashSet<i32>) {
        self.groups.retain(|group, _| groups.contains(group));
        self.share_memory();
    }

    /// Thinks of what should become of keys, group by group, and shows it. What fails for one takes no other along.
    pub fn plan(&mut self, decision: &Decision, now_s: f64) {
        let present = Present::of(decision);
        for (group_id, group) in &mut self.groups {
            group.note_loads(*group_id, decision, now_s);
            report(group.renew(*group_id, &present, decision, now_s));
            report(group.store(decision));
        }
        let plans = self.groups.values().flat_map(|group| &group.plan);
        let shown: Vec<i64> = plans.filter_map(Gathered::shown).collect();
        report(bgworker::transaction(|| gathering::keep_only(&shown)));
    }

    /// Files placements of one group.
    pub fn file(&mut self, decision: &Decision) {
        let mut groups: Vec<_> = self.groups.iter_mut().collect();
        groups.sort_by_key(|(group_id, _)| **group_id);
        for (_, group) in groups {
            if group.file(decision) {
                return;
            }
        }
    }
}

fn report(outcome: WorkResult<()>) {
    if let Err(failure) = outcome {
        pgrx::log!("foreshard keeper: placements of keys: {}", failure.line);
    }
}
