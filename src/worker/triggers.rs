//! What the keeper learns about triggers: totals that outlive the server, and models of their cost.

use crate::catalog::profile::{self, Counted, Learnt};
use crate::catalog::statistics;
use crate::observe::drain::{self, ProfileActivity};
use crate::observe::samples::TriggerSample;
use crate::pg::bgworker;
use crate::pg::guc;
use crate::pg::report::PgResult;
use foreshard_core::profile::{FEATURES, MIN_SAMPLES, Observed, Profile, RESERVOIR, Resource, Sample};
use foreshard_core::shared::{ProfileIdentity, TOTALS};
use std::collections::HashMap;

/// New samples after which models are fitted again.
const REFIT_AFTER: usize = 16;

/// Samples that may wait.
const MAX_WAITING: usize = statistics::NEW_PROFILES.1;

/// What is known of one trigger.
#[derive(Default)]
struct Known {
    profile: Profile,
    /// Samples since the last fit.
    fresh: usize,
    /// The models or their track record are not stored yet.
    unsaved: bool,
    /// Mean features, over about the newest [`RESERVOIR`] samples.
    mean_features: Option<[f64; FEATURES]>,
    averaged: usize,
}

impl Known {
    fn observe(&mut self, sample: &TriggerSample) {
        let TriggerSample { version, features, outcomes, .. } = *sample;
        match self.profile.observe(Sample { version, features, outcomes }) {
            Observed::Late => return,
            Observed::Replaced => (self.mean_features, self.averaged) = (None, 0),
            Observed::Added | Observed::Drifted => {}
        }
        self.averaged = (self.averaged + 1).min(RESERVOIR);
        let share = 1.0 / self.averaged as f64;
        let old = self.mean_features.unwrap_or(features);
        self.mean_features = Some(std::array::from_fn(|i| old[i] + (features[i] - old[i]) * share));
        self.fresh += 1;
        self.unsaved = true;
    }

    /// Fits again when that is worth it: often while there is little to learn from.
    fn refit(&mut self) {
        let young = self.profile.samples() < RESERVOIR;
        if self.fresh >= REFIT_AFTER || (young && self.fresh > 0) {
            self.profile.refit();
            self.fresh = 0;
        }
    }
}

/// Every trigger of the database.
#[derive(Default)]
pub struct Triggers {
    restored: bool,
    /// When the shared memory was made whose totals are read; None: unknown.
    made_at_s: Option<f64>,
    /// The function of the triggers that moves install. Every move has others, and nobody asks what they will cost: they are
    /// counted, and no models are learnt of them.
    capture: Option<u32>,
    /// What shared memory has an entry for.
    entries: HashMap<u64, ProfileIdentity>,
    /// Entries that are told as another trigger's: PostgreSQL gives the checks of a foreign key a name of
    /// their own in every partition. Backends are told ([`super::publish`]) and count them together from then on.
    alias: HashMap<u64, u64>,
    /// Totals of those entries at the last two readings.
    copies: [HashMap<u64, [u64; TOTALS]>; 2],
    new_copies: bool,
    /// The triggers that are told.
    identities: HashMap<u64, ProfileIdentity>,
    /// Totals already in the sums.
    seen: HashMap<u64, [u64; TOTALS]>,
    known: HashMap<u64, Known>,
    /// Samples of entries that are new: as which trigger they are told is found out when they are stored.
    waiting: Vec<TriggerSample>,
    /// Samples for which there was no room.
    unlearnt: u64,
    /// Models that gave way to others.
    evicted: u64,
}

impl Triggers {
    /// Goes on where the last keeper stood; once.
    pub fn restore(&mut self) -> PgResult<()> {
        if self.restored {
            return Ok(());
        }
        self.made_at_s = profile::shared_memory_made_at_s()?;
        self.capture = Some(profile::capture_function()?.to_u32());
        for stored in profile::stored(bgworker::database(), self.made_at_s)? {
            let Learnt { identity, version, mean_features, models, .. } = stored.learnt;
            let key = identity.key();
            self.seen.insert(key, stored.seen);
            self.identities.insert(key, identity);
            if self.known.len() < limit() && models.iter().any(Option::is_some) {
                let mut known = Known { mean_features, ..Known::default() };
                known.profile.restore(version, models);
                self.known.insert(key, known);
            }
        }
        self.restored = true;
        Ok(())
    }

    /// The trigger as which an entry is told.
    fn told(&self, key: u64) -> u64 {
        self.alias.get(&key).copied().unwrap_or(key)
    }

    /// Whether backends counted something under the name of a copy since the last time: they have to be told.
    pub fn take_new_copies(&mut self) -> bool {
        std::mem::take(&mut self.new_copies)
    }

    /// Learns from one measured call.
    pub fn observe(&mut self, sample: TriggerSample) {
        if self.entries.contains_key(&sample.profile) {
            self.learn(&sample);
        } else if self.waiting.len() < MAX_WAITING {
            self.waiting.push(sample);
        } else {
            self.unlearnt += 1;
        }
    }

    /// How much it remembers of what, in words.
    pub fn remembers(&self) -> String {
        let samples: usize = self.known.values().map(|known| known.profile.samples()).sum();
        let (entries, models, waiting) = (self.entries.len(), self.known.len(), self.waiting.len());
        format!(
            "{entries} triggers, {models} profiles with {samples} samples, {waiting} samples of new triggers"
        )
    }

    /// Samples of new triggers that found no room to wait.
    pub fn unlearnt(&self) -> u64 {
        self.unlearnt
    }

    /// Models that gave way to others.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn learn(&mut self, sample: &TriggerSample) {
        if self.entries.get(&sample.profile).is_none_or(|entry| Some(entry.function) == self.capture) {
            return;
        }
        let key = self.told(sample.profile);
        if self.known.len() >= limit() && !self.known.contains_key(&key) {
            self.evict();
        }
        let known = self.known.entry(key).or_default();
        known.observe(sample);
        // The first model as soon as there can be one, the next ones when there is so much more to learn from.
        let samples = known.profile.samples();
        if samples == MIN_SAMPLES || known.fresh >= (samples / 4).max(REFIT_AFTER) {
            known.refit();
        }
    }

    /// Makes room: the one with the fewest samples goes.
    fn evict(&mut self) {
        let least =
            self.known.iter().min_by_key(|(key, k)| (k.profile.samples(), **key)).map(|(key, _)| *key);
        if let Some(least) = least {
            self.known.remove(&least);
            self.evicted += 1;
        }
    }

    /// Fits and stores what is new; the totals that are in the sums then. `meanwhile` is called again and again: fitting
    /// may take long.
    pub fn store(&mut self, mut meanwhile: impl FnMut()) -> PgResult<Vec<(u64, [u64; TOTALS])>> {
        let activities = drain::profiles();
        self.resolve(&activities)?;
        // Those of a trigger that is gone meanwhile would be kept for nobody.
        std::mem::take(&mut self.waiting).iter().for_each(|sample| self.learn(sample));
        let copies = activities.iter().filter(|a| self.alias.contains_key(&a.key));
        self.copies[1] = copies.map(|a| (a.key, a.totals)).collect();
        let counted = self.counted(&self.totals(&activities));
        profile::add(&counted, self.made_at_s)?;
        meanwhile();
        let mut learnt = Vec::new();
        for (key, known) in self.known.iter_mut().filter(|(_, known)| known.unsaved) {
            known.refit();
            meanwhile();
            if let Some(identity) = self.identities.get(key) {
                learnt.push(Learnt {
                    identity: *identity,
                    version: known.profile.version(),
                    mean_features: known.mean_features,
                    models: known.profile.models().clone(),
                    feedback: Resource::ALL.map(|resource| known.profile.feedback(resource)),
                });
            }
        }
        profile::store_models(&learnt)?;
        Ok(counted.iter().map(|c| (c.identity.key(), c.seen)).collect())
    }

    /// Finds out as which trigger each new entry is to be told.
    fn resolve(&mut self, activities: &[ProfileActivity]) -> PgResult<()> {
        let new: Vec<&ProfileActivity> =
            activities.iter().filter(|a| !self.entries.contains_key(&a.key)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let identities: Vec<&ProfileIdentity> = new.iter().map(|a| &a.identity).collect();
        let mut names: HashMap<usize, String> = profile::roots(&identities)?.into_iter().collect();
        for (index, activity) in new.iter().enumerate() {
            let mut told = activity.identity;
            if let Some(name) = names.remove(&index) {
                told.name = ProfileIdentity::name_words(name.as_bytes());
                self.alias.insert(activity.key, told.key());
                self.new_copies = true;
            }
            self.entries.insert(activity.key, activity.identity);
            self.identities.insert(told.key(), told);
        }
        Ok(())
    }

    /// The totals of every trigger that is told.
    fn totals(&self, activities: &[ProfileActivity]) -> HashMap<u64, [u64; TOTALS]> {
        let mut totals: HashMap<u64, [u64; TOTALS]> = HashMap::new();
        // An entry may also have a twin, made while the first was being removed.
        for activity in activities {
            let sums = totals.entry(self.told(activity.key)).or_insert([0; TOTALS]);
            sums.iter_mut().zip(activity.totals).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        }
        totals
    }

    /// What was counted since the last time.
    fn counted(&self, totals: &HashMap<u64, [u64; TOTALS]>) -> Vec<Counted> {
        let count = |(key, now): (&u64, &[u64; TOTALS])| {
            let before = self.seen.get(key).copied().unwrap_or([0; TOTALS]);
            let more = more_than(&before, now);
            let identity = *self.identities.get(key)?;
            more.iter().any(|m| *m > 0).then_some(Counted { identity, more, seen: *now })
        };
        totals.iter().filter_map(count).collect()
    }

    /// What [`Triggers::store`] returned is safely stored.
    pub fn stored(&mut self, seen: Vec<(u64, [u64; TOTALS])>) {
        self.seen.extend(seen);
        // Where nobody has counted for as long as backends were told, nobody does any more.
        let [before, now] = std::mem::take(&mut self.copies);
        let (left, used): (HashMap<_, _>, _) =
            now.into_iter().partition(|(k, totals)| before.get(k) == Some(totals));
        self.forgotten(&left.into_keys().collect::<Vec<_>>());
        self.copies[0] = used;
        for (key, known) in &mut self.known {
            if self.identities.contains_key(key) {
                known.unsaved = false;
            }
        }
    }

    /// Finds out what is gone; forgets it in the tables.
    pub fn forget_gone(&self) -> PgResult<Vec<u64>> {
        // Entries that nobody has read yet, too.
        let mut known: HashMap<u64, ProfileIdentity> =
            drain::profiles().into_iter().map(|activity| (activity.key, activity.identity)).collect();
        known.extend(self.entries.iter().chain(&self.identities).map(|(key, identity)| (*key, *identity)));
        let known: Vec<(u64, ProfileIdentity)> = known.into_iter().collect();
        let identities: Vec<&ProfileIdentity> = known.iter().map(|(_, identity)| identity).collect();
        let gone = profile::forget_gone(&identities)?;
        Ok(gone.into_iter().filter_map(|i| known.get(i).map(|(key, _)| *key)).collect())
    }

    /// What [`Triggers::forget_gone`] found is gone for good: here and in shared memory, too.
    pub fn forgotten(&mut self, keys: &[u64]) {
        // The sums lose nothing by an entry that is gone, only shared memory does.
        for (key, totals) in drain::forget_profiles(keys) {
            if let Some(seen) = self.alias.get(&key).and_then(|told| self.seen.get_mut(told)) {
                seen.iter_mut().zip(totals).for_each(|(seen, gone)| *seen = seen.saturating_sub(gone));
            }
        }
        for key in keys {
            self.entries.remove(key);
            self.identities.remove(key);
            self.seen.remove(key);
            self.known.remove(key);
            self.alias.remove(key);
        }
    }
}

/// Profiles kept in memory.
fn limit() -> usize {
    guc::MAX_TRIGGER_PROFILES.get().max(1) as usize
}

/// How much the totals grew; an entry that was made anew counts from zero.
fn more_than(before: &[u64; TOTALS], now: &[u64; TOTALS]) -> [u64; TOTALS] {
    if now.iter().zip(before).any(|(now, before)| now < before) {
        return *now;
    }
    std::array::from_fn(|i| now[i] - before[i])
}
