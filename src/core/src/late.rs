//! Counters that come late. A session reports what a transaction read and wrote when it ends, so that an hour of
//! loading shows as one bucket that no load ever was. What came too much at the end of such a transaction is spread
//! evenly over the time since it began; nothing is added and nothing lost.

use crate::heat::Rates;

/// A counter that ran no more than so many times as fast as usual brought nothing worth spreading.
const JUMP: f64 = 2.0;

/// Rates of one bucket, taken apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Of the bucket itself.
    pub now: Rates,
    /// More of each rate, over all of the time before it.
    pub before: Rates,
}

/// Takes the rates of a bucket of `elapsed_s` apart in which a transaction ended that had begun `before_s` before the
/// bucket did. None: they are as usual, or there is no time to spread them over.
pub fn spread(seen: &Rates, usual: &Rates, elapsed_s: f64, before_s: f64) -> Option<Spread> {
    let is_time = |s: f64| s.is_finite() && s > 0.0;
    if !is_time(elapsed_s) || !is_time(before_s) {
        return None;
    }
    let part = elapsed_s / (elapsed_s + before_s);
    let mut any = false;
    let mut both = |of: fn(&Rates) -> f64| {
        let (seen, usual) = (of(seen), of(usual).max(0.0));
        // Whatever is no number is left as it is.
        let excess = if seen > JUMP * usual { seen - usual } else { 0.0 };
        any |= excess > 0.0;
        (seen - excess + excess * part, excess * part)
    };
    let (scans, rows, writes) =
        (both(|r| r.scans_per_s), both(|r| r.rows_read_per_s), both(|r| r.writes_per_s));
    let (read, hit) = (both(|r| r.blocks_read_per_s), both(|r| r.blocks_hit_per_s));
    let rates = |of: fn((f64, f64)) -> f64| Rates {
        scans_per_s: of(scans),
        rows_read_per_s: of(rows),
        writes_per_s: of(writes),
        blocks_read_per_s: of(read),
        blocks_hit_per_s: of(hit),
    };
    any.then(|| Spread { now: rates(|r| r.0), before: rates(|r| r.1) })
}

/// What is left now of the heat of a rate that lasted `before_s` until `elapsed_s` ago.
pub fn late_heat(rate: f64, before_s: f64, elapsed_s: f64, half_life_s: f64) -> f64 {
    let sound = rate.is_finite() && half_life_s > 0.0 && elapsed_s >= 0.0 && before_s > 0.0;
    let left = |s: f64| (-s / half_life_s).exp2();
    if sound { rate * (left(elapsed_s) - left(elapsed_s + before_s)) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::decayed_heat;

    fn writes(per_s: f64) -> Rates {
        Rates { writes_per_s: per_s, scans_per_s: 3.0, ..Rates::default() }
    }

    #[test]
    fn nothing_is_added_and_nothing_lost() {
        let found = spread(&writes(5_000.0), &writes(20.0), 10.0, 90.0).map(|s| (s.now, s.before));
        let per_s = 4_980.0 * 10.0 / 100.0;
        let before = Rates { writes_per_s: per_s, ..Rates::default() };
        assert_eq!(found, Some((writes(20.0 + per_s), before)));
    }

    #[test]
    fn the_usual_is_left_alone() {
        assert_eq!(spread(&writes(40.0), &writes(20.0), 10.0, 90.0), None);
        for (elapsed_s, before_s) in
            [(0.0, 9.0), (10.0, 0.0), (10.0, -1.0), (f64::NAN, 9.0), (10.0, f64::NAN)]
        {
            assert_eq!(spread(&writes(5_000.0), &writes(0.0), elapsed_s, before_s), None);
        }
        assert_eq!(spread(&writes(f64::NAN), &writes(0.0), 10.0, 90.0).map(|s| s.before.writes_per_s), None);
    }

    /// Heat is what it would be, had the counters come in time.
    #[test]
    fn late_is_as_good_as_in_time() {
        let (rate, bucket_s, half_life_s) = (7.0, 10.0, 60.0);
        let timely = (0..9).fold(1.5, |heat, _| decayed_heat(heat, rate, bucket_s, half_life_s));
        let silent = (0..9).fold(1.5, |heat, _| decayed_heat(heat, 0.0, bucket_s, half_life_s));
        let late =
            silent + late_heat(rate, 60.0, 30.0, half_life_s) + late_heat(rate, 30.0, 0.0, half_life_s);
        assert!((timely - late).abs() < 1e-12, "{timely} {late}");
        assert_eq!(late_heat(f64::INFINITY, 60.0, 0.0, 60.0), 0.0);
        assert_eq!(late_heat(1.0, 60.0, 0.0, 0.0), 0.0);
    }
}
