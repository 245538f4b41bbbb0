//! What asking a source will take: latency = call + keys × per key, rows = keys × fan-out, and how often it fails.
//!
//! Sums that forget half in ten minutes, fitted by least squares around what is assumed before anything was seen.
//! So a single bad answer is forgotten again though nobody asks the source any more.

/// Numbers that a [`Learnt`] consists of.
pub const SUMS: usize = 11;

/// Time after which an answer counts half, ms.
const HALF_LIFE_MS: f64 = 600_000.0;
/// Assumed latency of a call nobody gave a hint for, ms.
const DEFAULT_MS: f64 = 10.0;
/// Assumed latency per key, ms.
const DEFAULT_PER_KEY_MS: f64 = 0.01;
/// How many answers the assumption about a call is worth.
const CALL_WEIGHT: f64 = 0.02;
/// The same for the assumption about a key: it takes answers with many keys to change it.
const KEY_WEIGHT: f64 = 100.0;
/// Keys that the assumption of one row per key is worth.
const FAN_OUT_WEIGHT: f64 = 1.0;
/// The highest share of failures that is predicted.
const MAX_FAILURE: f64 = 0.9;
/// How far the estimated quantile moves per answer.
const QUANTILE_STEP: f64 = 0.05;
/// Which quantile.
const QUANTILE: f64 = 0.95;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Keys asked for.
    pub keys: f64,
    /// Rows that came.
    pub rows: f64,
    /// How long it took, ms.
    pub ms: f64,
}

/// What is expected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Latency, ms; failures count as having to ask again.
    pub ms: f64,
    /// Rows.
    pub rows: f64,
}

/// What is known of a source at a place.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Learnt {
    /// When the sums were last made to forget, ms.
    at_ms: f64,
    weight: f64,
    keys: f64,
    keys_squared: f64,
    ms: f64,
    keys_ms: f64,
    rows: f64,
    failed: f64,
    tried: f64,
    /// Estimated 95 % quantile of the latency, ms; 0 before the first answer.
    pub quantile_ms: f64,
    /// Decayed answers since ever, to tell how much all that is worth.
    pub answers: f64,
}

impl Learnt {
    /// As numbers, to be stored.
    pub fn sums(&self) -> [f64; SUMS] {
        [
            self.at_ms,
            self.weight,
            self.keys,
            self.keys_squared,
            self.ms,
            self.keys_ms,
            self.rows,
            self.failed,
            self.tried,
            self.quantile_ms,
            self.answers,
        ]
    }

    /// From stored numbers; nothing is known if they are not what [`Learnt::sums`] gave.
    pub fn from_sums(sums: &[f64]) -> Learnt {
        let &[at_ms, weight, keys, keys_squared, ms, keys_ms, rows, failed, tried, quantile_ms, answers] =
            sums
        else {
            return Learnt::default();
        };
        if sums.iter().any(|sum| !sum.is_finite() || *sum < 0.0) {
            return Learnt::default();
        }
        Learnt { at_ms, weight, keys, keys_squared, ms, keys_ms, rows, failed, tried, quantile_ms, answers }
    }

    fn forget(&mut self, now_ms: f64) {
        // A clock that was set back forgets nothing.
        let share = 0.5_f64.powf((now_ms - self.at_ms).max(0.0) / HALF_LIFE_MS);
        self.at_ms = self.at_ms.max(now_ms);
        for sum in [
            &mut self.weight,
            &mut self.keys,
            &mut self.keys_squared,
            &mut self.ms,
            &mut self.keys_ms,
            &mut self.rows,
            &mut self.failed,
            &mut self.tried,
            &mut self.answers,
        ] {
            *sum *= share;
        }
    }

    /// An answer came.
    pub fn answered(&mut self, now_ms: f64, sample: Sample) {
        let numbers = [sample.keys, sample.rows, sample.ms];
        if numbers.iter().any(|number| !number.is_finite() || *number < 0.0) {
            return;
        }
        self.forget(now_ms);
        self.weight += 1.0;
        self.keys += sample.keys;
        self.keys_squared += sample.keys * sample.keys;
        self.ms += sample.ms;
        self.keys_ms += sample.keys * sample.ms;
        self.rows += sample.rows;
        self.tried += 1.0;
        self.answers += 1.0;
        self.quantile_ms = if self.quantile_ms <= 0.0 {
            sample.ms
        } else if sample.ms > self.quantile_ms {
            self.quantile_ms * (1.0 + QUANTILE_STEP * QUANTILE)
        } else {
            self.quantile_ms * (1.0 - QUANTILE_STEP * (1.0 - QUANTILE))
        };
    }

    /// It failed.
    pub fn failed(&mut self, now_ms: f64) {
        self.forget(now_ms);
        self.failed += 1.0;
        self.tried += 1.0;
    }

    /// Latency of a call and per key, ms, without failures.
    pub fn latency(&self, now_ms: f64, hint_ms: Option<f64>) -> (f64, f64) {
        let mut now = *self;
        now.forget(now_ms);
        let call = hint_ms.filter(|ms| ms.is_finite() && *ms >= 0.0).unwrap_or(DEFAULT_MS);
        let per_key = DEFAULT_PER_KEY_MS;
        // Least squares of what the assumption leaves unexplained.
        let rest = now.ms - call * now.weight - per_key * now.keys;
        let rest_keys = now.keys_ms - call * now.keys - per_key * now.keys_squared;
        let (a, b, c) = (now.weight + CALL_WEIGHT, now.keys, now.keys_squared + KEY_WEIGHT);
        let determinant = a * c - b * b;
        let (call_more, key_more) = if determinant > f64::EPSILON * a * c {
            ((rest * c - rest_keys * b) / determinant, (rest_keys * a - rest * b) / determinant)
        } else {
            (rest / a, 0.0)
        };
        let (fitted_call, fitted_key) = (call + call_more, per_key + key_more);
        // Neither may be negative; the other one then explains all.
        if fitted_key < 0.0 {
            ((call + (rest + per_key * now.keys) / a).max(0.0), 0.0)
        } else if fitted_call < 0.0 {
            (0.0, (per_key + (rest_keys + call * now.keys) / c).max(0.0))
        } else {
            (fitted_call, fitted_key)
        }
    }

    /// Rows per key.
    pub fn fan_out(&self, now_ms: f64) -> f64 {
        let mut now = *self;
        now.forget(now_ms);
        (now.rows + FAN_OUT_WEIGHT) / (now.keys + FAN_OUT_WEIGHT)
    }

    /// Share of calls that fail.
    pub fn failure(&self, now_ms: f64) -> f64 {
        let mut now = *self;
        now.forget(now_ms);
        (now.failed / (now.tried + 1.0)).clamp(0.0, MAX_FAILURE)
    }

    /// What asking for `keys` keys will take. Grows with them.
    pub fn predict(&self, now_ms: f64, hint_ms: Option<f64>, keys: f64) -> Prediction {
        let keys = if keys.is_finite() { keys.max(0.0) } else { 0.0 };
        let (call, per_key) = self.latency(now_ms, hint_ms);
        let ms = (call + per_key * keys) / (1.0 - self.failure(now_ms));
        Prediction { ms, rows: keys * self.fan_out(now_ms) }
    }
}

/// What asking several places at once will take: as long as the slowest, all their rows.
pub fn together(predictions: impl IntoIterator<Item = Prediction>) -> Prediction {
    predictions.into_iter().fold(Prediction { ms: 0.0, rows: 0.0 }, |all, one| Prediction {
        ms: all.ms.max(one.ms),
        rows: all.rows + one.rows,
    })
}
