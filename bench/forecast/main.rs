//! How well loads are forecast: every series of a folder, against what everybody else would do.
//!
//! `foreshard-bench-forecast DATA [--step 1h] [--season 1d] [--refit N] [--models all] [--cost 1024] [--gate RATIO]`
//!
//! Of every series the last part is held out: 672 buckets of 4,000 and more, 336 of 1,300, 168 of 600, else
//! 120. Models are fitted once on the rest (or again every N buckets with `--refit`); then, every 7 buckets,
//! they are told what came and forecast the next 24. Errors are absolute, summed per lead, and shown relative
//! to those of the seasonal naive forecast (the same time of the day before): the ratio of two MASE. Totals
//! are geometric means over series. Bars: with at least 4 weeks of history 0.45, 0.61 and 0.65 at leads 1, 12
//! and 24; with less 0.85 over leads 1 to 24; of either group intervals of 90 % cover 85 to 95 %. Files that are no series
//! are skipped, and values that are no loads are gaps (`read.rs`). Then so many slots (`--cost`, 0: none) with four weeks of
//! hours, cut out of the series, are fitted and forecast on one core: bars of 10 s and 0.5 s for 1,024. Exit code 1 when a bar is missed; with `--gate` instead, when
//! the total of all series over leads 1 to 24 exceeds a ratio, or intervals of 90 % cover less than 85 % or more
//! than 96 % of everything: what the tests ask.

mod cost;
mod read;

use foreshard_core::forecast::{ForecastOptions, ForecastPoint, Forecaster, Series, fit};
use foreshard_test::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

const LEADS: usize = 24;
/// Buckets between two forecasts.
const STRIDE: usize = 7;
/// Leads of the table.
const SHOWN: [usize; 3] = [1, 12, 24];
/// Bars at those leads with at least four weeks of history.
const BARS: [f64; 3] = [0.45, 0.61, 0.65];
/// Bar over all leads with less.
const BAR_SHORT: f64 = 0.85;
/// Bars of the covered share of intervals of 90 %.
const COVERED: std::ops::RangeInclusive<f64> = 0.85..=0.95;
/// The field's best: the median of these, the first of each that has history enough.
const THREE: [&[&str]; 3] = [&["ridge_week", "ridge_day", "ridge"], &["spar"], &["kernel"]];
const MEDIAN: &str = "median of three";
/// What the forecasts stand against; all are also among the candidates.
const OTHERS: [&str; 6] = ["naive", "same_time_last_week", "holt_winters", "spar", "ridge_week", "kernel"];

/// What the command line asked for.
struct Options {
    folder: PathBuf,
    step_s: u32,
    season_s: u32,
    refit: Option<usize>,
    all: bool,
    gate: Option<f64>,
    /// Slots whose fits are timed.
    cost: usize,
}

impl Options {
    fn parse() -> Result<Options> {
        let usage =
            "Use DATA [--step 1h] [--season 1d] [--refit N] [--models all] [--cost SLOTS] [--gate RATIO].";
        let mut arguments = std::env::args().skip(1);
        let folder = arguments.next().ok_or_else(|| Error::new("No folder is named.", usage))?;
        let mut options = Options {
            folder: folder.into(),
            step_s: 3_600,
            season_s: 86_400,
            refit: None,
            all: false,
            gate: None,
            cost: 1_024,
        };
        while let Some(name) = arguments.next() {
            let value = arguments.next().unwrap_or_default();
            match (name.as_str(), read::length_s(&value), value.parse::<usize>().ok().filter(|n| *n > 0)) {
                ("--step", Some(step_s), _) => options.step_s = step_s,
                ("--season", Some(season_s), _) => options.season_s = season_s,
                ("--refit", _, Some(buckets)) => options.refit = Some(buckets),
                ("--cost", _, _) if value.parse::<usize>().is_ok_and(|slots| slots <= 65_536) => {
                    options.cost = value.parse().unwrap_or(0);
                }
                ("--models", _, _) if value == "all" => options.all = true,
                ("--gate", _, _) if value.parse::<f64>().is_ok_and(f64::is_finite) => {
                    options.gate = value.parse().ok();
                }
                _ => return Err(Error::new(format!("{name} {value} is not understood."), usage)),
            }
        }
        Ok(options)
    }

    /// The models that the forecasts stand against.
    fn others(&self) -> Vec<&'static str> {
        match (self.gate, self.all) {
            (Some(_), _) => Vec::new(),
            (None, true) => [&foreshard_core::forecast::MODELS[..], &[MEDIAN]].concat(),
            (None, false) => [&OTHERS[..], &[MEDIAN]].concat(),
        }
    }
}

/// What one model did on one series.
#[derive(Clone, Default)]
struct Outcome {
    name: String,
    errors: Vec<f64>,
    covered: u32,
    asked: u32,
    fit_ms: f64,
    forecast_us: f64,
}

impl Outcome {
    /// Relative to another one's, over some leads (from 1).
    fn ratio(&self, other: &Outcome, leads: std::ops::RangeInclusive<usize>) -> f64 {
        let sum = |outcome: &Outcome| leads.clone().map(|lead| outcome.errors[lead - 1]).sum::<f64>();
        // Both without an error are equally good.
        if sum(self).max(sum(other)) < 1e-9 { 1.0 } else { (sum(self) / sum(other)).min(1e3) }
    }

    fn coverage(&self) -> f64 {
        f64::from(self.covered) / f64::from(self.asked.max(1))
    }
}

/// Buckets that are held out.
fn held_out(length: usize) -> usize {
    match length {
        4_000.. => 672,
        1_300.. => 336,
        600.. => 168,
        _ => 120,
    }
}

/// The first of some models that has history enough; without any name whatever the forecasts choose.
fn fit_first(series: &Series, options: &Options, names: &[&str]) -> Option<Box<dyn Forecaster>> {
    let settings = |models: Vec<String>| ForecastOptions {
        season_s: options.season_s,
        models,
        ..ForecastOptions::default()
    };
    if names.is_empty() {
        return fit(series, &settings(Vec::new())).ok();
    }
    names.iter().find_map(|name| fit(series, &settings(vec![name.to_string()])).ok())
}

/// The median of the three, or what one says.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Runs one model over the held-out part, or the median of some; None when one of them has too little history.
fn run(series: &Series, options: &Options, all: &[&[&str]]) -> Option<Outcome> {
    let first = series.values.len() - held_out(series.values.len());
    let begun = Instant::now();
    let until = |end: usize| Series { values: series.values[..end].to_vec(), ..series.clone() };
    let fit_all = |end: usize| -> Option<Vec<Box<dyn Forecaster>>> {
        all.iter().map(|names| fit_first(&until(end), options, names)).collect()
    };
    let mut models = fit_all(first)?;
    let mut outcome = Outcome {
        name: models.first()?.name(),
        errors: vec![0.0; LEADS],
        fit_ms: begun.elapsed().as_secs_f64() * 1e3,
        ..Outcome::default()
    };
    let (mut told, mut fitted, mut spent_us, mut times) = (first, first, 0.0, 0_u32);
    for origin in (first..series.values.len()).step_by(STRIDE) {
        if options.refit.is_some_and(|buckets| origin - fitted >= buckets) {
            models = fit_all(origin)?;
            (told, fitted) = (origin, origin);
        }
        models.iter_mut().for_each(|model| model.extend(&series.values[told..origin]));
        told = origin;
        let begun = Instant::now();
        let points: Vec<Vec<ForecastPoint>> = models.iter().map(|model| model.forecast(LEADS)).collect();
        (spent_us, times) = (spent_us + begun.elapsed().as_secs_f64() * 1e6, times + 1);
        for lead in 0..LEADS {
            let Some(actual) = series.values.get(origin + lead).copied().flatten() else { continue };
            let of =
                |part: fn(&ForecastPoint) -> f64| median(points.iter().map(|own| part(&own[lead])).collect());
            outcome.errors[lead] += (actual - of(|point| point.median)).abs();
            outcome.covered +=
                u32::from((of(|point| point.lower)..=of(|point| point.upper)).contains(&actual));
            outcome.asked += 1;
        }
    }
    outcome.forecast_us = spent_us / f64::from(times.max(1));
    Some(outcome)
}

/// One series with everybody's outcome.
struct Row {
    history: usize,
    ours: Outcome,
    naive: Outcome,
    others: Vec<Option<Outcome>>,
}

fn main() -> ExitCode {
    foreshard_test::bars::end(Options::parse().and_then(|options| bench(&options)))
}

/// The name of a file without its endings.
fn short(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').next().unwrap_or_default().chars().take(34).collect()
}

/// Everything; whether the bars hold.
fn bench(options: &Options) -> Result<bool> {
    let files = read::all(&options.folder, options.step_s)?;
    println!(
        "{:<34} {:>7} {:>6} {:>6} {:>6} {:>6} {:>7} {:>7} {:>7}  model",
        "series", "history", "h=1", "h=12", "h=24", "1-24", "cover", "fit ms", "fc us"
    );
    let mut rows = Vec::new();
    for (path, series) in &files {
        let season = (options.season_s / options.step_s).max(2) as usize;
        let length = series.values.len();
        if length < held_out(length) + 4 * season {
            println!("{:<34} {length:>7} too short", short(path));
            continue;
        }
        let (Some(ours), Some(naive)) =
            (run(series, options, &[&[]]), run(series, options, &[&["same_time_yesterday"]]))
        else {
            println!("{:<34} {length:>7} too little is known", short(path));
            continue;
        };
        let names = options.others();
        let other = |name: &&str| {
            if *name == MEDIAN { run(series, options, &THREE) } else { run(series, options, &[&[name]]) }
        };
        let others = names.iter().map(other).collect();
        let shown = SHOWN.map(|lead| ours.ratio(&naive, lead..=lead));
        let history = length - held_out(length);
        println!(
            "{:<34} {history:>7} {:>6.2} {:>6.2} {:>6.2} {:>6.2} {:>6.1}% {:>7.1} {:>7.0}  {}",
            short(path),
            shown[0],
            shown[1],
            shown[2],
            ours.ratio(&naive, 1..=LEADS),
            100.0 * ours.coverage(),
            ours.fit_ms,
            ours.forecast_us,
            ours.name
        );
        rows.push(Row { history, ours, naive, others });
    }
    if let Some(most) = options.gate {
        return Ok(gate(&rows, most));
    }
    let four_weeks = (28 * options.season_s / options.step_s) as usize;
    let (long, brief): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.history >= four_weeks);
    let names = options.others();
    let mut good = report("at least 4 weeks of history", &long, &names, Some(BARS), None);
    good &= report("less history", &brief, &names, None, Some(BAR_SHORT));
    let series: Vec<Series> = files.into_iter().map(|(_, series)| series).collect();
    Ok(cost::bench(&series, options.cost) && good)
}

/// Geometric mean of what there is.
fn geometric_mean(ratios: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = ratios.fold((0.0, 0_u32), |(sum, n), ratio| (sum + ratio.max(1e-9).ln(), n + 1));
    (sum / f64::from(count.max(1))).exp()
}

/// Whether everything together is good enough.
fn gate(rows: &[Row], most: f64) -> bool {
    let ratio = geometric_mean(rows.iter().map(|row| row.ours.ratio(&row.naive, 1..=LEADS)));
    let covered: u32 = rows.iter().map(|row| row.ours.covered).sum();
    let asked: u32 = rows.iter().map(|row| row.ours.asked).sum();
    let covered = f64::from(covered) / f64::from(asked.max(1));
    let good = ratio <= most && (0.85..=0.96).contains(&covered);
    let verdict = if good { "PASS" } else { "MISSED" };
    println!("{} series: {ratio:.3} (gate {most}), covered {:.1} %: {verdict}", rows.len(), 100.0 * covered);
    good
}

/// The totals of a group of series; whether its bars hold.
fn report(title: &str, rows: &[Row], names: &[&str], bars: Option<[f64; 3]>, bar: Option<f64>) -> bool {
    if rows.is_empty() {
        return true;
    }
    println!("\n{title}: {} series, error relative to the same time yesterday, geometric mean", rows.len());
    println!(
        "{:<24} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7}",
        "model", "h=1", "h=12", "h=24", "1-24", "series", "cover"
    );
    let mut ours = [0.0; 4];
    for column in std::iter::once(None).chain((0..names.len()).map(Some)) {
        let of = |row: &Row| -> Option<(Outcome, Outcome)> {
            let outcome = column.map_or_else(|| Some(row.ours.clone()), |place| row.others[place].clone())?;
            Some((outcome, row.naive.clone()))
        };
        let pairs: Vec<(Outcome, Outcome)> = rows.iter().filter_map(of).collect();
        if pairs.is_empty() {
            continue; // a model for longer histories
        }
        let mean = |leads: std::ops::RangeInclusive<usize>| {
            geometric_mean(pairs.iter().map(|(outcome, naive)| outcome.ratio(naive, leads.clone())))
        };
        let shown = [mean(1..=1), mean(12..=12), mean(24..=24), mean(1..=LEADS)];
        let covered: u32 = pairs.iter().map(|(outcome, _)| outcome.covered).sum();
        let asked: u32 = pairs.iter().map(|(outcome, _)| outcome.asked).sum();
        println!(
            "{:<24} {:>6.3} {:>6.3} {:>6.3} {:>6.3} {:>6} {:>6.1}%",
            column.map_or("foreshard", |place| names[place]),
            shown[0],
            shown[1],
            shown[2],
            shown[3],
            pairs.len(),
            100.0 * f64::from(covered) / f64::from(asked.max(1))
        );
        if column.is_none() {
            ours = shown;
        }
    }
    let mut good = true;
    let mut judge = |what: String, value: f64, bar: f64| {
        good &= value <= bar;
        println!("{what}: {value:.3}, bar {bar}: {}", if value <= bar { "PASS" } else { "MISSED" });
    };
    for (place, bar) in bars.iter().flatten().enumerate() {
        judge(format!("lead {}", SHOWN[place]), ours[place], *bar);
    }
    if let Some(bar) = bar {
        judge("leads 1 to 24".to_string(), ours[3], bar);
    }
    let covered: u32 = rows.iter().map(|row| row.ours.covered).sum();
    let asked: u32 = rows.iter().map(|row| row.ours.asked).sum();
    let covered = f64::from(covered) / f64::from(asked.max(1));
    let fine = COVERED.contains(&covered);
    good &= fine;
    let verdict = if fine { "PASS" } else { "MISSED" };
    println!("intervals of 90 % cover {:.1} %, bar 85 to 95: {verdict}", 100.0 * covered);
    let narrowest = rows.iter().map(|row| row.ours.coverage()).fold(1.0, f64::min);
    println!("they cover {:.1} % of the series where they cover least", 100.0 * narrowest);
    good
}
