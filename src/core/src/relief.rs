//! Where a part of a slot that is divided should go.
//!
//! Two halves on one shard are no relief to it. The part goes to the shard that makes the worse of the two ends as good
//! as can be, measured by the peak of present and forecast load over capacity; to none when no shard makes it better.

/// Least gain, share of the peak of the shard that is relieved: what is less does not pay a copy.
const LEAST_GAIN: f64 = 0.02;

/// What a shard carries.
#[derive(Clone, Debug, PartialEq)]
pub struct Carried {
    /// Shard.
    pub shard: i32,
    /// What it can carry, cost units/s, above 0.
    pub capacity: f64,
    /// Whether something may go to it.
    pub takes: bool,
    /// Load now, then of every lead, cost units/s.
    pub loads: Vec<f64>,
}

impl Carried {
    /// Greatest load as a share of capacity, with `sign` times `part` added.
    fn peak(&self, part: &[f64], sign: f64) -> f64 {
        let part = part.iter().copied().chain(std::iter::repeat(0.0));
        self.loads
            .iter()
            .zip(part)
            .map(|(load, part)| (load + sign * part) / self.capacity)
            .fold(0.0, f64::max)
    }

    fn add(&mut self, part: &[f64], sign: f64) {
        self.loads.iter_mut().zip(part).for_each(|(load, part)| *load += sign * part);
    }
}

/// The shard that a part of what is on shard `from` should go to, and moves the part there in `shards`; None: it stays.
/// `part` is its load now and of every lead, cost units/s. No shard gets over its capacity that was not, nor further over it.
pub fn relieve(shards: &mut [Carried], from: i32, part: &[f64]) -> Option<i32> {
    let source = shards.iter().find(|shard| shard.shard == from)?;
    let (before, rest) = (source.peak(&[], 0.0), source.peak(part, -1.0));
    let (worse, _, to) = shards
        .iter()
        .filter(|shard| shard.shard != from && shard.takes)
        .filter(|shard| shard.peak(part, 1.0) <= shard.peak(&[], 0.0).max(1.0))
        .map(|shard| (shard.peak(part, 1.0).max(rest), shard.peak(part, 1.0), shard.shard))
        .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2)))?;
    if worse.is_nan() || worse > before * (1.0 - LEAST_GAIN) {
        return None;
    }
    for shard in shards.iter_mut() {
        match shard.shard {
            id if id == from => shard.add(part, -1.0),
            id if id == to => shard.add(part, 1.0),
            _ => {}
        }
    }
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shard(shard: i32, loads: &[f64]) -> Carried {
        Carried { shard, capacity: 100.0, takes: true, loads: loads.to_vec() }
    }

    #[test]
    fn goes_where_there_is_room_at_the_peak() {
        // Shard 2 is idle now and busy at the peak; shard 3 the other way round, which is better.
        let all = [shard(1, &[50.0, 90.0]), shard(2, &[0.0, 60.0]), shard(3, &[40.0, 20.0])];
        let mut shards = all.clone();
        assert_eq!(relieve(&mut shards, 1, &[20.0, 40.0]), Some(3));
        assert_eq!(shards[0].loads, [30.0, 50.0]);
        assert_eq!(shards[2].loads, [60.0, 60.0]);
        // The next one finds what the first has left.
        assert_eq!(relieve(&mut shards, 3, &[30.0, 0.0]), None, "the peak at lead 1 would stay");
        // Nobody takes anything; all are as busy.
        let mut shards = all.map(|one| Carried { takes: false, ..one });
        assert_eq!(relieve(&mut shards, 1, &[20.0, 40.0]), None);
        let mut equal = [shard(1, &[90.0]), shard(2, &[90.0])];
        assert_eq!(relieve(&mut equal, 1, &[40.0]), None);
        assert_eq!(relieve(&mut equal, 7, &[40.0]), None, "an unknown shard");
    }

    proptest! {
        #[test]
        fn never_makes_it_worse(
            loads in proptest::collection::vec(proptest::collection::vec(0.0..150.0_f64, 4), 2..6),
            part in proptest::collection::vec(0.0..1.0_f64, 4),
        ) {
            let mut shards: Vec<Carried> = loads.iter().zip(1..).map(|(loads, id)| shard(id, loads)).collect();
            let part: Vec<f64> = part.iter().zip(&shards[0].loads).map(|(share, load)| share * load).collect();
            let before = shards.clone();
            let worst = |shards: &[Carried]| shards.iter().map(|s| s.peak(&[], 0.0)).fold(0.0, f64::max);
            let to = relieve(&mut shards, 1, &part);
            prop_assert!(worst(&shards) <= worst(&before) + 1e-9);
            for (after, before) in shards.iter().zip(&before) {
                prop_assert!(after.peak(&[], 0.0) <= before.peak(&[], 0.0).max(1.0) + 1e-9);
            }
            if to.is_some() {
                prop_assert!(shards[0].peak(&[], 0.0) < before[0].peak(&[], 0.0));
                let sum = |shards: &[Carried]| shards.iter().flat_map(|s| s.loads.clone()).sum::<f64>();
                prop_assert!((sum(&shards) - sum(&before)).abs() < 1e-6);
            } else {
                prop_assert_eq!(shards, before);
            }
        }
    }
}
