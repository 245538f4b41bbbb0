//! The keeper of one database: says what to watch, reads the counters every bucket and the samples every
//! tick, learns, forecasts and plans, starts carriers, rolls history up. Leaves when the extension is gone.

use super::learn::{Learner, in_background};
use super::load::Reader;
use super::publish::Publisher;
use super::watch::Watches;
use crate::catalog::graph::{influence, moving};
use crate::catalog::{
    act as acts, citus, data_source, due, heat, moves, node, record_event, relation, session, shadow,
    slot_key, upgraded,
};
use crate::observe::{asked, directory, drain};
use crate::pg::bgworker::{self, Handle, Spec, WorkResult};
use crate::pg::report::PgResult;
use crate::pg::shmem::{self, State};
use crate::pg::{barrier, guc, route, usage};
use crate::planner::{self, Busy, Decision, divisions};
use crate::resolve::memory;
use foreshard_core::calibration::DISTRESS;
use foreshard_core::heat::is_due;
use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;

/// Longest sleep, ms: also how late a finished carrier is noticed.
const TICK_MS: i64 = 1_000;
/// Shortest sleep, ms.
const MIN_WAIT_MS: i64 = 50;
/// Pause between two clean-ups of the history, s.
const EXPIRE_EVERY_S: f64 = 60.0;

/// Moves without a carrier that are looked at.
const MAX_WAITING_MOVES: i64 = 64;

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
    shmem::with_entry(database, |entry| {
        entry.keeper = bgworker::pid();
        entry.look_us = 0;
    });
    usage::map_large_buffers();
    drain::serve();
    if let Err(report) = bgworker::transaction(session::prepare_worker) {
        pgrx::log!("foreshard keeper: {}", report.line);
    }
    let mut state = Keeper::default();
    loop {
        let begun_ns = usage::elapsed_ns();
        state.learner.catch_up_until_ns = begun_ns + TICK_MS as u64 * 1_000_000;
        match bgworker::transaction(relation::has_extension) {
            Ok(true) => state.tick(),
            Ok(false) => {
                directory::withdraw();
                route::keep_only(&[]);
                shmem::with_entry(database, |entry| entry.state = State::Absent);
                bgworker::exit();
            }
            Err(report) => pgrx::log!("foreshard keeper: {}", report.line),
        }
        barrier::tidy();
        bgworker::show_activity(None);
        let spent_us = (usage::elapsed_ns().saturating_sub(begun_ns) / 1_000) as u32;
        shmem::with_entry(database, |entry| entry.look_us = spent_us.max(entry.look_us - entry.look_us / 10));
        state.rest(begun_ns);
    }
}

/// # Safety
/// An exit callback of PostgreSQL.
#[pg_guard]
extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    let pid = bgworker::pid();
    drain::serve_no_more();
    // Somebody may drop the database; a carrier that is at it makes its routes anew.
    route::keep_only(&[]);
    shmem::with_entry(bgworker::database(), |entry| {
        if entry.keeper == pid {
            entry.keeper = 0;
        }
    });
}

#[derive(Default)]
struct Keeper {
    /// Nothing of what is stored is of another server.
    settled: bool,
    watches: Watches,
    last_bucket_s: f64,
    last_plan_s: f64,
    last_expire_s: f64,
    last_sources_s: f64,
    carriers: Vec<(i64, Handle)>,
    publisher: Publisher,
    reader: Reader,
    learner: Learner,
    graphs: Option<Handle>,
    nodes: Option<Handle>,
    citus: Option<Handle>,
    switches: super::citus::Switches,
}

impl Keeper {
    /// Sleeps until a second after a tick began (readings keep their pace, however long it took), or until somebody
    /// has work. When samples fill the rings, reads them meanwhile, as often as that takes.
    fn rest(&mut self, begun_ns: u64) {
        loop {
            let spent_ms = (usage::elapsed_ns().saturating_sub(begun_ns) / 1_000_000) as i64;
            bgworker::wait((TICK_MS - spent_ms).clamp(MIN_WAIT_MS, TICK_MS));
            if !self.learner.catch_up(&self.publisher) {
                return;
            }
        }
    }

    /// Empties the rings between the steps of a tick, if they fill.
    fn collect(&mut self) {
        self.learner.collect();
    }

    fn tick(&mut self) {
        let now_s = bgworker::now_s();
        if !self.settled {
            // Before anything trusts what is stored.
            let outcome = bgworker::transaction(upgraded::settle);
            self.settled = outcome.is_ok();
            report("another server", outcome);
            if !self.settled {
                return;
            }
        }
        self.carriers.retain(|(_, handle)| handle.is_alive());
        report("swapped moves", self.watches.look());
        self.collect();
        report("moves that have not begun", bgworker::transaction(|| withdraw(now_s)));
        report("moves", self.start_carriers());
        self.collect();
        report("graphs", self.start_graphs());
        self.collect();
        report("nodes", self.start_nodes());
        report("citus", self.start_citus());
        report("moves by Citus", self.switches.watch(now_s));
        self.collect();
        if self.last_expire_s == 0.0 {
            // At the next tick: then what backends have counted is known, and what of it is gone can be forgotten.
            self.last_expire_s = now_s - EXPIRE_EVERY_S + 0.5;
        } else if is_due(self.last_expire_s, now_s, EXPIRE_EVERY_S) {
            self.last_expire_s = now_s;
            // By itself: what is renamed stays locked to the end.
            report("toast tables", in_background(shadow::restore_toast_names));
            report("history", in_background(expire));
            self.collect();
            report("history", self.learner.forget_gone(&self.publisher));
            self.give_back_memory();
        }
        if is_due(self.last_sources_s, now_s, f64::from(guc::BUCKET.get())) {
            self.last_sources_s = now_s;
            report("data sources", save_sources());
        }
        self.collect();
        asked::end_overdue();
        report("watching", self.watch(now_s));
        self.learner.read(&self.publisher, now_s);
        if !guc::OBSERVE.get() {
            return;
        }
        let bucket_s = f64::from(guc::BUCKET.get());
        if is_due(self.last_bucket_s, now_s, bucket_s - 0.05) {
            self.last_bucket_s = now_s;
            let (reader, publisher, costs) = (&mut self.reader, &mut self.publisher, &mut self.learner.costs);
            let observed = bgworker::transaction(|| reader.observe(publisher, costs, now_s));
            // What a reading that failed did not see belongs to the next one.
            let succeeded = observed.is_ok();
            report("observation", observed);
            if succeeded {
                self.learner.costs.read();
            }
            self.publisher.publish();
            self.collect();
            report("learning", self.learner.store(&mut self.publisher, now_s));
            self.collect();
        }
        if is_due(self.last_plan_s, now_s, f64::from(guc::PLAN_INTERVAL.get()) - 0.05) {
            self.last_plan_s = now_s;
            for (what, work) in planner::BOOKS {
                report(what, bgworker::transaction(work));
                self.collect();
            }
            report("planning", self.plan(now_s));
        }
    }

    /// Gives back what was freed, and tells the server's log, if that is to know so much, what is left: whatever grows shall be found.
    fn give_back_memory(&self) {
        usage::give_back_memory();
        let (used, held) = usage::heap_bytes();
        let (buckets, models) = planner::remembered();
        pgrx::debug1!(
            "foreshard keeper: remembers {}, {}, {}, {buckets} buckets, {models} models; {} kB, {} kB of heap",
            self.learner.remembers(),
            self.publisher.remembers(),
            self.reader.remembers(),
            used / 1024,
            held / 1024,
        );
    }

    /// Tells backends what to watch, if that has changed.
    fn watch(&mut self, now_s: f64) -> WorkResult<()> {
        let (publisher, learner) = (&mut self.publisher, &mut self.learner);
        let changed = bgworker::transaction(|| {
            learner.restore(now_s)?;
            publisher.refresh()
        })?;
        publisher.publish();
        if changed { learner.forget_gone(publisher) } else { Ok(()) }
    }

    /// Starts the worker of graphs when there is something for it to do.
    fn start_graphs(&mut self) -> WorkResult<()> {
        self.graphs.take_if(|handle| !handle.is_alive());
        let interval = guc::INFLUENCE_INTERVAL.get();
        if self.graphs.is_some() || !bgworker::transaction(|| influence::is_work_due(interval))? {
            return Ok(());
        }
        // Without a free process it is tried again at the next tick.
        self.graphs = bgworker::start(&Spec {
            name: "foreshard graph",
            kind: "foreshard graph",
            function: "foreshard_graph_main",
            database: bgworker::database(),
            extra: 0,
        });
        Ok(())
    }

    /// Starts the worker of health checks when one is due: a node that is cut off must not hold up the keeper.
    fn start_nodes(&mut self) -> WorkResult<()> {
        self.nodes.take_if(|handle| !handle.is_alive());
        let interval = guc::NODE_CHECK_INTERVAL.get();
        if self.nodes.is_some() || interval == 0 || !bgworker::transaction(|| node::is_check_due(interval))? {
            return Ok(());
        }
        self.nodes = bgworker::start(&Spec {
            name: "foreshard nodes",
            kind: "foreshard nodes",
            function: "foreshard_nodes_main",
            database: bgworker::database(),
            extra: 0,
        });
        Ok(())
    }

    /// Starts a look at the Citus cluster when a bucket has passed since the last one.
    fn start_citus(&mut self) -> WorkResult<()> {
        self.citus.take_if(|handle| !handle.is_alive());
        let interval = guc::BUCKET.get();
        let watches = guc::OBSERVE.get();
        if self.citus.is_some() || !bgworker::transaction(|| citus::is_due(interval, watches))? {
            return Ok(());
        }
        self.citus = bgworker::start(&Spec {
            name: "foreshard citus",
            kind: "foreshard citus",
            function: "foreshard_nodes_main",
            database: bgworker::database(),
            extra: super::nodes::CITUS,
        });
        Ok(())
    }

    /// One round of forecasting and planning. In auto mode what may be done now is filed: moves first, then divisions of
    /// slots, then placements of keys. What fails takes nothing else along.
    fn plan(&mut self, now_s: f64) -> WorkResult<()> {
        let Some(decision) = bgworker::transaction(decide)? else { return Ok(()) };
        take(&decision, &bgworker::transaction(Busy::read)?);
        let gatherers = &mut self.learner.gatherers;
        gatherers.plan(&decision, now_s);
        // What was just filed is under way, too.
        let busy = bgworker::transaction(Busy::read)?;
        if !divide(&decision, &busy) && busy.is_idle() {
            gatherers.file(&decision);
        }
        Ok(())
    }

    fn start_carriers(&mut self) -> WorkResult<()> {
        if !self.carriers.is_empty() {
            bgworker::transaction(due::interrupt)?;
            bgworker::transaction(due::end_waits)?;
        }
        let room = guc::MAX_CONCURRENT_MOVES.get() as usize;
        // A way back must not wait for the copy of another move.
        let room_for = |due: &due::Due| room + usize::from(due.is_short);
        if self.carriers.len() > room {
            return Ok(());
        }
        let mut waiting = Watches::kept_in_vain()?;
        waiting.extend(bgworker::transaction(|| due::without_carrier(MAX_WAITING_MOVES))?);
        for due in waiting {
            let is_driven = self.carriers.iter().any(|(move_id, _)| *move_id == due.move_id);
            if is_driven || self.carriers.len() >= room_for(&due) {
                continue;
            }
            let move_id = due.move_id;
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

/// Saves what was learnt of data sources.
fn save_sources() -> WorkResult<()> {
    let unsaved = memory::take_unsaved();
    if unsaved.is_empty() { Ok(()) } else { in_background(|| data_source::save(&unsaved)) }
}

/// What there is to decide about; None: nothing.
fn decide() -> PgResult<Option<Decision>> {
    let decision = planner::decide(guc::FORECAST_HORIZON.get())?;
    if decision.slots.is_empty() {
        return Ok(None);
    }
    decision.store()?;
    Ok(Some(decision))
}

/// Files the moves that may be made now, of slots here and on servers, and of slots of Citus, unless what is under way holds
/// them up.
fn take(decision: &Decision, busy: &Busy) {
    for citus in [true, false] {
        let wanted = decision.takeable(citus, busy);
        let Some(least) = wanted.least else { continue };
        is_filed("moves", || {
            let (_, filed) = moves::file_map(&wanted.map, Some(least), "foreshard")?;
            acts::record_auto(&filed)?;
            Ok(true)
        });
    }
}

/// Takes back what this filed by itself and what has not begun when its table's mode is no longer auto, or the hours that are left for
/// moves are over and no shard is in distress. What is still wanted in the next hours is filed then.
fn withdraw(now_s: f64) -> PgResult<()> {
    let unbegun = due::unbegun(DISTRESS)?;
    if unbegun.is_empty() {
        return Ok(());
    }
    let (modes, is_open) = (planner::Modes::read()?, planner::is_open(now_s));
    for one in unbegun {
        let why = match modes.of(one.group_id) {
            guc::Mode::Auto if is_open || one.is_urgent => continue,
            guc::Mode::Auto => "the hours for moves are over",
            _ => "the mode is no longer auto",
        };
        moves::request_cancel(one.move_id)?;
        record_event("withdrawn", Some(one.move_id), Some(one.slot_id), json!({"reason": why}))?;
    }
    Ok(())
}

/// Files the first division that nothing speaks against, in a transaction of its own: one that fails takes along neither
/// the plan nor those behind it. False: none was filed.
fn divide(decision: &Decision, busy: &Busy) -> bool {
    divisions::due(&decision.permitted_divisions(busy)).iter().any(|division| {
        let (action, slot_id) = (division.action.as_str(), division.slot_id);
        is_filed(&format!("{action} of slot {slot_id}"), || divisions::file(division))
    })
}

/// Whether something was filed, in a transaction of its own; who reads the log is told what failed.
fn is_filed(what: &str, file: impl FnOnce() -> PgResult<bool>) -> bool {
    bgworker::transaction(file).unwrap_or_else(|error| {
        pgrx::log!("foreshard keeper: {what}: {}", error.line);
        false
    })
}

fn expire() -> PgResult<()> {
    let bucket = guc::BUCKET.get();
    let mut keep =
        vec![(60, guc::RETAIN_1MIN.get()), (300, guc::RETAIN_5MIN.get()), (3600, guc::RETAIN_1H.get())];
    if !keep.iter().any(|(r, _)| *r == bucket) {
        keep.push((bucket, guc::RETAIN_BUCKET.get()));
    }
    moving::expire(guc::RETAIN_HISTORY.get())?;
    slot_key::expire()?;
    heat::expire(&keep, guc::RETAIN_BUCKET.get(), guc::RETAIN_HISTORY.get())
}
