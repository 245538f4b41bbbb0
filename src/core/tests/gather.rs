//! Keys that are used together come to live together; limits hold; nothing flaps.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::gather::{
    GatherOptions, Gatherer, Gathering, Layout, Located, Rate, Room, SlotState, Standing,
};
use foreshard_core::graph::keys::key_hash;
use foreshard_core::graph::shards::Shards;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

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
        let layout =
            Layout { shards: &shards, slots: &self.slots, chosen: &self.chosen, variants: &HashMap::new() };
        self.gatherer.plan(&layout, |key| Some(slot_of(key)), &self.options)
    }

    /// Lists that there are, where one holds `keys`.
    fn lists(&self) -> usize {
        let mut lists: HashMap<(u32, u16), usize> = HashMap::new();
        let shared = self.chosen.values().filter(|own| !own.alone);
        shared.for_each(|own| *lists.entry((own.slot, own.shard)).or_default() += 1);
        lists.values().map(|keys| self.options.room.lists_of(*keys)).sum()
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
                        let now = Some(self.gatherer.windows());
                        let since = self.chosen.get(key).map_or(now, |own| own.since);
                        self.chosen
                            .insert(*key, Located { slot: change.slot, shard: *shard, alone: false, since });
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
    table.chosen.insert(2_000, Located { slot: slot_of(&2_000), shard: 1, alone: true, since: Some(0) });
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

#[test]
fn a_new_gatherer_sends_nothing_home_before_it_has_watched() {
    let mut random = Random(5);
    let mut table = Table::new(GatherOptions::default());
    windows(&mut random, 60, 1, 3_000).iter().for_each(|window| table.gatherer.observe(window));
    table.follow(&table.plan());
    let chosen = table.chosen.len();
    assert!(chosen > 100, "{chosen}");
    // A restart: nothing is known, and then of a tenth of the keys only.
    table.gatherer = Gatherer::new(4_096, 3_000.0, 3_000.0);
    table.chosen.values_mut().for_each(|own| own.since = Some(0));
    let key_too_long = *table.chosen.keys().max().unwrap();
    table.chosen.get_mut(&key_too_long).unwrap().since = None;
    let part = |random: &mut Random| windows(random, 6, 1, 400);
    part(&mut random).iter().for_each(|window| table.gatherer.observe(window));
    let plan = table.plan();
    let sent = plan.changes.iter().flat_map(|change| &change.keys);
    let sent: Vec<&u64> = sent.filter(|(key, to)| to.is_none() && *key >= 36).map(|(key, _)| key).collect();
    assert!(sent.is_empty(), "{} of {chosen} go home", sent.len());
    // The others are not used for a half-life: then they go.
    for _ in 0..8 {
        part(&mut random).iter().for_each(|window| table.gatherer.observe(window));
    }
    table.follow(&table.plan());
    let left: Vec<&u64> = table.chosen.keys().filter(|key| **key >= 36).collect();
    assert_eq!(left, [&key_too_long], "what cannot be seen stays");
}

#[test]
fn room_that_shrinks_is_given_back() {
    let mut random = Random(11);
    let mut table = Table::new(GatherOptions { byte_cost: 0.001, ..GatherOptions::default() });
    table.options.room = Room { lists: 60, keys: 20 };
    windows(&mut random, 60, 1, 3_000).iter().for_each(|window| table.gatherer.observe(window));
    table.follow(&table.plan());
    let before = table.lists();
    assert!(before > 20, "{before} lists");
    // A new keeper that knows none of them, and one slot that is held.
    table.gatherer = Gatherer::new(4_096, 3_000.0, 3_000.0);
    table.slots[3].free = false;
    let held: Vec<u64> = table.chosen.iter().filter(|(_, own)| own.slot == 3).map(|(key, _)| *key).collect();
    assert!(table.plan().changes.is_empty(), "there is room");
    table.options.room.lists = before / 2;
    table.follow(&table.plan());
    let after = table.lists();
    assert!(after <= before / 2 && after + 4 >= before / 2, "{before} lists became {after}");
    assert!(!held.is_empty() && held.iter().all(|key| table.chosen.contains_key(key)));
}

#[test]
fn forms_of_a_key_are_one() {
    let mut random = Random(13);
    let mut table = Table::new(GatherOptions::default());
    // Odd windows name a key by another form.
    let other = |key: u64| key + 10_000;
    let seen = windows(&mut random, 60, 1, 4_000);
    for (at, window) in seen.iter().enumerate() {
        let form = |key: &u64| if at % 2 == 0 { *key } else { other(*key) };
        table.gatherer.observe(&window.iter().map(form).collect::<Vec<u64>>());
    }
    let variants: HashMap<u64, u64> = (0..360).map(|key| (other(key), key)).collect();
    let shards = Shards::new(&vec![1.0; usize::from(SHARDS)]).unwrap();
    let plan = |table: &Table| {
        let (slots, chosen) = (&table.slots, &table.chosen);
        let layout = Layout { shards: &shards, slots, chosen, variants: &variants };
        table.gatherer.plan(&layout, |key| Some(slot_of(&(key % 10_000))), &table.options)
    };
    let first = plan(&table);
    let keys: Vec<u64> = first.changes.iter().flat_map(|change| &change.keys).map(|(key, _)| *key).collect();
    assert!(keys.len() > 100 && keys.iter().all(|key| *key < 10_000), "{keys:?}");
    assert!(first.crossing.1 < 0.2 * first.crossing.0, "{:?}", first.crossing);
    table.follow(&first);
    // From now on only the other form is used: the key is as warm as ever.
    for _ in 0..15 {
        for window in windows(&mut random, 60, 1, 1_000) {
            table.gatherer.observe(&window.into_iter().map(other).collect::<Vec<u64>>());
        }
    }
    let sent = plan(&table).changes.into_iter().flat_map(|change| change.keys);
    assert_eq!(sent.filter(|(_, to)| to.is_none()).count(), 0);
}

#[test]
fn a_plan_holds_only_for_what_it_was_made_for() {
    let usable = HashSet::from([1, 2]);
    let planned = Standing { lists: vec![(7, 1, Some(5.0)), (9, 2, None)], held: false };
    let holds = |now: Option<&Standing>, target: i32| planned.holds(now, [target].into_iter(), &usable);
    assert!(holds(Some(&planned.clone()), 2));
    assert!(!holds(None, 2), "merged away");
    assert!(!holds(Some(&planned), 3), "the shard is gone or being emptied");
    assert!(!holds(Some(&Standing { held: true, ..planned.clone() }), 2), "something is under way");
    let changed = |lists: Vec<(i64, i32, Option<f64>)>| Standing { lists, held: false };
    assert!(!holds(Some(&changed(vec![(7, 1, Some(6.0)), (9, 2, None)])), 2), "keys were placed since");
    assert!(!holds(Some(&changed(vec![(7, 2, Some(5.0)), (9, 2, None)])), 2), "the slot has moved");
    assert!(!holds(Some(&changed(vec![(7, 1, Some(5.0))])), 2), "a list went home");
}

#[test]
fn the_rate_is_that_of_lately() {
    let mut rate = Rate::new(1_000.0, 0.0);
    for second in 1..=1_000 {
        rate.note(10, 1_000.0, f64::from(second));
    }
    assert!((rate.per_s() - 1_000.0).abs() < 20.0, "{}", rate.per_s());
    // A tenth of that from now on; then a night without any, which says nothing about the morning.
    for second in 1_001..=3_000 {
        rate.note(1, 100.0, f64::from(second));
    }
    let slow = rate.per_s();
    assert!(slow < 400.0, "{slow}");
    rate.note(1, 100.0, 40_000.0);
    assert!(rate.per_s() > slow / 2.0 && rate.per_s() < slow && rate.last_s() == 40_000.0);
}

#[test]
fn memory_can_be_taken_back() {
    let mut random = Random(17);
    let mut table = Table::new(GatherOptions::default());
    windows(&mut random, 100, 1, 2_000).iter().for_each(|window| table.gatherer.observe(window));
    assert!(table.gatherer.len() > 500);
    table.gatherer.limit(64);
    assert!(table.gatherer.len() <= 64);
    windows(&mut random, 100, 1, 200).iter().for_each(|window| table.gatherer.observe(window));
    assert!(table.gatherer.len() <= 64 && table.gatherer.counted() > 1_000.0);
}

/// A table that grows: every window has a key that is never used again.
#[test]
fn keys_that_come_once_take_no_room() {
    let (room, come_back) = (1 << 16, 8_000_u64);
    let mut gatherer: Gatherer<u64> = Gatherer::new(room, 200_000.0, 200_000.0);
    for round in 0..4 {
        for key in 0..come_back {
            gatherer.observe(&[key, (key + 1) % come_back, 1_000_000 + round * come_back + key]);
        }
    }
    // Some came while there was nobody yet, and a few are taken for others.
    assert!(gatherer.len() < 8_000 + 4_096 + 1_600, "{} of 40,000 keys", gatherer.len());
    let known: HashSet<u64> = gatherer.keys().iter().copied().collect();
    assert!((0..come_back).all(|key| known.contains(&key)), "who comes again is known");
    assert_eq!((gatherer.windows(), gatherer.forgotten()), (32_000, 0));
}

/// The use at which a key was not known yet counts, too: chosen is who comes twice, whenever that is.
#[test]
fn late_keys_are_chosen_as_early_ones_are() {
    let mut table = Table::new(GatherOptions::default());
    table.gatherer = Gatherer::new(1 << 16, 200_000.0, 200_000.0);
    // Four thousand that are used once, so that the next ones come to a closed door.
    (0..5_000).for_each(|key| table.gatherer.observe(&[100_000 + key]));
    let mut random = Random(19);
    let seen = windows(&mut random, 100, 1, 4_000);
    seen.iter().for_each(|window| table.gatherer.observe(window));
    let plan = table.plan();
    assert!(plan.crossing.1 < 0.2 * plan.crossing.0, "{:?}", plan.crossing);
    table.follow(&plan);
    assert!(table.crossing(&seen) < 0.25, "{}", table.crossing(&seen));
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
            prop_assert!(table.lists() <= lists, "{} lists", table.lists());
        }
    }

    #[test]
    fn shifting_groups_at_full_room_never_need_more(
        seed in 1_u64..1_000_000,
        lists in 1_usize..24,
        keys in 1_usize..12,
        cost in 0.0_f64..0.02,
        holds in prop::collection::vec(0_u32..SLOTS, 8),
    ) {
        let mut random = Random(seed);
        let room = Room { lists, keys };
        let mut table = Table::new(GatherOptions { room, byte_cost: cost, ..GatherOptions::default() });
        let strides = [1, 37, 11, 53];
        for (round, held) in holds.into_iter().enumerate() {
            // Another keeper now and then: it knows nothing of what is chosen.
            if round % 3 == 2 {
                table.gatherer = Gatherer::new(4_096, 3_000.0, 3_000.0);
                table.chosen.values_mut().for_each(|own| own.since = Some(0));
            }
            (0..SLOTS).for_each(|slot| table.slots[slot as usize].free = slot != held);
            let seen = windows(&mut random, 40, strides[round / 2], 700);
            seen.iter().for_each(|window| table.gatherer.observe(window));
            let plan = table.plan();
            prop_assert_eq!(&plan, &table.plan());
            table.follow(&plan);
            prop_assert!(table.lists() <= lists, "{} lists, room for {} in round {}", table.lists(), lists, round);
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
