//! Chains are the cheapest ones, costs are learnt, breakers let nobody through who should wait, and answers become
//! each row once.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::resolve::{
    Admission, Answer, Breaker, Edge, Frontier, Learnt, Limits, Resolved, Rules, SUMS, Sample, Step, TooMuch,
    array_literal, cheapest,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A source: classes, ms per call, ms per key, rows per key.
type Priced = (usize, usize, f64, f64, f64);

fn price(sources: &[Priced]) -> impl Fn(usize, f64) -> Option<Step> + '_ {
    |edge, keys| {
        let (_, _, call, per_key, fan_out) = sources[edge];
        (call >= 0.0).then_some(Step { ms: call + per_key * keys, rows: keys * fan_out })
    }
}

fn edges(sources: &[Priced]) -> Vec<Edge> {
    sources.iter().map(|(from, to, ..)| Edge { from: *from, to: *to }).collect()
}

/// Latencies of all simple chains, cheapest first.
fn all_chains(sources: &[Priced], from: usize, to: usize, keys: f64, steps: usize) -> Vec<f64> {
    fn go(
        sources: &[Priced],
        passed: &mut Vec<usize>,
        to: usize,
        (ms, keys): (f64, f64),
        left: usize,
        out: &mut Vec<f64>,
    ) {
        let at = *passed.last().unwrap();
        if at == to {
            out.push(ms);
            return;
        }
        for (number, source) in sources.iter().enumerate() {
            if source.0 == at
                && !passed.contains(&source.1)
                && left > 0
                && let Some(step) = price(sources)(number, keys)
            {
                passed.push(source.1);
                go(sources, passed, to, (ms + step.ms, step.rows), left - 1, out);
                passed.pop();
            }
        }
    }
    let mut out = Vec::new();
    go(sources, &mut vec![from], to, (0.0, keys), steps, &mut out);
    out.sort_by(f64::total_cmp);
    out
}

fn limits(steps: usize, chains: usize) -> Limits {
    Limits { steps, chains, looks: 1_000_000 }
}

fn sources() -> impl Strategy<Value = Vec<Priced>> {
    // A call below zero cannot be asked.
    let fan_out = prop_oneof![Just(0.0), Just(0.1), Just(1.0), 0.0..50.0];
    let one = (0_usize..6, 0_usize..6, -1.0..20.0, 0.0..2.0, fan_out);
    proptest::collection::vec(one, 0..16)
}

proptest! {
    #[test]
    fn chains_are_exactly_the_cheapest(sources in sources(), keys in 1.0..100.0, steps in 1_usize..6, chains in 1_usize..6) {
        let found = cheapest(&edges(&sources), 6, (0, 1), keys, &limits(steps, chains), price(&sources));
        let mut expected = all_chains(&sources, 0, 1, keys, steps);
        expected.truncate(chains);
        let own: Vec<f64> = found.chains.iter().map(|chain| chain.ms).collect();
        prop_assert!(!found.cut);
        prop_assert_eq!(own.len(), expected.len(), "{:?} {:?}", own, expected);
        for (a, b) in own.iter().zip(&expected) {
            prop_assert!((a - b).abs() < 1e-6, "{:?} {:?}", own, expected);
        }
        let distinct: BTreeSet<&Vec<usize>> = found.chains.iter().map(|chain| &chain.edges).collect();
        prop_assert_eq!(distinct.len(), found.chains.len());
    }

    #[test]
    fn predictions_grow_with_keys_and_are_numbers(
        samples in proptest::collection::vec((0.0..5000.0, 0.0..10_000.0, 0.0..5000.0, 0.0..100_000.0, any::<bool>()), 0..30),
        few in 0.0..1000.0, more in 0.0..1000.0, hint in proptest::option::of(0.0..1e4),
    ) {
        let mut learnt = Learnt::default();
        let mut now_ms = 0.0;
        for (keys, rows, ms, pause, fails) in samples {
            now_ms += pause;
            if fails { learnt.failed(now_ms) } else { learnt.answered(now_ms, Sample { keys, rows, ms }) }
        }
        let (a, b) = (learnt.predict(now_ms, hint, few), learnt.predict(now_ms, hint, few + more));
        prop_assert!(a.ms.is_finite() && a.ms >= 0.0 && a.rows.is_finite() && a.rows >= 0.0, "{:?}", a);
        prop_assert!(b.ms >= a.ms && b.rows >= a.rows, "{:?} {:?}", a, b);
        prop_assert_eq!(Learnt::from_sums(&learnt.sums()), learnt);
    }

    #[test]
    fn nobody_passes_an_open_breaker_and_one_tries(
        steps in proptest::collection::vec((0_u8..3, 0.0..3000.0), 1..60), failures in 1_u32..5,
    ) {
        let rules = Rules { failures, pause_ms: 1000.0, longest_ms: 8000.0 };
        let mut breaker = Breaker::default();
        let (mut now_ms, mut in_a_row, mut closed_until) = (1.0, 0, 0.0_f64);
        for (what, pause) in steps {
            now_ms += pause;
            match what {
                0 => match breaker.admit(now_ms, &rules) {
                    Admission::Open => prop_assert!(in_a_row < failures),
                    Admission::Probe => {
                        prop_assert!(in_a_row >= failures && now_ms >= closed_until);
                        // While one tries, nobody else does.
                        prop_assert!(matches!(breaker.admit(now_ms, &rules), Admission::KeptOut(until) if until > now_ms));
                        closed_until = now_ms;
                    }
                    Admission::KeptOut(until) => {
                        prop_assert!(in_a_row >= failures && until > now_ms && until <= now_ms + rules.longest_ms);
                    }
                },
                1 => {
                    breaker.succeeded();
                    in_a_row = 0;
                    prop_assert_eq!(breaker.look(now_ms), Admission::Open);
                }
                _ => {
                    breaker.failed(now_ms, &rules);
                    in_a_row += 1;
                    if in_a_row >= failures { closed_until = now_ms + rules.pause_ms; }
                }
            }
        }
    }

    #[test]
    fn answers_are_joined_like_sets(
        inputs in proptest::collection::vec(0_u8..6, 0..8),
        first in proptest::collection::vec((0_u8..8, 0_u8..8), 0..30),
        second in proptest::collection::vec((0_u8..8, 0_u8..8), 0..30),
    ) {
        let answer = |(key, output): &(u8, u8)| Answer { key: key.to_string(), output: output.to_string(), attributes: None };
        let rows = |pairs: &[(u8, u8)]| pairs.iter().map(answer).collect::<Vec<Answer>>();
        let (start, order) = Frontier::of_inputs(inputs.iter().map(u8::to_string));
        let middle = start.next(&rows(&first), 1000).unwrap();
        let resolved = middle.finish(&rows(&second), 1000).unwrap();
        let expected: BTreeSet<(u8, u8)> = inputs.iter().flat_map(|input| {
            let (first, second) = (&first, &second);
            first.iter().filter(move |(key, _)| key == input)
                .flat_map(move |(_, via)| second.iter().filter(move |(key, _)| key == via).map(move |(_, o)| (*input, *o)))
        }).collect();
        let own: Vec<(u8, u8)> = resolved.iter()
            .map(|row| (order[row.input as usize].parse().unwrap(), row.output.parse().unwrap())).collect();
        prop_assert_eq!(own.len(), expected.len());
        prop_assert_eq!(own.into_iter().collect::<BTreeSet<_>>(), expected);
    }
}

#[test]
fn more_keys_make_another_chain_the_cheapest() {
    // The short way costs per key, the long one filters first.
    let sources = [(0, 1, 1.0, 1.0, 1.0), (0, 2, 5.0, 0.0, 0.01), (2, 1, 5.0, 1.0, 1.0)];
    let best = |keys| {
        let found = cheapest(&edges(&sources), 3, (0, 1), keys, &limits(5, 8), price(&sources));
        found.chains[0].edges.clone()
    };
    assert_eq!(best(2.0), [0]);
    assert_eq!(best(1000.0), [1, 2]);
}

#[test]
fn long_chains_and_what_leads_nowhere_are_left_out() {
    let line: Vec<Priced> = (0..5).map(|class| (class, class + 1, 1.0, 0.0, 1.0)).collect();
    let found = |steps| cheapest(&edges(&line), 6, (0, 5), 1.0, &limits(steps, 8), price(&line)).chains.len();
    assert_eq!((found(4), found(5)), (0, 1));
    let back = cheapest(&edges(&line), 6, (5, 0), 1.0, &limits(5, 8), price(&line));
    assert_eq!((back.chains.len(), back.cut), (0, false));
    let itself = cheapest(&edges(&line), 6, (2, 2), 1.0, &limits(5, 8), price(&line));
    assert_eq!(itself.chains.iter().map(|chain| chain.edges.len()).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_search_ends_in_a_thicket() {
    // Ten sources between every two of twenty classes: 10^5 chains of length five over each choice of classes.
    let mut thicket = Vec::new();
    for (from, to) in (0..20).flat_map(|from| (0..20).map(move |to| (from, to))) {
        (0..10).filter(|_| from != to).for_each(|n| thicket.push((from, to, f64::from(n) + 1.0, 0.1, 1.0)));
    }
    let few = Limits { steps: 5, chains: 8, looks: 50_000 };
    let found = cheapest(&edges(&thicket), 20, (0, 1), 10.0, &few, price(&thicket));
    assert_eq!(found.chains.len(), 8);
    assert_eq!(found.chains[0].edges.len(), 1);
    assert!(found.chains.windows(2).all(|pair| pair[0].ms <= pair[1].ms));
}

#[test]
fn latency_per_call_and_per_key_is_found_and_forgotten() {
    let mut learnt = Learnt::default();
    for round in 0..40 {
        let keys = f64::from(1 + round % 10) * 20.0;
        learnt.answered(f64::from(round) * 100.0, Sample { keys, rows: keys * 3.0, ms: 7.0 + 0.5 * keys });
    }
    let (call, per_key) = learnt.latency(4000.0, Some(300.0));
    assert!((call - 7.0).abs() < 2.0 && (per_key - 0.5).abs() < 0.02, "{call} {per_key}");
    assert!((learnt.fan_out(4000.0) - 3.0).abs() < 0.05);
    // A day later nothing is left but what was assumed.
    let (call, per_key) = learnt.latency(86_400_000.0, Some(300.0));
    assert!((call - 300.0).abs() < 1.0 && per_key < 0.05, "{call} {per_key}");
}

#[test]
fn few_keys_say_little_about_many() {
    let mut learnt = Learnt::default();
    (0..20).for_each(|round| learnt.answered(f64::from(round), Sample { keys: 1.0, rows: 1.0, ms: 500.0 }));
    let one = learnt.predict(20.0, None, 1.0).ms;
    assert!((one - 500.0).abs() < 10.0, "{one}");
    let many = learnt.predict(20.0, None, 1000.0).ms;
    assert!(many < 2000.0, "{many}");
}

#[test]
fn failures_make_a_source_dear_and_the_tail_is_known() {
    let (mut good, mut bad) = (Learnt::default(), Learnt::default());
    for round in 0..200 {
        let sample = Sample { keys: 1.0, rows: 1.0, ms: if round % 20 == 0 { 100.0 } else { 10.0 } };
        good.answered(f64::from(round), sample);
        bad.answered(f64::from(round), sample);
        bad.failed(f64::from(round));
    }
    let (good_ms, bad_ms) = (good.predict(200.0, None, 1.0).ms, bad.predict(200.0, None, 1.0).ms);
    assert!(bad_ms > 1.8 * good_ms, "{good_ms} {bad_ms}");
    assert!(good.quantile_ms > 9.0 && good.quantile_ms <= 110.0, "{}", good.quantile_ms);
}

#[test]
fn damaged_sums_are_nothing_known() {
    assert_eq!(Learnt::from_sums(&[1.0; SUMS - 1]), Learnt::default());
    assert_eq!(Learnt::from_sums(&[f64::NAN; SUMS]), Learnt::default());
    assert_eq!(Learnt::from_sums(&[-1.0; SUMS]), Learnt::default());
}

#[test]
fn pauses_double_up_to_the_longest() {
    let rules = Rules { failures: 1, pause_ms: 100.0, longest_ms: 500.0 };
    let mut breaker = Breaker::default();
    let pauses: Vec<f64> = (0..6)
        .map(|_| {
            let now_ms = breaker.until_ms;
            breaker.failed(now_ms, &rules);
            breaker.until_ms - now_ms
        })
        .collect();
    assert_eq!(pauses, [100.0, 200.0, 400.0, 500.0, 500.0, 500.0]);
    let never = Rules { failures: 0, ..rules };
    let mut open = Breaker::default();
    (0..50).for_each(|_| open.failed(1.0, &never));
    assert_eq!(open.look(1.0), Admission::Open);
}

#[test]
fn limits_hold_while_rows_come() {
    let (start, _) = Frontier::of_inputs(["a".to_owned(), "b".to_owned(), "a".to_owned()]);
    assert_eq!(start.len(), 2);
    let answer = |key: &str, output: String| Answer { key: key.to_owned(), output, attributes: None };
    let many: Vec<Answer> = (0..11).map(|n| answer("a", n.to_string())).collect();
    assert_eq!(start.next(&many, 10), Err(TooMuch::Rows(10)));
    assert_eq!(start.finish(&many, 10), Err(TooMuch::Rows(10)));
    // The same row again and answers to other questions do not count.
    let same: Vec<Answer> = (0..50).map(|n| answer(if n % 2 == 0 { "a" } else { "x" }, "1".into())).collect();
    assert_eq!(start.finish(&same, 1), Ok(vec![Resolved { input: 0, output: "1".into(), attributes: None }]));
    let huge: Vec<Answer> = (0..3).map(|n| answer("a", format!("{n}{}", "x".repeat(100 << 20)))).collect();
    assert!(matches!(start.next(&huge, 10), Err(TooMuch::Bytes(_))));
}

#[test]
fn array_literals_quote() {
    assert_eq!(
        array_literal(["a", "b\"c", "d\\e", "", "NULL", "{,}"]),
        r#"{"a","b\"c","d\\e","","NULL","{,}"}"#
    );
    assert_eq!(array_literal([]), "{}");
}
