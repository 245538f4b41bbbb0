//! The cheapest chains of data sources: a best-first search over simple paths.
//!
//! The price of a step depends on how many keys the steps before it made, so the cheaper of two ways to a class is
//! not always part of the cheapest chain. A way is given up only when enough others to the same class are at least as
//! cheap, bring at most as many keys, and passed no class that it has not passed: whatever may follow it may follow
//! them. With prices that grow with the keys the chains found are therefore exactly the cheapest ones.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A data source between two classes, given by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// What it takes.
    pub from: usize,
    /// What it gives.
    pub to: usize,
}

/// What a step takes and gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Predicted latency, ms.
    pub ms: f64,
    /// Keys that come out.
    pub rows: f64,
}

/// How far to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sources of a chain.
    pub steps: usize,
    /// Chains.
    pub chains: usize,
    /// Ways looked at; beyond them the search ends with what it has.
    pub looks: usize,
}

/// A chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// Numbers of its edges.
    pub edges: Vec<usize>,
    /// What each of them takes.
    pub steps: Vec<Step>,
    /// Predicted latency of all, ms.
    pub ms: f64,
    /// Keys at its end.
    pub rows: f64,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Chains, cheapest first.
    pub chains: Vec<Chain>,
    /// It ended at the limit of looks, so there may be cheaper ones.
    pub cut: bool,
}

struct Way {
    chain: Chain,
    /// Classes passed, the last one is where it is.
    classes: Vec<usize>,
}

impl Way {
    /// Nothing that may follow `other` would be dearer or forbidden after this one.
    fn is_as_good_as(&self, other: &(f64, f64, Vec<usize>)) -> bool {
        other.0 <= self.chain.ms
            && other.1 <= self.chain.rows
            && other.2.len() <= self.classes.len()
            && other.2.iter().all(|class| self.classes.contains(class))
    }
}

impl PartialEq for Way {
    fn eq(&self, other: &Way) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Way {}

impl PartialOrd for Way {
    fn partial_cmp(&self, other: &Way) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Way {
    /// The greatest is the cheapest, then the shortest, then the one of the first sources.
    fn cmp(&self, other: &Way) -> Ordering {
        let (a, b) = (&other.chain, &self.chain);
        a.ms.total_cmp(&b.ms).then(a.edges.len().cmp(&b.edges.len())).then_with(|| a.edges.cmp(&b.edges))
    }
}

/// Steps that are at least needed from every class to `to`.
fn distances(edges: &[Edge], classes: usize, to: usize) -> Vec<usize> {
    let mut distance = vec![usize::MAX; classes];
    if let Some(own) = distance.get_mut(to) {
        *own = 0;
    }
    let mut changed = true;
    while changed {
        changed = false;
        for edge in edges {
            let via = distance.get(edge.to).copied().unwrap_or(usize::MAX).saturating_add(1);
            if let Some(own) = distance.get_mut(edge.from).filter(|own| **own > via) {
                *own = via;
                changed = true;
            }
        }
    }
    distance
}

/// The cheapest chains from class `from` to class `to` for so many keys. `price` tells what an edge takes for a
/// number of keys, or None if it cannot be asked; both latency and rows must not shrink when keys grow.
pub fn cheapest(
    edges: &[Edge],
    classes: usize,
    (from, to): (usize, usize),
    keys: f64,
    limits: &Limits,
    price: impl Fn(usize, f64) -> Option<Step>,
) -> Found {
    let distance = distances(edges, classes, to);
    let mut out: Vec<Vec<usize>> = vec![Vec::new(); classes];
    for (number, edge) in edges.iter().enumerate() {
        if let Some(own) = out.get_mut(edge.from) {
            own.push(number);
        }
    }
    let first = Chain { edges: Vec::new(), steps: Vec::new(), ms: 0.0, rows: keys };
    let mut ways = BinaryHeap::from([Way { chain: first, classes: vec![from] }]);
    let mut settled: Vec<Vec<(f64, f64, Vec<usize>)>> = vec![Vec::new(); classes];
    let mut found = Found { chains: Vec::new(), cut: false };
    let mut looks = 0;
    while let Some(way) = ways.pop() {
        let Some(at) = way.classes.last().copied() else { continue };
        if at == to {
            found.chains.push(way.chain);
            if found.chains.len() >= limits.chains {
                break;
            }
            continue;
        }
        let Some(before) = settled.get_mut(at) else { continue };
        if before.iter().filter(|other| way.is_as_good_as(other)).count() >= limits.chains {
            continue;
        }
        before.push((way.chain.ms, way.chain.rows, way.classes.clone()));
        for number in out.get(at).into_iter().flatten() {
            let Some(edge) = edges.get(*number) else { continue };
            let left = limits.steps.saturating_sub(way.chain.edges.len() + 1);
            if way.classes.contains(&edge.to) || distance.get(edge.to).is_none_or(|needed| *needed > left) {
                continue;
            }
            looks += 1;
            if looks > limits.looks {
                found.cut = true;
                return found;
            }
            if let Some(step) = price(*number, way.chain.rows) {
                ways.push(longer(&way, *number, edge.to, step));
            }
        }
    }
    found
}

fn longer(way: &Way, number: usize, class: usize, step: Step) -> Way {
    let mut chain = way.chain.clone();
    chain.edges.push(number);
    chain.steps.push(step);
    // A price that is no number is the highest.
    chain.ms += if step.ms >= 0.0 { step.ms } else { f64::INFINITY };
    chain.rows = if step.rows >= 0.0 { step.rows } else { f64::INFINITY };
    let mut classes = way.classes.clone();
    classes.push(class);
    Way { chain, classes }
}
