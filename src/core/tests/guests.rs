//! Layouts of slots with chosen keys: every key gets what was wished, and nothing else is touched.

use foreshard_core::guests::{Guest, ListSize, Relayout, Wish, relayout as relayout_of};
use std::collections::BTreeMap;

const HOME: i32 = 1;

/// Lists of four keys.
const FOUR: ListSize<'static> = ListSize { most_bytes: 40, bytes_of: &|_| 10 };

fn relayout(home: i32, present: &[Guest], wishes: &BTreeMap<String, Wish>) -> Option<Relayout> {
    relayout_of(home, present, wishes, &FOUR)
}

fn wishes(pairs: &[(&str, Wish)]) -> BTreeMap<String, Wish> {
    pairs.iter().map(|(key, wish)| (key.to_string(), *wish)).collect()
}

fn guest(slot: i64, shard: i32, isolated: bool, keys: &[&str]) -> Guest {
    Guest { slot: Some(slot), shard, isolated, keys: keys.iter().map(|k| k.to_string()).collect() }
}

#[test]
fn keys_of_one_shard_live_together() {
    let made = relayout(HOME, &[], &wishes(&[("a", Wish::On(2)), ("b", Wish::On(3)), ("c", Wish::On(2))]));
    let made = made.map(|r| r.made.into_iter().map(|g| (g.shard, g.keys.len())).collect::<Vec<_>>());
    assert_eq!(made, Some(vec![(2, 2), (3, 1)]));
}

#[test]
fn only_what_changes_is_made_anew() {
    let present = [guest(7, 2, false, &["a", "b"]), guest(8, 3, false, &["c"]), guest(9, 2, true, &["hot"])];
    assert_eq!(relayout(HOME, &present, &wishes(&[("a", Wish::On(2)), ("x", Wish::On(HOME))])), None);
    let home = relayout(HOME, &present, &wishes(&[("c", Wish::Home)]));
    assert_eq!(home, Some(Relayout { made: vec![], taken: vec![8], kept: 2, moved: 1 }));
    let other = relayout(HOME, &present, &wishes(&[("a", Wish::On(3)), ("hot", Wish::Alone(2))]));
    let expected = vec![guest(7, 2, false, &["b"]), guest(8, 3, false, &["a", "c"])];
    assert_eq!(other, Some(Relayout { made: expected, taken: vec![7, 8], kept: 1, moved: 1 }));
}

#[test]
fn a_key_may_be_alone_at_home() {
    let alone = relayout(HOME, &[], &wishes(&[("a", Wish::Alone(HOME)), ("b", Wish::Alone(HOME))]));
    assert_eq!(alone.map(|r| r.made.len()), Some(2));
    let present = [guest(7, HOME, true, &["a"])];
    let shared = relayout(HOME, &present, &wishes(&[("a", Wish::On(2))]));
    assert_eq!(shared.map(|r| (r.taken, r.made.len(), r.kept)), Some((vec![7], 1, 0)));
}

#[test]
fn a_full_list_has_a_second_one() {
    let many: Vec<String> = (0..10).map(|key| format!("k{key}")).collect();
    let wished: BTreeMap<String, Wish> = many.iter().map(|key| (key.clone(), Wish::On(2))).collect();
    let made = relayout(HOME, &[], &wished).map(|r| r.made.iter().map(|g| g.keys.len()).collect::<Vec<_>>());
    assert_eq!(made, Some(vec![4, 4, 2]));
    // The full one stays as it is, and the one with room takes what comes.
    let present = [guest(7, 2, false, &["a", "b", "c", "d"]), guest(8, 2, false, &["e"])];
    let more = relayout(HOME, &present, &wishes(&[("x", Wish::On(2))]));
    let expected = vec![guest(8, 2, false, &["e", "x"])];
    assert_eq!(more, Some(Relayout { made: expected, taken: vec![8], kept: 1, moved: 1 }));
    // What is left of two lists becomes one.
    let fewer =
        relayout(HOME, &present, &wishes(&[("a", Wish::Home), ("b", Wish::Home), ("e", Wish::On(3))]));
    let made = fewer.as_ref().map(|r| r.made.iter().map(|g| (g.shard, g.keys.len())).collect::<Vec<_>>());
    assert_eq!(made, Some(vec![(2, 2), (3, 1)]));
    // A key that no list has room for still has one.
    let one = ListSize { most_bytes: 5, bytes_of: &|_| 10 };
    let made = relayout_of(HOME, &[], &wishes(&[("a", Wish::On(2)), ("b", Wish::On(2))]), &one);
    assert_eq!(made.map(|r| r.made.len()), Some(2));
}

/// Any wishes after one another: every key is where it was wished last, in one place, and what was kept is as
/// it was.
#[test]
fn whatever_is_wished() {
    let mut seed: u64 = 5;
    let mut below = |limit: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % limit
    };
    let (mut guests, mut truth, mut next): (Vec<Guest>, BTreeMap<String, Wish>, i64) = Default::default();
    for _ in 0..400 {
        let mut wished = BTreeMap::new();
        for _ in 0..below(9) {
            let wish = match below(4) {
                0 => Wish::Home,
                1 => Wish::Alone(below(4) as i32),
                _ => Wish::On(below(4) as i32),
            };
            wished.insert(format!("k{}", below(40)), wish);
        }
        truth.extend(wished.clone());
        if let Some(change) = relayout(HOME, &guests, &wished) {
            let before = guests.len();
            guests.retain(|guest| !guest.slot.is_some_and(|slot| change.taken.contains(&slot)));
            assert_eq!((guests.len(), before - guests.len()), (change.kept, change.taken.len()));
            for mut guest in change.made {
                next += 1;
                guest.slot = guest.slot.or(Some(next));
                guests.push(guest);
            }
        }
        for (key, wish) in &truth {
            let at: Vec<&Guest> = guests.iter().filter(|guest| guest.keys.contains(key)).collect();
            match wish {
                Wish::Home => assert!(at.is_empty(), "{key}"),
                Wish::On(HOME) => assert!(at.is_empty(), "{key}"),
                Wish::On(shard) => {
                    assert!(matches!(at[..], [g] if !g.isolated && g.shard == *shard), "{key}")
                }
                Wish::Alone(shard) => {
                    assert!(matches!(at[..], [g] if g.isolated && g.shard == *shard && g.keys.len() == 1))
                }
            }
        }
        for shard in 0..4 {
            let shared: Vec<usize> =
                guests.iter().filter(|g| !g.isolated && g.shard == shard).map(|g| g.keys.len()).collect();
            let keys: usize = shared.iter().sum();
            assert!(shared.iter().all(|keys| (1..=4).contains(keys)), "{shared:?}");
            assert!(shared.len() <= keys.div_ceil(2).max(1), "lists stay well filled: {shared:?}");
        }
    }
}
