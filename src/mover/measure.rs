//! How statements fare on a slot that moves, before and after the swap: counted in shared memory, kept with the move, so that a
//! crash does not take the time before the swap; judged against that, against all other statements, and against the
//! forecast of the slot's load.

use super::canary;
use crate::catalog::baseline::{self, Baseline};
use crate::catalog::citus::moving;
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::{act, record_event, shadow};
use crate::pg::bgworker::{WorkResult, now_s, transaction};
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::route::{MoveRoutes, Spec};
use foreshard_core::shared::{Arm, RouteStats};
use foreshard_core::watch::{Expected, Load, Period, Reason, Verdict, Watching, foreseen};
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

/// Writers that waited for Citus' switch have ended so long after it, and connections to the node have been made, s.
const SETTLED_S: f64 = 1.0;

/// What a move waits for that has not begun because of that.
const MEASURING: &str = "how statements fare without it, which is measured for foreshard.canary_dwell";

/// How a slot fares since its swap.
struct Fare {
    known: Baseline,
    after: Period,
    /// Since when the time after the swap counts, s since 1970.
    from_s: f64,
}

/// A move whose old copy is kept, as somebody who looks at it again and again knows it.
#[derive(Default)]
pub struct Watched {
    spans: Option<Watching>,
    is_explained: bool,
    /// Of a move by Citus: since when what is counted was looked at from, s since 1970.
    counts_from_s: Option<f64>,
}

/// Of a move by Citus: how long it is still to be measured how statements fare before it, ms; None: that has not begun, or is known.
pub fn left_ms(row: &MoveRow) -> Option<i64> {
    let age_ms = MoveRoutes::of(row.move_id).and(row.measured_age_s)? * 1e3;
    let dwell_ms = i64::from(guc::CANARY_DWELL.get());
    Some((dwell_ms - age_ms as i64).min(dwell_ms)).filter(|left_ms| *left_ms > 0)
}

/// Of a move by Citus that is about to begin: has it measured for the dwell of a canary how statements fare without it, and keeps that for
/// good. How long to wait for that, ms; None: go on.
pub fn before_copy(row: &MoveRow) -> PgResult<Option<i64>> {
    if guc::MAX_SLOWDOWN.get() <= 0.0 {
        return Ok(None);
    }
    if MoveRoutes::of(row.move_id).is_none() {
        let dwell_ms = i64::from(guc::CANARY_DWELL.get());
        if !time_group(row)? {
            return Ok(None);
        }
        baseline::begin(row.move_id, 0.0)?;
        if dwell_ms > 0 {
            moves::note(row.move_id, Some(MEASURING), None, None)?;
            return Ok(Some(dwell_ms));
        }
    }
    store(row, false)?;
    baseline::close(row.move_id)?;
    Ok(None)
}

/// Of a move by Citus: while it was measured how statements fare without it others have begun to move shards.
pub fn forget(row: &MoveRow) {
    if let Some(routes) = MoveRoutes::of(row.move_id) {
        routes.remove();
    }
}

/// From now on it is known how statements fare on the tables of a group of Citus: to which of its slots one is sent is not seen here.
/// False: there is no room.
fn time_group(row: &MoveRow) -> PgResult<bool> {
    let none = pg_sys::InvalidOid;
    let whole = |(source, _): (pg_sys::Oid, String)| Spec {
        source,
        shadow: none,
        parent: none,
        staging: none,
        indexes: Vec::new(),
    };
    let specs: Vec<Spec> = moves::tables_of_slot(row.slot_id)?.into_iter().map(whole).collect();
    Ok(MoveRoutes::make(row.move_id, &specs, None).is_some())
}

/// Keeps what was counted before the swap. With `go_on`, what an earlier server counted is in it, and counting goes on from there; not while
/// a canary is to come, which makes routes of its own.
pub fn keep(row: &MoveRow, go_on: bool) -> WorkResult<()> {
    let counts = if go_on { ensure(row)? } else { MoveRoutes::of(row.move_id).is_some() };
    if counts && !row.replaces() { transaction(|| store(row, false)) } else { Ok(()) }
}

fn stats_of(move_id: i64) -> Option<&'static RouteStats> {
    MoveRoutes::of(move_id).and_then(|routes| routes.stats())
}

fn store(row: &MoveRow, swapped: bool) -> PgResult<()> {
    let Some(stats) = stats_of(row.move_id) else { return Ok(()) };
    let (slot, others) = (stats.arm(Arm::Before).read(), stats.arm(Arm::OthersBefore).read());
    baseline::store(row.move_id, row.slot_id, &slot, &others, swapped)
}

/// Goes on counting where a server that ended has left off, if that is so; false: nothing is counted.
fn ensure(row: &MoveRow) -> WorkResult<bool> {
    if MoveRoutes::of(row.move_id).is_some() {
        return Ok(true);
    }
    if row.is_citus {
        return transaction(|| time_group(row));
    }
    if row.replaces() || row.is_foreign {
        return Ok(false);
    }
    transaction(|| {
        canary::time_statements(row, &shadow::relations(row.move_id)?)?;
        restore(row)
    })
}

/// Adds what is kept of the time before the swap to what is counted now.
fn restore(row: &MoveRow) -> PgResult<bool> {
    let Some(stats) = stats_of(row.move_id) else { return Ok(false) };
    let kept = baseline::load(row.move_id)?;
    stats.arm(Arm::Before).clear();
    stats.arm(Arm::Before).add_all(&kept.before.slot);
    stats.arm(Arm::OthersBefore).clear();
    stats.arm(Arm::OthersBefore).add_all(&kept.before.others);
    if kept.watch_from_s.is_none() {
        baseline::begin(row.move_id, kept.before.seconds)?;
    }
    Ok(true)
}

/// After a swap: if what was counted is lost, the watch begins anew, with what is kept of the time before the swap. True: it did.
pub fn resume(row: &MoveRow) -> WorkResult<bool> {
    if MoveRoutes::of(row.move_id).is_some() || guc::MAX_SLOWDOWN.get() <= 0.0 {
        return Ok(false);
    }
    // Nothing is lost of a move for which there was no room to count, or that is judged no more.
    let kept = transaction(|| baseline::load(row.move_id))?;
    if kept.before.slot.total() == 0 || kept.is_over || !ensure(row)? {
        return Ok(false);
    }
    if let Some(stats) = stats_of(row.move_id) {
        stats.swapped.store(1, Ordering::Relaxed);
    }
    let begun = transaction(|| {
        baseline::begin_anew(row.move_id)?;
        let kept = baseline::load(row.move_id)?;
        let detail = json!({
            "resumed": "what was counted since the swap is lost with the server's memory: the window begins anew",
            "window_s": guc::ROLLBACK_WINDOW.get(), "before": canary::latencies(&kept.before.slot),
        });
        record_event("watch", Some(row.move_id), Some(row.slot_id), detail)
    });
    // Without that, it is to be done again.
    if begun.is_err()
        && let Some(routes) = MoveRoutes::of(row.move_id)
    {
        routes.remove();
    }
    begun.map(|()| true)
}

/// How statements have fared since the swap of a move; None: nothing is counted, caches are still cold, or it is judged no more.
fn fare(row: &MoveRow, now_s: f64, watched: Option<&mut Watched>) -> PgResult<Option<Fare>> {
    let Some(stats) = stats_of(row.move_id) else { return Ok(None) };
    let mut known = baseline::load(row.move_id)?;
    if known.is_over {
        return Ok(None);
    }
    if !known.is_final {
        store(row, true)?;
        known = baseline::load(row.move_id)?;
    }
    let Some(from_s) = known.watch_from_s else { return Ok(None) };
    // As in a canary, after a start of the server the first half of a dwell warms caches.
    let half_dwell_s = f64::from(guc::CANARY_DWELL.get()) / 2e3;
    let cold_s = match (row.is_citus, known.is_resumed) {
        (true, _) => half_dwell_s.max(SETTLED_S),
        (false, true) => half_dwell_s,
        (false, false) => 0.0,
    };
    let mut from_s = from_s + cold_s;
    if row.is_citus {
        // The carrier leaves that to whoever looks first.
        stats.swapped.store(1, Ordering::Relaxed);
    }
    let begins = match watched.filter(|_| row.is_citus && now_s >= from_s) {
        Some(watched) => {
            let is_first = watched.counts_from_s.is_none();
            from_s = *watched.counts_from_s.get_or_insert(now_s);
            is_first
        }
        None => now_s < from_s,
    };
    if begins {
        [Arm::After, Arm::OthersAfter].into_iter().for_each(|arm| stats.arm(arm).clear());
        return Ok(None);
    }
    let after = Period {
        slot: stats.arm(Arm::After).read(),
        others: stats.arm(Arm::OthersAfter).read(),
        seconds: now_s - from_s,
    };
    Ok(Some(Fare { known, after, from_s }))
}

impl Fare {
    /// What was expected of the load between two times.
    fn expected(&self, from_s: f64, to_s: f64) -> Option<Expected> {
        let forecast = foreseen(&self.known.forecast, self.known.step_s, from_s, to_s);
        self.known.load.zip(forecast).map(|(before, forecast)| Expected { before, forecast })
    }

    /// Takes what was counted by now.
    fn look(&self, spans: &mut Watching, now_s: f64) {
        let expected = self.expected(spans.span_from_s(), now_s);
        spans.look(now_s, &self.after.slot, &self.known.before, expected);
    }

    /// All numbers, for the history: measured against what was before, and against what was predicted.
    fn detail(&self, slot_id: i64, load: Option<&Load>) -> PgResult<Value> {
        let measured = baseline::load_since(slot_id, Some(self.from_s), None)?;
        let (before, after) = (&self.known.before, &self.after);
        Ok(json!({
            "before": canary::latencies(&before.slot), "after": canary::latencies(&after.slot),
            "others_before": canary::latencies(&before.others), "others_after": canary::latencies(&after.others),
            "load": load_detail(&self.known, after, load, measured),
        }))
    }
}

/// Measured against predicted, for the history; cost units per second, and per statement. The load at former cost and what it
/// explains are as the average statement met them.
fn load_detail(known: &Baseline, after: &Period, load: Option<&Load>, measured: Option<f64>) -> Value {
    let (before_rate, after_rate) = (known.before.statements_per_s(), after.statements_per_s());
    let per_statement = |cost: Option<f64>, rate: Option<f64>| cost.zip(rate).map(|(cost, rate)| cost / rate);
    let forecast = load.and_then(|load| load.expected).map(|e| e.forecast);
    json!({
        "statements_per_s_before": before_rate, "statements_per_s": after_rate,
        "before": known.load, "measured": measured, "at_former_cost": load.and_then(|load| load.now),
        "forecast": forecast.map(|f| json!({"mean": f.mean, "lower": f.lower, "upper": f.upper})),
        "cost_per_statement_before": per_statement(known.load, before_rate),
        "cost_per_statement": per_statement(measured, after_rate),
        "explains": load.map(|load| load.explains), "beyond_forecast": load.map(Load::is_beyond),
    })
}

/// How statements fared before and after the swap, for the history, at the end of the watch.
pub fn record(row: &MoveRow) -> WorkResult<()> {
    let now_s = now_s();
    transaction(|| {
        let Some(fare) = fare(row, now_s, None)? else { return Ok(()) };
        let mut whole = Watching::new(fare.from_s);
        fare.look(&mut whole, now_s);
        let detail = fare.detail(row.slot_id, whole.load())?;
        record_event("watched", Some(row.move_id), Some(row.slot_id), detail)
    })
}

/// Asks for a rollback where statements on the slot have become worse than the rest explains; what the forecast explains is said once.
pub fn look(row: &MoveRow, watched: &mut Watched) -> PgResult<()> {
    let now_s = now_s();
    let Some(fare) = fare(row, now_s, Some(&mut *watched))? else { return Ok(()) };
    if row.is_citus
        && let Some(who) = moving::company(row.move_id)?
    {
        // Copies and switches of others slow the whole group down, and what comes of them is theirs.
        baseline::end_watch(row.move_id)?;
        let mut detail = fare.detail(row.slot_id, None)?;
        detail["over"] = json!(who);
        return record_event("watch", Some(row.move_id), Some(row.slot_id), detail);
    }
    let what = if row.is_citus { "the tables of the slot's group" } else { "the slot" };
    let spans = watched.spans.get_or_insert_with(|| Watching::new(fare.from_s));
    fare.look(spans, now_s);
    match spans.judge(&fare.known.before, &fare.after, guc::MAX_SLOWDOWN.get()) {
        Verdict::Well => Ok(()),
        Verdict::Explained(..) if watched.is_explained => Ok(()),
        Verdict::Explained(slower, load) => {
            watched.is_explained = true;
            let mut detail = fare.detail(row.slot_id, spans.load())?;
            detail["explained"] = json!(Reason::Slower(slower, load).of(what));
            record_event("watch", Some(row.move_id), Some(row.slot_id), detail)
        }
        Verdict::Worse(reason) => {
            let why = reason.of(what);
            let mut detail = fare.detail(row.slot_id, spans.load())?;
            detail["reason"] = json!(why);
            record_event("regression", Some(row.move_id), Some(row.slot_id), detail)?;
            moves::note(row.move_id, None, Some(&why), None)?;
            // It is not tried again while that is fresh: what made it slower is not in the loads that plans are made of.
            act::taken_back(row.move_id, row.move_id)?;
            moves::request_rollback(row.move_id).map(drop)
        }
    }
}
