//! Scenes from recorded series and key accesses.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::xxh3_64;

use super::{Incident, Moves, Scene, Trace};
use crate::placement::Link;

const GIB: f64 = 1_073_741_824.0;
/// Capacity of a shard, cost units/s.
const CAPACITY: f64 = 1_000.0;
/// Accesses that count as used together.
const WINDOW: usize = 8;
/// Links kept, the heaviest.
const MAX_LINKS: usize = 20_000;

/// What is made of recorded series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As they were, every slot in one of three time zones.
    Seasonal,
    /// The same with hot spots that rise over hours, stay for days and go, one after the other.
    Shifting,
    /// The same with crowds that nobody can foresee.
    Flash,
    /// Constant loads with a little noise.
    Stationary,
    /// No pattern at all: every tick on its own.
    Noise,
    /// Loads that drift without aim.
    Walk,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Seasonal, Self::Shifting, Self::Flash, Self::Stationary, Self::Noise, Self::Walk];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seasonal => "seasonal",
            Self::Shifting => "shifting",
            Self::Flash => "flash",
            Self::Stationary => "stationary",
            Self::Noise => "noise",
            Self::Walk => "walk",
        }
    }
}

/// How a scene is composed.
#[derive(Clone, Debug, PartialEq)]
pub struct Composition {
    /// Seed of everything random.
    pub seed: u64,
    /// Slots.
    pub slots: usize,
    /// Shards.
    pub shards: usize,
    /// Length of a tick, s.
    pub tick_s: u32,
    /// Ticks in which loads are only watched.
    pub warm_up_ticks: usize,
    /// Ticks after them.
    pub ticks: usize,
    /// Exponent of the slots' shares: 0 equal, 1 Zipf's law.
    pub skew: f64,
    /// Peak of the whole load / capacity of all shards.
    pub utilisation: f64,
    /// Mean size of a slot, GiB.
    pub slot_gib: f64,
    /// What is made of the series.
    pub shape: Shape,
    /// What goes wrong.
    pub incidents: Vec<Incident>,
}

impl Default for Composition {
    fn default() -> Self {
        Self {
            seed: 1,
            slots: 64,
            shards: 8,
            tick_s: 300,
            warm_up_ticks: 14 * 288,
            ticks: 14 * 288,
            skew: 0.9,
            utilisation: 0.8,
            slot_gib: 4.0,
            shape: Shape::Seasonal,
            incidents: Vec::new(),
        }
    }
}

/// A standard normal draw (Box, Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// A scene whose slots follow recorded series (values per `step_s` seconds), the peak of each scaled to its share. Series that are too short begin again from the start, a whole number of days later. Without series all
/// are constant.
pub fn by_series(series: &[(u32, Vec<f64>)], how: &Composition) -> Scene {
    let mut rng = ChaCha8Rng::seed_from_u64(how.seed);
    let ticks = how.warm_up_ticks + how.ticks;
    let weights: Vec<f64> = (0..how.slots).map(|rank| (rank as f64 + 2.0).powf(-how.skew)).collect();
    let mut trace = Trace { tick_s: how.tick_s, slots: how.slots, loads: vec![0.0; how.slots * ticks] };
    for (slot, weight) in weights.iter().enumerate() {
        let curve = slot_curve(series, how, slot, ticks, &mut rng);
        // By its usual peak, not its mean: what a slot can carry is bounded by that.
        let mut sorted = curve.clone();
        sorted.sort_by(f64::total_cmp);
        let usual = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(1.0);
        for (tick, value) in curve.into_iter().enumerate() {
            trace.loads[tick * how.slots + slot] = (value / usual.max(1e-9) * weight) as f32;
        }
    }
    if how.shape == Shape::Shifting {
        hot_spots(&mut trace, how, &mut rng);
    }
    let crowds = if how.shape == Shape::Flash { ticks * how.tick_s as usize / 43_200 } else { 0 };
    for _ in 0..crowds {
        let (slot, begin) = (rng.random_range(0..how.slots), rng.random_range(0..ticks));
        for tick in begin..(begin + (5_400 / how.tick_s as usize).max(1)).min(ticks) {
            trace.loads[tick * how.slots + slot] *= 4.0;
        }
    }
    // Which slot is hot does not depend on its number, nor on the shard it begins on.
    let mut order: Vec<usize> = (0..how.slots).collect();
    order.sort_by_key(|slot| xxh3_64(&[how.seed.to_le_bytes(), (*slot as u64).to_le_bytes()].concat()));
    let mut start = vec![0; how.slots];
    order.iter().enumerate().for_each(|(at, slot)| start[*slot] = at % how.shards);
    finish(trace, start, how, Vec::new(), &mut rng)
}

/// The load of one slot, in any unit.
fn slot_curve(
    series: &[(u32, Vec<f64>)],
    how: &Composition,
    slot: usize,
    ticks: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<f64> {
    match how.shape {
        Shape::Stationary => (0..ticks).map(|_| 1.0 + 0.05 * normal(rng)).collect(),
        Shape::Noise => (0..ticks).map(|_| (0.6 * normal(rng)).exp()).collect(),
        Shape::Walk => {
            let step = 0.6 * (f64::from(how.tick_s) / 86_400.0).sqrt();
            let mut log = 0.0_f64;
            (0..ticks)
                .map(|_| {
                    log = (log + step * normal(rng)).clamp(-2.0, 2.0);
                    log.exp()
                })
                .collect()
        }
        Shape::Seasonal | Shape::Shifting | Shape::Flash => {
            let usable =
                series.iter().filter(|(step_s, values)| values.len() as u64 * u64::from(*step_s) >= 86_400);
            let usable: Vec<_> = usable.collect();
            let Some((step_s, values)) = usable.get(slot % usable.len().max(1)) else {
                return vec![1.0; ticks];
            };
            // Anomalies are cut: crowds are a shape of their own, and one spike a month must not size the shards.
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let most = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::MAX);
            let days = values.len() as u64 * u64::from(*step_s) / 86_400;
            let zone_s = 28_800 * (slot as u64 / usable.len() as u64 % 3);
            let at = |tick: usize| {
                let second = (tick as u64 * u64::from(how.tick_s) + zone_s) % (days * 86_400);
                let place = second as f64 / f64::from(*step_s);
                let (index, part) = (place as usize, place.fract());
                let next = values.get(index + 1).unwrap_or(&values[index]);
                (values[index] * (1.0 - part) + next * part).min(most)
            };
            (0..ticks).map(at).collect()
        }
    }
}

/// One slot after the other gets two and a half times as hot over six hours, for three days.
fn hot_spots(trace: &mut Trace, how: &Composition, rng: &mut ChaCha8Rng) {
    let day = 86_400 / how.tick_s as usize;
    let ticks = trace.ticks();
    for begin in (0..ticks).step_by((day * 3 / 2).max(1)) {
        let slot = rng.random_range(how.slots / 8..how.slots.max(9));
        for tick in begin..(begin + 3 * day).min(ticks) {
            let rise = ((tick - begin) as f64 / (day as f64 / 4.0)).min(1.0);
            trace.loads[tick * how.slots + slot] *= (1.0 + 1.5 * rise) as f32;
        }
    }
}

fn finish(
    mut trace: Trace,
    start: Vec<usize>,
    how: &Composition,
    links: Vec<Link>,
    rng: &mut ChaCha8Rng,
) -> Scene {
    // The 99.9th percentile: one flash must not make all shards big.
    let mut totals: Vec<f64> =
        (0..trace.ticks()).map(|tick| trace.at(tick).iter().map(|load| f64::from(*load)).sum()).collect();
    totals.sort_by(f64::total_cmp);
    let peak = totals.get(totals.len() * 999 / 1_000).copied().unwrap_or(1.0).max(1e-12);
    let scale = how.utilisation * CAPACITY * how.shards as f64 / peak;
    trace.loads.iter_mut().for_each(|load| *load = (f64::from(*load) * scale) as f32);
    let bytes = (0..trace.slots).map(|_| (how.slot_gib * GIB * (0.4 * normal(rng)).exp()) as u64).collect();
    Scene {
        trace,
        start,
        capacities: vec![CAPACITY; how.shards],
        bytes,
        links,
        incidents: how.incidents.clone(),
        moves: Moves { bytes_per_s: 32e6, fixed_s: 60.0, cost_per_mib: 5.0, concurrent: 2 },
        warm_up_ticks: how.warm_up_ticks,
    }
}

/// A scene whose loads are recorded accesses to keys: a key's slot is its hash, and `accesses_per_tick`
/// accesses make a tick. Of [`Composition`] the warm-up (at most half of the trace), utilisation, sizes and
/// incidents count.
pub fn by_keys(keys: &[u32], accesses_per_tick: usize, how: &Composition) -> Scene {
    let slot_of = |key: u32| (xxh3_64(&key.to_le_bytes()) % how.slots.max(1) as u64) as usize;
    let ticks = keys.len() / accesses_per_tick.max(1);
    let mut trace = Trace { tick_s: how.tick_s, slots: how.slots, loads: vec![0.0; how.slots * ticks] };
    for (tick, accesses) in keys.chunks_exact(accesses_per_tick.max(1)).enumerate() {
        accesses.iter().for_each(|key| trace.loads[tick * how.slots + slot_of(*key)] += 1.0);
    }
    let mut weights: HashMap<(usize, usize), f64> = HashMap::new();
    for window in keys.chunks(WINDOW) {
        let mut slots: Vec<usize> = window.iter().map(|key| slot_of(*key)).collect();
        slots.sort_unstable();
        slots.dedup();
        for (at, a) in slots.iter().enumerate() {
            slots[at + 1..].iter().for_each(|b| *weights.entry((*a, *b)).or_default() += 1.0);
        }
    }
    let span_s = ticks as f64 * f64::from(how.tick_s);
    let mut links: Vec<Link> = weights
        .into_iter()
        .map(|((a, b), times)| Link { a: a as i64, b: b as i64, weight: times / span_s.max(1.0) })
        .collect();
    links.sort_by(|x, y| y.weight.total_cmp(&x.weight).then((x.a, x.b).cmp(&(y.a, y.b))));
    links.truncate(MAX_LINKS);
    let how = Composition { warm_up_ticks: how.warm_up_ticks.min(ticks / 2), ..how.clone() };
    let start = (0..how.slots).map(|slot| slot % how.shards).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(how.seed);
    finish(trace, start, &how, links, &mut rng)
}
