//! Closures, built and maintained: always what a plain search would find.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::BTreeMap;

use foreshard_core::graph::closure::{ClosureError, ClosureOptions, ClosureWalk};
use foreshard_core::graph::keys::KeyTable;
use foreshard_core::graph::maintain::{
    Ahead, ClosureReader, EditError, MaintainError, MaintainOptions, MemoryClosure, RowChange, maintain,
};
use foreshard_core::graph::{Digraph, Edge, GraphError, Reached};
use proptest::prelude::*;

type Rows = BTreeMap<(u32, u32), u32>;

/// Pairs of different nodes and their depths, by relaxing every edge until nothing changes.
fn plain(nodes: u32, edges: &[(u32, u32)], max_depth: Option<u32>) -> Rows {
    let mut rows = Rows::new();
    for ancestor in 0..nodes {
        let mut depths = BTreeMap::from([(ancestor, 0_u32)]);
        loop {
            let mut better = Vec::new();
            for (source, target) in edges {
                if let Some(depth) = depths.get(source) {
                    let known = depths.get(target).copied().unwrap_or(u32::MAX);
                    if depth + 1 < known && max_depth.is_none_or(|most| *depth < most) {
                        better.push((*target, depth + 1));
                    }
                }
            }
            if better.is_empty() {
                break;
            }
            for (node, depth) in better {
                let known = depths.entry(node).or_insert(depth);
                *known = depth.min(*known);
            }
        }
        rows.extend(
            depths.into_iter().filter(|(node, _)| *node != ancestor).map(|(n, d)| ((ancestor, n), d)),
        );
    }
    rows
}

fn rows_of(closure: &MemoryClosure) -> Rows {
    let mut rows = Rows::new();
    let mut above = Rows::new();
    for node in 0..closure.node_count() {
        let down = closure.descendants_of(node);
        rows.extend(down.iter().map(|row| ((node, row.node), row.depth)));
        above.extend(closure.ancestors_of(node).iter().map(|row| ((row.node, node), row.depth)));
    }
    assert_eq!(rows, above, "both directions agree");
    assert_eq!(rows.len() as u64, closure.rows());
    rows
}

fn bulk(graph: &Digraph, options: &ClosureOptions) -> Rows {
    let mut rows = Rows::new();
    let mut walk = ClosureWalk::new(graph, options.clone());
    while let Some((ancestor, own)) = walk.advance().unwrap() {
        assert!(own.windows(2).all(|pair| pair[0].depth <= pair[1].depth));
        for Reached { node, depth } in own {
            assert!(rows.insert((ancestor, *node), *depth).is_none(), "one row a pair");
        }
    }
    rows
}

/// Applies one batch and checks the result and the changes against a closure from scratch.
fn edit_and_compare(
    closure: &mut MemoryClosure,
    edges: &mut Vec<(u32, u32)>,
    inserted: &[(u32, u32)],
    deleted: &[(u32, u32)],
    max_depth: Option<u32>,
) {
    let before = rows_of(closure);
    let changes = closure.edit(inserted, deleted).unwrap();
    edges.extend(inserted);
    for edge in deleted {
        let place = edges.iter().position(|other| other == edge).unwrap();
        edges.swap_remove(place);
    }
    let after = plain(closure.node_count(), edges, max_depth);
    assert_eq!(rows_of(closure), after, "after +{inserted:?} -{deleted:?} of {edges:?}");
    let mut expected = Vec::new();
    for pair in before.keys().chain(after.keys().filter(|pair| !before.contains_key(*pair))) {
        let (was, is) = (before.get(pair).copied(), after.get(pair).copied());
        if was != is {
            expected.push(RowChange { ancestor: pair.0, descendant: pair.1, before: was, after: is });
        }
    }
    expected.sort_unstable();
    assert_eq!(changes, expected, "exactly the difference, in order");
}

fn edge_list(nodes: u32, most: usize) -> impl Strategy<Value = Vec<(u32, u32)>> {
    prop::collection::vec((0..nodes, 0..nodes), 0..most)
}

/// A batch: edges to insert, and which of the present ones to delete.
type Batch = (Vec<(u32, u32)>, Vec<prop::sample::Index>);

fn script(nodes: u32) -> impl Strategy<Value = Vec<Batch>> {
    let deleted = prop::collection::vec(any::<prop::sample::Index>(), 0..4);
    prop::collection::vec((edge_list(nodes, 4), deleted), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn bulk_is_what_a_plain_search_finds(
        edges in edge_list(12, 40),
        max_depth in prop::option::of(0_u32..6),
        self_pairs: bool,
    ) {
        let graph = Digraph::from_pairs(12, &edges).unwrap();
        let options = ClosureOptions { max_depth, self_pairs, ..ClosureOptions::default() };
        let mut expected = plain(12, &edges, max_depth);
        if self_pairs {
            expected.extend((0..12).map(|node| ((node, node), 0)));
        }
        prop_assert_eq!(bulk(&graph, &options), expected);
    }

    #[test]
    fn edits_keep_the_closure_exact(
        nodes in 2_u32..14,
        first in edge_list(14, 30),
        script in script(14),
        max_depth in prop::option::of(1_u32..6),
    ) {
        let fit = |(a, b): &(u32, u32)| (a % nodes, b % nodes);
        let mut edges: Vec<(u32, u32)> = first.iter().map(fit).collect();
        let graph = Digraph::from_pairs(nodes, &edges).unwrap();
        let options = MaintainOptions { max_depth, ..MaintainOptions::default() };
        let mut closure = MemoryClosure::new(&graph, options, 1_000).unwrap();
        for (inserted, deleted) in script {
            let inserted: Vec<(u32, u32)> = inserted.iter().map(fit).collect();
            let mut left = edges.clone();
            let mut gone = Vec::new();
            for index in deleted {
                if !left.is_empty() {
                    gone.push(left.swap_remove(index.index(left.len())));
                }
            }
            edit_and_compare(&mut closure, &mut edges, &inserted, &gone, max_depth);
        }
    }

    #[test]
    fn a_graph_is_its_edges(edges in prop::collection::vec((0_u32..9, 0_u32..9, 0_u32..4), 0..40)) {
        let list: Vec<Edge> = edges
            .iter()
            .map(|(source, target, weight)| Edge { source: *source, target: *target, weight: f64::from(*weight) })
            .collect();
        let graph = Digraph::from_edges(9, &list).unwrap();
        prop_assert_eq!(graph.edge_count(), edges.len());
        let mut pairs: Vec<(u32, u32)> = edges.iter().map(|(a, b, _)| (*a, *b)).collect();
        pairs.sort_unstable();
        prop_assert_eq!(graph.pairs().collect::<Vec<_>>(), pairs.clone());
        for node in 0..9 {
            let sum: u32 = edges.iter().filter(|edge| edge.0 == node).map(|edge| edge.2).sum();
            prop_assert!((graph.out_weight(node) - f64::from(sum)).abs() < 1e-9);
            let sum: u32 = edges.iter().filter(|edge| edge.1 == node).map(|edge| edge.2).sum();
            let own: f64 = graph.in_weights(node).iter().sum();
            prop_assert!(!graph.is_weighted() || (own - f64::from(sum)).abs() < 1e-9);
        }
        let back: Vec<(u32, u32)> = graph.clone().reversed().pairs().map(|(a, b)| (b, a)).collect();
        let mut sorted = back.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, pairs.clone());
        pairs.dedup();
        pairs.retain(|(a, b)| a != b);
        prop_assert_eq!(graph.simple().pairs().collect::<Vec<_>>(), pairs);
    }
}

/// A small generator of numbers, so that larger cases are the same everywhere.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(limit)) as u32
    }
}

/// Hubs with hundreds of ancestors and edges take other ways through the code than small graphs.
#[test]
fn hubs_are_exact_too() {
    const NODES: u32 = 700;
    let mut numbers = Numbers(7);
    // Most nodes have an edge to a hub, hubs to one another and to a few others; some cycles.
    let mut edges: Vec<(u32, u32)> = (3..NODES).map(|node| (node, numbers.below(3))).collect();
    edges.extend([(0, 1), (1, 2), (2, 600), (600, 601), (601, 0), (5, 5)]);
    for _ in 0..60 {
        edges.push((numbers.below(NODES), numbers.below(NODES)));
    }
    let graph = Digraph::from_pairs(NODES, &edges).unwrap();
    for max_depth in [None, Some(3)] {
        let options = MaintainOptions { max_depth, ..MaintainOptions::default() };
        let mut closure = MemoryClosure::new(&graph, options, 1_000_000).unwrap();
        let mut edges = edges.clone();
        for round in 0..40 {
            let inserted = [(numbers.below(NODES), numbers.below(NODES)), (numbers.below(NODES), round % 3)];
            let deleted = [edges[numbers.below(edges.len() as u32) as usize]];
            closure.edit(&inserted, &deleted).unwrap();
            edges.extend(inserted);
            let place = edges.iter().position(|edge| *edge == deleted[0]).unwrap();
            edges.swap_remove(place);
            let graph = Digraph::from_pairs(NODES, &edges).unwrap();
            let fresh = MemoryClosure::new(&graph, options, 1_000_000).unwrap();
            assert!(rows_of(&closure) == rows_of(&fresh), "round {round}, {max_depth:?}");
        }
    }
}

#[test]
fn cycles_and_loops_add_no_row_for_a_node_itself() {
    let graph = Digraph::from_pairs(3, &[(0, 0), (0, 1), (1, 0)]).unwrap();
    let rows = bulk(&graph, &ClosureOptions::default());
    let expected = [((0, 0), 0), ((0, 1), 1), ((1, 0), 1), ((1, 1), 0), ((2, 2), 0)];
    assert_eq!(rows, Rows::from(expected));
    let mut closure = MemoryClosure::new(&graph, MaintainOptions::default(), 100).unwrap();
    assert_eq!(closure.edit(&[(2, 2)], &[(0, 0)]).unwrap(), []);
}

#[test]
fn limits_are_kept_and_change_nothing() {
    let edges: Vec<(u32, u32)> = (0..99).map(|node| (node, node + 1)).collect();
    let graph = Digraph::from_pairs(100, &edges).unwrap();
    let options = ClosureOptions { max_rows: 4_949, self_pairs: false, ..ClosureOptions::default() };
    let mut walk = ClosureWalk::new(&graph, options);
    let end =
        std::iter::from_fn(|| Some(walk.advance().map(|next| next.is_some()))).find(|next| *next != Ok(true));
    assert_eq!(end, Some(Err(ClosureError::TooManyRows { limit: 4_949 })));

    let tight = MaintainOptions { max_work: 1_500, ..MaintainOptions::default() };
    let mut closure = MemoryClosure::new(&graph, tight, 10_000).unwrap();
    let before = rows_of(&closure);
    assert_eq!(closure.edit(&[], &[(50, 51)]), Err(EditError::TooMuchWork { limit: 1_500 }));
    assert_eq!(closure.edit(&[(99, 0)], &[(3, 9)]), Err(EditError::UnknownEdge { source: 3, target: 9 }));
    let unknown = GraphError::UnknownNode { node: 100, nodes: 100 };
    assert_eq!(closure.edit(&[(1, 100)], &[]), Err(EditError::Graph(unknown)));
    assert_eq!(rows_of(&closure), before);
    assert_eq!(closure.edit(&[(98, 99)], &[(98, 99)]).unwrap(), []);
    assert!(closure.edit(&[], &[(98, 99)]).is_ok(), "the edges are as they were");
    assert_eq!(Digraph::from_pairs(2, &[(0, 2)]), Err(GraphError::UnknownNode { node: 2, nodes: 2 }));
    for weight in [-1.0, f64::NAN, f64::INFINITY] {
        let bad = Digraph::from_edges(2, &[Edge { source: 0, target: 1, weight }]);
        assert_eq!(bad, Err(GraphError::BadWeight { source: 0, target: 1 }));
    }
}

/// Work is in proportion to what changes, not to ancestors times descendants.
#[test]
fn an_edge_that_improves_little_costs_little() {
    // 2,000 nodes lead to a, which leads to b and by that to 2,000 others; all know b's already.
    let (a, b, nodes) = (4_000, 4_001, 4_002);
    let mut edges: Vec<(u32, u32)> = (0..2_000).map(|node| (node, a)).collect();
    edges.extend((0..2_000).map(|node| (node, b)));
    edges.extend((2_000..4_000).map(|node| (b, node)));
    let graph = Digraph::from_pairs(nodes, &edges).unwrap();
    let options = MaintainOptions { max_work: 40_000, ..MaintainOptions::default() };
    let mut closure = MemoryClosure::new(&graph, options, 10_000_000).unwrap();
    // Only a's own rows are new.
    assert_eq!(closure.edit(&[(a, b)], &[]).unwrap().len(), 2_001);
    assert_eq!(closure.edit(&[], &[(a, b)]).unwrap().len(), 2_001);
}

/// A reader that fails, to see the error come through.
struct Broken;

impl ClosureReader for Broken {
    type Error = &'static str;

    fn ancestors(&mut self, _: u32, _: usize, _: &mut Vec<Reached>) -> Result<(), Self::Error> {
        Err("gone")
    }

    fn descendants(&mut self, _: u32, _: usize, _: &mut Vec<Reached>) -> Result<(), Self::Error> {
        Err("gone")
    }

    fn depth(&mut self, _: u32, _: u32) -> Result<Option<u32>, Self::Error> {
        Err("gone")
    }

    fn has_edge(&mut self, _: u32, _: u32) -> Result<bool, Self::Error> {
        Err("gone")
    }

    fn out_edges(&mut self, _: u32, _: &mut Vec<u32>) -> Result<(), Self::Error> {
        Err("gone")
    }

    fn in_edges(&mut self, _: u32, _: &mut Vec<u32>) -> Result<(), Self::Error> {
        Err("gone")
    }
}

#[test]
fn errors_of_the_reader_come_through() {
    let error = maintain(&mut Broken, &[(0, 1)], &MaintainOptions::default()).unwrap_err();
    assert_eq!(error, MaintainError::Reader("gone"));
    assert_eq!(error.to_string(), "the closure could not be read: gone");
    assert_eq!(maintain(&mut Broken, &[(1, 1)], &MaintainOptions::default()), Ok(vec![]));
}

/// Rows and edges as a server might give them: in any order, edges several times, with rows (v, v, 0).
struct Untidy {
    before: MemoryClosure,
    edges: Vec<(u32, u32)>,
    told: Vec<(Vec<u32>, Vec<u32>)>,
}

impl ClosureReader for Untidy {
    type Error = ();

    fn ancestors(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> Result<(), ()> {
        let own = self.before.ancestors_of(node).into_iter().rev();
        rows.extend([Reached { node, depth: 0 }].into_iter().chain(own).take(limit));
        Ok(())
    }

    fn descendants(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> Result<(), ()> {
        let own = self.before.descendants_of(node).into_iter().rev();
        rows.extend(own.chain([Reached { node, depth: 0 }]).take(limit));
        Ok(())
    }

    fn depth(&mut self, ancestor: u32, descendant: u32) -> Result<Option<u32>, ()> {
        assert_ne!(ancestor, descendant);
        Ok(self.before.depth_of(ancestor, descendant))
    }

    fn has_edge(&mut self, source: u32, target: u32) -> Result<bool, ()> {
        Ok(self.edges.contains(&(source, target)))
    }

    fn out_edges(&mut self, node: u32, targets: &mut Vec<u32>) -> Result<(), ()> {
        let own = self.edges.iter().rev().filter(|edge| edge.0 == node);
        targets.extend(own.flat_map(|edge| [edge.1, edge.1]));
        Ok(())
    }

    fn in_edges(&mut self, node: u32, sources: &mut Vec<u32>) -> Result<(), ()> {
        let own = self.edges.iter().rev().filter(|edge| edge.1 == node);
        sources.extend(own.flat_map(|edge| [edge.0, edge.0]));
        Ok(())
    }

    fn look_ahead(&mut self, ahead: &Ahead<'_>) -> Result<(), ()> {
        self.told.push((ahead.loops.to_vec(), ahead.ends.to_vec()));
        Ok(())
    }
}

#[test]
fn readers_need_not_be_tidy() {
    let mut numbers = Numbers(5);
    for round in 0..60 {
        let mut edges: Vec<(u32, u32)> = (0..80).map(|_| (numbers.below(40), numbers.below(40))).collect();
        let graph = Digraph::from_pairs(40, &edges).unwrap();
        let options = MaintainOptions { max_depth: Some(2 + round % 4), ..MaintainOptions::default() };
        let before = MemoryClosure::new(&graph, options, 10_000).unwrap();
        let inserted = [(numbers.below(40), numbers.below(40)), (numbers.below(40), numbers.below(40))];
        let deleted = [edges.swap_remove(7), edges.swap_remove(9), edges.swap_remove(11)];
        let expected = before.clone().edit(&inserted, &deleted).unwrap();
        edges.extend(inserted);
        // What was not touched may be named as well.
        let touched: Vec<(u32, u32)> = deleted.iter().chain(&inserted).chain(&edges[..5]).copied().collect();
        let mut reader = Untidy { before, edges, told: Vec::new() };
        assert_eq!(maintain(&mut reader, &touched, &options), Ok(expected.clone()));
        assert_eq!(reader.told.len(), 1);
        let (loops, ends) = &reader.told[0];
        assert!(ends.len() <= touched.len());
        let known = |node: &u32| loops.binary_search(node).is_ok();
        assert!(
            expected.iter().all(|row| known(&row.ancestor))
                || expected.iter().all(|row| known(&row.descendant))
        );
    }
}

#[test]
fn keys_are_numbered_in_order() {
    let mut table = KeyTable::new();
    let numbers: Vec<u32> = ["b", "a", "b", "c"].iter().map(|key| table.number(key).unwrap()).collect();
    assert_eq!(numbers, [0, 1, 0, 2]);
    assert_eq!((table.len(), table.get(&"c"), table.get(&"d"), table.key(1)), (3, Some(2), None, Some(&"a")));
    assert_eq!(table.keys(), ["b", "a", "c"]);
}
