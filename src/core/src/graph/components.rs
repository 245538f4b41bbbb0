//! Components, cycles and topological order: petgraph's algorithms on our arrays.
//!
//! petgraph's `tarjan_scc` recurses as deep as a path is long, which would overflow the stack of a session on
//! a chain of a hundred thousand nodes; `kosaraju_scc` and `toposort` keep a stack of their own.

use petgraph::Direction;
use petgraph::graph::DiGraph;
use petgraph::unionfind::UnionFind;
use petgraph::visit::{
    GraphBase, GraphRef, IntoNeighbors, IntoNeighborsDirected, IntoNodeIdentifiers, NodeCount, NodeIndexable,
    Visitable,
};

use super::csr::Digraph;

/// petgraph's bit set.
type Bits = <DiGraph<(), ()> as Visitable>::Map;

/// A digraph as petgraph sees one; copy it like a reference.
#[derive(Clone, Copy, Debug)]
pub struct Petgraph<'g>(pub &'g Digraph);

impl GraphBase for Petgraph<'_> {
    type NodeId = u32;
    type EdgeId = u32;
}

impl GraphRef for Petgraph<'_> {}

impl<'g> IntoNeighbors for Petgraph<'g> {
    type Neighbors = std::iter::Copied<std::slice::Iter<'g, u32>>;

    fn neighbors(self, node: u32) -> Self::Neighbors {
        self.0.outgoing(node).iter().copied()
    }
}

impl<'g> IntoNeighborsDirected for Petgraph<'g> {
    type NeighborsDirected = std::iter::Copied<std::slice::Iter<'g, u32>>;

    fn neighbors_directed(self, node: u32, direction: Direction) -> Self::NeighborsDirected {
        match direction {
            Direction::Outgoing => self.0.outgoing(node).iter().copied(),
            Direction::Incoming => self.0.incoming(node).iter().copied(),
        }
    }
}

impl IntoNodeIdentifiers for Petgraph<'_> {
    type NodeIdentifiers = std::ops::Range<u32>;

    fn node_identifiers(self) -> Self::NodeIdentifiers {
        self.0.nodes()
    }
}

impl NodeCount for Petgraph<'_> {
    fn node_count(&self) -> usize {
        self.0.node_count() as usize
    }
}

impl NodeIndexable for Petgraph<'_> {
    fn node_bound(&self) -> usize {
        self.0.node_count() as usize
    }

    fn to_index(&self, node: u32) -> usize {
        node as usize
    }

    fn from_index(&self, index: usize) -> u32 {
        index as u32
    }
}

impl Visitable for Petgraph<'_> {
    type Map = Bits;

    fn visit_map(&self) -> Bits {
        Bits::with_capacity(self.0.node_count() as usize)
    }

    fn reset_map(&self, map: &mut Bits) {
        map.clear();
        map.grow(self.0.node_count() as usize);
    }
}

/// The strongly connected components: element `v` is the number of the component of node `v`. Numbers are
/// dense and topological: no edge leads from a component to one with a smaller number.
pub fn strong_components(graph: &Digraph) -> Vec<u32> {
    let components = petgraph::algo::kosaraju_scc(Petgraph(graph));
    let mut numbers = vec![0; graph.node_count() as usize];
    for (number, nodes) in (0_u32..).zip(components.iter().rev()) {
        nodes.iter().for_each(|node| numbers[*node as usize] = number);
    }
    numbers
}

/// The weakly connected components: element `v` is the smallest node of the component of node `v`. Edges of
/// different components never touch the same rows of a closure.
pub fn weak_components(graph: &Digraph) -> Vec<u32> {
    let mut sets = UnionFind::<u32>::new(graph.node_count() as usize);
    for (source, target) in graph.pairs() {
        sets.union(source, target);
    }
    let labels = sets.into_labeling();
    let mut smallest = vec![u32::MAX; labels.len()];
    for (node, label) in (0_u32..).zip(&labels) {
        let least = &mut smallest[*label as usize];
        *least = node.min(*least);
    }
    labels.iter().map(|label| smallest[*label as usize]).collect()
}

/// All nodes so that every edge leads forwards.
///
/// # Errors
/// A node on a cycle, when there is one.
pub fn topological_order(graph: &Digraph) -> Result<Vec<u32>, u32> {
    petgraph::algo::toposort(Petgraph(graph), None).map_err(|cycle| cycle.node_id())
}

/// Which nodes lie on a cycle or have a self loop.
pub fn on_cycle(graph: &Digraph) -> Vec<bool> {
    let components = strong_components(graph);
    let mut sizes = vec![0_u32; components.len()];
    components.iter().for_each(|component| sizes[*component as usize] += 1);
    let cyclic = |node: u32| sizes[components[node as usize] as usize] > 1 || graph.has_edge(node, node);
    graph.nodes().map(cyclic).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_and_order_of_a_small_graph() {
        // 0 -> 1 <-> 2 -> 3, 4 alone with a self loop, 5 alone.
        let pairs = [(0, 1), (1, 2), (2, 1), (2, 3), (4, 4)];
        let graph = Digraph::from_pairs(6, &pairs).unwrap_or_default();
        let strong = strong_components(&graph);
        assert_eq!(strong[1], strong[2]);
        assert!(graph.pairs().all(|(a, b)| strong[a as usize] <= strong[b as usize]), "{strong:?}");
        assert_eq!(weak_components(&graph), [0, 0, 0, 0, 4, 5]);
        assert_eq!(on_cycle(&graph), [false, true, true, false, true, false]);
        assert!(topological_order(&graph).is_err());
        let acyclic = Digraph::from_pairs(4, &[(3, 1), (1, 0), (3, 2), (2, 0)]).unwrap_or_default();
        let order = topological_order(&acyclic).unwrap_or_default();
        let place = |node: u32| order.iter().position(|other| *other == node);
        assert!(order.len() == 4 && acyclic.pairs().all(|(a, b)| place(a) < place(b)), "{order:?}");
    }

    #[test]
    fn a_long_chain_overflows_nothing() {
        let pairs: Vec<_> = (0..300_000).map(|node| (node, node + 1)).collect();
        let graph = Digraph::from_pairs(300_001, &pairs).unwrap_or_default();
        let strong = strong_components(&graph);
        assert!(strong.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(topological_order(&graph).is_ok_and(|order| order.len() == 300_001));
    }
}
