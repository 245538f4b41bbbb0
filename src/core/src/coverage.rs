//! Whether forecasts are to be relied on: how much of what came lately they covered, and what to plan by where they did not.
//!
//! A plan believes its forecasts. The outcomes of its steps ([`crate::calibration`]) say late, and from few and
//! correlated cases, that it should not have; what came within the intervals of the forecasts is known bucket by
//! bucket. Nominal intervals cover their nominal share whatever the load is like: those of noise are wide. So where
//! clearly less was covered, the forecasts are wrong, whoever made them, and what is known is only what was seen. Intervals
//! that are wide enough cover what has nothing to do with their forecasts, though: those that are further off than the load
//! of the day before, by far, are no forecasts either.
//!
//! Even of forecasts that are relied on some futures are days that were seen: a step must have been right then, too, or be
//! very sure.

/// What is left of older cases when a new one is known: half after a day and a half of hours.
pub const KEPT: f64 = 0.98;
/// Leads whose forecasts are followed for this.
pub const LEADS: [usize; 2] = [1, 12];
/// Cases below which nothing is said.
const LEAST: f64 = 8.0;
/// What a segment without load counts as, cost units/s.
const IDLE: f64 = 1e-6;
/// Days that futures are made of.
const DAYS: usize = 7;
/// Share of the futures that are days which were seen, of forecasts that are relied on.
const SEEN: f64 = 0.3;
/// Times the error of the naive forecast from which a forecast is none.
const WORTHLESS: f64 = 2.5;
/// Mean error as a share of the load up to which it is one all the same: of what repeats itself exactly the day before knows all.
const CLOSE: f64 = 0.1;
/// The shortfall of the covered share at which forecasts are not relied on.
const SHORTFALL: f64 = 0.15;

/// How much of what came was covered, the newest cases counting most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Coverage {
    /// Cases, those of the past decayed.
    pub weight: f64,
    /// Those of them that were covered.
    pub covered: f64,
    /// Sum of the absolute errors of cases of which the naive forecast is known, decayed like them, cost units/s.
    pub error: f64,
    /// The same of the naive forecast: the load a day before.
    pub naive_error: f64,
}

/// What coverage says of forecasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Too few cases.
    Unknown,
    /// About as much is covered as should be.
    Covers,
    /// Clearly less is.
    Misses,
}

impl Coverage {
    /// Adds a case.
    pub fn observe(&mut self, covered: bool) {
        self.weight = self.weight * KEPT + 1.0;
        self.covered = self.covered * KEPT + f64::from(u8::from(covered));
    }

    /// Adds the absolute errors of a case, cost units/s.
    pub fn compare(&mut self, error: f64, naive_error: f64) {
        self.error = self.error * KEPT + error;
        self.naive_error = self.naive_error * KEPT + naive_error;
    }

    /// The covered share, 0 of forecasts that are worthless; None: too few cases are known. `load` is the mean of what is forecast, cost
    /// units/s.
    pub fn share(&self, load: f64) -> Option<f64> {
        let is_far = self.error > CLOSE * load * self.weight;
        let covered = if is_far && self.error > WORTHLESS * self.naive_error { 0.0 } else { self.covered };
        (self.weight >= LEAST).then(|| (covered / self.weight).clamp(0.0, 1.0))
    }

    /// What that says of intervals that should cover `nominal`.
    pub fn standing(&self, nominal: f64, load: f64) -> Standing {
        match self.share(load) {
            None => Standing::Unknown,
            Some(share) if share < nominal - SHORTFALL => Standing::Misses,
            Some(_) => Standing::Covers,
        }
    }
}

/// Whether what is only foreseen of some segments, given as (mean load, coverage), is to be relied on: of their load
/// together about as much is covered as should be. Intervals that are too wide make up for none that miss; segments of
/// which too little is known do not count.
pub fn is_foreseeable(segments: impl Iterator<Item = (f64, Coverage)>, nominal: f64) -> bool {
    let (mut covered, mut load) = (0.0, 0.0);
    for (own, coverage) in segments {
        let Some(share) = coverage.share(own) else { continue };
        let own = own.max(IDLE);
        covered += own * share.min(nominal);
        load += own;
    }
    covered >= (nominal - SHORTFALL) * load
}

/// Which of some segments, given as (mean load, coverage), are to be planned by what was seen: those whose forecasts miss; all,
/// if what is foreseen of them together is not to be relied on, because whatever is wrong then is wrong with forecasts as such,
/// and intervals that are wide enough to cover anything hide it.
pub fn to_be_replaced(segments: &[(f64, Coverage)], nominal: f64) -> Vec<bool> {
    let all = !is_foreseeable(segments.iter().copied(), nominal);
    segments
        .iter()
        .map(|(load, coverage)| all || coverage.standing(nominal, *load) == Standing::Misses)
        .collect()
}

/// Curve and futures of a segment whose forecasts are not relied on, of `leads` buckets: what it carries now, then what it
/// carried a day of `day` buckets ago; futures are the days before, the same ones for all segments, in turn. While less
/// than a day is known, days are as long as curves. None: that is not known either.
pub fn as_it_was(
    values: &[Option<f64>],
    day: usize,
    leads: usize,
    futures: usize,
) -> Option<(Vec<f64>, Vec<Vec<f64>>)> {
    let present = values.iter().rev().take(leads).find_map(|value| *value)?;
    let known = days_seen(values, day, leads, present);
    if known.is_empty() || leads == 0 {
        return Some((vec![present; leads], vec![vec![present; leads]; futures]));
    }
    let curve = known[0].clone();
    Some((curve, known.into_iter().cycle().take(futures).collect()))
}

/// The last days of `day` buckets, at most [`DAYS`], the newest first: `leads` buckets of each, the first of which is as the `present`.
/// While less than a day is known, days are as long as curves.
fn days_seen(values: &[Option<f64>], day: usize, leads: usize, present: f64) -> Vec<Vec<f64>> {
    let day = if day >= leads && values.len() >= day { day } else { leads };
    let days = values.len() / day.max(1);
    let window = |back: usize| {
        let begin = values.len() - back * day;
        let mut last = present;
        let mut curve: Vec<f64> = values[begin..begin + leads]
            .iter()
            .map(|value| {
                last = value.unwrap_or(last);
                last
            })
            .collect();
        if let Some(first) = curve.first_mut() {
            *first = present;
        }
        curve
    };
    (1..=days.min(DAYS)).map(window).collect()
}

/// Puts the last days in the place of about three of ten sampled futures of a segment, each as often; the same ones for all segments
/// with as many futures. Where a day is not known, the sample stays.
pub fn mix_in_days_seen(futures: &mut [Vec<f64>], values: &[Option<f64>], day: usize) {
    let leads = futures.first().map_or(0, Vec::len);
    let Some(present) = values.iter().rev().take(leads).find_map(|value| *value) else { return };
    let days = days_seen(values, day, leads, present);
    let times = (futures.len() as f64 * SEEN / DAYS as f64).round().max(1.0) as usize;
    for (k, future) in futures.iter_mut().rev().take(times * DAYS).enumerate() {
        if let Some(seen) = days.get(k % DAYS) {
            future.clone_from(seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(cases: impl IntoIterator<Item = bool>) -> Coverage {
        let mut coverage = Coverage::default();
        cases.into_iter().for_each(|covered| coverage.observe(covered));
        coverage
    }

    #[test]
    fn what_is_clearly_missed_is_not_relied_on_until_it_is_covered_again() {
        assert_eq!(after([false; 7]).standing(0.9, 1.0), Standing::Unknown);
        assert_eq!(after((0..200).map(|i| i % 10 != 0)).standing(0.9, 1.0), Standing::Covers);
        assert_eq!(after((0..200).map(|i| i % 3 != 0)).standing(0.9, 1.0), Standing::Misses);
        // Half the nominal share is what is asked of intervals that promise no more.
        assert_eq!(after((0..200).map(|i| i % 2 != 0)).standing(0.5, 1.0), Standing::Covers);
        let mut coverage = after([true; 200]);
        (0..12).for_each(|_| coverage.observe(false));
        assert_eq!(coverage.standing(0.9, 1.0), Standing::Covers, "half a day says little against a week");
        (0..12).for_each(|_| coverage.observe(false));
        assert_eq!(coverage.standing(0.9, 1.0), Standing::Misses);
        (0..72).for_each(|_| coverage.observe(true));
        assert_eq!(coverage.standing(0.9, 1.0), Standing::Covers);
        assert!(coverage.weight < 1.0 / (1.0 - KEPT));
    }

    #[test]
    fn wide_intervals_make_up_for_none_that_miss() {
        let (wide, misses, unknown) = (after([true; 100]), after([false; 100]), Coverage::default());
        let all = |which: &[(f64, Coverage)]| is_foreseeable(which.iter().copied(), 0.9);
        assert!(all(&[]) && all(&[(5.0, unknown)]) && all(&[(5.0, wide), (50.0, unknown)]));
        assert!(all(&[(90.0, wide), (10.0, misses)]));
        assert!(!all(&[(80.0, wide), (20.0, misses)]), "0.9 of four fifths is less than 0.75");
        assert!(!all(&[(0.1, misses), (5.0, unknown)]));
        assert!(!all(&[(0.0, misses)]), "what is idle now may not be so for long");
    }

    #[test]
    fn forecasts_that_miss_are_replaced_and_all_when_most_miss() {
        let (covers, misses) = (after([true; 100]), after([false; 100]));
        assert_eq!(to_be_replaced(&[(90.0, covers), (10.0, misses)], 0.9), [false, true]);
        assert_eq!(to_be_replaced(&[(60.0, covers), (40.0, misses)], 0.9), [true, true]);
        assert!(to_be_replaced(&[], 0.9).is_empty());
    }

    #[test]
    fn what_is_far_worse_than_yesterday_is_no_forecast() {
        let mut coverage = after([true; 20]);
        assert_eq!(coverage.standing(0.9, 1.0), Standing::Covers, "nothing to compare with");
        coverage.compare(2.0, 1.0);
        assert_eq!(coverage.standing(0.9, 1.0), Standing::Covers);
        (0..20).for_each(|_| coverage.compare(3.0, 1.0));
        assert_eq!(coverage.standing(0.9, 1.0), Standing::Misses);
        assert!(!is_foreseeable([(1.0, coverage)].into_iter(), 0.9));
        assert_eq!(
            coverage.standing(0.9, 100.0),
            Standing::Covers,
            "3 % off is a forecast, whatever yesterday says"
        );
    }

    #[test]
    fn some_futures_are_days_that_were_seen() {
        // Three days of four buckets.
        let values: Vec<Option<f64>> = (0..12).map(|i| Some(f64::from(i))).collect();
        let sampled = vec![vec![-1.0; 4]; 48];
        let mut futures = sampled.clone();
        mix_in_days_seen(&mut futures, &values, 4);
        let count = |what: &[f64]| futures.iter().filter(|future| *future == what).count();
        assert_eq!(count(&[11.0, 9.0, 10.0, 11.0]), 2, "yesterday, from what is there now on");
        assert_eq!(count(&[11.0, 1.0, 2.0, 3.0]), 2);
        assert_eq!(count(&sampled[0]), 48 - 6, "four days of the week are not known");
        let mut unknown = sampled.clone();
        mix_in_days_seen(&mut unknown, &[], 4);
        assert_eq!(unknown, sampled);
        mix_in_days_seen(&mut [], &values, 4);
    }

    #[test]
    fn days_that_were_seen_stand_for_the_one_to_come() {
        // Three days of four buckets, a gap in the last one.
        let values: Vec<Option<f64>> = (0..12).map(|i| (i != 9).then_some(f64::from(i))).collect();
        let (curve, futures) = as_it_was(&values, 4, 3, 4).unwrap_or_default();
        // As of now, then a day ago; the gap has what was before it.
        assert_eq!(curve, [11.0, 8.0, 10.0]);
        assert_eq!(futures, [curve.clone(), vec![11.0, 5.0, 6.0], vec![11.0, 1.0, 2.0], curve]);
        assert_eq!(as_it_was(&values[..2], 4, 3, 1), Some((vec![1.0; 3], vec![vec![1.0; 3]])));
        assert_eq!(as_it_was(&values[..4], 99, 3, 1).map(|(curve, _)| curve), Some(vec![3.0, 2.0, 3.0]));
        assert_eq!(as_it_was(&[Some(1.0), None, None, None], 4, 3, 1), None);
        assert_eq!(as_it_was(&[], 4, 3, 1), None);
        assert_eq!(as_it_was(&values, 0, 0, 1), None);
    }
}
