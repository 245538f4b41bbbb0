//! Who causes the load: triggers, keys, nodes of graphs.

use super::plot::{self, Bar};
use super::text::{bytes, count, maybe, name, number};
use super::{MAX_ENTRIES, Report};
use maud::{Markup, html};
use std::collections::BTreeSet;

/// Bars in a figure; the table has more.
const IN_FIGURE: usize = 12;

/// Shown for what the reader may not see.
fn hidden() -> Markup {
    html! { i { "hidden" } }
}

/// Trigger costs.
pub fn triggers(report: &Report) -> Markup {
    let shown = report.triggers.shown(MAX_ENTRIES);
    if shown.is_empty() {
        return html! { p.lead { "No trigger of a managed table was called since it is watched." } };
    }
    let bars: Vec<Bar> = shown
        .iter()
        .take(IN_FIGURE)
        .filter_map(|one| {
            let total = one.total_ms?;
            let each = one.cpu_us.or(one.elapsed_us);
            let label =
                html! { (name(&one.trigger)) small { " " (name(&one.event)) " on " (name(&one.table)) } };
            let text = format!("{} ms, {} µs a call", number(total), maybe(each));
            Some(Bar { label, value: total, whisker: None, text, class: "now" })
        })
        .collect();
    let rows: Vec<Vec<Markup>> = shown
        .iter()
        .map(|one| {
            vec![
                name(&one.table),
                name(&one.trigger),
                name(&one.function),
                name(&one.event),
                plot::cell(count(one.calls)),
                plot::cell(maybe(one.cpu_us)),
                plot::cell(maybe(one.elapsed_us)),
                plot::cell(one.wal_bytes.map_or_else(|| "–".to_string(), |b| bytes(b as i64))),
                plot::cell(maybe(one.total_ms)),
            ]
        })
        .collect();
    let head = ["table", "trigger", "function", "fires", "calls", "CPU µs", "elapsed µs", "WAL", "total ms"];
    html! {
        p.lead { "What triggers took so far, the triggers that they fire included: CPU time, of PostgreSQL's own triggers elapsed time." }
        @if !bars.is_empty() { (plot::bars("Total cost of every trigger", &bars)) }
        (plot::table("Triggers", &head, &rows))
        (plot::left_out(report.triggers.left_out(MAX_ENTRIES), "triggers, cheaper, are"))
    }
}

/// Hot keys.
pub fn hot_keys(report: &Report) -> Markup {
    let shown = report.hot_keys.shown(MAX_ENTRIES);
    if shown.is_empty() {
        return html! { p.lead { "No slot is hot enough for its keys to be sampled (foreshard.hot_slot_threshold)." } };
    }
    let key = |key: Option<&str>| key.map_or_else(hidden, name);
    let bars: Vec<Bar> = shown
        .iter()
        .take(IN_FIGURE)
        .map(|one| Bar {
            label: html! { (key(one.key.as_deref())) small { " in " (name(&one.table)) ", slot " (one.slot_id) } },
            value: one.accesses,
            whisker: Some((one.lower, one.upper)),
            text: format!("{} /s", number(one.accesses)),
            class: "now",
        })
        .collect();
    let rows: Vec<Vec<Markup>> = shown
        .iter()
        .map(|one| {
            vec![
                name(&one.table),
                key(one.key.as_deref()),
                plot::cell(one.slot_id.to_string()),
                plot::cell(number(one.accesses)),
                plot::cell(number(one.lower)),
                plot::cell(number(one.upper)),
            ]
        })
        .collect();
    html! {
        p.lead { "Accesses per second, with the bounds between which the true number is. Keys are shown to those only who may read them." }
        (plot::bars("Accesses to hot keys", &bars))
        (plot::table("Hot keys", &["table", "key", "slot", "accesses/s", "lower", "upper"], &rows))
        (plot::left_out(report.hot_keys.left_out(MAX_ENTRIES), "keys, less hot, are"))
    }
}

/// Influence of nodes of graphs.
pub fn influence(report: &Report) -> Markup {
    let shown = report.influencers.shown(2 * MAX_ENTRIES);
    if shown.is_empty() {
        return html! { p.lead { "There is no graph whose influence was computed." } };
    }
    let graphs: BTreeSet<&str> = shown.iter().map(|one| one.graph.as_str()).collect();
    let node = |node: Option<&str>| node.map_or_else(hidden, name);
    let rows: Vec<Vec<Markup>> = shown
        .iter()
        .map(|one| {
            vec![
                name(&one.graph),
                plot::cell(one.place.to_string()),
                node(one.node.as_deref()),
                plot::cell(number(one.influence)),
                plot::cell(number(one.betweenness)),
            ]
        })
        .collect();
    html! {
        p.lead { "The most influential nodes by PageRank (share of a random walker's time)." }
        @for graph in graphs {
            h3 { (name(graph)) }
            @let bars: Vec<Bar> = shown.iter().filter(|one| one.graph == graph).take(IN_FIGURE).map(|one| Bar {
                label: html! { (one.place) ". " (node(one.node.as_deref())) },
                value: one.influence,
                whisker: None,
                text: number(one.influence),
                class: "now",
            }).collect();
            (plot::bars("Influence of nodes", &bars))
        }
        (plot::table("Influence", &["graph", "place", "node", "PageRank", "betweenness"], &rows))
        (plot::left_out(report.influencers.left_out(2 * MAX_ENTRIES), "nodes, less influential, are"))
    }
}
