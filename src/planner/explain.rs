//! Why a slot is where it is, what was considered for it, and what is to become of it: in words and as JSON.

use super::divisions::{Action, Division};
use super::{Decision, trust};
use crate::catalog::decision;
use crate::catalog::story::{Past, Story};
use crate::pg::guc;
use crate::pg::report::{PgResult, internal};
use foreshard_core::calibration::Calibration;
use foreshard_core::placement::{Consideration, RefusalReason, consider};
use serde::Serialize;
use std::fmt::Write;

/// Everything there is to say about the place of a key.
#[derive(Serialize)]
pub struct Explanation {
    table: String,
    mode: &'static str,
    shard: String,
    #[serde(flatten)]
    story: Story,
    slot: SlotLoad,
    shards: Vec<ShardLoad>,
    /// The peak of the shard over its fair share; 1 is perfect.
    relative_peak: Option<f64>,
    /// From which on the planner acts.
    acts_above: f64,
    considered: Vec<Considered>,
    verdict: Verdict,
}

/// What is known of the load of the slot; None: unknown.
#[derive(Serialize)]
struct SlotLoad {
    bytes: Option<i64>,
    load: Option<f64>,
    forecast_peak: Option<f64>,
    forecast_lower: Option<f64>,
    forecast_upper: Option<f64>,
    model: Option<String>,
    history_buckets: Option<i32>,
}

/// A shard now and at its forecast peak, without the plan and with it.
#[derive(Serialize)]
struct ShardLoad {
    shard: String,
    capacity: f64,
    draining: bool,
    /// To its node; None: it is here.
    round_trip_ms: Option<f64>,
    load: Option<f64>,
    forecast_peak: Option<f64>,
    planned_peak: Option<f64>,
    slots_without_forecast: i64,
}

/// A shard that the slot could go to.
#[derive(Serialize)]
struct Considered {
    shard: String,
    /// Cost units/s.
    gain: f64,
    /// Cost units.
    cost: f64,
    confidence: f64,
    forecast_peak_after: f64,
    /// What of the gain is lost to accesses that wait for its node, cost units/s.
    lost_to_waiting: f64,
    refusal: Option<&'static str>,
}

/// What is to become of the slot.
#[derive(Serialize)]
struct Verdict {
    /// `split`, `prepare`, `merge`, `isolate`, `home`, `move` or `stay`.
    action: &'static str,
    to: Option<String>,
    confidence: Option<f64>,
    start_in_s: Option<f64>,
    timing: Option<&'static str>,
    reason: String,
    refusal: Option<String>,
    advice: Option<String>,
}

/// Explains the place of a slot of `table`, given a plan that was made now.
pub fn explain(decision: &Decision, table: String, story: Story) -> PgResult<Explanation> {
    let slot_id = story.slot_id;
    let row = decision.slot(slot_id).ok_or_else(|| internal(format!("slot {slot_id} has no partition")))?;
    let pool = decision.pools.iter().find(|pool| pool.has(row.shard_id));
    let pool = pool.ok_or_else(|| internal(format!("slot {slot_id} is on no shard")))?;
    let mut segments = pool.segments.clone();
    // Whoever asks about a slot that is moving asks about where it is.
    if row.heads_for.is_some() {
        segments.iter_mut().filter(|one| one.id == slot_id).for_each(|one| one.shard = row.shard_id);
    }
    let asked = consider(&pool.places, &segments, &decision.links, &decision.options, slot_id)
        .map_err(internal)?
        .ok_or_else(|| internal(format!("slot {slot_id} was not planned for")))?;
    let calibration = trust::calibrations()?.remove(&row.group_id).unwrap_or_default();
    let has_forecast = !decision.forecasts.is_empty();
    Ok(Explanation {
        mode: decision.modes.of(row.group_id).as_str(),
        shard: decision.shard_name(row.shard_id),
        slot: decision.slot_load(row),
        shards: decision.shard_loads(),
        relative_peak: has_forecast.then_some(asked.relative),
        acts_above: 1.0 + decision.options.imbalance_high,
        considered: decision.considered(&asked, &calibration),
        verdict: decision.verdict_of(slot_id, &asked),
        table,
        story,
    })
}

impl Decision {
    fn slot_load(&self, row: &decision::SlotRow) -> SlotLoad {
        let forecast = self.forecasts.iter().find(|forecast| forecast.slot_id == row.slot_id);
        let peak = forecast.and_then(|f| f.points.iter().max_by(|a, b| a.mean.total_cmp(&b.mean)));
        SlotLoad {
            bytes: row.bytes,
            load: row.observed.then_some(row.heat),
            forecast_peak: peak.map(|point| point.mean),
            forecast_lower: peak.map(|point| point.lower),
            forecast_upper: peak.map(|point| point.upper),
            model: forecast.map(|f| f.model.clone()),
            history_buckets: forecast.map(|f| f.history_buckets),
        }
    }

    fn shard_loads(&self) -> Vec<ShardLoad> {
        let curves = self.curves();
        let load = |shard: &crate::catalog::colocation::ShardRow| {
            let own = || curves.iter().filter(|point| point.shard_id == shard.shard_id);
            let peak = |of: fn(&super::CurvePoint) -> Option<f64>| own().filter_map(of).reduce(f64::max);
            ShardLoad {
                shard: shard.name.clone(),
                capacity: shard.capacity,
                draining: shard.draining,
                round_trip_ms: shard.round_trip_ms,
                load: own().next().and_then(|point| point.load_now),
                forecast_peak: peak(|point| point.forecast),
                planned_peak: peak(|point| point.planned),
                slots_without_forecast: own().map(|point| point.unknown_slots).max().unwrap_or(0),
            }
        };
        self.shards.iter().map(load).collect()
    }

    fn considered(&self, asked: &Consideration, calibration: &Calibration) -> Vec<Considered> {
        let candidates = asked.candidates.iter();
        let one = candidates.map(|candidate| Considered {
            shard: self.shard_name(candidate.shard),
            gain: candidate.gain,
            cost: asked.cost,
            confidence: calibration.stated(candidate.confidence),
            forecast_peak_after: candidate.peak_after,
            lost_to_waiting: candidate.farther,
            refusal: candidate.unfit.map(|unfit| unfit.as_str()),
        });
        one.collect()
    }

    fn verdict_of(&self, slot_id: i64, asked: &Consideration) -> Verdict {
        let touches =
            |one: &&Division| one.slot_id == slot_id || one.action == Action::Merge { other: slot_id };
        let division = self.divisions.iter().find(touches);
        if let Some(one) = division.filter(|one| !matches!(one.action, Action::Not(_))) {
            return self.division_verdict(one);
        }
        let steps = self.plan.steps.iter().zip(&self.verdicts);
        if let Some((step, verdict)) = steps.rev().find(|(step, _)| step.segment == slot_id) {
            return Verdict {
                action: "move",
                to: Some(self.shard_name(step.to)),
                confidence: Some(verdict.stated),
                start_in_s: verdict.start_s,
                timing: Some(verdict.timing.start.as_str()),
                reason: step.reason.clone(),
                refusal: verdict.refusal.map(|refusal| refusal.0.to_string()),
                advice: verdict.refusal.map(|refusal| refusal.1.to_string()),
            };
        }
        if let Some(one) = division {
            return Verdict { action: "stay", ..self.division_verdict(one) };
        }
        let refusal = self.plan.refusals.iter().find(|refusal| refusal.segment == slot_id);
        let reason = refusal.map(|refusal| refusal.reason).or(asked.blocked);
        let shard = self.slot(slot_id).map(decision::SlotRow::planned_shard);
        let is_relieved = self.plan.steps.iter().any(|step| Some(step.from) == shard);
        let is_full = refusal.is_some_and(|refusal| refusal.reason == RefusalReason::NoTargetCapacity);
        let why = if is_full && shard.is_some_and(|shard| self.presence.drains(shard)) {
            "its shard is to be emptied, but there is no place for this slot"
        } else if self.forecasts.is_empty() {
            "no load of any slot is known well enough to plan"
        } else if refusal.is_some() {
            "its shard is above its fair share, but this slot is not moved"
        } else if !asked.overloaded {
            "its shard is not above its fair share"
        } else if !is_relieved {
            "its shard is above its fair share, but not by so much that the planner acts"
        } else {
            "moving other slots relieves its shard better"
        };
        Verdict {
            action: "stay",
            to: None,
            confidence: None,
            start_in_s: None,
            timing: None,
            reason: why.to_string(),
            refusal: reason.map(|reason| reason.as_str().to_string()),
            advice: reason.map(|reason| reason.advice().to_string()),
        }
    }
}

impl Decision {
    fn division_verdict(&self, one: &Division) -> Verdict {
        let (refusal, opens_s) = self.said_of(one);
        let start_s = match one.action {
            Action::Prepare { at, .. } | Action::Isolate { at, .. } => {
                Some(f64::from(self.lead_s) * at as f64)
            }
            Action::Split | Action::Merge { .. } | Action::Home { .. } => Some(0.0),
            Action::Not(_) => None,
        };
        Verdict {
            action: one.action.as_str(),
            to: one.to_shard.map(|shard| self.shard_name(shard)),
            confidence: None,
            start_in_s: start_s.map(|start_s| opens_s.map_or(start_s, |opens_s| start_s.max(opens_s))),
            timing: None,
            reason: one.reason.clone(),
            refusal: refusal.map(|refusal| refusal.0.to_string()),
            advice: refusal.map(|refusal| refusal.1.to_string()),
        }
    }
}

/// A load in words.
fn units(load: Option<f64>) -> String {
    load.map_or_else(|| "unknown".to_string(), |load| format!("{load:.1}"))
}

impl Explanation {
    /// One object with everything.
    pub fn to_json(&self) -> PgResult<serde_json::Value> {
        serde_json::to_value(self).map_err(internal)
    }

    /// In words, a fact a line.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let story = &self.story;
        say(
            &mut text,
            format!(
                "The key belongs to slot {} of {} (remainder {} of {}), which is on shard \"{}\".",
                story.slot_id, self.table, story.remainder, story.modulus, self.shard
            ),
        );
        self.tell_past(&mut text);
        self.tell_loads(&mut text);
        self.tell_considered(&mut text);
        self.tell_verdict(&mut text);
        text
    }

    fn tell_past(&self, text: &mut String) {
        let Story { born_on, born_at, born_by_move, birth_known, moves, last_moved_at, .. } = &self.story;
        let on = born_on
            .as_deref()
            .map_or_else(|| "a shard no longer known".to_string(), |on| format!("shard \"{on}\""));
        let at = born_at.as_deref().unwrap_or("an unknown time");
        say(
            text,
            match born_by_move {
                Some(split) => format!("It was born on {on} at {at}, by split {split} of another slot."),
                None if !birth_known => {
                    format!("It was born on {on}; how it came to be what it is now is no longer remembered.")
                }
                None => format!(
                    "It was born on {on} at {at}: the ring of shards, weighted by capacity, put it there."
                ),
            },
        );
        match last_moved_at {
            _ if !moves.is_empty() => {}
            Some(_) if born_by_move.is_some() => say(text, "It has not been moved since.".to_string()),
            Some(at) => {
                say(text, format!("It was last moved or divided at {at}; more is no longer remembered."));
            }
            None => say(text, "It has never been moved.".to_string()),
        }
        moves.iter().for_each(|past| say(text, past_in_words(past)));
    }

    fn tell_loads(&self, text: &mut String) {
        let slot = &self.slot;
        let model = slot.model.as_deref().map_or_else(String::new, |model| {
            let (lower, upper) = (units(slot.forecast_lower), units(slot.forecast_upper));
            format!(" ({lower} to {upper}; model {model})")
        });
        say(
            text,
            format!(
                "Load of the slot in cost units/s: now {}, forecast peak {}{model}; {} bytes.",
                units(slot.load),
                units(slot.forecast_peak),
                slot.bytes.map_or_else(|| "unknown".to_string(), |bytes| bytes.to_string())
            ),
        );
        for shard in &self.shards {
            let mut line = format!(
                "Shard \"{}\": now {} of {}, forecast peak {}, with the plan {}",
                shard.shard,
                units(shard.load),
                shard.capacity,
                units(shard.forecast_peak),
                units(shard.planned_peak)
            );
            if let Some(ms) = shard.round_trip_ms {
                let _ = write!(line, ", a round trip of {ms:.2} ms away");
            }
            if shard.slots_without_forecast > 0 {
                let _ = write!(line, ", {} slots without a forecast", shard.slots_without_forecast);
            }
            line.push_str(if shard.draining { "; being emptied." } else { "." });
            say(text, line);
        }
        if let Some(relative) = self.relative_peak {
            say(
                text,
                format!(
                    "The peak of shard \"{}\" is {:.0} % of its fair share; the planner acts above {:.0} %.",
                    self.shard,
                    relative * 100.0,
                    self.acts_above * 100.0
                ),
            );
        }
    }

    fn tell_considered(&self, text: &mut String) {
        if self.considered.is_empty() {
            say(text, "There is no other shard to consider.".to_string());
        }
        for considered in &self.considered {
            let waiting = match considered.lost_to_waiting {
                lost if lost >= 0.05 => format!(" ({lost:.1} lost to waiting for its node)"),
                saved if saved <= -0.05 => format!(" ({:.1} of it from waiting less)", -saved),
                _ => String::new(),
            };
            let refusal =
                considered.refusal.map_or_else(String::new, |refusal| format!("; refused: {refusal}"));
            say(
                text,
                format!(
                    "Considered shard \"{}\": gain {:.1} cost units/s{waiting} for a cost of {:.1}, confidence {:.2}, peak then {:.1}{refusal}.",
                    considered.shard,
                    considered.gain,
                    considered.cost,
                    considered.confidence,
                    considered.forecast_peak_after
                ),
            );
        }
    }

    fn tell_verdict(&self, text: &mut String) {
        let verdict = &self.verdict;
        let start = verdict.start_in_s.map_or_else(|| "unknown".to_string(), |s| format!("in {s:.0} s"));
        let part = |what: &str| {
            verdict.to.as_ref().map_or_else(String::new, |to| format!(", {what} going to shard \"{to}\""))
        };
        let mut line = match (&verdict.to, verdict.action) {
            (Some(to), "move") => format!(
                "It should move to shard \"{to}\" (confidence {:.2}, start {start}): {}.",
                verdict.confidence.unwrap_or(0.0),
                verdict.reason
            ),
            (_, "split") => {
                format!("It should be split{} (start {start}): {}.", part("the second half"), verdict.reason)
            }
            (_, "prepare") => format!(
                "Its halves should be built ahead{} (start {start}): {}.",
                part("the second one"),
                verdict.reason
            ),
            (_, "merge") => {
                format!("It should become one with another slot (start {start}): {}.", verdict.reason)
            }
            (_, "isolate") => {
                format!(
                    "Its busiest key should get a place by itself{} (start {start}): {}.",
                    part("it"),
                    verdict.reason
                )
            }
            (_, "home") => {
                format!("A key that is isolated of it should come home (start {start}): {}.", verdict.reason)
            }
            _ => format!("It stays: {}.", verdict.reason),
        };
        if let Some(refusal) = &verdict.refusal {
            let _ = write!(line, " Refused: {refusal}.");
        }
        if let Some(advice) = &verdict.advice {
            let _ = write!(line, " {advice}");
        }
        say(text, line);
        let asks = match self.mode {
            "off" => "nothing is planned for its table",
            "auto" => "steps that may be taken now are taken",
            _ => "a person decides",
        };
        let window = guc::MOVE_WINDOW.get().filter(|window| !window.is_empty());
        let hours = window.map_or_else(String::new, |window| {
            format!(" Moves of the auto mode begin at {} only.", window.to_string_lossy())
        });
        say(text, format!("Mode {}: {asks}.{hours}", self.mode));
    }
}

/// Adds a line.
fn say(text: &mut String, line: String) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&line);
}

fn past_in_words(past: &Past) -> String {
    let what = match (past.kind.as_str(), past.phase.as_str()) {
        ("split", "done") => format!("Split {} made two slots of it", past.move_id),
        ("split", phase) => format!("Split {} ({phase}) of it", past.move_id),
        ("merge", "done") => format!("Merge {} made it one with another slot", past.move_id),
        ("merge", phase) => format!("Merge {} ({phase}) with another slot", past.move_id),
        ("place", phase) => format!("Placement {} ({phase}) of keys of it", past.move_id),
        ("undistribute", phase) => format!("Undistribution {} ({phase}) of its table", past.move_id),
        ("join", phase) => format!("Join {} ({phase}) of a table that gets its slots", past.move_id),
        (_, "done" | "watch" | "retire") => {
            format!("Move {} brought it from \"{}\" to \"{}\"", past.move_id, past.from, past.to)
        }
        (_, phase) => {
            format!("Move {} from \"{}\" to \"{}\" ({phase})", past.move_id, past.from, past.to)
        }
    };
    let mut line = format!("{what}, {}, requested by {}", past.at, past.requested_by);
    if let Some(id) = past.recommendation_id {
        let _ = write!(line, " upon recommendation {id}");
    }
    if let Some(confidence) = past.confidence {
        let _ = write!(line, " with confidence {confidence:.2}");
    }
    if let Some(reason) = &past.reason {
        let _ = write!(line, ": {reason}");
    }
    if let Some(undone) = &past.undone_at {
        let _ = write!(line, "; undone {undone}");
    }
    line + "."
}
