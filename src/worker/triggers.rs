//! What the keeper learns about triggers: totals that outlive the server, and models of their cost.

use crate::catalog::profile::{self, Counted, Learnt};
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
    /// Totals already in the sums.
    seen: HashMap<u64, [u64; TOTALS]>,
    identities: HashMap<u64, ProfileIdentity>,
    known: HashMap<u64, Known>,
}

impl Triggers {
    /// Goes on where the last keeper stood; once.
    pub fn restore(&mut self) -> PgResult<()> {
        if self.restored {
            return Ok(());
        }
        self.made_at_s = profile::shared_memory_made_at_s()?;
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

    /// Learns from one measured call.
    pub fn observe(&mut self, sample: &TriggerSample) {
        if self.known.len() >= limit() && !self.known.contains_key(&sample.profile) {
            self.evict();
        }
        let known = self.known.entry(sample.profile).or_default();
        known.observe(sample);
        // The first model as soon as there can be one.
        if known.profile.samples() == MIN_SAMPLES {
            known.refit();
        }
    }

    /// Makes room: the one with the fewest samples goes.
    fn evict(&mut self) {
        let least =
            self.known.iter().min_by_key(|(key, k)| (k.profile.samples(), **key)).map(|(key, _)| *key);
        if let Some(least) = least {
            self.known.remove(&least);
        }
    }

    /// Fits and stores what is new.
    pub fn store(&mut self) -> PgResult<Vec<(u64, [u64; TOTALS])>> {
        let counted = self.counted();
        profile::add(&counted, self.made_at_s)?;
        let mut learnt = Vec::new();
        for (key, known) in self.known.iter_mut().filter(|(_, known)| known.unsaved) {
            known.refit();
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

    /// What [`Triggers::store`] returned is safely stored.
    pub fn stored(&mut self, seen: Vec<(u64, [u64; TOTALS])>) {
        self.seen.extend(seen);
        for (key, known) in &mut self.known {
            if self.identities.contains_key(key) {
                known.unsaved = false;
            }
        }
    }

    /// What was counted since the last time.
    fn counted(&mut self) -> Vec<Counted> {
        let mut totals: HashMap<u64, ProfileActivity> = HashMap::new();
        for activity in drain::profiles() {
            // An entry may have a twin, made while the first was being removed.
            match totals.get_mut(&activity.key) {
                Some(twin) => {
                    twin.totals.iter_mut().zip(activity.totals).for_each(|(sum, more)| *sum += more);
                }
                None => {
                    totals.insert(activity.key, activity);
                }
            }
        }
        let mut counted = Vec::new();
        for (key, activity) in totals {
            self.identities.insert(key, activity.identity);
            let before = self.seen.get(&key).copied().unwrap_or([0; TOTALS]);
            let more = more_than(&before, &activity.totals);
            if more.iter().any(|m| *m > 0) {
                counted.push(Counted { identity: activity.identity, more, seen: activity.totals });
            }
        }
        counted
    }

    /// Forgets triggers that are gone, in the tables, in shared memory and here.
    pub fn forget_gone(&mut self) -> PgResult<Vec<u64>> {
        let known: Vec<ProfileIdentity> = self.identities.values().copied().collect();
        profile::forget_gone(&known)
    }

    /// What [`Triggers::forget_gone`] returned is gone for good.
    pub fn forgotten(&mut self, keys: &[u64]) {
        for key in keys {
            drain::forget_profile(*key);
            self.seen.remove(key);
            self.identities.remove(key);
            self.known.remove(key);
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
