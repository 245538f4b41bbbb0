//! What others would do: nothing, react to overload, or move clumps.

use super::{Order, Policy, View};

/// Ticks over which load is averaged.
const MONITORED: usize = 3;
/// A shard above this utilisation is overloaded.
const HIGH: f64 = 0.85;
/// A shard may be filled up to the mean utilisation times this.
const FULL: f64 = 1.10;

/// Never moves anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl Policy for Never {
    fn name(&self) -> &str {
        "never move"
    }

    fn decide(&mut self, _view: &View) -> Vec<Order> {
        Vec::new()
    }
}

/// Who reacts: shards that have been above the threshold in three ticks in a row, hottest first.
#[derive(Clone, Debug, Default)]
struct Monitor {
    above: Vec<u32>,
}

impl Monitor {
    /// (Load of each shard, shards to relieve).
    fn look(&mut self, view: &View) -> (Vec<f64>, Vec<usize>) {
        let loads = view.recent_shards(MONITORED);
        self.above.resize(loads.len(), 0);
        for (shard, above) in self.above.iter_mut().enumerate() {
            let state = view.shards[shard];
            let high = loads[shard] > HIGH * state.capacity || state.draining && loads[shard] > 0.0;
            *above = if high { *above + 1 } else { 0 };
        }
        let mut hot: Vec<usize> = (0..loads.len()).filter(|shard| self.above[*shard] >= 3).collect();
        let utilisation = |shard: &usize| loads[*shard] / view.shards[*shard].capacity;
        hot.sort_by(|a, b| utilisation(b).total_cmp(&utilisation(a)).then(a.cmp(b)));
        (loads, hot)
    }
}

fn mean_utilisation(view: &View, loads: &[f64]) -> f64 {
    let up = view.shards.iter().filter(|shard| !shard.lost && !shard.draining);
    loads.iter().sum::<f64>() / up.map(|shard| shard.capacity).sum::<f64>().max(f64::MIN_POSITIVE)
}

fn slots_of(view: &View, shard: usize) -> Vec<(usize, f64)> {
    let here =
        (0..view.place.len()).filter(|slot| view.place[*slot] == shard && view.moving[*slot].is_none());
    let mut slots: Vec<(usize, f64)> = here.map(|slot| (slot, view.recent(slot, MONITORED))).collect();
    slots.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    slots
}

/// E-Store's greedy reaction (Taft et al., VLDB 2014): when a shard is above a threshold, its hottest slots go
/// to the least loaded shard, as long as that stays near the mean.
#[derive(Clone, Debug, Default)]
pub struct Reactive {
    monitor: Monitor,
}

impl Policy for Reactive {
    fn name(&self) -> &str {
        "reactive"
    }

    fn decide(&mut self, view: &View) -> Vec<Order> {
        let (mut loads, hot) = self.monitor.look(view);
        let mean = mean_utilisation(view, &loads);
        let mut orders = Vec::new();
        for from in hot {
            for (slot, load) in slots_of(view, from) {
                let draining = view.shards[from].draining;
                if orders.len() >= view.free_moves()
                    || !draining && loads[from] <= mean * FULL * view.shards[from].capacity
                {
                    break;
                }
                let used = |shard: &usize| loads[*shard] / view.shards[*shard].capacity;
                let targets = (0..loads.len()).filter(|to| *to != from && view.is_target(*to));
                let Some(to) = targets.min_by(|a, b| used(a).total_cmp(&used(b)).then(a.cmp(b))) else {
                    continue;
                };
                let after = (loads[to] + load) / view.shards[to].capacity;
                if after <= mean * FULL || draining && after <= 1.0 {
                    loads[from] -= load;
                    loads[to] += load;
                    orders.push(Order { slot, to });
                }
            }
        }
        orders
    }
}

/// Clay (Serafini et al., VLDB 2016): the hottest slot of an overloaded shard and, while that still fits, those
/// it is most used with, go together to the shard they are used with most, or to the least loaded one.
#[derive(Clone, Debug, Default)]
pub struct Clay {
    monitor: Monitor,
}

/// The most slots of a clump.
const CLUMP: usize = 8;

impl Clay {
    /// The linked slot with the highest weight that is not in the clump yet.
    fn grow(view: &View, clump: &[usize], from: usize) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for link in &view.scene.links {
            let (Ok(a), Ok(b)) = (usize::try_from(link.a), usize::try_from(link.b)) else { continue };
            for (inside, outside) in [(a, b), (b, a)] {
                let joins = clump.contains(&inside)
                    && !clump.contains(&outside)
                    && view.place.get(outside) == Some(&from)
                    && view.moving[outside].is_none();
                if joins && best.is_none_or(|(weight, _)| link.weight > weight) {
                    best = Some((link.weight, outside));
                }
            }
        }
        best.map(|(_, slot)| slot)
    }

    /// Weight of the links of a clump to each shard.
    fn pull(view: &View, clump: &[usize]) -> Vec<f64> {
        let mut pull = vec![0.0; view.shards.len()];
        for link in &view.scene.links {
            let (Ok(a), Ok(b)) = (usize::try_from(link.a), usize::try_from(link.b)) else { continue };
            for (inside, outside) in [(a, b), (b, a)] {
                if clump.contains(&inside)
                    && !clump.contains(&outside)
                    && let Some(shard) = view.place.get(outside)
                {
                    pull[*shard] += link.weight;
                }
            }
        }
        pull
    }
}

impl Policy for Clay {
    fn name(&self) -> &str {
        "clay"
    }

    fn decide(&mut self, view: &View) -> Vec<Order> {
        let (loads, hot) = self.monitor.look(view);
        let mean = mean_utilisation(view, &loads);
        let Some(from) = hot.first().copied().filter(|_| view.free_moves() > 0) else { return Vec::new() };
        let slots = slots_of(view, from);
        let load_of =
            |slot: usize| slots.iter().find(|(other, _)| *other == slot).map_or(0.0, |(_, load)| *load);
        let Some((hottest, _)) = slots.first() else { return Vec::new() };
        let mut clump = vec![*hottest];
        let mut best: Option<(Vec<usize>, usize)> = None;
        loop {
            let load: f64 = clump.iter().map(|slot| load_of(*slot)).sum();
            let pull = Self::pull(view, &clump);
            let fits = |to: &usize| {
                *to != from
                    && view.is_target(*to)
                    && (loads[*to] + load) / view.shards[*to].capacity <= mean * FULL
            };
            let to = (0..loads.len()).filter(fits).max_by(|a, b| {
                let used = |shard: &usize| loads[*shard] / view.shards[*shard].capacity;
                pull[*a].total_cmp(&pull[*b]).then(used(b).total_cmp(&used(a))).then(b.cmp(a))
            });
            let Some(to) = to else { break };
            best = Some((clump.clone(), to));
            if clump.len() >= CLUMP || loads[from] - load <= mean * FULL * view.shards[from].capacity {
                break;
            }
            match Self::grow(view, &clump, from) {
                Some(slot) => clump.push(slot),
                None => break,
            }
        }
        // The hottest does not fit anywhere: the hottest that does.
        let alone = || {
            slots.iter().find_map(|(slot, load)| {
                let fits = |to: &usize| {
                    *to != from
                        && view.is_target(*to)
                        && (loads[*to] + load) / view.shards[*to].capacity <= mean * FULL
                };
                (0..loads.len()).find(fits).map(|to| (vec![*slot], to))
            })
        };
        let Some((clump, to)) = best.or_else(alone) else { return Vec::new() };
        clump.into_iter().map(|slot| Order { slot, to }).collect()
    }
}
