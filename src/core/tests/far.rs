//! What plans make of round trips: who waits for a node pays for it, and where all are equally far nothing changes.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::placement::{
    ANY, Hold, Pace, Plan, PlanOptions, RefusalReason, Segment, Shard, Unfit, consider, objective, plan,
    schedule,
};
use proptest::prelude::*;

fn shards(round_trips_ms: &[f64]) -> Vec<Shard> {
    let one = |(id, ms): (i32, &f64)| Shard {
        id,
        capacity: 1_000.0,
        draining: false,
        accepts: ANY,
        round_trip_ms: *ms,
    };
    (0..).zip(round_trips_ms).map(one).collect()
}

fn segment(id: i64, shard: i32, load: f64, wait_cost: f64) -> Segment {
    Segment {
        id,
        shard,
        bytes: 1 << 20,
        curve: vec![load],
        futures: vec![vec![load]; 4],
        hold: Hold::Free,
        hot_buckets: 5,
        class: ANY,
        wait_cost,
    }
}

/// Eight segments on the first of some shards.
fn crowd(wait_cost: f64) -> Vec<Segment> {
    (0..8).map(|id| segment(id, 0, 20.0, wait_cost)).collect()
}

fn planned(shards: &[Shard], segments: &[Segment]) -> Plan {
    plan(shards, segments, &PlanOptions::default()).unwrap()
}

#[test]
fn the_nearer_of_equal_shards_takes_the_first() {
    for (round_trips, nearest) in [([0.0, 5.0, 0.25], 2), ([0.0, 0.25, 5.0], 1)] {
        let plan = planned(&shards(&round_trips), &crowd(1.0));
        assert_eq!(plan.steps[0].to, nearest, "{plan:?}");
        assert!(plan.steps.iter().any(|step| step.reason.contains("wait for a node")), "{plan:?}");
    }
}

#[test]
fn what_would_wait_longer_than_it_relieves_stays() {
    let (far, segments) = (shards(&[0.0, 50.0]), crowd(1.0));
    let plan = planned(&far, &segments);
    assert!(plan.steps.is_empty(), "{plan:?}");
    assert_eq!(plan.refusals.len(), 8);
    assert!(plan.refusals.iter().all(|refusal| refusal.reason == RefusalReason::RoundTrip), "{plan:?}");
    assert!(RefusalReason::RoundTrip.advice().contains("foreshard.wait_cost"));
    let asked = consider(&far, &segments, &[], &PlanOptions::default(), 0).unwrap().unwrap();
    let candidate = asked.candidates[0];
    assert_eq!((candidate.unfit, candidate.farther), (Some(Unfit::RoundTrip), 50.0));
    // The same load of segments that are seldom accessed goes there.
    assert!(!planned(&far, &crowd(0.01)).steps.is_empty());
}

#[test]
fn who_waits_less_gains_by_it() {
    let mut segments = crowd(1.0);
    let near = planned(&shards(&[0.0, 0.0]), &segments);
    let home = planned(&shards(&[3.0, 0.0]), &segments);
    assert!((home.steps[0].benefit - near.steps[0].benefit - 3.0).abs() < 1e-9, "{home:?}");
    assert!(home.steps[0].reason.contains("wait less"), "{home:?}");
    // By itself a round trip moves nothing: where no shard is overloaded all stays.
    segments.iter_mut().for_each(|segment| segment.shard = (segment.id % 2) as i32);
    assert!(planned(&shards(&[3.0, 0.0]), &segments).steps.is_empty());
}

#[test]
fn a_drain_counts_waiting_as_load() {
    let mut places = shards(&[0.0, 10.0, 0.0]);
    places[0].draining = true;
    let goes_to = |places: &[Shard], wait_cost: f64| {
        let segments = [segment(0, 0, 20.0, wait_cost), segment(1, 2, 100.0, 0.0)];
        planned(places, &segments).steps[0].to
    };
    assert_eq!(goes_to(&places, 1.0), 1);
    assert_eq!(goes_to(&places, 20.0), 2);
    // Of equals the nearer one, not the first.
    assert_eq!(planned(&places, &[segment(0, 0, 20.0, 0.1)]).steps[0].to, 2);
}

#[test]
fn moves_to_nodes_take_their_round_trips() {
    let pace = Pace {
        lead_s: 60,
        bytes_per_s: 1e6,
        fixed_s: 5.0,
        concurrent: 1,
        margin: 1.0,
        batch_bytes: 1e5,
        round_trips: 100.0,
    };
    assert_eq!(pace.duration_s(10_000_000, 0.0), 15.0);
    assert_eq!(pace.duration_s(10_000_000, 50.0), 25.0);
    assert_eq!(pace.duration_s(10_000_000, f64::NAN), 15.0);
    let lasts = |round_trips: &[f64]| {
        let (places, segments, options) = (shards(round_trips), crowd(0.0), PlanOptions::default());
        let plan = plan(&places, &segments, &options).unwrap();
        schedule(&places, &segments, &plan, &options, &pace, &[]).unwrap()[0].duration_s
    };
    let waits = lasts(&[10.0, 40.0]) - lasts(&[0.0, 0.0]);
    assert!((waits - 0.05 * (100.0 + f64::from(1 << 20) / 1e5)).abs() < 1e-9, "{waits}");
}

prop_compose! {
    fn problem()(
        count in 2_usize..6
    )(
        round_trips in prop::collection::vec(0.0_f64..20.0, count),
        draining in prop::collection::vec(prop::bool::weighted(0.15), count),
        segments in prop::collection::vec((0..count as i32, 0.0_f64..50.0, 0.0_f64..10.0), 0..40),
    ) -> (Vec<Shard>, Vec<Segment>) {
        let mut places = shards(&round_trips);
        places.iter_mut().zip(draining).for_each(|(place, draining)| place.draining = draining);
        let one = |(id, (shard, load, wait_cost)): (i64, (i32, f64, f64))| segment(id, shard, load, wait_cost);
        (places, (0..).zip(segments).map(one).collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn every_step_lowers_the_objective_with_its_waits((places, mut segments) in problem()) {
        let plan = planned(&places, &segments);
        for step in &plan.steps {
            let before = objective(&places, &segments, &[]).unwrap();
            segments.iter_mut().filter(|one| one.id == step.segment).for_each(|one| one.shard = step.to);
            let gain = before - objective(&places, &segments, &[]).unwrap();
            prop_assert!(gain > 0.0 && (gain - step.benefit).abs() < 1e-6, "{} is not {}", gain, step.benefit);
        }
    }

    #[test]
    fn where_all_are_equally_far_or_nobody_waits_nothing_changes((mut places, mut segments) in problem()) {
        let known: Vec<f64> = places.iter().map(|place| place.round_trip_ms).collect();
        places.iter_mut().for_each(|place| place.round_trip_ms = 0.0);
        let near = planned(&places, &segments);
        places.iter_mut().for_each(|place| place.round_trip_ms = 7.3);
        prop_assert_eq!(&planned(&places, &segments), &near);
        segments.iter_mut().for_each(|one| one.wait_cost = 0.0);
        places.iter_mut().zip(known).for_each(|(place, ms)| place.round_trip_ms = ms);
        prop_assert_eq!(&planned(&places, &segments), &near);
    }
}
