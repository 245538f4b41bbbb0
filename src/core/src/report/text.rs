//! Values as texts.

use maud::{Markup, html};

/// Longest name shown, in characters.
const NAME: usize = 80;
/// Longest sentence shown.
const SENTENCE: usize = 1200;

/// Whether a character cannot be seen, or turns the direction of writing.
fn hidden(c: char) -> bool {
    (c.is_control() && c != '\n')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A text of at most so many characters in which nothing is hidden: such characters are shown as �.
fn clean(text: &str, most: usize) -> String {
    let mut out: String = text.chars().take(most).map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        out.push('…');
    }
    out
}

/// A name, of whatever script.
pub fn name(text: &str) -> Markup {
    html! { bdi { (clean(text, NAME)) } }
}

/// A name without markup.
pub fn plain(text: &str) -> String {
    clean(text, NAME)
}

/// A sentence that somebody else wrote.
pub fn sentence(text: &str) -> Markup {
    html! { bdi { (clean(text, SENTENCE)) } }
}

/// A name or nothing.
pub fn name_or_dash(text: Option<&str>) -> Markup {
    text.map_or_else(|| html! { "–" }, name)
}

/// A string constant of SQL, as `quote_literal()` makes it; hidden characters are written as escapes.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.chars().any(hidden) {
        let escaped = |c: char| match c {
            '\\' => "\\\\".to_string(),
            c if hidden(c) => format!("\\+{:06X}", u32::from(c)),
            c => c.to_string(),
        };
        return format!("U&'{}'", quoted.chars().map(escaped).collect::<String>());
    }
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// Digits in groups of three.
fn grouped(digits: &str) -> String {
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A whole number.
pub fn count(value: i64) -> String {
    let digits = grouped(&value.unsigned_abs().to_string());
    if value < 0 { format!("−{digits}") } else { digits }
}

/// A number with about three digits that count.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_string();
    }
    let size = value.abs();
    let sign = if value < 0.0 { "−" } else { "" };
    if size >= 1e15 {
        return format!("{sign}{size:.2e}");
    }
    if size >= 99.95 {
        return format!("{sign}{}", grouped(&format!("{size:.0}")));
    }
    if size > 0.0 && size < 0.001 {
        return format!("{sign}{size:.1e}");
    }
    let decimals = if size >= 9.995 {
        1
    } else if size >= 0.9995 {
        2
    } else {
        3
    };
    let text = format!("{size:.decimals$}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{}{text}", if text == "0" { "" } else { sign })
}

/// A number, or a dash for an unknown one.
pub fn maybe(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_string(), number)
}

/// A share in per cent.
pub fn percent(share: f64) -> String {
    if share.is_finite() {
        format!("{} %", number((share * 1000.0).round() / 10.0))
    } else {
        "–".to_string()
    }
}

/// Bytes with a unit.
pub fn bytes(value: i64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut size, mut unit) = (value.max(0) as f64, 0);
    while size >= 999.5 && unit + 1 < units.len() {
        (size, unit) = (size / 1024.0, unit + 1);
    }
    format!("{} {}", number((size * 100.0).round() / 100.0), units[unit])
}

/// A length of time.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "–".to_string();
    }
    let s = seconds.max(0.0);
    match s {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 9.95 => format!("{} s", number((s * 10.0).round() / 10.0)),
        s if s < 119.5 => format!("{s:.0} s"),
        s if s < 7170.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_000.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", (s / 86400.0).min(1e6)),
    }
}

/// Calendar day of days since 1970 (proleptic Gregorian).
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// Shows times as the reader's clock does.
#[derive(Clone, Copy)]
pub struct Clock {
    /// Added to UTC.
    pub offset_s: i32,
}

impl Clock {
    fn parts(self, at: f64) -> (i64, i64) {
        // Outside of what a calendar can tell: the edge of it.
        let at = at.clamp(-60e9, 250e9).floor() as i64 + i64::from(self.offset_s);
        (at.div_euclid(86_400), at.rem_euclid(86_400))
    }

    /// `2026-11-22 10:15:00`.
    pub fn full(self, at: f64) -> String {
        let (days, second) = self.parts(at);
        let (year, month, day) = civil(days);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
    }

    /// As short as a tick every so many seconds allows.
    pub fn tick(self, at: f64, step_s: f64) -> String {
        let full = self.full(at);
        let short = if step_s < 60.0 {
            full.get(11..)
        } else if step_s < 86_400.0 {
            full.get(11..16)
        } else {
            full.get(5..10)
        };
        short.unwrap_or(&full).to_string()
    }

    /// `UTC+02:00`.
    pub fn zone(self) -> String {
        let minutes = self.offset_s.abs() / 60;
        if minutes == 0 {
            return "UTC".to_string();
        }
        format!("UTC{}{:02}:{:02}", if self.offset_s < 0 { '−' } else { '+' }, minutes / 60, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_people_do() {
        let numbers: Vec<String> = [0.0, 0.0004, 0.5, 1.0, 1.25, 12.34, 99.96, 1234.6, -3.0, f64::NAN]
            .into_iter()
            .map(number)
            .collect();
        assert_eq!(numbers, ["0", "4.0e-4", "0.5", "1", "1.25", "12.3", "100", "1,235", "−3", "–"]);
        assert_eq!((bytes(1023), bytes(1 << 20), bytes(-1)), ("1 kB".into(), "1 MB".into(), "0 B".into()));
        assert_eq!((count(-1234567), percent(0.4567)), ("−1,234,567".into(), "45.7 %".into()));
        let clock = Clock { offset_s: 7200 };
        assert_eq!(clock.full(1_795_348_800.0), "2026-11-22 14:00:00");
        assert_eq!(clock.tick(951_782_400.0, 86_400.0), "02-29");
        assert_eq!(
            (clock.zone(), Clock { offset_s: -12_600 }.zone()),
            ("UTC+02:00".into(), "UTC−03:30".into())
        );
        assert!(clock.full(f64::INFINITY).len() > 10 && clock.full(f64::NAN).len() > 10);
    }

    #[test]
    fn constants_of_sql_cannot_be_left() {
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal("a\\'b"), "E'a\\\\''b'");
        assert_eq!(literal("a\u{202e}'\\"), "U&'a\\+00202E''\\\\'");
        assert_eq!(clean("a\u{202e}b\u{0}c", 3), "a\u{fffd}b…");
    }
}
