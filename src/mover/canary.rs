//! The canary: growing shares of the reads run on the shadow and are compared with those that stay.

use super::Outcome;
use super::cutover::look_unchanged;
use super::mirror::{self, Attempt};
use super::phases::is_unchanged;
use super::verified::{Compared, compare};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{baseline, child, copy, progress, record_event};
use crate::engine::Engine;
use crate::pg::bgworker::{self, WorkResult, transaction};
use crate::pg::guc;
use crate::pg::local::LocalBox;
use crate::pg::report::{PgResult, bad_argument};
use crate::pg::route::{MoveRoutes, Spec};
use foreshard_core::canary::{Canary, Decision, Evidence, parse_steps};
use foreshard_core::latency::Counts;
use foreshard_core::phase::Event;
use foreshard_core::shared::{Arm, RouteStats};
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Longest and shortest pause between two looks, ms.
const LOOK_MS: (f64, f64) = (500.0, 10.0);

/// Ways from partitions to copies with other rows that one change may have; one with more has no canary.
const MAX_WAYS: usize = 32;

/// This carrier's canary; a new carrier begins anew.
static CANARY: LocalBox<Canary> = LocalBox::new();

/// The shares that reads are to step through; empty: no canary.
pub fn steps() -> PgResult<Vec<f64>> {
    let list = guc::CANARY_STEPS.get();
    let list = list.as_deref().and_then(|list| list.to_str().ok()).unwrap_or_default();
    parse_steps(list).map_err(|bad| bad_argument(format!("foreshard.canary_steps: {bad}")))
}

/// Makes the routes of a move, all closed. The caller holds SHARE ROW EXCLUSIVE on the partitions, and their
/// changes are mirrored.
pub fn make_routes(row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
    let Some(horizon) = moves::last_replay(row.move_id)? else { return Ok(false) };
    let Some(routes) = make(row, relations, Some(horizon as u32))? else { return Ok(false) };
    // How it is without a copy under way.
    if let Some(stats) = routes.stats() {
        [Arm::Before, Arm::OthersBefore].into_iter().for_each(|arm| stats.arm(arm).clear());
        baseline::begin(row.move_id, 0.0)?;
    }
    Ok(true)
}

/// From now on it is known how statements fare, on the slot and elsewhere. Of a change that replaces partitions only that all of
/// them are timed is of use, for `foreshard.max_p99`; its canary makes its own routes.
pub fn time_statements(row: &MoveRow, relations: &[RelationRow]) -> PgResult<()> {
    if MoveRoutes::of(row.move_id).is_some() {
        return Ok(());
    }
    if !row.replaces() {
        return make(row, relations, None).map(drop);
    }
    let (none, indexes) = (pg_sys::InvalidOid, Vec::new());
    let first = relations.first();
    let spec =
        first.map(|r| Spec { source: r.source, shadow: r.shadow, parent: none, staging: none, indexes });
    MoveRoutes::make(row.move_id, spec.as_slice(), None);
    Ok(())
}

fn make(row: &MoveRow, relations: &[RelationRow], horizon: Option<u32>) -> PgResult<Option<MoveRoutes>> {
    let mut specs = Vec::new();
    for relation in relations {
        specs.extend(ways(row, relation)?);
    }
    if row.replaces() && specs.len() > MAX_WAYS {
        return Ok(None);
    }
    Ok(MoveRoutes::make(row.move_id, &specs, horizon))
}

/// The copies that reads of a partition can be sent to: its shadow, or those that its rows are divided over.
fn ways(row: &MoveRow, relation: &RelationRow) -> PgResult<Vec<Spec>> {
    let (source, none) = (relation.source, pg_sys::InvalidOid);
    if !row.replaces() {
        let indexes = shadow::index_pairs(row.move_id, source)?;
        return Ok(vec![Spec { source, shadow: relation.shadow, parent: none, staging: none, indexes }]);
    }
    let parent = child::parent_of(source)?;
    let way = |copy: pg_sys::Oid| {
        let staging = if copy == relation.shadow { none } else { relation.shadow };
        let indexes = shadow::index_pairs_of(row.move_id, source, copy)?;
        Ok(Spec { source, shadow: copy, parent, staging, indexes })
    };
    shadow::copies(relation)?.into_iter().map(way).collect()
}

/// No more reads for the shadow.
pub fn close_routes(move_id: i64) {
    if let Some(routes) = MoveRoutes::of(move_id) {
        routes.set_weight(0.0);
    }
}

/// One look at the canary.
pub fn step(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    let steps = transaction(steps)?;
    let relations = transaction(|| shadow::relations(row.move_id))?;
    // Nobody reads a copy of what was altered; the sooner it is made anew, the better.
    if !transaction(|| look_unchanged(&relations))? {
        return Ok(Outcome::Leave(Event::SourceChanged));
    }
    let sources: Vec<pg_sys::Oid> = relations.iter().map(|r| r.source).collect();
    let routes = MoveRoutes::of(row.move_id).filter(|routes| !routes.only_time());
    let Some(routes) = routes else { return begin(engine, row, attempt) };
    let Some(stats) = routes.stats().filter(|_| !routes.have_failed(&sources)) else {
        // Those of a move are made anew with its mirror, these when the canary begins again.
        if row.replaces() {
            routes.remove();
        }
        return Ok(Outcome::Leave(Event::BacklogTooLarge));
    };
    note_reads(row, stats)?;
    if stats.differed.load(Ordering::Relaxed) > 0 {
        return differ(engine, row, stats);
    }
    if let Some(weight) = row.manual_weight {
        return weigh(row, &routes, weight, 200);
    }
    let (stayed, routed) = (stats.arm(Arm::Stayed).read(), stats.arm(Arm::Routed).read());
    let evidence = Evidence { stayed: &stayed, routed: &routed, differed: 0 };
    let dwell_ms = f64::from(guc::CANARY_DWELL.get());
    let (now_ms, ratio) = (bgworker::now_s() * 1e3, guc::MAX_SLOWDOWN.get());
    let look = CANARY.with(|| Canary::new(steps), |canary| canary.look(now_ms, &evidence, dwell_ms, ratio));
    let pause_ms = (dwell_ms / 4.0).clamp(LOOK_MS.1, LOOK_MS.0) as i64;
    match look.unwrap_or(Decision::Wait) {
        Decision::Wait => Ok(Outcome::Again(pause_ms)),
        Decision::Measure => {
            stats.arm(Arm::Routed).clear();
            Ok(Outcome::Again(pause_ms))
        }
        Decision::Weigh(weight) => weigh(row, &routes, weight, pause_ms),
        Decision::Differ => differ(engine, row, stats),
        Decision::GiveUp(reason) => {
            close_routes(row.move_id);
            give_up(row, &reason.to_string(), stats)?;
            Ok(Outcome::Leave(Event::FatalError))
        }
        Decision::Finished => {
            CANARY.forget();
            transaction(|| {
                record_event("canary", Some(row.move_id), Some(row.slot_id), summary(row, stats))?;
                moves::advance(row, Event::Completed, engine.capabilities())
            })?;
            Ok(Outcome::Advanced)
        }
    }
}

/// Makes the routes, when a crash or another carrier's end has taken them; without room for them there is no
/// canary.
fn begin(engine: &dyn Engine, row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    CANARY.forget();
    mirror::locked(row, attempt, |relations| {
        let held = Instant::now();
        for relation in relations {
            if !is_unchanged(relation)? {
                return Ok(Attempt::Leave(Event::SourceChanged));
            }
            if !shadow::is_mirroring(relation.trigger)? || copy::plan(relation)?.pending(1)? > 0 {
                return Ok(Attempt::Leave(Event::BacklogTooLarge));
            }
        }
        if !make_routes(row, relations)? {
            let why = json!({"skipped": "no room for routes: too many copies or indexes"});
            record_event("canary", Some(row.move_id), Some(row.slot_id), why)?;
            moves::advance(row, Event::Completed, engine.capabilities())?;
        } else {
            let detail = json!({"began": true, "held_us": held.elapsed().as_micros() as u64});
            record_event("canary", Some(row.move_id), Some(row.slot_id), detail)?;
        }
        Ok(Attempt::Done)
    })
}

fn weigh(row: &MoveRow, routes: &MoveRoutes, weight: f64, pause_ms: i64) -> WorkResult<Outcome> {
    routes.set_weight(weight);
    if row.route_weight != Some(weight) {
        transaction(|| {
            moves::set_route_weight(row.move_id, weight)?;
            record_event("canary", Some(row.move_id), Some(row.slot_id), json!({"weight": weight}))
        })?;
    }
    Ok(Outcome::Again(pause_ms))
}

/// Look-ups differed: the whole is verified again, which names the rows; if they are equal, an index is not.
fn differ(engine: &dyn Engine, row: &MoveRow, stats: &RouteStats) -> WorkResult<Outcome> {
    close_routes(row.move_id);
    match compare(engine, row)? {
        Compared::Different => Ok(Outcome::Advanced),
        Compared::Leave(event) => Ok(Outcome::Leave(event)),
        Compared::Equal => {
            let index = pg_sys::Oid::from(stats.differing_index.load(Ordering::Relaxed));
            let name = transaction(|| crate::catalog::name_of(index))?;
            give_up(
                row,
                &format!("reads by index {name} find other rows in the copy than in the source"),
                stats,
            )?;
            Ok(Outcome::Leave(Event::Mismatch))
        }
    }
}

/// Says how many reads went to the copy so far, stayed, and cannot go there; and of how many scans both copies were asked.
fn note_reads(row: &MoveRow, stats: &RouteStats) -> WorkResult<()> {
    let [routed, stayed, unroutable] = [0, 1, 2].map(|at: usize| &stats.reads[at]);
    let counters = [routed, stayed, unroutable, &stats.compared, &stats.incomparable];
    let counts = counters.map(|counter| counter.load(Ordering::Relaxed) as i64);
    transaction(|| progress::set_reads(row.move_id, counts))
}

fn give_up(row: &MoveRow, why: &str, stats: &RouteStats) -> WorkResult<()> {
    transaction(|| {
        moves::note(row.move_id, None, Some(why), None)?;
        let mut detail = summary(row, stats);
        detail["refused"] = why.into();
        record_event("canary", Some(row.move_id), Some(row.slot_id), detail)
    })
}

fn summary(row: &MoveRow, stats: &RouteStats) -> Value {
    json!({
        "reads": MoveRoutes::of(row.move_id).map(|routes| routes.reads()),
        "unroutable": stats.reads[2].load(Ordering::Relaxed),
        "stayed": latencies(&stats.arm(Arm::Stayed).read()),
        "routed": latencies(&stats.arm(Arm::Routed).read()),
        "compared": stats.compared.load(Ordering::Relaxed),
        "differed": stats.differed.load(Ordering::Relaxed),
        "incomparable": stats.incomparable.load(Ordering::Relaxed),
    })
}

/// What the history shows of a histogram.
pub fn latencies(counts: &Counts) -> Value {
    json!({
        "statements": counts.total(),
        "errors": counts.errors,
        "p50_ms": counts.quantile_ms(0.5),
        "p99_ms": counts.quantile_ms(0.99),
    })
}
