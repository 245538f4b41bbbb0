//! What is recommended, what was done, and whether it paid.

use super::text::{self, Clock, bytes, count, duration, literal, maybe, name, name_or_dash, number, percent};
use super::{Calibration, MAX_ENTRIES, Move, Recommendation, Report, plot};
use maud::{Markup, html};

/// The statement that does what is recommended; None: nothing is.
pub fn remedy(one: &Recommendation) -> Option<String> {
    let slot = one.slot_id;
    match (one.action.as_str(), &one.to, one.other) {
        ("move", Some(to), _) => Some(format!("SELECT foreshard.move_slot({slot}, {});", literal(to))),
        ("split", to, _) => Some(format!("SELECT foreshard.split_slot({slot}{});", second(to))),
        ("prepare", to, _) => Some(format!("SELECT foreshard.prepare_split({slot}{});", second(to))),
        ("merge", _, Some(other)) => Some(format!("SELECT foreshard.merge_slots({slot}, {other});")),
        _ => keys_remedy(one),
    }
}

/// Names the shard of the second half.
fn second(to: &Option<String>) -> String {
    to.as_ref().map_or_else(String::new, |to| format!(", to_shard_b => {}", literal(to)))
}

/// The same for chosen keys.
fn keys_remedy(one: &Recommendation) -> Option<String> {
    let table = literal(one.table.as_ref()?);
    match (one.action.as_str(), &one.key, &one.map) {
        ("isolate", Some(key), _) => {
            let shard = one.to.as_ref().map_or_else(String::new, |to| format!(", {}", literal(to)));
            Some(format!("SELECT foreshard.isolate_key({table}, {}::text{shard});", literal(key)))
        }
        ("home", Some(key), _) => {
            Some(format!("SELECT foreshard.unisolate_key({table}, {}::text);", literal(key)))
        }
        ("place" | "home", _, Some(map)) => {
            Some(format!("SELECT foreshard.place_keys({table}, {}, whole => false);", literal(map)))
        }
        _ => None,
    }
}

fn title(one: &Recommendation) -> Markup {
    let slot = one.slot_id;
    match (one.action.as_str(), &one.to, one.other) {
        ("move", Some(to), _) => {
            html! { "Move slot " (slot) " from " (name_or_dash(one.from.as_deref())) " to " (name(to)) }
        }
        ("split", ..) => html! { "Split slot " (slot) " on " (name_or_dash(one.from.as_deref())) },
        ("prepare", ..) => {
            html! { "Prepare a split of slot " (slot) " on " (name_or_dash(one.from.as_deref())) }
        }
        ("merge", _, Some(other)) => html! { "Merge slots " (slot) " and " (other) },
        ("isolate", ..) => html! { "Give the busiest key of slot " (slot) " a place of its own" },
        ("place", ..) => html! { "Place keys of slot " (slot) },
        ("home", ..) => html! { "Bring keys home to slot " (slot) },
        _ => html! { (name(&one.action)) " slot " (slot) },
    }
}

fn card(one: &Recommendation, clock: Clock) -> Markup {
    html! {
        article.card {
            h3 { (title(one)) }
            dl {
                @if let Some(confidence) = one.confidence { div { dt { "pays with" } dd { (percent(confidence)) } } }
                @if let Some((before, after)) = one.imbalance { div { dt { "worst peak" } dd { "× " (number(before)) " → × " (number(after)) } } }
                @if let Some(size) = one.bytes { div { dt { "copies" } dd { (bytes(size)) } } }
                @if let Some(at) = one.start_at { div { dt { "begin at" } dd { (clock.full(at)) } } }
                @if let Some(at) = one.overload_at { div { dt { "overload at" } dd { (clock.full(at)) } } }
            }
            @if let Some(reason) = &one.reason { p { (text::sentence(reason)) } }
            @if let Some(refusal) = &one.refusal {
                p.advice { "Not taken by itself: " (text::sentence(refusal)) ". " @if let Some(advice) = &one.advice { (text::sentence(advice)) } }
            }
            @match remedy(one) {
                Some(sql) => { pre { code { (sql) } } }
                None => { p.advice { "See recommendation " (one.id) " in foreshard.recommendations." } }
            }
        }
    }
}

/// What is recommended, and what is refused.
pub fn recommendations(report: &Report, clock: Clock) -> Markup {
    let (open, refused): (Vec<_>, Vec<_>) =
        report.recommendations.known.iter().partition(|r| r.action != "none");
    let shown = open.len().min(MAX_ENTRIES / 2);
    let rows: Vec<Vec<Markup>> = refused
        .iter()
        .take(MAX_ENTRIES)
        .map(|one| {
            vec![
                plot::cell(one.slot_id.to_string()),
                name_or_dash(one.from.as_deref()),
                text::sentence(one.refusal.as_deref().unwrap_or("–")),
                text::sentence(one.advice.as_deref().unwrap_or("–")),
            ]
        })
        .collect();
    let hidden =
        report.recommendations.left_out(usize::MAX) + open.len() - shown + refused.len() - rows.len();
    html! {
        @if open.is_empty() { p.lead { "Nothing is recommended." } }
        @else { p.lead { "Steps in the order in which they should be taken, each with its reason and the statement that does it." } }
        div.cards { @for one in open.iter().take(shown) { (card(one, clock)) } }
        @if !rows.is_empty() { (plot::table("Considered and refused", &["slot", "shard", "why not", "what helps"], &rows)) }
        (plot::left_out(hidden, "entries are"))
    }
}

/// Sign and class of a move's state.
fn state(one: &Move) -> (&'static str, &'static str) {
    match one.state.as_str() {
        "done" => ("✓", "done"),
        "failed" => ("✗", "failed"),
        "cancelled" => ("◦", "cancelled"),
        "waiting" | "paused" | "prepared" => ("…", "waiting"),
        _ => ("▸", "running"),
    }
}

fn move_rows(moves: &[Move], clock: Clock) -> Vec<Vec<Markup>> {
    let when = |at: Option<f64>| plot::cell(at.map_or_else(|| "–".to_string(), |at| clock.full(at)));
    let row = |one: &Move| {
        vec![
            plot::cell(one.id.to_string()),
            name(&one.kind),
            plot::cell(one.slot_id.to_string()),
            name(&one.from),
            name(&one.to),
            html! { (name(&one.state)) " (" (name(&one.phase)) ")" },
            when(one.started_at),
            when(one.finished_at),
            plot::cell(one.percent.map_or_else(|| "–".to_string(), |p| percent(p / 100.0))),
            plot::cell(one.bytes.map_or_else(|| "–".to_string(), bytes)),
            name(&one.requested_by),
            text::sentence(one.error.as_deref().or(one.reason.as_deref()).unwrap_or("–")),
        ]
    };
    moves.iter().map(row).collect()
}

/// Moves on a time line.
pub fn moves(report: &Report, clock: Clock) -> Markup {
    let shown = report.moves.shown(MAX_ENTRIES);
    if shown.is_empty() {
        return html! { p.lead { "Nothing was moved yet." } };
    }
    let ends = |one: &Move| one.finished_at.unwrap_or(report.made_at);
    let from = shown.iter().filter_map(|m| m.started_at).fold(report.made_at, f64::min);
    let to = shown.iter().map(ends).fold(from + 1.0, f64::max);
    let head = [
        "move",
        "kind",
        "slot",
        "from",
        "to",
        "state",
        "began",
        "ended",
        "done",
        "size",
        "asked by",
        "reason or error",
    ];
    html! {
        p.lead { "When each move ran, the newest on top: ✓ done, ▸ running, … waiting, ◦ cancelled, ✗ failed." }
        figure.timeline role="img" aria-label="Moves on a time line" {
            @for one in shown {
                @let (sign, class) = state(one);
                div.label { span { (sign) } " " (name(&one.kind)) " " (one.slot_id) ": " (name(&one.from)) " → " (name(&one.to)) }
                svg.bar viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                    path.grid d="M0 10H100" {}
                    @if let Some(started) = one.started_at {
                        @let left = plot::place(started, from, to).min(99.4);
                        rect class=(class) x=(format!("{left:.2}")) y="1.5" height="7"
                            width=(format!("{:.2}", (plot::place(ends(one), from, to) - left).max(0.6))) {}
                    }
                }
                div.value {
                    @match (one.started_at, one.eta_s) {
                        (Some(_), Some(eta)) => { "in " (duration(eta)) }
                        (Some(started), None) => (duration(ends(one) - started)),
                        _ => "–",
                    }
                }
            }
            (plot::time_axis(clock, from, to, 4))
        }
        (plot::table("Moves", &head, &move_rows(shown, clock)))
        (plot::left_out(report.moves.left_out(MAX_ENTRIES), "moves, older, are"))
    }
}

/// Confidence stated against the share that paid.
pub fn calibration(report: &Report) -> Markup {
    let shown = report.calibration.shown(MAX_ENTRIES);
    let judged: Vec<(&Calibration, f64, f64)> =
        shown.iter().filter_map(|one| Some((one, one.stated?, one.paid?))).collect();
    let rows: Vec<Vec<Markup>> = shown
        .iter()
        .map(|one| {
            vec![
                plot::cell(one.group_id.to_string()),
                plot::cell(count(one.outcomes)),
                plot::cell(one.stated.map_or_else(|| "–".to_string(), percent)),
                plot::cell(one.paid.map_or_else(|| "–".to_string(), percent)),
                name(&one.trust),
            ]
        })
        .collect();
    html! {
        @if judged.is_empty() {
            p.lead { "No recommendation was judged yet: each is, whether it was carried out or not, when its time is over (" (maybe(None)) " of them so far)." }
        } @else {
            p.lead { "Of the steps recommended with some confidence, the share that paid. On the diagonal it is honest; below it promises too much." }
            figure.square role="img" aria-label="Confidence stated against the share that paid" {
                div.plot {
                    div.yaxis aria-hidden="true" { span { "100 % paid" } span { "50 %" } span { "0 %" } }
                    svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true" {
                        path.grid d="M0 0H100V100H0ZM50 0V100M0 50H100" {}
                        path.limit d="M0 100L100 0" {}
                        @for (one, stated, paid) in &judged {
                            circle cx=(format!("{:.2}", plot::place(*stated, 0.0, 1.0))) cy=(format!("{:.2}", 100.0 - plot::place(*paid, 0.0, 1.0)))
                                r=(format!("{:.1}", (one.outcomes.max(1) as f64).sqrt().clamp(2.0, 6.0))) {
                                title { "group " (one.group_id) ": " (one.outcomes) " judged" }
                            }
                        }
                    }
                    div.xaxis aria-hidden="true" { span.begin style="left:0%" { "0 %" } span style="left:50%" { "50 % stated" } span.end style="left:100%" { "100 %" } }
                }
            }
        }
        @if !rows.is_empty() { (plot::table("Calibration", &["group", "judged", "stated", "paid", "foresight is"], &rows)) }
        (plot::left_out(report.calibration.left_out(MAX_ENTRIES), "rows are"))
    }
}
