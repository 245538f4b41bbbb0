//! The closure: built at once, and kept exact edge by edge.

use crate::timed;
use foreshard_core::graph::Digraph;
use foreshard_core::graph::closure::{ClosureOptions, ClosureWalk};
use foreshard_core::graph::maintain::{MaintainOptions, MemoryClosure};
use foreshard_test::{Error, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Instant;

/// A closure with more rows than this is not kept in memory here.
const MOST_ROWS: u64 = 60_000_000;

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::new(error.to_string(), "Try another graph.")
}

/// Builds the closure without storing it.
pub fn bulk(graph: &Digraph) -> Result<()> {
    let mut seconds = Vec::new();
    let (mut rows, mut deepest) = (0, 0);
    for _ in 0..3 {
        let mut walk = ClosureWalk::new(graph, ClosureOptions::default());
        let (done, took) = timed(|| {
            loop {
                match walk.advance() {
                    Ok(Some((_, own))) => {
                        deepest = own.last().map_or(deepest, |last| deepest.max(last.depth))
                    }
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(wrong(error)),
                }
            }
        });
        done?;
        rows = walk.rows_so_far();
        seconds.push(took);
    }
    seconds.sort_by(f64::total_cmp);
    let pairs = rows - u64::from(graph.node_count());
    println!(
        "closure: {rows} rows ({pairs} pairs of different nodes), depth {deepest}, {:.3} s, {:.1} M rows/s",
        seconds[1],
        rows as f64 / seconds[1] / 1e6
    );
    Ok(())
}

/// Latencies of single edits, and rows they changed.
#[derive(Default)]
struct Tally {
    took_us: Vec<f64>,
    changed: Vec<usize>,
}

impl Tally {
    fn edit(
        &mut self,
        closure: &mut MemoryClosure,
        inserted: &[(u32, u32)],
        deleted: &[(u32, u32)],
    ) -> Result<()> {
        let begun = Instant::now();
        let changes = closure.edit(inserted, deleted).map_err(wrong)?;
        self.took_us.push(begun.elapsed().as_secs_f64() * 1e6);
        self.changed.push(changes.len());
        Ok(())
    }

    fn print(mut self, what: &str) {
        let sum_us: f64 = self.took_us.iter().sum();
        let rows: usize = self.changed.iter().sum();
        self.took_us.sort_by(f64::total_cmp);
        self.changed.sort_unstable();
        let at = |share: f64| ((self.took_us.len().max(1) - 1) as f64 * share) as usize;
        println!(
            "{what}: {} edits, {:.0}/s, p50 {:.1} us, p99 {:.0} us, max {:.0} us; rows changed p50 {}, p99 {}, \
             max {}, all {rows}; {:.2} us per row",
            self.took_us.len(),
            self.took_us.len() as f64 / sum_us * 1e6,
            self.took_us[at(0.5)],
            self.took_us[at(0.99)],
            self.took_us[at(1.0)],
            self.changed[at(0.5)],
            self.changed[at(0.99)],
            self.changed[at(1.0)],
            sum_us / rows.max(1) as f64
        );
    }
}

/// Random single-edge inserts, then deletes of random edges, all in memory.
pub fn edits(graph: &Digraph, count: usize) -> Result<()> {
    let (closure, took) = timed(|| {
        MemoryClosure::new(graph, MaintainOptions { max_work: 1 << 40, ..Default::default() }, MOST_ROWS)
    });
    let mut closure = closure.map_err(wrong)?;
    let rows_before = closure.rows();
    println!("closure in memory: {rows_before} rows, {took:.2} s");
    if count == 0 || graph.edge_count() < count {
        return Ok(());
    }
    let mut rng = SmallRng::seed_from_u64(1);
    let mut node = || rng.random_range(0..graph.node_count());
    let new: Vec<(u32, u32)> = (0..count).map(|_| (node(), node())).collect();
    let mut old: Vec<(u32, u32)> = graph.pairs().collect();
    for index in 0..count {
        let other = rng.random_range(index..old.len());
        old.swap(index, other);
    }
    old.truncate(count);
    let mut tallies = [Tally::default(), Tally::default(), Tally::default(), Tally::default()];
    for edge in &old {
        tallies[0].edit(&mut closure, &[], &[*edge])?;
    }
    for edge in &old {
        tallies[1].edit(&mut closure, &[*edge], &[])?;
    }
    // One at a time: ten thousand random edges at once would join everything with everything.
    for edge in &new {
        tallies[2].edit(&mut closure, &[*edge], &[])?;
        tallies[3].edit(&mut closure, &[], &[*edge])?;
    }
    if closure.rows() != rows_before {
        return Err(wrong("deleting and inserting the same edges left another closure"));
    }
    let names = [
        "delete of edges of the graph",
        "insert of the same",
        "insert between random nodes",
        "delete of each right after",
    ];
    names.iter().zip(tallies).for_each(|(name, tally)| tally.print(name));
    Ok(())
}
