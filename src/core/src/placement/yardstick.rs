//! A yardstick for plans: how good could a placement from scratch be?

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The most rounds of local search over all starts; each improves the hottest shard.
const MAX_ROUNDS: usize = 2_000;

/// The most starts of the local search; later ones begin with a disturbed order.
const MAX_STARTS: usize = 32;

/// An imbalance this close to the bound is good enough.
const CLOSE: f64 = 1.001;

/// A near-best assignment and how good it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Yardstick {
    /// Index of the shard of each load.
    pub assignment: Vec<usize>,
    /// Highest utilisation / mean utilisation of the assignment.
    pub imbalance: f64,
    /// No assignment can have a lower imbalance than this.
    pub lower_bound: f64,
}

/// Assigns loads to shards from scratch: longest processing time first (Graham 1969), then moves
/// and swaps off the hottest shard while they help, from a bounded number of starts.
///
/// `loads[i]` is the (scalar) load of segment `i`, `capacities[j]` the capacity of shard `j`. The
/// lower bound is the larger of 1 and what the hottest segment alone makes of the largest shard.
/// Loads that are not finite numbers above 0 count as 0; capacities that are not are never used.
/// Without load or usable capacity the imbalance and its bound are 1 (and the assignment is to
/// shard 0).
pub fn best_assignment(loads: &[f64], capacities: &[f64]) -> Yardstick {
    let clean = |value: &f64| {
        if value.is_finite() && *value > 0.0 { *value } else { 0.0 }
    };
    let loads: Vec<f64> = loads.iter().map(clean).collect();
    let capacities: Vec<f64> = capacities.iter().map(clean).collect();
    let mean = loads.iter().sum::<f64>() / capacities.iter().sum::<f64>();
    if !mean.is_finite() || mean <= 0.0 {
        return Yardstick { assignment: vec![0; loads.len()], imbalance: 1.0, lower_bound: 1.0 };
    }
    let hottest = loads.iter().copied().fold(0.0, f64::max);
    let largest = capacities.iter().copied().fold(0.0, f64::max);
    let lower_bound = (hottest / largest / mean).max(1.0);
    let search = search(&loads, &capacities, lower_bound * mean * CLOSE);
    let imbalance = search.hottest().1 / mean;
    Yardstick { assignment: search.assignment, imbalance, lower_bound }
}

/// The best of several local searches; the first starts from longest-processing-time order.
fn search<'a>(loads: &'a [f64], capacities: &'a [f64], enough: f64) -> Search<'a> {
    // A constant seed: the disturbance only has to differ between starts.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut rounds = 0;
    let mut best = Search::lpt(loads, capacities, |load| load);
    rounds += best.descend(MAX_ROUNDS);
    for _ in 1..MAX_STARTS {
        if best.hottest().1 <= enough || rounds >= MAX_ROUNDS {
            break;
        }
        let mut next = Search::lpt(loads, capacities, |load| load * rng.random_range(0.5..1.5));
        rounds += 1 + next.descend(MAX_ROUNDS - rounds);
        if next.hottest().1 < best.hottest().1 {
            best = next;
        }
    }
    best
}

struct Search<'a> {
    loads: &'a [f64],
    capacities: &'a [f64],
    assignment: Vec<usize>,
    sums: Vec<f64>,
}

impl<'a> Search<'a> {
    /// Each load, highest `rank` first, to the shard least utilised with it.
    fn lpt(loads: &'a [f64], capacities: &'a [f64], mut rank: impl FnMut(f64) -> f64) -> Self {
        let ranked = loads.iter().copied().enumerate().map(|(index, load)| (index, load, rank(load)));
        let mut order: Vec<(usize, f64, f64)> = ranked.collect();
        order.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
        let sums = vec![0.0; capacities.len()];
        let mut search = Self { loads, capacities, assignment: vec![0; loads.len()], sums };
        for (segment, load, _) in order {
            let mut best = (f64::INFINITY, 0);
            for shard in 0..capacities.len() {
                let after = search.utilisation(shard, load);
                if after < best.0 {
                    best = (after, shard);
                }
            }
            if let Some(place) = search.assignment.get_mut(segment) {
                *place = best.1;
            }
            search.add(best.1, load);
        }
        search
    }

    /// Utilisation of a shard with `more` load; infinite for an unusable shard.
    fn utilisation(&self, shard: usize, more: f64) -> f64 {
        match (self.sums.get(shard), self.capacities.get(shard)) {
            (Some(sum), Some(capacity)) if *capacity > 0.0 => (sum + more) / capacity,
            _ => f64::INFINITY,
        }
    }

    fn add(&mut self, shard: usize, load: f64) {
        if let Some(sum) = self.sums.get_mut(shard) {
            *sum += load;
        }
    }

    /// The hottest usable shard and its utilisation.
    fn hottest(&self) -> (usize, f64) {
        let usable = (0..self.sums.len()).filter(|s| self.utilisation(*s, 0.0).is_finite());
        usable
            .map(|shard| (shard, self.utilisation(shard, 0.0)))
            .fold((0, 0.0), |best, next| if next.1 > best.1 { next } else { best })
    }

    fn place_of(&self, segment: usize) -> usize {
        self.assignment.get(segment).copied().unwrap_or(0)
    }

    fn load_of(&self, segment: usize) -> f64 {
        self.loads.get(segment).copied().unwrap_or(0.0)
    }

    fn put(&mut self, segment: usize, to: usize) {
        let (from, load) = (self.place_of(segment), self.load_of(segment));
        self.add(from, -load);
        self.add(to, load);
        if let Some(place) = self.assignment.get_mut(segment) {
            *place = to;
        }
    }

    /// Improves until nothing helps or `limit` rounds are over; the number of rounds.
    fn descend(&mut self, limit: usize) -> usize {
        (0..limit).find(|_| !self.improve()).unwrap_or(limit)
    }

    /// Does the move or swap off the hottest shard that leaves the two shards coolest; false when
    /// none makes the hotter of them cooler.
    fn improve(&mut self) -> bool {
        let (hot, peak) = self.hottest();
        let mut best = (peak * (1.0 - 1e-12), None);
        for mine in (0..self.loads.len()).filter(|s| self.place_of(*s) == hot) {
            let load = self.load_of(mine);
            let mut consider = |to: usize, delta: f64, swap: Option<usize>| {
                let after = self.utilisation(hot, -delta).max(self.utilisation(to, delta));
                if delta > 0.0 && after < best.0 {
                    best = (after, Some((mine, to, swap)));
                }
            };
            for to in (0..self.sums.len()).filter(|to| *to != hot) {
                consider(to, load, None);
            }
            for theirs in (0..self.loads.len()).filter(|s| self.place_of(*s) != hot) {
                consider(self.place_of(theirs), load - self.load_of(theirs), Some(theirs));
            }
        }
        let Some((mine, to, swap)) = best.1 else {
            return false;
        };
        self.put(mine, to);
        if let Some(theirs) = swap {
            self.put(theirs, hot);
        }
        true
    }
}
