//! The keeper of one database: reads the counters every bucket, forecasts and plans, starts carriers,
//! rolls history up. Leaves when the extension is gone.

use crate::catalog::{colocation, decision, heat, moves, relation, session};
use crate::pg::bgworker::{self, Handle, Spec, WorkResult};
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::shmem::{self, State};
use crate::planner;
use foreshard_core::heat::{UnitCosts, cost_units_per_s, decayed_heat, rates};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Longest sleep, ms: also how late a finished carrier is noticed.
const TICK_MS: i64 = 1_000;
/// Pause between two clean-ups of the history, s.
const EXPIRE_EVERY_S: f64 = 60.0;

/// Entry point; the argument is the database's oid.
///
/// # Safety
/// Called by PostgreSQL in a fresh background worker only.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn foreshard_keeper_main(argument: pg_sys::Datum) {
    let database = argument.value() as u32;
    bgworker::on_exit(leave);
    bgworker::begin(database);
    shmem::with_entry(database, |entry| entry.keeper = bgworker::pid());
    if let Err(report) = bgworker::transaction(session::prepare_worker) {
        pgrx::log!("foreshard keeper: {}", report.line);
    }
    let mut state = Keeper::default();
    loop {
        match bgworker::transaction(relation::has_extension) {
            Ok(true) => state.tick(),
            Ok(false) => {
                shmem::with_entry(database, |entry| entry.state = State::Absent);
                bgworker::exit();
            }
            Err(report) => pgrx::log!("foreshard keeper: {}", report.line),
        }
        bgworker::show_activity(None);
        bgworker::wait(TICK_MS);
    }
}

/// # Safety
/// An exit callback of PostgreSQL.
#[pg_guard]
extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    let pid = bgworker::pid();
    shmem::with_entry(bgworker::database(), |entry| {
        if entry.keeper == pid {
            entry.keeper = 0;
        }
    });
}

#[derive(Default)]
struct Keeper {
    last_bucket_s: f64,
    last_plan_s: f64,
    last_expire_s: f64,
    carriers: Vec<(i64, Handle)>,
}

impl Keeper {
    fn tick(&mut self) {
        let now_s = bgworker::now_s();
        self.carriers.retain(|(_, handle)| handle.is_alive());
        report("moves", self.start_carriers());
        if now_s - self.last_expire_s >= EXPIRE_EVERY_S {
            self.last_expire_s = now_s;
            report("history", bgworker::transaction(expire));
        }
        if !guc::OBSERVE.get() {
            return;
        }
        let bucket_s = f64::from(guc::BUCKET.get());
        if now_s - self.last_bucket_s >= bucket_s - 0.05 {
            self.last_bucket_s = now_s;
            report("observation", bgworker::transaction(|| observe(now_s)));
        }
        if now_s - self.last_plan_s >= f64::from(guc::PLAN_INTERVAL.get()) - 0.05 {
            self.last_plan_s = now_s;
            report("planning", bgworker::transaction(plan));
        }
    }

    fn start_carriers(&mut self) -> WorkResult<()> {
        let room = guc::MAX_CONCURRENT_MOVES.get() as usize;
        if self.carriers.len() >= room {
            return Ok(());
        }
        let known: Vec<i64> = self.carriers.iter().map(|(id, _)| *id).collect();
        let due = bgworker::transaction(|| moves::without_carrier(room as i64))?;
        for move_id in due.into_iter().filter(|id| !known.contains(id)) {
            if self.carriers.len() >= room {
                break;
            }
            let started = bgworker::start(&Spec {
                name: &format!("foreshard carrier move {move_id}"),
                kind: "foreshard carrier",
                function: "foreshard_carrier_main",
                database: bgworker::database(),
                extra: move_id,
            });
            match started {
                Some(handle) => self.carriers.push((move_id, handle)),
                None => {
                    let why = "no free background worker; raise max_worker_processes";
                    bgworker::transaction(|| moves::note(move_id, Some(why), Some(why), None))?;
                    break;
                }
            }
        }
        Ok(())
    }
}

fn report(what: &str, outcome: WorkResult<()>) {
    if let Err(error) = outcome {
        pgrx::log!("foreshard keeper: {what}: {}", error.line);
    }
}

/// Cost units per operation, as set.
fn unit_costs() -> UnitCosts {
    UnitCosts {
        scan: guc::SCAN_COST.get(),
        row_read: guc::ROW_COST.get(),
        write: guc::WRITE_COST.get(),
        block_read: guc::BLOCK_READ_COST.get(),
        block_hit: guc::BLOCK_HIT_COST.get(),
    }
}

/// One reading of all counters.
fn observe(now_s: f64) -> PgResult<()> {
    colocation::reconcile()?;
    let previous = heat::previous()?;
    let costs = unit_costs();
    let half_life_s = f64::from(guc::HEAT_HALF_LIFE.get());
    let mut loads: BTreeMap<i32, f64> = BTreeMap::new();
    let mut observed = Vec::new();
    let mut shard_of: HashMap<i64, i32> = HashMap::new();
    for reading in heat::read_counters()? {
        let before = previous.get(&reading.slot_id);
        let elapsed_s = before.map_or(0.0, |b| now_s - b.observed_at_s);
        let rates = before.and_then(|b| rates(&b.counters, &reading.counters, elapsed_s));
        let cost = rates.as_ref().map(|r| cost_units_per_s(r, &costs));
        let old_heat = before.map_or(0.0, |b| b.heat);
        let heat = cost.map_or(old_heat, |c| decayed_heat(old_heat, c, elapsed_s, half_life_s));
        // Heat, not the last reading: backends flush their counters at their own pace, so that a single
        // reading jumps.
        *loads.entry(reading.shard_id).or_default() += heat;
        shard_of.insert(reading.slot_id, reading.shard_id);
        observed.push(heat::Observed {
            slot_id: reading.slot_id,
            counters: reading.counters,
            heat,
            rates,
            cost,
            hot_buckets: before.map_or(0, |b| b.hot_buckets),
        });
    }
    if observed.is_empty() {
        return Ok(());
    }
    let hot = overloaded(&loads)?;
    for o in &mut observed {
        let is_hot = shard_of.get(&o.slot_id).is_some_and(|s| hot.contains(s));
        o.hot_buckets = if is_hot { o.hot_buckets.saturating_add(1) } else { 0 };
    }
    heat::store(&observed, now_s, guc::BUCKET.get())?;
    heat::roll_up(now_s, guc::BUCKET.get())
}

/// Shards whose utilisation exceeds the mean by the upper threshold, or that are being drained.
fn overloaded(loads: &BTreeMap<i32, f64>) -> PgResult<Vec<i32>> {
    let shards = colocation::shards()?;
    let capacity: f64 = shards.iter().filter(|s| !s.draining).map(|s| s.capacity).sum();
    let mean = loads.values().sum::<f64>() / capacity.max(f64::MIN_POSITIVE);
    let limit = mean * (1.0 + guc::IMBALANCE_HIGH.get());
    Ok(shards
        .iter()
        .filter(|s| s.draining || loads.get(&s.shard_id).copied().unwrap_or(0.0) / s.capacity > limit)
        .map(|s| s.shard_id)
        .collect())
}

/// One round of forecasting and planning; in auto mode confident steps become moves.
fn plan() -> PgResult<()> {
    let decision = planner::decide(guc::FORECAST_HORIZON.get())?;
    if decision.slots.is_empty() {
        return Ok(());
    }
    decision::store_forecasts(&decision.forecasts, decision.interval_level)?;
    let confident = decision.confident_steps(guc::MIN_CONFIDENCE.get());
    decision::store_plan(&decision.plan, &decision.slots, confident)?;
    let moving = decision.slots.iter().any(|s| s.moving);
    if guc::MODE.get() != guc::Mode::Auto || moving {
        return Ok(());
    }
    let (map, confidence) = decision.assignment(guc::MIN_CONFIDENCE.get());
    if let (false, Some(confidence)) = (map.is_empty(), confidence) {
        moves::file_map(&map, Some(confidence), "foreshard")?;
    }
    Ok(())
}

fn expire() -> PgResult<()> {
    let bucket = guc::BUCKET.get();
    let mut keep =
        vec![(60, guc::RETAIN_1MIN.get()), (300, guc::RETAIN_5MIN.get()), (3600, guc::RETAIN_1H.get())];
    if !keep.iter().any(|(r, _)| *r == bucket) {
        keep.push((bucket, guc::RETAIN_BUCKET.get()));
    }
    heat::expire(&keep, guc::RETAIN_BUCKET.get(), guc::RETAIN_HISTORY.get())
}
