//! Graphs: closures that are kept exact, influence, and who lives where.
//!
//! | module | question it answers |
//! |---|---|
//! | [`csr`] | how does a digraph of a million nodes fit into memory? |
//! | [`keys`] | which dense number does a user's key have? |
//! | [`components`] | which nodes lie on a cycle, which can never meet? |
//! | [`closure`] | who reaches whom, over how few edges? |
//! | [`maintain`] | which rows of the closure change with these edges? |
//! | [`rank`] | how influential is a node (PageRank)? |
//! | [`between`] | how many shortest paths lead through a node? |
//! | [`shards`] | which shard has room, and may take this type of node? |
//! | [`partition`] | which nodes shall live together, and which move now? |
//!
//! Everywhere a node is a dense number from 0, edges are directed, and parallel edges, self loops and cycles
//! are allowed. The **depth** of a pair is the number of edges of a shortest path, so every node reaches
//! itself at depth 0, and a cycle or a self loop adds no second row for that: a closure has exactly one row
//! (v, v, 0) per node and one row per ordered pair of different nodes with a path. Edges therefore never
//! change the rows (v, v, 0); they come and go with the nodes.

pub mod between;
pub mod closure;
pub mod components;
pub mod csr;
pub mod keys;
pub mod maintain;
pub mod partition;
pub mod rank;
pub mod shards;

pub use csr::{Digraph, Edge, GraphError, MAX_EDGES, MAX_NODES};

/// A node and the number of edges of a shortest path to it (or from it).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reached {
    /// The node.
    pub node: u32,
    /// Edges of a shortest path; 0 for the node itself.
    pub depth: u32,
}
