//! Which segments are used together: decayed counts of the pairs a transaction touched.
//!
//! Decay is Cormode et al. 2009, "Forward Decay": a transaction at `t` adds
//! `weight · 2^((t - landmark) / half-life)`, a reader divides by the same power of two of his own
//! time, so nothing has to be touched only because time passed. Memory is bounded by evicting the
//! lightest pairs, an eighth of them at a time (amortised constant work). A pair that comes back
//! starts from 0, so a count is never too high, and too low by what was evicted before.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The most segments of one transaction that are looked at: it has up to 496 pairs then.
pub const MAX_SEGMENTS: usize = 32;

/// The largest number of pairs a collection can be made for.
pub const MAX_PAIRS: usize = 1 << 20;

/// Half-lives after which the landmark moves, long before counts could overflow.
const LANDMARK_HALF_LIVES: f64 = 256.0;

/// The largest weight of one transaction; larger ones are cut.
const MAX_WEIGHT: f64 = 1e12;

/// Two segments and how often they were used together. Counts are decayed sums of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The segment with the smaller id.
    pub a: i64,
    /// The segment with the larger id.
    pub b: i64,
    /// Decayed count of transactions that touched both.
    pub weight: f64,
    /// That, as a share of the transactions of the one that is touched less, in 0..=1: 1 when it is
    /// never touched without the other. `None` when the counts of a segment were evicted.
    pub share: Option<f64>,
    /// How many times more often they are touched together than if transactions chose them
    /// independently; 1 means by chance. `None` likewise.
    pub lift: Option<f64>,
}

/// Decayed counts of pairs, of touches per segment, and of transactions.
///
/// Memory: at most `max_pairs` pairs of 24 bytes and twice as many segments of 16, in B-trees.
#[derive(Clone, Debug)]
pub struct CoAccess {
    half_life_s: f64,
    max_pairs: usize,
    /// Counts are in units of `landmark_s`; `None` before the first transaction.
    landmark_s: Option<f64>,
    pairs: BTreeMap<(i64, i64), f64>,
    touches: BTreeMap<i64, f64>,
    transactions: f64,
    evicted: u64,
    cut: u64,
}

impl CoAccess {
    /// An empty collection that forgets half of the past every `half_life_s` seconds (at least 1 ms)
    /// and keeps at most `max_pairs` pairs (itself at most [`MAX_PAIRS`]).
    pub fn new(half_life_s: f64, max_pairs: usize) -> Self {
        Self {
            half_life_s: half_life_s.clamp(1e-3, 1e12).max(1e-3),
            max_pairs: max_pairs.min(MAX_PAIRS),
            landmark_s: None,
            pairs: BTreeMap::new(),
            touches: BTreeMap::new(),
            transactions: 0.0,
            evicted: 0,
            cut: 0,
        }
    }

    /// Counts a transaction at `now_s` that touched `segments`, in any order and any number of times,
    /// as `weight` transactions (the sampling interval, say).
    ///
    /// Of more than [`MAX_SEGMENTS`] segments an arbitrary choice is looked at, another one at another
    /// time, and [`Self::cut`] grows. A time that is not finite, or a weight that is not a number above
    /// 0, is ignored.
    pub fn add(&mut self, segments: &[i64], weight: f64, now_s: f64) {
        if !now_s.is_finite() || weight.is_nan() || weight <= 0.0 || segments.is_empty() {
            return;
        }
        let chosen = self.chosen(segments, now_s);
        let amount = weight.min(MAX_WEIGHT) * self.growth(now_s);
        if amount <= 0.0 {
            return;
        }
        self.transactions += amount;
        for (index, a) in chosen.iter().enumerate() {
            let max_touches = self.max_pairs.saturating_mul(2);
            add_bounded(&mut self.touches, *a, amount, max_touches);
            for b in chosen.iter().skip(index + 1) {
                let evicted = add_bounded(&mut self.pairs, (*a, *b), amount, self.max_pairs);
                self.evicted = self.evicted.saturating_add(evicted);
            }
        }
    }

    /// Forgets segments that are gone, with their pairs.
    pub fn retain(&mut self, is_there: impl Fn(i64) -> bool) {
        self.touches.retain(|segment, _| is_there(*segment));
        self.pairs.retain(|(a, b), _| is_there(*a) && is_there(*b));
    }

    /// The `k` heaviest pairs, heaviest first; equally heavy ones in the order of their ids.
    pub fn top(&self, k: usize, now_s: f64) -> Vec<Pair> {
        let mut pairs: Vec<(&(i64, i64), &f64)> = self.pairs.iter().collect();
        pairs.sort_by(|one, other| other.1.total_cmp(one.1).then_with(|| one.0.cmp(other.0)));
        let pair = |((a, b), weight): (&(i64, i64), &f64)| self.pair(*a, *b, *weight, now_s);
        pairs.into_iter().take(k).map(pair).collect()
    }

    /// Decayed count of the transactions that touched both, 0 when none is known.
    pub fn weight(&self, a: i64, b: i64, now_s: f64) -> f64 {
        let weight = self.pairs.get(&(a.min(b), a.max(b)));
        weight.map_or(0.0, |weight| weight * self.decay(now_s))
    }

    /// Decayed count of the transactions that touched `segment`, 0 when none is known.
    pub fn touches(&self, segment: i64, now_s: f64) -> f64 {
        self.touches.get(&segment).map_or(0.0, |touches| touches * self.decay(now_s))
    }

    /// Decayed count of all transactions.
    pub fn transactions(&self, now_s: f64) -> f64 {
        self.transactions * self.decay(now_s)
    }

    /// Pairs kept now.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Pairs evicted so far for want of room.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Transactions so far that had more than [`MAX_SEGMENTS`] segments.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    fn pair(&self, a: i64, b: i64, weight: f64, now_s: f64) -> Pair {
        let both =
            self.touches.get(&a).zip(self.touches.get(&b)).filter(|(one, other)| one.min(**other) > 0.0);
        Pair {
            a,
            b,
            weight: weight * self.decay(now_s),
            share: both.map(|(one, other)| (weight / one.min(*other)).min(1.0)),
            lift: both.map(|(one, other)| (weight / one) * (self.transactions / other)),
        }
    }

    /// The distinct segments in order, at most [`MAX_SEGMENTS`].
    fn chosen(&mut self, segments: &[i64], now_s: f64) -> Vec<i64> {
        let mut chosen = segments.to_vec();
        chosen.sort_unstable();
        chosen.dedup();
        if chosen.len() > MAX_SEGMENTS {
            self.cut = self.cut.saturating_add(1);
            // By hash, so that no segment is left out for its id; seeded, so that none always is.
            let seed = now_s.to_bits();
            chosen.sort_by_key(|segment| (xxh3_64_with_seed(&segment.to_le_bytes(), seed), *segment));
            chosen.truncate(MAX_SEGMENTS);
            chosen.sort_unstable();
        }
        chosen
    }

    /// What one transaction at `now_s` is worth in units of the landmark, which moves when it is far
    /// behind.
    fn growth(&mut self, now_s: f64) -> f64 {
        let landmark_s = *self.landmark_s.get_or_insert(now_s);
        let half_lives = (now_s - landmark_s) / self.half_life_s;
        if half_lives <= LANDMARK_HALF_LIVES {
            return half_lives.exp2();
        }
        let kept = (-half_lives).exp2();
        self.pairs.retain(|_, weight| keep(weight, kept));
        self.touches.retain(|_, weight| keep(weight, kept));
        self.transactions *= kept;
        self.landmark_s = Some(now_s);
        1.0
    }

    /// What one unit of the landmark is worth at `now_s`.
    fn decay(&self, now_s: f64) -> f64 {
        let Some(landmark_s) = self.landmark_s else { return 0.0 };
        ((landmark_s - now_s) / self.half_life_s).min(0.0).exp2()
    }
}

/// Scales a count; whether there is anything left of it.
fn keep(weight: &mut f64, kept: f64) -> bool {
    *weight *= kept;
    *weight > 1e-60
}

/// Adds to one entry of a map of at most `limit`; the number of entries evicted for that.
fn add_bounded<K: Copy + Ord>(map: &mut BTreeMap<K, f64>, key: K, amount: f64, limit: usize) -> u64 {
    if let Some(weight) = map.get_mut(&key) {
        *weight += amount;
        return 0;
    }
    if limit == 0 {
        return 1;
    }
    let mut evicted = 0;
    if map.len() >= limit {
        let mut lightest: Vec<(f64, K)> = map.iter().map(|(key, weight)| (*weight, *key)).collect();
        evicted = limit.div_ceil(8);
        lightest.select_nth_unstable_by(evicted - 1, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for (_, key) in lightest.iter().take(evicted) {
            map.remove(key);
        }
    }
    map.insert(key, amount);
    evicted as u64
}
