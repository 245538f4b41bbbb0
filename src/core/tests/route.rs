//! The table of routes: what readers see while writers change it.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::shared::{Arm, ROUTES, Route, RouteSpec, RouteStats, Routes};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct Memory {
    count: AtomicU64,
    entries: Vec<Route>,
    stats: Vec<RouteStats>,
}

impl Memory {
    fn new() -> Self {
        let entries = (0..ROUTES).map(|_| Route::default()).collect();
        let stats = (0..4).map(|_| RouteStats::default()).collect();
        Self { count: AtomicU64::new(0), entries, stats }
    }

    fn routes(&self) -> Routes<'_> {
        Routes::new(&self.count, &self.entries, &self.stats)
    }
}

/// All of whose fields follow from one number.
fn spec(source: u32, stats: u32, number: u32) -> RouteSpec {
    let indexes = (1..=number % 20).map(|i| (i, number + i)).collect();
    RouteSpec {
        database: 5,
        source,
        shadow: number,
        storage: number,
        horizon: number,
        stats,
        indexes,
        ..RouteSpec::default()
    }
}

#[test]
fn routes_are_made_found_and_removed() {
    let memory = Memory::new();
    let routes = memory.routes();
    assert!(!routes.any() && routes.find(5, 10).is_none());
    let (a, b) = (routes.stats_for(1).unwrap(), routes.stats_for(2).unwrap());
    assert_eq!(routes.stats_for(1), Some(a));
    assert!(
        routes.make(&spec(10, a, 100)) && routes.make(&spec(11, a, 103)) && routes.make(&spec(12, b, 105))
    );
    assert!(routes.any());
    assert_eq!(routes.of_database(5).count(), 3);
    assert_eq!(routes.of_database(6).count(), 0);
    let seen = routes.find(5, 11).unwrap();
    assert_eq!(
        (seen.shadow, seen.counterpart(2), seen.original(105), seen.counterpart(0)),
        (103, Some(105), Some(2), None)
    );
    assert!(!routes.is_open(&seen), "weight 0");
    routes.set_weight(a, 1.0);
    assert!(routes.is_open(&seen) && routes.find(5, 11).unwrap().weight == u32::MAX);
    assert_eq!(routes.find(5, 12).unwrap().weight, 0, "another move");
    routes.remove(a, true);
    assert!(!routes.is_open(&seen));
    assert_eq!(routes.of_database(5).map(|s| s.source).collect::<Vec<_>>(), [12]);
    routes.remove(b, true);
    assert!(!routes.any() && routes.stats_of(1).is_none());
    let too_many = RouteSpec { indexes: vec![(1, 2); 25], ..spec(13, a, 1) };
    assert!(!routes.make(&too_many) && !routes.any());
    let made = (0..ROUTES as u32 + 1).filter(|n| routes.make(&spec(20 + n, 0, *n))).count();
    assert_eq!(made, ROUTES);
}

/// The copies of a split: a route each, which fail and go together.
#[test]
fn a_partition_has_a_route_for_every_copy() {
    let memory = Memory::new();
    let routes = memory.routes();
    let stats = routes.stats_for(1).unwrap();
    let copy = |number| RouteSpec { parent: 3, staging: 4, ..spec(10, stats, number) };
    assert!(routes.make(&copy(7)) && routes.make(&copy(8)) && routes.make(&copy(7)));
    routes.set_weight(stats, 0.5);
    let seen: Vec<_> = routes.of_database(5).collect();
    assert_eq!(seen.iter().map(|s| (s.source, s.shadow)).collect::<Vec<_>>(), [(10, 7), (10, 8)]);
    assert!(seen.iter().all(|s| routes.is_open(s) && (s.parent, s.staging) == (3, 4)));
    routes.fail(5, 10);
    assert!(seen.iter().all(|s| !routes.is_open(s) && routes.has_failed(s)));
    routes.remove(stats, true);
    assert!(!routes.any());
    // That of a move, which has one copy, is made anew whatever its copy.
    assert!(routes.make(&spec(10, stats, 7)) && routes.make(&spec(10, stats, 8)));
    assert_eq!(routes.of_database(5).map(|s| s.shadow).collect::<Vec<_>>(), [8]);
}

#[test]
fn a_failure_is_not_undone_by_a_weight() {
    let memory = Memory::new();
    let routes = memory.routes();
    let stats = routes.stats_for(1).unwrap();
    routes.make(&spec(10, stats, 7));
    routes.set_weight(stats, 0.5);
    let seen = routes.find(5, 10).unwrap();
    routes.fail(6, 10);
    assert!(routes.is_open(&seen), "another database");
    routes.fail(5, 10);
    routes.set_weight(stats, 1.0);
    assert!(!routes.is_open(&seen) && routes.has_failed(&seen) && routes.find(5, 10).unwrap().weight == 0);
    // Made anew, under a lock that keeps writers out.
    routes.make(&spec(10, stats, 8));
    routes.set_weight(stats, 1.0);
    assert!(!routes.is_open(&seen), "what was seen is another route");
    assert!(routes.is_open(&routes.find(5, 10).unwrap()));
}

/// A table of Citus has no copy here: every move of one of its slots times it by a route of its own.
#[test]
fn a_table_without_a_copy_is_timed_by_several_moves() {
    let memory = Memory::new();
    let routes = memory.routes();
    let spec = |stats: u32| RouteSpec { database: 5, source: 10, stats, ..RouteSpec::default() };
    assert!(routes.make(&spec(0)) && routes.make(&spec(1)) && routes.make(&spec(1)));
    let timing = || routes.of_database(5).map(|seen| (seen.source, seen.stats)).collect::<Vec<_>>();
    assert_eq!(timing(), [(10, 0), (10, 1)]);
    routes.remove(0, true);
    assert_eq!(timing(), [(10, 1)]);
}

/// Readers never see half of one route and half of another.
#[test]
fn a_route_is_read_whole() {
    let memory = Memory::new();
    let (stop, whole) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let Some(seen) = memory.routes().find(5, 10) else { continue };
                    let n = seen.shadow;
                    assert_eq!((seen.storage, seen.horizon), (n, n));
                    let last = (n % 20 > 0).then_some(n + n % 20);
                    assert_eq!(seen.counterpart(n % 20), last);
                    assert_eq!(seen.counterpart(n % 20 + 1), None);
                    whole.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut number = 0;
        while whole.load(Ordering::Relaxed) < 20_000 {
            number += 1;
            memory.routes().make(&spec(10, 0, number));
            if number % 1000 == 0 {
                memory.routes().remove(0, false);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn statistics_begin_empty() {
    let memory = Memory::new();
    let routes = memory.routes();
    let (place, stats) = (routes.stats_for(9).unwrap(), routes.stats_of(9).unwrap().1);
    stats.arm(Arm::Routed).add(1_000_000);
    stats.differed.store(3, Ordering::Relaxed);
    routes.remove(place, true);
    routes.stats_for(10).unwrap();
    let stats = routes.stats_of(10).unwrap().1;
    assert_eq!((stats.arm(Arm::Routed).read().total(), stats.differed.load(Ordering::Relaxed)), (0, 0));
}
