//! What a plan sees beyond the present load: peaks to come, links, classes, time, and what became of it.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::placement::{
    ANY, Carried, Hold, Link, Pace, PlanOptions, Realised, RefusalReason, Segment, Shard, Start, Timing,
    fixed_s, outcome, plan, plan_linked, schedule, shared_capacities,
};
use proptest::prelude::*;

fn shards(count: i32) -> Vec<Shard> {
    (0..count)
        .map(|id| Shard { id, capacity: 1_000.0, draining: false, accepts: ANY, round_trip_ms: 0.0 })
        .collect()
}

fn segment(id: i64, shard: i32, curve: Vec<f64>) -> Segment {
    let futures = vec![curve.clone(); 8];
    Segment {
        id,
        shard,
        bytes: 1 << 30,
        curve,
        futures,
        hold: Hold::Free,
        hot_buckets: 0,
        class: ANY,
        wait_cost: 0.0,
    }
}

/// Flat for `quiet` leads with a dip at lead 5, then a peak.
fn rising(height: f64, quiet: usize) -> Vec<f64> {
    (0..24)
        .map(|lead| match lead {
            5 => 0.2 * height,
            lead if lead < quiet => 0.5 * height,
            _ => height,
        })
        .collect()
}

/// Eight slots on two shards, those of the first with a peak to come.
fn before_the_peak() -> Vec<Segment> {
    let hot = (0..4).map(|id| segment(id, 0, rising(100.0, 10)));
    hot.chain((4..8).map(|id| segment(id, 1, vec![20.0; 24]))).collect()
}

/// A move by Citus has no canary, so it need not begin as early as one that has.
#[test]
fn a_move_takes_the_dwells_that_it_has() {
    let takes = |carried| fixed_s(carried, 5.0, 5.0);
    assert_eq!(takes(Carried::Here { canary_steps: 6 }), 35.0);
    assert_eq!(takes(Carried::Here { canary_steps: 0 }), 5.0);
    assert_eq!(takes(Carried::ByCitus { is_watched: true }), 10.0);
    assert_eq!(takes(Carried::ByCitus { is_watched: false }), 5.0);
}

fn pace() -> Pace {
    Pace {
        lead_s: 3_600,
        bytes_per_s: (1 << 20) as f64,
        fixed_s: 60.0,
        concurrent: 1,
        margin: 1.5,
        batch_bytes: 1e6,
        round_trips: 20.0,
    }
}

fn timings(segments: &[Segment], pace: &Pace, open: &[bool]) -> Vec<Timing> {
    let options = PlanOptions::default();
    let plan = plan(&shards(2), segments, &options).unwrap();
    assert!(!plan.steps.is_empty());
    schedule(&shards(2), segments, &plan, &options, pace, open).unwrap()
}

#[test]
fn a_peak_is_acted_upon_before_it_is_there_if_the_futures_agree() {
    let sure = plan(&shards(2), &before_the_peak(), &PlanOptions::default()).unwrap();
    assert!(!sure.steps.is_empty() && sure.steps.iter().all(|step| step.foreseen && step.from == 0));
    assert!(sure.steps[0].reason.contains("will be above"), "{}", sure.steps[0].reason);
    let mut doubtful = before_the_peak();
    for segment in &mut doubtful {
        // In most of the futures the peak does not come.
        segment.futures =
            [segment.curve.clone(), vec![20.0; 24], vec![20.0; 24]].into_iter().cycle().take(8).collect();
    }
    let plan = plan(&shards(2), &doubtful, &PlanOptions::default()).unwrap();
    assert!(plan.steps.is_empty());
    assert!(plan.refusals.iter().all(|r| r.reason == RefusalReason::NotHotLongEnough));
}

#[test]
fn a_move_begins_in_the_last_valley_before_the_peak() {
    let first = timings(&before_the_peak(), &pace(), &[])[0];
    assert_eq!((first.lead, first.overload_lead, first.start), (5, Some(10), Start::Valley));
    // Only the night is open, and the valley is not in it.
    let open: Vec<bool> = (0..24).map(|lead| lead < 3).collect();
    assert!(timings(&before_the_peak(), &pace(), &open)[0].lead < 3);
    let shut = timings(&before_the_peak(), &pace(), &[false; 24]);
    assert!(shut.iter().all(|timing| timing.start == Start::Closed));
}

#[test]
fn a_move_that_takes_long_begins_early_and_one_too_late_at_once() {
    // Eight hours for a GiB, with the margin: the peak is in ten.
    let slow = Pace { bytes_per_s: (1 << 30) as f64 / (5.3 * 3_600.0), ..pace() };
    let first = timings(&before_the_peak(), &slow, &[])[0];
    assert!(first.lead <= 2, "{first:?}");
    let slower = Pace { bytes_per_s: 1e4, ..pace() };
    let first = timings(&before_the_peak(), &slower, &[])[0];
    assert_eq!((first.lead, first.start), (0, Start::NoValley));
}

#[test]
fn an_overload_that_is_there_is_not_waited_for() {
    let mut hot = before_the_peak();
    hot.iter_mut().take(4).for_each(|segment| segment.curve = vec![100.0; 24]);
    let first = timings(&hot, &pace(), &[])[0];
    assert_eq!((first.lead, first.overload_lead, first.start), (0, Some(0), Start::Overloaded));
}

#[test]
fn a_drain_waits_for_the_quietest_time_and_no_longer() {
    let mut places = shards(2);
    places[0].draining = true;
    let segments = before_the_peak();
    let options = PlanOptions::default();
    let plan = plan(&places, &segments, &options).unwrap();
    let timings = schedule(&places, &segments, &plan, &options, &pace(), &[]).unwrap();
    assert_eq!((timings[0].lead, timings[0].start), (5, Start::Quiet));
    assert!(timings.iter().all(|timing| timing.overload_lead.is_none()));
}

#[test]
fn what_is_used_together_comes_together_unless_it_overloads() {
    let segments: Vec<_> = (0..8).map(|id| segment(id, (id % 2) as i32, vec![50.0; 4])).collect();
    let link = |weight| [Link { a: 0, b: 1, weight }];
    let options = PlanOptions { imbalance_low: 0.3, imbalance_high: 0.5, ..PlanOptions::default() };
    let loose = plan_linked(&shards(2), &segments, &link(0.1), &options).unwrap();
    assert!(loose.steps.is_empty(), "a weak link pays no move");
    let tight = plan_linked(&shards(2), &segments, &link(100.0), &options).unwrap();
    assert_eq!(tight.steps.len(), 1);
    assert!(tight.steps[0].segment < 2 && tight.imbalance_after <= 1.3);
    let strict = PlanOptions { imbalance_low: 0.1, ..options };
    assert!(plan_linked(&shards(2), &segments, &link(100.0), &strict).unwrap().steps.is_empty());
}

#[test]
fn a_segment_goes_only_where_its_class_may() {
    let mut places = shards(3);
    places[1].accepts = 0b01;
    places[2].accepts = 0b10;
    let mut segments: Vec<_> = (0..6).map(|id| segment(id, 0, vec![50.0; 4])).collect();
    segments.iter_mut().for_each(|segment| (segment.class, segment.hot_buckets) = (0b10, 9));
    let plan = plan(&places, &segments, &PlanOptions::default()).unwrap();
    // What the middle one could carry is no use to them: they are shared evenly by the two that may have them.
    assert!(plan.steps.len() == 3 && plan.steps.iter().all(|step| step.to == 2), "{:?}", plan.steps);
    let mean = |id: i32| segments.iter().filter(|one| one.shard == id).count();
    assert_eq!((mean(0), shared_capacities(&places, &segments)), (6, vec![1_000.0; 2]));
}

#[test]
fn outcomes_are_judged_by_what_came() {
    let came = |moved: f64, stay: f64, there: f64| Realised {
        moved: vec![moved; 3],
        stay: vec![stay; 3],
        there: vec![there; 3],
        total: vec![moved + stay + there; 3],
        from_capacity: 100.0,
        to_capacity: 100.0,
        capacity: 200.0,
        drains: false,
        joined: 0.0,
        least_gain: 1.0,
    };
    let good = outcome(&came(30.0, 60.0, 10.0));
    assert!(good.paid && (good.gain - 30.0).abs() < 1e-9, "{good:?}");
    assert!(!outcome(&came(30.0, 30.0, 60.0)).paid, "the target was the hot one");
    assert!(!outcome(&came(0.5, 60.0, 59.0)).paid, "too little to pay");
    assert!(outcome(&Realised { drains: true, ..came(30.0, 0.0, 60.0) }).paid);
    assert!(!outcome(&Realised { drains: true, ..came(30.0, 0.0, 80.0) }).paid);
}

prop_compose! {
    fn problem()(count in 2_i32..6)(
        segments in prop::collection::vec((0..count, prop::collection::vec(0.0_f64..50.0, 4)), 0..40),
        count in Just(count),
    ) -> (Vec<Shard>, Vec<Segment>) {
        let segments = (0..).zip(segments).map(|(id, (shard, curve))| segment(id, shard, curve));
        (shards(count), segments.collect())
    }
}

fn links() -> impl Strategy<Value = Vec<Link>> {
    let link = (0_i64..40, 0_i64..40, 1.0_f64..200.0).prop_map(|(a, b, weight)| Link { a, b, weight });
    prop::collection::vec(link, 0..30)
}

prop_compose! {
    /// A problem, other names for its segments and shards, and links. No two shards have the same capacity: equals are
    /// told apart by nothing but their names.
    fn relabelled()((mut places, segments) in problem(), links in links(), spread in 0.01_f64..0.2)(
        order in Just((0..segments.len()).collect::<Vec<_>>()).prop_shuffle(),
        shard_order in Just((0..places.len()).collect::<Vec<_>>()).prop_shuffle(),
        places in Just({
            places.iter_mut().enumerate().for_each(|(at, place)| place.capacity *= 1.0 + spread * at as f64);
            places
        }),
        links in Just(links.into_iter().filter(|l| l.a.max(l.b) < segments.len() as i64).collect::<Vec<_>>()),
        segments in Just(segments),
    ) -> (Vec<Shard>, Vec<Segment>, Vec<usize>, Vec<usize>, Vec<Link>) {
        (places, segments, order, shard_order, links)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn a_plan_never_exceeds_a_capacity_that_was_respected(
        (mut places, segments) in problem(),
        links in links(),
        tight in 1.0_f64..1.5,
        low in 0.05_f64..0.6,
    ) {
        // Capacities that are just respected at the start.
        for place in &mut places {
            let here = |lead: usize| -> f64 {
                segments.iter().filter(|s| s.shard == place.id).map(|s| s.curve[lead]).sum()
            };
            place.capacity = (0..4).map(here).fold(1.0, f64::max) * tight;
        }
        let options = PlanOptions { imbalance_low: low, imbalance_high: low + 0.1, ..PlanOptions::default() };
        let plan = plan_linked(&places, &segments, &links, &options).unwrap();
        let mut after = segments.clone();
        for step in &plan.steps {
            after[step.segment as usize].shard = step.to;
            for place in &places {
                let here = |lead: usize| -> f64 {
                    after.iter().filter(|s| s.shard == place.id).map(|s| s.curve[lead]).sum()
                };
                prop_assert!((0..4).map(here).fold(0.0, f64::max) <= place.capacity * (1.0 + 1e-9));
            }
        }
    }

    #[test]
    fn other_names_in_another_order_make_no_other_plan(
        (places, segments, order, shard_order, links) in relabelled(),
    ) {
        let options = PlanOptions::default();
        let first = plan_linked(&places, &segments, &links, &options).unwrap();
        // Segment i is called order[i] and stands at that place; shards likewise.
        let mut renamed = segments.clone();
        for (segment, name) in segments.iter().zip(&order) {
            let shard = shard_order[segment.shard as usize] as i32;
            renamed[*name] = Segment { id: *name as i64, shard, ..segment.clone() };
        }
        let mut elsewhere = places.clone();
        for (place, name) in places.iter().zip(&shard_order) {
            elsewhere[*name] = Shard { id: *name as i32, ..place.clone() };
        }
        let name = |id: i64| order[id as usize] as i64;
        // Links come in another order as well, and from their other ends.
        let turned: Vec<Link> =
            links.iter().rev().map(|link| Link { a: name(link.b), b: name(link.a), weight: link.weight }).collect();
        let second = plan_linked(&elsewhere, &renamed, &turned, &options).unwrap();
        let steps: Vec<_> = first
            .steps
            .iter()
            .map(|s| (name(s.segment), shard_order[s.from as usize] as i32, shard_order[s.to as usize] as i32))
            .collect();
        let other: Vec<_> = second.steps.iter().map(|s| (s.segment, s.from, s.to)).collect();
        prop_assert_eq!(steps, other);
        prop_assert!((first.imbalance_after - second.imbalance_after).abs() < 1e-9);
    }

    #[test]
    fn balanced_input_needs_no_plan(load in 1.0_f64..50.0, count in 2_i32..6) {
        let segments: Vec<_> = (0..i64::from(count) * 4).map(|id| segment(id, (id % i64::from(count)) as i32, vec![load; 4])).collect();
        prop_assert!(plan(&shards(count), &segments, &PlanOptions::default()).unwrap().steps.is_empty());
    }
}
