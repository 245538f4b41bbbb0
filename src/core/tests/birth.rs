//! Placement at birth: bounded, near, even, and never the same candidate twice.

use foreshard_core::birth::{Dice, EPSILON, Hint, IDLE, KEPT_BATCHES, Picture, ShardState, SlotState, Stock};
use proptest::prelude::*;

const HALF_LIFE_S: f64 = 60.0;

fn shard(capacity: f64) -> ShardState {
    ShardState { capacity, draining: false, elsewhere: 0.0 }
}

/// `count` slots dealt to the shards in turn, all with this load.
fn slots(count: usize, shards: usize, load: f64) -> Vec<SlotState> {
    (0..count).map(|i| SlotState { shard: i % shards, load, placed: 0.0 }).collect()
}

#[test]
fn spreads_evenly_without_a_hint() {
    let mut picture = Picture::new(&slots(32, 4, 0.0), &[shard(1000.0); 4], HALF_LIFE_S);
    let mut dice = Dice(1);
    let mut count = [0_u32; 32];
    for _ in 0..100_000 {
        let slot = picture.choose(Hint::None, 1.0, &mut dice).unwrap_or(usize::MAX);
        count[slot] += 1;
        picture.place(slot, 1.0);
    }
    let (least, most) = (count.iter().min().copied(), count.iter().max().copied());
    assert!(least >= Some(3000) && most <= Some(3250), "{count:?}");
}

#[test]
fn capacities_are_respected() {
    let mut picture =
        Picture::new(&slots(30, 3, 0.0), &[shard(100.0), shard(200.0), shard(700.0)], HALF_LIFE_S);
    let mut dice = Dice(2);
    let mut count = [0.0; 3];
    for _ in 0..50_000 {
        let slot = picture.choose(Hint::None, 1.0, &mut dice).unwrap_or(usize::MAX);
        count[slot % 3] += 1.0;
        picture.place(slot, 1.0);
    }
    for (placed, share) in count.iter().zip([0.1_f64, 0.2, 0.7]) {
        assert!((placed / 50_000.0 - share).abs() < 0.02, "{count:?}");
    }
}

#[test]
fn an_overloaded_shard_is_left_alone() {
    let mut states = slots(16, 2, 1.0);
    for state in states.iter_mut().filter(|s| s.shard == 0) {
        state.load = 100.0;
    }
    let picture = Picture::new(&states, &[shard(1000.0); 2], HALF_LIFE_S);
    let mut dice = Dice(3);
    for hint in [Hint::None, Hint::Slot(0), Hint::Shard(0)] {
        for _ in 0..1000 {
            let slot = picture.choose(hint, 1.0, &mut dice);
            assert!(slot.is_some_and(|slot| slot % 2 == 1), "{hint:?} gave {slot:?}");
        }
    }
}

#[test]
fn work_of_other_tables_counts() {
    let crowded = ShardState { elsewhere: 1e6, ..shard(1000.0) };
    let picture = Picture::new(&slots(16, 2, 1.0), &[crowded, shard(1000.0)], HALF_LIFE_S);
    let mut dice = Dice(4);
    for _ in 0..1000 {
        assert!(picture.choose(Hint::Slot(0), 1.0, &mut dice).is_some_and(|slot| slot % 2 == 1));
    }
}

#[test]
fn near_is_honoured_slot_then_shard() {
    let mut picture = Picture::new(&slots(16, 2, 10.0), &[shard(1000.0); 2], HALF_LIFE_S);
    let mut dice = Dice(5);
    assert_eq!(picture.choose(Hint::Slot(6), 1.0, &mut dice), Some(6));
    // The slot is crowded, its shard is not.
    picture.place(6, IDLE * 1000.0 * HALF_LIFE_S / 8.0);
    for _ in 0..200 {
        let slot = picture.choose(Hint::Slot(6), 1.0, &mut dice);
        assert!(slot.is_some_and(|slot| slot % 2 == 0 && slot != 6), "{slot:?}");
        assert!(picture.choose(Hint::Shard(1), 1.0, &mut dice).is_some_and(|slot| slot % 2 == 1));
    }
}

#[test]
fn idle_shards_take_every_neighbour() {
    let mut picture = Picture::new(&slots(8, 2, 0.0), &[shard(1000.0); 2], HALF_LIFE_S);
    let mut dice = Dice(6);
    let idle = (IDLE * 1000.0 * HALF_LIFE_S) as usize;
    for _ in 0..idle {
        let slot = picture.choose(Hint::Shard(0), 1.0, &mut dice).unwrap_or(usize::MAX);
        assert_eq!(slot % 2, 0);
        picture.place(slot, 1.0);
    }
    let slot = picture.choose(Hint::Shard(0), 1.0, &mut dice);
    assert!(slot.is_some_and(|slot| slot % 2 == 1), "{slot:?}");
}

#[test]
fn draining_shards_take_nothing_unless_all_drain() {
    let drained = ShardState { draining: true, ..shard(1000.0) };
    let mut dice = Dice(7);
    let picture = Picture::new(&slots(8, 2, 0.0), &[drained, shard(1000.0)], HALF_LIFE_S);
    for hint in [Hint::None, Hint::Slot(0), Hint::Shard(0)] {
        assert!(picture.choose(hint, 1.0, &mut dice).is_some_and(|slot| slot % 2 == 1));
    }
    let picture = Picture::new(&slots(8, 2, 0.0), &[drained; 2], HALF_LIFE_S);
    assert!(picture.choose(Hint::Slot(0), 1.0, &mut dice).is_some());
    assert_eq!(Picture::new(&[], &[], HALF_LIFE_S).choose(Hint::None, 1.0, &mut dice), None);
}

/// Eight processes with one old picture: none of the shards gets much more than the others.
#[test]
fn stale_pictures_do_not_herd() {
    let mut states = slots(32, 4, 10.0);
    states[0].load = 9.0;
    let picture = Picture::new(&states, &[shard(1000.0); 4], HALF_LIFE_S);
    let mut count = [0_u32; 4];
    for seed in 0..8 {
        let mut dice = Dice(seed);
        for _ in 0..1000 {
            count[picture.choose(Hint::None, 1.0, &mut dice).unwrap_or(0) % 4] += 1;
        }
    }
    assert!(count.iter().all(|n| *n > 800), "{count:?}");
}

#[test]
fn a_stock_gives_each_candidate_once_and_forgets_old_batches() {
    let mut stock = Stock::new(3);
    stock.put(0, 7);
    stock.put(9, 8);
    assert_eq!((stock.take(0), stock.take(0), stock.take(9), stock.len()), (Some(7), None, None, 0));
    for batch in 0..KEPT_BATCHES + 3 {
        stock.begin_batch();
        stock.put(1, batch);
    }
    assert_eq!(stock.len(), KEPT_BATCHES);
    assert_eq!(stock.take(1), Some(3));
    assert!(!stock.is_empty());
}

proptest! {
    /// Whatever the numbers, a slot of an existing shard is chosen, and the bound holds if it can.
    #[test]
    fn chooses_within_the_bound(
        loads in prop::collection::vec((0_usize..5, prop_oneof![0.0..100.0_f64, Just(f64::NAN), Just(-1.0)], 0.0..5000.0_f64), 1..60),
        capacities in prop::collection::vec(1.0..5000.0_f64, 5),
        cost in 0.0..1000.0_f64,
        seed in any::<u64>(),
    ) {
        let states: Vec<SlotState> =
            loads.iter().map(|(shard, load, placed)| SlotState { shard: *shard, load: *load, placed: *placed }).collect();
        let shards: Vec<ShardState> = capacities.iter().map(|c| shard(*c)).collect();
        let picture = Picture::new(&states, &shards, HALF_LIFE_S);
        let chosen = picture.choose(Hint::None, cost, &mut Dice(seed));
        prop_assert!(chosen.is_some_and(|slot| slot < states.len()));
        let work = |shard: usize| -> f64 {
            states.iter().filter(|s| s.shard == shard)
                .map(|s| if s.load > 0.0 { s.load * HALF_LIFE_S } else { 0.0 } + s.placed).sum()
        };
        let sum: f64 = capacities.iter().sum();
        let total: f64 = (0..5).map(work).sum();
        let fits = |shard: usize| {
            let bound = (1.0 + EPSILON) * capacities[shard] / sum * (total + cost);
            let bound = if cost > 0.0 { (bound / cost).ceil() * cost } else { bound };
            work(shard) + cost <= bound * (1.0 + 1e-9)
        };
        let possible = states.iter().any(|s| fits(s.shard));
        let slot = chosen.map_or(0, |slot| states[slot].shard);
        prop_assert!(!possible || fits(slot), "shard {} over its bound", slot);
    }
}
