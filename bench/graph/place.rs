//! Placement: by structure, and by what is used together.

use crate::{read, timed};
use foreshard_core::graph::Digraph;
use foreshard_core::graph::partition::{
    Adaptive, AdaptiveOptions, PartitionOptions, WeightedGraph, cut_share, partition,
};
use foreshard_core::graph::rank::{RankOptions, page_rank};
use foreshard_core::graph::shards::{Placed, Shards, balance, distribute};
use foreshard_test::bars::bar_most;
use foreshard_test::{Error, Result};
use std::ops::ControlFlow;
use std::path::Path;

const SHARDS: usize = 8;
const WINDOW: usize = 8;

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::new(error.to_string(), "Try another graph.")
}

fn shards() -> Result<Shards> {
    Shards::new(&[1.0; SHARDS]).map_err(wrong)
}

/// The graph's own edges, loads by influence: how much is cut.
pub fn structure(graph: &Digraph) -> Result<()> {
    let shards = shards()?;
    let ranks =
        page_rank(graph, &RankOptions::default(), None, |_, _| ControlFlow::Continue(())).map_err(wrong)?;
    // Half of a node's load is its influence, half that it exists.
    let mean = 1.0 / f64::from(graph.node_count());
    let nodes: Vec<Placed> =
        ranks.values.iter().map(|rank| Placed { load: rank.min(0.02) + mean, kind: 0 }).collect();
    let edges: Vec<(u32, u32, f32)> = graph.pairs().map(|(a, b)| (a, b, 1.0)).collect();
    let weighted = WeightedGraph::new(&nodes, &edges).map_err(wrong)?;
    let print = |what: &str, places: &[u16], took: f64| {
        let worst = balance(&weighted.shard_loads(places, SHARDS), &shards);
        println!(
            "{what:<34} edges between shards {:5.1} %, max/mean load {worst:.3}, {took:.2} s",
            100.0 * cut_share(&weighted, places)
        );
    };
    let hash: Vec<u16> = graph.nodes().map(|node| shards.default_shard(node, 0)).collect();
    print("graph by hash", &hash, 0.0);
    let (spread, took) = timed(|| distribute(&nodes, &shards));
    print("graph by influence", &spread, took);
    let (parts, took) = timed(|| partition(&weighted, &shards, &PartitionOptions::default()));
    print("graph by partition", &parts, took);
    Ok(())
}

/// What a placement did to a number of windows.
#[derive(Default)]
struct Score {
    windows: u32,
    crossing: u32,
    loads: [f64; SHARDS],
}

impl Score {
    fn add(&mut self, window: &[u32], place: impl Fn(u32) -> u16) {
        self.windows += 1;
        let first = window.first().map(|node| place(*node));
        self.crossing += u32::from(window.iter().any(|node| Some(place(*node)) != first));
        window.iter().for_each(|node| self.loads[usize::from(place(*node))] += 1.0);
    }

    fn crossing_percent(&self) -> f64 {
        100.0 * f64::from(self.crossing) / f64::from(self.windows.max(1))
    }

    fn print(&self, what: &str, shards: &Shards, more: &str) {
        println!(
            "{what:<34} windows on > 1 shard {:5.1} %, max/mean load {:.3}{more}",
            self.crossing_percent(),
            balance(&self.loads, shards)
        );
    }
}

/// Learns on the first half of a trace and is judged on the second; whether the bars hold.
pub fn trace(path: &Path) -> Result<bool> {
    let shards = shards()?;
    let accesses = read::trace(path)?;
    let (first, second) = accesses.split_at(accesses.len() / 2);
    let (mut hash, mut fixed, mut moving) = (Score::default(), Score::default(), Score::default());
    let mut adaptive = Adaptive::new(shards.clone(), AdaptiveOptions::default());
    let ((), learn) = timed(|| first.chunks(WINDOW).for_each(|window| adaptive.learn(window)));
    let ((), place) = timed(|| adaptive.place_all());
    let start = adaptive.clone();
    let ((), follow) = timed(|| {
        for window in second.chunks(WINDOW) {
            // Judged by where things were before the window was seen.
            moving.add(window, |node| adaptive.shard_of(node));
            hash.add(window, |node| shards.default_shard(node, 0));
            fixed.add(window, |node| start.shard_of(node));
            adaptive.observe(window);
        }
    });
    println!("trace: {} windows each to learn and to judge, {SHARDS} shards", moving.windows);
    hash.print("hash", &shards, "");
    fixed.print(
        "partition of the first half",
        &shards,
        &format!("; learnt in {learn:.1} s, placed in {place:.1} s"),
    );
    let more = format!("; {} nodes moved, {follow:.1} s", adaptive.moved());
    moving.print("adaptive", &shards, &more);
    let crossing = bar_most("windows on more than one shard, %", moving.crossing_percent(), 30.0);
    Ok(bar_most("max/mean load", balance(&moving.loads, &shards), 1.10) && crossing)
}
