//! Keys that are used together, gathered by lists of chosen keys.

use crate::Options;
use foreshard_core::gather::{
    GatherOptions, Gatherer, Layout as Present, Located, Room, SlotState, compensated,
};
use foreshard_core::graph::keys::key_hash;
use foreshard_core::graph::shards::{Shards, balance};
use foreshard_test::bars::bar_most;
use foreshard_test::{Error, Result};
use std::collections::HashMap;
use std::time::Instant;

/// What a row takes, with its indexes.
const ROW_BYTES: u64 = 200;
/// Most windows between two plans, and plans at least that a trace is long enough for.
const MOST_PERIOD: usize = 10_000;
const PLANS: usize = 40;
/// After the windows of so many plans half of what was seen is forgotten.
const HALF_LIFE_PLANS: usize = 20;
/// What a window on several shards costs more, cost units: `foreshard.cross_shard_cost`.
const CROSS_COST: f64 = 0.05;
/// What copying a byte costs: `foreshard.move_cost_per_mb`.
const BYTE_COST: f64 = 10.0 / 1_048_576.0;
/// Busiest shard over the mean from which on keys move to even loads out: `foreshard.imbalance_low`.
const MOST_UNEVEN: f64 = 1.04;
/// Room for lists: `foreshard.max_leaves` without the slots.
const LISTS: usize = 1024 - 16;
/// Windows in which a change must pay: as many as a server with 20 transactions/s has in an hour.
const PAYBACK: f64 = 72_000.0;

/// The slot of a key.
pub fn slot_of(key: u32, slots: usize) -> u32 {
    (key_hash(&key.to_le_bytes()) % slots as u64) as u32
}

/// Chosen keys and where they are.
pub type Layout = HashMap<u32, Located>;

/// What a placement did to windows.
struct Score {
    windows: u32,
    crossing: u32,
    loads: Vec<f64>,
}

impl Score {
    fn new(shards: usize) -> Self {
        Self { windows: 0, crossing: 0, loads: vec![0.0; shards] }
    }

    fn add(&mut self, window: &[u32], place: impl Fn(u32) -> u16) {
        self.windows += 1;
        let first = window.first().map(|key| place(*key));
        self.crossing += u32::from(window.iter().any(|key| Some(place(*key)) != first));
        window.iter().for_each(|key| self.loads[usize::from(place(*key))] += 1.0);
    }

    fn percent(&self) -> f64 {
        100.0 * f64::from(self.crossing) / f64::from(self.windows.max(1))
    }
}

/// A table whose keys are placed.
struct Table<'a> {
    options: &'a Options,
    /// Windows between two plans.
    period: usize,
    shards: Shards,
    gatherer: Gatherer<u32>,
    chosen: Layout,
    rows: Vec<u64>,
    /// Decayed accesses by slot.
    heats: Vec<f64>,
    /// Accesses by shard, as they came.
    served: Vec<f64>,
    moved_keys: u64,
    moved_bytes: u64,
    plans: u32,
    copies: u32,
}

impl Table<'_> {
    fn place(&self, key: u32) -> u16 {
        match self.chosen.get(&key) {
            Some(own) => own.shard,
            None => self.home(slot_of(key, self.options.slots)),
        }
    }

    fn home(&self, slot: u32) -> u16 {
        (slot as usize % self.options.shards) as u16
    }

    fn observe(&mut self, window: &[u32]) {
        self.gatherer.observe(window);
        window.iter().for_each(|key| self.heats[slot_of(*key, self.options.slots) as usize] += 1.0);
    }

    fn plan(&mut self) {
        let slots: Vec<SlotState> = (0..self.options.slots as u32)
            .map(|slot| SlotState {
                shard: self.home(slot),
                load: self.heats[slot as usize],
                bytes: self.rows[slot as usize] * ROW_BYTES,
                free: true,
            })
            .collect();
        let gather = GatherOptions {
            // A window's pairs weigh half as much as it has keys.
            worth: CROSS_COST * PAYBACK / self.gatherer.counted() * 2.0 / self.options.window as f64,
            byte_cost: BYTE_COST,
            most_uneven: MOST_UNEVEN,
            room: Room { lists: LISTS, ..Room::default() },
            ..GatherOptions::default()
        };
        let slot = |key: &u32| Some(slot_of(*key, self.options.slots));
        let shards = compensated(&self.shards, &self.served);
        let layout =
            Present { shards: &shards, slots: &slots, chosen: &self.chosen, variants: &HashMap::new() };
        let plan = self.gatherer.plan(&layout, slot, &gather);
        self.plans += u32::from(!plan.changes.is_empty());
        let since = Some(self.gatherer.windows());
        for change in plan.changes {
            self.copies += 1;
            self.moved_bytes += change.bytes;
            self.moved_keys += change.keys.len() as u64;
            for (key, to) in change.keys {
                match to {
                    Some(shard) => {
                        let since = self.chosen.get(&key).map_or(since, |own| own.since);
                        let place = Located { slot: change.slot, shard, alone: false, since };
                        self.chosen.insert(key, place);
                    }
                    None => {
                        self.chosen.remove(&key);
                    }
                }
            }
        }
        // Heat of the past, as the gatherer has it.
        let kept = (-1.0 / HALF_LIFE_PLANS as f64).exp2();
        self.heats.iter_mut().for_each(|heat| *heat *= kept);
    }

    fn lists(&self) -> (usize, usize) {
        let mut lists: HashMap<(u32, u16), usize> = HashMap::new();
        self.chosen.values().for_each(|own| *lists.entry((own.slot, own.shard)).or_default() += 1);
        let room = Room::default();
        (lists.values().map(|keys| room.lists_of(*keys)).sum(), room.keys)
    }
}

/// Whether the bars hold, and the last layout.
pub fn bench(options: &Options, accesses: &[u32]) -> Result<(bool, Layout)> {
    let shards = Shards::new(&vec![1.0; options.shards])
        .map_err(|error| Error::new(error.to_string(), "Name fewer shards."))?;
    let keys = accesses.iter().max().map_or(0, |key| *key + 1);
    let mut rows = vec![0; options.slots];
    (0..keys).for_each(|key| rows[slot_of(key, options.slots) as usize] += 1);
    let windows = accesses.len().div_ceil(options.window);
    let period = options.period.unwrap_or((windows / PLANS).clamp(1, MOST_PERIOD));
    let half_life = (HALF_LIFE_PLANS * period) as f64;
    let mut table = Table {
        options,
        period,
        shards: shards.clone(),
        gatherer: Gatherer::new(1 << 17, half_life, half_life),
        chosen: Layout::new(),
        rows,
        heats: vec![0.0; options.slots],
        served: vec![0.0; options.shards],
        moved_keys: 0,
        moved_bytes: 0,
        plans: 0,
        copies: 0,
    };
    let (first, second) = accesses.split_at(accesses.len() / 2);
    first.chunks(options.window).for_each(|window| table.observe(window));
    let begun = Instant::now();
    table.plan();
    let took = begun.elapsed().as_secs_f64();
    let start = table.chosen.clone();
    let (placed_keys, placed_bytes) = (table.moved_keys, table.moved_bytes);
    let mut scores = [Score::new(options.shards), Score::new(options.shards), Score::new(options.shards)];
    for (at, window) in second.chunks(options.window).enumerate() {
        let home = |key: u32| (slot_of(key, options.slots) as usize % options.shards) as u16;
        scores[0].add(window, home);
        scores[1].add(window, |key| start.get(&key).map_or_else(|| home(key), |own| own.shard));
        scores[2].add(window, |key| table.place(key));
        for key in window {
            let shard = usize::from(table.place(*key));
            table.served[shard] += 1.0;
        }
        table.observe(window);
        if (at + 1) % table.period == 0 {
            table.plan();
        }
    }
    println!(
        "gather: {} slots, {} shards, windows of {}; a plan every {period} of them, the first in {took:.1} s",
        options.slots, options.shards, options.window
    );
    for (what, score) in ["hash", "keys placed once", "keys placed, following"].iter().zip(&scores) {
        println!(
            "{what:<24} windows on > 1 shard {:5.1} %, max/mean load {:.3}",
            score.percent(),
            balance(&score.loads, &shards)
        );
    }
    let bytes: u64 = table.rows.iter().map(|rows| rows * ROW_BYTES).sum();
    let (lists, longest) = table.lists();
    println!(
        "placed at first: {placed_keys} keys, {:.1} MB copied; then {} keys and {:.1} MB in {} plans, {} copies of slots ({:.1} MB in all slots)",
        placed_bytes as f64 / 1e6,
        table.moved_keys - placed_keys,
        (table.moved_bytes - placed_bytes) as f64 / 1e6,
        table.plans.saturating_sub(1),
        table.copies,
        bytes as f64 / 1e6
    );
    println!("{} chosen keys in {lists} lists of at most {longest}", table.chosen.len());
    let fine = bar_most("windows on more than one shard, %", scores[2].percent(), 40.0);
    Ok((bar_most("max/mean load", balance(&scores[2].loads, &shards), 1.10) && fine, table.chosen))
}
