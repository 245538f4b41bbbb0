//! Series from `timestamp,value` files.

use flate2::read::GzDecoder;
use foreshard_core::forecast::Series;
use foreshard_test::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use time::macros::format_description;
use time::{Date, PrimitiveDateTime, UtcOffset};

/// The most buckets of a series; more is a wrong step or a wrong year.
const MAX_BUCKETS: i64 = 200_000;
/// Share of the lines whose time must be readable; with fewer the file is something else.
const READABLE: f64 = 0.5;
/// From this number on a time is no count of seconds: milliseconds, then microseconds, then nanoseconds since 1970.
const BEYOND_SECONDS: f64 = 1e11;

/// CSV files of a folder, by name.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| {
        Error::new(
            format!("The folder {} cannot be read: {error}.", folder.display()),
            "Name one that holds timestamp,value files, .csv or .csv.gz: make bench-forecast DATA=folder",
        )
    })?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.to_string_lossy().into_owned();
        if name.ends_with(".csv") || name.ends_with(".csv.gz") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::new(format!("{} holds no .csv or .csv.gz file.", folder.display()), ""));
    }
    Ok(files)
}

/// The series of a folder or a file. What is none is skipped, and said by its name and the reason; of a folder one at least
/// must be one.
pub fn all(data: &Path, step_s: u32) -> Result<Vec<(PathBuf, Series)>> {
    let paths = if data.is_dir() { files(data)? } else { vec![data.to_path_buf()] };
    let mut read = Vec::with_capacity(paths.len());
    for path in paths {
        match series(&path, step_s) {
            Ok(series) => read.push((path, series)),
            Err(why) => println!("skipped: {why}"),
        }
    }
    if read.is_empty() {
        let hint = "A line is timestamp,value: 2024-01-31 12:00:00, 2024-01-31T12:00Z, 2024-01-31 or seconds since 1970.";
        return Err(Error::new(format!("{} holds no series that can be read.", data.display()), hint));
    }
    Ok(read)
}

/// One file as buckets of `step_s`: the mean of the values in each, unknown where there are none. A value that is no finite
/// number of at least 0 is a gap.
pub fn series(path: &Path, step_s: u32) -> Result<Series> {
    let wrong =
        |what: String| Error::new(format!("{}: {what}", path.display()), "A line is timestamp,value.");
    let file = File::open(path)?;
    let input: Box<dyn Read> = if path.extension().is_some_and(|e| e == "gz") {
        Box::new(GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(input);
    let mut buckets: BTreeMap<i64, (f64, u32)> = BTreeMap::new();
    let (mut lines, mut untimed, mut known) = (0_u64, 0_u64, 0_u64);
    for (number, record) in reader.records().enumerate() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let at_s = record.get(0).and_then(seconds);
        if number == 0 && at_s.is_none() {
            continue; // the names of the columns
        }
        lines += 1;
        let Some(at_s) = at_s else {
            untimed += 1;
            continue;
        };
        let bucket = buckets.entry(at_s.div_euclid(i64::from(step_s))).or_default();
        if let Some(value) = record.get(1).and_then(load) {
            *bucket = (bucket.0 + value, bucket.1 + 1);
            known += 1;
        }
    }
    if (lines - untimed) as f64 <= lines as f64 * READABLE {
        return Err(wrong(format!("{untimed} of {lines} lines begin with no time")));
    }
    if known == 0 {
        return Err(wrong(format!("none of {lines} lines has a number of at least 0 behind its time")));
    }
    let (Some((first, _)), Some((last, _))) = (buckets.first_key_value(), buckets.last_key_value()) else {
        return Err(wrong("no values".to_string()));
    };
    let (first, count) = (*first, last - first + 1);
    if count > MAX_BUCKETS {
        return Err(wrong(format!("{count} buckets of {step_s} s are too many")));
    }
    if untimed > 0 {
        println!("{}: {untimed} of {lines} lines begin with no time and were left out", path.display());
    }
    let mean = |(sum, number): &(f64, u32)| (*number > 0).then(|| sum / f64::from(*number));
    Ok(Series {
        start_s: first * i64::from(step_s),
        step_s,
        values: (first..first + count).map(|bucket| buckets.get(&bucket).and_then(mean)).collect(),
        events: Vec::new(),
        regressors: Vec::new(),
    })
}

/// A load; None: unknown.
fn load(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)
}

/// Seconds since 1970: a number (of milliseconds, microseconds or nanoseconds, if it is too large for seconds), or a date,
/// perhaps with a time of the day, perhaps with a zone.
fn seconds(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(mut number) = text.parse::<f64>() {
        while number.is_finite() && number.abs() >= BEYOND_SECONDS {
            number /= 1e3;
        }
        return number.is_finite().then_some(number.floor() as i64);
    }
    let (text, offset) = without_zone(text)?;
    let text = text.trim().replace(['T', 't'], " ").replace('/', "-");
    let dates = format_description!("[year]-[month]-[day]");
    let at = match text.split_once(' ') {
        None => Date::parse(&text, &dates).ok()?.midnight(),
        Some((date, time)) => {
            // Without fractions of a second.
            let time = time.trim().split(['.', ',']).next()?;
            let time = if time.matches(':').count() == 1 { format!("{time}:00") } else { time.to_string() };
            let format = format_description!("[year]-[month]-[day] [hour padding:none]:[minute]:[second]");
            PrimitiveDateTime::parse(&format!("{date} {time}"), &format).ok()?
        }
    };
    Some(at.assume_offset(offset).unix_timestamp())
}

/// A time without its zone, and that.
fn without_zone(text: &str) -> Option<(&str, UtcOffset)> {
    let utc = ["Z", "z", " UTC", " utc", " GMT"].iter().find_map(|name| text.strip_suffix(name));
    if let Some(text) = utc {
        return Some((text, UtcOffset::UTC));
    }
    // A sign behind the time of the day; those of a date are before it.
    let Some(sign) = text.rfind(['+', '-']).filter(|at| text[..*at].contains(':')) else {
        return Some((text, UtcOffset::UTC));
    };
    let digits: String = text[sign + 1..].chars().filter(char::is_ascii_digit).collect();
    let hours: i8 = digits.get(..2)?.parse().ok()?;
    let minutes: i8 = if digits.len() > 2 { digits.get(2..4)?.parse().ok()? } else { 0 };
    let turn = if text[sign..].starts_with('-') { -1 } else { 1 };
    Some((&text[..sign], UtcOffset::from_hms(turn * hours, turn * minutes, 0).ok()?))
}

/// A length like 1h, 5m, 30s, 1d in seconds.
pub fn length_s(text: &str) -> Option<u32> {
    let unit = text.chars().last()?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return text.parse().ok().filter(|s| *s > 0),
    };
    let number: u32 = text[..text.len() - unit.len_utf8()].parse().ok()?;
    number.checked_mul(factor).filter(|s| *s > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let noon = seconds("2024-01-31 12:00:00");
        assert_eq!(noon, Some(1_706_702_400));
        for text in [
            "2024-01-31T12:00:00Z",
            "2024-01-31T12:00",
            "2024-01-31 12:00",
            "2024/01/31 12:00:00.123",
            " 2024-01-31 13:30:00+01:30 ",
            "2024-01-31T07:00:00.5-0500",
            "2024-01-31 12:00 UTC",
            "1706702400",
            "1706702400.7",
            "1706702400000",
            "1706702400000000",
            "1706702400000000000",
        ] {
            assert_eq!(seconds(text), noon, "{text}");
        }
        assert_eq!(seconds("2024-01-31"), Some(1_706_659_200));
        assert_eq!(seconds("2024-01-31 1:00"), Some(1_706_662_800));
        for text in ["", "nan", "inf", "timestamp", "2024-13-01", "2024-01-31 25:00", "12:00", "-", "+:1-é"]
        {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_load_is_a_gap_and_what_is_no_series_is_skipped() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("foreshard-read-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text);
        write(
            "a.csv",
            "at,v\n2024-01-31 00:00,1\n2024-01-31 01:00,\n2024-01-31 02:00,nan\n2024-01-31 03:00,-4\n2024-01-31 04:00,inf\n2024-01-31 05:00,x\n?,7\n2024-01-31 06:00,3\n",
        )?;
        write("b.csv", "name,colour\napple,red\npear,green\n")?;
        write("c.csv", "")?;
        write("d.csv", "2024-01-31,none\n2024-02-01,\n")?;
        write("e.csv", "0,1\n1706702400,2\n")?;
        let read = all(&folder, 60)?;
        let hours = series(&folder.join("a.csv"), 3_600)?;
        std::fs::remove_dir_all(&folder)?;
        assert_eq!(hours.values, [Some(1.0), None, None, None, None, None, Some(3.0)]);
        let names: Vec<_> = read.iter().filter_map(|(path, _)| path.file_name()).collect();
        assert_eq!(names, ["a.csv"]);
        Ok(())
    }

    #[test]
    fn a_folder_without_any_series_is_an_error() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("foreshard-none-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("b.csv"), "name,colour\napple,red\n")?;
        let read = all(&folder, 60);
        std::fs::remove_dir_all(&folder)?;
        assert!(read.is_err_and(|error| error.to_string().contains("no series")));
        Ok(())
    }
}
