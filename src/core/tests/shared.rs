//! The lock-free structures under real threads, and the accounting of nested work.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use foreshard_core::frames::{AMOUNTS, Amount, Amounts, Frames, Kind, MAX_DEPTH, Piece};
use foreshard_core::gaps::{Gaps, longest};
use foreshard_core::shared::{
    Activity, Claim, Directory, Entry, Profile, ProfileIdentity, SampleRing, Segment, SegmentCounter, Total,
};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn keys(length: usize) -> Vec<AtomicU64> {
    (0..length).map(|_| AtomicU64::new(0)).collect()
}

fn entries<const W: usize>(length: usize) -> Vec<Entry<W>> {
    (0..length).map(|_| Entry::default()).collect()
}

#[test]
fn a_ring_hands_out_what_was_put_in_and_counts_the_rest() {
    let (head, places) = (AtomicU64::new(0), entries::<2>(8));
    let ring = SampleRing::new(&head, &places);
    let mut cursor = ring.head();
    for i in 0..5 {
        assert!(ring.push(&[i, i * 10]).kept);
    }
    let mut seen = Vec::new();
    assert_eq!(ring.drain(&mut cursor, |w| seen.push(*w)), 0);
    assert_eq!(seen, (0..5).map(|i| [i, i * 10]).collect::<Vec<_>>());
    for i in 0..20 {
        ring.push(&[i, 0]);
    }
    seen.clear();
    assert_eq!(ring.drain(&mut cursor, |w| seen.push(*w)), 12, "the oldest of 20 in a ring of 8 are lost");
    assert_eq!(seen.first(), Some(&[12, 0]));
    assert!(!SampleRing::<2>::new(&head, &[]).push(&[0, 0]).kept);
}

/// Who reads whenever it is said loses nothing, wherever he stands.
#[test]
fn a_reader_is_called_before_anything_is_lost() {
    for began in 0..8_u64 {
        let (head, places) = (AtomicU64::new(began), entries::<1>(8));
        let ring = SampleRing::new(&head, &places);
        let mut cursor = ring.head();
        let (mut read, mut calls) = (0, 0);
        for i in 0..1_000 {
            if ring.push(&[i]).half {
                calls += 1;
                assert_eq!(ring.drain(&mut cursor, |_| read += 1), 0, "lost at {i}, begun at {began}");
            }
        }
        assert!((249..=251).contains(&calls) && read > 990, "{calls} calls, {read} read");
    }
}

#[test]
fn what_was_placed_since_a_reading_stays() {
    let segment = Segment::default();
    segment.placed_ns.fetch_add(700, Ordering::Relaxed);
    let read = segment.placed_ns.load(Ordering::Relaxed);
    segment.placed_ns.fetch_add(30, Ordering::Relaxed);
    segment.take_placed(read);
    assert_eq!(segment.placed_ns.load(Ordering::Relaxed), 30);
    segment.take_placed(31);
    assert_eq!(segment.placed_ns.load(Ordering::Relaxed), 0);
}

#[test]
fn the_name_of_a_copy_is_told_with_the_oid_of_what_it_is_copied_from() {
    let padded = |name: &str| std::array::from_fn(|i| name.as_bytes().get(i).copied().unwrap_or(0));
    for (name, oid, wanted) in [
        ("RI_ConstraintTrigger_c_4294967295", 16_384, "RI_ConstraintTrigger_c_16384"),
        ("RI_ConstraintTrigger_a_1", u32::MAX, "RI_ConstraintTrigger_a_4294967295"),
        ("PK_ConstraintTrigger_7", 0, "PK_ConstraintTrigger_0"),
        ("plain", 7, "plain"),
        ("", 7, ""),
    ] {
        assert_eq!(ProfileIdentity::numbered(&padded(name), oid), padded(wanted), "{name}");
    }
    let longest = [b'_'; 64];
    assert_eq!(ProfileIdentity::numbered(&longest, 12), longest, "there is no room for a number");
}

/// Torn samples would show as words that do not belong together.
#[test]
fn no_reader_sees_a_torn_sample() {
    let (head, places) = (AtomicU64::new(0), entries::<8>(64));
    let (writers, each) = (4_u64, 50_000_u64);
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for writer in 0..writers {
            let ring = SampleRing::new(&head, &places);
            threads.push(scope.spawn(move || {
                for i in 0..each {
                    ring.push(&std::array::from_fn(|w| (writer << 32 | i) ^ (w as u64) << 56));
                }
            }));
        }
        let (places, head, running) = (&places, &head, &running);
        let reader = scope.spawn(move || {
            let ring = SampleRing::new(head, places);
            let (mut cursor, mut read, mut lost) = (0, 0_u64, 0);
            loop {
                let last = !running.load(Ordering::Acquire);
                lost += ring.drain(&mut cursor, |words| {
                    for (w, word) in words.iter().enumerate() {
                        assert_eq!(*word, words[0] ^ (w as u64) << 56, "torn");
                    }
                    read += 1;
                });
                if last {
                    return (read, lost);
                }
            }
        });
        threads.into_iter().for_each(|t| t.join().unwrap());
        running.store(false, Ordering::Release);
        let (read, lost) = reader.join().unwrap();
        assert_eq!(read + lost, writers * each);
        assert!(read > 0);
    });
}

#[test]
fn threads_claim_each_key_once() {
    let table = keys(4096);
    let found: Vec<HashMap<u64, usize>> = std::thread::scope(|scope| {
        let spawn = |_| {
            let directory = Directory::new(&table);
            scope.spawn(move || {
                let claim = |key| match directory.claim(key) {
                    Claim::Found(place) | Claim::Entered(place) => (key, place),
                    Claim::Full => panic!("full"),
                };
                (1..=1000).map(claim).collect()
            })
        };
        let threads: Vec<_> = (0..4).map(spawn).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(found.iter().all(|f| *f == found[0]));
    assert_eq!(found[0].values().collect::<HashSet<_>>().len(), 1000);
}

proptest! {
    /// The directory against a map, with removals and re-entries.
    #[test]
    fn a_directory_is_a_set(operations in prop::collection::vec((0_u8..3, 1_u64..60), 0..400)) {
        let table = keys(64);
        let directory = Directory::new(&table);
        let mut model = HashSet::new();
        for (operation, key) in operations {
            match operation {
                0 => if let Some(place) = directory.find(key) {
                    directory.remove(place);
                    model.remove(&key);
                },
                1 => if directory.find(key).is_none() && let Some(place) = directory.reserve(key) {
                    directory.publish(place, key);
                    model.insert(key);
                },
                _ => match directory.claim(key) {
                    Claim::Entered(_) => prop_assert!(model.insert(key)),
                    // Only empty places are claimed: places that were left may make it full early.
                    Claim::Found(_) => prop_assert!(model.contains(&key)),
                    Claim::Full => {}
                },
            }
            for key in 1..60 {
                prop_assert_eq!(directory.find(key).is_some(), model.contains(&key));
            }
        }
        prop_assert_eq!(directory.entries().map(|(_, k)| k).collect::<HashSet<_>>(), model);
    }

    /// Sessions of few events have their share of samples: each event is as likely to be one, from the first on.
    #[test]
    fn short_sessions_have_their_share(seed in any::<u64>(), interval in 1_u32..40, events in 1_u32..60) {
        let mut gaps = Gaps::new(seed);
        let sessions = 20_000;
        let mut samples = 0.0;
        for _ in 0..sessions {
            let mut at = gaps.first(interval);
            prop_assert!((1..=longest(interval)).contains(&at));
            while at <= events {
                samples += 1.0;
                at += gaps.next(interval);
            }
        }
        let wanted = f64::from(sessions) * f64::from(events) / f64::from(interval);
        prop_assert!((samples / wanted - 1.0_f64).abs() < 6.0 / wanted.sqrt() + 0.01, "{samples} of {wanted}");
    }

    #[test]
    fn gaps_average_their_interval(seed in any::<u64>(), interval in 1_u32..500) {
        let mut gaps = Gaps::new(seed);
        let drawn: Vec<u32> = (0..4000).map(|_| gaps.next(interval)).collect();
        prop_assert!(drawn.iter().all(|g| *g >= 1 && *g <= longest(interval)));
        // Whoever counts down a longer gap than that skips an event although every one was asked for.
        prop_assert_eq!(longest(1), 1);
        let mean = drawn.iter().map(|g| f64::from(*g)).sum::<f64>() / 4000.0;
        prop_assert!((mean / f64::from(interval) - 1.0).abs() < 0.1);
    }
}

#[test]
fn reserved_keys_are_refused() {
    let table = keys(8);
    let directory = Directory::new(&table);
    for key in [0, u64::MAX] {
        assert_eq!(directory.claim(key), Claim::Full);
        assert_eq!(directory.find(key), None);
    }
    assert_eq!(Directory::new(&keys(6)).claim(1), Claim::Full, "not a power of two");
}

#[test]
fn counters_are_taken_once() {
    let segment = Segment::default();
    segment.add(SegmentCounter::Scans, 3);
    segment.add(SegmentCounter::Scans, 4);
    assert_eq!(segment.take()[SegmentCounter::Scans as usize], 7);
    assert_eq!(segment.take()[SegmentCounter::Scans as usize], 0);
    for bits in 0..8 {
        let activity = Activity { observed: bits & 1 != 0, hot: bits & 2 != 0, leaf: bits & 4 != 0 };
        segment.set_activity(activity);
        assert_eq!(segment.activity(), activity);
    }
    segment.set_load(2.5, 100.0);
    assert_eq!(segment.load(), (2.5, 100.0));
}

#[test]
fn what_another_server_asks_for_is_read_and_not_taken() {
    let segment = Segment::default();
    assert!(!segment.is_asked());
    assert_eq!(segment.asked(), None);
    segment.set_asked(Some((0, 7)));
    assert_eq!(segment.asked(), Some((1, 7)), "asked, however early the clock says it is");
    segment.set_asked(Some((5, 9)));
    assert!(segment.is_asked());
    segment.add(SegmentCounter::Statements, 3);
    assert_eq!(segment.counters()[SegmentCounter::Statements as usize], 3);
    assert_eq!(segment.counters()[SegmentCounter::Statements as usize], 3);
    segment.set_asked(None);
    assert_eq!(segment.asked(), None);
}

#[test]
fn a_profile_knows_whose_it_is() {
    let identity = ProfileIdentity {
        database: 5,
        table: 16_384,
        function: 20_000,
        event: 6,
        name: ProfileIdentity::name_words("prüfung".as_bytes()),
    };
    let profile = Profile::default();
    assert_eq!(profile.identity(), None);
    profile.enter(&identity);
    assert_eq!(profile.identity(), Some(identity));
    assert_eq!(identity.name_bytes(), "prüfung".as_bytes());
    profile.add(Total::Calls, 2);
    assert_eq!(profile.total(Total::Calls), 2);
    assert_ne!(identity.key(), ProfileIdentity { event: 5, ..identity }.key());
    profile.leave();
    assert_eq!(profile.identity(), None);
}

fn at(cpu: u64) -> Amounts {
    let mut amounts = [0; AMOUNTS];
    amounts[Amount::CpuNs as usize] = cpu;
    amounts
}

fn cpu(amounts: &Amounts) -> u64 {
    amounts[Amount::CpuNs as usize]
}

fn piece(kind: Kind, weight: u32, address: usize) -> Piece {
    Piece { kind, weight, address, ..Piece::default() }
}

/// statement { trigger { trigger, statement } }
#[test]
fn nested_work_is_counted_where_it_belongs() {
    let mut frames = Frames::default();
    assert!(frames.enter(piece(Kind::Statement, 1, 1000), at(0)));
    assert!(frames.enter(piece(Kind::Trigger(7), 1, 900), at(10)));
    assert_eq!(frames.trigger(), Some(7));
    assert!(frames.enter(piece(Kind::Trigger(8), 1, 700), at(30)));
    let inner = frames.leave(700, at(60)).unwrap();
    assert_eq!((cpu(&inner.inclusive), cpu(&inner.exclusive), cpu(&inner.own)), (30, 30, 30));
    assert!(frames.enter(piece(Kind::Statement, 1, 800), at(70)));
    let managed = frames.leave(800, at(100)).unwrap();
    assert_eq!(cpu(&managed.own), 30);
    let outer = frames.leave(900, at(110)).unwrap();
    assert_eq!(cpu(&outer.inclusive), 100);
    assert_eq!(cpu(&outer.exclusive), 70, "without the nested trigger only");
    assert_eq!(cpu(&outer.own), 40, "without the nested trigger and the managed statement");
    let statement = frames.leave(1000, at(200)).unwrap();
    assert_eq!((cpu(&statement.inclusive), cpu(&statement.own)), (200, 100));
    assert_eq!((cpu(&outer.statements), cpu(&statement.statements)), (30, 0), "those of triggers left out");
    assert!(frames.is_empty());
}

#[test]
fn pieces_that_an_error_left_are_dropped() {
    let mut frames = Frames::default();
    frames.enter(piece(Kind::Statement, 1, 1000), at(0));
    frames.enter(piece(Kind::Trigger(1), 1, 900), at(1));
    frames.enter(piece(Kind::Trigger(2), 1, 800), at(2));
    // An error jumped back to somewhere above 900; the next piece begins at 950.
    assert!(frames.enter(piece(Kind::Statement, 1, 950), at(10)));
    assert_eq!(frames.trigger(), None);
    assert_eq!(cpu(&frames.leave(950, at(14)).unwrap().own), 4);
    assert_eq!(frames.leave(900, at(20)), None, "gone");
    assert_eq!(cpu(&frames.leave(1000, at(20)).unwrap().own), 16);
    frames.enter(piece(Kind::Statement, 1, 1000), at(0));
    frames.enter(piece(Kind::Trigger(1), 1, 900), at(0));
    assert!(frames.leave(1000, at(5)).is_some(), "the statement ends although its trigger never did");
    assert!(frames.is_empty());
}

/// statement { unrecorded trigger { statement } }: nobody else accounts for what the trigger itself takes.
#[test]
fn what_nobody_records_is_part_of_what_is_around_it() {
    let mut frames = Frames::default();
    frames.enter(piece(Kind::Trigger(7), 1, 1000), at(0));
    frames.enter(Piece { unrecorded: true, ..piece(Kind::Trigger(8), 1, 900) }, at(10));
    frames.enter(piece(Kind::Statement, 1, 800), at(20));
    frames.leave(800, at(25));
    frames.leave(900, at(60));
    let outer = frames.leave(1000, at(100)).unwrap();
    assert_eq!((cpu(&outer.own), cpu(&outer.exclusive), cpu(&outer.inclusive)), (95, 50, 100));
}

#[test]
fn what_a_caught_error_left_is_dropped() {
    let mut frames = Frames::default();
    let of = |subtransaction, address| Piece { subtransaction, ..piece(Kind::Statement, 1, address) };
    frames.enter(of(1, 1000), at(0));
    frames.enter(Piece { led: true, ..of(3, 900) }, at(1));
    frames.enter(Piece { led: true, ..of(4, 800) }, at(2));
    assert!(frames.leads());
    frames.abort(3);
    assert!(!frames.leads());
    assert_eq!(cpu(&frames.leave(1000, at(9)).unwrap().own), 9);
    // A piece of the same stack address that is gone does not answer for the one that ends.
    frames.enter(of(1, 1000), at(5));
    frames.enter(of(1, 900), at(7));
    assert_eq!(frames.started_with(1000, Amount::CpuNs), 5);
    assert_eq!(frames.started_with(2000, Amount::CpuNs), 0);
}

#[test]
fn depth_and_sampling_inside_a_piece_are_bounded() {
    let (mut frames, mut gaps) = (Frames::default(), Gaps::new(1));
    for depth in 0..MAX_DEPTH {
        assert!(frames.enter(piece(Kind::Trigger(1), 1, 100_000 - depth), at(0)));
    }
    assert!(!frames.enter(piece(Kind::Trigger(1), 1, 1), at(0)));
    frames.clear();
    assert_eq!(frames.wants_child(1, 1, &mut gaps), None, "nothing is being measured");
    frames.enter(piece(Kind::Statement, 1, 1000), at(0));
    let weights: Vec<u32> = (0..160).filter_map(|_| frames.wants_child(64, 16, &mut gaps)).collect();
    assert_eq!(weights.iter().sum::<u32>(), 64 + 96, "what is measured stands for all");
    // Calls after the first 64 take 5 each; one in 16 is measured and stands for 16.
    let mut frames = Frames::default();
    frames.enter(piece(Kind::Statement, 1, 1000), at(0));
    let mut now = 0;
    for _ in 0..640 {
        let weight = frames.wants_child(64, 16, &mut gaps);
        if let Some(weight) = weight {
            frames.enter(piece(Kind::Trigger(1), weight, 900), at(now));
        }
        now += 5;
        if weight.is_some() {
            frames.leave(900, at(now)).unwrap();
        }
    }
    let statement = frames.leave(1000, at(now + 100)).unwrap();
    assert_eq!(cpu(&statement.own), 100, "all triggers are taken off, measured or not");
}

/// Two triggers of a row, one dear and one cheap, are called in turns; neither is measured in place of the other.
#[test]
fn triggers_that_take_turns_are_told_apart() {
    for of in [2, 4, 5, 8] {
        let (mut frames, mut gaps) = (Frames::default(), Gaps::new(7));
        frames.enter(piece(Kind::Statement, 1, 1000), at(0));
        let (mut now, mut triggers) = (0_u64, 0);
        for call in 0..of * 16_000 {
            let took = if call % of == 0 { 100 } else { 1 };
            let weight = frames.wants_child(64, 16, &mut gaps);
            if let Some(weight) = weight {
                frames.enter(piece(Kind::Trigger(call as u32 % of as u32), weight, 900), at(now));
            }
            now += took;
            triggers += took;
            if weight.is_some() {
                frames.leave(900, at(now)).unwrap();
            }
        }
        let spent = frames.leave(1000, at(now + triggers)).unwrap();
        let own = cpu(&spent.own) as f64 / triggers as f64;
        assert!((0.85..1.15).contains(&own), "of {of} triggers: {own}");
    }
}
