//! After a swap: whether statements fare worse on the new copy than before, beyond what happened to others and beyond
//! what the slot's forecast load explains.
//!
//! Statements wait for each other: the first term of every queue's waiting time is in proportion to its load. So when
//! the load rose as it was forecast to rise, latencies may have risen as much, but no more: of a rise beyond the
//! forecast (its interval's upper end) only the forecast part explains anything, and a forecast of a rise that
//! did not come explains nothing. Load is counted in statements, so a copy on which each costs more explains nothing either.

use crate::latency::{Counts, Slowdown, fails_more, slowdown};
use std::fmt;

/// Statements that a rate is taken of, before and after.
const LEAST_STATEMENTS: u64 = 30;
/// A rate is taken over at least so long, s.
const LEAST_S: f64 = 1.0;

/// How the slot's statements, and all others, fared for a while.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Period {
    /// On the slot.
    pub slot: Counts,
    /// On anything else.
    pub others: Counts,
    /// How long, s.
    pub seconds: f64,
}

impl Period {
    /// Statements on the slot per second, failed ones too; None: too few to say.
    pub fn statements_per_s(&self) -> Option<f64> {
        let statements = self.slot.tried();
        let known = statements >= LEAST_STATEMENTS && self.seconds >= LEAST_S && self.seconds.is_finite();
        known.then(|| statements as f64 / self.seconds)
    }
}

/// A forecast for a bucket: from when on, and what, cost units/s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Start of the bucket, s.
    pub at_s: f64,
    /// Expected load.
    pub mean: f64,
    /// Lower end of the interval.
    pub lower: f64,
    /// Upper end of the interval.
    pub upper: f64,
}

/// The forecast for a span of time: its points' average, each by how much of its bucket of `step_s` lies in the span. None: the forecast
/// says nothing of the most of it.
pub fn foreseen(points: &[Point], step_s: f64, from_s: f64, to_s: f64) -> Option<Point> {
    let overlap = |p: &Point| (to_s.min(p.at_s + step_s) - from_s.max(p.at_s)).max(0.0);
    let covered: f64 = points.iter().map(overlap).sum();
    if covered.is_nan() || covered <= 0.0 || covered < (to_s - from_s) / 2.0 {
        return None;
    }
    let mean_of = |of: fn(&Point) -> f64| points.iter().map(|p| of(p) * overlap(p)).sum::<f64>() / covered;
    Some(Point {
        at_s: from_s,
        mean: mean_of(|p| p.mean),
        lower: mean_of(|p| p.lower),
        upper: mean_of(|p| p.upper),
    })
}

/// What was known of the slot's load, cost units/s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// The load before the swap.
    pub before: f64,
    /// What was forecast, before the swap, for the time since.
    pub forecast: Point,
}

/// The load since the swap against that before it and against the forecast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Statements per second, times those before; None: too few to say.
    pub rise: Option<f64>,
    /// The load, at what statements cost before, cost units/s.
    pub now: Option<f64>,
    /// What was known of it.
    pub expected: Option<Expected>,
    /// How many times as slow statements may be because of it, at least 1.
    pub explains: f64,
}

impl Load {
    /// Compares them.
    pub fn of(before: &Period, after: &Period, expected: Option<Expected>) -> Self {
        let rates = before.statements_per_s().zip(after.statements_per_s());
        let rise = rates.map(|(then, now)| now / then);
        let known =
            expected.filter(|e| e.before > 0.0 && e.before.is_finite() && e.forecast.upper.is_finite());
        let now = rise.zip(known).map(|(rise, e)| e.before * rise);
        let explains = rise.zip(known).map_or(1.0, |(rise, e)| rise.min(e.forecast.upper / e.before));
        Self { rise, now, expected: known, explains: explains.max(1.0) }
    }

    /// The average of two, the second with this weight; what is not known of one is not known.
    fn averaged(&self, other: &Self, weight: f64) -> Self {
        let mean = |a: f64, b: f64| a + (b - a) * weight;
        let both = |a: Option<f64>, b: Option<f64>| a.zip(b).map(|(a, b)| mean(a, b));
        let expected = self.expected.zip(other.expected).map(|(a, b)| Expected {
            before: b.before,
            forecast: Point {
                at_s: a.forecast.at_s,
                mean: mean(a.forecast.mean, b.forecast.mean),
                lower: mean(a.forecast.lower, b.forecast.lower),
                upper: mean(a.forecast.upper, b.forecast.upper),
            },
        });
        Self {
            rise: both(self.rise, other.rise),
            now: both(self.now, other.now),
            expected,
            explains: mean(self.explains, other.explains),
        }
    }

    /// Whether it is above what was forecast.
    pub fn is_beyond(&self) -> bool {
        self.now.zip(self.expected).is_some_and(|(now, e)| now > e.forecast.upper)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(now), Some(expected)) = (self.now, self.expected) else {
            return f.write_str("no load was forecast");
        };
        let Point { mean, lower, upper, .. } = expected.forecast;
        let than = if self.is_beyond() {
            "more than forecast"
        } else if now < lower {
            "less than forecast"
        } else {
            "as forecast"
        };
        write!(
            f,
            "the load is {than}: {now:.3} cost units/s ({:.3} before, {mean:.3} forecast, {lower:.3} to {upper:.3})",
            expected.before
        )
    }
}

/// Why a swap should be undone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// Statements fail more often, and all others do not, or less.
    Fails,
    /// Statements are slower than the load explains.
    Slower(Slowdown, Load),
}

impl Reason {
    /// In words, of statements on `what`.
    pub fn of(&self, what: &str) -> String {
        match self {
            Self::Fails => format!("statements on {what} fail more often than before the move"),
            Self::Slower(s, load) => format!(
                "statements on {what} are slower than before the move: {} of {:.3} ms against {:.3} ms; {load}",
                if s.quantile > 0.5 { "99th percentile" } else { "median" },
                s.test_ms,
                s.base_ms
            ),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of("the slot"))
    }
}

/// How statements fare on the new copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// No worse than before, or nothing can be said.
    Well,
    /// Slower, as the load that was forecast explains.
    Explained(Slowdown, Load),
    /// Worse.
    Worse(Reason),
}

/// Whether statements on the slot fail more often than before, beyond chance and beyond what all others fail more often: what makes
/// everybody fail is no fault of the copy. Of few others little is known, which is taken for as many failures.
fn fails(before: &Period, after: &Period) -> bool {
    if !fails_more(&before.slot, &after.slot) {
        return false;
    }
    if after.others.tried() == 0 {
        return before.others.tried() == 0 || after.slot.tried() >= LEAST_STATEMENTS;
    }
    let everybody = (after.others.failing_share() - before.others.failing_share()).max(0.0);
    after.slot.fails_beyond(before.slot.failing_share() + everybody)
}

/// The time since a swap, span by span: a load that rises in between explains what is slow from then on, and nothing before.
#[derive(Clone, Debug)]
pub struct Watching {
    from_s: f64,
    seen: Counts,
    /// All statements of the spans that have ended, without what the load of their span explains.
    normal: Counts,
    /// The load as the average statement met it.
    load: Option<(f64, Load)>,
}

impl Watching {
    /// Begins at a time.
    pub fn new(from_s: f64) -> Self {
        Self { from_s, seen: Counts::default(), normal: Counts::default(), load: None }
    }

    /// When the present span began, s.
    pub fn span_from_s(&self) -> f64 {
        self.from_s
    }

    /// Takes the statements on the slot that were counted by now, and what was expected of the load since the span began. The span ends when
    /// it has enough of them.
    pub fn look(&mut self, now_s: f64, slot: &Counts, before: &Period, expected: Option<Expected>) {
        let fresh =
            Period { slot: slot.since(&self.seen), others: Counts::default(), seconds: now_s - self.from_s };
        if fresh.statements_per_s().is_none() {
            return;
        }
        let load = Load::of(before, &fresh, expected);
        let weight = fresh.slot.tried() as f64;
        self.load = Some(match self.load {
            None => (weight, load),
            Some((sum, mean)) => (sum + weight, mean.averaged(&load, weight / (sum + weight))),
        });
        let normal = std::mem::take(&mut self.normal);
        self.normal = normal.plus(&fresh.slot.sooner(load.explains));
        (self.seen, self.from_s) = (slot.clone(), now_s);
    }

    /// Compares the time after a swap with that before it; `ratio`: how many times slower is too slow, 0 for never. What happened to others and
    /// the load may have one cause, so either explains what it explains, not both together.
    pub fn judge(&self, before: &Period, after: &Period, ratio: f64) -> Verdict {
        if ratio <= 0.0 {
            return Verdict::Well;
        }
        if fails(before, after) {
            return Verdict::Worse(Reason::Fails);
        }
        let others = Some((&before.others, &after.others));
        let slower = slowdown(&before.slot, &after.slot, ratio, others);
        let (Some(slower), Some((_, load))) = (slower, self.load) else { return Verdict::Well };
        match slowdown(&before.slot, &self.normal, ratio, None) {
            Some(_) => Verdict::Worse(Reason::Slower(slower, load)),
            None if self.normal.total() >= LEAST_STATEMENTS => Verdict::Explained(slower, load),
            None => Verdict::Well,
        }
    }

    /// The load as the average statement met it; None: too few to say.
    pub fn load(&self) -> Option<&Load> {
        self.load.as_ref().map(|(_, load)| load)
    }
}
