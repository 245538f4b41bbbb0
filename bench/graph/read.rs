//! Edge lists and traces from files.

use foreshard_core::graph::keys::KeyTable;
use foreshard_core::graph::{Digraph, Edge};
use foreshard_test::install::run;
use foreshard_test::{Error, Result};
use std::path::Path;
use std::process::Command;

/// The bytes of a file, unpacked if it ends in .xz.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|ending| ending == "xz") {
        return Ok(run(Command::new("xz").arg("-dc").arg(path))?.stdout);
    }
    std::fs::read(path).map_err(|error| {
        Error::new(format!("{} cannot be read: {error}.", path.display()), "Name an edge list.")
    })
}

/// A graph from an edge list: source, target and perhaps a weight per line; lines that begin with # or % are
/// comments. Nodes are whatever words the file uses.
pub fn graph(path: &Path) -> Result<Digraph> {
    let text = String::from_utf8_lossy(&bytes(path)?).into_owned();
    let wrong = |what: String| Error::new(format!("{}: {what}", path.display()), "A line is: source target.");
    let mut keys = KeyTable::new();
    let mut edges = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let Some(source) = words.next().filter(|word| !word.starts_with(['#', '%'])) else { continue };
        let target = words.next().ok_or_else(|| wrong(format!("line {} has one word.", number + 1)))?;
        let weight = words.next().and_then(|word| word.parse().ok()).unwrap_or(1.0);
        let mut number = |key: &str| keys.number(&key.to_string()).map_err(|error| wrong(error.to_string()));
        edges.push(Edge { source: number(source)?, target: number(target)?, weight });
    }
    Digraph::from_edges(keys.len(), &edges).map_err(|error| wrong(error.to_string()))
}

/// The accesses of a trace of big-endian 32-bit keys, numbered densely in ascending order of keys.
pub fn trace(path: &Path) -> Result<Vec<u32>> {
    let bytes = bytes(path)?;
    let (words, rest) = bytes.as_chunks::<4>();
    if words.is_empty() || !rest.is_empty() {
        let what = format!("{} is not a list of 4-byte integers.", path.display());
        return Err(Error::new(what, "Restore it from the repository."));
    }
    let raw: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
    let mut keys = raw.clone();
    keys.sort_unstable();
    keys.dedup();
    Ok(raw.iter().map(|key| keys.binary_search(key).unwrap_or(0) as u32).collect())
}
