//! Series from `timestamp,value` files.

use flate2::read::GzDecoder;
use foreshard_core::forecast::Series;
use foreshard_test::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use time::PrimitiveDateTime;
use time::macros::format_description;

/// The most buckets of a series; more is a wrong step or a wrong year.
const MAX_BUCKETS: i64 = 200_000;

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

/// One file as buckets of `step_s`: the mean of the values in each, unknown where there are none.
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
    for (number, record) in reader.records().enumerate() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let fields =
            (record.get(0).and_then(seconds), record.get(1).and_then(|v| v.trim().parse::<f64>().ok()));
        let (Some(at_s), Some(value)) = fields else {
            if number == 0 {
                continue; // the names of the columns
            }
            return Err(wrong(format!("line {} is not readable", number + 1)));
        };
        let bucket = buckets.entry(at_s.div_euclid(i64::from(step_s))).or_default();
        *bucket = (bucket.0 + value, bucket.1 + 1);
    }
    let (Some((first, _)), Some((last, _))) = (buckets.first_key_value(), buckets.last_key_value()) else {
        return Err(wrong("no values".to_string()));
    };
    let (first, count) = (*first, last - first + 1);
    if count > MAX_BUCKETS {
        return Err(wrong(format!("{count} buckets of {step_s} s are too many")));
    }
    let value = |bucket: i64| buckets.get(&bucket).map(|(sum, number)| sum / f64::from(*number));
    Ok(Series {
        start_s: first * i64::from(step_s),
        step_s,
        values: (first..first + count).map(value).collect(),
        events: Vec::new(),
        regressors: Vec::new(),
    })
}

/// Seconds since 1970: a number, or a date and time.
fn seconds(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        return (number.abs() < 1e12).then_some(number as i64);
    }
    // Without fractions of a second, time zones and the T.
    let text = text.get(..19)?.replace('T', " ");
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    Some(PrimitiveDateTime::parse(&text, &format).ok()?.assume_utc().unix_timestamp())
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
