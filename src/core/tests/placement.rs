//! Laws and examples of the planner and its yardstick.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::placement::{
    ANY, Hold, PlacementError, Plan, PlanOptions, RefusalReason, Segment, Shard, Unfit, best_assignment,
    consider, imbalance, objective, plan,
};
use proptest::prelude::*;

fn shards(count: i32) -> Vec<Shard> {
    (0..count)
        .map(|id| Shard { id, capacity: 1_000.0, draining: false, accepts: ANY, round_trip_ms: 0.0 })
        .collect()
}

fn segment(id: i64, shard: i32, curve: Vec<f64>) -> Segment {
    let futures = vec![curve.clone(); 4];
    Segment {
        id,
        shard,
        bytes: 1 << 20,
        curve,
        futures,
        hold: Hold::Free,
        hot_buckets: 5,
        class: ANY,
        wait_cost: 0.0,
    }
}

fn apply(segments: &[Segment], plan: &Plan, steps: usize) -> Vec<Segment> {
    let mut segments = segments.to_vec();
    for step in &plan.steps[..steps] {
        let moved = segments.iter_mut().find(|segment| segment.id == step.segment).unwrap();
        assert_eq!(moved.shard, step.from);
        moved.shard = step.to;
    }
    segments
}

fn defaults() -> PlanOptions {
    PlanOptions::default()
}

prop_compose! {
    fn problem()(count in 2_i32..6)(
        capacities in prop::collection::vec((100.0_f64..2_000.0, prop::bool::weighted(0.15)), count as usize),
        segments in prop::collection::vec(
            (0..count, prop::collection::vec(0.0_f64..50.0, 3), 0_u64..(1 << 30), 0_u8..12, 0_u32..8),
            0..40,
        ),
    ) -> (Vec<Shard>, Vec<Segment>) {
        let shards = (0..)
            .zip(capacities)
            .map(|(id, (capacity, draining))| Shard { id, capacity, draining, accepts: ANY, round_trip_ms: 0.0 })
            .collect();
        let segments = (0..)
            .zip(segments)
            .map(|(id, (shard, curve, bytes, hold, hot_buckets))| Segment {
                hold: match hold {
                    0 => Hold::Cooldown,
                    1 => Hold::InFlight,
                    2 => Hold::InsufficientHistory,
                    3 => Hold::Unsplittable,
                    4 => Hold::Pinned,
                    _ => Hold::Free,
                },
                bytes,
                hot_buckets,
                ..segment(id, shard, curve)
            })
            .collect();
        (shards, segments)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn every_prefix_is_better_than_the_one_before((shards, segments) in problem()) {
        let plan = plan(&shards, &segments, &defaults()).unwrap();
        let at = |steps| objective(&shards, &apply(&segments, &plan, steps), &[]).unwrap();
        for (index, step) in plan.steps.iter().enumerate() {
            let gain = at(index) - at(index + 1);
            prop_assert!(gain > 0.0, "step {} gains {}", index, gain);
            prop_assert!((gain - step.benefit).abs() < 1e-6, "{} is not {}", gain, step.benefit);
            prop_assert!((0.0..=1.0).contains(&step.confidence));
        }
        let reached = imbalance(&shards, &apply(&segments, &plan, plan.steps.len())).unwrap();
        prop_assert!((reached - plan.imbalance_after).abs() < 1e-9);
        prop_assert_eq!(imbalance(&shards, &segments).unwrap(), plan.imbalance_before);
    }

    #[test]
    fn balancing_never_raises_the_imbalance((mut shards, segments) in problem()) {
        shards.iter_mut().for_each(|shard| shard.draining = false);
        let plan = plan(&shards, &segments, &defaults()).unwrap();
        for step in &plan.steps {
            prop_assert!(step.peak_after <= step.peak_before + 1e-9, "{:?}", step);
            let moved = &segments[step.segment as usize];
            prop_assert_eq!(moved.hold, Hold::Free);
            prop_assert!(moved.hot_buckets >= 3 || step.foreseen);
        }
        prop_assert!(plan.imbalance_after <= plan.imbalance_before + 1e-9);
    }

    #[test]
    fn nothing_moves_to_a_draining_shard_and_no_refusal_was_moved((shards, segments) in problem()) {
        let plan = plan(&shards, &segments, &defaults()).unwrap();
        for step in &plan.steps {
            prop_assert!(!shards[step.to as usize].draining);
        }
        for (at, refusal) in plan.refusals.iter().enumerate() {
            prop_assert!(at == 0 || plan.refusals[at - 1].segment < refusal.segment);
        }
        let left = apply(&segments, &plan, plan.steps.len());
        let undrained = left.iter().filter(|segment| shards[segment.shard as usize].draining);
        for segment in undrained {
            prop_assert!(plan.refusals.iter().any(|refusal| refusal.segment == segment.id));
        }
    }

    #[test]
    fn what_is_considered_is_what_is_planned((shards, segments) in problem()) {
        let plan = plan(&shards, &segments, &defaults()).unwrap();
        for segment in &segments {
            let asked = consider(&shards, &segments, &[], &defaults(), segment.id).unwrap().unwrap();
            prop_assert_eq!(asked.candidates.len(), shards.len() - 1);
            let refused = plan.refusals.iter().any(|refusal| refusal.segment == segment.id);
            if plan.steps.is_empty() && refused && !shards[segment.shard as usize].draining {
                prop_assert!(asked.blocked.is_some() || asked.candidates.iter().all(|c| c.unfit.is_some()));
            }
        }
        if let Some(first) = plan.steps.first() {
            let asked = consider(&shards, &segments, &[], &defaults(), first.segment).unwrap().unwrap();
            let to = asked.candidates.iter().find(|candidate| candidate.shard == first.to).unwrap();
            prop_assert_eq!((asked.blocked, to.unfit), (None, None));
            prop_assert!((to.confidence - first.confidence).abs() < 1e-9);
            if !shards[first.from as usize].draining {
                prop_assert!((to.gain - first.benefit).abs() < 1e-6, "{} is not {}", to.gain, first.benefit);
                prop_assert!(asked.overloaded && asked.relative > 1.0);
            }
        }
    }

    #[test]
    fn planning_again_after_a_plan_adds_nothing((shards, segments) in problem()) {
        let first = plan(&shards, &segments, &defaults()).unwrap();
        let after = apply(&segments, &first, first.steps.len());
        prop_assert!(plan(&shards, &after, &defaults()).unwrap().steps.is_empty());
    }

    #[test]
    fn yardstick_is_within_its_bound(
        loads in prop::collection::vec(0.1_f64..100.0, 1..60),
        capacities in prop::collection::vec(1.0_f64..10.0, 1..8),
    ) {
        let best = best_assignment(&loads, &capacities);
        let mean = loads.iter().sum::<f64>() / capacities.iter().sum::<f64>();
        let mut sums = vec![0.0; capacities.len()];
        for (load, shard) in loads.iter().zip(&best.assignment) {
            sums[*shard] += load;
        }
        let hottest = sums.iter().zip(&capacities).map(|(s, c)| s / c).fold(0.0, f64::max);
        prop_assert!((hottest / mean - best.imbalance).abs() < 1e-9);
        prop_assert!(best.imbalance >= best.lower_bound - 1e-9);
    }
}

#[test]
fn yardstick_finds_a_perfect_partition() {
    let best = best_assignment(&[7.0, 5.0, 4.0, 3.0, 2.0, 2.0, 1.0], &[1.0, 1.0, 1.0]);
    assert!((best.imbalance - 1.0).abs() < 1e-12, "{best:?}");
    let hot = best_assignment(&[90.0, 5.0, 5.0], &[1.0, 1.0]);
    assert!((hot.imbalance - 1.8).abs() < 1e-12 && hot.imbalance == hot.lower_bound);
    assert_eq!(best_assignment(&[1.0], &[]).imbalance, 1.0);
    assert_eq!(best_assignment(&[], &[1.0]).lower_bound, 1.0);
}

#[test]
fn greedy_comes_near_the_yardstick() {
    let loads: Vec<f64> = (0..64).map(|i| 400.0 / (i as f64 + 4.0)).collect();
    let segments: Vec<_> =
        (0..).zip(&loads).map(|(id, load)| segment(id, (id / 16) as i32, vec![*load; 4])).collect();
    let plan = plan(&shards(4), &segments, &defaults()).unwrap();
    let best = best_assignment(&loads, &[1_000.0; 4]);
    println!("{:.3} -> {:.3}, best {:.3}", plan.imbalance_before, plan.imbalance_after, best.imbalance);
    assert!(plan.imbalance_after <= 1.1 && best.imbalance < 1.01);
    assert!(plan.refusals.is_empty());
    assert!(plan.steps.iter().all(|step| step.confidence > 0.9));
}

#[test]
fn complementary_peaks_share_a_shard() {
    let day = || vec![100.0, 0.0];
    let night = || vec![0.0, 100.0];
    let segments: Vec<_> = [(0, day()), (0, day()), (0, day()), (1, night()), (1, night()), (1, night())]
        .into_iter()
        .zip(0..)
        .map(|((shard, curve), id)| segment(id, shard, curve))
        .collect();
    // By daily totals the shards are equal; by their peaks they are not.
    let plan = plan(&shards(2), &segments, &defaults()).unwrap();
    assert_eq!(plan.imbalance_before, 2.0);
    assert!(plan.imbalance_after < 1.4, "{plan:?}");
}

#[test]
fn a_drain_empties_its_shard() {
    let mut shards = shards(3);
    shards[0].draining = true;
    let mut segments: Vec<_> = (0..9).map(|id| segment(id, (id % 3) as i32, vec![50.0])).collect();
    segments.push(segment(9, 0, vec![0.0]));
    segments[3].hold = Hold::Pinned;
    segments[6].hold = Hold::Cooldown;
    let plan = plan(&shards, &segments, &defaults()).unwrap();
    let moved: Vec<_> = plan.steps.iter().map(|step| step.segment).collect();
    assert_eq!(moved, [0, 6, 9]);
    assert!(plan.steps.iter().all(|step| step.from == 0 && step.to != 0 && step.confidence == 1.0));
    assert_eq!(plan.refusals.len(), 1);
    assert_eq!(plan.refusals[0].reason, RefusalReason::Pinned);
}

#[test]
fn a_drain_without_room_says_so() {
    let mut two = shards(2);
    two[0].draining = true;
    two[1].capacity = 60.0;
    let segments = [segment(1, 0, vec![50.0]), segment(2, 0, vec![50.0])];
    let plan_one = plan(&two, &segments, &defaults()).unwrap();
    assert_eq!(plan_one.steps.len(), 1);
    assert_eq!(plan_one.refusals[0].reason, RefusalReason::NoTargetCapacity);
    two[1].draining = true;
    assert_eq!(plan(&two, &segments, &defaults()).unwrap().refusals.len(), 2);
}

fn refusal(change: impl Fn(&mut Segment), options: &PlanOptions) -> Vec<RefusalReason> {
    let mut segments: Vec<_> = (0..8).map(|id| segment(id, 0, vec![20.0])).collect();
    segments.iter_mut().for_each(change);
    let plan = plan(&shards(2), &segments, options).unwrap();
    assert!(plan.steps.is_empty());
    let mut reasons: Vec<_> = plan.refusals.iter().map(|refusal| refusal.reason).collect();
    reasons.dedup();
    reasons
}

#[test]
fn refusals_are_typed() {
    use RefusalReason as R;
    let held = |hold| refusal(|segment| segment.hold = hold, &defaults());
    assert_eq!(held(Hold::Cooldown), [R::Cooldown]);
    assert_eq!(held(Hold::InFlight), [R::InFlight]);
    assert_eq!(held(Hold::InsufficientHistory), [R::InsufficientHistory]);
    assert_eq!(held(Hold::Pinned), [R::Pinned]);
    assert_eq!(held(Hold::Unsplittable), [R::UnsplittableKey]);
    let blind = PlanOptions { foresight: 1.1, ..defaults() };
    assert_eq!(refusal(|s| s.hot_buckets = 2, &blind), [R::NotHotLongEnough]);
    assert_eq!(refusal(|s| s.bytes = 1 << 50, &defaults()), [R::LowBenefit]);
    assert_eq!(refusal(|s| s.curve = vec![0.1], &defaults()), []);
    assert_eq!(R::UnsplittableKey.as_str(), "unsplittable_key");
    assert!(R::LowBenefit.advice().len() > 10);
}

#[test]
fn over_hot_segments_stay_while_others_leave() {
    let mut segments: Vec<_> = (1..5).map(|id| segment(id, 0, vec![20.0])).collect();
    segments.push(segment(0, 0, vec![200.0]));
    let plan = plan(&shards(2), &segments, &defaults()).unwrap();
    assert_eq!(plan.steps.len(), 4);
    assert_eq!(plan.refusals.len(), 1);
    assert_eq!((plan.refusals[0].segment, plan.refusals[0].reason), (0, RefusalReason::UnsplittableKey));
}

#[test]
fn over_hot_segments_of_one_shard_come_apart() {
    let mut segments: Vec<_> = (0..3).map(|id| segment(id, 0, vec![90.0])).collect();
    segments.extend((3..6).map(|id| segment(id, (id % 2) as i32 + 1, vec![10.0])));
    let plan = plan(&shards(3), &segments, &defaults()).unwrap();
    assert_eq!(plan.steps.len(), 2, "{plan:?}");
    assert!(plan.steps.iter().all(|step| step.segment < 3 && step.from == 0));
    assert_ne!(plan.steps[0].to, plan.steps[1].to);
}

#[test]
fn confidence_is_the_share_of_futures_that_pay() {
    let mut segments: Vec<_> = (0..8).map(|id| segment(id, 0, vec![20.0])).collect();
    for segment in &mut segments {
        // In half of the futures there is no load at all, so nothing to gain.
        segment.futures = vec![vec![20.0], vec![0.0]];
    }
    let half = plan(&shards(2), &segments, &defaults()).unwrap();
    assert!(half.steps.iter().all(|step| step.confidence == 0.5), "{half:?}");
    segments[7].futures.clear();
    let none = plan(&shards(2), &segments, &defaults()).unwrap();
    assert!(none.steps.iter().all(|step| step.confidence == 0.0));
}

#[test]
fn malformed_problems_are_refused() {
    let error = |shards: &[Shard], segments: &[Segment]| plan(shards, segments, &defaults()).err();
    assert_eq!(error(&[], &[]), Some(PlacementError::NoShards));
    let far = segment(1, 9, vec![1.0]);
    let unknown = PlacementError::UnknownShard { segment: 1, shard: 9 };
    assert_eq!(error(&shards(2), &[far]), Some(unknown));
    for curve in [vec![], vec![f64::NAN], vec![-1.0], vec![f64::INFINITY]] {
        let bad = PlacementError::BadCurve { segment: 1 };
        assert_eq!(error(&shards(2), &[segment(1, 0, curve)]), Some(bad));
    }
    let twice = [segment(1, 0, vec![1.0]), segment(1, 0, vec![1.0])];
    assert_eq!(error(&shards(2), &twice), Some(PlacementError::DuplicateSegment { segment: 1 }));
    let options = PlanOptions { imbalance_low: 0.5, ..defaults() };
    let bad = PlacementError::BadOption { name: "imbalance_low" };
    assert_eq!(plan(&shards(1), &[], &options), Err(bad));
    assert_eq!(plan(&shards(1), &[], &defaults()).unwrap().imbalance_before, 1.0);
}

#[test]
fn every_place_that_is_none_has_its_reason() {
    let mut shards = shards(4);
    shards[1].draining = true;
    shards[2].accepts = 2;
    let mut segments: Vec<Segment> = (0..4).map(|id| segment(id, 0, vec![100.0])).collect();
    segments.push(Segment { class: 2, ..segment(9, 2, vec![10.0]) });
    segments.iter_mut().take(4).for_each(|segment| segment.class = 1);
    let asked = consider(&shards, &segments, &[], &defaults(), 0).unwrap().unwrap();
    let said: Vec<_> = asked.candidates.iter().map(|c| (c.shard, c.unfit)).collect();
    assert_eq!(said[0], (3, None));
    assert!(said.contains(&(1, Some(Unfit::Draining))) && said.contains(&(2, Some(Unfit::WrongClass))));
    assert!(consider(&shards, &segments, &[], &defaults(), 77).unwrap().is_none());

    // What is not to be planned for stays, even on a shard that is being emptied.
    segments[0].hold = Hold::Off;
    let asked = consider(&shards, &segments, &[], &defaults(), 0).unwrap().unwrap();
    assert_eq!(asked.blocked, Some(RefusalReason::ModeOff));
    shards[0].draining = true;
    let plan = plan(&shards, &segments, &defaults()).unwrap();
    assert!(plan.steps.iter().all(|step| step.segment != 0) && plan.steps.len() == 3);
    assert!(plan.refusals.iter().any(|r| (r.segment, r.reason) == (0, RefusalReason::ModeOff)));
}
