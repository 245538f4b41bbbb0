//! What benches have in common: bars, and how they end.

use crate::Result;
use std::process::ExitCode;

fn bar(what: &str, value: f64, holds: bool, bar: String) -> bool {
    println!("{} {what}: {value:.3} (bar {bar})", if holds { "PASS  " } else { "MISSED" });
    holds
}

/// Prints a bar that a value must not exceed; whether it holds.
pub fn bar_most(what: &str, value: f64, most: f64) -> bool {
    bar(what, value, value <= most, format!("at most {most}"))
}

/// Prints a bar that a value must reach; whether it holds.
pub fn bar_least(what: &str, value: f64, least: f64) -> bool {
    bar(what, value, value >= least, format!("at least {least}"))
}

/// The exit code of a bench: 0 if every bar holds. What failed is told.
pub fn end(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
