//! Which rows of a closure change with some edges: exact, minimal depths kept, any digraph.
//!
//! The caller changes edges first, then names the pairs (source, target) that were touched, inserted or
//! deleted or both, and lets [`maintain`] read the closure as it was and the edges as they are. What comes
//! back is the exact difference to the closure of the new edges; the caller writes it. Naming a pair that
//! did not change, or twice, does no harm, so parallel edges and updates need no special care.
//!
//! Method. A touched pair (a, b) concerns ancestor x only if the edge is gone and was on a shortest path
//! (d(x, a) + 1 = d(x, b)), or is there and improves (d(x, a) + 1 < d(x, b)); other ancestors keep all their
//! rows. For each ancestor concerned the change is repaired as by Ramalingam and Reps (*On the computational
//! complexity of dynamic graph problems*, 1996), in their version for batches, on unit lengths: first
//! every node that lost all its shortest paths is found, level by level, then lost and improved nodes get
//! their new depths in ascending order. Work is proportional to the rows that change and the edges at their
//! descendants, never to ancestors × descendants. The same holds with all edges turned round, so of both
//! sides of the touched edges the smaller one is looped over: a change next to a hub is repaired for its few
//! descendants, not for its thousands of ancestors.

mod memory;
mod repair;
mod view;

pub use memory::{EditError, MemoryClosure};

use std::fmt;

use rustc_hash::FxHashMap;

use super::Reached;
use repair::Repair;
use view::View;

/// What [`maintain`] reads: the closure *before*, the edges *after* a change.
///
/// Rows of a node with itself may be there or not; they are ignored. Every list may be in any order, edges
/// may be listed several times.
pub trait ClosureReader {
    /// Why a read failed.
    type Error;

    /// Appends up to `limit` ancestors of `node` with their depths, in the closure before.
    ///
    /// # Errors
    /// When it cannot be read; likewise below.
    fn ancestors(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> Result<(), Self::Error>;

    /// Appends up to `limit` descendants of `node` with their depths, in the closure before.
    ///
    /// # Errors
    /// When it cannot be read.
    fn descendants(&mut self, node: u32, limit: usize, rows: &mut Vec<Reached>) -> Result<(), Self::Error>;

    /// The depth of a pair of different nodes in the closure before; `None` when it has no row.
    ///
    /// # Errors
    /// When it cannot be read.
    fn depth(&mut self, ancestor: u32, descendant: u32) -> Result<Option<u32>, Self::Error>;

    /// Whether there is an edge from `source` to `target` after the change.
    ///
    /// # Errors
    /// When it cannot be read.
    fn has_edge(&mut self, source: u32, target: u32) -> Result<bool, Self::Error>;

    /// Appends the targets of all edges of `node` after the change. Called once per node at most.
    ///
    /// # Errors
    /// When it cannot be read.
    fn out_edges(&mut self, node: u32, targets: &mut Vec<u32>) -> Result<(), Self::Error>;

    /// Appends the sources of all edges to `node` after the change. Called once per node at most.
    ///
    /// # Errors
    /// When it cannot be read.
    fn in_edges(&mut self, node: u32, sources: &mut Vec<u32>) -> Result<(), Self::Error>;

    /// Told before the repairs begin, so that whoever pays per query can read in bulk: next come depths of
    /// rows, and edges in both directions, as [`Ahead`] says. Nothing depends on it.
    ///
    /// # Errors
    /// When it cannot be read.
    fn look_ahead(&mut self, _ahead: &Ahead<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// What the repairs will read: rows of `loops` towards `ends` and their descendants, and the edges of those
/// descendants. (With `backward` the other way round: rows from the ancestors of `ends` to `loops`, and the
/// edges of those ancestors.)
#[derive(Clone, Copy, Debug)]
pub struct Ahead<'a> {
    /// The nodes that are repaired one after the other.
    pub loops: &'a [u32],
    /// The ends of the touched edges on the other side.
    pub ends: &'a [u32],
    /// Whether `loops` are descendants and `ends` sources of touched edges.
    pub backward: bool,
}

/// Bounds of a repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaintainOptions {
    /// The largest depth that the closure keeps, as it was built; unlimited when `None`.
    pub max_depth: Option<u32>,
    /// The most rows and edges that are looked at; beyond it [`MaintainError::TooMuchWork`]. It bounds memory as
    /// well: less than 100 bytes each.
    pub max_work: u64,
}

impl Default for MaintainOptions {
    fn default() -> Self {
        Self { max_depth: None, max_work: 5_000_000 }
    }
}

/// A row that changes. Never one of a node with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowChange {
    /// The ancestor.
    pub ancestor: u32,
    /// The descendant.
    pub descendant: u32,
    /// The depth before; `None` when the row is inserted.
    pub before: Option<u32>,
    /// The depth from now on; `None` when the row is deleted.
    pub after: Option<u32>,
}

/// Why the changes could not be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MaintainError<E> {
    /// Reading failed.
    Reader(E),
    /// The repair would look at more than it may. Nothing was changed; the caller may do it later with a
    /// higher limit, in smaller batches, or build the closure again.
    TooMuchWork {
        /// The most rows and edges that it was allowed to look at.
        limit: u64,
    },
}

impl<E: fmt::Display> fmt::Display for MaintainError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reader(error) => write!(f, "the closure could not be read: {error}"),
            Self::TooMuchWork { limit } => {
                write!(f, "keeping the closure exact would look at more than {limit} rows and edges")
            }
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for MaintainError<E> {}

/// The rows that change because of `touched`, by ancestor and then by descendant; see the module.
///
/// # Errors
/// [`MaintainError`] when reading fails or the work is more than allowed.
pub fn maintain<R: ClosureReader>(
    reader: &mut R,
    touched: &[(u32, u32)],
    options: &MaintainOptions,
) -> Result<Vec<RowChange>, MaintainError<R::Error>> {
    let mut touched: Vec<(u32, u32)> = touched.iter().copied().filter(|(a, b)| a != b).collect();
    touched.sort_unstable();
    touched.dedup();
    if touched.is_empty() {
        return Ok(Vec::new());
    }
    let mut view = View::new(reader, options);
    let sides = Sides::read(&mut view, &touched)?;
    let mut changes = Vec::new();
    let mut repair = Repair::new(&mut view);
    repair.run(&sides, &mut changes)?;
    changes.sort_unstable();
    Ok(changes)
}

/// A touched edge, turned so that `near` is the end on the side that is looped over.
#[derive(Clone, Copy, Debug)]
struct Touched {
    near: u32,
    far: u32,
    /// Whether the edge is there now.
    exists: bool,
}

/// So many rows of either side are read at first: the smaller one is often tiny, and rows of the other one serve nothing
/// but the comparison.
const FIRST_LIMIT: usize = 16;

/// What reaches the near ends (with themselves).
type Side = FxHashMap<u32, Vec<Reached>>;

/// The touched edges and the smaller of their sides.
struct Sides {
    edges: Vec<Touched>,
    near: Side,
}

impl Sides {
    /// Reads both sides with a growing limit until one of them is complete, so that the larger one is never
    /// read to its end; turns the view towards the smaller one.
    fn read<R: ClosureReader>(
        view: &mut View<'_, R>,
        touched: &[(u32, u32)],
    ) -> Result<Self, MaintainError<R::Error>> {
        let mut limit = FIRST_LIMIT;
        loop {
            let above = Self::one_side(view, touched, false, limit)?;
            let below = Self::one_side(view, touched, true, limit)?;
            let size = |side: &Side| side.values().map(Vec::len).sum::<usize>();
            let chosen = match (above, below) {
                (Some(above), Some(below)) if size(&below) < size(&above) => Some((below, true)),
                (Some(above), _) => Some((above, false)),
                (None, Some(below)) => Some((below, true)),
                (None, None) => None,
            };
            if let Some((near, backward)) = chosen {
                let edges = Self::turned(view, touched, backward)?;
                return Ok(Self { edges, near });
            }
            limit = limit.saturating_mul(4);
        }
    }

    /// What reaches every near end; `None` when that is `limit` rows or more somewhere.
    fn one_side<R: ClosureReader>(
        view: &mut View<'_, R>,
        touched: &[(u32, u32)],
        backward: bool,
        limit: usize,
    ) -> Result<Option<Side>, MaintainError<R::Error>> {
        view.turn(backward);
        let mut side = Side::default();
        for (source, target) in touched {
            let near = if backward { *target } else { *source };
            if side.contains_key(&near) {
                continue;
            }
            let mut rows = Vec::new();
            if view.reaching(near, limit, &mut rows)? {
                return Ok(None);
            }
            side.insert(near, rows);
        }
        Ok(Some(side))
    }

    fn turned<R: ClosureReader>(
        view: &mut View<'_, R>,
        touched: &[(u32, u32)],
        backward: bool,
    ) -> Result<Vec<Touched>, MaintainError<R::Error>> {
        view.turn(backward);
        let mut edges = Vec::with_capacity(touched.len());
        for (source, target) in touched {
            let exists = view.has_edge(*source, *target)?;
            let (near, far) = if backward { (*target, *source) } else { (*source, *target) };
            edges.push(Touched { near, far, exists });
        }
        Ok(edges)
    }
}
