//! Hours of the day in which moves may begin, as a person writes them: `22:00-06:00, 12:30-13:00 Europe/Berlin`.

use std::fmt;

/// Minutes of a day.
const DAY: u32 = 24 * 60;
/// How far ahead the next opening is looked for, minutes: clocks are set forward and back.
const LOOK_AHEAD: i64 = 3 * DAY as i64;

/// Parts of every day, by the clock on the wall.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Window {
    /// (First minute of the day, first minute after it); an end before its beginning is the next day's. None: always.
    ranges: Vec<(u32, u32)>,
    /// Name of the time zone; None: the reader's.
    zone: Option<String>,
}

/// Why a text is no window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadWindow(String);

impl fmt::Display for BadWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadWindow {}

impl Window {
    /// Reads a window; an empty text is always open.
    ///
    /// # Errors
    /// [`BadWindow`] names the part that cannot be read. Whether the time zone exists is not looked at.
    pub fn parse(text: &str) -> Result<Self, BadWindow> {
        let mut window = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(window);
        }
        // The zone is what follows the last range.
        let (ranges, zone) = match text.char_indices().rev().find(|(_, c)| c.is_ascii_whitespace()) {
            Some((at, _))
                if !starts_as_time(&text[at + 1..]) && !text[..at].trim_end().ends_with([',', '-']) =>
            {
                (&text[..at], Some(text[at + 1..].to_string()))
            }
            _ => (text, None),
        };
        window.zone = zone;
        for range in ranges.split(',') {
            let range = range.trim();
            let (from, to) = range
                .split_once('-')
                .ok_or_else(|| BadWindow(format!("\"{range}\" is not of the form HH:MM-HH:MM")))?;
            let (from, to) = (minute(from)?, minute(to)?);
            if from == to || from == DAY {
                return Err(BadWindow(format!("\"{range}\" is empty")));
            }
            window.ranges.push((from, to));
        }
        Ok(window)
    }

    /// Whether it is open all the time.
    pub fn is_always(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Name of the time zone; None: the reader's.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Whether it is open in a minute of the day (0 to 1439).
    pub fn contains(&self, minute: u32) -> bool {
        let within = |(from, to): &(u32, u32)| {
            if from < to { (*from..*to).contains(&minute) } else { minute >= *from || minute < *to }
        };
        self.is_always() || self.ranges.iter().any(within)
    }

    /// The first moment from `now_s` on (unix seconds) at which it is open, where `minute_at` tells the minute of the
    /// day at a moment; None: not within three days.
    pub fn next_open(&self, now_s: i64, minute_at: impl Fn(i64) -> u32) -> Option<i64> {
        if self.contains(minute_at(now_s)) {
            return Some(now_s);
        }
        let next_minute = now_s.div_euclid(60).saturating_add(1);
        (0..LOOK_AHEAD).map(|ahead| (next_minute + ahead) * 60).find(|at| self.contains(minute_at(*at)))
    }
}

fn starts_as_time(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit() || c == '-')
}

/// Minutes from midnight; 24:00 is the end of the day.
fn minute(text: &str) -> Result<u32, BadWindow> {
    let text = text.trim();
    let bad = || BadWindow(format!("\"{text}\" is not a time of day (HH:MM)"));
    let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
    let digits = |part: &str, most: usize| {
        let fits = (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if fits { part.parse::<u32>().ok() } else { None }
    };
    let hour = digits(hour, 2).ok_or_else(bad)?;
    let minute = digits(minute, 2).filter(|_| minute.len() == 2).ok_or_else(bad)?;
    let whole = hour * 60 + minute;
    if minute < 60 && whole <= DAY { Ok(whole) } else { Err(bad()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::Window;

    #[test]
    fn a_night_spans_midnight_and_names_its_zone() {
        let window = Window::parse(" 22:00-06:00, 12:30 - 13:00 Europe/Berlin ").unwrap();
        assert_eq!(window.zone(), Some("Europe/Berlin"));
        for (minute, open) in [(0, true), (359, true), (360, false), (750, true), (780, false), (1320, true)]
        {
            assert_eq!(window.contains(minute), open, "{minute}");
        }
        assert_eq!(Window::parse("8:00-24:00").unwrap().zone(), None);
        assert!(Window::parse("").unwrap().contains(77) && Window::parse("").unwrap().is_always());
        assert!(Window::parse("22:00 - 06:00").unwrap().zone().is_none());
    }

    #[test]
    fn what_is_no_window_is_named() {
        for bad in [
            "22-06",
            "22:00",
            "25:00-06:00",
            "22:60-06:00",
            "1:2-3:4",
            "06:00-06:00",
            "24:00-01:00",
            "22:00-06:00,",
            "night",
            "22:00-06:00; 1",
            "-1:00-02:00",
            "+1:00-02:00",
        ] {
            assert!(Window::parse(bad).is_err(), "{bad}");
        }
        assert!(Window::parse("25:00-06:00").unwrap_err().to_string().contains("25:00"));
    }

    #[test]
    fn the_next_opening_is_found() {
        let window = Window::parse("22:00-06:00").unwrap();
        let utc = |at: i64| (at.rem_euclid(86_400) / 60) as u32;
        assert_eq!(window.next_open(12 * 3_600 + 17, utc), Some(22 * 3_600));
        assert_eq!(window.next_open(23 * 3_600 + 17, utc), Some(23 * 3_600 + 17));
        assert_eq!(window.next_open(0, |_| 700), None);
    }
}
