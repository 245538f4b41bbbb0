//! The middle of the loop: forecast, recommendations, the request, the moves.

use crate::setup::HORIZON_S;
use crate::show::{Screen, bar};
use foreshard_test::{Client, Error, Result, Rows};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// Recommendations shown one by one; the rest is summed up.
const SHOWN: usize = 12;
/// How long to wait for the planner's first recommendation.
const FIRST_PATIENCE: Duration = Duration::from_secs(40);
/// How long to wait for more after a round of moves.
const MORE_PATIENCE: Duration = Duration::from_secs(15);
/// How long the moves of one request may take.
const MOVE_PATIENCE: Duration = Duration::from_secs(120);

/// What one request did.
#[derive(Default)]
pub struct Outcome {
    /// Moves that ended well.
    pub done: u64,
    /// Moves that did not.
    pub failed: u64,
    /// Bytes of the slots moved.
    pub bytes: u64,
    /// Confidence of the plan.
    pub confidence: f64,
    /// From the request to the last move's end.
    pub elapsed: Duration,
}

/// Shows the forecast of the hottest slots.
pub fn show_forecasts(client: &mut Client) -> Result<()> {
    let rows = client.exec(
        "SELECT h.slot_id, h.shard, h.cost_units_per_s AS now, avg(f.cost_units_per_s) AS mean,
                min(f.lower) AS lower, max(f.upper) AS upper, min(f.interval_level) AS level,
                min(f.model) AS model, min(f.history_buckets) AS buckets, min(f.mae) AS mae
         FROM foreshard.heat_map h JOIN foreshard.forecasts f USING (slot_id)
         GROUP BY 1, 2, 3 ORDER BY mean DESC NULLS LAST LIMIT 6",
    )?;
    if rows.is_empty() {
        println!("  no forecast yet: the history is too short");
    }
    for row in 0..rows.len() {
        let number = |name| rows.parse::<f64>(row, name).map_or("?".into(), |v| format!("{v:.3}"));
        println!(
            "  slot {:>4} on {}: now {}, next {HORIZON_S} s {} with {:.0} % between {} and {} (model {}, {} buckets, mean error {})",
            rows.field(row, "slot_id").unwrap_or("?"),
            rows.field(row, "shard").unwrap_or("?"),
            number("now"),
            number("mean"),
            rows.parse::<f64>(row, "level").unwrap_or(0.0) * 100.0,
            number("lower"),
            number("upper"),
            rows.field(row, "model").unwrap_or("?"),
            rows.field(row, "buckets").unwrap_or("?"),
            number("mae"),
        );
    }
    Ok(())
}

/// Asks for recommendations until there is a move among them or patience ends, and shows
/// them; true when there is one.
pub fn show_recommendations(client: &mut Client, first: bool) -> Result<bool> {
    let patience = if first { FIRST_PATIENCE } else { MORE_PATIENCE };
    let deadline = Instant::now() + patience;
    loop {
        let rows = client.exec("SELECT * FROM foreshard.recommend()")?;
        let moves = (0..rows.len()).filter(|&row| is_move(&rows, row)).count();
        if moves == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_secs(2));
            continue;
        }
        print_recommendations(&rows, moves);
        return Ok(moves > 0);
    }
}

fn is_move(rows: &Rows, row: usize) -> bool {
    rows.field(row, "to_shard").is_some() && rows.field(row, "refusal").is_none()
}

fn print_recommendations(rows: &Rows, moves: usize) {
    let text = |row, name| rows.field(row, name).unwrap_or("-").to_string();
    let wanted = (0..rows.len()).filter(|&row| is_move(rows, row));
    for row in wanted.take(SHOWN) {
        println!(
            "  slot {:>4}  {} → {}  confidence {:.2}  {:>5} kB  imbalance {:.3} → {:.3}  {}",
            text(row, "slot_id"),
            text(row, "from_shard"),
            text(row, "to_shard"),
            rows.parse::<f64>(row, "confidence").unwrap_or(f64::NAN),
            rows.parse::<u64>(row, "bytes").unwrap_or(0) / 1024,
            rows.parse::<f64>(row, "imbalance_before").unwrap_or(f64::NAN),
            rows.parse::<f64>(row, "imbalance_after").unwrap_or(f64::NAN),
            text(row, "reason"),
        );
    }
    if moves > SHOWN {
        println!("  … and {} more moves", moves - SHOWN);
    }
    let refused = (0..rows.len()).filter(|&row| rows.field(row, "refusal").is_some());
    for row in refused.take(3) {
        println!(
            "  not moved: slot {}: {} ({})",
            text(row, "slot_id"),
            text(row, "refusal"),
            text(row, "advice")
        );
    }
    if rows.is_empty() {
        println!("  nothing to do: the shards are balanced within the thresholds");
    }
}

/// A predicted assignment, as the extension hands it out.
pub struct Plan {
    map: String,
    confidence: String,
}

/// Asks for the predicted assignment; `None` when no move is confident enough.
pub fn plan(client: &mut Client) -> Result<Option<Plan>> {
    let plan = client.exec(&format!(
        "SELECT shard_assignment_map AS map, confidence
         FROM foreshard.predict_shard_assignment('{HORIZON_S} seconds')"
    ))?;
    Ok(match (plan.field(0, "map"), plan.field(0, "confidence")) {
        (Some(map), Some(confidence)) => {
            Some(Plan { map: map.to_string(), confidence: confidence.to_string() })
        }
        _ => None,
    })
}

/// Requests a plan and watches its moves to their end.
pub fn reshard(client: &mut Client, screen: &mut Screen, plan: &Plan) -> Result<Outcome> {
    let (map, confidence) = (plan.map.as_str(), plan.confidence.as_str());
    println!("  request_resharding(confidence_score => {confidence}, shard_assignment_map => …)");
    let begin = Instant::now();
    let request = client.exec_params(
        "SELECT foreshard.request_resharding($1::float8, $2::jsonb)",
        &[Some(confidence), Some(map)],
    )?;
    let request = request.get(0, 0).unwrap_or("0").to_string();
    let mut outcome = Outcome { confidence: confidence.parse().unwrap_or(0.0), ..Outcome::default() };
    let mut ended = HashSet::new();
    while !show_progress(client, screen, &request, &mut ended)? {
        if begin.elapsed() > MOVE_PATIENCE {
            return Err(Error::new(
                format!("The moves did not end within {} s.", MOVE_PATIENCE.as_secs()),
                "Look at foreshard.progress_moves: make psql.",
            ));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    screen.settle();
    outcome.elapsed = begin.elapsed();
    let totals = client.exec_params(
        "SELECT p.done, p.failed,
                (SELECT sum(s.bytes) FROM foreshard.slots s
                 WHERE s.slot_id IN (SELECT m.slot_id FROM foreshard.progress_moves m WHERE m.request_id = $1::bigint)) AS bytes
         FROM foreshard.monitor_resharding_progress() p WHERE p.request_id = $1::bigint",
        &[Some(&request)],
    )?;
    outcome.done = totals.parse(0, "done").unwrap_or(0);
    outcome.failed = totals.parse(0, "failed").unwrap_or(0);
    outcome.bytes = totals.parse(0, "bytes").unwrap_or(0);
    Ok(outcome)
}

/// Draws the request's progress; true when it is finished.
fn show_progress(
    client: &mut Client,
    screen: &mut Screen,
    request: &str,
    ended: &mut HashSet<String>,
) -> Result<bool> {
    let total = client.exec_params(
        "SELECT * FROM foreshard.monitor_resharding_progress() WHERE request_id = $1::bigint",
        &[Some(request)],
    )?;
    let moves = client.exec_params(
        "SELECT * FROM foreshard.progress_moves WHERE request_id = $1::bigint ORDER BY move_id",
        &[Some(request)],
    )?;
    let finished = total.is_empty() || total.field(0, "finished") == Some("t");
    let mut running = Vec::new();
    for row in 0..moves.len() {
        let state = moves.field(row, "state").unwrap_or("?");
        let id = moves.field(row, "move_id").unwrap_or("?");
        if matches!(state, "running" | "cancelling") {
            running.push(move_line(&moves, row));
        } else if state != "waiting" && ended.insert(id.to_string()) && !screen.terminal {
            println!("  {}", move_line(&moves, row));
        }
    }
    let count = |name| total.parse::<u64>(0, name).unwrap_or(0);
    let percent = total.parse::<f64>(0, "percent").unwrap_or(0.0);
    let mut lines = vec![format!(
        "  {} {percent:5.1} %  {} of {} moves, {} failed",
        bar(percent / 100.0),
        count("done"),
        count("moves"),
        count("failed")
    )];
    lines.extend(running);
    screen.redraw(&lines);
    if finished && !screen.terminal {
        println!("{}", lines[0]);
    }
    Ok(finished)
}

fn move_line(moves: &Rows, row: usize) -> String {
    let text = |name| moves.field(row, name).unwrap_or("-");
    let error = moves.field(row, "last_error").map_or(String::new(), |e| format!("  last error: {e}"));
    format!(
        "  move {:>3}  slot {:>4}  {} → {}  {:<10} {:<9} {:>6} rows  {:>6} %  {}{error}",
        text("move_id"),
        text("slot_id"),
        text("from_shard"),
        text("to_shard"),
        text("phase"),
        text("state"),
        text("rows_done"),
        text("percent"),
        text("elapsed").trim_start_matches("00:"),
    )
}
