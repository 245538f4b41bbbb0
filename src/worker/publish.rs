//! What the keeper tells every backend: which relations to watch, how loaded their slots are and which
//! of them are hot.

use crate::catalog::{heat, watched};
use crate::observe::directory::{self, Placed, TriggerCopy, Watched};
use crate::pg::report::PgResult;
use crate::pg::{bgworker, guc};
use foreshard_core::heat::decayed_heat;
use std::collections::{HashMap, HashSet};

/// Half-life of the pace that decides whether a slot is hot: a burst counts at once, a pause of some
/// seconds does not cool.
const PACE_HALF_LIFE_S: f64 = 5.0;
/// A hot slot stays hot until its pace falls below this share of the threshold.
const COOL_SHARE: f64 = 0.5;
/// So long keys that were sampled in a partition are known: two epochs of [`foreshard_core::sketch`].
const FORMER_HALF_LIVES: f64 = 20.0;

/// What is known of a slot between two readings.
#[derive(Clone, Copy, Default)]
struct Pace {
    heat: f64,
    accesses_per_s: f64,
    hot: bool,
    /// The heat is newer than what was published.
    read: bool,
}

/// The relations as last published.
#[derive(Default)]
pub struct Publisher {
    fingerprint: Option<String>,
    relations: Vec<watched::Relation>,
    by_oid: HashMap<u32, usize>,
    /// Partitions that are gone, because they were split or dropped, with their tables, and when that was seen, s since 1970.
    former: HashMap<u32, (u32, f64)>,
    pace: HashMap<i64, Pace>,
    /// None: what an earlier keeper has said may stand there.
    published: Option<Vec<Watched>>,
    /// What had been placed before the counters were last read.
    placed: Placed,
    copies: Option<Vec<TriggerCopy>>,
    /// `copies` are not published yet.
    new_copies: bool,
    unwatched: usize,
}

impl Publisher {
    /// Looks whether the relations are other ones than before; whether they are.
    pub fn refresh(&mut self) -> PgResult<bool> {
        let fingerprint = watched::fingerprint()?;
        if self.fingerprint.as_ref() == Some(&fingerprint) {
            return Ok(false);
        }
        // A new keeper goes on where the last one stood; a slot that another one was split into is as hot as
        // its share of that.
        for (slot, previous) in heat::previous()? {
            let accesses_per_s = previous.access_score;
            self.pace.entry(slot).or_insert(Pace { heat: previous.heat, accesses_per_s, ..Pace::default() });
        }
        let before = std::mem::replace(&mut self.relations, watched::relations()?);
        self.by_oid = self.relations.iter().enumerate().map(|(i, r)| (r.relation, i)).collect();
        let gone = before.iter().filter(|r| !self.by_oid.contains_key(&r.relation));
        let now_s = bgworker::now_s();
        self.former.extend(gone.map(|r| (r.relation, (r.table, now_s))));
        let kept_s = FORMER_HALF_LIVES * f64::from(guc::HEAT_HALF_LIFE.get());
        let is_asked_for = |gone_s: f64| (0.0..kept_s).contains(&(now_s - gone_s));
        self.former.retain(|_, (table, gone_s)| self.by_oid.contains_key(table) && is_asked_for(*gone_s));
        let slots: HashSet<i64> = self.relations.iter().filter_map(|r| r.slot_id).collect();
        self.pace.retain(|slot, _| slots.contains(slot));
        self.judge();
        self.find_copies()?;
        self.fingerprint = Some(fingerprint);
        Ok(true)
    }

    /// Looks which triggers of partitions are copies with names of their own.
    pub fn find_copies(&mut self) -> PgResult<()> {
        let found = watched::copies()?.into_iter();
        let copies = Some(found.map(|(trigger, root)| TriggerCopy { trigger, root }).collect());
        self.new_copies |= copies != self.copies;
        self.copies = copies;
        Ok(())
    }

    /// The counters are about to be read: what was placed so far is part of what they say.
    pub fn begin_reading(&mut self) {
        self.placed = directory::placed();
    }

    /// A watched relation; of a partition that has been split the table.
    pub fn relation(&self, oid: u32) -> Option<&watched::Relation> {
        let known = self.by_oid.get(&oid).or_else(|| self.by_oid.get(&self.former.get(&oid)?.0));
        known.and_then(|i| self.relations.get(*i))
    }

    /// How much it remembers of what, in words.
    pub fn remembers(&self) -> String {
        format!("{} relations, {} former ones", self.relations.len(), self.former.len())
    }

    /// Every watched relation.
    pub fn relations(&self) -> &[watched::Relation] {
        &self.relations
    }

    /// Takes over a reading made `elapsed_s` after the one before; accesses None: unknown.
    pub fn note(&mut self, slot_id: i64, heat: f64, accesses_per_s: Option<f64>, elapsed_s: f64) {
        let pace = self.pace.entry(slot_id).or_default();
        pace.heat = heat;
        if let Some(accesses) = accesses_per_s {
            pace.read = true;
            pace.accesses_per_s = decayed_heat(pace.accesses_per_s, accesses, elapsed_s, PACE_HALF_LIFE_S);
        }
    }

    /// Decides which slots are hot.
    fn judge(&mut self) {
        let threshold = guc::HOT_SLOT_THRESHOLD.get();
        for pace in self.pace.values_mut() {
            pace.hot = is_hot(pace.hot, pace.accesses_per_s, threshold);
        }
    }

    /// Publishes what has changed, and what follows from a reading. What was placed before that is part of the loads of
    /// the slots that were read, of no others.
    pub fn publish(&mut self) {
        if self.fingerprint.is_none() {
            // Nobody has looked yet.
            return;
        }
        if std::mem::take(&mut self.new_copies) {
            directory::publish_copies(self.copies.as_deref().unwrap_or_default());
        }
        let observe = guc::OBSERVE.get();
        self.judge();
        let wanted: Vec<Watched> = self.relations.iter().map(|r| self.watched(r, observe)).collect();
        let read = self.read();
        if read.is_empty() && self.published.as_ref() == Some(&wanted) {
            return;
        }
        let missing = directory::publish(&wanted, &read);
        self.published = Some(wanted);
        if missing > 0 && self.unwatched == 0 {
            pgrx::log!(
                "foreshard keeper: {missing} partitions are not watched, shared memory has room for {} of all databases (hint: Raise foreshard.max_relations and restart.)",
                guc::MAX_RELATIONS.get()
            );
        }
        self.unwatched = missing;
    }

    /// What had been placed in partitions whose slots were read since; once.
    fn read(&mut self) -> Placed {
        let read = |(slot, pace): (&i64, &mut Pace)| std::mem::take(&mut pace.read).then_some(*slot);
        let slots: HashSet<i64> = self.pace.iter_mut().filter_map(read).collect();
        let by_oid = &self.by_oid;
        let relations = &self.relations;
        let slot_of = |oid: &u32| by_oid.get(oid).and_then(|i| relations.get(*i)).and_then(|r| r.slot_id);
        std::mem::take(&mut self.placed)
            .into_iter()
            .filter(|(oid, _)| slot_of(oid).is_some_and(|slot| slots.contains(&slot)))
            .collect()
    }

    fn watched(&self, relation: &watched::Relation, observe: bool) -> Watched {
        let unread = Pace { hot: is_hot(false, 0.0, guc::HOT_SLOT_THRESHOLD.get()), ..Pace::default() };
        let pace = relation.slot_id.and_then(|slot| self.pace.get(&slot)).copied().unwrap_or(unread);
        Watched {
            relation: relation.relation,
            table: relation.table,
            slot_id: relation.slot_id,
            group_id: relation.group_id,
            shard_id: relation.shard_id,
            key_attribute: relation.key_attribute,
            observed: observe && relation.observed,
            hot: pace.hot,
            load: pace.heat,
            capacity: relation.capacity,
        }
    }
}

/// Hot from the threshold on, until below half of it.
fn is_hot(was_hot: bool, accesses_per_s: f64, threshold: f64) -> bool {
    accesses_per_s >= if was_hot { threshold * COOL_SHARE } else { threshold }
}
