//! How long statements take: histograms that many processes add to, and whether one is slower than another.
//!
//! Buckets grow by a fifth to a quarter (four to every power of two), so a quantile is known to that. Two
//! histograms are compared by how many of the one exceed a bound that the other's quantile sets; chance is ruled
//! out by the Chernoff bound of the binomial tail (Hoeffding 1963, theorem 1), which overstates it, never
//! understates.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a histogram.
pub const BUCKETS: usize = 128;
/// Unit of the smallest bucket, ns.
const UNIT_NS: u64 = 256;
/// Statements that must be known of the one that is compared with.
const LEAST_BASE: u64 = 100;
/// Statements that must be known of the one in question.
const LEAST_TEST: u64 = 30;
/// A difference below this is nobody's concern, ns.
const FLOOR_NS: f64 = 100_000.0;
/// −ln of the chance that is taken for none: one in a million.
const CERTAIN: f64 = 13.8;

/// The bucket of a duration.
pub fn bucket(duration_ns: u64) -> usize {
    let units = (duration_ns / UNIT_NS).clamp(1, u64::from(u32::MAX));
    let power = 63 - units.leading_zeros() as usize;
    let quarter = if power >= 2 { units >> (power - 2) } else { units << (2 - power) } & 3;
    (power * 4 + quarter as usize).min(BUCKETS - 1)
}

/// The end of a bucket, ns.
pub fn bucket_end_ns(bucket: usize) -> f64 {
    let (power, quarter) = (bucket / 4, bucket % 4);
    (quarter + 5) as f64 * 2f64.powi(power as i32 - 2) * UNIT_NS as f64
}

/// A histogram in shared memory. All zero: empty.
#[repr(C)]
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    errors: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], errors: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Adds a statement that has ended.
    pub fn add(&self, duration_ns: u64) {
        self.counts[bucket(duration_ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds a statement that has failed.
    pub fn add_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what another one has held.
    pub fn add_all(&self, counts: &Counts) {
        for (to, from) in self.counts.iter().zip(&counts.counts) {
            to.fetch_add(*from, Ordering::Relaxed);
        }
        self.errors.fetch_add(counts.errors, Ordering::Relaxed);
    }

    /// Forgets everything; what is added meanwhile may be lost or kept.
    pub fn clear(&self) {
        self.counts.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        self.errors.store(0, Ordering::Relaxed);
    }

    /// What it holds now.
    pub fn read(&self) -> Counts {
        let mut counts = [0; BUCKETS];
        for (to, from) in counts.iter_mut().zip(&self.counts) {
            *to = from.load(Ordering::Relaxed);
        }
        Counts { counts, errors: self.errors.load(Ordering::Relaxed) }
    }
}

/// What a histogram held at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    counts: [u64; BUCKETS],
    /// Statements that failed.
    pub errors: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], errors: 0 }
    }
}

impl Counts {
    /// Adds one duration.
    pub fn add(&mut self, duration_ns: u64) {
        self.counts[bucket(duration_ns)] += 1;
    }

    /// Statements that ended or failed.
    pub fn tried(&self) -> u64 {
        self.total() + self.errors
    }

    /// The share that fails, with one failure more than was seen: what was never seen to fail may still do.
    pub fn failing_share(&self) -> f64 {
        (self.errors + 1) as f64 / (self.tried() + 2) as f64
    }

    /// Whether more of them fail than chance makes of a share.
    pub fn fails_beyond(&self, share: f64) -> bool {
        is_more(self.errors, self.tried(), share)
    }

    /// The buckets that are not empty, with their counts: what is stored of it.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, u64)> {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }

    /// What was stored; buckets that do not exist are left out.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (usize, u64)>, errors: u64) -> Self {
        let mut stored = Self { errors, ..Self::default() };
        for (bucket, count) in pairs {
            if let Some(to) = stored.counts.get_mut(bucket) {
                *to = to.saturating_add(count);
            }
        }
        stored
    }

    /// What came since an earlier reading; one that was cleared in between counts from 0.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (now, then) in counts.iter_mut().zip(&earlier.counts) {
            *now = if *now >= *then { *now - then } else { *now };
        }
        Self { counts, errors: self.errors.saturating_sub(earlier.errors) }
    }

    /// Both together.
    pub fn plus(mut self, other: &Self) -> Self {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.errors += other.errors;
        self
    }

    /// As if every statement had taken one so-many-th of its time, rounded to whole buckets, never to less.
    pub fn sooner(&self, times: f64) -> Self {
        let down = if times > 1.0 { (times.log2() * 4.0) as usize } else { 0 };
        let mut sooner = Self { errors: self.errors, ..Self::default() };
        self.pairs().for_each(|(bucket, count)| sooner.counts[bucket.saturating_sub(down)] += count);
        sooner
    }

    /// Statements that ended well.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration that the share `q` of all does not exceed, ms; None: nothing is known.
    pub fn quantile_ms(&self, q: f64) -> Option<f64> {
        let rank = (self.total() as f64 * q.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.counts.iter().enumerate().find_map(|(bucket, count)| {
            seen += count;
            (*count > 0 && seen >= rank).then(|| bucket_end_ns(bucket) / 1e6)
        })
    }

    /// Those in buckets that begin at or beyond a duration, ms.
    fn beyond(&self, bound_ms: f64) -> u64 {
        let begins_beyond = |bucket: usize| bucket > 0 && bucket_end_ns(bucket - 1) >= bound_ms * 1e6;
        (0..BUCKETS).filter(|bucket| begins_beyond(*bucket)).map(|bucket| self.counts[bucket]).sum()
    }
}

/// A quantile that got worse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slowdown {
    /// Which one, 0 to 1.
    pub quantile: f64,
    /// What it was, ms.
    pub base_ms: f64,
    /// What it is, ms.
    pub test_ms: f64,
}

/// Whether the median or the 99th percentile of `test` is more than `ratio` times that of `base`, beyond what
/// chance explains, or what happened to other statements (`control`, then and now) at the same quantile.
pub fn slowdown(
    base: &Counts,
    test: &Counts,
    ratio: f64,
    control: Option<(&Counts, &Counts)>,
) -> Option<Slowdown> {
    let n = test.total();
    if base.total() < LEAST_BASE || n < LEAST_TEST || ratio <= 0.0 {
        return None;
    }
    [0.5, 0.99].into_iter().find_map(|quantile| {
        let base_ms = base.quantile_ms(quantile)?;
        let others = control.map_or(1.0, |(then, now)| change(then, now, quantile));
        let bound_ms = (base_ms * ratio * others).max(base_ms + FLOOR_NS / 1e6);
        is_more(test.beyond(bound_ms), n, 1.0 - quantile).then(|| Slowdown {
            quantile,
            base_ms,
            test_ms: test.quantile_ms(quantile).unwrap_or(bound_ms),
        })
    })
}

/// How many times slower a quantile has become, at least 1; 1 when too little is known.
pub fn change(before: &Counts, after: &Counts, quantile: f64) -> f64 {
    if before.total() < LEAST_BASE || after.total() < LEAST_TEST {
        return 1.0;
    }
    let times =
        after.quantile_ms(quantile).zip(before.quantile_ms(quantile)).map(|(after, before)| after / before);
    times.unwrap_or(1.0).max(1.0)
}

/// Whether statements of `test` fail more often than those of `base`, beyond chance.
pub fn fails_more(base: &Counts, test: &Counts) -> bool {
    test.fails_beyond(base.failing_share())
}

/// Whether `k` of `n` are more than chance makes of a share.
fn is_more(k: u64, n: u64, share: f64) -> bool {
    if n == 0 {
        return false;
    }
    let seen = k as f64 / n as f64;
    seen > share && n as f64 * divergence(seen, share) > CERTAIN
}

/// Kullback–Leibler divergence of two coins.
fn divergence(a: f64, b: f64) -> f64 {
    let term = |x: f64, y: f64| if x > 0.0 { x * (x / y.max(f64::MIN_POSITIVE)).ln() } else { 0.0 };
    term(a, b) + term(1.0 - a, 1.0 - b)
}
