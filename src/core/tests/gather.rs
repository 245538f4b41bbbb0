//! Keys that are used together come to live together; limits hold; nothing flaps.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::gather::{GatherOptions, Gatherer, Gathering, Located, Room, SlotState};
use foreshard_core::graph::keys::key_hash;
use foreshard_core::graph::shards::Shards;
use proptest::prelude::*;
use std::collections::HashMap;

const SLOTS: u32 = 12;
const SHARDS: u16 = 4;

/// xorshift64*, enough for variety.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }
}

fn slot_of(key: &u64) -> u32 {
    (key_hash(&key.to_le_bytes()) % u64::from(SLOTS)) as u32
}

/// A table whose keys are where the plans put them.
struct Table {
    gatherer: Gatherer<u64>,
    chosen: HashMap<u64, Located>,
    options: GatherOptions,
    slots: Vec<SlotState>,
    copies: usize,
    changes_of: HashMap<u64, u32>,
}

impl Table {
    fn new(options: GatherOptions) -> Self {
        let slot = |slot: u32| SlotState {
            shard: (slot % u32::from(SHARDS)) as u16,
            load: 0.0,
            bytes: 1_000,
            free: true,
        };
        Self {
            gatherer: Gatherer::new(4_096, 3_000.0, 3_000.0),
            chosen: HashMap::new(),
            options,
            slots: (0..SLOTS).map(slot).collect(),
            copies: 0,
            changes_of: HashMap::new(),
        }
    }

    fn plan(&self) -> Gathering<u64> {
        let shards = Shards::new(&vec![1.0; usize::from(SHARDS)]).unwrap();
        self.gatherer.plan(&shards, &self.slots, &self.chosen, |key| Some(slot_of(key)), &self.options)
    }

    fn shard(&self, key: u64) -> u16 {
        self.chosen.get(&key).map_or(self.slots[slot_of(&key) as usize].shard, |own| own.shard)
    }

    fn follow(&mut self, plan: &Gathering<u64>) {
        for change in &plan.changes {
            self.copies += 1;
            for (key, to) in &change.keys {
                *self.changes_of.entry(*key).or_default() += 1;
                match to {
                    Some(shard) => {
                        self.chosen.insert(*key, Located { slot: change.slot, shard: *shard, alone: false });
                    }
                    None => {
                        self.chosen.remove(key);
                    }
                }
            }
        }
    }

    fn crossing(&self, windows: &[Vec<u64>]) -> f64 {
        let crosses = |window: &&Vec<u64>| window.iter().any(|key| self.shard(*key) != self.shard(window[0]));
        windows.iter().filter(crosses).count() as f64 / windows.len() as f64
    }
}

/// Windows of members of one of so many groups of six keys, now and then with a stranger.
fn windows(random: &mut Random, groups: u64, stride: u64, count: usize) -> Vec<Vec<u64>> {
    let window = |random: &mut Random| {
        let group = random.below(groups);
        let mut window: Vec<u64> =
            (0..4).map(|_| (group * 6 + random.below(6)) * stride % (groups * 6)).collect();
        if random.below(15) == 0 {
            window.push(random.below(groups * 6));
        }
        window
    };
    (0..count).map(|_| window(random)).collect()
}

#[test]
fn keys_used_together_come_together_once() {
    let mut random = Random(7);
    let mut table = Table::new(GatherOptions::default());
    let seen = windows(&mut random, 100, 1, 4_000);
    seen.iter().for_each(|window| table.gatherer.observe(window));
    assert!(table.crossing(&seen) > 0.9);
    let plan = table.plan();
    assert!(
        plan.crossing.1 < 0.2 * plan.crossing.0 && plan.balance.1 < 1.1,
        "{:?} {:?}",
        plan.crossing,
        plan.balance
    );
    table.follow(&plan);
    let (first, at_first) = (table.copies, table.crossing(&seen));
    assert!(at_first < 0.25, "{at_first}");
    // The same goes on: hardly anything is left to gain.
    for _ in 0..30 {
        windows(&mut random, 100, 1, 500).iter().for_each(|window| table.gatherer.observe(window));
        let plan = table.plan();
        table.follow(&plan);
    }
    assert!(table.copies <= first + SLOTS as usize, "{} copies after {first}", table.copies);
    assert!(table.crossing(&seen) <= at_first + 0.05);
}

#[test]
fn what_changes_back_and_forth_is_not_followed() {
    let mut random = Random(9);
    let options = GatherOptions { worth: 1.0, byte_cost: 0.02, ..GatherOptions::default() };
    let mut table = Table::new(options);
    for round in 0..60 {
        // Who belongs together is another thing in every other round.
        let stride = if round % 2 == 0 { 1 } else { 37 };
        windows(&mut random, 100, stride, 300).iter().for_each(|window| table.gatherer.observe(window));
        let plan = table.plan();
        table.follow(&plan);
    }
    let most = table.changes_of.values().copied().max().unwrap_or(0);
    assert!(table.copies <= 4 * SLOTS as usize && most <= 6, "{} copies, {most} of one key", table.copies);
}

#[test]
fn cooled_keys_go_home_and_others_stay() {
    let mut random = Random(3);
    let mut table = Table::new(GatherOptions::default());
    windows(&mut random, 60, 1, 3_000).iter().for_each(|window| table.gatherer.observe(window));
    table.chosen.insert(2_000, Located { slot: slot_of(&2_000), shard: 1, alone: true });
    table.follow(&table.plan());
    let chosen = table.chosen.len();
    assert!(chosen > 100, "{chosen}");
    // Others are used for a long time: what was known of those is next to nothing.
    for _ in 0..20 {
        (0..3_000).for_each(|_| table.gatherer.observe(&[5_000 + random.below(50), 5_000]));
        let plan = table.plan();
        table.follow(&plan);
    }
    let left = table.chosen.keys().filter(|key| **key < 360).count();
    assert!(left == 0, "{left} of {chosen} still chosen");
    assert!(table.chosen.contains_key(&2_000), "what is alone is not touched");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn limits_hold_and_held_slots_stay(
        seed in 1_u64..1_000_000,
        lists in 0_usize..30,
        keys in 1_usize..40,
        held in prop::collection::vec(any::<bool>(), SLOTS as usize),
        loads in prop::collection::vec(0.0_f64..50.0, SLOTS as usize),
        cost in 0.0_f64..0.05,
    ) {
        let mut random = Random(seed);
        let room = Room { lists, keys };
        let mut table = Table::new(GatherOptions { room, byte_cost: cost, ..GatherOptions::default() });
        for (slot, (held, load)) in table.slots.iter_mut().zip(held.iter().zip(loads)) {
            (slot.free, slot.load) = (!held, load);
        }
        for _ in 0..3 {
            windows(&mut random, 40, 1, 600).iter().for_each(|window| table.gatherer.observe(window));
            let plan = table.plan();
            prop_assert_eq!(&plan, &table.plan(), "asked again it says the same");
            prop_assert!(plan.crossing.1 <= plan.crossing.0 || plan.balance.1 < plan.balance.0);
            prop_assert!(plan.balance.1 <= plan.balance.0.max(1.1) + 1e-9, "{:?}", plan.balance);
            for change in &plan.changes {
                prop_assert!(table.slots[change.slot as usize].free);
                prop_assert!(change.keys.iter().all(|(key, _)| slot_of(key) == change.slot));
            }
            table.follow(&plan);
            let mut made: HashMap<(u32, u16), usize> = HashMap::new();
            table.chosen.values().for_each(|own| *made.entry((own.slot, own.shard)).or_default() += 1);
            prop_assert!(made.len() <= lists && made.values().all(|length| *length <= keys), "{:?}", made);
        }
    }

    #[test]
    fn any_window_is_understood(windows in prop::collection::vec(prop::collection::vec(0_u64..100, 0..40), 0..200)) {
        let mut table = Table::new(GatherOptions::default());
        table.gatherer = Gatherer::new(16, 10.0, 10.0);
        windows.iter().for_each(|window| table.gatherer.observe(window));
        prop_assert!(table.gatherer.len() <= 56);
        let plan = table.plan();
        prop_assert!(plan.balance.1.is_finite() && plan.crossing.1.is_finite());
    }
}
