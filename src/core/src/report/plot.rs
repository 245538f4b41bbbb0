//! What figures are made of. An SVG is stretched to the width there is (`preserveAspectRatio="none"`), so it holds shapes
//! only; every text is HTML beside it.

use super::text::{Clock, number};
use maud::{Markup, html};

/// Shades of the sequential ramp.
const SHADES: usize = 9;
/// Distances between ticks of a time axis, seconds.
const STEPS: [f64; 17] = [
    1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 10_800.0, 21_600.0, 43_200.0,
    86_400.0, 172_800.0, 604_800.0,
];

/// Shade of a value between 0 and the greatest one.
pub fn shade(value: f64, most: f64) -> usize {
    if most <= 0.0 || !value.is_finite() {
        return 0;
    }
    // The square root shows differences among the many small ones.
    ((value / most).clamp(0.0, 1.0).sqrt() * (SHADES - 1) as f64).round() as usize
}

/// The least value of each shade, for the legend.
pub fn shade_values(most: f64) -> Vec<f64> {
    (0..SHADES).map(|n| most * (n as f64 / (SHADES - 1) as f64).powi(2)).collect()
}

/// A round number at or above one.
pub fn nice(value: f64) -> f64 {
    if !(value.is_finite() && value > 0.0) {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let lead = value / power;
    let round = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    round.into_iter().find(|r| *r >= lead - 1e-9).unwrap_or(10.0) * power
}

/// Where a value is in a range, in per cent.
pub fn place(value: f64, from: f64, to: f64) -> f64 {
    if to > from { ((value - from) / (to - from) * 100.0).clamp(0.0, 100.0) } else { 0.0 }
}

/// Ticks of a time axis of at most so many, with their places in per cent.
pub fn time_axis(clock: Clock, from: f64, to: f64, most: usize) -> Markup {
    let span = (to - from).max(1.0);
    let step = STEPS.into_iter().find(|step| span / step <= most as f64).unwrap_or(span / most.max(1) as f64);
    let offset = f64::from(clock.offset_s);
    let first = ((from + offset) / step).ceil() * step - offset;
    let ticks = (0..=most).map(|n| first + n as f64 * step).filter(|at| *at <= to);
    html! {
        div.xaxis aria-hidden="true" {
            @for at in ticks {
                @let left = place(at, from, to);
                span style=(format!("left:{left:.2}%")) .end[left > 90.0] .begin[left < 6.0] { (clock.tick(at, step)) }
            }
        }
    }
}

/// Labels of a value axis from 0, from the top.
pub fn value_axis(most: f64) -> Markup {
    html! {
        div.yaxis aria-hidden="true" {
            @for n in (0..=2).rev() { span { (number(most * f64::from(n) / 2.0)) } }
        }
    }
}

/// A line through points in per cent (from the bottom left), broken where a value is unknown.
pub fn line(class: &str, points: &[(f64, Option<f64>)]) -> Markup {
    let mut path = String::new();
    let mut pen_down = false;
    for (x, y) in points {
        match y {
            Some(y) => {
                path.push_str(&format!("{}{x:.2} {:.2}", if pen_down { 'L' } else { 'M' }, 100.0 - y));
                pen_down = true;
            }
            None => pen_down = false,
        }
    }
    html! { @if !path.is_empty() { path class=(class) d=(path) {} } }
}

/// An area between two lines of the same points; what is unknown on either side is left out.
pub fn band(points: &[(f64, Option<f64>, Option<f64>)]) -> Markup {
    let known: Vec<(f64, f64, f64)> =
        points.iter().filter_map(|(x, low, high)| Some((*x, (*low)?, (*high)?))).collect();
    if known.len() < 2 {
        return html! {};
    }
    let mut path = String::from("M");
    known.iter().for_each(|(x, _, high)| path.push_str(&format!("{x:.2} {:.2} ", 100.0 - high)));
    known.iter().rev().for_each(|(x, low, _)| path.push_str(&format!("{x:.2} {:.2} ", 100.0 - low)));
    path.push('Z');
    html! { path.band d=(path) {} }
}

/// A bar of a list: name, bar, value.
pub struct Bar {
    /// Left of it.
    pub label: Markup,
    /// Its value.
    pub value: f64,
    /// From where to where the true value may be.
    pub whisker: Option<(f64, f64)>,
    /// Right of it.
    pub text: String,
    /// Its class.
    pub class: &'static str,
}

/// Horizontal bars on one scale.
pub fn bars(label: &str, bars: &[Bar]) -> Markup {
    let reach = |bar: &Bar| bar.whisker.map_or(bar.value, |w| w.1.max(bar.value));
    let most = bars.iter().map(reach).filter(|v| v.is_finite()).fold(0.0, f64::max);
    html! {
        figure role="img" aria-label=(label) {
            div.bars {
                @for bar in bars {
                    div.label { (bar.label) }
                    svg.bar viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true" {
                        rect class=(bar.class) x="0" y="0.5" height="9" width=(format!("{:.2}", place(bar.value, 0.0, most).max(0.3))) {}
                        @if let Some((low, high)) = bar.whisker {
                            path.whisker d=(format!("M{0:.2} 2V8M{0:.2} 5H{1:.2}M{1:.2} 2V8", place(low, 0.0, most), place(high, 0.0, most))) {}
                        }
                    }
                    div.value { (bar.text) }
                }
            }
        }
    }
}

/// A table behind a figure.
pub fn table(title: &str, head: &[&str], rows: &[Vec<Markup>]) -> Markup {
    html! {
        details {
            summary { (title) " (" (rows.len()) @if rows.len() == 1 { " row)" } @else { " rows)" } }
            div.scroll {
                table {
                    thead { tr { @for cell in head { th scope="col" { (cell) } } } }
                    tbody { @for row in rows { tr { @for cell in row { td { (cell) } } } } }
                }
            }
        }
    }
}

/// A cell of a table.
pub fn cell(text: impl AsRef<str>) -> Markup {
    html! { (text.as_ref()) }
}

/// How many entries are not shown.
pub fn left_out(count: usize, what: &str) -> Markup {
    html! { @if count > 0 { p.left { (count) " more " (what) " not shown." } } }
}
