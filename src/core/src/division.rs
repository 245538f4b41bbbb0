//! Whether a slot should be divided, and whether two should become one.
//!
//! Loads are shares of the fair load of a mean shard, so that the thresholds mean the same whatever the cluster. A
//! slot is divided by its load, not its size, and only where the cut would help. The checks are those that CockroachDB
//! makes before it splits a range by load (enough samples, a balanced cut, no popular key, no moving front), as far as
//! they make sense for hashes.

use std::fmt;

/// When slots are divided and merged: shares of the fair load of a mean shard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// A slot with at least this peak is divided.
    pub split: f64,
    /// Two halves with at most this peak together are merged.
    pub merge: f64,
}

/// The least ratio of the two thresholds: between a split and a merge of its halves the load must have fallen to
/// less than a half.
pub const GAP: f64 = 2.0;

impl Thresholds {
    /// The thresholds, the lower one lowered until the gap is there.
    pub fn new(split: f64, merge: f64) -> Self {
        let split = if split.is_finite() { split.max(0.0) } else { f64::MAX };
        let merge = if merge.is_finite() { merge.clamp(0.0, split / GAP) } else { 0.0 };
        Self { split, merge }
    }
}

/// What samples say of the keys of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keys {
    /// Different keys that were sampled.
    pub sampled: u32,
    /// Share of the accesses that go to the busiest one, 0..=1.
    pub top_share: f64,
    /// Share of the accesses that the second half would have, 0..=1.
    pub second_share: f64,
    /// Share of the accesses that go to keys beyond all that were seen before; None: unknown.
    pub front_share: Option<f64>,
}

/// Fewest sampled keys to judge a cut by.
pub const MIN_KEYS: u32 = 100;
/// A key with this share of the accesses is the load; it would be in one half.
pub const POPULAR: f64 = 0.5;
/// Least share of the lighter half.
pub const BALANCED: f64 = 0.25;
/// With this share on the newest keys, a cut moves rows that nobody uses any more.
pub const FRONT: f64 = 0.8;
/// A slot that has no more than this many times the mean load of its group is hot because all are.
pub const UNIFORM: f64 = 1.25;

/// Why a slot that is too hot is not divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotDivided {
    /// Too few of its keys are known.
    FewKeys,
    /// One key makes the load.
    PopularKey,
    /// Nearly all of the load would stay in one half.
    UnbalancedCut,
    /// The load is on keys that are new.
    AppendPattern,
    /// All slots of the group are as hot, and there are enough of them for all shards.
    UniformLoad,
    /// It has the greatest modulus, or the group the most slots.
    Limit,
    /// Keys of it have places of their own, or it is such a place.
    ChosenKeys,
    /// It was changed a short while ago, or is being changed.
    Resting,
}

impl NotDivided {
    /// The machine-readable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FewKeys => "few_keys_sampled",
            Self::PopularKey => "popular_key",
            Self::UnbalancedCut => "unbalanced_cut",
            Self::AppendPattern => "append_pattern",
            Self::UniformLoad => "uniform_load",
            Self::Limit => "split_limit",
            Self::ChosenKeys => "chosen_keys",
            Self::Resting => "cooldown",
        }
    }

    /// What a person can do about it.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::FewKeys => {
                "Wait until a hundred of its keys were sampled (foreshard.hot_slot_threshold, foreshard.key_sample_interval); \
                 foreshard.split_slot() does not wait."
            }
            Self::PopularKey => {
                "Isolate the key that makes the load (foreshard.hot_keys), cache it, or spread it in the application."
            }
            Self::UnbalancedCut => {
                "A few keys make the load: isolate them (foreshard.hot_keys); a split would leave them together."
            }
            Self::AppendPattern => {
                "The newest keys make the load, and a split would move old rows: let foreshard.next_key() spread new keys."
            }
            Self::UniformLoad => {
                "Every slot is as hot: add a shard, or raise the capacity of an existing one."
            }
            Self::Limit => "The slot cannot be split any further: isolate its hot keys (foreshard.hot_keys).",
            Self::ChosenKeys => {
                "Bring its chosen keys home first (foreshard.unisolate_key(), foreshard.place_keys()), then split it; or move it."
            }
            Self::Resting => "Wait until the cool-down after its last change is over.",
        }
    }
}

impl fmt::Display for NotDivided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What to do about a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Leave,
    /// Divide it now.
    Split,
    /// Build its halves ahead, from this lead on: it will be too hot at lead `over`.
    Prepare {
        /// When to begin, in leads: the valley before.
        at: usize,
        /// When it will be too hot, in leads.
        over: usize,
    },
    /// Give its busiest key a place by itself, from this lead on: it is (`over` is 0) or will be too hot.
    Isolate {
        /// When to begin, in leads: the valley before.
        at: usize,
        /// When it will be too hot, in leads.
        over: usize,
    },
    /// It is or will be too hot, and a split would not help.
    Not(NotDivided),
}

/// What is known of a slot.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its present load.
    pub present: f64,
    /// Its forecast load per lead.
    pub curve: &'a [f64],
    /// Mean load of the slots of its group over the same leads, at its peak.
    pub group_mean: f64,
    /// Its keys; None: never sampled.
    pub keys: Option<Keys>,
    /// It may be changed.
    pub free: bool,
    /// It may be divided once more, as far as its modulus and the number of slots go.
    pub divisible: bool,
    /// Keys of it have places of their own, or it is such a place.
    pub chosen: bool,
    /// Its busiest key may have a place by itself.
    pub isolable: bool,
}

/// What to do about a slot; `cluster` is the load of everything per lead, whose valley is the time to build.
pub fn judge(slot: &Candidate, cluster: &[f64], thresholds: &Thresholds) -> Verdict {
    let hot = |load: f64| load.is_finite() && load >= thresholds.split;
    let over = if hot(slot.present) { Some(0) } else { slot.curve.iter().position(|load| hot(*load)) };
    let Some(over) = over else { return Verdict::Leave };
    let peak = slot.curve.iter().copied().filter(|load| load.is_finite()).fold(slot.present, f64::max);
    let load = |lead: usize| cluster.get(lead).copied().unwrap_or(f64::MAX);
    let at = (0..over).min_by(|a, b| load(*a).total_cmp(&load(*b)).then(a.cmp(b))).unwrap_or(0);
    if slot.free
        && slot.isolable
        && slot.keys.is_some_and(|keys| has_popular_key(&keys, slot.divisible && !slot.chosen))
    {
        return Verdict::Isolate { at, over };
    }
    match against(slot, peak) {
        Some(why) => Verdict::Not(why),
        None if over == 0 => Verdict::Split,
        None => Verdict::Prepare { at, over },
    }
}

/// Whether the busiest key is what makes the load: most of it; or that much of it that no cut is balanced, or none is
/// possible.
fn has_popular_key(keys: &Keys, divisible: bool) -> bool {
    let cut = divisible && is_balanced(keys);
    keys.top_share >= POPULAR || (keys.top_share >= BALANCED && keys.sampled >= MIN_KEYS && !cut)
}

fn is_balanced(keys: &Keys) -> bool {
    (BALANCED..=1.0 - BALANCED).contains(&keys.second_share)
}

/// Why a cut would not help.
fn against(slot: &Candidate, peak: f64) -> Option<NotDivided> {
    if slot.chosen {
        return Some(NotDivided::ChosenKeys);
    }
    if !slot.divisible {
        return Some(NotDivided::Limit);
    }
    if !slot.free {
        return Some(NotDivided::Resting);
    }
    let Some(keys) = slot.keys else { return Some(NotDivided::FewKeys) };
    if keys.top_share >= POPULAR {
        return Some(NotDivided::PopularKey);
    }
    if keys.sampled < MIN_KEYS {
        return Some(NotDivided::FewKeys);
    }
    if !is_balanced(&keys) {
        return Some(NotDivided::UnbalancedCut);
    }
    if keys.front_share.is_some_and(|share| share >= FRONT) {
        return Some(NotDivided::AppendPattern);
    }
    // When slots carry more than a shard's fair load each, there are too few of them, however alike they are.
    if peak <= UNIFORM * slot.group_mean && slot.group_mean <= UNIFORM {
        return Some(NotDivided::UniformLoad);
    }
    None
}

/// Whether two halves, or an isolated key and its slot, should become one: neither their load now nor that forecast is above the lower threshold at any
/// lead, both together. Without a forecast nothing is merged.
pub fn may_merge(present: [f64; 2], curves: [&[f64]; 2], thresholds: &Thresholds) -> bool {
    let [a, b] = curves;
    let cold = |load: f64| load.is_finite() && load <= thresholds.merge;
    !a.is_empty()
        && a.len() == b.len()
        && cold(present[0] + present[1])
        && a.iter().zip(b).all(|(a, b)| cold(a + b))
}
