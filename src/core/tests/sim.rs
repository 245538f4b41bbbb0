//! The whole chain on small simulated clusters; `make bench-sim` has the large ones.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::placement::PlanOptions;
use foreshard_core::sim::{
    Composition, Foreshard, Incident, Knowledge, Never, Policy, Reactive, Report, Scene, Shape, by_keys,
    by_series, run, thrash,
};

/// A day with its peak in the afternoon, for four weeks of hours.
fn day() -> Vec<(u32, Vec<f64>)> {
    let angle = |hour: usize| (hour as f64 - 15.0) / 24.0 * std::f64::consts::TAU;
    vec![(3_600, (0..672).map(|hour| 1.2 + angle(hour).cos()).collect())]
}

fn scene(shape: Shape, incidents: Vec<Incident>) -> Scene {
    by_series(
        &day(),
        &Composition {
            slots: 12,
            shards: 3,
            tick_s: 900,
            warm_up_ticks: 7 * 96,
            ticks: 2 * 96,
            // A shard less must do, too.
            utilisation: if incidents.is_empty() { 0.8 } else { 0.5 },
            shape,
            incidents,
            ..Composition::default()
        },
    )
}

fn foreshard(scene: &Scene, knowledge: Knowledge) -> Report {
    run(scene, &mut Foreshard::new(knowledge, PlanOptions { min_hot_buckets: 1, ..PlanOptions::default() }))
}

#[test]
fn a_daily_pattern_is_balanced_and_then_left_alone() {
    let scene = scene(Shape::Seasonal, Vec::new());
    let (never, ours) = (run(&scene, &mut Never), foreshard(&scene, Knowledge::Forecasts));
    println!("{never:?}\n{ours:?}");
    assert!(never.overload_min > 100.0 && ours.overload_min < never.overload_min / 2.0);
    assert!(ours.moves <= 8, "{} moves", ours.moves);
    assert_eq!(ours, foreshard(&scene, Knowledge::Forecasts), "it is deterministic");
}

#[test]
fn a_stationary_load_is_not_moved_about() {
    let scene = scene(Shape::Stationary, Vec::new());
    let ours = foreshard(&scene, Knowledge::Forecasts);
    assert_eq!(ours.thrash, 0.0, "{ours:?}");
}

#[test]
fn a_draining_shard_is_emptied_and_a_lost_one_not_moved_to() {
    let begin = 7 * 96;
    let drained = scene(Shape::Stationary, vec![Incident::Drain { tick: begin + 4, shard: 0 }]);
    let slots = drained.start.iter().filter(|shard| **shard == 0).count();
    assert!(foreshard(&drained, Knowledge::Oracle).moves >= slots);
    assert!(run(&drained, &mut Reactive::default()).moves >= slots);
    let lost = scene(Shape::Stationary, vec![Incident::Loss { tick: begin + 4, shard: 0 }]);
    // Nothing to assert but that slots of a lost shard are served elsewhere and orders to it are not taken.
    assert!(run(&lost, &mut Reactive::default()).overload_min >= 0.0);
}

#[test]
fn keys_become_slots_with_links() {
    let keys: Vec<u32> = (0..20_000_u32).map(|i| i * i % 97).collect();
    let how = Composition { slots: 8, shards: 2, warm_up_ticks: 10, ..Composition::default() };
    let scene = by_keys(&keys, 500, &how);
    assert_eq!((scene.trace.ticks(), scene.trace.slots, scene.capacities.len()), (40, 8, 2));
    assert!(!scene.links.is_empty() && scene.links.iter().all(|link| link.a < link.b && link.weight > 0.0));
    assert_eq!(Never.name(), run(&scene, &mut Never).policy);
}

#[test]
fn thrash_is_0_for_monotone_series_and_grows_with_oscillation() {
    assert_eq!(thrash(&[]), 0.0);
    assert_eq!(thrash(&[0.1, 0.2, 0.2, 0.9]), 0.0);
    assert_eq!(thrash(&[0.9, 0.5, 0.1]), 0.0);
    let once = thrash(&[0.0, 1.0, 0.0]);
    let often = thrash(&[0.0, 1.0, 0.0, 1.0, 0.0]);
    assert!(once > 0.0 && often > once);
}
