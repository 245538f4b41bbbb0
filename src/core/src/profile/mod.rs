//! What one call of a trigger function costs, learnt from sampled calls.
//!
//! A [`Profile`] keeps the newest [`RESERVOIR`] samples of one (trigger, table, operation) and one
//! [`Model`] per [`Resource`]. Every new sample is first compared with what the models promised
//! (prequential evaluation, Dawid 1984), then learnt from, so [`Feedback`] is always out of sample.
//! A function that was replaced forgets what it learnt before; so does one whose cost changed without
//! that (Pettitt's test), unless all calls changed by the same factor. [`cost`] turns outcomes and predictions into cost units.
//!
//! A profile takes at most about 112 KiB: 512 samples of 96 bytes and 256 comparisons of 256.

pub mod cost;
mod drift;
mod feedback;
mod fit;
mod model;

use std::collections::VecDeque;

pub use cost::{CostWeights, cost_of, cost_units, total};
pub use feedback::{FEEDBACK_WINDOW, Feedback};
pub use model::{Bend, Fallback, LEVEL, Model, ModelKind, Prediction};

use feedback::Comparisons;
use fit::Row;

/// Number of features of a call: see [`Sample::features`].
pub const FEATURES: usize = 4;

/// The names of the features, in the order of [`Sample::features`].
pub const FEATURE_NAMES: [&str; FEATURES] = ["tuple_bytes", "non_null", "changed", "statement_rows"];

/// Number of resources a call is measured by.
pub const RESOURCES: usize = 8;

/// The most samples a profile keeps; the oldest give way.
pub const RESERVOIR: usize = 512;

/// The fewest samples that make a model.
pub const MIN_SAMPLES: usize = 8;

/// A model that was restored from a table predicts until so many samples of its own are in.
pub const RESTORED_UNTIL: usize = 32;

/// Drift is looked for after every so many samples.
const DRIFT_EVERY: usize = 8;

/// The newest samples the frequent look for drift takes: a short window sees a change sooner.
const DRIFT_WINDOW: usize = 128;

/// So many samples in a row of the version just replaced are no late arrivals: it is back.
const BACK_AGAIN: u32 = 8;

/// The level after a change is estimated again until so many samples of it are in.
const LEVEL_KNOWN: usize = 128;

/// Outcomes above this are broken measurements (a year in µs is 3e13) and count as unseen.
const MAX_OUTCOME: f64 = 1e15;

/// What a call is measured by, each in the unit its name ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// CPU time, µs.
    CpuUs,
    /// Wall clock time, µs.
    ElapsedUs,
    /// Peak of additional memory, bytes.
    MemoryBytes,
    /// Blocks found in shared buffers.
    BlocksHit,
    /// Blocks read from outside shared buffers.
    BlocksRead,
    /// Blocks made dirty.
    BlocksDirtied,
    /// Write-ahead log, bytes.
    WalBytes,
    /// Blocks of temporary files, read or written.
    TempBlocks,
}

/// CPU time says it best; where it cannot be seen, elapsed time stands in.
const CLOCKS: [Resource; 2] = [Resource::CpuUs, Resource::ElapsedUs];

impl Resource {
    /// Every resource, in the order of [`Sample::outcomes`].
    pub const ALL: [Self; RESOURCES] = [
        Self::CpuUs,
        Self::ElapsedUs,
        Self::MemoryBytes,
        Self::BlocksHit,
        Self::BlocksRead,
        Self::BlocksDirtied,
        Self::WalBytes,
        Self::TempBlocks,
    ];

    /// The resource's name in the catalog.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuUs => "cpu_us",
            Self::ElapsedUs => "elapsed_us",
            Self::MemoryBytes => "memory_bytes",
            Self::BlocksHit => "blocks_hit",
            Self::BlocksRead => "blocks_read",
            Self::BlocksDirtied => "blocks_dirtied",
            Self::WalBytes => "wal_bytes",
            Self::TempBlocks => "temp_blocks",
        }
    }

    /// The resource called `name`; `None` when there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.name() == name)
    }

    /// Position in [`Sample::outcomes`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether rare huge values are the session's start-up (a plan compiled, a cache filled) rather
    /// than work that belongs in the mean, as a full-page image or a cache miss does.
    fn has_startup(self) -> bool {
        matches!(self, Self::CpuUs | Self::ElapsedUs | Self::MemoryBytes | Self::BlocksHit)
    }
}

/// One measured call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Changes whenever the function is replaced.
    pub version: u64,
    /// Bytes of the row, its attributes that are not null, its attributes that changed, and rows of
    /// the statement. A feature that is not finite counts as 0.
    pub features: [f64; FEATURES],
    /// Per [`Resource`], in its unit; `None` when it cannot be seen for this trigger. Negative and
    /// non-finite outcomes count as unseen.
    pub outcomes: [Option<f64>; RESOURCES],
}

/// A sample as it is remembered: all are of the profile's version, and what was not seen is no number.
#[derive(Clone, Copy, Debug)]
struct Kept {
    features: [f64; FEATURES],
    outcomes: [f64; RESOURCES],
}

impl Kept {
    /// Of a clean sample.
    fn of(sample: &Sample) -> Self {
        let outcomes = sample.outcomes.map(|outcome| outcome.unwrap_or(f64::NAN));
        Self { features: sample.features, outcomes }
    }

    fn outcome(&self, resource: Resource) -> Option<f64> {
        Some(self.outcomes[resource.index()]).filter(|outcome| !outcome.is_nan())
    }
}

/// What a sample did to its profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It was added.
    Added,
    /// It was of a version that has been replaced, and was ignored.
    Late,
    /// It was the first of a new version: everything before is forgotten.
    Replaced,
    /// It was added, and revealed that the cost had changed: the samples before the change are brought
    /// to the new level or forgotten, and the models fitted again.
    Drifted,
}

/// The samples, models and track record of one (trigger, table, operation).
#[derive(Clone, Debug, Default)]
pub struct Profile {
    version: Option<u64>,
    /// The version before, and how many samples of it came in a row since.
    replaced: Option<(u64, u32)>,
    reservoir: VecDeque<Kept>,
    models: [Option<Model>; RESOURCES],
    /// The models are a table's, not yet this reservoir's.
    restored: bool,
    comparisons: Comparisons,
    observed: u64,
    drifts: u64,
    /// Samples since the last change of level that those before were brought to.
    since_change: Option<usize>,
}

impl Profile {
    /// A profile that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over `models` that were stored, so that a restarted worker keeps predicting until
    /// [`RESTORED_UNTIL`] samples of its own are in.
    ///
    /// `version` is the function's version they were learnt from, `None` when unknown; a first sample
    /// of another version drops them.
    pub fn restore(&mut self, version: Option<u64>, models: [Option<Model>; RESOURCES]) {
        *self = Self { version, models, restored: true, ..Self::default() };
    }

    /// Compares `sample` with what the models predict for it, then adds it.
    ///
    /// Constant time but for every 8th sample, which looks for drift (about 10 µs), and the rare one
    /// that finds some, which fits again.
    pub fn observe(&mut self, sample: Sample) -> Observed {
        let replaced = match self.accept_version(sample.version) {
            Observed::Late => return Observed::Late,
            accepted => accepted,
        };
        let sample = cleaned(sample);
        self.comparisons.push(&self.models, &sample);
        if self.reservoir.len() == RESERVOIR {
            self.reservoir.pop_front();
        }
        self.reservoir.push_back(Kept::of(&sample));
        self.observed = self.observed.saturating_add(1);
        self.since_change = self.since_change.map(|count| count + 1).filter(|count| *count <= LEVEL_KNOWN);
        if self.observed.is_multiple_of(DRIFT_EVERY as u64) && self.follow_drift(DRIFT_WINDOW) {
            self.fit_all();
            return Observed::Drifted;
        }
        replaced
    }

    /// Fits the models to the reservoir; before that looks once more for drift, over all of it.
    ///
    /// A resource seen in fewer than [`MIN_SAMPLES`] samples has no model afterwards. Restored models
    /// stay until [`RESTORED_UNTIL`] samples are in.
    pub fn refit(&mut self) {
        if !self.follow_drift(RESERVOIR) {
            self.correct_level();
        }
        if !self.restored || self.reservoir.len() >= RESTORED_UNTIL {
            self.fit_all();
        }
    }

    /// The models, in the order of [`Resource::ALL`]; `None` while there is too little to learn from.
    pub fn models(&self) -> &[Option<Model>; RESOURCES] {
        &self.models
    }

    /// How the last predictions of `resource` compared with what happened; `None` before the first.
    pub fn feedback(&self, resource: Resource) -> Option<Feedback> {
        self.comparisons.feedback(resource)
    }

    /// The version of the samples; `None` before the first.
    pub fn version(&self) -> Option<u64> {
        self.version
    }

    /// Samples the models may learn from now.
    pub fn samples(&self) -> usize {
        self.reservoir.len()
    }

    /// How often the cost changed without a new version.
    pub fn drifts(&self) -> u64 {
        self.drifts
    }

    /// Decides about a sample's version: forgets everything when it is a new one.
    fn accept_version(&mut self, version: u64) -> Observed {
        let Some(current) = self.version.filter(|current| *current != version) else {
            self.version = Some(version);
            if let Some((_, in_a_row)) = &mut self.replaced {
                *in_a_row = 0;
            }
            return Observed::Added;
        };
        // Sessions that began before the function was replaced still deliver its old version.
        if let Some((old, in_a_row)) = &mut self.replaced
            && *old == version
        {
            *in_a_row += 1;
            if *in_a_row < BACK_AGAIN {
                return Observed::Late;
            }
        }
        let drifts = self.drifts;
        *self = Self { version: Some(version), replaced: Some((current, 0)), drifts, ..Self::default() };
        Observed::Replaced
    }

    /// Looks for a change of cost among the newest `window` samples; whether there was one. The samples
    /// before it are brought to the new level when every call changed by the same factor, as when the
    /// machine is slower for a while: what was learnt about the features holds. Otherwise they are dropped.
    fn follow_drift(&mut self, window: usize) -> bool {
        let Some(clock) = CLOCKS.into_iter().find(|clock| self.models[clock.index()].is_some()) else {
            return false;
        };
        let from = self.reservoir.len().saturating_sub(window);
        let (at, residuals): (Vec<usize>, Vec<f64>) = self.residuals(clock, from).into_iter().unzip();
        let Some(change) = drift::change(&residuals) else {
            return false;
        };
        let change = at[change];
        if self.others_stay(from, change) && self.level(from, change) {
            self.since_change = Some(self.reservoir.len() - change);
        } else {
            self.reservoir.drain(..change);
            self.since_change = None;
            self.comparisons.forget_residuals();
        }
        self.drifts = self.drifts.saturating_add(1);
        self.restored = false;
        true
    }

    /// The first estimate of a new level came from few samples.
    fn correct_level(&mut self) {
        if let Some(count) = self.since_change {
            self.level(0, self.reservoir.len().saturating_sub(count));
        }
    }

    /// Brings the times of the samples before `change` to the level of those after it; false when the change
    /// was none of level alone.
    fn level(&mut self, from: usize, change: usize) -> bool {
        let factors = CLOCKS.map(|clock| self.factor(clock, from, change));
        for (clock, factor) in CLOCKS.into_iter().zip(factors) {
            let scale = |outcome: f64| (outcome * factor.unwrap_or(1.0)).min(MAX_OUTCOME);
            for sample in self.reservoir.iter_mut().take(change) {
                if let Some(outcome) = sample.outcome(clock) {
                    sample.outcomes[clock.index()] = scale(outcome);
                }
            }
        }
        factors.into_iter().any(|factor| factor.is_some())
    }

    /// How far a resource was from its model, per sample from `from` on that saw it, with its place.
    fn residuals(&self, resource: Resource, from: usize) -> Vec<(usize, f64)> {
        let Some(model) = &self.models[resource.index()] else {
            return Vec::new();
        };
        let residual = |(at, sample): (usize, &Kept)| {
            Some((at, model.residual(&sample.features, sample.outcome(resource)?)))
        };
        self.reservoir.iter().enumerate().skip(from).filter_map(residual).collect()
    }

    /// Residuals of the samples from `from` to `change` and of those after.
    fn sides(&self, resource: Resource, from: usize, change: usize) -> (Vec<f64>, Vec<f64>) {
        let (before, after): (Vec<_>, Vec<_>) =
            self.residuals(resource, from).into_iter().partition(|(at, _)| *at < change);
        let values = |side: Vec<(usize, f64)>| side.into_iter().map(|(_, residual)| residual).collect();
        (values(before), values(after))
    }

    /// The factor by which a time changed at `change`, when it was one.
    fn factor(&self, clock: Resource, from: usize, change: usize) -> Option<f64> {
        let model = self.models[clock.index()].as_ref()?;
        let pairs = |residuals: Vec<(usize, f64)>| {
            let pair = |(at, residual): (usize, f64)| {
                (model.predict(&self.reservoir[at].features).value, 1.0 + residual)
            };
            residuals.into_iter().map(pair).collect::<Vec<_>>()
        };
        let (before, after) = self.residuals(clock, from).into_iter().partition(|(at, _)| *at < change);
        drift::factor(&pairs(before), &pairs(after))
    }

    /// Whether no resource but time changed: then the function does what it did.
    fn others_stay(&self, from: usize, change: usize) -> bool {
        Resource::ALL.into_iter().filter(|resource| !CLOCKS.contains(resource)).all(|resource| {
            let (before, after) = self.sides(resource, from, change);
            !drift::moved(&before, &after)
        })
    }

    fn fit_all(&mut self) {
        for resource in Resource::ALL {
            let row = |sample: &Kept| {
                let actual = sample.outcome(resource)?;
                Some(Row { features: sample.features, actual })
            };
            let rows: Vec<Row> = self.reservoir.iter().filter_map(row).collect();
            let (track, stretch) = (self.comparisons.residuals(resource), self.comparisons.stretch(resource));
            self.models[resource.index()] =
                fit::fit(&rows, resource).map(|model| fit::with_track(model, track, stretch));
        }
        self.restored = false;
    }
}

/// The sample without values no model can learn from.
fn cleaned(sample: Sample) -> Sample {
    let feature = |value: f64| if value.is_finite() { value.clamp(-MAX_OUTCOME, MAX_OUTCOME) } else { 0.0 };
    let seen = |value: &f64| (0.0..=MAX_OUTCOME).contains(value);
    Sample {
        features: sample.features.map(feature),
        outcomes: sample.outcomes.map(|outcome| outcome.filter(seen)),
        ..sample
    }
}

#[cfg(test)]
mod tests {
    use super::{FEATURES, Kept, RESOURCES, Resource, Sample};

    #[test]
    fn what_was_not_seen_is_kept_as_that() {
        let mut outcomes = [None; RESOURCES];
        (outcomes[Resource::CpuUs.index()], outcomes[Resource::WalBytes.index()]) = (Some(0.0), Some(7.5));
        let kept = Kept::of(&Sample { version: 1, features: [2.0; FEATURES], outcomes });
        assert_eq!(Resource::ALL.map(|resource| kept.outcome(resource)), outcomes);
        assert_eq!(size_of::<Kept>(), 96);
    }
}
