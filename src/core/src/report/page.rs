//! The document: head, summary, and the sections in the order in which somebody in a hurry reads them.

use super::text::{self, Clock, count, duration, maybe, name, number, percent, plain};
use super::{MAX_ENTRIES, MAX_SHARDS, Report, Shard, acts, costs, load, plot};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");
/// Whatever a name smuggled in could not run or call home.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The whole page.
pub fn document(report: &Report) -> Markup {
    let clock = Clock { offset_s: report.utc_offset_s };
    let sections = [
        ("todo", "What to do", acts::recommendations(report, clock)),
        ("shards", "Shards", load::shards(report)),
        ("curves", "Load curves", load::curves(report, clock)),
        ("heat", "Heat map", load::heat_map(report, clock)),
        ("moves", "Moves", acts::moves(report, clock)),
        ("triggers", "Trigger costs", costs::triggers(report)),
        ("keys", "Hot keys", costs::hot_keys(report)),
        ("graphs", "Influence in graphs", costs::influence(report)),
        ("calibration", "Calibration", acts::calibration(report)),
    ];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content=(format!("foreshard {}", plain(&report.extension)));
                title { "foreshard: " (plain(&report.database)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    div {
                        p.brand { "foreshard" }
                        h1 { (name(&report.database)) }
                    }
                    p.made {
                        (clock.full(report.made_at)) " " (clock.zone()) br;
                        "PostgreSQL " (plain(&report.server)) " · foreshard " (plain(&report.extension)) " · mode " b { (plain(&report.mode)) }
                    }
                }
                nav aria-label="Sections" {
                    @for (id, title, _) in &sections { a href=(format!("#{id}")) { (title) } }
                }
                main {
                    (summary(report, clock))
                    @for (id, title, body) in &sections {
                        section id=(id) { h2 { (title) } (body) }
                    }
                    (tables(report))
                }
                footer {
                    p {
                        "Loads are in cost units per second; a cost unit is one millisecond of CPU, with I/O and WAL converted. "
                        "Unknown values are shown as –. Times are " (clock.zone()) "."
                    }
                }
            }
        }
    }
}

fn utilization(shard: &Shard) -> Option<f64> {
    shard.load.map(|load| load / shard.capacity)
}

/// How bad it is, and why in one sentence.
fn verdict(report: &Report, clock: Clock) -> (&'static str, &'static str, Markup) {
    if let Some(problem) = report.problems.known.iter().find(|p| p.severity == "error") {
        return ("bad", "Act", html! { (name(&problem.object)) ": " (text::sentence(&problem.problem)) });
    }
    let over = report.shards.known.iter().filter(|s| utilization(s).is_some_and(|u| u >= 1.0)).count();
    if let Some(worst) = hottest(report).filter(|_| over > 0) {
        let more = over - 1;
        return (
            "bad",
            "Act",
            html! { "Shard " (name(&worst.name)) " is over its capacity now" @if more > 0 { ", and " (more) " more" } "." },
        );
    }
    if let Some((shard, at)) = load::first_overload(report) {
        return (
            "warn",
            "Look",
            html! { "Shard " (name(shard)) " is forecast to exceed its capacity at " (clock.full(at)) "." },
        );
    }
    if report.tables.total == 0 {
        return (
            "calm",
            "Empty",
            html! { "No table is managed yet: " code { "SELECT foreshard.distribute('table', 'key');" } },
        );
    }
    if report.problems.total > 0 {
        let loads =
            if hottest(report).is_some() { "Loads are within capacity" } else { "No load was observed yet" };
        return ("warn", "Look", html! { (loads) ", and the list of problems is not empty." });
    }
    if hottest(report).is_none() {
        return ("calm", "Wait", html! { "No load was observed yet." });
    }
    ("calm", "Calm", html! { "Every shard is within its capacity, now and as far as the forecast reaches." })
}

/// The shard with the greatest share of its capacity in use.
fn hottest(report: &Report) -> Option<&Shard> {
    let known = report.shards.known.iter().filter(|shard| utilization(shard).is_some());
    known.max_by(|a, b| utilization(a).unwrap_or(0.0).total_cmp(&utilization(b).unwrap_or(0.0)))
}

/// Greatest utilization over the mean one.
fn imbalance(report: &Report) -> Option<f64> {
    let loads: Vec<(f64, f64)> =
        report.shards.known.iter().filter_map(|s| Some((s.load?, s.capacity))).collect();
    let (load, capacity) =
        loads.iter().fold((0.0, 0.0), |sum, (load, capacity)| (sum.0 + load, sum.1 + capacity));
    let most = loads.iter().map(|(load, capacity)| load / capacity).fold(0.0, f64::max);
    (load > 0.0).then(|| most / (load / capacity))
}

fn tile(label: &str, value: Markup, note: Markup) -> Markup {
    html! { div.tile { p.label { (label) } p.number { (value) } p.note { (note) } } }
}

fn summary(report: &Report, clock: Clock) -> Markup {
    let (class, word, why) = verdict(report, clock);
    let open: Vec<_> = report.recommendations.known.iter().filter(|r| r.action != "none").collect();
    let ready = open.iter().filter(|r| r.refusal.is_none()).count();
    let going: Vec<_> =
        report.moves.known.iter().filter(|m| m.started_at.is_some() && m.finished_at.is_none()).collect();
    let eta = going
        .iter()
        .filter_map(|m| m.eta_s)
        .fold(None, |most: Option<f64>, eta| Some(most.unwrap_or(0.0).max(eta)));
    html! {
        section #summary {
            div.verdict.(class) { p.word { (word) } p.why { (why) } }
            div.tiles {
                @if let Some(shard) = hottest(report) {
                    (tile("Hottest shard", html! { (utilization(shard).map_or_else(String::new, percent)) },
                        html! { (name(&shard.name)) ", " (maybe(shard.load)) " of " (number(shard.capacity)) " units/s" }))
                }
                @if let Some(ratio) = imbalance(report) {
                    (tile("Imbalance", html! { "× " (number(ratio)) }, html! { "hottest shard over the mean" }))
                }
                (tile("Recommended", html! { (open.len()) }, html! { (ready) " ready, " (open.len() - ready) " waiting" }))
                (tile("Moves going on", html! { (going.len()) },
                    html! { @if let Some(eta) = eta { "copying for about " (duration(eta)) } @else { (report.moves.total) " in all" } }))
                (tile("Problems", html! { (report.problems.total) },
                    html! { @if report.problems.total == 0 { "check() finds nothing" } @else { "see below" } }))
            }
            (problems(report))
        }
    }
}

fn problems(report: &Report) -> Markup {
    html! {
        @for problem in report.problems.shown(MAX_ENTRIES) {
            article.card.(if problem.severity == "error" { "bad" } else { "warn" }) {
                h3 { (name(&problem.severity)) ": " (name(&problem.object)) }
                p { (text::sentence(&problem.problem)) @if !problem.detail.is_empty() { " (" (text::sentence(&problem.detail)) ")" } }
                @if !problem.hint.is_empty() { p.advice { (text::sentence(&problem.hint)) } }
            }
        }
        (plot::left_out(report.problems.left_out(MAX_ENTRIES), "problems are"))
    }
}

fn tables(report: &Report) -> Markup {
    let rows: Vec<Vec<Markup>> = report
        .tables
        .shown(MAX_ENTRIES)
        .iter()
        .map(|table| {
            vec![
                name(&table.name),
                name(&table.key),
                plot::cell(count(i64::from(table.group_id))),
                plot::cell(count(table.slots)),
                plot::cell(text::bytes(table.bytes)),
            ]
        })
        .collect();
    html! {
        section #tables {
            h2 { "Managed tables" }
            p.lead { "Tables: " (report.tables.total) ", shards: " (report.shards.total) "." }
            (plot::table("Tables", &["table", "key", "group", "slots", "size"], &rows))
            (plot::left_out(report.tables.left_out(MAX_ENTRIES), "tables are"))
            (plot::left_out(report.shards.left_out(MAX_SHARDS), "shards are"))
        }
    }
}
