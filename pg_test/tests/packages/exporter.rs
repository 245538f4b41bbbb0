//! docker/sql_exporter/foreshard.collector.yml, read strictly: a line of any other form than those it has is an error.

use foreshard_test::install::repository;
use foreshard_test::{Error, Result};
use std::collections::BTreeMap;
use std::fs;

/// A metric.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// `gauge` or `counter`.
    pub kind: String,
    /// What it is.
    pub help: String,
    /// Columns that become labels.
    pub labels: Vec<String>,
    /// The column of its value.
    pub values: Vec<String>,
    /// The query it comes from.
    pub query: String,
}

/// Metrics, and queries by name.
#[derive(Debug, Default)]
pub struct Collector {
    /// All metrics.
    pub metrics: Vec<Metric>,
    /// All queries.
    pub queries: BTreeMap<String, String>,
}

/// Reads the file of the repository.
pub fn collector() -> Result<Collector> {
    let path = repository().join("docker/sql_exporter/foreshard.collector.yml");
    parse(&fs::read_to_string(path)?)
        .map_err(|line| Error::new(format!("The collector has this line: {line}"), ""))
}

/// The collector; the first line that is not understood otherwise.
pub fn parse(text: &str) -> std::result::Result<Collector, String> {
    let mut collector = Collector::default();
    let mut query = String::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let top = ["collector_name: foreshard", "metrics:", "queries:"].contains(&line);
        if top || line == "    query: |" {
            continue;
        }
        if let Some(name) = line.strip_prefix("  - metric_name: ") {
            collector.metrics.push(Metric { name: name.into(), ..Metric::default() });
        } else if let Some(name) = line.strip_prefix("  - query_name: ") {
            query = name.into();
            collector.queries.insert(query.clone(), String::new());
        } else if let Some(sql) = line.strip_prefix("      ") {
            let text = collector.queries.get_mut(&query).ok_or(line)?;
            text.push_str(sql);
            text.push('\n');
        } else {
            let (key, value) =
                line.strip_prefix("    ").and_then(|pair| pair.split_once(": ")).ok_or(line)?;
            set(collector.metrics.last_mut().ok_or(line)?, key, value).ok_or(line)?;
        }
    }
    Ok(collector)
}

fn set(metric: &mut Metric, key: &str, value: &str) -> Option<()> {
    match key {
        "type" if ["gauge", "counter"].contains(&value) => metric.kind = value.into(),
        "help" => metric.help = value.strip_prefix('\'')?.strip_suffix('\'')?.replace("''", "'"),
        "key_labels" => metric.labels = list(value)?,
        "values" => metric.values = list(value)?,
        "query_ref" => metric.query = value.into(),
        _ => return None,
    }
    Some(())
}

fn list(value: &str) -> Option<Vec<String>> {
    let inner = value.strip_prefix('[')?.strip_suffix(']')?;
    Some(inner.split(", ").map(str::to_string).collect())
}

/// Every word of a text that begins as our metrics do.
pub fn metrics_in(text: &str) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !word(c));
    words.filter(|word| word.starts_with("foreshard_")).map(str::to_string).collect()
}

#[test]
fn collectors_are_read() {
    let text = "# c\ncollector_name: foreshard\n\nmetrics:\n  - metric_name: foreshard_x\n    type: gauge\n    help: 'It''s x.'\n    key_labels: [a, b]\n    values: [x]\n    query_ref: q\n\nqueries:\n  - query_name: q\n    query: |\n      SELECT 1\n";
    let read = parse(text);
    assert!(read.is_ok(), "{read:?}");
    let read = read.unwrap_or_default();
    assert_eq!(read.metrics[0].labels, ["a", "b"]);
    assert_eq!(read.metrics[0].help, "It's x.");
    assert_eq!(read.queries["q"], "SELECT 1\n");
    assert_eq!(
        parse("metrics:\n  - metric_name: x\n    typ: gauge\n").err().as_deref(),
        Some("    typ: gauge")
    );
    assert_eq!(metrics_in("sum(foreshard_a{b=\"c\"}) / on() foreshard_b"), ["foreshard_a", "foreshard_b"]);
}
