//! What a move has to reach.

use crate::Scenario;
use crate::clients::Felt;
use crate::report::Results;

/// Most a move may take up to the end of the index phase, in bare copies.
const COPY_TO_RAW: f64 = 1.2;
/// Most it may take with catch-up and verification.
const ALL_TO_RAW: f64 = 1.6;
/// Longest wait of a client.
const WAIT_MS: f64 = 50.0;
/// Longest wait of a client when a transaction of `HOLD_S` is open across the cutover.
const WAIT_WITH_HOLD_MS: f64 = 150.0;
const HOLD_S: f64 = 10.0;
/// The farthest a client may be behind its schedule at `FAST_RATE`.
const BEHIND_MS: f64 = 100.0;
const FAST_RATE: f64 = 2000.0;

/// One bar and what was measured.
pub struct Bar {
    what: &'static str,
    /// None: the phase or the window was not seen, which no bar survives.
    measured: Option<f64>,
    /// None: there was nothing to compare with.
    limit: Option<f64>,
}

impl Bar {
    fn verdict(&self) -> &'static str {
        match (self.measured, self.limit) {
            (_, None) => "SKIPPED",
            (Some(measured), Some(limit)) if measured <= limit => "PASS",
            _ => "MISSED",
        }
    }
}

/// The bars of a scenario.
pub fn of(scenario: &Scenario, results: &Results) -> Vec<Bar> {
    let felt = results.felt("move");
    let wait = felt.map(Felt::longest_wait_ms);
    if scenario.hold_s > 0.0 {
        // A longer or shorter transaction has no bar of its own.
        let limit = (scenario.hold_s >= HOLD_S).then_some(WAIT_WITH_HOLD_MS);
        return vec![Bar { what: "longest wait with an open transaction, ms", measured: wait, limit }];
    }
    let repacked = results.repack.as_ref().ok();
    let felt_repack = repacked.and_then(|_| results.felt("pg_repack"));
    let indexed = results.moved.entered(&["catch_up"]);
    let verified = results.moved.entered(&["canary", "cutover"]);
    let bar = |what, measured, limit| Bar { what, measured, limit };
    let mut bars = vec![
        bar(
            "elapsed up to the end of the index phase, to raw",
            indexed.map(|time| results.ratio(time)),
            Some(COPY_TO_RAW),
        ),
        bar(
            "elapsed up to the end of the index phase, s (bar: pg_repack's)",
            indexed.map(|time| time.as_secs_f64()),
            repacked.map(|cost| cost.elapsed.as_secs_f64()),
        ),
        bar(
            "elapsed, catch-up and verification included, to raw",
            verified.map(|time| results.ratio(time)),
            Some(ALL_TO_RAW),
        ),
        bar("p99 during, ms (bar: pg_repack's)", felt.map(Felt::p99_ms), felt_repack.map(Felt::p99_ms)),
        bar("longest wait, ms (bar: pg_repack's)", wait, felt_repack.map(Felt::longest_wait_ms)),
        bar("longest wait, ms", wait, Some(WAIT_MS)),
    ];
    if scenario.rate >= FAST_RATE {
        let behind = felt.map(Felt::longest_behind_ms);
        bars.push(bar("farthest behind schedule, ms", behind, Some(BEHIND_MS)));
    }
    bars
}

/// Prints the bars of every scenario; whether none was missed.
pub fn print(scenarios: &[(String, Vec<Bar>)]) -> bool {
    let text = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.2}"));
    let mut missed = 0;
    for (label, bars) in scenarios {
        println!("== bars: {label}");
        println!("{:<8} {:>9} {:>9}", "", "measured", "bar");
        for bar in bars {
            let verdict = bar.verdict();
            missed += usize::from(verdict == "MISSED");
            println!("{verdict:<8} {:>9} {:>9}  {}", text(bar.measured), text(bar.limit), bar.what);
        }
    }
    missed == 0
}
