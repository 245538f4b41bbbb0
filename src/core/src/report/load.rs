//! Figures of load: shards before and after, load curves, the heat map.

use super::text::{Clock, bytes, count, duration, maybe, name, number, percent, plain};
use super::{Curve, HeatRow, MAX_BUCKETS, MAX_LEADS, MAX_SHARDS, MAX_SLOTS, Report, Shard, plot};
use maud::{Markup, html};

/// Greatest load that is forecast and not yet there, of the shard that gets there first.
pub fn first_overload(report: &Report) -> Option<(&str, f64)> {
    let when = |curve: &Curve| {
        curve.ahead.iter().find(|a| a.load.is_some_and(|load| load >= curve.capacity)).map(|a| a.at)
    };
    let found = report.curves.iter().filter_map(|curve| Some((curve.shard.as_str(), when(curve)?)));
    found.min_by(|a, b| a.1.total_cmp(&b.1))
}

fn peak(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    values.flatten().fold(None, |most, value| Some(most.map_or(value, |most: f64| most.max(value))))
}

/// Labels and loads of one shard.
type Three = [(&'static str, Option<f64>); 3];

/// Of one shard: load now, forecast peak if nothing moves, forecast peak once everything recommended is done.
fn three(report: &Report, shard: &Shard) -> Three {
    let curve = report.curves.iter().find(|curve| curve.shard == shard.name);
    let ahead = curve.map_or(&[][..], |curve| &curve.ahead);
    [
        ("now", shard.load),
        ("peak ahead", peak(ahead.iter().map(|a| a.load))),
        ("with steps", peak(ahead.iter().map(|a| a.planned))),
    ]
}

/// Loads of all shards, before and after.
pub fn shards(report: &Report) -> Markup {
    let shown = report.shards.shown(MAX_SHARDS);
    if shown.is_empty() {
        return html! { p.lead { "There is no shard yet: " code { "SELECT foreshard.add_shard('name');" } } };
    }
    let all: Vec<(&Shard, Three)> = shown.iter().map(|s| (s, three(report, s))).collect();
    let used = |(shard, loads): &(&Shard, Three)| {
        peak(loads.iter().map(|l| l.1)).map_or(0.0, |load| load / shard.capacity)
    };
    // The line of full capacity is worth its room only if somebody comes near.
    let most = plot::nice(all.iter().map(used).fold(0.0, f64::max).max(1e-6));
    let rows: Vec<Vec<Markup>> = all
        .iter()
        .map(|(shard, loads)| {
            let mut row = vec![
                name(&shard.name),
                name(&shard.node),
                plot::cell(count(shard.slots)),
                plot::cell(bytes(shard.bytes)),
            ];
            row.extend(loads.iter().map(|(_, load)| plot::cell(maybe(*load))));
            row.push(plot::cell(number(shard.capacity)));
            row.push(plot::cell(if shard.draining { "draining" } else { "" }));
            row
        })
        .collect();
    html! {
        p.lead {
            "Share of its capacity that every shard uses: now, at the forecast peak if nothing moves, and at that peak once every "
            "recommended step is done. Full width is " (percent(most)) "."
        }
        figure role="img" aria-label="Load of every shard now, ahead, and with the recommended steps" {
            div.shards {
                @for (shard, loads) in &all {
                    div.shard {
                        p.who { b { (name(&shard.name)) } span { (count(shard.slots)) " slots, " (bytes(shard.bytes)) @if shard.draining { ", draining" } } }
                        div.bars.three {
                            @for (n, (label, load)) in loads.iter().enumerate() {
                                div.label { (label) }
                                svg.bar viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                                    @if let Some(load) = load {
                                        rect class=(["now", "ahead", "after"][n]) x="0" y="1" height="8"
                                            width=(format!("{:.2}", plot::place(load / shard.capacity, 0.0, most).max(0.3))) {}
                                    }
                                    @if most >= 1.0 { path.limit d=(format!("M{:.2} 0V10", plot::place(1.0, 0.0, most))) {} }
                                }
                                div.value { (load.map_or_else(|| "–".to_string(), |load| percent(load / shard.capacity))) }
                            }
                        }
                    }
                }
            }
        }
        (plot::table("Shards", &["shard", "node", "slots", "size", "load now", "peak ahead", "peak, steps done", "capacity", ""], &rows))
        (plot::left_out(report.shards.left_out(MAX_SHARDS), "shards are"))
    }
}

/// Time and load that all curves share.
struct Frame {
    from: f64,
    to: f64,
    most: f64,
}

fn frame(curves: &[Curve]) -> Option<Frame> {
    let times =
        || curves.iter().flat_map(|c| c.measured.iter().map(|m| m.0).chain(c.ahead.iter().map(|a| a.at)));
    let from = times().fold(f64::INFINITY, f64::min);
    let to = times().fold(f64::NEG_INFINITY, f64::max);
    let measured = curves.iter().flat_map(|c| c.measured.iter().map(|m| m.1));
    let ahead = curves.iter().flat_map(|c| c.ahead.iter().flat_map(|a| [a.load, a.planned]));
    let load = peak(measured.chain(ahead))?;
    // A band may be very wide; the lines must stay legible.
    let band =
        peak(curves.iter().flat_map(|c| c.ahead.iter().map(|a| a.upper))).unwrap_or(0.0).min(2.0 * load);
    let limit = curves.iter().map(|c| c.capacity).fold(f64::INFINITY, f64::min);
    let most = load.max(band);
    let most = if limit <= 2.0 * most { most.max(limit) } else { most };
    (to > from).then(|| Frame { from, to, most: plot::nice(most * 1.02) })
}

fn legend() -> Markup {
    let item = |class: &str, text: &str| {
        html! {
            span { svg.key viewBox="0 0 30 10" aria-hidden="true" { path class=(class) d="M0 5H30" {} } (text) }
        }
    };
    html! {
        p.legend {
            (item("measured", "measured")) (item("forecast", "forecast")) (item("planned", "with the recommended steps"))
            (item("limit", "capacity"))
            span { svg.key viewBox="0 0 30 10" aria-hidden="true" { rect.band width="30" height="10" {} } "interval" }
        }
    }
}

fn curve(curve: &Curve, frame: &Frame, now: f64, clock: Clock) -> Markup {
    let x = |at: f64| plot::place(at, frame.from, frame.to);
    let y = |load: Option<f64>| load.map(|load| plot::place(load, 0.0, frame.most));
    let measured: Vec<_> = curve.measured.iter().map(|(at, load)| (x(*at), y(*load))).collect();
    // A shard may have points in one of them only.
    let forecast: Vec<_> =
        curve.ahead.iter().filter(|a| a.load.is_some()).map(|a| (x(a.at), y(a.load))).collect();
    let planned: Vec<_> =
        curve.ahead.iter().filter(|a| a.planned.is_some()).map(|a| (x(a.at), y(a.planned))).collect();
    let bounds: Vec<_> = curve.ahead.iter().map(|a| (x(a.at), y(a.lower), y(a.upper))).collect();
    let far = curve.capacity > frame.most;
    html! {
        figure.curve role="img" aria-label=(format!("Load of shard {}", plain(&curve.shard))) {
            figcaption { b { (name(&curve.shard)) } span { "capacity " (number(curve.capacity)) @if far { ", above the scale" } } }
            div.plot {
                (plot::value_axis(frame.most))
                svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true" {
                    path.grid d="M0 0H100M0 50H100M0 100H100" {}
                    (plot::band(&bounds))
                    path.now d=(format!("M{0:.2} 0V100", x(now))) {}
                    @if !far { path.limit d=(format!("M0 {0:.2}H100", 100.0 - plot::place(curve.capacity, 0.0, frame.most))) {} }
                    (plot::line("planned", &planned))
                    (plot::line("forecast", &forecast))
                    (plot::line("measured", &measured))
                }
                (plot::time_axis(clock, frame.from, frame.to, 4))
            }
        }
    }
}

fn curve_table(curve: &Curve, clock: Clock) -> Markup {
    let mut rows: Vec<Vec<Markup>> = Vec::new();
    let before = curve.measured.iter().map(|(at, load)| [Some(*at), *load, None, None, None, None]);
    let ahead = curve.ahead.iter().map(|a| [Some(a.at), None, a.load, a.lower, a.upper, a.planned]);
    for [at, values @ ..] in before.chain(ahead) {
        let mut row = vec![plot::cell(clock.full(at.unwrap_or(0.0)))];
        row.extend(values.into_iter().map(|value| plot::cell(maybe(value))));
        rows.push(row);
    }
    let title = format!("Shard {}", plain(&curve.shard));
    plot::table(&title, &["time", "measured", "forecast", "lower", "upper", "steps done"], &rows)
}

/// Loads of shards over time.
pub fn curves(report: &Report, clock: Clock) -> Markup {
    let bounded: Vec<Curve> = report
        .curves
        .iter()
        .take(MAX_SHARDS)
        .map(|curve| Curve {
            measured: curve.measured[curve.measured.len().saturating_sub(MAX_BUCKETS)..].to_vec(),
            ahead: curve.ahead.iter().take(MAX_LEADS).cloned().collect(),
            ..curve.clone()
        })
        .collect();
    let Some(frame) = frame(&bounded) else {
        return html! { p.lead { "Nothing was measured or forecast yet." } };
    };
    html! {
        p.lead {
            "Cost units per second, all shards on one scale. Measured is the load of the slots that the shard has now. The interval "
            "adds up the slots' own intervals, so it is wider than that of the sum."
        }
        (legend())
        div.curves { @for one in &bounded { (curve(one, &frame, report.made_at, clock)) } }
        div.tables { @for one in &bounded { (curve_table(one, clock)) } }
        (plot::left_out(report.curves.len().saturating_sub(MAX_SHARDS), "shards are"))
    }
}

fn heat_cells(rows: &[HeatRow], first: usize, columns: usize, most: f64, labels: &[String]) -> Markup {
    html! {
        svg.cells viewBox=(format!("0 0 {columns} {}", rows.len())) preserveAspectRatio="none" aria-hidden="true"
            style=(format!("height:{}px", rows.len() * 16)) {
            @for (y, row) in rows.iter().enumerate() {
                @for (x, cell) in row.cells.iter().skip(first).take(columns).enumerate() {
                    @if let Some(load) = cell {
                        rect class=(format!("q{}", plot::shade(*load, most))) x=(x) y=(y) width="1" height="1" {
                            title { "slot " (row.slot_id) ", " (labels.get(x).map_or("", String::as_str)) ": " (number(*load)) }
                        }
                    }
                }
            }
        }
    }
}

/// Loads of slots over time.
pub fn heat_map(report: &Report, clock: Clock) -> Markup {
    let heat = &report.heat;
    let rows = heat.slots.shown(MAX_SLOTS);
    let first = heat.starts.len().saturating_sub(MAX_BUCKETS);
    let starts = &heat.starts[first..];
    let (Some(from), Some(last)) = (starts.first(), starts.last()) else {
        return html! { p.lead { "No load was observed yet." } };
    };
    let most = peak(rows.iter().flat_map(|row| row.cells.iter().skip(first).copied())).unwrap_or(0.0);
    let labels: Vec<String> = starts.iter().map(|at| clock.tick(*at, 1.0)).collect();
    let mut head = vec!["slot", "shard", "now"];
    head.extend(labels.iter().map(String::as_str));
    let table: Vec<Vec<Markup>> = rows
        .iter()
        .map(|row| {
            let mut cells =
                vec![plot::cell(row.slot_id.to_string()), name(&row.shard), plot::cell(maybe(row.load))];
            cells.extend(row.cells.iter().skip(first).map(|load| plot::cell(maybe(*load))));
            cells
        })
        .collect();
    html! {
        p.lead {
            "Cost units per second of the hottest slots in buckets of " (duration(f64::from(heat.step_s)))
            ", darker (in dark mode brighter) is hotter; blank is unknown. At the right the load now."
        }
        p.legend.ramp {
            @for (n, value) in plot::shade_values(most).into_iter().enumerate() {
                span { svg.key viewBox="0 0 10 10" aria-hidden="true" { rect class=(format!("q{n}")) width="10" height="10" {} } (number(value)) }
            }
        }
        figure.heat role="img" aria-label="Heat map of slots over time" {
            div.names { @for row in rows { span { b { (row.slot_id) } " " (name(&row.shard)) } } }
            (heat_cells(rows, first, starts.len(), most, &labels))
            div.loads { @for row in rows { span { (maybe(row.load)) } } }
            (plot::time_axis(clock, *from, last + f64::from(heat.step_s), 6))
        }
        (plot::table("Heat map", &head, &table))
        (plot::left_out(heat.slots.left_out(MAX_SLOTS), "slots, less hot, are"))
    }
}
