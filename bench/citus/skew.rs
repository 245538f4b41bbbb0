//! A skewed load in a closed loop, after a rebalance by each strategy.

use crate::Options;
use crate::load::{Asked, HOT_PERCENT, Mix, ask_all, connect};
use crate::world::{Planned, World};
use foreshard_test::Result;
use foreshard_test::bars::bar_least;

/// The least throughput of foreshard over that of the better one of the others.
const LEAST_RATIO: f64 = 1.5;

/// Measures every strategy, one after another, each on what the one before it left.
pub fn bench(options: &Options, world: &World, hot: &[String]) -> Result<bool> {
    println!(
        "the skew: {HOT_PERCENT} % of the questions about {} tenants of one worker, {} clients",
        hot.len(),
        options.clients
    );
    let mix = Mix { hot, tenants: options.tenants };
    // What foreshard is to know of the load.
    told("as it begins", &measure(options, world, &mix)?, None);
    let mut found = Vec::new();
    for strategy in ["by_shard_count", "by_disk_size", "foreshard"] {
        let planned = world.rebalance(strategy)?;
        let asked = measure(options, world, &mix)?;
        told(strategy, &asked, Some(&planned));
        found.push(asked.per_second);
    }
    let ours = found.pop().unwrap_or(0.0);
    let better = found.into_iter().fold(f64::MIN_POSITIVE, f64::max);
    Ok(bar_least("throughput of foreshard over the better of the others", ours / better, LEAST_RATIO))
}

/// With new clients: none has anything left of what was before.
fn measure(options: &Options, world: &World, mix: &Mix) -> Result<Asked> {
    ask_all(&mut connect(world, options.clients)?, mix, options.seconds)
}

fn told(what: &str, asked: &Asked, planned: Option<&Planned>) {
    let moved = planned
        .map(|planned| format!("  ({} moves, {:.1} MB)", planned.moves, planned.bytes / 1e6))
        .unwrap_or_default();
    println!(
        "{what:<16} {:>9.0} questions/s, p50 {:>7.2} ms, p99 {:>8.2} ms{moved}",
        asked.per_second,
        asked.latencies.p50_ms(),
        asked.latencies.p99_ms()
    );
}
