//! How well the cost of a trigger is predicted: five unlike triggers, rows of widely varying size.
//!
//! First the triggers run on rows of one seed, and their models are learnt. Then rows of another seed come
//! one by one: each is predicted by `foreshard.predict_cost()`, then inserted, and the prediction is
//! compared with the CPU time that the measured sum of the trigger then grew by. Right before each of them
//! all triggers run a few times unwatched, in the same turns as while they were learnt: after a second of
//! doing nothing caches are cold, and what is predicted is the cost of a call on a server at work.
//!
//! Bars, for every trigger and for the columns of `stat_triggers` alike: R² of at least 0.9 or a relative
//! error (sum of errors over sum of costs) of at most 15 %, and intervals that hold at least 85 % of what
//! happens.

mod common;

use common::known::known_options;
use common::rows::{Case, Rows, connect, create_cases, fire, place};
use common::{PATIENCE, Server};
use foreshard_test::{Awake, Client, Error, Result, wait_until};
use std::time::Duration;

/// Batches of rows that the models are learnt from, one a reading of the keeper (1 s), so that there are
/// models before the last batches come, whose own record of their predictions is judged.
const BATCHES: usize = 16;
/// Rows of a batch.
const BATCH: usize = 60;
/// Rows that are then predicted.
const HELD_OUT: usize = 60;
/// Unwatched calls of every trigger before each of those.
const WARM: usize = 12;

/// Measured calls and their CPU time so far, µs.
fn measured(server: &mut Server, case: Case) -> Result<(f64, f64)> {
    let text = server.query(&format!(
        "SELECT coalesce(sum(sampled_calls), 0), coalesce(sum(total_cpu_us_inclusive), 0) FROM foreshard.stat_triggers \
         WHERE \"table\" = '{0}'::regclass AND trigger = '{0}' AND event = '{1}'",
        case.name(),
        case.operation()
    ))?;
    let numbers: Vec<f64> = text.split('|').filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [calls, cpu_us] => Ok((calls, cpu_us)),
        _ => Err(Error::new(format!("stat_triggers says {text} of {}.", case.name()), "")),
    }
}

/// Waits until so many calls more than before have been measured, of every case; the sums then.
fn wait_measured(server: &mut Server, before: &[(f64, f64)], calls: f64) -> Result<Vec<(f64, f64)>> {
    let mut now = Vec::new();
    let outcome = wait_until("the calls are measured", PATIENCE, || {
        now = Case::ALL.iter().map(|case| measured(server, *case)).collect::<Result<Vec<_>>>()?;
        Ok(now.iter().zip(before).all(|(now, before)| now.0 >= before.0 + calls))
    });
    outcome.map_err(|error| Error::new(format!("{error} Before: {before:?}, now: {now:?}."), ""))?;
    for ((now, before), case) in now.iter().zip(before).zip(Case::ALL) {
        assert_eq!(now.0 - before.0, calls, "measured calls of {}", case.name());
    }
    Ok(now)
}

/// Fires every trigger once, each for a new row.
fn fire_all(client: &mut Client, rows: &mut Rows) -> Result<()> {
    for case in Case::ALL {
        let row = rows.row(case);
        place(client, case, &row)?;
        fire(client, case, &row)?;
    }
    Ok(())
}

/// Fires every trigger until all are watched, then teaches.
fn learn(server: &mut Server, client: &mut Client, rows: &mut Rows) -> Result<()> {
    wait_until("the triggers are watched", PATIENCE, || {
        fire_all(client, rows)?;
        for case in Case::ALL {
            if measured(server, case)?.0 == 0.0 {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    for _ in 0..BATCHES {
        for _ in 0..BATCH {
            fire_all(client, rows)?;
        }
        std::thread::sleep(Duration::from_millis(1_200));
    }
    // A profile that believes that a cost has changed forgets what was before, so not all may be left.
    server.wait_query(
        &format!(
            "SELECT count(*) FROM foreshard.stat_triggers WHERE model IS NOT NULL AND sampled_calls >= {}",
            BATCHES * BATCH
        ),
        &Case::ALL.len().to_string(),
    )?;
    println!(
        "learnt:\n{}",
        server.query("SELECT trigger, model, model_reason, samples, sampled_calls, relative_error, r2, coverage FROM foreshard.stat_triggers")?
    );
    Ok(())
}

/// What is predicted for a row: CPU in µs and the interval in cost units.
#[derive(Clone, Copy, Debug)]
struct Predicted {
    cpu_us: f64,
    lower: f64,
    upper: f64,
}

fn predict(client: &mut Client, case: Case, row: &str) -> Result<Predicted> {
    let rows = client.exec_params(
        "SELECT cpu_us, cost_units, lower, upper, calls FROM foreshard.predict_cost($1::text::regclass, $2, $3::jsonb) WHERE trigger = $1::text",
        &[Some(case.name()), Some(case.operation()), Some(row)],
    )?;
    let number = |name: &str| rows.parse::<f64>(0, name);
    let (Some(cpu_us), Some(cost), Some(lower), Some(upper), Some(calls)) =
        (number("cpu_us"), number("cost_units"), number("lower"), number("upper"), number("calls"))
    else {
        return Err(Error::new(format!("predict_cost says \"{}\" of {case:?}.", rows.to_text()), ""));
    };
    assert_eq!((rows.len(), calls), (1, 1.0), "{case:?}");
    assert!(lower <= cost && cost <= upper, "{case:?}: {lower} {cost} {upper}");
    // The other resources are priced at nothing on this server.
    assert!((cost * 1000.0 - cpu_us).abs() <= 1e-6 * cpu_us.max(1.0), "{case:?}: {cost} ms, {cpu_us} µs");
    Ok(Predicted { cpu_us, lower, upper })
}

/// Predictions and what came, in µs of CPU.
#[derive(Default)]
struct Outcomes {
    pairs: Vec<(f64, f64)>,
    covered: usize,
}

impl Outcomes {
    fn add(&mut self, predicted: Predicted, actual_us: f64) {
        self.pairs.push((predicted.cpu_us, actual_us));
        let cost = actual_us / 1000.0;
        self.covered += usize::from(predicted.lower <= cost && cost <= predicted.upper);
    }

    fn mean(&self) -> f64 {
        self.pairs.iter().map(|(_, actual)| actual).sum::<f64>() / self.pairs.len() as f64
    }

    fn relative_error(&self) -> f64 {
        let errors: f64 = self.pairs.iter().map(|(predicted, actual)| (predicted - actual).abs()).sum();
        errors / (self.mean() * self.pairs.len() as f64)
    }

    fn bias(&self) -> f64 {
        let sum: f64 = self.pairs.iter().map(|(predicted, actual)| predicted - actual).sum();
        sum / (self.mean() * self.pairs.len() as f64)
    }

    fn r2(&self) -> f64 {
        let mean = self.mean();
        let left: f64 = self.pairs.iter().map(|(predicted, actual)| (predicted - actual).powi(2)).sum();
        let all: f64 = self.pairs.iter().map(|(_, actual)| (mean - actual).powi(2)).sum();
        1.0 - left / all
    }

    fn coverage(&self) -> f64 {
        self.covered as f64 / self.pairs.len() as f64
    }

    fn spread(&self) -> (f64, f64) {
        let actual = self.pairs.iter().map(|(_, actual)| *actual);
        actual.fold((f64::INFINITY, 0.0), |(least, most), a| (least.min(a), most.max(a)))
    }
}

/// Predicts and measures rows that were not learnt from.
fn hold_out(server: &mut Server, client: &mut Client, rows: &mut Rows) -> Result<Vec<Outcomes>> {
    let mut outcomes: Vec<Outcomes> = Case::ALL.iter().map(|_| Outcomes::default()).collect();
    let mut before = wait_measured_all(server)?;
    for _ in 0..HELD_OUT {
        let held: Vec<String> = Case::ALL.iter().map(|case| rows.row(*case)).collect();
        let mut predicted = Vec::new();
        for (case, row) in Case::ALL.into_iter().zip(&held) {
            place(client, case, row)?;
            predicted.push(predict(client, case, row)?);
        }
        client.exec("SET foreshard.observe = off")?;
        for _ in 0..WARM {
            fire_all(client, rows)?;
        }
        client.exec("SET foreshard.observe = on")?;
        for (case, row) in Case::ALL.into_iter().zip(&held) {
            fire(client, case, row)?;
        }
        let now = wait_measured(server, &before, 1.0)?;
        for (index, predicted) in predicted.into_iter().enumerate() {
            outcomes[index].add(predicted, now[index].1 - before[index].1);
        }
        before = now;
    }
    Ok(outcomes)
}

/// The sums once nothing more is under way.
fn wait_measured_all(server: &mut Server) -> Result<Vec<(f64, f64)>> {
    let mut last = Vec::new();
    wait_until("the sums settle", PATIENCE, || {
        let now = Case::ALL.iter().map(|case| measured(server, *case)).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(Duration::from_millis(2_300));
        Ok(std::mem::replace(&mut last, now.clone()) == now)
    })?;
    Ok(last)
}

/// What `stat_triggers` says of its own predictions of a case: model, relative error, bias, R², coverage.
fn own_record(server: &mut Server, case: Case) -> Result<(String, [f64; 4])> {
    let text = server.query(&format!(
        "SELECT model || ' of ' || samples, relative_error, bias, r2, coverage FROM foreshard.stat_triggers \
         WHERE \"table\" = '{0}'::regclass AND trigger = '{0}' AND event = '{1}'",
        case.name(),
        case.operation()
    ))?;
    let (model, numbers) = text.split_once('|').unwrap_or((&text, ""));
    let mut numbers = numbers.split('|').map(|number| number.parse::<f64>().unwrap_or(f64::NAN));
    let mut next = || numbers.next().unwrap_or(f64::NAN);
    Ok((model.to_string(), [next(), next(), next(), next()]))
}

/// Whether these numbers keep the bars.
fn good(relative_error: f64, r2: f64, coverage: f64) -> bool {
    (r2 >= 0.9 || relative_error <= 0.15) && coverage >= 0.85
}

#[test]
fn five_triggers_are_predicted() -> Result<()> {
    if std::env::var_os("FORESHARD_PREDICTION").is_none() {
        println!("measures microseconds: set FORESHARD_PREDICTION=1 on a machine that does nothing else");
        return Ok(());
    }
    let mut options = known_options("prediction");
    // Cost units are then milliseconds of CPU, so that intervals can be compared with what is measured.
    for weight in ["wal_kb_cost", "block_read_cost", "temp_block_cost", "memory_mb_cost"] {
        options = options.set(&format!("foreshard.{weight}"), "0");
    }
    let _awake = Awake::keep();
    let mut server = Server::start(&options)?;
    create_cases(&mut server)?;
    let mut client = connect(&server)?;
    learn(&mut server, &mut client, &mut Rows::new(1))?;
    // Other rows, and other keys.
    let mut rows = Rows::new(2);
    rows.skip_to(1_000_000);
    let outcomes = hold_out(&mut server, &mut client, &mut rows)?;
    println!(
        "{:<8} {:<24} {:>22} {:>8} {:>7} {:>6} {:>8}",
        "trigger", "", "CPU µs, least–most", "error", "bias", "R²", "covered"
    );
    let mut missed = Vec::new();
    for (case, held_out) in Case::ALL.into_iter().zip(&outcomes) {
        let (least, most) = held_out.spread();
        let range = format!("{least:.0}–{most:.0}");
        let numbers = [held_out.relative_error(), held_out.bias(), held_out.r2(), held_out.coverage()];
        let (model, own) = own_record(&mut server, case)?;
        let held = format!("{HELD_OUT} held out");
        for (what, range, [error, bias, r2, coverage]) in [(held, range.as_str(), numbers), (model, "", own)]
        {
            println!(
                "{:<8} {what:<24} {range:>22} {:>6.1} % {:>5.1} % {r2:>6.3} {:>6.1} %",
                case.name(),
                error * 100.0,
                bias * 100.0,
                coverage * 100.0
            );
            if !good(error, r2, coverage) {
                missed.push(format!("{}: {what}", case.name()));
            }
        }
    }
    assert!(missed.is_empty(), "not predicted well enough: {missed:?}");
    Ok(())
}

#[test]
fn rows_are_the_same_for_a_seed() {
    for case in Case::ALL {
        let mut one = Rows::new(7);
        let mut other = Rows::new(7);
        let sizes: Vec<usize> = (0..200).map(|_| one.row(case).len()).collect();
        assert_eq!(sizes, (0..200).map(|_| other.row(case).len()).collect::<Vec<_>>());
        let (least, most) = (sizes.iter().min(), sizes.iter().max());
        println!("{case:?}: JSON of {least:?} to {most:?} bytes");
        assert!(most > least.map(|least| least * 5).as_ref(), "{case:?}: {least:?} to {most:?} bytes");
    }
}
