//! The cluster, tick by tick, and what it comes to.

use super::moving::Moving;
use super::{Incident, Order, Policy, Scene, ShardState, View, thrash};
use crate::placement::{Realised, outcome};

/// Ticks over which a move must have paid.
const PAYBACK_S: u32 = 86_400;
const MIB: f64 = 1_048_576.0;

/// What a policy came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Its name.
    pub policy: String,
    /// Minutes of shards over their capacity, summed over shards.
    pub overload_min: f64,
    /// Load beyond capacity, cost units.
    pub excess: f64,
    /// Mean over ticks of the busiest shard's utilisation / the mean utilisation.
    pub peak_to_mean: f64,
    /// Bytes of finished moves.
    pub bytes_moved: u64,
    /// Finished moves.
    pub moves: usize,
    /// Moves whose day after their end would have been no worse without them.
    pub unpaid: usize,
    /// The worst shard's thrashing; see [`thrash`].
    pub thrash: f64,
}

struct Cluster<'a> {
    scene: &'a Scene,
    place: Vec<usize>,
    moving: Vec<Moving>,
    moved_at: Vec<Option<usize>>,
    shards: Vec<ShardState>,
    /// Mean load of each slot over the whole trace.
    weights: Vec<f64>,
    shares: Vec<Vec<f64>>,
    report: Report,
    ratios: f64,
    scored: usize,
}

/// Lets a policy rule a cluster to the end of its trace.
pub fn run(scene: &Scene, policy: &mut dyn Policy) -> Report {
    let ticks = scene.trace.ticks();
    let weights = (0..scene.trace.slots).map(|slot| scene.trace.mean(slot, 0..ticks)).collect();
    let shards =
        scene.capacities.iter().map(|c| ShardState { capacity: *c, draining: false, lost: false }).collect();
    let mut cluster = Cluster {
        scene,
        place: scene.start.clone(),
        moving: Vec::new(),
        moved_at: vec![None; scene.trace.slots],
        shards,
        weights,
        shares: vec![Vec::new(); scene.capacities.len()],
        report: Report {
            policy: policy.name().to_string(),
            overload_min: 0.0,
            excess: 0.0,
            peak_to_mean: 0.0,
            bytes_moved: 0,
            moves: 0,
            unpaid: 0,
            thrash: 0.0,
        },
        ratios: 0.0,
        scored: 0,
    };
    for tick in 0..ticks {
        cluster.incidents(tick);
        cluster.serve(tick);
        let moving: Vec<Option<usize>> = cluster.destinations();
        let view = View {
            scene,
            now: tick + 1,
            place: &cluster.place,
            moving: &moving,
            moved_at: &cluster.moved_at,
            shards: &cluster.shards,
            acts: tick + 1 >= scene.warm_up_ticks,
        };
        let orders = policy.decide(&view);
        if view.acts {
            cluster.begin(&orders);
        }
    }
    cluster.finish()
}

impl Cluster<'_> {
    fn destinations(&self) -> Vec<Option<usize>> {
        let mut to = vec![None; self.place.len()];
        self.moving.iter().for_each(|moving| to[moving.order.slot] = Some(moving.order.to));
        to
    }

    fn incidents(&mut self, tick: usize) {
        for incident in &self.scene.incidents {
            match *incident {
                Incident::Drain { tick: at, shard } if at == tick => self.shards[shard].draining = true,
                Incident::Loss { tick: at, shard } if at == tick => self.lose(shard),
                _ => {}
            }
        }
    }

    /// The slots of a lost shard go to the others, in turn.
    fn lose(&mut self, shard: usize) {
        self.shards[shard].lost = true;
        self.moving.retain(|m| m.order.to != shard && self.place[m.order.slot] != shard);
        let left: Vec<usize> = (0..self.shards.len()).filter(|shard| !self.shards[*shard].lost).collect();
        let homeless = (0..self.place.len()).filter(|slot| self.place[*slot] == shard).collect::<Vec<_>>();
        for (slot, to) in homeless.into_iter().zip(left.iter().cycle()) {
            self.place[slot] = *to;
        }
    }

    fn slowness(&self, tick: usize) -> f64 {
        let factors = self.scene.incidents.iter().filter_map(|incident| match *incident {
            Incident::SlowCopies { from, until, factor } if (from..until).contains(&tick) => Some(factor),
            _ => None,
        });
        factors.fold(1.0, f64::max)
    }

    /// Moves go on, and every shard serves its slots.
    fn serve(&mut self, tick: usize) {
        let tick_s = f64::from(self.scene.trace.tick_s);
        let slowness = self.slowness(tick);
        let mut loads = vec![0.0; self.shards.len()];
        let mut arrived = Vec::new();
        let place = &mut self.place;
        let moves = &self.scene.moves;
        self.moving.retain_mut(|moving| {
            let Order { slot, to } = moving.order;
            let progress = moving.work(tick_s, moves, slowness);
            loads[place[slot]] += progress.cost / tick_s;
            loads[to] += progress.cost / tick_s;
            if progress.swapped {
                arrived.push((slot, place[slot], to));
                place[slot] = to;
            }
            !progress.over
        });
        for (slot, from, to) in arrived {
            self.moved_at[slot] = Some(tick);
            self.report.moves += 1;
            self.report.bytes_moved += self.scene.bytes[slot];
            self.report.unpaid += usize::from(!self.pays(slot, from, to, tick));
        }
        for (slot, load) in self.scene.trace.at(tick).iter().enumerate() {
            loads[self.place[slot]] += f64::from(*load);
        }
        if tick >= self.scene.warm_up_ticks {
            self.score(&loads, tick_s);
        }
    }

    fn score(&mut self, loads: &[f64], tick_s: f64) {
        let (mut worst, mut load, mut capacity) = (0.0_f64, 0.0, 0.0);
        for (shard, own) in self.shards.iter().zip(loads).filter(|(shard, _)| !shard.lost) {
            if *own > shard.capacity {
                self.report.overload_min += tick_s / 60.0;
                self.report.excess += (own - shard.capacity) * tick_s;
            }
            worst = worst.max(own / shard.capacity);
            load += own;
            capacity += shard.capacity;
        }
        if load > 0.0 {
            self.ratios += worst * capacity / load;
            self.scored += 1;
        }
        // By what the slots have on average: the share moves when slots do, not when load does.
        let mut shares = vec![0.0; self.shards.len()];
        for (slot, shard) in self.place.iter().enumerate() {
            shares[*shard] += self.weights[slot];
        }
        for (shares, share) in self.shares.iter_mut().zip(shares) {
            shares.push(share);
        }
    }

    /// Whether the day after a move is better with it.
    fn pays(&self, slot: usize, from: usize, to: usize, tick: usize) -> bool {
        let trace = &self.scene.trace;
        let until = (tick + (PAYBACK_S / trace.tick_s) as usize).min(trace.ticks());
        let sum = |wanted: &dyn Fn(usize) -> bool| -> Vec<f64> {
            let on = |tick: usize| trace.at(tick).iter().enumerate().filter(|(slot, _)| wanted(*slot));
            (tick..until).map(|tick| on(tick).map(|(_, load)| f64::from(*load)).sum()).collect()
        };
        let active = self.shards.iter().filter(|shard| !shard.lost && !shard.draining);
        let cost = self.scene.bytes[slot] as f64 / MIB * self.scene.moves.cost_per_mib;
        let drains = self.shards[from].draining || self.shards[from].lost;
        drains
            || outcome(&Realised {
                moved: sum(&|other| other == slot),
                stay: sum(&|other| self.place[other] == from),
                there: sum(&|other| other != slot && self.place[other] == to),
                total: sum(&|_| true),
                from_capacity: self.shards[from].capacity,
                to_capacity: self.shards[to].capacity,
                capacity: active.map(|shard| shard.capacity).sum(),
                drains,
                joined: 0.0,
                least_gain: cost / f64::from(PAYBACK_S),
            })
            .paid
    }

    fn begin(&mut self, orders: &[Order]) {
        for order in orders {
            let busy =
                self.moving.iter().any(|moving| moving.order.slot == order.slot && moving.is_under_way());
            let fits = self.moving.len() < self.scene.moves.concurrent;
            let sane = order.slot < self.place.len()
                && self.shards.get(order.to).is_some_and(|shard| !shard.lost && !shard.draining)
                && self.place[order.slot] != order.to;
            if sane && fits && !busy {
                self.moving.push(Moving::new(*order, self.scene.bytes[order.slot]));
            }
        }
    }

    fn finish(mut self) -> Report {
        self.report.peak_to_mean = self.ratios / self.scored.max(1) as f64;
        self.report.thrash = self.shares.iter().map(|shares| thrash(shares)).fold(0.0, f64::max);
        self.report
    }
}
