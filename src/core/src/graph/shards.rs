//! Shards as places for nodes: capacity, types, and the simple placements.
//!
//! Shards are numbered from 0; loads are in any unit, capacities relative to one another. `balance` is the
//! largest ratio of a shard's share of the load to its share of the capacity: with equal capacities the
//! maximum over the mean, 1 when even.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The most shards.
pub const MAX_SHARDS: usize = 4_096;

/// A node moves away from its shard only when the fuller one of both is afterwards used less by this share: heat that
/// is measured a little differently the next time must not send the node back.
const RELIEF: f64 = 0.1;

/// Seed of [`Shards::default_shard`].
const DEFAULT_SEED: u64 = 0x6e6f_6465_5f68_6f6d;

/// Why a set of shards is not one.
#[derive(Clone, Debug, PartialEq)]
pub enum ShardError {
    /// There is none.
    NoShards,
    /// More than [`MAX_SHARDS`].
    TooManyShards {
        /// The number given.
        shards: usize,
    },
    /// The capacity of this shard is not a finite number above 0.
    BadCapacity {
        /// The shard.
        shard: usize,
    },
    /// A type is restricted to a shard that does not exist, or to none.
    BadRestriction {
        /// The type.
        kind: u16,
    },
}

impl fmt::Display for ShardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoShards => write!(f, "there is no shard to place nodes on"),
            Self::TooManyShards { shards } => write!(f, "{shards} shards exceed the limit of {MAX_SHARDS}"),
            Self::BadCapacity { shard } => write!(f, "capacity of shard {shard} must be a positive number"),
            Self::BadRestriction { kind } => {
                write!(f, "node type {kind} must be restricted to at least one existing shard")
            }
        }
    }
}

impl std::error::Error for ShardError {}

/// Shards, their shares of the capacity, and which types of nodes may live where.
#[derive(Clone, Debug, PartialEq)]
pub struct Shards {
    shares: Vec<f64>,
    /// By type: the shards it may live on; empty for all of them.
    allowed: Vec<Vec<bool>>,
}

impl Shards {
    /// Shards with these relative capacities; every type may live everywhere.
    ///
    /// # Errors
    /// [`ShardError`] for no or too many shards and for bad capacities.
    pub fn new(capacities: &[f64]) -> Result<Self, ShardError> {
        if capacities.is_empty() {
            return Err(ShardError::NoShards);
        }
        if capacities.len() > MAX_SHARDS {
            return Err(ShardError::TooManyShards { shards: capacities.len() });
        }
        if let Some(shard) = capacities.iter().position(|c| !c.is_finite() || *c <= 0.0) {
            return Err(ShardError::BadCapacity { shard });
        }
        // Divided by the largest first: a sum of huge numbers must not overflow.
        let largest = capacities.iter().copied().fold(0.0, f64::max);
        let total: f64 = capacities.iter().map(|capacity| capacity / largest).sum();
        let share = |capacity: &f64| (capacity / largest / total).max(f64::MIN_POSITIVE);
        Ok(Self { shares: capacities.iter().map(share).collect(), allowed: Vec::new() })
    }

    /// One shard for everything.
    pub fn one() -> Self {
        Self { shares: vec![1.0], allowed: Vec::new() }
    }

    /// Lets nodes of this type live only on these shards.
    ///
    /// # Errors
    /// [`ShardError::BadRestriction`] for no shard or an unknown one.
    pub fn restrict(&mut self, kind: u16, shards: &[u16]) -> Result<(), ShardError> {
        let mut allowed = vec![false; self.len()];
        for shard in shards {
            *allowed.get_mut(usize::from(*shard)).ok_or(ShardError::BadRestriction { kind })? = true;
        }
        if shards.is_empty() {
            return Err(ShardError::BadRestriction { kind });
        }
        if self.allowed.len() <= usize::from(kind) {
            self.allowed.resize(usize::from(kind) + 1, Vec::new());
        }
        self.allowed[usize::from(kind)] = allowed;
        Ok(())
    }

    /// The same shards with their shares multiplied by these factors (each cut to 0.5..=2) and brought to a sum of 1.
    #[must_use]
    pub fn scaled(&self, factors: &[f64]) -> Self {
        let known = |shard: usize| factors.get(shard).filter(|factor| factor.is_finite());
        let factor = |shard: usize| known(shard).map_or(1.0, |factor| factor.clamp(0.5, 2.0));
        let shares: Vec<f64> =
            self.shares.iter().enumerate().map(|(shard, share)| share * factor(shard)).collect();
        let total: f64 = shares.iter().sum();
        let shares = shares.iter().map(|share| (share / total).max(f64::MIN_POSITIVE)).collect();
        Self { shares, allowed: self.allowed.clone() }
    }

    /// The number of shards, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "there is always one")]
    pub fn len(&self) -> usize {
        self.shares.len()
    }

    /// A shard's share of all capacity; 0 for an unknown shard.
    pub fn share(&self, shard: u16) -> f64 {
        self.shares.get(usize::from(shard)).copied().unwrap_or(0.0)
    }

    /// Whether nodes of this type may live on this shard.
    pub fn may(&self, kind: u16, shard: u16) -> bool {
        match self.allowed.get(usize::from(kind)) {
            Some(allowed) if !allowed.is_empty() => allowed.get(usize::from(shard)).copied().unwrap_or(false),
            _ => usize::from(shard) < self.len(),
        }
    }

    /// All shards on which nodes of this type may live; never empty.
    pub fn for_kind(&self, kind: u16) -> impl Iterator<Item = u16> {
        (0..self.len() as u16).filter(move |shard| self.may(kind, *shard))
    }

    /// Where a node lives of which nothing is known: by hash, in proportion to capacity.
    pub fn default_shard(&self, node: u32, kind: u16) -> u16 {
        let total: f64 = self.for_kind(kind).map(|shard| self.share(shard)).sum();
        let hash = xxh3_64_with_seed(&node.to_le_bytes(), DEFAULT_SEED);
        let mut left = (hash >> 11) as f64 / (1_u64 << 53) as f64 * total;
        let mut last = 0;
        for shard in self.for_kind(kind) {
            left -= self.share(shard);
            last = shard;
            if left < 0.0 {
                break;
            }
        }
        last
    }

    /// The allowed shard that is least used relative to its capacity, once `load` came.
    fn least(&self, kind: u16, loads: &[f64], load: f64) -> u16 {
        let used = |shard: &u16| (loads.get(usize::from(*shard)).unwrap_or(&0.0) + load) / self.share(*shard);
        self.for_kind(kind).min_by(|a, b| used(a).total_cmp(&used(b))).unwrap_or(0)
    }
}

/// A node as far as placing it is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Placed {
    /// Its load, or its influence: a finite number of at least 0.
    pub load: f64,
    /// Its type.
    pub kind: u16,
}

/// The largest ratio of a shard's share of the load to its share of the capacity; 1 for no load.
pub fn balance(loads: &[f64], shards: &Shards) -> f64 {
    let total: f64 = loads.iter().sum();
    if total <= 0.0 {
        return 1.0;
    }
    (0_u16..).zip(loads).map(|(shard, load)| load / total / shards.share(shard)).fold(0.0, f64::max)
}

/// Initial distribution by influence: nodes in descending order of load, each to the allowed shard that is
/// least used relative to its capacity (longest processing time first; Graham 1969: at most 4/3 of the best
/// maximum with equal capacities and no restrictions). Element `v` is the shard of node `v`. Nodes without any
/// load are spread by number. `O(n · shards)`.
pub fn distribute(nodes: &[Placed], shards: &Shards) -> Vec<u16> {
    let total: f64 = nodes.iter().map(|node| node.load.max(0.0)).sum();
    // A node of no influence still takes a place.
    let least = if total > 0.0 { total / nodes.len() as f64 * 1e-6 } else { 1.0 };
    let mut order: Vec<u32> = (0..nodes.len() as u32).collect();
    let load = |node: u32| nodes[node as usize].load.max(least);
    order.sort_by(|a, b| load(*b).total_cmp(&load(*a)).then(a.cmp(b)));
    let mut loads = vec![0.0; shards.len()];
    let mut places = vec![0; nodes.len()];
    for node in order {
        let shard = shards.least(nodes[node as usize].kind, &loads, load(node));
        loads[usize::from(shard)] += load(node);
        places[node as usize] = shard;
    }
    places
}

/// Where a new node shall live: near its neighbours, while there is room.
///
/// `neighbours` are shards of nodes it is connected to (or expected to be used with) and the weight of that,
/// `node.load` is its predicted load, `loads` are those of the shards. Of the shards with neighbours the one
/// with the largest `weight · (1 - load / room)` (Stanton, Kliot, *Streaming graph partitioning*, 2012),
/// where room is its share of all load and `slack` more; without any such, the least used one.
pub fn place_near(
    node: Placed,
    neighbours: &[(u16, f64)],
    loads: &[f64],
    shards: &Shards,
    slack: f64,
) -> u16 {
    let total: f64 = loads.iter().sum::<f64>() + node.load;
    let mut best: Option<(f64, u16)> = None;
    for shard in shards.for_kind(node.kind) {
        let near = neighbours.iter().filter(|(own, weight)| *own == shard && *weight > 0.0);
        let weight: f64 = near.map(|(_, weight)| weight).sum();
        let room = total * shards.share(shard) * (1.0 + slack.max(0.0));
        let load = loads.get(usize::from(shard)).unwrap_or(&0.0) + node.load;
        let score = weight * (1.0 - load / room);
        if score > best.map_or(0.0, |(score, _)| score) {
            best = Some((score, shard));
        }
    }
    best.map_or_else(|| shards.least(node.kind, loads, node.load), |(_, shard)| shard)
}

/// A node to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMove {
    /// The node.
    pub node: u32,
    /// Where it lives.
    pub from: u16,
    /// Where it shall live.
    pub to: u16,
}

/// Moves of nodes whose heat is more than `threshold` times their shard's mean above it, hottest first, each
/// to the least used allowed shard, at most `max_moves`.
///
/// A move is only made when the fuller one of both shards is clearly less used afterwards, so the moves of one
/// call cannot undo one another, nor can the next call, and cold nodes stay: moving them relieves nobody. `places[v]` is the shard of
/// node `v`.
pub fn deviating(
    nodes: &[Placed],
    places: &[u16],
    shards: &Shards,
    threshold: f64,
    max_moves: usize,
) -> Vec<NodeMove> {
    let mut loads = vec![0.0; shards.len()];
    let mut counts = vec![0.0; shards.len()];
    for (node, shard) in nodes.iter().zip(places) {
        if let (Some(load), Some(count)) =
            (loads.get_mut(usize::from(*shard)), counts.get_mut(usize::from(*shard)))
        {
            *load += node.load;
            *count += 1.0;
        }
    }
    let limit = |shard: u16| loads[usize::from(shard)] / counts[usize::from(shard)] * (1.0 + threshold);
    let known = |node: &(u32, (&Placed, &u16))| usize::from(*node.1.1) < shards.len();
    let all = (0_u32..).zip(nodes.iter().zip(places)).filter(known);
    let mut hot: Vec<(u32, Placed, u16)> = all
        .filter(|(_, (node, shard))| node.load > limit(**shard))
        .map(|(index, (node, shard))| (index, *node, *shard))
        .collect();
    hot.sort_by(|a, b| b.1.load.total_cmp(&a.1.load).then(a.0.cmp(&b.0)));
    let mut moves = Vec::new();
    for (index, node, from) in hot {
        if moves.len() >= max_moves {
            break;
        }
        let to = shards.least(node.kind, &loads, node.load);
        let used = |shard: u16, load: f64| load / shards.share(shard);
        let after = used(to, loads[usize::from(to)] + node.load);
        if to != from && after < used(from, loads[usize::from(from)]) * (1.0 - RELIEF) {
            loads[usize::from(from)] -= node.load;
            loads[usize::from(to)] += node.load;
            moves.push(NodeMove { node: index, from, to });
        }
    }
    moves
}
