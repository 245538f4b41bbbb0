//! A table of few slots whose load is uneven, brought to balance by splits, isolations, merges and moves.

use foreshard_core::division::{Candidate, Keys, Thresholds, Verdict, judge, may_merge};
use foreshard_core::graph::keys::key_hash;
use foreshard_core::placement::{ANY, Hold, PlanOptions, Segment, Shard, plan_linked};
use foreshard_test::bars::bar_most;
use foreshard_test::{Error, Result};

/// Rounds over the whole trace.
const ROUNDS: usize = 400;
/// Slots to begin with, of every shard.
const SLOTS_PER_SHARD: usize = 4;
/// Rounds after which an access counts half.
const HALF_LIFE: f64 = 16.0;

/// Divisions in one round.
const PER_ROUND: usize = 8;
/// Rounds for which what was changed is left alone.
const REST: usize = 2;
/// The most slots of a group.
const MAX_SLOTS: usize = 4_096;

/// What is placed.
#[derive(Clone, Debug)]
struct Piece {
    modulus: u64,
    remainder: u64,
    /// By itself.
    key: Option<u32>,
    shard: i32,
    load: f64,
    /// Keys with their loads, of a slot.
    keys: Vec<(u32, f64)>,
    rests_until: usize,
}

struct Cluster {
    pieces: Vec<Piece>,
    hashes: Vec<u64>,
    heats: Vec<f64>,
    /// Accesses by shard, as they came.
    served: Vec<f64>,
    shards: usize,
    done: [u32; 4],
}

const SPLIT: usize = 0;
const ISOLATED: usize = 1;
const MERGED: usize = 2;
const MOVED: usize = 3;

impl Cluster {
    fn new(shards: usize, keys: usize) -> Self {
        let piece = |slot: usize| Piece {
            modulus: (shards * SLOTS_PER_SHARD) as u64,
            remainder: slot as u64,
            key: None,
            shard: (slot % shards) as i32,
            load: 0.0,
            keys: Vec::new(),
            rests_until: 0,
        };
        Self {
            pieces: (0..shards * SLOTS_PER_SHARD).map(piece).collect(),
            hashes: (0..keys as u32).map(|key| key_hash(&key.to_le_bytes())).collect(),
            heats: vec![0.0; keys],
            served: vec![0.0; shards],
            shards,
            done: [0; 4],
        }
    }

    /// The piece of every key.
    fn places(&self) -> Vec<usize> {
        let mut alone = vec![usize::MAX; self.hashes.len()];
        let mut by_bound: std::collections::HashMap<(u64, u64), usize> = std::collections::HashMap::new();
        for (at, piece) in self.pieces.iter().enumerate() {
            match piece.key {
                Some(key) => alone[key as usize] = at,
                None => {
                    by_bound.insert((piece.modulus, piece.remainder), at);
                }
            }
        }
        let mut moduli: Vec<u64> = by_bound.keys().map(|(modulus, _)| *modulus).collect();
        moduli.sort_unstable();
        moduli.dedup();
        for (key, hash) in self.hashes.iter().enumerate() {
            if alone[key] == usize::MAX {
                let found = moduli.iter().find_map(|modulus| by_bound.get(&(*modulus, hash % modulus)));
                alone[key] = found.copied().unwrap_or(0);
            }
        }
        alone
    }

    fn weigh(&mut self) {
        let places = self.places();
        for piece in &mut self.pieces {
            piece.load = 0.0;
            piece.keys.clear();
        }
        for (key, heat) in self.heats.iter().enumerate().filter(|(_, heat)| **heat > 0.0) {
            let piece = &mut self.pieces[places[key]];
            piece.load += heat;
            piece.keys.push((key as u32, *heat));
        }
    }

    fn has_guests(&self, piece: &Piece) -> bool {
        self.pieces.iter().any(|own| {
            own.key.is_some_and(|key| self.hashes[key as usize] % piece.modulus == piece.remainder)
        })
    }

    /// Splits and isolates what is too hot, merges what is cold.
    fn divide(&mut self, round: usize, thresholds: &Thresholds) {
        let mean = self.pieces.iter().map(|piece| piece.load).sum::<f64>() / self.shards as f64;
        let slots: Vec<usize> = (0..self.pieces.len()).filter(|at| self.pieces[*at].key.is_none()).collect();
        let group_mean =
            slots.iter().map(|at| self.pieces[*at].load / mean).sum::<f64>() / slots.len() as f64;
        let mut left = PER_ROUND;
        for at in slots {
            let piece = self.pieces[at].clone();
            let top = piece.keys.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0));
            let second: f64 = piece
                .keys
                .iter()
                .filter(|(key, _)| self.hashes[*key as usize] % (piece.modulus * 2) != piece.remainder)
                .map(|(_, load)| load)
                .sum();
            let keys = Keys {
                sampled: piece.keys.len() as u32,
                top_share: top.1 / piece.load,
                second_share: second / piece.load,
                front_share: None,
            };
            let present = piece.load / mean;
            let candidate = Candidate {
                present,
                curve: &[present],
                group_mean,
                keys: Some(keys),
                free: piece.rests_until <= round,
                divisible: self.pieces.len() < MAX_SLOTS,
                chosen: self.has_guests(&piece),
                isolable: self.pieces.len() < MAX_SLOTS,
            };
            match judge(&candidate, &[mean], thresholds) {
                Verdict::Split if left > 0 => {
                    let second = Piece {
                        modulus: piece.modulus * 2,
                        remainder: piece.remainder + piece.modulus,
                        rests_until: round + REST,
                        ..piece.clone()
                    };
                    self.pieces[at].modulus *= 2;
                    self.pieces.push(second);
                    self.done[SPLIT] += 1;
                }
                Verdict::Isolate { .. } if left > 0 => {
                    self.pieces.push(Piece { key: Some(top.0), rests_until: round + REST, ..piece.clone() });
                    self.done[ISOLATED] += 1;
                }
                _ => continue,
            }
            self.pieces[at].rests_until = round + REST;
            left -= 1;
        }
        self.weigh();
        self.merge(round, mean, thresholds);
    }

    fn merge(&mut self, round: usize, mean: f64, thresholds: &Thresholds) {
        let mut gone: Vec<usize> = Vec::new();
        for at in 0..self.pieces.len() {
            let piece = self.pieces[at].clone();
            let other = match piece.key {
                Some(key) => self.pieces.iter().position(|own| {
                    own.key.is_none() && self.hashes[key as usize] % own.modulus == own.remainder
                }),
                None if piece.modulus > (self.shards * SLOTS_PER_SHARD) as u64
                    && !self.has_guests(&piece) =>
                {
                    self.pieces.iter().position(|own| {
                        own.key.is_none()
                            && own.modulus == piece.modulus
                            && own.remainder + piece.modulus / 2 == piece.remainder
                            && !self.has_guests(own)
                    })
                }
                None => None,
            };
            let Some(other) = other.filter(|other| !gone.contains(other) && !gone.contains(&at)) else {
                continue;
            };
            let (a, b) = (piece.load / mean, self.pieces[other].load / mean);
            let free = piece.rests_until <= round && self.pieces[other].rests_until <= round;
            if free && may_merge([a, b], [&[a], &[b]], thresholds) {
                if piece.key.is_none() {
                    self.pieces[other].modulus /= 2;
                }
                self.pieces[other].rests_until = round + REST;
                gone.push(at);
                self.done[MERGED] += 1;
            }
        }
        gone.sort_unstable();
        gone.into_iter().rev().for_each(|at| drop(self.pieces.remove(at)));
        self.weigh();
    }

    fn move_pieces(&mut self, round: usize) -> Result<()> {
        let mean = self.served.iter().sum::<f64>() / self.shards as f64;
        let surplus = |id: i32| {
            if mean > 0.0 { self.served[id as usize] / mean - 1.0 } else { 0.0 }
        };
        let places: Vec<Shard> = (0..self.shards as i32)
            .map(|id| Shard {
                id,
                capacity: 1.0 - surplus(id).clamp(-0.1, 0.1),
                draining: false,
                accepts: ANY,
                round_trip_ms: 0.0,
            })
            .collect();
        let segment = |(at, piece): (usize, &Piece)| Segment {
            id: at as i64,
            shard: piece.shard,
            bytes: 1,
            curve: vec![piece.load],
            futures: Vec::new(),
            hold: if piece.rests_until > round { Hold::Cooldown } else { Hold::Free },
            hot_buckets: 3,
            class: ANY,
            wait_cost: 0.0,
        };
        let segments: Vec<Segment> = self.pieces.iter().enumerate().map(segment).collect();
        // What a DBA sets who wants it even: foreshard.imbalance_high and imbalance_low.
        let options = PlanOptions {
            imbalance_high: 0.03,
            imbalance_low: 0.01,
            min_benefit_fraction: 0.005,
            max_steps: 256,
            ..PlanOptions::default()
        };
        let plan = plan_linked(&places, &segments, &[], &options)
            .map_err(|error| Error::new(error.to_string(), "Name fewer shards."))?;
        for step in plan.steps {
            let piece = &mut self.pieces[step.segment as usize];
            (piece.shard, piece.rests_until) = (step.to, round + REST);
            self.done[MOVED] += 1;
        }
        Ok(())
    }
}

/// Whether the bars hold.
pub fn bench(shards: usize, accesses: &[u32], keys: usize) -> Result<bool> {
    let mut cluster = Cluster::new(shards, keys);
    let thresholds = Thresholds::new(0.4, 0.1);
    let (mut counts, mut unmoved) = (vec![0.0_f64; keys], vec![0.0; shards]);
    let mut most = 0;
    let kept = (-1.0 / HALF_LIFE).exp2();
    let size = accesses.len().div_ceil(ROUNDS).max(1);
    for (round, chunk) in accesses.chunks(size).enumerate() {
        let places = cluster.places();
        for key in chunk.iter().map(|key| *key as usize) {
            cluster.heats[key] += 1.0;
            if round >= ROUNDS / 2 {
                cluster.served[cluster.pieces[places[key]].shard as usize] += 1.0;
                counts[key] += 1.0;
                unmoved[(cluster.hashes[key] % shards as u64) as usize] += 1.0;
            }
        }
        cluster.weigh();
        cluster.divide(round, &thresholds);
        cluster.move_pieces(round)?;
        most = most.max(cluster.pieces.len());
        cluster.heats.iter_mut().for_each(|heat| *heat *= kept);
    }
    let served = &cluster.served;
    let mean = served.iter().sum::<f64>() / shards as f64;
    let largest = |loads: &[f64]| loads.iter().copied().fold(0.0, f64::max) / mean;
    // No shard can have less than the busiest key.
    let best = largest(&counts).max(1.0);
    let [split, isolated, merged, moved] = cluster.done;
    println!(
        "balance: {shards} shards; {split} splits, {isolated} isolations, {merged} ways back, {moved} moves; at most {most} slots, {} at the end",
        cluster.pieces.len()
    );
    println!(
        "max/mean load: {:.3} untouched, {:.3} balanced, best possible {best:.3}",
        largest(&unmoved),
        largest(served)
    );
    Ok(bar_most("max/mean load over the best possible", largest(served) / best, 1.05))
}
