//! What the keeper learns from samples: trigger costs, unit costs, hot keys, co-access and dependencies.
//! Samples are read every tick, what follows from them is stored every bucket.

use super::costs::Book;
use super::gather::Gatherers;
use super::inbox::Inbox;
use super::key_load::{self, Front};
use super::publish::Publisher;
use super::triggers::Triggers;
use crate::catalog::{coaccess, dependency, hot_key, slot_key, statistics};
use crate::observe::drain;
use crate::observe::samples::{DependencySample, KeySample};
use crate::pg::bgworker::{self, WorkResult};
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::PgResult;
use crate::pg::{guc, keytext, spi, usage};
use foreshard_core::affinity::CoAccess;
use foreshard_core::shared::{SEGMENT_COUNTERS, SegmentCounter};
use foreshard_core::sketch::{HotKey, HotKeys};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// Keys stored per group.
const TOP_KEYS: usize = 100;
/// Pairs of slots stored per database.
const TOP_PAIRS: usize = 1000;
/// Pairs of slots kept in memory.
const MAX_PAIRS: usize = statistics::PAIRS.1;
/// Edges that may wait to be stored.
const MAX_EDGES: usize = statistics::EDGES.1;
/// Keys accessed less than this are no longer worth a row, accesses/s.
const FORGOTTEN_PER_S: f64 = 0.01;

/// A key as it was sampled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SampledKey {
    pub(super) relation: u32,
    hash: u64,
    pub(super) truncated: bool,
    pub(super) bytes: Vec<u8>,
}

/// The hot keys of one colocation group, and the settings they were made with.
struct GroupKeys {
    keys: HotKeys<SampledKey>,
    half_life_s: i32,
    max_keys: i32,
    /// The table shows some.
    shown: bool,
    front: Front,
}

impl GroupKeys {
    fn new() -> Self {
        let (half_life_s, max_keys) = (guc::HEAT_HALF_LIFE.get(), guc::MAX_HOT_KEYS.get());
        let keys = HotKeys::new(f64::from(half_life_s), max_keys.max(1) as usize);
        Self { keys, half_life_s, max_keys, shown: true, front: Front::default() }
    }

    fn is_as_set(&self) -> bool {
        (self.half_life_s, self.max_keys) == (guc::HEAT_HALF_LIFE.get(), guc::MAX_HOT_KEYS.get())
    }
}

/// What the keeper has learnt and not stored yet.
pub struct Learner {
    inbox: Inbox,
    triggers: Triggers,
    /// Unit costs of slots.
    pub costs: Book,
    groups: HashMap<i32, GroupKeys>,
    pairs: CoAccess,
    pairs_shown: bool,
    /// Which keys are used together.
    pub gatherers: Gatherers,
    edges: HashMap<DependencySample, u64>,
    /// Edges that found no room.
    edges_lost: u64,
    /// What of the losses is stored.
    told: HashMap<&'static str, u64>,
    /// When nothing is read any more but once a tick, by the monotonic clock: who has fallen behind shall not be held up.
    pub catch_up_until_ns: u64,
}

impl Default for Learner {
    fn default() -> Self {
        Self {
            inbox: Inbox::default(),
            triggers: Triggers::default(),
            costs: Book::default(),
            groups: HashMap::new(),
            pairs: CoAccess::new(coaccess::HALF_LIFE_S, MAX_PAIRS),
            pairs_shown: true,
            gatherers: Gatherers::default(),
            edges: HashMap::new(),
            edges_lost: 0,
            told: HashMap::new(),
            catch_up_until_ns: 0,
        }
    }
}

impl Learner {
    /// Goes on where the last keeper stood; once.
    pub fn restore(&mut self, now_s: f64) -> PgResult<()> {
        self.triggers.restore()?;
        self.costs.restore(now_s)
    }

    /// Empties the rings, if keepers were called since the last time because they fill.
    pub fn collect(&mut self) {
        self.inbox.collect_if_called();
    }

    /// Learns while there is nothing else to do, if keepers were called, and it is not yet too late for that; whether it
    /// did.
    pub fn catch_up(&mut self, publisher: &Publisher) -> bool {
        let reads = usage::elapsed_ns() < self.catch_up_until_ns && self.inbox.collect_if_called();
        if reads {
            self.read(publisher, bgworker::now_s());
        }
        reads
    }

    /// Learns from every sample until now. Those that come meanwhile wait: rings are emptied between any two samples.
    pub fn read(&mut self, publisher: &Publisher, now_s: f64) {
        self.inbox.collect();
        for sample in self.inbox.triggers.take() {
            self.triggers.observe(sample);
            self.inbox.collect_if_called();
        }
        for sample in self.inbox.keys.take() {
            self.learn_key(publisher, sample, now_s);
            self.inbox.collect_if_called();
        }
        self.gatherers.close_windows(now_s);
        for sample in self.inbox.transactions.take() {
            self.pairs.add(&sample.slots, f64::from(sample.weight), now_s);
            self.inbox.collect_if_called();
        }
        for sample in self.inbox.dependencies.take() {
            if self.edges.len() < MAX_EDGES || self.edges.contains_key(&sample) {
                *self.edges.entry(sample).or_default() += 1;
            } else {
                self.edges_lost += 1;
            }
        }
        let mut segments = drain::segments();
        for segment in &mut segments {
            if publisher.relation(segment.relation).is_some_and(|relation| relation.is_foreign) {
                segment.counters = of_node(&segment.counters);
            }
        }
        self.costs.add(&segments, now_s);
    }

    fn learn_key(&mut self, publisher: &Publisher, sample: KeySample, now_s: f64) {
        let Some(relation) = publisher.relation(sample.relation) else { return };
        if sample.window != 0 {
            self.gatherers.note(relation.group_id, sample);
            return;
        }
        let group = self.groups.entry(relation.group_id).or_insert_with(GroupKeys::new);
        group.front.note(relation.key_type, &sample.bytes);
        let KeySample { relation, weight, bytes, truncated, hash, .. } = sample;
        group.keys.add(&SampledKey { relation, hash, truncated, bytes }, u64::from(weight), now_s);
    }

    /// Stores what was learnt, topic by topic: what fails does not hold up the rest.
    pub fn store(&mut self, publisher: &mut Publisher, now_s: f64) -> WorkResult<()> {
        let (triggers, inbox) = (&mut self.triggers, &mut self.inbox);
        let meanwhile = || {
            inbox.collect_if_called();
        };
        let mut done = in_background(|| triggers.store(meanwhile)).map(|seen| triggers.stored(seen));
        if triggers.take_new_copies() {
            done = done.and(in_background(|| publisher.find_copies()));
        }
        self.collect();
        let keys = self.store_keys(publisher, now_s);
        self.collect();
        let pairs = self.store_pairs(publisher, now_s);
        self.collect();
        let costs = in_background(|| self.costs.store()).map(|stored| {
            if stored {
                self.costs.stored();
            }
        });
        self.collect();
        done.and(keys).and(pairs).and(costs).and(self.store_rest())
    }

    /// Forgets what was dropped.
    pub fn forget_gone(&mut self, publisher: &Publisher) -> WorkResult<()> {
        let groups: HashSet<i32> = publisher.relations().iter().map(|r| r.group_id).collect();
        self.groups.retain(|group, _| groups.contains(group));
        self.gatherers.retain(&groups);
        let slots: HashSet<i64> = publisher.relations().iter().filter_map(|r| r.slot_id).collect();
        self.pairs.retain(|slot| slots.contains(&slot));
        self.costs.retain(publisher);
        let (triggers, costs) = (&self.triggers, &mut self.costs);
        let gone = in_background(|| {
            costs.join(bgworker::now_s())?;
            dependency::forget_gone()?;
            triggers.forget_gone()
        })?;
        self.triggers.forgotten(&gone);
        Ok(())
    }

    fn store_keys(&mut self, publisher: &Publisher, now_s: f64) -> WorkResult<()> {
        let mut outcome = Ok(());
        for (group_id, group) in &mut self.groups {
            let known = group.keys.top(group.max_keys.max(1) as usize, now_s);
            let known: Vec<_> = known.into_iter().filter(|k| k.access_score >= FORGOTTEN_PER_S).collect();
            let hot = known.get(..TOP_KEYS).unwrap_or(&known);
            // Nothing to show, and nothing shown: no need to say so again.
            if !hot.is_empty() || group.shown {
                let half_life_s = f64::from(group.half_life_s);
                let line = group.front.line(half_life_s, now_s);
                let rows = || rows_of(hot, publisher, half_life_s);
                self.inbox.collect_if_called();
                let stored = in_background(|| {
                    hot_key::store(*group_id, &rows()?)?;
                    slot_key::store(*group_id, &key_load::of(&known, line, publisher)?, now_s, half_life_s)
                });
                group.shown = !hot.is_empty() || stored.is_err();
                outcome = outcome.and(stored);
            }
            if !group.is_as_set() {
                *group = GroupKeys::new();
            }
        }
        outcome
    }

    fn store_pairs(&mut self, publisher: &Publisher, now_s: f64) -> WorkResult<()> {
        let slots: HashSet<i64> = publisher.relations().iter().filter_map(|r| r.slot_id).collect();
        let top = self.pairs.top(TOP_PAIRS, now_s).into_iter();
        let pairs: Vec<coaccess::Pair> = top
            .filter(|p| slots.contains(&p.a) && slots.contains(&p.b))
            .map(|p| coaccess::Pair {
                slot_a: p.a,
                slot_b: p.b,
                weight: p.weight,
                lift: p.lift,
                share: p.share,
            })
            .collect();
        if pairs.is_empty() && !self.pairs_shown {
            return Ok(());
        }
        in_background(|| coaccess::store(&pairs))?;
        self.pairs_shown = !pairs.is_empty();
        Ok(())
    }

    fn store_rest(&mut self) -> WorkResult<()> {
        let seen = |(edge, times): (&DependencySample, &u64)| dependency::Seen {
            function: edge.function,
            relation: edge.relation,
            writes: edge.writes,
            times: *times,
        };
        let edges: Vec<_> = self.edges.iter().map(seen).collect();
        let losses = self.losses();
        let new =
            losses.map(|(area, lost)| (area, lost.saturating_sub(self.told.get(area).copied().unwrap_or(0))));
        if edges.is_empty() && new.iter().all(|(_, lost)| *lost == 0) {
            return Ok(());
        }
        in_background(|| {
            dependency::add(&edges)?;
            statistics::add_lost(&new)
        })?;
        self.edges.clear();
        self.told.extend(losses);
        Ok(())
    }

    /// How much it remembers of what, in words.
    pub fn remembers(&self) -> String {
        format!(
            "{}, {} unit costs, {} groups with hot keys, {} pairs of slots, {} keys used together",
            self.triggers.remembers(),
            self.costs.segments(),
            self.groups.len(),
            self.pairs.pairs(),
            self.gatherers.keys()
        )
    }

    /// What was lost since this keeper began, by area of `foreshard.stat_foreshard`.
    fn losses(&self) -> [(&'static str, u64); 10] {
        let Inbox { triggers, keys, transactions, dependencies, .. } = &self.inbox;
        [
            ("trigger samples", triggers.lost),
            ("key samples", keys.lost),
            ("transaction samples", transactions.lost),
            ("dependency samples", dependencies.lost),
            (statistics::NEW_PROFILES.0, self.triggers.unlearnt()),
            (statistics::MODELS.0, self.triggers.evicted()),
            (statistics::EDGES.0, self.edges_lost),
            (statistics::PAIRS.0, self.pairs.evicted().saturating_add(self.pairs.cut())),
            (statistics::HOT_KEYS.0, self.groups.values().map(|group| group.keys.ignored()).sum()),
            (statistics::UNIT_COSTS.0, self.costs.overflowed()),
        ]
    }
}

/// What samples of this server say of a table on a node: what a call of its triggers costs, which fire here. That these are called, and what
/// else its statements take here, is no load of its shard, which is what the node spends: the node tells that, or nobody does.
fn of_node(counters: &[u64; SEGMENT_COUNTERS]) -> [u64; SEGMENT_COUNTERS] {
    let mut kept = [0; SEGMENT_COUNTERS];
    for counter in [SegmentCounter::SampledTriggerCalls, SegmentCounter::TriggerCostNs] {
        kept[counter as usize] = counters[counter as usize];
    }
    kept
}

/// A transaction whose loss in a crash costs some seconds of learning: it waits for no disk.
pub fn in_background<R>(work: impl FnOnce() -> PgResult<R>) -> WorkResult<R> {
    bgworker::transaction(|| {
        spi::set_local("synchronous_commit", "off")?;
        work()
    })
}

/// Hot keys as rows; of relations that are no longer there, none.
fn rows_of(
    keys: &[HotKey<SampledKey>],
    publisher: &Publisher,
    half_life_s: f64,
) -> PgResult<Vec<hot_key::HotKey>> {
    // A steady rate is its own score: counts decay by half in a half-life.
    let per_s = |count: f64| count * std::f64::consts::LN_2 / half_life_s;
    let mut rows: Vec<hot_key::HotKey> = Vec::new();
    let mut routers: HashMap<u32, Router> = HashMap::new();
    for hot in keys {
        let Some(relation) = publisher.relation(hot.key.relation) else { continue };
        let slot_id = match relation.slot_id {
            Some(slot_id) => slot_id,
            None => {
                let router = match routers.entry(relation.table) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => {
                        place.insert(Router::of(relation.table.into(), Lifetime::Statement)?)
                    }
                };
                let leaf = keytext::leaf(router, relation.key_type, &hot.key.bytes)?;
                let leaf = leaf.and_then(|leaf| publisher.relation(leaf.to_u32()));
                let Some(slot_id) = leaf.and_then(|leaf| leaf.slot_id) else { continue };
                slot_id
            }
        };
        // Sampled before its slot was split and after.
        if let Some(row) = rows.iter_mut().find(|row| (row.hash, row.table) == (hot.key.hash, relation.table))
        {
            row.accesses_per_s += hot.access_score;
            row.access_score += hot.access_score;
            row.lower += per_s(hot.lower);
            row.upper += per_s(hot.upper);
            continue;
        }
        let (text, truncated) = keytext::text(relation.key_type, &hot.key.bytes, hot.key.truncated)?;
        rows.push(hot_key::HotKey {
            hash: hot.key.hash,
            table: relation.table,
            slot_id,
            text,
            truncated,
            accesses_per_s: hot.access_score,
            lower: per_s(hot.lower),
            upper: per_s(hot.upper),
            access_score: hot.access_score,
        });
    }
    Ok(rows)
}
