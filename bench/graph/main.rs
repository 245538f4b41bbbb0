//! What the graph core costs and how well it places.
//!
//! `foreshard-bench-graph [EDGES] [--only PART] [--between FILE] [--trace FILE] [--edits N]`
//!
//! EDGES is an edge list, two or three words a line (source, target, weight), plain or .xz; Debian's package
//! graph unless named. Parts: `closure`, `edits`, `rank`, `between`, `place`, `server`. `--between` names the graph for
//! which sampled betweenness is compared with exact (a generated network of 6,474 nodes otherwise), `--trace` a
//! trace of big-endian 32-bit keys (orm-busy otherwise). Bars: PageRank of a generated graph of 1,000,000
//! nodes and 10,000,000 edges at most 3 × the time of streaming the same bytes; sampled betweenness within its
//! bound; at most 30 % of windows on more than one shard with max/mean load of at most 1.10. Exit code 1 when a
//! bar is missed. `server` compares the SQL functions with plain SQL when FORESHARD_PG names a staged version (bars: a
//! closure in a tenth of the time, questions in a twentieth, single edges in a fifth, PageRank in a twentieth); all else is
//! in memory.

mod closure;
mod edits;
mod influence;
mod place;
mod questions;
mod read;
mod server;

use foreshard_test::install::repository;
use foreshard_test::{Error, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// What the command line asked for.
pub struct Options {
    /// The edge list.
    pub edges: PathBuf,
    /// The graph whose betweenness is compared; a generated one without.
    pub between: Option<PathBuf>,
    /// The trace.
    pub trace: PathBuf,
    /// Random single-edge inserts, and then deletes.
    pub edits: usize,
    only: Option<String>,
}

const PARTS: [&str; 6] = ["closure", "edits", "rank", "between", "place", "server"];

impl Options {
    fn parse() -> Result<Options> {
        let usage = "Use [EDGES] [--only PART] [--between FILE] [--trace FILE] [--edits N].";
        let mut options = Options {
            edges: repository().join("data/graphs/debian_bookworm.edges.xz"),
            between: None,
            trace: repository().join("demo/data/orm-busy.trace.xz"),
            edits: 10_000,
            only: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if !name.starts_with("--") {
                options.edges = name.into();
                continue;
            }
            let value = arguments.next().unwrap_or_default();
            match (name.as_str(), value.parse::<usize>().ok()) {
                ("--only", _) if PARTS.contains(&value.as_str()) => options.only = Some(value),
                ("--between", _) if !value.is_empty() => options.between = Some(value.into()),
                ("--trace", _) if !value.is_empty() => options.trace = value.into(),
                ("--edits", Some(edits)) => options.edits = edits,
                _ => return Err(Error::new(format!("{name} {value} is not understood."), usage)),
            }
        }
        Ok(options)
    }

    fn asks(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == part)
    }
}

/// Runs something; its result and the seconds it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let result = work();
    (result, begun.elapsed().as_secs_f64())
}

fn main() -> ExitCode {
    foreshard_test::bars::end(Options::parse().and_then(|options| bench(&options)))
}

/// Everything that was asked for; whether the bars hold.
fn bench(options: &Options) -> Result<bool> {
    let mut holds = true;
    let graph = read::graph(&options.edges)?;
    println!("graph: {} nodes, {} edges", graph.node_count(), graph.edge_count());
    if options.asks("closure") {
        closure::bulk(&graph)?;
    }
    if options.asks("edits") {
        closure::edits(&graph, options.edits)?;
    }
    if options.asks("rank") {
        holds &= influence::rank(&graph)?;
    }
    if options.asks("between") {
        holds &= influence::between(options.between.as_deref())?;
    }
    if options.asks("place") {
        place::structure(&graph)?;
        holds &= place::trace(&options.trace)?;
    }
    if options.asks("server") && std::env::var_os("FORESHARD_PG").is_some() {
        holds &= server::all(&graph, options.edits)?;
    }
    Ok(holds)
}
