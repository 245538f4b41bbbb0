//! The chains that would be considered, in words.

use super::network::Network;
use crate::pg::report::PgResult;

/// A chain, or a source that is left out.
pub struct Considered {
    /// Place among the chains, from 1; None for a source that is left out.
    pub place: Option<i32>,
    /// The chain that would be taken first.
    pub chosen: bool,
    /// Names of the sources.
    pub sources: Vec<String>,
    /// Classes passed.
    pub classes: Vec<String>,
    /// Predicted latency, ms.
    pub predicted_ms: Option<f64>,
    /// Predicted rows.
    pub predicted_rows: Option<f64>,
    /// Predicted latency of every source, ms.
    pub step_ms: Vec<f64>,
    /// Why.
    pub reason: String,
}

/// The chains from one class to another for so many keys, cheapest first, then what is left out.
///
/// # Errors
/// 42704 for a graph without sources and a class that none knows.
pub fn explain(graph: &str, from: &str, keys: usize, to: &str) -> PgResult<Vec<Considered>> {
    let network = Network::read(graph)?;
    let found = network.search(from, to, keys as f64)?;
    let cheapest = found.chains.first().map_or(0.0, |chain| chain.ms);
    let mut rows = Vec::new();
    for (at, chain) in found.chains.iter().enumerate() {
        let reason = match (at, found.chains.len()) {
            (0, 1) => "the only chain".to_owned(),
            (0, count) => format!("predicted to be the fastest of {count}"),
            _ => format!("{:.1} ms slower than the fastest", chain.ms - cheapest),
        };
        rows.push(Considered {
            place: Some(at as i32 + 1),
            chosen: at == 0,
            sources: network.names(chain),
            classes: network.classes(chain),
            predicted_ms: Some(chain.ms),
            predicted_rows: Some(chain.rows),
            step_ms: chain.steps.iter().map(|step| step.ms).collect(),
            reason,
        });
    }
    let left_out = |name: &str, classes: [&str; 2], reason: String| Considered {
        place: None,
        chosen: false,
        sources: vec![name.to_owned()],
        classes: classes.map(str::to_owned).to_vec(),
        predicted_ms: None,
        predicted_rows: None,
        step_ms: Vec::new(),
        reason,
    };
    for (edge, source) in network.sources.iter().enumerate() {
        if let Some(reason) = network.left_out(edge) {
            rows.push(left_out(&source.name, [&source.from, &source.to], reason));
        }
    }
    for source in &network.distrusted {
        let reason = "its owner is no superuser, and you are one".to_owned();
        rows.push(left_out(&source.name, [&source.from, &source.to], reason));
    }
    Ok(rows)
}
